"""Directories, and the stat cache, many files in one call of C: Python alone finds the same."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore import Artifact, InvalidInputError, InvalidPathError, PathConflictError, Store, filescan, sources
from casstore import tree as tree_module
from casstore.digest import Digest, checksum64, seal
from casstore.format.filerows import FileRow, Stamp, encode_file, file_key
from casstore.format.nodes import encode_entry
from casstore.model import Entry, EntryKind, Pointer
from casstore.names import check_path
from casstore.sources import CHECKOUT_MARKER, Globs, Link, LocalFile, Scan, Source, local_file

pytestmark = pytest.mark.skipif(filescan._native is None, reason="casstore was installed without a C compiler")

NAMES = ("a", "a.txt", "a-b", "a b", "é", "x:y", "tab\t", "back\\slash", "~", "." * 3, "z" * 255, CHECKOUT_MARKER)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Everything a directory may have in it that a log takes, and some of what it does not."""
    top = tmp_path / "tree"
    for directory in (top, top / "d", top / "d" / "ü" / "f", top / "e" / CHECKOUT_MARKER / "g"):
        directory.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(NAMES):
            if not (directory / name).exists():
                (directory / name).write_bytes(bytes(number))
    (top / "empty").mkdir()
    (top / "d" / "in").symlink_to("ü", target_is_directory=True)
    (top / "d" / "to").symlink_to("a")
    (top / "d" / "l\\k").symlink_to("a")
    (top / "d" / "a b").chmod(0o1640)
    return top


def scanned(tree: Path, *, native: bool, symlinks: str = "store", keep_mode: bool = False) -> dict[str, Source]:
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(sources, "_native", None)
        scan = Scan(str(tree), symlinks, Globs((), ()), allow_outside=False, keep_mode=keep_mode)
        found = scan.run(keep_empty_dirs=True)
        for path in dict(found).keys() - set(scan.odd):
            assert check_path(path) == path
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("symlinks", ["skip", "store", "follow"])
@pytest.mark.parametrize("keep_mode", [False, True])
def test_a_scan_finds_what_python_finds(tree: Path, symlinks: str, keep_mode: bool) -> None:
    found = scanned(tree, native=True, symlinks=symlinks, keep_mode=keep_mode)
    assert found == scanned(tree, native=False, symlinks=symlinks, keep_mode=keep_mode)
    assert CHECKOUT_MARKER not in found
    assert f"d/{CHECKOUT_MARKER}" in found
    assert f"e/{CHECKOUT_MARKER}/g/a" in found
    assert ("d/to" in found) is (symlinks != "skip")
    assert isinstance(found.get("d/to"), Link) is (symlinks == "store")
    file = found["d/a b"]
    assert isinstance(file, LocalFile)
    assert replace(local_file(file.path), mode=0o1640 if keep_mode else None) == file


def test_what_a_scan_finds_can_be_used_as_any_other_object(tree: Path) -> None:
    (file,) = [source for path, source in scanned(tree, native=True).items() if path == "a"]
    assert isinstance(file, LocalFile)
    assert repr(file) == repr(local_file(str(tree / "a")))
    assert hash(file) == hash(local_file(str(tree / "a")))
    with pytest.raises(AttributeError):
        file.path = ""  # type: ignore[misc]


def test_names_that_no_path_may_have_are_refused_as_ever(tree: Path) -> None:
    for native in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr(sources, "_native", None)
            with pytest.raises(InvalidPathError):
                Artifact("data").add_dir(tree, symlinks="store")
    deep = tree / "/".join(["n"] * 20)
    deep.mkdir(parents=True)
    (deep / "f").touch()
    scan = Scan(str(tree / "n"), "store", Globs((), ()), allow_outside=False)
    assert [path for path, _ in scan.run(keep_empty_dirs=False)] == scan.odd  # nobody vouches for so deep a path


