"""Several trees as one: merged in path order, and where they contradict each other. Memory: O(trees · depth).

Paths are compared as text, which gives the same order as their UTF-8 bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Protocol

from casstore.errors import UpsertConflictError
from casstore.model import Entry, EntryKind
from casstore.tree import Fetch, find, walk
from casstore.values import dataclass


class Listing(Protocol):
    """The entries of one part."""

    @property
    def label(self) -> str:
        """What the part is called in a message."""
        ...

    def find(self, path: str) -> Entry | None:
        """The entry at a path."""
        ...

    def walk(self, start: str = "", prefix: str = "") -> Iterator[Entry]:
        """Entries in path order: from ``start`` on, those whose path begins with ``prefix``."""
        ...


@dataclass(frozen=True, slots=True)
class TreeListing:
    """A stored tree."""

    label: str
    root: bytes
    fetch: Fetch

    def find(self, path: str) -> Entry | None:
        """See `Listing.find`."""
        return find(self.root, path, self.fetch)

    def walk(self, start: str = "", prefix: str = "") -> Iterator[Entry]:
        """See `Listing.walk`."""
        return walk(self.root, self.fetch, start=start, prefix=prefix)


class _Open:
    """Entries whose path the path at hand begins with, shortest first: those above it are among them."""

    def __init__(self, entries: Sequence[tuple[Entry, Listing]] = ()) -> None:
        self.entries = list(entries)

    def move(self, path: str) -> None:
        """Go on to the next path."""
        while self.entries and not path.startswith(self.entries[-1][0].path):
            self.entries.pop()

    def check(self, entry: Entry, owner: Listing) -> None:
        """Raise `UpsertConflictError` if another part has the path with other content, or a file above it."""
        for above, other in self.entries:
            if other is owner:
                continue
            if above.path == entry.path:
                if above != entry:
                    raise UpsertConflictError(
                        f"{entry.path!r} has other content in {owner.label} than in {other.label}",
                        hint="casstore pending show ID lists the parts; leave the path to one of them",
                    )
            elif above.kind is not EntryKind.DIRECTORY and entry.path[len(above.path)] == "/":
                raise UpsertConflictError(
                    f"{above.path!r} is a file in {other.label}, but a directory in {owner.label}, which has"
                    f" {entry.path!r}",
                    hint="casstore pending show ID lists the parts; rename one of the two paths",
                )

    def add(self, entry: Entry, owner: Listing) -> None:
        """An entry at the path."""
        self.entries.append((entry, owner))


def merged(parts: Sequence[Listing]) -> Iterator[Entry]:
    """The entries of all parts in path order, each path once; an empty directory that another part fills is left out.

    Raises `UpsertConflictError` where two parts have a path with other content, or as a file and as a directory.
    """
    seen = _Open()
    before = ""
    for entry, owner in heapq.merge(*(_owned(part) for part in parts), key=lambda pair: pair[0].path):
        seen.move(entry.path)
        seen.check(entry, owner)
        seen.add(entry, owner)
        if entry.path == before:
            continue
        before = entry.path
        if entry.kind is EntryKind.DIRECTORY and any(_has_below(part, entry.path) for part in parts):
            continue
        yield entry


def _owned(part: Listing) -> Iterator[tuple[Entry, Listing]]:
    return ((entry, part) for entry in part.walk())


def _has_below(part: Listing, path: str) -> bool:
    return next(part.walk(prefix=f"{path}/"), None) is not None


def check_pair(a: Listing, b: Listing) -> None:
    """Raise `UpsertConflictError` if two parts contradict each other. Reads only what of both may meet."""
    first = {part: next(part.walk(), None) for part in (a, b)}
    heads = [entry.path for entry in first.values() if entry is not None]
    if len(heads) < 2:
        return
    # Before the greater of the first paths only files matter that may be directories to the part which begins there,
    # if not to its first path, then to one after that: "a" to "a-" and "a/b".
    start = max(heads)
    early = a if heads[0] <= heads[1] else b
    shorter = [start[:at] for at in range(1, len(start)) if start[at] <= "/"]
    above = [found for path in shorter if (found := early.find(path)) is not None]
    seen = _Open([(entry, early) for entry in above])
    streams = {part: part.walk(start=start) for part in (a, b)}
    ahead = {part: next(stream, None) for part, stream in streams.items()}
    while True:
        owner, other = (a, b) if _comes_first(ahead[a], ahead[b]) else (b, a)
        entry = ahead[owner]
        if entry is None:
            return
        seen.move(entry.path)
        if ahead[other] is None and all(part is owner for _, part in seen.entries):
            return  # nothing of the other part is above what follows
        seen.check(entry, owner)
        seen.add(entry, owner)
        ahead[owner] = next(streams[owner], None)


def _comes_first(entry: Entry | None, other: Entry | None) -> bool:
    return other is None or (entry is not None and entry.path <= other.path)
