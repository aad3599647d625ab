"""A store that is open: where it is, how it came to be open, and how it is closed, copied and forked."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from casstore.backend.osops import OsOps
from casstore.config import ChunkerParams, Runtime, Settings, StoreConfig, warn_of_unknown_variables
from casstore.engine import Engine
from casstore.errors import CasstoreError, InvalidInputError
from casstore.model import Unpin
from casstore.opening import create_store, open_store

Authorize = Callable[[str, str, str], bool]
"""actor, action, target → whether they may"""


class OpenedStore:
    """The place, the process and the open parts of one store."""

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
        actor: str | None = None,
        authorize: Authorize | None = None,
        runtime: Runtime | None = None,
        settings: Settings | None = None,
        ops: OsOps | None = None,
        rebuild_index: bool = False,
    ) -> Self:
        """Open the store at a path, ``file://`` or ``memory://`` URL; with ``create``, make it if need be.

        ``clock`` returns an aware UTC datetime and is the only time the store knows. ``actor``: who acts, for the log.
        ``authorize(actor, action, target)``: whether they may; all that would change the store asks first, and is
        refused (`RefusedError`) if the answer is no (`casstore.authority` lists the actions); a pickled copy asks
        nobody. The three are short for those fields of ``runtime``. ``rebuild_index``: make the view
        again, also when the log ends before what it shows, as one does that was restored from a copy. Raises
        `StoreNotFoundError`, `UnsupportedFormatError`, `IntegrityError`, `BackendError`. Warns (`UserWarning`) of
        ``CASSTORE_*`` variables it does not know.
        """
        warn_of_unknown_variables(stacklevel=2)
        world, mine = _world(runtime, clock, actor, authorize), settings or Settings()
        engine = open_store(url, world, mine, ops, create=create, read_only=read_only, rebuild=rebuild_index)
        return cls(os.fspath(url), read_only=read_only, runtime=world, settings=mine, ops=ops, engine=engine)

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str],
        digest: str = "blake3",
        chunker: ChunkerParams | None = None,
        clock: Callable[[], datetime] | None = None,
        *,
        actor: str | None = None,
        authorize: Authorize | None = None,
        config: StoreConfig | None = None,
        runtime: Runtime | None = None,
        settings: Settings | None = None,
        ops: OsOps | None = None,
    ) -> Self:
        """Make a store where there is none. Raises `AlreadyExistsError`.

        ``digest``: ``blake3``, ``sha256``, or ``xxh3-128``, which is faster but safe only while every writer is
        trusted: it gives no protection against contents made to collide. ``actor``, ``authorize``: see `open`.
        """
        world, mine = _world(runtime, clock, actor, authorize), settings or Settings()
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
        # Clocks, randomness and hosts are functions, which do not travel: the copy has the real ones, and no host.
        return {**self.__dict__, "_core": None, "_runtime": self._runtime.actor, "_ops": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._runtime = Runtime(actor=state["_runtime"])

    def __repr__(self) -> str:
        return f"<Store {self._url!r}{' read-only' if self._read_only else ''}>"

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._url

    @property
    def head(self) -> int:
        """The position of the log that this handle has seen, in segments."""
        return self._engine.view.head().seq

    @property
    def config(self) -> StoreConfig:
        """What was fixed when the store was created."""
        return self._engine.config

    def _release_abandoned(self) -> None:
        """Release the pins of drafts that went away without being logged."""
        engine = self._engine
        while engine.abandoned:
            pin = engine.abandoned.pop()
            held = {key for key, _ in engine.view.pins()}
            if pin in held:
                with suppress(CasstoreError):  # somebody else released it, or it will expire
                    engine.commit(lambda _, pin=pin: (Unpin(pin),), asked=True)  # type: ignore[misc]


def _world(
    runtime: Runtime | None,
    clock: Callable[[], datetime] | None,
    actor: str | None,
    authorize: Authorize | None,
) -> Runtime:
    world = runtime or Runtime()
    if actor is not None:
        world = replace(world, actor=actor)
    if authorize is not None:
        if not callable(authorize):
            raise InvalidInputError(
                f"authorize={authorize!r:.100} is no function", hint="def authorize(actor, action, target)"
            )
        world = replace(world, authorize=authorize)
    if clock is None:
        return world
    world = replace(world, clock=clock)
    world.now()  # says now that a clock is naive, not at the first commit
    return world
