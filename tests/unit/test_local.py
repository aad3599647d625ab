"""The local backend where things go wrong: races, kills, errors, power cuts, missing disks. And opening one."""

import errno
import multiprocessing
import os
import pickle
import shutil
import stat
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from casstore.backend import is_local, local, open_backend
from casstore.backend.local import LocalBackend
from casstore.backend.memory import MemoryBackend, forget_memory
from casstore.backend.osops import CRASH_STATUS, OsOps
from casstore.errors import (
    AlreadyExistsError,
    BackendError,
    CasstoreError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedSchemeError,
)
from casstore.testing.record import Effect, RecordingOps

KEY = "packs/ab/0123"
CONTENT = [b"head", b"x" * 10_000, b"tail"]
WHOLE = b"".join(CONTENT)


def names(count: int) -> bytes:
    """Temporary names that are the same in each run."""
    return bytes(count)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# ---------------------------------------------------------------- order and durability


def test_the_order_of_effects(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path)
    store = LocalBackend(tmp_path / "s", ops, new_name=names)
    store.create(KEY, CONTENT)
    temp = f"s/tmp/{bytes(16).hex()}"
    assert ops.trace == [
        Effect("mkdir", "s"),
        Effect("fsync_dir", "."),
        Effect("mkdir", "s/packs"),
        Effect("fsync_dir", "s"),
        Effect("mkdir", "s/packs/ab"),
        Effect("fsync_dir", "s/packs"),
        Effect("mkdir", "s/tmp"),
        Effect("create", temp),
        Effect("write", temp, data=WHOLE),
        Effect("fsync", temp),
        Effect("link", temp, "s/packs/ab/0123"),
        Effect("unlink", temp),
        Effect("fsync_dir", "s/packs/ab"),
    ]
    ops.trace.clear()
    store.create("packs/ab/4567", b"")
    assert [(effect.op, effect.path) for effect in ops.trace] == [
        ("create", temp),
        ("fsync", temp),
        ("link", temp),
        ("unlink", temp),
        ("fsync_dir", "s/packs/ab"),
    ]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
def test_what_a_large_session_wrote_gives_its_memory_to_what_comes_next_and_is_recalled_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = RecordingOps(tmp_path)
    advice: list[tuple[str, int, int, int]] = []
    done: list[list[str]] = []

    def advise(fd: int, offset: int, length: int, what: int) -> None:
        path = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        advice.append((path, offset, length, what))
        done.append([effect.op for effect in ops.trace])

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(local, "_KEPT", 3 << 20)
    monkeypatch.setattr(local, "_RECALLED", 5 << 19)
    backend = LocalBackend(tmp_path / "s", ops, dear_memory=lambda: True)
    data = os.urandom(3 << 19)
    for key in ("a/1", "a/2", "a/3", "a/4", "a/5"):
        backend.create(key, data)
        backend.create(f"{key}.small", data[:-600_000])
    # The first two are kept, as is what is small; the name that is given up is the temporary one.
    assert [what for *_, what in advice] == [os.POSIX_FADV_DONTNEED] * 3
    assert all(steps[-2:] == ["fsync", "link"] for steps in done), "nothing is given up before it is durable"
    backend.delete("a/4")
    advice.clear()
    effects = len(ops.trace)
    backend.recall()
    mib = 1 << 20
    wanted = [("3", 0), ("3", mib), ("5", 0)]
    assert advice == [(name, at, mib, os.POSIX_FADV_WILLNEED) for name, at in wanted], "as much as is allowed"
    assert len(ops.trace) == effects, "advice is no effect"
    backend.recall()
    assert len(advice) == 3, "once"
    assert backend.read("a/5") == data


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
def test_what_was_given_up_is_recalled_whole_by_whoever_reads_in_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 1 << 20
    advice: list[tuple[str, int, int, int]] = []

    def advise(fd: int, offset: int, length: int, what: int) -> None:
        advice.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), offset, length, what))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(local, "_KEPT", 0)
    monkeypatch.setattr(local, "_NOTED", 2)
    backend = LocalBackend(tmp_path / "s", OsOps(), dear_memory=lambda: True)
    data = os.urandom(3 << 19)
    for key in ("a/1", "a/2", "a/3"):
        backend.create(key, data)
    backend.create("a/small", data[:1000])
    advice.clear()
    assert backend.read("a/1", offset=5, length=7) == data[5:12]
    assert backend.read("a/small") == data[:1000]
    assert advice == [], "no more are known than is bearable, and the oldest are forgotten first"
    assert backend.read("a/2", offset=5, length=7) == data[5:12]
    assert advice == [("2", 0, mib, os.POSIX_FADV_WILLNEED), ("2", mib, mib, os.POSIX_FADV_WILLNEED)]
    assert backend.read("a/2", offset=mib) == data[mib:]
    assert len(advice) == 2, "once"
    backend.recall()
    assert [name for name, *_ in advice] == ["2", "2", "3", "3"], "in the end, what nobody has read"


