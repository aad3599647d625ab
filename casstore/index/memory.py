"""`MemoryIndex`: the same tables in memory, for one process."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from casstore.errors import BackendError, InvalidInputError
from casstore.index.tables import T, after, check_key, check_keys
from casstore.overlay import Changes, Tables


class _MemoryTransaction:
    """`Tables` over sorted lists of keys and dicts of values."""

    def __init__(self, tables: dict[str, dict[bytes, bytes]], keys: dict[str, list[bytes]], *, write: bool) -> None:
        self._tables = tables
        self._keys = keys
        self._write = write
        self._undo: list[tuple[str, bytes, bytes | None]] = []
        self.over = False

    def _table(self, name: str, key: bytes = b"-") -> dict[bytes, bytes]:
        check_key(key)
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

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        check_keys(keys)
        content = self._table(table)
        return [content.get(key) for key in keys]

    def change(self, table: str, changes: Changes) -> None:
        for key, value in changes.items():
            self._undo.append((table, key, self._set(table, key, value)))

    @property
    def stamp(self) -> object:
        return None

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
            top = after(prefix)
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

    def compact(self, share: float, *, least: int = 0) -> int:
        """Nothing to be done; 0."""
        return 0

    def bytes_used(self) -> int:
        """Bytes of keys and values."""
        with self._lock:
            return sum(len(key) + len(value) for table in self._tables.values() for key, value in table.items())

    def close(self) -> None:
        """Let go; closing twice is fine."""
        self._closed = True
