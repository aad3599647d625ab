"""Where to cut a file: chunk boundaries from content, the same in every process and for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from casstore.chunker import gated
from casstore.chunker.kernels import Kernel
from casstore.config import ChunkerParams
from casstore.digest import Buffer
from casstore.errors import UnsupportedFormatError
from casstore.values import dataclass

__all__ = ["Chunker", "FastCDC", "Fixed", "Gated", "chunker_for", "kernel"]


class Chunker(Protocol):
    """Finds chunk boundaries. Thread-safe, without state, picklable."""

    @property
    def params(self) -> ChunkerParams:
        """The algorithm and its sizes."""
        ...

    @property
    def kernel(self) -> str:
        """Which implementation runs: ``avx2``, ``neon``, ``c`` or ``python``. All give the same cuts."""
        ...

    def boundaries(self, data: Buffer, *, final: bool) -> list[int]:
        """End offsets of the chunks of ``data``, ascending; the first chunk starts at 0.

        Unless ``final``, only cuts that more data cannot change: pass the tail after the last one again, in front of
        what follows. When ``final`` the last offset is the size of the data; empty data has no chunks. However the
        data is split, the cuts are the same. The buffer must not change during the call.
        """
        ...


class _ByContent:
    """Boundaries follow content, so an insertion moves few of them; found by a kernel."""

    __slots__ = ()
    params: ChunkerParams
    _kernel: Kernel

    @property
    def kernel(self) -> str:
        """See `Chunker.kernel`."""
        return self._kernel.name

    def boundaries(self, data: Buffer, *, final: bool) -> list[int]:
        """See `Chunker.boundaries`."""
        params = self.params
        return self._kernel.boundaries(data, params.minimum, params.average, params.maximum, final)

    def __reduce__(self) -> tuple[type[_ByContent], tuple[ChunkerParams]]:
        return type(self), (self.params,)  # the kernel is chosen where it is unpickled


@dataclass(frozen=True, slots=True)
class Gated(_ByContent):
    """``gated-2026``: vectorised."""

    params: ChunkerParams
    _kernel: Kernel = field(init=False, repr=False, compare=False, default_factory=gated.selected)


def _fastcdc() -> Kernel:
    from casstore.chunker import fastcdc  # noqa: PLC0415 - start-up: it makes a table, which older stores need

    return fastcdc.selected()


@dataclass(frozen=True, slots=True)
class FastCDC(_ByContent):
    """``fastcdc-2020``: one byte at a time; of stores that were made with it."""

    params: ChunkerParams
    _kernel: Kernel = field(init=False, repr=False, compare=False, default_factory=lambda: _fastcdc())


@dataclass(frozen=True, slots=True)
class Fixed:
    """``fixed``: a boundary each ``average`` bytes; for data that never shifts, such as disk images."""

    params: ChunkerParams

    @property
    def kernel(self) -> str:
        """See `Chunker.kernel`."""
        return "python"

    def boundaries(self, data: Buffer, *, final: bool) -> list[int]:
        """See `Chunker.boundaries`."""
        with memoryview(data) as view:
            size = view.nbytes
        step = self.params.average
        ends = list(range(step, size + 1, step))
        if final and size % step:
            ends.append(size)
        return ends


_ALGORITHMS: dict[str, Callable[[ChunkerParams], Chunker]] = {
    gated.ALGORITHM: Gated,
    "fastcdc-2020": FastCDC,
    "fixed": Fixed,
}


def chunker_for(params: ChunkerParams) -> Chunker:
    """The chunker a store asks for.

    Raises `UnsupportedFormatError` for an algorithm this version does not know, `InvalidInputError` when
    ``CASSTORE_CHUNKER_KERNEL`` demands a kernel that is not here.
    """
    try:
        algorithm = _ALGORITHMS[params.algorithm]
    except KeyError:
        raise UnsupportedFormatError(
            f"unknown chunking algorithm {params.algorithm!r}",
            hint="the store was made by a newer casstore: upgrade",
        ) from None
    return algorithm(params)


def kernel() -> str:
    """The kernel that new stores are cut with here. Raises `InvalidInputError`, see `chunker_for`."""
    return gated.selected().name
