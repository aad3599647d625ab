"""A directory made equal to a version (FEATURES G7, §R 12): guarded, incremental, verified before anything is deleted.

W&B deletes everything below any root, ``/`` and ``$HOME`` too, and leaves emptied directories and linked ones behind.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from casstore import (
    Artifact,
    BackendError,
    CheckoutReport,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    PathConflictError,
    RefusedError,
    Store,
    Version,
    filebatch,
)
from casstore.checkout import guards, replacing, writing
from casstore.checkout import target as target_module
from casstore.cli import main
from casstore.cli.command import Session
from casstore.model import Entry

MARKER = ".casstore-checkout"
CONTENT = {"a.txt": b"alpha", "img/cat.png": b"cat" * 1000, "img/dog.png": b"", "z/y/x/w": b"deep"}
OTHER = {"a.txt": b"beta!", "img/cat.png": b"cat" * 1000, "new/file": b"new", "z/y/x": b"a file now", "dog": b"dog"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "place" / "store", create=True) as opened:
        yield opened


@pytest.fixture
def version(store: Store) -> Version:
    return log(store, CONTENT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "out"


def log(store: Store, files: dict[str, bytes], name: str = "ds") -> Version:
    draft = Artifact(name)
    for path, data in files.items():
        draft.add_bytes(data, path)
    return store.log_artifact(draft)


def log_tree(store: Store, source: Path, **options: Any) -> Version:
    draft = Artifact("tree")
    draft.add_dir(source, symlinks="store", keep_empty_dirs=True, **options)
    return store.log_artifact(draft)


def tree(root: Path) -> dict[str, bytes | str]:
    """Files and links below a directory, and empty directories with a slash; without the marker."""
    found: dict[str, bytes | str] = {}
    for directory, below, names in os.walk(root):
        for name in (*below, *names):
            path = Path(directory, name)
            relative = str(path.relative_to(root))
            if path.is_symlink():
                found[relative] = os.readlink(path)
            elif path.is_file():
                found[relative] = path.read_bytes()
            elif not path.is_dir():
                found[relative] = "special"
            elif not any(path.iterdir()):
                found[relative + "/"] = ""
    found.pop(MARKER, None)
    return found


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again, by path."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.name != MARKER
    }


# --- what it does


def test_a_directory_is_made_and_holds_just_the_version(version: Version, root: Path) -> None:
    report = version.checkout(root)
    assert tree(root) == CONTENT
    assert isinstance(report, CheckoutReport)
    assert (report.path, report.ref, report.dry_run) == (str(root), "ds:v0", False)
    assert (report.files, report.bytes, report.linked, report.unchanged) == (4, version.size, 0, 0)
    assert report.written == sorted(CONTENT)
    assert (report.replaced, report.deleted, report.skipped) == ([], [], [])
    assert not report.destructive
    assert os.fspath(report) == str(root)
    assert version.verify(root) == version.size


def test_the_next_version_replaces_the_last(store: Store, version: Version, root: Path) -> None:
    """Files for directories and the other way round, emptied directories gone, equal files untouched."""
    other = log(store, OTHER)
    version.checkout(root)
    before = stamps(root)
    report = store.checkout("ds:v1", root)
    assert tree(root) == OTHER
    assert report.unchanged == 1
    assert stamps(root)["img/cat.png"] == before["img/cat.png"]
    assert report.written == ["dog", "new/file", "z/y/x"]
    assert report.replaced == ["a.txt"]
    assert report.deleted == ["img/dog.png", "z/y/x/", "z/y/x/w"]
    assert report.destructive
    assert other.verify(root) == other.size
    back = version.checkout(root)
    assert tree(root) == CONTENT
    assert back.deleted == ["dog", "new/", "new/file", "z/y/x"]


def test_the_same_again_writes_nothing(version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version.checkout(root)
    before = stamps(root)
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    report = version.checkout(root)
    assert (report.files, report.unchanged, report.destructive) == (0, 4, False)
    assert stamps(root) == before


def test_equal_is_judged_by_bytes_not_by_size_and_time(version: Version, root: Path) -> None:
    version.checkout(root)
    info = (root / "a.txt").stat()
    (root / "a.txt").write_bytes(b"ALPHA")
    os.utime(root / "a.txt", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert version.checkout(root).replaced == ["a.txt"]
    assert tree(root) == CONTENT


def test_links_are_unlinked_and_never_followed(store: Store, version: Version, root: Path, tmp_path: Path) -> None:
    """§R 12: a linked directory is itself what does not belong; what it points at stays as it is."""
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "theirs").write_bytes(b"theirs")
    (outside / "w").write_bytes(b"theirs too")
    version.checkout(root)
    (root / "linked").symlink_to(outside)
    (root / "dangling").symlink_to("/nowhere")
    (root / "img" / "up").symlink_to("..")
    (root / "z" / "y" / "x" / "w").unlink()
    (root / "z" / "y" / "x").rmdir()
    (root / "z" / "y" / "x").symlink_to(outside)
    (root / "a.txt").unlink()
    (root / "a.txt").symlink_to(outside / "theirs")
    report = version.checkout(root)
    assert tree(root) == CONTENT
    assert report.deleted == ["dangling", "img/up", "linked", "z/y/x"]
    assert report.replaced == ["a.txt"]
    assert tree(outside) == {"sub/": "", "theirs": b"theirs", "w": b"theirs too"}


def test_stored_links_and_empty_directories(store: Store, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "empty" / "inner").mkdir(parents=True)
    (source / "file").write_bytes(b"1")
    (source / "link").symlink_to("file")
    (source / "away").symlink_to("/nowhere")
    version = log_tree(store, source)
    assert version.checkout(root).linked == 2
    assert tree(root) == {"empty/inner/": "", "file": b"1", "link": "file", "away": "/nowhere"}
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    (root / "away").unlink()
    (root / "away").mkdir()
    (root / "away" / "mine").write_bytes(b"")
    (root / "empty" / "other").mkdir()
    report = version.checkout(root)
    assert tree(root) == {"empty/inner/": "", "file": b"1", "link": "file", "away": "/nowhere"}
    assert (report.unchanged, report.linked) == (1, 2)
    assert report.deleted == ["away/", "away/mine", "empty/other/"]
    version.verify(root)


def test_a_link_for_what_was_a_directory_and_back(store: Store, root: Path, tmp_path: Path) -> None:
    """Whatever the order of versions, nothing is written through the link one of them has."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "img").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    linked, plain = log_tree(store, source), log(store, CONTENT)
    for _ in range(2):
        plain.checkout(root)
        assert tree(root) == CONTENT
        linked.checkout(root)
        assert tree(root) == {"img": str(tmp_path / "outside")}
    assert tree(tmp_path / "outside") == {}


