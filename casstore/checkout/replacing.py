"""A directory made equal to a version: what is missing is written first, what does not belong is deleted last.

1. Look: what is there, what of it is right already (by its bytes), what is to be written, what deleted.
2. Write, each file verified before it gets its name. What cannot have its name yet, because a file is in the place of
   a directory or the other way round, is finished beside it.
3. Only if every byte was right: delete just what was found in 1, and move what was finished beside into its place.

Stopped anywhere, it can be run again, and takes over what it finds right.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field

from casstore.catalogue import Found
from casstore.checkout.guards import (
    marker_for,
    mount_of,
    read_marker,
    refuse_precious,
    refuse_store,
    write_marker,
)
from casstore.checkout.listing import trusted
from casstore.checkout.target import PART, Target, disk_error
from casstore.checkout.verification import is_same
from casstore.checkout.writing import Writing, check_twins
from casstore.contents import entries
from casstore.engine import Engine
from casstore.errors import ConflictError, PathConflictError, RefusedError
from casstore.model import Entry, EntryKind, Progress, no_progress
from casstore.patterns import pattern
from casstore.sources import CHECKOUT_MARKER, ancestors, source_path
from casstore.values import dataclass

OWN = 8
"""random bytes in the name of a temporary file"""
_LEFT = pattern(rf"(?:^|/)\.[^/]+{re.escape(PART)}(?:/|$)")
"""what one that was stopped leaves behind"""


@dataclass(slots=True)
class CheckoutReport:
    """What a checkout did, or with ``dry_run`` would do. Paths are relative to ``path``, the root; sizes in bytes.

    ``written``: new paths; ``replaced``: paths that had other content; ``deleted``: paths not in the version, a
    directory with a ``/`` at the end; ``unchanged``: files and links that were right already.
    """

    path: str
    ref: str
    dry_run: bool = False
    files: int = 0
    bytes: int = 0
    linked: int = 0
    unchanged: int = 0
    written: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __fspath__(self) -> str:
        return self.path

    @property
    def destructive(self) -> bool:
        """Whether anything that is there goes."""
        return bool(self.deleted or self.replaced)


Confirm = Callable[[CheckoutReport], None]
"""told what would be done; raises to prevent it"""


def accept(_: CheckoutReport) -> None:
    """Confirm anything."""


def replace(
    engine: Engine,
    found: Found,
    root: str | os.PathLike[str],
    *,
    force: bool = False,
    dry_run: bool = False,
    confirm: Confirm = accept,
    allow_missing_references: bool = False,
    progress: Progress = no_progress,
) -> CheckoutReport:
    """Make a directory hold just the files of a version; it is made if need be.

    Everything else in it is deleted: links are unlinked, never followed. Files that are right already are not touched.
    A directory with anything in it that no checkout made needs ``force``. ``confirm`` is called before anything that
    is there is replaced or deleted, with what will be. ``dry_run`` changes nothing and reports the same; it looks at no
    reference. References are fetched as by `download`; one whose file is right already is not.
    Raises `RefusedError`: see `refuse_precious`, and ``force``; `IntegrityError` for damage, before anything is
    deleted; `ConflictError` if somebody else changed the directory meanwhile, or another checkout is at work in it;
    `BackendError`.
    """
    where = source_path(root)
    report = CheckoutReport(where, found.label, dry_run=dry_run)
    try:
        refuse_store(engine, where)
        listing = list(_listing(engine, found))
        if dry_run and not os.path.lexists(where):
            for entry in listing:
                _count(entry, report, report.written)
            return report
        with Staged(where, engine.runtime.random_bytes, make=not dry_run) as target, _alone(target):
            refuse_precious(engine, target)
            plan = _look(engine, found, listing, target, report, progress, force=force)
            if dry_run:
                return report
            if report.destructive:
                confirm(report)
            target.check_space(sum(entry.length for entry in plan.wanted))
            check_twins(target, listing)
            write_marker(target, marker_for(engine, found, complete=False), engine.runtime.random_bytes(OWN))
            job = Writing(engine, found, target, progress, report.bytes, [])
            job.run(plan.wanted)
            job.raise_failures(allow_missing_references=allow_missing_references)
            _leave_out(job, report)
            _delete(target, plan)
            target.settle()
            write_marker(target, marker_for(engine, found, complete=True), engine.runtime.random_bytes(OWN))
    except OSError as error:
        raise disk_error(error) from None
    return report


def _listing(engine: Engine, found: Found) -> Iterator[Entry]:
    for entry in trusted(found, entries(engine, found)):
        if entry.path == CHECKOUT_MARKER or entry.path.startswith(CHECKOUT_MARKER + "/"):
            raise RefusedError(
                f"{found.label} has a path {entry.path!r}, which is the name that marks checkouts",
                hint=f"casstore get {found.label} writes it like any other",
            )
        yield entry


def _count(entry: Entry, report: CheckoutReport, paths: list[str]) -> None:
    if entry.kind is EntryKind.DIRECTORY:
        return
    if entry.kind is EntryKind.LINK:
        report.linked += 1
    else:
        report.files += 1
        report.bytes += entry.length
    paths.append(entry.path)


@contextmanager
def _alone(target: Target) -> Iterator[None]:
    """One checkout at a time in a directory: each would take what the other is writing for foreign."""
    try:
        fcntl.flock(target.top, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
    except BlockingIOError:
        raise ConflictError(f"another checkout is at work in {target.root!r}", hint="wait for it") from None
    except OSError:
        pass  # a file system without locks on directories
    yield


# --- looking -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    wanted: list[Entry]
    """to be written"""
    deleted: list[tuple[str, bool]]
    """paths to be deleted, and whether they are directories; what is in a directory comes before it"""


def _look(
    engine: Engine,
    found: Found,
    listing: list[Entry],
    target: Target,
    report: CheckoutReport,
    progress: Progress,
    *,
    force: bool,
) -> _Plan:
    """Compare the directory with the version; changes nothing."""
    marked = read_marker(target)
    ours = marked is not None and marked.store == engine.config.store_id
    if not ours:
        ours = all(_LEFT.search(name) for name in os.listdir(target.top))  # stopped before it could be marked
    if not ours and not force:
        raise RefusedError(
            f"{target.root!r} is not empty, and no checkout from this store made what is in it",
            hint="force=True, or casstore checkout --force, replaces it all; --dry-run lists what would go",
        )
    there = dict(_everything(target))
    wanted: list[Entry] = []
    leaves: set[str] = set()
    directories: set[str] = set()
    done = 0
    for entry in listing:
        above = entry.path.rpartition("/")[0]
        if above and above not in directories:
            directories.update(ancestors(entry.path))
        if entry.kind is EntryKind.DIRECTORY:
            directories.add(entry.path)
        else:
            leaves.add(entry.path)
        info = there.get(entry.path)
        if info is not None and _is_right(engine, found, target, entry, info):
            report.unchanged += entry.kind is not EntryKind.DIRECTORY
        else:
            wanted.append(entry)
            replaced = info is not None and not stat.S_ISDIR(info.st_mode)
            _count(entry, report, report.replaced if replaced else report.written)
        done += entry.length
        progress("compare", done, found.version.size)
    deleted = [
        (path, is_directory)
        for path, info in there.items()
        if path not in (directories if (is_directory := stat.S_ISDIR(info.st_mode)) else leaves)
    ]
    # What an interrupted checkout was writing is nobody's: it goes without a word.
    report.deleted.extend(
        sorted(path + "/" * is_directory for path, is_directory in deleted if not (ours and _LEFT.search(path)))
    )
    return _Plan(wanted, deleted[::-1])


def _everything(target: Target) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below the root but the marker, directories before what is in them; links are not followed."""
    mount = mount_of(target.top)
    pending = [""]
    while pending:
        above = pending.pop()
        try:
            listing = target.list(above)
            if above and mount_of(target.directory(above, create=False)) != mount:
                raise RefusedError(
                    f"{above!r} below {target.root!r} is a mount point: its content is not replaced",
                    hint="unmount it, or check out elsewhere; there is no override",
                )
        except (FileNotFoundError, PathConflictError):
            raise _meanwhile(target, above) from None
        for name, info in listing:
            path = f"{above}/{name}" if above else name
            if path == CHECKOUT_MARKER and stat.S_ISREG(info.st_mode):
                continue
            yield path, info
            if stat.S_ISDIR(info.st_mode):
                pending.append(path)


