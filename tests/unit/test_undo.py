"""`gc undo`: what a run of the collector let go of comes back whole while its bytes are there, and never half.

FEATURES L4, M3, Q5.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import Artifact, Runtime, Settings, Store, StoreConfig, Version
from casstore.errors import InvalidInputError, NotFoundError, ReadOnlyError, RefusedError
from casstore.gc.undo import _store as store_tree
from casstore.testing.checks import check_no_garbage, read_files, recount
from casstore.testing.clock import Clock
from casstore.testing.recipes import SMALL

KIB = 1024
HOUR = timedelta(hours=1)
BLOB = random.Random(1).randbytes(200 * KIB)
OTHER = random.Random(2).randbytes(120 * KIB)
MANY = {f"d{i % 7}/f{i}": random.Random(i).randbytes(3000) for i in range(200)}


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    runtime = Runtime(clock=clock, actor="me", writer="w")
    with Store.create(tmp_path / "s", config=SMALL, runtime=runtime, settings=Settings(workers=2)) as opened:
        yield opened


def log(store: Store, files: dict[str, bytes], name: str = "c", **how: object) -> Version:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact, **how)  # type: ignore[arg-type]


def let_go(store: Store, ref: str) -> None:
    store.delete(ref, delete_aliases=True)
    store.trash.purge(ref)


def whole(store: Store, ref: str, files: dict[str, bytes]) -> None:
    store.trash.restore(ref)
    assert read_files(store.get(ref)) == files
    assert store.fsck(read_data=True).clean
    recount(store._engine)


@pytest.mark.parametrize("files", [{"x": BLOB, "deep/y": OTHER}, MANY, {"empty": b""}], ids=["large", "many", "empty"])
@pytest.mark.parametrize("waste", [0.0, None], ids=["repacked", "kept packs"])
def test_what_was_purged_by_hand_and_collected_comes_back_whole(
    store: Store, files: dict[str, bytes], waste: float | None
) -> None:
    log(store, {"keep": OTHER}, "neighbour")
    version = log(store, files)
    version.update(description="said", metadata={"a": 1})
    version.add_alias("best")
    let_go(store, "c:v0")
    run = store.gc(max_waste=waste)
    assert run.freed_chunks
    assert not store._engine.view.known([version.digest.value])[0]
    undone = store.gc_undo(run.run_id)
    assert undone.restored == ("c:v0",)
    assert undone.readded_chunks
    assert undone.readded_bytes
    assert [item.ref for item in store.trash.list()] == ["c:v0"]
    whole(store, "c:v0", files)
    back = store.get("c:best")
    assert (back.description, back.metadata, back.digest) == ("said", {"a": 1}, version.digest)


def test_what_the_run_purged_by_date_comes_back_with_a_new_date(store: Store, clock: Clock) -> None:
    log(store, {"x": BLOB})
    store.delete("c:v0", delete_aliases=True)
    clock.now += timedelta(days=31)
    run = store.gc()
    assert run.purged == ["c:v0"]
    store.gc_undo(run.run_id)
    (item,) = store.trash.list()
    assert item.purge_at == clock.now + timedelta(days=30)
    assert store.gc().purged == []
    whole(store, "c:v0", {"x": BLOB})


def test_content_that_somebody_stored_again_is_shared(store: Store) -> None:
    log(store, {"x": BLOB, "y": OTHER})
    let_go(store, "c:v0")
    run = store.gc()
    log(store, {"x": BLOB}, "d")
    assert store.gc_undo(run.run_id).readded_bytes < len(OTHER) + 20 * KIB
    whole(store, "c:v0", {"x": BLOB, "y": OTHER})


def test_a_version_whose_root_another_one_has_needs_no_bytes(store: Store, clock: Clock) -> None:
    log(store, {"x": BLOB})
    log(store, {"x": BLOB}, "d")
    store.delete("c:v0", delete_aliases=True)
    clock.now += timedelta(days=31)
    run = store.gc()
    undone = store.gc_undo(run.run_id)
    assert (undone.restored, undone.readded_bytes) == (("c:v0",), 0)
    whole(store, "c:v0", {"x": BLOB})


def test_some_of_several(store: Store) -> None:
    for number in range(3):
        log(store, {"x": BLOB[number:], "n": bytes([number])})
        let_go(store, f"c:v{number}")
    run = store.gc().run_id
    assert store.gc_undo(run, ["c:v1"]).restored == ("c:v1",)
    with pytest.raises(RefusedError, match="was not let go"):
        store.gc_undo(run, ["c:v1"])
    assert store.gc_undo(run).restored == ("c:v0", "c:v2")
    with pytest.raises(RefusedError, match="no version that is still purged"):
        store.gc_undo(run)
    for number in range(3):
        whole(store, f"c:v{number}", {"x": BLOB[number:], "n": bytes([number])})


def test_after_the_grace_it_says_that_it_cannot_and_changes_nothing(store: Store, clock: Clock) -> None:
    log(store, {"x": BLOB})
    let_go(store, "c:v0")
    run = store.gc().run_id
    clock.now += 2 * HOUR
    store.gc()
    before = store.log()[0].seq
    with pytest.raises(RefusedError, match="cannot be undone: the bytes of c:v0 were reclaimed") as refused:
        store.gc_undo(run)
    assert refused.value.exit_code == 14
    assert "grace" in (refused.value.hint or "")
    assert store.log()[0].seq == before
    assert store.trash.list() == []


def test_one_that_is_gone_does_not_bring_back_the_others_half(store: Store, clock: Clock) -> None:
    """All or nothing; the hint names those that can be had."""
    log(store, {"x": BLOB})
    let_go(store, "c:v0")
    store.gc()  # ends the pack of v0 an hour earlier than that of v1, in another run
    log(store, {"y": OTHER}, "d")
    let_go(store, "d:v0")
    run = store.gc().run_id
    with pytest.raises(RefusedError, match="was not let go by run"):
        store.gc_undo(run, ["c:v0"])
    assert store.gc_undo(run).restored == ("d:v0",)
    whole(store, "d:v0", {"y": OTHER})


def test_grace_zero_cannot_be_undone(store: Store) -> None:
    log(store, {"x": BLOB})
    let_go(store, "c:v0")
    with pytest.raises(RefusedError, match="reclaimed"):
        store.gc_undo(store.gc(grace=0).run_id)


@pytest.mark.parametrize("run", ["zz", "", "v0"])
def test_what_is_no_run(store: Store, run: str) -> None:
    with pytest.raises((InvalidInputError, NotFoundError)) as refused:
        store.gc_undo(run)
    assert refused.value.exit_code in {2, 10}
    assert refused.value.hint


def test_unknown_runs_versions_and_readers(store: Store, tmp_path: Path) -> None:
    log(store, {"x": BLOB})
    with pytest.raises(NotFoundError, match="no run"):
        store.gc_undo("00" * 8)
    let_go(store, "c:v0")
    run = store.gc().run_id
    with pytest.raises(NotFoundError, match="never a version"):
        store.gc_undo(run, ["c:v7"])
    with pytest.raises(InvalidInputError, match="one version"):
        store.gc_undo(run, ["c:latest"])
    with Store.open(tmp_path / "s", read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.gc_undo(run)


def test_an_undone_run_leaves_no_garbage(store: Store, clock: Clock) -> None:
    log(store, {"x": BLOB, "y": OTHER})
    let_go(store, "c:v0")
    store.gc_undo(store.gc().run_id)
    clock.now += 2 * HOUR
    store.gc()
    whole(store, "c:v0", {"x": BLOB, "y": OTHER})
    store.gc(offline=True)
    check_no_garbage(store)
    assert read_files(store.get("c:v0")) == {"x": BLOB, "y": OTHER}


def test_a_collector_in_the_middle_of_an_undo(store: Store, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Content the undo relies on is dropped before it commits: it stores it again, or says that it cannot."""
    log(store, {"x": BLOB, "y": OTHER})
    let_go(store, "c:v0")
    run = store.gc().run_id
    log(store, {"x": BLOB}, "d")  # the undo will share this
    calls = 0

    def late(*args: object) -> int:
        nonlocal calls
        calls += 1
        stored = store_tree(*args)  # type: ignore[arg-type]
        if calls == 1:
            let_go(store, "d:v0")
            store.gc()
        return stored

    monkeypatch.setattr("casstore.gc.undo._store", late)
    assert store.gc_undo(run).restored == ("c:v0",)
    assert calls == 2
    whole(store, "c:v0", {"x": BLOB, "y": OTHER})


