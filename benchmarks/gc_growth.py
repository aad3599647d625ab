"""How the cost of collecting grows with the number of chunks, and deleting 100,000 versions by a predicate.

scripts/bench gc_growth [SIZE…]     10^4 to 10^6 chunks; about 10 minutes, 2 GB of disk; results/gc_growth.json and
                                    docs/img/gc-growth.svg (if matplotlib is there: pip install matplotlib)

Each size is a store of its own: 20 versions of random bytes, in chunks of about 256 bytes, each sharing half its
content with the version before. The first ten are deleted and purged; then a process that has done nothing else
collects, and tells the time of each part and the peak of its memory.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpora import WORK
from measuring import empty, print_table, save, timed, tree_bytes

import casstore.gc as collector
from casstore import Artifact, ChunkerParams, Store, StoreConfig
from casstore.config import MIB
from casstore.gc.mark import mark
from casstore.model import PutVersion
from casstore.selection import Where

SCRATCH = WORK / "gc-growth"
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
VERSIONS = 20
DELETED = 10
CHUNK = 256
CONFIG = StoreConfig(chunker=ChunkerParams.around(CHUNK))
BULK = 100_000
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "img" / "gc-growth.svg"


def build(size: int, place: Path) -> None:
    """A store of about ``size`` chunks."""
    with Store.create(place, config=CONFIG) as store:
        piece = size * CHUNK // (VERSIONS + 1)
        source = random.Random(size)
        before = source.randbytes(piece)
        for _ in range(VERSIONS):
            fresh = source.randbytes(piece)
            artifact = Artifact("data")
            artifact.add_bytes(before, "old")
            artifact.add_bytes(fresh, "new")
            store.log_artifact(artifact)
            before = fresh
        for number in range(DELETED):
            store.delete(f"data:v{number}", delete_aliases=True)
        store.trash.empty()


def measure(place: Path) -> dict[str, float]:
    """Collect and tell the parts; in a process of its own."""
    spent: dict[str, float] = {}

    def clocked(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*args, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

        return run

    with Store.open(place) as store:
        engine = store._engine
        with engine.view.read() as tables:
            chunks, nodes = tables.count("chunk"), tables.count("node")
        opened = _peak()
        with timed() as alone:
            mark(engine, None)
        marked = _peak()
        for name, part in (
            ("make_plan", "plan"),
            ("retire", "retire"),
            ("reclaim", "reclaim"),
            ("check_counts", "marks"),
            ("clear", "marks"),
        ):
            setattr(collector, name, clocked(part, getattr(collector, name)))
        with timed() as total:
            report = store.gc(grace=0)
        peak = _peak()
        with timed() as again:
            store.gc(grace=0)
        with timed() as nothing:
            store.gc(grace=0, incremental=True)
    return {
        "chunks": chunks,
        "nodes": nodes,
        "mark": alone.wall,
        **spent,
        "gc": total.wall,
        "gc_nothing_to_do": again.wall,
        "gc_incremental_nothing_to_do": nothing.wall,
        "freed_chunks": report.freed_chunks,
        "freed_bytes": report.freed_bytes,
        "rss_open": opened,
        "rss_mark": marked,
        "rss_gc": peak,
        "left": tree_bytes(place / "packs"),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bulk(place: Path) -> dict[str, float]:
    """Delete 100,000 versions by a predicate, and purge them."""
    with Store.create(place) as store:
        artifact = Artifact("data")
        artifact.add_bytes(b"x" * 1000, "x")
        first = store.log_artifact(artifact)
        row = PutVersion("default/default/data", first.type, first.digest.value, 1000, 1, "", b"{}", ("old",), (),
                         True, "", -1, "bench")  # fmt: skip
        for _ in range(BULK // 1000):
            store._engine.commit(lambda _: (row,) * 1000)
        head = store.log(limit=1)[0].seq
        with timed() as deleted:
            done = store.delete(where=Where(tag="old"), delete_aliases=True)
        commits = store.log(limit=1)[0].seq - head
        with timed() as purged:
            store.trash.empty()
        with timed() as collected:
            store.gc(grace=0)
    return {
        "versions": len(done.refs),
        "commits": commits,
        "delete": deleted.wall,
        "empty_trash": purged.wall,
        "gc": collected.wall,
        "rss": _peak(),
    }


def child(step: str, place: str, size: str = "0") -> None:
    if step == "build":
        build(int(size), Path(place))
    else:
        print(json.dumps({"measure": measure, "bulk": bulk}[step](Path(place))))


def run(*args: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *map(str, args)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout) if done.stdout else {}


def draw(rows: list[dict[str, float]]) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only here, and only if it is there
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "casstore"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    sizes = [row["chunks"] for row in rows]
    for name in ("mark", "plan", "retire", "reclaim", "gc"):
        left.plot(sizes, [row.get(name, 0.0) for row in rows], marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="chunks", ylabel="seconds", title="time of a collection and its parts")
    left.legend()
    right.plot(sizes, [(row["rss_gc"]) / MIB for row in rows], marker="o", label="peak RSS")
    right.plot(sizes, [(row["rss_open"]) / MIB for row in rows], marker="o", label="… after opening")
    right.set(xscale="log", xlabel="chunks", ylabel="MiB", title="memory", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"wrote {PICTURE}")


def main(sizes: tuple[int, ...]) -> None:
    rows = []
    for size in sizes:
        runs = []
        for _ in range(3 if size <= 100_000 else 1):
            place = empty(SCRATCH / str(size))
            run("build", place, size)
            runs.append(run("measure", place))
        rows.append({key: statistics.median(r[key] for r in runs if key in r) for key in runs[0]})
        empty(place)
    keys = ("mark", "plan", "retire", "reclaim", "gc", "gc_nothing_to_do", "gc_incremental_nothing_to_do")
    table = [
        (
            f"{row['chunks']:,.0f}",
            f"{row['nodes']:,.0f}",
            *(f"{row.get(key, 0):.3f}" for key in keys),
            f"{row['rss_open'] / MIB:.0f}",
            f"{row['rss_gc'] / MIB:.0f}",
        )
        for row in rows
    ]
    print_table(("chunks", "nodes", *(f"{key} s" for key in keys), "RSS open MiB", "RSS gc MiB"), table)
    many = run("bulk", empty(SCRATCH / "bulk"))
    print_table(tuple(many), [tuple(f"{value:,.2f}" for value in many.values())])
    save("gc_growth", {"growth": rows, "bulk": many})
    draw(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main(tuple(int(arg) for arg in sys.argv[1:]) or SIZES)
