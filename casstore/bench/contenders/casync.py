"""casync: directories as indexes of chunks in a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders.contender import Contender, not_installed, program
from casstore.bench.measuring import Command, said_by


class Casync(Contender):
    """A chunk store and an index file for each version.

    Its encoder cache (``--cache``) is not used: with it, casync 2 writes indexes that it cannot extract after files
    have changed ("Bad message").
    """

    tool = "casync"
    durable = "no: never syncs"

    def __init__(self, name: str = "casync", *options: str) -> None:
        self.name = name
        self.flags = " ".join(options)
        self._options = options

    def missing(self) -> str:
        """Not on the PATH."""
        return not_installed("casync")

    def version(self) -> str:
        """As it says."""
        return said_by(Command((program("casync"), "--version")))

    def begin(self, place: Path) -> Sequence[Command]:
        """Only a directory: the rest is made by the first version."""
        return (Command(("mkdir", str(place / "kept"))),)

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """A version."""
        return (self._make(place, tree, f"v{number}.caidx"),)

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """The same: it keeps no times of files."""
        return (self._make(place, tree, "again.caidx"),)

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """A version."""
        index = str(place / "kept" / f"v{number}.caidx")
        return (Command((program("casync"), "extract", _store(place), index, str(target))),)

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """Remove the indexes, then the chunks that no index left needs; nothing guards against a writer meanwhile."""
        kept = place / "kept"
        old = [str(kept / f"v{i}.caidx") for i in range(number)]
        return (
            Command(("rm", "-f", str(kept / "again.caidx"), *old)),
            Command((program("casync"), "gc", _store(place), str(kept / f"v{number}.caidx"))),
        )

    def kept(self, place: Path) -> Sequence[Path]:
        """Chunks and indexes."""
        return (place / "kept",)

    def _make(self, place: Path, tree: Path, index: str) -> Command:
        options = (*self._options, _store(place))
        return Command((program("casync"), "make", *options, str(place / "kept" / index), str(tree)))


def _store(place: Path) -> str:
    return f"--store={place / 'kept' / 'default.castr'}"
