"""Where the content of a draft comes from: local files, spooled bytes, links; and the walk over a directory."""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
import sys
from collections.abc import Iterable
from dataclasses import field
from typing import IO, Any, BinaryIO

from casstore.errors import CasstoreError, InvalidInputError, LimitError
from casstore.format.filerows import in_range
from casstore.model import Entry, EntryKind
from casstore.names import is_plain_path
from casstore.native import extension, slots_of
from casstore.patterns import pattern
from casstore.values import dataclass

_native: Any = extension("_scan")

SPOOL_BYTES = 1024 * 1024
"""smaller streams stay in memory"""
COPY_BYTES = 1024 * 1024
SHOWN = 10
"""links an error message lists"""
CHECKOUT_MARKER = ".casstore-checkout"
"""file at the top of a directory that a checkout made: about the directory, and so no part of what is in it"""


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells that a local file is still the one that was added.

    Without its ctime, which a ``chmod`` or another hard link also changes: that is no reason to refuse a file.
    """

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, info: os.stat_result) -> Signature:
        """The signature in a stat result."""
        return cls(info.st_size, in_range(info.st_mtime_ns), info.st_ino, info.st_dev)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on disk, as it was when it was added."""

    path: str
    signature: Signature
    mode: int | None = None
    trusted: bool = field(default=True, compare=False)
    """whether it need not be read if it seems to be what an earlier log has read"""
    attrs_json: bytes = b""
    """see `Entry`"""


LOCAL_FILE, SIGNATURE, ENTRY = slots_of(LocalFile), slots_of(Signature), slots_of(Entry)


@dataclass(frozen=True, slots=True)
class Spooled:
    """Content handed over in memory or as a stream."""

    file: IO[bytes]
    size: int
    attrs_json: bytes = b""


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link kept as a link."""

    target: str


@dataclass(frozen=True, slots=True)
class EmptyDirectory:
    """A directory kept although nothing is in it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry of a stored version, taken over without its bytes."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Referred:
    """A reference: nothing of it is stored but the entry."""

    entry: Entry


Source = LocalFile | Spooled | Link | EmptyDirectory | Taken | Referred


_FS, _FS_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def encoded(path: str) -> bytes:
    """`os.fsencode` of a text: a third of the time, as there is one for each file."""
    return path.encode(_FS, _FS_ERRORS)


def open_local(source: LocalFile) -> BinaryIO:
    """Open an added file for reading; never blocks, never follows a swapped-in special file.

    Raises `InvalidInputError` if it cannot be read or is not the file that was added.
    """
    try:
        fd = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInputError(f"cannot read {source.path!r}: {error.strerror}") from None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise InvalidInputError(f"{source.path!r} is not a regular file any more")
    if Signature.of(info) != source.signature:
        os.close(fd)
        raise InvalidInputError(f"{source.path!r} changed after it was added", hint="add it again, with overwrite=True")
    return os.fdopen(fd, "rb", buffering=0)


EMPTY = ("directory",)


def shape_of(source: Source) -> tuple[object, ...]:
    """What a link, a reference or an empty directory is; nothing for a file."""
    match source:
        case Referred(entry) | Taken(entry) if entry.pointer is not None:
            return ("reference", entry.pointer, entry.size)
        case Link(target):
            return ("link", target)
        case EmptyDirectory():
            return EMPTY
        case Taken(entry) if entry.kind is EntryKind.LINK:
            return ("link", entry.target or "")
        case Taken(entry) if entry.kind is EntryKind.DIRECTORY:
            return EMPTY
        case _:
            return ()


def attrs_of(source: Source) -> bytes:
    """The attrs of its entry, as canonical JSON."""
    match source:
        case LocalFile() | Spooled():
            return source.attrs_json
        case Taken() | Referred():
            return source.entry.attrs_json
        case _:
            return b""


def same_bytes(there: Source, source: Source) -> bool:
    """True if two files have the same content. A file that changed after it was added is not the same."""
    try:
        ours = open_source(there)
    except InvalidInputError:
        return False
    with ours, open_source(source) as theirs:
        try:
            while True:
                a, b = ours.read(COPY_BYTES), theirs.read(COPY_BYTES)
                if a != b:
                    return False
                if not a:
                    return True
        except OSError as error:
            if isinstance(error, CasstoreError):
                raise
            raise InvalidInputError(f"cannot read {source!r:.200}: {error.strerror}") from None


def open_source(source: Source) -> BinaryIO:
    """The content of a file, from its beginning."""
    match source:
        case LocalFile():
            return open_local(source)
        case Spooled():
            source.file.seek(0)
            return io.BytesIO(source.file.read()) if source.size <= SPOOL_BYTES else _View(source)
        case Taken():
            return source.entry.open()
        case _:
            raise AssertionError(source)


