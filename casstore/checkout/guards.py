"""What may be written to, and replaced: never the store, a home, a mount point; else only what a checkout has made.

A directory is judged by what it is, not by what its path says: it is open already, and whatever happens to the path,
links and ``..`` in it, that directory is the one that is written to.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat

from casstore.catalogue import Found
from casstore.checkout.target import PART, Target, write_all
from casstore.config import home_directories
from casstore.engine import Engine
from casstore.errors import PathConflictError, RefusedError
from casstore.sources import CHECKOUT_MARKER
from casstore.values import dataclass

MARKER_SCHEMA = "casstore-checkout/1"
MARKER_BYTES = 64 * 1024

Identity = tuple[int, int]
_PATH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


def _identity(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino


def _chain(path: str) -> list[Identity]:
    """A directory and all above it, by its real path and by the one given."""
    found: dict[Identity, None] = {}
    for start in (os.path.realpath(path), os.path.abspath(path)):
        at = start
        while True:
            with contextlib.suppress(OSError):
                found[_identity(os.stat(at))] = None
            above = os.path.dirname(at)
            if above == at:
                break
            at = above
    return list(found)


def mount_of(fd: int) -> str:
    """Tells mounts apart, also two of one file system."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("mnt_id:"):
                return line
    return f"device {os.fstat(fd).st_dev}"


def refuse_store(engine: Engine, root: str) -> None:
    """Raise `RefusedError` if a directory, which may not be there yet, is the store or is inside it."""
    at = root
    while engine.place is not None:
        try:
            fd = os.open(at, _PATH)
        except OSError:
            above = os.path.dirname(os.path.abspath(at))
            if above == at:
                return
            at = above
            continue
        try:
            refuse_inside(engine, fd, root)
        finally:
            os.close(fd)
        return


def refuse_inside(engine: Engine, fd: int, root: str) -> None:
    """Raise `RefusedError` if an open directory is the store or is inside it."""
    try:
        store = None if engine.place is None else _identity(os.stat(engine.place))
    except OSError:
        store = None
    fd = os.dup(fd)
    try:
        here = _identity(os.fstat(fd))
        while True:
            if here == store:
                raise RefusedError(f"{root!r} is in the store", hint="choose another directory; there is no override")
            above = os.open("..", _PATH, dir_fd=fd)
            os.close(fd)
            fd = above
            below, here = here, _identity(os.fstat(fd))
            if here == below:
                return
    finally:
        os.close(fd)


def refuse_precious(engine: Engine, target: Target) -> None:
    """Raise `RefusedError` for a directory whose content must not be replaced, whoever insists.

    That is ``/``, a home directory or one above it, the store, one above or inside it, and mount points.
    """
    refuse_inside(engine, target.top, target.root)
    here = _identity(os.fstat(target.top))
    what = ""
    if here == _identity(os.stat("/")):
        what = "the root of the file system"
    elif engine.place is not None and here in _chain(engine.place):
        what = "a directory above the store"
    else:
        for home in home_directories():
            if here in _chain(home):
                what = "a home directory, or above one"
    above = os.open("..", _PATH, dir_fd=target.top)
    try:
        if not what and mount_of(above) != mount_of(target.top):
            what = "a mount point"
    finally:
        os.close(above)
    if what:
        raise RefusedError(
            f"{target.root!r} is {what}: its content is not replaced",
            hint="check out into a directory of its own; there is no override",
        )


# --- the marker ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marker:
    """What a checkout says about the directory it made. ``complete``: False while it was, or is, under way."""

    store: str
    ref: str
    digest: str
    complete: bool


def marker_for(engine: Engine, found: Found, *, complete: bool) -> Marker:
    """The marker of a checkout of a version."""
    return Marker(engine.config.store_id, found.label, str(engine.digest(found.version.root)), complete)


def read_marker(target: Target) -> Marker | None:
    """The marker of a directory; None unless a checkout put it into this very directory.

    It names the directory by its inode, so that one that came by a download, or was unpacked, marks nothing.
    """
    file = target.open_file(CHECKOUT_MARKER)
    if file is None:
        return None
    with file:
        data = file.read(MARKER_BYTES + 1)
    try:
        values = json.loads(data)
        if values["schema"] != MARKER_SCHEMA or values["inode"] != os.fstat(target.top).st_ino:
            return None
        store, ref, digest = values["store"], values["ref"], values["digest"]
        complete = values["complete"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(isinstance(text, str) for text in (store, ref, digest)):
        return None
    return Marker(store, ref, digest, complete is True)


def write_marker(target: Target, marker: Marker, random: bytes) -> None:
    """Mark a directory, in one step."""
    values = {
        "schema": MARKER_SCHEMA,
        "store": marker.store,
        "ref": marker.ref,
        "digest": marker.digest,
        "complete": marker.complete,
        "inode": os.fstat(target.top).st_ino,
    }
    info = target.lookup(CHECKOUT_MARKER)
    if info is not None and stat.S_ISDIR(info.st_mode):
        raise PathConflictError(f"{CHECKOUT_MARKER!r} below {target.root!r} is a directory", hint="move it away")
    temporary = f".{random.hex()}{PART}"
    fd = target.create(temporary, target.top)
    try:
        try:
            write_all(fd, json.dumps(values).encode() + b"\n")
        finally:
            os.close(fd)
        target.publish(temporary, CHECKOUT_MARKER, target.top)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=target.top)
        raise
