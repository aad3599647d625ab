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
        """A purge because of its date: at least the trash time must truly have passed, up to known errors.

        What the ratchet clock promises is this. The steps it made since the version was hidden add up to the trash
        time, counted from the moment its author asked, by the author's clock. If no clock ever jumps and all are right
        to e, true time lacks 3e at most (once for each clock, once for not knowing when he asked), and drift. If they
        jump, a step exceeds true time by no more than what the writer's own clock jumped forward since its last
        segment, if that is the segment before, and by 24 h at most otherwise (`World.explain`).
        """
        world = self.world
        hidden = world.machine.log[version.hidden_at - 1] if version.hidden_at <= len(world.machine.log) else None
        least = version.purge_at - version.safe_at
        passed = 0 if hidden is None else world.true - min(hidden.true, hidden.claimed)
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
