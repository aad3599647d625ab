"""Reading: restores, random reads, listing, comparing and opening; each in a process that does nothing else before.

scripts/bench reading [--scale N] [PART…]   all parts, or some of: restore random list open; results/reading.json

restore   CPU and wall seconds per GB and per file, and the peak resident size, of downloads of releases of a wheel, of
          source trees, of small files and of float arrays; a copy of the same tree beside it. A new directory each
          time: ext4 does not use inodes again that were freed in the last half minute, and looks at each of them
          for every file it makes, so a restore after a deletion measures the deletion
random    100 bytes at random places of blobs of noise, floats and text: ``version[path].read``, ``entry.read``, and
          seek and read of an open file; p50, p99 and CPU, warm
list      entries of a version of a million files: files(), one by its path; diff with a version that differs in one
open      a store of a million chunks: first opening, again, and the first one after a restart of the system (which
          a change of the boot marker stands for)

``--scale`` divides the sizes. Wall times mean something on a quiet machine only; CPU times nearly always.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from corpora import WORK
from manifest import path_of, peak_memory
from measuring import empty, print_table, save, timed, tree_bytes

from casstore import Artifact, ChunkerParams, Store, StoreConfig
from casstore.config import GIB, MIB

SCRATCH = WORK / "reading"
PARTS = ("restore", "random", "list", "open")
TREES = {"wheels": "scipy-1.14.0", "src": "Django-5.1.6", "small": "small-20000-500-8000", "floats": "checkpoints-128"}
READS = 2000
ENTRIES = 1_000_000
SMALL_CHUNKS = ChunkerParams.around(256)
Result = dict[str, object]


def percentile(times: list[float], share: float) -> float:
    return round(sorted(times)[int(len(times) * share)] * 1e6, 1)


def took(work: Callable[[], object]) -> Result:
    """Milliseconds of a call."""
    with timed() as watch:
        work()
    return {"wall ms": round(watch.wall * 1000, 2), "cpu ms": round(watch.cpu * 1000, 2)}


# --- parts: each is built once, and measured in a process of its own


def build_restore(place: Path, name: str, scale: int) -> None:
    with Store.create(place) as store:
        artifact = Artifact("tree")
        artifact.add_dir(WORK / "corpora" / TREES[name])
        store.log_artifact(artifact)


def restore(place: Path, name: str, scale: int) -> list[Result]:
    source = WORK / "corpora" / TREES[name]
    size = tree_bytes(source)
    found: list[Result] = []
    for number in range(3):
        target = place.parent / f"{place.name}-out-{number}"
        with timed() as watch, Store.open(place) as store:
            report = store.get("tree").download(target)
        found.append(rates(f"casstore {name}", watch.wall, watch.cpu, size, report.files))
        target = place.parent / f"{place.name}-cp-{number}"
        with timed() as watch:
            subprocess.run(["cp", "-r", source, target], check=True)
        found.append(rates(f"cp -r {name}", watch.wall, watch.cpu, size, report.files))
    return found


def rates(what: str, wall: float, cpu: float, size: int, files: int) -> Result:
    return {
        "what": what,
        "wall": round(wall, 3),
        "cpu": round(cpu, 3),
        "cpu s/GB": round(cpu / size * 1e9, 2),
        "cpu µs/file": round(cpu / files * 1e6, 1),
        "peak MiB": round(peak_memory() / MIB, 1),
    }


def blob(name: str, size: int) -> bytes:
    chance = random.Random(name)
    if name == "noise":
        return b"".join(chance.randbytes(MIB) for _ in range(size // MIB))
    if name == "floats":
        # Exponents as those of weights around nought, mantissas at random.
        blocks = []
        for _ in range(size // MIB):
            block = bytearray(chance.randbytes(MIB))
            block[3::4] = bytes(chance.choices([0x3B, 0x3C, 0xBB, 0xBC], k=MIB // 4))
            blocks.append(block)
        return b"".join(blocks)
    words = [bytes(chance.choices(b"etaoinshrdlucmfw", k=chance.randint(2, 11))) for _ in range(20_000)]
    lines = []
    length = 0
    while length < size:
        lines.append(b" ".join(chance.choices(words, k=12)) + b"\n")
        length += len(lines[-1])
    return b"".join(lines)[:size]


def build_random(place: Path, name: str, scale: int) -> None:
    with Store.create(place) as store:
        artifact = Artifact("blob")
        artifact.add_bytes(blob(name, GIB // scale // MIB * MIB), "big.bin")
        store.log_artifact(artifact)


def random_reads(place: Path, name: str, scale: int) -> list[Result]:
    found: list[Result] = []
    with Store.open(place) as store:
        version = store.get("blob")
        entry = version["big.bin"]
        file = entry.open()

        def seek_and_read(at: int) -> bytes:
            file.seek(at)
            return file.read(100)

        ways: dict[str, Callable[[int], bytes]] = {
            "version[path].read": lambda at: version["big.bin"].read(at, 100),
            "entry.read": lambda at: entry.read(at, 100),
            "open, seek, read": seek_and_read,
        }
        for way, read in ways.items():
            chance = random.Random(way)
            places = [chance.randrange(entry.length - 100) for _ in range(READS)]
            for at in places[: READS // 4]:
                read(at)
            times = []
            with timed() as watch:
                for at in places:
                    begun = time.perf_counter()
                    data = read(at)
                    times.append(time.perf_counter() - begun)
                    assert len(data) == 100
            found.append(
                {
                    "what": f"{name}: {way}",
                    "p50 µs": percentile(times, 0.5),
                    "p99 µs": percentile(times, 0.99),
                    "cpu µs": round(watch.cpu / READS * 1e6, 1),
                }
            )
        file.close()
    return found


def build_list(place: Path, name: str, scale: int) -> None:
    count = ENTRIES // scale
    with Store.create(place) as store:
        seed = Artifact("seed")
        seed.add_bytes(b"content\n", "x")
        entry = store.log_artifact(seed)["x"]
        artifact = Artifact("big")
        for number in range(count):
            artifact.add_entry(entry, path_of(number))
        draft = store.log_artifact(artifact).new_draft()
        draft.add_bytes(b"other\n", path_of(count // 2), overwrite=True)
        store.log_artifact(draft)


def listing(place: Path, name: str, scale: int) -> list[Result]:
    path = path_of(ENTRIES // scale // 3)
    with Store.open(place) as store:
        return [
            {"what": "first get and entry", **took(lambda: store.get("big:v1")[path])},
            {"what": "get and entry again", **took(lambda: store.get("big:v1")[path])},
            {"what": "first diff", **took(lambda: store.diff("big:v0", "big:v1"))},
            {"what": "diff again", **took(lambda: store.diff("big:v0", "big:v1"))},
            {"what": "files()", **took(lambda: sum(1 for _ in store.get("big:v1").files()))},
        ]


def build_open(place: Path, name: str, scale: int) -> None:
    with Store.create(place, config=StoreConfig(chunker=SMALL_CHUNKS)) as store:
        artifact = Artifact("chunks")
        artifact.add_bytes(random.Random(1).randbytes(256 * MIB // scale), "x")
        store.log_artifact(artifact)


def opening(place: Path, name: str, scale: int) -> list[Result]:
    def once() -> None:
        with Store.open(place):
            pass

    found: list[Result] = [{"what": "open", **took(once)}, {"what": "open again", **took(once)}]
    for marker in place.glob("index/**/boot"):
        marker.write_text("another boot 0", encoding="ascii")
    found.append({"what": "open after a restart", **took(once)})
    return found


WORKS: dict[str, tuple[Callable[[Path, str, int], None], Callable[[Path, str, int], list[Result]], tuple[str, ...]]] = {
    "restore": (build_restore, restore, tuple(TREES)),
    "random": (build_random, random_reads, ("noise", "floats", "text")),
    "list": (build_list, listing, ("entries",)),
    "open": (build_open, opening, ("chunks",)),
}


def child(part: str, name: str, step: str, scale: int) -> None:
    build, work, _ = WORKS[part]
    place = SCRATCH / f"{part}-{name}"
    if step == "build":
        build(place, name, scale)
    else:
        print(json.dumps(work(place, name, scale)))


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        _, _, part, name, step, scale = sys.argv
        child(part, name, step, int(scale))
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []))
    parser.add_argument("--scale", type=int, default=1)
    options = parser.parse_args()
    empty(SCRATCH).mkdir()
    results: dict[str, list[Result]] = {}
    for part in options.parts or PARTS:
        found: list[Result] = []
        for name in WORKS[part][2]:
            if part == "restore" and not (WORK / "corpora" / TREES[name]).is_dir():
                print(f"{TREES[name]} is not there (benchmarks/corpora.py): left out", file=sys.stderr)
                continue
            for step in ("build", "work"):
                command = [sys.executable, __file__, "child", part, name, step, str(options.scale)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
            found += json.loads(done.stdout)
        if found:
            results[part] = found
            print_table(list(found[0]), [list(row.values()) for row in found])
            print(flush=True)
    save("reading", {"scale": options.scale, "results": results})
    shutil.rmtree(SCRATCH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