def _meanwhile(target: Target, path: str) -> ConflictError:
    return ConflictError(
        f"{path!r} below {target.root!r} was changed by somebody else during the checkout",
        hint="run it again when nobody else is at work there",
    )


def _is_right(engine: Engine, found: Found, target: Target, entry: Entry, info: os.stat_result) -> bool:
    # Another mode is a reason to write anew, not to change it in place: the file may have names elsewhere.
    if entry.kind is EntryKind.FILE and entry.mode is not None and stat.S_IMODE(info.st_mode) != entry.mode & 0o777:
        return False
    if entry.kind is EntryKind.REFERENCE and entry.checksum is None:
        return False  # the size says nothing
    try:
        return is_same(engine, found, target, entry, info)
    except PermissionError:
        return False


# --- writing -------------------------------------------------------------------------------------


class Staged(Target):
    """A target that finishes beside its place what cannot have it yet; see `settle`."""

    def __init__(self, root: str, random_bytes: Callable[[int], bytes], *, make: bool = True) -> None:
        super().__init__(root, make=make)
        self._random_bytes = random_bytes
        self._beside: dict[str, str] = {}
        """path → name it has for now, in the directory it belongs in"""
        self._choosing = threading.Lock()

    def _name(self) -> str:
        return f".{self._random_bytes(OWN).hex()}{PART}"

    def _blocked(self, above: int, path: str, *, create: bool) -> int:
        if not create:
            return super()._blocked(above, path, create=create)
        with self._choosing:  # all threads must take the same
            name = self._beside.get(path)
            if name is None:
                if any(parent in self._beside for parent in ancestors(path)):
                    raise _meanwhile(self, path)
                name = self._name()
                os.mkdir(name, dir_fd=above)
                self._beside[path] = name
        return self.open_directory(name, above)

    def _occupied(self, temporary: str, path: str, directory: int) -> None:
        if path in self._beside or any(parent in self._beside for parent in ancestors(path)):
            raise _meanwhile(self, path)
        self._beside[path] = temporary

    def settle(self) -> None:
        """Move what was finished beside into its place, which must be free by now."""
        self.forget()
        while self._beside:
            path, name = next(iter(self._beside.items()))
            parent, _, last = path.rpartition("/")
            try:
                directory = self.directory(parent, create=False)
                os.rename(name, last, src_dir_fd=directory, dst_dir_fd=directory)
            except (PathConflictError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
                raise _meanwhile(self, path) from None
            del self._beside[path]

    def abandon(self) -> None:
        """Remove what was finished beside."""
        self.forget()
        for path, name in self._beside.items():
            with contextlib.suppress(OSError):
                directory = self.directory(path.rpartition("/")[0], create=False)
                if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    shutil.rmtree(name, ignore_errors=True, dir_fd=directory)  # follows no links
                else:
                    os.unlink(name, dir_fd=directory)
        self._beside.clear()

    def __exit__(self, *problem: object) -> None:
        try:
            if self._beside:
                self.abandon()
        finally:
            super().__exit__(*problem)


def _leave_out(job: Writing, report: CheckoutReport) -> None:
    """Report references that could not be had as skipped, and what was really written."""
    report.skipped = job.missing
    report.files, report.bytes = job.files, job.bytes
    for paths in (report.written, report.replaced):
        paths[:] = [path for path in paths if path not in set(job.missing)]


def _delete(target: Staged, plan: _Plan) -> None:
    """Delete what the plan says, and nothing that has become something else since."""
    target.forget()
    for path, is_directory in plan.deleted:
        parent, _, name = path.rpartition("/")
        try:
            directory = target.directory(parent, create=False)
            if is_directory:
                os.rmdir(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            continue  # that was the purpose
        except (NotADirectoryError, IsADirectoryError, PathConflictError):
            raise _meanwhile(target, path) from None
        except OSError:
            if is_directory and target.list(path):
                raise _meanwhile(target, path) from None
            raise
