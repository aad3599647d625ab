"""``file:///…``: files of this machine, named by their content."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from casstore.digest import Digest, hasher
from casstore.errors import (
    BackendError,
    CasstoreError,
    InvalidInputError,
    ReferenceChangedError,
    ReferenceMissingError,
    RefusedError,
)
from casstore.model import Entry, Pointer
from casstore.names import check_path
from casstore.reference.handler import Access, Resolved
from casstore.reference.uri import shown, split
from casstore.sources import Globs, LocalFile, Scan, Signature, check_regular

BLOCK = 1024 * 1024
RECORD_AGAIN = "log a version that records it as it is now, or put the old file back"

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileHandler:
    """Files and directories by absolute path."""

    schemes = ("file",)

    def resolve(self, uri: str, *, checksum: bool, limit: int, access: Access) -> Iterator[Resolved]:
        """See `Handler.resolve`. Symbolic links in a directory are refused, all other paths are followed."""
        path = local_path(uri)
        try:
            info = os.stat(path)
        except OSError as error:
            raise _failure(uri, error) from None
        if not checksum:
            check_regular_or_directory(path, info)
            return iter([Resolved("", None, Pointer(uri, unverified=True))])
        if not stat.S_ISDIR(info.st_mode):
            check_regular(path, info)
            return iter([_recorded("", uri, LocalFile(path, Signature.of(info)))])
        return _below(uri, path, limit)

    def open(self, entry: Entry, access: Access) -> BinaryIO:
        """See `Handler.open`. What is read from it is refused once the file is not what it was when it was opened."""
        uri = entry.uri or ""
        path = local_path(uri)
        try:
            fd = os.open(path, _READ) if access.roots is None else _open_below(uri, path, access.roots)
            info = os.fstat(fd)
        except OSError as error:
            raise _failure(uri, error) from None
        if stat.S_ISREG(info.st_mode):
            return _Local(fd, uri)
        os.close(fd)
        if entry.unverified and stat.S_ISDIR(info.st_mode):
            raise InvalidInputError(
                f"{shown(uri)} is a directory that was recorded by its name only",
                hint="add it with checksum=True to record the files in it",
            )
        raise ReferenceChangedError(f"{shown(uri)} is not a file any more", hint=RECORD_AGAIN)

    def check(self, entry: Entry, access: Access) -> bool:
        """See `Handler.check`. Reads the file, if its size is what it was: only the content says what it is."""
        uri = entry.uri or ""
        if entry.unverified:
            path = local_path(uri)
            if access.roots is not None:
                _inside(uri, path, access.roots)
            try:
                os.stat(path)
            except OSError as error:
                raise _failure(uri, error) from None
            return False
        with self.open(entry, access) as file:
            size = os.fstat(file.fileno()).st_size
            if entry.size is not None and size != entry.size:
                raise ReferenceChangedError(f"{shown(uri)} has {size} bytes, not {entry.size}", hint=RECORD_AGAIN)
            if entry.checksum is None:
                return False
            if _digest_of(file, entry.checksum.algorithm) != entry.checksum:
                raise ReferenceChangedError(f"{shown(uri)} has other content than was recorded", hint=RECORD_AGAIN)
        return True


def local_path(uri: str) -> str:
    """The absolute path a file URI names. Raises `InvalidInputError`."""
    parts = split(uri)
    if parts.netloc or not parts.path.startswith("/") or not uri[5:].startswith("//"):
        raise InvalidInputError(f"{shown(uri)!r} is no absolute path", hint="file:///absolute/path: three slashes")
    if "?" in uri or "#" in uri:
        raise InvalidInputError(
            f"{shown(uri)!r} has ? or # in it", hint="%3F and %23; pathlib.Path(path).as_uri() writes it so"
        )
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415 - start-up

    path = os.fsdecode(unquote_to_bytes(parts.path))
    if "\0" in path:
        raise InvalidInputError(f"{shown(uri)!r} is not a path")
    return path


def confine(uri: str, roots: tuple[str, ...]) -> None:
    """Raise `RefusedError` if a file URI leads out of all of some directories, by whatever links."""
    _inside(uri, local_path(uri), roots)


def check_regular_or_directory(path: str, info: os.stat_result) -> None:
    """As `check_regular`, but a directory will do."""
    if not stat.S_ISDIR(info.st_mode):
        check_regular(path, info)


def _inside(uri: str, path: str, roots: tuple[str, ...]) -> tuple[str, str]:
    """The root that a path is in, without links, and the path below it."""
    real = os.path.realpath(path)
    for root in map(os.path.realpath, roots):
        if real == root or real.startswith(root.rstrip("/") + "/"):
            return root, real[len(root) :].strip("/")
    raise RefusedError(
        f"{shown(uri)} is not in a directory that references may lead to",
        hint=f"the store's policy reference_roots: {', '.join(roots) or '(none)'}",
    )


def _open_below(uri: str, path: str, roots: tuple[str, ...]) -> int:
    """Open a path that is below a root part by part, so that no link put in meanwhile leads out."""
    root, inner = _inside(uri, path, roots)
    parts = inner.split("/") if inner else ["."]
    above = os.open(root, _ENTER)
    try:
        for part in parts[:-1]:
            below = os.open(part, _ENTER, dir_fd=above)
            os.close(above)
            above = below
        return os.open(parts[-1], _READ | os.O_NOFOLLOW, dir_fd=above)
    finally:
        os.close(above)


def _below(uri: str, path: str, limit: int) -> Iterator[Resolved]:
    """The files of a directory, in the order of their names."""
    from urllib.parse import quote_from_bytes  # noqa: PLC0415 - start-up

    scan = Scan(path, "error", Globs((), ()), allow_outside=False, limit=limit)
    found = scan.run(keep_empty_dirs=False)
    if not found:
        raise InvalidInputError(f"there is no file in {shown(uri)}", hint="checksum=False records the directory itself")
    for relative, _ in found:
        check_path(relative)
    for relative, source in sorted(found, key=lambda pair: pair[0].encode()):
        assert isinstance(source, LocalFile)
        below = quote_from_bytes(os.fsencode(relative))
        yield _recorded(relative, f"{uri.rstrip('/')}/{below}", source)


def _recorded(name: str, uri: str, source: LocalFile) -> Resolved:
    """A file with the digest of its content, read now."""
    try:
        fd = os.open(source.path, _READ)
    except OSError as error:
        raise _failure(uri, error) from None
    with _Local(fd, uri) as file:
        check_regular(source.path, os.fstat(fd))
        try:
            if Signature.of(os.fstat(fd)) != source.signature:
                raise ReferenceChangedError(f"{shown(uri)} changed while it was read")
            checksum = _digest_of(file, "blake3")
        except ReferenceChangedError as error:
            raise InvalidInputError(error.message, hint="add it when it is at rest") from None
    return Resolved(name, source.signature.size, Pointer(uri, checksum=checksum))


def _digest_of(file: BinaryIO, algorithm: str) -> Digest:
    hashing = hasher(algorithm)
    while block := file.read(BLOCK):
        hashing.update(block)
    return Digest(algorithm, hashing.digest())


def _failure(uri: str, error: OSError) -> CasstoreError:
    if isinstance(error, CasstoreError):
        return error
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ReferenceMissingError(f"{shown(uri)} is gone", hint="put the file back, or log a version without it")
    failure = BackendError(f"cannot read {shown(uri)}: {error.strerror}", hint="check the permissions and the mount")
    failure.errno = error.errno
    return failure


class _Local(io.RawIOBase, BinaryIO):
    """An open file, read-only and seekable, that stops being readable when somebody writes to it."""

    def __init__(self, fd: int, uri: str) -> None:
        super().__init__()
        self._file = os.fdopen(fd, "rb", buffering=0)
        self._uri = uri
        self._signature = Signature.of(os.fstat(fd))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:
            raise InvalidInputError(f"cannot seek to {offset} from {whence}") from None

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            data = self._file.read(-1 if size is None else size)
        except OSError as error:
            raise _failure(self._uri, error) from None
        if Signature.of(os.fstat(self.fileno())) != self._signature:
            raise ReferenceChangedError(f"{shown(self._uri)} changed while it was read", hint=RECORD_AGAIN)
        return data

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
