"""Version → files, and files against a version.

A file gets its name only when all its bytes have been verified. Every directory on the way is opened without
following links, so nothing outside the root is ever written, even if someone swaps a directory for a link.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from casstore.catalogue import Found
from casstore.contents import Failures, Piece, below, entries, named, naming, pieces, windows
from casstore.engine import Engine
from casstore.errors import (
    AlreadyExistsError,
    BackendError,
    CasstoreError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    PathConflictError,
    VerificationError,
)
from casstore.model import Entry, EntryKind, Progress, no_progress
from casstore.names import check_path
from casstore.sources import ancestors, source_path

BATCH_BYTES = 32 * 1024 * 1024
BATCH_FILES = 2048
OPEN_DIRECTORIES = 64
OVERWRITE = ("replace", "keep", "error")
BLOCK = 1024 * 1024
SHOWN = 5

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class DownloadReport:
    """What a download did. ``path``: the root; ``skipped``: paths left alone; ``matched``: entries asked for.

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
    path_prefix: str | None = None,
    glob: str | None = None,
    overwrite: str = "replace",
    progress: Progress = no_progress,
) -> DownloadReport:
    """Write the files of a version below a directory, which is made if need be.

    Unlisted files are left alone; listed ones are replaced atomically (``overwrite="replace"``), kept
    (``"keep"``) or refused before anything is written (``"error"``, `AlreadyExistsError`). Files whose bytes
    are damaged are not written; all others are, and then `IntegrityError` is raised, naming the first.
    Raises `PathConflictError` where a directory is in the way, `BackendError` if the disk is full.
    """
    if overwrite not in OVERWRITE:
        raise InvalidInputError(f"overwrite={overwrite!r} is not valid", hint=", ".join(OVERWRITE))
    where = source_path(root)
    if not (path_prefix is None or isinstance(path_prefix, str)) or not (glob is None or isinstance(glob, str)):
        raise InvalidInputError(f"path_prefix={path_prefix!r} or glob={glob!r} is not a string")
    failures: Failures = []
    wanted = list(_selected(engine, found, path_prefix, glob, failures))
    report = DownloadReport(where, matched=len(wanted))
    if not wanted and not failures and (path_prefix is not None or glob is not None):
        return report
    try:
        with _Target(report.path) as target:
            if len(wanted) > 1 and target.folds():
                _check_twins(target, wanted)
            if overwrite != "replace":
                wanted = _without_existing(target, wanted, overwrite, report)
            total = sum(entry.size for entry in wanted)
            target.check_space(total)
            job = _Download(engine, found, target, report, progress, total, failures)
            job.run(wanted)
    except OSError as error:
        if isinstance(error, CasstoreError):
            raise
        raise _disk_error(error) from None
    job.raise_failures()
    return report


