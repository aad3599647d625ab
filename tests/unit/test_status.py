"""Guards what `status` and the reports of the collector say about bytes: each has one reason, and they add up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import Artifact, ChunkerParams, Store, StoreConfig
from casstore.format.layout import pack_key
from casstore.gc import GCReport
from casstore.model import Pin, Quarantine
from casstore.pin import NEVER
from casstore.status import Status
from casstore.view import unreferenced

SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=4096, pack_bytes=65536, node_bytes=512
)
KINDS = ("live", "pinned", "trash", "damaged", "waste", "waiting", "grace", "doubled", "orphans")


class World:
    """A store with a clock that is set by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.store = Store.create(path, config=SMALL, clock=lambda: self.now)

    def log(self, name: str, files: dict[str, bytes]) -> str:
        artifact = Artifact(name)
        for path, data in files.items():
            artifact.add_bytes(data, path)
        return self.store.log_artifact(artifact, dedup="never").ref

    def pin(self, ref: str) -> None:
        root = self.store.get(ref)._found.version.root
        name = self.store._runtime.random_bytes(16)
        self.store._engine.commit(lambda _: (Pin(name, "host:1", "a test", (root,), NEVER),))

    def on_disk(self) -> int:
        return sum(file.stat().st_size for file in (self.path / "packs").rglob("*") if file.is_file())

    def status(self) -> Status:
        """The status, after checking that it accounts for every byte on disk."""
        found = self.store.status()
        assert sum(getattr(found, kind) for kind in KINDS) == found.stored == self.on_disk()
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "s")
    yield made
    made.store.close()


def block(name: object, size: int = 6000) -> bytes:
    return random.Random(str(name)).randbytes(size)


def test_each_reason_is_told_apart(world: World) -> None:
    live = world.log("live", {"f": block("live", 20_000)})
    pinned = world.log("pinned", {"f": block("pinned", 15_000)})
    trashed = world.log("trashed", {"f": block("trashed", 10_000)})
    assert world.status().live == world.on_disk()
    world.store.delete(trashed)
    assert world.status().trash == pytest.approx(10_000, rel=0.15)
    world.pin(pinned)
    assert world.status().pinned == 0, "a version needs it, too"
    world.store.delete(pinned)
    world.store.trash.purge(pinned)
    assert world.status().pinned == pytest.approx(15_000, rel=0.15)
    assert world.status().trash == pytest.approx(10_000, rel=0.15)
    world.store.trash.purge(trashed)
    found = world.status()
    assert found.trash == 0
    assert found.waiting == pytest.approx(10_000, rel=0.15)
    world.store.gc()
    found = world.status()
    assert (found.waiting, found.live > 0) == (0, True)
    assert found.grace == pytest.approx(10_000, rel=0.15)
    assert found.grace_ends == world.now + timedelta(hours=1)
    world.now += timedelta(hours=2)
    assert world.status().waiting == found.grace
    (digest, _), *_ = world.store.get(live)["f"].chunks or [(b"", 0)]
    if not digest:
        digest = world.store.get(live)._found.version.root
    (place,) = world.store._engine.view.locate([digest])
    assert place is not None
    world.store._engine.commit(lambda _: (Quarantine(digest, place.pack),))
    found = world.status()
    assert found.damaged > 0
    assert found.damaged_digests == 1
    world.store._engine.backend.create(pack_key(b"o" * 16), b"x" * 777)
    assert world.status().orphans == 777
    world.now += timedelta(days=3)
    found = world.status()
    assert found.orphans == 0, "after two days it is garbage"
    assert found.waiting >= 777


def test_content_in_the_trash_and_in_a_pin_is_counted_once(world: World) -> None:
    ref = world.log("x", {"f": block("both", 10_000)})
    world.log("y", {"f": b"other"})
    world.pin(ref)
    world.store.delete(ref)
    found = world.status()
    assert found.trash == 0, "purging it would free nothing"
    assert found.pinned == pytest.approx(10_000, rel=0.2)
    assert world.store.gc().kept_by["pins"] == found.pinned


def test_damaged_content_in_the_trash_is_damaged_only(world: World) -> None:
    ref = world.log("x", {"f": block("x", 200)})
    ((digest, _),) = world.store.get(ref)["f"].chunks
    (place,) = world.store._engine.view.locate([digest])
    assert place is not None
    world.store.delete(ref)
    world.store._engine.commit(lambda _: (Quarantine(digest, place.pack),))
    found = world.status()
    assert found.live == 0
    assert min(found.damaged, found.trash) > 0


def test_what_a_purged_version_holds_is_nobodys(world: World) -> None:
    """Counts fall when a collection drops the node, not when the version is purged."""
    data = block("d", 10_000)
    first, second = world.log("x", {"a": b"0", "f": data}), world.log("y", {"f": data, "g": b"1"})
    for ref in (first, second):
        world.store.delete(ref)
    world.store.trash.purge(first)
    with world.store._engine.view.read() as tables:
        assert list(unreferenced(tables)), "a dead node that still holds what it held"
    found = world.status()
    assert found.trash > 10_000
    assert found.live == 0


