"""Where bytes are: kinds of chunks, frames, packs, places; and the states of things."""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum

from casstore.values import dataclass


class ChunkKind(IntEnum):
    """What a chunk holds."""

    DATA = 0
    NODE = 1


class PackState(IntEnum):
    """The life of a pack in the log. RETIRED and CONDEMNED are terminal."""

    LIVE = 1
    RETIRED = 2
    CONDEMNED = 3


class VersionState(StrEnum):
    """The life of a version."""

    COMMITTED = "COMMITTED"
    TRASHED = "TRASHED"
    PURGED = "PURGED"


KEPT = (VersionState.COMMITTED, VersionState.TRASHED)
"""states in which a version holds its content"""


class Inherit(Enum):
    """The type of `INHERIT`."""

    INHERIT = "inherit"


INHERIT = Inherit.INHERIT
"""a ttl that is the collection's or the store's"""


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """One frame of a pack: bytes it takes in the pack, bytes of plaintext, chunks inside."""

    stored: int
    raw: int
    chunks: int


@dataclass(frozen=True, slots=True)
class PackContent:
    """What is in a pack, in order: frames follow one another from offset `first_frame`.

    ``digests[i]`` has ``lengths[i]`` bytes of plaintext; frame k holds the next ``frames[k].chunks`` of them.
    """

    kind: ChunkKind
    frames: tuple[FrameInfo, ...]
    digests: tuple[bytes, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a chunk is: a pack, a frame in it, a run of plaintext bytes in the frame."""

    pack: bytes
    frame_offset: int
    frame_stored: int
    frame_raw: int
    offset: int
    length: int
    kind: ChunkKind
