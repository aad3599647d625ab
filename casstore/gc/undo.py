"""Undo a run of the collector: while the bytes are still there, store them again and bring its versions back.

A pack's end is for ever (names are never reused), so content of retired packs is stored under new names; what a
purge let go of comes back into the trash, from where it can be restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict

from casstore.engine import Engine
from casstore.errors import ChunkMissingError, InvalidInputError, NotFoundError, RefusedError, StoreBusyError
from casstore.format.nodes import Node, decode_node
from casstore.format.packs import locations
from casstore.gc.moving import read_footer
from casstore.gc.reclaim import listed_packs
from casstore.model import (
    Drop,
    Location,
    PackState,
    Progress,
    Purge,
    Record,
    RenameCollection,
    Unpurge,
    VersionRow,
    VersionState,
)
from casstore.model import no_progress as _silent
from casstore.names import CollectionName, parse_reference
from casstore.overlay import Tables
from casstore.state import CHUNK, NODE, current_name, head_of
from casstore.values import dataclass
from casstore.view import collection_name, collection_named, packs, version_at, versions
from casstore.writer import Writer

BATCH = 256
TRIES = 5
"""times what others take meanwhile is looked for anew"""


@dataclass(frozen=True, slots=True)
class UndoReport:
    """What an undo brought back. ``readded_bytes``: stored bytes of the packs written for it."""

    run_id: str
    restored: tuple[str, ...]
    readded_chunks: int
    readded_bytes: int

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return {**asdict(self), "restored": list(self.restored)}


class _GoneError(Exception):
    """Something was dropped or reclaimed after it was found: what is left is to be looked for again."""


@dataclass(frozen=True, slots=True)
class _Done:
    """What a run did, as the log tells it, and where it ended."""

    last: int
    purged: frozenset[tuple[str, int]]
    dropped: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A purged version that a run let go of."""

    collection: str
    version: VersionRow

    @property
    def label(self) -> str:
        return f"{CollectionName.parse(self.collection).short}:v{self.version.number}"


def undo(
    engine: Engine, run_id: str, refs: Sequence[str], keep: int, actor: str, progress: Progress = _silent
) -> UndoReport:
    """Put the versions that a run purged, or whose content it freed, back into the trash; all of them or none.

    ``refs``: only these. ``keep``: microseconds until they are due for purging again. One commit; content that is
    still in the store is shared, the rest is copied out of packs that have ended but are still there. Raises
    `NotFoundError` for an unknown run, `RefusedError`, changing nothing, when bytes are gone.
    """
    run = _run(run_id)
    engine.check_writable()
    done = _what_it_did(engine, run)
    for _ in range(TRIES):
        with suppress(_GoneError):
            return _bring_back(engine, run_id, done, refs, keep, actor, progress)
    raise StoreBusyError(
        f"collections took what run {run_id} let go of {TRIES} times under the undo", hint="run it again"
    )


def _bring_back(
    engine: Engine, run_id: str, done: _Done, refs: Sequence[str], keep: int, actor: str, progress: Progress
) -> UndoReport:
    chosen = _candidates(engine, done, refs, run_id)
    places = _places(engine, progress)
    lost = [c.label for c in chosen if not _complete(engine, c.version.root, places)]
    if lost:
        rest = [c.label for c in chosen if c.label not in lost]
        hint = (
            f"casstore gc undo {run_id} {' '.join(rest)}"
            if rest
            else "a longer grace keeps them: casstore gc --grace 7d"
        )
        raise RefusedError(f"run {run_id} cannot be undone: the bytes of {', '.join(lost)} were reclaimed", hint=hint)
    writer = Writer(engine)
    try:
        stored = _store(writer, [c.version.root for c in chosen], places, progress)

        def records(tables: Tables) -> Sequence[Record] | None:
            due = head_of(tables).safe + keep
            still = [c for c in chosen if _is_purged(tables, c)]
            return tuple(Unpurge(c.collection, c.version.number, due, actor) for c in still) or None

        def again(_: set[bytes]) -> None:
            nonlocal stored
            # What could be shared a moment ago was dropped: its bytes are in a pack that has ended since.
            stored += _store(writer, [c.version.root for c in chosen], _places(engine, progress), progress)

        writer.commit(records, again)
    except BaseException:
        writer.abandon()
        raise
    return UndoReport(run_id, tuple(c.label for c in chosen), stored, writer.stored_bytes)


