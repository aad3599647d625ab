"""A large file, written in whole blocks past the page cache, for as long as the system lets us and the disk is quick.

What goes through the page cache takes memory, which under a hypervisor may have to be given to the machine first (here
that costs more than all else about a restore), and drives out what others have there. The price: whoever reads the file
next reads it from the disk.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from casstore.chunks import Spare

BLOCK = 4096
"""positions, sizes and addresses are multiples of it"""
TRIAL_BYTES = 32 * 1024 * 1024
LEAST_RATE = 200_000_000
"""bytes a second: if a writer has less of `TRIAL_BYTES`, the page cache gets the rest, and the disk takes its time"""

_DIRECT = getattr(os, "O_DIRECT", 0)


class Sheet(NamedTuple):
    """Memory for a run of bytes of a file, as far from the start of a block as they are in the file."""

    memory: mmap.mmap
    position: int
    """of the first byte in the file"""
    size: int

    @property
    def view(self) -> memoryview:
        """Its bytes, of undefined content at first."""
        start = self.position % BLOCK
        return memoryview(self.memory)[start : start + self.size]


class DirectFile:
    """A file open for writing that gets its bytes from `Sheet`, in any order, each byte once. Thread-safe.

    All of it is there when `finish` returns, not before; not synced. Raises bare `OSError`.
    """

    def __init__(self, fd: int, spare: Spare, monotonic: Callable[[], float]) -> None:
        self._fd = fd
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._spare = spare
        self._edges: list[tuple[int, bytes]] = []
        """parts of blocks: whose other part came, or comes, with another sheet"""
        self._bytes = 0
        self._seconds = 0.0
        self.direct = False
        """whether the page cache is left alone"""
        if _DIRECT:
            try:
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _DIRECT)
                self.direct = True
            except OSError:
                pass  # this file system cannot

    def sheet(self, position: int, size: int) -> Sheet:
        """Memory for some bytes of the file, to be handed to `write`."""
        return Sheet(self._spare.take(position % BLOCK + size), position, size)

    def write(self, sheet: Sheet) -> None:
        """Write the bytes of a sheet, whose memory is used again then."""
        memory, position, size = sheet
        origin = position - position % BLOCK
        end = position + size
        start = -(-position // BLOCK) * BLOCK
        stop = end - end % BLOCK
        with memoryview(memory) as view:
            if start >= stop:
                edges = [(position, bytes(view[position - origin : end - origin]))]
            else:
                edges = [
                    (position, bytes(view[position - origin : start - origin])),
                    (stop, bytes(view[stop - origin : end - origin])),
                ]
                began = self._monotonic()
                with view[start - origin : stop - origin] as blocks:
                    self._write(blocks, start)
                self._took(stop - start, self._monotonic() - began)
        with self._lock:
            self._edges += [edge for edge in edges if edge[1]]
        self._spare.give(memory)

    def finish(self) -> None:
        """Write what fills no block. Nobody else may use this any more."""
        self._give_up()
        for position, part in self._edges:
            with memoryview(part) as view:
                self._write(view, position)
        self._edges.clear()

    def _write(self, view: memoryview, position: int) -> None:
        done = 0
        while done < len(view):
            direct = self.direct
            try:
                wrote = os.pwrite(self._fd, view[done:], position + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not direct:
                    raise
                self._give_up()  # blocks that are larger than ours
                continue
            if wrote % BLOCK:
                self._give_up()
            done += wrote

    def _took(self, size: int, seconds: float) -> None:
        with self._lock:
            self._bytes += size
            self._seconds += seconds
            if self._bytes < TRIAL_BYTES:
                return
            slow = self._bytes < LEAST_RATE * self._seconds
            self._bytes, self._seconds = 0, 0.0
        if slow:
            self._give_up()

    def _give_up(self) -> None:
        """Write by the page cache from now on."""
        with self._lock:
            if self.direct:
                fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~_DIRECT)
                self.direct = False
