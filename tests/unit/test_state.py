"""The pure rules, record by record: what each needs, what it does, and that a void transaction leaves no trace.

Guards I1 (closure), I2 (count) and I3 (placement) of docs/GC.md on `apply` alone, without a store: whatever records
arrive in whatever order, on both storages of the view.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.errors import IntegrityError
from casstore.format.rows import decode_row, length_of_row, pack_of_row, refcount, u64
from casstore.index import LmdbIndex, MemoryIndex
from casstore.model import (
    AddNode,
    AddPack,
    Applied,
    Checkpoint,
    ChunkKind,
    CollectionRow,
    Condemn,
    Drop,
    DropAlias,
    Erase,
    FrameInfo,
    GCRun,
    LostRow,
    PackContent,
    PackRow,
    PackState,
    Pin,
    PinRow,
    Protect,
    Purge,
    PurgeCollection,
    PutVersion,
    Quarantine,
    Record,
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
    Unpin,
    Unpurge,
    UpdateVersion,
    VersionRow,
    VersionState,
)
from casstore.overlay import Overlay, Tables
from casstore.state import (
    ALIAS,
    ALIAS_LOG,
    CHUNK,
    CLOCK_CAP,
    COLLECTION,
    LOST,
    NO_PACK,
    NODE,
    PACK,
    PIN,
    POLICY,
    ROOT,
    TABLES,
    TRASHED,
    VERSION,
    VERSION_ALIAS,
    ZERO,
    Head,
    apply,
    head_of,
    highest_live,
    state_hash,
    version_key,
)

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR
START = 1_000 * DAY
ME, YOU = "me", "you"
C = "default/default/c"
Storage = MemoryIndex | LmdbIndex


def digest(name: str) -> bytes:
    return name.encode().ljust(32, b"\0")


def pack_name(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def length(name: str) -> int:
    return 10 + sum(name.encode()) % 7


def pack(name: str, *digests: str, kind: ChunkKind = ChunkKind.DATA, frames: Sequence[int] = ()) -> AddPack:
    """A pack of chunks of some bytes; ``frames``: how many go into each frame."""
    lengths = tuple(map(length, digests))
    infos = []
    at = 0
    for count in frames or (len(digests),):
        raw = sum(lengths[at : at + count])
        infos.append(FrameInfo(raw // 2 + 1, raw, count))
        at += count
    size = 8 + sum(info.stored for info in infos) + 40
    return AddPack(pack_name(name), size, PackContent(kind, tuple(infos), tuple(map(digest, digests)), lengths))


def nodes(name: str, *digests: str) -> AddPack:
    return pack(name, *digests, kind=ChunkKind.NODE)


def node(name: str, *children: str) -> AddNode:
    return AddNode(digest(name), tuple(map(digest, children)))


def put(
    root: str, *, collection: str = C, aliases: tuple[str, ...] = (), kind: str = "file", latest: bool = True
) -> PutVersion:
    return PutVersion(collection, kind, digest(root), 1, 1, "", b"{}", (), aliases, latest, "", -1, "me")


def trash(number: int, *aliases: str, purge_at: int = START, collection: str = C) -> Trash:
    return Trash(collection, number, purge_at, aliases, "", "me")


@dataclass
class Replica:
    """A state that segments are folded into, one after the other."""

    index: Storage = field(default_factory=lambda: MemoryIndex(TABLES))
    seq: int = 0
    chain: bytes = bytes(32)
    now: int = START
    count: int = 0

    def segment(self, transactions: Sequence[Transaction], writer: str = ME) -> tuple[Segment, bytes]:
        segment = Segment(self.seq + 1, self.chain, self.seq, self.seq, writer, self.now, tuple(transactions))
        return segment, digest(f"chain {self.seq + 1}")

    def fold(self, transactions: Sequence[Transaction], writer: str = ME) -> tuple[Applied, ...]:
        segment, chain = self.segment(transactions, writer)
        applied = self.index.update(lambda tables: apply(tables, segment, chain))
        self.seq, self.chain = segment.seq, chain
        return applied

    def transaction(self, *records: Record) -> Transaction:
        self.count += 1
        return Transaction(self.count.to_bytes(16, "big"), records)

    def commit(self, *records: Record, writer: str = ME) -> Applied:
        (applied,) = self.fold([self.transaction(*records)], writer)
        return applied

    def must(self, *records: Record, writer: str = ME) -> Applied:
        applied = self.commit(*records, writer=writer)
        assert applied.void == ""
        return applied

    def hash(self) -> bytes:
        with self.index.read() as tables:
            return state_hash(tables)

    def head(self) -> Head:
        with self.index.read() as tables:
            return head_of(tables)

    def count_of(self, name: str) -> int | None:
        with self.index.read() as tables:
            row = tables.get(CHUNK, digest(name))
            return None if row is None else refcount(row)

    def zero(self) -> set[bytes]:
        with self.index.read() as tables:
            return {key for key, _ in tables.scan(ZERO)}

    def home(self, name: str) -> bytes | None:
        with self.index.read() as tables:
            row = tables.get(CHUNK, digest(name))
            return None if row is None else pack_of_row(row)

    def pack(self, name: str) -> PackRow | None:
        with self.index.read() as tables:
            row = tables.get(PACK, pack_name(name))
            return None if row is None else decode_row(row, PackRow)

    def version(self, number: int) -> VersionRow:
        with self.index.read() as tables:
            row = tables.get(VERSION, version_key(1, number))
        assert row is not None
        return decode_row(row, VersionRow)

    def aliases(self) -> dict[str, int]:
        with self.index.read() as tables:
            return {k[8:].decode(): int.from_bytes(v, "big") for k, v in tables.scan(ALIAS, prefix=u64(1))}


def check_invariants(tables: Tables) -> None:
    """I1, I2 and I3, counted from the tables by other means than the rules themselves."""
    chunks = dict(tables.scan(CHUNK))
    holders: Counter[bytes] = Counter()
    for key, row in tables.scan(NODE):
        children = [row[at : at + 32] for at in range(0, len(row), 32)]
        assert key in chunks, "an indexed node is stored"
        assert len(set(children)) == len(children)
        assert set(children) <= set(chunks), "I1: children of an indexed node are indexed"
        holders.update(children)
    roots = set()
    for _, row in tables.scan(VERSION):
        version = decode_row(row, VersionRow)
        if version.state is not VersionState.PURGED:
            holders[version.root] += 1
            assert tables.get(NODE, version.root) is not None
            roots.add(u64(version.collection) + version.root + u64(version.number))
    for _, row in tables.scan(PIN):
        holders.update(decode_row(row, PinRow).roots)
    assert {d: refcount(row) for d, row in chunks.items()} == {d: holders[d] for d in chunks}, "I2"
    assert {d for d, _ in tables.scan(ZERO)} == {d for d in chunks if not holders[d]}
    placed: Counter[bytes] = Counter(pack_of_row(row) for row in chunks.values())
    raw: Counter[bytes] = Counter()
    for row in chunks.values():
        raw[pack_of_row(row)] += length_of_row(row)
    for key, row in tables.scan(PACK):
        found = decode_row(row, PackRow)
        assert (found.placed, found.placed_raw) == (placed.pop(key, 0), raw[key])
        assert found.state is PackState.LIVE or not found.placed, "I3: what is placed is in a live pack"
    lost = {key: decode_row(row, LostRow) for key, row in tables.scan(LOST)}
    assert set(lost) <= set(chunks)
    erased = {d for d, row in chunks.items() if pack_of_row(row) == NO_PACK}
    assert {d for d, row in lost.items() if row.erased} == erased, "only what was erased is in no pack"
    assert placed.pop(NO_PACK, 0) == len(erased)
    assert not placed, "I3: every place is in a known pack"
    packs = [decode_row(row, PackRow) for _, row in tables.scan(PACK)]
    assert head_of(tables).stored == sum(found.size for found in packs if found.state is PackState.LIVE)
    assert {key for key, _ in tables.scan(ROOT)} == roots
    hidden = {key for key, row in tables.scan(VERSION) if decode_row(row, VersionRow).state is VersionState.TRASHED}
    assert {key for key, _ in tables.scan(TRASHED)} == hidden
    named = {decode_row(row, CollectionRow).id: decode_row(row, CollectionRow) for _, row in tables.scan(COLLECTION)}
    for _, row in tables.scan(VERSION):
        version = decode_row(row, VersionRow)
        collection = named[version.collection]
        assert version.number < collection.next_number
        if version.state is VersionState.COMMITTED:
            assert (collection.state, collection.type) == (VersionState.COMMITTED, version.type)
        assert version.state is VersionState.PURGED or collection.state is not VersionState.PURGED
    inverse = {key[:8] + key[16:]: key[8:16] for key, _ in tables.scan(VERSION_ALIAS)}
    assert dict(tables.scan(ALIAS)) == inverse
    for key, row in tables.scan(ALIAS):
        target = tables.get(VERSION, key[:8] + row)
        assert target is not None
        assert decode_row(target, VersionRow).state is VersionState.COMMITTED


@pytest.fixture
def fresh() -> Replica:
    return Replica()


@pytest.fixture
def one() -> Replica:
    """Node N over a and b, in version v0; chunk loose; pin P on N; alias ``best``."""
    replica = Replica()
    replica.must(
        pack("D", "a", "b", "loose"),
        nodes("T", "N"),
        node("N", "a", "b"),
        put("N", aliases=("best",)),
        Pin(b"P" * 16, "me", "test", (digest("N"),), START + DAY),
    )
    return replica


# ---------------------------------------------------------------- the log is followed, never guessed


def test_a_segment_must_follow(one: Replica) -> None:
    before = one.hash()
    good, chain = one.segment([one.transaction(put("N"))])
    for wrong in (replace(good, seq=1), replace(good, seq=good.seq + 1), replace(good, previous=bytes(31) + b"x")):
        with pytest.raises(IntegrityError):
            one.index.update(lambda tables, wrong=wrong: apply(tables, wrong, chain))  # type: ignore[misc]
        assert one.hash() == before
    one.index.update(lambda tables: apply(tables, good, chain))
    assert one.version(1).root == digest("N")


def test_a_transaction_counts_once(one: Replica) -> None:
    """An ambiguous put that was sent twice: the second one is told the first one's answer and does nothing."""
    transaction = one.transaction(put("N"), Unpin(b"P" * 16))
    (first,) = one.fold([transaction])
    with one.index.read() as tables:
        counted = [(t, list(tables.scan(t))) for t in TABLES if t != "meta"]
    again, third = one.fold([transaction, transaction])
    assert again == third == Applied(transaction.txid, first.seq, numbers=(1,), duplicate=True)
    with one.index.read() as tables:
        assert [(t, list(tables.scan(t))) for t in TABLES if t != "meta"] == counted


