"""Many writers, threads and collectors on one store at once, for real: processes, signals, forks.

Guards B1 (numbers without gap or duplicate), I5 (acknowledged is readable) beside a collector without grace, and that
nobody waits for a process that sleeps. The workers are this file, run as a program.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

import casstore.writer
from casstore import Artifact, CasstoreError, Store, Version
from casstore.backend.osops import OsOps, StrPath
from casstore.engine import Build, Committed
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, view_hash
from casstore.testing.recipes import SMALL
from casstore.testing.workers import Start, result, workers

T = TypeVar("T")

PROCESSES, VERSIONS = 8, 50
ROUNDS = 200
KEEP = 20
WAIT = 100
"""seconds after which something that should not wait has failed to come back; nothing is measured with it"""


def block(number: int) -> bytes:
    """12 KiB: a dozen chunks."""
    return random.Random(f"block {number}").randbytes(12 * 1024)


def log(store: Store, files: dict[str, bytes], name: str = "c") -> Version:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact)


def numbered(store: Store, name: str = "c") -> list[int]:
    return [version.number for version in store.versions(name, newest_first=False)]


# ---------------------------------------------------------------- workers: what the other processes do


def log_many(path: str, who: str) -> None:
    """Log versions, each read back; prints their numbers."""
    with Store.open(path) as store:
        for step in range(VERSIONS):
            files = {"who": who.encode(), "step": b"%d" % step, "same": b"same"}
            version = log(store, files)
            assert version.created
            assert read_files(version) == files
            print(version.number, who, step, flush=True)


def log_what_was_purged(path: str, who: str) -> None:
    """Each round claims content that was purged a moment ago, by this writer or its twin."""
    rng = random.Random(who)
    with Store.open(path) as store:
        for step in range(ROUNDS // 2):
            picked = [rng.randrange(5) for _ in range(3)]
            files = {f"{n}/{number}": block(number) for n, number in enumerate(picked)} | {"step": b"%d" % step}
            version = log(store, files, who)
            assert read_files(version) == files
            print(version.number, *picked, flush=True)
            if step % KEEP:
                version.delete(delete_aliases=True)
                store.trash.purge(version.ref)


def collect_until_told(path: str, stop: str) -> None:
    """Collect without any grace, again and again."""
    runs = freed = 0
    with Store.open(path) as store:
        while not os.path.exists(stop):
            report = store.gc(grace=0, max_waste=0.0 if runs % 2 else None)
            assert not report.errors
            runs += 1
            freed += report.freed_bytes
    print(runs, freed, flush=True)


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


class StoppingOps(OsOps):
    """Stops its own process before one of its effects."""

    def __init__(self) -> None:
        super().__init__(crash_at=0)
        self.wanted: Callable[[int, str], bool] = lambda number, target: False
        self.count = 0
        self.stopped = False
        self.lock = threading.Lock()

    def arm(self, wanted: Callable[[int, str], bool]) -> None:
        self.wanted, self.count, self.stopped = wanted, 0, False

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        with self.lock:
            self.count += 1
            if not self.stopped and self.wanted(self.count, os.fspath(target)):
                self.stopped = True
                stop_self()
        return super()._run(op, path, call, target=target)


def sleep_before_commit(path: str, where: str) -> None:
    """Fall asleep with everything uploaded; prints what came of it after waking up."""
    ops = StoppingOps()
    with Store.open(path, ops=ops) as store:
        if where == "link":
            ops.arm(lambda number, target: "/log/" in target)
        else:
            casstore.writer.PARCEL_BYTES = -1  # what is stored is uploaded before, not by whoever commits it
            engine = store._engine
            real = engine.commit

            def commit(build: Build, **options: Any) -> Committed | None:
                engine.commit = real  # type: ignore[method-assign]
                stop_self()
                return real(build, **options)

            engine.commit = commit  # type: ignore[method-assign]
        try:
            version = log(store, {"a": block(1), "b": block(2)})
        except CasstoreError as error:
            print("failed", error.exit_code, flush=True)
        else:
            assert read_files(version) == {"a": block(1), "b": block(2)}
            print("logged", version.number, flush=True)


def sleep_at_every_effect(path: str) -> None:
    """Fall asleep at the n-th effect of a log, and of a collection, for each n; prints how many there were."""
    ops = StoppingOps()
    with Store.open(path, ops=ops) as store:
        acts: tuple[Callable[[int], object], ...] = (
            lambda number: log(store, {"a": block(number), "b": b"b"}, "slow"),
            lambda _: store.gc(grace=0, max_waste=0.0),
        )
        for act in acts:
            number = 0
            while True:
                number += 1
                for ref in [version.ref for version in store.versions("slow")] if number > 1 else []:
                    store.delete(ref)
                    store.trash.purge(ref)
                ops.arm(lambda count, target, number=number: count == number)  # type: ignore[misc]
                act(number)
                slept = ops.stopped
                ops.arm(lambda number, target: False)
                if not slept:
                    break
                if act is acts[1]:
                    log(store, {"a": block(1000 + number)}, "slow")
            print(number - 1, flush=True)


def fork_and_log(path: str) -> None:
    """Fork with an open store whose threads run; both sides go on with it."""
    with Store.open(path) as store:
        first = log(store, {"x": block(1), "by": b"parent"})
        busy = threading.Event()
        done = threading.Event()

        def keep_busy() -> None:
            while not done.is_set():
                log(store, {"x": os.urandom(9000)}, "busy")
                busy.set()

        thread = threading.Thread(target=keep_busy)
        thread.start()
        assert busy.wait(WAIT)
        children = []
        for number in range(3):
            child = os.fork()
            if not child:
                status = 1
                try:
                    assert read_files(first)["x"] == block(1)
                    files = {"x": block(1), "y": block(10 + number), "by": b"child"}
                    assert read_files(log(store, files)) == files
                    assert store.gc(grace=0).errors == []
                    store.close()
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        log(store, {"x": block(3), "by": b"parent again"})
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        done.set()
        thread.join()
        assert statuses == [0, 0, 0]
        print(len(numbered(store)), flush=True)


WORKERS: dict[str, Callable[..., None]] = {
    worker.__name__: worker
    for worker in (
        log_many,
        log_what_was_purged,
        collect_until_told,
        sleep_before_commit,
        sleep_at_every_effect,
        fork_and_log,
    )
}

# ---------------------------------------------------------------- tests


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store", config=SMALL).close()
    return tmp_path / "store"


@pytest.fixture
def start() -> Iterator[Start]:
    with workers(__file__) as start:
        yield start


def await_stop(process: subprocess.Popen[str]) -> bool:
    """Wait until a worker sleeps; False if it ended instead."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return True
    process.returncode = os.waitstatus_to_exitcode(status)
    return False


