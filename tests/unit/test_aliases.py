"""Aliases (FEATURES C1-C3, C6-C7): pointers of a collection, moved atomically, with a history; ``latest`` is ours.

Where FEATURES leaves it open: ``latest`` can be *set* on a version (B2 needs that) but not removed, as C1 says that it
always means some version; the guard of K2 is for names a person chose (decision 0008).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casstore import (
    AliasGuardError,
    Artifact,
    CasstoreError,
    InvalidInputError,
    InvalidNameError,
    LimitError,
    NotFoundError,
    RefusedError,
    StaleBaseError,
    Store,
    Version,
    VersionNotFoundError,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def log(store: Store, data: bytes, **options: object) -> Version:
    draft = Artifact("ds")
    draft.add_bytes(data, "a")
    return store.log_artifact(draft, **options)  # type: ignore[arg-type]


@pytest.fixture
def versions(store: Store) -> list[Version]:
    """v0, v1 and v2."""
    return [log(store, str(number).encode()) for number in range(3)]


def where(store: Store, alias: str) -> str | None:
    try:
        return store.get(f"ds:{alias}").version
    except VersionNotFoundError:
        return None


# --- C1: latest


def test_latest_is_the_highest_version(store: Store, versions: list[Version]) -> None:
    assert where(store, "latest") == "v2"
    assert versions[2].aliases == ("latest",)
    versions[1].delete()
    assert where(store, "latest") == "v2"
    versions[2].delete()
    assert where(store, "latest") == "v0"
    versions[0].delete()
    assert where(store, "latest") is None
    store.trash.restore("ds:v1")
    assert where(store, "latest") == "v1"
    assert log(store, b"new").aliases == ("latest",)


def test_latest_can_stay_where_it_is(store: Store, versions: list[Version]) -> None:
    """C1: ``move_latest=False``; also when that means that there is none."""
    assert log(store, b"hidden", move_latest=False).version == "v3"
    assert where(store, "latest") == "v2"
    draft = Artifact("other")
    draft.add_bytes(b"", "a")
    first = store.log_artifact(draft, move_latest=False)
    assert first.aliases == ()
    with pytest.raises(VersionNotFoundError):
        store.get("other")
    hit = log(store, b"2", aliases=["seen"], move_latest=False)
    assert (hit.version, where(store, "seen")) == ("v2", "v2")


def test_passing_other_aliases_moves_latest_too(store: Store, versions: list[Version]) -> None:
    """C1 and DESIGN §8's example: ``aliases=["best"]`` does not switch ``latest`` off."""
    assert set(log(store, b"3", aliases=["best"]).aliases) == {"best", "latest"}
    assert set(log(store, b"4", aliases=["latest", "best"]).aliases) == {"best", "latest"}
    assert log(store, b"5", aliases=[]).aliases == ("latest",)


def test_latest_moves_to_a_hit(store: Store) -> None:
    """B2: requested aliases, ``latest`` among them, move to the version that was hit."""
    log(store, b"A")
    log(store, b"B")
    assert log(store, b"A", dedup="any", aliases=["best"]).version == "v0"
    assert (where(store, "latest"), where(store, "best")) == ("v0", "v0")


def test_latest_cannot_be_taken_away(store: Store, versions: list[Version]) -> None:
    with pytest.raises(RefusedError) as caught:
        versions[2].remove_alias("latest")
    assert caught.value.exit_code == 14
    assert caught.value.hint
    versions[2].set_aliases([])
    assert versions[2].aliases == ("latest",)
    versions[0].add_alias("latest")
    assert where(store, "latest") == "v0"


# --- C2, C7


@pytest.mark.parametrize("alias", ["v3", "v0", "sha256:" + "0" * 64, "", " ", "a\n", "a:b", "a/b", "x" * 129, None, 7])
def test_bad_aliases_are_refused_everywhere(alias: object, store: Store, versions: list[Version]) -> None:
    """C2, C7: ``vN`` can be neither set, nor removed, nor replaced."""
    uses = (
        lambda: versions[0].add_alias(alias),  # type: ignore[arg-type]
        lambda: versions[0].remove_alias(alias),  # type: ignore[arg-type]
        lambda: versions[0].set_aliases([alias]),  # type: ignore[list-item]
        lambda: log(store, b"new", aliases=[alias]),
    )
    head = store.log(limit=1)[0].seq
    for use in uses:
        with pytest.raises(InvalidNameError) as caught:
            use()
        assert caught.value.exit_code == 2
    assert store.log(limit=1)[0].seq == head, "nothing was written"


def test_vn_never_counts_as_an_alias(store: Store, versions: list[Version]) -> None:
    """§0.3 #5."""
    assert "v0" not in versions[0].aliases
    assert versions[0].delete().ref == "ds:v0"