def test_the_same_id_may_be_used_after_a_void(one: Replica) -> None:
    """Nothing of a void transaction stays, its id neither."""
    transaction = Transaction(b"t" * 16, (Trash(C, 1, 0, (), "", ""),))
    assert one.fold([transaction])[0].void
    one.must(put("N"))
    assert not one.fold([transaction])[0].void


# ---------------------------------------------------------------- each rule, broken

VOID: dict[str, tuple[Record, ...]] = {
    "pack known": (pack("D", "x"),),
    "pack twice": (pack("E", "x"), pack("E", "y")),
    "pack condemned here": (Condemn(pack_name("E")), pack("E", "x")),
    "node not stored": (node("M", "a"),),
    "child not stored": (nodes("E", "M"), node("M", "nowhere")),
    "child comes later": (nodes("E", "M"), node("M", "x"), pack("F", "x")),
    "child node not indexed": (nodes("E", "M", "K"), node("M", "K")),
    "child node indexed later": (nodes("E", "M", "K"), node("M", "K"), node("K", "a")),
    "drop held": (Drop((digest("a"),)),),
    "drop root": (Drop((digest("N"),)),),
    "drop unknown": (Drop((digest("nowhere"),)),),
    "drop twice": (Drop((digest("loose"), digest("loose"))),),
    "retire unknown": (Retire(pack_name("E"), ()),),
    "retire with content": (Retire(pack_name("D"), ()),),
    "retire too little moved": (pack("E", "a", "b"), Retire(pack_name("D"), (digest("a"), digest("b")))),
    "retire not copied": (
        pack("E", "a", "b"),
        Retire(pack_name("D"), (digest("a"), digest("b"), digest("loose"))),
    ),
    "retire counts one twice": (
        pack("E", "a", "b", "loose"),
        Retire(pack_name("D"), (digest("a"), digest("b"), digest("b"))),
    ),
    "retire of another pack": (pack("E", "N"), Retire(pack_name("D"), (digest("N"),))),
    "retire moved unknown": (pack("E", "x"), Retire(pack_name("D"), (digest("nowhere"),))),
    "retire twice": (Drop((digest("loose"),)), pack("E", "a", "b"))
    + (Retire(pack_name("D"), (digest("a"), digest("b"))),) * 2,
    "condemn live": (Condemn(pack_name("D")),),
    "condemn twice": (Condemn(pack_name("E")), Condemn(pack_name("E"))),
    "root not stored": (put("nowhere"),),
    "root is data": (put("a"),),
    "root not indexed": (nodes("E", "M"), put("M")),
    "other type": (put("N", kind="model"),),
    "update unknown": (UpdateVersion(C, 7, "x", None, None),),
    "update in no collection": (UpdateVersion("default/default/x", 0, "x", None, None),),
    "update trashed": (trash(0, "best"), UpdateVersion(C, 0, "x", None, None)),
    "trash unknown": (trash(7),),
    "trash in no collection": (trash(0, collection="x/y/z"),),
    "trash with an alias unseen": (trash(0),),
    "trash twice": (trash(0, "best"), trash(0, "best")),
    "trash purged": (trash(0, "best"), Purge(C, 0, 2, force=True), trash(0)),
    "restore live": (Restore(C, 0, 0),),
    "restore another trashing": (trash(0, "best"), Restore(C, 0, 1)),
    "restore purged": (trash(0, "best"), Purge(C, 0, 2, force=True), Restore(C, 0, 2)),
    "purge live": (Purge(C, 0, 0, force=True),),
    "purge another trashing": (trash(0, "best"), Purge(C, 0, 1, force=True)),
    "purge early": (trash(0, "best", purge_at=START + 1), Purge(C, 0, 2, force=False)),
    "purge twice": (trash(0, "best"), *(Purge(C, 0, 2, force=True),) * 2),
    "alias to unknown": (SetAlias(C, "prod", 7),),
    "alias in no collection": (SetAlias("x/y/z", "prod", 0),),
    "alias to trashed": (trash(0, "best"), SetAlias(C, "prod", 0)),
    "alias expected absent": (SetAlias(C, "best", 0, expect=-1),),
    "alias expected elsewhere": (SetAlias(C, "best", 0, expect=3),),
    "alias expected somewhere": (SetAlias(C, "prod", 0, expect=0),),
    "drop alias absent": (DropAlias(C, "prod", 0),),
    "drop alias elsewhere": (DropAlias(C, "best", 1),),
    "drop alias in no collection": (DropAlias("x/y/z", "best", 0),),
    "pin held": (Pin(b"P" * 16, "", "", (digest("N"),), 0),),
    "pin on nothing": (Pin(b"Q" * 16, "", "", (digest("N"), digest("nowhere")), 0),),
    "pin on a node not indexed": (nodes("E", "M"), Pin(b"Q" * 16, "", "", (digest("M"),), 0)),
    "unpin not held": (Unpin(b"Q" * 16),),
    "unpin twice": (Unpin(b"P" * 16), Unpin(b"P" * 16)),
    "renew not held": (RenewPin(b"Q" * 16, 1),),
    "unpurge live": (Unpurge(C, 0, START),),
    "unpurge trashed": (trash(0, "best"), Unpurge(C, 0, START)),
    "unpurge what is not indexed any more": (
        *(Unpin(b"P" * 16), trash(0, "best"), Purge(C, 0, 2, force=True)),
        *(Drop((digest("N"),)), Unpurge(C, 0, START)),
    ),
    "ttl unknown": (SetTtl(C, 7, 1),),
    "ttl trashed": (trash(0, "best"), SetTtl(C, 0, 1)),
    "protect unknown": (Protect(C, 7, "x"),),
    "protect by a number that is none": (Protect(C, -2, "x"),),
    "protect in no collection": (Protect("x/y/z", -1, "x"),),
    "protect trashed": (trash(0, "best"), Protect(C, 0, "x")),
    "protect trashed collection": (TrashCollection(C, START, ""), Protect(C, -1, "x")),
    "protect version of a trashed collection": (TrashCollection(C, START, ""), Protect(C, 0, "x")),
    "trash protected": (Protect(C, 0, "x"), trash(0, "best")),
    "trash in a protected collection": (Protect(C, -1, "x"), trash(0, "best")),
    "trash collection unknown": (TrashCollection("x/y/z", START, ""),),
    "trash collection twice": (TrashCollection(C, START, ""), TrashCollection(C, START, "")),
    "trash protected collection": (Protect(C, -1, "x"), TrashCollection(C, START, "")),
    "trash collection of a protected version": (put("N"), Protect(C, 1, "x"), TrashCollection(C, START, "")),
    "collection ttl unknown": (SetCollectionTtl("x/y/z", 1),),
    "collection ttl trashed": (TrashCollection(C, START, ""), SetCollectionTtl(C, 1)),
    "put into a trashed collection": (TrashCollection(C, START, ""), put("N")),
    "alias in a trashed collection": (TrashCollection(C, START, ""), SetAlias(C, "new", 0)),
    "restore from a trashed collection": (TrashCollection(C, START, ""), Restore(C, 0, 2)),
    "restore under another type": (
        *(TrashCollection(C, START, ""), Purge(C, 0, 2, force=True), PurgeCollection(C, 2, force=True)),
        *(put("N", kind="model"), Unpurge(C, 0, START), Restore(C, 0, 2)),
    ),
    "restore collection live": (RestoreCollection(C, 0),),
    "restore collection unknown": (RestoreCollection("x/y/z", 0),),
    "restore another trashing of a collection": (TrashCollection(C, START, ""), RestoreCollection(C, 1)),
    "restore purged collection": (
        *(TrashCollection(C, START, ""), Purge(C, 0, 2, force=True)),
        *(PurgeCollection(C, 2, force=True), RestoreCollection(C, 2)),
    ),
    "purge collection live": (PurgeCollection(C, 0, force=True),),
    "purge another trashing of a collection": (
        *(trash(0, "best"), Purge(C, 0, 2, force=True)),
        *(TrashCollection(C, START, ""), PurgeCollection(C, 1, force=True)),
    ),
    "purge collection with versions": (TrashCollection(C, START, ""), PurgeCollection(C, 2, force=True)),
    "purge collection early": (
        *(trash(0, "best"), Purge(C, 0, 2, force=True)),
        *(TrashCollection(C, START + 1, ""), PurgeCollection(C, 2, force=False)),
    ),
    "erase unknown": (Erase((digest("nowhere"),), "why"),),
    "erase node": (Erase((digest("N"),), "why"),),
    "erase twice": (Erase((digest("a"),), "why"), Erase((digest("a"),), "why")),
    "erase some unknown": (Erase((digest("a"), digest("nowhere")), "why"),),
    "retire with erased content": (
        *(Erase((digest("a"),), "why"), Drop((digest("loose"),)), pack("E", "a", "b")),
        Retire(pack_name("D"), (digest("a"), digest("b"))),
    ),
    "quarantine unknown": (Quarantine(digest("nowhere"), pack_name("D")),),
    "quarantine in another pack": (Quarantine(digest("a"), pack_name("T")),),
    "quarantine twice": (Quarantine(digest("a"), pack_name("D")),) * 2,
    "quarantine what was erased": (Erase((digest("a"),), "why"), Quarantine(digest("a"), NO_PACK)),
    "checkpoint of what is to come": (Checkpoint(2, "key", bytes(32)),),
    "checkpoint twice": (Checkpoint(1, "key", bytes(32)), Checkpoint(1, "key", bytes(32))),
}

