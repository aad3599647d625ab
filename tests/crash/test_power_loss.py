"""Power loss after every effect (I4 bytes, I5 ack, R3): every legal crash state of recorded traces, and each sync.

A scenario is played on a real store and recorded. `casstore.testing.crashstates` tells every tree of files that the
file system may show after the power went at any point of it, with the index gone. In each of them the store must open,
look as it did after the steps that were acknowledged (or after some more), be sound, and leave no garbage when it is
collected. Then every sync is left out in turn: some crash state must break a promise, or else the trace itself must
prove that the sync was redundant there (`needless`).
"""

import hashlib
import itertools
import os
import pickle
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

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
    opening,
)
from casstore.backend.local import LocalBackend
from casstore.backend.memory import forget_memory, open_memory
from casstore.backend.osops import OsOps, StrPath
from casstore.codec import ZstdCodec
from casstore.engine import Engine
from casstore.format.layout import CHECKPOINT_PREFIX
from casstore.gc.reclaim import listed_packs
from casstore.log import Log
from casstore.model import Retire
from casstore.testing.checks import replayed, view_hash
from casstore.testing.crashstates import CrashState, crash_states, in_temp, sync_effects, without
from casstore.testing.record import ACK, Effect, RecordingOps
from casstore.testing.together import together
from casstore.testing.worlds import MINE, Files, NoSync, World, contains, look

T = TypeVar("T")
Step = Callable[[Store], object]

SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=64, average=256, maximum=1024), frame_bytes=1024, pack_bytes=64 * 1024, node_bytes=512
)
_random = random.Random(5)
BLOCKS = [_random.randbytes(700) for _ in range(12)]
LARGE = b"".join(_random.randbytes(1200) for _ in range(9))
SECRET = _random.randbytes(3000)
V0 = {"a": BLOCKS[0], "d/b": BLOCKS[1], "e": b""}
V1 = {"a": BLOCKS[2], "d/b": BLOCKS[1], "d/large": LARGE}
V2 = {"x": BLOCKS[3], "y": BLOCKS[1]}
GONE = {"z": BLOCKS[4]}


# ---------------------------------------------------------------- what is seen


NO_STORE: None = None


def log(store: Store, name: str, files: Mapping[str, bytes], **how: object) -> Version:
    artifact = Artifact(name, type="dataset")
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact, **how)  # type: ignore[arg-type]


# ---------------------------------------------------------------- recording


Promise = Callable[[World | None, int], str]
"""what is wrong with what users see, once so many calls have been acknowledged; empty if nothing"""


@dataclass(frozen=True)
class Recording:
    """A trace, the files it began with, and what it promised."""

    trace: Sequence[Effect]
    before: Path
    promise: Promise
    initial: Mapping[str, bytes]
    secret: bytes = b""
    """bytes that are nowhere once everything has been acknowledged"""

    @classmethod
    def of(cls, trace: Sequence[Effect], before: Path, promise: Promise) -> "Recording":
        initial = {str(path.relative_to(before)): path.read_bytes() for path in before.rglob("*") if path.is_file()}
        return cls(trace, before, promise, initial)


def one_of(worlds: Sequence[World | None]) -> Promise:
    """A scenario by one process: what users saw after the steps that were acknowledged, or after some more."""
    return lambda seen, acked: "" if seen in worlds[acked:] else "not what was acknowledged"


def runtime(seed: int, first: bytes = b"", ago: timedelta = timedelta()) -> Runtime:
    """A world with the same names each time; with ``first``, all names begin alike, so packs share a directory."""
    names = random.Random(seed)
    return Runtime(
        clock=lambda: datetime.now(UTC) - ago, random_bytes=lambda count: (first + names.randbytes(count))[:count]
    )


def open_store(
    path: Path, ops: RecordingOps | None, seed: int, first: bytes = b"", ago: timedelta = timedelta()
) -> Store:
    return Store.open(path, runtime=runtime(seed, first, ago), settings=Settings(workers=1), ops=ops)


