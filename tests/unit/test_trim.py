"""The index stays small after large logs, whoever else uses it; and packs are written while the next ones are read.

Guards `View.trim`, the page fill of `Transaction.change`, and the overlap in `casstore.gc.retire` and `…reclaim`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from casstore import Artifact, ChunkerParams, Store, StoreConfig, statcache
from casstore import view as views
from casstore.cli import deletion as cli_deletion
from casstore.errors import BackendError
from casstore.format.layout import pack_key
from casstore.format.rows import chunk_row, refcounts, with_refcount, with_refcounts
from casstore.gc.reclaim import listed_packs
from casstore.index import LmdbIndex, MemoryIndex, environment, lmdb_index
from casstore.model import PackState
from casstore.statcache import StatCache
from casstore.view import packs

retire: Any = sys.modules["casstore.gc.retire"]
reclaim: Any = sys.modules["casstore.gc.reclaim"]
SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=4096, pack_bytes=65536, node_bytes=512
)
FILES = 1200


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a store is whose index is worth trimming at any size."""
    monkeypatch.setattr(views, "LOOSE_BYTES", 0)
    monkeypatch.setattr(lmdb_index, "SMALL", 0)
    Store.create(tmp_path / "s", config=SMALL).close()
    return tmp_path / "s"


def many(store: Store, version: int, every: int = 8) -> None:
    """A version in which one file of so many is new: in nearly every node, so that nearly every count changes."""
    artifact = Artifact("many")
    for number in range(FILES):
        artifact.add_bytes(b"%d %d" % (number, version if number % every == 0 else 0), f"{number:05}")
    store.log_artifact(artifact)


def one(store: Store, text: str) -> None:
    artifact = Artifact("one")
    artifact.add_bytes(text.encode(), "a")
    store.log_artifact(artifact)


def large_logs(path: Path) -> None:
    for version in range(2):
        with Store.open(path) as store:
            many(store, version)


def generation(path: Path) -> int:
    [root] = path.glob("index/*/lmdb-v*")
    return max(int(name) for name in os.listdir(root) if name.isdigit())


def free_share(path: Path) -> float:
    with Store.open(path) as store, store._engine.view._storage.read() as tables:
        assert isinstance(tables, environment.Transaction)
        return tables.unused() / tables.extent()


def check(path: Path) -> None:
    with Store.open(path) as store:
        assert len(list(store.get("many:v1").files())) == FILES
        assert not store.fsck(read_data=True).findings
        before = store._engine.view.head()
        store.rebuild_index()
        assert store._engine.view.head() == before


# --- the index after a log


def test_a_log_that_changed_much_of_the_index_leaves_no_free_pages(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LOOSE", 2.0)
    large_logs(path)
    assert free_share(path) > views.LOOSE / 10
    assert generation(path) == 1
    monkeypatch.setattr(views, "LOOSE", 0.1)
    with Store.open(path) as store:
        many(store, 2)
    assert generation(path) == 2
    assert free_share(path) < 0.1
    check(path)


def test_a_small_log_leaves_the_index_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LOOSE", 2.0)
    large_logs(path)
    monkeypatch.setattr(views, "LOOSE", 0.0)
    with Store.open(path) as store:
        one(store, "x")
    with Store.open(path) as store:
        store.collections()
    assert generation(path) == 1


def test_an_index_below_the_size_that_is_worth_it_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LOOSE", 0.0)
    monkeypatch.setattr(views, "LOOSE_BYTES", 1 << 40)
    large_logs(path)
    assert generation(path) == 1


OTHER = """
import sys
from casstore import Artifact, Store
with Store.open(sys.argv[1]) as store:
    print(len(list(store.get("many:v0").files())), flush=True)
    sys.stdin.readline()
    print(len(list(store.get("many:v1").files())), flush=True)
    artifact = Artifact("other")
    artifact.add_bytes(b"other", "a")
    store.log_artifact(artifact)
"""


def test_handles_and_processes_that_have_the_index_open_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LOOSE", 0.0)
    with Store.open(path) as store:
        many(store, 0)
    command = [sys.executable, "-c", OTHER, str(path)]
    with (
        Store.open(path) as beside,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == f"{FILES}\n"
        before = generation(path)
        with Store.open(path) as store:
            many(store, 1)
        assert generation(path) > before
        one(beside, "beside")
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{FILES}\n"
        assert process.wait() == 0
        assert {row.name for row in beside.collections()} >= {"many", "one", "other"}
    check(path)


def test_an_index_that_cannot_be_written_anew_is_none_the_worse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LOOSE", 0.0)

    def full(*_: Any, **__: Any) -> NoReturn:
        raise BackendError("index: full")

    monkeypatch.setattr(lmdb_index, "publish", full)
    large_logs(path)
    monkeypatch.undo()
    check(path)


KILLED = """
import os, sys
from casstore import Artifact, Store
from casstore import view as views
from casstore.index import environment, lmdb_index
views.LOOSE, views.LOOSE_BYTES, lmdb_index.SMALL = 0.0, 0, 0
copy = environment.Generation.copy_into
def die(self, env, handle):
    copy(self, env, handle)
    os._exit(9)
environment.Generation.copy_into = die
with Store.open(sys.argv[1]) as store:
    artifact = Artifact("many")
    for number in range(int(sys.argv[2])):
        artifact.add_bytes(b"%d" % number, f"{number:05}")
    store.log_artifact(artifact)
"""


def test_a_process_killed_while_it_writes_the_index_anew_loses_nothing(path: Path) -> None:
    with Store.open(path) as store:
        many(store, 0)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(FILES)], check=False)
    assert done.returncode == 9
    with Store.open(path) as store:
        assert len(list(store.get("many:latest").files())) == FILES
    check(path)


