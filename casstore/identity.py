"""What a version says of itself: identity, labels, life. Looks, changes nothing."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from casstore import catalogue, expiry
from casstore.catalogue import Found
from casstore.config import from_micros
from casstore.digest import Digest, seal
from casstore.engine import Engine
from casstore.errors import IntegrityError, InvalidInputError
from casstore.model import VersionRow, VersionState
from casstore.names import canonical_metadata, check_description, check_tags
from casstore.state import aliases_of
from casstore.values import dataclass
from casstore.view import links_of, version_at

if TYPE_CHECKING:
    from casstore.lineage import RunRecord, UseRecord
    from casstore.overlay import Tables


@dataclass(slots=True)
class LabelEdits:
    """Labels that were changed on an object and are not saved yet. None = unchanged."""

    description: str | None = None
    metadata: dict[str, object] | None = None
    tags: tuple[str, ...] | None = None


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
        self._source: Found | None = None
        self._look(found)
        self._created = created
        self._latest_before = latest_before
        self._ignored = tuple(ignored)
        self._aliases_not_restored = tuple(aliases_not_restored)
        self._new_bytes = new_bytes
        self._stored_bytes = stored_bytes

    def _look(self, found: Found) -> None:
        """Take over a version; a link has the labels of its source."""
        if found.version.is_link:
            with self._engine.view.read() as tables:
                self._source = catalogue.source_of(tables, found.version)
                found = replace(found, version=catalogue.labelled(tables, found.version))
        self._found = found
        self._edits = LabelEdits()

    def __repr__(self) -> str:
        link = "" if self._source is None else f", a link to {self.source_qualified_name}"
        return f"<Version {self.qualified_name}{link}>"

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
        return version_id(self._engine.config.store_id, self._found.version)

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
    def url(self) -> str:
        """``cas://entity/project/collection:vN``."""
        return f"cas://{self.qualified_name}"

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
    def is_link(self) -> bool:
        """Whether it stands for a version of another collection, whose labels it has, aliases aside."""
        return self._source is not None

    @property
    def _origin(self) -> Found:
        return self._source or self._found

    @property
    def source_entity(self) -> str:
        """`entity` of the version this one is a link to; its own if it is none."""
        return self._origin.name.entity

    @property
    def source_project(self) -> str:
        """`project`, as `source_entity`."""
        return self._origin.name.project

    @property
    def source_collection(self) -> str:
        """`collection`, as `source_entity`."""
        return self._origin.name.name

    @property
    def source_name(self) -> str:
        """`name`, as `source_entity`."""
        return f"{self.source_collection}:{self.source_version}"

    @property
    def source_qualified_name(self) -> str:
        """`qualified_name`, as `source_entity`."""
        return f"{self._origin.name}:{self.source_version}"

    @property
    def source_version(self) -> str:
        """`version`, as `source_entity`."""
        return f"v{self._origin.version.number}"

    @property
    def type(self) -> str:
        """The type of the artifact."""
        return self._found.version.type

    @property
    def state(self) -> str:
        """``COMMITTED``, ``TRASHED``, ``PURGED``, or ``COLLECTED`` once the file list of a purged one is gone too.

        ``PENDING``, the fifth, is the state of a `Submission`: what is not committed is no version yet.
        """
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
    def commit_hash(self) -> str:
        """The digest that chains its commit to all before it, in hexadecimal: the same in every copy of the store.

        Reads one segment of the log. Raises `IntegrityError` if that is damaged.
        """
        found = self._engine.log.read_raw(self.commit)
        if found is None:
            raise IntegrityError(f"log segment {self.commit} is missing", hint="casstore fsck")
        return found.chain.hex()

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
        """Free text. What is assigned is stored by `Version.save`; until then, `refresh` forgets it."""
        edited = self._edits.description
        return self._found.version.description if edited is None else edited

    @description.setter
    def description(self, text: str | None) -> None:
        self._edits.description = check_description(text)

    @property
    def metadata(self) -> dict[str, object]:
        """The metadata, this object's own copy. Changes to it are stored by `Version.save`, as with `description`."""
        edits = self._edits
        if edits.metadata is None:
            edits.metadata = self._stored_metadata()
        return edits.metadata

    @metadata.setter
    def metadata(self, values: Mapping[str, object]) -> None:
        self._edits.metadata = json.loads(canonical_metadata(values))

    def _stored_metadata(self) -> dict[str, object]:
        values: dict[str, object] = json.loads(self._found.version.metadata)
        return values

    @property
    def tags(self) -> tuple[str, ...]:
        """Labels, many to many. What is assigned is stored by `Version.save`, as with `description`."""
        edited = self._edits.tags
        return self._found.version.tags if edited is None else edited

    @tags.setter
    def tags(self, tags: Sequence[str]) -> None:
        self._edits.tags = check_tags(tags)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Aliases on this version now, ``latest`` included."""
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return aliases_of(tables, self._found.collection.id, self.number)

    # --- runs

    @property
    def attrs(self) -> dict[str, object]:
        """What the host said when it was logged; a copy. Never changes."""
        values: dict[str, object] = json.loads(self._found.version.attrs)
        return values

    @property
    def history_step(self) -> int | None:
        """``history_step`` of `attrs`, if that is a number: the step of the run that logged it."""
        step = self.attrs.get("history_step")
        return step if isinstance(step, int) and not isinstance(step, bool) else None

    def logged_by(self) -> RunRecord | None:
        """The run that logged it; None if there was none, or it was deleted. Looked up at the head of the log."""
        from casstore.lineage import logged_by

        return logged_by(self._engine, self._found)

    def used_by(self) -> list[RunRecord]:
        """The runs that used it or a link to it, in the order they began to; without deleted ones. See `uses`."""
        from casstore.lineage import used_by

        return used_by(self._engine, self._found)

    def uses(self) -> list[UseRecord]:
        """Every use of it and of links to it, also ended and cancelled ones, in the order they began."""
        from casstore.lineage import uses

        return uses(self._engine, self._found)

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
        """How it came into the trash: ``user``, ``ttl``, ``retention``, ``collection``, ``source``. None outside."""
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
        """What keeps it from expiring, whatever its age: protection, its collection's, protected aliases, links."""
        return self._lifetime()[2]

    def _lifetime(self) -> tuple[expiry.Lifetime, datetime | None, tuple[str, ...]]:
        engine, version = self._engine, self._origin.version
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

    def _links(self) -> list[Found]:
        """The links to it that are there now; none for a link."""
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return [catalogue.found_of(tables, row) for row in links_of(tables, self._found.version)]

    def refresh(self) -> None:
        """Look at the head of the log again."""
        self._engine.view.keep_up()
        with self._engine.view.read() as tables:
            self._renew(tables)

    def _renew(self, tables: Tables) -> None:
        """Become what a snapshot shows, inside of its `View.read`."""
        row = version_at(tables, self._found.collection.id, self.number)
        assert row is not None
        self._look(catalogue.found_of(tables, row))

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
            "tags": list(self._found.version.tags),
            "description": self._found.version.description,
            "metadata": self._stored_metadata(),
            "ttl": None if ttl.seconds == 0 else ttl.seconds,
            "ttl_source": ttl.source,
            "expires_at": None if expires_at is None else expires_at.isoformat(),
            "held_by": list(held_by),
            "base": self.base,
            "is_link": self.is_link,
            "source": None if self._source is None else self._source.label,
            "links": [link.label for link in self._links()],
            "actor": self._found.version.actor,
            "run": self._found.version.run or None,
            "attrs": self.attrs,
        }


def found_in(engine: Engine, version: VersionFacts) -> Found:
    """What a version object of this store stands for. Raises `InvalidInputError` for one of another store."""
    if version._engine.config.store_id != engine.config.store_id:  # noqa: SLF001 - same module
        raise InvalidInputError(f"{version.ref} is in another store", hint="copy it to this one first")
    return version._found  # noqa: SLF001 - same module


def version_id(store: str, version: VersionRow) -> str:
    """The ULID of a version of the store with some id."""
    return ulid(version.created // 1000, seal(f"{store}/{version.collection}/{version.number}".encode()))


_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(millis: int, entropy: bytes) -> str:
    """48 bits of time and 80 of something else, as 26 digits whose order is that of time."""
    value = (millis & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    return "".join(_BASE32[value >> shift & 31] for shift in range(125, -1, -5))
