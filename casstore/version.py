"""A version, as users hold it: identity, labels, files, and what can be done with it."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import json
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from casstore import catalogue, contents, pin
from casstore.artifact import Artifact, draft_of
from casstore.catalogue import Found
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import EntryNotFoundError, IntegrityError, InvalidInputError, RefusedError
from casstore.handles import DraftBase, EntryReader, Listing
from casstore.identity import VersionFacts
from casstore.model import Entry, Inherit, Pin, Progress, VersionState, no_progress
from casstore.names import (
    LATEST,
    CollectionName,
    canonical_metadata,
    check_alias,
    check_aliases,
    check_description,
    check_path,
    check_tags,
    check_texts,
    check_timeout,
    is_text,
)
from casstore.overlay import Tables
from casstore.sources import source_path
from casstore.values import dataclass
from casstore.view import with_links

if TYPE_CHECKING:
    from casstore.checkout import CheckoutReport, Confirm, DownloadReport, Verified


@dataclass(frozen=True, slots=True)
class Deletion:
    """What trashing a version did, and what purging it would free (stored bytes).

    ``links``: those that went with it. ``cancelled_uses``: runs that were using it, or one of them. ``unlinked``: it
    was a link, which is gone for good at once; its source stays as it is.
    """

    ref: str
    trashed_at: datetime
    purge_at: datetime
    exclusive_bytes: int
    """only this version and the links to it keep them: purge and collection free them"""
    shared_bytes: int
    already_in_trash: bool = False
    links: tuple[str, ...] = ()
    cancelled_uses: tuple[str, ...] = ()
    unlinked: bool = False


class Version(VersionFacts):
    """An immutable, numbered state of a collection. Labels (aliases, tags, metadata) can change.

    Properties show the version as it was when this object was made; `refresh` looks again. Thread-safe.
    """

    def set_ttl(self, ttl: timedelta | Inherit | None, allow_immediate: bool = False) -> None:  # noqa: FBT001, FBT002
        """Set the time to live, counted from creation: a timedelta, None (never) or INHERIT (collection's, store's).

        Whole seconds, up to a hundred years. Raises `RefusedError` if it would have expired by that already, unless
        ``allow_immediate``, and for types that have none by policy; `VersionNotFoundError` if it is in the trash.
        """
        from casstore.ageing import set_ttl

        set_ttl(self._engine, self._found, ttl, allow_immediate=allow_immediate)
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

    def save(self) -> None:
        """Store what was assigned to `description`, `metadata` and `tags`, or changed in `metadata`, in one step.

        Of the metadata only the keys that were changed here; of the other labels all. Without changes, no commit.
        """
        edits, before = self._edits, self._stored_metadata()
        edited = before if edits.metadata is None else json.loads(canonical_metadata(edits.metadata))
        new = {key for key in edited if key not in before or json.dumps(before[key]) != json.dumps(edited[key])}
        gone = before.keys() - edited.keys()

        def merged(stored: bytes) -> bytes:
            kept = {key: value for key, value in json.loads(stored).items() if key not in gone}
            return canonical_metadata({**kept, **{key: edited[key] for key in new}})

        if edits.description is None and edits.tags is None and not new and not gone:
            return
        catalogue.update_labels(
            self._engine,
            self._found,
            description=edits.description,
            metadata=merged if new or gone else None,
            tags=edits.tags,
        )
        self.refresh()

    def wait(self, timeout: float | None = None) -> Self:
        """Itself, at once: a version is durable. For what is still being logged see `Store.submit`.

        ``timeout`` (seconds) is only checked. Raises `InvalidInputError` for a negative one.
        """
        check_timeout(timeout)
        return self

    def protect(self, reason: str) -> None:
        """Keep it from being deleted, by whatever route, until `unprotect`. Raises `InvalidInputError`."""
        reason = check_description(reason)
        if not reason.strip():
            raise InvalidInputError("a protection needs a reason", hint="protect('used by the paper')")
        self._set_protection(reason)

    def unprotect(self) -> None:
        """Lift the protection of this version; that of its collection stays."""
        self._set_protection("")

    def _set_protection(self, reason: str) -> None:
        catalogue.protect(self._engine, self._found, reason, self._engine.runtime.actor)
        self.refresh()

    # --- files

    def _check_readable(self) -> None:
        """A version that was trashed after this object was made is not readable any more."""
        view = self._engine.view
        view.keep_up()
        with view.read() as tables:  # one snapshot for all: to take one costs more than to look at it
            self._renew(tables)
            readable = catalogue.is_readable(self._engine, self._found)
        if not readable:
            catalogue.lookup(self._engine, self._found.label)

    @contextmanager
    def _reading(self, doing: str, progress: Progress) -> Iterator[Progress]:
        """A long read. What is missing because the version was purged under it is no damage: it is not found."""
        self._check_readable()
        try:
            with pin.reading(self._engine, self._found, doing, progress) as touched:
                yield touched
        except IntegrityError:
            self.refresh()
            if self._found.version.state is VersionState.PURGED:
                catalogue.lookup(self._engine, self._found.label)
            raise

    def _bind(self, entry: Entry) -> Entry:
        return entry.bound(EntryReader(self._engine, self._found))

    def files(
        self,
        prefix: str | None = None,
        names: Sequence[str] | None = None,
        page_size: int | None = None,
        start: str | None = None,
        *,
        per_page: int | None = None,
    ) -> Listing:
        """Entries in byte order of their paths, lazily.

        ``prefix``: a path or directory, by whole segments. ``names``: only these paths, as far as they are
        there. ``start``: the path of the last entry seen; listing goes on after it. ``page_size``: stop after so
        many. ``.cursor`` of the iterator is ``start`` for the next one: it stays good, for a version never changes.
        ``per_page``, W&B's word for how many one request brings, limits nothing there and has no effect here. Raises
        `InvalidInputError`, also for a cursor that is no path.
        """
        for name, count in (("page_size", page_size), ("per_page", per_page)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise InvalidInputError(f"{name}={count!r} must be at least 1")
        _warn_ignored(per_page=per_page)
        if prefix is not None and not isinstance(prefix, str):
            raise InvalidInputError(f"prefix={prefix!r} is not a path")
        if names is not None:
            names = check_texts(names, "paths", none=True)
        if start:
            check_path(start)
        elif start is not None and start != "":
            raise InvalidInputError(f"start={start!r} is not a cursor", hint="the path of the last entry seen")
        self._check_readable()
        return Listing(self._files(prefix, names, page_size, start), start or None)

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

    def get_path(self, name: str) -> Entry:
        """`get_entry`, by an old name. Deprecated."""
        warnings.warn("get_path is deprecated: use get_entry", DeprecationWarning, stacklevel=2)
        return self.get_entry(name)

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
        allow_missing_references: bool = False,  # noqa: FBT001, FBT002 - W&B's signature
        skip_cache: bool | None = None,  # noqa: FBT001
        path_prefix: str | os.PathLike[str] | None = None,
        multipart: bool | None = None,  # noqa: FBT001
        *,
        glob: str | None = None,
        overwrite: str = "replace",
        progress: Progress = no_progress,
    ) -> DownloadReport:
        """Write the files below a directory (default ``./artifacts/name:vN``); see `checkout.download`.

        ``path_prefix``: a path or directory, by whole segments; with a ``/`` at the end a directory only.
        ``skip_cache`` and ``multipart`` have no effect.
        """
        from casstore import checkout

        _warn_ignored(skip_cache=skip_cache, multipart=multipart)
        target = self._default_root() if root is None else root
        with self._reading("download of", progress) as touched:
            return checkout.download(
                self._engine,
                self._found,
                target,
                path_prefix=path_prefix,
                glob=glob,
                overwrite=overwrite,
                allow_missing_references=allow_missing_references,
                progress=touched,
            )

    def _default_root(self) -> str:
        return os.path.join("artifacts", self.name)

    def checkout(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        force: bool = False,
        dry_run: bool = False,
        confirm: Confirm | None = None,
        allow_missing_references: bool = False,
        progress: Progress = no_progress,
    ) -> CheckoutReport:
        """Make a directory (default ``./artifacts/name:vN``) hold just these files; see `checkout.replace`.

        All else in it is deleted, last, when everything has been verified and written. Only for directories that are
        empty or that a checkout made, unless ``force``; never ``/``, a home, the store, a directory above one of those,
        or a mount point: `RefusedError`. ``dry_run`` lists what would be written and deleted.
        """
        from casstore import checkout

        target = self._default_root() if root is None else root
        with self._reading("checkout of", progress) as touched:
            return checkout.replace(
                self._engine,
                self._found,
                target,
                force=force,
                dry_run=dry_run,
                confirm=checkout.accept if confirm is None else confirm,
                allow_missing_references=allow_missing_references,
                progress=touched,
            )

    def file(self, root: str | os.PathLike[str] | None = None) -> str:
        """Download the only file of the version; its local path. Raises `InvalidInputError` for 0 or more."""
        if self.file_count != 1:
            raise InvalidInputError(f"{self.ref} has {self.file_count} files, not 1", hint="use download()")
        (entry,) = self.files()
        return entry.download(None if root is None else source_path(root))

    def verify(
        self,
        root: str | os.PathLike[str] | None = None,
        progress: Progress = no_progress,
        *,
        check_refs: bool = False,
    ) -> Verified:
        """Check a directory against the version, or without one the stored bytes; returns bytes checked.

        With ``check_refs`` also what references point to. Those that nothing was compared of are in
        ``.unverified_refs`` of the result, and are no problem. Raises `VerificationError` with every problem:
        ``.missing``, ``.changed``, ``.extra``.
        """
        from casstore import checkout

        with self._reading("verification of", progress) as touched:
            if root is None:
                return checkout.verify_stored(self._engine, self._found, touched, check_refs=check_refs)
            return checkout.verify_directory(self._engine, self._found, root, touched, check_refs=check_refs)

    # --- drafts and deletion

    def new_draft(self) -> Artifact:
        """A draft with this content, sharing it; O(1). Description and metadata come along, aliases do not.

        The content stays in the store for a week, or until the draft is logged or goes away, even if this
        version is purged meanwhile. Of a link, the draft is one of its source, and is logged there.
        """
        self._check_readable()
        if self.is_link:
            return self.source_artifact.new_draft()
        engine = self._engine
        key = None if engine.read_only else engine.runtime.random_bytes(pin.ID_BYTES)
        base = DraftBase(engine, self._found, key)
        if key is not None:
            roots = (self._found.version.root,)
            holder = pin.holder(engine.runtime)

            def build(tables: Tables) -> tuple[Pin, ...]:
                catalogue.still_there(tables, self._found)
                return (Pin(key, holder, f"draft of {self.ref}", roots, pin.expiry(tables, pin.DRAFT)),)

            engine.commit(build, asked=True)
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
        from casstore.checkout import twins

        return tuple(
            f"{' and '.join(map(repr, paths))} are one path on some file systems"
            for paths in twins(entry.path for entry in self.files())
        )

    def delete(
        self,
        delete_aliases: bool = False,  # noqa: FBT001, FBT002
        reason: str = "",
        *,
        delete_links: bool = False,
        if_in_use: str = "cancel",
    ) -> Deletion:
        """Move to the trash. Raises `AliasGuardError` if aliases other than ``latest`` are on it, `ProtectedError`.

        ``delete_aliases`` takes them off; a restore gives them back. Links to it are in the way (`LinkGuardError`)
        unless ``delete_links``: then they are hidden, restored and purged with it. Declared uses of it are cancelled,
        or with ``if_in_use="refuse"`` in the way (`InUseError`). Deleting again changes nothing.

        Of a link only the link goes, at once and for good, with its aliases: see `unlink`.
        """
        from casstore.trashing import Allowed, move_to_trash

        allowed = Allowed.of(aliases=delete_aliases, links=delete_links, if_in_use=if_in_use)
        reason = check_description(reason)
        engine = self._engine
        engine.view.refresh()
        if self.is_link:
            return self._unlink(refuse_in_use=allowed.refuse_in_use)
        done = move_to_trash(engine, self._found, allowed, reason=reason, actor=engine.runtime.actor)
        self.refresh()
        exclusive, total = footprint(engine, self._found)
        version = self._found.version
        return Deletion(
            self.ref,
            from_micros(version.trashed or done.at),  # somebody may have restored it already
            catalogue.wall_time(engine, version.purge_at or done.purge_at),
            exclusive,
            total - exclusive,
            already_in_trash=done.already,
            links=done.links,
            cancelled_uses=done.cancelled,
        )

    def restore(self, name: str | None = None) -> Version:
        """Bring it back from the trash, as ``store.trash.restore``; with ``name``, as a version of that collection.

        ``.aliases_not_restored`` of what is returned: aliases that belong to another version by now.
        """
        from casstore import restoring

        engine = self._engine
        if name is not None:
            return Version(engine, restoring.restore_as(engine, self._found, CollectionName.parse(name)))
        found, lost = restoring.restore(engine, self._found)
        self.refresh()
        return Version(engine, found, aliases_not_restored=lost)

    # --- links

    def link(self, target: str, aliases: Sequence[str] = ()) -> Version:
        """Make it a version of another collection, too: with a number there, ``latest`` and these aliases on it.

        The link has the content and, aliases aside, the labels of this version, and keeps it from expiring. Linking a
        link links its source. If there is a link in the collection already, that one is returned, with the aliases and
        ``latest`` on it. ``target``: ``[[entity/]project/]name``; one that is not there becomes a portfolio, which
        takes links only. Raises `InvalidInputError` for the source's own collection, `TypeConflictError`,
        `NameTakenError` for one in the trash.
        """
        from casstore.linking import link

        return Version(self._engine, link(self._engine, self._found, CollectionName.parse(target), aliases))

    def unlink(self) -> None:
        """Take this link away, at once and for good; its source is not touched, its number is not used again.

        Raises `InvalidInputError` if it is no link, `ProtectedError`.
        """
        from casstore.linking import unlink

        unlink(self._engine, self._found)
        self.refresh()

    def _unlink(self, *, refuse_in_use: bool) -> Deletion:
        from casstore.linking import unlink

        cancelled = unlink(self._engine, self._found, refuse_in_use=refuse_in_use)
        self.refresh()
        gone = from_micros(self._found.version.updated)
        _, shared = footprint(self._engine, self._found)
        return Deletion(self.ref, gone, gone, 0, shared, cancelled_uses=cancelled, unlinked=True)

    @property
    def source_artifact(self) -> Version:
        """What this is a link to; itself if it is none."""
        return self if self._source is None else Version(self._engine, self._source)

    @property
    def source(self) -> Version:
        """`source_artifact`, by a shorter name."""
        return self.source_artifact

    @property
    def linked_artifacts(self) -> list[Version]:
        """The links to it that are there now, all of them; none for a link."""
        return [Version(self._engine, link) for link in self._links()]

    @property
    def exclusive_size(self) -> int:
        """Stored bytes that only this version and the links to it keep; 0 for a link."""
        return footprint(self._engine, self._found)[0]

    @property
    def stored_size(self) -> int:
        """Stored bytes this version needs, shared or not."""
        return footprint(self._engine, self._found)[1]


def footprint(engine: Engine, found: Found) -> tuple[int, int]:
    """Stored bytes that one version with the links to it keeps alone, and all it needs."""
    from casstore.gc.plan import footprint_of, garbage

    engine.view.refresh()
    with engine.view.read() as tables:
        roots = [row.root for row in with_links(tables, [found.version])]
        return garbage(tables, roots).stored, footprint_of(tables, found.version.root)


def _warn_ignored(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            warnings.warn(f"{name}= has no effect in casstore", DeprecationWarning, stacklevel=3)


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
