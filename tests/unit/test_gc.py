"""What the collector keeps, what it frees, and what it says about it.

Guards I3, I4 and I5 of docs/GC.md, FEATURES L1-L3, M1-M3 and Q11: content lives as long as any one holder does, and
its bytes are gone from the disk when the last one went; whatever happens in between, at any effect.
"""

from __future__ import annotations

import gc as python_gc
import hashlib
import importlib
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from casstore import Artifact, GCReport, Runtime, Settings, Store, StoreConfig, Version
from casstore.backend import ObjectInfo
from casstore.backend.osops import OsOps, StrPath
from casstore.engine import Build, Committed, Engine
from casstore.errors import (
    BackendError,
    CasstoreError,
    ConflictError,
    GCDisabledError,
    IntegrityError,
    InvalidInputError,
    RefusedError,
    VersionNotFoundError,
)
from casstore.format.layout import pack_key
from casstore.format.rows import refcount, with_refcount
from casstore.gc.counts import find_drift
from casstore.gc.mark import mark
from casstore.model import GCRun
from casstore.overlay import Tables
from casstore.state import CHUNK, ZERO
from casstore.testing.checks import check_no_garbage, read_files, recount, stored_digests
from casstore.testing.machine import START
from casstore.testing.recipes import SMALL

T = TypeVar("T")

# Cut so, what is left of a byte range shares nearly all of its chunks with the whole.
CONFIG = replace(SMALL, chunker=replace(SMALL.chunker, algorithm="fastcdc-2020"))
KIB = 1024
BLOB = random.Random(1).randbytes(200 * KIB)
OTHER = random.Random(2).randbytes(120 * KIB)
DAY = timedelta(days=1)


# ---------------------------------------------------------------- a store, its clock, its disk


class HookedOps(OsOps):
    """`OsOps` that calls something before one of its effects, once."""

    def __init__(self) -> None:
        super().__init__(crash_at=0)
        self.count = 0
        self.hook: Callable[[], object] | None = None
        self.wanted: Callable[[str, str], bool] = lambda op, target: False
        self.lock = threading.RLock()

    def before(self, wanted: Callable[[str, str], bool], hook: Callable[[], object]) -> None:
        self.count, self.wanted, self.hook = 0, wanted, hook

    def before_number(self, number: int, hook: Callable[[], object]) -> None:
        self.before(lambda op, target: self.count == number, hook)

    def _run(self, op: str, path: StrPath, call: Callable[[], T], *, target: StrPath = "", data: object = ()) -> T:
        with self.lock:
            self.count += 1
            hook = self.hook if self.hook and self.wanted(op, os.fspath(target)) else None
            if hook is not None:
                self.hook = None
        if hook is not None:
            hook()
        return super()._run(op, path, call, target=target)


@dataclass
class World:
    """A place for a store, its clock, and the handles on it."""

    path: Path
    now: datetime = START
    ticks: int = 0
    handles: list[Store] = field(default_factory=list)

    def tick(self) -> float:
        self.ticks += 1
        return self.ticks / 1000

    def runtime(self) -> Runtime:
        return Runtime(
            clock=lambda: self.now,
            monotonic=self.tick,
            sleep=lambda _: None,
            actor="me",
            writer=f"w{len(self.handles)}",
        )

    def open(self, *, create: bool = False, config: StoreConfig = CONFIG, ops: OsOps | None = None) -> Store:
        tuning = Settings(workers=2, index_map_bytes=1 << 20)
        if create:
            store = Store.create(self.path, config=config, runtime=self.runtime(), settings=tuning, ops=ops)
        else:
            store = Store.open(self.path, runtime=self.runtime(), settings=tuning, ops=ops)
        self.handles.append(store)
        return store

    def packs(self) -> dict[str, int]:
        """Size of every pack on disk."""
        return {p.name: p.stat().st_size for p in (self.path / "packs").rglob("*") if p.is_file()}

    def size(self) -> int:
        return sum(self.packs().values())

    def physical(self) -> int:
        """Bytes the disk gives to packs."""
        return sum(p.stat().st_blocks * 512 for p in (self.path / "packs").rglob("*") if p.is_file())

    def everything(self) -> dict[str, str]:
        """Every file of the store but the index, by content."""
        return {
            str(p.relative_to(self.path)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in self.path.rglob("*")
            if p.is_file() and "index" not in p.relative_to(self.path).parts
        }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "store")
    yield world
    for store in world.handles:
        store.close()


@pytest.fixture
def store(world: World) -> Store:
    return world.open(create=True)


def log(store: Store, files: dict[str, bytes], name: str = "c", **how: object) -> Version:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact, **how)  # type: ignore[arg-type]


def erase(store: Store, *refs: str) -> None:
    for ref in refs:
        store.delete(ref, delete_aliases=True)
        store.trash.purge(ref)


def erase_once(store: Store, ref: str) -> None:
    """`erase`, also when a part of it has been done."""
    with suppress(VersionNotFoundError):
        store.delete(ref, delete_aliases=True)
    with suppress(RefusedError, VersionNotFoundError):
        store.trash.purge(ref)


def check(store: Store, expected: dict[str, dict[str, bytes]]) -> None:
    for ref, files in expected.items():
        assert read_files(store.get(ref)) == files


def noise(seed: int, size: int = 20 * KIB) -> bytes:
    return random.Random(f"noise {seed}").randbytes(size)


# ---------------------------------------------------------------- the liveness matrix


@dataclass
class Held:
    """``victim`` is the version that goes; ``proof`` reads the content by the other holder; ``release`` ends that."""

    victim: str
    proof: Callable[[], None]
    release: Callable[[], None]


def by_version(store: Store, ref: str, files: dict[str, bytes], victim: str) -> Held:
    return Held(victim, lambda: check(store, {ref: files}), lambda: erase(store, ref))


def held_by_an_earlier_version(store: Store) -> Held:
    files = {"x": BLOB, "old": b"1"}
    log(store, files)
    log(store, {"x": BLOB, "new": b"2"})
    return by_version(store, "c:v0", files, "c:v1")


