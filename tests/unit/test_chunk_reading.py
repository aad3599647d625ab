"""Reading chunks: no more than is needed, every digest checked, damage elsewhere harmless (DESIGN §7 "Read")."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from casstore import Artifact, ChunkerParams, Store, StoreConfig, Version
from casstore.backend import Buffer
from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap import CountingBackend
from casstore.chunks import ChunkReader
from casstore.codec import RAW, ZSTD, ZstdCodec
from casstore.digest import hash_function
from casstore.errors import IntegrityError
from casstore.format.layout import pack_key
from casstore.format.packs import FRAME_HEADER, locations
from casstore.model import ChunkKind, Entry, EntryKind, Location, Pointer
from casstore.pack import PackWriter, encode_frame

BLAKE3 = hash_function("blake3")
PACK = b"p" * 16
NOISE = random.Random(5).randbytes(1 << 18)
TEXT = b"".join(b"line %d of a text that goes on and on\n" % (n * n) for n in range(20_000))


class Spy(ZstdCodec):
    """Notes what it decodes: how much was asked for, None for all."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[int | None] = []
        self.into = 0
        """how often it decoded to where the bytes are wanted"""

    def decode(self, codec: int, data: Buffer, length: int, what: str) -> bytes:
        self.decoded.append(None)
        return super().decode(codec, data, length, what)

    def decode_start(self, codec: int, data: Buffer, length: int, upto: int, what: str) -> bytes:
        self.decoded.append(upto)
        return super().decode_start(codec, data, length, upto, what)

    def decode_into(self, codec: int, data: Buffer, target: memoryview, what: str) -> None:
        self.into += 1
        super().decode_into(codec, data, target, what)


class World:
    """One pack, and a reader of it."""

    def __init__(self, frames: Sequence[Sequence[bytes]], encoder: ZstdCodec | None = None) -> None:
        writer = PackWriter(ChunkKind.DATA)
        for chunks in frames:
            writer.add(encode_frame(encoder or ZstdCodec(), [(BLAKE3(chunk), chunk) for chunk in chunks]))
        sealed = writer.finish(PACK)
        self.data = bytearray(b"".join(sealed.data()))
        self.places = dict(locations(PACK, sealed.record.content))
        self.codec = Spy()
        self.open()

    def open(self) -> None:
        """Forget what was read, and see what the bytes are now."""
        inner = MemoryBackend()
        inner.create(pack_key(PACK), bytes(self.data))
        self.backend = CountingBackend(inner)
        self.codec.decoded.clear()
        self.reader = ChunkReader(
            self.backend,
            self.codec,
            BLAKE3,
            lambda digests: [self.places.get(digest) for digest in digests],
            lambda: None,
            no_executor,
        )

    def place(self, chunk: bytes) -> Location:
        return self.places[BLAKE3(chunk)]

    def read(self, *chunks: bytes) -> list[bytes]:
        fetched = self.reader.fetch([BLAKE3(chunk) for chunk in chunks])
        return [fetched.get(BLAKE3(chunk)) for chunk in chunks]

    def flip(self, position: int) -> None:
        self.data[position] ^= 1
        self.open()


def no_executor() -> Executor:
    raise AssertionError("other threads were asked for")


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_of_a_frame_stored_as_it_is_only_the_chunks_are_read() -> None:
    chunks = cut(NOISE, 32_768)
    world = World([chunks])
    assert world.place(chunks[0]).frame_stored == len(NOISE) + FRAME_HEADER.size
    assert world.read(chunks[5]) == [chunks[5]]
    assert world.backend.moved["read"] == 32_768
    assert world.read(chunks[2], chunks[4]) == [chunks[2], chunks[4]]
    assert world.backend.moved["read"] == 32_768 + 3 * 32_768
    assert world.codec.decoded == []


def test_of_a_compressed_frame_no_more_is_decoded_than_is_needed_and_the_second_time_all() -> None:
    chunks = cut(TEXT[:262_144], 32_768)
    world = World([chunks])
    assert world.read(chunks[2], chunks[1]) == [chunks[2], chunks[1]]
    assert world.codec.decoded == [3 * 32_768]
    assert world.read(chunks[0]) == [chunks[0]]
    assert (world.codec.decoded, world.backend.calls["read"]) == ([3 * 32_768], 1)
    assert world.read(chunks[3]) == [chunks[3]]
    assert world.codec.decoded == [3 * 32_768, None]
    assert world.read(*chunks) == chunks
    assert (world.codec.decoded, world.backend.calls["read"]) == ([3 * 32_768, None], 2)


