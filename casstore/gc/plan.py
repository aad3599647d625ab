"""What is dead, and what to do about each pack. Pure: reads the view, changes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import field
from enum import StrEnum
from itertools import islice

from casstore.config import GIB, StoreConfig
from casstore.format.rows import decode_row, length_of_row, pack_of_row, refcounts, stored_share
from casstore.model import ChunkKind, LostRow, PackRow, PackState
from casstore.overlay import Tables
from casstore.policy import DEFAULT_POLICY, Policy
from casstore.state import CHUNK, LOST, NO_PACK, NODE
from casstore.values import dataclass
from casstore.view import children_of, packs, unreferenced

SMALL_FRACTION = 0.25
TOGETHER = 256
"""digests whose rows are looked up together"""


class Fate(StrEnum):
    """What happens to a live pack."""

    KEEP = "keep"
    RETIRE = "retire"
    REPACK = "repack"


@dataclass(frozen=True, slots=True)
class PackFate:
    """A live pack, what of it is live and dead (plaintext bytes), and what is to be done, and why."""

    pack: bytes
    kind: ChunkKind
    size: int
    raw: int
    live: int
    fate: Fate
    reason: str

    @property
    def dead(self) -> int:
        """Plaintext bytes nobody needs: garbage and second copies."""
        return self.raw - self.live

    @property
    def dead_stored(self) -> int:
        """About how many of its stored bytes are garbage."""
        return self.size * self.dead // self.raw if self.raw else self.size


@dataclass(frozen=True, slots=True)
class Garbage:
    """Digests that nothing holds, parents before children, and the space they take."""

    nodes: tuple[bytes, ...] = ()
    chunks: tuple[bytes, ...] = ()
    raw: int = 0
    stored: int = 0
    by_pack: dict[bytes, list[bytes]] = field(default_factory=dict)
    raw_by_pack: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A collection, as it would be carried out now."""

    at: int
    garbage: Garbage
    fates: tuple[PackFate, ...]

    @property
    def idle(self) -> bool:
        """True if there is nothing to be done: garbage in packs that stay as they are waits."""
        waits = not self.garbage.nodes and NO_PACK not in self.garbage.by_pack
        return waits and all(pack.fate is Fate.KEEP for pack in self.fates)

    def packs(self, fate: Fate) -> list[PackFate]:
        """The packs of one fate, in the order they are to be worked on."""
        return [pack for pack in self.fates if pack.fate is fate]


@dataclass(frozen=True, slots=True)
class Limits:
    """How eager a collection is. ``max_waste``: share of a pack that may be garbage; None = the policy.

    ``store_waste``: share of the store that may, whatever it takes to get there; None = as far as the policy allows.
    """

    max_waste: float | None = None
    compact: bool = False
    policy: Policy = DEFAULT_POLICY
    store_waste: float | None = None


