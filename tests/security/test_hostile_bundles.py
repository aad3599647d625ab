"""Bundles from strangers: refused without a trace, or imported as what they are (FEATURES Q15; tests of acceptance §F).

Guards I1 (nothing is stored that is not what its name says) and that a refused import leaves the store, and the place
for temporary files, exactly as they were. The forger below can make any bundle whose seal is right: a seal keeps out
accidents, not strangers.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from blake3 import blake3

from casstore import (
    Artifact,
    CasstoreError,
    ChunkerParams,
    ChunkMissingError,
    DigestMismatchError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    InvalidMetadataError,
    InvalidNameError,
    InvalidPathError,
    LimitError,
    PathConflictError,
    RefusedError,
    Store,
    StoreConfig,
    UnsupportedFormatError,
)
from casstore.codec import ZstdCodec
from casstore.format.bundles import (
    BUNDLE_MAGIC,
    HEADER_MAGIC,
    BlockKind,
    BundleHeader,
    Labels,
    block_head,
    encode_contents,
    encode_header,
    encode_labels,
)
from casstore.format.guard import guard
from casstore.format.nodes import CHUNK_LIST, DIRECTORY, Child, encode_child, encode_chunk, encode_entry, encode_node
from casstore.format.packs import frame_header
from casstore.model import Entry, EntryKind, Pointer
from casstore.pack import encode_frame
from casstore.testing.snapshot import snapshot
from casstore.tree import MAX_LEVEL, is_cut, write_entries

NODE_BYTES = 256
CONFIG = StoreConfig(node_bytes=NODE_BYTES)
CODEC = ZstdCodec()
ALLOWED = {2, 11, 20, 21}
"""exit codes of a bundle that is refused: its names, its paths, damage, its form"""


def name_of(data: bytes) -> bytes:
    return blake3(data).digest()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    with Store.create(tmp_path / "store", config=CONFIG) as opened:
        made = Artifact("mine")
        made.add_bytes(b"mine", "x")
        opened.log_artifact(made)
        yield opened


class Pipe(BytesIO):
    """Cannot seek, so it is put aside first."""

    def seekable(self) -> bool:
        return False


class Watch:
    """The store as it is now, for `refuse` to compare with."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before = self.look()

    def look(self) -> object:
        where = Path(self.store.url)
        with Store.open(where) as again:
            head = again.head
        return head, self.store.head, snapshot(where), sorted(os.listdir(where.parent / "spool"))

    def unchanged(self) -> None:
        assert self.look() == self.before


def refuse(store: Store, data: bytes, *errors: type[CasstoreError]) -> CasstoreError:
    """Refused with one of some errors, and no trace of it; as a file, as a stream, and when it is only looked at."""
    watch = Watch(store)
    for make, options in ((BytesIO, {}), (Pipe, {}), (BytesIO, {"dry_run": True})):
        with pytest.raises(errors or CasstoreError) as caught:
            store.import_bundle(make(data), **options)  # type: ignore[arg-type]
        assert caught.value.exit_code in ALLOWED, caught.value
        assert caught.value.hint
    watch.unchanged()
    return caught.value


# --- the forger


@dataclass
class Forge:
    """Any bundle, right or wrong, under a seal that is right."""

    versions: list[Labels] = field(default_factory=list)
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    nodes: dict[bytes, bytes] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    """what the header says instead of the truth"""

    def chunk(self, data: bytes) -> tuple[bytes, int]:
        self.chunks[name_of(data)] = data
        return name_of(data), len(data)

    def file(self, path: str, data: bytes = b"data", **changes: Any) -> Entry:
        return replace(Entry(path, size=len(data), chunks=(self.chunk(data),)), **changes)

    def node(self, kind: str, level: int, items: Sequence[bytes]) -> bytes:
        data = encode_node(kind, level, list(items))
        self.nodes[name_of(data)] = data
        return name_of(data)

    def leaf(self, *entries: Entry) -> bytes:
        return self.node(DIRECTORY, 0, [encode_entry(entry) for entry in entries])

    def above(self, level: int, *children: Child, kind: str = DIRECTORY) -> bytes:
        return self.node(kind, level, [encode_child(child) for child in children])

    def version(self, root: bytes, entries: Sequence[Entry] = (), **changes: Any) -> Forge:
        labels = Labels(
            collection="default/default/ds",
            number=len(self.versions),
            type="dataset",
            root=root,
            size=sum(entry.size or 0 for entry in entries),
            file_count=len(entries),
            description="",
            metadata=b"{}",
            tags=(),
            aliases=(),
            base="",
            ttl=-1,
            created=1,
            attrs=b"{}",
        )
        self.versions.append(replace(labels, **changes))
        return self

    def with_entries(self, *entries: Entry, **changes: Any) -> Forge:
        return self.version(self.leaf(*entries), entries, **changes)

    def blocks(self) -> list[bytes]:
        found = [block(BlockKind.VERSION, encode_labels(labels)) for labels in self.versions]
        for kind, content in ((BlockKind.CHUNKS, self.chunks), (BlockKind.NODES, self.nodes)):
            for digest, data in content.items():
                frame = encode_frame(CODEC, [(digest, data)])
                found.append(block(kind, encode_contents(frame.digests, frame.lengths), frame.stored))
        return found

    def head(self) -> bytes:
        truth: dict[str, Any] = {
            "digest": "blake3",
            "chunker": ChunkerParams(),
            "node_bytes": NODE_BYTES,
            "versions": len(self.versions),
            "chunks": len(self.chunks),
            "chunk_bytes": sum(map(len, self.chunks.values())),
            "nodes": len(self.nodes),
            "tree_bytes": sum(map(len, self.nodes.values())),
        }
        return encode_header(BundleHeader(**{**truth, **self.header}))

    def build(self) -> bytes:
        return seal(self.head() + b"".join(self.blocks()))


