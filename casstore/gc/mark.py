"""The second opinion: walk the tree nodes from every root, trusting bytes and not counts.

Three things are established about one position of the log, the *snapshot*:

- *Every reachable digest has a home*: a place in a pack that is live in the log and present in the backend; then no
  retired or condemned pack is needed.
- *The node table is right* for everything reachable: each node's bytes list the children its row does.
- *The counts agree* with the node table and the roots (`casstore.gc.counts`).

Memory: a `NodeSet`, below 1.6 bytes for each node (there are fewer nodes than chunks), and a constant.

Why a `NodeSet` is enough, which knows its members exactly and others not always: what is walked is a member. Roots
are those of versions and pins that were there at the snapshot; nodes below them were indexed there (I1), or rows are
missing, and then the counts do not agree, which the caller must look at before it relies on the walk. Every node walked
is looked up in the view besides. The one way to a stranger is a version that was brought back from its purge, after its
content had been collected and stored again, all since the snapshot: it might be taken for a member (1 in 60) that is
then not looked at.

Others go on meanwhile. A version that was purged since the snapshot may be collected under the walk; so what is
missing is held against the log: if it was dropped since, the walk starts over on a new snapshot, a few times. Skipping
it would not do: a drop is as good as the counts it was made on, and these are what is being checked. What no record
since the snapshot explains is damage, however many other commits there were. Versions committed since are not walked:
what they hold was in live packs when they were committed, and packs that end later are not deleted on this mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait

from casstore.backend.local import LocalBackend
from casstore.engine import Engine
from casstore.errors import CasstoreError, ChunkMissingError, FormatError, IntegrityError, NotFoundError, StoreBusyError
from casstore.format.layout import pack_key
from casstore.format.nodes import Node, decode_node
from casstore.format.rows import decode_row, pack_of_row
from casstore.gc.counts import Snapshot, take_snapshot
from casstore.gc.nodereading import Found, NodeSource, References, read_nodes, references
from casstore.model import KEPT, Drop, PackState, PinRow, Progress, VersionRow, no_progress
from casstore.overlay import Tables
from casstore.state import CHUNK, LOST, NODE, PIN, VERSION
from casstore.values import dataclass
from casstore.view import pack_at

BATCH = 64
"""nodes that are read together"""
IN_FLIGHT = 8
"""batches an executor has at a time"""
WAITING = 4 << 20
"""bytes of digests waiting to be walked above which nodes are expanded one at a time, so that it stays bounded"""
ROOTS = 1000
"""versions that are looked at in one transaction"""
RESTARTS = 5
LOOKS = 8
"""times one digest is looked up again because its pack ended meanwhile"""

_HINT = "nothing was deleted; casstore fsck, then casstore index rebuild"


@dataclass(frozen=True, slots=True)
class Marked:
    """What a mark found."""

    at: int
    nodes: int
    """distinct nodes that are reachable"""
    agrees: bool
    """the counts in the view are those of the trees"""


class OutdatedError(Exception):
    """What was reachable at the snapshot was dropped since."""


def mark(
    engine: Engine, present: set[bytes] | None, progress: Progress = no_progress, executor: Executor | None = None
) -> Marked:
    """Walk everything reachable at the head. ``present``: packs the backend listed; None skips that check.

    ``executor`` reads and decodes nodes: threads, processes, or any other that takes picklable tasks; one that fails
    costs time only. Without one, or for a store in memory that other processes cannot reach, it is done here. What is
    found is the same, whatever the order.

    Raises `ChunkMissingError` when something reachable has no home, `IntegrityError` when a node is damaged: then
    nothing may be deleted. `StoreBusyError` if it was overtaken by purges and collections `RESTARTS` times.
    No transaction is held while the backend is read.
    """
    for _ in range(RESTARTS):
        engine.view.refresh()
        walk = None  # two sets of nodes are not needed at a time
        try:
            with engine.view.read() as tables:
                walk = _Walk(engine, take_snapshot(tables), present, progress, executor)
            return walk.run()
        except OutdatedError:
            continue
    raise StoreBusyError(
        f"versions were purged and collected under the mark {RESTARTS} times; nothing was deleted",
        hint="casstore gc again when fewer collectors are busy",
    )


def agrees(engine: Engine) -> bool:
    """Whether the counts in the view are those of its nodes and roots. Walks nothing; see `casstore.gc.counts`."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return take_snapshot(tables).agrees


