"""Answers before and after a deletion: what would it free, why is this still here, where did it go? Reads only."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime

from casstore import catalogue, expiry, policy
from casstore.audit import took_effect, transactions
from casstore.catalogue import Found, full_name
from casstore.config import from_micros
from casstore.contents import find_entry
from casstore.digest import ALGORITHMS
from casstore.engine import Engine
from casstore.errors import IntegrityError, InvalidInputError, NotFoundError
from casstore.format.rows import decode_row, length_of_row, stored_share
from casstore.gc.plan import Release
from casstore.gc.undo import place_of, still_there
from casstore.model import (
    KEPT,
    Drop,
    Entry,
    LostRow,
    PackState,
    PinRow,
    Purge,
    RenameCollection,
    Segment,
    Transaction,
    Unlink,
    VersionRow,
    VersionState,
)
from casstore.names import check_limit, check_texts, parse_reference, split_path
from casstore.overlay import Tables
from casstore.patterns import pattern
from casstore.pin import NEVER
from casstore.state import CHUNK, LOST, NODE, PIN
from casstore.values import dataclass
from casstore.view import children_of, collections, pack_at, trashed, versions, with_links

FOOTER_LENGTH = 5
"""bytes a pack's footer has for a chunk beside its digest: its length, and what its frame takes, about"""
_DIGEST = pattern(r"[a-z0-9-]+:[0-9a-f]{32,}")
_PROCESS = pattern(r":([0-9]+)(?::[0-9a-f]+)?\Z")


@dataclass(frozen=True, slots=True)
class Impact:
    """What deleting some versions together would free. ``stored``: bytes of packs; others: plaintext bytes.

    Plaintext bytes are exact. Stored bytes are what the frames and footers of packs give up when the store is written
    anew without these versions: exact but for the labels of versions in footers (some hundred bytes a version) and for
    how much better or worse frames compress with other neighbours.

    ``exclusive``: only these versions keep them: free once they are purged and collected. ``shared``: others keep
    them too, those in ``shared_with`` and, until they let go, ``pins``. ``trash_only``: besides these, only versions
    in the trash keep them: free once those are purged as well. What nobody keeps already is in none of them.
    """

    refs: tuple[str, ...]
    exclusive_bytes: int
    shared_bytes: int
    trash_only_bytes: int
    stored_exclusive_bytes: int
    stored_trash_only_bytes: int
    shared_with: tuple[str, ...]
    pins: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The numbers as JSON values."""
        lists = {"refs": list(self.refs), "shared_with": list(self.shared_with), "pins": list(self.pins)}
        return {**asdict(self), **lists}


@dataclass(frozen=True, slots=True)
class Keeper:
    """What deleting something whole, and the links to it, would free.

    ``kind``: ``collection`` (without its trash), ``trash`` or ``pin``.

    Pins let go by themselves, so what they keep beside a collection or the trash is counted there.
    """

    kind: str
    ref: str
    stored_bytes: int

    def to_dict(self) -> dict[str, object]:
        """The keeper as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that keeps content. ``kind``: ``version``, ``link``, ``trash`` or ``pin``.

    ``until``: when it lets go: of a version, when its time to live ends, None if it does not. Of a pin: ``holder``
    (a host and a process, ``pid``, for drafts), what for, and since when.
    """

    kind: str
    ref: str
    paths: tuple[str, ...]
    until: datetime | None
    holder: str = ""
    purpose: str = ""
    since: datetime | None = None
    pid: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The holder as JSON values."""
        return {
            **asdict(self),
            "paths": list(self.paths),
            "until": _iso(self.until),
            "since": _iso(self.since),
        }


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to content: ``kind`` is ``purged``, ``dropped``, ``erased`` or ``damaged``.

    ``run_id``: the run of the collector that did it, if one did.
    """

    kind: str
    at: datetime
    actor: str
    reason: str
    commit: int
    run_id: str | None = None

    def to_dict(self) -> dict[str, object]:
        """The event as JSON values."""
        return {**asdict(self), "at": self.at.isoformat()}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why content is there, or since when it is not.

    ``state``: ``held`` (see ``holders``), ``garbage`` (nothing holds it; the next collection may take it),
    ``dropped`` (a collection forgot it), ``purged`` (a version that is no more; holders are those of its content),
    ``erased`` or ``damaged`` (it is referred to, but its bytes are gone, or not what they should be). ``events`` say
    when, by whom and in which run, the newest first. ``parents``: digests of the nodes directly above a digest.
    ``there``: whether the bytes are in the backend, all of them; if they are in packs that have ended, at least
    until ``bytes_until``. ``undo``: the run that ``gc undo`` can take back to have a purged version again.
    """

    subject: str
    digests: int
    state: str
    holders: tuple[Holder, ...] = ()
    events: tuple[Event, ...] = ()
    parents: tuple[str, ...] = ()
    there: bool = True
    bytes_until: datetime | None = None
    undo: str | None = None

    @property
    def dropped_at(self) -> datetime | None:
        """When a collection forgot it."""
        return next((event.at for event in self.events if event.kind == "dropped"), None)

    @property
    def dropped_by(self) -> str:
        """Who ran the collection that forgot it."""
        return next((event.actor for event in self.events if event.kind == "dropped"), "")

    def to_dict(self) -> dict[str, object]:
        """The explanation as JSON values."""
        return {
            "subject": self.subject,
            "digests": self.digests,
            "state": self.state,
            "holders": [holder.to_dict() for holder in self.holders],
            "events": [event.to_dict() for event in self.events],
            "parents": list(self.parents),
            "there": self.there,
            "bytes_until": _iso(self.bytes_until),
            "undo": self.undo,
        }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


