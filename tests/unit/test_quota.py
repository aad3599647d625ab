"""Guards the quota (FEATURES M5, Q21): checked at the commit on stored bytes; what would exceed it leaves no trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from casstore import Artifact, ConflictError, InvalidInputError, QuotaExceededError, Store, Version, Where
from casstore.testing.clock import Clock
from casstore.testing.snapshot import snapshot

KIB = 1024


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.create(tmp_path / "s", clock=clock) as opened:
        yield opened


def log(store: Store, name: str, data: bytes, ttl: timedelta | None = None) -> Version:
    artifact = Artifact(name)
    artifact.add_bytes(data, "f")
    return store.log_artifact(artifact, dedup="never", ttl=ttl)


def packs(store: Store) -> int:
    root = Path(store.url) / "packs"
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def names(store: Store) -> set[str]:
    return {path for path, what in snapshot(Path(store.url)).items() if " " in what}


def test_what_does_not_fit_leaves_no_trace(store: Store) -> None:
    log(store, "a", os.urandom(100 * KIB))
    store.quota(150 * KIB)
    before = names(store)
    with pytest.raises(QuotaExceededError, match=f"of {150 * KIB}") as caught:
        log(store, "b", os.urandom(60 * KIB))
    assert caught.value.exit_code == 14
    assert caught.value.hint
    assert names(store) == before
    assert [found.name for found in store.collections()] == ["a"]
    assert log(store, "b", os.urandom(20 * KIB)).ref == "b:v0"
    assert packs(store) <= 150 * KIB


def test_the_limit_is_in_bytes_of_packs(store: Store) -> None:
    """Stored, not logical: compressed and shared content costs what it takes. Exact to the byte."""
    log(store, "a", bytes(1000 * KIB))
    used = store.quota().used
    assert used == packs(store) < 10 * KIB
    fresh = os.urandom(5 * KIB)
    needed = log(store, "b", fresh).new_stored_bytes
    store.collection("b").delete()
    store.trash.empty()
    store.gc(offline=True)
    base = store.quota().used
    store.quota(base + needed - 1)
    with pytest.raises(QuotaExceededError):
        log(store, "b", fresh)
    store.quota(base + needed)
    log(store, "b", fresh)
    assert store.quota().left == 0


def test_over_the_quota_all_but_storing_goes_on(store: Store) -> None:
    version = log(store, "a", os.urandom(50 * KIB))
    log(store, "a", os.urandom(50 * KIB))
    found = store.quota(10 * KIB)
    assert found.left is not None
    assert found.left < 0
    version.add_alias("best")
    version.update(description="words", tags=["t"])
    version.protect("x")
    version.unprotect()
    same = Artifact("a")
    same.add_bytes(store.get("a:v0")["f"].read(), "f")
    assert store.log_artifact(same, dedup="any").created is False
    version.delete(delete_aliases=True)
    store.trash.restore("a:v0")
    store.delete(where=Where(version_in="v0"), delete_aliases=True)
    store.trash.empty()
    assert store.gc(grace=0).freed_bytes > 0
    store.set_policy(trash_days=3)
    assert store.get("a")["f"].read()


def test_it_says_how_much_is_trash_and_what_to_do(store: Store) -> None:
    """M5: the trash counts until it is purged, and garbage until it is collected."""
    log(store, "a", os.urandom(80 * KIB)).delete()
    log(store, "b", os.urandom(40 * KIB))
    store.quota(130 * KIB)
    data = os.urandom(60 * KIB)
    with pytest.raises(QuotaExceededError) as caught:
        log(store, "c", data)
    trash = store.quota().trash
    assert trash >= 80 * KIB
    assert f"{trash} of the" in str(caught.value)
    assert "trash empty" in caught.value.hint
    store.trash.empty()
    with pytest.raises(QuotaExceededError) as again:
        log(store, "c", data)
    assert "casstore gc frees" in again.value.hint
    assert "trash empty" not in again.value.hint
    store.gc(grace=0)
    assert log(store, "c", data).ref == "c:v0"


def test_the_trash_may_be_free(store: Store) -> None:
    log(store, "a", os.urandom(80 * KIB)).delete()
    store.quota(100 * KIB)
    data = os.urandom(60 * KIB)
    with pytest.raises(QuotaExceededError):
        log(store, "c", data)
    found = store.quota(trash="free")
    assert (found.max_bytes, found.trash_counts) == (100 * KIB, False)
    assert found.used == found.stored - found.trash
    log(store, "c", data)
    store.trash.restore("a:v0")
    with pytest.raises(QuotaExceededError):
        log(store, "c", os.urandom(KIB))


def test_no_limit(store: Store) -> None:
    assert store.quota().max_bytes is None
    assert store.quota().left is None
    store.quota(0)
    with pytest.raises(QuotaExceededError):
        log(store, "a", b"1")
    assert store.quota(None).to_dict()["max_bytes"] is None
    log(store, "a", b"1")


@pytest.mark.parametrize("wrong", [-1, 1.5, "1GB", True])
def test_bad_limits(store: Store, wrong: object) -> None:
    with pytest.raises(InvalidInputError):
        store.quota(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        store.quota(trash="no")
    assert store.quota().max_bytes is None


def test_it_is_checked_on_the_state_the_commit_is_appended_to(store: Store, tmp_path: Path) -> None:
    """Two writers that fit one by one: the one that comes second is refused, though it began first."""
    store.quota(100 * KIB)
    slow = Artifact("slow")
    slow.add_bytes(os.urandom(60 * KIB), "f")
    done: list[str] = []

    def overtake(phase: str, _done: int, _total: int) -> None:
        if not done:
            with Store.open(store.url) as other:
                done.append(log(other, "fast", os.urandom(60 * KIB)).ref)

    with pytest.raises((QuotaExceededError, ConflictError)) as caught:
        store.log_artifact(slow, progress=overtake)
    assert isinstance(caught.value, QuotaExceededError)
    assert [found.name for found in store.collections()] == ["fast"]
    assert packs(store) <= 100 * KIB


def test_the_forecast(store: Store, clock: Clock) -> None:
    """Q21: by the dates of the trash, and of times to live with the days in the trash that follow."""
    shared = os.urandom(30 * KIB)
    log(store, "a", os.urandom(50 * KIB)).delete()
    log(store, "b", shared, ttl=timedelta(days=10))
    log(store, "c", shared)
    log(store, "d", os.urandom(20 * KIB), ttl=timedelta(days=1))
    log(store, "e", os.urandom(9 * KIB), ttl=timedelta(days=1)).protect("keep")
    soon, later, last = (store.forecast(timedelta(days=days)) for days in (29, 30, 45))
    assert (soon.freed_bytes, soon.trashed, soon.expiring) == (0, 0, 0)
    assert (later.trashed, later.expiring) == (1, 0)
    assert later.until == clock.now + timedelta(days=30)
    assert 50 * KIB <= later.freed_bytes < 52 * KIB
    assert (last.trashed, last.expiring) == (1, 2)
    assert 70 * KIB <= last.freed_bytes < 73 * KIB, "what is shared stays"
    with pytest.raises(InvalidInputError):
        store.forecast(30)  # type: ignore[arg-type]
