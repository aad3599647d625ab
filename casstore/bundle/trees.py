"""The trees of a bundle, checked node by node: that they are what `casstore.tree` would have written, and nothing else.

Nodes come children first, so each is judged once, by itself and by what is known of those below it; shared subtrees,
however often they are shared, cost nothing more. What is left out in the head of a hostile bundle cannot hurt: paths
that lead elsewhere, two entries at one place, files that are directories, sizes that are not those of the bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import field

from casstore.errors import ChunkMissingError, FormatError, PathConflictError
from casstore.format.nodes import (
    CHUNK_LIST,
    DIRECTORY,
    Node,
    decode_node,
    encode_child,
    encode_chunk,
    encode_entry,
    encode_node,
)
from casstore.model import Entry, EntryKind
from casstore.names import check_path
from casstore.reference.uri import check_uri
from casstore.tree import INLINE_CHUNKS, MAX_LEVEL, is_cut
from casstore.values import dataclass

HINT = "get the bundle again from where it was made; this one was not written by casstore"
LARGEST = 1 << 62
"""bytes and entries of a tree: what a log record can say"""
LONGEST_TARGET = 4096
MODES = 0o7777
OPEN_NODES = 32


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of a subtree that was found good."""

    kind: str
    level: int
    items: int
    count: int
    size: int
    first: str
    last: str
    closed: bool
    """it, and each last node below it, ended at a cut: something may follow"""
    tail: tuple[int, ...] = ()
    """lengths of those paths in it that the last one begins with, itself included"""