def block(kind: int, index: bytes, body: bytes = b"") -> bytes:
    return block_head(kind, index, len(body)) + index + body  # type: ignore[arg-type]


def seal(data: bytes) -> bytes:
    data += block_head(BlockKind.END, b"", 32)
    return data + name_of(data)


def good() -> Forge:
    forge = Forge()
    return forge.with_entries(forge.file("a", b"one"), forge.file("b/c", b"two"))


def small(store: Store, tmp_path: Path) -> bytes:
    """A bundle that casstore wrote: two versions, a tree of two levels, a chunk list."""
    with Store.create(tmp_path / "source", config=replace(CONFIG, chunker=ChunkerParams.around(256))) as source:
        made = Artifact("ds", description="d", metadata={"k": "v"})
        rng = random.Random(3)
        made.add_bytes(rng.randbytes(12_000), "long")
        for number in range(6):
            made.add_bytes(bytes([number]), f"d/{number}")
        first = source.log_artifact(made, aliases=["latest", "best"], tags=["t"])
        draft = first.new_draft()
        draft.add_bytes(b"x", "x")
        source.log_artifact(draft)
        stream = BytesIO()
        source.export(["ds:v0", "ds:v1"], stream)
    return stream.getvalue()


def tiny(tmp_path: Path) -> bytes:
    """The smallest real bundle."""
    with Store.create(tmp_path / "source", config=CONFIG) as source:
        made = Artifact("ds")
        made.add_bytes(b"x", "a")
        source.log_artifact(made)
        stream = BytesIO()
        source.export("ds", stream)
    return stream.getvalue()


def test_the_forger_can_make_bundles_that_are_good(store: Store) -> None:
    """Else the tests below would prove nothing."""
    assert [found.ref for found in store.import_bundle(BytesIO(good().build())).versions] == ["ds:v0"]
    assert {entry.path: entry.read() for entry in store.get("ds").files()} == {"a": b"one", "b/c": b"two"}
    assert not store.fsck(read_data=True).findings


# --- accidents


def test_a_bundle_cut_anywhere_is_refused(store: Store, tmp_path: Path) -> None:
    """Each of its lengths."""
    data = tiny(tmp_path)
    watch = Watch(store)
    for length in range(len(data)):
        with pytest.raises((IntegrityError, FormatError)):
            store.import_bundle(BytesIO(data[:length]))
    watch.unchanged()
    assert len(store.import_bundle(BytesIO(data)).versions) == 1


def test_a_larger_bundle_cut_somewhere_is_refused(store: Store, tmp_path: Path) -> None:
    """With trees of several nodes."""
    data = small(store, tmp_path)
    watch = Watch(store)
    for length in random.Random(5).sample(range(len(data)), 150):
        with pytest.raises((IntegrityError, FormatError)):
            store.import_bundle(BytesIO(data[:length]))
    watch.unchanged()


def test_each_flipped_bit_is_refused(store: Store, tmp_path: Path) -> None:
    """Every bit of a small bundle: the seal, at the latest."""
    data = tiny(tmp_path)
    watch = Watch(store)
    for at in range(len(data)):
        for bit in range(8):
            wrong = bytearray(data)
            wrong[at] ^= 1 << bit
            with pytest.raises((IntegrityError, FormatError, InvalidInputError)):
                store.import_bundle(BytesIO(wrong), dry_run=bool(bit))
    watch.unchanged()


def test_something_after_the_end_is_refused(store: Store) -> None:
    """A byte, or the bundle once more."""
    data = good().build()
    for tail in (b"\0", data, data[-48:]):
        refuse(store, data + tail, FormatError, IntegrityError)


def test_no_bundle_is_refused(store: Store) -> None:
    """Empty, text, a pack, another casstore file."""
    pack = next(path for path in Path(store.url, "packs").rglob("*") if path.is_file())
    for data in (b"", b"C", b"hello, world", bytes(100), pack.read_bytes(), b"CASBNDL2" + bytes(100)):
        refuse(store, data, FormatError, IntegrityError)


def with_header(values: list[object]) -> bytes:
    guarded = guard(HEADER_MAGIC, msgspec.msgpack.encode(values))
    return seal(BUNDLE_MAGIC + len(guarded).to_bytes(8, "little") + guarded + b"".join(good().blocks()))


HEAD: list[object] = [1, [], "blake3", ["fastcdc-2020", 8192, 32768, 131072], NODE_BYTES, 1, 2, 6, 1, 0]


