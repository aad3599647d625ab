"""The twenty defects seen in the reference implementations (FEATURES §R): none of them can happen here.

The name of a test says its row: ``test_r07_…`` is row 7.
"""

from __future__ import annotations

import gc as memory
import os
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Self

import pytest
from click.testing import CliRunner

from casstore import (
    AliasGuardError,
    Artifact,
    ArtifactFinalizedError,
    CollectionNotFoundError,
    IntegrityError,
    InvalidInputError,
    InvalidPathError,
    InvalidSizeError,
    LimitError,
    PathConflictError,
    RefusedError,
    Runtime,
    Settings,
    Store,
    VerificationError,
    Version,
    VersionNotFoundError,
)
from casstore.cli import main
from casstore.cli.values import parse_size
from casstore.errors import ReferenceChangedError, ReferenceMissingError
from casstore.sources import LocalFile, open_local
from casstore.testing.checks import check_no_garbage, read_files
from casstore.testing.clock import Clock
from casstore.testing.recipes import SMALL
from casstore.testing.snapshot import snapshot

BLOB = random.Random(1).randbytes(150_000)
OTHER = random.Random(2).randbytes(60_000)
TUNING = Settings(workers=2, index_map_bytes=1 << 20)
NEVER_OLD = timedelta(days=3650)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    with Store.create(path, config=SMALL, settings=TUNING, runtime=Runtime(clock=clock)) as opened:
        yield opened


def again(path: Path, clock: Clock) -> Store:
    """Another handle on the store, as another process would have."""
    return Store.open(path, settings=TUNING, runtime=Runtime(clock=clock))


def draft(files: dict[str, bytes], name: str = "c") -> Artifact:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return artifact


def log(store: Store, files: dict[str, bytes], name: str = "c", **how: object) -> Version:
    return store.log_artifact(draft(files, name), **how)  # type: ignore[arg-type]


def erase(store: Store, ref: str) -> None:
    store.delete(ref, delete_aliases=True)
    store.trash.purge(ref)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def shell(path: Path, *words: str) -> tuple[int, str]:
    """A command and how it ended; whether it succeeds or not, never with a traceback."""
    result = CliRunner().invoke(main, list(words), env={"CASSTORE_URL": str(path)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


# --- 1: two contents, one digest


def test_r01_two_contents_never_share_a_digest(store: Store) -> None:
    """Row 1: W&B hashed ``path:digest\\n`` lines unescaped, so a file named like two lines was a two-file artifact."""
    two = log(store, {"aa": b"1", "bb": b"2"}, "two")
    named = str(two["aa"].digest)
    with pytest.raises(InvalidPathError):  # the line end their collision needs
        draft({f"aa:{named}\nbb": b"2"}, "one")
    pieces = [{"aa": b"1"}, {"aab": b"1"}, {"aa": b"1b"}, {"a": b"a1"}, {"aaa:": b"1"}, {"aaa": b":1"}, {"a/a": b"1"}]
    pieces += [{f"aa:{named}": b"2"}, {f"aa:{named}bb": b"2"}, {"aa": b"2", "bb": b"1"}, {"aa": b"1", "bb": b""}, {}]
    pieces += [{"a": b"", "b": b""}, {"a": b""}, {"ab": b""}, {"aa": b"12"}, {"aa1bb": b"2"}]
    logged = [two, *(log(store, files, f"p{number}") for number, files in enumerate(pieces))]
    assert len({v.digest for v in logged}) == len(logged)
    for version, files in zip(logged[1:], pieces, strict=True):
        assert read_files(version) == files
        assert log(store, files, version.collection, dedup="any").version == "v0"


def test_r01_kinds_sizes_and_modes_are_covered_by_the_digest(store: Store, tmp_path: Path) -> None:
    """Row 1, second half: there, neither the kind nor the size of an entry was covered."""
    digests = set()
    ways: list[Callable[[Path], object]] = [
        lambda p: p.write_bytes(b""),
        lambda p: p.mkdir(),
        lambda p: p.symlink_to("y"),
        lambda p: p.symlink_to("z"),
        lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY, 0o755)),
        lambda p: p.write_bytes(b"y"),
    ]
    for number, make in enumerate(ways):
        source = tmp_path / f"s{number}"
        source.mkdir()
        make(source / "x")
        artifact = Artifact(f"k{number}")
        artifact.add_dir(source, symlinks="store", keep_empty_dirs=True, keep_mode=number == 4)
        digests.add(store.log_artifact(artifact).digest)
    assert len(digests) == 6


