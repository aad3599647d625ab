"""Names and labels: find versions by reference, and change what is said about them. No file content."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from casstore.config import from_micros
from casstore.digest import Digest
from casstore.engine import Engine
from casstore.errors import (
    AliasGuardError,
    CollectionNotFoundError,
    InvalidInputError,
    NotFoundError,
    StaleBaseError,
    VersionNotFoundError,
)
from casstore.format.rows import decode_row, u64
from casstore.model import (
    AliasChange,
    CollectionRow,
    DropAlias,
    PinRow,
    Purge,
    Record,
    Restore,
    SetAlias,
    SetPolicy,
    Trash,
    Unpin,
    UpdateVersion,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST, CollectionName, Reference, check_aliases, parse_reference
from casstore.overlay import Tables
from casstore.state import ALIAS, ANY, PIN, alias_target, aliases_of, head_of
from casstore.view import (
    alias_changes,
    collection_name,
    collection_named,
    collections,
    trashed,
    version_at,
    versions,
    with_root,
)

DAY = 86_400_000_000
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


def full_name(row: CollectionRow) -> CollectionName:
    """The name of a collection row."""
    return CollectionName.parse(row.name)


def find_collection(tables: Tables, name: CollectionName) -> CollectionRow:
    """A collection. Raises `CollectionNotFoundError` with names that are near."""
    row = collection_named(tables, str(name))
    if row is None:
        known = [full_name(c).short for c, _ in zip(collections(tables), range(SCANNED_NAMES), strict=False)]
        near = difflib.get_close_matches(name.short, known, SIMILAR)
        hint = f"did you mean {', '.join(near)}?" if near else "casstore ls"
        raise CollectionNotFoundError(f"there is no collection {name.short!r}", hint=hint)
    return row


def find(tables: Tables, reference: Reference, *, states: Sequence[VersionState] = (VersionState.COMMITTED,)) -> Found:
    """The version a reference means. Raises `CollectionNotFoundError`, `VersionNotFoundError`."""
    name = reference.collection
    collection = find_collection(tables, name)
    version = _select(tables, collection, reference, states)
    if version is None:
        raise VersionNotFoundError(f"there is no version {reference}", hint=_near(tables, collection, reference))
    if version.state not in states:
        raise _wrong_state(Found(name, collection, version))
    return Found(name, collection, version)


def _select(
    tables: Tables, collection: CollectionRow, reference: Reference, states: Sequence[VersionState]
) -> VersionRow | None:
    number = reference.number
    if reference.digest is not None:
        root = Digest.parse(reference.digest).value
        return next((v for v in with_root(tables, collection.id, root) if v.state in states), None)
    if number is None:
        number = alias_target(tables, collection.id, reference.selector or LATEST)
    return None if number is None else version_at(tables, collection.id, number)


def _near(tables: Tables, collection: CollectionRow, reference: Reference) -> str:
    name = reference.collection.short
    newest = next(iter(versions(tables, collection.id, newest_first=True, states=(VersionState.COMMITTED,))), None)
    if newest is None:
        return f"every version of {name} is deleted: casstore trash ls"
    known = [key[8:].decode() for key, _ in tables.scan(ALIAS, prefix=u64(collection.id))]
    near = difflib.get_close_matches(reference.selector or "", known, SIMILAR)
    return f"did you mean {', '.join(f'{name}:{alias}' for alias in near)}?" if near else f"casstore ls {name}"


def _wrong_state(found: Found) -> VersionNotFoundError:
    if found.version.state is VersionState.TRASHED:
        return VersionNotFoundError(f"{found.label} is in the trash", hint=f"casstore trash restore {found.label}")
    if found.version.state is VersionState.PURGED:
        return VersionNotFoundError(f"{found.label} was purged", hint="it cannot be restored")
    return VersionNotFoundError(f"{found.label} is not in the trash", hint=f"casstore rm {found.label}")


def lookup(engine: Engine, reference: str) -> Found:
    """The committed version a reference means, at the head of the log."""
    parsed = parse_reference(reference)
    engine.view.refresh()
    with engine.view.read() as tables:
        return find(tables, parsed)


# --- aliases and labels --------------------------------------------------------------------------


def set_alias(engine: Engine, found: Found, alias: str, *, if_on: str | None, actor: str) -> None:
    """Point an alias at a version. ``if_on``: the version it must be on now (``vN``), or ``""`` for absent.

    Raises `StaleBaseError` when it is elsewhere, `VersionNotFoundError` when the version is gone.
    """
    expect = ANY if if_on is None else _expected(if_on)

    def build(tables: Tables) -> Sequence[Record]:
        live = _still(tables, found)
        current = alias_target(tables, live.collection.id, alias)
        if expect not in {ANY, -1 if current is None else current}:
            where = "absent" if current is None else f"on v{current}"
            raise StaleBaseError(f"alias {alias!r} is {where}, not on {if_on}", hint="look again and retry")
        if current == live.version.number:
            return ()
        held = aliases_of(tables, live.collection.id, live.version.number)
        check_aliases({*held, alias} - {LATEST})
        return (SetAlias(str(found.name), alias, found.version.number, expect, actor),)

    engine.commit(build)


def _expected(if_on: str) -> int:
    if if_on == "":
        return -1
    number = Reference(CollectionName("x", "x", "x"), if_on).number
    if number is None:
        raise InvalidInputError(f"if_on={if_on!r} is not a version", hint="vN, or '' for absent")
    return number


def drop_alias(engine: Engine, found: Found, alias: str, *, missing_ok: bool, actor: str) -> None:
    """Take an alias off a version. Raises `NotFoundError` if it is not on it, unless ``missing_ok``."""

    def build(tables: Tables) -> Sequence[Record]:
        live = _still(tables, found)
        if alias_target(tables, live.collection.id, alias) != live.version.number:
            if missing_ok:
                return ()
            raise NotFoundError(f"{found.label} has no alias {alias!r}", hint=f"casstore show {found.label}")
        return (DropAlias(str(found.name), alias, found.version.number, actor),)

    engine.commit(build)


def replace_aliases(engine: Engine, found: Found, aliases: Sequence[str], actor: str) -> None:
    """Make these the aliases of a version, ``latest`` aside, in one step."""

    def build(tables: Tables) -> Sequence[Record]:
        live = _still(tables, found)
        held = aliases_of(tables, live.collection.id, live.version.number)
        gone = [a for a in held if a not in aliases and a != LATEST]
        new = [a for a in aliases if a not in held]
        name, number = str(found.name), found.version.number
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
        live = _still(tables, found)
        return (
            UpdateVersion(
                str(found.name),
                found.version.number,
                description,
                None if metadata is None else metadata(live.version.metadata),
                None if tags is None else tuple(tags),
            ),
        )

    engine.commit(build)


def _still(tables: Tables, found: Found) -> Found:
    version = version_at(tables, found.collection.id, found.version.number)
    assert version is not None
    if version.state is not VersionState.COMMITTED:
        raise _wrong_state(Found(found.name, found.collection, version))
    return Found(found.name, found.collection, version)


def history(engine: Engine, name: CollectionName, alias: str | None) -> list[AliasChange]:
    """How the aliases of a collection moved, oldest first."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return list(alias_changes(tables, find_collection(tables, name).id, alias))


