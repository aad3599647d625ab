"""What encoding a frame costs and saves: byte planes, levels, frame and chunk sizes (docs/decisions/0016).

    benchmarks/codecs.py numbers      planes against zstd alone, on arrays of numbers and on what is none
    benchmarks/codecs.py levels       zstd levels on frames of three sizes
    benchmarks/codecs.py parameters   what casstore compresses frames with, and its neighbours
    benchmarks/codecs.py sizes        stored bytes of several versions by chunk average, frame size and level; no store

Nothing is written to disk, so the times are of the processor alone: seconds of the thread for each 10⁹ bytes of
plaintext, the best of three. Other processes disturb even these, by the caches they share.
"""

from __future__ import annotations

import argparse
import array
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import corpora
import zstandard

from casstore.chunker import chunker_for
from casstore.codec import Codec, ZstdCodec
from casstore.config import KIB, MIB, ChunkerParams
from casstore.digest import hash_function
from casstore.pack import Frame, decode_frame, encode_frame

LIMIT = 32 * MIB
WHEELS = ("1.11.1", "1.11.2", "1.11.3", "1.11.4", "1.12.0", "1.13.0", "1.13.1", "1.14.0", "1.14.1", "1.15.0")
SOURCES = ("5.1.1", "5.1.2", "5.1.3", "5.1.4", "5.1.5", "5.1.6")


def gauss(kind: str, size: int) -> bytes:
    source = random.Random(1)
    count = size // struct.calcsize(kind)
    return struct.pack(f"<{count}{kind}", *(source.gauss(0, 0.02) for _ in range(count)))