VALID: tuple[Record, ...] = (
    pack("V", "v1", "v2"),
    nodes("W", "Y"),
    node("Y", "a", "v1"),
    put("Y", aliases=("prod2",), collection="default/default/other"),
    Pin(b"V" * 16, "me", "", (digest("Y"), digest("v2")), START),
    SetPolicy(b'{"trash_days": 3}'),
)


@pytest.mark.parametrize("name", VOID)
def test_an_invalid_record_voids_its_transaction(one: Replica, name: str) -> None:
    """Neither what comes before it nor after it in the transaction happens; its neighbours in the segment do."""
    other = Replica()
    other.must(
        pack("D", "a", "b", "loose"),
        nodes("T", "N"),
        node("N", "a", "b"),
        put("N", aliases=("best",)),
        Pin(b"P" * 16, "me", "test", (digest("N"),), START + DAY),
    )
    assert one.hash() == other.hash()
    bad = Transaction(b"b" * 16, VOID[name])
    wrapped = Transaction(b"w" * 16, (*VALID, *VOID[name], SetPolicy(b'{"grace": 1}')))
    good = Transaction(b"g" * 16, VALID)
    applied = one.fold([bad, wrapped, good])
    assert [bool(outcome.void) for outcome in applied] == [True, True, False]
    assert applied[0].numbers == applied[1].numbers == ()
    other.fold([good])
    assert one.hash() == other.hash()
    with one.index.read() as tables:
        check_invariants(tables)


