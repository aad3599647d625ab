"""kill -9 after every effect (I5 ack, I4 bytes, R4): what was acknowledged is whole, the rest all or nothing.

``CASSTORE_CRASH_AT=n`` ends a process right after its n-th effect. A child plays a scenario on a copy of a store and
tells over a pipe when a step has returned; the parent counts what it was told. n is swept until the child gets
through, so that every effect of the scenario is the last one once. After each kill the store must look as it did
after the steps that were acknowledged, or after one more; `fsck` must be clean; and one collection must leave no
garbage. What it looks like after each step is told by an undisturbed run.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest

from casstore import Artifact, ChunkerParams, Runtime, Settings, Store, StoreConfig, StoreNotFoundError, Version
from casstore.backend.osops import OsOps, StrPath
from casstore.testing.record import FILE_OPS, RecordingOps

Files = dict[str, bytes]

KILLED = 137
SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=64, average=256, maximum=1024), frame_bytes=1024, pack_bytes=4096, node_bytes=512
)
_random = random.Random(4)
BLOCKS = [_random.randbytes(700) for _ in range(12)]
LARGE = b"".join(_random.randbytes(1200) for _ in range(9))
"""a file of about 40 chunks: more than an entry holds itself, so that it has chunk-list nodes"""


# ---------------------------------------------------------------- scenarios


@dataclass
class Play:
    """A store being changed, and what the steps hand on to each other."""

    path: Path
    crash_at: int | None = None
    ops: RecordingOps | None = None
    workers: int = 1  # one, so that effects come in the same order each time
    seed: int = 1
    store: Store = field(init=False)
    version: Version = field(init=False)

    def open(self, *, create: bool = False) -> None:
        names = random.Random(self.seed)
        runtime = Runtime(random_bytes=names.randbytes)
        self.store = Store.open(
            self.path, create=create, runtime=runtime, settings=Settings(workers=self.workers), ops=self.ops
        )

    def log(self, name: str, files: Mapping[str, bytes], **how: object) -> Version:
        artifact = Artifact(name, type="dataset")
        for path, data in files.items():
            artifact.add_bytes(data, path)
        return self.store.log_artifact(artifact, **how)  # type: ignore[arg-type]


Step = Callable[[Play], None]

V0 = {"a": BLOCKS[0], "d/b": BLOCKS[1], "d/large": LARGE, "e": b""}
V1 = {"a": BLOCKS[2], "d/b": BLOCKS[1], "d/large": LARGE[:4000] + b"!" + LARGE[4000:], "f": BLOCKS[3] + BLOCKS[4]}
OTHER = {"x": BLOCKS[1], "y": BLOCKS[5]}


def first(play: Play) -> None:
    play.open(create=True)


def log_first(play: Play) -> None:
    play.version = play.log("data", V0, aliases=["best"])


def reopen(play: Play) -> None:
    play.open()


def log_second(play: Play) -> None:
    play.version = play.log("data", V1, aliases=["best"], tags=["t"])


def log_other(play: Play) -> None:
    play.log("other", OTHER)


def alias(play: Play) -> None:
    play.version.add_alias("stable")


def edit(play: Play) -> None:
    draft = play.version.new_draft()
    draft.remove("a")
    draft.add_bytes(BLOCKS[6] + LARGE[2000:5000], "g/h")
    play.store.log_artifact(draft)


def trash(play: Play) -> None:
    play.store.delete("data:v0", delete_aliases=True)


def restore(play: Play) -> None:
    play.store.trash.restore("data:v0")


def trash_again(play: Play) -> None:
    play.store.delete("data:v0", delete_aliases=True)


def purge(play: Play) -> None:
    play.store.trash.purge("data:v0")


def log_doomed(play: Play) -> None:
    play.log("doomed", {"p": BLOCKS[9], "q": LARGE[:3000] + BLOCKS[10]})


def purge_doomed(play: Play) -> None:
    play.store.delete("doomed:v0")
    play.store.trash.purge("doomed:v0")


def trash_other(play: Play) -> None:
    play.store.delete("other:v0")


def collect(play: Play) -> None:
    report = play.store.gc(grace=0, max_waste=0, orphan_age=0)
    check_report(report.to_dict())


def collect_offline(play: Play) -> None:
    report = play.store.gc(offline=True)
    check_report(report.to_dict())


def check_report(report: Mapping[str, object]) -> None:
    """The collection did everything a collection can do: otherwise its kills would prove little."""
    did = {name: report[name] for name in ("freed_chunks", "retired_packs", "condemned_packs", "reclaimed_packs")}
    assert all(did.values()), did
    fates = {fate["fate"] for fate in report["packs"]}  # type: ignore[attr-defined]
    assert {"retire", "repack"} <= fates
    assert report["repacked_bytes"]
    assert report["errors"] == []


CREATE: Sequence[Step] = (first, log_first)
LOG: Sequence[Step] = (reopen, log_second, log_other, alias, edit)
DELETE: Sequence[Step] = (reopen, trash, restore, trash_again, purge)
GC: Sequence[Step] = (reopen, collect)
GC_OFFLINE: Sequence[Step] = (reopen, collect_offline)


# ---------------------------------------------------------------- what is seen


@dataclass(frozen=True)
class World:
    """Everything a user can see: versions with their files, what is in the trash, where aliases are."""

    versions: dict[str, Files]
    trash: frozenset[str]
    aliases: dict[str, str]


NOTHING = World({}, frozenset(), {})


def read_back(version: Version) -> Files:
    return {entry.path: entry.read() for entry in version.files()}


def look(store: Store) -> World:
    found = [version for info in store.collections() for version in store.versions(info.name)]
    return World(
        {version.ref: read_back(version) for version in found},
        frozenset(item.ref for item in store.trash.list()),
        {f"{version.collection}:{name}": version.version for version in found for name in version.aliases},
    )


def undisturbed(before: Path | None, path: Path, steps: Sequence[Step]) -> tuple[list[World], RecordingOps]:
    """The world before a scenario and after each step; and its effects."""
    if before is not None:
        shutil.copytree(before, path)
        with Store.open(path) as store:
            worlds = [look(store)]
        shutil.rmtree(path)
        shutil.copytree(before, path)
    else:
        worlds = [NOTHING]
    ops = RecordingOps(path)
    play = Play(path, ops=ops)
    for step in steps:
        step(play)
        worlds.append(look(play.store))
    play.store.close()
    return worlds, ops


# ---------------------------------------------------------------- killing


@dataclass
class Child:
    """A process that plays a scenario and will be killed. Acknowledgements arrive in ``pipe``."""

    at: int
    path: Path
    pid: int
    pipe: BinaryIO
    killed: bool = False

    def finish(self) -> tuple[int, int]:
        """Number of acknowledged steps, and exit status."""
        told = self.pipe.read().split()
        self.pipe.close()
        _, status = os.waitpid(self.pid, 0)
        assert told == [str(number).encode() for number in range(len(told))]
        code = os.waitstatus_to_exitcode(status)
        self.killed = code == KILLED
        return len(told), code


def fork(path: Path, steps: Sequence[Step], at: int, seed: int = 1) -> Child:
    """Play a scenario in a child of this process, until its effect number ``at``."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        return Child(at, path, pid, os.fdopen(out, "rb"))
    status = 1
    try:
        os.close(out)
        os.environ["CASSTORE_CRASH_AT"] = str(at)
        play = Play(path, seed=seed)
        for number, step in enumerate(steps):
            step(play)
            os.write(into, b"%d\n" % number)
        play.store.close()
        status = 0
    finally:
        os._exit(status)


