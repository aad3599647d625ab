"""Which chunks resemble one another. Pure; nothing of it is stored.

A chunk is sampled where a rolling hash of the last few bytes says so, about each 32nd byte: where content is the same,
so are the samples, wherever it stands. Each of 16 functions picks one of the samples, the one it makes the greatest; so
the share of picks that two chunks have in common is, on average, the share of samples that they have in common (Broder,
"On the resemblance and containment of documents", 1997; sampling by content as in Zou et al., "Odess", ICDE 2021).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from casstore.digest import Buffer
from casstore.native import extension

FEATURES = 16
SIZE = FEATURES * 4
"""bytes of the features of a chunk"""
AGREEING = 2
"""features two chunks have in common, of those that resemble one another"""
SAMPLE_SHIFT = 4
SAMPLE_MASK = 31
SCATTER = 0x9E3779B1
_WORD = (1 << 32) - 1
_LONG = (1 << 64) - 1

_module = extension("gc._sketch")
_compiled: Callable[[Buffer], bytes] | None = None if _module is None else _module.features


def _mix(number: int) -> int:
    """splitmix64's scrambling of a number."""
    number = number * 0x9E3779B97F4A7C15 & _LONG
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _LONG
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _LONG
    return number ^ number >> 31


_TABLE = tuple(_mix(byte + 1) & _WORD for byte in range(256))
_FUNCTIONS = tuple((_mix(257 + 2 * j) & _WORD | 1, _mix(258 + 2 * j) & _WORD) for j in range(FEATURES))


def features(data: Buffer) -> bytes:
    """The features of a chunk, `SIZE` bytes: numbers of 32 bits, 0 where nothing was sampled. Thread-safe."""
    value = 0
    samples: set[int] = set()
    with memoryview(data) as view:
        for byte in view.cast("B"):
            value = (value + value + _TABLE[byte]) & _WORD
            if not value >> SAMPLE_SHIFT & SAMPLE_MASK:
                sample = value * SCATTER & _WORD
                samples.add(sample ^ sample >> 15)
    most = [max((factor * s + offset & _WORD for s in samples), default=0) for factor, offset in _FUNCTIONS]
    return b"".join(number.to_bytes(4, "little") for number in most)


def selected() -> Callable[[Buffer], bytes]:
    """`features`, compiled where there is a compiler."""
    return features if _compiled is None else _compiled


def alike(sketches: Sequence[Buffer]) -> array[int]:
    """Groups of chunks that resemble one another, given the features of each: the number of its group for each.

    A chunk joins the group most of its features were last seen in, if at least `AGREEING` were; else it begins one.
    Groups are numbered in the order in which they begin. Memory: 130 bytes a chunk, features included.
    """
    count = len(sketches)
    before = [_last_seen(sketches, j) for j in range(FEATURES)]
    groups = array("I", bytes(4 * count))
    begun = 0
    for i in range(count):
        votes: dict[int, int] = {}
        best, most = -1, AGREEING - 1
        for column in before:
            last = column[i]
            if last >= 0:
                group = groups[last]
                votes[group] = votes.get(group, 0) + 1
                if votes[group] > most:
                    best, most = group, votes[group]
        if best < 0:
            best, begun = begun, begun + 1
        groups[i] = best
    return groups


def _last_seen(sketches: Sequence[Buffer], feature: int) -> array[int]:
    """For each chunk the one before it that has the same feature; -1 if none has."""
    at = feature * 4
    values = array("I", (int.from_bytes(sketch[at : at + 4], "little") for sketch in sketches))
    before = array("i", [-1]) * len(values)
    last = -1
    for i in sorted(range(len(values)), key=values.__getitem__):
        if last >= 0 and values[last] == values[i] != 0:
            before[i] = last
        last = i
    return before
