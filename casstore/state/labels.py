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
    KEPT,
    AliasChange,
    CollectionRow,
    DropAlias,
    Link,
    Protect,
    Purge,
    PurgeCollection,
    PutCollection,
    PutOutput,
    PutVersion,
    RenameCollection,
    Restore,
    RestoreCollection,
    SetAlias,
    SetCollectionTtl,
    SetPolicy,
    SetTtl,
    Trash,
    TrashCollection,
    Unlink,
    Unpurge,
    UpdateCollection,
    UpdateVersion,
    VersionRow,
    VersionState,
)
from casstore.names import LATEST
from casstore.state.content import Void
from casstore.state.lineage import ACTIVE, LineageRules, check_name
from casstore.state.schema import (
    ALIAS,
    ALIAS_LOG,
    ANY,
    COLLECTION,
    COLLECTION_NAME,
    HEAD_KEY,
    LINK,
    META,
    POLICY,
    REDIRECT,
    ROOT,
    TRASHED,
    VERSION,
    VERSION_ALIAS,
    alias_target,
    aliases_of,
    current_name,
    head_of,
    highest_live,
    links_to,
    uses_of,
    version_key,
)

POLICY_NESTED = 256
"""objects and lists in the JSON of a policy"""
BY_COLLECTION, BY_SOURCE = "collection", "source"
"""`VersionRow.trashed_by` of what went to the trash with its collection; of a link, with its source"""


