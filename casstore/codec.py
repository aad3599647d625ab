"""Bytes ↔ stored bytes: compression now, sealing later. The only module that knows zstandard."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

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

_OWN_LEVEL = 3
"""the level for which there are parameters of our own,"""
_OWN = range(128 * 1024 + 1, 384 * 1024 + 1)
"""for what has so many bytes: frames of the default size. zstd's own serve better for all else"""
_SMALL = 8 * 1024
"""parts that have fewer bytes on average are small files,"""
_LARGE = 24 * 1024
"""and those that have more are chunks of large files, of which a part may be read alone"""
_BLOCK = 48 * 1024
"""bytes of a block at least that ends where a part does"""
_SLICE = 8 * 1024
"""stored bytes that zstd is given at a time where only a start is wanted: it decodes every block that it has whole"""

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

    def encode(self, parts: Sequence[Buffer], plain: Buffer | None = None) -> tuple[int, Buffer]:
        """Codec number and stored form of the concatenated parts, which are ``plain`` if that is given."""
        ...

    def decode(self, codec: int, data: Buffer, length: int, what: str) -> bytes:
        """The plaintext, which must have ``length`` bytes. Raises `IntegrityError`."""
        ...

    def gives(self, codec: int, data: Buffer, plain: Buffer, what: str) -> bool:
        """Whether `decode` would give just these bytes. Raises `IntegrityError`."""
        ...

    def decode_into(self, codec: int, data: Buffer, target: memoryview, what: str) -> None:
        """As `decode`, into memory as long as the plaintext: what is there means nothing if it raises."""
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
        # 15 % less time than level 3 takes, for 1 % more bytes: tables of 192 KiB instead of 768 (0016).
        self.frame = _compressor(zstandard.STRATEGY_DFAST, hash_log=15, chain_log=14, min_match=5)
        # Small files cost most: 30 % less time for 3 to 6 % more bytes, of the 32 % that joining them saves.
        self.compress_small = _compressor(zstandard.STRATEGY_FAST, hash_log=14, chain_log=14, min_match=6).compress
        self.decompress = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT).decompress
        self.start_of = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT).stream_reader
        # A plane has an order of its own in its bytes, but hardly repeats: what looks like a match is chance, and
        # costs more than the entropy coding it displaces. So a table too small to find much, and nothing below 7.
        self.compress_plane = _compressor(
            zstandard.STRATEGY_FAST, window_log=18, hash_log=6, chain_log=6, min_match=7
        ).compress
        # Finds repetitions of some length, and nothing else, at 8 GB/s where there are none.
        self.skim = zstandard.ZstdCompressor(level=-50, write_checksum=False).compress
        # The same for a plane: what is of some length in the bytes is a fraction of it here.
        self.skim_plane = zstandard.ZstdCompressor(level=-12, write_checksum=False).compress


def _compressor(
    strategy: int, *, hash_log: int, chain_log: int, min_match: int, window_log: int = 19
) -> zstandard.ZstdCompressor:
    """What compresses with these parameters. ``chain_log`` is the table of the short matches of dfast."""
    params = zstandard.ZstdCompressionParameters(
        strategy=strategy,
        window_log=window_log,
        hash_log=hash_log,
        chain_log=chain_log,
        search_log=1,
        min_match=min_match,
        target_length=0,
        write_checksum=False,
    )
    return zstandard.ZstdCompressor(compression_params=params)


