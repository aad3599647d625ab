"""Answers before and after a deletion: what would it free, and why is this still here? Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from casstore import catalogue
from casstore.catalogue import Found, full_name
from casstore.config import from_micros
from casstore.contents import find_entry
from casstore.digest import ALGORITHMS, Digest
from casstore.engine import Engine
from casstore.errors import InvalidInputError, NotFoundError
from casstore.format.rows import decode_row
from casstore.gc.plan import Garbage, garbage
from casstore.model import Drop, Entry, PinRow, VersionState
from casstore.names import parse_reference, split_path
from casstore.overlay import Tables
from casstore.state import CHUNK, NODE, PIN
from casstore.view import children_of, chunk_at, collections, trashed, versions

KEPT = (VersionState.COMMITTED, VersionState.TRASHED)


@dataclass(frozen=True, slots=True)
class Impact:
    """What deleting some versions together would free. ``stored``: bytes of packs; others: plaintext bytes.

    ``exclusive``: only these versions keep them: free once they are purged and collected. ``shared``: others keep
    them too, those in ``shared_with``. ``trash_only``: besides these, only versions in the trash keep them: free
    once those are purged as well.
    """

    refs: tuple[str, ...]
    exclusive_bytes: int
    shared_bytes: int
    trash_only_bytes: int
    stored_exclusive_bytes: int
    stored_trash_only_bytes: int
    shared_with: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The numbers as JSON values."""
        return {**asdict(self), "refs": list(self.refs), "shared_with": list(self.shared_with)}


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that keeps content. ``kind``: ``version``, ``trash`` or ``pin``. ``until``: when it lets go."""

    kind: str
    ref: str
    paths: tuple[str, ...]
    until: datetime | None

    def to_dict(self) -> dict[str, object]:
        """The holder as JSON values."""
        return {
            "kind": self.kind,
            "ref": self.ref,
            "paths": list(self.paths),
            "until": None if self.until is None else self.until.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why content is there, or since when it is not.

    ``state``: ``held`` (see ``holders``), ``garbage`` (nothing holds it; the next collection may take it) or
    ``dropped`` (by the collection of ``dropped_at``).
    """

    subject: str
    digests: int
    state: str
    holders: tuple[Holder, ...]
    dropped_at: datetime | None = None
    dropped_by: str = ""

    def to_dict(self) -> dict[str, object]:
        """The explanation as JSON values."""
        return {
            "subject": self.subject,
            "digests": self.digests,
            "state": self.state,
            "holders": [holder.to_dict() for holder in self.holders],
            "dropped_at": None if self.dropped_at is None else self.dropped_at.isoformat(),
            "dropped_by": self.dropped_by,
        }


# --- what would it free --------------------------------------------------------------------------


def preview_delete(engine: Engine, refs: Sequence[str]) -> Impact:
    """What deleting these versions together would free. Exact for the set, not the sum of its parts.

    Versions in the trash may be among them. Raises `VersionNotFoundError`.
    """
    if isinstance(refs, str) or not refs:
        raise InvalidInputError("preview_delete needs a list of references")
    engine.view.refresh()
    with engine.view.read() as tables:
        chosen: dict[tuple[int, int], Found] = {}
        for ref in refs:
            found = catalogue.find(tables, parse_reference(ref), states=KEPT)
            chosen[found.collection.id, found.version.number] = found
        roots = [found.version.root for found in chosen.values()]
        alone = garbage(tables, roots)
        rest = [version.root for version in trashed(tables) if (version.collection, version.number) not in chosen]
        trash = garbage(tables, rest)
        both = garbage(tables, [*roots, *rest])
        reachable = _below(tables, roots)
        shared = reachable - _digests(alone)
        others = _others(tables, chosen, shared)
        total = sum(row.location.length for d in reachable if (row := chunk_at(tables, d)) is not None)
    return Impact(
        tuple(found.label for found in chosen.values()),
        alone.raw,
        total - alone.raw,
        both.raw - alone.raw - trash.raw,
        alone.stored,
        both.stored - alone.stored - trash.stored,
        others,
    )


def _digests(found: Garbage) -> set[bytes]:
    return {*found.nodes, *found.chunks}


def _below(tables: Tables, roots: Iterable[bytes]) -> set[bytes]:
    seen = set(roots)
    queue = list(seen)
    while queue:
        for child in children_of(tables, queue.pop()) or ():
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return seen


