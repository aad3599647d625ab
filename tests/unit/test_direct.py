"""Large files, written past the page cache: the same bytes, whatever the system makes of it (G2, G7)."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore import Artifact, BackendError, ChunkerParams, IntegrityError, Settings, Store, StoreConfig, Version
from casstore.checkout import direct, writing
from casstore.checkout.direct import BLOCK, DirectFile
from casstore.chunks import Spare
from casstore.contents import Piece, pieces

_random = random.Random(11)
DATA = _random.randbytes(BLOCK * 40 + 1234)

Clock = Callable[[], float]


def still() -> float:
    return 0.0


def write(path: Path, ends: list[int], monotonic: Clock = still) -> bool:
    """Write DATA in sheets that end there, in some order; whether it went past the page cache to the end."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        file = DirectFile(fd, Spare(1), monotonic)
        runs = list(itertools.pairwise([0, *ends, len(DATA)]))
        _random.shuffle(runs)
        past = file.direct
        for start, end in runs:
            sheet = file.sheet(start, end - start)
            with sheet.view as view:
                view[:] = DATA[start:end]
            file.write(sheet)
            past = past and file.direct
        file.finish()
        assert not file.direct
    finally:
        os.close(fd)
    return past


@pytest.mark.parametrize("cached", [False, True], ids=["direct", "a file system that cannot"])
def test_sheets_may_begin_and_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    if cached:
        monkeypatch.setattr(direct, "_DIRECT", 0)
    for number in range(40):
        # Some within one block, some in several, and some at its ends.
        ends = sorted({_random.choice((_random.randrange(len(DATA)), BLOCK * _random.randrange(40))) for _ in range(9)})
        write(tmp_path / str(number), ends)
        assert (tmp_path / str(number)).read_bytes() == DATA


def test_what_is_refused_goes_by_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where blocks are larger than ours."""
    real = os.pwrite
    refused = 0

    def pwrite(fd: int, view: memoryview, at: int) -> int:
        nonlocal refused
        if at % (2 * BLOCK) and not refused:
            refused += 1
            raise OSError(errno.EINVAL, "no")
        return real(fd, view, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(direct, "_DIRECT", os.O_CLOEXEC)  # a flag that any file system takes
    assert not write(tmp_path / "x", [BLOCK * 5, BLOCK * 20 + 7])
    assert refused == 1
    assert (tmp_path / "x").read_bytes() == DATA


def test_all_is_written_however_little_a_call_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: real(fd, bytes(view[:1000]), at))
    monkeypatch.setattr(direct, "_DIRECT", os.O_CLOEXEC)
    write(tmp_path / "x", [5000, 70_001])
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize(("seconds", "past"), [(0.001, True), (10.0, False)], ids=["quick", "slow"])
def test_a_slow_disk_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, past: bool
) -> None:
    monkeypatch.setattr(direct, "TRIAL_BYTES", 4 * BLOCK)
    monkeypatch.setattr(direct, "LEAST_RATE", 1_000_000)
    monkeypatch.setattr(direct, "_DIRECT", os.O_CLOEXEC)
    clock = itertools.count(0.0, seconds)
    assert write(tmp_path / "x", [BLOCK * n for n in range(1, 40)], lambda: next(clock)) is past
    assert (tmp_path / "x").read_bytes() == DATA


def test_any_other_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def full(fd: int, view: memoryview, at: int) -> int:
        calls.append(at)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        write(tmp_path / "x", [])
    assert calls == [0]


# --- downloads

CONTENT = {
    "a/large": _random.randbytes(600_000) + bytes(50_000) + _random.randbytes(1),
    "a/text": b"".join(b"line %d\n" % (n * n) for n in range(60_000)),
    "small": b"1",
    "z/large": b"".join((n % 977).to_bytes(4, "little") for n in range(200_000)),
}


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Version]:
    monkeypatch.setattr(writing, "BATCH_BYTES", 16_384)
    monkeypatch.setattr(writing, "DIRECT_BYTES", 16_384)
    monkeypatch.setattr(writing, "DIRECT_WINDOW", 100_000)
    config = StoreConfig(chunker=ChunkerParams("fastcdc-2020", 1024, 4096, 16_384), frame_bytes=32_768)
    with Store.create(tmp_path / "store", config=config, settings=Settings(workers=3)) as store:
        draft = Artifact("ds")
        for path, data in CONTENT.items():
            draft.add_bytes(data, path)
        yield store.log_artifact(draft)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_large_files_come_whole(version: Version, tmp_path: Path) -> None:
    done: list[int] = []
    report = version.download(tmp_path / "out", progress=lambda phase, now, total: done.append(now))
    assert tree(tmp_path / "out") == CONTENT
    assert report.bytes == sum(map(len, CONTENT.values())) == done[-1]
    assert done == sorted(done)


def test_no_descriptor_or_thread_stays(version: Version, tmp_path: Path) -> None:
    version.download(tmp_path / "out")
    before = len(os.listdir("/proc/self/fd"))
    version.download(tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("casstore-disk")]


def test_a_disk_that_is_full_leaves_nothing(version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    calls = itertools.count()

    def pwrite(fd: int, view: memoryview, at: int) -> int:
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, view, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(BackendError, match="full"):
        version.download(tmp_path / "out", path_prefix="a/large")
    assert tree(tmp_path / "out") == {}


def test_a_damaged_chunk_gives_no_file_and_spares_the_others(version: Version, tmp_path: Path) -> None:
    entry = version["a/text"]
    digest = entry.chunks[-1][0] if entry.chunks else list(version._engine.node(entry.tree or b"").data())[-1]
    [place] = version._engine.view.locate([digest])
    assert place is not None
    [pack] = (tmp_path / "store" / "packs").glob(f"*/{place.pack.hex()}")
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[place.frame_offset + place.frame_stored // 2] ^= 1
    pack.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        version.download(tmp_path / "out")
    assert caught.value.path == "a/text"
    assert tree(tmp_path / "out") == {path: data for path, data in CONTENT.items() if path != "a/text"}


def test_a_list_that_lies_about_lengths_gives_no_file(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places in the file come from the lengths that the list of its chunks says."""

    def lying(engine: Any, entry: Any) -> Iterator[Piece]:
        for number, (at, digest, length) in enumerate(pieces(engine, entry)):
            yield at, digest, length + (number == 3) - (number == 4)

    monkeypatch.setattr(writing, "pieces", lying)
    with pytest.raises(IntegrityError, match="bytes, not"):
        version.download(tmp_path / "out", path_prefix="a/large")
    assert tree(tmp_path / "out") == {}


def test_a_list_that_leaves_chunks_out_gives_no_file(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its length from the start, so what is missing would be zeros."""
    monkeypatch.setattr(writing, "pieces", lambda engine, entry: itertools.islice(pieces(engine, entry), 5))
    with pytest.raises(IntegrityError, match="bytes, not"):
        version.download(tmp_path / "out", path_prefix="a/large")
    assert tree(tmp_path / "out") == {}
