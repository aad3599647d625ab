"""Storms (I4 bytes, I5 ack, R4): real processes at work on one store, killed with -9 and stopped at random moments.

Writers log, delete, restore, purge, pin and protect, each in a collection of its own but with content that all share;
two collectors without any grace, one that wants the store alone, one that makes checkpoints, and readers are beside
them. What was acknowledged is recorded here, through pipes. After each round of kills all of it must be there, before
and after a collection. ``CASSTORE_STORM_KILLS`` says how many kills; ``CASSTORE_STORM_SEED`` repeats the dice (not
the interleaving).

Then the cases with one process stopped on purpose: for weeks before its commit, in the middle of its deletions.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from casstore import (
    Artifact,
    CasstoreError,
    NotFoundError,
    Runtime,
    Settings,
    Store,
    StoreBusyError,
    StoreConfig,
    Version,
)
from casstore.backend.local import LocalBackend
from casstore.backend.osops import OsOps, StrPath, claimed
from casstore.config import ChunkerParams
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, view_hash
from casstore.testing.worlds import NoSync

KILLS = int(os.environ.get("CASSTORE_STORM_KILLS", "64"))
SEED = os.environ.get("CASSTORE_STORM_SEED")
ROUND_SECONDS = 2.0
BLOCKS = 12
KEEP = 6
SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=64, average=256, maximum=1024), frame_bytes=2048, pack_bytes=8192, node_bytes=512
)
LIVE, TRASH, GONE = "live", "trash", "gone"

T = TypeVar("T")
Record = dict[str, object]
Tell = Callable[..., None]


def block(number: int) -> bytes:
    """Content that everybody has a use for."""
    return random.Random(f"block {number}").randbytes(1500)


def content(spec: str) -> dict[str, bytes]:
    """The files of a version: what its name says, so that any reader can tell whether they are right."""
    numbers = [int(word) for word in spec.split("/", maxsplit=1)[0].split("-")]
    return {"spec": spec.encode(), **{f"b/{number}": block(number) for number in numbers}}


def check_content(version: Version) -> str:
    """The spec of a version, which must be whole and right."""
    files = read_files(version)
    spec = files["spec"].decode()
    assert files == content(spec), version.ref
    return spec


def log(store: Store, name: str, files: dict[str, bytes]) -> Version:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact)


# ---------------------------------------------------------------- what the processes do


def write(store: Store, me: str, rng: random.Random, tell: Tell) -> None:
    """One step of a writer in its own collection: says what it will do, does it, says what came of it."""
    versions = store.versions(me) if me in {info.name for info in store.collections()} else []
    trashed = [item.ref for item in store.trash.list() if item.ref.startswith(f"{me}:")]
    choice = rng.random()
    if choice < 0.5 or not (versions or trashed):
        spec = "-".join(map(str, sorted(rng.sample(range(BLOCKS), 3)))) + f"/{rng.randbytes(6).hex()}"
        tell("log", spec=spec)
        tell("ack", number=log(store, me, content(spec)).number)
    elif trashed and choice < 0.75:
        ref = rng.choice(trashed)
        to = GONE if choice < 0.68 else LIVE
        tell("state", ref=ref, to=to)
        if to == GONE:
            store.trash.purge(ref)
        else:
            store.trash.restore(ref)
        tell("ack")
    elif versions and (choice < 0.9 or len(versions) > KEEP):
        free = [version for version in versions if not version.protected]
        if free:
            ref = rng.choice(free).ref
            tell("state", ref=ref, to=TRASH)
            store.delete(ref, delete_aliases=True)
            tell("ack")
    elif versions and choice < 0.95:
        version = rng.choice(versions)
        if version.protected:
            tell("protect", ref=version.ref, on=False)
            version.unprotect()
        else:
            tell("protect", ref=version.ref, on=True)
            version.protect("storm")
        tell("ack")
    else:
        mine = [pin for pin in store.pins() if pin.purpose == f"storm {me}"]
        if len(mine) > 2:
            tell("unpin", id=mine[0].id)
            store.unpin(mine[0].id)
            tell("ack")
        elif versions:
            tell("pin", digest=str((version := rng.choice(versions)).digest))
            tell("ack", id=store.pin(version.ref, f"storm {me}").id)


def collect(store: Store, _: str, rng: random.Random, tell: Tell) -> None:
    report = store.gc(grace=0, orphan_age=0, max_waste=rng.choice((None, 0.0, 0.1)), incremental=rng.random() < 0.3)
    assert report.errors == []
    tell("did", what="gc", packs=report.reclaimed_packs)


def collect_alone(store: Store, _: str, rng: random.Random, tell: Tell) -> None:
    if rng.random() < 0.3:
        with suppress(StoreBusyError):
            assert store.gc(offline=True).errors == []
            tell("did", what="gc --offline", packs=0)
    elif rng.random() < 0.5:
        store.gc_reclaim()
        tell("did", what="reclaim", packs=0)
    else:
        assert store.fsck(read_data=0.5).findings == []
        tell("did", what="fsck", packs=0)


def checkpoint(store: Store, _: str, rng: random.Random, tell: Tell) -> None:
    store.checkpoint()
    if rng.random() < 0.3:
        store.rebuild_index()
    tell("did", what="checkpoint", packs=0)


def read(store: Store, _: str, rng: random.Random, tell: Tell) -> None:
    names = [info.name for info in store.collections()]
    if not names:
        return
    versions = store.versions(rng.choice(names))
    if not versions:
        return
    ref = rng.choice(versions).ref
    try:
        check_content(store.get(ref))
    except CasstoreError:
        # Only what was deleted meanwhile may be unreadable. Looked for again: it may have been restored by now.
        with suppress(NotFoundError):
            check_content(store.get(ref))
    tell("did", what="read", packs=0)


ROLES: dict[str, Callable[[Store, str, random.Random, Tell], None]] = {
    "w0": write,
    "w1": write,
    "w2": write,
    "gc0": collect,
    "gc1": collect,
    "alone": collect_alone,
    "checkpoint": checkpoint,
    "reader": read,
}


# ---------------------------------------------------------------- processes


@dataclass
class Process:
    """A child at work; what it says arrives in ``pipe``."""

    name: str
    pid: int
    pipe: int
    stopped: bool = False
    rest: bytes = b""

    def hear(self) -> Iterator[Record]:
        """What it has said since; all it ever said once it is dead."""
        while True:
            try:
                data = os.read(self.pipe, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self.rest = (self.rest + data).split(b"\n")
            yield from map(json.loads, lines)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        self.stopped = number is signal.SIGSTOP

    def end(self) -> int:
        """Wait for its end; its exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def spawn(name: str, work: Callable[[Tell], None]) -> Process:
    """Fork a process that does some work and tells of it, one line at a time; 1 if it fails."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        os.set_blocking(out, False)
        return Process(name, pid, out)
    status = 1
    try:
        os.close(out)

        def tell(kind: str, **values: object) -> None:
            line = json.dumps({"kind": kind, **values}).encode() + b"\n"
            assert len(line) <= select.PIPE_BUF, "so that it is written whole or not at all"
            os.write(into, line)

        try:
            work(tell)
            status = 0
        except BaseException:  # noqa: BLE001 - told to the parent, which fails
            tell("error", trace=traceback.format_exc()[-3000:])
    finally:
        os._exit(status)


def worker(path: Path, name: str, seed: str) -> Process:
    def work(tell: Tell) -> None:
        rng = random.Random(seed)
        with Store.open(path, settings=Settings(workers=2)) as store:
            while True:
                try:
                    ROLES[name](store, name, rng, tell)
                except StoreBusyError:
                    tell("refused")  # somebody had the store alone

    return spawn(name, work)


# ---------------------------------------------------------------- what must be there


@dataclass
class Collection:
    """What is known of one writer's collection. States: what a version may be, given what was acknowledged."""

    states: dict[int, set[str]] = field(default_factory=dict)
    specs: dict[int, str] = field(default_factory=dict)
    protected: dict[int, set[bool]] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)
    unsure_pins: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    """specs of logs that were never acknowledged"""
    doing: Record | None = None


