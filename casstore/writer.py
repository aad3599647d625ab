"""A writing session: stores what is new, claims what is known, and commits both or neither.

A deduplication hit is a *claim*: "this digest is in the store". It is checked when it is made and again at the
commit, on the very state the commit is appended to; claims that a collector broke meanwhile are stored anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from casstore.digest import Buffer
from casstore.engine import Committed, Engine
from casstore.errors import (
    CasstoreError,
    ChunkMissingError,
    ConflictError,
    QuotaExceededError,
    RefusedError,
    StoreBusyError,
)
from casstore.format.layout import pack_key
from casstore.format.packs import VersionNote
from casstore.format.rows import are_data, kind_of_row
from casstore.model import AddNode, AddPack, ChunkKind, Drop, Record
from casstore.overlay import Overlay, Tables
from casstore.packing import ChunkWriter
from casstore.parcels import Parcel
from casstore.state import CHUNK, LOST, NODE, PACK, head_of
from casstore.view import children_of

ROUNDS = 50
"""times a commit may find claims broken before it gives up"""
PARCEL_BYTES = 128 * 1024
"""plaintext of a session that is stored by whoever commits it, in packs it may share with others"""


FRAMES_EACH = 6
"""frames in flight for each worker: with fewer they have nothing to do while the next files are looked at"""


class _Broken(Exception):
    """Claims or packs of a session are gone from the state."""

    def __init__(self, claims: set[bytes], packs: set[bytes]) -> None:
        super().__init__()
        self.claims = claims
        self.packs = packs


class _CrowdedError(Exception):
    """What a session stores had better have packs of its own."""


class Writer:
    """One session. Not thread-safe; nothing it stores means anything until `commit` returns.

    It holds the store, shared, until it has committed or was abandoned or dropped.
    """

    def __init__(self, engine: Engine, base: int | None = None) -> None:
        """``base``: a position that the view was refreshed to; it is refreshed without one."""
        engine.check_writable()
        self.engine = engine
        self.base = engine.view.refresh().seq if base is None else base
        self._checked = self.base
        settings, config = engine.settings, engine.config
        self._writers = {
            kind: ChunkWriter(
                engine.backend,
                engine.codec,
                engine.executor(),
                engine.new_pack,
                kind,
                frame_bytes=config.frame_bytes,
                pack_bytes=config.pack_bytes,
                in_flight=settings.workers * FRAMES_EACH,
            )
            for kind in ChunkKind
        }
        self._own: set[bytes] = set()
        self._claims: set[bytes] = set()
        self._shared: set[bytes] = set()
        """claims of what this session has not read: the content of nodes that a draft takes over from its base"""
        self._lists: set[bytes] = set()
        """claims of chunk lists that were not read, which must be sound to the last chunk"""
        self._idle: set[bytes] = set()
        """data that has the bytes of a tree node which a collector copied although it was dropped: to be forgotten, as
        nothing can hold a node whose children are not known"""
        self._packs: list[AddPack] = []
        self._parcel: Parcel | None = None
        """what is stored by whoever commits it, as of the commit at hand"""
        self._alone = False
        """nothing is to be left to others"""
        self._exposed = False
        """a segment that names the packs may be in the log"""
        self._refused = False
        """the last look at the head found that nothing may be committed"""
        self._nodes: dict[bytes, AddNode] = {}
        """children before parents"""
        self._ordered: set[bytes] = set()
        """nodes that stand where they belong; the others are of a tree that is being built again"""
        self.new_bytes = 0
        """plaintext bytes of the chunks this session stored"""
        self._hold = engine.hold("logging an artifact")

    @property
    def stored_bytes(self) -> int:
        """Bytes of the packs this session published, or its share of those that hold what others stored as well."""
        shared = 0 if self._parcel is None else self._parcel.stored_bytes
        return shared + sum(writer.stored_bytes for writer in self._writers.values())

    @property
    def pending_bytes(self) -> int:
        """Bytes of the packs that the commit at hand would add; of shared ones not less than its share."""
        if self._parcel is None:
            return sum(pack.size for pack in self._packs)
        return sum(pack.size for pack in self._parcel.packs) or self._parcel.stored_bytes

    def store(self, data: memoryview, starts: Sequence[int], ends: Sequence[int], digests: Sequence[bytes]) -> None:
        """Store those data chunks, pieces of a buffer, that are not in the store; the others become claims.

        They are copied: the buffer may be written to again.
        """
        missing = self.missing(digests)
        if missing:
            for digest, start, end in zip(digests, starts, ends, strict=True):
                if digest in missing:
                    self.put(digest, data[start:end])

    def missing(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of some data digests that this session must store; the others become claims."""
        own, claims = self._own, self._claims
        unknown = [digest for digest in digests if digest not in own and digest not in claims]
        absent: set[bytes] = set()
        if not unknown:
            return absent
        with self.engine.view.read() as tables:
            sound = not tables.count(LOST)
            rows = tables.get_many(CHUNK, unknown)
            if sound and are_data(rows):  # as mostly, if not none of them
                claims.update(unknown)
                return absent
            for digest, row in zip(unknown, rows, strict=True):
                if row is None or not (sound or tables.get(LOST, digest) is None):
                    absent.add(digest)
                elif _is_idle_node(tables, digest, row):
                    absent.add(digest)
                    self._idle.add(digest)
                else:
                    claims.add(digest)
        return absent

    def put(self, digest: bytes, data: Buffer) -> None:
        """Store a data chunk that `missing` named; a copy of it."""
        if digest not in self._own:
            self._own.add(digest)
            self.new_bytes += len(data)
            self._writers[ChunkKind.DATA].add(digest, data)

    def put_node(self, data: bytes, children: tuple[bytes, ...]) -> bytes:
        """Store a tree node unless it is known; returns its digest. Children come before their parents."""
        digest = self.engine.hash(data)
        if digest in self._claims:
            return digest
        if digest in self._nodes:
            # Built again after broken claims: its record moves behind those of its children. But not when it is
            # there twice in one tree: its parents may stand behind it already.
            if digest not in self._ordered:
                self._ordered.add(digest)
                self._nodes[digest] = self._nodes.pop(digest)
            return digest
        with self.engine.view.read() as tables:
            known = tables.get(NODE, digest) is not None and tables.get(LOST, digest) is None
            if known:
                self._claims.add(digest)
                return digest
            # Children that this session did not store are claims too: reused subtrees of a draft's base.
            shared = [d for d in children if d not in self._own and d not in self._nodes and d not in self._claims]
            self._claims.update(shared)
            self._shared.update(shared)
        self._nodes[digest] = AddNode(digest, children)
        self._ordered.add(digest)
        if digest not in self._own:
            self._own.add(digest)
            self.new_bytes += len(data)
            self._writers[ChunkKind.NODE].add(digest, data, len(children))
        return digest

    def has(self, digest: bytes) -> bool:
        """True if this session has stored a digest itself or claims that it is in the store."""
        return digest in self._own or digest in self._claims

    def claim(self, digest: bytes) -> None:
        """Rely on a digest that is in the store. Raises `ConflictError` if it is not there any more."""
        if digest in self._own or digest in self._claims:
            return
        if not self.engine.view.known((digest,))[0]:
            lost = self.engine.view.lost(digest)
            if lost is not None:
                raise ChunkMissingError(
                    f"{digest.hex()}, which the draft took from another version, is {lost.reason}",
                    hint="take the file out of the draft, or add it again from a good copy",
                    digest=digest.hex(),
                )
            raise ConflictError(
                f"{digest.hex()}, which the draft took from another version, was collected meanwhile",
                hint="make the draft again",
            )
        self._claims.add(digest)

    def claim_files(self, contents: Sequence[tuple[Sequence[bytes], bytes | None]]) -> list[bool]:
        """Rely on the content of files that are not read: of each its chunks, or the root of its chunk list.

        Returns which of them are in the store, whole and sound; of the others nothing is claimed.
        """
        found: list[bool] = []
        claims = self._claims
        with self.engine.view.read() as tables:
            clean = not tables.count(LOST)
            asked = {digest for chunks, root in contents if root is None for digest in chunks} - claims
            wanted = sorted(asked)  # in key order, as the tables like it
            rows = tables.get_many(CHUNK, wanted)
            every = clean and are_data(rows)  # as mostly
            if every:
                claims |= asked
            else:
                pairs = zip(wanted, rows, strict=True)
                asked = {digest for digest, row in pairs if _is_data(tables, digest, row, clean=clean)}
            for chunks, root in contents:
                if root is None:
                    found.append(every or all(digest in asked or digest in claims for digest in chunks))
                    if found[-1] and not every:
                        claims.update(chunks)
                else:
                    found.append(tables.get(NODE, root) is not None and (clean or _is_sound(tables, root)))
                    if found[-1]:
                        self._claims.add(root)
                        self._lists.add(root)
        return found

    def commit(
        self,
        records: Callable[[Tables], Sequence[Record] | None],
        restore: Callable[[set[bytes]], None],
        notes: Callable[[], Sequence[VersionNote]] = tuple,
    ) -> Committed | None:
        """Publish what was stored and commit it with more records, in one transaction.

        ``records`` runs on the state at the head and may find that nothing is to be done (None): then nothing
        is committed. ``restore`` is called, outside the commit, with claims that were broken; it must store
        them again through this session. ``notes`` go into the footer of the last node pack.
        """
        for _ in range(ROUNDS):
            self._parcel = self._small(notes)
            if self._parcel is None:
                self._publish(notes)
            try:
                self._exposed = True
                done = self.engine.commit(
                    lambda tables: self._records(tables, records), packs_since=self.base, parcel=self._parcel
                )
                self._hold.release()
                if done is None:
                    self._parcel = None  # nothing came of it
                return done
            except _CrowdedError:
                self._exposed = False
                self._alone = True
            except _Broken as broken:
                self._exposed = False
                self._forget(broken)
                restore(broken.claims)
            except RefusedError:
                self._exposed = False  # raised before there is a segment
                raise
            except CasstoreError:
                # Anything else, an interrupt above all, may come while another thread is committing for this one:
                # then it is not known what became of the packs.
                self._exposed = not self._refused
                raise
        raise StoreBusyError(
            f"the collector removed what this commit relied on {ROUNDS} times in a row", hint="try again"
        )

    def _small(self, notes: Callable[[], Sequence[VersionNote]]) -> Parcel | None:
        """What this session stores, if it is so little that whoever commits it may as well store it."""
        if self._alone or self._packs or self._idle or self.new_bytes > PARCEL_BYTES:
            return None
        data, nodes = (self._writers[kind].waiting() for kind in (ChunkKind.DATA, ChunkKind.NODE))
        if data is None or nodes is None:
            return None
        return Parcel(data[0], *nodes, notes())

    def _publish(self, notes: Callable[[], Sequence[VersionNote]]) -> None:
        # One after the other: at once it gained little, and which effect came first was not the same each time.
        self._packs += self._writers[ChunkKind.DATA].finish()
        self._packs += self._writers[ChunkKind.NODE].finish(notes())

    def _records(self, tables: Tables, more: Callable[[Tables], Sequence[Record] | None]) -> Sequence[Record]:
        self._refused = True  # until it is known that there is something to commit
        parcel = self._parcel
        packs = self._packs if parcel is None else parcel.packs
        if parcel is not None and _is_lost(tables, parcel):
            raise _CrowdedError  # damage is healed by packs that are there, also if nothing else is to be done
        try:
            extra = more(tables)
        except QuotaExceededError:
            if parcel is not None and parcel.shared:
                raise _CrowdedError from None  # it is another's bytes that there is no room for, perhaps
            raise
        if extra is None:
            # It is all there already. But what was damaged has been stored again, and heals what is there.
            if not any(tables.get(LOST, digest) is not None for pack in self._packs for digest in pack.content.digests):
                return ()
            extra = ()
        condemned = {pack.pack for pack in self._packs if tables.get(PACK, pack.pack) is not None}
        broken = self._broken_claims(tables)
        if broken or condemned:
            raise _Broken(broken, condemned)
        self._refused = False
        idle = tuple(sorted(d for d in self._idle & self._own if _is_idle_node(tables, d, tables.get(CHUNK, d))))
        return (*((Drop(idle),) if idle else ()), *packs, *self._nodes.values(), *extra)

    def _broken_claims(self, tables: Tables) -> set[bytes]:
        """Claims that no longer hold: looks only at what changed, if that is known."""
        dropped = self._dropped_since(tables)
        # What a draft shares with its base was not looked up when it was claimed.
        suspects = self._claims if dropped is None else (self._claims & dropped) | self._shared
        # What a draft shares with its base, unread, may be damaged: the new version lacks what the old one lacks.
        broken = {
            digest
            for digest in suspects
            if tables.get(CHUNK, digest) is None
            or (digest not in self._shared and tables.get(LOST, digest) is not None)
        }
        if self._lists and tables.count(LOST):
            heard = dropped is None or any(tables.get(LOST, digest) is not None for digest in dropped)
            broken |= {root for root in self._lists if heard and not _is_sound(tables, root)}
        return broken

    def _dropped_since(self, tables: Tables) -> set[bytes] | None:
        """Digests given up since the session began, on the tables a commit is built on; None if that is not known."""
        if not isinstance(tables, Overlay):
            return None
        dropped = self.engine.dropped_between(self._checked, head_of(tables).seq - 1)
        if dropped is not None:
            # Others that share the segment come first, and are not in the log yet.
            for table in (CHUNK, NODE, LOST):
                changes = tables.changes.get(table)
                if changes:
                    dropped |= {digest for digest, row in changes.items() if row is None or table == LOST}
        return dropped

    def _forget(self, broken: _Broken) -> None:
        """Take back claims and packs that do not hold, so that their content is stored again."""
        self._claims -= broken.claims
        self._shared -= broken.claims
        self._lists -= broken.claims
        for pack in self._packs:
            if pack.pack in broken.packs:
                lost = set(pack.content.digests)
                self._own -= lost
                broken.claims |= lost
        self._packs = [pack for pack in self._packs if pack.pack not in broken.packs]
        self._ordered.clear()
        # Nodes are built again from the entries; those that are still stored are found again.
        for digest in broken.claims:
            self._nodes.pop(digest, None)

    def abandon(self) -> None:
        """Give up: wait for work in flight, and take back what was published.

        Unless a segment that names the packs may be in the log: then they are left to the collector, which
        sweeps them if they turn out to be orphans.
        """
        try:
            for writer in self._writers.values():
                self._packs += writer.abandon()
            if not self._exposed:
                for pack in self._packs:
                    with suppress(CasstoreError):
                        self.engine.backend.delete(pack_key(pack.pack))
        finally:
            self._hold.release()


