"""Copy what is live out of packs into a new one: read, checked chunk by chunk, and written in the same order.

Nothing is committed here (`casstore.gc.retire`, `casstore.gc.optimize`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from casstore.engine import Engine
from casstore.errors import AlreadyExistsError, CasstoreError, IntegrityError
from casstore.format.layout import pack_key
from casstore.format.packs import (
    TRAILER_SIZE,
    Footer,
    VersionNote,
    decode_footer,
    decode_trailer,
    locations,
)
from casstore.format.rows import pack_of_row, refcount
from casstore.gc.groups import group_bytes, group_codec, is_group
from casstore.gc.plan import PackFate
from casstore.model import AddPack, ChunkKind, Location
from casstore.pack import Frame, PackWriter, SealedPack, check_chunk, decode_frame, encode_frame
from casstore.state import CHUNK, LOST
from casstore.values import dataclass

SPAN = 4 * 1024 * 1024
"""frames of a pack that follow one another are read together up to this many bytes"""
FRAMES = 8
"""frames that may be on their way into a new pack"""
SPANS = 4
"""spans that are being read and checked at a time"""
SMALL_FRAME = 4
"""frames with less plaintext than a quarter of the aim are compressed again, with their neighbours"""


@dataclass(slots=True)
class Source:
    """A pack that is being emptied: what lives in it, in order."""

    fate: PackFate
    footer: Footer
    live: list[bytes]


def open_source(engine: Engine, fate: PackFate) -> Source:
    """A pack as it is to be emptied. Raises `IntegrityError`, `FormatError`, `NotFoundError`."""
    footer = read_footer(engine, fate.pack, fate.size)
    with engine.view.read() as tables:
        listed = list(dict.fromkeys(footer.content.digests))
        sound = not tables.count(LOST)
        live = [
            digest
            for digest, row in zip(listed, tables.get_many(CHUNK, listed), strict=True)
            if row is not None
            and pack_of_row(row) == fate.pack
            and refcount(row)
            and (sound or tables.get(LOST, digest) is None)
        ]
    return Source(fate, footer, live)


def read_footer(engine: Engine, pack: bytes, size: int) -> Footer:
    """The table of contents of a pack of a known size. Raises `IntegrityError`, `FormatError`."""
    what = f"pack {pack.hex()}"
    trailer = engine.backend.read(pack_key(pack), offset=size - TRAILER_SIZE)
    _, length = decode_trailer(trailer, what)
    if length > size:
        raise IntegrityError(f"{what} has a damaged end")
    data = engine.backend.read(pack_key(pack), offset=size - TRAILER_SIZE - length, length=length)
    return decode_footer(data, f"the footer of {what}")


@dataclass(frozen=True, slots=True)
class _Part:
    """A frame of a pack, by the place of its first chunk, and what of it is wanted; ``whole``: it may stay one."""

    first: Location
    wanted: Sequence[tuple[bytes, Location]]
    whole: bool
    grouped: bool

    @property
    def end(self) -> int:
        return self.first.frame_offset + self.first.frame_stored


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is wanted of a frame, every chunk of it checked: the frame as it is, or chunks."""

    frame: Frame | None
    loose: Sequence[tuple[bytes, bytes]] = ()
    grouped: bool = False
    """these are left of a group"""


def _check_span(engine: Engine, pack: bytes, span: Sequence[_Part]) -> list[_Checked]:
    """Read frames that follow one another, and check what is wanted of them. Thread-safe. Raises `IntegrityError`."""
    start = span[0].first.frame_offset
    data = memoryview(engine.backend.read(pack_key(pack), offset=start, length=span[-1].end - start))
    found: list[_Checked] = []
    for part in span:
        first = part.first
        what = f"the frame at {first.frame_offset} of pack {pack.hex()}"
        stored = data[first.frame_offset - start : part.end - start]
        plain = memoryview(decode_frame(engine.codec, stored, first.frame_raw, what))
        chunks = [(digest, plain[place.offset : place.offset + place.length]) for digest, place in part.wanted]
        for digest, chunk in chunks:
            check_chunk(engine.hash, digest, chunk, what)
        if part.whole:
            digests, lengths = zip(*((digest, len(chunk)) for digest, chunk in chunks), strict=True)
            found.append(_Checked(Frame((stored,), first.frame_raw, digests, lengths)))
        else:
            loose = [(digest, bytes(chunk)) for digest, chunk in chunks]
            found.append(_Checked(None, loose, grouped=part.grouped))
    return found


