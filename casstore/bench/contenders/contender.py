"""What the runner asks of a program that keeps versions of a directory: the commands for each step.

A driver only says which commands; the runner runs them, each a process of its own, and measures. ``place`` is a
directory of the contender's own, empty at first; ``tree`` is the directory that all contenders read, which holds
version ``number`` (0, 1, …) when they are asked for it.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from casstore.bench.measuring import Command


class Contender(ABC):
    """A program with its flags. The defaults are those of one that cannot do the step."""

    name: str
    """such as ``restic`` or ``restic-small``"""
    tool: str
    """the program; variants with other flags share it"""
    flags: str
    """for readers: what is set beyond the program's defaults"""
    durable: str
    """what the program does so that what it stored survives a power failure: yes, partly or no, and why"""
    deduplicates: bool = True
    """False: a floor, which stores every version whole"""

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        return ""

    def version(self) -> str:
        """What it says about itself."""
        return ""

    def begin(self, place: Path) -> Sequence[Command]:
        """Make a new store; not measured."""
        return ()

    @abstractmethod
    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Store the tree as a version."""

    def before_reading_again(self, place: Path) -> None:
        """Make it forget what it knows of the files by their times; not measured."""
        return

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Take in the unchanged tree once more, reading every byte. None: it has no such thing."""
        return ()

    @abstractmethod
    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """Write a version, the latest, into a target that does not exist."""

    def before_restoring(self, place: Path, target: Path) -> None:
        """Make room for it; not measured."""
        return

    def restored(self, place: Path, target: Path) -> Path:
        """Where `restore` put it."""
        return target

    def optimize(self, place: Path) -> Sequence[Command]:
        """Make the store smaller, at leisure. None: it has no such thing. Run on a copy of the store."""
        return ()

    def collect(self, place: Path, number: int) -> Sequence[Command]:
        """Delete all versions but the latest, and free their bytes. None: it has no such thing."""
        return ()

    def kept(self, place: Path) -> Sequence[Path]:
        """What has to be kept for the versions to be there."""
        return (place,)

    def replaceable(self, place: Path) -> Sequence[Path]:
        """What of that could be made again from the rest: indexes and caches inside the store."""
        return ()

    def workspace(self, place: Path) -> Path | None:
        """A copy of the tree of its own, if it can read no other; the runner keeps it as the tree is."""
        return None


def program(name: str, directory: Path | None = None) -> str:
    """The path of a program: in a directory, else where the shell finds it; empty if it is nowhere."""
    if directory is not None and (found := shutil.which(name, path=str(directory))):
        return found
    return shutil.which(name) or ""


def not_installed(name: str) -> str:
    """Why a contender is missing."""
    return f"{name} is not installed (scripts/rivals installs all)" if not program(name) else ""