class CatalogueRules(LineageRules):
    """The rules for versions and names."""

    # --- versions

    def _put_version(self, record: PutVersion) -> int:
        collection = self._collection_for(record.collection, record.type)
        if collection.portfolio:
            raise Void(f"collection {record.collection} takes links only")
        number = self._number(collection)
        self._keep(
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
                run=record.run,
                attrs=record.attrs,
            )
        )
        if record.run:
            self._put_output(PutOutput(record.run, record.collection, number))
        if record.base:
            self._note_base(record.base, collection.id, number)
        self._name(collection.id, number, record)
        return number

    def _keep(self, version: VersionRow) -> None:
        """A version that holds its content from now on: the opposite of `_forget`."""
        self._hold_root(version.root)
        self._put(version)
        self.tables.put(ROOT, u64(version.collection) + version.root + u64(version.number), b"")

    def _name(self, collection: int, number: int, record: PutVersion | Link) -> None:
        aliases = [alias for alias in record.aliases if alias != LATEST]
        if record.move_latest:
            aliases.append(LATEST)
        for alias in aliases:
            self._point(collection, alias, number, record.actor)

    def _number(self, collection: CollectionRow) -> int:
        """The next number of a collection, which is taken by this."""
        self._put_collection(replace(collection, next_number=collection.next_number + 1))
        return collection.next_number

    def _collection_for(self, name: str, kind: str) -> CollectionRow:
        """The collection of a name, for something new of a type: made if need be."""
        row = self.tables.get(COLLECTION, name.encode())
        if row is not None:
            collection = decode_row(row, CollectionRow)
            if collection.state is VersionState.TRASHED:
                raise Void(f"collection {name} is in the trash")
            if collection.state is VersionState.PURGED:
                # The name is free again, its numbers are not.
                return CollectionRow(collection.id, collection.name, kind, collection.next_number, self.segment.claimed)
            if collection.type != kind:
                raise Void(f"collection {name} has type {collection.type}")
            return collection
        check_name(name)
        head = head_of(self.tables)
        collection = CollectionRow(head.collections + 1, name, kind, 0, self.segment.claimed)
        self.tables.put(META, HEAD_KEY, encode_row(replace(head, collections=collection.id)))
        self.tables.put(COLLECTION_NAME, u64(collection.id), name.encode())
        self.tables.delete(REDIRECT, name.encode())
        return collection

    def _collection(self, name: str) -> CollectionRow:
        row = self.tables.get(COLLECTION, current_name(self.tables, name).encode())
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
        if version.is_link:  # it has no labels of its own but aliases
            version = self._source(version)
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
        if version.is_link:
            raise Void(f"{record.collection}:v{record.number} is a link")
        held = self._held(version)
        if set(held) - set(record.aliases):
            raise Void(f"{record.collection}:v{record.number} has aliases {', '.join(held)}")
        self._check_free(version, record)
        self._hide(version, record.purge_at, held, (record.reason, record.actor, record.trashed_by))
        self._settle_latest(version.collection, version.number, record.actor)

    def _settle_latest(self, collection: int, number: int, actor: str) -> None:
        """Move ``latest`` off a version that is hidden now, to the highest that is left."""
        if alias_target(self.tables, collection, LATEST) == number:
            self._point(collection, LATEST, highest_live(self.tables, collection), actor)

    def _check_free(self, version: VersionRow, record: Trash | TrashCollection) -> None:
        """Refuse to hide a version for what the author of the record did not allow: links to it, uses of it."""
        links = list(self._links(version, VersionState.COMMITTED))
        if links and not record.delete_links:
            raise Void(f"{record.collection}:v{version.number} has links")
        if any(link.protected or self._home(link).protected for link in links):
            raise Void(f"{record.collection}:v{version.number} has a protected link")
        uses = [use for v in (version, *links) for _, use in uses_of(self.tables, v.collection, v.number)]
        if record.refuse_in_use and any(use.state == ACTIVE for use in uses):
            raise Void(f"{record.collection}:v{version.number} is in use")

    def _links(self, version: VersionRow, state: VersionState, home: int | None = None) -> Iterator[VersionRow]:
        """Links to a version that are in a state; with ``home`` those in a collection."""
        for place in links_to(self.tables, version.collection, version.number, home):
            row = self.tables.get(VERSION, version_key(*place))
            assert row is not None
            link = decode_row(row, VersionRow)
            if link.state is state:
                yield link

    def _source(self, link: VersionRow) -> VersionRow:
        row = self.tables.get(VERSION, version_key(link.source_collection, link.source_number))
        assert row is not None
        return decode_row(row, VersionRow)

    def _home(self, version: VersionRow) -> CollectionRow:
        """The collection a version is in."""
        name = self.tables.get(COLLECTION_NAME, u64(version.collection))
        row = None if name is None else self.tables.get(COLLECTION, name)
        assert row is not None
        return decode_row(row, CollectionRow)

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
        self._cancel_uses(version.collection, version.number, actor)
        for link in list(self._links(version, VersionState.COMMITTED)):
            # They come back with their source, and go with it.
            self._hide(link, purge_at, self._held(link), (reason, actor, BY_SOURCE))
            self._settle_latest(link.collection, link.number, actor)

    def _restore(self, record: Restore) -> None:
        version = self._trashed(record.collection, record.number, record.trash_seq)
        collection = self._collection(record.collection)
        if collection.state is not VersionState.COMMITTED:
            raise Void(f"collection {record.collection} is in the trash")
        if collection.type != version.type:
            # It was purged with the collection, whose name got another type, and unpurged.
            raise Void(f"collection {record.collection} has type {collection.type}")
        if not self._source_shown(version):
            raise Void(f"the source of {record.collection}:v{record.number} is in the trash")
        self._show(version, record.actor)
        self._raise_latest(version, record.actor)

    def _raise_latest(self, version: VersionRow, actor: str) -> None:
        """Move ``latest`` to a version that is shown again, if that is the highest."""
        latest = alias_target(self.tables, version.collection, LATEST)
        if latest is None or latest < version.number:
            self._point(version.collection, LATEST, version.number, actor)

    def _source_shown(self, version: VersionRow) -> bool:
        return not version.is_link or self._source(version).state is VersionState.COMMITTED

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
        for link in list(self._links(version, VersionState.TRASHED)):
            if link.trashed_by != BY_SOURCE or link.trash_seq != version.trash_seq:
                continue
            parent = self._home(link)
            if parent.state is VersionState.COMMITTED:
                self._show(link, actor)
                self._raise_latest(link, actor)
            else:  # its collection went to the trash meanwhile: from now on it waits for that
                self._put(replace(link, trashed_by=BY_COLLECTION, trash_seq=parent.trash_seq, purge_at=parent.purge_at))

    def _purge(self, record: Purge) -> None:
        version = self._trashed(record.collection, record.number, record.trash_seq)
        if not record.force and head_of(self.tables).safe < version.purge_at:
            raise Void(f"{record.collection}:v{record.number} may not be purged yet")
        self._forget(version)
        for state in KEPT:
            for link in list(self._links(version, state)):
                self._forget(link)

    def _forget(self, version: VersionRow) -> None:
        """What is left of a purged version: its row, without its content."""
        self._put(replace(version, state=VersionState.PURGED, updated=self.segment.claimed, purge_seq=self.segment.seq))
        self.tables.delete(TRASHED, version_key(version.collection, version.number))
        self.tables.delete(ROOT, u64(version.collection) + version.root + u64(version.number))
        self._release(version.root)

    def _unpurge(self, record: Unpurge) -> None:
        version = self._version(record.collection, record.number)
        if version.state is not VersionState.PURGED or version.is_link:
            raise Void(f"{record.collection}:v{record.number} is {version.state}")
        for link in list(self._links(version, VersionState.PURGED)):
            # The name of its collection may have got another type since.
            if link.purge_seq == version.purge_seq and self._home(link).type == link.type:
                self._remember(replace(link, trashed_by=BY_SOURCE), record.purge_at)
        self._remember(version, record.purge_at)

    def _remember(self, version: VersionRow, purge_at: int) -> None:
        """A purged version is in the trash again, its content held."""
        self._keep(replace(version, state=VersionState.TRASHED, trash_seq=self.segment.seq, purge_at=purge_at))
        self.tables.put(TRASHED, version_key(version.collection, version.number), b"")
        collection = self._home(version)
        if collection.state is VersionState.PURGED:
            self._put_collection(
                replace(collection, state=VersionState.TRASHED, trash_seq=self.segment.seq, purge_at=purge_at)
            )

    def _set_ttl(self, record: SetTtl) -> None:
        version = self._live(record.collection, record.number)
        if version.is_link:
            raise Void(f"{record.collection}:v{record.number} is a link")
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
            self._check_free(version, record)
        for version in live:
            why = (record.reason, record.actor, BY_COLLECTION)
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
            together = version.trashed_by == BY_COLLECTION and version.trash_seq == collection.trash_seq
            # One of another type was unpurged, from an earlier life of the name, in the very segment of the trashing.
            if together and version.type == collection.type:
                if self._source_shown(version):
                    self._show(version, record.actor)
                else:
                    self._wait_for_source(version)
        self._point(collection.id, LATEST, highest_live(self.tables, collection.id), record.actor)

    def _wait_for_source(self, link: VersionRow) -> None:
        """A link whose collection is back, but whose source is not: it comes with that."""
        source = self._source(link)
        self._put(replace(link, trashed_by=BY_SOURCE, trash_seq=source.trash_seq, purge_at=source.purge_at))

    def _purge_collection(self, record: PurgeCollection) -> None:
        collection = self._trashed_collection(record.collection, record.trash_seq)
        if not record.force and head_of(self.tables).safe < collection.purge_at:
            raise Void(f"collection {record.collection} may not be purged yet")
        if next(self.tables.scan(TRASHED, prefix=u64(collection.id)), None) is not None:
            raise Void(f"collection {record.collection} still has versions in the trash")
        self._put_collection(replace(collection, state=VersionState.PURGED))

    def _put_new_collection(self, record: PutCollection) -> None:
        row = self.tables.get(COLLECTION, record.collection.encode())
        if row is not None and decode_row(row, CollectionRow).state is not VersionState.PURGED:
            raise Void(f"there is a collection {record.collection}")
        collection = self._collection_for(record.collection, record.type)
        self._put_collection(replace(collection, portfolio=record.portfolio, description=record.description))

    def _update_collection(self, record: UpdateCollection) -> None:
        collection = self._shown(record.collection)
        if record.description is not None:
            collection = replace(collection, description=record.description)
        if record.type is not None and record.type != collection.type:
            # Versions of an earlier life of the name keep the type they had.
            for _, row in list(self.tables.scan(VERSION, prefix=u64(collection.id))):
                version = decode_row(row, VersionRow)
                if version.type == collection.type:
                    self._put(replace(version, type=record.type))
            collection = replace(collection, type=record.type)
        self._put_collection(collection)

    def _rename_collection(self, record: RenameCollection) -> None:
        collection = self._shown(record.collection)
        if self.tables.get(COLLECTION, record.name.encode()) is not None:
            raise Void(f"the name {record.name} is taken")
        check_name(record.name)
        self.tables.delete(COLLECTION, collection.name.encode())
        self.tables.put(REDIRECT, collection.name.encode(), u64(collection.id))
        self.tables.delete(REDIRECT, record.name.encode())
        self.tables.put(COLLECTION_NAME, u64(collection.id), record.name.encode())
        self._put_collection(replace(collection, name=record.name))
        self._move_batches(collection.name, record.name)

    # --- links

    def _link(self, record: Link) -> int:
        source = self._live(record.source, record.number)
        if source.is_link:
            raise Void(f"{record.source}:v{record.number} is a link itself")
        row = self.tables.get(COLLECTION, record.collection.encode())
        new = row is None or decode_row(row, CollectionRow).state is VersionState.PURGED
        collection = self._collection_for(record.collection, source.type)
        if collection.id == source.collection:
            raise Void(f"{record.source}:v{record.number} is in {record.collection} already")
        if any(self._links(source, VersionState.COMMITTED, collection.id)):
            raise Void(f"{record.collection} has a link to {record.source}:v{record.number}")
        number = self._number(replace(collection, portfolio=True) if new else collection)
        self._keep(
            VersionRow(
                collection=collection.id,
                number=number,
                state=VersionState.COMMITTED,
                type=source.type,
                root=source.root,
                size=source.size,
                file_count=source.file_count,
                description="",
                metadata=b"{}",
                tags=(),
                base="",
                ttl=0,
                created=self.segment.claimed,
                updated=self.segment.claimed,
                seq=self.segment.seq,
                actor=record.actor,
                born=head_of(self.tables).safe,
                source_collection=source.collection,
                source_number=source.number,
            )
        )
        self.tables.put(LINK, version_key(source.collection, source.number) + version_key(collection.id, number), b"")
        self._name(collection.id, number, record)
        return number

    def _unlink(self, record: Unlink) -> None:
        link = self._live(record.collection, record.number)
        if not link.is_link:
            raise Void(f"{record.collection}:v{record.number} is no link")
        if link.protected or self._collection(record.collection).protected:
            raise Void(f"{record.collection}:v{record.number} is protected")
        for alias in self._held(link):
            self._point(link.collection, alias, -1, record.actor)
        self._cancel_uses(link.collection, link.number, record.actor)
        source = version_key(link.source_collection, link.source_number)
        self.tables.delete(LINK, source + version_key(link.collection, link.number))
        self._forget(link)
        self._settle_latest(link.collection, link.number, record.actor)

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
        try:
            if record.values.count(b"[") + record.values.count(b"{") > POLICY_NESTED:
                # How deep a parser gets depends on who calls it, and all replicas must agree.
                raise Void("the policy is too deep")
            values = json.loads(record.values)
            if not isinstance(values, dict):
                raise Void("the policy is no object")
            rows = [(key.encode(), json.dumps(value).encode()) for key, value in values.items()]
        except ValueError:
            raise Void("the policy is not JSON") from None
        for row in rows:
            self.tables.put(POLICY, *row)
