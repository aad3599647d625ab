"""Measure chunk, frame and node sizes and the compression level on three kinds of data (docs/decisions/0001-0004).

    benchmarks/sweep.py                 everything, about 25 minutes; results/sweep.json
    benchmarks/sweep.py frame chunk     only these

Each measurement makes a store in ``.work/sweep.cas``, logs three versions into it, and looks at it: bytes of packs
and log (the index is a view and left out), time to log all, time to restore the last, random reads, and the
bytes a one-file change writes. Times are single runs on a machine that does other work: CPU seconds are the better
number. Restored trees are kept until the end: making files shortly after many were deleted is several times slower on
ext4 without a journal (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import corpora
from corpora import WORK
from measuring import apparent_bytes, empty, mb, print_table, save, timed

from casstore import Artifact, ChunkerParams, Settings, Store, StoreConfig, Version
from casstore.config import KIB

STORE = WORK / "sweep.cas"
OUT = WORK / "sweep.out"  # restored trees
READS = 300
CHANGES = 9


@dataclass(frozen=True)
class Point:
    """One choice of parameters."""

    average: int = 32
    divisor: int = 4
    frame: int = 256
    level: int = 3
    node: int = 16

    def config(self) -> StoreConfig:
        chunker = ChunkerParams(
            minimum=self.average * KIB // self.divisor, average=self.average * KIB, maximum=self.average * KIB * 4
        )
        return StoreConfig(chunker=chunker, frame_bytes=self.frame * KIB, node_bytes=self.node * KIB)


@dataclass(frozen=True)
class Result:
    """What a choice costs. Bytes, seconds and microseconds."""

    corpus: str
    point: Point
    packs: int
    log: int
    new: list[int]
    chunks: int
    ingest_wall: float
    ingest_cpu: float
    restore_wall: float
    restore_cpu: float
    read_100: float
    read_16k: float
    change_bytes: int
    change_wall: float


def measure(corpus: str, trees: list[Path], point: Point) -> Result:
    empty(STORE)
    with Store.create(STORE, config=point.config(), settings=Settings(zstd_level=point.level)) as store:
        new = []
        with timed() as ingest:
            for tree in trees:
                draft = Artifact("data")
                draft.add_dir(tree)
                new.append(store.log_artifact(draft).new_stored_bytes)
        chunks = store.du().chunks
    packs, log = apparent_bytes(STORE / "packs"), apparent_bytes(STORE / "log")
    with Store.open(STORE) as store:
        version = store.get("data:latest")
        with timed() as restore:
            version.download(OUT / f"{corpus}-{'-'.join(str(value) for value in asdict(point).values())}")
        read_100, read_16k = _random_reads(version)
    with Store.open(STORE, settings=Settings(zstd_level=point.level)) as store:
        change_bytes, change_wall = _change(store)
    return Result(
        corpus,
        point,
        packs,
        log,
        new,
        chunks,
        round(ingest.wall, 2),
        round(ingest.cpu, 2),
        round(restore.wall, 2),
        round(restore.cpu, 2),
        read_100,
        read_16k,
        change_bytes,
        change_wall,
    )


def _random_reads(version: Version) -> tuple[float, float]:
    """p50 microseconds of 100 random bytes, and of 16 KiB, anywhere in the version; files by their size."""
    source = random.Random(1)
    entries = [entry for entry in version.files() if entry.size > 100]
    chosen = source.choices(entries, [entry.size for entry in entries], k=READS)
    short = [_read_time(entry.read, source.randrange(entry.size - 99), 100) for entry in chosen]
    large = [entry for entry in entries if entry.size > 16 * KIB] or entries
    chosen = source.choices(large, [entry.size for entry in large], k=READS)
    longer = [_read_time(entry.read, source.randrange(max(1, entry.size - 16 * KIB)), 16 * KIB) for entry in chosen]
    return round(statistics.median(short)), round(statistics.median(longer))


def _read_time(read: Callable[[int, int], bytes], offset: int, length: int) -> float:
    start = time.perf_counter()
    read(offset, length)
    return (time.perf_counter() - start) * 1e6


def _change(store: Store) -> tuple[int, float]:
    """Bytes in packs and log, and seconds, of one small file changed: medians over files all over the tree."""
    paths = [entry.path for entry in store.get("data:latest").files()]
    written, seconds = [], []
    for number in range(CHANGES):
        before = apparent_bytes(STORE / "packs") + apparent_bytes(STORE / "log")
        with timed() as watch:
            draft = store.get("data:latest").new_draft()
            draft.add_bytes(f"changed {number}\n".encode(), paths[len(paths) * number // CHANGES], overwrite=True)
            store.log_artifact(draft)
        written.append(apparent_bytes(STORE / "packs") + apparent_bytes(STORE / "log") - before)
        seconds.append(watch.wall)
    return int(statistics.median(written)), round(statistics.median(seconds), 4)


BASE = Point()


def frames() -> Iterator[Point]:
    for frame in (64, 128, 256, 512, 1024):
        yield replace(BASE, frame=frame)


def chunks() -> Iterator[Point]:
    for average in (16, 32, 64, 128):
        for divisor in (4, 2):
            yield replace(BASE, average=average, divisor=divisor)


def levels() -> Iterator[Point]:
    for level in (1, 3, 6, 9):
        yield replace(BASE, level=level)


def nodes() -> Iterator[Point]:
    for node in (4, 8, 16, 32, 64):
        yield replace(BASE, node=node)


SWEEPS: dict[str, tuple[Callable[[], Iterator[Point]], tuple[str, ...]]] = {
    "frame": (frames, ("wheel", "sdist", "checkpoint")),
    "chunk": (chunks, ("wheel", "sdist", "checkpoint")),
    "level": (levels, ("wheel", "sdist", "checkpoint")),
    "node": (nodes, ("sdist", "small", "checkpoint")),
}


def trees_of(corpus: str) -> list[Path]:
    match corpus:
        case "wheel":
            return corpora.releases(*corpora.WHEEL, wheel=True)
        case "sdist":
            return corpora.releases(*corpora.SDIST, wheel=False)
        case "checkpoint":
            return corpora.checkpoints()
        case _:
            tree = corpora.small_files(20_000, 500, 8_000)
            return [tree, corpora.modified(tree)]


HEAD = (
    *("corpus", "avg", "min", "frame", "level", "node", "stored_MB", "log_MB", "chunks"),
    *("ingest_s", "cpu_s", "restore_s", "cpu_s", "read100_us", "read16K_us", "change_KB", "change_ms"),
)


def row(result: Result) -> list[object]:
    point = result.point
    return [
        result.corpus,
        f"{point.average}K",
        f"A/{point.divisor}",
        f"{point.frame}K",
        point.level,
        f"{point.node}K",
        mb(result.packs + result.log),
        mb(result.log),
        result.chunks,
        result.ingest_wall,
        result.ingest_cpu,
        result.restore_wall,
        result.restore_cpu,
        f"{result.read_100:.0f}",
        f"{result.read_16k:.0f}",
        f"{result.change_bytes / 1e3:.1f}",
        f"{result.change_wall * 1e3:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"of {', '.join(SWEEPS)}; default all")
    chosen = parser.parse_args().sweeps or list(SWEEPS)
    if unknown := set(chosen) - set(SWEEPS):
        parser.error(f"no such sweep: {', '.join(sorted(unknown))}")
    empty(OUT)
    for name in chosen:
        points, names = SWEEPS[name]
        results = []
        for corpus in names:
            trees = trees_of(corpus)
            for point in points():
                results.append(measure(corpus, trees, point))
                print(name, *row(results[-1]), flush=True)
        print(f"\n{name}")
        print_table(HEAD, [row(result) for result in results])
        save(f"sweep-{name}", {"results": [asdict(result) for result in results]})
    empty(STORE)
    empty(OUT)


if __name__ == "__main__":
    main()
