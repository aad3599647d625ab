"""Hosts with clocks of their own, and the processes on them: one greenlet, one engine, one incarnation at a time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import greenlet

from casstore.backend.osops import OsOps
from casstore.config import Runtime, Settings, from_micros
from casstore.engine import Committed, Engine
from casstore.errors import BackendError, FormatError, IntegrityError
from casstore.index import MemoryIndex
from casstore.state import TABLES
from casstore.store import Store
from casstore.testing.simulation.names import Difference
from casstore.testing.simulation.network import Connection
from casstore.testing.simulation.options import DAY, OpSpec

if TYPE_CHECKING:
    from casstore.testing.simulation.world import World

T = TypeVar("T")

OPENINGS = 40
LONGEST_STOP = 30 * DAY


class Killed(BaseException):
    """kill -9: nothing the process does from here on reaches the store. Library code must not swallow it."""


@dataclass(slots=True)
class Host:
    """A machine: how wrong its clock is (µs), and the view its processes share, if they do."""

    name: str
    offset: int
    drift: int
    storage: MemoryIndex | None = None
    forward: int = 0
    """sum of all jumps forward so far, µs"""

    def clock(self, true: int, start: int) -> int:
        """What the clock shows, µs."""
        return true + self.offset + (true - start) * self.drift // 1_000_000


class Inline(Executor):
    """Runs what it is given at once, in the thread of the caller: simulated processes have no threads."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Any:
        """Call now; what it raises comes out of ``result``."""
        return _Done(fn, args, kwargs)

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **_: Any) -> Iterator[T]:
        """Call now."""
        return iter([fn(*args) for args in zip(*iterables, strict=False)])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing to end."""


class _Done:
    """A future that is done. A kill goes straight through it."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._value: Any = None
        self._error: Exception | None = None
        try:
            self._value = fn(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            self._error = error

    def result(self, timeout: float | None = None) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def exception(self, timeout: float | None = None) -> Exception | None:
        return self._error

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def done(self) -> bool:
        return True


_INLINE = Inline()
_SETTINGS = Settings(workers=2)


@dataclass(frozen=True)
class SimRuntime(Runtime):
    """The world as one simulated process sees it."""

    micros: Callable[[], int] = lambda: 0

    def now(self) -> int:
        """The host's clock, µs; reading it is a moment at which others may run."""
        return self.micros()


class Process:
    """One simulated process: runs its operations one after another, dies, and is started again."""

    def __init__(self, world: World, name: str, host: Host, ops: Iterable[OpSpec]) -> None:
        self.world = world
        self.host = host
        self.base = name
        self.born = self.opened = 0
        self.name = f"{name}.0"
        self.queue = deque(ops)
        self.wake = 0
        """time before which it does not run, µs"""
        self.priority = 0.0
        self.dead = False
        self.over = False
        self.exempt = False
        """faults pass it by"""
        self.quiet = False
        """it runs by itself: no switching"""
        self.faulted: set[str] = set()
        """faults injected into the operation under way"""
        self.storage: MemoryIndex | None = None
        self.store: Store | None = None
        self.drafts: list[Any] = []
        self.pins: list[bytes] = []
        self.rng = random.Random(f"{world.options.seed} {name}")
        self._greenlet: greenlet.greenlet | None = None

    # --- being run

    def start(self) -> None:
        """A new incarnation; its view is its host's, the one it had before, or an empty one."""
        self.born += 1
        self.name = f"{self.base}.{self.born}"
        self.dead, self.over = False, False
        self.store, self.drafts = None, []
        if self.host.storage is not None:
            self.storage = self.host.storage
        elif self.storage is None or self.rng.random() < 0.3:
            self.storage = MemoryIndex(TABLES)
        self._greenlet = greenlet.greenlet(self._run, self.world.main)

    def resume(self) -> None:
        """Let it run up to its next moment."""
        assert self._greenlet is not None
        self._greenlet.switch()

    def kill(self) -> None:
        """Take it away where it stands."""
        self.dead = True
        if self._greenlet:  # it has begun and not ended
            self._greenlet.throw(Killed)
        self._greenlet = None
        self.store, self.drafts = None, []

    def point(self, what: str, key: str) -> None:
        """A moment at which others may run, and this process may be stopped or killed."""
        if self.dead:
            raise Killed
        if self.quiet or (self.storage is not None and self.storage._reading):  # noqa: SLF001 - see below
            # Nobody waits for a reader of the view; in one thread, a writer of a shared one would.
            return
        self.world.event(what, self.name, key)
        self.world.main.switch()
        if self.dead:
            raise Killed

    def _run(self) -> None:
        try:
            if self._open():
                while self.queue:
                    self.world.operate(self, self.queue.popleft())
        except Killed:
            return
        except Difference as difference:
            self.world.fail(difference)
        self.over = True

    # --- the library

    def runtime(self) -> Runtime:
        """What the library is given instead of the real world."""
        self.opened += 1
        rng = random.Random(f"{self.world.options.seed} {self.name} {self.opened}")
        return SimRuntime(
            clock=self._clock,
            random_bytes=rng.randbytes,
            jitter=rng.random,
            sleep=self._sleep,
            monotonic=lambda: self.world.true / 1_000_000,
            actor=self.base,
            writer=self.name,
            executor=lambda _: _INLINE,
            micros=self._micros,
        )

    def _micros(self) -> int:
        self.point("clock", "")
        shown = self.host.clock(self.world.true, self.world.start)
        self.world.readings[self.base, shown] = self.host.forward
        return shown

    def _clock(self) -> datetime:
        return from_micros(self._micros())

    def _sleep(self, seconds: float) -> None:
        self.wake = self.world.true + int(seconds * 1_000_000)
        self.point("sleep", "")

    def _open(self) -> bool:
        for _ in range(OPENINGS):
            self.faulted = set()
            try:
                self.open()
            except (BackendError, IntegrityError, FormatError) as error:
                self.world.excuse(self, error)
            else:
                return True
        return False

    def open(self) -> Store:
        """Open the store anew, as `casstore.opening` does."""
        assert self.storage is not None
        engine = Engine(Connection(self), self.world.config, self.storage, self.runtime(), _SETTINGS, _OPS)
        self._witness(engine)
        engine.view.check()
        engine.view.refresh()
        self.store = Store(
            "memory://sim", read_only=False, runtime=engine.runtime, settings=_SETTINGS, ops=None, engine=engine
        )
        return self.store

    def _witness(self, engine: Engine) -> None:
        """Have the abstract machine hear of what is acknowledged and of what this replica applies."""
        commit_all, world = engine.commit_all, self.world

        def witnessed(*args: Any, **kwargs: Any) -> list[Committed | None]:
            outcome = commit_all(*args, **kwargs)
            for committed in outcome:
                if committed is not None:
                    world.acked(self, committed.seq, committed.numbers)
            return outcome

        engine.commit_all = witnessed  # type: ignore[method-assign]

    @property
    def engine(self) -> Engine:
        """Inside the store."""
        assert self.store is not None
        return self.store._engine  # noqa: SLF001 - tests may look inside


class _NoOps(OsOps):
    """No effects on any disk."""

    def effect(self, name: str, detail: str = "") -> None:
        """Nothing."""


_OPS = _NoOps(crash_at=0)
