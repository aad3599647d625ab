"""Directories and long files as content: prolly trees of nodes. Write, edit, walk, diff.

A tree is a sorted sequence of items cut into nodes at places that depend only on the items since the last cut,
so equal content has one root digest whatever its history, and an edit rewrites only the nodes around it.
After "Prolly trees" in the Noms technical overview; the cut here weighs an item by its encoded size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from casstore.digest import checksum64
from casstore.errors import FormatError, IntegrityError
from casstore.format.nodes import (
    CHUNK_LIST,
    DIRECTORY,
    Child,
    Node,
    encode_child,
    encode_chunk,
    encode_entry,
    encode_node,
)
from casstore.model import Entry, EntryKind
from casstore.native import extension, slots_of
from casstore.values import dataclass

_native: Any = extension("_scan")
_ENTRY = slots_of(Entry)

PART = 16_384
"""entries that are in memory together"""
INLINE_CHUNKS = 32
"""longer chunk lists go into nodes of their own"""

MAX_LEVEL = 64

Sink = Callable[[bytes, tuple[bytes, ...]], bytes]
"""takes a node's bytes and its distinct children, stores it if need be, returns its digest"""

Fetch = Callable[[bytes], Node]
"""reads a node"""


@dataclass(frozen=True, slots=True)
class Tree:
    """A finished tree."""

    root: bytes
    count: int
    size: int


def is_cut(average: int, level: int, items: int, size: int, length: int, key: bytes) -> bool:
    """Whether a node ends after an item (docs/FORMAT.md §7).

    ``items`` and ``size``: how many, and how many encoded bytes, are in the node by then; ``length`` and ``key``: of
    the item.
    """
    if level and items < 2:
        return False  # a node above the leaves has two children at least, however long the keys: else no end of levels
    if size >= average * 4:
        return True
    if size < average // 4:
        return False
    # Chance in proportion to the item's size, so that nodes have the same size whatever their items.
    # The level seasons the hash: else a key that ends a leaf would end every node above it too.
    chance = (length << 32) // (average - average // 4)
    return checksum64(key, level) & 0xFFFF_FFFF < chance


