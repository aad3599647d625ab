"""Pins: extra roots that keep content whatever becomes of its versions, with a holder, a purpose and an end.

A pin is in the log, like a version, so no collector anywhere passes it over. It ends when it is let go, or by the safe
clock of the log (GC.md §3.7); one that is past its time still keeps its content until a collection takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

from casstore import catalogue
from casstore.catalogue import Found, full_name
from casstore.config import Runtime, from_micros
from casstore.digest import ALGORITHMS, Digest
from casstore.engine import Engine
from casstore.errors import CasstoreError, ChunkMissingError, IntegrityError, InvalidInputError, NotFoundError
from casstore.format.rows import decode_row
from casstore.model import KEPT, ChunkKind, Pin, PinRow, Progress, Record, RenewPin, Unpin
from casstore.names import check_description, check_texts, parse_reference
from casstore.overlay import Tables
from casstore.state import NODE, PIN, head_of
from casstore.values import dataclass
from casstore.view import chunk_at, collections, with_root

SECOND = 1_000_000
NEVER = 221_845_392_000 * SECOND
"""`PinRow.expires` of a pin that has no end: the year 9000, so that it is a date wherever it is shown as one"""
LONGEST = timedelta(days=36_525)
ID_BYTES = 16
DRAFT = timedelta(days=7)
"""how long the pin of a draft holds; it is renewed when half of it is over"""
LONG_READ = 30.0
"""seconds after which a read is so long that what it reads is pinned"""
READ = timedelta(days=1)
"""how long the pin of a read holds: more than one wrong clock can move the safe clock at a time"""


@dataclass(frozen=True, slots=True)
class PinInfo:
    """A pin that is held. ``refs``: versions that have exactly one of its roots. ``expires_at``: None = when let go.

    ``created_at``: None if that part of the log cannot be read. ``expired``: its time is over, and the next collection
    lets it go.
    """

    id: str
    holder: str
    purpose: str
    roots: tuple[Digest, ...]
    refs: tuple[str, ...]
    created_at: datetime | None
    expires_at: datetime | None
    expired: bool

    def to_dict(self) -> dict[str, object]:
        """The pin as JSON values."""
        return {
            "id": self.id,
            "holder": self.holder,
            "purpose": self.purpose,
            "roots": [str(root) for root in self.roots],
            "refs": list(self.refs),
            "created_at": None if self.created_at is None else self.created_at.isoformat(),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
            "expired": self.expired,
        }


def holder(runtime: Runtime) -> str:
    """Who holds what this process pins: ``actor@host:pid``."""
    return f"{runtime.actor}@{runtime.writer}"


def expiry(tables: Tables, ttl: timedelta | None) -> int:
    """The moment of the safe clock when a pin that is made now ends."""
    return NEVER if ttl is None else head_of(tables).safe + int(ttl.total_seconds() * SECOND)


# --- users' own ----------------------------------------------------------------------------------


def add(engine: Engine, what: str | Sequence[str], purpose: str, ttl: timedelta | None) -> PinInfo:
    """Pin the content of versions (``name:vN``, those in the trash, too) and any digests; one commit.

    Raises `InvalidInputError`, `VersionNotFoundError`, `NotFoundError` for a digest that is not stored.
    """
    wanted = _wanted(what)
    purpose = check_description(purpose)
    if not purpose.strip():
        raise InvalidInputError("a pin needs a purpose", hint="such as 'training run 12'")
    _check_ttl(ttl)
    pin = engine.runtime.random_bytes(ID_BYTES)

    def build(tables: Tables) -> Sequence[Record]:
        roots = tuple(dict.fromkeys(_root(engine, tables, one) for one in wanted))
        return (Pin(pin, holder(engine.runtime), purpose, roots, expiry(tables, ttl)),)

    engine.commit(build)
    return get(engine, pin.hex())


def _wanted(what: str | Sequence[str]) -> list[str]:
    return [what] if isinstance(what, str) else list(check_texts(what, "references or digests"))


def _check_ttl(ttl: timedelta | None) -> None:
    if ttl is not None and not (isinstance(ttl, timedelta) and timedelta(0) < ttl <= LONGEST):
        raise InvalidInputError(
            f"ttl={ttl!r} is not valid", hint="a timedelta up to a hundred years, or None: until unpinned"
        )


def _root(engine: Engine, tables: Tables, what: str) -> bytes:
    """The digest that a reference or the text of a digest means, if it can be held."""
    if what.partition(":")[0] not in ALGORITHMS or ":" not in what:
        return catalogue.find(tables, parse_reference(what), states=KEPT).version.root
    digest = engine.parse_digest(what)
    row = chunk_at(tables, digest)
    if row is None or (row.location.kind is ChunkKind.NODE and tables.get(NODE, digest) is None):
        raise NotFoundError(f"{what} is not in this store", hint="casstore why tells what became of it")
    return digest


def get(engine: Engine, id: str) -> PinInfo:
    """One pin. Raises `NotFoundError`."""
    key = _key(id)
    engine.view.refresh()
    with engine.foresee(lambda _: ()) as tables:
        row = tables.get(PIN, key)
        if row is None:
            raise _unknown(id)
        return _info(engine, tables, key, decode_row(row, PinRow))


def held(engine: Engine) -> list[PinInfo]:
    """All pins, those that end first in front."""
    with engine.foresee(lambda _: ()) as tables:
        rows = [(key, decode_row(row, PinRow)) for key, row in tables.scan(PIN)]
        rows.sort(key=lambda item: (item[1].expires, item[1].seq, item[0]))
        return [_info(engine, tables, key, row) for key, row in rows]


def _info(engine: Engine, tables: Tables, key: bytes, row: PinRow) -> PinInfo:
    head = head_of(tables)
    created: datetime | None = None
    with suppress(IntegrityError):
        found = engine.log.read_raw(row.seq)
        created = None if found is None else from_micros(found.claimed)
    refs = [
        Found(full_name(collection), collection, version).label
        for collection in collections(tables)
        for root in row.roots
        for version in with_root(tables, collection.id, root)
        if version.state in KEPT
    ]
    return PinInfo(
        key.hex(),
        row.holder,
        row.purpose,
        tuple(engine.digest(root) for root in row.roots),
        tuple(refs),
        created,
        None if row.expires >= NEVER else from_micros(row.expires + head.highest - head.safe),
        row.expires <= head.safe,
    )


def remove(engine: Engine, id: str, *, asked: bool = False) -> None:
    """Let a pin go; ``asked``: by who made it for itself. Raises `NotFoundError`."""
    key = _key(id)

    def build(tables: Tables) -> Sequence[Record]:
        if tables.get(PIN, key) is None:
            raise _unknown(id)
        return (Unpin(key),)

    engine.commit(build, asked=asked)


def renew(engine: Engine, id: str, ttl: timedelta | None) -> PinInfo:
    """Have a pin end so long from now (None: not before it is let go). Raises `NotFoundError`."""
    key = _key(id)
    _check_ttl(ttl)

    def build(tables: Tables) -> Sequence[Record]:
        if tables.get(PIN, key) is None:
            raise _unknown(id)
        return (RenewPin(key, expiry(tables, ttl)),)

    engine.commit(build)
    return get(engine, id)


@contextmanager
def pinned(engine: Engine, what: str | Sequence[str], purpose: str, ttl: timedelta | None) -> Iterator[PinInfo]:
    """Pin for the length of a block."""
    info = add(engine, what, purpose, ttl)
    try:
        yield info
    finally:
        with suppress(NotFoundError):  # it expired and was collected, or somebody else let it go
            remove(engine, info.id, asked=True)


def _key(id: object) -> bytes:
    try:
        key = bytes.fromhex(id) if isinstance(id, str) else b""
    except ValueError:
        key = b""
    if len(key) != ID_BYTES:
        raise InvalidInputError(f"{id!r:.100} is not the id of a pin", hint="casstore pin ls")
    return key


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(f"there is no pin {id}", hint="casstore pin ls")


# --- drafts --------------------------------------------------------------------------------------


def renew_draft(engine: Engine, key: bytes) -> None:
    """Renew the pin of a draft that has less than half its life to go. One that is gone stays gone; never fails."""

    def build(tables: Tables) -> Sequence[Record]:
        row = tables.get(PIN, key)
        end = expiry(tables, DRAFT)
        if row is None or decode_row(row, PinRow).expires >= expiry(tables, DRAFT / 2):
            return ()
        return (RenewPin(key, end),)

    # Whoever goes on will meet the same trouble, and tell it better.
    with suppress(CasstoreError):
        engine.commit(build, asked=True)


# --- long reads ----------------------------------------------------------------------------------


class LongRead:
    """Keeps what is being read in the store, by a pin, once that takes long. Never a reason for the read to fail.

    `touch` is called now and then while reading; it pins, renews and, after a failure, tries again.
    """

    def __init__(self, engine: Engine, found: Found, doing: str) -> None:
        self._engine = engine
        self._root = found.version.root
        self._purpose = f"{doing} {found.label}"
        self._pin: bytes | None = None
        self._next = engine.runtime.monotonic() + LONG_READ

    @property
    def pin(self) -> bytes | None:
        """The pin, if there is one now."""
        return self._pin

    def touch(self) -> None:
        """Some of it has been read."""
        engine = self._engine
        if engine.read_only or engine.runtime.monotonic() < self._next:
            return
        # If it fails, because the content is gone, the disk full or the log out of reach: tried again a while later.
        self._next = engine.runtime.monotonic() + LONG_READ
        with suppress(CasstoreError):
            self._hold()
            self._next = engine.runtime.monotonic() + READ.total_seconds() / 2

    def _hold(self) -> None:
        fresh = self._engine.runtime.random_bytes(ID_BYTES)
        holding = fresh

        def build(tables: Tables) -> Sequence[Record]:
            nonlocal holding
            end = expiry(tables, READ)
            if self._pin is not None and tables.get(PIN, self._pin) is not None:
                holding = self._pin
                return (RenewPin(self._pin, end),)
            if chunk_at(tables, self._root) is None:
                raise ChunkMissingError(f"the content of {self._purpose} was collected")
            holding = fresh
            return (Pin(fresh, holder(self._engine.runtime), self._purpose, (self._root,), end),)

        self._engine.commit(build, asked=True)
        self._pin = holding

    def release(self) -> None:
        """It is over: let go now."""
        key, self._pin = self._pin, None
        if key is not None:
            with suppress(CasstoreError):  # then it expires
                remove(self._engine, key.hex(), asked=True)

    def abandon(self) -> None:
        """It is over, but this is no moment to write: let go with the next commit of this handle that has time."""
        key, self._pin = self._pin, None
        if key is not None:
            self._engine.abandoned.append(key)


@contextmanager
def reading(engine: Engine, found: Found, doing: str, progress: Progress) -> Iterator[Progress]:
    """A read that may be long: the progress callback it is to call between its batches, and pins it when it is."""
    read = LongRead(engine, found, doing)

    def touched(phase: str, done: int, total: int) -> None:
        read.touch()
        progress(phase, done, total)

    try:
        yield touched
    finally:
        read.release()
