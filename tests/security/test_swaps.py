"""Nothing outside of the root is ever written or deleted, whatever is in it, whoever swaps what meanwhile (G2, G7).

W&B and its like check a path and then use it: a directory that is swapped for a link in between leads them out. Here a
second process swaps one for the other, as fast as it can, while versions are downloaded and checked out; and, so that
no moment is left to chance, swaps are made before each single system call.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casstore import (
    Artifact,
    CasstoreError,
    ConflictError,
    IntegrityError,
    PathConflictError,
    Store,
    Version,
    filebatch,
)
from casstore.checkout import target
from casstore.format.nodes import DIRECTORY, decode_node, encode_entry, encode_node
from casstore.model import Entry, EntryKind
from casstore.writer import Writer

SWAPS = 10_000
"""at least, all tests of races together"""
MET = 30
"""runs of each kind in which the swap got in the way"""

FIRST = {"top": b"top", **{f"img/{name}": name.encode() * 400 for name in ("a", "sub/c", "sub/deep/d")}}
SECOND = {"top": b"TOP", "img/a": b"other", "img/sub": b"a file now", "img2/f/g": b"g"}

RENAME_EXCHANGE = 2
AT_FDCWD = -100

SWAPPER = """
import ctypes, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
one, other, count = sys.argv[1:4]
memory = mmap.mmap(os.open(count, os.O_RDWR), 8)
print("ready", flush=True)
done, one, other = 0, os.fsencode(one), os.fsencode(other)
while True:
    if libc.renameat2(-100, one, -100, other, 2) == 0:
        done += 1
        struct.pack_into("<q", memory, 0, done)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def versions(store: Store) -> tuple[Version, Version]:
    return log(store, FIRST), log(store, SECOND)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that has everything under the names that are written and deleted inside."""
    place = tmp_path / "outside"
    for path in (*FIRST, "a", "sub/c", "sub/deep/d", "f/g", "out/top", "out/img/a", "out/img/sub/c"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(b"theirs")
    return place


def log(store: Store, files: dict[str, bytes]) -> Version:
    draft = Artifact("ds")
    for path, data in files.items():
        draft.add_bytes(data, path)
    return store.log_artifact(draft)


def snapshot(place: Path) -> dict[str, tuple[object, ...]]:
    """All that writing or deleting anything there changes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (place, *sorted(place.rglob("*"))):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, content)
    return found


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".casstore-checkout"
    }


libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), f"cannot exchange {one} and {other}")


