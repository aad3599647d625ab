"""Time to live (FEATURES J1-J5, J7-J9) as a user sees it.

Guards: nothing expires before its time by the log's clock, whatever a host's clock says; nothing that is protected
expires at all; no default takes data by surprise; nobody sees a version past its time, swept or not; and until it is
purged everything comes back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from casstore import (
    INHERIT,
    AliasGuardError,
    Artifact,
    CollectionNotFoundError,
    ConfirmationRequired,
    InvalidInputError,
    ReadOnlyError,
    RefusedError,
    Runtime,
    StaleBaseError,
    Store,
    Version,
    VersionNotFoundError,
)
from casstore.cli import main
from casstore.testing.clock import Clock
from casstore.testing.snapshot import snapshot

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True, clock=clock) as opened:
        yield opened


def log(store: Store, data: bytes = b"1", name: str = "ds", kind: str = "file", **options: object) -> Version:
    draft = Artifact(name, kind)
    draft.add_bytes(data, "a")
    return store.log_artifact(draft, **options)  # type: ignore[arg-type]


def head(store: Store) -> int:
    return store.log(limit=1)[0].seq


def numbers(store: Store, name: str = "ds") -> list[int]:
    return [version.number for version in store.versions(name, newest_first=False)]


BAD_TTLS = [
    30,
    30.0,
    "30d",
    True,
    timedelta(),
    -DAY,
    timedelta(milliseconds=500),
    timedelta(seconds=1.5),
    timedelta.max,
]

# --- J1, J3: set before logging


@pytest.mark.parametrize("ttl", BAD_TTLS)
def test_bad_times_to_live_are_refused_everywhere(store: Store, ttl: object) -> None:
    """J1: half a second is neither cut to nothing nor sent on."""
    draft = Artifact("ds")
    draft.add_bytes(b"1", "a")
    version = store.log_artifact(draft)
    before = snapshot(Path(store.url))
    with pytest.raises(InvalidInputError):
        Artifact("ds").ttl = ttl  # type: ignore[assignment]
    with pytest.raises(InvalidInputError):
        log(store, b"2", ttl=ttl)
    with pytest.raises(InvalidInputError):
        version.set_ttl(ttl)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        store.set_ttl("ds", ttl)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        store.set_default_ttl(ttl)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        store.set_default_ttl(ttl, "ds")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        store.set_policy(default_ttl=ttl)
    assert snapshot(Path(store.url)) == before


def test_the_artifact_says_it_unless_the_call_does(store: Store) -> None:
    """J1."""
    draft = Artifact("ds")
    assert draft.ttl is INHERIT
    draft.add_bytes(b"1", "a")
    draft.ttl = 30 * DAY
    assert draft.ttl == 30 * DAY
    assert store.log_artifact(draft).ttl == 30 * DAY
    for given, expected in ((7 * DAY, 7 * DAY), (None, None), (INHERIT, 30 * DAY)):
        again = Artifact("ds")
        again.add_bytes(repr(given).encode(), "a")
        again.ttl = 30 * DAY
        assert store.log_artifact(again, ttl=given).ttl == expected


def test_a_century_is_the_limit(store: Store, clock: Clock) -> None:
    century = timedelta(days=36_525)
    assert log(store, ttl=century).expires_at == clock.now + century
    with pytest.raises(InvalidInputError):
        log(store, b"2", ttl=century + SECOND)


def test_a_draft_of_a_version_does_not_take_its_ttl(store: Store) -> None:
    """D1."""
    draft = log(store, ttl=DAY).new_draft()
    assert draft.ttl is INHERIT


def test_never_is_never_whatever_the_defaults(store: Store, clock: Clock) -> None:
    """J3: three values."""
    never, inherited = log(store, b"1", ttl=None), log(store, b"2")
    store.set_default_ttl(DAY)
    assert (never.ttl, never.ttl_source, never.expires_at) == (None, "version", None)
    assert (inherited.ttl, inherited.ttl_source) == (DAY, "store")
    clock.pass_(days=365)
    assert [v.ref for v in store.expire().expired] == ["ds:v1"]
    never.set_ttl(INHERIT, allow_immediate=True)
    assert never.ttl == DAY


# --- J2: edit later


def test_a_ttl_counts_from_creation(store: Store, clock: Clock) -> None:
    version = log(store)
    clock.pass_(days=3)
    version.set_ttl(5 * DAY)
    assert version.expires_at == version.created_at + 5 * DAY
    assert version.updated_at == clock.now
    seq = head(store)
    version.set_ttl(5 * DAY)
    assert head(store) == seq, "nothing changed, nothing is written"


def test_a_ttl_that_is_over_is_refused(store: Store, clock: Clock) -> None:
    """J2: a short ttl on an old version would delete it at the next sweep, without a word."""
    version = log(store)
    clock.pass_(days=3)
    before = snapshot(Path(store.url))
    for over in (2 * DAY, 3 * DAY):
        with pytest.raises(RefusedError) as caught:
            version.set_ttl(over)
        assert "--allow-immediate" in caught.value.hint
    store.set_policy(trash_days=30)
    assert numbers(store) == [0]
    version.set_ttl(3 * DAY + SECOND)
    version.set_ttl(2 * DAY, allow_immediate=True)
    assert numbers(store) == []
    assert before != snapshot(Path(store.url))


def test_the_refusal_counts_what_would_be_inherited(store: Store, clock: Clock) -> None:
    version = log(store, ttl=None)
    store.set_default_ttl(DAY)
    clock.pass_(days=2)
    with pytest.raises(RefusedError):
        version.set_ttl(INHERIT)


def test_a_version_in_the_trash_has_no_ttl_to_set(store: Store) -> None:
    version = log(store)
    version.delete()
    with pytest.raises(VersionNotFoundError):
        version.set_ttl(DAY)
    with pytest.raises(VersionNotFoundError):
        store.set_ttl("ds:v0", DAY)


# --- J4: view


def test_who_says_so(store: Store, clock: Clock) -> None:
    """J4: the version, else its collection, else the store."""
    version = log(store)
    assert (version.ttl, version.ttl_source, version.expires_at, version.held_by) == (None, "none", None, ())
    store.set_default_ttl(30 * DAY)
    assert (version.ttl, version.ttl_source, version.expires_at) == (30 * DAY, "store", clock.now + 30 * DAY)
    store.set_default_ttl(20 * DAY, "ds")
    assert (version.ttl, version.ttl_source, version.expires_at) == (20 * DAY, "collection", clock.now + 20 * DAY)
    version.set_ttl(10 * DAY)
    assert (version.ttl, version.ttl_source, version.expires_at) == (10 * DAY, "version", clock.now + 10 * DAY)
    version.set_ttl(INHERIT)
    store.set_default_ttl(None, "ds")
    assert (version.ttl, version.ttl_source) == (None, "collection")
    store.set_default_ttl(INHERIT, "ds")
    assert (version.ttl, version.ttl_source) == (30 * DAY, "store")
    values = json.loads(json.dumps(version.to_dict()))
    assert (values["ttl"], values["ttl_source"], values["held_by"]) == (30 * 86_400, "store", [])
    assert values["expires_at"] == (clock.now + 30 * DAY).isoformat()


# --- J5: defaults


def test_a_default_says_what_it_would_take(store: Store, clock: Clock) -> None:
    """J5: turning it on may take years of data, so it says so and asks for the number."""
    for i in range(3):
        log(store, b"%d" % i)
        clock.pass_(days=10)
    log(store, b"own", ttl=None)
    log(store, b"x", "other")
    before = snapshot(Path(store.url))
    plan = store.set_default_ttl(15 * DAY, dry_run=True)
    assert (plan.count, plan.refs, plan.dry_run) == (2, ("ds:v0", "ds:v1"), True)
    assert plan.exclusive_bytes > 0
    assert json.loads(json.dumps(plan.to_dict()))["count"] == 2
    for confirm in (None, 1, 3, True):
        with pytest.raises(ConfirmationRequired) as caught:
            store.set_default_ttl(15 * DAY, confirm=confirm)
        assert "ds:v0" in caught.value.message
        assert "2" in caught.value.hint
    assert snapshot(Path(store.url)) == before
    done = store.set_default_ttl(15 * DAY, confirm=2)
    assert (done.refs, done.exclusive_bytes) == (plan.refs, plan.exclusive_bytes)
    assert numbers(store) == [2, 3]
    assert store.policy.default_ttl == 15 * DAY


def test_a_default_that_takes_nothing_needs_no_number(store: Store, clock: Clock) -> None:
    log(store)
    clock.pass_(days=10)
    assert store.set_default_ttl(11 * DAY).count == 0
    assert store.set_default_ttl(None).count == 0
    assert store.policy.default_ttl is None


def test_only_what_is_new_counts(store: Store, clock: Clock) -> None:
    """What has expired already does not expire by the change."""
    log(store, b"1", ttl=DAY)
    log(store, b"2")
    clock.pass_(days=2)
    assert store.set_default_ttl(DAY, dry_run=True).refs == ("ds:v1",)


def test_the_collection_goes_before_the_store(store: Store, clock: Clock) -> None:
    log(store, b"1", "a")
    log(store, b"2", "b")
    store.set_default_ttl(100 * DAY, "a")
    clock.pass_(days=50)
    assert store.set_default_ttl(10 * DAY, confirm=1).refs == ("b:v0",)
    assert store.get("a").expires_at is not None
    with pytest.raises(ConfirmationRequired):
        store.set_default_ttl(INHERIT, "a")
    assert store.set_default_ttl(INHERIT, "a", confirm=1).refs == ("a:v0",)


def test_bad_defaults(store: Store) -> None:
    log(store)
    with pytest.raises(InvalidInputError):
        store.set_default_ttl(INHERIT)
    with pytest.raises(InvalidInputError):
        store.set_policy(default_ttl=INHERIT)
    with pytest.raises(CollectionNotFoundError):
        store.set_default_ttl(DAY, "nowhere")
    with pytest.raises(CollectionNotFoundError):
        store.set_default_ttl(DAY, "nowhere", dry_run=True)


def test_no_rule_of_the_policy_takes_data_by_surprise(store: Store, clock: Clock) -> None:
    """The same guard, whichever way a change of rules makes versions expire."""
    log(store, b"1", kind="model", name="m")
    log(store, b"2", aliases=["prod"])
    store.set_policy(no_ttl_types=["model"], protected_aliases=["prod"], default_ttl=DAY)
    clock.pass_(days=2)
    for confirm in (None, 2):
        with pytest.raises(ConfirmationRequired):
            store.set_policy(no_ttl_types=[], confirm=confirm)
        with pytest.raises(ConfirmationRequired):
            store.set_policy(protected_aliases=[], confirm=confirm)
    store.set_policy(no_ttl_types=["model"], default_ttl=DAY / 2)
    store.set_policy(no_ttl_types=[], protected_aliases=[], confirm=2)
    assert len(store.expire().expired) == 2


# --- J7: types without


def test_types_without_ttl(store: Store, clock: Clock) -> None:
    """J7: refused on them, and no default reaches them."""
    early = log(store, b"0", "r", "run", ttl=DAY)
    store.set_policy(no_ttl_types=["run", "code"])
    assert store.policy.no_ttl_types == ("code", "run")
    version = log(store, b"1", "r", "run")
    before = snapshot(Path(store.url))
    for refused in (
        lambda: version.set_ttl(DAY),
        lambda: log(store, b"2", "r", "run", ttl=DAY),
        lambda: store.set_default_ttl(DAY, "r"),
    ):
        with pytest.raises(RefusedError):
            refused()
    assert snapshot(Path(store.url)) == before
    version.set_ttl(None)
    version.set_ttl(INHERIT)
    log(store, b"3", "r", "run", ttl=None)
    store.set_default_ttl(DAY)
    clock.pass_(days=9)
    assert (version.ttl, version.ttl_source, early.ttl) == (None, "none", None)
    assert store.expire().expired == ()
    for bad in ("run", ["a b"], [1], None):
        with pytest.raises(InvalidInputError):
            store.set_policy(no_ttl_types=bad)


# --- J6: who may


def test_who_may_is_for_the_host_to_say(store: Store, clock: Clock) -> None:
    """J6: the hook of whoever embeds the store; 14, and nothing is changed. By default everybody may."""
    log(store, b"0", ttl=DAY)
    log(store, b"1")
    clock.pass_(hours=23)
    asked: list[tuple[str, str, str]] = []

    def authorize(actor: str, action: str, target: str) -> bool:
        asked.append((actor, action, target))
        return False

    with Store.open(store.url, runtime=Runtime(clock=clock, actor="eve", authorize=authorize)) as hosted:
        clock.pass_(hours=1)
        before = snapshot(Path(store.url))
        refused: list[Callable[[], object]] = [
            lambda: hosted.get("ds:v1").set_ttl(2 * DAY),
            lambda: hosted.set_default_ttl(2 * DAY),
            lambda: hosted.set_default_ttl(2 * DAY, "ds"),
            lambda: hosted.set_policy(default_ttl=2 * DAY),
            hosted.expire,
            lambda: hosted.retain("ds", keep_last=1),
        ]
        for act in refused:
            with pytest.raises(RefusedError, match="eve may not"):
                act()
        assert snapshot(Path(store.url)) == before
        assert asked == [
            ("eve", "set-ttl", "ds:v1"),
            ("eve", "set-default-ttl", "the store"),
            ("eve", "set-default-ttl", "ds"),
            ("eve", "set-default-ttl", "the store"),
            ("eve", "expire", "the store"),
            ("eve", "retain", "ds"),
        ]
        assert hosted.expire(dry_run=True).refs == ("ds:v0",)
        with pytest.raises(RefusedError, match="eve may not set-policy the store"):
            hosted.set_policy(trash_days=10)


# --- J8, J9: held


def test_what_holds_a_version(store: Store, clock: Clock) -> None:
    """J8: protection, its own, its collection's, or an alias's; only while it lasts."""
    store.set_default_ttl(DAY)
    store.set_policy(protected_aliases=["prod"])
    own, by_alias = log(store, b"1"), log(store, b"2", aliases=["prod", "best"])
    other = log(store, b"3", "other")
    own.protect("the paper")
    store.collection("other").protect("all of it")
    clock.pass_(days=2)
    assert [v.held_by for v in (own, by_alias, other)] == [
        ("protected: the paper",),
        ("alias prod",),
        ("collection protected: all of it",),
    ]
    report = store.expire()
    assert report.expired == ()
    assert [(v.ref, v.held_by) for v in report.held] == [
        ("ds:v0", ("protected: the paper",)),
        ("ds:v1", ("alias prod",)),
        ("other:v0", ("collection protected: all of it",)),
    ]
    assert numbers(store) == [0, 1]
    own.unprotect()
    store.collection("other").unprotect()
    by_alias.remove_alias("prod")
    assert own.held_by == ()
    assert numbers(store) == []
    assert store.expire().refs == ("ds:v0", "ds:v1", "other:v0")


# --- J9: hidden, then swept


def test_nobody_sees_a_version_past_its_time(store: Store, clock: Clock, tmp_path: Path) -> None:
    """J9: no sweep ran. Not by number, alias, digest, nor in a list; not its files, nor drafts of it."""
    version = log(store, b"1", aliases=["best"], ttl=DAY)
    entry = version["a"]
    clock.pass_(days=1, microseconds=-1)
    assert store.get("ds:best").number == 0
    clock.pass_(microseconds=1)
    assert version.expires_at == clock.now
    for ref in ("ds", "ds:latest", "ds:v0", "ds:best", f"ds:{version.digest}"):
        with pytest.raises(VersionNotFoundError) as caught:
            store.get(ref)
        assert "casstore ttl ds:v0 none" in caught.value.hint
    assert numbers(store) == []
    assert store.collection("ds").versions() == []
    (info,) = store.collections()
    assert (info.versions, info.latest, info.size) == (0, None, 0)
    uses: list[Callable[[], object]] = [
        lambda: list(version.files()),
        lambda: version["a"],
        lambda: version.download(tmp_path / "out"),
        version.verify,
        version.new_draft,
        lambda: version.add_alias("x"),
        lambda: version.update(tags=["x"]),
        lambda: store.diff("ds:v0", "ds:v0"),
    ]
    for use in uses:
        with pytest.raises(VersionNotFoundError, match="expired"):
            use()
    assert entry.read() == b"1", "who reads already goes on"
    assert store.get("ds:v0", expired=True) == version
    assert version.state == "COMMITTED"
    assert store.trash.list() == []


def test_latest_passes_over_what_has_expired(store: Store, clock: Clock) -> None:
    log(store, b"0")
    log(store, b"1", ttl=3 * DAY)
    log(store, b"2", ttl=DAY)
    clock.pass_(days=2)
    assert store.get("ds").number == 1
    (info,) = store.collections()
    assert (info.latest, info.versions) == ("v1", 2)
    store.expire()
    assert store.get("ds").number == 1
    clock.pass_(days=2)
    assert store.get("ds:latest").number == 0


def test_what_has_expired_is_no_hit(store: Store, clock: Clock) -> None:
    """B2, as for a version in the trash: who logs the same again gets a version that stays."""
    log(store, b"0")
    log(store, b"1", ttl=DAY)
    clock.pass_(days=2)
    again = log(store, b"1", dedup="any")
    assert (again.created, again.number, again.latest_before) == (True, 2, "v0")
    store.expire()
    assert store.get("ds").number == 2
    assert store.get(f"ds:{again.digest}").number == 2
    draft = store.get("ds:v0").new_draft()
    draft.add_bytes(b"x", "b")
    with pytest.raises(StaleBaseError):
        store.log_artifact(draft, if_base_latest=True)


def test_a_hit_and_its_ttl(store: Store, clock: Clock) -> None:
    """B2: a ttl that differs is reported, and taken over only if asked, and never one that is over."""
    assert log(store, b"1", ttl=3 * DAY).ttl == 3 * DAY
    assert log(store, b"1").ignored == ()
    hit = log(store, b"1", ttl=9 * DAY)
    assert (hit.created, hit.ignored, hit.ttl) == (False, ("ttl",), 3 * DAY)
    hit = log(store, b"1", ttl=9 * DAY, update=True)
    assert (hit.created, hit.ignored, hit.ttl) == (False, (), 9 * DAY)
    clock.pass_(days=2)
    hit = log(store, b"1", ttl=DAY, update=True)
    assert (hit.created, hit.ignored, hit.ttl) == (False, ("ttl",), 9 * DAY)


def test_before_a_sweep_it_comes_back_by_a_longer_ttl(store: Store, clock: Clock) -> None:
    version = log(store, aliases=["best"], ttl=DAY)
    clock.pass_(days=2)
    with pytest.raises(RefusedError):
        store.set_ttl("ds:best", 2 * DAY)
    assert store.set_ttl("ds:best", None).ref == "ds:v0"
    assert store.get("ds:best") == version
    assert store.expire().expired == ()


def test_a_sweep_is_one_commit_and_says_what_it_took(store: Store, clock: Clock) -> None:
    """J9: plain aliases save nothing and are named; the days in the trash count from the sweep."""
    log(store, b"1" * 9000, aliases=["best", "b"], ttl=DAY)
    log(store, b"2", "other", ttl=2 * DAY)
    log(store, b"3")
    clock.pass_(days=5)
    before = snapshot(Path(store.url))
    plan = store.expire(dry_run=True)
    assert snapshot(Path(store.url)) == before
    seq = head(store)
    report = store.expire()
    assert head(store) == seq + 1
    assert plan.dry_run
    assert (plan.expired, plan.held, plan.exclusive_bytes, plan.purge_at) == (
        report.expired,
        report.held,
        report.exclusive_bytes,
        report.purge_at,
    )
    assert [(v.ref, v.aliases, v.ttl, v.ttl_source) for v in report.expired] == [
        ("ds:v0", ("b", "best"), DAY, "version"),
        ("other:v0", (), 2 * DAY, "version"),
    ]
    assert report.expired[0].expired_at == clock.now - 4 * DAY
    assert report.purge_at == clock.now + 30 * DAY
    items = store.trash.list()
    assert {(item.trashed_by, item.purge_at) for item in items} == {("ttl", clock.now + 30 * DAY)}
    assert report.exclusive_bytes == sum(item.exclusive_bytes for item in items)
    assert store.expire().expired == ()
    assert head(store) == seq + 1, "nothing to do, nothing written"
    json.dumps(report.to_dict())


def test_a_restore_ends_the_ttl(store: Store, clock: Clock) -> None:
    """J9: else the next sweep takes it again. Its aliases come back."""
    log(store, aliases=["best"], ttl=DAY)
    clock.pass_(days=2)
    store.expire()
    restored = store.trash.restore("ds:v0")
    assert (restored.ttl, restored.aliases) == (None, ("best", "latest"))
    clock.pass_(days=20)
    assert store.expire().expired == ()
    assert store.get("ds:best").number == 0


def test_what_is_restored_after_its_time_is_there(store: Store, clock: Clock) -> None:
    """Deleted by hand within its time, restored after it: a restore that gives nothing back would be none."""
    log(store, b"1", ttl=3 * DAY)
    log(store, b"2", ttl=9 * DAY)
    for ref in ("ds:v0", "ds:v1"):
        store.delete(ref)
    clock.pass_(days=5)
    assert store.trash.restore("ds:v0").ttl is None
    assert store.trash.restore("ds:v1").ttl == 9 * DAY
    assert numbers(store) == [0, 1]


def test_gc_sweeps_first(store: Store, clock: Clock) -> None:
    log(store, b"1" * 5000, ttl=DAY)
    log(store, b"2")
    clock.pass_(days=2)
    assert store.gc(dry_run=True).expired == ["ds:v0"]
    report = store.gc()
    assert (report.expired, report.purged) == (["ds:v0"], [])
    assert [item.ref for item in store.trash.list()] == ["ds:v0"]
    clock.pass_(days=30, microseconds=-1)
    assert store.gc().purged == [], "its days count from the sweep"
    clock.pass_(microseconds=1)
    assert store.gc(grace=0).purged == ["ds:v0"]


def test_without_days_in_the_trash_one_run_does_both(store: Store, clock: Clock) -> None:
    store.set_policy(trash_days=0)
    log(store, b"1" * 5000, ttl=DAY)
    log(store, b"2")
    clock.pass_(days=2)
    plan = store.gc(dry_run=True, grace=0)
    report = store.gc(grace=0)
    assert (plan.expired, plan.purged) == (report.expired, report.purged) == (["ds:v0"], ["ds:v0"])
    assert plan.freed_chunks == report.freed_chunks > 0


def test_looking_ahead_and_back(store: Store, clock: Clock) -> None:
    """``now``: what will have expired, without touching it; what had, by then."""
    log(store, b"1", ttl=DAY)
    log(store, b"2", ttl=9 * DAY)
    before = snapshot(Path(store.url))
    assert store.expire(clock.now + 9 * DAY, dry_run=True).refs == ("ds:v0", "ds:v1")
    for bad in (clock.now + SECOND, datetime(2030, 1, 1), "today"):  # noqa: DTZ001
        with pytest.raises(InvalidInputError):
            store.expire(bad)  # type: ignore[arg-type]
    assert snapshot(Path(store.url)) == before
    clock.pass_(days=10)
    assert store.expire(clock.now - 5 * DAY).refs == ("ds:v0",)
    assert store.expire().refs == ("ds:v1",)


def test_deleting_by_hand_what_has_expired(store: Store, clock: Clock) -> None:
    log(store, b"1", aliases=["best"], ttl=DAY)
    clock.pass_(days=2)
    with pytest.raises(AliasGuardError):
        store.delete("ds:v0")
    assert store.delete("ds:v0", delete_aliases=True).ref == "ds:v0"
    assert store.expire().expired == ()


def test_a_store_opened_read_only(store: Store, clock: Clock) -> None:
    log(store, ttl=DAY)
    clock.pass_(days=2)
    with Store.open(store.url, read_only=True, clock=clock) as reader:
        with pytest.raises(VersionNotFoundError):
            reader.get("ds")
        assert reader.expire(dry_run=True).refs == ("ds:v0",)
        for write in (reader.expire, lambda: reader.set_ttl("ds:v0", None), lambda: reader.set_default_ttl(DAY)):
            with pytest.raises(ReadOnlyError):
                write()


# --- time


def host(store: Store, clock: Clock, name: str = "b") -> Store:
    """Another process, perhaps elsewhere."""
    return Store.open(store.url, runtime=Runtime(clock=clock, writer=name))


def test_a_clock_ahead_takes_nothing_early(store: Store, clock: Clock) -> None:
    """A host 30 days ahead: what lives longer than the day it may be believed stays, for it and for all others."""
    log(store, b"1", ttl=2 * DAY)
    wrong = Clock(clock.now + 30 * DAY)
    for name in ("b", "c", "d"):
        with host(store, wrong, name) as other:
            assert other.get("ds").number == 0
            assert other.expire().expired == ()
            assert other.gc(grace=0).expired == []
            log(other, name.encode(), "other")
    assert store.get("ds").number == 0
    # The right clocks stand still for the log until they reach what the wrong one claimed: late, never early.
    clock.pass_(days=2)
    assert store.expire().expired == ()
    clock.pass_(days=28 + 1)
    assert store.expire().refs == ("ds:v0",)


def test_a_clock_ahead_takes_nothing_out_of_the_trash_early(store: Store, clock: Clock) -> None:
    log(store, b"1" * 5000, ttl=SECOND)
    clock.pass_(days=1)
    assert store.gc(grace=0).expired == ["ds:v0"]
    wrong = Clock(clock.now + 40 * DAY)
    for name in ("b", "c", "d"):
        with host(store, wrong, name) as other:
            assert other.gc(grace=0).purged == []
            log(other, name.encode(), "other")
    assert len(store.trash) == 1


def test_a_clock_behind_makes_nothing_older(store: Store, clock: Clock) -> None:
    """A host 10 days behind logs: its version is as young as if its clock were right."""
    log(store, b"0", "other")
    behind = Clock(clock.now - 10 * DAY)
    with host(store, behind) as other:
        version = log(other, b"1", ttl=5 * DAY)
        log(store, b"1", "other")
        assert version.created_at == behind.now
        assert version.expires_at == clock.now + 5 * DAY
        assert other.get("ds").number == 0
        clock.pass_(days=5, microseconds=-1)
        assert store.get("ds").number == 0
        assert store.expire().expired == ()
        clock.pass_(microseconds=1)
        assert store.expire().refs == ("ds:v0",)


def test_a_clock_that_is_set_back_stops_time(store: Store, clock: Clock) -> None:
    log(store, ttl=5 * DAY)
    clock.pass_(days=4)
    log(store, b"2")
    clock.pass_(days=-10)
    assert store.get("ds:v0").number == 0
    clock.pass_(days=10)
    assert store.get("ds:v0").number == 0
    clock.pass_(days=1)
    with pytest.raises(VersionNotFoundError):
        store.get("ds:v0")


def test_hosts_that_are_minutes_apart_do_not_add_up_their_difference(store: Store, clock: Clock) -> None:
    """Five minutes apart and writing by turns: the log's clock is at most those ahead, however many turns."""
    log(store, b"0", ttl=DAY)
    ahead = Clock(clock.now + timedelta(minutes=5))
    began = clock.now
    with host(store, ahead) as other:
        for turn in range(60):
            clock.pass_(minutes=20)
            ahead.pass_(minutes=20)
            log((store, other)[turn % 2], b"%d" % turn, "other")
            assert (store.get("ds").number, other.get("ds").number) == (0, 0)
        clock.now = began + DAY - timedelta(minutes=5, microseconds=1)
        ahead.now = clock.now + timedelta(minutes=5)
        assert (store.expire().expired, other.expire().expired) == ((), ())
        clock.now = began + DAY
        ahead.now = clock.now + timedelta(minutes=5)
        assert other.expire().refs == ("ds:v0",)


