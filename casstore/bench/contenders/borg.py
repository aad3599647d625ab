"""BorgBackup 1: archives in a repository of segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders.contender import Contender, not_installed, program
from casstore.bench.measuring import Command, said_by


class Borg(Contender):
    """A repository without encryption."""

    tool = "borg"
    durable = "yes: segments, index and manifest"

    def __init__(self, name: str = "borg", *options: str) -> None:
        self.name = name
        self.flags = " ".join(("--encryption none", *options))
        self._options = options

    def missing(self) -> str:
        """Not on the PATH."""
        return not_installed("borg")

    def version(self) -> str:
        """As it says."""
        return said_by(Command((program("borg"), "--version")))

    def begin(self, place: Path) -> Sequence[Command]:
        """A repository."""
        return (self._command(place, "init", "--encryption=none", _repository(place)),)

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """With the files cache, which tells unchanged files."""
        archive = f"{_repository(place)}::v{number}"
        return (self._command(place, "create", *self._options, archive, ".", cwd=tree),)

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Without the files cache."""
        archive = f"{_repository(place)}::again"
        options = (*self._options, "--files-cache=disabled")
        return (self._command(place, "create", *options, archive, ".", cwd=tree),)

    def before_restoring(self, place: Path, target: Path) -> None:
        """It extracts into the working directory."""
        target.mkdir()

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """An archive."""
        return (self._command(place, "extract", f"{_repository(place)}::v{number}", cwd=target),)

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """Prune, then compact."""
        return (
            self._command(place, "prune", "--keep-last=1", "--glob-archives=v*", _repository(place)),
            self._command(place, "delete", "--glob-archives=again*", _repository(place)),
            self._command(place, "compact", _repository(place)),
        )

    def kept(self, place: Path) -> Sequence[Path]:
        """The repository without the caches."""
        return (place / "repository",)

    def _command(self, place: Path, *words: str, cwd: Path | None = None) -> Command:
        env = (
            ("BORG_BASE_DIR", str(place / "home")),
            ("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes"),
            ("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes"),
        )
        return Command((program("borg"), *words), env, str(cwd) if cwd else None)


def _repository(place: Path) -> str:
    return str(place / "repository")
