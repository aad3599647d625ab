"""Small files read in one call: the C extension takes what Python would have read, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from casstore import Artifact, InvalidInputError, Store, filescan
from casstore.format.filerows import Stamp, file_key
from casstore.sources import LOCAL_FILE, SIGNATURE, LocalFile, local_file

NOW = time.time_ns
LATER = 3600 * 10**9

pytestmark = pytest.mark.skipif(filescan._native is None, reason="casstore was installed without a C compiler")


@pytest.fixture
def files(tmp_path: Path) -> list[LocalFile]:
    found = []
    for number, size in enumerate((0, 1, 5000, 0, 70_000)):
        path = tmp_path / f"f{number}"
        path.write_bytes(os.urandom(size))
        found.append(local_file(str(path)))
    return found


def read(files: list[LocalFile], before: int | None = None) -> list[bytes | None]:
    buffer = bytearray(100_000)
    marks = filescan.read_unchanged(files, NOW() + LATER if before is None else before, buffer).marks
    ends = list(accumulate(file.signature.size for file in files))
    return [
        None if mark is None else bytes(buffer[end - file.signature.size : end])
        for file, end, mark in zip(files, ends, marks, strict=True)
    ]


def test_all_bytes_and_stamps_are_those_of_the_files(files: list[LocalFile]) -> None:
    assert read(files) == [Path(file.path).read_bytes() for file in files]
    found = filescan.read_unchanged(files, NOW() + LATER, bytearray(100_000))
    assert found == filescan.look_up(files)
    assert found.marks == [Stamp.of(os.stat(file.path)).mark for file in files]
    assert found.keys == [file_key(path) for path in found.paths]
    assert read([]) == []


def test_many_files_of_a_directory_are_read_from_there(tmp_path: Path) -> None:
    files, contents = [], []
    for number in range(64):
        place = tmp_path / f"d{number // 20}" / f"f{number}"
        place.parent.mkdir(exist_ok=True)
        contents.append(os.urandom(number * 20))
        place.write_bytes(contents[-1])
        files.append(local_file(str(place)))
    assert read(files) == contents
    # One that is gone, one in a directory that is another by now, one whose path nobody can have.
    Path(files[5].path).unlink()
    (tmp_path / "d1").rename(tmp_path / "other")
    files[50] = replace(files[50], path=files[50].path + "\0")
    assert read(files) == [None if n == 5 or 20 <= n < 40 or n == 50 else data for n, data in enumerate(contents)]


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _replace(path: Path) -> None:
    info = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.rename(path)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "change", [_grow, _replace, _fifo, _directory, Path.unlink, lambda path: os.utime(path, ns=(0, 0))]
)
def test_a_file_that_is_another_by_now_is_left_out_and_its_neighbours_are_not(
    change: Callable[[Path], object], files: list[LocalFile]
) -> None:
    contents = [Path(file.path).read_bytes() for file in files]
    change(Path(files[2].path))
    assert read(files) == [*contents[:2], None, *contents[3:]]


def test_files_that_were_changed_of_late_are_left_to_the_careful_reader(files: list[LocalFile]) -> None:
    oldest = min(os.stat(file.path).st_ctime_ns for file in files)
    assert read(files, oldest - 1) == [None] * len(files)
    for file in files:
        os.utime(file.path, ns=(0, 0))  # ctime tells
    old = [local_file(file.path) for file in files]
    assert read(old, min(os.stat(file.path).st_ctime_ns for file in files) - 1) == [None] * len(files)
    assert None not in read(old)
    os.utime(files[0].path, ns=(0, NOW() + 10 * LATER))  # an mtime to come
    assert read([local_file(files[0].path)]) == [None]


def test_python_alone_leaves_all_files_to_the_careful_reader(
    files: list[LocalFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = filescan.read_unchanged(files, NOW() + LATER, bytearray(100_000))
    monkeypatch.setattr(filescan, "_native", None)
    assert read(files) == [None] * len(files)
    slow = filescan.read_unchanged(files, NOW() + LATER, bytearray(100_000))
    assert slow == quick._replace(marks=[None] * len(files))


def test_a_version_is_the_same_with_and_without_the_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(600):
        path = tree / f"f{number}"
        path.write_bytes(os.urandom(number * 40))
        os.utime(path, ns=(0, 0))
    digests = []
    for native in (filescan._native, None):
        monkeypatch.setattr(filescan, "_native", native)
        with Store.create(tmp_path / f"store-{native is None}") as store:
            draft = Artifact("data")
            draft.add_dir(tree)
            version = store.log_artifact(draft)
            version.verify()
            digests.append(version.digest)
    assert digests[0] == digests[1]


def test_a_file_that_cannot_be_read_is_told_in_the_words_of_the_careful_reader(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1")
    draft = Artifact("data")
    draft.add_file(path)
    path.unlink()
    with Store.create(tmp_path / "store") as store, pytest.raises(InvalidInputError, match="cannot read"):
        store.log_artifact(draft)


def test_arguments_of_a_wrong_kind_are_refused(files: list[LocalFile]) -> None:
    native = filescan._native
    size = sum(file.signature.size for file in files)
    for wrong in ([1], [()], 7):
        with pytest.raises(TypeError):
            native.read_files(wrong, LOCAL_FILE, SIGNATURE, 0, bytearray(9))
    for much in (-1, 2**62):
        huge = [replace(file, signature=replace(file.signature, size=much)) for file in files]
        with pytest.raises(ValueError, match="size"):
            native.read_files(huge, LOCAL_FILE, SIGNATURE, 0, bytearray(size))
    native.read_files(files, LOCAL_FILE, SIGNATURE, 0, bytearray(size))
    with pytest.raises(ValueError, match="too small"):
        native.read_files(files, LOCAL_FILE, SIGNATURE, 0, bytearray(size - 1))
    with pytest.raises(TypeError):
        native.read_files(files, SIGNATURE, LOCAL_FILE, 0, bytearray(size))
    with pytest.raises(TypeError):
        native.read_files([], LOCAL_FILE, SIGNATURE, 0, b"fixed")
