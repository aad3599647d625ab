"""Retention rules (FEATURES Q7): the calendar, the arithmetic, and what `Store.retain` makes of it.

Guards: what a rule promises to keep is kept, each kept version says why, nothing is taken that any rule, a name or a
protection wants, and what a dry run shows is what is done.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore import (
    Artifact,
    CollectionNotFoundError,
    InvalidInputError,
    ReadOnlyError,
    RetentionReport,
    Store,
    Version,
    VersionNotFoundError,
)
from casstore.retention import NAMES, Candidate, Rules, judge, rules_from
from casstore.testing.clock import Clock
from casstore.testing.snapshot import snapshot

START = datetime(2026, 1, 1, tzinfo=UTC)


def candidates(*moments: str) -> list[Candidate]:
    """v0, v1, … made at these moments (UTC)."""
    found = []
    for number, moment in enumerate(moments):
        at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
        found.append(Candidate(number, at, (at - START) // timedelta(microseconds=1)))
    return found


def kept(found: list[Candidate], **rules: object) -> list[int]:
    """Numbers that stay, ascending."""
    return sorted(verdict.number for verdict in judge(found, rules_from(rules)) if verdict.kept)


# --- the calendar


@pytest.mark.parametrize(
    ("moments", "rules", "expected"),
    [
        pytest.param(["2026-01-01", "2026-01-02", "2026-01-03"], {"keep_last": 2}, [1, 2], id="the newest two"),
        pytest.param(["2026-01-01", "2026-01-02"], {"keep_last": 5}, [0, 1], id="fewer than asked for"),
        pytest.param(
            ["2026-01-01T10:00:00", "2026-01-01T10:59:59.999999", "2026-01-01T11:00:00"],
            {"keep_hourly": 2},
            [1, 2],
            id="an hour ends with its last microsecond",
        ),
        pytest.param(
            ["2026-03-28T23:59:59", "2026-03-29T00:00:00", "2026-03-29T23:59:59"],
            {"keep_daily": 2},
            [0, 2],
            id="days are cut at midnight UTC",
        ),
        pytest.param(
            [f"2026-03-29T{hour:02}:30:00" for hour in range(5)],
            {"keep_hourly": 5},
            [0, 1, 2, 3, 4],
            id="the night clocks go forward in Europe has all its hours",
        ),
        pytest.param(
            [f"2026-10-25T{hour:02}:30:00" for hour in range(4)],
            {"keep_hourly": 4},
            [0, 1, 2, 3],
            id="the night they go back has no hour twice",
        ),
        pytest.param(
            ["2026-01-01", "2026-01-08", "2026-06-01"],
            {"keep_daily": 2},
            [1, 2],
            id="days without versions do not count",
        ),
        pytest.param(["2026-01-04", "2026-01-05"], {"keep_weekly": 2}, [0, 1], id="a week begins on Monday"),
        pytest.param(["2025-12-29", "2026-01-04"], {"keep_weekly": 2}, [1], id="one ISO week in two years"),
        pytest.param(["2020-12-28", "2021-01-03"], {"keep_weekly": 9}, [1], id="week 53 reaches into January"),
        pytest.param(["2021-01-03", "2021-01-04"], {"keep_weekly": 9}, [0, 1], id="week 53, then week 1"),
        pytest.param(["2019-12-30", "2020-12-30"], {"keep_weekly": 9}, [0, 1], id="weeks 1 of 2020 and 53 of 2020"),
        pytest.param(["2025-01-01", "2026-01-01"], {"keep_weekly": 9}, [0, 1], id="week 1 of two years"),
        pytest.param(
            ["2024-02-28T23:00:00", "2024-02-29T12:00:00", "2024-03-01"],
            {"keep_daily": 3},
            [0, 1, 2],
            id="the leap day is a day",
        ),
        pytest.param(["2024-02-01", "2024-02-29", "2024-03-01"], {"keep_monthly": 2}, [1, 2], id="the leap month"),
        pytest.param(["2025-12-31T23:59:59", "2026-01-01"], {"keep_monthly": 2}, [0, 1], id="December and January"),
        pytest.param(["2025-03-01", "2026-03-01"], {"keep_monthly": 2}, [0, 1], id="March is not March"),
        pytest.param(
            ["2024-12-31T23:59:59", "2025-01-01", "2025-12-31", "2026-06-01"],
            {"keep_yearly": 3},
            [0, 2, 3],
            id="the newest of each year",
        ),
        pytest.param(
            ["2024-06-01", "2025-06-01", "2026-01-01", "2026-05-01", "2026-06-01"],
            {"keep_last": 1, "keep_monthly": 2, "keep_yearly": 3},
            [0, 1, 3, 4],
            id="rules add up",
        ),
        pytest.param(
            ["2026-01-01T00:00:00", "2026-01-02T00:00:00", "2026-01-08T00:00:00"],
            {"keep_within": timedelta(days=6)},
            [1, 2],
            id="within: the edge counts",
        ),
        pytest.param(
            ["2019-01-01", "2019-01-02"],
            {"keep_within": timedelta(days=7)},
            [0, 1],
            id="within: of the newest, not now",
        ),
    ],
)
def test_the_calendar(moments: list[str], rules: dict[str, object], expected: list[int]) -> None:
    assert kept(candidates(*moments), **rules) == expected


def test_each_reason_is_said() -> None:
    verdicts = judge(
        [
            *candidates("2026-01-31T10:00:00", "2026-02-01T10:00:00"),
            Candidate(2, datetime(2026, 2, 1, 11, tzinfo=UTC), 0, ("a", "b"), ("latest", "protected: paper")),
        ],
        rules_from(
            {
                "keep_last": 1,
                "keep_hourly": 2,
                "keep_daily": 1,
                "keep_weekly": 1,
                "keep_monthly": 2,
                "keep_yearly": 1,
                "keep_tagged": ["b", "c"],
            }
        ),
    )
    assert [(verdict.number, verdict.reasons) for verdict in verdicts] == [
        (
            2,
            (
                "last",
                "hourly 2026-02-01T11",
                "daily 2026-02-01",
                "weekly 2026-W05",
                "monthly 2026-02",
                "yearly 2026",
                "tag b",
                "latest",
                "protected: paper",
            ),
        ),
        (1, ("hourly 2026-02-01T10",)),
        (0, ("monthly 2026-01",)),
    ]


def test_a_clock_that_went_back_does_not_make_more_periods() -> None:
    """Versions in the order they were made: Tuesday, Monday, Tuesday. The newest of each day stays."""
    found = candidates("2026-01-06T10:00:00", "2026-01-05T10:00:00", "2026-01-06T09:00:00")
    assert kept(found, keep_daily=2) == [1, 2]


def test_within_goes_by_the_clock_that_cannot_be_wrong() -> None:
    """A version that claims to be from next month takes nothing with it that is not as old in truth."""
    hour = 3_600_000_000
    old = Candidate(0, START, 0)
    wrong = Candidate(1, START + timedelta(days=40), hour)
    assert kept([old, wrong], keep_within=timedelta(days=7)) == [0, 1]


# --- properties

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MOMENTS = st.lists(
    st.datetimes(datetime(2019, 1, 1), datetime(2027, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),  # noqa: DTZ001
    max_size=40,
)
COUNTS = st.integers(0, 12)
RULES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(NAMES[:6], COUNTS),
        "keep_within": st.timedeltas(timedelta(seconds=1), timedelta(days=900)),
        "keep_tagged": st.lists(st.sampled_from("abc"), unique=True, min_size=1),
    },
).filter(lambda rules: any(rules.values()))


def made(moments: list[datetime], tags: list[str]) -> list[Candidate]:
    ordered = sorted(moments)
    return [
        Candidate(
            number, at, (at - START) // timedelta(microseconds=1), tuple(tags[number % len(tags) :][:1]) if tags else ()
        )
        for number, at in enumerate(ordered)
    ]


@patient
@given(MOMENTS, st.integers(1, 50))
def test_keep_last_keeps_exactly_the_newest(moments: list[datetime], count: int) -> None:
    found = made(moments, [])
    assert kept(found, keep_last=count) == list(range(len(found)))[-count:]


@patient
@given(MOMENTS, st.sampled_from(("hourly", "daily", "weekly", "monthly", "yearly")), st.integers(1, 12))
def test_one_version_for_each_of_the_newest_periods(moments: list[datetime], kind: str, count: int) -> None:
    """Against another way to say it: group by the calendar's own fields, take the last of each of the last groups."""
    period: Callable[[datetime], tuple[int, ...]] = {
        "hourly": lambda at: (at.year, at.month, at.day, at.hour),
        "daily": lambda at: (at.year, at.month, at.day),
        "weekly": lambda at: at.isocalendar()[:2],
        "monthly": lambda at: (at.year, at.month),
        "yearly": lambda at: (at.year,),
    }[kind]
    found = made(moments, [])
    groups = {period(candidate.at): candidate.number for candidate in found}
    expected = sorted(number for _, number in sorted(groups.items())[-count:])
    assert kept(found, **{f"keep_{kind}": count}) == expected


