"""Quarantine what is damaged, and heal what has another copy. Each step is one commit: killed, it goes on later.

A digest that is quarantined counts as absent: no writer relies on it, and the next one that has its bytes stores them
again, by which every version that shares them is whole. What is stored twice is healed here, at once.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field

from casstore.engine import Engine
from casstore.errors import BackendError, CasstoreError, FormatError, IntegrityError, InvalidInputError, NotFoundError
from casstore.format.layout import PACK_PREFIX, pack_key, pack_of
from casstore.format.nodes import decode_node
from casstore.format.packs import VersionNote, locations
from casstore.format.rows import decode_chunk, decode_row, pack_of_row
from casstore.gc.moving import read_footer
from casstore.model import (
    AddPack,
    ChunkKind,
    Location,
    LostRow,
    PackRow,
    PackState,
    Progress,
    Quarantine,
    Record,
    Retire,
    no_progress,
)
from casstore.overlay import Tables
from casstore.pack import PackWriter, decode_frame, encode_frame, slice_chunk
from casstore.state import CHUNK, LOST, PACK
from casstore.values import dataclass
from casstore.view import pack_at

BATCH = 10_000
"""digests that one commit quarantines"""
TRIES = 3
"""packs that are written anew when a sweep of orphans takes them before they are committed"""

Placed = list[tuple[bytes, Location]]


@dataclass(slots=True)
class Repaired:
    """What a repair did."""

    quarantined: int = 0
    healed: set[bytes] = field(default_factory=set)
    ended: set[bytes] = field(default_factory=set)
    """damaged packs with nothing needed left in them"""


def repair(engine: Engine, damaged: Mapping[bytes, Iterable[bytes]], progress: Progress = no_progress) -> Repaired:
    """Quarantine damaged digests (``damaged``: pack → those placed in it), then heal all that are quarantined.

    A digest is healed from its own place, should that be readable again, or from any other pack that lists it: live,
    ended but still there, or of a writer that never committed. Damaged packs that need not be kept for anything then
    end: their content is moved. Raises `BackendError`, `StoreBusyError`; what was done until then stays done.
    """
    engine.check_writable()
    done = Repaired()
    with engine.hold("repairing the store"):
        done.quarantined = _quarantine(engine, [(d, pack) for pack, found in damaged.items() for d in sorted(found)])
        head = engine.view.refresh()
        with engine.view.read() as tables:
            lost = {digest: row.pack for digest, row in lost_digests(tables)}
            packs = {*damaged, *lost.values()}
            placed = _placed(tables, packs)
        sources = _Sources(engine)
        sources.look_for(set(lost))
        for position, pack in enumerate(sorted(packs)):
            here = {digest for digest, where in lost.items() if where == pack}
            _Mending(engine, pack, placed[pack], here, sources, head.seq, damaged=pack in damaged).run(done)
            progress("repair", position + 1, len(packs))
    return done


def lost_digests(tables: Tables) -> Iterator[tuple[bytes, LostRow]]:
    """Digests that are quarantined. Those erased on request are not among them: they are not to come back."""
    for digest, value in tables.scan(LOST):
        row = decode_row(value, LostRow)
        if not row.erased:
            yield digest, row


def _quarantine(engine: Engine, found: Sequence[tuple[bytes, bytes]]) -> int:
    count = 0
    actor = engine.runtime.actor
    for at in range(0, len(found), BATCH):
        batch = found[at : at + BATCH]
        chosen: list[Record] = []

        def build(
            tables: Tables, batch: Sequence[tuple[bytes, bytes]] = batch, chosen: list[Record] = chosen
        ) -> Sequence[Record]:
            # What was moved, healed or dropped since it was looked at is another matter.
            chosen[:] = [
                Quarantine(digest, pack, actor)
                for digest, pack in batch
                if (row := tables.get(CHUNK, digest)) is not None
                and pack_of_row(row) == pack
                and tables.get(LOST, digest) is None
            ]
            return chosen

        engine.commit(build)
        count += len(chosen)
    return count


def _placed(tables: Tables, packs: set[bytes]) -> dict[bytes, Placed]:
    """What is placed in some packs, in the order of their frames. One pass over the chunk table."""
    found: dict[bytes, Placed] = {pack: [] for pack in packs}
    if packs:
        for digest, row in tables.scan(CHUNK):
            pack = pack_of_row(row)
            if pack in found:
                found[pack].append((digest, decode_chunk(row).location))
    for content in found.values():
        content.sort(key=lambda item: (item[1].frame_offset, item[1].offset))
    return found


class _Sources:
    """Where the bytes of digests may be found, and reading them there: frame by frame, each digest checked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.copies: dict[bytes, list[Location]] = {}
        self._frame: tuple[bytes, int] = (b"", -1)
        self._plain: bytes | None = None

    def look_for(self, digests: set[bytes]) -> None:
        """Find every pack in the backend whose footer lists one of some digests, whatever the log says of the pack."""
        if not digests:
            return
        for info in self.engine.backend.list(PACK_PREFIX):
            pack = pack_of(info.key)
            if pack is None:
                continue
            try:
                footer = read_footer(self.engine, pack, info.size)
            except (IntegrityError, FormatError, NotFoundError, InvalidInputError):
                continue  # InvalidInputError: cut so short that it has no end to look at
            except BackendError as error:
                if not bad_sector(error):
                    raise
                continue
            for digest, place in locations(pack, footer.content):
                if digest in digests:
                    self.copies.setdefault(digest, []).append(place)

    def read(self, digest: bytes, place: Location) -> bytes | None:
        """The bytes of a digest at its own place or any other; None if no place has them."""
        for where in (place, *self.copies.get(digest, ())):
            data = self._at(digest, where)
            if data is not None:
                return data
        return None

    def _at(self, digest: bytes, place: Location) -> bytes | None:
        frame = (place.pack, place.frame_offset)
        if frame != self._frame:
            self._frame, self._plain = frame, self._decoded(place)
        if self._plain is None:
            return None
        data = slice_chunk(self._plain, place)
        return data if self.engine.hash(data) == digest else None

    def _decoded(self, place: Location) -> bytes | None:
        engine = self.engine
        what = f"the frame at {place.frame_offset} of pack {place.pack.hex()}"
        try:
            stored = engine.backend.read(pack_key(place.pack), offset=place.frame_offset, length=place.frame_stored)
            return decode_frame(engine.codec, stored, place.frame_raw, what)
        except (IntegrityError, NotFoundError):
            return None
        except BackendError as error:
            if not bad_sector(error):
                raise
            return None


