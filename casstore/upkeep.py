"""Looking after a store: space, damage, pins, rules. Every method hands on to the module that does the work."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

from casstore import pin, policy
from casstore.authority import STORE, ask
from casstore.config import environment_flag
from casstore.digest import Digest
from casstore.errors import GCDisabledError, InvalidInputError
from casstore.model import Progress, no_progress
from casstore.opened import OpenedStore
from casstore.policy import Policy
from casstore.quota import KEEP, Keep

if TYPE_CHECKING:
    from casstore.audit import DeletionRecord
    from casstore.checkpointing import CheckpointInfo
    from casstore.doctor import Check
    from casstore.erasure import Erasure
    from casstore.explain import Explanation, Impact, Keeper
    from casstore.gc import GCReport
    from casstore.gc.undo import UndoReport
    from casstore.inventory import Usage
    from casstore.pin import PinInfo
    from casstore.quota import Forecast, Quota
    from casstore.scrub import FsckReport
    from casstore.status import Status


class StoreUpkeep(OpenedStore):
    """What an operator does with a store."""

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
        store_waste: float | None = None,
        optimize: bool = False,
        executor: Executor | None = None,
        progress: Progress = no_progress,
    ) -> GCReport:
        """Free what no version, trashed version or pin needs. Safe beside writers; see docs/GC.md.

        ``grace`` and ``orphan_age``: a timedelta or seconds. ``offline`` has the store alone (else
        `StoreBusyError` names who is at work in it) and compacts fully, without waiting.
        ``store_waste``: repack, the most rewarding packs first, until at most this share of the store is garbage.
        ``optimize`` also arranges the content anew, so that what resembles each other is compressed together: the
        store shrinks, by much where versions differ in little, for some seconds of CPU a gigabyte; see `GCReport`.
        ``executor`` (threads, processes, or another that takes picklable tasks) reads the nodes for the mark.
        Raises `GCDisabledError`, `IntegrityError` (nothing was deleted), `StoreBusyError`, `BackendError`.
        """
        from casstore.gc import Options, collect
        from casstore.gc.plan import Limits

        if not dry_run:
            self._release_abandoned()
        rules = self.policy
        if not dry_run:
            self.check_gc()
            ask(self._runtime, [("gc", STORE)])
        if not (max_waste is None or (isinstance(max_waste, int | float) and 0 <= max_waste <= 1)):
            raise InvalidInputError(f"max_waste={max_waste!r} is not between 0 and 1")
        if not (store_waste is None or (isinstance(store_waste, int | float) and 0 <= store_waste <= 1)):
            raise InvalidInputError(f"store_waste={store_waste!r} is not between 0 and 1")
        wait = 0.0 if offline and grace is None else policy.seconds(grace, "grace", rules.grace.total_seconds())
        orphans = 0.0 if offline else policy.seconds(orphan_age, "orphan_age", 48 * 3600.0)
        options = Options(
            dry_run=dry_run,
            grace=int(wait * 1_000_000),
            orphan_age=int(orphans * 1_000_000),
            limits=Limits(max_waste, compact=offline, policy=rules, store_waste=store_waste),
            incremental=incremental,
            max_bytes=policy.whole(max_bytes, "max_bytes"),
            max_seconds=None if max_seconds is None else policy.seconds(max_seconds, "max_seconds", 0.0),
            actor=self._runtime.actor,
            offline=offline,
            executor=executor,
            optimize=optimize,
        )
        return collect(self._engine, options, progress)

    def gc_reclaim(self, *, progress: Progress = no_progress) -> GCReport:
        """End the grace now: delete the packs that have ended, without a new plan. No run can be undone after that.

        Raises `GCDisabledError`, `IntegrityError` (nothing was deleted), `BackendError`.
        """
        from casstore.gc import finish

        self.check_gc()
        ask(self._runtime, [("gc", STORE)])
        return finish(self._engine, self._runtime.actor, progress)

    def check_gc(self) -> None:
        """Raise `GCDisabledError` if collection is switched off for this store."""
        enabled = environment_flag("GC_ENABLED")
        if not (self.policy.gc_enabled if enabled is None else enabled):
            raise GCDisabledError("collection is switched off for this store", hint="store.set_policy(gc_enabled=True)")

    def gc_undo(self, run: str, refs: Sequence[str] = (), *, progress: Progress = no_progress) -> UndoReport:
        """Take back a run of the collector, while the grace keeps the bytes: its versions go back into the trash.

        Versions that were purged by hand and whose content the run freed are among them. ``refs``: only these. All
        or nothing, one commit. Raises `NotFoundError` for an unknown run, `RefusedError` when bytes are gone.
        """
        from casstore.gc.undo import undo

        keep = int(self.policy.trash_days * policy.DAY)
        return undo(self._engine, run, refs, keep, self._runtime.actor, progress)

    def ballast(self, size: int | None = None) -> int:
        """Make or resize (0: remove) the ballast: bytes on the disk that `gc` gives up when there are no others.

        Returns its size; without ``size`` changes nothing. It counts as ``other`` in `du`. Raises `BackendError` when
        there is no room for it, `InvalidInputError` for a store that is in no directory.
        """
        from casstore.backend.room import ballast_bytes, set_ballast

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
        from casstore import scrub

        drawn = self._runtime.random_bytes(8) if seed is None else str(seed).encode()
        share = scrub.share_of(read_data)
        return scrub.fsck(self._engine, share=share, seed=drawn, mend=repair, progress=progress)

    def checkpoint(self, progress: Progress = no_progress) -> CheckpointInfo:
        """Write the state down, so that a new view starts here and not at the beginning of the log.

        `gc` does it by itself when the log has grown enough. Raises `BackendError`, `ReadOnlyError`.
        """
        from casstore.checkpointing import make_checkpoint

        return make_checkpoint(self._engine, progress)

    def rebuild_index(self) -> int:
        """Throw the view away and make it again from the log; returns the position reached."""
        return self._engine.view.rebuild().seq

    def du(self, ref: str | None = None) -> Usage:
        """Bytes: logical and stored, live, in the trash, and garbage; of the store or of one version."""
        from casstore.inventory import usage

        return usage(self._engine, ref)

    def preview_delete(self, refs: Sequence[str]) -> Impact:
        """What deleting these versions together would free; exact for the set. Changes nothing."""
        from casstore.explain import preview_delete

        return preview_delete(self._engine, refs)

    def why(self, subject: str) -> Explanation:
        """Every holder of a digest, a version or a path in one, and when each lets go; what became of what is gone."""
        from casstore.explain import why

        return why(self._engine, subject)

    def keepers(self, limit: int = 10) -> list[Keeper]:
        """The collections, trashed versions and pins that keep most on their own, the largest first."""
        from casstore.explain import keepers

        return keepers(self._engine, limit)

    def status(self) -> Status:
        """Whose the bytes of the store are, when each lot goes, and what the collector did last. Cheap."""
        from casstore.status import status

        return status(self._engine)

    def doctor(self) -> list[Check]:
        """How the store is set up, and what could be better. Cheap; damage is looked for by `fsck`."""
        from casstore.doctor import doctor

        return doctor(self._engine)

    def deletions(self, limit: int | None = None) -> list[DeletionRecord]:
        """What was taken away and given back, by whom, when and why: the newest first, at most ``limit``."""
        from casstore.audit import deletions

        return deletions(self._engine, limit)

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
        from casstore.erasure import erase

        return erase(
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
        from casstore.ageing import set_policy

        set_policy(self._engine, policy.encode(values), confirm=confirm)
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
        from casstore.quota import quota

        return quota(self._engine)

    def forecast(self, within: timedelta) -> Forecast:
        """What the trash's and times' to live dates allow collections to free within a time from now."""
        if not isinstance(within, timedelta) or within < timedelta():
            raise InvalidInputError(f"within={within!r} is not a timedelta of 0 or more")
        from casstore.quota import forecast

        return forecast(self._engine, within)
