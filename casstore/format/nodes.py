"""Nodes of version trees ↔ bytes (docs/FORMAT.md §7). Deterministic: equal content, equal bytes.

A node is a MessagePack array ``[kind, level, items]``. Kinds: ``D`` directory (items are entries at level 0,
children above), ``L`` chunk list of one file (items are chunks at level 0, children above).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from casstore.errors import FormatError
from casstore.model import Entry, EntryKind

DIRECTORY = "D"
CHUNK_LIST = "L"

_FILE, _LINK, _DIR = 0, 1, 2
_KINDS = {EntryKind.FILE: _FILE, EntryKind.LINK: _LINK, EntryKind.DIRECTORY: _DIR}
_NAMES = {code: kind for kind, code in _KINDS.items()}

_EntryShape = tuple[str, int, int, int, list[tuple[bytes, int]], bytes | None, str | None]
"""path, kind, size, mode (-1 = not kept), chunks, chunk-list root, link target"""


@dataclass(frozen=True, slots=True)
class Child:
    """A subtree: its root, the last key below it (a path; empty in chunk lists), and what it holds."""

    digest: bytes
    last: str
    count: int
    """entries, or chunks"""
    size: int
    """plaintext bytes"""


@dataclass(frozen=True, slots=True)
class Node:
    """A decoded node. Exactly one of the lists is filled."""

    kind: str
    level: int
    entries: tuple[Entry, ...] = ()
    chunks: tuple[tuple[bytes, int], ...] = ()
    children: tuple[Child, ...] = ()

    def subtrees(self) -> list[bytes]:
        """Digests of the nodes it refers to, with repeats: nodes below it, and chunk lists of its files."""
        below = [child.digest for child in self.children]
        return below + [entry.tree for entry in self.entries if entry.tree is not None]

    def data(self) -> list[bytes]:
        """Digests of the chunks of files it names, with repeats."""
        chunks = [digest for digest, _ in self.chunks]
        return chunks + [digest for entry in self.entries for digest, _ in entry.chunks]

    def references(self) -> tuple[bytes, ...]:
        """The distinct digests this node holds, in order of first appearance."""
        found: dict[bytes, None] = {}
        for child in self.children:
            found[child.digest] = None
        for digest, _ in self.chunks:
            found[digest] = None
        for entry in self.entries:
            for digest, _ in entry.chunks:
                found[digest] = None
            if entry.tree is not None:
                found[entry.tree] = None
        return tuple(found)


def encode_entry(entry: Entry) -> bytes:
    """One entry, as it stands in a leaf."""
    return msgspec.msgpack.encode(
        (
            entry.path,
            _KINDS[entry.kind],
            entry.size,
            -1 if entry.mode is None else entry.mode,
            entry.chunks,
            entry.tree,
            entry.target,
        )
    )


def encode_chunk(chunk: tuple[bytes, int]) -> bytes:
    """One chunk, as it stands in a chunk-list leaf."""
    return msgspec.msgpack.encode(chunk)


def encode_child(child: Child) -> bytes:
    """One child, as it stands in an inner node."""
    return msgspec.msgpack.encode((child.digest, child.last, child.count, child.size))


def encode_node(kind: str, level: int, items: list[bytes]) -> bytes:
    """A node of items that are encoded already."""
    head = msgspec.msgpack.encode((kind, level))
    count = len(items)
    if count > 0xFFFF_FFFF:
        raise FormatError("a node is too large")
    # [kind, level, [items…]] with the outer array header of 3 and a 32-bit inner one, always, so that the
    # encoding has one form.
    return b"".join((b"\x93", head[1:], b"\xdd", count.to_bytes(4, "big"), *items))


_Shape = tuple[str, int, list[msgspec.Raw]]


def decode_node(data: bytes, what: str) -> Node:
    """Read a node. Raises `FormatError`."""
    try:
        kind, level, _ = msgspec.msgpack.decode(data, type=_Shape)
        if kind not in {DIRECTORY, CHUNK_LIST} or level < 0:
            raise FormatError(f"{what} has kind {kind!r} and level {level}")
        if level > 0:
            shapes = msgspec.msgpack.decode(data, type=tuple[str, int, list[tuple[bytes, str, int, int]]])
            return Node(kind, level, children=tuple(Child(*shape) for shape in shapes[2]))
        if kind == CHUNK_LIST:
            pairs = msgspec.msgpack.decode(data, type=tuple[str, int, list[tuple[bytes, int]]])
            return Node(kind, level, chunks=tuple(pairs[2]))
        entries = msgspec.msgpack.decode(data, type=tuple[str, int, list[_EntryShape]])
        return Node(kind, level, entries=tuple(_entry(shape) for shape in entries[2]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        raise FormatError(f"{what} is not a node") from None


def _entry(shape: _EntryShape) -> Entry:
    path, kind, size, mode, chunks, tree, target = shape
    return Entry(path, _NAMES[kind], size, tuple(chunks), tree, None if mode < 0 else mode, target)
