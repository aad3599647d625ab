"""The values every other module speaks in: log records, pack contents, entries. No I/O, no rules.

Digests inside the engine are raw ``bytes`` (one store has one algorithm); they are wrapped in
`casstore.digest.Digest` where they leave the library. Times are integer microseconds since the epoch,
UTC; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from typing import BinaryIO, Protocol

from casstore.digest import Digest
from casstore.errors import ArtifactNotLoggedError


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


class Inherit(Enum):
    """The type of `INHERIT`."""

    INHERIT = "inherit"


INHERIT = Inherit.INHERIT
"""a ttl that is the collection's or the store's"""


# --- bytes -------------------------------------------------------------------------------------


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


# --- log records -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddPack:
    """A pack is in the backend, whole and durable, and from now on live."""

    pack: bytes
    size: int
    content: PackContent


@dataclass(frozen=True, slots=True)
class AddNode:
    """A stored node and its *distinct* children. Counts references only when newly indexed."""

    digest: bytes
    children: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget digests nobody refers to, parents before children. A dropped node releases its children."""

    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """A pack ends: ``moved`` digests live on in packs added by the same transaction, nothing else is left."""

    pack: bytes
    moved: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Condemn:
    """A pack that was never committed never will be."""

    pack: bytes


@dataclass(frozen=True, slots=True)
class GCRun:
    """This transaction belongs to a run of the collector. Changes nothing: it is for the record and for undo."""

    run: bytes
    actor: str
    start: int
    """position of the log when the run began"""
    summary: bytes = b""
    """canonical JSON with the run's totals, in its last transaction"""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The bytes of a digest in a pack are damaged: it counts as absent until a writer stores it again."""

    digest: bytes
    pack: bytes
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Erase:
    """Give up the bytes of digests that are still referred to, on request. Reading them says so."""

    digests: tuple[bytes, ...]
    reason: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state at a position is kept in an object, whose `state_hash` is this."""

    seq: int
    key: str
    state_hash: bytes


@dataclass(frozen=True, slots=True)
class PutVersion:
    """A new version; its number is assigned when the record is applied."""

    collection: str
    type: str
    root: bytes
    size: int
    file_count: int
    description: str
    metadata: bytes
    """canonical JSON"""
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    move_latest: bool
    base: str
    """``name:vN`` the draft was made from, or ``""``"""
    ttl: int
    """seconds; 0 = never; -1 = inherit"""
    actor: str


@dataclass(frozen=True, slots=True)
class UpdateVersion:
    """New labels for a version. ``None`` leaves a field alone."""

    collection: str
    number: int
    description: str | None
    metadata: bytes | None
    tags: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class SetAlias:
    """Point an alias at a version. ``expect``: -2 anything, -1 absent, else the number it must be on now."""

    collection: str
    alias: str
    number: int
    expect: int = -2
    actor: str = ""


@dataclass(frozen=True, slots=True)
class DropAlias:
    """Remove an alias that is on ``number``."""

    collection: str
    alias: str
    number: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Trash:
    """Hide a version. Its aliases are removed and remembered; ``latest`` falls to the highest remaining."""

    collection: str
    number: int
    purge_at: int
    aliases: tuple[str, ...]
    """the aliases the author saw: others make the record void"""
    reason: str
    actor: str
    trashed_by: str = "user"


@dataclass(frozen=True, slots=True)
class Restore:
    """Bring a trashed version back. ``trash_seq`` names the trashing it undoes."""

    collection: str
    number: int
    trash_seq: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Purge:
    """Drop the root reference of a trashed version for good. Without ``force``, only past its date."""

    collection: str
    number: int
    trash_seq: int
    force: bool
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Unpurge:
    """Bring a purged version back into the trash. Its content must be indexed (again)."""

    collection: str
    number: int
    purge_at: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class SetTtl:
    """Time to live of a version: seconds, 0 = never, -1 = inherit."""

    collection: str
    number: int
    ttl: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Protect:
    """Protect a version, or with number -1 a whole collection, from deletion; ``reason`` "" lifts it."""

    collection: str
    number: int
    reason: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class SetCollectionTtl:
    """Default time to live in a collection: seconds, 0 = never, -1 = that of the store."""

    collection: str
    ttl: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class TrashCollection:
    """Hide a collection with all its versions, as one unit. Aliases are remembered."""

    collection: str
    purge_at: int
    reason: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class RestoreCollection:
    """Bring a trashed collection back, with the versions that were trashed with it."""

    collection: str
    trash_seq: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class PurgeCollection:
    """Give the name of a trashed collection free, once no version of it is in the trash."""

    collection: str
    trash_seq: int
    force: bool
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Pin:
    """An extra root with a holder and an expiry."""

    pin: bytes
    holder: str
    purpose: str
    roots: tuple[bytes, ...]
    expires: int


@dataclass(frozen=True, slots=True)
class Unpin:
    """Release a pin."""

    pin: bytes


