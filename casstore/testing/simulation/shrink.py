"""A smaller case that breaks the same rule: fewer faults, fewer processes, fewer operations (ddmin)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from casstore.testing.simulation.runner import Case, play

T = TypeVar("T")
RUNS = 400


class _Budget:
    def __init__(self, case: Case, check: str, runs: int) -> None:
        self.check, self.left = check, runs
        self.best = case

    def breaks(self, case: Case) -> bool:
        """Whether a smaller case breaks the same rule; if so it is the best so far."""
        if self.left <= 0:
            return False
        self.left -= 1
        if play(case).check != self.check:
            return False
        self.best = case
        return True


def shrink(case: Case, runs: int = RUNS) -> Case:
    """The smallest case found in some runs. A case that breaks no rule comes back as it is."""
    check = play(case).check
    if not check:
        return case
    budget = _Budget(case, check, runs)
    for fault in list(case.options.rates):
        budget.breaks(replace(budget.best, options=budget.best.options.without(fault)))
    for process in range(case.options.processes):
        budget.breaks(replace(budget.best, ops=tuple(op for op in budget.best.ops if op.process != process)))
    ddmin(budget.best.ops, lambda ops: budget.breaks(replace(budget.best, ops=tuple(ops))))
    for simpler in ({"shared_view": False}, {"schedule": "uniform"}, {"drift": 0}, {"offset": 0}):
        budget.breaks(replace(budget.best, options=replace(budget.best.options, **simpler)))
    return budget.best


def ddmin(items: Sequence[T], breaks: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """Leave out ever smaller parts as long as what is left still breaks (Zeller, Hildebrandt 2002)."""
    parts = 2
    while len(items) > 1:
        size = max(1, len(items) // parts)
        for at in range(0, len(items), size):
            rest = [*items[:at], *items[at + size :]]
            if rest and breaks(rest):
                items, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(items), parts * 2)
    return items
