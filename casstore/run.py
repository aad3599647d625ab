"""Runs and declared uses, as users hold them. Each change is one commit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from casstore import catalogue, lineage, pin
from casstore.artifact import Artifact
from casstore.catalogue import Found
from casstore.engine import Engine
from casstore.errors import (
    AlreadyExistsError,
    CasstoreError,
    InvalidInputError,
    InvalidNameError,
    NotFoundError,
    UseCancelledError,
    VersionNotFoundError,
)
from casstore.format.rows import decode_row
from casstore.handles import EntryReader
from casstore.identity import found_in, ulid
from casstore.lineage import RunRecord, known_run, run_row
from casstore.model import DeleteRun, EndUse, Entry, PutRun, Record, RunRow, UseRow, UseVersion
from casstore.names import LATEST, MAX_LABEL, canonical_host_attrs, check_description, check_name, check_words
from casstore.overlay import Tables
from casstore.state import ACTIVE, ENDED, RUNNING, USE, use_key
from casstore.version import Version
from casstore.view import collection_name

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as WritableBuffer

FINISHED, FAILED = "finished", "failed"
DELETED = "deleted"
USE_ONLY = "use"
"""job type of a run that was made for one use"""

Log = Callable[..., Version]
"""`Store.log_artifact`"""


class Run:
    """A run: it logs and uses versions. What it is and does is in the log; nothing executes here. Thread-safe.

    A context manager: leaving the block finishes it, as ``failed`` on an exception; its uses end with it. Properties
    are looked up at the head of the log, and raise `NotFoundError` once the run was deleted.
    """

    def __init__(self, engine: Engine, id: str, log: Log) -> None:
        self._engine = engine
        self._id = id
        self._log = log

    def __repr__(self) -> str:
        return f"<Run {self._id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and (self._engine.config.store_id, self._id) == (
            other._engine.config.store_id,
            other._id,
        )

    def __hash__(self) -> int:
        return hash(self._id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(NotFoundError):  # somebody deleted it: there is nothing left to finish
                self.finish(FINISHED if error is None else FAILED)
        except CasstoreError:
            if error is None:
                raise

    # --- what it is

    @property
    def id(self) -> str:
        """Its id in this store."""
        return self._id

    @property
    def record(self) -> RunRecord:
        """All that is known of it, at the head of the log."""
        return lineage.get_run(self._engine, self._id)

    @property
    def name(self) -> str:
        """What people call it; the id if nobody said."""
        return self.record.name

    @property
    def job_type(self) -> str:
        """What kind of work it is."""
        return self.record.job_type

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``failed``, or what `finish` was told."""
        return self.record.status

    @property
    def attrs(self) -> dict[str, object]:
        """What the host keeps with it."""
        return dict(self.record.attrs)

    def update(self, attrs: Mapping[str, object], *, merge: bool = True) -> None:
        """Change `attrs`; ``merge`` adds keys instead of replacing them all. At most 64 KiB of JSON."""
        canonical_host_attrs(attrs)

        def build(tables: Tables) -> tuple[Record, ...]:
            row = known_run(tables, self._id)
            found = _with_attrs(row, {**_attrs(row), **attrs} if merge else attrs)
            return () if found == row else (_record(self._id, found, self._engine.runtime.actor),)

        self._engine.commit(build)

    def finish(self, status: str = FINISHED) -> None:
        """End it, and its uses. Of a run that has ended nothing changes. Raises `NotFoundError`."""
        end(self._engine, self._id, status)

    # --- what it does

    def log(
        self,
        artifact: Artifact,
        aliases: Sequence[str] = (LATEST,),
        *,
        step: int | None = None,
        attrs: Mapping[str, object] | None = None,
        **options: object,
    ) -> Version:
        """`Store.log_artifact`, as an output of this run, with the same keywords.

        A version that is there already with this content is an output of it, too. ``step``: kept in ``attrs`` as
        ``history_step``. Raises `RefusedError` once the run has ended, `NotFoundError` if it was deleted.
        """
        if step is not None:
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise InvalidInputError(f"step={step!r} is not a number of steps", hint="a whole number from 0")
            attrs = {**(attrs or {}), "history_step": step}
        return self._log(artifact, aliases=aliases, attrs=attrs, run=self._id, **options)

    log_artifact = log

    def use(
        self,
        what: str | Version | Artifact,
        purpose: str = "",
        type: str | None = None,  # noqa: A002 - the word of FEATURES
    ) -> Use:
        """Declare that this run uses a version: by reference, as an object, or a draft, which is logged first.

        A use is readable as the version is, until the version goes to the trash: that cancels it. The same version
        again, by the same run, is the same use, and takes no commit if the purpose is the same. Raises
        `VersionNotFoundError`, `RefusedError` once the run has ended, `InvalidInputError` for another ``type``.
        """
        return declare(self._engine, self._found(what, type), check_description(purpose), run=self._id)

    def use_artifact(self, what: str | Version | Artifact, type: str | None = None, purpose: str = "") -> Use:  # noqa: A002
        """`use`, by the name and with the order of arguments it has in W&B."""
        return self.use(what, purpose, type)

    def _found(self, what: str | Version | Artifact, kind: str | None) -> Found:
        if isinstance(what, Artifact):
            _check_type(what.name, what.type, kind)
            what = self.log(what)
        found = found_for(self._engine, what)
        _check_type(found.label, found.version.type, kind)
        return found

    def outputs(self, include_trashed: bool = False) -> list[Version]:  # noqa: FBT001, FBT002
        """The versions it logged, by collection and number; purged ones are never among them."""
        found = lineage.outputs(self._engine, self._id, include_trashed=include_trashed)
        return [Version(self._engine, one) for one in found]

    def inputs(self, include_trashed: bool = False) -> list[Version]:  # noqa: FBT001, FBT002
        """The versions it used, by collection and number; purged ones are never among them."""
        found = lineage.inputs(self._engine, self._id, include_trashed=include_trashed)
        return [Version(self._engine, one) for one in found]

    logged_artifacts = outputs
    used_artifacts = inputs


