"""Who is at work in a store: sessions hold it shared, an offline collector exclusively.

Courtesy, not correctness: no byte is safe because of it (docs/GC.md). What is locked, with ``flock(2)``, is the
directory of the store itself, so there is no file to make, to lose or to find stale: it works on a full disk, and the
kernel lets go when a process dies. Beside it each session leaves its name in a file in ``tmp/``, locked as long as it
lives, for the message to whoever has to wait. On a network file system this host's processes see each other only.
"""

from __future__ import annotations

import fcntl
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from casstore.backend import TEMPORARY, Backend
from casstore.backend.local import LocalBackend
from casstore.backend.memory import MemoryBackend
from casstore.backend.osops import is_abandoned
from casstore.config import Runtime, from_micros, process_id
from casstore.errors import StoreBusyError
from casstore.values import dataclass

RECORD = "session-"
POLL_SECONDS = 0.05
COMMAND_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a store, and what for. ``since``: microseconds since the epoch, 0: not known."""

    pid: int
    host: str
    command: str
    doing: str
    since: int

    @classmethod
    def here(cls, runtime: Runtime, doing: str) -> Self:
        """This process, from now on."""
        host, _, _ = runtime.writer.rpartition(":")
        return cls(process_id(), host, " ".join(sys.orig_argv)[:COMMAND_CHARACTERS], doing, runtime.now())

    def __str__(self) -> str:
        who = f"process {self.pid}{f' on {self.host}' if self.host else ''}"
        since = f" since {from_micros(self.since):%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"{who}, {self.doing}{since} ({self.command or 'command not known'})"


class Sessions(Protocol):
    """The sessions of one store. Thread-safe; those of one process exclude each other as those of several do."""

    def take(self, holder: Holder, *, exclusive: bool) -> Hold | None:
        """Hold the store; None if others are in the way. Where that cannot be known nobody is."""
        ...

    def holders(self) -> list[Holder]:
        """Who holds the store, as far as can be told."""
        ...


class Hold:
    """A store that is held, until `release` or until the object or the process goes away. A context manager.

    The child of a fork holds nothing.
    """

    def __init__(self, release: Callable[[], None], forget: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._release: Callable[[], None] | None = release
        self._forget = forget
        _holds.add(self)

    def release(self) -> None:
        """Let go. Once more is fine."""
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()

    def abandon(self) -> None:
        """Be no hold any more without letting go: it is another process that holds."""
        self._lock = threading.Lock()
        self._release = None
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def _written(holder: Holder) -> bytes:
    """As JSON: without `json`, which quick commands do not need otherwise, where nothing must be escaped."""
    fields = {name: getattr(holder, name) for name in holder.__match_args__}
    texts = "".join([value for value in fields.values() if isinstance(value, str)])
    if texts.isascii() and texts.isprintable() and not {'"', "\\"} & {*texts}:
        quote = {str: '"', int: ""}
        written = [f'"{name}": {quote[type(value)]}{value}{quote[type(value)]}' for name, value in fields.items()]
        return f"{{{', '.join(written)}}}".encode()
    import json  # noqa: PLC0415 - start-up

    return json.dumps(fields).encode()


_holds: weakref.WeakSet[Hold] = weakref.WeakSet()


class LocalSessions:
    """Sessions in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._temporary = os.path.join(self._root, TEMPORARY)

    def take(self, holder: Holder, *, exclusive: bool) -> Hold | None:
        """See `Sessions.take`. Each hold has a descriptor of its own."""
        files: list[int] = []

        def close() -> None:
            while files:
                with suppress(OSError):
                    os.close(files.pop())

        record = ""
        try:
            with suppress(OSError):  # no such directory, no locks here, …: then nobody is in the way
                files.append(os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                try:
                    fcntl.flock(files[0], (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                except BlockingIOError:
                    close()
                    return None
                record = self._record(holder, files)
        except BaseException:
            close()
            raise

        def release() -> None:
            if record:
                with suppress(OSError):
                    os.unlink(record)
            for descriptor in files:
                with suppress(OSError):  # a child that is being forked at this moment has a copy of it
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            close()

        return Hold(release, close)

    def _record(self, holder: Holder, files: list[int]) -> str:
        """Leave a name, if there is room for it. Gone with the process it would mean nothing: it is not synced."""
        path = os.path.join(self._temporary, f"{RECORD}{process_id()}-{Runtime.random_bytes(8).hex()}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        files.append(descriptor)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, _written(holder))
        return path

    def holders(self) -> list[Holder]:
        """See `Sessions.holders`: those who left a name, else those the kernel names."""
        named = [*self._named()]
        return named or [*self._known_to_the_kernel()]

    def _named(self) -> Iterator[Holder]:
        try:
            names = sorted(os.listdir(self._temporary))
        except OSError:
            return
        for name in names:
            if name.startswith(RECORD):
                with suppress(OSError, ValueError, TypeError):
                    path = os.path.join(self._temporary, name)
                    if not is_abandoned(path):
                        import json  # noqa: PLC0415 - start-up

                        yield Holder(**json.loads(Path(path).read_bytes()))

    def _known_to_the_kernel(self) -> Iterator[Holder]:
        with suppress(OSError, ValueError):
            status = os.stat(self._root)
            where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
            for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
                words = line.split()
                if words[1] == "FLOCK" and where in words:
                    pid = int(words[4])
                    command = b""
                    with suppress(OSError):
                        command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    text = command.replace(b"\0", b" ").decode(errors="replace").strip()
                    yield Holder(pid, "", text[:COMMAND_CHARACTERS], "at work", 0)


class MemorySessions:
    """Sessions of a store of this process."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Nobody is here: what a fork makes true of the child."""
        self._lock = threading.Lock()
        self._held: dict[int, tuple[Holder, bool]] = {}
        self._next = 0

    def take(self, holder: Holder, *, exclusive: bool) -> Hold | None:
        """See `Sessions.take`."""
        with self._lock:
            if self._held and (exclusive or any(alone for _, alone in self._held.values())):
                return None
            self._next += 1
            number = self._next
            self._held[number] = (holder, exclusive)
        held = self._held

        def release() -> None:
            held.pop(number, None)

        return Hold(release, lambda: None)

    def holders(self) -> list[Holder]:
        """See `Sessions.holders`."""
        with self._lock:
            return [holder for holder, _ in self._held.values()]


_memory: weakref.WeakKeyDictionary[Backend, MemorySessions] = weakref.WeakKeyDictionary()
_others: weakref.WeakSet[MemorySessions] = weakref.WeakSet()
_lock = threading.Lock()


def sessions_of(backend: Backend) -> Sessions:
    """The sessions of the store in a backend. Of a backend of an unknown kind each handle knows its own only."""
    if isinstance(backend, LocalBackend):
        return LocalSessions(backend.root)
    with _lock:
        if not isinstance(backend, MemoryBackend):
            _others.add(sessions := MemorySessions())
            return sessions
        return _memory.setdefault(backend, MemorySessions())


def enter(
    sessions: Sessions, runtime: Runtime, doing: str, *, exclusive: bool = False, busy_seconds: float = 0.0
) -> Hold:
    """Hold a store, shared or exclusively, waiting a while for others. Raises `StoreBusyError` naming them."""
    holder = Holder.here(runtime, doing)
    # By what was slept, not by a clock: an injected one may stand still.
    for polls_left in range(math.ceil(busy_seconds / POLL_SECONDS), -1, -1):
        hold = sessions.take(holder, exclusive=exclusive)
        if hold is not None:
            return hold
        if polls_left:
            runtime.sleep(POLL_SECONDS)
    found = "; ".join(str(other) for other in sessions.holders()) or "another process"
    raise StoreBusyError(
        f"the store is held by {found}",
        hint="run again when it has finished, or collect without --offline" if exclusive else "run again when it ends",
    )


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a thread that does not exist here may hold it
    _lock = threading.Lock()
    for hold in list(_holds):
        hold.abandon()
    for sessions in [*_memory.values(), *_others]:
        sessions.restart()


os.register_at_fork(after_in_child=_after_fork)
