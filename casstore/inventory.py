"""What is in a store: collections, commits, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime

from casstore import catalogue, expiry
from casstore.catalogue import full_name
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import InvalidInputError
from casstore.format.rows import length_of_row
from casstore.gc.plan import footprint_of, garbage
from casstore.gc.reclaim import listed_packs
from casstore.model import CollectionRow, PackState, VersionState
from casstore.names import LATEST, check_limit
from casstore.policy import load
from casstore.state import CHUNK, alias_target
from casstore.values import dataclass
from casstore.view import collections, packs, trashed, versions, with_links


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection in a listing. ``size`` is of the version ``latest`` is on."""

    name: str
    type: str
    created_at: datetime
    versions: int
    trashed: int
    latest: str | None
    size: int
    kind: str = "sequence"
    """or ``portfolio``: it takes links only"""
    description: str = ""

    def to_dict(self) -> dict[str, object]:
        """The collection as JSON values."""
        return {**asdict(self), "created_at": self.created_at.isoformat()}


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """A commit in a listing. ``records``: how many of each kind."""

    seq: int
    at: datetime
    writer: str
    transactions: int
    records: dict[str, int]
    versions: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The commit as JSON values."""
        return {**asdict(self), "at": self.at.isoformat(), "versions": list(self.versions)}


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of a store or of one version.

    ``logical``: sum of the sizes of all files of all committed versions, links aside; ``unique``: plaintext bytes after
    deduplication; ``stored``: bytes of all packs; ``exclusive``: stored bytes only the committed versions (or
    the one asked about) keep; ``trash``: stored bytes only the trash keeps; ``garbage``: stored bytes nobody
    needs; ``pending``: stored bytes of packs whose end is in the log; ``other``: log, index and the rest. ``quota``:
    of live packs, at most; None = no limit.
    """

    ref: str | None
    logical: int
    unique: int
    stored: int
    exclusive: int
    shared: int
    trash: int
    garbage: int
    pending: int
    other: int
    versions: int
    trashed: int
    chunks: int
    quota: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The numbers as JSON values."""
        return asdict(self)


KINDS = ("sequence", "portfolio")


def kind_of(row: CollectionRow) -> str:
    """``portfolio`` for a collection that takes links only, else ``sequence``."""
    return "portfolio" if row.portfolio else "sequence"


def list_collections(
    engine: Engine, type_: str | None, prefix: str, kind: str | None = None
) -> Iterator[CollectionInfo]:
    """Collections in name order, empty ones too, by type, by prefix of their short or full name, and by kind."""
    if kind not in {None, *KINDS}:
        raise InvalidInputError(f"kind={kind!r} is not valid", hint=" or ".join(KINDS))
    engine.view.refresh()
    with engine.view.read() as tables:
        found = []
        terms = expiry.terms_now(engine, tables)
        for row in collections(tables):
            name = full_name(row)
            if row.state is not VersionState.COMMITTED:
                continue
            if kind not in {None, kind_of(row)}:
                continue
            if (type_ is not None and row.type != type_) or not (
                name.short.startswith(prefix) or str(name).startswith(prefix)
            ):
                continue
            known = {v.number: v for v in expiry.visible(tables, terms, row, versions(tables, row.id))}
            states = Counter(version.state for version in known.values())
            latest = expiry.resolve_latest(tables, terms, row, alias_target(tables, row.id, LATEST))
            found.append(
                CollectionInfo(
                    name.short,
                    row.type,
                    from_micros(row.created),
                    states[VersionState.COMMITTED],
                    states[VersionState.TRASHED],
                    None if latest is None else f"v{latest}",
                    0 if latest is None else known[latest].size,
                    kind_of(row),
                    row.description,
                )
            )
    return iter(found)


def commits(engine: Engine, limit: int | None) -> list[CommitInfo]:
    """Commits, newest first."""
    limit = check_limit(limit)
    head = engine.view.refresh().seq
    result: list[CommitInfo] = []
    for seq in range(head, 0, -1):
        if limit is not None and len(result) >= limit:
            break
        found = engine.log.read(seq)
        if found is None:
            break
        segment, _ = found
        records = [record for transaction in segment.transactions for record in transaction.records]
        places = [(getattr(record, "collection", None), getattr(record, "number", -1)) for record in records]
        named = [f"{collection}:v{number}" for collection, number in places if collection and number >= 0]
        kinds = Counter(type(record).__name__ for record in records)
        result.append(
            CommitInfo(
                seq,
                from_micros(segment.claimed),
                segment.writer,
                len(segment.transactions),
                dict(kinds),
                tuple(dict.fromkeys(named)),
            )
        )
    return result


def usage(engine: Engine, ref: str | None) -> Usage:
    """Count bytes, of the whole store or of one version."""
    if ref is not None:
        return _version_usage(engine, ref)
    engine.view.refresh()
    listed = listed_packs(engine)
    with engine.view.read() as tables:
        live = list(versions(tables, states=(VersionState.COMMITTED,)))
        gone = list(trashed(tables))
        rows = dict(packs(tables))
        dead = garbage(tables)
        in_trash = garbage(tables, [version.root for version in gone])
        by_live = garbage(tables, [version.root for version in live])
        unique = sum(length_of_row(row) for _, row in tables.scan(CHUNK))
        chunks = tables.count(CHUNK)
    stored = sum(info.size for info in listed.values())
    pending = sum(
        info.size for pack, info in listed.items() if (row := rows.get(pack)) is None or row.state is not PackState.LIVE
    )
    waste = sum(
        row.size * (row.raw - row.placed_raw) // row.raw
        for row in rows.values()
        if row.state is PackState.LIVE and row.raw
    )
    total = sum(info.size for info in engine.backend.list(""))
    return Usage(
        None,
        sum(version.size for version in live if not version.is_link),
        unique,
        stored,
        by_live.stored,
        max(0, stored - pending - waste - dead.stored - in_trash.stored - by_live.stored),
        in_trash.stored,
        dead.stored + waste,
        pending,
        total - stored,
        len(live),
        len(gone),
        chunks,
        load(engine.view.policy()).quota_bytes,
    )


def _version_usage(engine: Engine, ref: str) -> Usage:
    found = catalogue.lookup(engine, ref)
    root = found.version.root
    with engine.view.read() as tables:
        exclusive = garbage(tables, [row.root for row in with_links(tables, [found.version])])
        stored = footprint_of(tables, root)
    return Usage(
        found.label,
        found.version.size,
        exclusive.raw,
        stored,
        exclusive.stored,
        stored - exclusive.stored,
        0,
        0,
        0,
        0,
        1,
        0,
        len(exclusive.chunks) + len(exclusive.nodes),
    )