@contextlib.contextmanager
def swapping(one: Path, other: Path, count: Path) -> Iterator[Callable[[], int]]:
    """Another process exchanges two paths without a pause; gives the number of exchanges so far."""
    count.write_bytes(bytes(8))
    with count.open("rb") as file, mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ) as memory:
        words = [sys.executable, "-c", SWAPPER, str(one), str(other), str(count)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield lambda: int(struct.unpack_from("<q", memory)[0])
            finally:
                process.kill()


Act = Callable[[tuple[Version, Version], Path], object]


def entry_by_entry(versions: tuple[Version, Version], root: Path) -> None:
    for path in ("img/a", "img/sub/c", "img/sub/deep/d"):
        versions[0][path].download(str(root))


ACTS: dict[str, Act] = {
    "download": lambda versions, root: versions[0].download(root),
    "entry.download": entry_by_entry,
    "checkout": lambda versions, root: [version.checkout(root) for version in versions],
}


# --- races


@pytest.mark.timeout(120)
@pytest.mark.parametrize("act", ACTS)
def test_a_race_with_links_gets_nowhere(
    act: str, versions: tuple[Version, Version], outside: Path, tmp_path: Path
) -> None:
    """At least 10,000 swaps of a directory for a link to elsewhere, during as many runs as that takes."""
    root, aside = tmp_path / "root", tmp_path / "aside"
    versions[0].checkout(root)
    aside.symlink_to(outside)
    before = snapshot(outside)
    met = runs = 0
    with swapping(root / "img", aside, tmp_path / "count") as swaps:
        while swaps() < SWAPS or met < MET:
            runs += 1
            assert runs % 64 or snapshot(outside) == before
            try:
                ACTS[act](versions, root)
            except (PathConflictError, ConflictError):
                met += 1
            except CasstoreError:
                pass  # such as: no such file, a moment ago there was
            if not os.path.lexists(root / "img"):
                # A checkout took the link away, as it should: the game goes on.
                (root / "img").mkdir() if aside.is_symlink() else (root / "img").symlink_to(outside)
    assert snapshot(outside) == before
    assert runs >= met >= MET


@pytest.mark.timeout(120)
def test_a_race_for_the_root_itself(versions: tuple[Version, Version], outside: Path, tmp_path: Path) -> None:
    """The parent of the root is swapped for a link: what is there is no checkout, and is not replaced."""
    parent, other = tmp_path / "parent", tmp_path / "other"
    parent.mkdir()
    other.symlink_to(outside)
    versions[0].checkout(parent / "out")
    before = snapshot(outside)
    refused = 0
    with swapping(parent, other, tmp_path / "count") as swaps:
        while swaps() < SWAPS or refused < MET:
            for version in versions:
                try:
                    version.checkout(parent / "out")
                except CasstoreError as error:
                    refused += error.code == "refused"
    assert snapshot(outside) == before


# --- a swap at every system call

CALLS = ("open", "mkdir", "rename", "unlink", "rmdir", "symlink", "stat", "readlink", "scandir", "fchmod", "write")


class Hook:
    """Does something before some of the calls that concern a root, counted from when it is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = str(root)
        self.calls = 0
        self.actions: dict[int, Callable[[], None]] = {}
        self.active = self.opened = False
        # The extension makes calls of its own: unit/test_filewriting.py swaps before each of those.
        monkeypatch.setattr(filebatch, "_native", None)
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(*args: Any, **options: Any) -> Any:
            inside = any(options.get(key) is not None for key in ("dir_fd", "src_dir_fd")) or isinstance(args[0], int)
            if self.active and self.opened and inside:
                self.active = False
                action = self.actions.get(self.calls)
                if action is not None:
                    action()
                self.calls += 1
                self.active = True
            result = call(*args, **options)
            self.opened = self.opened or (args[0] == self.root and args[1:] == (target.ROOT,))
            return result

        return hooked

    def run(self, act: Callable[[], object], actions: dict[int, Callable[[], None]]) -> bool:
        """True if the act succeeded."""
        self.calls, self.actions, self.active, self.opened = 0, actions, True, False
        try:
            act()
        except CasstoreError:
            return False
        else:
            return True
        finally:
            self.active = False


def fresh(root: Path, versions: tuple[Version, Version]) -> None:
    versions[0].checkout(root, force=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("back", [False, True], ids=["once", "there and back"])
@pytest.mark.parametrize(
    ("act", "what"),
    # Entry by entry each download looks the root up anew, as it should.
    [(act, what) for act in ACTS for what in ("img", "img/sub", "") if act != "entry.download" or what],
)
def test_a_swap_before_each_call_gets_nowhere(
    act: str,
    what: str,
    back: bool,
    versions: tuple[Version, Version],
    outside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A directory below the root, or the root, becomes a link, for good or until the next call; then all is well."""
    root = tmp_path / "root"
    aside = tmp_path / "aside"
    swapped = root / what
    fresh(root, versions)
    before = snapshot(outside)
    hook = Hook(monkeypatch, root)
    number = succeeded = 0
    run = (lambda: versions[1].checkout(root)) if act == "checkout" else (lambda: ACTS[act](versions, root))
    while True:
        aside.symlink_to(outside / "img" if what.endswith("sub") else outside)

        def swap() -> None:
            with contextlib.suppress(FileNotFoundError):  # it is not there at the moment
                exchange(swapped, aside)

        actions = {number: swap, number + 1: swap} if back else {number: swap}
        succeeded += hook.run(run, actions)
        assert snapshot(outside) == before, f"at call {number}"
        if not aside.is_symlink():
            swap()
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)  # a checkout took the link away, as it should
        else:
            aside.unlink()
        if hook.calls <= number:
            break
        fresh(root, versions)
        assert files(root) == FIRST
        number += 1
    assert number >= 10
    assert succeeded


# --- what is in the way


@pytest.mark.timeout(30)
@pytest.mark.parametrize("place", ["img", "img/a", "img/sub/deep"])
@pytest.mark.parametrize("make", ["fifo", "socket", "link", "dangling link", "loop"])
@pytest.mark.parametrize("act", ACTS)
def test_what_is_in_the_way_is_never_opened(
    act: str, make: str, place: str, versions: tuple[Version, Version], outside: Path, tmp_path: Path
) -> None:
    """Neither written to nor waited for: replaced where a file goes, a conflict (or, in a checkout, gone) elsewhere."""
    root = tmp_path / "root"
    if act == "checkout":
        fresh(root, versions)
        subprocess.run(["rm", "-r", root / place], check=True)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    if make == "fifo":
        os.mkfifo(root / place)
    elif make == "socket":
        with contextlib.chdir((root / place).parent), socket.socket(socket.AF_UNIX) as server:
            server.bind((root / place).name)
    else:
        target = {"link": outside / place, "dangling link": outside / "none", "loop": root / place}[make]
        (root / place).symlink_to(target)
    before = snapshot(outside)
    if act == "checkout":
        versions[0].checkout(root)
        assert files(root) == FIRST
    elif place == "img/a":
        ACTS[act](versions, root)
        assert files(root)["img/a"] == FIRST["img/a"]
        assert stat.S_ISREG((root / "img" / "a").lstat().st_mode)
    else:
        with pytest.raises(PathConflictError):
            ACTS[act](versions, root)
    assert snapshot(outside) == before


