"""Small files read in one call: the C extension takes what Python would have read, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest

from casstore import Artifact, InvalidInputError, Store, filebatch
from casstore.format.filerows import Stamp
from casstore.sources import LocalFile, local_file

NOW = time.time_ns
LATER = 3600 * 10**9

pytestmark = pytest.mark.skipif(filebatch._native is None, reason="casstore was installed without a C compiler")


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
    stamps = filebatch.read_unchanged(files, NOW() + LATER if before is None else before, buffer)
    ends = list(accumulate(file.signature.size for file in files))
    return [
        None if stamp is None else bytes(buffer[end - file.signature.size : end])
        for file, end, stamp in zip(files, ends, stamps, strict=True)
    ]


def test_all_bytes_and_stamps_are_those_of_the_files(files: list[LocalFile]) -> None:
    assert read(files) == [Path(file.path).read_bytes() for file in files]
    expected = [Stamp.of(os.stat(file.path)) for file in files]
    assert filebatch.read_unchanged(files, NOW() + LATER, bytearray(100_000)) == expected
    assert filebatch.stamps(files) == expected
    assert read([]) == []


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
    found = filebatch.stamps(files)
    assert found[2] is None
    assert None not in found[:2] + found[3:]


def test_files_that_were_changed_of_late_are_left_to_the_careful_reader(files: list[LocalFile]) -> None:
    oldest = min(os.stat(file.path).st_ctime_ns for file in files)
    assert read(files, oldest - 1) == [None] * len(files)
    os.utime(files[0].path, ns=(0, NOW() + 10 * LATER))  # an mtime to come
    assert read([local_file(files[0].path)]) == [None]


def test_python_alone_finds_the_same_stamps(files: list[LocalFile], monkeypatch: pytest.MonkeyPatch) -> None:
    gone = LocalFile(files[0].path + "-gone", files[0].signature)
    odd = LocalFile("a\0b", files[0].signature)
    quick = filebatch.stamps([*files, gone])
    monkeypatch.setattr(filebatch, "_native", None)
    assert filebatch.stamps([*files, gone]) == quick
    assert filebatch.stamps([odd]) == [None]
    assert read(files) == [None] * len(files)


def test_a_version_is_the_same_with_and_without_the_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(600):
        path = tree / f"f{number}"
        path.write_bytes(os.urandom(number * 40))
        os.utime(path, ns=(0, 0))
    digests = []
    for native in (filebatch._native, None):
        monkeypatch.setattr(filebatch, "_native", native)
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


def test_arguments_of_a_wrong_kind_are_refused() -> None:
    native = filebatch._native
    for wrong in ([1], [()], [("text", 0, 0, 0, 0)], [(b"a\0b", 0, 0, 0, 0)], [(b"a", -1, 0, 0, 0)], 7):
        with pytest.raises((TypeError, ValueError)):
            native.stat_files(wrong)
        with pytest.raises((TypeError, ValueError)):
            native.read_files(wrong, 0, bytearray(9))
    with pytest.raises(ValueError, match="size"):
        native.read_files([(b"a", 2**62, 0, 0, 0), (b"b", 2**62, 0, 0, 0)], 0, bytearray(9))
    with pytest.raises(ValueError, match="too small"):
        native.read_files([(b"a", 10, 0, 0, 0)], 0, bytearray(9))
    with pytest.raises(TypeError):
        native.read_files([], 0, b"fixed")
