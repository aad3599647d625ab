"""The bytes behind an entry: ranges, seekable files, names of damage."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from casstore import reference
from casstore.catalogue import Found
from casstore.digest import Digest
from casstore.engine import Engine
from casstore.errors import FormatError, IntegrityError, InvalidInputError
from casstore.format.nodes import CHUNK_LIST, encode_chunk, encode_node
from casstore.model import Entry, EntryKind
from casstore.names import is_text
from casstore.pin import LongRead
from casstore.policy import in_force
from casstore.policy import reference_access as access_by
from casstore.reference import Access
from casstore.tree import chunk_list, find, walk

READ_AHEAD = 64 * 1024
"""bytes an open file reads at least, when it is read from one end to the other"""
FIRST_AHEAD = 4 * 1024
"""bytes it reads where somebody has gone to; twice as many each time as reading goes on there"""
WINDOW = 8 * 1024 * 1024
"""bytes fetched together when a range is long"""

Piece = tuple[int, bytes, int]
"""position in the file, digest, length"""


@contextmanager
def naming(found: Found, path: str | None = None) -> Iterator[None]:
    """Errors about damaged bytes, named after the collection, version and path that needs them."""
    try:
        yield
    except IntegrityError as error:
        if error.collection is None:
            raise named(error, found, path) from error.__cause__
        raise
    except FormatError as error:
        raise named(IntegrityError(error.message, hint=error.hint), found, path) from None


def named(error: IntegrityError, found: Found, path: str | None) -> IntegrityError:
    """A copy of an error that says which version and path cannot be read."""
    where = found.label if path is None else f"{found.label}/{path}"
    copy = type(error)(f"{where}: {error.message}", hint=error.hint or "casstore fsck --read-data --repair")
    copy.collection, copy.version, copy.path = found.name.short, f"v{found.version.number}", path
    copy.digest = error.digest
    return copy


def pieces(engine: Engine, entry: Entry, offset: int = 0, end: int | None = None) -> Iterator[Piece]:
    """The chunks of a file that touch a byte range, in order."""
    if entry.tree is not None:
        yield from chunk_list(entry.tree, engine.node, offset=offset, end=end)
        return
    at = 0
    for digest, length in entry.chunks:
        if end is not None and at >= end:
            return
        if at + length > offset:
            yield at, digest, length
        at += length


def windows(parts: Iterator[Piece], size: int = WINDOW) -> Iterator[list[Piece]]:
    """Pieces in groups of about ``size`` bytes."""
    group: list[Piece] = []
    total = 0
    for piece in parts:
        group.append(piece)
        total += piece[2]
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def read_range(engine: Engine, entry: Entry, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a file, each chunk verified. Raises `IntegrityError`, `InvalidInputError`.

    Of a reference: as `open_entry`.
    """
    if entry.kind is not EntryKind.REFERENCE:
        _check_file(entry)
    if not isinstance(offset, int) or not (length is None or isinstance(length, int)):
        raise InvalidInputError(f"offset {offset!r} and length {length!r} must be whole numbers")
    if offset < 0 or (length is not None and length < 0):
        raise InvalidInputError("offset and length must not be negative")
    if entry.kind is EntryKind.REFERENCE:
        with reference.open_verified(entry, reference_access(engine)) as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)
    end = entry.length if length is None else min(entry.length, offset + length)
    if offset >= end:
        return b""
    out = bytearray()
    for group in windows(pieces(engine, entry, offset, end)):
        fetched = engine.reader.fetch(digest for _, digest, _ in group)
        for at, digest, _ in group:
            data = fetched.get(digest)
            out += data[max(0, offset - at) : end - at]
    return bytes(out)


def content_digest(engine: Engine, entry: Entry) -> Digest | None:
    """The name of a file's content: of its bytes if they are one chunk, else of its chunk list."""
    if entry.kind is not EntryKind.FILE:
        return None
    if entry.tree is not None:
        return engine.digest(entry.tree)
    if len(entry.chunks) == 1:
        return engine.digest(entry.chunks[0][0])
    if not entry.chunks:
        return engine.digest(engine.hash(b""))
    return engine.digest(engine.hash(encode_node(CHUNK_LIST, 0, [encode_chunk(chunk) for chunk in entry.chunks])))


