"""Entries of artifacts and versions, and callbacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import field
from enum import StrEnum
from typing import BinaryIO, Protocol

from casstore.digest import Digest
from casstore.errors import ArtifactNotLoggedError
from casstore.values import dataclass


class EntryKind(StrEnum):
    """What a path is."""

    FILE = "file"
    LINK = "link"
    DIRECTORY = "dir"
    REFERENCE = "reference"


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
class Pointer:
    """What a reference points to, as it was found when it was added."""

    uri: str
    etag: str | None = None
    """what the server calls this state of it; says that something changed, never what it is"""
    version_id: str | None = None
    """the object's version, where old ones can still be read"""
    checksum: Digest | None = None
    """of the whole content, if that was read"""
    unverified: bool = False
    """nothing about the content was recorded: ``checksum=False``, or no handler knows the scheme"""
    volatile: bool = False
    """what was recorded cannot prove that the content is the same: no validator, or a weak one"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of an artifact: its size and where its content is.

    An entry of a logged version can be read; one of a draft raises `ArtifactNotLoggedError`.
    """

    path: str
    kind: EntryKind = EntryKind.FILE
    size: int | None = 0
    """bytes; None for a reference whose size is not known"""
    chunks: tuple[tuple[bytes, int], ...] = ()
    """(digest, length) in order, when the list is short"""
    tree: bytes | None = None
    """root of the chunk-list nodes, when it is long"""
    mode: int | None = None
    """permission bits, if they were asked to be kept"""
    target: str | None = None
    """where a symbolic link points"""
    pointer: Pointer | None = None
    """what a reference points to; with the kind REFERENCE and no other"""
    attrs_json: bytes = b""
    """`attrs` as canonical JSON; empty without"""
    reader: BlobReader | None = field(default=None, compare=False, repr=False)

    def _reader(self) -> BlobReader:
        if self.reader is None:
            raise ArtifactNotLoggedError(
                f"{self.path!r} is in a draft that is not logged", hint="call store.log_artifact first"
            )
        return self.reader

    def bound(self, reader: BlobReader) -> Entry:
        """The same entry, readable. Ten times as fast as `dataclasses.replace`."""
        return Entry(
            self.path,
            self.kind,
            self.size,
            self.chunks,
            self.tree,
            self.mode,
            self.target,
            self.pointer,
            self.attrs_json,
            reader,
        )

    @property
    def digest(self) -> Digest | None:
        """Digest of the content: of the bytes for a file of one chunk, of its chunk list for a longer one.

        Of a reference: of all its bytes, if they were read when it was added, else None. None in a draft.
        """
        if self.pointer is not None:
            return self.pointer.checksum
        return None if self.reader is None else self.reader.name(self)

    @property
    def length(self) -> int:
        """The size in bytes; 0 if it is not known."""
        return self.size or 0

    @property
    def attrs(self) -> dict[str, object]:
        """The small JSON object a host gave with the entry, anew each time; part of the version's digest."""
        found: dict[str, object] = json.loads(self.attrs_json) if self.attrs_json else {}
        return found

    @property
    def uri(self) -> str | None:
        """What a reference points to; None for anything else."""
        return None if self.pointer is None else self.pointer.uri

    @property
    def ref(self) -> str | None:
        """`uri`, by the name it has in W&B."""
        return self.uri

    @property
    def etag(self) -> str | None:
        """See `Pointer.etag`."""
        return None if self.pointer is None else self.pointer.etag

    @property
    def version_id(self) -> str | None:
        """See `Pointer.version_id`."""
        return None if self.pointer is None else self.pointer.version_id

    @property
    def checksum(self) -> Digest | None:
        """See `Pointer.checksum`."""
        return None if self.pointer is None else self.pointer.checksum

    @property
    def unverified(self) -> bool:
        """See `Pointer.unverified`."""
        return self.pointer is not None and self.pointer.unverified

    @property
    def volatile(self) -> bool:
        """See `Pointer.volatile`."""
        return self.pointer is not None and self.pointer.volatile

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
