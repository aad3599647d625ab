"""The collector's second opinion: bounded, parallel, right beside others, and never wrong about damage.

Guards GC.md §3.8: bytes vanish only if two algorithms agree that nobody needs them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from casstore import Artifact, Runtime, Settings, Store, StoreConfig, Version
from casstore.backend import ObjectInfo
from casstore.chunks import Fetched
from casstore.engine import Engine
from casstore.errors import ChunkMissingError, IntegrityError, StoreBusyError
from casstore.format.rows import decode_chunk, decode_row, encode_row, pack_of_row, refcount, with_refcount
from casstore.gc import counts as counts_module
from casstore.gc.counts import find_drift, take_snapshot
from casstore.gc.mark import mark
from casstore.gc.nodeset import NodeSet
from casstore.model import PackRow, PackState, Quarantine, VersionRow
from casstore.overlay import Changes, Tables
from casstore.state import CHUNK, NODE, PACK, VERSION, ZERO
from casstore.testing.checks import check_no_garbage, read_files, recount
from casstore.testing.recipes import SMALL

P = ParamSpec("P")
T = TypeVar("T")

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def noise(seed: int, size: int) -> bytes:
    return random.Random(f"mark {seed}").randbytes(size)


@dataclass
class World:
    """Handles on one store, which may be in memory."""

    url: str
    handles: list[Store]

    def open(self, *, create: bool = False, config: StoreConfig = SMALL) -> Store:
        runtime = Runtime(clock=lambda: NOW, sleep=lambda _: None, actor="me", writer=f"w{len(self.handles)}")
        settings = Settings(workers=2, index_map_bytes=1 << 20)
        if create:
            store = Store.create(self.url, config=config, runtime=runtime, settings=settings)
        else:
            store = Store.open(self.url, runtime=runtime, settings=settings)
        self.handles.append(store)
        return store

    def packs(self) -> set[str]:
        return {info.key for info in self.handles[0]._engine.backend.list("packs/")}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(str(tmp_path / "store"), [])
    yield world
    for store in world.handles:
        store.close()


@pytest.fixture(params=["lmdb", "memory"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A store on disk with its view in LMDB, and one in memory."""
    world = World(str(tmp_path / "store") if request.param == "lmdb" else f"memory://{tmp_path.name}-{os.getpid()}", [])
    yield world
    for store in world.handles:
        store.close()


def log(store: Store, files: dict[str, bytes], name: str = "c") -> Version:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact)


def erase(store: Store, ref: str) -> None:
    store.delete(ref, delete_aliases=True)
    store.trash.purge(ref)


def fill(store: Store, versions: int = 4, files: int = 40) -> dict[str, dict[str, bytes]]:
    """Versions with trees of several levels that share some of their content."""
    expected = {}
    for number in range(versions):
        content = {f"d{n % 5}/f{n}": noise(n + number * 7, 300) for n in range(files)}
        content["long"] = noise(number, 150_000)
        expected[log(store, content, f"c{number}").ref] = content
    return expected


def check(store: Store, expected: dict[str, dict[str, bytes]]) -> None:
    for ref, files in expected.items():
        assert read_files(store.get(ref)) == files


# ---------------------------------------------------------------- the set of nodes


def digests(count: int, seed: int = 0) -> list[bytes]:
    return sorted(hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(count))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 63, 257, 4096, 50_000])
def test_the_set_of_nodes_tells_its_members_apart(count: int) -> None:
    members = digests(count)
    found = NodeSet(count, members)
    assert len(found) == count
    order = random.Random(count).sample(members, count)
    for position, digest in enumerate(order):
        assert found.add(digest), "marked although it was not added"
        assert not found.add(digest)
        assert found.seen == position + 1


