"""Jobs for the worker threads that never outlive the descriptors they write to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Crew(Generic[T]):
    """Work given to an executor, a few jobs at a time, whose results come back in the order they were given.

    A context manager: behind its end no job runs, nor will one begin, whatever exception ended it and wherever that
    came up, interrupts included. For one thread; the jobs must not wait for one another.
    """

    def __init__(self, executor: Callable[[], Executor], most: int) -> None:
        """``most``: how many jobs may be given before the oldest must have ended."""
        self._executor = executor
        self._most = most
        self._given: deque[Future[T]] = deque()
        self._gate = threading.Condition()
        self._running = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                with self._gate:
                    self._closed = True
                    self._gate.wait_for(lambda: not self._running)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    @property
    def closed(self) -> bool:
        """Whether it is over: jobs that take long look here now and then, and stop."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether every result has been handed over."""
        return not self._given

    def give(self, job: Callable[[], T]) -> list[T]:
        """Have a job done; returns results that are there by now. Raises what a job did."""
        self._given.append(self._executor().submit(self._run, job))
        return self._take(self._most)

    def rest(self) -> list[T]:
        """The results of all other jobs, when they are done. Raises what a job did."""
        return self._take(0)

    def _take(self, most: int) -> list[T]:
        results: list[T] = []
        while self._given and (len(self._given) > most or self._given[0].done()):
            results.append(self._given.popleft().result())
        return results

    def _run(self, job: Callable[[], T]) -> T:
        with self._gate:
            if self._closed:
                raise RuntimeError("the work was called off")  # nobody asks for this result
            self._running += 1
        try:
            return job()
        finally:
            with self._gate:
                self._running -= 1
                self._gate.notify_all()
