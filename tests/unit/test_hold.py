"""Who is at work in a store: an offline collection has it alone, and says who is in the way.

Promises guarded: `gc(offline=True)` beside any session of another process, thread or handle changes nothing and names
the holder (exit 13); what was killed holds nothing, what is stopped does; idle handles, children of a fork and dropped
sessions hold nothing; small commits go on; nobody's temporary file is swept while its author lives. The workers are
this file, run as a program; they block where a pipe tells them to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from casstore import Artifact, BackendError, InvalidInputError, Runtime, Settings, Store, StoreBusyError
from casstore.backend.hold import LocalSessions, MemorySessions, sessions_of
from casstore.backend.local import LocalBackend
from casstore.backend.memory import forget_memory
from casstore.backend.osops import OsOps, StrPath
from casstore.backend.wrap import CountingBackend
from casstore.cli import main
from casstore.testing.checks import check_no_garbage, read_files
from casstore.testing.recipes import BLOCKS, SMALL
from casstore.writer import Writer

Start = Callable[..., subprocess.Popen[str]]
FILES = {"a": BLOCKS["A"], "b": BLOCKS["B"]}


def artifact(name: str = "c", files: dict[str, bytes] = FILES) -> Artifact:
    made = Artifact(name)
    for path, data in files.items():
        made.add_bytes(data, path)
    return made


# ---------------------------------------------------------------- workers: what the other processes do


class Gate:
    """A progress callback that says that it is there, once, and goes on when it reads a line."""

    def __init__(self) -> None:
        self.passed = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self.passed:
            self.passed = True
            print("in", flush=True)
            sys.stdin.readline()


def log_slowly(path: str) -> None:
    with Store.open(path) as store:
        store.log_artifact(artifact("slow", {"a": BLOCKS["text"]}), progress=Gate())
    print("done", flush=True)


def collect_slowly(path: str, offline: str) -> None:
    with Store.open(path) as store:
        store.gc(offline=offline == "offline", grace=0, progress=Gate())
    print("done", flush=True)


def fork_while_logging(path: str) -> None:
    """The child outlives the session of its parent."""
    children: list[int] = []

    def fork(stage: str, done: int, total: int) -> None:
        if not children:
            child = os.fork()
            if not child:
                print("child", flush=True)
                sys.stdin.readline()
                os._exit(0)
            children.append(child)

    with Store.open(path) as store:
        store.log_artifact(artifact("slow", {"a": BLOCKS["text"]}), progress=fork)
        print("logged", flush=True)
        os.waitpid(children[0], 0)


def fork_and_die(path: str) -> None:
    """To be killed while its child goes on."""
    with Store.open(path) as store:
        writer = Writer(store._engine)
        if os.fork():
            signal.pause()
        print("child", flush=True)
        sys.stdin.readline()
        os._exit(bool(writer.new_bytes))


def fork_and_stay(path: str) -> None:
    """The child is gone before the session of its parent."""

    def fork(stage: str, done: int, total: int) -> None:
        child = os.fork()
        if not child:
            with contextlib.suppress(StoreBusyError):
                Store.open(path).gc(offline=True)
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        Gate()(stage, done, total)

    with Store.open(path) as store:
        store.log_artifact(artifact("slow", {"a": BLOCKS["text"]}), progress=fork)


WORKERS = {
    worker.__name__: worker for worker in (log_slowly, collect_slowly, fork_while_logging, fork_and_die, fork_and_stay)
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with garbage of a version that was purged."""
    with Store.create(tmp_path / "store", config=SMALL) as store:
        store.log_artifact(artifact())
        store.log_artifact(artifact("kept", {"k": BLOCKS["over"]}))
        store.delete("c:v0")
        store.trash.purge("c:v0")
    return tmp_path / "store"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers and waits until they are where they block; sees to it that none is left."""
    started: list[subprocess.Popen[str]] = []

    def start(worker: Callable[..., None], *arguments: object, expect: str = "in") -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", __file__, worker.__name__, *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said == expect, process.communicate()[1]
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def let_go(process: subprocess.Popen[str]) -> str:
    """Let a worker go on; what it said until it ended, well."""
    out, error = process.communicate("\n")
    assert process.returncode == 0, error
    return out


def packs(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in (path / "packs").rglob("*") if p.is_file()}


def collect_offline(path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["gc", "--offline", "--store", str(path)])
    return result.exit_code, result.stderr


def refused(path: Path, pid: int, doing: str) -> None:
    """An offline collection changes nothing, ends in 13 and names who is in the way."""
    before = packs(path), sorted(os.listdir(path / "log"))
    code, said = collect_offline(path)
    assert code == 13, said
    assert f"process {pid} on {os.uname().nodename}, {doing} since 20" in said
    assert Path(__file__).name in said, "the command line"
    assert (packs(path), sorted(os.listdir(path / "log"))) == before


# ---------------------------------------------------------------- an offline collector keeps out


def test_offline_collection_names_the_writer_in_its_way(path: Path, start: Start) -> None:
    writer = start(log_slowly, path)
    refused(path, writer.pid, "logging an artifact")
    assert let_go(writer) == "done\n"
    assert collect_offline(path) == (0, "")
    with Store.open(path) as store:
        assert read_files(store.get("slow")) == {"a": BLOCKS["text"]}
        check_no_garbage(store)


def test_a_stopped_writer_holds_a_killed_one_does_not(path: Path, start: Start) -> None:
    writer = start(log_slowly, path)
    os.kill(writer.pid, signal.SIGSTOP)
    os.waitpid(writer.pid, os.WUNTRACED)
    refused(path, writer.pid, "logging an artifact")
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert [*(path / "tmp").iterdir()], "its name is still there"
    other = start(log_slowly, path)
    assert f"process {writer.pid} " not in collect_offline(path)[1], "but it is not in the way"
    let_go(other)
    assert collect_offline(path) == (0, "")
    assert not [*(path / "tmp").iterdir()], "swept, whatever its age"
    with Store.open(path) as store:
        check_no_garbage(store)


@pytest.mark.parametrize("other", ["offline", "online"])
def test_offline_collection_waits_for_no_other_collection(path: Path, start: Start, other: str) -> None:
    collector = start(collect_slowly, path, other)
    refused(path, collector.pid, "collecting")
    let_go(collector)
    assert collect_offline(path) == (0, "")


def test_online_collections_and_writers_work_side_by_side(path: Path, start: Start) -> None:
    start(collect_slowly, path, "online")
    start(log_slowly, path)
    with Store.open(path, settings=Settings(busy_seconds=0)) as store:
        store.log_artifact(artifact("beside"))
        assert store.gc(grace=0).errors == []


def test_a_writer_waits_a_while_for_an_offline_collection(path: Path, start: Start) -> None:
    """Then it says who is in the way; small commits go on meanwhile; when the collector ends in time, it goes on."""
    collector = start(collect_slowly, path, "offline")
    os.kill(collector.pid, signal.SIGSTOP)
    os.waitpid(collector.pid, os.WUNTRACED)
    slept: list[float] = []
    runtime = Runtime(sleep=slept.append)
    with Store.open(path, runtime=runtime) as store:
        before = packs(path)
        with pytest.raises(
            StoreBusyError, match=f"process {collector.pid} .*, collecting since .*collect_slowly"
        ) as info:
            store.log_artifact(artifact("late"))
        assert info.value.exit_code == 13
        assert info.value.hint
        assert sum(slept) == pytest.approx(Settings().busy_seconds)
        slept.clear()
        with pytest.raises(StoreBusyError):
            store.gc(offline=True)
        assert slept == [], "who wants to be alone does not wait"
        assert packs(path) == before
        kept = store.get("kept")
        kept.add_alias("best")
        store.delete("kept:v0", delete_aliases=True)
        store.trash.restore("kept:v0")
        assert store.gc(dry_run=True).freed_bytes >= 0, "a plan needs no hold"

    def wake(seconds: float) -> None:
        if collector.poll() is None:
            os.kill(collector.pid, signal.SIGCONT)
            let_go(collector)

    with Store.open(path, runtime=replace(runtime, sleep=wake)) as store:
        assert read_files(store.log_artifact(artifact("late"))) == FILES
        check_no_garbage(store)


# ---------------------------------------------------------------- what holds nothing


def test_an_idle_handle_and_a_draft_hold_nothing(path: Path) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        version = store.log_artifact(artifact())
        draft = version.new_draft()
        draft.add_bytes(b"more", "more")
        assert not other.gc(offline=True).errors
        assert read_files(store.log_artifact(draft)) == {**FILES, "more": b"more"}


def fail_with_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(BackendError):
        patch.setattr(os, "writev", fail)
        store.log_artifact(artifact("x"))


def interrupt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.log_artifact(artifact("x"), progress=stop)


def change_the_source(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Artifact("x")
    source = Path(store.url).parent / "file"
    source.write_bytes(b"one")
    made.add_file(source)
    source.write_bytes(b"another")
    with pytest.raises(InvalidInputError):
        store.log_artifact(made)


def drop_a_writer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(store._engine)
    with pytest.raises(StoreBusyError):
        store.gc(offline=True)
    del writer
    gc.collect()


def log_what_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed at all."""
    for _ in range(2):
        store.log_artifact(artifact("x"), aliases=())


