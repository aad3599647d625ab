"""A collection, as users hold it: its versions, its protection, and its end as one unit."""

from __future__ import annotations

from datetime import datetime

from casstore import catalogue, deletion, expiry
from casstore.catalogue import Found, full_name
from casstore.config import from_micros
from casstore.deletion import CollectionDeletion
from casstore.engine import Engine
from casstore.errors import InvalidInputError
from casstore.model import CollectionRow, VersionState
from casstore.names import CollectionName, check_description
from casstore.version import Version
from casstore.view import collection_name, versions


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

    def versions(self, *, newest_first: bool = True, trashed: bool = False) -> list[Version]:
        """Its versions, newest first; those in the trash instead with ``trashed``."""
        state = VersionState.TRASHED if trashed else VersionState.COMMITTED
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            name = CollectionName.parse(collection_name(tables, self._id))
            row = catalogue.find_collection(tables, name, hidden=trashed)
            stored = versions(tables, row.id, newest_first=newest_first, states=(state,))
            rows = list(expiry.visible(tables, expiry.terms_now(self._engine, tables), row, stored))
        return [Version(self._engine, Found(name, row, version)) for version in rows]

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
        dry_run: bool = False,
    ) -> CollectionDeletion:
        """Move it to the trash with all its versions, as one unit and in one commit.

        Aliases other than ``latest`` are in the way (`AliasGuardError`) unless ``delete_aliases`` or ``confirm``, which
        is its name. Raises `ProtectedError` if it or any of its versions is protected, `ConfirmationRequired` for
        another name. Until it is purged the name stays taken. Deleting again changes nothing.
        """
        return deletion.delete_collection(
            self._engine,
            self._name,
            delete_aliases=delete_aliases,
            reason=check_description(reason),
            confirm=confirm,
            dry_run=dry_run,
        )

    def to_dict(self) -> dict[str, object]:
        """The collection as JSON values."""
        row = self._row()
        return {
            "name": self.name,
            "qualified_name": self.qualified_name,
            "type": row.type,
            "created_at": from_micros(row.created).isoformat(),
            "protected": row.protected or None,
        }
