"""The world of one seed: time, hosts, processes, the store; and the loop that decides who runs next."""

from __future__ import annotations

import gc
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import greenlet

import casstore.engine
import casstore.index
import casstore.log
import casstore.state
import casstore.view
from casstore.codec import RAW, Buffer, ZstdCodec
from casstore.errors import (
    AlreadyExistsError,
    BackendError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    StoreBusyError,
)
from casstore.format.layout import LOG_PREFIX, PACK_PREFIX, log_seq, pack_of
from casstore.format.segments import decode_body, decode_segment
from casstore.model import Applied, Segment
from casstore.overlay import Tables
from casstore.testing.simulation.conformance import Machine
from casstore.testing.simulation.faults import Countdown, Faults
from casstore.testing.simulation.host import LONGEST_STOP, Host, Process
from casstore.testing.simulation.names import Difference
from casstore.testing.simulation.network import SimStore
from casstore.testing.simulation.operations import OPERATIONS
from casstore.testing.simulation.options import DAY, HOUR, MINUTE, SECOND, OpSpec, Options
from casstore.testing.simulation.oracle import Oracle

START = 4_000_000_000 * SECOND
TICK = SECOND // 50
"""what one step takes, µs"""
STEP_LIMIT = 400_000
REMEMBERED = 60
NEVER_IN_CONFLICT = ("write", "log")
"""operations that no race may make fail: what they rely on is stored again"""

Event = tuple[int, int, str, str, str]
"""step, true time, process, what, about what"""


class RawCodec(ZstdCodec):
    """Stores bytes as they are: contexts of a compressor cost more than everything else here."""

    def encode(self, parts: Sequence[Buffer], plain: Buffer | None = None) -> tuple[int, bytes]:
        """See `Codec.encode`."""
        return RAW, bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


@dataclass(slots=True)
class Result:
    """What became of a seed."""

    seed: int
    check: str = ""
    """the rule that was broken, or nothing"""
    message: str = ""
    steps: int = 0
    operations: int = 0
    segments: int = 0
    promised: int = 0
    simulated: int = 0
    """µs of true time"""
    alarms: int = 0
    """times the library reported damage that was only a race with another collector"""
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)