def test_modes_are_those_of_the_version(store: Store, root: Path, tmp_path: Path) -> None:
    """A file with the wrong mode is written anew: a name it may have elsewhere keeps the mode it has."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "tool").write_bytes(b"#!")
    (source / "tool").chmod(0o750)
    version = log_tree(store, source, keep_mode=True)
    version.checkout(root)
    assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o750
    (root / "tool").chmod(0o600)
    os.link(root / "tool", tmp_path / "elsewhere")
    assert version.checkout(root).replaced == ["tool"]
    assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o600


@pytest.mark.timeout(30)
def test_special_files_go_and_block_nothing(version: Version, root: Path) -> None:
    version.checkout(root)
    (root / "a.txt").unlink()
    os.mkfifo(root / "a.txt")
    (root / "z" / "y" / "x" / "w").unlink()
    (root / "z" / "y" / "x").rmdir()
    os.mkfifo(root / "z" / "y" / "x")
    os.mkfifo(root / "img" / "fifo")
    here = os.getcwd()
    os.chdir(root)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(here)
    report = version.checkout(root)
    assert tree(root) == CONTENT
    assert report.deleted == ["img/fifo", "socket", "z/y/x"]
    assert report.replaced == ["a.txt"]


def test_names_that_are_no_text_go_too(version: Version, root: Path) -> None:
    version.checkout(root)
    with open(os.fsencode(root) + b"/\xff\xfe", "wb"):
        pass
    assert version.checkout(root).deleted == ["\udcff\udcfe"]
    assert tree(root) == CONTENT


def test_long_paths_and_deep_trees(store: Store, root: Path) -> None:
    """Longer than the system takes in one piece; more directories than are kept open."""
    deep = "/".join(["d" * 200] * 20)
    files = {deep: b"deep", **{f"{i:03}/{i}": b"%d" % i for i in range(3 * target_module.OPEN_DIRECTORIES)}}
    version = log(store, files)
    version.checkout(root)
    assert version.verify(root) == version.size
    assert version.checkout(root).unchanged == len(files)
    log(store, {"one": b"1"}).checkout(root)
    assert tree(root) == {"one": b"1"}


def test_a_file_that_becomes_a_link_between_two_looks_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    (root / "file").write_bytes(b"mine")
    (tmp_path / "theirs").write_bytes(b"theirs")
    look = os.stat

    def swap(path: object, **options: Any) -> os.stat_result:
        info = look(path, **options)  # type: ignore[arg-type]
        if path == "file":
            (root / "file").unlink()
            (root / "file").symlink_to(tmp_path / "theirs")
        return info

    with target_module.Target(str(root)) as target:
        monkeypatch.setattr(os, "stat", swap)
        assert target.open_file("file") is None


def test_what_is_no_file_is_not_even_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening is enough to make some devices do things."""
    root.mkdir()
    os.mkfifo(root / "fifo")
    (root / "file").write_bytes(b"mine")
    opened: list[object] = []
    real = os.open

    def seen(path: Any, *args: Any, **options: Any) -> int:
        opened.append(path)
        return real(path, *args, **options)

    with target_module.Target(str(root)) as target:
        monkeypatch.setattr(os, "open", seen)
        assert target.open_file("fifo") is None
        file = target.open_file("file")
        assert file is not None
        with file:
            assert file.read() == b"mine"
    assert opened == ["file"]


