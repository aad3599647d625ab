"""Bugs that were put in on purpose are found, each within some seeds."""

from __future__ import annotations

import pytest

pytest.importorskip("greenlet", reason="greenlet is a development dependency: scripts/setup")

from casstore.testing.simulation.mutations import MUTATIONS, applied
from casstore.testing.simulation.runner import case_of, play

OPERATIONS = 120
BOUND = 100
"""seeds within which any of them must be found"""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_seeded_bug_is_caught(name: str) -> None:
    with applied(MUTATIONS[name]):
        caught = next((seed for seed in range(BOUND) if play(case_of(seed, OPERATIONS)).check), None)
    assert caught is not None, f"{MUTATIONS[name].says}: not found in {BOUND} seeds"


def test_a_bug_is_gone_when_its_context_ends() -> None:
    with applied(MUTATIONS["cascade"]):
        assert play(case_of(0, OPERATIONS)).check
    assert not play(case_of(0, OPERATIONS)).check
