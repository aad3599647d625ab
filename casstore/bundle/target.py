"""Where a bundle is written to: a new file that appears whole or not at all, or a stream of the caller's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, BinaryIO

from casstore.bundle.source import BundleFile
from casstore.digest import Buffer, Sealer
from casstore.errors import AlreadyExistsError, BackendError, CasstoreError, InvalidInputError
from casstore.sources import source_path

PART_SUFFIX = ".casstore-part"


class Output:
    """Writes and seals. Not thread-safe."""

    def __init__(self, file: BinaryIO | IO[bytes]) -> None:
        self._file = file
        self._sealer = Sealer()
        self.size = 0

    def write(self, data: Buffer) -> None:
        """Write all of it."""
        self._sealer.update(data)
        view = memoryview(data)
        self.size += len(view)
        while view.nbytes:
            written = self._file.write(view)
            view = view[len(view) if written is None else written :]

    def seal(self) -> bytes:
        """The BLAKE3 of all that was written."""
        return self._sealer.seal()


@contextmanager
def writing(file: BundleFile, name: bytes, *, overwrite: bool) -> Iterator[Output]:
    """A bundle to write. A path gets it, durable, when the block ends; if that raises, there is no trace.

    ``name``: random bytes, for a temporary file in the same directory. Raises `AlreadyExistsError`,
    `InvalidInputError`, `BackendError`. What a file object of the caller raises passes through.
    """
    if not isinstance(file, str | os.PathLike):
        if not callable(getattr(file, "write", None)):
            raise InvalidInputError(f"a bundle goes to a path or a binary file object, not {type(file).__name__}")
        yield Output(file)
        flush = getattr(file, "flush", None)
        if callable(flush):
            flush()
        return
    path = source_path(file)
    _check_place(path, overwrite=overwrite)
    directory, base = os.path.split(path)
    temporary = os.path.join(directory, f".{name.hex()}{PART_SUFFIX}")
    if not base:
        raise InvalidInputError(f"{path!r} is a directory", hint="name the file")
    try:
        yield from _new_file(temporary, path, directory or os.curdir, overwrite=overwrite)
    except OSError as error:
        if isinstance(error, CasstoreError):
            raise
        hint = "free some space and run again" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
        failure = BackendError(f"cannot write {path!r}: {error.strerror}", hint=hint)
        failure.errno = error.errno
        raise failure from None


def _check_place(path: str, *, overwrite: bool) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        if os.path.lexists(path) and not overwrite:
            raise _exists(path) from None
        return
    if stat.S_ISDIR(mode):
        raise InvalidInputError(f"{path!r} is a directory", hint="name the file")
    if not overwrite:
        raise _exists(path)
    if not stat.S_ISREG(mode):
        raise InvalidInputError(f"{path!r} is not a regular file", hint="open it, and hand over the file object")


def _new_file(temporary: str, path: str, directory: str, *, overwrite: bool) -> Iterator[Output]:
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield Output(file)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.rename(temporary, path)
        else:
            _publish(temporary, path)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(temporary: str, path: str) -> None:
    """Give a file its name unless somebody else was first."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}:
            raise
        if os.path.lexists(path):  # a file system without hard links: as good as it gets there
            raise _exists(path) from None
        os.rename(temporary, path)


def _exists(path: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"{path!r} exists already", hint="overwrite=True, or casstore export --overwrite")
