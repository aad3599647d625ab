"""The collector (docs/GC.md): plan, retire, mark, reclaim. `collect` ties them.

Bytes vanish only if two independent algorithms agree: the counts folded from the log say nobody needs them,
and a walk over the trees finds a home elsewhere for everything that is reachable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, field, replace
from datetime import datetime

from casstore.backend import ObjectInfo
from casstore.backend.room import is_full
from casstore.catalogue import due
from casstore.checkpointing import is_due, make_checkpoint
from casstore.config import from_micros, system_micros
from casstore.engine import Engine
from casstore.errors import BackendError
from casstore.expiry import sweep, terms_in_force, tick
from casstore.gc.account import Account, Reason, account_for
from casstore.gc.clearance import check_counts, clear
from casstore.gc.plan import Fate, Limits, PackFate, Plan, make_plan
from casstore.gc.reclaim import condemn_orphans, ended_packs, listed_packs, reclaim
from casstore.gc.retire import Budget, predicted, retire
from casstore.gc.room import ANY_AGE, Room
from casstore.model import GCRun, Progress, Purge, Record, no_progress
from casstore.overlay import Tables
from casstore.statcache import StatCache
from casstore.state import head_of
from casstore.values import dataclass

LAZY, EAGER = 0.5, 0.1
"""share of the index that must be free for a run to write it anew; the latter if bytes are wanted back at once"""
TEMPORARY_AGE = 48 * 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """How to collect. Times in microseconds."""

    dry_run: bool
    grace: int
    orphan_age: int
    limits: Limits
    incremental: bool
    max_bytes: int | None
    max_seconds: float | None
    actor: str
    offline: bool = False
    """have the store alone"""
    executor: Executor | None = None
    """reads nodes for the mark"""
    optimize: bool = False
    """also arrange what is not arranged yet (`casstore.gc.optimize`)"""


@dataclass(slots=True)
class GCReport:
    """What a collection did, or would do (``dry_run``). Sizes are stored bytes unless said otherwise.

    ``freed_bytes``: by which the store got smaller for good: bytes deleted less their content that was copied.
    ``reclaimed_bytes``: bytes deleted. ``repacked_bytes``: bytes written to move live content.
    ``pending_bytes``: free, but kept for the grace, the last of it until ``pending_until``.
    ``examined_bytes``: of packs that were looked at to arrange their content anew, ``optimized_packs`` those that ended
    by it, ``optimized_saved_bytes`` what they had more than the packs in their place: free when they are deleted.
    ``kept_by``: why bytes are still there, each under one reason (`casstore.gc.account`): they add up to the bytes of
    all packs less ``doubled_bytes``, which are in packs in their grace, but whose content is in others by now. With
    what was freed, they add up to what they did before. ``errors``: what is damaged. ``notes``: what else was out of
    the ordinary, such as content that was not moved because the disk is full.
    """

    run_id: str
    dry_run: bool = False
    freed_bytes: int = 0
    freed_chunks: int = 0
    retired_packs: int = 0
    reclaimed_packs: int = 0
    reclaimed_bytes: int = 0
    repacked_bytes: int = 0
    condemned_packs: int = 0
    examined_bytes: int = 0
    optimized_packs: int = 0
    optimized_saved_bytes: int = 0
    pending_bytes: int = 0
    pending_until: datetime | None = None
    kept_by: dict[str, int] = field(default_factory=dict)
    doubled_bytes: int = 0
    index_bytes: int = 0
    """by which the files of the index got smaller"""
    expired: list[str] = field(default_factory=list)
    """versions past their time to live, moved to the trash"""
    purged: list[str] = field(default_factory=list)
    aborted_batches: list[str] = field(default_factory=list)
    """batches of distributed writers whose lease was over: ``collection id``"""
    marked_nodes: int = 0
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    packs: list[PackFate] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        values = asdict(self)
        values["pending_until"] = None if self.pending_until is None else self.pending_until.isoformat()
        values["packs"] = [
            {
                "pack": fate.pack.hex(),
                "kind": fate.kind.name.lower(),
                "size": fate.size,
                "live": fate.live,
                "dead": fate.dead,
                "fate": str(fate.fate),
                "reason": fate.reason,
            }
            for fate in self.packs
        ]
        return values


def collect(engine: Engine, options: Options, progress: Progress = no_progress) -> GCReport:
    """Free what nobody needs. Safe beside writers and other collectors, and killed at any moment.

    With ``options.offline`` it has the store alone, else raises `StoreBusyError` naming who else is there. On a full
    disk it frees what it can without writing, gives up the ballast, and copies nothing before it has deleted.
    Raises `IntegrityError` (exit 20) when the trees and the counts disagree in a way that could cost data:
    then nothing is deleted.
    """
    run = GCRun(engine.runtime.random_bytes(8), options.actor, engine.view.refresh().seq)
    report = GCReport(run.run.hex(), dry_run=options.dry_run)
    if options.dry_run:
        return _foresee(engine, options, report)
    engine.check_writable()
    with engine.hold("collecting", exclusive=options.offline):
        _Collection(engine, options, run, report, progress).run()
    return report


class _Collection:
    """One collection under way; fills its report."""

    def __init__(self, engine: Engine, options: Options, run: GCRun, report: GCReport, progress: Progress) -> None:
        self.engine, self.options, self.gc_run, self.report, self.progress = engine, options, run, report, progress
        now = engine.runtime.monotonic
        deadline = None if options.max_seconds is None else now() + options.max_seconds
        self.to_retire, self.to_optimize, self.to_delete = (
            Budget(options.max_bytes, deadline, now),
            Budget(options.max_bytes, deadline, now),
            Budget(options.max_bytes, deadline, now),
        )
        self.room = Room(engine, lambda: self._delete() > 0)
        self.walked = False
        self.unmoved: list[PackFate] = []
        """packs whose content was not moved for want of room, as of the last pass"""

    def run(self) -> None:
        """All of it. Begins again, deleting before it copies, when the disk turns out to be full."""
        engine, options, report, room = self.engine, self.options, self.report, self.room
        if not options.incremental:
            check_counts(engine, report.errors, self.progress, walk=False)
        room.insist(self._once)
        if (room.tight or self.unmoved) and report.reclaimed_packs:
            room.tight = False
            self._if_there_is_room(self._once)
        _explain_rest(engine, options, report)
        _sweep_temporary(engine, options)
        room.restore()
        self._if_there_is_room(lambda: _sum_up(engine, self.gc_run, report))
        self._if_there_is_room(self._checkpoint)
        self._if_there_is_room(self._compact)
        report.notes += room.notes
        report.notes += [
            f"pack {fate.pack.hex()} is not repacked: there is no room to copy it" for fate in self.unmoved
        ]

    def _checkpoint(self) -> None:
        if is_due(self.engine):
            make_checkpoint(self.engine, self.progress)

    def _compact(self) -> None:
        limits = self.options.limits
        eager = limits.compact or limits.store_waste is not None
        if eager:
            StatCache(self.engine.view, self.engine.runtime).forget_gone(self.report.freed_chunks)
        self.report.index_bytes = self.engine.view.compact(EAGER if eager else LAZY)

    def _if_there_is_room(self, work: Callable[[], None]) -> None:
        """What may be left for the next run."""
        try:
            work()
        except BackendError as error:
            if not is_full(error):
                raise
            self.room.notes.append(f"left for the next run: {error.message}")

    def _once(self) -> None:
        """End packs in the log, then delete those whose grace is over."""
        engine, options, report = self.engine, self.options, self.report
        report.expired += _expire_due(engine, self.gc_run)
        purged, aborted = _purge_due(engine, self.gc_run)
        report.purged += purged
        report.aborted_batches += aborted
        plan = _plan(engine, options)
        idle = plan.idle and not options.optimize
        if not (idle or options.incremental or self.walked or options.grace <= 0):
            # What is ended now is deleted by a run to come; who walks right before deleting need not walk here.
            report.marked_nodes = check_counts(engine, report.errors, self.progress, options.executor)
            self.walked = True
            plan = _plan(engine, options)
        report.packs = [*{fate.pack: fate for fate in (*report.packs, *plan.fates)}.values()]
        fits = (lambda _: False) if self.room.tight else self.room.fits
        done = retire(engine, plan, self.to_retire, self.gc_run, fits, self.progress)
        report.retired_packs += done.packs
        report.freed_chunks += done.chunks
        report.repacked_bytes += done.copied
        report.errors += [error for error in done.errors if error not in report.errors]
        self.unmoved = done.unmoved
        if options.optimize:
            self._optimize(fits)
        orphans_until = engine.runtime.now() - options.orphan_age if options.orphan_age else ANY_AGE
        report.condemned_packs += len(condemn_orphans(engine, listed_packs(engine), orphans_until, self.gc_run))
        self._delete()

    def _optimize(self, fits: Callable[[int], bool]) -> None:
        """Arrange content anew, after what is garbage has gone."""
        engine, report = self.engine, self.report
        from casstore.gc.optimize import optimize  # noqa: PLC0415 - start-up

        done = optimize(engine, _plan(engine, self.options), self.to_optimize, self.gc_run, fits, self.progress)
        report.examined_bytes += done.examined
        report.optimized_packs += done.moved.packs
        report.optimized_saved_bytes += done.saved
        report.retired_packs += done.moved.packs
        report.freed_chunks += done.moved.chunks
        report.repacked_bytes += done.moved.copied
        report.errors += [error for error in done.moved.errors if error not in report.errors]
        self.unmoved += done.moved.unmoved

    def _delete(self) -> int:
        """Delete ended packs whose grace is over; returns how many. Writes nothing."""
        engine, options, report = self.engine, self.options, self.report
        listed = listed_packs(engine)
        engine.view.refresh()
        ended = ended_packs(engine, listed)
        now = engine.runtime.now()
        ended, nodes = clear(
            engine,
            listed,
            ended,
            options.grace,
            report.errors,
            self.progress,
            options.executor,
            incremental=options.incremental,
            now=now,
        )
        report.marked_nodes = report.marked_nodes if nodes is None else nodes
        freed = reclaim(engine, listed, ended, options.grace, self.to_delete, self.progress, now=now)
        report.reclaimed_packs += freed.packs
        report.reclaimed_bytes += freed.deleted
        report.freed_bytes += freed.deleted - freed.moved
        report.pending_bytes = sum(gain for _, gain, _ in freed.pending)
        report.pending_until = from_micros(max(when for _, _, when in freed.pending)) if freed.pending else None
        return freed.packs


def finish(engine: Engine, actor: str, progress: Progress = no_progress) -> GCReport:
    """End the grace now: delete the packs whose end is in the log, after the same mark. Plans nothing new.

    Raises `IntegrityError` when something reachable has no home elsewhere: then nothing is deleted.
    """
    engine.check_writable()
    run = GCRun(engine.runtime.random_bytes(8), actor, engine.view.refresh().seq)
    report = GCReport(run.run.hex())
    with engine.hold("collecting", exclusive=False):
        listed = listed_packs(engine)
        engine.view.refresh()
        ended = ended_packs(engine, listed)
        ended, nodes = clear(engine, listed, ended, -ANY_AGE, report.errors, progress)
        report.marked_nodes = nodes or 0
        freed = reclaim(engine, listed, ended, -ANY_AGE, Budget(None, None, engine.runtime.monotonic), progress)
        report.reclaimed_packs, report.reclaimed_bytes = freed.packs, freed.deleted
        report.freed_bytes = freed.deleted - freed.moved
        _sum_up(engine, run, report)
    return report


def _sum_up(engine: Engine, run: GCRun, report: GCReport) -> None:
    """Write what the run did into the log, if it did anything."""
    totals = {
        "expired": len(report.expired),
        "purged": len(report.purged),
        "aborted_batches": len(report.aborted_batches),
        "freed_chunks": report.freed_chunks,
        "retired_packs": report.retired_packs,
        "condemned_packs": report.condemned_packs,
        "reclaimed_packs": report.reclaimed_packs,
        "reclaimed_bytes": report.reclaimed_bytes,
        "repacked_bytes": report.repacked_bytes,
        "optimized_packs": report.optimized_packs,
        "optimized_saved_bytes": report.optimized_saved_bytes,
        "freed_bytes": report.freed_bytes,
        "pending_bytes": report.pending_bytes,
    }
    if any(value for key, value in totals.items() if key != "pending_bytes"):
        summary = json.dumps(totals, sort_keys=True).encode()
        engine.commit(lambda _: (replace(run, summary=summary),))


def _expire_due(engine: Engine, run: GCRun) -> list[str]:
    """Move versions past their time to live to the trash; without any, time that passed is written down."""
    labels: list[str] = []
    before = engine.view.refresh()

    def build(tables: Tables) -> Sequence[Record]:
        found = sweep(tables, terms_in_force(tables), run.actor)
        labels[:] = [item.label for item in found.swept]
        return (run, *found.records) if found.records else tick(engine, tables, before, run)

    engine.commit(build)
    return labels


def _purge_due(engine: Engine, run: GCRun) -> tuple[list[str], list[str]]:
    """Purge, abort and let go what time has come for; the labels of versions and of batches."""
    labels: list[str] = []
    batches: list[str] = []

    def build(tables: Tables) -> Sequence[Record]:
        found = due(tables, run.actor)
        labels[:], batches[:] = found.versions, found.batches
        return (run, *found.records) if found.records else ()

    engine.commit(build)
    return labels, batches


def _plan(engine: Engine, options: Options) -> Plan:
    head = engine.view.refresh()
    with engine.view.read() as tables:
        return make_plan(tables, head.seq, engine.config, options.limits)


def _foresee(engine: Engine, options: Options, report: GCReport) -> GCReport:
    """The plan that would be executed now, as if due versions were expired and purged already."""

    def purge(tables: Tables) -> Sequence[Record]:
        past, found, head = (
            sweep(tables, terms_in_force(tables), options.actor),
            due(tables, options.actor),
            head_of(tables),
        )
        report.expired = [item.label for item in past.swept]
        # With no days in the trash, what expires is purged by the same run.
        through = past.swept if past.purge_at <= head.safe else ()
        report.purged = [*found.versions, *(item.label for item in through)]
        report.aborted_batches = list(found.batches)
        at_once = [
            Purge(str(item.name), item.version.number, head.seq, force=False, actor=options.actor) for item in through
        ]
        return (*found.records, *past.records, *at_once)

    listed = listed_packs(engine)
    with engine.foresee(purge) as tables:
        plan = make_plan(tables, head_of(tables).seq, engine.config, options.limits)
        found = _account(engine, options, tables, plan, listed)
        if options.optimize:
            from casstore.gc.optimize import to_examine  # noqa: PLC0415 - start-up

            report.examined_bytes = to_examine(engine, plan)
    report.freed_chunks = predicted(plan)
    report.packs = list(plan.fates)
    report.retired_packs = len(plan.packs(Fate.RETIRE)) + len(plan.packs(Fate.REPACK))
    report.repacked_bytes = sum(f.size - f.dead_stored for f in plan.packs(Fate.REPACK))
    report.condemned_packs = found.strays
    report.reclaimed_packs, report.freed_bytes = found.over_packs, found.over
    kept = dict(found.kept)
    if options.grace <= 0:
        report.freed_bytes += found.takeable
        report.reclaimed_packs += report.retired_packs + found.strays
    elif found.takeable:
        kept[Reason.GRACE] = kept.get(Reason.GRACE, 0) + found.takeable
    report.pending_bytes = kept.get(Reason.GRACE, 0)
    report.kept_by = {str(reason): size for reason, size in kept.items()}
    report.doubled_bytes = found.doubled
    return report


def _explain_rest(engine: Engine, options: Options, report: GCReport) -> None:
    """Say why bytes are still there after a run."""
    listed = listed_packs(engine)
    head = engine.view.refresh()
    with engine.view.read() as tables:
        plan = make_plan(tables, head.seq, engine.config, options.limits)
        found = _account(engine, options, tables, plan, listed)
    left = found.kept.get(Reason.LIMITS, 0) + found.takeable + found.over
    report.kept_by = {str(reason): size for reason, size in {**found.kept, Reason.LIMITS: left}.items() if size}
    report.doubled_bytes = found.doubled


def _account(engine: Engine, options: Options, tables: Tables, plan: Plan, listed: dict[bytes, ObjectInfo]) -> Account:
    now = engine.runtime.now()
    until = now - options.orphan_age if options.orphan_age else ANY_AGE
    return account_for(tables, plan, listed, now=now, grace=options.grace, orphans_until=until)


def _sweep_temporary(engine: Engine, options: Options) -> None:
    """Remove files that killed writers left half written; they never had a name."""
    sweep = getattr(engine.backend, "sweep_temp", None)
    if sweep is not None:
        age = min(TEMPORARY_AGE, options.orphan_age)
        # By the machine's clock, as these files have not been given the store's time yet.
        sweep(system_micros() - age if age else ANY_AGE)
