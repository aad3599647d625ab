"""Versions of a store → bundle."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import chain

from casstore import pin
from casstore.bundle.source import BundleFile
from casstore.bundle.target import Output, writing
from casstore.catalogue import Found, find, source_of
from casstore.contents import naming
from casstore.engine import Engine
from casstore.errors import LimitError
from casstore.expiry import terms_now
from casstore.format.bundles import (
    LARGEST_FRAME,
    MOST_LABELS,
    MOST_VERSIONS,
    SEAL_SIZE,
    BlockKind,
    BundleHeader,
    Labels,
    block_head,
    encode_contents,
    encode_header,
    encode_labels,
)
from casstore.format.nodes import Node, decode_node
from casstore.model import Progress, no_progress
from casstore.names import LATEST, check_texts, parse_reference
from casstore.overlay import Tables
from casstore.pack import Frame, encode_frame
from casstore.state import aliases_of
from casstore.values import dataclass

FRAME_BYTES = 256 * 1024
"""plaintext a frame aims at; longer chunks have one each"""
WINDOW_BYTES = 4 * 1024 * 1024
"""plaintext that is read and compressed together"""
NODES_AHEAD = 64
"""nodes that are read together"""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported. ``versions``: full references, in the order of the bundle.

    ``chunks`` and ``nodes``: distinct ones; ``plain_bytes``: theirs, uncompressed; ``bundle_bytes``: of the bundle.
    """

    versions: tuple[str, ...]
    chunks: int
    nodes: int
    plain_bytes: int
    bundle_bytes: int

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "versions": list(self.versions),
            "chunks": self.chunks,
            "nodes": self.nodes,
            "plain_bytes": self.plain_bytes,
            "bundle_bytes": self.bundle_bytes,
        }


