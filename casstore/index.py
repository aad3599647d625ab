"""Named, ordered tables of bytes with transactions: in LMDB, shared by the processes of a host, or in memory.

An index is a *view*: all it holds can be made again, so nothing here repairs. What cannot be trusted is left behind
and an empty generation takes its place: ``<directory>/lmdb-v1/<generation>/{data.mdb, lock.mdb, boot, clean, users}``,
the highest number counts. A generation appears by renaming a finished directory to the next number, which fails if
there is one; files that others may have mapped are never shortened, only unlinked. Every transaction begins with two
``stat`` calls that tell whether its generation is still the one. A page damaged *while in use* is mostly, not always,
reported: LMDB may fail an assertion, which ends the process.

Never open ``lock.mdb`` here: closing any descriptor of it drops LMDB's fcntl locks for the whole process.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import importlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import lmdb

from casstore.config import MIB, process_id
from casstore.errors import BackendError, CasstoreError, IntegrityError, InvalidInputError, LimitError, ReadOnlyError

T = TypeVar("T")

KEY_BYTES = 511
MAX_READERS = 2048
MAX_TABLES = 128
VERIFY_BYTES = MIB
"""up to this size the structure is checked at every opening (20 ms a MiB); above, once after each restart"""
WAIT_SECONDS = 5.0
ATTEMPTS = 100

_DAMAGE = (
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
    lmdb.IncompatibleError,
    lmdb.BadTxnError,  # as the first error of a transaction: the root of a table makes no sense
)
# LMDB 0.9 keeps an overflow page that has become too long, which lmdb.verify (3.0.0) takes for damage.
_BENIGN = re.compile(r"mp_pages (\d+) != OVPAGES\(\d+\)=(\d+)|overflow pages, record says|-- a leak|errors suppressed")


class IndexDamagedError(IntegrityError):
    """The index is damaged: `LmdbIndex.discard` its ``generation`` and fold the log in again."""

    code = "index-damaged"

    def __init__(self, message: str, *, hint: str = "casstore index rebuild", generation: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.generation = generation


class Tables(Protocol):
    """What a transaction offers, in its own thread. Keys are 1 to 511 bytes, others raise `LimitError`."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """A value, or None."""
        ...

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        ...

    def delete(self, table: str, key: bytes) -> None:
        """Remove a key; no error if absent."""
        ...

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key has the prefix, in key order from ``start`` on, or downwards from it.

        The table may be changed meanwhile: what lies ahead of the scan is seen as it then is.
        """
        ...

    def count(self, table: str) -> int:
        """Number of keys."""
        ...


class _RemapError(Exception):
    """The map must get another size (0: the one the file tells), then the transaction starts again."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _GoneError(Exception):
    """The generation was replaced while it was being opened: look again."""


def _engine() -> tuple[str, dict[str, Any]]:
    """Directory and option of the engine: lmdb 3 has LMDB 0.9 and 1.0, which cannot read each other, lmdb 2 has 0.9."""
    try:
        lmdb.version(lib_version=0)
    except TypeError:
        return "lmdb-v1", {}
    except lmdb.Error:
        return "lmdb-v3", {}
    return "lmdb-v1", {"lib_version": 0}


_ENGINE, _OPTIONS = _engine()


def _translated(error: lmdb.Error | OSError, generation: int | None = None) -> CasstoreError:
    if isinstance(error, _DAMAGE):
        return IndexDamagedError(f"the index is damaged: {error}", generation=generation)
    hint = ""
    if isinstance(error, lmdb.ReadersFullError):
        hint = f"more than {MAX_READERS} reads at once on this host; keep them short"
    elif "already open" in str(error):
        hint = "this process was forked inside an index transaction; fork outside, or spawn"
    return BackendError(f"index: {error}", hint=hint)


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= KEY_BYTES:
        raise LimitError(f"an index key of {len(key)} bytes", hint=f"1 to {KEY_BYTES} bytes")


def _after(prefix: bytes) -> bytes | None:
    """The least key above every key with the prefix; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


