"""Names and labels: find versions by reference, and change what is said about them. No file content."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from casstore import policy
from casstore.config import from_micros
from casstore.digest import Digest
from casstore.engine import Engine
from casstore.errors import (
    CollectionNotFoundError,
    InvalidInputError,
    NameTakenError,
    NotFoundError,
    ProtectedError,
    StaleBaseError,
    VersionNotFoundError,
)
from casstore.expiry import Terms, highest_visible, is_gone, resolve_latest, terms_in_force, terms_now
from casstore.format.rows import decode_row, u64
from casstore.model import (
    AbortParts,
    AliasChange,
    CollectionRow,
    DropAlias,
    PinRow,
    Protect,
    Purge,
    PurgeCollection,
    Record,
    SetAlias,
    Unpin,
    UpdateVersion,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST, CollectionName, Reference, check_aliases, parse_reference
from casstore.overlay import Tables
from casstore.selection import Matcher, Where
from casstore.state import ALIAS, ANY, BY_SOURCE, PIN, alias_target, aliases_of, current_name, head_of
from casstore.values import dataclass
from casstore.view import (
    alias_changes,
    collection_name,
    collection_named,
    collections,
    open_batches,
    parts_of,
    trashed,
    version_at,
    versions,
    with_links,
    with_root,
)

LEASE_OVER = "its lease is over"
"""why a batch is aborted that nobody finished in time"""
SIMILAR = 3
SCANNED_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """A version and the collection it is in."""

    name: CollectionName
    collection: CollectionRow
    version: VersionRow

    @property
    def label(self) -> str:
        """``name:vN``, with as little namespace as it needs."""
        return f"{self.name.short}:v{self.version.number}"


def found_of(tables: Tables, version: VersionRow) -> Found:
    """A version with the collection it is in, in any state."""
    row = collection_of(tables, version)
    return Found(full_name(row), row, version)


def open_collection(tables: Tables, name: CollectionName) -> CollectionRow | None:
    """The collection that something new of this very name goes to: None, or a purged one, if the name is free.

    Raises `NameTakenError` for one in the trash.
    """
    collection = collection_named(tables, str(name))
    if collection is not None and collection.state is VersionState.TRASHED:
        raise NameTakenError(
            f"{name.short} is taken by a collection in the trash",
            hint=f"casstore trash restore {name.short}, or casstore trash purge {name.short}",
        )
    return collection


def found_at(engine: Engine, collection: int, number: int) -> Found:
    """A version that is known to be there, whatever became of it and of the name of its collection since."""
    with engine.view.read() as tables:
        row = version_at(tables, collection, number)
        assert row is not None
        return found_of(tables, row)


def source_of(tables: Tables, version: VersionRow) -> Found | None:
    """What a version is a link to; None if it is none."""
    if not version.is_link:
        return None
    row = version_at(tables, version.source_collection, version.source_number)
    assert row is not None
    return found_of(tables, row)


def labelled(tables: Tables, version: VersionRow) -> VersionRow:
    """A version with its labels: a link has those of its source."""
    source = source_of(tables, version)
    if source is None:
        return version
    said = source.version
    return replace(
        version,
        description=said.description,
        metadata=said.metadata,
        tags=said.tags,
        base=said.base,
        run=said.run,
        attrs=said.attrs,
        updated=max(version.updated, said.updated),
    )


def full_name(row: CollectionRow) -> CollectionName:
    """The name of a collection row."""
    return CollectionName.parse(row.name)


def find_collection(tables: Tables, name: CollectionName, *, hidden: bool = False) -> CollectionRow:
    """A collection, also by a name it had; with ``hidden``, also one that is in the trash or was purged.

    Raises `CollectionNotFoundError`.
    """
    row = collection_named(tables, current_name(tables, str(name)))
    if row is not None and row.state is VersionState.TRASHED and not hidden:
        raise CollectionNotFoundError(
            f"collection {name.short} is in the trash", hint=f"casstore trash restore {name.short}"
        )
    if row is None or (row.state is VersionState.PURGED and not hidden):
        shown = (c for c in collections(tables) if c.state is VersionState.COMMITTED)
        known = [full_name(c).short for c, _ in zip(shown, range(SCANNED_NAMES), strict=False)]
        near = _similar(name.short, known)
        hint = f"did you mean {', '.join(near)}?" if near else "casstore ls"
        raise CollectionNotFoundError(f"there is no collection {name.short!r}", hint=hint)
    return row


def _similar(name: str, known: Sequence[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, known, SIMILAR)


def matcher(tables: Tables, where: Where, now: int) -> Matcher:
    """A predicate at a moment of the safe clock. A name its collection had means that collection."""
    if where.collection is not None:
        where = replace(where, collection=current_name(tables, str(CollectionName.parse(where.collection))))
    return Matcher(where, now)


def shown_collection(tables: Tables, identifier: int) -> CollectionRow:
    """A collection by its id, whatever its name is now. Raises `CollectionNotFoundError` if it is in the trash."""
    return find_collection(tables, CollectionName.parse(collection_name(tables, identifier)))


def find(
    tables: Tables,
    reference: Reference,
    *,
    states: Sequence[VersionState] = (VersionState.COMMITTED,),
    terms: Terms | None = None,
) -> Found:
    """The version a reference means. Raises `CollectionNotFoundError`, `VersionNotFoundError`.

    With ``terms``, as readers see it: a version past its time is not there, and ``latest`` passes over it.
    """
    collection = find_collection(tables, reference.collection, hidden=VersionState.TRASHED in states)
    name = full_name(collection)
    version = _select(tables, collection, reference, states, terms)
    if version is None:
        raise VersionNotFoundError(f"there is no version {reference}", hint=_near(tables, collection, reference, terms))
    if terms is not None and is_gone(tables, terms, collection, version):
        raise _expired(Found(name, collection, version))
    if version.state not in states:
        raise wrong_state(Found(name, collection, version), source_of(tables, version))
    return Found(name, collection, version)


def _select(
    tables: Tables,
    collection: CollectionRow,
    reference: Reference,
    states: Sequence[VersionState],
    terms: Terms | None,
) -> VersionRow | None:
    number = reference.number
    if reference.digest is not None:
        root = Digest.parse(reference.digest).value
        found = [v for v in with_root(tables, collection.id, root) if v.state in states]
        seen = (v for v in found if terms is None or not is_gone(tables, terms, collection, v))
        return next(seen, found[0] if found else None)
    if number is None:
        alias = reference.selector or LATEST
        number = alias_target(tables, collection.id, alias)
        if terms is not None and alias == LATEST:
            number = resolve_latest(tables, terms, collection, number)
    return None if number is None else version_at(tables, collection.id, number)


def _near(tables: Tables, collection: CollectionRow, reference: Reference, terms: Terms | None) -> str:
    name = reference.collection.short
    newest = next(iter(versions(tables, collection.id, newest_first=True, states=(VersionState.COMMITTED,))), None)
    if newest is None:
        return f"every version of {name} is deleted: casstore trash ls"
    if terms is not None and highest_visible(tables, terms, collection) is None:
        return f"every version has expired or is deleted: casstore ttl {name}:v{newest.number} none"
    known = [key[8:].decode() for key, _ in tables.scan(ALIAS, prefix=u64(collection.id))]
    near = _similar(reference.selector or "", known)
    return f"did you mean {', '.join(f'{name}:{alias}' for alias in near)}?" if near else f"casstore ls {name}"


def wrong_state(found: Found, source: Found | None = None) -> VersionNotFoundError:
    """What to raise for a version that is not in the state it is wanted in; ``source``: what it is a link to."""
    if source is not None and found.version.state is not VersionState.COMMITTED:
        return _no_link(found, source)
    if found.version.state is VersionState.TRASHED and found.collection.state is VersionState.TRASHED:
        name = found.name.short
        return VersionNotFoundError(
            f"{found.label} is in the trash, and its collection is, too", hint=f"casstore trash restore {name}"
        )
    if found.version.state is VersionState.TRASHED:
        return VersionNotFoundError(f"{found.label} is in the trash", hint=f"casstore trash restore {found.label}")
    if found.version.state is VersionState.PURGED:
        return VersionNotFoundError(f"{found.label} was purged", hint="it cannot be restored")
    return VersionNotFoundError(f"{found.label} is not in the trash", hint=f"casstore rm {found.label}")


def _no_link(found: Found, source: Found) -> VersionNotFoundError:
    if found.version.state is VersionState.TRASHED and found.collection.state is VersionState.TRASHED:
        hint = f"casstore trash restore {found.name.short}"
        return VersionNotFoundError(f"the link {found.label} is in the trash with its collection", hint=hint)
    if source.version.state is VersionState.TRASHED:
        return VersionNotFoundError(
            f"{found.label} is a link, and its source {source.label} is in the trash", hint=way_back(source)
        )
    if source.version.state is VersionState.PURGED:
        return VersionNotFoundError(
            f"{found.label} was a link, and its source {source.label} was purged", hint="it cannot be restored"
        )
    return VersionNotFoundError(
        f"{found.label} was a link to {source.label}, and was taken away",
        hint=f"casstore link {source.label} {found.name.short} makes another",
    )


def way_back(found: Found) -> str:
    """The command that brings a version back from the trash."""
    hidden = found.collection.state is VersionState.TRASHED
    return f"casstore trash restore {found.name.short if hidden else found.label}"


def _expired(found: Found) -> VersionNotFoundError:
    return VersionNotFoundError(
        f"{found.label} has expired",
        hint=f"casstore ttl {found.label} none brings it back, until a sweep takes it to the trash",
    )


def lookup(
    engine: Engine,
    reference: str,
    *,
    expired: bool = False,
    states: Sequence[VersionState] = (VersionState.COMMITTED,),
) -> Found:
    """The version a reference means, at the head of the log; with ``expired`` also one past its time."""
    parsed = parse_reference(reference)
    engine.view.refresh()
    with engine.view.read() as tables:
        return find(tables, parsed, states=states, terms=None if expired else terms_now(engine, tables))


def is_readable(engine: Engine, found: Found) -> bool:
    """Whether readers see a version, at the position the view has."""
    if found.version.state is not VersionState.COMMITTED:
        return False
    with engine.view.read() as tables:
        return not is_gone(tables, terms_now(engine, tables), collection_of(tables, found.version), found.version)


# --- aliases and labels --------------------------------------------------------------------------


def set_alias(engine: Engine, found: Found, alias: str, *, if_on: str | None, actor: str) -> None:
    """Point an alias at a version. ``if_on``: the version it must be on now (``vN``), or ``""`` for absent.

    Raises `StaleBaseError` when it is elsewhere, `VersionNotFoundError` when the version is gone.
    """
    expect = ANY if if_on is None else _expected(if_on)

    def build(tables: Tables) -> Sequence[Record]:
        live = still_there(tables, found)
        current = alias_target(tables, live.collection.id, alias)
        if expect not in {ANY, -1 if current is None else current}:
            where = "absent" if current is None else f"on v{current}"
            raise StaleBaseError(f"alias {alias!r} is {where}, not on {if_on}", hint="look again and retry")
        if current == live.version.number:
            return ()
        held = aliases_of(tables, live.collection.id, live.version.number)
        check_aliases({*held, alias} - {LATEST})
        return (SetAlias(live.collection.name, alias, found.version.number, expect, actor),)

    engine.commit(build)


def _expected(if_on: str) -> int:
    if if_on == "":
        return -1
    number = Reference(CollectionName("x", "x", "x"), if_on).number if isinstance(if_on, str) else None
    if number is None:
        raise InvalidInputError(f"if_on={if_on!r} is not a version", hint="vN, or '' for absent")
    return number


def drop_alias(engine: Engine, found: Found, alias: str, *, missing_ok: bool, actor: str) -> None:
    """Take an alias off a version. Raises `NotFoundError` if it is not on it, unless ``missing_ok``."""

    def build(tables: Tables) -> Sequence[Record]:
        live = still_there(tables, found)
        if alias_target(tables, live.collection.id, alias) != live.version.number:
            if missing_ok:
                return ()
            raise NotFoundError(f"{found.label} has no alias {alias!r}", hint=f"casstore show {found.label}")
        return (DropAlias(live.collection.name, alias, found.version.number, actor),)

    engine.commit(build)


def replace_aliases(engine: Engine, found: Found, aliases: Sequence[str], actor: str) -> None:
    """Make these the aliases of a version, ``latest`` aside, in one step."""

    def build(tables: Tables) -> Sequence[Record]:
        live = still_there(tables, found)
        held = aliases_of(tables, live.collection.id, live.version.number)
        gone = [a for a in held if a not in aliases and a != LATEST]
        new = [a for a in aliases if a not in held]
        name, number = live.collection.name, found.version.number
        return (
            *(DropAlias(name, alias, number, actor) for alias in gone),
            *(SetAlias(name, alias, number, actor=actor) for alias in new),
        )

    engine.commit(build)


def update_labels(
    engine: Engine,
    found: Found,
    *,
    description: str | None,
    metadata: Callable[[bytes], bytes] | None,
    tags: Sequence[str] | None,
) -> None:
    """Change the labels of a version; ``metadata`` maps the stored JSON to the new one, at commit."""

    def build(tables: Tables) -> Sequence[Record]:
        live = still_there(tables, found)
        return (
            UpdateVersion(
                live.collection.name,
                found.version.number,
                description,
                None if metadata is None else metadata(labelled(tables, live.version).metadata),
                None if tags is None else tuple(tags),
            ),
        )

    engine.commit(build)


def still_there(tables: Tables, found: Found) -> Found:
    """A version as it is on a state, for readers. Raises `VersionNotFoundError`."""
    version = version_at(tables, found.collection.id, found.version.number)
    assert version is not None
    collection = collection_of(tables, version)
    now = Found(full_name(collection), collection, version)
    if version.state is not VersionState.COMMITTED:
        raise wrong_state(now, source_of(tables, version))
    if is_gone(tables, terms_in_force(tables), collection, version):
        raise _expired(now)
    return now


def history(engine: Engine, name: CollectionName, alias: str | None) -> list[AliasChange]:
    """How the aliases of a collection moved, oldest first."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return list(alias_changes(tables, find_collection(tables, name).id, alias))