def test_newer_bundles_are_said_to_be_newer(store: Store) -> None:
    """By version, by feature, by digest algorithm; even if nothing else of them can be read."""
    newer: list[list[object]] = [[2], [2, []], [9, [], "what", "ever"], [1, ["holes"], 5], [1, [], "md5", *HEAD[3:]]]
    for values in newer:
        expected = UnsupportedFormatError if len(values) > 1 else FormatError
        refuse(store, with_header(values), expected)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),
        (0, "1"),
        (1, {}),
        (2, 5),
        (3, ["fastcdc-2020", 1, 2, 3]),
        (3, ["fastcdc-2020", 8192, 1 << 40, 1 << 50]),
        (3, []),
        (4, 0),
        (4, 1 << 40),
        (5, 0),
        (5, 2),
        (5, 1 << 40),
        (6, 0),
        (6, 3),
        (7, 5),
        (7, 7),
        (7, -1),
        (7, 1 << 63),
        (8, 0),
        (9, 0),
        (9, 1 << 61),
    ],
)
def test_a_header_that_lies_is_refused(store: Store, place: int, value: object) -> None:
    """Any field of it."""
    values = list(HEAD)
    values[9] = sum(map(len, good().nodes.values()))
    assert len(store.import_bundle(BytesIO(with_header(values)), dry_run=True).versions) == 1
    values[place] = value
    refuse(store, with_header(values), FormatError)


# --- lengths that lie


