"""Downloads by several worker threads: the same files, the same errors, and nothing goes on behind the end (G2, G7)."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from casstore import (
    Artifact,
    BackendError,
    ChunkerParams,
    IntegrityError,
    Settings,
    Store,
    StoreConfig,
    Version,
    filebatch,
)
from casstore.checkout import target, writing
from casstore.checkout.crew import Crew
from casstore.checkout.listing import trusted
from casstore.checkout.target import PART, write_at
from casstore.contents import Piece, pieces
from casstore.model import Entry

_random = random.Random(3)
FILES = {f"d{n % 7}/{'e/' * (n % 3)}f{n:03}": _random.randbytes(n * 37 % 3000) for n in range(80)}
LARGE = {"d1/large": _random.randbytes(200_000), "z": bytes(150_000)}
CONTENT = {**FILES, **LARGE}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(writing, "BATCH_BYTES", 16_384)
    monkeypatch.setattr(writing, "GATHER_BYTES", 16_384)
    monkeypatch.setattr(writing, "BATCH_FILES", 4)
    monkeypatch.setattr(writing, "MOST_FILES", 8)
    config = StoreConfig(chunker=ChunkerParams("fastcdc-2020", 256, 1024, 4096), frame_bytes=4096)
    with Store.create(tmp_path / "store", config=config, settings=Settings(workers=3)) as opened:
        yield opened


@pytest.fixture
def version(store: Store) -> Version:
    return log(store, CONTENT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "out"


def log(store: Store, files: dict[str, bytes]) -> Version:
    draft = Artifact("ds")
    for path, data in files.items():
        draft.add_bytes(data, path)
    return store.log_artifact(draft)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rot(store: Store, version: Version, path: str) -> None:
    """Damage the first chunk of a file, and all that is in its frame."""
    entry = version[path]
    digest = entry.chunks[0][0] if entry.chunks else next(iter(store._engine.node(entry.tree or b"").data()))
    [place] = store._engine.view.locate([digest])
    assert place is not None
    pack = next((Path(store.url) / "packs").glob(f"*/{place.pack.hex()}"))
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[place.frame_offset + 16 : place.frame_offset + place.frame_stored] = bytes(place.frame_stored - 16)
    pack.write_bytes(data)


def test_every_file_comes_whole_and_by_several_threads(
    version: Version, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    create = target.Target.create

    def seen(self: target.Target, name: str, directory: int) -> int:
        threads.add(threading.get_ident())
        return create(self, name, directory)

    monkeypatch.setattr(filebatch, "_native", None)  # it creates files itself
    monkeypatch.setattr(target.Target, "create", seen)
    done: list[tuple[int, int]] = []
    report = version.download(root, progress=lambda phase, now, total: done.append((now, total)))
    assert tree(root) == CONTENT
    assert (report.files, report.bytes) == (len(CONTENT), sum(map(len, CONTENT.values())))
    assert done == sorted(done)
    assert done[-1] == (report.bytes, report.bytes)
    assert threads - {threading.get_ident()}


def test_no_descriptor_stays_open(version: Version, root: Path) -> None:
    version.download(root)
    before = len(os.listdir("/proc/self/fd"))
    version.download(root)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_damaged_is_told_in_the_order_of_the_paths(store: Store, version: Version, root: Path) -> None:
    for path in ("z", "d6/f069", "d0/f042", "d1/large"):
        rot(store, version, path)
    with pytest.raises(IntegrityError) as caught:
        version.download(root)
    arrived = tree(root)
    lost = sorted(set(CONTENT) - set(arrived), key=str.encode)
    assert {"z", "d6/f069", "d0/f042", "d1/large"} <= set(lost)
    assert all(CONTENT[path] == data for path, data in arrived.items())
    assert len(arrived) > len(CONTENT) // 2
    assert caught.value.path == lost[0]
    assert ", ".join(lost[1:6]) in caught.value.message


@pytest.mark.parametrize("call", ["write", "pwritev", "rename"])
def test_a_disk_error_in_a_worker_is_ours_and_ends_all_of_it(
    call: str, version: Version, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = getattr(os, call)
    count = itertools.count()

    def fail(*args: Any, **options: Any) -> Any:
        if next(count) >= 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **options)

    monkeypatch.setattr(filebatch, "_native", None)  # test_filewriting.py has its errors
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BackendError) as caught:
        version.download(root)
    assert caught.value.errno == errno.EIO
    left = tree(root)
    assert not [path for path in left if PART in path]
    assert all(CONTENT[path] == data for path, data in left.items())


def test_a_checkout_puts_beside_what_has_no_place_yet(store: Store, root: Path) -> None:
    """Files are where directories must be, and the other way round; the threads agree on what is beside."""
    other = {
        **{f"d{n}": b"a file now" for n in range(5)},
        **{f"d{n}/e/f{m:03}": b"%d" % m for n in (5, 6) for m in range(30)},
        **{f"z/{n % 3}/{n}": b"%d" % n for n in range(60)},
    }
    first, second = log(store, CONTENT), log(store, other)
    first.checkout(root)
    second.checkout(root)
    assert {path: data for path, data in tree(root).items() if path != ".casstore-checkout"} == other
    first.checkout(root)
    assert {path: data for path, data in tree(root).items() if path != ".casstore-checkout"} == CONTENT


def test_a_list_that_lies_about_lengths_gives_no_file(
    version: Version, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places in a large file come from the lengths that the list of its chunks says."""

    def lying(engine: Any, entry: Any) -> Iterator[Piece]:
        for number, (at, digest, length) in enumerate(pieces(engine, entry)):
            yield at, digest, length + (number == 3) - (number == 4)

    monkeypatch.setattr(writing, "pieces", lying)
    with pytest.raises(IntegrityError, match="bytes, not"):
        version.download(root, path_prefix="d1/large")
    assert tree(root) == {}


