"""Small files written in one call: what Python would have written, and nothing half-done or outside (G2, G7).

The C extension is built a second time for this, so that something can be done before each of its system calls.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import importlib.util
import os
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casstore import (
    Artifact,
    BackendError,
    CasstoreError,
    IntegrityError,
    PathConflictError,
    Settings,
    Store,
    Version,
    filebatch,
)
from casstore.checkout import writing
from casstore.checkout.listing import trusted
from casstore.checkout.target import PART
from casstore.chunks import ChunkReader, Views
from casstore.filebatch import NewFile, write_new
from casstore.model import Entry

SOURCE = Path(filebatch.__file__).with_name("_files.c")

HOOKS = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static int (*watcher)(const char *call);

void
watch_calls(int (*function)(const char *call))
{
    watcher = function;
}

static int
before(const char *call)
{
    int answer = watcher ? watcher(call) : 0;

    if (answer > 0) {
        errno = answer;
    }
    return answer;
}

static int
watched_openat(int directory, const char *name, int flags, mode_t mode)
{
    return before(flags & O_CREAT ? "create" : "enter") ? -1 : openat(directory, name, flags, mode);
}

static ssize_t
watched_write(int fd, const void *data, size_t size)
{
    int answer = before("write");

    return answer > 0 ? -1 : write(fd, data, answer < 0 && size > (size_t)-answer ? (size_t)-answer : size);
}

static int
watched_close(int fd)
{
    struct stat info;
    int answer = before(fstat(fd, &info) == 0 && S_ISDIR(info.st_mode) ? "leave" : "close");

    return close(fd) || answer ? -1 : 0;
}

#define OPENAT(directory, name, flags, mode, ...) watched_openat(directory, name, flags, mode)
#define openat(...) OPENAT(__VA_ARGS__, 0, 0)
#define write(fd, data, size) watched_write(fd, data, size)
#define close(fd) watched_close(fd)
#define mkdirat(directory, name, mode) (before("mkdir") ? -1 : mkdirat(directory, name, mode))
#define fchmod(fd, mode) (before("fchmod") ? -1 : fchmod(fd, mode))
#define renameat(from, old, to, new) (before("rename") ? -1 : renameat(from, old, to, new))
#define unlinkat(directory, name, flags) (before("unlink") ? -1 : unlinkat(directory, name, flags))
"""

CALLS = {"create", "enter", "leave", "write", "close", "mkdir", "fchmod", "rename"}

NEW: list[NewFile] = [
    ("a", -1, (b"one", memoryview(b"-two"), bytearray(b"-three"))),
    ("d/empty", 0o640, ()),
    ("d/e/f/x", 0o755, (b"x" * 5000,)),
    ("d/e/y", 0o400, (b"", b"y" * 300)),
    ("d.x/\u00e9 \U0001f600", -1, (b"z",)),
    ("z", 0o600, (b"last",)),
]
CONTENT = {path: b"".join(blocks) for path, _, blocks in NEW}

pytestmark = pytest.mark.skipif(filebatch._native is None, reason="casstore was installed without a C compiler")


class Watched:
    """The extension, and what is done before each of its calls: a number fails with it, one below 0 writes less."""

    def __init__(self, place: Path) -> None:
        (place / "hooks.h").write_text(HOOKS, encoding="ascii")
        library = place / "_files.so"
        compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
        include = sysconfig.get_path("include")
        words = [
            "-shared",
            "-fPIC",
            f"-I{include}",
            "-include",
            str(place / "hooks.h"),
            str(SOURCE),
            "-o",
            str(library),
        ]
        subprocess.run([*compiler, *words], check=True, capture_output=True)
        spec = importlib.util.spec_from_file_location("_files", library)
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.calls: list[str] = []
        self.act: Callable[[int, str], int] = lambda number, call: 0
        self._watcher = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)(self._seen)
        ctypes.CDLL(str(library)).watch_calls(self._watcher)

    def _seen(self, call: bytes) -> int:
        self.calls.append(call.decode())
        return self.act(len(self.calls) - 1, call.decode())

    def begin(self, act: Callable[[int, str], int]) -> None:
        self.calls.clear()
        self.act = act


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    try:
        return Watched(tmp_path_factory.mktemp("library"))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the extension cannot be built here: {error}")


