"""Promises that a review of checkpoints, quarantine, undo and the collector found broken.

Guards docs/GC.md: no byte goes without its veto; a check beside a collection stops neither; a view that is being made
again is never taken for the state, on a full disk or after the log was restored from a copy either.
"""

from __future__ import annotations

import errno
import importlib
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner

from casstore import Artifact, IntegrityError, Runtime, Settings, Store
from casstore import checkpoint as checkpoint_module
from casstore.cli import main
from casstore.errors import BackendError, RefusedError
from casstore.format.rows import encode_row
from casstore.gc import clearance
from casstore.index import LmdbIndex, MemoryIndex, SpillIndex, environment, files
from casstore.model import Quarantine
from casstore.overlay import Tables
from casstore.state import LOST, TABLES, head_of
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, view_hash
from casstore.testing.clock import Clock
from casstore.testing.recipes import SMALL
from casstore.view import View

retire: Any = importlib.import_module("casstore.gc.retire")
undo: Any = importlib.import_module("casstore.gc.undo")
"""the modules: packages have functions under these names"""

T = TypeVar("T")

HOUR = timedelta(hours=1)
BLOB = random.Random(1).randbytes(200_000)
OTHER = random.Random(2).randbytes(120_000)
LONG = 20
"""seconds after which a thread is taken to go on for ever"""


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    runtime = Runtime(clock=clock, actor="me", writer="w")
    with Store.create(path, config=SMALL, runtime=runtime, settings=Settings(workers=2)) as opened:
        yield opened


def log(store: Store, files: dict[str, bytes], name: str = "c") -> None:
    artifact = Artifact(name)
    for file, data in files.items():
        artifact.add_bytes(data, file)
    store.log_artifact(artifact)


def let_go(store: Store, ref: str) -> None:
    store.delete(ref)
    store.trash.purge(ref)


def elsewhere(work: Callable[[], object]) -> None:
    """Do something in another thread, now."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


# --- the collector -------------------------------------------------------------------------------


@pytest.mark.parametrize("incremental", [False, True])
def test_a_pack_whose_grace_ends_under_the_veto_waits_for_the_next(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, incremental: bool
) -> None:
    """What was not due when the veto was asked for has not been looked at."""
    log(store, {"a": BLOB})
    log(store, {"b": OTHER}, "d")
    let_go(store, "c:v0")
    assert store.gc(grace=HOUR).pending_bytes
    clock.now += HOUR - timedelta(milliseconds=1)
    real = clearance.clear

    def slow(*args: Any, **how: Any) -> object:
        found = real(*args, **how)
        clock.now += HOUR
        return found

    monkeypatch.setattr("casstore.gc.clear", slow)
    assert store.gc(grace=HOUR, incremental=incremental).reclaimed_packs == 0
    assert store.gc(grace=HOUR, incremental=incremental).reclaimed_packs


def test_a_repack_heals_what_was_quarantined_under_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy was checked: it takes the place of what a check found damaged meanwhile, and the collection goes on."""
    log(store, {"a": BLOB, "b": OTHER})
    log(store, {"b": OTHER})
    let_go(store, "c:v0")
    engine = store._engine
    hit: list[bytes] = []
    real = retire.commit_moved

    def move(job: Any, added: Any, batch: list[Any]) -> int:
        if not hit:
            source = batch[0]
            hit.append(source.live[0])
            engine.commit(lambda _: (Quarantine(source.live[0], source.fate.pack, "you"),))
        return int(real(job, added, batch))

    monkeypatch.setattr(retire, "commit_moved", move)
    report = store.gc(grace=timedelta(0), max_waste=0.0)
    assert hit
    assert not report.errors
    with engine.view.read() as tables:
        assert tables.get(LOST, hit[0]) is None
    recount(engine)
    check_no_garbage(store)
    assert read_files(store.get("c:v1")) == {"b": OTHER}


