"""What the state is made of: a row for each thing the log knows."""

from __future__ import annotations

from casstore.model.content import ChunkKind, Location, PackState, VersionState
from casstore.values import dataclass


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
    portfolio: bool = False
    """takes links only"""
    description: str = ""


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
    purge_seq: int = 0
    """position of its last purge"""
    run: str = ""
    """id of the run that logged it"""
    attrs: bytes = b"{}"
    source_collection: int = 0
    """of a link: where its source is; 0 = it is no link"""
    source_number: int = -1

    @property
    def is_link(self) -> bool:
        """Whether it stands for a version of another collection."""
        return self.source_collection != 0


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


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run: something outside that logs and uses versions. Nothing executes here."""

    name: str
    job_type: str
    status: str
    attrs: bytes
    actor: str
    started: int
    ended: int
    """0 = it has not ended"""
    seq: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class UseRow:
    """A run's declared use of a version."""

    purpose: str
    holder: str
    state: str
    """``active``, ``ended`` or ``cancelled``"""
    since: int
    ended: int
    seq: int
    actor: str = ""
    ended_by: str = ""
    """who cancelled it"""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A version that several writers make together."""

    name: str
    """of the collection"""
    batch: str
    type: str
    state: str
    """``open``, ``finished`` or ``aborted``"""
    created: int
    seq: int
    expires: int
    actor: str
    collection: int = 0
    number: int = -1
    """of the version it became"""
    asked: bytes = b""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PartRow:
    """One part of it."""

    name: str
    root: bytes
    size: int
    file_count: int
    pin: bytes
    holder: str
    at: int
    seq: int