# --- trash ---------------------------------------------------------------------------------------


def place_of(version: VersionRow) -> tuple[int, int]:
    """Collection and number of a version: its key."""
    return version.collection, version.number


def collection_of(tables: Tables, version: VersionRow) -> CollectionRow:
    """The collection a version is in, in any state."""
    row = collection_named(tables, collection_name(tables, version.collection))
    assert row is not None
    return row


def protected_aliases(tables: Tables) -> frozenset[str]:
    """Aliases that protect the version they are on, by the store's policy."""
    return frozenset(policy.in_force(tables).protected_aliases)


def protection(
    collection: CollectionRow, version: VersionRow, held: Sequence[str], by_alias: frozenset[str] = frozenset()
) -> str:
    """Why a version may not be deleted, to follow its name in a sentence; empty if it may.

    ``held``: its aliases; ``by_alias``: see `protected_aliases`.
    """
    if version.protected:
        return f"is protected: {version.protected}"
    if collection.protected:
        return f"is in a protected collection: {collection.protected}"
    guards = sorted(by_alias.intersection(held))
    return f"has the protected alias {', '.join(guards)}" if guards else ""


def refusal(collection: CollectionRow, version: VersionRow, why: str, but: str = "") -> ProtectedError:
    """What to raise for a version that `protection` keeps; the hint lifts just that. ``but``: ends the message."""
    name = full_name(collection).short
    label = f"{name}:v{version.number}"
    if version.protected:
        hint = f"casstore unprotect {label}"
    elif collection.protected:
        hint = f"casstore unprotect {name}"
    else:
        hint = f"casstore alias rm {label}, or casstore policy set --protected-aliases"
    return ProtectedError(f"{label} {why}{but}", hint=hint)


