"""A directory that is written to without ever leaving it: down one open directory at a time, following no link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import BinaryIO, Self

from casstore.digest import Buffer
from casstore.errors import BackendError, CasstoreError, PathConflictError

OPEN_DIRECTORIES = 64
_BUFFERS = 512
"""one system call takes 1024 at most"""
PART = ".casstore-part"
"""how the names of temporary files end"""

ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Mine(threading.local):
    """The directories a thread has open, the one it used last at the end."""

    def __init__(self, everybody: list[OrderedDict[str, int]]) -> None:
        self.open: OrderedDict[str, int] = OrderedDict()
        everybody.append(self.open)


class Target:
    """A directory and what is below it. The way to the root may lead through links, the way below it never does.

    The root is looked up once: whatever its path, or a parent of it, means later, it stays the same directory. Raises
    bare `OSError` (see `disk_error`), and `PathConflictError` where something else is in the place of a directory.
    Threads may write at once, each goes down by descriptors of its own; `forget` and the end of it are for when none
    does. A context manager.
    """

    def __init__(self, root: str, *, make: bool = True) -> None:
        """``make``: the root, if it is not there."""
        self.root = root
        self._make = make
        self._open: list[OrderedDict[str, int]] = []
        """what each thread has open"""
        self._mine = _Mine(self._open)

    def __enter__(self) -> Self:
        try:
            if self._make:
                os.makedirs(self.root, exist_ok=True)
            self.top = os.open(self.root, ROOT)
        except (FileExistsError, NotADirectoryError):
            raise PathConflictError(f"{self.root!r} is not a directory") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        os.close(self.top)

    def forget(self) -> None:
        """Look directories up anew from now on."""
        for directories in self._open:
            while directories:
                os.close(directories.popitem()[1])

    # --- looking

    def check_space(self, needed: int) -> None:
        """Refuse before the first byte what cannot fit."""
        info = os.fstatvfs(self.top)
        free = info.f_bavail * info.f_frsize
        if needed > free:
            error = BackendError(
                f"{needed} bytes are needed below {self.root!r}, {free} are free", hint="free some space"
            )
            error.errno = errno.ENOSPC
            raise error

    def folds(self) -> bool:
        """True if the file system ignores case or Unicode form."""
        name = f".é-{os.getpid()}-{threading.get_ident()}{PART}"
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.top))
        try:
            for other in (name.upper(), unicodedata.normalize("NFD", name)):
                with contextlib.suppress(FileNotFoundError):
                    os.stat(other, dir_fd=self.top, follow_symlinks=False)
                    return True
            return False
        finally:
            os.unlink(name, dir_fd=self.top)

    def lookup(self, path: str) -> os.stat_result | None:
        """What is at a path itself: a link is not followed. None if there is nothing, or no way there."""
        parent, _, name = path.rpartition("/")
        try:
            return os.stat(name, dir_fd=self.directory(parent, create=False), follow_symlinks=False)
        except (FileNotFoundError, PathConflictError):
            return None

    def read_link(self, path: str) -> str | None:
        """Where a link points; None if there is none."""
        parent, _, name = path.rpartition("/")
        try:
            return os.readlink(name, dir_fd=self.directory(parent, create=False))
        except (FileNotFoundError, PathConflictError):
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def open_file(self, path: str) -> BinaryIO | None:
        """A regular file, for reading; None if there is none. Nothing else is opened: it might block, or do things."""
        parent, _, name = path.rpartition("/")
        try:
            directory = self.directory(parent, create=False)
            if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return None
            fd = os.open(name, _READ, dir_fd=directory)
        except (FileNotFoundError, PathConflictError):
            return None
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO}:
                return None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return os.fdopen(fd, "rb")

    def list(self, path: str) -> list[tuple[str, os.stat_result]]:
        """Names in a directory, and what each is itself; one that goes meanwhile is left out."""
        found: list[tuple[str, os.stat_result]] = []
        with os.scandir(self.directory(path, create=False)) as listing:
            for item in listing:
                with contextlib.suppress(FileNotFoundError):
                    found.append((item.name, item.stat(follow_symlinks=False)))
        return sorted(found, key=lambda item: os.fsencode(item[0]))

    # --- going down

    def directory(self, path: str, *, create: bool = True) -> int:
        """A descriptor of a directory below the root, opened one part at a time. Good until the thread calls again."""
        if not path:
            return self.top
        mine = self._mine.open
        if path not in mine:
            missing: deque[str] = deque()
            above = path
            while above and above not in mine:
                missing.appendleft(above)
                above = above.rpartition("/")[0]
            fd = mine[above] if above else self.top
            for directory in missing:
                fd = self._enter(fd, directory, create=create)
        mine.move_to_end(path)
        return mine[path]

    def _enter(self, above: int, path: str, *, create: bool) -> int:
        """Open a directory inside an open one, the last part of its path."""
        name = path.rpartition("/")[2]
        if create:
            # If something is there already, opening it tells whether it is a directory.
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
        try:
            fd = self.open_directory(name, above)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            fd = self._blocked(above, path, create=create)
        mine = self._mine.open
        mine[path] = fd
        while len(mine) > OPEN_DIRECTORIES:
            _, old = mine.popitem(last=False)
            os.close(old)
        return fd

    @staticmethod
    def open_directory(name: str, above: int) -> int:
        """A directory in an open one. Raises bare `OSError` for anything else."""
        return os.open(name, _DIRECTORY, dir_fd=above)

    def _blocked(self, above: int, path: str, *, create: bool) -> int:
        """Something else is where a directory should be: a descriptor of one to use instead, or an error."""
        raise PathConflictError(f"{path!r} below {self.root!r} is not a directory", hint="move it away")

    # --- writing

    def create(self, name: str, directory: int) -> int:
        """A new, empty file, open for writing."""
        return os.open(name, _CREATE, 0o666, dir_fd=directory)

    def publish(self, temporary: str, path: str, directory: int) -> None:
        """Give a finished file or link its name; what has it is replaced, unless it is a directory."""
        name = path.rpartition("/")[2]
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except (IsADirectoryError, NotADirectoryError, FileExistsError):
            self._occupied(temporary, path, directory)

    def _occupied(self, temporary: str, path: str, directory: int) -> None:
        """A directory has the name that a file should get."""
        raise PathConflictError(
            f"{path!r} below {self.root!r} is a directory, the version has a file there",
            hint="move the directory away",
        ) from None


def write_all(fd: int, block: Buffer) -> None:
    """Write every byte."""
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, blocks: Sequence[Buffer], position: int) -> None:
    """Write every byte of some buffers, one after another from a position on."""
    for first in range(0, len(blocks), _BUFFERS):
        views = [memoryview(block) for block in blocks[first : first + _BUFFERS]]
        while views:
            done = os.pwritev(fd, views, position)
            position += done
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if views:
                views[0] = views[0][done:]


def disk_error(error: OSError) -> CasstoreError:
    """The error of this library for one of the file system; its own are handed back as they are."""
    if isinstance(error, CasstoreError):
        return error
    hint = "free some space and run again" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    failure = BackendError(f"cannot write {error.filename or 'here'}: {error.strerror}", hint=hint)
    failure.errno = error.errno
    return failure
