"""Frames, footers and the end of a pack ↔ bytes (docs/FORMAT.md §5).

::

    magic (8) │ frame … frame │ footer (guarded) │ BLAKE3 of all before (32) │ footer length (8) │ magic (8)
"""

from __future__ import annotations

import struct

import msgspec

from casstore.digest import Buffer, checksum64, seal
from casstore.errors import FormatError, IntegrityError
from casstore.format.guard import guard, unguard
from casstore.model import ChunkKind, FrameInfo, Location, PackContent
from casstore.values import dataclass

PACK_MAGIC = b"CASPACK1"
FOOTER_MAGIC = b"CASFOOT1"
FRAME_HEADER = struct.Struct("<B3xIQ")
"""codec, plaintext length, xxh3-64 of the stored payload"""
_TRAILER = struct.Struct("<32sQ8s")
TRAILER_SIZE = _TRAILER.size
FIRST_FRAME = len(PACK_MAGIC)
LARGEST = 0xFFFF_FFFF
"""bytes of a frame or a chunk, stored or plain"""


@dataclass(frozen=True, slots=True)
class VersionNote:
    """What a pack's footer says of a version it was written for, so that packs alone can tell what they hold."""

    collection: str
    type: str
    root: bytes
    size: int
    file_count: int
    description: str
    metadata: bytes
    tags: tuple[str, ...]
    claimed: int
    actor: str


@dataclass(frozen=True, slots=True)
class Footer:
    """The table of contents of a pack."""

    content: PackContent
    children: tuple[int, ...]
    """number of distinct children of each node; empty in a data pack"""
    versions: tuple[VersionNote, ...]


def frame_header(codec: int, raw: int, payload: Buffer) -> bytes:
    """The 16 bytes before a frame's payload."""
    return FRAME_HEADER.pack(codec, raw, checksum64(payload))


def parse_frame(data: Buffer, raw: int, what: str) -> tuple[int, memoryview]:
    """Codec and payload of a frame whose plaintext must have ``raw`` bytes. Raises `IntegrityError`."""
    if len(data) < FRAME_HEADER.size:
        raise IntegrityError(f"{what} is cut short", hint="casstore fsck --read-data --repair")
    codec, length, check = FRAME_HEADER.unpack_from(data)
    payload = memoryview(data)[FRAME_HEADER.size :]
    if length != raw or checksum64(payload) != check:
        raise IntegrityError(f"{what} is damaged", hint="casstore fsck --read-data --repair")
    return codec, payload


def split_frame(data: Buffer, what: str) -> tuple[int, memoryview]:
    """As `parse_frame`, but nothing is checked: of what begins a frame."""
    if len(data) < FRAME_HEADER.size:
        raise IntegrityError(f"{what} is cut short", hint="casstore fsck --read-data --repair")
    return data[0], memoryview(data)[FRAME_HEADER.size :]


def encode_end(body_seal: bytes, footer: Buffer) -> bytes:
    """The last bytes of a pack."""
    return _TRAILER.pack(body_seal, len(footer), PACK_MAGIC)


def encode_footer(footer: Footer) -> bytes:
    """The guarded footer."""
    content = footer.content
    width = len(content.digests[0]) if content.digests else 0
    notes = [[getattr(note, name) for name in VersionNote.__slots__] for note in footer.versions]
    payload = msgspec.msgpack.encode(
        [
            1,
            int(content.kind),
            [[f.stored, f.raw, f.chunks] for f in content.frames],
            width,
            b"".join(content.digests),
            content.lengths,
            footer.children,
            notes,
        ]
    )
    return guard(FOOTER_MAGIC, payload)


_FooterShape = tuple[
    int,
    int,
    list[tuple[int, int, int]],
    int,
    bytes,
    list[int],
    list[int],
    list[tuple[str, str, bytes, int, int, str, bytes, tuple[str, ...], int, str]],
]


def decode_footer(data: bytes, what: str) -> Footer:
    """Read a guarded footer. Raises `FormatError` or `IntegrityError`."""
    payload, _ = unguard(FOOTER_MAGIC, data, what)
    try:
        shape = msgspec.msgpack.decode(payload, type=_FooterShape)
        version, kind, frames, width, joined, lengths, children, notes = shape
        if version != 1 or (width and len(joined) != width * len(lengths)):
            raise FormatError(f"{what} is not valid")
        content = PackContent(
            ChunkKind(kind),
            tuple(FrameInfo(*frame) for frame in frames),
            tuple(joined[at : at + width] for at in range(0, len(joined), width)) if width else (),
            tuple(lengths),
        )
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise FormatError(f"{what} is not valid") from None
    if not is_consistent(content):
        raise FormatError(f"{what} is not valid")
    versions = tuple(VersionNote(*note) for note in notes)
    return Footer(content, tuple(children), versions)


def decode_trailer(data: bytes, what: str) -> tuple[bytes, int]:
    """Seal and footer length from the last bytes of a pack. Raises `IntegrityError`."""
    if len(data) != TRAILER_SIZE:
        raise IntegrityError(f"{what} is cut short")
    body_seal, length, magic = _TRAILER.unpack(data)
    if magic != PACK_MAGIC:
        raise IntegrityError(f"{what} has a damaged end")
    return body_seal, length


def check_pack(data: bytes, what: str) -> Footer:
    """Check the seal of a whole pack and read its footer. Raises `IntegrityError`."""
    body_seal, length = decode_trailer(data[-TRAILER_SIZE:], what)
    end = len(data) - TRAILER_SIZE
    if data[: len(PACK_MAGIC)] != PACK_MAGIC or length > end or seal(memoryview(data)[:end]) != body_seal:
        raise IntegrityError(f"{what} is damaged")
    return decode_footer(data[end - length : end], f"the footer of {what}")


def is_consistent(content: PackContent) -> bool:
    """True if frames, digests and lengths of a pack fit one another; hostile bytes need not."""
    return (
        len(content.digests) == len(content.lengths) == sum(frame.chunks for frame in content.frames)
        and all(
            min(frame.stored, frame.raw, frame.chunks) >= 0 and max(frame.stored, frame.raw) <= LARGEST
            for frame in content.frames
        )
        and min(content.lengths, default=0) >= 0
        and max(content.lengths, default=0) <= LARGEST
    )


def locations(pack: bytes, content: PackContent) -> list[tuple[bytes, Location]]:
    """Every digest of a pack with its place, in order."""
    found: list[tuple[bytes, Location]] = []
    at = FIRST_FRAME
    index = 0
    for frame in content.frames:
        offset = 0
        for i in range(index, index + frame.chunks):
            length = content.lengths[i]
            place = Location(pack, at, frame.stored, frame.raw, offset, length, content.kind)
            found.append((content.digests[i], place))
            offset += length
        index += frame.chunks
        at += frame.stored
    return found
