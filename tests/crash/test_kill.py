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
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from casstore import (
    Artifact,
    CasstoreError,
    ChunkerParams,
    Runtime,
    Settings,
    Store,
    StoreConfig,
    StoreNotFoundError,
    Version,
    Where,
)
from casstore.backend.osops import OsOps
from casstore.checkpointing import KEEP
from casstore.testing.checks import recount, replayed, view_hash
from casstore.testing.record import FILE_OPS, RecordingOps
from casstore.testing.worlds import ERASED, MINE, NoSync, World, contains, files_with, look, read_files

KILLED = 137
SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=64, average=256, maximum=1024), frame_bytes=1024, pack_bytes=4096, node_bytes=512
)
_random = random.Random(4)
BLOCKS = [_random.randbytes(700) for _ in range(12)]
LARGE = b"".join(_random.randbytes(1200) for _ in range(9))
"""a file of about 40 chunks: more than an entry holds itself, so that it has chunk-list nodes"""
SECRET = _random.randbytes(3000)


# ---------------------------------------------------------------- scenarios


@dataclass
class Play:
    """A store being changed, and what the steps hand on to each other."""

    path: Path
    crash_at: int | None = None
    ops: OsOps | None = None
    workers: int = 1  # one, so that effects come in the same order each time
    seed: int = 1
    ago: timedelta = timedelta()  # how far the clock is behind
    store: Store = field(init=False)
    version: Version = field(init=False)

    def open(self, *, create: bool = False) -> None:
        names = random.Random(self.seed)
        runtime = Runtime(random_bytes=names.randbytes, clock=lambda: datetime.now(UTC) - self.ago)
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


def log_more(play: Play) -> None:
    """Collections with something to do for each of the rules below."""
    for number in range(2, 6):
        play.log("data", {"a": BLOCKS[number], "n": b"%d" % number}, tags=["t"] if number == 3 else [])
    for number in range(3):
        play.log("team", {"n": b"%d" % number, "b": BLOCKS[number]})
    play.log("other", OTHER)


def live_long(play: Play) -> None:
    play.store.set_ttl("data:v0", timedelta(days=30))


def default_of_collection(play: Play) -> None:
    play.store.set_default_ttl(timedelta(days=400), "team")


def default_of_store(play: Play) -> None:
    play.store.set_default_ttl(timedelta(days=500))


def protect(play: Play) -> None:
    play.store.get("data:v1").protect("used")


def protect_collection(play: Play) -> None:
    play.store.collection("team").protect("used")


def unprotect(play: Play) -> None:
    play.store.get("data:v1").unprotect()


def unprotect_collection(play: Play) -> None:
    play.store.collection("team").unprotect()


def pin(play: Play) -> None:
    if not [held for held in play.store.pins() if held.purpose == MINE]:  # otherwise each repetition makes another
        play.store.pin(["data:v1", "team:v0"], MINE)


def mine(store: Store) -> str:
    return next((held.id for held in store.pins() if held.purpose == MINE), "00" * 16)


def renew(play: Play) -> None:
    play.store.renew_pin(mine(play.store), None)


def unpin(play: Play) -> None:
    play.store.unpin(mine(play.store))


def limit(play: Play) -> None:
    play.store.quota(10**9, "free")


def rule(play: Play) -> None:
    play.store.set_policy(trash_days=10, protected_aliases=["prod"], gc_enabled=True)


def describe(play: Play) -> None:
    play.store.get("data:v1").update(description="said", tags=["x", "y"])


def live_an_hour(play: Play) -> None:
    """It was logged two hours ago, so that it expires at once."""
    play.store.set_ttl("data:v2", timedelta(hours=1), allow_immediate=True)


def expire(play: Play) -> None:
    play.store.expire()


def retain(play: Play) -> None:
    play.store.retain("team", keep_last=2)


def delete_where(play: Play) -> None:
    play.store.delete(where=Where(tag="t"), collection="data")


def apply_plan(play: Play) -> None:
    play.store.plan_delete(["data:v4", "other:v0"], delete_aliases=True).apply()


def delete_collection(play: Play) -> None:
    play.store.collection("team").delete()


def restore_collection(play: Play) -> None:
    play.store.trash.restore("team")


def purge_collection(play: Play) -> None:
    play.store.trash.purge("team")


def empty(play: Play) -> None:
    play.store.trash.empty()


def undo(play: Play) -> None:
    (run,) = [done.run_id for done in play.store.deletions() if done.action == "gc"]
    assert run
    play.store.gc_undo(run)


def restore_undone(play: Play) -> None:
    play.store.trash.restore("doomed:v0")


def reclaim(play: Play) -> None:
    assert play.store.gc_reclaim().errors == []