def _in_blocks(compressor: zstandard.ZstdCompressor, plain: Buffer, lengths: Iterable[int]) -> bytes:
    """A zstd frame of parts of these lengths, in blocks that end where one of them does; any reader of zstd reads it.

    So less is decoded for one of the parts: the blocks that zstd makes by itself are of 128 KiB.
    """
    view = memoryview(plain)
    stream = compressor.compressobj(size=len(view))
    out: list[bytes] = []
    begin = end = 0
    for length in lengths:
        end += length
        if end - begin >= _BLOCK and len(view) - end >= _BLOCK // 2:
            out += (stream.compress(view[begin:end]), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            begin = end
    out += (stream.compress(view[begin:]), stream.flush())
    return b"".join(out)


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

    def encode(self, parts: Sequence[Buffer], plain: Buffer | None = None) -> tuple[int, Buffer]:
        """See `Codec.encode`."""
        if plain is None:
            plain = parts[0] if len(parts) == 1 else b"".join(parts)
        most = len(plain) - (len(plain) >> 6)
        if self.looks and len(plain) >= _LEAST:
            look = _look(memoryview(plain))
            if look.width and self.planes:
                planes_of_it = self._try_planes(memoryview(plain), look, most)
                if planes_of_it is not None:
                    return PLANES, planes_of_it
            if look.is_noise and len(self._mine.skim(plain)) > most:
                return RAW, bytes(plain)
        stored = self._compress(plain, parts)
        if len(stored) > most:
            return RAW, bytes(plain)
        return ZSTD, bytes(memoryview(stored))  # a copy: the compressor's result keeps the memory of the worst case

    def _compress(self, plain: Buffer, parts: Sequence[Buffer]) -> bytes:
        """A zstd frame of what had these parts."""
        mine = self._mine
        compress: Callable[[Buffer], bytes] = mine.compress
        if self.level == _OWN_LEVEL and len(plain) in _OWN:
            if len(plain) >= len(parts) * _LARGE:
                return _in_blocks(mine.frame, plain, map(len, parts))
            compress = mine.compress_small if len(plain) < len(parts) * _SMALL else mine.frame.compress
        return compress(plain)

    def _try_planes(self, plain: memoryview, look: _Look, most: int) -> bytearray | None:
        """The planes of some bytes, compressed; None if that is no gain."""
        mine = self._mine
        # Where one byte of each number is noise there are no matches for zstd but repetitions from afar, and then all
        # that it could use is the entropy that was looked at.
        if not any(look.noise):
            trial = _sample(plain, _TRIAL * look.width)
            if len(self._planes(trial, look)) > len(mine.compress(trial)) * _GAIN:
                return None
        stored = self._planes(plain, look)
        if len(stored) > most or (self._repeats(stored, look) and len(stored) > len(mine.skim(plain))):
            return None
        return stored

    def _repeats(self, stored: bytearray, look: _Look) -> bool:
        """Whether there may be repetitions from afar, which are in no sample, and no plane finds them.

        What repeats does so in a plane of noise as well, which is a fraction of all.
        """
        width, *lengths = _PLANE_HEADS[look.width].unpack_from(stored)
        if not any(look.noise):
            return True
        number = look.noise.index(True)
        at = _PLANE_HEADS[width].size + sum(lengths[:number])
        with memoryview(stored) as view, view[at : at + lengths[number]] as plane:
            return len(self._mine.skim_plane(plane)) < len(plane) - (len(plane) >> 6)

    def _planes(self, plain: Buffer, look: _Look) -> bytearray:
        compress = self._mine.compress_plane
        head = _PLANE_HEADS[look.width]
        lengths: list[int] = []
        # They are split to where they are stored, and only what is compressed, and what is behind that, moves.
        stored = planes.split(plain, look.width, head.size)
        with memoryview(stored) as view:
            at = end = head.size
            for size, is_noise in zip(planes.sizes(len(plain), look.width), look.noise, strict=True):
                with view[at : at + size] as plane:
                    packed = plane if is_noise else compress(plane)
                    kept = packed if len(packed) < size - (size >> 6) else plane
                    if kept is not plane or at != end:
                        view[end : end + len(kept)] = kept
                    lengths.append(len(kept))
                at += size
                end += lengths[-1]
        del stored[end:]
        head.pack_into(stored, 0, look.width, *lengths)
        return stored

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
            return planes.join(self._planes_in(memoryview(data), length, what))
        raise UnsupportedFormatError(f"{what} uses codec {codec}", hint="upgrade casstore")

    def gives(self, codec: int, data: Buffer, plain: Buffer, what: str) -> bool:
        """See `Codec.gives`."""
        if codec == PLANES:
            return planes.matches(self._planes_in(memoryview(data), len(plain), what), plain)
        decoded = self.decode(codec, data, len(plain), what)
        # Not `==`: a memoryview compares item by item, 300 times slower than this and holding the GIL.
        return len(decoded) == len(plain) and decoded.startswith(plain)

    def decode_into(self, codec: int, data: Buffer, target: memoryview, what: str) -> None:
        """See `Codec.decode_into`."""
        length = len(target)
        if codec == PLANES:
            planes.join_into(self._planes_in(memoryview(data), length, what), target)
        elif codec != ZSTD or length > WINDOW_LIMIT:
            target[:] = self.decode(codec, data, length, what)
        else:
            _check_size(data, length, what)
            try:
                # All of a frame into room for all of it: nothing is copied on the way.
                with self._mine.start_of(data, read_size=len(data)) as stream:
                    done: int = stream.readinto(target)
            except (zstandard.ZstdError, MemoryError) as error:
                raise IntegrityError(f"{what} cannot be decompressed: {error}") from None
            if done != length:
                raise IntegrityError(f"{what} has {done} bytes, not {length}")

    def decode_start(self, codec: int, data: Buffer, length: int, upto: int, what: str) -> bytes:
        """See `Codec.decode_start`. A block of zstd (at most 128 KiB) is decoded whole; none that is not needed is."""
        if codec != ZSTD or length > WINDOW_LIMIT:
            # A stream needs its whole window, which may be larger than allowed; and a size that lies costs no more.
            return self.decode(codec, data, length, what)
        try:
            with self._mine.start_of(io.BytesIO(data), read_size=_SLICE) as stream:
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

    def _planes_in(self, data: memoryview, length: int, what: str) -> list[Buffer]:
        """The planes of some bytes out of their stored form."""
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
        return [
            piece if len(piece) == size else self._decompress(piece, size, what)
            for piece, size in zip(pieces, sizes, strict=True)
        ]


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


class _Look(NamedTuple):
    """What some bytes seem to be."""

    width: int
    """of the numbers that they are an array of, or 0"""
    noise: tuple[bool, ...]
    """which planes of that width are"""
    is_noise: bool
    """all of it is"""


def _look(plain: memoryview) -> _Look:
    """What some bytes seem to be.

    By the entropy of samples, which costs a hundredth of compressing them. A larger width must be worth it: what has
    an order in 4 planes has it in 8, with smaller planes.
    """
    sample = _sample(plain, _LOOK)
    bits = planes.estimate(sample)
    of = {8: bits[:8], 4: bits[8:12], 2: bits[12:14]}
    costs = {width: sum(of[width]) for width in of}
    width = min(costs, key=lambda width: costs[width] * (256 + width))
    most = len(sample) * _NOISE * planes.UNIT
    if costs[width] >= bits[14] * _ORDER:
        return _Look(0, (), bits[14] > most)
    return _Look(width, tuple([cost * width > most for cost in of[width]]), bits[14] > most)
