"""Distributed writers that are killed, or race each other, for real (FEATURES E1, E2, E6).

Guards: after a kill at any effect of upsert, finish or abort each of them has happened or has not, the counts are
right, nothing but garbage is left, and the writer that runs again comes to the same end; beside a collector without
grace, no byte that was acknowledged is missing from the version, and none is in it whose writer was told otherwise.

The workers are this file, run as a program.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from casstore import Artifact, ArtifactFinalizedError, ConflictError, Runtime, Settings, Store, StoreBusyError
from casstore.backend.osops import OsOps, StrPath
from casstore.format.rows import decode_row
from casstore.model import BatchRow
from casstore.state import BATCH
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, view_hash
from casstore.testing.recipes import SMALL
from casstore.testing.record import RecordingOps
from casstore.testing.workers import Start, result, workers
from casstore.testing.worlds import NoSync

T = TypeVar("T")

KILLED = 137
WRITERS = 6
ENOUGH = 300
"""parts after which a writer should have been told that it is over"""
ID = "run 7"
_random = random.Random(9)
BLOCKS = [_random.randbytes(1500) for _ in range(6)]
LARGE = _random.randbytes(40_000)


def art(files: Mapping[str, bytes], name: str = "c") -> Artifact:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return artifact


# ---------------------------------------------------------------- killed at every effect


@dataclass
class Play:
    """A store being changed."""

    path: Path
    ops: OsOps | None = None
    seed: int = 1
    store: Store = field(init=False)

    def open(self) -> None:
        runtime = Runtime(random_bytes=random.Random(self.seed).randbytes)
        self.store = Store.open(self.path, runtime=runtime, settings=Settings(workers=1), ops=self.ops)


Step = Callable[[Play], object]
FIRST = {"a": BLOCKS[0], "d/large": LARGE}
SECOND = {"b": BLOCKS[1], "same": BLOCKS[0], "d/x": b"x"}


def upsert_first(play: Play) -> object:
    return play.store.upsert(art(FIRST), ID, "first")


def upsert_second(play: Play) -> object:
    return play.store.upsert(art(SECOND), ID, "second")


def finish(play: Play) -> object:
    return play.store.finish(ID, art({"own": BLOCKS[2]}), expected_parts=["first", "second"], aliases=["best"])


def abort(play: Play) -> object:
    return play.store.abort("doomed", reason="wrong")


STEPS: Sequence[Step] = (Play.open, upsert_first, upsert_second, upsert_first, finish, abort)


def look(store: Store) -> tuple[object, ...]:
    """What users see of batches and versions."""
    batches = {
        batch.distributed_id: [(part.part, str(part.digest)) for part in batch.parts] for batch in store.pending()
    }
    engine = store._engine
    with engine.view.read() as tables:
        rows = [decode_row(row, BatchRow) for _, row in tables.scan(BATCH)]
    states = sorted((row.batch, row.state, row.reason) for row in rows)
    versions = {
        version.ref: (read_files(version), tuple(version.aliases))
        for info in store.collections()
        for version in store.versions(info.name)
    }
    return batches, states, versions, sorted(pin.purpose for pin in store.pins())


def check_whole(store: Store) -> None:
    assert store.fsck(read_data=True).findings == []
    recount(store._engine)
    assert replayed(store._engine) == view_hash(store._engine)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one version, whose content the parts share some of, and a batch that will be aborted."""
    path = tmp_path_factory.mktemp("fresh") / "s"
    with Store.create(path, config=SMALL) as store:
        store.log_artifact(art({"a": BLOCKS[0]}))
        store.upsert(art({"doomed": BLOCKS[3]}), "doomed", "p")
    return path