# --- what would it free --------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """Digests let go of, and the space they take."""

    digests: set[bytes]
    raw: int = 0
    stored: int = 0


def _freed(tables: Tables, *stages: Iterable[bytes]) -> list[_Tally]:
    """What is freed if nothing, and then these roots, stage by stage, were let go of. What is dead is not counted."""
    release = Release.of_living(tables)
    result = []
    for roots in stages:
        tally = _Tally(set())
        for digest, _ in release.drain(release.let_go(roots)):
            row = tables.get(CHUNK, digest)
            assert row is not None
            tally.digests.add(digest)
            tally.raw += length_of_row(row)
            tally.stored += stored_share(row) + len(digest) + FOOTER_LENGTH
        result.append(tally)
    return result


def preview_delete(engine: Engine, refs: Sequence[str]) -> Impact:
    """What deleting these versions together, with the links to them, would free. Exact, not the sum of its parts.

    Versions in the trash may be among them. Raises `VersionNotFoundError`.
    """
    refs = check_texts(refs, "references")
    engine.view.refresh()
    with engine.view.read() as tables:
        chosen: dict[tuple[int, int], Found] = {}
        for ref in refs:
            found = catalogue.find(tables, parse_reference(ref), states=KEPT)
            chosen[found.version.collection, found.version.number] = found
        labels = tuple(found.label for found in chosen.values())
        # Links go with their source.
        for version in with_links(tables, [found.version for found in chosen.values()]):
            chosen.setdefault(catalogue.place_of(version), catalogue.found_of(tables, version))
        roots = [found.version.root for found in chosen.values()]
        rest = [version.root for version in trashed(tables) if catalogue.place_of(version) not in chosen]
        alone, with_trash = _freed(tables, roots, rest)
        (trash,) = _freed(tables, rest)
        reachable = _below(tables, roots)
        others, pins = _others(tables, chosen, reachable - alone.digests)
        total = sum(length_of_row(row) for d in reachable if (row := tables.get(CHUNK, d)) is not None)
    return Impact(
        labels,
        alone.raw,
        total - alone.raw,
        with_trash.raw - trash.raw,
        alone.stored,
        with_trash.stored - trash.stored,
        others,
        pins,
    )


