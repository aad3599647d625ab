"""Many versions, or a whole collection, to the trash and out of it: one plan, one commit.

What a plan says is what its execution does: both come from the same look at the head of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from casstore import catalogue, expiry
from casstore.catalogue import Found, full_name, protection, refusal
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import (
    AliasGuardError,
    ConfirmationRequired,
    InvalidInputError,
    ProtectedError,
    RefusedError,
    StaleBaseError,
)
from casstore.gc.plan import footprint_of, garbage
from casstore.model import (
    CollectionRow,
    Purge,
    PurgeCollection,
    Record,
    RestoreCollection,
    Trash,
    TrashCollection,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST, CollectionName, parse_reference
from casstore.overlay import Tables
from casstore.policy import purge_time
from casstore.selection import Matcher, Where
from casstore.state import BY_COLLECTION, head_of
from casstore.view import aliases, collection_named, collections, version_at, versions

SHOWN = 5
"""names in a message"""


@dataclass(frozen=True, slots=True)
class BulkDeletion:
    """What a deletion of many versions did, or would do.

    ``skipped``: versions that were meant but stay, and why. ``exclusive_bytes``: stored bytes that only the versions in
    ``refs`` together keep: purge and collection free them; ``exclusive_plain_bytes``: the same before compression.
    """

    refs: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    exclusive_bytes: int
    exclusive_plain_bytes: int
    trashed_at: datetime
    purge_at: datetime

    def to_dict(self) -> dict[str, object]:
        """The deletion as JSON values."""
        return {
            "refs": list(self.refs),
            "skipped": [{"ref": ref, "why": why} for ref, why in self.skipped],
            "exclusive_bytes": self.exclusive_bytes,
            "exclusive_plain_bytes": self.exclusive_plain_bytes,
            "trashed_at": self.trashed_at.isoformat(),
            "purge_at": self.purge_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class CollectionDeletion:
    """What trashing a collection did, or would do. ``versions``: how many went with it."""

    ref: str
    versions: int
    trashed_at: datetime
    purge_at: datetime
    exclusive_bytes: int
    """stored bytes that only these versions keep: purge and collection free them"""
    shared_bytes: int
    already_in_trash: bool = False

    def to_dict(self) -> dict[str, object]:
        """The deletion as JSON values."""
        return {**asdict(self), "trashed_at": self.trashed_at.isoformat(), "purge_at": self.purge_at.isoformat()}


# --- many versions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """Which versions are to go: those of a predicate, or some named ones, by collection and number."""

    where: Where | None
    named: tuple[tuple[CollectionName, int], ...]
    collection: CollectionName | None
    delete_aliases: bool
    reason: str
    actor: str
    now: int | None = None
    """of the safe clock, from which ages are counted; None: the time of the commit"""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What a request means on one state."""

    records: tuple[Trash, ...]
    roots: tuple[bytes, ...]
    refs: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    at: int
    purge_at: int


class Plan:
    """A deletion that can be carried out as it is, or not at all."""

    def __init__(self, engine: Engine, request: Request, chosen: _Chosen, foreseen: BulkDeletion) -> None:
        self._engine = engine
        self._request = request
        self._chosen = chosen
        self._foreseen = foreseen

    def __repr__(self) -> str:
        return f"<Plan: {len(self.refs)} to the trash, {len(self.skipped)} skipped>"

    @property
    def refs(self) -> tuple[str, ...]:
        """The versions that would go."""
        return self._foreseen.refs

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """The versions that were meant but stay, and why."""
        return self._foreseen.skipped

    @property
    def exclusive_bytes(self) -> int:
        """Stored bytes that only these versions keep."""
        return self._foreseen.exclusive_bytes

    @property
    def foreseen(self) -> BulkDeletion:
        """What `apply` would return now."""
        return self._foreseen

    def to_dict(self) -> dict[str, object]:
        """The plan as JSON values."""
        return self._foreseen.to_dict()

    def apply(self) -> BulkDeletion:
        """Carry it out, in one commit. Raises `StaleBaseError` if it would be another plan by now; see `plan`."""
        return _carry_out(self._engine, self._request, self._chosen)


