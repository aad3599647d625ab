"""The public object: one store. Every method hands on to the module that does the work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from casstore import catalogue, comparing, explain, inventory, policy, scrub
from casstore.artifact import Artifact, draft_base, foreign_path
from casstore.backend.osops import OsOps
from casstore.catalogue import full_name
from casstore.comparing import Diff
from casstore.config import ChunkerParams, Runtime, Settings, StoreConfig, environment_flag
from casstore.engine import Engine
from casstore.errors import CasstoreError, GCDisabledError, InvalidInputError
from casstore.explain import Explanation, Impact
from casstore.gc import GCReport, Options, collect
from casstore.gc.plan import Limits
from casstore.ingest import LogRequest, ingest
from casstore.inventory import CollectionInfo, CommitInfo, Usage
from casstore.model import AliasChange, Progress, Unpin, VersionState, no_progress
from casstore.names import LATEST, CollectionName, check_aliases, check_tags, parse_reference
from casstore.opening import create_store, open_store
from casstore.policy import INHERIT, Inherit, Policy
from casstore.scrub import FsckReport
from casstore.trash import Trash
from casstore.version import Version
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
        version the draft was made from, or ``base``, is not ``latest`` any more. A failed log leaves no trace,
        burns no number, and leaves the artifact as it was. Raises `TypeConflictError`, `InvalidInputError`
        for sources that changed or cannot be read, `BackendError`.
        """
        if not isinstance(artifact, Artifact):
            raise InvalidInputError(f"log_artifact needs an Artifact, not {type(artifact).__name__}")
        if dedup not in DEDUP:
            raise InvalidInputError(f"dedup={dedup!r} is not valid", hint=", ".join(DEDUP))
        engine = self._engine
        self._release_abandoned()
        draft, home = draft_base(artifact)
        name = CollectionName.parse(artifact.name, home if project is None else project)
        foreign = foreign_path(artifact, engine.config.store_id)
        if foreign is not None:
            raise InvalidInputError(
                f"{foreign!r} is in another store, so its content cannot be shared",
                hint="download it and add the files",
            )
        number = policy.base_number(draft, base, name, strict=if_base_latest)
        request = LogRequest(
            collection=name,
            aliases=tuple(alias for alias in check_aliases(aliases) if alias != LATEST),
            move_latest=move_latest,
            tags=check_tags(tags),
            ttl=policy.ttl_seconds(ttl),
            dedup=dedup,
            base=draft.name if draft is not None and base is None else _label(name, number),
            strict_base=number if if_base_latest else None,
            update=update,
            actor=self._runtime.actor,
            pin=None if draft is None else draft.pin,
        )
        result = ingest(engine, artifact, request, progress)
        artifact.finalize()
        return Version(
            engine,
            catalogue.lookup(engine, f"{name}:v{result.number}"),
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

    def get(self, ref: str, type: str | None = None) -> Version:  # noqa: A002
        """The version a reference names: ``[[entity/]project/]collection[:vN|alias|digest]``.

        Raises `InvalidNameError`, `CollectionNotFoundError`, `VersionNotFoundError`; `InvalidInputError` if its
        type is not ``type``.
        """
        version = Version(self._engine, catalogue.lookup(self._engine, ref))
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
            row = catalogue.find_collection(tables, name)
            rows = list(versions(tables, row.id, newest_first=newest_first, states=(state,)))
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

    def delete(self, ref: str, delete_aliases: bool = False, reason: str = "") -> object:  # noqa: FBT001, FBT002
        """Move a version to the trash; see `Version.delete`. One that is there already is left there."""
        reference = parse_reference(ref)
        self._engine.view.refresh()
        with self._engine.view.read() as tables:
            states = (VersionState.COMMITTED, VersionState.TRASHED)
            found = catalogue.find(tables, reference, states=states)
        return Version(self._engine, found).delete(delete_aliases, reason)

    @property
    def trash(self) -> Trash:
        """Versions that are hidden and can be restored."""
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
        progress: Progress = no_progress,
    ) -> GCReport:
        """Free what no version, trashed version or pin needs. Safe beside writers; see docs/GC.md.

        ``grace`` and ``orphan_age``: a timedelta or seconds. ``offline`` compacts fully, without waiting.
        Raises `GCDisabledError`, `IntegrityError` (nothing was deleted), `BackendError`.
        """
        if not dry_run:
            self._release_abandoned()
        rules = self.policy
        enabled = environment_flag("GC_ENABLED")
        if not dry_run and not (rules.gc_enabled if enabled is None else enabled):
            raise GCDisabledError("collection is switched off for this store", hint="store.set_policy(gc_enabled=True)")
        if not (max_waste is None or (isinstance(max_waste, int | float) and 0 <= max_waste <= 1)):
            raise InvalidInputError(f"max_waste={max_waste!r} is not between 0 and 1")
        wait = 0.0 if offline and grace is None else policy.seconds(grace, "grace", rules.grace.total_seconds())
        orphans = 0.0 if offline else policy.seconds(orphan_age, "orphan_age", 48 * 3600.0)
        options = Options(
            dry_run=dry_run,
            grace=int(wait * 1_000_000),
            orphan_age=int(orphans * 1_000_000),
            limits=Limits(max_waste, compact=offline),
            incremental=incremental,
            max_bytes=policy.whole(max_bytes, "max_bytes"),
            max_seconds=None if max_seconds is None else policy.seconds(max_seconds, "max_seconds", 0.0),
            actor=self._runtime.actor,
        )
        return collect(self._engine, options, progress)

    def fsck(self, read_data: bool = False, progress: Progress = no_progress) -> FsckReport:  # noqa: FBT001, FBT002
        """Check log, packs and trees; with ``read_data``, every stored byte. Changes nothing."""
        return scrub.fsck(self._engine, read_data=read_data, progress=progress)

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
        """Every holder of a digest, a version or a path in one, and when each lets go."""
        return explain.why(self._engine, subject)

    # --- policy

    @property
    def policy(self) -> Policy:
        """The rules in force."""
        self._engine.view.refresh()
        return policy.load(self._engine.view.policy())

    def set_policy(self, **values: object) -> Policy:
        """Change rules, in the log: ``trash_days``, ``grace``, ``gc_enabled``. Raises `InvalidInputError`."""
        encoded = policy.encode(values)
        catalogue.set_policy(self._engine, json.dumps(encoded, sort_keys=True).encode(), self._runtime.actor)
        return self.policy

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
