"""May anything be deleted? Asked at the start of a run and again right before packs go; and what to do if not."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor

from casstore.backend import ObjectInfo
from casstore.engine import Engine
from casstore.errors import IntegrityError
from casstore.gc.counts import find_drift
from casstore.gc.mark import agrees, mark
from casstore.gc.reclaim import ended_packs
from casstore.gc.veto import NeedsMarkError, check_ended
from casstore.model import PackRow, Progress

SHARE = 0.10
"""of the stored bytes: a run that is to delete more is marked in full, however it was asked for (GC.md §3.8)"""

Ended = list[tuple[bytes, PackRow]]


def check_counts(
    engine: Engine,
    errors: list[str],
    progress: Progress,
    executor: Executor | None = None,
    present: set[bytes] | None = None,
    *,
    walk: bool = True,
) -> int:
    """Mark; returns how many nodes are reachable. A view that turns out to be wrong is made again from the log.

    Without ``walk`` no tree is read, and 0 returned, if the counts are those of the rows of the nodes and the roots.

    What was wrong is appended to ``errors``. Counts that are too high are put right, and the run may go on. Raises
    `IntegrityError` if any was too low, or if something reachable is missing from what the log itself says: nothing may
    be deleted then. `StoreBusyError`: see `mark`.
    """
    if not walk and agrees(engine):
        return 0
    for attempt in range(3):
        try:
            marked = mark(engine, present, progress, executor)
        except IntegrityError as error:
            if attempt:
                raise
            # The view may be to blame: believe the log, once.
            engine.view.rebuild()
            fault = f"{error.message}; the index was rebuilt from the log"
        else:
            if marked.agrees:
                return marked.nodes
            drift = find_drift(engine)
            if not drift:
                continue  # somebody made the view again in between
            engine.view.rebuild()
            fault = f"{drift}; the index was rebuilt from the log"
            if drift.too_low:
                raise IntegrityError(
                    f"{drift.too_low} reference counts were too low; nothing was deleted",
                    hint="the index was rebuilt from the log: run casstore fsck, then casstore gc again",
                )
        errors.append(fault)
    raise IntegrityError(
        "the counts in the index are wrong again after it was rebuilt from the log; nothing was deleted",
        hint="casstore fsck",
    )


def clear(
    engine: Engine,
    listed: Mapping[bytes, ObjectInfo],
    ended: Ended,
    grace: int,
    errors: list[str],
    progress: Progress,
    executor: Executor | None = None,
    *,
    incremental: bool = False,
    now: int | None = None,
) -> tuple[Ended, int | None]:
    """The veto, for ended packs whose grace (µs) is over: nothing reachable may need them, as of now.

    ``now``: when the grace has to be over, which `reclaim` must be told, too: this takes time, and packs whose grace
    ends under it were not looked at.
    Returns the packs that have ended for sure, and how many nodes are reachable if they were walked. ``incremental``
    looks into the packs that are to go only (`casstore.gc.veto`), unless they are more than `SHARE` of the store.
    Raises as `check_counts`.
    """
    now = engine.runtime.now() if now is None else now
    due = [(pack, row) for pack, row in ended if row.since + grace <= now]
    if not due:
        return ended, None
    sizes = {pack: info.size for pack, info in listed.items()}
    nodes = None
    if incremental and sum(sizes[pack] for pack, _ in due) <= SHARE * sum(sizes.values()):
        try:
            check_ended(engine, due, sizes)
        except NeedsMarkError:
            nodes = check_counts(engine, errors, progress, executor, set(listed))
    else:
        nodes = check_counts(engine, errors, progress, executor, set(listed))
    # The view may have been made again, and know by now that a pack is live; packs that ended after the mark have to
    # wait for the next one.
    still = {pack for pack, _ in ended_packs(engine, dict(listed))}
    return [(pack, row) for pack, row in ended if pack in still], nodes
