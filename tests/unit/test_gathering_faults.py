"""What breaks a group, or the index that is written anew, breaks nothing else: findings of a review."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casstore import Artifact, Runtime, Store, Version
from casstore.errors import AlreadyExistsError, BackendError, CasstoreError
from casstore.format.layout import PACK_PREFIX, pack_key
from casstore.index import IndexDamagedError, LmdbIndex, environment
from casstore.index.environment import RemapError
from casstore.index.files import ENGINE
from casstore.overlay import Tables
from casstore.state import LOCAL, META
from casstore.testing.checks import recount
from casstore.testing.together import together


def logging(store: Store, name: str) -> Callable[[], Version]:
    artifact = Artifact(name)
    artifact.add_bytes(name.encode() * 100, "f")
    return lambda: store.log_artifact(artifact)


# --- a group whose leader goes away


def test_who_leads_a_group_and_is_interrupted_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Between taking the group from the queue and committing it."""
    armed = threading.Event()

    def monotonic() -> float:
        if armed.is_set():
            armed.clear()
            raise KeyboardInterrupt
        return 0.0

    with Store.create(tmp_path / "s", runtime=Runtime(monotonic=monotonic)) as store:
        armed.set()
        outcomes: list[object] = []
        both = threading.Thread(
            target=lambda: outcomes.extend(together(store._engine, [logging(store, "a"), logging(store, "b")])),
            daemon=True,
        )
        both.start()
        both.join(30)
        assert not both.is_alive()
        assert all(isinstance(outcome, (KeyboardInterrupt, Version)) for outcome in outcomes)
        assert any(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes)
        assert logging(store, "c")().version == "v0"
        assert not store.fsck(read_data=True).findings


