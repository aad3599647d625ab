"""Checkpoints ↔ bytes (docs/FORMAT.md §9): the rows of a view at one position, in parts, and their manifest.

A checkpoint only spares replaying the log. Its rows have the layout of one version of the view; a reader of
another version replays instead, so the rows are not part of the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from casstore.errors import FormatError
from casstore.format.guard import guard, unguard
from casstore.format.rows import VIEW_VERSION
from casstore.values import dataclass

MANIFEST_MAGIC = b"CASCKPT1"
PART_MAGIC = b"CASCKPR1"

Rows = tuple[str, Sequence[tuple[bytes, bytes]]]
"""a table and some of its rows, in key order"""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint consists of. ``sizes``: stored bytes of each part."""

    key: str
    seq: int
    chain: bytes
    state_hash: bytes
    sizes: tuple[int, ...]

    def part_key(self, number: int) -> str:
        """Key of a part."""
        return f"{self.key}.{number:06d}"


_ManifestShape = tuple[int, int, bytes, bytes, tuple[int, ...]]


def encode_manifest(manifest: Manifest) -> bytes:
    """The object that makes a checkpoint one."""
    shape = [VIEW_VERSION, manifest.seq, manifest.chain, manifest.state_hash, list(manifest.sizes)]
    return guard(MANIFEST_MAGIC, msgspec.msgpack.encode(shape))


def decode_manifest(key: str, data: bytes) -> Manifest | None:
    """Read a manifest; None if another version of casstore made it. Raises `IntegrityError`, `FormatError`."""
    payload, _ = unguard(MANIFEST_MAGIC, data, f"checkpoint {key}")
    try:
        version = msgspec.msgpack.decode(payload, type=list[msgspec.Raw])[0]
        if msgspec.msgpack.decode(version, type=int) != VIEW_VERSION:
            return None
        _, seq, chain, state_hash, sizes = msgspec.msgpack.decode(payload, type=_ManifestShape)
    except (msgspec.MsgspecError, IndexError):
        raise FormatError(f"checkpoint {key} is not valid", hint="casstore checkpoint") from None
    return Manifest(key, seq, chain, state_hash, sizes)


def encode_rows(rows: Iterable[Rows]) -> bytes:
    """What a part holds."""
    return msgspec.msgpack.encode([[table, list(pairs)] for table, pairs in rows])


def decode_rows(body: bytes, what: str) -> list[Rows]:
    """Read what a part holds. Raises `FormatError`."""
    try:
        return list(msgspec.msgpack.decode(body, type=list[tuple[str, list[tuple[bytes, bytes]]]]))
    except msgspec.MsgspecError:
        raise FormatError(f"{what} is not valid", hint="casstore checkpoint") from None


def encode_part(codec: int, length: int, stored: bytes | bytearray | memoryview) -> bytes:
    """A part. ``stored``: stored form of an `encode_rows` of ``length`` bytes."""
    return guard(PART_MAGIC, msgspec.msgpack.encode([codec, length, stored]))


def decode_part(data: bytes, what: str) -> tuple[int, int, bytes]:
    """Read a part: codec, length, stored form. Raises `IntegrityError`, `FormatError`."""
    payload, _ = unguard(PART_MAGIC, data, what)
    try:
        return msgspec.msgpack.decode(payload, type=tuple[int, int, bytes])
    except msgspec.MsgspecError:
        raise FormatError(f"{what} is not valid", hint="casstore checkpoint") from None
