"""Read nodes and list what they refer to: the part of a mark that other processes can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, TypeVar

from casstore.backend.local import LocalBackend
from casstore.backend.osops import OsOps
from casstore.chunks import ChunkReader
from casstore.codec import ZstdCodec
from casstore.digest import hash_function
from casstore.errors import CasstoreError, IntegrityError
from casstore.format.nodes import references_of
from casstore.model import Location
from casstore.values import dataclass

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class References:
    """What a node refers to: digests, joined. Small, and travels between processes."""

    nodes: bytes
    """those that are nodes below it"""
    all: bytes
    """every distinct digest, in order of first appearance"""

    def split(self, width: int) -> list[bytes]:
        """The digests of ``all``."""
        return [self.all[at : at + width] for at in range(0, len(self.all), width)]

    def same(self, row: bytes, width: int) -> bool:
        """Whether a row of the node table lists the same digests."""
        if row == self.all:
            return True
        return len(row) == len(self.all) and set(References(b"", row).split(width)) == set(self.split(width))


Found = References | IntegrityError | None
"""of one node: what it refers to; or why that cannot be told; or that somebody else should try"""


@dataclass(frozen=True, slots=True)
class NodeSource:
    """How to reach a store's packs, and how its content is named."""

    root: str
    digest: str


def references(digest: bytes, data: bytes) -> References:
    """What the bytes of a node refer to. Raises `FormatError`."""
    below, every = references_of(data, f"node {digest.hex()}")
    return References(b"".join(below), b"".join(every))


def read_nodes(source: NodeSource, places: Sequence[tuple[bytes, Location | None]]) -> list[Found]:
    """What some nodes refer to, read from where they are; None where that cannot be told, for any reason.

    Runs in any process; keeps the reader of a store for the next call. Every node's digest is checked.
    """
    reader = _reader(source)
    known = {digest: place for digest, place in places if place is not None}
    try:
        fetched = reader(known)
    except CasstoreError:
        return [None] * len(places)
    found: list[Found] = []
    for digest, _ in places:
        try:
            found.append(references(digest, fetched[digest]) if digest in fetched else None)
        except CasstoreError:
            found.append(None)
    return found


@lru_cache(maxsize=4)
def _reader(source: NodeSource) -> Callable[[dict[bytes, Location]], dict[bytes, bytes]]:
    backend = LocalBackend(Path(source.root), OsOps())
    codec = ZstdCodec()
    hash_bytes = hash_function(source.digest)

    def read(places: dict[bytes, Location]) -> dict[bytes, bytes]:
        def locate(digests: Sequence[bytes]) -> list[Location | None]:
            return [places.get(digest) for digest in digests]

        # Its cache is of no use: a node is read once.
        reader = ChunkReader(backend, codec, hash_bytes, locate, lambda: None, _Here)
        return reader.fetch(places).found

    return read


class _Here(Executor):
    """Runs everything at once, in the calling thread: the process is a worker itself."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor.submit`."""
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
