"""Guards how a group comes together, what it costs on the disk, and that looking less often shows no less."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from casstore import Artifact, Runtime, Store, Version
from casstore.backend import create_all
from casstore.backend.local import LocalBackend
from casstore.backend.memory import MemoryBackend
from casstore.backend.osops import OsOps, StrPath
from casstore.errors import AlreadyExistsError
from casstore.format.layout import PACK_PREFIX
from casstore.index import IndexDamagedError, MemoryIndex
from casstore.overlay import Overlay, Tables
from casstore.state.transition import _Changes
from casstore.testing.together import together


def artifact(name: str, data: bytes) -> Artifact:
    made = Artifact(name)
    made.add_bytes(data, "f")
    return made


class Waits:
    """In the place of the event a leader waits for: counts, and does not wait."""

    def __init__(self) -> None:
        self.count = 0

    def set(self) -> None:
        """Nobody waits."""

    def clear(self) -> None:
        """As `set`."""

    def wait(self, timeout: float) -> bool:
        """Time is over at once."""
        assert timeout > 0
        self.count += 1
        return False


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store on which every group takes hours, so that nobody soon stops waiting for others."""
    monkeypatch.setattr("casstore.grouping.GATHER", 20)
    hours = itertools.count(1)
    with Store.create(tmp_path / "s", runtime=Runtime(monotonic=lambda: 3600.0 * next(hours))) as made:
        yield made


def test_a_group_waits_for_those_who_were_committed_with_the_one_before(store: Store) -> None:
    engine, before = store._engine, store.head
    turn = threading.Lock()

    def first() -> object:
        store.log_artifact(artifact("a", b"1"))
        with turn:
            return store.log_artifact(artifact("a", b"2"))

    def second() -> object:
        store.log_artifact(artifact("b", b"1"))
        while not turn.locked() or not engine._gathering.lock.locked():
            if store.get("a").version == "v1":  # it has not waited
                break
        return store.log_artifact(artifact("b", b"2"))

    outcomes = together(engine, [first, second])
    assert [outcome.version for outcome in outcomes if isinstance(outcome, Version)] == ["v1", "v1"]
    assert store.head == before + 2


def test_who_commits_alone_waits_for_nobody(store: Store) -> None:
    store._engine._gathering.gathered = waits = Waits()  # type: ignore[assignment]
    for number in range(3):
        store.log_artifact(artifact("a", b"%d" % number))
    assert waits.count == 0


def test_who_does_not_come_again_is_waited_for_once(store: Store) -> None:
    store._engine._gathering.gathered = waits = Waits()  # type: ignore[assignment]
    works: list[Callable[[], object]] = [
        lambda: store.log_artifact(artifact("a", b"1")),
        lambda: store.log_artifact(artifact("b", b"1")),
    ]
    together(store._engine, works)
    assert waits.count == 0
    for number in range(3):
        store.log_artifact(artifact("c", b"%d" % number))
        assert waits.count == 1


# --- packs that are published together


