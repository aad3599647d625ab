"""Entries of artifacts and versions, and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO, Protocol

from casstore.digest import Digest
from casstore.errors import ArtifactNotLoggedError


class EntryKind(StrEnum):
    """What a path is."""

    FILE = "file"
    LINK = "link"
    DIRECTORY = "dir"


class BlobReader(Protocol):
    """How an entry of a logged version reaches its bytes."""

    @property
    def store(self) -> str:
        """The id of the store they are in."""
        ...

    def read(self, entry: Entry, offset: int, length: int | None) -> bytes:
        """Some bytes of the file."""
        ...

    def open(self, entry: Entry) -> BinaryIO:
        """The file, seekable."""
        ...

    def download(self, entry: Entry, root: str | None) -> str:
        """Write the file below a directory; returns the path written."""
        ...

    def name(self, entry: Entry) -> Digest | None:
        """The digest of the content."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of an artifact: its size and where its content is.

    An entry of a logged version can be read; one of a draft raises `ArtifactNotLoggedError`.
    """

    path: str
    kind: EntryKind = EntryKind.FILE
    size: int = 0
    chunks: tuple[tuple[bytes, int], ...] = ()
    """(digest, length) in order, when the list is short"""
    tree: bytes | None = None
    """root of the chunk-list nodes, when it is long"""
    mode: int | None = None
    """permission bits, if they were asked to be kept"""
    target: str | None = None
    """where a symbolic link points"""
    reader: BlobReader | None = field(default=None, compare=False, repr=False)

    def _reader(self) -> BlobReader:
        if self.reader is None:
            raise ArtifactNotLoggedError(
                f"{self.path!r} is in a draft that is not logged", hint="call store.log_artifact first"
            )
        return self.reader

    @property
    def digest(self) -> Digest | None:
        """Digest of the content: of the bytes for a file of one chunk, of its chunk list for a longer one.

        ``None`` in a draft.
        """
        return None if self.reader is None else self.reader.name(self)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes from ``offset``; to the end without ``length``. Reads only the chunks needed, verified."""
        return self._reader().read(self, offset, length)

    def open(self) -> BinaryIO:
        """The content as a seekable, read-only binary file."""
        return self._reader().open(self)

    def download(self, root: str | None = None) -> str:
        """Write the file to ``root/path``, verified before it gets its name. Returns the local path."""
        return self._reader().download(self, root)


Progress = Callable[[str, int, int], None]
"""``progress(phase, done, total)``: called now and then from the calling thread; total 0 = unknown."""

JsonMap = Mapping[str, object]


def no_progress(phase: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""
