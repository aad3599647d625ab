"""Get chunks by digest. Knows packs and the backend; not what chunks mean."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import field
from typing import NamedTuple, cast

from casstore.backend import Backend, ReadsInto
from casstore.codec import Codec
from casstore.digest import Buffer
from casstore.errors import CasstoreError, ChunkMissingError, DigestMismatchError, IntegrityError, NotFoundError
from casstore.format.layout import pack_key
from casstore.format.packs import FRAME_HEADER
from casstore.model import Location
from casstore.pack import decode_frame, decode_frame_into, decode_frame_start, slice_chunk
from casstore.values import dataclass

Locate = Callable[[Sequence[bytes]], list[Location | None]]

HEADER = FRAME_HEADER.size

READ_SPAN = 8 * 1024 * 1024
"""frames of one pack closer than `READ_GAP` are read together, up to this many bytes"""
READ_GAP = 64 * 1024
INTO_SPAN = 2 * 1024 * 1024
"""so many where they are decoded to their place, while they are in the processor's cache"""
CACHE_BYTES = 16 * 1024 * 1024
LOOKS = 4
"""times a chunk is looked up again because its pack moved while it was being read"""


@dataclass(slots=True)
class Fetched:
    """Chunks that could be read, and why the others could not."""

    found: dict[bytes, bytes] = field(default_factory=dict)
    failed: dict[bytes, IntegrityError] = field(default_factory=dict)

    def get(self, digest: bytes) -> bytes:
        """A chunk. Raises the `IntegrityError` that kept it from being read."""
        try:
            return self.found[digest]
        except KeyError:
            raise self.failed[digest] from None


@dataclass(slots=True)
class Views:
    """As `Fetched`, without a copy of each chunk: a view keeps what was read with it in memory.

    That is at most twice the bytes of the chunks: out of what holds more of others, they are copied.
    """

    found: dict[bytes, Buffer] = field(default_factory=dict)
    failed: dict[bytes, IntegrityError] = field(default_factory=dict)

    def get(self, digest: bytes) -> Buffer:
        """A chunk. Raises the `IntegrityError` that kept it from being read."""
        try:
            return self.found[digest]
        except KeyError:
            raise self.failed[digest] from None


