"""Objects in a dictionary: for tests, simulations and throw-away stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock

from casstore.backend import Buffer, ObjectInfo, check_key, check_prefix, check_range
from casstore.config import Runtime
from casstore.errors import AlreadyExistsError, InvalidInputError, NotFoundError


class MemoryBackend:
    """Objects of this process, gone with it. ``clock`` (microseconds) dates them."""

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = Runtime().now if clock is None else clock
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._lock = Lock()

    def create(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Publish an object; see `Backend.create`."""
        check_key(key)
        content = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else b"".join(map(bytes, data))
        with self._lock:
            if key in self._objects:
                raise AlreadyExistsError(f"there is an object {key} already")
            self._objects[key] = (content, self._clock())

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; see `Backend.read`."""
        check_key(key)
        check_range(offset, length)
        content, _ = self._get(key)
        return content[offset : None if length is None else offset + length]

    def stat(self, key: str) -> ObjectInfo:
        """Size and age of an object; see `Backend.stat`."""
        check_key(key)
        content, modified = self._get(key)
        return ObjectInfo(key, len(content), modified)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below a prefix as they are at the call; see `Backend.list`."""
        check_prefix(prefix)
        with self._lock:
            found = [
                ObjectInfo(key, len(content), modified)
                for key, (content, modified) in self._objects.items()
                if key.startswith(prefix) and (after is None or key > after)
            ]
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove an object; see `Backend.delete`."""
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def barrier(self, prefix: str) -> None:
        """Nothing to do; see `Backend.barrier`."""
        check_prefix(prefix)

    def _get(self, key: str) -> tuple[bytes, int]:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFoundError(f"there is no object {key}") from None


_stores: dict[str, MemoryBackend] = {}
_stores_lock = Lock()


def open_memory(name: str, clock: Callable[[], int] | None = None) -> MemoryBackend:
    """The memory store of this name in this process; made, with this clock, when first opened."""
    if not name:
        raise InvalidInputError("a memory store needs a name", hint="memory://NAME")
    with _stores_lock:
        if name not in _stores:
            _stores[name] = MemoryBackend(clock)
        return _stores[name]


def forget_memory(name: str) -> None:
    """Let the next `open_memory` of this name make a new store."""
    with _stores_lock:
        _stores.pop(name, None)
