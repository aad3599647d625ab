"""The stat cache: what the files were that earlier logs on this host have read, so that they are not read again.

A file is remembered by its path with a `Stamp` (size, mtime, ctime, inode, device) and the chunks its content was cut
into. While its stamp is the same and the store has those chunks, it is not opened. When that may be believed:

- Only file systems of this machine are believed whose kernel driver sets ctime at every change of content, and lets
  nobody set it back (`KEEPS_CTIME`). On all others files are read every time: network ones may show old attributes or
  make times up, read-only images have the ctime they were built with, FAT has none, tmpfs does not notice a store
  through mmap.
- A file is remembered if nobody had it open for writing, nor mapped, when its reading began, and its ctime is from an
  earlier tick of the kernel's clock (`Runtime.quiet`, by a lease: only Linux, own files, times finer than a second):
  every write begins with an opening, so it gets a later ctime.
- Where that cannot be told, files are remembered whose mtime and ctime were at least `MARGIN_NS` old *when their
  reading began*, by this machine's clock, which is what such a file system takes its times from. Whatever is written
  from then on gets a ctime above that, also if stamps are cut to 2 s (the kernel's clock is up to a tick behind): so
  neither an edit in the same tick as the recording nor one during the reading can leave the stamp as it is. That is
  stricter than git, which compares with the time of its index and looks at the content of what is not older.
- A row is for one path and one stamp; a damaged row, or that of another path, is none (a checksum over both).
- A row is a hint: its chunks become claims, which are looked up now and again at the commit, as any duplicate's are.

What is not noticed in the second case: stores through a shared, writable mmap to a page that was dirty already (the
kernel gives a file a new ctime at the first store to a clean page, not at each; git's own text on the matter is silent
about it); a single ``write`` still copying, over bytes that were there, `MARGIN_NS` after it began. In either: what
bypasses the file system (a device, a clock set to the very nanosecond, a power cut with ``lazytime``). For those there
is ``trust_mtime=False``.

A row is in the view's storage, not in the log: losing it costs a reading.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from casstore import filescan
from casstore.config import Runtime
from casstore.errors import CasstoreError
from casstore.format.filerows import FILES, FileRow, Stamp, file_key, first_digest, last_use
from casstore.model import Entry
from casstore.overlay import Tables
from casstore.sources import LocalFile, encoded
from casstore.state import CHUNK
from casstore.view import View

T = TypeVar("T")

MARGIN_NS = 3_000_000_000
KEEPS_CTIME = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "overlay", "reiserfs", "xfs", "zfs"}
)
ROWS = 2_000_000
"""files that are remembered at most"""
BATCH_ROWS = 4096
"""rows a transaction writes: nobody waits for longer"""
FEW = 50
"""a pass over the rows should find one that goes in so many"""
STALE_DAYS = 7
"""a row that is of use is written again when its last use was that long ago"""
_OLDEST = b"oldest"
"""where the day is written that was the oldest after rows had been dropped; no key of a row is as short"""
_DAY_MICROS = 86_400_000_000


class Watch:
    """One reading of one file, from before it is opened: tells whether every change since leaves another stamp."""

    def __init__(self, runtime: Runtime) -> None:
        self._quiet = runtime.quiet
        self._opened = runtime.file_clock()
        self._since: int | None = None

    def begin(self, fd: int) -> None:
        """The file is open, and nothing of it was read yet."""
        if not self._is_old(Stamp.of(os.fstat(fd))):
            self._since = self._quiet(fd)

    def settled(self, info: os.stat_result) -> Stamp | None:
        """The stamp, from after the reading, if it can be relied on."""
        stamp = Stamp.of(info)
        # A file system that cuts its times to seconds is told by what it leaves out.
        fine = stamp.ctime_ns % 1_000_000_000 != 0
        untouched = self._since is not None and fine and stamp.ctime_ns < self._since
        return stamp if untouched or self._is_old(stamp) else None

    def _is_old(self, stamp: Stamp) -> bool:
        return max(stamp.mtime_ns, stamp.ctime_ns) <= settled_before(self._opened)


def settled_before(now_micros: int) -> int:
    """The moment (ns) until which a file must have been left alone to be remembered; ``now`` by the files' clock."""
    return now_micros * 1000 - MARGIN_NS


