"""Bundles: versions on their way between stores, as one file ↔ bytes (docs/FORMAT.md §11).

::

    magic (8) │ header length (8) │ header (guarded) │ block … block │ end block

A block is a head of 16 bytes — what it is, the lengths of its two parts — an index in MessagePack, and a body. First
the labels of the versions, then frames of chunks, then frames of nodes, children before parents; the end block has the
BLAKE3 of all bytes before it. Everything can be read in one pass, and no length has to be believed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from casstore.config import ChunkerParams, StoreConfig
from casstore.digest import ALGORITHMS, Buffer, digest_size
from casstore.errors import FormatError, IntegrityError, InvalidInputError, UnsupportedFormatError
from casstore.format.guard import guard, is_sound, unguard
from casstore.values import dataclass

BUNDLE_MAGIC = b"CASBNDL1"
HEADER_MAGIC = b"CASBHDR1"
VERSION = 1
FEATURES: frozenset[str] = frozenset()
"""what this version of casstore understands beyond the first format"""

_LENGTH = struct.Struct("<Q")
_BLOCK = struct.Struct("<B3xIQ")
"""kind, bytes of the index, bytes of the body"""
PREAMBLE_SIZE = len(BUNDLE_MAGIC) + _LENGTH.size
BLOCK_SIZE = _BLOCK.size
SEAL_SIZE = 32

LARGEST_HEADER = 64 * 1024
LARGEST_INDEX = 4 * 1024 * 1024
"""the labels of a version have 1.2 MiB at most, and so much again for what a host keeps there"""
LARGEST_FRAME = 64 * 1024 * 1024
"""plaintext of a frame; stored it has a header more"""
LARGEST_NODE_AIM = 16 * 1024 * 1024
MOST_VERSIONS = 100_000
MOST_LABELS = 256 * 1024 * 1024
"""bytes of the labels of all versions, which are in memory together"""
_MOST = 1 << 62


class BlockKind(IntEnum):
    """What a block is. They come in this order, the end last."""

    END = 0
    VERSION = 1
    CHUNKS = 2
    NODES = 3


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """How the content was cut and named, and how much of it there is."""

    digest: str
    chunker: ChunkerParams
    node_bytes: int
    versions: int
    chunks: int
    chunk_bytes: int
    """plaintext"""
    nodes: int
    tree_bytes: int

    def is_like(self, config: StoreConfig) -> bool:
        """True if a store cuts and names content in the same way, so that digests are the same there."""
        return (self.digest, self.chunker, self.node_bytes) == (config.digest, config.chunker, config.node_bytes)


@dataclass(frozen=True, slots=True)
class Labels:
    """What a bundle says of one version."""

    collection: str
    """``entity/project/name``"""
    number: int
    type: str
    root: bytes
    size: int
    file_count: int
    description: str
    metadata: bytes
    """canonical JSON"""
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    """without ``latest``"""
    base: str
    ttl: int
    """seconds; 0 = never; -1 = inherit"""
    created: int
    attrs: bytes
    """canonical JSON of the host's own"""


def encode_header(header: BundleHeader) -> bytes:
    """The first bytes of a bundle, up to the first block."""
    chunker = header.chunker
    payload = msgspec.msgpack.encode(
        [
            VERSION,
            sorted(FEATURES),
            header.digest,
            [chunker.algorithm, chunker.minimum, chunker.average, chunker.maximum],
            header.node_bytes,
            header.versions,
            header.chunks,
            header.chunk_bytes,
            header.nodes,
            header.tree_bytes,
        ]
    )
    guarded = guard(HEADER_MAGIC, payload)
    return b"".join((BUNDLE_MAGIC, _LENGTH.pack(len(guarded)), guarded))


def decode_preamble(data: bytes) -> int:
    """Bytes of the header that follows. Raises `FormatError` if this is no bundle, `IntegrityError` if cut short."""
    if data[: len(BUNDLE_MAGIC)] != BUNDLE_MAGIC[: len(data)] or not data:
        raise FormatError("this is not a casstore bundle", hint="make one with casstore export")
    if len(data) < PREAMBLE_SIZE:
        raise cut_short()
    length: int = _LENGTH.unpack(data[len(BUNDLE_MAGIC) :])[0]
    if length > LARGEST_HEADER:
        raise FormatError(f"the header of the bundle claims to have {length} bytes", hint="get the bundle again")
    return length


_HeaderShape = tuple[int, list[str], str, tuple[str, int, int, int], int, int, int, int, int, int]