def checkpoint(play: Play) -> None:
    play.store.checkpoint()


def log_small(play: Play) -> None:
    play.log("data", {"small": b"small"})


def alias_small(play: Play) -> None:
    play.store.get("data:v1").add_alias("small")


def log_secret(play: Play) -> None:
    play.log("data", {"secret": SECRET, "own": BLOCKS[6]})


def log_secret_again(play: Play) -> None:
    play.log("data", {"copy": SECRET, "more": BLOCKS[7]})


def erase(play: Play) -> None:
    foreseen = play.store.erase("data:v2/copy", reason="request 17", dry_run=True)
    done = play.store.erase("data:v2/copy", True, "request 17", foreseen.digest)
    assert done.remaining == []


LABELS: Sequence[Step] = (
    reopen,
    live_long,
    default_of_collection,
    default_of_store,
    protect,
    protect_collection,
    unprotect,
    unprotect_collection,
    pin,
    renew,
    unpin,
    limit,
    rule,
    describe,
)
RULES: Sequence[Step] = (
    reopen,
    live_an_hour,
    expire,
    retain,
    delete_where,
    apply_plan,
    delete_collection,
    restore_collection,
    delete_collection,
    purge_collection,
    empty,
)
UNDO: Sequence[Step] = (reopen, undo, restore_undone, reclaim)
CHECKPOINT: Sequence[Step] = (reopen, checkpoint, log_small, checkpoint, alias_small, checkpoint)
ERASE: Sequence[Step] = (reopen, erase)


# ---------------------------------------------------------------- what is seen


NOTHING = World({}, frozenset(), {})


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
    assert read_files(store.log_artifact(artifact)) == {"large": LARGE}


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
    child = fork(path, (reopen, log_orphan), links[0] - 1, seed=31)
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


# ---------------------------------------------------------------- operations other than logging and collecting


def finish(path: Path, worlds: Sequence[World], steps: Sequence[Step], acked: int) -> None:
    """Open what a killed process left: it is one of two worlds; do the rest of the scenario, the last step again.

    A step that had happened after all is repeated, too, as its author would: that is refused or changes nothing.
    """
    play = Play(path, ops=NoSync(), seed=9)
    play.open()
    with play.store as store:
        seen = check_whole(store, worlds[acked : acked + 2])
        done = acked
        if 0 < acked < len(steps) and seen == worlds[acked + 1] != worlds[acked]:
            done += 1
            with suppress(CasstoreError):
                steps[acked](play)
            assert look(store) == seen
        for number, step in enumerate(steps[max(done, 1) :], max(done, 1)):
            step(play)
            assert look(store) == worlds[number + 1]
        check_no_garbage(store, path)
        check_whole(store, worlds[-1:])


def check_whole(store: Store, allowed: Sequence[World]) -> World:
    """It is one of some worlds; every byte is right, every count, and the view is what the log says."""
    seen = look(store)
    assert seen in allowed
    assert store.fsck(read_data=True).findings == []
    engine = store._engine
    assert replayed(engine) == view_hash(engine)
    recount(engine)
    return seen


def give_up(path: Path, allowed: Sequence[World]) -> None:
    """Collect what a killed process left, as if nobody ever tried again."""
    with Store.open(path, ops=NoSync()) as store:
        check_whole(store, allowed)
        store.expire()
        seen = look(store)
        check_no_garbage(store, path)
        check_whole(store, [seen])
        trashed = {item.ref: item.kind for item in store.trash.list()}
        assert trashed.keys() == seen.trash
        for ref, kind in sorted(trashed.items(), key=lambda item: item[1]):  # collections before their versions
            back = store.trash.restore(ref)
            assert all(version.verify() for version in ([back] if kind == "version" else back.versions()))