class Recorded(OsOps):
    """Which calls were made, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def link(self, source: StrPath, target: StrPath) -> None:
        super().link(source, target)
        self.calls.append(("link", Path(target).name))

    def fsync(self, fd: int, path: StrPath) -> None:
        super().fsync(fd, path)
        self.calls.append(("fsync", ""))

    def fsync_dir(self, path: StrPath) -> None:
        super().fsync_dir(path)
        self.calls.append(("fsync_dir", Path(path).name))


def test_objects_that_are_created_together_are_durable_with_one_sync_of_each_directory(tmp_path: Path) -> None:
    ops = Recorded()
    backend = LocalBackend(tmp_path / "b", ops)
    create_all(backend, [("x/0", b""), ("y/0", b"")])  # so that the directories are there
    ops.calls.clear()
    create_all(backend, [("x/1", b"one"), ("y/1", b"two"), ("x/2", b"three")])
    published = [("fsync", ""), ("link", "1"), ("fsync", ""), ("link", "1"), ("fsync", ""), ("link", "2")]
    assert ops.calls == [*published, ("fsync_dir", "x"), ("fsync_dir", "y")]
    assert [backend.read(key) for key in ("x/1", "y/1", "x/2")] == [b"one", b"two", b"three"]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_none_that_follows_one_that_is_taken_is_created(tmp_path: Path, kind: str) -> None:
    backend = LocalBackend(tmp_path / "b", OsOps()) if kind == "local" else MemoryBackend()
    backend.create("x/2", b"old")
    with pytest.raises(AlreadyExistsError):
        create_all(backend, [("x/1", b"one"), ("x/2", b"two"), ("x/3", b"three")])
    assert [info.key for info in backend.list("")] == ["x/1", "x/2"]
    assert backend.read("x/2") == b"old"


def test_the_packs_of_a_group_are_in_one_directory(tmp_path: Path) -> None:
    ops = Recorded()
    with Store.create(tmp_path / "s", ops=ops) as store:
        before = {info.key for info in store._engine.backend.list(PACK_PREFIX)}
        ops.calls.clear()
        store.log_artifact(artifact("a", b"1"))
        (first, second) = {info.key for info in store._engine.backend.list(PACK_PREFIX)} - before
    home = first.split("/")[1]
    assert second.split("/")[1] == home
    assert ops.calls.count(("fsync_dir", home)) == 1


# --- what is not looked up again


def test_what_a_log_returns_is_what_the_store_has(store: Store) -> None:
    works: list[Callable[[], object]] = [
        lambda: store.log_artifact(artifact("a", b"1"), aliases=["x"]),
        lambda: store.log_artifact(artifact("a", b"2")),
        lambda: store.log_artifact(artifact("b", b"1"), tags=["t"], attrs={"k": 1}),
    ]
    for outcome in together(store._engine, works):
        assert isinstance(outcome, Version)
        assert outcome.created
        found = store.get(outcome.qualified_name)
        assert outcome._found.version == found._found.version
        assert outcome._found.name == found._found.name
        # The next number may have been taken since.
        assert dataclasses.replace(outcome._found.collection, next_number=0) == dataclasses.replace(
            found._found.collection, next_number=0
        )


def test_a_log_finds_what_another_handle_has_stored_meanwhile(tmp_path: Path) -> None:
    """Each with a view of its own, so that only the log tells."""
    place = tmp_path / "s"
    with Store.create(place) as one, Store.open(place) as two:
        shared = one._engine.view._storage
        one._engine.view._storage = MemoryIndex(shared._tables)  # type: ignore[attr-defined]
        shared.close()
        one._engine.view._reached = 0
        one.log_artifact(artifact("a", b"1"))
        two.log_artifact(artifact("b", b"common"))
        logged = one.log_artifact(artifact("c", b"common"))
        assert logged.created
        assert logged.new_bytes == 0
        assert [v.ref for v in one.versions("b")] == ["b:v0"]


def test_a_read_mends_a_view_that_turns_out_to_be_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.log_artifact(artifact("a", b"1"))
    view = store._engine.view
    storage = view._storage
    read = storage.read
    discarded: list[int | None] = []

    def damaged() -> AbstractContextManager[Tables]:
        monkeypatch.setattr(storage, "read", read)
        raise IndexDamagedError("bad page", generation=7)

    monkeypatch.setattr(view, "_discard", discarded.append)
    monkeypatch.setattr(storage, "read", damaged)
    with view.read() as tables:
        assert tables.count("version") == 1
    assert discarded == [7]


def test_an_overlay_counts_what_a_scan_shows_however_it_was_changed() -> None:
    chance = random.Random(11)
    keys = [bytes([number]) for number in range(1, 12)]
    for _ in range(200):
        index = MemoryIndex(("t", "u"))
        index.update(lambda tables: tables.change("t", dict.fromkeys(chance.sample(keys, 5), b"old")))
        with index.read() as base:
            overlay = Overlay(base)
            for _ in range(12):
                layer = chance.choice([Overlay, _Changes])(overlay)
                for _ in range(chance.randrange(3)):
                    if chance.random() < 0.5:
                        layer.put("t", chance.choice(keys), b"new")
                    else:
                        layer.delete("t", chance.choice(keys))
                    if chance.random() < 0.5:
                        assert layer.count("t") == sum(1 for _ in layer.scan("t"))
                layer.change("t", {key: chance.choice([None, b"x"]) for key in chance.sample(keys, 2)})
                assert layer.count("t") == sum(1 for _ in layer.scan("t"))
                if chance.random() < 0.7:
                    layer.flush()
                    assert layer.count("t") == overlay.count("t")
                assert overlay.count("t") == sum(1 for _ in overlay.scan("t"))


def test_a_transaction_counts_what_it_has_set_and_taken_back() -> None:
    index = MemoryIndex(("t",))
    with index.read() as base:
        changes = _Changes(Overlay(base))
        changes.put("t", b"a", b"")
        assert changes.count("t") == 1
        changes.delete("t", b"a")
        assert changes.count("t") == 0
        changes.put("t", b"b", b"")
        assert changes.count("t") == 1