def _is_lost(tables: Tables, parcel: Parcel) -> bool:
    """Whether anything of it is known to be damaged or erased."""
    if not tables.count(LOST):
        return False
    return any(tables.get(LOST, digest) is not None for digest, _ in (*parcel.data, *parcel.nodes))


def _is_idle_node(tables: Tables, digest: bytes, row: bytes | None) -> bool:
    """Whether a digest is indexed as a node, but without children: then its count is 0 and stays so."""
    return row is not None and kind_of_row(row) is ChunkKind.NODE and tables.get(NODE, digest) is None


def _is_data(tables: Tables, digest: bytes, row: bytes | None, *, clean: bool) -> bool:
    """Whether a digest may be relied on as a chunk of a file. ``clean``: nothing at all is damaged or erased."""
    if row is None or _is_idle_node(tables, digest, row):
        return False
    return clean or _is_sound(tables, digest)


def _is_sound(tables: Tables, root: bytes) -> bool:
    """Whether nothing of a chunk, or of a node and what is below it, is known to be damaged or erased."""
    seen = {root}
    todo = [root]
    while todo:
        digest = todo.pop()
        if tables.get(LOST, digest) is not None:
            return False
        below = set(children_of(tables, digest) or ()) - seen
        seen |= below
        todo += below
    return True