def without_index(path: Path) -> None:
    """After a power cut the index is not trusted, whatever is left of it."""
    shutil.rmtree(path / "index", ignore_errors=True)


def begin(before: Path, during: Path) -> RecordingOps:
    without_index(before / "s")
    if before.exists():
        shutil.copytree(before, during)
    else:
        before.mkdir()
        during.mkdir()
    return RecordingOps(during)


def record(before: Path, during: Path, steps: Sequence[Step], seed: int) -> Recording:
    """Play a scenario on a copy of the store in ``before``."""
    ops = begin(before, during)
    worlds: list[World | None] = []
    if (during / "s").exists():
        store = open_store(during / "s", ops, seed)
        worlds.append(look(store))
    else:
        worlds.append(NO_STORE)
        store = Store.create(during / "s", config=SMALL, runtime=runtime(seed), settings=Settings(workers=1), ops=ops)
        ops.mark("create")
        worlds.append(look(store))
    for step in steps:
        step(store)
        ops.mark(getattr(step, "__name__", "step"))
        worlds.append(look(store))
    store.close()
    return Recording.of(ops.trace, before, one_of(worlds))


def prepare(before: Path, steps: Sequence[Step], seed: int, ago: timedelta = timedelta()) -> None:
    """Bring a store into being, or on, without recording it."""
    path = before / "s"
    if not path.exists():
        before.mkdir()
        Store.create(path, config=SMALL, runtime=runtime(seed, ago=ago)).close()
    with open_store(path, None, seed, ago=ago) as store:
        for step in steps:
            step(store)
    without_index(path)


# ---------------------------------------------------------------- checking


@dataclass
class Checker:
    """Says what is wrong with crash states. The same tree is looked at once, whatever trace it comes from."""

    known: dict[bytes, World | str | None] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    asked: int = 0

    def seen(self, state: CrashState, recording: Recording) -> World | str | None:
        """What users see in a crash state, or what is wrong with it."""
        self.asked += 1
        files = _objects(state, recording.initial)
        digests = sorted((key, hashlib.blake2b(data).digest()) for key, data in files.items())
        tree = hashlib.blake2b(repr(digests).encode()).digest()
        if tree not in self.known:
            self.known[tree] = self._look(files)
        return self.known[tree]

    def violation(self, state: CrashState, recording: Recording) -> str:
        """What is wrong with a crash state, given what had been acknowledged."""
        acks = sum(effect.op == ACK for effect in recording.trace)
        if recording.secret and len(state.acked) == acks:
            back = [path for path, data in _files(state, recording.initial).items() if contains(data, recording.secret)]
            if back:
                return f"the erased bytes are back, in {back}"
        seen = self.seen(state, recording)
        if isinstance(seen, str):
            return seen
        wrong = recording.promise(seen, len(state.acked))
        return wrong and f"{wrong}: {seen}"

    def _look(self, files: Mapping[str, bytes]) -> World | str | None:
        name = f"crash-{next(self.numbers)}"
        backend = open_memory(name)
        try:
            for key, data in files.items():
                backend.create(key, data)
            return inspect(f"memory://{name}", files)
        finally:
            forget_memory(name)


def _files(state: CrashState, initial: Mapping[str, bytes]) -> Files:
    """All there is in a crash state."""
    files = {path: data for path, data in initial.items() if path not in state.removed}
    files.update({path: initial[c.initial] if c.initial else c.data for path, c in state.files.items()})
    return files


def _objects(state: CrashState, initial: Mapping[str, bytes]) -> Files:
    """What of a crash state a store can see: everything but temporary files."""
    files = _files(state, initial)
    return {path[2:]: data for path, data in files.items() if path.startswith("s/") and not in_temp(path)}


