"""The second opinion: walk the tree nodes from every root, trusting bytes and not counts.

Two things are established about one position of the log. *Every reachable digest has a home*: a place in a pack
that is live in the log and present in the backend; then no retired or condemned pack is needed. *The counts
agree*: the sum over all (node, distinct child) edges and roots equals the sum the view's counts stand for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from casstore.engine import Engine
from casstore.errors import ChunkMissingError, IntegrityError, NotFoundError
from casstore.format.layout import pack_key
from casstore.format.nodes import Node, decode_node
from casstore.format.rows import decode_row, pack_of_row, refcount
from casstore.model import PackState, PinRow, Progress, VersionRow, VersionState, no_progress
from casstore.overlay import Tables
from casstore.state import CHUNK, NODE, PIN, VERSION, ZERO, head_of
from casstore.view import pack_at

BATCH = 256


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Roots and counts at one position."""

    at: int
    roots: tuple[bytes, ...]
    """one for each reference: a root of two versions is here twice"""
    loose: tuple[bytes, ...]
    """unreferenced nodes that still hold their children"""
    weight: int


@dataclass(frozen=True, slots=True)
class Marked:
    """What a mark found."""

    at: int
    nodes: int
    agrees: bool
    """the counts in the view are those of the trees"""


def take_snapshot(tables: Tables) -> Snapshot:
    """Roots and the weight of all counts. One pass over the chunk table."""
    roots: list[bytes] = []
    for _, value in tables.scan(VERSION):
        version = decode_row(value, VersionRow)
        if version.state in {VersionState.COMMITTED, VersionState.TRASHED}:
            roots.append(version.root)
    for _, pin in tables.scan(PIN):
        roots.extend(decode_row(pin, PinRow).roots)
    loose = [key for key, _ in tables.scan(ZERO) if tables.get(NODE, key) is not None]
    weight = 0
    for digest, chunk in tables.scan(CHUNK):
        count = refcount(chunk)
        if count:
            weight += count * _weight(digest)
    return Snapshot(head_of(tables).seq, tuple(roots), tuple(loose), weight)


def _weight(digest: bytes) -> int:
    # Digests are uniform, so different multisets of them have different sums but for one chance in 2^128.
    return int.from_bytes(digest[:16], "little")


def mark(engine: Engine, present: set[bytes] | None, progress: Progress = no_progress) -> Marked:
    """Walk everything reachable at the head. ``present``: packs the backend listed; None skips that check.

    Raises `ChunkMissingError` when something reachable has no home, `IntegrityError` when a node is damaged:
    then nothing may be deleted. Memory: one digest for each distinct node.
    """
    engine.view.refresh()
    with engine.view.read() as tables:
        snapshot = take_snapshot(tables)
    seen: set[bytes] = set()
    weight = sum(_weight(root) for root in snapshot.roots)
    homes = _Homes(engine, present)
    homes.check(snapshot.roots)
    for _, node in walk_nodes(engine, snapshot.roots, seen, progress):
        children = node.references()
        homes.check(children)
        weight += sum(_weight(child) for child in children)
    reached = len(seen)
    try:
        for _, node in walk_nodes(engine, snapshot.loose, seen, progress):
            weight += sum(_weight(child) for child in node.references())
    except IntegrityError:
        # Garbage may be damaged, or collected by another run: that proves nothing about what is live.
        return Marked(snapshot.at, reached, agrees=True)
    return Marked(snapshot.at, reached, weight == snapshot.weight)


def check_reachable(engine: Engine, roots: Iterable[bytes]) -> None:
    """Walk the trees below some roots. Raises `IntegrityError` when something in them has no home."""
    homes = _Homes(engine, None)
    homes.check(tuple(roots))
    for _, node in walk_nodes(engine, roots, set()):
        homes.check(node.references())


