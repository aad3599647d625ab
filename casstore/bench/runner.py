"""The same work for each contender in one run: by turns within each round, each step a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from casstore.bench.contenders import Contender
from casstore.bench.corpora import Corpus
from casstore.bench.measuring import (
    Command,
    CommandFailed,
    Size,
    TookTooLong,
    Usage,
    forget_cached,
    measure_all,
    occupied,
    rest,
    settle,
)
from casstore.bench.syncs import can_count, count_syncs, sample_tree
from casstore.bench.trees import Changes, Extent, apply, changes, copy_tree, differences, extent, remove
from casstore.errors import BackendError, InvalidInputError

STEPS = ("first", "next", "reread", "rest", "only", "restore", "optimize", "collect")
"""those that can be left out, in their order; `first` cannot"""

_DEDUPLICATED = 0.65
"""of the bytes of all versions: what one who deduplicates may need on disk, for the check of free space"""

_MANY = 1000
"""files"""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure."""

    rounds: int = 3
    steps: frozenset[str] = frozenset(STEPS)
    cold: bool = False
    limit: float | None = None
    """seconds after which a step is stopped"""
    once: float | None = None
    """contenders whose first round took more seconds take no part in the others"""
    pause: float = 0.0
    """seconds between rounds: ext4 without a journal avoids inodes deleted in the last minute, which is slow"""
    count_syncs: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """One step of one contender in one round."""

    corpus: str
    contender: str
    step: str
    round: int
    position: int
    """its turn among the contenders: 0 was first"""
    usage: Usage
    outcome: str
    """``ok``, ``failed: …``, ``stopped after …`` or ``wrong bytes: …``"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a contender's store occupied at some moment."""

    corpus: str
    contender: str
    when: str
    """``all`` versions, ``optimized``, ``collected``, or ``only`` the latest ever stored"""
    round: int
    whole: Size
    without_index: Size


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """What was stored."""

    name: str
    textual: bool
    versions: tuple[tuple[str, Extent], ...]

    @property
    def bytes(self) -> int:
        """Of all versions."""
        return sum(held.bytes for _, held in self.versions)


@dataclass(slots=True)
class Record:
    """All that a run found."""

    samples: list[Sample] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    corpora: list[CorpusFacts] = field(default_factory=list)
    commands: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """contender → step → commands, as run first"""
    syncs: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped_caches_by: str = ""


@dataclass(slots=True)
class _Entrant:
    """A contender in a round."""

    contender: Contender
    place: Path
    out: bool = False
    """an ingest failed, so what its store holds is not known"""


def run(corpora: Sequence[Corpus], contenders: Sequence[Contender], plan: Plan, work: Path, say: Say) -> Record:
    """Measure all contenders on all corpora. Everything is below a directory in ``work`` that is gone afterwards.

    Corpora and contenders keep their order; within a round the contenders' turns rotate from step to step. Ends
    what it started when interrupted (Ctrl-C, SIGTERM), which raises `KeyboardInterrupt`. Raises `InvalidInputError`
    if there is too little room in ``work``, `BackendError` if files cannot be copied there.
    """
    record = Record()
    for corpus in corpora:
        versions = tuple((tree.name, extent(tree)) for tree in _used(corpus, plan))
        record.corpora.append(CorpusFacts(corpus.name, corpus.textual, versions))
    for facts in record.corpora:
        _check_room(facts, contenders, work)
    with _stoppable(), _scratch(work) as scratch:
        try:
            if plan.count_syncs and can_count():
                record.syncs = _all_syncs(contenders, scratch / "syncs", say)
            for corpus, facts in zip(corpora, record.corpora, strict=True):
                _CorpusRun(corpus, facts, contenders, plan, scratch, record, say).run()
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else ""
            raise BackendError(f"a copy of the files could not be made: {said.strip()[:500]}") from None
    return record