@dataclass
class Oracle:
    """Takes in what processes say, and compares a store with it."""

    collections: dict[str, Collection] = field(default_factory=dict)
    acks: int = 0
    did: Counter[str] = field(default_factory=Counter)

    def hear(self, name: str, said: Record) -> None:
        kind = said["kind"]
        assert kind != "error", f"{name}: {said.get('trace')}"
        mine = self.collections.setdefault(name, Collection())
        if kind == "did":
            self.did[str(said["what"])] += 1
            self.did["packs deleted"] += int(str(said["packs"]))
        elif kind == "refused":
            # It has done nothing; that it began is forgotten when it is over, so keep both possible.
            self.lose(name)
            self.did["refused"] += 1
        elif kind == "ack":
            assert mine.doing is not None
            self.acks += 1
            self._settle(mine, mine.doing, said)
            mine.doing = None
        else:
            mine.doing = said
            self._unsettle(mine, said)

    def lose(self, name: str) -> None:
        """A process is gone: what it was doing happened or not."""
        mine = self.collections.setdefault(name, Collection())
        mine.doing = None

    def _unsettle(self, mine: Collection, said: Record) -> None:
        match said["kind"]:
            case "log":
                mine.unsure.add(str(said["spec"]))
            case "state":
                mine.states.setdefault(number_of(said), {LIVE, TRASH}).add(str(said["to"]))
            case "protect":
                mine.protected.setdefault(number_of(said), {False}).add(bool(said["on"]))
            case "unpin":
                mine.pins.pop(str(said["id"]), None)

    def _settle(self, mine: Collection, doing: Record, said: Record) -> None:
        match doing["kind"]:
            case "log":
                number = int(str(said["number"]))
                assert mine.specs.get(number) is None, f"v{number} was given twice"
                mine.specs[number] = str(doing["spec"])
                mine.states[number] = {LIVE}
                mine.unsure.discard(str(doing["spec"]))
            case "state":
                mine.states[number_of(doing)] = {str(doing["to"])}
            case "protect":
                mine.protected[number_of(doing)] = {bool(doing["on"])}
            case "pin":
                mine.pins[str(said["id"])] = str(doing["digest"])

    def check(self, store: Store) -> int:
        """Everything that was acknowledged is there, and nothing else but what was begun; how many versions."""
        found = 0
        names = {info.name for info in store.collections()}
        pins = {pin.id: [str(root) for root in pin.roots] for pin in store.pins()}
        for name, mine in self.collections.items():
            there = store.versions(name) if name in names else []
            actual = {version.number: LIVE for version in there}
            prefix = f"{name}:v"
            trashed = [item.ref for item in store.trash.list() if item.ref.startswith(prefix)]
            actual.update({int(ref.removeprefix(prefix)): TRASH for ref in trashed})
            for number, states in mine.states.items():
                is_in = actual.get(number, GONE)
                assert is_in in states, f"{name}:v{number} is {is_in}, which is none of {states}"
            for version in there:
                spec = check_content(version)
                number = version.number
                if number not in mine.specs:
                    assert spec in mine.unsure, f"{version.ref} was never logged"
                    mine.unsure.discard(spec)
                    mine.specs[number] = spec
                assert mine.specs[number] == spec
                mine.states.setdefault(number, {LIVE})
                assert (version.protected is not None) in mine.protected.get(number, {False}), version.ref
            for pin, digest in mine.pins.items():
                assert pins.get(pin) == [digest], f"pin {pin} of {name} is lost"
            found += len(actual)
        return found