def test_daily_runs_keep_an_idle_store_going(store: Store, clock: Clock) -> None:
    """GC.md §3.7: each run is a new process, believed for a day. Unless that is written, no day ends."""
    log(store, b"1" * 5000, ttl=3 * DAY)
    found: dict[str, int] = {}
    for day in range(1, 60):
        clock.pass_(days=1, minutes=1)
        with host(store, clock, f"cron{day}") as cron:
            report = cron.gc(grace=0)
            found |= dict.fromkeys((f"expired {ref}" for ref in report.expired), day)
            found |= dict.fromkeys((f"purged {ref}" for ref in report.purged), day)
    assert found == {"expired ds:v0": 3, "purged ds:v0": 33}
    seq = head(store)
    clock.pass_(days=9)
    with host(store, clock, "last") as cron:
        cron.gc(grace=0)
        cron.expire()
    assert head(store) == seq, "nothing waits any more, so nothing is written"


def test_what_is_shown_is_what_readers_go_by(store: Store, clock: Clock) -> None:
    """A process that comes after a long time believes a day of it: the date it shows is the one it will act by."""
    log(store, ttl=3 * DAY)
    clock.pass_(days=5)
    with host(store, clock) as other:
        version = other.get("ds")
        assert version.expires_at == clock.now + 2 * DAY
        clock.pass_(days=1)
        assert other.get("ds").expires_at == clock.now + 2 * DAY, "without a commit, no time passes for the log"
        log(other, b"x", "other")
        ends = other.get("ds").expires_at
        assert ends is not None
        clock.now = ends - timedelta(microseconds=1)
        assert other.get("ds").number == 0
        clock.now = ends
        with pytest.raises(VersionNotFoundError):
            other.get("ds")


