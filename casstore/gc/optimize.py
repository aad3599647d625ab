"""Arrange content anew, so that what resembles each other is compressed together (docs/decisions/0017).

No chunk comes to depend on another pack, or on another frame: chunks that resemble one another are put into the same
frame, a *group*, and zstd finds there what they share. Counts, places, repair and the end of packs are what they were,
and a batch is committed as a repack is: new packs and the end of the old ones in one transaction.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import field, replace
from functools import partial

from casstore.backend.room import is_full
from casstore.codec import Codec
from casstore.engine import Engine
from casstore.errors import BackendError, FormatError, IntegrityError, NotFoundError
from casstore.format.layout import pack_key
from casstore.format.packs import FIRST_FRAME
from casstore.format.rows import decode_row
from casstore.gc.groups import group_bytes, group_codec, is_arranged
from casstore.gc.moving import Mover, Source, open_source, read_footer
from casstore.gc.newest import rank
from casstore.gc.plan import PackFate, Plan
from casstore.gc.retire import Budget, Job, Retired, commit_moved, is_ended, take_back
from casstore.gc.sketch import alike, selected
from casstore.model import AddPack, ChunkKind, GCRun, LostRow, Progress
from casstore.pack import Frame, check_chunk, decode_frame, encode_frame
from casstore.state import LOST
from casstore.values import dataclass
from casstore.view import pack_at

MOST_CHUNKS = 64 * 1024
"""of a batch, unless it is a single pack: about 1 KiB of memory each"""
MOST_RAW = 2 * 1024**3
"""plaintext bytes of a batch: what is lost if it is killed, and what a bounded run may take longer"""
RATE = 16_000_000
"""plaintext bytes a second that a run with little time left counts on"""
TIERS = 4
"""what was arranged before is arranged with what is new, unless it is this many times as much"""
SAVED = 0.03
"""part of its stored bytes that a batch must save"""
WORTH = 0.2
"""part of the stored bytes of a pack that must promise something, so that it is touched"""
DULL = 0.9
"""what is left of bytes when they are compressed alone, from which on there is no hope but in others like them"""
SHELF = 24 * 1024 * 1024
"""plaintext bytes of frames that are kept at hand while groups are gathered from them"""
FRAMES = 16
"""frames that are examined in one task"""


@dataclass(slots=True)
class Optimized:
    """What was done.

    ``examined``: stored bytes of the packs that were looked at; ``saved``: of those that ended, less those that replace
    them.
    """

    examined: int = 0
    saved: int = 0
    moved: Retired = field(default_factory=Retired)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pack that may be arranged anew. ``seq``: the position of the segment that added it."""

    fate: PackFate
    seq: int
    chunks: int
    arranged: bool


@dataclass(frozen=True, slots=True)
class _FrameAt:
    """A frame of a source."""

    source: int
    offset: int
    stored: int
    raw: int


@dataclass(slots=True)
class _Pile:
    """The live chunks of some packs, numbered, and what they resemble."""

    sources: list[Source] = field(default_factory=list)
    frames: list[_FrameAt] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sketches: list[bytes] = field(default_factory=list)
    frame: array[int] = field(default_factory=lambda: array("I"))
    offset: array[int] = field(default_factory=lambda: array("I"))
    length: array[int] = field(default_factory=lambda: array("I"))


def candidates(engine: Engine, plan: Plan, errors: list[str]) -> list[Candidate]:
    """The live packs of a plan in which nothing is damaged, the newest first. Reads the footer of each."""
    with engine.view.read() as tables:
        damaged = {decode_row(row, LostRow).pack for _, row in tables.scan(LOST)}
        fates = [fate for fate in plan.fates if fate.live and fate.pack not in damaged]
        rows = [(fate, row) for fate in fates if (row := pack_at(tables, fate.pack)) is not None]
    found: list[Candidate] = []
    for fate, row in rows:
        try:
            footer = read_footer(engine, fate.pack, fate.size)
        except (IntegrityError, FormatError, NotFoundError) as error:
            if not is_ended(engine, fate.pack):
                errors.append(f"pack {fate.pack.hex()} is left as it is: {error}")
            continue
        found.append(Candidate(fate, row.seq, len(footer.content.digests), is_arranged(engine.config, footer)))
    return sorted(found, key=lambda candidate: (-candidate.seq, candidate.fate.pack))


def to_examine(engine: Engine, plan: Plan) -> int:
    """Stored bytes that a run would look at, at least: of the packs that are not arranged yet."""
    if not group_bytes(engine.config):
        return 0
    return sum(candidate.fate.size for candidate in candidates(engine, plan, []) if not candidate.arranged)