def _others(tables: Tables, chosen: dict[tuple[int, int], Found], shared: set[bytes]) -> tuple[str, ...]:
    """Labels of other versions that need any of some digests."""
    above = _ancestors(tables, shared)
    return tuple(
        Found(full_name(collection), collection, version).label
        for collection in collections(tables)
        for version in versions(tables, collection.id, states=KEPT)
        if version.root in above and (version.collection, version.number) not in chosen
    )


# --- why is it here ------------------------------------------------------------------------------


def why(engine: Engine, subject: str) -> Explanation:
    """Every holder of a digest, of a version (``name:vN``) or of a path in one (``name:vN/path``), complete.

    Raises `NotFoundError` for a digest the log never knew, `VersionNotFoundError`, `EntryNotFoundError`.
    """
    engine.view.refresh()
    algorithm = subject.partition(":")[0]
    if algorithm in ALGORITHMS and ":" in subject and "/" not in subject:
        digest = Digest.parse(subject)
        if digest.algorithm != engine.config.digest:
            raise InvalidInputError(f"this store names content by {engine.config.digest}, not {digest.algorithm}")
        return _why_digest(engine, subject, digest.value)
    reference, path = split_path(subject)
    with engine.view.read() as tables:
        found = catalogue.find(tables, parse_reference(reference), states=KEPT)
    if not path:
        return _explain(engine, subject, {found.version.root})
    entry = find_entry(engine, found, path)
    if entry is None:
        raise NotFoundError(f"{found.label} has no path {path!r}", hint=f"casstore files {found.label}")
    return _explain(engine, subject, _named_by(entry))


def _named_by(entry: Entry) -> set[bytes]:
    return {entry.tree} if entry.tree is not None else {digest for digest, _ in entry.chunks}


def _why_digest(engine: Engine, subject: str, digest: bytes) -> Explanation:
    with engine.view.read() as tables:
        known = tables.get(CHUNK, digest) is not None
    if known:
        return _explain(engine, subject, {digest})
    for seq in range(engine.view.head().seq, 0, -1):
        found = engine.log.read(seq)
        if found is None:
            break
        for transaction in found[0].transactions:
            for record in transaction.records:
                if isinstance(record, Drop) and digest in record.digests:
                    at = from_micros(found[0].claimed)
                    return Explanation(subject, 1, "dropped", (), at, f"{found[0].writer}, segment {seq}")
    raise NotFoundError(f"{subject} was never in this store", hint="casstore ls")


def _explain(engine: Engine, subject: str, digests: set[bytes]) -> Explanation:
    holders: list[Holder] = []
    with engine.view.read() as tables:
        above = _ancestors(tables, digests)
        kept = [
            Found(full_name(collection), collection, version)
            for collection in collections(tables)
            for version in versions(tables, collection.id, states=KEPT)
            if version.root in above
        ]
        pins = [pin for _, row in tables.scan(PIN) if above.intersection((pin := decode_row(row, PinRow)).roots)]
    for found in kept:
        in_trash = found.version.state is VersionState.TRASHED
        until = catalogue.wall_time(engine, found.version.purge_at) if in_trash else None
        paths = tuple(_paths(engine, found.version.root, above, digests))
        holders.append(Holder("trash" if in_trash else "version", found.label, paths, until))
    for pin in pins:
        until = catalogue.wall_time(engine, pin.expires)
        holders.append(Holder("pin", f"{pin.purpose}, held by {pin.holder}", (), until))
    return Explanation(subject, len(digests), "held" if holders else "garbage", tuple(holders))


def _ancestors(tables: Tables, digests: set[bytes]) -> set[bytes]:
    """Some digests and every indexed node above them. One pass over the nodes for each level."""
    found = set(digests)
    while found:
        new = {
            node
            for node, row in tables.scan(NODE)
            if node not in found and any(row[at : at + len(node)] in found for at in range(0, len(row), len(node)))
        }
        if not new:
            break
        found |= new
    return found


def _paths(engine: Engine, root: bytes, above: set[bytes], digests: set[bytes]) -> list[str]:
    """Paths of a tree whose content includes some digests; enters only nodes above them."""
    if root in digests:
        return []
    found: list[str] = []
    stack = [root]
    while stack:
        node = engine.node(stack.pop())
        stack.extend(child.digest for child in reversed(node.children) if child.digest in above)
        found.extend(
            entry.path
            for entry in node.entries
            if (entry.tree is not None and entry.tree in above) or any(d in digests for d, _ in entry.chunks)
        )
    return found