def export(
    engine: Engine,
    refs: str | Sequence[str],
    file: BundleFile,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ExportReport:
    """Write versions with all their content into a bundle. See `casstore.store.Store.export`."""
    versions = _wanted(engine, refs)
    founds = [found for found, _ in versions]
    labels = [encode_labels(said) for _, said in versions]
    if sum(map(len, labels)) > MOST_LABELS:
        raise LimitError(
            f"the labels of {len(labels)} versions have more than {MOST_LABELS} bytes", hint="make several bundles"
        )
    reads = {found.version.root: pin.LongRead(engine, found, "export of") for found in founds}

    def touched(phase: str, done: int, total: int) -> None:
        for read in reads.values():
            read.touch()
        progress(phase, done, total)

    with ExitStack() as stack:
        for read in reads.values():
            stack.callback(read.release)
        output = stack.enter_context(writing(file, engine.runtime.random_bytes(8), overwrite=overwrite))
        content = _Content(engine, touched)
        for found in founds:
            with naming(found):
                content.gather(found.version.root)
        header = BundleHeader(
            engine.config.digest,
            engine.config.chunker,
            engine.config.node_bytes,
            len(founds),
            len(content.chunks),
            content.chunk_bytes,
            len(content.nodes),
            content.node_bytes,
        )
        output.write(encode_header(header))
        for index in labels:
            _block(output, BlockKind.VERSION, index, b"")
        with naming(founds[0]) if len(founds) == 1 else nullcontext():
            content.write(output)
        # The seal covers the head of its own block, too.
        output.write(block_head(BlockKind.END, b"", SEAL_SIZE))
        output.write(output.seal())
    return ExportReport(
        tuple(f"{said.collection}:v{said.number}" for _, said in versions),
        header.chunks,
        header.nodes,
        header.chunk_bytes + header.tree_bytes,
        output.size,
    )


def _wanted(engine: Engine, refs: str | Sequence[str]) -> list[tuple[Found, Labels]]:
    """The versions some references mean, as readers see them on one state; by collection and number, each once."""
    texts = (refs,) if isinstance(refs, str) else check_texts(refs, "references to export")
    parsed = [parse_reference(text) for text in texts]
    engine.view.refresh()
    with engine.view.read() as tables:
        terms = terms_now(engine, tables)
        found = {}
        for reference in parsed:
            one = find(tables, reference, terms=terms)
            found[str(one.name), one.version.number] = one
        if len(found) > MOST_VERSIONS:
            raise LimitError(f"{len(found)} versions, at most {MOST_VERSIONS} are allowed", hint="make several bundles")
        return [
            (one, _labels(tables, one, aliases_of(tables, one.collection.id, one.version.number)))
            for _, one in sorted(found.items(), key=lambda item: item[0])
        ]


def _labels(tables: Tables, found: Found, aliases: Sequence[str]) -> Labels:
    """What is said of a version; a link is exported as what it leads to, under its own name."""
    source = source_of(tables, found.version) or found
    row = source.version
    base = ""
    if row.base:
        reference = parse_reference(row.base)
        base = f"{reference.collection}:v{reference.number}" if reference.number is not None else ""
    return Labels(
        collection=str(found.name),
        number=found.version.number,
        type=row.type,
        root=row.root,
        size=row.size,
        file_count=row.file_count,
        description=row.description,
        metadata=row.metadata,
        tags=row.tags,
        aliases=tuple(alias for alias in aliases if alias != LATEST),
        base=base,
        ttl=row.ttl,
        created=row.created,
        attrs=row.attrs,
    )


def _block(output: Output, kind: BlockKind, index: bytes, body: bytes) -> None:
    output.write(block_head(kind, index, len(body)))
    output.write(index)
    output.write(body)


class _Content:
    """The distinct chunks and nodes of some trees, in the order they are first met. About 200 bytes for each."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self.engine = engine
        self.progress = progress
        self.chunks: dict[bytes, None] = {}
        self.nodes: dict[bytes, None] = {}
        """children before parents"""
        self.chunk_bytes = 0
        self.node_bytes = 0
        self._chunk_lengths = array("I")
        self._node_lengths = array("I")

    def gather(self, root: bytes) -> None:
        """Add a tree. Reads its nodes, each once."""
        stack: list[Iterator[tuple[bytes, bytes, Node]]] = [self._fetch([root])]
        open_nodes: list[tuple[bytes, bytes]] = []
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
                if open_nodes:
                    self._add_node(*open_nodes.pop())
                continue
            digest, data, node = found
            if digest in self.nodes:
                continue
            for chunk, length in chain(node.chunks, chain.from_iterable(entry.chunks for entry in node.entries)):
                if chunk not in self.chunks:
                    self.chunks[chunk] = None
                    self._chunk_lengths.append(length)
                    self.chunk_bytes += length
            below = node.subtrees()
            if below:
                open_nodes.append((digest, data))
                stack.append(self._fetch(below))
            else:
                self._add_node(digest, data)
        self.progress("list", len(self.nodes), 0)

    def _add_node(self, digest: bytes, data: bytes) -> None:
        if digest not in self.nodes:
            self.nodes[digest] = None
            self._node_lengths.append(len(data))
            self.node_bytes += len(data)

    def _fetch(self, digests: Sequence[bytes]) -> Iterator[tuple[bytes, bytes, Node]]:
        """Nodes that are not listed yet, some read ahead."""
        for at in range(0, len(digests), NODES_AHEAD):
            wanted = [digest for digest in digests[at : at + NODES_AHEAD] if digest not in self.nodes]
            fetched = self.engine.reader.fetch(wanted)
            for digest in wanted:
                data = fetched.get(digest)
                yield digest, data, decode_node(data, f"node {digest.hex()}")

    def write(self, output: Output) -> None:
        """Write the frames of all chunks, then of all nodes."""
        total = self.chunk_bytes + self.node_bytes
        done = 0
        for kind, digests, lengths in (
            (BlockKind.CHUNKS, self.chunks, self._chunk_lengths),
            (BlockKind.NODES, self.nodes, self._node_lengths),
        ):
            for window in _grouped(zip(digests, lengths, strict=True), WINDOW_BYTES):
                for frame in self._frames(window):
                    _block(output, kind, encode_contents(frame.digests, frame.lengths), frame.stored)
                    done += frame.raw
                self.progress("write", done, total)

    def _frames(self, window: list[tuple[bytes, int]]) -> Iterator[Frame]:
        fetched = self.engine.reader.fetch(digest for digest, _ in window)
        groups = [
            [(digest, fetched.get(digest)) for digest, _ in group] for group in _grouped(iter(window), FRAME_BYTES)
        ]
        return iter(self.engine.executor().map(partial(encode_frame, self.engine.plain_codec), groups))


def _grouped(chunks: Iterator[tuple[bytes, int]], most: int) -> Iterator[list[tuple[bytes, int]]]:
    """Chunks in groups of at most so many bytes, or of one."""
    group: list[tuple[bytes, int]] = []
    size = 0
    for digest, length in chunks:
        if length > LARGEST_FRAME:
            raise LimitError(f"{digest.hex()} has {length} bytes, too many for a bundle", hint="download the version")
        if group and size + length > most:
            yield group
            group, size = [], 0
        group.append((digest, length))
        size += length
    if group:
        yield group
