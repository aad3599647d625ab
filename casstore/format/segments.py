"""Log segments ↔ bytes (docs/FORMAT.md §6).

A segment is a guarded MessagePack array: header fields, then the (possibly compressed) body. The body is an
array of transactions; a transaction is its txid and an array of records; a record is an array that starts with
its tag. Inside one transaction, a digest that one of its packs adds is written as its index in the
transaction's table of added digests.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec

from casstore.digest import seal
from casstore.errors import FormatError, InvalidInputError, UnsupportedFormatError
from casstore.format.guard import HEAD_BYTES, guard, is_sound, stored_seal, unguard
from casstore.format.packs import is_consistent
from casstore.model import (
    AbortParts,
    AddNode,
    AddPack,
    Checkpoint,
    ChunkKind,
    Condemn,
    DeleteRun,
    Drop,
    DropAlias,
    EndUse,
    Erase,
    FinishParts,
    FrameInfo,
    GCRun,
    Link,
    PackContent,
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
from casstore.values import dataclass

SEGMENT_MAGIC = b"CASLOG01"
SEGMENT_VERSION = 1
FEATURES: frozenset[str] = frozenset()
"""must-understand features this version knows"""

_ADD_PACK, _ADD_NODE, _DROP, _RETIRE = 1, 2, 3, 4
_PLAIN: dict[int, type[Record]] = {
    5: Condemn,
    6: GCRun,
    7: Quarantine,
    8: Erase,
    9: Checkpoint,
    16: PutVersion,
    17: UpdateVersion,
    18: Trash,
    19: Restore,
    20: Purge,
    21: Unpurge,
    22: SetTtl,
    23: Protect,
    32: SetAlias,
    33: DropAlias,
    34: SetCollectionTtl,
    35: TrashCollection,
    36: RestoreCollection,
    37: PurgeCollection,
    38: PutCollection,
    39: UpdateCollection,
    40: RenameCollection,
    41: Link,
    42: Unlink,
    48: Pin,
    49: Unpin,
    50: RenewPin,
    51: UpsertPart,
    52: FinishParts,
    53: AbortParts,
    64: SetPolicy,
    80: PutRun,
    81: DeleteRun,
    82: PutOutput,
    83: UseVersion,
    84: EndUse,
}
_TAGS = {cls: tag for tag, cls in _PLAIN.items()}
_FIELDS: dict[type[Record], tuple[str, ...]] = {cls: cls.__match_args__ for cls in _PLAIN.values()}

_LATER: dict[type[Record], tuple[object, ...]] = {
    cls: tuple(f.default for f in fields(cls)[count:])
    for cls, count in ((PutVersion, 13), (Trash, 7), (TrashCollection, 4))
}
"""defaults of the fields that were added to a record later: left out while they have these"""

Ref = int | bytes


@dataclass(frozen=True, slots=True)
class RawSegment:
    """A segment whose body is still in stored form."""

    seq: int
    previous: bytes
    base: int
    packs_since: int
    writer: str
    claimed: int
    codec: int
    body_length: int
    body: bytes
    chain: bytes
    """BLAKE3 of the payload: what the next segment calls ``previous``"""


def encode_body(transactions: tuple[Transaction, ...]) -> bytes:
    """The transactions of a segment."""
    return msgspec.msgpack.encode([_encode_transaction(t) for t in transactions])


def _encode_transaction(transaction: Transaction) -> list[object]:
    table: dict[bytes, int] = {}
    for record in transaction.records:
        if isinstance(record, AddPack):
            for digest in record.content.digests:
                table.setdefault(digest, len(table))
    return [transaction.txid, [_encode_record(record, table) for record in transaction.records]]


def _encode_record(record: Record, table: dict[bytes, int]) -> list[object]:
    if isinstance(record, AddPack):
        content = record.content
        width = len(content.digests[0]) if content.digests else 0
        frames = [[f.stored, f.raw, f.chunks] for f in content.frames]
        return [
            _ADD_PACK,
            record.pack,
            record.size,
            int(content.kind),
            frames,
            width,
            b"".join(content.digests),
            content.lengths,
        ]
    if isinstance(record, AddNode):
        return [_ADD_NODE, _ref(record.digest, table), [_ref(child, table) for child in record.children]]
    if isinstance(record, Drop):
        return [_DROP, record.digests]
    if isinstance(record, Retire):
        return [_RETIRE, record.pack, [_ref(digest, table) for digest in record.moved]]
    values = [getattr(record, name) for name in _FIELDS[type(record)]]
    for default in reversed(_LATER.get(type(record), ())):
        if values[-1] != default:
            break
        values.pop()
    shape = [_TAGS[type(record)], *values]
    _check_readable(shape, record)
    return shape


def _check_readable(shape: list[object], record: Record) -> None:
    """Raise `InvalidInputError` for a value of a type that nobody could read back: such a segment ends the log."""
    try:
        _decode_record(msgspec.msgpack.decode(msgspec.msgpack.encode(shape)), [])
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"the log cannot hold this {type(record).__name__}: {error}") from None


def _ref(digest: bytes, table: dict[bytes, int]) -> Ref:
    return table.get(digest, digest)


def decode_body(body: bytes, what: str) -> tuple[Transaction, ...]:
    """Read transactions. Raises `FormatError`, or `UnsupportedFormatError` for a record of a newer version."""
    try:
        shape = msgspec.msgpack.decode(body, type=list[tuple[bytes, list[list[Any]]]])
        return tuple(_decode_transaction(txid, records) for txid, records in shape)
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        if isinstance(error, UnsupportedFormatError):
            raise
        raise FormatError(f"{what} is not valid: {error}") from None


def _decode_transaction(txid: bytes, shapes: list[list[Any]]) -> Transaction:
    table: list[bytes] = []
    seen: set[bytes] = set()
    records: list[Record] = []
    for shape in shapes:
        record = _decode_add_pack(shape) if shape[0] == _ADD_PACK else None
        if record is not None:
            for digest in record.content.digests:
                if digest not in seen:
                    seen.add(digest)
                    table.append(digest)
            records.append(record)
        else:
            records.append(_PENDING)
    for position, shape in enumerate(shapes):
        if shape[0] != _ADD_PACK:
            records[position] = _decode_record(shape, table)
    return Transaction(txid, tuple(records))


_PENDING = Unpin(b"")


_AddPackShape = tuple[int, bytes, int, int, list[tuple[int, int, int]], int, bytes, tuple[int, ...]]
_AddNodeShape = tuple[int, int | bytes, tuple[int | bytes, ...]]
_DropShape = tuple[int, tuple[bytes, ...]]
_RetireShape = tuple[int, bytes, tuple[int | bytes, ...]]

_NATIVE = (bytes,)
"""for msgspec.convert: otherwise it takes text for bytes in base64"""


def _decode_add_pack(shape: list[Any]) -> AddPack:
    _, pack, size, kind, frames, width, joined, lengths = msgspec.convert(shape, _AddPackShape, builtin_types=_NATIVE)
    if width < 0 or len(joined) != width * len(lengths):
        raise ValueError("digests and lengths differ")
    digests = tuple(joined[at : at + width] for at in range(0, len(joined), width)) if width else ()
    content = PackContent(ChunkKind(kind), tuple(FrameInfo(*frame) for frame in frames), digests, lengths)
    if size < 0 or not is_consistent(content):
        raise ValueError("frames and chunks differ")
    return AddPack(pack, size, content)


def _decode_record(shape: list[Any], table: list[bytes]) -> Record:
    def digest(ref: Ref) -> bytes:
        if isinstance(ref, int) and ref < 0:
            raise ValueError("a reference to an added digest is negative")
        return table[ref] if isinstance(ref, int) else ref

    tag = shape[0]
    if tag == _ADD_NODE:
        _, node, children = msgspec.convert(shape, _AddNodeShape, builtin_types=_NATIVE)
        return AddNode(digest(node), tuple(digest(ref) for ref in children))
    if tag == _DROP:
        return Drop(msgspec.convert(shape, _DropShape, builtin_types=_NATIVE)[1])
    if tag == _RETIRE:
        _, pack, moved = msgspec.convert(shape, _RetireShape, builtin_types=_NATIVE)
        return Retire(pack, tuple(digest(ref) for ref in moved))
    cls = _PLAIN.get(tag)
    if cls is None:
        raise UnsupportedFormatError(f"the log holds a record of kind {tag}", hint="upgrade casstore")
    return msgspec.convert(dict(zip(_FIELDS[cls], shape[1:], strict=False)), cls, builtin_types=_NATIVE)


def encode_segment(
    segment: Segment, codec: int, body_length: int, body: bytes | bytearray | memoryview
) -> tuple[bytes, bytes]:
    """A whole segment and its chain hash. ``body``: stored form of an `encode_body` of ``body_length`` bytes."""
    payload = msgspec.msgpack.encode(
        [
            SEGMENT_VERSION,
            sorted(FEATURES),
            segment.seq,
            segment.previous,
            segment.base,
            segment.packs_since,
            segment.writer,
            segment.claimed,
            codec,
            body_length,
            body,
        ]
    )
    return guard(SEGMENT_MAGIC, payload), seal(payload)


_SegmentShape = tuple[int, list[str], int, bytes, int, int, str, int, int, int, bytes]


def decode_segment(data: bytes, what: str) -> RawSegment:
    """Read a segment. Raises `IntegrityError`, `FormatError`, `UnsupportedFormatError`."""
    payload, chain = unguard(SEGMENT_MAGIC, data, what)
    try:
        shape = msgspec.msgpack.decode(payload, type=_SegmentShape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # The first byte after the array header is the version: a newer one may have any other fields.
        if len(payload) > 1 and SEGMENT_VERSION < payload[1] < 0x80:
            raise UnsupportedFormatError(f"{what} has format {payload[1]}", hint="upgrade casstore") from None
        raise FormatError(f"{what} is not valid") from None
    if shape[0] > SEGMENT_VERSION or not FEATURES.issuperset(shape[1]):
        raise UnsupportedFormatError(f"{what} needs {shape[0]} {shape[1]}", hint="upgrade casstore")
    _, _, seq, previous, base, since, writer, claimed, codec, length, body = shape
    return RawSegment(seq, previous, base, since, writer, claimed, codec, length, body, chain)


SEGMENT_HEAD = HEAD_BYTES
"""bytes at the beginning of a segment that say its chain hash"""


def stored_chain(head: bytes) -> bytes | None:
    """The chain hash that the first `SEGMENT_HEAD` bytes of a segment say it has; None if they are damaged."""
    return stored_seal(SEGMENT_MAGIC, head)


def segment_is_sound(data: bytes) -> bool:
    """True if a segment is exactly as it was written, redundancy included."""
    return is_sound(SEGMENT_MAGIC, data)
