"""What the benchmarks measure with: sizes on disk, times, memory, equal trees; and how they report."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from casstore.bench.measuring import occupied
from casstore.bench.trees import differences

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(slots=True)
class Stopwatch:
    """Seconds a block took: on the clock, and of all processors in this process and its ended children."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def timed() -> Iterator[Stopwatch]:
    watch = Stopwatch()
    wall, cpu = time.perf_counter(), _cpu()
    try:
        yield watch
    finally:
        watch.wall = time.perf_counter() - wall
        watch.cpu = _cpu() - cpu


def _cpu() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def apparent_bytes(path: Path) -> int:
    """What ``du -sb`` says: the sizes of all files and directories."""
    return occupied([path]).apparent


def disk_bytes(path: Path) -> int:
    """Bytes that the file system has set aside (``st_blocks``)."""
    return sum(
        os.lstat(os.path.join(top, name)).st_blocks * 512
        for top, directories, files in os.walk(path)
        for name in [*directories, *files]
    )


def tree_bytes(path: Path) -> int:
    """The sizes of all files below a directory."""
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, files in os.walk(path) for name in files)


def same_tree(a: Path, b: Path) -> str:
    """What ``diff -r`` has to say; empty if the trees are equal byte for byte."""
    return differences(a, b)


def machine() -> dict[str, object]:
    """Where this ran, and with what."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "processors": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("casstore", "zstandard", "blake3", "lmdb")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def save(name: str, values: dict[str, object]) -> Path:
    """Write a result next to the scripts, small enough to be committed."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    path.write_text(json.dumps({"command": command, "machine": machine(), **values}, indent=1) + "\n", encoding="utf-8")
    return path


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table that also reads well on a terminal."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if not number:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def mb(size: float) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{size / 1e6:,.2f}"


def empty(path: Path) -> Path:
    """A path at which there is nothing any more, below a directory that exists."""
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
