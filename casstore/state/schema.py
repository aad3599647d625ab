"""The tables of the state: their names, their keys, and what can be read off them."""

from dataclasses import dataclass

from casstore.digest import seal
from casstore.format.rows import (
    decode_row,
    u64,
)
from casstore.model import (
    CheckpointRow,
    VersionRow,
    VersionState,
)
from casstore.overlay import Tables

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
VERSION_ALIAS = "version_alias"
ALIAS_LOG = "alias_log"
PIN = "pin"
POLICY = "policy"
TXID = "txid"
LOST = "lost"
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
    VERSION_ALIAS,
    ALIAS_LOG,
    PIN,
    POLICY,
    TXID,
    LOST,
)

LOCAL = b"local/"
"""keys in `META` that say something of this replica only, and are not part of the state"""
NO_PACK = bytes(16)
"""where content is that was erased on request"""
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
    stored: int = 0
    """bytes of all live packs"""


CHECKPOINT_KEY = b"checkpoint"
HEAD_KEY = b"head"


def head_of(tables: Tables) -> Head:
    """The position of the state."""
    row = tables.get(META, HEAD_KEY)
    return Head() if row is None else decode_row(row, Head)


def checkpoint_of(tables: Tables) -> CheckpointRow | None:
    """The newest checkpoint that the log knows."""
    row = tables.get(META, CHECKPOINT_KEY)
    return None if row is None else decode_row(row, CheckpointRow)


def version_key(collection: int, number: int) -> bytes:
    """Key of a version: collections apart, numbers in order."""
    return u64(collection) + u64(number)


def alias_target(tables: Tables, collection: int, alias: str) -> int | None:
    """The number an alias is on, or None."""
    row = tables.get(ALIAS, u64(collection) + alias.encode())
    return None if row is None else int.from_bytes(row, "big")


def aliases_of(tables: Tables, collection: int, number: int) -> tuple[str, ...]:
    """Aliases on a version, ``latest`` included, in byte order."""
    return tuple(key[16:].decode() for key, _ in tables.scan(VERSION_ALIAS, prefix=version_key(collection, number)))


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
            if table == META and key.startswith(LOCAL):
                continue
            item = b"".join((table.encode(), b"\0", len(key).to_bytes(2, "big"), key, value))
            total += int.from_bytes(seal(item), "big")
    return (total % (1 << 256)).to_bytes(32, "big")
