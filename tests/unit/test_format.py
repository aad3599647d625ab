"""The bytes of docs/FORMAT.md: golden samples, so that the format cannot drift unnoticed, and hostile input.

Guards DESIGN §5 (a pack is readable without log or index) and "damage is found": whatever is read, decoding gives the
value that was written or an error of casstore, and never allocates what a size only claims.

The samples are in ``tests/golden/format.json``. If a test here fails because the format was changed on purpose, stores
of the released version must still open: see ``tests/format/`` and FORMAT §10 before you touch the samples.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import blake3
import msgspec
import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.backend import open_backend
from casstore.codec import RAW, ZSTD, ZstdCodec
from casstore.config import ChunkerParams, StoreConfig
from casstore.digest import Digest
from casstore.errors import CasstoreError, FormatError, IntegrityError, InvalidInputError, UnsupportedFormatError
from casstore.format.guard import guard, is_sound, unguard
from casstore.format.layout import decode_store, encode_store, log_key, log_seq, pack_key, pack_of
from casstore.format.nodes import (
    CHUNK_LIST,
    DIRECTORY,
    Child,
    decode_node,
    encode_child,
    encode_chunk,
    encode_entry,
    encode_node,
)
from casstore.format.packs import Footer, VersionNote, check_pack, decode_footer, encode_footer, locations
from casstore.format.segments import FEATURES, decode_body, decode_segment, encode_body, encode_segment
from casstore.log import GENESIS, Log
from casstore.model import (
    AddNode,
    AddPack,
    ChunkKind,
    Condemn,
    Drop,
    DropAlias,
    Entry,
    EntryKind,
    FrameInfo,
    PackContent,
    Pin,
    Pointer,
    Purge,
    PutVersion,
    Record,
    Restore,
    Retire,
    Segment,
    SetAlias,
    SetPolicy,
    Transaction,
    Trash,
    Unpin,
    UpdateVersion,
)
from casstore.pack import PackWriter, decode_frame, encode_frame

GOLDEN: dict[str, str] = json.loads((Path(__file__).parents[1] / "golden" / "format.json").read_text(encoding="utf-8"))


def digest(number: int) -> bytes:
    return bytes([number]) * 32


CONFIG = StoreConfig(
    digest="blake3",
    chunker=ChunkerParams("fastcdc-2020", 4096, 16384, 65536),
    frame_bytes=131072,
    pack_bytes=67108864,
    node_bytes=16384,
    planes=False,
    store_id="0123456789abcdef",
)
ENTRIES = (
    Entry("a/file.txt", size=7, chunks=((digest(1), 3), (digest(2), 4)), mode=0o644),
    Entry("b-link", EntryKind.LINK, target="../ü"),
    Entry("c-empty", EntryKind.DIRECTORY),
    Entry("d-long", size=1 << 40, tree=digest(3)),
)
REFERENCES = (
    Entry("a", EntryKind.REFERENCE, 7, pointer=Pointer("https://h/ü", '"e"', "v", Digest("blake3", digest(5)))),
    Entry(
        "b", EntryKind.REFERENCE, None, pointer=Pointer("x:y", unverified=True, volatile=True), attrs_json=b'{"k":1}'
    ),
    Entry("c", size=3, chunks=((digest(1), 3),), attrs_json=b'{"k":[null,1.5]}'),
)
NODES = {
    "node-entries": encode_node(DIRECTORY, 0, [encode_entry(entry) for entry in ENTRIES]),
    "node-references": encode_node(DIRECTORY, 0, [encode_entry(entry) for entry in REFERENCES]),
    "node-children": encode_node(DIRECTORY, 2, [encode_child(Child(digest(4), "a/file.txt", 3, 1 << 33))]),
    "node-chunks": encode_node(CHUNK_LIST, 0, [encode_chunk((digest(5), 65536)), encode_chunk((digest(6), 1))]),
    "node-chunk-children": encode_node(CHUNK_LIST, 1, [encode_child(Child(digest(7), "", 40, 2621440))]),
    "node-empty": encode_node(DIRECTORY, 0, []),
}
CONTENT = PackContent(
    ChunkKind.NODE, (FrameInfo(300, 500, 2), FrameInfo(70, 54, 1)), (digest(1), digest(2), digest(3)), (200, 300, 54)
)
NOTE = VersionNote(
    "default/default/ds", "dataset", digest(3), 554, 2, "wörds", b'{"k":1}', ("t",), 1_700_000_000_000_000, "me"
)
FOOTER = Footer(CONTENT, (2, 0, 1), (NOTE,))
RECORDS: tuple[Record, ...] = (
    AddPack(bytes(range(16)), 900, CONTENT),
    AddNode(digest(1), (digest(2), digest(9))),
    Drop((digest(8), digest(1))),
    Retire(bytes(16), (digest(2), digest(10))),
    Condemn(b"c" * 16),
    PutVersion("e/p/ds", "dataset", digest(3), 554, 2, "d", b"{}", ("t",), ("best",), True, "ds:v0", 86400, "me"),
    UpdateVersion("e/p/ds", 3, None, b'{"a":1}', ()),
    Trash("e/p/ds", 3, 1_800_000_000_000_000, ("best",), "old", "me", "user"),
    Restore("e/p/ds", 3, 17, "me"),
    Purge("e/p/ds", 3, 17, True, "me"),
    SetAlias("e/p/ds", "best", 3, -1, "me"),
    DropAlias("e/p/ds", "best", 3, "me"),
    Pin(b"p" * 16, "host:1", "draft", (digest(3),), 1_800_000_000_000_000),
    Unpin(b"p" * 16),
    SetPolicy(b'{"trash_days":7}', "me"),
)
TRANSACTIONS = (Transaction(b"t" * 16, RECORDS), Transaction(b"u" * 16, (Unpin(b"q" * 16),)))
BODY = encode_body(TRANSACTIONS)
SEGMENT = Segment(5, digest(11), 3, 2, "host:1:abcd", 1_700_000_000_000_001, TRANSACTIONS)
SEGMENT_BYTES, SEGMENT_CHAIN = encode_segment(SEGMENT, RAW, len(BODY), BODY)


def a_pack() -> bytes:
    """A small data pack: one frame that is worth compressing, one that is not."""
    codec = ZstdCodec()
    writer = PackWriter(ChunkKind.DATA)
    for chunks in ([b"a" * 1000, b"b" * 500], [bytes(range(256))]):
        writer.add(encode_frame(codec, [(blake3.blake3(chunk).digest(), chunk) for chunk in chunks]))
    sealed = writer.finish(bytes(range(16)))
    return b"".join(map(bytes, sealed.data()))


PACK = a_pack()

SAMPLES: dict[str, bytes] = {
    "format": encode_store(CONFIG),
    **NODES,
    "footer": encode_footer(FOOTER),
    "segment": SEGMENT_BYTES,
    "guard-empty": guard(b"CASTEST1", b""),
    "guard-long": guard(b"CASTEST1", bytes(range(256)) * 20),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_format_has_not_drifted(name: str) -> None:
    assert SAMPLES[name].hex() == GOLDEN[name]


def test_every_sample_is_there() -> None:
    assert set(GOLDEN) == set(SAMPLES)


def test_samples_are_read_back() -> None:
    assert decode_store(bytes.fromhex(GOLDEN["format"])) == CONFIG
    assert decode_node(bytes.fromhex(GOLDEN["node-entries"]), "x").entries == ENTRIES
    assert decode_node(bytes.fromhex(GOLDEN["node-references"]), "x").entries == REFERENCES
    assert decode_node(bytes.fromhex(GOLDEN["node-children"]), "x").children == (
        Child(digest(4), "a/file.txt", 3, 1 << 33),
    )
    assert decode_node(bytes.fromhex(GOLDEN["node-chunks"]), "x").chunks == ((digest(5), 65536), (digest(6), 1))
    assert decode_footer(bytes.fromhex(GOLDEN["footer"]), "x") == FOOTER
    raw = decode_segment(bytes.fromhex(GOLDEN["segment"]), "x")
    assert decode_body(raw.body, "x") == TRANSACTIONS
    assert (raw.seq, raw.previous, raw.base, raw.packs_since, raw.writer, raw.claimed, raw.chain) == (
        5,
        digest(11),
        3,
        2,
        "host:1:abcd",
        1_700_000_000_000_001,
        SEGMENT_CHAIN,
    )


def test_a_pack_has_not_drifted() -> None:
    """All but the compressed bytes themselves, which are zstandard's and may change with its version."""
    footer = check_pack(PACK, "x")
    assert PACK[:8] == PACK[-8:] == b"CASPACK1"
    sealed, length = struct.unpack("<32sQ", PACK[-48:-8])
    assert sealed == blake3.blake3(PACK[:-48]).digest()
    assert PACK[-48 - length :][:8] == b"CASFOOT1"
    at = 8
    for frame, (codec_number, plain) in zip(
        footer.content.frames, [(1, b"a" * 1000 + b"b" * 500), (0, bytes(range(256)))], strict=True
    ):
        codec, raw, check = struct.unpack("<B3xIQ", PACK[at : at + 16])
        payload = PACK[at + 16 : at + frame.stored]
        assert (codec, raw, check) == (codec_number, len(plain), xxhash.xxh3_64_intdigest(payload))
        assert (zstandard.decompress(payload) if codec else payload) == plain
        at += frame.stored
    assert [place.frame_offset for _, place in locations(b"", footer.content)] == [
        8,
        8,
        8 + footer.content.frames[0].stored,
    ]


