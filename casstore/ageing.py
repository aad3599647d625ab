"""What time does to versions: times to live are set, expired versions swept, collections thinned out by rules.

A sweep and a thinning are one commit each, and go to the trash. What they take is decided on the state that very commit
stands on: a version whose time to live was extended, or that was given an alias, a moment before is judged by that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from casstore import expiry
from casstore.authority import STORE, ask, questions
from casstore.catalogue import Found, collection_of, find_collection, full_name, source_of, wrong_state
from casstore.config import from_micros, to_micros
from casstore.engine import Engine
from casstore.errors import ConfirmationRequired, InvalidInputError, RefusedError
from casstore.expiry import Past, Sweep, Terms
from casstore.format.rows import encode_row
from casstore.gc.plan import garbage
from casstore.model import (
    INHERIT,
    CollectionRow,
    GCRun,
    Inherit,
    Record,
    SetCollectionTtl,
    SetPolicy,
    SetTtl,
    Trash,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST, CollectionName, ttl_seconds
from casstore.overlay import Overlay, Tables
from casstore.policy import purge_time
from casstore.retention import Candidate, Rules, judge
from casstore.state import COLLECTION, POLICY, alias_target, head_of
from casstore.values import dataclass
from casstore.view import version_at, versions, with_links

AGEING_RULES = frozenset({"default_ttl", "no_ttl_types", "protected_aliases"})
"""policy values whose change can make versions expire"""
NAMED = 3
"""how many versions a refusal names"""


# --- reports -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExpiredVersion:
    """A version past its time. ``aliases``: those it had, ``latest`` aside; ``held_by``: why it stays all the same."""

    ref: str
    expired_at: datetime
    ttl: timedelta
    ttl_source: str
    aliases: tuple[str, ...] = ()
    held_by: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The version as JSON values."""
        return {
            "ref": self.ref,
            "expired_at": self.expired_at.isoformat(),
            "ttl": int(self.ttl.total_seconds()),
            "ttl_source": self.ttl_source,
            "aliases": list(self.aliases),
            "held_by": list(self.held_by),
        }


@dataclass(frozen=True, slots=True)
class ExpireReport:
    """What a sweep moved to the trash, or would move (``dry_run``), and which versions past their time are held.

    ``exclusive_bytes``: stored bytes that only the expired versions keep, together; free once they are purged.
    """

    dry_run: bool
    expired: tuple[ExpiredVersion, ...]
    held: tuple[ExpiredVersion, ...]
    exclusive_bytes: int
    purge_at: datetime | None

    @property
    def refs(self) -> tuple[str, ...]:
        """The references of the expired versions."""
        return tuple(version.ref for version in self.expired)

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "dry_run": self.dry_run,
            "expired": [version.to_dict() for version in self.expired],
            "held": [version.to_dict() for version in self.held],
            "exclusive_bytes": self.exclusive_bytes,
            "purge_at": None if self.purge_at is None else self.purge_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class TtlChange:
    """A new default time to live, and the versions that expire at once by it (with the stored bytes only they keep)."""

    ttl: timedelta | Inherit | None
    collection: str | None
    dry_run: bool
    refs: tuple[str, ...]
    exclusive_bytes: int

    @property
    def count(self) -> int:
        """How many versions expire at once: what ``confirm`` must be."""
        return len(self.refs)

    def to_dict(self) -> dict[str, object]:
        """The change as JSON values."""
        ttl = self.ttl
        return {
            "ttl": int(ttl.total_seconds()) if isinstance(ttl, timedelta) else None,
            "inherit": ttl is INHERIT,
            "collection": self.collection,
            "dry_run": self.dry_run,
            "count": self.count,
            "refs": list(self.refs),
            "exclusive_bytes": self.exclusive_bytes,
        }


