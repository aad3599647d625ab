"""The physical end: condemn packs nobody committed, delete packs whose end is in the log.

The only place, besides nothing else, that calls `Backend.delete`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import field
from itertools import islice

from casstore.backend import ObjectInfo
from casstore.engine import Engine
from casstore.format.layout import PACK_PREFIX, pack_key, pack_of
from casstore.gc.retire import Budget
from casstore.model import Condemn, GCRun, PackRow, PackState, Progress, Record
from casstore.overlay import Tables
from casstore.state import PACK
from casstore.values import dataclass
from casstore.view import pack_at

CONDEMN_BATCH = 1000
LARGE = 32 * 1024 * 1024
"""bytes that are deleted by several threads"""
AT_A_TIME = 4
"""packs that are being deleted"""

Ended = Sequence[tuple[bytes, PackRow]]


@dataclass(slots=True)
class Reclaimed:
    """What was deleted, and what waits."""

    packs: int = 0
    deleted: int = 0
    """stored bytes deleted"""
    moved: int = 0
    """of those, bytes whose content lives on in other packs"""
    pending: list[tuple[bytes, int, int]] = field(default_factory=list)
    """(pack, stored bytes not living on elsewhere, time it may go, µs)"""


def listed_packs(engine: Engine) -> dict[bytes, ObjectInfo]:
    """Packs the backend shows. A listing that fails raises; it never comes out empty."""
    found = {}
    for info in engine.backend.list(PACK_PREFIX):
        pack = pack_of(info.key)
        if pack is not None:
            found[pack] = info
    return found


def condemn_orphans(engine: Engine, listed: dict[bytes, ObjectInfo], older_than: int, run: GCRun) -> list[bytes]:
    """Say in the log that packs it does not know never will be in it. ``older_than``: backend time, µs.

    The head is read after the listing, so that a pack committed in between is not among them; and a writer
    that commits one of them later is refused by the log and uploads again.
    """
    engine.view.refresh()
    with engine.view.read() as tables:
        orphans = [
            pack
            for pack, info in sorted(listed.items())
            if info.modified <= older_than and tables.get(PACK, pack) is None
        ]
    condemned: list[bytes] = []
    for at in range(0, len(orphans), CONDEMN_BATCH):
        batch = orphans[at : at + CONDEMN_BATCH]
        chosen: list[bytes] = []

        def build(tables: Tables, batch: Sequence[bytes] = batch, chosen: list[bytes] = chosen) -> Sequence[Record]:
            chosen[:] = [pack for pack in batch if tables.get(PACK, pack) is None]
            return [run, *(Condemn(pack) for pack in chosen)] if chosen else []

        engine.commit(build)
        condemned += chosen
    return condemned


def ended_packs(engine: Engine, listed: dict[bytes, ObjectInfo]) -> list[tuple[bytes, PackRow]]:
    """Packs that are there although the log says their end."""
    with engine.view.read() as tables:
        rows = ((pack, pack_at(tables, pack)) for pack in sorted(listed))
        return [(pack, row) for pack, row in rows if row is not None and row.state is not PackState.LIVE]


def reclaim(
    engine: Engine,
    listed: dict[bytes, ObjectInfo],
    ended: Sequence[tuple[bytes, PackRow]],
    grace: int,
    budget: Budget,
    progress: Progress,
    *,
    now: int | None = None,
) -> Reclaimed:
    """Delete ended packs whose grace (µs) is over. The caller has had every reachable digest's home checked.

    ``now``: when the caller did; what has come due since waits for the next time.
    """
    result = Reclaimed()
    now = engine.runtime.now() if now is None else now
    due: list[tuple[bytes, PackRow]] = []
    for pack, row in ended:
        gain = listed[pack].size - row.moved
        if row.since + grace > now or not budget.spend(max(gain, 0)):
            result.pending.append((pack, gain, row.since + grace))
        else:
            due.append((pack, row))
    if due:
        # The segment that ended these packs may be another's, and not durable yet: it must be, before the
        # bytes go, or a power failure brings back a log that needs them.
        engine.log.barrier()
    for position, (pack, row) in enumerate(_deleted(engine, due, listed)):
        result.packs += 1
        result.deleted += listed[pack].size
        result.moved += row.moved
        progress("reclaim", position + 1, len(due))
    return result


def _deleted(engine: Engine, due: Ended, listed: Mapping[bytes, ObjectInfo]) -> Iterator[tuple[bytes, PackRow]]:
    """Delete packs; each is yielded when it is gone. The first error ends it: none is begun after that."""
    if len(due) < 2 or sum(listed[pack].size for pack, _ in due) < LARGE:
        for pack, row in due:
            engine.backend.delete(pack_key(pack))
            yield pack, row
        return
    # What a file system does to free a large file takes a core, so it is done by all of them.
    executor = engine.executor()
    waiting: deque[tuple[bytes, PackRow, Future[None]]] = deque()
    rest = iter(due)
    try:
        for _ in due:
            for pack, row in islice(rest, AT_A_TIME - len(waiting)):
                waiting.append((pack, row, executor.submit(engine.backend.delete, pack_key(pack))))
            pack, row, task = waiting.popleft()
            task.result()
            yield pack, row
    finally:
        for _, _, task in waiting:
            if not task.cancel():
                task.exception()  # waits for it