def take_apart(data: bytes, magic: bytes) -> bytes:
    """The payload of a guard envelope, by the table of FORMAT §3 and without casstore's code."""
    assert data[:8] == magic
    (length,), (block,), zero = struct.unpack("<Q", data[8:16]), struct.unpack("<I", data[16:20]), data[20:24]
    assert zero == bytes(4)
    assert block == max(64, -(-length // 64))
    payload = data[64 : 64 + length]
    assert data[24:56] == blake3.blake3(payload).digest()
    assert struct.unpack("<Q", data[56:64])[0] == xxhash.xxh3_64_intdigest(data[:56])
    blocks = [payload[at : at + block].ljust(block, b"\0") for at in range(0, length, block)]
    sums = data[64 + length : 64 + length + 8 * len(blocks)]
    assert list(struct.unpack(f"<{len(blocks)}Q", sums)) == [xxhash.xxh3_64_intdigest(part) for part in blocks]
    parity = bytes(block)
    for part in blocks:
        parity = bytes(a ^ b for a, b in zip(parity, part, strict=True))
    end = 64 + length + 8 * len(blocks)
    assert data[end : end + block] == parity
    assert data[end + block :] == data[:64]
    return payload


def test_the_samples_are_what_the_document_says() -> None:
    """FORMAT §3-§7, field by field, with nothing but msgpack and the hashes."""
    segment = msgspec.msgpack.decode(take_apart(bytes.fromhex(GOLDEN["segment"]), b"CASLOG01"))
    version, features, seq, previous, base, since, writer, claimed, codec, length, body = segment
    assert [version, features, seq, previous, base, since, writer, claimed] == [
        1, [], 5, digest(11), 3, 2, "host:1:abcd", 1_700_000_000_000_001,
    ]  # fmt: skip
    assert (codec, length) == (0, len(body))
    (txid, records), second = msgspec.msgpack.decode(body)
    assert txid == b"t" * 16
    assert second == [b"u" * 16, [[49, b"q" * 16]]]
    assert [record[0] for record in records] == [1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 32, 33, 48, 49, 64]
    assert records[0] == [
        1, bytes(range(16)), 900, 1, [[300, 500, 2], [70, 54, 1]], 32, digest(1) + digest(2) + digest(3),
        [200, 300, 54],
    ]  # fmt: skip
    assert records[1] == [2, 0, [1, digest(9)]], "digests of the transaction's packs are indexes into its table"
    assert records[3] == [4, bytes(16), [1, digest(10)]]
    assert records[5] == [
        16, "e/p/ds", "dataset", digest(3), 554, 2, "d", b"{}", ["t"], ["best"], True, "ds:v0", 86400, "me",
    ]  # fmt: skip
    footer = msgspec.msgpack.decode(take_apart(bytes.fromhex(GOLDEN["footer"]), b"CASFOOT1"))
    assert footer[:4] == [1, 1, [[300, 500, 2], [70, 54, 1]], 32]
    assert footer[5:7] == [[200, 300, 54], [2, 0, 1]]
    assert footer[7][0] == [
        "default/default/ds", "dataset", digest(3), 554, 2, "wörds", b'{"k":1}', ["t"], 1_700_000_000_000_000, "me",
    ]  # fmt: skip
    node = bytes.fromhex(GOLDEN["node-entries"])
    assert (node[:1], node[4:9]) == (b"\x93", b"\xdd\x00\x00\x00\x04")
    assert msgspec.msgpack.decode(node) == [
        "D",
        0,
        [
            ["a/file.txt", 0, 7, 0o644, [[digest(1), 3], [digest(2), 4]], None, None],
            ["b-link", 1, 0, -1, [], None, "../ü"],
            ["c-empty", 2, 0, -1, [], None, None],
            ["d-long", 0, 1 << 40, -1, [], digest(3), None],
        ],
    ]
    store = json.loads(bytes.fromhex(GOLDEN["format"]))
    assert set(store) == {"magic", "version", "features", "config", "seal"}
    canonical = json.dumps(
        [store["magic"], store["version"], store["features"], store["config"]],
        sort_keys=True,
        separators=(",", ":"),
    )
    assert store["seal"] == blake3.blake3(canonical.encode()).hexdigest()


def test_keys() -> None:
    """FORMAT §2."""
    assert log_key(7) == "log/00000000000000000007"
    assert log_seq("log/00000000000000000007") == 7
    assert pack_key(bytes(range(16))) == "packs/00/000102030405060708090a0b0c0d0e0f"
    assert pack_of("packs/00/000102030405060708090a0b0c0d0e0f") == bytes(range(16))
    for key in ("packs/01/000102030405060708090a0b0c0d0e0f", "packs/00/0001", "packs/00/zz", "x", "packs/00/00 01"):
        assert pack_of(key) is None
    for key in ("log/7", "log/floor/00000000000000000007", "log/x0000000000000000007"):
        assert log_seq(key) is None


# --- newer formats


@pytest.mark.parametrize(
    "record",
    [
        SetAlias("default/default/ds", "best", True, -1, "me"),
        SetAlias("default/default/ds", "best", 1.5, -1, "me"),  # type: ignore[arg-type]
        SetAlias("default/default/ds", "\ud800", 1, -1, "me"),
        SetAlias("default/default/ds", "best", 2**70, -1, "me"),
        SetAlias("default/default/ds", "best", object(), -1, "me"),  # type: ignore[arg-type]
        SetAlias("default/default/ds", b"best", 1, -1, "me"),  # type: ignore[arg-type]
    ],
)
def test_nothing_is_written_that_cannot_be_read_back(record: SetAlias) -> None:
    """A value of the wrong type, in a segment that is in the log, would be the end of the store."""
    with pytest.raises(InvalidInputError):
        encode_body((Transaction(b"t" * 16, (record,)),))


def test_newer_versions_ask_for_an_upgrade() -> None:
    """A reader refuses what it does not understand (21) instead of guessing."""
    fields = msgspec.msgpack.decode(take_apart(SEGMENT_BYTES, b"CASLOG01"))
    for changed in ([2, *fields[1:]], [2, "anything"], [1, ["teleport"], *fields[2:]]):
        with pytest.raises(UnsupportedFormatError):
            decode_segment(guard(b"CASLOG01", msgspec.msgpack.encode(changed)), "x")
    with pytest.raises(UnsupportedFormatError):
        decode_body(msgspec.msgpack.encode([[b"t" * 16, [[99, "unknown record"]]]]), "x")
    with pytest.raises(UnsupportedFormatError):
        ZstdCodec().decode(7, b"", 0, "x")
    assert frozenset() == FEATURES


# --- damage


def test_every_flipped_bit_of_an_envelope_is_repaired_or_found() -> None:
    """FORMAT §3: one damaged block is repaired; nothing else than the payload ever comes out."""
    payload = bytes(range(251)) * 9
    whole = guard(b"CASTEST1", payload)
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        assert unguard(b"CASTEST1", bytes(broken), "x")[0] == payload
        assert not is_sound(b"CASTEST1", bytes(broken))
    assert is_sound(b"CASTEST1", whole)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_to_an_envelope_never_gives_other_bytes(data: st.DataObject) -> None:
    payload = data.draw(st.binary(max_size=600))
    whole = bytearray(guard(b"CASTEST1", payload))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for damaged in (bytes(whole), bytes(whole[:cut])):
        with suppress(FormatError, IntegrityError):
            assert unguard(b"CASTEST1", damaged, "x")[0] == payload


DECODERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "format": (decode_store, SAMPLES["format"]),
    "node": (lambda data: decode_node(data, "x").references(), NODES["node-entries"]),
    "references": (lambda data: decode_node(data, "x").references(), NODES["node-references"]),
    "children": (lambda data: decode_node(data, "x"), NODES["node-children"]),
    "chunks": (lambda data: decode_node(data, "x"), NODES["node-chunks"]),
    "footer": (lambda data: locations(b"", decode_footer(data, "x").content), SAMPLES["footer"]),
    "pack": (lambda data: check_pack(data, "x"), PACK),
    "segment": (lambda data: decode_segment(data, "x"), SEGMENT_BYTES),
    "body": (lambda data: decode_body(data, "x"), BODY),
    "frame": (
        lambda data: decode_frame(ZstdCodec(), data, 1500, "x"),
        PACK[8 : 8 + check_pack(PACK, "x").content.frames[0].stored],
    ),
}


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_bytes_raise_only_our_errors(name: str, data: st.DataObject) -> None:
    decode, whole = DECODERS[name]
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=5))
        if not broken:
            break
    with suppress(CasstoreError):
        decode(bytes(broken))


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_raise_only_our_errors(name: str, data: bytes) -> None:
    decode, _ = DECODERS[name]
    with suppress(CasstoreError):
        decode(data)


