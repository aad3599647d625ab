"""A backend that fails when told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from casstore.backend import Backend, Buffer, ObjectInfo
from casstore.errors import CasstoreError, TransientBackendError

VERBS = ("create", "read", "stat", "list", "delete", "barrier")


def injected() -> CasstoreError:
    """The error of a fault that names none."""
    return TransientBackendError("injected failure")


@dataclass(frozen=True, slots=True)
class Fault:
    """Calls ``nth`` to ``nth + times - 1`` of a verb fail, counted from 1 over the life of the backend.

    ``after``: the effect happens and its answer is lost (so a `create` is ambiguous). For ``list`` that means
    after ``items`` objects were listed.
    """

    verb: str
    nth: int = 1
    times: int = 1
    after: bool = False
    items: int = 0
    error: Callable[[], Exception] = injected

    def __post_init__(self) -> None:
        if self.verb not in VERBS:
            raise ValueError(f"{self.verb!r} is no verb of a backend")


class FaultyBackend:
    """A backend with faults: ``FaultyBackend(inner, Fault("create", nth=2, after=True))``. Thread-safe."""

    def __init__(self, inner: Backend, *faults: Fault) -> None:
        self._inner = inner
        self._faults = [*faults]
        self._lock = Lock()
        self.calls: Counter[str] = Counter()
        self.failed: list[tuple[str, str]] = []
        """verb and key (or prefix) of what was made to fail"""

    def add(self, fault: Fault) -> None:
        """One fault more; calls made so far count."""
        with self._lock:
            self._faults.append(fault)

    def fail_next(
        self,
        verb: str,
        *,
        times: int = 1,
        after: bool = False,
        items: int = 0,
        error: Callable[[], Exception] = injected,
    ) -> None:
        """Let the next calls of a verb fail."""
        self.add(Fault(verb, self.calls[verb] + 1, times, after, items, error))

    def create(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Publish an object; see `Backend.create`."""
        self._do("create", key, lambda: self._inner.create(key, data))

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; see `Backend.read`."""
        found: list[bytes] = []
        self._do("read", key, lambda: found.append(self._inner.read(key, offset=offset, length=length)))
        return found[0]

    def stat(self, key: str) -> ObjectInfo:
        """Size and age of an object; see `Backend.stat`."""
        found: list[ObjectInfo] = []
        self._do("stat", key, lambda: found.append(self._inner.stat(key)))
        return found[0]

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below a prefix; see `Backend.list`. Faults come while iterating."""
        fault = self._fault("list", prefix)
        infos = self._inner.list(prefix, after=after)
        return infos if fault is None else _cut(infos, fault)

    def delete(self, key: str) -> None:
        """Remove an object; see `Backend.delete`."""
        self._do("delete", key, lambda: self._inner.delete(key))

    def barrier(self, prefix: str) -> None:
        """Make names durable; see `Backend.barrier`."""
        self._do("barrier", prefix, lambda: self._inner.barrier(prefix))

    def _do(self, verb: str, key: str, call: Callable[[], None]) -> None:
        fault = self._fault(verb, key)
        if fault is not None and not fault.after:
            raise fault.error()
        call()
        if fault is not None:
            raise fault.error()

    def _fault(self, verb: str, key: str) -> Fault | None:
        with self._lock:
            self.calls[verb] += 1
            number = self.calls[verb]
            for fault in self._faults:
                if fault.verb == verb and fault.nth <= number < fault.nth + fault.times:
                    self.failed.append((verb, key))
                    return fault
        return None


def _cut(infos: Iterator[ObjectInfo], fault: Fault) -> Iterator[ObjectInfo]:
    for count, info in enumerate(infos):
        if count >= fault.items:
            break
        yield info
    raise fault.error()
