"""Guards what a log with any values in it can do to a replica: void a transaction, never stop it.

A segment that is in the log is there for good. If the rules raised on it, no replica could ever go beyond it; if they
did so on one kind of storage only, replicas would disagree.
"""

from __future__ import annotations

import random
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from casstore import Store, catalogue, expiry
from casstore.config import from_micros
from casstore.errors import FormatError
from casstore.format.segments import decode_body, encode_body
from casstore.index import LmdbIndex, MemoryIndex
from casstore.log import Log
from casstore.model import (
    AddNode,
    AddPack,
    Checkpoint,
    ChunkKind,
    Condemn,
    FrameInfo,
    Link,
    PackContent,
    Pin,
    Protect,
    PutCollection,
    PutRun,
    PutVersion,
    Record,
    RenameCollection,
    Retire,
    Segment,
    SetPolicy,
    Transaction,
    UpsertPart,
    UseVersion,
)
from casstore.overlay import Overlay
from casstore.state import NO_PACK, TABLES, advance, apply, apply_transaction, head_of, state_hash
from casstore.view import collections

Storage = MemoryIndex | LmdbIndex

NODES = [bytes([i]) * 32 for i in range(1, 5)]
SEED: tuple[Record, ...] = (
    AddPack(bytes([200]) * 16, 100, PackContent(ChunkKind.NODE, (FrameInfo(10, 40, 4),), tuple(NODES), (10,) * 4)),
    *(AddNode(node, ()) for node in NODES[:3]),
)
NUMBERS = (-(2**63), -2, -1, 0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = ("", "x" * 600, "é" * 300, "a\0b", "a", "\0", "/", "a/b/c/d", "default/default/" + "n" * 520, "latest", "v0")
BYTES = (
    b"",
    b"x",
    bytes(32),
    NO_PACK,
    b"\xff" * 600,
    NODES[0][:31],
    b"[]",
    b"null",
    b'{"":1}',
    b'{"a":',
    b'{"a":1e999}',
    b'{"\\ud800":1}',
    b"\xff\xfe{",
    b"[" * 3000,
)
HOSTILE = 0.1


@pytest.fixture
def storages(tmp_path: Path) -> Iterator[tuple[Storage, ...]]:
    lmdb = LmdbIndex(tmp_path / "index", TABLES, "boot", 64 * 2**20, read_only=False)
    yield MemoryIndex(TABLES), lmdb
    lmdb.close()


class Replicas:
    """The same log, folded into several storages."""

    def __init__(self, storages: Sequence[Storage]) -> None:
        self.storages = storages
        self.txid = 0

    def put(self, *records: Record, claimed: int = 1000, txid: bytes | None = None) -> str:
        """What voids a transaction, or ""; on every storage, and for its author, the same."""
        self.txid += 1
        (transaction,) = decode_body(
            encode_body((Transaction(self.txid.to_bytes(16, "big") if txid is None else txid, records),)), "a segment"
        )
        found: set[str] = set()
        for storage in self.storages:
            with storage.read() as tables:
                head = head_of(tables)
                segment = Segment(head.seq + 1, head.chain, 0, 0, "me", claimed, (transaction,))
                overlay = Overlay(tables)
                advance(overlay, segment, head.chain)
                found.add(apply_transaction(overlay, segment, transaction).void)
            (applied,) = storage.update(lambda tables, s=segment: apply(tables, s, bytes(32)))  # type: ignore[misc]
            found.add(applied.void)
        assert len(found) == 1
        return found.pop()

    def check_agreed(self) -> None:
        hashes = set()
        for storage in self.storages:
            with storage.read() as tables:
                hashes.add(state_hash(tables))
                # What goes over all names and dates must get to its end.
                list(collections(tables))
                expiry.sweep(tables, expiry.terms_in_force(tables), "gc")
                catalogue.due(tables, "gc")
        assert len(hashes) == 1


def version(**values: Any) -> PutVersion:
    known: dict[str, Any] = {
        "collection": "default/default/a",
        "type": "t",
        "root": NODES[0],
        "size": 1,
        "file_count": 1,
        "description": "",
        "metadata": b"{}",
        "tags": (),
        "aliases": (),
        "move_latest": True,
        "base": "",
        "ttl": -1,
        "actor": "",
    }
    return PutVersion(**(known | values))


def part(collection: str) -> UpsertPart:
    return UpsertPart(collection, "b", "p", "t", NODES[0], 1, 1, b"pin", "", 10)


HOSTILE_RECORDS: dict[str, Record] = {
    "negative number": UseVersion("run", "default/default/a", -5, "", ""),
    "number too large": Link("default/default/l", "default/default/a", 2**64 - 1, (), move_latest=True),
    "number of a collection": Protect("default/default/a", -(2**63), "why"),
    "no name": PutCollection("", "t", portfolio=False),
    "short name": PutCollection("a", "t", portfolio=False),
    "name with NUL": version(collection="default/default/a\0"),
    "long name": version(collection="default/default/" + "n" * 600),
    "new name": RenameCollection("default/default/a", "x/y"),
    "batch of no collection": part("nowhere"),
    "long alias": version(aliases=("a" * 600,)),
    "no run": PutRun("", "", "", "running", b"{}"),
    "run with NUL": PutRun("run\0" + "1" * 16, "", "", "running", b"{}"),
    "long run": PutRun("r" * 512, "", "", "running", b"{}"),
    "no pin": Pin(b"", "", "", (), 1),
    "long pin": Pin(bytes(512), "", "", (), 1),
    "pack without a name": Condemn(b""),
    "pack that stands for none": Condemn(NO_PACK),
    "pack with a long name": AddPack(
        b"p" * 17, 1, PackContent(ChunkKind.DATA, (FrameInfo(1, 1, 1),), (b"d" * 32,), (1,))
    ),
    "places beyond 4 GiB": AddPack(
        b"p" * 16,
        1,
        PackContent(
            ChunkKind.DATA, (FrameInfo(1, 1, 4),), tuple(bytes([9 + i]) * 32 for i in range(4)), (2**31 - 1,) * 4
        ),
    ),
    "child of another width": AddNode(NODES[3], (NODES[0], b"short")),
    "position before the log": Checkpoint(-1, "checkpoints/x", bytes(32)),
    "policy": SetPolicy(b"[]"),
    "policy that is no JSON": SetPolicy(b"{"),
    "policy in no encoding": SetPolicy(b"\xff\xfe{"),
    "policy with half a character": SetPolicy(b'{"\\ud800": 1}'),
    "policy with no key": SetPolicy(b'{"": 1}'),
    "deep policy": SetPolicy(b'{"a": ' + b'["]", ' * 900 + b"1" + b"]" * 900 + b"}"),
}


@pytest.mark.parametrize("record", HOSTILE_RECORDS.values(), ids=HOSTILE_RECORDS)
def test_a_record_with_impossible_values_voids_its_transaction(storages: Sequence[Storage], record: Record) -> None:
    replicas = Replicas(storages)
    assert not replicas.put(*SEED)
    assert not replicas.put(version(), PutRun("run", "", "", "running", b"{}"))
    assert replicas.put(record)
    assert not replicas.put(version()), "the log goes on"
    replicas.check_agreed()


def test_a_store_that_is_fuller_than_a_number_can_say_is_void(storages: Sequence[Storage]) -> None:
    replicas = Replicas(storages)
    content = PackContent(ChunkKind.DATA, (), (), ())
    assert not replicas.put(AddPack(b"1" * 16, 2**64 - 1, content))
    assert replicas.put(AddPack(b"2" * 16, 1, content))
    replicas.check_agreed()


@pytest.mark.parametrize("txid", [b"", b"short", bytes(600)])
def test_a_transaction_without_a_proper_id_is_void(storages: Sequence[Storage], txid: bytes) -> None:
    replicas = Replicas(storages)
    assert replicas.put(*SEED, txid=txid)
    assert not replicas.put(*SEED)
    replicas.check_agreed()


def test_a_pack_is_not_retired_into_one_that_is_not_live(storages: Sequence[Storage]) -> None:
    replicas = Replicas(storages)
    assert not replicas.put(*SEED)
    old = bytes([200]) * 16
    copy = AddPack(b"c" * 16, 100, PackContent(ChunkKind.NODE, (FrameInfo(10, 40, 4),), tuple(NODES), (10,) * 4))
    assert replicas.put(copy, Retire(copy.pack, ()), Retire(old, tuple(NODES)))
    own = AddPack(b"o" * 16, 10, PackContent(ChunkKind.DATA, (FrameInfo(1, 1, 1),), (b"d" * 32,), (1,)))
    assert replicas.put(own, Retire(own.pack, (b"d" * 32,)))
    assert not replicas.put(copy, Retire(old, tuple(NODES)))
    replicas.check_agreed()


def _value(rng: random.Random, kind: Any, name: str) -> Any:
    if get_origin(kind) is tuple:
        return tuple(_value(rng, get_args(kind)[0], name) for _ in range(rng.randint(0, 2)))
    if get_origin(kind) in (Union, types.UnionType):
        return None if rng.random() < 0.5 else _value(rng, get_args(kind)[0], name)
    hostile = rng.random() < HOSTILE
    if kind is bool:
        return rng.random() < 0.5
    if kind is int:
        return rng.choice(NUMBERS) if hostile else rng.randint(0, 3)
    if kind is bytes:
        known = {"pack": [b"1" * 16, b"2" * 16], "pin": [b"1", b"2"], "metadata": [b"{}"], "values": [b"{}"]}
        return rng.choice(BYTES) if hostile else rng.choice(known.get(name, NODES))
    words = {"collection": "abc", "source": "abc", "name": "abc", "run": ["r", "s", ""], "status": ["running", "over"]}
    word = rng.choice(TEXTS) if hostile else rng.choice(words.get(name, ["t"]))
    return f"default/default/{word}" if name in {"collection", "source", "name"} and not hostile else word


def _record(rng: random.Random, kind: type[Record]) -> Record:
    if kind is AddPack:
        digests = tuple(rng.choice(NODES) for _ in range(rng.randint(0, 3)))
        lengths = tuple(rng.choice((0, 10, 2**31 - 1)) for _ in digests)
        content = PackContent(rng.choice(list(ChunkKind)), (FrameInfo(10, 10, len(digests)),), digests, lengths)
        return AddPack(_value(rng, bytes, "pack"), abs(_value(rng, int, "size")), content)
    hints = get_type_hints(kind)
    return kind(**{field.name: _value(rng, hints[field.name], field.name) for field in fields(kind)})


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_in_the_log_all_replicas_go_on_and_agree(storages: Sequence[Storage], seed: int) -> None:
    rng = random.Random(seed)
    kinds = get_args(Record)
    replicas = Replicas(storages)
    assert not replicas.put(*SEED)
    took = 0
    for step in range(100):
        records = [_record(rng, rng.choice(kinds)) for _ in range(rng.choice((1, 1, 2)))]
        try:
            took += not replicas.put(*records, claimed=rng.choice(NUMBERS) if step % 9 == 0 else 1000 + step)
        except FormatError:
            continue  # a decoder refused it: it is no record
    assert took
    replicas.check_agreed()


def test_a_replica_gets_over_a_poisoned_segment(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        engine = store._engine
        head = engine.view.refresh()
        poison = (Transaction(bytes(16), (PutRun("r" * 600, "", "", "running", b"{}"),)),)
        Log(engine.backend, engine.codec).create(
            Segment(head.seq + 1, head.chain, head.seq, head.seq, "x", 2**63, poison)
        )
        store.create_collection("after", "t")
        assert [info.name for info in store.collections()] == ["after"]
        assert store.log(limit=1)[0].seq == head.seq + 2
    with Store.open(tmp_path / "s") as again:
        assert [info.name for info in again.collections()] == ["after"]


def test_a_time_beyond_the_calendar_is_its_end() -> None:
    assert from_micros(2**63) == datetime.max.replace(tzinfo=UTC)
    assert from_micros(-(2**63)) == datetime.min.replace(tzinfo=UTC)
    assert from_micros(1) == datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)
