"""Who may (FEATURES J6, N6): a host is asked about everything that changes a store, in one place.

Guards: nothing that was refused is in the log, whatever the route; nothing else is held up by it; the answer is asked
for where user code may run; and a store without a host asks nobody.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest

from casstore import Artifact, Entry, InvalidInputError, RefusedError, Runtime, Store, Version, Where
from casstore.authority import questions
from casstore.backend.memory import forget_memory
from casstore.model import Protect, Record
from casstore.overlay import Tables
from casstore.testing.snapshot import snapshot

URL = "memory://authorize"
DAY = timedelta(days=1)


class Host:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refused: set[str] = set()

    def __call__(self, actor: str, action: str, target: str) -> bool:
        assert actor == "eve"
        self.asked.append((action, target))
        return action not in self.refused and "everything" not in self.refused


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def plain() -> Iterator[Store]:
    with Store.open(URL, create=True) as opened:
        yield opened
    forget_memory("authorize")


@pytest.fixture
def store(plain: Store, host: Host) -> Iterator[Store]:
    """A store with some versions, as a host opens it."""
    for number in range(3):
        log(plain, b"%d" % number)
    log(plain, b"m", "model")
    plain.delete("ds:v0")
    with Store.open(URL, runtime=Runtime(actor="eve", authorize=host)) as opened:
        yield opened


def artifact(data: bytes, name: str = "ds") -> Artifact:
    made = Artifact(name)
    made.add_bytes(data, "a")
    return made


def log(store: Store, data: bytes, name: str = "ds", **options: object) -> Version:
    return store.log_artifact(artifact(data, name), **options)  # type: ignore[arg-type]


def files_in(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


ACTS: dict[str, tuple[Callable[[Store], object], list[tuple[str, str]]]] = {
    "log": (lambda s: log(s, b"9"), [("log", "ds")]),
    "log with aliases": (
        lambda s: log(s, b"9", aliases=["prod", "latest"]),
        [("log", "ds"), ("alias", "ds:prod")],
    ),
    "log what is there": (lambda s: log(s, b"2", aliases=["prod"]), [("log", "ds"), ("alias", "ds:prod")]),
    "log in a project": (lambda s: log(s, b"9", project="p"), [("log", "p/ds")]),
    "alias": (lambda s: s.get("ds").add_alias("best"), [("alias", "ds:best")]),
    "latest on its own": (lambda s: s.get("ds:v1").add_alias("latest"), [("alias", "ds:latest")]),
    "update": (lambda s: s.get("ds").update("new"), [("update", "ds:v2")]),
    "delete": (lambda s: s.delete("ds:v1"), [("delete", "ds:v1")]),
    "delete many": (
        lambda s: s.delete(where=Where(version_in="v0..v9", collection="ds"), delete_aliases=True),
        [("delete", "ds:v1"), ("delete", "ds:v2")],
    ),
    "delete collection": (lambda s: s.collection("ds").delete(confirm="ds"), [("delete", "ds")]),
    "restore": (lambda s: s.trash.restore("ds:v0"), [("restore", "ds:v0")]),
    "purge": (lambda s: s.trash.purge("ds:v0"), [("purge", "ds:v0")]),
    "empty": (lambda s: s.trash.empty(), [("purge", "ds:v0")]),
    "protect": (lambda s: s.get("ds").protect("why"), [("protect", "ds:v2")]),
    "protect collection": (lambda s: s.collection("ds").protect("why"), [("protect", "ds")]),
    "link": (lambda s: s.get("ds").link("registry"), [("link", "registry")]),
    "rename": (lambda s: s.collection("ds").rename("new"), [("rename", "ds"), ("create", "new")]),
    "set-ttl": (lambda s: s.get("ds").set_ttl(DAY), [("set-ttl", "ds:v2")]),
    "set-default-ttl": (lambda s: s.set_default_ttl(DAY, "ds"), [("set-default-ttl", "ds")]),
    "policy": (
        lambda s: s.set_policy(default_ttl=DAY, trash_days=3),
        [("set-default-ttl", "the store"), ("set-policy", "the store")],
    ),
    "quota": (lambda s: s.quota(10**9), [("set-policy", "the store")]),
    "expire": (lambda s: s.expire(), [("expire", "the store")]),
    "retain": (lambda s: s.retain("ds", keep_last=1), [("retain", "ds")]),
    "pin": (lambda s: s.pin("ds", "why"), [("pin", "the store")]),
    "run": (lambda s: s.run(id="r1"), [("run", "r1")]),
    "gc": (lambda s: s.gc(), [("gc", "the store")]),
    "reclaim": (lambda s: s.gc_reclaim(), [("gc", "the store")]),
    "checkpoint": (lambda s: s.checkpoint(), [("gc", "the store")]),
}


@pytest.mark.parametrize("act", ACTS)
def test_each_change_is_asked_about_by_its_name(store: Store, host: Host, act: str) -> None:
    change, wanted = ACTS[act]
    change(store)
    assert list(dict.fromkeys(host.asked)) == wanted


@pytest.mark.parametrize("act", ACTS)
def test_what_is_refused_is_not_in_the_log(store: Store, host: Host, act: str) -> None:
    host.refused = {"everything"}
    at, before = store.head, [version.to_dict() for version in store.versions("ds")]
    with pytest.raises(RefusedError, match="eve may not") as caught:
        ACTS[act][0](store)
    assert caught.value.exit_code == 14
    assert ACTS[act][1][0][0] in caught.value.message
    with Store.open(URL) as other:
        assert other.head == at
        assert [version.to_dict() for version in other.versions("ds")] == before
    assert store._engine.view.refresh().seq == at


@pytest.mark.parametrize("act", [act for act in ACTS if len(ACTS[act][1]) > 1])
def test_one_refusal_refuses_all_of_it(store: Store, host: Host, act: str) -> None:
    change, wanted = ACTS[act]
    real = host.__class__.__call__

    class Last(Host):
        def __call__(self, actor: str, action: str, target: str) -> bool:
            return (action, target) != wanted[-1] and real(self, actor, action, target)

    at = store.head
    with (
        Store.open(URL, runtime=Runtime(actor="eve", authorize=Last())) as picky,
        pytest.raises(RefusedError, match=wanted[-1][0]),
    ):
        change(picky)
    assert store._engine.view.refresh().seq == at


def test_uses_are_asked_about(store: Store, host: Host) -> None:
    with store.run(id="r1") as run:
        host.asked.clear()
        with run.use("ds"):
            assert host.asked == [("use", "ds:v2")]
        assert host.asked[1:] == [("run", "r1")]
        host.asked.clear()
    assert host.asked == [("run", "r1")]
    host.refused = {"use"}
    with pytest.raises(RefusedError), store.use("ds"):
        pass
    assert [record.id for record in store.runs()] == ["r1"]
    store.delete_run("r1")
    assert host.asked[-1] == ("delete-run", "r1")


def test_reading_and_what_it_needs_is_nobody_s_business(store: Store, host: Host, tmp_path: Path) -> None:
    """Drafts hold pins, dry runs foresee: neither is asked about."""
    host.refused = {"everything"}
    version = store.get("ds")
    version.download(tmp_path / "out")
    assert [entry.path for entry in version.files() if isinstance(entry, Entry)] == ["a"]
    draft = version.new_draft()
    del draft
    store.gc(dry_run=True)
    store.expire(dry_run=True)
    store.retain("ds", keep_last=1, dry_run=True)
    store.trash.empty(dry_run=True)
    assert host.asked == []


def test_a_refused_log_reads_no_file_and_leaves_nothing_behind(tmp_path: Path, host: Host) -> None:
    with Store.open(tmp_path / "s", create=True) as plain:
        log(plain, b"1")
    host.refused = {"log"}
    with Store.open(tmp_path / "s", runtime=Runtime(actor="eve", authorize=host)) as store:
        before, packs = snapshot(tmp_path / "s"), files_in(tmp_path / "s" / "packs")
        made = Artifact("ds")
        (tmp_path / "file").write_bytes(b"x" * 1000)
        made.add_file(tmp_path / "file")
        (tmp_path / "file").unlink()
        with pytest.raises(RefusedError, match="may not log ds"):
            store.log_artifact(made)
        assert snapshot(tmp_path / "s") == before
        # The alias is known only to the commit: what was stored for it is taken back.
        host.refused = {"alias"}
        with pytest.raises(RefusedError, match="may not alias ds:prod"):
            log(store, b"y" * 1000, aliases=["prod"])
        assert files_in(tmp_path / "s" / "packs") == packs


def test_a_host_that_fails_refuses(store: Store) -> None:
    def broken(actor: str, action: str, target: str) -> bool:
        raise KeyError("no such role")

    at = store.head
    with (
        Store.open(URL, runtime=Runtime(actor="eve", authorize=broken)) as opened,
        pytest.raises(RefusedError, match="KeyError") as caught,
    ):
        opened.delete("ds:v1")
    assert isinstance(caught.value.__cause__, KeyError)
    assert store._engine.view.refresh().seq == at


def test_a_host_may_look_at_the_store_and_change_another(store: Store, plain: Store) -> None:
    """It is asked in the thread that wants the change, under no lock and in no snapshot."""
    seen: list[object] = []

    def look(actor: str, action: str, target: str) -> bool:
        if action == "delete":
            seen.append(threading.get_ident())
            plain.get("ds").add_alias(f"asked{len(seen)}")
            seen.append(opened.get("ds").aliases)
            with opened.run(id="audit"):
                pass
        return True

    with Store.open(URL, runtime=Runtime(actor="eve", authorize=look)) as opened:
        opened.delete("model:v0")
    assert seen == [threading.get_ident(), ("asked1", "latest")]
    assert plain.get_run("audit").status == "finished"


def test_requests_that_share_a_segment_stand_or_fall_alone(store: Store, host: Host) -> None:
    engine = store._engine

    def protect(number: int, reason: str) -> Callable[[Tables], tuple[Record, ...]]:
        return lambda _: (Protect("default/default/ds", number, reason),)

    real = host.__call__

    def picky(actor: str, action: str, target: str) -> bool:
        return real(actor, action, target) and target != "ds:v1"

    with Store.open(URL, runtime=Runtime(actor="eve", authorize=picky)) as opened:
        at = opened.head
        with pytest.raises(RefusedError, match="ds:v1"):
            opened._engine.commit_all([protect(1, "a"), protect(2, "b")])
        assert engine.view.refresh().seq == at + 1
    assert [store.get(ref).protected for ref in ("ds:v1", "ds:v2")] == [None, "b"]


def test_what_is_committed_together_asks_each_question_once(store: Store, host: Host) -> None:
    record = Protect("default/default/ds", 2, "a")
    store._engine.commit_all([lambda _: (record,), lambda _: (replace(record, reason="b"),), lambda _: (record,)])
    assert host.asked == [("protect", "ds:v2")]


def test_what_turns_up_at_the_commit_only_is_asked_about_then(store: Store, host: Host, plain: Store) -> None:
    """Another writer came in between: the records are others than those that were allowed."""
    raced = False

    def race(actor: str, action: str, target: str) -> bool:
        nonlocal raced
        if action == "delete" and not raced:
            raced = True
            log(plain, b"7")
        return host(actor, action, target) and target != "ds:v2"

    with Store.open(URL, runtime=Runtime(actor="eve", authorize=race)) as opened:
        at = opened.head
        with pytest.raises(RefusedError, match="may not delete ds:v2"):
            opened.delete(where=Where(version_in="v1..v9", unaliased=True, collection="ds"))
    assert store._engine.view.refresh().seq == at + 1, "only what came in between"
    assert host.asked == [("delete", "ds:v1"), ("delete", "ds:v2")]


def test_nobody_is_asked_without_a_host(plain: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(records: object) -> tuple[()]:
        raise AssertionError

    monkeypatch.setattr("casstore.authority.questions", never)
    log(plain, b"1")
    plain.delete("ds:v0")


def test_host_and_actor_may_be_given_to_open_and_to_create(host: Host, tmp_path: Path) -> None:
    """Short for the fields of a runtime; what else is in that stays."""
    host.refused = {"set-ttl"}
    now = datetime(2030, 1, 1, tzinfo=UTC)
    with Store.create(tmp_path / "made", actor="eve", authorize=host) as made:
        assert log(made, b"1").actor == "eve"
    runtime = Runtime(clock=lambda: now, actor="ann")
    with Store.open(tmp_path / "made", actor="eve", authorize=host, runtime=runtime) as opened:
        version = log(opened, b"2")
        assert (version.actor, version.created_at) == ("eve", now)
        head, files = opened.head, files_in(tmp_path)
        with pytest.raises(RefusedError, match="eve may not set-ttl ds:v1"):
            version.set_ttl(DAY)
        assert (opened.head, files_in(tmp_path)) == (head, files)
        with pickle.loads(pickle.dumps(opened)) as copy:
            assert log(copy, b"3").actor == "eve", "who acts travels"
    assert list(dict.fromkeys(host.asked)) == [("log", "ds"), ("set-ttl", "ds:v1")]
    for wrong in ({"authorize": "yes"}, {"actor": 7}, {"actor": "\udc80"}):
        with pytest.raises(InvalidInputError):
            Store.open(tmp_path / "new", create=True, **wrong)
    assert not (tmp_path / "new").exists()


def test_a_copy_of_a_store_has_no_host() -> None:
    """Functions do not travel (documented): the host opens stores in its workers itself."""
    assert Runtime().authorize is Runtime.authorize


def test_every_record_is_asked_about_on_its_own() -> None:
    """Also one that is to be: a record nobody thought of is the collector's."""
    for record in get_args(Record):
        values: dict[str, object] = {}
        for one in fields(record):
            text, data = str(one.type).startswith("str"), str(one.type).startswith("bytes")
            values[one.name] = "default/default/ds" if text else b'{"x":1}' if data else ()
            if str(one.type).startswith("int"):
                values[one.name] = 1
        assert questions((record(**values),)), record


def test_a_restore_that_must_lift_a_time_to_live_is_no_more_than_a_restore(host: Host) -> None:
    now = [datetime(2030, 1, 1, tzinfo=UTC)]
    runtime = Runtime(clock=lambda: now[0], actor="eve", authorize=host)
    with Store.open("memory://restored", create=True, runtime=runtime) as store:
        log(store, b"1")
        store.delete("ds:v0")
        store.set_default_ttl(DAY)
        now[0] += 2 * DAY
        host.asked.clear()
        host.refused = {"set-ttl"}
        assert store.trash.restore("ds:v0").ttl is None
    assert host.asked == [("restore", "ds:v0")]
    forget_memory("restored")