def test_a_pack_that_has_the_name_of_a_new_one_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another session, which has not committed yet, had drawn the same one."""
    taken = bytes(range(16))
    with Store.create(tmp_path / "s") as store:
        engine = store._engine
        engine.backend.create(pack_key(taken), b"another's")
        names = iter([taken[:1] + bytes(15 * [1]), taken])
        monkeypatch.setattr(engine, "new_pack", lambda: next(names))
        with pytest.raises(CasstoreError, match="drawn twice") as caught:
            logging(store, "b")()
        assert not isinstance(caught.value, AlreadyExistsError), "no version of that name is there"
        assert engine.backend.read(pack_key(taken)) == b"another's"
        monkeypatch.undo()
        assert logging(store, "b")().version == "v0"
        assert not store.fsck(read_data=True).findings


# --- several objects at once, of which one fails


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("effect", ["fsync", "link", "fsync_dir"])
def test_packs_of_a_group_that_cannot_be_published_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, effect: str
) -> None:
    with Store.create(tmp_path / "s") as store:
        engine = store._engine
        logging(store, "a")()  # the directories of the log are there
        monkeypatch.setattr(engine, "new_pack", lambda: bytes([7]) + os.urandom(15))
        ops = engine.ops
        real = getattr(ops, effect)
        calls = itertools.count()

        def failing(*arguments: Any) -> Any:
            place = str(arguments[-1])
            if ("/packs/07" in place or effect == "fsync") and next(calls) == broken:
                raise OSError(5, "broken")
            return real(*arguments)

        segments = engine.view.head().seq
        monkeypatch.setattr(ops, effect, failing)
        if effect == "fsync_dir" and broken == 1:
            logging(store, "b")()  # one sync is for both
            return
        with pytest.raises(BackendError):
            logging(store, "b")()
        monkeypatch.undo()
        assert engine.view.refresh().seq == segments, "no segment before all its packs are durable"
        assert not [info.key for info in engine.backend.list(PACK_PREFIX) if info.key.startswith("packs/07/")]
        assert logging(store, "b")().version == "v0"


# --- the index written anew


KEYS = [b"%032d" % number for number in range(6000)]


def loose(directory: Path) -> LmdbIndex:
    """An index of which much is free."""
    index = LmdbIndex.open(directory, ("a",), map_bytes=1 << 22, boot_id="boot")
    index.update(lambda t: t.change("a", dict.fromkeys(KEYS, bytes(60))))
    index.update(lambda t: t.change("a", dict.fromkeys(KEYS[1000:])))
    return index


def rows(index: LmdbIndex) -> int:
    with index.read() as tables:
        return sum(1 for _ in tables.scan("a"))


def test_an_index_written_anew_is_not_believed_after_a_power_cut_before_it_is_closed(tmp_path: Path) -> None:
    """What others have folded meanwhile may stand on segments that no one has made durable yet."""
    index = loose(tmp_path)
    assert index.compact(0.1) > 0
    [place] = (tmp_path / ENGINE).glob("[0-9]*")
    assert (place / "boot").exists()
    assert not (place / "clean").exists()
    assert rows(index) == 1000
    index.close()
    assert (place / "clean").exists()


def test_where_restarts_cannot_be_told_an_index_written_anew_is_kept(tmp_path: Path) -> None:
    index = LmdbIndex.open(tmp_path, ("a",), map_bytes=1 << 22, boot_id="")
    index.update(lambda t: t.change("a", dict.fromkeys(KEYS, bytes(60))))
    index.update(lambda t: t.change("a", dict.fromkeys(KEYS[1000:])))
    assert index.compact(0.1) > 0
    assert rows(index) == 1000
    index.close()


def test_an_index_that_lacks_rows_is_not_made_whole_by_writing_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = loose(tmp_path)
    monkeypatch.setattr(environment, "islice", lambda pairs, _: itertools.islice(pairs, 0, None, 2))
    with pytest.raises(IndexDamagedError):
        index.compact(0.1)
    assert not list((tmp_path / ENGINE).glob("new-*")), "what was written of it is gone"
    monkeypatch.undo()
    assert rows(index) == 1000
    index.close()


def test_a_view_found_damaged_when_it_is_written_anew_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.create(tmp_path / "s") as store:
        logging(store, "a")()
        view = store._engine.view

        def damaged(share: float, *, least: int = 0) -> int:
            raise IndexDamagedError("short", generation=1)

        monkeypatch.setattr(view._storage, "compact", damaged)
        before = view.head()
        assert view.compact(0.1) == 0
        assert view.head() == before
        assert store.get("a").version == "v0"


def test_a_map_that_another_process_makes_grow_does_not_stop_a_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = loose(tmp_path)
    begin = environment.Generation.begin
    resized: list[int] = []

    def resizing(self: environment.Generation, *, write: bool) -> Any:
        if write and not resized:
            resized.append(1)
            raise RemapError(0)
        return begin(self, write=write)

    monkeypatch.setattr(environment.Generation, "begin", resizing)
    assert index.compact(0.1) > 0
    assert resized
    assert rows(index) == 1000
    index.close()


STEPS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "open", "shutil.rmtree"}


def killer(step: int) -> Callable[[str, tuple[object, ...]], None]:
    """Ends the process when it comes to so many of the steps."""
    left = itertools.count(step, -1)

    def watch(event: str, _: tuple[object, ...]) -> None:
        if event in STEPS and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


def test_a_process_killed_at_any_step_of_writing_the_index_anew_loses_no_row(tmp_path: Path) -> None:
    for step in itertools.count():
        directory = tmp_path / str(step)
        loose(directory).close()
        child = os.fork()
        if child == 0:  # pragma: no cover - killed
            index = LmdbIndex.open(directory, ("a",), map_bytes=1 << 22, boot_id="boot")

            sys.addaudithook(killer(step))
            os._exit(index.compact(0.1) == 0)
        status = os.waitpid(child, 0)[1]
        index = LmdbIndex.open(directory, ("a",), map_bytes=1 << 22, boot_id="boot")
        assert not index.fresh, step
        assert rows(index) == 1000, step
        index.update(lambda t: t.put("a", b"more", b""))
        index.compact(0.1)
        assert rows(index) == 1001, step
        assert index.bytes_used() < 500_000
        index.close()
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            assert step > 5
            return


def test_what_was_foreseen_is_not_taken_for_what_came_of_it_when_the_change_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other tables than those it was foreseen on, as after another generation of the index took their place."""

    class Lost(Exception):
        pass

    with Store.create(tmp_path / "s") as store:
        view = store._engine.view
        update, fold = view._storage.update, view.fold
        outcomes: list[bool] = []

        def again(body: Callable[[Tables], Any]) -> Any:
            def lose(tables: Tables) -> None:
                body(tables)
                raise Lost

            with pytest.raises(Lost):
                update(lose)
            update(lambda tables: tables.put(META, LOCAL + b"other", b"1"))
            return update(body)

        def folding(*arguments: Any) -> bool:
            outcomes.append(fold(*arguments))
            return outcomes[-1]

        monkeypatch.setattr(view, "fold", folding)
        assert logging(store, "a")().version == "v0"
        monkeypatch.setattr(view._storage, "update", again)
        assert logging(store, "b")().version == "v0"
        assert outcomes == [True, False]
        monkeypatch.undo()
        recount(store._engine)