def _all_syncs(contenders: Sequence[Contender], scratch: Path, say: Say) -> dict[str, dict[str, int]]:
    tree = scratch / "tree"
    sample_tree(tree)
    found = {}
    for contender in contenders:
        say(f"counting how often {contender.name} syncs")
        found[contender.name] = count_syncs(contender, scratch / contender.name, tree)
    remove(scratch)
    return found


class _CorpusRun:
    """All rounds on one corpus."""

    def __init__(
        self,
        corpus: Corpus,
        facts: CorpusFacts,
        contenders: Sequence[Contender],
        plan: Plan,
        scratch: Path,
        record: Record,
        say: Say,
    ) -> None:
        self._corpus = corpus
        self._contenders = contenders
        self._versions = _used(corpus, plan)
        self._plan = plan
        self._scratch = scratch
        self._record = record
        self._say = say
        self._tree = scratch / "tree"
        self._changes: dict[int, Changes] = {}
        self._turns = 0
        self._round = 0
        self._entrants: list[_Entrant] = []
        self._only: dict[str, bool] = {}
        self._removed = 0
        self._room = _room_for(facts, contenders)
        self._keeps_aside = _has_many(facts)

    def run(self) -> None:
        remaining = list(self._contenders)
        for number in range(self._plan.rounds):
            self._round = number
            try:
                self._one_round(remaining)
            finally:
                self._say(f"{self._corpus.name}: clearing up after round {number + 1}")
                self._set_aside(self._tree)
                self._set_aside(self._scratch / "places")
            remaining = [contender for contender in remaining if self._again(contender)]
            if number + 1 == self._plan.rounds or _free_bytes(self._scratch) < self._room:
                remove(self._scratch / "aside")
            if number + 1 < self._plan.rounds:
                rest(self._plan.pause)

    def _again(self, contender: Contender) -> bool:
        """True if a contender is quick enough for another round."""
        once = self._plan.once
        took = sum(
            sample.usage.wall
            for sample in self._record.samples
            if (sample.corpus, sample.contender, sample.round) == (self._corpus.name, contender.name, self._round)
        )
        return once is None or took <= once or contender.tool == "casstore"

    def _one_round(self, contenders: list[Contender]) -> None:
        self._say(f"{self._corpus.name}: setting up round {self._round + 1} of {self._plan.rounds}")
        copy_tree(self._versions[0], self._tree)
        self._entrants = []
        for contender in contenders:
            entrant = _Entrant(contender, self._scratch / "places" / contender.name)
            self._entrants.append(entrant)
            self._set_up(entrant, contender.begin, copy=True)
        last = len(self._versions) - 1
        self._step("first", lambda e: e.contender.take_in(e.place, self._tree, 0))
        if last:
            self._become(1)
            self._step("next", lambda e: e.contender.take_in(e.place, self._tree, 1))
        self._step("reread", lambda e: e.contender.read_again(e.place, self._tree, min(1, last)), self._forget)
        for number in range(2, last + 1):
            self._become(number)
            self._step("rest", lambda e, n=number: e.contender.take_in(e.place, self._tree, n))  # type: ignore[misc]
        for entrant in self._there():
            self._weigh(entrant, "all", entrant.place)
        self._store_only_the_latest()
        target = self._scratch / "places" / "restored"
        self._restore("restore", target, last)
        self._optimize(target, last)
        if last:
            self._step("collect", lambda e: e.contender.collect(e.place, last), after=self._collected)

    # --- steps

    def _step(
        self,
        step: str,
        commands: Callable[[_Entrant], Sequence[Command]],
        before: Callable[[_Entrant], None] = lambda _: None,
        after: Callable[[_Entrant, Sample], Sample] = lambda _, sample: sample,
    ) -> None:
        """Let every entrant do a step, in turns."""
        if step in STEPS and step not in self._plan.steps and step != "first":
            return
        there = self._there()
        first = self._turns % max(1, len(there))
        self._turns += 1
        for position, entrant in enumerate(there[first:] + there[:first]):
            before(entrant)
            work = commands(entrant)
            if work:
                sample = after(entrant, self._measure(entrant, step, work, position))
                self._record.samples.append(sample)

    def _measure(self, entrant: _Entrant, step: str, commands: Sequence[Command], position: int) -> Sample:
        name = entrant.contender.name
        known = self._record.commands.setdefault(name, {})
        known.setdefault(step, [self._readable(command, entrant) for command in commands])
        self._say(f"{self._corpus.name}: round {self._round + 1}, {step}: {name}")
        settle()
        if self._plan.cold:
            self._record.dropped_caches_by = forget_cached((self._tree, entrant.place))
        usage, outcome = Usage(), "ok"
        try:
            usage = measure_all(commands, limit=self._plan.limit)
        except CommandFailed as error:
            outcome = f"failed: {error}"
        except TookTooLong:
            usage, outcome = Usage(wall=self._plan.limit or 0.0), f"stopped after {self._plan.limit:g} s"
        if outcome != "ok":
            self._say(f"{name}: {outcome}")
            entrant.out = entrant.out or step in {"first", "next", "reread", "rest"}
        return Sample(self._corpus.name, name, step, self._round, position, usage, outcome)

    def _readable(self, command: Command, entrant: _Entrant) -> str:
        text = command.text()
        for path, word in ((str(entrant.place), "PLACE"), (str(self._tree), "TREE"), (str(self._scratch), "WORK")):
            text = text.replace(path, word)
        return text

    def _there(self) -> list[_Entrant]:
        return [entrant for entrant in self._entrants if not entrant.out]

    @staticmethod
    def _forget(entrant: _Entrant) -> None:
        entrant.contender.before_reading_again(entrant.place)

    def _set_up(self, entrant: _Entrant, begin: Callable[[Path], Sequence[Command]], *, copy: bool) -> None:
        entrant.place.mkdir(parents=True)
        try:
            measure_all(begin(entrant.place))
        except CommandFailed as error:
            self._say(f"{entrant.contender.name}: {error}")
            entrant.out = True
            sample = Sample(
                self._corpus.name, entrant.contender.name, "first", self._round, 0, Usage(), f"failed: {error}"
            )
            self._record.samples.append(sample)
            return
        workspace = entrant.contender.workspace(entrant.place)
        if copy and workspace is not None:
            copy_tree(self._tree, workspace)

    def _become(self, number: int) -> None:
        """Make the tree, and the contenders' own, the next version."""
        old, new = self._versions[number - 1], self._versions[number]
        change = self._changes.get(number)
        if change is None:
            change = self._changes[number] = changes(old, new)
        apply(change, new, self._tree)
        for entrant in self._there():
            workspace = entrant.contender.workspace(entrant.place)
            if workspace is not None:
                apply(change, new, workspace)

    def _restore(self, step: str, target: Path, last: int) -> None:
        def empty(entrant: _Entrant) -> None:
            entrant.contender.before_restoring(entrant.place, target)

        def compare(entrant: _Entrant, sample: Sample) -> Sample:
            found = self._compared(entrant, target, sample)
            self._set_aside(target)
            return found

        self._step(step, lambda e: e.contender.restore(e.place, last, target), empty, compare)

    def _compared(self, entrant: _Entrant, target: Path, sample: Sample) -> Sample:
        if sample.outcome != "ok":
            return sample
        different = differences(self._tree, entrant.contender.restored(entrant.place, target))
        if not different:
            return sample
        self._say(f"{sample.contender}: WRONG BYTES after {sample.step}: {different}")
        return _with_outcome(sample, f"wrong bytes: {different}")

    def _optimize(self, target: Path, last: int) -> None:
        """On a copy of the store, so that what comes after is measured as without it; then restore from the copy."""
        if "optimize" not in self._plan.steps:
            return
        originals = self._entrants
        self._entrants = []
        try:
            for entrant in originals:
                if not entrant.out and entrant.contender.optimize(entrant.place):
                    place = self._scratch / "places" / f"{entrant.contender.name}.optimized"
                    copy_tree(entrant.place, place)
                    self._entrants.append(_Entrant(entrant.contender, place))
            self._step("optimize", lambda e: e.contender.optimize(e.place), after=self._optimized)
            if "restore" in self._plan.steps:
                self._restore("restore-optimized", target, last)
            for entrant in self._entrants:
                self._set_aside(entrant.place)
        finally:
            self._entrants = originals

    def _optimized(self, entrant: _Entrant, sample: Sample) -> Sample:
        if sample.outcome == "ok":
            self._weigh(entrant, "optimized", entrant.place)
        else:
            entrant.out = True
        return sample

    def _collected(self, entrant: _Entrant, sample: Sample) -> Sample:
        if sample.outcome == "ok":
            self._weigh(entrant, "collected", entrant.place)
        return sample

    def _store_only_the_latest(self) -> None:
        """A new store that only ever holds the latest: what a collection is compared with. Once, for casstore."""
        for entrant in self._there():
            name = entrant.contender.name
            if "only" not in self._plan.steps or entrant.contender.tool != "casstore" or name in self._only:
                continue
            fresh = _Entrant(entrant.contender, self._scratch / "places" / f"{name}.only")
            self._set_up(fresh, entrant.contender.begin, copy=True)
            sample = self._measure(fresh, "only", entrant.contender.take_in(fresh.place, self._tree, 0), 0)
            self._record.samples.append(sample)
            if sample.outcome == "ok":
                self._weigh(fresh, "only", fresh.place)
                self._only[name] = True
            self._set_aside(fresh.place)

    def _set_aside(self, path: Path) -> None:
        """Out of the way, but not removed yet: creating files right after many were removed is slow (`Plan.pause`)."""
        if not self._keeps_aside:
            remove(path)
        elif os.path.lexists(path):
            self._removed += 1
            aside = self._scratch / "aside"
            aside.mkdir(exist_ok=True)
            path.rename(aside / str(self._removed))

    def _weigh(self, entrant: _Entrant, when: str, place: Path) -> None:
        contender = entrant.contender
        whole = occupied(contender.kept(place))
        without = whole - occupied(contender.replaceable(place))
        self._record.stored.append(Stored(self._corpus.name, contender.name, when, self._round, whole, without))