def optimize(
    engine: Engine, plan: Plan, budget: Budget, run: GCRun, fits: Callable[[int], bool], progress: Progress
) -> Optimized:
    """Arrange what is not arranged yet, batch by batch; each is one commit.

    Killed anywhere it leaves at worst packs nobody knows. A batch that is begun is finished, whatever the budget; one
    that does not pay is not committed.

    ``fits`` says whether so many bytes may be written. Memory: 1 KiB a chunk of a batch, and two packs.
    """
    result = Optimized()
    if group_bytes(engine.config):
        job = Job(engine, plan, plan.at, run, result.moved, fits)
        found = candidates(engine, plan, result.moved.errors)
        for kind in ChunkKind:
            _Run(job, budget, result, progress, kind).go([one for one in found if one.fate.kind is kind])
    return result


class _Run:
    """All batches of one run, for packs of one kind."""

    def __init__(self, job: Job, budget: Budget, result: Optimized, progress: Progress, kind: ChunkKind) -> None:
        self.job, self.budget, self.result, self.progress, self.kind = job, budget, result, progress, kind

    def go(self, found: Sequence[Candidate]) -> None:
        """Arrange what is not arranged yet."""
        fresh = deque(candidate for candidate in found if not candidate.arranged)
        by_run: dict[int, list[Candidate]] = defaultdict(list)
        for candidate in found:
            if candidate.arranged:
                by_run[candidate.seq].append(candidate)
        runs = deque(by_run[seq] for seq in sorted(by_run, reverse=True))
        while batch := self._next(fresh):
            pile = _Pile()
            self._examine(pile, batch)
            if not pile.digests:
                continue
            order = _newest_first(self.job.engine, pile)
            clusters, taken = _promising(pile, order)
            raw = sum(pile.sources[number].fate.live for number in taken)
            if not raw:
                continue
            older = self._older(runs, raw, len(pile.digests), sum(candidate.fate.live for candidate in batch))
            if older:
                self._examine(pile, older)
                order = _newest_first(self.job.engine, pile)
                clusters, taken = _promising(pile, order)
            self._arrange(pile, _groups(pile, order, clusters, group_bytes(self.job.engine.config)), sorted(taken))

    def _next(self, fresh: deque[Candidate]) -> list[Candidate]:
        """The packs of the next batch, as many as the budget allows."""
        room = MOST_RAW
        if self.budget.deadline is not None:
            room = min(room, int((self.budget.deadline - self.budget.now()) * RATE))
        batch: list[Candidate] = []
        chunks = 0
        while fresh:
            candidate = fresh[0]
            chunks += candidate.chunks
            room -= candidate.fate.live
            if batch and (room < 0 or chunks > MOST_CHUNKS):
                break
            fresh.popleft()
            if self.budget.spend(candidate.fate.size):
                batch.append(candidate)
            else:
                self.job.done.skipped.append((candidate.fate, "the limits of this run"))
        return batch

    def _older(self, runs: deque[list[Candidate]], raw: int, chunks: int, whole: int) -> list[Candidate]:
        """Packs that were arranged before, by runs, the last first, as far as they are not much more than what is new.

        So a byte is arranged again only with at least a quarter as much that is new to it: each time the run it is in
        grows by a quarter, as in a log-structured merge tree.
        """
        chosen: list[Candidate] = []
        while runs:
            live = sum(candidate.fate.live for candidate in runs[0])
            chunks += sum(candidate.chunks for candidate in runs[0])
            whole += live
            if live > raw * TIERS or chunks > MOST_CHUNKS or whole > MOST_RAW:
                break
            if not self.budget.spend(sum(candidate.fate.size for candidate in runs[0])):
                break
            chosen += runs.popleft()
            raw += live
        return chosen

    # --- looking

    def _examine(self, pile: _Pile, batch: Sequence[Candidate]) -> None:
        for position, candidate in enumerate(batch):
            self.progress("examine", position, len(batch))
            self.result.examined += candidate.fate.size
            engine = self.job.engine
            try:
                source = open_source(engine, candidate.fate)
                self._look_at(pile, source)
            except (IntegrityError, FormatError, NotFoundError) as error:
                if is_ended(engine, candidate.fate.pack):
                    self.job.done.skipped.append((candidate.fate, "another collection was faster"))
                else:
                    self.job.done.errors.append(f"pack {candidate.fate.pack.hex()} is left as it is: {error}")

    def _look_at(self, pile: _Pile, source: Source) -> None:
        """Put a pack on the pile: all of it or nothing."""
        engine = self.job.engine
        content = source.footer.content
        live = set(source.live)
        one = _Pile()
        at, index = FIRST_FRAME, 0
        for frame in content.frames:
            begun = len(one.digests)
            offset = 0
            for i in range(index, index + frame.chunks):
                if content.digests[i] in live:
                    live.remove(content.digests[i])
                    one.digests.append(content.digests[i])
                    one.frame.append(len(pile.frames) + len(one.frames))
                    one.offset.append(offset)
                    one.length.append(content.lengths[i])
                offset += content.lengths[i]
            if len(one.digests) > begun:
                one.frames.append(_FrameAt(len(pile.sources), at, frame.stored, frame.raw))
            at += frame.stored
            index += frame.chunks
        if live:
            raise IntegrityError(
                f"the footer of pack {source.fate.pack.hex()} lacks chunks that are in it", hint="casstore fsck"
            )
        tasks = _cut(one, len(pile.frames), FRAMES)
        for sketches in _ahead(engine, [partial(_sketch, engine, source.fate.pack, one, *task) for task in tasks]):
            one.sketches += sketches
        pile.sources.append(source)
        for name in ("frames", "digests", "sketches", "frame", "offset", "length"):
            getattr(pile, name).extend(getattr(one, name))

    # --- writing

    def _arrange(self, pile: _Pile, groups: Sequence[Sequence[int]], taken: Sequence[int]) -> None:
        """Write the packs that were taken anew, and commit that if it pays."""
        job, engine = self.job, self.job.engine
        sources = [pile.sources[number] for number in taken]
        before = sum(source.fate.size - source.fate.dead_stored for source in sources)
        if not job.fits(before):
            job.done.unmoved += [source.fate for source in sources]
            return
        written: list[AddPack] = []
        try:
            self._write(pile, groups, sources, written)
        except (IntegrityError, NotFoundError) as error:
            # It was right when it was examined: damage since then, or another collection was faster.
            take_back(engine, written)
            if not any(is_ended(engine, source.fate.pack) for source in sources):
                job.done.errors.append(f"{len(sources)} packs are left as they are: {error}")
            return
        except BaseException as error:
            take_back(engine, written)
            if isinstance(error, BackendError) and is_full(error):
                job.done.unmoved += [source.fate for source in sources]
                return
            raise
        after = sum(pack.size for pack in written)
        if after > before * (1 - SAVED):
            take_back(engine, written)
            return
        ended = commit_moved(job, written, sources)
        if ended:
            self.result.saved += ended - after

    def _write(
        self, pile: _Pile, groups: Sequence[Sequence[int]], sources: Sequence[Source], written: list[AddPack]
    ) -> None:
        engine = self.job.engine
        codec, shelf = group_codec(), _Shelf(engine, pile)
        grouped: set[bytes] = set()
        children = {
            digest: count
            for source in sources
            for digest, count in zip(source.footer.content.digests, source.footer.children, strict=False)
        }
        notes = [note for source in sources for note in source.footer.versions]
        mover = Mover(engine, self.kind)
        mover.children.update(children)

        def publish() -> Mover:
            added = mover.publish()
            if added is not None:
                written.append(added)
            new = Mover(engine, self.kind)
            new.children.update(children)
            return new

        try:
            for position, group in enumerate(groups):
                self.progress("optimize", position, len(groups))
                grouped.update(pile.digests[number] for number in group)
                future: Future[Frame] = engine.executor().submit(_encode, shelf, codec, group)
                mover.follow(future, sum(pile.length[number] for number in group))
                if mover.writer.size >= engine.config.pack_bytes:
                    mover = publish()
            mover.notes += [note for note in notes if engine.view.known((note.root,))[0]]
            mover = publish()
            for source in sources:
                # What promised nothing goes as it is, into packs of its own, which so are not taken for arranged.
                rest = [digest for digest in source.live if digest not in grouped]
                mover.take(Source(source.fate, replace(source.footer, versions=()), rest))
                if mover.writer.size >= engine.config.pack_bytes:
                    mover = publish()
            publish()
        finally:
            mover.drop()


