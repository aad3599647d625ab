"""What is fixed when a store is created, what a process may tune, and the world it runs in.

The only module that reads the clock, random numbers, the host's name or the environment; others are handed
a `Runtime`.
"""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Self

from casstore.errors import InvalidInputError
from casstore.patterns import pattern
from casstore.values import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

ENV_PREFIX = "CASSTORE_"
_BALLOON, _PAGE_REPORTING = 5, 5
"""of virtio: the number of the device, and of the feature of returning free pages"""
_CLOCK_REALTIME_COARSE = 5
"""of Linux: what file systems there take their times from"""
VARIABLES = ("ACTOR", "CACHE_DIR", "CHUNKER_KERNEL", "CRASH_AT", "GC_ENABLED", "URL")
"""those that mean something"""
_OF_TESTS = ("REQUIRE_", "STORM_")


@dataclass(frozen=True, slots=True)
class ChunkerParams:
    """How files are cut: an algorithm and its sizes in bytes (docs/decisions/0002, 0015)."""

    algorithm: str = "gated-2026"
    minimum: int = 16 * KIB
    average: int = 32 * KIB
    maximum: int = 128 * KIB

    def __post_init__(self) -> None:
        if not 64 <= self.minimum <= self.average <= self.maximum <= 16 * MIB:
            raise InvalidInputError(
                f"chunk sizes {self.minimum} <= {self.average} <= {self.maximum} must rise from 64 to 16 MiB"
            )
        if self.average & (self.average - 1):
            raise InvalidInputError(f"the average chunk size {self.average} is not a power of two")

    @classmethod
    def around(cls, average: int) -> Self:
        """The default algorithm with another average size; the limits keep their ratio to it."""
        return cls(minimum=average // 2, average=average, maximum=average * 4)


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Fixed at creation, kept in the store's ``format`` object."""

    digest: str = "blake3"
    chunker: ChunkerParams = field(default_factory=ChunkerParams)
    frame_bytes: int = 256 * KIB
    """plaintext bytes a frame aims at"""
    pack_bytes: int = 32 * MIB
    """stored bytes a pack aims at"""
    node_bytes: int = 16 * KIB
    """average encoded size of a tree node"""
    planes: bool = True
    """data that is an array of numbers may be stored as byte planes; a feature that readers must know"""
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one process may choose for itself; never stored."""

    workers: int = field(default_factory=lambda: max(2, min(8, os.cpu_count() or 2)))
    zstd_level: int = 3
    index_map_bytes: int = 1 * GIB
    """first size of the LMDB map; it grows by itself"""
    commit_attempts: int = 1000
    busy_seconds: float = 5.0
    """how long a writer waits for a collector that has the store to itself"""


@dataclass(frozen=True)
class Runtime:
    """Clock, randomness, sleep and names: everything that is not a function of the input.

    Tests replace it. ``clock`` returns an aware UTC datetime; it is the only time a store knows.
    """

    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    random_bytes: Callable[[int], bytes] = os.urandom
    jitter: Callable[[], float] = lambda: jitter()
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    actor: str = field(default_factory=lambda: default_actor())
    writer: str = field(default_factory=lambda: f"{os.uname().nodename}:{os.getpid()}")
    file_clock: Callable[[], int] = lambda: system_micros()
    """the clock the times of local files are from, in microseconds since the epoch"""
    quiet: Callable[[int], int | None] = lambda fd: unwritten_at(fd)
    """given an open file, the clock of the kernel's file times (ns) just before a moment when nobody had it open for
    writing; None if somebody has, or it cannot be told"""
    file_system: Callable[[str], str] = lambda path: file_system_of(path)
    """the type of the file system a local path is on; empty where the system does not tell"""
    executor: Callable[[int], Executor] | None = None
    """makes the pool of so many workers that a store uses; None: threads"""
    authorize: Callable[[str, str, str], bool] = lambda *_: True
    """whether ``actor`` may do ``action`` to ``target``, asked of all that would change the store before it does
    (`casstore.authority` lists the actions), in the thread that wants it and under no lock. It may read the store."""

    def __post_init__(self) -> None:
        for name in ("actor", "writer"):
            text = getattr(self, name)
            if not isinstance(text, str) or _readable(text) != text:
                raise InvalidInputError(f"{name}={text!r:.200} is not a text")
            object.__setattr__(self, name, str.__str__(text))  # not of a class of its own: the log takes none

    def now(self) -> int:
        """The clock in integer microseconds since the epoch."""
        return to_micros(self.clock())


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime. Raises `InvalidInputError` for a naive one."""
    if moment.tzinfo is None:
        raise InvalidInputError("the clock must return an aware datetime", hint="datetime.now(timezone.utc)")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""microseconds from the epoch to the ends of what a datetime can say"""


def from_micros(micros: int) -> datetime:
    """The aware UTC datetime of some microseconds since the epoch.

    One beyond what a datetime can say is the last, or the first, that it can: a clock may have claimed anything.
    """
    seconds, rest = divmod(min(max(micros, _FIRST), _LAST), 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def system_micros() -> int:
    """The machine's own clock, which file times are by: microseconds since the epoch."""
    return time.time_ns() // 1000


def default_actor() -> str:
    """Who acts, for the log: ``CASSTORE_ACTOR``, else the login name."""
    names = (ENV_PREFIX + "ACTOR", "USER", "LOGNAME")
    return _readable(next((text for name in names if (text := os.environ.get(name))), "unknown"))


def _readable(text: str) -> str:
    """A text from the environment, which may hold any bytes: what is no UTF-8 shows as that."""
    return text.encode(errors="surrogatepass").decode(errors="replace")


def environment(name: str) -> str | None:
    """A ``CASSTORE_*`` variable, or None when unset or empty."""
    return os.environ.get(ENV_PREFIX + name) or None


def warn_of_unknown_variables(stacklevel: int) -> None:
    """Warn of each ``CASSTORE_*`` variable that means nothing: one misspelt would be obeyed by nobody."""
    for variable in sorted(os.environ):
        name = variable.removeprefix(ENV_PREFIX)
        if name == variable or name in VARIABLES or name.startswith(_OF_TESTS):
            continue
        known = ", ".join(ENV_PREFIX + other for other in VARIABLES)
        said = f"the environment variable {_readable(variable)!r} means nothing to casstore, which knows {known}"
        warnings.warn(said, stacklevel=stacklevel + 1)


def environment_flag(name: str) -> bool | None:
    """A ``CASSTORE_*`` switch: exactly ``true``, ``false``, ``1`` or ``0``."""
    text = environment(name)
    if text is None:
        return None
    if text not in {"true", "false", "1", "0"}:
        raise InvalidInputError(f"{ENV_PREFIX}{name} is {text!r}", hint="use true, false, 1 or 0")
    return text in {"true", "1"}


def crash_point() -> int:
    """``CASSTORE_CRASH_AT=n``: exit at once after the n-th effect of this process; 0 = never. For tests."""
    text = environment("CRASH_AT")
    if text is None:
        return 0
    if not text.isdigit():
        raise InvalidInputError(f"{ENV_PREFIX}CRASH_AT is {text!r}", hint="a whole number")
    return int(text)


def process_id() -> int:
    """This process."""
    return os.getpid()


def home_directories() -> tuple[str, ...]:
    """Homes of the user: the one the environment names, and that of the account."""
    found = [os.environ.get("HOME", "")]
    with suppress(KeyError):  # an account that has only a number, as in containers
        found.append(pwd.getpwuid(os.getuid()).pw_dir)
    return tuple(dict.fromkeys(home for home in found if os.path.isabs(home)))


def boot_id() -> str:
    """Changes when the operating system restarts; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


_NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "lustre", "gpfs", "fuse.")
_OCTAL = pattern(r"\\(0[0-7]{2}|1[0-7]{2})")
"""how blanks in the name of a mount point are written"""


def unwritten_at(fd: int) -> int | None:
    """See `Runtime.quiet`. Asks Linux for a read lease, which it gives only while nobody can write to the file.

    It is handed back at once. Who opens the file for writing in between waits that long, and the notice of that is
    SIGURG, which is ignored unless the host handles it: the default, SIGIO, would end the process.
    """
    try:
        tick = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, AttributeError):  # not Linux, another's file, a file system without leases, a writer
        return None
    return tick


def file_system_of(path: str | Path) -> str:
    """The type of the file system a path is on, as Linux names it; empty where the system does not tell."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    target = os.path.realpath(path)
    for line in mounts:
        _, where, fstype, *_ = line.split(" ")
        if "\\" in where:
            where = _OCTAL.sub(lambda match: chr(int(match[1], 8)), where)
        inside = target == where or target.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, kind = where, fstype
    return kind


@cache
def has_dear_memory() -> bool:
    """True in a virtual machine that returns free memory to its host (free page reporting of virtio's balloon).

    Memory that was free for some seconds must be fetched again page by page then, which takes longer than to fill it.
    """
    with suppress(OSError, ValueError, IndexError):
        for device in Path("/sys/bus/virtio/devices").iterdir():
            if int((device / "device").read_text(), 16) == _BALLOON:
                return (device / "features").read_text()[_PAGE_REPORTING] == "1"
    return False


def jitter() -> float:
    """A number from 0 to 1, to spread contenders out."""
    import random

    return random.random()


def on_network(path: Path) -> bool:
    """True if a path is on a file system that LMDB must not be on (it needs coherent shared memory)."""
    return file_system_of(path).startswith(_NETWORK)


def cache_directory() -> Path:
    """Where views of remote or read-only stores go: ``CASSTORE_CACHE_DIR``, else the user's cache directory."""
    chosen = environment("CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("casstore"))
