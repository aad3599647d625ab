"""Promises that a review of links, drafts, runs, hooks and batches found broken, or guarded by no test.

Objects in hand act on their own version, whatever its collection is called by now (tests/unit/test_rename.py has more);
races end in errors that say what happened; hooks may use the store; what the log says is all a view needs.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from casstore import Artifact, RefusedError, Runtime, Store, Version, VersionNotFoundError
from casstore.format.layout import log_key
from casstore.model import Link, Segment, Transaction
from casstore.overlay import Overlay
from casstore.state import TABLES, VERSION, apply_transaction
from casstore.testing.checks import recount, replayed, view_hash
from casstore.testing.clock import Clock

T = TypeVar("T")

LONG = 30
"""seconds after which a thread is taken to wait for ever"""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.create(tmp_path / "s", clock=clock) as opened:
        yield opened


def draft(name: str, data: bytes) -> Artifact:
    artifact = Artifact(name, type="dataset")
    artifact.add_bytes(data, "f")
    return artifact


def log(store: Store, name: str = "ds", data: bytes = b"0", *aliases: str) -> Version:
    return store.log_artifact(draft(name, data), aliases=aliases, dedup="never")


def in_time(work: Callable[[], T]) -> T:
    """What a function returns or raises; it fails if it does not come to an end."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), "it waits for itself"
    if raised:
        raise raised[0]
    return found[0]


# --- drafts --------------------------------------------------------------------------------------


def test_what_the_base_has_can_be_added_to_a_draft_again(store: Store, tmp_path: Path) -> None:
    made = log(store, data=b"same").new_draft()
    assert made.add_bytes(b"same", "f").size == 4
    (tmp_path / "local").write_bytes(b"same")
    assert made.add_file(str(tmp_path / "local"), "f").path == "f"
    assert not store.log_artifact(made).created


def test_a_draft_of_what_is_purged_meanwhile_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = log(store)
    commit = store._engine.commit_all

    def purge_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        store.delete("ds:v0", delete_aliases=True)
        store.trash.purge("ds:v0")
        store.gc(grace=timedelta(0))
        return commit(*args, **kwargs)

    monkeypatch.setattr(store._engine, "commit_all", purge_first)
    with pytest.raises(VersionNotFoundError, match="ds:v0 was purged"):
        version.new_draft()


# --- hooks ---------------------------------------------------------------------------------------


def test_a_deletion_that_is_taken_back_at_once_still_has_its_dates(store: Store, clock: Clock) -> None:
    log(store)
    store.on_trash(lambda event: store.trash.restore(event.ref))
    done = store.delete("ds:v0", delete_aliases=True)
    assert (done.trashed_at, done.purge_at) == (clock.now, clock.now + timedelta(days=30))
    assert store.get("ds:v0").ref == "ds:v0"


def test_hooks_use_the_store_they_are_called_by(store: Store) -> None:
    seen: list[str] = []

    def audit(event: Any) -> None:
        store.on_purge(lambda _: None)()
        seen.append(log(store, "audit", event.ref.encode()).ref)
        if event.ref == "ds:v0":
            store.delete("ds:v1", delete_aliases=True)

    log(store)
    log(store)
    store.on_trash(audit)
    in_time(lambda: store.delete("ds:v0", delete_aliases=True))
    assert seen == ["audit:v0", "audit:v1"]
    assert store.versions("ds") == []


def test_whoever_is_asked_may_use_the_store(tmp_path: Path) -> None:
    Store.create(tmp_path / "s").close()
    opened: list[Store] = []

    def host(_actor: str, action: str, target: str) -> bool:
        if action == "log" and target.startswith("ds"):
            log(opened[0], "audit", os.urandom(8))
            if opened[0].versions("audit")[0].number % 5 == 0:
                raise ValueError("not today")
        return True

    with Store.open(tmp_path / "s", runtime=Runtime(actor="eve", authorize=host)) as store:
        opened.append(store)
        outcomes: Counter[str] = Counter()

        def work(name: str) -> None:
            for i in range(6):
                try:
                    log(store, name, f"{name} {i}".encode())
                    outcomes["logged"] += 1
                except RefusedError:
                    outcomes["refused"] += 1

        def all_of_them() -> None:
            threads = [threading.Thread(target=work, args=(f"ds{i % 2}",), daemon=True) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        in_time(all_of_them)
        assert outcomes.total() == 36
        assert outcomes["refused"]
        kept = [version for info in store.collections(prefix="ds") for version in store.versions(info.name)]
        assert len(kept) == outcomes["logged"]
        recount(store._engine)
        assert replayed(store._engine) == view_hash(store._engine)


def test_hooks_of_a_forked_child_are_its_own(store: Store) -> None:
    log(store)
    log(store)
    called: list[int] = []
    store.on_trash(lambda _: called.append(os.getpid()))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.delete("ds:v0", delete_aliases=True)
            status = 0 if called == [os.getpid()] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert called == []
    assert [version.ref for version in store.versions("ds")] == ["ds:v1"]


# --- links ---------------------------------------------------------------------------------------


class Counting(Overlay):
    """Tables that count what is read of versions."""

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        self.read = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        self.read += table == VERSION
        return super().get(table, key)


def test_a_link_costs_the_same_however_many_there_are(store: Store) -> None:
    source = log(store)
    costs = []
    for number in range(40):
        segment = Segment(1, b"", 0, 0, "", 0, ())
        record = Link("default/default/more", "default/default/ds", 0, (), move_latest=True)
        with store._engine.view.read() as tables:
            counting = Counting(tables)
            assert not apply_transaction(counting, segment, Transaction(os.urandom(16), (record,))).void
        costs.append(counting.read)
        source.link(f"p{number}")
    assert len(source.linked_artifacts) == 40
    assert len(set(costs)) == 1


# --- the view ------------------------------------------------------------------------------------


def test_a_checkpoint_and_the_log_alone_give_the_same_state_with_every_table_filled(
    store: Store, tmp_path: Path
) -> None:
    first = log(store, "ds", b"0", "best")
    log(store, "ds", b"1")
    log(store, "old", b"2")
    store.collection("old").rename("new")
    first.link("shelf")
    with store.run(id="r") as run:
        run.use("ds:v1")
        run.log(draft("out", b"3"))
    made = first.new_draft()
    made.add_bytes(b"more", "g")
    store.log_artifact(made)
    store.upsert(draft("parts", b"4"), "together", "p")
    store.delete("ds:v1")
    store.set_policy(trash_days=3)
    content = store.get("new:v0").get_entry("f").digest
    store.erase("new:v0/f", reason="test", confirm=str(content))
    assert store.checkpoint().made
    log(store, "ds", b"behind it")
    engine = store._engine
    with engine.view.read() as tables:
        empty = {name for name in TABLES if not tables.count(name)}
    assert not empty - {"zero"}
    state = view_hash(engine)
    assert replayed(engine) == state
    url = tmp_path / "s"
    store.close()
    shutil.rmtree(url / "index")
    old = url / log_key(1)
    old.rename(tmp_path / "segment")
    with Store.open(url) as again:
        assert view_hash(again._engine) == state, "from the checkpoint: the log has lost its beginning"
        (tmp_path / "segment").rename(old)
        again.rebuild_index()
        assert view_hash(again._engine) == state
        recount(again._engine)