def check_whole(store: Store) -> None:
    """Nothing is damaged, the counts are right, and the view is what the log says."""
    assert store.fsck(read_data=True).findings == []
    recount(store._engine)
    assert replayed(store._engine) == view_hash(store._engine)


def test_eight_writers_one_collection(path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """B1: exactly v0 … v399, each acknowledged to one writer and readable."""
    workers = [start(log_many, path, f"writer {n}") for n in range(PROCESSES)]
    said = [line for worker in workers for line in result(worker)]
    assert sorted(int(line[0]) for line in said) == list(range(PROCESSES * VERSIONS))
    with Store.open(path) as store:
        assert numbered(store) == list(range(PROCESSES * VERSIONS))
        for number, writer, who, step in said:
            files = {"who": f"{writer} {who}".encode(), "step": step.encode(), "same": b"same"}
            assert read_files(store.get(f"c:v{number}")) == files
        assert store.get("c").number == PROCESSES * VERSIONS - 1
        check_whole(store)


def test_root_cached_across_gc(path: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """kubo 6252: 200 rounds of writers that claim what was just purged, beside a collector that never waits."""
    collector = start(collect_until_told, path, tmp_path / "stop")
    writers = {who: start(log_what_was_purged, path, who) for who in ("ann", "bob")}
    said = {who: result(worker) for who, worker in writers.items()}
    (tmp_path / "stop").touch()
    ((runs, freed),) = result(collector)
    assert int(runs) > 5
    assert int(freed) > 0
    with Store.open(path) as store:
        for who, lines in said.items():
            assert [int(line[0]) for line in lines] == list(range(ROUNDS // 2))
            for step in range(0, ROUNDS // 2, KEEP):
                picked = [int(word) for word in lines[step][1:]]
                files = {f"{n}/{number}": block(number) for n, number in enumerate(picked)} | {"step": b"%d" % step}
                assert read_files(store.get(f"{who}:v{step}")) == files
            assert numbered(store, who) == list(range(0, ROUNDS // 2, KEEP))
        check_whole(store)
        store.gc(offline=True)
        check_no_garbage(store)
        for who in said:
            for version in store.versions(who):
                store.delete(version.ref)
        store.trash.empty()
        store.gc(offline=True)
        assert store.du().stored == 0


def test_sixteen_threads_one_store(path: Path) -> None:
    """Threads share segments, packs and the view; each gets its own version."""
    with Store.open(path) as store, ThreadPoolExecutor(16) as pool:

        def work(who: int) -> list[tuple[int, dict[str, bytes]]]:
            done = []
            for step in range(8):
                files = {"same": block(step), "mine": b"%d %d" % (who, step), "of few": block(100 + who % 3)}
                version = log(store, files)
                assert read_files(version) == files
                done.append((version.number, files))
                if who == 0:
                    store.gc(grace=0)
            return done

        said = [one for done in pool.map(work, range(16)) for one in done]
        assert sorted(number for number, _ in said) == numbered(store) == list(range(16 * 8))
        for number, files in said:
            assert read_files(store.get(f"c:v{number}")) == files
        assert Counter(info.transactions for info in store.log()).keys() - {1}, "commits were grouped"
        check_whole(store)


def test_a_fork_goes_on_with_the_store(path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """Children forked amid running threads log and read, and so does the parent."""
    assert result(start(fork_and_log, path)) == [["5"]]
    with Store.open(path) as store:
        assert numbered(store) == list(range(5))
        authors = Counter(read_files(version)["by"] for version in store.versions("c"))
        assert authors == {b"parent": 1, b"child": 3, b"parent again": 1}
        check_whole(store)


@pytest.mark.parametrize("where", ["commit", "link"])
def test_a_writer_stopped_between_upload_and_commit(
    path: Path, start: Callable[..., subprocess.Popen[str]], where: str
) -> None:
    """Five impatient collections while it sleeps: it commits something readable, or fails and has done nothing."""
    with Store.open(path) as store:
        log(store, {"a": block(1)}, "before")
        store.delete("before:v0")
        sleeper = start(sleep_before_commit, path, where)
        assert await_stop(sleeper)
        store.trash.purge("before:v0")
        for _ in range(5):
            store.gc(grace=0, orphan_age=0)
        assert store.du().stored == 0, "what it relied on and what it uploaded is gone"
        sleeper.send_signal(signal.SIGCONT)
        ((outcome, detail),) = result(sleeper)
        if where == "commit":
            assert outcome == "logged"
        if outcome == "logged":
            assert read_files(store.get(f"c:v{detail}")) == {"a": block(1), "b": block(2)}
        else:
            assert int(detail) in {13, 30}
            assert [info.name for info in store.collections()] == ["before"]
            assert log(store, {"a": block(1)}).number == 0
        check_whole(store)
        store.gc(offline=True)
        check_no_garbage(store)


def test_nobody_waits_for_a_sleeper(path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """A process stopped at any effect of a log or of a collection holds nothing that another one needs."""
    with Store.open(path) as store, ThreadPoolExecutor(1) as pool:
        sleeper = start(sleep_at_every_effect, path)
        stops = 0
        while await_stop(sleeper):
            try:
                files = {"n": b"%d" % stops, "x": block(stops)}
                version = pool.submit(log, store, files).result(WAIT)
                assert version.number == stops
                if stops % 5 == 0:
                    pool.submit(store.gc, grace=0).result(WAIT)
                    assert read_files(version) == files
            finally:
                sleeper.send_signal(signal.SIGCONT)
            stops += 1
        counted = [int(line[0]) for line in result(sleeper)]
        assert sum(counted) == stops
        assert min(counted) > 10
        assert numbered(store) == list(range(stops))
        check_whole(store)


if __name__ == "__main__":
    WORKERS[sys.argv[1]](*sys.argv[2:])
