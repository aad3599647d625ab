"""Many readers in one process (FEATURES N9, issue 4): 200 threads on one handle, and threads over several handles."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casstore import Artifact, Store

THREADS = 200
VERSIONS = 5
READERS = 5
COMMITS = 6


def content(number: int) -> dict[str, bytes]:
    return {"same": b"same" * 5000, "own": b"%d" % number * 3000, f"d{number}/file": os.urandom(20_000)}


def fill(store: Store) -> list[dict[str, bytes]]:
    contents = [content(number) for number in range(VERSIONS)]
    for files in contents:
        draft = Artifact("ds")
        for path, data in files.items():
            draft.add_bytes(data, path)
        store.log_artifact(draft)
    return contents


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url, create=True) as opened:
        yield opened


def together(count: int, work: Callable[[int], None]) -> None:
    """Run in so many threads that all begin at once; raises the first error of any."""
    start = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def use(store: Store, contents: list[dict[str, bytes]], number: int, root: Path) -> None:
    """All kinds of reading, of a version that depends on the number."""
    files = contents[number % VERSIONS]
    version = store.get(f"ds:v{number % VERSIONS}")
    assert [entry.path for entry in version.files()] == sorted(files)
    assert {entry.path: entry.read() for entry in version} == files
    path = max(files)
    with version[path].open() as file:
        file.seek(number)
        assert file.read(50) == files[path][number : number + 50]
    version.download(root, path_prefix="own")
    version.checkout(root / "all")
    assert {name: (root / "all" / name).read_bytes() for name in files} == files
    assert version.verify(root / "all") == version.verify() == version.size
    assert (root / "own").read_bytes() == files["own"]


@pytest.mark.timeout(120)
def test_two_hundred_threads_on_one_handle(store: Store, tmp_path: Path) -> None:
    contents = fill(store)
    together(THREADS, lambda number: use(store, contents, number, tmp_path / str(number)))
    assert len(list(store.versions("ds"))) == VERSIONS


@pytest.mark.timeout(120)
def test_two_hundred_threads_inside_a_read_at_once(store: Store, url: str) -> None:
    """Each holds a snapshot of the view while all others do: the table of readers has room for them, and for more."""
    fill(store)
    inside = threading.Barrier(THREADS)

    def hold(number: int) -> None:
        try:
            with store._engine.view.read():
                inside.wait()
        except BaseException:
            inside.abort()  # or all others would wait for ever
            raise

    for _ in range(3):  # what the first round took is given back
        together(THREADS, hold)
    with Store.open(url) as other:
        assert other.get("ds").number == VERSIONS - 1


@pytest.mark.timeout(120)
def test_readers_see_each_commit_while_a_writer_goes_on(store: Store) -> None:
    """Every thread finds what was there when it began, whole, however many versions come meanwhile."""
    contents = fill(store)
    done = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            try:
                for extra in range(COMMITS):
                    draft = Artifact("ds")
                    draft.add_bytes(b"%d" % extra, "extra")
                    store.log_artifact(draft)
            finally:
                done.set()
            return
        seen = 0
        while True:
            last = done.is_set()
            newest = store.get("ds").number
            assert newest >= seen
            seen = newest
            assert store.get("ds:v1")["own"].read() == contents[1]["own"]
            if last:
                assert newest == VERSIONS + COMMITS - 1
                return

    together(READERS + 1, work)


@pytest.mark.timeout(120)
def test_threads_over_several_handles_of_one_process(store: Store, url: str, tmp_path: Path) -> None:
    """Three handles of one store, one of them read-only; each may be closed while the others go on."""
    contents = fill(store)
    with Store.open(url) as second:
        third = Store.open(url, read_only=True)
        handles = [store, second, third]
        together(20, lambda number: use(handles[number % 3], contents, number, tmp_path / str(number)))
        third.close()
        together(20, lambda number: use(handles[number % 2], contents, number, tmp_path / f"again{number}"))
    use(store, contents, 0, tmp_path / "last")
