"""Back from the trash: nothing is shown again that is not whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casstore.catalogue import Found, found_at, found_of, in_trash, source_of, way_back
from casstore.engine import Engine
from casstore.errors import IntegrityError, InvalidInputError, ParentDeletedError, TypeConflictError
from casstore.expiry import revived, terms_in_force
from casstore.gc.mark import check_reachable
from casstore.ingest import home
from casstore.model import PutVersion, Record, Restore, VersionState
from casstore.names import CollectionName
from casstore.overlay import Tables
from casstore.state import alias_target
from casstore.view import identifier_of


def check_whole(engine: Engine, roots: Sequence[bytes], label: str, name: CollectionName, number: int | None) -> None:
    """Raise `IntegrityError` unless every node and chunk below the roots has a place."""
    try:
        check_reachable(engine, tuple(dict.fromkeys(roots)))
    except IntegrityError as error:
        raise IntegrityError(
            f"{label} stays in the trash: {error.message}",
            hint="casstore fsck",
            collection=name.short,
            version=None if number is None else f"v{number}",
        ) from None


def restore(engine: Engine, found: Found) -> tuple[Found, tuple[str, ...]]:
    """Bring a version back, with the links that went with it; and the aliases it could not have back.

    Raises `IntegrityError`, and it stays, if it is not whole; `ParentDeletedError` if its collection, or of a link the
    source, is in the trash; `VersionNotFoundError` if it is not in the trash itself.
    """
    check_whole(engine, (found.version.root,), found.label, found.name, found.version.number)
    lost: tuple[str, ...] = ()

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal lost
        version = in_trash(tables, found)
        now = found_of(tables, version)
        _check_parents(tables, now)
        lost = tuple(a for a in version.trash_aliases if alias_target(tables, version.collection, a) is not None)
        back = replace(version, ttl=0 if version.trashed_by == "ttl" else version.ttl)
        actor = engine.runtime.actor
        return (
            Restore(now.collection.name, version.number, version.trash_seq, actor),
            *revived(terms_in_force(tables), now.name, now.collection, back, actor),
        )

    engine.commit(build)
    return found_at(engine, found.version.collection, found.version.number), lost


def _check_parents(tables: Tables, found: Found) -> None:
    collection, version, name = found.collection, found.version, found.name.short
    if collection.state is VersionState.COMMITTED and collection.type != version.type:
        raise TypeConflictError(
            f"{found.label} cannot be restored: {name} was purged, and has type {collection.type!r} by now",
            hint=f"casstore trash restore {found.label} --name NAME, or casstore rm --collection {name}",
        )
    if collection.state is not VersionState.COMMITTED:
        raise ParentDeletedError(
            f"{found.label} cannot be restored: its collection is in the trash", hint=f"casstore trash restore {name}"
        )
    source = source_of(tables, version)
    if source is not None and source.version.state is not VersionState.COMMITTED:
        raise ParentDeletedError(
            f"{found.label} cannot be restored: it is a link, and its source {source.label} is in the trash",
            hint=way_back(source),
        )


def restore_as(engine: Engine, found: Found, target: CollectionName) -> Found:
    """Make a version in the trash the next one of another collection; it stays in the trash itself.

    Labels come along, aliases that are free there, too. Raises as `restore`, `TypeConflictError`, `NameTakenError` and
    `RefusedError` as logging there does, `InvalidInputError` for a link.
    """
    check_whole(engine, (found.version.root,), found.label, found.name, found.version.number)
    made = 0

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal made
        version = in_trash(tables, found)
        source = source_of(tables, version)
        if source is not None:
            raise InvalidInputError(
                f"{found.label} is a link to {source.label}", hint=f"{way_back(source)} --name NAME"
            )
        collection = home(tables, target, version.type)
        made = identifier_of(tables, str(target))
        return (
            PutVersion(
                collection=str(target),
                type=version.type,
                root=version.root,
                size=version.size,
                file_count=version.file_count,
                description=version.description,
                metadata=version.metadata,
                tags=version.tags,
                aliases=tuple(
                    alias
                    for alias in version.trash_aliases
                    if collection is None or alias_target(tables, collection.id, alias) is None
                ),
                move_latest=True,
                base=found_of(tables, version).label,
                ttl=0 if version.trashed_by == "ttl" else version.ttl,
                actor=engine.runtime.actor,
                attrs=version.attrs,
            ),
        )

    done = engine.commit(build)
    assert done is not None
    (number,) = done.numbers
    return found_at(engine, made, number)