def test_each_record_is_valid_where_it_should_be(one: Replica) -> None:
    """The counterpart: every kind of record takes effect in some transaction, so that no rule voids everything."""
    kinds = {type(record) for records in VOID.values() for record in records} | {SetPolicy, GCRun}
    done = [
        *VALID,
        Drop((digest("loose"),)),
        pack("E", "a", "b"),
        Retire(pack_name("D"), (digest("a"), digest("b"))),
        Condemn(pack_name("F")),
        put("N"),
        UpdateVersion(C, 0, "new", b'{"a":1}', ("t",)),
        trash(0, "best"),
        Restore(C, 0, 2),
        trash(0, "best"),
        Purge(C, 0, 2, force=True),
        SetAlias(C, "best", 1, expect=-1),
        DropAlias(C, "best", 1),
        RenewPin(b"P" * 16, START + 1),
        Unpin(b"P" * 16),
        GCRun(b"r" * 8, "me", 1),
        Unpurge(C, 0, START),
        Restore(C, 0, 2),
        SetTtl(C, 1, 60),
        SetCollectionTtl(C, 60),
        *(Protect(C, number, reason) for reason in ("x", "") for number in (1, -1)),
        TrashCollection(C, START, ""),
        RestoreCollection(C, 2),
        TrashCollection(C, START, ""),
        Purge(C, 0, 2, force=True),
        Purge(C, 1, 2, force=False),
        PurgeCollection(C, 2, force=False),
        Quarantine(digest("a"), pack_name("E")),
        Erase((digest("a"), digest("b")), "why"),
        Checkpoint(1, "key", bytes(32)),
    ]
    assert {type(record) for record in done} == kinds
    one.must(*done)
    with one.index.read() as tables:
        check_invariants(tables)


# ---------------------------------------------------------------- protection, collections, erasure


def collection_row(replica: Replica) -> CollectionRow:
    with replica.index.read() as tables:
        row = tables.get(COLLECTION, C.encode())
    assert row is not None
    return decode_row(row, CollectionRow)


def test_a_protection_holds_until_it_is_lifted(one: Replica) -> None:
    one.must(put("N"), Protect(C, 0, "why"))
    assert one.version(0).protected == "why"
    assert one.commit(trash(0, "best")).void
    one.must(trash(1))
    assert one.commit(TrashCollection(C, START, "")).void
    one.must(Protect(C, 0, ""), trash(0, "best"))


def test_protection_does_not_keep_what_is_in_the_trash(one: Replica) -> None:
    one.must(put("N"))
    one.must(trash(0, "best"))
    one.must(Protect(C, -1, "why"))
    one.must(Purge(C, 0, 3, force=True))
    with one.index.read() as tables:
        check_invariants(tables)


def test_a_collection_goes_and_comes_back_as_a_unit(one: Replica) -> None:
    """What was trashed before it, even in the same segment, stays in the trash when it comes back."""
    one.must(put("N", aliases=("prod",)), put("N"))
    one.must(trash(0, "best"), TrashCollection(C, START + DAY, "why", "me"))
    assert one.aliases() == {}
    assert [one.version(n).state for n in range(3)] == [VersionState.TRASHED] * 3
    assert [one.version(n).trashed_by for n in range(3)] == ["user", "collection", "collection"]
    assert (collection_row(one).state, collection_row(one).trash_reason) == (VersionState.TRASHED, "why")
    one.must(RestoreCollection(C, 3))
    assert one.aliases() == {"prod": 1, "latest": 2}
    assert [one.version(n).state is VersionState.COMMITTED for n in range(3)] == [False, True, True]
    assert collection_row(one) == replace(collection_row(one), state=VersionState.COMMITTED, trash_seq=0, trashed=0)
    one.must(Restore(C, 0, 3))
    assert one.aliases() == {"best": 0, "prod": 1, "latest": 2}
    with one.index.read() as tables:
        check_invariants(tables)


def test_restore_collection_aba(one: Replica) -> None:
    """A restore names the trashing it undoes: not a later one."""
    one.must(TrashCollection(C, START, ""))
    one.must(RestoreCollection(C, 2))
    one.must(TrashCollection(C, START, ""))
    assert one.commit(RestoreCollection(C, 2)).void
    one.must(RestoreCollection(C, 4))


def test_a_purged_name_is_free_and_its_numbers_are_not(one: Replica) -> None:
    one.must(put("N"), SetCollectionTtl(C, 60))
    one.must(TrashCollection(C, START, ""))
    one.must(Purge(C, 0, 3, force=True), Purge(C, 1, 3, force=True), PurgeCollection(C, 3, force=True))
    assert collection_row(one).state is VersionState.PURGED
    assert one.must(put("N", kind="model")).numbers == (2,)
    again = collection_row(one)
    assert (again.id, again.type, again.next_number) == (1, "model", 3)
    assert (again.state, again.ttl, again.protected, again.trash_reason) == (VersionState.COMMITTED, -1, "", "")
    assert one.aliases() == {"latest": 2}
    assert one.commit(put("N")).void
    with one.index.read() as tables:
        check_invariants(tables)


def test_unpurge_brings_the_collection_into_the_trash_again(one: Replica) -> None:
    one.must(TrashCollection(C, START, ""))
    one.must(Purge(C, 0, 2, force=True), PurgeCollection(C, 2, force=True))
    one.must(Unpurge(C, 0, START + DAY))
    assert (one.version(0).state, collection_row(one).state) == (VersionState.TRASHED, VersionState.TRASHED)
    assert one.commit(put("N", kind="model")).void
    one.must(RestoreCollection(C, 4))
    assert one.version(0).state is VersionState.COMMITTED
    with one.index.read() as tables:
        check_invariants(tables)


