"""The contract of an object store: immutable objects under keys, five verbs.

Keys are ``/``-separated ASCII names such as ``packs/ab/abcd…``. Backends know keys and bytes, nothing else.
Vendor errors are translated here, once: nothing but `casstore.errors` leaves a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from casstore.errors import InvalidInputError
from casstore.patterns import pattern
from casstore.values import dataclass

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it. ``modified``: microseconds since the epoch by the backend's clock."""

    key: str
    size: int
    modified: int


class Backend(Protocol):
    """Immutable objects under keys. All methods are thread-safe."""

    def create(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Publish an object: atomic, durable on return, never replacing one.

        A sequence of buffers is stored as their concatenation. Raises `AlreadyExistsError` if the key is
        taken (and changes nothing), `BackendError` if the object could not be made durable, in which case
        it may or may not exist.
        """
        ...

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; shorter than asked at its end. Raises `NotFoundError`."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Size and age of an object. Raises `NotFoundError`."""
        ...

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects whose key starts with a prefix, in key order, those after a key only.

        Raises `BackendError` rather than ending early: a failed listing is never an empty listing.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error if it is gone already. Durable at the next `barrier` at the latest."""
        ...

    def barrier(self, prefix: str) -> None:
        """Return once every name seen below a prefix is durable, whoever wrote it (a directory sync)."""
        ...


@runtime_checkable
class ReadsInto(Protocol):
    """What a backend may be able to do besides, for whoever reads much, and once."""

    def read_into(self, key: str, target: memoryview, *, offset: int) -> int:
        """Bytes of an object into memory; how many: fewer only at its end. Raises `NotFoundError`.

        What other readers may want is not driven out of memory for it, where the system allows that.
        """
        ...


class Growing(Protocol):
    """An object that is being written, and nobody sees yet. One call at a time, from any thread."""

    def write(self, data: Sequence[Buffer]) -> None:
        """Append some buffers. Raises `BackendError`, and is of no use then but to be discarded."""
        ...

    def publish(self, data: Sequence[Buffer]) -> None:
        """Append the last buffers and publish it all; as `Backend.create`. Nothing is left to be discarded."""
        ...

    def discard(self) -> None:
        """Take away what was written, unless it was published. Raises nothing; may be called again."""
        ...


@runtime_checkable
class Grows(Protocol):
    """What a backend may be able to do besides, for whoever makes a large object bit by bit."""

    def begin(self, key: str) -> Growing:
        """An object whose end is not known yet. Raises what `Backend.create` does."""
        ...


@runtime_checkable
class Recalls(Protocol):
    """What a backend may be able to do besides, for whoever is done with writing."""

    def recall(self) -> None:
        """Have what was stored, and may be read next, where it is read from fast. Returns at once; raises nothing."""
        ...


def create_all(backend: Backend, objects: Sequence[tuple[str, Buffer | Sequence[Buffer]]]) -> None:
    """`Backend.create` for several objects, in order; cheaper where a backend has a ``create_all`` of its own.

    All are durable on return, none before. Not atomic: after an error any of them may exist.
    """
    together: Callable[[Sequence[tuple[str, Buffer | Sequence[Buffer]]]], None] | None
    together = getattr(backend, "create_all", None)
    if together is not None:
        together(objects)
        return
    for key, data in objects:
        backend.create(key, data)


TEMPORARY = "tmp"
"""the one first part no key has: where backends keep what is not published yet"""

_KEY = pattern(r"(?!tmp(?:/|\Z))(?:(?!\.\.?(?:/|\Z))[!-.0-\[\]-~]{1,255}(?:/(?!\Z)|\Z))+")
_PREFIX = pattern(r"[!-\[\]-~]{0,255}")


def is_key(key: str) -> bool:
    """Whether every backend can hold this key: parts of 1 to 255 visible ASCII characters, none ``.`` or ``..``.

    No backslash; at most 1024 characters; the first part is not ``tmp``.
    """
    return len(key) <= 1024 and _KEY.fullmatch(key) is not None


def check_key(key: str) -> None:
    """Raise `InvalidInputError` unless `is_key`."""
    if not is_key(key):
        raise InvalidInputError(f"{key!r} is not a key", hint="names of visible ASCII characters between single /")


def check_prefix(prefix: str) -> None:
    """Raise `InvalidInputError` unless a prefix could begin a key (``tmp`` is allowed: nothing is there)."""
    above, _, last = prefix.rpartition("/")
    if not (_PREFIX.fullmatch(last) and ("/" not in prefix or above == TEMPORARY or is_key(above))):
        raise InvalidInputError(f"{prefix!r} is not a prefix of keys")


def check_range(offset: int, length: int | None) -> None:
    """Raise `InvalidInputError` for a negative offset or length."""
    if offset < 0 or (length is not None and length < 0):
        raise InvalidInputError(f"cannot read {length} bytes at {offset}: negative")


from casstore.backend.opening import is_local, open_backend  # noqa: E402  (it needs the names above)

__all__ = [
    "TEMPORARY",
    "Backend",
    "Buffer",
    "ObjectInfo",
    "check_key",
    "check_prefix",
    "check_range",
    "is_key",
    "is_local",
    "open_backend",
]
