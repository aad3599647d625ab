"""Packs are written run by run while they grow: what is published is whole, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import random
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore.backend import Backend, Growing, Grows
from casstore.backend.local import LocalBackend
from casstore.backend.osops import OsOps
from casstore.codec import ZstdCodec
from casstore.digest import hash_function
from casstore.errors import AlreadyExistsError, BackendError
from casstore.model import AddPack, ChunkKind
from casstore.outgoing import Outbox
from casstore.packing import ChunkWriter
from casstore.testing.crashstates import crash_states, in_temp
from casstore.testing.record import RecordingOps

HASH = hash_function("blake3")


def backend_in(root: Path) -> tuple[LocalBackend, RecordingOps]:
    ops = RecordingOps(root)
    numbers = iter(range(1, 1000))
    return LocalBackend(root, ops, new_name=lambda size: next(numbers).to_bytes(size, "big")), ops


def written(backend: Backend, executor: Executor, *, abandon: bool = False) -> list[AddPack]:
    """Packs of some chunks that do not compress."""
    numbers = iter(range(1, 1000))
    writer = ChunkWriter(
        backend,
        ZstdCodec(3),
        executor,
        lambda: next(numbers).to_bytes(16, "big"),
        ChunkKind.DATA,
        frame_bytes=1000,
        pack_bytes=30_000,
        in_flight=4,
    )
    source = random.Random(3)
    try:
        for _ in range(100):
            data = source.randbytes(1000)
            writer.add(HASH(data), data)
        if not abandon:
            return writer.finish()
    finally:
        left = writer.abandon()
    return left


def objects(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class OnlyCreates:
    """A backend whose objects cannot grow."""

    def __init__(self, inner: LocalBackend) -> None:
        self.create = inner.create


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore.packing.RUN_BYTES", 4000)


@pytest.mark.usefixtures("short_runs")
def test_a_pack_written_in_runs_is_the_pack_written_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        runs, ops = backend_in(tmp_path / "runs")
        (tmp_path / "runs").mkdir()
        packs = written(runs, threads)
        at_once, _ = backend_in(tmp_path / "once")
        assert not isinstance(OnlyCreates(at_once), Grows)
        assert written(OnlyCreates(at_once), threads) == packs  # type: ignore[arg-type]
    assert len(packs) == 4
    assert objects(tmp_path / "runs") == objects(tmp_path / "once")
    assert sorted(map(len, objects(tmp_path / "runs").values())) == sorted(pack.size for pack in packs)
    assert sum(effect.op == "write" for effect in ops.trace) > 20


@pytest.mark.usefixtures("short_runs")
def test_the_effects_of_a_pack_that_grows_have_one_order(tmp_path: Path) -> None:
    """Whatever the threads do: crash tests count effects, and no run may be written before the one ahead of it."""
    seen = []
    for number in range(5):
        root = tmp_path / str(number)
        root.mkdir()
        backend, ops = backend_in(root)
        with ThreadPoolExecutor(3) as threads:
            written(backend, threads)
        seen.append([(effect.op, effect.path, effect.target) for effect in ops.trace])
    assert all(effects == seen[0] for effects in seen[1:])
    links = [at for at, (op, _, _) in enumerate(seen[0]) if op == "link"]
    assert len(links) == 4
    for at in links:  # nothing is named before it is durable, all of it
        temp = seen[0][at][1]
        own = [(place, op) for place, (op, path, _) in enumerate(seen[0]) if path == temp and place < at]
        assert own[-1][1] == "fsync"
        assert sum(op == "write" for _, op in own) >= 3


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("nth", [1, 2, 5, 9, 14, 23, 31, 40, 57])
def test_a_run_that_cannot_be_written_fails_the_session_and_leaves_no_file(tmp_path: Path, nth: int) -> None:
    (tmp_path / "s").mkdir()
    backend, ops = backend_in(tmp_path / "s")
    ops.arm(nth, errno.ENOSPC)
    with ThreadPoolExecutor(3) as threads, pytest.raises(BackendError):
        written(backend, threads)
    left = objects(tmp_path / "s")
    assert not [name for name in left if name.startswith("tmp/")]
    (tmp_path / "t").mkdir()
    other, _ = backend_in(tmp_path / "t")
    with ThreadPoolExecutor(3) as threads:
        written(other, threads)
    assert left.items() <= objects(tmp_path / "t").items()  # those that were published are whole


@pytest.mark.usefixtures("short_runs")
def test_what_a_power_cut_leaves_of_packs_that_grow_is_whole_and_those_that_were_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    backend, ops = backend_in(tmp_path / "s")
    with ThreadPoolExecutor(3) as threads:
        written(backend, threads)
    ops.mark("done")
    whole = objects(tmp_path / "s")
    states = 0
    for state in crash_states(ops.trace):
        states += 1
        left = {path: content.data for path, content in state.files.items() if not in_temp(path)}
        assert left.items() <= whole.items()
        assert not state.acked or left == whole
    assert states > 20


@pytest.mark.usefixtures("short_runs")
def test_a_session_that_is_given_up_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    backend, ops = backend_in(tmp_path / "s")
    with ThreadPoolExecutor(3) as threads:
        written(backend, threads, abandon=True)
    assert any(effect.op == "write" for effect in ops.trace)
    assert not [name for name in objects(tmp_path / "s") if name.startswith("tmp/")]


def growing(tmp_path: Path, ops: OsOps | None = None) -> tuple[LocalBackend, Growing]:
    root = tmp_path / "s"
    root.mkdir()
    backend = LocalBackend(root, OsOps() if ops is None else ops)
    return backend, backend.begin("x/1")


def test_an_object_that_lacks_bytes_is_never_published(tmp_path: Path) -> None:
    """Also by one who asks again after an error."""
    (tmp_path / "s").mkdir()
    backend, ops = backend_in(tmp_path / "s")
    grown = backend.begin("packs/00/00")
    grown.write([b"one"])
    ops.arm(2, errno.EIO)  # the sync
    with pytest.raises(BackendError):
        grown.write([b"two"])
    with pytest.raises(BackendError):
        grown.publish([b"three"])
    assert objects(tmp_path / "s") == {}


def test_an_object_that_grew_replaces_none(tmp_path: Path) -> None:
    backend, grown = growing(tmp_path)
    backend.create("x/1", b"first")
    grown.write([b"se", b"co"])
    with pytest.raises(AlreadyExistsError):
        grown.publish([b"nd"])
    grown.discard()
    assert objects(tmp_path / "s") == {"x/1": b"first"}


def test_who_forgets_an_object_that_grows_leaves_a_file_that_is_swept(tmp_path: Path) -> None:
    backend, grown = growing(tmp_path)
    grown.write([b"some"])
    assert backend.sweep_temp(1 << 60) == 0  # somebody is at work on it
    del grown
    assert backend.sweep_temp(1 << 60) == 1


class ByHand(Executor):
    """Does what it is given when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[None], object, tuple[object, ...]]] = []

    def submit(self, work, /, *args, **_):  # type: ignore[no-untyped-def]
        future: Future[None] = Future()
        self.jobs.append((future, work, args))
        return future

    def go(self) -> None:
        future, work, args = self.jobs.pop(0)
        try:
            future.set_result(work(*args))  # type: ignore[operator]
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)


def test_an_outbox_does_one_thing_at_a_time_and_nothing_after_an_error() -> None:
    hand = ByHand()
    outbox = Outbox(hand, 1000)
    done: list[int] = []

    def fail() -> None:
        raise BackendError("no", hint="")

    outbox.add(lambda: done.append(1), 10)
    outbox.add(lambda: done.append(2), 10)
    outbox.add(fail, 10)
    assert len(hand.jobs) == 1
    hand.go()
    assert done == [1]
    outbox.keep_up()
    outbox.add(lambda: done.append(3), 10)
    assert len(hand.jobs) == 1
    hand.go()
    for _ in range(2):
        with pytest.raises(BackendError):
            outbox.finish()
    assert (done, hand.jobs) == ([1, 2], [])
    outbox.abandon()


def test_an_outbox_that_is_given_up_does_not_begin_what_waits() -> None:
    hand = ByHand()
    outbox = Outbox(hand, 1000)
    done: list[int] = []
    outbox.add(lambda: done.append(1), 10)
    outbox.add(lambda: done.append(2), 10)
    outbox.abandon()
    assert hand.jobs[0][0].cancelled()
    outbox.finish()
    assert done == []