def keys(count: int, seed: int = 0) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(32) for _ in range(count)]


def test_what_comes_into_an_empty_table_fills_its_pages(tmp_path: Path) -> None:
    index = LmdbIndex.open(tmp_path, ("a",), map_bytes=1 << 20, boot_id="boot")
    index.update(lambda t: t.change("a", dict.fromkeys(keys(10_000), bytes(45))))
    assert index.bytes_used() < 1.08 * 10_000 * (32 + 45 + 10)
    index.close()


def test_many_changes_at_once_are_those_of_one_after_the_other(tmp_path: Path) -> None:
    index = LmdbIndex.open(tmp_path, ("a",), map_bytes=1 << 16, boot_id="boot")
    other = MemoryIndex(("a",))
    source = random.Random(1)
    known = keys(3000)
    for turn in range(6):
        chosen = source.sample(known, 1500) if turn else known[:2000]
        changes = {key: None if source.random() < 0.3 else source.randbytes(source.randint(0, 900)) for key in chosen}
        for one_of in (index, other):
            one_of.update(lambda t, changes=changes: t.change("a", changes))  # type: ignore[misc]
        with index.read() as left, other.read() as right:
            assert list(left.scan("a")) == list(right.scan("a"))
            assert left.count("a") == right.count("a")
    index.close()


def test_long_rows_are_copied_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = LmdbIndex.open(tmp_path, ("a", "b"), map_bytes=1 << 24, boot_id="boot")
    index.update(lambda t: t.change("a", dict.fromkeys(keys(200), bytes(16_000))))
    index.update(lambda t: t.change("b", dict.fromkeys(keys(2), b"")))
    index.update(lambda t: t.change("a", dict.fromkeys(keys(200)[50:])))
    with index.read() as tables:
        before = [list(tables.scan(name)) for name in ("a", "b")]
    monkeypatch.setattr(environment, "COPIED_BYTES", 40_000)
    assert index.compact(0.5) > 0
    with index.read() as tables:
        assert [list(tables.scan(name)) for name in ("a", "b")] == before
    index.close()


def test_counts_of_many_rows_are_set_as_those_of_one() -> None:
    rows = [chunk_row(bytes([n]) * 16, n, n, n, n, n, 0) for n in range(9)]
    assert with_refcounts(rows, range(9)) == [with_refcount(row, n) for n, row in enumerate(rows)]
    assert refcounts(with_refcounts(rows, range(9))) == list(range(9))


# --- packs are written while others are read


@pytest.fixture
def wasteful(tmp_path: Path) -> Store:
    """A store with several packs that are half garbage."""
    store = Store.create(tmp_path / "w", config=SMALL)
    noise = [random.Random(n).randbytes(8000) for n in range(80)]
    for chosen in (range(80), range(0, 80, 2)):
        artifact = Artifact("ds")
        for number in chosen:
            artifact.add_bytes(noise[number], f"{number:03}")
        store.log_artifact(artifact)
    store.plan_delete(["ds:v0"], permanent=True).apply()
    return store


def live(store: Store) -> set[bytes]:
    with store._engine.view.read() as tables:
        return {name for name, _ in packs(tables)}


def live_packs(store: Store) -> set[bytes]:
    with store._engine.view.read() as tables:
        return {name for name, row in packs(tables) if row.state is PackState.LIVE}