def check_reachable(engine: Engine, roots: Iterable[bytes]) -> None:
    """Walk the trees below some roots. Raises `IntegrityError` when something in them has no home."""
    homes = Homes(engine, None)
    homes.check(tuple(roots))
    for _, node in walk_nodes(engine, roots, set()):
        homes.check(node.references())


# --- homes ---------------------------------------------------------------------------------------


class LostError(Exception):
    """A digest is not indexed."""

    def __init__(self, digest: bytes) -> None:
        super().__init__(digest)
        self.digest = digest


class Homes:
    """Checks that digests are placed in live packs that exist."""

    def __init__(self, engine: Engine, present: set[bytes] | None) -> None:
        self.engine = engine
        self.present = present
        self.good: set[bytes] = set()

    def check(self, digests: Iterable[bytes]) -> None:
        """Raise `ChunkMissingError` unless all have a home at the head."""
        wanted = list(digests)
        for again in (True, False):
            try:
                self.find(wanted)
                return
            except LostError as lost:
                if not again:
                    raise no_home(lost.digest, "it is not indexed") from None
            except OutdatedError:
                if not again:
                    raise StoreBusyError("packs move faster than they can be looked for", hint="try again") from None
            self.engine.view.refresh()

    def find(self, digests: Iterable[bytes]) -> None:
        """Raise `ChunkMissingError` unless all have a home, `LostError` for one that is not indexed.

        Digests known to be damaged or erased need none. A pack that is not there is missing only if the log, read after
        it was looked for, still says that it is live: a retirement is in the log before its pack is deleted.
        """
        wanted = list(digests)
        for _ in range(LOOKS):
            gone: set[bytes] = set()
            doubtful = self._look(wanted, gone)
            gone.update(pack for pack in doubtful if not self._exists(pack))
            self.good.update(doubtful.keys() - gone)
            if not gone:
                return
            self.engine.view.refresh()
            wanted = [digest for pack in gone for digest in doubtful[pack]]
            self._look(wanted, gone)
        raise OutdatedError

    def _look(self, digests: Iterable[bytes], gone: set[bytes]) -> dict[bytes, list[bytes]]:
        """Packs that have yet to be looked for, and what is in them. ``gone``: packs that were not there."""
        doubtful: dict[bytes, list[bytes]] = {}
        with self.engine.view.read() as tables:
            excused = tables.count(LOST) > 0
            wanted = list(digests)
            for digest, row in zip(wanted, tables.get_many(CHUNK, wanted), strict=True):
                if row is None:
                    raise LostError(digest)
                pack = pack_of_row(row)
                if pack in self.good or (excused and tables.get(LOST, digest) is not None):
                    continue
                if pack in doubtful:
                    doubtful[pack].append(digest)
                    continue
                found = pack_at(tables, pack)
                if found is None or found.state is not PackState.LIVE:
                    raise no_home(digest, f"its pack {pack.hex()} is not live")
                if pack in gone:
                    raise no_home(digest, f"its pack {pack.hex()} is gone")
                if self.present is None or pack in self.present:
                    self.good.add(pack)
                else:
                    doubtful[pack] = [digest]
        return doubtful

    def _exists(self, pack: bytes) -> bool:
        """A pack newer than the listing, or left out by it, is looked at itself."""
        try:
            self.engine.backend.stat(pack_key(pack))
        except NotFoundError:
            return False
        return True


def no_home(digest: bytes, why: str) -> ChunkMissingError:
    """The error for something that is needed and has no place."""
    return ChunkMissingError(f"{digest.hex()} is reachable and has no home: {why}", hint=_HINT, digest=digest.hex())


# --- the walk ------------------------------------------------------------------------------------