class _Level:
    """The node being filled at one level. It keeps no object for an item, of which a tree has many."""

    def __init__(self, builder: Builder, level: int) -> None:
        self.builder = builder
        self.level = level
        self.items: list[bytes] = []
        """encoded"""
        self.references: list[bytes] = []
        """of all items, with repeats"""
        self.bytes = 0
        """of the items"""
        self.last = ""
        self.count = 0
        self.size = 0
        self.emitted = 0
        self.only: Child | None = None

    def add(self, encoded: bytes, key: bytes, last: str, count: int, size: int) -> None:
        """An item, whose `references` are there already; ``key`` is what its boundary depends on."""
        length = len(encoded)
        self.items.append(encoded)
        self.bytes += length
        self.last = last
        self.count += count
        self.size += size
        if is_cut(self.builder.average, self.level, len(self.items), self.bytes, length, key):
            self.emit()

    def add_entries(self, entries: list[Entry]) -> None:
        """As `add` for each entry."""
        at = 0
        while at < len(entries):
            leaf = self._compiled(entries, at)
            if leaf:
                at += leaf
            else:
                at = self._add_leaf(entries, at)

    def _compiled(self, entries: list[Entry], at: int) -> int:
        """Emit a whole leaf that begins with an entry, if C can make it; of how many entries."""
        if _native is None or self.items:
            return 0
        leaf = _native.cut_leaf(_ENTRY, EntryKind.FILE, entries, at, self.builder.average)
        if leaf is None:
            return 0
        self.items, self.references, self.size = leaf
        self.count = len(self.items)
        self.last = entries[at + self.count - 1].path
        count = self.count
        self.emit()
        return count

    def _add_leaf(self, entries: list[Entry], at: int) -> int:
        """As `add` for the entries of a list from one on, to the end of the leaf; the number of the next."""
        average = self.builder.average
        smallest = average // 4
        items, references, size = self.items, self.references, self.bytes
        for number in range(at, len(entries)):
            entry = entries[number]
            encoded = encode_entry(entry)
            items.append(encoded)
            for digest, _ in entry.chunks:
                references.append(digest)
            if entry.tree is not None:
                references.append(entry.tree)
            self.last = entry.path
            self.count += 1
            self.size += entry.size or 0
            length = len(encoded)
            size += length
            if size >= smallest and is_cut(average, self.level, len(items), size, length, entry.path.encode()):
                self.bytes = size
                self.emit()
                return number + 1
        self.bytes = size
        return len(entries)

    def add_chunks(self, chunks: Iterable[tuple[bytes, int]]) -> None:
        """As `add` for each chunk."""
        average = self.builder.average
        smallest = average // 4
        items, references, size = self.items, self.references, self.bytes
        for chunk in chunks:
            encoded = encode_chunk(chunk)
            items.append(encoded)
            references.append(chunk[0])
            self.count += 1
            self.size += chunk[1]
            length = len(encoded)
            size += length
            if size >= smallest and is_cut(average, self.level, len(items), size, length, chunk[0]):
                self.bytes = size
                self.emit()
                items, references, size = self.items, self.references, 0
        self.bytes = size

    def emit(self) -> None:
        data = encode_node(self.builder.kind, self.level, self.items)
        digest = self.builder.sink(data, tuple(dict.fromkeys(self.references)))
        child = Child(digest, self.last, self.count, self.size)
        self.items, self.references = [], []
        self.bytes = self.count = self.size = 0
        self.last = ""
        self.push(child)

    def push(self, child: Child) -> None:
        """A finished node of this level goes up. The first waits: alone it would be the root."""
        self.emitted += 1
        if self.emitted == 1:
            self.only = child
            return
        above = self.builder.level(self.level + 1)
        if self.only is not None:
            above.add_child(self.only)
            self.only = None
        above.add_child(child)

    def add_child(self, child: Child) -> None:
        """A node of the level below."""
        key = child.last.encode() if child.last else child.digest
        self.references.append(child.digest)
        self.add(encode_child(child), key, child.last, child.count, child.size)


class Builder:
    """Builds one tree from its items, in order. Nodes leave through ``sink``, children before parents."""

    def __init__(self, kind: str, average: int, sink: Sink) -> None:
        self.kind = kind
        self.average = average
        self.sink = sink
        self._levels: list[_Level] = []

    def level(self, number: int) -> _Level:
        """The level under construction."""
        if number >= MAX_LEVEL:
            raise FormatError("a tree is too deep")
        while len(self._levels) <= number:
            self._levels.append(_Level(self, len(self._levels)))
        return self._levels[number]

    def add_entry(self, entry: Entry) -> None:
        """The next entry of a directory tree; paths rise in byte order."""
        level = self._levels[0] if self._levels else self.level(0)
        for digest, _ in entry.chunks:
            level.references.append(digest)
        if entry.tree is not None:
            level.references.append(entry.tree)
        path = entry.path
        level.add(encode_entry(entry), path.encode(), path, 1, entry.size or 0)

    def add_entries(self, entries: list[Entry]) -> None:
        """As `add_entry` for each entry."""
        self.level(0).add_entries(entries)

    def add_chunks(self, chunks: Iterable[tuple[bytes, int]]) -> None:
        """The next chunks of a chunk list, as (digest, length)."""
        self.level(0).add_chunks(chunks)

    def reuse(self, child: Child, level: int) -> bool:
        """Take over a whole stored node of a level, if every level up to it is at a boundary."""
        self.level(level)
        below = self._levels[:level]
        if self._levels[level].items or any(lower.items or lower.only for lower in below):
            return False
        for lower in below:
            lower.emitted += 2  # more nodes lie below this one: a lone one to come is not the root
        self.level(level).push(child)
        return True

    def finish(self) -> Tree:
        """Close the last node of every level; the root is the lowest level's only node."""
        number = 0
        while True:
            level = self.level(number)
            if level.items or level.emitted == 0:
                level.emit()
            if level.emitted == 1 and level.only is not None:
                return Tree(level.only.digest, level.only.count, level.only.size)
            number += 1