def twins(paths: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of paths that a file system which ignores case or Unicode form takes for one."""
    groups: dict[str, dict[str, None]] = {}
    for path in paths:
        groups.setdefault(_folded(path), {})[path] = None
    # A file "A" is in the way of a file "a/x".
    for group in list(groups.values()):
        for path in list(group):
            for parent in ancestors(path):
                files = groups.get(_folded(parent))
                if files is not None and path not in files:
                    files[path] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _folded(path: str) -> str:
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path.casefold())


def _check_twins(target: _Target, wanted: list[Entry]) -> None:
    found = twins(entry.path for entry in wanted)
    if found:
        raise PathConflictError(
            f"the file system of {target.root!r} takes {' and '.join(map(repr, found[0]))} for one path",
            hint="download to another file system, or with path_prefix or glob",
        )


def _disk_error(error: OSError) -> CasstoreError:
    hint = "free some space and run again" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    failure = BackendError(f"cannot write {error.filename or 'here'}: {error.strerror}", hint=hint)
    failure.errno = error.errno
    return failure


def _selected(
    engine: Engine, found: Found, path_prefix: str | None, glob: str | None, failures: Failures
) -> Iterator[Entry]:
    for entry in below(engine, found, path_prefix, failures):
        if glob is None or fnmatch.fnmatchcase(entry.path, glob):
            yield entry


def _without_existing(target: _Target, wanted: list[Entry], overwrite: str, report: DownloadReport) -> list[Entry]:
    there = {entry.path for entry in wanted if target.exists(entry.path)}
    if there and overwrite == "error":
        shown = ", ".join(sorted(there)[:SHOWN])
        raise AlreadyExistsError(
            f"{len(there)} files exist below {target.root!r}: {shown}", hint="overwrite='replace' or 'keep'"
        )
    report.skipped.extend(sorted(there))
    return [entry for entry in wanted if entry.path not in there]


class _Target:
    """A directory that is written to without ever following a link below it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._open: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> Self:
        try:
            os.makedirs(self.root, exist_ok=True)
            self._top = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileExistsError, NotADirectoryError):
            raise PathConflictError(f"{self.root!r} is not a directory") from None
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)
        os.close(self._top)

    def check_space(self, needed: int) -> None:
        """Refuse before the first byte what cannot fit."""
        info = os.fstatvfs(self._top)
        free = info.f_bavail * info.f_frsize
        if needed > free:
            error = BackendError(
                f"{needed} bytes are needed below {self.root!r}, {free} are free", hint="free some space"
            )
            error.errno = errno.ENOSPC
            raise error

    def folds(self) -> bool:
        """True if the file system ignores case or Unicode form."""
        name = f".é-{os.getpid()}-{threading.get_ident()}.casstore-part"
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._top))
        try:
            for other in (name.upper(), unicodedata.normalize("NFD", name)):
                with contextlib.suppress(FileNotFoundError):
                    os.stat(other, dir_fd=self._top, follow_symlinks=False)
                    return True
            return False
        finally:
            os.unlink(name, dir_fd=self._top)

    def exists(self, path: str) -> bool:
        """True if there is anything at a path."""
        parent, _, name = path.rpartition("/")
        try:
            os.stat(name, dir_fd=self.directory(parent, create=False), follow_symlinks=False)
        except (FileNotFoundError, PathConflictError):
            return False
        return True

    def directory(self, path: str, *, create: bool = True) -> int:
        """A descriptor of a directory below the root, opened one component at a time."""
        if not path:
            return self._top
        fd = self._open.get(path)
        if fd is None:
            fd, missing = self._top, [*ancestors(path), path]
            for at in range(len(missing) - 1, -1, -1):
                known = self._open.get(missing[at])
                if known is not None:
                    fd, missing = known, missing[at + 1 :]
                    break
            for directory in missing:
                fd = self._enter(fd, directory, create=create)
        self._open.move_to_end(path)
        return fd

    def _enter(self, above: int, path: str, *, create: bool) -> int:
        """Open a directory inside an open one, the last part of its path."""
        name = path.rpartition("/")[2]
        if create:
            # If something is there already, opening it tells whether it is a directory.
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=above)
        except (NotADirectoryError, OSError) as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise PathConflictError(
                    f"{path!r} below {self.root!r} is not a directory", hint="move it away"
                ) from None
            raise
        self._open[path] = fd
        while len(self._open) > OPEN_DIRECTORIES:
            _, old = self._open.popitem(last=False)
            os.close(old)
        return fd