@dataclass(frozen=True, slots=True)
class RetainedVersion:
    """A version as the rules judged it: ``reasons`` to keep it, none if it goes. ``aliases`` without ``latest``."""

    ref: str
    number: int
    created_at: datetime
    reasons: tuple[str, ...]
    aliases: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The version as JSON values."""
        return {
            "ref": self.ref,
            "created_at": self.created_at.isoformat(),
            "reasons": list(self.reasons),
            "aliases": list(self.aliases),
        }


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What the rules keep of a collection and why, and what they moved to the trash, or would (``dry_run``).

    Newest first. ``exclusive_bytes``: stored bytes that only the removed versions keep, together.
    """

    collection: str
    rules: Rules
    dry_run: bool
    kept: tuple[RetainedVersion, ...]
    removed: tuple[RetainedVersion, ...]
    exclusive_bytes: int
    purge_at: datetime | None

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "collection": self.collection,
            "rules": self.rules.to_dict(),
            "dry_run": self.dry_run,
            "kept": [version.to_dict() for version in self.kept],
            "removed": [version.to_dict() for version in self.removed],
            "exclusive_bytes": self.exclusive_bytes,
            "purge_at": None if self.purge_at is None else self.purge_at.isoformat(),
        }


# --- times to live -------------------------------------------------------------------------------


def set_ttl(engine: Engine, found: Found, ttl: timedelta | Inherit | None, *, allow_immediate: bool) -> None:
    """Give a version a time to live, counted from its commit; one past its time is brought back by a longer one.

    Raises `RefusedError` if it would have expired already, unless ``allow_immediate``, or if its type has none;
    `VersionNotFoundError` if it is in the trash; `InvalidInputError`.
    """
    seconds = ttl_seconds(ttl)
    ask(engine.runtime, [("set-ttl", found.label)])

    def build(tables: Tables) -> Sequence[Record]:
        version = version_at(tables, found.collection.id, found.version.number)
        assert version is not None
        collection = collection_of(tables, version)
        source = source_of(tables, version)
        if version.state is not VersionState.COMMITTED:
            raise wrong_state(Found(found.name, collection, version), source)
        if source is not None:
            raise InvalidInputError(
                f"{found.label} is a link: it ends with its source", hint=f"set it on {source.label}"
            )
        terms = expiry.terms_in_force(tables)
        expiry.check_type_has_ttl(terms, version.type, seconds)
        moment = expiry.expires(terms, collection, replace(version, ttl=seconds))
        if moment is not None and moment <= terms.safe and not allow_immediate:
            when = expiry.wall_time(engine, tables, moment)
            raise RefusedError(
                f"by that, {found.label} would have expired on {when:%Y-%m-%d %H:%M:%S}",
                hint="allow_immediate=True, or casstore ttl --allow-immediate",
            )
        if version.ttl == seconds:
            return ()
        return (SetTtl(collection.name, version.number, seconds, engine.runtime.actor),)

    engine.commit(build, asked=True)


def set_default_ttl(
    engine: Engine,
    ttl: timedelta | Inherit | None,
    collection: CollectionName | None,
    *,
    dry_run: bool,
    confirm: int | None,
) -> TtlChange:
    """Set the time to live of versions that have none of their own, of a collection or of the store.

    Raises `ConfirmationRequired` if versions expire by it at once and ``confirm`` is not their number.
    """
    seconds = ttl_seconds(ttl)
    if collection is None:
        if ttl is INHERIT:
            raise InvalidInputError("the store's ttl has nothing to inherit from", hint="a timedelta, or None: never")
        records = policy_record({"default_ttl": seconds}, engine.runtime.actor)
        change = _policy_change({"default_ttl": seconds})
    else:
        records = (SetCollectionTtl(str(collection), seconds, engine.runtime.actor),)
        change = _collection_change(collection, seconds)
    if not dry_run:
        ask(engine.runtime, questions(records))
    expiring = _change(engine, records, change, dry_run=dry_run, confirm=confirm)
    label = None if collection is None else collection.short
    return TtlChange(ttl, label, dry_run, tuple(p.label for p in expiring), _bytes_of(engine, expiring))


