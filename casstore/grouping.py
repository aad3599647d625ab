"""What many threads want at the same time, brought together: one of them does it for all, a group at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

GROUP = 64
"""requests that are in a group at most"""
GATHER = 0.01
"""seconds at most that a group waits for those who are expected; and not for longer than half of what a group takes"""
PATIENCE = 1.0
"""seconds after which one who waits for what another does looks whether there is one, come what may"""


class Request(Protocol):
    """What a thread wants done."""

    gate: threading.Lock | None
    """held for who waits for it: released when it is done, and when somebody has to see to it"""
    done: bool

    def finish(self, *, error: BaseException) -> None:
        """Have it done: it failed."""
        ...


R = TypeVar("R", bound=Request)


class Gathering(Generic[R]):
    """Does requests in groups, in the order they come in; one group at a time, in one of the threads that wait.

    ``work`` must have every request done when it returns or raises. What it raises is raised in the thread that it ran
    in, besides. Thread-safe; the child of a fork needs another.
    """

    def __init__(self, work: Callable[[list[R]], None], monotonic: Callable[[], float]) -> None:
        self._work = work
        self._monotonic = monotonic
        self.lock = threading.Lock()
        """held by whoever works for all"""
        self.waiting: list[R] = []
        self._waiting_lock = threading.Lock()
        self._expected = 0
        """threads with requests in the group before, and those that came meanwhile: such as come again and again"""
        self._took = 0.0
        """seconds that group took"""
        self.gathered = threading.Event()

    def do(self, requests: Sequence[R]) -> None:
        """Return when some requests are done."""
        gate = threading.Lock()
        gate.acquire()
        for request in requests:
            request.gate = gate
        with self._waiting_lock:
            self.waiting.extend(requests)
            if len(self.waiting) >= min(GROUP, self._expected):
                self.gathered.set()
        try:
            while not all(request.done for request in requests):
                if self.lock.locked():
                    # Whoever holds the lock works for everyone who waits. But not for the lock: those it has done go
                    # on while the next one holds it, and come back in time for the one after that.
                    gate.acquire(timeout=PATIENCE)
                else:
                    with self.lock:
                        self._lead(requests)
        finally:
            if not self.lock.locked():
                # It may have been our turn. Whoever has the lock by now will come by here, too. Not only the first is
                # woken: after an interrupt that is one of ours.
                self.wake(self.waiting[: len(requests) + 1])

    def _lead(self, requests: Sequence[R]) -> None:
        """Do what is waiting until some requests are done."""
        while not all(request.done for request in requests):
            self._gather()
            group: list[R] = []
            try:
                with self._waiting_lock:
                    group, self.waiting = self.waiting[:GROUP], self.waiting[GROUP:]
                began = self._monotonic()
                self._work(group)
                self._took = self._monotonic() - began
            except BaseException as error:
                for request in group:  # nobody else has them by now: who waits for one would wait for ever
                    if not request.done:
                        request.finish(error=error)
                raise
            finally:
                self._expected = len({id(request.gate) for request in (*group, *self.waiting)})
                self.wake(group)

    def _gather(self) -> None:
        """Wait a moment for those who were just done, if they are about to come again: one sync serves all.

        Without that, two halves take turns, each too late for the other. Where a group takes no time, none is lost.
        """
        self.gathered.clear()
        if len(self.waiting) < min(GROUP, self._expected):
            self.gathered.wait(min(GATHER, self._took / 2))

    def wake(self, requests: Sequence[R]) -> None:
        """Have those who wait for some requests look at them."""
        with self._waiting_lock:
            for gate in {id(request.gate): request.gate for request in requests}.values():
                if gate is not None and gate.locked():
                    gate.release()
