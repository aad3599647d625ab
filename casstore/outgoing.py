"""Packs on their way out: written run by run while they grow, and published in order. Knows packs and the backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

from casstore.backend import Backend, Growing, Grows
from casstore.digest import Buffer, Sealer
from casstore.format.layout import pack_key
from casstore.pack import SealedPack

RUN_BYTES = 8 * 1024 * 1024
"""bytes of a pack that are written, and synced, while the rest of it is still to come"""


class Outgoing:
    """One pack: some of it may be written before it is whole. Its steps are done one after the other."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sealer = Sealer()
        self._object: Growing | None = None

    def write(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write its next bytes; ``key``: that of the pack. Only for a backend that `Grows`."""
        if self._object is None:
            assert isinstance(self._backend, Grows)
            self._object = self._backend.begin(key)
        for part in parts:
            self._sealer.update(part)
        self._object.write(parts)

    def publish(self, sealed: SealedPack) -> None:
        """Write what is left of it and publish it: durable on return."""
        rest = sealed.data(self._sealer)
        if self._object is None:
            self._backend.create(pack_key(sealed.record.pack), rest)
        else:
            self._object.publish(rest)

    def discard(self) -> None:
        """Take away what was written of it, unless it was published."""
        if self._object is not None:
            self._object.discard()


class Outbox:
    """Does steps in another thread, one at a time and in the order they came: so their effects have one order, too.

    Not thread-safe: it belongs to one thread. After an error it does nothing any more but `abandon`.
    """

    def __init__(self, executor: Executor, most: int) -> None:
        """``most``: bytes that may wait while others are on their way; more are waited for."""
        self._executor = executor
        self._most = most
        self._steps: list[Callable[[], None]] = []
        self._waiting = 0
        self._working: Future[None] | None = None

    def add(self, step: Callable[[], None], size: int) -> None:
        """Have something done that holds so many bytes of memory. Raises what a step before it raised."""
        self._steps.append(step)
        self._waiting += size
        if self._waiting > self._most:
            self._wait()
        self.keep_up()

    def keep_up(self) -> None:
        """Go on with what waits, if what was on its way is done. Raises what that raised."""
        if self._steps and (self._working is None or self._working.done()):
            self._wait()
            steps, self._steps, self._waiting = self._steps, [], 0
            self._working = self._executor.submit(_do, steps)

    def finish(self) -> None:
        """Return when everything is done. Raises what a step raised; those behind it were not done."""
        while self._steps or self._working is not None:
            self._wait()
            self.keep_up()

    def abandon(self) -> None:
        """Return when nothing is being done any more. What had not begun is not done."""
        self._steps, self._waiting = [], 0
        working, self._working = self._working, None
        if working is not None and not working.cancel():
            working.exception()

    def _wait(self) -> None:
        if self._working is not None:
            self._working.result()  # an error stays: it is raised each time
            self._working = None


def _do(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()
