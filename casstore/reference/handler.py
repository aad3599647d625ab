"""The seam for kinds of places that references point to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Protocol

from casstore.model import Entry, Pointer
from casstore.values import dataclass

ALLOW, ERROR = "allow", "error"
"""of ``on_private_address``"""
TIMEOUT = 30.0
MAX_OBJECTS = 10_000_000


@dataclass(frozen=True, slots=True)
class Access:
    """What may be reached, and how long one answer may take.

    ``roots``: directories that files must be in; None = anywhere. ``on_private_address``: ``error`` refuses hosts with
    an address that is not public. ``timeout``: seconds until the head of an answer is there, and then without a byte.
    """

    roots: tuple[str, ...] | None = None
    on_private_address: str = ALLOW
    timeout: float = TIMEOUT


ANYWHERE = Access()


@dataclass(frozen=True, slots=True)
class Resolved:
    """One object behind a URI. ``name``: its path below the URI's; empty for the object the URI itself names."""

    name: str
    size: int | None
    pointer: Pointer


class Handler(Protocol):
    """Knows the objects behind URIs of some schemes. Thread-safe, without state. It never changes anything there."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes it knows, in lower case."""
        ...

    def resolve(self, uri: str, *, checksum: bool, limit: int, access: Access) -> Iterator[Resolved]:
        """The object, or all objects below, in the order of their names.

        Without ``checksum`` one object, the URI itself, and nothing is read. Raises `ReferenceMissingError`,
        `LimitError` once there are more than ``limit``, `InvalidInputError`, `BackendError`.
        """
        ...

    def open(self, entry: Entry, access: Access) -> BinaryIO:
        """Read the very object that was recorded; the caller compares its bytes with size and digest.

        Raises `ReferenceMissingError`, or `ReferenceChangedError` if a validator tells that it is another one now.
        """
        ...

    def check(self, entry: Entry, access: Access) -> bool:
        """Look at the object without reading more than is needed; errors as `open`.

        True if it was shown to be what was recorded, False if it is there and nothing that was recorded can show it.
        """
        ...
