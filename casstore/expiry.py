"""Time to live: whether and when a version expires, and what keeps it from expiring.

Ages are measured on the safe clock of the log (GC.md §3.7), from the position a version was committed at: a clock that
is set forward on one host makes nothing expire early, one that is set back only makes it later. A version past its
time is hidden from readers at once; a sweep moves it to the trash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from casstore import policy
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import RefusedError
from casstore.model import CollectionRow, GCRun, Record, SetTtl, Trash, VersionRow, VersionState
from casstore.names import LATEST, CollectionName
from casstore.overlay import Tables
from casstore.policy import Policy
from casstore.state import PIN, TRASHED, Head, aliases_of, head_of, ratchet
from casstore.values import dataclass
from casstore.view import collection_name, collections, links_of, version_at, versions

SECOND = 1_000_000
TICK = policy.DAY // 2
"""what the safe clock may fall behind a sweep that finds nothing to do, before that writes down that time passed"""


@dataclass(frozen=True, slots=True)
class Terms:
    """What expiry is judged by: the rules in force and the moment of the safe clock (µs)."""

    policy: Policy
    safe: int


def check_type_has_ttl(terms: Terms, kind: str, seconds: int) -> None:
    """Raise `RefusedError` for a time to live on a type that the policy says has none."""
    if seconds > 0 and kind in terms.policy.no_ttl_types:
        raise RefusedError(
            f"versions of type {kind!r} have no time to live", hint="store.policy.no_ttl_types lists these types"
        )


def check_loggable(engine: Engine, kind: str, seconds: int) -> None:
    """`check_type_has_ttl`, by the rules in force."""
    if seconds > 0:
        engine.view.refresh()
        with engine.view.read() as tables:
            check_type_has_ttl(terms_in_force(tables), kind, seconds)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The time to live in force. ``seconds``: 0 = never. ``source``: who says so, or ``none``: nobody does."""

    seconds: int
    source: str


@dataclass(frozen=True, slots=True)
class Past:
    """A committed version past its time. ``at``: since when (safe clock); ``holders``: why it stays all the same."""

    name: CollectionName
    version: VersionRow
    lifetime: Lifetime
    at: int
    holders: tuple[str, ...]

    @property
    def label(self) -> str:
        """``name:vN``."""
        return f"{self.name.short}:v{self.version.number}"


# --- one version ---------------------------------------------------------------------------------


def terms_in_force(tables: Tables, safe: int | None = None) -> Terms:
    """The terms at a position of the log, by default at the moment of its last segment."""
    return Terms(policy.in_force(tables), head_of(tables).safe if safe is None else safe)


def terms_now(engine: Engine, tables: Tables) -> Terms:
    """The terms as they would be if this process committed now: what readers go by."""
    safe, _ = ratchet(head_of(tables), engine.runtime.now(), engine.writer_id)
    return terms_in_force(tables, safe)