def still_there(engine: Engine, root: bytes, progress: Progress = _silent) -> frozenset[bytes] | None:
    """The packs in which content below a purged root lies that the index has forgotten; None if any of it is gone.

    Reads the footers of all packs that have ended.
    """
    used: set[bytes] = set()
    return frozenset(used) if _complete(engine, root, _places(engine, progress), used) else None


def place_of(engine: Engine, digest: bytes, progress: Progress = _silent) -> bytes | None:
    """A pack in which a chunk lies that the index has forgotten; None if there is none any more."""
    place = _places(engine, progress).get(digest)
    return None if place is None else place.pack


def _run(run_id: str) -> bytes:
    try:
        return bytes.fromhex(run_id)
    except (ValueError, TypeError):
        raise InvalidInputError(f"{run_id!r} is not the id of a run", hint="casstore log --deletions") from None


def _what_it_did(engine: Engine, run: bytes) -> _Done:
    """Read the log backwards to where the run began."""
    purged: set[tuple[str, int]] = set()
    dropped: set[bytes] = set()
    start: int | None = None
    last = 0
    names: dict[str, str] = {}
    seq = engine.view.refresh().seq
    while seq > (start or 0):
        found = engine.log.read(seq)
        if found is None:
            break
        for transaction in reversed(found[0].transactions):
            for record in transaction.records:
                if isinstance(record, RenameCollection) and engine.view.outcome(transaction.txid) is not None:
                    # Records before have the name of their time.
                    names[record.collection] = names.pop(record.name, record.name)
            part = transaction.run
            if part is None or part.run != run:
                continue
            start, last = part.start, max(last, seq)
            for record in transaction.records:
                if isinstance(record, Purge):
                    purged.add((names.get(record.collection, record.collection), record.number))
                elif isinstance(record, Drop):
                    dropped.update(record.digests)
        seq -= 1
    if start is None:
        raise NotFoundError(f"there is no run {run.hex()} in the log", hint="casstore log --deletions")
    return _Done(last, frozenset(purged), frozenset(dropped))


def _candidates(engine: Engine, done: _Done, refs: Sequence[str], run_id: str) -> list[_Candidate]:
    with engine.view.read() as tables:
        found: dict[tuple[str, int], _Candidate] = {}
        for version in versions(tables, states=(VersionState.PURGED,)):
            name = collection_name(tables, version.collection)
            if version.is_link or version.purge_seq > done.last:
                continue  # purged again since: that is another's decision
            if (name, version.number) in done.purged or version.root in done.dropped:
                found[name, version.number] = _Candidate(name, version)
        if refs:
            wanted = [_named(tables, ref) for ref in refs]
            for ref, key in zip(refs, wanted, strict=True):
                if key not in found:
                    raise RefusedError(f"{ref} was not let go by run {run_id}", hint=f"casstore why {ref}")
            return [found[key] for key in dict.fromkeys(wanted)]
    if not found:
        raise RefusedError(f"run {run_id} let go of no version that is still purged", hint="casstore trash ls")
    return list(found.values())


def _named(tables: Tables, ref: str) -> tuple[str, int]:
    reference = parse_reference(ref)
    if reference.number is None:
        raise InvalidInputError(f"{ref!r} does not name one version", hint="name:vN")
    row = collection_named(tables, current_name(tables, str(reference.collection)))
    if row is None or version_at(tables, row.id, reference.number) is None:
        raise NotFoundError(f"there was never a version {ref}", hint="casstore log --deletions")
    return row.name, reference.number


def _is_purged(tables: Tables, candidate: _Candidate) -> bool:
    version = version_at(tables, candidate.version.collection, candidate.version.number)
    return version is not None and version.state is VersionState.PURGED


# --- content -------------------------------------------------------------------------------------