# --- trash ---------------------------------------------------------------------------------------


def move_to_trash(
    engine: Engine, found: Found, *, delete_aliases: bool, trash_days: float, reason: str, actor: str
) -> bool:
    """Trash a version; False if it is in the trash already. Raises `AliasGuardError`, `VersionNotFoundError`."""
    already = False

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal already
        version = version_at(tables, found.collection.id, found.version.number)
        assert version is not None
        already = version.state is VersionState.TRASHED
        if already:
            return ()
        if version.state is VersionState.PURGED:
            raise _wrong_state(Found(found.name, found.collection, version))
        aliases = tuple(a for a in aliases_of(tables, version.collection, version.number) if a != LATEST)
        if aliases and not delete_aliases:
            raise AliasGuardError(
                f"{found.label} has the aliases {', '.join(aliases)}",
                aliases=aliases,
                hint="delete_aliases=True, or casstore rm --delete-aliases",
            )
        purge_at = head_of(tables).safe + int(trash_days * DAY)
        return (Trash(str(found.name), version.number, purge_at, aliases, reason, actor),)

    engine.commit(build)
    return not already


def restore(engine: Engine, found: Found, actor: str) -> tuple[str, ...]:
    """Bring a version back from the trash; returns the aliases it could not have back."""
    lost: tuple[str, ...] = ()

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal lost
        version = _in_trash(tables, found)
        lost = tuple(a for a in version.trash_aliases if alias_target(tables, version.collection, a) is not None)
        return (Restore(str(found.name), version.number, version.trash_seq, actor),)

    engine.commit(build)
    return lost


def purge(engine: Engine, found: Found, actor: str) -> None:
    """Drop a trashed version for good, whatever its date."""

    def build(tables: Tables) -> Sequence[Record]:
        version = _in_trash(tables, found)
        return (Purge(str(found.name), version.number, version.trash_seq, force=True, actor=actor),)

    engine.commit(build)


def _in_trash(tables: Tables, found: Found) -> VersionRow:
    version = version_at(tables, found.collection.id, found.version.number)
    assert version is not None
    if version.state is not VersionState.TRASHED:
        raise _wrong_state(Found(found.name, found.collection, version))
    return version


@dataclass(frozen=True, slots=True)
class Due:
    """What time has come for: records, and the labels of the versions they purge."""

    records: tuple[Record, ...]
    versions: tuple[str, ...]


def due(tables: Tables, actor: str) -> Due:
    """Trashed versions whose date has come by the ratchet clock, and pins that expired."""
    safe = head_of(tables).safe
    records: list[Record] = []
    labels: list[str] = []
    for version in trashed(tables):
        if version.purge_at <= safe:
            name = CollectionName.parse(collection_name(tables, version.collection))
            records.append(Purge(str(name), version.number, version.trash_seq, force=False, actor=actor))
            labels.append(f"{name.short}:v{version.number}")
    for key, row in tables.scan(PIN):
        if decode_row(row, PinRow).expires <= safe:
            records.append(Unpin(key))
    return Due(tuple(records), tuple(labels))


def wall_time(engine: Engine, moment: int) -> datetime:
    """A moment of the ratchet clock, as the clocks of the writers show it."""
    head = engine.view.head()
    return from_micros(moment + head.highest - head.safe)


def set_policy(engine: Engine, values: bytes, actor: str) -> None:
    """Record policy values."""
    engine.commit(lambda _: (SetPolicy(values, actor),))
