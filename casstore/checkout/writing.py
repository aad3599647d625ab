"""Version → files. A file gets its name only when all its bytes have been verified."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import field
from functools import partial

from casstore import reference
from casstore.catalogue import Found
from casstore.checkout.crew import Crew
from casstore.checkout.direct import DirectFile, Sheet
from casstore.checkout.guards import refuse_inside, refuse_store
from casstore.checkout.listing import trusted, twins
from casstore.checkout.target import PART, Target, disk_error, write_all, write_at
from casstore.chunks import INTO_SPAN, Spare, Views
from casstore.contents import Failures, Piece, below, named, pieces, reference_access, windows
from casstore.digest import Buffer
from casstore.engine import Engine
from casstore.errors import (
    AlreadyExistsError,
    CasstoreError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    PathConflictError,
    ReferenceChangedError,
    ReferenceMissingError,
)
from casstore.filebatch import NewFile, write_new
from casstore.model import Entry, EntryKind, Progress, no_progress
from casstore.sources import glob_regex, source_path
from casstore.values import dataclass

BATCH_BYTES = 8 * 1024 * 1024
"""files up to this size are written by one worker, held in memory whole; of a larger one half of it"""
GATHER_BYTES = 2 * 1024 * 1024
"""smaller ones are written together until they have so many"""
BATCH_FILES = 256
"""after so many a batch ends with the directory, so that two workers seldom want the same: the kernel lets one in"""
MOST_FILES = 1024
DIRECT_BYTES = 64 * 1024 * 1024
"""files from this size on are written past the page cache where that can be done"""
DIRECT_WINDOW = 4 * 1024 * 1024
DIRECT_WRITERS = 2
"""threads that do nothing but wait for the disk"""
TOGETHER = 64
"""files written by one call: no worker stops in between"""
OVERWRITE = ("replace", "keep", "error")
SHOWN = 5
_INVALID = (ReferenceMissingError, ReferenceChangedError, InvalidInputError)
"""what a reference itself can suffer from: gone, changed, nothing that can be fetched"""


@dataclass(slots=True)
class DownloadReport:
    """What a download did. ``path``: the root; ``matched``: entries asked for.

    ``skipped``: paths left alone: files that were there (``overwrite="keep"``), references that could not be had
    (``allow_missing_references``).

    Sizes in bytes.
    """

    path: str
    files: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)
    linked: int = 0
    matched: int = 0

    def __fspath__(self) -> str:
        return self.path


def download(
    engine: Engine,
    found: Found,
    root: str | os.PathLike[str],
    *,
    path_prefix: str | os.PathLike[str] | None = None,
    glob: str | None = None,
    overwrite: str = "replace",
    allow_missing_references: bool = False,
    progress: Progress = no_progress,
) -> DownloadReport:
    """Write the files of a version below a directory, which is made if need be.

    Unlisted files are left alone; listed ones are replaced atomically (``overwrite="replace"``), kept
    (``"keep"``) or refused before anything is written (``"error"``, `AlreadyExistsError`). Files whose bytes
    are damaged are not written; all others are, and then `IntegrityError` is raised, naming the first. So it is with
    references that are gone (`ReferenceMissingError`), changed (`ReferenceChangedError`) or cannot be fetched by their
    nature (`InvalidInputError`), unless ``allow_missing_references``, which lists them in ``skipped``. Others that
    could not be fetched (`RefusedError` by policy, `BackendError`) are always an error.
    Raises `PathConflictError` where a directory is in the way, `RefusedError` for a root in the store,
    `BackendError` if the disk is full.
    """
    if overwrite not in OVERWRITE:
        raise InvalidInputError(f"overwrite={overwrite!r} is not valid", hint=", ".join(OVERWRITE))
    where = source_path(root)
    if isinstance(path_prefix, os.PathLike):
        path_prefix = os.fspath(path_prefix)
    if not (path_prefix is None or isinstance(path_prefix, str)) or not (glob is None or isinstance(glob, str)):
        raise InvalidInputError(f"path_prefix={path_prefix!r} or glob={glob!r} is not a string")
    failures: Failures = []
    pattern = None if glob is None else glob_regex(glob)
    wanted = [
        entry
        for entry in trusted(found, below(engine, found, path_prefix, failures))
        if pattern is None or pattern.match(entry.path)
    ]
    report = DownloadReport(where, matched=len(wanted))
    if not wanted and not failures and (path_prefix is not None or glob is not None):
        return report
    try:
        refuse_store(engine, where)
        with Target(where) as target:
            refuse_inside(engine, target.top, where)  # the path may mean something else by now
            check_twins(target, wanted)
            if overwrite != "replace":
                wanted = _without_existing(target, wanted, overwrite, report)
            job = Writing(engine, found, target, progress, sum(entry.length for entry in wanted), failures)
            target.check_space(job.total)
            job.run(wanted)
    except OSError as error:
        raise disk_error(error) from None
    report.files, report.bytes, report.linked = job.files, job.bytes, job.linked
    job.raise_failures(allow_missing_references=allow_missing_references)
    report.skipped.extend(job.missing)
    return report


def check_twins(target: Target, wanted: list[Entry]) -> None:
    """Raise `PathConflictError` if the file system takes two paths for one."""
    if len(wanted) < 2 or not target.folds():
        return
    found = twins(entry.path for entry in wanted)
    if found:
        raise PathConflictError(
            f"the file system of {target.root!r} takes {' and '.join(map(repr, found[0]))} for one path",
            hint="use another file system, or download with path_prefix or glob",
        )


def _without_existing(target: Target, wanted: list[Entry], overwrite: str, report: DownloadReport) -> list[Entry]:
    there = {entry.path for entry in wanted if target.lookup(entry.path) is not None}
    if there and overwrite == "error":
        shown = ", ".join(sorted(there)[:SHOWN])
        raise AlreadyExistsError(
            f"{len(there)} files exist below {target.root!r}: {shown}", hint="overwrite='replace' or 'keep'"
        )
    report.skipped.extend(sorted(there))
    return [entry for entry in wanted if entry.path not in there]


_Content = tuple[Entry, list[bytes]]
"""a file and the digests of its chunks"""


class Writing:
    """Entries being written below a target: what came of it so far. Sizes in bytes."""

    def __init__(
        self, engine: Engine, found: Found, target: Target, progress: Progress, total: int, failures: Failures
    ) -> None:
        self.engine = engine
        self.found = found
        self.target = target
        self.progress = progress
        self.total = total
        self.failures = failures
        self.files = 0
        self.bytes = 0
        self.linked = 0
        self.unfetched: list[tuple[str, CasstoreError]] = []
        """references that could not be had, and why"""
        self._counting = threading.Lock()
        self._token = engine.runtime.random_bytes(8).hex()
        self._numbers = itertools.count()
        self._sheets = Spare(BATCH_BYTES + GATHER_BYTES)
        self._spare = Spare(INTO_SPAN)

    def run(self, wanted: Iterable[Entry]) -> None:
        """Write entries; what is damaged goes to ``failures``. Raises bare `OSError`, `PathConflictError`."""
        links: list[Entry] = []
        references: list[Entry] = []
        self._files(self._batches(wanted, links, references))
        self._references(references)
        for entry in links:  # last, so that no file is ever written through one
            self._link(entry)

    def _batches(self, wanted: Iterable[Entry], links: list[Entry], references: list[Entry]) -> Iterator[list[Entry]]:
        """Files that are written together, a large one alone; makes directories, and collects all others."""
        batch: list[Entry] = []
        size = 0
        directory = ""
        for entry in wanted:
            if entry.kind is EntryKind.LINK:
                links.append(entry)
            elif entry.kind is EntryKind.DIRECTORY:
                self.target.directory(entry.path)
            elif entry.kind is EntryKind.REFERENCE:
                references.append(entry)
            elif entry.length > BATCH_BYTES:
                if batch:  # what is damaged is told in the order of the paths
                    yield batch
                    batch, size = [], 0
                yield [entry]
            else:
                if len(batch) >= BATCH_FILES and entry.path.rpartition("/")[0] != directory:
                    yield batch
                    batch, size = [], 0
                batch.append(entry)
                size += entry.length
                if size >= GATHER_BYTES or len(batch) >= MOST_FILES:
                    yield batch
                    batch, size = [], 0
                elif len(batch) == BATCH_FILES:
                    directory = entry.path.rpartition("/")[0]
        if batch:
            yield batch

    def _files(self, batches: Iterator[list[Entry]]) -> None:
        """Write batches, by all worker threads if there are several."""
        engine = self.engine
        following = next(batches, None)
        with Crew[Failures](engine.executor, engine.settings.workers) as crew:
            while following is not None:
                batch, following = following, next(batches, None)
                if batch[0].length > BATCH_BYTES:
                    self._note(crew.rest())
                    self._large(batch[0])
                elif following is None and crew.idle:
                    self._note([self._small(batch, None)])
                else:
                    self._note(crew.give(partial(self._small, batch, crew)))
            self._note(crew.rest())

    def _note(self, results: Iterable[Failures]) -> None:
        for failures in results:
            self.failures.extend(failures)
            self.progress("write", self.bytes, self.total)

    def _small(self, batch: list[Entry], crew: Crew[Failures] | None) -> Failures:
        """Fetch the chunks of many files at once, then write each file; returns what is damaged.

        One of a ``crew`` does it alone; without, all worker threads help to fetch.
        """
        if crew is not None and self._at_once(batch, crew):
            return []
        failures: Failures = []
        lists: list[_Content] = []
        for entry in batch:
            try:
                # Most lists are in the entry itself.
                parts = entry.chunks if entry.tree is None else [piece[1:] for piece in pieces(self.engine, entry)]
            except (IntegrityError, FormatError) as error:
                failures.append(self._failure(entry, error))
            else:
                lists.append((entry, [digest for digest, _ in parts]))
        wanted = [digest for _, digests in lists for digest in digests]
        fetched = self.engine.reader.fetch_views(wanted, spread=crew is None)
        at = 0
        while at < len(lists) and not (crew is not None and crew.closed):
            group = lists[at : at + TOGETHER]
            done = self._together(group, fetched)
            at += done
            if done < len(group):
                entry, digests = group[done]
                try:
                    self._write(entry, [fetched.get(digest) for digest in digests])
                except IntegrityError as error:
                    failures.append(self._failure(entry, error))
                at += 1
        return failures

    def _at_once(self, batch: list[Entry], crew: Crew[Failures]) -> bool:
        """Write many files as `_small` does, if nothing is the matter with any: False if something is, or may be.

        Their bytes are decoded to where they are written from, in memory that is used again and again.
        """
        chunks: list[tuple[bytes, int]] = []
        for entry in batch:
            if entry.tree is not None:
                return False
            chunks += entry.chunks
        sizes = [sum([length for _, length in entry.chunks]) for entry in batch]
        starts = list(itertools.accumulate(sizes, initial=0))
        total = starts.pop()
        if sizes != [entry.size for entry in batch] or total > BATCH_BYTES + GATHER_BYTES:
            return False
        sheet = self._sheets.take(max(1, total))
        view = memoryview(sheet)
        try:
            self.engine.reader.fetch_into(chunks, view[:total], self._spare)
        except IntegrityError:
            return False
        files: list[NewFile] = [
            (entry.path, -1 if entry.mode is None else entry.mode & 0o777, (view[start : start + size],))
            for entry, start, size in zip(batch, starts, sizes, strict=True)
        ]
        done = 0
        while done < len(files) and not crew.closed:
            group = files[done : done + TOGETHER]
            wrote = write_new(self.target.top, f".{self._token}{next(self._numbers):x}-", PART, group)
            self._count(sum(sizes[done : done + wrote]), wrote)
            done += wrote
            if wrote < len(group):
                self._write(batch[done], files[done][2])  # with its errors
                done += 1
        self._sheets.give(sheet)
        return True

    def _together(self, group: list[_Content], fetched: Views) -> int:
        """Write files in one call; how many, till the first with which something is the matter.

        Nothing is left of that one: it is for `_write`, and its errors.
        """
        plain: list[NewFile] = []
        sizes: list[int] = []
        found = fetched.found
        for entry, digests in group:
            try:
                blocks = tuple([found[digest] for digest in digests])
            except KeyError:
                break
            size = sum(map(len, blocks))
            if size != entry.size:
                break
            plain.append((entry.path, -1 if entry.mode is None else entry.mode & 0o777, blocks))
            sizes.append(size)
        done = write_new(self.target.top, f".{self._token}{next(self._numbers):x}-", PART, plain)
        self._count(sum(sizes[:done]), done)
        return done

    def _large(self, entry: Entry) -> None:
        """Write a file by all worker threads, each a window of it at its place."""
        directory = self.target.directory(entry.path.rpartition("/")[0])
        temporary = self._temporary()
        fd = self.target.create(temporary, directory)
        try:
            try:
                done = self._direct(fd, entry) if entry.length >= DIRECT_BYTES else self._windows(fd, entry)
                self._finish(fd, entry, done)
            finally:
                os.close(fd)
            self.target.publish(temporary, entry.path, directory)
        except (IntegrityError, FormatError) as error:
            _drop(temporary, directory)
            self.failures.append(self._failure(entry, error))
            return
        except BaseException:
            _drop(temporary, directory)
            raise
        self._count(done)
        self.progress("write", self.bytes, self.total)

    def _windows(self, fd: int, entry: Entry) -> int:
        """Write all of a file; returns how many bytes. No thread does anything with ``fd`` any more then."""
        engine = self.engine
        position = done = 0
        with Crew[int](engine.executor, engine.settings.workers) as crew:
            for group in windows(pieces(engine, entry), BATCH_BYTES // 2):
                done += sum(crew.give(partial(self._window, fd, position, group)))
                position += sum(length for _, _, length in group)
                self.progress("write", self.bytes + done, self.total)
            return done + sum(crew.rest())

    def _direct(self, fd: int, entry: Entry) -> int:
        """As `_windows`, past the page cache: all worker threads read, others write what they have read."""
        engine = self.engine
        os.ftruncate(fd, entry.length)  # so that no write has to wait until another has made the file longer
        file = DirectFile(fd, Spare(DIRECT_WINDOW * 5 // 4), engine.runtime.monotonic)
        position = given = 0
        make: Callable[[int], Executor] = engine.runtime.executor or partial(
            ThreadPoolExecutor, thread_name_prefix="casstore-disk"
        )
        with (
            make(DIRECT_WRITERS) as executor,
            Crew[None](lambda: executor, DIRECT_WRITERS + 1) as writers,
            Crew[Sheet](engine.executor, engine.settings.workers + 1) as readers,
        ):

            def write(sheets: Iterable[Sheet]) -> int:
                size = 0
                for sheet in sheets:
                    writers.give(partial(file.write, sheet))
                    size += sheet.size
                self.progress("write", self.bytes + given + size, self.total)
                return size

            for group in windows(pieces(engine, entry), DIRECT_WINDOW):
                given += write(readers.give(partial(self._sheet, file, position, group)))
                position += sum([length for _, _, length in group])
            given += write(readers.rest())
            writers.rest()
        file.finish()
        return given

    def _sheet(self, file: DirectFile, position: int, group: list[Piece]) -> Sheet:
        """Some chunks of a file, ready to be written."""
        chunks = [piece[1:] for piece in group]
        sheet = file.sheet(position, sum([length for _, length in chunks]))
        with sheet.view as view:
            self.engine.reader.fetch_into(chunks, view, self._spare)
        return sheet

    def _window(self, fd: int, position: int, group: list[Piece]) -> int:
        """Write some chunks of a file; returns how many bytes."""
        fetched = self.engine.reader.fetch_views([digest for _, digest, _ in group], spread=False)
        blocks: list[Buffer] = []
        for _, digest, length in group:
            block = fetched.get(digest)
            if len(block) != length:  # what follows would stand in the wrong place
                raise IntegrityError(f"chunk {digest.hex()} has {len(block)} bytes, not {length}", digest=digest.hex())
            blocks.append(block)
        write_at(fd, blocks, position)
        return sum(map(len, blocks))

    def _references(self, wanted: list[Entry]) -> None:
        access = reference_access(self.engine) if wanted else None
        for entry in wanted:
            assert access is not None
            trouble: list[CasstoreError] = []

            def blocks(entry: Entry = entry, trouble: list[CasstoreError] = trouble) -> Iterator[bytes]:
                done = 0
                try:
                    for block in reference.fetch(entry, access):
                        yield block
                        done += len(block)
                        self.progress("write", self.bytes + done, self.total)
                except CasstoreError as error:
                    trouble.append(error)  # the reference's, not the disk's
                    raise

            try:
                self._write(entry, blocks())
            except CasstoreError as error:
                if error not in trouble:
                    raise
                self.unfetched.append((entry.path, error))

    @property
    def missing(self) -> list[str]:
        """Paths of references that could not be had."""
        return [path for path, _ in self.unfetched]

    def _temporary(self) -> str:
        return f".{self._token}{next(self._numbers):x}{PART}"

    def _write(self, entry: Entry, blocks: Iterable[Buffer]) -> None:
        directory = self.target.directory(entry.path.rpartition("/")[0])
        temporary = self._temporary()
        fd = self.target.create(temporary, directory)
        try:
            try:
                size = 0
                for block in blocks:
                    size += len(block)
                    write_all(fd, block)
                self._finish(fd, entry, size)
            finally:
                os.close(fd)
            self.target.publish(temporary, entry.path, directory)
        except BaseException:
            _drop(temporary, directory)
            raise
        self._count(size)

    @staticmethod
    def _finish(fd: int, entry: Entry, size: int) -> None:
        """Check what was written, so many bytes, and give it the mode it is to have."""
        if entry.size not in {None, size}:
            raise IntegrityError(f"{entry.path!r} has {size} bytes, not {entry.size}")
        if entry.mode is not None:
            os.fchmod(fd, entry.mode & 0o777)

    def _count(self, size: int, files: int = 1) -> None:
        with self._counting:
            self.files += files
            self.bytes += size

    def _link(self, entry: Entry) -> None:
        directory = self.target.directory(entry.path.rpartition("/")[0])
        temporary = self._temporary()
        os.symlink(entry.target or "", temporary, dir_fd=directory)
        try:
            self.target.publish(temporary, entry.path, directory)
        except BaseException:
            _drop(temporary, directory)
            raise
        self.linked += 1

    def _failure(self, entry: Entry, error: IntegrityError | FormatError) -> tuple[str, IntegrityError]:
        damage = error if isinstance(error, IntegrityError) else IntegrityError(error.message)
        return entry.path, named(damage, self.found, entry.path)

    def raise_failures(self, *, allow_missing_references: bool) -> None:
        """Say what could not be written: damage first, then references that others than `_INVALID` kept from us."""
        for path, error in self.unfetched:
            error.message = f"{self.found.label}/{path}: {error.message}"
        grave = [(path, error) for path, error in self.unfetched if not isinstance(error, _INVALID)]
        failed: list[tuple[str, CasstoreError]] = [*self.failures, *grave]
        if not allow_missing_references:
            failed += [(path, error) for path, error in self.unfetched if isinstance(error, _INVALID)]
        if not failed:
            return
        _, first = failed[0]
        if len(failed) > 1:
            others = ", ".join(path for path, _ in failed[1 : SHOWN + 1])
            first.message += f" (and {len(failed) - 1} more: {others}{' …' if len(failed) > SHOWN + 1 else ''})"
        first.args = (first.message,)
        raise first


def _drop(temporary: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
