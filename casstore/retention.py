"""Retention: which versions of a collection some rules keep, and why. Pure: knows no store and no clock.

As ``restic forget``: periods are counted from the newest back, only those that have versions count, and the newest
version of a period stands for it. Rules add up: a version stays if any rule keeps it. The calendar is UTC's, weeks are
those of ISO 8601.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta

from casstore.errors import InvalidInputError
from casstore.names import check_tags
from casstore.values import dataclass

MAX_COUNT = 1_000_000
MAX_WITHIN = timedelta(days=36_525)


@dataclass(frozen=True, slots=True)
class Rules:
    """What to keep. Counts of versions or of periods; 0 and empty: the rule is not there.

    ``keep_within``: whatever is not older than that against the newest version (not against the clock, so that a
    collection nobody logs to any more does not run empty). ``keep_tagged``: versions that have any of these tags.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within: timedelta | None = None
    keep_tagged: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """True if nothing would be kept by any rule."""
        return self == Rules()

    def to_dict(self) -> dict[str, object]:
        """The rules that are there, as JSON values; ``keep_within`` in seconds."""
        values: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value:
                values[field.name] = _plain(value)
        return values


def _plain(value: object) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return list(value) if isinstance(value, tuple) else value


NAMES = tuple(field.name for field in fields(Rules))


def rules_from(values: Mapping[str, object]) -> Rules:
    """Rules by their names: counts, a timedelta or seconds, a list of tags; None is as good as absent.

    Raises `InvalidInputError`, also when they keep nothing at all: nobody means that.
    """
    unknown = sorted(str(name) for name in values if name not in NAMES)
    if unknown:
        raise InvalidInputError(f"there is no retention rule {', '.join(unknown)}", hint=", ".join(NAMES))
    given = {name: value for name, value in values.items() if value is not None}
    tags = check_tags(given.pop("keep_tagged", ()))
    within = _within(given.pop("keep_within", None))
    counts = {name: _count(name, value) for name, value in given.items()}
    rules = Rules(**counts, keep_within=within, keep_tagged=tags)
    if rules.empty:
        raise InvalidInputError("these retention rules keep nothing", hint=f"give one of {', '.join(NAMES)}")
    return rules


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise InvalidInputError(f"{name}={value!r} is not a count", hint=f"a whole number up to {MAX_COUNT}")
    return value


def _within(value: object) -> timedelta | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_WITHIN.total_seconds():
        value = timedelta(seconds=value)
    if not isinstance(value, timedelta) or not timedelta() < value <= MAX_WITHIN:
        raise InvalidInputError(f"keep_within={value!r} is not a duration", hint="a timedelta, up to a hundred years")
    return value


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version as the rules see it.

    ``at``: when it was made, aware, for the calendar. ``age_base``: the same by a clock that cannot be set wrong
    (µs), for durations. ``holds``: reasons from outside the rules why it stays.
    """

    number: int
    at: datetime
    age_base: int
    tags: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a version: it stays, for some reasons, or goes, for want of any."""

    number: int
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """True if there is any reason to keep it."""
        return bool(self.reasons)


def _week(at: datetime) -> str:
    year, week, _ = at.isocalendar()
    return f"{year}-W{week:02}"


PERIODS: Mapping[str, Callable[[datetime], str]] = {
    "hourly": lambda at: f"{at:%Y-%m-%dT%H}",
    "daily": lambda at: f"{at:%Y-%m-%d}",
    "weekly": _week,
    "monthly": lambda at: f"{at:%Y-%m}",
    "yearly": lambda at: f"{at:%Y}",
}
"""how the period of each kind is called that a moment (UTC) is in"""


def judge(candidates: Iterable[Candidate], rules: Rules) -> list[Verdict]:
    """A verdict on each version, newest (highest number) first."""
    ordered = sorted(candidates, key=lambda candidate: candidate.number, reverse=True)
    reasons: dict[int, list[str]] = {candidate.number: [] for candidate in ordered}
    for candidate in ordered[: rules.keep_last]:
        reasons[candidate.number].append("last")
    for kind, period in PERIODS.items():
        for candidate, called in _newest_of_periods(ordered, period, getattr(rules, f"keep_{kind}")):
            reasons[candidate.number].append(f"{kind} {called}")
    if rules.keep_within is not None:
        limit = rules.keep_within // timedelta(microseconds=1)
        newest = max((candidate.age_base for candidate in ordered), default=0)
        for candidate in ordered:
            if newest - candidate.age_base <= limit:
                reasons[candidate.number].append(f"within {rules.keep_within}")
    for candidate in ordered:
        reasons[candidate.number] += [f"tag {tag}" for tag in candidate.tags if tag in rules.keep_tagged]
        reasons[candidate.number] += candidate.holds
    return [Verdict(number, tuple(why)) for number, why in reasons.items()]


def _newest_of_periods(
    ordered: Sequence[Candidate], period: Callable[[datetime], str], count: int
) -> list[tuple[Candidate, str]]:
    """The newest version of each of the ``count`` newest periods that have any."""
    found: dict[str, Candidate] = {}
    for candidate in ordered:
        if len(found) == count:
            break
        found.setdefault(period(candidate.at), candidate)
    return [(candidate, called) for called, candidate in found.items()]
