"""The content of a bundle → chunks and trees of a store: taken as they are, or read out and cut again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

from casstore.bundle.reading import Bundle
from casstore.chunker import Chunker, chunker_for
from casstore.digest import Buffer
from casstore.engine import Engine
from casstore.format.bundles import BlockKind
from casstore.format.nodes import CHUNK_LIST, decode_node
from casstore.model import Entry, EntryKind, Progress
from casstore.state import NODE
from casstore.tree import INLINE_CHUNKS, Builder, Tree, chunk_list, walk, write_entries
from casstore.values import dataclass

FRAMES = 64
"""frames whose chunks are looked up together"""
BLOCK_BYTES = 1 * 1024 * 1024
REMEMBERED_FILES = 50_000
"""files that are known again when they come in another version"""


class Sink(Protocol):
    """What takes chunks and nodes: a `casstore.writer.Writer`, or one that only counts."""

    new_bytes: int
    """plaintext of what was new"""

    def missing(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of some chunks that must be stored."""
        ...

    def put(self, digest: bytes, data: Buffer) -> None:
        """Store a chunk that `missing` named."""
        ...

    def put_node(self, data: bytes, children: tuple[bytes, ...]) -> bytes:
        """Store a node unless it is known; children come first."""
        ...


class Counting:
    """Says what a `Writer` would store, and stores nothing."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.new_bytes = 0
        self._own: set[bytes] = set()

    def missing(self, digests: Sequence[bytes]) -> set[bytes]:
        """See `Sink.missing`."""
        unknown = [digest for digest in digests if digest not in self._own]
        return {d for d, known in zip(unknown, self.engine.view.known(unknown), strict=True) if not known}

    def put(self, digest: bytes, data: Buffer) -> None:
        """See `Sink.put`."""
        if digest not in self._own:
            self._own.add(digest)
            self.new_bytes += len(data)

    def put_node(self, data: bytes, children: tuple[bytes, ...]) -> bytes:
        """See `Sink.put_node`."""
        digest = self.engine.hash(data)
        if digest not in self._own:
            with self.engine.view.read() as tables:
                known = tables.get(NODE, digest) is not None
            if not known or not self.engine.view.known((digest,))[0]:
                self.put(digest, data)
        return digest


def store_trees(engine: Engine, bundle: Bundle, sink: Sink, progress: Progress) -> list[Tree]:
    """Hand the content of a bundle to a sink; returns the tree of each of its versions as the store names it.

    May be called again with the same sink, which then gets what it lacks. Raises `IntegrityError` if the bundle is not
    what it was when it was checked.
    """
    if bundle.header.is_like(engine.config):
        _store_as_is(bundle, sink, progress)
        return [Tree(labels.root, labels.file_count, labels.size) for labels in bundle.versions]
    return _Cutter(engine, bundle, sink, progress).run()


def _store_as_is(bundle: Bundle, sink: Sink, progress: Progress) -> None:
    done, total = 0, bundle.chunks.bytes
    frames = bundle.frames(BlockKind.CHUNKS)
    while group := list(islice(frames, FRAMES)):
        missing = sink.missing([digest for _, digests in group for digest in digests])
        for frame, digests in group:
            if not missing.isdisjoint(digests):
                content = bundle.read(BlockKind.CHUNKS, frame)
                for digest in digests:
                    if digest in missing:
                        sink.put(digest, content[digest])
            done += sum(bundle.chunks.take(digest) or 0 for digest in digests)
        progress("store", done, total)
    for frame, digests in bundle.frames(BlockKind.NODES):
        content = bundle.read(BlockKind.NODES, frame)
        for digest in digests:
            data = content[digest]
            sink.put_node(data, decode_node(data, "a node of the bundle").references())


@dataclass(frozen=True, slots=True)
class _File:
    """Where the content of a file is in the store."""

    chunks: tuple[tuple[bytes, int], ...]
    tree: bytes | None


class _Cutter:
    """Reads the files of a bundle out and cuts them as the store does."""

    def __init__(self, engine: Engine, bundle: Bundle, sink: Sink, progress: Progress) -> None:
        self.bundle = bundle
        self.sink = sink
        self.progress = progress
        self.hash = engine.hash
        self.node_bytes = engine.config.node_bytes
        self.chunker: Chunker = chunker_for(engine.config.chunker)
        self.done = 0
        self.total = sum(labels.size for labels in bundle.versions)
        self._files: dict[tuple[tuple[tuple[bytes, int], ...], bytes | None], _File] = {}

    def run(self) -> list[Tree]:
        trees: dict[bytes, Tree] = {}
        for labels in self.bundle.versions:
            if labels.root not in trees:
                entries = map(self._entry, walk(labels.root, self.bundle.node))
                trees[labels.root] = write_entries(entries, self.node_bytes, self.sink.put_node)
        return [trees[labels.root] for labels in self.bundle.versions]

    def _entry(self, entry: Entry) -> Entry:
        if entry.kind is not EntryKind.FILE:
            return entry
        key = (entry.chunks, entry.tree)
        file = self._files.get(key)
        if file is None:
            file = self._cut(entry)
            if len(self._files) >= REMEMBERED_FILES:
                self._files.clear()
            self._files[key] = file
        self.done += entry.length
        self.progress("store", self.done, self.total)
        return replace(entry, chunks=file.chunks, tree=file.tree)

    def _cut(self, entry: Entry) -> _File:
        chunks: list[tuple[bytes, int]] = []
        builder: Builder | None = None
        for part in self._parts(entry):
            pieces = [(self.hash(piece), piece) for piece in part]
            missing = self.sink.missing([digest for digest, _ in pieces])
            for digest, piece in pieces:
                if digest in missing:
                    self.sink.put(digest, piece)
                if builder is not None:
                    builder.add_chunks([(digest, len(piece))])
                    continue
                chunks.append((digest, len(piece)))
                if len(chunks) > INLINE_CHUNKS:
                    builder = Builder(CHUNK_LIST, self.node_bytes, self.sink.put_node)
                    for known, length in chunks:
                        builder.add_chunks([(known, length)])
        return _File(tuple(chunks), None) if builder is None else _File((), builder.finish().root)

    def _parts(self, entry: Entry) -> Iterator[list[bytes]]:
        """The chunks the store makes of a file, some at a time."""
        tail = bytearray()
        for data in self._read(entry):
            tail += data
            if len(tail) >= BLOCK_BYTES:
                part = list(_split(bytes(tail), self.chunker, final=False))
                yield part
                del tail[: sum(map(len, part))]
        yield list(_split(bytes(tail), self.chunker, final=True))

    def _read(self, entry: Entry) -> Iterator[bytes]:
        if entry.tree is None:
            return (self.bundle.chunk(digest) for digest, _ in entry.chunks)
        return (self.bundle.chunk(digest) for _, digest, _ in chunk_list(entry.tree, self.bundle.node))


def _split(data: bytes, chunker: Chunker, *, final: bool) -> Iterator[bytes]:
    ends = chunker.boundaries(data, final=final)
    return (data[a:b] for a, b in zip([0, *ends], ends, strict=False))
