"""Do the counts in the view agree with the edges and roots they stand for? In bounded memory, without backend I/O.

The rows of the node table are what the log says of the nodes; that their bytes say the same is the walk's part
(`casstore.gc.mark`). Both together: the counts are those of the trees.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import mul

from casstore.engine import Engine
from casstore.format.rows import decode_row, refcount, refcounts
from casstore.gc.nodeset import NodeSet
from casstore.model import KEPT, PinRow, VersionRow
from casstore.overlay import Tables
from casstore.state import CHUNK, NODE, PIN, VERSION, ZERO, head_of
from casstore.values import dataclass

TOGETHER = 64
"""rows that are summed up together"""
WEIGHT = 16
"""bytes of a digest that are its weight"""
SHARD = 200_000
"""digests that are counted exactly at a time"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is to walk at one position, and whether the counts there are right."""

    at: int
    nodes: NodeSet
    agrees: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """How many digests are counted wrongly, or are on the wrong side of the zero-count table."""

    too_high: int = 0
    too_low: int = 0
    """counted lower than they are held, or held and not indexed"""
    misfiled: int = 0
    """count 0 and not in the zero-count table, or in it without being so"""

    def __bool__(self) -> bool:
        return bool(self.too_high or self.too_low or self.misfiled)

    def __str__(self) -> str:
        text = f"{self.too_high} counts were too high and {self.too_low} too low"
        return f"{text}, {self.misfiled} wrongly in or not in the list of garbage" if self.misfiled else text


def live_roots(tables: Tables) -> Iterator[bytes]:
    """The root of every version that is committed or in the trash and of every pin, one for each reference."""
    for _, row in tables.scan(VERSION):
        version = decode_row(row, VersionRow)
        if version.state in KEPT:
            yield version.root
    for _, row in tables.scan(PIN):
        yield from decode_row(row, PinRow).roots


def take_snapshot(tables: Tables) -> Snapshot:
    """One pass each over nodes, roots and chunks. Memory: that of the `NodeSet`.

    The sum of the digests over all edges and roots must be the sum over the counts. Digests are uniform, so different
    multisets of them have different sums but for one chance in 2^128.
    """
    held = _Sum()

    def nodes() -> Iterator[bytes]:
        for digest, row in tables.scan(NODE):
            held.add_row(row, len(digest))
            yield digest

    found = NodeSet(tables.count(NODE), nodes())
    for root in live_roots(tables):
        held.total += _weight(root)
    counted = 0
    free = 0
    filed = True
    rows = tables.scan(CHUNK)
    while part := list(islice(rows, TOGETHER)):
        digests = [digest for digest, _ in part]
        counts = refcounts([row for _, row in part])
        counted += _weights(digests, counts)
        if 0 in counts:
            zero = [digest for digest, count in zip(digests, counts, strict=True) if not count]
            free += len(zero)
            filed = filed and None not in tables.get_many(ZERO, zero)
    agrees = held.sound and held.total == counted and filed and free == tables.count(ZERO)
    return Snapshot(head_of(tables).seq, found, agrees)


def _weight(digest: bytes) -> int:
    return int.from_bytes(digest[:WEIGHT], "little")


def _weights(digests: Sequence[bytes], counts: Sequence[int]) -> int:
    """The sum of the weights of some digests, each as often as it counts."""
    joined = b"".join(digests)
    width = len(digests[0])
    if len(joined) != width * len(digests) or width % 8 or width < WEIGHT:
        return sum(count * _weight(digest) for digest, count in zip(digests, counts, strict=True))
    words = array("Q")
    words.frombytes(joined)
    if sys.byteorder == "big":
        words.byteswap()
    step = width // 8
    low: int = sum(map(mul, counts, words[::step]))
    high: int = sum(map(mul, counts, words[1::step]))
    return low + (high << 64)


class _Sum:
    """Adds up `_weight` of many digests."""

    def __init__(self) -> None:
        self.total = 0
        self.sound = True

    def add_row(self, row: bytes, width: int) -> None:
        """Add a row of digests of one width, a multiple of 8."""
        if len(row) % width:
            self.sound = False
            return
        words = array("Q")
        words.frombytes(row)
        if sys.byteorder == "big":
            words.byteswap()
        step = width // 8
        self.total += sum(words[::step]) + (sum(words[1::step]) << 64)


def find_drift(engine: Engine) -> Drift:
    """Count every holder again and compare, exactly. Only needed when the sums disagree.

    One pass over the node rows for each `SHARD` of digests, each in a transaction of its own: memory is bounded by
    the shard, and each comparison is of one position.
    """
    with engine.view.read() as tables:
        shards = tables.count(CHUNK) // SHARD + 1
    bounds = [(number << 64) // shards for number in range(shards)]
    total = Drift()
    for low, high in zip(bounds, [*bounds[1:], None], strict=True):
        start = low.to_bytes(8, "big") if low else b""
        end = None if high is None else high.to_bytes(8, "big")
        with engine.view.read() as tables:
            part = _recount(tables, start, end)
        total = Drift(total.too_high + part.too_high, total.too_low + part.too_low, total.misfiled + part.misfiled)
    return total


def _recount(tables: Tables, start: bytes, end: bytes | None) -> Drift:
    """`find_drift` for the digests from ``start`` to before ``end``."""

    def within(digest: bytes) -> bool:
        return digest >= start and (end is None or digest < end)

    holders: Counter[bytes] = Counter(root for root in live_roots(tables) if within(root))
    for digest, row in tables.scan(NODE):
        width = len(digest)
        children = (row[at : at + width] for at in range(0, len(row), width))
        holders.update(child for child in children if within(child))
    high = low = misfiled = 0
    for digest, row in tables.scan(CHUNK, start=start):
        if not within(digest):
            break
        count, true = refcount(row), holders.pop(digest, 0)
        high += count > true
        low += count < true
        misfiled += count == 0 and tables.get(ZERO, digest) is None
    for digest, _ in tables.scan(ZERO, start=start):
        if not within(digest):
            break
        found = tables.get(CHUNK, digest)
        misfiled += found is None or refcount(found) > 0
    return Drift(high, low + len(holders), misfiled)
