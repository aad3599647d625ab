"""What a whole process costs, what a directory occupies, and which machine this is."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from casstore.config import file_system_of

_LAUNCHER = str(Path(__file__).with_name("launch.py"))
_BLOCK = 512
_KIB = 1024
_IDLE, _PATIENCE, _POLL = 0.1, 10.0, 0.01
"""seconds: without requests until disks are idle, to wait for that at most, between two looks"""
_IN_FLIGHT = 11
"""column of /proc/diskstats"""


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run, in a directory, with variables besides the environment of this process."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None

    def text(self) -> str:
        """The same for a shell."""
        words = [*(f"{name}={shlex.quote(value)}" for name, value in self.env), shlex.join(self.argv)]
        there = f"cd {shlex.quote(self.cwd)} && " if self.cwd else ""
        return there + " ".join(words)


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes cost, one after another: seconds add up, the peak is that of the largest process (bytes)."""

    wall: float = 0.0
    user: float = 0.0
    system: float = 0.0
    peak: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.wall + other.wall, self.user + other.user, self.system + other.system, max(self.peak, other.peak)
        )


class CommandFailed(Exception):
    """A program ended with another code than 0; the message holds the last that it said."""


class TookTooLong(Exception):
    """A program was stopped because its time was up."""


def measure(command: Command, *, limit: float | None = None) -> Usage:
    """Run a program to its end, in a process group of its own, with no input.

    Whatever ends this call early (the limit in seconds, Ctrl-C) ends the program and its descendants, too. Raises
    `CommandFailed`, `TookTooLong`, `FileNotFoundError` where the launcher cannot be started.
    """
    with tempfile.TemporaryFile() as words:  # not a pipe, which a program left in the background would hold open
        line = _launch(command, limit, words)
        words.seek(0)
        said = words.read().decode(errors="replace")
    code, wall, user, system, peak = line.split() if line else ("127", "0", "0", "0", "0")
    if code != "0":
        raise CommandFailed(f"{command.text()} ended with {code}: {' / '.join(said.strip().splitlines()[-3:])}")
    return Usage(float(wall), float(user), float(system), int(peak) * _KIB)


def _launch(command: Command, limit: float | None, words: IO[bytes]) -> str:
    """The line that the launcher writes; empty if it could not start the program. ``words``: what the program says."""
    reading, writing = os.pipe()
    variables = [f"{name}={value}" for name, value in command.env]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _LAUNCHER, str(writing), *variables, "--", *command.argv],
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            pass_fds=(writing,),
            start_new_session=True,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        raise TookTooLong(f"stopped after {limit:g} s: {command.text()}") from None
    finally:
        # Also when it ended by itself: what it left running would disturb the next one.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with open(reading, encoding="ascii") as result:
            line = result.read()
    return line


def measure_all(commands: Sequence[Command], *, limit: float | None = None) -> Usage:
    """Several programs, each a process of its own; the limit is for all of them together."""
    total = Usage()
    for command in commands:
        total += measure(command, limit=None if limit is None else max(0.1, limit - total.wall))
    return total


def said_by(command: Command, *, seconds: float = 60) -> str:
    """The first line that a program prints, such as its version; empty if it has nothing to say."""
    try:
        done = subprocess.run(
            ["/usr/bin/env", *(f"{name}={value}" for name, value in command.env), *command.argv],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            cwd=command.cwd,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter((done.stdout or done.stderr).splitlines()), "").strip()


# --- sizes and caches


@dataclass(frozen=True, slots=True)
class Size:
    """What a directory occupies: bytes as ``du -sb`` counts them, and bytes of blocks set aside on the disk."""

    apparent: int = 0
    allocated: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.apparent + other.apparent, self.allocated + other.allocated)

    def __sub__(self, other: Size) -> Size:
        return Size(self.apparent - other.apparent, self.allocated - other.allocated)


def occupied(paths: Iterable[Path]) -> Size:
    """The size of some trees with their directories; a file with several names counts once."""
    apparent = blocks = 0
    seen: set[tuple[int, int]] = set()
    for path in paths:
        waiting = [str(path)] if os.path.lexists(path) else []
        while waiting:
            name = waiting.pop()
            status = os.lstat(name)
            if status.st_nlink > 1 and not os.path.isdir(name):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            apparent += status.st_size
            blocks += status.st_blocks
            if os.path.isdir(name) and not os.path.islink(name):
                with os.scandir(name) as entries:
                    waiting.extend(entry.path for entry in entries)
    return Size(apparent, blocks * _BLOCK)


def settle() -> None:
    """Write out what the step before left behind, and let the disks come to rest: the next one does not pay for it."""
    os.sync()
    wait_until_idle()


def wait_until_idle(
    counters: str = "/proc/diskstats",
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until no block device of the machine has had requests in flight for a while (`_IDLE`, `_PATIENCE`).

    Reads ahead that a program asked for go on after its end. Returns at once where the kernel does not count them.
    """
    begun = quiet_since = clock()
    while (requests := requests_in_flight(counters)) is not None:
        now = clock()
        if requests:
            quiet_since = now
        if now - quiet_since >= _IDLE or now - begun >= _PATIENCE:
            return
        sleep(_POLL)


def requests_in_flight(counters: str) -> int | None:
    """Of all block devices, from a file as ``/proc/diskstats``; None if there is none, or none that makes sense."""
    try:
        with open(counters, encoding="ascii") as lines:
            return sum(int(line.split()[_IN_FLIGHT]) for line in lines)
    except (OSError, ValueError, IndexError):
        return None


def forget_cached(paths: Iterable[Path], switch: str = "/proc/sys/vm/drop_caches") -> str:
    """Drop what the page cache holds of some trees, which must have been written out; says by which means.

    As root the caches of the whole machine are dropped, names included; otherwise file by file, and names stay.
    """
    with suppress(OSError):
        with open(switch, "r+", encoding="ascii") as file:
            file.write("3")
        return "drop_caches"
    for path in paths:
        for top, _, files in os.walk(path):
            for name in files:
                with suppress(OSError):
                    descriptor = os.open(os.path.join(top, name), os.O_RDONLY | os.O_NOFOLLOW)
                    try:
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    finally:
                        os.close(descriptor)
    return "posix_fadvise"


# --- the machine


def machine(work: Path) -> dict[str, object]:
    """Where this runs."""
    return {
        "cpu": _line("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system_of(work),
        "python": platform.python_version(),
    }


def load() -> float:
    """Processes that want to run, on average of the last minute."""
    return round(os.getloadavg()[0], 2)


def seconds() -> float:
    """A clock to take differences of."""
    return time.perf_counter()


def rest(duration: float) -> None:
    """Do nothing for some seconds."""
    time.sleep(duration)


def _line(path: str, name: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return platform.processor() or "unknown"
