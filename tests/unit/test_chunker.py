"""Chunk boundaries: each algorithm one specification, several kernels, and the same cuts for ever.

Guards: all kernels agree, on whatever input; however data is split, the cuts are the same; sizes keep their bounds;
golden boundaries never move; an insertion moves few cuts; the kernel variable is a demand, never a wish.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import sys
import threading
from array import array
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.chunker import Chunker, FastCDC, Fixed, Gated, chunker_for, fastcdc, gated, kernel
from casstore.chunker.kernels import NAMES, Boundaries
from casstore.config import KIB, ChunkerParams
from casstore.errors import InvalidInputError, UnsupportedFormatError
from casstore.native import extension

GOLDEN = Path(__file__).parents[1] / "golden"
MODULES: dict[str, ModuleType] = {gated.ALGORITHM: gated, fastcdc.ALGORITHM: fastcdc}
"""of each algorithm that follows content: `boundaries` is the reference, `KERNELS` are all there are here"""
SMALLEST = {gated.ALGORITHM: (64, 64), fastcdc.ALGORITHM: (1, 16)}
"""the smallest minimum and average of an algorithm"""
OF_MACHINES = {gated.ALGORITHM: NAMES, fastcdc.ALGORITHM: ("c", "python")}
"""the kernels an algorithm has on some machine"""
quick = settings(deadline=None, max_examples=60)


def kernels(algorithm: str, *names: str) -> list[object]:
    """Parameters for pytest: the kernels of an algorithm, those that are not here with the reason."""
    here = MODULES[algorithm].KERNELS
    missing = pytest.mark.skip(reason="the kernel is for other machines, or casstore was installed without a compiler")
    return [
        pytest.param(algorithm, name, id=f"{algorithm}-{name}", marks=() if name in here else missing)
        for name in names or OF_MACHINES[algorithm]
    ]


COMPILED = [*kernels(gated.ALGORITHM, "avx2", "neon", "c"), *kernels(fastcdc.ALGORITHM, "c")]
EVERY = [*kernels(gated.ALGORITHM), *kernels(fastcdc.ALGORITHM)]
needs_c = pytest.mark.skipif("c" not in gated.KERNELS, reason="casstore was installed without the C kernels")


def boundaries_of(algorithm: str, name: str) -> Boundaries:
    found: Boundaries = MODULES[algorithm].KERNELS[name]
    return found


def stream(size: int, seed: int = 0) -> bytes:
    """Bytes that look random: sha256 of a seed and a counter, so that they are the same everywhere."""
    blocks = (hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def opening(before: bytes) -> bytes:
    """Two bytes after which the gate of `gated-2026` is open, at every average."""
    end = len(before) + 2
    rest = sum(gated.gate(memoryview(before[end - 32 * k - 8 : end - 32 * k])) << 2 * k for k in range(1, 8))
    term = (1 << 15) - 64 - (rest & 0xFFFF) & 0xFFFF
    value = term ^ term >> 7 ^ term >> 14
    for at, power in ((-6, 3), (-4, 2), (-2, 1)):
        value -= int.from_bytes(before[at:][:2], "little") * gated.MULTIPLIER**power
    return (value & 0xFFFF).to_bytes(2, "little")


def often_open(size: int) -> bytes:
    """Random bytes in which the gate is open every 2 to 66 of them, on purpose."""
    source = random.Random(9)
    data = bytearray(source.randbytes(300))
    while len(data) < size:
        data += source.randbytes(source.choice((0, 0, 3, 30, 31, 64)))
        data += opening(bytes(data[-300:]))
    return bytes(data[:size])


def golden_content(content: str, size: int, seed: int) -> bytes:
    data = stream(size, seed)
    if content == "low entropy":
        return bytes(byte & 1 for byte in data)
    if content == "sparse":
        return bytes(byte if i % 41 == 0 else 0 for i, byte in enumerate(data))
    if content == "constant":
        return bytes([seed]) * size
    return data


def digest_of(ends: list[int]) -> str:
    """SHA-256 of the ends, 8 bytes each, little-endian."""
    return hashlib.sha256(b"".join(end.to_bytes(8, "little") for end in ends)).hexdigest()


GOLDEN_FILES = {gated.ALGORITHM: "gated.json", fastcdc.ALGORITHM: "chunker.json"}
OPEN = next(
    word
    for word in (number.to_bytes(2, "little") for number in range(1 << 16))
    if (1 << 15) - 64 <= gated.gate(memoryview(word * 128)) < 1 << 15
)
"""two bytes: repeated, they open the gate of `gated-2026` at every second end, at every average"""
DENSE = often_open(1 << 16)
BULK = random.Random(3).randbytes(1 << 21)
TEXT = b" ".join(str(i * i).encode() for i in range(6000))
POOL = stream(1 << 16)

MAKERS: dict[str, Callable[[int], bytes]] = {
    "random": lambda size: POOL[:size],
    "zeros": bytes,
    "ff": lambda size: b"\xff" * size,
    "periodic": lambda size: (POOL[:97] * (size // 97 + 1))[:size],
    "text": lambda size: (TEXT * (size // len(TEXT) + 1))[:size],
    "half zeros": lambda size: POOL[: size // 2] + bytes(size - size // 2),
    "open every second": lambda size: (OPEN * (size // 2 + 1))[:size],
    "often open": lambda size: DENSE[:size],
}

Sizes = tuple[int, int, int]


@st.composite
def sizes(draw: st.DrawFn, algorithm: str) -> Sizes:
    """Odd ones, too: no power of two, equal ones, the smallest allowed."""
    least, lowest = SMALLEST[algorithm]
    average = draw(st.one_of(st.integers(lowest, 1500), st.sampled_from([lowest, 64, 256, 1024])))
    minimum = draw(st.one_of(st.integers(least, average), st.just(average), st.just(max(least, average // 4))))
    maximum = draw(st.one_of(st.integers(average, average * 8), st.just(average)))
    return minimum, average, maximum


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    maker = MAKERS[draw(st.sampled_from(sorted(MAKERS)))]
    data = maker(draw(st.integers(0, 12_000)))
    return data[draw(st.integers(0, 64)) :]


def streamed(cut: Boundaries, data: bytes, splits: Iterable[int], params: Sizes) -> list[int]:
    """Cuts when the data arrives in pieces: the tail is passed again in front of the next piece."""
    ends: list[int] = []
    start = 0
    for split in splits:
        found = cut(data[start:split], *params, False)
        ends += [start + end for end in found]
        start = ends[-1] if ends else 0
    return ends + [start + end for end in cut(data[start:], *params, True)]


@pytest.mark.parametrize(("algorithm", "name"), COMPILED)
class TestKernels:
    @quick
    @given(data=st.data(), octets=inputs(), final=st.booleans())
    def test_equal_the_reference(
        self, algorithm: str, name: str, data: st.DataObject, octets: bytes, final: bool
    ) -> None:
        params = data.draw(sizes(algorithm))
        expected = MODULES[algorithm].boundaries(octets, *params, final)
        assert boundaries_of(algorithm, name)(octets, *params, final) == expected

    @pytest.mark.parametrize("maker", sorted(MAKERS))
    def test_equal_the_reference_at_real_sizes(self, algorithm: str, name: str, maker: str) -> None:
        data = MAKERS[maker](1 << 16) * 2
        for average, minimum, maximum in ((4 * KIB, 64, 9 * KIB), (32 * KIB, 16 * KIB, 128 * KIB)):
            arguments = (data[average // 999 :], minimum, average, maximum, True)
            assert boundaries_of(algorithm, name)(*arguments) == MODULES[algorithm].boundaries(*arguments)

    def test_agree_on_every_place_of_a_cut(self, algorithm: str, name: str) -> None:
        """A cut of the reference, moved byte by byte through a kernel's blocks and the rest behind the last."""
        cut, reference = boundaries_of(algorithm, name), MODULES[algorithm].boundaries
        least = SMALLEST[algorithm][0]
        for shift in range(140):
            data = bytes(shift) + POOL[:420]
            assert cut(data, least, 128, 512, True) == reference(data, least, 128, 512, True), shift
            assert cut(data[: 420 - shift], least, 128, 512, False) == reference(
                data[: 420 - shift], least, 128, 512, False
            )

    def test_threads_agree(self, algorithm: str, name: str) -> None:
        cut, data = boundaries_of(algorithm, name), POOL * 8
        expected = cut(data, 512, 2048, 8192, True)
        results: list[list[int]] = []
        threads = [threading.Thread(target=lambda: results.append(cut(data, 512, 2048, 8192, True))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 4


@pytest.mark.parametrize(("algorithm", "name"), EVERY)
class TestBoundaries:
    @quick
    @given(data=st.data(), octets=inputs(), splits=st.lists(st.integers(0, 12_000), max_size=8))
    def test_streamed_equals_one_shot(
        self, algorithm: str, name: str, data: st.DataObject, octets: bytes, splits: list[int]
    ) -> None:
        cut, params = boundaries_of(algorithm, name), data.draw(sizes(algorithm))
        splits = sorted(min(split, len(octets)) for split in splits)
        assert streamed(cut, octets, splits, params) == cut(octets, *params, True)

    def test_streamed_byte_by_byte(self, algorithm: str, name: str) -> None:
        cut = boundaries_of(algorithm, name)
        least, lowest = SMALLEST[algorithm]
        for data in (POOL[:700], bytes(700)):
            for params in ((least, lowest * 2, lowest * 4), (64, 64, 64), (least, lowest, lowest)):
                assert streamed(cut, data, range(len(data) + 1), params) == cut(data, *params, True)

    @quick
    @given(data=st.data(), octets=inputs())
    def test_sizes_keep_their_bounds(self, algorithm: str, name: str, data: st.DataObject, octets: bytes) -> None:
        minimum, average, maximum = data.draw(sizes(algorithm))
        ends = boundaries_of(algorithm, name)(octets, minimum, average, maximum, True)
        assert ends[-1:] == ([len(octets)] if octets else [])
        lengths = [b - a for a, b in pairwise([0, *ends])]
        assert all(minimum <= length <= maximum for length in lengths[:-1])
        assert all(0 < length <= maximum for length in lengths[-1:])

    @pytest.mark.parametrize("average", [64, 1024, 32 * KIB])
    def test_the_average_is_near_what_was_asked(self, algorithm: str, name: str, average: int) -> None:
        data = stream(2048 * min(average, 1 << 9), seed=7) if average < 32 * KIB else BULK
        minimum = max(64, average // 4)
        mean = len(data) / len(boundaries_of(algorithm, name)(data, minimum, average, average * 4, True))
        assert average <= mean - (minimum if average == 64 else 0) * 0.2 <= average * 1.6

    def test_edges(self, algorithm: str, name: str) -> None:
        cut = boundaries_of(algorithm, name)
        assert cut(b"", 64, 64, 64, True) == []
        assert cut(b"", 64, 64, 64, False) == []
        assert cut(b"x", 64, 64, 64, True) == [1]
        assert cut(b"x", 64, 64, 64, False) == []
        assert cut(bytes(64), 64, 64, 64, False) == [64]
        assert cut(bytes(128), 64, 64, 64, True) == [64, 128]
        assert cut(bytes(130), 64, 64, 64, False) == [64, 128]
        assert cut(bytes(130), 64, 64, 64, True) == [64, 128, 130]
        assert cut(POOL[:8191], 8192, 32768, 131072, True) == [8191]
        assert cut(POOL[:8191], 8192, 32768, 131072, False) == []
        assert cut(bytes(300_000), 8192, 32768, 131072, True) == [131072, 262144, 300_000]
        assert cut(bytes(100), 64, 16 << 20, 16 << 20, True) == [100]

    def test_every_kind_of_buffer(self, algorithm: str, name: str) -> None:
        cut = boundaries_of(algorithm, name)
        data = POOL[:8192]
        expected = cut(data, 64, 256, 1024, True)
        views = (memoryview(data), memoryview(array("Q", data)), memoryview(b"ab" + data)[2:])
        for buffer in (bytearray(data), *views):
            assert cut(buffer, 64, 256, 1024, True) == expected
        with pytest.raises(BufferError):
            cut(memoryview(data)[::2], 64, 256, 1024, True)
        with pytest.raises(TypeError):
            cut("text", 64, 256, 1024, True)  # type: ignore[arg-type]

    def test_bad_sizes(self, algorithm: str, name: str) -> None:
        least, lowest = SMALLEST[algorithm]
        bad = [(0, 64, 64), (-1, 64, 64), (65, 64, 128), (64, 128, 127), (least - 1, 64, 64), (least, lowest - 1, 64)]
        for params in (*bad, (64, 64, 2**30 + 1), (1, 64, 2**70)):
            with pytest.raises(ValueError, match="size"):
                boundaries_of(algorithm, name)(b"data", *params, True)

    @quick
    @given(seed=st.integers(0, 50), at=st.integers(0, 16_000), size=st.integers(1, 3))
    def test_an_insertion_moves_few_cuts(self, algorithm: str, name: str, seed: int, at: int, size: int) -> None:
        cut = boundaries_of(algorithm, name)
        data = stream(16_000, seed)
        changed = data[:at] + b"!" * size + data[at:]
        before = set(cut(data, 64, 256, 1024, True))
        after = cut(changed, 64, 256, 1024, True)
        untouched = [end for end in after if end <= at]
        moved = [end for end in after if end > at]
        assert set(untouched) <= before
        # Back in step within twelve of the largest chunks, and from there on to the end.
        resynced = next(i for i, end in enumerate(moved) if end - size in before)
        assert moved[resynced] - at <= 12 * 1024
        assert all(end - size in before for end in moved[resynced:])

    def test_golden(self, algorithm: str, name: str) -> None:
        cut = boundaries_of(algorithm, name)
        cases = json.loads((GOLDEN / GOLDEN_FILES[algorithm]).read_text(encoding="ascii"))
        assert cases
        for case in cases:
            data = golden_content(case["content"], case["size"], case["seed"])
            assert hashlib.sha256(data).hexdigest() == case["sha256"]
            ends = cut(data, case["minimum"], case["average"], case["maximum"], True)
            assert len(ends) == case.get("chunks", len(ends))
            assert ends == case.get("boundaries", ends)
            assert case.get("ends", digest_of(ends)) == digest_of(ends)


class TestConstants:
    """What docs/FORMAT.md defines, computed here from its words; the kernels hold the same."""

    @needs_c
    def test_gear_table_is_its_formula(self) -> None:
        expected = [hashlib.sha256(b"casstore gear" + bytes([i])).digest()[:8] for i in range(256)]
        assert [value.to_bytes(8, "little") for value in extension("chunker._gear").table()] == expected  # type: ignore[union-attr]
        assert [value.to_bytes(8, "little") for value in fastcdc.GEAR] == expected

    def test_multiplier_and_keys_are_their_formulas(self) -> None:
        multiplier = int.from_bytes(hashlib.sha256(b"casstore gate").digest()[:2], "little") | 1
        keys = [hashlib.sha256(b"casstore cut" + bytes([k])).digest()[:8] for k in range(9)]
        expected = (multiplier, *(int.from_bytes(key, "little") | 1 for key in keys))
        assert (gated.MULTIPLIER, *gated.KEYS) == expected
        module = extension("chunker._gated")
        if module is not None:
            assert module.constants() == expected

    def test_cuts_of_gated_are_the_definition(self) -> None:
        """docs/FORMAT.md §4.1 once more, as plainly as can be: one end after the other, whole numbers only."""
        data = POOL[:11_000] + bytes(1000) + DENSE[:3000]
        for minimum, average, maximum in ((64, 64, 512), (100, 512, 2048), (64, 4096, 5000), (300, 8192, 65536)):
            log = average.bit_length() - 1
            rarity, stride = min(10, log - 4), min(32, 2 ** (log - 6))
            ends, start, length = [], 0, minimum
            while start < len(data):
                if start + length >= len(data) or length >= maximum:
                    start = min(start + maximum, len(data))
                    ends.append(start)
                    length = minimum
                    continue
                end = start + length
                gate, m = 0, gated.MULTIPLIER
                for k in range(8):
                    at = end - 32 * k
                    if at - start >= 8:
                        w = [int.from_bytes(data[at - back : at - back + 2], "little") for back in (8, 6, 4, 2)]
                        p = (w[0] * m**3 + w[1] * m**2 + w[2] * m + w[3]) % 2**16
                        gate = (gate + 4**k * (p ^ (p // 2**7))) % 2**16
                if not 2**15 - 2 ** (16 - rarity) <= gate < 2**15:
                    length += 1
                    continue
                words = [int.from_bytes(data[end - 64 + 8 * k : end - 56 + 8 * k], "little") for k in range(8)]
                h = sum(word * key for word, key in zip(words, gated.KEYS, strict=False)) % 2**64
                h = (h ^ (h // 2**32)) * gated.KEYS[8] % 2**64
                exponent = log + 2 if length < average else log - 2
                if h < 2 ** (64 - (exponent - rarity)):
                    start, length = end, minimum
                    ends.append(end)
                else:
                    length += stride
            assert gated.boundaries(data, minimum, average, maximum, True) == ends

    def test_gates_open_as_rarely_as_they_say(self) -> None:
        for average, rarity in ((64, 2), (1 << 10, 6), (1 << 15, 10), (1 << 24, 10)):
            limits = gated.Limits.of(average)
            view = memoryview(BULK[: 1 << 18])
            found = sum(1 for _ in gated._open_ends(view, 64, limits.opening))
            assert found == pytest.approx(len(view) / 2**rarity, rel=0.2)
            assert limits.strict << 4 == limits.lenient <= 1 << 62

    def test_made_to_be_slow_is_looked_at_once_in_a_stride(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = 0

        def counted(octets: bytes) -> int:
            nonlocal asked
            asked += 1
            return (1 << 64) - 1

        monkeypatch.setattr(gated, "strong", counted)
        data = MAKERS["open every second"](1 << 16)
        assert gated.boundaries(data, 16384, 32768, 65536, True) == [65536]
        assert asked == (65536 - 16384) / 32


class TestChoice:
    def test_the_fastest_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CASSTORE_CHUNKER_KERNEL", raising=False)
        assert kernel() == next(iter(gated.KERNELS)) == min(gated.KERNELS, key=NAMES.index)
        for algorithm, module in MODULES.items():
            chunker = chunker_for(ChunkerParams(algorithm))
            assert chunker.kernel == module.selected().name == next(iter(module.KERNELS))

    @needs_c
    def test_the_extension_says_what_this_machine_can(self) -> None:
        module = extension("chunker._gated")
        assert module is not None
        assert list(gated.KERNELS) == [*module.kernels(), "python"]
        assert module.kernels()[-1] == "c"

    def test_without_the_extensions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.delenv("CASSTORE_CHUNKER_KERNEL", raising=False)
            for name, module in (("_gated", gated), ("_gear", fastcdc)):
                patch.setitem(sys.modules, f"casstore.chunker.{name}", None)
                patch.setattr(module, "KERNELS", module._kernels())
                assert list(module.KERNELS) == ["python"]
                assert module.selected().boundaries is module.boundaries
            assert kernel() == "python"

    @pytest.mark.parametrize("algorithm", MODULES)
    @pytest.mark.parametrize("demand", NAMES)
    def test_a_demand_is_met_or_refused(self, algorithm: str, demand: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CASSTORE_CHUNKER_KERNEL", demand)
        module, params = MODULES[algorithm], ChunkerParams(algorithm)
        if demand in module.KERNELS:
            assert chunker_for(params).kernel == demand
            assert module.selected().boundaries is module.KERNELS[demand]
            monkeypatch.delitem(module.KERNELS, demand)
        for ask in (module.selected, lambda: chunker_for(params)):
            with pytest.raises(InvalidInputError, match=f"the {demand} kernel, and {algorithm} has none here"):
                ask()

    def test_a_demand_for_what_is_no_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for demand in ("C", "auto", "avx512"):
            monkeypatch.setenv("CASSTORE_CHUNKER_KERNEL", demand)
            with pytest.raises(InvalidInputError, match=repr(demand)):
                kernel()


class TestChunkerFor:
    @pytest.mark.parametrize("algorithm", MODULES)
    def test_of_content(self, algorithm: str) -> None:
        params = ChunkerParams(algorithm, 256, 1024, 4096)
        chunker = chunker_for(params)
        assert chunker.params == params
        data = POOL[:30_000]
        reference = MODULES[algorithm].boundaries
        assert chunker.boundaries(data, final=True) == reference(data, 256, 1024, 4096, True)
        assert chunker.boundaries(data, final=False) == reference(data, 256, 1024, 4096, False)

    def test_new_stores_are_cut_by_the_gated_one(self) -> None:
        assert isinstance(chunker_for(ChunkerParams()), Gated)
        assert ChunkerParams.around(1024) == ChunkerParams("gated-2026", 512, 1024, 4096)

    @pytest.mark.parametrize("algorithm", MODULES)
    def test_every_size_a_store_may_have(self, algorithm: str) -> None:
        """From 64 bytes to 16 MiB: no size is refused, none leaves its bounds."""
        for log in (6, 7, 10, 11, 12, 15, 20, 24):
            average = 1 << log
            for minimum, maximum in ((64, 16 << 20), (average, average)):
                ends = chunker_for(ChunkerParams(algorithm, minimum, average, maximum)).boundaries(BULK, final=True)
                assert ends[-1] == len(BULK)
                assert all(minimum <= b - a <= maximum for a, b in pairwise([0, *ends[:-1]]))

    def test_fixed(self) -> None:
        chunker = chunker_for(ChunkerParams("fixed", 64, 1024, 4096))
        assert chunker.boundaries(bytes(2500), final=True) == [1024, 2048, 2500]
        assert chunker.boundaries(bytes(2500), final=False) == [1024, 2048]
        assert chunker.boundaries(bytes(2048), final=True) == [1024, 2048]
        assert chunker.boundaries(bytes(2048), final=False) == [1024, 2048]
        assert chunker.boundaries(b"", final=True) == []
        assert chunker.boundaries(memoryview(array("Q", range(256))), final=True) == [1024, 2048]
        assert chunker.kernel == "python"

    def test_unknown_algorithm(self) -> None:
        with pytest.raises(UnsupportedFormatError, match="fastcdc-2099"):
            chunker_for(ChunkerParams("fastcdc-2099"))

    def test_picklable_and_comparable(self) -> None:
        algorithms = (Gated(ChunkerParams()), FastCDC(ChunkerParams("fastcdc-2020")), Fixed(ChunkerParams("fixed")))
        for chunker in algorithms:
            copy: Chunker = pickle.loads(pickle.dumps(chunker))
            assert copy == chunker
            assert copy.kernel == chunker.kernel