class _Walk:
    """One walk over one snapshot."""

    def __init__(
        self,
        engine: Engine,
        snapshot: Snapshot,
        present: set[bytes] | None,
        progress: Progress,
        executor: Executor | None,
    ) -> None:
        self.engine = engine
        self.at = snapshot.at
        self.agrees = snapshot.agrees
        self.nodes = snapshot.nodes
        self.homes = Homes(engine, present)
        self.progress = progress
        self.source = _source(engine)
        self.threads = isinstance(executor, ThreadPoolExecutor)
        self.executor = executor if self.threads or self.source is not None else None
        self.width = len(engine.hash(b""))
        self.frames: list[bytearray] = []
        """children of nodes that were read, not walked yet; those of one node together"""
        self.waiting = 0
        """bytes in them"""
        self.roots = self._roots()

    def run(self) -> Marked:
        """Raises `IntegrityError`, `OutdatedError`."""
        flight: dict[Future[list[Found]], list[bytes]] = {}
        try:
            while True:
                while len(flight) < IN_FLIGHT and (batch := self._next()):
                    task = self._submit(batch)
                    if task is None:
                        self._take(batch, self._read(batch))
                    else:
                        flight[task] = batch
                if not flight:
                    break
                for task in wait(flight, return_when=FIRST_COMPLETED).done:
                    batch = flight.pop(task)
                    self._take(batch, self._result(task, batch))
        finally:
            for task in flight:
                task.cancel()
        return Marked(self.at, self.nodes.seen, self.agrees)

    # --- what to walk

    def _roots(self) -> Iterator[bytes]:
        """The roots of the snapshot that still are, a few at a time.

        Versions and pins made since are known by their position. Those purged since are not walked, whatever of them
        may be gone already.
        """
        for table, roots_of in ((VERSION, self._version_roots), (PIN, self._pin_roots)):
            start: bytes | None = b""
            while start is not None:
                roots: list[bytes] = []
                begin, start = start, None
                with self.engine.view.read() as tables:
                    for count, (key, row) in enumerate(tables.scan(table, start=begin)):
                        if count == ROOTS or len(roots) >= ROOTS:
                            start = key
                            break
                        roots += roots_of(row)
                yield from self._checked(roots)

    def _version_roots(self, row: bytes) -> tuple[bytes, ...]:
        version = decode_row(row, VersionRow)
        return (version.root,) if version.seq <= self.at and version.state in KEPT else ()

    def _pin_roots(self, row: bytes) -> tuple[bytes, ...]:
        pin = decode_row(row, PinRow)
        return pin.roots if pin.seq <= self.at else ()

    def _checked(self, roots: list[bytes]) -> list[bytes]:
        """Those of some roots that are nodes, all of which have a home."""
        roots = list(dict.fromkeys(roots))
        self._find(roots)
        with self.engine.view.read() as tables:
            return [root for root in roots if tables.get(NODE, root) is not None]

    def _next(self) -> list[bytes]:
        """Digests of nodes to be read now."""
        batch: list[bytes] = []
        while len(batch) < (BATCH if self.waiting < WAITING else 1):
            if self.frames:
                frame = self.frames[-1]
                digest = bytes(frame[-self.width :])
                del frame[-self.width :]
                self.waiting -= self.width
                if not frame:
                    self.frames.pop()
            else:
                found = next(self.roots, None)
                if found is None:
                    break
                digest = found
            try:
                new = self.nodes.add(digest)
            except KeyError:
                raise self._problem(digest, no_home(digest, "it is not indexed as a node")) from None
            if new:
                batch.append(digest)
        return batch

    # --- reading

    def _submit(self, batch: list[bytes]) -> Future[list[Found]] | None:
        """Hand nodes to the executor; None if they are to be read here."""
        if self.executor is None:
            return None
        try:
            if self.threads or self.source is None:
                return self.executor.submit(self._read, batch)
            places = self.engine.view.locate(batch)
            return self.executor.submit(read_nodes, self.source, list(zip(batch, places, strict=True)))
        except RuntimeError:
            self.executor = None  # it was shut down, or its processes have died
            return None

    def _result(self, task: Future[list[Found]], batch: list[bytes]) -> list[Found]:
        """What the executor found; where it found nothing, what is found here."""
        try:
            found = task.result()
        except CasstoreError:
            raise
        except Exception:  # noqa: BLE001 - whatever an executor may raise: its work can be done here
            self.executor = None
            return self._read(batch)
        again = [digest for digest, each in zip(batch, found, strict=True) if each is None]
        replaced = iter(self._read(again))
        return [next(replaced) if each is None else each for each in found]

    def _read(self, batch: list[bytes]) -> list[Found]:
        """Read nodes in this process. Of those known to be damaged the log tells the children."""
        known: dict[bytes, References] = {}
        with self.engine.view.read() as tables:
            if tables.count(LOST):
                known = {digest: _from_row(tables, digest) for digest in batch if tables.get(LOST, digest) is not None}
        fetched = self.engine.reader.fetch(digest for digest in batch if digest not in known)
        found: list[Found] = []
        for digest in batch:
            try:
                found.append(known[digest] if digest in known else references(digest, fetched.get(digest)))
            except FormatError as error:
                found.append(IntegrityError(error.message, hint="casstore fsck"))
            except IntegrityError as error:
                found.append(error)
        return found

    # --- judging

    def _take(self, batch: list[bytes], found: list[Found]) -> None:
        """Judge nodes that were read, and put their children on the heap of what is to be walked."""
        held: dict[bytes, None] = {}
        good: list[tuple[bytes, References]] = []
        for digest, each in zip(batch, found, strict=True):
            assert each is not None
            if isinstance(each, IntegrityError):
                raise self._problem(digest, each)
            good.append((digest, each))
            held.update(dict.fromkeys(each.split(self.width)))
            if each.nodes:
                self.frames.append(bytearray(each.nodes))
                self.waiting += len(each.nodes)
        self._find(held)
        wrong: list[bytes] = []
        with self.engine.view.read() as tables:
            for digest, each in good:
                row = tables.get(NODE, digest)
                if row is None or not each.same(row, self.width):
                    wrong.append(digest)
        for digest in wrong:
            what = f"the index has other children of node {digest.hex()} than the node itself"
            raise self._problem(digest, IntegrityError(what, hint=_HINT, digest=digest.hex()))
        self.progress("mark", self.nodes.seen, 0)

    def _find(self, digests: Iterable[bytes]) -> None:
        try:
            self.homes.find(digests)
        except LostError as lost:
            raise self._problem(lost.digest, no_home(lost.digest, "it is not indexed")) from None

    def _problem(self, digest: bytes, error: IntegrityError) -> Exception:
        """What to raise: the error, unless the digest was dropped since the snapshot."""
        return OutdatedError() if dropped_since(self.engine, self.at, digest) else error