def held_by_a_later_version(store: Store) -> Held:
    files = {"x": BLOB, "new": b"2"}
    log(store, {"x": BLOB, "old": b"1"})
    log(store, files)
    return by_version(store, "c:v1", files, "c:v0")


def held_by_another_collection(store: Store) -> Held:
    log(store, {"x": BLOB})
    log(store, {"x": BLOB}, "d")
    return by_version(store, "d:v0", {"x": BLOB}, "c:v0")


def held_by_another_project(store: Store) -> Held:
    log(store, {"x": BLOB})
    log(store, {"x": BLOB}, project="team/p")
    return by_version(store, "team/p/c:v0", {"x": BLOB}, "c:v0")


def held_at_another_path(store: Store) -> Held:
    version = log(store, {"x": BLOB, "deep/down/y": BLOB})
    draft = version.new_draft()
    draft.remove("x")
    store.log_artifact(draft)
    return by_version(store, "c:v1", {"deep/down/y": BLOB}, "c:v0")


def held_as_a_byte_range(store: Store) -> Held:
    whole = noise(1, 50_001) + BLOB + noise(2, 30_007)
    log(store, {"x": BLOB})
    log(store, {"whole": whole}, "d")
    return by_version(store, "d:v0", {"whole": whole}, "c:v0")


def held_in_the_trash(store: Store) -> Held:
    log(store, {"x": BLOB, "old": b"1"})
    log(store, {"x": BLOB, "new": b"2"})
    store.delete("c:v0")

    def proof() -> None:
        with pytest.raises(VersionNotFoundError, match="is in the trash"):
            store.get("c:v0")
        store.trash.restore("c:v0")
        check(store, {"c:v0": {"x": BLOB, "old": b"1"}})
        store.delete("c:v0")

    def release() -> None:
        store.trash.purge("c:v0")

    return Held("c:v1", proof, release)


def held_by_an_open_draft(store: Store) -> Held:
    draft = log(store, {"x": BLOB}).new_draft()
    draft.add_bytes(b"3", "more")

    def proof() -> None:
        store.log_artifact(draft, aliases=["best"])
        check(store, {"c:best": {"x": BLOB, "more": b"3"}})

    return Held("c:v0", proof, lambda: erase(store, store.get("c:best").ref))


def held_by_a_draft_that_goes_away(store: Store) -> Held:
    drafts = [log(store, {"x": BLOB}).new_draft()]

    def proof() -> None:
        assert drafts[0].get_entry("x").read() == BLOB

    def release() -> None:
        drafts.clear()
        python_gc.collect()

    return Held("c:v0", proof, release)


def held_by_a_version_without_alias(store: Store) -> Held:
    log(store, {"x": BLOB})
    assert log(store, {"x": BLOB, "y": b"1"}, "d", move_latest=False).aliases == ()
    return by_version(store, "d:v0", {"x": BLOB, "y": b"1"}, "c:v0")


def held_by_a_taken_entry(store: Store) -> Held:
    version = log(store, {"x": BLOB})
    artifact = Artifact("d")
    artifact.add_entry(version["x"], "taken")
    store.log_artifact(artifact)
    return by_version(store, "d:v0", {"taken": BLOB}, "c:v0")


HOLDERS = (
    held_by_an_earlier_version,
    held_by_a_later_version,
    held_by_another_collection,
    held_by_another_project,
    held_at_another_path,
    held_as_a_byte_range,
    held_in_the_trash,
    held_by_an_open_draft,
    held_by_a_draft_that_goes_away,
    held_by_a_version_without_alias,
    held_by_a_taken_entry,
)
WAYS: dict[str, dict[str, object]] = {
    "beside writers": {"grace": 0, "max_waste": 0.0},
    "offline": {"offline": True},
    "incremental": {"grace": 0, "max_waste": 0.0, "incremental": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__)
def test_content_lives_as_long_as_any_holder(
    world: World, store: Store, holder: Callable[[Store], Held], way: str
) -> None:
    """One holder is enough to keep it; without any its bytes leave the disk."""
    # A neighbour shares packs with nobody and must come through unharmed.
    log(store, {"n": OTHER}, "neighbour")
    held = holder(store)
    before = world.physical()
    erase(store, held.victim)
    for _ in range(2):
        assert store.gc(**WAYS[way]).errors == []  # type: ignore[arg-type]
        assert before - world.physical() < 0.1 * len(BLOB), "what is held was freed"
    held.proof()
    before = world.physical()
    held.release()
    report = store.gc(**WAYS[way])  # type: ignore[arg-type]
    assert before - world.physical() >= 0.95 * len(BLOB), "nobody holds it any more"
    assert report.freed_bytes >= 0.95 * len(BLOB)
    check(store, {"neighbour:v0": {"n": OTHER}})
    assert store.fsck(read_data=True).clean


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_store_is_small_again(world: World, store: Store, way: str) -> None:
    """Q11: nothing is left behind, by versions, drafts, failed logs or the trash."""
    for number in range(12):
        files = {f"f{n}": noise(n + number, 8 * KIB) for n in range(10)}
        log(store, files, "cd"[number % 2])
    store.get("c:v1").new_draft()
    python_gc.collect()
    full = world.physical()
    for name in "cd":
        for version in store.versions(name):
            store.delete(version.ref)
    assert world.physical() == full
    store.trash.empty()
    store.gc(**WAYS[way])  # type: ignore[arg-type]
    assert world.packs() == {}
    assert list((world.path / "tmp").iterdir()) == []
    check_no_garbage(store)
    rest = sum(p.stat().st_size for p in world.path.rglob("*") if p.is_file() and "index" not in p.parts)
    assert rest < 100 * KIB, "log and format"
    assert full > 250 * KIB
    usage = store.du()
    assert (usage.logical, usage.stored, usage.chunks, usage.versions, usage.trashed) == (0, 0, 0, 0, 0)
    assert log(store, {"again": BLOB}).number == 6, "numbers are not given twice"
    check(store, {"c": {"again": BLOB}})


def test_statistics_files_are_referenced_too(store: Store, tmp_path: Path) -> None:
    """trino 19965: every kind of object a version can have is in the mark, at every depth."""
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "link").symlink_to("nowhere")
    (tree / "nothing").touch()
    (tree / "long").write_bytes(BLOB)
    (tree / "zeros").write_bytes(bytes(300 * KIB))
    for n in range(200):
        (tree / f"small{n}").write_bytes(b"%d" % n)
    artifact = Artifact("c")
    artifact.add_dir(tree, symlinks="store", keep_empty_dirs=True, keep_mode=True)
    version = store.log_artifact(artifact)
    erase(store, log(store, {"x": OTHER}, "d").ref)
    for _ in range(2):
        store.gc(offline=True)
        assert version.verify() == version.size
    assert mark(store._engine, None).nodes > 20
    check_no_garbage(store)