def _check_type(label: str, kind: str, wanted: str | None) -> None:
    if wanted is not None and kind != wanted:
        raise InvalidInputError(f"{label} has type {kind!r}, not {wanted!r}", hint="leave out type")


def id_in(engine: Engine, run: object) -> str:
    """The id that a run of this store, or its id, stands for. Raises `InvalidInputError`."""
    if isinstance(run, Run):
        if run._engine.config.store_id != engine.config.store_id:  # noqa: SLF001 - same module
            raise InvalidInputError(f"run {run.id} is in another store", hint="start one in this store")
        return run.id
    return check_name(run, "run id")


def found_for(engine: Engine, what: object) -> Found:
    """The version that a reference or a version object of this store means. Raises `InvalidInputError`."""
    if isinstance(what, str):
        return catalogue.lookup(engine, what)
    if not isinstance(what, Version):
        raise InvalidInputError(f"{what!r:.100} is no reference, version or artifact", hint="'ds:v0'")
    return found_in(engine, what)


# --- runs ----------------------------------------------------------------------------------------


def start(
    engine: Engine,
    log: Log,
    *,
    id: str | None,
    name: str | None,
    job_type: str | None,
    attrs: Mapping[str, object] | None,
) -> Run:
    """Start a run, or go on with one of this id that is running. Raises `AlreadyExistsError` if that has ended."""
    run = new_id(engine) if id is None else check_name(id, "run id")
    given = _checked(name, job_type, attrs)

    def build(tables: Tables) -> tuple[Record, ...]:
        row = run_row(tables, run)
        if row is not None and row.status != RUNNING:
            raise AlreadyExistsError(f"run {run} has ended: {row.status}", hint="choose another id")
        new = _begun(run, row, given)
        return () if new == row else (_record(run, new, engine.runtime.actor),)

    engine.commit(build)
    return Run(engine, run, log)