# --- 2: sizes


BAD_SIZES = [
    "10M",
    "1e3MB",
    "1.5GB",
    "-1GB",
    "1 GB",
    "1gb",
    "1K",
    "1",
    "",
    "B",
    "GiB",
    "1GiBs",
    "0x10B",
    "١GB",
    "1GB\n",
]


def test_r02_a_unit_means_what_it_says() -> None:
    """Row 2: ``cache cleanup 1GiB`` read 1 byte, ``10M`` ten, and deleted everything."""
    assert parse_size("1GiB") == 1 << 30
    assert parse_size("1GB") == 10**9
    assert [parse_size(f"3{u}") for u in ("B", "kB", "MB", "TB", "KiB", "MiB", "TiB")] == [
        3 * n for n in (1, 10**3, 10**6, 10**12, 1 << 10, 1 << 20, 1 << 40)
    ]
    for text in BAD_SIZES:
        with pytest.raises(InvalidSizeError):
            parse_size(text)


@pytest.mark.parametrize(
    "command",
    [("gc", "--grace", "0", "--max-bytes"), ("ballast", "--"), ("policy", "set", "--copy-bytes"), ("quota", "--")],
)
def test_r02_a_size_that_is_unclear_removes_nothing(path: Path, store: Store, command: tuple[str, ...]) -> None:
    """Row 2: what is no integer with a unit is an error (exit 2), and nothing is removed, resized or set."""
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    before = store.log()[0].seq, store.policy.to_dict(), sorted(snapshot(path / "packs"))
    for text in BAD_SIZES:
        assert shell(path, *command, text) == (2, ""), text
    assert (store.log()[0].seq, store.policy.to_dict(), sorted(snapshot(path / "packs"))) == before
    assert not store.ballast()


def test_r02_the_same_size_well_said_does_what_it_says(path: Path, store: Store) -> None:
    """Row 2, control: the commands that refuse the sizes above do take a clear one."""
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    assert shell(path, "gc", "--grace", "0", "--max-bytes", "0B")[0] == 0
    assert store.du().garbage
    assert shell(path, "ballast", "64KiB")[0] == 0
    assert store.ballast() == 65_536
    assert shell(path, "gc", "--grace", "0", "--max-bytes", "1GiB")[0] == 0
    assert not store.du().garbage


# --- 3: ttl


def test_r03_half_a_second_is_refused_never_read_as_never(path: Path, store: Store, clock: Clock) -> None:
    """Row 3: a ttl of 500 ms was cut to 0, which meant: never delete."""
    version = log(store, {"x": b"1"})
    head = store.log()[0].seq
    for ttl in (
        timedelta(milliseconds=500),
        timedelta(microseconds=1),
        timedelta(seconds=1.5),
        timedelta(),
        -timedelta(1),
    ):
        artifact = draft({"x": b"2"})
        with pytest.raises(InvalidInputError):
            artifact.ttl = ttl
        with pytest.raises(InvalidInputError):
            store.log_artifact(artifact, ttl=ttl)
        with pytest.raises(InvalidInputError):
            version.set_ttl(ttl, allow_immediate=True)
        with pytest.raises(InvalidInputError):
            store.set_default_ttl(ttl)
        assert artifact.is_draft()
    for text in ("500ms", "0.5s", "30"):
        assert shell(path, "ttl", "set", "c:v0", text)[0] == 2
    assert store.log()[0].seq == head
    assert (store.get("c").ttl, store.get("c").expires_at) == (None, None)
    # The shortest there is does end.
    store.log_artifact(draft({"x": b"2"}), ttl=timedelta(seconds=1))
    clock.pass_(seconds=2)
    assert [item.ref for item in store.expire().expired] == ["c:v1"]
    assert store.get("c").version == "v0"


# --- 4: a file that has the right size is believed


