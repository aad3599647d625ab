"""How runs of bytes are stored (FORMAT §5): what goes in comes out, lies are refused before they cost memory, and
arrays of numbers are stored smaller than zstd alone would, without harm to what is none."""

from __future__ import annotations

import array
import json
import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from casstore import Artifact, Store, StoreConfig, planes
from casstore.codec import PLANES, RAW, ZSTD, Buffer, ZstdCodec
from casstore.errors import IntegrityError, UnsupportedFormatError
from casstore.format.layout import decode_store, encode_store
from casstore.format.packs import check_pack
from casstore.pack import Frame, decode_frame, encode_frame

CODEC = ZstdCodec(planes=True)
PLAIN = ZstdCodec()
KIB = 1024


def normal(kind: str, size: int, seed: int = 1) -> bytes:
    """Numbers around zero, as weights are."""
    source = random.Random(seed)
    width = struct.calcsize(kind)
    few = [source.gauss(0, 0.02) for _ in range(4096)]
    data = bytearray(array.array(kind, source.choices(few, k=size // width)).tobytes())
    for low in range(width - 2):  # noise in each of them, as if all had been drawn
        data[low::width] = source.randbytes(size // width)
    return bytes(data)


def truncated(data: bytes) -> bytes:
    """float32 with the precision of bfloat16."""
    cut = bytearray(data)
    cut[0::4] = cut[1::4] = bytes(len(data) // 4)
    return bytes(cut)


def integers(size: int) -> bytes:
    source = random.Random(2)
    return array.array("q", (source.randrange(50_000) for _ in range(size // 8))).tobytes()


def records(size: int) -> bytes:
    """Each of them comes again and again: their bytes have more order in planes, and the records more than that."""
    source = random.Random(8)
    known = [source.randbytes(4) + bytes(4) for _ in range(300)]
    return b"".join(source.choices(known, k=size // 8))


def words(size: int) -> bytes:
    source = random.Random(3)
    vocabulary = [source.randbytes(3).hex() for _ in range(500)]
    return " ".join(source.choices(vocabulary, k=size // 6)).encode()[:size]


NUMBERS: dict[str, tuple[int, bytes]] = {
    "float32": (4, normal("f", 128 * KIB)),
    "bfloat16": (2, bytes(b for i, b in enumerate(normal("f", 256 * KIB)) if i % 4 > 1)),
    "float32 truncated": (4, truncated(normal("f", 128 * KIB))),
    "float64": (8, normal("d", 256 * KIB)),
    "int64": (8, integers(128 * KIB)),
}
OTHERS = {
    "table of few records": records(128 * KIB),
    "text": words(128 * KIB),
    "noise": random.Random(4).randbytes(128 * KIB),
    "zeros": bytes(128 * KIB),
    "tiled float32": normal("f", 40_000) * 4,
    "text with a table": words(120 * KIB) + integers(16 * KIB) + words(120 * KIB),
    "short": normal("f", 1024),
    "nothing": b"",
}


# --- planes


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(planes.WIDTHS))
@example(bytes(range(256)) * 150, 4)  # large enough to give up the GIL
def test_planes_are_every_nth_byte_and_give_the_bytes_back(data: bytes, width: int) -> None:
    split = planes.split(data, width)
    assert split == b"".join(data[plane::width] for plane in range(width))
    found: list[bytes] = []
    for size in planes.sizes(len(data), width):
        found.append(bytes(split[:size]))
        split = split[size:]
    assert found == [data[plane::width] for plane in range(width)]
    assert planes.join(found) == planes.join([memoryview(plane) for plane in found]) == data


@settings(deadline=None)
@given(st.binary(max_size=2000), st.sampled_from(planes.WIDTHS))
@example(bytes(16 * KIB), 8)
@example(NUMBERS["float32"][1][: 16 * KIB], 2)
def test_the_extension_does_what_the_python_does(data: bytes, width: int) -> None:
    assert planes.COMPILED, "the extension is not built: scripts/setup"
    assert planes.split(data, width) == planes._split(data, width)
    assert planes.split(memoryview(data)[1:], width) == planes._split(data[1:], width)
    parts = [data[plane::width] for plane in range(width)]
    assert planes.split(data, width, 20) == planes._split(data, width, 20) == bytes(20) + planes.split(data, width)
    assert planes.join(parts) == planes._join(parts)
    assert planes.matches(parts, data)
    assert planes._matches(parts, data)
    for join_into in (planes.join_into, planes._join_into):
        target = bytearray(len(data))
        join_into(parts, memoryview(target))
        assert target == data
    sample = data[: len(data) & ~7]
    assert planes.estimate(sample) == planes._estimate(sample)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=9000), st.sampled_from(planes.WIDTHS), st.data())
def test_planes_match_no_other_bytes(data: bytes, width: int, draw: st.DataObject) -> None:
    parts = [data[plane::width] for plane in range(width)]
    wrong = bytearray(data)
    wrong[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    for matches in (planes.matches, planes._matches):
        assert matches(parts, memoryview(data))
        assert not matches(parts, wrong)
        assert not matches(parts, data + b"1")
        assert not matches(parts, data[:-1])


Split = Callable[[Any, Any], object]


@pytest.mark.parametrize("module", ["split, join, join_into, estimate", "_split, _join, _join_into, _estimate"])
def test_what_are_no_planes_is_refused(module: str) -> None:
    split, join, join_into, estimate = (getattr(planes, name) for name in module.split(", "))
    for size in (0, 3, 5, 4096):
        with pytest.raises(ValueError, match=f"planes of 4 bytes do not fill {size}"):
            join_into([b"12", b"34"], memoryview(bytearray(size)))
    with pytest.raises(ValueError, match="of no bytes"):
        join_into([b"12", b""], memoryview(bytearray(2)))
    for width in (-1, 0, 1, 3, 16):
        with pytest.raises(ValueError, match="planes are 2, 4 or 8"):
            split(b"12345678", width)
    for room in (-1, 4097):
        with pytest.raises(ValueError, match="room is for 0 to 4096"):
            getattr(planes, module.split(", ", maxsplit=1)[0])(b"12345678", 4, room)
    for parts in ([], [b"1"], [b"1"] * 3, [b"1"] * 16):
        with pytest.raises(ValueError, match="planes are 2, 4 or 8"):
            join(parts)
    for parts in ([b"", b"1"], [b"12", b""], [b"1", b"1", b"", b"1"], [b"123", b"1", b"1", b"1"]):
        with pytest.raises(ValueError, match="of no bytes"):
            join(parts)
    for sample in (b"1", bytes(16 * KIB + 8)):
        with pytest.raises(ValueError, match="multiple of 8"):
            estimate(sample)


# --- what is chosen


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("phase", [0, 1, 3])
def test_arrays_of_numbers_are_smaller_as_planes(name: str, phase: int) -> None:
    """Wherever a chunk begins: chunks are cut anywhere."""
    width, data = NUMBERS[name]
    data = data[phase:]
    number, stored = CODEC.encode([data[:1000], data[1000:]])
    assert number == PLANES
    assert stored[0] == width
    assert len(stored) < len(PLAIN.encode([data])[1]) * 61 / 64
    assert CODEC.decode(number, stored, len(data), "x") == data
    assert PLAIN.decode(number, stored, len(data), "x") == data, "whoever writes none reads them all the same"


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_array_is_stored_as_without_planes(name: str) -> None:
    """Among them a long repetition of numbers, which planes would hide, and a table in the middle of text."""
    data = OTHERS[name]
    number, stored = CODEC.encode([data])
    assert (number, stored) == PLAIN.encode([data])
    assert number in {RAW, ZSTD}
    assert CODEC.decode(number, stored, len(data), "x") == data


def test_without_the_feature_no_planes_are_written() -> None:
    assert {PLAIN.encode([data])[0] for _, data in NUMBERS.values()} <= {RAW, ZSTD}


def test_noise_is_stored_as_it_is() -> None:
    data = OTHERS["noise"]
    assert CODEC.encode([memoryview(data)]) == (RAW, data)


def test_noise_that_repeats_is_not_taken_for_noise() -> None:
    data = random.Random(5).randbytes(50_000) * 4
    number, stored = CODEC.encode([data])
    assert number == ZSTD
    assert len(stored) < 51_000


def test_order_among_noise_is_not_taken_for_noise() -> None:
    noise = random.Random(6).randbytes(200 * KIB)
    data = noise[: 100 * KIB] + words(56 * KIB) + noise[100 * KIB :]
    number, stored = CODEC.encode([data])
    assert number == ZSTD
    assert len(stored) < 240 * KIB


def cut(data: bytes, size: int) -> list[Buffer]:
    view = memoryview(data)
    return [view[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("part", [4 * KIB, 32 * KIB], ids=["small files", "large files"])
@pytest.mark.parametrize("size", [128, 130, 320, 384, 386], ids=lambda size: f"{size}K")
def test_what_repeats_is_found_from_one_end_of_a_frame_to_the_other(size: int, part: int) -> None:
    data = random.Random(7).randbytes(size * KIB // 2) * 2
    number, stored = CODEC.encode(cut(data, part))
    assert number == ZSTD
    assert len(stored) < len(data) * 0.51
    assert zstandard.get_frame_parameters(stored).window_size >= len(data)
    assert CODEC.decode(number, stored, len(data), "x") == data
    assert CODEC.decode_start(number, stored, len(data), len(data) - 9, "x")[: len(data) - 9] == data[:-9]


@pytest.mark.parametrize(("part", "most"), [(4 * KIB, 1.10), (32 * KIB, 1.03)], ids=["small files", "large files"])
def test_less_time_than_level_3_costs_few_bytes(part: int, most: float) -> None:
    source = b"".join(path.read_bytes() for path in sorted(Path(json.__file__).parent.parent.glob("[a-d]*.py")))
    frame = source[: 300 * KIB]
    assert len(frame) == 300 * KIB
    number, stored = PLAIN.encode(cut(frame, part))
    assert number == ZSTD
    assert len(stored) < len(zstandard.ZstdCompressor(level=3).compress(frame)) * most


def needed(stored: bytes, length: int, upto: int) -> int:
    """How many of the stored bytes give a start of so many."""
    low, high = 0, len(stored)
    while low < high:
        half = (low + high) // 2
        if len(CODEC.decode_start(ZSTD, stored[:half], length, upto, "x")) < upto:
            low = half + 1
        else:
            high = half
    return low


def test_a_chunk_of_a_large_file_needs_what_is_stored_of_it_and_before_it_and_no_more() -> None:
    frame = words(290 * KIB)
    sizes = [70 * KIB + 1, 5 * KIB, 44 * KIB, 50 * KIB, 100 * KIB]
    sizes.append(len(frame) - sum(sizes))  # too little for a block
    parts = [frame[at - size : at] for at, size in zip(accumulate(sizes), sizes, strict=True)]
    number, stored = PLAIN.encode(parts)
    stored = bytes(stored)
    assert number == ZSTD
    assert PLAIN.encode(parts, memoryview(frame)) == (number, stored)
    assert zstandard.ZstdDecompressor().decompress(stored) == frame, "any reader reads it"
    assert zstandard.frame_content_size(stored) == len(frame)
    for upto in (sizes[0], sum(sizes[:3]), sum(sizes[:4])):
        end = needed(stored, len(frame), upto)
        assert abs(end / len(stored) - upto / len(frame)) < 0.02
        # What is behind it is not even looked at.
        damaged = stored[: end + 3] + b"\xff" * (len(stored) - end - 3)
        assert CODEC.decode_start(ZSTD, damaged, len(frame), upto, "x") == frame[:upto]
        with pytest.raises(IntegrityError):
            CODEC.decode_start(ZSTD, damaged, len(frame), len(frame), "x")
    # Blocks are not made too small: that would cost bytes.
    for upto, block in ((sum(sizes[:2]), 3), (sum(sizes[:5]), 6)):
        end = needed(stored, len(frame), upto)
        assert end == needed(stored, len(frame), sum(sizes[:block]))


def test_frames_without_large_chunks_are_in_blocks_of_zstd() -> None:
    """What is read alone of them is small, and each block has tables of its own."""
    frame = words(300 * KIB)
    for part in (4 * KIB, 16 * KIB):
        number, stored = PLAIN.encode(cut(frame, part))
        stored = bytes(stored)
        assert number == ZSTD
        assert needed(stored, len(frame), 1) == needed(stored, len(frame), 128 * KIB)


@pytest.mark.parametrize("level", [1, 9])
def test_a_level_that_was_asked_for_is_that_of_zstd(level: int) -> None:
    frame = words(300 * KIB)
    its = zstandard.ZstdCompressor(level=level, write_checksum=False).compress(frame)
    for part in (4 * KIB, 32 * KIB):
        assert ZstdCodec(level).encode(cut(frame, part)) == (ZSTD, its)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_goes_in_comes_out(data: st.DataObject) -> None:
    """Runs of all kinds, cut anywhere, one after another: phases that change within a frame."""
    kinds = [value for _, value in NUMBERS.values()] + list(OTHERS.values())
    parts: list[Buffer] = []
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(kinds))
        start = data.draw(st.integers(0, 9))
        parts.append(memoryview(kind)[start : start + data.draw(st.integers(0, 20_000))])
    plain = b"".join(parts)
    number, stored = CODEC.encode(parts)
    assert CODEC.decode(number, stored, len(plain), "x") == plain
    assert len(stored) <= len(plain)


# --- lies


def planes_of(width: int, stored: Sequence[bytes], sizes: Sequence[int] | None = None) -> bytes:
    return struct.pack(f"<B3x{width}I", width, *(sizes or map(len, stored))) + b"".join(stored)


def squeezed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=False).compress(data)


def declaring(size: int) -> bytes:
    """A zstd frame of 100 zeros whose header declares another size."""
    honest = squeezed(bytes(100))
    assert honest[4] == 0x20, "one byte of content size"
    return honest[:4] + bytes([0xE0]) + struct.pack("<Q", size) + honest[6:]


PLANE = bytes(100)
LIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 0),
    "nothing, but a length": (b"", 400),
    "width 0": (b"\0\0\0\0", 0),
    "width 1": (planes_of(1, [PLANE]), 100),
    "width 3": (planes_of(3, [PLANE] * 3), 300),
    "width 16": (planes_of(16, [PLANE] * 16), 1600),
    "cut in the sizes": (planes_of(4, [PLANE] * 4)[:15], 400),
    "bytes that are not zero": (b"\4\0\1\0" + planes_of(4, [PLANE] * 4)[4:], 400),
    "a byte too many": (planes_of(4, [PLANE] * 4) + b"x", 400),
    "a byte too few": (planes_of(4, [PLANE] * 4)[:-1], 400),
    "a size too large": (planes_of(4, [PLANE] * 4, [100, 100, 100, 0xFFFFFFFF]), 400),
    "a plane of too many bytes": (planes_of(2, [PLANE + b"x", PLANE[1:]]), 200),
    "a plane of more bytes than it gives": (planes_of(2, [PLANE, squeezed(random.Random(7).randbytes(100))]), 200),
    "raw planes of another length": (planes_of(4, [PLANE] * 4), 404),
    "a plane that is no zstd": (planes_of(2, [PLANE, b"x" * 50]), 200),
    "an empty plane": (planes_of(2, [PLANE, b""]), 200),
    "a plane that declares less": (planes_of(2, [PLANE, squeezed(bytes(99))]), 200),
    "a plane that declares more": (planes_of(2, [PLANE, squeezed(bytes(101))]), 200),
    "a plane that declares far more": (planes_of(2, [PLANE, declaring(1 << 28)]), 200),
    "a plane that gives less than it declares": (planes_of(2, [bytes(1000), declaring(1000)]), 2000),
    "planes of terabytes": (planes_of(8, [declaring(1 << 40)] * 8), 1 << 43),
    "planes that are too short for what they declare": (planes_of(8, [declaring(1 << 29)] * 8), 1 << 32),
}


@pytest.mark.parametrize("lie", LIES)
def test_planes_that_lie_are_refused_before_they_cost_memory(lie: str) -> None:
    stored, length = LIES[lie]
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            CODEC.decode(PLANES, stored, length, "x")
        with pytest.raises(IntegrityError):
            CODEC.decode_into(PLANES, stored, memoryview(bytearray(1000)), "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1 << 32, 1 << 40])
def test_the_start_of_what_lies_costs_no_memory_either(size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            CODEC.decode_start(ZSTD, declaring(size), size, size, "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_start_of_what_is_larger_than_any_window_is_read() -> None:
    """The whole is, and a stream of it would be refused."""
    plain = bytes(9 << 20)
    stored = zstandard.ZstdCompressor(level=22, write_checksum=False).compress(plain)
    assert CODEC.decode(ZSTD, stored, len(plain), "x") == plain
    assert CODEC.decode_start(ZSTD, memoryview(stored), len(plain), 100, "x")[:100] == bytes(100)


def test_the_lies_are_lies_only_in_what_they_say() -> None:
    """The same, honest, is read: so it is the lie that is refused."""
    assert CODEC.decode(PLANES, planes_of(4, [PLANE] * 4), 400, "x") == bytes(400)
    assert CODEC.decode(PLANES, planes_of(2, [PLANE, squeezed(PLANE)]), 200, "x") == bytes(200)
    assert CODEC.decode(PLANES, planes_of(2, [b"13", b"2"]), 3, "x") == b"123"


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_planes_never_raise_anything_else(data: st.DataObject) -> None:
    whole = CODEC.encode([NUMBERS["float32 truncated"][1][: 8 * KIB]])[1]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(damaged)))
    for stored in (bytes(damaged), bytes(damaged[:end])):
        try:
            plain = CODEC.decode(PLANES, stored, 8 * KIB, "x")
        except IntegrityError:
            continue
        assert len(plain) == 8 * KIB


def test_a_codec_nobody_knows_asks_for_an_upgrade() -> None:
    with pytest.raises(UnsupportedFormatError):
        CODEC.decode(3, b"", 0, "x")


# --- frames


@pytest.mark.parametrize("data", [*(data for _, data in NUMBERS.values()), *OTHERS.values()])
def test_it_is_told_whether_a_stored_form_gives_some_bytes(data: bytes) -> None:
    number, stored = CODEC.encode([data])
    assert CODEC.gives(number, stored, data, "x")
    if data:
        assert CODEC.gives(number, stored, memoryview(bytearray(data)), "x")
        for at in (0, len(data) // 2, len(data) - 1):
            wrong = bytearray(data)
            wrong[at] ^= 128
            assert not CODEC.gives(number, stored, wrong, "x")


def test_a_frame_from_memory_that_its_chunks_are_in_is_the_same_and_keeps_none_of_it() -> None:
    for data in (NUMBERS["float32"][1], OTHERS["text"], OTHERS["noise"]):
        room = bytearray(data)
        view = memoryview(room)
        chunks: list[tuple[bytes, Buffer]] = [(b"a", view[:5000]), (b"b", view[5000:])]
        frame = encode_frame(CODEC, chunks, view)
        room[:] = bytes(len(room))
        assert frame.stored == encode_frame(CODEC, [(b"a", data[:5000]), (b"b", data[5000:])]).stored
        assert decode_frame(CODEC, frame.stored, len(data), "x") == data
        with pytest.raises(IntegrityError, match="did not decode"):
            encode_frame(CODEC, chunks, view[:-1])


class Forgetful(ZstdCodec):
    """Decodes one byte to another than it was."""

    def decode(self, codec: int, data: Buffer, length: int, what: str) -> bytes:
        return flipped(super().decode(codec, data, length, what))

    def _planes_in(self, data: memoryview, length: int, what: str) -> list[Buffer]:
        first, *others = super()._planes_in(data, length, what)
        return [flipped(first), *others]


def flipped(data: Buffer) -> bytes:
    wrong = bytearray(data)
    wrong[len(wrong) * 3 // 4] ^= 1
    return bytes(wrong)


@pytest.mark.parametrize(
    "data", [NUMBERS["float32"][1], OTHERS["text"], OTHERS["noise"]], ids=["planes", "zstd", "raw"]
)
def test_a_frame_that_does_not_decode_to_what_went_in_is_never_written(data: bytes) -> None:
    chunks: list[tuple[bytes, Buffer]] = [(b"a", data[:5000]), (b"b", memoryview(data)[5000:])]
    frame = encode_frame(CODEC, chunks)
    assert decode_frame(CODEC, frame.stored, len(data), "x") == data
    with pytest.raises(IntegrityError, match="did not decode"):
        encode_frame(Forgetful(planes=True), chunks)


def test_a_frame_is_what_its_parts_are() -> None:
    frame = encode_frame(CODEC, [(b"a", NUMBERS["float32"][1])])
    assert frame.size == len(frame.stored) == sum(map(len, frame.parts))
    assert frame.stored[0] == PLANES
    assert Frame((b"ab", b"c"), 0, (), ()).stored == b"abc"


def test_every_flipped_bit_of_a_frame_is_found() -> None:
    stored = encode_frame(CODEC, [(b"a", NUMBERS["int64"][1][: 8 * KIB])]).stored
    assert stored[0] == PLANES
    for at in [*range(80), *range(80, len(stored), 37)]:
        broken = bytearray(stored)
        broken[at] ^= 0x10
        if at in {1, 2, 3}:
            continue  # padding of the header
        with pytest.raises(IntegrityError):
            decode_frame(CODEC, bytes(broken), 8 * KIB, "x")


# --- which stores


def test_a_store_says_that_its_readers_must_know_planes() -> None:
    document = json.loads(encode_store(StoreConfig()))
    assert document["features"] == ["planes"]
    assert "planes" not in document["config"]
    assert decode_store(encode_store(StoreConfig())) == StoreConfig()


def test_a_store_from_before_has_no_planes_and_gets_none() -> None:
    old = StoreConfig(planes=False)
    assert json.loads(encode_store(old))["features"] == []
    assert decode_store(encode_store(old)) == old


def test_a_feature_nobody_knows_asks_for_an_upgrade() -> None:
    data = encode_store(StoreConfig()).replace(b'"planes"', b'"planes","teleport"')
    with pytest.raises(UnsupportedFormatError, match="with teleport"):
        decode_store(data)


@pytest.mark.parametrize("feature", [True, False])
def test_numbers_in_a_store_come_back_whether_as_planes_or_not(feature: bool, tmp_path: Path) -> None:
    data = NUMBERS["float32"][1]
    place = tmp_path / "store"
    with Store.create(place, config=StoreConfig(planes=feature)) as store:
        draft = Artifact("model")
        draft.add_bytes(data, "model.bin")
        store.log_artifact(draft)
    with Store.open(place) as store:
        assert store.get("model:latest")["model.bin"].read() == data
        assert not store.fsck(read_data=True).findings
    assert _codecs(place) == ({PLANES} if feature else {ZSTD})


def _codecs(place: Path) -> set[int]:
    """Of the frames of more than 4 KiB."""
    found = set()
    for path in (place / "packs").rglob("*"):
        if path.is_file():
            pack = path.read_bytes()
            at = 8
            for frame in check_pack(pack, "x").content.frames:
                found |= {pack[at]} if frame.raw > 4 * KIB else set()
                at += frame.stored
    return found


def test_the_log_and_bundles_hold_nothing_that_needs_the_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are read by who has not seen the store's features."""
    with Store.create(tmp_path / "store") as store:
        engine = store._engine
        assert engine.codec.planes
        assert not engine.plain_codec.planes
        assert engine.log._codec is engine.plain_codec
        assert engine.checkpoints._codec is engine.plain_codec
        draft = Artifact("model")
        draft.add_bytes(NUMBERS["float32"][1], "model.bin")
        store.log_artifact(draft)
        store.export("model:latest", tmp_path / "bundle")
    monkeypatch.delattr(ZstdCodec, "_planes_in")
    with Store.create(tmp_path / "old", config=StoreConfig(planes=False)) as old:
        old.import_bundle(tmp_path / "bundle")
        assert old.get("model:latest")["model.bin"].read() == NUMBERS["float32"][1]
    assert _codecs(tmp_path / "old") == {ZSTD}


# --- to where it is wanted


@pytest.mark.parametrize("name", NUMBERS)
def test_decoded_into_memory_it_is_the_same(name: str) -> None:
    plain = NUMBERS[name][1]
    for codec in (ZstdCodec(planes=True), ZstdCodec(looks=False)):
        number, stored = codec.encode([plain])
        target = bytearray(b"?" * (len(plain) + 20))
        codec.decode_into(number, stored, memoryview(target)[10:-10], "x")
        assert target == b"?" * 10 + plain + b"?" * 10
        for size in {max(0, len(plain) - 1), len(plain) + 1, len(plain) * 2 + 8} - {len(plain)}:
            with pytest.raises(IntegrityError):
                codec.decode_into(number, stored, memoryview(bytearray(size)), "x")


@pytest.mark.parametrize("codec", [RAW, ZSTD, PLANES])
def test_what_is_damaged_is_decoded_into_memory_as_it_is_without(codec: int) -> None:
    plain = NUMBERS["float32"][1][: 16 * KIB]
    stored = {RAW: plain, ZSTD: zstandard.compress(plain), PLANES: ZstdCodec(planes=True).encode([plain])[1]}[codec]
    for position in range(0, len(stored), 97):
        damaged = bytearray(stored)
        damaged[position] ^= 4
        target = bytearray(len(plain))
        try:
            wrong = CODEC.decode(codec, damaged, len(plain), "x")
        except IntegrityError:
            with pytest.raises(IntegrityError):
                CODEC.decode_into(codec, damaged, memoryview(target), "x")
        else:
            CODEC.decode_into(codec, damaged, memoryview(target), "x")
            assert target == wrong
    with pytest.raises(IntegrityError):
        CODEC.decode_into(codec, stored[:-1], memoryview(bytearray(len(plain))), "x")


def test_an_unknown_codec_is_not_decoded_into_memory() -> None:
    with pytest.raises(UnsupportedFormatError):
        CODEC.decode_into(9, b"1234", memoryview(bytearray(4)), "x")
