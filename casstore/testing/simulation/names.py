"""The part of the abstract machine that is about names and time: versions, collections, aliases, the ratchet clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from casstore.format.rows import decode_row
from casstore.model import (
    DropAlias,
    Protect,
    Purge,
    PurgeCollection,
    PutVersion,
    Record,
    Restore,
    RestoreCollection,
    Segment,
    SetAlias,
    SetCollectionTtl,
    SetTtl,
    Trash,
    TrashCollection,
    Unpurge,
    UpdateVersion,
    VersionRow,
    VersionState,
)
from casstore.overlay import Tables
from casstore.state import VERSION
from casstore.view import aliases, collections

K = TypeVar("K")
V = TypeVar("V")

DAY = 86_400_000_000
COMMITTED, TRASHED, PURGED = VersionState.COMMITTED, VersionState.TRASHED, VersionState.PURGED
Key = tuple[str, int]


class Difference(Exception):
    """The library did what the protocol does not allow. ``check`` names the rule."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


class Void(Exception):
    """A record is not valid here."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version. ``safe_at`` and ``hidden_at``: the ratchet clock and the segment when it went into the trash."""

    state: VersionState
    root: bytes
    label: str
    trash_seq: int = 0
    purge_at: int = 0
    safe_at: int = 0
    hidden_at: int = 0
    aliases: tuple[str, ...] = ()
    protected: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection."""

    type: str
    next_number: int = 0
    state: VersionState = COMMITTED
    trash_seq: int = 0
    purge_at: int = 0
    protected: str = ""


class Names:
    """Names as dictionaries, every change of which can be taken back until the transaction is over."""

    def __init__(self) -> None:
        self.seq = 0
        self.safe = 0
        self.highest = 0
        self.writer = ""
        self.txids: dict[bytes, tuple[int, tuple[int, ...]]] = {}
        self.roots: dict[bytes, int] = {}
        self.versions: dict[Key, Version] = {}
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.journal: list[tuple[dict[Any, Any], Any, Any]] = []
        self.on_version: Callable[[str, int, Version], None] = lambda *_: None
        self.on_purge: Callable[[str, int, Version], None] = lambda *_: None
        self._names: dict[type[Any], Callable[[Any], int | None]] = {
            PutVersion: self._put_version,
            UpdateVersion: lambda r: self._check(self._committed(r.collection, r.number)),
            Trash: self._trash,
            Restore: self._restore,
            Purge: self._purge,
            Unpurge: self._unpurge,
            SetTtl: lambda r: self._check(self._committed(r.collection, r.number)),
            Protect: self._protect,
            SetAlias: self._set_alias,
            DropAlias: self._drop_alias,
            SetCollectionTtl: lambda r: self._check(self._shown(r.collection)),
            TrashCollection: self._trash_collection,
            RestoreCollection: self._restore_collection,
            PurgeCollection: self._purge_collection,
        }

    # --- changes that can be taken back

    def assign(self, table: dict[K, V], key: K, value: V) -> None:
        """Set a key."""
        self.journal.append((table, key, table.get(key, _ABSENT)))
        table[key] = value

    def remove(self, table: dict[K, V], key: K) -> None:
        """Remove a key, if it is there."""
        if key in table:
            self.journal.append((table, key, table.pop(key)))

    def undo(self) -> None:
        """Take back everything since the journal was emptied."""
        for table, key, old in reversed(self.journal):
            if old is _ABSENT:
                table.pop(key, None)
            else:
                table[key] = old
        self.journal = []

    # --- time

    def tick(self, segment: Segment) -> None:
        """FORMAT §6: what one writer saw pass counts in full, what another claims for at most a day."""
        step = max(0, segment.claimed - self.highest) if self.seq else segment.claimed
        if self.seq and segment.writer != self.writer and step > DAY:
            step = DAY
        self.seq, self.writer = segment.seq, segment.writer
        self.safe += step
        self.highest = max(self.highest, segment.claimed)

    # --- records

    def hold_root(self, root: bytes, *, node: bool = True) -> None:
        """One root more."""
        raise NotImplementedError

    def release_root(self, root: bytes) -> None:
        """One root less."""
        raise NotImplementedError

    def name_record(self, record: Record) -> int | None:
        """Carry out a record about names; the number it gave, if any. Raises `Difference` for an unknown kind."""
        rule = self._names.get(type(record))
        if rule is None:
            raise Difference("model", f"the abstract machine does not know {type(record).__name__}")
        return rule(record)

    def _check(self, _: object) -> None:
        return None

    def _collection(self, name: str) -> Collection:
        found = self.collections.get(name)
        if found is None:
            raise Void(f"no collection {name}")
        return found

    def _shown(self, name: str) -> Collection:
        found = self._collection(name)
        if found.state is not COMMITTED:
            raise Void(f"collection {name} is {found.state}")
        return found

    def _version(self, collection: str, number: int) -> Version:
        found = self.versions.get((collection, number))
        if found is None:
            raise Void(f"no version {collection}:v{number}")
        return found

    def _committed(self, collection: str, number: int) -> Version:
        found = self._version(collection, number)
        if found.state is not COMMITTED:
            raise Void(f"{collection}:v{number} is {found.state}")
        return found

    def _in_trash(self, collection: str, number: int, trash_seq: int) -> Version:
        found = self._version(collection, number)
        if found.state is not TRASHED or found.trash_seq != trash_seq:
            raise Void(f"{collection}:v{number} is not in the trash")
        return found

    def _put_version(self, record: PutVersion) -> int:
        known = self.collections.get(record.collection)
        if known is not None and known.state is TRASHED:
            raise Void("the collection is in the trash")
        if known is not None and known.state is COMMITTED and known.type != record.type:
            raise Void("the collection has another type")
        number = 0 if known is None else known.next_number
        kept = known if known is not None and known.state is COMMITTED else Collection(record.type)
        self.hold_root(record.root)
        self.assign(self.collections, record.collection, replace(kept, next_number=number + 1))
        version = Version(COMMITTED, record.root, record.description)
        self.assign(self.versions, (record.collection, number), version)
        for alias in record.aliases:
            self._point(record.collection, alias, number)
        if record.move_latest:
            self._point(record.collection, "latest", number)
        self.on_version(record.collection, number, version)
        return number

    def _held(self, collection: str, number: int) -> tuple[str, ...]:
        return tuple(a for (c, a), n in self.aliases.items() if c == collection and n == number and a != "latest")

    def _trash(self, record: Trash) -> None:
        version = self._committed(record.collection, record.number)
        if version.protected or self._collection(record.collection).protected:
            raise Void("protected")
        held = self._held(record.collection, record.number)
        if not set(held) <= set(record.aliases):
            raise Void("it has aliases")
        self._hide(record.collection, record.number, version, record.purge_at, record.trashed_by)
        if self.aliases.get((record.collection, "latest")) == record.number:
            self._latest(record.collection)

    def _hide(self, collection: str, number: int, version: Version, purge_at: int, by: str) -> None:
        held = self._held(collection, number)
        hidden = replace(
            version,
            state=TRASHED,
            trash_seq=self.seq,
            purge_at=purge_at,
            safe_at=self.safe,
            hidden_at=self.seq,
            aliases=held,
            by=by,
        )
        self.assign(self.versions, (collection, number), hidden)
        for alias in held:
            self.remove(self.aliases, (collection, alias))

    def _latest(self, collection: str) -> None:
        live = [n for (c, n), v in self.versions.items() if c == collection and v.state is COMMITTED]
        self._point(collection, "latest", max(live, default=-1))

    def _point(self, collection: str, alias: str, number: int) -> None:
        if number < 0:
            self.remove(self.aliases, (collection, alias))
        else:
            self.assign(self.aliases, (collection, alias), number)

    def _restore(self, record: Restore) -> None:
        version = self._in_trash(record.collection, record.number, record.trash_seq)
        self._shown(record.collection)
        self._show(record.collection, record.number, version)
        if self.aliases.get((record.collection, "latest"), -1) < record.number:
            self._point(record.collection, "latest", record.number)

    def _show(self, collection: str, number: int, version: Version) -> None:
        shown = replace(version, state=COMMITTED, trash_seq=0, purge_at=0, aliases=(), by="")
        self.assign(self.versions, (collection, number), shown)
        for alias in version.aliases:
            if (collection, alias) not in self.aliases:
                self._point(collection, alias, number)

    def _purge(self, record: Purge) -> None:
        version = self._in_trash(record.collection, record.number, record.trash_seq)
        if not record.force:
            if self.safe < version.purge_at:
                raise Void("it is not time yet")
            self.on_purge(record.collection, record.number, version)
        self.assign(self.versions, (record.collection, record.number), replace(version, state=PURGED))
        self.release_root(version.root)

    def _unpurge(self, record: Unpurge) -> None:
        version = self._version(record.collection, record.number)
        if version.state is not PURGED:
            raise Void("it is not purged")
        self.hold_root(version.root)
        back = replace(
            version, state=TRASHED, trash_seq=self.seq, purge_at=record.purge_at, safe_at=self.safe, hidden_at=self.seq
        )
        self.assign(self.versions, (record.collection, record.number), back)
        collection = self._collection(record.collection)
        if collection.state is PURGED:
            again = replace(collection, state=TRASHED, trash_seq=self.seq, purge_at=record.purge_at)
            self.assign(self.collections, record.collection, again)

    def _protect(self, record: Protect) -> None:
        if record.number >= 0:
            version = self._committed(record.collection, record.number)
            self.assign(self.versions, (record.collection, record.number), replace(version, protected=record.reason))
        else:
            shown = self._shown(record.collection)
            self.assign(self.collections, record.collection, replace(shown, protected=record.reason))

    def _set_alias(self, record: SetAlias) -> None:
        self._committed(record.collection, record.number)
        if record.expect not in {-2, self.aliases.get((record.collection, record.alias), -1)}:
            raise Void("the alias is elsewhere")
        self._point(record.collection, record.alias, record.number)

    def _drop_alias(self, record: DropAlias) -> None:
        if self.aliases.get((record.collection, record.alias)) != record.number:
            raise Void("the alias is elsewhere")
        self.remove(self.aliases, (record.collection, record.alias))

    def _of(self, collection: str, state: VersionState) -> list[tuple[int, Version]]:
        return [(n, v) for (c, n), v in self.versions.items() if c == collection and v.state is state]

    def _trash_collection(self, record: TrashCollection) -> None:
        collection = self._shown(record.collection)
        live = self._of(record.collection, COMMITTED)
        if collection.protected or any(version.protected for _, version in live):
            raise Void("protected")
        for number, version in live:
            self._hide(record.collection, number, version, record.purge_at, "collection")
        self.remove(self.aliases, (record.collection, "latest"))
        hidden = replace(collection, state=TRASHED, trash_seq=self.seq, purge_at=record.purge_at)
        self.assign(self.collections, record.collection, hidden)

    def _hidden(self, name: str, trash_seq: int) -> Collection:
        found = self._collection(name)
        if found.state is not TRASHED or found.trash_seq != trash_seq:
            raise Void("the collection is not in the trash")
        return found

    def _restore_collection(self, record: RestoreCollection) -> None:
        found = self._hidden(record.collection, record.trash_seq)
        for number, version in self._of(record.collection, TRASHED):
            if version.by == "collection" and version.trash_seq == found.trash_seq:
                self._show(record.collection, number, version)
        self.assign(self.collections, record.collection, replace(found, state=COMMITTED, trash_seq=0, purge_at=0))
        self._latest(record.collection)

    def _purge_collection(self, record: PurgeCollection) -> None:
        found = self._hidden(record.collection, record.trash_seq)
        if not record.force and self.safe < found.purge_at:
            raise Void("it is not time yet")
        if self._of(record.collection, TRASHED):
            raise Void("versions of it are in the trash")
        self.assign(self.collections, record.collection, replace(found, state=PURGED))

    # --- a replica

    def compare_names(self, process: str, tables: Tables) -> None:
        """Versions, collections and aliases against a replica at the same position."""
        names = {}
        for row in collections(tables):
            names[row.id] = row.name
            mine = self.collections.get(row.name)
            if mine is None or (mine.type, mine.next_number, mine.state) != (row.type, row.next_number, row.state):
                raise Difference("names", f"{process} has {row}, not {mine}")
            theirs = aliases(tables, row.id)
            ours = {alias: number for (name, alias), number in self.aliases.items() if name == row.name}
            if theirs != ours:
                raise Difference("names", f"{process} has {row.name} with {theirs}, not {ours}")
        found: dict[Key, tuple[VersionState, bytes]] = {}
        for _, value in tables.scan(VERSION):
            version = decode_row(value, VersionRow)
            found[names[version.collection], version.number] = (version.state, version.root)
        if found != {key: (version.state, version.root) for key, version in self.versions.items()}:
            raise Difference("names", f"{process} has other versions")


_ABSENT = object()