@pytest.mark.parametrize("shared", [1, 2, 7, 8, 9, 16])
def test_the_set_of_nodes_is_right_for_digests_that_are_alike(shared: int) -> None:
    """Contents made to have digests with the same beginning cost memory, not members."""
    rng = random.Random(shared)
    prefixes = [rng.randbytes(shared) for _ in range(3)]
    members = sorted({rng.choice(prefixes) + rng.randbytes(32 - shared) for _ in range(2000)} | set(digests(500)))
    found = NodeSet(len(members), members)
    assert len(found) == len(members)
    assert all(found.add(digest) for digest in rng.sample(members, len(members)))
    assert not any(found.add(digest) for digest in members)


@pytest.mark.parametrize("told", [0, 10, 5000])
def test_the_set_of_nodes_is_right_if_the_count_was_not(told: int) -> None:
    members = digests(1000)
    found = NodeSet(told, members)
    assert all(found.add(digest) for digest in members)
    assert not any(found.add(digest) for digest in members)


def test_most_strangers_are_recognised() -> None:
    found = NodeSet(20_000, digests(20_000))
    strangers = 0
    for digest in digests(2000, seed=1):
        try:
            found.add(digest)
        except KeyError:
            strangers += 1
    assert strangers > 1900


# ---------------------------------------------------------------- memory


class Fabricated:
    """`Tables` of a store in which every chunk is a node, and each holds the one before it."""

    def __init__(self, count: int) -> None:
        self.size = count

    def _digest(self, number: int) -> bytes:
        word = (number << 64) // self.size + random.Random(number).randrange((1 << 64) // self.size)
        return word.to_bytes(8, "big") + hashlib.md5(b"%d" % number, usedforsecurity=False).digest() + bytes(8)

    def get(self, table: str, key: bytes) -> bytes | None:
        return None

    def put(self, table: str, key: bytes, value: bytes) -> None:
        raise NotImplementedError

    def delete(self, table: str, key: bytes) -> None:
        raise NotImplementedError

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return [None for _ in keys]

    def change(self, table: str, changes: Changes) -> None:
        raise NotImplementedError

    @property
    def stamp(self) -> object:
        return None

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for number in range(self.size if table in {NODE, CHUNK} else 0):
            if table == NODE:
                yield self._digest(number), self._digest((number - 1) % self.size)
            else:
                yield self._digest(number), with_refcount(bytes(49), 1)

    def count(self, table: str) -> int:
        return self.size if table in {NODE, CHUNK} else 0


def peak_of(act: Callable[[], T]) -> tuple[T, int]:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = act()
        return result, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_what_is_seen_takes_less_than_two_bytes_a_chunk() -> None:
    """GC.md §3.8, also in the worst case, in which every chunk is a node: at the peak and for good."""
    count = 30_000
    snapshot, peak = peak_of(lambda: take_snapshot(Fabricated(count)))
    assert snapshot.agrees
    assert len(snapshot.nodes) == count
    assert snapshot.nodes.memory < 1.65 * count
    assert peak < 2 * count + 20_000