def test_same_blob_twice_in_pack(store: Store) -> None:
    """rustic 392: repeats at every level: chunks in a frame, nodes in a chunk list, files in a directory."""
    part = noise(1, 64 * KIB)
    files = {
        "long": b"x" + part * 6 + b"y" + part * 6,
        "again": part * 12,
        "zeros": bytes(500 * KIB),
        "twin": part * 12,
    }
    log(store, files)
    recount(store._engine)
    check_no_garbage(store)
    draft = store.get("c").new_draft()
    draft.add_bytes(part * 3 + b"!" + part * 8, "again", overwrite=True)
    store.log_artifact(draft)
    erase(store, "c:v0")
    assert store.gc(offline=True).errors == []
    check(store, {"c:v1": {**files, "again": part * 3 + b"!" + part * 8}})
    check_no_garbage(store)


@pytest.mark.parametrize("first", ["node", "file", "together"])
def test_a_file_may_look_like_a_node(store: Store, first: str) -> None:
    """Files with the very bytes of a tree node, stored before or after it: both live, both go, the counts are right."""
    tree = {"a": b"x", "b": BLOB[:5000]}
    twin = bytes(store._engine.reader.fetch([root := log(store, tree)._found.version.root]).get(root))
    erase(store, "c:v0")
    store.gc(offline=True)
    expected: dict[str, dict[str, bytes]] = {}
    if first == "together":
        log(store, {"f": twin}, "e")
        expected[log(store, {"d/f": twin, **tree}, "f").ref] = {"d/f": twin, **tree}
        erase(store, "e:v0")
    for name, files in [("n", tree), ("f", {"f": twin})][:: 1 if first == "node" else -1]:
        expected[log(store, files, name).ref] = files
    for ref in list(expected):
        assert store.gc(grace=0, max_waste=0.0).errors == []
        recount(store._engine)
        check_no_garbage(store)
        check(store, expected)
        erase(store, ref)
        del expected[ref]
    assert store.gc(grace=0, max_waste=0.0).errors == []
    check_no_garbage(store)
    assert store.du().stored == 0


# ---------------------------------------------------------------- numbers


def pack_change(world: World, act: Callable[[], GCReport]) -> tuple[GCReport, int, int, int]:
    """The report, and from the disk: by how much packs shrank, what was deleted, what was written."""
    before = world.packs()
    report = act()
    after = world.packs()
    gone = sum(size for name, size in before.items() if name not in after)
    new = sum(size for name, size in after.items() if name not in before)
    return report, sum(before.values()) - sum(after.values()), gone, new


@pytest.mark.parametrize("seed", range(6))
def test_freed_is_what_the_disk_got_back(world: World, store: Store, seed: int) -> None:
    """``freed_bytes``, ``reclaimed_bytes`` and ``repacked_bytes`` are those of the disk, to the byte."""
    rng = random.Random(seed)
    for number in range(10):
        log(store, {f"f{n}": noise(rng.randrange(25), 9 * KIB) for n in range(8)} | {"n": b"%d" % number})
    for round_ in range(4):
        alive = store.versions("c")
        for version in rng.sample(alive, min(len(alive), 3)):
            erase(store, version.ref)
        report, fall, gone, new = pack_change(world, lambda: store.gc(grace=0, max_waste=rng.choice((0.0, 0.2, None))))
        assert (report.reclaimed_bytes, report.repacked_bytes) == (gone, new), f"round {round_}"
        assert report.freed_bytes == fall
        assert report.pending_bytes == 0
        assert not report.errors
    assert store.fsck(read_data=True).clean


def test_a_dry_run_changes_nothing(world: World, store: Store) -> None:
    log(store, {"x": BLOB})
    log(store, {"x": BLOB[: 100 * KIB], "y": OTHER})
    store.delete("c:v0")
    store.trash.purge("c:v0")
    log(store, {"z": noise(1)}, "d")
    store.delete("d:v0")
    draft = log(store, {"x": BLOB[: 90 * KIB]}, "e").new_draft()
    del draft
    python_gc.collect()
    world.now += 40 * DAY
    before = world.everything()
    for options in ({"grace": 0}, {"offline": True}, {"grace": 0, "max_waste": 0.0}, {}):
        assert store.gc(dry_run=True, **options).dry_run
        assert world.everything() == before


@pytest.mark.parametrize("options", [{"grace": 0}, {"grace": 3600}, {"grace": 0, "max_waste": 0.5}], ids=str)
def test_a_dry_run_tells_what_will_be_freed(world: World, store: Store, options: dict[str, float]) -> None:
    """Exactly, where whole packs are dead: and the plan that is printed is the plan that is carried out."""
    for number in range(6):
        log(store, {"x": noise(number, 60 * KIB)}, f"c{number}")
    erase(store, "c1:v0", "c3:v0", "c4:v0")
    size = world.size()
    foreseen = store.gc(dry_run=True, **options)  # type: ignore[arg-type]
    report, fall, gone, new = pack_change(world, lambda: store.gc(**options))  # type: ignore[arg-type]
    assert foreseen.freed_bytes == report.freed_bytes == fall == gone
    assert foreseen.pending_bytes == report.pending_bytes
    assert (foreseen.freed_bytes + foreseen.pending_bytes) > 170 * KIB
    assert foreseen.freed_chunks == report.freed_chunks
    assert foreseen.retired_packs == report.retired_packs
    assert new == foreseen.repacked_bytes == 0
    assert [(f.pack, f.fate) for f in foreseen.packs] == [(f.pack, f.fate) for f in report.packs]
    assert sum(fate.size for fate in foreseen.packs) == size


