"""The state of a store on one page: whose the bytes are, when each lot goes, and what the collector did last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, field
from datetime import datetime
from itertools import islice

from casstore import catalogue, expiry, policy
from casstore.audit import frees, took_effect, totals_of, transactions
from casstore.config import environment_flag, from_micros
from casstore.engine import Engine
from casstore.format.rows import decode_row
from casstore.gc.account import Reason, account_for
from casstore.gc.plan import Limits, make_plan
from casstore.gc.reclaim import listed_packs
from casstore.model import LostRow, PackState, PinRow, VersionState
from casstore.overlay import Tables
from casstore.pin import NEVER
from casstore.state import CHUNK, LOST, PIN, ROOT, TRASHED, checkpoint_of, head_of
from casstore.values import dataclass
from casstore.view import collections, packs, trashed, versions

ORPHAN_AGE = 48 * 3600 * 1_000_000
"""µs; the default of `Store.gc`"""
SEARCHED = 1000
"""transactions looked at for the last run, before the log is looked up where packs ended"""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The newest run of the collector that changed something. ``totals`` is empty if it did not come to its end."""

    run_id: str
    at: datetime
    actor: str
    commit: int
    freed_bytes: int | None
    totals: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The run as JSON values."""
        return {**asdict(self), "at": self.at.isoformat(), "totals": dict(self.totals)}


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a store. Sizes are stored bytes; each byte is in one of the first nine, which add up to ``stored``.

    ``live``: committed versions need them; ``pinned``: only drafts and other pins; ``trash``: only versions in the
    trash; ``damaged``: kept for what needs them, but not what they should be; ``waste``: garbage in packs that are
    not worth writing anew yet; ``waiting``: garbage that the next ``gc`` takes, or would if it were not off;
    ``grace``: in packs that have ended and may be deleted at ``grace_ends`` at the latest; ``doubled``: in such packs,
    but living on in others; ``orphans``: in packs the log does not know, of writers at work or killed.

    ``next_expiry``: when the first version comes to the end of its time to live, in the past if it did already;
    ``next_purge``, ``next_pin_expiry``: when the first goes for good. ``log_length`` is the head of the log,
    ``checkpoint`` the position of the newest checkpoint. ``quota``: the policy's, in bytes.
    """

    live: int
    pinned: int
    trash: int
    damaged: int
    waste: int
    waiting: int
    grace: int
    doubled: int
    orphans: int
    stored: int
    gc_enabled: bool
    next_expiry: datetime | None
    next_purge: datetime | None
    next_pin_expiry: datetime | None
    grace_ends: datetime | None
    last_run: LastRun | None
    quota: int | None
    collections: int
    versions: int
    trashed: int
    pins: int
    packs: int
    chunks: int
    damaged_digests: int
    erased_digests: int
    log_length: int
    checkpoint: int | None

    def to_dict(self) -> dict[str, object]:
        """The state as JSON values."""
        values = asdict(self)
        for name in ("next_expiry", "next_purge", "next_pin_expiry", "grace_ends"):
            moment = getattr(self, name)
            values[name] = None if moment is None else moment.isoformat()
        values["last_run"] = None if self.last_run is None else self.last_run.to_dict()
        return values


def status(engine: Engine) -> Status:
    """Look at a store. Time: O(packs + garbage + trash + pinned content + versions); reads no content."""
    listed = listed_packs(engine)
    head = engine.view.refresh()
    rules = policy.load(engine.view.policy())
    enabled = environment_flag("GC_ENABLED")
    now = engine.runtime.now()
    with engine.view.read() as tables:
        plan = make_plan(tables, head_of(tables).seq, engine.config, Limits(policy=rules))
        grace = int(rules.grace.total_seconds() * 1_000_000)
        found = account_for(tables, plan, listed, now=now, grace=grace, orphans_until=now - ORPHAN_AGE)
        next_expiry = _next_expiry(engine, tables)
        purges = [version.purge_at for version in trashed(tables)]
        expiries = [decode_row(row, PinRow).expires for _, row in tables.scan(PIN)]
        lost = [decode_row(row, LostRow).erased for _, row in tables.scan(LOST)]
        checkpoint = checkpoint_of(tables)
        hidden = tables.count(TRASHED)
        shown = sum(1 for row in collections(tables) if row.state is VersionState.COMMITTED)
        committed = tables.count(ROOT) - hidden
        chunks = tables.count(CHUNK)
        last_end = _last_end(tables)
    kept = found.kept
    return Status(
        live=kept.get(Reason.VERSIONS, 0),
        pinned=kept.get(Reason.PINS, 0),
        trash=kept.get(Reason.TRASH, 0),
        damaged=kept.get(Reason.DAMAGED, 0),
        waste=kept.get(Reason.POLICY, 0),
        waiting=found.takeable + found.over,
        grace=kept.get(Reason.GRACE, 0),
        doubled=found.doubled,
        orphans=kept.get(Reason.ORPHANS, 0),
        stored=found.total,
        gc_enabled=rules.gc_enabled if enabled is None else enabled,
        next_expiry=next_expiry,
        next_purge=_first(engine, purges),
        next_pin_expiry=_first(engine, [moment for moment in expiries if moment < NEVER]),
        grace_ends=from_micros(found.ends) if found.ends else None,
        last_run=_last_run(engine, last_end),
        quota=rules.quota_bytes,
        collections=shown,
        versions=committed,
        trashed=hidden,
        pins=len(expiries),
        packs=len(listed),
        chunks=chunks,
        damaged_digests=lost.count(False),
        erased_digests=lost.count(True),
        log_length=head.seq,
        checkpoint=None if checkpoint is None else checkpoint.seq,
    )


def _first(engine: Engine, moments: Iterable[int]) -> datetime | None:
    first = min(moments, default=None)
    return None if first is None else catalogue.wall_time(engine, first)


def _next_expiry(engine: Engine, tables: Tables) -> datetime | None:
    terms = expiry.terms_now(engine, tables)
    first: int | None = None
    for collection in collections(tables):
        for version in versions(tables, collection.id, states=(VersionState.COMMITTED,)):
            moment = expiry.expires(terms, collection, version)
            if moment is None or (first is not None and moment >= first):
                continue
            if not expiry.holders(tables, terms, collection, version):
                first = moment
    return None if first is None else expiry.wall_time(engine, tables, first)


def _last_end(tables: Tables) -> int:
    """Position of the newest commit that ended a pack; only runs of the collector do."""
    return max((row.seq for _, row in packs(tables) if row.state is not PackState.LIVE), default=0)


def _last_run(engine: Engine, last_end: int) -> LastRun | None:
    """The newest run: among the newest commits, or else where a pack ended last. Never reads the whole log."""
    for newest in (None, last_end):
        for segment, transaction in islice(transactions(engine, newest), SEARCHED):
            run = transaction.run
            if run is not None and (run.summary or frees(transaction)) and took_effect(engine, segment, transaction):
                totals = totals_of(run)
                at = from_micros(segment.claimed)
                return LastRun(run.run.hex(), at, run.actor, segment.seq, totals.get("freed_bytes"), totals)
    return None