def _places(engine: Engine, progress: Progress) -> dict[bytes, Location]:
    """Where content that the index has forgotten still lies: in ended packs, and as waste in live ones."""
    listed = listed_packs(engine)
    with engine.view.read() as tables:
        there = [
            (row.state is PackState.LIVE, name, listed[name].size)
            for name, row in packs(tables)
            if name in listed and (row.state is not PackState.LIVE or row.placed_raw < row.raw)
        ]
    places: dict[bytes, Location] = {}
    for position, (_, name, size) in enumerate(sorted(there)):
        progress("look for content", position, len(there))
        try:
            footer = read_footer(engine, name, size)
        except NotFoundError:
            continue  # reclaimed a moment ago
        with engine.view.read() as tables:
            for digest, place in locations(name, footer.content):
                if digest not in places and tables.get(CHUNK, digest) is None:
                    places[digest] = place
    return places


def _complete(engine: Engine, root: bytes, places: dict[bytes, Location], used: set[bytes] | None = None) -> bool:
    """Whether everything below a root is indexed or lies in a pack that is there; ``used`` takes up those packs."""
    queue, seen = [root], {root}
    while queue:
        digest = queue.pop()
        if _closed(engine, digest):
            continue
        node = _node(engine, digest, places)
        if node is None:
            return False
        data = node.data()
        forgotten = [d for d, known in zip(data, engine.view.known(data), strict=True) if not known]
        if any(d not in places for d in forgotten):
            return False
        if used is not None:
            used.update(places[d].pack for d in (digest, *forgotten) if d in places)
        for child in node.subtrees():
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return True


def _closed(engine: Engine, digest: bytes) -> bool:
    """An indexed node has everything below it indexed."""
    with engine.view.read() as tables:
        return tables.get(NODE, digest) is not None


def _bytes(engine: Engine, digests: Iterable[bytes], places: dict[bytes, Location]) -> dict[bytes, bytes]:
    """Verified bytes, from the index's place or from an ended pack. Raises `IntegrityError`, `_GoneError`."""
    wanted = list(dict.fromkeys(digests))
    known = dict(zip(wanted, engine.view.known(wanted), strict=True))
    indexed = engine.reader.fetch(d for d in wanted if known[d])
    gone = [d for d in wanted if not known[d] and d not in places]
    if gone:
        raise _GoneError
    elsewhere = engine.reader.fetch_at({d: places[d] for d in wanted if not known[d]})
    try:
        return {d: (indexed if known[d] else elsewhere).get(d) for d in wanted}
    except ChunkMissingError as error:
        # What the index still has a place for is damage; all else went as it is to go.
        if any(known[d] and d in indexed.failed and engine.view.known((d,))[0] for d in wanted):
            raise
        raise _GoneError from error


def _node(engine: Engine, digest: bytes, places: dict[bytes, Location]) -> Node | None:
    try:
        return decode_node(_bytes(engine, [digest], places)[digest], f"node {digest.hex()}")
    except (ChunkMissingError, _GoneError):
        return None


def _store(writer: Writer, roots: Iterable[bytes], places: dict[bytes, Location], progress: Progress) -> int:
    """Store below some roots what is not in the store, children first; returns how many chunks."""
    engine = writer.engine
    stored = 0
    seen: set[bytes] = set()

    def visit(digest: bytes) -> None:
        nonlocal stored
        if digest in seen:
            return
        seen.add(digest)
        if _closed(engine, digest) and engine.view.known((digest,))[0]:
            writer.claim(digest)
            return
        data = _bytes(engine, [digest], places)[digest]
        node = decode_node(data, f"node {digest.hex()}")
        for child in node.subtrees():
            visit(child)
        absent = sorted(writer.missing(list(dict.fromkeys(node.data()))))
        for at in range(0, len(absent), BATCH):
            for name, chunk in _bytes(engine, absent[at : at + BATCH], places).items():
                writer.put(name, chunk)
                stored += 1
        writer.put_node(data, node.references())
        stored += 1
        progress("store", stored, 0)

    for root in dict.fromkeys(roots):
        visit(root)
    return stored
