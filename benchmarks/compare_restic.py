"""The numbers casstore promises, measured beside restic in one run (docs/benchmarks.md).

    scripts/bench compare_restic               all; results/compare_restic.json; exit status 1 if one FAILs
    scripts/bench compare_restic small_files   only this

Needs restic (Debian: ``apt-get install restic``) for ``wheel``, ``sdist`` and ``checkpoint``; the others need nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import corpora
from corpora import WORK
from measuring import apparent_bytes, disk_bytes, empty, machine, mb, print_table, same_tree, save, timed, tree_bytes

from casstore import Artifact, Store, Version
from casstore.config import KIB, MIB

SCRATCH = WORK / "compare"
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what was measured."""

    what: str
    measured: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        return self.measured <= self.limit

    def line(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        return f"{verdict}  {self.what}: {self.measured:,.2f} {self.unit}, at most {self.limit:,.2f}"


Outcome = tuple[list[Check], dict[str, object]]


def log_tree(store: Store, tree: Path) -> Version:
    draft = Artifact("data")
    draft.add_dir(tree)
    return store.log_artifact(draft)


def stored(place: Path) -> int:
    """Bytes of a store without its index, which is a view of the log and can be thrown away."""
    return apparent_bytes(place) - apparent_bytes(place / "index")


# --- three versions of a large package ------------------------------------------------------------


class Restic:
    """A restic repository of version 2 in a directory, with the defaults of the program."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._env = {**os.environ, "RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": str(SCRATCH / "restic.cache")}
        self.run("init", "--repository-version", "2")

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        command = ["restic", "--repo", str(self.place), "--quiet", *arguments]
        return subprocess.run(command, env=self._env, cwd=cwd, capture_output=True, text=True, check=True).stdout


def wheel() -> Outcome:
    """Three releases of a compiled package, into casstore and restic; stored bytes, times, every version back."""
    return three_versions("wheel", corpora.releases(*corpora.WHEEL, wheel=True))


def sdist() -> Outcome:
    """The same with three source releases of many small files."""
    return three_versions("sdist", corpora.releases(*corpora.SDIST, wheel=False))


def checkpoint() -> Outcome:
    """The same with three states of a float32 model."""
    return three_versions("checkpoint", corpora.checkpoints())


def three_versions(corpus: str, trees: list[Path]) -> Outcome:
    rounds = [_three_versions(trees, f"{corpus}-{number}") for number in range(ROUNDS)]
    ours, theirs, whole = (statistics.median(r[key][-1] for r in rounds) for key in ("casstore", "restic", "whole"))
    rows = []
    for number, tree in enumerate(trees):
        sizes = {
            key: int(statistics.median(r[key][number] - (r[key][number - 1] if number else 0) for r in rounds))
            for key in ("casstore", "restic")
        }
        times = {key: statistics.median(r[f"{key}_seconds"][number] for r in rounds) for key in ("casstore", "restic")}
        rows.append(
            [
                tree.name,
                mb(tree_bytes(tree)),
                mb(sizes["casstore"]),
                mb(sizes["restic"]),
                f"{times['casstore']:.2f}",
                f"{times['restic']:.2f}",
            ]
        )
    restores = {
        key: statistics.median(s for r in rounds for s in r[f"{key}_restore"]) for key in ("casstore", "restic")
    }
    rows.append(["all, without index", mb(sum(map(tree_bytes, trees))), mb(ours), mb(theirs), "", ""])
    rows.append(["all, with index", "", mb(whole), "", "", ""])
    rows.append(["restore of one (median)", "", "", "", f"{restores['casstore']:.2f}", f"{restores['restic']:.2f}"])
    head = ["version", "logical MB", "casstore MB", "restic MB", "casstore s", "restic s"]
    print_table(head, rows)
    differences = sum(int(r["different"][0]) for r in rounds)
    checks = [
        Check(f"{corpus}: stored without index, against restic", ours / 1e6, theirs / 1e6, "MB"),
        Check(f"{corpus}: whole store with index, against restic", whole / 1e6, theirs / 1e6, "MB"),
        Check(f"{corpus}: versions that diff -r finds different", differences, 0, "trees"),
    ]
    version = subprocess.run(["restic", "version"], capture_output=True, text=True, check=True).stdout.strip()
    return checks, {"restic": version, "trees": [tree.name for tree in trees], "head": head, "rows": rows}


def _three_versions(trees: list[Path], name: str) -> dict[str, list[float]]:
    place = SCRATCH / name
    place.mkdir()
    repository = Restic(place / "restic")
    kinds = ("casstore", "whole", "restic", "casstore_seconds", "restic_seconds", "casstore_restore", "restic_restore")
    found: dict[str, list[float]] = {key: [] for key in (*kinds, "different")}
    with Store.create(place / "casstore") as store:
        # By turns, so that both meet the same machine and the same page cache.
        for tree in trees:
            with timed() as ours:
                log_tree(store, tree)
            with timed() as theirs:
                repository.run("backup", ".", cwd=tree)
            found["casstore_seconds"].append(ours.wall)
            found["restic_seconds"].append(theirs.wall)
            found["casstore"].append(stored(place / "casstore"))
            found["whole"].append(apparent_bytes(place / "casstore"))
            found["restic"].append(apparent_bytes(place / "restic"))
    snapshots = [line.split()[0] for line in repository.run("snapshots", "--compact").splitlines()]
    different = 0
    with Store.open(place / "casstore") as store:
        for at, tree in enumerate(trees):
            target = place / f"out-{at}"
            with timed() as ours:
                store.get(f"data:v{at}").download(target)
            difference = same_tree(tree, target)
            different += bool(difference)
            if difference:
                print(f"DIFFERENT data:v{at}: {difference}")
            found["casstore_restore"].append(ours.wall)
    identifiers = [word for word in snapshots if len(word) == 8 and set(word) <= set("0123456789abcdef")]
    for at, identifier in enumerate(identifiers):
        with timed() as theirs:
            repository.run("restore", identifier, "--target", str(place / f"restic-out-{at}"))
        found["restic_restore"].append(theirs.wall)
    found["different"].append(different)
    return found


# --- small changes and small files ----------------------------------------------------------------


def one_file_change() -> Outcome:
    """One file of 20,000 changes: bytes written, and time against that of the first log."""
    tree = corpora.small_files(20_000, 500, 8_000)
    path = "d050/f010050.txt"
    rows = []
    for number in range(ROUNDS):
        place = SCRATCH / f"change-{number}"
        with Store.create(place) as store:
            with timed() as first:
                log_tree(store, tree)
            before = stored(place)
            with timed() as change:
                draft = store.get("data:latest").new_draft()
                draft.add_bytes(b"another content\n", path, overwrite=True)
                store.log_artifact(draft)
            written = stored(place) - before
            with timed() as again:
                full = Artifact("data")
                full.add_dir(tree)
                full.add_bytes(b"a third content\n", path, overwrite=True)
                store.log_artifact(full)
        rows.append([written, first.wall, change.wall, again.wall])
    wrote, first_s, change_s, again_s = (statistics.median(row[i] for row in rows) for i in range(4))
    head = ["20,000 files, 85 MB", "seconds", "of the first log", "bytes written"]
    table = [
        ["first log", f"{first_s:.2f}", "100 %", ""],
        ["one file, as a draft", f"{change_s:.4f}", f"{change_s / first_s:.2%}", f"{wrote:,.0f}"],
        ["one file, the whole directory added again", f"{again_s:.2f}", f"{again_s / first_s:.0%}", ""],
    ]
    print_table(head, table)
    checks = [
        Check("a one-file change in 20,000 files writes", wrote / KIB, 1024, "KiB"),
        Check("a one-file change takes, of the first log's time", 100 * change_s / first_s, 10, "%"),
    ]
    return checks, {"head": head, "rows": table}


def inserted_byte() -> Outcome:
    """One byte more in the middle of 64 MiB of random data."""
    size = 64 * MIB
    trees = [
        corpora.random_file("data.bin", size, seed=64),
        corpora.random_file("data.bin", size, seed=64, insert_at=size // 2),
    ]
    place = SCRATCH / "inserted"
    with Store.create(place) as store:
        log_tree(store, trees[0])
        before = stored(place)
        log_tree(store, trees[1])
        added = stored(place) - before
    return [Check("one byte inserted into 64 MiB adds", added / KIB, 1024, "KiB")], {"added_bytes": added}


def small_files() -> Outcome:
    """10,000 files of 100 bytes: blocks on disk, of everything."""
    place = SCRATCH / "small"
    with Store.create(place) as store:
        log_tree(store, corpora.small_files(10_000, 100, 100))
        used = disk_bytes(place)
    parts = {part.name: disk_bytes(part) if part.is_dir() else part.stat().st_size for part in sorted(place.iterdir())}
    return [Check("10,000 files of 100 bytes take on disk", used / MIB, 8, "MiB")], {"bytes": used, "parts": parts}


CHECKS: dict[str, Callable[[], Outcome]] = {
    check.__name__: check for check in (wheel, sdist, checkpoint, one_file_change, inserted_byte, small_files)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default all")
    chosen = parser.parse_args().checks or list(CHECKS)
    if unknown := set(chosen) - set(CHECKS):
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    if {"wheel", "sdist", "checkpoint"} & set(chosen) and shutil.which("restic") is None:
        parser.error("restic is not installed (Debian: apt-get install restic)")
    empty(SCRATCH).mkdir()
    where = machine()
    lines: list[Check] = []
    values: dict[str, object] = {}
    for name in chosen:
        print(f"\n{name}: {CHECKS[name].__doc__}", flush=True)
        checks, details = CHECKS[name]()
        values[name] = {**details, "checks": [check.line() for check in checks]}
        lines += checks
        for check in checks:
            print(check.line(), flush=True)
    if set(chosen) == set(CHECKS):
        print(f"\nwritten to {save('compare_restic', {'at_start': where, 'results': values})}")
    empty(SCRATCH)
    return 0 if all(check.passed for check in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
