"""Links: versions that stand for versions of other collections. They hold the content; the labels are the source's."""

from __future__ import annotations

from collections.abc import Sequence

from casstore.catalogue import (
    Found,
    found_at,
    open_collection,
    place_of,
    protected_aliases,
    protection,
    refusal,
    source_of,
    still_there,
)
from casstore.engine import Engine
from casstore.errors import InUseError, InvalidInputError, TypeConflictError
from casstore.model import CollectionRow, Link, Record, SetAlias, Unlink, VersionState
from casstore.names import LATEST, CollectionName, check_aliases
from casstore.overlay import Tables
from casstore.state import alias_target, aliases_of
from casstore.trashing import users
from casstore.view import collection_name, identifier_of, links_of


def link(engine: Engine, found: Found, target: CollectionName, aliases: Sequence[str]) -> Found:
    """Give a version, or what it is a link to, a number in another collection, with ``latest`` and some aliases on it.

    If it has one there, that one gets the aliases. A collection that is not there becomes a portfolio. Raises
    `InvalidInputError` for the collection the source is in, `TypeConflictError`, `NameTakenError` for one in the
    trash, `VersionNotFoundError`.
    """
    number = -1
    home = 0
    wanted = tuple(alias for alias in check_aliases(aliases) if alias != LATEST)

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal number, home
        live = still_there(tables, found)
        source = source_of(tables, live.version) or live
        collection = _home(tables, target, source)
        home = identifier_of(tables, str(target))
        known = None
        if collection is not None:
            known = next(iter(links_of(tables, source.version, home=collection.id)), None)
        if collection is None or known is None:
            number = -1
            name = source.collection.name
            actor = engine.runtime.actor
            return (Link(str(target), name, source.version.number, wanted, move_latest=True, actor=actor),)
        number = known.number
        check_aliases({*wanted, *aliases_of(tables, *place_of(known))} - {LATEST})
        return [
            SetAlias(collection.name, alias, number, actor=engine.runtime.actor)
            for alias in (*wanted, LATEST)
            if alias_target(tables, collection.id, alias) != number
        ]

    done = engine.commit(build)
    if number < 0:
        assert done is not None
        (number,) = done.numbers
    return found_at(engine, home, number)


def _home(tables: Tables, target: CollectionName, source: Found) -> CollectionRow | None:
    """The collection a link goes to; None: it is made for it."""
    collection = open_collection(tables, target)
    if collection is None or collection.state is VersionState.PURGED:
        return None
    if collection.id == source.collection.id:
        raise InvalidInputError(
            f"{source.label} is in {target.short} already: a link goes to another collection",
            hint=f"casstore alias set {source.label} NAME",
        )
    if collection.type != source.version.type:
        raise TypeConflictError(
            f"collection {target.short} has type {collection.type!r}, and {source.label} {source.version.type!r}",
            hint="link to another collection",
        )
    return collection


def unlink(engine: Engine, found: Found, *, refuse_in_use: bool = False) -> tuple[str, ...]:
    """Take a link away for good, with the aliases on it; returns the runs whose declared uses of it ended by that.

    Raises `InvalidInputError` for a version that is no link, `ProtectedError`, `VersionNotFoundError` if it is gone;
    with ``refuse_in_use`` `InUseError`.
    """
    if not found.version.is_link:
        raise InvalidInputError(f"{found.label} is no link", hint=f"casstore rm {found.label} moves it to the trash")
    cancelled: tuple[str, ...] = ()

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal cancelled
        live = still_there(tables, found)
        record, cancelled = unlink_record(tables, live, engine.runtime.actor, refuse_in_use=refuse_in_use)
        return (record,)

    engine.commit(build)
    return cancelled


def unlink_record(
    tables: Tables, link: Found, actor: str, *, refuse_in_use: bool, but: str = ""
) -> tuple[Unlink, tuple[str, ...]]:
    """The record that takes a link away, and whose uses it cancels. Raises `ProtectedError`, `InUseError`."""
    held = aliases_of(tables, *place_of(link.version))
    why = protection(link.collection, link.version, held, protected_aliases(tables))
    if why:
        raise refusal(link.collection, link.version, why, but)
    runs = users(tables, (link.version,))
    if runs and refuse_in_use:
        raise InUseError(
            f"{link.label} is in use by {', '.join(runs)}{but}",
            runs=runs,
            hint="if_in_use='cancel', or casstore rm --if-in-use cancel",
        )
    return Unlink(collection_name(tables, link.version.collection), link.version.number, actor), runs
