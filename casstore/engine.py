"""The open parts of one store, and the one commit path.

Nothing here knows what files or artifacts are. Everything that changes the store goes through
`Engine.commit`: refresh the view, let the caller build its records on the state at the head, put the segment
behind that head, and learn from the replayed log what became of it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

from casstore import authority
from casstore.authority import Question
from casstore.backend import Backend, Recalls, create_all
from casstore.backend.hold import Hold, enter, sessions_of
from casstore.backend.osops import OsOps
from casstore.checkpoint import Checkpoints
from casstore.chunks import ChunkReader
from casstore.codec import ZstdCodec
from casstore.config import Runtime, Settings, StoreConfig, from_micros
from casstore.digest import Digest, hash_function
from casstore.errors import (
    AlreadyExistsError,
    BackendError,
    CasstoreError,
    ConflictError,
    InvalidInputError,
    ReadOnlyError,
    RefusedError,
    StoreBusyError,
)
from casstore.format.layout import pack_key
from casstore.format.nodes import Node, decode_node
from casstore.grouping import Gathering
from casstore.index import Storage
from casstore.log import Log
from casstore.model import Drop, Erase, Quarantine, Record, Segment, Transaction
from casstore.overlay import Overlay, Tables
from casstore.parcels import Load, Parcel, load
from casstore.state import PACK, advance, apply_transaction, head_of
from casstore.values import dataclass
from casstore.view import Ahead, View

Build = Callable[[Tables], Sequence[Record]]

REMEMBERED_SEGMENTS = 1024
NODE_CACHE = 512


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction that took effect."""

    seq: int
    numbers: tuple[int, ...]


Observer = Callable[[int, int, Transaction], None]
"""called with what took effect: the position of its segment, the time that claims, the transaction. Never raises"""


class _Unanswered(Exception):
    """A transaction is to be asked about first: outside of locks and snapshots, in the thread that wants it."""

    def __init__(self, questions: Sequence[Question]) -> None:
        super().__init__()
        self.questions = questions


@dataclass(slots=True)
class _Request:
    build: Build
    packs_since: int | None
    txid: bytes
    allowed: set[Question] | None
    """what the answer to was yes so far, of all that are committed together; None: nobody need be asked"""
    parcel: Parcel | None = None
    foreseen: Committed | None = None
    """what becomes of it, as long as nobody else is first"""
    gate: threading.Lock | None = None
    """see `Gathering`"""
    transaction: Transaction | None = None
    at: int = 0
    done: bool = False
    result: Committed | None = None
    error: BaseException | None = None

    def finish(self, result: Committed | None = None, error: BaseException | None = None) -> None:
        self.result, self.error, self.done = result, error, True


class CondemnedError(Exception):
    """A collector has taken a pack of the group for an orphan: its chunks need another."""


@dataclass(slots=True)
class _Group:
    """Requests that are committed together, and the packs with what those of them store that left it to the group."""

    requests: list[_Request]
    load: Load | None = None


def _threads(number: int) -> Executor:
    return ThreadPoolExecutor(number, thread_name_prefix="casstore")


