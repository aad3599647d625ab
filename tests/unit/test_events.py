"""Events (FEATURES M7): a host that serves versions hears when one goes to the trash, comes back, or is gone for good.

Guards: every route is heard, for every version, once the commit is durable; a host that only reads the log learns the
same; and a broken callback breaks nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from casstore import AliasGuardError, Artifact, Event, InvalidInputError, Runtime, Store, Version, Where
from casstore.backend.memory import forget_memory
from casstore.testing.clock import Clock

URL = "memory://events"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    with Store.open(URL, create=True, runtime=Runtime(clock=clock, actor="ann")) as opened:
        yield opened
    forget_memory("events")


def log(store: Store, data: bytes, name: str = "ds", **options: object) -> Version:
    made = Artifact(name)
    made.add_bytes(data, "a")
    return store.log_artifact(made, **options)  # type: ignore[arg-type]


def listen(store: Store) -> list[Event]:
    heard: list[Event] = []
    for subscribe in (store.on_trash, store.on_restore, store.on_purge):
        subscribe(heard.append)
    return heard


def said(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.ref) for event in events]


def test_an_event_says_what_happened_to_which_version(store: Store, clock: Clock) -> None:
    heard = listen(store)
    version = log(store, b"1")
    store.delete("ds:v0", reason="too old")
    assert heard == [Event("trash", "ds:v0", version.id, "ann", "too old", store.head, clock.now)]
    store.trash.restore("ds:v0")
    store.delete("ds:v0")
    store.trash.purge("ds:v0")
    assert [event.kind for event in heard] == ["trash", "restore", "trash", "purge"]
    assert {event.id for event in heard} == {version.id}
    assert heard[0].to_dict()["at"] == clock.now.isoformat()


def two_days(store: Store, clock: Clock) -> None:
    clock.now += timedelta(days=2)


def whole_life(store: Store, clock: Clock) -> None:
    store.set_policy(trash_days=1)
    store.delete("ds:v0")
    store.trash.restore("ds:v0")
    store.delete("ds:v0")
    two_days(store, clock)
    store.gc()


def sweep(store: Store, clock: Clock) -> None:
    store.set_ttl("ds:v0", timedelta(days=1))
    two_days(store, clock)
    store.expire()


def unlink(store: Store, clock: Clock) -> None:
    store.get("ds:v0").link("p")
    store.get("p:v0").unlink()


ROUTES: dict[str, tuple[Callable[[Store, Clock], object], list[tuple[str, str]]]] = {
    "one": (lambda s, c: s.delete("ds:v0"), [("trash", "ds:v0")]),
    "many": (
        lambda s, c: s.delete(where=Where(version_in="v0..v9", collection="ds"), delete_aliases=True),
        [("trash", "ds:v0"), ("trash", "ds:v1")],
    ),
    "plan": (lambda s, c: s.plan_delete(["ds:v0"]).apply(), [("trash", "ds:v0")]),
    "collection": (
        lambda s, c: (s.collection("ds").delete(confirm="ds"), s.trash.restore("ds")),
        [("trash", "ds:v0"), ("trash", "ds:v1"), ("restore", "ds:v0"), ("restore", "ds:v1")],
    ),
    "retention": (lambda s, c: s.retain("ds", keep_last=1), [("trash", "ds:v0")]),
    "sweep": (sweep, [("trash", "ds:v0")]),
    "collector": (
        whole_life,
        [("trash", "ds:v0"), ("restore", "ds:v0"), ("trash", "ds:v0"), ("purge", "ds:v0")],
    ),
    "emptied": (
        lambda s, c: (s.delete("ds:v0"), s.trash.empty()),
        [("trash", "ds:v0"), ("purge", "ds:v0")],
    ),
    "purged collection": (
        lambda s, c: (s.collection("ds").delete(confirm="ds"), s.trash.purge("ds")),
        [("trash", "ds:v0"), ("trash", "ds:v1"), ("purge", "ds:v0"), ("purge", "ds:v1")],
    ),
    "link": (
        unlink,
        [("purge", "p:v0")],
    ),
    "linked": (
        lambda s, c: (s.get("ds:v0").link("p"), s.delete("ds:v0", delete_links=True), s.trash.restore("ds:v0")),
        [("trash", "ds:v0"), ("trash", "p:v0"), ("restore", "ds:v0"), ("restore", "p:v0")],
    ),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_heard_and_read_off_the_log_alike(store: Store, clock: Clock, route: str) -> None:
    log(store, b"1")
    log(store, b"2")
    heard = listen(store)
    act, wanted = ROUTES[route]
    act(store, clock)
    assert said(heard) == wanted
    with Store.open(URL, read_only=True) as other:
        seen = set(said(list(other.events())))
        assert seen == set(wanted)
        assert [event.commit for event in other.events()] == sorted(event.commit for event in other.events())


def test_what_was_refused_or_did_nothing_is_no_event(store: Store) -> None:
    log(store, b"1", aliases=["best"])
    heard = listen(store)
    with pytest.raises(AliasGuardError):
        store.delete("ds:v0")
    store.delete("ds:v0", delete_aliases=True)
    store.delete("ds:v0", delete_aliases=True)
    assert len(heard) == 1


def test_the_commit_is_durable_and_visible_when_a_callback_is_called_and_no_lock_is_held(store: Store) -> None:
    """A callback uses the store, also to commit, in the thread that asked."""
    log(store, b"1")
    log(store, b"x", "other")
    looked: list[object] = []

    def callback(event: Event) -> None:
        looked.append(threading.get_ident())
        with Store.open(URL, read_only=True) as other:
            looked.append([item.ref for item in other.trash.list()])
        store.get("other").add_alias("heard")

    store.on_trash(callback)
    store.delete("ds:v0")
    assert looked == [threading.get_ident(), ["ds:v0"]]
    assert "heard" in store.get("other").aliases


def test_a_callback_that_raises_is_logged_and_nothing_else(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    log(store, b"1")
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("no")

    store.on_trash(broken)
    store.on_trash(heard.append)
    with caplog.at_level(logging.ERROR, logger="casstore"):
        assert store.delete("ds:v0").ref == "ds:v0"
    assert len(heard) == 1
    (record,) = caplog.records
    assert (record.name, "ds:v0" in record.getMessage(), record.exc_info is not None) == ("casstore", True, True)


def test_a_subscription_ends_when_told_and_is_of_one_handle(store: Store) -> None:
    log(store, b"1")
    heard: list[Event] = []
    stop = store.on_trash(heard.append)
    with Store.open(URL) as other:
        other.delete("ds:v0")
        other.trash.restore("ds:v0")
    assert heard == [], "what others do is in the log"
    stop()
    stop()
    store.delete("ds:v0")
    assert heard == []
    with pytest.raises(InvalidInputError):
        store.on_trash(3)  # type: ignore[arg-type]


def test_a_host_follows_the_log(store: Store) -> None:
    log(store, b"1")
    log(store, b"2")
    with Store.open(URL) as other:
        at = store.head
        other.delete("ds:v0")
        first = list(store.events(after=at))
        assert said(first) == [("trash", "ds:v0")]
        other.trash.restore("ds:v0")
        other.delete("ds:v1", delete_aliases=True)
        assert said(list(store.events(after=first[-1].commit))) == [("restore", "ds:v0"), ("trash", "ds:v1")]
        assert list(store.events(after=other.head)) == []
    for wrong in (-1, True, "1"):
        with pytest.raises(InvalidInputError):
            store.events(after=wrong)  # type: ignore[arg-type]


def test_the_log_is_read_a_segment_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        log(store, b"%d" % number)
        store.delete(f"ds:v{number}")
    engine = store._engine
    read: list[int] = []
    real = engine.log.read

    def noted(seq: int) -> object:
        read.append(seq)
        return real(seq)

    monkeypatch.setattr(engine.log, "read", noted)
    events = store.events()
    first = next(events)
    assert read[1:] == list(range(1, first.commit + 1)), "the first is the look whether there is more"


def test_events_find_a_collection_whose_name_another_has_by_now(store: Store) -> None:
    log(store, b"1")
    store.delete("ds:v0")
    store.trash.restore("ds:v0")
    store.collection("ds").delete()
    store.trash.restore("ds")
    store.collection("ds").rename("old")
    log(store, b"new")
    log(store, b"newer")
    store.delete("ds:v0")
    assert said(list(store.events())) == [
        ("trash", "old:v0"),
        ("restore", "old:v0"),
        ("trash", "old:v0"),
        ("restore", "old:v0"),
        ("trash", "ds:v0"),
    ]


def test_each_thread_hears_what_it_did_whoever_committed_it(store: Store) -> None:
    for number in range(8):
        log(store, b"%d" % number, f"c{number}")
    heard: dict[str, str] = {}
    store.on_trash(lambda event: heard.update({event.ref: threading.current_thread().name}))
    names = [f"c{number}:v0" for number in range(8)]
    threads = [threading.Thread(target=store.delete, args=(name,), name=name) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {name: name for name in names}


def test_an_undone_collection_is_heard(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", create=True) as store:
        log(store, b"1" * 1000)
        store.delete("ds:v0")
        store.trash.purge("ds:v0")
        run = store.gc().run_id
        heard = listen(store)
        assert run is not None
        store.gc_undo(run)
        assert [(event.kind, event.ref, event.reason) for event in heard] == [("trash", "ds:v0", "undo")]


def test_a_collection_takes_along_and_brings_back_only_what_was_there(store: Store) -> None:
    log(store, b"1")
    log(store, b"2")
    log(store, b"3")
    store.delete("ds:v0")
    store.trash.purge("ds:v0")
    store.delete("ds:v1")
    heard = listen(store)
    store.collection("ds").delete(confirm="ds")
    store.trash.restore("ds")
    log(store, b"4")
    assert said(heard) == [("trash", "ds:v2"), ("restore", "ds:v2")]
    assert said(list(store.events())) == [("trash", "ds:v0"), ("purge", "ds:v0"), ("trash", "ds:v1"), *said(heard)]