@patient
@given(MOMENTS, RULES, RULES)
def test_rules_together_keep_the_union(
    moments: list[datetime], one: dict[str, object], other: dict[str, object]
) -> None:
    """Of rules that do not speak of the same thing."""
    other = {name: value for name, value in other.items() if name not in one}
    if not any(other.values()):
        return
    found = made(moments, ["a", "b", "c", "d"])
    assert set(kept(found, **one, **other)) == {*kept(found, **one), *kept(found, **other)}


@patient
@given(MOMENTS, RULES, st.sampled_from(NAMES[:6]))
def test_a_greater_count_never_keeps_less(moments: list[datetime], rules: dict[str, object], name: str) -> None:
    found = made(moments, ["a", "b"])
    more = {**rules, name: int(str(rules.get(name, 0))) + 1}
    assert set(kept(found, **rules)) <= set(kept(found, **more))


@patient
@given(MOMENTS, RULES)
def test_applying_rules_again_takes_nothing_more(moments: list[datetime], rules: dict[str, object]) -> None:
    found = made(moments, ["a", "b"])
    stays = kept(found, **rules)
    assert kept([candidate for candidate in found if candidate.number in stays], **rules) == stays


@patient
@given(MOMENTS, RULES)
def test_something_always_stays_when_periods_or_counts_are_asked_for(
    moments: list[datetime], rules: dict[str, object]
) -> None:
    found = made(moments, [])
    if found and any(rules.get(name) for name in NAMES[:7]):
        assert found[-1].number in kept(found, **rules), "the newest version"