class _View(io.RawIOBase, BinaryIO):
    """Reads a spooled file without owning it."""

    def __init__(self, source: Spooled) -> None:
        self._file = source.file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def spooled(spool: IO[bytes], attrs_json: bytes) -> Spooled:
    """What was written to a spool."""
    spool.flush()
    return Spooled(spool, spool.seek(0, os.SEEK_END), attrs_json)


def source_path(path: str | os.PathLike[str]) -> str:
    """A local path as text. Raises `InvalidInputError`."""
    try:
        text = os.fspath(path)
    except TypeError:
        raise InvalidInputError(f"{path!r} is not a path") from None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInputError(f"{path!r} is not a path")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise InvalidInputError(f"{path!r} is not a path: the file system has no such characters") from None
    return text


def local_file(path: str) -> LocalFile:
    """A regular file as it is now. Raises `InvalidInputError`."""
    try:
        info = os.stat(path)
    except OSError as error:
        raise InvalidInputError(f"cannot add {path!r}: {error.strerror}") from None
    check_regular(path, info)
    return LocalFile(os.path.abspath(path), Signature.of(info))


def check_regular(path: str, info: os.stat_result) -> None:
    """Raise `InvalidInputError` unless this is a regular file; says what it is."""
    if stat.S_ISREG(info.st_mode):
        return
    kind = next(
        (
            word
            for test, word in (
                (stat.S_ISDIR, "a directory"),
                (stat.S_ISFIFO, "a FIFO"),
                (stat.S_ISSOCK, "a socket"),
                (stat.S_ISBLK, "a device"),
                (stat.S_ISCHR, "a device"),
            )
            if test(info.st_mode)
        ),
        "not a regular file",
    )
    hint = "use add_dir" if stat.S_ISDIR(info.st_mode) else "exclude it"
    raise InvalidInputError(f"{path!r} is {kind}, not a regular file", hint=hint)


