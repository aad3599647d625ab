"""`LmdbIndex`: tables in LMDB for the threads of a process, its forks and the other processes of the host."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import lmdb

from casstore.config import process_id
from casstore.errors import BackendError, InvalidInputError, ReadOnlyError
from casstore.index.environment import (
    WAIT_SECONDS,
    Generation,
    GoneError,
    RemapError,
    Transaction,
    live,
    open_generation,
)
from casstore.index.files import DAMAGE, ENGINE, highest, publish, tidy, translated
from casstore.index.tables import IndexDamagedError, T
from casstore.overlay import Tables

ATTEMPTS = 100
SMALL = 256 * 1024
"""bytes of an index that is never compacted"""


class _Mine(threading.local):
    """What one thread has open."""

    depth = 0
    writing = False
    tables: Transaction | None = None
    generation: Generation | None = None


class _Shared:
    """The one environment this process has open for a directory, counted by handles."""

    def __init__(self, root: Path, boot: str, map_bytes: int) -> None:
        self.root = root
        self.boot = boot
        self.map_bytes = map_bytes
        self.tables: set[str] = set()
        self.references = 0
        self.gone = False
        self.writes = False
        self.pid = process_id()
        self.mine = _Mine()
        self.writer = threading.Lock()
        self.generation: Generation | None = None

    def acquire(self) -> Generation:
        """Become a holder of the generation that now counts."""
        while True:
            generation = self.generation
            if generation is not None and generation.enter():
                current = False
                try:
                    current = generation.current()
                finally:
                    if not current:
                        generation.leave()
                if current:
                    return generation
            self.reopen(generation)

    def reopen(self, old: Generation | None, *, create: bool = True) -> bool:
        """Open the generation that now counts, unless another thread did. True if it had to be made."""
        with _lock:
            if self.generation is not old:
                return False
            if self.gone:
                raise InvalidInputError("this index is closed")
            self.generation = None
            if old is not None:
                old.retire()
            fresh = False
            for _ in range(ATTEMPTS):
                number = highest(self.root)
                try:
                    if number and self._adopt(self.root / str(number), create=create):
                        return fresh
                except GoneError:
                    continue
                if not create:
                    raise BackendError("there is no usable index, and none may be made")
                fresh = publish(self.root, number + 1) or fresh
            raise BackendError(f"the index in {self.root} changes all the time")

    def _adopt(self, path: Path, *, create: bool) -> bool:
        found = open_generation(path, self.boot, self.map_bytes)
        if found is None:
            return False
        try:
            if not found.current():
                raise GoneError
            if not found.ensure(self.tables, create=create):
                raise BackendError("the index lacks tables, and none may be made")
            self.generation = found
            if create:
                tidy(self.root, found.number)
            return True
        except (*DAMAGE, IndexDamagedError):
            return False
        except lmdb.Error as error:
            if isinstance(error, (lmdb.MapFullError, lmdb.MapResizedError)):
                self.map_bytes *= 2
                raise GoneError from error
            raise translated(error) from error
        finally:
            if self.generation is not found:
                found.retire()


_lock = threading.RLock()
"""guards the registry and every opening; taken before a gate, never by a holder"""
_registry: dict[Path, _Shared] = {}
_paused: list[Generation] = []
_inherited: list[object] = []
"""what a forked child must neither use nor free: that would give back reader slots of the parent"""


def _before_fork() -> None:
    # py-lmdb opens no file a second time before the first environment is closed, and to close it in the child is
    # harmless only if it has no transaction. So a fork waits, for a while, until other threads have ended theirs.
    if _lock.acquire(timeout=WAIT_SECONDS):
        _paused.extend(generation for generation in list(live) if generation.pause(WAIT_SECONDS))
        for generation in _paused:
            slots = [] if generation.closed else generation.env.readers().splitlines()
            generation.idle = all(slot.split()[:1] != [str(process_id())] for slot in slots)
    else:
        _inherited.append(None)


def _after_fork_in_parent() -> None:
    for generation in _paused:
        generation.resume()
    _paused.clear()
    if _inherited[-1:] == [None]:
        _inherited.pop()
    else:
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - a thread that does not exist here may hold it
    _lock = threading.RLock()
    for generation in _paused:
        if generation.idle:
            generation.close()
    _inherited.extend(live)
    _inherited.extend(_registry.values())
    _registry.clear()
    live.clear()
    _paused.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class _Reading:
    """`LmdbIndex.read`. Not made of a generator: there are many."""

    __slots__ = ("_shared", "_tables", "_use")

    def __init__(self, use: Callable[[], _Shared]) -> None:
        self._use = use
        self._shared: _Shared | None = None
        self._tables: Transaction | None = None

    def __enter__(self) -> Transaction:
        shared = self._use()
        mine = shared.mine
        if mine.writing:
            raise RuntimeError("read() inside update() would not see its changes: use the tables of the body")
        while mine.tables is None:
            mine.generation = generation = shared.acquire()
            try:
                mine.tables = generation.begin(write=False)
            except RemapError as need:
                generation.leave()
                generation.remap(need.size)
            except BaseException:
                generation.leave()
                raise
        mine.depth += 1
        self._shared, self._tables = shared, mine.tables
        return mine.tables

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shared, self._shared = self._shared, None
        tables, self._tables = self._tables, None
        if shared is None or tables is None:
            return
        mine = shared.mine
        mine.depth -= 1
        if shared.pid != process_id():
            _inherited.append(tables)
        elif mine.depth == 0 and mine.generation is not None:
            mine.tables = None
            tables.end()
            mine.generation.leave()


class LmdbIndex:
    """Tables in LMDB. Thread-safe, shared by processes; the child of a fork reopens by itself.

    Neither `read` nor `update` may be held over anything slow: the one keeps old pages and the size of the map, the
    other keeps every writer of the host waiting.
    """

    def __init__(self, root: Path, tables: Sequence[str], boot_id: str, map_bytes: int, *, read_only: bool) -> None:
        self.fresh = False
        """True when nothing usable was there"""
        self._root = root
        self._tables = frozenset(tables)
        self._boot = boot_id
        self._map_bytes = map_bytes
        self._read_only = read_only
        self._closed = False
        self._shared: _Shared | None = None

    @classmethod
    def open(
        cls, directory: Path, tables: Sequence[str], *, map_bytes: int, boot_id: str, read_only: bool = False
    ) -> LmdbIndex:
        """Open or create; not while this thread has a transaction of the same directory open.

        ``read_only`` makes nothing and discards nothing: `BackendError` unless a usable index is there and this
        process can register as a reader, which writes to its lock file.
        """
        index = cls(Path(os.path.realpath(directory)) / ENGINE, tables, boot_id, map_bytes, read_only=read_only)
        index._use()
        return index

    @classmethod
    def discard(cls, directory: Path, generation: int | None = None) -> None:
        """Put an empty generation in the place of the one that counts. Safe while others use it: they reopen.

        With ``generation`` only if that is still the one, so that of many who saw the damage one discards.
        """
        root = Path(os.path.realpath(directory)) / ENGINE
        number = highest(root)
        if number and generation in {None, number}:
            publish(root, number + 1)
            with contextlib.suppress(OSError):
                tidy(root, number + 1)

    def _use(self) -> _Shared:
        shared = self._shared
        if shared is not None and shared.pid == process_id():
            return shared
        with _lock:
            if self._closed:
                raise InvalidInputError("this index is closed")
            shared = _registry.get(self._root) or _Shared(self._root, self._boot, self._map_bytes)
            known = self._tables <= shared.tables
            shared.tables |= self._tables
            if shared.generation is None:
                self.fresh = shared.reopen(None, create=not self._read_only)
            elif not known:
                shared.generation.broken = True  # opened anew, with all tables
                shared.acquire().leave()
            _registry[self._root] = self._shared = shared
            shared.references += 1
            shared.writes = shared.writes or not self._read_only
            return shared

    def _read(self) -> _Reading:
        return _Reading(self._use)

    def read(self) -> AbstractContextManager[Tables]:
        """A consistent snapshot; a second one in the same thread is the same."""
        return _Reading(self._use)

    def update(self, body: Callable[[Tables], T]) -> T:
        """One write transaction: commits when ``body`` returns, aborts when it raises.

        ``body`` runs again from the start when the map has to grow or the index was discarded meanwhile. Inside a
        read or an update of the same thread it is a `RuntimeError`.
        """
        return self._update(body)

    def _update(self, body: Callable[[Transaction], T]) -> T:
        shared = self._use()
        if self._read_only:
            raise ReadOnlyError("the index was opened read-only")
        mine = shared.mine
        if mine.depth or mine.writing:
            raise RuntimeError("update() inside a read() or update() of the same thread")
        with shared.writer:
            while True:
                generation = shared.acquire()
                mine.writing = True
                try:
                    result = self._attempt(generation, body)
                    if generation.current():
                        return result
                    continue  # discarded before the commit: what was written is gone
                except RemapError as need:
                    size = need.size
                finally:
                    mine.writing = False
                    generation.leave()
                generation.remap(size)

    @staticmethod
    def _attempt(generation: Generation, body: Callable[[Transaction], T]) -> T:
        process = process_id()
        tables = generation.begin(write=True)
        try:
            generation.unmark()
            result = body(tables)
            if process != process_id():
                raise RuntimeError("forked inside an update: the parent commits")
            tables.commit()
        except BaseException as error:
            if process != process_id():
                _inherited.append(tables)
                raise
            tables.end()
            if isinstance(tables.failed, RemapError) and isinstance(error, Exception):
                raise tables.failed from None
            raise
        return result

    def reset(self) -> None:
        """Empty every table, in one transaction."""
        self._update(lambda tables: tables.clear())

    def compact(self, share: float, *, least: int = 0) -> int:
        """Put a copy without free pages in the place of the file if at least a share of it is free; bytes saved.

        ``least``: bytes of a file that is worth it. Safe while others use the index: its writers wait, and everybody
        reopens. Not inside a read or an update of the same thread. Needs room for the copy; without it, raises
        `BackendError` and all is as it was.
        """
        shared = self._use()
        least = max(least, SMALL)
        if self._read_only or shared.mine.depth or shared.mine.writing:
            return 0
        with self._read() as seen:  # mostly the answer is no, and no writer waits for it
            if seen.extent() < least or seen.unused() < share * seen.extent():
                return 0
        with shared.writer:
            while True:
                generation = shared.acquire()
                try:
                    return self._copy(shared, generation, share)
                except RemapError as need:
                    size = need.size
                finally:
                    generation.leave()
                generation.remap(size)

    @staticmethod
    def _copy(shared: _Shared, generation: Generation, share: float) -> int:
        tables = generation.begin(write=True)
        try:
            with tables:
                handle = tables.handle
                before = generation.extent()
                if generation.slack(handle) < share * before or not generation.current():
                    return 0
                published = publish(
                    shared.root,
                    generation.number + 1,
                    lambda env: generation.copy_into(env, handle),
                    map_bytes=max(shared.map_bytes, int(generation.env.info()["map_size"])),
                    boot=shared.boot,
                )
        finally:
            tables.end()
        if not published:
            return 0
        with contextlib.suppress(OSError):
            tidy(shared.root, generation.number + 1)
            return before - os.path.getsize(shared.root / str(generation.number + 1) / "data.mdb")
        return 0

    def bytes_used(self) -> int:
        """Bytes of the file that hold, or have held, pages."""
        with self._read() as tables:
            return tables.extent()

    def close(self) -> None:
        """Let go; closing twice is fine. The last handle of the process leaves a clean marker."""
        with _lock:
            shared, self._shared, self._closed = self._shared, None, True
            if shared is None or shared.pid != process_id():
                return
            shared.references -= 1
            if shared.references == 0:
                shared.gone = True
                del _registry[self._root]
                generation, shared.generation = shared.generation, None
                if generation is not None:
                    if shared.writes and not generation.broken:
                        generation.mark_clean()
                    generation.retire()
