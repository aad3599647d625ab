"""A bundle that was read from the first byte to the last and found good; and its content, checked again when taken.

Nothing of a bundle is believed: every length is bounded before it is allocated, every digest computed, every tree
judged (`trees`), every label held against the rules for what a user may say. After that its bytes may still change
under the reader, so whatever is taken out later is held against the digests that were seen.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from casstore.bundle.source import Source
from casstore.bundle.trees import HINT, Trees
from casstore.codec import Codec
from casstore.digest import Buffer, Sealer, hash_function
from casstore.errors import DigestMismatchError, FormatError, IntegrityError, LimitError
from casstore.format.bundles import (
    BLOCK_SIZE,
    MOST_LABELS,
    PREAMBLE_SIZE,
    BlockKind,
    BundleHeader,
    Labels,
    cut_short,
    decode_block_head,
    decode_contents,
    decode_header,
    decode_labels,
    decode_preamble,
)
from casstore.format.nodes import DIRECTORY, Node, decode_node
from casstore.model import Progress
from casstore.names import (
    LATEST,
    MAX_TTL,
    CollectionName,
    canonical_host_attrs,
    canonical_metadata,
    check_aliases,
    check_description,
    check_tags,
    check_type,
    parse_reference,
)
from casstore.pack import decode_frame

CACHE_BYTES = 8 * 1024 * 1024
_ORDER = {BlockKind.VERSION: 0, BlockKind.CHUNKS: 1, BlockKind.NODES: 2, BlockKind.END: 3}
_HIGHEST = 1 << 60
_YEAR_9999 = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

Hash = Callable[[Buffer], bytes]


class _Table:
    """Where the chunks of one kind are: digest → number, number → frame. About 250 bytes a chunk."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}
        self.order: list[bytes] = []
        self.lengths = array("I")
        self.frame_of = array("I")
        self.frames = array("Q")
        """offset of each frame's block"""
        self.starts = array("Q")
        """number of the first chunk of each frame"""
        self.needed = bytearray()
        self.bytes = 0

    def add(self, offset: int, digests: list[bytes], lengths: list[int]) -> None:
        self.starts.append(len(self.order))
        for digest, length in zip(digests, lengths, strict=True):
            if digest in self.numbers:
                raise FormatError(f"the bundle has {digest.hex()} twice", hint=HINT)
            self.numbers[digest] = len(self.order)
            self.order.append(digest)
            self.lengths.append(length)
            self.frame_of.append(len(self.frames))
        self.frames.append(offset)
        self.needed.extend(bytes(len(digests)))
        self.bytes += sum(lengths)

    def digests(self, frame: int) -> list[bytes]:
        end = self.starts[frame + 1] if frame + 1 < len(self.starts) else len(self.order)
        return self.order[self.starts[frame] : end]

    def take(self, digest: bytes) -> int | None:
        """The length of a chunk, which is needed from now on; None if it is not there."""
        number = self.numbers.get(digest)
        if number is None:
            return None
        self.needed[number] = 1
        return self.lengths[number]


