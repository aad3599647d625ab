"""Ordered tables of bytes as one transaction sees them, and changes to them that are not made yet."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

KEY_BYTES = 511
"""length of the longest key"""


Changes = Mapping[bytes, bytes | None]
"""key → value, or None for one that is not to be there any more"""


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

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, or None: `get` of many, at a third of the cost. Cheapest in key order."""
        ...

    def change(self, table: str, changes: Changes) -> None:
        """Set and (None) remove values: `put` and `delete` of many, in any order."""
        ...

    @property
    def stamp(self) -> object:
        """What tells tables apart that the same storage shows: equal ones are the same. None: that cannot be told."""
        ...


class Overlay:
    """Changes kept in memory on top of other tables, until `flush` or until they are dropped."""

    def __init__(self, base: Tables) -> None:
        self._base = base
        self._changes: dict[str, dict[bytes, bytes | None]] = {}
        self._order: dict[str, list[bytes]] = {}
        """keys of the changes to tables that were scanned, in order"""
        self._counts: dict[str, tuple[int, int]] = {}
        """of tables that were counted: how many keys they had with so many of the changes, none of which was changed"""

    def get(self, table: str, key: bytes) -> bytes | None:
        """See `Tables.get`."""
        changes = self._changes.get(table)
        if changes is not None and key in changes:
            return changes[key]
        return self._base.get(table, key)

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Tables.get_many`."""
        rows = self._base.get_many(table, keys)
        changes = self._changes.get(table)
        if not changes:
            return rows
        return [changes.get(key, row) for key, row in zip(keys, rows, strict=True)]

    @property
    def stamp(self) -> object:
        """None: it is not what the storage shows."""
        return None

    @property
    def changes(self) -> Mapping[str, Changes]:
        """What differs from the base, by table. Not to be changed."""
        return self._changes

    def change(self, table: str, changes: Changes) -> None:
        """See `Tables.change`."""
        if table in self._order or table in self._counts:
            for key, value in changes.items():
                self._change(table, key, value)
        else:
            self._changes.setdefault(table, {}).update(changes)

    def take(self, table: str, changes: dict[bytes, bytes | None]) -> None:
        """`change`, with what the caller will not use any more: a million changes are not copied."""
        if table in self._order or table in self._changes:
            self.change(table, changes)
        else:
            self._changes[table] = changes

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
        if table in self._counts and key in changes:
            del self._counts[table]
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
        changes = self._changes.get(table, {})
        known = self._counts.get(table)
        total, done = (self._base.count(table), 0) if known is None else known
        if done < len(changes):
            # Keys stay in the order they came in: those that were counted are the first.
            for key, value in islice(changes.items(), done, None):
                total += (value is not None) - (self._base.get(table, key) is not None)
        self._counts[table] = total, len(changes)
        return total

    def flush(self) -> None:
        """Write the changes to the base."""
        for table, changes in self._changes.items():
            if isinstance(self._base, Overlay):
                self._base.take(table, changes)
            else:
                self._base.change(table, changes)
        self._changes = {}
        self._order = {}
        self._counts = {}
