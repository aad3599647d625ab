"""What every index offers, and the words its kinds share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from casstore.errors import IntegrityError, LimitError
from casstore.overlay import KEY_BYTES, Tables

T = TypeVar("T")


class Storage(Protocol):
    """An index, of whatever kind."""

    def read(self) -> AbstractContextManager[Tables]:
        """A consistent snapshot."""
        ...

    def update(self, body: Callable[[Tables], T]) -> T:
        """One write transaction; ``body`` may run more than once."""
        ...

    def reset(self) -> None:
        """Empty every table."""
        ...

    def compact(self, share: float, *, least: int = 0) -> int:
        """Leave out what is free, if it is at least a share, of at least so many bytes; bytes saved."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class IndexDamagedError(IntegrityError):
    """The index is damaged: `LmdbIndex.discard` its ``generation`` and fold the log in again."""

    code = "index-damaged"

    def __init__(self, message: str, *, hint: str = "casstore index rebuild", generation: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.generation = generation


def check_key(key: bytes) -> None:
    """Raise `LimitError` unless a key has a size every kind of index takes."""
    if not 0 < len(key) <= KEY_BYTES:
        raise LimitError(f"an index key of {len(key)} bytes", hint=f"1 to {KEY_BYTES} bytes")


def check_keys(keys: Collection[bytes]) -> None:
    """`check_key` of many."""
    if keys:
        lengths = set(map(len, keys))
        if min(lengths) <= 0 or max(lengths) > KEY_BYTES:
            raise LimitError(f"an index key of {max(lengths)} bytes", hint=f"1 to {KEY_BYTES} bytes")


def after(prefix: bytes) -> bytes | None:
    """The least key above every key with the prefix; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