class _Mending:
    """One damaged pack: what of it can be saved goes into a new pack, and if that is all, the old one ends."""

    def __init__(
        self,
        engine: Engine,
        pack: bytes,
        placed: Placed,
        lost: set[bytes],
        sources: _Sources,
        since: int,
        *,
        damaged: bool,
    ) -> None:
        self.engine = engine
        self.pack = pack
        self.placed = placed
        self.lost = lost
        self.sources = sources
        self.damaged = damaged
        self.since = since
        self.taken = False
        """a sweep of orphans took the new pack before it was committed"""

    def run(self, done: Repaired) -> None:
        """Do it, and note what was done."""
        engine = self.engine
        with engine.view.read() as tables:
            row = pack_at(tables, self.pack)
        if row is None or row.state is not PackState.LIVE:
            return
        found = {
            digest
            for digest, place in self.placed
            if digest in self.lost and self.sources.read(digest, place) is not None
        }
        # A pack that only had to be taken for damaged, of a disk that was away, need not be emptied.
        everything = self.damaged and found == self.lost
        for _ in range(TRIES):
            added = self._write(row, None if everything else found)
            if added is None and everything and self.placed:
                everything = False  # something else in it cannot be read any more: the next check finds it
                continue
            if added is None and not everything:
                return
            if self._commit(added, done, everything=everything):
                return

    def _write(self, row: PackRow, wanted: set[bytes] | None) -> AddPack | None:
        """A new pack with some of the content, or all; None if there is nothing to write, or not all can be read."""
        engine = self.engine
        writer = PackWriter(row.kind)
        loose: list[tuple[bytes, bytes]] = []
        size = 0

        def close() -> None:
            frame = encode_frame(engine.codec, loose)
            # As the footer counts them, which may be damaged itself.
            nodes = row.kind is ChunkKind.NODE
            writer.add(
                frame, [len(decode_node(data, digest.hex()).references()) for digest, data in loose] if nodes else ()
            )
            loose.clear()

        for digest, place in self.placed:
            if wanted is not None and digest not in wanted:
                continue
            data = self.sources.read(digest, place)
            if data is None:
                return None
            loose.append((digest, data))
            size += len(data)
            if size >= engine.config.frame_bytes:
                close()
                size = 0
        if loose:
            close()
        if not len(writer):
            return None
        sealed = writer.finish(engine.new_pack(), self._notes(row) if wanted is None else ())
        engine.backend.create(pack_key(sealed.record.pack), sealed.data())
        return sealed.record

    def _notes(self, row: PackRow) -> Sequence[VersionNote]:
        """What the pack says of versions, for a recovery from packs alone."""
        try:
            return read_footer(self.engine, self.pack, row.size).versions
        except (IntegrityError, FormatError, NotFoundError, InvalidInputError, BackendError):
            return ()  # a comfort, no more

    def _commit(self, added: AddPack | None, done: Repaired, *, everything: bool) -> bool:
        """Commit the new pack; False if it has to be written again."""
        healed: set[bytes] = set()
        ended = False
        self.taken = False

        def build(tables: Tables) -> Sequence[Record]:
            nonlocal ended
            healed.clear()
            ended = False
            row = pack_at(tables, self.pack)
            if row is None or row.state is not PackState.LIVE:
                return ()
            self.taken = added is not None and tables.get(PACK, added.pack) is not None
            copied = set() if added is None else set(added.content.digests)
            if self.taken or any(_erased(tables, digest) for digest in copied):
                return ()
            still = [digest for digest, _ in self.placed if _pack_of(tables, digest) == self.pack]
            healed.update(digest for digest in still if digest in copied and tables.get(LOST, digest) is not None)
            moved = [digest for digest in still if digest not in healed]
            ended = everything and len(still) == row.placed and copied.issuperset(moved)
            if not ended and not healed:
                return ()
            head: tuple[Record, ...] = () if added is None else (added,)
            return (*head, Retire(self.pack, tuple(moved))) if ended else head

        result = self.engine.commit(build, packs_since=self.since)
        if result is not None:
            done.healed |= healed
            if ended:
                done.ended.add(self.pack)
            return True
        if added is not None and not self.taken:
            # No segment names it, and none ever will.
            with suppress(CasstoreError):
                self.engine.backend.delete(pack_key(added.pack))
        return not self.taken


def bad_sector(error: BackendError) -> bool:
    """Whether a failure to read is that of the medium itself: as good as damage."""
    return error.errno == errno.EIO


def _pack_of(tables: Tables, digest: bytes) -> bytes | None:
    row = tables.get(CHUNK, digest)
    return None if row is None else pack_of_row(row)


def _erased(tables: Tables, digest: bytes) -> bool:
    row = tables.get(LOST, digest)
    return row is not None and decode_row(row, LostRow).erased
