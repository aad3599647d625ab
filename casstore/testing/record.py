"""Records what a process does to its files, or makes one of these effects fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TypeVar

from casstore.backend.osops import OsOps, StrPath

T = TypeVar("T")

ACK = "ack"
FILE_OPS = frozenset({"create", "write", "fsync", "link", "rename", "unlink", "mkdir", "fsync_dir"})


@dataclass(frozen=True, slots=True)
class Effect:
    """Something that happened: ``path`` and ``target`` are relative to the recorder's root (``.``: the root).

    ``op`` is ``create``, ``write`` (``data``: what was written), ``fsync``, ``link`` (``path`` → ``target``),
    ``rename``, ``unlink``, ``mkdir``, ``fsync_dir``; ``ack`` (`RecordingOps.mark`); or what `OsOps.effect` was
    told. Paths outside the root are absolute.
    """

    op: str
    path: str = ""
    target: str = ""
    data: bytes = b""


class RecordingOps(OsOps):
    """`OsOps` that keeps a trace. Effects happen one at a time, in the order of the trace.

    With ``fail_at`` the n-th attempt fails with ``error`` (an errno) before it happens, or after it has
    (``after=True``: a lost answer), and is left out or recorded accordingly; with ``sticky`` so do all later ones.
    ``only`` restricts failing, and the counting of attempts, to some ops.
    """

    def __init__(
        self,
        root: Path,
        *,
        fail_at: int = 0,
        error: int = 0,
        after: bool = False,
        sticky: bool = False,
        only: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._root = os.path.abspath(root)
        self._fail_at = fail_at
        self._error = error
        self._after = after
        self._sticky = sticky
        self._only = frozenset(only)
        self._lock = RLock()
        self.trace: list[Effect] = []
        self.attempts = 0
        self.failed: list[Effect] = []
        """effects that were made to fail"""

    def mark(self, name: str) -> None:
        """Record that something was acknowledged: an ``ack``, not an effect."""
        with self._lock:
            self.trace.append(Effect(ACK, name))

    def arm(self, nth: int, error: int, *, after: bool = False, sticky: bool = False) -> None:
        """Let the nth attempt from now on fail, as ``fail_at`` does; 0: no more failures."""
        with self._lock:
            self._fail_at = self.attempts + nth if nth else 0
            self._error, self._after, self._sticky = error, after, sticky

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        with self._lock:
            where = self._relative(path) if op in FILE_OPS else os.fspath(path)
            effect = Effect(op, where, self._relative(target) if target else "")
            fails = self._attempt(op)
            if fails and not self._after:
                self.failed.append(effect)
                raise OSError(self._error, os.strerror(self._error), os.fspath(path))
            result = super()._run(op, path, call)
            if op == "write":
                assert isinstance(result, int)
                effect = Effect(op, where, data=b"".join(data)[:result])
            self.trace.append(effect)
            if fails:
                self.failed.append(effect)
                if op == "create":
                    assert isinstance(result, int)
                    os.close(result)  # nobody learns its number, so that it would be open, and locked, for ever
                raise OSError(self._error, os.strerror(self._error), os.fspath(path))
            return result

    def _attempt(self, op: str) -> bool:
        """Count an attempt; whether it is to fail."""
        if self._only and op not in self._only:
            return False
        self.attempts += 1
        return self.attempts == self._fail_at or (self._sticky and 0 < self._fail_at < self.attempts)

    def _relative(self, path: StrPath) -> str:
        full = os.path.abspath(path)
        inside = full == self._root or full.startswith(f"{self._root}/")
        return os.path.relpath(full, self._root) if inside else full