def test_a_check_reports_nothing_about_what_is_purged_and_collected_under_it(store: Store, path: Path) -> None:
    """It is no damage: nobody is to be alarmed, or to look for a copy."""
    log(store, {"a": BLOB})
    log(store, {"a": OTHER}, "d")
    log(store, {"a": b"kept"}, "e")
    done: list[int] = []
    with Store.open(path) as other:

        def progress(phase: str, _: int, __: int) -> None:
            if phase == "trees" and not done:
                for ref in ("c:v0", "d:v0"):
                    let_go(other, ref)
                done.append(other.gc(grace=timedelta(0)).reclaimed_packs)

        report = store.fsck(progress=progress)
    assert done[0]
    assert report.versions == 3
    assert not report.findings


@pytest.mark.parametrize("grace", [timedelta(0), HOUR])
def test_an_undo_under_which_bytes_are_taken_refuses_or_finds_them_again(
    store: Store, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, grace: timedelta
) -> None:
    """That a collection was faster is no damage: no exit 20. What it left for its grace is enough."""
    log(store, {"a": BLOB})
    log(store, {"a": BLOB, "b": OTHER}, "d")
    let_go(store, "c:v0")
    run = store.gc(grace=HOUR).run_id
    real = undo._store
    done: list[int] = []
    with Store.open(path, runtime=Runtime(clock=clock)) as other:

        def take(*args: Any) -> int:
            if not done:
                let_go(other, "d:v0")
                done.append(other.gc(grace=grace).retired_packs)
            return int(real(*args))

        monkeypatch.setattr(undo, "_store", take)
        if grace:
            assert store.gc_undo(run).restored == ("c:v0",)
            store.trash.restore("c:v0")
            assert read_files(store.get("c:v0")) == {"a": BLOB}
        else:
            with pytest.raises(RefusedError, match="the bytes of c:v0 were reclaimed"):
                store.gc_undo(run)
    assert done[0]
    recount(store._engine)


# --- a view that is made again -------------------------------------------------------------------


def test_no_thread_sees_the_empty_view_of_another_that_makes_it_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a commit that took place would be reported as void, and a mark would miss what is there."""
    log(store, {"a": b"hello"})
    view = store._engine.view
    real = View._forget
    seen: list[int] = []

    def forget(self: View) -> None:
        real(self)
        with self.read() as tables:
            seen.append(head_of(tables).seq)

    monkeypatch.setattr(View, "_forget", forget)
    before = view.head().seq
    assert view.rebuild().seq == before
    assert seen == [before]


def test_a_read_inside_a_read_shows_the_same_whatever_others_commit(store: Store) -> None:
    log(store, {"a": b"hello"})
    view = store._engine.view
    with view.read() as outer:
        elsewhere(lambda: log(store, {"a": b"more"}))
        with view.read() as inner:
            assert head_of(inner) == head_of(outer) == view.head()
    assert view.head().seq == 2


def test_a_commit_with_nothing_to_do_is_durable_although_the_view_is_made_again(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it answers rests on the log, which another process may have written: also when that emptied the view."""
    log(store, {"a": b"hello"})
    with Store.open(path) as other:
        engine = other._engine
        barriers: list[int] = []
        monkeypatch.setattr(engine.log, "barrier", lambda: barriers.append(1))

        def build(_: Tables) -> tuple[()]:
            elsewhere(store._engine.view._storage.reset)
            return ()

        assert engine.commit(build) is None
        assert barriers


def test_an_index_is_made_again_for_a_log_that_was_restored_from_a_copy(path: Path, store: Store) -> None:
    """As the error says that tells of it: nobody has to remove files by hand."""
    log(store, {"a": b"old"})
    log(store, {"a": b"new"})
    store.close()
    max((path / "log").glob("0*")).unlink()
    refused = CliRunner().invoke(main, ["--store", str(path), "ls"])
    assert refused.exit_code == IntegrityError.exit_code
    assert "casstore index rebuild" in refused.stderr
    made = CliRunner().invoke(main, ["--store", str(path), "index", "rebuild"])
    assert (made.exit_code, made.stdout) == (0, "1\n"), made.stderr
    with Store.open(path) as again:
        assert read_files(again.get("c")) == {"a": b"old"}
        log(again, {"a": b"newer"})
        assert view_hash(again._engine) == replayed(again._engine)


