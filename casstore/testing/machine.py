"""A hypothesis state machine that drives a real store on disk and the oracle side by side.

::

    TestStore = StoreMachine.TestCase

Chunks, frames, nodes and packs are small, so that a few kilobytes make deep trees and many packs, and the
contents come from a small alphabet, so that nearly everything is shared with something else.
"""

from __future__ import annotations

import gc
import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from casstore.artifact import Artifact
from casstore.backend.osops import OsOps, StrPath
from casstore.config import Runtime, Settings, environment
from casstore.engine import Build, Committed, Engine
from casstore.errors import (
    AliasGuardError,
    ConflictError,
    NotFoundError,
    RefusedError,
    StaleBaseError,
    VersionNotFoundError,
)
from casstore.format.layout import PACK_PREFIX
from casstore.index import MemoryIndex
from casstore.log import Log
from casstore.parcels import Parcel
from casstore.state import TABLES, state_hash
from casstore.store import Store
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, stored_digests, view_hash
from casstore.testing.oracle import COMMITTED, LATEST, PIN_TIME, PURGED, TRASHED, ModelDraft, ModelStore
from casstore.testing.recipes import (
    ALIASES,
    BULKS,
    EDITS,
    NAMES,
    PICK,
    SMALL,
    TAKEN,
    TREES,
    Recipe,
    edit_tree,
    identity_of,
    tree_of,
)
from casstore.view import View

T = TypeVar("T")

START = datetime(2100, 1, 1, tzinfo=UTC)
"""ahead of every file time, which are the machine's own, so that what is there counts as old"""

MAX_VERSIONS = 14


class Killed(BaseException):
    """The process "died" at an effect: nothing it does afterwards reaches the disk."""


class MortalOps(OsOps):
    """`OsOps` that can be told to die at its n-th effect from now; dead, it has no effect any more."""

    def __init__(self) -> None:
        super().__init__(crash_at=0)
        self._lock = threading.RLock()
        self._left: int | None = None
        self.dead = False

    def arm(self, effects: int) -> None:
        """Die instead of doing the n-th effect."""
        self._left = effects

    def disarm(self) -> None:
        """Live on, or again."""
        self._left, self.dead = None, False

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        with self._lock:
            if self._left is not None and not self.dead:
                self._left -= 1
                self.dead = self._left < 0
            if self.dead:
                raise Killed
            return super()._run(op, path, call, target=target, data=data)


@dataclass(slots=True)
class Handle:
    """An open store and what it was opened with."""

    store: Store
    ops: MortalOps

    @property
    def engine(self) -> Engine:
        """Its inside."""
        return self.store._engine  # noqa: SLF001 - tests may look inside

    @property
    def writer(self) -> str:
        """The name it writes in the log."""
        return self.engine.writer_id