def test_packs_that_vanish_under_an_undo(store: Store, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    log(store, {"x": BLOB})
    let_go(store, "c:v0")
    run = store.gc().run_id

    def late(*args: object) -> int:
        clock.now += 2 * HOUR
        store.gc()
        return store_tree(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("casstore.gc.undo._store", late)
    with pytest.raises(RefusedError, match="the bytes of c:v0 were reclaimed"):
        store.gc_undo(run)
    assert store.trash.list() == []
    store.gc(offline=True)
    check_no_garbage(store)


def config_of(digest: str) -> StoreConfig:
    return StoreConfig(digest=digest)


@pytest.mark.parametrize("make", [lambda: SMALL, lambda: config_of("sha256")], ids=["small", "sha256"])
def test_in_memory_too(make: Callable[[], StoreConfig]) -> None:
    config = make()
    with Store.create(f"memory://undo-{config.digest}", config=config) as store:
        log(store, {"x": BLOB})
        let_go(store, "c:v0")
        store.gc_undo(store.gc().run_id)
        whole(store, "c:v0", {"x": BLOB})


def test_a_shared_root_that_is_dropped_in_the_middle(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All an undo needs is shared with another version, until that goes, too."""
    log(store, {"x": BLOB})
    let_go(store, "c:v0")
    run = store.gc().run_id
    log(store, {"x": BLOB}, "d")
    calls = 0

    def late(*args: object) -> int:
        nonlocal calls
        calls += 1
        stored = store_tree(*args)  # type: ignore[arg-type]
        if calls == 1:
            let_go(store, "d:v0")
            store.gc()
        return stored

    monkeypatch.setattr("casstore.gc.undo._store", late)
    assert store.gc_undo(run).readded_bytes
    assert calls == 2
    whole(store, "c:v0", {"x": BLOB})


def test_the_log_is_read_back_to_where_the_run_began_and_no_further(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        log(store, {"n": bytes([number])}, "many")
    log(store, {"x": BLOB})
    let_go(store, "c:v0")
    began = store.log()[0].seq
    run = store.gc().run_id
    read: list[int] = []
    engine = store._engine
    real = engine.log.read

    def reading(seq: int) -> object:
        read.append(seq)
        return real(seq)

    monkeypatch.setattr(engine.log, "read", reading)
    store.gc_undo(run)
    assert min(read) > began


def test_what_was_purged_again_since_stays_purged(store: Store) -> None:
    """An undo takes back a run, not what somebody decided after it."""
    log(store, {"x": BLOB})
    log(store, {"y": OTHER}, "d")
    let_go(store, "c:v0")
    let_go(store, "d:v0")
    run = store.gc().run_id
    assert store.gc_undo(run).restored == ("c:v0", "d:v0")
    store.trash.purge("c:v0")
    store.trash.purge("d:v0")
    with pytest.raises(RefusedError, match="no version that is still purged"):
        store.gc_undo(run)
    with pytest.raises(RefusedError, match="was not let go"):
        store.gc_undo(run, ["c:v0"])