# --- races


def meanwhile(monkeypatch: pytest.MonkeyPatch, store: Store, act: Callable[[], object]) -> None:
    """Have somebody else do something between the plan of the next commit of a store and its commit."""
    log_of = store._engine.log
    create = log_of.create

    def interrupted(segment: object) -> object:
        monkeypatch.setattr(log_of, "create", create)
        other = threading.Thread(target=act)
        other.start()
        other.join()
        return create(segment)  # type: ignore[arg-type]

    monkeypatch.setattr(log_of, "create", interrupted)


def rescue(other: Store) -> None:
    other.set_ttl("ds:v0", None)


def protect(other: Store) -> None:
    other.get("ds:v0", expired=True).set_ttl(99 * DAY)
    other.get("ds:v0").protect("kept")


def move(other: Store) -> None:
    other.set_policy(protected_aliases=["best"])


@pytest.mark.parametrize("act", [rescue, protect, move])
def test_what_is_rescued_between_plan_and_commit_stays(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, act: Callable[[Store], None]
) -> None:
    """The sweep judges by the state its commit stands on."""
    log(store, b"1", aliases=["best"], ttl=DAY)
    log(store, b"2", "other", ttl=DAY)
    clock.pass_(days=2)
    with Store.open(store.url, clock=clock) as other:
        meanwhile(monkeypatch, store, lambda: act(other))
        assert store.expire().refs == ("other:v0",)
    assert store.get("ds:best").number == 0