def run_operations(before: Path, scratch: Path, steps: Sequence[Step], *, both: bool) -> tuple[int, list[World]]:
    """Kill a scenario at every effect; go on with it, or give it up, in turn (``both``: each time)."""
    worlds, ops = undisturbed(before, scratch / "undisturbed", steps)
    kills = 0
    for child, acked in sweep(before, scratch, steps):
        kills += child.killed
        if both or child.at % 3 == 0:
            given_up = scratch / "given-up"
            shutil.copytree(child.path, given_up)
            give_up(given_up, worlds[acked : acked + 2])
            shutil.rmtree(given_up)
        if both or child.at % 3:
            finish(child.path, worlds, steps, acked)
    assert kills == len(ops.trace), "each effect was the last one once"
    print(f"{kills} kills, after {dict(Counter(effect.op for effect in ops.trace))}")
    return kills, worlds


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with some collections, all of it logged two hours ago."""
    path = tmp_path_factory.mktemp("grown") / "s"
    Store.create(path, config=SMALL, clock=lambda: datetime.now(UTC) - timedelta(hours=2)).close()
    play = Play(path, ops=NoSync(), seed=5, ago=timedelta(hours=2))
    for step in (reopen, log_first, alias_first, log_second, log_more):
        step(play)
    play.store.close()
    return path


def alias_first(play: Play) -> None:
    play.store.get("data:v0").add_alias("first")


def test_kill_what_is_said_about_versions_at_every_effect(grown: Path, tmp_path: Path) -> None:
    """Times to live, protection, pins, policy, quota, descriptions."""
    kills, worlds = run_operations(grown, tmp_path, LABELS, both=False)
    assert len({str(world) for world in worlds}) >= len(worlds) - 3, "each step changes something to be seen"
    assert kills > 7 * (len(LABELS) - 1)


def test_kill_what_rules_delete_at_every_effect(grown: Path, tmp_path: Path) -> None:
    """Expiry, retention, predicates, plans, whole collections, the emptying of the trash."""
    _, worlds = run_operations(grown, tmp_path, RULES, both=False)
    assert set(worlds[-1].versions) == {"data:v0", "data:v1", "data:v5"}
    assert worlds[-1].trash == frozenset()
    assert "team" in worlds[-3].trash


def test_kill_an_undo_at_every_effect(dirty: Path, tmp_path: Path) -> None:
    """What was purged stays purged or is back whole; then the packs it was taken from are deleted."""
    before = tmp_path / "before"
    shutil.copytree(dirty, before)
    with Store.open(before) as store:
        assert store.gc(max_waste=0).freed_chunks
    _, worlds = run_operations(before, tmp_path, UNDO, both=True)
    assert worlds[2].trash == {"data:v0", "doomed:v0", "other:v0"}
    assert worlds[3].versions["doomed:v0"] == {"p": BLOCKS[9], "q": LARGE[:3000] + BLOCKS[10]}


def test_kill_a_checkpoint_at_every_effect(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them, so that the oldest goes; a fresh view that begins at what is left is what the log says."""
    monkeypatch.setattr("casstore.checkpoint.PART_BYTES", 4000)
    worlds, ops = undisturbed(fresh, tmp_path / "undisturbed", CHECKPOINT)
    links = [effect.target for effect in ops.trace if effect.op == "link" and effect.target.startswith("checkpoints/")]
    assert sum("." in link for link in links) >= 6, "several parts each"
    kills = begun = 0
    for child, acked in sweep(fresh, tmp_path, CHECKPOINT):
        kills += child.killed
        shutil.rmtree(child.path / "index")
        with Store.open(child.path, ops=NoSync()) as store:
            begun += bool(store._engine.checkpoints.newest(store._engine.log))
            check_whole(store, worlds[acked : acked + 2])
        if child.at % 3 == 0:
            finish(child.path, worlds, CHECKPOINT, acked)
        with Store.open(child.path, ops=NoSync()) as store:
            for number in range(2):
                store.get("data:v0").add_alias(f"again-{number}")
                assert store.checkpoint().made
            listed = store._engine.checkpoints.listed()
        assert "" not in listed, "no parts of a checkpoint that was never finished"
        assert len(listed) == KEEP
    assert kills == len(ops.trace)
    assert begun > kills / 2
    print(f"{kills} kills, {begun} with a checkpoint to begin with")


