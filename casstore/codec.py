"""Bytes ↔ stored bytes: compression now, sealing later. The only module that knows zstandard."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import zstandard

from casstore.errors import IntegrityError, UnsupportedFormatError

Buffer = bytes | bytearray | memoryview

RAW = 0
ZSTD = 1

MAX_RATIO = 32 * 1024
"""plaintext bytes a stored byte can stand for at most: a zstd block takes 4 bytes or more and gives 128 KiB or less"""
WINDOW_LIMIT = 8 * 1024 * 1024
"""larger windows in a frame header are refused: nothing casstore writes needs them"""


class Codec(Protocol):
    """Compresses and restores runs of bytes. Thread-safe."""

    def encode(self, parts: Sequence[Buffer]) -> tuple[int, bytes]:
        """Codec number and stored form of the concatenated parts."""
        ...

    def decode(self, codec: int, data: Buffer, length: int, what: str) -> bytes:
        """The plaintext, which must have ``length`` bytes. Raises `IntegrityError`."""
        ...


class ZstdCodec:
    """zstd frames, or the bytes as they are when that saves less than one part in 64."""

    def __init__(self, level: int = 3) -> None:
        self.level = level
        self._local = threading.local()

    def encode(self, parts: Sequence[Buffer]) -> tuple[int, bytes]:
        """See `Codec.encode`. Uses one context a thread, which zstandard needs."""
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            # Neither checksum nor dictionary id: the frame header has a checksum of ours.
            compressor = zstandard.ZstdCompressor(level=self.level, write_checksum=False, write_content_size=True)
            self._local.compressor = compressor
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        stored: bytes = compressor.compress(plain)
        if len(stored) > len(plain) - (len(plain) >> 6):
            return RAW, bytes(plain)
        return ZSTD, stored

    def decode(self, codec: int, data: Buffer, length: int, what: str) -> bytes:
        """See `Codec.decode`. Checks the declared size before it allocates."""
        if codec == RAW:
            if len(data) != length:
                raise IntegrityError(f"{what} has {len(data)} bytes, not {length}")
            return bytes(data)
        if codec != ZSTD:
            raise UnsupportedFormatError(f"{what} uses codec {codec}", hint="upgrade casstore")
        decompressor = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT)
            self._local.decompressor = decompressor
        try:
            # A frame may declare any size (zstandard #332): believe only the one the index has.
            if zstandard.frame_content_size(bytes(data[:18])) != length:
                raise IntegrityError(f"{what} declares another size than {length}")
            # The size is allocated at once: it must be one that this many bytes can hold.
            if length > len(data) * MAX_RATIO:
                raise IntegrityError(f"{what} cannot hold the {length} bytes it declares")
            plain: bytes = decompressor.decompress(data, max_output_size=length)
        except (zstandard.ZstdError, MemoryError) as error:
            raise IntegrityError(f"{what} cannot be decompressed: {error}") from None
        if len(plain) != length:
            raise IntegrityError(f"{what} has {len(plain)} bytes, not {length}")
        return plain
