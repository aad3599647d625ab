"""What a store must answer, computed the obvious way: dictionaries of whole files, no chunks, no log, no disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

LATEST = "latest"
COMMITTED, TRASHED, PURGED = "COMMITTED", "TRASHED", "PURGED"
DAY = 86_400_000_000
CLOCK_CAP = DAY
PIN_TIME = 7 * DAY

Files = Mapping[str, bytes]


class ModelClock:
    """The ratchet clock, in µs: time a writer saw pass counts in full, the claim of another one for a day at most."""

    def __init__(self) -> None:
        self.safe = 0
        self.highest = 0
        self.writer: str | None = None

    def after(self, now: int, writer: str) -> int:
        """The safe clock once ``writer`` has committed at ``now``."""
        if self.writer is None:
            return now
        step = max(0, now - self.highest)
        return self.safe + (step if writer == self.writer else min(step, CLOCK_CAP))

    def commit(self, now: int, writer: str) -> None:
        """``writer`` has committed at ``now``. Several commits in a row are as one."""
        self.safe, self.highest, self.writer = self.after(now, writer), max(self.highest, now), writer


@dataclass(slots=True)
class ModelVersion:
    """A version: its number, its files, and what became of it."""

    number: int
    files: dict[str, bytes]
    state: str = COMMITTED
    purge_at: int = 0
    trash_aliases: tuple[str, ...] = ()


@dataclass(slots=True)
class ModelCollection:
    """Versions in number order, and aliases."""

    versions: list[ModelVersion] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)

    def highest(self) -> int | None:
        """The highest committed number."""
        return max((v.number for v in self.versions if v.state == COMMITTED), default=None)

    def point(self, alias: str, number: int | None) -> None:
        """Move an alias; None takes it away."""
        if number is None:
            self.aliases.pop(alias, None)
        else:
            self.aliases[alias] = number

    def aliases_of(self, number: int) -> set[str]:
        """Aliases on a version, ``latest`` included."""
        return {alias for alias, target in self.aliases.items() if target == number}


@dataclass(slots=True)
class ModelDraft:
    """An open draft: what logging it gives. ``expires``: until when its content is sure to be kept."""

    collection: str
    files: dict[str, bytes]
    expires: int
    pinned: bool = True


class ModelStore:
    """The oracle. Collections are keyed by the name they are referred to by."""

    def __init__(self) -> None:
        self.collections: dict[str, ModelCollection] = {}
        self.trash_days = 30
        self.clock = ModelClock()

    # --- looking

    def of_state(self, *states: str) -> list[tuple[str, ModelVersion]]:
        """All versions in some states, in a fixed order."""
        return [
            (name, version)
            for name, collection in sorted(self.collections.items())
            for version in collection.versions
            if version.state in states
        ]

    def roots(self) -> Iterator[dict[str, bytes]]:
        """Contents that must not be lost."""
        return (version.files for _, version in self.of_state(COMMITTED, TRASHED))

    # --- changing

    def hit(self, name: str, files: Files, dedup: str) -> int | None:
        """The version this content is already, by the rules of ``dedup``."""
        collection = self.collections.get(name)
        if collection is None or dedup == "never":
            return None
        latest = collection.aliases.get(LATEST)
        if latest is not None and collection.versions[latest].files == files:
            return latest
        if dedup == "any":
            same = [v.number for v in collection.versions if v.state == COMMITTED and v.files == files]
            return max(same, default=None)
        return None

    def log(
        self, name: str, files: Files, aliases: Sequence[str] = (), dedup: str = "latest", *, move_latest: bool = True
    ) -> tuple[int, bool]:
        """Log content; the number it has now, and whether that is a new version."""
        found = self.hit(name, files, dedup)
        collection = self.collections.setdefault(name, ModelCollection())
        number = len(collection.versions) if found is None else found
        if found is None:
            collection.versions.append(ModelVersion(number, dict(files)))
        for alias in [*aliases, LATEST] if move_latest else aliases:
            collection.point(alias, number)
        return number, found is None

    def trash(self, name: str, number: int, now: int, writer: str) -> None:
        """Move to the trash, aliases taken off and remembered; ``latest`` falls to the highest remaining."""
        collection = self.collections[name]
        version = collection.versions[number]
        version.state = TRASHED
        version.purge_at = self.clock.after(now, writer) + self.trash_days * DAY
        held = collection.aliases_of(number)
        version.trash_aliases = tuple(sorted(held - {LATEST}))
        for alias in version.trash_aliases:
            collection.point(alias, None)
        if LATEST in held:
            collection.point(LATEST, collection.highest())

    def restore(self, name: str, number: int) -> tuple[str, ...]:
        """Take out of the trash; ``latest`` only ever goes up by it. The aliases that belong to another by now."""
        collection = self.collections[name]
        version = collection.versions[number]
        lost = tuple(alias for alias in version.trash_aliases if alias in collection.aliases)
        for alias in version.trash_aliases:
            if alias not in lost:
                collection.point(alias, number)
        version.state, version.trash_aliases, version.purge_at = COMMITTED, (), 0
        if collection.aliases.get(LATEST, -1) < number:
            collection.point(LATEST, number)
        return lost

    def purge(self, name: str, number: int) -> None:
        """Drop a trashed version for good; its number stays taken."""
        self.collections[name].versions[number].state = PURGED

    def due(self, safe: int) -> list[tuple[str, int]]:
        """Trashed versions whose date has come."""
        return [(name, version.number) for name, version in self.of_state(TRASHED) if version.purge_at <= safe]