def inspect(url: str | Path, keys: Iterable[str]) -> World | str | None:
    """Open what is left: what users see (None: no store), or what is wrong."""
    log_and_more = [*keys]
    log_keys = sorted(key for key in log_and_more if key.startswith("log/"))
    if log_keys != [f"log/{number:020}" for number in range(1, len(log_keys) + 1)]:
        return "torn log: a gap"
    try:
        with Store.open(url, ops=NoSync()) as store:
            seen = look(store)
            findings = store.fsck(read_data=True).findings
            if findings:
                return f"fsck: {findings}"
            begun = any(key.startswith(CHECKPOINT_PREFIX) for key in log_and_more)
            if begun and replayed(store._engine) != view_hash(store._engine):
                return "the view is not what the log says"
            user = seen
            store.expire()
            seen = look(store)
            store.gc(grace=0, offline=True)
            report, usage = store.fsck(read_data=True), store.du()
            if report.findings or report.orphan_packs or report.ended_packs or usage.garbage or usage.pending:
                return f"garbage: {report} {usage}"
            return user if look(store) == seen else "the collection changed what users see"
    except StoreNotFoundError:
        return "packs or log without a store" if log_and_more else NO_STORE
    except CasstoreError as error:
        return f"{type(error).__name__}: {error}"


def first_violation(checker: Checker, recording: Recording, after: int = -1) -> str:
    """What is wrong with the first bad crash state, of those after so many effects."""
    for state in crash_states(recording.trace):
        if state.position <= after:
            break
        wrong = checker.violation(state, recording)
        if wrong:
            return f"power lost after {state.position} effects, without {state.lost}: {wrong}"
    return ""


def violation_without(checker: Checker, recording: Recording, nth: int) -> str:
    """What is wrong if the n-th sync is left out. Up to where it was, nothing has changed."""
    place = sync_effects(recording.trace)[nth]
    trace = without(recording.trace, nth)
    acks = [at for at, effect in enumerate(trace) if effect.op == ACK and at >= place]
    # Most are missed as soon as something is acknowledged. The secret has to be gone after the last ack only.
    cuts = [] if recording.secret or not acks else [trace[: acks[0] + 1]]
    if len(acks) > 1 and _saves_time(recording.trace, recording.trace[place]):
        cuts.append(trace[: acks[1] + 1])  # what was not made durable stays open to the end: that is too much
    else:
        cuts.append(trace)
    found = (first_violation(checker, replace(recording, trace=cut), place) for cut in cuts)
    return next(filter(None, found), "")


# ---------------------------------------------------------------- which syncs a trace does not need


def needless(trace: Sequence[Effect], place: int) -> str:
    """Why the sync at a place of a trace is redundant in this trace; empty if it has to be there.

    The code cannot know either of it: it syncs a directory that another process may have changed, and whether more
    will follow. Data syncs are never redundant.
    """
    effect = trace[place]
    if _saves_time(trace, effect):
        return SAVES_TIME
    if effect.op != "fsync_dir":
        return ""

    def names_in(directory: str, effects: Sequence[Effect]) -> bool:
        return any(
            str(Path(path).parent) == directory and path != CHECKPOINTS
            for path in itertools.chain.from_iterable(map(_named, effects))
        )

    syncs = [at for at, other in enumerate(trace) if (other.op, other.path) == ("fsync_dir", effect.path)]
    earlier = max((at for at in syncs if at < place), default=-1)
    if not names_in(effect.path, trace[earlier + 1 : place]):
        return "no name in the directory has changed since it was durable"
    later = min((at for at in syncs if at > place), default=None)
    if later is not None and not any(map(_relies, trace[place + 1 : later])):
        return "the directory is synced again before anything relies on the names in it"
    return ""


SAVES_TIME = "a checkpoint that is torn or gone is passed over: the log has it all"
CHECKPOINTS = f"s/{CHECKPOINT_PREFIX.rstrip('/')}"


def _saves_time(trace: Sequence[Effect], effect: Effect) -> bool:
    """Whether a sync makes only checkpoints durable."""
    targets = [other.target for other in trace if other.op == "link" and other.path == effect.path]
    return effect.path == CHECKPOINTS or any(target.startswith(f"{CHECKPOINTS}/") for target in targets)


