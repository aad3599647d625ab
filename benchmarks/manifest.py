"""Memory and time of walking through the manifest of a version of up to a million entries; memory must not grow.

scripts/bench manifest [ENTRIES…]   10^4, 10^5, 3·10^5 and 10^6 entries; 3 minutes, 1 GB of disk;
                                    results/manifest.json; exit status 1 if a walk through the most needs 8 MiB more
                                    than one through the second most, beyond what opening the store needs

Each size is a store with one version whose paths have 60 bytes. Its entries all have the same few bytes for content, as
the list of files is what is measured. Every walk is a process that does nothing else before. A process keeps up to 512
nodes of trees and 16 MiB of frames, whatever it reads; about 2·10^5 entries fill these caches.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from corpora import WORK
from measuring import empty, print_table, save, timed, tree_bytes

from casstore import Artifact, Store, Version
from casstore.config import MIB

SCRATCH = WORK / "manifest"
SIZES = (10_000, 100_000, 300_000, 1_000_000)
ALLOWED = 8 * MIB
WALKS = ("open only", "files()", "manifest", "pages of files()", "manifest[path]")
PAGE = 1000
LOOK_UPS = 10_000


def path_of(number: int) -> str:
    return f"data/{number // 100_000:04}/{number // 1000 % 100:04}/part-{number:035}.bin"


def build(size: int, place: Path) -> None:
    """One entry is stored; the others are the same content under other names."""
    with Store.create(place) as store:
        first = Artifact("seed")
        first.add_bytes(b"content\n", "x")
        entry = store.log_artifact(first)["x"]
        artifact = Artifact("big")
        for number in range(size):
            artifact.add_entry(entry, path_of(number))
        store.log_artifact(artifact)


def walk(version: Version, how: str) -> int:
    """Entries that were seen."""
    if how == "open only":
        return 0
    if how == "files()":
        return sum(1 for _ in version.files())
    if how == "manifest":
        return sum(1 for _ in version.manifest)
    if how == "manifest[path]":
        step = max(1, version.file_count // LOOK_UPS)
        return sum(version.manifest[path_of(number)].size > 0 for number in range(0, version.file_count, step))
    return sum(1 for _ in pages(version))


def pages(version: Version) -> Iterator[str]:
    """All paths, a page at a time, as a client of a service would ask for them."""
    cursor = ""
    for _ in itertools.count():
        page = [entry.path for entry in version.files(page_size=PAGE, start=cursor)]
        yield from page
        if len(page) < PAGE:
            return
        cursor = page[-1]


def child(place: Path, how: str) -> None:
    """One walk: seconds, entries, and the peak resident size of this process."""
    with Store.open(place, read_only=True) as store:
        version = store.get("big")
        with timed() as watch:
            seen = walk(version, how)
    print(json.dumps({"wall": round(watch.wall, 3), "seen": seen, "peak": peak_memory()}))


def peak_memory() -> int:
    """Peak resident bytes of this program."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # begins with what the parent had at the fork
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> int:
    if sys.argv[1:2] == ["walk"]:
        child(Path(sys.argv[2]), sys.argv[3])
        return 0
    sizes = [int(word) for word in sys.argv[1:]] or list(SIZES)
    rows, results = [], []
    for size in sizes:
        place = empty(SCRATCH) / "store"
        place.parent.mkdir(exist_ok=True)
        with timed() as watch:
            # In a process of its own: what it took must not be in the peak of those below.
            subprocess.run(
                [sys.executable, "-c", f"import manifest; manifest.build({size}, manifest.Path({str(place)!r}))"],
                cwd=Path(__file__).parent,
                check=True,
            )
        stored = tree_bytes(place / "packs")
        for how in WALKS:
            command = [sys.executable, __file__, "walk", str(place), how]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            results.append({"entries": size, "walk": how, "stored": stored, "built": round(watch.wall, 1), **found})
            each = f"{found['wall'] / found['seen'] * 1e6:.1f}" if found["seen"] else ""
            rows.append([f"{size:,}", how, f"{found['seen']:,}", found["wall"], each, f"{found['peak'] / MIB:.1f}"])
            print(*rows[-1], flush=True)
    print()
    print_table(["entries", "walk", "seen", "seconds", "µs each", "peak MiB"], rows)
    save("manifest", {"allowed_growth": ALLOWED, "results": results})
    empty(SCRATCH)
    peaks = {(result["entries"], result["walk"]): int(str(result["peak"])) for result in results}
    less, most = sorted(sizes)[-2:] if len(sizes) > 1 else (sizes[0], sizes[0])
    growth = {how: peaks[most, how] - peaks[less, how] for how in WALKS}
    opening = growth.pop(WALKS[0])
    growth = {how: more - max(0, opening) for how, more in growth.items()}
    worst = max(growth, key=lambda how: growth[how])
    high = growth[worst] > ALLOWED
    verdict = "FAIL" if high else "PASS"
    between = f"from {less:,} to {most:,} entries ({worst})"
    print(f"{verdict}  peak memory grows by {growth[worst] / MIB:.1f} MiB {between}, at most {ALLOWED // MIB} MiB")
    return int(high)


if __name__ == "__main__":
    sys.exit(main())
