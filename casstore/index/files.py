"""Files of the index: generations, the markers in them, how one appears, and how the old ones go."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from casstore.config import MIB, process_id
from casstore.errors import BackendError, CasstoreError, ReadOnlyError
from casstore.index.tables import IndexDamagedError
from casstore.patterns import pattern

MAX_READERS = 2048
MAX_TABLES = 128
LOCK_BYTES = 32 * 1024
"""for about 500 readers at once"""
DAMAGE = (
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
    lmdb.IncompatibleError,
    lmdb.BadTxnError,  # as the first error of a transaction: the root of a table makes no sense
)
# LMDB 0.9 keeps an overflow page that has become too long, which lmdb.verify (3.0.0) takes for damage.
_BENIGN = pattern(r"mp_pages (\d+) != OVPAGES\(\d+\)=(\d+)|overflow pages, record says|-- a leak|errors suppressed")


def _engine() -> tuple[str, dict[str, Any]]:
    """Directory and option of the engine: lmdb 3 has LMDB 0.9 and 1.0, which cannot read each other, lmdb 2 has 0.9."""
    try:
        lmdb.version(lib_version=0)
    except TypeError:
        return "lmdb-v1", {}
    except lmdb.Error:
        return "lmdb-v3", {}
    return "lmdb-v1", {"lib_version": 0}


ENGINE, _OPTIONS = _engine()


def options() -> dict[str, Any]:
    """How every environment of the index is opened: commits are not synced."""
    return {"max_dbs": MAX_TABLES, "max_readers": MAX_READERS, "sync": False, **_OPTIONS}


def translated(error: lmdb.Error | OSError, generation: int | None = None) -> CasstoreError:
    """The error of this library for one of LMDB or of the system: damage, or a failing backend."""
    if isinstance(error, DAMAGE):
        return IndexDamagedError(f"the index is damaged: {error}", generation=generation)
    numbers = (errno.EACCES, errno.EPERM, errno.EROFS)
    # LMDB itself tells no number, only the words for it.
    denied = getattr(error, "errno", None) in numbers or str(error).endswith(tuple(map(os.strerror, numbers)))
    if denied or isinstance(error, lmdb.ReadonlyError):
        return ReadOnlyError(f"index: {error}", hint="open the store with read_only=True, or check who may write there")
    hint = ""
    if isinstance(error, lmdb.ReadersFullError):
        hint = f"more than {MAX_READERS} reads at once on this host; keep them short"
    elif "already open" in str(error):
        hint = "this process was forked inside an index transaction; fork outside, or spawn"
    failure = BackendError(f"index: {error}", hint=hint)
    # LMDB tells no number: its one error of this kind is that of a full disk.
    failure.errno = errno.ENOSPC if isinstance(error, lmdb.DiskError) else getattr(error, "errno", None)
    return failure


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises bare `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_marker(directory: Path, name: str, text: str) -> None:
    """Put a marker beside the environment, in the place of what has its name: durable on return."""
    temporary = directory / f"{name}.{process_id()}.{threading.get_ident()}"
    with temporary.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / name)
    fsync_directory(directory)


def read_marker(directory: Path, name: str) -> str:
    """What a marker says; nothing if there is none."""
    try:
        return (directory / name).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def sound(path: Path) -> bool:
    """Whether ``data.mdb`` is built as LMDB builds it (which LMDB does not look at). Nobody may be writing to it."""
    try:
        problems = importlib.import_module("lmdb.verify").verify(str(path))
    except ModuleNotFoundError:  # lmdb 2
        return True
    except Exception:  # noqa: BLE001 - whatever the verifier stumbles over is not sound
        return False
    matches = [_BENIGN.search(problem) for problem in problems]
    return all(match and (not match[1] or int(match[1]) > int(match[2])) for match in matches)


def highest(root: Path) -> int:
    """The number of the generation that counts; 0 if there is none."""
    try:
        return max((int(name) for name in os.listdir(root) if name.isdigit()), default=0)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise translated(error) from error


def tidy(root: Path, number: int) -> None:
    """Unlink what is older than a generation; who has it mapped keeps it until letting go."""
    for name in os.listdir(root):
        victim = root / name
        if name.isdigit() and int(name) < number:
            victim = root / f"dead-{name}-{process_id()}-{time.monotonic_ns()}"
            with contextlib.suppress(OSError):
                (root / name).rename(victim)  # first, so that nobody opens half of it
        elif not name.startswith("dead-") and not (name.startswith("new-") and int(name.split("-")[1]) <= number):
            continue
        import shutil

        shutil.rmtree(victim, ignore_errors=True)


def _reserve_readers(directory: Path) -> None:
    """Make the table of readers, with blocks: it is mapped, so that on a full disk to touch a page is SIGBUS.

    Only here, before anybody has the environment open, may its lock file be opened.
    """
    descriptor = os.open(directory / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        # Not more than LMDB makes of it: it takes what it finds for the table.
        os.posix_fallocate(descriptor, 0, min(LOCK_BYTES, 64 * MAX_READERS))
    finally:
        os.close(descriptor)


def publish(
    root: Path,
    number: int,
    fill: Callable[[lmdb.Environment], None] | None = None,
    *,
    map_bytes: int = MIB,
    boot: str = "",
) -> bool:
    """Make a generation, born synced; False if another process was first.

    It is empty, and clean; or it holds what ``fill`` writes. If ``boot`` is known, in which it did so, it is clean
    only once it is closed well: whoever closes it sees to it that the log reaches as far.
    """
    temporary = root / f"new-{number}-{process_id()}-{threading.get_ident()}-{time.monotonic_ns()}"
    try:
        temporary.mkdir(parents=True)
        _reserve_readers(temporary)
        with lmdb.open(str(temporary), map_size=map_bytes, create=False, **options()) as env:
            if fill is not None:
                fill(env)
                if boot:
                    write_marker(temporary, "boot", f"{boot} {os.stat(temporary / 'data.mdb').st_ino}")
            env.sync(force=True)
            if fill is None or not boot:
                write_marker(temporary, "clean", str(env.info()["last_txnid"]))
        temporary.rename(root / str(number))
        fsync_directory(root)
    except BaseException as error:
        import shutil

        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, (lmdb.Error, OSError)):
            raise
        if highest(root) >= number:
            return False
        raise translated(error) from error
    return True
