"""Drafts (FEATURES A1-A16, D1-D2) and bad input: a refused call names the error and changes neither draft nor store.

Guards DESIGN §8's signatures and principle 9 (read once): no draft ever holds half of what was added.
"""

from __future__ import annotations

import gc
import io
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from casstore import (
    Artifact,
    ArtifactFinalizedError,
    ArtifactNotLoggedError,
    BackendError,
    CasstoreError,
    ConflictError,
    EntryNotFoundError,
    InvalidInputError,
    InvalidMetadataError,
    InvalidNameError,
    InvalidPathError,
    PathConflictError,
    Store,
    StoreConfig,
    Version,
)
from casstore.model import EntryKind
from casstore.testing.permissions import without_override
from casstore.testing.snapshot import snapshot

Contents = dict[str, bytes]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def place(store: Store) -> Path:
    """The directory of the store."""
    return Path(store.url)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a few files."""
    root = tmp_path / "files"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"alpha")
    (root / "sub" / "b.txt").write_bytes(b"beta")
    return root


@contextmanager
def unchanged(place: Path, draft: Artifact) -> Iterator[None]:
    """The store on disk and the draft are afterwards what they were before."""
    before, listed, changes = snapshot(place), list(draft.files()), draft.changes()
    directories = +draft._places.directories
    yield
    assert snapshot(place) == before
    assert list(draft.files()) == listed
    assert draft.changes() == changes
    assert +draft._places.directories == directories
    assert draft.is_draft()


def content(version: Version) -> Contents:
    return {entry.path: entry.read() for entry in version.files() if entry.kind is EntryKind.FILE}


def paths(draft: Artifact) -> list[str]:
    return [entry.path for entry in draft.files()]


def draft_with(name: str, **contents: bytes) -> Artifact:
    draft = Artifact(name)
    for path, data in contents.items():
        draft.add_bytes(data, path)
    return draft


# --- A1, A13-A16: construction and life


def test_the_constructor_is_pure_and_refuses_what_it_does_not_know() -> None:
    """A1, A16, B11: nothing is looked up; incremental, use_as and storage_region are not parameters."""
    draft = Artifact("ds")
    assert (draft.name, draft.type, draft.description, draft.metadata, draft.base) == ("ds", "file", "", {}, None)
    assert draft.is_draft()
    for keyword in ("incremental", "use_as", "storage_region"):
        with pytest.raises(TypeError):
            Artifact("ds", **{keyword: None})  # type: ignore[arg-type]


def test_a_dropped_draft_leaves_nothing(
    store: Store, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1, Q11: no staging directory, no file, whatever was added."""
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    before = snapshot(place)
    draft = Artifact("ds")
    draft.add_bytes(os.urandom(3 << 20), "big")
    with draft.new_file("also", "wb") as file:
        file.write(os.urandom(3 << 20))  # type: ignore[arg-type]
    assert not list(spool.iterdir())
    del draft, file
    gc.collect()
    assert not list(spool.iterdir())
    assert snapshot(place) == before


def test_finalize_freezes_content_not_labels(store: Store, files: Path) -> None:
    """A14."""
    draft = draft_with("ds", a=b"1")
    draft.finalize()
    assert not draft.is_draft()
    for change in (
        lambda: draft.add_bytes(b"", "x"),
        lambda: draft.add_stream(io.BytesIO(), "x"),
        lambda: draft.add_file(files / "a.txt"),
        lambda: draft.add_dir(files),
        lambda: draft.remove("a"),
        lambda: draft.new_file("x").__enter__(),
    ):
        with pytest.raises(ArtifactFinalizedError) as caught:
            change()
        assert caught.value.exit_code == 14
        assert "new_draft" in caught.value.hint
    assert paths(draft) == ["a"]
    draft.description, draft.metadata = "words", {"k": 1}
    version = store.log_artifact(draft)
    assert (version.description, version.metadata) == ("words", {"k": 1})


def test_logging_finalizes(store: Store) -> None:
    draft = draft_with("ds", a=b"1")
    store.log_artifact(draft)
    with pytest.raises(ArtifactFinalizedError):
        draft.add_bytes(b"", "x")