class World:
    """Everything there is in one seed. One OS thread."""

    def __init__(self, options: Options, ops: Sequence[OpSpec], *, trace: bool = False) -> None:
        self.options = options
        self.config = options.config()
        self.start = self.true = START
        self.steps = 0
        self.main = greenlet.getcurrent()
        self.machine = Machine()
        self.store = SimStore(self)
        self.oracle = Oracle(self)
        self.faults = Faults(options.seed, options.rates)
        self.machine.on_version = self.oracle.on_version
        self.machine.on_purge = self.oracle.on_purge
        self.nodes: list[bytes] = []
        """bytes of some nodes, to be stored as files as well"""
        self.runs: list[str] = []
        """collections that freed something"""
        self.violation: Difference | None = None
        self.alarms = 0
        self.outcomes: Counter[str] = Counter()
        self.events: deque[Event] = deque(maxlen=None if trace else REMEMBERED)
        self.rng = random.Random(f"schedule {options.seed}")
        self.leaps = Countdown(f"leaps {options.seed}", options.leap_every)
        self.changes = Countdown(f"changes {options.seed}", max(1, len(ops) * 25 // options.changes))
        self.lowest = 0.0
        self.lates: list[tuple[int, str, Callable[[], None]]] = []
        self.excess: list[int] = []
        """for each segment: by how much its step of the clock may exceed true time"""
        self.readings: dict[tuple[str, int], int] = {}
        """process and what its clock showed → forward jumps of that clock until then"""
        self.forwards: dict[str, int] = {}
        """writer → forward jumps of its clock when it last committed"""
        self.current: Process | None = None
        self.hosts = [self._host(i) for i in range(options.hosts)]
        self.processes = [
            Process(self, f"p{i}", self.hosts[i % options.hosts], [op for op in ops if op.process == i])
            for i in range(options.processes)
        ]
        for process in self.processes:
            process.priority = self.rng.random()
        self.operations = 0
        self.picks: Callable[[list[Process]], Process] | None = None
        """who runs next, for tests that want one interleaving and no other"""

    def _host(self, number: int) -> Host:
        rng = random.Random(f"host {number} {self.options.seed}")
        offset = rng.randint(-self.options.offset, self.options.offset)
        drift = rng.randint(-self.options.drift, self.options.drift)
        host = Host(f"h{number}", offset, drift)
        if self.options.shared_view:
            host.storage = casstore.index.MemoryIndex(casstore.state.TABLES)
        return host

    # --- what happened

    def event(self, what: str, who: str, about: str = "") -> None:
        """Write down what happens."""
        self.events.append((self.steps, self.true, who, what, about))

    def fail(self, difference: Difference) -> None:
        """The first violation counts."""
        if self.violation is None:
            self.violation = difference
            self.event("VIOLATION", "", str(difference))

    def _judged(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Difference as difference:
            self.fail(difference)
            raise

    def created(self, key: str, data: bytes, process: str) -> None:
        """An object appeared."""
        self._judged(lambda: self._created(key, data, process))

    def _created(self, key: str, data: bytes, process: str) -> None:
        if key.startswith(PACK_PREFIX):
            pack = pack_of(key)
            assert pack is not None
            self.event("put", process, pack.hex()[:8])
            self.machine.put(pack, len(data), process)
        elif key.startswith(LOG_PREFIX) and log_seq(key) is not None:
            segment = self._decode(data)
            self.explain(segment, process)
            self.machine.segment(segment, self.true, process)
            records = [type(record).__name__ for t in segment.transactions for record in t.records]
            self.event("apply", process, f"{segment.seq} {' '.join(records)}")

    def _decode(self, data: bytes) -> Segment:
        raw = decode_segment(data, "a segment")
        transactions = decode_body(raw.body, "a segment")  # `RawCodec` left it as it is
        return Segment(raw.seq, raw.previous, raw.base, raw.packs_since, raw.writer, raw.claimed, transactions)

    def explain(self, segment: Segment, process: str) -> None:
        """Note by how much the step of the safe clock at this segment may exceed the true time since the one before.

        A segment may have waited long between its claim and its place in the log, as its author was stopped: the
        step after it makes up for that.
        """
        if self.machine.log:
            before = self.machine.log[-1]
            passed, waited = self.true - before.true, max(0, before.true - before.claimed)
            if before.writer == segment.writer:
                jumped = self.forward(process, segment) - self.forwards.get(segment.writer, 0)
                excess = jumped + waited + passed * self.options.drift // 1_000_000 + 1
            else:
                excess = min(DAY, max(0, segment.claimed - self.true) + waited)
        else:
            excess = 0
        self.forwards[segment.writer] = self.forward(process, segment)
        self.excess.append(excess)

    def forward(self, process: str, segment: Segment) -> int:
        """How far the author's clock had jumped forward when it was read for a segment."""
        return self.readings.get((process.partition(".")[0], segment.claimed), 0)

    def error_allowed(self, since: int) -> int:
        """By how much the safe clock may have outrun true time since a segment, up to now, µs."""
        stepwise = sum(self.excess[since:])
        if self.options.honest:
            drifted = 2 * (self.true - self.start) * self.options.drift // 1_000_000
            return min(stepwise, 3 * self.options.offset + drifted)
        return stepwise

    def deleting(self, key: str, process: str) -> None:
        """An object is about to go."""
        if key.startswith(PACK_PREFIX):
            pack = pack_of(key)
            assert pack is not None
            self.event("delete", process, pack.hex()[:8])
            self._judged(lambda: self.machine.delete(pack, process))
        elif key.startswith(LOG_PREFIX):
            self._judged(lambda: _never(key, process))

    def acked(self, process: Process, seq: int, numbers: Sequence[int]) -> None:
        """A commit was acknowledged."""
        self.event("ack", process.name, f"{seq} {list(numbers)}")
        self._judged(lambda: self.machine.ack(process.name, seq, numbers))

    def replica(self, segment: Segment, outcomes: Sequence[Applied], tables: Tables) -> None:
        """The running process applied a segment to its view."""
        who = self.current.name if self.current is not None else "?"
        self._judged(lambda: self.machine.replica(who, segment, outcomes, tables))

    def later(self, kind: str, call: Callable[[], None]) -> None:
        """Something happens some steps from now."""
        self.lates.append((self.steps + self.rng.randint(1, 400), kind, call))

    # --- operations

    def operate(self, process: Process, spec: OpSpec) -> None:
        """Let a process do one operation, and judge how it ended. Raises `Difference`."""
        self.operations += 1
        process.faulted = set()
        endings = self.machine.endings
        self.event("begin", process.name, f"{spec.kind} {spec.seed}")
        try:
            OPERATIONS[spec.kind](process, random.Random(spec.seed))
        except Difference as difference:
            self.fail(difference)
            raise
        except BackendError as error:
            self.excuse(process, error)
            outcome = "failed"
        except (IntegrityError, FormatError) as error:
            # Another collector may have been faster than a walk over the trees: an alarm, but no damage.
            alarm = "read-short" not in process.faulted
            if alarm and endings == self.machine.endings:
                self._foreign(spec, error)
            self.alarms += alarm
            outcome = f"alarm {type(error).__name__}" if alarm else "failed"
        except (NotFoundError, AlreadyExistsError, ConflictError, RefusedError) as error:
            if spec.kind in NEVER_IN_CONFLICT and type(error) in {ConflictError, StoreBusyError}:
                self._foreign(spec, error)
            outcome = type(error).__name__
        except Exception as error:  # noqa: BLE001 - any other is a finding
            self._foreign(spec, error)
        else:
            outcome = "done"
        self.outcomes[f"{spec.kind} {outcome}"] += 1
        self.event("end", process.name, outcome)

    def excuse(self, process: Process, error: Exception) -> None:
        """An error of the backend is right only if one was injected, damage only if a read came short."""
        if not (process.faulted if isinstance(error, BackendError) else "read-short" in process.faulted):
            difference = Difference("errors", f"{process.name} got {error!r} although nothing failed")
            self.fail(difference)
            raise difference from error

    def _foreign(self, spec: OpSpec, error: Exception) -> NoReturn:
        difference = Difference("errors", f"{spec.kind} raised {type(error).__name__}: {error}")
        self.fail(difference)
        raise difference from error

    # --- running

    def run(self, finish: Callable[[World], None]) -> Result:
        """Play the seed: safety first, then ``finish``, which checks liveness."""
        with _watched(self):
            try:
                self._safety()
                if self.violation is None:
                    self.faults.on = False
                    for process in self.processes:
                        process.quiet = True
                    finish(self)
            except Difference as difference:
                self.fail(difference)
            finally:
                for process in self.processes:
                    process.kill()
        result = Result(
            self.options.seed,
            steps=self.steps,
            operations=self.operations,
            segments=self.machine.seq,
            promised=self.oracle.promised,
            simulated=self.true - self.start,
            alarms=self.alarms,
            faults=self.faults.injected,
            outcomes=self.outcomes,
            events=list(self.events),
        )
        if self.violation is not None:
            result.check, result.message = self.violation.check, str(self.violation)
        return result

    def _safety(self) -> None:
        for process in self.processes:
            process.start()
        while self.violation is None:
            active = [process for process in self.processes if not process.over]
            if not active and not self.lates:
                return
            self.steps += 1
            if self.steps > STEP_LIMIT:
                raise Difference("liveness", f"no end after {STEP_LIMIT} steps")
            self._pass_time()
            if self.lates:
                self._deliver(everything=not active)
            ready = [process for process in active if process.wake <= self.true]
            if ready:
                process = self._pick(ready)
                if not self._disturb(process):
                    self.current = process
                    process.resume()
            elif active:
                self.true = min(process.wake for process in active)

    def _pass_time(self) -> None:
        self.true += TICK
        if self.leaps.fires():
            self.true += int(MINUTE * (self.options.leap_most / MINUTE) ** self.leaps.rng.random())

    def _deliver(self, *, everything: bool) -> None:
        due = [late for late in self.lates if everything or late[0] <= self.steps]
        if due:
            self.lates = [late for late in self.lates if late not in due]
            for _, kind, call in due:
                self.event("late", "", kind)
                call()

    def _pick(self, ready: list[Process]) -> Process:
        if self.picks is not None:
            return self.picks(ready)
        if len(ready) == 1:
            return ready[0]
        if self.options.schedule == "uniform":
            return ready[int(self.rng.random() * len(ready))]
        chosen = max(ready, key=lambda process: process.priority)
        if self.changes.fires():
            self.lowest -= 1
            chosen.priority = self.lowest
        return chosen

    def _disturb(self, process: Process) -> bool:
        """Crash or stop a process, or set its clock; True if it does not run now."""
        faults = self.faults
        if faults.hits("crash"):
            self.event("crash", process.name)
            process.kill()
            process.wake = self.true + int(faults.choice("crash").expovariate(1 / HOUR))
            process.start()
            return True
        if faults.hits("stop"):
            length = int(MINUTE * (LONGEST_STOP / MINUTE) ** faults.choice("stop").random())
            process.wake = self.true + length
            self.event("stop", process.name, f"{length / HOUR:.1f} h")
            return True
        if faults.hits("jump"):
            rng = faults.choice("jump")
            change = rng.choice((-1, 1)) * int(MINUTE * (30 * DAY / MINUTE) ** rng.random())
            if abs(process.host.offset + change) <= 60 * DAY:
                process.host.offset += change
                process.host.forward += max(0, change)
                self.event("jump", process.host.name, f"{change / HOUR:+.1f} h")
        return False


def _never(key: str, process: str) -> None:
    raise Difference("log", f"{process} deletes {key}")


@contextmanager
def _watched(world: World) -> Iterator[None]:
    """Listen to every replica, share decoded segments, and keep Python's own collector out of it."""
    apply = casstore.state.apply
    segments: dict[bytes, Any] = {}
    bodies: dict[bytes, Any] = {}

    def applied(tables: Tables, segment: Segment, chain: bytes) -> tuple[Applied, ...]:
        outcomes = apply(tables, segment, chain)
        world.replica(segment, outcomes, tables)
        return outcomes

    def open_once(data: bytes, what: str) -> Any:
        found = segments.get(data)
        if found is None:
            found = segments[data] = decode_segment(data, what)
        return found

    def decode_once(body: bytes, what: str) -> Any:
        found = bodies.get(body)
        if found is None:
            found = bodies[body] = decode_body(body, what)
        return found

    changes: list[tuple[Any, str, Any]] = [
        (casstore.view, "apply", applied),
        (casstore.log, "decode_segment", open_once),
        (casstore.log, "decode_body", decode_once),
        (casstore.engine, "ZstdCodec", RawCodec),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        if collecting:
            gc.enable()