class Bundle:
    """A bundle that was found good: its labels, and its chunks and nodes by digest. Not thread-safe."""

    def __init__(self, source: Source, codec: Codec, header: BundleHeader) -> None:
        self._source = source
        self._codec = codec
        self._hash: Hash = hash_function(header.digest)
        self.header = header
        self.versions: list[Labels] = []
        self.chunks = _Table()
        self.nodes = _Table()
        self._cache: OrderedDict[tuple[BlockKind, int], dict[bytes, bytes]] = OrderedDict()
        self._cached = 0

    # --- taking content out

    def frames(self, kind: BlockKind) -> Iterator[tuple[int, list[bytes]]]:
        """Every frame with the digests in it, in order; nodes come children before parents."""
        table = self._table(kind)
        return ((frame, table.digests(frame)) for frame in range(len(table.frames)))

    def read(self, kind: BlockKind, frame: int) -> dict[bytes, bytes]:
        """The chunks of a frame, checked. Raises `IntegrityError` if the file is not what it was."""
        key = (kind, frame)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        table = self._table(kind)
        offset = table.frames[frame]
        head = self._source.read_at(offset, BLOCK_SIZE)
        if len(head) < BLOCK_SIZE:
            raise _changed()
        _, index, body = decode_block_head(head)
        data = memoryview(self._source.read_at(offset + BLOCK_SIZE, index + body))
        digests, lengths = decode_contents(bytes(data[:index]), self.header.digest)
        if digests != table.digests(frame):
            raise _changed()
        found = dict(self._decode(digests, lengths, data[index:]))
        self._cache[key] = found
        self._cached += sum(lengths)
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached -= sum(map(len, old.values()))
        return found

    def chunk(self, digest: bytes) -> bytes:
        """A chunk of a file."""
        return self._one(BlockKind.CHUNKS, digest)

    def node(self, digest: bytes) -> Node:
        """A node, decoded."""
        return decode_node(self.node_data(digest), f"node {digest.hex()} of the bundle")

    def node_data(self, digest: bytes) -> bytes:
        """A node as it is written."""
        return self._one(BlockKind.NODES, digest)

    def _one(self, kind: BlockKind, digest: bytes) -> bytes:
        table = self._table(kind)
        return self.read(kind, table.frame_of[table.numbers[digest]])[digest]

    def _table(self, kind: BlockKind) -> _Table:
        return self.nodes if kind is BlockKind.NODES else self.chunks

    def _decode(self, digests: list[bytes], lengths: list[int], body: Buffer) -> Iterator[tuple[bytes, bytes]]:
        plain = decode_frame(self._codec, body, sum(lengths), "a frame of the bundle")
        at = 0
        for digest, length in zip(digests, lengths, strict=True):
            data = plain[at : at + length]
            at += length
            if self._hash(data) != digest:
                raise DigestMismatchError(
                    f"{digest.hex()} in the bundle has other bytes than its name says", hint=HINT, digest=digest.hex()
                )
            yield digest, data

    # --- the first reading

    def _check(self, sealer: Sealer, at: int, allow: Callable[[str], object], progress: Progress) -> None:
        header = self.header
        trees = Trees(header.node_bytes, header.chunker.maximum, self.chunks.take, self.node_data, allow)
        stage = 0
        labels = 0
        while True:
            progress("check", at, self._source.size)
            offset = at
            head = self._source.read_at(at, BLOCK_SIZE)
            if len(head) < BLOCK_SIZE:
                raise cut_short()
            kind, index_size, body_size = decode_block_head(head)
            at += BLOCK_SIZE + index_size + body_size
            if at > self._source.size:
                raise cut_short()
            data = self._source.read_at(offset + BLOCK_SIZE, index_size + body_size)
            if len(data) != index_size + body_size:
                raise cut_short()
            if _ORDER[kind] < stage:
                raise FormatError("the blocks of the bundle are not in order", hint=HINT)
            stage = _ORDER[kind]
            index, body = data[:index_size], memoryview(data)[index_size:]
            sealer.update(head)
            if kind is BlockKind.END:
                # The seal first: damage on the way is the likelier thing.
                if index_size or bytes(body) != sealer.seal():
                    raise IntegrityError("the bundle is damaged", hint="get the bundle again")
                if at != self._source.size:
                    raise FormatError("something follows the end of the bundle", hint=HINT)
                break
            sealer.update(data)
            if kind is BlockKind.VERSION:
                labels += index_size
                if labels > MOST_LABELS or len(self.versions) == self.header.versions:
                    raise FormatError("the bundle has more versions than its header says", hint=HINT)
                self._add_version(check_labels(decode_labels(index), self.header.digest))
            else:
                self._add_frame(kind, offset, index, body, trees)
        self._check_whole(trees)
        progress("check", at, self._source.size)

    def _add_version(self, labels: Labels) -> None:
        if self.versions:
            before = self.versions[-1]
            if (before.collection, before.number) >= (labels.collection, labels.number):
                raise FormatError("the versions of the bundle are not in order, or one is there twice", hint=HINT)
            if before.collection == labels.collection and before.type != labels.type:
                raise FormatError(f"collection {labels.collection} of the bundle has two types", hint=HINT)
        self.versions.append(labels)

    def _add_frame(self, kind: BlockKind, offset: int, index: bytes, body: Buffer, trees: Trees) -> None:
        table = self._table(kind)
        digests, lengths = decode_contents(index, self.header.digest)
        most = self.header.tree_bytes if kind is BlockKind.NODES else self.header.chunk_bytes
        if table.bytes + sum(lengths) > most:
            raise FormatError("the bundle has more content than its header says", hint=HINT)
        content = list(self._decode(digests, lengths, body))
        table.add(offset, digests, lengths)
        if kind is BlockKind.NODES:
            for digest, data in content:
                trees.add(digest, data)

    def _check_whole(self, trees: Trees) -> None:
        """Check what can be said only at the end: all there, nothing too much."""
        seen: set[tuple[str, str]] = set()
        for labels in self.versions:
            summary = trees.root(labels.root, DIRECTORY)
            if (labels.size, labels.file_count) != (summary.size, summary.count):
                raise FormatError(f"{labels.collection}:v{labels.number} has not the size it claims", hint=HINT)
            for alias in labels.aliases:
                if (labels.collection, alias) in seen:
                    raise FormatError(f"alias {alias!r} of {labels.collection} is on two versions", hint=HINT)
                seen.add((labels.collection, alias))
        header, chunks, nodes = self.header, self.chunks, self.nodes
        said = (header.versions, header.chunks, header.chunk_bytes, header.nodes, header.tree_bytes)
        if said != (len(self.versions), len(chunks.order), chunks.bytes, len(nodes.order), nodes.bytes):
            raise FormatError("the bundle has not the content its header says", hint=HINT)
        if not self.versions:
            raise FormatError("the bundle has no versions", hint=HINT)
        if not all(chunks.needed) or len(trees.needed) != len(nodes.order):
            raise FormatError("the bundle has content that no version of it has", hint=HINT)