def test_a_version_of_an_earlier_life_of_a_name_does_not_come_back_with_it(one: Replica) -> None:
    """Unpurged in the segment that trashes the collection, whose type is another by now; in either order."""
    one.must(Unpin(b"P" * 16), TrashCollection(C, START, "", "me"))
    one.must(Purge(C, 0, one.seq, force=True, actor="me"), PurgeCollection(C, one.seq, force=True, actor="me"))
    one.must(put("N", kind="model"))
    both: list[Record] = [Unpurge(C, 0, START, "me"), TrashCollection(C, START, "", "me")]
    for order in (both, both[::-1]):
        assert [applied.void for applied in one.fold([one.transaction(record) for record in order])] == ["", ""]
        one.must(RestoreCollection(C, one.seq, "me"))
        assert [one.version(number).state for number in (0, 1)] == [VersionState.TRASHED, VersionState.COMMITTED]
        with one.index.read() as tables:
            check_invariants(tables)
        one.must(Purge(C, 0, one.version(0).trash_seq, force=True, actor="me"))


def test_a_collection_is_purged_at_its_date_never_before(one: Replica) -> None:
    one.must(trash(0, "best", purge_at=START), TrashCollection(C, START + 2 * HOUR, ""))
    one.now += HOUR
    one.must(Purge(C, 0, 2, force=False))
    assert one.commit(PurgeCollection(C, 2, force=False)).void
    one.now += HOUR
    one.must(PurgeCollection(C, 2, force=False))


def test_erased_content_is_in_no_pack_and_still_held(one: Replica) -> None:
    """I1 and I2 stay; the pack can end without it; storing it again heals it, dropping it forgets it."""
    before = one.pack("D")
    one.must(Erase((digest("a"),), "request 17", "me"))
    after = one.pack("D")
    assert before is not None
    assert after is not None
    assert (after.placed, after.placed_raw) == (before.placed - 1, before.placed_raw - length("a"))
    assert (one.home("a"), one.count_of("a")) == (NO_PACK, 1)
    with one.index.read() as tables:
        row = tables.get(LOST, digest("a"))
        assert row is not None
        assert decode_row(row, LostRow) == LostRow(True, pack_name("D"), "request 17", "me", START, 2)
        check_invariants(tables)
    one.must(Drop((digest("loose"),)), pack("E", "b"), Retire(pack_name("D"), (digest("b"),)))
    one.must(pack("F", "a"))
    assert (one.home("a"), one.count_of("a")) == (pack_name("F"), 1)
    with one.index.read() as tables:
        assert tables.count(LOST) == 0
        check_invariants(tables)
    one.must(Erase((digest("a"), digest("a")), "again"))
    one.must(Unpin(b"P" * 16), trash(0, "best"), Purge(C, 0, 5 + 1, force=True))
    one.must(Drop((digest("N"), digest("a"))))
    with one.index.read() as tables:
        assert tables.count(LOST) == 0
        check_invariants(tables)


# ---------------------------------------------------------------- bytes


def test_refcount_has_set_semantics(fresh: Replica) -> None:
    """A node with a repeated child holds it once (all-zero files), and releases it once."""
    fresh.must(pack("D", "z", "a"), nodes("T", "N"), node("N", "z", "z", "a", "z"), put("N"))
    assert (fresh.count_of("z"), fresh.count_of("a"), fresh.count_of("N")) == (1, 1, 1)
    fresh.must(trash(0), Purge(C, 0, 2, force=True), Drop((digest("N"),)))
    assert (fresh.count_of("z"), fresh.count_of("a"), fresh.count_of("N")) == (0, 0, None)
    with fresh.index.read() as tables:
        check_invariants(tables)


def test_a_node_counts_its_children_once(fresh: Replica) -> None:
    """Two writers upload the same node: the second `AddNode` changes nothing, in one transaction or two."""
    fresh.must(pack("D", "a"), nodes("T", "N"), node("N", "a"), node("N", "a"))
    before = fresh.count_of("a")
    fresh.must(nodes("U", "N"), node("N", "a"))
    assert before == fresh.count_of("a") == 1


def test_a_node_may_be_stored_as_data(one: Replica) -> None:
    """A file that has the very bytes of a node came first: the node is known by its record, not by its pack."""
    one.must(pack("E", "M"), nodes("U", "F"), node("F", "M"), put("F"))
    one.must(nodes("V", "M"), node("M", "a", "b"), put("M"))
    assert one.home("M") == pack_name("E")
    assert (one.count_of("M"), one.count_of("a")) == (2, 2)
    with one.index.read() as tables:
        check_invariants(tables)
    one.must(trash(2), Purge(C, 2, one.seq + 1, force=True))
    assert one.count_of("a") == 2, "the file still holds the node, and the node its children"
    one.must(trash(1), Purge(C, 1, one.seq + 1, force=True), Drop((digest("F"), digest("M"))))
    assert one.count_of("a") == 1
    with one.index.read() as tables:
        check_invariants(tables)


def test_the_name_of_a_void_pack_is_free(one: Replica) -> None:
    assert one.commit(pack("E", "x"), put("nowhere")).void
    assert one.pack("E") is None
    one.must(pack("E", "x"))


def test_duplicate_chunk_two_packs(one: Replica) -> None:
    """borg 9868: a second copy is garbage in its own pack; the first stays the one that counts."""
    one.must(pack("E", "a", "new"))
    assert one.home("a") == pack_name("D")
    assert one.count_of("a") == 1
    found = one.pack("E")
    assert found is not None
    assert (found.placed, found.placed_raw, found.raw) == (1, length("new"), length("new") + length("a"))
    one.must(Drop((digest("new"),)), Retire(pack_name("E"), ()))
    assert one.home("a") == pack_name("D")


def test_same_blob_twice_in_pack(fresh: Replica) -> None:
    """rustic 392: one digest twice in one pack is placed once, and the pack can still be retired."""
    fresh.must(pack("D", "a", "b", "a", frames=(2, 1)))
    found = fresh.pack("D")
    assert found is not None
    both = length("a") + length("b")
    assert (found.placed, found.raw, found.placed_raw) == (2, both + length("a"), both)
    fresh.must(pack("E", "a", "b", "a"), Retire(pack_name("D"), (digest("a"), digest("b"), digest("a"))))
    assert fresh.home("a") == fresh.home("b") == pack_name("E")
    with fresh.index.read() as tables:
        check_invariants(tables)


def test_roots_deleted_before_leaves(fresh: Replica) -> None:
    """duplicacy 686: a drop of a child before its parent is void; parents first, and the cascade goes through."""
    fresh.must(
        pack("D", "a", "b"),
        nodes("T", "N", "M", "R"),
        node("N", "a", "b"),
        node("M", "N"),
        node("R", "M", "N"),
        put("R"),
    )
    fresh.must(trash(0), Purge(C, 0, 2, force=True))
    order = ("R", "M", "N", "a", "b")
    for wrong in (("N", "M", "R"), ("M", "R", "N"), ("R", "N", "M"), ("a", "R", "M", "N"), ("R", "M", "a", "N")):
        assert fresh.commit(Drop(tuple(map(digest, wrong)))).void
    fresh.must(Drop(tuple(map(digest, order))))
    fresh.must(Retire(pack_name("D"), ()), Retire(pack_name("T"), ()))
    with fresh.index.read() as tables:
        assert tables.count(CHUNK) == tables.count(NODE) == tables.count(ZERO) == 0


