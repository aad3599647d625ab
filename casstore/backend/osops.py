"""The one object that changes files for the store, effect by effect, so that tests can count, cut and record them.

An *effect* is one operating system call that changes what a crash could leave behind. Effects of a process are
numbered; ``CASSTORE_CRASH_AT=n`` ends the process at once after the n-th. Tests subclass `OsOps` and override
`OsOps._run`, through which every effect goes.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar, TypeVar

from casstore.backend import Buffer
from casstore.config import crash_point
from casstore.errors import BackendError, CasstoreError, NotFoundError, ReadOnlyError, TransientBackendError

StrPath = str | os.PathLike[str]
T = TypeVar("T")

FILE_MODE = 0o400
DIRECTORY_MODE = 0o700
CRASH_STATUS = 137

_WRITE_BYTES = 8 * 1024 * 1024
_WRITE_BUFFERS = 512
"""below IOV_MAX, which POSIX lets be as small as 16 and everybody has at 1024"""

_DENIED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_TRANSIENT = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT}
)
_HINTS = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space or raise the disk quota, and run again",
    errno.EMFILE: "raise the limit of open files (ulimit -n) and run again",
    errno.ENFILE: "the system is out of open files; run again later",
    errno.EIO: "check the disk: it failed to read or write",
    errno.ESTALE: "the network file system lost the file; run again",
    errno.EROFS: "the file system is read-only; open the store read-only or mount it for writing",
    errno.EACCES: "check the owner and the permissions of the store's directory",
    errno.EPERM: "check the owner and the permissions of the store's directory",
}


def translate(error: OSError, doing: str, *, writing: bool = False) -> CasstoreError:
    """The casstore error for an operating system error met while ``doing`` something; keeps ``errno``.

    ``writing``: nothing has been changed yet, so that being denied means the store is read-only to us, and a
    missing file is a failure rather than an answer.
    """
    number = error.errno or 0
    message = f"cannot {doing}: {os.strerror(number) if number else error} (errno {number})"
    hint = _HINTS.get(number, "")
    if not writing and isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(message, hint=hint)
    translated: BackendError | ReadOnlyError
    if writing and number in _DENIED:
        translated = ReadOnlyError(message, hint=hint)
    elif number in _TRANSIENT:
        translated = TransientBackendError(message, hint=hint)
    else:
        translated = BackendError(message, hint=hint)
    translated.errno = number or None
    return translated


@contextmanager
def translated(doing: str, *, writing: bool = False) -> Iterator[None]:
    """Let only casstore errors out of a block; see `translate`."""
    try:
        yield
    except CasstoreError:
        raise
    except OSError as error:
        raise translate(error, doing, writing=writing) from error


class OsOps:
    """Opens, writes, syncs, links and unlinks for the store. Thread-safe; raises bare `OSError`.

    Nothing is durable before the sync that makes it so: data by `fsync`, names by `fsync_dir`. No call is ever
    repeated after an error, a failed sync least of all: the kernel forgets what it could not write.
    """

    _numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self, crash_at: int | None = None) -> None:
        self._crash_at = crash_point() if crash_at is None else crash_at

    def effect(self, name: str, detail: str = "") -> None:
        """Declare an effect that is no file operation of this object, such as the commit of an index."""
        self._run(name, detail, lambda: None)

    def create(self, path: StrPath, *, mode: int = FILE_MODE) -> int:
        """Open a new file for writing; exactly this mode whatever the umask. The caller closes it.

        It is locked until then, which tells those who sweep that somebody is at work on it (`claimed`). Raises
        `SweptError` if one of them came in between: then it is gone, and another name is needed.
        """

        def call() -> int:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                os.fchmod(fd, mode)
                _lock(fd, path)
            except BaseException:
                os.close(fd)
                with suppress(OSError):
                    os.unlink(path)
                raise
            return fd

        return self._run("create", path, call)

    def write(self, fd: int, path: StrPath, data: Buffer | Sequence[Buffer]) -> int:
        """Append all bytes of some buffers, in calls of at most 8 MiB; returns how many there were."""
        total = 0
        for batch in _batches(_pieces(data)):
            rest = batch
            while rest:
                total += (done := self._write_once(fd, path, rest))
                rest = _skip(rest, done)
        return total

    def _write_once(self, fd: int, path: StrPath, views: Sequence[memoryview]) -> int:
        done = self._run("write", path, lambda: os.writev(fd, views), data=views)
        if not done:
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(path))
        return done

    def allocate(self, fd: int, path: StrPath, size: int) -> None:
        """Give an open file blocks of its own for a number of bytes."""
        self._run("allocate", path, lambda: os.posix_fallocate(fd, 0, size))

    def fsync(self, fd: int, path: StrPath) -> None:
        """Make the data of an open file durable, not its name."""
        self._run("fsync", path, lambda: os.fsync(fd))

    def write_file(self, path: StrPath, data: Buffer | Sequence[Buffer], *, mode: int = FILE_MODE) -> None:
        """Make a new file whose data, not its name, is durable. On any failure the file is removed again."""
        os.close(self.open_file(path, data, mode=mode))

    def open_file(self, path: StrPath, data: Buffer | Sequence[Buffer], *, mode: int = FILE_MODE) -> int:
        """As `write_file`, but it stays open, and so locked; the caller closes it."""
        fd = self.create(path, mode=mode)
        try:
            self.write(fd, path, data)
            self.fsync(fd, path)
        except BaseException:
            self.drop(fd, path)
            raise
        return fd

    def drop(self, fd: int, path: StrPath) -> None:
        """Close an open file and take its name away, as far as that can be had."""
        with suppress(OSError):
            os.close(fd)
        with suppress(OSError):
            self.unlink(path)

    def link(self, source: StrPath, target: StrPath) -> None:
        """Give a file a second name; fails if the name is taken. The one atomic way to publish a whole file."""
        self._run("link", source, lambda: os.link(source, target), target=target)

    def rename(self, source: StrPath, target: StrPath) -> None:
        """Move a file, replacing what has the name."""
        self._run("rename", source, lambda: os.rename(source, target), target=target)

    def unlink(self, path: StrPath) -> None:
        """Take a name away."""
        self._run("unlink", path, lambda: os.unlink(path))

    def mkdir(self, path: StrPath, *, mode: int = DIRECTORY_MODE) -> None:
        """Make a directory; exactly this mode whatever the umask."""

        def call() -> None:
            os.mkdir(path, mode)
            if stat.S_IMODE(os.stat(path).st_mode) != mode:
                os.chmod(path, mode)

        self._run("mkdir", path, call)

    def fsync_dir(self, path: StrPath) -> None:
        """Make the names in a directory durable, whoever made them."""

        def call() -> None:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        self._run("fsync_dir", path, call)

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        """Do one effect, then count it. The seam of tests: `casstore.testing.record`."""
        result = call()
        self._count()
        return result

    def _count(self) -> None:
        if next(OsOps._numbers) == self._crash_at:
            os._exit(CRASH_STATUS)

    @classmethod
    def _restart(cls) -> None:
        OsOps._numbers = itertools.count(1)


os.register_at_fork(after_in_child=OsOps._restart)  # noqa: SLF001


class SweptError(BlockingIOError):
    """A file that was just made was taken for one of the dead, before it could be locked."""


def _lock(fd: int, path: StrPath) -> None:
    """Lock a new file; where there are no locks, nothing. Raises `SweptError`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # a courtesy: where it cannot be had, it is done without
        swept = isinstance(error, BlockingIOError)
    else:
        swept = os.fstat(fd).st_nlink == 0
    if swept:
        raise SweptError(errno.EAGAIN, "it was swept away as it was made", os.fspath(path))


