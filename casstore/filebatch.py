"""Many small local files in one call: each costs its system calls, and little else.

The C extension is optional, and takes only the plain case; what it leaves is done one by one, with the errors and the
care that `casstore.reading` and `casstore.checkout.writing` have for each.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from casstore.digest import Buffer
from casstore.format.filerows import Stamp
from casstore.native import extension
from casstore.sources import LocalFile, Signature, encoded

_native: Any = extension("_files")

_UTF8 = sys.getfilesystemencoding() == "utf-8"

_File = tuple[bytes, int, int, int, int]

NewFile = tuple[str, int, tuple[Buffer, ...]]
"""path below a directory, permission bits (-1: what the umask leaves), all bytes"""


def stamps(files: Sequence[LocalFile]) -> list[Stamp | None]:
    """The stamps of files that are what they were when they were added; None for others. The GIL is released."""
    if _native is None:
        return [_stamp(file) for file in files]
    wanted = _wanted(files)
    ctimes: list[int] = _native.stat_files(wanted)
    return [
        None if ctime < 0 else Stamp(size, mtime, ctime, inode, device)
        for (_, size, mtime, inode, device), ctime in zip(wanted, ctimes, strict=True)
    ]


def _stamp(file: LocalFile) -> Stamp | None:
    try:
        info = os.stat(file.path)
    except (OSError, ValueError):
        return None
    return Stamp.of(info) if stat.S_ISREG(info.st_mode) and Signature.of(info) == file.signature else None


def read_unchanged(files: Sequence[LocalFile], before_ns: int, buffer: bytearray) -> list[Stamp | None]:
    """All bytes of files that are what they were when they were added, and their stamps. The GIL is released.

    None for all others: files that were changed after a moment (by the clock of their times), that are not what they
    were, or that cannot be read. The bytes are in the buffer, which must have room for all files: one after another,
    with a gap of undefined content for each of the others.
    """
    if _native is None:
        return [None] * len(files)
    wanted = _wanted(files)
    ctimes: list[int] = _native.read_files(wanted, before_ns, buffer)
    return [
        None if ctime < 0 else Stamp(size, mtime, ctime, inode, device)
        for (_, size, mtime, inode, device), ctime in zip(wanted, ctimes, strict=True)
    ]


def write_new(directory: int, prefix: str, suffix: str, files: Sequence[NewFile]) -> int:
    """Write whole files below an open directory, in order; how many, till one that cannot be. The GIL is released.

    Directories are made, no link is followed. A file gets its name, for which it replaces another, when all of it is
    written; its name until then is ``prefix``, something and ``suffix``, in the same directory, and nobody else may
    use such names. Nothing is left of one that could not be written, and nothing behind it is tried. Not synced.
    """
    if _native is None or not _UTF8:
        return 0
    done: int = _native.write_files(directory, prefix, suffix, files)
    return done


def _wanted(files: Iterable[LocalFile]) -> list[_File]:
    return [
        (encoded(file.path), seen.size, seen.mtime_ns, seen.inode, seen.device)
        for file, seen in [(file, file.signature) for file in files]
    ]