def test_an_entry_that_lies_about_its_size_gives_no_file_and_spares_the_others(
    version: Version, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(found: Any, listing: Any) -> Iterator[Entry]:
        for entry in trusted(found, listing):
            yield replace(entry, size=entry.length + 1) if entry.path == "d3/f024" else entry

    monkeypatch.setattr(writing, "trusted", lying)
    with pytest.raises(IntegrityError, match="bytes, not") as caught:
        version.download(root)
    assert caught.value.path == "d3/f024"
    assert tree(root) == {path: data for path, data in CONTENT.items() if path != "d3/f024"}


def test_all_is_written_however_little_a_call_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: real(fd, [views[0][:7]], at))
    blocks = [b"", *(bytes([n % 256]) * (n % 20) for n in range(1500)), b""]
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        write_at(fd, blocks, 5)
    finally:
        os.close(fd)
    assert (tmp_path / "x").read_bytes() == bytes(5) + b"".join(blocks)


# --- the crew


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as opened:
        yield opened


def test_results_come_in_order(pool: ThreadPoolExecutor) -> None:
    late = threading.Event()
    with Crew[int](lambda: pool, 2) as crew:
        assert bool(crew.idle)
        found = crew.give(lambda: 0 if late.wait(10) else -1)
        found += crew.give(lambda: 1)
        assert bool(crew.idle) is False
        late.set()
        for n in range(2, 9):
            found += crew.give(partial(int, n))
        found += crew.rest()
        assert bool(crew.idle)
    assert found == list(range(9))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_behind_the_end_no_job_runs_or_begins(pool: ThreadPoolExecutor, kind: type[BaseException]) -> None:
    begun = threading.Event()
    ended: list[int] = []
    later: list[int] = []
    crew = Crew[None](lambda: pool, 9)
    raised: BaseException | None = None

    def job() -> None:
        begun.set()
        while not crew.closed:
            os.sched_yield()
        ended.append(1)

    try:
        with crew:
            crew.give(job)
            crew.give(job)
            for _ in range(5):
                crew.give(partial(later.append, 1))
            begun.wait(10)
            raise kind
    except kind as error:
        raised = error
    assert raised is not None
    assert (len(ended) >= 1, later, crew.closed) == (True, [], True)
    count = len(ended)
    pool.shutdown(wait=True)
    assert (len(ended), later) == (count, [])


def test_the_error_of_a_job_is_raised(pool: ThreadPoolExecutor) -> None:
    def bad() -> int:
        raise OSError(errno.EIO, "bad")

    with pytest.raises(OSError, match="bad"), Crew[int](lambda: pool, 1) as crew:
        crew.give(bad)
        crew.rest()
