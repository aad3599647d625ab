"""Chunk boundaries: one specification, two kernels, and the same cuts for ever.

Guards: C and Python kernels agree; however data is split, the cuts are the same; sizes keep their bounds; golden
boundaries never move; an insertion moves few cuts; the kernel variable is a demand.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import sys
import threading
from array import array
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.chunker import FastCDC, Fixed, chunker_for, fastcdc, kernel
from casstore.config import KIB, ChunkerParams
from casstore.errors import InvalidInputError, UnsupportedFormatError

try:
    from casstore.chunker import _gear
except ImportError:
    HAVE_C = False
else:
    HAVE_C = True

GOLDEN = Path(__file__).parents[1] / "golden" / "chunker.json"
needs_c = pytest.mark.skipif(not HAVE_C, reason="casstore was installed without the C kernel")
quick = settings(deadline=None, max_examples=60)


def stream(size: int, seed: int = 0) -> bytes:
    """Bytes that look random: sha256 of a seed and a counter, so that they are the same everywhere."""
    blocks = (hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(-(-size // 32)))
    return b"".join(blocks)[:size]


TEXT = b" ".join(str(i * i).encode() for i in range(6000))
POOL = stream(1 << 16)

MAKERS: dict[str, Callable[[int], bytes]] = {
    "random": lambda size: POOL[:size],
    "zeros": bytes,
    "ff": lambda size: b"\xff" * size,
    "periodic": lambda size: (POOL[:97] * (size // 97 + 1))[:size],
    "text": lambda size: (TEXT * (size // len(TEXT) + 1))[:size],
    "half zeros": lambda size: POOL[: size // 2] + bytes(size - size // 2),
}

Sizes = tuple[int, int, int]


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    """Odd ones, too: no power of two, equal ones, the smallest allowed."""
    average = draw(st.one_of(st.integers(16, 1500), st.sampled_from([16, 64, 256, 1024])))
    minimum = draw(st.one_of(st.integers(1, average), st.just(average), st.just(max(1, average // 4))))
    maximum = draw(st.one_of(st.integers(average, average * 8), st.just(average)))
    return minimum, average, maximum


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    maker = MAKERS[draw(st.sampled_from(sorted(MAKERS)))]
    data = maker(draw(st.integers(0, 12_000)))
    return data[draw(st.integers(0, 64)) :]


def streamed(cut: fastcdc.Boundaries, data: bytes, splits: Iterable[int], params: Sizes) -> list[int]:
    """Cuts when the data arrives in pieces: the tail is passed again in front of the next piece."""
    ends: list[int] = []
    start = 0
    for split in splits:
        found = cut(data[start:split], *params, False)
        ends += [start + end for end in found]
        start = ends[-1] if ends else 0
    return ends + [start + end for end in cut(data[start:], *params, True)]


KERNELS = [
    pytest.param("python", id="python"),
    pytest.param("c", id="c", marks=needs_c),
]


def boundaries_of(name: str) -> fastcdc.Boundaries:
    return _gear.boundaries if name == "c" else fastcdc.boundaries


class TestKernels:
    @needs_c
    @quick
    @given(inputs(), sizes(), st.booleans())
    def test_c_equals_python(self, data: bytes, params: Sizes, final: bool) -> None:
        assert _gear.boundaries(data, *params, final) == fastcdc.boundaries(data, *params, final)

    @needs_c
    @pytest.mark.parametrize("maker", sorted(MAKERS))
    def test_c_equals_python_at_real_sizes(self, maker: str) -> None:
        data = MAKERS[maker](1 << 16) * 4
        for average in (4 * KIB, 16 * KIB, 64 * KIB):
            for minimum, maximum in ((average // 4, average * 4), (average // 2, average + 1), (64, average * 8)):
                arguments = (data, minimum, average, maximum, True)
                assert _gear.boundaries(*arguments) == fastcdc.boundaries(*arguments)

    @needs_c
    def test_gear_table_is_its_formula(self) -> None:
        expected = [hashlib.sha256(b"casstore gear" + bytes([i])).digest()[:8] for i in range(256)]
        assert [value.to_bytes(8, "little") for value in _gear.table()] == expected
        assert [value.to_bytes(8, "little") for value in fastcdc.GEAR] == expected

    @needs_c
    def test_threads_agree(self) -> None:
        data = POOL * 8
        expected = fastcdc.boundaries(data, 512, 2048, 8192, True)
        results: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: results.append(_gear.boundaries(data, 512, 2048, 8192, True)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 4


@pytest.mark.parametrize("name", KERNELS)
class TestBoundaries:
    @quick
    @given(data=inputs(), params=sizes(), splits=st.lists(st.integers(0, 12_000), max_size=8))
    def test_streamed_equals_one_shot(self, name: str, data: bytes, params: Sizes, splits: list[int]) -> None:
        cut = boundaries_of(name)
        splits = sorted(min(split, len(data)) for split in splits)
        assert streamed(cut, data, splits, params) == cut(data, *params, True)

    def test_streamed_byte_by_byte(self, name: str) -> None:
        cut = boundaries_of(name)
        for data in (POOL[:700], bytes(700)):
            for params in ((8, 32, 64), (64, 64, 64), (1, 16, 16)):
                assert streamed(cut, data, range(len(data) + 1), params) == cut(data, *params, True)

    @quick
    @given(data=inputs(), params=sizes())
    def test_sizes_keep_their_bounds(self, name: str, data: bytes, params: Sizes) -> None:
        minimum, _, maximum = params
        ends = boundaries_of(name)(data, *params, True)
        assert ends[-1:] == ([len(data)] if data else [])
        lengths = [b - a for a, b in pairwise([0, *ends])]
        assert all(minimum <= length <= maximum for length in lengths[:-1])
        assert all(0 < length <= maximum for length in lengths[-1:])

    def test_the_average_is_near_what_was_asked(self, name: str) -> None:
        data = stream(1 << 20, seed=7)
        mean = len(data) / len(boundaries_of(name)(data, 256, 1024, 4096, True))
        assert 1024 <= mean <= 1024 * 1.3

    def test_edges(self, name: str) -> None:
        cut = boundaries_of(name)
        assert cut(b"", 64, 64, 64, True) == []
        assert cut(b"", 64, 64, 64, False) == []
        assert cut(b"x", 64, 64, 64, True) == [1]
        assert cut(b"x", 64, 64, 64, False) == []
        assert cut(bytes(64), 64, 64, 64, False) == [64]
        assert cut(bytes(128), 64, 64, 64, True) == [64, 128]
        assert cut(bytes(130), 64, 64, 64, False) == [64, 128]
        assert cut(bytes(130), 64, 64, 64, True) == [64, 128, 130]

    def test_every_kind_of_buffer(self, name: str) -> None:
        cut = boundaries_of(name)
        data = POOL[:8192]
        expected = cut(data, 64, 256, 1024, True)
        views = (memoryview(data), memoryview(array("Q", data)), memoryview(b"ab" + data)[2:])
        for buffer in (bytearray(data), *views):
            assert cut(buffer, 64, 256, 1024, True) == expected
        with pytest.raises(BufferError):
            cut(memoryview(data)[::2], 64, 256, 1024, True)
        with pytest.raises(TypeError):
            cut("text", 64, 256, 1024, True)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "params",
        [(0, 64, 64), (-1, 64, 64), (65, 64, 128), (64, 128, 127), (1, 15, 64), (64, 64, 2**30 + 1), (1, 64, 2**70)],
    )
    def test_bad_sizes(self, name: str, params: Sizes) -> None:
        with pytest.raises(ValueError, match="size"):
            boundaries_of(name)(b"data", *params, True)

    @quick
    @given(seed=st.integers(0, 50), at=st.integers(0, 20_000), size=st.integers(1, 3))
    def test_an_insertion_moves_few_cuts(self, name: str, seed: int, at: int, size: int) -> None:
        cut = boundaries_of(name)
        data = stream(40_000, seed)
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

    def test_golden(self, name: str) -> None:
        cut = boundaries_of(name)
        cases = json.loads(GOLDEN.read_text(encoding="ascii"))
        assert cases
        for case in cases:
            data = stream(case["size"], case["seed"])
            if case["content"] == "low entropy":
                data = bytes(byte & 1 for byte in data)
            assert hashlib.sha256(data).hexdigest() == case["sha256"]
            assert cut(data, case["minimum"], case["average"], case["maximum"], True) == case["boundaries"]


class TestChoice:
    @needs_c
    def test_c_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CASSTORE_CHUNKER_KERNEL", raising=False)
        assert kernel() == "c"
        assert fastcdc.selected() is _gear.boundaries

    def test_without_the_extension(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CASSTORE_CHUNKER_KERNEL", raising=False)
        monkeypatch.setattr(fastcdc, "_compiled", None)
        assert kernel() == "python"
        assert fastcdc.selected() is fastcdc.boundaries

    def test_an_extension_that_does_not_import(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "casstore.chunker._gear", None)
            patch.delenv("CASSTORE_CHUNKER_KERNEL", raising=False)
            try:
                importlib.reload(fastcdc)
                assert fastcdc.kernel() == "python"
            finally:
                patch.undo()
                importlib.reload(fastcdc)

    def test_demands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CASSTORE_CHUNKER_KERNEL", "python")
        assert kernel() == "python"
        assert fastcdc.selected() is fastcdc.boundaries
        monkeypatch.setattr(fastcdc, "_compiled", None)
        monkeypatch.setenv("CASSTORE_CHUNKER_KERNEL", "c")
        for demand in (kernel, fastcdc.selected, lambda: chunker_for(ChunkerParams())):
            with pytest.raises(InvalidInputError, match="without it"):
                demand()
        monkeypatch.setenv("CASSTORE_CHUNKER_KERNEL", "C")
        with pytest.raises(InvalidInputError, match="'C'"):
            kernel()

    @needs_c
    def test_demand_for_c(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CASSTORE_CHUNKER_KERNEL", "c")
        assert kernel() == "c"


class TestChunkerFor:
    def test_fastcdc(self) -> None:
        params = ChunkerParams("fastcdc-2020", 256, 1024, 4096)
        chunker = chunker_for(params)
        assert chunker.params == params
        data = POOL[:30_000]
        assert chunker.boundaries(data, final=True) == fastcdc.boundaries(data, 256, 1024, 4096, True)
        assert chunker.boundaries(data, final=False) == fastcdc.boundaries(data, 256, 1024, 4096, False)

    def test_fixed(self) -> None:
        chunker = chunker_for(ChunkerParams("fixed", 64, 1024, 4096))
        assert chunker.boundaries(bytes(2500), final=True) == [1024, 2048, 2500]
        assert chunker.boundaries(bytes(2500), final=False) == [1024, 2048]
        assert chunker.boundaries(bytes(2048), final=True) == [1024, 2048]
        assert chunker.boundaries(bytes(2048), final=False) == [1024, 2048]
        assert chunker.boundaries(b"", final=True) == []
        assert chunker.boundaries(memoryview(array("Q", range(256))), final=True) == [1024, 2048]

    def test_unknown_algorithm(self) -> None:
        with pytest.raises(UnsupportedFormatError, match="fastcdc-2099"):
            chunker_for(ChunkerParams("fastcdc-2099"))

    def test_picklable_and_comparable(self) -> None:
        for chunker in (FastCDC(ChunkerParams()), Fixed(ChunkerParams("fixed"))):
            assert pickle.loads(pickle.dumps(chunker)) == chunker
