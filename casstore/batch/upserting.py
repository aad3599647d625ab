"""A part on its way into its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from casstore.artifact import Artifact
from casstore.batch.looking import PartInfo, check_open, check_type, find_batch, part_info, pin_of
from casstore.batch.parts import DraftListing, PartsChangedError
from casstore.engine import Engine
from casstore.errors import IntegrityError, InvalidInputError, StoreBusyError, UpsertConflictError
from casstore.ingest import check_references, home
from casstore.merging import TreeListing, check_pair
from casstore.model import BatchRow, PartRow, Progress, Record, UpsertPart, no_progress
from casstore.names import CollectionName
from casstore.overlay import Tables
from casstore.pin import ID_BYTES, LONGEST, expiry, holder
from casstore.policy import in_force
from casstore.reading import Session
from casstore.state import OPEN
from casstore.values import dataclass
from casstore.view import parts_of
from casstore.writer import ROUNDS, Writer


@dataclass(frozen=True, slots=True)
class UpsertRequest:
    """What the caller of ``upsert`` asked for, checked. ``part`` None: named after its content."""

    collection: CollectionName
    batch: str
    part: str | None
    lease: timedelta
    admit: Callable[[Tables, int], None]


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
    batch = find_batch(tables, request.collection, request.batch)
    if batch is not None:
        check_open(tables, batch)
        check_type(batch, artifact)
    home(tables, request.collection if batch is None else CollectionName.parse(batch.name), artifact.type)
    return batch


class _Upsert:
    """One part on its way into its batch."""

    def __init__(
        self, engine: Engine, writer: Writer, session: Session, artifact: Artifact, request: UpsertRequest
    ) -> None:
        self.engine, self.writer, self.session = engine, writer, session
        self.artifact, self.request = artifact, request
        self.part = str(engine.digest(session.tree.root)) if request.part is None else request.part
        self.listing = DraftListing(f"part {self.part!r}", session)
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
            except PartsChangedError as unchecked:
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
        return part_info(self.engine, batch, rows.get(self.part, row))

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
        if known is not None and pin_of(tables, known) is None:
            known = None
        if known is None:
            # One that was let go is compared when it is stored again.
            others = [part for part in parts if part.name != self.part and pin_of(tables, part) is not None]
            unchecked = [part for part in others if part.root not in self.agreed]
            if unchecked:
                raise PartsChangedError(unchecked)
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
                    if pin_of(tables, other) is not None:
                        raise
            else:
                self.agreed.add(other.root)


def check_lease(lease: object) -> timedelta:
    """A lease. Raises `InvalidInputError`."""
    if not isinstance(lease, timedelta) or not timedelta(0) < lease <= LONGEST:
        raise InvalidInputError(f"lease={lease!r} is not valid", hint="a timedelta up to a hundred years")
    return lease
