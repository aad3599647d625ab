"""What records about bytes need and do: packs, nodes, reference counts, pins."""

from collections import Counter
from dataclasses import replace

from casstore.errors import IntegrityError
from casstore.format.packs import FIRST_FRAME
from casstore.format.rows import (
    chunk_row,
    decode_row,
    encode_row,
    kind_of_row,
    length_of_row,
    moved_row,
    pack_of_row,
    refcount,
    refcounts,
    with_refcount,
    with_refcounts,
)
from casstore.model import (
    AddNode,
    AddPack,
    Checkpoint,
    CheckpointRow,
    ChunkKind,
    Condemn,
    Drop,
    Erase,
    LostRow,
    PackRow,
    PackState,
    Pin,
    PinRow,
    Quarantine,
    RenewPin,
    Retire,
    Segment,
    Unpin,
)
from casstore.overlay import Overlay
from casstore.state.schema import (
    CHECKPOINT_KEY,
    CHUNK,
    HEAD_KEY,
    LOST,
    META,
    NO_PACK,
    NODE,
    PACK,
    PIN,
    ZERO,
    checkpoint_of,
    head_of,
)


class Void(Exception):
    """A record is not valid; the transaction has no effect."""


TOGETHER = 256
"""digests that are looked up together: rows of nodes are long"""


def _below_zero(digest: bytes) -> IntegrityError:
    return IntegrityError(f"the reference count of {digest.hex()} would fall below zero", hint="casstore index rebuild")