def test_where_memory_is_cheap_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_KEPT", 0)
    backend = LocalBackend(tmp_path / "s", OsOps(), dear_memory=lambda: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: pytest.fail("advice"))
    backend.create("a/1", bytes(2 << 20))
    backend.recall()
    assert backend.read("a/1") == bytes(2 << 20)


def test_advice_that_is_refused_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ESPIPE, "no")

    monkeypatch.setattr(local, "_KEPT", 0)
    monkeypatch.setattr(os, "posix_fadvise", refuse)
    backend = LocalBackend(tmp_path / "s", OsOps(), dear_memory=lambda: True)
    backend.create("a/1", bytes(2 << 20))
    backend.recall()
    assert backend.read("a/1") == bytes(2 << 20)


def test_directories_made_by_others_are_synced_once(tmp_path: Path) -> None:
    """Whoever made them may not have come to it yet."""
    (tmp_path / "s/packs/ab").mkdir(parents=True)
    ops = RecordingOps(tmp_path)
    store = LocalBackend(tmp_path / "s", ops)
    store.create("packs/ab/1", b"")
    before_link = [
        effect.path for effect in ops.trace[: [e.op for e in ops.trace].index("link")] if effect.op == "fsync_dir"
    ]
    assert before_link == [".", "s", "s/packs"]
    ops.trace.clear()
    store.create("packs/ab/2", b"")
    assert [effect.path for effect in ops.trace if effect.op == "fsync_dir"] == ["s/packs/ab"]


def test_a_directory_sync_that_failed_is_done_again(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path, fail_at=2, error=errno.EIO, only={"fsync_dir"})
    store = LocalBackend(tmp_path / "s", ops)
    with pytest.raises(BackendError):
        store.create("log/1", b"")
    assert not (tmp_path / "s/log/1").exists()
    store.create("log/1", b"")
    assert [effect.path for effect in ops.trace if effect.op == "fsync_dir"] == [".", "s", "s/log"]


@pytest.mark.parametrize(
    ("prefix", "synced"),
    [
        ("log/", {"log"}),
        ("log", {"log", "log-x", "log/floor"}),
        ("packs/", {"packs", "packs/ab", "packs/cd"}),
        ("packs", {"packs", "packs/ab", "packs/cd"}),
        ("packs/a", {"packs/ab"}),
        ("packs/ab/", {"packs/ab"}),
        ("packs/ab/0", {"packs/ab"}),
        ("format", {"."}),
        ("nothing", set()),
        ("no/where", set()),
        ("", {".", "log", "log-x", "log/floor", "packs", "packs/ab", "packs/cd"}),
    ],
)
def test_a_barrier_syncs_what_holds_the_prefix(tmp_path: Path, prefix: str, synced: set[str]) -> None:
    root = tmp_path / "s"
    setup = LocalBackend(root, OsOps())
    for key in ("format", "log/1", "log/floor/1", "log-x/1", "packs/ab/0", "packs/cd/0"):
        setup.create(key, b"")
    ops = RecordingOps(root)
    store = LocalBackend(root, ops)
    for _ in range(2):
        ops.trace.clear()
        store.barrier(prefix)
    expected = synced | ({"log/floor"} if prefix == "log/" else set())
    assert {effect.path for effect in ops.trace} == expected
    assert {effect.op for effect in ops.trace} <= {"fsync_dir"}


def test_a_barrier_makes_names_of_directories_durable_too(tmp_path: Path) -> None:
    (tmp_path / "s/packs/ab").mkdir(parents=True)
    ops = RecordingOps(tmp_path)
    LocalBackend(tmp_path / "s", ops).barrier("packs/ab/")
    assert [effect.path for effect in ops.trace] == [".", "s", "s/packs", "s/packs/ab"]