def lifetime(terms: Terms, collection: CollectionRow, version: VersionRow) -> Lifetime:
    """The time to live of a version: its own, else its collection's, else the store's."""
    if version.type in terms.policy.no_ttl_types:
        return Lifetime(0, "none")
    if version.ttl >= 0:
        return Lifetime(version.ttl, "version")
    if collection.ttl >= 0:
        return Lifetime(collection.ttl, "collection")
    default = terms.policy.default_ttl
    return Lifetime(0, "none") if default is None else Lifetime(default // timedelta(seconds=1), "store")


def expires(terms: Terms, collection: CollectionRow, version: VersionRow) -> int | None:
    """The moment of the safe clock a version expires at; None = never."""
    seconds = lifetime(terms, collection, version).seconds
    return version.born + seconds * SECOND if seconds else None


def holders(tables: Tables, terms: Terms, collection: CollectionRow, version: VersionRow) -> tuple[str, ...]:
    """What keeps a version from expiring whatever its age: protection (by collection or alias, too), links to it."""
    found = []
    if version.protected:
        found.append(f"protected: {version.protected}")
    if collection.protected:
        found.append(f"collection protected: {collection.protected}")
    guarded = terms.policy.protected_aliases
    if guarded:
        found += [f"alias {a}" for a in aliases_of(tables, version.collection, version.number) if a in guarded]
    for link in links_of(tables, version):
        name = CollectionName.parse(collection_name(tables, link.collection))
        found.append(f"link {name.short}:v{link.number}")
    return tuple(found)


def revived(
    terms: Terms, name: CollectionName, collection: CollectionRow, version: VersionRow, actor: str
) -> Sequence[Record]:
    """What must go with the restoring of a version, lest it expire at once: no end to its time, if that is past."""
    moment = expires(terms, collection, version)
    if moment is None or moment > terms.safe:
        return ()
    return (SetTtl(str(name), version.number, 0, actor),)


def is_gone(tables: Tables, terms: Terms, collection: CollectionRow, version: VersionRow) -> bool:
    """True for a committed version that no reader sees any more: past its time, and not held."""
    moment = expires(terms, collection, version)
    return (
        moment is not None
        and moment <= terms.safe
        and version.state is VersionState.COMMITTED
        and not holders(tables, terms, collection, version)
    )


def visible(
    tables: Tables, terms: Terms, collection: CollectionRow, rows: Iterable[VersionRow]
) -> Iterator[VersionRow]:
    """Those of some versions of a collection that are not past their time, or held."""
    return (version for version in rows if not is_gone(tables, terms, collection, version))


def highest_visible(tables: Tables, terms: Terms, collection: CollectionRow) -> VersionRow | None:
    """The newest version that readers see."""
    newest_first = versions(tables, collection.id, newest_first=True, states=(VersionState.COMMITTED,))
    return next(visible(tables, terms, collection, newest_first), None)


def resolve_latest(tables: Tables, terms: Terms, collection: CollectionRow, number: int | None) -> int | None:
    """What ``latest``, which is on ``number``, means to readers: another version once that one expired."""
    version = None if number is None else version_at(tables, collection.id, number)
    if version is None or not is_gone(tables, terms, collection, version):
        return number
    visible = highest_visible(tables, terms, collection)
    return None if visible is None else visible.number


def wall_time(engine: Engine, tables: Tables, moment: int) -> datetime:
    """A moment of the safe clock as wall time, if this process goes on; past for readers exactly if it has come."""
    head, now = head_of(tables), engine.runtime.now()
    safe, highest = ratchet(head, now, engine.writer_id)
    return from_micros(moment - safe + highest)


# --- all of them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sweep:
    """What time has come for: ``swept`` go to the trash by ``records``, ``held`` stay."""

    records: tuple[Record, ...]
    swept: tuple[Past, ...]
    held: tuple[Past, ...]
    purge_at: int


def past(tables: Tables, terms: Terms) -> Iterator[Past]:
    """Committed versions past their time, held ones too; by collection, oldest first."""
    for collection in collections(tables):
        name = CollectionName.parse(collection.name)
        for version in versions(tables, collection.id, states=(VersionState.COMMITTED,)):
            life = lifetime(terms, collection, version)
            moment = version.born + life.seconds * SECOND
            if life.seconds and moment <= terms.safe:
                yield Past(name, version, life, moment, holders(tables, terms, collection, version))


def sweep(tables: Tables, terms: Terms, actor: str) -> Sweep:
    """The records that move every expired version to the trash. They stay there for the days of the policy from now."""
    purge_at = policy.purge_time(tables)
    swept: list[Past] = []
    held: list[Past] = []
    records: list[Record] = []
    for item in past(tables, terms):
        if item.holders:
            held.append(item)
            continue
        swept.append(item)
        aliases = named(tables, item.version)
        reason = f"its time to live, from the {item.lifetime.source}, is over"
        records.append(Trash(str(item.name), item.version.number, purge_at, aliases, reason, actor, "ttl"))
    return Sweep(tuple(records), tuple(swept), tuple(held), purge_at)


def named(tables: Tables, version: VersionRow) -> tuple[str, ...]:
    """The aliases somebody gave a version: all but ``latest``, which the rules move."""
    return tuple(a for a in aliases_of(tables, version.collection, version.number) if a != LATEST)


def tick(engine: Engine, tables: Tables, head: Head, run: GCRun) -> Sequence[Record]:
    """A record that does nothing but write down that time passed since ``head``, if something waits for it; or none.

    Only time that is in the log counts, and of each new process at most a day: without this, a store that nothing but
    short-lived sweeps look at would stand still, and its trash with it.
    """
    behind = head.seq > 0 and head.writer != engine.writer_id and engine.runtime.now() - head.highest >= TICK
    return (run,) if behind and _waits(tables) else ()


def _waits(tables: Tables) -> bool:
    """Whether anything in the store gets older towards a date."""
    if tables.count(TRASHED) or tables.count(PIN):
        return True
    terms = terms_in_force(tables)
    return any(
        lifetime(terms, collection, version).seconds
        for collection in collections(tables)
        for version in versions(tables, collection.id, states=(VersionState.COMMITTED,))
    )
