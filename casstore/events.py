"""What happened to versions, for a host that serves them: as it is committed here, or read off the log.

An event says that a version went to the trash, came back, or was purged, by whatever route. Those of a record that
stands for several versions (a collection, links with their source) are worked out on the state at hand: one that has
changed again since may be named although nothing became of it then. None that did change and stayed so is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import chain

from casstore.catalogue import found_of
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import InvalidInputError
from casstore.identity import version_id
from casstore.model import (
    Purge,
    Record,
    RenameCollection,
    Restore,
    RestoreCollection,
    Transaction,
    Trash,
    TrashCollection,
    Unlink,
    Unpurge,
    VersionRow,
    VersionState,
)
from casstore.overlay import Tables
from casstore.state import current_name
from casstore.values import dataclass
from casstore.view import collection_named, links_of, version_at, versions

TRASHED, RESTORED, PURGED = "trash", "restore", "purge"
UNDO = "undo"
"""the reason of a version that a run of the collector is taken back for: purged before, in the trash now"""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a version. ``kind``: ``trash``, ``restore`` or ``purge``; a link taken away is purged.

    ``ref`` is what it is called now, ``id`` its `Version.id`. ``commit``: position in the log, for `Store.events`;
    ``at``: when, by the clock of who committed it.
    """

    kind: str
    ref: str
    id: str
    actor: str
    reason: str
    commit: int
    at: datetime

    def to_dict(self) -> dict[str, object]:
        """The event as JSON values."""
        return {
            "kind": self.kind,
            "ref": self.ref,
            "id": self.id,
            "actor": self.actor,
            "reason": self.reason,
            "commit": self.commit,
            "at": self.at.isoformat(),
        }


Callback = Callable[[Event], object]


def subscribe(engine: Engine, kind: str, callback: Callback) -> Callable[[], None]:
    """Have a function called for each event of a kind that this handle commits; returns what ends that.

    It is called once the commit is durable, in the thread that asked for it, outside of every lock; it may use the
    store. What it raises is logged (logger ``casstore``), and changes nothing: the commit stands.
    """
    if not callable(callback):
        raise InvalidInputError(f"{callback!r:.100} is no function", hint="store.on_trash(lambda event: …)")

    def observe(seq: int, at: int, transaction: Transaction) -> None:
        if not any(isinstance(record, _KINDS[kind]) for record in transaction.records):
            return
        try:
            with engine.view.read() as tables:
                found = [event for event in _events(engine, tables, seq, at, transaction) if event.kind == kind]
        except Exception:  # noqa: BLE001 - the commit stands
            _logger().exception("what commit %d did to versions is not known", seq)
            return
        for event in found:
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - the commit stands
                _logger().exception("a callback for %s of %s failed", kind, event.ref)

    engine.observers.append(observe)

    def unsubscribe() -> None:
        if observe in engine.observers:
            engine.observers.remove(observe)

    return unsubscribe


def _logger() -> logging.Logger:
    return logging.getLogger("casstore")


_KINDS: dict[str, tuple[type, ...]] = {
    TRASHED: (Trash, TrashCollection, Unpurge),
    RESTORED: (Restore, RestoreCollection),
    PURGED: (Purge, Unlink),
}
_ALL = tuple(kind for kinds in _KINDS.values() for kind in kinds)


def events(engine: Engine, after: int) -> Iterator[Event]:
    """Events of every writer behind a position of the log, oldest first, up to where the log ends now.

    Reads a segment at a time. Raises `InvalidInputError`, `IntegrityError`.
    """
    if isinstance(after, bool) or not isinstance(after, int) or after < 0:
        raise InvalidInputError(f"after={after!r} is not a position", hint="store.head, or the commit of an event")
    return _read(engine, after, engine.view.refresh().seq)


def _read(engine: Engine, after: int, head: int) -> Iterator[Event]:
    for seq in range(after + 1, head + 1):
        found = engine.log.read(seq)
        if found is None:
            return
        segment, _ = found
        for transaction in segment.transactions:
            if not any(isinstance(record, _ALL) for record in transaction.records):
                continue
            outcome = engine.view.outcome(transaction.txid)
            if outcome is None or outcome[0] != seq:
                continue  # void when its turn came, or applied before
            with engine.view.read() as tables:
                made = list(_events(engine, tables, seq, segment.claimed, transaction))
            yield from made


