"""One generation of the index in LMDB: its files and markers, its environment, and the transactions in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lmdb

from casstore.config import MIB
from casstore.errors import BackendError, CasstoreError, InvalidInputError
from casstore.index.files import (
    DAMAGE,
    fsync_directory,
    options,
    read_marker,
    sound,
    translated,
    write_marker,
)
from casstore.index.tables import IndexDamagedError, after, check_key, check_keys
from casstore.overlay import Changes

VERIFY_BYTES = MIB
"""up to this size the structure is checked at every opening (20 ms a MiB); above, once after each restart"""
COPIED = 50_000
COPIED_BYTES = 8 * MIB
"""rows that a transaction copies into another generation, and bytes, about"""
WAIT_SECONDS = 5.0
MANY = 512
"""keys that are put in two passes"""
FIRST_PASS = 154
"""of 256 values of the last byte of a key, those of the first pass: three fifths of the keys"""


class RemapError(Exception):
    """The map must get another size (0: the one the file tells), then the transaction starts again."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class GoneError(Exception):
    """The generation was replaced while it was being opened: look again."""


live: set[Generation] = set()
"""what this process has open"""


class Generation:
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
        self.idle = False
        """no slot in the table of readers is ours; known while a fork is under way"""
        self.users = -1
        self._page = env.stat()["psize"]
        self._data = str(path / "data.mdb")
        self._next = str(path.parent / str(self.number + 1))
        status = os.stat(self._data)
        self.identity = (status.st_dev, status.st_ino)
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
        # Not `exists`, which is a `stat` that fails as a rule: exceptions take longer than the call.
        if self.broken or (status.st_dev, status.st_ino) != self.identity or os.access(self._next, os.F_OK):
            return False
        if status.st_size < known:
            raise IndexDamagedError("the index file was cut off", generation=self.number)
        self._size = status.st_size
        return True

    def extent(self) -> int:
        """Bytes of the file that hold, or have held, pages."""
        return (self.env.info()["last_pgno"] + 1) * self._page

    def slack(self, handle: lmdb.Transaction[bytes]) -> int:
        """Bytes of the file that hold nothing, as a transaction sees it."""
        return self.extent() - self._used(handle, self._all(handle).values())

    def most_slack(self, handle: lmdb.Transaction[bytes]) -> int:
        """`slack`, if there are no tables but those that were opened here: else that is less. Reads no page of them."""
        return self.extent() - self._used(handle, self.tables.values())

    def _used(self, handle: lmdb.Transaction[bytes], tables: Iterable[Any]) -> int:
        """Bytes of the pages of some tables, and of the table of tables."""
        stats = [handle.stat(table) for table in (None, *tables)]
        return self._page * sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)

    def _all(self, handle: lmdb.Transaction[bytes]) -> dict[bytes, Any]:
        """Every table there is, also those that only others know."""
        with handle.cursor() as cursor:
            names = [name for name, _ in cursor.iternext()]
        return {name: self.env.open_db(name, txn=handle, create=False) for name in names}

    def copy_into(self, env: lmdb.Environment, handle: lmdb.Transaction[bytes]) -> None:
        """Write all tables, as a transaction sees them, into another environment: in key order, which fills pages."""
        for name, table in self._all(handle).items():
            target = env.open_db(name)
            stat = handle.stat(table)
            average = self._used(handle, (table,)) // max(1, stat["entries"])
            # A part at a time: what a transaction writes is in memory until it ends.
            rows = max(1, min(COPIED, COPIED_BYTES // max(1, average)))
            left = stat["entries"]
            with handle.cursor(table) as source:
                pairs = source.iternext()
                while left:
                    with env.begin(write=True) as part, part.cursor(target) as sink:
                        copied = sink.putmulti(islice(pairs, rows), append=True)[1]
                    if not 0 < copied <= left:
                        break
                    left -= copied
                if left or next(pairs, None) is not None:
                    # The copy would be whole to look at, and believed.
                    raise IndexDamagedError("a table of the index is not as long as it says", generation=self.number)

    def enter(self) -> bool:
        """Become a holder; False if the environment is going away."""
        with self._gate:
            self._gate.wait_for(lambda: self._retired or not self._paused)
            if not self._retired:
                self._holders.add(threading.get_ident())
            return not self._retired

    def leave(self) -> None:
        """Be no holder any more; the last one of a retired environment closes it."""
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
        """Let holders in again, after `pause`."""
        with self._gate:
            self._paused = False
            self._settle()

    def _settle(self) -> None:
        if self._retired and not self._holders and not self._paused and not self.closed:
            self.close()
        self._gate.notify_all()

    def close(self) -> None:
        """Close at once: only where nobody is a holder."""
        self.closed = True
        self.env.close()
        if self.users >= 0:
            os.close(self.users)
            self.users = -1
        live.discard(self)

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

    def begin(self, *, write: bool) -> Transaction:
        """Start a transaction, as a holder; `RemapError` if another process has made the map grow."""
        try:
            try:
                handle = self.env.begin(write=write)
            except lmdb.ReadersFullError:
                self.env.reader_check()  # frees the slots of processes that were killed
                handle = self.env.begin(write=write)
        except lmdb.MapResizedError as error:
            raise RemapError(0) from error
        except lmdb.Error as error:
            raise self.failure(error) from error
        return Transaction(self, handle, write=write)

    def failure(self, error: lmdb.Error) -> CasstoreError:
        """The error to raise for one of LMDB; after a panic the next transaction reopens."""
        self.broken = self.broken or isinstance(error, lmdb.PanicError)
        if isinstance(error, lmdb.ReadonlyError):  # a change inside `read`: no right is missing
            return BackendError(f"index: {error}")
        return translated(error, self.number)

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
            raise translated(error) from error
        try:
            fsync_directory(self.path)
        except FileNotFoundError:
            return  # discarded and tidied away meanwhile: nobody will believe it
        except OSError as error:
            raise translated(error) from error

    def mark_clean(self) -> None:
        """Sync, and say so: under the writer lock, so that nobody writes between the two.

        Not if another generation counts by now: nobody reads this one any more.
        """
        if threading.get_ident() in self._holders or os.path.exists(self._next) or not self.enter():
            return
        with contextlib.suppress(lmdb.Error, OSError):  # no marker costs a rebuild after a restart, no more
            self.env.sync(force=True)  # most of the work, while nobody waits for it
            handle = self.env.begin(write=True)
            try:
                self.env.sync(force=True)
                write_marker(self.path, "clean", str(self.env.info()["last_txnid"]))
            finally:
                handle.abort()
        self.leave()

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
        synced, only if the clean marker names the very transaction the file ends with. The boot marker names the file
        as well: a copy, made while processes write, may be torn, and takes the marker along. While some process has it
        open (a lock on ``users``, which no restart survives), it is this boot, whatever the marker says.
        """
        mark = f"{boot} {self.identity[1]}" if boot else ""
        # A file may be short of pages that were allocated and freed in one transaction; or it was cut off.
        verify = self._size <= VERIFY_BYTES or os.path.getsize(self._data) < self.extent()
        same = bool(mark) and read_marker(self.path, "boot") == mark
        # Judge under the writer lock: another process may judge, and then begin to write, at this moment.
        handle = self.env.begin(write=True) if verify or not same else None
        try:
            same = bool(mark) and read_marker(self.path, "boot") == mark
            self.users = os.open(self.path / "users", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                same = True
            fcntl.flock(self.users, fcntl.LOCK_SH)
            if not same and read_marker(self.path, "clean") != str(self.env.info()["last_txnid"]):
                return False
            if handle is not None and not sound(self.path):
                return False
            if handle is not None and read_marker(self.path, "boot") != mark:
                write_marker(self.path, "boot", mark)
            return True
        finally:
            if handle is not None:
                handle.abort()


def open_generation(path: Path, boot: str, map_bytes: int) -> Generation | None:
    """Open what is there; None if it cannot be used."""
    for other in list(live):
        if other.path == path:
            other.retire(wait=True)
    data = path / "data.mdb"
    found: Generation | None = None
    usable = False
    try:
        if not path.is_dir():
            raise GoneError
        if not data.is_file() or data.stat().st_size == 0:
            return None  # where LMDB would quietly begin anew
        env = lmdb.open(str(path), map_size=map_bytes, create=False, metasync=False, **options())
        found = Generation(path, env)
        live.add(found)
        env.reader_check()
        usable = found.trusted(boot)
    except DAMAGE:
        usable = False
    except (lmdb.Error, OSError) as error:
        if isinstance(error, lmdb.MapResizedError) or not data.exists():
            raise GoneError from error
        if isinstance(error, (lmdb.MemoryError, lmdb.InvalidParameterError)) and not sound(path):
            return None  # a damaged header asked for an absurd map
        raise translated(error) from error
    finally:
        if found is not None and not usable:
            found.retire()
    return found if usable else None


class Transaction:
    """`Tables` over a transaction of LMDB. As a context manager it translates LMDB's errors."""

    def __init__(self, generation: Generation, handle: lmdb.Transaction[bytes], *, write: bool) -> None:
        self._generation = generation
        self._handle = handle
        self._write = write
        self._tables = generation.tables
        self._changes = 0
        self._over = False
        self.failed: Exception | None = None
        """the first failure: whatever follows fails as well, and the body may have swallowed it"""

    def __enter__(self) -> None:
        if self._over:
            raise RuntimeError("the index transaction is over")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, lmdb.Error):
            return
        if self._over:
            raise RuntimeError("the index transaction is over") from error
        if self.failed is None:
            full = isinstance(error, lmdb.MapFullError)
            env = self._generation.env
            self.failed = RemapError(2 * env.info()["map_size"]) if full else self._generation.failure(error)
        raise self.failed from error

    def commit(self) -> None:
        """Commit; raises the first failure, even one the body has swallowed."""
        if self.failed is not None:
            raise self.failed
        with self:
            self._handle.commit()
        self._over = True

    def end(self) -> None:
        """Abort, unless it is over already, and give the slot of a reader back."""
        if not self._over:
            self._over = True
            with contextlib.suppress(lmdb.Error):
                self._handle.abort()
            # Aborted, a read transaction of py-lmdb keeps its slot in the table of readers until it is freed. If it
            # lived on, the child of a fork, by closing the environment, would free the slot under its next owner.
            del self._handle

    @property
    def handle(self) -> lmdb.Transaction[bytes]:
        """LMDB's own, for what the tables do not offer."""
        return self._handle

    def extent(self) -> int:
        """Bytes of the file that hold, or have held, pages."""
        return self._generation.extent()

    def unused(self) -> int:
        """Bytes of the file that hold nothing, or a table that is not open here."""
        with self:
            return self._generation.most_slack(self._handle)

    def _table(self, name: str) -> Any:
        try:
            return self._tables[name]
        except KeyError:
            raise InvalidInputError(f"the index has no table {name!r}") from None

    def get(self, table: str, key: bytes) -> bytes | None:
        """A value, or None."""
        check_key(key)
        if self._over:
            self.__enter__()
        try:
            return self._handle.get(key, None, self._table(table))
        except lmdb.Error as error:  # as `with self`, which is half of what a look-up costs
            self.__exit__(type(error), error, None)
            raise

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, or None."""
        check_keys(keys)
        get, database = self._handle.get, self._table(table)
        with self:
            return [get(key, None, database) for key in keys]

    def change(self, table: str, changes: Changes) -> None:
        """Set and remove values, in key order: pages are met once, or twice where there are many (`in_passes`).

        What comes into an empty table fills its pages: each is begun when the one before is full.
        """
        check_keys(changes)
        self._changes += 1
        delete, database = self._handle.delete, self._table(table)
        with self, self._handle.cursor(database) as cursor:
            blank = not cursor.first()
            there = sorted(key for key, value in changes.items() if value is not None)
            if not blank and len(there) < len(changes):
                for key in sorted(changes.keys() - set(there)):
                    delete(key, db=database)
            order = there if blank else in_passes(there)
            pairs = ((key, value) for key in order if (value := changes[key]) is not None)
            cursor.putmulti(pairs, append=blank)

    @property
    def stamp(self) -> object:
        """The generation and the last transaction that wrote to it, as of the beginning of this one."""
        with self:
            return self._generation.number, self._generation.identity, self._handle.id() - self._write

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        check_key(key)
        self._changes += 1
        with self:
            self._handle.put(key, value, db=self._table(table))

    def delete(self, table: str, key: bytes) -> None:
        """Remove a key; no error if absent."""
        check_key(key)
        self._changes += 1
        with self:
            self._handle.delete(key, db=self._table(table))

    def clear(self) -> None:
        """Empty every table."""
        with self:
            for table in self._tables.values():
                self._handle.drop(table, delete=False)

    def count(self, table: str) -> int:
        """Number of keys."""
        with self:
            return self._handle.stat(self._table(table))["entries"]

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs in key order, as `Tables.scan` says."""
        with self, self._handle.cursor(self._table(table)) as cursor:
            found = _seek(cursor, prefix, start, reverse=reverse)
            if found and not (self._write or prefix):
                yield from cursor.iterprev() if reverse else cursor.iternext()
                return
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


def in_passes(keys: list[bytes]) -> Iterable[bytes]:
    """Sorted keys in an order that leaves the pages of a tree fuller.

    A page that is full is split in the middle. Where many keys are put in their order, nothing comes to the first half
    any more: pages stay half empty. Of two passes over digests, the first leaves such pages, the second fills them up.
    """
    if len(keys) < MANY:
        return keys
    return chain((key for key in keys if key[-1] < FIRST_PASS), (key for key in keys if key[-1] >= FIRST_PASS))


def _seek(cursor: lmdb.Cursor[bytes], prefix: bytes, start: bytes, *, reverse: bool) -> bool:
    if not reverse:
        low = max(prefix, start)
        return cursor.set_range(low) if low else cursor.first()
    limit = after(prefix)
    inclusive = bool(start) and (limit is None or start < limit)
    limit = start if inclusive else limit
    if limit is None or not cursor.set_range(limit):
        return cursor.last()
    return True if inclusive and cursor.key() == limit else cursor.prev()
