"""``fastcdc-2020``: the reference in Python; for stores made before ``gated-2026``.

Source: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems",
IEEE TPDS 31(9), 2020.

Cuts are part of the store format: both kernels give the same ones, and a change that moves one cut is a new
algorithm with a new name.
"""

from __future__ import annotations

import hashlib

from casstore.chunker.kernels import Boundaries, Kernel, choose, cut_all
from casstore.digest import Buffer
from casstore.native import extension

ALGORITHM = "fastcdc-2020"
HASH_BITS = 64
NORMALISATION = 2
"""bits a cut is made harder by before the average size, and easier by after it"""
SMALLEST_AVERAGE = 16
LARGEST_MAXIMUM = 1 << 30

_HASH_MASK = (1 << HASH_BITS) - 1


def _gear(byte: int) -> int:
    return int.from_bytes(hashlib.sha256(b"casstore gear" + bytes([byte])).digest()[:8], "little")


GEAR = tuple(_gear(byte) for byte in range(256))
"""one 64-bit number for each byte; _gear.c holds the same as constants"""


def limits(average: int) -> tuple[int, int]:
    """What the hash must be below for a cut, before and after the average size.

    Being below ``2**(64 - n)`` is having zeros under a mask of the top n bits; n is ``log2(average) + 2`` before and
    ``- 2`` after, the logarithm rounded down. The top bits are taken because the hash shifts left: the topmost
    depends on the last 64 bytes, the lowest on the last byte only.
    """
    bits = average.bit_length() - 1
    return 1 << (HASH_BITS - bits - NORMALISATION), 1 << (HASH_BITS - bits + NORMALISATION)


def boundaries(data: Buffer, minimum: int, average: int, maximum: int, final: bool) -> list[int]:  # noqa: FBT001 - the C signature
    """End offsets of the chunks of ``data``, ascending; each chunk starts where the one before ended.

    Within a chunk the gear hash ``h = 2h + GEAR[byte]`` (modulo 2**64) starts from 0 at byte ``minimum``. The chunk
    ends after the first byte that leaves the hash below the limit (`limits`: the strict one up to ``average`` bytes,
    the lenient one from there on), at the latest after ``maximum`` bytes.

    Streaming: a chunk depends on its own bytes only. Unless ``final``, only cuts that more data cannot change are
    returned; pass the tail after the last one again, in front of what follows. When ``final`` the tail is the last
    chunk, which alone may be shorter than ``minimum``; empty data has no chunks. However the data is split, the cuts
    are the same.

    Raises ``ValueError`` for bad sizes, ``TypeError`` for what is no buffer, ``BufferError`` for one with gaps.
    """
    if not (1 <= minimum <= average <= maximum <= LARGEST_MAXIMUM and average >= SMALLEST_AVERAGE):
        raise ValueError(
            f"chunk sizes {minimum} <= {average} <= {maximum} must rise from 1 to 2**30, "
            f"and the average be at least {SMALLEST_AVERAGE}"
        )
    return cut_all(data, maximum, lambda window: _first_cut(window, minimum, average, maximum), final=final)


def _first_cut(window: memoryview, minimum: int, average: int, maximum: int) -> int:
    """The length of the first chunk in at most ``maximum`` bytes, or 0 when more data could still decide."""
    gear, hash_mask = GEAR, _HASH_MASK
    strict, lenient = limits(average)
    value = 0
    for begin, end, limit in ((minimum, average, strict), (average, maximum, lenient)):
        for length, byte in enumerate(window[begin:end], begin + 1):
            value = (value + value + gear[byte]) & hash_mask
            if value < limit:
                return length
    return maximum if len(window) == maximum else 0


def _kernels() -> dict[str, Boundaries]:
    module = extension("chunker._gear")
    return ({} if module is None else {"c": module.boundaries}) | {"python": boundaries}


KERNELS = _kernels()
"""those of this machine by name, the fastest first"""


def selected() -> Kernel:
    """The kernel in use. Raises `InvalidInputError`, see `kernels.choose`."""
    return choose(ALGORITHM, KERNELS)