def test_where_a_local_file_was_added(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A13: a reverse lookup; only of files added by path."""
    draft = Artifact("ds")
    draft.add_dir(files, name="data")
    draft.add_bytes(b"", "bytes")
    assert draft.get_added_local_path_name(files / "sub" / "b.txt") == "data/sub/b.txt"
    monkeypatch.chdir(files)
    assert draft.get_added_local_path_name("a.txt") == "data/a.txt"
    assert draft.get_added_local_path_name("c.txt") is None
    with pytest.raises(InvalidInputError):
        draft.get_added_local_path_name(5)  # type: ignore[arg-type]


# --- A6, A7: add_file


def test_add_file_is_named_after_the_file_or_as_told(files: Path) -> None:
    """A6, A11: ``checkpoints/model.h5`` becomes ``model.h5``."""
    draft = Artifact("ds")
    assert draft.add_file(files / "sub" / "b.txt").path == "b.txt"
    assert draft.add_file(str(files / "sub" / "b.txt"), "x/y").path == "x/y"
    assert draft.add_file(files / "a.txt").size == 5
    assert paths(draft) == ["a.txt", "b.txt", "x/y"]


def test_same_path_same_bytes_is_nothing_other_bytes_need_overwrite(files: Path, place: Path) -> None:
    draft = Artifact("ds")
    draft.add_file(files / "a.txt", "p")
    draft.add_bytes(b"alpha", "p")
    draft.add_file(files / "a.txt", "p")
    with unchanged(place, draft), pytest.raises(PathConflictError) as caught:
        draft.add_bytes(b"other", "p")
    assert caught.value.exit_code == 11
    assert "overwrite" in caught.value.hint
    draft.add_bytes(b"other", "p", overwrite=True)
    assert draft.get_entry("p").size == 5


def test_equality_is_of_bytes_whatever_the_sizes(files: Path) -> None:
    """Spooled, local and stored content of more than one block are compared to the last byte."""
    big = os.urandom((2 << 20) + 7)
    (files / "big").write_bytes(big)
    draft = Artifact("ds")
    draft.add_file(files / "big")
    draft.add_bytes(big, "big")
    for other in (big[:-1], big[:-1] + bytes([big[-1] ^ 1]), big + b"x"):
        with pytest.raises(PathConflictError):
            draft.add_bytes(other, "big")


def test_ignored_options_warn(files: Path) -> None:
    """A7: ``is_tmp`` and ``skip_cache`` are accepted and say that they do nothing; ``policy`` is checked."""
    draft = Artifact("ds")
    for keyword in ("is_tmp", "skip_cache"):
        with pytest.warns(DeprecationWarning, match=keyword):
            draft.add_file(files / "a.txt", **{keyword: True})  # type: ignore[arg-type]
    draft.add_file(files / "a.txt", policy="immutable")
    with pytest.raises(InvalidInputError) as caught:
        draft.add_file(files / "a.txt", policy="copy")
    assert caught.value.exit_code == 2
    with pytest.raises(InvalidInputError):
        draft.add_dir(files, policy="copy")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    home = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(home)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    os.symlink("/dev/zero", path)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [make_fifo, make_socket, make_directory, make_device, make_dangling, make_loop])
def test_what_is_no_regular_file_is_refused_without_blocking(
    make: Callable[[Path], None], store: Store, place: Path, files: Path
) -> None:
    """A6: a FIFO without a writer, an endless device, a socket: `InvalidInputError`, at once."""
    special = files / "special"
    make(special)
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(InvalidInputError) as caught:
        draft.add_file(special)
    assert caught.value.exit_code == 2
    assert str(special) in caught.value.message


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [make_fifo, make_socket])
def test_special_files_in_a_tree(make: Callable[[Path], None], store: Store, place: Path, files: Path) -> None:
    make(files / "sub" / "special")
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(InvalidInputError, match="not a regular file"):
        draft.add_dir(files)
    draft.add_dir(files, exclude=["special"])
    assert paths(draft) == ["a", "a.txt", "sub/b.txt"]


@pytest.mark.parametrize("path", ["", "no/such", "a\0b", 5, None, b"bytes"])
def test_paths_that_cannot_be_added(path: object, store: Store, place: Path) -> None:
    """DESIGN §12: a local path that does not exist is the argument's fault: 2, not 10."""
    draft = Artifact("ds")
    for add in (draft.add_file, draft.add_dir):
        with unchanged(place, draft), pytest.raises(InvalidInputError) as caught:
            add(path)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2


# --- files that change


def change_bytes(path: Path) -> None:
    path.write_bytes(b"ALPHABET")


def change_in_place(path: Path) -> None:
    info = path.stat()
    path.write_bytes(b"ALPHA")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))


