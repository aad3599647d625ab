"""What a segment does to the state: each transaction whole, or not at all."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

from casstore.errors import IntegrityError
from casstore.format.rows import (
    decode_row,
    encode_row,
)
from casstore.model import (
    AbortParts,
    AddNode,
    AddPack,
    Applied,
    Checkpoint,
    Condemn,
    DeleteRun,
    Drop,
    DropAlias,
    EndUse,
    Erase,
    FinishParts,
    GCRun,
    Link,
    Pin,
    Protect,
    Purge,
    PurgeCollection,
    PutCollection,
    PutOutput,
    PutRun,
    PutVersion,
    Quarantine,
    Record,
    RenameCollection,
    RenewPin,
    Restore,
    RestoreCollection,
    Retire,
    Segment,
    SetAlias,
    SetCollectionTtl,
    SetPolicy,
    SetTtl,
    Transaction,
    Trash,
    TrashCollection,
    Unlink,
    Unpin,
    Unpurge,
    UpdateCollection,
    UpdateVersion,
    UpsertPart,
    UseVersion,
)
from casstore.overlay import KEY_BYTES, Changes, Overlay, Tables
from casstore.state.content import Void
from casstore.state.labels import CatalogueRules
from casstore.state.schema import (
    CLOCK_CAP,
    HEAD_KEY,
    META,
    TXID,
    Head,
    head_of,
)


def ratchet(head: Head, claimed: int, writer: str) -> tuple[int, int]:
    """The safe clock and the highest claim after a segment.

    Time that one writer saw pass on its own clock counts in full; a claim that follows another writer's counts
    for at most `CLOCK_CAP`, so that one host with a wrong clock cannot empty the trash. It never goes back.
    """
    if head.seq == 0:
        return claimed, claimed
    step = max(0, claimed - head.highest)
    if writer != head.writer:
        step = min(step, CLOCK_CAP)
    return head.safe + step, max(head.highest, claimed)


def apply(tables: Tables, segment: Segment, chain: bytes) -> tuple[Applied, ...]:
    """Fold one segment into the state; returns what became of each transaction.

    The caller must make the whole call atomic. Raises `IntegrityError` if the segment does not follow the
    state (not our log: stop, never guess) or if a reference count would fall below zero.
    """
    head = head_of(tables)
    if segment.seq != head.seq + 1 or segment.previous != head.chain:
        raise IntegrityError(
            f"log segment {segment.seq} does not follow segment {head.seq}", hint="casstore index rebuild"
        )
    advance(tables, segment, chain)
    return tuple(apply_transaction(tables, segment, transaction) for transaction in segment.transactions)


def advance(tables: Tables, segment: Segment, chain: bytes) -> None:
    """Move the head to a segment, and the clock with it."""
    head = head_of(tables)
    safe, highest = ratchet(head, segment.claimed, segment.writer)
    ahead = replace(head, seq=segment.seq, chain=chain, safe=safe, highest=highest, writer=segment.writer)
    tables.put(META, HEAD_KEY, encode_row(ahead))


_UNFIT = (OverflowError, struct.error)
"""what rows and keys raise at a number that they have no room for"""
_TXID_BYTES = 16


class _Changes(Overlay):
    """The changes of one transaction, which is void when it comes to a key that no index takes."""

    def get(self, table: str, key: bytes) -> bytes | None:
        if not 0 < len(key) <= KEY_BYTES:
            _check_length(len(key))
        changes = self._changes.get(table)
        if changes is not None and key in changes:
            return changes[key]
        return self._base.get(table, key)

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        for length in set(map(len, keys)):
            _check_length(length)
        return super().get_many(table, keys)

    def change(self, table: str, changes: Changes) -> None:
        for length in set(map(len, changes)):
            _check_length(length)
        fresh = self._only_here(table, changes)
        if fresh:
            self._counts.pop(table, None)
            for key in fresh:
                del self._changes[table][key]
            changes = {key: value for key, value in changes.items() if key not in fresh}
        super().change(table, changes)

    def _only_here(self, table: str, changes: Changes) -> set[bytes]:
        """Those of the keys that are to go which this very transaction has set, as the zero count of each new chunk."""
        mine = self._changes.get(table)
        if not mine or table in self._order:
            return set()
        gone = [key for key, value in changes.items() if value is None and mine.get(key) is not None]
        return {key for key, row in zip(gone, self._base.get_many(table, gone), strict=True) if row is None}

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if not 0 < len(key) <= KEY_BYTES:
            _check_length(len(key))
        self._change(table, key, value)

    def delete(self, table: str, key: bytes) -> None:
        self.change(table, {key: None})


def _check_length(length: int) -> None:
    if not 0 < length <= KEY_BYTES:
        raise Void(f"a name of {length} bytes is no key")


def apply_transaction(tables: Tables, segment: Segment, transaction: Transaction) -> Applied:
    """Fold one transaction in: all of it or nothing. The head must stand at the segment already.

    Whatever the values of its records, it is void at worst: what one replica cannot apply none may stop at.
    """
    if len(transaction.txid) != _TXID_BYTES:
        return Applied(transaction.txid, segment.seq, void="its id does not have 128 bits")
    known = tables.get(TXID, transaction.txid)
    if known is not None:
        seq, numbers = decode_row(known, tuple[int, tuple[int, ...]])
        return Applied(transaction.txid, seq, numbers=numbers, duplicate=True)
    overlay = _Changes(tables)
    try:
        numbers = _Transition(overlay, segment).run(transaction)
    except Void as void:
        return Applied(transaction.txid, segment.seq, void=str(void))
    except _UNFIT as error:
        return Applied(transaction.txid, segment.seq, void=f"a number is out of range: {error}")
    overlay.put(TXID, transaction.txid, encode_row((segment.seq, numbers)))
    overlay.flush()
    return Applied(transaction.txid, segment.seq, numbers=numbers)


class _Transition(CatalogueRules):
    """One transaction on its way into the tables."""

    def run(self, transaction: Transaction) -> tuple[int, ...]:
        numbers: list[int] = []
        for record in transaction.records:
            if isinstance(record, FinishParts):
                self._finish_parts(record, numbers[-1] if numbers else None)
                continue
            number = self._record(record)
            if number is not None:
                numbers.append(number)
        return tuple(numbers)

    def _record(self, record: Record) -> int | None:
        match record:
            case AddPack():
                self._add_pack(record)
            case AddNode():
                self._add_node(record)
            case Drop():
                self._drop(record)
            case Retire():
                self._retire(record)
            case Condemn():
                self._condemn(record)
            case GCRun():
                pass
            case Quarantine():
                self._quarantine(record)
            case Erase():
                self._erase(record)
            case Checkpoint():
                self._checkpoint(record)
            case PutVersion():
                return self._put_version(record)
            case UpdateVersion():
                self._update_version(record)
            case SetAlias():
                self._set_alias(record)
            case DropAlias():
                self._drop_alias(record)
            case Trash():
                self._trash(record)
            case Restore():
                self._restore(record)
            case Purge():
                self._purge(record)
            case Unpurge():
                self._unpurge(record)
            case SetTtl():
                self._set_ttl(record)
            case Protect():
                self._protect(record)
            case SetCollectionTtl():
                self._set_collection_ttl(record)
            case TrashCollection():
                self._trash_collection(record)
            case RestoreCollection():
                self._restore_collection(record)
            case PurgeCollection():
                self._purge_collection(record)
            case Pin():
                self._pin(record)
            case Unpin():
                self._unpin(record)
            case RenewPin():
                self._renew_pin(record)
            case SetPolicy():
                self._set_policy(record)
            case PutCollection():
                self._put_new_collection(record)
            case UpdateCollection():
                self._update_collection(record)
            case RenameCollection():
                self._rename_collection(record)
            case Link():
                return self._link(record)
            case Unlink():
                self._unlink(record)
            case UpsertPart():
                self._upsert_part(record)
            case AbortParts():
                self._abort_parts(record)
            case PutRun():
                self._put_run(record)
            case DeleteRun():
                self._delete_run(record)
            case PutOutput():
                self._put_output(record)
            case UseVersion():
                self._use_version(record)
            case EndUse():
                self._end_one_use(record)
        return None