# --- dry runs and confirmation


def test_a_dry_run_foretells_and_changes_nothing(store: Store, version: Version, root: Path) -> None:
    foretold = version.checkout(root, dry_run=True)
    assert not root.exists()
    done = version.checkout(root)
    assert (foretold.written, foretold.files, foretold.bytes) == (done.written, done.files, done.bytes)
    assert foretold.dry_run
    other = log(store, OTHER)
    (root / "mine").write_bytes(b"mine")
    before, entries = stamps(root), sorted(os.listdir(root))
    marker = (root / MARKER).read_bytes()
    foretold = other.checkout(root, dry_run=True)
    assert (stamps(root), sorted(os.listdir(root)), (root / MARKER).read_bytes()) == (before, entries, marker)
    done = other.checkout(root)
    for name in ("written", "replaced", "deleted", "unchanged", "files", "bytes", "linked"):
        assert getattr(foretold, name) == getattr(done, name), name
    assert foretold.deleted[:3] == ["img/dog.png", "mine", "z/y/x/"]


def test_confirm_sees_the_plan_and_can_stop_it(store: Store, version: Version, root: Path) -> None:
    plans: list[CheckoutReport] = []

    def refuse(plan: CheckoutReport) -> None:
        plans.append(plan)
        raise RefusedError("no")

    version.checkout(root, confirm=refuse)  # nothing goes: nobody is asked
    other, before = log(store, OTHER), stamps(root)
    with pytest.raises(RefusedError, match="no"):
        other.checkout(root, confirm=refuse)
    assert stamps(root) == before
    assert tree(root) == CONTENT
    assert [plan.deleted for plan in plans] == [["img/dog.png", "z/y/x/", "z/y/x/w"]]
    (root / "a.txt").write_bytes(b"edited")
    with pytest.raises(RefusedError, match="no"):  # what is replaced is lost, too
        version.checkout(root, confirm=refuse)
    assert (plans[-1].replaced, plans[-1].deleted) == (["a.txt"], [])
    assert (root / "a.txt").read_bytes() == b"edited"


def test_only_what_was_confirmed_is_deleted(store: Store, version: Version, root: Path) -> None:
    """What comes while the question is open is not deleted with the rest; what stands in the way is a conflict."""
    version.checkout(root)

    def meanwhile(_: CheckoutReport) -> None:
        (root / "late").write_bytes(b"mine")

    log(store, {"a.txt": b"a"}).checkout(root, confirm=meanwhile)
    assert tree(root) == {"a.txt": b"a", "late": b"mine"}
    version.checkout(root)

    def inside(_: CheckoutReport) -> None:
        (root / "z" / "y" / "x" / "late").write_bytes(b"mine")

    with pytest.raises(ConflictError) as caught:
        log(store, OTHER).checkout(root, confirm=inside)
    assert caught.value.exit_code == 13
    assert (root / "z" / "y" / "x" / "late").read_bytes() == b"mine"
    assert not [path for path in tree(root) if target_module.PART in path]
    store.checkout("ds", root)
    assert tree(root) == OTHER