@pytest.mark.parametrize("seed", range(10))
def test_reasons_and_freed_bytes_add_up_to_what_there_was(tmp_path: Path, seed: int) -> None:
    """Exact, whatever was logged, deleted, pinned, limited and repacked; and a dry run adds up as well."""
    dice = random.Random(seed)
    world = World(tmp_path / "s")
    pool = [block((seed, n), dice.randrange(200, 9000)) for n in range(12)]
    refs: list[str] = []
    checked = {True: 0, False: 0}
    with world.store as store:
        for _ in range(40):
            deed = dice.choice(["log", "log", "delete", "purge", "restore", "pin", "wait", "orphan", "gc", "gc"])
            trashed = [item.ref for item in store.trash.list()]
            here = [ref for ref in refs if ref not in trashed]
            if deed == "log":
                files = {f"{n}": dice.choice(pool) for n in range(dice.randrange(1, 5))}
                refs.append(world.log(dice.choice("abc"), files))
            elif deed == "delete" and here:
                store.delete(dice.choice(here))
            elif deed == "purge" and trashed:
                ref = dice.choice(trashed)
                store.trash.purge(ref)
                refs.remove(ref)
            elif deed == "restore" and trashed:
                store.trash.restore(dice.choice(trashed))
            elif deed == "pin" and here:
                world.pin(dice.choice(here))
            elif deed == "wait":
                world.now += timedelta(minutes=dice.randrange(120))
            elif deed == "orphan":
                name = dice.randbytes(16)
                store._engine.backend.create(pack_key(name), b"x" * dice.randrange(1, 500))
            elif deed == "gc":
                dry = dice.random() < 0.4
                before = world.status()
                report = store.gc(
                    dry_run=dry,
                    grace=dice.choice([None, 0, 3600]),
                    max_waste=dice.choice([None, 0, 0.5]),
                    max_bytes=dice.choice([None, None, 3000]),
                    offline=dice.random() < 0.2,
                    orphan_age=dice.choice([None, 0]),
                )
                assert sum(report.kept_by.values()) + report.freed_bytes == before.stored - before.doubled, report
                if not dry:
                    assert sum(report.kept_by.values()) + report.doubled_bytes == world.on_disk(), report
                assert report.kept_by.get("grace", 0) <= report.pending_bytes
                checked[dry] += 1
            world.status()
    assert min(checked.values()) > 0, "the dice never asked for it"


def kept(report: GCReport) -> dict[str, int]:
    return dict(report.kept_by)


def test_what_the_limits_of_a_run_left_is_said(world: World) -> None:
    for name in "ab":
        world.store.delete(world.log(name, {"f": block(name, 10_000)}))
    world.log("c", {"f": b"1"})
    world.store.trash.empty()
    left = world.store.gc(grace=0, max_bytes=0)
    assert left.freed_bytes == 0
    assert left.kept_by["limits"] == pytest.approx(20_000, rel=0.2)
    assert "limits" not in kept(world.store.gc(grace=0))


def test_garbage_that_is_allowed_is_said(world: World) -> None:
    data = {f"{n}": block(n, 2000) for n in range(12)}
    first = world.log("x", data)
    world.log("x", {name: content for name, content in data.items() if name != "0"})
    world.store.delete(first)
    world.store.trash.purge(first)
    assert world.store.gc(max_waste=1).kept_by["policy"] == pytest.approx(2000, rel=0.5)
    assert world.status().waste + world.status().waiting > 0


def test_dates_and_counts(world: World) -> None:
    first = world.log("x", {"f": b"1"})
    world.log("x", {"f": b"2"})
    world.log("y", {"f": b"3"})
    found = world.status()
    assert (found.collections, found.versions, found.trashed, found.pins) == (2, 3, 0, 0)
    assert (found.next_purge, found.next_pin_expiry, found.next_expiry, found.grace_ends) == (None,) * 4
    assert found.log_length == world.store.log()[0].seq
    assert found.packs == sum(1 for file in (world.path / "packs").rglob("*") if file.is_file())
    world.store.delete(first)
    draft = world.store.get("y").new_draft()
    world.pin("y:v0")
    found = world.status()
    assert (found.versions, found.trashed, found.pins) == (2, 1, 2)
    assert found.next_purge == world.now + timedelta(days=30)
    assert found.next_pin_expiry == world.now + timedelta(days=7)
    artifact = Artifact("z")
    artifact.add_bytes(b"z", "f")
    world.store.log_artifact(artifact, ttl=timedelta(days=2))
    assert world.status().next_expiry == world.now + timedelta(days=2)
    del draft


def test_gc_off_says_how_much_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = world.log("x", {"f": block("x", 10_000)})
    world.store.delete(ref)
    world.store.trash.purge(ref)
    world.store.set_policy(gc_enabled=False)
    found = world.status()
    assert not found.gc_enabled
    assert found.waiting == world.on_disk()
    monkeypatch.setenv("CASSTORE_GC_ENABLED", "true")
    assert world.status().gc_enabled


def test_the_last_run_is_found_without_reading_the_whole_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.status().last_run is None
    ref = world.log("x", {"f": block("x", 10_000)})
    world.store.delete(ref)
    world.store.trash.purge(ref)
    report = world.store.gc(grace=0)
    done = world.now
    world.now += timedelta(days=1)
    for number in range(6):
        world.store.get(world.log("y", {"f": b"%d" % number})).tags  # noqa: B018
    monkeypatch.setattr("casstore.status.SEARCHED", 3)
    run = world.status().last_run
    assert run is not None
    assert (run.run_id, run.at, run.actor) == (report.run_id, done, world.store._runtime.actor)


def test_nothing_is_left_of_what_is_purged(world: World) -> None:
    """All that stays is the log, and the index made of it."""
    for number in range(5):
        world.store.delete(world.log("x", {"f": block(number, 40_000)}))
    world.store.trash.empty()
    world.store.gc(grace=0)
    found = world.status()
    assert (found.stored, found.packs, found.chunks) == (0, 0, 0)
    assert world.on_disk() == 0


def test_status_reads_no_content(world: World) -> None:
    world.log("x", {"f": block("x", 30_000)})
    for file in (world.path / "packs").rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            file.write_bytes(b"\0" * file.stat().st_size)
    assert world.status().live == world.on_disk()