def keepers(engine: Engine, limit: int = 10) -> list[Keeper]:
    """The collections, versions in the trash and pins that keep most on their own, the largest first.

    Time: O(content that one of them alone keeps), which may be most of the store.
    """
    check_limit(limit)
    engine.view.refresh()
    with engine.view.read() as tables:
        found = [
            Keeper("collection", full_name(row).short, _beside_pins(tables, _roots(tables, committed)))
            for row in collections(tables)
            if (committed := list(versions(tables, row.id, states=(VersionState.COMMITTED,))))
        ]
        found += [
            Keeper("trash", Found(full_name(row), row, version).label, _beside_pins(tables, _roots(tables, [version])))
            for row in collections(tables)
            for version in versions(tables, row.id, states=(VersionState.TRASHED,))
        ]
        for pin in _pins(tables):
            (alone,) = _freed(tables, pin.roots)
            found.append(Keeper("pin", _said(pin), alone.stored))
    found.sort(key=lambda keeper: (-keeper.stored_bytes, keeper.kind, keeper.ref))
    return [keeper for keeper in found[:limit] if keeper.stored_bytes]


def _roots(tables: Tables, rows: Iterable[VersionRow]) -> list[bytes]:
    """What some versions hold, with the links to them."""
    return [row.root for row in with_links(tables, rows)]


def _beside_pins(tables: Tables, roots: Iterable[bytes]) -> int:
    """What some roots keep, pins aside: those come and go."""
    _, tally = _freed(tables, [root for pin in _pins(tables) for root in pin.roots], roots)
    return tally.stored


def _pins(tables: Tables) -> list[PinRow]:
    return [decode_row(row, PinRow) for _, row in tables.scan(PIN)]


def _below(tables: Tables, roots: Iterable[bytes]) -> set[bytes]:
    seen = set(roots)
    queue = list(seen)
    while queue:
        for child in children_of(tables, queue.pop()) or ():
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return seen