def test_kill_writers_and_finishers_at_every_effect(fresh: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(fresh, whole)
    ops = RecordingOps(whole)
    play = Play(whole, ops)
    with Store.open(fresh) as store:
        worlds = [look(store)]
    for step in STEPS:
        step(play)
        worlds.append(look(play.store))
    play.store.close()
    assert worlds[3] == worlds[4], "the same part again is seen by nobody"
    assert len({str(world) for world in worlds}) == len(STEPS) - 1
    kills: Counter[int] = Counter()
    for at in itertools.count(1):
        path = tmp_path / f"killed-{at}"
        shutil.copytree(fresh, path)
        acked, code = _play(path, at)
        if code == 0:
            break
        assert code == KILLED
        kills[acked] += 1
        _check_survivor(path, worlds, acked, collected=at % 2 == 0)
        shutil.rmtree(path)
    assert sum(kills.values()) == len(ops.trace)
    assert set(kills) >= {1, 2, 3, 4, 5}, "each step was killed"
    print(f"{sum(kills.values())} kills, by step {dict(kills)}")


def _play(path: Path, at: int) -> tuple[int, int]:
    """Play the scenario in a child until its effect number ``at``; the steps it acknowledged, and its exit status."""
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(out)
            os.environ["CASSTORE_CRASH_AT"] = str(at)
            play = Play(path)
            for number, step in enumerate(STEPS):
                step(play)
                os.write(into, b"%d\n" % number)
            play.store.close()
            status = 0
        finally:
            os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        told = pipe.read().split()
    _, status = os.waitpid(pid, 0)
    return len(told), os.waitstatus_to_exitcode(status)


def _check_survivor(path: Path, worlds: Sequence[object], acked: int, *, collected: bool) -> None:
    play = Play(path, NoSync(), seed=2)
    play.open()
    with play.store as store:
        seen = look(store)
        assert seen in worlds[acked : acked + 2]
        check_whole(store)
        if collected:
            store.gc(grace=0, offline=True)
            assert look(store) == seen, "a collection changed what users see"
            check_no_garbage(store)
        # The step that was killed is run again, as its author would, and then the others.
        for number, step in enumerate(STEPS[max(acked, 1) :], max(acked, 1)):
            step(play)
            assert look(store) == worlds[number + 1]
        store.gc(grace=0, offline=True)
        check_no_garbage(store)
        recount(store._engine)


# ---------------------------------------------------------------- workers: what the other processes do


def part_files(number: int) -> dict[str, bytes]:
    """Files of a part: some its own, some that others have, too."""
    rng = random.Random(number)
    files = {f"p{number}/{n:02}": rng.randbytes(2000) for n in range(12)}
    files |= {f"shared/{n}": BLOCKS[n] for n in range(number % 3 + 1)}
    return files | {f"large-{number}": LARGE[: 10_000 + number * 3000]}


class KillingOps(OsOps):
    """Kills its own process, with SIGKILL, before or after it publishes something."""

    def __init__(self, when: str, what: str) -> None:
        super().__init__(crash_at=0)
        self.when, self.what = when, what

    def _run(
        self, op: str, path: StrPath, call: Callable[[], T], *, target: StrPath = "", data: Sequence[memoryview] = ()
    ) -> T:
        meant = op == "link" and f"/{self.what}/" in str(target)
        if meant and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = super()._run(op, path, call, target=target, data=data)
        if meant and self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def upsert_one(path: str, number: str, when: str = "", what: str = "") -> None:
    """Upsert one part; prints its size."""
    ops = KillingOps(when, what) if when else None
    with Store.open(path, ops=ops) as store:
        print(store.upsert(art(part_files(int(number))), ID, f"part {number}").size, flush=True)


def finish_it(path: str, expected: str) -> None:
    """Finish; prints the version and whether this made it."""
    with Store.open(path) as store:
        version = store.finish(ID, expected_parts=int(expected))
        print(version.ref, version.created, flush=True)


def upsert_many(path: str, who: str) -> None:
    """Upsert part after part until told that it is over; prints those that were taken."""
    with Store.open(path) as store:
        for number in range(ENOUGH):
            files = {f"{who}/{number}": random.Random(f"{who} {number}").randbytes(1500), "same": BLOCKS[0]}
            try:
                store.upsert(art(files), "race", f"{who} {number}")
            except ArtifactFinalizedError:
                print("over", number, flush=True)
                return
            print("part", number, flush=True)


def finish_in_the_midst(path: str, least: str) -> None:
    """Finish as soon as there are so many parts, whatever comes in meanwhile."""
    with Store.open(path) as store:
        while sum(len(batch.parts) for batch in store.pending()) < int(least):
            store.gc(grace=0)
        while True:
            try:
                print(store.finish("race").ref, flush=True)
            except StoreBusyError:  # it lost fifty races in a row on a busy machine: running it again is right
                continue
            return


def collect_until_told(path: str, stop: str) -> None:
    """Collect without any grace, again and again."""
    runs = 0
    with Store.open(path) as store:
        while not os.path.exists(stop):
            assert not store.gc(grace=0, max_waste=0.0 if runs % 2 else None).errors
            runs += 1
    print(runs, flush=True)


WORKERS = {
    worker.__name__: worker for worker in (upsert_one, finish_it, upsert_many, finish_in_the_midst, collect_until_told)
}


# ---------------------------------------------------------------- real processes


@pytest.fixture
def start() -> Iterator[Start]:
    with workers(__file__) as start:
        yield start


def test_six_writers_two_of_them_killed(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    path = tmp_path / "s"
    Store.create(path, config=SMALL).close()
    collector = start(collect_until_told, path, tmp_path / "stop")
    fates = {1: ("before", "log"), 4: ("after", "log")}  # in the midst, its packs published; and when it is committed
    writers = {number: start(upsert_one, path, number, *fates.get(number, ())) for number in range(WRITERS)}
    for number, writer in writers.items():
        out, error = writer.communicate()
        assert writer.returncode == (-signal.SIGKILL if number in fates else 0), error
        assert bool(out) is (number not in fates)
    with Store.open(path) as store:
        (batch,) = store.pending()
        assert {part.part for part in batch.parts} == {f"part {n}" for n in range(WRITERS) if n != 1}
        with pytest.raises(ConflictError, match="1 of 6"):
            store.finish(ID, expected_parts=WRITERS)
    for again in [start(upsert_one, path, number) for number in fates]:
        result(again)
    finishers = [start(finish_it, path, WRITERS) for _ in range(2)]
    said = sorted(line for finisher in finishers for line in result(finisher))
    assert said == [["c:v0", "False"], ["c:v0", "True"]]
    (tmp_path / "stop").touch()
    assert int(result(collector)[0][0]) > 0
    with Store.open(path) as store:
        wanted: dict[str, bytes] = {}
        for number in range(WRITERS):
            wanted |= part_files(number)
        assert read_files(store.get("c:v0")) == wanted
        assert [version.ref for version in store.versions("c")] == ["c:v0"]
        check_whole(store)
        store.gc(offline=True)
        check_no_garbage(store)


def test_writers_race_the_finisher(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    path = tmp_path / "s"
    Store.create(path, config=SMALL).close()
    writers = {who: start(upsert_many, path, who) for who in ("ann", "bob")}
    finisher = start(finish_in_the_midst, path, 8)
    assert result(finisher) == [["c:v0"]]
    wanted = {"same": BLOCKS[0]}
    for who, writer in writers.items():
        said = result(writer)
        assert said[-1][0] == "over"
        for word, number in said[:-1]:
            assert word == "part"
            wanted[f"{who}/{number}"] = random.Random(f"{who} {number}").randbytes(1500)
    with Store.open(path) as store:
        assert read_files(store.get("c:v0")) == wanted
        assert store.pins() == []
        check_whole(store)
        store.gc(offline=True)
        check_no_garbage(store)


if __name__ == "__main__":
    WORKERS[sys.argv[1]](*sys.argv[2:])
