"""A collection, as users hold it: its versions, its protection, and its end as one unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from casstore import catalogue, deletion, expiry
from casstore.catalogue import Found, full_name, labelled
from casstore.config import from_micros
from casstore.deletion import CollectionDeletion, aliases_by_number
from casstore.engine import Engine
from casstore.errors import InvalidInputError, NameTakenError, RefusedError
from casstore.format.rows import decode_row
from casstore.ingest import check_open
from casstore.inventory import KINDS, kind_of
from casstore.model import (
    KEPT,
    BatchRow,
    CollectionRow,
    PutCollection,
    Record,
    RenameCollection,
    UpdateCollection,
    VersionState,
)
from casstore.names import CollectionName, check_description, check_type
from casstore.overlay import Tables
from casstore.selection import Where
from casstore.state import BATCH, batch_key, batches_prefix, head_of
from casstore.trashing import Allowed
from casstore.version import Version
from casstore.view import collection_name, collection_named, identifier_of, links_of, versions

STATES = {
    "COMMITTED": VersionState.COMMITTED,
    "TRASHED": VersionState.TRASHED,
    "PURGED": VersionState.PURGED,
}


def state_from(state: str | None, *, trashed: bool) -> VersionState:
    """The state that is meant. Raises `InvalidInputError`."""
    if state is None:
        return VersionState.TRASHED if trashed else VersionState.COMMITTED
    if state not in tuple(STATES) or trashed:
        raise InvalidInputError(f"state={state!r} is not valid", hint=", ".join(STATES))
    return STATES[state]


def list_versions(
    engine: Engine,
    name: CollectionName,
    *,
    newest_first: bool = True,
    state: VersionState = VersionState.COMMITTED,
    where: Where | None = None,
) -> list[Version]:
    """Versions of a collection in one state that readers see. O(versions of the collection) with ``where``."""
    if where is not None and not isinstance(where, Where):
        raise InvalidInputError(f"where={where!r} is not a Where", hint="Where(unaliased=True)")
    engine.view.refresh()
    with engine.view.read() as tables:
        row = catalogue.find_collection(tables, name, hidden=state is not VersionState.COMMITTED)
        stored = versions(tables, row.id, newest_first=newest_first, states=(state,))
        rows = list(expiry.visible(tables, expiry.terms_now(engine, tables), row, stored))
        if where is not None:
            matcher = catalogue.matcher(tables, where, head_of(tables).safe)
            held = aliases_by_number(tables, row.id)
            rows = [
                version
                for version in (rows if matcher.takes(row) else ())
                if matcher.row(labelled(tables, version)) and matcher.aliases(held.get(version.number, ()))
            ]
    return [Version(engine, Found(full_name(row), row, version)) for version in rows]


class Collection:
    """A named sequence of versions of one type. Properties are looked up at the head of the log. Thread-safe.

    Once it is in the trash they raise `CollectionNotFoundError`; ``store.trash.restore(name)`` brings it back.
    """

    def __init__(self, engine: Engine, row: CollectionRow) -> None:
        self._engine = engine
        self._id = row.id
        self._last = full_name(row)

    def __repr__(self) -> str:
        return f"<Collection {self._last}>"

    def __str__(self) -> str:
        return self._last.short

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Collection) and (self._engine.config.store_id, self._id) == (
            other._engine.config.store_id,
            other._id,
        )

    def __hash__(self) -> int:
        return hash(self._id)

    def _row(self) -> CollectionRow:
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return catalogue.shown_collection(tables, self._id)

    @property
    def _name(self) -> CollectionName:
        """Its name now, whoever renamed it; also while it is in the trash."""
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            self._last = CollectionName.parse(collection_name(tables, self._id))
        return self._last

    @property
    def name(self) -> str:
        """The name, with as little namespace as it needs."""
        return self._name.short

    @property
    def qualified_name(self) -> str:
        """``entity/project/name``."""
        return str(self._name)

    @property
    def type(self) -> str:
        """The type of its versions."""
        return self._row().type

    @property
    def created_at(self) -> datetime:
        """When its first version was committed (UTC)."""
        return from_micros(self._row().created)

    @property
    def protected(self) -> str | None:
        """Why nothing in it may be deleted; None if it may."""
        return self._row().protected or None

    @property
    def kind(self) -> str:
        """``sequence``, or ``portfolio``: it takes links only."""
        return kind_of(self._row())

    @property
    def description(self) -> str:
        """Free text."""
        return self._row().description

    def versions(
        self,
        *,
        newest_first: bool = True,
        trashed: bool = False,
        state: str | None = None,
        where: Where | None = None,
    ) -> list[Version]:
        """Its versions, newest first; those in the trash instead with ``trashed``, or in another ``state``.

        ``where``: only those that match; a link has the labels of its source.
        """
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            name = CollectionName.parse(collection_name(tables, self._id))
        return list_versions(
            self._engine, name, newest_first=newest_first, state=state_from(state, trashed=trashed), where=where
        )

    def rename(self, new: str) -> None:
        """Give it another name, also in another project. Versions, numbers and aliases stay as they are.

        The old name leads here until a collection takes it; logging or linking to it makes a new one. Raises
        `NameTakenError`, also for the name of one that is in the trash, or was purged: its numbers are remembered.
        """
        target = CollectionName.parse(new)

        def build(tables: Tables) -> Sequence[Record]:
            row = catalogue.shown_collection(tables, self._id)
            if row.name == str(target):
                return ()
            taken = collection_named(tables, str(target))
            if taken is not None:
                raise _taken(target, taken)
            _check_batches(tables, row.name, target)
            return (RenameCollection(row.name, str(target), self._engine.runtime.actor),)

        self._engine.commit(build)

    def update(self, description: str | None = None, type: str | None = None) -> None:  # noqa: A002 - the users' word
        """Change the description, or the type of it and all its versions, in one step. None leaves it alone.

        The type of a collection with links in it, or to it, cannot be changed (`RefusedError`), nor be one the store
        keeps for itself.
        """
        text = None if description is None else check_description(description)
        kind = None if type is None else check_type(type)

        def build(tables: Tables) -> Sequence[Record]:
            row = catalogue.shown_collection(tables, self._id)
            other = None if kind == row.type else kind
            if other is not None:
                _check_retype(tables, row, other)
            if (text is None or text == row.description) and other is None:
                return ()
            return (UpdateCollection(row.name, text, other, self._engine.runtime.actor),)

        self._engine.commit(build)

    def protect(self, reason: str) -> None:
        """Keep it and every version in it from being deleted, by whatever route, until `unprotect`."""
        reason = check_description(reason)
        if not reason.strip():
            raise InvalidInputError("a protection needs a reason", hint="protect('used by the paper')")
        catalogue.protect_collection(self._engine, self._id, reason, self._engine.runtime.actor)

    def unprotect(self) -> None:
        """Lift the protection of the collection; that of single versions stays."""
        catalogue.protect_collection(self._engine, self._id, "", self._engine.runtime.actor)

    def delete(
        self,
        delete_aliases: bool = False,  # noqa: FBT001, FBT002 - as Version.delete
        reason: str = "",
        confirm: str | None = None,
        *,
        delete_links: bool = False,
        if_in_use: str = "cancel",
        permanent: bool = False,
        dry_run: bool = False,
    ) -> CollectionDeletion:
        """Move it to the trash with all its versions, as one unit and in one commit.

        Aliases other than ``latest`` are in the way (`AliasGuardError`) unless ``delete_aliases`` or ``confirm``, which
        is its name. Raises `ProtectedError` if it or any of its versions is protected, `ConfirmationRequired` for
        another name; `LinkGuardError` if other collections have links to its versions, unless ``delete_links``, which
        hides those, too; `InUseError` if any is in use and ``if_in_use="refuse"``: else its uses are cancelled. The
        links in it are hidden with it. Until it is purged the name stays taken. Deleting again changes nothing.
        ``permanent`` purges it at once, in a second commit: nothing restores it then but, until the grace is over, an
        undo of the collector's run.
        """
        done = deletion.delete_collection(
            self._engine,
            self._id,
            allowed=Allowed.of(aliases=delete_aliases, links=delete_links, if_in_use=if_in_use),
            reason=check_description(reason),
            confirm=confirm,
            dry_run=dry_run,
        )
        if not permanent:
            return done
        if not dry_run:
            deletion.purge_collection(self._engine, CollectionName.parse(done.ref))
        return replace(done, purge_at=done.trashed_at)

    def to_dict(self) -> dict[str, object]:
        """The collection as JSON values."""
        row = self._row()
        return {
            "name": self.name,
            "qualified_name": self.qualified_name,
            "type": row.type,
            "kind": kind_of(row),
            "description": row.description,
            "created_at": from_micros(row.created).isoformat(),
            "protected": row.protected or None,
        }


def create(engine: Engine, name: str, type: str, kind: str, description: str) -> Collection:  # noqa: A002
    """Make a collection without versions. Raises `NameTakenError`, `InvalidInputError`, `RefusedError`."""
    target, wanted, text = CollectionName.parse(name), check_type(type), check_description(description)
    if kind not in KINDS:
        raise InvalidInputError(f"kind={kind!r} is not valid", hint=" or ".join(KINDS))

    made = 0

    def build(tables: Tables) -> Sequence[Record]:
        nonlocal made
        taken = collection_named(tables, str(target))
        if taken is not None and taken.state is not VersionState.PURGED:
            raise _taken(target, taken)
        check_open(tables, wanted)
        made = identifier_of(tables, str(target))
        return (PutCollection(str(target), wanted, kind == "portfolio", text, engine.runtime.actor),)

    engine.commit(build)
    with engine.view.read() as tables:
        now = CollectionName.parse(collection_name(tables, made))
        return Collection(engine, catalogue.find_collection(tables, now, hidden=True))


def _taken(name: CollectionName, row: CollectionRow) -> NameTakenError:
    if row.state is VersionState.TRASHED:
        hint = f"casstore trash restore {name.short}, or another name"
        return NameTakenError(f"{name.short} is taken by a collection in the trash", hint=hint)
    if row.state is VersionState.PURGED:
        return NameTakenError(f"{name.short} was the name of a purged collection, whose numbers are not used again")
    return NameTakenError(f"there is a collection {name.short}")


def _check_batches(tables: Tables, name: str, target: CollectionName) -> None:
    """The batches of a collection go with it, to where their ids must be free."""
    for _, value in tables.scan(BATCH, prefix=batches_prefix(name)):
        batch = decode_row(value, BatchRow).batch
        if tables.get(BATCH, batch_key(str(target), batch)) is not None:
            raise NameTakenError(
                f"both collections have a version in the making {batch!r}", hint="casstore pending ls, or another name"
            )


def _check_retype(tables: Tables, row: CollectionRow, kind: str) -> None:
    check_open(tables, kind)
    name = full_name(row).short
    for version in versions(tables, row.id, states=KEPT):
        if version.is_link or links_of(tables, version, KEPT):
            raise RefusedError(
                f"{name} keeps its type: {name}:v{version.number} is {'a link' if version.is_link else 'linked'}",
                hint="links have the type of their source",
            )