@dataclass(frozen=True, slots=True)
class RenewPin:
    """Move the expiry of a pin."""

    pin: bytes
    expires: int


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Change policy values; JSON object of the changed keys."""

    values: bytes
    actor: str = ""


Record = (
    AddPack
    | AddNode
    | Drop
    | Retire
    | Condemn
    | GCRun
    | Quarantine
    | Erase
    | Checkpoint
    | PutVersion
    | UpdateVersion
    | SetAlias
    | DropAlias
    | Trash
    | Restore
    | Purge
    | Unpurge
    | SetTtl
    | Protect
    | SetCollectionTtl
    | TrashCollection
    | RestoreCollection
    | PurgeCollection
    | Pin
    | Unpin
    | RenewPin
    | SetPolicy
)


@dataclass(frozen=True, slots=True)
class Transaction:
    """Records that take effect together or not at all. ``txid``: 128 random bits, applied at most once."""

    txid: bytes
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """One object of the log: transactions at a position, chained to the segment before."""

    seq: int
    previous: bytes
    base: int
    packs_since: int
    writer: str
    claimed: int
    transactions: tuple[Transaction, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one transaction: ``void`` is empty, or says why it has no effect.

    ``numbers`` are the version numbers assigned, one per `PutVersion`, in order.
    ``duplicate``: the txid had been applied before; numbers are those of the first time.
    """

    txid: bytes
    seq: int
    void: str = ""
    numbers: tuple[int, ...] = ()
    duplicate: bool = False


# --- state rows --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """An indexed digest: where it is and how many distinct parents and roots hold it."""

    location: Location
    refcount: int


@dataclass(frozen=True, slots=True)
class PackRow:
    """A pack as the log knows it. ``since``: claimed time of the record that put it into this state (µs)."""

    state: PackState
    kind: ChunkKind
    size: int
    raw: int
    """plaintext bytes of all its chunks, duplicates included"""
    placed: int
    """chunks whose location is this pack"""
    placed_raw: int
    since: int
    seq: int
    moved: int = 0
    """stored bytes that live on in other packs, once retired"""


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A named sequence of versions of one type."""

    id: int
    name: str
    type: str
    next_number: int
    created: int
    ttl: int = -1
    protected: str = ""
    state: VersionState = VersionState.COMMITTED
    """PURGED: only the name and its numbers are remembered"""
    trash_seq: int = 0
    trashed: int = 0
    purge_at: int = 0
    trash_reason: str = ""
    trash_actor: str = ""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version as the log knows it."""

    collection: int
    number: int
    state: VersionState
    type: str
    root: bytes
    size: int
    file_count: int
    description: str
    metadata: bytes
    tags: tuple[str, ...]
    base: str
    ttl: int
    created: int
    updated: int
    seq: int
    actor: str
    trash_seq: int = 0
    trashed: int = 0
    purge_at: int = 0
    trash_aliases: tuple[str, ...] = ()
    trash_reason: str = ""
    trash_actor: str = ""
    trashed_by: str = ""
    born: int = 0
    """the safe clock when it was committed: what its age is measured from"""
    protected: str = ""
    """why it may not be deleted; empty if it may"""


@dataclass(frozen=True, slots=True)
class LostRow:
    """Bytes the store does not have although the digest is referred to: damaged, or erased on request."""

    erased: bool
    pack: bytes
    reason: str
    actor: str
    at: int
    seq: int


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """The newest checkpoint the log knows."""

    seq: int
    key: str
    state_hash: bytes


@dataclass(frozen=True, slots=True)
class PinRow:
    """A pin that is held."""

    holder: str
    purpose: str
    roots: tuple[bytes, ...]
    expires: int
    seq: int


@dataclass(frozen=True, slots=True)
class AliasChange:
    """One move of an alias. -1 stands for absent."""

    alias: str
    before: int
    after: int
    seq: int
    at: int
    actor: str


# --- entries -----------------------------------------------------------------------------------


class EntryKind(StrEnum):
    """What a path is."""

    FILE = "file"
    LINK = "link"
    DIRECTORY = "dir"


class BlobReader(Protocol):
    """How an entry of a logged version reaches its bytes."""

    @property
    def store(self) -> str:
        """The id of the store they are in."""
        ...

    def read(self, entry: Entry, offset: int, length: int | None) -> bytes:
        """Some bytes of the file."""
        ...

    def open(self, entry: Entry) -> BinaryIO:
        """The file, seekable."""
        ...

    def download(self, entry: Entry, root: str | None) -> str:
        """Write the file below a directory; returns the path written."""
        ...

    def name(self, entry: Entry) -> Digest | None:
        """The digest of the content."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of an artifact: its size and where its content is.

    An entry of a logged version can be read; one of a draft raises `ArtifactNotLoggedError`.
    """

    path: str
    kind: EntryKind = EntryKind.FILE
    size: int = 0
    chunks: tuple[tuple[bytes, int], ...] = ()
    """(digest, length) in order, when the list is short"""
    tree: bytes | None = None
    """root of the chunk-list nodes, when it is long"""
    mode: int | None = None
    """permission bits, if they were asked to be kept"""
    target: str | None = None
    """where a symbolic link points"""
    reader: BlobReader | None = field(default=None, compare=False, repr=False)

    def _reader(self) -> BlobReader:
        if self.reader is None:
            raise ArtifactNotLoggedError(
                f"{self.path!r} is in a draft that is not logged", hint="call store.log_artifact first"
            )
        return self.reader

    @property
    def digest(self) -> Digest | None:
        """Digest of the content: of the bytes for a file of one chunk, of its chunk list for a longer one.

        ``None`` in a draft.
        """
        return None if self.reader is None else self.reader.name(self)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes from ``offset``; to the end without ``length``. Reads only the chunks needed, verified."""
        return self._reader().read(self, offset, length)

    def open(self) -> BinaryIO:
        """The content as a seekable, read-only binary file."""
        return self._reader().open(self)

    def download(self, root: str | None = None) -> str:
        """Write the file to ``root/path``, verified before it gets its name. Returns the local path."""
        return self._reader().download(self, root)


Progress = Callable[[str, int, int], None]
"""``progress(phase, done, total)``: called now and then from the calling thread; total 0 = unknown."""

JsonMap = Mapping[str, object]


def no_progress(phase: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""