def test_a_view_is_not_made_again_from_a_log_with_a_hole(path: Path, store: Store) -> None:
    """It would end before the hole, and the next commit into it would cut off all that follows."""
    for text in (b"1", b"2", b"3"):
        log(store, {"a": text})
    segments = sorted((path / "log").glob("0*"))
    aside = segments[1].rename(path / "aside")
    for make in (store.rebuild_index, lambda: Store.open(path, rebuild_index=True)):
        with pytest.raises(IntegrityError, match="log segment 2 is missing"):
            make()
    aside.rename(segments[1])
    assert store.rebuild_index() == 3
    assert read_files(store.get("c")) == {"a": b"3"}


def test_checkpoints_of_another_log_do_not_push_out_those_of_this_one(path: Path, store: Store) -> None:
    """Those that are left when a log was restored from a copy are beyond its end."""
    for number in range(6):
        log(store, {"a": b"%d" % number})
    store.checkpoint()
    log(store, {"a": b"x"})
    store.checkpoint()
    store.close()
    for segment in sorted((path / "log").glob("0*"))[3:]:
        segment.unlink()
    shutil.rmtree(path / "index")
    with Store.open(path) as again:
        log(again, {"a": b"y"})
        made = again.checkpoint()
        found = again._engine.checkpoints.newest(again._engine.log)
        assert found is not None
        assert found.seq == made.seq


def test_an_index_that_is_discarded_as_a_change_begins_is_made_again(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory of the old one may be gone before the change has taken its clean marker away."""
    log(store, {"a": b"1"})
    store.close()
    with Store.open(path) as again:
        real = files.fsync_directory
        gone: list[Path] = []

        def fsync(directory: Path) -> None:
            if not gone and directory.parent.parent.parent.name == "index":
                gone.append(directory)
                LmdbIndex.discard(directory.parent.parent)
                shutil.rmtree(directory, ignore_errors=True)
            real(directory)

        monkeypatch.setattr(environment, "fsync_directory", fsync)
        log(again, {"a": b"2"})
        assert gone
        assert read_files(again.get("c")) == {"a": b"2"}
        assert view_hash(again._engine) == replayed(again._engine)


# --- an index that has no room -------------------------------------------------------------------


class Cramped:
    """An index with room for so many updates."""

    def __init__(self, base: MemoryIndex, room: int) -> None:
        self.base = base
        self.room = room

    def read(self) -> AbstractContextManager[Tables]:
        return self.base.read()

    def update(self, body: Callable[[Tables], T]) -> T:
        def cramped(tables: Tables) -> T:
            result = body(tables)
            if self.room <= 0:
                error = BackendError("no room")
                error.errno = errno.ENOSPC
                raise error
            self.room -= 1
            return result

        return self.base.update(cramped)

    def reset(self) -> None:
        self.update(lambda _: None)
        self.base.reset()

    def compact(self, share: float, *, least: int = 0) -> int:
        return self.base.compact(share, least=least)

    def close(self) -> None:
        self.base.close()


def view_of(store: Store, index: Cramped | MemoryIndex) -> View:
    engine = store._engine
    return View(index, engine.log, lambda _: None, lambda _: None, engine.checkpoints)


def content(view: View) -> dict[str, list[tuple[bytes, bytes]]]:
    with view.read() as tables:
        return {t: [pair for pair in tables.scan(t) if not pair[0].startswith(b"local/")] for t in TABLES}


@pytest.mark.parametrize("room", [0, 1, 2, 50])
def test_a_new_view_that_begins_with_a_checkpoint_needs_no_room(
    store: Store, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """As one that begins with the log: else a store with a checkpoint could not be opened on a full disk."""
    monkeypatch.setattr(checkpoint_module, "PART_BYTES", 300)
    log(store, {"a": b"1"})
    log(store, {"a": b"2"})
    store.checkpoint()
    log(store, {"a": b"3"})
    index = Cramped(MemoryIndex(TABLES), room)
    view = view_of(store, index)
    assert view.refresh().seq == store._engine.view.head().seq
    assert content(view) == content(store._engine.view)
    index.room = 1000
    log(store, {"a": b"4"})
    view.refresh()
    assert content(view) == content(store._engine.view)
    view.close()


def test_what_is_kept_in_memory_is_not_laid_over_a_view_that_begins_with_a_checkpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a view is at no position: rows of before and after would be mixed, and nobody could go on from there."""
    monkeypatch.setattr(checkpoint_module, "PART_BYTES", 300)
    log(store, {"a": b"1"})
    log(store, {"a": b"2"})
    index = Cramped(MemoryIndex(TABLES), 0)
    mine = view_of(store, index)
    mine.refresh()
    assert isinstance(mine._storage, SpillIndex)
    log(store, {"a": b"3"})
    store.checkpoint()
    checkpoints = store._engine.checkpoints
    manifest = checkpoints.newest(store._engine.log)
    assert manifest is not None
    part = checkpoints.part(manifest, 0)
    assert part is not None
    theirs = view_of(store, index.base)
    theirs._load(manifest, 0, part, None)
    index.room = 1000
    log(store, {"a": b"4"})
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(mine.refresh().seq), daemon=True)
    thread.start()
    thread.join(LONG)
    assert done == [store._engine.view.head().seq]
    theirs.refresh()
    assert content(mine) == content(theirs) == content(store._engine.view)