@pytest.mark.parametrize("kind", ["fifo", "socket", "gone"])
def test_what_is_no_file_is_refused_in_the_words_of_python(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "t"
    place.mkdir()
    (place / "f").touch()
    if kind == "fifo":
        os.mkfifo(place / "odd")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(".", os.O_RDONLY)
            try:
                os.chdir(place)  # the path of a socket is short
                listener.bind("odd")
            finally:
                os.fchdir(here)
                os.close(here)
    words = []
    for native in (sources._native, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "_native", native)
            scan = Scan(str(place), "error", Globs((), ()), allow_outside=False)
            if kind == "gone":
                scan.root = str(place / "gone")
            with pytest.raises(InvalidInputError) as caught:
                scan.run(keep_empty_dirs=False)
        words.append(str(caught.value))
    assert words[0] == words[1]


@pytest.fixture
def files(tree: Path) -> list[LocalFile]:
    found = [source for _, source in sorted(scanned(tree, native=True).items()) if isinstance(source, LocalFile)]
    for number in range(60):  # so many of one directory are looked at from there
        place = tree / f"many{number // 20}" / f"f{number}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bytes(number))
        found.append(local_file(str(place)))
    gone, other = found[3], found[-2]
    found += [
        replace(gone, path=gone.path + "-gone"),
        replace(gone, path=gone.path + "\0b"),
        replace(gone, path="relative"),
    ]
    found += [replace(other, signature=replace(other.signature, **{name: 7})) for name in ("size", "mtime_ns", "inode")]
    found.append(replace(other, signature=replace(other.signature, device=2**64 - 1)))
    found.append(replace(gone, path=os.fsdecode(b"/odd/\xff")))
    found.append(replace(gone, path=str(tree / "d")))
    return found


def both_ways(files: list[LocalFile]) -> tuple[filescan.Looked, filescan.Looked]:
    ours = filescan.look_up(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filescan, "_native", None)
        return ours, filescan.look_up(files)


def test_files_are_looked_up_as_in_python(files: list[LocalFile]) -> None:
    ours, theirs = both_ways(files)
    assert ours == theirs
    assert ours.keys == [file_key(os.fsencode(file.path)) for file in files]
    assert ours.marks[:-9] == [Stamp.of(os.stat(file.path)).mark for file in files[:-9]]
    assert ours.marks[-9:] == [None] * 9


def test_rows_are_read_as_in_python(files: list[LocalFile]) -> None:
    digest = bytes(range(32))
    kinds = [FileRow(b"", 5), FileRow(b"", 2**32 - 1, tree=digest), FileRow(b"", 0, ((digest, 2**32 - 1),))]
    kinds += [FileRow(b"", 7, tuple((digest[:16], n) for n in range(count))) for count in (1, 2, 32)]
    looked = filescan.look_up(files[:-9])
    rows: list[bytes | None] = []
    for number, (path, mark) in enumerate(zip(looked.paths, looked.marks, strict=True)):
        rows.append(encode_file(path, kinds[number % len(kinds)]._replace(mark=mark or b"")))
    expected = [kinds[number % len(kinds)]._replace(mark=mark or b"") for number, mark in enumerate(looked.marks)]
    found = filescan.decode_rows(looked.paths, looked.marks, rows)
    assert found == expected
    assert {type(row) for row in found} == {FileRow}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filescan, "_native", None)
        assert filescan.decode_rows(looked.paths, looked.marks, rows) == expected
    # Of another path, of another stamp, damaged anywhere, cut off: none.
    shifted = [*looked.paths[1:], looked.paths[0]]
    assert filescan.decode_rows(shifted, looked.marks, rows) == [None] * len(rows)
    others: list[bytes | None] = [None if mark is None else mark[::-1] for mark in looked.marks]
    assert filescan.decode_rows(looked.paths, others, rows) == [None] * len(rows)
    assert filescan.decode_rows(looked.paths, [None] * len(rows), rows) == [None] * len(rows)
    path, mark, row = (
        looked.paths[0],
        looked.marks[0],
        encode_file(looked.paths[0], expected[2]._replace(mark=b"m" * 16)),
    )
    assert mark is not None
    marks: list[bytes | None] = [b"m" * 16]
    assert filescan.decode_rows([path], marks, [row]) != [None]
    for at in range(len(row)):
        damaged = row[:at] + bytes([row[at] ^ 1]) + row[at + 1 :]
        assert filescan.decode_rows([path], marks, [damaged]) == [None]
        assert filescan.decode_rows([path], marks, [row[:at]]) == [None]


