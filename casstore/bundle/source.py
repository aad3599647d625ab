"""Where a bundle is read from: a file that can be read anywhere, or a stream that is put aside first."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

from casstore.errors import BackendError, CasstoreError, InvalidInputError, LimitError
from casstore.sources import source_path

BLOCK = 1024 * 1024

BundleFile = str | os.PathLike[str] | BinaryIO | IO[bytes]
"""where a bundle is: a path, or a binary file object"""


class Source:
    """Bytes that can be read at any offset. Not thread-safe."""

    def __init__(self, file: BinaryIO | IO[bytes], start: int, size: int) -> None:
        self._file = file
        self._start = start
        self.size = size

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to so many bytes; fewer only where the file ends."""
        self._file.seek(self._start + offset)
        parts: list[bytes] = []
        while length:
            part = _bytes(self._file.read(length))
            if not part:
                break
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def opened(file: BundleFile, max_bytes: int | None) -> Iterator[Source]:
    """A bundle that can be read twice. A stream is copied to an unnamed temporary file, up to ``max_bytes``.

    Raises `InvalidInputError` if there is nothing to read, `LimitError`, `BackendError`. What a file object of the
    caller raises passes through.
    """
    if not isinstance(file, str | os.PathLike):
        if not callable(getattr(file, "read", None)):
            raise InvalidInputError(f"a bundle is a path or a binary file object, not {type(file).__name__}")
        with _readable(file, max_bytes) as source:
            yield source
        return
    path = source_path(file)
    try:
        stream = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below; here only its own errors are caught
    except OSError as error:
        raise InvalidInputError(f"cannot read {path!r}: {error.strerror}") from None
    with stream:
        try:
            with _readable(stream, max_bytes) as source:
                yield source
        except OSError as error:
            if isinstance(error, CasstoreError):
                raise
            raise BackendError(f"cannot read {path!r}: {error.strerror}") from None


@contextmanager
def _readable(file: BinaryIO | IO[bytes], max_bytes: int | None) -> Iterator[Source]:
    seekable = getattr(file, "seekable", None)
    if callable(seekable) and seekable():
        start = file.tell()
        yield Source(file, start, file.seek(0, io.SEEK_END) - start)
        return
    with _temporary() as spool:
        size = 0
        while block := _bytes(file.read(BLOCK)):
            size += len(block)
            if max_bytes is not None and size > max_bytes:
                raise LimitError(f"the bundle has more than {max_bytes} bytes", hint="max_bytes=, or --max-bytes")
            try:
                spool.write(block)
            except OSError as error:
                raise _unwritable(error) from None
        yield Source(spool, 0, size)


def _temporary() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(buffering=0, prefix="casstore-")
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> BackendError:
    failure = BackendError(f"cannot write a temporary file: {error.strerror}", hint="set TMPDIR to another disk")
    failure.errno = error.errno
    return failure


def _bytes(data: object) -> bytes:
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    # None is what a stream that does not block says when there is nothing yet: not the end.
    raise InvalidInputError(f"a bundle is bytes, and the file object gave {type(data).__name__}")