def test_at_most_a_hundred_a_version(store: Store, versions: list[Version]) -> None:
    """C2: however they come there: one by one, at once, with a log, with a hit. ``latest`` does not count."""
    names = [f"a{i}" for i in range(100)]
    versions[2].set_aliases(names)
    assert len(versions[2].aliases) == 101
    with pytest.raises(LimitError):
        versions[2].add_alias("one-more")
    with pytest.raises(LimitError):
        versions[2].set_aliases([*names, "one-more"])
    with pytest.raises(LimitError):
        log(store, b"2", aliases=["one-more"])
    with pytest.raises(LimitError):
        log(store, b"new", aliases=[*names, "one-more"])
    assert log(store, b"2", aliases=["a5"]).version == "v2"
    versions[2].add_alias("a7")
    versions[2].remove_alias("a0")
    versions[2].add_alias("one-more")
    assert where(store, "one-more") == "v2"


# --- C3, C6


def test_an_alias_is_on_one_version_of_a_collection(store: Store, versions: list[Version]) -> None:
    versions[0].add_alias("best")
    assert where(store, "best") == "v0"
    head = store.log(limit=1)[0].seq
    versions[0].add_alias("best")
    assert store.log(limit=1)[0].seq == head, "it is there already"
    versions[1].add_alias("best")
    assert where(store, "best") == "v1"
    assert versions[0].aliases == ()
    other = Artifact("other")
    other.add_bytes(b"", "a")
    store.log_artifact(other, aliases=["best"])
    assert where(store, "best") == "v1"


def test_removing_what_is_not_there(versions: list[Version]) -> None:
    """C3: 10, unless it may be missing."""
    versions[0].add_alias("best")
    with pytest.raises(NotFoundError) as caught:
        versions[1].remove_alias("best")
    assert caught.value.exit_code == 10
    versions[1].remove_alias("best", missing_ok=True)
    assert versions[0].aliases == ("best",)
    versions[0].remove_alias("best")
    with pytest.raises(NotFoundError):
        versions[0].remove_alias("best")


def test_replacing_is_one_commit(store: Store, versions: list[Version]) -> None:
    versions[1].set_aliases(["a", "b"])
    versions[0].add_alias("c")
    head = store.log(limit=1)[0].seq
    versions[1].set_aliases(["b", "c", "d"])
    assert store.log(limit=1)[0].seq == head + 1
    assert versions[1].aliases == ("b", "c", "d")
    assert versions[0].aliases == ()
    assert where(store, "a") is None
    versions[1].set_aliases(["d", "c", "b"])
    assert store.log(limit=1)[0].seq == head + 1, "nothing to do"


def test_compare_and_set(store: Store, versions: list[Version]) -> None:
    """C3: ``if_on``; ``""`` stands for absent."""
    versions[0].add_alias("prod", if_on="")
    with pytest.raises(StaleBaseError) as caught:
        versions[1].add_alias("prod", if_on="")
    assert caught.value.exit_code == 13
    with pytest.raises(StaleBaseError):
        versions[2].add_alias("prod", if_on="v1")
    versions[1].add_alias("prod", if_on="v0")
    assert where(store, "prod") == "v1"
    for wrong in ("best", "1", "v01", 1, b"v1"):
        with pytest.raises(InvalidInputError):
            versions[0].add_alias("prod", if_on=wrong)  # type: ignore[arg-type]


def test_only_one_of_many_wins(store: Store, versions: list[Version]) -> None:
    """Atomic also among threads: each round, one thread moves the alias and the others hear of it."""
    versions[0].add_alias("turn")
    outcomes: list[CasstoreError | None] = []
    barrier = threading.Barrier(4)

    def grab() -> None:
        barrier.wait()
        try:
            versions[1].add_alias("turn", if_on="v0")
            outcomes.append(None)
        except StaleBaseError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=grab) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1
    assert where(store, "turn") == "v1"


def test_history(store: Store, versions: list[Version]) -> None:
    """C6: who moved what, when, from where to where; it survives the alias and the version."""
    versions[0].add_alias("best")
    versions[1].add_alias("best")
    versions[1].remove_alias("best")
    versions[1].add_alias("best")
    versions[1].delete(delete_aliases=True)
    moves = [(change.before, change.after) for change in store.alias_log("ds", "best")]
    assert moves == [(-1, 0), (0, 1), (1, -1), (-1, 1), (1, -1)]
    changes = store.alias_log("ds:best")
    assert all(change.actor and change.at and change.seq for change in changes)
    assert [change.seq for change in changes] == sorted(change.seq for change in changes)
    assert {change.alias for change in store.alias_log("ds")} == {"latest", "best"}


def test_aliases_of_a_deleted_version(store: Store, versions: list[Version]) -> None:
    """K2, K10: guarded, then gone with it, then back with it."""
    versions[0].set_aliases(["a", "b"])
    with pytest.raises(AliasGuardError) as caught:
        versions[0].delete()
    assert caught.value.aliases == ("a", "b")
    assert "delete_aliases=True" in caught.value.hint
    versions[0].delete(delete_aliases=True)
    assert (where(store, "a"), where(store, "b")) == (None, None)
    uses: list[Callable[[], object]] = [
        lambda: versions[0].add_alias("x"),
        lambda: versions[0].remove_alias("a"),
        lambda: versions[0].set_aliases(["x"]),
        lambda: versions[0].update(description="x"),
    ]
    for use in uses:
        with pytest.raises(VersionNotFoundError):
            use()
    store.trash.restore("ds:v0")
    assert versions[0].aliases == ("a", "b")