def test_an_alias_given_between_plan_and_commit_is_remembered(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record names the aliases it takes: one that it did not see would make it void."""
    log(store, b"1", ttl=DAY / 2)
    with Store.open(store.url, clock=clock) as other:
        clock.pass_(hours=12, microseconds=-1)
        version = other.get("ds")
        clock.pass_(microseconds=1)

        def alias() -> None:
            clock.now -= timedelta(microseconds=1)
            version.add_alias("best")
            clock.now += timedelta(microseconds=1)

        meanwhile(monkeypatch, store, alias)
        report = store.expire()
    assert report.expired[0].aliases == ("best",)
    assert store.trash.restore("ds:v0").aliases == ("best", "latest")


def test_a_version_logged_between_question_and_answer_is_counted(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number that was confirmed is that of the commit, or nothing is changed."""
    log(store, b"1")
    log(store, b"2", ttl=None)
    clock.pass_(days=2)
    with Store.open(store.url, clock=clock) as other:
        meanwhile(monkeypatch, store, lambda: other.set_ttl("ds:v1", INHERIT))
        with pytest.raises(ConfirmationRequired):
            store.set_default_ttl(DAY, confirm=1)
    assert store.policy.default_ttl is None


# --- the command line


def run(store: Store, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*words, "--store", store.url])
    assert result.exit_code == code, (words, result.output)
    return result.stdout if not code else result.stderr


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Store]:
    """A store whose versions are 20 hours old by the clock of the machine, which the command line goes by."""
    earlier = datetime.now(UTC) - timedelta(hours=20)
    with Store.open(tmp_path / "store", create=True, clock=lambda: earlier) as opened:
        log(opened, b"1", aliases=["best"], ttl=timedelta(hours=1))
        log(opened, b"2")
        yield opened