def number_of(said: Record) -> int:
    return int(str(said["ref"]).rpartition(":v")[2])


# ---------------------------------------------------------------- the storm


@dataclass
class Storm:
    """Processes on a store, and the dice."""

    path: Path
    seed: str
    rng: random.Random
    oracle: Oracle = field(default_factory=Oracle)
    running: dict[str, Process] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    started: int = 0

    def start(self, name: str) -> None:
        self.started += 1
        self.running[name] = worker(self.path, name, f"{self.seed} {name} {self.started}")

    def hear(self) -> None:
        for name, process in self.running.items():
            for said in process.hear():
                self.oracle.hear(name, said)

    def kill(self, name: str) -> None:
        """Kill -9, take in what it said to the last line."""
        process = self.running.pop(name)
        process.signal(signal.SIGKILL)
        status = process.end()
        for said in process.hear():
            self.oracle.hear(name, said)
        os.close(process.pipe)
        assert status == -signal.SIGKILL, f"{name} ended by itself: {status}"
        self.oracle.lose(name)
        self.kills[name.rstrip("0123456789")] += 1

    def round(self, until: int) -> None:
        """About two seconds of it; one process may stay asleep, the others are killed at the end."""
        end = time.monotonic() + ROUND_SECONDS
        while time.monotonic() < end and sum(self.kills.values()) < until:
            for name in ROLES.keys() - self.running.keys():
                self.start(name)
            pipes = [process.pipe for process in self.running.values()]
            select.select(pipes, [], [], self.rng.expovariate(1 / 0.03))
            self.hear()
            name = self.rng.choice(sorted(self.running))
            dice = self.rng.random()
            if dice < 0.35:
                self.kill(name)
            elif dice < 0.5 and not self.running[name].stopped:
                self.running[name].signal(signal.SIGSTOP)
                self.stops += 1
            elif dice < 0.75:
                for process in self.running.values():
                    if process.stopped:
                        process.signal(signal.SIGCONT)
        asleep = [name for name, process in self.running.items() if process.stopped and name != "alone"]
        spared = {self.rng.choice(asleep)} if asleep and self.rng.random() < 0.5 else set()
        for name in self.running.keys() - spared:
            self.kill(name)

    def check(self) -> None:
        """All acks; a collection; all acks again."""
        with Store.open(self.path) as store:
            self.oracle.check(store)
            assert store.fsck(read_data=True).findings == []
            engine = store._engine
            assert replayed(engine) == view_hash(engine)
            recount(engine)
            if self.running:
                assert store.gc(grace=0, orphan_age=0).errors == []
            else:
                store.gc(offline=True)
                check_no_garbage(store)
                assert not [*self.path.glob("tmp/*")]
            assert store.fsck(read_data=True).findings == []
            self.oracle.check(store)