def new_id(engine: Engine) -> str:
    """An id for a run: a ULID, so that ids are in the order of time."""
    return ulid(engine.runtime.now() // 1000, engine.runtime.random_bytes(10))


_Given = tuple[str | None, str | None, Mapping[str, object] | None]


def _checked(name: str | None, job_type: str | None, attrs: Mapping[str, object] | None) -> _Given:
    if attrs is not None:
        canonical_host_attrs(attrs)
    return (
        None if name is None else check_words(name, "run name"),
        None if job_type is None else check_words(job_type, "job type"),
        attrs,
    )


def _begun(run: str, row: RunRow | None, given: _Given) -> RunRow:
    """A run as it begins, or goes on: what is given replaces what was."""
    name, job_type, attrs = given
    old = row or RunRow(run, "", RUNNING, b"{}", "", 0, 0, 0)
    known = replace(
        old, name=old.name if name is None else name, job_type=old.job_type if job_type is None else job_type
    )
    return known if attrs is None else _with_attrs(known, {**_attrs(known), **attrs})


def _attrs(row: RunRow) -> dict[str, object]:
    attrs: dict[str, object] = json.loads(row.attrs)
    return attrs


def _with_attrs(row: RunRow, attrs: Mapping[str, object]) -> RunRow:
    return replace(row, attrs=canonical_host_attrs(attrs))


def _record(run: str, row: RunRow, actor: str, status: str | None = None) -> PutRun:
    return PutRun(run, row.name, row.job_type, status or row.status, row.attrs, actor)


def end(engine: Engine, run: str, status: str) -> None:
    """End a run and its uses; see `Run.finish`. Raises `InvalidInputError`, `NotFoundError`."""
    check_name(run, "run id")
    check_name(status, "status")
    if status in {RUNNING, DELETED}:
        raise InvalidNameError(f"status {status!r} does not end a run", hint="finished, failed, or a word of your own")

    def build(tables: Tables) -> tuple[Record, ...]:
        row = known_run(tables, run)
        return () if row.status != RUNNING else (_record(run, row, engine.runtime.actor, status),)

    engine.commit(build)


def delete(engine: Engine, run: str) -> None:
    """Forget what is said of a run; its versions are not touched. Raises `NotFoundError`."""
    check_name(run, "run id")

    def build(tables: Tables) -> tuple[Record, ...]:
        known_run(tables, run)
        return (DeleteRun(run, engine.runtime.actor),)

    engine.commit(build)


# --- uses ----------------------------------------------------------------------------------------


def declare(engine: Engine, found: Found, purpose: str, *, run: str, begin: bool = False) -> Use:
    """Record that a run uses a version; with ``begin`` the run begins by that and is for nothing else.

    Nothing is committed if it does so already, for the same purpose.
    """
    known: int | None = None

    def build(tables: Tables) -> tuple[Record, ...]:
        nonlocal known
        beginning: list[Record] = []
        if begin:
            beginning.append(PutRun(run, purpose[:MAX_LABEL] or run, USE_ONLY, RUNNING, b"{}", engine.runtime.actor))
        else:
            lineage.running(tables, run)
        live = catalogue.still_there(tables, found)
        row = _row(tables, run, live)
        known = row.seq if row is not None and row.state == ACTIVE else None
        if known is not None and row is not None and row.purpose == purpose:
            return ()
        use = UseVersion(
            run, live.collection.name, live.version.number, purpose, pin.holder(engine.runtime), engine.runtime.actor
        )
        return (*beginning, use)

    done = engine.commit(build)
    seq = known
    if seq is None:
        assert done is not None
        seq = done.seq
    return Use(engine, found, run, purpose, seq, own_run=begin)


def use_alone(engine: Engine, what: str | Version, purpose: str, kind: str | None) -> Use:
    """A use without a run of its own; see `Store.use`."""
    found = found_for(engine, what)
    _check_type(found.label, found.version.type, kind)
    return declare(engine, found, check_description(purpose), run=new_id(engine), begin=True)


def _row(tables: Tables, run: str, found: Found) -> UseRow | None:
    row = tables.get(USE, use_key(run, found.collection.id, found.version.number))
    return None if row is None else decode_row(row, UseRow)


def _home(tables: Tables, found: Found) -> str:
    """The name of its collection by now."""
    return collection_name(tables, found.collection.id)


class _UseFile(io.BufferedReader):
    """A file of a version that can be read until the use is cancelled. Each call asks, not only each buffer."""

    def __init__(self, file: BinaryIO, check: Callable[[], None]) -> None:
        super().__init__(file)  # type: ignore[arg-type]  # any file will do
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        self._check()
        return super().read1(size)

    def readinto(self, buffer: WritableBuffer, /) -> int:
        self._check()
        return super().readinto(buffer)

    def readinto1(self, buffer: WritableBuffer, /) -> int:
        self._check()
        return super().readinto1(buffer)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().readline(size)

    def peek(self, size: int = 0, /) -> bytes:
        self._check()
        return super().peek(size)


class _UseReader(EntryReader):
    """Reads entries of a version for as long as its use is not cancelled."""

    def __init__(self, engine: Engine, found: Found, check: Callable[[], None]) -> None:
        super().__init__(engine, found)
        self._check = check

    def read(self, entry: Entry, offset: int, length: int | None) -> bytes:
        """See `BlobReader.read`."""
        self._check()
        return super().read(entry, offset, length)

    def open(self, entry: Entry) -> BinaryIO:
        """See `BlobReader.open`."""
        self._check()
        return _UseFile(super().open(entry), self._check)

    def download(self, entry: Entry, root: str | None) -> str:
        """See `BlobReader.download`."""
        self._check()
        return super().download(entry, root)


class Use(Version):
    """A version in use by a run. A context manager: leaving the block ends the use. Thread-safe.

    When the version goes to the trash, whoever sends it there and by whatever route, the use is cancelled: from then on
    everything that reads raises `UseCancelledError`, also in other processes, and a restore does not revive it; another
    `Run.use` is another use. Once it has ended, by `end` or with its run, this reads as a plain `Version`.
    """

    def __init__(self, engine: Engine, found: Found, run: str, purpose: str, seq: int, *, own_run: bool) -> None:
        super().__init__(engine, found)
        self._run = run
        self._purpose = purpose
        self._seq = seq
        self._own_run = own_run
        self._ended = False
        self._good_at = -1
        """a position of the log at which it was not cancelled; readers ask often"""

    def __repr__(self) -> str:
        return f"<Use of {self.qualified_name} by {self._run}>"

    @property
    def run(self) -> str:
        """The id of the run that uses it."""
        return self._run

    @property
    def purpose(self) -> str:
        """What for."""
        return self._purpose

    @property
    def cancelled(self) -> bool:
        """Whether the version was sent to the trash while it was used; looked up at the head of the log."""
        if self._ended:
            return False
        head = self._engine.view.refresh().seq
        if head == self._good_at:
            return False
        with self._engine.view.read() as tables:
            row = _row(tables, self._run, self._found)
        # Another position: it is used again since. As this use was not ended here, it was cancelled before that.
        gone = row is not None and (row.state not in {ACTIVE, ENDED} or row.seq != self._seq)
        self._good_at = self._good_at if gone else head
        return gone

    def check(self) -> None:
        """Raise `UseCancelledError` if the use was cancelled."""
        if self.cancelled:
            purpose = f" for {self._purpose}" if self._purpose else ""
            raise UseCancelledError(
                f"the use of {self.ref}{purpose} by run {self._run} was cancelled: the version was deleted",
                hint=f"stop; or casstore trash restore {self.ref}, and use it again",
            )

    def end(self) -> None:
        """End the use. One that has ended or was cancelled stays as it is."""
        if self._ended:
            return
        engine, found, run = self._engine, self._found, self._run
        mine = False

        def build(tables: Tables) -> tuple[Record, ...]:
            nonlocal mine
            row, owner = _row(tables, run, found), run_row(tables, run)
            mine = row is not None and row.state == ACTIVE and row.seq == self._seq
            if self._own_run and owner is not None and owner.status == RUNNING:
                return (_record(run, owner, engine.runtime.actor, FINISHED if mine else FAILED),)
            return (EndUse(run, _home(tables, found), found.version.number, engine.runtime.actor),) if mine else ()

        engine.commit(build)
        self._ended = mine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end()
        except CasstoreError:
            if error is None:
                raise

    def _check_readable(self) -> None:
        self.check()
        try:
            super()._check_readable()
        except VersionNotFoundError:
            self.check()  # just now
            raise

    def _bind(self, entry: Entry) -> Entry:
        return replace(entry, reader=_UseReader(self._engine, self._found, self.check))

    def __contains__(self, path: object) -> bool:
        self.check()
        return super().__contains__(path)