def test_r04_a_file_of_the_right_size_is_not_taken_for_the_content(store: Store, tmp_path: Path) -> None:
    """Row 4: whatever lay in the cache with the right size (and time) was handed out."""
    version = log(store, {"a": BLOB, "d/b": OTHER})
    root = tmp_path / "out"
    version.download(root)
    for name, right in (("a", BLOB), ("d/b", OTHER)):
        info = (root / name).stat()
        (root / name).write_bytes(bytes(len(right)))
        os.utime(root / name, ns=(info.st_atime_ns, info.st_mtime_ns))
    version.download(root)
    assert tree(root) == {"a": BLOB, "d/b": OTHER}
    (root / "a").write_bytes(OTHER + bytes(len(BLOB) - len(OTHER)))
    assert Path(version["a"].download(str(root))).read_bytes() == BLOB


def test_r04_stored_bytes_of_the_right_length_are_not_handed_out_when_they_are_wrong(
    path: Path, store: Store, clock: Clock, tmp_path: Path
) -> None:
    """Row 4: in the store, too, only what has its digest is content; wrong bytes are an error for every reader."""
    log(store, {"a": BLOB})
    for pack in (path / "packs").rglob("*"):
        if pack.is_file() and pack.stat().st_size > 8192:
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 1
            pack.write_bytes(data)
    with again(path, clock) as fresh:
        version = fresh.get("c")
        for read in (
            lambda: version["a"].read(),
            lambda: version["a"].open().read(),
            lambda: version.download(tmp_path / "out"),
            lambda: version["a"].download(str(tmp_path / "out")),
            version.verify,
        ):
            with pytest.raises(IntegrityError):
                read()
    assert tree(tmp_path / "out") == {}


def test_r04_one_file_is_never_answered_with_anothers_bytes(store: Store, tmp_path: Path) -> None:
    """Row 4, second half: after ``skip_cache`` the next look-up returned another file's path and bytes."""
    source = tmp_path / "a"
    source.write_bytes(b"aaaa")
    artifact = Artifact("c")
    with pytest.warns(DeprecationWarning, match="skip_cache"):
        artifact.add_file(source, skip_cache=True)
    artifact.add_bytes(b"bbbb", "b")
    version = store.log_artifact(artifact)
    assert Path(version["a"].download(str(tmp_path / "1"))).read_bytes() == b"aaaa"
    assert Path(version["b"].download(str(tmp_path / "1"))).read_bytes() == b"bbbb"
    assert read_files(version) == {"a": b"aaaa", "b": b"bbbb"}


# --- 5 and 8: references


def test_r05_a_changed_reference_is_an_error_every_time(store: Store, path: Path, clock: Clock, tmp_path: Path) -> None:
    """Row 5: a changed ``file://`` target gave old bytes if they were cached, and failed if not."""
    target = tmp_path / "target"
    target.write_bytes(b"first")
    artifact = Artifact("c")
    artifact.add_reference(target.as_uri(), "r")
    version = store.log_artifact(artifact)
    version.download(tmp_path / "before")
    assert tree(tmp_path / "before") == {"r": b"first"}
    info = target.stat()
    target.write_bytes(b"other")  # the size and time of before
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    for attempt in range(2):
        with again(path, clock) as fresh:
            for held in (version, fresh.get("c")):
                with pytest.raises(ReferenceChangedError):
                    held.download(tmp_path / f"after{attempt}")
                assert not (tmp_path / f"after{attempt}" / "r").exists()
                with pytest.raises(ReferenceChangedError):  # a file of before is no cache either
                    held.download(tmp_path / "before")
    target.unlink()
    for _ in range(2):
        with pytest.raises(ReferenceMissingError):
            version.download(tmp_path / "gone")
    assert read_files(log(store, {"x": b"1"}, "d")) == {"x": b"1"}


def test_r08_expanding_a_directory_keeps_empty_objects(store: Store, tmp_path: Path) -> None:
    """Row 8: objects of zero bytes were dropped when a prefix was expanded."""
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for name, data in (("a", b""), ("b", b"1"), ("d/empty", b""), ("d/full", b"2")):
        (source / name).write_bytes(data)
    artifact = Artifact("c")
    artifact.add_reference(source.as_uri())
    version = store.log_artifact(artifact)
    assert {entry.path: entry.size for entry in version.files()} == {"a": 0, "b": 1, "d/empty": 0, "d/full": 1}
    version.download(tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"", "b": b"1", "d/empty": b"", "d/full": b"2"}


