"""The tables of the state: their names, their keys, and what can be read off them."""

from casstore.digest import seal
from casstore.format.rows import (
    decode_row,
    u64,
)
from casstore.model import (
    CheckpointRow,
    UseRow,
    VersionRow,
    VersionState,
)
from casstore.overlay import Tables
from casstore.values import dataclass

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
LINK = "link"
REDIRECT = "redirect"
RUN = "run"
RUN_OUTPUT = "run_output"
USE = "use"
VERSION_USE = "version_use"
VERSION_OUTPUT = "version_output"
DERIVED = "derived"
BATCH = "batch"
PART = "part"
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
    LINK,
    REDIRECT,
    RUN,
    RUN_OUTPUT,
    USE,
    VERSION_USE,
    VERSION_OUTPUT,
    DERIVED,
    BATCH,
    PART,
)

_UP, _DOWN = b"u", b"d"
"""how keys of `DERIVED` begin: from a version to its base, from a base to what was made of it"""

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


_last: tuple[bytes, Head] = (b"", Head())
"""a row and what it says"""
CHECKPOINT_KEY = b"checkpoint"
HEAD_KEY = b"head"


def head_of(tables: Tables) -> Head:
    """The position of the state."""
    global _last  # noqa: PLW0603 - a cache of one: it is asked for several times a transaction
    row = tables.get(META, HEAD_KEY)
    if row is None:
        return Head()
    known, head = _last
    if known != row:
        head = decode_row(row, Head)
        _last = row, head
    return head


def checkpoint_of(tables: Tables) -> CheckpointRow | None:
    """The newest checkpoint that the log knows."""
    row = tables.get(META, CHECKPOINT_KEY)
    return None if row is None else decode_row(row, CheckpointRow)


def version_key(collection: int, number: int) -> bytes:
    """Key of a version: collections apart, numbers in order."""
    return u64(collection) + u64(number)


def run_key(run: str) -> bytes:
    """Prefix of what belongs to a run. Ids hold no NUL."""
    return run.encode() + b"\0"


def use_key(run: str, collection: int, number: int) -> bytes:
    """Key of a run's use of a version."""
    return run_key(run) + version_key(collection, number)


def runs_logging(tables: Tables, collection: int, number: int) -> list[str]:
    """The runs that logged the content of a version, also those for which it was there already."""
    return [key[16:].decode() for key, _ in tables.scan(VERSION_OUTPUT, prefix=version_key(collection, number))]


def base_of(tables: Tables, collection: int, number: int) -> tuple[int, int] | None:
    """The version that a version was made from, as (collection, number): whatever they are called by now."""
    row = tables.get(DERIVED, _UP + version_key(collection, number))
    return None if row is None else _place(row)


def derived_from(tables: Tables, collection: int, number: int) -> list[tuple[int, int]]:
    """The versions that were made from a version, as (collection, number)."""
    return [_place(key[17:]) for key, _ in tables.scan(DERIVED, prefix=_DOWN + version_key(collection, number))]


def derived_keys(base: tuple[int, int], version: tuple[int, int]) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """The rows that say of a version what it was made from: there, and back."""
    up, down = version_key(*version), version_key(*base)
    return (_UP + up, down), (_DOWN + down + up, b"")


def _place(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:16], "big")


def batches_prefix(collection: str) -> bytes:
    """Prefix of the batches of a collection name: a digest, because names may be longer than a key."""
    return seal(collection.encode())


def batch_key(collection: str, batch: str) -> bytes:
    """Key of a batch, and prefix of its parts."""
    return batches_prefix(collection) + seal(batch.encode())


def part_key(collection: str, batch: str, part: str) -> bytes:
    """Key of a part of a batch."""
    return batch_key(collection, batch) + seal(part.encode())[:16]


def links_to(tables: Tables, collection: int, number: int, home: int | None = None) -> list[tuple[int, int]]:
    """The links to a version, purged ones included, as (collection, number); with ``home`` those in a collection."""
    prefix = version_key(collection, number) + (b"" if home is None else u64(home))
    found = (key[16:] for key, _ in tables.scan(LINK, prefix=prefix))
    return [(int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")) for key in found]


def uses_of(tables: Tables, collection: int, number: int) -> list[tuple[str, UseRow]]:
    """The uses of a version, ended ones included, by run."""
    found: list[tuple[str, UseRow]] = []
    for key, _ in tables.scan(VERSION_USE, prefix=version_key(collection, number)):
        run = key[16:].decode()
        row = tables.get(USE, use_key(run, collection, number))
        assert row is not None
        found.append((run, decode_row(row, UseRow)))
    return found


def current_name(tables: Tables, collection: str) -> str:
    """The name a collection has by now that may have been renamed."""
    if tables.get(COLLECTION, collection.encode()) is None:
        moved = tables.get(REDIRECT, collection.encode())
        name = None if moved is None else tables.get(COLLECTION_NAME, moved)
        if name is not None:
            return name.decode()
    return collection


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