def request_for(
    engine: Engine,
    where: Where | None,
    refs: Sequence[str],
    *,
    collection: str | None,
    delete_aliases: bool,
    reason: str,
) -> Request:
    """A checked request. References are resolved now. Raises `InvalidInputError`, `VersionNotFoundError`."""
    if (where is None) == (not refs):
        raise InvalidInputError("say which versions, by references or by a predicate", hint="Where(unaliased=True)")
    if where is not None and not isinstance(where, Where):
        raise InvalidInputError(f"where={where!r} is not a Where", hint="Where(unaliased=True)")
    name = None if collection is None else CollectionName.parse(collection)
    if name is not None and where is None:
        raise InvalidInputError("collection goes with a predicate", hint="where=Where(...)")
    engine.view.refresh()
    named: dict[tuple[CollectionName, int], None] = {}
    with engine.view.read() as tables:
        if name is not None:
            catalogue.find_collection(tables, name)
        for ref in refs:
            states = (VersionState.COMMITTED, VersionState.TRASHED)
            found = catalogue.find(tables, parse_reference(ref), states=states)
            named[found.name, found.version.number] = None
    return Request(where, tuple(named), name, delete_aliases, reason, engine.runtime.actor)


def plan(engine: Engine, request: Request) -> Plan:
    """What a request would do at the head of the log. Changes nothing.

    Raises what `delete` raises.
    """
    with engine.foresee(lambda _: ()) as tables:
        chosen = _choose(tables, request)
        # However long the plan lies around: versions do not become old enough for it meanwhile.
        fixed = replace(request, now=chosen.at)
        foreseen = _outcome(tables, chosen, engine.runtime.now())
    return Plan(engine, fixed, chosen, foreseen)


def delete(engine: Engine, request: Request) -> BulkDeletion:
    """Move versions to the trash, all in one commit.

    Those of a predicate that are protected, or have aliases without ``delete_aliases``, are skipped and said; named
    ones raise `ProtectedError`, `AliasGuardError`.
    """
    return _carry_out(engine, request, None)


def _carry_out(engine: Engine, request: Request, planned: _Chosen | None) -> BulkDeletion:
    chosen: _Chosen | None = None

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal chosen
        chosen = _choose(tables, request)
        if planned is not None:
            _check_same(planned, chosen)
        return chosen.records

    engine.commit(build)
    assert chosen is not None
    with engine.view.read() as tables:
        row = _row_of(tables, chosen.records[0]) if chosen.records else None
        # Nothing was to be done, or somebody has restored it already.
        return _outcome(tables, chosen, engine.runtime.now() if row is None or not row.trashed else row.trashed)


def _check_same(planned: _Chosen, chosen: _Chosen) -> None:
    before, now = (dict.fromkeys((*c.refs, *(f"{ref} ({why})" for ref, why in c.skipped))) for c in (planned, chosen))
    if before == now:
        return
    moved = [ref for ref in (*before, *now) if (ref in before) != (ref in now)]
    shown = ", ".join(moved[:SHOWN]) + (", …" if len(moved) > SHOWN else "")
    raise StaleBaseError(f"the store has changed since the plan was made: {shown}", hint="make the plan again")


def _outcome(tables: Tables, chosen: _Chosen, at: int) -> BulkDeletion:
    freed = garbage(tables, chosen.roots)
    return BulkDeletion(
        chosen.refs,
        chosen.skipped,
        freed.stored,
        freed.raw,
        from_micros(at),
        catalogue.wall_at(tables, chosen.purge_at),
    )


def _row_of(tables: Tables, record: Trash) -> VersionRow | None:
    collection = collection_named(tables, record.collection)
    return None if collection is None else version_at(tables, collection.id, record.number)