def _named(effect: Effect) -> tuple[str, ...]:
    """Names an effect changes."""
    match effect.op:
        case "create" | "mkdir" | "unlink":
            return (effect.path,)
        case "link":
            return (effect.target,)
        case "rename":
            return (effect.path, effect.target)
        case _:
            return ()


def _relies(effect: Effect) -> bool:
    """Whether an effect relies on what came before: a segment, an acknowledgement, a deletion."""
    published = effect.op == "link" and effect.target.startswith("s/log/")
    deleted = effect.op == "unlink" and not in_temp(effect.path)
    return published or deleted or effect.op == ACK


# ---------------------------------------------------------------- scenarios


def log_v0(store: Store) -> None:
    log(store, "data", V0, aliases=["best"])


def log_v1(store: Store) -> None:
    log(store, "data", V1, aliases=["best"])


def log_v2(store: Store) -> None:
    log(store, "other", V2)


def log_gone(store: Store) -> None:
    log(store, "gone", GONE)


def trash_v0(store: Store) -> None:
    store.delete("data:v0", delete_aliases=True)


def trash_gone(store: Store) -> None:
    store.delete("gone:v0")


def purge_v0(store: Store) -> None:
    store.trash.purge("data:v0")


def purge_gone(store: Store) -> None:
    store.trash.purge("gone:v0")


def collect(store: Store) -> None:
    report = store.gc(grace=0, max_waste=0, orphan_age=0)
    assert {str(fate.fate) for fate in report.packs} == {"keep", "retire", "repack"}
    assert report.reclaimed_packs >= 3
    assert report.repacked_bytes


def draft(store: Store) -> None:
    edited = store.get("data:v1").new_draft()
    edited.remove("a")
    store.log_artifact(edited)


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """From nothing: a store, two versions, one more in another collection, an alias."""
    path = tmp_path_factory.mktemp("commits")
    return record(path / "before", path / "during", (log_v0, log_v1, alias, log_v2), 1)