def replace_by_rename(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"ALPHA")
    info = path.stat()
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def delete(path: Path) -> None:
    path.unlink()


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "change",
    [change_bytes, change_in_place, replace_by_rename, truncate, delete, replace_by_fifo, replace_by_directory],
)
def test_a_file_that_changed_between_add_and_log(
    change: Callable[[Path], None], store: Store, place: Path, files: Path
) -> None:
    """A6: other bytes than those that were there at ``add`` are never stored silently (decision 0010)."""
    draft = draft_with("ds", first=b"1", last=b"2")
    draft.add_file(files / "a.txt", "m")
    change(files / "a.txt")
    with unchanged(place, draft), pytest.raises(InvalidInputError) as caught:
        store.log_artifact(draft)
    assert str(files / "a.txt") in caught.value.message
    with pytest.raises(CasstoreError):
        store.get("ds")
    draft.remove("m")
    assert store.log_artifact(draft).version == "v0"


def test_a_file_that_changed_can_be_added_again_with_overwrite(store: Store, files: Path) -> None:
    """What the hint says must work; without ``overwrite`` it is a conflict, not a second complaint about the first."""
    draft = Artifact("ds")
    draft.add_file(files / "a.txt")
    (files / "a.txt").write_bytes(b"longer than before")
    with pytest.raises(PathConflictError):
        draft.add_file(files / "a.txt")
    draft.add_file(files / "a.txt", overwrite=True)
    assert content(store.log_artifact(draft)) == {"a.txt": b"longer than before"}


class _Growing(io.FileIO):
    """A file that something is appended to whenever a block of it was read."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        with open(self.name, "ab") as other:
            other.write(b"x" * max(len(data), 1))
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(memoryview(buffer).nbytes)
        memoryview(buffer)[: len(data)] = data
        return len(data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [1000, 9 << 20])
def test_a_file_that_grows_while_it_is_read(
    size: int, store: Store, place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A6: found, whatever the size, and also if it grows faster than it can be read (that log must end)."""
    grown = files / "grown"
    grown.write_bytes(os.urandom(size))
    draft = draft_with("ds", a=b"1")
    draft.add_file(grown)

    def open_growing(source: object) -> BinaryIO:
        return _Growing(grown)

    monkeypatch.setattr("casstore.reading.open_local", open_growing)
    with unchanged(place, draft), pytest.raises(InvalidInputError, match="changed while reading"):
        store.log_artifact(draft)
    assert grown.stat().st_size < 4 * size + 100


@pytest.mark.timeout(60)
def test_a_thread_that_appends_while_a_large_file_is_logged(store: Store, place: Path, files: Path) -> None:
    log = files / "app.log"
    log.write_bytes(os.urandom(6 << 20))
    draft = Artifact("ds")
    draft.add_file(log)
    stop, started = threading.Event(), threading.Event()

    def append() -> None:
        with log.open("ab") as file:
            while not stop.is_set():
                file.write(b"line\n" * 100)
                file.flush()
                started.set()

    thread = threading.Thread(target=append)
    thread.start()
    try:
        started.wait()
        with unchanged(place, draft), pytest.raises(InvalidInputError):
            store.log_artifact(draft)
    finally:
        stop.set()
        thread.join()


def test_a_failed_log_takes_its_packs_back(tmp_path: Path, files: Path) -> None:
    """Packs that were published before the failure do not stay behind as orphans until a collection."""
    place = tmp_path / "small-packs"
    with Store.create(place, config=StoreConfig(pack_bytes=64 * 1024)) as store:
        draft = Artifact("ds")
        for i in range(20):
            draft.add_bytes(os.urandom(1 << 20), f"{i:02}")
        draft.add_file(files / "a.txt", "z")
        change_bytes(files / "a.txt")
        before, reached = snapshot(place), []
        with pytest.raises(InvalidInputError):
            store.log_artifact(draft, progress=lambda *_: reached.append(len(snapshot(place))))
        after = snapshot(place)
        directories = {path for path, what in after.items() if what == "directory"}
        assert max(reached) > len(before) + len(directories), "packs were published meanwhile"
        assert {path: what for path, what in after.items() if what != "directory"} == {
            path: what for path, what in before.items() if what != "directory"
        }


# --- permissions


def test_unreadable_files_and_directories(tmp_path: Path, files: Path) -> None:
    secret = files / "sub" / "secret"
    secret.write_bytes(b"secret")
    with without_override(), Store.open(tmp_path / "s", create=True) as store:
        place = tmp_path / "s"
        store.log_artifact(draft_with("other", a=b"0"))
        secret.chmod(0)
        draft = draft_with("ds", a=b"1")
        draft.add_file(secret)
        with unchanged(place, draft), pytest.raises(InvalidInputError, match="Permission denied") as caught:
            store.log_artifact(draft)
        assert caught.value.exit_code == 2
        (files / "sub").chmod(0)
        try:
            for add in (lambda: draft.add_file(secret, "x"), lambda: draft.add_dir(files)):
                with unchanged(place, draft), pytest.raises(InvalidInputError, match="Permission denied"):
                    add()
        finally:
            (files / "sub").chmod(0o700)


