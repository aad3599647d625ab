"""One replica of the state: catches up with the log and answers questions. LMDB or memory underneath."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from casstore.backend.room import is_full
from casstore.checkpoint import Checkpoints
from casstore.config import MIB
from casstore.errors import BackendError, IntegrityError
from casstore.format.checkpoints import Manifest, Rows
from casstore.format.rows import decode_chunk, decode_row, encode_row, location_of_row, u64
from casstore.index import IndexDamagedError, MemoryIndex, SpillIndex, Storage
from casstore.log import Log
from casstore.model import (
    KEPT,
    AliasChange,
    BatchRow,
    ChunkRow,
    CollectionRow,
    Location,
    LostRow,
    PackRow,
    PartRow,
    PinRow,
    Segment,
    VersionRow,
    VersionState,
)
from casstore.overlay import Changes, Tables
from casstore.state import (
    ALIAS,
    ALIAS_LOG,
    BATCH,
    CHUNK,
    COLLECTION,
    COLLECTION_NAME,
    HEAD_KEY,
    LOCAL,
    LOST,
    META,
    NODE,
    PACK,
    PART,
    PIN,
    POLICY,
    ROOT,
    TABLES,
    TRASHED,
    TXID,
    VERSION,
    ZERO,
    Head,
    apply,
    batch_key,
    head_of,
    links_to,
    version_key,
)
from casstore.values import dataclass

T = TypeVar("T")

_LOADING = LOCAL + b"loading"
"""checkpoint and number of the part that comes next, while a view begins with one"""
_HEAD = LOCAL + b"head"
_REPLAY = LOCAL + b"replay"
"""this view is to be made from the log alone"""
BATCH_SEGMENTS = 64
BATCH_RECORDS = 50_000
LOOSE, LOOSE_BYTES = 0.25, 16 * MIB
"""share of the files that must be free, and bytes they must have, for `View.trim` to write them anew"""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a segment changes, found out on the tables of a `Tables.stamp` before it was written.

    `apply` is a function of the tables and the segment and of nothing else. So on the very same tables it need not
    be run again.
    """

    stamp: object
    changes: Mapping[str, Changes]


class _Mine(threading.local):
    """Of one thread: how many reads it is in."""

    depth = 0


class _Reading:
    """`View.read`. Not made of a generator: that would be a third of what a snapshot costs."""

    __slots__ = ("_depth", "_reading", "_view")

    def __init__(self, view: View) -> None:
        self._view = view
        self._depth = 0
        self._reading: AbstractContextManager[Tables] | None = None

    def __enter__(self) -> Tables:
        mine = self._view._mine  # noqa: SLF001 - same module
        self._reading, tables = self._view._begin()  # noqa: SLF001
        self._depth = mine.depth
        mine.depth += 1
        return tables

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view._mine.depth = self._depth  # noqa: SLF001
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.__exit__(kind, error, trace)


