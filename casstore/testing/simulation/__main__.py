"""``python -m casstore.testing.simulation``: play one seed or many. See ``scripts/simulate --help``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from casstore.testing.simulation.mutations import MUTATIONS, applied
from casstore.testing.simulation.options import FAULTS
from casstore.testing.simulation.runner import case_of, describe, format_event, play
from casstore.testing.simulation.shrink import shrink
from casstore.testing.simulation.world import Result

BATCH = 10
MOST_SEEDS = 200
"""after which a bug that was put in counts as missed"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one, and say what happened")
    parser.add_argument("--seeds", help="A-B: play all of these, B not included")
    parser.add_argument("--ops", type=int, default=200, help="operations a seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes to use")
    parser.add_argument("--trace", action="store_true", help="with --seed: every event")
    parser.add_argument("--shrink", action="store_true", help="with --seed: look for a smaller case")
    parser.add_argument("--bugs", action="store_true", help="put each known bug in and print what finds it, as a table")
    given = parser.parse_args(arguments)
    if given.bugs:
        return _bugs(given.ops)
    if given.seed is not None:
        return _one(given.seed, given.ops, trace=given.trace, smaller=given.shrink)
    if given.seeds is None:
        parser.error("--seed or --seeds")
    first, _, last = given.seeds.partition("-")
    return _many(int(first), int(last), given.ops, given.jobs)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _one(seed: int, ops: int, *, trace: bool, smaller: bool) -> int:
    case = case_of(seed, ops)
    result = play(case, trace=trace)
    if trace:
        for event in result.events:
            _say(format_event(event))
    _say(describe(case, result, events=0 if trace else 40))
    if smaller and result.check:
        least = shrink(case)
        _say(f"\nwith {len(least.ops)} operations and faults {sorted(least.options.rates)}:")
        for op in least.ops:
            _say(f"  {op}")
        _say(describe(least, play(least, trace=True), events=200))
    return bool(result.check)


def _bugs(ops: int) -> int:
    _say("| bug | check that caught it | after seeds |\n|---|---|---|")
    missed = 0
    for name, mutation in MUTATIONS.items():
        with applied(mutation):
            results = (play(case_of(seed, ops)) for seed in range(MOST_SEEDS))
            number, found = next(((n, r) for n, r in enumerate(results, 1) if r.check), (0, None))
        missed += found is None
        _say(f"| {mutation.says} (`{name}`) | {found.check if found else '**none**'} | {number or '-'} |")
    return bool(missed)


def _batch(seeds: range, ops: int) -> tuple[float, list[Result]]:
    began = time.process_time()
    results = []
    for seed in seeds:
        result = play(case_of(seed, ops))
        result.events = result.events[-20:] if result.check else []
        results.append(result)
    return time.process_time() - began, results


def _many(first: int, last: int, ops: int, jobs: int) -> int:
    started = time.monotonic()
    batches = [range(at, min(at + BATCH, last)) for at in range(first, last, BATCH)]
    seeds = operations = steps = segments = promised = alarms = simulated = 0
    core = 0.0
    faults: Counter[str] = Counter()
    broken: list[Result] = []
    spoken = started
    with ProcessPoolExecutor(jobs) as pool:
        for spent, results in pool.map(partial(_batch, ops=ops), batches):
            core += spent
            for result in results:
                seeds += 1
                operations += result.operations
                steps += result.steps
                segments += result.segments
                promised += result.promised
                alarms += result.alarms
                simulated += result.simulated
                faults += result.faults
                if result.alarms:
                    _say(f"seed {result.seed}: {result.alarms} false alarms of damage")
                if result.check:
                    broken.append(result)
                    _say(f"seed {result.seed}: {result.message}")
            if time.monotonic() - spoken > 30:
                spoken = time.monotonic()
                _say(f"{seeds} seeds, {operations} operations, {len(broken)} violations, {spoken - started:.0f} s")
    took = time.monotonic() - started
    _say(
        f"{seeds} seeds x {ops}: {operations} operations, {steps} steps, {segments} segments, {promised} versions "
        f"promised, {simulated / 31_557_600_000_000:.1f} simulated years, {alarms} false alarms, {took:.0f} s, "
        f"{1000 * core / max(1, operations):.2f} ms of a core an operation"
    )
    _say("faults: " + ", ".join(f"{kind} {faults[kind]}" for kind in FAULTS if faults[kind]))
    _say(f"{len(broken)} violations" + (f": seeds {' '.join(str(r.seed) for r in broken)}" if broken else ""))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
