"""Batches and their parts as they are: find, show, give up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from casstore import catalogue
from casstore.artifact import Artifact
from casstore.config import from_micros
from casstore.digest import Digest
from casstore.engine import Engine
from casstore.errors import ArtifactFinalizedError, InvalidInputError, NotFoundError, RefusedError, TypeConflictError
from casstore.format.rows import decode_row
from casstore.model import AbortParts, BatchRow, PartRow, PinRow, Record
from casstore.names import CollectionName
from casstore.overlay import Tables
from casstore.state import ABORTED, FINISHED, OPEN, PIN, current_name, head_of
from casstore.values import dataclass
from casstore.view import batch_at, batches_called, collection_name, open_batches, parts_of

PENDING = "PENDING"
STATES = {OPEN: PENDING, FINISHED: "FINISHED", ABORTED: "ABORTED"}


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A part of a batch. ``size``: bytes of its files. ``holder``: who stored it first, ``at`` when.

    ``lost``: its pin was let go by hand, so that its content may be collected: it must be upserted again.
    """

    collection: str
    distributed_id: str
    part: str
    digest: Digest
    size: int
    files: int
    holder: str
    at: datetime
    lost: bool = False

    def to_dict(self) -> dict[str, object]:
        """The part as JSON values."""
        return {
            "collection": self.collection,
            "distributed_id": self.distributed_id,
            "part": self.part,
            "digest": str(self.digest),
            "size": self.size,
            "files": self.files,
            "holder": self.holder,
            "at": self.at.isoformat(),
            "lost": self.lost,
        }


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch. ``state``: ``PENDING``, ``FINISHED`` (as ``version``) or ``ABORTED`` (``reason``).

    ``parts`` by name, of a batch that is pending; ``size`` and ``files`` are theirs together. ``expires_at``: when the
    lease ends that each upsert renews; ``expired``: it has, and the next collection aborts the batch.
    """

    distributed_id: str
    collection: str
    type: str
    state: str
    parts: tuple[PartInfo, ...]
    size: int
    files: int
    created_at: datetime
    expires_at: datetime | None
    expired: bool
    version: str | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, object]:
        """The batch as JSON values."""
        return {
            "distributed_id": self.distributed_id,
            "collection": self.collection,
            "type": self.type,
            "state": self.state,
            "parts": [part.to_dict() for part in self.parts],
            "size": self.size,
            "files": self.files,
            "created_at": self.created_at.isoformat(),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
            "expired": self.expired,
            "version": self.version,
            "reason": self.reason,
        }


def find_batch(tables: Tables, name: CollectionName | None, batch: str) -> BatchRow | None:
    """A batch by its id and, if given, any name its collection had; None if that has none."""
    if name is None:
        return _only(tables, batch)
    now = current_name(tables, str(name))
    # A collection that was renamed took its batches along; one that nobody has made yet may take the old name.
    return batch_at(tables, now, batch) or batch_at(tables, str(name), batch)


def _only(tables: Tables, batch: str) -> BatchRow:
    found = list(batches_called(tables, batch))
    if not found:
        raise _unknown(batch)
    if len(found) > 1:
        names = ", ".join(sorted(short_name(row) for row in found))
        raise InvalidInputError(
            f"there are batches {batch!r} of {names}", hint="say which: collection=, or --collection NAME"
        )
    return found[0]


def _unknown(batch: str) -> NotFoundError:
    return NotFoundError(f"there is no batch {batch!r}", hint="casstore pending ls")


def short_name(batch: BatchRow) -> str:
    """The collection of a batch, with as little namespace as it needs."""
    return CollectionName.parse(batch.name).short


def check_open(tables: Tables, batch: BatchRow) -> None:
    """Raise `ArtifactFinalizedError` for a batch that is finished, `RefusedError` for one that was aborted."""
    if batch.state == FINISHED:
        raise ArtifactFinalizedError(
            f"batch {batch.batch!r} is finished: it is {version_of(tables, batch)}",
            hint="take another distributed_id: each is used once",
        )
    if batch.state == ABORTED:
        why = f": {batch.reason}" if batch.reason else ""
        raise RefusedError(
            f"batch {batch.batch!r} of {short_name(batch)} was aborted{why}",
            hint="take another distributed_id: each is used once",
        )


def version_of(tables: Tables, batch: BatchRow) -> str:
    """What a finished batch became: ``name:vN``."""
    name = CollectionName.parse(collection_name(tables, batch.collection))
    return f"{name.short}:v{batch.number}"


def pin_of(tables: Tables, part: PartRow) -> PinRow | None:
    """The pin that keeps a part; None if it was let go of."""
    row = tables.get(PIN, part.pin)
    return None if row is None else decode_row(row, PinRow)


def pending(engine: Engine) -> list[BatchInfo]:
    """Batches that are neither finished nor aborted, by collection and id."""
    with engine.foresee(lambda _: ()) as tables:
        found = sorted(open_batches(tables), key=lambda row: (row.name, row.batch))
        return [_info(engine, tables, row) for row in found]


def get(engine: Engine, name: CollectionName | None, batch: str) -> BatchInfo:
    """A batch in any state. Raises `NotFoundError`; `InvalidInputError` if collections have batches with the id."""
    with engine.foresee(lambda _: ()) as tables:
        return _info(engine, tables, _known(tables, name, batch))


def _known(tables: Tables, name: CollectionName | None, batch: str) -> BatchRow:
    found = find_batch(tables, name, batch)
    if found is None:
        raise _unknown(batch)
    return found


def _info(engine: Engine, tables: Tables, batch: BatchRow) -> BatchInfo:
    rows = parts_of(tables, batch)
    pins = [pin_of(tables, row) for row in rows]
    ends = max([batch.expires, *(pin.expires for pin in pins if pin is not None)])
    parts = tuple(part_info(engine, batch, row, lost=pin is None) for row, pin in zip(rows, pins, strict=True))
    under_way = batch.state == OPEN
    return BatchInfo(
        batch.batch,
        short_name(batch),
        batch.type,
        STATES[batch.state],
        parts,
        sum(part.size for part in parts),
        sum(part.files for part in parts),
        from_micros(batch.created),
        catalogue.wall_at(tables, ends) if under_way else None,
        under_way and ends <= head_of(tables).safe,
        version_of(tables, batch) if batch.state == FINISHED else None,
        batch.reason,
    )


def part_info(engine: Engine, batch: BatchRow, row: PartRow, *, lost: bool = False) -> PartInfo:
    """A part as users see it."""
    return PartInfo(
        short_name(batch),
        batch.batch,
        row.name,
        engine.digest(row.root),
        row.size,
        row.file_count,
        row.holder,
        from_micros(row.at),
        lost,
    )


def check_type(batch: BatchRow, artifact: Artifact) -> None:
    """Raise `TypeConflictError` unless an artifact has the type of a batch."""
    if batch.type != artifact.type:
        raise TypeConflictError(
            f"batch {batch.batch!r} of {short_name(batch)} has type {batch.type!r}, not {artifact.type!r}",
            hint="upsert with the type of the batch, or take another distributed_id",
        )


# --- abort ---------------------------------------------------------------------------------------


def abort(engine: Engine, name: CollectionName | None, batch: str, reason: str) -> BatchInfo:
    """Give a batch up, in one commit: what only its parts keep is garbage then. Returns it as it was.

    One that is aborted already is left as it is. Raises `NotFoundError`, `ArtifactFinalizedError`.
    """
    before: BatchInfo | None = None

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal before
        found = _known(tables, name, batch)
        before = _info(engine, tables, found)
        if found.state == ABORTED:
            return ()
        check_open(tables, found)
        return (AbortParts(found.name, found.batch, reason, engine.runtime.actor),)

    engine.commit(build)
    assert before is not None
    return before if before.state == STATES[ABORTED] else replace(before, state=STATES[ABORTED], reason=reason)
