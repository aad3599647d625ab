"""Which of an algorithm's implementations runs: the fastest that this machine has, or the one that is demanded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def cut_all(data: Buffer, maximum: int, first_cut: Callable[[memoryview], int], *, final: bool) -> list[int]:
    """The cuts of a buffer, one after the other.

    ``first_cut`` gives the length of the first chunk in at most ``maximum`` bytes, or 0 when more data could still
    decide. Raises ``TypeError`` for what is no buffer, ``BufferError`` for one with gaps.
    """
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise BufferError("the buffer is not contiguous")
        size = view.nbytes
        if not size:
            return []
        ends: list[int] = []
        start = 0
        with view.cast("B") as octets:
            while start < size:
                length = first_cut(octets[start : start + maximum])
                if not length:
                    if not final:
                        break
                    length = size - start
                start += length
                ends.append(start)
    return ends


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
