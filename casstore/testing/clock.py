"""A clock for stores under test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """The time, as `Store.open(clock=)` asks for it."""
        return self.now

    def pass_(self, **time: float) -> None:
        """Let time pass: ``days=1``, ``hours=2`` and so on."""
        self.now += timedelta(**time)