@pytest.fixture
def watched(library: Watched, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(filebatch, "_native", library.module)
    library.begin(lambda number, call: 0)
    return library


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that has everything under the names that are written inside."""
    place = tmp_path / "outside"
    for path in (*CONTENT, "e/f/x", "e/y", "f/x", "x", "y", "empty"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if not (place / path).is_dir():
            (place / path).write_bytes(b"theirs")
    return place


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True, settings=Settings(workers=2)) as opened:
        yield opened


@pytest.fixture
def version(store: Store) -> Version:
    return log(store, CONTENT)


def log(store: Store, files: dict[str, bytes]) -> Version:
    draft = Artifact("ds")
    for path, data in files.items():
        draft.add_bytes(data, path)
    return store.log_artifact(draft)


def write(root: Path, files: list[NewFile], prefix: str = ".t-") -> int:
    root.mkdir(exist_ok=True)
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return write_new(top, prefix, PART, files)
    finally:
        os.close(top)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".casstore-checkout"
    }


def snapshot(place: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (place, *sorted(place.rglob("*"))):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, content)
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- the same as by Python


def test_all_is_written_with_its_modes(root: Path) -> None:
    before = descriptors()
    old = os.umask(0o027)
    try:
        assert write(root, NEW) == len(NEW)
    finally:
        os.umask(old)
    assert tree(root) == CONTENT
    for path, mode, _ in NEW:
        assert stat.S_IMODE((root / path).stat().st_mode) == (0o640 if mode < 0 else mode)
    assert stat.S_IMODE((root / "d/e").stat().st_mode) == 0o750
    assert descriptors() == before
    assert write(root, []) == 0


@pytest.mark.parametrize("act", ["download", "checkout"])
def test_with_and_without_the_extension_the_same_comes_out(
    act: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    for path, mode, blocks in NEW:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(b"".join(blocks))
        (source / path).chmod(0o644 if mode < 0 else mode)
    (source / "link").symlink_to("d/e/y")
    (source / "none").mkdir()
    draft = Artifact("ds")
    draft.add_dir(source, keep_mode=True, symlinks="store", keep_empty_dirs=True)
    version = store.log_artifact(draft)
    found = []
    for native in (filebatch._native, None):
        monkeypatch.setattr(filebatch, "_native", native)
        root = tmp_path / f"out-{native is None}"
        root.mkdir()
        if act == "checkout":
            for path in ("d.x", "z"):
                (root / path).symlink_to("nowhere")
            (root / "a").mkdir()
            (root / "d").write_bytes(b"in the way")
            report: Any = version.checkout(root, force=True)
        else:
            (root / "z").write_bytes(b"old")
            (root / "a").symlink_to(source / "z")
            report = version.download(root)
        modes = {str(path.relative_to(root)): path.lstat().st_mode for path in root.rglob("*")}
        found.append((tree(root), modes, report.files, report.bytes, report.linked))
    assert found[0] == found[1]
    assert found[0][0] == {**CONTENT, "link": CONTENT["d/e/y"]}
    assert (source / "z").read_bytes() == b"last"


def test_without_the_extension_nothing_is_promised(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filebatch, "_native", None)
    assert write(root, NEW) == 0
    assert not tree(root)


def test_a_way_that_is_too_deep_is_gone_by_python(store: Store, root: Path) -> None:
    content = {"a": b"a", f"{'d/' * 90}x": b"deep", f"{'d/' * 3}y": b"y", "z": b"z"}
    version = log(store, content)
    version.download(root)
    assert tree(root) == content


def test_a_file_whose_chunks_are_not_its_size_is_not_written(
    version: Version, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a tree says that was made by hand: `Writing._write` is asked, and refuses."""

    def lying(*args: Any) -> Iterator[Entry]:
        for entry in trusted(*args):
            yield replace(entry, size=299) if entry.path == "d/e/y" else entry

    monkeypatch.setattr(writing, "trusted", lying)
    with pytest.raises(IntegrityError) as caught:
        version.download(root)
    assert caught.value.path == "d/e/y"
    assert tree(root) == {path: data for path, data in CONTENT.items() if path != "d/e/y"}


def test_a_damaged_file_is_told_and_those_before_and_behind_it_are_there(
    version: Version, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = version["d/e/y"].chunks[0][0]
    real = ChunkReader.fetch_views

    def damaged(self: ChunkReader, digests: Iterable[bytes], *, spread: bool = True) -> Views:
        fetched = real(self, digests, spread=spread)
        if fetched.found.pop(lost, None) is not None:
            fetched.failed[lost] = IntegrityError("rotten")
        return fetched

    monkeypatch.setattr(ChunkReader, "fetch_views", damaged)
    with pytest.raises(IntegrityError, match="rotten") as caught:
        version.download(root)
    assert caught.value.path == "d/e/y"
    assert tree(root) == {path: data for path, data in CONTENT.items() if path != "d/e/y"}


# --- what is in the way


def test_links_are_replaced_where_files_go_and_followed_nowhere(root: Path, outside: Path) -> None:
    root.mkdir()
    (root / "a").symlink_to(outside / "a")
    (root / "d").symlink_to(outside / "d")
    before = snapshot(outside)
    assert write(root, NEW) == 1
    assert not (root / "a").is_symlink()
    (root / "d").unlink()
    (root / "d").mkdir()
    (root / "d" / "e").symlink_to(outside / "d" / "e")
    assert write(root, NEW) == 2
    assert snapshot(outside) == before
    assert tree(root)["d/empty"] == b""


@pytest.mark.parametrize("make", ["file", "link", "dangling", "directory"])
def test_what_has_the_temporary_name_stays_and_nothing_is_written_through_it(
    make: str, root: Path, outside: Path
) -> None:
    root.mkdir()
    first = root / f".t-0{PART}"
    if make == "file":
        first.write_bytes(b"theirs")
    elif make == "directory":
        first.mkdir()
    else:
        first.symlink_to(outside / ("a" if make == "link" else "none"))
    before = snapshot(outside), first.lstat()
    assert write(root, NEW) == 0
    assert (snapshot(outside), first.lstat()) == before
    assert [path.name for path in root.iterdir()] == [first.name]


def test_a_directory_that_has_the_name_of_a_file_stays(root: Path) -> None:
    (root / "d" / "e" / "y").mkdir(parents=True)
    assert write(root, NEW) == 3
    assert tree(root) == {path: CONTENT[path] for path in ("a", "d/empty", "d/e/f/x")}


@pytest.mark.parametrize(
    "path",
    [
        *("..", ".", "", "../x", "a/../../x", "d/../x", "./x", "/x", "//x", "d//x", "d/", "d/.", "d/..", "d//e/x"),
        *("x" * 256, "x" * 256 + "/y", "d/" * 60 + "x"),
    ],
)
def test_no_path_leads_out(path: str, root: Path) -> None:
    """They are refused before, by `trusted`: here once more."""
    root.mkdir()
    (root / "d").mkdir()
    assert write(root, [("a", -1, (b"a",)), (path, -1, (b"x",)), ("z", -1, (b"z",))]) == 1
    assert tree(root.parent) == {"out/a": b"a"}
    assert not (root.parent / "x").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        *(("a\0b", -1, (b"",)), ("a", 0o1777, (b"",)), ("a", -2, (b"",)), ("a", -1, ("text",)), ("a", -1, [b""])),
        *(("a", -1), (b"a", -1, (b"",)), ("a", "0", (b"",)), ("\ud800", -1, (b"",)), 1),
    ],
)
def test_what_is_no_file_raises_and_writes_nothing(wrong: Any, root: Path) -> None:
    """A mistake of ours, not a file's: before anything is tried."""
    data = bytearray(b"free again")
    with pytest.raises((TypeError, ValueError)):
        write(root, [("x", -1, (data,)), wrong])
    assert not list(root.iterdir())
    data.append(1)


