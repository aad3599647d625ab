"""Collecting on a full disk: what can be given up before the first write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from casstore.backend.local import LocalBackend
from casstore.backend.room import ballast_bytes, free_bytes, is_full, no_room, set_ballast
from casstore.config import MIB, on_network
from casstore.engine import Engine
from casstore.errors import BackendError

SPARE = MIB
"""what a collection leaves free for the log, whatever it writes otherwise"""
ANY_AGE = 1 << 62
"""later than any file is from: clocks may be wrong or injected"""


class Room:
    """What one collection gave up for want of room. ``notes``: for the user."""

    def __init__(self, engine: Engine, reclaim_ended: Callable[[], bool]) -> None:
        self.engine = engine
        self.notes: list[str] = []
        self.tight = False
        """whether something failed for want of room"""
        self._ballast = 0
        self._remedies = iter((self._sweep, reclaim_ended, self._drop_ballast))

    def insist(self, work: Callable[[], None]) -> None:
        """Work; for want of room give something up and begin again.

        Raises `BackendError` when there is nothing left to give up.
        """
        while True:
            try:
                work()
            except BackendError as error:
                if not is_full(error):
                    raise
                self.tight = True
                if not any(_helped(remedy) for remedy in self._remedies):
                    raise no_room(error) from error
            else:
                return

    def fits(self, size: int) -> bool:
        """Whether a file of some bytes can be written, as far as that can be told."""
        free = free_bytes(self.engine.backend)
        return free is None or free >= size + SPARE

    def restore(self) -> None:
        """Make the ballast again, if it was given up and there is room by now."""
        if not self._ballast:
            return
        if self.fits(self._ballast):
            with suppress(BackendError):
                set_ballast(self.engine.backend, self.engine.ops, self._ballast)
                self.notes.append("the ballast was made again")
                return
        self.notes.append(f"there is no room to make the ballast of {self._ballast} bytes again")

    def _sweep(self) -> bool:
        """Temporary files of the dead, of any age: who lives has them locked, but for other hosts on a network."""
        backend = self.engine.backend
        return isinstance(backend, LocalBackend) and not on_network(backend.root) and backend.sweep_temp(ANY_AGE) > 0

    def _drop_ballast(self) -> bool:
        self._ballast = ballast_bytes(self.engine.backend)
        if self._ballast:
            set_ballast(self.engine.backend, self.engine.ops, 0)
            self.notes.append(f"the disk was full: the ballast of {self._ballast} bytes was given up")
        return self._ballast > 0


def _helped(remedy: Callable[[], bool]) -> bool:
    """Try to make room; a remedy may itself find none."""
    try:
        return remedy()
    except BackendError as error:
        if not is_full(error):
            raise
        return False
