"""What hosts track: runs, uses, lineage, events, logs in the background. Every method hands on to its module."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from casstore import catalogue
from casstore.errors import InvalidInputError
from casstore.model import VersionState
from casstore.names import check_name, parse_reference
from casstore.state import current_name
from casstore.upkeep import StoreUpkeep
from casstore.version import Version
from casstore.view import collection_named

if TYPE_CHECKING:
    from casstore.artifact import Artifact
    from casstore.events import Callback, Event
    from casstore.lineage import Lineage, Place, RunRecord, UseRecord
    from casstore.run import Run, Use
    from casstore.submission import Submission


class StoreTracking(StoreUpkeep):
    """What is done with versions, and what becomes of them."""

    def _log(self, artifact: Artifact, **options: object) -> Version:
        """`Store.log_artifact`."""
        raise NotImplementedError

    # --- runs

    def run(
        self,
        name: str | None = None,
        job_type: str | None = None,
        attrs: Mapping[str, object] | None = None,
        id: str | None = None,
    ) -> Run:
        """Start a run; as a context manager it ends with the block. One of this ``id`` that is running goes on.

        ``name`` and ``job_type``: any text up to 128 characters; without a name it is called by its id, which is a
        ULID by default. ``attrs``: up to 64 KiB of JSON. What is given of a run that goes on replaces what was said of
        it (of ``attrs``: key by key). Raises `AlreadyExistsError` for the id of a run that has ended or was deleted.
        """
        from casstore.run import start

        return start(self._engine, self._log, id=id, name=name, job_type=job_type, attrs=attrs)

    def runs(self, status: str | None = None, job_type: str | None = None) -> list[RunRecord]:
        """Runs in the order they were started: all, or those of a status (``running``, …) or job type."""
        from casstore.lineage import runs

        return runs(self._engine, status, job_type)

    def get_run(self, id: str) -> RunRecord:
        """What is known of a run. Raises `NotFoundError`, `InvalidNameError`."""
        from casstore.lineage import get_run

        return get_run(self._engine, id)

    def finish_run(self, id: str, status: str = "finished") -> RunRecord:
        """End a run by its id, and its uses, as when its process was killed. One that has ended stays as it is."""
        from casstore.run import end

        end(self._engine, id, status)
        return self.get_run(id)

    def delete_run(self, id: str) -> None:
        """Forget what is said of a run: name, attrs. Its versions are not touched, its uses end, its id stays taken.

        It can still be seen in the lineage of its versions, as deleted. Raises `NotFoundError`.
        """
        from casstore.run import delete

        delete(self._engine, id)

    def run_outputs(self, id: str, include_trashed: bool = False) -> list[Version]:  # noqa: FBT001, FBT002 - as `Run.outputs`
        """What a run logged; see `Run.outputs`. Raises `NotFoundError`."""
        return self._run_called(id).outputs(include_trashed)

    def run_inputs(self, id: str, include_trashed: bool = False) -> list[Version]:  # noqa: FBT001, FBT002
        """What a run used; see `Run.inputs`. Raises `NotFoundError`."""
        return self._run_called(id).inputs(include_trashed)

    def _run_called(self, id: str) -> Run:
        from casstore.run import Run

        return Run(self._engine, check_name(id, "run id"), self._log)

    def uses(self, ref: str) -> list[UseRecord]:
        """`Version.uses` by reference; also of a version in the trash, or purged."""
        from casstore.lineage import uses

        found = catalogue.lookup(self._engine, ref, expired=True, states=tuple(VersionState))
        return uses(self._engine, found)

    def use(self, what: str | Version, purpose: str = "", type: str | None = None) -> Use:  # noqa: A002
        """Declare a use of a version by this process alone; see `Run.use`.

        A run of job type ``use`` stands for it, and ends with it. Of a process that was killed it stays, until
        `finish_run` ends it.
        """
        from casstore.run import use_alone

        return use_alone(self._engine, what, purpose, type)

    def _run_id(self, run: Run | str | None) -> str:
        """What ``run=`` of a log means, and that it can log. Raises `NotFoundError`, `RefusedError`."""
        if run is None:
            return ""
        from casstore.lineage import running
        from casstore.run import id_in

        id = id_in(self._engine, run)
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            running(tables, id)
        return id

    # --- lineage

    def lineage(
        self,
        of: str | Version | Run | RunRecord,
        depth: int | None = None,
        direction: str = "both",
    ) -> Lineage:
        """Where a version or run comes from and what came of it, as a graph; deleted ones are in it as tombstones.

        ``of``: a reference (also to a version in the trash, or purged), a version, a run, or the id of one: where
        there is a collection of that name, that is meant. ``direction``: ``up`` is what it comes from, ``down`` what
        came of it, ``both`` is both, but not what else came of its sources. ``depth``: edges from it at most.
        """
        from casstore.lineage import RunRecord, graph
        from casstore.run import Run, found_for

        engine = self._engine
        start: Place | str
        if isinstance(of, Run | RunRecord):
            start = of.id
        elif isinstance(of, Version):
            found = found_for(engine, of)
            start = (found.collection.id, found.version.number)
        elif not isinstance(of, str):
            raise InvalidInputError(f"{of!r:.100} is no reference, version or run", hint="'ds:v0'")
        elif self._is_run(of):
            start = of
        else:
            found = catalogue.lookup(engine, of, expired=True, states=tuple(VersionState))
            start = (found.collection.id, found.version.number)
        return graph(engine, start, depth=depth, direction=direction)

    def _is_run(self, text: str) -> bool:
        from casstore.lineage import run_row

        name = parse_reference(text).collection
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            collection = collection_named(tables, current_name(tables, str(name)))
            return collection is None and run_row(tables, text) is not None

    # --- events

    def on_trash(self, callback: Callback) -> Callable[[], None]:
        """Have ``callback(event)`` called for every version that this handle's commits move to the trash.

        Also as part of a collection, by a sweep, a rule, or with its source. Called after the commit is durable, in the
        thread that asked for it, and not under any lock. An exception in it is logged to the logger ``casstore`` and
        changes nothing. Returns a function that ends the subscription; `close` ends it, too, and a pickled copy of the
        store has none. What other handles and processes do: `events`. A version past its time to live is heard of when
        a sweep takes it, not when readers see it no more.
        """
        from casstore import events

        return events.subscribe(self._engine, events.TRASHED, callback)

    def on_restore(self, callback: Callback) -> Callable[[], None]:
        """`on_trash` for versions that come back from the trash."""
        from casstore import events

        return events.subscribe(self._engine, events.RESTORED, callback)

    def on_purge(self, callback: Callback) -> Callable[[], None]:
        """`on_trash` for versions that are given up for good, by hand or by a collection, and links taken away."""
        from casstore import events

        return events.subscribe(self._engine, events.PURGED, callback)

    def events(self, after: int = 0) -> Iterator[Event]:
        """What became of versions behind a position of the log, by whomever; oldest first, a segment at a time.

        To follow a store: handle them all, and go on from what `head` was before. A version may be named twice.
        """
        from casstore.events import events

        return events(self._engine, after)

    # --- in the background

    def submit(self, artifact: Artifact, **options: object) -> Submission[Version]:
        """`log_artifact`, with the same keywords, on a thread started for it. Leave the artifact alone meanwhile.

        `Submission.wait` returns the version, or raises what the log raised. `close` waits for it, and so does an
        interpreter that exits.
        """
        from casstore.submission import Submission

        name = getattr(artifact, "name", "")
        submission = Submission(lambda: self._log(artifact, **options), str(name))
        pending: list[Submission[Version]] = self.__dict__.setdefault("_submissions", [])
        pending[:] = [other for other in pending if not other.done()]
        pending.append(submission)
        submission.start()
        return submission

    def close(self) -> None:
        """Wait for what was submitted, and let go of threads and files. Closing twice is fine."""
        for submission in self.__dict__.pop("_submissions", []):
            submission.join()
        super().close()

    def __getstate__(self) -> dict[str, object]:
        state = super().__getstate__()
        state.pop("_submissions", None)
        return state
