"""Chunks of small sessions, on their way into packs that the sessions of one commit group share. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field

from casstore.codec import Codec
from casstore.digest import Buffer
from casstore.format.packs import VersionNote
from casstore.model import AddPack, ChunkKind
from casstore.pack import PackWriter, SealedPack, encode_frame
from casstore.values import dataclass

Chunks = Sequence[tuple[bytes, Buffer]]


@dataclass(slots=True)
class Parcel:
    """What is to be stored for one transaction: chunks that are in no pack yet.

    The transaction is built with ``packs`` at its beginning: all packs of the group for the first transaction that
    takes effect, none for those behind it, which find their chunks in the store.
    """

    data: Chunks
    nodes: Chunks
    children: Sequence[int]
    """number of children of each node"""
    notes: Sequence[VersionNote]
    packs: tuple[AddPack, ...] = ()
    shared: bool = False
    """the packs hold what other sessions store, too"""
    stored_bytes: int = 0
    """its share of the packs"""


@dataclass(slots=True)
class Load:
    """Sealed packs with the chunks of some parcels, each chunk once. ``exposed``: a segment may name them."""

    parcels: tuple[Parcel, ...]
    packs: tuple[SealedPack, ...]
    published: bool = False
    exposed: bool = False
    records: tuple[AddPack, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.records = tuple([pack.record for pack in self.packs])


def load(parcels: Sequence[Parcel], codec: Codec, new_pack: Callable[[], bytes], frame_bytes: int) -> Load:
    """Encode the chunks of some parcels into one pack of data and one of nodes."""
    seen: set[bytes] = set()
    shares = [0] * len(parcels)
    packs: list[SealedPack] = []
    notes: list[VersionNote] = []
    for kind in (ChunkKind.DATA, ChunkKind.NODE):
        writer = PackWriter(kind)
        raws = [0] * len(parcels)
        frame: list[tuple[bytes, Buffer]] = []
        children: list[int] = []
        gathered = 0
        for number, parcel in enumerate(parcels):
            counts: Iterable[int]
            chunks, counts = parcel.data, (0,) * len(parcel.data)
            if kind is ChunkKind.NODE:
                chunks, counts = parcel.nodes, parcel.children
                notes += parcel.notes if parcel.nodes else ()
            for (digest, data), count in zip(chunks, counts, strict=True):
                if digest in seen:
                    continue  # what two sessions store is stored once
                seen.add(digest)
                if gathered and gathered + len(data) > frame_bytes + frame_bytes // 4:
                    writer.add(encode_frame(codec, frame), children)
                    frame, children, gathered = [], [], 0
                frame.append((digest, data))
                if kind is ChunkKind.NODE:
                    children.append(count)
                gathered += len(data)
                raws[number] += len(data)
        if frame:
            writer.add(encode_frame(codec, frame), children)
        if len(writer):
            name = new_pack()
            if packs:
                name = packs[0].record.pack[:1] + name[1:]  # in the same directory: one sync is for both
            packs.append(sealed := writer.finish(name, notes))
            _split(sealed.record.size, raws, shares)
    for parcel, share in zip(parcels, shares, strict=True):
        parcel.stored_bytes, parcel.shared = share, len(parcels) > 1
    return Load(tuple(parcels), tuple(packs))


def _split(size: int, raws: Sequence[int], shares: list[int]) -> None:
    """Add to each share its part of a size by weight, so that the parts add up to it."""
    total, before, given = sum(raws) or 1, 0, 0
    for number, raw in enumerate(raws):
        before += raw
        upto = size * before // total
        shares[number] += upto - given
        given = upto
