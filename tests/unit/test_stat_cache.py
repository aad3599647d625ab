"""The stat cache (FEATURES Q3, A8): a file that did not change is not opened again, and one that did always is.

Guards DESIGN §9 (inode, ctime, size and a racy window) and principle 2: what the cache says is a hint that can be lost,
damaged or out of date at any moment and costs a reading then, never a wrong byte.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore import (
    Artifact,
    BackendError,
    InvalidInputError,
    Store,
    StoreConfig,
    Version,
    filescan,
    reading,
)
from casstore.cli import main
from casstore.config import ChunkerParams, Runtime, Settings, file_system_of, system_micros
from casstore.format.filerows import FILES, FileRow, Stamp, decode_file, encode_file, file_key
from casstore.index import IndexDamagedError, MemoryIndex
from casstore.model import Entry, Quarantine
from casstore.overlay import Tables
from casstore.sources import LocalFile, open_local
from casstore.statcache import KEEPS_CTIME, MARGIN_NS, STALE_DAYS, StatCache, Watch
from casstore.state import NODE, TABLES, state_hash
from casstore.writer import Writer

SMALL = StoreConfig(chunker=ChunkerParams(minimum=64, average=256, maximum=1024), frame_bytes=1024, node_bytes=512)
TUNING = Settings(workers=1, index_map_bytes=1 << 20)
LATER = 10_000_000
"""µs: by a clock that much ahead every file is old enough"""
_random = random.Random(23)
LONG = _random.randbytes(30_000)
"""about 100 chunks: they do not fit into an entry"""


@dataclass
class Opened:
    """Files below a directory that were opened, as often as they were."""

    root: Path
    paths: list[str] = field(default_factory=list)

    def take(self) -> list[str]:
        """Since the last time this was asked."""
        found, self.paths = sorted(self.paths), []
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"alpha")
    (root / "empty").write_bytes(b"")
    (root / "long").write_bytes(LONG)
    (root / "sub" / "b").write_bytes(_random.randbytes(3000))
    return root


ALL = ["a", "empty", "long", "sub/b"]


@pytest.fixture
def opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    seen = Opened(tree)
    real = os.open

    def watching(path: str, *rest: object, **options: object) -> int:
        if isinstance(path, str | Path) and Path(path).is_relative_to(tree) and not os.path.isdir(path):
            seen.paths.append(str(Path(path).relative_to(tree)))
        return real(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", watching)
    watch_batches(monkeypatch, lambda path: seen.paths.append(str(Path(path).relative_to(tree))))
    return seen


def watch_batches(patch: pytest.MonkeyPatch, note: Callable[[str], object]) -> None:
    """Tell of each file that is read among many, by the C extension."""
    if filescan._native is None:
        return
    real = filescan._native.read_files

    def watching(*args: object) -> tuple[list[bytes], list[bytes], list[bytes | None]]:
        paths, keys, marks = real(*args)
        for path, mark in zip(paths, marks, strict=True):
            if mark is not None:  # the others are opened again, one by one
                note(os.fsdecode(path))
        return paths, keys, marks

    patch.setattr(filescan._native, "read_files", watching)


def runtime(ahead: int = LATER, kind: str = "ext4") -> Runtime:
    return Runtime(file_clock=lambda: system_micros() + ahead, file_system=lambda _: kind, quiet=lambda _: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", config=SMALL, settings=TUNING, runtime=runtime()) as opened:
        yield opened


def again(store: Store, run: Runtime | None = None) -> Store:
    """Another handle on the same store."""
    return Store.open(store.url, settings=TUNING, runtime=runtime() if run is None else run)


def draft(tree: Path, *, trust_mtime: bool = True, keep_mode: bool = False) -> Artifact:
    artifact = Artifact("data")
    artifact.add_dir(tree, trust_mtime=trust_mtime, keep_mode=keep_mode)
    return artifact


def log(store: Store, tree: Path, *, trust_mtime: bool = True) -> Version:
    return store.log_artifact(draft(tree, trust_mtime=trust_mtime))


def contents(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def assert_is(version: Version, tree: Path) -> None:
    """A version has what is in a directory, and all of it can be read."""
    assert {entry.path: entry.read() for entry in version.files()} == contents(tree)


def rows(store: Store) -> int:
    with store._engine.view.read() as tables:
        return tables.count(FILES)


def later(path: Path, edit: Callable[[], object]) -> None:
    """Edit a file until its ctime is another: the kernel's clock has ticks."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        edit()


# --- what is not read


