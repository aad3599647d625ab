"""Many versions, or a whole collection, to the trash and out of it: one plan, one commit.

What a plan says is what its execution does: both come from the same look at the head of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime

from casstore import catalogue, expiry
from casstore.catalogue import Found, full_name, place_of, protection, refusal
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
from casstore.gc.plan import Garbage, footprint_of, garbage
from casstore.linking import unlink_record
from casstore.model import (
    KEPT,
    CollectionRow,
    Purge,
    PurgeCollection,
    Record,
    RestoreCollection,
    Trash,
    TrashCollection,
    Unlink,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST, CollectionName, parse_reference
from casstore.overlay import Tables
from casstore.policy import purge_time
from casstore.selection import Matcher, Where
from casstore.state import BY_COLLECTION, head_of
from casstore.trashing import Allowed, obstacle, trash_record, users
from casstore.values import dataclass
from casstore.view import (
    aliases,
    collection_name,
    collection_named,
    collections,
    links_of,
    version_at,
    versions,
    with_links,
)

SHOWN = 5
"""names in a message"""


@dataclass(frozen=True, slots=True)
class BulkDeletion:
    """What a deletion of many versions did, or would do.

    ``skipped``: versions that were meant but stay, and why. ``exclusive_bytes``: stored bytes that only the versions in
    ``refs`` together keep: purge and collection free them; ``exclusive_plain_bytes``: the same before compression.
    ``links``: those that went with their sources; ``unlinked``: links that were named, and are gone for good.
    ``cancelled_uses``: runs that were using any of all these.
    """

    refs: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    exclusive_bytes: int
    exclusive_plain_bytes: int
    trashed_at: datetime
    purge_at: datetime
    links: tuple[str, ...] = ()
    unlinked: tuple[str, ...] = ()
    cancelled_uses: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The deletion as JSON values."""
        return {
            "refs": list(self.refs),
            "skipped": [{"ref": ref, "why": why} for ref, why in self.skipped],
            "exclusive_bytes": self.exclusive_bytes,
            "exclusive_plain_bytes": self.exclusive_plain_bytes,
            "trashed_at": self.trashed_at.isoformat(),
            "purge_at": self.purge_at.isoformat(),
            "links": list(self.links),
            "unlinked": list(self.unlinked),
            "cancelled_uses": list(self.cancelled_uses),
        }


@dataclass(frozen=True, slots=True)
class CollectionDeletion:
    """What trashing a collection did, or would do. ``versions``: how many went with it.

    ``links``: those in other collections that went with their sources. ``cancelled_uses``: runs that were using any.
    """

    ref: str
    versions: int
    trashed_at: datetime
    purge_at: datetime
    exclusive_bytes: int
    """stored bytes that only these versions keep: purge and collection free them"""
    shared_bytes: int
    already_in_trash: bool = False
    links: tuple[str, ...] = ()
    cancelled_uses: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The deletion as JSON values."""
        return {
            **asdict(self),
            "trashed_at": self.trashed_at.isoformat(),
            "purge_at": self.purge_at.isoformat(),
            "links": list(self.links),
            "cancelled_uses": list(self.cancelled_uses),
        }


# --- many versions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """Which versions are to go: those of a predicate, or some named ones, by id of the collection and number."""

    where: Where | None
    named: tuple[tuple[int, int], ...]
    collection: CollectionName | None
    allowed: Allowed
    reason: str
    actor: str
    now: int | None = None
    """of the safe clock, from which ages are counted; None: the time of the commit"""
    permanent: bool = False
    """purged by the same commit, also those among the named that are in the trash already"""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What a request means on one state."""

    records: tuple[Trash | Unlink, ...]
    roots: tuple[bytes, ...]
    """what a purge lets go of, once for each hold"""
    let_go: tuple[bytes, ...]
    """what the links that are taken away let go of, at once"""
    refs: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    at: int
    purge_at: int
    links: tuple[str, ...] = ()
    unlinked: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    purges: tuple[Purge, ...] = ()


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
        return _carry_out(self._engine, self._request, self._chosen, self._foreseen)