class Spare:
    """Memory that is used again and again: what was written to before costs no page faults. Thread-safe.

    It begins at a page, and its content is undefined.
    """

    def __init__(self, usual: int) -> None:
        """``usual``: bytes that are asked for; what is not touched of them costs nothing."""
        self._usual = usual
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> mmap.mmap:
        """At least so many bytes."""
        try:
            memory = self._free.pop()
        except IndexError:
            pass
        else:
            if len(memory) >= size:
                return memory
        return mmap.mmap(-1, max(size, self._usual), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def give(self, memory: mmap.mmap) -> None:
        """Hand memory back, of which nobody has a view that is still looked at."""
        self._free.append(memory)


class _FrameId(NamedTuple):
    pack: bytes
    offset: int
    stored: int
    raw: int

    def __str__(self) -> str:
        return f"the frame at {self.offset} of pack {self.pack.hex()}"


_Chunk = tuple[bytes, Location]
_Outcome = tuple[bytes, Buffer | IntegrityError | NotFoundError]


class _Part(NamedTuple):
    """Chunks of one frame, and the bytes of its pack, ``start`` to ``end``, that are read for them."""

    frame: _FrameId
    chunks: list[_Chunk]
    start: int
    end: int
    low: int
    """where these bytes stand in the plaintext, if the frame is as long as one stored as it is; -1: to be decoded"""
    upto: int
    """where the last of the chunks ends in the plaintext"""
    known: bytes
    """what the frame begins with, if it is known"""


class ChunkReader:
    """Reads chunks: sorted by place, neighbours together, decoded in parallel, each digest checked. Thread-safe.

    No more is read and decoded than is needed: the chunks alone of a frame that is stored as it is, what comes before
    the end of the last of them in one that is compressed. What comes out is believed by its digest. If that does not
    agree, the whole frame is read and checked, to tell what is wrong.
    """

    def __init__(
        self,
        backend: Backend,
        codec: Codec,
        hash_bytes: Callable[[Buffer], bytes],
        locate: Locate,
        refresh: Callable[[], object],
        executor: Callable[[], Executor],
        explain: Callable[[bytes], str] = lambda _: "in no pack",
    ) -> None:
        """``explain`` says of a digest that cannot be found what became of it."""
        self._backend = backend
        self._codec = codec
        self._hash = hash_bytes
        self._locate = locate
        self._refresh = refresh
        self._executor = executor
        self._explain = explain
        self._cache: OrderedDict[_FrameId, bytes] = OrderedDict()
        """plaintexts of frames, or what they begin with"""
        self._cached = 0
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Take a fresh lock: in the child of a fork the old one may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def fetch(self, digests: Iterable[bytes]) -> Fetched:
        """Many chunks at once. Damaged or missing ones are reported in the result, not raised."""
        result = Views()
        self._fetch(digests, result, _Reading(copies=True, spread=True))
        return Fetched(cast(dict[bytes, bytes], result.found), result.failed)

    def fetch_views(self, digests: Iterable[bytes], *, spread: bool = True) -> Views:
        """As `fetch`, for whoever lets go of the bytes soon.

        ``spread``: over the worker threads. A worker itself must not wait for others, and reads alone.
        """
        result = Views()
        self._fetch(digests, result, _Reading(copies=False, spread=spread))
        return result

    def fetch_into(self, chunks: Sequence[tuple[bytes, int]], target: memoryview, spare: Spare | None = None) -> None:
        """Chunks of known lengths, one behind the other, into memory as long as all of them. Reads alone.

        Raises the `IntegrityError` of the first that cannot be read or has another length; what is there means nothing
        then. ``spare``: memory to read with.
        """
        wanted: dict[bytes, tuple[int, int]] = {}
        at = 0
        for digest, length in chunks:
            wanted.setdefault(digest, (at, length))
            at += length
        result = Views()
        into = _Into(target, wanted, spare or Spare(INTO_SPAN))
        self._fetch(wanted, result, _Reading(copies=False, spread=False, into=into))
        at = 0
        for digest, length in chunks:
            data = result.get(digest)
            if len(data) != length:  # what follows would stand in the wrong place
                raise IntegrityError(f"chunk {digest.hex()} has {len(data)} bytes, not {length}", digest=digest.hex())
            if digest not in into.placed or wanted[digest][0] != at:
                target[at : at + length] = data
            at += length

    def _fetch(self, digests: Iterable[bytes], result: Views, how: _Reading) -> None:
        wanted = list(dict.fromkeys(digests))
        for look in range(LOOKS):
            places = self._locate(wanted)
            unknown = [d for d, place in zip(wanted, places, strict=True) if place is None]
            moved = self._read([(d, p) for d, p in zip(wanted, places, strict=True) if p is not None], result, how)
            healed: list[bytes] = []
            if look == 0 and result.failed:
                healed = self._healed(dict(zip(wanted, places, strict=True)), result)
            wanted = unknown + moved + healed
            if not wanted:
                return
            if look < LOOKS - 1:
                # The pack may have been repacked or the chunk stored meanwhile: look again at the head.
                self._refresh()
        for digest in wanted:
            result.failed[digest] = ChunkMissingError(
                f"chunk {digest.hex()} is {self._explain(digest)}",
                hint="casstore fsck --read-data --repair",
                digest=digest.hex(),
            )

    def fetch_at(self, places: Mapping[bytes, Location]) -> Fetched:
        """Chunks at places the view does not know (any more), verified like all others."""
        result = Views()
        for digest in self._read(list(places.items()), result, _Reading(copies=True, spread=True)):
            result.failed[digest] = ChunkMissingError(
                f"pack {places[digest].pack.hex()}, which held chunk {digest.hex()}, is gone",
                hint="casstore why",
                digest=digest.hex(),
            )
        return Fetched(cast(dict[bytes, bytes], result.found), result.failed)

    def _healed(self, known: dict[bytes, Location | None], result: Views) -> list[bytes]:
        """Damaged chunks that have another place at the head: somebody stored them again meanwhile."""
        try:
            self._refresh()
        except CasstoreError:
            return []  # the damage is what is to be told
        failed = list(result.failed)
        places = self._locate(failed)
        again = [digest for digest, place in zip(failed, places, strict=True) if place not in {None, known[digest]}]
        for digest in again:
            del result.failed[digest]
        return again

    def get(self, digest: bytes) -> bytes:
        """One chunk. Raises `IntegrityError`."""
        return self.fetch((digest,)).get(digest)

    def _read(self, places: Iterable[_Chunk], result: Views, how: _Reading) -> list[bytes]:
        """Read what can be read into ``result``; returns the digests whose pack was gone."""
        frames: dict[_FrameId, list[_Chunk]] = {}
        last: Location | None = None
        for chunk in places:
            place = chunk[1]
            # Neighbours in a file are mostly neighbours in a frame.
            if last is None or not _same_frame(place, last):
                last = place
                key = _FrameId(place.pack, place.frame_offset, place.frame_stored, place.frame_raw)
                mates = frames.setdefault(key, [])
            mates.append(chunk)
        most = READ_SPAN if how.into is None else INTO_SPAN
        spans = _spans([self._part(frame, frames[frame]) for frame in sorted(frames)], most)
        outcomes: Iterable[list[_Outcome]]
        into = how.into
        if into is not None:
            outcomes = (self._read_span_into(span, into) for span in spans)
        elif len(spans) > 1 and how.spread:
            outcomes = self._executor().map(lambda span: self._read_span(span, how), spans)
        else:
            outcomes = (self._read_span(span, how) for span in spans)
        gone: list[bytes] = []
        for outcome in outcomes:
            for digest, data in outcome:
                if isinstance(data, NotFoundError):
                    gone.append(digest)
                elif isinstance(data, IntegrityError):
                    result.failed[digest] = data
                else:
                    result.found[digest] = data
        return gone

    def _part(self, frame: _FrameId, chunks: list[_Chunk]) -> _Part:
        """What is to be read for some chunks of a frame."""
        upto = max([place.offset + place.length for _, place in chunks])
        start, end = frame.offset, frame.offset + frame.stored
        if frame.stored == frame.raw + HEADER:
            low = min([place.offset for _, place in chunks])
            start += HEADER
            return _Part(frame, chunks, start + low, start + upto, low, upto, b"")
        with self._lock:
            known = self._cache.get(frame, b"")
            if known:
                self._cache.move_to_end(frame)
        if len(known) >= upto:
            return _Part(frame, chunks, start, start, -1, upto, known)
        return _Part(frame, chunks, start, end, -1, upto, known)

    def _read_span(self, span: list[_Part], how: _Reading) -> list[_Outcome]:
        outcome: list[_Outcome] = []
        start, end = span[0].start, span[-1].end
        data = memoryview(b"")
        if end > start:
            try:
                data = memoryview(self._backend.read(pack_key(span[0].frame.pack), offset=start, length=end - start))
            except NotFoundError as error:
                return [(digest, error) for part in span for digest, _ in part.chunks]
        plainly = sum([place.length for part in span if part.low >= 0 for _, place in part.chunks])
        for part in span:
            stored = data[part.start - start : part.end - start]
            plain: bytes | memoryview
            if part.low >= 0:
                plain, low = stored, part.low
                copies = how.copies or len(data) > 2 * plainly
            else:
                try:
                    plain, low = self._decoded(part, stored), 0
                except IntegrityError:
                    outcome.extend(self._anew(part.frame, part.chunks))
                    continue
                copies = how.copies or len(plain) > 2 * sum([place.length for _, place in part.chunks])
                if not copies:
                    plain = memoryview(plain)
            wrong: list[_Chunk] = []
            for chunk in part.chunks:
                digest, place = chunk
                piece = plain[place.offset - low : place.offset - low + place.length]
                if self._hash(piece) != digest:
                    wrong.append(chunk)
                else:
                    outcome.append((digest, bytes(piece) if copies else piece))
            if wrong:
                outcome.extend(self._anew(part.frame, wrong))
        return outcome

    def _read_span_into(self, span: list[_Part], into: _Into) -> list[_Outcome]:
        """As `_read_span`; what is right stands where it is wanted, and nothing handed over is of what was read."""
        start, end = span[0].start, span[-1].end
        memory = into.spare.take(max(1, end - start))
        data = memoryview(memory)[: end - start]
        if end > start:
            key = pack_key(span[0].frame.pack)
            try:
                if isinstance(self._backend, ReadsInto):
                    data = data[: self._backend.read_into(key, data, offset=start)]
                else:
                    data = memoryview(self._backend.read(key, offset=start, length=end - start))
            except NotFoundError as error:
                return [(digest, error) for part in span for digest, _ in part.chunks]
        outcome: list[_Outcome] = []
        for part in span:
            stored = data[part.start - start : part.end - start]
            plain: bytes | memoryview = stored
            low = part.low
            whole = into.whole(part)
            try:
                if whole is not None:
                    decode_frame_into(self._codec, stored, whole, str(part.frame))
                elif low < 0:
                    plain, low = self._decoded(part, stored), 0
            except IntegrityError:
                outcome.extend(self._anew(part.frame, part.chunks))
                continue
            wrong: list[_Chunk] = []
            for chunk in part.chunks:
                digest, place = chunk
                at, length = into.wanted[digest]
                piece = into.target[at : at + length]
                if whole is None:
                    source = plain[place.offset - low : place.offset - low + place.length]
                    if len(source) != length:
                        wrong.append(chunk)
                        continue
                    piece[:] = source
                # What was read is checked where it is to be used.
                if self._hash(piece) != digest:
                    wrong.append(chunk)
                else:
                    into.placed.add(digest)
                    outcome.append((digest, piece))
            if wrong:
                outcome.extend(self._anew(part.frame, wrong))
        into.spare.give(memory)
        return outcome

    def _decoded(self, part: _Part, stored: memoryview) -> bytes:
        """The plaintext of a frame, as far as it is wanted. Raises `IntegrityError`."""
        frame, known, upto = part.frame, part.known, part.upto
        if len(known) >= upto:
            return known
        # Who comes a second time will come again, and had better find all of it.
        if known or upto > frame.raw - frame.raw // 4:
            plain = decode_frame(self._codec, stored, frame.raw, str(frame))
        else:
            plain = decode_frame_start(self._codec, stored, frame.raw, upto, str(frame))
        self._remember(frame, plain)
        return plain

    def _anew(self, frame: _FrameId, chunks: list[_Chunk]) -> list[_Outcome]:
        """Chunks that are not what they should be: the whole frame, with all that can be checked."""
        try:
            stored = self._backend.read(pack_key(frame.pack), offset=frame.offset, length=frame.stored)
            plain = decode_frame(self._codec, stored, frame.raw, str(frame))
        except (NotFoundError, IntegrityError) as error:
            return [(digest, error) for digest, _ in chunks]
        outcome: list[_Outcome] = []
        for digest, place in chunks:
            data = slice_chunk(plain, place)
            if self._hash(data) == digest:
                outcome.append((digest, data))
                continue
            wrong = DigestMismatchError(
                f"chunk {digest.hex()} in pack {place.pack.hex()} has other bytes than its name says",
                hint="casstore fsck --read-data --repair",
                digest=digest.hex(),
            )
            outcome.append((digest, wrong))
        return outcome

    def _remember(self, frame: _FrameId, plain: bytes) -> None:
        with self._lock:
            old = self._cache.get(frame, b"")
            if len(old) < len(plain):
                self._cache[frame] = plain
                self._cached += len(plain) - len(old)
            while self._cached > CACHE_BYTES:
                _, old = self._cache.popitem(last=False)
                self._cached -= len(old)


@dataclass(frozen=True, slots=True)
class _Into:
    """Memory that chunks are wanted in, each at a place of its own."""

    target: memoryview
    wanted: dict[bytes, tuple[int, int]]
    """where each is to be, and its length"""
    spare: Spare
    placed: set[bytes] = field(default_factory=set)
    """those that are there, verified"""

    def whole(self, part: _Part) -> memoryview | None:
        """The memory for a frame, if what it holds is just a run of chunks that are wanted there."""
        if part.low >= 0 or part.start == part.end:
            return None
        wanted = self.wanted
        place = part.chunks[0][1]
        start = wanted[part.chunks[0][0]][0] - place.offset
        end = 0
        for digest, place in part.chunks:
            # Chunk by chunk: whatever the index says, nothing may be written where something else belongs.
            if place.offset != end or wanted[digest] != (start + end, place.length):
                return None
            end += place.length
        return self.target[start : start + end] if end == part.frame.raw else None


class _Reading(NamedTuple):
    """How chunks are read."""

    copies: bool
    """as bytes of their own"""
    spread: bool
    """by all worker threads"""
    into: _Into | None = None
    """where they are wanted"""


def _same_frame(one: Location, other: Location) -> bool:
    return (
        one.frame_offset == other.frame_offset
        and one.pack == other.pack
        and one.frame_stored == other.frame_stored
        and one.frame_raw == other.frame_raw
    )


def _spans(parts: list[_Part], most: int) -> list[list[_Part]]:
    """Parts, in order of their places, in groups that are read at once: up to ``most`` bytes, or one."""
    spans: list[list[_Part]] = []
    for part in parts:
        if spans:
            first, last = spans[-1][0], spans[-1][-1]
            near = part.frame.pack == last.frame.pack and part.start - last.end <= READ_GAP
            if near and part.end - first.start <= most:
                spans[-1].append(part)
                continue
        spans.append([part])
    return spans