def find_entry(engine: Engine, found: Found, path: str) -> Entry | None:
    """The entry at a path of a version."""
    if not isinstance(path, str) or not is_text(path):
        return None
    with naming(found, path):
        return find(found.version.root, path, engine.node)


Failures = list[tuple[str, IntegrityError]]
"""paths that cannot be read, and why"""


def entries(
    engine: Engine, found: Found, *, start: str = "", prefix: str = "", failures: Failures | None = None
) -> Iterator[Entry]:
    """Entries of a version in path order. O(1) memory.

    Raises `IntegrityError` at a damaged part of the tree; with ``failures`` it is noted there, under the last
    path of that part, and left out.
    """

    def damaged(error: IntegrityError | FormatError, path: str) -> None:
        assert failures is not None
        damage = error if isinstance(error, IntegrityError) else IntegrityError(error.message)
        failures.append((path, named(damage, found, path)))

    with naming(found):
        root = found.version.root
        yield from walk(root, engine.node, start=start, prefix=prefix, damaged=None if failures is None else damaged)


def below(engine: Engine, found: Found, path_prefix: str | None, failures: Failures | None = None) -> Iterator[Entry]:
    """Entries at a path or below it, by whole segments; a trailing ``/`` means a directory only."""
    if not path_prefix:
        yield from entries(engine, found, failures=failures)
        return
    if not is_text(path_prefix):
        return
    directory = path_prefix.rstrip("/")
    if not path_prefix.endswith("/"):
        exact = find_entry(engine, found, directory)
        if exact is not None:
            yield exact
    yield from entries(engine, found, prefix=directory + "/", failures=failures)


def open_entry(engine: Engine, found: Found, entry: Entry) -> BinaryIO:
    """A file of a version as a buffered file object. Raises `InvalidInputError` for anything but a file.

    A reference is read and proved first. Raises `ReferenceMissingError`, `ReferenceChangedError`, `BackendError`.
    """
    if entry.kind is EntryKind.REFERENCE:
        with naming(found, entry.path):
            return reference.open_verified(entry, reference_access(engine))
    _check_file(entry)
    return io.BufferedReader(StoredFile(engine, found, entry), READ_AHEAD)


def reference_access(engine: Engine) -> Access:
    """What references may reach by the rules in force now, whoever set them."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return access_by(in_force(tables))


def _check_file(entry: Entry) -> None:
    if entry.kind is not EntryKind.FILE:
        raise InvalidInputError(f"{entry.path!r} is a {entry.kind}, not a file")


class StoredFile(io.RawIOBase, BinaryIO):
    """A file of a version: seekable, read-only, verified, unbuffered. Not thread-safe."""

    def __init__(self, engine: Engine, found: Found, entry: Entry) -> None:
        super().__init__()
        self._engine = engine
        self._found = found
        self._entry = entry
        self._at = 0
        self._expected = 0
        """where the next read begins if nobody goes elsewhere"""
        self._ahead = READ_AHEAD
        self._long = LongRead(engine, found, "open file of")

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; past the end is allowed and reads nothing there."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.length}.get(whence)
        if origin is None or origin + offset < 0:
            raise InvalidInputError(f"cannot seek to {offset} from {whence}")
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        """The position."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill a buffer as far as the file goes; less of it where reading has just begun."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        self._ahead = min(self._ahead * 2, WINDOW) if self._at == self._expected else FIRST_AHEAD
        data = self.read(min(len(view), self._ahead))
        self._expected = self._at
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """No more reading. Its pin, if reading took long, goes with the next commit: files are closed anywhere."""
        if not self.closed:
            self._long.abandon()
        super().close()

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes from the position, or all that is left."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        length = None if size is None or size < 0 else size
        self._long.touch()
        with naming(self._found, self._entry.path):
            data = read_range(self._engine, self._entry, self._at, length)
        self._at += len(data)
        return data
