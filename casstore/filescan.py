"""Many local files looked up or read in one call: what they are now, and what the stat cache says of them.

The C extension is optional; Python alone finds the same (`casstore.sources.Scan` has the other half of it).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from casstore.format.filerows import FileRow, Stamp, decode_file, encode_file, file_key, last_use
from casstore.model import Entry, EntryKind
from casstore.native import extension
from casstore.sources import ENTRY, LOCAL_FILE, SIGNATURE, LocalFile, Signature, encoded

_native: Any = extension("_scan")


class Looked(NamedTuple):
    """What some files are now: three lists, a place for each file."""

    paths: list[bytes]
    keys: list[bytes]
    """where the stat cache has their rows"""
    marks: list[bytes | None]
    """those of their stamps; None for a file that is not what it was when it was added"""


def look_up(files: Sequence[LocalFile]) -> Looked:
    """Look at files that were added. The GIL is released."""
    if _native is not None:
        return Looked(*_native.look_up(files, LOCAL_FILE, SIGNATURE))
    paths = [encoded(file.path) for file in files]
    return Looked(paths, [file_key(path) for path in paths], [_mark(file) for file in files])


def read_unchanged(files: Sequence[LocalFile], before_ns: int, buffer: bytearray) -> Looked:
    """All bytes of files that are what they were when they were added, and what `look_up` finds. The GIL is released.

    No mark for all others: files that were changed after a moment (by the clock of their times) or while they were
    read, that are not what they were, or that cannot be read. The bytes are in the buffer, which must have room for all
    files: one after another, with a gap of undefined content for each of the others. Python alone reads nothing.
    """
    if _native is not None:
        return Looked(*_native.read_files(files, LOCAL_FILE, SIGNATURE, before_ns, buffer))
    paths = [encoded(file.path) for file in files]
    return Looked(paths, [file_key(path) for path in paths], [None] * len(files))


def _mark(file: LocalFile) -> bytes | None:
    try:
        info = os.stat(file.path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(info.st_mode) or Signature.of(info) != file.signature:
        return None
    return Stamp.of(info).mark


def decode_rows(paths: list[bytes], marks: list[bytes | None], rows: list[bytes | None]) -> list[FileRow | None]:
    """What rows say of just these paths, as far as they are sound and have these marks; all lists of one length."""
    if _native is not None:
        found: list[FileRow | None] = _native.decode_rows(FileRow, paths, marks, rows)
        return found
    return [_decoded(*one) for one in zip(paths, marks, rows, strict=True)]


def _decoded(path: bytes, mark: bytes | None, data: bytes | None) -> FileRow | None:
    row = None if data is None or mark is None else decode_file(path, data)
    return row if row is not None and row.mark == mark else None


def encode_rows(
    paths: list[bytes], rows: list[FileRow], day: int, old: list[bytes | None], stale: int
) -> list[bytes | None]:
    """The rows of paths, used on a day; None where there is nothing to write. All lists are of one length.

    That is where what is there (``old``) says the same, and that it was of use after ``stale``, and not after the day.
    """
    if _native is not None:
        encoded_rows: list[bytes | None] = _native.encode_rows(paths, rows, day, old, stale)
        return encoded_rows
    return [_encoded(*one, day, stale) for one in zip(paths, rows, old, strict=True)]


def _encoded(path: bytes, row: FileRow, old: bytes | None, day: int, stale: int) -> bytes | None:
    if old is not None:
        then = last_use(old)
        if stale < then <= day and encode_file(path, row._replace(used=then)) == old:
            return None
    return encode_file(path, row._replace(used=day))


def file_rows(
    marks: list[bytes], digests: list[bytes], starts: list[int], ends: list[int], counts: list[int]
) -> list[FileRow]:
    """Rows, of no day, of files that have these marks and consist of so many pieces each, one after another."""
    if _native is not None:
        made: list[FileRow] = _native.file_rows(FileRow, marks, digests, starts, ends, counts)
        return made
    pieces = zip(digests, starts, ends, strict=True)
    return [
        FileRow(mark, 0, tuple([(digest, end - start) for digest, start, end in islice(pieces, count)]))
        for mark, count in zip(marks, counts, strict=True)
    ]


def file_entries(files: list[tuple[str, LocalFile]], rows: list[FileRow | None]) -> dict[str, Entry]:
    """The entries of those files whose content a row tells, by path; both lists of one length."""
    if _native is not None:
        found: dict[str, Entry] = _native.file_entries(ENTRY, EntryKind.FILE, LOCAL_FILE, SIGNATURE, files, rows)
        return found
    return {
        path: Entry(
            path, EntryKind.FILE, file.signature.size, row.chunks, row.tree, file.mode, attrs_json=file.attrs_json
        )
        for (path, file), row in zip(files, rows, strict=True)
        if row is not None
    }