@contextmanager
def all_ended(running: dict[str, Process]) -> Iterator[dict[str, Process]]:
    """Whatever happens, no child is left."""
    try:
        yield running
    finally:
        for process in running.values():
            os.kill(process.pid, signal.SIGKILL)
            process.end()


@pytest.mark.timeout(300 + 3 * KILLS)
def test_a_storm_of_kills_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    seed = SEED or str(random.SystemRandom().randrange(10**9))
    print(f"CASSTORE_STORM_SEED={seed}")
    path = tmp_path / "s"
    Store.create(path, config=SMALL).close()
    storm = Storm(path, seed, random.Random(seed))
    begun = time.monotonic()
    rounds = 0
    with all_ended(storm.running):
        while sum(storm.kills.values()) < KILLS:
            storm.round(KILLS)
            storm.check()
            rounds += 1
        for name in [*storm.running]:
            storm.kill(name)
        storm.check()
    with Store.open(path) as store:
        for info in [*store.collections()]:
            for version in store.versions(info.name):
                version.unprotect()
                store.delete(version.ref, delete_aliases=True)
        for pin in store.pins():
            store.unpin(pin.id)
        store.trash.empty()
        store.gc(offline=True)
        assert store.du().stored == 0
    print(
        f"{sum(storm.kills.values())} kills {dict(storm.kills)}, {storm.stops} stops, {rounds} rounds, "
        f"{storm.oracle.acks} acks, {dict(storm.oracle.did)}, {time.monotonic() - begun:.0f} s"
    )
    assert storm.oracle.acks > 0


# ---------------------------------------------------------------- one that is stopped on purpose


class Stopping(OsOps):
    """Stops its own process once, right before the n-th effect of a kind."""

    def __init__(self, nth: int, wanted: Callable[[str, str], bool] = lambda op, path: True) -> None:
        super().__init__(crash_at=0)
        self.left = nth
        self.wanted = wanted

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        if self.wanted(op, os.fspath(path)):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
        return super()._run(op, path, call, target=target, data=data)


