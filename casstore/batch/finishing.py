"""All parts of a batch, and the finisher's own files, on their way to be one version."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from casstore.artifact import Artifact
from casstore.batch.looking import check_open, check_type, find_batch, pin_of, version_of
from casstore.batch.parts import DraftListing, PartsChangedError
from casstore.digest import seal
from casstore.engine import Engine
from casstore.errors import (
    ArtifactFinalizedError,
    CasstoreError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LeaseLostError,
    RefusedError,
    StoreBusyError,
)
from casstore.ingest import Decision, LogRequest, LogResult, check_references, home, version_records
from casstore.merging import Listing, TreeListing, merged
from casstore.model import BatchRow, Entry, FinishParts, JsonMap, PartRow, Progress, Record, no_progress
from casstore.names import CollectionName, canonical_metadata
from casstore.overlay import Tables
from casstore.patterns import pattern
from casstore.policy import in_force
from casstore.reading import Session
from casstore.state import FINISHED
from casstore.tree import Tree, write_entries
from casstore.values import dataclass
from casstore.view import parts_of
from casstore.writer import ROUNDS, Writer

Parts = Mapping[str, PartRow]


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


class _Done(CasstoreError):
    """The batch is finished."""

    def __init__(self, batch: BatchRow) -> None:
        super().__init__("the batch is finished")
        self.batch = batch


def finish(
    engine: Engine, artifact: Artifact | None, request: FinishRequest, progress: Progress = no_progress
) -> LogResult:
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
        except PartsChangedError:
            continue
    raise StoreBusyError(f"parts came in {ROUNDS} times in a row", hint="finish when all writers are done")


def destination(engine: Engine, request: FinishRequest) -> tuple[CollectionName | None, str]:
    """The collection of the version that a batch makes, and its type; None and "" if there is no such batch."""
    with engine.foresee(lambda _: ()) as tables:
        batch = find_batch(tables, request.collection, request.batch)
        return (None, "") if batch is None else (CollectionName.parse(batch.name), batch.type)


def _gather(tables: Tables, request: FinishRequest, artifact: Artifact | None) -> tuple[BatchRow, dict[str, PartRow]]:
    """The batch and its parts, all that are expected, each held. Raises `_Done` if it is finished."""
    batch = find_batch(tables, request.collection, request.batch)
    if batch is not None and batch.state == FINISHED:
        raise _Done(batch)
    if batch is None:
        _check_expected(request, {})
        raise ConflictError(
            f"batch {request.batch!r} has no parts", hint="finish when the writers have upserted; casstore pending ls"
        )
    check_open(tables, batch)
    if artifact is not None:
        check_type(batch, artifact)
    parts = {part.name: part for part in parts_of(tables, batch)}
    _check_expected(request, parts)
    lost = [name for name, part in parts.items() if pin_of(tables, part) is None]
    if lost:
        raise LeaseLostError(
            f"{_several('part', lost)} of batch {request.batch!r} was let go of, and may be collected",
            hint="upsert it again, with the same content",
        )
    home(tables, CollectionName.parse(batch.name), batch.type)
    return batch, parts


_COUNTED = pattern(r"(|.*\D)(0|[1-9][0-9]{0,8})")
SHOWN = 20
"""names of missing parts in a message"""


def _counted(parts: Parts, expected: int) -> str:
    """Which parts must be missing if those here are some of ``p0``, ``p1``, …; empty if they are not."""
    found = [_COUNTED.fullmatch(name) for name in parts]
    numbers = {int(match[2]) for match in found if match is not None}
    prefixes = {None if match is None else match[1] for match in found}
    if len(prefixes) != 1 or None in prefixes or max(numbers) >= expected:
        return ""
    (prefix,) = prefixes
    absent = (n for n in range(expected) if n not in numbers)
    names = ", ".join(repr(f"{prefix}{n}") for n in islice(absent, SHOWN))
    return f"; counted from 0, {names}{', …' if expected - len(numbers) > SHOWN else ''} would be missing"


def _check_expected(request: FinishRequest, parts: Parts) -> None:
    expected = request.expected
    if expected is None:
        return
    here = f"those here are {', '.join(map(repr, parts))}" if parts else "none is here"
    if isinstance(expected, int):
        missing = expected - len(parts)
        if missing > 0:
            here += _counted(parts, expected)
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

    def run(self) -> LogResult:
        """Merge, and commit. Raises `PartsChangedError` if the parts are others by then."""
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
        return LogResult(
            decision.collection,
            number,
            created,
            self.tree.root,
            writer.new_bytes if created else 0,
            writer.stored_bytes if created else 0,
            decision.latest_before,
            decision.ignored,
        )

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
            parts.append(DraftListing("the finisher's artifact", session))
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
            raise PartsChangedError(())
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

    def _again(self, batch: BatchRow) -> LogResult:
        """What it became, if that is what was asked for again."""
        with self.engine.foresee(lambda _: ()) as tables:
            version = version_of(tables, batch)
        if batch.asked != self._asked():
            raise ArtifactFinalizedError(
                f"batch {batch.batch!r} was finished otherwise: it is {version}", hint=f"casstore show {version}"
            )
        return LogResult(batch.collection, batch.number, False, b"")


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
