"""A directory on a POSIX file system: temporary file, sync, link, sync of the directory.

The order is normative: data → fsync(file) → link → fsync(directory). Every directory on the way to the object has
a durable name before the object is linked, so whoever sees an object may rely on its directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from casstore.backend import TEMPORARY, Buffer, Growing, ObjectInfo, check_key, check_prefix, check_range, is_key
from casstore.backend.osops import OsOps, SweptError, claimed, translate, translated
from casstore.config import Runtime, has_dear_memory
from casstore.errors import AlreadyExistsError, BackendError, NotFoundError

_DONTCACHE = 0x80 if hasattr(os, "RWF_NOWAIT") else 0
"""RWF_DONTCACHE of Linux 6.14, for which Python has no name yet; older kernels and some file systems refuse it"""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS})

_LARGE = 1024 * 1024
_KEPT = 32 * 1024 * 1024
"""bytes of large files that are left in the page cache whatever memory costs"""
_RECALLED = 1024 * 1024 * 1024
_NOTED = 4096
"""files of which it is known that they were given up"""


class LocalBackend:
    """Objects as read-only files below a directory; safe for many threads and processes at once.

    The directory is made by the first `create`. From then on it must stay the same one: an unmounted disk is an
    error, not an empty store. Files a killed process left in ``tmp/`` are never seen; `sweep_temp` removes them.
    """

    def __init__(
        self,
        root: Path,
        ops: OsOps,
        *,
        new_name: Callable[[int], bytes] = Runtime.random_bytes,
        clock: Callable[[], int] | None = None,
        dear_memory: Callable[[], bool] = has_dear_memory,
    ) -> None:
        """``clock`` (microseconds) gives objects their age instead of the machine's own.

        ``dear_memory``: whether memory that nobody has used for a while costs more than the disk (`has_dear_memory`).
        """
        self._root = os.path.abspath(root)
        self._ops = ops
        self._clock = clock
        self._new_name = new_name
        self._temporary = os.path.join(self._root, TEMPORARY)
        self._settled: set[str] = set()
        """directories whose own names are known to be durable"""
        self._identity: tuple[int, int] | None = None
        self._dear_memory = dear_memory
        self._written = 0
        self._given_up: OrderedDict[str, None] = OrderedDict()
        """files the page cache was told to give up, which nobody has read since"""

    def __repr__(self) -> str:
        return f"LocalBackend({self._root!r})"

    @property
    def root(self) -> Path:
        """The directory."""
        return Path(self._root)

    def create(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Publish an object; see `Backend.create`. Any error but `BackendError` means it was not published."""
        self.create_all(((key, data),))

    def create_all(self, objects: Sequence[tuple[str, Buffer | Sequence[Buffer]]]) -> None:
        """Publish several objects, syncing each directory once; see `create_all`."""
        self._sync_names({self._publish(key, data): key for key, data in objects})

    def _sync_names(self, parents: dict[str, str]) -> None:
        """Make the names in some directories durable, each with a key that was linked there."""
        for parent, key in parents.items():
            try:
                self._ops.fsync_dir(parent)
            except OSError as error:
                raise _unsure(error, key) from error

    def _publish(self, key: str, data: Buffer | Sequence[Buffer]) -> str:
        """Link an object whose data is durable; returns the directory to be synced."""
        return self._name(*self._prepare(key, data), key)

    def _prepare(self, key: str, data: Buffer | Sequence[Buffer] | None) -> tuple[str, int]:
        """The directory of an object, its name durable, and a `_temp_file`."""
        check_key(key)
        target = self._path(key)
        if os.path.lexists(target):
            raise _taken(key)
        with translated(f"create {key}", writing=True):
            self._settle(os.path.dirname(target))
            return self._temp_file(data)

    def _name(self, temp: str, fd: int, key: str) -> str:
        """Link a temporary file whose data is durable, and close it; returns the directory to be synced."""
        target = self._path(key)
        try:
            self._link(temp, target, key)
            self._recycle(fd, target)
        finally:
            with suppress(OSError):
                self._ops.unlink(temp)
            with suppress(OSError):
                os.close(fd)
        if self._clock is not None:
            # Only the collector's politeness depends on it, so it is neither an effect nor synced.
            with suppress(OSError):
                os.utime(target, ns=(self._clock() * 1000,) * 2)
        return os.path.dirname(target)

    def begin(self, key: str) -> Growing:
        """An object to be written bit by bit; see `Grows.begin`."""
        temp, fd = self._prepare(key, None)

        def publish(fd: int) -> None:
            self._sync_names({self._name(temp, fd, key): key})

        return _Growing(self._ops, temp, fd, publish)

    def _recycle(self, fd: int, target: str) -> None:
        """Have the page cache give up a large file, which is durable, if much was written and fresh memory is dear.

        What is written next then goes to the same memory. Advice, and no effect.
        """
        with suppress(OSError):
            size = os.fstat(fd).st_size
            if size < _LARGE:
                return
            self._written += size
            if self._written > _KEPT and self._dear_memory():
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                given_up = self._given_up
                given_up[target] = None
                if len(given_up) > _NOTED:
                    given_up.popitem(last=False)

    def recall(self) -> None:
        """Ask for what was given up to be read into the page cache again, up to a size; returns before it is.

        For the end of a session: what it stored may be read next, and the disk fills fresh memory for less. Advice:
        nothing is raised, and nothing promised.
        """
        given_up, self._given_up = self._given_up, OrderedDict()
        rest = _RECALLED
        for path in list(given_up):  # a reader may still take one out
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    size = min(rest, os.fstat(fd).st_size)
                    rest -= size
                    _recall(fd, size)
                finally:
                    os.close(fd)

    def _temp_file(self, data: Buffer | Sequence[Buffer] | None) -> tuple[str, int]:
        """A temporary file, written, synced and still open; None: there is nothing to write yet. Raises `OSError`."""
        if not os.path.isdir(self._temporary):
            self._mkdir(self._temporary)
        while True:
            temp = os.path.join(self._temporary, self._new_name(16).hex())
            try:
                return temp, self._ops.create(temp) if data is None else self._ops.open_file(temp, data)
            except SweptError:
                continue

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; see `Backend.read`."""
        check_key(key)
        check_range(offset, length)
        fd, size = self._open(key)
        try:
            # Whoever reads in what he has just written will read more of it, and would wait for the disk each time.
            if self._given_up and self._given_up.pop(self._path(key), False) is None:
                with suppress(OSError):
                    _recall(fd, size)
            with translated(f"read {key}"):
                wanted = max(0, size - offset)
                data = _pread(fd, wanted if length is None else min(wanted, length), offset)
        finally:
            os.close(fd)
        self._remember()
        return data

    def read_into(self, key: str, target: memoryview, *, offset: int) -> int:
        """Bytes of an object; see `ReadsInto.read_into`."""
        check_key(key)
        check_range(offset, len(target))
        done = 0
        fd, _ = self._open(key)
        try:
            with translated(f"read {key}"):
                while done < len(target) and (got := _pread_once(fd, target[done:], offset + done)):
                    done += got
        finally:
            os.close(fd)
        self._remember()
        return done

    def _open(self, key: str) -> tuple[int, int]:
        """An object, open for reading, and its size."""
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failure(error, key, "read") from error
        try:
            with translated(f"read {key}"):
                info = os.fstat(fd)
                if not stat.S_ISREG(info.st_mode):
                    raise NotFoundError(f"there is no object {key}")
        except BaseException:
            os.close(fd)
            raise
        return fd, info.st_size

    def stat(self, key: str) -> ObjectInfo:
        """Size and age of an object; see `Backend.stat`."""
        check_key(key)
        try:
            info = os.stat(self._path(key))
        except OSError as error:
            raise self._failure(error, key, "look at") from error
        if not stat.S_ISREG(info.st_mode):
            raise NotFoundError(f"there is no object {key}")
        self._remember()
        return _info(key, info)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below a prefix in key order; see `Backend.list`.

        A directory is read when the listing reaches it, in one go; objects that vanish meanwhile are left out.
        """
        check_prefix(prefix)
        self._remember()
        return self._walk(prefix.rpartition("/")[0], prefix, after)

    def delete(self, key: str) -> None:
        """Remove an object; see `Backend.delete`."""
        check_key(key)
        try:
            self._ops.unlink(self._path(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._verify_root(f"delete {key}", required=False)
        except OSError as error:
            raise translate(error, f"delete {key}", writing=True) from error

    def barrier(self, prefix: str) -> None:
        """Sync every directory holding keys with a prefix, and the names of these directories; see `Backend.barrier`.

        Only a prefix that ends in ``/`` spares reading the directory above.
        """
        check_prefix(prefix)
        with translated(f"sync {prefix or 'the store'}"):
            for directory in [*self._holders(prefix.rpartition("/")[0], prefix)]:
                path = self._path(directory)
                try:
                    self._settle(path)
                    self._ops.fsync_dir(path)
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise BackendError(f"cannot sync {path}: it vanished", hint="is the disk mounted?") from error

    def sweep_temp(self, older_than_micros: int) -> int:
        """Remove temporary files last written before a time (microseconds since the epoch); returns how many.

        Those of writers that live are spared, as far as `flock` shows it. A writer whose file is taken away fails
        with an error and publishes nothing, so the rest is politeness: on a network allow them a day or two.
        """
        removed = 0
        with translated("sweep temporary files"):
            for entry in self._entries(TEMPORARY):
                with suppress(FileNotFoundError):
                    if entry.is_dir() or entry.stat(follow_symlinks=False).st_mtime_ns // 1000 >= older_than_micros:
                        continue
                    with claimed(entry.path) as free:
                        if free:
                            self._ops.unlink(entry.path)
                            removed += 1
        return removed

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _link(self, temp: str, target: str, key: str) -> None:
        try:
            self._ops.link(temp, target)
        except OSError as error:
            # NFS: the answer to a link that was made can be lost, or be an error of its repetition
            with suppress(OSError):
                if os.stat(temp).st_nlink == 2:
                    return
            if isinstance(error, FileExistsError):
                raise _taken(key) from error
            if error.errno in _NO_LINKS:
                failure = _unsure(error, key)
                failure.hint = "the file system must have hard links; keep the store on another one"
                raise failure from error
            if isinstance(error, FileNotFoundError):
                self._settled.clear()
            raise translate(error, f"create {key}", writing=True) from error

    def _settle(self, directory: str) -> None:
        """Make a directory, if need be, and its name durable.

        Also one that exists already: whoever made it may not have synced its name yet. Once is enough.
        """
        if directory in self._settled:
            return
        parent = os.path.dirname(directory)
        is_root = directory == self._root
        if parent != directory and (directory.startswith(f"{self._root}/") or not os.path.isdir(parent)):
            self._settle(parent)
        made = self._mkdir(directory)
        try:
            self._ops.fsync_dir(parent)
        except PermissionError:
            # A root found in a directory we may not read: its first object was linked after that was synced.
            if made or not is_root:
                raise
        if is_root:
            self._remember()
        self._settled.add(directory)

    def _mkdir(self, directory: str) -> bool:
        if os.path.isdir(directory):
            return False
        self._verify_root(f"make {directory}", required=False)
        try:
            self._ops.mkdir(directory)
        except FileExistsError:
            return False
        return True

    def _remember(self) -> None:
        if self._identity is None:
            self._verify_root("open the store", required=False)

    def _verify_root(self, doing: str, *, required: bool) -> None:
        """Tell a missing name from a missing store. Raises `BackendError` if the root is gone or another one."""
        try:
            info = os.stat(self._root)
        except (FileNotFoundError, NotADirectoryError) as error:
            if required or self._identity is not None:
                failure = BackendError(f"cannot {doing}: there is no directory {self._root}", hint="is it mounted?")
                failure.errno = error.errno
                raise failure from error
            return
        except OSError as error:
            raise translate(error, doing) from error
        identity = (info.st_dev, info.st_ino)
        if self._identity is None:
            self._identity = identity
        elif self._identity != identity:
            raise BackendError(
                f"cannot {doing}: {self._root} is not the directory it was",
                hint="is the disk still mounted? open the store again",
            )

    def _failure(self, error: OSError, key: str, verb: str) -> Exception:
        if isinstance(error, FileNotFoundError | NotADirectoryError):  # as `translate` has it; often, where a log ends
            self._verify_root(f"{verb} {key}", required=False)
            return NotFoundError(f"there is no object {key}")
        return translate(error, f"{verb} {key}")

    def _entries(self, directory: str) -> Sequence[os.DirEntry[str]]:
        """What is in a directory; nothing if it is missing while the root is not. Raises bare `OSError`."""
        try:
            with os.scandir(self._path(directory)) as entries:
                return [*entries]
        except (FileNotFoundError, NotADirectoryError):
            self._verify_root(f"list {directory or 'the store'}", required=True)
            return ()

    def _children(self, directory: str) -> Sequence[tuple[str, os.DirEntry[str]]]:
        """Key (directories: with a final ``/``) and entry of what is in a directory, in key order."""
        base = f"{directory}/" if directory else ""
        with translated(f"list {directory or 'the store'}"):
            found = [
                (f"{base}{entry.name}/" if entry.is_dir() else f"{base}{entry.name}", entry)
                for entry in self._entries(directory)
                if is_key(base + entry.name)
            ]
        found.sort(key=lambda pair: pair[0])
        return found

    def _walk(self, directory: str, prefix: str, after: str | None) -> Iterator[ObjectInfo]:
        for key, entry in self._children(directory):
            if key.endswith("/"):
                below = key.startswith(prefix) or prefix.startswith(key)
                if below and (after is None or key > after or after.startswith(key)):
                    yield from self._walk(key[:-1], prefix, after)
            elif key.startswith(prefix) and (after is None or key > after):
                try:
                    info = entry.stat()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise translate(error, f"list {key}") from error
                if stat.S_ISREG(info.st_mode):
                    yield _info(key, info)

    def _holders(self, directory: str, prefix: str) -> Iterator[str]:
        """Directories that hold keys with a prefix."""
        children = self._children(directory)
        base = f"{directory}/" if directory else ""
        if os.path.isdir(self._path(directory)) and (
            base.startswith(prefix) or any(key.startswith(prefix) and key[-1] != "/" for key, _ in children)
        ):
            yield directory
        for key, _ in children:
            if key.endswith("/") and (key.startswith(prefix) or prefix.startswith(key)):
                yield from self._holders(key[:-1], prefix)


class _Growing:
    """A temporary file, open and so locked, that grows; see `Growing`."""

    def __init__(self, ops: OsOps, temp: str, fd: int, name: Callable[[int], None]) -> None:
        """``name``: publishes the file, which is durable, and closes it."""
        self._ops = ops
        self._temp = temp
        self._fd: int | None = fd
        self._name = name

    def write(self, data: Sequence[Buffer]) -> None:
        """Append some buffers, and have the disk take them: then the sync before the link has little left to do."""
        fd = self._open()
        try:
            with translated("write an object", writing=True):
                self._ops.write(fd, self._temp, data)
                self._ops.fsync(fd, self._temp)
        except BaseException:
            self.discard()  # what lacks some bytes is never to be published
            raise

    def publish(self, data: Sequence[Buffer]) -> None:
        """Append the last buffers and publish it all; see `Growing.publish`."""
        self.write(data)
        fd, self._fd = self._open(), None
        self._name(fd)

    def discard(self) -> None:
        """Take away what was written, unless it was published."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                self._ops.drop(fd, self._temp)

    def _open(self) -> int:
        if self._fd is None:
            raise BackendError(f"{self._temp} was given up", hint="log it again")
        return self._fd

    def __del__(self) -> None:
        if self._fd is not None:  # whoever wrote it forgot it: then its file is to be swept, and not locked
            with suppress(OSError):
                os.close(self._fd)


def _taken(key: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"there is an object {key} already")


def _unsure(error: OSError, key: str) -> BackendError:
    """For failures from the link on, when the object may be visible: never anything but `BackendError`."""
    failure = translate(error, f"make {key} durable")
    if not isinstance(failure, BackendError):
        failure = BackendError(failure.message, hint=failure.hint)
        failure.errno = error.errno
    return failure


def _info(key: str, info: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, info.st_size, info.st_mtime_ns // 1000)


def _recall(fd: int, size: int) -> None:
    """Have the page cache read the start of a file. Raises bare `OSError`."""
    for at in range(0, size, _LARGE):  # of more than some MiB Linux would read only the start
        os.posix_fadvise(fd, at, _LARGE, os.POSIX_FADV_WILLNEED)


def _pread(fd: int, length: int, offset: int) -> bytes:
    """Up to ``length`` bytes: fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    if not data or len(data) == length:
        return data
    parts = [data]
    done = len(data)
    while done < length and (data := os.pread(fd, length - done, offset + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _pread_once(fd: int, target: memoryview, offset: int) -> int:
    """Some bytes, at least one before the end; those that were in no memory are in none after, if that can be had."""
    if _DONTCACHE:
        try:
            return os.preadv(fd, [target], offset, _DONTCACHE)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
    return os.preadv(fd, [target], offset)