def write_entries(entries: Iterable[Entry], average: int, sink: Sink) -> Tree:
    """Store a directory tree of entries that rise in path bytes."""
    builder = Builder(DIRECTORY, average, sink)
    rest = iter(entries)
    while part := list(islice(rest, PART)):
        builder.add_entries(part)
    return builder.finish()


def write_chunk_list(chunks: Iterable[tuple[bytes, int]], average: int, sink: Sink) -> Tree:
    """Store the chunk list of one file."""
    builder = Builder(CHUNK_LIST, average, sink)
    builder.add_chunks(chunks)
    return builder.finish()


def edit_entries(
    root: bytes, changes: Sequence[tuple[str, Entry | None]], fetch: Fetch, average: int, sink: Sink
) -> Tree:
    """Store the tree that differs from a stored one by some changes, sorted by path bytes; None removes.

    Reads and writes O(changes · depth) nodes. The result is the very tree `write_entries` would make.
    """
    return _Edit(changes, fetch, Builder(DIRECTORY, average, sink)).run(root)


class _Edit:
    def __init__(self, changes: Sequence[tuple[str, Entry | None]], fetch: Fetch, builder: Builder) -> None:
        self.changes = changes
        self.keys = [path.encode() for path, _ in changes]
        self.at = 0
        self.fetch = fetch
        self.builder = builder

    def run(self, root: bytes) -> Tree:
        self._node(self.fetch(root), last=True)
        self._pending(None)
        return self.builder.finish()

    def _pending(self, before: bytes | None) -> None:
        """Add the changes that come before a key."""
        while self.at < len(self.keys) and (before is None or self.keys[self.at] < before):
            entry = self.changes[self.at][1]
            if entry is not None:
                self.builder.add_entry(entry)
            self.at += 1

    def _node(self, node: Node, *, last: bool) -> None:
        if node.level == 0:
            for entry in node.entries:
                key = entry.path.encode()
                self._pending(key)
                if self.at < len(self.keys) and self.keys[self.at] == key:
                    change = self.changes[self.at][1]
                    self.at += 1
                    if change is not None:
                        self.builder.add_entry(change)
                else:
                    self.builder.add_entry(entry)
            return
        for i, child in enumerate(node.children):
            # The last node of a level ended because the items did, not at a cut: what follows may join it.
            tail = last and i == len(node.children) - 1
            untouched = self.at >= len(self.keys) or self.keys[self.at] > child.last.encode()
            if untouched and not tail and self.builder.reuse(child, node.level - 1):
                continue
            self._node(self.fetch(child.digest), last=tail)


Damaged = Callable[[IntegrityError | FormatError, str], None]
"""told about a subtree that cannot be read, and the last path in it"""


def walk(
    root: bytes, fetch: Fetch, *, start: str = "", prefix: str = "", damaged: Damaged | None = None
) -> Iterator[Entry]:
    """Entries in path order: those from ``start`` on whose path begins with ``prefix`` (as a string).

    With ``damaged``, subtrees that cannot be read are reported to it and left out, instead of raising.
    """
    first = max(start.encode(), prefix.encode())
    return _walk(fetch(root), fetch, first, prefix.encode(), damaged)