# --- add_bytes, add_stream, new_file


def test_add_bytes_takes_any_buffer(store: Store) -> None:
    """DESIGN §12."""
    draft = Artifact("ds")
    draft.add_bytes(b"bytes", "a")
    draft.add_bytes(bytearray(b"array"), "b")
    draft.add_bytes(memoryview(b"every other byte")[::2], "c")
    draft.add_bytes(b"", "empty")
    assert content(store.log_artifact(draft)) == {"a": b"bytes", "b": b"array", "c": b"eeyohrbt"[:8], "empty": b""}
    for wrong in ("text", 3, None, [1]):
        with pytest.raises(InvalidInputError):
            Artifact("ds").add_bytes(wrong, "x")  # type: ignore[arg-type]


def test_add_stream_reads_from_where_the_stream_is(store: Store) -> None:
    stream = io.BytesIO(b"0123456789")
    stream.seek(4)
    draft = Artifact("ds")
    draft.add_stream(stream, "tail")
    stream.close()
    assert content(store.log_artifact(draft)) == {"tail": b"456789"}


class _Failing(io.RawIOBase):
    def __init__(self, answer: object) -> None:
        self.answers: list[object] = [b"some", answer]

    def read(self, size: int = -1, /) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    "stream", [io.StringIO("text"), io.StringIO(""), _Failing(None), _Failing("text"), None, b"bytes"]
)
def test_streams_that_are_not_binary(stream: object, store: Store, place: Path) -> None:
    """A stream with nothing to say *yet* is refused: to take it for the end would cut the content short."""
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(InvalidInputError):
        draft.add_stream(stream, "x")  # type: ignore[arg-type]


def test_what_a_stream_raises_passes_through(place: Path) -> None:
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(ZeroDivisionError):
        draft.add_stream(_Failing(ZeroDivisionError()), "x")  # type: ignore[arg-type]


def test_new_file(store: Store) -> None:
    """A9: text and bytes; line ends as written; ``w`` replaces."""
    draft = Artifact("ds")
    with draft.new_file("hello.txt") as file:
        file.write("grüße\r\n")  # type: ignore[call-overload]
    with draft.new_file("latin", "w", encoding="latin-1") as file:
        file.write("ü")  # type: ignore[call-overload]
    with draft.new_file("raw", "xb") as file:
        file.write(b"\0" * (3 << 20))  # type: ignore[arg-type]
    with draft.new_file("raw", "wb") as file:
        file.write(b"short")  # type: ignore[arg-type]
    assert content(store.log_artifact(draft)) == {"hello.txt": "grüße\r\n".encode(), "latin": b"\xfc", "raw": b"short"}


def test_new_file_adds_nothing_if_the_block_raises(place: Path) -> None:
    draft = draft_with("ds", a=b"1")
    for mode in ("x", "wb"):
        with unchanged(place, draft), pytest.raises(ZeroDivisionError), draft.new_file("b", mode) as file:
            file.write("x" if mode == "x" else b"x")  # type: ignore[arg-type]
            raise ZeroDivisionError


def test_new_file_modes(place: Path) -> None:
    draft = draft_with("ds", a=b"1")
    for mode in ("r", "a", "w+", "rb", "ab", "x+", "", "wx", "U"):
        with unchanged(place, draft), pytest.raises(InvalidInputError) as caught, draft.new_file("b", mode):
            pass
        assert caught.value.exit_code == 2
    with pytest.raises(PathConflictError), draft.new_file("a") as file:
        pytest.fail(f"mode x opened {file}, and would have taken the same content for no change")
    for encoding in ("klingon", "hex", "utf-8\0", 5):
        with pytest.raises(InvalidInputError), draft.new_file("b", encoding=encoding):  # type: ignore[arg-type]
            pass
    with pytest.raises(InvalidInputError), draft.new_file("b", "wb", encoding="utf-8"):
        pass
    with pytest.raises(PathConflictError), draft.new_file("a/b"):
        pass
    with pytest.raises(InvalidPathError), draft.new_file("../b"):
        pass


@pytest.mark.parametrize("mode", ["x", "xb"])
def test_a_file_closed_inside_the_block_is_complete(mode: str, store: Store) -> None:
    draft = Artifact("ds")
    with draft.new_file("a", mode) as file:
        file.write("data" if mode == "x" else b"data")  # type: ignore[arg-type]
        file.close()
    assert content(store.log_artifact(draft)) == {"a": b"data"}


