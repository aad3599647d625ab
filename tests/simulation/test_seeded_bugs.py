"""Bugs that were put in on purpose are found, each within some seeds."""

from __future__ import annotations

import pytest

pytest.importorskip("greenlet", reason="greenlet is a development dependency: scripts/setup")

from casstore.testing.simulation.mutations import MUTATIONS, applied
from casstore.testing.simulation.runner import case_of, play

OPERATIONS = 120
BOUND = 60
"""seeds within which any of them must be found"""


FOUND = {"view-goes-back": 24, "logged-then-sought": 22}
"""bugs the simulation found in earnest, and a seed (of 200 operations) that did: they need more luck than others"""


@pytest.mark.parametrize("name", [name for name in MUTATIONS if name not in FOUND])
def test_a_seeded_bug_is_caught(name: str) -> None:
    with applied(MUTATIONS[name]):
        caught = next((seed for seed in range(BOUND) if play(case_of(seed, OPERATIONS)).check), None)
    assert caught is not None, f"{MUTATIONS[name].says}: not found in {BOUND} seeds"


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_in_earnest_is_found_again(name: str) -> None:
    with applied(MUTATIONS[name]):
        assert play(case_of(FOUND[name], 200)).check


def test_a_bug_is_gone_when_its_context_ends() -> None:
    with applied(MUTATIONS["cascade"]):
        assert play(case_of(0, OPERATIONS)).check
    assert not play(case_of(0, OPERATIONS)).check
