"""What every index offers, and the words its kinds share."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from casstore.errors import IntegrityError, LimitError
from casstore.overlay import KEY_BYTES

T = TypeVar("T")


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