# --- guards


def test_what_no_checkout_made_needs_force(store: Store, version: Version, root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (root / "mine").write_bytes(b"mine")
    for dry_run in (False, True):
        with pytest.raises(RefusedError, match="not empty") as caught:
            version.checkout(root, dry_run=dry_run)
        assert caught.value.exit_code == 14
        assert "--force" in caught.value.hint
    assert tree(root) == {"mine": b"mine"}
    assert version.checkout(root, force=True).deleted == ["mine"]
    assert tree(root) == CONTENT
    with Store.open(tmp_path / "second", create=True) as second, pytest.raises(RefusedError, match="not empty"):
        log(second, CONTENT).checkout(root)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda marker: marker.write_text("{}"),
        lambda marker: marker.write_bytes(b"\xff"),
        lambda marker: marker.write_text("[" * 100_000),
        lambda marker: marker.write_text(json.dumps({**json.loads(marker.read_text()), "inode": 1})),
        lambda marker: marker.write_text(json.dumps({**json.loads(marker.read_text()), "store": 5})),
        lambda marker: marker.unlink(),
        lambda marker: (marker.rename(marker.parent.parent / "m"), marker.symlink_to("../m")),
        lambda marker: (marker.unlink(), marker.mkdir()),
        lambda marker: subprocess.run(["sh", "-c", "rm $0; mkfifo $0", marker], check=True),
    ],
)
def test_a_marker_counts_only_if_a_checkout_put_it_there(
    spoil: Callable[[Path], object], version: Version, root: Path
) -> None:
    """Not one that came along in a download or an archive, or by a link."""
    version.checkout(root)
    spoil(root / MARKER)
    with pytest.raises(RefusedError, match="not empty"):
        version.checkout(root)


def test_a_moved_checkout_is_one_and_a_copied_one_is_not(version: Version, root: Path, tmp_path: Path) -> None:
    version.checkout(root)
    root.rename(tmp_path / "moved")
    version.checkout(tmp_path / "moved")
    subprocess.run(["cp", "-a", tmp_path / "moved", root], check=True)
    with pytest.raises(RefusedError):
        version.checkout(root)


def precious(tmp_path: Path, store: Store) -> dict[str, str]:
    place = Path(store.url)
    return {
        "root": "/",
        "root by dots": "/tmp/../../..",
        "home": str(tmp_path / "home"),
        "above home": str(tmp_path),
        "store": str(place),
        "in the store": str(place / "packs"),
        "in the store, not there yet": str(place / "packs" / "new" / "er"),
        "above the store": str(place.parent),
        "above by dots": str(place.parent / "store" / ".."),
        "mount point": "/dev/shm",
        "another": "/proc",
    }


WORDS = {
    "root": "the root of the file system",
    "home": "a home directory",
    "above": "above",
    "store": "in the store",
    "in": "in the store",
    "mount": "a mount point",
    "another": "a mount point",
}


