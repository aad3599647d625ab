"""The append-only commit log: the only truth. Segments are created, never changed."""

from __future__ import annotations

from collections.abc import Iterator

from casstore.backend import Backend
from casstore.codec import Codec
from casstore.errors import IntegrityError, NotFoundError
from casstore.format.layout import LOG_PREFIX, log_key, log_seq
from casstore.format.segments import (
    SEGMENT_HEAD,
    RawSegment,
    decode_body,
    decode_segment,
    encode_body,
    encode_segment,
    segment_is_sound,
    stored_chain,
)
from casstore.model import Segment, Transaction

GENESIS = bytes(32)
"""what the first segment calls the one before it"""


class Log:
    """Reads and creates segments. Thread-safe; keeps no state of its own."""

    def __init__(self, backend: Backend, codec: Codec) -> None:
        self._backend = backend
        self._codec = codec

    def create(self, segment: Segment) -> bytes:
        """Publish a segment at its position: created = committed. Returns its chain hash.

        Raises `AlreadyExistsError` when the position is taken; any other error leaves the outcome open, and
        `find` tells it.
        """
        body = encode_body(segment.transactions)
        number, stored = self._codec.encode([body])
        data, chain = encode_segment(segment, number, len(body), stored)
        self._backend.create(log_key(segment.seq), data)
        return chain

    def read(self, seq: int) -> tuple[Segment, bytes] | None:
        """The segment at a position and its chain hash, or None when the log ends before it."""
        raw = self.read_raw(seq)
        return None if raw is None else (self._open(raw), raw.chain)

    def read_raw(self, seq: int) -> RawSegment | None:
        """The header of a segment, without decoding its transactions."""
        try:
            data = self._backend.read(log_key(seq))
        except NotFoundError:
            return None
        raw = decode_segment(data, f"log segment {seq}")
        if raw.seq != seq:
            raise IntegrityError(f"log segment {seq} says it is {raw.seq}")
        return raw

    def chain_at(self, seq: int) -> bytes | None:
        """The chain hash that the beginning of a segment says it has. None: it is damaged, or not there.

        Whatever the length of the segment; its body is not looked at.
        """
        try:
            return stored_chain(self._backend.read(log_key(seq), length=SEGMENT_HEAD))
        except NotFoundError:
            return None

    def _open(self, raw: RawSegment) -> Segment:
        what = f"log segment {raw.seq}"
        transactions: tuple[Transaction, ...] = decode_body(
            self._codec.decode(raw.codec, raw.body, raw.body_length, what), what
        )
        return Segment(raw.seq, raw.previous, raw.base, raw.packs_since, raw.writer, raw.claimed, transactions)

    def after(self, seq: int) -> Iterator[tuple[Segment, bytes]]:
        """Segments that follow a position, in order, until the log ends (probed by reading, never by listing)."""
        while True:
            seq += 1
            found = self.read(seq)
            if found is None:
                return
            yield found

    def ends_at(self, seq: int) -> bool:
        """Whether no segment follows a position. Probed by reading, as all is that follows."""
        try:
            self._backend.read(log_key(seq + 1), length=1)
        except NotFoundError:
            return True
        return False

    def listed(self) -> list[int]:
        """Positions a listing shows, in order; for checking only."""
        found = (log_seq(info.key) for info in self._backend.list(LOG_PREFIX))
        return sorted(seq for seq in found if seq is not None)

    def sound(self, seq: int) -> bool:
        """True if a segment's stored bytes are exactly as written."""
        return segment_is_sound(self._backend.read(log_key(seq)))

    def barrier(self) -> None:
        """Make every segment that can be seen durable, whoever wrote it."""
        self._backend.barrier(LOG_PREFIX)