def test_ttl_on_the_command_line(real: Store) -> None:
    """J1: a bare number is refused; what has expired can be looked at and brought back."""
    for bad in ("30", "0", "0s", "-1d", "1.5d", "forever", "500ms"):
        run(real, "ttl", "ds:v1", bad, code=2)
    assert "expired" in run(real, "show", "ds:best", code=10)
    shown = json.loads(run(real, "ttl", "ds:best", "--json"))
    assert (shown["schema"], shown["ref"], shown["ttl"], shown["ttl_source"]) == ("ttl/1", "ds:v0", 3600, "version")
    assert "--allow-immediate" in run(real, "ttl", "ds:v0", "2h", code=14)
    assert "never" in run(real, "ttl", "ds:v0", "none")
    run(real, "show", "ds:best")
    run(real, "ttl", "ds:v0", "2h", "--allow-immediate")
    run(real, "show", "ds:best", code=10)
    for usage in (
        ("ttl",),
        ("ttl", "ds:v0", "--default", "1d"),
        ("ttl", "ds:v0", "--dry-run"),
        ("ttl", "ds:v0", "--confirm", "1"),
        ("ttl", "ds:v0", "--allow-immediate"),
        ("ttl", "--collection", "ds"),
        ("ttl", "--default", "30"),
        ("ttl", "--default", "inherit"),
    ):
        run(real, *usage, code=2)
    run(real, "ttl", "ds:v9", code=10)