class Engine:
    """Backend, log, view and chunks of one open store. Thread-safe."""

    def __init__(
        self,
        backend: Backend,
        config: StoreConfig,
        storage: Storage,
        runtime: Runtime,
        settings: Settings,
        ops: OsOps,
        *,
        discard: Callable[[int | None], None] = lambda _: None,
        read_only: bool = False,
    ) -> None:
        self.backend = backend
        self.config = config
        self.runtime = runtime
        self.settings = settings
        self.ops = ops
        self.read_only = read_only
        self.place: str | None = None
        """the directory the store is in, if it is on a local file system"""
        self.codec = ZstdCodec(settings.zstd_level, planes=config.planes)
        self.plain_codec = ZstdCodec(settings.zstd_level)
        """writes what any version reads: for the log, checkpoints and bundles"""
        self.hash = hash_function(config.digest)
        self.sessions = sessions_of(backend)
        self.log = Log(backend, self.plain_codec)
        self.checkpoints = Checkpoints(backend, self.plain_codec, runtime.random_bytes)
        self.view = View(storage, self.log, ops.effect, discard, self.checkpoints)
        self.reader = ChunkReader(
            backend, self.codec, self.hash, self.view.locate, self.view.refresh, self.executor, self._fate
        )
        self.observers: list[Observer] = []
        """who is told of the transactions of this handle, once they are durable"""
        self.abandoned: list[bytes] = []
        """pins whose holder went away without saying so; released by the next commit"""
        self._nodes: dict[bytes, Node] = {}
        self._dropped: dict[int, frozenset[bytes]] = {}
        self._durable = 0
        """segments up to this one are known to survive a power cut"""
        self._executor: Executor | None = None
        self._start()
        _engines.add(self)

    def _start(self) -> None:
        """What belongs to one process: its locks, threads, queue and name."""
        self.writer_id = f"{self.runtime.writer}:{self.runtime.random_bytes(4).hex()}"
        self._executor = None
        self._executor_lock = threading.Lock()
        self._held: dict[str, weakref.ref[Hold]] = {}
        self._gathering = Gathering(self._commit_group, self.runtime.monotonic)
        self.reader.restart()

    # --- parts

    def executor(self) -> Executor:
        """Worker threads, started on first use and ended by `close`."""
        with self._executor_lock:
            if self._executor is None:
                # One more than may be busy: one of them waits for the disk most of the time while a pack is published.
                make = self.runtime.executor or (lambda n: _threads(n + 1))
                self._executor = make(self.settings.workers)
            return self._executor

    def close(self) -> None:
        """End the worker threads and let go of the view."""
        with self._executor_lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)
        try:
            if self.view.folded and not self.read_only:
                with suppress(CasstoreError):
                    self.view.trim()
                # A view that is closed well is believed after a power cut: the log must not end before it then.
                with suppress(CasstoreError):
                    self._make_durable(self.view.head().seq)
        finally:
            self.view.close()
        if isinstance(self.backend, Recalls):
            self.backend.recall()  # last, as a sync would wait for the disk until it has read all that

    def _fate(self, digest: bytes) -> str:
        lost = self.view.lost(digest)
        if lost is None or not lost.erased:
            return "in no pack"
        return f"gone: erased on {from_micros(lost.at):%Y-%m-%d} ({lost.reason})"

    def digest(self, value: bytes) -> Digest:
        """A digest of this store, named for the outside."""
        return Digest(self.config.digest, value)

    def parse_digest(self, text: str) -> bytes:
        """The digest of this store that a text like ``blake3:…`` says. Raises `InvalidInputError`."""
        digest = Digest.parse(text)
        if digest.algorithm != self.config.digest:
            raise InvalidInputError(f"this store names content by {self.config.digest}, not {digest.algorithm}")
        return digest.value

    def node(self, digest: bytes) -> Node:
        """A decoded tree node. Raises `IntegrityError`."""
        node = self._nodes.get(digest)
        if node is None:
            node = decode_node(self.reader.get(digest), f"node {digest.hex()}")
            if len(self._nodes) >= NODE_CACHE:
                self._nodes.clear()
            self._nodes[digest] = node
        return node

    def new_pack(self) -> bytes:
        """A pack name: 128 random bits, never used again (of two packs of a group the second has 120, see `load`)."""
        return self.runtime.random_bytes(16)

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` on a store opened read-only."""
        if self.read_only:
            raise ReadOnlyError("the store was opened read-only", hint="open it without read_only=True")

    def hold(self, doing: str, *, exclusive: bool = False) -> Hold:
        """Be at work in the store, so that an offline collector keeps out, or alone, as one; see `enter`.

        Sessions wait `Settings.busy_seconds`; who wants to be alone does not. Raises `StoreBusyError`.
        """
        if exclusive:
            return enter(self.sessions, self.runtime, doing, exclusive=True)
        # Sessions at the same time share one, which ends when the last of them has let go of it.
        shared = self._held[doing]() if doing in self._held else None
        if shared is None:
            shared = enter(self.sessions, self.runtime, doing, busy_seconds=self.settings.busy_seconds)
            self._held[doing] = weakref.ref(shared)
        kept = [shared]
        return Hold(kept.clear, kept.clear)

    # --- the commit path

    def commit(
        self, build: Build, *, packs_since: int | None = None, asked: bool = False, parcel: Parcel | None = None
    ) -> Committed | None:
        """Commit the records that ``build`` makes of the state at the head. Durable on return.

        ``build`` runs on a snapshot that stands exactly where the segment will, and again whenever another
        writer came first; it must not do I/O. It may raise, which commits nothing, or return no records, in
        which case the result is None. ``packs_since`` is the position known when the oldest pack it adds was
        uploaded. Requests of several threads may share a segment, each a transaction of its own. Whoever embeds the
        store is asked first whether the records may be (`authority`), unless ``asked``: that was done, or nobody but
        the store itself wants them. ``parcel``: chunks that are stored with it, in packs it may share with others;
        ``build`` puts `Parcel.packs` first. Nothing is stored if nothing comes of it.

        Raises `RefusedError` if they may not, `ConflictError` if the log voided the transaction, `StoreBusyError` after
        too many lost races, `BackendError` when the outcome could not be made durable.
        """
        return self.commit_all([build], packs_since=packs_since, asked=asked, parcel=parcel)[0]

    def commit_all(
        self,
        builds: Sequence[Build],
        *,
        packs_since: int | None = None,
        asked: bool = False,
        parcel: Parcel | None = None,
    ) -> list[Committed | None]:
        """`commit` for several transactions at once, in one segment; each stands or falls alone.

        The first error of any of them is raised when all are done. ``parcel``: that of the first one.
        """
        self.check_writable()
        allowed: set[Question] | None = None if asked or authority.is_open(self.runtime) else set()
        requests = [_Request(build, packs_since, self.runtime.random_bytes(16), allowed) for build in builds]
        if parcel is not None:
            requests[0].parcel = parcel
        waiting = requests
        while waiting:
            self._gathering.do(waiting)
            waiting = [request for request in waiting if self._answer(request)]
        self._tell(requests)
        for request in requests:
            if request.error is not None:
                raise request.error
        if any(request.result is None for request in requests):
            # Nothing had to be done because of what is in the log: that is what is acknowledged.
            self._make_durable(self.view.head().seq)
        return [request.result for request in requests]

    def _answer(self, request: _Request) -> bool:
        """Ask what a request waits for; True if it can go on by that."""
        if not isinstance(request.error, _Unanswered) or request.allowed is None:
            return False
        questions = [question for question in request.error.questions if question not in request.allowed]
        try:
            authority.ask(self.runtime, questions)
        except RefusedError as error:
            request.error = error
            return False
        request.allowed.update(questions)
        request.error, request.done = None, False
        return True

    def _tell(self, requests: Sequence[_Request]) -> None:
        """Tell who listens what took effect, in the thread that wanted it and outside of every lock."""
        for request in requests if self.observers else ():
            if request.result is not None and request.transaction is not None:
                for observer in tuple(self.observers):
                    observer(request.result.seq, request.at, request.transaction)

    def _make_durable(self, seq: int) -> None:
        """Make segments up to a position durable: they can be seen before their author has synced their names."""
        if self._durable < seq:
            self.log.barrier()
            self._durable = seq

    def _commit_group(self, requests: list[_Request]) -> None:
        group = _Group(requests)
        try:
            for attempt in range(self.settings.commit_attempts):
                if self._attempt(group):
                    return
                # Somebody else was first. Waiting a random while spreads contenders out.
                if attempt:
                    self.runtime.sleep(self.runtime.jitter() * min(0.05, 0.002 * attempt))
            raise StoreBusyError(
                f"the commit lost {self.settings.commit_attempts} races", hint="try again when fewer writers are busy"
            )
        except BaseException as error:
            for request in requests:
                if not request.done:
                    request.finish(error=error)
            if not isinstance(error, CasstoreError):
                raise
        finally:
            self._discard(group)

    def _attempt(self, group: _Group) -> bool:
        """One try: True when every request of the group is done."""
        self.view.keep_up()
        try:
            segment, pending, ahead = self._prepared(group)
        except CondemnedError:
            self._discard(group)
            return False
        if not pending:
            return True
        if not self._stored(group, pending):
            return all(request.done for request in group.requests)
        # The segment before ours may be another's and not durable yet: ours must not outlive it.
        self._make_durable(segment.seq - 1)
        if group.load is not None:
            group.load.exposed = True
        try:
            chain = self.log.create(segment)
        except AlreadyExistsError:
            if not self._is_ours(segment):
                if group.load is not None:
                    group.load.exposed = False
                return False
            self.log.barrier()
            self.view.refresh()
            foreseen = False
        except BackendError as error:
            # The answer is lost, not necessarily the segment: the slot itself tells (icechunk 017).
            if not self._is_ours(segment):
                raise
            self._settle(error)
            self.view.refresh()
            foreseen = False
        else:
            foreseen = self.view.fold([(segment, chain)], ahead)
        self._durable = segment.seq
        self._remember(segment)
        if foreseen:
            # The segment was applied to the very tables it was built on: what came of it then came of it now.
            for request in pending:
                request.finish(request.foreseen)
            return True
        with self.view.read():  # one snapshot for all
            for request in pending:
                self._learn(request, segment)
        return True

    # --- packs of a group

    def _prepared(self, group: _Group) -> tuple[Segment, list[_Request], Ahead | None]:
        """The segment to be, with packs that hold what its transactions need: sealed, perhaps not published yet."""
        self._load(group)
        built = self._build(group)
        if group.load is not None and not group.load.published:
            wanted = sum(request.parcel is not None for request in built[1])
            if wanted < len(group.load.parcels):
                # Nothing came of some of them: nothing of theirs is stored.
                self._load(group)
                if wanted:
                    built = self._build(group)
        return built

    def _load(self, group: _Group) -> None:
        """Seal what the requests leave to the group, unless it is in packs already."""
        if group.load is None or not group.load.published:
            parcels = [r.parcel for r in group.requests if r.parcel is not None and not r.done]
            made = load(parcels, self.codec, self.new_pack, self.config.frame_bytes) if parcels else None
            group.load = made

    def _stored(self, group: _Group, pending: Sequence[_Request]) -> bool:
        """Publish the packs of a group, if need be. False if that failed those who need them."""
        if group.load is None or group.load.published:
            return True
        try:
            group.load.published = True
            # One after the other: to ask another thread for one of them takes longer than it saves.
            create_all(self.backend, [(pack_key(pack.record.pack), pack.data()) for pack in group.load.packs])
        except CasstoreError as error:
            failure: CasstoreError = error
            if isinstance(error, AlreadyExistsError):
                # What has the name is another's, for all we know: not to be taken back.
                group.load.exposed = True
                failure = CasstoreError(f"a pack name was drawn twice: {error}")
            for request in pending:
                if request.parcel is not None:
                    request.finish(error=failure)
            self._discard(group)
            return False
        return True

    def _discard(self, group: _Group) -> None:
        """Take packs back that no segment names. If one may, they are left to the collector."""
        made, group.load = group.load, None
        if made is not None and made.published and not made.exposed:
            for pack in made.records:
                with suppress(CasstoreError):
                    self.backend.delete(pack_key(pack.pack))

    def _build(self, group: _Group) -> tuple[Segment, list[_Request], Ahead | None]:
        with self.view.read() as tables:
            requests = [request for request in group.requests if not request.done]
            since = min((r.packs_since for r in requests if r.packs_since is not None), default=None)
            overlay, segment = self._ahead(tables, since)
            packs = () if group.load is None else group.load.records
            if any(tables.get(PACK, pack.pack) is not None for pack in packs):
                raise CondemnedError
            transactions: list[Transaction] = []
            pending: list[_Request] = []
            for request in requests:
                parcel = request.parcel
                try:
                    if parcel is not None:
                        parcel.packs = packs
                    records = tuple(request.build(overlay))
                    if not records:
                        request.finish()
                        continue
                    if request.allowed is not None:
                        unanswered = [q for q in authority.questions(records) if q not in request.allowed]
                        if unanswered:
                            raise _Unanswered(unanswered)
                    transaction = Transaction(request.txid, records)
                    applied = apply_transaction(overlay, segment, transaction)
                    if applied.void:
                        raise ConflictError(f"the change is not valid any more: {applied.void}", hint="try again")
                    request.foreseen = Committed(applied.seq, applied.numbers)
                except Exception as error:  # noqa: BLE001 - it belongs to the thread that asked
                    request.finish(error=error)
                    continue
                if parcel is not None:
                    packs = ()  # the first that takes effect brings them for all
                transactions.append(transaction)
                pending.append(request)
                request.transaction, request.at = transaction, segment.claimed
            ahead = None if tables.stamp is None else Ahead(tables.stamp, overlay.changes)
        return replace(segment, transactions=tuple(transactions)), pending, ahead

    def _ahead(self, tables: Tables, since: int | None) -> tuple[Overlay, Segment]:
        """The state as the next segment, claimed now, would find it; and that segment, still empty."""
        head = head_of(tables)
        claimed = self.runtime.now()
        segment = Segment(
            head.seq + 1, head.chain, head.seq, head.seq if since is None else since, self.writer_id, claimed, ()
        )
        overlay = Overlay(tables)
        advance(overlay, segment, head.chain)
        return overlay, segment

    @contextmanager
    def foresee(self, build: Build) -> Iterator[Tables]:
        """The state at the head as it would be if what ``build`` returns were committed now. Commits nothing."""
        self.view.refresh()
        with self.view.read() as tables:
            overlay, segment = self._ahead(tables, None)
            records = tuple(build(overlay))
            if records:
                apply_transaction(overlay, segment, Transaction(bytes(16), records))
            yield overlay

    def _is_ours(self, segment: Segment) -> bool:
        found = self.log.read(segment.seq)
        return found is not None and found[0].transactions == segment.transactions

    def _settle(self, error: BackendError) -> None:
        """The segment is there although creating it failed: make it durable or say that it may not be."""
        try:
            self.log.barrier()
        except BackendError:
            raise error from None

    def _learn(self, request: _Request, segment: Segment) -> None:
        outcome = self.view.outcome(request.txid)
        if outcome is None:
            request.finish(
                error=ConflictError(f"segment {segment.seq} was voided when it was applied", hint="casstore fsck")
            )
        else:
            request.finish(Committed(*outcome))

    # --- what happened meanwhile

    def dropped_between(self, base: int, head: int) -> set[bytes] | None:
        """Digests that segments base+1 … head dropped or found lost; None when that is too long ago to tell cheaply."""
        if head - base > REMEMBERED_SEGMENTS:
            return None
        dropped: set[bytes] = set()
        for seq in range(base + 1, head + 1):
            known = self._dropped.get(seq)
            if known is None:
                found = self.log.read(seq)
                if found is None:
                    return None
                known = self._remember(found[0])
            dropped |= known
        return dropped

    def _remember(self, segment: Segment) -> frozenset[bytes]:
        """Keep in mind what a segment of the log gave up, so that nobody reads it for that."""
        known = frozenset(
            digest
            for transaction in segment.transactions
            for record in transaction.records
            for digest in _given_up(record)
        )
        if len(self._dropped) > REMEMBERED_SEGMENTS:
            self._dropped.clear()
        self._dropped[segment.seq] = known
        return known


def _given_up(record: Record) -> tuple[bytes, ...]:
    match record:
        case Drop() | Erase():
            return record.digests
        case Quarantine():
            return (record.digest,)
    return ()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    """The child has the parent's memory but none of its threads, and must not share its name."""
    for engine in list(_engines):
        engine._start()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork)