class _Homes:
    """Checks that digests are placed in live packs that exist."""

    def __init__(self, engine: Engine, present: set[bytes] | None) -> None:
        self.engine = engine
        self.present = present
        self.good: set[bytes] = set()

    def check(self, digests: Iterable[bytes]) -> None:
        for attempt in range(2):
            lost = self._lost(digests)
            if not lost:
                return
            if attempt == 0:
                self.engine.view.refresh()
        digest, why = lost[0]
        raise ChunkMissingError(
            f"{len(lost)} reachable chunks have no home, among them {digest.hex()}: {why}",
            hint="nothing was deleted; casstore fsck, then casstore index rebuild",
            digest=digest.hex(),
        )

    def _lost(self, digests: Iterable[bytes]) -> list[tuple[bytes, str]]:
        lost: list[tuple[bytes, str]] = []
        with self.engine.view.read() as tables:
            for digest in digests:
                row = tables.get(CHUNK, digest)
                if row is None:
                    lost.append((digest, "it is not indexed"))
                elif pack_of_row(row) not in self.good:
                    why = self._why_bad(tables, pack_of_row(row))
                    if why:
                        lost.append((digest, why))
        return lost

    def _why_bad(self, tables: Tables, pack: bytes) -> str:
        found = pack_at(tables, pack)
        if found is None or found.state is not PackState.LIVE:
            return f"its pack {pack.hex()} is not live"
        if self.present is not None and pack not in self.present and not self._exists(pack):
            return f"its pack {pack.hex()} is gone"
        self.good.add(pack)
        return ""

    def _exists(self, pack: bytes) -> bool:
        """A pack newer than the listing is looked at itself."""
        try:
            self.engine.backend.stat(pack_key(pack))
        except NotFoundError:
            return False
        return True


def walk_nodes(
    engine: Engine, roots: Iterable[bytes], seen: set[bytes], progress: Progress = no_progress
) -> Iterator[tuple[bytes, Node]]:
    """Every distinct node below some roots that is not in ``seen`` yet, which it is added to.

    Raises the `IntegrityError` of the first node that cannot be read.
    """
    queue: list[bytes] = []

    def push(digests: Iterable[bytes]) -> None:
        for digest in digests:
            if digest not in seen:
                seen.add(digest)
                queue.append(digest)

    push(roots)
    while queue:
        batch, queue[:] = queue[-BATCH:], queue[:-BATCH]
        fetched = engine.reader.fetch(batch)
        for digest in batch:
            node = decode_node(fetched.get(digest), f"node {digest.hex()}")
            if node.level:
                push(child.digest for child in node.children)
            else:
                push(entry.tree for entry in node.entries if entry.tree is not None)
                push(_twins(engine, node))
            yield digest, node
        progress("mark", len(seen), 0)


def _twins(engine: Engine, node: Node) -> list[bytes]:
    """Chunks of files that have the very bytes of a node that is indexed: what holds them holds its children too."""
    chunks = [digest for digest, _ in node.chunks]
    chunks += [digest for entry in node.entries for digest, _ in entry.chunks]
    with engine.view.read() as tables:
        return [digest for digest in chunks if tables.get(NODE, digest) is not None]


@dataclass(frozen=True, slots=True)
class Drift:
    """Digests whose count in the view is not the number of their holders."""

    too_high: tuple[bytes, ...]
    too_low: tuple[bytes, ...]


def find_drift(engine: Engine) -> Drift:
    """Count every holder again and compare, exactly. Memory: O(chunks); only used when sums disagree."""
    with engine.view.read() as tables:
        snapshot = take_snapshot(tables)
        counts = {digest: refcount(row) for digest, row in tables.scan(CHUNK)}
    holders: Counter[bytes] = Counter(snapshot.roots)
    seen: set[bytes] = set()
    for _, node in walk_nodes(engine, (*snapshot.roots, *snapshot.loose), seen):
        holders.update(node.references())
    high = tuple(digest for digest, count in counts.items() if count > holders[digest])
    low = tuple(digest for digest, count in counts.items() if count < holders[digest])
    return Drift(high, low)
