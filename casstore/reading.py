"""The sources of a draft → chunks and a tree: each file is read once, cut, digested, and stored as far as it is new."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import field
from typing import BinaryIO, NamedTuple

from casstore.artifact import Artifact, draft_base
from casstore.chunker import Chunker, chunker_for
from casstore.config import Runtime
from casstore.digest import Buffer, Pieces, piecewise
from casstore.engine import Engine
from casstore.errors import (
    ConflictError,
    InvalidInputError,
    LeaseLostError,
)
from casstore.filescan import file_entries, file_rows, read_unchanged
from casstore.format.filerows import FileRow, Stamp
from casstore.format.nodes import CHUNK_LIST
from casstore.model import (
    Entry,
    EntryKind,
    Progress,
    no_progress,
)
from casstore.sources import (
    EmptyDirectory,
    Link,
    LocalFile,
    Referred,
    Signature,
    Source,
    Spooled,
    Taken,
    open_local,
)
from casstore.statcache import StatCache, Watch, settled_before
from casstore.tree import INLINE_CHUNKS, Builder, Sink, Tree, edit_entries, write_entries
from casstore.values import dataclass
from casstore.writer import Writer

BATCH_BYTES = 2 * 1024 * 1024
BATCH_FILES = 256
KNOWN_FILES = 1024
"""files that are looked up in the stat cache together"""
BLOCK_BYTES = 4 * 1024 * 1024
"""of a large file; twice as much costs more cache misses, half as much more hand-overs between threads"""
HERE_BYTES = 64 * 1024
HERE_FILES = 8
"""so little is read sooner than another thread has been asked to"""
_READ = LocalFile, Spooled

Chunks = Sequence[tuple[bytes, int]]
"""digests and lengths"""


class _Cut(NamedTuple):
    """A buffer with chunks in it, each from a start to an end, and their digests."""

    data: memoryview
    starts: list[int]
    ends: list[int]
    digests: list[bytes]

    def chunks(self) -> list[tuple[bytes, int]]:
        """What they are called and how long they are."""
        return [(name, end - start) for name, start, end in zip(self.digests, self.starts, self.ends, strict=True)]


class _Block(NamedTuple):
    """What a job has read of one large file."""

    cut: _Cut
    stamp: Stamp | None
    """that of the file, if this was the end of it and it may be remembered"""


class _Files(NamedTuple):
    """What a job has read: bytes, and of each file what it consists of."""

    cuts: list[_Cut]
    rows: list[FileRow]
    """with no mark if the file may not be remembered"""
    longest: int
    """so many chunks a file has at most"""
    paths: list[bytes]
    """of those that are local, as are the keys"""
    keys: list[bytes]


@dataclass(slots=True)
class _Job:
    """Work in flight: chunks of some whole files, or of one block of a large one."""

    paths: list[tuple[str, Source]]
    future: Future[_Block] | Future[_Files]
    size: int
    """bytes of memory it holds"""
    large: _Large | None = None
    last: bool = False
    buffer: bytearray | None = None
    """what the chunks are views of"""


@dataclass(slots=True)
class _Large:
    """A file that is read block by block: its chunk list so far."""

    path: str
    mode: int | None
    session: Session
    chunks: list[tuple[bytes, int]] = field(default_factory=list)
    builder: Builder | None = None
    size: int = 0

    def add(self, chunks: Chunks, size: int) -> None:
        """The next chunks, and how many bytes they have."""
        self.size += size
        if self.builder is None:
            self.chunks += chunks
            if len(self.chunks) <= INLINE_CHUNKS:
                return
            self.builder = Builder(CHUNK_LIST, self.session.node_bytes, self.session.writer.put_node)
            chunks, self.chunks = self.chunks, []
        self.builder.add_chunks(chunks)

    def entry(self, attrs: bytes) -> Entry:
        tree = None if self.builder is None else self.builder.finish().root
        return Entry(self.path, EntryKind.FILE, self.size, tuple(self.chunks), tree, self.mode, attrs_json=attrs)


def is_at_hand(engine: Engine, artifact: Artifact, progress: Progress) -> bool:
    """Whether a session waits for nothing and calls nobody: a snapshot may be held from its beginning to its end."""
    if artifact.changed() > HERE_FILES or progress is not no_progress:
        return False
    sources = artifact.changes()
    return (
        all(isinstance(source, Spooled) for _, source in sources)
        and sum([_size_of(source) for _, source in sources]) <= min(HERE_BYTES, engine.config.frame_bytes)
        and draft_base(artifact)[0] is None
    )


class Session:
    """Reads the sources of one artifact into a writer, in path order, and writes the tree."""

    def __init__(self, engine: Engine, writer: Writer, artifact: Artifact, progress: Progress) -> None:
        self.engine = engine
        self.writer = writer
        self.progress = progress
        self.chunker: Chunker = chunker_for(engine.config.chunker)
        self.digests = piecewise(engine.config.digest)
        self.node_bytes = engine.config.node_bytes
        self.base, _ = draft_base(artifact)
        self.changes = artifact.changes()
        self.entries: dict[str, Entry] = {}
        self.cache = StatCache(engine.view, engine.runtime)
        self.unread: set[str] = set()
        """long files whose chunk list was in the stat cache"""
        self.tree = Tree(b"", 0, 0)
        self.sink: Sink = writer.put_node
        """takes the nodes of the tree; those of chunk lists go to the writer"""
        self.total = sum([_size_of(source) for _, source in self.changes])
        self.done = 0
        self.limit = (engine.settings.workers + 2) * BATCH_BYTES
        self.spare: list[bytearray] = []
        """buffers to be used again: memory that was written to before costs no page faults"""

    def run(self) -> None:
        """Read everything, store what is new, write the tree."""
        self._read(self._unknown([(path, source) for path, source in self.changes if source is not None]))
        self._write_tree()

    def restore(self, missing: set[bytes]) -> None:
        """Store broken claims again from the sources, and the tree again from the entries."""
        self.read_again(missing)
        self.check_restored(missing)

    def read_again(self, missing: set[bytes]) -> None:
        """`restore`, as far as the sources have what is missing."""
        again: list[tuple[str, Source]] = []
        for path, source in self.changes:
            if source is None or isinstance(source, Link | EmptyDirectory | Taken | Referred):
                continue
            entry = self.entries[path]
            # The chunks of a long file that was read are not kept, so it is read again whatever is missing.
            if path in self.unread:
                wanted = entry.tree in missing
            else:
                wanted = entry.tree is not None or any(digest in missing for digest, _ in entry.chunks)
            if wanted:
                again.append((path, source))
        self.done = 0
        self._read(again)
        self._write_tree()

    def check_restored(self, missing: set[bytes]) -> None:
        """Raise `ConflictError` unless all that was missing is there again."""
        # What another writer has stored again in the meantime is a claim again.
        lost = [digest for digest in missing if not self.writer.has(digest)]
        if lost:
            raise ConflictError(
                f"{len(lost)} chunks that the draft took from another version were collected or damaged meanwhile",
                hint="make the draft again",
            )

    def _write_tree(self) -> None:
        if self.base is not None:
            edits = [(path, self.entries[path] if source is not None else None) for path, source in self.changes]
            if not self.engine.view.known((self.base.root,))[0] and self.engine.view.lost(self.base.root) is None:
                raise LeaseLostError(
                    f"the draft of {self.base.name} is too old: its pin ended, and what it shared was collected",
                    hint="make the draft again",
                )
            self.writer.claim(self.base.root)
            self.tree = edit_entries(self.base.root, edits, self.engine.node, self.node_bytes, self.sink)
        else:
            self.tree = write_entries(
                (self.entries[path] for path, source in self.changes if source is not None), self.node_bytes, self.sink
            )

    def _unknown(self, sources: list[tuple[str, Source]]) -> Iterator[tuple[str, Source]]:
        """Those that are not files which an earlier log has read; such files get their entries here."""
        for at in range(0, len(sources), KNOWN_FILES):
            part = sources[at : at + KNOWN_FILES]
            # Of a file that is not trusted nothing is asked: it costs a `stat`, and is read anyway.
            files = [(path, source) for path, source in part if isinstance(source, LocalFile) and source.trusted]
            if not files:
                yield from part
                continue
            rows = self.cache.find([source for _, source in files])
            found = [row for row in rows if row is not None]
            claimed = self.writer.claim_files([([digest for digest, _ in row.chunks], row.tree) for row in found])
            if not all(claimed):
                sound = iter(claimed)
                rows = [row if row is not None and next(sound) else None for row in rows]
            known = file_entries(files, rows)
            self.entries.update(known)
            self.unread.update([path for path, entry in known.items() if entry.tree is not None])
            if known:
                self.done += sum([entry.length for entry in known.values()])
                self.progress("read", self.done, self.total)
            yield from [pair for pair in part if pair[0] not in known] if len(known) < len(part) else ()

    def _read(self, sources: Iterable[tuple[str, Source]]) -> None:
        jobs: deque[_Job] = deque()
        flying = 0
        try:
            for job in self._jobs(sources):
                jobs.append(job)
                flying += job.size
                while jobs and flying > self.limit:
                    flying -= self._take(jobs.popleft())
            while jobs:
                self._take(jobs.popleft())
        finally:
            for job in jobs:
                job.future.cancel()
            for job in jobs:
                if not job.future.cancelled():
                    job.future.exception()

    def _jobs(self, sources: Iterable[tuple[str, Source]]) -> Iterator[_Job]:
        batch: list[tuple[str, Source]] = []
        size = 0
        for path, source in sources:
            if isinstance(source, _READ):  # as most are
                length = _size_of(source)
                if length > BATCH_BYTES:
                    if batch:
                        yield self._batch(batch, size)
                        batch, size = [], 0
                    yield from self._blocks(path, source)
                    continue
                batch.append((path, source))
                size += length
                if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
                    yield self._batch(batch, size)
                    batch, size = [], 0
            elif isinstance(source, Link):
                self.entries[path] = Entry(path, EntryKind.LINK, target=source.target)
            elif isinstance(source, EmptyDirectory):
                self.entries[path] = Entry(path, EntryKind.DIRECTORY)
            elif isinstance(source, Referred):
                self.entries[path] = source.entry
            else:
                self.entries[path] = source.entry
                for digest, _ in source.entry.chunks:
                    self.writer.claim(digest)
                if source.entry.tree is not None:
                    self.writer.claim(source.entry.tree)
        if batch:
            yield self._batch(batch, size)

    def _batch(self, batch: list[tuple[str, Source]], size: int) -> _Job:
        sources = [source for _, source in batch]
        here = size <= HERE_BYTES and len(batch) <= HERE_FILES
        buffer = bytearray(size) if here else self._buffer(size, BATCH_BYTES)
        args = sources, buffer, self.chunker, self.digests, self.engine.runtime
        if here:
            return _Job(batch, _done(lambda: _read_files(*args)), size)
        return _Job(batch, self.engine.executor().submit(_read_files, *args), len(buffer), buffer=buffer)

    def _buffer(self, size: int, usual: int) -> bytearray:
        """One of at least so many bytes, of undefined content; of as many as are usual if it has to be made."""
        buffer = self.spare.pop() if self.spare else bytearray()
        if len(buffer) >= size:
            return buffer
        return bytearray(max(size, usual))

    def _blocks(self, path: str, source: Source) -> Iterator[_Job]:
        """Jobs for one large file; read here, in order, because each cut depends on the one before."""
        large = _Large(path, source.mode if isinstance(source, LocalFile) else None, self)
        watch = Watch(self.engine.runtime)
        with _open(source) as file:
            if isinstance(source, LocalFile):
                watch.begin(file.fileno())
            tail = b""
            stamp: Stamp | None = None
            read = 0
            while True:
                room = len(tail) + BLOCK_BYTES
                buffer = self._buffer(room, self.chunker.params.maximum + BLOCK_BYTES)
                buffer[: len(tail)] = tail
                got = _read_into(file, memoryview(buffer)[len(tail) : room], path)
                read += got
                final = not got
                if final or read > _size_of(source):  # a file that grows faster than it is read has no end
                    stamp = _check_unchanged(file, source, path, watch)
                data = memoryview(buffer)[: len(tail) + got]
                ends = self.chunker.boundaries(data, final=final)
                tail = bytes(data[ends[-1] :] if ends else data)
                future = self.engine.executor().submit(_hash_block, data, ends, stamp, self.digests)
                yield _Job([(path, source)], future, len(buffer), large, final, buffer)
                if final:
                    return

    def _take(self, job: _Job) -> int:
        """Fold the outcome of a job in: ask which chunks are new, and store those."""
        found = job.future.result()
        cuts = found.cuts if isinstance(found, _Files) else [found.cut]
        for cut in cuts:
            self.writer.store(*cut)
        if job.buffer is not None:
            self.spare.append(job.buffer)
        size = sum([sum(cut.ends) - sum(cut.starts) for cut in cuts])
        self.done += size
        if isinstance(found, _Files):
            self._take_files(job.paths, found)
        else:
            self._take_block(job, found, size)
        if self.unread and (job.large is None or job.last):
            self.unread.difference_update([path for path, _ in job.paths])
        self.progress("read", self.done, self.total)
        return job.size

    def _take_files(self, paths: list[tuple[str, Source]], found: _Files) -> None:
        rows = found.rows
        if found.longest > INLINE_CHUNKS:
            rows = [
                row if len(row.chunks) <= INLINE_CHUNKS else self._in_tree(path, row)
                for (path, _), row in zip(paths, rows, strict=True)
            ]
        files = [(path, source) for path, source in paths if isinstance(source, LocalFile)]
        if len(files) < len(paths):
            for (path, source), row in zip(paths, rows, strict=True):
                if isinstance(source, Spooled):
                    self.entries[path] = Entry(
                        path, EntryKind.FILE, source.size, row.chunks, row.tree, attrs_json=source.attrs_json
                    )
            rows = [row for (_, source), row in zip(paths, rows, strict=True) if isinstance(source, LocalFile)]
        self.entries.update(file_entries(files, list(rows)))
        self.cache.learn_all([source for _, source in files], found.paths, found.keys, rows)

    def _in_tree(self, path: str, row: FileRow) -> FileRow:
        """The row of a file whose chunk list is too long for an entry."""
        large = _Large(path, None, self)
        large.add(row.chunks, 0)
        return row._replace(chunks=(), tree=large.entry(b"").tree)

    def _take_block(self, job: _Job, found: _Block, size: int) -> None:
        ((path, source),) = job.paths
        assert job.large is not None
        job.large.add(found.cut.chunks(), size)
        if job.last:
            entry = self.entries[path] = job.large.entry(_attrs_of(source))
            if isinstance(source, LocalFile):
                self.cache.learn(source, found.stamp, entry)


def _done(work: Callable[[], _Files]) -> Future[_Files]:
    """What an executor would give, had it done some work already."""
    future: Future[_Files] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - it is raised where the outcome is wanted
        future.set_exception(error)
    return future


def _attrs_of(source: Source) -> bytes:
    return source.attrs_json if isinstance(source, LocalFile | Spooled) else b""


def _size_of(source: Source | None) -> int:
    if isinstance(source, LocalFile):
        return source.signature.size
    return source.size if isinstance(source, Spooled) else 0


def _open(source: Source) -> BinaryIO:
    if isinstance(source, LocalFile):
        return open_local(source)
    assert isinstance(source, Spooled)
    source.file.seek(0)
    return _Borrowed(source.file)


class _Borrowed(io.BufferedIOBase, BinaryIO):
    """A spooled file that stays open when the reader is done."""

    def __init__(self, file: object) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data: bytes = self._file.read(size)  # type: ignore[attr-defined]
        return data


def _check_unchanged(file: BinaryIO, source: Source, path: str, watch: Watch) -> Stamp | None:
    """Refuse an open local file that is not what it was when it was added; its stamp if that is settled."""
    if not isinstance(source, LocalFile):
        return None
    info = os.fstat(file.fileno())
    if Signature.of(info) != source.signature:
        raise InvalidInputError(f"{path!r} changed while reading", hint="log it when it is at rest")
    return watch.settled(info)


def _read_block(file: BinaryIO, path: str, size: int = BLOCK_BYTES) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path!r}: {error.strerror}") from None


def _read_into(file: BinaryIO, buffer: memoryview, path: str) -> int:
    try:
        got: int = file.readinto(buffer)  # type: ignore[attr-defined]  # typeshed has it for each kind of file, not here
    except OSError as error:
        raise InvalidInputError(f"cannot read {path!r}: {error.strerror}") from None
    return got


def _hash_block(data: memoryview, ends: list[int], stamp: Stamp | None, digests_of: Pieces) -> _Block:
    starts = [0, *ends[:-1]] if ends else []
    return _Block(_Cut(data, starts, ends, digests_of(data, starts, ends)), stamp)


def _read_files(
    sources: list[Source], buffer: bytearray, chunker: Chunker, digests_of: Pieces, runtime: Runtime
) -> _Files:
    """Chunks of some whole files, each read once; into the buffer, which has room for all, or elsewhere."""
    local = [source for source in sources if isinstance(source, LocalFile)]
    looked = read_unchanged(local, settled_before(runtime.file_clock()), buffer)
    settled = iter(looked.marks)
    marks: list[bytes] = []
    data = memoryview(buffer)
    starts: list[int] = []
    ends: list[int] = []
    counts: list[int] = []
    others: dict[int, _Cut] = {}
    smallest = chunker.params.minimum
    at = 0
    for number, source in enumerate(sources):
        mark = None
        if isinstance(source, LocalFile):
            mark = next(settled)
            begin = at
            at += source.signature.size
        if mark is None:
            whole, stamp = _whole(source, runtime)
            others[number] = _cut(memoryview(whole), chunker, digests_of)
            counts.append(0)
            mark = b"" if stamp is None else stamp.mark
        elif at - begin > smallest:
            places = [begin + end for end in chunker.boundaries(data[begin:at], final=True)]
            starts += [begin, *places[:-1]]
            ends += places
            counts.append(len(places))
        elif at > begin:
            starts.append(begin)
            ends.append(at)
            counts.append(1)
        else:
            counts.append(0)
        marks.append(mark)
    together = _Cut(data, starts, ends, digests_of(data, starts, ends))
    rows = file_rows(marks, together.digests, starts, ends, counts)
    for number, cut in others.items():
        counts[number] = len(cut.digests)
        rows[number] = rows[number]._replace(chunks=tuple(cut.chunks()))
    return _Files([together, *others.values()], rows, max(counts), looked.paths, looked.keys)


def _cut(data: memoryview, chunker: Chunker, digests_of: Pieces) -> _Cut:
    """A whole file in chunks."""
    ends = chunker.boundaries(data, final=True)
    starts = [0, *ends[:-1]] if ends else []
    return _Cut(data, starts, ends, digests_of(data, starts, ends))


def _whole(source: Source, runtime: Runtime) -> tuple[Buffer, Stamp | None]:
    if isinstance(source, Spooled):
        source.file.seek(0)
        return source.file.read(), None
    assert isinstance(source, LocalFile)
    watch = Watch(runtime)
    with open_local(source) as file:
        watch.begin(file.fileno())
        # The size is asked for, neither more, which would allocate it, nor less: most files need one call.
        size = source.signature.size
        data: Buffer = _read_block(file, source.path, size)
        if len(data) < size:
            data = bytearray(data)
            while len(data) < size and (block := _read_block(file, source.path, size - len(data))):
                data += block
        if len(data) != size:
            raise InvalidInputError(f"{source.path!r} changed while reading", hint="log it when it is at rest")
        return data, _check_unchanged(file, source, source.path, watch)