JSONISH = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.binary(max_size=40),
        st.text(max_size=5),
        st.floats(),
    ),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None)
@given(JSONISH, st.sampled_from([1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 32, 33, 48, 49, 64]))
def test_well_formed_nonsense_raises_only_our_errors(value: object, tag: int) -> None:
    """Bytes whose checksums are right, made by someone who knows the format: types and numbers are checked, too."""
    packed = msgspec.msgpack.encode(value)
    records = msgspec.msgpack.encode([[b"t" * 16, [[tag, *(value if isinstance(value, list) else [value])]]]])
    for decode, data in (
        (decode_segment, guard(b"CASLOG01", packed)),
        (decode_footer, guard(b"CASFOOT1", packed)),
        (decode_node, packed),
        (decode_body, packed),
        (decode_body, records),
    ):
        with suppress(CasstoreError):
            decode(data, "x")


@pytest.mark.parametrize(
    "record",
    [
        [1, 1 << 40, 0, 0, [], 0, b"", []],
        [1, bytes(16), 0, 0, [[1, 1, 5], [1, 1, -3]], 1, b"ab", [1, 1]],
        [1, bytes(16), 0, 0, [[1, 1, 2]], 0, b"", [1, 1]],
        [1, bytes(16), 0, 0, [[1, 1, 1]], 1, b"a", [-1]],
        [1, bytes(16), 0, 0, [[1 << 40, 1, 1]], 1, b"a", [1]],
        [1, bytes(16), 0, 9, [], 0, b"", []],
        [1, bytes(16), 0, 0, [], -1, b"", []],
        [2, -1, []],
        [2, 5, []],
        [2, "text", []],
        [3, b"bytes in place of a list"],
        [3, [1]],
        [4, "text", []],
        [4, bytes(16), [b"x", -1]],
        [],
        [[]],
    ],
)
def test_records_that_make_no_sense(record: list[object]) -> None:
    """Each was accepted, or led to an error of Python's, at some time; the first asked for a terabyte of memory."""
    with pytest.raises(FormatError):
        decode_body(msgspec.msgpack.encode([[b"t" * 16, [record]]]), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"\x93\xa1D\x00" + b"\x91" * 100_000,
        b"\x93\xa1D\x00\xdd\xff\xff\xff\xff",
        b"\x93\xa1\xff\x00\xdd\x00\x00\x00\x00",
        b"\x93\xa1D\xff\xdd\x00\x00\x00\x00",
        b"\x93\xa1X\x01\xdd\x00\x00\x00\x00",
        b"\x93\xa1D\x00\xdd\x00\x00\x00\x01\x97\xa1a\x09\x00\xff\x90\xc0\xc0",
    ],
    ids=["deep", "huge", "not-utf8", "level", "kind", "entry-kind"],
)
def test_nodes_that_make_no_sense(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_node(data, "x")


def test_a_deeply_nested_format_object() -> None:
    with pytest.raises(FormatError):
        decode_store(b'{"magic":"casstore","version":1,"features":[],"config":' + b'{"a":' * 100_000)


# --- sizes that lie


def zstd_frame(plain: int, *, declared: int) -> bytes:
    """A valid zstd frame of so many zeros whose header declares another size."""
    honest = zstandard.ZstdCompressor(write_content_size=False, write_checksum=False).compress(bytes(plain))
    assert honest[4] & 0xC0 == 0
    single_segment = bool(honest[4] & 0x20)
    rest = honest[6:] if not single_segment else honest[5:]
    return honest[:4] + bytes([0xC0 | 0x20]) + struct.pack("<Q", declared) + rest


@pytest.mark.parametrize("declared", [1 << 20, 1 << 32, 1 << 40, 1 << 62])
def test_a_size_that_lies_is_refused_without_allocating(declared: int) -> None:
    """FORMAT §5: the size in the frame must be that of the index, and one that so few bytes can hold at all."""
    codec = ZstdCodec()
    bomb = zstd_frame(100, declared=declared)
    tracemalloc.start()
    try:
        for wanted in (100, declared):
            with pytest.raises(IntegrityError):
                codec.decode(ZSTD, bomb, wanted, "x")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_the_most_that_zstd_can_do_is_not_refused() -> None:
    """The bound is zstd's own: zeros compress about 32,000 to 1, and still come back."""
    codec = ZstdCodec()
    for size in (1, 1000, 1 << 20, 64 << 20):
        number, stored = codec.encode([bytes(size)])
        assert codec.decode(number, stored, size, "x") == bytes(size)


def test_a_window_that_is_too_large_is_refused() -> None:
    """A frame that would need more memory for its window than anything casstore writes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=100 << 20)
    stored = compressor.compress(bytes(100 << 20)) + compressor.flush()
    assert stored[4] & 0x20 or stored[5] >= 0x80
    try:
        plain = ZstdCodec().decode(ZSTD, stored, 100 << 20, "x")
    except IntegrityError:
        return
    assert plain == bytes(100 << 20), "a single-segment frame has no window but its content"


def test_an_envelope_that_claims_too_much() -> None:
    header = struct.pack("<8sQI4x32s", b"CASTEST1", 1 << 37, 1 << 31, bytes(32))
    data = header + struct.pack("<Q", xxhash.xxh3_64_intdigest(header))
    with pytest.raises((IntegrityError, FormatError)):
        unguard(b"CASTEST1", data + bytes(1000) + data, "x")


def test_a_segment_body_that_claims_a_terabyte(tmp_path: Path) -> None:
    """Through `Log.read`, as a reader would meet it."""
    backend = open_backend(tmp_path / "s")
    segment = Segment(1, GENESIS, 0, 0, "w", 0, ())
    data, _ = encode_segment(segment, ZSTD, 1 << 40, zstd_frame(100, declared=1 << 40))
    backend.create(log_key(1), data)
    with pytest.raises(IntegrityError, match="cannot hold"):
        Log(backend, ZstdCodec()).read(1)