def ancestors(path: str) -> list[str]:
    """The directories above a path."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


_ANY_DEPTH = pattern(r"(?:^|(?<=/))\*\*/")


class Globs:
    """Include and exclude patterns over relative paths."""

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        for patterns in (include, exclude):
            if isinstance(patterns, str) or not isinstance(patterns, Iterable):
                raise InvalidInputError(f"include and exclude are lists of globs, not {patterns!r:.200}")
        self._include = [_compile(pattern) for pattern in include]
        self._exclude = [_compile(pattern) for pattern in exclude]

    @property
    def take_all(self) -> bool:
        """True if there are none."""
        return not self._include and not self._exclude

    def excluded(self, relative: str) -> bool:
        """True if a path, and all below it, is to be left out."""
        return bool(self._exclude) and any(pattern(relative) for pattern in self._exclude)

    def included(self, relative: str) -> bool:
        """True if a file is wanted."""
        if not self._include:
            return True
        paths = [*ancestors(relative), relative]
        return any(pattern(path) for pattern in self._include for path in paths)


def _compile(pattern: str) -> _Match:
    if not isinstance(pattern, str):
        raise InvalidInputError(f"{pattern!r:.200} is not a glob", hint="such as *.txt, or img/*.png")
    pattern = pattern.rstrip("/")
    return _Match(glob_regex(pattern), whole="/" in pattern)


def glob_regex(pattern: str) -> re.Pattern[str]:
    """What a glob matches whole: ``*`` also matches ``/``, and ``**/`` also nothing: the top is some depth, too."""
    parts = [fnmatch.translate(part)[:-2] for part in _ANY_DEPTH.split(pattern)]
    return re.compile("(?s:(?:.*/)?)".join(parts) + r"\Z")


@dataclass(frozen=True, slots=True)
class _Match:
    regex: re.Pattern[str]
    whole: bool

    def __call__(self, relative: str) -> bool:
        if self.regex.match(relative):
            return True
        return not self.whole and any(self.regex.match(part) for part in relative.split("/"))


class Scan:
    """One walk over a directory tree."""

    def __init__(
        self,
        root: str,
        symlinks: str,
        globs: Globs,
        *,
        allow_outside: bool,
        limit: int | None = None,
        keep_mode: bool = False,
        trusted: bool = True,
    ) -> None:
        self.root = os.path.abspath(root)
        self.real = os.path.realpath(root)
        self.symlinks = symlinks
        self.globs = globs
        self.allow_outside = allow_outside
        self.limit = limit
        """files it may find"""
        self.keep_mode = keep_mode
        self.trusted = trusted
        """see `LocalFile.trusted`"""
        self.links: list[str] = []
        self.odd: list[str] = []
        """what was found at paths of which nothing is known; all other paths are such as `check_path` takes"""
        self.pending: list[tuple[str, str, tuple[str, ...]]] = []
        """directories to read: path, path inside the tree, real paths of the links that led there"""

    def run(self, *, keep_empty_dirs: bool) -> list[tuple[str, Source]]:
        """Everything found, by relative path. Raises `InvalidInputError` for what cannot be stored, `LimitError`."""
        found: list[tuple[str, Source]] = []
        self.pending = [(self.root, "", (self.real,))]
        while self.pending:
            self._directory(*self.pending.pop(), found, keep_empty=keep_empty_dirs)
        if self.links:
            links = sorted(self.links)
            shown = ", ".join(links[:SHOWN]) + (" …" if len(links) > SHOWN else "")
            raise InvalidInputError(
                f"{len(links)} symbolic links in {self.root!r}: {shown}",
                hint="symlinks='skip', 'follow' or 'store'",
            )
        return found

    def _directory(
        self, path: str, relative: str, trail: tuple[str, ...], found: list[tuple[str, Source]], *, keep_empty: bool
    ) -> None:
        above = os.path.join(path, "")
        before = len(found) + len(self.pending)
        try:
            if _native is not None and self.limit is None and self.globs.take_all:
                names = self._listed(above, path, f"{relative}/" if relative else "", trail, found)
            else:
                names = sorted(os.listdir(path))
        except OSError as error:
            raise InvalidInputError(f"cannot read directory {path!r}: {error.strerror}") from None
        if not names and len(found) + len(self.pending) == before and keep_empty and relative:
            self.odd.append(relative)
            found.append((relative, EmptyDirectory()))
        for name in names:
            inner = f"{relative}/{name}" if relative else name
            if self.globs.excluded(inner):
                continue
            try:
                info = os.lstat(above + name)
            except OSError as error:
                raise InvalidInputError(f"cannot read {above + name!r}: {error.strerror}") from None
            if stat.S_ISLNK(info.st_mode):
                self._link(above + name, inner, trail, found)
            elif stat.S_ISDIR(info.st_mode):
                self.pending.append((above + name, inner, trail))
            elif self.globs.included(inner) and inner != CHECKOUT_MARKER:
                self._file(above + name, inner, info, found)

    def _listed(
        self, above: str, path: str, inside: str, trail: tuple[str, ...], found: list[tuple[str, Source]]
    ) -> list[str]:
        """Take regular files and directories of a directory; the names of all else, for which nobody is in a hurry."""
        skip = "" if inside else CHECKOUT_MARKER
        outcome = _native.list_directory(path, above, inside, skip, LOCAL_FILE, SIGNATURE, self.keep_mode, self.trusted)
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome))
        files, directories, rest = outcome
        found += files
        if not is_plain_path(inside + "a"):
            self.odd += [inner for inner, _ in files]
        self.pending += [(above + name, inside + name, trail) for name in directories]
        names: list[str] = rest
        return names

    def _file(self, path: str, relative: str, info: os.stat_result, found: list[tuple[str, Source]]) -> None:
        if not stat.S_ISREG(info.st_mode):
            check_regular(path, info)
        if self.limit is not None and len(found) >= self.limit:
            raise LimitError(
                f"{len(found) + 1} files found in {self.root!r}, at most {self.limit} are allowed",
                hint="a part of the directory, or max_objects=",
            )
        mode = stat.S_IMODE(info.st_mode) if self.keep_mode else None
        self.odd.append(relative)
        found.append((relative, LocalFile(path, Signature.of(info), mode, self.trusted)))

    def _link(self, path: str, relative: str, trail: tuple[str, ...], found: list[tuple[str, Source]]) -> None:
        if self.symlinks == "skip" or not self.globs.included(relative):
            return
        if self.symlinks == "error":
            self.links.append(relative)
            return
        if self.symlinks == "store":
            target = os.readlink(path)
            try:
                target.encode()
            except UnicodeEncodeError:
                raise InvalidInputError(f"the target of link {path!r} is not valid UTF-8") from None
            self.odd.append(relative)
            found.append((relative, Link(target)))
            return
        real = os.path.realpath(path)
        if not self.allow_outside and real != self.real and not real.startswith(self.real + os.sep):
            raise InvalidInputError(f"link {path!r} leads out of the tree, to {real!r}", hint="allow_outside=True")
        try:
            info = os.stat(path)
        except OSError as error:
            raise InvalidInputError(f"link {path!r} cannot be followed: {error.strerror}") from None
        if stat.S_ISDIR(info.st_mode):
            if real in trail:
                raise InvalidInputError(f"link {path!r} leads back to a directory above it")
            self.pending.append((path, relative, (*trail, real)))
        else:
            self._file(path, relative, info, found)
