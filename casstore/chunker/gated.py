"""``gated-2026``: the reference in Python. Definition: docs/FORMAT.md §4.1; reasons: docs/decisions/0015.

A cheap hash, the gate, can be computed for many positions at once; a strong hash is asked only where it is open.

Cuts are part of the store format: all kernels give the same ones, and a change that moves one cut is a new algorithm
with a new name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Self

from casstore.chunker.kernels import Boundaries, Kernel, choose, cut_all
from casstore.digest import Buffer
from casstore.native import extension
from casstore.values import dataclass

ALGORITHM = "gated-2026"
TERMS = 8
TERM_BYTES = 32
TERM_BITS = 2
"""the gate is a sum of so many terms: each so many bytes further back, so many bits further up"""
FOLD = 7
"""bits the polynomial of a term is folded by, so that high bytes reach low bits"""
STRONG_BYTES = 64
SMALLEST_MINIMUM = STRONG_BYTES
"""so that no hash looks past the beginning of its chunk"""
LARGEST_MAXIMUM = 1 << 30
NORMALISATION = 2
"""bits a cut is made harder by before the average size, and easier by after it"""
RAREST_GATE = 10
"""the gate is never open more rarely than at one position in 2**10, so that its 16 bits have enough to choose from"""
LONGEST_STRIDE = 32

_MASK16 = (1 << 16) - 1
_MASK64 = (1 << 64) - 1
_BLOCK = 1024
"""ends that are prepared together; a matter of speed only"""


MULTIPLIER = 0x9D25
"""the first 2 bytes of SHA-256("casstore gate"), little-endian, made odd"""
KEYS = (
    0x1425D1EFD9ABD8BF,
    0xF9C8A7A1559040FB,
    0xCE62EC3B8DA00DDB,
    0x1591845F604454C3,
    0x71BC23BD32B932EB,
    0x3CFE5040BC9E68DF,
    0x6450BC57F79C79A5,
    0x6E02D91ED52760C1,
    0x10CF4F9D6018280B,
)
"""key k: the first 8 bytes of SHA-256("casstore cut" and the byte k), likewise; _gated.c holds the same"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What follows from the average size alone."""

    opening: int
    """the gate is open when its hash is at least this, and below 2**15"""
    stride: int
    """from an end with an open gate to the next that is looked at"""
    strict: int
    """what the strong hash must be below for a cut before the average size"""
    lenient: int
    """the same from the average size on"""

    @classmethod
    def of(cls, average: int) -> Self:
        """A cut falls where the gate is open (once in ``2**rarity``) and the strong hash is below its limit.

        Together that is once in ``2**(log2(average) + 2)`` and ``- 2``, the logarithm rounded down.
        """
        bits = average.bit_length() - 1
        rarity = min(RAREST_GATE, bits - 4)
        return cls(
            opening=(1 << 15) - (1 << (16 - rarity)),
            stride=min(LONGEST_STRIDE, 1 << (bits - 6)),
            strict=1 << (64 - (bits + NORMALISATION - rarity)),
            lenient=1 << (64 - (bits - NORMALISATION - rarity)),
        )


def boundaries(data: Buffer, minimum: int, average: int, maximum: int, final: bool) -> list[int]:  # noqa: FBT001 - the C signature
    """End offsets of the chunks of ``data``, ascending; each chunk starts where the one before ended.

    A chunk ends at the first of the ends that are looked at, from ``minimum`` on, whose gate is open and whose strong
    hash is below the limit (`Limits`: the strict one for less than ``average`` bytes). After an end with an open
    gate the next ``stride - 1`` are not looked at. A chunk that finds no such end ends after ``maximum`` bytes.

    Streaming: a chunk depends on its own bytes only. Unless ``final``, only cuts that more data cannot change are
    returned; pass the tail after the last one again, in front of what follows. When ``final`` the tail is the last
    chunk, which alone may be shorter than ``minimum``; empty data has no chunks. However the data is split, the cuts
    are the same.

    Raises ``ValueError`` for bad sizes, ``TypeError`` for what is no buffer, ``BufferError`` for one with gaps.
    """
    if not SMALLEST_MINIMUM <= minimum <= average <= maximum <= LARGEST_MAXIMUM:
        raise ValueError(f"chunk sizes {minimum} <= {average} <= {maximum} must rise from {SMALLEST_MINIMUM} to 2**30")
    return cut_all(data, maximum, lambda window: _first_cut(window, minimum, average, maximum), final=final)


def _first_cut(window: memoryview, minimum: int, average: int, maximum: int) -> int:
    """The length of the first chunk in at most ``maximum`` bytes, or 0 when more data could still decide."""
    limits = Limits.of(average)
    following = minimum
    for end in _open_ends(window, minimum, limits.opening):
        if end < following:
            continue
        if strong(window[end - STRONG_BYTES : end]) < (limits.strict if end < average else limits.lenient):
            return end
        following = end + limits.stride
    return maximum if len(window) == maximum else 0


def _open_ends(window: memoryview, first: int, opening: int) -> Iterator[int]:
    """The ends from ``first`` on, before that of the window, whose gate is open.

    The sum of terms is the sum 32 bytes before, two bits up, and one more term; what is two bits up for the eighth
    time is out of the 16.
    """
    gates = [0] * TERM_BYTES
    for end in range(first - TERM_BYTES, first if first < len(window) else 0):
        gates[end % TERM_BYTES] = gate(window[:end])
    for begin in range(first, len(window), _BLOCK):
        end = min(begin + _BLOCK, len(window))
        words = [low | high << 8 for low, high in pairwise(window[begin - 8 : end - 1])]
        ends = range(begin, end)
        for at, oldest, older, newer, newest in zip(ends, words, words[2:], words[4:], words[6:], strict=False):
            term = ((oldest * MULTIPLIER + older) * MULTIPLIER + newer) * MULTIPLIER + newest & _MASK16
            term ^= term >> FOLD
            value = gates[at % TERM_BYTES] = (gates[at % TERM_BYTES] << TERM_BITS) + term & _MASK16
            if opening <= value < 1 << 15:
                yield at


def gate(octets: memoryview) -> int:
    """The gate's hash behind some bytes of a chunk that begins with them; terms that would begin before it are 0."""
    total = 0
    for k, end in zip(range(TERMS), range(len(octets), 7, -TERM_BYTES), strict=False):
        oldest, older, newer, newest = struct.unpack("<4H", octets[end - 8 : end])
        term = ((oldest * MULTIPLIER + older) * MULTIPLIER + newer) * MULTIPLIER + newest & _MASK16
        total += (term ^ term >> FOLD) << TERM_BITS * k
    return total & _MASK16


def strong(octets: Buffer) -> int:
    """The strong hash of 64 bytes."""
    words: tuple[int, ...] = struct.unpack("<8Q", octets)
    total = sum(word * key for word, key in zip(words, KEYS[:8], strict=True)) & _MASK64
    return (total ^ total >> 32) * KEYS[8] & _MASK64


def _kernels() -> dict[str, Boundaries]:
    module = extension("chunker._gated")
    names = () if module is None else module.kernels()
    return {name: getattr(module, f"boundaries_{name}") for name in names} | {"python": boundaries}


KERNELS = _kernels()
"""those of this machine by name, the fastest first"""


def selected() -> Kernel:
    """The kernel in use. Raises `InvalidInputError`, see `kernels.choose`."""
    return choose(ALGORITHM, KERNELS)
