"""Giving files back and comparing them (FEATURES G2, G3, G8, §0.3 #10-11): verified, atomic, never outside the root.

Guards I4 from the user's side (what is live can be had, byte for byte) and DESIGN §7 "Read": a file gets its name only
when all its bytes are right.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from casstore import (
    AlreadyExistsError,
    Artifact,
    BackendError,
    DownloadReport,
    IntegrityError,
    InvalidInputError,
    PathConflictError,
    RefusedError,
    Store,
    UnsupportedSchemeError,
    VerificationError,
    Version,
    filebatch,
)
from casstore.checkout import target as target_module
from casstore.cli import main
from casstore.errors import ReferenceChangedError, ReferenceMissingError
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
    for glob in ("**/*", "**"):
        assert version.download(root / "3", glob=glob).matched == len(CONTENT), "the top is at some depth, too"


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
    monkeypatch.setattr(target_module.Target, "folds", lambda _: True)
    with pytest.raises(PathConflictError, match="for one path"):
        version.download(root / "2")
    assert tree(root / "2") == {}
    assert version.download(root / "2", path_prefix="Readme").files == 1
    assert log(store, CONTENT).download(root / "3").files == 5


def test_the_probe_for_folding_leaves_nothing(version: Version, root: Path) -> None:
    root.mkdir()
    with target_module.Target(str(root)) as target:
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

    monkeypatch.setattr(filebatch, "_native", None)  # test_filewriting.py has its errors
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

    monkeypatch.setattr(filebatch, "_native", None)  # no signal is handled within it
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


# --- W&B's signatures


def test_parameters_of_the_reference_are_accepted(version: Version, root: Path) -> None:
    """G2, G9: in W&B's order; what has no effect here says so, once for each."""
    assert version.download(root, False, None, "img", None).files == 2
    assert version.download(root / "2", path_prefix=Path("z") / "y").files == 1
    for name in ("skip_cache", "multipart"):
        for value in (True, False):
            with pytest.warns(DeprecationWarning, match=name):
                assert version.download(root, **{name: value}).files == 5  # type: ignore[arg-type]
    assert tree(root / "img") == {"cat.png": CONTENT["img/cat.png"], "dog.png": b""}


def test_skip_cache_can_give_no_other_bytes(store: Store, root: Path) -> None:
    """G9, §R 4: nothing is remembered from one call to the next, whatever either says."""
    one, two = log(store, {"x": b"one"}, "one"), log(store, {"x": b"two"}, "two")
    with pytest.warns(DeprecationWarning, match="skip_cache"):
        one.download(root, skip_cache=True)
    two.download(root)
    assert tree(root) == {"x": b"two"}
    (root / "x").write_bytes(b"six")  # of the same size
    two.download(root)
    assert tree(root) == {"x": b"two"}


def test_get_path_is_an_old_name(version: Version) -> None:
    """G4."""
    with pytest.warns(DeprecationWarning, match="get_entry"):
        assert version.get_path("a.txt") == version.get_entry("a.txt")
    with pytest.raises(KeyError), pytest.warns(DeprecationWarning, match="get_entry"):
        version.get_path("none")


def test_the_cursor_of_a_listing(version: Version) -> None:
    """G6: the path of the last entry given; another listing goes on there, also one of a page size."""
    assert version.files().cursor is None
    listing = version.files()
    assert iter(listing) is listing
    seen = [next(listing).path, next(listing).path]
    assert listing.cursor == seen[-1]
    rest = version.files(start=listing.cursor)
    assert rest.cursor == listing.cursor
    assert seen + [entry.path for entry in rest] == sorted(CONTENT)
    assert rest.cursor == max(CONTENT)
    pages, cursor = [], None
    while page := list(part := version.files(page_size=2, start=cursor)):
        pages.append([entry.path for entry in page])
        cursor = part.cursor
    assert pages == [sorted(CONTENT)[:2], sorted(CONTENT)[2:4], sorted(CONTENT)[4:]]
    named = version.files(names=["z/y/x/w", "a.txt"])
    assert (next(named).path, named.cursor) == ("a.txt", "a.txt")


def test_per_page_leaves_nothing_out(version: Version) -> None:
    """In W&B it is how many one request brings, not how many come: here it has no effect."""
    with pytest.warns(DeprecationWarning, match="per_page"):
        assert len(list(version.files(per_page=1))) == len(CONTENT)
    with pytest.raises(InvalidInputError):
        version.files(per_page=0)


# --- references (F11, G8)


@pytest.fixture
def referred(store: Store, tmp_path: Path) -> Version:
    """Of a local directory: two references with checksum, one without; and a file of its own."""
    source = tmp_path / "referred"
    source.mkdir()
    for name in ("one", "two", "loose"):
        (source / name).write_bytes(name.encode() * 1000)
    draft = Artifact("refs")
    draft.add_bytes(b"own", "own")
    for name in ("one", "two"):
        draft.add_reference(f"file://{source}/{name}", f"r/{name}")
    draft.add_reference(f"file://{source}/loose", "r/loose", checksum=False)
    return store.log_artifact(draft)


REFERRED = {"own": b"own", **{f"r/{name}": name.encode() * 1000 for name in ("one", "two", "loose")}}


def test_references_are_fetched(referred: Version, root: Path) -> None:
    report = referred.download(root)
    assert tree(root) == REFERRED
    assert (report.files, report.bytes, report.skipped) == (4, sum(map(len, REFERRED.values())), [])
    assert referred["r/one"].download(str(root / "2")) == str(root / "2" / "r" / "one")
    checked_out = root / "checked out"
    referred.checkout(checked_out)
    assert tree(checked_out).keys() - {".casstore-checkout"} == REFERRED.keys()