def test_r08_more_than_the_limit_is_an_error_never_a_part(store: Store, tmp_path: Path) -> None:
    """Row 8: an expansion was cut at the limit, silently; 0 meant the default."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / f"f{number}").write_bytes(b"x")
    artifact = Artifact("c")
    with pytest.raises(LimitError):
        artifact.add_reference(source.as_uri(), max_objects=4)
    for bad in (0, -1):
        with pytest.raises(InvalidInputError):
            artifact.add_reference(source.as_uri(), max_objects=bad)
    assert list(artifact.files()) == []
    artifact.add_reference(source.as_uri(), max_objects=5)
    assert len(list(artifact.files())) == 5


# --- 6: names


@pytest.mark.parametrize(
    "name",
    [
        "a\0b",
        "a\nb",
        "a\\b",
        "x" * 5000,
        "a\x7f",
        "a\x9b",
        "\ud800",
        "a//b",
        "a/./b",
        "a/../b",
        "..",
        "/a",
        "a/",
        "C:x",
        "",
    ],
)
def test_r06_names_no_file_can_have_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    """Row 6: NUL, newline, backslash and 5,000 characters were accepted as names."""
    (tmp_path / "f").write_bytes(b"1")
    artifact = Artifact("c")
    ways: list[Callable[[], object]] = [
        lambda: artifact.add_bytes(b"1", name),
        lambda: artifact.add_file(tmp_path / "f", name),
        lambda: artifact.new_file(name).__enter__(),
    ]
    for add in ways:
        with pytest.raises(InvalidPathError):
            add()
    assert list(artifact.files()) == []


def test_r06_a_file_and_a_directory_of_one_name_conflict_at_once(store: Store, tmp_path: Path) -> None:
    """Row 6: ``x`` and ``x/y`` were both accepted, and one of the files was lost at the download."""
    for first, second in (("x", "x/y"), ("x/y", "x"), ("x/y/z", "x/y"), ("x", "x/y/z")):
        artifact = draft({first: b"1"})
        with pytest.raises(PathConflictError):
            artifact.add_bytes(b"2", second)
        with pytest.raises(PathConflictError):
            artifact.add_bytes(b"2", second, overwrite=True)
        version = store.log_artifact(artifact, dedup="never")
        version.download(tmp_path / version.version)
        assert tree(tmp_path / version.version) == {first: b"1"}


# --- 7: links


def test_r07_add_dir_stores_nothing_from_outside_the_tree(store: Store, tmp_path: Path) -> None:
    """Row 7: symbolic links were followed silently, out of the tree too: ``/etc/hostname`` was stored."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "s").write_bytes(b"secret")
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "f").write_bytes(b"1")
    (top / "sub" / "out").symlink_to(tmp_path / "secret")
    (top / "dir").symlink_to("../away")
    for how in ("error", "follow"):
        artifact = Artifact("c")
        with pytest.raises(InvalidInputError, match="link"):
            artifact.add_dir(top, symlinks=how)
        assert list(artifact.files()) == []
    with pytest.raises(InvalidInputError, match=r"dir, sub/out"):
        Artifact("c").add_dir(top)  # the default, and it names all of them
    for how, names in (("skip", ["sub/f"]), ("store", ["dir", "sub/f", "sub/out"])):
        artifact = Artifact("c")
        artifact.add_dir(top, symlinks=how)
        version = store.log_artifact(artifact, dedup="never")
        assert [entry.path for entry in version.files()] == names
        assert all(entry.read() == b"1" for entry in version.files() if entry.kind == "file")


# --- 9: hash first, copy later


@pytest.mark.parametrize("size", [1000, 700_000])
@pytest.mark.parametrize("policy", ["mutable", "immutable"])
def test_r09_the_bytes_that_are_hashed_are_the_bytes_that_are_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, policy: str
) -> None:
    """Row 9: the file was hashed, then copied; a writer in between made a version whose digest is not of its bytes."""
    source = tmp_path / "f"
    source.write_bytes(bytes(size))
    artifact = Artifact("c")
    artifact.add_file(source, policy=policy)
    swapped = 0

    class Swapping:
        """Another process writes other bytes, of the same length, after the first block was read."""

        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, count: int = -1) -> bytes:
            nonlocal swapped
            data = self.file.read(count)
            if not swapped:
                swapped += 1
                source.write_bytes(b"\1" * size)
            return data

    def open_swapping(local: LocalFile) -> object:
        return Swapping(open_local(local))

    monkeypatch.setattr("casstore.reading.open_local", open_swapping)
    try:
        version = store.log_artifact(artifact)
    except InvalidInputError:
        with pytest.raises(CollectionNotFoundError):
            store.get("c")
    else:
        data = version["f"].read()
        assert version.digest == log(store, {"f": data}, "same").digest
        version.verify()
    assert swapped


