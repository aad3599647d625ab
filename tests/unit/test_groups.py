"""Guards what sessions promise that are committed together: shared packs, and each for itself all the same."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casstore import Artifact, BackendError, QuotaExceededError, StaleBaseError, Store, Version
from casstore.backend.osops import OsOps, StrPath
from casstore.engine import Engine
from casstore.format.layout import PACK_PREFIX
from casstore.log import Log
from casstore.model import Segment
from casstore.state import CHUNK
from casstore.testing.checks import check_no_garbage, recount, stored_digests
from casstore.testing.together import together
from casstore.writer import PARCEL_BYTES

RANDOM = random.Random(7)
CONTENT = [RANDOM.randbytes(1024) for _ in range(8)]


def artifact(name: str, data: bytes) -> Artifact:
    made = Artifact(name)
    made.add_bytes(data, "f")
    return made


def logging(store: Store, name: str, data: bytes, **how: object) -> Callable[[], Version]:
    return lambda: store.log_artifact(artifact(name, data), **how)  # type: ignore[arg-type]


def packs(store: Store) -> dict[str, int]:
    return {info.key: info.size for info in store._engine.backend.list(PACK_PREFIX)}


def versions(outcomes: list[object]) -> list[Version]:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Version)]


def sound(store: Store) -> None:
    report = store.fsck(read_data=True)
    assert (report.findings, report.orphan_packs) == ([], 0)
    recount(store._engine)


def indexed(store: Store, data: bytes) -> bool:
    with store._engine.view.read() as tables:
        return tables.get(CHUNK, store._engine.hash(data)) is not None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "s") as made:
        yield made


def test_a_group_stores_its_chunks_in_two_packs_and_one_segment(store: Store) -> None:
    before = store.head
    logged = versions(together(store._engine, [logging(store, f"c{i}", CONTENT[i]) for i in range(5)]))
    assert store.head == before + 1
    assert len(packs(store)) == 2
    assert [version["f"].read() for version in logged] == CONTENT[:5]
    assert all(version.new_stored_bytes > 1024 for version in logged)
    assert sum(version.new_stored_bytes for version in logged) == sum(packs(store).values())
    sound(store)


def test_what_two_sessions_of_a_group_store_is_stored_once(store: Store) -> None:
    engine = store._engine
    works = [logging(store, "a", CONTENT[0]), logging(store, "b", CONTENT[0]), logging(store, "c", CONTENT[1])]
    logged = versions(together(engine, works))
    assert set(stored_digests(engine).values()) == {1}
    assert sum(version.new_stored_bytes for version in logged) == sum(packs(store).values())
    sound(store)
    store.delete("a:v0")
    store.trash.purge("a:v0")
    store.gc(grace=0)
    assert store.get("b:v0")["f"].read() == CONTENT[0]
    sound(store)


def test_nothing_is_stored_of_a_session_that_is_refused(store: Store) -> None:
    store.log_artifact(artifact("a", CONTENT[0]))
    store.log_artifact(artifact("a", CONTENT[1]))
    known = set(packs(store))
    outcomes = together(
        store._engine,
        [
            logging(store, "a", CONTENT[2], base="v1", if_base_latest=True),
            logging(store, "a", CONTENT[3], base="v1", if_base_latest=True),
            logging(store, "b", CONTENT[4]),
        ],
    )
    assert isinstance(outcomes[1], StaleBaseError), "the one before it in the group has moved latest"
    assert not indexed(store, CONTENT[3])
    assert store.get("a:v2")["f"].read() == CONTENT[2]
    assert store.get("b:v0")["f"].read() == CONTENT[4]
    assert len(set(packs(store)) - known) == 2
    check_no_garbage(store)
    sound(store)


def test_the_second_of_a_group_brings_the_packs_if_the_first_is_refused(store: Store, tmp_path: Path) -> None:
    store.log_artifact(artifact("a", CONTENT[0]))
    with Store.open(tmp_path / "s") as other:
        outcomes = together(
            store._engine,
            [
                logging(store, "a", CONTENT[1], base="v0", if_base_latest=True),
                logging(other, "a", CONTENT[2]),  # another process: it is there before the group
                logging(store, "b", CONTENT[3]),
                logging(store, "c", CONTENT[4]),
            ],
        )
    assert isinstance(outcomes[0], StaleBaseError)
    assert [store.get(f"{name}:v0")["f"].read() for name in "bc"] == CONTENT[3:5]
    assert len(packs(store)) == 6
    check_no_garbage(store)
    sound(store)


def test_a_group_that_has_nothing_to_do_stores_nothing(store: Store) -> None:
    store.log_artifact(artifact("a", CONTENT[0]))
    head, known = store.head, packs(store)
    logged = versions(together(store._engine, [logging(store, "a", CONTENT[0]), logging(store, "a", CONTENT[0])]))
    assert [version.created for version in logged] == [False, False]
    assert (store.head, packs(store)) == (head, known)


def test_the_quota_holds_for_each_session_of_a_group(store: Store) -> None:
    one = store.log_artifact(artifact("a", CONTENT[0])).new_stored_bytes
    store.set_policy(quota_bytes=3 * one + one // 2)
    outcomes = together(store._engine, [logging(store, f"c{i}", CONTENT[i]) for i in range(1, 5)])
    refused = [outcome for outcome in outcomes if isinstance(outcome, QuotaExceededError)]
    logged = [outcome for outcome in outcomes if isinstance(outcome, Version)]
    assert (len(refused), len(logged)) == (2, 2)
    assert sum(packs(store).values()) <= 3 * one + one // 2
    assert all(version["f"].read() for version in logged)
    check_no_garbage(store)
    sound(store)


def test_a_group_that_fits_the_quota_shares_packs(store: Store) -> None:
    one = store.log_artifact(artifact("a", CONTENT[0])).new_stored_bytes
    store.set_policy(quota_bytes=20 * one)
    versions(together(store._engine, [logging(store, f"c{i}", CONTENT[i]) for i in range(1, 5)]))
    assert len(packs(store)) == 4


class Full(OsOps):
    """Has no room for temporary files that will be packs."""

    full = False

    def write(self, fd: int, path: StrPath, data: object) -> int:
        parts = data if isinstance(data, tuple) else (data,)
        if self.full and len(parts) > 1:
            raise OSError(errno.ENOSPC, "no room")
        return super().write(fd, path, data)  # type: ignore[arg-type]


def test_a_group_without_room_for_packs_commits_what_needs_none(tmp_path: Path) -> None:
    ops = Full()
    with Store.create(tmp_path / "s", ops=ops) as store:
        version = store.log_artifact(artifact("a", CONTENT[0]))
        known = packs(store)
        ops.full = True
        outcomes = together(
            store._engine,
            [
                logging(store, "b", CONTENT[1]),
                lambda: version.add_alias("kept"),
                logging(store, "c", CONTENT[2]),
            ],
        )
        ops.full = False
        assert [isinstance(outcome, BackendError) for outcome in outcomes] == [True, False, True]
        assert store.get("a:kept").ref == version.ref
        assert packs(store) == known
        sound(store)
        store.log_artifact(artifact("b", CONTENT[1]))


class Meanwhile:
    """Does something once, when a segment is about to be created."""

    def __init__(self, patch: pytest.MonkeyPatch, engine: Engine, act: Callable[[], object]) -> None:
        self.acted = False
        create = Log.create

        def creating(log: Log, segment: Segment) -> bytes:
            if log is engine.log and not self.acted:
                self.acted = True
                act()
            return create(log, segment)

        patch.setattr(Log, "create", creating)


def test_a_group_that_was_overtaken_keeps_its_packs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "s") as other:
        meanwhile = Meanwhile(monkeypatch, store._engine, lambda: other.log_artifact(artifact("x", CONTENT[7])))
        logged = versions(together(store._engine, [logging(store, f"c{i}", CONTENT[i]) for i in range(3)]))
        assert meanwhile.acted
        assert len(packs(store)) == 4
        assert [version["f"].read() for version in logged] == CONTENT[:3]
        sound(store)


def test_packs_of_a_group_that_a_collector_took_for_orphans_are_made_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "s") as other:
        found: list[str] = []

        def collect() -> None:
            found.extend(packs(other))
            assert other.gc(grace=0, orphan_age=0).condemned_packs == 2

        Meanwhile(monkeypatch, store._engine, collect)
        logged = versions(together(store._engine, [logging(store, f"c{i}", CONTENT[i]) for i in range(3)]))
        assert len(found) == 2
        assert not set(found) & set(packs(store))
        assert [version["f"].read() for version in logged] == CONTENT[:3]
        sound(store)


def test_who_is_refused_when_the_packs_are_there_leaves_garbage_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact(artifact("a", CONTENT[0]))
    with Store.open(tmp_path / "s") as other:
        Meanwhile(monkeypatch, store._engine, lambda: other.log_artifact(artifact("a", CONTENT[7])))
        works = [logging(store, "a", CONTENT[1], base="v0", if_base_latest=True), logging(store, "b", CONTENT[2])]
        outcomes = together(store._engine, works)
        assert isinstance(outcomes[0], StaleBaseError)
        assert store.get("b:v0")["f"].read() == CONTENT[2], "the packs came with the transaction that was left"
        sound(store)
        store.gc(offline=True)
        check_no_garbage(store)
        assert not indexed(store, CONTENT[1])


def test_packs_that_no_segment_names_are_taken_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact(artifact("a", CONTENT[0]))
    with Store.open(tmp_path / "s") as other:
        Meanwhile(monkeypatch, store._engine, lambda: other.log_artifact(artifact("a", CONTENT[7])))
        (outcome,) = together(store._engine, [logging(store, "a", CONTENT[1], base="v0", if_base_latest=True)])
        assert isinstance(outcome, StaleBaseError)
        assert len(packs(store)) == 4
        sound(store)


@pytest.mark.parametrize("written", [False, True])
def test_an_interrupted_leader_keeps_packs_that_may_be_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    """I4: an interrupt may come when the segment is there, and before it is known to be."""
    create = Log.create

    def interrupted(log: Log, segment: Segment) -> bytes:
        if written:
            create(log, segment)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "create", interrupted)
        outcomes = together(store._engine, [logging(store, f"c{i}", CONTENT[i]) for i in range(2)])
    assert [type(outcome) for outcome in outcomes] == [KeyboardInterrupt] * 2
    if written:
        assert [store.get(f"c{i}:v0")["f"].read() for i in range(2)] == CONTENT[:2]
        sound(store)
    store.log_artifact(artifact("later", CONTENT[5]))
    assert store.fsck(read_data=True).findings == []


def test_an_interrupt_before_the_segment_takes_the_packs_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Engine, seq: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_make_durable", interrupted)
        outcomes = together(store._engine, [logging(store, f"c{i}", CONTENT[i]) for i in range(2)])
    assert [type(outcome) for outcome in outcomes] == [KeyboardInterrupt] * 2
    assert packs(store) == {}


def test_who_is_committed_does_not_wait_for_the_next_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else threads that log again and again come one by one, and never in groups."""
    create = Log.create
    second, go_on = threading.Event(), threading.Event()
    creations = 0

    def creating(log: Log, segment: Segment) -> bytes:
        nonlocal creations
        creations += 1
        if creations == 2:
            second.set()
            assert go_on.wait(40)
        return create(log, segment)

    monkeypatch.setattr("casstore.grouping.GROUP", 2)
    monkeypatch.setattr("casstore.grouping.PATIENCE", 60)  # nobody is to depend on it
    monkeypatch.setattr(Log, "create", creating)
    finished = threading.Semaphore(0)

    def work(number: int) -> Callable[[], Version]:
        def run() -> Version:
            try:
                return store.log_artifact(artifact(f"c{number}", CONTENT[number]))
            finally:
                finished.release()

        return run

    def watch() -> bool:
        assert second.wait(30)
        return all(finished.acquire(timeout=15) for _ in range(2))

    answers: list[bool] = []

    def watcher() -> None:
        answers.append(watch())
        go_on.set()

    thread = threading.Thread(target=watcher)
    thread.start()
    versions(together(store._engine, [work(number) for number in range(4)]))
    thread.join()
    assert answers == [True]
    assert creations == 2


