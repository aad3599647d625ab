"""What must be true of a store, from outside: what was promised, when a purge is due, what a reader gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.testing.simulation.names import COMMITTED, PURGED, Difference, Version

if TYPE_CHECKING:
    from casstore.testing.simulation.world import World

DAY = 86_400_000_000


class Oracle:
    """Knows what every version must hold, by the token its writer put into the description."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pending: dict[str, dict[str, bytes]] = {}
        self.contents: dict[bytes, dict[str, bytes]] = {}
        """root → files"""
        self.committed: dict[str, tuple[str, int]] = {}
        self.refused: set[str] = set()
        self.promised = 0
        self.tokens = 0

    def token(self, files: dict[str, bytes]) -> str:
        """A description for a version that is about to be logged."""
        self.tokens += 1
        token = f"t{self.tokens}"
        self.pending[token] = files
        return token

    def refuse(self, token: str) -> None:
        """The writer was told that nothing was committed."""
        self.refused.add(token)
        if token in self.committed:
            raise Difference("refused", f"{token} was refused, and is {self.committed[token]}")

    def on_version(self, collection: str, number: int, version: Version) -> None:
        """A version entered the log."""
        token = version.label
        if token in self.committed:
            raise Difference("double", f"{token} is {self.committed[token]} and {collection}:v{number}")
        if token in self.refused:
            raise Difference("refused", f"{token} was refused, and is {collection}:v{number}")
        self.committed[token] = (collection, number)
        files = self.pending[token]
        if self.contents.setdefault(version.root, files) != files:
            raise Difference("content", f"{collection}:v{number} has the root of another content")

    def promise(self, collection: str, number: int, files: dict[str, bytes]) -> None:
        """A writer was told that some files are this version."""
        self.promised += 1
        version = self.world.machine.versions.get((collection, number))
        if version is None:
            raise Difference("I5", f"{collection}:v{number} was acknowledged and is not there")
        if self.contents[version.root] != files:
            raise Difference("content", f"{collection}:v{number} was acknowledged for other files")

    def readable(self, collection: str, number: int) -> bool:
        """Whether a version is live at the head of the log."""
        version = self.world.machine.versions.get((collection, number))
        return version is not None and version.state is COMMITTED

    # --- time

    def on_purge(self, collection: str, number: int, version: Version) -> None:
        """A purge because of its date: at least `trash_days` of true time must have passed, up to known errors.

        What the ratchet clock promises is this. Its sum of steps since the version was hidden reaches the trash
        time. Let e be how wrong any clock ever was. If clocks never jump, true time lacks at most 2e. If they do,
        each step exceeds true time by no more than the jumps of its own writer's clock since that writer's last
        segment, if that was the segment before; else by no more than the claim is ahead of true time, and never
        by more than 24 h.
        """
        world = self.world
        log = world.machine.log
        hidden = log[version.hidden_at - 1] if version.hidden_at <= len(log) else None
        if hidden is None:
            passed, allowed, least = 0, 0, version.purge_at - version.safe_at
        else:
            passed = world.true - hidden.true
            least = version.purge_at - version.safe_at
            allowed = world.error_allowed(version.hidden_at)
        if passed + allowed < least:
            raise Difference(
                "purge-time",
                f"{collection}:v{number} was purged after {passed / DAY:.3f} days of true time; "
                f"{least / DAY:.3f} were promised, clocks explain {allowed / DAY:.3f}",
            )

    # --- readers

    def check_read(self, collection: str, number: int, root: bytes, found: dict[str, bytes]) -> None:
        """A reader got these files."""
        if self.contents.get(root) != found:
            raise Difference("R1", f"{collection}:v{number} reads as other files than were logged")

    def all_versions(self) -> list[tuple[str, int, Version]]:
        """Versions that must be whole, the trash included."""
        return [(name, n, v) for (name, n), v in self.world.machine.versions.items() if v.state is not PURGED]
