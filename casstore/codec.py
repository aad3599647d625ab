"""Bytes ↔ stored bytes: compression now, sealing later. The only module that knows zstandard."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Protocol

import zstandard

from casstore import planes
from casstore.errors import IntegrityError, UnsupportedFormatError

Buffer = bytes | bytearray | memoryview

RAW = 0
ZSTD = 1
PLANES = 2
"""byte planes, each a zstd frame or as it is"""

MAX_RATIO = 32 * 1024
"""plaintext bytes a stored byte can stand for at most: a zstd block takes 4 bytes or more and gives 128 KiB or less"""
WINDOW_LIMIT = 8 * 1024 * 1024
"""larger windows in a frame header are refused: nothing casstore writes needs them"""

_PLANE_HEADS = {width: struct.Struct(f"<B3x{width}I") for width in planes.WIDTHS}
"""width, stored bytes of each plane"""

_LEAST = 4096
"""bytes that are worth a look before they are compressed"""
_WINDOWS = 8
"""a sample is taken at so many places"""
_LOOK = 8 * 1024
"""bytes of the sample whose entropy is looked at"""
_NOISE = 7.95
"""bits of entropy a byte from which on bytes are taken for compressed or random ones"""
_ORDER = 15 / 16
"""planes must have at most this part of the entropy of the bytes before they are tried"""
_TRIAL = 4 * 1024
"""bytes of each plane that are tried"""
_GAIN = 61 / 64
"""and take at most this part of what they take without planes"""


class Codec(Protocol):
    """Compresses and restores runs of bytes. Thread-safe."""

    def encode(self, parts: Sequence[Buffer]) -> tuple[int, bytes]:
        """Codec number and stored form of the concatenated parts."""
        ...

    def decode(self, codec: int, data: Buffer, length: int, what: str) -> bytes:
        """The plaintext, which must have ``length`` bytes. Raises `IntegrityError`."""
        ...

    def decode_start(self, codec: int, data: Buffer, length: int, upto: int, what: str) -> bytes:
        """The first ``upto`` bytes of the plaintext, or more; fewer if they cannot be had. Raises `IntegrityError`.

        Less work than `decode` where the codec allows it, and fewer checks: for who can tell the right bytes himself.
        """
        ...


class _Contexts(threading.local):
    """What zstandard needs one of for each thread."""

    def __init__(self, level: int) -> None:
        # Neither checksum nor dictionary id: the frame header has a checksum of ours.
        self.compress = zstandard.ZstdCompressor(level=level, write_checksum=False).compress
        self.decompress = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT).decompress
        self.start_of = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT).stream_reader
        # A plane has an order of its own in its bytes, but hardly repeats: what looks like a match is chance, and
        # costs more than the entropy coding it displaces. So a table too small to find much, and nothing below 7.
        entropy_only = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=18,
            hash_log=6,
            chain_log=6,
            search_log=1,
            min_match=7,
            target_length=0,
            write_checksum=False,
        )
        self.compress_plane = zstandard.ZstdCompressor(compression_params=entropy_only).compress
        # Finds repetitions of some length, and nothing else, at 8 GB/s where there are none.
        self.skim = zstandard.ZstdCompressor(level=-50, write_checksum=False).compress


class ZstdCodec:
    """zstd frames, or the bytes as they are when that saves less than one part in 64.

    With ``planes``, arrays of numbers are stored as byte planes where a look at a sample says that this is smaller.
    Without ``looks`` everything is compressed at once: for who knows that bytes repeat, which no sample tells.
    """

    def __init__(self, level: int = 3, *, planes: bool = False, looks: bool = True) -> None:
        self.level = level
        self.planes = planes
        self.looks = looks
        self._mine = _Contexts(level)

    def encode(self, parts: Sequence[Buffer]) -> tuple[int, bytes]:
        """See `Codec.encode`."""
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        most = len(plain) - (len(plain) >> 6)
        if self.looks and len(plain) >= _LEAST:
            width, is_noise = _look(memoryview(plain))
            if width and self.planes:
                planes_of_it = self._try_planes(memoryview(plain), width, most)
                if planes_of_it is not None:
                    return PLANES, planes_of_it
            if is_noise and len(self._mine.skim(plain)) > most:
                return RAW, bytes(plain)
        stored = self._mine.compress(plain)
        if len(stored) > most:
            return RAW, bytes(plain)
        return ZSTD, bytes(memoryview(stored))  # a copy: the compressor's result keeps the memory of the worst case

    def _try_planes(self, plain: memoryview, width: int, most: int) -> bytes | None:
        """The planes of some bytes, compressed; None if that is no gain."""
        mine = self._mine
        trial = _sample(plain, _TRIAL * width)
        if len(self._planes(trial, width)) > len(mine.compress(trial)) * _GAIN:
            return None
        stored = self._planes(plain, width)
        # Repetitions from afar are in no sample, and no plane finds them.
        if len(stored) > min(most, len(mine.skim(plain))):
            return None
        return stored

    def _planes(self, plain: Buffer, width: int) -> bytes:
        compress = self._mine.compress_plane
        pieces: list[Buffer] = [b""]
        with memoryview(planes.split(plain, width)) as split:
            at = 0
            for size in planes.sizes(len(plain), width):
                plane = split[at : at + size]
                at += size
                packed = compress(plane)
                pieces.append(packed if len(packed) < size - (size >> 6) else plane)
            pieces[0] = _PLANE_HEADS[width].pack(width, *map(len, pieces[1:]))
            return b"".join(pieces)

    def decode(self, codec: int, data: Buffer, length: int, what: str) -> bytes:
        """See `Codec.decode`. Checks every declared size before it allocates."""
        if codec == RAW:
            if len(data) != length:
                raise IntegrityError(f"{what} has {len(data)} bytes, not {length}")
            return bytes(data)
        if codec == ZSTD:
            _check_size(data, length, what)
            return self._decompress(data, length, what)
        if codec == PLANES:
            return self._from_planes(memoryview(data), length, what)
        raise UnsupportedFormatError(f"{what} uses codec {codec}", hint="upgrade casstore")

    def decode_start(self, codec: int, data: Buffer, length: int, upto: int, what: str) -> bytes:
        """See `Codec.decode_start`. A block of zstd (at most 128 KiB) is decoded whole."""
        if codec != ZSTD or length > WINDOW_LIMIT:
            # A stream needs its whole window, which may be larger than allowed; and a size that lies costs no more.
            return self.decode(codec, data, length, what)
        try:
            with self._mine.start_of(data, read_size=len(data)) as stream:
                start: bytes = stream.read(min(upto, length))
        except (zstandard.ZstdError, MemoryError) as error:
            raise IntegrityError(f"{what} cannot be decompressed: {error}") from None
        return start

    def _decompress(self, data: Buffer, length: int, what: str) -> bytes:
        try:
            plain: bytes = self._mine.decompress(data, max_output_size=length)
        except (zstandard.ZstdError, MemoryError) as error:
            raise IntegrityError(f"{what} cannot be decompressed: {error}") from None
        if len(plain) != length:
            raise IntegrityError(f"{what} has {len(plain)} bytes, not {length}")
        return plain

    def _from_planes(self, data: memoryview, length: int, what: str) -> bytes:
        head = _PLANE_HEADS.get(data[0]) if len(data) else None
        if head is None or len(data) < head.size:
            raise IntegrityError(f"{what} has no planes")
        width, *stored = head.unpack_from(data)
        if bytes(data[1:4]) != bytes(3) or head.size + sum(stored) != len(data):
            raise IntegrityError(f"{what} has planes of other sizes than it declares")
        sizes = planes.sizes(length, width)
        pieces: list[memoryview] = []
        at = head.size
        for size, part in zip(sizes, stored, strict=True):
            pieces.append(data[at : at + part])
            at += part
            if part > size:
                raise IntegrityError(f"{what} has a plane of more than its {size} bytes")
            if part < size:
                _check_size(pieces[-1], size, what)
        return planes.join(
            [
                piece if len(piece) == size else self._decompress(piece, size, what)
                for piece, size in zip(pieces, sizes, strict=True)
            ]
        )


def _check_size(data: Buffer, length: int, what: str) -> None:
    """Refuse a zstd frame that is not of so many bytes, or too short to hold them, before they are allocated."""
    try:
        # A frame may declare any size (zstandard #332): believe only the one the index has.
        if zstandard.frame_content_size(bytes(data[:18])) != length:
            raise IntegrityError(f"{what} declares another size than {length}")
    except zstandard.ZstdError as error:
        raise IntegrityError(f"{what} cannot be decompressed: {error}") from None
    # The size is allocated at once: it must be one that this many bytes can hold.
    if length > len(data) * MAX_RATIO:
        raise IntegrityError(f"{what} cannot hold the {length} bytes it declares")


def _sample(plain: memoryview, size: int) -> Buffer:
    """About so many bytes from all over some bytes, or nearly all of them: each window starts at a multiple of 8.

    From all over, because frames are mixed: a table in the middle of code says nothing of the code.
    """
    window = size // _WINDOWS
    step = (len(plain) - window) // (_WINDOWS - 1) & ~7
    if step <= window:
        return plain[: len(plain) & ~7][:size]
    return b"".join([plain[at : at + window] for at in range(0, step * _WINDOWS, step)])


def _look(plain: memoryview) -> tuple[int, bool]:
    """What some bytes seem to be: the width of the numbers that they are an array of, or 0; and if they are noise.

    By the entropy of samples, which costs a hundredth of compressing them. A larger width must be worth it: what has
    an order in 4 planes has it in 8, with smaller planes.
    """
    sample = _sample(plain, _LOOK)
    bits = planes.estimate(sample)
    costs = {8: sum(bits[:8]), 4: sum(bits[8:12]), 2: sum(bits[12:14])}
    width = min(costs, key=lambda width: costs[width] * (256 + width))
    return width if costs[width] < bits[14] * _ORDER else 0, bits[14] > len(sample) * _NOISE * planes.UNIT
