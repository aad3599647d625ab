"""A set of digests that takes about a byte and a half each: which nodes there are, and which were seen."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable

PER_BUCKET = 4
GROUP = 64
"""buckets that share a stored start"""
FULL = 255
"""entries a bucket can count"""


class NodeSet:
    """Digests in ascending order, fixed when it is made, each with a mark. Not thread-safe.

    An entry is found by its bucket, which the first bits of the digest give, and by the 8 bits that follow them.
    Entries that agree in both, 1.6 % of them, are told apart by their first 64 bits, kept for these alone; and what
    even so cannot be told apart, or overfills a bucket, is kept whole. So *members* are never mistaken for one another,
    whatever the digests are. A digest that is *no member* is recognised as such in most cases only: it must be
    asked for by nobody (see `casstore.gc.mark`).

    Memory, for digests that are uniform: 1 byte for the 8 bits, 1/4 + 1/32 for the buckets, 1/8 for the mark, 1/8
    for the 1.6 %: below 1.6 bytes a member.
    """

    def __init__(self, count: int, digests: Iterable[bytes]) -> None:
        """``digests`` ascending and distinct, ``count`` of them (a wrong count costs memory, nothing else)."""
        self._buckets = max(1, count // PER_BUCKET)
        self._sizes = bytearray(self._buckets)
        self._prints = bytearray(count)
        self._twice = array("Q")
        """first 64 bits of entries whose bucket and print another entry has too, ascending"""
        self._whole: dict[bytes, bool] = {}
        """digest → seen"""
        self._length = self._fill(digests)
        self._starts = array("Q")
        start = 0
        for first in range(0, self._buckets, GROUP):
            self._starts.append(start)
            start += sum(self._sizes[first : first + GROUP])
        self._seen = bytearray((self._length + len(self._twice) + 7) // 8)
        self.seen = 0
        """members that were added"""

    def _fill(self, digests: Iterable[bytes]) -> int:
        buckets, sizes, prints, twice = self._buckets, self._sizes, self._prints, self._twice
        length = 0
        last_word = last_place = -1
        repeated = False
        for digest in digests:
            word = int.from_bytes(digest[:8], "big")
            place = (word * buckets) >> 56
            bucket = place >> 8
            if word == last_word or sizes[bucket] == FULL:
                self._whole[digest] = False
                continue
            if place != last_place:
                repeated = False
            elif repeated:
                twice.append(word)
            else:
                twice.extend((last_word, word))
                repeated = True
            if length < len(prints):
                prints[length] = place & 0xFF
            else:
                prints.append(place & 0xFF)
            sizes[bucket] += 1
            length += 1
            last_word, last_place = word, place
        del prints[length:]
        return length

    def __len__(self) -> int:
        return self._length + len(self._whole)

    @property
    def memory(self) -> int:
        """Bytes it takes."""
        whole = sys.getsizeof(self._whole) + sum(sys.getsizeof(digest) for digest in self._whole)
        parts = (self._sizes, self._prints, self._twice, self._starts, self._seen)
        return whole + sum(sys.getsizeof(part) for part in parts)

    def _find(self, digest: bytes) -> int:
        """The number of an entry's mark, or -1 if the digest is certainly no member."""
        word = int.from_bytes(digest[:8], "big")
        place = (word * self._buckets) >> 56
        bucket, print_ = place >> 8, place & 0xFF
        group = bucket // GROUP
        low = self._starts[group] + sum(self._sizes[group * GROUP : bucket])
        high = low + self._sizes[bucket]
        at = self._prints.find(print_, low, high)
        if at + 1 < high and at >= 0 and self._prints[at + 1] == print_:
            rank = bisect_left(self._twice, word)
            found = rank < len(self._twice) and self._twice[rank] == word
            return self._length + rank if found else -1
        return at

    def add(self, digest: bytes) -> bool:
        """Mark a member as seen; True the first time. Raises `KeyError` for what is certainly no member."""
        known = self._whole.get(digest)
        if known is not None:
            self._whole[digest] = True
            self.seen += not known
            return not known
        at = self._find(digest)
        if at < 0:
            raise KeyError(digest)
        bit = 1 << (at & 7)
        if self._seen[at >> 3] & bit:
            return False
        self._seen[at >> 3] |= bit
        self.seen += 1
        return True
