"""Ordered tables of bytes as one transaction sees them, and changes to them that are not made yet."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator
from typing import Protocol

KEY_BYTES = 511
"""length of the longest key"""


class Tables(Protocol):
    """Ordered tables of bytes, as one transaction sees them, in its own thread.

    Keys are 1 to `KEY_BYTES` bytes; an index refuses others with `LimitError`.
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
        self._order: dict[str, list[bytes]] = {}
        """keys of the changes to tables that were scanned, in order"""

    def get(self, table: str, key: bytes) -> bytes | None:
        """See `Tables.get`."""
        changes = self._changes.get(table)
        if changes is not None and key in changes:
            return changes[key]
        return self._base.get(table, key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """See `Tables.put`."""
        self._change(table, key, value)

    def delete(self, table: str, key: bytes) -> None:
        """See `Tables.delete`."""
        self._change(table, key, None)

    def _change(self, table: str, key: bytes, value: bytes | None) -> None:
        changes = self._changes.setdefault(table, {})
        order = self._order.get(table)
        if order is not None and key not in changes:
            bisect.insort(order, key)
        changes[key] = value

    def scan(
        self, table: str, *, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Tables.scan`."""
        changes = self._changes.get(table, {})
        mine = self._mine(table, prefix, start, reverse=reverse)
        theirs = (
            pair
            for pair in self._base.scan(table, prefix=prefix, start=start, reverse=reverse)
            if pair[0] not in changes
        )
        ours = ((key, value) for key in mine if (value := changes[key]) is not None)
        return heapq.merge(theirs, ours, key=lambda pair: pair[0], reverse=reverse)

    def _mine(self, table: str, prefix: bytes, start: bytes, *, reverse: bool) -> list[bytes]:
        """Changed keys a scan meets, in its order: two searches, not a pass over all changes."""
        order = self._order.get(table)
        if order is None:
            order = self._order[table] = sorted(self._changes.get(table, ()))
        low = bisect.bisect_left(order, prefix)
        high = bisect.bisect_right(order, prefix, lo=low, key=lambda key: key[: len(prefix)])
        if start:
            if reverse:
                high = min(high, bisect.bisect_right(order, start))
            else:
                low = max(low, bisect.bisect_left(order, start))
        found = order[low:high]
        return found[::-1] if reverse else found

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
        self._order = {}
