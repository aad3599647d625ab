"""The public object: one store. Every method hands on to the module that does the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, overload

from casstore import (
    ageing,
    audit,
    catalogue,
    comparing,
    deletion,
    doctor,
    erasure,
    expiry,
    explain,
    inventory,
    pin,
    policy,
    quota,
    scrub,
    status,
)
from casstore.ageing import ExpireReport, RetentionReport, TtlChange
from casstore.artifact import Artifact, draft_base, foreign_path
from casstore.audit import DeletionRecord
from casstore.backend.osops import OsOps
from casstore.backend.room import ballast_bytes, set_ballast
from casstore.catalogue import full_name
from casstore.checkpointing import CheckpointInfo, make_checkpoint
from casstore.collection import Collection
from casstore.comparing import Diff
from casstore.config import ChunkerParams, Runtime, Settings, StoreConfig, environment_flag
from casstore.deletion import BulkDeletion, Plan
from casstore.digest import Digest
from casstore.doctor import Check
from casstore.engine import Engine
from casstore.erasure import Erasure
from casstore.errors import CasstoreError, GCDisabledError, InvalidInputError
from casstore.explain import Explanation, Impact, Keeper
from casstore.gc import GCReport, Options, collect, finish
from casstore.gc.plan import Limits
from casstore.gc.undo import UndoReport, undo
from casstore.ingest import LogRequest, ingest
from casstore.inventory import CollectionInfo, CommitInfo, Usage
from casstore.model import INHERIT, AliasChange, Inherit, Progress, Unpin, VersionState, no_progress
from casstore.names import (
    LATEST,
    CollectionName,
    check_aliases,
    check_description,
    check_tags,
    parse_reference,
    ttl_seconds,
)
from casstore.opening import create_store, open_store
from casstore.pin import PinInfo
from casstore.policy import Policy
from casstore.quota import KEEP, Forecast, Keep, Quota
from casstore.retention import rules_from
from casstore.scrub import FsckReport
from casstore.selection import Where
from casstore.status import Status
from casstore.trash import Trash
from casstore.version import Deletion, Version
from casstore.view import versions

DEDUP = ("latest", "any", "never")


class Store:
    """A store that is open. Thread-safe; survives a fork; pickles as the place it was opened at.

    Use `Store.open` or `Store.create`. A context manager: leaving it closes the store.
    """

    def __init__(
        self, url: str, *, read_only: bool, runtime: Runtime, settings: Settings, ops: OsOps | None, engine: Engine
    ) -> None:
        # As absolute as it was when it was opened: a copy may be opened from another working directory.
        self._url = url if "://" in url else os.path.abspath(url)
        self._read_only = read_only
        self._runtime = runtime
        self._settings = settings
        self._ops = ops
        self._core: Engine | None = engine
        self._closed = False

    # --- opening

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        create: bool = False,  # noqa: FBT001, FBT002 - the signature of DESIGN §12
        read_only: bool = False,  # noqa: FBT001, FBT002
        clock: Callable[[], datetime] | None = None,
        *,
        runtime: Runtime | None = None,
        settings: Settings | None = None,
        ops: OsOps | None = None,
    ) -> Store:
        """Open the store at a path, ``file://`` or ``memory://`` URL; with ``create``, make it if need be.

        ``clock`` returns an aware UTC datetime and is the only time the store knows. Raises
        `StoreNotFoundError`, `UnsupportedFormatError`, `IntegrityError`, `BackendError`.
        """
        world, mine = _world(runtime, clock), settings or Settings()
        engine = open_store(url, world, mine, ops, create=create, read_only=read_only)
        return cls(os.fspath(url), read_only=read_only, runtime=world, settings=mine, ops=ops, engine=engine)

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str],
        digest: str = "blake3",
        chunker: ChunkerParams | None = None,
        clock: Callable[[], datetime] | None = None,
        *,
        config: StoreConfig | None = None,
        runtime: Runtime | None = None,
        settings: Settings | None = None,
        ops: OsOps | None = None,
    ) -> Store:
        """Make a store where there is none. Raises `AlreadyExistsError`.

        ``digest``: ``blake3``, ``sha256``, or ``xxh3-128``, which is faster but safe only while every writer is
        trusted: it gives no protection against contents made to collide.
        """
        world, mine = _world(runtime, clock), settings or Settings()
        chosen = config or StoreConfig(digest=digest, chunker=chunker or ChunkerParams())
        create_store(url, chosen, world, ops)
        return cls.open(url, runtime=world, settings=mine, ops=ops)

    @property
    def _engine(self) -> Engine:
        if self._closed:
            raise CasstoreError("the store is closed", hint="open it again with Store.open")
        if self._core is None:
            self._core = open_store(self._url, self._runtime, self._settings, self._ops, read_only=self._read_only)
        return self._core

    def close(self) -> None:
        """Let go of threads and files. Closing twice is fine."""
        core, self._core, self._closed = self._core, None, True
        if core is not None:
            core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        # Clocks and randomness are functions, which do not travel: the copy has the real ones.
        return {**self.__dict__, "_core": None, "_runtime": None, "_ops": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._runtime = Runtime()

    def __repr__(self) -> str:
        return f"<Store {self._url!r}{' read-only' if self._read_only else ''}>"

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._url

    @property
    def config(self) -> StoreConfig:
        """What was fixed when the store was created."""
        return self._engine.config

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

    def _release_abandoned(self) -> None:
        """Release the pins of drafts that went away without being logged."""
        engine = self._engine
        while engine.abandoned:
            pin = engine.abandoned.pop()
            held = {key for key, _ in engine.view.pins()}
            if pin in held:
                with suppress(CasstoreError):  # somebody else released it, or it will expire
                    engine.commit(lambda _, pin=pin: (Unpin(pin),))  # type: ignore[misc]

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
        check_description(reason)
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
            catalogue.find_collection(tables, name)
        return Collection(self._engine, name)

    @property
    def trash(self) -> Trash:
        """Versions and collections that are hidden and can be restored."""
        return Trash(self._engine)

    # --- space

    def gc(
        self,
        dry_run: bool = False,  # noqa: FBT001, FBT002 - the signature of DESIGN §12
        grace: timedelta | float | None = None,
        offline: bool = False,  # noqa: FBT001, FBT002
        incremental: bool = False,  # noqa: FBT001, FBT002
        max_waste: float | None = None,
        orphan_age: timedelta | float | None = None,
        max_bytes: int | None = None,
        max_seconds: float | None = None,
        *,
        executor: Executor | None = None,
        progress: Progress = no_progress,
    ) -> GCReport:
        """Free what no version, trashed version or pin needs. Safe beside writers; see docs/GC.md.

        ``grace`` and ``orphan_age``: a timedelta or seconds. ``offline`` has the store alone (else
        `StoreBusyError` names who is at work in it) and compacts fully, without waiting.
        ``executor`` (threads, processes, or another that takes picklable tasks) reads the nodes for the mark.
        Raises `GCDisabledError`, `IntegrityError` (nothing was deleted), `StoreBusyError`, `BackendError`.
        """
        if not dry_run:
            self._release_abandoned()
        rules = self.policy
        if not dry_run:
            self._check_gc_enabled()
        if not (max_waste is None or (isinstance(max_waste, int | float) and 0 <= max_waste <= 1)):
            raise InvalidInputError(f"max_waste={max_waste!r} is not between 0 and 1")
        wait = 0.0 if offline and grace is None else policy.seconds(grace, "grace", rules.grace.total_seconds())
        orphans = 0.0 if offline else policy.seconds(orphan_age, "orphan_age", 48 * 3600.0)
        options = Options(
            dry_run=dry_run,
            grace=int(wait * 1_000_000),
            orphan_age=int(orphans * 1_000_000),
            limits=Limits(max_waste, compact=offline, policy=rules),
            incremental=incremental,
            max_bytes=policy.whole(max_bytes, "max_bytes"),
            max_seconds=None if max_seconds is None else policy.seconds(max_seconds, "max_seconds", 0.0),
            actor=self._runtime.actor,
            offline=offline,
            executor=executor,
        )
        return collect(self._engine, options, progress)

    def gc_reclaim(self, *, progress: Progress = no_progress) -> GCReport:
        """End the grace now: delete the packs that have ended, without a new plan. No run can be undone after that.

        Raises `GCDisabledError`, `IntegrityError` (nothing was deleted), `BackendError`.
        """
        self._check_gc_enabled()
        return finish(self._engine, self._runtime.actor, progress)

    def _check_gc_enabled(self) -> None:
        enabled = environment_flag("GC_ENABLED")
        if not (self.policy.gc_enabled if enabled is None else enabled):
            raise GCDisabledError("collection is switched off for this store", hint="store.set_policy(gc_enabled=True)")

    def gc_undo(self, run: str, refs: Sequence[str] = (), *, progress: Progress = no_progress) -> UndoReport:
        """Take back a run of the collector, while the grace keeps the bytes: its versions go back into the trash.

        Versions that were purged by hand and whose content the run freed are among them. ``refs``: only these. All
        or nothing, one commit. Raises `NotFoundError` for an unknown run, `RefusedError` when bytes are gone.
        """
        keep = int(self.policy.trash_days * 86_400 * 1_000_000)
        return undo(self._engine, run, refs, keep, self._runtime.actor, progress)

    def ballast(self, size: int | None = None) -> int:
        """Make or resize (0: remove) the ballast: bytes on the disk that `gc` gives up when there are no others.

        Returns its size; without ``size`` changes nothing. It counts as ``other`` in `du`. Raises `BackendError` when
        there is no room for it, `InvalidInputError` for a store that is in no directory.
        """
        engine = self._engine
        if size is not None:
            engine.check_writable()
            set_ballast(engine.backend, engine.ops, policy.whole(size, "size") or 0)
        return ballast_bytes(engine.backend)

    def fsck(
        self,
        read_data: bool | float = False,  # noqa: FBT001, FBT002
        progress: Progress = no_progress,
        *,
        repair: bool = False,
        seed: int | None = None,
    ) -> FsckReport:
        """Check log, packs and trees; with ``read_data``, every stored byte, or a share of them (``0.01``).

        ``seed`` draws the packs of a share; without it each run reads others. Changes nothing but with ``repair``: then
        all nodes are read, too, what is damaged is put into quarantine, so that whoever logs it next stores it again,
        and what the store has a second copy of is healed at once. Raises `InvalidInputError`, `ReadOnlyError`,
        `BackendError`.
        """
        drawn = self._runtime.random_bytes(8) if seed is None else str(seed).encode()
        share = scrub.share_of(read_data)
        return scrub.fsck(self._engine, share=share, seed=drawn, mend=repair, progress=progress)

    def checkpoint(self, progress: Progress = no_progress) -> CheckpointInfo:
        """Write the state down, so that a new view starts here and not at the beginning of the log.

        `gc` does it by itself when the log has grown enough. Raises `BackendError`, `ReadOnlyError`.
        """
        return make_checkpoint(self._engine, progress)

    def rebuild_index(self) -> int:
        """Throw the view away and make it again from the log; returns the position reached."""
        return self._engine.view.rebuild().seq

    def du(self, ref: str | None = None) -> Usage:
        """Bytes: logical and stored, live, in the trash, and garbage; of the store or of one version."""
        return inventory.usage(self._engine, ref)

    def preview_delete(self, refs: Sequence[str]) -> Impact:
        """What deleting these versions together would free; exact for the set. Changes nothing."""
        return explain.preview_delete(self._engine, refs)

    def why(self, subject: str) -> Explanation:
        """Every holder of a digest, a version or a path in one, and when each lets go; what became of what is gone."""
        return explain.why(self._engine, subject)

    def keepers(self, limit: int = 10) -> list[Keeper]:
        """The collections, trashed versions and pins that keep most on their own, the largest first."""
        return explain.keepers(self._engine, limit)

    def status(self) -> Status:
        """Whose the bytes of the store are, when each lot goes, and what the collector did last. Cheap."""
        return status.status(self._engine)

    def doctor(self) -> list[Check]:
        """How the store is set up, and what could be better. Cheap; damage is looked for by `fsck`."""
        return doctor.doctor(self._engine)

    def deletions(self, limit: int | None = None) -> list[DeletionRecord]:
        """What was taken away and given back, by whom, when and why: the newest first, at most ``limit``."""
        return audit.deletions(self._engine, limit)

    # --- pins

    def pin(
        self,
        what: str | Sequence[str],
        purpose: str,
        ttl: timedelta | None = timedelta(days=7),
    ) -> PinInfo:
        """Keep content from now on, whatever becomes of its versions: of references (``name:vN``), or of digests.

        Any chunk or node of the store may be pinned; with a node, all below it. ``ttl`` None: until `unpin`. By the
        log's clock; past its end it keeps its content until a collection takes it. One commit for the list. Raises
        `InvalidInputError`, `VersionNotFoundError`, `NotFoundError` for a digest that is not here.
        """
        return pin.add(self._engine, what, purpose, ttl)

    def pins(self) -> list[PinInfo]:
        """Every pin that is held, by whomever: users, drafts, long reads. Those that end first in front."""
        return pin.held(self._engine)

    def unpin(self, id: str) -> None:
        """Let a pin go: what it alone kept is garbage then. Raises `NotFoundError`."""
        pin.remove(self._engine, id)

    def renew_pin(self, id: str, ttl: timedelta | None = timedelta(days=7)) -> PinInfo:
        """Have a pin end so long from now; None: when it is let go. Raises `NotFoundError`."""
        return pin.renew(self._engine, id, ttl)

    def pinned(
        self, what: str | Sequence[str], purpose: str, ttl: timedelta | None = timedelta(days=7)
    ) -> AbstractContextManager[PinInfo]:
        """`pin` for the length of a ``with`` block. It does not renew itself."""
        return pin.pinned(self._engine, what, purpose, ttl)

    def erase(
        self,
        subject: str | Digest,
        all_versions: bool = False,  # noqa: FBT001, FBT002 - the signature of FEATURES O6
        reason: str = "",
        confirm: str | None = None,
        *,
        keep: Sequence[str] = (),
        dry_run: bool = False,
        progress: Progress = no_progress,
    ) -> Erasure:
        """Erase content from the disk, now and for good, although versions need it: by digest, or ``name:vN/path``.

        Look at a ``dry_run`` first: it lists every file that breaks. Content is shared, so other versions and other
        files may have some of it; ``keep`` leaves pieces (digests of the dry run) that say nothing, such as zeros.
        ``confirm`` is the digest of the content. Afterwards reading it raises `ChunkMissingError`, which says when
        it was erased and why; what logs the same content again brings it back. Runs of the collector before it cannot
        be undone as far as their packs had some of it. Killed, it is finished by the same call. Raises
        `ConfirmationRequired`, `RefusedError`, `NotFoundError`, `StoreBusyError` while others are at work.
        """
        return erasure.erase(
            self._engine,
            str(subject),
            reason=reason,
            confirm=confirm,
            all_versions=all_versions,
            keep=keep,
            dry_run=dry_run,
            progress=progress,
        )

    # --- policy

    @property
    def policy(self) -> Policy:
        """The rules in force."""
        self._engine.view.refresh()
        return policy.load(self._engine.view.policy())

    def set_policy(self, *, confirm: int | None = None, **values: object) -> Policy:
        """Change rules, in the log: the fields of `Policy`. Raises `InvalidInputError`.

        `ConfirmationRequired`, and no change, if versions expire by it at once and ``confirm`` is not their number;
        `set_default_ttl` with ``dry_run`` tells which.
        """
        ageing.set_policy(self._engine, policy.encode(values), confirm=confirm)
        return self.policy

    def quota(self, max_bytes: int | Keep | None = KEEP, trash: str | None = None) -> Quota:
        """Set how many bytes the store may have, by its packs; None lifts the limit. Returns it and its use.

        ``trash``: bytes that only the trash keeps ``counts`` or are ``free``. What is not given stays as it is. A
        log that would exceed the quota raises `QuotaExceededError` at its commit, and leaves no trace; deletions,
        collections and labels go on. Concurrent logs are checked one after the other, so none slips through.
        """
        values: dict[str, object] = {}
        if max_bytes is not KEEP:
            values["quota_bytes"] = max_bytes
        if trash is not None:
            values["quota_trash"] = trash
        if values:
            self.set_policy(**values)  # type: ignore[arg-type] # names of rules, none of them confirm
        return quota.quota(self._engine)

    def forecast(self, within: timedelta) -> Forecast:
        """What the trash's and times' to live dates allow collections to free within a time from now."""
        if not isinstance(within, timedelta) or within < timedelta():
            raise InvalidInputError(f"within={within!r} is not a timedelta of 0 or more")
        return quota.forecast(self._engine, within)

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


def _world(runtime: Runtime | None, clock: Callable[[], datetime] | None) -> Runtime:
    world = runtime or Runtime()
    if clock is None:
        return world
    world = replace(world, clock=clock)
    world.now()  # says now that a clock is naive, not at the first commit
    return world