@pytest.mark.parametrize("kind", [*precious(Path("/x"), SimpleNamespace(url="/x/y/z"))])  # type: ignore[arg-type]
@pytest.mark.parametrize("way", ["path", "link", "relative", "through a linked parent"])
def test_some_directories_are_never_replaced(
    kind: str, way: str, store: Store, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with force, nor by a link, ``..`` or a relative path, nor in a dry run; nothing is changed by trying."""
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "mine").write_bytes(b"mine")
    monkeypatch.setenv("HOME", str(home))
    where = precious(tmp_path, store)[kind]
    if kind in {"mount point", "another"} and not os.path.ismount(where):
        pytest.skip(f"{where} is no mount point here")
    if way == "link":
        (tmp_path / "way").symlink_to(where)
        where = str(tmp_path / "way")
    elif way == "relative":
        monkeypatch.chdir(tmp_path)
        where = os.path.relpath(where)
    elif way == "through a linked parent":
        (tmp_path / "way").symlink_to(os.path.dirname(where) or "/")
        where = str(tmp_path / "way" / os.path.basename(where)) if where != "/" else str(tmp_path / "way")
    if "link" in way and kind == "in the store, not there yet":
        with pytest.raises((PathConflictError, BackendError)):  # a link to nowhere is no directory
            version.checkout(where, force=True)
    else:
        for dry_run in (True, False):
            with pytest.raises(RefusedError) as caught:
                version.checkout(where, force=True, dry_run=dry_run)
            assert caught.value.exit_code == 14
            assert "no override" in caught.value.hint
            assert WORDS[kind.split(maxsplit=1)[0]] in caught.value.message
    assert (home / "mine").read_bytes() == b"mine"
    assert not (Path(store.url) / "packs" / "new").exists()
    assert store.get("ds").verify() == version.size


def test_the_home_of_the_account_counts_whatever_the_environment_says(
    version: Version, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pwd  # noqa: PLC0415

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir=str(tmp_path / "mine")))
    (tmp_path / "mine").mkdir()
    with pytest.raises(RefusedError, match="home"):
        version.checkout(tmp_path / "mine", force=True)


def test_a_mount_point_inside_is_not_crossed(version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Only pretended.) Before anything is changed, whoever insists."""
    version.checkout(root)
    (root / "disk").mkdir()
    (root / "disk" / "theirs").write_bytes(b"theirs")
    disk, real = (root / "disk").stat().st_ino, guards.mount_of
    monkeypatch.setattr(replacing, "mount_of", lambda fd: "other" if os.fstat(fd).st_ino == disk else real(fd))
    with pytest.raises(RefusedError, match=r"'disk' .* mount point"):
        version.checkout(root, force=True)
    assert (root / "disk" / "theirs").read_bytes() == b"theirs"


def test_downloads_keep_out_of_the_store_too(version: Version, store: Store, tmp_path: Path) -> None:
    """A version with a path like ``log/1`` must not be able to overwrite what stores it."""
    for where in (store.url, Path(store.url) / "packs", Path(store.url) / "new" / "er"):
        with pytest.raises(RefusedError):
            version.download(where)
    assert not (Path(store.url) / "new").exists()
    assert version.download(tmp_path / "place" / "beside").files == 4


@pytest.mark.parametrize("act", ["download", "checkout"])
def test_a_root_that_becomes_the_store_between_two_looks(
    act: str, version: Version, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is the directory that is open, not what its path meant a moment ago."""
    root.mkdir()
    make = os.makedirs

    def swap(path: str, **options: Any) -> None:
        root.rmdir()
        root.symlink_to(Path(store.url) / "packs")
        make(path, **options)

    monkeypatch.setattr(os, "makedirs", swap)
    with pytest.raises(RefusedError, match="in the store"):
        getattr(version, act)(root)
    assert not (Path(store.url) / "packs" / "a.txt").exists()


def test_a_version_with_the_name_of_the_marker(store: Store, root: Path) -> None:
    version = log(store, {MARKER: b"mine", "a": b"a"})
    for dry_run in (False, True):
        with pytest.raises(RefusedError, match=MARKER) as caught:
            version.checkout(root, dry_run=dry_run)
        assert "casstore get" in caught.value.hint
    assert not root.exists()
    version.download(root)
    assert (root / MARKER).read_bytes() == b"mine"
    with pytest.raises(RefusedError, match="not empty"):
        log(store, CONTENT).checkout(root)


def test_the_marker_is_no_part_of_what_is_checked_out(store: Store, version: Version, root: Path) -> None:
    """A checkout that is edited and logged makes a version that can be checked out; verify does not mind the marker."""
    version.checkout(root)
    (root / "a.txt").write_bytes(b"edited")
    draft = Artifact("ds")
    draft.add_dir(root)
    again = store.log_artifact(draft)
    assert [entry.path for entry in again] == sorted(CONTENT)
    again.verify(root)
    again.checkout(root)
    below = Artifact("below")
    below.add_dir(root.parent / "out", "inner")
    assert f"inner/{MARKER}" not in below


def test_bad_roots(version: Version, root: Path) -> None:
    for path in ("", "a\0b", 5, b"bytes"):
        with pytest.raises(InvalidInputError):
            version.checkout(path)  # type: ignore[arg-type]
    root.write_bytes(b"file")
    for where in (root, root / "below"):
        with pytest.raises(PathConflictError):
            version.checkout(where, force=True)
    assert root.read_bytes() == b"file"


def test_the_default_root(version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert version.checkout().path == os.path.join("artifacts", "ds:v0")
    assert tree(tmp_path / "artifacts" / "ds:v0") == CONTENT


def test_a_root_behind_a_link_is_the_directory_it_points_at(version: Version, root: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    root.symlink_to(tmp_path / "real")
    version.checkout(root)
    assert root.is_symlink()
    assert tree(tmp_path / "real") == CONTENT


def test_one_checkout_at_a_time(version: Version, root: Path) -> None:
    version.checkout(root)
    fd = os.open(root, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConflictError) as caught:
            version.checkout(root)
        assert caught.value.exit_code == 13
    finally:
        os.close(fd)
    version.checkout(root)


# --- failures


def damage(store: Store, version: Version, path: str) -> None:
    """Flip bits in the frame that holds a file's first chunk."""
    place = store._engine.view.locate([version[path].chunks[0][0]])[0]
    assert place is not None
    name = place.pack.hex()
    pack = Path(store.url) / "packs" / name[:2] / name
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[place.frame_offset + 20] ^= 0xFF
    pack.write_bytes(data)


def test_damage_is_found_before_anything_is_deleted(store: Store, version: Version, root: Path) -> None:
    version.checkout(root)
    (root / "mine").write_bytes(b"mine")
    log(store, OTHER, "other")  # in frames of their own
    other = log(store, {**OTHER, "rotten": os.urandom(500_000)})
    damage(store, other, "rotten")
    with Store.open(store.url) as fresh:
        with pytest.raises(IntegrityError) as caught:
            fresh.get("ds").checkout(root)
        assert caught.value.path == "rotten"
        left = tree(root)
        assert left["mine"] == b"mine"
        assert left["img/dog.png"] == b""
        assert left["z/y/x/w"] == b"deep"
        assert not [path for path in left if target_module.PART in path or path == "rotten"]
        fresh.get("ds:v0").checkout(root)
        assert tree(root) == CONTENT


def test_a_file_that_is_right_already_needs_no_stored_bytes(store: Store, root: Path) -> None:
    version = log(store, {"rotten": os.urandom(500_000)})
    version.checkout(root)
    damage(store, version, "rotten")
    with Store.open(store.url) as fresh:
        assert fresh.get("ds").checkout(root).unchanged == 1


def test_no_room(store: Store, version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot fit is refused before anything changes."""
    version.checkout(root)
    other, before = log(store, OTHER), stamps(root)
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4))
    with pytest.raises(BackendError) as caught:
        other.checkout(root)
    assert caught.value.errno == errno.ENOSPC
    assert stamps(root) == before


@pytest.mark.parametrize("first_ever", [False, True])
def test_it_can_be_stopped_anywhere_and_run_again(
    first_ever: bool, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt before each call that changes something: the next run needs no force and finishes the work."""
    first, second = log(store, CONTENT), log(store, OTHER)
    stopped = 0
    for number in range(1000):
        if first_ever:
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
        else:
            first.checkout(root, force=True)
        count = 0

        def stop(call: Callable[..., Any], number: int = number) -> Callable[..., Any]:
            def counted(*args: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == number + 1:
                    raise KeyboardInterrupt
                return call(*args, **options)

            return counted

        with monkeypatch.context() as patch:
            patch.setattr(filebatch, "_native", None)  # it makes calls of its own
            for name in ("mkdir", "rename", "unlink", "rmdir", "write"):
                patch.setattr(os, name, stop(getattr(os, name)))
            try:
                second.checkout(root)
            except KeyboardInterrupt:
                stopped += 1
            else:
                break
        asked: list[CheckoutReport] = []
        second.checkout(root, confirm=asked.append)
        assert tree(root) == OTHER
        assert not [path for plan in asked for path in plan.deleted if first_ever or target_module.PART in path]
    assert stopped > 15
    assert count == stopped


def test_a_kill_leaves_what_the_next_run_cleans_up(store: Store, root: Path) -> None:
    """SIGKILL while a file is written beside its place: its rest is nobody's, and goes without a question."""
    log(store, CONTENT).checkout(root)
    log(store, OTHER)
    code = (
        "import os, sys\n"
        "from casstore import Store\n"
        "os.rmdir = os.unlink = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "Store.open(sys.argv[1]).checkout('ds', sys.argv[2])\n"
    )
    assert subprocess.run([sys.executable, "-c", code, store.url, root], check=False).returncode == -9
    assert [path for path in tree(root) if target_module.PART in path]
    asked: list[CheckoutReport] = []
    store.checkout("ds", root, confirm=asked.append)
    assert tree(root) == OTHER
    assert not [path for plan in asked for path in plan.deleted if target_module.PART in path]


def test_a_disk_error_is_ours(store: Store, version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version.checkout(root)
    other = log(store, {"new": b"new"})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("unlink", "write", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(BackendError) as caught:
                other.checkout(root)
        assert caught.value.errno == errno.EIO
    other.checkout(root)
    assert tree(root) == {"new": b"new"}


def test_a_file_system_that_folds_names(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(store, CONTENT).checkout(root)
    version = log(store, {"Readme": b"1", "README": b"2"})
    monkeypatch.setattr(target_module.Target, "folds", lambda _: True)
    with pytest.raises(PathConflictError, match="for one path"):
        version.checkout(root)
    assert tree(root) == CONTENT


# --- the command line


class Cli:
    def __init__(self, store: Store) -> None:
        self.store = store.url

    def __call__(self, *words: object, code: int = 0, answer: str | None = None) -> Any:
        result = CliRunner().invoke(main, [*map(str, words), "--store", self.store], input=answer)
        assert result.exit_code == code, (words, result.output, result.exception)
        return result


@pytest.fixture
def cli(store: Store) -> Cli:
    return Cli(store)


def test_the_command(cli: Cli, store: Store, version: Version, root: Path) -> None:
    """The first needs no confirmation; without a terminal and ``--yes`` the next is refused and changes nothing."""
    log(store, OTHER)
    assert cli("checkout", "ds:v0", root).stdout == f"{root}\n"
    before = stamps(root)
    assert cli("checkout", "ds:v0", root).stdout == f"{root}\n"
    for words in ((), ("--json",), ("-q",), ("--force",)):
        assert "--yes" in cli("checkout", "ds:v1", root, *words, code=14).stderr
    assert stamps(root) == before
    lines = cli("checkout", "ds:v1", root, "--dry-run").stdout.splitlines()
    assert lines[:4] == ["delete  img/dog.png", "delete  z/y/x/", "delete  z/y/x/w", "replace  a.txt"]
    assert lines[4:] == ["write  dog", "write  new/file", "write  z/y/x"]
    document = json.loads(cli("checkout", "ds:v1", root, "--yes", "--json").stdout)
    assert (document["schema"], document["replaced"], document["dry_run"]) == ("checkout/1", ["a.txt"], False)
    assert tree(root) == OTHER
    (root / MARKER).unlink()
    assert "--force" in cli("checkout", "ds:v0", root, "--yes", code=14).stderr
    cli("checkout", "ds:v0", root, "--yes", "--force")
    assert tree(root) == CONTENT
    cli("checkout", "ds:v9", root, code=10)
    cli("checkout", "ds:v0", store.url, "--yes", "--force", code=14)


def test_the_question(cli: Cli, store: Store, version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal what goes is shown, then asked about."""
    asked: list[str] = []

    def ask(self: Session, question: str, expected: tuple[str, ...], hint: str) -> None:
        asked.append(question)

    monkeypatch.setattr(Session, "ask", ask)
    version.checkout(root)
    for number in range(30):
        (root / f"{number:02}").write_bytes(b"")
    result = cli("checkout", "ds:v0", root)
    assert asked == [f"Delete 30 and replace 0 paths in {root}? [y/N]"]
    assert "delete  09\ndelete  20 more" in result.stderr
    assert tree(root) == CONTENT


def test_entries_are_not_needed_twice(version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is not right already is fetched from the store."""
    version.checkout(root)
    (root / "a.txt").unlink()
    written: list[str] = []
    monkeypatch.setattr(filebatch, "_native", None)  # every file by itself
    write = writing.Writing._write

    def seen(self: Any, entry: Entry, blocks: Any) -> None:
        written.append(entry.path)
        write(self, entry, blocks)

    monkeypatch.setattr(writing.Writing, "_write", seen)
    version.checkout(root)
    assert written == ["a.txt"]
