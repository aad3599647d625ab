"""How a store grows with its chunks and entries: ingest, commit, lookup, mark, diff, opening, index size, memory.

scripts/bench growth [--max N] [--work DIR]
                       10^4 to 10^6 chunks (--max 10000000: 10^7); results/growth.json and, if matplotlib is
                       there, docs/img/growth.svg; exit status 1 if a fresh open of 10^6 chunks takes 100 ms

One store, into which a version of 10^4 entries is logged, then one of 10^5, …: each entry has a content of its own, of
24 bytes, and the version before is the beginning of the next, so a tenth of each log is duplicates. The real session
(`casstore.writer.Writer`) stores them, in one transaction; files are not read, as that does not depend on the size of
the store. Every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora import WORK
from manifest import peak_memory
from measuring import empty, print_table, save, timed, tree_bytes

from casstore import Artifact, Store
from casstore.config import MIB
from casstore.gc.mark import mark
from casstore.model import Entry, EntryKind, PutVersion
from casstore.tree import write_entries
from casstore.writer import Writer

FIRST = 10_000
LIMIT = 0.1
"""seconds a fresh open of 10^6 chunks may take"""
COMMITS = 50
LOOK_UPS = 10_000
BATCH = 4096
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "img" / "growth.svg"


def content(number: int) -> bytes:
    return b"%024d" % number


def path_of(number: int) -> str:
    return f"data/{number // 1_000_000:04}/{number // 1000 % 1000:04}/part-{number:010}.bin"


def build(place: Path, size: int) -> dict[str, float]:
    """One more version, of as many entries as are wanted in all."""
    with Store.open(place, create=True) as store:
        engine = store._engine
        opened = peak_memory()
        with timed() as whole:
            writer = Writer(engine)

            def entries() -> Iterator[Entry]:
                for start in range(0, size, BATCH):
                    some = [content(number) for number in range(start, min(size, start + BATCH))]
                    named = [(engine.hash(data), data) for data in some]
                    missing = writer.missing([digest for digest, _ in named])
                    for digest, data in named:
                        if digest in missing:
                            writer.put(digest, data)
                    for number, (digest, data) in enumerate(named, start):
                        yield Entry(path_of(number), EntryKind.FILE, len(data), chunks=((digest, len(data)),))

            tree = write_entries(entries(), engine.config.node_bytes, writer.put_node)
            row = PutVersion("default/default/growth", "dataset", tree.root, tree.size, tree.count, "", b"{}", (), (),
                             True, "", -1, "bench")  # fmt: skip
            with timed() as commit:
                writer.commit(lambda _: (row,), lambda broken: None)
        peak = peak_memory()
    return {"ingest": whole.wall, "ingest_cpu": whole.cpu, "apply": commit.wall, "apply_cpu": commit.cpu,
            "rss_ingest": peak, "rss_before": opened}  # fmt: skip


def measure(place: Path, size: int) -> dict[str, Any]:
    """What a process meets that opens the store."""
    with timed() as fresh:
        store = Store.open(place)
    found: dict[str, Any] = {"open": fresh.wall, "open_cpu": fresh.cpu, "rss_open": peak_memory()}
    with store:
        engine = store._engine
        version = store.get("growth")
        assert version.file_count == size
        with engine.view.read() as tables:
            found["chunks"], found["nodes"] = tables.count("chunk"), tables.count("node")
        source = random.Random(1)
        hits = [engine.hash(content(source.randrange(size))) for _ in range(LOOK_UPS)]
        misses = [engine.hash(b"no %d" % number) for number in range(LOOK_UPS)]
        for name, digests, known in (("hit", hits, True), ("miss", misses, False)):
            with timed() as watch:
                answers = engine.view.known(digests)
            assert answers == [known] * LOOK_UPS
            found[name] = watch.cpu / LOOK_UPS
        with timed() as watch:
            list(itertools.islice(version.files(start=path_of(size // 2)), 1000))
        found["page"] = watch.wall
        with timed() as watch:
            mark(engine, None)
        found["mark"], found["mark_cpu"] = watch.wall, watch.cpu
        found["rss_mark"] = peak_memory()
        found["commit"], found["commit_cpu"] = commits(store)
        draft = version.new_draft()
        draft.add_bytes(b"changed", path_of(size // 2), overwrite=True)
        with timed() as watch:
            changed = store.log_artifact(draft)
        found["change"], found["change_cpu"] = watch.wall, watch.cpu
        spent = []
        for _ in range(5):
            with timed() as watch:
                difference = store.diff(version, changed)
            assert len(difference.changed) == 1
            spent.append(watch.wall)
        found["diff"] = statistics.median(spent)
        store.delete(changed.ref, delete_aliases=True)
        found["index"] = tables_of(store)
    found["index_file"] = sum(file.stat().st_size for file in (place / "index").rglob("data.mdb"))
    found["log"], found["packs"] = tree_bytes(place / "log"), tree_bytes(place / "packs")
    return found


def commits(store: Store) -> tuple[float, float]:
    """Wall and CPU seconds of a commit of one small file (medians)."""
    walls, cpus = [], []
    for number in range(COMMITS):
        artifact = Artifact("small")
        artifact.add_bytes(b"%d %d" % (number, time.time_ns()), "x")
        with timed() as watch:
            store.log_artifact(artifact)
        walls.append(watch.wall)
        cpus.append(watch.cpu)
    return statistics.median(walls), statistics.median(cpus)


def tables_of(store: Store) -> dict[str, dict[str, int]]:
    """Rows and bytes of each table, and of pages that are free."""
    storage: Any = store._engine.view._storage
    with storage.read() as tables:
        generation = tables._generation
        result = {}
        used = 0
        for name, handle in generation.tables.items():
            stat = tables._handle.stat(handle)
            pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            used += pages
            if stat["entries"]:
                result[name] = {"rows": stat["entries"], "bytes": pages * stat["psize"]}
        last = generation.env.info()["last_pgno"] + 1
        result["(free)"] = {"rows": 0, "bytes": (last - used) * stat["psize"]}
    return result


def run(step: str, place: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, step, str(place), str(size)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """How a number grew over the last tenfold: 0 not at all, 1 with the chunks."""
    if len(rows) < 2:
        return math.nan
    before, after = rows[-2], rows[-1]
    return math.log(after[key] / before[key]) / math.log(after["chunks"] / before["chunks"])


def draw(rows: list[dict[str, Any]]) -> None:
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
    for name in ("ingest", "apply", "mark", "open", "commit", "change", "diff"):
        left.plot(sizes, [row[name] for row in rows], marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="chunks", ylabel="seconds", title="time")
    left.legend()
    for name in ("index_file", "log", "packs", "rss_open", "rss_mark", "rss_ingest"):
        right.plot(sizes, [row[name] / MIB for row in rows], marker="o", label=name)
    right.set(xscale="log", yscale="log", xlabel="chunks", ylabel="MiB", title="disk and memory")
    right.legend()
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"wrote {PICTURE}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--keep", action="store_true", help="leave the results alone")
    options = parser.parse_args()
    place = empty(options.work / "growth")
    rows: list[dict[str, Any]] = []
    size = FIRST
    while size <= options.max:
        rows.append({**run("build", place, size), **run("measure", place, size)})
        print(json.dumps(rows[-1]), flush=True)
        size *= 10
    shown = [
        ("ingest, µs each", lambda r: f"{r['ingest'] / r['chunks'] * 1e6:.1f}", "ingest"),
        ("of that CPU, µs", lambda r: f"{r['ingest_cpu'] / r['chunks'] * 1e6:.1f}", "ingest_cpu"),
        ("its commit, s", lambda r: f"{r['apply']:.2f}", "apply"),
        ("fresh open, ms", lambda r: f"{r['open'] * 1e3:.1f}", "open"),
        ("lookup: hit, µs", lambda r: f"{r['hit'] * 1e6:.2f}", "hit"),
        ("lookup: miss, µs", lambda r: f"{r['miss'] * 1e6:.2f}", "miss"),
        ("commit of a file, ms", lambda r: f"{r['commit'] * 1e3:.1f}", "commit"),
        ("log with one change, ms", lambda r: f"{r['change'] * 1e3:.1f}", "change"),
        ("diff of one change, ms", lambda r: f"{r['diff'] * 1e3:.2f}", "diff"),
        ("1,000 entries listed, ms", lambda r: f"{r['page'] * 1e3:.1f}", "page"),
        ("mark, s", lambda r: f"{r['mark']:.2f}", "mark"),
        ("index, bytes a chunk", lambda r: f"{r['index_file'] / r['chunks']:.0f}", "index_file"),
        ("log, bytes a chunk", lambda r: f"{r['log'] / r['chunks']:.0f}", "log"),
        ("RSS of a fresh open, MiB", lambda r: f"{r['rss_open'] / MIB:.0f}", "rss_open"),
        ("RSS of the mark, MiB", lambda r: f"{r['rss_mark'] / MIB:.0f}", "rss_mark"),
        ("RSS of the ingest, MiB", lambda r: f"{r['rss_ingest'] / MIB:.0f}", "rss_ingest"),
    ]
    head = ["", *(f"{row['chunks']:,}" for row in rows), "exponent"]
    print_table(head, [[name, *map(text, rows), f"{exponent(rows, key):.2f}"] for name, text, key in shown])
    if not options.keep:
        save("growth", {"rows": rows})
        draw(rows)
    empty(place)
    slow = [row for row in rows if 900_000 < row["chunks"] < 2_000_000 and row["open"] >= LIMIT]
    if slow:
        print(f"FAIL  a fresh open of {slow[0]['chunks']:,} chunks takes {slow[0]['open'] * 1e3:.0f} ms")
    return int(bool(slow))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in {"build", "measure"}:
        step = {"build": build, "measure": measure}[sys.argv[1]]
        print(json.dumps(step(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        sys.exit(main())
