"""The trash: versions and collections that are hidden, restorable until their date, and then purged."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from casstore import catalogue, deletion
from casstore.catalogue import Found, full_name
from casstore.collection import Collection
from casstore.config import from_micros, to_micros
from casstore.engine import Engine
from casstore.errors import InvalidInputError, RefusedError, VersionNotFoundError
from casstore.gc.plan import garbage
from casstore.model import Record, VersionRow, VersionState
from casstore.names import CollectionName, parse_reference
from casstore.overlay import Tables
from casstore.restoring import check_whole
from casstore.state import BY_COLLECTION, BY_SOURCE, head_of
from casstore.values import dataclass
from casstore.version import Version
from casstore.view import collections, trashed, with_links

SORTS = ("purge_at", "trashed_at", "ref")


@dataclass(frozen=True, slots=True)
class TrashItem:
    """A version in the trash, or a collection with what was trashed with it.

    ``exclusive_bytes``: stored bytes that purging it would free. ``kind``: ``version`` or ``collection``.
    """

    ref: str
    type: str
    trashed_at: datetime
    purge_at: datetime
    trashed_by: str
    actor: str
    reason: str
    size: int
    exclusive_bytes: int
    kind: str = "version"
    versions: int = 1

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
            "kind": self.kind,
            "versions": self.versions,
        }


def exclusive(tables: Tables, rows: Sequence[VersionRow]) -> int:
    """Stored bytes that only some versions and the links to them keep."""
    return garbage(tables, [row.root for row in with_links(tables, rows)]).stored


class Trash:
    """The trash of one store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(self, sort: str = "purge_at") -> list[TrashItem]:
        """What is in the trash, the first to be purged first (or by ``trashed_at``, ``ref``)."""
        if sort not in SORTS:
            raise InvalidInputError(f"sort={sort!r} is not valid", hint=", ".join(SORTS))
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            items = self._items(tables)
        return sorted(items, key=lambda item: (getattr(item, sort), item.ref))

    def _items(self, tables: Tables) -> builtins.list[TrashItem]:
        head = head_of(tables)
        items: builtins.list[TrashItem] = []
        with_their_collection: set[tuple[int, int]] = set()
        for row in collections(tables):
            if row.state is VersionState.TRASHED:
                unit = deletion.unit(tables, row)
                with_their_collection.update((version.collection, version.number) for version in unit)
                items.append(
                    TrashItem(
                        full_name(row).short,
                        row.type,
                        from_micros(row.trashed),
                        from_micros(row.purge_at + head.highest - head.safe),
                        BY_COLLECTION,
                        row.trash_actor,
                        row.trash_reason,
                        sum(version.size for version in unit),
                        exclusive(tables, unit),
                        "collection",
                        len(unit),
                    )
                )
        for version in trashed(tables):
            if (version.collection, version.number) in with_their_collection or version.trashed_by == BY_SOURCE:
                continue
            items.append(
                TrashItem(
                    catalogue.found_of(tables, version).label,
                    version.type,
                    from_micros(version.trashed),
                    from_micros(version.purge_at + head.highest - head.safe),
                    version.trashed_by,
                    version.trash_actor,
                    version.trash_reason,
                    version.size,
                    exclusive(tables, [version]),
                )
            )
        return items

    def __len__(self) -> int:
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            hidden = [row for row in collections(tables) if row.state is VersionState.TRASHED]
            shown = sum(1 for version in trashed(tables) if version.trashed_by != BY_SOURCE)
            return shown + sum(1 - len(deletion.unit(tables, row)) for row in hidden)

    def restore(self, ref: str, name: str | None = None) -> Any:
        """Bring back a version, or a collection with what was trashed with it: returns the `Version` or `Collection`.

        A version has its number, metadata and tags again, and the aliases that are still free; those that belong to
        another version by now are in ``.aliases_not_restored`` of what is returned. The links that went with it come
        back as well.

        ``name``: for a version whose collection is in the trash or has another type by now: its content and labels
        become the next version of this collection, where ``latest`` moves to it; what is in the trash stays there.

        Every tree is walked first; `IntegrityError` if something is missing, and it stays in the trash. Raises
        `VersionNotFoundError` if it is not in the trash, `ParentDeletedError` if its collection is, or the source of a
        link.
        """
        hidden = self._collection(ref)
        if hidden is not None and name is not None:
            raise InvalidInputError(f"{ref!r} is a collection in the trash", hint="name= goes with a version: name:vN")
        if hidden is not None:
            return self._restore_collection(hidden)
        return Version(self._engine, self._lookup(ref)).restore(name)

    def _collection(self, ref: str) -> CollectionName | None:
        """The name of a collection in the trash, if that is what a reference says."""
        reference = parse_reference(ref)
        if reference.selector is not None:
            return None
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            row = catalogue.find_collection(tables, reference.collection, hidden=True)
            if row.state is VersionState.PURGED:
                catalogue.find_collection(tables, reference.collection)
        return full_name(row) if row.state is VersionState.TRASHED else None

    def _restore_collection(self, name: CollectionName) -> Collection:
        with self._engine.view.read() as tables:
            unit = deletion.unit(tables, deletion.trashed_collection(tables, name))
        check_whole(self._engine, [version.root for version in unit], name.short, name, None)
        deletion.restore_collection(self._engine, name)
        with self._engine.view.read() as tables:
            return Collection(self._engine, catalogue.find_collection(tables, name, hidden=True))

    def purge(self, ref: str) -> str:
        """Drop a trashed version for good, before its date; a collection then frees what only it kept.

        A trashed collection goes with every version of it that is in the trash; its name is free then, its numbers are
        not used again. Returns the reference. Raises `RefusedError` if it is not in the trash.
        """
        name = self._collection(ref)
        if name is not None:
            deletion.purge_collection(self._engine, name)
            return name.short
        try:
            found = self._lookup(ref)
        except VersionNotFoundError as error:
            if "is not in the trash" in error.message:
                raise RefusedError(f"{error.message}, so it cannot be purged", hint=error.hint) from None
            raise
        catalogue.purge(self._engine, found, self._engine.runtime.actor)
        return found.label

    def empty(self, older_than: timedelta | None = None, *, dry_run: bool = False) -> builtins.list[str]:
        """Purge everything in the trash, or what has been there for some time, in one commit; returns the references.

        Collections come without the versions that go with them.
        """
        if older_than is not None and not isinstance(older_than, timedelta):
            raise InvalidInputError(f"older_than={older_than!r} is not a timedelta")
        engine = self._engine
        limit = None if older_than is None else to_micros(engine.runtime.clock() - older_than)
        chosen: builtins.list[tuple[int, str]] = []

        def build(tables: Tables) -> Sequence[Record]:
            rows = [
                row
                for row in collections(tables)
                if row.state is VersionState.TRASHED and (limit is None or row.trashed <= limit)
            ]
            whole = {row.id for row in rows}
            beside = [
                version
                for version in trashed(tables)
                if version.collection not in whole
                and (limit is None or version.trashed <= limit)
                and version.trashed_by != BY_SOURCE  # it goes when its source goes
                and not (version.trashed_by == BY_COLLECTION and self._in_unit(tables, version))  # with its collection
            ]
            chosen[:] = [(row.purge_at, full_name(row).short) for row in rows]
            chosen.extend((version.purge_at, catalogue.found_of(tables, version).label) for version in beside)
            return deletion.purge_records(tables, rows, beside, engine.runtime.actor)

        if dry_run:
            with engine.foresee(build):
                pass
        else:
            engine.commit(build)
        return [label for _, label in sorted(chosen)]

    def _in_unit(self, tables: Tables, version: VersionRow) -> bool:
        row = catalogue.collection_of(tables, version)
        return row.state is VersionState.TRASHED and row.trash_seq == version.trash_seq

    def _lookup(self, ref: str) -> Found:
        reference = parse_reference(ref)
        if reference.number is None and reference.digest is None:
            raise InvalidInputError(f"{ref!r} does not name one version", hint="name:vN, or a collection in the trash")
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return catalogue.find(tables, reference, states=(VersionState.TRASHED,))
