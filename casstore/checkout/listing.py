"""Which listings can be written to a file system."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator

from casstore.catalogue import Found
from casstore.contents import named
from casstore.errors import IntegrityError, InvalidPathError
from casstore.model import Entry, EntryKind
from casstore.names import check_path
from casstore.sources import ancestors

MAX_LINK_BYTES = 4095


def trusted(found: Found, listing: Iterable[Entry]) -> Iterator[Entry]:
    """Entries that can be written to a file system. Nobody's tree is believed: it may have been made by hand.

    Raises `IntegrityError` at a path that `check_path` does not allow, one that comes twice or out of order, one below
    a file or link, one without a size, and a link to nowhere.
    """
    before = b""
    leaves: set[str] = set()
    parent = ""
    for entry in listing:
        path, kind, size = entry.path, entry.kind, entry.size
        problem = ""
        try:
            if check_path(path) != path:
                problem = "is not in its normal form"
        except InvalidPathError:
            problem = "is no path a version can have"
        if not problem:
            key = path.encode()
            above = path.rpartition("/")[0]
            if key <= before:
                problem = "comes twice, or out of order"
            elif above != parent and not leaves.isdisjoint(ancestors(path)):
                problem = "is below a file or link"
            elif kind is EntryKind.LINK and not _can_be_target(entry.target):
                problem = f"is a link to {entry.target!r:.100}"
            elif kind is not EntryKind.REFERENCE if size is None else size < 0:
                problem = f"has the size {size}"
            before, parent = key, above
        if problem:
            # The path itself may be what is wrong: no more of it than fits into a line.
            raise named(IntegrityError(f"{path!r:.200} {problem}"), found, None)
        if kind is not EntryKind.DIRECTORY:
            leaves.add(path)
        yield entry


def _can_be_target(target: str | None) -> bool:
    return target is not None and 0 < len(os.fsencode(target)) <= MAX_LINK_BYTES and "\0" not in target


def twins(paths: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of paths that a file system which ignores case or Unicode form takes for one."""
    groups: dict[str, dict[str, None]] = {}
    for path in paths:
        groups.setdefault(_folded(path), {})[path] = None
    # A file "A" is in the way of a file "a/x".
    for group in list(groups.values()):
        for path in list(group):
            for parent in ancestors(path):
                files = groups.get(_folded(parent))
                if files is not None and path not in files:
                    files[path] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _folded(path: str) -> str:
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path.casefold())
