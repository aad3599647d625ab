"""The parts by themselves (pytest-benchmark): chunk, hash, frame, index, apply, mark, commit, checkout.

``scripts/bench parts [PYTEST ARGUMENT…]`` runs this and writes results/parts.json; CI does not. What to compare are
minima and medians of the same machine when quiet. ``extra_info`` has the bytes or items of one round.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from casstore import Artifact, Store
from casstore.chunker import chunker_for
from casstore.codec import ZstdCodec
from casstore.config import MIB, ChunkerParams, boot_id
from casstore.digest import hash_function, piecewise
from casstore.gc.mark import mark
from casstore.index.lmdb_index import LmdbIndex
from casstore.pack import decode_frame, encode_frame

Benchmark = Any
CHUNK = 32 * 1024
KEYS = 10_000


def random_bytes(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def text_bytes(size: int) -> bytes:
    source = random.Random(2)
    words = [source.randbytes(source.randint(1, 5)).hex() for _ in range(4000)]
    return " ".join(source.choices(words, k=size // 6)).encode()[:size]


CONTENTS: dict[str, Callable[[int], bytes]] = {"random": random_bytes, "text": text_bytes, "zeros": bytes}


@pytest.fixture(params=CONTENTS)
def content(request: pytest.FixtureRequest) -> Callable[[int], bytes]:
    return CONTENTS[request.param]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as made:
        yield made


def test_chunk(benchmark: Benchmark, content: Callable[[int], bytes]) -> None:
    data = content(16 * MIB)
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(chunker_for(ChunkerParams()).boundaries, data, final=True)[-1] == len(data)


@pytest.mark.parametrize("algorithm", ["blake3", "xxh3-128", "sha256"])
@pytest.mark.parametrize("size", [4096, CHUNK, MIB])
def test_hash(benchmark: Benchmark, algorithm: str, size: int) -> None:
    pieces = [random_bytes(size)] * (4 * MIB // size)
    hash_bytes = hash_function(algorithm)
    benchmark.extra_info["bytes"] = size * len(pieces)
    benchmark(lambda: [hash_bytes(piece) for piece in pieces])


@pytest.mark.parametrize("algorithm", ["blake3", "xxh3-128", "sha256"])
@pytest.mark.parametrize("size", [4096, CHUNK])
def test_hash_pieces(benchmark: Benchmark, algorithm: str, size: int) -> None:
    """As chunks of files that are read are hashed: many of a buffer in one call."""
    data = random_bytes(4 * MIB)
    starts, ends = range(0, len(data), size), range(size, len(data) + 1, size)
    benchmark.extra_info["bytes"] = len(data)
    benchmark(piecewise(algorithm), data, starts, ends)


def frame_parts(content: Callable[[int], bytes]) -> list[tuple[bytes, bytes]]:
    data = content(8 * CHUNK)
    hash_bytes = hash_function("blake3")
    return [(hash_bytes(part), part) for at in range(0, len(data), CHUNK) if (part := data[at : at + CHUNK])]


def test_frame_encode(benchmark: Benchmark, content: Callable[[int], bytes]) -> None:
    parts, codec = frame_parts(content), ZstdCodec()
    benchmark.extra_info["bytes"] = sum(len(data) for _, data in parts)
    benchmark(encode_frame, codec, parts)


def test_frame_decode(benchmark: Benchmark, content: Callable[[int], bytes]) -> None:
    parts, codec = frame_parts(content), ZstdCodec()
    frame = encode_frame(codec, parts)
    benchmark.extra_info["bytes"] = frame.raw
    assert benchmark(decode_frame, codec, frame.stored, frame.raw, "it") == b"".join(data for _, data in parts)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LmdbIndex]:
    opened = LmdbIndex.open(tmp_path / "index", ["chunks"], map_bytes=1 << 30, boot_id=boot_id())
    yield opened
    opened.close()


def keys(seed: int) -> list[bytes]:
    source = random.Random(seed)
    return sorted(source.randbytes(32) for _ in range(KEYS))


def test_index_put_batch(benchmark: Benchmark, index: LmdbIndex) -> None:
    seeds = count()

    def setup() -> tuple[tuple[list[bytes]], dict[str, object]]:
        return (keys(next(seeds)),), {}

    def put(batch: list[bytes]) -> None:
        def body(tables: Any) -> None:
            for key in batch:
                tables.put("chunks", key, b"0123456789abcdef")

        index.update(body)

    benchmark.extra_info["items"] = KEYS
    benchmark.pedantic(put, setup=setup, rounds=30)


def test_index_get_batch(benchmark: Benchmark, index: LmdbIndex) -> None:
    batch = keys(0)
    index.update(lambda tables: [tables.put("chunks", key, b"0123456789abcdef") for key in batch])

    def get() -> list[bytes | None]:
        with index.read() as tables:
            return list(tables.get_many("chunks", batch))

    benchmark.extra_info["items"] = KEYS
    assert None not in benchmark(get)


def version_of(store: Store, files: int, seed: int) -> None:
    source = random.Random(seed)
    draft = Artifact("data")
    for number in range(files):
        draft.add_bytes(source.randbytes(300), f"d{number % 10}/f{number}")
    store.log_artifact(draft)


def test_apply_the_log(benchmark: Benchmark, tmp_path: Path) -> None:
    """Opening a store whose index is gone: every segment of the log is read and applied."""
    place = tmp_path / "store"
    with Store.create(place) as store:
        for seed in range(20):
            version_of(store, 500, seed)
    benchmark.extra_info["items"] = 20 * 500
    benchmark(lambda: Store.open(place, rebuild_index=True).close())


def test_mark(benchmark: Benchmark, store: Store) -> None:
    """The walk from all versions to all they need."""
    for seed in range(5):
        version_of(store, 2000, seed)
    benchmark.extra_info["items"] = 5 * 2000
    assert benchmark(mark, store._engine, None).nodes > 0


def test_commit(benchmark: Benchmark, store: Store) -> None:
    """A version of one file of 1 KiB, durable."""
    numbers = count()

    def log() -> None:
        draft = Artifact("one")
        draft.add_bytes(next(numbers).to_bytes(8, "big") * 128, "file")
        store.log_artifact(draft)

    benchmark.extra_info["items"] = 1
    benchmark(log)


def test_checkout(benchmark: Benchmark, store: Store, tmp_path: Path) -> None:
    """500 files of 20 KB into an empty directory, verified."""
    source = random.Random(3)
    draft = Artifact("data")
    for number in range(500):
        draft.add_bytes(source.randbytes(20_000), f"f{number}")
    version = store.log_artifact(draft)
    targets = (tmp_path / f"out{number}" for number in count())
    benchmark.extra_info["bytes"] = 500 * 20_000
    benchmark(lambda: version.download(next(targets)))
