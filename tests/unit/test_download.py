"""Giving files back and comparing them (FEATURES G2, G3, G8, §0.3 #10-11): verified, atomic, never outside the root.

Guards I4 from the user's side (what is live can be had, byte for byte) and DESIGN §7 "Read": a file gets its name only
when all its bytes are right.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from casstore import (
    AlreadyExistsError,
    Artifact,
    BackendError,
    DownloadReport,
    IntegrityError,
    InvalidInputError,
    PathConflictError,
    Store,
    VerificationError,
    Version,
)
from casstore import checkout as checkout_module
from casstore.model import Location

CONTENT = {"a.txt": b"alpha", "img/cat.png": b"cat" * 1000, "img/dog.png": b"", "img2/x": b"x", "z/y/x/w": b"deep"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
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


def tree(root: Path) -> dict[str, bytes]:
    """Files below a directory; temporary files would be among them."""
    return {
        os.path.relpath(os.path.join(directory, name), root): Path(directory, name).read_bytes()
        for directory, _, names in os.walk(root)
        for name in names
    }


# --- G2


def test_download_gives_everything_back(version: Version, root: Path) -> None:
    report = version.download(root)
    assert tree(root) == CONTENT
    assert isinstance(report, DownloadReport)
    assert (report.path, report.files, report.linked, report.skipped) == (str(root), 5, 0, [])
    assert report.bytes == sum(map(len, CONTENT.values())) == version.size
    assert os.fspath(report) == str(root)
    assert {path.stat().st_mode & 0o777 for path in root.rglob("*.*")} == {0o666 & ~_umask()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_default_root(version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert version.download().path == os.path.join("artifacts", "ds:v0")
    assert tree(tmp_path / "artifacts" / "ds:v0") == CONTENT


@pytest.mark.parametrize(
    ("prefix", "wanted"),
    [
        ("img", {"img/cat.png", "img/dog.png"}),
        ("img/", {"img/cat.png", "img/dog.png"}),
        ("img/cat.png", {"img/cat.png"}),
        ("img/cat.png/", set()),
        ("im", set()),
        ("a.txt/", set()),
        ("z/y", {"z/y/x/w"}),
        ("", set(CONTENT)),
        ("../out", set()),
        ("\udc80", set()),
    ],
)
def test_prefixes_are_whole_parts(prefix: str, wanted: set[str], version: Version, root: Path) -> None:
    """G3, §R 11: ``img`` is not ``img2``; no match is an empty report."""
    report = version.download(root, path_prefix=prefix)
    assert set(tree(root)) == wanted
    assert report.files == len(wanted)


def test_globs(version: Version, root: Path) -> None:
    assert version.download(root, glob="*.png").files == 2
    assert version.download(root / "2", path_prefix="img", glob="*cat*").files == 1


def test_entries_download_themselves(version: Version, root: Path) -> None:
    """G4."""
    assert version["img/cat.png"].download(str(root)) == str(root / "img" / "cat.png")
    assert tree(root) == {"img/cat.png": CONTENT["img/cat.png"]}


def test_what_is_not_listed_is_left_alone(version: Version, root: Path) -> None:
    """§0.3 #11."""
    (root / "img").mkdir(parents=True)
    (root / "mine").write_bytes(b"mine")
    (root / "img" / "mine").write_bytes(b"mine too")
    version.download(root)
    assert tree(root) == {**CONTENT, "mine": b"mine", "img/mine": b"mine too"}


def test_listed_files_are_replaced_not_written_into(version: Version, root: Path) -> None:
    """§0.3 #11: a new file takes the name; whoever has the old one open, or linked, keeps it."""
    root.mkdir()
    (root / "a.txt").write_bytes(b"old")
    os.link(root / "a.txt", root / "hard-link")
    with (root / "a.txt").open("rb") as old:
        version.download(root)
        assert old.read() == b"old"
    assert (root / "a.txt").read_bytes() == b"alpha"
    assert (root / "hard-link").read_bytes() == b"old"