# --- files beside the environment


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_marker(directory: Path, name: str, text: str) -> None:
    temporary = directory / f"{name}.{process_id()}.{threading.get_ident()}"
    with temporary.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / name)
    _fsync_directory(directory)


def _read_marker(directory: Path, name: str) -> str:
    try:
        return (directory / name).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _sound(path: Path) -> bool:
    """Whether ``data.mdb`` is built as LMDB builds it (which LMDB does not look at). Nobody may be writing to it."""
    try:
        problems = importlib.import_module("lmdb.verify").verify(str(path))
    except ModuleNotFoundError:  # lmdb 2
        return True
    except Exception:  # noqa: BLE001 - whatever the verifier stumbles over is not sound
        return False
    matches = [_BENIGN.search(problem) for problem in problems]
    return all(match and (not match[1] or int(match[1]) > int(match[2])) for match in matches)


def _highest(root: Path) -> int:
    """The number of the generation that counts; 0 if there is none."""
    try:
        return max((int(name) for name in os.listdir(root) if name.isdigit()), default=0)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _translated(error) from error


def _tidy(root: Path, number: int) -> None:
    """Unlink what is older than a generation; who has it mapped keeps it until letting go."""
    for name in os.listdir(root):
        victim = root / name
        if name.isdigit() and int(name) < number:
            victim = root / f"dead-{name}-{process_id()}-{time.monotonic_ns()}"
            with contextlib.suppress(OSError):
                (root / name).rename(victim)  # first, so that nobody opens half of it
        elif not name.startswith("dead-") and not (name.startswith("new-") and int(name.split("-")[1]) <= number):
            continue
        shutil.rmtree(victim, ignore_errors=True)