# --- at every system call


def test_no_name_before_all_of_it_is_written(root: Path, watched: Watched) -> None:
    """Whoever looks, or is killed, between any two calls: each name has all its bytes, the last ones or the old."""
    old = {path: b"old" + data for path, data in CONTENT.items()}
    for path, data in old.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    modes = {path: mode for path, mode, _ in NEW}

    def look(number: int, call: str) -> int:
        found = {path: data for path, data in tree(root).items() if PART not in path}
        looks.append(found)
        for path, data in found.items():
            if data != old[path] and modes[path] >= 0 and stat.S_IMODE((root / path).stat().st_mode) != modes[path]:
                wrong.append(path)
        return -7 if call == "write" else 0

    looks: list[dict[str, bytes]] = []
    wrong: list[str] = []
    watched.begin(look)
    assert write(root, NEW) == len(NEW)
    assert tree(root) == CONTENT
    assert set(watched.calls) == CALLS
    assert watched.calls.count("write") > 700
    for found in looks:
        assert set(found) == set(CONTENT)
        assert all(data in {old[path], CONTENT[path]} for path, data in found.items())
    assert not wrong


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_of_any_call_ends_it_and_leaves_nothing_half_done(number: int, root: Path, watched: Watched) -> None:
    before = descriptors()
    seen: set[str] = set()
    for failing in range(1000):
        watched.begin(lambda at, call, failing=failing: number if at == failing else 0)  # type: ignore[misc]
        done = write(root, NEW)
        if len(watched.calls) <= failing:
            break
        call = watched.calls[failing]
        seen.add(call)
        assert tree(root) == {path: CONTENT[path] for path, _, _ in NEW[:done]}, (failing, call)
        assert (done == len(NEW)) is (call == "leave")
        assert descriptors() == before
        shutil.rmtree(root)
    assert done == len(NEW)
    assert seen == CALLS