def _cut(one: _Pile, first: int, frames: int) -> list[tuple[int, int, int]]:
    """Numbers of chunks, from and to, of so many frames at a time; and the number of the first frame of the pack."""
    cuts = [0]
    for number, frame in enumerate(one.frame):
        if frame - one.frame[cuts[-1]] >= frames:
            cuts.append(number)
    return [(begin, end, first) for begin, end in zip(cuts, [*cuts[1:], len(one.frame)], strict=True) if begin < end]


def _ahead(engine: Engine, tasks: Sequence[Callable[[], list[bytes]]]) -> Iterator[list[bytes]]:
    """The results of some tasks, in order; a few are under way at a time."""
    waiting: deque[Future[list[bytes]]] = deque()
    try:
        for task in tasks:
            waiting.append(engine.executor().submit(task))
            if len(waiting) > 2 * engine.settings.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _sketch(engine: Engine, pack: bytes, one: _Pile, begin: int, end: int, first: int) -> list[bytes]:
    """The features of some chunks of a pack, each checked. Thread-safe."""
    features = selected()
    found: list[bytes] = []
    plain, of = memoryview(b""), -1
    for number in range(begin, end):
        if one.frame[number] != of:
            of = one.frame[number]
            plain = memoryview(_plain(engine, pack, one.frames[of - first]))
        data = plain[one.offset[number] : one.offset[number] + one.length[number]]
        check_chunk(engine.hash, one.digests[number], data, f"pack {pack.hex()}")
        found.append(features(data))
    return found


