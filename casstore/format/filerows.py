"""What the view remembers of local files ↔ bytes. Disposable, of one host, and no part of the state."""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from typing import NamedTuple, Self

from casstore.digest import checksum64, hash_function

FILES = "files"
"""the table"""

_SEAL = struct.Struct("<Q")
_HEAD = struct.Struct("<I16sBH")
"""day of the last use; mark of the stamp; bytes of a digest, number of chunks"""
_FIRST = _SEAL.size + _HEAD.size
_LENGTH = struct.Struct("<I")
_ONE = struct.Struct("<I16sBH32sI")
"""a head, and the one chunk of a file"""
_STAMP = struct.Struct("<qqqQQ")
_TIMES = 2**63
_KEY = struct.Struct(">QQ")
_mark_of = hash_function("xxh3-128")
_TREE = 0xFFFF
"""instead of the number of chunks: the root of a chunk list follows"""


def in_range(time_ns: int) -> int:
    """A time of a file, or the first or the last that a stamp can hold (1677, 2262); the clock is never there."""
    return time_ns if -_TIMES <= time_ns < _TIMES else _TIMES - 1 if time_ns > 0 else -_TIMES


class Stamp(NamedTuple):
    """What the file system says of a file, as far as it tells that the content is another. Times in ns."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, info: os.stat_result) -> Self:
        """The stamp in a stat result."""
        return cls(info.st_size, in_range(info.st_mtime_ns), in_range(info.st_ctime_ns), info.st_ino, info.st_dev)

    @property
    def mark(self) -> bytes:
        """128 bits that another stamp does not have: only equality is ever asked, and a row is to be small."""
        return _mark_of(_STAMP.pack(*self))


class FileRow(NamedTuple):
    """The content a file had while it had a stamp."""

    mark: bytes
    """that of the stamp"""
    used: int
    """day (since the epoch) on which it was of use last, or some days before"""
    chunks: tuple[tuple[bytes, int], ...] = ()
    tree: bytes | None = None


def file_key(path: bytes) -> bytes:
    """Where the row of a path is; rows of one directory are neighbours. Two paths may have one key."""
    directory, _, name = path.rpartition(b"/")
    return _KEY.pack(_of_directory(directory), checksum64(name))


@lru_cache(maxsize=64)
def _of_directory(path: bytes) -> int:
    return checksum64(path)


def encode_file(path: bytes, row: FileRow) -> bytes:
    """A row."""
    chunks = row.chunks
    if len(chunks) == 1 and len(chunks[0][0]) == 32:  # as most are
        body = _ONE.pack(row.used, row.mark, 32, 1, *chunks[0])
        return _seal(path, body) + body
    width = len(row.tree or (row.chunks[0][0] if row.chunks else b""))
    count = len(row.chunks) if row.tree is None else _TREE
    head = _HEAD.pack(row.used, row.mark, width, count)
    tail = row.tree or b"".join([digest + _LENGTH.pack(length) for digest, length in row.chunks])
    return _seal(path, head + tail) + head + tail


def decode_file(path: bytes, data: bytes) -> FileRow | None:
    """The row of just this path; None if it is damaged or that of another."""
    body = data[_SEAL.size :]
    if len(body) < _HEAD.size or data[: _SEAL.size] != _seal(path, body):
        return None
    used, mark, width, count = _HEAD.unpack_from(body)
    if count == _TREE:
        return FileRow(mark, used, tree=body[_HEAD.size :])
    step = width + _LENGTH.size
    if len(body) != _HEAD.size + step * count:
        return None
    places = range(_HEAD.size, _HEAD.size + step * count, step)
    chunks = tuple((body[at : at + width], _LENGTH.unpack_from(body, at + width)[0]) for at in places)
    return FileRow(mark, used, chunks)


def first_digest(data: bytes) -> bytes:
    """The first, or only, digest a row says a file consists of; empty without any, nonsense if it is damaged."""
    return data[_FIRST : _FIRST + data[_FIRST - 3]] if len(data) > _FIRST else b""


def last_use(data: bytes) -> int:
    """The day of the last use of a row, which may be damaged: then nonsense."""
    return int.from_bytes(data[_SEAL.size : _SEAL.size + 4], "little")


def _seal(path: bytes, body: bytes) -> bytes:
    return _SEAL.pack(checksum64(path + b"\0" + body))