def sweep(before: Path | None, scratch: Path, steps: Sequence[Step], start: int = 1) -> Iterator[tuple[Child, int]]:
    """Kill a scenario after its effect 1, 2, 3, … until it gets through: each child and what it acknowledged."""
    running: deque[Child] = deque()
    at = start
    through = False
    try:
        while running or not through:
            while not through and len(running) < 2:
                path = scratch / f"killed-{at}"
                if before is not None:
                    shutil.copytree(before, path)
                running.append(fork(path, steps, at))
                at += 1
            child = running.popleft()
            acked, status = child.finish()
            if status == 0:
                assert acked == len(steps)
                through = True
            else:
                assert status == KILLED, f"the child to be killed at {child.at} failed by itself: {status}"
                assert not through, "an effect was not reached, but a later one was"
            yield child, acked
            shutil.rmtree(child.path, ignore_errors=True)
    finally:
        for child in running:
            child.finish()


class NoSync(OsOps):
    """For looking at what is left: that is quicker."""

    def fsync(self, fd: int, path: StrPath) -> None:
        pass

    def fsync_dir(self, path: StrPath) -> None:
        pass


def check_survivor(path: Path, allowed: Sequence[World]) -> None:
    """Open what a killed process left: it is one of some worlds, sound, and can be cleaned and used."""
    with Store.open(path, ops=NoSync()) as store:
        seen = look(store)
        assert seen in allowed
        assert store.fsck(read_data=True).findings == []
        check_no_garbage(store, path)
        assert look(store) == seen, "the collection changed what users see"
        for ref in seen.trash:
            assert store.trash.restore(ref).verify() >= 0
        check_life_goes_on(store)
        assert store.fsck(read_data=True).findings == []