def _used(corpus: Corpus, plan: Plan) -> tuple[Path, ...]:
    """The versions that the steps of a plan take in."""
    if "next" not in plan.steps:
        return corpus.versions[:1]
    return corpus.versions if "rest" in plan.steps else corpus.versions[:2]


def _with_outcome(sample: Sample, outcome: str) -> Sample:
    return Sample(sample.corpus, sample.contender, sample.step, sample.round, sample.position, sample.usage, outcome)


def _room_for(facts: CorpusFacts, contenders: Sequence[Contender]) -> int:
    """Bytes that a round may need on disk."""
    largest = max(held.bytes for _, held in facts.versions)
    needed = 3 * largest  # the tree, what is restored, a copy of a store
    for contender in contenders:
        whole_files = not contender.deduplicates or contender.tool == "dvc"
        needed += round(facts.bytes * (1.0 if whole_files else _DEDUPLICATED))
        needed += largest if contender.tool == "dvc" else 0
        needed += largest if _has_many(facts) else 0
    return needed


def _has_many(facts: CorpusFacts) -> bool:
    """True if there are so many files that removing them would slow down what comes next."""
    return facts.versions[-1][1].files >= _MANY


def _check_room(facts: CorpusFacts, contenders: Sequence[Contender], work: Path) -> None:
    needed = _room_for(facts, contenders)
    free = _free_bytes(work)
    if free < needed:
        raise InvalidInputError(
            f"{facts.name} may need {needed / 1e9:,.1f} GB in {str(work)!r}, where {free / 1e9:,.1f} GB are free",
            hint="choose another directory with --work, fewer programs with --contender, or a smaller --scale",
        )


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    """A new directory, gone afterwards whatever happens."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=work))
    try:
        yield scratch
    finally:
        remove(scratch)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of handlers
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