def alias(store: Store) -> None:
    store.get("data:v0").add_alias("first")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Trash, purge, a collection that drops nodes, retires, repacks and reclaims; another commit; a draft."""
    path = tmp_path_factory.mktemp("collection")
    prepare(path / "before", (log_v0, log_v1, log_gone), 2)
    steps = (trash_v0, trash_gone, purge_v0, purge_gone, collect, log_v2, draft)
    return record(path / "before", path / "during", steps, 3)


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker()


def log_more(store: Store) -> None:
    for number in range(2, 5):
        log(store, "data", {"a": BLOCKS[number], "n": b"%d" % number}, tags=["t"] if number == 3 else [])
    for number in range(3):
        log(store, "team", {"n": b"%d" % number, "b": BLOCKS[number]})
    log(store, "other", V2)


def mine(store: Store) -> str:
    (held,) = [held for held in store.pins() if held.purpose == MINE]
    return held.id


LABELS: Sequence[Step] = (
    lambda store: store.set_ttl("data:v0", timedelta(days=30)),
    lambda store: store.set_default_ttl(timedelta(days=400), "team"),
    lambda store: store.get("data:v1").protect("used"),
    lambda store: store.collection("team").protect("used"),
    lambda store: store.get("data:v1").unprotect(),
    lambda store: store.collection("team").unprotect(),
    lambda store: store.pin(["data:v1", "team:v0"], MINE),
    lambda store: store.renew_pin(mine(store), None),
    lambda store: store.unpin(mine(store)),
    lambda store: store.quota(10**9, "free"),
)
"""one commit each"""
RULES: Sequence[Step] = (
    lambda store: store.set_ttl("data:v2", timedelta(hours=1), allow_immediate=True),
    lambda store: store.expire(),
    lambda store: store.retain("team", keep_last=2),
    lambda store: store.delete(where=Where(tag="t"), collection="data"),
    lambda store: store.plan_delete(["data:v1", "other:v0"], delete_aliases=True).apply(),
    lambda store: store.collection("team").delete(),
    lambda store: store.trash.restore("team"),
    lambda store: store.collection("team").delete(),
    lambda store: store.trash.purge("team"),
    lambda store: store.trash.empty(),
)


def undo(store: Store) -> None:
    (run,) = [done.run_id for done in store.deletions() if done.action == "gc"]
    assert run
    assert store.gc_undo(run).restored == ("data:v0", "gone:v0")


def restore_gone(store: Store) -> None:
    store.trash.restore("gone:v0")


def reclaim(store: Store) -> None:
    assert store.gc_reclaim().reclaimed_packs >= 2


def checkpoint(store: Store) -> None:
    assert store.checkpoint().made


def log_secret(store: Store) -> None:
    log(store, "data", {"secret": SECRET, "own": BLOCKS[6]})


def log_secret_again(store: Store) -> None:
    log(store, "data", {"copy": SECRET, "more": BLOCKS[7]})


def trash_secret(store: Store) -> None:
    store.delete("data:v1")


def purge_secret(store: Store) -> None:
    store.trash.purge("data:v1")


def move_secret(store: Store) -> None:
    """The live copy is in a new pack, and an older pack that has ended has one, too."""
    assert store.gc(max_waste=0).retired_packs


def erase(store: Store) -> None:
    foreseen = store.erase("data:v2/copy", reason="request 17", dry_run=True)
    done = store.erase("data:v2/copy", reason="request 17", confirm=foreseen.digest)
    assert done.deleted >= 2
    assert done.remaining == []


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Times to live, protection, pins, quota."""
    path = tmp_path_factory.mktemp("labels")
    prepare(path / "before", (log_v0, log_v1, log_more), 4)
    return record(path / "before", path / "during", LABELS, 5)


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Expiry, retention, predicates, plans, collections, the trash; then a collection."""
    path = tmp_path_factory.mktemp("rules")
    prepare(path / "before", (log_v0, log_v1, log_more), 6, timedelta(hours=2))
    return record(path / "before", path / "during", RULES, 7)


@pytest.fixture(scope="module")
def undone(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A collection is undone; then the packs its content was taken from go."""
    path = tmp_path_factory.mktemp("undone")
    steps = (log_v0, log_v1, log_gone, trash_v0, trash_gone, purge_v0, purge_gone, lambda store: store.gc(max_waste=0))
    prepare(path / "before", steps, 8)
    return record(path / "before", path / "during", (undo, restore_gone, reclaim, log_v2), 9)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Three checkpoints of several parts, so that the oldest goes."""
    path = tmp_path_factory.mktemp("checkpoints")
    prepare(path / "before", (log_v0, log_v1), 10)
    steps = (checkpoint, log_v2, checkpoint, alias, checkpoint, trash_v0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casstore.checkpoint.PART_BYTES", 7000)
        return record(path / "before", path / "during", steps, 11)


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A secret is logged twice, moved by a collection, and erased."""
    path = tmp_path_factory.mktemp("erased")
    prepare(path / "before", (log_v0,), 12)
    steps = (log_secret, log_secret_again, trash_secret, purge_secret, move_secret, erase)
    return replace(record(path / "before", path / "during", steps, 13), secret=SECRET)


def log_together(store: Store) -> None:
    """Three sessions and a label in one segment, with shared packs; two of them store the same new block."""
    works: list[Callable[[], object]] = [
        lambda: log(store, "p", {"a": BLOCKS[5]}),
        lambda: store.get("data:v0").add_alias("kept"),
        lambda: log(store, "q", {"b": BLOCKS[5], "c": BLOCKS[0]}),
        lambda: log(store, "data", {"a": BLOCKS[6]}),
    ]
    assert [outcome for outcome in together(store._engine, works) if isinstance(outcome, BaseException)] == []


