"""Guards I1-I5 in any order of steps: the state machine of `casstore.testing.machine` against its oracle.

``HYPOTHESIS_PROFILE``: ``dev`` (seconds, the same steps every time), ``ci`` (about a minute), ``nightly``.
"""

import os

import pytest
from hypothesis import HealthCheck, Verbosity, settings

from casstore.testing.machine import StoreMachine

pytestmark = pytest.mark.timeout(0)  # hypothesis ends by itself; a failure takes its time to be made small

COMMON = settings(
    deadline=None,
    database=None,
    print_blob=True,
    verbosity=Verbosity.normal,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
PROFILES = {
    "dev": settings(COMMON, max_examples=12, stateful_step_count=30, derandomize=True),
    "ci": settings(COMMON, max_examples=60, stateful_step_count=50),
    "nightly": settings(COMMON, max_examples=20_000, stateful_step_count=60),
}

TestStore = StoreMachine.TestCase
TestStore.settings = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "dev")]
