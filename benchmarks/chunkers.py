"""Chunkers compared: how fast, how much they find again, on what kind of data, and how slow they can be made.

scripts/bench chunkers [DIR…]   about 10 minutes; results/chunkers.json; DIRs: consecutive versions of one tree

Throughput is per CPU-second of the thread, the best of five, so that what else runs hardly matters. What is found
again is total/unique bytes over consecutive versions **at an equal number of chunks**: each algorithm runs at three
sizes, and its unique bytes are interpolated at the number of chunks of fastcdc-2020 at 32 KiB. ``low`` sets are arrays
and a copy with 64 elements put in. Needs a C compiler for what was not chosen (chunkers_rivals.c).
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import corpora
import xxhash
from measuring import print_table, save

from casstore.chunker import fastcdc, gated
from casstore.config import KIB, MIB

SIZES = (16 * KIB, 32 * KIB, 64 * KIB)
REFERENCE = "fastcdc-2020 A/4"
HELD_OUT = {
    "numpy": ("1.26.2", "1.26.3", "1.26.4"),
    "pandas": ("2.2.1", "2.2.2", "2.2.3"),
    "lxml": ("5.2.1", "5.2.2", "5.3.0"),
    "pillow": ("10.2.0", "10.3.0", "10.4.0"),
}
SPEED_BYTES = 64 * MIB

Cut = Callable[[bytes, int], list[int]]
"""all ends of a buffer's chunks, given an average"""