def test_a_call_that_was_interrupted_is_made_again(root: Path, watched: Watched) -> None:
    watched.begin(lambda at, call: errno.EINTR if call == "write" and at % 2 else 0)
    assert write(root, NEW) == len(NEW)
    assert tree(root) == CONTENT


def test_python_takes_over_at_any_call(version: Version, root: Path, watched: Watched) -> None:
    """What fails once in the extension is done again, and so is all that is left."""
    seen: set[str] = set()
    for failing in range(1000):
        watched.begin(lambda at, call, failing=failing: errno.EMFILE if at == failing else 0)  # type: ignore[misc]
        report = version.download(root)
        assert tree(root) == CONTENT
        assert (report.files, report.bytes) == (len(CONTENT), sum(map(len, CONTENT.values())))
        if len(watched.calls) <= failing:
            break
        seen.add(watched.calls[failing])
        shutil.rmtree(root)
    assert seen == CALLS - {"fchmod"}


@pytest.mark.parametrize("what", ["d", "d/e", ""])
@pytest.mark.parametrize("act", ["download", "checkout"])
def test_a_directory_swapped_before_any_call_leads_nowhere(
    act: str, what: str, version: Version, root: Path, outside: Path, watched: Watched, tmp_path: Path
) -> None:
    """A directory becomes a link to one outside, which has files of the same names, and remains as it was."""
    before = snapshot(outside)
    aside = tmp_path / "aside"
    succeeded = number = 0
    while True:
        (root / "d" / "e" / "f").mkdir(parents=True)

        def swap(at: int, call: str, number: int = number) -> int:
            if at == number:
                (root / what).rename(aside)
                (root / what).symlink_to(outside / what)
            return 0

        watched.begin(swap)
        try:
            version.download(root) if act == "download" else version.checkout(root, force=True)
        except CasstoreError:
            pass
        else:
            succeeded += 1
        watched.begin(lambda at, call: 0)
        assert snapshot(outside) == before, f"at call {number}"
        swapped = aside.exists()
        for place in (root, aside):
            place.unlink() if place.is_symlink() else shutil.rmtree(place, ignore_errors=True)
        if not swapped:
            break
        number += 1
    assert number > 20
    assert succeeded


# --- errors, interrupts


def test_no_room_is_ours_and_what_was_begun_goes(store: Store, root: Path) -> None:
    """The disk takes no file so long: the ones before it are there, those behind it are not tried."""
    content = {**{f"a{n}": b"%d" % n for n in range(9)}, "m": bytes(range(256)) * 400, "z": b"z"}
    version = log(store, content)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(BackendError) as caught:
            version.download(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert tree(root) == {f"a{n}": b"%d" % n for n in range(9)}


def test_a_file_in_the_place_of_a_directory_is_a_conflict(version: Version, root: Path) -> None:
    root.mkdir()
    (root / "d.x").write_bytes(b"mine")
    with pytest.raises(PathConflictError, match=r"d\.x"):
        version.download(root)
    assert (root / "d.x").read_bytes() == b"mine"
    assert "z" not in tree(root)
    assert not [path for path in tree(root) if PART in path]


def test_an_interrupt_waits_for_the_call_and_nothing_is_written_behind_it(
    store: Store, root: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "BATCH_FILES", 5)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
    content = {f"d{n // 7}/f{n:03}": b"%d" % n for n in range(300)}
    version = log(store, content)
    before = descriptors()

    def interrupt(number: int, call: str) -> int:
        if number == 40:
            _thread.interrupt_main()
        return 0

    watched.begin(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            version.download(root)
    finally:
        signal.signal(signal.SIGINT, handler)
    arrived = tree(root)
    assert not [path for path in arrived if PART in path]
    assert all(content[path] == data for path, data in arrived.items())
    assert len(arrived) < len(content)
    assert descriptors() == before
    assert tree(root) == arrived
    version.download(root)
    assert tree(root) == content
