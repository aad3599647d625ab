"""Rows of the view ↔ bytes. The view is disposable: this encoding may change with `VIEW_VERSION`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from casstore.errors import IntegrityError
from casstore.model import ChunkKind, ChunkRow, Location

VIEW_VERSION = 3

_CHUNK = struct.Struct("<16sQIIIIBI")
_COUNT = struct.Struct("<I")
_HEAD = _CHUNK.size - _COUNT.size
_COUNTS = struct.Struct(f"<{_HEAD}xI")
_PACK_AND_LENGTH = struct.Struct("<16s8xIIIIB")

_KINDS = tuple(ChunkKind)
_DATA = _KINDS.index(ChunkKind.DATA)

Row = TypeVar("Row")


def chunk_row(
    pack: bytes, frame_offset: int, frame_stored: int, frame_raw: int, offset: int, length: int, kind: int
) -> bytes:
    """A chunk's row with refcount 0."""
    return _CHUNK.pack(pack, frame_offset, frame_stored, frame_raw, offset, length, kind, 0)


def refcount(row: bytes) -> int:
    """How many distinct parents and roots hold the chunk."""
    return int(_COUNT.unpack_from(row, _HEAD)[0])


def refcounts(rows: Sequence[bytes]) -> list[int]:
    """`refcount` of many."""
    joined = b"".join(rows)
    if len(joined) != len(rows) * _CHUNK.size:
        return [refcount(row) for row in rows]
    return [count for (count,) in _COUNTS.iter_unpack(joined)]


def with_refcount(row: bytes, count: int) -> bytes:
    """The same row with another count."""
    return row[:_HEAD] + _COUNT.pack(count)


def with_refcounts(rows: Sequence[bytes], counts: Sequence[int]) -> list[bytes]:
    """`with_refcount` of many."""
    pack = _COUNT.pack
    return [row[:_HEAD] + pack(count) for row, count in zip(rows, counts, strict=True)]


def moved_row(row: bytes, target: bytes) -> bytes:
    """The place of ``target`` with the count of ``row``."""
    return target[:_HEAD] + row[_HEAD:]


def pack_of_row(row: bytes) -> bytes:
    """The pack a chunk is in."""
    return row[:16]


def length_of_row(row: bytes) -> int:
    """Plaintext bytes of a chunk."""
    return int(_PACK_AND_LENGTH.unpack_from(row)[4])


def stored_share(row: bytes) -> int:
    """A chunk's share of the stored bytes of its frame."""
    _, stored, raw, _, length, _ = _PACK_AND_LENGTH.unpack_from(row)
    return int(stored * length // raw) if raw else 0


def kind_of_row(row: bytes) -> ChunkKind:
    """What a chunk holds."""
    return _KINDS[row[_HEAD - 1]]


def are_data(rows: Sequence[bytes | None]) -> bool:
    """Whether all of some chunks are indexed, and hold bytes of files."""
    return None not in rows and {row[_HEAD - 1] for row in rows if row is not None} <= {_DATA}


def decode_chunk(row: bytes) -> ChunkRow:
    """A chunk's row as a value."""
    pack, frame_offset, frame_stored, frame_raw, offset, length, kind, count = _CHUNK.unpack(row)
    return ChunkRow(Location(pack, frame_offset, frame_stored, frame_raw, offset, length, ChunkKind(kind)), count)


def location_of_row(row: bytes) -> Location:
    """Where a chunk is."""
    pack, frame_offset, frame_stored, frame_raw, offset, length, kind, _ = _CHUNK.unpack(row)
    return Location(pack, frame_offset, frame_stored, frame_raw, offset, length, _KINDS[kind])


def u64(value: int) -> bytes:
    """Eight bytes, big-endian, so that key order is number order."""
    return value.to_bytes(8, "big")


def encode_row(row: object) -> bytes:
    """Any other row."""
    return msgspec.msgpack.encode(row)


def decode_row(data: bytes, kind: type[Row]) -> Row:
    """Any other row as a value. Raises `IntegrityError` (the view is damaged)."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError:
        raise IntegrityError(f"a {kind.__name__} in the index is damaged", hint="casstore index rebuild") from None
