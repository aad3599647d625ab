"""Many chunks ↔ one self-describing object. Pure: no I/O.

Chunks are gathered into *frames* that are compressed together, so that deduplication can be fine and
compression still coarse; frames are gathered into a pack.
"""

from __future__ import annotations

from collections.abc import Sequence

from casstore.codec import Codec
from casstore.digest import Buffer, Sealer
from casstore.errors import DigestMismatchError, IntegrityError, UnsupportedFormatError
from casstore.format.packs import (
    FIRST_FRAME,
    PACK_MAGIC,
    TRAILER_SIZE,
    Footer,
    VersionNote,
    encode_end,
    encode_footer,
    frame_header,
    parse_frame,
    split_frame,
)
from casstore.model import AddPack, ChunkKind, FrameInfo, Location, PackContent
from casstore.values import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """An encoded frame: header and payload, in any number of parts, and what it holds."""

    parts: tuple[Buffer, ...]
    raw: int
    digests: tuple[bytes, ...]
    lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(map(len, self.parts))

    @property
    def stored(self) -> bytes:
        """All parts in one; this copies them."""
        return b"".join(self.parts)


def encode_frame(codec: Codec, chunks: Sequence[tuple[bytes, Buffer]], plain: Buffer | None = None) -> Frame:
    """Compress consecutive chunks into one frame, and prove that it gives them back.

    ``plain``: the memory that all of them are in, one behind the other, and nothing else; it may be used for something
    else after the call.

    The stored form is decoded and compared before anyone may rely on it: a flipped bit in memory or a bug in
    the compressor must not become a durable lie (restic #4529). Thread-safe.
    """
    parts = [data for _, data in chunks]
    lengths = tuple(len(part) for part in parts)
    raw = sum(lengths)
    if plain is None:
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        sound = len(parts) == 1 or _is_join(plain, parts)
    else:
        sound = len(plain) == raw
    number, payload = codec.encode(parts, plain)
    if not sound or not codec.gives(number, payload, plain, "a new frame"):
        raise IntegrityError("a frame did not decode to what was encoded", hint="check this machine's memory")
    header = frame_header(number, raw, payload)
    return Frame((header, payload), raw, tuple(digest for digest, _ in chunks), lengths)


def _is_join(plain: Buffer, parts: Sequence[Buffer]) -> bool:
    assert isinstance(plain, bytes)
    at = 0
    for part in parts:
        # Not `!=`: a memoryview compares item by item, 300 times slower than this and holding the GIL.
        if not plain.startswith(part, at):
            return False
        at += len(part)
    return at == len(plain)


def decode_frame(codec: Codec, data: Buffer, raw: int, what: str) -> bytes:
    """The plaintext of a stored frame. Raises `IntegrityError`."""
    number, payload = parse_frame(data, raw, what)
    try:
        return codec.decode(number, payload, raw, what)
    except UnsupportedFormatError as error:
        # The log announces what a reader must know; so this is a flipped bit, which must not hide other chunks.
        raise IntegrityError(f"{error.message}: it is damaged", hint="casstore fsck --read-data --repair") from None


def decode_frame_into(codec: Codec, data: Buffer, target: memoryview, what: str) -> None:
    """As `decode_frame`, into memory as long as the plaintext: what is there means nothing if it raises."""
    number, payload = parse_frame(data, len(target), what)
    try:
        codec.decode_into(number, payload, target, what)
    except UnsupportedFormatError as error:
        raise IntegrityError(f"{error.message}: it is damaged", hint="casstore fsck --read-data --repair") from None


def decode_frame_start(codec: Codec, data: Buffer, raw: int, upto: int, what: str) -> bytes:
    """The first ``upto`` bytes, or more, of the plaintext of a stored frame, or as many as come out of it.

    For chunks whose digests are checked after: nothing here says that it is whole. Raises `IntegrityError`.
    """
    number, payload = split_frame(data, what)
    try:
        return codec.decode_start(number, payload, raw, upto, what)
    except UnsupportedFormatError as error:
        raise IntegrityError(f"{error.message}: it is damaged", hint="casstore fsck --read-data --repair") from None


def check_chunk(hash_bytes: object, digest: bytes, data: Buffer, what: str) -> None:
    """Raise `DigestMismatchError` unless the bytes have the digest."""
    assert callable(hash_bytes)
    if hash_bytes(data) != digest:
        raise DigestMismatchError(f"{what} does not have the digest {digest.hex()}", digest=digest.hex())


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A pack ready to be published, and the record that makes it live."""

    record: AddPack
    body: tuple[Buffer, ...]
    """all before the seal that was not taken from its writer"""

    def data(self, sealer: Sealer | None = None) -> tuple[Buffer, ...]:
        """The bytes of the pack, with the seal over them: costs a BLAKE3 of it all.

        ``sealer``: has seen those that were taken from its writer before (`PackWriter.take`).
        """
        sealer = Sealer() if sealer is None else sealer
        for part in self.body:
            sealer.update(part)
        return (*self.body, encode_end(sealer.seal(), self.body[-1]))


class PackWriter:
    """Collects the frames of one pack. Not thread-safe."""

    def __init__(self, kind: ChunkKind) -> None:
        self.kind = kind
        self.size = FIRST_FRAME
        self.waiting = FIRST_FRAME
        """bytes of it that were not taken"""
        self._parts: list[Buffer] = [PACK_MAGIC]
        self._frames: list[FrameInfo] = []
        self._digests: list[bytes] = []
        self._lengths: list[int] = []
        self._children: list[int] = []

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, frame: Frame, children: Sequence[int] = ()) -> None:
        """Append a frame; for nodes, the number of children of each."""
        size = frame.size
        self._parts.extend(frame.parts)
        self.size += size
        self.waiting += size
        self._frames.append(FrameInfo(size, frame.raw, len(frame.digests)))
        self._digests.extend(frame.digests)
        self._lengths.extend(frame.lengths)
        self._children.extend(children)

    def take(self) -> list[Buffer]:
        """The next bytes of the pack, from where the last call ended; they are not in its `SealedPack` then."""
        parts, self._parts, self.waiting = self._parts, [], 0
        return parts

    def finish(self, pack: bytes, versions: Sequence[VersionNote] = ()) -> SealedPack:
        """Close the pack under a name that was never used before."""
        content = PackContent(self.kind, tuple(self._frames), tuple(self._digests), tuple(self._lengths))
        footer = encode_footer(Footer(content, tuple(self._children), tuple(versions)))
        return SealedPack(AddPack(pack, self.size + len(footer) + TRAILER_SIZE, content), (*self._parts, footer))


def slice_chunk(plain: bytes, place: Location) -> bytes:
    """The bytes of one chunk out of its frame."""
    return plain[place.offset : place.offset + place.length]