# --- rules


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"keep_last": 0},
        {"keep_last": None, "keep_tagged": []},
        {"keep_last": -1},
        {"keep_last": True},
        {"keep_last": 1.0},
        {"keep_last": "5"},
        {"keep_last": 10**7},
        {"keep_within": timedelta()},
        {"keep_within": timedelta(days=-1)},
        {"keep_within": timedelta.max},
        {"keep_within": float("nan")},
        {"keep_within": "7d"},
        {"keep_tagged": "prod"},
        {"keep_tagged": [1]},
        {"keep_tagged": ["a\n"]},
        {"keep_fortnightly": 1},
    ],
)
def test_bad_rules_are_refused(rules: dict[str, object]) -> None:
    """An empty set is a mistake, not the wish to keep nothing."""
    with pytest.raises(InvalidInputError):
        rules_from(rules)


def test_rules_survive_json() -> None:
    rules = Rules(keep_last=3, keep_yearly=2, keep_within=timedelta(hours=36), keep_tagged=("a", "b"))
    assert rules_from(json.loads(json.dumps(rules.to_dict()))) == rules


# --- in a store


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True, clock=clock) as opened:
        yield opened


def log(store: Store, data: bytes, name: str = "ds", **options: object) -> Version:
    draft = Artifact(name)
    draft.add_bytes(data, "a")
    return store.log_artifact(draft, **options)  # type: ignore[arg-type]