def set_policy(engine: Engine, values: dict[str, object], *, confirm: int | None) -> None:
    """Record policy values (JSON).

    Raises `ConfirmationRequired` if versions expire by it at once and ``confirm`` is not their number.
    """
    records = policy_record(values, engine.runtime.actor)
    ask(engine.runtime, questions(records))
    if AGEING_RULES.isdisjoint(values):
        engine.commit(lambda _: records, asked=True)
    else:
        _change(engine, records, _policy_change(values), dry_run=False, confirm=confirm)


def policy_record(values: dict[str, object], actor: str) -> Sequence[Record]:
    """The record of policy values."""
    return (SetPolicy(json.dumps(values, sort_keys=True).encode(), actor),)


def _policy_change(values: dict[str, object]) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        for key, value in values.items():
            tables.put(POLICY, key.encode(), json.dumps(value).encode())

    return change


def _collection_change(name: CollectionName, seconds: int) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        row = find_collection(tables, name)
        expiry.check_type_has_ttl(expiry.terms_in_force(tables), row.type, seconds)
        tables.put(COLLECTION, row.name.encode(), encode_row(replace(row, ttl=seconds)))

    return change


def _change(
    engine: Engine,
    records: Sequence[Record],
    change: Callable[[Tables], None],
    *,
    dry_run: bool,
    confirm: int | None,
) -> list[Past]:
    """Commit a change of rules, unless it makes more versions expire at once than was confirmed; returns those."""
    expiring: list[Past] = []

    def build(tables: Tables) -> Sequence[Record]:
        before = {(p.version.collection, p.version.number) for p in _swept(tables)}
        changed = Overlay(tables)
        change(changed)
        expiring[:] = [p for p in _swept(changed) if (p.version.collection, p.version.number) not in before]
        if expiring and not dry_run and confirm != len(expiring):
            count = len(expiring)
            some = ", ".join(p.label for p in expiring[:NAMED]) + (", …" if count > NAMED else "")
            raise ConfirmationRequired(
                f"{count} versions would expire at once: {some}", hint=f"confirm={count}, or --confirm {count}"
            )
        return () if dry_run else records

    if dry_run:
        with engine.foresee(build):
            pass
    else:
        engine.commit(build, asked=True)
    return expiring


def _swept(tables: Tables) -> list[Past]:
    return [p for p in expiry.past(tables, expiry.terms_in_force(tables)) if not p.holders]


def _bytes_of(engine: Engine, items: Sequence[Past]) -> int:
    return _exclusive(engine, [p.version for p in items])


def _exclusive(engine: Engine, rows: Sequence[VersionRow]) -> int:
    if not rows:
        return 0
    with engine.view.read() as tables:
        return garbage(tables, [row.root for row in with_links(tables, rows)]).stored


# --- the sweep -----------------------------------------------------------------------------------


def expire(engine: Engine, now: datetime | None, *, dry_run: bool) -> ExpireReport:
    """Move every version past its time to the trash, in one commit; their days there count from now.

    ``now``: only what had expired by then; with ``dry_run`` it may be a moment to come. Plain aliases do not hold a
    version: they are taken off, remembered for a restore, and named in the report. Raises `InvalidInputError`.
    """
    if now is not None and (not isinstance(now, datetime) or now.tzinfo is None):
        raise InvalidInputError(f"now={now!r} is not an aware datetime")
    if not dry_run:
        ask(engine.runtime, [("expire", STORE)])
    found: list[tuple[Sweep, list[ExpiredVersion], list[ExpiredVersion]]] = []
    before = engine.view.refresh()
    run = GCRun(engine.runtime.random_bytes(8), engine.runtime.actor, before.seq)

    def build(tables: Tables) -> Sequence[Record]:
        safe = head_of(tables).safe
        if now is not None:
            ahead = to_micros(now) - engine.runtime.now()
            if ahead > 0 and not dry_run:
                raise InvalidInputError(f"now={now} has not come yet", hint="dry_run=True")
            safe += ahead
        sweep = expiry.sweep(tables, expiry.terms_in_force(tables, safe), engine.runtime.actor)
        found[:] = [(sweep, _described(engine, tables, sweep.swept), _described(engine, tables, sweep.held))]
        return sweep.records or expiry.tick(engine, tables, before, run)

    if dry_run:
        with engine.foresee(build):
            pass
    else:
        engine.commit(build, asked=True)
    ((sweep, swept, held),) = found
    purge_at = None
    if swept:
        with engine.view.read() as tables:
            purge_at = expiry.wall_time(engine, tables, sweep.purge_at)
    return ExpireReport(dry_run, tuple(swept), tuple(held), _bytes_of(engine, sweep.swept), purge_at)


