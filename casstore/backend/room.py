"""Room on the disk of a store: how much there is, whether an error says there is none, and the ballast.

The ballast is a file that is there to be given up: a collection on a disk without a free block needs one small
write before it can free anything.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from casstore.backend import TEMPORARY, Backend
from casstore.backend.local import LocalBackend
from casstore.backend.osops import OsOps, translated
from casstore.config import Runtime
from casstore.errors import BackendError, CasstoreError, InvalidInputError

BALLAST = "ballast"
"""beside ``format``, so that listings and sums show it; no object of a store has this key"""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room: on the device, or in a quota."""
    return isinstance(error, CasstoreError) and getattr(error, "errno", None) in _FULL


def free_bytes(backend: Backend) -> int | None:
    """Bytes that may still be written beside a store; None where nobody can tell (a quota is not seen)."""
    if isinstance(backend, LocalBackend):
        with suppress(OSError):
            status = os.statvfs(backend.root)
            return status.f_bavail * status.f_frsize
    return None


def ballast_bytes(backend: Backend) -> int:
    """Size of the ballast; 0: there is none."""
    if isinstance(backend, LocalBackend):
        with suppress(OSError):
            return os.stat(backend.root / BALLAST).st_size
    return 0


def set_ballast(backend: Backend, ops: OsOps, size: int) -> None:
    """Make, resize or (0) remove the ballast. Its blocks are allocated on return, unless the file system cheats.

    Raises `BackendError` when there is no room for it: then there is none, of whatever size it was.
    """
    if not isinstance(backend, LocalBackend):
        raise InvalidInputError("only a store in a directory has a ballast")
    root = os.fspath(backend.root)
    target = os.path.join(root, BALLAST)
    with translated("set the ballast", writing=True):
        # The old one first: there may be no room for both.
        with suppress(FileNotFoundError):
            ops.unlink(target)
        if size:
            temporary = os.path.join(root, TEMPORARY, f"{BALLAST}-{Runtime.random_bytes(8).hex()}")
            descriptor = ops.create(temporary)
            try:
                ops.allocate(descriptor, temporary, size)
                ops.fsync(descriptor, temporary)
                ops.rename(temporary, target)
            except BaseException:
                with suppress(OSError):
                    ops.unlink(temporary)
                raise
            finally:
                os.close(descriptor)
        ops.fsync_dir(root)


def no_room(error: CasstoreError) -> BackendError:
    """What to say when nothing could be given up."""
    failure = BackendError(
        f"the disk is full, and nothing could be given up to collect: {error.message}",
        hint="free a few kB on that disk and run casstore gc again; casstore ballast SIZE keeps some for the next time",
    )
    failure.errno = getattr(error, "errno", None)
    return failure
