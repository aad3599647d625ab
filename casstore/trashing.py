"""What is in the way of a deletion, and how one version goes to the trash."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial

from casstore import policy
from casstore.catalogue import (
    Found,
    found_of,
    place_of,
    protected_aliases,
    protection,
    refusal,
    wrong_state,
)
from casstore.engine import Engine
from casstore.errors import (
    AliasGuardError,
    InUseError,
    InvalidInputError,
    LinkGuardError,
    ProtectedError,
    RefusedError,
)
from casstore.model import Record, Trash, VersionRow, VersionState
from casstore.names import LATEST
from casstore.overlay import Tables
from casstore.state import ACTIVE, aliases_of, uses_of
from casstore.values import dataclass
from casstore.view import links_of, version_at

IF_IN_USE = ("cancel", "refuse")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a deletion may take along: aliases, links; and whether it stops at declared uses or cancels them."""

    aliases: bool = False
    links: bool = False
    refuse_in_use: bool = False

    @classmethod
    def of(cls, *, aliases: bool, links: bool, if_in_use: str) -> Allowed:
        """From what callers say. Raises `InvalidInputError`."""
        if if_in_use not in IF_IN_USE:
            raise InvalidInputError(f"if_in_use={if_in_use!r} is not valid", hint=" or ".join(IF_IN_USE))
        return cls(bool(aliases), bool(links), if_in_use == "refuse")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps a version from being deleted: ``why`` follows its name in a sentence."""

    why: str
    refuse: Callable[[str], RefusedError]
    """makes the error of a whole sentence"""

    def refusal(self, found: Found, but: str = "") -> RefusedError:
        """What to raise for a version; ``but`` ends the message."""
        return self.refuse(f"{found.label} {self.why}{but}")


def obstacle(
    tables: Tables,
    found: Found,
    held: Sequence[str],
    by_alias: frozenset[str],
    allowed: Allowed,
    apart: Container[tuple[int, int]] = (),
) -> Obstacle | None:
    """What is in the way of deleting a version, or None.

    ``held``: its aliases; ``by_alias``: see `protected_aliases`; ``apart``: links that go by themselves just before.
    """
    collection, version = found.collection, found.version
    why = protection(collection, version, held, by_alias)
    if why:
        hint = refusal(collection, version, why).hint
        return Obstacle(why, partial(ProtectedError, hint=hint))
    aliases = tuple(alias for alias in held if alias != LATEST)
    if aliases and not allowed.aliases:
        hint = "delete_aliases=True, or casstore rm --delete-aliases"
        why = f"has the aliases {', '.join(aliases)}"
        return Obstacle(why, partial(AliasGuardError, aliases=aliases, hint=hint))
    rows = [row for row in links_of(tables, version) if (row.collection, row.number) not in apart]
    links = [found_of(tables, row) for row in rows]
    labels = tuple(link.label for link in links)
    if links and not allowed.links:
        hint = "delete_links=True, or casstore rm --delete-links"
        return Obstacle(f"is linked: {', '.join(labels)}", partial(LinkGuardError, links=labels, hint=hint))
    for link in links:
        why = protection(link.collection, link.version, aliases_of(tables, *place_of(link.version)), by_alias)
        if why:
            hint = refusal(link.collection, link.version, why).hint
            return Obstacle(f"has the link {link.label}, which {why}", partial(ProtectedError, hint=hint))
    runs = users(tables, (version, *rows)) if allowed.refuse_in_use else ()
    if runs:
        hint = f"if_in_use='cancel'; if its process is gone: casstore run finish {runs[0]}"
        return Obstacle(f"is in use by {', '.join(runs)}", partial(InUseError, runs=runs, hint=hint))
    return None


def users(tables: Tables, rows: Iterable[VersionRow]) -> tuple[str, ...]:
    """The runs that have declared a use of any of some versions and have not ended it."""
    uses = (use for row in rows for use in uses_of(tables, *place_of(row)))
    return tuple(dict.fromkeys(run for run, use in uses if use.state == ACTIVE))


@dataclass(frozen=True, slots=True)
class Trashed:
    """What moving a version to the trash did: the links that went with it, the runs whose uses ended by it."""

    already: bool
    at: int
    purge_at: int
    links: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()


def move_to_trash(engine: Engine, found: Found, allowed: Allowed, *, reason: str, actor: str) -> Trashed:
    """Trash a version that is no link, and with it the links to it.

    Raises `ProtectedError`, `AliasGuardError`, `LinkGuardError`, `InUseError`, `VersionNotFoundError`.
    """
    done = Trashed(already=False, at=0, purge_at=0)

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal done
        version = version_at(tables, *place_of(found.version))
        assert version is not None
        now = found_of(tables, version)
        if version.state is VersionState.TRASHED:
            done = Trashed(already=True, at=version.trashed, purge_at=version.purge_at)
            return ()
        if version.state is VersionState.PURGED:
            raise wrong_state(now)
        held = aliases_of(tables, *place_of(version))
        why = obstacle(tables, now, held, protected_aliases(tables), allowed)
        if why is not None:
            raise why.refusal(now)
        rows = links_of(tables, version)
        labels = tuple(found_of(tables, row).label for row in rows)
        at, purge_at = engine.runtime.now(), policy.purge_time(tables)
        done = Trashed(already=False, at=at, purge_at=purge_at, links=labels, cancelled=users(tables, (version, *rows)))
        aliases = tuple(a for a in held if a != LATEST)
        return (trash_record(now, purge_at, aliases, allowed, reason, actor),)

    engine.commit(build)
    return done


def trash_record(
    found: Found, purge_at: int, aliases: tuple[str, ...], allowed: Allowed, reason: str, actor: str
) -> Trash:
    """The record that trashes a version as somebody asked for; it is void if more than that were to go."""
    return Trash(
        found.collection.name,
        found.version.number,
        purge_at,
        aliases,
        reason,
        actor,
        delete_links=allowed.links,
        refuse_in_use=allowed.refuse_in_use,
    )