def is_stopped(process: Process) -> bool:
    """Wait until a process sleeps or ends: whether it sleeps. It must not have failed."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return True
    said = [*process.hear()]
    assert os.waitstatus_to_exitcode(status) == 0, said
    return False


def result(process: Process) -> Record:
    """What the last line of a process says, that goes on and must end well."""
    process.signal(signal.SIGCONT)
    status = process.end()
    said = [*process.hear()]
    os.close(process.pipe)
    assert status == 0, said
    return said[-1]


@dataclass(frozen=True)
class Calendar:
    """A clock that all processes look at: a file."""

    path: Path

    def __call__(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=int(self.path.read_text()))

    def turn(self, days: int) -> None:
        self.path.write_text(str(days))


FILES = content("1-2-3/x")


def whole(store: Store) -> None:
    """Nothing is damaged, nothing is left over, without any repair."""
    assert store.fsck(read_data=True).findings == []
    recount(store._engine)
    assert replayed(store._engine) == view_hash(store._engine)
    store.gc(offline=True)
    check_no_garbage(store)
    assert store.fsck(read_data=True).findings == []


def test_a_writer_asleep_for_weeks_commits_what_can_be_read_or_fails_cleanly(tmp_path: Path) -> None:
    """Before any of its effects. What it relied on is purged meanwhile, five collections run without grace."""
    calendar = Calendar(tmp_path / "days")
    logged = failed = 0
    for nth in itertools.count(2, 2):
        calendar.turn(0)
        path = tmp_path / f"{nth}"
        Store.create(path, config=SMALL, clock=calendar).close()
        with Store.open(path, clock=calendar, ops=NoSync()) as store:
            log(store, "before", content("1-2-4/y"))
            store.delete("before:v0", delete_aliases=True)

        def work(tell: Tell, path: Path = path, nth: int = nth) -> None:
            runtime = Runtime(clock=calendar)
            with Store.open(path, runtime=runtime, settings=Settings(workers=2), ops=Stopping(nth)) as store:
                try:
                    version = log(store, "c", FILES)
                except CasstoreError as error:
                    tell("failed", code=error.exit_code)
                else:
                    assert check_content(version) == "1-2-3/x"
                    tell("logged", number=version.number)

        sleeper = spawn("sleeper", work)
        if not is_stopped(sleeper):
            os.close(sleeper.pipe)
            break
        with all_ended({"sleeper": sleeper}) as running:
            with Store.open(path, clock=calendar, ops=NoSync()) as store:
                if store.trash.list():
                    store.trash.purge("before:v0")
                for days in (7, 14, 21, 28, 35):
                    calendar.turn(days)
                    store.gc(grace=0)
            said = result(sleeper)
            running.clear()
        with Store.open(path, clock=calendar, ops=NoSync()) as store:
            names = {info.name for info in store.collections()}
            if said["kind"] == "logged":
                logged += 1
                assert check_content(store.get("c:v0")) == "1-2-3/x"
            else:
                failed += 1
                assert said["code"] in {13, 30}
                assert names == {"before"}
                assert log(store, "c", FILES).number == 0
            whole(store)
            assert check_content(store.get("c:v0")) == "1-2-3/x"
        shutil.rmtree(path)
    print(f"{logged} logged, {failed} failed cleanly")
    assert logged > 5


@pytest.fixture(scope="module")
def littered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which most packs are garbage."""
    path = tmp_path_factory.mktemp("littered") / "s"
    Store.create(path, config=SMALL).close()
    with Store.open(path, ops=NoSync()) as store:
        for number in range(6):
            log(store, "doomed", content(f"{number}-{number + 1}/{number}"))
        log(store, "kept", content("2-3-9/kept"))
        for version in store.versions("doomed"):
            store.delete(version.ref, delete_aliases=True)
        store.trash.empty()
    return path


def collector(path: Path, nth: int) -> Process:
    """Stops before its n-th deletion of a pack."""

    def work(tell: Tell) -> None:
        ops = Stopping(nth, lambda op, file: op == "unlink" and "/packs/" in file)
        with Store.open(path, ops=ops) as store:
            report = store.gc(grace=0, orphan_age=0, max_waste=0)
            assert report.errors == []
            tell("did", packs=report.reclaimed_packs)

    return spawn("collector", work)


