"""Carry out a plan in the log: drop garbage, move what is live out of wasteful packs, retire those packs.

Every step is validated again on the state it is committed to; what was revived meanwhile is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import field

from casstore.backend.room import is_full
from casstore.engine import Build, Engine
from casstore.errors import BackendError, CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format.layout import pack_key
from casstore.format.rows import decode_row, pack_of_row, refcount
from casstore.gc.moving import Mover, Source, open_source, publish
from casstore.gc.plan import Fate, PackFate, Plan
from casstore.model import AddPack, ChunkKind, Drop, GCRun, LostRow, PackState, Progress, Record, Retire
from casstore.overlay import Tables
from casstore.state import CHUNK, LOST, NO_PACK, NODE, PACK
from casstore.values import dataclass
from casstore.view import pack_at

DROP_BATCH = 20_000
DROP_EDGES = 50_000
"""children of the nodes that one transaction drops, about: each is a row that changes, and in memory until it has"""
TOGETHER = 256
"""nodes that are looked up together"""


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
        _repack(Job(engine, plan, since, run, done, fits), chosen, budget, progress)
    return done


def _drop_nodes(engine: Engine, nodes: Sequence[bytes], run: GCRun) -> int:
    """Forget dead nodes, parents first, so that what only they held is free."""
    dropped = 0
    at = 0
    while at < len(nodes):
        chosen: list[bytes] = []
        looked = 0

        def build(tables: Tables, at: int = at, chosen: list[bytes] = chosen) -> Sequence[Record]:
            nonlocal looked
            chosen[:], looked = _droppable(tables, nodes[at : at + DROP_BATCH])
            return (run, Drop(tuple(chosen))) if chosen else ()

        engine.commit(build)
        dropped += len(chosen)
        at += looked
    return dropped


def _droppable(tables: Tables, digests: Sequence[bytes]) -> tuple[list[bytes], int]:
    """Those of some digests, parents before children, that nothing holds once the ones before are gone.

    Ends early when these have `DROP_EDGES` children together; also returns how many digests were looked at.
    """
    released: Counter[bytes] = Counter()
    chosen: list[bytes] = []
    edges = looked = 0
    for at in range(0, len(digests), TOGETHER):
        part = digests[at : at + TOGETHER]
        rows, nodes = tables.get_many(CHUNK, part), tables.get_many(NODE, part)
        for digest, row, children in zip(part, rows, nodes, strict=True):
            if edges >= DROP_EDGES:
                return chosen, looked
            looked += 1
            if row is None or refcount(row) != released[digest]:
                continue
            chosen.append(digest)
            if children is not None:
                width = len(digest)
                released.update([children[start : start + width] for start in range(0, len(children), width)])
                edges += len(children) // width
    return chosen, looked


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
    wanted = list(candidates)
    rows = zip(wanted, tables.get_many(CHUNK, wanted), strict=True)
    return [digest for digest, row in rows if row is not None and pack_of_row(row) == pack and refcount(row) == 0]


# --- moving --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """What moving content out of packs works with."""

    engine: Engine
    plan: Plan
    since: int
    run: GCRun
    done: Retired
    fits: Callable[[int], bool]


def _repack(job: Job, chosen: Sequence[PackFate], budget: Budget, progress: Progress) -> None:
    moves = _Moves(job)
    try:
        _repack_into(moves, chosen, budget, progress)
        moves.finish()
    except BaseException:
        moves.drop()
        raise


def _repack_into(moves: _Moves, chosen: Sequence[PackFate], budget: Budget, progress: Progress) -> None:
    job = moves.job
    engine, done = job.engine, job.done
    batch: list[Source] = []
    mover: Mover | None = None
    for position, fate in enumerate(chosen):
        progress("repack", position, len(chosen))
        if not moves.fits((0 if mover is None else mover.size) + fate.size - fate.dead_stored):
            done.unmoved.append(fate)
            continue
        if not budget.spend(fate.dead_stored):
            done.skipped.append((fate, "the limits of this run"))
            continue
        mover = mover or Mover(engine, fate.kind)
        try:
            source = open_source(engine, fate)
            mover.take(source)
        except (IntegrityError, FormatError, NotFoundError) as error:
            if is_ended(engine, fate.pack):
                done.skipped.append((fate, "another collection was faster"))
            else:
                done.errors.append(f"pack {fate.pack.hex()} is left as it is: {error}")
            # What was taken of this one is a harmless second copy; the packs before it are finished.
            if batch:
                moves.begin(mover, batch)
            mover, batch = None, []
            continue
        batch.append(source)
        if mover.size >= engine.config.pack_bytes:
            moves.begin(mover, batch)
            batch, mover = [], None
    if mover is not None and batch:
        moves.begin(mover, batch)


def is_ended(engine: Engine, pack: bytes) -> bool:
    """Whether the log says the end of a pack by now, so that it may be gone."""
    engine.view.refresh()
    with engine.view.read() as tables:
        row = pack_at(tables, pack)
    return row is not None and row.state is not PackState.LIVE


@dataclass(frozen=True, slots=True)
class _Move:
    """A new pack on its way to the disk, and the packs that end when it is there."""

    added: AddPack | None
    upload: Future[None] | None
    batch: list[Source]


class _Moves:
    """Moves content into new packs: while one is written, what goes into the next is read and checked."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._last: _Move | None = None

    def fits(self, size: int) -> bool:
        """Whether so many bytes can be written besides what is being written."""
        ahead = 0 if self._last is None or self._last.added is None else self._last.added.size
        if self.job.fits(ahead + size):
            return True
        self.finish()
        return bool(ahead) and self.job.fits(size)

    def begin(self, mover: Mover, batch: list[Source]) -> None:
        """Write a pack; the one before is committed."""
        engine = self.job.engine
        sealed = mover.seal()
        upload = None if sealed is None else engine.executor().submit(publish, engine, sealed)
        last, self._last = self._last, _Move(None if sealed is None else sealed.record, upload, batch)
        self._commit(last)

    def finish(self) -> None:
        """Commit what is under way."""
        last, self._last = self._last, None
        self._commit(last)

    def drop(self) -> None:
        """Take back what is under way."""
        last, self._last = self._last, None
        if last is not None and last.upload is not None and last.added is not None:
            last.upload.exception()  # waits for it
            take_back(self.job.engine, (last.added,))

    def _commit(self, move: _Move | None) -> None:
        """Commit a new pack and the end of the packs it empties; those for which there is no room stay as they are."""
        if move is None:
            return
        try:
            if move.upload is not None:
                move.upload.result()
            commit_moved(self.job, () if move.added is None else (move.added,), move.batch)
        except BackendError as error:
            if not is_full(error):
                raise
            self.job.done.unmoved += [source.fate for source in move.batch]