def test_preview_is_what_deletion_says_and_gc_frees(world: World, store: Store) -> None:
    """K1: ``exclusive_bytes`` of a deletion is about what purge and collection give back."""
    log(store, {"x": BLOB, "mine": OTHER})
    log(store, {"x": BLOB, "other": b"1"})
    deletion = store.get("c:v0").delete()
    store.trash.purge("c:v0")
    _, fall, _, _ = pack_change(world, lambda: store.gc(offline=True))
    assert abs(deletion.exclusive_bytes - fall) < 0.1 * fall
    assert deletion.shared_bytes > 0.9 * len(BLOB)


def test_grace_keeps_bytes_and_time_frees_them(world: World, store: Store) -> None:
    log(store, {"x": BLOB})
    log(store, {"y": OTHER})
    erase(store, "c:v0")
    before = world.physical()
    waiting = store.gc(grace=timedelta(hours=2))
    assert waiting.freed_bytes == waiting.reclaimed_packs == 0
    assert waiting.pending_bytes > 0.95 * len(BLOB)
    assert waiting.pending_until == world.now + timedelta(hours=2)
    assert world.physical() >= before
    world.now += timedelta(hours=2) - timedelta(microseconds=1)
    assert store.gc(grace=timedelta(hours=2)).freed_bytes == 0
    world.now += timedelta(microseconds=1)
    report, fall, _, _ = pack_change(world, lambda: store.gc(grace=timedelta(hours=2)))
    assert report.freed_bytes == fall == waiting.pending_bytes
    assert report.pending_bytes == 0
    assert report.pending_until is None


def test_the_grace_of_the_policy_is_the_default(world: World, store: Store) -> None:
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    assert store.gc().pending_bytes > 0
    store.set_policy(grace=timedelta(0))
    assert store.gc().freed_bytes > 0.95 * len(BLOB)


def test_maintenance_makes_progress(world: World, store: Store) -> None:
    """kopia 5057: bounded runs free at most what they were allowed, and together everything."""
    for number in range(8):
        log(store, {"x": noise(number, 60 * KIB)}, f"c{number}")
    check_size = max(world.packs().values())
    limit = check_size * 2
    erase(store, *(f"c{number}:v0" for number in range(7)))
    rounds = 0
    while True:
        report, fall, _, _ = pack_change(world, lambda: store.gc(grace=0, max_waste=0.0, max_bytes=limit))
        assert report.freed_bytes == fall <= limit
        if not fall:
            break
        rounds += 1
    assert rounds >= 4
    check_no_garbage(store)
    check(store, {"c7:v0": {"x": noise(7, 60 * KIB)}})


def test_no_bytes_allowed_no_bytes_freed(world: World, store: Store) -> None:
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    before = world.packs()
    for options in ({"max_bytes": 0}, {"max_seconds": 0}):
        report = store.gc(grace=0, **options)  # type: ignore[arg-type]
        assert report.freed_bytes == 0
        assert world.packs() == before
    assert store.gc(grace=0, max_seconds=1e6, max_bytes=10**9).freed_bytes == sum(before.values())
    assert world.packs() == {}


@pytest.mark.parametrize(
    "options",
    [{"grace": -1}, {"grace": "1d"}, {"max_waste": 1.5}, {"max_bytes": -1}, {"max_seconds": -1.0}, {"orphan_age": -1}],
    ids=str,
)
def test_bad_options_change_nothing(world: World, store: Store, options: dict[str, object]) -> None:
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    before = world.everything()
    with pytest.raises(InvalidInputError):
        store.gc(**options)  # type: ignore[arg-type]
    assert world.everything() == before