@contextmanager
def claimed(path: str) -> Iterator[bool]:
    """Whether nobody has a file locked: who made it is dead, or done with it. True where that cannot be known.

    Within the block its author cannot lock it any more, and so learns that it is lost (`SweptError`).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield True
        return
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            free = not isinstance(error, BlockingIOError)
        yield free
    finally:
        os.close(descriptor)


def is_abandoned(path: str) -> bool:
    """Whether nobody has a file locked; see `claimed`."""
    with claimed(path) as free:
        return free


def _pieces(data: Buffer | Sequence[Buffer]) -> Iterator[memoryview]:
    """The bytes of some buffers as non-empty flat views of at most one write."""
    buffers: Sequence[Buffer] = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    for buffer in buffers:
        view = memoryview(buffer)
        flat = view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
        for start in range(0, len(flat), _WRITE_BYTES):
            yield flat[start : start + _WRITE_BYTES]


def _batches(pieces: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    batch: list[memoryview] = []
    size = 0
    for piece in pieces:
        if batch and (size + len(piece) > _WRITE_BYTES or len(batch) == _WRITE_BUFFERS):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece)
    if batch:
        yield batch


def _skip(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of some views after their first ``count`` bytes."""
    rest: list[memoryview] = []
    for view in views:
        if count < len(view):
            rest.append(view[count:])
        count = max(0, count - len(view))
    return rest