@dataclass(slots=True)
class OpenDraft:
    """A draft of the store and the one of the oracle. ``handle`` may be gone by now."""

    artifact: Artifact
    model: ModelDraft
    handle: Handle
    names: dict[str, bytes] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """Everything a user can do to a store, in any order, against `ModelStore`. Subclass to add rules.

    Guards I1 to I5 of docs/GC.md: after each step every live version is there byte for byte, trashed ones are
    hidden and restorable, counts are those of the trees, and the view is what the log says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="casstore-machine-", dir=environment("MACHINE_DIR")))
        self.path = self.root / "store"
        self.now = START
        self.random = random.Random(0)
        self.ticks = 0
        self.names = 0
        self.model = ModelStore()
        self.handles: list[Handle] = []
        self.lost: list[Handle] = []
        """abandoned ones; closed at the end only so that no thread is left behind"""
        self.drafts: list[OpenDraft] = []
        self.digests: dict[bytes, str] = {}
        """content → the digest the store gave it first"""
        self.touched: set[tuple[str, int]] = set()
        self.seq = 0
        self.replica: View | None = None

    # --- handles

    def _runtime(self) -> Runtime:
        self.names += 1
        return Runtime(
            clock=lambda: self.now,
            random_bytes=self.random.randbytes,
            jitter=self.random.random,
            sleep=lambda _: None,
            monotonic=self._tick,
            actor="machine",
            writer=f"writer-{self.names}",
        )

    def _tick(self) -> float:
        self.ticks += 1
        return self.ticks / 1000

    def _open(self, *, create: bool = False) -> Handle:
        ops = MortalOps()
        runtime, tuning = self._runtime(), Settings(workers=2, index_map_bytes=1 << 20)
        if create:
            store = Store.create(self.path, config=SMALL, runtime=runtime, settings=tuning, ops=ops)
        else:
            store = Store.open(self.path, runtime=runtime, settings=tuning, ops=ops)
        handle = Handle(store, ops)
        self.handles.append(handle)
        return handle

    def _handle(self, pick: int) -> Handle:
        return self.handles[pick % len(self.handles)]

    def _abandon(self, handle: Handle) -> None:
        """Forget a handle as a crash does: nothing is closed, no draft of it says goodbye."""
        handle.ops.arm(0)
        self.handles.remove(handle)
        self.lost.append(handle)
        self.drafts = [draft for draft in self.drafts if draft.handle is not handle]
        if not self.handles:
            self._open()

    def _micros(self) -> int:
        return int((self.now - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 1_000_000

    def _committed(self, handle: Handle) -> None:
        """Take note of what a handle committed: the model's clock moves if the log did."""
        seq = handle.engine.view.refresh().seq
        assert seq >= self.seq, "the log went back"
        if seq > self.seq:
            self.model.clock.commit(self._micros(), handle.writer)
        self.seq = seq

    @initialize()
    def create(self) -> None:
        """An empty store."""
        self._open(create=True)

    # --- logging

    def _artifact(self, name: str, files: Mapping[str, bytes]) -> Artifact:
        artifact = Artifact(name.rpartition("/")[2])
        for path, data in files.items():
            artifact.add_bytes(data, path)
        return artifact

    def _log(
        self,
        handle: Handle,
        artifact: Artifact,
        name: str,
        files: Mapping[str, bytes],
        aliases: Sequence[str] = (),
        dedup: str = "latest",
        *,
        move_latest: bool = True,
    ) -> None:
        version = handle.store.log_artifact(
            artifact, aliases=aliases, dedup=dedup, move_latest=move_latest, project=name.rpartition("/")[0] or None
        )
        number, created = self.model.log(name, files, aliases, dedup, move_latest=move_latest)
        assert (version.number, version.created) == (number, created)
        self.touched.add((name, number))
        self._committed(handle)

    @precondition(lambda self: self._room())
    @rule(
        which=PICK,
        name=NAMES,
        recipes=TREES,
        bulk=BULKS,
        aliases=TAKEN,
        dedup=st.sampled_from(("latest", "latest", "any", "never")),
        move_latest=st.sampled_from((True, True, False)),
    )
    def log(
        self,
        which: int,
        name: str,
        recipes: dict[str, Recipe],
        bulk: int,
        aliases: list[str],
        dedup: str,
        move_latest: bool,  # noqa: FBT001
    ) -> None:
        """Log a whole tree."""
        files = tree_of(recipes, bulk)
        self._log(
            self._handle(which), self._artifact(name, files), name, files, aliases, dedup, move_latest=move_latest
        )

    def _room(self) -> bool:
        return len(self.model.of_state(COMMITTED, TRASHED)) < MAX_VERSIONS

    def _pick(self, pick: int, *states: str) -> tuple[str, int]:
        found = self.model.of_state(*states)
        name, version = found[pick % len(found)]
        return name, version.number

    def _files(self, name: str, number: int) -> dict[str, bytes]:
        return self.model.collections[name].versions[number].files

    def _any(self, *states: str) -> bool:
        return bool(self.model.of_state(*states))

    @precondition(lambda self: self._any(COMMITTED) and self._room())
    @rule(which=PICK, pick=PICK, name=NAMES, edits=EDITS)
    def log_again_with_edits(self, which: int, pick: int, name: str, edits: dict[str, Recipe | None]) -> None:
        """Log the files of a version, some of them changed, to the same or another collection; read anew."""
        files = dict(self._files(*self._pick(pick, COMMITTED)))
        edit_tree(files, edits)
        self._log(self._handle(which), self._artifact(name, files), name, files)

    @precondition(lambda self: self._any(COMMITTED) and self._room())
    @rule(which=PICK, pick=PICK, name=NAMES, count=st.integers(1, 3))
    def log_taken_entries(self, which: int, pick: int, name: str, count: int) -> None:
        """Log some entries of a version elsewhere, without their bytes."""
        handle = self._handle(which)
        source, number = self._pick(pick, COMMITTED)
        files = self._files(source, number)
        paths = sorted(files)[:count]
        artifact = Artifact(name.rpartition("/")[2])
        version = handle.store.get(f"{source}:v{number}")
        for path in paths:
            artifact.add_entry(version[path], f"taken/{path}")
        self._log(handle, artifact, name, {f"taken/{path}": files[path] for path in paths})

    @precondition(lambda self: self._any(COMMITTED) and self._room())
    @rule(which=PICK, pick=PICK, name=NAMES, edits=st.one_of(st.just({}), EDITS), orphan_age=st.sampled_from((None, 0)))
    def log_amid_a_collection(
        self, which: int, pick: int, name: str, edits: dict[str, Recipe | None], orphan_age: int | None
    ) -> None:
        """Log the files of a version that another handle purges and collects when all is uploaded but the commit."""
        handle = self._handle(which)
        other = next((one for one in self.handles if one is not handle), None) or self._open()
        victim, number = self._pick(pick, COMMITTED)
        files = dict(self._files(victim, number))
        edit_tree(files, edits)
        engine = handle.engine
        commit = engine.commit

        def late(
            build: Build, *, packs_since: int | None = None, asked: bool = False, parcel: Parcel | None = None
        ) -> Committed | None:
            engine.commit = commit  # type: ignore[method-assign]
            due, drafts = self._expected(other)
            self._erase(other, victim, number)
            report = other.store.gc(grace=0, max_waste=0.0, orphan_age=orphan_age)
            assert set(report.purged) == due
            self._purged(due, drafts)
            self._committed(other)
            return commit(build, packs_since=packs_since, asked=asked, parcel=parcel)

        engine.commit = late  # type: ignore[method-assign]
        self._log(handle, self._artifact(name, files), name, files)

    def _erase(self, handle: Handle, name: str, number: int) -> None:
        handle.store.delete(f"{name}:v{number}", delete_aliases=True)
        self.model.trash(name, number, self._micros(), handle.writer)
        handle.store.trash.purge(f"{name}:v{number}")
        self.model.purge(name, number)

    # --- drafts

    def _draft(self, handle: Handle, name: str, number: int) -> OpenDraft:
        artifact = handle.store.get(f"{name}:v{number}").new_draft()
        expires = self.model.clock.after(self._micros(), handle.writer) + PIN_TIME
        draft = OpenDraft(artifact, ModelDraft(name, dict(self._files(name, number)), expires), handle)
        self.drafts.append(draft)
        self._committed(handle)
        return draft

    def _edit_draft(self, draft: OpenDraft, edits: Mapping[str, Recipe | None]) -> None:
        for path, recipe in edits.items():
            if recipe is not None:
                draft.artifact.add_bytes(recipe.bytes(), path, overwrite=True)
            elif path in draft.model.files:
                assert draft.artifact.remove(path) == 1
        edit_tree(draft.model.files, edits)

    def _log_draft(self, draft: OpenDraft, handle: Handle) -> None:
        self.drafts.remove(draft)
        model = draft.model
        try:
            self._log(handle, draft.artifact, model.collection, model.files)
        except ConflictError:
            # The only excuse: a week is over, and what the draft was made of has been collected.
            assert not model.pinned
            assert draft.artifact.is_draft()
            self._committed(handle)

    @precondition(lambda self: self._any(COMMITTED) and self._room())
    @rule(which=PICK, pick=PICK, edits=EDITS)
    def edit(self, which: int, pick: int, edits: dict[str, Recipe | None]) -> None:
        """Make a draft of a version, change it, log it."""
        handle = self._handle(which)
        draft = self._draft(handle, *self._pick(pick, COMMITTED))
        self._edit_draft(draft, edits)
        self._log_draft(draft, handle)

    @precondition(lambda self: self._any(COMMITTED) and len(self.drafts) < 3)
    @rule(which=PICK, pick=PICK, edits=st.one_of(st.just({}), EDITS))
    def open_draft(self, which: int, pick: int, edits: dict[str, Recipe | None]) -> None:
        """Make a draft and keep it for later."""
        self._edit_draft(self._draft(self._handle(which), *self._pick(pick, COMMITTED)), edits)

    @precondition(lambda self: self.drafts and self._room())
    @rule(which=PICK, pick=PICK, drop=st.sampled_from((False, False, False, True)))
    def end_draft(self, which: int, pick: int, drop: bool) -> None:  # noqa: FBT001
        """Log a draft made earlier, whatever became of its base, through any handle; or let it go."""
        draft = self.drafts[pick % len(self.drafts)]
        if drop:
            self.drafts.remove(draft)
        else:
            self._log_draft(draft, self._handle(which))

    @precondition(lambda self: self._any(COMMITTED) and self._room())
    @rule(which=PICK, pick=PICK, edits=st.one_of(st.just({}), EDITS))
    def draft_that_outlives_its_base(self, which: int, pick: int, edits: dict[str, Recipe | None]) -> None:
        """The base of a draft is purged and collected before the draft is logged."""
        handle = self._handle(which)
        name, number = self._pick(pick, COMMITTED)
        draft = self._draft(handle, name, number)
        self._erase(handle, name, number)
        due, late = self._expected(handle)
        assert set(handle.store.gc(grace=0, max_waste=0.0).purged) == due
        self._purged(due, late)
        self._committed(handle)
        self._edit_draft(draft, edits)
        self._log_draft(draft, handle)

    # --- names

    @precondition(lambda self: self._any(COMMITTED))
    @rule(which=PICK, pick=PICK, alias=st.sampled_from(ALIASES), compare=st.sampled_from(("", "right", "wrong")))
    def point_alias(self, which: int, pick: int, alias: str, compare: str) -> None:
        """Point an alias, with and without comparing where it is."""
        handle = self._handle(which)
        name, number = self._pick(pick, COMMITTED)
        version = handle.store.get(f"{name}:v{number}")
        collection = self.model.collections[name]
        there = collection.aliases.get(alias)
        if compare == "wrong":
            wrong = len(collection.versions) + 7
            with pytest.raises(StaleBaseError):
                version.add_alias(alias, if_on=f"v{wrong}")
        else:
            here = "" if there is None else f"v{there}"
            version.add_alias(alias, if_on=here if compare else None)
            collection.point(alias, number)
        self._committed(handle)

    @precondition(lambda self: any(set(c.aliases) - {LATEST} for c in self.model.collections.values()))
    @rule(which=PICK, pick=PICK)
    def remove_alias(self, which: int, pick: int) -> None:
        """Take an alias off."""
        handle = self._handle(which)
        found = [
            (name, alias, number)
            for name, collection in sorted(self.model.collections.items())
            for alias, number in sorted(collection.aliases.items())
            if alias != LATEST
        ]
        name, alias, number = found[pick % len(found)]
        handle.store.get(f"{name}:v{number}").remove_alias(alias)
        self.model.collections[name].point(alias, None)
        self._committed(handle)

    # --- trash

    @precondition(lambda self: self._any(COMMITTED))
    @rule(which=PICK, pick=PICK, delete_aliases=st.booleans())
    def trash(self, which: int, pick: int, delete_aliases: bool) -> None:  # noqa: FBT001
        """Delete a version; aliases guard it."""
        handle = self._handle(which)
        name, number = self._pick(pick, COMMITTED)
        version = handle.store.get(f"{name}:v{number}")
        guarded = self.model.collections[name].aliases_of(number) - {LATEST}
        if guarded and not delete_aliases:
            with pytest.raises(AliasGuardError) as refused:
                version.delete()
            assert set(refused.value.aliases) == guarded
        else:
            deletion = version.delete(delete_aliases=delete_aliases)
            assert not deletion.already_in_trash
            assert version.delete().already_in_trash
            self.model.trash(name, number, self._micros(), handle.writer)
        self.touched.add((name, number))
        self._committed(handle)

    @precondition(lambda self: self._any(TRASHED))
    @rule(which=PICK, pick=PICK, purge=st.booleans())
    def empty_trash(self, which: int, pick: int, purge: bool) -> None:  # noqa: FBT001
        """Bring a version back, or drop it for good."""
        handle = self._handle(which)
        name, number = self._pick(pick, TRASHED)
        if purge:
            handle.store.trash.purge(f"{name}:v{number}")
            self.model.purge(name, number)
        else:
            restored = handle.store.trash.restore(f"{name}:v{number}")
            assert set(restored.aliases_not_restored) == set(self.model.restore(name, number))
            assert restored.number == number
        self.touched.add((name, number))
        self._committed(handle)

    @precondition(lambda self: self._any(COMMITTED))
    @rule(which=PICK, pick=PICK)
    def trash_and_purge(self, which: int, pick: int) -> None:
        """The short way to garbage."""
        handle = self._handle(which)
        name, number = self._pick(pick, COMMITTED)
        with pytest.raises(RefusedError):
            handle.store.trash.purge(f"{name}:v{number}")
        self._erase(handle, name, number)
        self._committed(handle)

    # --- time and space

    @rule(which=PICK, hours=st.sampled_from((1, 25, 8 * 24, 31 * 24)), days=st.sampled_from((None, None, 0, 1, 30)))
    def wait(self, which: int, hours: int, days: int | None) -> None:
        """Time passes; perhaps the days a version stays in the trash change, for later deletions only."""
        self.now += timedelta(hours=hours)
        if days is not None:
            handle = self._handle(which)
            handle.store.set_policy(trash_days=days)
            self.model.trash_days = days
            self._committed(handle)

    def _expected(self, handle: Handle) -> tuple[set[str], list[OpenDraft]]:
        """Versions a collection purges now, and drafts whose time is over."""
        safe = self.model.clock.after(self._micros(), handle.writer)
        due = {f"{name}:v{number}" for name, number in self.model.due(safe)}
        return due, [draft for draft in self.drafts if draft.model.expires <= safe]

    def _purged(self, due: Iterable[str], late: Iterable[OpenDraft]) -> None:
        for ref in due:
            name, _, number = ref.rpartition(":v")
            self.model.purge(name, int(number))
        for draft in late:
            draft.model.pinned = False

    @rule(
        which=PICK,
        grace=st.sampled_from((None, 0, 0, 3600, 48 * 3600)),
        max_waste=st.sampled_from((None, 0, 0.3)),
        offline=st.booleans(),
        incremental=st.booleans(),
        max_bytes=st.sampled_from((None, None, None, 0, 20_000)),
        orphan_age=st.sampled_from((None, 0)),
        foresee=st.booleans(),
    )
    def collect(
        self,
        which: int,
        grace: int | None,
        max_waste: float | None,
        offline: bool,  # noqa: FBT001
        incremental: bool,  # noqa: FBT001
        max_bytes: int | None,
        orphan_age: int | None,
        foresee: bool,  # noqa: FBT001
    ) -> None:
        """Collect, in any way; a dry run before changes nothing."""
        handle = self._handle(which)
        if foresee:
            before = self._objects(handle)
            handle.store.gc(dry_run=True, grace=grace, max_waste=max_waste, offline=offline)
            assert self._objects(handle) == before
        due, late = self._expected(handle)
        report = handle.store.gc(
            grace=grace,
            max_waste=max_waste,
            offline=offline,
            incremental=incremental,
            max_bytes=max_bytes,
            orphan_age=orphan_age,
        )
        assert set(report.purged) == due
        assert not report.errors
        self._purged(due, late)
        self._committed(handle)
        if offline and not grace and max_bytes is None and not max_waste:
            check_no_garbage(handle.store)

    def _objects(self, handle: Handle) -> list[tuple[str, int]]:
        return [
            (info.key, info.size) for prefix in ("log/", PACK_PREFIX) for info in handle.engine.backend.list(prefix)
        ]

    # --- handles come and go

    @rule(
        which=PICK,
        what=st.sampled_from(("open another", "reopen", "close", "crash", "drop index", "rebuild index")),
    )
    def come_and_go(self, which: int, what: str) -> None:
        """Handles are opened, closed and abandoned; the index is lost, or made again."""
        handle = self._handle(which)
        match what:
            case "open another" if len(self.handles) < 2:
                self._open()
            case "close" if len(self.handles) > 1:
                self._leave(handle)
            case "reopen":
                self._leave(handle)
                self._open()
            case "crash":
                self._abandon(handle)
            case "drop index":
                self._close()
                shutil.rmtree(self.path / "index")
                self._open()
            case _:
                handle.store.rebuild_index()

    def _leave(self, handle: Handle) -> None:
        self.handles.remove(handle)
        self.drafts = [draft for draft in self.drafts if draft.handle is not handle]
        handle.store.close()

    @precondition(lambda self: self._room())
    @rule(which=PICK, name=NAMES, recipes=TREES, aliases=TAKEN, effects=st.integers(0, 30))
    def crash_in_log(self, which: int, name: str, recipes: dict[str, Recipe], aliases: list[str], effects: int) -> None:
        """Die somewhere in `log_artifact`: the version is there, whole, with its aliases, or nothing is."""
        handle = self._handle(which)
        files = tree_of(recipes, 0)
        collection = self.model.collections.get(name)
        number = 0 if collection is None else len(collection.versions)
        writer = handle.writer
        handle.ops.arm(effects)
        with suppress(Killed):
            handle.store.log_artifact(
                self._artifact(name, files), aliases, dedup="never", project=name.rpartition("/")[0] or None
            )
            handle.ops.disarm()
        self._abandon(handle)
        survivor = self._handle(which)
        with suppress(NotFoundError):
            survivor.store.get(f"{name}:v{number}")
            self.model.log(name, files, aliases, "never")
            self.touched.add((name, number))
        self._noticed(survivor, writer)

    @rule(which=PICK, effects=st.integers(0, 30), offline=st.booleans())
    def crash_in_gc(self, which: int, effects: int, offline: bool) -> None:  # noqa: FBT001
        """Die somewhere in a collection."""
        handle = self._handle(which)
        due, late = self._expected(handle)
        writer = handle.writer
        handle.ops.arm(effects)
        with suppress(Killed):
            handle.store.gc(grace=0, offline=offline)
            handle.ops.disarm()
        self._abandon(handle)
        survivor = self._handle(which)
        in_trash = {item.ref for item in survivor.store.trash.list()}
        assert due <= in_trash or not due & in_trash, "due versions are purged together"
        if due and not due & in_trash:
            self._purged(due, ())
        for draft in late:
            # Whether the pin went cannot be seen from here; it may have.
            draft.model.pinned = False
        self._noticed(survivor, writer)

    def _noticed(self, survivor: Handle, writer: str) -> None:
        """As `_committed`, for what another handle committed before it died."""
        seq = survivor.engine.view.refresh().seq
        assert seq >= self.seq
        if seq > self.seq:
            self.model.clock.commit(self._micros(), writer)
        self.seq = seq

    # --- what must always hold

    @invariant()
    def versions_are_those_of_the_oracle(self) -> None:
        """I5: live versions are there, trashed ones hidden, purged ones gone; names and numbers agree."""
        if not self.handles:
            return
        handle = self._handle(self.random.randrange(1000))
        store = handle.store
        for name, collection in self.model.collections.items():
            live = [v.number for v in collection.versions if v.state == COMMITTED]
            assert [v.number for v in store.versions(name, newest_first=False)] == live
            for model in collection.versions:
                self._compare(store, name, model.number, model.state)
            aliases: dict[str, int] = {}
            for number in live:
                aliases.update(dict.fromkeys(store.get(f"{name}:v{number}").aliases, number))
            assert aliases == collection.aliases
            if LATEST not in collection.aliases:
                with pytest.raises(VersionNotFoundError):
                    store.get(name)
        self._read_some(store)

    def _compare(self, store: Store, name: str, number: int, state: str) -> None:
        ref = f"{name}:v{number}"
        if state != COMMITTED:
            with pytest.raises(VersionNotFoundError) as hidden:
                store.get(ref)
            assert ("trash restore" in hidden.value.hint) == (state == TRASHED)
            assert ("purged" in hidden.value.message) == (state == PURGED)
            return
        files = self._files(name, number)
        version = store.get(ref)
        assert [entry.path for entry in version.files()] == sorted(files, key=str.encode)
        assert (version.size, version.file_count) == (sum(map(len, files.values())), len(files))
        identity = identity_of(files)
        assert self.digests.setdefault(identity, str(version.digest)) == str(version.digest)
        assert len(set(self.digests.values())) == len(self.digests)

    def _read_some(self, store: Store) -> None:
        """Full bytes of what was touched and of one version more; all of them come at the end."""
        live = [(name, v.number) for name, v in self.model.of_state(COMMITTED)]
        wanted = self.touched.intersection(live)
        if live:
            wanted.add(live[self.random.randrange(len(live))])
        for name, number in sorted(wanted):
            assert read_files(store.get(f"{name}:v{number}")) == self._files(name, number)
        self.touched = set()

    @invariant()
    def counts_are_those_of_the_trees(self) -> None:
        """I2, and the clock of GC.md §3.7."""
        if self.handles:
            engine = self.handles[0].engine
            head = engine.view.refresh()
            assert (head.safe, head.highest) == (self.model.clock.safe, self.model.clock.highest)
            recount(engine)

    @invariant()
    def view_is_what_the_log_says(self) -> None:
        """A second replica, in memory, fed by the log alone, has the same state."""
        if not self.handles:
            return
        engine = self.handles[-1].engine
        if self.replica is None:
            self.replica = View(MemoryIndex(TABLES), Log(engine.backend, engine.codec), lambda _: None, lambda _: None)
        self.replica._log = Log(engine.backend, engine.codec)  # noqa: SLF001 - an old one may belong to a dead handle
        self.replica.refresh()
        with self.replica.read() as tables:
            assert state_hash(tables) == view_hash(engine)

    # --- the end

    def _close(self) -> None:
        self.drafts = []
        for handle in [*self.handles, *self.lost]:
            handle.ops.disarm()
            handle.store.close()
        self.handles, self.lost = [], []

    def teardown(self) -> None:
        """Everything once more, byte for byte; then let go of all holds, and nothing may be left behind."""
        try:
            if self.handles:
                self._finish()
        finally:
            self._close()
            shutil.rmtree(self.root, ignore_errors=True)

    def _finish(self) -> None:
        self.drafts = []
        gc.collect()
        store = self.handles[0].store
        engine = self.handles[0].engine
        assert replayed(engine) == view_hash(engine)
        assert store.fsck(read_data=True).findings == []
        for name, model in self.model.of_state(TRASHED):
            store.trash.restore(f"{name}:v{model.number}")
            self.model.restore(name, model.number)
        for name, model in self.model.of_state(COMMITTED):
            assert read_files(store.get(f"{name}:v{model.number}")) == model.files
            assert store.get(f"{name}:v{model.number}").verify() >= 0
        # Pins of drafts that died with their handle are given up after their week. The first commit is there
        # because a collector counts no more than a day that it has not seen pass itself.
        store.set_policy(trash_days=0)
        self.now += timedelta(days=9)
        store.gc(grace=0, offline=True)
        assert engine.view.pins() == []
        check_no_garbage(store)
        for name, model in self.model.of_state(COMMITTED):
            assert read_files(store.get(f"{name}:v{model.number}")) == model.files
            store.delete(f"{name}:v{model.number}", delete_aliases=True)
        store.gc(grace=0, offline=True)
        check_no_garbage(store)
        assert stored_digests(engine) == Counter()
