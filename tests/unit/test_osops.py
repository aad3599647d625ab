"""Effects: whole, counted, cut short, recorded, made to fail; and their errors in casstore's words."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.backend.osops import CRASH_STATUS, OsOps, translate, translated
from casstore.errors import (
    BackendError,
    CasstoreError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    TransientBackendError,
)
from casstore.testing.record import Effect, RecordingOps

MIB = 1 << 20


def ops_of(trace: list[Effect]) -> list[str]:
    return [effect.op for effect in trace]


def test_write_file_is_create_write_sync(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path)
    ops.write_file(tmp_path / "a", [b"one", bytearray(b"two"), memoryview(b"three")])
    assert ops.trace == [Effect("create", "a"), Effect("write", "a", data=b"onetwothree"), Effect("fsync", "a")]
    assert (tmp_path / "a").read_bytes() == b"onetwothree"


def test_write_file_never_replaces(tmp_path: Path) -> None:
    OsOps().write_file(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        OsOps().write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_writes_of_at_most_8_mib(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path)
    data = os.urandom(9 * MIB)
    ops.write_file(tmp_path / "a", [b"x", data, b"y" * 3, *[b"z"] * 2000])
    sizes = [len(effect.data) for effect in ops.trace if effect.op == "write"]
    assert max(sizes) <= 8 * MIB
    assert len(sizes) < 10, "many small buffers share a call"
    assert (tmp_path / "a").read_bytes() == b"x" + data + b"yyy" + b"z" * 2000


@given(
    st.lists(st.binary(max_size=40), max_size=12),
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
)
def test_short_writes_are_continued(buffers: list[bytes], limits: list[int]) -> None:
    written = bytearray()
    real = os.writev

    def short(fd: int, views: list[memoryview]) -> int:
        part = b"".join(views)[: limits[len(written) % len(limits)]]
        written.extend(part)
        return len(part)

    os.writev = short  # type: ignore[assignment]
    try:
        assert OsOps().write(-1, "x", buffers) == len(b"".join(buffers))
    finally:
        os.writev = real
    assert bytes(written) == b"".join(buffers)


def test_a_write_of_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", lambda fd, views: 0)
    with pytest.raises(OSError, match="Input/output"):
        OsOps().write_file(tmp_path / "a", b"data")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_modes_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        OsOps().mkdir(tmp_path / "d")
        OsOps().write_file(tmp_path / "d" / "f", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "d" / "f").stat().st_mode) == 0o400


def test_names(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path)
    ops.mkdir(tmp_path / "d")
    ops.write_file(tmp_path / "d" / "a", b"")
    ops.link(tmp_path / "d" / "a", tmp_path / "d" / "b")
    with pytest.raises(FileExistsError):
        ops.link(tmp_path / "d" / "a", tmp_path / "d" / "b")
    ops.rename(tmp_path / "d" / "b", tmp_path / "d" / "c")
    ops.unlink(tmp_path / "d" / "a")
    ops.fsync_dir(tmp_path / "d")
    ops.fsync_dir(tmp_path)
    ops.fsync_dir(tmp_path.parent)
    ops.effect("index-commit", "7")
    ops.mark("1")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["c"]
    assert ops.trace == [
        Effect("mkdir", "d"),
        Effect("create", "d/a"),
        Effect("fsync", "d/a"),
        Effect("link", "d/a", "d/b"),
        Effect("rename", "d/b", "d/c"),
        Effect("unlink", "d/a"),
        Effect("fsync_dir", "d"),
        Effect("fsync_dir", "."),
        Effect("fsync_dir", str(tmp_path.parent)),
        Effect("index-commit", "7"),
        Effect("ack", "1"),
    ]


def test_fsync_dir_wants_a_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        OsOps().fsync_dir(tmp_path / "f")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("op", ["create", "write", "fsync"])
def test_a_failed_file_is_gone_and_nothing_is_tried_twice(tmp_path: Path, op: str, number: int) -> None:
    ops = RecordingOps(tmp_path, fail_at=1, error=number, only={op})
    with pytest.raises(OSError, match=r".") as caught:
        ops.write_file(tmp_path / "a", b"data")
    assert caught.value.errno == number
    assert ops.attempts == 1
    assert not (tmp_path / "a").exists()


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for nth in range(1, 6):
        ops = RecordingOps(tmp_path, fail_at=nth, error=errno.EIO)
        try:
            ops.write_file(tmp_path / f"{nth}", b"data")
            ops.fsync_dir(tmp_path)
        except OSError:
            pass
    assert len(list(descriptors.iterdir())) == before


def test_a_recorder_can_lose_the_answer(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path, fail_at=1, error=errno.ETIMEDOUT, after=True, only={"mkdir"})
    with pytest.raises(OSError, match="timed out"):
        ops.mkdir(tmp_path / "d")
    assert (tmp_path / "d").is_dir()
    assert ops.trace == ops.failed == [Effect("mkdir", "d")]


def test_a_recorder_can_fail_for_good(tmp_path: Path) -> None:
    ops = RecordingOps(tmp_path, fail_at=2, error=errno.ENOSPC, sticky=True)
    ops.mkdir(tmp_path / "1")
    for name in "234":
        with pytest.raises(OSError, match="No space"):
            ops.mkdir(tmp_path / name)
    assert ops.trace == [Effect("mkdir", "1")]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", f"import os\nfrom casstore.backend.osops import OsOps\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


COUNT = """
for number in range(6):
    OsOps().effect("step")      # each its own object: the count is the process's
    print(number, flush=True)