@dataclass(slots=True)
class Trees:
    """Checks nodes in the order they come. ``length_of``: of a chunk in the bundle, or None; marks it as needed."""

    average: int
    maximum: int
    """bytes of a chunk at most"""
    length_of: Callable[[bytes], int | None]
    data_of: Callable[[bytes], bytes]
    """bytes of a node that came before"""
    allow: Callable[[str], object]
    """raises if the store may not refer to a URI"""
    summaries: dict[bytes, Summary] = field(default_factory=dict)
    needed: set[bytes] = field(default_factory=set)
    """nodes that something refers to"""
    _open: dict[bytes, Node] = field(default_factory=dict)

    def add(self, digest: bytes, data: bytes) -> None:
        """Check the next node. Raises `FormatError`, `InvalidPathError`, `PathConflictError`, `ChunkMissingError`."""
        node = decode_node(data, f"node {digest.hex()} of the bundle")
        if node.level >= MAX_LEVEL:
            raise FormatError("a tree of the bundle is too deep", hint=HINT)
        if node.level:
            summary = self._above(node)
        else:
            summary = self._entries(node) if node.kind == DIRECTORY else self._list(node)
        self._check_form(node, data)
        if not (0 <= summary.count <= LARGEST and 0 <= summary.size <= LARGEST):
            raise FormatError("a tree of the bundle claims more than there can be", hint=HINT)
        self.summaries[digest] = summary

    def root(self, digest: bytes, kind: str) -> Summary:
        """A node that something refers to as a whole tree. Raises `FormatError`, `ChunkMissingError`."""
        summary = self._needed(digest)
        if summary.kind != kind or (summary.level and summary.items < 2):
            raise FormatError(f"node {digest.hex()} of the bundle is not the root of such a tree", hint=HINT)
        return summary

    def _needed(self, digest: bytes) -> Summary:
        summary = self.summaries.get(digest)
        if summary is None:
            raise ChunkMissingError(
                f"the bundle lacks node {digest.hex()}, or has it too late", hint=HINT, digest=digest.hex()
            )
        self.needed.add(digest)
        return summary

    # --- one node

    def _check_form(self, node: Node, data: bytes) -> None:
        """Refuse a node that is not written as it must be: one content, one digest."""
        if node.level:
            items = [encode_child(child) for child in node.children]
        elif node.kind == DIRECTORY:
            items = [encode_entry(entry) for entry in node.entries]
        else:
            items = [encode_chunk(chunk) for chunk in node.chunks]
        if encode_node(node.kind, node.level, items) != data:
            raise FormatError("a node of the bundle is not in the form it must have", hint=HINT)

    def _ends_at_cut(self, level: int, items: list[bytes], keys: list[bytes]) -> bool:
        """Whether a cut follows the last item. Raises `FormatError` if one should have come before."""
        size = 0
        cut = False
        for position, (item, key) in enumerate(zip(items, keys, strict=True), 1):
            if cut:
                raise FormatError("a node of the bundle is not cut where it must be", hint=HINT)
            size += len(item)
            cut = is_cut(self.average, level, position, size, len(item), key)
        return cut

    def _list(self, node: Node) -> Summary:
        if not node.chunks:
            raise FormatError("the bundle has an empty chunk list", hint=HINT)
        size = self._chunks(node.chunks)
        keys = [digest for digest, _ in node.chunks]
        closed = self._ends_at_cut(0, [encode_chunk(chunk) for chunk in node.chunks], keys)
        return Summary(CHUNK_LIST, 0, len(keys), len(keys), size, "", "", closed)

    def _chunks(self, chunks: tuple[tuple[bytes, int], ...]) -> int:
        """Bytes of some chunks, which the bundle must have just so."""
        total = 0
        for digest, length in chunks:
            stored = self.length_of(digest)
            if stored is None:
                raise ChunkMissingError(f"the bundle lacks chunk {digest.hex()}", hint=HINT, digest=digest.hex())
            if stored != length or length > self.maximum:
                raise FormatError(f"chunk {digest.hex()} of the bundle has another size than its file says", hint=HINT)
            total += length
        return total

    def _entries(self, node: Node) -> Summary:
        before: list[str] = []
        last = ""
        size = 0
        for entry in node.entries:
            path = check_path(entry.path)
            if path <= last:
                raise FormatError(f"path {path!r} of the bundle is not in its place", hint=HINT)
            while before and not path.startswith(before[-1]):
                before.pop()
            for file in before:
                if path[len(file)] == "/":
                    raise _conflict(file, path)
            before.append(path)
            last = path
            self._entry(entry)
            size += entry.length
        keys = [entry.path.encode() for entry in node.entries]
        closed = self._ends_at_cut(0, [encode_entry(entry) for entry in node.entries], keys)
        first = node.entries[0].path if node.entries else ""
        return Summary(DIRECTORY, 0, len(keys), len(keys), size, first, last, closed, tuple(map(len, before)))

    def _entry(self, entry: Entry) -> None:
        """Refuse an entry that no artifact can have."""
        file = entry.kind is EntryKind.FILE
        content = 0
        if file and entry.tree is not None:
            summary = self.root(entry.tree, CHUNK_LIST)
            content = summary.size
            good = not entry.chunks and summary.count > INLINE_CHUNKS
        else:
            content = self._chunks(entry.chunks) if file else 0
            good = entry.tree is None and len(entry.chunks) <= (INLINE_CHUNKS if file else 0)
        good = good and (entry.size == content if entry.pointer is None else entry.length <= LARGEST)
        good = good and (entry.mode is None or (file and entry.mode <= MODES))
        if entry.pointer is not None:
            self.allow(check_uri(entry.pointer.uri))
        target = entry.target
        if entry.kind is EntryKind.LINK:
            good = good and target is not None and 0 < len(target.encode()) <= LONGEST_TARGET and "\0" not in target
        else:
            good = good and target is None
        if not good:
            raise FormatError(f"entry {entry.path!r} of the bundle contradicts itself", hint=HINT)

    def _above(self, node: Node) -> Summary:
        children = [self._needed(child.digest) for child in node.children]
        for child, below in zip(node.children, children, strict=True):
            said = (child.last, child.count, child.size, node.kind, node.level - 1)
            if said != (below.last, below.count, below.size, below.kind, below.level) or not below.count:
                raise FormatError("a node of the bundle is not what the node above it says", hint=HINT)
        if not children or not all(below.closed for below in children[:-1]):
            raise FormatError("a node of the bundle is not cut where it must be", hint=HINT)
        keys = [child.last.encode() if child.last else child.digest for child in node.children]
        closed = self._ends_at_cut(node.level, [encode_child(child) for child in node.children], keys)
        tail = self._beside(node, children) if node.kind == DIRECTORY else ()
        return Summary(
            node.kind,
            node.level,
            len(children),
            sum(below.count for below in children),
            sum(below.size for below in children),
            children[0].first,
            children[-1].last,
            closed and children[-1].closed,
            tail,
        )

    def _beside(self, node: Node, children: list[Summary]) -> tuple[int, ...]:
        """Check that subtrees side by side fit: rising paths, and nothing below what is a file. Returns the tail."""
        before: list[str] = []
        last = ""
        for child, below in zip(node.children, children, strict=True):
            if below.first <= last:
                raise FormatError(f"path {below.first!r} of the bundle is not in its place", hint=HINT)
            before = [file for file in before if below.first.startswith(file)]
            for file in before:
                inside = file + "/"
                if inside <= below.last and self._has_prefix(child.digest, inside):
                    raise _conflict(file, inside)
            last = below.last
            before = [file for file in before if last.startswith(file)]
            before += [last[:length] for length in below.tail]
        return tuple(map(len, before))

    def _has_prefix(self, digest: bytes, prefix: str) -> bool:
        """Whether a subtree has a path that begins with some text."""
        node = self._node(digest)
        while node.level:
            position = bisect_left([child.last for child in node.children], prefix)
            if position == len(node.children):
                return False
            node = self._node(node.children[position].digest)
        position = bisect_left([entry.path for entry in node.entries], prefix)
        return position < len(node.entries) and node.entries[position].path.startswith(prefix)

    def _node(self, digest: bytes) -> Node:
        node = self._open.get(digest)
        if node is None:
            node = decode_node(self.data_of(digest), f"node {digest.hex()} of the bundle")
            if len(self._open) >= OPEN_NODES:
                self._open.clear()
            self._open[digest] = node
        return node


def _conflict(file: str, path: str) -> PathConflictError:
    return PathConflictError(f"the bundle has {file!r}, and {path!r} below it", hint=HINT)