def test_rows_are_written_as_in_python_and_only_where_they_say_something_new(files: list[LocalFile]) -> None:
    digest = bytes(range(32))
    kinds = [FileRow(b"m" * 16, 9), FileRow(b"n" * 16, 9, tree=digest), FileRow(b"o" * 16, 9, ((digest, 2**32 - 1),))]
    kinds += [FileRow(b"p" * 16, 9, tuple((digest[:16], n) for n in range(count))) for count in (1, 2, 32, 300)]
    paths = filescan.look_up(files).paths[: 12 * len(kinds)]
    rows = (kinds * len(paths))[: len(paths)]
    told = [encode_file(path, row._replace(used=20)) for path, row in zip(paths, rows, strict=True)]

    def both(day: int, old: list[bytes | None], stale: int) -> list[bytes | None]:
        ours = filescan.encode_rows(paths, rows, day, old, stale)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filescan, "_native", None)
            assert filescan.encode_rows(paths, rows, day, old, stale) == ours
        return ours

    nothing: list[bytes | None] = [None] * len(paths)
    there: list[bytes | None] = [*told]
    later = [encode_file(path, row._replace(used=23)) for path, row in zip(paths, rows, strict=True)]
    assert both(20, nothing, 10) == told
    assert both(20, there, 10) == nothing
    assert both(23, there, 19) == nothing
    assert both(23, there, 20) == later  # it is to be seen that they were of use
    assert both(19, there, 10) != nothing  # a day to come is no day
    assert both(23, [*later[1:], later[0]], 10) == later  # of another path, of another content
    for number in range(len(kinds)):
        for at in range(min(len(told[number]), 90)):
            damaged = told[number][:at] + bytes([told[number][at] ^ 1]) + told[number][at + 1 :]
            found = both(23, [*there[:number], damaged, *there[number + 1 :]], 10)
            assert found == [*nothing[:number], later[number], *nothing[number + 1 :]]
        short = told[number][: 8 * number]
        assert both(23, [*there[:number], short, *there[number + 1 :]], 10)[number] == later[number]


def test_rows_of_files_that_were_read_are_those_of_python() -> None:
    marks, counts = [b"a" * 16, b"", b"c" * 16, b"d" * 16], [1, 0, 3, 1]
    digests = [bytes([n]) * 32 for n in range(5)]
    starts, ends = [0, 10, 20, 30, 2**40], [10, 20, 30, 35, 2**40 + 7]
    ours = filescan.file_rows(marks, digests, starts, ends, counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filescan, "_native", None)
        assert filescan.file_rows(marks, digests, starts, ends, counts) == ours
    assert {type(row) for row in ours} == {FileRow}
    assert [row.mark for row in ours] == marks
    assert [[length for _, length in row.chunks] for row in ours] == [[10], [], [10, 10, 5], [7]]
    assert [digest for row in ours for digest, _ in row.chunks] == digests


def test_entries_are_those_of_python(tree: Path) -> None:
    found = scanned(tree, native=True, keep_mode=True)
    files = [(path, source) for path, source in found.items() if isinstance(source, LocalFile)]
    files[0] = (files[0][0], replace(files[0][1], attrs_json=b'{"a":1}'))
    rows: list[FileRow | None] = [FileRow(b"", 0, ((b"d", 1),)), FileRow(b"", 0, tree=b"t"), None]
    rows = (rows * len(files))[: len(files)]
    ours = filescan.file_entries(files, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filescan, "_native", None)
        assert filescan.file_entries(files, rows) == ours
    assert len(ours) == sum(row is not None for row in rows)
    assert repr(ours[files[0][0]]).startswith("Entry(path=")


