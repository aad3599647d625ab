"""The pure rules: what each record needs to be valid, and what it does.

`apply` is a function of the state and a segment and of nothing else, so every replica agrees. The state is a
set of ordered tables of bytes (`Tables`); LMDB and dictionaries both serve. A transaction with one invalid
record is *void*: it has no effect at all, on any replica (docs/GC.md, invariants I1-I5).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from casstore.digest import seal
from casstore.errors import IntegrityError
from casstore.format.packs import FIRST_FRAME
from casstore.format.rows import (
    chunk_row,
    decode_row,
    encode_row,
    kind_of_row,
    length_of_row,
    moved_row,
    pack_of_row,
    refcount,
    u64,
    with_refcount,
)
from casstore.model import (
    AddNode,
    AddPack,
    AliasChange,
    Applied,
    ChunkKind,
    CollectionRow,
    Condemn,
    Drop,
    DropAlias,
    PackRow,
    PackState,
    Pin,
    PinRow,
    Purge,
    PutVersion,
    Record,
    Restore,
    Retire,
    Segment,
    SetAlias,
    SetPolicy,
    Transaction,
    Trash,
    Unpin,
    UpdateVersion,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST
from casstore.overlay import Overlay, Tables

META = "meta"
CHUNK = "chunk"
NODE = "node"
ZERO = "zero"
PACK = "pack"
COLLECTION = "collection"
COLLECTION_NAME = "collection_name"
VERSION = "version"
ROOT = "root"
TRASHED = "trashed"
ALIAS = "alias"
ALIAS_LOG = "alias_log"
PIN = "pin"
POLICY = "policy"
TXID = "txid"
TABLES = (
    META,
    CHUNK,
    NODE,
    ZERO,
    PACK,
    COLLECTION,
    COLLECTION_NAME,
    VERSION,
    ROOT,
    TRASHED,
    ALIAS,
    ALIAS_LOG,
    PIN,
    POLICY,
    TXID,
)

ANY = -2
"""`SetAlias.expect`: wherever the alias is now"""
CLOCK_CAP = 24 * 3600 * 1_000_000
"""µs that one claim of another writer may move the ratchet clock (GC.md §3.7)"""


@dataclass(frozen=True, slots=True)
class Head:
    """How far the state has come. ``safe`` and ``highest`` are the ratchet clock (µs)."""

    seq: int = 0
    chain: bytes = bytes(32)
    safe: int = 0
    highest: int = 0
    writer: str = ""
    collections: int = 0
    floor: int = 0


_HEAD_KEY = b"head"


def head_of(tables: Tables) -> Head:
    """The position of the state."""
    row = tables.get(META, _HEAD_KEY)
    return Head() if row is None else decode_row(row, Head)


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


class _Void(Exception):
    """A record is not valid; the transaction has no effect."""


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
    tables.put(META, _HEAD_KEY, encode_row(ahead))


def apply_transaction(tables: Tables, segment: Segment, transaction: Transaction) -> Applied:
    """Fold one transaction in: all of it or nothing. The head must stand at the segment already."""
    known = tables.get(TXID, transaction.txid)
    if known is not None:
        seq, numbers = decode_row(known, tuple[int, tuple[int, ...]])
        return Applied(transaction.txid, seq, numbers=numbers, duplicate=True)
    overlay = Overlay(tables)
    try:
        numbers = _Transition(overlay, segment).run(transaction)
    except _Void as void:
        return Applied(transaction.txid, segment.seq, void=str(void))
    overlay.put(TXID, transaction.txid, encode_row((segment.seq, numbers)))
    overlay.flush()
    return Applied(transaction.txid, segment.seq, numbers=numbers)


class _Transition:
    """One transaction on its way into the tables."""

    def __init__(self, tables: Overlay, segment: Segment) -> None:
        self.tables = tables
        self.segment = segment
        self.added: dict[bytes, bytes] = {}
        """digest → row of its place in a pack this transaction adds"""

    def run(self, transaction: Transaction) -> tuple[int, ...]:
        numbers: list[int] = []
        for record in transaction.records:
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
            case Pin():
                self._pin(record)
            case Unpin():
                self._unpin(record)
            case SetPolicy():
                self._set_policy(record)
        return None

    # --- bytes

    def _add_pack(self, record: AddPack) -> None:
        if self.tables.get(PACK, record.pack) is not None:
            raise _Void(f"pack {record.pack.hex()} is known already")
        content = record.content
        placed = placed_raw = 0
        at = FIRST_FRAME
        index = 0
        for frame in content.frames:
            offset = 0
            for i in range(index, index + frame.chunks):
                digest, length = content.digests[i], content.lengths[i]
                row = chunk_row(record.pack, at, frame.stored, frame.raw, offset, length, content.kind)
                self.added.setdefault(digest, row)
                if self.tables.get(CHUNK, digest) is None:
                    self.tables.put(CHUNK, digest, row)
                    self.tables.put(ZERO, digest, b"")
                    placed += 1
                    placed_raw += length
                offset += length
            index += frame.chunks
            at += frame.stored
        self.tables.put(
            PACK,
            record.pack,
            encode_row(
                PackRow(
                    PackState.LIVE,
                    content.kind,
                    record.size,
                    sum(content.lengths),
                    placed,
                    placed_raw,
                    self.segment.claimed,
                    self.segment.seq,
                )
            ),
        )

    def _add_node(self, record: AddNode) -> None:
        # In a pack of either kind: a file may have been stored before that has the very bytes of this node.
        if self.tables.get(CHUNK, record.digest) is None:
            raise _Void(f"node {record.digest.hex()} is not stored")
        if self.tables.get(NODE, record.digest) is not None:
            return
        for child in dict.fromkeys(record.children):
            self._hold(child)
        self.tables.put(NODE, record.digest, b"".join(dict.fromkeys(record.children)))

    def _hold(self, digest: bytes) -> None:
        row = self.tables.get(CHUNK, digest)
        if row is None:
            raise _Void(f"{digest.hex()} is not stored")
        if kind_of_row(row) is ChunkKind.NODE and self.tables.get(NODE, digest) is None:
            raise _Void(f"the children of node {digest.hex()} are not known")
        count = refcount(row)
        if count == 0:
            self.tables.delete(ZERO, digest)
        self.tables.put(CHUNK, digest, with_refcount(row, count + 1))

    def _hold_root(self, digest: bytes) -> None:
        if self.tables.get(NODE, digest) is None:
            raise _Void(f"root {digest.hex()} is not a stored node")
        self._hold(digest)

    def _release(self, digest: bytes) -> None:
        row = self.tables.get(CHUNK, digest)
        if row is None or refcount(row) == 0:
            raise IntegrityError(
                f"the reference count of {digest.hex()} would fall below zero", hint="casstore index rebuild"
            )
        count = refcount(row) - 1
        if count == 0:
            self.tables.put(ZERO, digest, b"")
        self.tables.put(CHUNK, digest, with_refcount(row, count))

    def _drop(self, record: Drop) -> None:
        lost: dict[bytes, tuple[int, int]] = {}
        for digest in record.digests:
            row = self.tables.get(CHUNK, digest)
            if row is None or refcount(row):
                raise _Void(f"{digest.hex()} is {'held' if row else 'not stored'}")
            children = self.tables.get(NODE, digest)
            if children is not None:
                for at in range(0, len(children), len(digest)):
                    self._release(children[at : at + len(digest)])
                self.tables.delete(NODE, digest)
            self.tables.delete(CHUNK, digest)
            self.tables.delete(ZERO, digest)
            count, raw = lost.get(pack_of_row(row), (0, 0))
            lost[pack_of_row(row)] = (count + 1, raw + length_of_row(row))
        for name, (count, raw) in lost.items():
            pack = self._pack(name)
            self._put_pack(name, replace(pack, placed=pack.placed - count, placed_raw=pack.placed_raw - raw))

    def _retire(self, record: Retire) -> None:
        pack = self._pack(record.pack)
        if pack.state is not PackState.LIVE:
            raise _Void(f"pack {record.pack.hex()} is not live")
        moved = 0
        gained: dict[bytes, tuple[int, int]] = {}
        for digest in dict.fromkeys(record.moved):
            row = self.tables.get(CHUNK, digest)
            target = self.added.get(digest)
            if row is None or pack_of_row(row) != record.pack or target is None:
                raise _Void(f"{digest.hex()} is not in pack {record.pack.hex()} or was not copied")
            self.tables.put(CHUNK, digest, moved_row(row, target))
            count, raw = gained.get(pack_of_row(target), (0, 0))
            gained[pack_of_row(target)] = (count + 1, raw + length_of_row(row))
            moved += 1
        if moved != pack.placed:
            raise _Void(f"pack {record.pack.hex()} holds {pack.placed} digests, not {moved}")
        moved_bytes = 0
        for name, (count, raw) in gained.items():
            target_pack = self._pack(name)
            grown = replace(target_pack, placed=target_pack.placed + count, placed_raw=target_pack.placed_raw + raw)
            # Shares of the new pack's size by what is placed in it, so that those of all its sources add up to it.
            moved_bytes += _share(grown) - _share(target_pack)
            self._put_pack(name, grown)
        self._put_pack(
            record.pack,
            replace(
                pack,
                state=PackState.RETIRED,
                placed=0,
                placed_raw=0,
                since=self.segment.claimed,
                seq=self.segment.seq,
                moved=moved_bytes,
            ),
        )

    def _condemn(self, record: Condemn) -> None:
        if self.tables.get(PACK, record.pack) is not None:
            raise _Void(f"pack {record.pack.hex()} is known already")
        self._put_pack(
            record.pack,
            PackRow(PackState.CONDEMNED, ChunkKind.DATA, 0, 0, 0, 0, self.segment.claimed, self.segment.seq),
        )

    def _pack(self, name: bytes) -> PackRow:
        row = self.tables.get(PACK, name)
        if row is None:
            raise _Void(f"pack {name.hex()} is not known")
        return decode_row(row, PackRow)

    def _put_pack(self, name: bytes, row: PackRow) -> None:
        self.tables.put(PACK, name, encode_row(row))

    # --- versions

    def _put_version(self, record: PutVersion) -> int:
        collection = self._collection_for(record)
        self._hold_root(record.root)
        number = collection.next_number
        self.tables.put(COLLECTION, record.collection.encode(), encode_row(replace(collection, next_number=number + 1)))
        self._put(
            VersionRow(
                collection=collection.id,
                number=number,
                state=VersionState.COMMITTED,
                type=record.type,
                root=record.root,
                size=record.size,
                file_count=record.file_count,
                description=record.description,
                metadata=record.metadata,
                tags=record.tags,
                base=record.base,
                ttl=record.ttl,
                created=self.segment.claimed,
                updated=self.segment.claimed,
                seq=self.segment.seq,
                actor=record.actor,
            )
        )
        self.tables.put(ROOT, u64(collection.id) + record.root + u64(number), b"")
        aliases = [alias for alias in record.aliases if alias != LATEST]
        if record.move_latest:
            aliases.append(LATEST)
        for alias in aliases:
            self._point(collection.id, alias, number, record.actor)
        return number

    def _collection_for(self, record: PutVersion) -> CollectionRow:
        row = self.tables.get(COLLECTION, record.collection.encode())
        if row is not None:
            collection = decode_row(row, CollectionRow)
            if collection.type != record.type:
                raise _Void(f"collection {record.collection} has type {collection.type}")
            return collection
        head = head_of(self.tables)
        collection = CollectionRow(head.collections + 1, record.collection, record.type, 0, self.segment.claimed)
        self.tables.put(META, _HEAD_KEY, encode_row(replace(head, collections=collection.id)))
        self.tables.put(COLLECTION_NAME, u64(collection.id), record.collection.encode())
        return collection

    def _collection(self, name: str) -> CollectionRow:
        row = self.tables.get(COLLECTION, name.encode())
        if row is None:
            raise _Void(f"there is no collection {name}")
        return decode_row(row, CollectionRow)

    def _version(self, collection: str, number: int) -> VersionRow:
        identifier = self._collection(collection).id
        row = self.tables.get(VERSION, version_key(identifier, number))
        if row is None:
            raise _Void(f"there is no version {collection}:v{number}")
        return decode_row(row, VersionRow)

    def _put(self, version: VersionRow) -> None:
        self.tables.put(VERSION, version_key(version.collection, version.number), encode_row(version))

    def _live(self, collection: str, number: int) -> VersionRow:
        version = self._version(collection, number)
        if version.state is not VersionState.COMMITTED:
            raise _Void(f"{collection}:v{number} is {version.state}")
        return version

    def _update_version(self, record: UpdateVersion) -> None:
        version = self._live(record.collection, record.number)
        self._put(
            replace(
                version,
                description=version.description if record.description is None else record.description,
                metadata=version.metadata if record.metadata is None else record.metadata,
                tags=version.tags if record.tags is None else record.tags,
                updated=self.segment.claimed,
            )
        )

    def _trash(self, record: Trash) -> None:
        version = self._live(record.collection, record.number)
        held = tuple(a for a in aliases_of(self.tables, version.collection, version.number) if a != LATEST)
        if set(held) - set(record.aliases):
            raise _Void(f"{record.collection}:v{record.number} has aliases {', '.join(held)}")
        self._put(
            replace(
                version,
                state=VersionState.TRASHED,
                trash_seq=self.segment.seq,
                trashed=self.segment.claimed,
                purge_at=record.purge_at,
                trash_aliases=held,
                trash_reason=record.reason,
                trash_actor=record.actor,
                trashed_by=record.trashed_by,
            )
        )
        self.tables.put(TRASHED, version_key(version.collection, version.number), b"")
        for alias in held:
            self._point(version.collection, alias, -1, record.actor)
        if alias_target(self.tables, version.collection, LATEST) == version.number:
            self._point(version.collection, LATEST, highest_live(self.tables, version.collection), record.actor)

    def _restore(self, record: Restore) -> None:
        version = self._version(record.collection, record.number)
        if version.state is not VersionState.TRASHED or version.trash_seq != record.trash_seq:
            raise _Void(f"{record.collection}:v{record.number} is not in the trash")
        self._put(
            replace(
                version,
                state=VersionState.COMMITTED,
                trash_seq=0,
                trashed=0,
                purge_at=0,
                trash_aliases=(),
                trash_reason="",
                trash_actor="",
                trashed_by="",
                ttl=0 if version.trashed_by == "ttl" else version.ttl,
            )
        )
        self.tables.delete(TRASHED, version_key(version.collection, version.number))
        for alias in version.trash_aliases:
            if alias_target(self.tables, version.collection, alias) is None:
                self._point(version.collection, alias, version.number, record.actor)
        latest = alias_target(self.tables, version.collection, LATEST)
        if latest is None or latest < version.number:
            self._point(version.collection, LATEST, version.number, record.actor)

    def _purge(self, record: Purge) -> None:
        version = self._version(record.collection, record.number)
        if version.state is not VersionState.TRASHED or version.trash_seq != record.trash_seq:
            raise _Void(f"{record.collection}:v{record.number} is not in the trash")
        if not record.force and head_of(self.tables).safe < version.purge_at:
            raise _Void(f"{record.collection}:v{record.number} may not be purged yet")
        self._put(replace(version, state=VersionState.PURGED, updated=self.segment.claimed))
        self.tables.delete(TRASHED, version_key(version.collection, version.number))
        self.tables.delete(ROOT, u64(version.collection) + version.root + u64(version.number))
        self._release(version.root)

    # --- names

    def _set_alias(self, record: SetAlias) -> None:
        version = self._live(record.collection, record.number)
        current = alias_target(self.tables, version.collection, record.alias)
        if record.expect not in {ANY, -1 if current is None else current}:
            raise _Void(f"alias {record.alias} is not on v{record.expect}")
        self._point(version.collection, record.alias, version.number, record.actor)

    def _drop_alias(self, record: DropAlias) -> None:
        collection = self._collection(record.collection)
        if alias_target(self.tables, collection.id, record.alias) != record.number:
            raise _Void(f"alias {record.alias} is not on v{record.number}")
        self._point(collection.id, record.alias, -1, record.actor)

    def _point(self, collection: int, alias: str, number: int, actor: str) -> None:
        before = alias_target(self.tables, collection, alias)
        if (-1 if before is None else before) == number:
            return
        key = u64(collection) + alias.encode()
        if number < 0:
            self.tables.delete(ALIAS, key)
        else:
            self.tables.put(ALIAS, key, u64(number))
        change = AliasChange(
            alias, -1 if before is None else before, number, self.segment.seq, self.segment.claimed, actor
        )
        position = u64(self.segment.seq) + u64(self.tables.count(ALIAS_LOG))
        self.tables.put(ALIAS_LOG, u64(collection) + position, encode_row(change))

    # --- pins and policy

    def _pin(self, record: Pin) -> None:
        if self.tables.get(PIN, record.pin) is not None:
            raise _Void("the pin is held already")
        for root in record.roots:
            self._hold(root)
        row = PinRow(record.holder, record.purpose, record.roots, record.expires, self.segment.seq)
        self.tables.put(PIN, record.pin, encode_row(row))

    def _unpin(self, record: Unpin) -> None:
        row = self.tables.get(PIN, record.pin)
        if row is None:
            raise _Void("the pin is not held")
        for root in decode_row(row, PinRow).roots:
            self._release(root)
        self.tables.delete(PIN, record.pin)

    def _set_policy(self, record: SetPolicy) -> None:
        for key, value in json.loads(record.values).items():
            self.tables.put(POLICY, key.encode(), json.dumps(value).encode())


def _share(pack: PackRow) -> int:
    """Stored bytes of a pack that fall to what is placed in it."""
    return pack.size * pack.placed_raw // pack.raw if pack.raw else 0


def version_key(collection: int, number: int) -> bytes:
    """Key of a version: collections apart, numbers in order."""
    return u64(collection) + u64(number)


def alias_target(tables: Tables, collection: int, alias: str) -> int | None:
    """The number an alias is on, or None."""
    row = tables.get(ALIAS, u64(collection) + alias.encode())
    return None if row is None else int.from_bytes(row, "big")


def aliases_of(tables: Tables, collection: int, number: int) -> tuple[str, ...]:
    """Aliases on a version, ``latest`` included, in byte order."""
    wanted = u64(number)
    return tuple(key[8:].decode() for key, value in tables.scan(ALIAS, prefix=u64(collection)) if value == wanted)


def highest_live(tables: Tables, collection: int) -> int:
    """The highest committed version of a collection, or -1."""
    for _, row in tables.scan(VERSION, prefix=u64(collection), reverse=True):
        version = decode_row(row, VersionRow)
        if version.state is VersionState.COMMITTED:
            return version.number
    return -1


def state_hash(tables: Tables) -> bytes:
    """A digest of the whole state: equal on any two replicas at the same position."""
    total = 0
    for table in TABLES:
        for key, value in tables.scan(table):
            item = b"".join((table.encode(), b"\0", len(key).to_bytes(2, "big"), key, value))
            total += int.from_bytes(seal(item), "big")
    return (total % (1 << 256)).to_bytes(32, "big")