def test_the_memory_of_a_mark_hardly_grows_with_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it: the walk keeps neither what it has seen nor what it has yet to see, nor the roots."""
    monkeypatch.setattr("casstore.chunks.CACHE_BYTES", 0)
    monkeypatch.setattr("casstore.chunks.READ_SPAN", 1)
    monkeypatch.setattr("casstore.gc.mark.BATCH", 4)
    store = world.open(create=True, config=replace(SMALL, node_bytes=128))
    peaks: list[int] = []
    sizes: list[int] = []
    nodes: list[int] = []
    for number in range(2):
        artifact = Artifact(f"c{number}")
        for n in range(6000 if number else 1500):
            artifact.add_bytes(b"%d %d" % (number, n), f"d{n % 7}/f{n}")
        store.log_artifact(artifact)
        for _ in range(2):  # the first warms up
            marked, peak = peak_of(lambda: mark(store._engine, None))
        with store._engine.view.read() as tables:
            sizes.append(tables.count(CHUNK))
        nodes.append(marked.nodes)
        peaks.append(peak)
    assert nodes[1] - nodes[0] > 3000, "too few to tell"
    assert peaks[1] - peaks[0] < 2 * (sizes[1] - sizes[0]) + 150_000


def test_an_exact_recount_goes_by_shards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open(create=True)
    fill(store)
    assert not find_drift(store._engine)
    changed = spoil(store, lambda position, count: count + 5 if position % 3 == 0 else count)
    changed_low = spoil(store, lambda position, count: 0 if position % 5 == 1 else count)
    whole = find_drift(store._engine)
    assert whole.too_low == changed_low > 10
    assert changed >= whole.too_high > 10
    for shard in (1, 7, 100):
        monkeypatch.setattr(counts_module, "SHARD", shard)
        assert find_drift(store._engine) == whole


# ---------------------------------------------------------------- executors


class Courier(Executor):
    """Another process as far as a task can tell: everything travels as bytes."""

    def __init__(self) -> None:
        self.tasks = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self.tasks += 1
        function, arguments = pickle.loads(pickle.dumps((fn, args)))
        future: Future[T] = Future()
        future.set_result(pickle.loads(pickle.dumps(function(*arguments, **kwargs))))
        return future


class Broken(Executor):
    """Fails at once, or each task."""

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.tasks = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self.tasks += 1
        if self.at_once:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future()
        future.set_exception(OSError("a worker was killed"))
        return future


def test_any_executor_finds_the_same(world: World) -> None:
    store = world.open(create=True)
    expected = fill(store)
    erase(store, expected.popitem()[0])
    alone = mark(store._engine, None)
    assert alone.agrees
    assert alone.nodes > 40
    courier = Courier()
    with (
        ThreadPoolExecutor(3) as threads,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes,
    ):
        for executor in (threads, processes, courier, Broken(at_once=True), Broken(at_once=False)):
            assert mark(store._engine, None, executor=executor) == alone
        assert store.gc(grace=0, executor=processes).marked_nodes
    assert courier.tasks > 2
    check(store, expected)


def test_a_store_in_memory_is_marked_in_its_own_process(tmp_path: Path) -> None:
    world = World(f"memory://{tmp_path.name}-{os.getpid()}-own", [])
    store = world.open(create=True)
    fill(store)
    courier = Courier()
    assert mark(store._engine, None, executor=courier) == mark(store._engine, None)
    assert courier.tasks == 0
    store.close()


@pytest.mark.parametrize("kind", ["alone", "threads", "elsewhere"])
def test_any_executor_finds_damage(world: World, kind: str) -> None:
    store = world.open(create=True)
    fill(store)
    with ThreadPoolExecutor(2) as threads:
        executor = {"alone": None, "threads": threads, "elsewhere": Courier()}[kind]
        node = deep_node(store._engine)
        overwrite(world, store._engine, node)
        store._engine.reader._cache.clear()
        with pytest.raises(IntegrityError):
            mark(store._engine, None, executor=executor)


@pytest.mark.parametrize("kind", ["alone", "elsewhere"])
def test_nodes_known_to_be_damaged_are_walked_by_what_the_log_says(world: World, kind: str) -> None:
    """Damage that is known stops no collection, and hides nothing that lies below it."""
    store = world.open(create=True)
    fill(store)
    engine = store._engine
    executor = Courier() if kind == "elsewhere" else None
    whole = mark(engine, None)
    node = deep_node(engine)
    place = engine.view.locate([node])[0]
    assert place is not None
    with engine.view.read() as tables:
        rows = {digest: decode_chunk(row).location for digest, row in tables.scan(CHUNK)}
    frame = [d for d, at in rows.items() if (at.pack, at.frame_offset) == (place.pack, place.frame_offset)]
    overwrite(world, engine, node)
    engine.reader._cache.clear()
    with pytest.raises(IntegrityError):
        mark(engine, None, executor=executor)
    engine.commit(lambda _: [Quarantine(digest, place.pack) for digest in frame])
    assert mark(engine, None, executor=executor).nodes == whole.nodes
    with engine.view.read() as tables:
        below = (tables.get(NODE, node) or b"")[: len(node)]
    engine.view.update(lambda tables: tables.delete(CHUNK, below))
    with pytest.raises(IntegrityError):
        mark(engine, None, executor=executor)


def deep_node(engine: Engine) -> bytes:
    """A node that is no root."""
    with engine.view.read() as tables:
        roots = {decode_row(row, VersionRow).root for _, row in tables.scan(VERSION)}
        return next(digest for digest, _ in tables.scan(NODE) if digest not in roots)


def overwrite(world: World, engine: Engine, digest: bytes) -> None:
    """Destroy the frame that a chunk is in."""
    place = engine.view.locate([digest])[0]
    assert place is not None
    path = Path(world.url) / "packs" / place.pack.hex()[:2] / place.pack.hex()
    data = bytearray(path.read_bytes())
    data[place.frame_offset : place.frame_offset + place.frame_stored] = bytes(place.frame_stored)
    path.chmod(0o600)
    path.write_bytes(data)


# ---------------------------------------------------------------- beside others


def before_fetches(store: Store, acts: Iterable[Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Do one thing before each of the next times that nodes are read. Returns a list as long as what was done."""
    reader = store._engine.reader
    real = reader.fetch
    waiting = iter(acts)
    done: list[int] = []

    def fetch(wanted: Iterable[bytes]) -> Fetched:
        act = next(waiting, None)
        if act is not None:
            done.append(1)
            act()
            reader._cache.clear()
        return real(wanted)

    monkeypatch.setattr(reader, "fetch", fetch)
    return done