NUMBERS = st.sampled_from([0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**57])
ENTRIES = st.builds(
    Entry,
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=4).map(lambda text: text * 70)
    | st.integers(1, 300).map(lambda length: "p" * length),
    size=NUMBERS,
    chunks=st.lists(st.tuples(st.binary(min_size=16, max_size=32), NUMBERS), max_size=17).map(tuple),
    tree=st.none() | st.binary(min_size=16, max_size=32),
    mode=st.none() | st.sampled_from([0, 0o644, 0o7777]),
)
ODD = st.sampled_from(
    [
        Entry("l", EntryKind.LINK, target="t"),
        Entry("e", EntryKind.DIRECTORY),
        Entry("a", attrs_json=b'{"a":1}'),
        Entry("r", EntryKind.REFERENCE, None, pointer=Pointer("s3://b/k")),
    ]
)


@settings(deadline=None)
@given(entries=st.lists(ENTRIES | ENTRIES | ODD, max_size=60), average=st.sampled_from([64, 512, 4096]))
def test_a_tree_has_the_nodes_that_python_makes(entries: list[Entry], average: int) -> None:
    made: list[list[tuple[bytes, tuple[bytes, ...]]]] = []
    trees = []
    for native in (tree_module._native, None):
        nodes: list[tuple[bytes, tuple[bytes, ...]]] = []

        def sink(data: bytes, references: tuple[bytes, ...], nodes: list[object] = nodes) -> bytes:  # type: ignore[assignment]
            nodes.append((data, references))
            return seal(data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tree_module, "_native", native)
            patch.setattr(tree_module, "PART", 25)
            trees.append(tree_module.write_entries(entries, average, sink))
        made.append(nodes)
    assert made[0] == made[1]
    assert trees[0] == trees[1]


def test_c_makes_the_leaves_of_plain_files() -> None:
    plain = [Entry(f"d/{number:04}", size=1, chunks=((b"d" * 32, 1),)) for number in range(1000)]
    for count, made in ((15, True), (16, False)):  # the latter has another form
        whole = Entry("e", size=1, chunks=((b"d" * 32, 1),) * count)
        leaf = filescan._native.cut_leaf(sources.ENTRY, EntryKind.FILE, [whole], 0, 64)
        assert leaf == (([encode_entry(whole)], [b"d" * 32] * count, 1) if made else None)
    huge = [Entry(f"d/{number:04}", size=2**63 - 1) for number in range(1000)]
    assert filescan._native.cut_leaf(sources.ENTRY, EntryKind.FILE, huge, 0, 1024) is None
    leaf = filescan._native.cut_leaf(sources.ENTRY, EntryKind.FILE, plain, 0, 1024)
    assert leaf is not None
    items, references, size = leaf
    assert items == [encode_entry(entry) for entry in plain[: len(items)]]
    assert references == [b"d" * 32] * len(items)
    assert size == len(items) < 1000
    assert filescan._native.cut_leaf(sources.ENTRY, EntryKind.FILE, plain[: len(items) - 1], 0, 1024) is None


@given(data=st.binary(max_size=3000))
def test_the_hash_of_rows_is_that_of_python(data: bytes) -> None:
    assert filescan._native.hash64(data) == checksum64(data)


@pytest.mark.parametrize("length", [*range(260), 1023, 1024, 1025, 1088, 1089, 2048, 2049, 4096])
def test_the_hash_is_that_of_python_at_every_length_where_it_changes_its_ways(length: int) -> None:
    data = bytes(number * number % 251 for number in range(length))
    assert filescan._native.hash64(data) == checksum64(data)


