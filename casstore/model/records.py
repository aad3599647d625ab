"""What the log says: records, transactions, segments (docs/FORMAT.md §6)."""

from __future__ import annotations

from casstore.model.content import PackContent
from casstore.values import dataclass


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
    run: str = ""
    """id of the run that logged it"""
    attrs: bytes = b"{}"
    """canonical JSON of the host's own"""


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
    delete_links: bool = False
    """hide the links to it, too; without, any make the record void"""
    refuse_in_use: bool = False
    """a declared use makes the record void instead of being cancelled"""


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
    delete_links: bool = False
    refuse_in_use: bool = False


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
class PutCollection:
    """A new collection without versions. ``portfolio``: it takes links only."""

    collection: str
    type: str
    portfolio: bool
    description: str = ""
    actor: str = ""


@dataclass(frozen=True, slots=True)
class UpdateCollection:
    """New labels for a collection. ``None`` leaves a field alone; a type is that of all its versions, too."""

    collection: str
    description: str | None
    type: str | None = None
    actor: str = ""


@dataclass(frozen=True, slots=True)
class RenameCollection:
    """Another name for a collection; the old one leads to it until a collection takes it."""

    collection: str
    name: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A version of another collection gets a number in this one, which is made if need be."""

    collection: str
    source: str
    """collection of the source"""
    number: int
    """number of the source"""
    aliases: tuple[str, ...]
    move_latest: bool
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Unlink:
    """Take a link away. Its source is not touched."""

    collection: str
    number: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class UpsertPart:
    """A part of a version that several writers make together, kept by a pin. The same part again renews the batch."""

    collection: str
    batch: str
    part: str
    type: str
    root: bytes
    size: int
    file_count: int
    pin: bytes
    holder: str
    expires: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class FinishParts:
    """The version of the same transaction is what these parts make. Others, or a finished batch, make it void."""

    collection: str
    batch: str
    parts: tuple[str, ...]
    digests: tuple[bytes, ...]
    """their roots"""
    asked: bytes = b""
    """digest of what the finisher asked for"""
    actor: str = ""
    number: int = -1
    """of the version that has this content already; -1 = the transaction makes it"""


@dataclass(frozen=True, slots=True)
class AbortParts:
    """Give up a batch: its parts are let go, its id stays used."""

    collection: str
    batch: str
    reason: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class PutRun:
    """A run begins, or what is said of it changes. A status other than ``running`` ends it, and its uses."""

    run: str
    name: str
    job_type: str
    status: str
    attrs: bytes
    """canonical JSON"""
    actor: str = ""


@dataclass(frozen=True, slots=True)
class DeleteRun:
    """Forget what is said of a run. Versions are not touched; a tombstone stays in their lineage."""

    run: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class PutOutput:
    """A run logged content that was a version already."""

    run: str
    collection: str
    number: int


@dataclass(frozen=True, slots=True)
class UseVersion:
    """A run uses a version. Trashing the version cancels the use, until `EndUse` or the end of the run."""

    run: str
    collection: str
    number: int
    purpose: str
    holder: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class EndUse:
    """A run does not use a version any more."""

    run: str
    collection: str
    number: int
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
    | PutCollection
    | UpdateCollection
    | RenameCollection
    | Link
    | Unlink
    | UpsertPart
    | FinishParts
    | AbortParts
    | PutRun
    | DeleteRun
    | PutOutput
    | UseVersion
    | EndUse
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

    @property
    def run(self) -> GCRun | None:
        """The run of the collector it is part of."""
        first = self.records[0] if self.records else None
        return first if isinstance(first, GCRun) else None


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