def commit_moved(job: Job, added: Sequence[AddPack], batch: Sequence[Source]) -> int:
    """Commit new packs and the end of the packs they empty, together; returns the stored bytes of those that ended.

    New packs that are not needed any more are deleted.
    """
    done = job.done
    copied = {digest for pack in added for digest in pack.content.digests}
    ended: list[PackFate] = []
    dropped = 0

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal dropped
        ended.clear()
        drops: list[bytes] = []
        retires: list[Record] = []
        if tables.count(LOST) and any(_erased(tables, digest) for digest in copied):
            return ()  # what was given up meanwhile is not to come back
        if any(tables.get(PACK, pack.pack) is not None for pack in added):
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
        return (job.run, *added, *((Drop(tuple(drops)),) if drops else ()), *retires)

    if job.engine.commit(build, packs_since=job.since) is None:
        take_back(job.engine, added)
    done.copied += sum(pack.size for pack in added)
    done.packs += len(ended)
    done.chunks += dropped
    for source in batch:
        if source.fate not in ended:
            done.skipped.append((source.fate, "it came into use again"))
    return sum(fate.size for fate in ended)


def take_back(engine: Engine, packs: Iterable[AddPack]) -> None:
    """Delete packs of one's own that no segment names, and none ever will."""
    for pack in packs:
        with suppress(CasstoreError):
            engine.backend.delete(pack_key(pack.pack))


def _erased(tables: Tables, digest: bytes) -> bool:
    row = tables.get(LOST, digest)
    return row is not None and decode_row(row, LostRow).erased


def _still_right(
    tables: Tables, plan: Plan, source: Source, copied: set[bytes]
) -> tuple[list[bytes], list[bytes]] | None:
    """What of a pack is to be dropped and what moved, on the state at hand; None if it must be left alone."""
    pack = source.fate.pack
    row = pack_at(tables, pack)
    if row is None or row.state is not PackState.LIVE:
        return None
    taken = [digest for digest in source.live if digest in copied]
    places = zip(taken, tables.get_many(CHUNK, taken), strict=True)
    here = [digest for digest, place in places if place is not None and pack_of_row(place) == pack]
    # What was quarantined since it was copied is healed by the copy, which was checked: the new pack has it already.
    moved = [digest for digest in here if tables.get(LOST, digest) is None] if tables.count(LOST) else here
    dead = [d for d in _dead_in(tables, pack, plan.garbage.by_pack.get(pack, ())) if d not in copied]
    return (dead, moved) if len(dead) + len(here) == row.placed else None


def predicted(plan: Plan) -> int:
    """Digests a plan would drop."""
    ending = {fate.pack for fate in plan.fates if fate.fate is not Fate.KEEP}
    nodes = set(plan.garbage.nodes)
    in_ending = sum(1 for pack in ending for digest in plan.garbage.by_pack.get(pack, ()) if digest not in nodes)
    return len(nodes) + in_ending
