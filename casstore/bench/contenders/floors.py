"""What the tools of every system do: a copy for each version, and a compressed archive for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders.contender import Contender, not_installed, program
from casstore.bench.measuring import Command, said_by


class Copy(Contender):
    """``cp`` and a sync of the file system."""

    name = "cp"
    tool = "cp"
    flags = "-a, then sync -f"
    durable = "yes: sync of the file system"
    deduplicates = False

    def version(self) -> str:
        """As it says."""
        return said_by(Command(("cp", "--version")))

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """A copy."""
        return (Command(("cp", "-a", str(tree), str(place / f"v{number}"))), Command(("sync", "-f", str(place))))

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """A copy of the copy."""
        return (Command(("cp", "-a", str(place / f"v{number}"), str(target))),)

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """Remove them."""
        old = [str(place / f"v{i}") for i in range(number)]
        return (Command(("rm", "-rf", *old)),) if old else ()


class Tar(Contender):
    """``tar`` into ``zstd``."""

    tool = "tar"
    durable = "no: never syncs"
    deduplicates = False

    def __init__(self, name: str = "tar", options: str = "-3") -> None:
        self.name = name
        self.flags = f"| zstd {options}"
        self._options = options

    def missing(self) -> str:
        """One of the two is not there."""
        return not_installed("tar") or not_installed("zstd")

    def version(self) -> str:
        """That of the compressor."""
        return said_by(Command((program("zstd"), "--version"))).strip("* ")

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """An archive."""
        pipe = f"tar -cf - . | zstd -q {self._options} -o '{place}/v{number}.tar.zst'"
        return (Command(("sh", "-c", pipe), cwd=str(tree)),)

    def before_restoring(self, place: Path, target: Path) -> None:
        """It extracts into the working directory."""
        target.mkdir()

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """An archive."""
        pipe = f"zstd -q -d -c '{place}/v{number}.tar.zst' | tar -xf -"
        return (Command(("sh", "-c", pipe), cwd=str(target)),)

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """Remove them."""
        old = [str(place / f"v{i}.tar.zst") for i in range(number)]
        return (Command(("rm", "-f", *old)),) if old else ()