def log_together_again(store: Store) -> None:
    works = [lambda: log(store, "p", {"a": BLOCKS[7]}), lambda: log(store, "data", {"a": BLOCKS[8]})]
    head = store.head
    together(store._engine, works)
    assert store.head == head + 1


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Sessions that are committed together, twice."""
    path = tmp_path_factory.mktemp("groups")
    prepare(path / "before", (log_v0,), 14)
    return record(path / "before", path / "during", (log_together, log_together_again, log_v2, trash_v0), 15)


RECORDINGS = {
    "commits": 1,
    "collection": 1,
    "labels": 8,
    "rules": 8,
    "undone": 4,
    "checkpoints": 8,
    "erased": 8,
    "groups": 2,
}
"""each, and which share of its crash states is looked at on disk, too"""


# ---------------------------------------------------------------- every crash state


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_crash_state_keeps_what_was_acknowledged(
    name: str, checker: Checker, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In memory, and on disk, through the local backend, with what is left of temporary files and directories.

    Each state, or a share of them, is read on disk; every fourth of these is also collected
    there, and all are in memory.
    """
    recording: Recording = request.getfixturevalue(name)
    count = 0
    for count, state in enumerate(crash_states(recording.trace, limit_pending=20), 1):
        assert checker.violation(state, recording) == ""
        seen = checker.seen(state, recording)
        if count % RECORDINGS[name]:
            continue
        target = tmp_path / f"{count}"
        state.materialise(target, recording.before)
        root = target / "s"
        if seen is NO_STORE:
            with pytest.raises(StoreNotFoundError):
                Store.open(root)
            Store.open(root, create=True, ops=NoSync()).close()
        else:
            with Store.open(root, read_only=True) as store:
                assert look(store) == seen, (state.position, state.lost)
                assert store.fsck(read_data=True).findings == [], (state.position, state.lost)
            if count % (4 * RECORDINGS[name]) == 0:
                assert inspect(root, _objects(state, recording.initial)) == seen, (state.position, state.lost)
                assert not [*root.glob("tmp/*")]
        shutil.rmtree(target)
    kinds = Counter(effect.op for effect in recording.trace)
    print(f"{name}: {count} crash states of {len(recording.trace)} effects: {dict(kinds)}")
    assert count > 60


@pytest.mark.parametrize("name", RECORDINGS)
def test_each_sync_is_needed(name: str, checker: Checker, request: pytest.FixtureRequest) -> None:
    recording: Recording = request.getfixturevalue(name)
    assert first_violation(checker, recording) == ""
    reasons: Counter[str] = Counter()
    needed: Counter[str] = Counter()
    for nth, place in enumerate(sync_effects(recording.trace)):
        effect = recording.trace[place]
        found = violation_without(checker, recording, nth)
        reason = needless(recording.trace, place)
        assert found or reason, f"sync {nth} ({effect.op} {effect.path}, at {place}) can be left out unnoticed"
        assert not (found and reason), f"sync {nth} ({effect.op} {effect.path}) is needed after all: {found}"
        (reasons if reason else needed)[reason or effect.op] += 1
    print(f"{name}: needed {dict(needed)}, redundant in this trace {dict(reasons)}; {checker.asked} states checked")
    files = [effect for effect in recording.trace if effect.op == "fsync"]
    assert needed["fsync"] == sum(not _saves_time(recording.trace, effect) for effect in files)
    if name != "checkpoints":
        assert sum(needed.values()) > sum(reasons.values())


def test_a_checkpoint_is_begun_at_in_many_crash_states(checkpoints: Recording) -> None:
    """Otherwise what was said about views that begin at one would prove little."""
    states = [*crash_states(checkpoints.trace)]
    manifests = f"{CHECKPOINTS}/"
    there = [state for state in states if any(path.startswith(manifests) and "." not in path for path in state.files)]
    assert len(there) > len(states) / 2


# ---------------------------------------------------------------- other processes


class Pausing(RecordingOps):
    """Lets somebody else act once, just before a sync that ``when`` chooses."""

    def __init__(self, root: Path, when: Callable[[str, str], bool], then: Callable[[], None]) -> None:
        super().__init__(root)
        self.when = when
        self.then = then
        self.paused_before = ""

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        if op in {"fsync", "fsync_dir"} and not self.paused_before and self.when(op, self._relative(path)):
            self.paused_before = f"{op} {self._relative(path)}"
            self.then()
        return super()._run(op, path, call, target=target, data=data)