def _rows_at(tables: Tables, keys: Sequence[bytes]) -> list[bytes | None]:
    return tables.get_many(FILES, keys)


class StatCache:
    """What one log asks and tells. Not thread-safe. It never raises: what goes wrong makes files be read."""

    def __init__(self, view: View, runtime: Runtime, *, rows: int = ROWS, batch: int = BATCH_ROWS) -> None:
        self._view = view
        self._file_system = runtime.file_system
        self._rows = rows
        self._batch = batch
        self._today = max(0, runtime.file_clock() // _DAY_MICROS)
        self._devices: dict[int, bool] = {}
        self._pending: dict[bytes, tuple[bytes, FileRow]] = {}
        """paths and rows, by key"""
        self._off = False
        self._count: int | None = None
        self._blank: bool | None = None
        """whether nothing was remembered when the first files were asked for: then nothing is of those to come"""

    def find(self, sources: Sequence[LocalFile]) -> list[FileRow | None]:
        """What is remembered of files that are what they were when they were added; None for those to be read."""
        if self._blank is None:
            self._blank = bool(sources) and not self._size()
        if self._blank or self._off or not sources:
            return [None] * len(sources)
        devices = {source.signature.device: source.path for source in sources}
        believed = {device for device, path in devices.items() if self._keeps_ctime(device, path)}
        if not believed or not any(source.trusted for source in sources):
            return [None] * len(sources)
        paths, keys, marks = filescan.look_up(sources)
        if len(believed) < len(devices) or not all(source.trusted for source in sources):
            for at, source in enumerate(sources):
                if not source.trusted or source.signature.device not in believed:
                    marks[at] = None
        rows = self._look(lambda tables: _rows_at(tables, keys))
        if rows is None:
            return [None] * len(sources)
        found = filescan.decode_rows(paths, marks, rows)
        stale = self._today - STALE_DAYS
        for path, row in zip(paths, found, strict=True):
            if row is not None and row.used <= stale:
                self._pending[file_key(path)] = path, row
        self._flush_many()
        return found

    def learn(self, source: LocalFile, stamp: Stamp | None, entry: Entry) -> None:
        """Remember the content of a file that was read, unless that is None: it was not settled (`Watch`)."""
        if stamp is not None:
            path = encoded(source.path)
            self.learn_all([source], [path], [file_key(path)], [FileRow(stamp.mark, 0, entry.chunks, entry.tree)])

    def learn_all(
        self, sources: Sequence[LocalFile], paths: Sequence[bytes], keys: Sequence[bytes], rows: Sequence[FileRow]
    ) -> None:
        """`learn` of many, with what `casstore.filescan` found of them; one that was not settled has an empty mark."""
        if self._off:
            return
        devices = {source.signature.device: source.path for source in sources}
        believed = {device for device, path in devices.items() if self._keeps_ctime(device, path)}
        learned = zip(keys, zip(paths, rows, strict=True), strict=True)
        if len(believed) == len(devices) and b"" not in {row[0] for row in rows}:  # as mostly
            self._pending.update(learned)
        else:
            for source, (key, (path, row)) in zip(sources, learned, strict=True):
                if row.mark and source.signature.device in believed:
                    self._pending[key] = path, row
        self._flush_many()

    def flush(self) -> None:
        """Write what was learned and is not there, in one transaction. Not inside a read of the view."""
        pending, self._pending = self._pending, {}
        if not pending or self._off:
            return
        batch = self._changed(pending)
        if not batch:
            return
        if self._size() + len(batch) > self._rows:
            self._trim()

        def body(tables: Tables) -> int:
            room = self._rows - tables.count(FILES)
            kept: dict[bytes, bytes | None] = {}
            for key, row in batch.items():
                if room < len(batch) and tables.get(FILES, key) is None:
                    # Full of what may be in use: it stays, or a tree with more files than there is room for would push
                    # out what it is about to ask for.
                    if room <= 0:
                        continue
                    room -= 1
                kept[key] = row
            tables.change(FILES, kept)
            return tables.count(FILES)

        self._count = self._change(body)

    def forget_gone(self, freed: int) -> None:
        """Drop rows of content that the store has no more, by its beginning. Costs a pass over all rows.

        Nothing is done if so many chunks were ``freed`` only that, at best, a row in `FEW` would go.
        """
        if freed * FEW < self._size():
            return
        for part in self._parts(first_digest):
            wanted = [(key, digest) for key, digest in part if digest]

            def body(tables: Tables, wanted: list[tuple[bytes, bytes]] = wanted) -> list[bytes]:
                rows = tables.get_many(CHUNK, [digest for _, digest in wanted])
                return [key for (key, _), row in zip(wanted, rows, strict=True) if row is None]

            gone = dict.fromkeys(self._look(body) or ())
            if gone:
                self._change(lambda tables, gone=gone: tables.change(FILES, gone))  # type: ignore[misc]

    # --- parts

    def _size(self) -> int:
        if self._count is None:
            self._count = self._look(lambda tables: tables.count(FILES))
        return self._count or 0

    def _keeps_ctime(self, device: int, path: str) -> bool:
        known = self._devices.get(device)
        if known is None:
            known = self._devices[device] = self._file_system(path) in KEEPS_CTIME
        return known

    def _changed(self, pending: dict[bytes, tuple[bytes, FileRow]]) -> dict[bytes, bytes]:
        """The rows that are not there yet: of files that were read again, and are as they were, there are none."""
        keys = list(pending)
        paths = [path for path, _ in pending.values()]
        rows = [row for _, row in pending.values()]
        blank = self._blank or not self._size()
        old: list[bytes | None] | None = [None] * len(keys)
        if not blank:
            old = self._look(lambda tables: _rows_at(tables, keys))
        if old is None:
            return {}
        changed = filescan.encode_rows(paths, rows, self._today, old, self._today - STALE_DAYS)
        return {key: row for key, row in zip(keys, changed, strict=True) if row is not None}

    def _flush_many(self) -> None:
        if len(self._pending) >= self._batch:
            self.flush()

    def _trim(self) -> None:
        """Drop the rows that were of no use for a week at least. Costs a pass over all rows, but not twice in vain."""
        today = self._today
        limit = today - 2 * STALE_DAYS
        known = self._look(lambda tables: tables.get(FILES, _OLDEST))
        if known is not None and limit < int.from_bytes(known, "big") <= today:
            return
        oldest = today
        for part in self._parts(last_use):
            old = [key for key, day in part if not limit < day <= today]
            oldest = min([oldest, *(day for _, day in part if limit < day)])

            def body(tables: Tables, old: list[bytes] = old) -> None:
                for key in old:
                    tables.delete(FILES, key)

            if old:
                self._change(body)
        self._change(lambda tables: tables.put(FILES, _OLDEST, oldest.to_bytes(8, "big")))

    def _parts(self, what: Callable[[bytes], T]) -> Iterator[list[tuple[bytes, T]]]:
        """Keys of all rows and what is to be known of each, a batch a snapshot."""
        last = b""
        while True:

            def body(tables: Tables, last: bytes = last) -> list[tuple[bytes, T]]:
                scan = tables.scan(FILES, start=last and last + b"\0")
                some = itertools.islice(scan, self._batch)
                return [(key, what(row)) for key, row in some if key != _OLDEST]

            part = self._look(body)
            if not part:
                return
            yield part
            last = part[-1][0]

    def _look(self, body: Callable[[Tables], T]) -> T | None:
        try:
            with self._view.read() as tables:
                return body(tables)
        except CasstoreError:
            self._off = True
            return None

    def _change(self, body: Callable[[Tables], T]) -> T | None:
        try:
            return self._view.note(body)
        except CasstoreError:
            self._off = True
            return None