def test_defaults_on_the_command_line(real: Store) -> None:
    """J5: 14, the number, and nothing changed, until the number is confirmed."""
    plan = json.loads(run(real, "ttl", "--default", "2h", "--dry-run", "--json"))
    assert (plan["count"], plan["refs"]) == (1, ["ds:v1"])
    assert "--confirm 1" in run(real, "ttl", "--default", "2h", code=14)
    run(real, "ttl", "--default", "2h", "--confirm", "7", code=14)
    run(real, "ttl", "--default", "30d", "--collection", "ds")
    run(real, "ttl", "--default", "2h")
    assert json.loads(run(real, "policy", "show", "--json"))["default_ttl"] == 7200
    run(real, "ttl", "--default", "inherit", "--collection", "ds", "--confirm", "1")
    assert json.loads(run(real, "expire", "--dry-run", "--json"))["expired"][1]["ref"] == "ds:v1"


def test_expire_and_retain_on_the_command_line(real: Store) -> None:
    """Data on stdout; a question needs a terminal or --yes; a dry run changes nothing."""
    before = snapshot(Path(real.url))
    assert "ds:v0" in run(real, "expire", "--dry-run")
    assert "v1" in run(real, "retain", "ds", "--keep-last", "1", "--dry-run")
    run(real, "retain", "ds", code=2)
    run(real, "retain", "ds", "--keep-last", "0", code=2)
    run(real, "retain", "nowhere", "--keep-last", "1", code=10)
    assert {k: v for k, v in snapshot(Path(real.url)).items() if k.startswith("log/")} == {
        k: v for k, v in before.items() if k.startswith("log/")
    }
    report = json.loads(run(real, "expire", "--json"))
    assert [(v["ref"], v["aliases"]) for v in report["expired"]] == [("ds:v0", ["best"])]
    run(real, "trash", "restore", "ds:v0")
    run(real, "alias", "rm", "ds:v0", "best")
    run(real, "retain", "ds", "--keep-last", "1", code=14)
    run(real, "show", "ds:v0")
    assert "trashed" in run(real, "retain", "ds", "--keep-last", "1", "--yes")
    run(real, "show", "ds:v0", code=10)
    run(real, "retain", "ds", "--keep-last", "1")


def test_rules_of_time_on_the_command_line(real: Store) -> None:
    """They can be set, emptied again, and wrong ones are refused."""
    run(real, "policy", "set", "--retention", "keep 5", code=2)
    run(real, "policy", "set", "--no-ttl-types", "a b", code=2)
    words = ("--retention", '{"keep_last": 5}', "--no-ttl-types", "run,code", "--protected-aliases", "best", "--json")
    changed = json.loads(run(real, "policy", "set", *words))
    assert (changed["retention"], changed["no_ttl_types"]) == ({"keep_last": 5}, ["code", "run"])
    assert json.loads(run(real, "retain", "ds", "--dry-run", "--json"))["rules"] == {"keep_last": 5}
    run(real, "show", "ds:best")
    emptied = ("policy", "set", "--retention", "null", "--no-ttl-types", "", "--protected-aliases", "")
    assert "--confirm 1" in run(real, *emptied, code=14)
    values = json.loads(run(real, *emptied, "--confirm", "1", "--json"))
    assert (values["retention"], values["no_ttl_types"], values["protected_aliases"]) == (None, [], [])