class ContentRules:
    """The rules for packs, nodes and counts."""

    def __init__(self, tables: Overlay, segment: Segment) -> None:
        self.tables = tables
        self.segment = segment
        self.added: dict[bytes, bytes] = {}
        """digest → row of its place in a pack this transaction adds"""
        self._alias_changes: int | None = None

    # --- bytes

    def _add_pack(self, record: AddPack) -> None:
        self._check_new(record.pack)
        content = record.content
        placed = placed_raw = 0
        new: dict[bytes, bytes | None] = {}
        lost = bool(self.tables.count(LOST))
        rows = self._places(record)
        known = self.tables.get_many(CHUNK, content.digests)
        for digest, length, row, there in zip(content.digests, content.lengths, rows, known, strict=True):
            self.added.setdefault(digest, row)
            if there is None:
                if digest in new:
                    continue  # twice in this pack
                new[digest] = row
            elif lost and self.tables.get(LOST, digest) is not None:
                # It was damaged or erased: this is its place from now on, and whoever holds it is whole again.
                self._displace({pack_of_row(there): (1, length_of_row(there))})
                self.tables.put(CHUNK, digest, moved_row(there, row))
                self.tables.delete(LOST, digest)
            else:
                continue
            placed += 1
            placed_raw += length
        self.tables.change(CHUNK, new)
        self.tables.change(ZERO, dict.fromkeys(new, b""))
        self._put_pack(
            record.pack,
            PackRow(
                PackState.LIVE,
                content.kind,
                record.size,
                sum(content.lengths),
                placed,
                placed_raw,
                self.segment.claimed,
                self.segment.seq,
            ),
        )
        self._grow(record.size)

    def _places(self, record: AddPack) -> list[bytes]:
        """The row of each chunk of a pack."""
        content = record.content
        rows: list[bytes] = []
        at = FIRST_FRAME
        for frame in content.frames:
            offset = 0
            for length in content.lengths[len(rows) : len(rows) + frame.chunks]:
                rows.append(chunk_row(record.pack, at, frame.stored, frame.raw, offset, length, content.kind))
                offset += length
            at += frame.stored
        return rows

    def _add_node(self, record: AddNode) -> None:
        # In a pack of either kind: a file may have been stored before that has the very bytes of this node.
        if self.tables.get(CHUNK, record.digest) is None:
            raise Void(f"node {record.digest.hex()} is not stored")
        if self.tables.get(NODE, record.digest) is not None:
            return
        if any(len(child) != len(record.digest) for child in record.children):
            raise Void(f"a child of node {record.digest.hex()} is no digest")
        children = tuple(dict.fromkeys(record.children))
        self._hold(*children)
        self.tables.put(NODE, record.digest, b"".join(children))

    def _hold(self, *digests: bytes) -> None:
        """Count one more holder of each of some distinct digests."""
        held: dict[bytes, bytes | None] = {}
        counted: dict[bytes, bytes | None] = {}
        for digest, row in zip(digests, self.tables.get_many(CHUNK, digests), strict=True):
            if row is None:
                raise Void(f"{digest.hex()} is not stored")
            if kind_of_row(row) is ChunkKind.NODE and self.tables.get(NODE, digest) is None:
                raise Void(f"the children of node {digest.hex()} are not known")
            count = refcount(row)
            if count == 0:
                counted[digest] = None
            held[digest] = with_refcount(row, count + 1)
        self.tables.change(CHUNK, held)
        self.tables.change(ZERO, counted)

    def _hold_root(self, digest: bytes) -> None:
        if self.tables.get(NODE, digest) is None:
            raise Void(f"root {digest.hex()} is not a stored node")
        self._hold(digest)

    def _release(self, digest: bytes) -> None:
        row = self.tables.get(CHUNK, digest)
        if row is None or refcount(row) == 0:
            raise _below_zero(digest)
        count = refcount(row) - 1
        if count == 0:
            self.tables.put(ZERO, digest, b"")
        self.tables.put(CHUNK, digest, with_refcount(row, count))

    def _drop(self, record: Drop) -> None:
        tables = self.tables
        lost: dict[bytes, tuple[int, int]] = {}
        released: Counter[bytes] = Counter()
        """references that nodes dropped so far held, of what is not dropped itself yet"""
        chunks: dict[bytes, bytes | None] = {}
        nodes: dict[bytes, bytes | None] = {}
        free: dict[bytes, bytes | None] = {}
        for at in range(0, len(record.digests), TOGETHER):
            digests = record.digests[at : at + TOGETHER]
            rows = tables.get_many(CHUNK, digests)
            for digest, row, children in zip(digests, rows, tables.get_many(NODE, digests), strict=True):
                count = 0 if row is None else refcount(row)
                if row is None or digest in chunks or count > released[digest]:
                    raise Void(f"{digest.hex()} is {'held' if row and digest not in chunks else 'not stored'}")
                if count < released.pop(digest, 0):
                    raise _below_zero(digest)
                if children is not None:
                    width = len(digest)
                    released.update([children[start : start + width] for start in range(0, len(children), width)])
                    nodes[digest] = None
                chunks[digest] = None
                if not count:
                    free[digest] = None
                pack, length = pack_of_row(row), length_of_row(row)
                number, raw = lost.get(pack, (0, 0))
                lost[pack] = (number + 1, raw + length)
        left = sorted(released)
        held: list[bytes] = []
        for digest, row in zip(left, tables.get_many(CHUNK, left), strict=True):
            if row is None or digest in chunks:
                raise _below_zero(digest)
            held.append(row)
        counts = [count - released[digest] for digest, count in zip(left, refcounts(held), strict=True)]
        if counts and min(counts) < 0:
            raise _below_zero(left[counts.index(min(counts))])
        chunks.update(zip(left, with_refcounts(held, counts), strict=True))
        free.update((digest, b"") for digest, count in zip(left, counts, strict=True) if not count)
        tables.change(CHUNK, chunks)
        tables.change(NODE, nodes)
        tables.change(ZERO, free)
        if tables.count(LOST):
            tables.change(LOST, dict.fromkeys(record.digests))
        self._displace(lost)

    def _displace(self, lost: dict[bytes, tuple[int, int]]) -> None:
        """Packs hold so many digests (and plaintext bytes of them) less."""
        for name, (count, raw) in lost.items():
            if name != NO_PACK:
                pack = self._pack(name)
                self._put_pack(name, replace(pack, placed=pack.placed - count, placed_raw=pack.placed_raw - raw))

    def _retire(self, record: Retire) -> None:
        pack = self._pack(record.pack)
        if pack.state is not PackState.LIVE:
            raise Void(f"pack {record.pack.hex()} is not live")
        gained: dict[bytes, tuple[int, int]] = {}
        placed: dict[bytes, bytes | None] = {}
        moved = list(dict.fromkeys(record.moved))
        for digest, row in zip(moved, self.tables.get_many(CHUNK, moved), strict=True):
            target = self.added.get(digest)
            if row is None or pack_of_row(row) != record.pack or target is None:
                raise Void(f"{digest.hex()} is not in pack {record.pack.hex()} or was not copied")
            copy = pack_of_row(target)
            if copy not in gained and (copy == record.pack or self._pack(copy).state is not PackState.LIVE):
                raise Void(f"the copy of {digest.hex()} is in pack {copy.hex()}, which is not live")
            placed[digest] = moved_row(row, target)
            count, raw = gained.get(copy, (0, 0))
            gained[copy] = (count + 1, raw + length_of_row(row))
        if len(moved) != pack.placed:
            raise Void(f"pack {record.pack.hex()} holds {pack.placed} digests, not {len(moved)}")
        self.tables.change(CHUNK, placed)
        moved_bytes = 0
        for name, (count, raw) in gained.items():
            target_pack = self._pack(name)
            grown = replace(target_pack, placed=target_pack.placed + count, placed_raw=target_pack.placed_raw + raw)
            # Shares of the new pack's size by what is placed in it, so that those of all its sources add up to it.
            moved_bytes += _share(grown) - _share(target_pack)
            self._put_pack(name, grown)
        self._put_pack(
            record.pack,
            replace(
                pack,
                state=PackState.RETIRED,
                placed=0,
                placed_raw=0,
                since=self.segment.claimed,
                seq=self.segment.seq,
                moved=moved_bytes,
            ),
        )

        self._grow(-pack.size)

    def _grow(self, size: int) -> None:
        head = head_of(self.tables)
        self.tables.put(META, HEAD_KEY, encode_row(replace(head, stored=head.stored + size)))

    def _quarantine(self, record: Quarantine) -> None:
        row = self.tables.get(CHUNK, record.digest)
        if row is None or pack_of_row(row) != record.pack:
            raise Void(f"{record.digest.hex()} is not in pack {record.pack.hex()}")
        if self.tables.get(LOST, record.digest) is not None:
            raise Void(f"{record.digest.hex()} is known to be damaged")
        self._lose(record.digest, LostRow(False, record.pack, "damaged", record.actor, *self._now()))

    def _erase(self, record: Erase) -> None:
        for digest in dict.fromkeys(record.digests):
            row = self.tables.get(CHUNK, digest)
            if row is None or pack_of_row(row) == NO_PACK:
                raise Void(f"{digest.hex()} is not stored")
            if self.tables.get(NODE, digest) is not None:
                raise Void(f"{digest.hex()} is part of a file list")
            pack, length = pack_of_row(row), length_of_row(row)
            self._displace({pack: (1, length)})
            gone = chunk_row(NO_PACK, 0, 0, 0, 0, length, kind_of_row(row))
            self.tables.put(CHUNK, digest, with_refcount(gone, refcount(row)))
            self._lose(digest, LostRow(True, pack, record.reason, record.actor, *self._now()))

    def _lose(self, digest: bytes, row: LostRow) -> None:
        self.tables.put(LOST, digest, encode_row(row))

    def _now(self) -> tuple[int, int]:
        return self.segment.claimed, self.segment.seq

    def _checkpoint(self, record: Checkpoint) -> None:
        known = checkpoint_of(self.tables)
        if not 0 <= record.seq < self.segment.seq or (known is not None and record.seq <= known.seq):
            raise Void(f"there is a newer checkpoint than {record.seq}")
        self.tables.put(META, CHECKPOINT_KEY, encode_row(CheckpointRow(record.seq, record.key, record.state_hash)))

    def _condemn(self, record: Condemn) -> None:
        self._check_new(record.pack)
        self._put_pack(
            record.pack,
            PackRow(PackState.CONDEMNED, ChunkKind.DATA, 0, 0, 0, 0, self.segment.claimed, self.segment.seq),
        )

    def _check_new(self, pack: bytes) -> None:
        if len(pack) != len(NO_PACK) or pack == NO_PACK:
            raise Void(f"{pack.hex()} is no name of a pack")
        if self.tables.get(PACK, pack) is not None:
            raise Void(f"pack {pack.hex()} is known already")

    def _pack(self, name: bytes) -> PackRow:
        row = self.tables.get(PACK, name)
        if row is None:
            raise Void(f"pack {name.hex()} is not known")
        return decode_row(row, PackRow)

    def _put_pack(self, name: bytes, row: PackRow) -> None:
        self.tables.put(PACK, name, encode_row(row))

    # --- pins and policy

    def _pin(self, record: Pin) -> None:
        if self.tables.get(PIN, record.pin) is not None:
            raise Void("the pin is held already")
        for root in record.roots:
            self._hold(root)
        row = PinRow(record.holder, record.purpose, record.roots, record.expires, self.segment.seq)
        self.tables.put(PIN, record.pin, encode_row(row))

    def _unpin(self, record: Unpin) -> None:
        row = self.tables.get(PIN, record.pin)
        if row is None:
            raise Void("the pin is not held")
        for root in decode_row(row, PinRow).roots:
            self._release(root)
        self.tables.delete(PIN, record.pin)

    def _renew_pin(self, record: RenewPin) -> None:
        row = self.tables.get(PIN, record.pin)
        if row is None:
            raise Void("the pin is not held")
        self.tables.put(PIN, record.pin, encode_row(replace(decode_row(row, PinRow), expires=record.expires)))


def _share(pack: PackRow) -> int:
    """Stored bytes of a pack that fall to what is placed in it."""
    return pack.size * pack.placed_raw // pack.raw if pack.raw else 0
