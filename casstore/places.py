"""What is in a draft, by path: sources over the entries of a base, and nothing in the way of anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from casstore.errors import PathConflictError
from casstore.model import Entry, EntryKind
from casstore.names import is_text
from casstore.sources import (
    EMPTY,
    EmptyDirectory,
    Link,
    LocalFile,
    Referred,
    Source,
    Spooled,
    Taken,
    ancestors,
    attrs_of,
    same_bytes,
    shape_of,
)


class Base(Protocol):
    """The stored version a draft starts from."""

    @property
    def name(self) -> str:
        """``name:vN``."""
        ...

    @property
    def place(self) -> tuple[int, int]:
        """The id of its collection, which outlives the name, and its number."""
        ...

    @property
    def number(self) -> int:
        """Its number."""
        ...

    @property
    def store(self) -> str:
        """The id of its store."""
        ...

    @property
    def root(self) -> bytes:
        """Root of its tree."""
        ...

    @property
    def pin(self) -> bytes | None:
        """The pin that keeps its content for this draft."""
        ...

    def find(self, path: str) -> Entry | None:
        """The entry at a path."""
        ...

    def walk(self, prefix: str) -> Iterator[Entry]:
        """Entries whose path begins with a prefix, in order."""
        ...


class Places:
    """Sources by path, over the entries of a base. No path is both a file and a directory. Not thread-safe.

    A method that raises has changed no content.
    """

    def __init__(self, base: Base | None = None) -> None:
        self.base = base
        self.sources: dict[str, Source] = {}
        """what was added, by path"""
        self.removed: dict[str, None] = {}
        """paths of the base that are not in it any more"""
        self.directories: Counter[str] = Counter()
        """how much of what was added is below each directory"""

    def insert(self, found: dict[str, Source], *, overwrite: bool, alone: bool = False) -> None:
        """Add sources if all of them can be; the one place where a draft grows.

        ``alone``: none of them is in the way of another, as all were found in one directory tree.
        """
        if alone and not self.sources and self.base is None:
            directories = _directories_of(found)
            if directories.keys().isdisjoint(found):  # a tree that changes while it is read may tell anything
                self.sources, self.directories = found, directories
                return
        new: dict[str, Source] = {}
        filled: dict[str, None] = {}
        above: set[str] = set()
        """directories that what was looked at so far is in; nothing is in the way of them"""
        for path, source in found.items():
            if shape_of(source) == EMPTY and self.is_directory(path):
                continue  # it is there, and not empty
            if path in above or self.is_directory(path):
                raise PathConflictError(f"{path!r} is a directory in the artifact")
            parent = path.rpartition("/")[0]
            if parent and parent not in above:
                filled.update(dict.fromkeys(self.check_above(path, found)))
                above.update(ancestors(path))
            if self.has(path) and not overwrite:
                if not self._same(path, source):
                    raise PathConflictError(
                        f"{path!r} is in the artifact already, with other content", hint="overwrite=True or merge=True"
                    )
                there = self.sources.get(path)
                if isinstance(source, LocalFile) and isinstance(there, LocalFile) and not source.trusted:
                    self.sources[path] = replace(there, trusted=False)
                continue
            new[path] = source
        for path in filled:
            self.take_out(path)
        self.directories.update(_directories_of([path for path in new if path not in self.sources]))
        self.sources.update(new)
        if self.removed:
            for path in new:
                self.removed.pop(path, None)

    def check_above(self, path: str, beside: dict[str, Source]) -> list[str]:
        """Empty directories that a path fills. Raises `PathConflictError` if a file is where it needs a directory."""
        filled: list[str] = []
        for parent in ancestors(path):
            shapes = [shape_of(found) for found in (beside.get(parent), self._at(parent)) if found is not None]
            if any(shape != EMPTY for shape in shapes):
                raise PathConflictError(f"{parent!r} is a file in the artifact, so {path!r} cannot be below it")
            if shapes:
                filled.append(parent)
        return filled

    def is_directory(self, path: str) -> bool:
        """Whether anything is below a path."""
        return bool(self.directories[path]) or self._base_directory(path)

    def _base_directory(self, path: str) -> bool:
        if self.base is None:
            return False
        return any(entry.path not in self.removed for entry in self.base.walk(path + "/"))

    def _in_base(self, path: str) -> Entry | None:
        if self.base is None or path in self.removed:
            return None
        return self.base.find(path)

    def _at(self, path: str) -> Source | None:
        """What is at a path."""
        there = self.sources.get(path)
        if there is not None:
            return there
        entry = self._in_base(path)
        return None if entry is None else Taken(entry)

    def has(self, path: str) -> bool:
        """Whether a path is in the draft."""
        return path in self.sources or self._in_base(path) is not None

    def take_out(self, path: str) -> None:
        """Remove one path, wherever it comes from."""
        if self._in_base(path) is not None:
            self.removed[path] = None
        if self.sources.pop(path, None) is not None:
            self.directories.subtract(ancestors(path))

    def _same(self, path: str, source: Source) -> bool:
        """True if the content at a path is that of a source."""
        there = self._at(path)
        if there is None:
            return False
        if there == source:
            return True
        if attrs_of(there) != attrs_of(source):
            return False
        ours, theirs = shape_of(there), shape_of(source)
        return ours == theirs if ours or theirs else same_bytes(there, source)

    def paths_at(self, name: str, *, directory: bool) -> set[str]:
        """Paths of entries at a name, unless only a directory is meant, and below it."""
        if not name or not is_text(name):
            return set()
        found = {path for path in self.sources if path.startswith(name + "/")}
        if self.base is not None:
            found.update(entry.path for entry in self.base.walk(name + "/") if entry.path not in self.removed)
        there = self._at(name)
        if there is not None and (not directory or shape_of(there) == EMPTY):
            found.add(name)
        return found

    def entries(self) -> Iterator[Entry]:
        """All entries, in path order."""
        paths = sorted(self.sources, key=str.encode)
        base = iter(()) if self.base is None else self.base.walk("")
        at = 0
        for entry in base:
            if entry.path in self.removed or entry.path in self.sources:
                continue
            while at < len(paths) and paths[at].encode() < entry.path.encode():
                yield self.entry(paths[at])
                at += 1
            yield entry
        for path in paths[at:]:
            yield self.entry(path)

    def entry(self, path: str) -> Entry:
        """What a path that is in the draft looks like."""
        source = self._at(path)
        assert source is not None
        match source:
            case LocalFile():
                return Entry(path, size=source.signature.size, mode=source.mode, attrs_json=source.attrs_json)
            case Spooled():
                return Entry(path, size=source.size, attrs_json=source.attrs_json)
            case Link():
                return Entry(path, EntryKind.LINK, target=source.target)
            case EmptyDirectory():
                return Entry(path, EntryKind.DIRECTORY)
            case Taken() | Referred():
                return source.entry

    def changes(self) -> list[tuple[str, Source | None]]:
        """Paths that differ from the base, in byte order, with their new content or None."""
        changes: dict[str, Source | None] = {path: None for path in self.removed if path not in self.sources}
        changes.update(self.sources)
        return sorted(changes.items(), key=lambda pair: pair[0].encode())


def _directories_of(paths: Iterable[str]) -> Counter[str]:
    """How many of some paths are below each directory."""
    below: Counter[str] = Counter()
    for parent, count in Counter([path.rpartition("/")[0] for path in paths]).items():
        for directory in (*ancestors(parent), parent) if parent else ():
            below[directory] += count
    return below
