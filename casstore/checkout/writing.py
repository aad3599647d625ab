"""Version → files. A file gets its name only when all its bytes have been verified."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from casstore.catalogue import Found
from casstore.checkout.guards import refuse_inside, refuse_store
from casstore.checkout.listing import trusted, twins
from casstore.checkout.target import PART, Target, disk_error, write_all
from casstore.contents import Failures, Piece, below, named, pieces, reference_access, windows
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
from casstore.model import Entry, EntryKind, Progress, no_progress
from casstore.reference import fetch
from casstore.sources import glob_regex, source_path

BATCH_BYTES = 32 * 1024 * 1024
BATCH_FILES = 2048
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

    def run(self, wanted: Iterable[Entry]) -> None:
        """Write entries; what is damaged goes to ``failures``. Raises bare `OSError`, `PathConflictError`."""
        links: list[Entry] = []
        references: list[Entry] = []
        batch: list[Entry] = []
        size = 0
        for entry in wanted:
            if entry.kind is EntryKind.LINK:
                links.append(entry)
            elif entry.kind is EntryKind.DIRECTORY:
                self.target.directory(entry.path)
            elif entry.kind is EntryKind.REFERENCE:
                references.append(entry)
            elif entry.length > BATCH_BYTES:
                self._large(entry)
            else:
                batch.append(entry)
                size += entry.length
                if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
                    self._small(batch)
                    batch, size = [], 0
        if batch:
            self._small(batch)
        self._references(references)
        for entry in links:  # last, so that no file is ever written through one
            self._link(entry)

    def _small(self, batch: list[Entry]) -> None:
        """Fetch the chunks of many files at once, then write each file."""
        lists: list[tuple[Entry, list[Piece]]] = []
        for entry in batch:
            try:
                lists.append((entry, list(pieces(self.engine, entry))))
            except (IntegrityError, FormatError) as error:
                self._fail(entry, error)
        fetched = self.engine.reader.fetch(digest for _, parts in lists for _, digest, _ in parts)
        for entry, parts in lists:
            try:
                self._write(entry, (fetched.get(digest) for _, digest, _ in parts))
            except IntegrityError as error:
                self._fail(entry, error)
        self.progress("write", self.bytes, self.total)

    def _large(self, entry: Entry) -> None:
        def blocks() -> Iterator[bytes]:
            for group in windows(pieces(self.engine, entry), BATCH_BYTES // 2):
                fetched = self.engine.reader.fetch(digest for _, digest, _ in group)
                for _, digest, _ in group:
                    yield fetched.get(digest)
                self.progress("write", self.bytes + group[-1][0], self.total)

        try:
            self._write(entry, blocks())
        except (IntegrityError, FormatError) as error:
            self._fail(entry, error)

    def _references(self, wanted: list[Entry]) -> None:
        access = reference_access(self.engine) if wanted else None
        for entry in wanted:
            assert access is not None
            trouble: list[CasstoreError] = []

            def blocks(entry: Entry = entry, trouble: list[CasstoreError] = trouble) -> Iterator[bytes]:
                done = 0
                try:
                    for block in fetch(entry, access):
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
        return f".{self.engine.runtime.random_bytes(8).hex()}{PART}"

    def _write(self, entry: Entry, blocks: Iterable[bytes]) -> None:
        directory = self.target.directory(entry.path.rpartition("/")[0])
        temporary = self._temporary()
        fd = self.target.create(temporary, directory)
        try:
            try:
                size = 0
                for block in blocks:
                    size += len(block)
                    write_all(fd, block)
                if entry.size not in {None, size}:
                    raise IntegrityError(f"{entry.path!r} has {size} bytes, not {entry.size}")
                if entry.mode is not None:
                    os.fchmod(fd, entry.mode & 0o777)
            finally:
                os.close(fd)
            self.target.publish(temporary, entry.path, directory)
        except BaseException:
            _drop(temporary, directory)
            raise
        self.files += 1
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

    def _fail(self, entry: Entry, error: IntegrityError | FormatError) -> None:
        damage = error if isinstance(error, IntegrityError) else IntegrityError(error.message)
        self.failures.append((entry.path, named(damage, self.found, entry.path)))

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
