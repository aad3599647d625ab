"""What changed from one version to another."""

from __future__ import annotations

from casstore.catalogue import Found
from casstore.contents import naming, pieces
from casstore.engine import Engine
from casstore.model import Entry
from casstore.tree import diff
from casstore.values import dataclass


@dataclass(frozen=True, slots=True)
class Diff:
    """Paths by what happened to them. ``renamed``: (from, to) of files whose content moved unchanged.

    ``new_bytes``: plaintext bytes of chunks that added and changed files have and the first version's
    removed and changed files had not.
    """

    a: str
    b: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    new_bytes: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.renamed)

    def to_dict(self) -> dict[str, object]:
        """The difference as JSON values."""
        return {
            "a": self.a,
            "b": self.b,
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": list(self.changed),
            "renamed": [list(pair) for pair in self.renamed],
            "new_bytes": self.new_bytes,
        }


def compare(engine: Engine, a: Found, b: Found) -> Diff:
    """Compare two versions. O(difference): equal parts of the trees are not read."""
    with naming(a):
        before, after = diff(a.version.root, b.version.root, engine.node)
    changed = sorted((path for path in before if path in after), key=str.encode)
    removed = {path: entry for path, entry in before.items() if path not in after}
    added = {path: entry for path, entry in after.items() if path not in before}
    renamed = _renamed(removed, added)
    for source, target in renamed:
        del removed[source], added[target]
    had = {digest for entry in before.values() for _, digest, _ in pieces(engine, entry)}
    new = {d: length for path in (*added, *changed) for _, d, length in pieces(engine, after[path])}
    return Diff(
        a.label,
        b.label,
        tuple(sorted(added, key=str.encode)),
        tuple(sorted(removed, key=str.encode)),
        tuple(changed),
        tuple(renamed),
        sum(length for digest, length in new.items() if digest not in had),
    )


def _renamed(removed: dict[str, Entry], added: dict[str, Entry]) -> list[tuple[str, str]]:
    """Pair removed and added files of equal, non-empty content, in path order."""
    by_content: dict[object, list[str]] = {}
    for path in sorted(removed, key=str.encode, reverse=True):
        if removed[path].size or removed[path].pointer is not None:
            by_content.setdefault(_content(removed[path]), []).append(path)
    pairs = []
    for path in sorted(added, key=str.encode):
        candidates = by_content.get(_content(added[path]))
        if candidates:
            pairs.append((candidates.pop(), path))
    return pairs


def _content(entry: Entry) -> object:
    return (entry.kind, entry.size, entry.chunks, entry.tree, entry.target, entry.pointer)