"""


@pytest.mark.parametrize(("crash_at", "printed"), [(1, 0), (4, 3), (6, 5), (7, 6), (0, 6)])
def test_crash_after_the_nth_effect_of_the_process(crash_at: int, printed: int) -> None:
    done = run(COUNT, CASSTORE_CRASH_AT=str(crash_at))
    assert done.stdout.split() == [b"%d" % number for number in range(printed)]
    assert done.returncode == (CRASH_STATUS if printed < 6 else 0), done.stderr


def test_the_effect_happens_before_the_crash(tmp_path: Path) -> None:
    code = f"OsOps(crash_at=2).mkdir({str(tmp_path / '1')!r}); OsOps(crash_at=2).mkdir({str(tmp_path / '2')!r})"
    assert run(code).returncode == CRASH_STATUS
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_a_forked_process_counts_for_itself() -> None:
    code = """
OsOps(0).effect("one"); OsOps(0).effect("two")
child = os.fork()
OsOps(crash_at=1).effect("first of the child, third of the parent")
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (0, b"%d\n" % CRASH_STATUS), done.stderr


def test_threads_count_together() -> None:
    code = """
import threading
ops = OsOps(crash_at=4000)
def work():
    for _ in range(1000):
        ops.effect("step")
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert run(code).returncode == CRASH_STATUS
    assert run(code.replace("4000", "4001")).returncode == 0


def test_a_crash_point_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSTORE_CRASH_AT", "soon")
    with pytest.raises(InvalidInputError):
        OsOps()


def test_a_trace_is_in_the_order_of_events(tmp_path: Path) -> None:
    """A directory sync never precedes, in the trace, a name it did not cover."""
    ops = RecordingOps(tmp_path)

    def work(number: int) -> None:
        for step in range(50):
            ops.mkdir(tmp_path / f"{number}-{step}")
            ops.fsync_dir(tmp_path)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ops.trace) == 400
    for number in range(4):
        own = [effect.path for effect in ops.trace if effect.path.startswith(f"{number}-")]
        assert own == [f"{number}-{step}" for step in range(50)]


@pytest.mark.parametrize(
    ("number", "writing", "kind"),
    [
        (errno.ENOENT, False, NotFoundError),
        (errno.ENOTDIR, False, NotFoundError),
        (errno.ENOENT, True, BackendError),
        (errno.ENOSPC, True, BackendError),
        (errno.EIO, False, BackendError),
        (errno.EROFS, True, ReadOnlyError),
        (errno.EACCES, True, ReadOnlyError),
        (errno.EPERM, True, ReadOnlyError),
        (errno.EACCES, False, BackendError),
        (errno.EMFILE, True, TransientBackendError),
        (errno.ESTALE, False, TransientBackendError),
    ],
)
def test_translation(number: int, writing: bool, kind: type[CasstoreError]) -> None:
    error = translate(OSError(number, os.strerror(number)), "do it", writing=writing)
    assert type(error) is kind
    assert os.strerror(number) in str(error)
    assert str(error).startswith("cannot do it: ")
    if isinstance(error, OSError):
        assert error.errno == number


def test_a_full_disk_has_a_hint() -> None:
    assert translate(OSError(errno.ENOSPC, "full"), "do it").hint == "free some space and run again"


def test_translated_lets_casstore_errors_through() -> None:
    def fail(error: Exception) -> Callable[[], None]:
        def call() -> None:
            with translated("do it"):
                raise error

        return call

    own = BackendError("mine")
    with pytest.raises(BackendError) as caught:
        fail(own)()
    assert caught.value is own
    with pytest.raises(NotFoundError, match="cannot do it"):
        fail(FileNotFoundError(errno.ENOENT, "gone"))()
    with pytest.raises(BackendError, match="odd"):
        fail(OSError("odd"))()
