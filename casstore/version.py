"""A version, as users hold it: identity, labels, files, and what can be done with it."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from casstore import ageing, catalogue, checkout, contents, expiry, pin
from casstore.artifact import Artifact, draft_of
from casstore.catalogue import Found
from casstore.checkout import DownloadReport
from casstore.config import from_micros
from casstore.digest import Digest, seal
from casstore.engine import Engine
from casstore.errors import EntryNotFoundError, InvalidInputError, RefusedError
from casstore.gc.plan import footprint_of, garbage
from casstore.handles import DraftBase, EntryReader
from casstore.model import Entry, Inherit, Pin, Progress, VersionState, no_progress
from casstore.names import (
    LATEST,
    canonical_metadata,
    check_alias,
    check_aliases,
    check_description,
    check_path,
    check_tags,
    is_text,
)
from casstore.overlay import Tables
from casstore.state import aliases_of
from casstore.view import version_at


@dataclass(frozen=True, slots=True)
class Deletion:
    """What trashing a version did, and what purging it would free (stored bytes)."""

    ref: str
    trashed_at: datetime
    purge_at: datetime
    exclusive_bytes: int
    """only this version keeps them: purge and collection free them"""
    shared_bytes: int
    already_in_trash: bool = False


class Version:
    """An immutable, numbered state of a collection. Labels (aliases, tags, metadata) can change.

    Properties show the version as it was when this object was made; `refresh` looks again. Thread-safe.
    """

    def __init__(
        self,
        engine: Engine,
        found: Found,
        *,
        created: bool = False,
        latest_before: str | None = None,
        ignored: Sequence[str] = (),
        aliases_not_restored: Sequence[str] = (),
        new_bytes: int = 0,
        stored_bytes: int = 0,
    ) -> None:
        self._engine = engine
        self._found = found
        self._created = created
        self._latest_before = latest_before
        self._ignored = tuple(ignored)
        self._aliases_not_restored = tuple(aliases_not_restored)
        self._new_bytes = new_bytes
        self._stored_bytes = stored_bytes

    def __repr__(self) -> str:
        return f"<Version {self.qualified_name}>"

    def __str__(self) -> str:
        return self._found.label

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    # --- identity

    @property
    def id(self) -> str:
        """A ULID: unique for ever, in the order of creation."""
        store, collection = self._engine.config.store_id, self._found.collection.id
        return ulid(self._found.version.created // 1000, seal(f"{store}/{collection}/{self.number}".encode()))

    @property
    def entity(self) -> str:
        """The first part of the namespace."""
        return self._found.name.entity

    @property
    def project(self) -> str:
        """The second part of the namespace."""
        return self._found.name.project

    @property
    def collection(self) -> str:
        """The collection's name, without namespace."""
        return self._found.name.name

    @property
    def name(self) -> str:
        """``collection:vN``."""
        return f"{self.collection}:{self.version}"

    @property
    def qualified_name(self) -> str:
        """``entity/project/collection:vN``."""
        return f"{self._found.name}:{self.version}"

    @property
    def ref(self) -> str:
        """A reference that finds this version, with as little namespace as it needs."""
        return self._found.label

    @property
    def version(self) -> str:
        """``vN``."""
        return f"v{self.number}"

    @property
    def number(self) -> int:
        """N; assigned once, never reused."""
        return self._found.version.number

    @property
    def source_entity(self) -> str:
        """`entity` of the version this one is a link to; its own while there are no links."""
        return self.entity

    @property
    def source_project(self) -> str:
        """`project`, as `source_entity`."""
        return self.project

    @property
    def source_collection(self) -> str:
        """`collection`, as `source_entity`."""
        return self.collection

    @property
    def source_name(self) -> str:
        """`name`, as `source_entity`."""
        return self.name

    @property
    def source_qualified_name(self) -> str:
        """`qualified_name`, as `source_entity`."""
        return self.qualified_name

    @property
    def source_version(self) -> str:
        """`version`, as `source_entity`."""
        return self.version

    @property
    def type(self) -> str:
        """The type of the artifact."""
        return self._found.version.type

    @property
    def state(self) -> str:
        """``COMMITTED``, ``TRASHED``, ``PURGED``, or ``COLLECTED`` once the file list of a purged one is gone too."""
        row = self._found.version
        if row.state is VersionState.PURGED and not self._engine.view.known((row.root,))[0]:
            return "COLLECTED"
        return str(row.state)

    @property
    def digest(self) -> Digest:
        """The digest of the content, and of nothing but the content."""
        return self._engine.digest(self._found.version.root)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self._found.version.size

    @property
    def file_count(self) -> int:
        """Number of entries."""
        return self._found.version.file_count

    @property
    def created_at(self) -> datetime:
        """When it was committed (UTC)."""
        return from_micros(self._found.version.created)

    @property
    def updated_at(self) -> datetime:
        """When a label last changed (UTC)."""
        return from_micros(self._found.version.updated)

    @property
    def commit(self) -> int:
        """Position of its commit in the log."""
        return self._found.version.seq

    @property
    def created(self) -> bool:
        """True if the call that returned this made it; False if the content was there already."""
        return self._created

    @property
    def base(self) -> str | None:
        """``name:vN`` of the version its draft was made from."""
        return self._found.version.base or None

    @property
    def latest_before(self) -> str | None:
        """``vN`` that ``latest`` was on when this was logged."""
        return self._latest_before

    @property
    def ignored(self) -> tuple[str, ...]:
        """Labels of the logged artifact that an unchanged version did not take over."""
        return self._ignored

    @property
    def aliases_not_restored(self) -> tuple[str, ...]:
        """Aliases it had before it was trashed that the restore could not give back."""
        return self._aliases_not_restored

    @property
    def new_bytes(self) -> int:
        """Plaintext bytes that the call that made it had to store; 0 for one that was looked up."""
        return self._new_bytes

    @property
    def new_stored_bytes(self) -> int:
        """Bytes of the packs the call that made it wrote."""
        return self._stored_bytes

    # --- labels

    @property
    def description(self) -> str:
        """Free text."""
        return self._found.version.description

    @property
    def metadata(self) -> dict[str, object]:
        """A copy of the metadata."""
        values: dict[str, object] = json.loads(self._found.version.metadata)
        return values

    @property
    def tags(self) -> tuple[str, ...]:
        """Labels, many to many."""
        return self._found.version.tags

    @property
    def aliases(self) -> tuple[str, ...]:
        """Aliases on this version now, ``latest`` included."""
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return aliases_of(tables, self._found.collection.id, self.number)

    @property
    def actor(self) -> str:
        """Who logged it."""
        return self._found.version.actor

    @property
    def protected(self) -> str | None:
        """Why it may not be deleted; None if nothing says so of this version itself."""
        return self._found.version.protected or None

    @property
    def trashed_by(self) -> str | None:
        """By which route it came into the trash: ``user``, ``ttl``, ``retention`` or ``collection``. None outside."""
        return self._found.version.trashed_by or None

    @property
    def trash_reason(self) -> str | None:
        """Why it was trashed, as far as somebody said so."""
        return self._found.version.trash_reason or None

    @property
    def trash_actor(self) -> str | None:
        """Who trashed it."""
        return self._found.version.trash_actor or None

    @property
    def ttl(self) -> timedelta | None:
        """The time to live in force, from creation, whoever set it; None = never expires."""
        seconds = self._lifetime()[0].seconds
        return timedelta(seconds=seconds) if seconds else None

    @property
    def ttl_source(self) -> str:
        """Who says so: ``version``, ``collection``, ``store``, or ``none``: nobody does, or its type has none."""
        return self._lifetime()[0].source

    @property
    def expires_at(self) -> datetime | None:
        """When readers see it no more, if nothing holds it; None = never. By the log's clock, so never early (UTC)."""
        return self._lifetime()[1]

    @property
    def held_by(self) -> tuple[str, ...]:
        """What keeps it from expiring, whatever its age: its protection, its collection's, protected aliases."""
        return self._lifetime()[2]

    def _lifetime(self) -> tuple[expiry.Lifetime, datetime | None, tuple[str, ...]]:
        engine, version = self._engine, self._found.version
        engine.view.refresh()
        with engine.view.read() as tables:
            collection = catalogue.collection_of(tables, version)
            terms = expiry.terms_now(engine, tables)
            moment = expiry.expires(terms, collection, version)
            return (
                expiry.lifetime(terms, collection, version),
                None if moment is None else expiry.wall_time(engine, tables, moment),
                expiry.holders(tables, terms, collection, version),
            )

    def set_ttl(self, ttl: timedelta | Inherit | None, allow_immediate: bool = False) -> None:  # noqa: FBT001, FBT002
        """Set the time to live, counted from creation: a timedelta, None (never) or INHERIT (collection's, store's).

        Whole seconds, up to a hundred years. Raises `RefusedError` if it would have expired by that already, unless
        ``allow_immediate``, and for types that have none by policy; `VersionNotFoundError` if it is in the trash.
        """
        ageing.set_ttl(self._engine, self._found, ttl, allow_immediate=allow_immediate)
        self.refresh()

    def add_alias(self, alias: str, if_on: str | None = None) -> None:
        """Point an alias here, at once. ``if_on``: only if it is on that version (``vN``; ``""`` = absent).

        Raises `StaleBaseError`, `InvalidNameError`.
        """
        actor = self._engine.runtime.actor
        catalogue.set_alias(self._engine, self._found, check_alias(alias), if_on=if_on, actor=actor)

    def remove_alias(self, alias: str, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take an alias off this version. Raises `NotFoundError` if it is not on it, unless ``missing_ok``.

        Raises `RefusedError` for ``latest``, which the store keeps on a version.
        """
        if alias == LATEST:
            raise RefusedError("latest is kept by the store", hint="log, or set latest on another version")
        actor = self._engine.runtime.actor
        catalogue.drop_alias(self._engine, self._found, check_alias(alias), missing_ok=missing_ok, actor=actor)

    def set_aliases(self, aliases: Sequence[str]) -> None:
        """Make these the aliases of this version, in one step; ``latest`` is only added, never taken off."""
        catalogue.replace_aliases(self._engine, self._found, check_aliases(aliases), self._engine.runtime.actor)

    def update(
        self,
        description: str | None = None,
        metadata: Mapping[str, object] | None = None,
        tags: Sequence[str] | None = None,
        merge: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Change labels in one step; ``merge`` adds keys to the metadata instead of replacing it all."""

        def merged(stored: bytes) -> bytes:
            assert metadata is not None
            return canonical_metadata({**json.loads(stored), **metadata} if merge else metadata)

        if metadata is not None:
            canonical_metadata(metadata)
        catalogue.update_labels(
            self._engine,
            self._found,
            description=None if description is None else check_description(description),
            metadata=None if metadata is None else merged,
            tags=None if tags is None else check_tags(tags),
        )
        self.refresh()

    def protect(self, reason: str) -> None:
        """Keep it from being deleted, by whatever route, until `unprotect`. Raises `InvalidInputError`."""
        if not check_description(reason).strip():
            raise InvalidInputError("a protection needs a reason", hint="protect('used by the paper')")
        self._set_protection(reason)

    def unprotect(self) -> None:
        """Lift the protection of this version; that of its collection stays."""
        self._set_protection("")

    def _set_protection(self, reason: str) -> None:
        catalogue.protect(self._engine, self._found.name, self.number, reason, self._engine.runtime.actor)
        self.refresh()

    def refresh(self) -> None:
        """Look at the head of the log again."""
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            row = version_at(tables, self._found.collection.id, self.number)
        assert row is not None
        self._found = replace(self._found, version=row)

    def to_dict(self) -> dict[str, object]:
        """The version as JSON values (docs/cli.md, schema ``version``)."""
        ttl, expires_at, held_by = self._lifetime()
        return {
            "schema": "version/1",
            "ref": self.ref,
            "id": self.id,
            "entity": self.entity,
            "project": self.project,
            "collection": self.collection,
            "version": self.version,
            "type": self.type,
            "state": self.state,
            "digest": str(self.digest),
            "size": self.size,
            "file_count": self.file_count,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "commit": self.commit,
            "aliases": list(self.aliases),
            "tags": list(self.tags),
            "description": self.description,
            "metadata": self.metadata,
            "ttl": None if ttl.seconds == 0 else ttl.seconds,
            "ttl_source": ttl.source,
            "expires_at": None if expires_at is None else expires_at.isoformat(),
            "held_by": list(held_by),
            "base": self.base,
            "actor": self._found.version.actor,
        }

    # --- files

    def _check_readable(self) -> None:
        """A version that was trashed after this object was made is not readable any more."""
        self.refresh()
        if not catalogue.is_readable(self._engine, self._found):
            catalogue.lookup(self._engine, self._found.label)

    def _bind(self, entry: Entry) -> Entry:
        return replace(entry, reader=EntryReader(self._engine, self._found))

    def files(
        self,
        prefix: str | None = None,
        names: Sequence[str] | None = None,
        page_size: int | None = None,
        start: str | None = None,
    ) -> Iterator[Entry]:
        """Entries in byte order of their paths, lazily.

        ``prefix``: a path or directory, by whole segments. ``names``: only these paths, as far as they are
        there. ``start``: the path of the last entry seen; listing goes on after it. ``page_size``: stop after so
        many. Raises `InvalidInputError`, also for a cursor that is no path.
        """
        if page_size is not None and (isinstance(page_size, bool) or not isinstance(page_size, int) or page_size < 1):
            raise InvalidInputError(f"page_size={page_size!r} must be at least 1")
        if prefix is not None and not isinstance(prefix, str):
            raise InvalidInputError(f"prefix={prefix!r} is not a path")
        if names is not None:
            names = names if isinstance(names, str) else tuple(names)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise InvalidInputError(f"names={names!r:.200} is not a list of paths")
        if start:
            check_path(start)
        elif start is not None and start != "":
            raise InvalidInputError(f"start={start!r} is not a cursor", hint="the path of the last entry seen")
        self._check_readable()
        return self._files(prefix, names, page_size, start)

    def _files(
        self, prefix: str | None, names: Sequence[str] | None, page_size: int | None, start: str | None
    ) -> Iterator[Entry]:
        listing: Iterator[Entry]
        if names is not None:
            wanted = sorted({name for name in names if is_text(name)}, key=str.encode)
            listing = (e for n in wanted if (e := contents.find_entry(self._engine, self._found, n)) is not None)
        elif prefix:
            listing = contents.below(self._engine, self._found, prefix)
        else:
            listing = contents.entries(self._engine, self._found, start=start or "")
        given = 0
        for entry in listing:
            if start is not None and entry.path.encode() <= start.encode():
                continue
            yield self._bind(entry)
            given += 1
            if given == page_size:
                return

    def get_entry(self, name: str) -> Entry:
        """The entry at a path. Raises `EntryNotFoundError`."""
        self._check_readable()
        entry = contents.find_entry(self._engine, self._found, name)
        if entry is None:
            raise EntryNotFoundError(f"{self.ref} has no path {name!r}", hint=f"casstore files {self.ref}")
        return self._bind(entry)

    def __getitem__(self, path: str) -> Entry:
        return self.get_entry(path)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and contents.find_entry(self._engine, self._found, path) is not None

    def __iter__(self) -> Iterator[Entry]:
        return self.files()

    def __len__(self) -> int:
        return self.file_count

    @property
    def manifest(self) -> Manifest:
        """Path → entry, read-only and lazily loaded."""
        return Manifest(self)

    def download(
        self,
        root: str | os.PathLike[str] | None = None,
        path_prefix: str | None = None,
        glob: str | None = None,
        overwrite: str = "replace",
        progress: Progress = no_progress,
    ) -> DownloadReport:
        """Write the files below a directory (default ``./artifacts/name:vN``); see `checkout.download`."""
        self._check_readable()
        target = os.path.join("artifacts", self.name) if root is None else root
        with pin.reading(self._engine, self._found, "download of", progress) as touched:
            return checkout.download(
                self._engine,
                self._found,
                target,
                path_prefix=path_prefix,
                glob=glob,
                overwrite=overwrite,
                progress=touched,
            )

    def file(self, root: str | os.PathLike[str] | None = None) -> str:
        """Download the only file of the version; its local path. Raises `InvalidInputError` for 0 or more."""
        if self.file_count != 1:
            raise InvalidInputError(f"{self.ref} has {self.file_count} files, not 1", hint="use download()")
        (entry,) = self.files()
        return entry.download(None if root is None else os.fspath(root))

    def verify(self, root: str | os.PathLike[str] | None = None, progress: Progress = no_progress) -> int:
        """Check a directory against the version, or without one the stored bytes; returns bytes checked.

        Raises `VerificationError` with every problem: ``.missing``, ``.changed``, ``.extra``.
        """
        self._check_readable()
        with pin.reading(self._engine, self._found, "verification of", progress) as touched:
            if root is None:
                return checkout.verify_stored(self._engine, self._found, touched)
            return checkout.verify_directory(self._engine, self._found, root, touched)

    # --- drafts and deletion

    def new_draft(self) -> Artifact:
        """A draft with this content, sharing it; O(1). Description and metadata come along, aliases do not.

        The content stays in the store for a week, or until the draft is logged or goes away, even if this
        version is purged meanwhile.
        """
        self._check_readable()
        engine = self._engine
        key = None if engine.read_only else engine.runtime.random_bytes(pin.ID_BYTES)
        base = DraftBase(engine, self._found, key)
        if key is not None:
            roots = (self._found.version.root,)
            holder = pin.holder(engine.runtime)

            def build(tables: Tables) -> tuple[Pin, ...]:
                return (Pin(key, holder, f"draft of {self.ref}", roots, pin.expiry(tables, pin.DRAFT)),)

            engine.commit(build)
            weakref.finalize(base, engine.abandoned.append, key).atexit = False
        return draft_of(
            base,
            self.collection,
            self.type,
            self.description,
            self.metadata,
            f"{self.entity}/{self.project}",
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may be surprising elsewhere: paths that only differ in case or Unicode form. Reads the whole listing."""
        return tuple(
            f"{' and '.join(map(repr, paths))} are one path on some file systems"
            for paths in checkout.twins(entry.path for entry in self.files())
        )

    def delete(
        self,
        delete_aliases: bool = False,  # noqa: FBT001, FBT002
        reason: str = "",
    ) -> Deletion:
        """Move to the trash. Raises `AliasGuardError` if aliases other than ``latest`` are on it, `ProtectedError`.

        ``delete_aliases`` takes them off; a restore gives them back. Deleting again changes nothing.
        """
        check_description(reason)
        engine = self._engine
        engine.view.refresh()
        days = engine.view.policy().get("trash_days", 30)
        moved = catalogue.move_to_trash(
            engine,
            self._found,
            delete_aliases=delete_aliases,
            trash_days=float(str(days)),
            reason=reason,
            actor=engine.runtime.actor,
        )
        self.refresh()
        exclusive, total = footprint(engine, self._found)
        version = self._found.version
        return Deletion(
            self.ref,
            from_micros(version.trashed),
            catalogue.wall_time(engine, version.purge_at),
            exclusive,
            total - exclusive,
            already_in_trash=not moved,
        )

    @property
    def exclusive_size(self) -> int:
        """Stored bytes that only this version keeps."""
        return footprint(self._engine, self._found)[0]

    @property
    def stored_size(self) -> int:
        """Stored bytes this version needs, shared or not."""
        return footprint(self._engine, self._found)[1]


_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(millis: int, entropy: bytes) -> str:
    """48 bits of time and 80 of something else, as 26 digits whose order is that of time."""
    value = (millis & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    return "".join(_BASE32[value >> shift & 31] for shift in range(125, -1, -5))


def footprint(engine: Engine, found: Found) -> tuple[int, int]:
    """Stored bytes that one version alone keeps, and all it needs."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return garbage(tables, [found.version.root]).stored, footprint_of(tables, found.version.root)


class Manifest(Mapping[str, Entry]):
    """Path → entry of a version: read-only, loaded as needed."""

    def __init__(self, version: Version) -> None:
        self._version = version

    def __getitem__(self, path: str) -> Entry:
        return self._version.get_entry(path)

    def __iter__(self) -> Iterator[str]:
        return (entry.path for entry in self._version.files())

    def __len__(self) -> int:
        return self._version.file_count

    def __contains__(self, path: object) -> bool:
        return path in self._version