def test_no_room_for_temporary_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes nothing; the error is ours (30) and the draft is as it was."""

    def full(*_: object, **__: object) -> io.RawIOBase:
        return io.FileIO("/dev/full", "r+")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(BackendError, match="No space left") as caught:
        draft.add_bytes(os.urandom(2 << 20), "x")
    assert caught.value.exit_code == 30


# --- A8: add_dir


def test_add_dir_goes_to_the_root_or_below_a_name(files: Path) -> None:
    """A8, A11. One trailing ``/`` of the name is forgiven, as everywhere one names directories."""
    for name, prefix in ((None, ""), ("images", "images/"), ("images/", "images/"), ("x/y", "x/y/")):
        draft = Artifact("ds")
        draft.add_dir(files, name=name)
        assert paths(draft) == [prefix + "a.txt", prefix + "sub/b.txt"]


@pytest.mark.parametrize("name", ["", "/", "/abs", "..", "a/../b", "a//", "x\0", 5, "\udc80"])
def test_add_dir_bad_names(name: object, files: Path, place: Path) -> None:
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(InvalidPathError):
        draft.add_dir(files, name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [b"line\nbreak", b"back\\slash", b"\xff\xfe", b"C:drive", b"del\x7f"])
def test_add_dir_refuses_names_no_artifact_can_have(name: bytes, files: Path, place: Path) -> None:
    (files / "sub" / os.fsdecode(name)).write_bytes(b"")
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(InvalidPathError):
        draft.add_dir(files / "sub")


def test_add_dir_over_long_paths(files: Path, place: Path) -> None:
    """4,096 bytes with the name, which no path on disk alone needs to have."""
    draft = draft_with("ds", a=b"1")
    name = "/".join(["x" * 250] * 16)
    draft.add_dir(files, name=name)
    draft.remove(name)
    deeper = name + "/" + "y" * (4096 - len(name) - len("/sub/b.txt"))
    with unchanged(place, draft), pytest.raises(InvalidPathError, match="4097 bytes"):
        draft.add_dir(files, name=deeper)


def test_add_dir_twice(files: Path, place: Path) -> None:
    """``merge=False``: equal content is fine, other content a conflict; ``True``: replaced, and nothing removed."""
    draft = Artifact("ds")
    draft.add_bytes(b"kept", "kept")
    draft.add_dir(files)
    draft.add_dir(files)
    (files / "sub" / "b.txt").write_bytes(b"BETA!")
    (files / "new").write_bytes(b"")
    with unchanged(place, draft), pytest.raises(PathConflictError, match=r"sub/b\.txt"):
        draft.add_dir(files)
    draft.add_dir(files, merge=True)
    assert [(entry.path, entry.size) for entry in draft.files()] == [
        ("a.txt", 5),
        ("kept", 4),
        ("new", 0),
        ("sub/b.txt", 5),
    ]


def test_add_dir_globs(files: Path) -> None:
    (files / ".git").mkdir()
    (files / ".git" / "x.txt").write_bytes(b"")
    draft = Artifact("ds")
    draft.add_dir(files, exclude=[".git"])
    assert paths(draft) == ["a.txt", "sub/b.txt"]
    draft = Artifact("ds")
    draft.add_dir(files, include=["sub"])
    assert paths(draft) == ["sub/b.txt"]
    with pytest.raises(InvalidInputError):
        draft.add_dir(files, exclude="*.txt")
    for wrong in ([b"*.txt"], 5, b"*"):
        with pytest.raises(InvalidInputError):
            draft.add_dir(files, include=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("glob", "left"),
    [
        ("**/*.txt", ["x"]),
        ("**/a.txt", ["sub/b.txt", "sub/deep/er/b.txt", "x"]),
        ("sub/**", ["a.txt", "x"]),
        ("sub/**/b.txt", ["a.txt", "x"]),
        ("**/deep/**/b.txt", ["a.txt", "sub/b.txt", "x"]),
        ("su**/b.txt", ["a.txt", "x"]),
        ("s**/x", ["a.txt", "sub/b.txt", "sub/deep/er/b.txt", "x"]),
        ("**", []),
    ],
)
def test_two_stars_are_any_depth_also_none(glob: str, left: list[str], files: Path) -> None:
    """As in .gitignore: ``**/`` does not leave out what is at the top."""
    (files / "sub" / "deep" / "er").mkdir(parents=True)
    (files / "sub" / "deep" / "er" / "b.txt").write_bytes(b"")
    (files / "x").write_bytes(b"")
    draft, rest = Artifact("ds"), Artifact("ds")
    draft.add_dir(files, exclude=[glob])
    assert paths(draft) == left
    rest.add_dir(files, include=[glob])
    assert set(paths(rest)) == {"a.txt", "sub/b.txt", "sub/deep/er/b.txt", "x"} - set(left)


def test_add_dir_modes_and_empty_directories(store: Store, files: Path, tmp_path: Path) -> None:
    """Only if asked for; then they are content, restored and part of the digest."""
    (files / "empty" / "inner").mkdir(parents=True)
    (files / "a.txt").chmod(0o750)
    plain, kept = Artifact("ds"), Artifact("ds")
    plain.add_dir(files)
    kept.add_dir(files, keep_mode=True, keep_empty_dirs=True)
    assert paths(plain) == ["a.txt", "sub/b.txt"]
    assert paths(kept) == ["a.txt", "empty/inner", "sub/b.txt"]
    first, second = store.log_artifact(plain), store.log_artifact(kept)
    assert first.digest != second.digest
    second.download(tmp_path / "out")
    assert (tmp_path / "out" / "empty" / "inner").is_dir()
    assert (tmp_path / "out" / "a.txt").stat().st_mode & 0o777 == 0o750


def test_a_very_deep_tree(store: Store, tmp_path: Path) -> None:
    """1,500 directories in one another are allowed by the rules, so they must work all the way."""
    deep = tmp_path / "deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    try:
        draft = Artifact("ds")
        draft.add_dir(deep)
        version = store.log_artifact(draft)
        version.download(tmp_path / "out")
        assert version.verify(tmp_path / "out") == 0
    finally:  # pytest's own clean-up would fail: shutil.rmtree is recursive
        subprocess.run(["rm", "-rf", deep, tmp_path / "out"], check=True)


# --- symlinks


@pytest.fixture
def linked(files: Path, tmp_path: Path) -> Path:
    (files / "to-file").symlink_to("a.txt")
    (files / "to-dir").symlink_to("sub")
    return files


def test_symlinks_are_an_error_by_default_and_all_are_listed(linked: Path, place: Path) -> None:
    """A8."""
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(InvalidInputError, match="2 symbolic links") as caught:
        draft.add_dir(linked)
    assert "to-dir, to-file" in caught.value.message
    for mode in ("skip", "follow", "store"):
        assert mode in caught.value.hint
    with pytest.raises(InvalidInputError):
        draft.add_dir(linked, symlinks="maybe")


def test_symlinks_skipped(linked: Path) -> None:
    (linked / "dangling").symlink_to("nowhere")
    (linked / "loop").symlink_to("loop")
    draft = Artifact("ds")
    draft.add_dir(linked, symlinks="skip")
    assert paths(draft) == ["a.txt", "sub/b.txt"]


def test_symlinks_followed(store: Store, linked: Path) -> None:
    draft = Artifact("ds")
    draft.add_dir(linked, symlinks="follow")
    assert content(store.log_artifact(draft)) == {
        "a.txt": b"alpha",
        "sub/b.txt": b"beta",
        "to-dir/b.txt": b"beta",
        "to-file": b"alpha",
    }


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("out", "/etc/hostname", "out of the tree"),
        ("up", "../store", "out of the tree"),
        ("dangling", "nowhere", "cannot be followed"),
        ("loop", "loop", "cannot be followed"),
        ("sub/back", "..", "leads back"),
        ("device", "/dev/zero", "out of the tree"),
    ],
)
def test_symlinks_that_cannot_be_followed(
    name: str, target: str, message: str, store: Store, place: Path, files: Path
) -> None:
    """A8: out of the tree, in a circle, to nothing: refused as a whole, and nothing of it is in the draft."""
    (files / name).symlink_to(target)
    draft = draft_with("ds", a=b"1")
    with unchanged(place, draft), pytest.raises(InvalidInputError, match=message):
        draft.add_dir(files, symlinks="follow")


def test_symlinks_out_of_the_tree_if_allowed(files: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"else")
    (files / "out").symlink_to(tmp_path / "elsewhere")
    (files / "dev").symlink_to("/dev/zero")
    draft = Artifact("ds")
    with pytest.raises(InvalidInputError, match="device"):
        draft.add_dir(files, symlinks="follow", allow_outside=True)
    draft.add_dir(files, symlinks="follow", allow_outside=True, exclude=["dev"])
    assert paths(draft) == ["a.txt", "out", "sub/b.txt"]


def test_symlinks_stored_as_links(store: Store, linked: Path, tmp_path: Path) -> None:
    (linked / "dangling").symlink_to("/nowhere/at/all")
    draft = Artifact("ds")
    draft.add_dir(linked, symlinks="store")
    draft.add_dir(linked, symlinks="store")
    version = store.log_artifact(draft)
    report = version.download(tmp_path / "out")
    assert (report.files, report.linked) == (2, 3)
    assert os.readlink(tmp_path / "out" / "dangling") == "/nowhere/at/all"
    assert version["to-dir"].kind is EntryKind.LINK
    again = version.new_draft()
    again.add_dir(linked, symlinks="store")
    assert not store.log_artifact(again).created
    with pytest.raises(InvalidInputError):
        version["to-dir"].open()
    with pytest.raises(InvalidInputError):
        version["to-dir"].read()


def test_a_link_given_by_name_is_followed(store: Store, linked: Path) -> None:
    """``add_file`` of a link: who names it means what it points at."""
    draft = Artifact("ds")
    draft.add_file(linked / "to-file")
    assert content(store.log_artifact(draft)) == {"to-file": b"alpha"}


# --- file against directory


def test_file_and_directory_conflicts_in_both_orders(place: Path) -> None:
    """A11: ``x`` with ``x/y`` is refused when it is added, not found at download."""
    for first, second in (("x", "x/y"), ("x/y", "x"), ("x", "x/y/z"), ("a/x/y", "a/x"), ("a", "a/x/y")):
        for overwrite in (False, True):
            draft = Artifact("ds")
            draft.add_bytes(b"1", first)
            with unchanged(place, draft), pytest.raises(PathConflictError) as caught:
                draft.add_bytes(b"2", second, overwrite=overwrite)
            assert caught.value.exit_code == 11
    draft = draft_with("ds", x=b"1")
    draft.add_bytes(b"2", "x2/y")
    draft.add_bytes(b"2", "xy")
    draft.remove("x")
    draft.add_bytes(b"3", "x/y")


def test_conflicts_with_the_base_of_a_draft(store: Store, place: Path) -> None:
    base = Artifact("ds")
    base.add_bytes(b"1", "file")
    base.add_bytes(b"2", "dir/inner")
    version = store.log_artifact(base)
    draft = version.new_draft()
    for path in ("file/x", "dir", "dir/inner/x"):
        with unchanged(place, draft), pytest.raises(PathConflictError):
            draft.add_bytes(b"3", path)
    draft.remove("file")
    draft.remove("dir/inner")
    draft.add_bytes(b"3", "file/x")
    draft.add_bytes(b"3", "dir")
    assert content(store.log_artifact(draft)) == {"dir": b"3", "file/x": b"3"}


def test_conflicts_inside_add_dir(files: Path, place: Path) -> None:
    for path, name in (("sub", None), ("a.txt/x", None), ("n", "n"), ("n/sub", "n"), ("n", "n/m")):
        draft = Artifact("ds")
        draft.add_bytes(b"1", path)
        for merge in (False, True):
            with unchanged(place, draft), pytest.raises(PathConflictError):
                draft.add_dir(files, name=name, merge=merge)


def test_an_empty_directory_that_is_filled_is_a_marker_no_more(store: Store, files: Path) -> None:
    """The content decides: filled later or from the start, before or after a log, the digest is the same."""
    (files / "empty").mkdir()
    fresh = Artifact("ds")
    fresh.add_dir(files)
    fresh.add_bytes(b"x", "empty/x")
    wanted = store.log_artifact(fresh).digest
    filled = Artifact("ds")
    filled.add_dir(files, keep_empty_dirs=True)
    filled.add_bytes(b"x", "empty/x")
    assert store.log_artifact(filled).digest == wanted
    base = Artifact("ds2")
    base.add_dir(files, keep_empty_dirs=True)
    draft = store.log_artifact(base).new_draft()
    draft.add_bytes(b"x", "empty/x")
    draft.add_dir(files, keep_empty_dirs=True)
    assert store.log_artifact(draft).digest == wanted


# --- A12: remove


def test_remove_by_whole_parts(place: Path) -> None:
    draft = Artifact("ds")
    for path in ("su", "sub/a", "sub/b/c", "subway"):
        draft.add_bytes(b"1", path)
    for path in ("s", "", ".", "su/", "/", "nothing", "su/x", "\udc80"):
        with unchanged(place, draft), pytest.raises(EntryNotFoundError) as caught:
            draft.remove(path)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.exit_code == 10
    assert draft.remove("sub/b/") == 1
    draft.add_bytes(b"1", "sub/b/c")
    assert draft.remove("sub") == 2
    assert draft.remove(draft.get_entry("su")) == 1
    assert paths(draft) == ["subway"]
    with pytest.raises(InvalidInputError):
        draft.remove(5)  # type: ignore[arg-type]


def test_remove_in_a_draft_of_a_version(store: Store) -> None:
    base = Artifact("ds")
    for path in ("d/a", "d/b", "e"):
        base.add_bytes(path.encode(), path)
    draft = store.log_artifact(base).new_draft()
    draft.add_bytes(b"new", "d/c")
    draft.add_bytes(b"other", "d/a", overwrite=True)
    assert draft.remove("d") == 3
    with pytest.raises(EntryNotFoundError):
        draft.remove("d")
    draft.add_bytes(b"d/a", "d/a")
    assert draft.remove("d/a") == 1
    assert paths(draft) == ["e"]
    assert "d/a" not in draft
    with pytest.raises(EntryNotFoundError):
        draft.get_entry("d/a")


# --- entries of drafts


def test_entries_of_a_draft_cannot_be_read(store: Store) -> None:
    draft = draft_with("ds", a=b"1")
    entry = draft.get_entry("a")
    assert entry.size == 1
    assert entry.digest is None
    for use in (entry.read, entry.open, entry.download):
        with pytest.raises(ArtifactNotLoggedError) as caught:
            use()
        assert caught.value.exit_code == 14
    version = store.log_artifact(draft)
    assert version.new_draft().get_entry("a").read() == b"1", "what comes from the base is logged already"


def test_add_entry_shares_content(store: Store) -> None:
    """F8 inside one store: no bytes are read or written."""
    data = os.urandom(1 << 20)
    version = store.log_artifact(draft_with("ds", big=data))
    other = Artifact("other")
    other.add_entry(version["big"], "moved/big")
    logged = store.log_artifact(other)
    assert content(logged) == {"moved/big": data}
    assert logged.new_stored_bytes < 4096
    with pytest.raises(InvalidInputError):
        Artifact("x").add_entry(draft_with("y", a=b"").get_entry("a"))


def test_content_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "second", create=True) as second:
        version = second.log_artifact(draft_with("ds", a=b"1"))
        mixed = Artifact("ds")
        mixed.add_entry(version["a"])
        for draft in (version.new_draft(), mixed):
            with unchanged(Path(store.url), draft), pytest.raises(InvalidInputError, match="another store"):
                store.log_artifact(draft)


def test_content_collected_before_the_log_is_a_conflict(store: Store) -> None:
    """An entry taken over does not hold its content; the message says so instead of "try again"."""
    version = store.log_artifact(draft_with("ds", a=b"1" * 1000))
    draft = Artifact("other")
    draft.add_entry(version["a"])
    version.delete()
    store.trash.purge("ds:v0")
    store.gc(grace=0)
    with pytest.raises(ConflictError, match="collected meanwhile"):
        store.log_artifact(draft)


def test_arguments_of_log_artifact(store: Store, place: Path) -> None:
    draft = draft_with("ds", a=b"1")
    bad: list[dict[str, object]] = [
        {"dedup": "sometimes"},
        {"aliases": "best"},
        {"aliases": ["v3"]},
        {"aliases": [f"a{i}" for i in range(101)]},
        {"tags": ["a\n"]},
        {"ttl": 30},
        {"project": ""},
        {"project": "a/b/c"},
        {"project": 5},
        {"base": "best"},
        {"base": "other:v0"},
        {"base": 5},
        {"if_base_latest": True},
    ]
    for keywords in bad:
        with unchanged(place, draft), pytest.raises(InvalidInputError) as caught:
            store.log_artifact(draft, **keywords)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2, keywords
    for wrong in ("ds", None, 5):
        with pytest.raises(InvalidInputError):
            store.log_artifact(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidNameError):
        store.log_artifact(draft, project="..")


def test_metadata_that_grew_in_place_is_noticed_at_log(store: Store, place: Path) -> None:
    """A4: checked when assigned and again when logged."""
    draft = draft_with("ds", a=b"1")
    draft.metadata = {"list": []}
    draft.metadata["list"].append(float("nan"))  # type: ignore[attr-defined]
    with unchanged(place, draft), pytest.raises(InvalidMetadataError):
        store.log_artifact(draft)
    draft.metadata = {}
    for i in range(101):
        draft.metadata[f"k{i}"] = i
    with unchanged(place, draft), pytest.raises(InvalidMetadataError, match="101 keys"):
        store.log_artifact(draft)
    del draft.metadata["k0"]
    assert len(store.log_artifact(draft).metadata) == 100
