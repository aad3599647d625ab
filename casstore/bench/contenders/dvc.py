"""DVC: whole files by their MD5 in a cache beside a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders.contender import Contender, program
from casstore.bench.measuring import Command, said_by
from casstore.bench.trees import remove


class Dvc(Contender):
    """A workspace without git. It reads no other directory, so the runner keeps a copy of the tree in it."""

    tool = "dvc"
    durable = "no: only its data bases of files"

    def __init__(self, name: str = "dvc", *settings: str, scripts: Path | None = None) -> None:
        self.name = name
        self.flags = " ".join(settings)
        self._settings = settings
        self._scripts = scripts

    def missing(self) -> str:
        """Neither in the rivals' environment nor on the PATH."""
        if program("dvc", self._scripts):
            return ""
        return "dvc is not installed (scripts/rivals installs all; --rivals-venv says where they are)"

    def version(self) -> str:
        """As it says."""
        return f"dvc {said_by(Command((program('dvc', self._scripts), '--version')))}"

    def begin(self, place: Path) -> Sequence[Command]:
        """A workspace."""
        (place / "work").mkdir()
        values = (*self._settings, "core.analytics=false", "core.check_update=false", "core.autostage=false")
        settings = [self._command(place, "config", *value.split("=", 1)) for value in values]
        return (self._command(place, "init", "--no-scm"), *settings)

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Add the copy in the workspace."""
        return (self._command(place, "add", "data"),)

    def before_reading_again(self, place: Path) -> None:
        """Forget the data base of files and their times."""
        remove(place / "site")

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """The same."""
        return (self._command(place, "add", "data"),)

    def before_restoring(self, place: Path, target: Path) -> None:
        """As in a new clone: nothing in the workspace. Not removed, see `Plan.pause` of the runner."""
        (place / "work" / "data").rename(place / "old-workspace")

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """Check out into the workspace."""
        return (self._command(place, "checkout", "data.dvc"),)

    def restored(self, place: Path, target: Path) -> Path:
        """In the workspace."""
        return place / "work" / "data"

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """What the workspace does not use; nothing guards against a writer meanwhile."""
        return (self._command(place, "gc", "--workspace", "--force"),)

    def kept(self, place: Path) -> Sequence[Path]:
        """The cache and the pointer."""
        return (place / "work" / ".dvc", place / "work" / "data.dvc")

    def workspace(self, place: Path) -> Path | None:
        """The copy."""
        return place / "work" / "data"

    def _command(self, place: Path, *words: str) -> Command:
        env = (("DVC_SITE_CACHE_DIR", str(place / "site")), ("DVC_NO_ANALYTICS", "1"))
        argv = (program("dvc", self._scripts), *words, "--quiet")
        return Command(argv, env, str(place / "work"))