def test_the_end_of_a_checkpoint_is_not_kept_above_an_index_without_the_rest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may throw away what it has of the checkpoint, and begin with the log."""
    monkeypatch.setattr(checkpoint_module, "PART_BYTES", 300)
    log(store, {"a": b"1"})
    index = Cramped(MemoryIndex(TABLES), 0)
    mine = view_of(store, index)
    mine.refresh()
    assert isinstance(mine._storage, SpillIndex)
    log(store, {"a": b"2"})
    store.checkpoint()
    checkpoints = store._engine.checkpoints
    manifest = checkpoints.newest(store._engine.log)
    assert manifest is not None
    theirs = view_of(store, index.base)
    begun: bytes | None = None
    for number in range(len(manifest.sizes) - 1):
        part = checkpoints.part(manifest, number)
        assert part is not None
        theirs._load(manifest, number, part, begun)
        begun = encode_row((manifest.key, number + 1))
    mine.refresh()
    assert content(mine) == content(store._engine.view)
    theirs._forget()
    assert content(mine) == content(store._engine.view)


def test_what_another_thread_commits_during_a_read_is_no_loss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that turns out to be old is looked at again; what others come to meanwhile is not "seen earlier"."""
    log(store, {"x": b"1"})
    view = store._engine.view
    storage, refresh = view._storage, view.refresh
    empty = MemoryIndex(TABLES)
    reads: list[str] = []

    class Stale:
        def read(self) -> AbstractContextManager[Tables]:
            reads.append("stale" if not reads else "real")
            return empty.read() if len(reads) == 1 else storage.read()

        def __getattr__(self, name: str) -> Any:
            return getattr(storage, name)

    def late() -> object:
        head = refresh()
        if len(reads) < 20:
            thread = threading.Thread(target=lambda: store.set_policy(trash_days=len(reads)))
            reads.extend(["…"] * 20)
            thread.start()
            thread.join()
        return head

    monkeypatch.setattr(view, "_storage", Stale())
    monkeypatch.setattr(view, "refresh", late)
    with view.read() as tables:
        assert head_of(tables).seq == 2
    assert reads[0] == "stale"