def _publish(root: Path, number: int) -> bool:
    """Make an empty generation, born synced and clean; False if another process was first."""
    temporary = root / f"new-{number}-{process_id()}-{threading.get_ident()}-{time.monotonic_ns()}"
    try:
        temporary.mkdir(parents=True)
        with lmdb.open(str(temporary), map_size=MIB, max_readers=MAX_READERS, create=False, **_OPTIONS) as env:
            env.sync(force=True)
            _write_marker(temporary, "clean", str(env.info()["last_txnid"]))
        temporary.rename(root / str(number))
        _fsync_directory(root)
    except (lmdb.Error, OSError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _highest(root) >= number:
            return False
        raise _translated(error) from error
    return True


class _Generation:
    """An open environment and the gate to it.

    LMDB may change its map, or be closed, only while this process has no transaction open. So a transaction makes its
    thread a holder, and whoever needs the environment alone pauses newcomers and waits for the holders to leave.
    """

    def __init__(self, path: Path, env: lmdb.Environment) -> None:
        self.path = path
        self.number = int(path.name)
        self.env = env
        self.tables: dict[str, Any] = {}
        self.broken = False
        self.users = -1
        self._data = str(path / "data.mdb")
        self._next = str(path.parent / str(self.number + 1))
        status = os.stat(self._data)
        self._identity = (status.st_dev, status.st_ino)
        self._size = status.st_size
        self._gate = threading.Condition()
        self._holders: set[int] = set()
        self._paused = self._retired = self.closed = False

    def current(self) -> bool:
        """Whether it is still the one. Raises `IndexDamagedError` if its file was cut off (to read it is SIGBUS)."""
        known = self._size  # before looking: other threads look as well, and the file only grows
        try:
            status = os.stat(self._data)
        except OSError:
            return False
        if self.broken or (status.st_dev, status.st_ino) != self._identity or os.path.exists(self._next):
            return False
        if status.st_size < known:
            raise IndexDamagedError("the index file was cut off", generation=self.number)
        self._size = status.st_size
        return True

    def enter(self) -> bool:
        """Become a holder; False if the environment is going away."""
        with self._gate:
            self._gate.wait_for(lambda: self._retired or not self._paused)
            if not self._retired:
                self._holders.add(threading.get_ident())
            return not self._retired

    def leave(self) -> None:
        with self._gate:
            self._holders.discard(threading.get_ident())
            self._settle()

    def retire(self, *, wait: bool = False) -> None:
        """Close, now or when the last holder leaves."""
        with self._gate:
            self._retired = True
            self._settle()
            if wait and threading.get_ident() not in self._holders:
                self._gate.wait_for(lambda: self.closed, WAIT_SECONDS)

    def pause(self, seconds: float | None = None) -> bool:
        """Have the environment alone; False if it took too long, or the thread is itself a holder."""
        with self._gate:
            if threading.get_ident() in self._holders or not self._gate.wait_for(lambda: not self._paused, seconds):
                return False
            self._paused = True
            if self._gate.wait_for(lambda: not self._holders, seconds):
                return True
            self._paused = False
            self._settle()
            return False

    def resume(self) -> None:
        with self._gate:
            self._paused = False
            self._settle()

    def _settle(self) -> None:
        if self._retired and not self._holders and not self._paused and not self.closed:
            self.close()
        self._gate.notify_all()

    def close(self) -> None:
        self.closed = True
        self.env.close()
        if self.users >= 0:
            os.close(self.users)
        _live.discard(self)

    def remap(self, size: int) -> None:
        """Grow the map, or adopt the size another process gave it (0)."""
        if not self.pause():
            raise RuntimeError("the map cannot grow inside a transaction of the same thread")
        try:
            if not self._retired and (size == 0 or size > self.env.info()["map_size"]):
                self.env.set_mapsize(size)
        except (lmdb.Error, OverflowError) as error:
            self.broken = True  # py-lmdb leaves the environment unusable: the next transaction reopens
            raise BackendError(f"the index cannot grow to {size} bytes: {error}") from error
        finally:
            self.resume()

    def begin(self, *, write: bool) -> _Transaction:
        try:
            try:
                handle = self.env.begin(write=write)
            except lmdb.ReadersFullError:
                self.env.reader_check()  # frees the slots of processes that were killed
                handle = self.env.begin(write=write)
        except lmdb.MapResizedError as error:
            raise _RemapError(0) from error
        except lmdb.Error as error:
            raise self.failure(error) from error
        return _Transaction(self, handle)

    def failure(self, error: lmdb.Error) -> CasstoreError:
        self.broken = self.broken or isinstance(error, lmdb.PanicError)
        return _translated(error, self.number)

    def unmark(self) -> None:
        """Take the clean marker away. The caller holds the writer lock and has written nothing yet.

        Pages reach the disk in any order (sync=False). After a power cut the marker must mean that nobody has written
        since, so it has to be gone for good before the kernel gets the first page.
        """
        try:
            os.unlink(self.path / "clean")
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translated(error) from error
        _fsync_directory(self.path)

    def mark_clean(self) -> None:
        """Sync, and say so: under the writer lock, so that nobody writes between the two."""
        with contextlib.suppress(lmdb.Error, OSError):  # no marker costs a rebuild after a restart, no more
            self.env.sync(force=True)  # most of the work, while nobody waits for it
            handle = self.env.begin(write=True)
            try:
                self.env.sync(force=True)
                _write_marker(self.path, "clean", str(self.env.info()["last_txnid"]))
            finally:
                handle.abort()

    def ensure(self, names: set[str], *, create: bool) -> bool:
        """Open tables, if need be making them; whether all are there."""
        missing = sorted(names - self.tables.keys())
        # py-lmdb forgets what a read transaction has opened, and begins its own ones without releasing the GIL.
        with self.env.begin(write=True) as handle:
            for name in missing:
                try:
                    self.tables[name] = self.env.open_db(name.encode(), txn=handle, create=False)
                except lmdb.NotFoundError:
                    if create:
                        self.unmark()
                        self.tables[name] = self.env.open_db(name.encode(), txn=handle)
        return names <= self.tables.keys()

    def trusted(self, boot: str) -> bool:
        """Whether the file can be believed.

        If it was written in this boot it can: the page cache outlives every process. Otherwise, as commits are not
        synced, only if the clean marker names the very transaction the file ends with. While some process has it open
        (a lock on ``users``, which no restart survives), it is this boot, whatever the marker says.
        """
        extent = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
        if os.path.getsize(self._data) < extent:
            return False
        same = bool(boot) and _read_marker(self.path, "boot") == boot
        # Judge under the writer lock: another process may judge, and then begin to write, at this moment.
        handle = self.env.begin(write=True) if not same or self._size <= VERIFY_BYTES else None
        try:
            same = bool(boot) and _read_marker(self.path, "boot") == boot
            self.users = os.open(self.path / "users", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                same = True
            fcntl.flock(self.users, fcntl.LOCK_SH)
            if not same and _read_marker(self.path, "clean") != str(self.env.info()["last_txnid"]):
                return False
            if handle is not None and not _sound(self.path):
                return False
            if handle is not None and _read_marker(self.path, "boot") != boot:
                _write_marker(self.path, "boot", boot)
            return True
        finally:
            if handle is not None:
                handle.abort()


def _open_generation(path: Path, boot: str, map_bytes: int) -> _Generation | None:
    """Open what is there; None if it cannot be used."""
    for other in list(_live):
        if other.path == path:
            other.retire(wait=True)
    data = path / "data.mdb"
    found: _Generation | None = None
    usable = False
    try:
        if not path.is_dir():
            raise _GoneError
        if not data.is_file() or data.stat().st_size == 0:
            return None  # where LMDB would quietly begin anew
        options = {"max_dbs": MAX_TABLES, "max_readers": MAX_READERS, "sync": False, "metasync": False, **_OPTIONS}
        env = lmdb.open(str(path), map_size=map_bytes, create=False, **options)
        found = _Generation(path, env)
        _live.add(found)
        env.reader_check()
        usable = found.trusted(boot)
    except _DAMAGE:
        usable = False
    except (lmdb.Error, OSError) as error:
        if isinstance(error, lmdb.MapResizedError) or not data.exists():
            raise _GoneError from error
        if isinstance(error, (lmdb.MemoryError, lmdb.InvalidParameterError)) and not _sound(path):
            return None  # a damaged header asked for an absurd map
        raise _translated(error) from error
    finally:
        if found is not None and not usable:
            found.retire()
    return found if usable else None


class _Transaction:
    """`Tables` over a transaction of LMDB. As a context manager it translates LMDB's errors."""

    def __init__(self, generation: _Generation, handle: lmdb.Transaction[bytes]) -> None:
        self._generation = generation
        self._handle = handle
        self._tables = generation.tables
        self._changes = 0
        self._over = False
        self.failed: Exception | None = None
        """the first failure: whatever follows fails as well, and the body may have swallowed it"""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, lmdb.Error):
            return
        if self._over:
            raise RuntimeError("the index transaction is over") from error
        if self.failed is None:
            full = isinstance(error, lmdb.MapFullError)
            env = self._generation.env
            self.failed = _RemapError(2 * env.info()["map_size"]) if full else self._generation.failure(error)
        raise self.failed from error

    def commit(self) -> None:
        if self.failed is not None:
            raise self.failed
        with self:
            self._handle.commit()
        self._over = True

    def end(self) -> None:
        self._over = True
        with contextlib.suppress(lmdb.Error):
            self._handle.abort()

    def _table(self, name: str) -> Any:
        try:
            return self._tables[name]
        except KeyError:
            raise InvalidInputError(f"the index has no table {name!r}") from None

    def get(self, table: str, key: bytes) -> bytes | None:
        _check_key(key)
        with self:
            return self._handle.get(key, None, self._table(table))

    def put(self, table: str, key: bytes, value: bytes) -> None:
        _check_key(key)
        self._changes += 1
        with self:
            self._handle.put(key, value, db=self._table(table))

    def delete(self, table: str, key: bytes) -> None:
        _check_key(key)
        self._changes += 1
        with self:
            self._handle.delete(key, db=self._table(table))

    def clear(self) -> None:
        with self:
            for table in self._tables.values():
                self._handle.drop(table, delete=False)

    def count(self, table: str) -> int:
        with self:
            return self._handle.stat(self._table(table))["entries"]

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        with self, self._handle.cursor(self._table(table)) as cursor:
            found = _seek(cursor, prefix, start, reverse=reverse)
            while found:
                changes, last = self._changes, b""
                for key, value in cursor.iterprev() if reverse else cursor.iternext():
                    if not key.startswith(prefix):
                        return
                    yield key, value
                    if changes != self._changes:
                        last = key
                        break
                # After a change the cursor has to find its place again, strictly beyond the last key.
                found = bool(last) and cursor.set_range(last)
                if last and reverse:
                    found = cursor.prev() if found else cursor.last()
                elif found and cursor.key() == last:
                    found = cursor.next()


def _seek(cursor: lmdb.Cursor[bytes], prefix: bytes, start: bytes, *, reverse: bool) -> bool:
    if not reverse:
        low = max(prefix, start)
        return cursor.set_range(low) if low else cursor.first()
    limit = _after(prefix)
    inclusive = bool(start) and (limit is None or start < limit)
    limit = start if inclusive else limit
    if limit is None or not cursor.set_range(limit):
        return cursor.last()
    return True if inclusive and cursor.key() == limit else cursor.prev()


class _Mine(threading.local):
    """What one thread has open."""

    depth = 0
    writing = False
    tables: _Transaction | None = None
    generation: _Generation | None = None


class _Shared:
    """The one environment this process has open for a directory, counted by handles."""

    def __init__(self, root: Path, boot: str, map_bytes: int) -> None:
        self.root = root
        self.boot = boot
        self.map_bytes = map_bytes
        self.tables: set[str] = set()
        self.references = 0
        self.writes = False
        self.pid = process_id()
        self.mine = _Mine()
        self.writer = threading.Lock()
        self.generation: _Generation | None = None

    def acquire(self) -> _Generation:
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

    def reopen(self, old: _Generation | None, *, create: bool = True) -> bool:
        """Open the generation that now counts, unless another thread did. True if it had to be made."""
        with _lock:
            if self.generation is not old:
                return False
            self.generation = None
            if old is not None:
                old.retire()
            fresh = False
            for _ in range(ATTEMPTS):
                number = _highest(self.root)
                try:
                    if number and self._adopt(self.root / str(number), create=create):
                        return fresh
                except _GoneError:
                    continue
                if not create:
                    raise BackendError("there is no usable index, and none may be made")
                fresh = _publish(self.root, number + 1) or fresh
            raise BackendError(f"the index in {self.root} changes all the time")

    def _adopt(self, path: Path, *, create: bool) -> bool:
        found = _open_generation(path, self.boot, self.map_bytes)
        if found is None:
            return False
        try:
            if not found.current():
                raise _GoneError
            if not found.ensure(self.tables, create=create):
                raise BackendError("the index lacks tables, and none may be made")
            self.generation = found
            if create:
                _tidy(self.root, found.number)
            return True
        except (*_DAMAGE, IndexDamagedError):
            return False
        except lmdb.Error as error:
            if isinstance(error, (lmdb.MapFullError, lmdb.MapResizedError)):
                self.map_bytes *= 2
                raise _GoneError from error
            raise _translated(error) from error
        finally:
            if self.generation is not found:
                found.retire()


_lock = threading.RLock()
"""guards the registry and every opening; taken before a gate, never by a holder"""
_registry: dict[Path, _Shared] = {}
_live: set[_Generation] = set()
_paused: list[_Generation] = []
_inherited: list[object] = []
"""what a forked child must neither use nor free: that would give back reader slots of the parent"""


def _before_fork() -> None:
    # py-lmdb opens no file a second time before the first environment is closed, and to close it in the child is
    # harmless only if it has no transaction. So a fork waits, for a while, until other threads have ended theirs.
    if _lock.acquire(timeout=WAIT_SECONDS):
        _paused.extend(generation for generation in list(_live) if generation.pause(WAIT_SECONDS))
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
        generation.close()
    _inherited.extend(_live)
    _inherited.extend(_registry.values())
    _registry.clear()
    _live.clear()
    _paused.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


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
        index = cls(Path(os.path.realpath(directory)) / _ENGINE, tables, boot_id, map_bytes, read_only=read_only)
        index._use()
        return index

    @classmethod
    def discard(cls, directory: Path, generation: int | None = None) -> None:
        """Put an empty generation in the place of the one that counts. Safe while others use it: they reopen.

        With ``generation`` only if that is still the one, so that of many who saw the damage one discards.
        """
        root = Path(os.path.realpath(directory)) / _ENGINE
        number = _highest(root)
        if number and generation in {None, number}:
            _publish(root, number + 1)
            with contextlib.suppress(OSError):
                _tidy(root, number + 1)

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

    @contextmanager
    def _read(self) -> Iterator[Tables]:
        shared = self._use()
        mine = shared.mine
        if mine.writing:
            raise RuntimeError("read() inside update() would not see its changes: use the tables of the body")
        while mine.tables is None:
            mine.generation = generation = shared.acquire()
            try:
                mine.tables = generation.begin(write=False)
            except _RemapError as need:
                generation.leave()
                generation.remap(need.size)
            except BaseException:
                generation.leave()
                raise
        tables = mine.tables
        mine.depth += 1
        try:
            yield tables
        finally:
            mine.depth -= 1
            if shared.pid != process_id():
                _inherited.append(tables)
            elif mine.depth == 0 and mine.generation is not None:
                mine.tables = None
                tables.end()
                mine.generation.leave()

    def read(self) -> AbstractContextManager[Tables]:
        """A consistent snapshot; a second one in the same thread is the same."""
        return self._read()

    def update(self, body: Callable[[Tables], T]) -> T:
        """One write transaction: commits when ``body`` returns, aborts when it raises.

        ``body`` runs again from the start when the map has to grow or the index was discarded meanwhile. Inside a
        read or an update of the same thread it is a `RuntimeError`.
        """
        return self._update(body)

    def _update(self, body: Callable[[_Transaction], T]) -> T:
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
                except _RemapError as need:
                    size = need.size
                finally:
                    mine.writing = False
                    generation.leave()
                generation.remap(size)

    @staticmethod
    def _attempt(generation: _Generation, body: Callable[[_Transaction], T]) -> T:
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
            if isinstance(tables.failed, _RemapError) and isinstance(error, Exception):
                raise tables.failed from None
            raise
        return result

    def reset(self) -> None:
        """Empty every table, in one transaction."""
        self._update(lambda tables: tables.clear())

    def bytes_used(self) -> int:
        """Bytes of the file that hold, or have held, pages."""
        generation = self._use().acquire()
        try:
            return int((generation.env.info()["last_pgno"] + 1) * generation.env.stat()["psize"])
        finally:
            generation.leave()

    def close(self) -> None:
        """Let go; closing twice is fine. The last handle of the process leaves a clean marker."""
        with _lock:
            shared, self._shared, self._closed = self._shared, None, True
            if shared is None or shared.pid != process_id():
                return
            shared.references -= 1
            if shared.references == 0:
                del _registry[self._root]
                generation, shared.generation = shared.generation, None
                if generation is not None:
                    if shared.writes and not generation.broken:
                        generation.mark_clean()
                    generation.retire()


class _MemoryTransaction:
    """`Tables` over sorted lists of keys and dicts of values."""

    def __init__(self, tables: dict[str, dict[bytes, bytes]], keys: dict[str, list[bytes]], *, write: bool) -> None:
        self._tables = tables
        self._keys = keys
        self._write = write
        self._undo: list[tuple[str, bytes, bytes | None]] = []
        self.over = False

    def _table(self, name: str, key: bytes = b"-") -> dict[bytes, bytes]:
        _check_key(key)
        if self.over:
            raise RuntimeError("the index transaction is over")
        try:
            return self._tables[name]
        except KeyError:
            raise InvalidInputError(f"the index has no table {name!r}") from None

    def _set(self, table: str, key: bytes, value: bytes | None) -> bytes | None:
        content, keys = self._table(table, key), self._keys[table]
        if not self._write:
            raise BackendError("index: this transaction only reads")
        old = content.get(key)
        if value is None:
            if content.pop(key, None) is not None:
                del keys[bisect.bisect_left(keys, key)]
        else:
            content[key] = bytes(value)
            if old is None:
                bisect.insort(keys, key)
        return old

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._table(table, key).get(key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._undo.append((table, key, self._set(table, key, value)))

    def delete(self, table: str, key: bytes) -> None:
        self._undo.append((table, key, self._set(table, key, None)))

    def undo(self) -> None:
        for table, key, old in reversed(self._undo):
            self._set(table, key, old)

    def count(self, table: str) -> int:
        return len(self._table(table))

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        content, keys = self._table(table), self._keys[table]
        if reverse:
            top = _after(prefix)
            inclusive = bool(start) and (top is None or start < top)
            place = (
                bisect.bisect_right(keys, start)
                if inclusive
                else len(keys)
                if top is None
                else (bisect.bisect_left(keys, top))
            )
        else:
            place = bisect.bisect_left(keys, max(prefix, start))
        while 0 <= (at := place - 1 if reverse else place) < len(keys) and keys[at].startswith(prefix):
            key = keys[at]
            yield key, content[key]
            self._table(table)
            place = bisect.bisect_left(keys, key) if reverse else bisect.bisect_right(keys, key)


class MemoryIndex:
    """The same in memory, for one process: reads and updates exclude each other, `update` undoes when it fails."""

    def __init__(self, tables: Sequence[str]) -> None:
        self.fresh = True
        self._tables: dict[str, dict[bytes, bytes]] = {name: {} for name in tables}
        self._keys: dict[str, list[bytes]] = {name: [] for name in tables}
        self._lock = threading.RLock()
        self._reading = 0
        self._writing = False
        self._closed = False

    def _check(self, *, reading: bool) -> None:
        if self._closed:
            raise InvalidInputError("this index is closed")
        if self._writing or (self._reading and not reading):
            raise RuntimeError("update() or read() inside a transaction of the same thread")

    @contextmanager
    def _read(self) -> Iterator[Tables]:
        with self._lock:
            self._check(reading=True)
            tables = _MemoryTransaction(self._tables, self._keys, write=False)
            self._reading += 1
            try:
                yield tables
            finally:
                self._reading -= 1
                tables.over = True

    def read(self) -> AbstractContextManager[Tables]:
        """A consistent snapshot, as nobody else gets in meanwhile."""
        return self._read()

    def update(self, body: Callable[[Tables], T]) -> T:
        """One write transaction: undone when ``body`` raises. Not inside a read or an update of the same thread."""
        with self._lock:
            self._check(reading=False)
            tables = _MemoryTransaction(self._tables, self._keys, write=True)
            self._writing = True
            try:
                return body(tables)
            except BaseException:
                tables.undo()
                raise
            finally:
                self._writing = False
                tables.over = True

    def reset(self) -> None:
        """Empty every table."""

        def body(tables: Tables) -> None:
            for name, keys in self._keys.items():
                for key in list(keys):
                    tables.delete(name, key)

        self.update(body)

    def bytes_used(self) -> int:
        """Bytes of keys and values."""
        with self._lock:
            return sum(len(key) + len(value) for table in self._tables.values() for key, value in table.items())

    def close(self) -> None:
        """Let go; closing twice is fine."""
        self._closed = True
