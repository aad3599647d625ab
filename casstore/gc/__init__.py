"""The collector (docs/GC.md): plan, retire, mark, reclaim. `collect` ties them.

Bytes vanish only if two independent algorithms agree: the counts folded from the log say nobody needs them,
and a walk over the trees finds a home elsewhere for everything that is reachable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from casstore.catalogue import due
from casstore.config import from_micros, system_micros
from casstore.engine import Engine
from casstore.errors import IntegrityError
from casstore.gc.mark import find_drift, mark
from casstore.gc.plan import Fate, Limits, PackFate, Plan, garbage, make_plan
from casstore.gc.reclaim import condemn_orphans, ended_packs, listed_packs, reclaim
from casstore.gc.retire import Budget, predicted, retire
from casstore.model import GCRun, Progress, Record, no_progress
from casstore.overlay import Tables
from casstore.state import head_of
from casstore.view import trashed

TEMPORARY_AGE = 48 * 3600 * 1_000_000
ANY_AGE = 1 << 62
"""later than any file is from: clocks may be wrong or injected"""


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


@dataclass(slots=True)
class GCReport:
    """What a collection did, or would do (``dry_run``). Sizes are stored bytes unless said otherwise.

    ``freed_bytes``: by which the store got smaller for good: bytes deleted less their content that was copied.
    ``reclaimed_bytes``: bytes deleted. ``repacked_bytes``: bytes written to move live content.
    ``pending_bytes``: free, but kept for the grace, the last of it until ``pending_until``.
    ``kept_by``: why bytes are still there.
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
    pending_bytes: int = 0
    pending_until: datetime | None = None
    kept_by: dict[str, int] = field(default_factory=dict)
    purged: list[str] = field(default_factory=list)
    marked_nodes: int = 0
    errors: list[str] = field(default_factory=list)
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

    Raises `IntegrityError` (exit 20) when the trees and the counts disagree in a way that could cost data:
    then nothing is deleted.
    """
    run = GCRun(engine.runtime.random_bytes(8), options.actor)
    report = GCReport(run.run.hex(), dry_run=options.dry_run)
    started = engine.runtime.monotonic()
    deadline = None if options.max_seconds is None else started + options.max_seconds
    budget = Budget(options.max_bytes, deadline, engine.runtime.monotonic)
    if options.dry_run:
        return _foresee(engine, options, report)
    engine.check_writable()
    if not options.incremental:
        report.marked_nodes = _check_counts(engine, report, progress)
    report.purged = _purge_due(engine, run)
    plan = _plan(engine, options)
    report.packs = list(plan.fates)
    done = retire(engine, plan, budget, run, progress)
    report.retired_packs, report.freed_chunks = done.packs, done.chunks
    report.repacked_bytes = done.copied
    report.errors += done.errors
    listed = listed_packs(engine)
    orphans_until = engine.runtime.now() - options.orphan_age if options.orphan_age else ANY_AGE
    report.condemned_packs = len(condemn_orphans(engine, listed, orphans_until, run))
    ended = ended_packs(engine, listed)
    if any(row.since + options.grace <= engine.runtime.now() for _, row in ended):
        # The veto: nothing is deleted unless everything reachable has a home elsewhere, as of now.
        report.marked_nodes = mark(engine, set(listed), progress).nodes
    freed = reclaim(
        engine, listed, ended, options.grace, Budget(options.max_bytes, deadline, engine.runtime.monotonic), progress
    )
    report.reclaimed_packs, report.reclaimed_bytes = freed.packs, freed.deleted
    report.freed_bytes = freed.deleted - freed.moved
    report.pending_bytes = sum(gain for _, gain, _ in freed.pending)
    if freed.pending:
        report.pending_until = from_micros(max(when for _, _, when in freed.pending))
    report.kept_by = _kept(engine, _plan(engine, options), report.pending_bytes, dry_run=False)
    _sweep_temporary(engine, options)
    _sum_up(engine, run, report)
    return report


def _sum_up(engine: Engine, run: GCRun, report: GCReport) -> None:
    """Write what the run did into the log, if it did anything."""
    totals = {
        "purged": len(report.purged),
        "freed_chunks": report.freed_chunks,
        "retired_packs": report.retired_packs,
        "condemned_packs": report.condemned_packs,
        "reclaimed_packs": report.reclaimed_packs,
        "reclaimed_bytes": report.reclaimed_bytes,
        "repacked_bytes": report.repacked_bytes,
        "freed_bytes": report.freed_bytes,
        "pending_bytes": report.pending_bytes,
    }
    if any(value for key, value in totals.items() if key != "pending_bytes"):
        summary = json.dumps(totals, sort_keys=True).encode()
        engine.commit(lambda _: (replace(run, summary=summary),))


def _purge_due(engine: Engine, run: GCRun) -> list[str]:
    labels: list[str] = []

    def build(tables: Tables) -> Sequence[Record]:
        found = due(tables, run.actor)
        labels[:] = found.versions
        return (run, *found.records) if found.records else ()

    engine.commit(build)
    return labels


def _plan(engine: Engine, options: Options) -> Plan:
    head = engine.view.refresh()
    with engine.view.read() as tables:
        return make_plan(tables, head.seq, engine.config, options.limits)


def _check_counts(engine: Engine, report: GCReport, progress: Progress) -> int:
    """Mark before anything is touched; a view whose counts drifted is rebuilt from the log, or all stops."""
    for attempt in range(2):
        try:
            marked = mark(engine, None, progress)
        except IntegrityError:
            if attempt:
                raise
            # The view may be to blame: believe the log, once.
            engine.view.rebuild()
            continue
        if marked.agrees:
            return marked.nodes
        drift = find_drift(engine)
        if not (drift.too_high or drift.too_low):
            return marked.nodes  # somebody made the view again in between
        report.errors.append(
            f"{len(drift.too_high)} counts were too high and {len(drift.too_low)} too low; "
            "the index was rebuilt from the log"
        )
        engine.view.rebuild()
        if drift.too_low:
            raise IntegrityError(
                f"{len(drift.too_low)} reference counts were too low; nothing was deleted",
                hint="the index was rebuilt from the log: run casstore fsck, then casstore gc again",
            )
    return marked.nodes


def _foresee(engine: Engine, options: Options, report: GCReport) -> GCReport:
    """The plan that would be executed now, as if due versions were purged already."""
    now = engine.runtime.now()

    def purge(tables: Tables) -> Sequence[Record]:
        found = due(tables, options.actor)
        report.purged = list(found.versions)
        return found.records

    with engine.foresee(purge) as tables:
        plan = make_plan(tables, head_of(tables).seq, engine.config, options.limits)
    report.freed_chunks = predicted(plan)
    report.packs = list(plan.fates)
    report.retired_packs = len(plan.packs(Fate.RETIRE)) + len(plan.packs(Fate.REPACK))
    gain = sum(f.size for f in plan.packs(Fate.RETIRE)) + sum(f.dead_stored for f in plan.packs(Fate.REPACK))
    report.repacked_bytes = sum(f.size - f.dead_stored for f in plan.packs(Fate.REPACK))
    listed = listed_packs(engine)
    for pack, row in ended_packs(engine, listed):
        bytes_there = listed[pack].size - row.moved
        if row.since + options.grace <= now:
            report.reclaimed_packs += 1
            report.freed_bytes += bytes_there
        else:
            report.pending_bytes += bytes_there
    if options.grace <= 0:
        report.freed_bytes += gain
        report.reclaimed_packs += report.retired_packs
    else:
        report.pending_bytes += gain
    report.kept_by = _kept(engine, plan, report.pending_bytes, dry_run=True)
    return report


def _kept(engine: Engine, plan: Plan, pending: int, *, dry_run: bool) -> dict[str, int]:
    """Stored bytes that stay, by the reason they stay. What a dry run would take is not among them."""
    with engine.view.read() as tables:
        trash = garbage(tables, [version.root for version in trashed(tables)]).stored
    total = sum(fate.size for fate in plan.fates)
    allowed = sum(fate.dead_stored for fate in plan.packs(Fate.KEEP))
    rest = sum(fate.dead_stored for fate in plan.fates) - allowed
    pinned = _pinned(engine)
    kept = {
        "versions": max(0, total - allowed - rest - trash - pinned),
        "trash": trash,
        "pins": pinned,
        "policy": allowed,
        "limits": 0 if dry_run else rest,
        "grace": pending,
    }
    return {reason: size for reason, size in kept.items() if size}


def _pinned(engine: Engine) -> int:
    roots = [root for _, pin in engine.view.pins() for root in pin.roots]
    if not roots:
        return 0
    with engine.view.read() as tables:
        return garbage(tables, roots).stored


def _sweep_temporary(engine: Engine, options: Options) -> None:
    """Remove files that killed writers left half written; they never had a name."""
    sweep = getattr(engine.backend, "sweep_temp", None)
    if sweep is not None:
        age = min(TEMPORARY_AGE, options.orphan_age)
        # By the machine's clock, as these files have not been given the store's time yet.
        sweep(system_micros() - age if age else ANY_AGE)
