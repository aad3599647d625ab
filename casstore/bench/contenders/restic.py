"""restic: a backup program with encrypted repositories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders.contender import Contender, not_installed, program
from casstore.bench.measuring import Command, said_by


class Restic(Contender):
    """A repository of version 2, which compresses, in a directory; encryption cannot be switched off."""

    tool = "restic"
    durable = "yes: packs, index and snapshots"

    def __init__(self, name: str = "restic", *options: str) -> None:
        self.name = name
        self.flags = " ".join(("--repository-version 2", *options))
        self._options = options

    def missing(self) -> str:
        """Not on the PATH."""
        return not_installed("restic")

    def version(self) -> str:
        """As it says."""
        return said_by(Command((program("restic"), "version")))

    def begin(self, place: Path) -> Sequence[Command]:
        """A repository."""
        return (self._command(place, "init", "--repository-version", "2"),)

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """With the snapshot before as the parent, which tells unchanged files."""
        return (self._command(place, "backup", ".", cwd=tree),)

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Without a parent."""
        return (self._command(place, "backup", "--force", ".", cwd=tree),)

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """The latest snapshot."""
        return (self._command(place, "restore", "latest", "--target", str(target)),)

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """Forget and prune in one."""
        return (self._command(place, "forget", "--keep-last", "1", "--prune"),)

    def kept(self, place: Path) -> Sequence[Path]:
        """The repository without the cache."""
        return (place / "repository",)

    def _command(self, place: Path, *words: str, cwd: Path | None = None) -> Command:
        secret = ("RESTIC_PASSWORD", "benchmark")
        cache = ("RESTIC_CACHE_DIR", str(place / "cache"))
        argv = (program("restic"), "--repo", str(place / "repository"), "--quiet", *self._options, *words)
        return Command(argv, (secret, cache), str(cwd) if cwd else None)
