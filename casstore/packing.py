"""Put new chunks into packs, and those into the backend; not what chunks mean."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial

from casstore.backend import Backend, Grows
from casstore.codec import Codec
from casstore.digest import Buffer
from casstore.format.layout import pack_key
from casstore.format.packs import VersionNote
from casstore.model import AddPack, ChunkKind
from casstore.outgoing import RUN_BYTES, Outbox, Outgoing
from casstore.pack import Frame, PackWriter, encode_frame


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
        self._frame_most = frame_bytes + frame_bytes // 4
        self._pack_bytes = pack_bytes
        self._in_flight = in_flight
        self._chunks: list[tuple[bytes, Buffer]] = []
        self._children: list[int] = []
        self._gathered = 0
        self._room: memoryview | None = None
        """what the chunks of the frame at hand are in, so that nobody has to join them; not those of the first frame,
        which may go elsewhere (`waiting`)"""
        self._spare: list[memoryview] = []
        """rooms to be used again: memory that was written to before costs no page faults"""
        self._frames: deque[tuple[Future[Frame], list[int], memoryview | None]] = deque()
        self._pack = PackWriter(kind)
        self._name = b""
        """that of the pack at hand, once some of it is written"""
        self._outbox = Outbox(executor, pack_bytes // 2)
        self._outgoing: list[Outgoing] = [Outgoing(backend)]
        """packs that are not known to be published, the last of which is at hand"""
        self._run_bytes = RUN_BYTES if isinstance(backend, Grows) else pack_bytes
        self._records: list[AddPack] = []
        self.stored_bytes = 0

    def add(self, digest: bytes, data: Buffer, children: int = 0) -> None:
        """Store a chunk that is in no pack of this writer yet; a copy of it."""
        if self._gathered and self._gathered + len(data) > self._frame_most:
            self._close_frame()
        self._chunks.append((digest, self._copy(data)))
        self._children.append(children)
        self._gathered += len(data)
        if self._gathered >= self._frame_bytes:
            self._close_frame()

    def _copy(self, data: Buffer) -> Buffer:
        """A copy of a chunk: as bytes, or where the others of its frame are."""
        if not self._chunks and len(data) <= self._frame_most and self._has_begun():
            self._room = self._spare.pop() if self._spare else memoryview(bytearray(self._frame_most))
        if self._room is None:
            return bytes(data)
        copy = self._room[self._gathered : self._gathered + len(data)]
        copy[:] = data
        return copy

    def _has_begun(self) -> bool:
        return bool(self._frames or self._records or len(self._pack))

    def waiting(self) -> tuple[Sequence[tuple[bytes, Buffer]], Sequence[int]] | None:
        """All chunks that were added, and their numbers of children, as long as none is on its way into a pack."""
        if self._has_begun():
            return None
        return tuple(self._chunks), tuple(self._children)

    def _close_frame(self) -> None:
        if not self._chunks:
            return
        plain = None if self._room is None else self._room[: self._gathered]
        future = self._executor.submit(encode_frame, self._codec, self._chunks, plain)
        self._frames.append((future, self._children, self._room))
        self._chunks, self._children, self._gathered, self._room = [], [], 0, None
        while len(self._frames) > self._in_flight:
            self._take_frame()

    def _take_frame(self) -> None:
        future, children, room = self._frames.popleft()
        frame = future.result()
        if room is not None:
            self._spare.append(room)
        self._pack.add(frame, children if self._kind is ChunkKind.NODE else ())
        if self._pack.size >= self._pack_bytes:
            self._close_pack(())
        elif self._pack.waiting >= self._run_bytes:
            self._name = self._name or self._new_pack()
            size = self._pack.waiting
            self._outbox.add(partial(self._outgoing[-1].write, pack_key(self._name), self._pack.take()), size)
        else:
            self._outbox.keep_up()

    def _close_pack(self, notes: Sequence[VersionNote]) -> None:
        sealed = self._pack.finish(self._name or self._new_pack(), notes)
        self._name = b""
        self._records.append(sealed.record)
        self.stored_bytes += sealed.record.size
        size = self._pack.waiting
        self._pack = PackWriter(self._kind)
        outgoing = self._outgoing[-1]
        self._outgoing.append(Outgoing(self._backend))
        self._outbox.add(partial(outgoing.publish, sealed), size)

    def finish(self, notes: Sequence[VersionNote] = ()) -> list[AddPack]:
        """Publish what is left; returns the records of all packs since the last call, durable now."""
        self._close_frame()
        while self._frames:
            self._take_frame()
        if len(self._pack):
            self._close_pack(notes)
        self._outbox.finish()
        del self._outgoing[:-1]
        records, self._records = self._records, []
        return records

    def abandon(self) -> list[AddPack]:
        """Wait for work in flight and drop the rest; returns the packs that may have been published."""
        for future, _, _ in self._frames:
            future.cancel()
        self._frames.clear()
        self._outbox.abandon()
        for outgoing in self._outgoing:
            outgoing.discard()
        records, self._records = self._records, []
        return records
