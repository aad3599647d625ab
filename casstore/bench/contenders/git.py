"""git: commits in a bare repository, of a work tree that is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders.contender import Contender, not_installed, program
from casstore.bench.measuring import Command, said_by


class Git(Contender):
    """Content as it is (no line ends converted, nothing ignored); what it does in the background, it does at once."""

    tool = "git"
    durable = "no: syncs packs, not loose objects"

    def __init__(self, name: str = "git", *settings: str, aggressive: bool = False) -> None:
        self.name = name
        self.flags = " ".join((*settings, *(("gc --aggressive",) if aggressive else ())))
        self._settings = settings
        self._aggressive = aggressive

    def missing(self) -> str:
        """Not on the PATH."""
        return not_installed("git")

    def version(self) -> str:
        """As it says."""
        return said_by(Command((program("git"), "--version")))

    def begin(self, place: Path) -> Sequence[Command]:
        """A repository."""
        return (
            Command((program("git"), "init", "--quiet", "--bare", "--initial-branch=main", str(_repository(place)))),
            Command(("mkdir", "-p", str(_repository(place) / "info"))),
            Command(("sh", "-c", f"echo '* -text -filter -ident' >'{_repository(place)}/info/attributes'")),
        )

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Add and commit."""
        return (
            self._command(place, "add", "--all", "--force", ".", tree=tree),
            self._command(place, "commit", "--quiet", "--allow-empty", "--message", f"v{number}", tree=tree),
        )

    def before_reading_again(self, place: Path) -> None:
        """Without the list of files and their times, all must be read."""
        (_repository(place) / "index").unlink()

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Add."""
        return (self._command(place, "add", "--all", "--force", ".", tree=tree),)

    def before_restoring(self, place: Path, target: Path) -> None:
        """A work tree must exist."""
        target.mkdir()

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """Check out, with a list of files of its own."""
        other = (("GIT_INDEX_FILE", str(place / "other-index")),)
        return (self._command(place, "checkout", "--quiet", "--force", "main", "--", ".", tree=target, env=other),)

    def optimize(self, place: Path) -> Sequence[Command]:
        """`git gc`: deltas, which no other contender here has."""
        return (self._command(place, "gc", "--quiet", *(("--aggressive",) if self._aggressive else ())),)

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """A history of one commit, then `gc`."""
        git = f"{program('git')} --git-dir='{_repository(place)}' -c user.name=b -c user.email=b@example.org"
        rewrite = f"{git} update-ref refs/heads/main $({git} commit-tree -m latest 'main^{{tree}}')"
        return (
            Command(("sh", "-c", rewrite)),
            self._command(place, "reflog", "expire", "--expire=now", "--all"),
            self._command(place, "gc", "--quiet", "--prune=now"),
        )

    def kept(self, place: Path) -> Sequence[Path]:
        """The repository."""
        return (_repository(place),)

    def replaceable(self, place: Path) -> Sequence[Path]:
        """The list of files of the work tree."""
        return (_repository(place) / "index",)

    def _command(
        self, place: Path, *words: str, tree: Path | None = None, env: tuple[tuple[str, str], ...] = ()
    ) -> Command:
        where = (f"--git-dir={_repository(place)}", *((f"--work-tree={tree}",) if tree else ()))
        settings = ("user.name=b", "user.email=b@example.org", "gc.autoDetach=false", *self._settings)
        options = tuple(word for setting in settings for word in ("-c", setting))
        variables = (("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null"), *env)
        return Command((program("git"), *where, *options, *words), variables, str(tree) if tree else None)


def _repository(place: Path) -> Path:
    return place / "repository.git"