def nth_sync(nth: int) -> Callable[[str, str], bool]:
    numbers = itertools.count()
    return lambda op, path: next(numbers) == nth


@dataclass(frozen=True)
class Foreign:
    """A recording in which B acted while A was held up, cut off when B's call had returned."""

    recording: Recording
    paused_before: str
    begin: int
    """where in the trace B began"""


def interrupted(before: Path, during: Path, nth: int, a: Step, b: Step, kept: Promise) -> Foreign | None:
    """B acts just before the n-th sync of what A does; None when A has no more syncs."""
    shutil.rmtree(during, ignore_errors=True)
    begin(before, during)
    span: list[int] = []

    def intrude() -> None:
        span.append(len(ops.trace))
        with open_store(during / "s", ops, 102, b"\xaa") as store:
            b(store)
            ops.mark("b")
        span.append(len(ops.trace))

    ops = Pausing(during, nth_sync(nth), intrude)
    with open_store(during / "s", ops, 101, b"\xaa") as store:
        a(store)
    if not span:
        return None
    start, end = span
    return Foreign(Recording.of(ops.trace[:end], before, kept), ops.paused_before, start)


def nothing(store: Store) -> None:
    """For a store without packs, so that A has to make every directory."""


def same_as_v1(store: Store) -> None:
    """Finds the version that A is logging, or logs it itself."""
    log(store, "data", V1, aliases=["best"])


def same_alias(store: Store) -> None:
    store.get("data:v0").add_alias("first")


def collect_again(store: Store) -> None:
    store.gc(grace=0, max_waste=0)


def has(ref: str, files: Files) -> Promise:
    """B's acknowledgement means that a version is there."""
    return lambda seen, acked: "" if not acked or (seen and seen.versions.get(ref) == files) else f"{ref} is lost"


def has_alias(seen: World | None, acked: int) -> str:
    return "" if not acked or (seen and seen.aliases.get("data:first") == "v0") else "the alias is lost"


def unharmed(seen: World | None, acked: int) -> str:
    """A collection by B promises nothing but what was promised before it."""
    return "" if seen and seen.versions.get("data:v1") == V1 else "data:v1 is lost"


@dataclass(frozen=True)
class Pair:
    """What A and B do, from what store, and what B's acknowledgement promises."""

    before: Sequence[Step]
    a: Step
    b: Step
    kept: Promise


PAIRS = {
    "two-writers": Pair((nothing,), log_v1, log_v2, has("other:v0", V2)),
    "same-content": Pair((nothing,), log_v1, same_as_v1, has("data:v0", V1)),
    "same-alias": Pair((log_v0,), alias, same_alias, has_alias),
    "two-collectors": Pair((log_v0, log_v1, trash_v0, purge_v0), collect_again, collect_again, unharmed),
}


@pytest.mark.parametrize("name", PAIRS)
def test_nobody_relies_on_what_another_process_has_not_made_durable(
    name: str, checker: Checker, tmp_path: Path
) -> None:
    """A is held up before each of its syncs in turn. What B then does and acknowledges must survive by itself."""
    pair = PAIRS[name]
    before = tmp_path / "before"
    prepare(before, pair.before, 1)
    needed: dict[str, set[str]] = {}
    pauses = 0
    for nth in itertools.count():
        foreign = interrupted(before, tmp_path / "during", nth, pair.a, pair.b, pair.kept)
        if foreign is None:
            break
        pauses += 1
        recording, paused = foreign.recording, foreign.paused_before
        assert first_violation(checker, recording) == "", f"A was held up before {paused}"
        for number, place in enumerate(sync_effects(recording.trace)):
            if place >= foreign.begin and first_violation(
                checker, replace(recording, trace=without(recording.trace, number))
            ):
                effect = recording.trace[place]
                needed.setdefault(f"{effect.op} {effect.path}", set()).add(paused)
    print(name, pauses, {sync: sorted(by) for sync, by in needed.items() if "tmp/" not in sync})
    assert pauses >= 2


