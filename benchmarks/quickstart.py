"""The main job on real files: log versions, give one back, delete one, collect; and a table of what it cost.

Called by ``scripts/quickstart [DIR…]``. Exits with 1 if anything comes back different.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import corpora
from corpora import WORK
from measuring import empty, same_tree, tree_bytes
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from casstore import Artifact, Store, Version
from casstore.bench.corpora import Unavailable

STORE = WORK / "quickstart.cas"
OUT = WORK / "quickstart.out"

say = Console(stderr=True, highlight=False)


@dataclass(slots=True)
class Logged:
    """A directory that was logged, and what came of it."""

    tree: Path
    version: Version


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIR", help="versions of one collection, in order")
    parser.add_argument("--store", type=Path, help="a place for the store where nothing is yet")
    chosen = parser.parse_args()
    for directory in chosen.directories:
        if not directory.is_dir():
            parser.error(f"{directory} is not a directory")
    if chosen.store is not None and chosen.store.exists():
        parser.error(f"{chosen.store} exists")
    plan = [("data", path) for path in chosen.directories] or sample()
    place = chosen.store or empty(STORE)
    with Store.create(place) as store:
        return run(store, place, plan)


def sample() -> list[tuple[str, Path]]:
    """Trees that every machine has, or can fetch."""
    library = corpora.standard_library()
    name, versions = corpora.WHEEL
    try:
        with say.status(f"fetching {name} {', '.join(versions)}"):
            trees = corpora.releases(name, versions, wheel=True)
    except Unavailable as reason:
        say.print(f"[yellow]PyPI cannot be reached[/yellow] ({reason}):")
        say.print("only the standard library is used, and a copy of it with some changes.")
        return [("stdlib", library), ("stdlib", corpora.modified(library))]
    return [("stdlib", library), *((name, tree) for tree in trees)]


def run(store: Store, place: Path, plan: list[tuple[str, Path]]) -> int:
    logged = [log(store, name, tree) for name, tree in plan]
    stored = tree_bytes(place / "packs")
    # The one with most neighbours: in the middle of the largest collection.
    family = [item for item in logged if item.version.collection == logged[-1].version.collection]
    victim = family[len(family) // 2]
    differences = give_back(victim)

    ref, logical = victim.version.ref, sum(item.version.size for item in logged)
    deletion = victim.version.delete(delete_aliases=True, reason="quickstart")
    store.trash.purge(ref)
    with bars("collect", of_bytes=False) as progress:
        report = store.gc(grace=0, max_waste=0, progress=progress)
    left = tree_bytes(place / "packs")

    others = [item for item in logged if item is not victim]
    for item in others:
        differences += give_back(item)
    show(logged, logical, stored)
    outcome(ref, deletion.shared_bytes, stored - left, left)
    if report.errors or not store.fsck().clean:
        differences.append(f"the store is not in order: {report.errors or 'see casstore fsck'}")
    for difference in differences:
        say.print(f"[red]DIFFERENT[/red] {difference}")
    if not differences:
        rest = f"the {len(others)} others" if len(others) > 1 else "the other"
        after = f" {rest} after the collection," if others else ""
        print(f"\n{ref} before it was deleted,{after} came back byte for byte (diff -r).")
    command = f".venv/bin/casstore --store {shlex.quote(str(place))}"
    print(f"Look at the store:  {command} ls")
    if others:
        print(f"                    {command} show {others[0].version.ref}")
    print(f"                    {command} du")
    print(f"                    {command} log")
    return 1 if differences else 0


def log(store: Store, name: str, tree: Path) -> Logged:
    draft = Artifact(name, metadata={"from": tree.name})
    draft.add_dir(tree, symlinks="store", keep_mode=True, keep_empty_dirs=True)
    with bars(f"log {tree.name}") as progress:
        return Logged(tree, store.log_artifact(draft, dedup="never", progress=progress))


def give_back(item: Logged) -> list[str]:
    """Download a version and compare it with the directory it was made from."""
    target = empty(OUT) / item.version.name.replace(":", "-")
    with bars(f"download {item.version.ref}") as progress:
        item.version.download(target, progress=progress)
    with say.status(f"diff -r {item.tree.name}"):
        difference = same_tree(item.tree, target)
    empty(OUT)
    return [f"{item.version.ref}: {difference}"] if difference else []


class bars:  # noqa: N801 - used as a function
    """A progress bar for one piece of work; what it makes is a casstore progress callback."""

    def __init__(self, title: str, *, of_bytes: bool = True) -> None:
        sizes = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
        self._progress = Progress(TextColumn(f"{title:<28}"), BarColumn(), *sizes, console=say)

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("", total=None)
        return self

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total or None)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def show(logged: list[Logged], logical: int, stored: int) -> None:
    table = Table("version", "from", title="\nlogged", title_justify="left")
    for column in ("files", "logical MB", "new MB", "stored MB"):
        table.add_column(column, justify="right")
    for item in logged:
        version = item.version
        table.add_row(
            version.ref,
            item.tree.name,
            f"{version.file_count:,}",
            megabytes(version.size),
            megabytes(version.new_bytes),
            megabytes(version.new_stored_bytes),
        )
    table.add_section()
    new = sum(item.version.new_bytes for item in logged)
    files = sum(item.version.file_count for item in logged)
    table.add_row("all", "", f"{files:,}", megabytes(logical), megabytes(new), megabytes(stored))
    Console().print(table)
    print("new: bytes the store did not have yet, tree nodes included; stored: what they take, compressed")


def outcome(ref: str, shared: int, freed: int, left: int) -> None:
    table = Table(f"after {ref} was deleted and purged, and a collection", title_justify="left")
    table.add_column("MB", justify="right")
    table.add_row("freed: only it had them", megabytes(freed))
    table.add_row("kept although it had them: other versions share them", megabytes(shared))
    table.add_row("stored now", megabytes(left))
    Console().print(table)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


if __name__ == "__main__":
    sys.exit(main())