def rivals() -> dict[str, Cut]:
    """Those that were not chosen: the name, and the share of the average that makes the mean about the same."""
    library = Path(tempfile.mkdtemp()) / "rivals.so"
    source = Path(__file__).with_name("chunkers_rivals.c")
    subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.boundaries.restype = ctypes.c_size_t

    def rival(which: int, share: float, least: float, most: float) -> Cut:
        def cut(data: bytes, average: int) -> list[int]:
            aim = int(average * share)
            minimum, maximum = max(64, int(aim * least)), int(aim * most)
            ends = array("Q", bytes(8 * (len(data) // max(8, min(minimum, aim // 64)) + 2)))
            place = ctypes.c_void_p(ends.buffer_info()[0])
            sizes = (ctypes.c_size_t(size) for size in (len(data), minimum, aim, maximum))
            length, minimum_, aim_, maximum_ = sizes
            count = loaded.boundaries(which, data, length, minimum_, aim_, maximum_, place)
            return ends[:count].tolist()

        return cut

    return {
        "W8M (8-byte gate)": rival(0, 0.94, 0.5, 4),
        "AE, hashed": rival(1, 0.75, 0.002, 8),
        "RAM": rival(2, 0.75, 0.002, 8),
        "RAM, hashed": rival(3, 0.65, 0.002, 8),
        "SeqCDC 5/50/512": rival(4, 1, 0.5, 2),
        "fixed": lambda data, average: [*range(average, len(data), average), len(data)],
    }


def ours() -> dict[str, Cut]:
    """The kernels of casstore, at both minimums."""

    def kernel(boundaries: Callable[[bytes, int, int, int, bool], list[int]], share: int) -> Cut:
        return lambda data, average: boundaries(data, average // share, average, average * 4, True)

    found = {f"fastcdc-2020 A/{share}": kernel(fastcdc.KERNELS.get("c", fastcdc.boundaries), share) for share in (4, 2)}
    for name in [name for name in gated.KERNELS if name != "python"] or ["python"]:
        for share in (2, 4):
            found[f"gated-2026 {name} A/{share}"] = kernel(gated.KERNELS[name], share)
    return found


def gate_always_open(size: int) -> bytes:
    """Two bytes, repeated, that open the gate at every second end; no strong hash among them is a cut."""
    opening = gated.Limits.of(32 * KIB).opening
    for number in range(1 << 16):
        word = number.to_bytes(2, "little")
        if opening <= gated.gate(memoryview(word * 128)) < 1 << 15 and len(cut_default(word * 65536)) <= 2:
            return word * (size // 2)
    raise AssertionError("no such word")


def gate_often_open(size: int) -> bytes:
    """24 KiB, repeated, of random bytes with an open gate every 33 to 100 of them and no cut: hard to foresee."""
    limits, source = gated.Limits.of(32 * KIB), random.Random(1)
    data = bytearray(source.randbytes(300))
    while len(data) < 24 * KIB:
        while True:
            tail = bytes(data[-300:]) + source.randbytes(source.randrange(31, 98))
            end = len(tail) + 2
            rest = sum(gated.gate(memoryview(tail[end - 32 * k - 8 : end - 32 * k])) << 2 * k for k in range(1, 8))
            term = limits.opening - (rest & 0xFFFF) & 0xFFFF
            value = term ^ term >> 7 ^ term >> 14
            for at, power in ((-6, 3), (-4, 2), (-2, 1)):
                value -= int.from_bytes(tail[at:][:2], "little") * gated.MULTIPLIER**power
            tail += (value & 0xFFFF).to_bytes(2, "little")
            if gated.strong(tail[-64:]) >= limits.lenient:
                break
        data += tail[300:]
    return (bytes(data) * (size // len(data) + 1))[:size]


def cut_default(data: bytes) -> list[int]:
    return gated.selected().boundaries(data, 16 * KIB, 32 * KIB, 128 * KIB, True)


def octets_of(tree: Path, size: int) -> bytes:
    parts: list[bytes] = []
    for path in files_of(tree):
        parts.append(path.read_bytes())
        if sum(map(len, parts[-1:])) and sum(map(len, parts)) >= size:
            break
    return b"".join(parts)[:size]


def files_of(tree: Path) -> Iterator[Path]:
    for top, directories, files in os.walk(tree):
        directories.sort()
        yield from (Path(top, name) for name in sorted(files) if not os.path.islink(os.path.join(top, name)))


def speeds(cuts: dict[str, Cut]) -> dict[str, dict[str, float]]:
    source = random.Random(7)
    data = {
        "random": source.randbytes(SPEED_BYTES),
        "text": octets_of(corpora.releases("Django", ("5.1.1",), wheel=False)[0], SPEED_BYTES),
        "binary": octets_of(corpora.releases("scipy", ("1.13.0",), wheel=True)[0], SPEED_BYTES),
        "float": octets_of(corpora.checkpoints()[0], SPEED_BYTES),
        "zeros": bytes(SPEED_BYTES),
        "0xff": b"\xff" * SPEED_BYTES,
        "period 97": (source.randbytes(97) * (SPEED_BYTES // 97 + 1))[:SPEED_BYTES],
        "gate always open": gate_always_open(SPEED_BYTES),
        "gate often open": gate_often_open(SPEED_BYTES),
    }
    found: dict[str, dict[str, float]] = {}
    for name, cut in cuts.items():
        found[name] = {}
        for kind, octets in data.items():
            best = math.inf
            for _ in range(5):
                before = time.thread_time()
                cut(octets, 32 * KIB)
                best = min(best, time.thread_time() - before)
            found[name][kind] = round(len(octets) / best / 1e9, 2)
    return found


def low(kind: str, size: int = 32 * MIB) -> list[bytes]:
    """An array of few values, and the same with 64 elements put in."""
    source = random.Random(3)
    make: dict[str, Callable[[], bytes]] = {
        "low: bool": lambda: bytes(source.choices((0, 1), k=size)),
        "low: bool, 2 % set": lambda: bytes(source.choices((0, 1), (98, 2), k=size)),
        "low: int64 0-9": lambda: array("q", source.choices(range(10), k=size // 8)).tobytes(),
        "low: int32 0-99": lambda: array("i", source.choices(range(100), k=size // 4)).tobytes(),
        "low: float32, 1 % set": lambda: array(
            "f", (source.gauss(0, 1) if source.random() < 0.01 else 0.0 for _ in range(size // 4))
        ).tobytes(),
    }
    first = make[kind]()
    places = sorted(source.randrange(size // 8) * 8 for _ in range(64))
    return [first, b"".join(first[a:b] + first[b : b + 8] for a, b in pairwise([0, *places, size]))]


def edited(size: int = 64 * MIB) -> list[bytes]:
    """Random bytes, and the same with 128 insertions, deletions and replacements of up to 200 bytes."""
    source = random.Random(5)
    first = source.randbytes(size)
    parts, start = [], 0
    for place in sorted(source.randrange(size) for _ in range(128)):
        gone, added = source.randrange(200), source.randrange(200)
        parts += [first[start:place], source.randbytes(added)]
        start = max(start, place + gone * (place % 2))
    return [first, b"".join([*parts, first[start:]])]


def sets(trees: list[Path]) -> dict[str, Callable[[], list[bytes]]]:
    def read(found: Callable[[], list[Path]]) -> Callable[[], list[bytes]]:
        return lambda: [path.read_bytes() for tree in found() for path in files_of(tree)]

    if trees:
        return {"+".join(tree.name for tree in trees): read(lambda: trees)}
    kinds = ("bool", "bool, 2 % set", "int64 0-9", "int32 0-99", "float32, 1 % set")
    return {
        "scipy": read(lambda: corpora.releases("scipy", ("1.11.1", "1.11.2", "1.12.0", "1.13.0"), wheel=True)),
        "Django": read(lambda: corpora.releases(*corpora.SDIST, wheel=False)),
        "checkpoints": read(corpora.checkpoints),
        "stdlib": read(lambda: [corpora.standard_library(), corpora.modified(corpora.standard_library())]),
        **{
            name: read(lambda name=name, versions=versions: corpora.releases(name, versions, wheel=True))  # type: ignore[misc]
            for name, versions in HELD_OUT.items()
        },
        "random + edits": edited,
        **{f"low: {kind}": (lambda kind=kind: low(f"low: {kind}")) for kind in kinds},  # type: ignore[misc]
    }


def run(files: list[bytes], cut: Cut, average: int) -> tuple[int, int, list[int]]:
    """Chunks, unique bytes, all lengths."""
    seen: set[bytes] = set()
    unique = 0
    lengths: list[int] = []
    for octets in files:
        view = memoryview(octets)
        for start, end in pairwise([0, *cut(octets, average)] if octets else [0]):
            lengths.append(end - start)
            name = xxhash.xxh3_128_digest(view[start:end])
            if name not in seen:
                seen.add(name)
                unique += end - start
    return len(lengths), unique, lengths


def found_again(files: list[bytes], cuts: dict[str, Cut]) -> dict[str, dict[str, float]]:
    total = sum(map(len, files))
    wanted = 0
    found = {}
    for name, cut in cuts.items():
        runs = sorted(run(files, cut, average)[:2] for average in SIZES)
        middle = run(files, cut, 32 * KIB)
        if name == REFERENCE:
            wanted = middle[0]
        lengths = statistics.quantiles(middle[2], n=20) if len(middle[2]) > 1 else [0.0] * 19
        found[name] = {
            "ratio": round(total / _at(runs, wanted), 4),
            "mean": round(total / middle[0]),
            **{f"p{p}": round(lengths[p // 5 - 1]) for p in (5, 50, 95)},
        }
    return found


def _at(runs: list[tuple[int, int]], chunks: int) -> float:
    """Unique bytes at a number of chunks, along the logarithm of it; beyond the ends as between the last two."""
    pairs = list(pairwise(runs))
    (a, x), (b, y) = next((pair for pair in pairs if pair[1][0] >= chunks), pairs[-1])
    return x if a == b else x + (y - x) * math.log(chunks / a) / math.log(b / a)


def main() -> int:
    trees = [Path(word) for word in sys.argv[1:]]
    cuts = {**ours(), **rivals()}
    speed = speeds(cuts)
    kinds = list(next(iter(speed.values())))
    print_table(["GB per CPU-second", *kinds], [[name, *row.values()] for name, row in speed.items()])
    # Kernels cut alike: one of each algorithm is enough.
    kept = {name: cut for name, cut in cuts.items() if not name.startswith("gated-2026 c ")}
    again: dict[str, dict[str, dict[str, float]]] = {}
    for name, read in sets(trees).items():
        try:
            files = [octets for octets in read() if octets]
        except corpora.Unreachable as error:
            print(f"left out: {error}")
            continue
        again[name] = found_again(files, kept)
        print(f"\n{name}")
        columns = ("ratio", "mean", "p5", "p50", "p95")
        print_table(["total/unique, sizes at 32 KiB", *columns], [[n, *row.values()] for n, row in again[name].items()])
    save("chunkers", {"gigabytes_per_cpu_second": speed, "found_again": again})
    return 0


if __name__ == "__main__":
    sys.exit(main())
