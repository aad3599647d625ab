"""Durable commits a second, each of one file of 1 KiB: by one thread, and by several at once (group commit).

scripts/bench commits [N] [THREADS…]   N commits (2000) by 1, 4 and 16 threads; a minute; results/commits.json

Every number of threads is a process of its own, three times, alternately with the disk and with syncs that do nothing:
what is left then is what the processors take. The file system is that of the work directory; a sync that its kernel
answers from memory is faster than any disk.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from corpora import WORK
from measuring import empty, print_table, save

from casstore import Artifact, Store
from casstore.backend.osops import OsOps, StrPath

SCRATCH = WORK / "commits"
COMMITS = 2000
THREADS = (1, 4, 16)
ROUNDS = 3
FILE_BYTES = 1024
WARM_UP = 50
GOALS = {1: 150, 16: 1000}
"""commits a second"""


class Counting(OsOps):
    """Counts syncs, and may leave them out."""

    def __init__(self, *, syncs: bool) -> None:
        super().__init__()
        self.count = 0
        self.syncs = syncs

    def fsync(self, fd: int, path: StrPath) -> None:
        """Count; sync or not."""
        self.count += 1
        if self.syncs:
            super().fsync(fd, path)

    def fsync_dir(self, path: StrPath) -> None:
        """Count; sync or not."""
        self.count += 1
        if self.syncs:
            super().fsync_dir(path)


def measure(place: Path, commits: int, threads: int, *, syncs: bool) -> dict[str, float]:
    """One process, so many commits."""
    ops = Counting(syncs=syncs)
    share = commits // threads
    contents = [[os.urandom(FILE_BYTES) for _ in range(share)] for _ in range(threads)]
    with Store.create(place, ops=ops) as store:

        def run(name: str, files: list[bytes]) -> None:
            for data in files:
                artifact = Artifact(name)
                artifact.add_bytes(data, "data.bin")
                store.log_artifact(artifact)

        run("warm-up", [os.urandom(FILE_BYTES) for _ in range(WARM_UP)])
        crew = [threading.Thread(target=run, args=(f"c{number}", contents[number])) for number in range(threads)]
        head, ops.count = store.head, 0
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        done = share * threads
        assert sum(1 for number in range(threads) for _ in store.versions(f"c{number}")) == done
        return {
            "commits_per_second": done / seconds,
            "user_ms": 1000 * (after.ru_utime - before.ru_utime) / done,
            "system_ms": 1000 * (after.ru_stime - before.ru_stime) / done,
            "syncs": ops.count / done,
            "commits_per_segment": done / (store.head - head),
        }


def alone(commits: int, threads: int, *, syncs: bool) -> dict[str, float]:
    """`measure` in a process of its own."""
    place = empty(SCRATCH / "store")
    command = [sys.executable, __file__, "--measure", str(place), str(commits), str(threads), str(int(syncs))]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def main() -> None:
    """Print a table, save the results."""
    if sys.argv[1:2] == ["--measure"]:
        place, *how = sys.argv[2:]
        print(json.dumps(measure(Path(place), int(how[0]), int(how[1]), syncs=how[2] == "1")))
        return
    numbers = [int(argument) for argument in sys.argv[1:]]
    commits, many = (numbers or [COMMITS])[0], numbers[1:] or THREADS
    rows = []
    results: dict[str, object] = {"commits": commits, "file_bytes": FILE_BYTES, "rounds": ROUNDS}
    for threads in many:
        found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for syncs, runs in found.items():
                # The fewer threads, the slower.
                runs.append(alone(commits if threads > 1 else max(1, commits // 4), threads, syncs=syncs))
        for syncs, runs in found.items():
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rates = [run["commits_per_second"] for run in runs]
            middle |= {"slowest": min(rates), "fastest": max(rates)}
            results[f"{threads} threads{'' if syncs else ', syncs left out'}"] = middle
            goal = GOALS.get(threads) if syncs else None
            rows.append(
                (
                    str(threads),
                    "yes" if syncs else "left out",
                    f"{middle['commits_per_second']:.0f}",
                    f"{min(rates):.0f}-{max(rates):.0f}",
                    str(goal or ""),
                    f"{middle['user_ms']:.2f} + {middle['system_ms']:.2f}",
                    f"{middle['syncs']:.2f}",
                    f"{middle['commits_per_segment']:.1f}",
                )
            )
    print_table(("threads", "syncs", "commits/s", "spread", "goal", "CPU ms", "syncs/commit", "commits/segment"), rows)
    save("commits", results)


if __name__ == "__main__":
    main()
