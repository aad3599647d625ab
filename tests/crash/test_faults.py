"""Failures at every call (R8, R9; I5 ack): a clean error, a store that goes on, nothing lost and nothing done twice.

Each effect of a log and of a collection fails in turn, as a full disk, a broken one or a process without file
descriptors would make it fail; then each call of a backend does, before or after it took effect. Whatever comes out is
a casstore error; the draft is as it was; the same handle goes on; a second try gives what the first would have.
"""

import errno
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from casstore import (
    Artifact,
    BackendError,
    CasstoreError,
    ChunkerParams,
    IntegrityError,
    Settings,
    Store,
    StoreConfig,
    StoreNotFoundError,
    TransientBackendError,
    Version,
)
from casstore.backend import Backend, ObjectInfo, open_backend
from casstore.testing.faulty import Fault, FaultyBackend
from casstore.testing.record import FILE_OPS, RecordingOps

Files = dict[str, bytes]

SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=64, average=256, maximum=1024), frame_bytes=1024, pack_bytes=4096, node_bytes=512
)
_random = random.Random(6)
BLOCKS = [_random.randbytes(700) for _ in range(8)]
LARGE = b"".join(_random.randbytes(1200) for _ in range(9))
V0 = {"a": BLOCKS[0], "d/b": BLOCKS[1], "e": b""}
V1 = {"a": BLOCKS[2], "d/b": BLOCKS[1], "d/large": LARGE}
V2 = {"d/b": BLOCKS[1], "d/large": LARGE, "new": BLOCKS[3] + LARGE[:5000]}
GONE = {"x": BLOCKS[4], "y": BLOCKS[5]}
KEPT = {"data:v1": V1}


def artifact(name: str, files: Files) -> Artifact:
    made = Artifact(name, type="dataset")
    for path, data in files.items():
        made.add_bytes(data, path)
    return made


def edited(version: Version) -> Artifact:
    """A draft of V2 made from V1."""
    draft = version.new_draft()
    draft.remove("a")
    draft.add_bytes(V2["new"], "new")
    return draft


def read_back(version: Version) -> Files:
    return {entry.path: entry.read() for entry in version.files()}


def everything(store: Store) -> dict[str, Files]:
    found = [version for info in store.collections() for version in store.versions(info.name)]
    return {version.ref: read_back(version) for version in found}


