"""Guards the audit (FEATURES Q19): every deletion is on record with who, when, why, what and how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import Artifact, InvalidInputError, Store
from casstore.audit import DeletionRecord
from casstore.config import Runtime
from casstore.engine import Build
from casstore.log import Log
from casstore.model import (
    Erase,
    GCRun,
    PurgeCollection,
    RestoreCollection,
    Segment,
    Transaction,
    Trash,
    TrashCollection,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A store, a clock, and whose turn it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = START
        self.store = self.open("alice")

    def open(self, actor: str) -> Store:
        return Store.open(self.path, create=True, clock=lambda: self.now, runtime=replace(Runtime(), actor=actor))

    def log(self, name: str, text: str, ttl: timedelta | None = None) -> str:
        artifact = Artifact(name)
        artifact.add_bytes(text.encode(), "f")
        return self.store.log_artifact(artifact, ttl=ttl).ref

    def newest(self) -> DeletionRecord:
        (record,) = self.store.deletions(limit=1)
        return record


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "s")
    yield made
    made.store.close()


def test_who_when_why_and_what(world: World) -> None:
    ref = world.log("x", "1")
    world.log("x", "2")
    assert world.store.deletions() == []
    world.now += timedelta(days=1)
    world.store.delete(ref, reason="wrong labels")
    trash = world.newest()
    assert (trash.action, trash.actor, trash.at, trash.reason) == ("trash", "alice", world.now, "wrong labels")
    assert (trash.refs, trash.by, trash.freed_bytes, trash.run_id) == ((ref,), "user", None, None)
    assert trash.commit == world.store.log()[0].seq
    with world.open("bob") as other:
        other.trash.restore(ref)
    assert (world.newest().action, world.newest().actor, world.newest().refs) == ("restore", "bob", (ref,))
    world.store.delete(ref)
    world.store.trash.purge(ref)
    assert (world.newest().action, world.newest().by, world.newest().refs) == ("purge", "user", (ref,))
    assert [record.action for record in world.store.deletions()] == ["purge", "trash", "restore", "trash"]


def test_a_run_of_the_collector_has_its_totals_and_what_it_purged(world: World) -> None:
    ref = world.log("x", "1" * 5000)
    world.log("x", "2")
    world.store.delete(ref)
    world.now += timedelta(days=31)
    with world.open("nightly") as other:
        # Of what another process says passed, a day counts: the first run only writes down that time passed.
        for _ in range(40):
            world.now += timedelta(days=1)
            report = other.gc(grace=0)
            if report.purged:
                break
    assert report.purged == [ref]
    run, purge, trash = world.store.deletions()
    assert (run.action, run.actor, run.run_id, run.at) == ("gc", "nightly", report.run_id, world.now)
    assert run.freed_bytes == report.freed_bytes > 0
    assert run.totals["reclaimed_bytes"] == report.reclaimed_bytes
    assert run.totals["purged"] == 1
    assert (purge.action, purge.refs, purge.by, purge.run_id) == ("purge", (ref,), "trash_days", report.run_id)
    assert (trash.action, trash.actor) == ("trash", "alice")


def test_a_run_that_was_killed_is_on_record_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        world.store.delete(world.log(f"x{number}", f"{number}"))
    world.store.trash.empty()
    monkeypatch.setattr("casstore.gc._sum_up", lambda *_: None)
    report = world.store.gc()
    assert report.retired_packs > 1
    runs = [record for record in world.store.deletions() if record.action == "gc"]
    assert [(run.run_id, run.freed_bytes, run.totals) for run in runs] == [(report.run_id, None, {})]


def test_a_run_that_only_writes_down_the_time_is_no_deletion(world: World) -> None:
    world.log("x", "1")
    world.store._engine.commit(lambda _: (GCRun(b"12345678", "alice", 1),))
    assert world.store.deletions() == []


def test_what_expired_is_told_from_what_somebody_deleted(world: World) -> None:
    ref = world.log("x", "1", ttl=timedelta(days=1))
    world.now += timedelta(days=2)
    world.store.gc()
    trash = next(record for record in world.store.deletions() if record.action == "trash")
    assert (trash.refs, trash.by) == ((ref,), "ttl")
    assert "time to live" in trash.reason


def test_undo_is_on_record(world: World) -> None:
    ref = world.log("x", "1")
    world.log("x", "2")
    world.store.delete(ref)
    world.store.trash.purge(ref)
    report = world.store.gc()
    world.store.gc_undo(report.run_id)
    assert (world.newest().action, world.newest().refs) == ("undo", (ref,))


def test_many_versions_of_one_commit_are_one_record(world: World) -> None:
    refs = [world.log("x", str(number)) for number in range(4)]
    world.store.delete(refs[0])
    world.store.delete(refs[1])
    world.now += timedelta(days=31)
    report = world.store.gc()
    assert report.purged == refs[:2]
    purge = next(record for record in world.store.deletions() if record.action == "purge")
    assert purge.refs == tuple(refs[:2])


def test_transactions_that_share_a_segment_are_newest_first(world: World) -> None:
    refs = [world.log("x", str(number)) for number in range(3)]
    name = world.store.get("x")._found.collection.name

    def trash(number: int, reason: str) -> Build:
        return lambda _: (Trash(name, number, 1 << 50, (), reason, "alice"),)

    world.store._engine.commit_all([trash(0, "first"), trash(1, "second")])
    assert [(record.refs, record.reason) for record in world.store.deletions()] == [
        ((refs[1],), "second"),
        ((refs[0],), "first"),
    ]


def test_collections_and_erasures_are_on_record(world: World) -> None:
    ref = world.log("x", "secret" * 10)
    version = world.store.get(ref)
    ((digest, _),) = version["f"].chunks
    name = version._found.collection.name
    engine = world.store._engine
    engine.commit(lambda _: (Erase((digest,), "court order", "bob"),))
    erase = world.newest()
    assert (erase.action, erase.actor, erase.reason) == ("erase", "bob", "court order")
    assert erase.refs == (str(version["f"].digest),)
    engine.commit(lambda _: (TrashCollection(name, 0, "old", "bob"),))
    assert (world.newest().action, world.newest().refs, world.newest().reason) == ("trash-collection", ("x",), "old")
    seq = world.newest().commit
    engine.commit(lambda _: (RestoreCollection(name, seq, "bob"),))
    assert world.newest().action == "restore-collection"
    world.store.delete(ref)
    world.store.trash.purge(ref)
    engine.commit(lambda _: (TrashCollection(name, 0, "", "bob"),))
    seq = world.newest().commit
    engine.commit(lambda _: (PurgeCollection(name, seq, force=True, actor="bob"),))
    assert (world.newest().action, world.newest().by) == ("purge-collection", "user")


def test_what_had_no_effect_is_not_on_record(world: World) -> None:
    """A transaction that is void when its turn comes is in the log, but nothing was deleted."""
    world.log("x", "1")
    engine = world.store._engine
    head = engine.view.refresh()
    void = Transaction(b"t" * 16, (Erase((b"\0" * 32,), "nothing", "mallory"),))
    now = engine.runtime.now()
    engine.log.create(Segment(head.seq + 1, head.chain, head.seq, head.seq, "mallory", now, (void,)))
    assert world.store.deletions() == []


def test_a_limit_reads_no_further_back_than_needed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        world.store.delete(world.log("x", str(number)))
    read: list[int] = []
    original = Log.read
    monkeypatch.setattr(Log, "read", lambda log, seq: read.append(seq) or original(log, seq))  # type: ignore[func-returns-value]
    found = world.store.deletions(limit=3)
    assert [record.refs for record in found] == [("x:v9",), ("x:v8",), ("x:v7",)]
    head = world.store.log(limit=1)[0].seq
    assert min(read) >= head - 5
    assert world.store.deletions(limit=0) == []


@pytest.mark.parametrize("limit", [-1, 1.5, "3", True])
def test_bad_limits(world: World, limit: object) -> None:
    with pytest.raises(InvalidInputError):
        world.store.deletions(limit)  # type: ignore[arg-type]
