"""casstore, run as any program is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import casstore
from casstore.bench.contenders.contender import Contender
from casstore.bench.measuring import Command

_ROOT = str(Path(casstore.__file__).resolve().parent.parent)


class Casstore(Contender):
    """casstore with some options of ``init``; ``gc --optimize`` where this version has it."""

    tool = "casstore"
    durable = "yes: all data, log and directories"

    def __init__(self, name: str = "casstore", *options: str) -> None:
        self.name = name
        self.flags = " ".join(options)
        self._options = options

    def version(self) -> str:
        """The version of this package."""
        return f"casstore {casstore.__version__}"

    def begin(self, place: Path) -> Sequence[Command]:
        """An empty store."""
        return (_command("init", *self._options, store=place),)

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """A version, with the stat cache."""
        return (_command("put", str(tree), "--name=data", "--symlinks=store", store=place),)

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Without the stat cache; the content is that of the latest, so there is no new version."""
        return (_command("put", str(tree), "--name=data", "--symlinks=store", "--rescan", store=place),)

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """Verified, as every read is."""
        return (_command("get", "data:latest", "--output", str(target), store=place),)

    def optimize(self, place: Path) -> Sequence[Command]:
        """`gc --optimize`, without waiting for a grace."""
        words = ("gc", "--optimize", "--offline", "--grace=0", "--no-undo")
        return (_command(*words, store=place),) if _optimizes() else ()

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """All that no alias names, `latest` above all, and off the disk at once."""
        words = ("rm", "--where", "unaliased", "data", "--permanent", "--collect", "--confirm", "data")
        return (_command(*words, store=place),) if number else ()

    def kept(self, place: Path) -> Sequence[Path]:
        """The store."""
        return (_store(place),)

    def replaceable(self, place: Path) -> Sequence[Path]:
        """The index, a view of the log."""
        return (_store(place) / "index",)


def _store(place: Path) -> Path:
    return place / "store.cas"


def _command(*words: str, store: Path) -> Command:
    # -P: a directory called casstore where this is run must not be taken for the package.
    argv = (sys.executable, "-P", "-m", "casstore", *words, "--quiet", "--store", str(_store(store)))
    return Command(argv, (("PYTHONPATH", _ROOT),))


@cache
def _optimizes() -> bool:
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "casstore", "gc", "--help"],
        env={"PYTHONPATH": _ROOT},
        capture_output=True,
        text=True,
        check=False,
    )
    return "--optimize" in asked.stdout