def check_no_garbage(store: Store) -> None:
    store.gc(grace=0, offline=True)
    report, usage = store.fsck(read_data=True), store.du()
    assert (report.findings, report.orphan_packs, report.ended_packs) == ([], 0, 0)
    assert (usage.garbage, usage.pending) == (0, 0)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a version, and garbage of every kind but orphans."""
    path = tmp_path_factory.mktemp("before") / "s"
    with Store.create(path, config=SMALL) as store:
        store.log_artifact(artifact("data", V0))
        store.log_artifact(artifact("data", V1))
        store.log_artifact(artifact("gone", GONE))
        for ref in ("data:v0", "gone:v0"):
            store.delete(ref)
            store.trash.purge(ref)
        assert everything(store) == KEPT
    return path


def copy(before: Path, scratch: Path) -> Path:
    path = scratch / "s"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(before, path)
    return path


# ---------------------------------------------------------------- effects that fail


@dataclass(frozen=True)
class Failure:
    """How effects fail: once or from then on, before they happened or after."""

    error: int
    after: bool = False
    sticky: bool = False

    def __str__(self) -> str:
        return errno.errorcode[self.error] + "-after" * self.after + "-sticky" * self.sticky


FAILURES = (
    Failure(errno.ENOSPC),
    Failure(errno.ENOSPC, sticky=True),
    Failure(errno.EIO),
    Failure(errno.EIO, after=True),
    Failure(errno.EIO, after=True, sticky=True),
    Failure(errno.EMFILE),
)


def each_effect(before: Path | None, scratch: Path) -> Iterator[tuple[int, Path, RecordingOps]]:
    """A copy of the store and its effects for n = 1, 2, …; ends when what was done had fewer than n effects."""
    for n in itertools.count(1):
        path = scratch / "s"
        shutil.rmtree(path, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, path)
        ops = RecordingOps(scratch, only=FILE_OPS)
        yield n, path, ops
        if not ops.failed:
            return


def attempt(call: Callable[[], object], failure: Failure, ops: RecordingOps, n: int) -> CasstoreError | None:
    """Make a call of which an effect fails; only casstore errors may come out."""
    ops.arm(n, failure.error, after=failure.after, sticky=failure.sticky)
    raised: CasstoreError | None = None
    try:
        call()
    except CasstoreError as error:
        raised = error
    finally:
        ops.arm(0, 0)
    assert raised is None or (isinstance(raised, BackendError) and raised.errno == failure.error), raised
    return raised


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_each_effect_of_a_log_fails(failure: Failure, before: Path, tmp_path: Path) -> None:
    raised: Counter[str] = Counter()
    for n, path, ops in each_effect(before, tmp_path):
        with Store.open(path, ops=ops, settings=Settings(workers=1)) as store:
            draft = edited(store.get("data:v1"))
            error = attempt(lambda d=draft, s=store: s.log_artifact(d, aliases=["best"]), failure, ops, n)  # type: ignore[misc]
            if error is not None:
                raised[ops.failed[0].op] += 1
                assert draft.is_draft()
                assert {e.path: e.size for e in draft.files()} == {p: len(data) for p, data in V2.items()}
                assert everything(store) in (KEPT, {**KEPT, "data:v2": V2})
                version = store.log_artifact(draft, aliases=["best"])
                assert (version.ref, read_back(version)) == ("data:v2", V2)
            assert everything(store) == {**KEPT, "data:v2": V2}
            assert store.get("data:best").number == store.get("data:latest").number == 2
            check_no_garbage(store)
        with Store.open(path) as store:
            assert everything(store) == {**KEPT, "data:v2": V2}
        assert not [*(path / "tmp").iterdir()]
    print(f"{failure}: failures of {n - 1} effects, errors {dict(raised)}")
    assert n > 20
    if not failure.after:
        assert raised["write"]
        assert raised["fsync"]
        assert raised["link"]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_each_effect_of_a_collection_fails(failure: Failure, before: Path, tmp_path: Path) -> None:
    raised: Counter[str] = Counter()
    for n, path, ops in each_effect(before, tmp_path):
        with Store.open(path, ops=ops, settings=Settings(workers=1)) as store:
            error = attempt(lambda s=store: s.gc(grace=0, max_waste=0, orphan_age=0), failure, ops, n)  # type: ignore[misc]
            if error is not None:
                raised[ops.failed[0].op] += 1
            assert everything(store) == KEPT
            assert store.fsck(read_data=True).findings == []
            # Content of purged versions is logged again: nothing may be believed to be there that is not.
            assert read_back(store.log_artifact(artifact("gone", GONE))) == GONE
            store.delete("gone:v1")
            store.trash.purge("gone:v1")
            check_no_garbage(store)
            assert everything(store) == KEPT
        with Store.open(path) as store:
            assert everything(store) == KEPT
    print(f"{failure}: failures of {n - 1} effects, errors {dict(raised)}")
    assert n > 20
    if not failure.after:
        # For want of room it deletes first and goes on.
        assert raised["unlink"] or (failure.error == errno.ENOSPC and not failure.sticky)
        assert raised["write"]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_each_effect_of_making_a_store_fails(failure: Failure, tmp_path: Path) -> None:
    for n, path, ops in each_effect(None, tmp_path):

        def make(path: Path = path, ops: RecordingOps = ops) -> None:
            Store.open(path, create=True, ops=ops).close()

        error = attempt(make, failure, ops, n)
        if error is not None:
            try:
                Store.open(path).close()
            except StoreNotFoundError:
                make()
        with Store.open(path, create=True) as store:
            assert read_back(store.log_artifact(artifact("data", V0))) == V0
            check_no_garbage(store)
    assert n > 5


# ---------------------------------------------------------------- calls that fail


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FaultyBackend]]:
    """Stores opened from now on have a faulty backend; the last of them is the last in this list."""
    made: list[FaultyBackend] = []

    def open_faulty(*args: object, **kwargs: object) -> Backend:
        made.append(FaultyBackend(open_backend(*args, **kwargs)))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("casstore.opening.open_backend", open_faulty)
    return made  # type: ignore[return-value]


class DiskError(TransientBackendError):
    """Ours, so that it is known again."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("verb", ["create", "read"])
