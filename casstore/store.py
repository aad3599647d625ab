"""The public object: one store. Every method hands on to the module that does the work."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, overload

from casstore import catalogue, expiry, policy, quota
from casstore.artifact import Artifact, draft_base
from casstore.authority import ask
from casstore.catalogue import Found
from casstore.distributed import DistributedStore
from casstore.engine import Engine
from casstore.errors import InvalidInputError
from casstore.identity import found_in
from casstore.model import INHERIT, KEPT, AliasChange, Inherit, Progress, VersionState, no_progress
from casstore.names import (
    LATEST,
    CollectionName,
    canonical_host_attrs,
    check_aliases,
    check_description,
    check_tags,
    check_texts,
    parse_reference,
    ttl_seconds,
)
from casstore.tracking import StoreTracking
from casstore.version import Deletion, Version

if TYPE_CHECKING:
    from casstore.ageing import ExpireReport, RetentionReport, TtlChange
    from casstore.bundle import BundleFile, ExportReport, ImportReport
    from casstore.checkout import CheckoutReport, Confirm
    from casstore.collection import Collection
    from casstore.comparing import Diff
    from casstore.deletion import BulkDeletion, Plan
    from casstore.inventory import CollectionInfo, CommitInfo
    from casstore.run import Run
    from casstore.selection import Where
    from casstore.trash import Trash

DEDUP = ("latest", "any", "never")


class Store(StoreTracking, DistributedStore):
    """A store that is open. Thread-safe; survives a fork; pickles as the place it was opened at.

    Use `Store.open` or `Store.create`. A context manager: leaving it closes the store.
    """

    # --- logging and finding

    def log_artifact(
        self,
        artifact: Artifact,
        aliases: Sequence[str] = (LATEST,),
        tags: Sequence[str] = (),
        ttl: timedelta | Inherit | None = INHERIT,
        dedup: str = "latest",
        base: str | None = None,
        *,
        project: str | None = None,
        if_base_latest: bool = False,
        move_latest: bool = True,
        update: bool = False,
        run: Run | str | None = None,
        attrs: Mapping[str, object] | None = None,
        progress: Progress = no_progress,
    ) -> Version:
        """Store an artifact as the next version of its collection; durable on return.

        Content equal to ``latest`` makes no new version (``dedup="any"``: equal to any version; ``"never"``):
        the version that is there is returned, with ``.created`` False, gets the aliases, and differing labels
        are reported in ``.ignored`` unless ``update``. ``latest`` moves unless ``move_latest=False``.
        ``project``: ``project`` or ``entity/project``. ``base``: the version (``vN``) the content was made from, for
        the record, if the artifact is no draft of it. ``if_base_latest``: refuse (`StaleBaseError`) when the
        version the draft was made from, or ``base``, is not ``latest`` any more. ``ttl``: the time to live, from the
        commit: a timedelta, None (never), INHERIT: the artifact's, else the collection's or the store's. ``run``: the
        run it is an output of (see `Run.log`); ``attrs``: up to 64 KiB of JSON that the host keeps with a new version,
        for good, in ``.attrs``. A failed log leaves no trace, burns no number, and leaves the artifact as it was.
        Raises `TypeConflictError`, `InvalidInputError` for sources that changed or cannot be read, `RefusedError` for a
        ttl on a type that has none, `VersionNotFoundError` for a ``base`` that there never was, `BackendError`.
        """
        if not isinstance(artifact, Artifact):
            raise InvalidInputError(f"log_artifact needs an Artifact, not {type(artifact).__name__}")
        if dedup not in DEDUP:
            raise InvalidInputError(f"dedup={dedup!r} is not valid", hint=", ".join(DEDUP))
        engine = self._engine
        name = self._home_of(artifact, project)
        from casstore.ingest import LogRequest, ingest

        draft, _ = draft_base(artifact)
        number = policy.base_number(draft, base, name, strict=if_base_latest)
        if base is not None:  # it may be gone, but there must have been one
            catalogue.lookup(engine, f"{name}:v{number}", expired=True, states=tuple(VersionState))
        seconds = ttl_seconds(artifact.ttl if ttl is INHERIT else ttl)
        expiry.check_loggable(engine, artifact.type, seconds)
        request = LogRequest(
            collection=name,
            aliases=tuple(alias for alias in check_aliases(aliases) if alias != LATEST),
            move_latest=bool(move_latest),
            tags=check_tags(tags),
            ttl=seconds,
            dedup=dedup,
            base=_label(name, number),
            strict_base=number if if_base_latest else None,
            update=update,
            actor=self._runtime.actor,
            pin=None if draft is None else draft.pin,
            admit=quota.admit,
            run=self._run_id(run),
            attrs=canonical_host_attrs(attrs),
            drafted=draft.place if draft is not None and base is None else None,
            follow=draft is not None and project is None,
        )
        ask(self._runtime, [("log", name.short)])
        result = ingest(engine, artifact, request, progress)
        artifact.finalize()
        return Version(
            engine,
            # It may be in the trash by now, or purged: logged it was all the same.
            catalogue.found_at(engine, result.collection, result.number),
            created=result.created,
            latest_before=None if result.latest_before is None else f"v{result.latest_before}",
            ignored=result.ignored,
            new_bytes=result.new_bytes,
            stored_bytes=result.stored_bytes,
        )

    def _log(self, artifact: Artifact, **options: Any) -> Version:
        return self.log_artifact(artifact, **options)

    def get(self, ref: str, type: str | None = None, *, expired: bool = False) -> Version:  # noqa: A002
        """The version a reference names: ``[[entity/]project/]collection[:vN|alias|digest]``.

        Raises `InvalidNameError`, `CollectionNotFoundError`, `VersionNotFoundError`; `InvalidInputError` if its
        type is not ``type``. A version past its time to live is found only with ``expired``, and before a sweep.
        """
        version = Version(self._engine, catalogue.lookup(self._engine, ref, expired=expired))
        if type is not None and version.type != type:
            raise InvalidInputError(f"{version.ref} has type {version.type!r}, not {type!r}")
        return version

    def checkout(
        self,
        ref: str,
        root: str | os.PathLike[str] | None = None,
        *,
        force: bool = False,
        dry_run: bool = False,
        confirm: Confirm | None = None,
        allow_missing_references: bool = False,
        progress: Progress = no_progress,
    ) -> CheckoutReport:
        """`Version.checkout` by reference."""
        return self.get(ref).checkout(
            root,
            force=force,
            dry_run=dry_run,
            confirm=confirm,
            allow_missing_references=allow_missing_references,
            progress=progress,
        )

    def link(self, ref: str, target: str, aliases: Sequence[str] = ()) -> Version:
        """`Version.link` by reference."""
        return self.get(ref).link(target, aliases)

    def collections(
        self,
        type: str | None = None,  # noqa: A002 - the users' word
        prefix: str = "",
        *,
        kind: str | None = None,
    ) -> Iterator[CollectionInfo]:
        """Collections in name order, empty ones too; ``kind``: only ``sequence`` or ``portfolio``."""
        from casstore.inventory import list_collections

        return list_collections(self._engine, type, prefix, kind)

    def versions(
        self,
        collection: str,
        *,
        newest_first: bool = True,
        trashed: bool = False,
        state: str | None = None,
        where: Where | None = None,
    ) -> list[Version]:
        """Versions of a collection, newest first; see `Collection.versions`."""
        from casstore.collection import list_versions, state_from

        return list_versions(
            self._engine,
            CollectionName.parse(collection),
            newest_first=newest_first,
            state=state_from(state, trashed=trashed),
            where=where,
        )

    def alias_log(self, collection: str, alias: str | None = None) -> list[AliasChange]:
        """How the aliases of a collection moved, oldest first."""
        reference = parse_reference(collection)
        return catalogue.history(self._engine, reference.collection, alias or reference.selector)

    def diff(self, a: str | Version, b: str | Version) -> Diff:
        """What changed from one version to another, by reference or as objects of this store. O(difference)."""
        from casstore.comparing import compare

        return compare(self._engine, _shown(self._engine, a), _shown(self._engine, b))

    def log(self, *, limit: int | None = None) -> list[CommitInfo]:
        """Commits, newest first."""
        from casstore.inventory import commits

        return commits(self._engine, limit)

    @overload
    def delete(
        self,
        ref: str,
        delete_aliases: bool = ...,  # noqa: FBT001
        reason: str = ...,
        *,
        delete_links: bool = ...,
        if_in_use: str = ...,
    ) -> Deletion: ...

    @overload
    def delete(
        self,
        ref: None = None,
        delete_aliases: bool = ...,  # noqa: FBT001
        reason: str = ...,
        *,
        where: Where,
        collection: str | None = ...,
        delete_links: bool = ...,
        if_in_use: str = ...,
        dry_run: bool = ...,
    ) -> BulkDeletion: ...

    def delete(
        self,
        ref: str | None = None,
        delete_aliases: bool = False,  # noqa: FBT001, FBT002 - the signature of FEATURES K1
        reason: str = "",
        *,
        where: Where | None = None,
        collection: str | None = None,
        delete_links: bool = False,
        if_in_use: str = "cancel",
        dry_run: bool = False,
    ) -> Deletion | BulkDeletion:
        """Move a version to the trash; see `Version.delete`. One that is there already is left there.

        With ``where``, all versions that match (in ``collection``), in one commit; those that are protected, or have
        aliases without ``delete_aliases``, links to them without ``delete_links``, or with ``if_in_use="refuse"`` are
        in use, are skipped and listed. Links themselves never match. ``dry_run`` returns what the run would.
        """
        from casstore import deletion
        from casstore.trashing import Allowed

        reason = check_description(reason)
        allowed = Allowed.of(aliases=delete_aliases, links=delete_links, if_in_use=if_in_use)
        if where is not None or ref is None:
            if ref is not None or where is None:
                raise InvalidInputError("delete takes a reference or a predicate", hint="where=Where(unaliased=True)")
            request = deletion.request_for(
                self._engine, where, (), collection=collection, allowed=allowed, reason=reason
            )
            if dry_run:
                return deletion.plan(self._engine, request).foreseen
            return deletion.delete(self._engine, request)
        if dry_run or collection is not None:
            raise InvalidInputError("dry_run and collection go with where", hint="store.plan_delete([ref])")
        reference = parse_reference(ref)
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            found = catalogue.find(tables, reference, states=KEPT)
        return Version(self._engine, found).delete(
            delete_aliases, reason, delete_links=delete_links, if_in_use=if_in_use
        )

    def plan_delete(
        self,
        which: Where | Sequence[str],
        delete_aliases: bool = False,  # noqa: FBT001, FBT002 - as delete
        reason: str = "",
        *,
        collection: str | None = None,
        delete_links: bool = False,
        if_in_use: str = "cancel",
        permanent: bool = False,
        measure: bool = True,
    ) -> Plan:
        """What deleting the versions of a predicate, or some by name, would do. Its ``apply()`` does just that.

        ``permanent``: not to the trash, but purged by the same commit, as are those named that are in the trash; then
        only `gc_undo` brings them back, while the grace of the `gc` that follows keeps their bytes. ``measure=False``
        leaves the bytes at 0 that only these versions keep: to find them takes a walk over all that might go.

        ``apply`` raises `StaleBaseError` if the store moved in a way that changes the plan. Named versions that are
        protected or have aliases, links or uses in the way raise `ProtectedError`, `AliasGuardError`,
        `LinkGuardError`, `InUseError`; others are skipped. Links that are named are unlinked.
        """
        from casstore import deletion
        from casstore.selection import Where
        from casstore.trashing import Allowed

        where, refs = (which, ()) if isinstance(which, Where) else (None, check_texts(which, "references"))
        request = deletion.request_for(
            self._engine,
            where,
            refs,
            collection=collection,
            allowed=Allowed.of(aliases=delete_aliases, links=delete_links, if_in_use=if_in_use),
            reason=check_description(reason),
            permanent=permanent,
        )
        return deletion.plan(self._engine, request, measure=measure)

    def create_collection(
        self,
        name: str,
        type: str,  # noqa: A002 - the users' word
        kind: str = "sequence",
        description: str = "",
    ) -> Collection:
        """Make a collection without versions; one of kind ``portfolio`` takes links only (`Version.link`).

        Raises `NameTakenError` if there is one, also in the trash; `RefusedError` for a type that is reserved.
        """
        from casstore.collection import create

        return create(self._engine, name, type, kind, description)

    def collection(self, ref: str) -> Collection:
        """A collection: its versions, protection and deletion. Raises `CollectionNotFoundError`."""
        from casstore.collection import Collection

        name = CollectionName.parse(ref)
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return Collection(self._engine, catalogue.find_collection(tables, name))

    @property
    def trash(self) -> Trash:
        """Versions and collections that are hidden and can be restored."""
        from casstore.trash import Trash

        return Trash(self._engine)

    # --- moving

    def copy(
        self,
        ref: str,
        dest: str,
        *,
        aliases: Sequence[str] = (),
        tags: Sequence[str] | None = None,
        ttl: timedelta | Inherit | None = INHERIT,
        dedup: str = "latest",
        move_latest: bool = True,
        update: bool = False,
    ) -> Version:
        """Log the content of a version as the next version of another collection (``[[entity/]project/]name``).

        Takes a commit, whatever the size: no file is read or stored. Type, description, metadata and, without
        ``tags``, tags and attrs come along; aliases and the time to live do not. Else as
        `log_artifact`, also when ``dest`` has the content already. Raises `VersionNotFoundError`, `TypeConflictError`.
        """
        from casstore.copying import copy

        if dedup not in DEDUP:
            raise InvalidInputError(f"dedup={dedup!r} is not valid", hint=", ".join(DEDUP))
        from casstore.ingest import LogRequest

        engine = self._engine
        source = self.get(ref)
        seconds = ttl_seconds(ttl)
        expiry.check_loggable(engine, source.type, seconds)
        request = LogRequest(
            collection=CollectionName.parse(dest),
            aliases=tuple(alias for alias in check_aliases(aliases) if alias != LATEST),
            move_latest=bool(move_latest),
            tags=() if tags is None else check_tags(tags),
            ttl=seconds,
            dedup=dedup,
            base="",
            strict_base=None,
            update=update,
            actor=self._runtime.actor,
            pin=None,
        )
        ask(self._runtime, [("log", request.collection.short)])
        result = copy(engine, parse_reference(source.qualified_name), request, keep_tags=tags is None)
        return Version(
            engine,
            catalogue.found_at(engine, result.collection, result.number),
            created=result.created,
            latest_before=None if result.latest_before is None else f"v{result.latest_before}",
            ignored=result.ignored,
        )

    def export(
        self,
        refs: str | Sequence[str],
        file: BundleFile,
        *,
        overwrite: bool = False,
        progress: Progress = no_progress,
    ) -> ExportReport:
        """Write versions, with their labels and all their content, into one file that another store can import.

        ``file``: a path, which appears whole and durable or not at all, or a binary file object. A file that is there
        is refused (`AlreadyExistsError`) without ``overwrite``. The same versions give the same bytes, in whatever
        order they are named. Needs memory for a list of what is in them: about 200 bytes a chunk, and 30 MB. Raises
        `VersionNotFoundError`, also for versions in the trash, and `IntegrityError`.
        """
        from casstore.bundle import export

        return export(self._engine, refs, file, overwrite=overwrite, progress=progress)

    def import_bundle(
        self,
        file: BundleFile,
        *,
        project: str | None = None,
        rename: Mapping[str, str] | None = None,
        aliases: bool = True,
        max_bytes: int | None = None,
        dry_run: bool = False,
        progress: Progress = no_progress,
    ) -> ImportReport:
        """Bring the versions of a bundle into this store: all of them, in one commit, or none.

        Each becomes the next version of its collection, in the order of their old numbers; one whose content the
        collection has already is skipped. ``project`` (``project`` or ``entity/project``): where all collections go,
        instead of where they were. ``rename``: old collection name → new one. ``aliases``: set those that are free; one
        that another version has stays there, and is reported. A time to live starts anew.

        A bundle may come from anybody: all of it is checked before the store is touched, and one that is not as
        `export` makes them changes nothing. ``max_bytes``: of content, and of a stream that cannot be read twice, which
        is put into a temporary file first. Needs memory for a list of what is in it, about 250 bytes a chunk, for the
        labels of all versions, and for a few packs. Raises `FormatError`, `UnsupportedFormatError`, `IntegrityError`,
        `InvalidInputError`, `LimitError`, `TypeConflictError`, `NameTakenError`, `RefusedError`, `QuotaExceededError`.
        """
        from casstore.bundle import ImportRequest, import_bundle

        request = ImportRequest(
            project=project,
            rename={} if rename is None else rename,
            aliases=aliases,
            max_bytes=max_bytes,
            dry_run=dry_run,
            actor=self._runtime.actor,
            admit=quota.admit,
            allow=lambda kind, seconds: expiry.check_loggable(self._engine, kind, seconds),
        )
        return import_bundle(self._engine, file, request, progress)

    # --- time

    def set_ttl(self, ref: str, ttl: timedelta | Inherit | None, allow_immediate: bool = False) -> Version:  # noqa: FBT001, FBT002
        """`Version.set_ttl` by reference; also finds a version that has expired and is not in the trash yet."""
        version = Version(self._engine, catalogue.lookup(self._engine, ref, expired=True))
        version.set_ttl(ttl, allow_immediate)
        return version

    def set_default_ttl(
        self,
        ttl: timedelta | Inherit | None,
        collection: str | None = None,
        dry_run: bool = False,  # noqa: FBT001, FBT002 - the signature of FEATURES J5
        confirm: int | None = None,
    ) -> TtlChange:
        """Time to live of all versions, old and new, that have none of their own; of a collection, or of the store.

        What the collection says goes before what the store says; INHERIT makes it say nothing again. The result
        counts the versions that expire at once by it; if there are any, the change is refused
        (`ConfirmationRequired`) unless ``confirm`` is just that count. Raises `CollectionNotFoundError`.
        """
        from casstore.ageing import set_default_ttl

        name = None if collection is None else CollectionName.parse(collection)
        return set_default_ttl(self._engine, ttl, name, dry_run=dry_run, confirm=confirm)

    def expire(self, now: datetime | None = None, dry_run: bool = False) -> ExpireReport:  # noqa: FBT001, FBT002
        """Move all versions past their time to live to the trash, in one commit; `gc` does so first of all.

        Aliases do not save a version (the report names them, a restore brings them back), except those that the
        policy protects; nor does anything else but protection. ``now``: what had expired by then, or with
        ``dry_run`` will have. A moment to come cannot be had without ``dry_run``: `InvalidInputError`.
        """
        from casstore.ageing import expire

        return expire(self._engine, now, dry_run=dry_run)

    def retain(
        self,
        collection: str,
        keep_last: int | None = None,
        keep_hourly: int | None = None,
        keep_daily: int | None = None,
        keep_weekly: int | None = None,
        keep_monthly: int | None = None,
        keep_yearly: int | None = None,
        keep_within: timedelta | None = None,
        keep_tagged: Sequence[str] = (),
        *,
        delete_aliases: bool = False,
        dry_run: bool = False,
    ) -> RetentionReport:
        """Move the versions of a collection that no rule keeps to the trash, in one commit; says why each other stays.

        The newest version of each of the newest N hours, days, ISO weeks, months or years (UTC) that have any; the
        newest N; all not older than ``keep_within`` against the newest; all with one of some tags. ``latest``,
        protected versions, and without ``delete_aliases`` those with an alias stay in any case. Without any rule, those
        of the policy (``retention``); if there are none, `InvalidInputError`. ``dry_run`` shows what would be done.
        """
        from casstore.ageing import retain

        given: dict[str, object] = {
            "keep_last": keep_last,
            "keep_hourly": keep_hourly,
            "keep_daily": keep_daily,
            "keep_weekly": keep_weekly,
            "keep_monthly": keep_monthly,
            "keep_yearly": keep_yearly,
            "keep_within": keep_within,
            "keep_tagged": keep_tagged or None,
        }
        name = CollectionName.parse(collection)
        stored = self.policy.retention if all(value is None for value in given.values()) else None
        from casstore.retention import rules_from

        rules = stored or rules_from(given)
        return retain(self._engine, name, rules, delete_aliases=delete_aliases, dry_run=dry_run)

    def to_dict(self) -> Mapping[str, object]:
        """Place, configuration and policy as JSON values."""
        return {"url": self._url, "config": asdict(self.config), "policy": self.policy.to_dict()}


def _shown(engine: Engine, what: str | Version) -> Found:
    """The version that is meant, if readers see it."""
    if not isinstance(what, Version):
        return catalogue.lookup(engine, what)
    found = found_in(engine, what)
    engine.view.refresh()
    with engine.view.read() as tables:
        return catalogue.still_there(tables, found)


def _label(name: CollectionName, number: int | None) -> str:
    return "" if number is None else f"{name.short}:v{number}"
