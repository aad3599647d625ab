"""2,000 seeds of 200 operations: several hosts, a faulty store, crashes, stops, wrong clocks; I1-I5 at every step."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="greenlet is a development dependency: scripts/setup")

from casstore.testing.simulation.runner import case_of, describe, play

SEEDS = 2000
BATCH = 50
OPERATIONS = 200
REGRESS = Path(__file__).parents[1] / "regress_seeds.txt"


def regressions() -> list[tuple[int, int]]:
    lines = (line.split("#")[0].split() for line in REGRESS.read_text(encoding="utf-8").splitlines())
    return [(int(line[0]), int(line[1])) for line in lines if line]


@pytest.mark.parametrize(("seed", "operations"), regressions())
def test_what_failed_once_stays_right(seed: int, operations: int) -> None:
    case = case_of(seed, operations)
    result = play(case)
    assert not result.check, describe(case, result)


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_nothing_is_lost_and_no_garbage_stays(first: int) -> None:
    promised = segments = 0
    for seed in range(first, first + BATCH):
        case = case_of(seed, OPERATIONS)
        result = play(case)
        assert not result.check, describe(case, result)
        promised += result.promised
        segments += result.segments
    # A simulation in which nothing happens would pass as well.
    assert promised > BATCH * OPERATIONS // 10
    assert segments > BATCH * OPERATIONS // 4