def truncated(data: bytes) -> bytes:
    cut = bytearray(data)
    cut[0::4] = cut[1::4] = bytes(len(data) // 4)
    return bytes(cut)


def upper_halves(data: bytes) -> bytes:
    halves = bytearray(len(data) // 2)
    halves[0::2], halves[1::2] = data[2::4], data[3::4]
    return bytes(halves)


def small_integers(size: int) -> bytes:
    source = random.Random(1)
    return array.array("q", (source.randrange(50_000) for _ in range(size // 8))).tobytes()


def contents(trees: Iterable[Path], limit: int | None = None) -> Iterator[bytes]:
    done = 0
    for tree in trees:
        for path in sorted(tree.rglob("*")):
            if path.is_file() and not path.is_symlink() and (limit is None or done < limit):
                data = path.read_bytes()
                done += len(data)
                yield data


DATA: dict[str, Callable[[], Iterable[bytes]]] = {
    "checkpoint": lambda: (data[:LIMIT] for data in contents(corpora.checkpoints()[:1])),
    "float32": lambda: [gauss("f", LIMIT // 4)],
    "float32, bf16 in it": lambda: [truncated(gauss("f", LIMIT // 4))],
    "bfloat16": lambda: [upper_halves(gauss("f", LIMIT // 4))],
    "float16": lambda: [gauss("e", LIMIT // 8)],
    "float64": lambda: [gauss("d", LIMIT // 4)],
    "int64 < 50,000": lambda: [small_integers(LIMIT // 4)],
    "random": lambda: [random.Random(5).randbytes(LIMIT)],
    "wheel": lambda: contents(corpora.releases("scipy", ("1.13.0",), wheel=True), LIMIT),
    "sdist": lambda: contents(corpora.releases("Django", ("5.1.1",), wheel=False), LIMIT),
    "small": lambda: contents([corpora.small_files(20_000, 500, 8_000)], LIMIT),
}


def chunks(files: Iterable[bytes], average: int, divisor: int = 4) -> Iterator[memoryview]:
    chunker = chunker_for(ChunkerParams("fastcdc-2020", average // divisor, average, average * 4))
    for data in files:
        view, start = memoryview(data), 0
        for end in chunker.boundaries(view, final=True):
            yield view[start:end]
            start = end


def framed(parts: Iterable[memoryview], frame: int) -> Iterator[list[memoryview]]:
    """As `casstore.packing.ChunkWriter` gathers them."""
    group: list[memoryview] = []
    size = 0
    for part in parts:
        if size and size + len(part) > frame + frame // 4:
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part)
        if size >= frame:
            yield group
            group, size = [], 0
    if group:
        yield group


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
    return best


def encode_all(codec: Codec, groups: list[list[memoryview]]) -> list[Frame]:
    return [encode_frame(codec, [(b"", part) for part in group]) for group in groups]


def decode_all(codec: Codec, stored: list[bytes], frames: list[Frame]) -> list[bytes]:
    return [decode_frame(codec, data, frame.raw, "x") for data, frame in zip(stored, frames, strict=True)]


def compress_all(compress: Callable[[bytes], bytes], plain: list[bytes]) -> int:
    return sum(len(compress(data)) for data in plain)


def numbers() -> None:
    for name, make in DATA.items():
        groups = list(framed(chunks(make(), 32 * KIB), 256 * KIB))
        total = sum(map(len, (part for group in groups for part in group)))
        print(f"{name:20}", end="")
        for codec in (ZstdCodec(), ZstdCodec(planes=True)):
            made = encode_all(codec, groups)
            stored = [frame.stored for frame in made]
            encode = seconds(partial(encode_all, codec, groups))
            decode = seconds(partial(decode_all, codec, stored, made))
            kinds = dict(sorted(Counter(data[0] for data in stored).items()))
            print(
                f"  {sum(map(len, stored)) / total:.4f}  encode {encode * 1e9 / total:5.2f}"
                f"  decode {decode * 1e9 / total:5.2f}  {kinds!s:20}",
                end="",
            )
        print(flush=True)


def levels() -> None:
    for name in ("wheel", "sdist", "small"):
        for frame in (128, 256, 512):
            plain = [b"".join(group) for group in framed(chunks(DATA[name](), 32 * KIB), frame * KIB)]
            total = sum(map(len, plain))
            print(f"{name:8} {frame:4}K", end="")
            for level in (-5, -1, 1, 2, 3, 4, 5, 6, 9):
                compress = zstandard.ZstdCompressor(level=level, write_checksum=False).compress
                took = seconds(partial(compress_all, compress, plain))
                print(
                    f"  L{level} {compress_all(compress, plain) / total:.4f}/{took * 1e9 / total:.2f}",
                    end="",
                    flush=True,
                )
            print()


def parameters() -> None:
    tables = (
        (zstandard.STRATEGY_DFAST, 17, 16, 5),  # level 3
        (zstandard.STRATEGY_DFAST, 16, 15, 5),
        (zstandard.STRATEGY_DFAST, 15, 14, 5),
        (zstandard.STRATEGY_DFAST, 14, 13, 5),
        (zstandard.STRATEGY_DFAST, 15, 14, 6),
        (zstandard.STRATEGY_FAST, 15, 14, 5),
        (zstandard.STRATEGY_FAST, 14, 14, 6),
        (zstandard.STRATEGY_FAST, 14, 14, 7),  # level 1
    )
    for name in ("wheel", "sdist", "small"):
        plain = [b"".join(group) for group in framed(chunks(DATA[name](), 32 * KIB), 256 * KIB)]
        total = sum(map(len, plain))
        for strategy, hash_log, chain_log, min_match in tables:
            params = zstandard.ZstdCompressionParameters(
                strategy=strategy,
                window_log=19,
                hash_log=hash_log,
                chain_log=chain_log,
                search_log=1,
                min_match=min_match,
                target_length=0,
                write_checksum=False,
            )
            compress = zstandard.ZstdCompressor(compression_params=params).compress
            packed = [compress(data) for data in plain]
            encode = seconds(partial(compress_all, compress, plain))
            decode = seconds(partial(compress_all, zstandard.ZstdDecompressor().decompress, packed))
            print(
                f"{name:8} strategy {strategy} 2^{hash_log} 2^{chain_log} matches of {min_match}"
                f"  {sum(map(len, packed)) / total:.4f}"
                f"  encode {encode * 1e9 / total:.2f}  decode {decode * 1e9 / total:.2f}",
                flush=True,
            )


def sizes() -> None:
    trees: dict[str, Callable[[], list[Path]]] = {
        "sdist": lambda: corpora.releases("Django", SOURCES, wheel=False),
        "checkpoint": corpora.checkpoints,
        "small": lambda: [tree := corpora.small_files(20_000, 500, 8_000), corpora.modified(tree)],
        "wheel": lambda: corpora.releases("scipy", WHEELS, wheel=True),
    }
    digest = hash_function("xxh3-128")
    for name, make in trees.items():
        for average, divisor in ((16, 4), (32, 4), (32, 2), (64, 4), (64, 2)):
            new = {digest(part): part for part in chunks(contents(make()), average * KIB, divisor)}
            unique = sum(map(len, new.values()))
            print(f"{name:10} avg {average}K min A/{divisor}  {len(new):6} chunks {unique / 1e6:7.1f} MB", end="")
            for frame, level in ((128, 3), (256, 3), (512, 3), (1024, 3), (256, 1), (256, 6)):
                codec = ZstdCodec(level, planes=True)
                start = time.thread_time()
                stored = sum(16 + len(codec.encode(group)[1]) for group in framed(new.values(), frame * KIB))
                took = time.thread_time() - start
                print(f"  {frame}K L{level} {stored / 1e6:.2f}/{took * 1e9 / unique:.2f}", end="", flush=True)
            print()


PARTS = {"numbers": numbers, "levels": levels, "parameters": parameters, "sizes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for name in chosen:
        PARTS[name]()


if __name__ == "__main__":
    main()
