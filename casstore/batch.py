"""Versions that several writers make together: each upserts a part, one finishes, and all parts are one version.

A batch is known by its collection and an id that the writers agree on; it is used once and for ever. A part is a tree,
kept by a pin until the batch is finished, aborted, or nobody has upserted for the time of its lease: then the next
collection aborts it. Every step is one commit, so a writer that is killed has stored its part or nothing.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice, takewhile

from casstore import catalogue
from casstore.artifact import Artifact
from casstore.config import from_micros
from casstore.digest import Digest, seal
from casstore.engine import Engine
from casstore.errors import (
    ArtifactFinalizedError,
    CasstoreError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LeaseLostError,
    NotFoundError,
    RefusedError,
    StoreBusyError,
    TypeConflictError,
    UpsertConflictError,
)
from casstore.format.rows import decode_row
from casstore.ingest import (
    Decision,
    LogRequest,
    LogResult,
    Session,
    check_references,
    home,
    version_records,
)
from casstore.merging import Listing, TreeListing, check_pair, merged
from casstore.model import (
    AbortParts,
    BatchRow,
    Entry,
    FinishParts,
    JsonMap,
    PartRow,
    PinRow,
    Progress,
    Record,
    UpsertPart,
    no_progress,
)
from casstore.names import CollectionName, canonical_metadata
from casstore.overlay import Tables
from casstore.pin import ID_BYTES, LONGEST, expiry, holder
from casstore.policy import in_force
from casstore.state import ABORTED, FINISHED, OPEN, PIN, current_name, head_of
from casstore.tree import Tree, find, walk, write_entries
from casstore.view import batch_at, batches_called, collection_name, open_batches, parts_of
from casstore.writer import ROUNDS, Writer

LEASE = timedelta(days=7)
PENDING = "PENDING"
STATES = {OPEN: PENDING, FINISHED: "FINISHED", ABORTED: "ABORTED"}

Parts = Mapping[str, PartRow]


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A part of a batch. ``size``: bytes of its files. ``holder``: who stored it first, ``at`` when.

    ``lost``: its pin was let go by hand, so that its content may be collected: it must be upserted again.
    """

    collection: str
    distributed_id: str
    part: str
    digest: Digest
    size: int
    files: int
    holder: str
    at: datetime
    lost: bool = False

    def to_dict(self) -> dict[str, object]:
        """The part as JSON values."""
        return {
            "collection": self.collection,
            "distributed_id": self.distributed_id,
            "part": self.part,
            "digest": str(self.digest),
            "size": self.size,
            "files": self.files,
            "holder": self.holder,
            "at": self.at.isoformat(),
            "lost": self.lost,
        }


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch. ``state``: ``PENDING``, ``FINISHED`` (as ``version``) or ``ABORTED`` (``reason``).

    ``parts`` by name, of a batch that is pending; ``size`` and ``files`` are theirs together. ``expires_at``: when the
    lease ends that each upsert renews; ``expired``: it has, and the next collection aborts the batch.
    """

    distributed_id: str
    collection: str
    type: str
    state: str
    parts: tuple[PartInfo, ...]
    size: int
    files: int
    created_at: datetime
    expires_at: datetime | None
    expired: bool
    version: str | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, object]:
        """The batch as JSON values."""
        return {
            "distributed_id": self.distributed_id,
            "collection": self.collection,
            "type": self.type,
            "state": self.state,
            "parts": [part.to_dict() for part in self.parts],
            "size": self.size,
            "files": self.files,
            "created_at": self.created_at.isoformat(),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
            "expired": self.expired,
            "version": self.version,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class UpsertRequest:
    """What the caller of ``upsert`` asked for, checked. ``part`` None: named after its content."""

    collection: CollectionName
    batch: str
    part: str | None
    lease: timedelta
    admit: Callable[[Tables, int], None]


@dataclass(frozen=True, slots=True)
class FinishRequest:
    """What the caller of ``finish`` asked for, checked. ``collection`` None: that of the only batch with the id.

    ``labels``: its collection and base do not count. ``description`` and ``metadata`` None: those of the artifact.
    """

    collection: CollectionName | None
    batch: str
    expected: int | tuple[str, ...] | None
    labels: LogRequest
    description: str | None
    metadata: JsonMap | None


class _Unchecked(CasstoreError):
    """Other parts are there than those that were looked at."""

    def __init__(self, others: Sequence[PartRow]) -> None:
        super().__init__("the parts changed")
        self.others = others


class _Done(CasstoreError):
    """The batch is finished."""

    def __init__(self, batch: BatchRow) -> None:
        super().__init__("the batch is finished")
        self.batch = batch


# --- looking -------------------------------------------------------------------------------------


def _find(tables: Tables, name: CollectionName | None, batch: str) -> BatchRow | None:
    """A batch by its id and, if given, any name its collection had; None if that has none."""
    if name is None:
        return _only(tables, batch)
    now = current_name(tables, str(name))
    # A collection that was renamed took its batches along; one that nobody has made yet may take the old name.
    return batch_at(tables, now, batch) or batch_at(tables, str(name), batch)


def _only(tables: Tables, batch: str) -> BatchRow:
    found = list(batches_called(tables, batch))
    if not found:
        raise _unknown(batch)
    if len(found) > 1:
        names = ", ".join(sorted(_short(row) for row in found))
        raise InvalidInputError(
            f"there are batches {batch!r} of {names}", hint="say which: collection=, or --collection NAME"
        )
    return found[0]


def _unknown(batch: str) -> NotFoundError:
    return NotFoundError(f"there is no batch {batch!r}", hint="casstore pending ls")


def _short(batch: BatchRow) -> str:
    return CollectionName.parse(batch.name).short


def _check_open(tables: Tables, batch: BatchRow) -> None:
    if batch.state == FINISHED:
        raise ArtifactFinalizedError(
            f"batch {batch.batch!r} is finished: it is {_version(tables, batch)}",
            hint="take another distributed_id: each is used once",
        )
    if batch.state == ABORTED:
        why = f": {batch.reason}" if batch.reason else ""
        raise RefusedError(
            f"batch {batch.batch!r} of {_short(batch)} was aborted{why}",
            hint="take another distributed_id: each is used once",
        )


def _version(tables: Tables, batch: BatchRow) -> str:
    name = CollectionName.parse(collection_name(tables, batch.collection))
    return f"{name.short}:v{batch.number}"


def _pin(tables: Tables, part: PartRow) -> PinRow | None:
    row = tables.get(PIN, part.pin)
    return None if row is None else decode_row(row, PinRow)


def pending(engine: Engine) -> list[BatchInfo]:
    """Batches that are neither finished nor aborted, by collection and id."""
    with engine.foresee(lambda _: ()) as tables:
        found = sorted(open_batches(tables), key=lambda row: (row.name, row.batch))
        return [_info(engine, tables, row) for row in found]


def get(engine: Engine, name: CollectionName | None, batch: str) -> BatchInfo:
    """A batch in any state. Raises `NotFoundError`; `InvalidInputError` if collections have batches with the id."""
    with engine.foresee(lambda _: ()) as tables:
        return _info(engine, tables, _known(tables, name, batch))


def _known(tables: Tables, name: CollectionName | None, batch: str) -> BatchRow:
    found = _find(tables, name, batch)
    if found is None:
        raise _unknown(batch)
    return found


def _info(engine: Engine, tables: Tables, batch: BatchRow) -> BatchInfo:
    rows = parts_of(tables, batch)
    pins = [_pin(tables, row) for row in rows]
    ends = max([batch.expires, *(pin.expires for pin in pins if pin is not None)])
    parts = tuple(_part(engine, batch, row, lost=pin is None) for row, pin in zip(rows, pins, strict=True))
    under_way = batch.state == OPEN
    return BatchInfo(
        batch.batch,
        _short(batch),
        batch.type,
        STATES[batch.state],
        parts,
        sum(part.size for part in parts),
        sum(part.files for part in parts),
        from_micros(batch.created),
        catalogue.wall_at(tables, ends) if under_way else None,
        under_way and ends <= head_of(tables).safe,
        _version(tables, batch) if batch.state == FINISHED else None,
        batch.reason,
    )


def _part(engine: Engine, batch: BatchRow, row: PartRow, *, lost: bool = False) -> PartInfo:
    return PartInfo(
        _short(batch),
        batch.batch,
        row.name,
        engine.digest(row.root),
        row.size,
        row.file_count,
        row.holder,
        from_micros(row.at),
        lost,
    )


# --- a draft as a listing ------------------------------------------------------------------------


class _DraftListing:
    """The entries of an artifact that was read, stored or not."""

    def __init__(self, label: str, session: Session) -> None:
        self.label = label
        self._session = session
        self._changed = {path for path, _ in session.changes}
        self._paths = [path for path, source in session.changes if source is not None]

    def find(self, path: str) -> Entry | None:
        """See `Listing.find`."""
        session = self._session
        if session.base is None or path in self._changed:
            return session.entries.get(path)
        return find(session.base.root, path, session.engine.node)

    def walk(self, start: str = "", prefix: str = "") -> Iterator[Entry]:
        """See `Listing.walk`."""
        session = self._session
        at = bisect_left(self._paths, max(start, prefix))
        paths = takewhile(lambda path: path.startswith(prefix), islice(self._paths, at, None))
        mine = (session.entries[path] for path in paths)
        if session.base is None:
            return mine
        stored = walk(session.base.root, session.engine.node, start=start, prefix=prefix)
        theirs = (entry for entry in stored if entry.path not in self._changed)
        return heapq.merge(theirs, mine, key=lambda entry: entry.path)


# --- upsert --------------------------------------------------------------------------------------


def upsert(engine: Engine, artifact: Artifact, request: UpsertRequest, progress: Progress = no_progress) -> PartInfo:
    """Store an artifact's content as a part of a batch, in one commit. Durable on return.

    Raises `UpsertConflictError`, `ArtifactFinalizedError`, `RefusedError` for an aborted batch, `TypeConflictError`.
    """
    with engine.foresee(lambda _: ()) as tables:
        _batch_for(tables, artifact, request)
        roots = in_force(tables).reference_roots
    check_references(artifact, roots)
    writer = Writer(engine)
    try:
        session = Session(engine, writer, artifact, progress)
        session.run()
        upsert = _Upsert(engine, writer, session, artifact, request)
        upsert.run()
    except BaseException:
        writer.abandon()
        raise
    session.cache.flush()
    return upsert.info()


def _batch_for(tables: Tables, artifact: Artifact, request: UpsertRequest) -> BatchRow | None:
    """The open batch that a part belongs to; None: the part begins it."""
    batch = _find(tables, request.collection, request.batch)
    if batch is not None:
        _check_open(tables, batch)
        _check_type(batch, artifact)
    home(tables, request.collection if batch is None else CollectionName.parse(batch.name), artifact.type)
    return batch


def _check_type(batch: BatchRow, artifact: Artifact) -> None:
    if batch.type != artifact.type:
        raise TypeConflictError(
            f"batch {batch.batch!r} of {_short(batch)} has type {batch.type!r}, not {artifact.type!r}",
            hint="upsert with the type of the batch, or take another distributed_id",
        )


class _Upsert:
    """One part on its way into its batch."""

    def __init__(
        self, engine: Engine, writer: Writer, session: Session, artifact: Artifact, request: UpsertRequest
    ) -> None:
        self.engine, self.writer, self.session = engine, writer, session
        self.artifact, self.request = artifact, request
        self.part = str(engine.digest(session.tree.root)) if request.part is None else request.part
        self.listing = _DraftListing(f"part {self.part!r}", session)
        self.pin = engine.runtime.random_bytes(ID_BYTES)
        self.agreed: set[bytes] = set()
        """roots of other parts that do not contradict this one"""
        self.batch: BatchRow | None = None
        self.row: PartRow | None = None

    def run(self) -> None:
        """Commit the part. Others that come in meanwhile are looked at before the next try."""
        for _ in range(ROUNDS):
            try:
                self.writer.commit(self._records, self.session.restore)
            except _Unchecked as unchecked:
                self._compare(unchecked.others)
            else:
                return
        raise StoreBusyError(f"other parts came in {ROUNDS} times in a row", hint="try again")

    def info(self) -> PartInfo:
        """What was committed."""
        batch, row = self.batch, self.row
        assert batch is not None
        assert row is not None
        with self.engine.foresee(lambda _: ()) as tables:
            # It may be finished, or aborted, by now.
            rows = {part.name: part for part in parts_of(tables, batch)}
        return _part(self.engine, batch, rows.get(self.part, row))

    def _records(self, tables: Tables) -> Sequence[Record]:
        request, tree, runtime = self.request, self.session.tree, self.engine.runtime
        check_references(self.artifact, in_force(tables).reference_roots)
        batch = _batch_for(tables, self.artifact, request)
        parts = [] if batch is None else parts_of(tables, batch)
        known = next((part for part in parts if part.name == self.part), None)
        if known is not None and known.root != tree.root:
            raise UpsertConflictError(
                f"part {self.part!r} of batch {request.batch!r} is there with other content",
                hint="give the content another part name; the parts: casstore pending show ID",
            )
        if known is not None and _pin(tables, known) is None:
            known = None
        if known is None:
            # One that was let go is compared when it is stored again.
            others = [part for part in parts if part.name != self.part and _pin(tables, part) is not None]
            unchecked = [part for part in others if part.root not in self.agreed]
            if unchecked:
                raise _Unchecked(unchecked)
        record = UpsertPart(
            collection=str(request.collection) if batch is None else batch.name,
            batch=request.batch,
            part=self.part,
            type=self.artifact.type,
            root=tree.root,
            size=tree.size,
            file_count=tree.count,
            pin=self.pin,
            holder=holder(runtime),
            expires=expiry(tables, request.lease),
            actor=runtime.actor,
        )
        request.admit(tables, self.writer.pending_bytes)
        self.batch = batch or BatchRow(record.collection, record.batch, record.type, OPEN, 0, 0, 0, runtime.actor)
        self.row = known or PartRow(
            self.part, tree.root, tree.size, tree.count, self.pin, record.holder, runtime.now(), 0
        )
        return (record,)

    def _compare(self, others: Sequence[PartRow]) -> None:
        for other in others:
            listing = TreeListing(f"part {other.name!r}", other.root, self.engine.node)
            try:
                check_pair(self.listing, listing)
            except IntegrityError:
                with self.engine.foresee(lambda _: ()) as tables:
                    if _pin(tables, other) is not None:
                        raise
            else:
                self.agreed.add(other.root)


# --- finish --------------------------------------------------------------------------------------


def finish(
    engine: Engine, artifact: Artifact | None, request: FinishRequest, progress: Progress = no_progress
) -> tuple[CollectionName, LogResult]:
    """Make the parts of a batch, and the files of an artifact, one version, in one commit. Durable on return.

    Asked for the same again, the version that it is. Raises `ConflictError` while parts are missing, `LeaseLostError`,
    `UpsertConflictError`, `ArtifactFinalizedError` if it was finished otherwise, `RefusedError` if it was aborted.
    """
    with engine.foresee(lambda _: ()) as tables:
        # What fails anyhow fails before anything is read.
        with suppress(_Done):
            _gather(tables, request, artifact)
        roots = in_force(tables).reference_roots
    if artifact is not None:
        check_references(artifact, roots)
    for _ in range(ROUNDS):
        try:
            return _Finish(engine, artifact, request, progress).run()
        except _Unchecked:
            continue
    raise StoreBusyError(f"parts came in {ROUNDS} times in a row", hint="finish when all writers are done")


def destination(engine: Engine, request: FinishRequest) -> tuple[CollectionName | None, str]:
    """The collection of the version that a batch makes, and its type; None and "" if there is no such batch."""
    with engine.foresee(lambda _: ()) as tables:
        batch = _find(tables, request.collection, request.batch)
        return (None, "") if batch is None else (CollectionName.parse(batch.name), batch.type)


def _gather(tables: Tables, request: FinishRequest, artifact: Artifact | None) -> tuple[BatchRow, dict[str, PartRow]]:
    """The batch and its parts, all that are expected, each held. Raises `_Done` if it is finished."""
    batch = _find(tables, request.collection, request.batch)
    if batch is not None and batch.state == FINISHED:
        raise _Done(batch)
    if batch is None:
        _check_expected(request, {})
        raise ConflictError(
            f"batch {request.batch!r} has no parts", hint="finish when the writers have upserted; casstore pending ls"
        )
    _check_open(tables, batch)
    if artifact is not None:
        _check_type(batch, artifact)
    parts = {part.name: part for part in parts_of(tables, batch)}
    _check_expected(request, parts)
    lost = [name for name, part in parts.items() if _pin(tables, part) is None]
    if lost:
        raise LeaseLostError(
            f"{_several('part', lost)} of batch {request.batch!r} was let go of, and may be collected",
            hint="upsert it again, with the same content",
        )
    home(tables, CollectionName.parse(batch.name), batch.type)
    return batch, parts


def _check_expected(request: FinishRequest, parts: Parts) -> None:
    expected = request.expected
    if expected is None:
        return
    here = f"those here are {', '.join(map(repr, parts))}" if parts else "none is here"
    if isinstance(expected, int):
        missing = expected - len(parts)
        if missing > 0:
            raise ConflictError(
                f"{missing} of {expected} parts of batch {request.batch!r} are missing; {here}",
                hint="finish again when the writers are done",
            )
        if missing < 0:
            raise RefusedError(
                f"batch {request.batch!r} has {len(parts)} parts, not {expected}; {here}",
                hint="finish with the parts you expect, or with none",
            )
        return
    absent = [name for name in expected if name not in parts]
    if absent:
        raise ConflictError(
            f"{_several('part', absent)} of batch {request.batch!r} is missing; {here}",
            hint="finish again when the writers are done",
        )
    strange = [name for name in parts if name not in expected]
    if strange:
        raise RefusedError(
            f"batch {request.batch!r} also has {_several('part', strange)}, which is not expected",
            hint="finish with the parts you expect, or with none",
        )


def _several(what: str, names: Iterable[str]) -> str:
    return f"{what} {', '.join(map(repr, names))}"


class _Finish:
    """One try to finish a batch, with the parts it has by then."""

    def __init__(self, engine: Engine, artifact: Artifact | None, request: FinishRequest, progress: Progress) -> None:
        self.engine, self.artifact, self.request, self.progress = engine, artifact, request, progress
        self.decision = Decision()
        self.tree = Tree(b"", 0, 0)
        self.own = b""
        self.name = CollectionName("", "", "")
        self.parts: Parts = {}

    def run(self) -> tuple[CollectionName, LogResult]:
        """Merge, and commit. Raises `_Unchecked` if the parts are others by then."""
        self.writer = writer = Writer(self.engine)
        try:
            session = self._read()
            with self.engine.foresee(lambda _: ()) as tables:
                _, self.parts = _gather(tables, self.request, self.artifact)
            self._merge(session)
            done = writer.commit(self._records, lambda missing: self._restore(session, missing))
        except _Done as finished:
            writer.abandon()
            return self._again(finished.batch)
        except BaseException:
            writer.abandon()
            raise
        if session is not None:
            session.cache.flush()
        assert done is not None
        decision = self.decision
        number = done.numbers[0] if decision.number is None else decision.number
        created = decision.number is None
        result = LogResult(
            number,
            created,
            self.tree.root,
            writer.new_bytes if created else 0,
            writer.stored_bytes if created else 0,
            decision.latest_before,
            decision.ignored,
        )
        return self.name, result

    def _read(self) -> Session | None:
        """Read the finisher's own files. Their tree is not stored: it is not that of the version."""
        if self.artifact is None:
            return None
        session = Session(self.engine, self.writer, self.artifact, self.progress)
        session.sink = lambda data, _: self.engine.hash(data)
        session.run()
        self.own = session.tree.root
        return session

    def _merge(self, session: Session | None) -> None:
        engine = self.engine
        parts: list[Listing] = [TreeListing(f"part {p.name!r}", p.root, engine.node) for p in self.parts.values()]
        if session is not None:
            parts.append(_DraftListing("the finisher's artifact", session))
        try:
            self.tree = write_entries(self._counted(merged(parts)), engine.config.node_bytes, self.writer.put_node)
        except IntegrityError:
            with engine.foresee(lambda _: ()) as tables:
                _gather(tables, self.request, self.artifact)  # says so if a part was let go of meanwhile
            raise

    def _counted(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        total = sum(part.file_count for part in self.parts.values())
        for number, entry in enumerate(entries, 1):
            if number % 1000 == 0:
                self.progress("merge", number, total)
            yield entry

    def _restore(self, session: Session | None, missing: set[bytes]) -> None:
        if session is not None:
            session.read_again(missing)
        self._merge(session)
        lost = [digest for digest in missing if not self.writer.has(digest)]
        if lost:
            raise ConflictError(
                f"{len(lost)} chunks of batch {self.request.batch!r} were collected or damaged meanwhile",
                hint="upsert the parts again; casstore fsck --read-data",
            )

    def _said(self) -> tuple[str | None, JsonMap | None]:
        """Description and metadata of the version: what was asked for, else those of the artifact."""
        request, given = self.request, self.artifact
        description, metadata = request.description, request.metadata
        if given is not None:
            description = given.description if description is None else description
            metadata = given.metadata if metadata is None else metadata
        return description, metadata

    def _asked(self) -> bytes:
        """A digest of what was asked for: finishing again is fine if it is the same."""
        labels, expected = self.request.labels, self.request.expected
        description, metadata = self._said()
        values = [
            self.own.hex(),
            sorted(labels.aliases),
            labels.move_latest,
            sorted(labels.tags),
            labels.ttl,
            labels.dedup,
            labels.update,
            description or "",
            canonical_metadata(metadata).decode(),
            labels.attrs.decode(),
            sorted(expected) if isinstance(expected, tuple) else expected,
        ]
        return seal(json.dumps(values).encode())

    def _records(self, tables: Tables) -> Sequence[Record]:
        request = self.request
        if self.artifact is not None:
            check_references(self.artifact, in_force(tables).reference_roots)
        batch, parts = _gather(tables, request, self.artifact)
        if {name: p.root for name, p in parts.items()} != {name: p.root for name, p in self.parts.items()}:
            raise _Unchecked(())
        self.name = CollectionName.parse(batch.name)
        said = Artifact(self.name.name, batch.type, *self._said())
        log = replace(request.labels, collection=self.name)
        metadata = canonical_metadata(said.metadata)
        found = version_records(tables, said, log, self.tree, metadata, self.decision)
        records = list(found or ())
        hit = self.decision.number
        actor = self.engine.runtime.actor
        names = tuple(parts)
        digests = tuple(part.root for part in parts.values())
        records.append(
            FinishParts(batch.name, batch.batch, names, digests, self._asked(), actor, -1 if hit is None else hit)
        )
        if log.admit is not None:
            log.admit(tables, self.writer.pending_bytes)
        return records

    def _again(self, batch: BatchRow) -> tuple[CollectionName, LogResult]:
        """What it became, if that is what was asked for again."""
        with self.engine.foresee(lambda _: ()) as tables:
            version = _version(tables, batch)
            name = CollectionName.parse(collection_name(tables, batch.collection))
        if batch.asked != self._asked():
            raise ArtifactFinalizedError(
                f"batch {batch.batch!r} was finished otherwise: it is {version}",
                hint=f"casstore show {version}",
            )
        return name, LogResult(batch.number, False, b"")


# --- abort ---------------------------------------------------------------------------------------


def abort(engine: Engine, name: CollectionName | None, batch: str, reason: str) -> BatchInfo:
    """Give a batch up, in one commit: what only its parts keep is garbage then. Returns it as it was.

    One that is aborted already is left as it is. Raises `NotFoundError`, `ArtifactFinalizedError`.
    """
    before: BatchInfo | None = None

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal before
        found = _known(tables, name, batch)
        before = _info(engine, tables, found)
        if found.state == ABORTED:
            return ()
        _check_open(tables, found)
        return (AbortParts(found.name, found.batch, reason, engine.runtime.actor),)

    engine.commit(build)
    assert before is not None
    return before if before.state == STATES[ABORTED] else replace(before, state=STATES[ABORTED], reason=reason)


# --- arguments -----------------------------------------------------------------------------------


def check_lease(lease: object) -> timedelta:
    """A lease. Raises `InvalidInputError`."""
    if not isinstance(lease, timedelta) or not timedelta(0) < lease <= LONGEST:
        raise InvalidInputError(f"lease={lease!r} is not valid", hint="a timedelta up to a hundred years")
    return lease


def check_expected(expected: object, check: Callable[[object], str]) -> int | tuple[str, ...] | None:
    """The number of parts, or their names. Raises `InvalidInputError`."""
    if expected is None:
        return None
    if isinstance(expected, int) and not isinstance(expected, bool) and expected > 0:
        return expected
    if isinstance(expected, Iterable) and not isinstance(expected, str | bytes):
        names = tuple(dict.fromkeys(check(name) for name in expected))
        if names:
            return names
    raise InvalidInputError(
        f"expected_parts={expected!r:.200} is not valid", hint="how many parts there are, or a list of their names"
    )
