"""Functions of a test file in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Start = Callable[..., subprocess.Popen[str]]
"""starts a function of the file, by its name, with arguments as words"""


@contextmanager
def workers(file: str) -> Iterator[Start]:
    """Starts workers, and sees to it that none is left."""
    started: list[subprocess.Popen[str]] = []

    def start(worker: Callable[..., None], *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", file, worker.__name__, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def result(process: subprocess.Popen[str]) -> list[list[str]]:
    """The lines a worker printed, in words; it must have ended well."""
    out, error = process.communicate()
    assert process.returncode == 0, error
    return [line.split() for line in out.splitlines()]