def test_a_read_only_file_is_replaced(version: Version, root: Path) -> None:
    root.mkdir()
    (root / "a.txt").write_bytes(b"old")
    (root / "a.txt").chmod(0o400)
    version.download(root)
    assert tree(root) == CONTENT


def test_overwrite_modes(version: Version, root: Path) -> None:
    """§0.3 #11: replace, keep, error; the last before anything is written."""
    (root / "img").mkdir(parents=True)
    (root / "img" / "cat.png").write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError) as caught:
        version.download(root, overwrite="error")
    assert caught.value.exit_code == 11
    assert tree(root) == {"img/cat.png": b"mine"}
    report = version.download(root, overwrite="keep")
    assert (report.skipped, report.files) == (["img/cat.png"], 4)
    assert tree(root) == {**CONTENT, "img/cat.png": b"mine"}
    assert version.download(root, overwrite="replace").files == 5
    assert tree(root) == CONTENT
    with pytest.raises(InvalidInputError):
        version.download(root, overwrite="maybe")


@pytest.mark.parametrize("path", ["", "a\0b", 5, b"bytes"])
def test_bad_roots(path: object, version: Version) -> None:
    for use in (version.download, version.verify):
        with pytest.raises(InvalidInputError) as caught:
            use(path)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2


def test_a_root_that_is_a_file(version: Version, root: Path) -> None:
    root.write_bytes(b"file")
    for path in (root, root / "below"):
        with pytest.raises(PathConflictError):
            version.download(path)
    assert root.read_bytes() == b"file"


# --- links and directories in the way


def test_a_linked_directory_below_the_root_is_never_written_through(
    version: Version, root: Path, tmp_path: Path
) -> None:
    """G2: W&B follows it; here it is a conflict (11), and what it points at is as it was."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cat.png").write_bytes(b"theirs")
    root.mkdir()
    (root / "img").symlink_to(outside)
    for overwrite in ("replace", "keep"):
        with pytest.raises(PathConflictError, match="img"):
            version.download(root, overwrite=overwrite)
    (root / "img").unlink()
    (root / "z").mkdir()
    (root / "z" / "y").symlink_to("../../outside")
    with pytest.raises(PathConflictError):
        version.download(root)
    assert tree(outside) == {"cat.png": b"theirs"}


def test_a_link_in_place_of_a_file_is_replaced(version: Version, root: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    root.mkdir()
    (root / "a.txt").symlink_to(tmp_path / "theirs")
    (root / "img2").mkdir()
    (root / "img2" / "x").symlink_to("/nowhere/dangling")
    version.download(root)
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not (root / "a.txt").is_symlink()
    assert tree(root) == CONTENT


def test_the_root_itself_may_be_a_link(version: Version, root: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    root.symlink_to(tmp_path / "real")
    version.download(root)
    assert tree(tmp_path / "real") == CONTENT


def test_links_that_are_stored_come_last(store: Store, root: Path, tmp_path: Path) -> None:
    """A version whose link has the name of another version's directory cannot lead that one out of the root."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "img").symlink_to(tmp_path)
    draft = Artifact("links")
    draft.add_dir(source, symlinks="store")
    store.log_artifact(draft).download(root)
    assert os.readlink(root / "img") == str(tmp_path)
    with pytest.raises(PathConflictError):
        log(store, CONTENT).download(root)
    assert not (tmp_path / "cat.png").exists()


@pytest.mark.parametrize(("there", "is_directory"), [("a.txt", True), ("img", False), ("z/y", False)])
def test_file_against_directory(there: str, is_directory: bool, version: Version, root: Path) -> None:
    """11, and no temporary file stays behind."""
    blocked = root / there
    blocked.parent.mkdir(parents=True)
    if is_directory:
        blocked.mkdir()
        (blocked / "mine").write_bytes(b"mine")
    else:
        blocked.write_bytes(b"mine")
    with pytest.raises(PathConflictError) as caught:
        version.download(root)
    assert caught.value.exit_code == 11
    assert caught.value.hint
    left = tree(root)
    assert not [path for path in left if "casstore-part" in path]
    assert left[os.path.join(there, "mine") if is_directory else there] == b"mine"


