"""Peak memory of logging and restoring 2 GiB, each in a process of its own; at most 256 MiB (DESIGN §9).

scripts/bench memory        about 3 minutes, 8 GB of disk; results/memory.json; exit status 1 above the limit
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from corpora import CORPORA, WORK
from measuring import empty, print_table, save, timed

from casstore import Artifact, Store
from casstore.config import GIB, KIB, MIB

SCRATCH = WORK / "memory"
LIMIT = 256 * MIB

SHAPES: dict[str, tuple[int, int]] = {
    "one file of 2 GiB": (1, 2 * GIB),
    "128 files of 16 MiB": (128, 16 * MIB),
    "20,480 files of 100 KiB": (20_480, 100 * KIB),
    "100,000 files of 1 KiB": (100_000, KIB),
}


def make(count: int, size: int) -> Path:
    target = CORPORA / f"memory-{count}-{size}"
    if target.is_dir():
        return target
    part = empty(target.with_name(target.name + ".part"))
    part.mkdir()
    source = random.Random(count)
    for number in range(count):
        path = part / f"d{number % 100:02}" / f"f{number:06}"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            left = size
            while left:
                left -= file.write(source.randbytes(min(left, 64 * MIB)))
    return part.rename(target)


def child(step: str, tree: Path, place: Path) -> None:
    """One step; prints its wall seconds and the peak resident size of this process."""
    with timed() as watch:
        if step == "log":
            with Store.create(place) as store:
                draft = Artifact("data")
                draft.add_dir(tree)
                store.log_artifact(draft)
        elif step == "download":
            with Store.open(place) as store:
                store.get("data:latest").download(place.with_name(place.name + ".out"))
        elif step == "purge and collect":
            with Store.open(place) as store:
                store.get("data:latest").delete(delete_aliases=True)
                store.trash.empty()
                store.gc(grace=0)
    print(json.dumps({"wall": round(watch.wall, 2), "cpu": round(watch.cpu, 2), "peak": peak_memory()}))


def peak_memory() -> int:
    """Peak resident bytes of this program. Not ``ru_maxrss``, which begins with what the parent had at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> int:
    if sys.argv[1:]:
        child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    rows, results, high = [], [], False
    for shape, (count, size) in SHAPES.items():
        tree = make(count, size)
        place = empty(SCRATCH) / "store"
        for step in ("nothing", "log", "download", "purge and collect"):
            command = [sys.executable, __file__, step, tree, place]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            high = high or found["peak"] > LIMIT
            results.append({"shape": shape, "step": step, **found})
            rows.append([shape, step, f"{found['peak'] / MIB:.0f}", found["wall"], found["cpu"]])
            print(*rows[-1], flush=True)
    print()
    print_table(["input", "step", "peak MiB", "seconds", "cpu s"], rows)
    save("memory", {"limit": LIMIT, "results": results})
    empty(SCRATCH)
    verdict = "FAIL" if high else "PASS"
    print(f"{verdict}  peak memory, at most {LIMIT // MIB} MiB")
    return int(high)


if __name__ == "__main__":
    sys.exit(main())