# --- trees made by hand


def log_forged(
    store: Store, monkeypatch: pytest.MonkeyPatch, forge: Callable[[tuple[Entry, ...]], list[Entry]]
) -> Version:
    """A version whose one node was made by hand: all is in order, digests, counts, parents, but for its entries."""
    put_node = Writer.put_node

    def forged(self: Writer, data: bytes, children: tuple[bytes, ...]) -> bytes:
        node = decode_node(data, "a node")
        assert (node.kind, node.level) == (DIRECTORY, 0)
        return put_node(self, encode_node(DIRECTORY, 0, [encode_entry(e) for e in forge(node.entries)]), children)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "put_node", forged)
        return log(store, {"a": b"evil", "b": b"evil"})


PATHS = [
    *("../x", "..", ".", "", "/", "a/../../x", "a/../b", "./x", "a/./b", "a//b", "a/", "//x", "~/../x"),
    *("nul\0nul", "\0", "new\nline", "escape\x1b[2J", "del\x7f", "c1\x9b", "C:\\x", "\\\\host\\x", "a\\..\\..\\x"),
    *("n" * 300, "é" * 200, "/".join(["d" * 100] * 50)),
]


def evil_path(path: str) -> Callable[[tuple[Entry, ...]], list[Entry]]:
    return lambda entries: [replace(entries[0], path=path)]


FORGERIES: dict[str, Callable[[tuple[Entry, ...]], list[Entry]]] = {
    **{f"path {path[:20]!r}": evil_path(path) for path in PATHS},
    "a link and a file below it": lambda entries: [
        Entry("l", EntryKind.LINK, target="../outside"),
        replace(entries[0], path="l/top"),
    ],
    "a link, something between, a file below": lambda entries: [
        Entry("l", EntryKind.LINK, target="../outside"),
        replace(entries[0], path="l-between"),
        replace(entries[1], path="l/img/a"),
    ],
    "a file and a file below it": lambda entries: [entries[0], replace(entries[1], path="a/b")],
    "the same path as link and file": lambda entries: [
        Entry("top", EntryKind.LINK, target="../outside/top"),
        replace(entries[0], path="top"),
    ],
    "out of order": lambda entries: [entries[1], entries[0]],
    "a link to nothing": lambda _: [Entry("l", EntryKind.LINK, target="")],
    "a link without a target": lambda _: [Entry("l", EntryKind.LINK)],
    "a link with a NUL": lambda _: [Entry("l", EntryKind.LINK, target="a\0b")],
    "a link too long": lambda _: [Entry("l", EntryKind.LINK, target="x" * 5000)],
    "a negative size": lambda entries: [replace(entries[0], size=-1)],
    "a directory above": lambda _: [Entry("../made", EntryKind.DIRECTORY)],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_trees_made_by_hand_are_refused_before_anything_is_written(
    name: str, store: Store, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check_path` keeps such names out of honest stores; whoever writes nodes himself is not believed either."""
    version = log_forged(store, monkeypatch, FORGERIES[name])
    root = tmp_path / "root"
    root.mkdir()
    before = snapshot(tmp_path / "outside")
    around = {path: path.lstat().st_mtime_ns for path in (tmp_path, root)}
    for act in (
        lambda: version.download(root),
        lambda: version.checkout(root),
        lambda: version.checkout(root, dry_run=True),
        lambda: version.verify(root),
    ):
        with pytest.raises(IntegrityError) as caught:
            act()
        assert caught.value.exit_code == 20
        assert caught.value.hint
        assert len(caught.value.message) < 400
    assert list(root.iterdir()) == []
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path, root)} == around
    with contextlib.suppress(IntegrityError, PathConflictError):
        for entry in version.files():  # one by one some are nothing special
            entry.download(str(root))
    assert {path.name for path in tmp_path.iterdir()} == {"store", "root", "outside"}
    assert snapshot(outside) == before


def test_the_forger_can_also_write_an_honest_tree(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is for their names that the others are refused."""
    version = log_forged(store, monkeypatch, evil_path("honest"))
    version.download(tmp_path / "root")
    assert files(tmp_path / "root") == {"honest": b"evil"}
