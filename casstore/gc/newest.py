"""In which order content is wanted: that of the newest versions first, each in the order of its paths."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from casstore.model import VersionState
from casstore.overlay import Tables
from casstore.view import children_of, collections, versions

NODES = 1_000_000
"""tree nodes that are walked at most, of the newest versions; about 100 MB of digests"""


def rank(tables: Tables, wanted: Mapping[bytes, int]) -> array[int]:
    """The numbers of some digests, the one that is wanted first in front; what no version needs is not among them.

    The last versions of all collections come first, then those before them, and so on. Reads the index only. Memory:
    O(nodes of the versions).
    """
    found = array("I")
    taken = bytearray(len(wanted))
    seen: set[bytes] = set()
    for root in _roots(tables):
        todo = [root]
        while todo:
            digest = todo.pop()
            number = wanted.get(digest)
            if number is not None and not taken[number]:
                taken[number] = True
                found.append(number)
            if digest in seen:
                continue
            below = children_of(tables, digest)
            if below:
                seen.add(digest)
                todo += reversed(below)
        if len(found) == len(wanted) or len(seen) > NODES:
            break
    return found


def _roots(tables: Tables) -> Sequence[bytes]:
    ages: dict[bytes, tuple[int, int]] = {}
    for collection in collections(tables):
        kept = versions(tables, collection.id, newest_first=True, states=(VersionState.COMMITTED,))
        for age, version in enumerate(kept):
            place = (age, -version.seq)
            ages[version.root] = min(ages.get(version.root, place), place)
    return sorted(ages, key=ages.__getitem__)
