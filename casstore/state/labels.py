"""What records about names need and do: versions, collections, aliases, policy."""

import json
from collections.abc import Iterator
from dataclasses import replace

from casstore.format.rows import (
    decode_row,
    encode_row,
    u64,
)
from casstore.model import (
    AliasChange,
    CollectionRow,
    DropAlias,
    Protect,
    Purge,
    PurgeCollection,
    PutVersion,
    Restore,
    RestoreCollection,
    SetAlias,
    SetCollectionTtl,
    SetPolicy,
    SetTtl,
    Trash,
    TrashCollection,
    Unpurge,
    UpdateVersion,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST
from casstore.state.content import ContentRules, Void
from casstore.state.schema import (
    ALIAS,
    ALIAS_LOG,
    ANY,
    COLLECTION,
    COLLECTION_NAME,
    HEAD_KEY,
    META,
    POLICY,
    ROOT,
    TRASHED,
    VERSION,
    VERSION_ALIAS,
    alias_target,
    aliases_of,
    head_of,
    highest_live,
    version_key,
)


class CatalogueRules(ContentRules):
    """The rules for versions and names."""

    # --- versions

    def _put_version(self, record: PutVersion) -> int:
        collection = self._collection_for(record)
        self._hold_root(record.root)
        number = collection.next_number
        self.tables.put(COLLECTION, record.collection.encode(), encode_row(replace(collection, next_number=number + 1)))
        self._put(
            VersionRow(
                collection=collection.id,
                number=number,
                state=VersionState.COMMITTED,
                type=record.type,
                root=record.root,
                size=record.size,
                file_count=record.file_count,
                description=record.description,
                metadata=record.metadata,
                tags=record.tags,
                base=record.base,
                ttl=record.ttl,
                created=self.segment.claimed,
                updated=self.segment.claimed,
                seq=self.segment.seq,
                actor=record.actor,
                born=head_of(self.tables).safe,
            )
        )
        self.tables.put(ROOT, u64(collection.id) + record.root + u64(number), b"")
        aliases = [alias for alias in record.aliases if alias != LATEST]
        if record.move_latest:
            aliases.append(LATEST)
        for alias in aliases:
            self._point(collection.id, alias, number, record.actor)
        return number

    def _collection_for(self, record: PutVersion) -> CollectionRow:
        row = self.tables.get(COLLECTION, record.collection.encode())
        if row is not None:
            collection = decode_row(row, CollectionRow)
            if collection.state is VersionState.TRASHED:
                raise Void(f"collection {record.collection} is in the trash")
            if collection.state is VersionState.PURGED:
                # The name is free again, its numbers are not.
                return CollectionRow(
                    collection.id, collection.name, record.type, collection.next_number, self.segment.claimed
                )
            if collection.type != record.type:
                raise Void(f"collection {record.collection} has type {collection.type}")
            return collection
        head = head_of(self.tables)
        collection = CollectionRow(head.collections + 1, record.collection, record.type, 0, self.segment.claimed)
        self.tables.put(META, HEAD_KEY, encode_row(replace(head, collections=collection.id)))
        self.tables.put(COLLECTION_NAME, u64(collection.id), record.collection.encode())
        return collection

    def _collection(self, name: str) -> CollectionRow:
        row = self.tables.get(COLLECTION, name.encode())
        if row is None:
            raise Void(f"there is no collection {name}")
        return decode_row(row, CollectionRow)

    def _version(self, collection: str, number: int) -> VersionRow:
        identifier = self._collection(collection).id
        row = self.tables.get(VERSION, version_key(identifier, number))
        if row is None:
            raise Void(f"there is no version {collection}:v{number}")
        return decode_row(row, VersionRow)

    def _put(self, version: VersionRow) -> None:
        self.tables.put(VERSION, version_key(version.collection, version.number), encode_row(version))

    def _live(self, collection: str, number: int) -> VersionRow:
        version = self._version(collection, number)
        if version.state is not VersionState.COMMITTED:
            raise Void(f"{collection}:v{number} is {version.state}")
        return version

    def _update_version(self, record: UpdateVersion) -> None:
        version = self._live(record.collection, record.number)
        self._put(
            replace(
                version,
                description=version.description if record.description is None else record.description,
                metadata=version.metadata if record.metadata is None else record.metadata,
                tags=version.tags if record.tags is None else record.tags,
                updated=self.segment.claimed,
            )
        )

    def _trash(self, record: Trash) -> None:
        version = self._live(record.collection, record.number)
        if version.protected or self._collection(record.collection).protected:
            raise Void(f"{record.collection}:v{record.number} is protected")
        held = self._held(version)
        if set(held) - set(record.aliases):
            raise Void(f"{record.collection}:v{record.number} has aliases {', '.join(held)}")
        self._hide(version, record.purge_at, held, (record.reason, record.actor, record.trashed_by))
        if alias_target(self.tables, version.collection, LATEST) == version.number:
            self._point(version.collection, LATEST, highest_live(self.tables, version.collection), record.actor)

    def _held(self, version: VersionRow) -> tuple[str, ...]:
        return tuple(a for a in aliases_of(self.tables, version.collection, version.number) if a != LATEST)

    def _hide(self, version: VersionRow, purge_at: int, held: tuple[str, ...], why: tuple[str, str, str]) -> None:
        reason, actor, trashed_by = why
        self._put(
            replace(
                version,
                state=VersionState.TRASHED,
                trash_seq=self.segment.seq,
                trashed=self.segment.claimed,
                purge_at=purge_at,
                trash_aliases=held,
                trash_reason=reason,
                trash_actor=actor,
                trashed_by=trashed_by,
            )
        )
        self.tables.put(TRASHED, version_key(version.collection, version.number), b"")
        for alias in held:
            self._point(version.collection, alias, -1, actor)

    def _restore(self, record: Restore) -> None:
        version = self._trashed(record.collection, record.number, record.trash_seq)
        collection = self._collection(record.collection)
        if collection.state is not VersionState.COMMITTED:
            raise Void(f"collection {record.collection} is in the trash")
        if collection.type != version.type:
            # It was purged with the collection, whose name got another type, and unpurged.
            raise Void(f"collection {record.collection} has type {collection.type}")
        self._show(version, record.actor)
        latest = alias_target(self.tables, version.collection, LATEST)
        if latest is None or latest < version.number:
            self._point(version.collection, LATEST, version.number, record.actor)

    def _trashed(self, collection: str, number: int, trash_seq: int) -> VersionRow:
        version = self._version(collection, number)
        if version.state is not VersionState.TRASHED or version.trash_seq != trash_seq:
            raise Void(f"{collection}:v{number} is not in the trash")
        return version

    def _show(self, version: VersionRow, actor: str) -> None:
        self._put(
            replace(
                version,
                state=VersionState.COMMITTED,
                trash_seq=0,
                trashed=0,
                purge_at=0,
                trash_aliases=(),
                trash_reason="",
                trash_actor="",
                trashed_by="",
                ttl=0 if version.trashed_by == "ttl" else version.ttl,
            )
        )
        self.tables.delete(TRASHED, version_key(version.collection, version.number))
        for alias in version.trash_aliases:
            if alias_target(self.tables, version.collection, alias) is None:
                self._point(version.collection, alias, version.number, actor)

    def _purge(self, record: Purge) -> None:
        version = self._trashed(record.collection, record.number, record.trash_seq)
        if not record.force and head_of(self.tables).safe < version.purge_at:
            raise Void(f"{record.collection}:v{record.number} may not be purged yet")
        self._put(replace(version, state=VersionState.PURGED, updated=self.segment.claimed, purge_seq=self.segment.seq))
        self.tables.delete(TRASHED, version_key(version.collection, version.number))
        self.tables.delete(ROOT, u64(version.collection) + version.root + u64(version.number))
        self._release(version.root)

    def _unpurge(self, record: Unpurge) -> None:
        version = self._version(record.collection, record.number)
        if version.state is not VersionState.PURGED:
            raise Void(f"{record.collection}:v{record.number} is {version.state}")
        self._hold_root(version.root)
        self._put(replace(version, state=VersionState.TRASHED, trash_seq=self.segment.seq, purge_at=record.purge_at))
        self.tables.put(TRASHED, version_key(version.collection, version.number), b"")
        self.tables.put(ROOT, u64(version.collection) + version.root + u64(version.number), b"")
        collection = self._collection(record.collection)
        if collection.state is VersionState.PURGED:
            self._put_collection(
                replace(collection, state=VersionState.TRASHED, trash_seq=self.segment.seq, purge_at=record.purge_at)
            )

    def _set_ttl(self, record: SetTtl) -> None:
        version = self._live(record.collection, record.number)
        self._put(replace(version, ttl=record.ttl, updated=self.segment.claimed))

    def _protect(self, record: Protect) -> None:
        if record.number >= 0:
            version = self._live(record.collection, record.number)
            self._put(replace(version, protected=record.reason, updated=self.segment.claimed))
        elif record.number != -1:
            raise Void(f"there is no version {record.collection}:v{record.number}")
        else:
            self._put_collection(replace(self._shown(record.collection), protected=record.reason))

    # --- collections

    def _put_collection(self, collection: CollectionRow) -> None:
        self.tables.put(COLLECTION, collection.name.encode(), encode_row(collection))

    def _shown(self, name: str) -> CollectionRow:
        collection = self._collection(name)
        if collection.state is not VersionState.COMMITTED:
            raise Void(f"collection {name} is {collection.state}")
        return collection

    def _set_collection_ttl(self, record: SetCollectionTtl) -> None:
        self._put_collection(replace(self._shown(record.collection), ttl=record.ttl))

    def _trash_collection(self, record: TrashCollection) -> None:
        collection = self._shown(record.collection)
        live = list(self._versions(collection, VersionState.COMMITTED))
        if collection.protected or any(version.protected for version in live):
            raise Void(f"collection {record.collection} is protected")
        for version in live:
            why = (record.reason, record.actor, "collection")
            self._hide(version, record.purge_at, self._held(version), why)
        self._point(collection.id, LATEST, -1, record.actor)
        self._put_collection(
            replace(
                collection,
                state=VersionState.TRASHED,
                trash_seq=self.segment.seq,
                trashed=self.segment.claimed,
                purge_at=record.purge_at,
                trash_reason=record.reason,
                trash_actor=record.actor,
            )
        )

    def _versions(self, collection: CollectionRow, state: VersionState) -> Iterator[VersionRow]:
        for _, row in self.tables.scan(VERSION, prefix=u64(collection.id)):
            version = decode_row(row, VersionRow)
            if version.state is state:
                yield version

    def _trashed_collection(self, name: str, trash_seq: int) -> CollectionRow:
        collection = self._collection(name)
        if collection.state is not VersionState.TRASHED or collection.trash_seq != trash_seq:
            raise Void(f"collection {name} is not in the trash")
        return collection

    def _restore_collection(self, record: RestoreCollection) -> None:
        collection = self._trashed_collection(record.collection, record.trash_seq)
        self._put_collection(
            replace(
                collection,
                state=VersionState.COMMITTED,
                trash_seq=0,
                trashed=0,
                purge_at=0,
                trash_reason="",
                trash_actor="",
            )
        )
        for version in list(self._versions(collection, VersionState.TRASHED)):
            together = version.trashed_by == "collection" and version.trash_seq == collection.trash_seq
            # One of another type was unpurged, from an earlier life of the name, in the very segment of the trashing.
            if together and version.type == collection.type:
                self._show(version, record.actor)
        self._point(collection.id, LATEST, highest_live(self.tables, collection.id), record.actor)

    def _purge_collection(self, record: PurgeCollection) -> None:
        collection = self._trashed_collection(record.collection, record.trash_seq)
        if not record.force and head_of(self.tables).safe < collection.purge_at:
            raise Void(f"collection {record.collection} may not be purged yet")
        if next(self.tables.scan(TRASHED, prefix=u64(collection.id)), None) is not None:
            raise Void(f"collection {record.collection} still has versions in the trash")
        self._put_collection(replace(collection, state=VersionState.PURGED))

    # --- names

    def _set_alias(self, record: SetAlias) -> None:
        version = self._live(record.collection, record.number)
        current = alias_target(self.tables, version.collection, record.alias)
        if record.expect not in {ANY, -1 if current is None else current}:
            raise Void(f"alias {record.alias} is not on v{record.expect}")
        self._point(version.collection, record.alias, version.number, record.actor)

    def _drop_alias(self, record: DropAlias) -> None:
        collection = self._collection(record.collection)
        if alias_target(self.tables, collection.id, record.alias) != record.number:
            raise Void(f"alias {record.alias} is not on v{record.number}")
        self._point(collection.id, record.alias, -1, record.actor)

    def _point(self, collection: int, alias: str, number: int, actor: str) -> None:
        before = alias_target(self.tables, collection, alias)
        if (-1 if before is None else before) == number:
            return
        key = u64(collection) + alias.encode()
        if before is not None:
            self.tables.delete(VERSION_ALIAS, version_key(collection, before) + alias.encode())
        if number < 0:
            self.tables.delete(ALIAS, key)
        else:
            self.tables.put(ALIAS, key, u64(number))
            self.tables.put(VERSION_ALIAS, version_key(collection, number) + alias.encode(), b"")
        change = AliasChange(
            alias, -1 if before is None else before, number, self.segment.seq, self.segment.claimed, actor
        )
        if self._alias_changes is None:
            self._alias_changes = self.tables.count(ALIAS_LOG)
        position = u64(self.segment.seq) + u64(self._alias_changes)
        self._alias_changes += 1
        self.tables.put(ALIAS_LOG, u64(collection) + position, encode_row(change))

    def _set_policy(self, record: SetPolicy) -> None:
        for key, value in json.loads(record.values).items():
            self.tables.put(POLICY, key.encode(), json.dumps(value).encode())
