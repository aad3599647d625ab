"""The abstract machine: the protocol of `gc.pml` as sets and dictionaries, written apart from `casstore.state`.

It is told of every effect (put, segment, delete, ack) and carries each out by its own rules. A reference count is
here what docs/GC.md says it *means*, the number of distinct holders, so it cannot drift; a pack is a set of digests.
What the library does otherwise than this machine is a `Difference`; what it does against I1 to I5 is one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from casstore.format.rows import decode_row, kind_of_row, pack_of_row, refcount
from casstore.model import (
    AddNode,
    AddPack,
    Applied,
    Checkpoint,
    ChunkKind,
    Condemn,
    Drop,
    Erase,
    GCRun,
    PackRow,
    PackState,
    Pin,
    Quarantine,
    Record,
    RenewPin,
    Retire,
    Segment,
    SetPolicy,
    Transaction,
    Unpin,
)
from casstore.overlay import Tables
from casstore.state import CHUNK, NODE, PACK, PIN, ZERO, head_of
from casstore.testing.simulation.names import Difference, Names, Void

LIVE, RETIRED, CONDEMNED = int(PackState.LIVE), int(PackState.RETIRED), int(PackState.CONDEMNED)
NOWHERE = bytes(16)


@dataclass(frozen=True, slots=True)
class Moment:
    """A segment as it came into the log. Times in µs; ``true`` is no process's clock."""

    true: int
    claimed: int
    writer: str
    process: str
    outcomes: tuple[Applied, ...]