def check_no_garbage(store: Store, path: Path) -> None:
    store.gc(grace=0, offline=True)
    report = store.fsck()
    assert (report.orphan_packs, report.ended_packs, report.findings) == (0, 0, [])
    usage = store.du()
    assert (usage.garbage, usage.pending) == (0, 0)
    assert usage.stored == sum(file.stat().st_size for file in path.glob("packs/*/*"))
    assert not [*path.glob("tmp/*")]


def check_life_goes_on(store: Store) -> None:
    artifact = Artifact("after", type="dataset")
    artifact.add_bytes(LARGE, "large")
    assert read_back(store.log_artifact(artifact)) == {"large": LARGE}


# ---------------------------------------------------------------- stores to begin with


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one version."""
    path = tmp_path_factory.mktemp("fresh") / "s"
    Store.create(path, config=SMALL).close()
    with Store.open(path):
        play = Play(path, seed=2)
        play.open()
        log_first(play)
        play.store.close()
    return path


@pytest.fixture(scope="module")
def dirty(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all kinds of garbage: purged versions, one in the trash, and packs of a killed writer."""
    path = tmp_path_factory.mktemp("dirty") / "s"
    shutil.copytree(fresh, path)
    play = Play(path, seed=3)
    for step in (*LOG, log_doomed, trash, purge, purge_doomed, trash_other):
        step(play)
    play.store.close()
    killed = path.parent / "killed"
    shutil.copytree(path, killed)
    _, ops = undisturbed(path, path.parent / "whole", (reopen, log_orphan))
    links = [n for n, effect in enumerate(ops.trace, 1) if effect.op == "link" and effect.target.startswith("log/")]
    child = fork(path, (reopen, log_orphan), links[0] - 1)
    assert child.finish() == (1, KILLED)
    with Store.open(path, read_only=True) as store:
        assert store.fsck().orphan_packs == 2
    assert [*path.glob("tmp/*")]
    return path


def log_orphan(play: Play) -> None:
    play.log("lost", {"z": BLOCKS[8]})


# ---------------------------------------------------------------- the sweeps


def run(steps: Sequence[Step], before: Path, scratch: Path) -> None:
    worlds, ops = undisturbed(before, scratch / "undisturbed", steps)
    kinds = Counter(effect.op for effect in ops.trace)
    kills = 0
    for child, acked in sweep(before, scratch, steps):
        kills += child.killed
        check_survivor(child.path, worlds[acked : acked + 2])
    assert kills == len(ops.trace), "each effect was the last one once"
    print(f"{kills} kills, after {dict(kinds)}")


def test_kill_a_log_at_every_effect(fresh: Path, tmp_path: Path) -> None:
    worlds, ops = undisturbed(fresh, tmp_path / "w", LOG)
    edited = {"d/b": V1["d/b"], "d/large": V1["d/large"], "f": V1["f"], "g/h": BLOCKS[6] + LARGE[2000:5000]}
    assert worlds[-1].versions == {"data:v0": V0, "data:v1": V1, "data:v2": edited, "other:v0": OTHER}
    assert worlds[-1].aliases == {"data:latest": "v2", "data:best": "v1", "data:stable": "v1", "other:latest": "v0"}
    assert {effect.op for effect in ops.trace} == FILE_OPS - {"rename"} | {"index-commit"}
    run(LOG, fresh, tmp_path)


def test_kill_the_way_to_the_trash_at_every_effect(fresh: Path, tmp_path: Path) -> None:
    run(DELETE, fresh, tmp_path)


