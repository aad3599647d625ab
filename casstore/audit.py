"""What was taken away and given back, by whom, when and why: read off the log, which is the only record there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import datetime
from itertools import islice

from casstore.catalogue import LEASE_OVER
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.model import (
    AbortParts,
    Condemn,
    Drop,
    Erase,
    GCRun,
    Purge,
    PurgeCollection,
    Record,
    Restore,
    RestoreCollection,
    Retire,
    Segment,
    Transaction,
    Trash,
    TrashCollection,
    Unlink,
    Unpurge,
)
from casstore.names import CollectionName, check_limit
from casstore.values import dataclass

BY_USER = "user"
"""`Trash.trashed_by` of what somebody deleted by hand"""


@dataclass(frozen=True, slots=True)
class DeletionRecord:
    """One thing that was done to versions or bytes. Versions of one commit done to alike are one record.

    ``action``: ``trash``, ``restore``, ``purge``, ``unlink``, ``undo`` (purged versions put back into the trash),
    ``trash-collection``, ``restore-collection``, ``purge-collection``, ``erase`` (``refs`` are digests then), ``abort``
    (``refs`` are batches of distributed writers: collection and id) or ``gc``, one for each run of the collector, with
    its ``totals``: empty if it did not come to its end. ``by``: what rule, ``user`` if none. ``run_id``: the run it was
    part of. ``freed_bytes``: stored bytes deleted by a run; nothing else frees bytes at once.
    """

    action: str
    at: datetime
    actor: str
    reason: str
    refs: tuple[str, ...]
    by: str
    commit: int
    run_id: str | None = None
    freed_bytes: int | None = None
    totals: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The record as JSON values."""
        return {
            "action": self.action,
            "at": self.at.isoformat(),
            "actor": self.actor,
            "reason": self.reason,
            "refs": list(self.refs),
            "by": self.by,
            "commit": self.commit,
            "run_id": self.run_id,
            "freed_bytes": self.freed_bytes,
            "totals": dict(self.totals),
        }


def transactions(engine: Engine, newest: int | None = None) -> Iterator[tuple[Segment, Transaction]]:
    """Transactions newest first, from the head or some position, as far back as the log goes; void ones, too.

    Reads one segment at a time, so that stopping early costs nothing. See `took_effect`.
    """
    for seq in range(engine.view.refresh().seq if newest is None else newest, 0, -1):
        found = engine.log.read(seq)
        if found is None:
            return
        segment, _ = found
        for transaction in reversed(segment.transactions):
            yield segment, transaction


def took_effect(engine: Engine, segment: Segment, transaction: Transaction) -> bool:
    """False for a transaction that was void when its turn came, or had been applied before."""
    outcome = engine.view.outcome(transaction.txid)
    return outcome is not None and outcome[0] == segment.seq


def deletions(engine: Engine, limit: int | None = None) -> list[DeletionRecord]:
    """What was taken away and given back, newest first, at most ``limit``; reads no further back than needed."""
    return list(islice(_deletions(engine), check_limit(limit)))


def _deletions(engine: Engine) -> Iterator[DeletionRecord]:
    runs: set[bytes] = set()
    for segment, transaction in transactions(engine):
        run = transaction.run
        groups = _grouped(engine, transaction)
        collected = run is not None and (run.summary or frees(transaction))
        if not (collected or groups) or not took_effect(engine, segment, transaction):
            continue
        if run is not None and collected and run.run not in runs:
            # The newest transaction of a run that came to its end has the totals.
            runs.add(run.run)
            yield _of_run(segment, run)
        for (action, actor, reason, by), refs in reversed(groups.items()):
            yield DeletionRecord(
                action,
                from_micros(segment.claimed),
                actor or segment.writer,
                reason,
                tuple(refs),
                by,
                segment.seq,
                None if run is None else run.run.hex(),
            )


def frees(transaction: Transaction) -> bool:
    """Whether it takes away more than a name: a sweep of what expired is no run of the collector."""
    return any(isinstance(record, Drop | Retire | Condemn | Purge) for record in transaction.records)


def _of_run(segment: Segment, run: GCRun) -> DeletionRecord:
    totals = totals_of(run)
    at = from_micros(segment.claimed)
    freed = totals.get("freed_bytes")
    return DeletionRecord("gc", at, run.actor, "", (), BY_USER, segment.seq, run.run.hex(), freed, totals)


def totals_of(run: GCRun) -> dict[str, int]:
    """The totals a run wrote down; empty for another transaction than its last."""
    if not run.summary:
        return {}
    return {name: value for name, value in json.loads(run.summary).items() if isinstance(value, int)}


_Kind = tuple[str, str, str, str]


def _grouped(engine: Engine, transaction: Transaction) -> dict[_Kind, list[str]]:
    """What a transaction takes away or gives back: (action, actor, reason, by) → references."""
    groups: dict[_Kind, list[str]] = {}
    for record in transaction.records:
        found = _read(engine, record)
        if found is not None:
            kind, refs = found
            groups.setdefault(kind, []).extend(refs)
    return groups


def _read(engine: Engine, record: Record) -> tuple[_Kind, list[str]] | None:
    match record:
        case Trash():
            kind = ("trash", record.actor, record.reason, record.trashed_by)
            return kind, [_version(record.collection, record.number)]
        case Restore():
            return ("restore", record.actor, "", BY_USER), [_version(record.collection, record.number)]
        case Purge():
            by = BY_USER if record.force else "trash_days"
            return ("purge", record.actor, "", by), [_version(record.collection, record.number)]
        case Unlink():
            return ("unlink", record.actor, "", BY_USER), [_version(record.collection, record.number)]
        case Unpurge():
            return ("undo", record.actor, "", BY_USER), [_version(record.collection, record.number)]
        case TrashCollection():
            return ("trash-collection", record.actor, record.reason, BY_USER), [_name(record.collection)]
        case RestoreCollection():
            return ("restore-collection", record.actor, "", BY_USER), [_name(record.collection)]
        case PurgeCollection():
            by = BY_USER if record.force else "trash_days"
            return ("purge-collection", record.actor, "", by), [_name(record.collection)]
        case AbortParts():
            by = "lease" if record.reason == LEASE_OVER else BY_USER
            return ("abort", record.actor, record.reason, by), [f"{_name(record.collection)} {record.batch}"]
        case Erase():
            digests = [str(engine.digest(digest)) for digest in record.digests]
            return ("erase", record.actor, record.reason, BY_USER), digests
    return None


def _name(collection: str) -> str:
    return CollectionName.parse(collection).short


def _version(collection: str, number: int) -> str:
    return f"{_name(collection)}:v{number}"