def end_the_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = threading.Thread(target=lambda: store.log_artifact(artifact("x")))
    thread.start()
    thread.join()


def fail_to_collect(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for offline in (False, True):
        with pytest.raises(KeyboardInterrupt):
            store.gc(offline=offline, progress=stop)


@pytest.mark.parametrize(
    "end",
    [
        fail_with_a_full_disk,
        interrupt,
        change_the_source,
        drop_a_writer,
        log_what_is_there,
        end_the_thread,
        fail_to_collect,
    ],
    ids=lambda end: end.__name__,
)
def test_a_session_lets_go_however_it_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Store, pytest.MonkeyPatch], None]
) -> None:
    with Store.open(path) as store:
        end(store, monkeypatch)
        assert [*(path / "tmp").iterdir()] == []
        assert not store.gc(offline=True).errors
        store.log_artifact(artifact("after"))
    descriptors = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    assert str(path) not in descriptors


def _is_open(descriptor: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{descriptor}")


def test_the_child_of_a_fork_holds_nothing(path: Path, start: Start) -> None:
    worker = start(fork_while_logging, path, expect="child")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "logged\n"
    assert collect_offline(path) == (0, ""), "the child is still there"
    let_go(worker)


def test_the_child_of_a_fork_inherits_nothing_from_a_parent_that_is_killed(path: Path, start: Start) -> None:
    worker = start(fork_and_die, path, expect="child")
    refused(path, worker.pid, "logging an artifact")
    worker.kill()
    worker.wait()
    assert collect_offline(path) == (0, "")
    assert worker.stdin is not None
    worker.stdin.write("\n")  # breaks the pipe unless the child is still there
    worker.stdin.flush()


def test_the_child_of_a_fork_does_not_let_go_for_its_parent(path: Path, start: Start) -> None:
    worker = start(fork_and_stay, path)
    refused(path, worker.pid, "logging an artifact")


def test_threads_and_handles_of_one_process_keep_each_other_out(path: Path) -> None:
    said: list[str] = []

    def collect(stage: str, done: int, total: int) -> None:
        for handle in (store, other):
            with pytest.raises(StoreBusyError) as info:
                handle.gc(offline=True)
            said.append(str(info.value))

    with Store.open(path) as store, Store.open(path) as other:
        store.log_artifact(artifact("x"), progress=collect)
        assert not other.gc(offline=True).errors
    assert said
    assert all(f"process {os.getpid()} " in text and "logging an artifact" in text for text in said)


# ---------------------------------------------------------------- other places


def test_memory_stores_are_held_as_directories_are() -> None:
    url = "memory://held"
    said: list[str] = []

    def collect(stage: str, done: int, total: int) -> None:
        with pytest.raises(StoreBusyError) as info:
            other.gc(offline=True)
        said.append(str(info.value))
        assert not other.gc(grace=0).errors

    def write(stage: str, done: int, total: int) -> None:
        with pytest.raises(StoreBusyError, match="collecting"):
            store.log_artifact(artifact("y"))
        with pytest.raises(StoreBusyError, match="collecting"):
            store.gc()

    try:
        quick = Settings(busy_seconds=0)
        with Store.create(url, config=SMALL, settings=quick) as store, Store.open(url, settings=quick) as other:
            version = store.log_artifact(artifact(), progress=collect)
            assert said
            assert "logging an artifact" in said[0]
            other.gc(offline=True, progress=write)
            assert read_files(version) == FILES
            with Store.create("memory://another", config=SMALL) as free:
                free.gc(offline=True)
    finally:
        forget_memory("held")
        forget_memory("another")


def test_backends_of_an_unknown_kind_get_sessions_of_their_own(tmp_path: Path) -> None:
    assert isinstance(sessions_of(LocalBackend(tmp_path, OsOps())), LocalSessions)
    assert isinstance(sessions_of(CountingBackend(LocalBackend(tmp_path, OsOps()))), MemorySessions)


def test_without_names_the_kernel_is_asked_and_without_both_it_is_another_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(stage: str, done: int, total: int) -> None:
        for record in (path / "tmp").glob("session-*"):
            record.unlink()
        if os.path.exists("/proc/locks"):
            with pytest.raises(StoreBusyError, match=f"process {os.getpid()}, at work .*python"):
                store.gc(offline=True)
        with monkeypatch.context() as patch:
            patch.setattr(LocalSessions, "_known_to_the_kernel", lambda _: iter(()))
            with pytest.raises(StoreBusyError, match="held by another process"):
                store.gc(offline=True)

    with Store.open(path) as store:
        store.log_artifact(artifact("x"), progress=collect)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_without_locks_everything_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Some network file systems have no flock; integrity does not depend on it."""

    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    collected: list[object] = []

    def collect(stage: str, done: int, total: int) -> None:
        if not collected:
            collected.append(store.gc(offline=True))

    with Store.open(path) as store:
        monkeypatch.setattr(fcntl, "flock", fail)
        version = store.log_artifact(artifact("x"), progress=collect)
        assert collected
        assert read_files(version) == FILES


def test_a_session_is_no_object_and_no_trace_of_it_stays(path: Path) -> None:
    seen: list[set[str]] = []

    def look(stage: str, done: int, total: int) -> None:
        keys = {info.key for info in store._engine.backend.list("")}
        seen.append({key.split("/")[0] for key in keys})
        assert [entry.name.split("-")[0] for entry in (path / "tmp").iterdir()] == ["session"]

    with Store.open(path) as store:
        names = set(os.listdir(path))
        store.log_artifact(artifact("x"), progress=look)
        assert seen
        assert all(keys <= {"format", "index", "log", "packs"} for keys in seen)
        assert set(os.listdir(path)) == names
        assert [*(path / "tmp").iterdir()] == []


def test_readers_hold_nothing_and_write_nothing(path: Path) -> None:
    for directory in (path, path / "tmp"):
        directory.chmod(0o500)
    try:
        with Store.open(path, read_only=True) as store:
            assert store.get("kept").file_count == 1
            assert store.gc(dry_run=True).freed_chunks
        assert [*(path / "tmp").iterdir()] == []
    finally:
        for directory in (path, path / "tmp"):
            directory.chmod(0o700)


# ---------------------------------------------------------------- temporary files


class AtLink(OsOps):
    """Calls something when a file is finished and has no name yet."""

    def __init__(self) -> None:
        super().__init__()
        self.do: Callable[[], object] | None = None

    def link(self, source: StrPath, target: StrPath) -> None:
        do, self.do = self.do, None
        if do is not None:
            do()
        super().link(source, target)


def test_temporary_files_of_live_writers_are_spared_whatever_their_age(path: Path) -> None:
    ops = AtLink()
    with Store.open(path, ops=ops) as store, Store.open(path) as other:
        (path / "tmp" / "left").write_bytes(b"by the dead")
        did: list[object] = []
        ops.do = lambda: did.append(other.gc(grace=0, orphan_age=0))
        assert read_files(store.log_artifact(artifact("x"))) == FILES
        assert len(did) == 1
        assert not (path / "tmp" / "left").exists()
        # A small commit holds nothing, so that an offline collection runs beside it.
        ops.do = lambda: did.append(other.gc(offline=True))
        store.get("x").add_alias("best")
        assert len(did) == 2
        assert store.get("x:best").number == 0


if __name__ == "__main__":
    WORKERS[sys.argv[1]](*sys.argv[2:])
