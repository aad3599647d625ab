"""The trash: versions that are hidden, restorable until their date, and then purged by a collection."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from datetime import datetime, timedelta

from casstore import catalogue
from casstore.catalogue import Found, full_name
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import IntegrityError, InvalidInputError, RefusedError, VersionNotFoundError
from casstore.gc.mark import check_reachable
from casstore.gc.plan import garbage
from casstore.model import VersionRow, VersionState
from casstore.names import parse_reference
from casstore.overlay import Tables
from casstore.state import TRASHED
from casstore.version import Version
from casstore.view import collection_name, collection_named, trashed

SORTS = ("purge_at", "trashed_at", "ref")


@dataclass(frozen=True, slots=True)
class TrashItem:
    """A version in the trash. ``exclusive_bytes``: stored bytes that purging it would free."""

    ref: str
    type: str
    trashed_at: datetime
    purge_at: datetime
    trashed_by: str
    actor: str
    reason: str
    size: int
    exclusive_bytes: int

    def to_dict(self) -> dict[str, object]:
        """The item as JSON values."""
        return {
            "ref": self.ref,
            "type": self.type,
            "trashed_at": self.trashed_at.isoformat(),
            "purge_at": self.purge_at.isoformat(),
            "trashed_by": self.trashed_by,
            "actor": self.actor,
            "reason": self.reason,
            "size": self.size,
            "exclusive_bytes": self.exclusive_bytes,
        }


class Trash:
    """The trash of one store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(self, sort: str = "purge_at") -> list[TrashItem]:
        """What is in the trash, the first to be purged first (or by ``trashed_at``, ``ref``)."""
        if sort not in SORTS:
            raise InvalidInputError(f"sort={sort!r} is not valid", hint=", ".join(SORTS))
        self._engine.view.refresh()
        items = []
        with self._engine.view.read() as tables:
            found = [(self._found(tables, v), garbage(tables, [v.root]).stored) for v in trashed(tables)]
        for item, exclusive in found:
            version = item.version
            items.append(
                TrashItem(
                    item.label,
                    version.type,
                    from_micros(version.trashed),
                    catalogue.wall_time(self._engine, version.purge_at),
                    version.trashed_by,
                    version.trash_actor,
                    version.trash_reason,
                    version.size,
                    exclusive,
                )
            )
        return sorted(items, key=lambda item: (getattr(item, sort), item.ref))

    def _found(self, tables: Tables, version: VersionRow) -> Found:
        row = collection_named(tables, collection_name(tables, version.collection))
        assert row is not None
        return Found(full_name(row), row, version)

    def __len__(self) -> int:
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return tables.count(TRASHED)

    def restore(self, ref: str) -> Version:
        """Bring a version back: same number, metadata and tags; aliases that are still free come back.

        Those that belong to another version by now are in ``.aliases_not_restored`` of what is returned.

        Its tree is walked first; `IntegrityError` if something is missing, and it stays in the trash.
        Raises `VersionNotFoundError` if it is not in the trash.
        """
        found = self._lookup(ref)
        self._check_whole(found)
        lost = catalogue.restore(self._engine, found, self._engine.runtime.actor)
        return Version(self._engine, catalogue.lookup(self._engine, found.label), aliases_not_restored=lost)

    def _check_whole(self, found: Found) -> None:
        """Every node and chunk below the root has a place."""
        try:
            check_reachable(self._engine, (found.version.root,))
        except IntegrityError as error:
            raise IntegrityError(
                f"{found.label} stays in the trash: {error.message}",
                hint="casstore fsck",
                collection=found.name.short,
                version=f"v{found.version.number}",
            ) from None

    def purge(self, ref: str) -> str:
        """Drop a trashed version for good, before its date; a collection then frees what only it kept.

        Returns the reference. Raises `RefusedError` if the version is not in the trash.
        """
        try:
            found = self._lookup(ref)
        except VersionNotFoundError as error:
            if "is not in the trash" in error.message:
                raise RefusedError(f"{error.message}, so it cannot be purged", hint=error.hint) from None
            raise
        catalogue.purge(self._engine, found, self._engine.runtime.actor)
        return found.label

    def empty(self, older_than: timedelta | None = None, *, dry_run: bool = False) -> builtins.list[str]:
        """Purge everything in the trash, or what has been there for some time; returns the references."""
        if older_than is not None and not isinstance(older_than, timedelta):
            raise InvalidInputError(f"older_than={older_than!r} is not a timedelta")
        limit = None if older_than is None else self._engine.runtime.clock() - older_than
        due = [item.ref for item in self.list() if limit is None or item.trashed_at <= limit]
        return due if dry_run else [self.purge(ref) for ref in due]

    def _lookup(self, ref: str) -> Found:
        reference = parse_reference(ref)
        if reference.number is None and reference.digest is None:
            raise InvalidInputError(f"{ref!r} does not name one version", hint="name:vN")
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return catalogue.find(tables, reference, states=(VersionState.TRASHED,))
