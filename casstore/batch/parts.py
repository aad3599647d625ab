"""What upsert and finish share: a draft that was read as a listing, and that others came in between."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from casstore.errors import CasstoreError
from casstore.model import Entry, PartRow
from casstore.reading import Session
from casstore.tree import find, walk


class PartsChangedError(CasstoreError):
    """Other parts are there than those that were looked at."""

    def __init__(self, others: Sequence[PartRow]) -> None:
        super().__init__("the parts changed")
        self.others = others


class DraftListing:
    """The entries of an artifact that was read, stored or not."""

    def __init__(self, label: str, session: Session) -> None:
        self.label = label
        self._session = session
        self._changed = {path for path, _ in session.changes}
        self._paths = [path for path, source in session.changes if source is not None]

    def find(self, path: str) -> Entry | None:
        """See `Listing.find`."""
        session = self._session
        if session.base is None or path in self._changed:
            return session.entries.get(path)
        return find(session.base.root, path, session.engine.node)

    def walk(self, start: str = "", prefix: str = "") -> Iterator[Entry]:
        """See `Listing.walk`."""
        session = self._session
        at = bisect_left(self._paths, max(start, prefix))
        paths = takewhile(lambda path: path.startswith(prefix), islice(self._paths, at, None))
        mine = (session.entries[path] for path in paths)
        if session.base is None:
            return mine
        stored = walk(session.base.root, session.engine.node, start=start, prefix=prefix)
        theirs = (entry for entry in stored if entry.path not in self._changed)
        return heapq.merge(theirs, mine, key=lambda entry: entry.path)