def test_what_is_no_file_no_row_and_no_shape_is_refused(files: list[LocalFile]) -> None:
    native = filescan._native
    local, signature = sources.LOCAL_FILE, sources.SIGNATURE
    calls: tuple[Callable[[], object], ...] = (
        lambda: native.look_up([1], local, signature),
        lambda: native.look_up(files, signature, local),
        lambda: native.look_up(files, (LocalFile, (1, 2, 3, 4, 5)), signature),
        lambda: native.look_up([replace(files[0], path=b"a")], local, signature),  # type: ignore[arg-type]
        lambda: native.decode_rows(FileRow, [b""], [], []),
        lambda: native.decode_rows(FileRow, ["a"], [b""], [b""]),
        lambda: native.decode_rows(dict, [], [], []),
        lambda: native.encode_rows([b""], [], 0, [], 0),
        lambda: native.encode_rows([b""], [1], 0, [None], 0),
        lambda: native.encode_rows([""], [FileRow(bytes(16), 0)], 0, [None], 0),
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, [])], 0, [None], 0),  # type: ignore[arg-type]
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, (1,))], 0, [None], 0),  # type: ignore[arg-type]
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, ((b"", ""),))], 0, [None], 0),  # type: ignore[arg-type]
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, ((b"", 0),), 1)], 0, [None], 0),  # type: ignore[arg-type]
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0)], 0, [1], 0),
        lambda: native.file_rows(FileRow, [b""], [], [], [], []),
        lambda: native.file_rows(FileRow, [], [b""], [], [0], []),
        lambda: native.file_rows(dict, [], [], [], [], []),
        lambda: native.file_rows(FileRow, [b""], [b""], ["a"], [0], [1]),
        lambda: native.file_entries(sources.ENTRY, 0, local, signature, [1], [FileRow(b"", 0)]),
        lambda: native.file_entries(sources.ENTRY, 0, local, signature, [("a", files[0])], [1]),
        lambda: native.cut_leaf(sources.ENTRY, 0, (), 0, 1024),
    )
    for call in calls:
        with pytest.raises(TypeError):
            call()
    values: tuple[Callable[[], object], ...] = (
        lambda: native.encode_rows([b""], [FileRow(b"m", 0)], 0, [None], 0),
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0)], 2**32, [None], 0),
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, ((b"", 2**32),))], 0, [None], 0),
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, ((bytes(256), 0),))], 0, [None], 0),
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, ((b"a", 0), (b"", 0)))], 0, [None], 0),
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, tree=bytes(256))], 0, [None], 0),
        lambda: native.encode_rows([b""], [FileRow(bytes(16), 0, ((b"", 0),) * 0xFFFF)], 0, [None], 0),
        lambda: native.file_rows(FileRow, [b""], [b""], [0], [0], [2]),
        lambda: native.file_rows(FileRow, [b""], [b""], [0], [0], [-1]),
    )
    for call in values:
        with pytest.raises(ValueError, match=r"out of range|so many"):
            call()
    with pytest.raises(OverflowError):
        native.look_up([replace(files[0], signature=replace(files[0].signature, inode=-1))], local, signature)


def test_a_version_is_the_same_with_and_without_the_extension(tmp_path: Path) -> None:
    tree = tmp_path / "plain"
    for number in range(200):
        place = tree / f"d{number % 7}" / f"f{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(str(number).encode() * number)
    roots: list[Digest | None] = []
    for native in (filescan._native, None):
        with pytest.MonkeyPatch.context() as patch, Store.create(tmp_path / f"store-{len(roots)}") as store:
            patch.setattr(filescan, "_native", native)
            patch.setattr(sources, "_native", native)
            for _ in range(2):
                artifact = Artifact("data")
                artifact.add_dir(tree)
                roots.append(store.log_artifact(artifact).digest)
    assert len(set(roots)) == 1


def test_a_directory_added_to_the_draft_of_a_version_is_compared_with_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "plain"
    place.mkdir()
    (place / "f").write_bytes(b"one")
    with Store.create(tmp_path / "store") as store:
        artifact = Artifact("data")
        artifact.add_dir(place)
        draft = store.log_artifact(artifact).new_draft()
        (place / "f").write_bytes(b"two")
        with pytest.raises(PathConflictError):
            draft.add_dir(place)