def request_for(
    engine: Engine,
    where: Where | None,
    refs: Sequence[str],
    *,
    collection: str | None,
    allowed: Allowed,
    reason: str,
    permanent: bool = False,
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
    named: dict[tuple[int, int], None] = {}
    with engine.view.read() as tables:
        if name is not None:
            catalogue.find_collection(tables, name)
        for ref in refs:
            found = catalogue.find(tables, parse_reference(ref), states=KEPT)
            named[place_of(found.version)] = None
    return Request(where, tuple(named), name, allowed, reason, engine.runtime.actor, permanent=permanent)


def plan(engine: Engine, request: Request, *, measure: bool = True) -> Plan:
    """What a request would do at the head of the log. Changes nothing.

    Without ``measure`` it does not say how many bytes only these versions keep. Raises what `delete` raises.
    """
    with engine.foresee(lambda _: ()) as tables:
        chosen = _choose(tables, request)
        # However long the plan lies around: versions do not become old enough for it meanwhile.
        fixed = replace(request, now=chosen.at)
        foreseen = _outcome(tables, chosen, engine.runtime.now(), chosen.let_go, measure=measure)
    return Plan(engine, fixed, chosen, foreseen)


def delete(engine: Engine, request: Request) -> BulkDeletion:
    """Move versions to the trash, all in one commit.

    Those of a predicate that are protected, or have aliases, links or uses that are not allowed to go, are skipped and
    said; links do not count among them at all. Named ones raise `ProtectedError`, `AliasGuardError`, `LinkGuardError`,
    `InUseError`; named links are unlinked.
    """
    return _carry_out(engine, request, None)


def _carry_out(
    engine: Engine, request: Request, planned: _Chosen | None, foreseen: BulkDeletion | None = None
) -> BulkDeletion:
    chosen: _Chosen | None = None

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal chosen
        chosen = _choose(tables, request)
        if planned is not None:
            _check_same(planned, chosen)
        return (*chosen.records, *chosen.purges)

    engine.commit(build)
    assert chosen is not None
    if foreseen is not None and request.permanent:
        # What is purged keeps nothing any more: what it kept alone was counted before.
        now = from_micros(engine.runtime.now())
        return replace(foreseen, trashed_at=now, purge_at=now)
    with engine.view.read() as tables:
        row = _row_of(tables, chosen.records[-1]) if chosen.records else None
        # Nothing was to be done, or somebody has restored it already.
        return _outcome(tables, chosen, engine.runtime.now() if row is None or not row.trashed else row.trashed)


def _check_same(planned: _Chosen, chosen: _Chosen) -> None:
    before, now = (
        dict.fromkeys((*c.refs, *c.unlinked, *c.links, *(f"{ref} ({why})" for ref, why in c.skipped)))
        for c in (planned, chosen)
    )
    if before == now:
        return
    moved = [ref for ref in (*before, *now) if (ref in before) != (ref in now)]
    shown = ", ".join(moved[:SHOWN]) + (", …" if len(moved) > SHOWN else "")
    raise StaleBaseError(f"the store has changed since the plan was made: {shown}", hint="make the plan again")


def _outcome(
    tables: Tables, chosen: _Chosen, at: int, beside: tuple[bytes, ...] = (), *, measure: bool = True
) -> BulkDeletion:
    freed = garbage(tables, (*chosen.roots, *beside)) if measure else Garbage()
    return BulkDeletion(
        chosen.refs,
        chosen.skipped,
        freed.stored,
        freed.raw,
        from_micros(at),
        catalogue.wall_at(tables, chosen.purge_at),
        chosen.links,
        chosen.unlinked,
        chosen.cancelled,
    )


def _row_of(tables: Tables, record: Trash | Unlink) -> VersionRow | None:
    collection = collection_named(tables, record.collection)
    return None if collection is None else version_at(tables, collection.id, record.number)


def _choose(tables: Tables, request: Request) -> _Chosen:
    """The records of a request, in ascending order of versions: the state looks for ``latest`` only once then."""
    head = head_of(tables)
    safe = head.safe
    purge_at = safe if request.permanent else purge_time(tables)
    by_alias = catalogue.protected_aliases(tables)
    named = request.where is None
    but = "; nothing was changed"
    if request.where is None:
        meant = _named(tables, request)
    else:
        now = safe if request.now is None else request.now
        meant = _matching(tables, request, catalogue.matcher(tables, request.where, now))
    # Links first: one whose source goes, too, is not in its way.
    unlinked = [found for found, _ in meant if found.version.is_link]
    apart = {place_of(found.version) for found in unlinked}
    cancelled: list[str] = []
    records: list[Trash | Unlink] = []
    for found in unlinked:
        if found.version.state is not VersionState.COMMITTED:
            raise catalogue.wrong_state(found, catalogue.source_of(tables, found.version))
        record, runs = unlink_record(tables, found, request.actor, refuse_in_use=request.allowed.refuse_in_use, but=but)
        records.append(record)
        cancelled += runs
    going: list[VersionRow] = []
    links: list[VersionRow] = []
    waiting: list[VersionRow] = []
    refs: list[str] = []
    skipped: list[tuple[str, str]] = []
    for found, held in meant:
        version = found.version
        if version.is_link:
            continue
        if version.state is not VersionState.COMMITTED:
            if request.permanent:
                waiting.append(version)
                refs.append(found.label)
            else:
                skipped.append((found.label, "is in the trash already"))
            continue
        why = obstacle(tables, found, held, by_alias, request.allowed, apart)
        if why is not None and named:
            raise why.refusal(found, but)
        if why is not None:
            skipped.append((found.label, why.why))
            continue
        aliases = tuple(alias for alias in held if alias != LATEST)
        records.append(trash_record(found, purge_at, aliases, request.allowed, request.reason, request.actor))
        with_it = [row for row in links_of(tables, version) if place_of(row) not in apart]
        going.append(version)
        links += with_it
        cancelled += users(tables, (version, *with_it))
        refs.append(found.label)
    purges: list[Purge] = []
    if request.permanent:
        # A purge names the commit that trashed the version: for these it is the one being built.
        fresh = [record for record in records if isinstance(record, Trash)]
        purges = [Purge(r.collection, r.number, head.seq, force=True, actor=request.actor) for r in fresh]
        purges += catalogue.purges(tables, waiting, request.actor, force=True)
    return _Chosen(
        tuple(records),
        tuple(row.root for row in with_links(tables, [*going, *waiting]) if place_of(row) not in apart),
        tuple(found.version.root for found in unlinked),
        tuple(refs),
        tuple(skipped),
        safe,
        purge_at,
        tuple(catalogue.found_of(tables, row).label for row in links),
        tuple(found.label for found in unlinked),
        tuple(dict.fromkeys(cancelled)),
        tuple(purges),
    )


_Members = list[tuple[Found, Sequence[str]]]
"""versions and the aliases on them, by collection and number"""


def _matching(tables: Tables, request: Request, matcher: Matcher) -> _Members:
    if request.collection is not None:
        meant = [catalogue.find_collection(tables, request.collection)]
    else:
        meant = [row for row in collections(tables) if row.state is VersionState.COMMITTED]
    found: _Members = []
    for collection in meant:
        if not matcher.takes(collection):
            continue
        name = full_name(collection)
        held = aliases_by_number(tables, collection.id)
        found += [
            (Found(name, collection, version), held.get(version.number, ()))
            for version in versions(tables, collection.id, states=(VersionState.COMMITTED,))
            if not version.is_link and matcher.row(version) and matcher.aliases(held.get(version.number, ()))
        ]
    return found


def _named(tables: Tables, request: Request) -> _Members:
    found: _Members = []
    held: dict[int, dict[int, tuple[str, ...]]] = {}
    for identifier, number in request.named:
        version = version_at(tables, identifier, number)
        assert version is not None
        now = catalogue.found_of(tables, version)
        if version.state is VersionState.PURGED:
            raise catalogue.wrong_state(now, catalogue.source_of(tables, version))
        if identifier not in held:
            held[identifier] = aliases_by_number(tables, identifier)
        found.append((now, held[identifier].get(number, ())))
    return sorted(found, key=lambda member: (member[0].collection.name, member[0].version.number))


def aliases_by_number(tables: Tables, collection: int) -> dict[int, tuple[str, ...]]:
    """The aliases of each version of a collection that has some, ``latest`` included."""
    found: dict[int, list[str]] = {}
    for alias, number in aliases(tables, collection).items():
        found.setdefault(number, []).append(alias)
    return {number: tuple(held) for number, held in found.items()}


# --- a collection --------------------------------------------------------------------------------


def delete_collection(
    engine: Engine,
    identifier: int,
    *,
    allowed: Allowed,
    reason: str,
    confirm: str | None,
    dry_run: bool,
) -> CollectionDeletion:
    """Move a collection with all its versions to the trash, as one unit.

    ``confirm``: its name, which also allows for aliases. Raises `ProtectedError` if it or any version is protected,
    `AliasGuardError`, `LinkGuardError`, `InUseError`, `ConfirmationRequired` for another name,
    `CollectionNotFoundError`. Links in it go with it, whatever is allowed: their sources stay.
    """
    already = False
    links: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal already, links, cancelled
        name = CollectionName.parse(collection_name(tables, identifier))
        if confirm is not None and confirm not in {name.short, str(name)}:
            raise ConfirmationRequired(
                f"{confirm!r} is not {name.short!r}; nothing was changed", hint=f"confirm={name}"
            )
        row = catalogue.find_collection(tables, name, hidden=True)
        already = row.state is VersionState.TRASHED
        if already:
            return ()
        catalogue.find_collection(tables, name)
        _check_collection(tables, row, replace(allowed, aliases=allowed.aliases or confirm is not None))
        live = list(versions(tables, row.id, states=(VersionState.COMMITTED,)))
        with_it = [link for version in live for link in links_of(tables, version)]
        links = tuple(catalogue.found_of(tables, link).label for link in with_it)
        cancelled = users(tables, (*live, *with_it))
        record = TrashCollection(
            row.name, purge_time(tables), reason, engine.runtime.actor, allowed.links, allowed.refuse_in_use
        )
        return (record,)

    def outcome(tables: Tables) -> CollectionDeletion:
        done = _collection_outcome(tables, identifier, already=already)
        return replace(done, links=links, cancelled_uses=cancelled)

    if dry_run:
        with engine.foresee(build) as tables:
            return outcome(tables)
    engine.commit(build)
    with engine.view.read() as tables:
        return outcome(tables)


def _check_collection(tables: Tables, row: CollectionRow, allowed: Allowed) -> None:
    name = full_name(row).short
    held = aliases_by_number(tables, row.id)
    by_alias = catalogue.protected_aliases(tables)
    but = f", so {name} stays"
    if row.protected:
        raise ProtectedError(f"{name} is protected: {row.protected}", hint=f"casstore unprotect {name}")
    live = list(versions(tables, row.id, states=(VersionState.COMMITTED,)))
    for version in live:
        why = protection(row, version, held.get(version.number, ()), by_alias)
        if why:
            raise refusal(row, version, why, but)
    guards = sorted({alias for some in held.values() for alias in some} - {LATEST})
    if guards and not allowed.aliases:
        shown = ", ".join(guards[:SHOWN]) + (", …" if len(guards) > SHOWN else "")
        raise AliasGuardError(
            f"versions of {name} have the aliases {shown}",
            aliases=guards,
            hint=f"delete_aliases=True or confirm={name!r}, or casstore rm --collection {name} --confirm {name}",
        )
    for version in live:
        found = Found(full_name(row), row, version)
        obstructing = obstacle(tables, found, (), by_alias, allowed)
        if obstructing is not None:
            raise obstructing.refusal(found, but)


def _collection_outcome(tables: Tables, identifier: int, *, already: bool) -> CollectionDeletion:
    row = collection_named(tables, collection_name(tables, identifier))
    assert row is not None
    members = unit(tables, row)
    exclusive = garbage(tables, [version.root for version in with_links(tables, members)]).stored
    total = sum(footprint_of(tables, root) for root in dict.fromkeys(version.root for version in members))
    return CollectionDeletion(
        full_name(row).short,
        len(members),
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
            RestoreCollection(row.name, row.trash_seq, actor),
            *(record for v in unit(tables, row) for record in expiry.revived(terms, full_name(row), row, v, actor)),
        )

    engine.commit(build)


def purge_records(
    tables: Tables, rows: Sequence[CollectionRow], beside: Sequence[VersionRow], actor: str
) -> list[Record]:
    """What purges trashed collections, each version of them that is in the trash first; and some versions beside."""
    within = [version for row in rows for version in versions(tables, row.id, states=(VersionState.TRASHED,))]
    return [
        *catalogue.purges(tables, [*within, *beside], actor, force=True),
        *(PurgeCollection(row.name, row.trash_seq, force=True, actor=actor) for row in rows),
    ]


def purge_collection(engine: Engine, name: CollectionName) -> None:
    """Drop a trashed collection for good, with all versions in the trash, in one commit; its name is free then."""
    engine.commit(lambda tables: purge_records(tables, [trashed_collection(tables, name)], (), engine.runtime.actor))
