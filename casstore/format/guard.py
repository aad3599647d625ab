"""A self-checking envelope that repairs damage within one block (docs/FORMAT.md §3).

::

    header (64 bytes) │ payload │ checksum of each block (8 bytes each) │ parity block │ header again

The payload is seen as at most 64 blocks of equal size (the last padded with zeros); the parity block is the
exclusive-or of them all. A reader that finds the payload's BLAKE3 wrong finds the one block whose checksum is
wrong, rebuilds it from the others and checks the BLAKE3 again. Two damaged blocks are reported, never guessed.
"""

from __future__ import annotations

import struct

from casstore.digest import Buffer, checksum64, seal
from casstore.errors import FormatError, IntegrityError

_HEADER = struct.Struct("<8sQI4x32sQ")
"""magic, payload length, block size, BLAKE3 of the payload, xxh3-64 of the 56 bytes before"""

HEAD_BYTES = _HEADER.size
_BLOCKS = 64
_SMALLEST = 64


def _block_size(length: int) -> int:
    return max(_SMALLEST, -(-length // _BLOCKS))


def _header(magic: bytes, payload: Buffer) -> bytes:
    body = _HEADER.pack(magic, len(payload), _block_size(len(payload)), seal(payload), 0)[:-8]
    return body + struct.pack("<Q", checksum64(body))


def _blocks(payload: Buffer, size: int) -> list[bytes]:
    return [bytes(payload[at : at + size]).ljust(size, b"\0") for at in range(0, len(payload), size)]


def _xor(blocks: list[bytes], size: int) -> bytes:
    total = 0
    for block in blocks:
        total ^= int.from_bytes(block, "little")
    return total.to_bytes(size, "little")


def guard(magic: bytes, payload: Buffer) -> bytes:
    """Wrap a payload. Deterministic."""
    header = _header(magic, payload)
    size = _block_size(len(payload))
    blocks = _blocks(payload, size)
    sums = b"".join(struct.pack("<Q", checksum64(block)) for block in blocks)
    return b"".join((header, payload, sums, _xor(blocks, size), header))


def _parse_header(magic: bytes, data: bytes) -> tuple[int, int, bytes] | None:
    if len(data) != _HEADER.size or checksum64(data[:-8]) != struct.unpack("<Q", data[-8:])[0]:
        return None
    found, length, size, digest, _ = _HEADER.unpack(data)
    if found != magic or size != _block_size(length):
        return None
    return length, size, digest


def unguard(magic: bytes, data: bytes, what: str) -> tuple[bytes, bytes]:
    """Unwrap: the payload and its BLAKE3, repaired if the damage is within one block.

    Raises `FormatError` when this is no such envelope at all, `IntegrityError` when it is one past repair.
    """
    header = _parse_header(magic, data[: _HEADER.size]) or _parse_header(magic, data[-_HEADER.size :])
    if header is None:
        if data[:8] == magic or data[-_HEADER.size :][:8] == magic:
            raise IntegrityError(f"{what} is damaged", hint="casstore fsck")
        raise FormatError(f"{what} is not in casstore's format", hint="casstore fsck")
    length, size, digest = header
    payload = data[_HEADER.size : _HEADER.size + length]
    if len(payload) == length and seal(payload) == digest:
        return payload, digest
    count = -(-length // size)
    sums_at = _HEADER.size + length
    parity_at = sums_at + 8 * count
    if len(data) != parity_at + size + _HEADER.size:
        raise IntegrityError(f"{what} is cut short", hint="casstore fsck")
    sums = struct.unpack(f"<{count}Q", data[sums_at:parity_at])
    blocks = _blocks(payload, size)
    bad = [i for i, block in enumerate(blocks) if checksum64(block) != sums[i]]
    if len(bad) == 1:
        others = [block for i, block in enumerate(blocks) if i != bad[0]]
        blocks[bad[0]] = _xor([*others, data[parity_at : parity_at + size]], size)
        repaired = b"".join(blocks)[:length]
        if seal(repaired) == digest:
            return repaired, digest
    raise IntegrityError(f"{what} is damaged", hint="casstore fsck")


def stored_seal(magic: bytes, head: bytes) -> bytes | None:
    """The BLAKE3 of the payload as the first `HEAD_BYTES` of an envelope say; None if they are damaged."""
    header = _parse_header(magic, head)
    return None if header is None else header[2]


def is_sound(magic: bytes, data: bytes) -> bool:
    """True if an envelope is exactly as it was written, redundancy included."""
    header = _parse_header(magic, data[: _HEADER.size])
    return header is not None and guard(magic, data[_HEADER.size : _HEADER.size + header[0]]) == data