class Mover:
    """Copies live chunks of one kind into a new pack: whole frames as they are, others compressed again."""

    def __init__(self, engine: Engine, kind: ChunkKind) -> None:
        self.engine = engine
        self.writer = PackWriter(kind)
        self.notes: list[VersionNote] = []
        self.loose: list[tuple[bytes, bytes]] = []
        self.loose_bytes = 0
        self.grouped: list[tuple[bytes, bytes]] = []
        """what is left of groups makes groups again"""
        self.grouped_bytes = 0
        self.group_codec = group_codec()
        self.children: dict[bytes, int] = {}
        self.ahead: deque[Frame | Future[Frame]] = deque()
        """frames that follow, in order; some are being compressed"""
        self.raw_ahead = 0

    @property
    def size(self) -> int:
        """About how many bytes the new pack has by now."""
        return self.writer.size + self.loose_bytes + self.grouped_bytes + self.raw_ahead

    def take(self, source: Source) -> None:
        """Copy what is live in a pack. Every chunk is verified on the way."""
        engine = self.engine
        live = set(source.live)
        pack = source.fate.pack
        places = locations(pack, source.footer.content)
        if source.footer.children:
            self.children.update(zip(source.footer.content.digests, source.footer.children, strict=False))
        at = 0
        spans: list[list[_Part]] = []
        for frame in source.footer.content.frames:
            members = places[at : at + frame.chunks]
            at += frame.chunks
            wanted = [(digest, place) for digest, place in members if digest in live]
            if not wanted:
                continue
            live.difference_update(digest for digest, _ in wanted)
            first = members[0][1]
            small = first.frame_raw * SMALL_FRAME < engine.config.frame_bytes
            whole = len(wanted) == len(members) and not small
            part = _Part(first, wanted, whole, is_group(engine.config, frame.raw, frame.chunks))
            last = spans[-1] if spans else []
            if last and part.end - last[0].first.frame_offset <= SPAN and first.frame_offset == last[-1].end:
                last.append(part)
            else:
                spans.append([part])
        self._copy(pack, spans)
        if live:
            raise IntegrityError(f"the footer of pack {pack.hex()} lacks chunks that are in it", hint="casstore fsck")
        self.notes.extend(note for note in source.footer.versions if engine.view.known((note.root,))[0])

    def _copy(self, pack: bytes, spans: Sequence[list[_Part]]) -> None:
        """Take over what is wanted of some frames, in order; a few spans are read and checked ahead."""
        executor = self.engine.executor()
        waiting: deque[Future[list[_Checked]]] = deque()
        try:
            for span in (*spans, None):
                if span is not None:
                    waiting.append(executor.submit(_check_span, self.engine, pack, span))
                while waiting and (span is None or len(waiting) >= SPANS):
                    for checked in waiting.popleft().result():
                        self._take(checked)
        finally:
            for task in waiting:
                task.cancel()

    def _take(self, checked: _Checked) -> None:
        if checked.frame is not None:
            self._close_loose()
            self.follow(checked.frame, checked.frame.raw)
            return
        if checked.grouped:
            for digest, data in checked.loose:
                self.grouped.append((digest, data))
                self.grouped_bytes += len(data)
                if self.grouped_bytes >= group_bytes(self.engine.config):
                    self._close_grouped()
            return
        for digest, data in checked.loose:
            self.loose.append((digest, data))
            self.loose_bytes += len(data)
            if self.loose_bytes >= self.engine.config.frame_bytes:
                self._close_loose()

    def _close_loose(self) -> None:
        if self.loose:
            chunks, size, self.loose, self.loose_bytes = self.loose, self.loose_bytes, [], 0
            self.follow(self.engine.executor().submit(encode_frame, self.engine.codec, chunks), size)

    def _close_grouped(self) -> None:
        if self.grouped:
            chunks, size, self.grouped, self.grouped_bytes = self.grouped, self.grouped_bytes, [], 0
            self.follow(self.engine.executor().submit(encode_frame, self.group_codec, chunks), size)

    def follow(self, frame: Frame | Future[Frame], raw: int) -> None:
        """Put a frame next into the pack, which may be under way still."""
        self.ahead.append(frame)
        self.raw_ahead += raw
        self._settle(FRAMES)

    def _settle(self, left: int) -> None:
        """Put frames into the pack until so many are ahead."""
        while len(self.ahead) > left:
            frame = self.ahead.popleft()
            done = frame if isinstance(frame, Frame) else frame.result()
            self.raw_ahead -= done.raw
            self._add(done)

    def _add(self, frame: Frame) -> None:
        children = [self.children.get(digest, 0) for digest in frame.digests]
        self.writer.add(frame, children if self.writer.kind is ChunkKind.NODE else ())

    def drop(self) -> None:
        """Let go of what is not in a published pack."""
        for frame in self.ahead:
            if not isinstance(frame, Frame):
                frame.cancel()
        self.ahead.clear()

    def seal(self) -> SealedPack | None:
        """The new pack as it is to be uploaded, if anything is in it."""
        self._close_loose()
        self._close_grouped()
        self._settle(0)
        return self.writer.finish(self.engine.new_pack(), self.notes) if len(self.writer) else None

    def publish(self) -> AddPack | None:
        """Upload the new pack, if anything is in it."""
        sealed = self.seal()
        if sealed is None:
            return None
        publish(self.engine, sealed)
        return sealed.record


def publish(engine: Engine, sealed: SealedPack) -> None:
    """Publish a new pack. Durable on return; the log does not know it yet. Raises `BackendError`."""
    try:
        engine.backend.create(pack_key(sealed.record.pack), sealed.data())
    except AlreadyExistsError as error:
        raise CasstoreError(f"a pack name was drawn twice: {error}") from None
