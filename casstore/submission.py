"""Logging in the background: a log that was started, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from casstore.errors import ConflictError, WaitTimeoutError
from casstore.names import check_timeout

PENDING, COMMITTED, FAILED, CANCELLED = "PENDING", "COMMITTED", "FAILED", "CANCELLED"

T = TypeVar("T")


class Submission(Generic[T]):
    """Work that one thread, started for it, does: see `Store.submit`. Thread-safe; belongs to one process.

    An interpreter that exits waits for it, as `Store.close` does. One that is killed loses what is not committed, as
    with any log.
    """

    def __init__(self, work: Callable[[], T], what: str) -> None:
        self._work = work
        self._what = what
        self._state = PENDING
        self._begun = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"casstore-submit-{what}")

    def __repr__(self) -> str:
        return f"<Submission of {self._what}: {self.state}>"

    def start(self) -> None:
        """Begin. Once."""
        _at_exit()
        _unfinished.add(self)
        self._thread.start()

    def _run(self) -> None:
        with self._lock:
            if self._state != PENDING:
                return
            self._begun = True
        try:
            self._result.append(self._work())
            self._state = COMMITTED
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            self._error = error
            self._state = FAILED
        finally:
            self._over.set()
            _unfinished.discard(self)

    @property
    def state(self) -> str:
        """``PENDING``, ``COMMITTED``, ``FAILED`` or ``CANCELLED``."""
        return self._state

    @property
    def error(self) -> BaseException | None:
        """Why it failed."""
        return self._error

    def done(self) -> bool:
        """Whether it has come to its end, well or not."""
        return self._over.is_set()

    def cancel(self) -> bool:
        """Do not begin, if it has not begun; True if it never will. What has begun goes on to its end."""
        with self._lock:
            if self._state == PENDING and not self._begun:
                self._state = CANCELLED
                self._error = ConflictError(f"logging {self._what} was cancelled", hint="submit it again")
                self._over.set()
            return self._state == CANCELLED

    def wait(self, timeout: float | None = None) -> T:
        """The version, once it is committed and durable. ``timeout``: seconds at most; None: as long as it takes.

        Raises what the log raised, `WaitTimeoutError` when the time is over (it goes on), `InvalidInputError` for a
        negative timeout.
        """
        if not self._over.wait(check_timeout(timeout)):
            raise WaitTimeoutError(f"{self._what} is not logged after {timeout} s", hint="wait again: it goes on")
        if self._error is not None:
            raise self._error
        return self._result[0]

    def join(self) -> None:
        """Wait for its end, however it ends."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


_unfinished: set[Submission[Any]] = set()
_registered: list[bool] = []


def _at_exit() -> None:
    """Have an exit of the interpreter wait for what is being logged while pools of threads still take work.

    They stop taking any before the interpreter waits for threads such as ours, and long before `atexit`.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is not None and not _registered:
        _registered.append(True)
        register(_join_all)


def _join_all() -> None:
    for submission in tuple(_unfinished):
        submission.join()
