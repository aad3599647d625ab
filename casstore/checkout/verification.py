"""Files against a version, and a version against its digests."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import BinaryIO, Self

from casstore import reference
from casstore.catalogue import Found
from casstore.checkout.guards import read_marker
from casstore.checkout.listing import trusted
from casstore.checkout.target import Target
from casstore.contents import Failures, Piece, entries, naming, pieces, reference_access, windows
from casstore.digest import hasher
from casstore.engine import Engine
from casstore.errors import (
    BackendError,
    CasstoreError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    PathConflictError,
    ReferenceChangedError,
    ReferenceMissingError,
    RefusedError,
    VerificationError,
)
from casstore.model import Entry, EntryKind, Progress, no_progress
from casstore.sources import CHECKOUT_MARKER, ancestors, source_path
from casstore.values import dataclass

BLOCK = 1024 * 1024


class Verified(int):
    """Bytes checked. ``unverified_refs``: references (paths) whose content was not compared, or cannot be."""

    unverified_refs: tuple[str, ...] = ()

    @classmethod
    def of(cls, checked: int, unverified_refs: list[str]) -> Self:
        """Both."""
        found = cls(checked)
        found.unverified_refs = tuple(unverified_refs)
        return found


@dataclass(slots=True)
class _Problems:
    """What was found wrong so far."""

    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    erased: int = 0
    """how many of the missing were given up on request"""

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.extra)

    def raise_for(self, found: Found) -> None:
        """Raise `VerificationError` if anything is wrong."""
        if not self:
            return
        gone = f"missing ({self.erased} of them erased on request)" if self.erased else "missing"
        counts = [(len(self.missing), gone), (len(self.changed), "changed"), (len(self.extra), "extra")]
        said = ", ".join(f"{count} {word}" for count, word in counts if count)
        first = (self.missing + self.changed + self.extra)[0]
        raise VerificationError(
            f"{found.label}: {said}; first: {first!r}",
            missing=self.missing,
            changed=self.changed,
            extra=self.extra,
            unverified_refs=self.unverified,
            collection=found.name.short,
            version=f"v{found.version.number}",
            path=first,
        )


def verify_stored(
    engine: Engine, found: Found, progress: Progress = no_progress, *, check_refs: bool = False
) -> Verified:
    """Read every byte of a version from the store; returns the bytes checked.

    With ``check_refs`` what references point to is compared with what was recorded, too. Raises `VerificationError`
    with all paths that are damaged or missing.
    """
    problems = _Problems()
    done = 0
    failures: Failures = []
    _check_listing(engine, found)
    compare = _reference_check(engine, check_refs=check_refs)
    for entry in entries(engine, found, failures=failures):
        if entry.kind is EntryKind.REFERENCE:
            compare(entry, problems, proven=False)
            progress("verify", done, found.version.size)
            continue
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
            (problems.missing if error.code == "chunk-missing" else problems.changed).append(entry.path)
            problems.erased += _was_erased(engine, error)
        progress("verify", done, found.version.size)
    for path, failure in failures:
        (problems.missing if failure.code == "chunk-missing" else problems.changed).append(path)
    problems.raise_for(found)
    return Verified.of(done, problems.unverified)


def _reference_check(engine: Engine, *, check_refs: bool) -> Callable[..., None]:
    access = reference_access(engine) if check_refs else None

    def compare(entry: Entry, problems: _Problems, *, proven: bool) -> None:
        """``proven``: the bytes of a copy of it are known to be right."""
        if access is None:
            if not proven:
                problems.unverified.append(entry.path)
            return
        try:
            proven = reference.check(entry, access) or proven
        except ReferenceMissingError:
            problems.missing.append(entry.path)
        except ReferenceChangedError:
            problems.changed.append(entry.path)
        except (InvalidInputError, RefusedError, BackendError):
            problems.unverified.append(entry.path)
        else:
            if not proven:
                problems.unverified.append(entry.path)

    return compare


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
    engine: Engine,
    found: Found,
    root: str | os.PathLike[str],
    progress: Progress = no_progress,
    *,
    check_refs: bool = False,
) -> Verified:
    """Compare a directory with a version: every byte, and nothing that does not belong.

    Links are compared, not followed. The marker of a checkout belongs. Returns the bytes checked. Raises
    `VerificationError` with all problems at once.
    """
    top = source_path(root)
    if not os.path.isdir(top):
        raise InvalidInputError(f"{top!r} is not a directory")
    problems = _Problems()
    known: set[str] = set()
    directories: set[str] = set()
    done = 0
    compare = _reference_check(engine, check_refs=check_refs)
    try:
        with Target(top, make=False) as target:
            for entry in trusted(found, entries(engine, found)):
                known.add(entry.path)
                above = entry.path.rpartition("/")[0]
                if above and above not in directories:
                    directories.update(ancestors(entry.path))
                if entry.kind is EntryKind.DIRECTORY:
                    directories.add(entry.path)
                _verify_entry(engine, found, target, entry, problems, compare)
                done += entry.length
                progress("verify", done, found.version.size)
            if CHECKOUT_MARKER not in known and read_marker(target) is not None:
                known.add(CHECKOUT_MARKER)
            problems.extra.extend(
                path
                for path, is_directory in _everything(target)
                if path not in known and not (is_directory and path in directories)
            )
    except OSError as error:
        if isinstance(error, CasstoreError):
            raise
        raise InvalidInputError(f"cannot read {error.filename or top!r}: {error.strerror}") from None
    problems.raise_for(found)
    return Verified.of(done, problems.unverified)


def _verify_entry(
    engine: Engine, found: Found, target: Target, entry: Entry, problems: _Problems, compare: Callable[..., None]
) -> None:
    info = target.lookup(entry.path)
    if info is None:
        problems.missing.append(entry.path)
    elif not is_same(engine, found, target, entry, info):
        problems.changed.append(entry.path)
    elif entry.kind is EntryKind.REFERENCE:
        compare(entry, problems, proven=entry.checksum is not None)


def _everything(target: Target) -> list[tuple[str, bool]]:
    """Every path below a directory, and whether it is a directory itself: links are not."""
    found: list[tuple[str, bool]] = []
    pending = [""]
    while pending:
        above = pending.pop()
        try:
            listing = target.list(above)
        except (FileNotFoundError, PathConflictError):
            continue  # it went meanwhile
        for name, info in listing:
            path = f"{above}/{name}" if above else name
            is_directory = stat.S_ISDIR(info.st_mode)
            found.append((path, is_directory))
            if is_directory:
                pending.append(path)
    return sorted(found)


def is_same(engine: Engine, found: Found, target: Target, entry: Entry, info: os.stat_result) -> bool:
    """Whether what is at the path of an entry is what the entry says, as far as it says it. Modes aside.

    Of a reference without a checksum there is only the size.
    """
    if entry.kind is EntryKind.LINK:
        return stat.S_ISLNK(info.st_mode) and target.read_link(entry.path) == entry.target
    if entry.kind is EntryKind.DIRECTORY:
        return stat.S_ISDIR(info.st_mode)
    if not stat.S_ISREG(info.st_mode) or (entry.size is not None and info.st_size != entry.size):
        return False
    file = target.open_file(entry.path)
    if file is None:
        return False
    with file:
        if entry.kind is EntryKind.REFERENCE:
            return entry.checksum is None or _same_bytes(entry, file)
        with naming(found, entry.path):
            return _same_chunks(engine.hash, pieces(engine, entry), file.read)


def _same_chunks(hash_bytes: Callable[[bytes], bytes], parts: Iterator[Piece], read: Callable[[int], bytes]) -> bool:
    return all(hash_bytes(read(length)) == digest for _, digest, length in parts) and not read(1)


def _same_bytes(entry: Entry, file: BinaryIO) -> bool:
    assert entry.checksum is not None
    running = hasher(entry.checksum.algorithm)
    for block in iter(lambda: file.read(BLOCK), b""):
        running.update(block)
    return running.digest() == entry.checksum.value