def test_a_foreign_deleter_needs_its_own_barrier(
    checker: Checker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B deletes what A's segment retired before A has made that segment durable.

    A works while B is between its plan and its reclaim, and is held up before the sync of the segment in which it
    moves live content: all that stands between B's unlink and a log without that segment is B's barrier.
    """
    before, during = tmp_path / "before", tmp_path / "during"
    prepare(before, (log_v0, log_v1), 1)
    begin(before, during)
    path = during / "s"
    held, go = threading.Event(), threading.Event()

    def moves(op: str, directory: str) -> bool:
        if (op, directory) != ("fsync_dir", "s/log"):
            return False
        last = max(int(file.name) for file in (path / "log").iterdir())
        segment = Log(LocalBackend(path, OsOps()), ZstdCodec()).read(last)
        assert segment is not None
        records = [record for transaction in segment[0].transactions for record in transaction.records]
        return any(isinstance(record, Retire) and record.moved for record in records)

    def hold() -> None:
        held.set()
        assert go.wait(60)

    ops = Pausing(during, moves, hold)

    def a() -> None:
        with open_store(path, ops, 101) as store:
            trash_v0(store)
            purge_v0(store)
            store.gc(grace=0, max_waste=0)

    thread = threading.Thread(target=a)

    def interleave(engine: Engine) -> object:
        monkeypatch.setattr("casstore.gc.listed_packs", listed_packs)
        thread.start()
        assert held.wait(60)
        return listed_packs(engine)

    with open_store(path, ops, 102) as store:
        monkeypatch.setattr("casstore.gc.listed_packs", interleave)
        assert store.gc(grace=0).reclaimed_packs
        ops.mark("b")
    trace = [*ops.trace]
    go.set()
    thread.join()
    recording = Recording.of(trace, before, unharmed)
    assert first_violation(checker, recording) == ""
    deleted = next(at for at, effect in enumerate(trace) if effect.op == "unlink" and not in_temp(effect.path))
    nth, place = max((nth, place) for nth, place in enumerate(sync_effects(trace)) if place < deleted)
    assert trace[place] == Effect("fsync_dir", "s/log"), "the barrier"
    assert trace[place - 1].op != "link"
    assert first_violation(checker, replace(recording, trace=without(trace, nth)))


def test_a_clean_index_is_not_ahead_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B, a process of its own, sees A's segment before that is durable, and leaves a clean index: which is trusted."""
    before, during, index = tmp_path / "before", tmp_path / "during", tmp_path / "index"
    prepare(before, (log_v0,), 1)
    begin(before, during)

    def other_process() -> None:
        out, into = os.pipe()
        if not os.fork():
            try:
                mine = RecordingOps(during)
                Store.open(during / "s", ops=mine).close()
                with os.fdopen(into, "wb") as pipe:
                    pickle.dump(mine.trace, pipe)
            finally:
                os._exit(0)
        os.close(into)
        with os.fdopen(out, "rb") as pipe:
            ops.trace += pickle.load(pipe)
        os.wait()
        ops.mark("b")
        shutil.copytree(during / "s/index", index)

    def linked(op: str, path: str) -> bool:
        return (op, path) == ("fsync_dir", "s/log") and (during / f"s/log/{2:020}").exists()

    ops = Pausing(during, linked, other_process)
    with open_store(during / "s", ops, 101) as store:
        alias(store)
    assert [*index.glob("**/clean")], "the index is clean"
    monkeypatch.setattr(opening, "boot_id", lambda: "another boot")
    end = ops.trace.index(Effect(ACK, "b")) + 1
    states = [state for state in crash_states(ops.trace[:end]) if state.acked]
    for number, state in enumerate(states):
        target = tmp_path / f"{number}"
        state.materialise(target, before)
        shutil.copytree(index, target / "s/index")
        with Store.open(target / "s") as store:
            assert store.fsck(read_data=True).findings == []
    assert states
