"""The public object: one store. Every method hands on to the module that does the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import overload

from casstore import (
    ageing,
    catalogue,
    comparing,
    deletion,
    expiry,
    inventory,
    pin,
    policy,
    quota,
)
from casstore.ageing import ExpireReport, RetentionReport, TtlChange
from casstore.artifact import Artifact, draft_base, foreign_path
from casstore.catalogue import full_name
from casstore.collection import Collection
from casstore.comparing import Diff
from casstore.deletion import BulkDeletion, Plan
from casstore.errors import InvalidInputError
from casstore.ingest import LogRequest, ingest
from casstore.inventory import CollectionInfo, CommitInfo
from casstore.model import INHERIT, AliasChange, Inherit, Progress, VersionState, no_progress
from casstore.names import (
    LATEST,
    CollectionName,
    check_aliases,
    check_description,
    check_tags,
    parse_reference,
    ttl_seconds,
)
from casstore.retention import rules_from
from casstore.selection import Where
from casstore.trash import Trash
from casstore.upkeep import StoreUpkeep
from casstore.version import Deletion, Version
from casstore.view import versions

DEDUP = ("latest", "any", "never")


class Store(StoreUpkeep):
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
        progress: Progress = no_progress,
    ) -> Version:
        """Store an artifact as the next version of its collection; durable on return.

        Content equal to ``latest`` makes no new version (``dedup="any"``: equal to any version; ``"never"``):
        the version that is there is returned, with ``.created`` False, gets the aliases, and differing labels
        are reported in ``.ignored`` unless ``update``. ``latest`` moves unless ``move_latest=False``.
        ``project``: ``project`` or ``entity/project``. ``base``: the version (``vN``) the content was made from, for
        the record, if the artifact is no draft of it. ``if_base_latest``: refuse (`StaleBaseError`) when the
        version the draft was made from, or ``base``, is not ``latest`` any more. ``ttl``: the time to live, from the
        commit: a timedelta, None (never), INHERIT: the artifact's, else the collection's or the store's. A failed
        log leaves no trace, burns no number, and leaves the artifact as it was. Raises `TypeConflictError`,
        `InvalidInputError` for sources that changed or cannot be read, `RefusedError` for a ttl on a type that has
        none, `BackendError`.
        """
        if not isinstance(artifact, Artifact):
            raise InvalidInputError(f"log_artifact needs an Artifact, not {type(artifact).__name__}")
        if dedup not in DEDUP:
            raise InvalidInputError(f"dedup={dedup!r} is not valid", hint=", ".join(DEDUP))
        engine = self._engine
        self._release_abandoned()
        draft, home = draft_base(artifact)
        if draft is not None and draft.pin is not None:
            pin.renew_draft(engine, draft.pin)
        name = CollectionName.parse(artifact.name, home if project is None else project)
        foreign = foreign_path(artifact, engine.config.store_id)
        if foreign is not None:
            raise InvalidInputError(
                f"{foreign!r} is in another store, so its content cannot be shared",
                hint="download it and add the files",
            )
        number = policy.base_number(draft, base, name, strict=if_base_latest)
        seconds = ttl_seconds(artifact.ttl if ttl is INHERIT else ttl)
        ageing.check_loggable(engine, artifact.type, seconds)
        request = LogRequest(
            collection=name,
            aliases=tuple(alias for alias in check_aliases(aliases) if alias != LATEST),
            move_latest=move_latest,
            tags=check_tags(tags),
            ttl=seconds,
            dedup=dedup,
            base=draft.name if draft is not None and base is None else _label(name, number),
            strict_base=number if if_base_latest else None,
            update=update,
            actor=self._runtime.actor,
            pin=None if draft is None else draft.pin,
            admit=quota.admit,
        )
        result = ingest(engine, artifact, request, progress)
        artifact.finalize()
        return Version(
            engine,
            # It may be in the trash by now, or purged: logged it was all the same.
            catalogue.lookup(engine, f"{name}:v{result.number}", expired=True, states=tuple(VersionState)),
            created=result.created,
            latest_before=None if result.latest_before is None else f"v{result.latest_before}",
            ignored=result.ignored,
            new_bytes=result.new_bytes,
            stored_bytes=result.stored_bytes,
        )

    def get(self, ref: str, type: str | None = None, *, expired: bool = False) -> Version:  # noqa: A002
        """The version a reference names: ``[[entity/]project/]collection[:vN|alias|digest]``.

        Raises `InvalidNameError`, `CollectionNotFoundError`, `VersionNotFoundError`; `InvalidInputError` if its
        type is not ``type``. A version past its time to live is found only with ``expired``, and before a sweep.
        """
        version = Version(self._engine, catalogue.lookup(self._engine, ref, expired=expired))
        if type is not None and version.type != type:
            raise InvalidInputError(f"{version.ref} has type {version.type!r}, not {type!r}")
        return version

    def collections(self, type: str | None = None, prefix: str = "") -> Iterator[CollectionInfo]:  # noqa: A002
        """Collections in name order."""
        return inventory.list_collections(self._engine, type, prefix)

    def versions(self, collection: str, *, newest_first: bool = True, trashed: bool = False) -> list[Version]:
        """Versions of a collection, newest first; those in the trash instead with ``trashed``."""
        name = CollectionName.parse(collection)
        state = VersionState.TRASHED if trashed else VersionState.COMMITTED
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            row = catalogue.find_collection(tables, name, hidden=trashed)
            stored = versions(tables, row.id, newest_first=newest_first, states=(state,))
            rows = list(expiry.visible(tables, expiry.terms_now(self._engine, tables), row, stored))
        return [Version(self._engine, catalogue.Found(full_name(row), row, version)) for version in rows]

    def alias_log(self, collection: str, alias: str | None = None) -> list[AliasChange]:
        """How the aliases of a collection moved, oldest first."""
        reference = parse_reference(collection)
        return catalogue.history(self._engine, reference.collection, alias or reference.selector)

    def diff(self, a: str, b: str) -> Diff:
        """What changed from one version to another. O(difference)."""
        return comparing.compare(self._engine, catalogue.lookup(self._engine, a), catalogue.lookup(self._engine, b))

    def log(self, *, limit: int | None = None) -> list[CommitInfo]:
        """Commits, newest first."""
        return inventory.commits(self._engine, limit)

    @overload
    def delete(self, ref: str, delete_aliases: bool = ..., reason: str = ...) -> Deletion: ...  # noqa: FBT001

    @overload
    def delete(
        self,
        ref: None = None,
        delete_aliases: bool = ...,  # noqa: FBT001
        reason: str = ...,
        *,
        where: Where,
        collection: str | None = ...,
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
        dry_run: bool = False,
    ) -> Deletion | BulkDeletion:
        """Move a version to the trash; see `Version.delete`. One that is there already is left there.

        With ``where``, all versions that match (in ``collection``), in one commit; those that are protected, or have
        aliases without ``delete_aliases``, are skipped and listed. ``dry_run`` returns what the run would.
        """
        reason = check_description(reason)
        if where is not None or ref is None:
            if ref is not None or where is None:
                raise InvalidInputError("delete takes a reference or a predicate", hint="where=Where(unaliased=True)")
            request = deletion.request_for(
                self._engine, where, (), collection=collection, delete_aliases=delete_aliases, reason=reason
            )
            if dry_run:
                return deletion.plan(self._engine, request).foreseen
            return deletion.delete(self._engine, request)
        if dry_run or collection is not None:
            raise InvalidInputError("dry_run and collection go with where", hint="store.plan_delete([ref])")
        reference = parse_reference(ref)
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            states = (VersionState.COMMITTED, VersionState.TRASHED)
            found = catalogue.find(tables, reference, states=states)
        return Version(self._engine, found).delete(delete_aliases, reason)

    def plan_delete(
        self,
        which: Where | Sequence[str],
        delete_aliases: bool = False,  # noqa: FBT001, FBT002 - as delete
        reason: str = "",
        *,
        collection: str | None = None,
    ) -> Plan:
        """What deleting the versions of a predicate, or some by name, would do. Its ``apply()`` does just that.

        ``apply`` raises `StaleBaseError` if the store moved in a way that changes the plan. Named versions that are
        protected or have aliases in the way raise `ProtectedError`, `AliasGuardError`; others are skipped.
        """
        if isinstance(which, str):
            raise InvalidInputError("plan_delete needs a list of references, or a predicate", hint="[ref]")
        where, refs = (which, ()) if isinstance(which, Where) else (None, tuple(which))
        request = deletion.request_for(
            self._engine,
            where,
            refs,
            collection=collection,
            delete_aliases=delete_aliases,
            reason=check_description(reason),
        )
        return deletion.plan(self._engine, request)

    def collection(self, ref: str) -> Collection:
        """A collection: its versions, protection and deletion. Raises `CollectionNotFoundError`."""
        name = CollectionName.parse(ref)
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            return Collection(self._engine, catalogue.find_collection(tables, name))

    @property
    def trash(self) -> Trash:
        """Versions and collections that are hidden and can be restored."""
        return Trash(self._engine)

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
        name = None if collection is None else CollectionName.parse(collection)
        return ageing.set_default_ttl(self._engine, ttl, name, dry_run=dry_run, confirm=confirm)

    def expire(self, now: datetime | None = None, dry_run: bool = False) -> ExpireReport:  # noqa: FBT001, FBT002
        """Move all versions past their time to live to the trash, in one commit; `gc` does so first of all.

        Aliases do not save a version (the report names them, a restore brings them back), except those that the
        policy protects; nor does anything else but protection. ``now``: what had expired by then, or with
        ``dry_run`` will have. A moment to come cannot be had without ``dry_run``: `InvalidInputError`.
        """
        return ageing.expire(self._engine, now, dry_run=dry_run)

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
        rules = stored or rules_from(given)
        return ageing.retain(self._engine, name, rules, delete_aliases=delete_aliases, dry_run=dry_run)

    def to_dict(self) -> Mapping[str, object]:
        """Place, configuration and policy as JSON values."""
        return {"url": self._url, "config": asdict(self.config), "policy": self.policy.to_dict()}


def _label(name: CollectionName, number: int | None) -> str:
    return "" if number is None else f"{name.short}:v{number}"
