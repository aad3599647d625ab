"""Logging a tree again that has not changed: with the stat cache, and reading everything (``trust_mtime=False``).

scripts/bench unchanged [DIR…]   about 2 minutes; results/unchanged.json; exit status 1 if the second log opens a file

Default: this environment's site-packages, and 20,000 small files. Each step is a process of its own, so that its peak
memory is its own; the ways take turns, and ratios are of medians.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from corpora import CORPORA, WORK
from measuring import apparent_bytes, empty, mb, print_table, save, timed
from memory import peak_memory

from casstore import Artifact, Store, reading
from casstore.config import Runtime
from casstore.sources import LocalFile, open_local

ROUNDS = 5
SCRATCH = WORK / "unchanged"
STEPS = {
    "first log, nothing remembered": "first-forgetful",
    "first log": "first",
    "again, all read": "rescan",
    "again, one file in 100 new": "some",
    "again": "again",
}
"""in the order they are shown; what each does is in `child`"""


def small_files() -> Path:
    target = CORPORA / "unchanged-20000"
    if target.is_dir():
        return target
    part = empty(target.with_name(target.name + ".part"))
    part.mkdir()
    source = random.Random(20)
    for number in range(20_000):
        path = part / f"d{number % 200:03}" / f"f{number:05}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.randbytes(source.randrange(200, 8000)))
    return part.rename(target)


def child(step: str, tree: Path, place: Path) -> None:
    """One step; prints its seconds, what it opened, and the peak resident size of this process."""
    opened: list[int] = []

    def counted(source: LocalFile) -> BinaryIO:
        opened.append(source.signature.size)
        return open_local(source)

    reading.open_local = counted  # type: ignore[attr-defined]
    forgetful = replace(Runtime(), file_system=lambda _: "")
    make = Store.open if place.exists() else Store.create
    with make(place, runtime=forgetful if step == "first-forgetful" else None) as store:
        with timed() as watch:
            draft = Artifact("data")
            draft.add_dir(tree, symlinks="skip", exclude=["__pycache__"], trust_mtime=step != "rescan")
            if step == "some":
                for number, entry in enumerate(list(draft.files())):
                    if number % 100 == 0:
                        draft.add_bytes(b"another %d" % number, entry.path, overwrite=True)
            version = store.log_artifact(draft)
        values = {"files": version.file_count, "bytes": version.size, "created": version.created}
    values |= {"wall": watch.wall, "cpu": watch.cpu, "opened": len(opened), "read": sum(opened), "peak": peak_memory()}
    print(json.dumps(values))


def run(step: str, tree: Path, place: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", step, str(tree), str(place)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def measure(tree: Path) -> dict[str, object]:
    seen: dict[str, list[dict[str, float]]] = {step: [] for step in STEPS.values()}
    sizes = {}
    for _ in range(ROUNDS):
        for first in ("first-forgetful", "first"):
            place = empty(SCRATCH) / "store"
            place.parent.mkdir(parents=True, exist_ok=True)
            seen[first].append(run(first, tree, place))
            sizes[first] = apparent_bytes(place / "index")
        for step in ("again", "rescan", "some"):
            seen[step].append(run(step, tree, place))
    steps = {
        step: {
            "seconds": statistics.median(one["wall"] for one in runs),
            "cpu": statistics.median(one["cpu"] for one in runs),
            "opened": max(one["opened"] for one in runs),
            "read": max(one["read"] for one in runs),
            "peak": max(one["peak"] for one in runs),
        }
        for step, runs in seen.items()
    }
    whole = seen["first"][0]
    return {"files": whole["files"], "bytes": whole["bytes"], "index": sizes, "steps": steps}


def show(name: str, found: dict[str, object]) -> None:
    steps = found["steps"]
    assert isinstance(steps, dict)
    print(f"\n{name}: {found['files']:,} files, {mb(float(str(found['bytes'])))} MB; index bytes {found['index']}\n")
    base = steps["rescan"]
    rows = []
    for shown, step in STEPS.items():
        one = steps[step]
        share = f"{100 * one['seconds'] / base['seconds']:.0f} %"
        megabytes, peak = mb(one["read"]), round(one["peak"] / 2**20)
        rows.append([shown, f"{one['seconds']:.3f}", share, f"{one['cpu']:.2f}", one["opened"], megabytes, peak])
    print_table(["log", "seconds", "of all read", "cpu s", "files opened", "MB read", "peak MiB"], rows)


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return 0
    trees = [Path(word) for word in sys.argv[1:]] or [Path(sysconfig.get_path("purelib")), small_files()]
    results = {tree.name: measure(tree) for tree in trees}
    for name, found in results.items():
        show(name, found)
    print()
    good = True
    for name, found in results.items():
        again = found["steps"]["again"]  # type: ignore[index]
        good = good and again["opened"] == 0
        word = "PASS" if again["opened"] == 0 else "FAIL"
        print(f"{word}  {name}: files the second log opens: {again['opened']}, at most 0")
    save("unchanged", {"rounds": ROUNDS, "trees": results})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