def _described(engine: Engine, tables: Tables, items: Sequence[Past]) -> list[ExpiredVersion]:
    return [
        ExpiredVersion(
            item.label,
            expiry.wall_time(engine, tables, item.at),
            timedelta(seconds=item.lifetime.seconds),
            item.lifetime.source,
            expiry.named(tables, item.version),
            item.holders,
        )
        for item in items
    ]


# --- retention -----------------------------------------------------------------------------------


def retain(
    engine: Engine, name: CollectionName, rules: Rules, *, delete_aliases: bool, dry_run: bool
) -> RetentionReport:
    """Move the versions of a collection that no rule keeps to the trash, in one commit.

    Whatever the rules: ``latest`` stays, and what is protected, and unless ``delete_aliases`` what has an alias.
    Versions past their time to live and links are neither counted nor taken; a version that is linked stays. Raises
    `CollectionNotFoundError`.
    """
    if not dry_run:
        ask(engine.runtime, [("retain", name.short)])
    plan: list[tuple[RetainedVersion, VersionRow]] = []
    purge_at = 0

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal name, purge_at
        collection = find_collection(tables, name)
        name = full_name(collection)
        terms = expiry.terms_in_force(tables)
        purge_at = purge_time(tables)
        plan[:] = _judged(tables, terms, name, collection, rules, delete_aliases=delete_aliases)
        reason = f"retention: {', '.join(rules.to_dict())}"
        actor = engine.runtime.actor
        return [
            Trash(str(name), row.number, purge_at, version.aliases, reason, actor, "retention")
            for version, row in plan
            if not version.reasons
        ]

    if dry_run:
        with engine.foresee(build):
            pass
    else:
        engine.commit(build, asked=True)
    removed = [row for version, row in plan if not version.reasons]
    with engine.view.read() as tables:
        due = expiry.wall_time(engine, tables, purge_at)
    return RetentionReport(
        name.short,
        rules,
        dry_run,
        tuple(version for version, _ in plan if version.reasons),
        tuple(version for version, _ in plan if not version.reasons),
        _exclusive(engine, removed),
        due if removed else None,
    )


def _judged(
    tables: Tables,
    terms: Terms,
    name: CollectionName,
    collection: CollectionRow,
    rules: Rules,
    *,
    delete_aliases: bool,
) -> list[tuple[RetainedVersion, VersionRow]]:
    rows = {
        row.number: row
        for row in versions(tables, collection.id, states=(VersionState.COMMITTED,))
        if not row.is_link and not expiry.is_gone(tables, terms, collection, row)
    }
    on_latest = alias_target(tables, collection.id, LATEST)
    latest = expiry.resolve_latest(tables, terms, collection, on_latest)
    named = {number: expiry.named(tables, row) for number, row in rows.items()}

    def holds(row: VersionRow) -> tuple[str, ...]:
        by_alias = () if delete_aliases else tuple(f"alias {alias}" for alias in named[row.number])
        guards = expiry.holders(tables, terms, collection, row)
        return tuple(dict.fromkeys((*(("latest",) if row.number == latest else ()), *guards, *by_alias)))

    candidates = [
        Candidate(row.number, from_micros(row.created), row.born, row.tags, holds(row)) for row in rows.values()
    ]
    return [
        (
            RetainedVersion(
                f"{name.short}:v{verdict.number}",
                verdict.number,
                from_micros(rows[verdict.number].created),
                verdict.reasons,
                named[verdict.number],
            ),
            rows[verdict.number],
        )
        for verdict in judge(candidates, rules)
    ]