def test_purge_keeps_what_hangs_below(fresh: Replica) -> None:
    """Deferred decrement: a purged root holds its children until it is dropped, so a revival is one record."""
    fresh.must(pack("D", "a"), nodes("T", "N"), node("N", "a"), put("N"))
    fresh.must(trash(0), Purge(C, 0, 2, force=True))
    assert (fresh.count_of("N"), fresh.count_of("a")) == (0, 1)
    assert fresh.zero() == {digest("N")}
    fresh.must(put("N"))
    assert fresh.zero() == set()
    assert (fresh.count_of("N"), fresh.count_of("a")) == (1, 1)


def test_recheck_before_delete(one: Replica) -> None:
    """nix 15992: what came into use between plan and drop is not dropped, and its pack is not retired."""
    one.must(nodes("U", "M"), node("M", "loose"))
    assert one.commit(
        Drop((digest("loose"),)), pack("E", "a", "b"), Retire(pack_name("D"), (digest("a"), digest("b")))
    ).void
    assert one.home("loose") == pack_name("D")


def test_reachability_vs_new_commit(one: Replica) -> None:
    """ostree 2808: a commit that refers to what was dropped a moment ago is void, whoever wrote it."""
    one.must(Drop((digest("loose"),)))
    assert one.commit(nodes("U", "M"), node("M", "loose"), put("M")).void
    one.must(pack("E", "loose"), nodes("V", "M"), node("M", "loose"), put("M"))


def test_retire_moves_places_and_nothing_else(one: Replica) -> None:
    before = {name: one.count_of(name) for name in ("a", "b", "N")}
    one.must(Drop((digest("loose"),)), pack("E", "b", "x", "a"), Retire(pack_name("D"), (digest("a"), digest("b"))))
    assert one.home("a") == one.home("b") == one.home("x") == pack_name("E")
    assert {name: one.count_of(name) for name in before} == before
    ended, target = one.pack("D"), one.pack("E")
    assert ended is not None
    assert target is not None
    assert (ended.state, ended.placed, ended.placed_raw) == (PackState.RETIRED, 0, 0)
    assert (target.placed, target.placed_raw) == (3, sum(map(length, "abx")))
    with one.index.read() as tables:
        check_invariants(tables)


def test_moved_bytes_add_up(one: Replica) -> None:
    """Packs emptied into one new pack share out its size to the last byte: what a collection reports as freed."""
    one.must(pack("E", "x", "y", "w"), pack("F", "q"), Drop((digest("loose"),)))
    sources = {"D": ("a", "b"), "E": ("x", "y", "w"), "F": ("q",), "T": ("N",)}
    added = pack("G", *(d for names in sources.values() for d in names), frames=(3, 4))
    one.must(added, *(Retire(pack_name(name), tuple(map(digest, ds))) for name, ds in sources.items()))
    rows = [one.pack(name) for name in sources]
    assert sum(row.moved for row in rows if row is not None) == added.size


@pytest.mark.parametrize("end", [PackState.RETIRED, PackState.CONDEMNED])
def test_ends_are_final(one: Replica, end: PackState) -> None:
    """The sleeping writer, the zombie delete: a name that ended never comes back."""
    one.must(pack("E")) if end is PackState.RETIRED else None
    one.must(Retire(pack_name("E"), ()) if end is PackState.RETIRED else Condemn(pack_name("E")))
    for record in (pack("E", "x"), Retire(pack_name("E"), ()), Condemn(pack_name("E"))):
        assert one.commit(record).void
    found = one.pack("E")
    assert found is not None
    assert found.state is end


def test_condemn_before_the_commit_voids_it(fresh: Replica) -> None:
    """test_sleeping_writer_30_days (restic 2715, kopia 1949) at the level of the rules: no clock is involved."""
    fresh.must(Condemn(pack_name("D")))
    assert fresh.commit(pack("D", "a"), nodes("T", "N"), node("N", "a"), put("N")).void
    assert fresh.pack("T") is None
    fresh.must(pack("E", "a"), nodes("T", "N"), node("N", "a"), put("N"))


def test_commit_before_the_condemn_voids_that(fresh: Replica) -> None:
    """test_orphan_sweep_vs_inflight (duplicacy 323, delta-rs 3645) at the level of the rules."""
    fresh.must(pack("D", "a"), nodes("T", "N"), node("N", "a"), put("N"))
    assert fresh.commit(Condemn(pack_name("D"))).void


def test_a_count_below_zero_stops_the_world(one: Replica) -> None:
    """Never wrapped, never ignored: the segment is not applied at all."""

    def damage(tables: Tables) -> None:
        row = tables.get(CHUNK, digest("N"))
        assert row is not None
        tables.put(CHUNK, digest("N"), row[:-4] + bytes(4))

    one.index.update(damage)
    before = one.hash()
    segment, chain = one.segment([one.transaction(Unpin(b"P" * 16))])
    with pytest.raises(IntegrityError, match="below zero"):
        one.index.update(lambda tables: apply(tables, segment, chain))
    assert one.hash() == before


# ---------------------------------------------------------------- versions and names


def test_numbers_are_never_reused(fresh: Replica) -> None:
    fresh.must(nodes("T", "N"), node("N"))
    for number in range(5):
        if number % 2:
            assert fresh.commit(put("N"), put("nowhere")).void
        assert fresh.must(put("N")).numbers == (number,)
        fresh.must(trash(number), Purge(C, number, fresh.seq + 1, force=True))
    assert fresh.must(put("N"), put("N"), put("N", collection="default/default/b")).numbers == (5, 6, 0)


def test_latest_is_the_highest_live(fresh: Replica) -> None:
    """FEATURES C1."""
    fresh.must(nodes("T", "N"), node("N"))
    for _ in range(4):
        fresh.must(put("N"))
    assert fresh.aliases() == {"latest": 3}
    fresh.must(trash(1))
    assert fresh.aliases() == {"latest": 3}
    fresh.must(trash(3))
    assert fresh.aliases() == {"latest": 2}
    fresh.must(trash(2), trash(0))
    assert fresh.aliases() == {}
    fresh.must(Restore(C, 1, fresh.version(1).trash_seq))
    assert fresh.aliases() == {"latest": 1}
    fresh.must(Restore(C, 3, fresh.version(3).trash_seq))
    assert fresh.aliases() == {"latest": 3}
    fresh.must(put("N", latest=False))
    assert fresh.aliases() == {"latest": 3}
    with fresh.index.read() as tables:
        assert highest_live(tables, 1) == 4
    fresh.must(Restore(C, 0, fresh.version(0).trash_seq))
    assert fresh.aliases() == {"latest": 3}, "what did not move it on purpose is not made latest by another restore"


