"""What a version says of itself: identity, labels, life. Looks, changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from casstore import catalogue, expiry
from casstore.catalogue import Found
from casstore.config import from_micros
from casstore.digest import Digest, seal
from casstore.engine import Engine
from casstore.model import VersionState
from casstore.state import aliases_of
from casstore.view import version_at


class VersionFacts:
    """Properties of a version, as it was when this object was made; `refresh` looks again. Thread-safe."""

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
        return isinstance(other, VersionFacts) and self.id == other.id

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

    def refresh(self) -> None:
        """Look at the head of the log again."""
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            row = version_at(tables, self._found.collection.id, self.number)
            assert row is not None
            collection = catalogue.collection_of(tables, row)
        self._found = Found(catalogue.full_name(collection), collection, row)

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


_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(millis: int, entropy: bytes) -> str:
    """48 bits of time and 80 of something else, as 26 digits whose order is that of time."""
    value = (millis & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    return "".join(_BASE32[value >> shift & 31] for shift in range(125, -1, -5))
