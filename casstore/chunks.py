"""Get chunks by digest, and put new ones into packs. Knows packs and the backend; not what chunks mean."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from casstore.backend import Backend
from casstore.codec import Codec
from casstore.digest import Buffer
from casstore.errors import CasstoreError, ChunkMissingError, DigestMismatchError, IntegrityError, NotFoundError
from casstore.format.layout import pack_key
from casstore.format.packs import VersionNote
from casstore.model import AddPack, ChunkKind, Location
from casstore.pack import Frame, PackWriter, SealedPack, decode_frame, encode_frame, slice_chunk

Locate = Callable[[Sequence[bytes]], list[Location | None]]

READ_SPAN = 8 * 1024 * 1024
"""frames of one pack closer than `READ_GAP` are read together, up to this many bytes"""
READ_GAP = 64 * 1024
CACHE_BYTES = 16 * 1024 * 1024
UPLOAD_SHARE = 4
"""a pack is gathered up to this part of its size while the one before it is being uploaded"""
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


@dataclass(frozen=True, slots=True)
class _FrameId:
    pack: bytes
    offset: int
    stored: int
    raw: int


class ChunkReader:
    """Reads chunks: sorted by place, neighbours together, decoded in parallel, each digest checked. Thread-safe."""

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
        self._cached = 0
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Take a fresh lock: in the child of a fork the old one may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def fetch(self, digests: Iterable[bytes]) -> Fetched:
        """Many chunks at once. Damaged or missing ones are reported in the result, not raised."""
        result = Fetched()
        wanted = list(dict.fromkeys(digests))
        for look in range(LOOKS):
            places = self._locate(wanted)
            unknown = [d for d, place in zip(wanted, places, strict=True) if place is None]
            moved = self._read([(d, p) for d, p in zip(wanted, places, strict=True) if p is not None], result)
            known = dict(zip(wanted, places, strict=True))
            wanted = unknown + moved
            if look == 0 and result.failed:
                wanted += self._healed(known, result)
            if not wanted:
                return result
            if look < LOOKS - 1:
                # The pack may have been repacked or the chunk stored meanwhile: look again at the head.
                self._refresh()
        for digest in wanted:
            result.failed[digest] = ChunkMissingError(
                f"chunk {digest.hex()} is {self._explain(digest)}",
                hint="casstore fsck --read-data --repair",
                digest=digest.hex(),
            )
        return result

    def fetch_at(self, places: Mapping[bytes, Location]) -> Fetched:
        """Chunks at places the view does not know (any more), verified like all others."""
        result = Fetched()
        for digest in self._read(list(places.items()), result):
            result.failed[digest] = ChunkMissingError(
                f"pack {places[digest].pack.hex()}, which held chunk {digest.hex()}, is gone",
                hint="casstore why",
                digest=digest.hex(),
            )
        return result

    def _healed(self, known: dict[bytes, Location | None], result: Fetched) -> list[bytes]:
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

    def _read(self, places: list[tuple[bytes, Location]], result: Fetched) -> list[bytes]:
        """Read what can be read into ``result``; returns the digests whose pack was gone."""
        frames: dict[_FrameId, list[tuple[bytes, Location]]] = {}
        for digest, place in places:
            key = _FrameId(place.pack, place.frame_offset, place.frame_stored, place.frame_raw)
            frames.setdefault(key, []).append((digest, place))
        spans = _spans(sorted(frames, key=lambda f: (f.pack, f.offset)))
        gone: list[bytes] = []
        if len(spans) == 1:
            outcomes: Iterable[list[tuple[_FrameId, bytes | Exception]]] = [self._read_span(spans[0])]
        else:
            outcomes = self._executor().map(self._read_span, spans)
        for outcome in outcomes:
            for frame, plain in outcome:
                for digest, place in frames[frame]:
                    if isinstance(plain, NotFoundError):
                        gone.append(digest)
                    elif isinstance(plain, IntegrityError):
                        result.failed[digest] = plain
                    elif isinstance(plain, Exception):
                        raise plain
                    else:
                        self._take(digest, place, plain, result)
        return gone

    def _take(self, digest: bytes, place: Location, plain: bytes, result: Fetched) -> None:
        data = slice_chunk(plain, place)
        if self._hash(data) == digest:
            result.found[digest] = data
        else:
            result.failed[digest] = DigestMismatchError(
                f"chunk {digest.hex()} in pack {place.pack.hex()} has other bytes than its name says",
                hint="casstore fsck --read-data --repair",
                digest=digest.hex(),
            )

    def _read_span(self, span: list[_FrameId]) -> list[tuple[_FrameId, bytes | Exception]]:
        outcome: list[tuple[_FrameId, bytes | Exception]] = []
        missing: list[_FrameId] = []
        for frame in span:
            with self._lock:
                plain = self._cache.get(frame)
                if plain is not None:
                    self._cache.move_to_end(frame)
            if plain is None:
                missing.append(frame)
            else:
                outcome.append((frame, plain))
        if not missing:
            return outcome
        start = missing[0].offset
        end = missing[-1].offset + missing[-1].stored
        try:
            data = self._backend.read(pack_key(missing[0].pack), offset=start, length=end - start)
        except NotFoundError as error:
            return [*outcome, *((frame, error) for frame in missing)]
        view = memoryview(data)
        for frame in missing:
            at = frame.offset - start
            what = f"the frame at {frame.offset} of pack {frame.pack.hex()}"
            try:
                plain = decode_frame(self._codec, view[at : at + frame.stored], frame.raw, what)
            except IntegrityError as error:
                outcome.append((frame, error))
            else:
                self._remember(frame, plain)
                outcome.append((frame, plain))
        return outcome

    def _remember(self, frame: _FrameId, plain: bytes) -> None:
        with self._lock:
            if frame not in self._cache:
                self._cache[frame] = plain
                self._cached += len(plain)
            while self._cached > CACHE_BYTES:
                _, old = self._cache.popitem(last=False)
                self._cached -= len(old)


def _spans(frames: list[_FrameId]) -> list[list[_FrameId]]:
    spans: list[list[_FrameId]] = []
    for frame in frames:
        if spans:
            span = spans[-1]
            end = span[-1].offset + span[-1].stored
            near = frame.pack == span[-1].pack and frame.offset - end <= READ_GAP
            if near and frame.offset + frame.stored - span[0].offset <= READ_SPAN:
                span.append(frame)
                continue
        spans.append([frame])
    return spans


class ChunkWriter:
    """Gathers new chunks into frames and packs and publishes them, in the order they came.

    Frames are compressed and packs uploaded by ``executor``; a bounded number is in flight. Not thread-safe:
    one writer belongs to one thread. Packs exist in the backend once `finish` returns; they mean nothing
    until their records are committed. A writer that failed is not to be used again.
    """

    def __init__(
        self,
        backend: Backend,
        codec: Codec,
        executor: Executor,
        new_pack: Callable[[], bytes],
        kind: ChunkKind,
        *,
        frame_bytes: int,
        pack_bytes: int,
        in_flight: int,
    ) -> None:
        self._backend = backend
        self._codec = codec
        self._executor = executor
        self._new_pack = new_pack
        self._kind = kind
        self._frame_bytes = frame_bytes
        self._pack_bytes = pack_bytes
        self._in_flight = in_flight
        self._chunks: list[tuple[bytes, Buffer]] = []
        self._children: list[int] = []
        self._gathered = 0
        self._frames: deque[tuple[Future[Frame], list[int]]] = deque()
        self._pack = PackWriter(kind)
        self._upload: Future[None] | None = None
        self._records: list[AddPack] = []
        self.stored_bytes = 0

    def add(self, digest: bytes, data: Buffer, children: int = 0) -> None:
        """Store a chunk that is in no pack of this writer yet."""
        if self._gathered and self._gathered + len(data) > self._frame_bytes + self._frame_bytes // 4:
            self._close_frame()
        self._chunks.append((digest, data))
        self._children.append(children)
        self._gathered += len(data)
        if self._gathered >= self._frame_bytes:
            self._close_frame()

    def _close_frame(self) -> None:
        if not self._chunks:
            return
        future = self._executor.submit(encode_frame, self._codec, self._chunks)
        self._frames.append((future, self._children))
        self._chunks, self._children, self._gathered = [], [], 0
        while len(self._frames) > self._in_flight:
            self._take_frame()

    def _take_frame(self) -> None:
        future, children = self._frames.popleft()
        frame = future.result()
        self._pack.add(frame, children if self._kind is ChunkKind.NODE else ())
        if self._pack.size >= self._pack_bytes // UPLOAD_SHARE:
            self._wait()  # the pack before this one must not stay in memory until this one is full
        if self._pack.size >= self._pack_bytes:
            self._close_pack(())

    def _close_pack(self, notes: Sequence[VersionNote]) -> None:
        sealed = self._pack.finish(self._new_pack(), notes)
        self._pack = PackWriter(self._kind)
        self._wait()
        self._upload = self._executor.submit(self._publish, sealed)
        self._records.append(sealed.record)
        self.stored_bytes += sealed.record.size

    def _publish(self, sealed: SealedPack) -> None:
        self._backend.create(pack_key(sealed.record.pack), sealed.data())

    def _wait(self) -> None:
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.result()

    def finish(self, notes: Sequence[VersionNote] = ()) -> list[AddPack]:
        """Publish what is left; returns the records of all packs since the last call, durable now."""
        self._close_frame()
        while self._frames:
            self._take_frame()
        if len(self._pack):
            self._close_pack(notes)
        self._wait()
        records, self._records = self._records, []
        return records

    def abandon(self) -> list[AddPack]:
        """Wait for work in flight and drop the rest; returns the packs that may have been published."""
        for future, _ in self._frames:
            future.cancel()
        self._frames.clear()
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.exception()
        records, self._records = self._records, []
        return records
