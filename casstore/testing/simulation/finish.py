"""The second phase: nothing fails any more. What was promised is there, and what nobody needs goes."""

from __future__ import annotations

import random
from collections import Counter

from casstore.errors import IntegrityError
from casstore.format.layout import PACK_PREFIX, pack_of
from casstore.gc.moving import read_footer
from casstore.gc.plan import Limits, make_plan
from casstore.index import MemoryIndex
from casstore.model import ChunkKind
from casstore.policy import DEFAULT_POLICY
from casstore.state import TABLES, head_of, state_hash
from casstore.testing.simulation.conformance import LIVE
from casstore.testing.simulation.host import Host, Process
from casstore.testing.simulation.names import COMMITTED, Difference
from casstore.testing.simulation.options import DAY
from casstore.testing.simulation.world import World
from casstore.tree import chunk_list, walk

ROUNDS = 8
LONG = 400 * DAY
"""after which everything in the trash is due, however wrong clocks were"""


def finish(world: World) -> None:
    """Check the world at rest, then collect until nothing changes, and check what is left."""
    world.machine.check()
    _replicas(world)
    janitor = _janitor(world)
    _read_all(world, janitor)
    # A pack waits until the collector's clock shows when it ended, by the clock of whoever ended it.
    world.true = max([world.true, *(moment.claimed for moment in world.machine.log)]) + DAY
    rng = random.Random(f"finish {world.options.seed}")
    if rng.random() < 0.5:
        _by_policy(world, janitor)
    _compacted(world, janitor)
    _read_all(world, janitor)
    if rng.random() < 0.3:
        _expired(world, janitor)


def _replicas(world: World) -> None:
    """Every replica that is left says the same, and what the abstract machine says."""
    hashes: dict[bytes, str] = {}
    for process in world.processes:
        if process.store is None:
            continue
        world.current = process
        engine = process.engine
        engine.view.refresh()
        with engine.view.read() as tables:
            hashes.setdefault(state_hash(tables), process.name)
            if len(hashes) > 1:
                raise Difference("replicas", f"{' and '.join(hashes.values())} have different states")


def _janitor(world: World) -> Process:
    process = Process(world, "janitor", Host("clean", 0, 0), ())
    process.quiet = process.exempt = True
    process.name = "janitor.1"
    process.storage = MemoryIndex(TABLES)
    world.current = process
    process.open()
    with process.engine.view.read() as tables:
        world.machine.compare(process.name, tables)
        fresh = state_hash(tables)
    for other in world.processes:
        if other.store is not None:
            with other.engine.view.read() as tables:
                if state_hash(tables) != fresh:
                    raise Difference("replicas", f"{other.name} differs from the log")
            break
    return process


def _read_all(world: World, janitor: Process) -> None:
    """R1: every version that was not purged has the files it was logged with, those in the trash too."""
    engine = janitor.engine
    engine.reader._cache.clear()  # noqa: SLF001 - the bytes themselves are to be read
    engine._nodes.clear()  # noqa: SLF001
    done: set[bytes] = set()
    for name, number, version in world.oracle.all_versions():
        if version.root in done:
            continue
        done.add(version.root)
        world.oracle.check_read(name, number, version.root, _files(janitor, version.root))
    for roots in world.machine.pins.values():
        for root in roots:
            if root not in done:
                _files(janitor, root)


def _files(janitor: Process, root: bytes) -> dict[str, bytes]:
    engine = janitor.engine
    found: dict[str, bytes] = {}
    for entry in walk(root, engine.node):
        digests = [digest for digest, _ in entry.chunks]
        if entry.tree is not None:
            digests = [digest for _, digest, _ in chunk_list(entry.tree, engine.node)]
        got = engine.reader.fetch(digests)
        found[entry.path] = b"".join(got.get(digest) for digest in digests)
    return found


def _collect(world: World, janitor: Process, **options: object) -> None:
    """Collect until nothing changes any more."""
    assert janitor.store is not None
    for _ in range(ROUNDS):
        before = (world.machine.endings, len(world.store.objects) - world.machine.seq)
        try:
            janitor.store.gc(**options)  # type: ignore[arg-type]
        except IntegrityError as error:
            raise Difference("integrity", f"a collection at rest stopped: {error}") from error
        if (world.machine.endings, len(world.store.objects) - world.machine.seq) == before:
            world.machine.check()
            return
    raise Difference("liveness", f"{ROUNDS} collections in a row changed something")


def _by_policy(world: World, janitor: Process) -> None:
    """R6: by the rules of every day nothing unknown or ended stays, and no more waste than they allow."""
    world.true += 3 * DAY
    _collect(world, janitor, grace=0)
    _no_strangers(world)
    engine = janitor.engine
    with engine.view.read() as tables:
        plan = make_plan(tables, head_of(tables).seq, engine.config, Limits())
    total = sum(fate.size for fate in plan.fates)
    waste = sum(fate.dead_stored for fate in plan.fates)
    for fate in plan.fates:
        allowed = DEFAULT_POLICY.node_waste if fate.kind is ChunkKind.NODE else DEFAULT_POLICY.data_waste
        if fate.dead > allowed * fate.raw and waste > DEFAULT_POLICY.store_waste * total:
            raise Difference("R6", f"pack {fate.pack.hex()[:8]} keeps {fate.dead} of {fate.raw} bytes of garbage")


def _no_strangers(world: World) -> None:
    for key in world.store.objects:
        if key.startswith(PACK_PREFIX):
            pack = pack_of(key)
            assert pack is not None
            if world.machine.packs.get(pack) != LIVE:
                state = world.machine.packs.get(pack)
                raise Difference("R6", f"pack {pack.hex()[:8]} is there although it is {state or 'unknown'}")


def _compacted(world: World, janitor: Process) -> None:
    """After a full compaction the packs hold what is needed, each digest once, and nothing else."""
    world.true += DAY
    _collect(world, janitor, grace=0, orphan_age=0, max_waste=0.0)
    _collect(world, janitor, offline=True)
    _no_strangers(world)
    stored: Counter[bytes] = Counter()
    for key, (data, _) in world.store.objects.items():
        pack = pack_of(key) if key.startswith(PACK_PREFIX) else None
        if pack is not None:
            stored.update(read_footer(janitor.engine, pack, len(data)).content.digests)
    needed = world.machine.reachable()
    if set(stored) != needed:
        raise Difference("R6", f"{len(set(stored) - needed)} digests too many, {len(needed - set(stored))} too few")
    if len(stored) != stored.total():
        raise Difference("R6", "some digests are stored twice")
    if set(world.machine.chunks) != needed:
        raise Difference("R6", "the index knows digests that nobody needs")


def _expired(world: World, janitor: Process) -> None:
    """When its time has come, what is in the trash goes, and so do pins."""
    assert janitor.store is not None
    # Time counts in full only if one writer saw it pass: an idle store's clock stands still.
    janitor.store.set_policy(grace=3600)
    world.true += LONG
    _collect(world, janitor, grace=0)  # what is past its time to live goes into the trash only now
    world.true += LONG
    _compacted(world, janitor)
    left = [v for _, _, v in world.oracle.all_versions() if v.state is not COMMITTED]
    if left or world.machine.pins:
        raise Difference(
            "R6", f"{len(left)} versions in the trash and {len(world.machine.pins)} pins outlived their time"
        )