def test_nothing_of_an_unchanged_tree_of_1000_files_is_opened(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(1000):
        path = tree / f"d{number % 10}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 100)
    seen: list[str] = []

    def open_and_tell(source: LocalFile) -> BinaryIO:
        seen.append(source.path)
        return open_local(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "open_local", open_and_tell)
        watch_batches(patch, seen.append)
        with Store.create(tmp_path / "store", settings=TUNING, runtime=runtime()) as store:
            first = log(store, tree)
            assert len(seen) == 1000
        seen.clear()
        # As another process would: with a handle of its own.
        with again(store) as store:
            second = log(store, tree)
            assert (second.created, second.digest, second.version) == (False, first.digest, "v0")
            assert seen == []
            (tree / "d3" / "f3").write_bytes(b"other")
            third = log(store, tree)
            assert seen == [str(tree / "d3" / "f3")]
            assert third.created
            assert_is(third, tree)


def test_reading_unchanged_files_again_writes_nothing_till_their_rows_are_stale(store: Store, tree: Path) -> None:
    log(store, tree)
    changes: list[int] = []

    def read_again(day: int) -> None:
        micros = 86_400 * 1_000_000
        world = replace(runtime(), file_clock=lambda: system_micros() + LATER + day * micros)
        changes.clear()
        with again(store, world) as other, pytest.MonkeyPatch.context() as patch:
            real = other._engine.view.note

            def note(body: Callable[[Tables], object]) -> object:
                changes.append(day)
                return real(body)

            patch.setattr(other._engine.view, "note", note)
            assert_is(log(other, tree, trust_mtime=False), tree)

    read_again(0)
    assert not changes
    read_again(STALE_DAYS - 1)
    assert not changes
    read_again(STALE_DAYS + 1)
    assert changes
    read_again(STALE_DAYS + 1)
    assert not changes
    later(tree / "a", lambda: (tree / "a").write_bytes(b"other"))
    read_again(STALE_DAYS + 1)
    assert changes


def test_files_of_every_length_are_remembered_in_every_kind_of_store(tree: Path, opened: Opened) -> None:
    for url in ("memory://stat-cache", tree.parent / "other"):
        with Store.create(url, config=SMALL, settings=TUNING, runtime=runtime()) as store:
            first = log(store, tree)
            assert opened.take() == ALL
            assert log(store, tree).digest == first.digest
            assert opened.take() == []
            alone = Artifact("alone")
            alone.add_file(tree / "long", "x/y")
            version = store.log_artifact(alone)
            assert version["x/y"].read() == LONG
            assert opened.take() == []


def test_progress_ends_at_the_total_whatever_was_read(store: Store, tree: Path) -> None:
    for change in (b"", b"changed"):
        (tree / "a").write_bytes(change)
        told: list[tuple[int, int]] = []
        store.log_artifact(draft(tree), progress=lambda _, done, total: told.append((done, total)))  # noqa: B023
        size = sum(map(len, contents(tree).values()))
        assert told[-1] == (size, size)


def test_another_process_reads_nothing_either(store: Store, tree: Path, opened: Opened) -> None:
    script = f"""
import json, os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from casstore import Artifact, Store, filescan, reading
from casstore.config import Runtime, system_micros
filescan._native = None
seen, real = [], reading.open_local
reading.open_local = lambda source: (seen.append(source.path), real(source))[1]
world = Runtime(file_clock=lambda: system_micros() + {LATER}, file_system=lambda _: "ext4")
with Store.open({store.url!r}, runtime=world) as store:
    artifact = Artifact("data")
    artifact.add_dir({str(tree)!r})
    version = store.log_artifact(artifact)
print(json.dumps([str(version.digest), len(seen)]))
"""

    def elsewhere() -> list[object]:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        found: list[object] = json.loads(done.stdout)
        return found

    digest, read = elsewhere()
    assert read == len(ALL)
    mine = log(store, tree)
    assert (str(mine.digest), opened.take()) == (digest, [])
    later(tree / "a", lambda: (tree / "a").write_bytes(b"ALPHA"))
    mine = log(store, tree)
    assert opened.take() == ["a"]
    assert elsewhere() == [str(mine.digest), 0]


def test_the_mode_is_that_of_the_file_now_not_of_the_cache(store: Store, tree: Path, opened: Opened) -> None:
    (tree / "a").chmod(0o640)
    plain = log(store, tree)
    opened.take()
    kept = store.log_artifact(draft(tree, keep_mode=True))
    assert opened.take() == []
    assert (plain["a"].mode, kept["a"].mode) == (None, 0o640)
    later(tree / "a", lambda: (tree / "a").chmod(0o600))
    assert store.log_artifact(draft(tree, keep_mode=True))["a"].mode == 0o600


# --- what is read


def same_time(path: Path, data: bytes) -> None:
    """Overwrite, and set the mtime back."""
    info = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def rename_over(path: Path, data: bytes) -> None:
    """Put another file of the same size and mtime in its place."""
    info, other = path.stat(), path.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.rename(path)


def link_to(path: Path, data: bytes) -> None:
    """Put a symbolic link to a file of the same size and mtime in its place."""
    info, other = path.stat(), path.parent.parent / "elsewhere"
    other.write_bytes(data)
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("edit", [same_time, rename_over, link_to])
def test_other_content_of_the_same_size_and_mtime_is_read(
    edit: Callable[[Path, bytes], None], store: Store, tree: Path, opened: Opened
) -> None:
    log(store, tree)
    opened.take()
    path = tree / "a"
    before = path.stat()
    later(path, lambda: edit(path, b"OMEGA"))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    artifact = Artifact("data")
    artifact.add_dir(tree, symlinks="follow", allow_outside=True)
    version = store.log_artifact(artifact)
    assert opened.take() == ["a"]
    assert version["a"].read() == b"OMEGA"


def test_a_stamp_is_what_the_file_system_says(tree: Path) -> None:
    info = (tree / "long").stat()
    expected = Stamp(30_000, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev)
    assert Stamp.of(info) == expected


@pytest.mark.parametrize("field_", ["size", "mtime_ns", "ctime_ns", "inode", "device"])
def test_each_part_of_the_stamp_counts(
    field_: str, store: Store, tree: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(store, tree)
    opened.take()
    real = Stamp.of
    odd = lambda info: real(info)._replace(**{field_: getattr(real(info), field_) + 1})  # noqa: E731
    monkeypatch.setattr(Stamp, "of", odd)
    monkeypatch.setattr(filescan, "_native", None)  # it makes stamps of its own
    log(store, tree)
    assert opened.take() == ALL


def settled(info: os.stat_result, opened: int) -> Stamp | None:
    return Watch(replace(runtime(), file_clock=lambda: opened)).settled(info)


def test_a_file_that_is_young_when_it_is_read_is_not_remembered(tmp_path: Path, tree: Path, opened: Opened) -> None:
    os.utime(tree / "a", ns=(0, 0))
    info = (tree / "a").stat()
    at = info.st_ctime_ns + MARGIN_NS
    assert settled(info, -(-at // 1000)) == Stamp.of(info)
    assert settled(info, -(-at // 1000) - 1) is None
    os.utime(tree / "a", ns=(0, info.st_ctime_ns + 3600 * 10**9))  # an mtime to come
    assert settled((tree / "a").stat(), -(-at // 1000) + 10**6) is None
    # By this machine's own clock all of them have been written just now.
    with Store.create(tmp_path / "store", config=SMALL, settings=TUNING, runtime=runtime(0)) as store:
        log(store, tree)
        assert rows(store) == 0
        opened.take()
        log(store, tree)
        assert opened.take() == ALL


@pytest.mark.parametrize("kind", ["tmpfs", "vfat", "squashfs", "nfs4", "fuse.sshfs", ""])
def test_file_systems_that_do_not_keep_ctime_are_not_believed(
    kind: str, store: Store, tree: Path, opened: Opened
) -> None:
    with again(store, runtime(kind=kind)) as unsure:
        log(unsure, tree)
        assert rows(store) == 0
        log(store, tree)
        assert rows(store) == len(ALL)
        opened.take()
        log(unsure, tree)  # nor is what another handle has remembered when something else was mounted there
        assert opened.take() == ALL


def test_the_type_of_a_file_system_is_that_of_the_innermost_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = (
        "/dev/a / ext4 rw 0 0\n"
        "none /data tmpfs rw 0 0\n"
        "/dev/b /data/with\\040blank\\134 xfs rw 0 0\n"
        "/dev/c /data/with\\040blank\\134 vfat rw 0 0\n"
        "/dev/d /database btrfs rw 0 0\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: mounts)
    monkeypatch.setattr(os.path, "realpath", str)
    expected = {
        "/x": "ext4",
        "/data/x": "tmpfs",
        "/data/with blank\\/x": "vfat",  # mounted over the one before
        "/database/x": "btrfs",
        "/datab": "ext4",
    }
    assert {path: file_system_of(path) for path in expected} == expected


def test_without_trust_all_is_read_and_remembered_anew(store: Store, tree: Path, opened: Opened) -> None:
    version = log(store, tree)
    forge(store, tree / "a", tree / "sub/b")
    assert log(store, tree)["a"].size == 5  # a forged row, so that one sees who is asked
    opened.take()
    artifact = draft(tree)
    artifact.add_dir(tree / "sub", "sub", trust_mtime=False)  # said later, it holds for what is there already
    store.log_artifact(artifact)
    assert opened.take() == ["sub/b"]
    assert log(store, tree, trust_mtime=False).digest == version.digest
    assert opened.take() == ALL
    assert log(store, tree).digest == version.digest
    assert opened.take() == []
    alone = Artifact("alone")
    alone.add_file(tree / "a", trust_mtime=False)
    store.log_artifact(alone)
    assert opened.take() == ["a"]


def forge(store: Store, path: Path, other: Path) -> None:
    """Make the cache say that a file has the content of another."""

    def body(tables: Tables) -> None:
        mine, theirs = (os.fsencode(str(p)) for p in (path, other))
        old = decode_file(mine, tables.get(FILES, file_key(mine)) or b"")
        new = decode_file(theirs, tables.get(FILES, file_key(theirs)) or b"")
        assert old is not None
        assert new is not None
        row = encode_file(mine, FileRow(old.mark, old.used, new.chunks[:1], new.tree))
        assert row is not None
        tables.put(FILES, file_key(mine), row)

    store._engine.view.update(body)


def test_put_rescan_reads_everything(
    tree: Path, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casstore.config.system_micros", lambda: system_micros() + LATER)
    monkeypatch.setattr("casstore.config.file_system_of", lambda _: "ext4")
    Store.create(tmp_path / "store").close()

    def put(*words: str) -> list[str]:
        result = CliRunner().invoke(main, ["--store", str(tmp_path / "store"), "put", *words, "--name", "ds"])
        assert result.exit_code == 0, result.output
        return opened.take()

    assert put(str(tree)) == ALL
    assert put(str(tree)) == []
    assert put(str(tree), "--rescan") == ALL
    assert put(str(tree / "a"), "--rescan") == ["a"]


# --- between adding and logging


def test_a_mode_or_a_link_that_changed_since_a_file_was_added_is_no_error(
    store: Store, tree: Path, opened: Opened
) -> None:
    log(store, tree)
    artifact = draft(tree)
    opened.take()
    later(tree / "a", lambda: (tree / "a").chmod(0o600))
    later(tree / "sub" / "b", lambda: link_and_unlink(tree / "sub" / "b"))
    version = store.log_artifact(artifact)
    assert opened.take() == ["a", "sub/b"]  # only the bytes tell that it was no edit
    assert not version.created


def link_and_unlink(path: Path) -> None:
    os.link(path, path.with_name("c"))
    path.with_name("c").unlink()


@pytest.mark.parametrize("edit", ["write", "remove", "replace"])
def test_a_file_that_changed_since_it_was_added_is_refused_as_without_a_cache(
    edit: str, store: Store, tree: Path
) -> None:
    log(store, tree)
    artifact = draft(tree)
    path = tree / "a"
    if edit == "write":
        path.write_bytes(b"longer than before")
    else:
        path.unlink()
    if edit == "replace":
        path.mkdir()
    with pytest.raises(InvalidInputError):
        store.log_artifact(artifact)


def test_a_file_that_is_another_than_the_one_added_is_refused_though_it_is_remembered(store: Store, tree: Path) -> None:
    link, other = tree.parent / "link", tree.parent / "other"
    other.mkdir()
    (other / "a").write_bytes(b"another")
    link.symlink_to(tree)
    log(store, link)
    link.unlink()
    link.symlink_to(other)
    artifact = draft(link)
    link.unlink()
    link.symlink_to(tree)
    with pytest.raises(InvalidInputError):
        store.log_artifact(artifact)


# --- what the store has lost meanwhile


def collect(store: Store) -> None:
    for version in store.versions("data"):
        version.delete(delete_aliases=True)
    store.trash.empty()
    store.gc(grace=0, offline=True)


def test_what_was_collected_is_read_again(store: Store, tree: Path, opened: Opened) -> None:
    log(store, tree)
    collect(store)
    opened.take()
    version = log(store, tree)
    assert opened.take() == [path for path in ALL if path != "empty"]
    version.verify()
    assert_is(version, tree)


def test_what_is_collected_between_the_look_and_the_commit_is_read_again(
    store: Store, tree: Path, opened: Opened
) -> None:
    log(store, tree)
    (tree / "new").write_bytes(b"new")  # so that there is something to commit
    opened.take()
    looked: list[str] = []

    def meanwhile(phase: str, done: int, total: int) -> None:
        if not looked:
            looked.extend(opened.take())
            with again(store) as other:
                for version in other.versions("data"):
                    version.delete(delete_aliases=True)
                other.trash.empty()
                other.gc(grace=0, max_waste=0)

    version = store.log_artifact(draft(tree), progress=meanwhile)
    assert set(looked) <= {"new"}
    assert sorted({*looked, *opened.take()}) == ["a", "long", "new", "sub/b"]
    version.verify()
    assert_is(version, tree)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("path", ["a", "long"])
def test_damaged_content_is_read_again_and_healed(
    path: str, when: str, store: Store, tree: Path, opened: Opened
) -> None:
    first = log(store, tree)
    engine = store._engine
    entry = first[path]
    digest = (
        engine.hash((tree / path).read_bytes())
        if not entry.tree
        else engine.node(leaf(store, entry.tree)).chunks[-1][0]
    )
    (tree / "new").write_bytes(b"new")
    opened.take()
    done: list[object] = []

    def damage(*_: object) -> None:
        if not done:
            done.append(True)
            place = engine.view.locate([digest])[0]
            assert place is not None
            engine.commit(lambda _: [Quarantine(digest, place.pack)])

    if when == "before":
        damage()
    version = store.log_artifact(draft(tree), progress=damage)
    assert opened.take() == sorted(["new", path])
    assert engine.view.lost(digest) is None
    version.verify()
    assert_is(version, tree)


def test_only_what_is_there_and_sound_is_claimed(store: Store, tree: Path) -> None:
    """The commit looks again at each claim; but a claim that is known not to hold is not made."""
    first = log(store, tree)
    engine = store._engine
    root = first["long"].tree
    assert root is not None
    short, inner, absent = first["a"].chunks[0][0], engine.node(leaf(store, root)).chunks[-1][0], bytes(32)

    def claimed() -> list[bool]:
        writer = Writer(engine)
        contents = [((), None), ((short,), None), ((short, absent), None), ((), root), ((), short), ((), absent)]
        try:
            found = writer.claim_files(contents)
            assert [writer.has(digest) for digest in (short, root, absent)] == [found[1], found[3], False]
            return found
        finally:
            writer.abandon()

    assert claimed() == [True, True, False, True, False, False]
    for digest, expected in ((inner, [True, True, False, False, False, False]), (short, [True, *[False] * 5])):
        place = engine.view.locate([digest])[0]
        assert place is not None
        engine.commit(lambda _: [Quarantine(digest, place.pack)])  # noqa: B023 - called at once
        assert claimed() == expected


def test_bytes_of_a_node_that_is_none_any_more_are_not_claimed(store: Store, tree: Path) -> None:
    version = log(store, tree)
    root = bytes.fromhex(str(version.digest).partition(":")[2])
    store._engine.view.update(lambda tables: tables.delete(NODE, root))
    writer = Writer(store._engine)
    try:
        assert writer.claim_files([((root,), None), ((), root)]) == [False, False]
    finally:
        writer.abandon()


def leaf(store: Store, root: bytes) -> bytes:
    node = store._engine.node(root)
    return root if node.level == 0 else leaf(store, node.children[0].digest)


# --- the cache itself


def test_damaged_rows_are_none(store: Store, tree: Path, opened: Opened) -> None:
    first = log(store, tree)
    keys = {path: file_key(os.fsencode(str(tree / path))) for path in ALL}

    def damage(tables: Tables) -> None:
        found = {path: tables.get(FILES, key) or b"" for path, key in keys.items()}
        tables.put(FILES, keys["a"], found["long"])  # that of another
        tables.put(FILES, keys["empty"], b"")
        tables.put(FILES, keys["long"], found["long"][:-1])
        tables.put(FILES, keys["sub/b"], found["sub/b"][:60] + b"?" + found["sub/b"][61:])

    store._engine.view.update(damage)
    opened.take()
    assert log(store, tree).digest == first.digest
    assert opened.take() == ALL
    assert log(store, tree).digest == first.digest
    assert opened.take() == []


@given(data=st.binary(max_size=300))
def test_no_bytes_make_a_row_that_was_not_written(data: bytes) -> None:
    assert decode_file(b"/a/b", data) is None


@given(
    chunks=st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(1, 2**31)), max_size=40),
    tree=st.none() | st.binary(min_size=16, max_size=32),
    used=st.integers(0, 2**31),
    times=st.tuples(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62)),
)
def test_a_row_is_read_as_it_was_written_and_for_its_path_alone(
    chunks: list[tuple[bytes, int]], tree: bytes | None, used: int, times: tuple[int, int]
) -> None:
    row = FileRow(Stamp(5, *times, 7, 2**63).mark, used, () if tree else tuple(chunks), tree)
    data = encode_file(b"/a/b", row)
    assert decode_file(b"/a/b", data) == row
    assert decode_file(b"/a/c", data) is None
    assert row.mark != Stamp(5, times[0], times[1] + 1, 7, 2**63).mark


def test_a_view_made_again_remembers_nothing_and_is_the_same_state(store: Store, tree: Path, opened: Opened) -> None:
    version = log(store, tree)
    with store._engine.view.read() as tables:
        before = state_hash(tables)
    store._engine.view.rebuild()
    with store._engine.view.read() as tables:
        assert state_hash(tables) == before
    assert rows(store) == 0
    opened.take()
    assert log(store, tree).digest == version.digest
    assert opened.take() == ALL
    with store._engine.view.read() as tables:
        assert state_hash(tables) == before


@pytest.mark.parametrize("error", [BackendError("full"), IndexDamagedError("damaged")])
def test_a_cache_that_cannot_be_written_or_read_is_no_error(
    error: Exception, store: Store, tree: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store._engine.view, "note", broken)
        first = log(store, tree)
        assert rows(store) == 0
    log(store, tree)
    opened.take()
    with monkeypatch.context() as patch:
        patch.setattr("casstore.statcache._rows_at", broken)
        assert log(store, tree).digest == first.digest
        assert opened.take() == ALL
    assert log(store, tree).digest == first.digest
    assert opened.take() == []


def test_an_index_without_the_table_makes_files_be_read(store: Store, tree: Path) -> None:
    engine = store._engine
    engine.view._storage.close()
    engine.view._storage = MemoryIndex(TABLES)
    engine.view.refresh()
    log(store, tree)
    version = log(store, tree)
    assert not version.created
    assert_is(version, tree)


def test_another_store_remembers_for_itself(store: Store, tree: Path, opened: Opened) -> None:
    log(store, tree)
    opened.take()
    with Store.create(tree.parent / "second", config=SMALL, settings=TUNING, runtime=runtime()) as second:
        assert_is(log(second, tree), tree)
    assert sorted({*opened.take()}) == ALL


def test_a_log_that_fails_leaves_no_rows_that_do_harm(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StatCache.__init__, "__kwdefaults__", {"rows": 100, "batch": 1})  # written while it reads
    with monkeypatch.context() as patch:
        patch.setattr("casstore.writer.Writer.commit", lambda *_: (_ for _ in ()).throw(BackendError("no")))
        with pytest.raises(BackendError):
            log(store, tree)
    assert rows(store) == len(ALL)
    version = log(store, tree)
    version.verify()
    assert_is(version, tree)


class Days:
    """Handles of the cache on different days, with room for 32 rows; and four directories with ten files each."""

    def __init__(self, store: Store, place: Path) -> None:
        self.view = store._engine.view
        self.sources: list[list[LocalFile]] = []
        for number in range(4):
            directory = place / "many" / str(number)
            directory.mkdir(parents=True)
            for name in "0123456789":
                (directory / name).write_bytes(b"x")
            self.sources.append([source for _, source in draft(directory).changes() if isinstance(source, LocalFile)])

    def on(self, day: int) -> StatCache:
        micros = 86_400 * 1_000_000
        return StatCache(
            self.view, replace(runtime(), file_clock=lambda: system_micros() + day * micros), rows=32, batch=4
        )

    def learn(self, day: int, which: int) -> None:
        cache = self.on(day)
        for source in self.sources[which]:
            cache.learn(source, Stamp.of(os.stat(source.path)), Entry("x"))
        cache.flush()

    def use(self, day: int, which: int) -> int:
        """How many files of a directory are known."""
        cache = self.on(day)
        found = cache.find(self.sources[which])
        cache.flush()
        return sum(row is not None for row in found)

    def peek(self) -> list[int]:
        return [sum(row is not None for row in self.on(0).find(sources)) for sources in self.sources]


def test_rows_are_bounded_and_what_is_of_no_use_goes_first(store: Store, tmp_path: Path) -> None:
    days = Days(store, tmp_path)
    days.learn(1, 0)
    days.learn(2, 1)
    days.learn(3, 2)
    assert days.use(1 + STALE_DAYS, 0) == 10  # so these are not old any more
    days.learn(2 + 2 * STALE_DAYS, 3)  # those of day 2 are, and those of day 3 are not yet
    assert days.peek() == [10, 0, 10, 10]
    assert rows(store) <= 32


def test_what_may_be_in_use_stays_when_there_is_no_room(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = Days(store, tmp_path)
    for which in range(4):
        days.learn(1, which)
    assert days.peek() == [10, 10, 10, 1]
    assert rows(store) <= 32
    days.learn(2, 3)
    assert days.peek() == [10, 10, 10, 1]
    with monkeypatch.context() as patch:  # nor is there another pass over all rows, before it can be of use
        patch.setattr(StatCache, "_parts", None)
        days.learn(2 * STALE_DAYS, 3)
    days.learn(1 + 2 * STALE_DAYS, 3)
    assert days.peek() == [0, 0, 0, 10]


# --- any history of edits


@dataclass
class Disk:
    """A directory on a file system with a clock of its own, whose time stamps are cut to ``grain`` ns."""

    root: Path
    grain: int
    now: int = 1_700_000_000_000_000_000
    times: dict[int, tuple[int, int]] = field(default_factory=dict)
    """by inode: mtime and ctime"""

    def stamp(self, info: os.stat_result) -> Stamp:
        mtime, ctime = self.times[info.st_ino]
        return Stamp(info.st_size, mtime - mtime % self.grain, ctime - ctime % self.grain, info.st_ino, info.st_dev)

    def touched(self, path: Path, *, content: bool = True) -> None:
        inode = path.stat().st_ino
        self.times[inode] = (self.now if content else self.times[inode][0], self.now)

    def write(self, path: Path, data: bytes) -> None:
        fresh = not path.exists()
        with path.open("wb" if fresh else "r+b") as file:
            file.write(data)
            file.truncate()
        self.touched(path)


EDITS = ("append", "overwrite", "restored", "rename", "extend", "touch", "chmod", "link", "swap", "recreate", "delete")


def change(disk: Disk, edit: str, path: Path, other: Path, seed: int) -> None:
    """One edit, as the kernel would put it down."""
    rng = random.Random(seed)
    if not path.exists():
        disk.write(path, rng.randbytes(rng.choice([0, 5, 300, 20_000])))
        return
    data = path.read_bytes()
    same = rng.randbytes(len(data))
    inode = path.stat().st_ino
    match edit:
        case "append":
            disk.write(path, data + rng.randbytes(9))
        case "overwrite":
            disk.write(path, same)
        case "restored":
            mtime = disk.times[inode][0]
            disk.write(path, same)
            disk.times[inode] = (mtime, disk.now)
        case "rename":
            fresh = path.with_name("fresh")
            disk.write(fresh, same)
            disk.times[fresh.stat().st_ino] = (disk.times[inode][0], disk.now)
            fresh.rename(path)
        case "extend":
            disk.write(path, b"")
            disk.write(path, same)
        case "touch":
            disk.touched(path)
        case "chmod":
            disk.touched(path, content=False)
        case "link":
            if path != other:
                other.unlink(missing_ok=True)
                os.link(path, other)
                disk.touched(path, content=False)
        case "swap":
            if other.exists() and path != other:
                fresh = path.with_name("fresh")
                path.rename(fresh)
                other.rename(path)
                fresh.rename(other)
                disk.touched(path, content=False)
                disk.touched(other, content=False)
        case "recreate":
            path.unlink()
            disk.write(path, same)
        case "delete":
            path.unlink()


_numbers = itertools.count()
NAMES = ("p", "q", "r")
STEP = st.tuples(
    st.sampled_from([*EDITS, "log", "log", "log", "collect"]),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.integers(0, 2**20),
    st.sampled_from([0, 1_000_000, 900_000_000, 2_000_000_000, 5_000_000_000]),
)


def nowhere() -> str:
    """A memory store that there was not before."""
    return f"memory://stat-cache-{next(_numbers)}"


def play(grain: int, steps: list[tuple[str, str, str, int, int]], margin: int = MARGIN_NS) -> int:
    """Edit and log; compares each version with that of a store that knows nothing. How many files were not read."""
    saved = 0
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        disk = Disk(Path(place) / "tree", grain)
        disk.root.mkdir()
        patch.setattr(Stamp, "of", disk.stamp)
        patch.setattr("casstore.statcache.MARGIN_NS", margin)
        patch.setattr(filescan, "_native", None)  # it would see the times of the real file system
        seen: list[str] = []

        def open_and_tell(source: LocalFile) -> BinaryIO:
            seen.append(source.path)
            return open_local(source)

        patch.setattr(reading, "open_local", open_and_tell)
        world = Runtime(file_clock=lambda: disk.now // 1000, file_system=lambda _: "ext4", quiet=lambda _: None)
        with Store.create(nowhere(), config=SMALL, settings=TUNING, runtime=world) as store:
            for kind, name, other, seed, pause in [*steps, ("log", "p", "q", 0, 0)]:
                disk.now += pause
                if kind == "log":
                    seen.clear()
                    version = log(store, disk.root)
                    saved += version.file_count - len(seen)
                    with Store.create(nowhere(), config=SMALL, settings=TUNING) as fresh:
                        expected = log(fresh, disk.root).digest
                    assert version.digest == expected, "a version has not what the files had"
                elif kind == "collect":
                    with suppress(Exception):
                        collect(store)
                else:
                    change(disk, kind, disk.root / name, disk.root / other, seed)
            if version.file_count:
                assert_is(version, disk.root)
    return saved


@pytest.mark.parametrize("grain", [1, 4_000_000, 1_000_000_000, 2_000_000_000])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, max_size=25))
def test_whatever_happens_to_files_a_version_has_what_they_had(
    grain: int, steps: list[tuple[str, str, str, int, int]]
) -> None:
    play(grain, steps)


IN_ONE_GRAIN = [
    ("recreate", "p", "q", 5, 0),
    ("log", "p", "q", 0, 1_500_000_000),
    ("restored", "p", "q", 6, 400_000_000),
    ("log", "p", "q", 0, 5_000_000_000),
]
"""written, logged, edited, all in the same two seconds; and logged again"""


def test_coarse_time_stamps_are_why_there_is_a_margin() -> None:
    for margin in (0, 1_000_000_000):
        with pytest.raises(AssertionError, match="has not what the files had"):
            play(2_000_000_000, IN_ONE_GRAIN, margin)
    play(2_000_000_000, IN_ONE_GRAIN)


def test_the_histories_above_do_use_the_cache() -> None:
    steps = [("recreate", "p", "q", 5, 0), ("log", "p", "q", 0, 5_000_000_000), ("log", "p", "q", 0, 0)]
    assert play(2_000_000_000, steps) == 2


def test_an_edit_while_a_file_is_read_is_not_missed_by_the_next_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path / "tree", 1_000_000_000)
    disk.root.mkdir()
    path = disk.root / "p"
    disk.write(path, b"before")
    disk.now += 60 * 10**9
    monkeypatch.setattr(Stamp, "of", disk.stamp)
    info = path.stat()

    def open_and_edit(source: LocalFile) -> BinaryIO:
        file = open_local(source)
        assert file.read() == b"before"
        file.seek(0)
        with path.open("r+b") as writer:
            writer.write(b"BEFORE")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        disk.times[info.st_ino] = (disk.times[info.st_ino][0], disk.now)
        monkeypatch.setattr(reading, "open_local", open_local)
        return file

    monkeypatch.setattr(reading, "open_local", open_and_edit)
    world = Runtime(file_clock=lambda: disk.now // 1000, file_system=lambda _: "ext4", quiet=lambda _: None)
    with Store.create(tmp_path / "store", config=SMALL, settings=TUNING, runtime=world) as store:
        log(store, disk.root)
        assert rows(store) == 0
        disk.now += 60 * 10**9
        assert log(store, disk.root)["p"].read() == b"BEFORE"


def test_what_is_believed_is_said() -> None:
    assert {"ext4", "xfs", "btrfs", "overlay"} <= KEEPS_CTIME
    assert not KEEPS_CTIME & {"tmpfs", "vfat", "nfs", "nfs4", "squashfs", "fuseblk"}


# --- files nobody can write to


def by_lease() -> Runtime:
    return Runtime(file_system=lambda _: "ext4")


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A tree that was written just now, but not in this tick of the kernel's clock."""
    tree = tmp_path / "fresh"
    tree.mkdir()
    for number in range(20):
        (tree / f"f{number}").write_bytes(b"%d" % number * 999)
    (tree / "long").write_bytes(random.Random(1).randbytes(9_000_000))
    while time.clock_gettime_ns(5) <= max(path.stat().st_ctime_ns for path in tree.iterdir()):
        time.sleep(0.001)
    with open(tree / "f0", "rb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            pytest.skip("the kernel gives no leases here, so files have to be some seconds old")
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return tree


class Seen(list[str]):
    def take(self) -> set[str]:
        """Names of the files that were opened since the last time."""
        names, self[:] = set(self), []
        return names


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    names = Seen()

    def open_and_tell(source: LocalFile) -> BinaryIO:
        names.append(os.path.basename(source.path))
        return open_local(source)

    monkeypatch.setattr(reading, "open_local", open_and_tell)
    return names


@pytest.fixture
def young(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "young", runtime=by_lease()) as store:
        yield store


def test_what_was_written_just_now_is_remembered_if_nobody_can_write_to_it(
    young: Store, fresh: Path, seen: Seen
) -> None:
    first = log(young, fresh)
    assert len(seen.take()) == 21
    assert not log(young, fresh).created
    assert seen.take() == set()
    info = (fresh / "f7").stat()
    (fresh / "f7").write_bytes(b"8" * 999)
    os.utime(fresh / "f7", ns=(info.st_atime_ns, info.st_mtime_ns))
    second = log(young, fresh)
    assert seen.take() == {"f7"}
    assert second.digest != first.digest
    assert_is(second, fresh)


@pytest.mark.parametrize("how", ["file", "mapping"])
@pytest.mark.parametrize("name", ["f3", "long"])
def test_what_somebody_may_be_writing_is_not_remembered(
    young: Store, fresh: Path, seen: Seen, how: str, name: str
) -> None:
    with open(fresh / name, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0) if how == "mapping" else None
        if mapping is not None:
            file.close()
        log(young, fresh)
        seen.take()
        log(young, fresh)
        assert seen.take() == {name}
        if mapping is not None:
            mapping[0:1] = b"#"
            mapping.close()
    version = log(young, fresh)
    assert_is(version, fresh)


def test_times_that_are_cut_to_seconds_are_not_believed_at_once(
    young: Store, fresh: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Stamp.of

    def coarse(info: os.stat_result) -> Stamp:
        stamp = real(info)
        return stamp._replace(ctime_ns=stamp.ctime_ns // 10**9 * 10**9)

    monkeypatch.setattr(Stamp, "of", coarse)
    log(young, fresh)
    seen.take()
    log(young, fresh)
    assert len(seen.take()) == 21


def test_a_change_in_the_tick_of_the_recording_would_not_show(fresh: Path) -> None:
    """So a file whose ctime is of the tick in which nobody was writing is not remembered, and one before it is."""
    path = fresh / "f1"
    info = path.stat()
    for since, wanted in ((info.st_ctime_ns, None), (info.st_ctime_ns + 1, Stamp.of(info))):
        watch = Watch(replace(by_lease(), quiet=lambda _, since=since: since))  # type: ignore[misc]
        with open(path, "rb") as file:
            watch.begin(file.fileno())
        assert watch.settled(info) == wanted


def test_who_breaks_a_lease_does_not_end_the_process(fresh: Path) -> None:
    script = f"""
import fcntl, subprocess, sys, time
from casstore import config
real, opener = fcntl.fcntl, []
def slow(fd, command, argument=0):
    done = real(fd, command, argument)
    if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
        opener.append(subprocess.Popen([sys.executable, "-c", "open({str(fresh / "f2")!r}, 'r+b')"]))
        while opener[0].poll() is None and real(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
            time.sleep(0.01)
        assert opener[0].poll() is None
    return done
config.fcntl.fcntl = slow
with open({str(fresh / "f2")!r}, "rb") as file:
    assert config.unwritten_at(file.fileno()) is not None
assert opener[0].wait() == 0
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_a_change_in_the_tick_of_the_reading_is_seen(young: Store, fresh: Path) -> None:
    """Written, logged and written again as fast as can be, with size and mtime as they were."""
    path = fresh / "f1"
    for number in range(60):
        path.write_bytes(b"%03d" % number * 333)
        os.utime(path, ns=(0, 0))
        version = log(young, fresh)
        assert version["f1"].read() == b"%03d" % number * 333


def test_a_writer_that_comes_in_between_hurts_nobody(young: Store, fresh: Path) -> None:
    """A lease that is broken sends a signal, which by default would end the process."""
    script = f"""
import os, time
end = time.monotonic() + 1.5
number = 0
while time.monotonic() < end:
    number += 1
    fd = os.open({str(fresh / "f2")!r}, os.O_WRONLY)
    os.pwrite(fd, b"%09d" % number * 111, 0)
    os.utime(fd, ns=(0, 0))
    os.close(fd)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as writer:
        logs = 0
        while writer.poll() is None:
            with suppress(InvalidInputError):  # it changed while it was read
                log(young, fresh)
            logs += 1
    assert writer.returncode == 0
    assert logs > 5
    assert_is(log(young, fresh), fresh)
