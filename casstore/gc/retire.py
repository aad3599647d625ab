"""Carry out a plan in the log: drop garbage, move what is live out of wasteful packs, retire those packs.

Every step is validated again on the state it is committed to; what was revived meanwhile is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from casstore.backend.room import is_full
from casstore.engine import Build, Engine
from casstore.errors import AlreadyExistsError, BackendError, CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format.layout import pack_key
from casstore.format.packs import (
    TRAILER_SIZE,
    Footer,
    VersionNote,
    decode_footer,
    decode_trailer,
    locations,
)
from casstore.format.rows import decode_row, pack_of_row, refcount
from casstore.gc.plan import Fate, PackFate, Plan
from casstore.model import AddPack, ChunkKind, Drop, GCRun, Location, LostRow, PackState, Progress, Record, Retire
from casstore.overlay import Tables
from casstore.pack import Frame, PackWriter, check_chunk, decode_frame, encode_frame
from casstore.state import CHUNK, LOST, NO_PACK, PACK
from casstore.view import children_of, pack_at

DROP_BATCH = 20_000
SMALL_FRAME = 4
"""frames with less plaintext than a quarter of the aim are compressed again, with their neighbours"""


@dataclass(slots=True)
class Retired:
    """What was done."""

    packs: int = 0
    chunks: int = 0
    """digests dropped"""
    copied: int = 0
    """stored bytes of the packs written"""
    errors: list[str] = field(default_factory=list)
    skipped: list[tuple[PackFate, str]] = field(default_factory=list)
    unmoved: list[PackFate] = field(default_factory=list)
    """packs for whose live content there was no room elsewhere"""


class Budget:
    """When a bounded run has to stop. Consulted before each step."""

    def __init__(self, max_bytes: int | None, deadline: float | None, now: Callable[[], float]) -> None:
        self.left = max_bytes
        self.deadline = deadline
        self.now = now

    def spend(self, amount: int) -> bool:
        """True if a step that frees some bytes may begin."""
        if self.deadline is not None and self.now() >= self.deadline:
            return False
        if self.left is None:
            return True
        if amount > self.left:
            return False
        self.left -= amount
        return True


def retire(
    engine: Engine, plan: Plan, budget: Budget, run: GCRun, fits: Callable[[int], bool], progress: Progress
) -> Retired:
    """Execute a plan. Killed anywhere it leaves at worst packs nobody knows, which the next sweep condemns.

    ``run`` goes into each transaction, so that the log tells what a run did. ``fits`` says whether so many bytes may
    be written; what does not fit stays where it is.
    """
    done = Retired()
    since = plan.at
    # Content that was erased is in no pack, so no pack's end would forget it.
    erased = plan.garbage.by_pack.get(NO_PACK, [])
    done.chunks += _drop_nodes(engine, (*plan.garbage.nodes, *erased), run)
    whole = []
    for pack in plan.packs(Fate.RETIRE):
        if budget.spend(pack.size):
            whole.append(pack)
        else:
            done.skipped.append((pack, "the limits of this run"))
    _retire_whole(engine, plan, whole, run, done)
    for kind in ChunkKind:
        chosen = [pack for pack in plan.packs(Fate.REPACK) if pack.kind is kind]
        _repack(_Job(engine, plan, since, run, done, fits), chosen, budget, progress)
    return done


def _drop_nodes(engine: Engine, nodes: Sequence[bytes], run: GCRun) -> int:
    """Forget dead nodes, parents first, so that what only they held is free."""
    dropped = 0
    for at in range(0, len(nodes), DROP_BATCH):
        batch = nodes[at : at + DROP_BATCH]
        chosen: list[bytes] = []

        def build(tables: Tables, batch: Sequence[bytes] = batch, chosen: list[bytes] = chosen) -> Sequence[Record]:
            chosen[:] = _droppable(tables, batch)
            return (run, Drop(tuple(chosen))) if chosen else ()

        engine.commit(build)
        dropped += len(chosen)
    return dropped


def _droppable(tables: Tables, digests: Iterable[bytes]) -> list[bytes]:
    """Those of some digests, parents before children, that nothing holds once the ones before are gone."""
    counts: dict[bytes, int] = {}
    chosen: list[bytes] = []
    for digest in digests:
        row = tables.get(CHUNK, digest)
        if row is None or counts.get(digest, refcount(row)):
            continue
        chosen.append(digest)
        for child in children_of(tables, digest) or ():
            child_row = tables.get(CHUNK, child)
            if child_row is not None:
                counts[child] = counts.get(child, refcount(child_row)) - 1
    return chosen


def _retire_whole(engine: Engine, plan: Plan, chosen: Sequence[PackFate], run: GCRun, done: Retired) -> None:
    """Retire packs in which nothing is live: one small transaction each, no copying."""
    dropped: dict[bytes, int] = {}

    def builder(pack: PackFate) -> Build:
        def build(tables: Tables) -> Sequence[Record]:
            dropped.pop(pack.pack, None)
            row = pack_at(tables, pack.pack)
            if row is None or row.state is not PackState.LIVE:
                return ()
            dead = _dead_in(tables, pack.pack, plan.garbage.by_pack.get(pack.pack, ()))
            if len(dead) != row.placed:
                return ()  # something in it was revived
            dropped[pack.pack] = len(dead)
            return (run, *((Drop(tuple(dead)),) if dead else ()), Retire(pack.pack, ()))

        return build

    for at in range(0, len(chosen), 32):
        results = engine.commit_all([builder(pack) for pack in chosen[at : at + 32]])
        for pack, result in zip(chosen[at : at + 32], results, strict=True):
            if result is None:
                done.skipped.append((pack, "it came into use again"))
            else:
                done.packs += 1
                done.chunks += dropped.get(pack.pack, 0)


def _dead_in(tables: Tables, pack: bytes, candidates: Iterable[bytes]) -> list[bytes]:
    """Candidates that are still in a pack and that nothing holds."""
    dead = []
    for digest in candidates:
        row = tables.get(CHUNK, digest)
        if row is not None and pack_of_row(row) == pack and refcount(row) == 0:
            dead.append(digest)
    return dead


# --- moving --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Source:
    """A pack that is being emptied: what lives in it, in order."""

    fate: PackFate
    footer: Footer
    live: list[bytes]


@dataclass(frozen=True, slots=True)
class _Job:
    """What moving content out of packs works with."""

    engine: Engine
    plan: Plan
    since: int
    run: GCRun
    done: Retired
    fits: Callable[[int], bool]


def _repack(job: _Job, chosen: Sequence[PackFate], budget: Budget, progress: Progress) -> None:
    engine, done = job.engine, job.done
    batch: list[_Source] = []
    mover: _Mover | None = None
    for position, fate in enumerate(chosen):
        progress("repack", position, len(chosen))
        if not job.fits((0 if mover is None else mover.size) + fate.size - fate.dead_stored):
            done.unmoved.append(fate)
            continue
        if not budget.spend(fate.dead_stored):
            done.skipped.append((fate, "the limits of this run"))
            continue
        mover = mover or _Mover(engine, fate.kind)
        try:
            source = _open(engine, fate)
            mover.take(source)
        except (IntegrityError, FormatError, NotFoundError) as error:
            if _ended(engine, fate.pack):
                done.skipped.append((fate, "another collection was faster"))
            else:
                done.errors.append(f"pack {fate.pack.hex()} is left as it is: {error}")
            # What was taken of this one is a harmless second copy; the packs before it are finished.
            if batch:
                _flush(job, mover, batch)
            mover, batch = None, []
            continue
        batch.append(source)
        if mover.size >= engine.config.pack_bytes:
            _flush(job, mover, batch)
            batch, mover = [], None
    if mover is not None and batch:
        _flush(job, mover, batch)


def _ended(engine: Engine, pack: bytes) -> bool:
    """Whether the log says the end of a pack by now, so that it may be gone."""
    engine.view.refresh()
    with engine.view.read() as tables:
        row = pack_at(tables, pack)
    return row is not None and row.state is not PackState.LIVE


def _open(engine: Engine, fate: PackFate) -> _Source:
    footer = read_footer(engine, fate.pack, fate.size)
    with engine.view.read() as tables:
        live = [
            digest
            for digest, row in ((d, tables.get(CHUNK, d)) for d in dict.fromkeys(footer.content.digests))
            if row is not None and pack_of_row(row) == fate.pack and refcount(row) and tables.get(LOST, digest) is None
        ]
    return _Source(fate, footer, live)


def read_footer(engine: Engine, pack: bytes, size: int) -> Footer:
    """The table of contents of a pack of a known size. Raises `IntegrityError`, `FormatError`."""
    what = f"pack {pack.hex()}"
    trailer = engine.backend.read(pack_key(pack), offset=size - TRAILER_SIZE)
    _, length = decode_trailer(trailer, what)
    if length > size:
        raise IntegrityError(f"{what} has a damaged end")
    data = engine.backend.read(pack_key(pack), offset=size - TRAILER_SIZE - length, length=length)
    return decode_footer(data, f"the footer of {what}")


class _Mover:
    """Copies live chunks of one kind into a new pack: whole frames as they are, others compressed again."""

    def __init__(self, engine: Engine, kind: ChunkKind) -> None:
        self.engine = engine
        self.writer = PackWriter(kind)
        self.notes: list[VersionNote] = []
        self.loose: list[tuple[bytes, bytes]] = []
        self.loose_bytes = 0
        self.children: dict[bytes, int] = {}

    @property
    def size(self) -> int:
        return self.writer.size + self.loose_bytes

    def take(self, source: _Source) -> None:
        """Copy what is live in a pack. Every chunk is verified on the way."""
        engine = self.engine
        live = set(source.live)
        pack = source.fate.pack
        places = locations(pack, source.footer.content)
        if source.footer.children:
            self.children.update(zip(source.footer.content.digests, source.footer.children, strict=False))
        at = 0
        for frame in source.footer.content.frames:
            members = places[at : at + frame.chunks]
            at += frame.chunks
            wanted = [(digest, place) for digest, place in members if digest in live]
            if not wanted:
                continue
            live.difference_update(digest for digest, _ in wanted)
            self._frame(pack, members, wanted)
        if live:
            raise IntegrityError(f"the footer of pack {pack.hex()} lacks chunks that are in it", hint="casstore fsck")
        self.notes.extend(note for note in source.footer.versions if engine.view.known((note.root,))[0])

    def _frame(self, pack: bytes, members: list[tuple[bytes, Location]], wanted: list[tuple[bytes, Location]]) -> None:
        engine = self.engine
        first = members[0][1]
        what = f"the frame at {first.frame_offset} of pack {pack.hex()}"
        stored = engine.backend.read(pack_key(pack), offset=first.frame_offset, length=first.frame_stored)
        plain = decode_frame(engine.codec, stored, first.frame_raw, what)
        chunks = [(digest, plain[place.offset : place.offset + place.length]) for digest, place in wanted]
        for digest, data in chunks:
            check_chunk(engine.hash, digest, data, what)
        if len(wanted) == len(members) and first.frame_raw * SMALL_FRAME >= engine.config.frame_bytes:
            self._close_loose()
            self._add(Frame(stored, first.frame_raw, tuple(d for d, _ in chunks), tuple(len(c) for _, c in chunks)))
            return
        for digest, data in chunks:
            self.loose.append((digest, data))
            self.loose_bytes += len(data)
            if self.loose_bytes >= engine.config.frame_bytes:
                self._close_loose()

    def _close_loose(self) -> None:
        if self.loose:
            chunks, self.loose, self.loose_bytes = self.loose, [], 0
            self._add(encode_frame(self.engine.codec, chunks))

    def _add(self, frame: Frame) -> None:
        children = [self.children.get(digest, 0) for digest in frame.digests]
        self.writer.add(frame, children if self.writer.kind is ChunkKind.NODE else ())

    def publish(self) -> AddPack | None:
        """Upload the new pack, if anything is in it."""
        self._close_loose()
        if not len(self.writer):
            return None
        sealed = self.writer.finish(self.engine.new_pack(), self.notes)
        try:
            self.engine.backend.create(pack_key(sealed.record.pack), sealed.data())
        except AlreadyExistsError as error:
            raise CasstoreError(f"a pack name was drawn twice: {error}") from None
        return sealed.record


def _flush(job: _Job, mover: _Mover, batch: list[_Source]) -> None:
    """Move the content of some packs; those for which there is no room after all stay as they are."""
    try:
        _move(job, mover, batch)
    except BackendError as error:
        if not is_full(error):
            raise
        job.done.unmoved += [source.fate for source in batch]


def _move(job: _Job, mover: _Mover, batch: list[_Source]) -> None:
    """Commit one new pack and the end of the packs it empties, together."""
    done = job.done
    added = mover.publish()
    ended: list[PackFate] = []
    dropped = 0

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal dropped
        ended.clear()
        drops: list[bytes] = []
        retires: list[Record] = []
        copied = set(added.content.digests) if added is not None else set()
        if any(_erased(tables, digest) for digest in copied):
            return ()  # what was given up meanwhile is not to come back
        if added is not None and tables.get(PACK, added.pack) is not None:
            return ()  # another collector took it for one of the dead, and condemned it: the next run moves it all
        for source in batch:
            outcome = _still_right(tables, job.plan, source, copied)
            if outcome is None:
                continue
            dead, moved = outcome
            drops += dead
            retires.append(Retire(source.fate.pack, tuple(moved)))
            ended.append(source.fate)
        dropped = len(drops)
        if not retires:
            return ()
        head: list[Record] = [job.run] if added is None else [job.run, added]
        return (*head, *((Drop(tuple(drops)),) if drops else ()), *retires)

    if job.engine.commit(build, packs_since=job.since) is None and added is not None:
        with suppress(CasstoreError):  # no segment names it, and none ever will
            job.engine.backend.delete(pack_key(added.pack))
    if added is not None:
        done.copied += added.size
    done.packs += len(ended)
    done.chunks += dropped
    for source in batch:
        if source.fate not in ended:
            done.skipped.append((source.fate, "it came into use again"))


def _erased(tables: Tables, digest: bytes) -> bool:
    row = tables.get(LOST, digest)
    return row is not None and decode_row(row, LostRow).erased


def _still_right(
    tables: Tables, plan: Plan, source: _Source, copied: set[bytes]
) -> tuple[list[bytes], list[bytes]] | None:
    """What of a pack is to be dropped and what moved, on the state at hand; None if it must be left alone."""
    pack = source.fate.pack
    row = pack_at(tables, pack)
    if row is None or row.state is not PackState.LIVE:
        return None
    here = [
        digest
        for digest in source.live
        if digest in copied and (place := tables.get(CHUNK, digest)) is not None and pack_of_row(place) == pack
    ]
    # What was quarantined since it was copied is healed by the copy, which was checked: the new pack has it already.
    moved = [digest for digest in here if tables.get(LOST, digest) is None]
    dead = [d for d in _dead_in(tables, pack, plan.garbage.by_pack.get(pack, ())) if d not in copied]
    return (dead, moved) if len(dead) + len(here) == row.placed else None


def predicted(plan: Plan) -> int:
    """Digests a plan would drop."""
    ending = {fate.pack for fate in plan.fates if fate.fate is not Fate.KEEP}
    nodes = set(plan.garbage.nodes)
    in_ending = sum(1 for pack in ending for digest in plan.garbage.by_pack.get(pack, ()) if digest not in nodes)
    return len(nodes) + in_ending