class View:
    """The state at some position of the log, shared by every handle on the host. Thread-safe."""

    def __init__(
        self,
        storage: Storage,
        log: Log,
        effect: Callable[[str], None],
        discard: Callable[[int | None], None],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Without ``checkpoints`` the whole log is folded."""
        self._storage = storage
        self._left: list[Storage] = []
        """what had no room"""
        self._discard = discard
        self._log = log
        self._effect = effect
        self._checkpoints = checkpoints
        self.folded = False
        """whether this handle has changed the storage"""
        self._mine = _Mine()
        self._reached = 0
        """the highest position this handle has seen: it is never shown an earlier one"""
        self._changed = 0
        """rows of chunks that commits of this handle have changed"""

    # --- keeping up

    def check(self) -> None:
        """Compare the view with the log it claims to show. Raises `IntegrityError` when the log went back."""
        head = self.head()
        if head.seq == 0 or self._log.chain_at(head.seq) == head.chain:
            return
        try:
            raw = self._log.read_raw(head.seq)
        except IntegrityError:
            # A damaged segment says nothing about the view, which was made when it was whole.
            return
        if raw is None or raw.chain != head.chain:
            raise IntegrityError(
                f"the log {'ends before' if raw is None else 'differs at'} segment {head.seq}, seen earlier",
                hint="if the log was restored from a copy on purpose: casstore index rebuild",
            )

    def refresh(self) -> Head:
        """Fold in every segment up to the head of the log; returns the position reached.

        A view that turns out to be damaged is thrown away and made again from the log.
        """
        try:
            return self._catch_up()
        except IndexDamagedError as error:
            self._discard(error.generation)
            return self._catch_up()

    def keep_up(self) -> int:
        """Have `read` show the head of the log as it is now; returns a position that it does not fall behind.

        `refresh` for whoever reads next. One look at the log, if nobody has committed meanwhile: no snapshot is older
        than what this handle has seen, so only what follows that has to be looked for.
        """
        reached = self._reached
        if not reached or self._mine.depth or not self._log.ends_at(reached):
            return self.refresh().seq
        return reached

    def _catch_up(self) -> Head:
        while True:
            head = self._position()
            if head.seq == 0 and self._checkpoints is not None:
                self._start(self._checkpoints)
                head = self._position()
            batch: list[tuple[Segment, bytes]] = []
            weight = 0
            # Segments are read before the write transaction begins: nobody waits on our I/O.
            for segment, chain in self._log.after(head.seq):
                batch.append((segment, chain))
                weight += sum(len(t.records) for t in segment.transactions)
                if len(batch) >= BATCH_SEGMENTS or weight >= BATCH_RECORDS:
                    break
            if not batch:
                self._reached = max(self._reached, head.seq)
                return head
            self.fold(batch)

    def _start(self, checkpoints: Checkpoints) -> None:
        """Begin an empty view at the newest checkpoint of the log, if there is one.

        Part by part, a transaction each, so that nobody waits on our I/O; how far it came stands in the view, so that
        whoever comes next goes on from there, also when this process is stopped or killed.
        """
        while True:
            with self._storage.read() as tables:
                begun = tables.get(META, _LOADING)
                if head_of(tables).seq or tables.get(META, _REPLAY) is not None:
                    return
            if begun is None:
                manifest, at = checkpoints.newest(self._log), 0
                if manifest is None:
                    return
            else:
                key, at = decode_row(begun, tuple[str, int])
                manifest = checkpoints.read(key)
            rows = None if manifest is None else checkpoints.part(manifest, at)
            try:
                if manifest is None or rows is None:
                    self._forget()
                    return
                self._load(manifest, at, rows, begun)
            except BackendError as error:
                if not is_full(error):
                    raise
                # The state at a checkpoint is nothing to keep above an index that is at none: all of it, or nothing.
                self._left.append(self._storage)
                self._storage = MemoryIndex(TABLES)

    def _load(self, manifest: Manifest, at: int, rows: Sequence[Rows], begun: bytes | None) -> None:
        def body(tables: Tables) -> None:
            if head_of(tables).seq or tables.get(META, _REPLAY) is not None or tables.get(META, _LOADING) != begun:
                return  # somebody else was faster
            for table, pairs in rows:
                for key, value in pairs:
                    # The head stands for all the rest: it gets its place last.
                    tables.put(table, _HEAD if table == META and key == HEAD_KEY else key, value)
            if at + 1 < len(manifest.sizes):
                tables.put(META, _LOADING, encode_row((manifest.key, at + 1)))
                return
            head = tables.get(META, _HEAD)
            if head is None:
                raise IntegrityError(f"checkpoint {manifest.key} has no head", hint="casstore index rebuild")
            tables.put(META, HEAD_KEY, head)
            tables.delete(META, _HEAD)
            tables.delete(META, _LOADING)

        self.folded = True
        self._storage.update(body)
        self._effect("index-commit")

    def _forget(self) -> None:
        """Empty the view, to be made from the log alone."""

        def body(tables: Tables) -> bool:
            if head_of(tables).seq or tables.get(META, _LOADING) is not None:
                return False
            tables.put(META, _REPLAY, b"")
            return True

        while True:
            try:
                self._storage.reset()
            except IndexDamagedError as error:
                self._discard(error.generation)
            if self._storage.update(body):
                return

    def fold(self, batch: Sequence[tuple[Segment, bytes]], ahead: Ahead | None = None) -> bool:
        """Apply segments that are in the log, skipping those another handle applied first.

        ``ahead``: what applying the one segment of the batch was found to change; used if nothing was written since.
        True if it was: then everything is as it was foreseen.
        """
        foreseen = False

        def body(tables: Tables) -> None:
            nonlocal foreseen
            foreseen = False
            if tables.get(META, _LOADING) is not None:
                return  # another handle has begun with a checkpoint
            if ahead is not None and tables.stamp == ahead.stamp:
                segment, chain = batch[0]
                if segment.seq == head_of(tables).seq + 1 and segment.previous == head_of(tables).chain:
                    for table, changes in ahead.changes.items():
                        tables.change(table, changes)
                    self._changed += len(ahead.changes.get(CHUNK, ()))
                    tables.put(META, HEAD_KEY, encode_row(replace(head_of(tables), chain=chain)))
                    foreseen = True
                    return
            for segment, chain in batch:
                if segment.seq == head_of(tables).seq + 1:
                    apply(tables, segment, chain)

        self.folded = True
        try:
            self._storage.update(body)
        except BackendError as error:
            if not is_full(error):
                raise
            # The log is the truth, so what has no room on the disk may as well be in memory.
            self._storage = SpillIndex(self._storage, _position_of)
            self._storage.update(body)
        self._reached = max(self._reached, batch[-1][0].seq)
        self._effect("index-commit")
        return foreseen

    def rebuild(self) -> Head:
        """Forget everything and fold the log in again, from its beginning: a checkpoint is not believed here.

        Raises `IntegrityError`, and keeps the view as it is, when the log cannot be read to its end: then the view
        may know more than can be made again.
        """
        last = 0
        for segment, _ in self._log.after(0):
            last = segment.seq  # reading proves it
        # Other threads go on meanwhile: they must not take the view that is being made for the state. Only a log that
        # was taken back on purpose ends before what was seen; one that goes on there has a hole, and a commit into it
        # would be the end of the store.
        seen = max(self._reached, self._seen())
        if last < seen:
            if self._log.read_raw(seen) is None:
                self._reached = last
            elif self._log.read_raw(last + 1) is None:
                raise IntegrityError(f"log segment {last + 1} is missing", hint="casstore fsck")
        self._forget()
        return self.refresh()

    def compact(self, share: float, *, least: int = 0) -> int:
        """Make the files of the view smaller if at least a share of them is free; returns by how many bytes.

        ``least``: bytes of files that are worth it. Not inside a `read`. Raises `BackendError`; the view is as it was
        then. One that turns out to be damaged is thrown away, for the next `read` to make again.
        """
        try:
            saved = self._storage.compact(share, least=least)
        except IndexDamagedError as error:
            self._discard(error.generation)
            return 0
        if saved:
            self._effect("index-commit")
        return saved

    def trim(self) -> int:
        """Make the files of the view smaller if this handle has written much of them; returns by how many bytes.

        A transaction copies the pages it changes, so a large one leaves as many free. To write all rows anew costs a
        fiftieth of what it costs to log as many: so it is done after logs that changed half of them, and only then.
        Not inside a `read`. Raises `BackendError`; the view is as it was then.
        """
        with self._storage.read() as tables:
            if not self._changed or 2 * self._changed < tables.count(CHUNK):
                return 0
        return self.compact(LOOSE, least=LOOSE_BYTES)

    def close(self) -> None:
        """Let go of the storage."""
        for storage in (self._storage, *self._left):
            storage.close()

    def read(self) -> AbstractContextManager[Tables]:
        """A consistent snapshot of the tables. Keep it short."""
        return _Reading(self)

    def _begin(self) -> tuple[AbstractContextManager[Tables], Tables]:
        """An open snapshot that is not older than what this handle has seen."""
        mended = False
        while True:
            # What other threads come to from here on may be newer than the snapshot.
            seen = self._reached
            try:
                reading = self._storage.read()
                tables = reading.__enter__()
                try:
                    # Inside a read of the same thread it is the same snapshot, whatever others have come to meanwhile.
                    if self._mine.depth or head_of(tables).seq >= seen:
                        return reading, tables
                except BaseException:
                    reading.__exit__(*sys.exc_info())
                    raise
                reading.__exit__(None, None, None)
            except IndexDamagedError as error:
                if mended or self._mine.depth:
                    raise
                mended = True
                self._discard(error.generation)
            # Another process is making the view again: what it has so far is the past, and may be none at all.
            if self.refresh().seq < min(seen, self._reached):
                raise IntegrityError(
                    f"the log ends before segment {seen}, seen earlier",
                    hint="if the log was restored from a copy on purpose: casstore index rebuild",
                )

    def update(self, body: Callable[[Tables], T]) -> T:
        """Change the tables behind the log's back: for tests that damage the view."""
        return self._storage.update(body)

    def note(self, body: Callable[[Tables], T]) -> T:
        """Change tables that are no part of the state, which whoever makes the view again leaves empty.

        Not inside a `read`. Raises `CasstoreError` if there is no room, or no such table.
        """
        try:
            return self._storage.update(body)
        except IndexDamagedError as error:
            self._discard(error.generation)
            self.refresh()
            raise

    # --- questions

    def head(self) -> Head:
        """The position of the view: never one before what this handle has seen."""
        with self.read() as tables:
            return head_of(tables)

    def _seen(self) -> int:
        try:
            return self._position().seq
        except IndexDamagedError:
            return 0

    def _position(self) -> Head:
        with self._storage.read() as tables:
            return head_of(tables)

    def outcome(self, txid: bytes) -> tuple[int, tuple[int, ...]] | None:
        """Segment and assigned numbers of a transaction that took effect, or None."""
        with self.read() as tables:
            row = tables.get(TXID, txid)
        return None if row is None else decode_row(row, tuple[int, tuple[int, ...]])

    def locate(self, digests: Sequence[bytes]) -> list[Location | None]:
        """Where chunks are. A view that turns out to be damaged is made again, once."""
        try:
            return self._locate(digests)
        except IndexDamagedError as error:
            self._discard(error.generation)
            self.refresh()
            return self._locate(digests)

    def _locate(self, digests: Sequence[bytes]) -> list[Location | None]:
        with self.read() as tables:
            rows = tables.get_many(CHUNK, digests)
        return [None if row is None else location_of_row(row) for row in rows]

    def known(self, digests: Sequence[bytes]) -> list[bool]:
        """Which digests may be relied on: indexed, and not known to be damaged or erased."""
        with self.read() as tables:
            sound = not tables.count(LOST)
            return [
                tables.get(CHUNK, digest) is not None and (sound or tables.get(LOST, digest) is None)
                for digest in digests
            ]

    def lost(self, digest: bytes) -> LostRow | None:
        """What became of bytes that are damaged or were erased on request; None for all others."""
        with self.read() as tables:
            row = tables.get(LOST, digest)
        return None if row is None else decode_row(row, LostRow)

    def policy(self) -> dict[str, object]:
        """Policy values that were set."""
        with self.read() as tables:
            return policy_values(tables)

    def pins(self) -> list[tuple[bytes, PinRow]]:
        """Pins that are held."""
        with self.read() as tables:
            return [(key, decode_row(row, PinRow)) for key, row in tables.scan(PIN)]


def _position_of(tables: Tables) -> int:
    """Where a view stands; -1: nowhere, while it begins with a checkpoint."""
    return -1 if tables.get(META, _LOADING) is not None else head_of(tables).seq


# --- questions on a snapshot ---------------------------------------------------------------------


def policy_values(tables: Tables) -> dict[str, object]:
    """Policy values that were set."""
    return {key.decode(): json.loads(value) for key, value in tables.scan(POLICY)}


def chunk_at(tables: Tables, digest: bytes) -> ChunkRow | None:
    """An indexed chunk."""
    row = tables.get(CHUNK, digest)
    return None if row is None else decode_chunk(row)


def children_of(tables: Tables, digest: bytes) -> list[bytes] | None:
    """Children of an indexed node; None if it is not one."""
    row = tables.get(NODE, digest)
    if row is None:
        return None
    width = len(digest)
    return [row[at : at + width] for at in range(0, len(row), width)]


def packs(tables: Tables) -> Iterator[tuple[bytes, PackRow]]:
    """Every pack the log knows."""
    for key, row in tables.scan(PACK):
        yield key, decode_row(row, PackRow)


def pack_at(tables: Tables, pack: bytes) -> PackRow | None:
    """A pack the log knows."""
    row = tables.get(PACK, pack)
    return None if row is None else decode_row(row, PackRow)


def unreferenced(tables: Tables) -> Iterator[bytes]:
    """The zero-count table."""
    for key, _ in tables.scan(ZERO):
        yield key


def collection_named(tables: Tables, name: str) -> CollectionRow | None:
    """A collection by its full name."""
    row = tables.get(COLLECTION, name.encode())
    return None if row is None else decode_row(row, CollectionRow)


def identifier_of(tables: Tables, name: str) -> int:
    """The id of the collection of a full name; if there is none, the one it will have if it is the next to be made."""
    row = collection_named(tables, name)
    return head_of(tables).collections + 1 if row is None else row.id


def collections(tables: Tables, prefix: str = "") -> Iterator[CollectionRow]:
    """Collections in name order."""
    for _, row in tables.scan(COLLECTION, prefix=prefix.encode()):
        yield decode_row(row, CollectionRow)


def collection_name(tables: Tables, identifier: int) -> str:
    """Full name of a collection."""
    row = tables.get(COLLECTION_NAME, u64(identifier))
    if row is None:
        raise IntegrityError(f"collection {identifier} has no name in the index", hint="casstore index rebuild")
    return row.decode()


def version_at(tables: Tables, collection: int, number: int) -> VersionRow | None:
    """A version in any state."""
    row = tables.get(VERSION, version_key(collection, number))
    return None if row is None else decode_row(row, VersionRow)


def versions(
    tables: Tables, collection: int | None = None, *, newest_first: bool = False, states: Sequence[VersionState] = ()
) -> Iterator[VersionRow]:
    """Versions of one collection or of all, in number order."""
    prefix = b"" if collection is None else u64(collection)
    for _, row in tables.scan(VERSION, prefix=prefix, reverse=newest_first):
        version = decode_row(row, VersionRow)
        if not states or version.state in states:
            yield version


def links_of(
    tables: Tables,
    version: VersionRow,
    states: Sequence[VersionState] = (VersionState.COMMITTED,),
    home: int | None = None,
) -> list[VersionRow]:
    """The links to a version that are in some states, by collection and number; with ``home`` those in a collection.

    None for a link. Time: O(links), O(links in the collection) with one.
    """
    rows = (version_at(tables, *place) for place in links_to(tables, version.collection, version.number, home))
    return [row for row in rows if row is not None and row.state in states]


def with_links(tables: Tables, rows: Iterable[VersionRow]) -> list[VersionRow]:
    """Some versions and the links that end with them, hidden ones too, each once: whose roots a purge lets go of."""
    found: dict[tuple[int, int], VersionRow] = {}
    for row in rows:
        for each in (row, *links_of(tables, row, KEPT)):
            found[each.collection, each.number] = each
    return list(found.values())


def with_root(tables: Tables, collection: int, root: bytes) -> Iterator[VersionRow]:
    """Versions of a collection that have some content, lowest first, trashed ones included."""
    for key, _ in tables.scan(ROOT, prefix=u64(collection) + root):
        found = version_at(tables, collection, int.from_bytes(key[-8:], "big"))
        if found is not None:
            yield found


def trashed(tables: Tables) -> Iterator[VersionRow]:
    """Versions in the trash."""
    for key, _ in tables.scan(TRASHED):
        found = version_at(tables, int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big"))
        if found is not None:
            yield found


def aliases(tables: Tables, collection: int) -> dict[str, int]:
    """Aliases of a collection."""
    return {key[8:].decode(): int.from_bytes(value, "big") for key, value in tables.scan(ALIAS, prefix=u64(collection))}


def alias_changes(tables: Tables, collection: int, alias: str | None = None) -> Iterator[AliasChange]:
    """History of the aliases of a collection, oldest first."""
    for _, row in tables.scan(ALIAS_LOG, prefix=u64(collection)):
        change = decode_row(row, AliasChange)
        if alias is None or change.alias == alias:
            yield change


def batch_at(tables: Tables, collection: str, batch: str) -> BatchRow | None:
    """A batch of a collection by its name, in any state."""
    row = tables.get(BATCH, batch_key(collection, batch))
    return None if row is None else decode_row(row, BatchRow)


def batches_called(tables: Tables, batch: str) -> Iterator[BatchRow]:
    """Batches with an id, of whatever collection, in any state. Time: O(batches there ever were)."""
    for _, row in tables.scan(BATCH):
        found = decode_row(row, BatchRow)
        if found.batch == batch:
            yield found


def parts_of(tables: Tables, batch: BatchRow) -> list[PartRow]:
    """Parts of a batch by name; none once it is finished or aborted."""
    rows = (decode_row(row, PartRow) for _, row in tables.scan(PART, prefix=batch_key(batch.name, batch.batch)))
    return sorted(rows, key=lambda part: part.name)


def open_batches(tables: Tables) -> Iterator[BatchRow]:
    """Batches that are under way, in no order. Time: O(their parts)."""
    before = b""
    for key, _ in tables.scan(PART):
        batch = key[:_BATCH_KEY]
        if batch != before:
            before = batch
            row = tables.get(BATCH, batch)
            assert row is not None
            yield decode_row(row, BatchRow)


_BATCH_KEY = len(batch_key("", ""))
"""bytes of the key of a part that are that of its batch"""