def test_a_file_system_that_folds_names(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A11: refused before anything is written, instead of losing one of two files. (Only pretended.)"""
    version = log(store, {"Readme": b"1", "README": b"2", "caf\u00e9": b"3"})
    assert version.download(root).files == 3
    monkeypatch.setattr(checkout_module._Target, "folds", lambda _: True)
    with pytest.raises(PathConflictError, match="for one path"):
        version.download(root / "2")
    assert tree(root / "2") == {}
    assert version.download(root / "2", path_prefix="Readme").files == 1
    assert log(store, CONTENT).download(root / "3").files == 5


def test_the_probe_for_folding_leaves_nothing(version: Version, root: Path) -> None:
    root.mkdir()
    with checkout_module._Target(str(root)) as target:
        assert not target.folds()
    assert not list(root.iterdir())


# --- failures


def place_of(store: Store, version: Version, path: str) -> Location:
    """Where a file's first chunk is."""
    place = store._engine.view.locate([version[path].chunks[0][0]])[0]
    assert place is not None
    return place


def pack_of(store: Store, version: Version, path: str) -> Path:
    name = place_of(store, version, path).pack.hex()
    return Path(store.url) / "packs" / name[:2] / name


def damage(store: Store, version: Version, path: str) -> None:
    """Flip bits in the frame that holds a file's first chunk."""
    place, pack = place_of(store, version, path), pack_of(store, version, path)
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[place.frame_offset + 20] ^= 0xFF
    pack.write_bytes(data)


def test_damaged_files_are_named_and_all_others_come(store: Store, root: Path) -> None:
    """G2, issue 2: collection, version and path in the error; the rest still downloads; nothing half written."""
    log(store, {"good": b"good"}, "other")
    version = log(store, {"good": b"good", "rotten": os.urandom(500_000), "good2": b"good"})
    damage(store, version, "rotten")
    root.mkdir()
    (root / "rotten").write_bytes(b"what was there")
    with Store.open(store.url) as fresh:
        found = fresh.get("ds")
        with pytest.raises(IntegrityError) as caught:
            found.download(root)
        assert caught.value.exit_code == 20
        assert (caught.value.collection, caught.value.version, caught.value.path) == ("ds", "v0", "rotten")
        assert tree(root) == {"good": b"good", "good2": b"good", "rotten": b"what was there"}
        with pytest.raises(IntegrityError) as read:
            found["rotten"].read()
        assert read.value.path == "rotten"
        assert found["good"].read() == b"good"
        with pytest.raises(VerificationError) as verified:
            found.verify()
        assert (verified.value.changed, verified.value.missing) == (["rotten"], [])


def test_no_room(version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G2: what cannot fit is refused before the first byte (30); what is kept or left out needs no room."""

    def full(_: int) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=1, f_frsize=4)

    monkeypatch.setattr(os, "fstatvfs", full)
    with pytest.raises(BackendError, match="3010 bytes are needed") as caught:
        version.download(root)
    assert caught.value.exit_code == 30
    assert caught.value.errno == errno.ENOSPC
    assert tree(root) == {}
    assert version.download(root, path_prefix="img2").files == 1
    monkeypatch.undo()
    version.download(root)
    monkeypatch.setattr(os, "fstatvfs", full)
    assert len(version.download(root, overwrite="keep").skipped) == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_meanwhile(
    number: int, version: Version, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is ours, with the number; temporary files are gone, what was there is whole."""
    root.mkdir()
    (root / "img").mkdir()
    (root / "img" / "cat.png").write_bytes(b"old")
    write = os.write

    def fail(fd: int, data: memoryview) -> int:
        if len(data) == 3000:
            write(fd, data[:100])
            raise OSError(number, os.strerror(number))
        return write(fd, data)

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(BackendError, match=re.escape(os.strerror(number))) as caught:
        version.download(root)
    assert caught.value.errno == number
    assert caught.value.hint
    left = tree(root)
    assert left["img/cat.png"] == b"old"
    assert all(CONTENT[path] == data for path, data in left.items() if path != "img/cat.png")


def test_an_interrupt_leaves_no_temporary_file(version: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        version.download(root)
    assert tree(root) == {}


# --- G8: verify


def test_verify_is_quiet_when_all_is_well(version: Version, root: Path) -> None:
    version.download(root)
    assert version.verify(root) == version.verify() == version.size


def test_verify_lists_everything_at_once(version: Version, root: Path, tmp_path: Path) -> None:
    """G8, §0.3 #10, §R 13: one error, also a ValueError; foreign files, empty directories and links are found."""
    version.download(root)
    (root / "a.txt").write_bytes(b"ALPHA")
    (root / "img" / "dog.png").write_bytes(b"longer")
    (root / "img2" / "x").unlink()
    (root / "foreign").write_bytes(b"")
    (root / "empty" / "inner").mkdir(parents=True)
    (root / "link").symlink_to("a.txt")
    (root / "dangling").symlink_to("nowhere")
    (root / "img" / "linked").symlink_to(tmp_path)
    with pytest.raises(VerificationError) as caught:
        version.verify(root)
    error = caught.value
    assert isinstance(error, ValueError)
    assert error.exit_code == 20
    assert (error.missing, error.changed) == (["img2/x"], ["a.txt", "img/dog.png"])
    assert error.extra == ["dangling", "empty", "empty/inner", "foreign", "img/linked", "link"]
    assert error.unverified_refs == []
    assert (error.collection, error.version) == ("ds", "v0")
    assert "1 missing, 2 changed, 6 extra" in error.message


def replace_by_link(path: Path, target: Path) -> None:
    path.rename(target)
    path.symlink_to(target)


def test_verify_sees_through_links(version: Version, root: Path, tmp_path: Path) -> None:
    """The right bytes behind a link are not the right content: neither for a file nor for a directory."""
    version.download(root)
    replace_by_link(root / "a.txt", tmp_path / "elsewhere.txt")
    replace_by_link(root / "img", tmp_path / "elsewhere")
    with pytest.raises(VerificationError) as caught:
        version.verify(root)
    assert (caught.value.changed, caught.value.extra) == (["a.txt"], ["img"])


@pytest.mark.timeout(20)
def test_verify_never_blocks(version: Version, root: Path) -> None:
    version.download(root)
    (root / "img" / "dog.png").unlink()
    os.mkfifo(root / "img" / "dog.png")
    os.mkfifo(root / "fifo")
    with pytest.raises(VerificationError) as caught:
        version.verify(root)
    assert (caught.value.changed, caught.value.extra) == (["img/dog.png"], ["fifo"])


def test_verify_of_what_is_no_directory(version: Version, root: Path) -> None:
    for make in (lambda: None, lambda: root.write_bytes(b"")):
        make()
        with pytest.raises(InvalidInputError) as caught:
            version.verify(root)
        assert caught.value.exit_code == 2


def test_verify_the_stored_copy(store: Store, version: Version) -> None:
    """G8: without a root, every stored byte; all problems listed, missing apart from changed."""
    damage(store, version, "img/cat.png")
    with Store.open(store.url) as fresh, pytest.raises(VerificationError) as caught:
        fresh.get("ds").verify()
    assert "img/cat.png" in caught.value.changed
    assert caught.value.missing == []
    pack_of(store, version, "img/cat.png").unlink()
    with Store.open(store.url) as fresh, pytest.raises(VerificationError) as gone:
        fresh.get("ds").verify()
    assert gone.value.missing == [path for path, data in CONTENT.items() if data]
    assert gone.value.changed == []
    for pack in (Path(store.url) / "packs").rglob("*"):
        if pack.is_file():
            pack.unlink()
    with Store.open(store.url) as fresh, pytest.raises(VerificationError, match="list of files") as nothing:
        fresh.get("ds").verify()
    assert (nothing.value.collection, nothing.value.version) == ("ds", "v0")
