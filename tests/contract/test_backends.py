"""Every backend does what `casstore.backend.Backend` promises."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casstore.backend import Backend
from casstore.backend.local import LocalBackend
from casstore.backend.memory import MemoryBackend
from casstore.backend.osops import OsOps
from casstore.backend.wrap import CountingBackend, ReadOnlyBackend
from casstore.errors import (
    AlreadyExistsError,
    BackendError,
    InvalidInputError,
    ReadOnlyError,
    TransientBackendError,
)
from casstore.testing.contract import BackendContract
from casstore.testing.faulty import Fault, FaultyBackend
from casstore.testing.record import RecordingOps


class TestLocal(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        store = LocalBackend(tmp_path / "store", OsOps())
        store.create("first", b"")
        store.delete("first")
        return store

    @pytest.fixture(autouse=True)
    def _leave_nothing_behind(self, tmp_path: Path) -> Iterator[None]:
        yield
        assert not [*(tmp_path / "store" / "tmp").iterdir()]


class TestLocalRecorded(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        (tmp_path / "store").mkdir()
        return LocalBackend(tmp_path / "store", RecordingOps(tmp_path))


class TestMemory(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend()


class TestCounting(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return CountingBackend(MemoryBackend())


class TestFaultyWithoutFaults(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return FaultyBackend(MemoryBackend())


# ---------------------------------------------------------------- what wrappers add


def test_a_read_only_backend_changes_nothing() -> None:
    inner = MemoryBackend()
    inner.create("a", b"x")
    backend = ReadOnlyBackend(inner)
    with pytest.raises(ReadOnlyError):
        backend.create("b", b"")
    for key in ("a", "b"):
        with pytest.raises(ReadOnlyError):
            backend.delete(key)
    with pytest.raises(InvalidInputError):
        backend.create("/", b"")
    backend.barrier("")
    assert backend.read("a", offset=0, length=1) == b"x"
    assert [backend.stat("a")] == list(backend.list("")) == list(inner.list(""))


def test_a_counting_backend_counts() -> None:
    backend = CountingBackend(MemoryBackend())
    backend.create("a", [b"12", memoryview(b"345")])
    backend.create("b", b"6")
    with pytest.raises(AlreadyExistsError):
        backend.create("a", b"not counted as moved")
    backend.read("a", offset=1, length=2)
    backend.stat("a")
    assert len(list(backend.list(""))) == 2
    next(backend.list(""))
    backend.delete("a")
    backend.barrier("")
    assert backend.calls == {"create": 3, "read": 1, "stat": 1, "list": 2, "delete": 1, "barrier": 1}
    assert backend.moved == {"create": 6, "read": 2, "list": 3}
    backend.reset()
    assert not backend.calls
    assert not backend.moved


def test_memory_objects_are_dated_by_the_clock() -> None:
    ticks = iter((7, 9))
    backend = MemoryBackend(lambda: next(ticks))
    backend.create("a", b"")
    backend.create("b", b"")
    assert [info.modified for info in backend.list("")] == [7, 9]


@pytest.mark.parametrize("after", [False, True])
def test_a_faulty_create(after: bool) -> None:
    inner = MemoryBackend()
    backend = FaultyBackend(inner, Fault("create", nth=2, times=2, after=after))
    backend.create("a", b"")
    for key in ("b", "c"):
        with pytest.raises(TransientBackendError):
            backend.create(key, b"")
    backend.create("d", b"")
    assert [info.key for info in inner.list("")] == (["a", "b", "c", "d"] if after else ["a", "d"])
    assert backend.failed == [("create", "b"), ("create", "c")]


def test_other_faults() -> None:
    backend = FaultyBackend(MemoryBackend())
    for key in "abc":
        backend.create(key, key.encode())
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: backend.read("a"),
        "stat": lambda: backend.stat("a"),
        "delete": lambda: backend.delete("a"),
        "barrier": lambda: backend.barrier(""),
        "list": lambda: list(backend.list("")),
    }
    for verb, call in calls.items():
        backend.fail_next(verb, error=lambda: BackendError("on purpose"))
        with pytest.raises(BackendError, match="on purpose"):
            call()
        call()
    with pytest.raises(ValueError, match="verb"):
        Fault("append")


@pytest.mark.parametrize("items", [0, 1, 2, 3, 9])
def test_a_faulty_listing_never_ends_early(items: int) -> None:
    backend = FaultyBackend(MemoryBackend(), Fault("list", items=items))
    for key in "abc":
        backend.create(key, b"")
    seen = []
    with pytest.raises(TransientBackendError):
        for info in backend.list(""):
            seen.append(info.key)  # noqa: PERF401
    assert seen == ["a", "b", "c"][:items]