# ---------------------------------------------------------------- modes and names


@pytest.mark.parametrize("mask", [0, 0o777])
def test_modes_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    store = LocalBackend(tmp_path / "deep/er/s", OsOps())
    before = os.umask(mask)
    try:
        store.create(KEY, b"x")
    finally:
        os.umask(before)
    for path in (tmp_path / "deep").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o400 if path.is_file() else 0o700), path
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700
    store.delete(KEY)
    assert files(tmp_path) == []


def test_an_existing_directory_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    LocalBackend(tmp_path / "s", OsOps()).create("a", b"")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o755


def test_foreign_files_are_not_listed(tmp_path: Path) -> None:
    store = LocalBackend(tmp_path, OsOps())
    store.create("packs/ab/0", b"")
    for name in ("tmp/left", "tmp/deep/left", "packs/a b", "packs/ä", "packs/x\\y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [info.key for info in store.list("")] == ["packs/ab/0"]
    assert list(store.list("tmp")) == list(store.list("tmp/")) == list(store.list("tmp/d")) == []


def test_sweep_temp(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path)
    store = LocalBackend(tmp_path, ops)
    assert store.sweep_temp(1 << 60) == 0
    store.create("a", b"kept")
    for age, name in enumerate(("oldest", "older", "new")):
        (tmp_path / "tmp" / name).write_bytes(b"")
        os.utime(tmp_path / "tmp" / name, ns=(0, (1_000_000 + age) * 1000))
        (tmp_path / "tmp" / name).chmod(0o400)
    ops.trace.clear()
    assert store.sweep_temp(1_000_002) == 2
    assert files(tmp_path) == ["a", "tmp/new"]
    assert {effect.op for effect in ops.trace} == {"unlink"}
    assert store.sweep_temp(1 << 60) == 1


def test_a_writer_whose_file_was_swept_fails_cleanly(tmp_path: Path) -> None:
    class Swept(RecordingOps):
        def link(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
            if not self.failed:
                self.failed.append(Effect("link"))
                assert LocalBackend(tmp_path, OsOps()).sweep_temp(1 << 60) == 0, "it is seen to live"
                os.unlink(source)  # as a host that does not see the lock would do
            super().link(source, target)

    store = LocalBackend(tmp_path, Swept(tmp_path))
    with pytest.raises(BackendError, match="No such file"):
        store.create("a", b"x")
    assert list(store.list("")) == []
    store.create("a", b"x")
    assert store.read("a") == b"x"


# ---------------------------------------------------------------- reading


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalBackend(tmp_path, OsOps())
    store.create("a", b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, offset: real(fd, min(count, 3), offset))
    assert store.read("a") == b"0123456789"
    assert store.read("a", offset=1, length=8) == b"12345678"
    assert store.read("a", offset=8, length=8) == b"89"


def test_reading_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalBackend(tmp_path, OsOps())
    store.create("a", b"0123456789")

    def broken(*args: object, **options: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        with pytest.raises(BackendError, match="Input/output") as caught:
            store.read("a")
    assert caught.value.errno == errno.EIO
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", broken)
        with pytest.raises(BackendError, match="Input/output"):
            list(store.list(""))
        with pytest.raises(BackendError, match="Input/output"):
            store.barrier("")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", broken)
        with pytest.raises(BackendError, match="Input/output"):
            store.read("a")


def test_a_listing_that_fails_half_way_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalBackend(tmp_path, OsOps())
    for key in ("a/1", "b/1", "c/1"):
        store.create(key, b"")
    real = os.scandir

    def broken(path: str) -> object:
        if path.endswith("/b"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(os, "scandir", broken)
    listing = store.list("")
    assert next(listing).key == "a/1"
    with pytest.raises(BackendError, match="Permission denied"):
        next(listing)


# ---------------------------------------------------------------- a missing store is not an empty store


def test_nothing_is_touched_before_the_first_create(tmp_path: Path) -> None:
    store = LocalBackend(tmp_path / "s", OsOps())
    with pytest.raises(NotFoundError):
        store.read("format")
    with pytest.raises(NotFoundError):
        store.stat("format")
    store.delete("format")
    for prefix in ("", "log/"):
        with pytest.raises(BackendError, match="no directory"):
            list(store.list(prefix))
        with pytest.raises(BackendError, match="no directory"):
            store.barrier(prefix)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("how", ["gone", "another"])
@pytest.mark.parametrize("first", ["create", "read", "stat", "list"])
def test_a_store_that_vanishes(tmp_path: Path, how: str, first: str) -> None:
    """An unmounted disk: its empty mount point must not pass for the store."""
    LocalBackend(tmp_path / "s", OsOps()).create("format", b"")
    store = LocalBackend(tmp_path / "s", OsOps())
    if first == "create":
        store.create("log/1", b"")
    elif first == "read":
        store.read("format")
    elif first == "stat":
        store.stat("format")
    else:
        list(store.list(""))
    (tmp_path / "s").rename(tmp_path / "moved")
    if how == "another":
        (tmp_path / "s").mkdir()
    for call in (
        lambda: store.create("log/2", b""),
        lambda: store.create("new/2", b""),
        lambda: store.create("format", b""),
        lambda: store.read("format"),
        lambda: store.stat("log/9"),
        lambda: list(store.list("log/")),
        lambda: store.delete("format"),
        lambda: store.barrier("log/"),
    ):
        with pytest.raises(BackendError):
            call()
    assert files(tmp_path / "s") == []
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    (tmp_path / "moved").rename(tmp_path / "s")
    assert store.read("format") == b""
    store.create("log/2", b"")


# ---------------------------------------------------------------- races between processes


def contend(root: str, start: Barrier, number: int, count: int) -> list[int]:
    store = LocalBackend(Path(root), OsOps())
    won = []
    start.wait()
    for slot in range(count):
        try:
            store.create(f"log/{slot:020}", [b"%d" % number] * 5000)
        except AlreadyExistsError:
            continue
        won.append(slot)
    return won


def contend_into(root: str, start: Barrier, number: int, count: int, results: "multiprocessing.Queue[object]") -> None:
    results.put((number, contend(root, start, number, count)))


def test_of_four_processes_one_wins_each_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=contend_into, args=(str(tmp_path / "s"), start, number, 200, results))
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    won = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(slot for slots in won.values() for slot in slots) == list(range(200))
    store = LocalBackend(tmp_path / "s", OsOps())
    for number, slots in won.items():
        for slot in slots:
            assert store.read(f"log/{slot:020}") == b"%d" % number * 5000
    assert list((tmp_path / "s/tmp").iterdir()) == []


def test_the_loser_of_a_race_for_the_link_changes_nothing(tmp_path: Path) -> None:
    class Beaten(RecordingOps):
        def link(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
            LocalBackend(tmp_path, OsOps()).create("log/1", b"winner")
            super().link(source, target)

    with pytest.raises(AlreadyExistsError):
        LocalBackend(tmp_path, Beaten(tmp_path)).create("log/1", b"loser")
    assert files(tmp_path) == ["log/1"]
    assert (tmp_path / "log/1").read_bytes() == b"winner"


def test_the_loser_who_comes_late_writes_nothing(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path)
    store = LocalBackend(tmp_path, ops)
    store.create("log/1", b"winner")
    ops.trace.clear()
    with pytest.raises(AlreadyExistsError):
        store.create("log/1", b"loser")
    assert ops.trace == []


# ---------------------------------------------------------------- kills

WRITER = """
import sys
from pathlib import Path
from casstore.backend.local import LocalBackend
from casstore.backend.osops import OsOps
store = LocalBackend(Path(sys.argv[1]), OsOps())
store.create("packs/ab/0123", [b"head", b"x" * 10_000, b"tail"])
print("acked", flush=True)
"""


def test_kill_after_each_effect(tmp_path: Path) -> None:
    seen = set()
    for crash_at in range(1, 100):
        root = tmp_path / str(crash_at)
        done = subprocess.run(
            [sys.executable, "-c", WRITER, str(root)],
            env={**os.environ, "CASSTORE_CRASH_AT": str(crash_at)},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in {0, CRASH_STATUS}, done.stderr
        store = LocalBackend(root, OsOps())
        found = [info.key for info in store.list("")]
        assert found in ([], [KEY])
        if found:
            assert store.read(KEY) == WHOLE
        if b"acked" in done.stdout:
            assert found
        seen.add((bool(found), done.returncode))
        # whatever was left, the next process can go on
        store.sweep_temp(1 << 60)
        if not found:
            store.create(KEY, CONTENT)
        assert files(root) == [KEY]
        if done.returncode == 0:
            break
    assert crash_at == 14, "13 effects: see test_the_order_of_effects"
    assert seen == {(False, CRASH_STATUS), (True, CRASH_STATUS), (True, 0)}


# ---------------------------------------------------------------- errors at every effect

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)


@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_errors_at_every_effect(tmp_path: Path, number: int, after: bool, sticky: bool) -> None:
    for nth in range(1, 100):
        root = tmp_path / f"{nth}" / "s"
        root.parent.mkdir()
        ops = RecordingOps(root.parent, fail_at=nth, error=number, after=after, sticky=sticky)
        store = LocalBackend(root, ops)
        failure: CasstoreError | None = None
        try:
            store.create(KEY, CONTENT)
        except CasstoreError as error:  # never a bare OSError
            failure = error
        published = (root / KEY).exists()
        if published:
            assert (root / KEY).read_bytes() == WHOLE
        if not ops.failed:
            assert failure is None
            break
        if failure is None:
            assert published
            first = ops.failed[0].op
            assert first in ({"unlink", "link"} if after else {"unlink"}), "only a leftover may fail unnoticed"
        else:
            assert isinstance(failure, BackendError | ReadOnlyError)
            assert failure.errno == number
            assert os.strerror(number) in str(failure)
            assert number not in {errno.ENOSPC, errno.EDQUOT} or "free some space" in failure.hint
            if published:
                assert isinstance(failure, BackendError), "ambiguous: the caller must look"
        # the store is as good as before: the same works without the error
        again = LocalBackend(root, OsOps())
        if published:
            with pytest.raises(AlreadyExistsError):
                again.create(KEY, CONTENT)
        else:
            again.create(KEY, CONTENT)
        assert [info.key for info in again.list("")] == [KEY]
        again.sweep_temp(1 << 60)
        assert files(root) == [KEY]
    assert nth == 14


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("op", ["create", "write", "fsync", "link"])
def test_a_failed_create_leaves_no_temporary_file(tmp_path: Path, op: str, number: int) -> None:
    ops = RecordingOps(tmp_path, fail_at=1, error=number, only={op})
    with pytest.raises(BackendError):
        LocalBackend(tmp_path, ops).create("a", b"data")
    assert files(tmp_path) == []
    assert [effect.op for effect in ops.trace].count("fsync") <= 1


def test_an_error_of_the_last_sync_is_ambiguous(tmp_path: Path) -> None:
    LocalBackend(tmp_path, OsOps()).create("a", b"")
    ops = RecordingOps(tmp_path, fail_at=2, error=errno.EACCES, only={"fsync_dir"})
    with pytest.raises(BackendError):
        LocalBackend(tmp_path, ops).create("b", b"data")
    assert (tmp_path / "b").read_bytes() == b"data"


def test_a_lost_answer_to_a_link(tmp_path: Path) -> None:
    """NFS: the link was made, the answer was lost, its repetition says EEXIST."""
    for number in (errno.EEXIST, errno.EIO, errno.ETIMEDOUT):
        ops = RecordingOps(tmp_path, fail_at=1, error=number, after=True, only={"link"})
        LocalBackend(tmp_path, ops).create(f"log/{number}", b"mine")
        assert (tmp_path / f"log/{number}").read_bytes() == b"mine"
        assert ops.trace[-1] == Effect("fsync_dir", "log")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV])
def test_a_file_system_without_links(tmp_path: Path, number: int) -> None:
    ops = RecordingOps(tmp_path, fail_at=1, error=number, only={"link"})
    with pytest.raises(BackendError) as caught:
        LocalBackend(tmp_path, ops).create("a", b"data")
    assert "hard links" in caught.value.hint
    assert caught.value.errno == number


def test_errors_of_delete_barrier_and_sweep(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path, fail_at=1, error=errno.EIO, sticky=True, only={"unlink", "fsync_dir"})
    LocalBackend(tmp_path, OsOps()).create("log/1", b"")
    store = LocalBackend(tmp_path, ops)
    (tmp_path / "tmp/left").write_bytes(b"")
    for call in (lambda: store.delete("log/1"), lambda: store.barrier("log/"), lambda: store.sweep_temp(1 << 60)):
        with pytest.raises(BackendError) as caught:
            call()
        assert caught.value.errno == errno.EIO
    read_only = LocalBackend(tmp_path, RecordingOps(tmp_path, fail_at=1, error=errno.EROFS))
    with pytest.raises(ReadOnlyError):
        read_only.delete("log/1")


def test_a_root_in_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    ops = RecordingOps(tmp_path, fail_at=1, error=errno.EACCES, only={"fsync_dir"})
    LocalBackend(tmp_path / "s", ops).create("a", b"")
    assert ops.failed == [Effect("fsync_dir", ".")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_without_permission(tmp_path: Path) -> None:
    store = LocalBackend(tmp_path / "s", OsOps())
    store.create("log/1", b"")
    (tmp_path / "s/log").chmod(0)
    try:
        with pytest.raises(BackendError):
            list(store.list(""))
        with pytest.raises(BackendError):
            store.read("log/1")
        with pytest.raises(ReadOnlyError):
            store.create("log/2", b"")
    finally:
        (tmp_path / "s/log").chmod(0o700)


# ---------------------------------------------------------------- opening


def test_open_a_path_or_file_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("a b", "./x/../a b", tmp_path / "a b", f"file://{tmp_path}/a%20b", f"FILE://localhost{tmp_path}/a%20b"):
        backend = open_backend(url)
        assert isinstance(backend, LocalBackend)
        assert backend.root == is_local(url) == tmp_path / "a b"
    assert not (tmp_path / "a b").exists()


def test_open_uses_what_it_is_given(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path)
    open_backend(str(tmp_path / "s"), ops=ops, new_name=names).create("a", b"")
    assert f"s/tmp/{bytes(16).hex()}" in {effect.path for effect in ops.trace}


def test_a_backend_can_be_pickled(tmp_path: Path) -> None:
    store = open_backend(str(tmp_path))
    store.create("a", b"x")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"x"


def test_memory_stores_live_as_long_as_the_process() -> None:
    store = open_backend("memory://test/local", clock=lambda: 42)
    store.create("a", b"x")
    again = open_backend("memory://test/local")
    assert isinstance(again, MemoryBackend)
    assert again is store
    assert again.stat("a").modified == 42
    assert list(open_backend("memory://test/other").list("")) == []
    assert is_local("memory://test/local") is None
    for name in ("test/local", "test/other", "never opened"):
        forget_memory(name)
    assert list(open_backend("memory://test/local").list("")) == []


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket", "http://host/x", "cas://a/b"])
def test_other_schemes_come_later(url: str) -> None:
    assert is_local(url) is None
    with pytest.raises(UnsupportedSchemeError) as caught:
        open_backend(url)
    assert "later" in caught.value.hint


@pytest.mark.parametrize("url", ["", "a\0b", "file://host/x", "file://", "file:///x?y", "memory://"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(InvalidInputError):
        open_backend(url)


# ---------------------------------------------------------------- reading into memory


@pytest.mark.parametrize("refusal", [None, errno.EOPNOTSUPP, errno.EINVAL], ids=["", "EOPNOTSUPP", "EINVAL"])
def test_what_is_read_into_memory_is_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if refusal is not None and flags:
            raise OSError(refusal, "no such flag here")
        return real(fd, [buffers[0][:777]], offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    store = LocalBackend(tmp_path / "s", OsOps())
    store.create(KEY, CONTENT)
    for offset, length in ((0, len(WHOLE)), (3, 1), (0, 0), (5000, 4321), (9000, 5000), (len(WHOLE) + 5, 10)):
        target = bytearray(length)
        done = store.read_into(KEY, memoryview(target), offset=offset)
        assert target[:done] == WHOLE[offset : offset + length] == store.read(KEY, offset=offset, length=length)
    with pytest.raises(NotFoundError):
        store.read_into("packs/ab/none", memoryview(bytearray(1)), offset=0)
    with pytest.raises(NotFoundError):
        store.read_into("packs/ab", memoryview(bytearray(1)), offset=0)  # a directory is no object


def test_a_disk_that_fails_while_reading_into_memory_is_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    store = LocalBackend(tmp_path / "s", OsOps())
    store.create(KEY, CONTENT)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(BackendError):
        store.read_into(KEY, memoryview(bytearray(4)), offset=0)
    assert len(os.listdir("/proc/self/fd")) == before