def test_what_is_needed_to_the_end_is_decoded_with_all_checks() -> None:
    chunks = cut(TEXT[:262_144], 32_768)
    world = World([chunks])
    assert world.read(chunks[7]) == [chunks[7]]
    assert world.codec.decoded == [None]


@pytest.mark.parametrize("data", [NOISE, TEXT[:262_144]], ids=["as it is", "compressed"])
def test_a_flip_anywhere_costs_no_more_than_it_must_and_never_gives_wrong_bytes(data: bytes) -> None:
    chunks = cut(data, 32_768)
    world = World([chunks])
    place = world.place(chunks[1])
    start, end = place.frame_offset, place.frame_offset + place.frame_stored
    unread = 0
    for position in (
        start,
        start + 5,
        start + 12,
        start + 16,
        start + 17,
        *range(start + 20, end, (end - start) // 23),
    ):
        world.flip(position)
        fetched = world.reader.fetch([BLAKE3(chunks[1])])
        if fetched.found:
            assert fetched.get(BLAKE3(chunks[1])) == chunks[1]
        else:
            unread += 1
            with pytest.raises(IntegrityError, match=rf"frame at {start} of pack {PACK.hex()}"):
                fetched.get(BLAKE3(chunks[1]))
        world.flip(position)
    assert unread >= 2
    if data is NOISE:
        world.flip(start + FRAME_HEADER.size + place.offset)
        with pytest.raises(IntegrityError, match="is damaged"):
            world.read(chunks[1])
        world.flip(start + FRAME_HEADER.size + place.offset)
        world.flip(start + FRAME_HEADER.size + place.offset + place.length)  # the next chunk
        assert world.read(chunks[1]) == [chunks[1]]
        with pytest.raises(IntegrityError, match="is damaged"):
            world.read(chunks[2])


def test_a_chunk_of_other_bytes_in_a_sound_frame_is_told_as_such() -> None:
    for data in (NOISE, TEXT[:262_144]):
        chunks = cut(data, 32_768)
        world = World([chunks])
        wrong = BLAKE3(b"something else")
        world.places[wrong] = world.place(chunks[0])
        with pytest.raises(IntegrityError, match="has other bytes than its name says") as caught:
            world.reader.fetch([wrong]).get(wrong)
        assert caught.value.digest == wrong.hex()


def test_a_compressed_frame_as_long_as_a_plain_one_is_read_all_the_same() -> None:
    """The length alone makes a frame look stored as it is; the digest tells."""

    class Compresses(ZstdCodec):
        def encode(self, parts: Sequence[Buffer], plain: Buffer | None = None) -> tuple[int, bytes]:
            return ZSTD, zstandard.ZstdCompressor(level=3, write_checksum=False).compress(b"".join(parts))

    plain = next(
        plain
        for zeros in range(200)
        for plain in [bytes(zeros) + NOISE[: 300 - zeros]]
        if len(Compresses().encode([plain])[1]) == len(plain)
    )
    world = World([[plain[:100], plain[100:]]], Compresses())
    assert world.place(plain[:100]).frame_stored == world.place(plain[:100]).frame_raw + FRAME_HEADER.size
    assert world.read(plain[100:], plain[:100]) == [plain[100:], plain[:100]]


@pytest.mark.parametrize("data", [NOISE, TEXT[:262_144]], ids=["as it is", "compressed"])
def test_views_keep_no_more_than_twice_what_was_wanted(data: bytes) -> None:
    chunks = cut(data, 16_384)
    for wanted in ([3], [0, 15], list(range(16)), [2, 9, 11]):
        world = World([chunks])
        views = world.reader.fetch_views([BLAKE3(chunks[n]) for n in wanted], spread=False)
        assert [bytes(views.get(BLAKE3(chunks[n]))) for n in wanted] == [chunks[n] for n in wanted]
        kept = {id(v.obj): len(v.obj) for v in views.found.values() if isinstance(v, memoryview)}  # type: ignore[arg-type]
        assert sum(kept.values()) <= 2 * 16_384 * len(wanted)
        assert len(wanted) < 16 or len(kept) == 1


def test_a_worker_reads_alone_and_others_spread() -> None:
    far = [NOISE[:70_000], NOISE[70_000:140_000], NOISE[140_000:210_000]]
    world = World([[chunk] for chunk in far])
    ends = [BLAKE3(far[0]), BLAKE3(far[2])]  # too far apart to be read at once
    assert len(world.reader.fetch_views(ends, spread=False).found) == 2
    assert world.backend.calls["read"] == 2
    with pytest.raises(AssertionError, match="other threads"):
        world.reader.fetch_views(ends)


def test_the_start_of_a_frame_is_what_it_begins_with_or_an_error_of_ours() -> None:
    codec = ZstdCodec(planes=True)
    floats = b"".join(int(n * 7919 % 4096 + 2**30).to_bytes(4, "little") for n in range(65_536))
    for data in (NOISE, TEXT[:262_144], floats, b"x"):
        number, payload = codec.encode([data])
        stored = bytes(payload)
        for upto in (0, 1, len(data) // 3, len(data) - 1, len(data)):
            start = codec.decode_start(number, memoryview(stored), len(data), upto, "it")
            assert len(start) >= upto
            assert start == data[: len(start)]
        for damaged in (stored[: len(stored) // 2], b"", bytes(len(stored)), stored[:-1] + b"\xff"):
            try:
                codec.decode_start(number, damaged, len(data), len(data), "it")
            except IntegrityError:
                pass
            else:
                assert number in {RAW, ZSTD}
    with pytest.raises(IntegrityError):
        codec.decode_start(ZSTD, b"no frame of zstd", 100, 10, "it")


# --- through the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    config = StoreConfig(chunker=ChunkerParams.around(4096), frame_bytes=65_536)
    with Store.create(tmp_path / "store", config=config) as opened:
        yield opened


def log(store: Store, files: dict[str, bytes]) -> Version:
    draft = Artifact("ds")
    for path, data in files.items():
        draft.add_bytes(data, path)
    return store.log_artifact(draft)


def test_a_hundred_bytes_of_a_large_file_cost_one_chunk(store: Store) -> None:
    version = log(store, {"big": NOISE * 4})
    reader: Any = store._engine.reader
    version["big"].read(0, 100)
    counting = reader._backend = CountingBackend(reader._backend)
    for offset in (0, 77_777, len(NOISE), 4 * len(NOISE) - 100):
        counting.reset()
        assert version["big"].read(offset, 100) == (NOISE * 4)[offset : offset + 100]
        assert counting.moved["read"] <= 2 * 16_384  # one chunk, or two where it spans their border


def test_an_open_file_reads_little_where_it_is_sent_and_more_as_it_goes_on(store: Store) -> None:
    data = NOISE * 4
    version = log(store, {"big": data})
    reader: Any = store._engine.reader
    with version["big"].open() as file:
        file.read(1)
        counting = reader._backend = CountingBackend(reader._backend)
        for offset in (300_001, 77_777, 900_000):
            counting.reset()
            file.seek(offset)
            assert file.read(100) == data[offset : offset + 100]
            assert counting.moved["read"] <= 2 * 16_384 + 4096
        counting.reset()
        file.seek(0)
        assert file.read() == data
        file.seek(5)
        parts = list(iter(lambda: file.read(1000), b""))
    assert b"".join(parts) == data[5:]
    assert counting.calls["read"] < 60


def test_an_entry_bound_to_a_reader_is_the_same_entry(store: Store) -> None:
    reader = log(store, {"a": b"1"})["a"].reader
    assert reader is not None
    pointer = Pointer("s3://bucket/key")
    entry = Entry("a", EntryKind.LINK, 5, ((b"d", 5),), b"tree", 0o640, "target", pointer, b'{"a":1}')
    assert entry.bound(reader) == entry
    assert entry.bound(reader).reader is reader


# --- to where they are wanted

NUMBERS = b"".join((n * n % 977).to_bytes(4, "little") for n in range(1 << 14))
FRAMES = [
    cut(TEXT[:90_000], 9_000),
    cut(NOISE[:60_000], 7_000),
    cut(NUMBERS, 5_000),
    cut(TEXT[200_000:260_000], 11_000),
    cut(NOISE[70_000:80_000], 10_000),
]
CHUNKS = [chunk for frame in FRAMES for chunk in frame]


class Into(World):
    """As stores write it: with planes."""

    def __init__(self, frames: Sequence[Sequence[bytes]] = FRAMES) -> None:
        super().__init__(frames, ZstdCodec(planes=True))

    def fetch(self, chunks: Sequence[bytes]) -> bytes:
        target = bytearray(b"?" * sum(map(len, chunks)))
        with memoryview(target) as view:
            self.reader.fetch_into([(BLAKE3(chunk), len(chunk)) for chunk in chunks], view)
        return bytes(target)


def test_a_run_of_whole_frames_is_decoded_to_its_place() -> None:
    world = Into()
    assert world.fetch(CHUNKS) == b"".join(CHUNKS)
    assert (world.codec.into, world.codec.decoded) == (3, [])  # two are stored as they are
    reads = world.backend.calls["read"]
    assert world.fetch(FRAMES[0][:-1]) == b"".join(FRAMES[0][:-1])
    assert (world.codec.into, world.backend.calls["read"]) == (3, reads + 1)  # not all of it is wanted


def test_a_length_that_lies_lets_nothing_be_written_over_what_is_right() -> None:
    frames = [cut(TEXT[:16_000], 8_000), cut(TEXT[90_000:114_000], 8_000)]
    world = Into(frames)
    [[_, right], [first, _, last]] = frames
    # As if the first had the second's bytes too, and so these two were all of their frame.
    world.places[BLAKE3(first)] = replace(world.place(first), length=16_000)
    with pytest.raises(IntegrityError):
        world.fetch([first, right, last])


def test_any_chunks_in_any_order_come_to_their_places() -> None:
    choice = random.Random(9)
    world = Into()
    for _ in range(60):
        start = choice.randrange(len(CHUNKS))
        wanted = CHUNKS[start : start + choice.randrange(30)]
        for _ in range(choice.randrange(4)):
            wanted.insert(choice.randrange(len(wanted) + 1), choice.choice(CHUNKS))
        assert world.fetch(wanted) == b"".join(wanted)


def test_a_flip_gives_the_right_bytes_or_an_error() -> None:
    world = Into()
    refused = 0
    for position in range(8, max(p.frame_offset + p.frame_stored for p in world.places.values()), 1999):
        world.flip(position)
        try:
            assert world.fetch(CHUNKS) == b"".join(CHUNKS)
        except IntegrityError:
            refused += 1
        world.flip(position)
    assert refused > 30


def test_an_index_that_lies_gives_the_right_bytes_or_an_error() -> None:
    """Nothing is decoded over what is right already: not even if places overlap and still add up to a frame."""
    choice = random.Random(4)
    world = Into()
    honest = dict(world.places)
    refused = 0
    for _ in range(400):
        world.places = dict(honest)
        for _ in range(choice.choice((1, 2, 9))):
            one, other = choice.sample(list(honest), 2)
            place = honest[other]
            lie = choice.choice(("place", "offset", "length", "start", "swap"))
            if lie == "place":
                world.places[one] = place
            elif lie == "swap":
                world.places[one], world.places[other] = honest[other], honest[one]
            elif lie == "offset":
                world.places[one] = replace(honest[one], offset=choice.choice((0, place.offset)))
            elif lie == "start":
                world.places[one] = replace(honest[one], offset=max(0, honest[one].offset - 1))
            else:
                world.places[one] = replace(honest[one], length=place.length)
        world.open()
        try:
            assert world.fetch(CHUNKS) == b"".join(CHUNKS)
        except IntegrityError:
            refused += 1
    assert refused > 300


def test_a_chunk_that_is_looked_for_with_another_length_is_refused() -> None:
    world = Into()
    for lie in (-1, 1):
        wanted = [(BLAKE3(chunk), len(chunk) + (lie if n == 12 else 0)) for n, chunk in enumerate(CHUNKS)]
        target = bytearray(sum(length for _, length in wanted))
        with memoryview(target) as view, pytest.raises(IntegrityError, match="bytes, not"):
            world.reader.fetch_into(wanted, view)