def _others(
    tables: Tables, chosen: dict[tuple[int, int], Found], shared: set[bytes]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels of other versions, and of pins, that need any of some digests."""
    above, _ = _ancestors(tables, shared)
    others = tuple(
        Found(full_name(collection), collection, version).label
        for collection in collections(tables)
        for version in versions(tables, collection.id, states=KEPT)
        if version.root in above and (version.collection, version.number) not in chosen
    )
    return others, tuple(_said(pin) for pin in _pins(tables) if above.intersection(pin.roots))


def _said(pin: PinRow) -> str:
    return f"{pin.purpose}, held by {pin.holder}"


# --- why is it here ------------------------------------------------------------------------------


def why(engine: Engine, subject: str) -> Explanation:
    """Every holder of a digest, of a version (``name:vN``) or of a path in one (``name:vN/path``), complete.

    Of what is not there any more, the events that took it away, found by reading the log backwards to the first.
    Raises `NotFoundError` for a digest the log never knew, `VersionNotFoundError`, `EntryNotFoundError`.
    """
    if not isinstance(subject, str):
        raise InvalidInputError(f"{subject!r:.200} is not a digest, version or path", hint="name:vN, name:vN/path")
    engine.view.refresh()
    if subject.partition(":")[0] in ALGORITHMS and _DIGEST.fullmatch(subject):
        return _why_digest(engine, subject, engine.parse_digest(subject))
    reference, path = split_path(subject)
    states = KEPT if path else tuple(VersionState)
    with engine.view.read() as tables:
        found = catalogue.find(tables, parse_reference(reference), states=states)
    if found.version.state is VersionState.PURGED:
        return _why_purged(engine, subject, found)
    if not path:
        return _explain(engine, subject, {found.version.root})
    entry = find_entry(engine, found, path)
    if entry is None:
        raise NotFoundError(f"{found.label} has no path {path!r}", hint=f"casstore files {found.label}")
    # What has no bytes in the store, as a reference, is held by what holds the list it stands in.
    return _explain(engine, subject, _named_by(entry) or {found.version.root})


def _named_by(entry: Entry) -> set[bytes]:
    return {entry.tree} if entry.tree is not None else {digest for digest, _ in entry.chunks}


def _explain(engine: Engine, subject: str, digests: set[bytes]) -> Explanation:
    """Of content that is indexed."""
    with engine.view.read() as tables:
        lost = [decode_row(row, LostRow) for digest in sorted(digests) if (row := tables.get(LOST, digest)) is not None]
    holders, parents = _holders(engine, digests)
    state = "held" if holders else "garbage"
    if lost:
        state = "erased" if any(row.erased for row in lost) else "damaged"
    events = {
        Event("erased" if row.erased else "damaged", from_micros(row.at), row.actor, row.reason, row.seq)
        for row in lost
    }
    newest_first = sorted(events, key=lambda event: (-event.commit, event.kind))
    return Explanation(subject, len(digests), state, holders, tuple(newest_first), parents, there=not lost)


def _holders(engine: Engine, digests: set[bytes]) -> tuple[tuple[Holder, ...], tuple[str, ...]]:
    """What keeps some digests, and the nodes directly above them."""
    holders: list[Holder] = []
    with engine.view.read() as tables:
        above, direct = _ancestors(tables, digests)
        kept = [
            Found(full_name(collection), collection, version)
            for collection in collections(tables)
            for version in versions(tables, collection.id, states=KEPT)
            if version.root in above
        ]
        expires = {found.label: moment for found in kept if (moment := _expiry(engine, tables, found)) is not None}
        pins = [pin for pin in _pins(tables) if above.intersection(pin.roots)]
    for found in kept:
        in_trash = found.version.state is VersionState.TRASHED
        until = catalogue.wall_time(engine, found.version.purge_at) if in_trash else expires.get(found.label)
        paths = tuple(_paths(engine, found.version.root, above, digests))
        kind = "trash" if in_trash else "link" if found.version.is_link else "version"
        holders.append(Holder(kind, found.label, paths, until))
    holders += [_pin(engine, pin) for pin in pins]
    return tuple(holders), tuple(str(engine.digest(node)) for node in sorted(direct))


def holders(engine: Engine, digests: set[bytes]) -> tuple[Holder, ...]:
    """Everything that keeps any of some digests, complete, as of the view."""
    return _holders(engine, digests)[0]


def _expiry(engine: Engine, tables: Tables, found: Found) -> datetime | None:
    """When a version goes to the trash by itself, if it does."""
    terms = expiry.terms_now(engine, tables)
    moment = expiry.expires(terms, found.collection, found.version)
    if moment is None or expiry.holders(tables, terms, found.collection, found.version):
        return None
    return expiry.wall_time(engine, tables, moment)


def _pin(engine: Engine, pin: PinRow) -> Holder:
    since: datetime | None = None
    with suppress(IntegrityError):  # the log says since when, if that part of it can be read
        made = engine.log.read_raw(pin.seq)
        since = None if made is None else from_micros(made.claimed)
    process = _PROCESS.search(pin.holder)
    return Holder(
        "pin",
        _said(pin),
        (),
        None if pin.expires >= NEVER else catalogue.wall_time(engine, pin.expires),
        pin.holder,
        pin.purpose,
        since,
        None if process is None else int(process[1]),
    )


def _ancestors(tables: Tables, digests: set[bytes]) -> tuple[set[bytes], set[bytes]]:
    """Some digests and every indexed node above them; and the nodes directly above. One pass over the nodes a level."""
    found = set(digests)
    direct: set[bytes] | None = None
    while found:
        new = {
            node
            for node, row in tables.scan(NODE)
            if (node not in found or direct is None)
            and any(row[at : at + len(node)] in found for at in range(0, len(row), len(node)))
        }
        if direct is None:
            direct = new
        if new <= found:
            break
        found |= new
    return found, direct or set()


def _paths(engine: Engine, root: bytes, above: set[bytes], digests: set[bytes]) -> list[str]:
    """Paths of a tree whose content includes some digests; enters only nodes above them."""
    if root in digests:
        return []
    found: list[str] = []
    stack = [root]
    while stack:
        node = engine.node(stack.pop())
        stack.extend(child.digest for child in reversed(node.children) if child.digest in above)
        found.extend(
            entry.path
            for entry in node.entries
            if (entry.tree is not None and entry.tree in above) or any(d in digests for d, _ in entry.chunks)
        )
    return found


# --- where did it go -----------------------------------------------------------------------------


def _why_digest(engine: Engine, subject: str, digest: bytes) -> Explanation:
    with engine.view.read() as tables:
        known = tables.get(CHUNK, digest) is not None
    if known:
        return _explain(engine, subject, {digest})
    for segment, transaction in transactions(engine):
        if _drops(transaction, digest) and took_effect(engine, segment, transaction):
            pack = place_of(engine, digest)
            event = _event("dropped", segment, transaction)
            until = None if pack is None else _stays_until(engine, (pack,))
            return Explanation(subject, 1, "dropped", (), (event,), there=pack is not None, bytes_until=until)
    raise NotFoundError(
        f"{subject} was never in this store", hint="of a file of many chunks, ask by name: casstore why REF/PATH"
    )


def _why_purged(engine: Engine, subject: str, found: Found) -> Explanation:
    root = found.version.root
    # A link goes with its source; and names change: the one it had at the time is in the records.
    with engine.view.read() as tables:
        gone = [each for each in (found, catalogue.source_of(tables, found.version)) if each is not None]
    names = {(str(each.name), each.version.number) for each in gone}
    events: list[Event] = []
    for segment, transaction in transactions(engine):
        purge = next((r for r in transaction.records if _purges(r, names)), None)
        dropped = not events and _drops(transaction, root)
        renames = [r for r in transaction.records if isinstance(r, RenameCollection)]
        if not (purge or dropped or renames) or not took_effect(engine, segment, transaction):
            continue
        for rename in renames:
            names = {(rename.collection if name == rename.name else name, number) for name, number in names}
        if dropped:
            events.append(_event("dropped", segment, transaction))
        if isinstance(purge, Purge | Unlink):
            events.append(_event("purged", segment, transaction, purge.actor))
            break
    with engine.view.read() as tables:
        indexed = tables.get(CHUNK, root) is not None
    holders, _ = _holders(engine, {root}) if indexed else ((), ())
    packs = still_there(engine, root)
    # A run that purged it can be undone, or else the one that let go of its content.
    undo = None if packs is None else next((e.run_id for e in reversed(events) if e.run_id is not None), None)
    until = None if packs is None else _stays_until(engine, packs)
    return Explanation(subject, 1, "purged", holders, tuple(events), (), packs is not None, until, undo)


def _drops(transaction: Transaction, digest: bytes) -> bool:
    return any(isinstance(record, Drop) and digest in record.digests for record in transaction.records)


def _purges(record: object, names: Container[tuple[str, int]]) -> bool:
    return isinstance(record, Purge | Unlink) and (record.collection, record.number) in names


def _event(kind: str, segment: Segment, transaction: Transaction, actor: str = "") -> Event:
    run = transaction.run
    who = actor or (segment.writer if run is None else run.actor)
    return Event(kind, from_micros(segment.claimed), who, "", segment.seq, None if run is None else run.run.hex())


def _stays_until(engine: Engine, packs: Iterable[bytes]) -> datetime | None:
    """When the first of some packs that have ended may be deleted; None if none of them has."""
    grace = int(policy.load(engine.view.policy()).grace.total_seconds() * 1_000_000)
    with engine.view.read() as tables:
        rows = [row for pack in packs if (row := pack_at(tables, pack)) is not None and row.state is not PackState.LIVE]
    return from_micros(min(row.since for row in rows) + grace) if rows else None