def test_lengths_that_lie_allocate_nothing(store: Store) -> None:
    """Whatever they claim, and wherever."""
    forge = good()
    head, blocks = forge.head(), forge.blocks()
    huge = (1 << 64) - 1
    frame = block(
        BlockKind.CHUNKS, encode_contents([name_of(b"x")], [1 << 25]), frame_header(1, 1 << 25, b"") + bytes(20)
    )
    many = block(BlockKind.CHUNKS, msgspec.msgpack.encode([b"", [1] * 100_000]))
    cases = [
        BUNDLE_MAGIC + huge.to_bytes(8, "little") + bytes(100),
        BUNDLE_MAGIC + (60_000).to_bytes(8, "little") + bytes(100),
        *(
            seal(head + kind.to_bytes(4, "little") + index.to_bytes(4, "little") + body.to_bytes(8, "little"))
            for kind in range(4)
            for index, body in (((1 << 32) - 1, 0), (0, huge), (4_000_000, 0), (0, 60_000_000), (1, 1))
        ),
        seal(head + frame + b"".join(blocks)),
        seal(replace(forge, header={"chunk_bytes": 1 << 40}).head() + blocks[0] + frame),
        seal(head + many),
        seal(head + block(BlockKind.VERSION, b"\xdd\xff\xff\xff\xff")),
        seal(head + block(BlockKind.VERSION, b"\x9e" + b"\xdb\xff\xff\xff\xff")),
        seal(head + blocks[0] + block(BlockKind.CHUNKS, b"\x92\xc6\xff\xff\xff\xff")),
        seal(head + blocks[0] + block(BlockKind.CHUNKS, b"\x92\xc4\x00\xdd\xff\xff\xff\xff")),
    ]
    store.import_bundle(BytesIO(good().build()), dry_run=True)
    for data in cases:
        tracemalloc.start()
        with pytest.raises((FormatError, IntegrityError)):
            store.import_bundle(BytesIO(data), dry_run=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4_000_000
        refuse(store, data, FormatError, IntegrityError)


def test_blocks_that_are_as_long_as_they_say_are_bounded_all_the_same(store: Store) -> None:
    """However much of a bundle there really is, only so much is in memory at a time."""
    forge = good()
    head, (version, *rest) = forge.head(), forge.blocks()
    long = block(BlockKind.VERSION, encode_labels(forge.versions[0]) + bytes(5 << 20))
    for wrong in (long, block(BlockKind.VERSION, version[16:], b"x")):
        error = refuse(store, seal(head + wrong + b"".join(rest)), FormatError)
        assert "claims to have" in error.message


def framed(stored: bytes, length: int, digest: bytes, codec: int = 1) -> bytes:
    """A bundle with one frame of some stored bytes."""
    forge = Forge()
    entry = Entry("a", size=length, chunks=((digest, length),))
    forge.with_entries(entry)
    forge.chunks = {}
    head = replace(forge, header={"chunks": 1, "chunk_bytes": length}).head()
    blocks = forge.blocks()
    body = frame_header(codec, length, stored) + stored
    return seal(head + blocks[0] + block(BlockKind.CHUNKS, encode_contents([digest], [length]), body) + blocks[1])


def test_decompression_bombs_are_refused(store: Store) -> None:
    """More than was declared, other than was declared, more than can be, a bomb that declares itself."""
    zeros = bytes(1 << 24)
    bomb = zstandard.ZstdCompressor().compress(zeros)
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    twice = zstandard.ZstdCompressor().compress(bomb)
    assert len(bomb) < 2000
    for data in (
        framed(bomb, 100, name_of(zeros)),
        framed(streamed, 1 << 24, name_of(zeros)),
        framed(b"(\xb5/\xfd\xa0\x00\x00\x00\x02" + bytes(10), 1 << 25, name_of(zeros)),
        framed(twice, len(zeros), name_of(zeros)),
        framed(bomb, 1 << 24, name_of(b"other")),
        framed(bomb, 1 << 24, name_of(zeros), codec=7),
        framed(bomb, 1 << 24, name_of(zeros), codec=0),
    ):
        refuse(store, data, IntegrityError)
    # One chunk of 16 MiB, declared: longer than this store's chunker would ever cut, so not from casstore.
    refuse(store, framed(bomb, 1 << 24, name_of(zeros)), FormatError)


def test_a_bundle_may_hold_only_so_much(store: Store) -> None:
    """``max_bytes`` counts what comes out, not what comes in."""
    forge = Forge()
    zeros = bytes(100_000)
    data = forge.with_entries(forge.file("a", zeros)).build()
    assert len(data) < 1000
    watch = Watch(store)
    for make in (BytesIO, Pipe):
        with pytest.raises(LimitError):
            store.import_bundle(make(data), max_bytes=100_000)
    watch.unchanged()
    assert len(store.import_bundle(BytesIO(data), max_bytes=101_000).versions) == 1


def test_a_file_of_an_exabyte_is_not_read_out(store: Store, tmp_path: Path) -> None:
    """A chunk list that shares its nodes is small and right; only ``max_bytes`` keeps it from being cut again."""
    forge = Forge()
    chunk = forge.chunk(bytes(100_000))
    chunks = chunk_run(forge, chunk, 1 << 40)
    entry = Entry("zeros", size=chunks[1], tree=chunks[0])
    data = forge.with_entries(entry).build()
    assert len(data) < 20_000
    with Store.create(tmp_path / "other", digest="sha256") as other:
        watch = Watch(other)
        with pytest.raises(LimitError):
            other.import_bundle(BytesIO(data), max_bytes=1 << 40)
        watch.unchanged()
    assert store.import_bundle(BytesIO(data), max_bytes=1 << 20).versions[0].size > 1 << 50
    assert store.get("ds").get_entry("zeros").read(1 << 45, 3) == bytes(3)


def chunk_run(forge: Forge, chunk: tuple[bytes, int], least: int) -> tuple[bytes, int]:
    """The root and size of the chunk list of one chunk over and over, at least so often, as casstore would write it."""
    items = [(encode_chunk(chunk), chunk[0], 1, chunk[1])]
    level = 0
    while True:
        encoded, key, count, size = items[0]
        fill = 1
        while not is_cut(NODE_BYTES, level, fill, len(encoded) * fill, len(encoded), key):
            fill += 1
        node = forge.node(CHUNK_LIST, level, [encoded] * fill)
        if count * fill >= least:
            return node, size * fill
        child = Child(node, "", count * fill, size * fill)
        items = [(encode_child(child), node, child.count, child.size)]
        level += 1


# --- chunks and nodes


def test_wrong_chunks_are_refused(store: Store) -> None:
    """Other bytes, missing, too many, twice, empty, of another length, the wrong way round."""
    forge = good()
    forge.chunks[name_of(b"one")] = b"eno"
    refuse(store, forge.build(), DigestMismatchError)
    forge = good()
    del forge.chunks[name_of(b"one")]
    refuse(store, forge.build(), ChunkMissingError)
    forge = good()
    forge.chunk(b"nobody wants this")
    refuse(store, forge.build(), FormatError)
    forge = good()
    forge.leaf(forge.file("nobody"))
    refuse(store, forge.build(), FormatError)
    forge = good()
    blocks = forge.blocks()
    wrong = replace(forge, header={"chunks": 3, "chunk_bytes": 9}).head()
    twice = refuse(store, seal(wrong + blocks[0] + blocks[1] + b"".join(blocks[1:])), FormatError)
    assert "twice" in twice.message
    forge = good()
    forge.chunks[name_of(b"")] = b""
    refuse(store, forge.build(), FormatError)
    forge = Forge()
    digest, _ = forge.chunk(b"four")
    forge.with_entries(Entry("a", size=5, chunks=((digest, 5),)))
    refuse(store, forge.build(), FormatError)


def test_blocks_in_another_order_are_refused(store: Store) -> None:
    """Labels, chunks, nodes, end; nothing else, nothing left out, the end once."""
    forge = good()
    head, (version, one, two, node) = forge.head(), forge.blocks()
    for order in (
        [one, two, node, version],
        [version, node, one, two],
        [version, one, node, two],
        [version, one, two, node, node],
        [version, version, one, two, node],
        [version, one, two],
        [one, two, node],
        [version],
        [],
        [version, one, two, node, block(4, b"")],
        [version, one, two, node, block(255, b"")],
        [version, one, two, seal(b""), node],
        [version, one, two, block_head(BlockKind.NODES, b"", 0), node],
        [version, one, two, node[:1] + b"\1" + node[2:]],
    ):
        refuse(store, seal(head + b"".join(order)), FormatError, IntegrityError)


def test_trees_that_are_not_trees_are_refused(store: Store) -> None:
    """Nodes that name themselves, each other, nothing, or what is no node."""
    forge = Forge()
    entry = forge.file("a")
    leaf = forge.leaf(entry)
    child = Child(leaf, "a", 1, 4)
    cases = {
        "a root that is not there": Forge(chunks=dict(forge.chunks)).version(name_of(b"nothing"), [entry]),
        "a chunk as a root": Forge(chunks=dict(forge.chunks)).version(name_of(b"data"), [entry]),
        "a root of one child": (f := Forge([], dict(forge.chunks), dict(forge.nodes))).version(
            f.above(1, child), [entry]
        ),
    }
    for name, case in cases.items():
        assert refuse(store, case.build(), ChunkMissingError, FormatError), name
    # A parent in front of its child: the only way there could be a circle.
    late = Forge(chunks=dict(forge.chunks))
    root = late.above(1, child, Child(leaf, "a", 1, 4))
    late.nodes = {root: late.nodes[root], leaf: forge.nodes[leaf]}
    refuse(store, late.version(root, [entry, entry]).build(), ChunkMissingError)
    for data in (b"", b"\x93", b"junk", encode_node("X", 0, []), encode_node(DIRECTORY, -1, []), b"\x93\xa1D\x00\x90"):
        other = Forge()
        other.nodes[name_of(data)] = data
        refuse(store, other.version(name_of(data)).build(), FormatError)
    empty = Forge()
    refuse(store, empty.version(empty.node(CHUNK_LIST, 0, [])).build(), FormatError)
    empty = Forge()
    refuse(store, empty.version(empty.node(DIRECTORY, 1, [])).build(), FormatError)


def test_trees_without_end_are_refused(store: Store) -> None:
    """One node above the other, more often than there are bytes in the world."""
    forge = Forge()
    chunk = forge.chunk(b"data")
    items = [encode_chunk(chunk)] * 40
    node, size, count = forge.node(CHUNK_LIST, 0, items), 160, 40
    for level in range(1, MAX_LEVEL + 2):
        node = forge.above(level, *[Child(node, "", count, size)] * 20, kind=CHUNK_LIST)
        size, count = size * 20, count * 20
        if size >= 1 << 64:
            break
    entry = Entry("a", size=size % (1 << 63), tree=node)
    refuse(store, forge.with_entries(entry).build(), FormatError)
    chain = Forge()
    entry = chain.file("a")
    node = chain.leaf(entry)
    for level in range(1, MAX_LEVEL + 3):
        node = chain.above(level, Child(node, "a", 1, 4))
    refuse(store, chain.version(node, [entry]).build(), FormatError)


def test_nodes_have_one_form(store: Store) -> None:
    """The same content written in another way would have another digest."""
    forge = Forge()
    entry = forge.file("a")
    right = encode_node(DIRECTORY, 0, [encode_entry(entry)])
    for wrong in (right + b"\0", right.replace(b"\xa1a", b"\xd9\x01a"), right.replace(b"\xdd\0\0\0\1", b"\x91")):
        assert wrong != right
        other = Forge(chunks=dict(forge.chunks))
        other.nodes[name_of(wrong)] = wrong
        refuse(store, other.version(name_of(wrong), [entry]).build(), FormatError)


def real_tree(forge: Forge, entries: list[Entry]) -> bytes:
    """The tree casstore would write."""

    def sink(data: bytes, _: tuple[bytes, ...]) -> bytes:
        forge.nodes[name_of(data)] = data
        return name_of(data)

    return write_entries(entries, NODE_BYTES, sink).root


def test_trees_are_cut_where_casstore_cuts_them(store: Store) -> None:
    """Else equal content would not have equal digests: one node for all is too few, one for each too many."""
    forge = Forge()
    entries = [forge.file(f"file-{number:03}") for number in range(60)]
    root = real_tree(forge, entries)
    assert len(forge.nodes) > 5
    assert len(store.import_bundle(BytesIO(forge.version(root, entries).build()), dry_run=True).versions) == 1
    whole = Forge(chunks=dict(forge.chunks))
    refuse(store, whole.with_entries(*entries).build(), FormatError)
    each = Forge(chunks=dict(forge.chunks))
    leaves = [Child(each.leaf(entry), entry.path, 1, 4) for entry in entries[:4]]
    refuse(store, each.version(each.above(1, *leaves), entries[:4]).build(), FormatError)


@pytest.mark.parametrize("wrong", ["last", "count", "size", "level", "order", "kind", "twice"])
def test_inner_nodes_say_the_truth_about_what_is_below(store: Store, wrong: str) -> None:
    """Keys, counts, sums, levels, order."""
    forge = Forge()
    entries = [forge.file(f"file-{number:03}") for number in range(60)]
    real_tree(forge, entries)
    leaves = [n for n in (msgspec.msgpack.decode(data) for data in forge.nodes.values()) if n[1] == 0]
    paths = [[item[0] for item in leaf[2]] for leaf in leaves]
    digests = [digest for digest, data in forge.nodes.items() if msgspec.msgpack.decode(data)[1] == 0]
    children = [Child(d, p[-1], len(p), 4 * len(p)) for d, p in zip(digests, paths, strict=True)][:2]
    mine = Forge(chunks=dict(forge.chunks), nodes={digest: forge.nodes[digest] for digest in digests[:2]})
    kind, level = DIRECTORY, 1
    if wrong == "last":
        children[0] = replace(children[0], last=children[0].last + "x")
    elif wrong == "count":
        children[0] = replace(children[0], count=children[0].count + 1)
    elif wrong == "size":
        children[0] = replace(children[0], size=children[0].size + 1)
    elif wrong == "level":
        level = 2
    elif wrong == "order":
        children.reverse()
    elif wrong == "twice":
        children.append(children[-1])
    else:
        kind = CHUNK_LIST
    root = mine.above(level, *children, kind=kind)
    count = sum(child.count for child in children)
    mine.version(root, [], size=4 * count, file_count=count)
    refuse(store, mine.build(), FormatError)


# --- entries


HOSTILE_PATHS = (
    "../x",
    "a/../../x",
    "..",
    ".",
    "./a",
    "/etc/passwd",
    "//a",
    "a//b",
    "a/",
    "",
    "a\0b",
    "a\\b",
    "C:evil",
    "a\nb",
    "a\x1b[31m",
    "x" * 300,
    "/".join(["y" * 200] * 30),
)


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_hostile_paths_are_refused(store: Store, path: str) -> None:
    """What a user may not add, a bundle may not bring; as a file, a link or a reference."""
    for make in (
        lambda forge: forge.file(path),
        lambda forge: Entry(path, EntryKind.LINK, target="t"),
        lambda forge: Entry(path, EntryKind.DIRECTORY),
        lambda forge: Entry(path, EntryKind.REFERENCE, size=None, pointer=Pointer("https://example.org/")),
    ):
        forge = Forge()
        refuse(store, forge.with_entries(make(forge)).build(), InvalidPathError)


@pytest.mark.parametrize(
    "paths",
    [("a", "a"), ("b", "a"), ("a", "a/b"), ("a", "a-", "a/b"), ("a", "a!", "a!/x", "a/b/c"), ("a/b", "a/b/c", "a")],
)
def test_paths_that_collide_are_refused(store: Store, paths: tuple[str, ...]) -> None:
    """Twice, out of order, below a file; in one node, or in two side by side."""
    forge = Forge()
    refuse(store, forge.with_entries(*map(forge.file, paths)).build(), PathConflictError, FormatError)


def test_conflicts_between_nodes_are_found(store: Store) -> None:
    """A file and what is below it, many entries apart, in trees of several levels."""
    for below in ("a/b", "a/b/c/d", "a/zz"):
        forge = Forge()
        entries = [forge.file("a"), *(forge.file(f"a-{number:04}") for number in range(300)), forge.file(below)]
        root = real_tree(forge, entries)
        refuse(store, forge.version(root, entries).build(), PathConflictError)
    forge = Forge()
    names = ["a", *(f"a-{number:04}" for number in range(300)), "a0/b", "a1"]
    entries = [forge.file(name) for name in names]
    assert store.import_bundle(BytesIO(forge.version(real_tree(forge, entries), entries).build())).versions
    assert [entry.path for entry in store.get("ds").files()] == names


def entry_cases(forge: Forge) -> dict[str, Entry]:
    chunk = forge.chunk(b"data")
    lists = forge.node(CHUNK_LIST, 0, [encode_chunk(chunk)] * 5)
    return {
        "a size that is not that of its chunks": Entry("a", size=5, chunks=(chunk,)),
        "an empty file with a size": Entry("a", size=1),
        "a chunk list that should be in the entry": Entry("a", size=20, tree=lists),
        "chunks and a chunk list": Entry("a", size=24, chunks=(chunk,), tree=lists),
        "too many chunks in the entry": Entry("a", size=160, chunks=(chunk,) * 40),
        "a mode that is none": Entry("a", size=4, chunks=(chunk,), mode=0o200000),
        "a file with a target": Entry("a", size=4, chunks=(chunk,), target="x"),
        "a link with content": Entry("a", EntryKind.LINK, size=4, chunks=(chunk,), target="x"),
        "a link to nothing": Entry("a", EntryKind.LINK),
        "a link to an empty name": Entry("a", EntryKind.LINK, target=""),
        "a link with a NUL": Entry("a", EntryKind.LINK, target="a\0b"),
        "a link that is too long": Entry("a", EntryKind.LINK, target="x" * 5000),
        "a directory with a size": Entry("a", EntryKind.DIRECTORY, size=1),
        "a directory with content": Entry("a", EntryKind.DIRECTORY, size=4, chunks=(chunk,)),
        "a reference to nowhere": Entry("a", EntryKind.REFERENCE, size=0, pointer=Pointer("nowhere")),
        "a reference with a secret": Entry("a", EntryKind.REFERENCE, pointer=Pointer("https://u:p@example.org/")),
    }


@pytest.mark.parametrize("name", sorted(entry_cases(Forge())))
def test_entries_that_contradict_themselves_are_refused(store: Store, name: str) -> None:
    """No artifact could have them."""
    forge = Forge()
    entry = entry_cases(forge)[name]
    if entry.tree is None:
        forge.nodes.clear()
    if not entry.chunks and entry.tree is None:
        forge.chunks.clear()
    refuse(store, forge.with_entries(entry).build(), FormatError, InvalidInputError)


def test_links_that_lead_out_are_content_like_any_other(store: Store, tmp_path: Path) -> None:
    """They may be in a bundle as in an artifact; it is the download that stays inside."""
    forge = Forge()
    link = Entry("to", EntryKind.LINK, target="../../../outside")
    store.import_bundle(BytesIO(forge.with_entries(link).build()))
    assert store.get("ds").get_entry("to").target == "../../../outside"


def test_references_lead_only_where_the_policy_allows(store: Store, tmp_path: Path) -> None:
    """A stranger's bundle cannot point to files that nobody may point to; 14, and no trace."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "out").symlink_to("/etc")
    store.set_policy(reference_roots=[str(tmp_path / "data")])
    watch = Watch(store)
    for uri in ("file:///etc/passwd", f"file://{tmp_path}/data/../secret", f"file://{tmp_path}/data/out/passwd"):
        forge = Forge()
        entry = Entry("a", EntryKind.REFERENCE, pointer=Pointer(uri))
        with pytest.raises(RefusedError):
            store.import_bundle(BytesIO(forge.with_entries(entry).build()))
    watch.unchanged()
    forge = Forge()
    entry = Entry("a", EntryKind.REFERENCE, pointer=Pointer(f"file://{tmp_path}/data/x"))
    assert store.import_bundle(BytesIO(forge.with_entries(entry).build())).versions


# --- labels


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


LABELS: dict[str, tuple[dict[str, Any], type[CasstoreError]]] = {
    "101 keys": (
        {"metadata": json.dumps({f"{n:03}": n for n in range(101)}, separators=(",", ":")).encode()},
        InvalidMetadataError,
    ),
    "more than 1 MiB": ({"metadata": b'{"a":"' + b"x" * (1 << 20) + b'"}'}, InvalidMetadataError),
    "deep": ({"metadata": deep(70)}, InvalidMetadataError),
    "deeper than the stack": ({"metadata": deep(300_000)}, FormatError),
    "a number of a million digits": ({"metadata": b'{"a":' + b"9" * 1_000_000 + b"}"}, FormatError),
    "not a number": ({"metadata": b'{"a":NaN}'}, InvalidMetadataError),
    "infinity": ({"metadata": b'{"a":1e999}'}, InvalidMetadataError),
    "not canonical": ({"metadata": b'{"b":1,"a":2}'}, FormatError),
    "a key twice": ({"metadata": b'{"a":1,"a":2}'}, FormatError),
    "no object": ({"metadata": b"[]"}, FormatError),
    "not JSON": ({"metadata": b"{"}, FormatError),
    "not UTF-8": ({"metadata": b'{"a":"\xff"}'}, FormatError),
    "a lone surrogate": ({"metadata": b'{"a":"\\ud800"}'}, InvalidMetadataError),
    "attrs": ({"attrs": b"5"}, FormatError),
    "collection": ({"collection": "default/default/../x"}, InvalidNameError),
    "attrs too large": ({"attrs": b'{"a":"' + b"x" * (1 << 20) + b'"}'}, InvalidMetadataError),
    "short collection": ({"collection": "ds"}, FormatError),
    "empty collection": ({"collection": ""}, InvalidNameError),
    "collection with a version": ({"collection": "default/default/ds:v0"}, InvalidNameError),
    "number": ({"number": -1}, FormatError),
    "huge number": ({"number": (1 << 64) - 1}, FormatError),
    "type": ({"type": "a b"}, InvalidNameError),
    "reserved type": ({"type": "casstore-thing"}, InvalidNameError),
    "description": ({"description": "x" * 70_000}, LimitError),
    "tag": ({"tags": ("a\nb",)}, InvalidNameError),
    "tags": ({"tags": tuple(f"t{n}" for n in range(101))}, LimitError),
    "a tag twice": ({"tags": ("a", "a")}, FormatError),
    "alias": ({"aliases": ("../x",)}, InvalidNameError),
    "alias like a version": ({"aliases": ("v7",)}, InvalidNameError),
    "aliases": ({"aliases": tuple(f"t{n}" for n in range(101))}, LimitError),
    "latest": ({"aliases": ("latest",)}, FormatError),
    "base": ({"base": "a:b:c"}, InvalidNameError),
    "base without a number": ({"base": "ds:latest"}, FormatError),
    "ttl": ({"ttl": -2}, FormatError),
    "long ttl": ({"ttl": 1 << 40}, FormatError),
    "created": ({"created": 1 << 62}, FormatError),
    "created before time": ({"created": -1}, FormatError),
    "short root": ({"root": b"x"}, FormatError),
    "size": ({"size": 7}, FormatError),
    "negative size": ({"size": -1}, FormatError),
    "file count": ({"file_count": 0}, FormatError),
}


@pytest.mark.parametrize("name", LABELS)
def test_hostile_labels_are_refused(store: Store, name: str) -> None:
    """What a user may not say, a bundle may not."""
    changes, error = LABELS[name]
    forge = Forge()
    forge.with_entries(forge.file("a"))
    forge.versions[0] = replace(forge.versions[0], **changes)
    refuse(store, forge.build(), error)


def test_what_is_not_text_is_refused(store: Store) -> None:
    """msgspec itself raises something else for it than for all other damage."""
    forge = good()
    data = forge.head() + b"".join(forge.blocks())
    for word in (b"default/default/ds", b"dataset", b"b/c"):
        refuse(store, seal(data.replace(word, b"\xff" * len(word))), FormatError, IntegrityError)
    for name in (b"blake3", b"fastcdc-2020"):
        guarded = guard(HEADER_MAGIC, msgspec.msgpack.encode(HEAD).replace(name, b"\xff" * len(name)))
        refuse(store, seal(BUNDLE_MAGIC + len(guarded).to_bytes(8, "little") + guarded), FormatError)


def test_labels_of_any_shape_are_refused(store: Store) -> None:
    """Fields missing, too many, of other types."""
    forge = good()
    head, (_, *rest) = forge.head(), forge.blocks()
    right = [getattr(forge.versions[0], name) for name in Labels.__slots__]
    shapes: list[object] = [
        [],
        {},
        5,
        None,
        right[:-1],
        [*right, 1],
        *([*right[:n], {}, *right[n + 1 :]] for n in range(14)),
    ]
    for shape in shapes:
        index = msgspec.msgpack.encode(shape)
        refuse(store, seal(head + block(BlockKind.VERSION, index) + b"".join(rest)), FormatError)
    nested = b"\x91" * 100_000
    refuse(store, seal(head + block(BlockKind.VERSION, nested) + b"".join(rest)), FormatError)


def test_versions_are_in_order_and_once(store: Store) -> None:
    """Not twice, not backwards, not with two types or one alias on both."""
    for changes in (
        {"number": 0},
        {"collection": "default/default/a", "number": 1},
        {"type": "model"},
        {"aliases": ("x",)},
    ):
        forge = good()
        forge.versions[0] = replace(forge.versions[0], aliases=("x",))
        forge.versions.append(replace(forge.versions[0], **{"number": 1, "aliases": (), **changes}))  # type: ignore[arg-type]
        refuse(store, forge.build(), FormatError)


# --- anything


def accepted(store: Store, data: bytes) -> bool:
    """Import it if it can be; whatever happens must be right."""
    try:
        report = store.import_bundle(BytesIO(data), project="fuzz")
    except CasstoreError as error:
        if error.exit_code not in ALLOWED:
            raise
        return False
    for found in (*report.versions, *report.skipped):
        version = store.get(found.ref)
        assert version.digest == found.digest
        for entry in version.files():
            assert entry.kind != "file" or len(entry.read()) == entry.size
    return True


def test_whatever_is_changed_under_a_right_seal_does_no_harm(store: Store, tmp_path: Path) -> None:
    """Thousands of changed bytes, blocks left out, doubled and swapped: refused, or a sound version of its own."""
    data = small(store, tmp_path)
    rng = random.Random(11)
    body = data[:-48]
    taken = refused = 0
    for _ in range(2500):
        wrong = bytearray(body)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(8, len(wrong)) if rng.random() < 0.6 else rng.randrange(8, 700)
            wrong[at] = rng.choice((wrong[at] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
        head = store.head
        if accepted(store, seal(bytes(wrong))):
            taken += 1
        else:
            refused += 1
            assert store.head == head
    assert refused > 2000
    assert taken
    assert not store.fsck(read_data=True).findings


def test_a_bundle_that_changes_while_it_is_read_is_refused(store: Store, tmp_path: Path) -> None:
    """What was checked is not what is there when it is taken: each chunk is checked again."""
    data = small(store, tmp_path)
    files = [path for path in snapshot(Path(store.url)) if "packs" in path and path.count("/") == 2]
    stream = BytesIO(data)
    for at in range(900, len(data) - 48, len(data) // 23):

        def change(phase: str, done: int, total: int, at: int = at) -> None:
            if phase == "check" and done == total:
                stream.seek(0)
                stream.write(data[:at] + bytes(byte ^ 255 for byte in data[at : at + 400]) + data[at + 400 :])

        stream.seek(0)
        stream.write(data)
        stream.seek(0)
        head = store.head
        with pytest.raises((IntegrityError, FormatError)):
            store.import_bundle(stream, progress=change)
        assert store.head == head
    after = [path for path in snapshot(Path(store.url)) if "packs" in path and path.count("/") == 2]
    assert after == files


def test_what_a_bundle_is_exchanged_for_is_checked_again(store: Store) -> None:
    """Frames that are right in themselves, with other bytes, or of other chunks."""
    first = good().build()
    liar = good()
    liar.chunks[name_of(b"one")] = b"eno"
    other = Forge()
    other.with_entries(other.file("a", b"eno"), other.file("b/c", b"two"))
    for second in (liar.build(), other.build()):
        assert len(second) == len(first)
        stream = BytesIO(first)

        def exchange(phase: str, done: int, total: int, second: bytes = second) -> None:
            if phase == "check" and done == total:
                stream.seek(0)  # noqa: B023 - called in this turn only
                stream.write(second)  # noqa: B023

        head = store.head
        with pytest.raises(IntegrityError):
            store.import_bundle(stream, progress=exchange)
        assert store.head == head
