"""Which of an algorithm's implementations runs: the fastest that this machine has, or the one that is demanded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

from casstore.config import environment
from casstore.digest import Buffer
from casstore.errors import InvalidInputError
from casstore.values import dataclass

Boundaries = Callable[[Buffer, int, int, int, bool], list[int]]

NAMES = ("avx2", "neon", "c", "python")
"""every kernel there is for some algorithm on some machine"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of an algorithm: its name, one of `NAMES`, and the function that finds the cuts."""

    name: str
    boundaries: Boundaries


def compiled(name: str) -> ModuleType | None:
    """An extension module of this package; None where it was not built."""
    try:
        # Not an import statement: import-linter cannot see extension modules and takes it for one of the whole package.
        return importlib.import_module(f"casstore.chunker.{name}")
    except ImportError:  # no compiler when casstore was installed
        return None


def choose(algorithm: str, kernels: Mapping[str, Boundaries]) -> Kernel:
    """The first of an algorithm's kernels, unless ``CASSTORE_CHUNKER_KERNEL`` names one.

    That is a demand: `InvalidInputError` if there is no such kernel, here or of this algorithm.
    """
    demand = environment("CHUNKER_KERNEL")
    if demand is None:
        demand = next(iter(kernels))
    if demand not in NAMES:
        raise InvalidInputError(f"CASSTORE_CHUNKER_KERNEL is {demand!r}", hint=f"one of {', '.join(NAMES)}")
    if demand not in kernels:
        raise InvalidInputError(
            f"CASSTORE_CHUNKER_KERNEL demands the {demand} kernel, and {algorithm} has none here",
            hint=f"it has {', '.join(kernels)}; reinstall casstore with a C compiler, or unset the variable",
        )
    return Kernel(demand, kernels[demand])