@pytest.mark.parametrize("way", ["download", "checkout"])
@pytest.mark.parametrize("kind", ["gone", "changed", "same size"])
def test_references_that_are_not_what_they_were(
    kind: str, way: str, referred: Version, root: Path, tmp_path: Path
) -> None:
    """F11: an error (10, 20) after all else was written, with no byte of theirs; or skipped, and the report says so."""
    target = tmp_path / "referred" / "two"
    if kind == "gone":
        target.unlink()
    else:
        target.write_bytes(b"other" if kind == "changed" else b"TWO" * 1000)
    act = getattr(referred, way)
    if way == "checkout":
        root.mkdir()
    with pytest.raises(ReferenceMissingError if kind == "gone" else ReferenceChangedError) as caught:
        act(root)
    assert caught.value.exit_code == (10 if kind == "gone" else 20)
    assert "refs:v0/r/two" in caught.value.message
    left = {path: data for path, data in REFERRED.items() if path != "r/two"}
    assert {path: data for path, data in tree(root).items() if path != ".casstore-checkout"} == left
    report = act(root, allow_missing_references=True)
    assert report.skipped == ["r/two"]
    assert {path: data for path, data in tree(root).items() if path != ".casstore-checkout"} == left
    with pytest.raises(type(caught.value)):
        referred["r/two"].download(str(root))


def test_a_checkout_with_a_bad_reference_deletes_nothing(referred: Version, root: Path, tmp_path: Path) -> None:
    referred.checkout(root)
    (root / "mine").write_bytes(b"mine")
    (tmp_path / "referred" / "loose").unlink()
    with pytest.raises(ReferenceMissingError):
        referred.checkout(root)
    assert (root / "mine").read_bytes() == b"mine"
    report = referred.checkout(root, allow_missing_references=True)
    assert (report.skipped, report.deleted, report.unchanged) == (["r/loose"], ["mine"], 3)
    assert tree(root).keys() - {".casstore-checkout"} == REFERRED.keys()


def test_a_scheme_without_a_handler(store: Store, root: Path) -> None:
    draft = Artifact("opaque")
    draft.add_bytes(b"own", "own")
    draft.add_reference("gopher://host/x", "x", allow_opaque=True)
    version = store.log_artifact(draft)
    with pytest.raises(UnsupportedSchemeError) as caught:
        version.download(root)
    assert caught.value.exit_code == 2
    assert version.download(root, allow_missing_references=True).skipped == ["x"]
    assert tree(root) == {"own": b"own"}
    assert version.verify(check_refs=True).unverified_refs == ("x",)


def test_what_policy_forbids_is_never_skipped(referred: Version, store: Store, root: Path) -> None:
    """It is not the reference that is wrong."""
    store.set_policy(reference_roots=("/nowhere",))
    with pytest.raises(RefusedError):
        referred.download(root, allow_missing_references=True)
    assert tree(root) == {"own": b"own"}


def test_a_failing_disk_is_no_missing_reference(referred: Version, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def fail(fd: int, data: memoryview) -> int:
        if len(data) == 3000:
            raise OSError(errno.EIO, "Input/output error")
        return write(fd, data)

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(BackendError) as caught:
        referred.download(root, allow_missing_references=True)
    assert caught.value.errno == errno.EIO
    assert not [path for path in tree(root) if "casstore-part" in path]


def test_verify_says_which_references_it_did_not_compare(referred: Version, root: Path, tmp_path: Path) -> None:
    """G8, F13: they are no problem by themselves; with ``check_refs`` what they point to is looked at."""
    assert referred.verify() == 3
    assert referred.verify().unverified_refs == ("r/loose", "r/one", "r/two")
    assert referred.verify(check_refs=True).unverified_refs == ("r/loose",)
    referred.download(root)
    assert referred.verify(root).unverified_refs == ("r/loose",)
    assert referred.verify(root, check_refs=True).unverified_refs == ("r/loose",)
    (root / "r" / "one").write_bytes(b"ONE" * 1000)
    (root / "r" / "loose").write_bytes(b"anything")
    with pytest.raises(VerificationError) as caught:
        referred.verify(root)
    assert (caught.value.changed, caught.value.unverified_refs) == (["r/one"], ["r/loose"])
    (tmp_path / "referred" / "one").write_bytes(b"another")
    (tmp_path / "referred" / "two").unlink()
    referred.verify()
    with pytest.raises(VerificationError) as caught:
        referred.verify(check_refs=True)
    error = caught.value
    assert (error.missing, error.changed, error.unverified_refs) == (["r/two"], ["r/one"], ["r/loose"])


def test_references_on_the_command_line(referred: Version, store: Store, root: Path, tmp_path: Path) -> None:
    def run(*words: object, code: int = 0) -> Any:
        result = CliRunner().invoke(main, [*map(str, words), "--store", store.url])
        assert result.exit_code == code, result.output
        return result

    assert json.loads(run("verify", "refs", "--json").stdout)["unverified_refs"] == ["r/loose", "r/one", "r/two"]
    lines = run("verify", "refs", "--check-refs").stdout.splitlines()
    assert lines == ["unverified_refs  r/loose", "refs:v0 ok 3"]
    (tmp_path / "referred" / "one").write_bytes(b"another")
    run("get", "refs", "-o", root, code=20)
    run("verify", "refs", "--check-refs", code=20)
    (tmp_path / "referred" / "one").unlink()
    run("get", "refs", "-o", root, code=10)
    run("checkout", "refs", root / "2", code=10)
    for words in (("get", "refs", "-o", root), ("checkout", "refs", root / "2", "--yes")):
        assert run(*words, "--allow-missing-references").stderr == "skipped r/one\n"
    assert run("get", "refs", "-o", root, "--prefix", "own/", code=10)