class _Download:
    """One download under way."""

    def __init__(
        self,
        engine: Engine,
        found: Found,
        target: _Target,
        report: DownloadReport,
        progress: Progress,
        total: int,
        failures: Failures,
    ) -> None:
        self.engine = engine
        self.found = found
        self.target = target
        self.report = report
        self.progress = progress
        self.total = total
        self.failures = failures

    def run(self, wanted: Iterable[Entry]) -> None:
        links: list[Entry] = []
        batch: list[Entry] = []
        size = 0
        for entry in wanted:
            check_path(entry.path)
            if entry.kind is EntryKind.LINK:
                links.append(entry)
            elif entry.kind is EntryKind.DIRECTORY:
                self.target.directory(entry.path)
            elif entry.size > BATCH_BYTES:
                self._large(entry)
            else:
                batch.append(entry)
                size += entry.size
                if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
                    self._small(batch)
                    batch, size = [], 0
        if batch:
            self._small(batch)
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
        self.progress("write", self.report.bytes, self.total)

    def _large(self, entry: Entry) -> None:
        def blocks() -> Iterator[bytes]:
            for group in windows(pieces(self.engine, entry), BATCH_BYTES // 2):
                fetched = self.engine.reader.fetch(digest for _, digest, _ in group)
                for _, digest, _ in group:
                    yield fetched.get(digest)
                self.progress("write", self.report.bytes + group[-1][0], self.total)

        try:
            self._write(entry, blocks())
        except (IntegrityError, FormatError) as error:
            self._fail(entry, error)

    def _write(self, entry: Entry, blocks: Iterable[bytes]) -> None:
        parent, _, name = entry.path.rpartition("/")
        directory = self.target.directory(parent)
        temporary = f".{self.engine.runtime.random_bytes(8).hex()}.casstore-part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o666, dir_fd=directory)
        try:
            try:
                size = 0
                for block in blocks:
                    size += len(block)
                    view = memoryview(block)
                    while view:
                        view = view[os.write(fd, view) :]
                if size != entry.size:
                    raise IntegrityError(f"{entry.path!r} has {size} bytes, not {entry.size}")
                if entry.mode is not None:
                    os.fchmod(fd, entry.mode & 0o777)
            finally:
                os.close(fd)
            self._publish(temporary, name, directory, entry.path)
        except BaseException:
            os.unlink(temporary, dir_fd=directory)
            raise
        self.report.files += 1
        self.report.bytes += entry.size

    def _publish(self, temporary: str, name: str, directory: int, path: str) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except (IsADirectoryError, NotADirectoryError, FileExistsError):
            raise PathConflictError(
                f"{path!r} below {self.target.root!r} is a directory, the version has a file there",
                hint="move the directory away",
            ) from None

    def _link(self, entry: Entry) -> None:
        parent, _, name = entry.path.rpartition("/")
        directory = self.target.directory(parent)
        temporary = f".{self.engine.runtime.random_bytes(8).hex()}.casstore-part"
        os.symlink(entry.target or "", temporary, dir_fd=directory)
        try:
            self._publish(temporary, name, directory, entry.path)
        except BaseException:
            os.unlink(temporary, dir_fd=directory)
            raise
        self.report.linked += 1

    def _fail(self, entry: Entry, error: IntegrityError | FormatError) -> None:
        damage = error if isinstance(error, IntegrityError) else IntegrityError(error.message)
        self.failures.append((entry.path, named(damage, self.found, entry.path)))

    def raise_failures(self) -> None:
        """Say what could not be written."""
        if not self.failures:
            return
        _, first = self.failures[0]
        if len(self.failures) > 1:
            others = ", ".join(path for path, _ in self.failures[1 : SHOWN + 1])
            first.message += (
                f" (and {len(self.failures) - 1} more: {others}{' …' if len(self.failures) > SHOWN + 1 else ''})"
            )
            first.args = (first.message,)
        raise first


# --- verify --------------------------------------------------------------------------------------


def verify_stored(engine: Engine, found: Found, progress: Progress = no_progress) -> int:
    """Read every byte of a version from the store; returns the bytes checked.

    Raises `VerificationError` with all paths that are damaged or missing.
    """
    changed: list[str] = []
    missing: list[str] = []
    done = erased = 0
    failures: Failures = []
    _check_listing(engine, found)
    for entry in entries(engine, found, failures=failures):
        if entry.kind is not EntryKind.FILE:
            continue
        try:
            with naming(found, entry.path):
                for group in windows(pieces(engine, entry)):
                    fetched = engine.reader.fetch(digest for _, digest, _ in group)
                    for _, digest, length in group:
                        done += len(fetched.get(digest)) and length
                    progress("verify", done, found.version.size)
        except IntegrityError as error:
            (missing if error.code == "chunk-missing" else changed).append(entry.path)
            erased += _was_erased(engine, error)
        progress("verify", done, found.version.size)
    for path, failure in failures:
        (missing if failure.code == "chunk-missing" else changed).append(path)
    _raise_problems(found, missing, changed, [], erased)
    return done


def _was_erased(engine: Engine, error: IntegrityError) -> bool:
    lost = None if error.digest is None else engine.view.lost(bytes.fromhex(error.digest))
    return lost is not None and lost.erased


def _check_listing(engine: Engine, found: Found) -> None:
    try:
        engine.node(found.version.root)
    except (IntegrityError, FormatError) as error:
        raise VerificationError(
            f"{found.label}: the list of files cannot be read: {error.message}",
            hint=error.hint,
            collection=found.name.short,
            version=f"v{found.version.number}",
        ) from None


def verify_directory(
    engine: Engine, found: Found, root: str | os.PathLike[str], progress: Progress = no_progress
) -> int:
    """Compare a directory with a version: every byte, and nothing that does not belong.

    Returns the bytes checked. Raises `VerificationError` with all problems at once.
    """
    top = source_path(root)
    if not os.path.isdir(top):
        raise InvalidInputError(f"{top!r} is not a directory")
    missing: list[str] = []
    changed: list[str] = []
    known: set[str] = set()
    directories: set[str] = set()
    done = 0
    for entry in entries(engine, found):
        known.add(entry.path)
        parts = entry.path.split("/")
        directories.update("/".join(parts[:i]) for i in range(1, len(parts)))
        if entry.kind is EntryKind.DIRECTORY:
            directories.add(entry.path)
        path = os.path.join(top, *parts)
        try:
            info = os.lstat(path)
        except OSError:
            missing.append(entry.path)
            continue
        if not _matches(engine, found, entry, path, info):
            changed.append(entry.path)
        done += entry.size
        progress("verify", done, found.version.size)
    extra = [
        path
        for path, is_directory in _everything(top)
        if path not in known and not (is_directory and path in directories)
    ]
    _raise_problems(found, missing, changed, extra)
    return done


def _everything(top: str) -> list[tuple[str, bool]]:
    """Every path below a directory, and whether it is a directory itself: links are not."""
    found: list[tuple[str, bool]] = []
    pending = [""]
    while pending:
        above = pending.pop()
        try:
            with os.scandir(os.path.join(top, above)) as listing:
                for item in listing:
                    path = f"{above}/{item.name}" if above else item.name
                    is_directory = item.is_dir(follow_symlinks=False)
                    found.append((path, is_directory))
                    if is_directory:
                        pending.append(path)
        except OSError as error:
            raise InvalidInputError(f"cannot read {os.path.join(top, above)!r}: {error.strerror}") from None
    return sorted(found)


def _matches(engine: Engine, found: Found, entry: Entry, path: str, info: os.stat_result) -> bool:
    if entry.kind is EntryKind.LINK:
        return stat.S_ISLNK(info.st_mode) and os.readlink(path) == entry.target
    if entry.kind is EntryKind.DIRECTORY:
        return stat.S_ISDIR(info.st_mode)
    if not stat.S_ISREG(info.st_mode) or info.st_size != entry.size:
        return False
    try:
        with open(path, "rb") as file, naming(found, entry.path):
            return _same_chunks(engine.hash, pieces(engine, entry), file.read)
    except OSError as error:
        if isinstance(error, CasstoreError):
            raise
        raise InvalidInputError(f"cannot read {path!r}: {error.strerror}") from None


def _same_chunks(hash_bytes: Callable[[bytes], bytes], parts: Iterator[Piece], read: Callable[[int], bytes]) -> bool:
    return all(hash_bytes(read(length)) == digest for _, digest, length in parts) and not read(1)


def _raise_problems(found: Found, missing: list[str], changed: list[str], extra: list[str], erased: int = 0) -> None:
    """``erased``: how many of the missing were given up on request."""
    if not (missing or changed or extra):
        return
    gone = f"missing ({erased} of them erased on request)" if erased else "missing"
    counts = [(len(missing), gone), (len(changed), "changed"), (len(extra), "extra")]
    said = ", ".join(f"{count} {word}" for count, word in counts if count)
    first = (missing + changed + extra)[0]
    raise VerificationError(
        f"{found.label}: {said}; first: {first!r}",
        missing=missing,
        changed=changed,
        extra=extra,
        collection=found.name.short,
        version=f"v{found.version.number}",
        path=first,
    )