def _choose(tables: Tables, request: Request) -> _Chosen:
    """The records of a request, in ascending order of versions: the state looks for ``latest`` only once then."""
    safe = head_of(tables).safe
    purge_at = purge_time(tables)
    by_alias = catalogue.protected_aliases(tables)
    records: list[Trash] = []
    roots: list[bytes] = []
    refs: list[str] = []
    skipped: list[tuple[str, str]] = []
    if request.where is None:
        meant = _named(tables, request)
    else:
        meant = _matching(tables, request, Matcher(request.where, safe if request.now is None else request.now))
    for collection, members in meant:
        name = full_name(collection)
        for version, held in members:
            label = f"{name.short}:v{version.number}"
            if version.state is not VersionState.COMMITTED:
                skipped.append((label, "is in the trash already"))
                continue
            named = tuple(alias for alias in held if alias != LATEST)
            why = protection(collection, version, held, by_alias)
            if why and request.where is None:
                raise refusal(collection, version, why, "; nothing was changed")
            if not why and named and not request.delete_aliases:
                why = f"has the aliases {', '.join(named)}"
                if request.where is None:
                    raise AliasGuardError(
                        f"{label} {why}; nothing was changed",
                        aliases=named,
                        hint="delete_aliases=True, or casstore rm --delete-aliases",
                    )
            if why:
                skipped.append((label, why))
                continue
            records.append(Trash(collection.name, version.number, purge_at, named, request.reason, request.actor))
            roots.append(version.root)
            refs.append(label)
    return _Chosen(tuple(records), tuple(roots), tuple(refs), tuple(skipped), safe, purge_at)


_Members = list[tuple[CollectionRow, list[tuple[VersionRow, Sequence[str]]]]]


def _matching(tables: Tables, request: Request, matcher: Matcher) -> _Members:
    if request.collection is not None:
        meant = [catalogue.find_collection(tables, request.collection)]
    else:
        meant = [row for row in collections(tables) if row.state is VersionState.COMMITTED]
    found: _Members = []
    for collection in meant:
        if not matcher.takes(collection):
            continue
        held = aliases_by_number(tables, collection.id)
        members: list[tuple[VersionRow, Sequence[str]]] = [
            (version, held.get(version.number, ()))
            for version in versions(tables, collection.id, states=(VersionState.COMMITTED,))
            if matcher.row(version) and matcher.aliases(held.get(version.number, ()))
        ]
        found.append((collection, members))
    return found


def _named(tables: Tables, request: Request) -> _Members:
    by_name: dict[CollectionName, list[int]] = {}
    for name, number in request.named:
        by_name.setdefault(name, []).append(number)
    found: _Members = []
    for name in sorted(by_name, key=str):
        collection = catalogue.find_collection(tables, name, hidden=True)
        held = aliases_by_number(tables, collection.id)
        members: list[tuple[VersionRow, Sequence[str]]] = []
        for number in sorted(by_name[name]):
            version = version_at(tables, collection.id, number)
            assert version is not None
            if version.state is VersionState.PURGED:
                raise catalogue.wrong_state(Found(name, collection, version))
            members.append((version, held.get(number, ())))
        found.append((collection, members))
    return found


def aliases_by_number(tables: Tables, collection: int) -> dict[int, tuple[str, ...]]:
    """The aliases of each version of a collection that has some, ``latest`` included."""
    found: dict[int, list[str]] = {}
    for alias, number in aliases(tables, collection).items():
        found.setdefault(number, []).append(alias)
    return {number: tuple(held) for number, held in found.items()}


# --- a collection --------------------------------------------------------------------------------


def delete_collection(
    engine: Engine,
    name: CollectionName,
    *,
    delete_aliases: bool,
    reason: str,
    confirm: str | None,
    dry_run: bool,
) -> CollectionDeletion:
    """Move a collection with all its versions to the trash, as one unit.

    ``confirm``: its name, which also allows for aliases. Raises `ProtectedError` if it or any version is protected,
    `AliasGuardError`, `ConfirmationRequired` for another name, `CollectionNotFoundError`.
    """
    if confirm is not None and confirm not in {name.short, str(name)}:
        raise ConfirmationRequired(f"{confirm!r} is not {name.short!r}; nothing was changed", hint=f"confirm={name}")
    already = False

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal already
        row = catalogue.find_collection(tables, name, hidden=True)
        already = row.state is VersionState.TRASHED
        if already:
            return ()
        catalogue.find_collection(tables, name)
        _check_collection(tables, row, free=delete_aliases or confirm is not None)
        return (TrashCollection(str(name), purge_time(tables), reason, engine.runtime.actor),)

    if dry_run:
        with engine.foresee(build) as tables:
            return _collection_outcome(tables, name, already=already)
    engine.commit(build)
    with engine.view.read() as tables:
        return _collection_outcome(tables, name, already=already)