# --- 10: staging


def test_r10_a_dropped_draft_leaves_no_file_anywhere(
    path: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 10: files were copied to a staging directory when added, and stayed there for ever if never logged."""
    for variable in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        place = tmp_path / variable
        place.mkdir()
        monkeypatch.setenv(variable, str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = snapshot(tmp_path)
    (tmp_path / "big").write_bytes(BLOB * 20)
    artifact = Artifact("c")
    artifact.add_bytes(BLOB * 20, "bytes")
    artifact.add_file(tmp_path / "big")
    with (tmp_path / "big").open("rb") as stream:
        artifact.add_stream(stream, "stream")
    with artifact.new_file("new", "wb") as file:
        file.write(BLOB * 20)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError), artifact.new_file("half", "wb") as file:
        file.write(BLOB * 20)  # type: ignore[arg-type]
        raise RuntimeError
    (tmp_path / "big").write_bytes(b"changed")
    with pytest.raises(InvalidInputError):
        store.log_artifact(artifact)
    (tmp_path / "big").unlink()
    del artifact, file
    memory.collect()
    after = snapshot(tmp_path)
    assert {p: what for p, what in after.items() if what != "directory"} == {
        p: what for p, what in before.items() if what != "directory"
    }
    assert not store.du().garbage


def test_r10_a_dropped_draft_of_a_version_keeps_no_content(store: Store) -> None:
    """Row 10: nor does a draft of a version hold that version's bytes once it is gone."""
    log(store, {"x": BLOB})
    artifact = store.get("c").new_draft()
    erase(store, "c:v0")
    store.gc(grace=0)
    assert artifact.get_entry("x").read() == BLOB
    del artifact
    memory.collect()
    store.gc(grace=0)
    check_no_garbage(store)
    assert store.du().stored < len(BLOB)


# --- 11: prefixes


def test_r11_a_prefix_is_a_path_not_the_beginning_of_a_string(path: Path, store: Store, tmp_path: Path) -> None:
    """Row 11: ``path_prefix="some-prefix"`` fetched ``some-prefix-two.txt``."""
    files = {name: name.encode() for name in ("img/a", "img/b/c", "img2/a", "img-3", "img.txt", "IMG/a", "im")}
    version = log(store, files)
    for prefix, wanted in (
        ("img", {"img/a", "img/b/c"}),
        ("img/", {"img/a", "img/b/c"}),
        ("img/b", {"img/b/c"}),
        ("img-3", {"img-3"}),
        ("img-3/", set()),
        ("im", {"im"}),
        ("i", set()),
    ):
        root = tmp_path / (prefix.replace("/", "_") or "all")
        report = version.download(root, path_prefix=prefix)
        assert (set(tree(root) if root.exists() else ()), report.matched) == (wanted, len(wanted)), prefix
        assert {entry.path for entry in version.files(prefix)} == wanted
        code, _ = shell(path, "get", "c", "-o", str(tmp_path / "cli" / root.name), "--prefix", prefix)
        assert code == (0 if wanted else 10)
        assert set(tree(tmp_path / "cli" / root.name) if wanted else ()) == wanted


# --- 12: checkout


def test_r12_checkout_refuses_places_it_would_empty(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 12: checkout deleted everything not in the artifact, whatever its target was: ``/``, home, a repository."""
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    (home / "work" / "precious").write_bytes(b"1")
    monkeypatch.setenv("HOME", str(home))
    version = log(store, {"x": b"1"})
    before = snapshot(tmp_path)
    for target in (Path("/"), home, path, path.parent, path / "packs", home / "work"):
        with pytest.raises(RefusedError):
            version.checkout(target)
    for never in (Path("/"), home, path, path.parent, path / "packs", Path("/proc")):
        with pytest.raises(RefusedError):
            version.checkout(never, force=True)
    assert snapshot(tmp_path) == before
    report = version.checkout(home / "work", force=True, dry_run=True)
    assert snapshot(tmp_path) == before
    assert "precious" in str(report)
    version.checkout(home / "work", force=True)
    assert {p: d for p, d in tree(home / "work").items() if not p.startswith(".casstore")} == {"x": b"1"}


def test_r12_checkout_leaves_no_emptied_directory_and_follows_no_link(store: Store, tmp_path: Path) -> None:
    """Row 12: directories it emptied stayed behind, as did links to directories."""
    root, away = tmp_path / "root", tmp_path / "away"
    away.mkdir()
    (away / "precious").write_bytes(b"1")
    first = log(store, {"a/b/c": b"1", "k": b"2"})
    second = log(store, {"k": b"2"})
    first.checkout(root)
    (root / "a" / "link").symlink_to(away)
    (root / "a" / "stray").write_bytes(b"")
    second.checkout(root)
    assert [p.name for p in root.iterdir() if not p.name.startswith(".casstore")] == ["k"]
    assert (away / "precious").read_bytes() == b"1"


def test_r04_checkout_does_not_believe_sizes_and_times_either(store: Store, tmp_path: Path) -> None:
    """Row 4: an incremental checkout puts a file right that has the right size and wrong bytes."""
    version = log(store, {"a": BLOB, "b": b"1"})
    version.checkout(tmp_path / "root")
    target = tmp_path / "root" / "a"
    info = target.stat()
    target.write_bytes(bytes(len(BLOB)))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    version.checkout(tmp_path / "root")
    assert target.read_bytes() == BLOB


# --- 13: verify


def test_r13_verify_tells_every_problem_in_one_kind_of_error(store: Store, path: Path, tmp_path: Path) -> None:
    """Row 13: verify stopped at the first problem, with one of three kinds of exception, and did not see some."""
    version = log(store, {"a": b"1", "b": b"2", "c/d": b"3", "c/e": b"4", "same": b"5"})
    root = tmp_path / "root"
    version.download(root)
    version.verify(root)
    (root / "a").unlink()
    (root / "b").write_bytes(b"x")
    (root / "c" / "d").unlink()
    (root / "c" / "e").unlink()
    (root / "c").rmdir()
    (root / "c").symlink_to(tmp_path)
    (root / "extra").write_bytes(b"")
    (root / "empty").mkdir()
    (root / "dangling").symlink_to("nowhere")
    with pytest.raises(VerificationError) as caught:
        version.verify(root)
    error = caught.value
    assert isinstance(error, ValueError)
    assert not isinstance(error, OSError)
    assert set(error.missing) | set(error.changed) == {"a", "b", "c/d", "c/e"}
    assert "b" in error.changed
    assert "a" in error.missing
    assert set(error.extra) >= {"extra", "empty", "dangling", "c"}
    assert shell(path, "verify", "c", "--root", str(root))[0] == 20
    (root / "a").mkdir()
    with pytest.raises(VerificationError, match="changed"):
        version.verify(root)


# --- 14: writers of parts


def test_r14_upsert_after_finish_is_an_error(store: Store) -> None:
    """Row 14: an upsert after the finish silently began a new version."""
    store.upsert(draft({"a": b"1"}), "batch-1")
    store.upsert(draft({"b": b"2"}), "batch-1")
    version = store.finish("batch-1")
    assert read_files(version) == {"a": b"1", "b": b"2"}
    head = store.log()[0].seq
    with pytest.raises(ArtifactFinalizedError):
        store.upsert(draft({"late": b"3"}), "batch-1")
    assert [v.version for v in store.versions("c")] == ["v0"]
    assert store.log()[0].seq == head
    assert store.finish("batch-1").ref == version.ref


# --- 15: latest and the guard


def test_r15_latest_does_not_stand_in_the_way_of_a_deletion(store: Store) -> None:
    """Row 15: ``latest`` was added to every log, so the newest version could not be deleted without the flag."""
    log(store, {"x": b"1"})
    log(store, {"x": b"2"})
    store.delete("c:v1")
    assert store.get("c").version == "v0"
    store.delete("c:v0")
    with pytest.raises(VersionNotFoundError):
        store.get("c")
    assert log(store, {"x": b"3"}).version == "v2"


def test_r15_a_log_need_not_move_latest(store: Store) -> None:
    """Row 15: there was no way not to move it; and what the user's own aliases guard, they guard still."""
    log(store, {"x": b"1"})
    version = log(store, {"x": b"2"}, aliases=["trial"], move_latest=False)
    assert version.aliases == ("trial",)
    assert store.get("c").version == "v0"
    with pytest.raises(AliasGuardError) as caught:
        version.delete()
    assert caught.value.aliases == ("trial",)
    assert "delete_aliases" in caught.value.hint
    version.delete(delete_aliases=True)
    assert store.get("c").version == "v0"


# --- 16: entries of other versions


def test_r16_an_entry_of_another_version_outlives_that_version(store: Store, tmp_path: Path) -> None:
    """Row 16: artifact-to-artifact references blocked the target's deletion, or were left dangling by it."""
    source = log(store, {"d/x": BLOB, "y": OTHER}, "source")
    artifact = Artifact("taker")
    artifact.add_entry(source["d/x"], "mine/x")
    taker = store.log_artifact(artifact)
    assert taker.new_bytes < len(BLOB) // 2, "content is shared"
    erase(store, "source:v0")  # nothing blocks it
    store.gc(grace=0, max_waste=0.0)
    assert read_files(taker) == {"mine/x": BLOB}
    taker.verify()
    taker.download(tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine/x": BLOB}
    assert taker.base is None
    erase(store, "taker:v0")
    store.gc(grace=0, max_waste=0.0)
    assert store.du().stored < 4096
    check_no_garbage(store)


# --- 17: collections without latest


def test_r17_a_collection_without_latest_can_be_deleted(path: Path, store: Store) -> None:
    """Row 17: a collection was only reached through ``latest``, so one that had none could not be deleted."""
    version = log(store, {"x": BLOB}, "t", aliases=["a"], move_latest=False)
    log(store, {"x": OTHER}, "keep")
    version.delete(delete_aliases=True)
    with pytest.raises(VersionNotFoundError):
        store.get("t:latest")
    store.collection("t").delete()
    assert [info.name for info in store.collections()] == ["keep"]
    assert shell(path, "ls", "t")[0] == 10
    assert read_files(store.get("keep")) == {"x": OTHER}


# --- 17: links


def test_r17_deleting_through_a_link_never_deletes_the_source_collection(store: Store) -> None:
    """Row 17, second half: deleting the collection of an artifact that was fetched through a link deleted the link's
    collection in place of the source's; here both have names of their own."""
    source = log(store, {"x": BLOB}, "mine")
    link = source.link("prod/models")
    assert (link.source_collection, link.collection) == ("mine", "models")
    assert read_files(store.get("prod/models")) == {"x": BLOB}
    with pytest.raises(RefusedError, match="link"):
        store.collection("mine").delete(delete_aliases=True)
    store.collection("prod/models").delete(delete_aliases=True)
    assert read_files(store.get("mine")) == {"x": BLOB}
    store.gc(grace=0, max_waste=0.0)
    assert read_files(store.get("mine")) == {"x": BLOB}


def test_r16_a_source_with_links_is_refused_with_their_names(store: Store) -> None:
    """Row 16: the answer was "its dependent artifacts must be removed first", without saying which."""
    source = log(store, {"x": BLOB}, "mine")
    source.link("prod/models")
    with pytest.raises(RefusedError, match="prod/models") as caught:
        source.delete(delete_aliases=True)
    assert "delete_links" in caught.value.hint
    source.delete(delete_aliases=True, delete_links=True)
    with pytest.raises(VersionNotFoundError):
        store.get("mine")


def test_r20_a_link_is_a_user_of_the_content(store: Store) -> None:
    """Row 20: a link keeps its source's content as any version does."""
    source = log(store, {"x": BLOB}, "mine")
    link = source.link("prod/models")
    store.gc(grace=0, max_waste=0.0, orphan_age=0)
    assert read_files(link) == {"x": BLOB}


# --- 18 to 20: collection of garbage


@pytest.mark.parametrize("state", ["dead", "retired"])
def test_r18_content_that_a_log_took_up_again_is_as_safe_as_new(
    path: Path, store: Store, clock: Clock, state: str
) -> None:
    """Row 18: the age of a blob was that of its upload; a dedup hit did not refresh it, and the sweep took it."""
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    if state == "retired":
        store.gc(grace=timedelta(days=7))
    clock.pass_(days=6, hours=23)
    with again(path, clock) as writer:
        version = log(writer, {"again": BLOB}, "d")
        clock.pass_(days=3650)
        for _ in range(2):
            store.gc(grace=timedelta(days=7), orphan_age=0, max_waste=0.0)
            store.gc(grace=0, orphan_age=0, max_waste=0.0)
        assert read_files(version) == {"again": BLOB}
        assert writer.fsck(read_data=True).clean
    check_no_garbage(store)


class Interrupted:
    """Runs something once, at the n-th chance it gets."""

    def __init__(self, what: Callable[[], object], at: int) -> None:
        self.what, self.at, self.chances = what, at, 0

    def __call__(self, *_: object) -> None:
        self.chances += 1
        if self.chances == self.at + 1:
            self.what()


def test_r19_liveness_is_asked_at_the_deletion_not_only_at_the_mark(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 19: what became live between mark and delete was deleted. Here at every commit and step of a collection."""
    at = 0
    while True:
        path = tmp_path / f"s{at}"
        with Store.create(path, config=SMALL, settings=TUNING, runtime=Runtime(clock=clock)) as store:
            log(store, {"x": BLOB, "y": OTHER})
            log(store, {"z": BLOB[::-1]}, "e")
            erase(store, "c:v0")
            erase(store, "e:v0")
            with again(path, clock) as collector:

                def take_up(path: Path = path) -> None:
                    with again(path, clock) as writer:
                        log(writer, {"x": BLOB}, "d")

                chance = Interrupted(take_up, at)
                real = collector._engine.commit

                def commit(*args: object, chance: Interrupted = chance, real: object = real, **named: object) -> object:
                    chance()
                    assert callable(real)
                    return real(*args, **named)

                monkeypatch.setattr(collector._engine, "commit", commit)
                collector.gc(grace=0, max_waste=0.0, orphan_age=0, progress=chance)
                if chance.chances <= at:
                    break
                monkeypatch.undo()
                collector.gc(grace=0, max_waste=0.0, orphan_age=0)
            assert read_files(store.get("d")) == {"x": BLOB}, at
            assert store.fsck(read_data=True).clean
            check_no_garbage(store)
        at += 1
    assert at >= 4


@pytest.mark.parametrize("last", ["collection", "project", "entity", "trash", "pin", "draft"])
def test_r20_every_user_of_the_store_counts(store: Store, last: str) -> None:
    """Row 20: one repository's collector did not see the other users of a shared cache, and freed their content."""
    log(store, {"x": BLOB}, "first")
    holders: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "collection": (lambda: log(store, {"p": BLOB}, "c"), lambda: erase(store, "c:v0")),
        "project": (lambda: log(store, {"q": BLOB}, "c", project="p"), lambda: erase(store, "p/c:v0")),
        "entity": (lambda: log(store, {"r": BLOB}, "c", project="e/p"), lambda: erase(store, "e/p/c:v0")),
        "trash": (lambda: (log(store, {"s": BLOB}, "t"), store.delete("t:v0")), lambda: store.trash.purge("t:v0")),
        "pin": (
            lambda: store.pin("first:v0", "test", timedelta(days=1)),
            lambda: store.unpin(next(p.id for p in store.pins() if p.purpose == "test")),
        ),
        "draft": (lambda: drafts.append(store.get("first").new_draft()), lambda: drafts.clear()),
    }
    drafts: list[Artifact] = []
    for hold, _ in holders.values():
        hold()
    erase(store, "first:v0")
    for name, (_, let_go) in holders.items():
        if name != last:
            let_go()
            memory.collect()
            store.gc(grace=0, orphan_age=0, max_waste=0.0)
            assert store.du().stored > len(BLOB) // 2, f"kept by {last} when {name} is gone"
    assert store.fsck(read_data=True).clean
    holders[last][1]()
    memory.collect()
    store.gc(grace=0, orphan_age=0, max_waste=0.0)
    assert store.du().stored < len(BLOB) // 2
    check_no_garbage(store)