def test_trash_remembers_aliases_and_restore_gives_back_what_is_free(one: Replica) -> None:
    one.must(put("N", aliases=("prod", "stage")))
    one.must(trash(1, "prod", "stage", "never there"))
    assert one.version(1).trash_aliases == ("prod", "stage")
    assert one.aliases() == {"best": 0, "latest": 0}
    one.must(SetAlias(C, "prod", 0))
    one.must(Restore(C, 1, one.seq - 1))
    assert one.aliases() == {"best": 0, "prod": 0, "stage": 1, "latest": 1}


def test_restore_purge_aba(one: Replica) -> None:
    """A purge decided on one trashing does not hit a later one, and neither does a restore."""
    one.must(trash(0, "best"))
    first = one.seq
    one.must(Restore(C, 0, first))
    one.must(trash(0, "best"))
    second = one.seq
    assert one.commit(Purge(C, 0, first, force=True)).void
    assert one.commit(Purge(C, 0, first, force=False)).void
    assert one.commit(Restore(C, 0, first)).void
    assert one.version(0).state is VersionState.TRASHED
    one.must(Purge(C, 0, second, force=True))
    assert one.commit(Restore(C, 0, second)).void


def test_alias_compare_and_set(one: Replica) -> None:
    one.must(put("N"))
    one.must(SetAlias(C, "prod", 0, expect=-1))
    assert one.commit(SetAlias(C, "prod", 1, expect=-1)).void
    one.must(SetAlias(C, "prod", 1, expect=0))
    assert one.commit(SetAlias(C, "prod", 0, expect=0)).void
    one.must(SetAlias(C, "prod", 0))
    assert one.aliases()["prod"] == 0
    with one.index.read() as tables:
        moves = tables.count(ALIAS_LOG)
    one.must(SetAlias(C, "prod", 0))
    with one.index.read() as tables:
        assert tables.count(ALIAS_LOG) == moves, "no move, no entry in the history"


def test_two_moves_in_one_segment_are_both_in_the_history(one: Replica) -> None:
    one.must(put("N"))
    with one.index.read() as tables:
        before = tables.count(ALIAS_LOG)
    one.fold([one.transaction(SetAlias(C, "x", 0), SetAlias(C, "x", 1)), one.transaction(SetAlias(C, "x", 0))])
    with one.index.read() as tables:
        assert tables.count(ALIAS_LOG) == before + 3


def test_update_changes_what_it_names(one: Replica) -> None:
    one.must(UpdateVersion(C, 0, "text", None, None))
    one.must(UpdateVersion(C, 0, None, b'{"a":1}', None))
    one.must(UpdateVersion(C, 0, None, None, ("t",)))
    found = one.version(0)
    assert (found.description, found.metadata, found.tags) == ("text", b'{"a":1}', ("t",))


def test_collections_are_apart(one: Replica) -> None:
    one.must(put("N", collection="default/default/d", aliases=("best",), kind="model"))
    with one.index.read() as tables:
        rows = {key: decode_row(row, CollectionRow) for key, row in tables.scan(COLLECTION)}
    assert {row.id for row in rows.values()} == {1, 2}
    one.must(Trash("default/default/d", 0, 0, ("best",), "", ""))
    assert one.aliases() == {"best": 0, "latest": 0}


def test_policy_is_merged(one: Replica) -> None:
    one.must(SetPolicy(b'{"trash_days": 3, "grace": 5}'))
    one.must(SetPolicy(b'{"grace": 6}'))
    with one.index.read() as tables:
        assert dict(tables.scan(POLICY)) == {b"trash_days": b"3", b"grace": b"6"}


# ---------------------------------------------------------------- the ratchet clock


def test_time_one_writer_saw_counts_in_full(fresh: Replica) -> None:
    fresh.commit()
    assert (fresh.head().safe, fresh.head().highest) == (START, START)
    fresh.now += 100 * DAY
    fresh.commit()
    assert fresh.head().safe == START + 100 * DAY


def test_the_claim_of_another_counts_for_a_day(fresh: Replica) -> None:
    """One host with a wrong clock cannot empty the trash; afterwards the clock stands still until time catches up."""
    fresh.commit()
    fresh.now += 1000 * DAY
    fresh.commit(writer=YOU)
    assert fresh.head().safe == START + CLOCK_CAP
    fresh.now -= 999 * DAY
    fresh.commit(writer=ME)
    assert (fresh.head().safe, fresh.head().highest) == (START + CLOCK_CAP, START + 1000 * DAY)
    fresh.now += 30 * DAY
    fresh.commit(writer=ME)
    assert fresh.head().safe == START + CLOCK_CAP


@given(steps=st.lists(st.tuples(st.integers(-40 * DAY, 40 * DAY), st.sampled_from((ME, YOU))), max_size=20))
@settings(deadline=None, max_examples=100)
def test_the_clock_never_goes_back(steps: list[tuple[int, str]]) -> None:
    replica = Replica()
    replica.commit()
    last_writer, safe, highest = ME, START, START
    for step, writer in steps:
        replica.now += step
        replica.commit(writer=writer)
        head = replica.head()
        gained = head.safe - safe
        assert 0 <= gained <= max(0, replica.now - highest)
        assert gained <= CLOCK_CAP or writer == last_writer
        assert head.safe <= head.highest
        safe, highest, last_writer = head.safe, head.highest, writer


def test_purge_waits_for_the_safe_clock(one: Replica) -> None:
    one.must(trash(0, "best", purge_at=START + 2 * DAY))
    due = Purge(C, 0, one.seq, force=False)
    one.now = START + 50 * DAY
    assert one.commit(due, writer=YOU).void, "one day of the fifty counts"
    one.now += DAY - 1
    assert one.commit(due, writer=YOU).void
    one.now += 1
    assert not one.commit(due, writer=YOU).void


# ---------------------------------------------------------------- overlay

KEYS = st.binary(min_size=1, max_size=3)
CHANGES = st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=2))), max_size=30)


def expected_scan(
    model: dict[bytes, bytes], prefix: bytes, start: bytes, *, reverse: bool
) -> list[tuple[bytes, bytes]]:
    keys = [
        key
        for key in sorted(model, reverse=reverse)
        if key.startswith(prefix) and (not start or (key <= start if reverse else key >= start))
    ]
    return [(key, model[key]) for key in keys]