def others_go_on(store: Store) -> None:
    """While collectors sleep: content that they are about to delete is logged again, and all is collected."""
    log(store, "again", content("0-1-5/again"))
    for _ in range(2):
        assert store.gc(grace=0, orphan_age=0, max_waste=0).errors == []
    assert check_content(store.get("again:v0")) == "0-1-5/again"
    assert store.fsck(read_data=True).findings == []


@pytest.mark.parametrize("fates", ["continued", "killed", "continued continued", "killed continued"])
def test_collectors_stopped_amid_their_deletions(littered: Path, fates: str, tmp_path: Path) -> None:
    """Another one runs to the end, then they wake up, or are killed: all ends right without repair."""
    stops = 0
    for nth in itertools.count(1, 2):
        path = tmp_path / f"{nth}"
        shutil.copytree(littered, path)
        asleep: dict[str, Process] = {}
        with all_ended(asleep):
            for number, _ in enumerate(fates.split()):
                process = collector(path, nth if number == 0 else 1)
                if is_stopped(process):
                    asleep[str(number)] = process
            if not asleep:
                break
            stops += 1
            with Store.open(path, ops=NoSync()) as store:
                others_go_on(store)
                for number, fate in enumerate(fates.split()):
                    if str(number) not in asleep:
                        continue
                    process = asleep[str(number)]
                    if fate == "continued":
                        result(process)
                    else:
                        process.signal(signal.SIGKILL)
                        assert process.end() == -signal.SIGKILL
                    del asleep[str(number)]
                    assert check_content(store.get("again:v0")) == "0-1-5/again"
                    assert check_content(store.get("kept:v0")) == "2-3-9/kept"
                whole(store)
    print(f"{fates}: stopped before {stops} deletions")
    assert stops >= 4


# ---------------------------------------------------------------- what the storms have found


@pytest.mark.parametrize("holding", [False, True], ids=["it is gone", "it is about to go"])
def test_a_file_that_was_swept_before_it_could_be_locked_is_made_again(
    holding: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of a temporary file and its lock a sweep of any age takes it for one of the dead."""

    class SweptLate(OsOps):
        """The sweep that has claimed a file goes on."""

        def fsync(self, fd: int, path: StrPath) -> None:
            super().fsync(fd, path)
            for file in claimed_files:
                file.unlink(missing_ok=True)

    claimed_files: list[Path] = []
    backend, other = (LocalBackend(tmp_path / "s", SweptLate(crash_at=0)) for _ in range(2))
    backend.create("a/one", b"1")
    real = os.fchmod
    swept: list[int] = []

    with ExitStack() as claims:

        def fchmod(fd: int, mode: int) -> None:
            real(fd, mode)
            if not swept:
                (file,) = tmp_path.glob("s/tmp/*")
                if holding:
                    assert claims.enter_context(claimed(str(file)))
                    claimed_files.append(file)
                swept.append(1 if holding else other.sweep_temp(2**62))

        monkeypatch.setattr(os, "fchmod", fchmod)
        backend.create("a/two", b"2")
    assert swept == [1]
    assert backend.read("a/two") == b"2"
    assert not [*tmp_path.glob("s/tmp/*")]


class Intruding(OsOps):
    """Lets somebody else act once, right after the first pack has its name."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__(crash_at=0)
        self.then: list[Callable[[], object]] = [then]

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        result = super()._run(op, path, call, target=target, data=data)
        if op == "link" and "/packs/" in os.fspath(target) and self.then:
            self.then.pop()()
        return result


def test_a_copy_that_another_collector_condemns_is_left_to_the_next_run(littered: Path, tmp_path: Path) -> None:
    """Two collectors that spare no orphan: the pack that one has written, but not committed, is one for the other."""
    path = tmp_path / "s"
    shutil.copytree(littered, path)
    with Store.open(path, ops=NoSync()) as other:
        ops = Intruding(lambda: other.gc(grace=3600, orphan_age=0, max_waste=1.0))
        with Store.open(path, ops=ops) as store:
            report = store.gc(grace=0, orphan_age=0, max_waste=0)
        assert not ops.then
        assert report.errors == []
        assert other.gc(grace=0, max_waste=0).errors == []
        assert check_content(other.get("kept:v0")) == "2-3-9/kept"
        whole(other)
