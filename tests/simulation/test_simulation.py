"""The simulation itself: it is deterministic, kills for good, fails as told, and makes failures smaller."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("greenlet", reason="greenlet is a development dependency: scripts/setup")

from casstore.errors import TransientBackendError
from casstore.format.layout import log_key
from casstore.testing.simulation.finish import finish
from casstore.testing.simulation.host import Process
from casstore.testing.simulation.mutations import MUTATIONS, applied
from casstore.testing.simulation.names import COMMITTED, PURGED
from casstore.testing.simulation.network import Connection
from casstore.testing.simulation.operations import OPERATIONS
from casstore.testing.simulation.options import DAY, FAULTS, HOST_FAULTS, HOUR, OpSpec, draw
from casstore.testing.simulation.runner import Case, case_of, play
from casstore.testing.simulation.shrink import ddmin, shrink
from casstore.testing.simulation.world import World


def calm(processes: int = 2, **changes: object) -> Case:
    """A case without faults, in which time passes as told."""
    options = replace(
        draw(0),
        processes=processes,
        hosts=processes,
        shared_view=False,
        schedule="uniform",
        leap_every=10**9,
        offset=0,
        drift=0,
        collections=1,
        node_bytes=128,
        rates={},
    )
    return Case(replace(options, **changes), ())  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, 7, 12])
def test_a_seed_gives_the_same_events_every_time(seed: int) -> None:
    first, second = (play(case_of(seed), trace=True) for _ in range(2))
    assert first.events == second.events
    assert len(first.events) > 1000


def test_a_seed_gives_the_same_events_whatever_order_sets_have() -> None:
    program = (
        "import hashlib; from casstore.testing.simulation.runner import *\n"
        "print(hashlib.sha256(repr([play(case_of(s), trace=True).events for s in range(4)]).encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(seen) == 1


def test_seeds_differ() -> None:
    digests = {hashlib.sha256(repr(play(case_of(s, 30), trace=True).events).encode()).digest() for s in range(5)}
    assert len(digests) == 5


def test_every_kind_of_fault_and_of_operation_comes_about() -> None:
    faults = {"stat-before"}  # hardly anything is looked at by itself: below
    kinds: set[str] = set()
    for seed in range(80):
        result = play(case_of(seed, 100))
        faults |= set(result.faults)
        kinds |= {outcome.removesuffix(" done") for outcome in result.outcomes if outcome.endswith(" done")}
        if faults == set(FAULTS) and kinds == set(OPERATIONS):
            return
    assert faults == set(FAULTS)
    assert kinds == set(OPERATIONS)


def test_looking_at_one_object_fails_too() -> None:
    world = World(calm(rates={"stat-before": 1}).options, [OpSpec(0, "write", 1)])
    failed = 0

    def look(_: World) -> None:
        nonlocal failed
        connection = Connection(world.processes[0])
        assert connection.stat(log_key(1)).size  # nothing fails any more
        world.faults.on = True
        for _try in range(20):
            try:
                connection.stat(log_key(1))
            except TransientBackendError:
                failed += 1

    assert not world.run(look).check
    assert failed
    assert world.faults.injected["stat-before"] == failed


def test_the_dead_have_no_effect() -> None:
    case = calm(1)
    world = World(case.options, [OpSpec(0, "write", 5)])
    steps = 0
    objects: list[int] = []

    def kill(ready: list[Process]) -> Process:
        nonlocal steps
        steps += 1
        if steps == 6:
            process = ready[0]
            before = len(world.store.history)
            process.kill()
            assert len(world.store.history) == before
            objects.append(before)
            process.start()
        return ready[0]

    world.picks = kill
    assert not world.run(finish).check
    assert objects


@pytest.mark.parametrize("moment", range(1, 24))
def test_a_writer_that_slept_for_weeks_commits_or_fails_cleanly(moment: int) -> None:
    """Stopped at any moment of its commit; five collections without grace meanwhile."""
    setup = [OpSpec(1, "write", n) for n in range(4)]
    after = [OpSpec(1, kind, n) for n, kind in enumerate(("trash", "trash", "trash", "purge", "purge", "purge"))]
    collections = [OpSpec(1, "compact", n) for n in range(5)]
    world = World(calm().options, [*setup, *after, *collections, *(OpSpec(0, "write", n) for n in range(3))])
    taken = 0

    def picks(ready: list[Process]) -> Process:
        nonlocal taken
        sleeper, other = world.processes
        if world.operations > len(setup) and sleeper in ready and taken < moment:
            taken += 1
            if taken == moment:
                world.true += 21 * DAY
            return sleeper
        return other if other in ready else sleeper

    world.picks = picks
    result = world.run(finish)
    assert not result.check, result.message
    assert taken == moment
    assert result.outcomes["write done"] >= 4


@pytest.mark.parametrize("moment", range(1, 60, 3))
def test_a_collector_killed_or_overtaken_leaves_nothing_to_repair(moment: int) -> None:
    ops = [OpSpec(1, "write", n) for n in range(5)]
    ops += [OpSpec(1, kind, n) for n, kind in enumerate(("trash", "trash", "purge", "purge"))]
    ops += [OpSpec(0, "compact", 1), OpSpec(1, "compact", 2), OpSpec(1, "write", 9)]
    world = World(calm().options, ops)
    taken = 0

    def picks(ready: list[Process]) -> Process:
        nonlocal taken
        first, second = world.processes
        if world.operations >= 9 and first in ready and taken < moment:
            taken += 1
            if taken == moment and moment % 2:
                first.kill()
                first.start()
            return first
        return second if second in ready else first

    world.picks = picks
    result = world.run(finish)
    assert not result.check, result.message


def test_a_clock_ahead_by_a_month_does_not_empty_the_trash() -> None:
    """It follows another writer, so it gains a day at most each time."""
    case = calm(trash_days=30.0)
    ops = [OpSpec(0, "write", 1), OpSpec(0, "trash", 2), OpSpec(1, "gc", 5), OpSpec(0, "gc", 6), OpSpec(1, "gc", 7)]
    world = World(case.options, ops)
    world.hosts[1].offset = 31 * DAY

    def picks(ready: list[Process]) -> Process:
        first, second = world.processes
        turn = first if world.operations < 2 or world.operations == 3 else second
        return turn if turn in ready else ready[0]

    world.picks = picks
    result = world.run(lambda _: None)
    assert not result.check, result.message
    states = {version.state for version in world.machine.versions.values()}
    assert PURGED not in states
    assert COMMITTED not in states or len(states) > 1


def test_a_failure_is_made_smaller() -> None:
    case = case_of(0, 120)
    with applied(MUTATIONS["cascade"]):
        check = play(case).check
        least = shrink(case, runs=150)
        assert play(least).check == check
    assert len(least.ops) < 12
    assert len(least.options.rates) <= len(case.options.rates)
    assert not play(least).check


def test_ddmin_finds_what_matters() -> None:
    assert sorted(ddmin(range(100), lambda part: {13, 57} <= set(part))) == [13, 57]


def test_host_faults_are_faults_of_hosts() -> None:
    case = case_of(3)
    for fault in HOST_FAULTS:
        assert fault not in case.options.without(fault).rates
    assert HOUR < DAY