def test_a_group_heals_what_is_damaged_even_if_nothing_else_is_to_be_done(store: Store, tmp_path: Path) -> None:
    store.log_artifact(artifact("a", CONTENT[0]))
    for key in packs(store):
        path = tmp_path / "s" / key
        data = path.read_bytes()
        if CONTENT[0] in data:
            path.chmod(0o600)
            path.write_bytes(data.replace(CONTENT[0], CONTENT[1]))
    store.fsck(read_data=True, repair=True)
    assert store._engine.view.lost(store._engine.hash(CONTENT[0])) is not None
    together(store._engine, [logging(store, "a", CONTENT[0]), logging(store, "b", CONTENT[2])])
    assert [store.get(f"{name}:v0")["f"].read() for name in "ab"] == [CONTENT[0], CONTENT[2]]
    assert store._engine.view.lost(store._engine.hash(CONTENT[0])) is None


def test_large_sessions_have_packs_of_their_own(store: Store) -> None:
    large = RANDOM.randbytes(PARCEL_BYTES + 1)
    versions(together(store._engine, [logging(store, "large", large), logging(store, "small", CONTENT[0])]))
    assert len(packs(store)) == 4
    assert store.get("large:v0")["f"].read() == large
    sound(store)


def test_sessions_at_the_same_time_hold_the_store_until_the_last_has_gone(store: Store, tmp_path: Path) -> None:
    first, last = store._engine.hold("logging"), store._engine.hold("logging")
    with Store.open(tmp_path / "s") as other:
        assert len(other._engine.sessions.holders()) == 1
        first.release()
        assert len(other._engine.sessions.holders()) == 1
        last.release()
        last.release()
        assert other._engine.sessions.holders() == []
        other._engine.hold("collecting", exclusive=True).release()