def _check_collection(tables: Tables, row: CollectionRow, *, free: bool) -> None:
    name = full_name(row).short
    held = aliases_by_number(tables, row.id)
    by_alias = catalogue.protected_aliases(tables)
    if row.protected:
        raise ProtectedError(f"{name} is protected: {row.protected}", hint=f"casstore unprotect {name}")
    for version in versions(tables, row.id, states=(VersionState.COMMITTED,)):
        why = protection(row, version, held.get(version.number, ()), by_alias)
        if why:
            raise refusal(row, version, why, f", so {name} stays")
    guards = sorted({alias for some in held.values() for alias in some} - {LATEST})
    if guards and not free:
        shown = ", ".join(guards[:SHOWN]) + (", …" if len(guards) > SHOWN else "")
        raise AliasGuardError(
            f"versions of {name} have the aliases {shown}",
            aliases=guards,
            hint=f"delete_aliases=True or confirm={name!r}, or casstore rm --collection {name} --confirm {name}",
        )


def _collection_outcome(tables: Tables, name: CollectionName, *, already: bool) -> CollectionDeletion:
    row = collection_named(tables, str(name))
    assert row is not None
    roots = [version.root for version in unit(tables, row)]
    exclusive = garbage(tables, roots).stored
    total = sum(footprint_of(tables, root) for root in dict.fromkeys(roots))
    return CollectionDeletion(
        name.short,
        len(roots),
        from_micros(row.trashed),
        catalogue.wall_at(tables, row.purge_at),
        exclusive,
        max(0, total - exclusive),
        already_in_trash=already,
    )


def unit(tables: Tables, row: CollectionRow) -> list[VersionRow]:
    """The versions that were trashed with a collection and would come back with it."""
    return [
        version
        for version in versions(tables, row.id, states=(VersionState.TRASHED,))
        if version.trashed_by == BY_COLLECTION and version.trash_seq == row.trash_seq and version.type == row.type
    ]


def trashed_collection(tables: Tables, name: CollectionName) -> CollectionRow:
    """A collection that is in the trash. Raises `RefusedError`, `CollectionNotFoundError`."""
    row = catalogue.find_collection(tables, name, hidden=True)
    if row.state is VersionState.PURGED:
        catalogue.find_collection(tables, name)
    if row.state is not VersionState.TRASHED:
        raise RefusedError(f"collection {name.short} is not in the trash", hint="casstore trash ls")
    return row


def restore_collection(engine: Engine, name: CollectionName) -> None:
    """Bring a collection back, with what was trashed with it. The caller has checked that it is whole.

    Versions that are past their time to live have none any more, lest they go again at once.
    """

    def build(tables: Tables) -> Sequence[Record]:
        row = trashed_collection(tables, name)
        terms = expiry.terms_in_force(tables)
        actor = engine.runtime.actor
        return (
            RestoreCollection(str(name), row.trash_seq, actor),
            *(record for v in unit(tables, row) for record in expiry.revived(terms, name, row, v, actor)),
        )

    engine.commit(build)


def purge_records(tables: Tables, row: CollectionRow, actor: str) -> list[Record]:
    """What purges a trashed collection: each version of it that is in the trash, then itself."""
    return [
        *(
            Purge(row.name, version.number, version.trash_seq, force=True, actor=actor)
            for version in versions(tables, row.id, states=(VersionState.TRASHED,))
        ),
        PurgeCollection(row.name, row.trash_seq, force=True, actor=actor),
    ]


def purge_collection(engine: Engine, name: CollectionName) -> None:
    """Drop a trashed collection for good, with all versions in the trash, in one commit; its name is free then."""
    engine.commit(lambda tables: purge_records(tables, trashed_collection(tables, name), engine.runtime.actor))
