"""Promises of the batched scan, the restores past the page cache and the fast start that a review found unguarded."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from casstore import Artifact, InvalidPathError, PathConflictError, Runtime, Store, config, filescan, sources
from casstore import tree as tree_module
from casstore.checkout import writing
from casstore.digest import checksum64, seal
from casstore.filebatch import write_new
from casstore.format.filerows import FileRow, Stamp, decode_file, encode_file, in_range
from casstore.format.nodes import encode_entry
from casstore.model import Entry, EntryKind
from casstore.reading import BATCH_BYTES
from casstore.sources import Globs, LocalFile, Scan, Source, local_file
from casstore.statcache import StatCache

LATER = 3600 * 10**6
compiled = pytest.mark.skipif(filescan._native is None, reason="casstore was installed without a C compiler")


def without_c(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(filescan, "_native", None)
    patch.setattr(sources, "_native", None)


@pytest.fixture(params=["C", "Python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Python":
        without_c(monkeypatch)
    elif filescan._native is None:
        pytest.skip("casstore was installed without a C compiler")
    return str(request.param)


def old_files(kind: str = "ext4", unknown: str = "") -> Runtime:
    """A runtime to which no file is young; on a file system of a kind, unknown below a directory."""

    def file_system(path: str) -> str:
        return "" if unknown and str(path).startswith(unknown) else kind

    clock = Runtime().file_clock
    return Runtime(file_clock=lambda: clock() + LATER, file_system=file_system, quiet=lambda _: None)


# --- times that no 64 bits of nanoseconds hold


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seconds", [2**63 // 10**9 + 1, 10_413_792_000, -1])
def test_a_file_of_any_time_is_logged(seconds: int, tmp_path: Path) -> None:
    """Of the year 2300, say. As one of a directory, alone, and too large for a batch."""
    place = tmp_path / "files"
    place.mkdir()
    for name, size in (("small", 10), ("large", BATCH_BYTES + 1)):
        (place / name).write_bytes(os.urandom(1024) * (size // 1024) + bytes(size % 1024))
        os.utime(place / name, ns=(0, seconds * 10**9))
    if os.stat(place / "small").st_mtime_ns != seconds * 10**9:
        pytest.skip("this file system has no such times")
    with Store.create(tmp_path / "store", runtime=old_files()) as store:
        for _ in range(2):
            draft = Artifact("data")
            draft.add_dir(place)
            version = store.log_artifact(draft)
            assert {entry.path: entry.read() for entry in version.files()} == {
                path.name: path.read_bytes() for path in place.iterdir()
            }
            alone = Artifact("alone")
            alone.add_file(place / "small")
            assert store.log_artifact(alone)["small"].read() == (place / "small").read_bytes()


def test_times_out_of_range_are_the_first_or_the_last() -> None:
    assert in_range(-(2**63) - 1) == in_range(-(2**63)) == -(2**63)
    assert in_range(2**63) == in_range(2**63 - 1) == 2**63 - 1
    assert in_range(-(2**63) + 1) == -(2**63) + 1


@compiled
@pytest.mark.parametrize("seconds", [-9_223_372_037, -9_223_372_036, -1, 0, 9_223_372_036, 9_223_372_037])
@pytest.mark.parametrize("rest", [0, 145_224_191, 145_224_192, 854_775_807, 854_775_808, 999_999_999])
def test_a_time_is_in_c_what_it_is_in_python(seconds: int, rest: int) -> None:
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # which has more times than most
    with tempfile.TemporaryDirectory(dir=memory) as place:
        path = Path(place, "f")
        path.touch()
        try:
            os.utime(path, ns=(0, seconds * 10**9 + rest))
        except OSError:
            pytest.skip("this file system has no such times")
        scan = Scan(place, "error", Globs((), ()), allow_outside=False)
        [(_, found)] = scan.run(keep_empty_dirs=False)
        assert found == local_file(str(path))
        assert isinstance(found, LocalFile)
        assert filescan.look_up([found]).marks == [Stamp.of(os.stat(path)).mark]


# --- the stat cache


def test_of_two_file_systems_the_one_is_believed_and_the_other_is_not(tmp_path: Path) -> None:
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is only one file system")
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as other,
        Store.create(tmp_path / "s", runtime=old_files()) as store,
    ):
        files = []
        for directory in (str(tmp_path), other):
            for number in range(3):
                path = Path(directory, f"f{number}")
                path.write_bytes(b"x" * number)
                files.append(path)
        draft = Artifact("data")
        for number, path in enumerate(files):
            draft.add_file(path, f"{number}")
        store.log_artifact(draft)
        view, wanted = store._engine.view, [local_file(str(path)) for path in files]
        assert None not in StatCache(view, old_files()).find(wanted)
        found = StatCache(view, old_files(unknown=other)).find(wanted)
        assert [row is None for row in found] == [False] * 3 + [True] * 3


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("change", [b"more", b"x" * 36, -1])
def test_a_sealed_row_of_another_length_is_none(change: bytes | int) -> None:
    path, mark = b"/a", b"m" * 16
    row = encode_file(path, FileRow(mark, 5, ((b"d" * 32, 7),)))
    body = row[8:change] if isinstance(change, int) else row[8:] + change
    sealed = struct.pack("<Q", checksum64(path + b"\0" + body)) + body
    assert decode_file(path, sealed) is None
    assert filescan.decode_rows([path], [mark], [sealed]) == [None]
    assert filescan.decode_rows([path], [mark], [row]) != [None]


# --- what a scan finds


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["link", "empty directory", "file", "file in a directory"])
@pytest.mark.parametrize("name", ["l\\k", "a\nb", "C:x", os.fsdecode(b"\xff")])
def test_no_name_is_taken_unchecked(kind: str, name: str, tmp_path: Path) -> None:
    place = tmp_path / "t"
    place.mkdir()
    (place / "fine").touch()
    if kind == "link":
        (place / name).symlink_to("fine")
    elif kind == "file":
        (place / name).touch()
    else:
        (place / name).mkdir()
        if kind != "empty directory":
            (place / name / "f").touch()
    draft = Artifact("data")
    with pytest.raises(InvalidPathError):
        draft.add_dir(place, symlinks="store", keep_empty_dirs=True)
    assert not list(draft.files())


def test_a_tree_that_changes_while_it_is_read_makes_no_file_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may tell a name twice if it is renamed meanwhile: as a file, and as a directory with files."""
    file = local_file(__file__)
    twice: list[tuple[str, Source]] = [("d", file), ("d/f", file)]
    monkeypatch.setattr(Scan, "run", lambda self, keep_empty_dirs: twice)
    draft = Artifact("data")
    with pytest.raises(PathConflictError):
        draft.add_dir(tmp_path)
    assert not list(draft.files())
    twice[:] = [("e/f", file), ("e/g/h", file)]
    draft.add_dir(tmp_path)
    with pytest.raises(PathConflictError, match="is a directory"):
        draft.add_bytes(b"", "e/g")
    draft.remove("e")
    draft.add_bytes(b"", "e")  # all of it was counted