def test_switched_off(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """L3: by policy or by environment, which goes before; a dry run always works."""
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    store.set_policy(gc_enabled=False)
    before = world.everything()
    with pytest.raises(GCDisabledError) as refused:
        store.gc(grace=0)
    assert refused.value.exit_code == 14
    assert refused.value.hint
    assert store.gc(dry_run=True, grace=0).freed_bytes > 0
    assert world.everything() == before
    monkeypatch.setenv("CASSTORE_GC_ENABLED", "true")
    assert store.gc(grace=0).freed_bytes > 0
    store.set_policy(gc_enabled=True)
    monkeypatch.setenv("CASSTORE_GC_ENABLED", "0")
    with pytest.raises(GCDisabledError):
        store.gc(grace=0)
    monkeypatch.setenv("CASSTORE_GC_ENABLED", "no")
    with pytest.raises(InvalidInputError):
        store.gc(grace=0)


# ---------------------------------------------------------------- the date of a purge


def test_purge_at_its_date_and_never_before(world: World, store: Store) -> None:
    """M1, and through it: never a microsecond early."""
    log(store, {"x": BLOB})
    deletion = store.get("c:v0").delete()
    assert deletion.purge_at == world.now + 30 * DAY
    for moment in (world.now + 10 * DAY, deletion.purge_at - timedelta(microseconds=1)):
        world.now = moment
        assert store.gc(grace=0).purged == []
        assert [item.ref for item in store.trash.list()] == ["c:v0"]
        store.trash.restore("c:v0")
        check(store, {"c:v0": {"x": BLOB}})
        world.now = moment  # the same trashing again would start the thirty days anew: undo by hand
        deletion = store.get("c:v0").delete()
        if moment + DAY < deletion.purge_at:
            break
    world.now = deletion.purge_at - timedelta(microseconds=1)
    assert store.gc(grace=0).purged == []
    world.now = deletion.purge_at
    report = store.gc(grace=0)
    assert report.purged == ["c:v0"]
    assert report.freed_bytes > 0.95 * len(BLOB)
    with pytest.raises(VersionNotFoundError, match="purged"):
        store.get("c:v0")


def test_trash_days_are_for_later_deletions(world: World, store: Store) -> None:
    for number in range(4):
        log(store, {"x": b"%d" % number})
    store.delete("c:v0")
    store.set_policy(trash_days=1)
    store.delete("c:v1")
    store.set_policy(trash_days=60)
    store.delete("c:v2")
    dates = {item.ref: item.purge_at - world.now for item in store.trash.list()}
    assert dates == {"c:v0": 30 * DAY, "c:v1": DAY, "c:v2": 60 * DAY}
    start = world.now
    for days, purged in ((1, ["c:v1"]), (29, []), (30, ["c:v0"]), (59, []), (60, ["c:v2"])):
        world.now = start + days * DAY
        assert store.gc(grace=0).purged == purged


def test_a_wrong_clock_purges_nothing(world: World, store: Store) -> None:
    """GC.md §3.7: another host, a year ahead, moves the safe clock by a day; it cannot empty the trash."""
    log(store, {"x": BLOB})
    store.delete("c:v0")
    other = world.open()
    world.now += 365 * DAY
    assert other.gc(grace=0).purged == []
    assert [item.ref for item in store.trash.list()] == ["c:v0"]
    store.trash.restore("c:v0")
    check(store, {"c:v0": {"x": BLOB}})


def test_a_pin_of_a_dead_draft_expires(world: World, store: Store) -> None:
    """A draft whose process died holds its content for a week, and no longer."""
    draft = log(store, {"x": BLOB}).new_draft()
    erase(store, "c:v0")
    start = world.now
    world.now = start + 7 * DAY - timedelta(seconds=1)
    assert store.gc(grace=0).freed_bytes == 0
    world.now = start + 7 * DAY
    assert store.gc(grace=0).freed_bytes > 0.95 * len(BLOB)
    before = world.everything()
    with pytest.raises(ConflictError):
        store.log_artifact(draft)
    assert draft.is_draft()
    assert store.fsck().clean
    assert [name for name in world.everything() if name.startswith("log")] == [n for n in before if n.startswith("log")]


# ---------------------------------------------------------------- readers


def test_readers_go_on_while_their_packs_are_repacked(world: World, store: Store) -> None:
    """An open file, an open version and another handle find the moved content; bytes are checked, never wrong."""
    files = {f"f{n:02}": noise(n, 5 * KIB) for n in range(40)}
    log(store, files)
    other = world.open()
    version = other.get("c:v0")
    half, unread = version["f02"].open(), version["f36"].open()
    assert half.read(1000) == files["f02"][:1000]
    for step in (2, 3):
        # Every pack loses some of its content, and with it its place.
        draft = store.get("c").new_draft()
        for number in range(0, 40, step):
            if f"f{number + 1:02}" in draft:
                draft.remove(f"f{number + 1:02}")
        kept = store.log_artifact(draft)
        assert "f02" in kept
        assert "f36" in kept
        before = {name for name, size in world.packs().items() if size > 10 * KIB}
        erase(store, f"c:v{kept.number - 1}")
        assert store.gc(grace=0, max_waste=0.0).repacked_bytes
        assert not before & set(world.packs()) or step == 3
    assert half.read() == files["f02"][1000:]
    assert unread.read() == files["f36"]
    half.close()
    unread.close()
    for entry in other.get("c").files():
        assert entry.read() == files[entry.path]


# ---------------------------------------------------------------- damage to the counts


def damage(store: Store, count: int, chosen: Callable[[int], bool] = lambda _: True, *, listed: bool = True) -> int:
    """Set counts behind the log's back; returns how many were changed."""
    changed = 0

    def body(tables: Tables) -> None:
        nonlocal changed
        changed = 0
        for position, (key, row) in enumerate(list(tables.scan(CHUNK))):
            if chosen(position) and refcount(row) != count:
                tables.put(CHUNK, key, with_refcount(row, count))
                changed += 1
                if count == 0 and listed:
                    tables.put(ZERO, key, b"")

    store._engine.view.update(body)
    return changed


def damaged_store(store: Store) -> dict[str, dict[str, bytes]]:
    files = {f"f{n}": noise(n, 9 * KIB) for n in range(20)} | {"x": BLOB}
    log(store, files)
    log(store, {"y": OTHER})
    erase(store, "c:v1")
    return {"c:v0": files}


CHOICES: dict[str, Callable[[int], bool]] = {
    "all": lambda _: True,
    "one": lambda position: position == 7,
    "some": lambda position: position % 3 == 0,
}


@pytest.mark.parametrize("listed", [True, False], ids=["in the work list", "not in it"])
@pytest.mark.parametrize("chosen", CHOICES)
def test_counts_too_low_stop_everything(world: World, store: Store, chosen: str, listed: bool) -> None:
    """R7: too low would delete. Nothing is deleted, exit 20, and the next collection is right again."""
    expected = damaged_store(store)
    assert damage(store, 0, CHOICES[chosen], listed=listed)
    before = world.packs()
    with pytest.raises(IntegrityError, match="too low") as stopped:
        store.gc(grace=0, max_waste=0.0)
    assert stopped.value.exit_code == 20
    assert stopped.value.hint
    assert world.packs() == before
    check(store, expected)
    recount(store._engine)
    assert store.gc(grace=0, max_waste=0.0).freed_bytes > 0.95 * len(OTHER)
    check(store, expected)
    check_no_garbage(store)


@pytest.mark.parametrize("chosen", CHOICES)
def test_counts_too_low_cannot_pass_the_mark(world: World, store: Store, chosen: str) -> None:
    """Even a collection that believes the counts meets the veto before the first byte goes."""
    expected = damaged_store(store)
    assert damage(store, 0, CHOICES[chosen])
    before = world.packs()
    try:
        store.gc(grace=0, max_waste=0.0, incremental=True)
    except IntegrityError:
        assert before.items() <= world.packs().items(), "nothing was deleted"
    store.rebuild_index()
    check(store, expected)
    store.gc(offline=True)
    check(store, expected)
    check_no_garbage(store)


@pytest.mark.parametrize("chosen", CHOICES)
def test_counts_too_high_are_put_right(world: World, store: Store, chosen: str) -> None:
    """Too high only leaks: the view is made again, the report says so, and the garbage goes."""
    expected = damaged_store(store)
    changed = damage(store, 10**6, CHOICES[chosen])
    assert find_drift(store._engine).too_high == changed
    report = store.gc(grace=0, max_waste=0.0)
    assert any("too high" in error for error in report.errors)
    assert report.freed_bytes > 0.95 * len(OTHER)
    check(store, expected)
    recount(store._engine)
    check_no_garbage(store)


def test_a_lost_row_stops_everything(world: World, store: Store) -> None:
    """Something reachable that the view does not know is a damaged view; the log heals it before anything goes."""
    expected = damaged_store(store)

    def lose(tables: Tables) -> None:
        for position, (key, _) in enumerate(list(tables.scan(CHUNK))):
            if position % 5 == 0:
                tables.delete(CHUNK, key)
                tables.delete(ZERO, key)

    store._engine.view.update(lose)
    store.gc(grace=0, max_waste=0.0)
    check(store, expected)
    check_no_garbage(store)


def test_a_missing_pack_stops_deletion(world: World, store: Store) -> None:
    """I4 is broken from outside: the collector sees that a home is gone, and deletes nothing more."""
    damaged_store(store)
    engine = store._engine
    with engine.view.read() as tables:
        row = tables.get(CHUNK, next(key for key, row in tables.scan(CHUNK) if refcount(row)))
    assert row is not None
    victim = row[:16].hex()
    os.unlink(world.path / "packs" / victim[:2] / victim)
    before = world.packs()
    with pytest.raises(IntegrityError):
        store.gc(grace=0)
    assert world.packs() == before


# ---------------------------------------------------------------- failures


def test_list_error_is_not_empty(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """restic 4612: a listing that fails, at the start or half way, never counts as a short one."""
    expected = damaged_store(store)
    backend = store._engine.backend
    real = backend.list
    before = world.packs()
    for allowed in (0, 1, 2):

        def broken(prefix: str, *, after: str | None = None, allowed: int = allowed) -> Iterator[ObjectInfo]:
            for number, info in enumerate(real(prefix, after=after)):
                if number == allowed:
                    raise BackendError("the disk failed")
                yield info

        with monkeypatch.context() as patch:
            patch.setattr(backend, "list", broken)
            with pytest.raises(BackendError):
                store.gc(grace=0)
        assert before.items() <= world.packs().items()
    store.gc(grace=0)
    check(store, expected)


def test_a_short_listing_only_hides_garbage(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that lies by leaving out is caught by the mark before a byte goes."""
    expected = damaged_store(store)
    backend = store._engine.backend
    before = world.packs()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "list", lambda prefix, **_: iter(()))
        store.gc(grace=0)
    assert world.packs() == before
    check(store, expected)
    assert store.gc(grace=0).freed_bytes > 0.95 * len(OTHER)


# ---------------------------------------------------------------- beside others, effect by effect


def before_commit(writer: Store, hook: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, when a writer has uploaded all it has and is about to commit."""
    monkeypatch.setattr("casstore.writer.PARCEL_BYTES", -1)  # itself, not whoever commits for it
    engine = writer._engine
    real = engine.commit
    hooks = [hook]

    def commit(build: Build, **options: Any) -> Committed | None:
        if hooks:
            hooks.pop()()
        return real(build, **options)

    monkeypatch.setattr(engine, "commit", commit)


def test_orphan_sweep_vs_inflight(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """duplicacy 323, delta-rs 3645, registry 3045, iceberg 4194: a sweep between upload and commit."""
    writer = world.open()
    swept = []

    def sweep() -> None:
        assert store.gc(grace=0, orphan_age=0).condemned_packs >= 2
        swept.append(world.packs())

    before_commit(writer, sweep, monkeypatch)
    version = log(writer, {"x": BLOB, "y": OTHER})
    assert swept == [{}], "the packs of the writer were gone"
    assert version.number == 0
    check(store, {"c:v0": {"x": BLOB, "y": OTHER}})
    store.gc(offline=True)
    check(writer, {"c:v0": {"x": BLOB, "y": OTHER}})
    check_no_garbage(store)


def test_a_polite_sweep_leaves_young_packs(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Younger than 48 hours, by the time of the files: not an orphan yet."""
    world.now = datetime.now(START.tzinfo)
    writer = world.open()
    reports = []
    before_commit(writer, lambda: reports.append(store.gc(grace=0)), monkeypatch)
    version = log(writer, {"x": BLOB})
    assert reports[0].condemned_packs == 0
    assert world.size() == version.new_stored_bytes, "nothing was uploaded twice"


def test_sleeping_writer_30_days(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """restic 2715, kopia 1949: it wakes after a month of collections, and commits something readable."""
    log(store, {"x": BLOB})
    writer = world.open()
    reports = []

    def month() -> None:
        erase(store, "c:v0")
        for _ in range(5):
            world.now += 6 * DAY
            reports.append(store.gc())

    before_commit(writer, month, monkeypatch)
    log(writer, {"x": BLOB, "y": OTHER})
    assert sum(report.condemned_packs for report in reports) >= 2, "what it had uploaded was condemned"
    assert sum(report.freed_bytes for report in reports) > 1.4 * len(BLOB), "and what it relied on was collected"
    check(store, {"c:v1": {"x": BLOB, "y": OTHER}})
    assert store.fsck(read_data=True).clean


def test_reachability_vs_new_commit(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """ostree 2808: all of a new version is a dedup hit, and all of it is collected before the commit."""
    log(store, {"x": BLOB, "d/y": OTHER})
    writer = world.open()

    def collected() -> None:
        erase(store, "c:v0")
        store.gc(grace=0)
        assert world.packs() == {}

    before_commit(writer, collected, monkeypatch)
    assert log(writer, {"x": BLOB, "d/y": OTHER}, "d").new_bytes > 0
    check(store, {"d:v0": {"x": BLOB, "d/y": OTHER}})


def test_plan_and_execute_share_snapshot(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """git 2219, nix 15992 (test_recheck_before_delete): what is revived between plan and retirement stays."""
    log(store, {"x": BLOB, "d/y": OTHER})
    erase(store, "c:v0")
    writer = world.open()
    before = world.size()
    module = importlib.import_module("casstore.gc.retire")
    real: Callable[[Engine, Sequence[bytes], GCRun], int] = module._drop_nodes

    def late(engine: Engine, nodes: Sequence[bytes], run: GCRun) -> int:
        log(writer, {"x": BLOB}, "d")
        return real(engine, nodes, run)

    monkeypatch.setattr(module, "_drop_nodes", late)
    store.gc(grace=0, max_waste=0.0)
    monkeypatch.undo()
    check(writer, {"d:v0": {"x": BLOB}})
    assert world.size() < before + 5 * KIB
    store.gc(grace=0, max_waste=0.0)
    assert world.size() < before - 0.9 * len(OTHER)
    check(writer, {"d:v0": {"x": BLOB}})


def test_dedup_entry_of_deleted_pack(world: World, store: Store) -> None:
    """xet fix 2: a dedup hit on content that was collected a moment ago is not a hit."""
    files = {"x": BLOB}
    for number in range(3):
        log(store, files)
        erase(store, f"c:v{number}")
        assert store.gc(grace=0).freed_bytes > 0.95 * len(BLOB)
        other = world.open()
        version = log(other, files, "d", dedup="never")
        assert version.new_bytes >= len(BLOB) or number
        check(store, {"d": files})
        erase(store, version.ref)
        store.gc(grace=0)


def effects_of(world: World, act: Callable[[Store], object]) -> int:
    """How many effects an act of a handle has."""
    ops = HookedOps()
    handle = world.open(ops=ops)
    ops.count = 0
    act(handle)
    return ops.count


FILES = {"x": BLOB[: 30 * KIB], "d/y": OTHER[: 20 * KIB], "z": b"small"}


def sweep_effects(
    tmp_path: Path,
    first: Callable[[World, Store], object],
    second: Callable[[World, Store], object],
    final: Callable[[World, Store], None],
) -> int:
    """Do ``second`` through another handle before the n-th effect of ``first``, for every n."""
    number = 0
    while True:
        number += 1
        world = World(tmp_path / f"at{number}")
        try:
            keeper = world.open(create=True)
            log(keeper, FILES)
            log(keeper, {"keep": FILES["x"]}, "kept")
            ops = HookedOps()
            acting = world.open(ops=ops)
            ops.before_number(number, lambda world=world, keeper=keeper: second(world, keeper))  # type: ignore[misc]
            try:
                first(world, acting)
            except BackendError as swept:
                # The one price of sweeping without waiting: a temporary file went from under its writer, who says
                # so, and has done nothing.
                if "No such file" not in swept.message:
                    raise
                first(world, acting)
            happened = ops.hook is None
            ops.hook = None
            check(keeper, {"kept:v0": {"keep": FILES["x"]}})
            final(world, keeper)
            recount(keeper._engine)
            assert keeper.fsck(read_data=True).clean
            keeper.gc(offline=True)
            check_no_garbage(keeper)
            final(world, keeper)
        finally:
            for handle in world.handles:
                handle.close()
        if not happened:
            return number


def test_collection_at_any_moment_of_a_log(tmp_path: Path) -> None:
    """I5: what a log relies on is purged and collected before its n-th effect; the version is whole all the same."""

    def collected(world: World, keeper: Store) -> None:
        erase_once(keeper, "c:v0")
        keeper.gc(grace=0, max_waste=0.0, orphan_age=0)
        keeper.gc(grace=0, max_waste=0.0, orphan_age=0)

    effects = sweep_effects(
        tmp_path,
        lambda world, store: log(store, {**FILES, "new": noise(9)}, "d"),
        collected,
        lambda world, store: check(store, {"d:v0": {**FILES, "new": noise(9)}}),
    )
    assert effects > 15


def test_collection_at_any_moment_of_a_draft(tmp_path: Path) -> None:
    """As above for a draft, which has no source to store again from: its pin must hold."""

    def first(world: World, store: Store) -> None:
        try:
            draft = store.get("c:v0").new_draft()
        except (VersionNotFoundError, ConflictError):
            return
        draft.add_bytes(noise(9), "new")
        assert read_files(store.log_artifact(draft)) == {**FILES, "new": noise(9)}

    def collected(world: World, keeper: Store) -> None:
        erase_once(keeper, "c:v0")
        keeper.gc(grace=0, max_waste=0.0, orphan_age=0)
        keeper.gc(grace=0, max_waste=0.0, orphan_age=0)

    effects = sweep_effects(tmp_path, first, collected, lambda world, store: None)
    assert effects > 15


def test_log_at_any_moment_of_a_collection(tmp_path: Path) -> None:
    """git 2219, nix 15992, kubo 6252: what the plan found dead is wanted again before the n-th effect of the run."""

    def first(world: World, store: Store) -> None:
        erase_once(store, "c:v0")
        store.gc(grace=0, max_waste=0.0, orphan_age=0)

    def revived(world: World, keeper: Store) -> None:
        log(keeper, {**FILES, "new": noise(9)}, "d")

    def final(world: World, store: Store) -> None:
        if any(info.name == "d" for info in store.collections()):
            check(store, {"d:v0": {**FILES, "new": noise(9)}})

    effects = sweep_effects(tmp_path, first, revived, final)
    assert effects > 20


def test_collection_at_any_moment_of_a_collection(tmp_path: Path) -> None:
    """Two collectors, interleaved at every effect: nothing is lost, freed twice, or left."""

    def first(world: World, store: Store) -> None:
        erase_once(store, "c:v0")
        assert not store.gc(grace=0, max_waste=0.0, orphan_age=0).errors

    def second(world: World, keeper: Store) -> None:
        keeper.gc(grace=0, max_waste=0.0, orphan_age=0)

    assert sweep_effects(tmp_path, first, second, lambda world, store: None) > 20


def test_trash_and_restore_at_any_moment_of_a_collection(tmp_path: Path) -> None:
    """A version that comes back from the trash while it is due is either whole or refused, never half."""

    def first(world: World, store: Store) -> None:
        store.delete("c:v0")
        world.now += 31 * DAY
        store.gc(grace=0, max_waste=0.0)

    def second(world: World, keeper: Store) -> None:
        try:
            keeper.trash.restore("c:v0")
        except (VersionNotFoundError, ConflictError):
            return
        check(keeper, {"c:v0": FILES})

    def final(world: World, store: Store) -> None:
        try:
            store.get("c:v0")
        except VersionNotFoundError:
            return
        check(store, {"c:v0": FILES})

    assert sweep_effects(tmp_path, first, second, final) > 20


def test_two_collectors_at_once(world: World, store: Store) -> None:
    """In two threads, on two handles, time and again."""
    handles = [store, world.open()]
    expected: dict[str, dict[str, bytes]] = {}
    with ThreadPoolExecutor(2) as pool:
        for number in range(8):
            for n in range(3):
                files = {f"f{i}": noise(number * 2 + i * n, 6 * KIB) for i in range(6)} | {"n": b"%d %d" % (number, n)}
                expected[log(store, files, dedup="never").ref] = files
            for ref in random.Random(number).sample(sorted(expected), len(expected) // 3):
                erase(store, ref)
                del expected[ref]
            start = threading.Barrier(2)

            def collect(handle: Store, start: threading.Barrier = start, number: int = number) -> GCReport:
                start.wait()
                return handle.gc(grace=0, max_waste=0.0 if number % 2 else None, orphan_age=3600)

            for report in pool.map(collect, handles):
                assert not report.errors
            check(handles[number % 2], expected)
    assert store.fsck(read_data=True).clean
    store.gc(offline=True)
    check_no_garbage(store)
    check(store, expected)


# ---------------------------------------------------------------- policy


def test_a_second_run_has_nothing_to_do(world: World, store: Store) -> None:
    """No endless churn: what was compacted is left alone."""
    for number in range(12):
        log(store, {"x": noise(number, 20 * KIB), "y": noise(number + 1, 20 * KIB)})
    erase(store, "c:v3", "c:v5")
    for options in ({"grace": 0}, {"grace": 0, "max_waste": 0.0}, {"offline": True}):
        store.gc(**options)
        before = world.everything()
        report = store.gc(**options)
        assert (report.freed_bytes, report.repacked_bytes, report.retired_packs) == (0, 0, 0)
        assert world.everything() == before


def test_duplicate_chunk_two_packs_is_freed(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """borg 9868: two writers store the same content at once; the second copy is garbage, and goes."""
    writer = world.open()
    before_commit(writer, lambda: log(store, {"x": BLOB}, "d"), monkeypatch)
    log(writer, {"x": BLOB}, "c")
    assert world.size() > 1.9 * len(BLOB)
    assert stored_digests(store._engine).most_common(1)[0][1] == 2
    store.gc(grace=0)
    assert world.size() < 1.1 * len(BLOB)
    check(store, {"c:v0": {"x": BLOB}, "d:v0": {"x": BLOB}})
    check_no_garbage(store)


def test_errors_are_ours(world: World, store: Store) -> None:
    """Whatever stops a collection, it is a casstore error with an exit status."""
    log(store, {"x": BLOB})
    store.close()
    with pytest.raises(CasstoreError):
        store.gc()


@pytest.mark.parametrize("year", [2001, 2200])
def test_the_age_of_packs_is_by_the_clock_of_the_store(tmp_path: Path, year: int) -> None:
    """DESIGN §12: the injected clock is the only time, also for orphans; and any age means any."""
    now = [datetime(year, 1, 1, tzinfo=UTC)]
    with Store.create(tmp_path / "s", config=SMALL, clock=lambda: now[0]) as store:
        backend = store._engine.backend
        backend.create(pack_key(b"o" * 16), b"not a pack")
        (tmp_path / "s" / "tmp" / "half").write_bytes(b"of somebody at work")
        assert store.gc(grace=0).condemned_packs == 0
        assert (tmp_path / "s" / "tmp" / "half").exists()
        now[0] += timedelta(hours=49)
        assert store.gc(grace=0).condemned_packs == 1
        backend.create(pack_key(b"p" * 16), b"not a pack")
        now[0] -= timedelta(days=400)
        report = store.gc(offline=True)
        assert (report.condemned_packs, report.reclaimed_packs) == (1, 1)
        assert not (tmp_path / "s" / "tmp" / "half").exists()


def test_what_is_dead_already_keeps_nothing(store: Store) -> None:
    """Numbers about a deletion do not depend on whether an earlier one was collected yet."""
    log(store, {"x": BLOB, "old": b"1"})
    log(store, {"x": BLOB, "new": b"2"})
    erase(store, "c:v0")
    store.delete("c:v1", delete_aliases=True)
    (item,) = store.trash.list()
    before = item.exclusive_bytes
    assert before > 0.95 * len(BLOB)
    assert store.du().trash == before
    store.gc(grace=0, max_waste=0.0)
    (item,) = store.trash.list()
    assert abs(item.exclusive_bytes - before) < 1000