@pytest.mark.parametrize("steps", [GC, GC_OFFLINE], ids=["online", "offline"])
def test_kill_a_collection_at_every_effect(steps: Sequence[Step], dirty: Path, tmp_path: Path) -> None:
    worlds, ops = undisturbed(dirty, tmp_path / "w", steps)
    assert worlds[0] == worlds[-1]
    assert set(worlds[0].versions) == {"data:v1", "data:v2"}
    assert worlds[0].trash == {"other:v0"}
    assert sum(effect.op == "unlink" and effect.path.startswith("packs/") for effect in ops.trace) >= 3
    run(steps, dirty, tmp_path)


def test_kill_the_making_of_a_store_at_every_effect(tmp_path: Path) -> None:
    worlds, ops = undisturbed(None, tmp_path / "w", CREATE)
    assert worlds[-1].versions == {"data:v0": V0}
    kills = 0
    for child, acked in sweep(None, tmp_path, CREATE):
        kills += child.killed
        if not acked:
            try:
                Store.open(child.path).close()
            except StoreNotFoundError:
                # Not one yet: it can be made, as if nothing had happened.
                Store.open(child.path, create=True).close()
        check_survivor(child.path, worlds[max(acked, 1) : acked + 2])
    assert kills == len(ops.trace)


def test_killed_twice(fresh: Path, tmp_path: Path) -> None:
    """What a killed process leaves, killed again: the collection that cleans up after it."""
    worlds, ops = undisturbed(fresh, tmp_path / "w", LOG)
    links = [n for n, effect in enumerate(ops.trace, 1) if effect.op == "link" and effect.target.startswith("log/")]
    half = tmp_path / "half"
    shutil.copytree(fresh, half)
    acked, status = fork(half, LOG, links[-1] - 1).finish()
    assert (acked, status) == (4, KILLED)
    for child, _ in sweep(half, tmp_path, (reopen, sweep_up)):
        check_survivor(child.path, [worlds[4]])


def sweep_up(play: Play) -> None:
    assert play.store.gc(offline=True).condemned_packs


# ---------------------------------------------------------------- real processes

SCRIPT = """
import runpy, sys
from pathlib import Path
test = runpy.run_path(sys.argv[1])
play = test["Play"](Path(sys.argv[2]), workers=2)
for number, step in enumerate(test[sys.argv[3]]):
    step(play)
    print(number, flush=True)
play.store.close()
"""


@pytest.mark.parametrize(("name", "at"), [("LOG", 20), ("LOG", 61), ("GC", 23), ("GC", 10_000)])
def test_kill_a_process_of_its_own(name: str, at: int, fresh: Path, dirty: Path, tmp_path: Path) -> None:
    before, steps = (fresh, LOG) if name == "LOG" else (dirty, GC)
    worlds, _ = undisturbed(before, tmp_path / "w", steps)
    path = tmp_path / "s"
    shutil.copytree(before, path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, __file__, str(path), name],
        env={**os.environ, "CASSTORE_CRASH_AT": str(at)},
        stdout=subprocess.PIPE,
        check=False,
    )
    acked = [int(line) for line in done.stdout.split()]
    assert done.returncode == (KILLED if at < 10_000 else 0)
    assert acked == [*range(len(acked))]
    check_survivor(path, worlds[len(acked) : len(acked) + 2])


def test_a_store_whose_writers_were_killed_many_times(fresh: Path, tmp_path: Path) -> None:
    """One store, not a copy each time: what piles up is cleaned by one collection."""
    path = tmp_path / "s"
    shutil.copytree(fresh, path)
    versions = 1
    for at in range(3, 60, 4):
        acked, status = fork(path, (reopen, log_next), at, seed=at + 100).finish()
        assert status in {0, KILLED}
        with Store.open(path) as store:
            found = store.versions("data")
            assert len(found) - versions in ({1} if acked == 2 else {0, 1})
            versions = len(found)
            assert all(version.verify() > 0 for version in found)
    with Store.open(path) as store:
        assert store.fsck().orphan_packs > 0
        check_no_garbage(store, path)
        assert [version.number for version in store.versions("data", newest_first=False)] == [*range(versions)]
        assert read_back(store.get("data:v0")) == V0


def log_next(play: Play) -> None:
    play.log("data", {"n": os.urandom(1000), "large": LARGE})
