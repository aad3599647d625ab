"""Nodes of version trees ↔ bytes (docs/FORMAT.md §7). Deterministic: equal content, equal bytes.

A node is a MessagePack array ``[kind, level, items]``. Kinds: ``D`` directory (items are entries at level 0,
children above), ``L`` chunk list of one file (items are chunks at level 0, children above).
"""

from __future__ import annotations

import json
from itertools import accumulate

import msgspec

from casstore.digest import Digest
from casstore.errors import FormatError, InvalidInputError
from casstore.model import Entry, EntryKind, Pointer
from casstore.names import canonical_attrs
from casstore.values import dataclass

DIRECTORY = "D"
CHUNK_LIST = "L"

_FILE, _LINK, _DIR, _REFERENCE = 0, 1, 2, 3
_KINDS = {
    EntryKind.FILE: _FILE,
    EntryKind.LINK: _LINK,
    EntryKind.DIRECTORY: _DIR,
    EntryKind.REFERENCE: _REFERENCE,
}
_NAMES = {code: kind for kind, code in _KINDS.items()}
_PLAIN = frozenset(_NAMES) - {_REFERENCE}

UNVERIFIED, VOLATILE = 1, 2
"""flags of a reference"""

_Text = str | msgspec.UnsetType

_encode = msgspec.msgpack.Encoder().encode


class _Extras(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What few entries have. Written as a map in this order, without what is not there."""

    a: bytes | msgspec.UnsetType = msgspec.UNSET
    """the host's object, as canonical JSON"""
    c: tuple[str, bytes] | msgspec.UnsetType = msgspec.UNSET
    """digest of a reference's content: algorithm, value"""
    e: _Text = msgspec.UNSET
    """etag"""
    f: int = 0
    """flags"""
    u: _Text = msgspec.UNSET
    """URI"""
    v: _Text = msgspec.UNSET
    """version of the object"""


class _EntryShape(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """An entry as it is written: the last element only if there is anything in it."""

    path: str
    kind: int
    size: int
    """-1 = not known"""
    mode: int
    """-1 = not kept"""
    chunks: tuple[tuple[bytes, int], ...]
    tree: bytes | None
    target: str | None
    extras: _Extras | msgspec.UnsetType = msgspec.UNSET


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
    ends: tuple[int, ...] = ()
    """in a chunk list: the bytes up to the end of each chunk or child"""

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
    plain = (
        entry.path,
        _KINDS[entry.kind],
        -1 if entry.size is None else entry.size,
        -1 if entry.mode is None else entry.mode,
        entry.chunks,
        entry.tree,
        entry.target,
    )
    if entry.pointer is None and not entry.attrs_json:
        return _encode(plain)
    return msgspec.msgpack.encode((*plain, _extras(entry)))


def _extras(entry: Entry) -> _Extras:
    found = _Extras(a=entry.attrs_json or msgspec.UNSET)
    pointer = entry.pointer
    if pointer is not None:
        if pointer.checksum is not None:
            found.c = (pointer.checksum.algorithm, pointer.checksum.value)
        found.e = msgspec.UNSET if pointer.etag is None else pointer.etag
        found.f = UNVERIFIED * pointer.unverified | VOLATILE * pointer.volatile
        found.u = pointer.uri
        found.v = msgspec.UNSET if pointer.version_id is None else pointer.version_id
    return found


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
            children = tuple([Child(*shape) for shape in shapes[2]])
            ends = tuple(accumulate([child.size for child in children])) if kind == CHUNK_LIST else ()
            return Node(kind, level, children=children, ends=ends)
        if kind == CHUNK_LIST:
            pairs = msgspec.msgpack.decode(data, type=tuple[str, int, list[tuple[bytes, int]]])
            return Node(kind, level, chunks=tuple(pairs[2]), ends=tuple(accumulate([size for _, size in pairs[2]])))
        entries = msgspec.msgpack.decode(data, type=tuple[str, int, list[_EntryShape]])
        return Node(kind, level, entries=tuple(_entry(shape) for shape in entries[2]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        raise FormatError(f"{what} is not a node") from None


def references_of(data: bytes, what: str) -> tuple[list[bytes], list[bytes]]:
    """What `Node.subtrees` and `Node.references` of a node say, the former without repeats. Raises `FormatError`.

    Makes no `Entry`, which costs more than all the rest; what `decode_node` refuses is refused here.
    """
    below: dict[bytes, None] = {}
    found: dict[bytes, None] = {}
    try:
        kind, level, _ = msgspec.msgpack.decode(data, type=_Shape)
        if kind != DIRECTORY or level:
            node = decode_node(data, what)
            return list(dict.fromkeys(node.subtrees())), list(node.references())
        for shape in msgspec.msgpack.decode(data, type=tuple[str, int, list[_EntryShape]])[2]:
            if shape.kind not in _PLAIN or shape.size < 0 or shape.extras is not msgspec.UNSET:
                _entry(shape)
            for digest, _ in shape.chunks:
                found[digest] = None
            if shape.tree is not None:
                found[shape.tree] = below[shape.tree] = None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        raise FormatError(f"{what} is not a node") from None
    return list(below), list(found)


def _entry(shape: _EntryShape) -> Entry:
    kind = _NAMES[shape.kind]
    mode = None if shape.mode < 0 else shape.mode
    if shape.extras is msgspec.UNSET and kind is not EntryKind.REFERENCE and shape.size >= 0:
        return Entry(shape.path, kind, shape.size, shape.chunks, shape.tree, mode, shape.target)
    pointer, attrs = _read_extras(_Extras() if shape.extras is msgspec.UNSET else shape.extras)
    if (pointer is None) is (kind is EntryKind.REFERENCE):
        raise FormatError(f"entry {shape.path!r} is a {kind} {'without' if pointer is None else 'with'} a URI")
    if pointer is None:
        if shape.size < 0 or not attrs:
            raise FormatError(f"entry {shape.path!r} has size {shape.size} or an empty last part")
        return Entry(shape.path, kind, shape.size, shape.chunks, shape.tree, mode, shape.target, None, attrs)
    if shape.chunks or shape.tree is not None or mode is not None or shape.target is not None or shape.size < -1:
        raise FormatError(f"entry {shape.path!r} is a reference with content")
    return Entry(shape.path, kind, None if shape.size < 0 else shape.size, pointer=pointer, attrs_json=attrs)


def _read_extras(extras: _Extras) -> tuple[Pointer | None, bytes]:
    attrs = b""
    if extras.a is not msgspec.UNSET:
        attrs = extras.a
        try:
            same = attrs == canonical_attrs(json.loads(attrs))
        except ValueError:  # not JSON; InvalidMetadataError is one, too
            same = False
        if not same or not attrs:
            raise FormatError("the attributes of an entry are not canonical JSON")
    if extras.u is msgspec.UNSET:
        if extras != _Extras(a=extras.a):
            raise FormatError("an entry without a URI says what it points to")
        return None, attrs
    if not extras.u or not 0 <= extras.f <= UNVERIFIED | VOLATILE:
        raise FormatError(f"a reference has URI {extras.u!r} and flags {extras.f}")
    try:
        checksum = None if extras.c is msgspec.UNSET else Digest(*extras.c)
    except InvalidInputError as error:
        raise FormatError(f"the digest of a reference: {error}") from None
    pointer = Pointer(
        extras.u,
        None if extras.e is msgspec.UNSET else extras.e,
        None if extras.v is msgspec.UNSET else extras.v,
        checksum,
        unverified=bool(extras.f & UNVERIFIED),
        volatile=bool(extras.f & VOLATILE),
    )
    return pointer, attrs
