"""Several writers of one version: the methods of a store for them."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from casstore import catalogue, expiry, pin, quota
from casstore.artifact import Artifact, draft_base, foreign_path
from casstore.authority import ask
from casstore.errors import InvalidInputError
from casstore.model import INHERIT, Inherit, JsonMap, Progress, no_progress
from casstore.names import (
    LATEST,
    CollectionName,
    canonical_host_attrs,
    canonical_metadata,
    check_aliases,
    check_description,
    check_id,
    check_tags,
    ttl_seconds,
)
from casstore.upkeep import StoreUpkeep
from casstore.version import Version

if TYPE_CHECKING:
    from casstore.batch import BatchInfo, PartInfo
    from casstore.run import Run

DEDUP = ("latest", "any", "never")


class DistributedStore(StoreUpkeep):
    """What writers do that make one version together. Writers, finisher and collectors may be any processes."""

    def upsert(
        self,
        art: Artifact,
        distributed_id: str,
        part: str | None = None,
        *,
        project: str | None = None,
        lease: timedelta = timedelta(days=7),
        progress: Progress = no_progress,
    ) -> PartInfo:
        """Store an artifact's content as one part of a version that `finish` will make; durable on return.

        ``distributed_id``: what all writers of the version call it, used once in a collection. ``part``: the name of
        this one's share, else that of its content; the same part again changes nothing but the lease. A draft of a
        version counts with its whole tree. Labels of the artifact do not count: those of `finish` do. Each upsert makes
        the batch last ``lease`` from now, at least; later it may be aborted. The artifact is final then.

        Raises `UpsertConflictError` if the part is there with other content, or another part has a path with other
        content, mode or kind; `ArtifactFinalizedError` if the batch is finished, `RefusedError` if it was aborted,
        `TypeConflictError`, `InvalidNameError`, `QuotaExceededError`; and as `log_artifact`.
        """
        from casstore.batch import UpsertRequest, check_lease, upsert

        name = self._home_of(art, project)
        request = UpsertRequest(
            name,
            check_id(distributed_id, "distributed_id"),
            None if part is None else check_id(part, "part"),
            check_lease(lease),
            quota.admit,
        )
        ask(self._runtime, [("log", name.short)])
        info = upsert(self._engine, art, request, progress)
        art.finalize()
        return info

    def finish(
        self,
        distributed_id: str,
        art: Artifact | None = None,
        *,
        expected_parts: int | Iterable[str] | None = None,
        aliases: Sequence[str] = (LATEST,),
        tags: Sequence[str] = (),
        description: str | None = None,
        metadata: JsonMap | None = None,
        ttl: timedelta | Inherit | None = INHERIT,
        dedup: str = "latest",
        collection: str | None = None,
        project: str | None = None,
        run: Run | str | None = None,
        attrs: Mapping[str, object] | None = None,
        move_latest: bool = True,
        update: bool = False,
        progress: Progress = no_progress,
    ) -> Version:
        """Make all parts of a batch, and the files of ``art``, the next version of its collection, in one commit.

        The labels are those given, else those of ``art``. ``expected_parts``: how many there are, or their names: while
        some are missing, `ConflictError` lists them; if there are others, `RefusedError`. ``collection``: if ``art``
        does not tell, and more than one has a batch with the id. All else is as for `log_artifact`. Finishing again
        gives the same version if the same is asked for, else `ArtifactFinalizedError`.

        Raises `NotFoundError`, `ConflictError` without any parts, `LeaseLostError` for a part that somebody let go of,
        `UpsertConflictError` if ``art`` and a part contradict each other, `RefusedError` if the batch was aborted.
        """
        from casstore.batch import FinishRequest, check_expected, destination, finish
        from casstore.ingest import LogRequest
        from casstore.run import id_in

        if dedup not in DEDUP:
            raise InvalidInputError(f"dedup={dedup!r} is not valid", hint=", ".join(DEDUP))
        if art is not None and collection is not None:
            raise InvalidInputError("the artifact says which collection it is", hint="leave out collection=")
        name = None if collection is None else CollectionName.parse(collection, project)
        if name is None and art is None and project is not None:
            raise InvalidInputError("project= goes with art or collection")
        name = self._home_of(art, project) if art is not None else name
        draft = None if art is None else draft_base(art)[0]
        seconds = ttl_seconds(art.ttl if art is not None and ttl is INHERIT else ttl)
        labels = LogRequest(
            collection=CollectionName("", "", ""),
            aliases=tuple(alias for alias in check_aliases(aliases) if alias != LATEST),
            move_latest=bool(move_latest),
            tags=check_tags(tags),
            ttl=seconds,
            dedup=dedup,
            base="",
            strict_base=None,
            update=update,
            actor=self._runtime.actor,
            pin=None if draft is None else draft.pin,
            admit=quota.admit,
            run="" if run is None else id_in(self._engine, run),
            attrs=canonical_host_attrs(attrs),
            drafted=None if draft is None else draft.place,
        )
        canonical_metadata(metadata)
        request = FinishRequest(
            name,
            check_id(distributed_id, "distributed_id"),
            check_expected(expected_parts, lambda part: check_id(part, "part")),
            labels,
            None if description is None else check_description(description),
            metadata,
        )
        home, kind = destination(self._engine, request)
        expiry.check_loggable(self._engine, kind, seconds)
        if home is not None:
            ask(self._runtime, [("log", home.short)])
        result = finish(self._engine, art, request, progress)
        if art is not None:
            art.finalize()
        return Version(
            self._engine,
            # It may be in the trash by now, or purged.
            catalogue.found_at(self._engine, result.collection, result.number),
            created=result.created,
            latest_before=None if result.latest_before is None else f"v{result.latest_before}",
            ignored=result.ignored,
            new_bytes=result.new_bytes,
            stored_bytes=result.stored_bytes,
        )

    def _home_of(self, artifact: Artifact, project: str | None) -> CollectionName:
        """The collection an artifact says; its content must be to be had here."""
        if not isinstance(artifact, Artifact):
            raise InvalidInputError(f"this needs an Artifact, not {type(artifact).__name__}")
        self._release_abandoned()
        draft, home = draft_base(artifact)
        if draft is not None and draft.pin is not None:
            pin.renew_draft(self._engine, draft.pin)
        foreign = foreign_path(artifact, self._engine.config.store_id)
        if foreign is not None:
            raise InvalidInputError(
                f"{foreign!r} is in another store, so its content cannot be shared",
                hint="download it and add the files",
            )
        if draft is None or project is not None:
            return CollectionName.parse(artifact.name, home if project is None else project)
        # A draft goes to where its base is, whatever that is called by now.
        self._engine.view.refresh()
        from casstore.ingest import named_now

        with self._engine.view.read() as tables:
            return named_now(tables, draft.place)[0]

    def upsert_artifact(
        self, art: Artifact, distributed_id: str, part: str | None = None, *, project: str | None = None
    ) -> PartInfo:
        """`upsert`, by the name it has in W&B."""
        return self.upsert(art, distributed_id, part, project=project)

    def finish_artifact(
        self,
        art: Artifact,
        distributed_id: str,
        *,
        aliases: Sequence[str] = (LATEST,),
        tags: Sequence[str] = (),
        project: str | None = None,
    ) -> Version:
        """`finish`, by the name and with the order of arguments it has in W&B."""
        return self.finish(distributed_id, art, aliases=aliases, tags=tags, project=project)

    def pending(self) -> list[BatchInfo]:
        """Batches that are neither finished nor aborted, by collection and id."""
        from casstore.batch import pending

        return pending(self._engine)

    def batch(self, distributed_id: str, collection: str | None = None) -> BatchInfo:
        """A batch in any state. Raises `NotFoundError`; `InvalidInputError` if more than one has the id."""
        from casstore.batch import get

        return get(self._engine, _named(collection), check_id(distributed_id, "distributed_id"))

    def abort(self, distributed_id: str, collection: str | None = None, reason: str = "") -> BatchInfo:
        """Give a batch up, in one commit: what only its parts keep is garbage then. Returns it as it was before.

        One that is aborted already is left as it is. Its id stays used. Raises `NotFoundError`,
        `ArtifactFinalizedError` if it is finished; `InvalidInputError` if more than one has the id.
        """
        from casstore.batch import abort

        name = _named(collection)
        return abort(self._engine, name, check_id(distributed_id, "distributed_id"), check_description(reason))


def _named(collection: str | None) -> CollectionName | None:
    return None if collection is None else CollectionName.parse(collection)