class Release:
    """Takes references away, one after the other, and tells what nothing holds any more. Memory: O(what was let go)."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._counts: dict[bytes, int] = {}

    @classmethod
    def of_living(cls, tables: Tables) -> Release:
        """One in which what is dead already holds nothing any more."""
        release = cls(tables)
        for _ in release.drain(unreferenced(tables)):
            pass
        return release

    def let_go(self, digests: Iterable[bytes]) -> list[bytes]:
        """Take one reference from each; those that had no other."""
        counts = self._counts
        given = list(digests)
        unknown = [digest for digest in dict.fromkeys(given) if digest not in counts]
        rows = self._tables.get_many(CHUNK, unknown)
        if None in rows:
            unknown = [digest for digest, row in zip(unknown, rows, strict=True) if row is not None]
        counts.update(zip(unknown, refcounts([row for row in rows if row is not None]), strict=True))
        free: list[bytes] = []
        for digest in given:
            count = counts.get(digest)
            if count is not None:
                counts[digest] = count - 1
                if count == 1:
                    free.append(digest)
        return free

    def drain(self, free: Iterable[bytes]) -> Iterator[tuple[bytes, list[bytes] | None]]:
        """What is free and all that becomes so with it, parents first; with its children, None if it is no node."""
        queue = deque(free)
        while queue:
            # A few at a time: their lists of children are in memory together.
            part = [queue.popleft() for _ in range(min(TOGETHER, len(queue)))]
            for digest, row in zip(part, self._tables.get_many(NODE, part), strict=True):
                if row is None:
                    yield digest, None
                    continue
                width = len(digest)
                children = [row[at : at + width] for at in range(0, len(row), width)]
                yield digest, children
                queue += self.let_go(children)


def garbage(tables: Tables, released: Iterable[bytes] | None = None) -> Garbage:
    """What would be dead if each of some roots lost one reference; without any, what is dead now.

    With ``released``, only what these roots alone keep alive is returned: what is dead already keeps nothing.
    Memory: O(garbage).
    """
    if released is None:
        dead = Release(tables).drain(unreferenced(tables))
    else:
        release = Release.of_living(tables)
        dead = release.drain(release.let_go(released))
    nodes: list[bytes] = []
    chunks: list[bytes] = []
    by_pack: dict[bytes, list[bytes]] = {}
    raw_by_pack: dict[bytes, int] = {}
    stored = 0
    while part := [(digest, children is None) for digest, children in islice(dead, TOGETHER)]:
        rows = tables.get_many(CHUNK, [digest for digest, _ in part])
        for (digest, leaf), row in zip(part, rows, strict=True):
            assert row is not None
            pack, length = pack_of_row(row), length_of_row(row)
            stored += stored_share(row)
            by_pack.setdefault(pack, []).append(digest)
            raw_by_pack[pack] = raw_by_pack.get(pack, 0) + length
            (chunks if leaf else nodes).append(digest)
    return Garbage(tuple(nodes), tuple(chunks), sum(raw_by_pack.values()), stored, by_pack, raw_by_pack)


def footprint_of(tables: Tables, root: bytes) -> int:
    """Stored bytes of everything below a root, whoever else needs it."""
    seen = {root}
    queue = [root]
    total = 0
    while queue:
        digest = queue.pop()
        row = tables.get(CHUNK, digest)
        if row is None:
            continue
        total += stored_share(row)
        for child in children_of(tables, digest) or ():
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return total


def make_plan(tables: Tables, at: int, config: StoreConfig, limits: Limits) -> Plan:
    """Fates with reasons for every live pack (docs/GC.md, repack policy)."""
    found = garbage(tables)
    damaged = _damaged(tables, found)
    judged = [_judge(name, row, found, limits) for name, row in packs(tables) if row.state is PackState.LIVE]
    judged = _small_packs(judged, config, limits)
    if limits.max_waste is None and not limits.compact:
        judged = _bounded(judged, limits)
    judged = [
        _with(pack, Fate.KEEP, "something in it is damaged and not healed yet")
        if pack.fate is Fate.REPACK and pack.pack in damaged
        else pack
        for pack in judged
    ]
    order = {Fate.RETIRE: 0, Fate.REPACK: 1, Fate.KEEP: 2}
    judged.sort(key=lambda pack: (order[pack.fate], -pack.dead / (pack.live + 1), pack.pack))
    return Plan(at, found, tuple(judged))


def _damaged(tables: Tables, found: Garbage) -> set[bytes]:
    """Packs with something in them that is needed and in quarantine: it cannot be moved, so they cannot end."""
    lost = ((digest, decode_row(row, LostRow)) for digest, row in tables.scan(LOST))
    dead = {pack: set(digests) for pack, digests in found.by_pack.items()} if tables.count(LOST) else {}
    return {row.pack for digest, row in lost if not row.erased and digest not in dead.get(row.pack, ())}


def _judge(name: bytes, row: PackRow, found: Garbage, limits: Limits) -> PackFate:
    live = row.placed_raw - found.raw_by_pack.get(name, 0)
    waste = 1 - live / row.raw if row.raw else 1.0
    if live == 0:
        return PackFate(name, row.kind, row.size, row.raw, live, Fate.RETIRE, "nothing in it is needed")
    allowed = limits.policy.node_waste if row.kind is ChunkKind.NODE else limits.policy.data_waste
    if limits.compact:
        allowed = 0.0
    elif limits.max_waste is not None:
        allowed = limits.max_waste
    elif limits.store_waste is not None:
        allowed = 0.0
    strict = limits.compact or limits.max_waste is not None
    if waste > allowed or (waste == allowed and waste > 0 and not strict):
        return PackFate(name, row.kind, row.size, row.raw, live, Fate.REPACK, f"{waste:.0%} of it is garbage")
    reason = f"{waste:.0%} of it is garbage, {allowed:.0%} is allowed" if waste > 0 else "all of it is needed"
    return PackFate(name, row.kind, row.size, row.raw, live, Fate.KEEP, reason)


def _with(pack: PackFate, fate: Fate, reason: str) -> PackFate:
    return PackFate(pack.pack, pack.kind, pack.size, pack.raw, pack.live, fate, reason)


def _small_packs(judged: list[PackFate], config: StoreConfig, limits: Limits) -> list[PackFate]:
    """Merge small packs when there are many and they make at least one whole pack, so that it ends."""
    chosen: set[bytes] = set()
    for kind in ChunkKind:
        small = [
            pack
            for pack in judged
            if pack.kind is kind and pack.fate is Fate.KEEP and pack.size < config.pack_bytes * SMALL_FRACTION
        ]
        full = sum(pack.size for pack in small) >= config.pack_bytes
        if (len(small) >= limits.policy.small_packs and full) or (limits.compact and len(small) > 1):
            chosen.update(pack.pack for pack in small)
    return [
        _with(pack, Fate.REPACK, "merged with other small packs") if pack.pack in chosen else pack for pack in judged
    ]


def _bounded(judged: list[PackFate], limits: Limits) -> list[PackFate]:
    """Repack the most rewarding packs only, until little waste is left or enough was copied."""
    policy = limits.policy
    total = sum(pack.size for pack in judged)
    waste = sum(pack.dead_stored for pack in judged)
    budget = min(max(total // 10, GIB), 10 * GIB) if policy.copy_bytes is None else policy.copy_bytes
    enough = policy.store_waste
    if limits.store_waste is not None:
        enough, budget = limits.store_waste, total
        total = sum(pack.live * pack.size // pack.raw if pack.raw else 0 for pack in judged)
    result: list[PackFate] = []
    for pack in sorted(judged, key=lambda p: (p.fate is not Fate.RETIRE, -p.dead / (p.live + 1))):
        if pack.fate is Fate.RETIRE:
            waste -= pack.size
        elif pack.fate is Fate.REPACK and pack.dead:
            copy = pack.size - pack.dead_stored
            if waste <= total * enough:
                reason = f"{enough:.0%} garbage in the whole store is allowed"
                result.append(_with(pack, Fate.KEEP, reason))
                continue
            if copy > budget:
                result.append(_with(pack, Fate.KEEP, "the copy budget of one run is used up"))
                continue
            budget -= copy
            waste -= pack.dead_stored
        result.append(pack)
    return result
