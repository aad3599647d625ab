"""Where the content of a draft comes from: local files, spooled bytes, links; and the walk over a directory."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, BinaryIO

from casstore.errors import InvalidInputError
from casstore.model import Entry

SHOWN = 10
"""links an error message lists"""


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells that a local file is still the one that was added."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, info: os.stat_result) -> Signature:
        """The signature in a stat result."""
        return cls(info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on disk, as it was when it was added."""

    path: str
    signature: Signature
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Spooled:
    """Content handed over in memory or as a stream."""

    file: IO[bytes]
    size: int


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


Source = LocalFile | Spooled | Link | EmptyDirectory | Taken


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


def source_path(path: str | os.PathLike[str]) -> str:
    """A local path as text. Raises `InvalidInputError`."""
    try:
        text = os.fspath(path)
    except TypeError:
        raise InvalidInputError(f"{path!r} is not a path") from None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInputError(f"{path!r} is not a path")
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


class Globs:
    """Include and exclude patterns over relative paths."""

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        for patterns in (include, exclude):
            if isinstance(patterns, str):
                raise InvalidInputError("include and exclude are lists of globs, not one string")
        self._include = [_compile(pattern) for pattern in include]
        self._exclude = [_compile(pattern) for pattern in exclude]

    def excluded(self, relative: str) -> bool:
        """True if a path, and all below it, is to be left out."""
        return any(pattern(relative) for pattern in self._exclude)

    def included(self, relative: str) -> bool:
        """True if a file is wanted."""
        if not self._include:
            return True
        paths = [*ancestors(relative), relative]
        return any(pattern(path) for pattern in self._include for path in paths)


def _compile(pattern: str) -> _Match:
    regex = re.compile(fnmatch.translate(pattern.rstrip("/")))
    return _Match(regex, whole="/" in pattern.rstrip("/"))


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

    def __init__(self, root: str, symlinks: str, globs: Globs, *, allow_outside: bool) -> None:
        self.root = os.path.abspath(root)
        self.real = os.path.realpath(root)
        self.symlinks = symlinks
        self.globs = globs
        self.allow_outside = allow_outside
        self.links: list[str] = []
        self.pending: list[tuple[str, str, tuple[str, ...]]] = []
        """directories to read: path, path inside the tree, real paths of the links that led there"""

    def run(self, *, keep_empty_dirs: bool) -> list[tuple[str, Source]]:
        """Everything found, by relative path. Raises `InvalidInputError` for what cannot be stored."""
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
        try:
            with os.scandir(path) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError as error:
            raise InvalidInputError(f"cannot read directory {path!r}: {error.strerror}") from None
        if not items and keep_empty and relative:
            found.append((relative, EmptyDirectory()))
        for item in items:
            inner = f"{relative}/{item.name}" if relative else item.name
            if self.globs.excluded(inner):
                continue
            try:
                info = item.stat(follow_symlinks=False)
            except OSError as error:
                raise InvalidInputError(f"cannot read {item.path!r}: {error.strerror}") from None
            if stat.S_ISLNK(info.st_mode):
                self._link(item.path, inner, trail, found)
            elif stat.S_ISDIR(info.st_mode):
                self.pending.append((item.path, inner, trail))
            elif self.globs.included(inner):
                self._file(item.path, inner, info, found)

    def _file(self, path: str, relative: str, info: os.stat_result, found: list[tuple[str, Source]]) -> None:
        check_regular(path, info)
        found.append((relative, LocalFile(path, Signature.of(info), stat.S_IMODE(info.st_mode))))

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