# --- leaves


@compiled
@pytest.mark.parametrize("native", [True, False])
def test_a_leaf_of_just_four_times_the_average_is_full(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    average = 64
    entries: list[Entry] = []
    for number in range(17):
        for salt in range(1000):  # a name at which nothing is cut by chance
            entry = Entry(f"{number:04}{salt:04}", size=1)
            if checksum64(entry.path.encode()) & 0xFFFFFFFF >= (16 << 32) // (average - average // 4):
                break
        entries.append(entry)
    assert {len(encode_entry(entry)) for entry in entries} == {average // 4}
    if native:
        leaf = filescan._native.cut_leaf(sources.ENTRY, EntryKind.FILE, entries, 0, average)
        assert len(leaf[0]) == 16
        return
    monkeypatch.setattr(tree_module, "_native", None)
    nodes: list[bytes] = []

    def sink(data: bytes, references: tuple[bytes, ...]) -> bytes:
        nodes.append(data)
        return seal(data)

    tree_module.write_entries(entries, average, sink)
    assert nodes[0].count(b"0015") == 1
    assert b"0016" not in nodes[0]


# --- restores


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as opened:
        yield opened


def test_a_batch_stops_when_the_work_is_called_off(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = Artifact("data")
    for number in range(9):
        draft.add_bytes(b"x%d" % number, f"f{number}")
    version = store.log_artifact(draft)
    groups: list[int] = []
    at_once = writing.Writing._at_once

    class Off:
        """A crew that is closed when two groups were written."""

        @property
        def closed(self) -> bool:
            return groups.count(2) >= 2

    def watched(self: writing.Writing, batch: list[Entry], crew: object) -> bool:
        return at_once(self, batch, cast(Any, Off()))

    def counted(top: int, prefix: str, suffix: str, group: Any) -> int:
        groups.append(len(group))
        return write_new(top, prefix, suffix, group)

    monkeypatch.setattr(writing.Writing, "_at_once", watched)
    monkeypatch.setattr(writing, "write_new", counted)
    monkeypatch.setattr(writing, "TOGETHER", 2)
    monkeypatch.setattr(writing, "GATHER_BYTES", 16)  # two batches, or nobody is asked to help
    version.download(tmp_path / "out")
    assert groups.count(2) == 2  # of the four of the larger batch


def test_memory_is_dear_where_free_pages_are_reported_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "Path", lambda _: tmp_path / "devices")
    dear = config.has_dear_memory.__wrapped__
    assert not dear()  # no such directory
    for number, (kind, features) in enumerate((("0x0001\n", "1" * 64), ("0x0005\n", "0" * 64))):
        device = tmp_path / "devices" / f"virtio{number}"
        device.mkdir(parents=True)
        (device / "device").write_text(kind)
        (device / "features").write_text(features)
    assert not dear()
    told = tmp_path / "devices" / "virtio1" / "features"
    told.write_text("000001" + "0" * 58)
    assert dear()
    told.write_text("111110" + "1" * 58)
    assert not dear()
    told.write_text("")
    assert not dear()


def test_nothing_is_asked_of_the_disk_before_all_else_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "store")
    draft = Artifact("data")
    draft.add_bytes(b"x", "x")
    store.log_artifact(draft)
    engine, calls = store._engine, []
    backend: Any = engine.backend
    while not hasattr(backend, "recall"):
        backend = backend._inner
    for owner, name in ((engine, "_make_durable"), (engine.view, "trim"), (engine.view, "close"), (backend, "recall")):
        real = getattr(owner, name)

        def noted(*args: Any, real: Any = real, name: str = name) -> Any:
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(owner, name, noted, raising=True)
    store.close()
    assert calls[-2:] == ["close", "recall"]
    assert calls.count("recall") == 1


# --- the process of the command line


@pytest.mark.parametrize(
    "program",
    [
        "import json.decoder, json\ntry: json.loads('{')\nexcept json.decoder.JSONDecodeError: pass",
        "from json.decoder import JSONDecodeError\nimport json\nassert json.JSONDecodeError is JSONDecodeError",
        "import json.encoder as e, json\nassert e.JSONEncoder is json.JSONEncoder",
        "import json.scanner, json\njson.scanner.make_scanner",
        "from json import *\nloads('1')",
        "from inspect import *\nsignature(print)",
        "import json, inspect\njson.__file__, json.__all__, inspect.__file__",
        "import pickle, copy, json\nassert pickle.loads(pickle.dumps(copy.deepcopy)) is copy.deepcopy",
        "import importlib, json\nassert importlib.reload(json).loads('1') == 1",
        "import inspect, sys\n[inspect.getmodule(one) for one in (print, inspect.getmodule)]",
        "import unittest.mock, doctest, asyncio, email.message, http.client, xml.dom.minidom",
    ],
)
def test_a_plugin_may_use_any_module_as_ever(program: str) -> None:
    """Handlers of references are code of others in the process of the command line."""
    start = "from casstore.process import import_libraries, postpone\npostpone()\nimport_libraries()\n"
    done = subprocess.run([sys.executable, "-W", "error", "-c", start + program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