def protect(engine: Engine, found: Found, reason: str, actor: str) -> None:
    """Protect a version from deletion; reason "" lifts that. Raises `VersionNotFoundError`."""

    def build(tables: Tables) -> Sequence[Record]:
        live = still_there(tables, found)
        if live.version.protected == reason:
            return ()
        return (Protect(live.collection.name, live.version.number, reason, actor),)

    engine.commit(build)


def protect_collection(engine: Engine, identifier: int, reason: str, actor: str) -> None:
    """Protect a collection from deletion; reason "" lifts that. Raises `CollectionNotFoundError`."""

    def build(tables: Tables) -> Sequence[Record]:
        collection = shown_collection(tables, identifier)
        return () if collection.protected == reason else (Protect(collection.name, -1, reason, actor),)

    engine.commit(build)


def purge(engine: Engine, found: Found, actor: str) -> None:
    """Drop a trashed version for good, whatever its date."""

    def build(tables: Tables) -> Sequence[Record]:
        return purges(tables, [in_trash(tables, found)], actor, force=True)

    engine.commit(build)


def purges(tables: Tables, rows: Sequence[VersionRow], actor: str, *, force: bool) -> list[Purge]:
    """The records that purge some trashed versions. A link goes with its source: it has no record beside that's."""
    going = {place_of(row) for row in rows}
    return [
        Purge(collection_name(tables, row.collection), row.number, row.trash_seq, force=force, actor=actor)
        for row in rows
        if (row.source_collection, row.source_number) not in going
    ]