def _events(engine: Engine, tables: Tables, seq: int, at: int, transaction: Transaction) -> Iterator[Event]:
    when = from_micros(at)
    said: set[tuple[str, int, int]] = set()
    for record in transaction.records:
        for kind, row, actor, reason in _changes(engine, tables, record, seq):
            key = (kind, row.collection, row.number)
            if key not in said:
                said.add(key)
                label, id = found_of(tables, row).label, version_id(engine.config.store_id, row)
                yield Event(kind, label, id, actor, reason, seq, when)


_Change = tuple[str, VersionRow, str, str]


def _changes(engine: Engine, tables: Tables, record: Record, seq: int) -> Iterator[_Change]:
    """What a record that took effect at a position did to versions, by the state now."""
    match record:
        case Trash():
            for row in _with_links(engine, tables, record.collection, record.number, seq):
                yield TRASHED, row, record.actor, record.reason
        case Restore():
            for row in _with_links(engine, tables, record.collection, record.number, seq):
                yield RESTORED, row, record.actor, ""
        case Purge():
            for row in _with_links(engine, tables, record.collection, record.number, seq):
                yield PURGED, row, record.actor, ""
        case Unpurge():
            for row in _with_links(engine, tables, record.collection, record.number, seq):
                yield TRASHED, row, record.actor, UNDO
        case Unlink():
            for row in _one(engine, tables, record.collection, record.number, seq):
                yield PURGED, row, record.actor, ""
        case TrashCollection():
            for row in _members(engine, tables, record.collection, seq):
                yield TRASHED, row, record.actor, record.reason
        case RestoreCollection():
            for row in _members(engine, tables, record.collection, seq):
                yield RESTORED, row, record.actor, ""
        case _:
            pass


def _one(engine: Engine, tables: Tables, collection: str, number: int, seq: int) -> Iterator[VersionRow]:
    row = version_at(tables, _called(tables, collection), number)
    if row is None or row.seq > seq:
        row = version_at(tables, _called(tables, _name_since(engine, collection, seq)), number)
    if row is not None and row.seq <= seq:
        yield row


def _called(tables: Tables, collection: str) -> int:
    """The id of the collection that a name leads to; 0 for none."""
    row = collection_named(tables, current_name(tables, collection))
    return 0 if row is None else row.id


def _name_since(engine: Engine, collection: str, seq: int) -> str:
    """The name by now of the collection that had one at a position; for when another has taken it since."""
    for segment, _ in engine.log.after(seq):
        for transaction in segment.transactions:
            for record in transaction.records:
                if isinstance(record, RenameCollection) and record.collection == collection:
                    outcome = engine.view.outcome(transaction.txid)
                    if outcome is not None and outcome[0] == segment.seq:
                        collection = record.name
    return collection


def _with_links(engine: Engine, tables: Tables, collection: str, number: int, seq: int) -> Iterator[VersionRow]:
    for row in _one(engine, tables, collection, number, seq):
        yield row
        yield from _links(tables, row, seq)


def _links(tables: Tables, source: VersionRow, seq: int) -> Iterator[VersionRow]:
    for link in links_of(tables, source, states=tuple(VersionState)):
        if _concerned(link, seq):
            yield link


def _members(engine: Engine, tables: Tables, collection: str, seq: int) -> Iterator[VersionRow]:
    rows = versions(tables, _called(tables, collection))
    first = next(rows, None)
    if first is None or first.seq > seq:
        rows = versions(tables, _called(tables, _name_since(engine, collection, seq)))
        first = next(rows, None)
    for row in chain(() if first is None else (first,), rows):
        if _concerned(row, seq):
            yield row
            yield from _links(tables, row, seq)


def _concerned(row: VersionRow, seq: int) -> bool:
    """Whether a version can have been hidden, or shown, at a position: not what came later or had gone before."""
    gone = row.state is VersionState.PURGED and row.purge_seq < seq
    hidden = row.state is VersionState.TRASHED and row.trash_seq < seq
    return row.seq <= seq and not gone and not hidden