class Machine(Names):
    """State of the log, and of the objects behind it. Knows nothing of tables, rows or views."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: dict[bytes, tuple[bytes, ChunkKind]] = {}
        """indexed digest → its pack and the kind of that"""
        self.children: dict[bytes, tuple[bytes, ...]] = {}
        self.parents: dict[bytes, dict[bytes, None]] = {}
        self.packs: dict[bytes, int] = {}
        self.placed: dict[bytes, dict[bytes, None]] = {}
        self.pins: dict[bytes, tuple[bytes, ...]] = {}
        self.lost: dict[bytes, None] = {}
        self.objects: dict[bytes, tuple[int, str]] = {}
        """packs whose bytes are there: size, and who put them"""
        self.log: list[Moment] = []
        self.endings = 0
        """how often anything was dropped, retired, condemned or deleted"""
        self.touched: set[bytes] = set()
        self.ended: set[bytes] = set()
        self.added: dict[bytes, tuple[bytes, ChunkKind]] = {}
        self.replicas = 0
        self.rogues: set[bytes] = set()
        """transactions that were put past the library, valid or not"""
        self._rules: dict[type[Any], Callable[[Any], None]] = {
            AddPack: self._add_pack,
            AddNode: self._add_node,
            Drop: self._drop,
            Retire: self._retire,
            Condemn: self._condemn,
            Pin: self._pin,
            Unpin: self._unpin,
            RenewPin: self._renew,
            Quarantine: self._quarantine,
            Erase: self._erase,
            Checkpoint: self._nothing,
            GCRun: self._nothing,
            SetPolicy: self._nothing,
        }

    # --- what happens outside

    def put(self, pack: bytes, size: int, process: str) -> None:
        """The bytes of a pack appeared."""
        self.objects[pack] = (size, process)

    def delete(self, pack: bytes, process: str) -> None:
        """The bytes of a pack are taken away. I4: nobody may need them, and nobody may come to."""
        self.endings += 1
        state = self.packs.get(pack)
        if state == LIVE:
            raise Difference("I4", f"{process} deletes the live pack {pack.hex()[:8]}")
        there = self.objects.pop(pack, None)
        if state is None and there is not None and there[1] != process:
            raise Difference(
                "condemn", f"{process} deletes pack {pack.hex()[:8]} of {there[1]}, of which the log is silent"
            )

    def ack(self, process: str, seq: int, numbers: Sequence[int]) -> None:
        """A process was told that its transaction took effect. I5: it did."""
        moment = self.log[seq - 1] if 0 < seq <= len(self.log) else None
        if moment is None or not any(not a.void and a.numbers == tuple(numbers) for a in moment.outcomes):
            raise Difference("I5", f"{process} was told that segment {seq} gave it {list(numbers)}")

    # --- the log

    def segment(self, segment: Segment, true: int, process: str) -> None:
        """A segment is in the log: apply it. Raises `Difference` for one that should not be there."""
        if segment.seq != self.seq + 1:
            raise Difference("log", f"segment {segment.seq} after {self.seq}")
        self.touched, self.ended = set(), set()
        self.tick(segment)
        outcomes = tuple(self._transaction(segment, transaction) for transaction in segment.transactions)
        self.log.append(Moment(true, segment.claimed, segment.writer, process, outcomes))
        for outcome in outcomes:
            if outcome.void and outcome.txid not in self.rogues:
                # Both guards of docs/GC.md hold in this library, so the second one never has to.
                raise Difference("rebase", f"segment {segment.seq} of {process} is void: {outcome.void}")

    def _transaction(self, segment: Segment, transaction: Transaction) -> Applied:
        if transaction.txid in self.txids:
            seq, numbers = self.txids[transaction.txid]
            return Applied(transaction.txid, seq, numbers=numbers, duplicate=True)
        self.added = {}
        self.journal = []
        given: list[int] = []
        try:
            for record in transaction.records:
                self._record(record, given)
        except Void as void:
            self.undo()
            return Applied(transaction.txid, segment.seq, void=str(void))
        numbers = tuple(given)
        self.txids[transaction.txid] = (segment.seq, numbers)
        return Applied(transaction.txid, segment.seq, numbers=numbers)

    def _record(self, record: Record, given: list[int]) -> None:
        rule = self._rules.get(type(record))
        if rule is not None:
            rule(record)
            return
        number = self.name_record(record)
        if number is not None:
            given.append(number)

    def _nothing(self, record: object) -> None:
        """Records that content does not depend on."""

    # --- bytes

    def holders(self, digest: bytes) -> int:
        """I2: the number of distinct nodes and roots that hold a digest."""
        return len(self.parents.get(digest, ())) + self.roots.get(digest, 0)

    def _place(self, digest: bytes, pack: bytes, kind: ChunkKind) -> None:
        old = self.chunks.get(digest)
        if old is not None and old[0] != NOWHERE:
            self.remove(self.placed[old[0]], digest)
        self.assign(self.chunks, digest, (pack, kind))
        if pack != NOWHERE:
            self.assign(self.placed[pack], digest, None)
        self.touched.add(digest)

    def _add_pack(self, record: AddPack) -> None:
        if record.pack in self.packs:
            raise Void("the pack is known")
        there = self.objects.get(record.pack)
        if there is None or there[0] != record.size:
            raise Difference("I4", f"pack {record.pack.hex()[:8]} goes live without its bytes")
        self.assign(self.packs, record.pack, LIVE)
        self.assign(self.placed, record.pack, {})
        self.ended.add(record.pack)
        for digest in record.content.digests:
            self.added.setdefault(digest, (record.pack, record.content.kind))
            if digest not in self.chunks or digest in self.lost:
                self._place(digest, record.pack, record.content.kind)
                self.remove(self.lost, digest)

    def _add_node(self, record: AddNode) -> None:
        if record.digest not in self.chunks:
            raise Void("the node is not stored")
        if record.digest in self.children:
            return
        for child in record.children:
            self._holdable(child)
            self.assign(self.parents.setdefault(child, {}), record.digest, None)
            self.touched.add(child)
        self.assign(self.children, record.digest, tuple(dict.fromkeys(record.children)))

    def _holdable(self, digest: bytes) -> None:
        if digest not in self.chunks:
            raise Void(f"I1: {digest.hex()} is not indexed")
        if self.chunks[digest][1] is ChunkKind.NODE and digest not in self.children:
            raise Void(f"I1: the children of {digest.hex()} are not known")

    def hold_root(self, root: bytes, *, node: bool = True) -> None:
        """One root more."""
        if node and root not in self.children:
            raise Void("the root is no node")
        self._holdable(root)
        self.assign(self.roots, root, self.roots.get(root, 0) + 1)
        self.touched.add(root)

    def release_root(self, root: bytes) -> None:
        """One root less."""
        self.assign(self.roots, root, self.roots[root] - 1)
        self.touched.add(root)

    def _drop(self, record: Drop) -> None:
        self.endings += 1
        for digest in record.digests:
            if digest not in self.chunks or self.holders(digest):
                raise Void(f"I1: {digest.hex()} is held")
            for child in self.children.get(digest, ()):
                self.remove(self.parents[child], digest)
                self.touched.add(child)
            self.remove(self.children, digest)
            pack = self.chunks[digest][0]
            if pack != NOWHERE:
                self.remove(self.placed[pack], digest)
            self.remove(self.chunks, digest)
            self.remove(self.lost, digest)
            self.touched.add(digest)

    def _retire(self, record: Retire) -> None:
        self.endings += 1
        if self.packs.get(record.pack) != LIVE:
            raise Void("the pack is not live")
        moved = dict.fromkeys(record.moved)
        if moved.keys() != self.placed[record.pack].keys() or not moved.keys() <= self.added.keys():
            raise Void("I3: what is in the pack was neither moved nor dropped")
        for digest in moved:
            self._place(digest, *self.added[digest])
        self.assign(self.packs, record.pack, RETIRED)
        self.ended.add(record.pack)

    def _condemn(self, record: Condemn) -> None:
        self.endings += 1
        if record.pack in self.packs:
            raise Void("the pack is known")
        self.assign(self.packs, record.pack, CONDEMNED)
        self.ended.add(record.pack)

    def _quarantine(self, record: Quarantine) -> None:
        if self.chunks.get(record.digest, (NOWHERE,))[0] != record.pack or record.digest in self.lost:
            raise Void("the digest is not there")
        self.assign(self.lost, record.digest, None)

    def _erase(self, record: Erase) -> None:
        for digest in dict.fromkeys(record.digests):
            if self.chunks.get(digest, (NOWHERE,))[0] == NOWHERE or digest in self.children:
                raise Void("the digest is not there")
            self._place(digest, NOWHERE, self.chunks[digest][1])
            self.assign(self.lost, digest, None)

    def _pin(self, record: Pin) -> None:
        if record.pin in self.pins:
            raise Void("the pin is held")
        for root in record.roots:
            self.hold_root(root, node=False)
        self.assign(self.pins, record.pin, record.roots)

    def _unpin(self, record: Unpin) -> None:
        if record.pin not in self.pins:
            raise Void("the pin is not held")
        for root in self.pins[record.pin]:
            self.release_root(root)
        self.remove(self.pins, record.pin)

    def _renew(self, record: RenewPin) -> None:
        if record.pin not in self.pins:
            raise Void("the pin is not held")

    # --- what the replicas make of it

    def replica(self, process: str, segment: Segment, outcomes: Sequence[Applied], tables: Tables) -> None:
        """A replica folded a segment in: it must have come to the same outcome, and to the same counts and places."""
        self.replicas += 1
        if segment.seq > self.seq:
            raise Difference("log", f"{process} applies segment {segment.seq}, which is not in the log")
        ours = self.log[segment.seq - 1].outcomes
        for mine, theirs in zip(ours, outcomes, strict=True):
            if bool(mine.void) != bool(theirs.void) or mine.numbers != theirs.numbers:
                raise Difference("apply", f"segment {segment.seq}, {process}: {theirs} instead of {mine}")
        if segment.seq == self.seq:
            for digest in self.touched:
                self._same_chunk(process, digest, tables)
            for pack in self.ended:
                self._same_pack(process, pack, tables)

    def _same_chunk(self, process: str, digest: bytes, tables: Tables) -> None:
        row = tables.get(CHUNK, digest)
        mine = self.chunks.get(digest)
        theirs = None if row is None else (pack_of_row(row), kind_of_row(row))
        if mine != theirs:
            raise Difference("I3", f"{process} has {digest.hex()[:8]} at {theirs}, not {mine}")
        if row is not None and refcount(row) != self.holders(digest):
            raise Difference(
                "I2", f"{process} counts {refcount(row)} holders of {digest.hex()[:8]}, not {self.holders(digest)}"
            )
        if (tables.get(NODE, digest) is not None) != (digest in self.children):
            raise Difference("I1", f"{process} disagrees on whether {digest.hex()[:8]} is a node")

    def _same_pack(self, process: str, pack: bytes, tables: Tables) -> None:
        row = tables.get(PACK, pack)
        found = None if row is None else decode_row(row, PackRow)
        state = self.packs.get(pack)
        mine = None if state is None else (state, len(self.placed.get(pack, ())))
        theirs = None if found is None else (int(found.state), found.placed)
        if mine != theirs:
            raise Difference("I3", f"{process} has pack {pack.hex()[:8]} as {theirs}, not {mine}")

    def compare(self, process: str, tables: Tables) -> None:
        """Everything, against a replica at the same position."""
        head = head_of(tables)
        if (head.seq, head.safe, head.highest) != (self.seq, self.safe, self.highest):
            raise Difference("clock", f"{process} is at {head}, not {self.seq}, {self.safe}, {self.highest}")
        for digest in {*self.chunks, *(key for key, _ in tables.scan(CHUNK))}:
            self._same_chunk(process, digest, tables)
        for pack in {*self.packs, *(key for key, _ in tables.scan(PACK))}:
            self._same_pack(process, pack, tables)
        if {key for key, _ in tables.scan(ZERO)} != {digest for digest in self.chunks if not self.holders(digest)}:
            raise Difference("I2", f"the zero-count table of {process} is not the digests without a holder")
        if self.pins.keys() != {key for key, _ in tables.scan(PIN)}:
            raise Difference("pins", f"{process} holds other pins")
        self.compare_names(process, tables)

    # --- questions

    def reachable(self) -> set[bytes]:
        """Every digest a version, the trash or a pin needs."""
        found = {root for root, count in self.roots.items() if count}
        queue = list(found)
        while queue:
            for child in self.children.get(queue.pop(), ()):
                if child not in found:
                    found.add(child)
                    queue.append(child)
        return found

    def check(self) -> None:
        """I1, I3 and I4 over everything, from outside."""
        for node, children in self.children.items():
            if node not in self.chunks or any(child not in self.chunks for child in children):
                raise Difference("I1", f"node {node.hex()[:8]} has children that are not indexed")
        for digest, (pack, _) in self.chunks.items():
            if pack == NOWHERE:
                continue
            if self.packs.get(pack) != LIVE:
                raise Difference("I3", f"{digest.hex()[:8]} is in pack {pack.hex()[:8]}, which is not live")
            if pack not in self.objects:
                raise Difference("I4", f"{digest.hex()[:8]} is in pack {pack.hex()[:8]}, which is gone")