def decode_header(data: bytes) -> BundleHeader:
    """Read the guarded header. Raises `UnsupportedFormatError` for a newer one, `FormatError`, `IntegrityError`."""
    what = "the header of the bundle"
    payload, _ = unguard(HEADER_MAGIC, data, what)
    try:
        parts = msgspec.msgpack.decode(payload, type=list[msgspec.Raw])
        version = msgspec.msgpack.decode(parts[0], type=int)
        features = msgspec.msgpack.decode(parts[1], type=list[str])
        unknown = sorted(set(features) - FEATURES)
        if version > VERSION or unknown:
            said = f"version {version}" if version > VERSION else f"the feature {unknown[0]!r:.60}"
            raise UnsupportedFormatError(f"the bundle needs {said}", hint="upgrade casstore")
        shape = msgspec.msgpack.decode(payload, type=_HeaderShape)
        _, _, digest, (algorithm, minimum, average, maximum), node_bytes, *counts = shape
        if digest not in ALGORITHMS:
            raise UnsupportedFormatError(f"the bundle names content by {digest!r:.60}", hint="upgrade casstore")
        chunker = ChunkerParams(algorithm, minimum, average, maximum)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError, InvalidInputError):
        raise FormatError(f"{what} is not valid", hint="get the bundle again") from None
    if not is_sound(HEADER_MAGIC, data):
        raise IntegrityError(f"{what} is damaged", hint="get the bundle again")
    if version < 1 or not 1 <= node_bytes <= LARGEST_NODE_AIM or not all(0 <= count <= _MOST for count in counts):
        raise FormatError(f"{what} is not valid", hint="get the bundle again")
    if counts[0] > MOST_VERSIONS:
        raise FormatError(f"{what} claims {counts[0]} versions, at most {MOST_VERSIONS} are allowed")
    return BundleHeader(digest, chunker, node_bytes, *counts)


def block_head(kind: BlockKind, index: Buffer, body_length: int) -> bytes:
    """The 16 bytes before a block's parts."""
    return _BLOCK.pack(kind, len(index), body_length)


def decode_block_head(data: bytes) -> tuple[BlockKind, int, int]:
    """What a block is, and the lengths of its index and its body, within bounds. Raises `FormatError`."""
    number, index, body = _BLOCK.unpack(data)
    try:
        kind = BlockKind(number)
    except ValueError:
        raise FormatError(f"the bundle has a block of kind {number}", hint="get the bundle again") from None
    longest = {BlockKind.END: SEAL_SIZE, BlockKind.VERSION: 0}.get(kind, LARGEST_FRAME + 16)
    if index > LARGEST_INDEX or body > longest or data[1:4] != b"\0\0\0":
        raise FormatError(f"a block of the bundle claims to have {index} and {body} bytes", hint="get the bundle again")
    return kind, index, body


def encode_labels(labels: Labels) -> bytes:
    """The index of a version's block."""
    return msgspec.msgpack.encode([getattr(labels, name) for name in Labels.__slots__])


_LabelsShape = tuple[str, int, str, bytes, int, int, str, bytes, tuple[str, ...], tuple[str, ...], str, int, int, bytes]


def decode_labels(data: bytes) -> Labels:
    """Read the index of a version's block; what it says is not checked. Raises `FormatError`."""
    try:
        return Labels(*msgspec.msgpack.decode(data, type=_LabelsShape))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise FormatError("the bundle has a version that cannot be read", hint="get the bundle again") from None


def encode_contents(digests: Sequence[bytes], lengths: Sequence[int]) -> bytes:
    """The index of a block of chunks or nodes."""
    return msgspec.msgpack.encode([b"".join(digests), lengths])


def decode_contents(data: bytes, algorithm: str) -> tuple[list[bytes], list[int]]:
    """Digests and lengths of the chunks of a block: at least one, none of them empty. Raises `FormatError`."""
    width = digest_size(algorithm)
    try:
        joined, lengths = msgspec.msgpack.decode(data, type=tuple[bytes, list[int]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise FormatError("the bundle has a frame that cannot be read", hint="get the bundle again") from None
    if not lengths or len(joined) != width * len(lengths) or min(lengths) < 1 or sum(lengths) > LARGEST_FRAME:
        raise FormatError("the bundle has a frame whose contents are not valid", hint="get the bundle again")
    return [joined[at : at + width] for at in range(0, len(joined), width)], lengths


def cut_short() -> IntegrityError:
    """What to raise when there are fewer bytes than there must be."""
    return IntegrityError("the bundle is cut short", hint="get the bundle again")