@pytest.fixture(scope="module")
def secretive(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose packs have the secret three times: live, in its grace, and of a writer that was killed."""
    path = tmp_path_factory.mktemp("secretive") / "s"
    shutil.copytree(fresh, path)
    half = path.parent / "half"
    _, ops = undisturbed(path, path.parent / "whole", (reopen, log_secret))
    links = [n for n, effect in enumerate(ops.trace, 1) if effect.op == "link" and effect.target.startswith("log/")]
    shutil.copytree(path, half)
    assert fork(path, (reopen, log_secret), links[0] - 1, seed=41).finish() == (1, KILLED)
    play = Play(path, seed=42)
    for step in (reopen, log_secret, log_secret_again):
        step(play)
    play.store.delete("data:v1")
    play.store.trash.purge("data:v1")
    assert play.store.gc(max_waste=0).retired_packs
    play.store.close()
    assert fork(half, (reopen, log_secret), links[0] - 5, seed=43).finish() == (1, KILLED)
    left = [file for file in half.glob("tmp/*") if contains(file.read_bytes(), SECRET)]
    for file in left:
        shutil.copy2(file, path / "tmp" / file.name)
    return path


def test_kill_an_erasure_at_every_effect(secretive: Path, tmp_path: Path) -> None:
    """Repeated, it is finished: no byte is left, in packs, temporary files, or anywhere below the store."""
    worlds, ops = undisturbed(secretive, tmp_path / "undisturbed", ERASE)
    holding = files_with(secretive, SECRET)
    assert sum(name.startswith("packs/") for name in holding) >= 3
    assert worlds[-1].versions["data:v2"] == {"copy": ERASED, "more": BLOCKS[7]}
    kills = half_done = 0
    for child, acked in sweep(secretive, tmp_path, ERASE):
        kills += child.killed
        half_done += bool(files_with(child.path, SECRET)) and acked < len(ERASE)
        given_up = tmp_path / "given-up"
        shutil.copytree(child.path, given_up)
        give_up(given_up, worlds[acked : acked + 2])
        shutil.rmtree(given_up)
        play = Play(child.path, ops=NoSync(), seed=9)
        play.open()
        with play.store as store:
            check_whole(store, worlds[acked : acked + 2])
            if acked < len(ERASE):
                erase(play)
            assert files_with(child.path, SECRET) == []
            check_whole(store, worlds[-1:])
            assert store.fsck().erased == ["data:v2/copy"]
            check_no_garbage(store, child.path)
            check_life_goes_on(store)
    assert kills == len(ops.trace)
    assert half_done > kills / 3
    print(f"{kills} kills, {half_done} with something left; {len(holding)} files to begin with")


def ballast(size: int) -> Step:
    return lambda play: assert_equal(play.store.ballast(size), size)


def assert_equal(one: object, other: object) -> None:
    assert one == other


def test_kill_the_setting_of_the_ballast_at_every_effect(fresh: Path, tmp_path: Path) -> None:
    """It has its old size, its new one, or is gone; nothing of it is left elsewhere."""
    sizes = (0, 8192, 4096, 0)
    steps = (reopen, *map(ballast, sizes[1:]))
    worlds, ops = undisturbed(fresh, tmp_path / "undisturbed", steps)
    kills = 0
    for child, acked in sweep(fresh, tmp_path, steps):
        kills += child.killed
        with Store.open(child.path, ops=NoSync()) as store:
            place = max(acked - 1, 0)
            assert store.ballast() in {*sizes[place : place + 2], 0}
            check_whole(store, worlds[:1])
            kept = store.ballast()
            check_no_garbage(store, child.path)
            assert store.ballast() == kept
            assert store.ballast(100) == 100
        assert not [*child.path.glob("tmp/*")]
    assert kills == len(ops.trace)


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


def kill_for_real(path: Path, name: str, at: int) -> int:
    """Play a scenario in a process of its own, to the n-th effect; how many steps it acknowledged."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, __file__, str(path), name],
        env={**os.environ, "CASSTORE_CRASH_AT": str(at)},
        stdout=subprocess.PIPE,
        check=False,
    )
    acked = [int(line) for line in done.stdout.split()]
    assert done.returncode == (KILLED if at < 10_000 else 0)
    assert acked == [*range(len(acked))]
    return len(acked)


@pytest.mark.parametrize(("name", "at"), [("LOG", 20), ("LOG", 61), ("GC", 23), ("GC", 10_000)])
def test_kill_a_process_of_its_own(name: str, at: int, fresh: Path, dirty: Path, tmp_path: Path) -> None:
    before, steps = (fresh, LOG) if name == "LOG" else (dirty, GC)
    worlds, _ = undisturbed(before, tmp_path / "w", steps)
    path = tmp_path / "s"
    shutil.copytree(before, path)
    acked = kill_for_real(path, name, at)
    check_survivor(path, worlds[acked : acked + 2])


@pytest.mark.parametrize(("name", "at"), [("LABELS", 38), ("RULES", 45), ("CHECKPOINT", 17), ("ERASE", 26)])
def test_kill_a_process_of_its_own_amid_an_operation(
    name: str, at: int, grown: Path, fresh: Path, secretive: Path, tmp_path: Path
) -> None:
    before = {"CHECKPOINT": fresh, "ERASE": secretive}.get(name, grown)
    steps: Sequence[Step] = globals()[name]
    worlds, _ = undisturbed(before, tmp_path / "w", steps)
    path = tmp_path / "s"
    shutil.copytree(before, path)
    acked = kill_for_real(path, name, at)
    assert acked < len(steps)
    finish(path, worlds, steps, acked)
    if name == "ERASE":
        assert files_with(path, SECRET) == []


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
        assert read_files(store.get("data:v0")) == V0


def log_next(play: Play) -> None:
    play.log("data", {"n": os.urandom(1000), "large": LARGE})