def _plain(engine: Engine, pack: bytes, frame: _FrameAt) -> bytes:
    stored = engine.backend.read(pack_key(pack), offset=frame.offset, length=frame.stored)
    return decode_frame(engine.codec, stored, frame.raw, f"the frame at {frame.offset} of pack {pack.hex()}")


def _newest_first(engine: Engine, pile: _Pile) -> array[int]:
    """The numbers of all chunks of a pile: what the newest versions need, then as the packs come: the newest first."""
    numbers = {digest: number for number, digest in enumerate(pile.digests)}
    with engine.view.read() as tables:
        order = rank(tables, numbers)
    ranked = bytearray(len(numbers))
    for number in order:
        ranked[number] = True
    order.extend(number for number in range(len(numbers)) if not ranked[number])
    return order


def _promising(pile: _Pile, order: array[int]) -> tuple[list[list[int]], set[int]]:
    """Chunks that resemble one another, and single ones that compress, in order; and the packs that are worth it.

    Only chunks of these packs are in the result.
    """
    groups = alike([pile.sketches[number] for number in order])
    clusters: list[list[int]] = []
    for number, group in zip(order, groups, strict=True):
        if group == len(clusters):
            clusters.append([])
        clusters[group].append(number)
    hopes = [0.0] * len(pile.sources)
    kept: list[list[int]] = []
    for cluster in clusters:
        frame = pile.frames[pile.frame[cluster[0]]]
        if len(cluster) > 1 or frame.stored < frame.raw * DULL:
            kept.append(cluster)
            for number in cluster:
                frame = pile.frames[pile.frame[number]]
                hopes[frame.source] += frame.stored * pile.length[number] / max(frame.raw, 1)
    taken = {number for number, source in enumerate(pile.sources) if hopes[number] > source.fate.size * WORTH}
    mine = [[number for number in cluster if pile.frames[pile.frame[number]].source in taken] for cluster in kept]
    return [cluster for cluster in mine if cluster], taken


def _groups(pile: _Pile, order: Sequence[int], clusters: Iterable[Sequence[int]], aim: int) -> list[list[int]]:
    """The chunks of each group. Within one, the newest content comes first, so that reading it can end early."""
    age = array("I", bytes(4 * len(order)))
    for place, number in enumerate(order):
        age[number] = place
    groups: list[list[int]] = [[]]
    size = 0
    for cluster in clusters:
        whole = sum(pile.length[number] for number in cluster)
        # Rather two groups of less than the aim than a cluster in both.
        apart = size >= aim // 2 and whole <= aim and size + whole > aim + aim // 4
        for number in cluster:
            if apart or (size and size + pile.length[number] > aim + aim // 4):
                groups.append([])
                size, apart = 0, False
            groups[-1].append(number)
            size += pile.length[number]
    return [sorted(group, key=age.__getitem__) for group in groups if group]


class _Shelf:
    """Frames of the packs of a pile, a few of them decoded. Thread-safe."""

    def __init__(self, engine: Engine, pile: _Pile) -> None:
        self.engine, self.pile = engine, pile
        self._lock = threading.Lock()
        self._frames: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def chunk(self, number: int) -> tuple[bytes, bytes]:
        """A chunk with its digest, checked. Raises `IntegrityError`, `NotFoundError`."""
        pile = self.pile
        offset, digest = pile.offset[number], pile.digests[number]
        data = self._frame(pile.frame[number])[offset : offset + pile.length[number]]
        check_chunk(self.engine.hash, digest, data, "what is arranged anew")
        return digest, data

    def _frame(self, number: int) -> bytes:
        with self._lock:
            plain = self._frames.get(number)
            if plain is not None:
                self._frames.move_to_end(number)
                return plain
        frame = self.pile.frames[number]
        plain = _plain(self.engine, self.pile.sources[frame.source].fate.pack, frame)
        with self._lock:
            if number not in self._frames:
                self._frames[number] = plain
                self._size += len(plain)
            while self._size > SHELF:
                self._size -= len(self._frames.popitem(last=False)[1])
        return plain


def _encode(shelf: _Shelf, codec: Codec, group: Sequence[int]) -> Frame:
    frame = encode_frame(codec, [shelf.chunk(number) for number in group])
    # What zstandard returns is the beginning of a buffer as large as the plaintext, whose rest nothing else fits into.
    return replace(frame, parts=(b"".join(frame.parts),))
