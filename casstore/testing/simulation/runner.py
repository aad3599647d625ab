"""Play seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from casstore.testing.simulation.finish import finish
from casstore.testing.simulation.operations import WEIGHTS
from casstore.testing.simulation.options import OpSpec, Options, draw, plan
from casstore.testing.simulation.world import Result, World


@dataclass(frozen=True, slots=True)
class Case:
    """A seed's options and operations, or what a shrinker left of them."""

    options: Options
    ops: tuple[OpSpec, ...]


def case_of(seed: int, operations: int = 200) -> Case:
    """The case a seed stands for."""
    options = draw(seed)
    return Case(options, plan(options, WEIGHTS, operations))


def play(case: Case, *, trace: bool = False) -> Result:
    """Run one case. The same case gives the same events, always."""
    return World(case.options, case.ops, trace=trace).run(finish)


def play_seed(seed: int, operations: int = 200, *, trace: bool = False) -> Result:
    """Run one seed."""
    return play(case_of(seed, operations), trace=trace)


def describe(case: Case, result: Result, *, events: int = 40) -> str:
    """A failure, for people: the seed, how to replay it, everything that was on, and what happened last."""
    options = case.options
    lines = [
        f"seed {options.seed} broke {result.message}" if result.check else f"seed {options.seed} is right",
        f"replay: scripts/simulate --seed {options.seed} --ops {len(case.ops)} --trace",
        f"options: {options}",
        f"{result.operations} operations, {result.segments} segments, {result.steps} steps",
        *(format_event(event) for event in result.events[-events:]),
    ]
    return "\n".join(lines)


def format_event(event: tuple[int, int, str, str, str]) -> str:
    """One line of a trace."""
    step, true, who, what, about = event
    return f"{step:7} {true / 1_000_000:17.2f} {who:10} {what:10} {about}"


def summary(results: Sequence[Result]) -> str:
    """Counts over many results."""
    faults = sum((result.faults for result in results), start=type(results[0].faults)()) if results else {}
    return ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
