"""Ordered tables of bytes as one transaction sees them, and changes to them that are not made yet."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Protocol


class Tables(Protocol):
    """Ordered tables of bytes, as one transaction sees them, in its own thread.

    Keys are 1 to 511 bytes; an index refuses others with `LimitError`.
    """

    def get(self, table: str, key: bytes) -> bytes | None:
        """A value, or None."""
        ...

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        ...

    def delete(self, table: str, key: bytes) -> None:
        """Remove a key; no error if absent."""
        ...

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key has the prefix, in key order from ``start`` on, or downwards from it.

        The table may be changed meanwhile: what lies ahead of the scan is seen as it then is.
        """
        ...

    def count(self, table: str) -> int:
        """Number of keys."""
        ...


class Overlay:
    """Changes kept in memory on top of other tables, until `flush` or until they are dropped."""

    def __init__(self, base: Tables) -> None:
        self._base = base
        self._changes: dict[str, dict[bytes, bytes | None]] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        """See `Tables.get`."""
        changes = self._changes.get(table)
        if changes is not None and key in changes:
            return changes[key]
        return self._base.get(table, key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """See `Tables.put`."""
        self._changes.setdefault(table, {})[key] = value

    def delete(self, table: str, key: bytes) -> None:
        """See `Tables.delete`."""
        self._changes.setdefault(table, {})[key] = None

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Tables.scan`."""
        changes = self._changes.get(table, {})
        mine = sorted(
            (
                key
                for key in changes
                if key.startswith(prefix) and (not start or (key <= start if reverse else key >= start))
            ),
            reverse=reverse,
        )
        theirs = (
            pair
            for pair in self._base.scan(table, prefix=prefix, start=start, reverse=reverse)
            if pair[0] not in changes
        )
        ours = ((key, value) for key in mine if (value := changes[key]) is not None)
        return heapq.merge(theirs, ours, key=lambda pair: pair[0], reverse=reverse)

    def count(self, table: str) -> int:
        """See `Tables.count`."""
        total = self._base.count(table)
        for key, value in self._changes.get(table, {}).items():
            total += (value is not None) - (self._base.get(table, key) is not None)
        return total

    def flush(self) -> None:
        """Write the changes to the base, in key order."""
        for table, changes in self._changes.items():
            for key in sorted(changes):
                value = changes[key]
                if value is None:
                    self._base.delete(table, key)
                else:
                    self._base.put(table, key, value)
        self._changes = {}