def _walk(node: Node, fetch: Fetch, first: bytes, prefix: bytes, damaged: Damaged | None) -> Iterator[Entry]:
    if node.level == 0:
        entries = node.entries
        if first:
            entries = entries[bisect_left(entries, first, key=_path_bytes) :]
        if not prefix:
            yield from entries
            return
        for entry in entries:
            if not entry.path.encode().startswith(prefix):
                return
            yield entry
        return
    for child in node.children[bisect_left(node.children, first, key=_last_bytes) :]:
        last = child.last.encode()
        try:
            below = fetch(child.digest)
        except (IntegrityError, FormatError) as error:
            if damaged is None:
                raise
            damaged(error, child.last)
        else:
            yield from _walk(below, fetch, first, prefix, damaged)
        if prefix and last > prefix and not last.startswith(prefix):
            return


def find(root: bytes, path: str, fetch: Fetch) -> Entry | None:
    """The entry at a path, or None. Reads one node a level."""
    key = path.encode()
    node = fetch(root)
    while node.level:
        position = bisect_left(node.children, key, key=_last_bytes)
        if position == len(node.children):
            return None
        node = fetch(node.children[position].digest)
    position = bisect_left(node.entries, key, key=_path_bytes)
    if position < len(node.entries) and node.entries[position].path == path:
        return node.entries[position]
    return None


def _last_bytes(child: Child) -> bytes:
    return child.last.encode()


def _path_bytes(entry: Entry) -> bytes:
    return entry.path.encode()


def chunk_list(
    root: bytes, fetch: Fetch, *, offset: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes, int]]:
    """Chunks of a long file that touch a byte range, as (position in the file, digest, length)."""
    return _chunk_list(fetch(root), fetch, 0, offset, end)


def _chunk_list(node: Node, fetch: Fetch, at: int, offset: int, end: int | None) -> Iterator[tuple[int, bytes, int]]:
    first = bisect_right(node.ends, offset - at) if offset > at else 0
    start = at + (node.ends[first - 1] if first else 0)
    if node.level:
        for child in node.children[first:]:
            if end is not None and start >= end:
                return
            yield from _chunk_list(fetch(child.digest), fetch, start, offset, end)
            start += child.size
        return
    for digest, size in node.chunks[first:] if first else node.chunks:
        if end is not None and start >= end:
            return
        if start + size > offset:
            yield start, digest, size
        start += size


def diff(a: bytes, b: bytes, fetch: Fetch) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Entries that are only in ``a`` and only in ``b`` (a changed path is in both). O(difference · depth)."""
    if a == b:
        return {}, {}
    left, right = [(a, fetch(a))], [(b, fetch(b))]
    while True:
        level = max((node.level for _, node in (*left, *right)), default=0)
        if level == 0:
            break
        left, right = _descend(left, right, level, fetch)
    before = {entry.path: entry for _, node in left for entry in node.entries}
    after = {entry.path: entry for _, node in right for entry in node.entries}
    same = {path for path, entry in before.items() if after.get(path) == entry}
    return (
        {path: entry for path, entry in before.items() if path not in same},
        {path: entry for path, entry in after.items() if path not in same},
    )


_Frontier = list[tuple[bytes, Node]]


def _descend(left: _Frontier, right: _Frontier, level: int, fetch: Fetch) -> tuple[_Frontier, _Frontier]:
    """Replace the nodes of the highest level by their children, without those both sides have."""
    sides = []
    for frontier in (left, right):
        stay = [pair for pair in frontier if pair[1].level < level]
        down = [child.digest for _, node in frontier if node.level == level for child in node.children]
        sides.append((stay, down))
    (left_stay, left_down), (right_stay, right_down) = sides
    left_all = {digest for digest, _ in left_stay} | set(left_down)
    right_all = {digest for digest, _ in right_stay} | set(right_down)
    common = left_all & right_all
    return (
        [pair for pair in left_stay if pair[0] not in common] + [(d, fetch(d)) for d in left_down if d not in common],
        [pair for pair in right_stay if pair[0] not in common] + [(d, fetch(d)) for d in right_down if d not in common],
    )