def test_a_pack_is_committed_when_it_is_written_and_written_while_the_next_is_read(
    wasteful: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = wasteful._engine
    upload, commit, take = retire.publish, retire.commit_moved, retire.Mover.take
    read_on = threading.Event()
    begun: list[bytes] = []
    moved: list[int] = []

    def slow(engine: Any, sealed: Any) -> None:
        if not begun:
            begun.append(sealed.record.pack)
            assert read_on.wait(30), "nothing is read while a pack is written"
        upload(engine, sealed)

    def on(self: Any, source: Any) -> None:
        if begun:
            read_on.set()
        take(self, source)

    def committed(job: Any, added: Sequence[Any], batch: Any) -> int:
        for pack in added:
            assert engine.backend.read(pack_key(pack.pack), offset=0, length=4)
        moved.append(len(added))
        return int(commit(job, added, batch))

    monkeypatch.setattr(retire, "publish", slow)
    monkeypatch.setattr(retire.Mover, "take", on)
    monkeypatch.setattr(retire, "commit_moved", committed)
    wasteful.gc(grace=0, max_waste=0.0)
    assert sum(moved) > 2
    assert not wasteful.fsck(read_data=True).findings
    assert set(listed_packs(engine)) <= live(wasteful)
    wasteful.close()


@pytest.mark.parametrize("where", ["upload", "commit"])
def test_a_repack_that_fails_leaves_no_pack_nobody_knows(
    wasteful: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    engine = wasteful._engine
    name = {"upload": "publish", "commit": "commit_moved"}[where]
    real = getattr(retire, name)
    calls: list[int] = []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise BackendError("the disk is gone")
        return real(*arguments)

    monkeypatch.setattr(retire, name, fail)
    with pytest.raises(BackendError, match="gone"):
        wasteful.gc(grace=0, max_waste=0.0)
    stray = set(listed_packs(engine)) - live(wasteful)
    assert len(stray) == (where == "commit"), "but the one whose commit failed: a segment might name it"
    monkeypatch.undo()
    wasteful.gc(grace=0, max_waste=0.0)
    assert not wasteful.fsck(read_data=True).findings
    wasteful.close()


def test_what_is_being_written_counts_against_the_room(wasteful: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = wasteful._engine
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return True

    job = retire.Job(engine, None, 0, None, retire.Retired(), fits)
    moves = retire._Moves(job)
    assert moves.fits(100)
    moves._last = retire._Move(type("Pack", (), {"size": 1000})(), None, [])
    assert moves.fits(100)
    assert asked == [100, 1100]
    moves._last = None
    wasteful.close()


# --- rm --permanent --collect


def test_nothing_is_measured_that_nobody_is_told(wasteful: Store) -> None:
    before = wasteful.plan_delete(["ds:v1"], delete_aliases=True, permanent=True)
    plan = wasteful.plan_delete(["ds:v1"], delete_aliases=True, permanent=True, measure=False)
    assert plan.refs == before.refs
    assert before.exclusive_bytes > 0
    assert plan.exclusive_bytes == 0
    assert cli_deletion.WASTE <= 0.05
    plan.apply()
    assert wasteful.gc(grace=0).freed_bytes > 0
    wasteful.close()


def test_remembered_files_are_gone_through_only_if_much_was_freed(
    wasteful: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StatCache(wasteful._engine.view, wasteful._engine.runtime)
    walked: list[int] = []
    monkeypatch.setattr(cache, "_size", lambda: 1000)

    def parts(_: object) -> list[object]:
        walked.append(1)
        return []

    monkeypatch.setattr(cache, "_parts", parts)
    cache.forget_gone(1000 // statcache.FEW - 1)
    assert not walked
    cache.forget_gone(1000 // statcache.FEW)
    assert walked
    wasteful.close()


# --- packs are deleted beside one another


def test_large_packs_are_deleted_at_the_same_time_and_all_of_them(
    wasteful: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "LARGE", 0)
    delete = wasteful._engine.backend.delete
    both = threading.Barrier(2, timeout=30)
    gone: list[str] = []

    def together(key: str) -> None:
        if len(gone) < 2:
            gone.append(key)
            both.wait()
        delete(key)

    monkeypatch.setattr(wasteful._engine.backend, "delete", together)
    report = wasteful.gc(grace=0, max_waste=0.0)
    assert report.reclaimed_packs > 2
    assert report.reclaimed_packs >= report.retired_packs
    assert set(listed_packs(wasteful._engine)) == live_packs(wasteful)
    assert not wasteful.fsck(read_data=True).findings
    wasteful.close()


def test_no_pack_is_deleted_any_more_after_one_that_cannot_be(wasteful: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaim, "LARGE", 0)
    monkeypatch.setattr(reclaim, "AT_A_TIME", 2)
    delete = wasteful._engine.backend.delete
    asked: list[str] = []
    done: list[str] = []

    def denied(key: str) -> None:
        asked.append(key)
        if len(asked) == 1:
            raise BackendError("cannot delete it")
        delete(key)
        done.append(key)

    monkeypatch.setattr(wasteful._engine.backend, "delete", denied)
    with pytest.raises(BackendError, match="cannot delete it"):
        wasteful.gc(grace=0, max_waste=0.0)
    seen = len(asked)
    assert seen <= 3, "but what was begun beside it, or before"
    assert len(done) == seen - 1, "and that is over when the error is told"
    monkeypatch.undo()
    assert wasteful.gc(grace=0, max_waste=0.0).reclaimed_packs > 3
    assert set(listed_packs(wasteful._engine)) == live_packs(wasteful)
    assert not wasteful.fsck(read_data=True).findings
    wasteful.close()