@pytest.mark.parametrize("executor", ["alone", "threads"])
def test_a_version_collected_under_the_mark_is_no_alarm(
    world: World, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two collectors at once: what the other purged and freed since the snapshot starts the walk over."""
    store, other = world.open(create=True), world.open()
    expected = fill(store)
    nodes = mark(store._engine, None).nodes

    def collect() -> None:
        ref = expected.popitem()[0]
        erase(other, ref)
        assert other.gc(grace=0, max_waste=0.0).freed_bytes > 100_000

    done = before_fetches(store, [lambda: None, collect, lambda: None, collect], monkeypatch)
    with ThreadPoolExecutor(1) as threads:
        marked = mark(store._engine, None, executor=threads if executor == "threads" else None)
    assert len(done) == 4
    assert 0 < marked.nodes < nodes
    assert marked.agrees
    monkeypatch.undo()
    assert mark(store._engine, None).nodes == marked.nodes
    check(store, expected)


def test_a_mark_that_is_overtaken_again_and_again_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = world.open(create=True), world.open()
    expected = fill(store, versions=7)
    refs = sorted(expected)

    def collect() -> None:
        erase(other, refs.pop(0))
        other.gc(grace=0, max_waste=0.0)

    before_fetches(store, [collect] * 5, monkeypatch)
    with pytest.raises(StoreBusyError) as busy:
        mark(store._engine, None)
    assert busy.value.exit_code == 13
    assert busy.value.hint
    monkeypatch.undo()
    assert mark(store._engine, None).agrees


@pytest.mark.parametrize("damage", ["pack", "row", "node row", "children"])
def test_damage_is_reported_beside_writers_that_never_rest(
    world: World, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits that have nothing to do with what is missing do not explain it."""
    store, other = world.open(create=True), world.open()
    fill(store)
    engine = store._engine
    victim = deep_node(engine)
    with engine.view.read() as tables:
        row = tables.get(CHUNK, victim)
    assert row is not None
    pack = pack_of_row(row).hex()
    if damage == "pack":
        os.unlink(Path(world.url) / "packs" / pack[:2] / pack)
    else:

        def spoiled(tables: Tables) -> None:
            if damage == "children":
                children = tables.get(NODE, victim) or b""
                tables.put(NODE, victim, children[: -len(victim)] or children * 2)
            else:
                tables.delete(CHUNK if damage == "row" else NODE, victim)

        engine.view.update(spoiled)
    count = iter(range(10_000))
    done = before_fetches(store, (functools.partial(log, other, {"x": b"%d" % n}, "busy") for n in count), monkeypatch)
    stat = engine.backend.stat

    def stat_while_busy(key: str) -> ObjectInfo:
        done.append(1)
        log(other, {"x": b"%d" % next(count)}, "busy")
        return stat(key)

    monkeypatch.setattr(engine.backend, "stat", stat_while_busy)
    before = world.packs()
    with pytest.raises(IntegrityError) as found:
        mark(engine, {bytes.fromhex(key[-32:]) for key in world.packs()})
    assert found.value.exit_code == 20
    assert done, "nobody was writing"
    assert before <= world.packs()


def free_all_data(store: Store) -> None:
    """Let the view say that nobody holds any chunk of any file."""

    def body(tables: Tables) -> None:
        for key, row in list(tables.scan(CHUNK)):
            if tables.get(NODE, key) is None:
                tables.put(CHUNK, key, with_refcount(row, 0))
                tables.put(ZERO, key, b"")

    store._engine.view.update(body)


def test_a_drop_on_wrong_counts_is_no_excuse(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dropped since the snapshot is looked at again, not skipped: the drop may have been the mistake."""
    store, other = world.open(create=True), world.open()
    expected = fill(store)

    def wrongly_dropped() -> None:
        free_all_data(other)
        assert other.gc(grace=10**6, max_waste=0.0, incremental=True).retired_packs

    done = before_fetches(store, [wrongly_dropped], monkeypatch)
    before = world.packs()
    with pytest.raises(ChunkMissingError):
        mark(store._engine, None)
    assert done
    assert before <= world.packs()
    monkeypatch.undo()
    store.rebuild_index()
    check(store, expected)


@pytest.mark.parametrize("moment", ["before the snapshot", "before nodes are read", "after nodes were read"])
def test_a_view_that_is_made_again_under_the_mark_hides_nothing(
    world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process rebuilds the index: for a while the view shows an empty store. No alarm, no blindness."""
    store, other = world.open(create=True), world.open()
    expected = fill(store)
    alone = mark(store._engine, None)
    where, name = (
        (store._engine.view, "refresh") if moment == "before the snapshot" else (store._engine.reader, "fetch")
    )
    real = getattr(where, name)
    times: list[int] = []

    def emptied(*wanted: object) -> object:
        times.append(1)
        if len(times) in {1, 3} and moment == "before nodes are read":
            other._engine.view._storage.reset()
        result = real(*wanted)
        if len(times) in {1, 3} and moment != "before nodes are read":
            other._engine.view._storage.reset()
        return result

    monkeypatch.setattr(where, name, emptied)
    assert mark(store._engine, None) == alone
    assert len(times) >= 3 or moment == "before the snapshot"
    monkeypatch.undo()
    check(store, expected)


def test_a_short_listing_is_looked_behind(world: World) -> None:
    store = world.open(create=True)
    fill(store)
    assert mark(store._engine, set()) == mark(store._engine, None)


# ---------------------------------------------------------------- counts


def spoil(store: Store, change: Callable[[int, int], int], *, listed: bool = False) -> int:
    """Change counts behind the log's back: (position, count) → count. ``listed``: in the work list too."""

    def body(tables: Tables) -> int:
        changed = 0
        for position, (key, row) in enumerate(list(tables.scan(CHUNK))):
            count = change(position, refcount(row))
            if count != refcount(row):
                tables.put(CHUNK, key, with_refcount(row, count))
                changed += 1
                if listed and count == 0:
                    tables.put(ZERO, key, b"")
        return changed

    return store._engine.view.update(body)


def garbage_and_content(store: Store) -> dict[str, dict[str, bytes]]:
    expected = fill(store, versions=2, files=20)
    erase(store, log(store, {"gone": noise(99, 50_000)}, "gone").ref)
    return expected


TOO_HIGH: dict[str, Callable[[int, int], int]] = {
    "all a million": lambda position, count: 10**6,
    "every third": lambda position, count: count + 1 if position % 3 == 0 else count,
    "one, by one": lambda position, count: count + (position == 11),
}
TOO_LOW: dict[str, Callable[[int, int], int]] = {
    "all nought": lambda position, count: 0,
    "some too low, some too high": lambda position, count: 0 if position % 2 else 10**6,
    "one, by one": lambda position, count: count - 1 if position in (5, 6, 7) and count else count,
}


@pytest.mark.parametrize("change", TOO_HIGH)
def test_counts_that_are_too_high_are_put_right(either: World, change: str) -> None:
    """R7: nothing live is freed, the report says what was found, the view is right again, and the garbage goes."""
    store = either.open(create=True)
    expected = garbage_and_content(store)
    assert spoil(store, TOO_HIGH[change])
    report = store.gc(grace=0, max_waste=0.0)
    assert any("too high and 0 too low" in error for error in report.errors)
    assert report.freed_bytes > 40_000
    check(store, expected)
    recount(store._engine)
    check_no_garbage(store)
    assert store.gc(grace=0).errors == []


@pytest.mark.parametrize("listed", [True, False], ids=["in the work list", "not in it"])
@pytest.mark.parametrize("change", TOO_LOW)
def test_counts_that_are_too_low_stop_everything(either: World, change: str, listed: bool) -> None:
    """R7: exit 20, nothing deleted, and the next collection works."""
    store = either.open(create=True)
    expected = garbage_and_content(store)
    assert spoil(store, TOO_LOW[change], listed=listed)
    before = either.packs()
    with pytest.raises(IntegrityError, match="too low") as stopped:
        store.gc(grace=0, max_waste=0.0)
    assert stopped.value.exit_code == 20
    assert stopped.value.hint
    assert either.packs() == before
    check(store, expected)
    recount(store._engine)
    report = store.gc(grace=0, max_waste=0.0)
    assert report.errors == []
    assert report.freed_bytes > 40_000
    check(store, expected)
    check_no_garbage(store)


@pytest.mark.parametrize("wrong", ["removed", "added", "of nothing"])
def test_a_wrong_list_of_garbage_is_put_right(either: World, wrong: str) -> None:
    store = either.open(create=True)
    expected = garbage_and_content(store)

    def body(tables: Tables) -> None:
        if wrong == "removed":
            for key, _ in list(tables.scan(ZERO)):
                tables.delete(ZERO, key)
        elif wrong == "added":
            for key, row in list(tables.scan(CHUNK))[::4]:
                if refcount(row):
                    tables.put(ZERO, key, b"")
        else:
            tables.put(ZERO, b"n" * 32, b"")

    store._engine.view.update(body)
    report = store.gc(grace=0, max_waste=0.0)
    assert any("list of garbage" in error for error in report.errors)
    assert report.freed_bytes > 40_000
    check(store, expected)
    recount(store._engine)
    check_no_garbage(store)


# ---------------------------------------------------------------- incremental


def many(store: Store) -> dict[str, dict[str, bytes]]:
    """A store of which one version is less than a tenth; each version has packs of its own."""
    expected = {}
    for number in range(16):
        files = {"x": noise(1000 + number, 40_000)}
        expected[log(store, files, f"m{number}").ref] = files
    return expected


def test_an_incremental_run_reads_no_tree(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cost is that of the garbage: no node of what is live is read."""
    store = world.open(create=True)
    expected = many(store)
    ref = "m3:v0"
    del expected[ref]
    erase(store, ref)
    done = before_fetches(store, [lambda: None] * 1000, monkeypatch)
    report = store.gc(grace=0, incremental=True)
    assert report.freed_bytes > 35_000
    assert report.marked_nodes == 0
    assert not done
    monkeypatch.undo()
    check(store, expected)
    check_no_garbage(store)


def test_an_incremental_run_that_deletes_much_is_marked_in_full(world: World) -> None:
    store = world.open(create=True)
    expected = many(store)
    for number in range(4):
        erase(store, f"m{number}:v0")
        del expected[f"m{number}:v0"]
    report = store.gc(grace=0, incremental=True)
    assert report.freed_bytes > 4 * 35_000
    assert report.marked_nodes >= len(expected)
    check(store, expected)


def test_an_incremental_run_finds_the_holder_of_what_a_wrong_count_freed(either: World) -> None:
    """One count too low in a large store: its pack is retired in the log, and not deleted."""
    store = either.open(create=True)
    expected = many(store)
    root = store.get("m5:v0")._found.version.root
    with store._engine.view.read() as tables:
        children = tables.get(NODE, root)
    assert children is not None

    def body(tables: Tables) -> None:
        for at in range(0, len(children), 32):
            child = children[at : at + 32]
            stack = [child]
            while stack:
                digest = stack.pop()
                row = tables.get(CHUNK, digest)
                assert row is not None
                below = tables.get(NODE, digest)
                if below is None:
                    tables.put(CHUNK, digest, with_refcount(row, 0))
                    tables.put(ZERO, digest, b"")
                else:
                    stack += [below[i : i + 32] for i in range(0, len(below), 32)]

    store._engine.view.update(body)
    before = either.packs()
    with pytest.raises(ChunkMissingError) as stopped:
        store.gc(grace=0, incremental=True)
    assert stopped.value.exit_code == 20
    assert before <= either.packs()
    store.rebuild_index()
    check(store, expected)
    assert store.gc(grace=0).errors == []
    check(store, expected)


def test_an_incremental_run_finds_the_version_whose_root_was_freed(either: World) -> None:
    store = either.open(create=True)
    expected = many(store)
    root = store.get("m5:v0")._found.version.root

    def body(tables: Tables) -> None:
        row = tables.get(CHUNK, root)
        assert row is not None
        tables.put(CHUNK, root, with_refcount(row, 0))
        tables.put(ZERO, root, b"")

    store._engine.view.update(body)
    before = either.packs()
    with pytest.raises(ChunkMissingError):
        store.gc(grace=0, incremental=True)
    assert before <= either.packs()
    store.rebuild_index()
    check(store, expected)


def test_an_incremental_run_asks_the_log_whether_a_pack_has_ended(either: World) -> None:
    """A row that went bad in the view is not enough to delete a pack."""
    store = either.open(create=True)
    expected = many(store)
    root = store.get("m5:v0")._found.version.root

    def body(tables: Tables) -> None:
        row = tables.get(CHUNK, root)
        assert row is not None
        pack = decode_row(tables.get(PACK, pack_of_row(row)) or b"", PackRow)
        forged = PackRow(PackState.RETIRED, pack.kind, pack.size, pack.raw, 0, 0, pack.since, pack.seq)
        tables.put(PACK, pack_of_row(row), encode_row(forged))

    store._engine.view.update(body)
    before = either.packs()
    with pytest.raises(IntegrityError, match="log does not say"):
        store.gc(grace=0, incremental=True)
    assert before == either.packs()
    store.rebuild_index()
    check(store, expected)


def test_what_a_rebuilt_view_says_is_live_is_not_deleted(either: World) -> None:
    """The veto may find that the view was wrong: the list of what has ended was made by that view."""
    store = either.open(create=True)
    expected = many(store)
    free_all_data(store)
    before = either.packs()
    with suppress(IntegrityError):
        store.gc(grace=0, max_waste=0.0, incremental=True)
    assert before <= either.packs()
    store.rebuild_index()
    check(store, expected)
