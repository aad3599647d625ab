"""Backends around backends: the same contract, with something added or taken away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from threading import Lock

from casstore.backend import Backend, Buffer, ObjectInfo, check_key
from casstore.errors import ReadOnlyError


class ReadOnlyBackend:
    """Lets nothing be created or deleted."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    def create(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Raise `ReadOnlyError`."""
        check_key(key)
        raise _read_only(f"create {key}")

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; see `Backend.read`."""
        return self._inner.read(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        """Size and age of an object; see `Backend.stat`."""
        return self._inner.stat(key)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below a prefix; see `Backend.list`."""
        return self._inner.list(prefix, after=after)

    def delete(self, key: str) -> None:
        """Raise `ReadOnlyError`, even if there is no such object."""
        check_key(key)
        raise _read_only(f"delete {key}")

    def barrier(self, prefix: str) -> None:
        """Make what others wrote durable: changes no content; see `Backend.barrier`."""
        self._inner.barrier(prefix)


class CountingBackend:
    """Counts, per verb: ``calls`` made, failed ones too; ``moved``, the bytes read and created or objects listed."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self._lock = Lock()
        self.calls: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def reset(self) -> None:
        """Start again from nought."""
        with self._lock:
            self.calls.clear()
            self.moved.clear()

    def create(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Publish an object; see `Backend.create`."""
        self._call("create")
        self._inner.create(key, data)
        buffers = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
        self._move("create", sum(memoryview(buffer).nbytes for buffer in buffers))

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; see `Backend.read`."""
        self._call("read")
        data = self._inner.read(key, offset=offset, length=length)
        self._move("read", len(data))
        return data

    def stat(self, key: str) -> ObjectInfo:
        """Size and age of an object; see `Backend.stat`."""
        self._call("stat")
        return self._inner.stat(key)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below a prefix; see `Backend.list`."""
        self._call("list")
        return self._listed(self._inner.list(prefix, after=after))

    def delete(self, key: str) -> None:
        """Remove an object; see `Backend.delete`."""
        self._call("delete")
        self._inner.delete(key)

    def barrier(self, prefix: str) -> None:
        """Make names durable; see `Backend.barrier`."""
        self._call("barrier")
        self._inner.barrier(prefix)

    def _listed(self, infos: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        for info in infos:
            self._move("list", 1)
            yield info

    def _call(self, verb: str) -> None:
        with self._lock:
            self.calls[verb] += 1

    def _move(self, verb: str, amount: int) -> None:
        with self._lock:
            self.moved[verb] += amount


def _read_only(doing: str) -> ReadOnlyError:
    return ReadOnlyError(f"cannot {doing}: the store was opened read-only", hint="open it for writing")
