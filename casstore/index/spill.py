"""Changes an index has no room for, kept in memory: a full disk stops neither readers nor a collector."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from casstore.backend.room import is_full
from casstore.errors import BackendError
from casstore.index.tables import Storage, T
from casstore.overlay import Overlay, Tables

Kept = dict[str, dict[bytes, bytes | None]]


class _Layer(Overlay):
    """Tables with changes on top that are known already."""

    def __init__(self, base: Tables, changes: Kept) -> None:
        super().__init__(base)
        self._changes = changes

    @property
    def kept(self) -> Kept:
        return self._changes


class SpillIndex:
    """An index and, on top of it, what it had no room for. Thread-safe.

    Tables must be a function of their ``position`` alone (unless it is negative: nowhere), and change from one to the
    next: then the changes from p to q, as values, make q also of what another process has brought from p to anywhere
    before q, and are dropped when it comes to q or beyond. Each update tries to write all of them down before it keeps
    its own in memory.
    """

    def __init__(self, base: Storage, position: Callable[[Tables], int]) -> None:
        self._base = base
        self._position = position
        self._lock = threading.Lock()
        self._state: tuple[Kept, int, int] = ({}, 0, 0)
        """the changes, never changed themselves, and the positions they lead from and to"""

    def _over(self, tables: Tables) -> tuple[Kept, int]:
        changes, low, high = self._state
        here = self._position(tables)
        return (changes, low) if low <= here < high else ({}, here)

    @contextmanager
    def _read(self) -> Iterator[Tables]:
        with self._base.read() as tables:
            changes, _ = self._over(tables)
            yield _Layer(tables, changes) if changes else tables

    def read(self) -> AbstractContextManager[Tables]:
        """A consistent snapshot."""
        return self._read()

    def update(self, body: Callable[[Tables], T]) -> T:
        """One transaction, on disk if there is room again, else in memory."""

        def settle(tables: Tables) -> T:
            changes, _ = self._over(tables)
            _Layer(tables, changes).flush()
            return body(tables)

        with self._lock:
            try:
                result = self._base.update(settle)
            except BackendError as error:
                if not is_full(error):
                    raise
                full = error
            else:
                self._state = ({}, 0, 0)
                return result
            with self._base.read() as tables:
                changes, low = self._over(tables)
                layer = _Layer(tables, {table: dict(rows) for table, rows in changes.items()})
                before = self._position(layer)
                result = body(layer)
                if (self._position(layer) == before or before < 0) and layer.kept != changes:
                    raise full  # nothing tells when such changes still hold
                self._state = (layer.kept, low, self._position(layer))
            return result

    def reset(self) -> None:
        """Empty every table."""
        with self._lock:
            self._base.reset()
            self._state = ({}, 0, 0)

    def compact(self, share: float, *, least: int = 0) -> int:
        """Nothing, as long as there is no room."""
        with self._lock:
            return 0 if self._state[0] else self._base.compact(share, least=least)

    def close(self) -> None:
        """Let go. What is in memory only is in the log as well."""
        with suppress(BackendError):
            if self._state[0]:
                self.update(lambda _: None)
        self._base.close()