def read_bundle(
    source: Source, codec: Codec, max_bytes: int | None, allow: Callable[[str], object], progress: Progress
) -> Bundle:
    """Read a bundle to its end and check all of it. Writes nothing.

    ``max_bytes``: plaintext it may have. ``allow`` raises if the store may not refer to a URI. Raises `FormatError`,
    `UnsupportedFormatError`, `IntegrityError`, `LimitError`, and `InvalidInputError` for names, paths and labels that
    are not allowed.
    """
    preamble = source.read_at(0, PREAMBLE_SIZE)
    length = decode_preamble(preamble)
    guarded = source.read_at(PREAMBLE_SIZE, length)
    if len(guarded) < length:
        raise cut_short()
    header = decode_header(guarded)
    plain = header.chunk_bytes + header.tree_bytes
    if max_bytes is not None and plain > max_bytes:
        raise LimitError(
            f"the bundle holds {plain} bytes, at most {max_bytes} are allowed", hint="max_bytes=, or --max-bytes"
        )
    sealer = Sealer()
    sealer.update(preamble)
    sealer.update(guarded)
    bundle = Bundle(source, codec, header)
    bundle._check(sealer, PREAMBLE_SIZE + length, allow, progress)  # noqa: SLF001 - the other half of its constructor
    return bundle


def check_labels(labels: Labels, algorithm: str) -> Labels:
    """Labels as a user may give them. Raises `InvalidInputError` and `FormatError`."""
    name = CollectionName.parse(labels.collection)
    check_type(labels.type)
    check_description(labels.description)
    good = (
        str(name) == labels.collection
        and 0 <= labels.number <= _HIGHEST
        and len(labels.root) == len(hash_function(algorithm)(b""))
        and check_tags(labels.tags) == labels.tags
        and check_aliases(labels.aliases) == labels.aliases
        and LATEST not in labels.aliases
        and -1 <= labels.ttl <= MAX_TTL // timedelta(seconds=1)
        and 0 <= labels.created < _YEAR_9999
        and (not labels.base or parse_reference(labels.base).number is not None)
    )
    if not good:
        raise FormatError(f"what the bundle says of {labels.collection}:v{labels.number} is not valid", hint=HINT)
    _check_json(labels.metadata, canonical_metadata, labels)
    _check_json(labels.attrs, canonical_host_attrs, labels)
    return labels


def _check_json(text: bytes, canonical: Callable[[object], bytes], labels: Labels) -> None:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or canonical(value) != text:
        raise FormatError(f"the metadata of {labels.collection}:v{labels.number} is not canonical JSON", hint=HINT)


def _changed() -> IntegrityError:
    return IntegrityError("the bundle changed while it was being read", hint="import it when it is at rest")
