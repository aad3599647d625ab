"""Where the time goes: the costliest functions of logging, restoring and collecting.

    scripts/bench hotspots [wheel] [small] [relog] [restore] [gc]

Work of the worker threads is done in the calling thread here, so that one profile sees all of it: read the shares,
not the seconds.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any
from unittest import mock

import corpora
from corpora import WORK
from measuring import empty

from casstore import Artifact, Store
from casstore.engine import Engine

SCRATCH = WORK / "hotspots"
SHOWN = 22


class Inline(Executor):
    """Does work when it is asked for."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as every executor
            future.set_exception(error)
        return future


def log(store: Store, tree: Path) -> None:
    draft = Artifact("data")
    draft.add_dir(tree)
    store.log_artifact(draft, dedup="never")


def profiled(name: str, work: Callable[[], object]) -> None:
    profile = cProfile.Profile()
    profile.enable()
    work()
    profile.disable()
    print(f"\n=== {name}")
    stats = pstats.Stats(profile).strip_dirs()
    stats.sort_stats("tottime").print_stats(SHOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="default: all")
    chosen = set(parser.parse_args().parts or ("wheel", "small", "relog", "restore", "gc"))
    trees = corpora.releases(*corpora.WHEEL, wheel=True)
    small = corpora.small_files(20_000, 500, 8_000)
    empty(SCRATCH).mkdir()
    inline = Inline()
    with mock.patch.object(Engine, "executor", return_value=inline):
        if chosen & {"wheel", "restore", "gc"}:
            with Store.create(SCRATCH / "wheel") as store:
                if "wheel" in chosen:
                    profiled("first log of a wheel: 1,329 files, 120 MB", lambda: log(store, trees[0]))
                else:
                    log(store, trees[0])
                for tree in trees[1:]:
                    log(store, tree)
                if "restore" in chosen:
                    version = store.get("data:latest")
                    profiled("restore of a wheel", lambda: version.download(SCRATCH / "out"))
                if "gc" in chosen:
                    store.get("data:v1").delete()
                    store.trash.empty()
                    profiled("collection after one of three is purged", lambda: store.gc(grace=0, max_waste=0))
        if chosen & {"small", "relog"}:
            with Store.create(SCRATCH / "small") as store:
                if "small" in chosen:
                    profiled("first log of 20,000 small files, 85 MB", lambda: log(store, small))
                else:
                    log(store, small)
                if "relog" in chosen:
                    profiled("the same 20,000 files again", lambda: log(store, small))
    empty(SCRATCH)


if __name__ == "__main__":
    main()
