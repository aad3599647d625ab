"""What one seed turns on: a random subset of the faults at random rates, sizes, clocks, and who does what ("swarm")."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from casstore.config import ChunkerParams, StoreConfig

STORE_FAULTS = (
    "create-before",
    "create-after",
    "create-late",
    "read-before",
    "read-short",
    "stat-before",
    "list-before",
    "list-midway",
    "list-stale",
    "list-newest",
    "delete-before",
    "delete-after",
    "delete-late",
    "barrier-before",
)
"""what may happen to one call of a backend"""
HOST_FAULTS = ("crash", "stop", "jump")
"""what may happen to a process at any step"""
FAULTS = (*STORE_FAULTS, *HOST_FAULTS)

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND


@dataclass(frozen=True, slots=True)
class Options:
    """How one seed is played. ``rates``: fault → about how many calls (or steps) lie between two of them."""

    seed: int
    processes: int
    hosts: int
    shared_view: bool
    schedule: str
    """``uniform``, or ``pct``: strict priorities that change a few times"""
    changes: int
    """priority changes of ``pct``"""
    leap_every: int
    """steps between two leaps of time"""
    leap_most: int
    """longest leap, µs"""
    trash_days: float
    offset: int
    """µs by which clocks are wrong at most, either way, from the start"""
    drift: int
    """parts per million"""
    block_bytes: int
    frame_bytes: int
    pack_bytes: int
    node_bytes: int
    collections: int
    weights: str
    """name of the mix of operations"""
    rates: Mapping[str, int] = field(default_factory=dict)

    def config(self) -> StoreConfig:
        """The store of this seed."""
        return StoreConfig(
            digest="xxh3-128",
            chunker=ChunkerParams("fixed", 64, 64, 64),
            frame_bytes=self.frame_bytes,
            pack_bytes=self.pack_bytes,
            node_bytes=self.node_bytes,
            store_id="simulated",
        )

    def without(self, fault: str) -> Options:
        """The same without one kind of fault."""
        return replace(self, rates={kind: rate for kind, rate in self.rates.items() if kind != fault})

    @property
    def honest(self) -> bool:
        """True if no clock ever jumps, so that all are right up to ``offset`` and drift."""
        return "jump" not in self.rates


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One operation: who does what, and the seed of its choices. Dropping another one does not change it."""

    process: int
    kind: str
    seed: int


MIXES: dict[str, dict[str, int]] = {
    "all": {},
    "writers": {"write": 40, "log": 16, "gc": 10, "trash": 14, "purge": 10},
    "collectors": {"write": 26, "gc": 28, "undo": 5, "trash": 16, "purge": 14, "compact": 8},
    "views": {"rebuild": 10, "reopen": 8, "trash": 20},
    "names": {"trash": 20, "restore": 14, "alias": 14, "purge": 8},
    "drafts": {"draft": 24, "pin": 10, "unpin": 8, "gc": 18, "trash": 18, "purge": 14},
}


def draw(seed: int) -> Options:
    """The options of a seed."""
    rng = random.Random(f"options {seed}")
    chosen = [kind for kind in FAULTS if rng.random() < rng.choice((0.15, 0.4))] if rng.random() < 0.85 else []
    rates = {kind: rng.choice((20, 60, 200)) for kind in chosen}
    for kind, spans in (("crash", (300, 900, 2500)), ("stop", (200, 600)), ("jump", (300, 900))):
        if kind in rates:
            rates[kind] = rng.choice(spans)
    if "stat-before" in rates:
        rates["stat-before"] //= 20  # hardly anything is looked at by itself
    processes = rng.choice((2, 3, 3, 4))
    hosts = rng.choice((1, 2, 3, processes))
    return Options(
        seed=seed,
        processes=processes,
        hosts=min(hosts, processes),
        shared_view=rng.random() < 0.3,
        schedule=rng.choice(("uniform", "uniform", "pct")),
        changes=rng.choice((2, 8, 40)),
        leap_every=rng.choice((40, 150, 500)),
        leap_most=rng.choice((2 * HOUR, DAY, 10 * DAY)),
        trash_days=rng.choice((0.0, 0.5, 1.0, 3.0, 30.0)),
        offset=rng.choice((0, 0, 5 * MINUTE, 5 * MINUTE, 3 * HOUR)),
        drift=rng.choice((0, 0, 200)),
        block_bytes=64,
        frame_bytes=rng.choice((64, 256, 1024)),
        pack_bytes=rng.choice((300, 900, 4000, 12_000)),
        node_bytes=rng.choice((64, 128, 256, 1024)),
        collections=rng.choice((1, 2, 3)),
        weights=rng.choice(tuple(MIXES)),
        rates=rates,
    )


def plan(options: Options, kinds: Mapping[str, int], count: int) -> tuple[OpSpec, ...]:
    """The operations of a seed. ``kinds``: every kind there is and its usual weight."""
    rng = random.Random(f"plan {options.seed}")
    weights = {kind: MIXES[options.weights].get(kind, weight) for kind, weight in kinds.items()}
    names, numbers = list(weights), list(weights.values())
    first = [OpSpec(i % options.processes, "write", rng.getrandbits(48)) for i in range(min(count, options.processes))]
    rest = [
        OpSpec(rng.randrange(options.processes), kind, rng.getrandbits(48))
        for kind in rng.choices(names, numbers, k=count - len(first))
    ]
    return (*first, *rest)