def days(store: Store, clock: Clock, count: int, name: str = "ds") -> None:
    """A version a day."""
    for day in range(count):
        if day:
            clock.pass_(days=1)
        log(store, b"%d" % day, name)


def numbers(store: Store, name: str = "ds", *, trashed: bool = False) -> list[int]:
    return [version.number for version in store.versions(name, newest_first=False, trashed=trashed)]


def refs(report: RetentionReport) -> list[str]:
    return [version.ref for version in report.removed]


def test_what_no_rule_keeps_goes_to_the_trash_in_one_commit(store: Store, clock: Clock) -> None:
    days(store, clock, 6)
    log(store, b"other", "other")
    head = store.log(limit=1)[0].seq
    report = store.retain("ds", keep_last=2, keep_weekly=2)
    assert [(version.ref, version.reasons) for version in report.kept] == [
        ("ds:v5", ("last", "weekly 2026-W02", "latest")),
        ("ds:v4", ("last",)),
        ("ds:v3", ("weekly 2026-W01",)),
    ]
    assert refs(report) == ["ds:v2", "ds:v1", "ds:v0"]
    assert store.log(limit=1)[0].seq == head + 1
    assert numbers(store) == [3, 4, 5]
    assert numbers(store, "other") == [0]
    items = store.trash.list()
    assert {item.trashed_by for item in items} == {"retention"}
    assert {item.purge_at for item in items} == {clock.now + timedelta(days=30)} == {report.purge_at}
    assert report.exclusive_bytes == sum(item.exclusive_bytes for item in items) > 0
    for ref in refs(report):
        store.trash.restore(ref)
    assert numbers(store) == [0, 1, 2, 3, 4, 5]


def test_a_dry_run_is_what_is_done(store: Store, clock: Clock) -> None:
    days(store, clock, 5)
    store.get("ds:v1").add_alias("best")
    before = snapshot(Path(store.url))
    plan = store.retain("ds", keep_daily=2, dry_run=True)
    assert snapshot(Path(store.url)) == before
    done = store.retain("ds", keep_daily=2)
    assert plan.dry_run
    assert not done.dry_run
    assert (plan.kept, plan.removed, plan.exclusive_bytes, plan.purge_at) == (
        done.kept,
        done.removed,
        done.exclusive_bytes,
        done.purge_at,
    )
    assert json.loads(json.dumps(plan.to_dict()))["rules"] == {"keep_daily": 2}


def test_nothing_to_do_commits_nothing(store: Store, clock: Clock) -> None:
    days(store, clock, 2)
    head = store.log(limit=1)[0].seq
    assert store.retain("ds", keep_last=2).removed == ()
    assert store.log(limit=1)[0].seq == head


def test_latest_protection_and_names_keep_a_version(store: Store, clock: Clock) -> None:
    """Each with its reason; names only until they are given up."""
    days(store, clock, 6)
    store.get("ds:v2").add_alias("latest")
    store.get("ds:v1").add_alias("best")
    store.get("ds:v0").protect("the paper")
    store.set_policy(protected_aliases=["prod"])
    store.get("ds:v3").add_alias("prod")
    plan = store.retain("ds", keep_last=1, dry_run=True)
    assert {version.ref: version.reasons for version in plan.kept} == {
        "ds:v5": ("last",),
        "ds:v3": ("alias prod",),
        "ds:v2": ("latest",),
        "ds:v1": ("alias best",),
        "ds:v0": ("protected: the paper",),
    }
    done = store.retain("ds", keep_last=1, delete_aliases=True)
    assert refs(done) == ["ds:v4", "ds:v1"]
    assert done.removed[1].aliases == ("best",)
    assert store.trash.restore("ds:v1").aliases == ("best",)


def test_tags(store: Store) -> None:
    for data, tags in ((b"0", ["keep"]), (b"1", ["x"]), (b"2", ["y", "keep"]), (b"3", [])):
        log(store, data, tags=tags)
    report = store.retain("ds", keep_tagged=["keep", "other"])
    assert refs(report) == ["ds:v1"]
    assert report.kept[1].reasons == ("tag keep",)


