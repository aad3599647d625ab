"""`SimStore`: the objects all processes share; `Connection`: what one process sees of them, faults included."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from casstore.backend import Buffer, ObjectInfo
from casstore.errors import AlreadyExistsError, NotFoundError, TransientBackendError

if TYPE_CHECKING:
    from casstore.testing.simulation.host import Process
    from casstore.testing.simulation.world import World

PAGE = 6
"""objects of a listing that are seen at one moment"""


class SimStore:
    """Objects, and the history of which there were. Every change is told to the world at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.keys: list[str] = []
        self.history: list[tuple[str, tuple[bytes, int], bool]] = []
        """key, object, and whether it came (or went)"""

    def create(self, key: str, data: bytes, process: str) -> None:
        """Publish an object; see `Backend.create`."""
        if key in self.objects:
            raise AlreadyExistsError(f"there is an object {key} already")
        made = (data, self.world.true)
        self.objects[key] = made
        insort(self.keys, key)
        self.history.append((key, made, True))
        self.world.created(key, data, process)

    def delete(self, key: str, process: str) -> None:
        """Remove an object; see `Backend.delete`."""
        self.world.deleting(key, process)
        gone = self.objects.pop(key, None)
        if gone is not None:
            self.keys.remove(key)
            self.history.append((key, gone, False))

    def page(self, prefix: str, after: str) -> list[ObjectInfo]:
        """Some objects below a prefix that come after a key, as they are now."""
        at = bisect_right(self.keys, max(prefix, after))
        found = [key for key in self.keys[at : at + PAGE] if key.startswith(prefix)]
        return [ObjectInfo(key, len(self.objects[key][0]), self.objects[key][1]) for key in found]

    def as_it_was(self, ago: int) -> dict[str, tuple[bytes, int]]:
        """The objects before the last ``ago`` changes."""
        objects = dict(self.objects)
        for key, item, came in reversed(self.history[len(self.history) - ago :]):
            if came:
                objects.pop(key, None)
            else:
                objects[key] = item
        return objects


class Connection:
    """A `Backend` in the hands of one process. Every call is a moment at which others may run."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.world = process.world
        self.store = process.world.store

    def create(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """See `Backend.create`. It may fail with or without its effect, or have it later."""
        content = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else b"".join(data)
        name = self.process.name
        self.process.point("create", key)
        if self._hits("create-before"):
            raise _error("create")
        if self._hits("create-late"):
            self.world.later("create-late", lambda: self._late_create(key, content, name))
            raise _error("create")
        self.store.create(key, content, name)
        if self._hits("create-after"):
            raise _error("create")
        self.process.point("created", key)

    def _late_create(self, key: str, content: bytes, name: str) -> None:
        if key not in self.store.objects:
            self.store.create(key, content, name)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """See `Backend.read`."""
        self.process.point("read", key)
        if self._hits("read-before"):
            raise _error("read")
        try:
            content = self.store.objects[key][0]
        except KeyError:
            raise NotFoundError(f"there is no object {key}") from None
        if offset or length is not None:
            content = content[offset : None if length is None else offset + length]
        if content and self._hits("read-short"):
            return content[: self.world.faults.choice("read-short").randrange(len(content))]
        return content

    def stat(self, key: str) -> ObjectInfo:
        """See `Backend.stat`."""
        self.process.point("stat", key)
        if self._hits("stat-before"):
            raise _error("stat")
        try:
            content, modified = self.store.objects[key]
        except KeyError:
            raise NotFoundError(f"there is no object {key}") from None
        return ObjectInfo(key, len(content), modified)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """See `Backend.list`. Page by page, each as of another moment; or old, or short of the newest."""
        self.process.point("list", prefix)
        if self._hits("list-before"):
            raise _error("list")
        midway = self._hits("list-midway")
        faults = self.world.faults
        if faults.hits("list-stale"):
            ago = faults.choice("list-stale").randrange(len(self.store.history) + 1)
            yield from self._frozen(self.store.as_it_was(ago), prefix, after)
            return
        if faults.hits("list-newest"):
            newest = {key for key, _, _ in self.store.history[-faults.choice("list-newest").randint(1, 6) :]}
            shown = {key: item for key, item in self.store.objects.items() if key not in newest}
            yield from self._frozen(shown, prefix, after)
            return
        last = after or ""
        while page := self.store.page(prefix, last):
            yield from page
            if midway:
                raise _error("list")
            last = page[-1].key
            self.process.point("list", last)

    @staticmethod
    def _frozen(objects: dict[str, tuple[bytes, int]], prefix: str, after: str | None) -> Iterator[ObjectInfo]:
        for key in sorted(objects):
            if key.startswith(prefix) and (after is None or key > after):
                yield ObjectInfo(key, len(objects[key][0]), objects[key][1])

    def delete(self, key: str) -> None:
        """See `Backend.delete`. It may be delivered twice, the second time much later."""
        name = self.process.name
        self.process.point("delete", key)
        if self._hits("delete-before"):
            raise _error("delete")
        self.store.delete(key, name)
        if self.world.faults.hits("delete-late"):
            self.world.later("delete-late", lambda: self.store.delete(key, name))
        if self._hits("delete-after"):
            raise _error("delete")
        self.process.point("deleted", key)

    def barrier(self, prefix: str) -> None:
        """See `Backend.barrier`: what is here is durable."""
        self.process.point("barrier", prefix)
        if self._hits("barrier-before"):
            raise _error("barrier")

    def _hits(self, kind: str) -> bool:
        if self.process.exempt or not self.world.faults.hits(kind):
            return False
        self.process.faulted.add(kind)
        self.world.event("fault", self.process.name, kind)
        return True


def _error(verb: str) -> TransientBackendError:
    return TransientBackendError(f"simulated failure of {verb}", hint="run again")