def dropped_since(engine: Engine, at: int, digest: bytes) -> bool:
    """Whether a digest was forgotten by a transaction that took effect after a position.

    Also True when the log does not reach back that far.
    """
    reached = at
    for segment, _ in engine.log.after(at):
        reached = segment.seq
        for transaction in segment.transactions:
            drops = (record for record in transaction.records if isinstance(record, Drop))
            if any(digest in record.digests for record in drops):
                engine.view.refresh()
                outcome = engine.view.outcome(transaction.txid)
                if outcome is not None and outcome[0] == segment.seq:
                    return True
    return reached == at and engine.view.head().seq > at


def _from_row(tables: Tables, digest: bytes) -> References:
    """What the log says of a node."""
    row = tables.get(NODE, digest) or b""
    width = len(digest)
    children = (row[at : at + width] for at in range(0, len(row), width))
    return References(b"".join(child for child in children if tables.get(NODE, child) is not None), row)


def _source(engine: Engine) -> NodeSource | None:
    """How other processes find the store; None if they cannot."""
    if not isinstance(engine.backend, LocalBackend):
        return None
    return NodeSource(str(engine.backend.root), engine.config.digest)


# --- one tree ------------------------------------------------------------------------------------


def walk_nodes(
    engine: Engine, roots: Iterable[bytes], seen: set[bytes], progress: Progress = no_progress
) -> Iterator[tuple[bytes, Node]]:
    """Every distinct node below some roots that is not in ``seen`` yet, which it is added to.

    Raises the `IntegrityError` of the first node that cannot be read. Memory: a digest for each node.
    """
    queue: list[bytes] = []

    def push(digests: Iterable[bytes]) -> None:
        for digest in digests:
            if digest not in seen:
                seen.add(digest)
                queue.append(digest)

    push(roots)
    while queue:
        batch, queue[:] = queue[-BATCH:], queue[:-BATCH]
        fetched = engine.reader.fetch(batch)
        for digest in batch:
            node = decode_node(fetched.get(digest), f"node {digest.hex()}")
            push(node.subtrees())
            push(_twins(engine, node))
            yield digest, node
        progress("mark", len(seen), 0)


def _twins(engine: Engine, node: Node) -> list[bytes]:
    """Chunks of files that have the very bytes of a node that is indexed: what holds them holds its children too."""
    with engine.view.read() as tables:
        return [digest for digest in node.data() if tables.get(NODE, digest) is not None]