@given(base=CHANGES, upper=CHANGES, prefix=st.binary(max_size=2), start=st.binary(max_size=3), reverse=st.booleans())
@settings(deadline=None, max_examples=200)
def test_overlay_is_a_dictionary(
    base: list[tuple[bytes, bytes | None]],
    upper: list[tuple[bytes, bytes | None]],
    prefix: bytes,
    start: bytes,
    reverse: bool,
) -> None:
    """Reads see the changes, the base does not until `flush`, and then it is them."""
    index = MemoryIndex(("t",))
    model: dict[bytes, bytes] = {}

    def change(tables: Tables, changes: list[tuple[bytes, bytes | None]], into: dict[bytes, bytes]) -> None:
        for key, value in changes:
            if value is None:
                tables.delete("t", key)
                into.pop(key, None)
            else:
                tables.put("t", key, value)
                into[key] = value

    def body(tables: Tables) -> None:
        change(tables, base, model)
        below = dict(model)
        overlay = Overlay(tables)
        change(overlay, upper, model)
        for place, content in ((overlay, model), (tables, below)):
            assert list(place.scan("t", prefix=prefix, start=start, reverse=reverse)) == expected_scan(
                content, prefix, start, reverse=reverse
            )
            assert place.count("t") == len(content)
            for key in {key for key, _ in (*base, *upper)} | {start or b"x"}:
                assert place.get("t", key) == content.get(key)
        overlay.flush()
        assert dict(tables.scan("t")) == model
        assert dict(overlay.scan("t")) == model

    index.update(body)


# ---------------------------------------------------------------- any records, both storages

NAMES = ("a", "b", "c", "N", "M", "R")
PACKS = ("D", "E", "F", "G")
_names = st.sampled_from(NAMES)
_digests = st.lists(_names, max_size=4)
_numbers = st.integers(0, 3)
_packs = st.sampled_from(PACKS)
_collections = st.sampled_from((C, "default/default/d"))
_aliases = st.sampled_from(("best", "prod"))
_pins = st.sampled_from((b"P" * 16, b"Q" * 16))
RECORDS = st.one_of(
    st.builds(lambda n, ds: pack(n, *(d.lower() for d in ds)), _packs, _digests),
    st.builds(lambda n, ds: nodes(n, *(d.upper() for d in ds)), _packs, _digests),
    st.builds(lambda n, ds: node(n.upper(), *(d for d in ds if d < n or d.islower())), _names, _digests),
    st.builds(lambda ds: Drop(tuple(map(digest, ds))), st.lists(_names, min_size=1, max_size=4)),
    st.builds(lambda n, ds: Retire(pack_name(n), tuple(map(digest, ds))), _packs, _digests),
    st.builds(lambda n: Condemn(pack_name(n)), _packs),
    st.builds(
        lambda n, c, a, latest: put(n, collection=c, aliases=tuple(a), latest=latest),
        _names,
        _collections,
        st.lists(_aliases, max_size=2, unique=True),
        st.booleans(),
    ),
    st.builds(
        lambda c, n, a: Trash(c, n, START + n * DAY, tuple(a), "", ""), _collections, _numbers, st.lists(_aliases)
    ),
    st.builds(Restore, _collections, _numbers, st.integers(1, 12)),
    st.builds(lambda c, n, s, f: Purge(c, n, s, force=f), _collections, _numbers, st.integers(1, 12), st.booleans()),
    st.builds(SetAlias, _collections, _aliases, _numbers, st.integers(-2, 3)),
    st.builds(DropAlias, _collections, _aliases, _numbers),
    st.builds(lambda p, ds: Pin(p, "", "", tuple(map(digest, ds)), 0), _pins, _digests),
    st.builds(Unpin, _pins),
)
HISTORIES = st.lists(
    st.tuples(
        st.lists(st.lists(RECORDS, min_size=1, max_size=6), min_size=1, max_size=3),
        st.sampled_from((ME, YOU)),
        st.integers(-HOUR, 40 * HOUR),
    ),
    max_size=12,
)


@given(history=HISTORIES)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_keeps_the_invariants(history: list[tuple[list[list[Record]], str, int]]) -> None:
    """I1, I2, I3 hold after every segment whatever its records; only an underflow would stop it, and none comes."""
    replica = Replica()
    for transactions, writer, step in history:
        replica.now += step
        replica.fold([replica.transaction(*records) for records in transactions], writer)
        with replica.index.read() as tables:
            check_invariants(tables)


def typical() -> Iterator[list[list[Record]]]:
    """A long history in which most is valid: trees, sharing, trash, collections."""
    rng = random.Random(11)
    live: list[int] = []
    number = 0
    for step in range(60):
        if live and rng.random() < 0.3:
            victim = live.pop(rng.randrange(len(live)))
            yield [[Trash(C, victim, START, (), "", "")]]
            if rng.random() < 0.7:
                yield [[Purge(C, victim, -1, force=True)], [Drop((digest(f"n{victim}"),))]]
            continue
        chunks = [f"c{rng.randrange(40)}" for _ in range(6)]
        yield [
            [
                pack(f"p{step}", *chunks),
                nodes(f"q{step}", f"n{number}"),
                node(f"n{number}", *chunks),
                put(f"n{number}"),
            ],
            [put("nowhere")],
        ]
        live.append(number)
        number += 1


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    disk = LmdbIndex.open(tmp_path / "index", TABLES, map_bytes=1 << 20, boot_id="boot")
    yield Replica(), Replica(disk)
    disk.close()


def fold_both(both: tuple[Replica, Replica], transactions: list[list[Record]], writer: str, step: int) -> None:
    memory, disk = both
    memory.now += step
    disk.now = memory.now
    made = [memory.transaction(*records) for records in transactions]
    assert memory.fold(made, writer) == disk.fold(made, writer)
    assert memory.hash() == disk.hash()


def test_both_storages_agree_on_a_long_history(both: tuple[Replica, Replica]) -> None:
    """Two replicas, one state: `state_hash` is equal after each segment, on LMDB and in memory."""
    memory, _ = both
    for transactions in typical():
        named: list[list[Record]] = [
            [
                replace(record, trash_seq=memory.version(record.number).trash_seq)
                if isinstance(record, Purge)
                else record
                for record in records
            ]
            for records in transactions
        ]
        fold_both(both, named, ME, HOUR)
    with memory.index.read() as tables:
        check_invariants(tables)
        assert tables.count(VERSION) > 20
        assert tables.count(CHUNK) > 20


@given(histories=st.lists(HISTORIES, min_size=1, max_size=3))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_storages_agree_on_any_history(
    tmp_path_factory: pytest.TempPathFactory, histories: list[list[tuple[list[list[Record]], str, int]]]
) -> None:
    disk = LmdbIndex.open(tmp_path_factory.mktemp("state") / "index", TABLES, map_bytes=1 << 20, boot_id="boot")
    try:
        both = Replica(), Replica(disk)
        for history in histories:
            for transactions, writer, step in history:
                fold_both(both, transactions, writer, step)
    finally:
        disk.close()


def test_the_hash_sees_every_table() -> None:
    """Two states that differ in one key of one table have two hashes."""
    seen = set()
    for table in TABLES:
        for key, value in ((b"k", b"v"), (b"k", b"w"), (b"kv", b""), (b"l", b"v")):
            index = MemoryIndex(TABLES)
            index.update(lambda tables, t=table, k=key, v=value: tables.put(t, k, v))  # type: ignore[misc]
            with index.read() as tables:
                seen.add(state_hash(tables))
    assert len(seen) == 4 * len(TABLES)