def test_expired_versions_are_neither_counted_nor_taken(store: Store, clock: Clock) -> None:
    """They are gone for readers: to count them would cost a version that is not."""
    log(store, b"0")
    log(store, b"1")
    log(store, b"2", ttl=timedelta(days=1))
    clock.pass_(days=2)
    report = store.retain("ds", keep_last=1)
    assert [version.ref for version in report.kept] == ["ds:v1"]
    assert report.kept[0].reasons == ("last", "latest")
    assert refs(report) == ["ds:v0"]
    assert [version.ref for version in store.expire().expired] == ["ds:v2"]


def test_rules_of_the_policy(store: Store, clock: Clock) -> None:
    days(store, clock, 4)
    with pytest.raises(InvalidInputError):
        store.retain("ds")
    with pytest.raises(InvalidInputError):
        store.set_policy(retention={"keep_last": -1})
    with pytest.raises(InvalidInputError):
        store.set_policy(retention={})
    store.set_policy(retention={"keep_last": 2, "keep_within": timedelta(hours=1)})
    assert store.policy.retention == Rules(keep_last=2, keep_within=timedelta(hours=1))
    assert refs(store.retain("ds", keep_last=3, dry_run=True)) == ["ds:v0"], "rules that are given go before"
    assert store.gc().expired == [], "gc applies no retention rules by itself"
    assert refs(store.retain("ds")) == ["ds:v1", "ds:v0"]
    store.set_policy(retention=None)
    with pytest.raises(InvalidInputError):
        store.retain("ds")


def test_bad_arguments_change_nothing(store: Store, clock: Clock) -> None:
    days(store, clock, 3)
    before = snapshot(Path(store.url))
    with pytest.raises(InvalidInputError):
        store.retain("ds", keep_last=0)
    with pytest.raises(InvalidInputError):
        store.retain("ds", keep_last=1, keep_daily=-1)
    with pytest.raises(InvalidInputError):
        store.retain("a b", keep_last=1)
    with pytest.raises(CollectionNotFoundError):
        store.retain("nowhere", keep_last=1)
    assert snapshot(Path(store.url)) == before
    with Store.open(store.url, read_only=True, clock=clock) as reader:
        assert refs(reader.retain("ds", keep_last=1, dry_run=True)) == ["ds:v1", "ds:v0"]
        with pytest.raises(ReadOnlyError):
            reader.retain("ds", keep_last=1)


def meanwhile(monkeypatch: pytest.MonkeyPatch, store: Store, act: object) -> None:
    """Have somebody else do something between the plan of the next commit of a store and its commit."""
    log_of = store._engine.log
    create = log_of.create

    def interrupted(segment: object) -> object:
        monkeypatch.setattr(log_of, "create", create)
        other = threading.Thread(target=act)  # type: ignore[arg-type]
        other.start()
        other.join()
        return create(segment)  # type: ignore[arg-type]

    monkeypatch.setattr(log_of, "create", interrupted)


def test_a_name_given_between_plan_and_commit_keeps_its_version(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made again on what is there by then, and that is the plan that is returned."""
    days(store, clock, 4)
    with Store.open(store.url, clock=clock) as other:
        meanwhile(monkeypatch, store, lambda: other.get("ds:v1").add_alias("best"))
        report = store.retain("ds", keep_last=1)
    assert refs(report) == ["ds:v2", "ds:v0"]
    assert store.get("ds:best").number == 1
    with pytest.raises(VersionNotFoundError):
        store.get("ds:v2")


def test_a_version_logged_between_plan_and_commit_is_the_newest(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    days(store, clock, 3)
    with Store.open(store.url, clock=clock) as other:
        meanwhile(monkeypatch, store, lambda: log(other, b"new"))
        report = store.retain("ds", keep_last=1)
    assert [version.ref for version in report.kept] == ["ds:v3"]
    assert numbers(store) == [3]