def in_trash(tables: Tables, found: Found) -> VersionRow:
    """A version as it is in the trash. Raises `VersionNotFoundError` if it is not there."""
    version = version_at(tables, found.collection.id, found.version.number)
    assert version is not None
    if version.state is not VersionState.TRASHED:
        now = found_of(tables, version)
        raise wrong_state(now, source_of(tables, version))
    return version


@dataclass(frozen=True, slots=True)
class Due:
    """What time has come for: records, and the labels of the versions they purge and the batches they abort."""

    records: tuple[Record, ...]
    versions: tuple[str, ...]
    batches: tuple[str, ...]


def due(tables: Tables, actor: str) -> Due:
    """Trashed versions and collections whose date has come by the ratchet clock; batches and pins that expired."""
    safe = head_of(tables).safe
    rows = list(trashed(tables))
    # A link goes with its source, whose date is the same.
    chosen = [row for row in rows if row.purge_at <= safe and row.trashed_by != BY_SOURCE]
    going = {place_of(row) for row in with_links(tables, chosen)}
    waiting = {row.collection for row in rows if place_of(row) not in going}
    records: list[Record] = [*purges(tables, chosen, actor, force=False)]
    labels = [found_of(tables, row).label for row in chosen]
    for row in collections(tables):
        # A version that was trashed before it, for longer, keeps the name of its collection.
        if row.state is VersionState.TRASHED and row.purge_at <= safe and row.id not in waiting:
            records.append(PurgeCollection(row.name, row.trash_seq, force=False, actor=actor))
            labels.append(full_name(row).short)
    parts: set[bytes] = set()
    aborted: list[str] = []
    for batch in sorted(open_batches(tables), key=lambda row: (row.name, row.batch)):
        # A batch ends as a whole, when the last of its pins may: each of them may have been renewed by itself.
        keys = {part.pin for part in parts_of(tables, batch)}
        parts |= keys
        pins = (tables.get(PIN, key) for key in keys)
        ends = [decode_row(pin, PinRow).expires for pin in pins if pin is not None]
        if max([batch.expires, *ends]) <= safe:
            records.append(AbortParts(batch.name, batch.batch, LEASE_OVER, actor))
            aborted.append(f"{CollectionName.parse(batch.name).short} {batch.batch}")
    for key, held in tables.scan(PIN):
        if key not in parts and decode_row(held, PinRow).expires <= safe:
            records.append(Unpin(key))
    return Due(tuple(records), tuple(labels), tuple(aborted))


def wall_time(engine: Engine, moment: int) -> datetime:
    """A moment of the ratchet clock, as the clocks of the writers show it."""
    with engine.view.read() as tables:
        return wall_at(tables, moment)


def wall_at(tables: Tables, moment: int) -> datetime:
    """`wall_time` at a position of the log."""
    head = head_of(tables)
    return from_micros(moment + head.highest - head.safe)
