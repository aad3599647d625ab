"""What binds entries and drafts to the store their content is in."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from casstore import contents, pin
from casstore.catalogue import Found, place_of
from casstore.digest import Digest
from casstore.engine import Engine
from casstore.model import Entry, no_progress


class Listing(Iterator[Entry]):
    """Entries of a version, one after the other. Not thread-safe."""

    def __init__(self, entries: Iterator[Entry], cursor: str | None) -> None:
        self._entries = entries
        self._cursor = cursor

    def __next__(self) -> Entry:
        entry = next(self._entries)
        self._cursor = entry.path
        return entry

    @property
    def cursor(self) -> str | None:
        """Where it stands, for ``start`` of another listing: the path of the last entry given, None before any.

        Of a listing that was itself resumed, before any: where that was. Good for as long as the version is.
        """
        return self._cursor


class EntryReader:
    """Reads entries of one version."""

    def __init__(self, engine: Engine, found: Found) -> None:
        self._engine = engine
        self._found = found

    @property
    def store(self) -> str:
        """The id of the store."""
        return self._engine.config.store_id

    def read(self, entry: Entry, offset: int, length: int | None) -> bytes:
        """See `BlobReader.read`."""
        with contents.naming(self._found, entry.path):
            return contents.read_range(self._engine, entry, offset, length)

    def open(self, entry: Entry) -> BinaryIO:
        """See `BlobReader.open`."""
        return contents.open_entry(self._engine, self._found, entry)

    def download(self, entry: Entry, root: str | None) -> str:
        """See `BlobReader.download`."""
        from casstore.checkout import download

        target = os.path.join("artifacts", f"{self._found.name.name}:v{self._found.version.number}")
        where = target if root is None else root
        with pin.reading(self._engine, self._found, "download from", no_progress) as touched:
            report = download(self._engine, self._found, where, path_prefix=entry.path, progress=touched)
        return os.path.join(report.path, *entry.path.split("/"))

    def name(self, entry: Entry) -> Digest | None:
        """See `BlobReader.name`."""
        return contents.content_digest(self._engine, entry)


class DraftBase:
    """The stored version a draft starts from."""

    def __init__(self, engine: Engine, found: Found, pin: bytes | None) -> None:
        self._engine = engine
        self._found = found
        self.pin = pin

    @property
    def name(self) -> str:
        """``name:vN``."""
        return self._found.label

    @property
    def store(self) -> str:
        """The id of the store."""
        return self._engine.config.store_id

    @property
    def place(self) -> tuple[int, int]:
        """The id of its collection, which outlives the name, and its number."""
        return place_of(self._found.version)

    @property
    def number(self) -> int:
        """Its number."""
        return self._found.version.number

    @property
    def root(self) -> bytes:
        """Root of its tree."""
        return self._found.version.root

    def find(self, path: str) -> Entry | None:
        """The entry at a path, readable."""
        entry = contents.find_entry(self._engine, self._found, path)
        return None if entry is None else entry.bound(EntryReader(self._engine, self._found))

    def walk(self, prefix: str) -> Iterator[Entry]:
        """Entries whose path begins with a prefix, readable."""
        reader = EntryReader(self._engine, self._found)
        for entry in contents.entries(self._engine, self._found, prefix=prefix):
            yield entry.bound(reader)