@pytest.mark.parametrize("times", [1, 1000], ids=["once", "for-good"])
def test_each_call_of_a_log_fails(
    verb: str, after: bool, times: int, before: Path, tmp_path: Path, faulty: list[FaultyBackend]
) -> None:
    """Among them the ambiguous create of a segment: neither a false failure for good nor a second version."""
    failures = 0
    for nth in itertools.count(1):
        path = copy(before, tmp_path)
        with Store.open(path) as store:
            draft = edited(store.get("data:v1"))
            backend = faulty[-1]
            fault = Fault(verb, backend.calls[verb] + nth, times, after=after, error=lambda: DiskError("injected"))
            backend.add(fault)
            try:
                store.log_artifact(draft)
            except DiskError:
                failures += 1
            backend._faults.clear()
            version = store.log_artifact(draft if draft.is_draft() else artifact("data", V2))
            assert (version.ref, read_back(version)) == ("data:v2", V2)
            assert everything(store) == {**KEPT, "data:v2": V2}
            check_no_garbage(store)
        if not backend.failed:
            break
    print(f"{verb}: {nth - 1} calls failed, {failures} were not hidden")
    assert nth > 3


def test_an_ambiguous_segment_is_no_failure(before: Path, tmp_path: Path, faulty: list[FaultyBackend]) -> None:
    with Store.open(copy(before, tmp_path)) as store:
        backend = faulty[-1]
        backend.add(Fault("create", backend.calls["create"] + 3, after=True))  # data, nodes, segment
        version = store.log_artifact(artifact("other", V2))
        assert backend.failed == [("create", f"log/{version.commit:020}")]
        assert version.created
        assert [v.ref for v in store.versions("other")] == ["other:v0"]
        assert not store.log_artifact(artifact("other", V2)).created


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("verb", ["create", "read", "list", "delete", "barrier"])
def test_each_call_of_a_collection_fails(
    verb: str, after: bool, before: Path, tmp_path: Path, faulty: list[FaultyBackend]
) -> None:
    for nth in itertools.count(1):
        path = copy(before, tmp_path)
        with Store.open(path) as store:
            backend = faulty[-1]
            backend.add(Fault(verb, backend.calls[verb] + nth, after=after, error=lambda: DiskError("injected")))
            try:
                store.gc(grace=0, max_waste=0, orphan_age=0)
            except DiskError:
                pass
            except IntegrityError:
                pytest.fail("a call that failed is not a damaged store")
            backend._faults.clear()
            assert everything(store) == KEPT
            check_no_garbage(store)
            assert everything(store) == KEPT
        if not backend.failed:
            break
    print(f"{verb}: {nth - 1} calls failed")
    assert nth > 1


@pytest.mark.parametrize("items", [0, 1, 3])
@pytest.mark.parametrize("error", [DiskError, PermissionError], ids=lambda error: error.__name__)
def test_list_error_is_not_empty(
    items: int,
    error: type[Exception],
    before: Path,
    tmp_path: Path,
    faulty: list[FaultyBackend],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A listing that fails, at once or half way, is no listing: nothing is deleted on its account."""
    path = copy(before, tmp_path)
    files = {file.name for file in path.glob("packs/*/*")}
    with Store.open(path) as store:
        backend = faulty[-1]
        if error is DiskError:
            backend.fail_next("list", after=True, items=items, error=lambda: DiskError("injected"))
        else:
            real = os.scandir
            left = itertools.count(-items)

            def scandir(where: str) -> object:
                if "packs" in where and next(left) >= 0:
                    raise PermissionError(errno.EACCES, "injected", where)
                return real(where)

            monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(BackendError):
            store.gc(grace=0, max_waste=0, orphan_age=0)
        monkeypatch.undo()
        assert backend.calls["delete"] == 0
        assert {file.name for file in path.glob("packs/*/*")} >= files
        assert everything(store) == KEPT
        assert store.gc(grace=0, max_waste=0, orphan_age=0).reclaimed_packs
        assert backend.calls["delete"]
        check_no_garbage(store)
        assert everything(store) == KEPT


def test_a_short_listing_hides_garbage_and_nothing_else(
    before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that leaves packs out without saying so (a stale cache) makes no candidates for deletion."""
    path = copy(before, tmp_path)
    with Store.open(path) as store:
        kind = type(store._engine.backend)
        real = kind.list
        for shown in range(len([*path.glob("packs/*/*")])):

            def short(backend: Backend, prefix: str, shown: int = shown) -> Iterator[ObjectInfo]:
                return itertools.islice(real(backend, prefix), shown)

            monkeypatch.setattr(kind, "list", short)
            store.gc(grace=0, max_waste=0, orphan_age=0)
            monkeypatch.undo()
            assert everything(store) == KEPT
            assert store.fsck(read_data=True).findings == []
        check_no_garbage(store)
        assert everything(store) == KEPT
