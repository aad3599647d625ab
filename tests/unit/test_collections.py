"""Guards deletion, restoration and the end of a collection as one unit (FEATURES K7, M4), and M1, M3, M10."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from casstore import (
    AliasGuardError,
    Artifact,
    Collection,
    CollectionNotFoundError,
    ConfirmationRequired,
    IntegrityError,
    NameTakenError,
    ParentDeletedError,
    RefusedError,
    Store,
    TypeConflictError,
    Version,
    VersionNotFoundError,
    Where,
)
from casstore.model import Unpurge
from casstore.testing.clock import Clock
from casstore.testing.snapshot import snapshot


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.create(tmp_path / "s", clock=clock) as opened:
        yield opened


def log(store: Store, name: str = "ds", data: bytes = b"same", *aliases: str, kind: str = "dataset") -> Version:
    project, _, short = name.rpartition("/")
    artifact = Artifact(short, type=kind)
    artifact.add_bytes(data, "f")
    return store.log_artifact(artifact, aliases=aliases, dedup="never", project=project or None)


def packs(store: Store) -> set[str]:
    return {path for path, what in snapshot(Path(store.url)).items() if path.startswith("packs/") and " " in what}


def head(store: Store) -> int:
    return store.log(limit=1)[0].seq


def test_the_handle(store: Store) -> None:
    log(store)
    log(store)
    collection = store.collection("ds")
    assert isinstance(collection, Collection)
    assert (collection.name, collection.qualified_name, collection.type) == ("ds", "default/default/ds", "dataset")
    assert [version.ref for version in collection.versions()] == ["ds:v1", "ds:v0"]
    assert collection == store.collection("default/ds")
    assert collection.to_dict()["protected"] is None
    with pytest.raises(CollectionNotFoundError):
        store.collection("nope")


def test_one_unit_one_commit_and_back(store: Store, clock: Clock) -> None:
    """K7, M4: what was in the trash before does not come back with it; labels and aliases do."""
    log(store, "ds", b"0").delete()
    log(store, "ds", b"1", "best").update(tags=["t"])
    log(store, "ds", b"2")
    before = head(store)
    done = store.collection("ds").delete(confirm="ds", reason="moved")
    assert head(store) == before + 1
    assert (done.ref, done.versions, done.already_in_trash) == ("ds", 2, False)
    assert done.trashed_at == clock.now
    assert done.purge_at == clock.now + timedelta(days=30)
    assert done.exclusive_bytes > 0
    restored = store.trash.restore("ds")
    assert isinstance(restored, Collection)
    assert head(store) == before + 2
    assert [version.ref for version in restored.versions()] == ["ds:v2", "ds:v1"]
    assert store.get("ds:best").tags == ("t",)
    assert store.get("ds").ref == "ds:v2"
    assert [item.ref for item in store.trash.list()] == ["ds:v0"]
    assert store.trash.restore("ds:v0").ref == "ds:v0"


def test_while_it_is_in_the_trash(store: Store) -> None:
    """Hidden everywhere, its name taken, its versions not to be had without it."""
    version = log(store)
    log(store, "other")
    collection = store.collection("ds")
    collection.delete()
    assert [found.name for found in store.collections()] == ["other"]
    hint = "casstore trash restore ds"
    for attempt in (
        lambda: store.get("ds"),
        lambda: store.get("ds:v0"),
        lambda: store.versions("ds"),
        lambda: store.collection("ds"),
        lambda: store.alias_log("ds"),
        lambda: collection.type,
        lambda: store.delete(where=Where(unaliased=True), collection="ds"),
    ):
        with pytest.raises(CollectionNotFoundError) as caught:
            attempt()
        assert (caught.value.exit_code, caught.value.hint) == (10, hint)
    with pytest.raises(VersionNotFoundError) as gone:
        version.add_alias("best")
    assert gone.value.hint == hint
    before = snapshot(Path(store.url))
    with pytest.raises(NameTakenError) as taken:
        log(store, "ds", b"new")
    assert taken.value.exit_code == 11
    assert hint in taken.value.hint
    with pytest.raises(ParentDeletedError) as parent:
        store.trash.restore("ds:v0")
    assert (parent.value.exit_code, parent.value.hint) == (14, hint)
    assert snapshot(Path(store.url)) == before
    assert collection.delete().already_in_trash
    assert store.delete("ds:v0").already_in_trash
    assert [found.trashed_by for found in store.versions("ds", trashed=True)] == ["collection"]
    assert store.delete(where=Where(version_in="v0")).refs == ("other:v0",)


def test_a_log_that_was_under_way_is_refused(store: Store, tmp_path: Path) -> None:
    """The name is looked at again at the commit; nothing of the log stays."""
    log(store)
    before = packs(store)
    artifact = Artifact("ds", type="dataset")
    artifact.add_bytes(os.urandom(50_000), "f")

    def trash_it(phase: str, done: int, total: int) -> None:
        with Store.open(store.url) as other:
            other.collection("ds").delete()

    with pytest.raises((NameTakenError, CollectionNotFoundError)):
        store.log_artifact(artifact, progress=trash_it)
    assert packs(store) == before


def test_aliases_are_in_the_way(store: Store) -> None:
    """K7: unless they may go, or the name was typed."""
    log(store, "p/ds", b"1", "best")
    collection = store.collection("p/ds")
    with pytest.raises(AliasGuardError) as caught:
        collection.delete()
    assert caught.value.aliases == ("best",)
    for wrong in ("ds", "p/d", ""):
        with pytest.raises(ConfirmationRequired):
            collection.delete(confirm=wrong)
    assert collection.delete(delete_aliases=True).versions == 1
    store.trash.restore("p/ds")
    assert store.get("p/ds:best").ref == "p/ds:v0"
    assert collection.delete(confirm="default/p/ds").ref == "p/ds"


def test_a_dry_run_changes_nothing(store: Store) -> None:
    log(store)
    before = snapshot(Path(store.url))
    foreseen = store.collection("ds").delete(dry_run=True)
    assert snapshot(Path(store.url)) == before
    assert store.collection("ds").delete() == foreseen


def test_an_empty_collection(store: Store) -> None:
    """Without versions there is no latest; it can be trashed, restored and purged all the same."""
    log(store).delete()
    collection = store.collection("ds")
    assert collection.versions() == []
    assert collection.delete().versions == 0
    (item, old) = sorted(store.trash.list(), key=lambda item: item.kind)
    assert (item.ref, item.kind, item.versions, item.exclusive_bytes) == ("ds", "collection", 0, 0)
    assert (old.ref, old.kind) == ("ds:v0", "version")
    assert store.trash.restore("ds").versions() == []
    store.trash.purge("ds:v0")
    store.collection("ds").delete()
    assert store.trash.purge("ds") == "ds"
    with pytest.raises(CollectionNotFoundError):
        store.collection("ds")


def test_after_the_purge_the_name_is_free_and_its_numbers_are_not(store: Store) -> None:
    for _ in range(3):
        log(store)
    store.get("ds:v0").delete()
    store.collection("ds").delete()
    assert store.trash.purge("ds") == "ds"
    assert store.trash.list() == []
    assert len(store.trash) == 0
    for attempt in (lambda: store.get("ds"), lambda: store.collection("ds"), lambda: store.trash.restore("ds:v0")):
        with pytest.raises((CollectionNotFoundError, VersionNotFoundError)):
            attempt()
    with pytest.raises(CollectionNotFoundError):
        store.trash.purge("ds")
    assert [found.name for found in store.collections()] == []
    assert log(store, "ds", b"new", kind="model").ref == "ds:v3"
    assert store.collection("ds").type == "model"
    with pytest.raises(TypeConflictError):
        log(store, "ds", b"new", kind="dataset")
    store.rebuild_index()
    assert [version.ref for version in store.versions("ds")] == ["ds:v3"]
    assert store.fsck().clean


def test_for_good_at_once(store: Store) -> None:
    """FEATURES §0.3, 7: the other rule, for who asks for it."""
    for _ in range(2):
        log(store)
    store.get("ds:v0").add_alias("prod")
    before = store.head
    with pytest.raises(AliasGuardError):
        store.collection("ds").delete(permanent=True)
    plan = store.collection("ds").delete(True, permanent=True, dry_run=True)
    assert (plan.versions, plan.purge_at, store.head) == (2, plan.trashed_at, before)
    done = store.collection("ds").delete(confirm="ds", permanent=True)
    assert (done.ref, done.versions) == ("ds", 2)
    assert store.trash.list() == []
    assert log(store, "ds", b"new", kind="model").ref == "ds:v2"


def test_purge_by_date(store: Store, clock: Clock) -> None:
    """M1: the versions and then the collection, at its date and never before."""
    store.set_policy(trash_days=60)
    log(store).delete()
    store.set_policy(trash_days=30)
    log(store)
    store.collection("ds").delete()
    clock.pass_(days=30, seconds=-1)
    assert store.gc().purged == []
    clock.pass_(seconds=1)
    assert store.gc(dry_run=True).purged == ["ds:v1"]
    assert store.gc().purged == ["ds:v1"], "the name waits for the version that was trashed for longer"
    assert [item.kind for item in store.trash.list("ref")] == ["collection", "version"]
    clock.pass_(days=30)
    assert store.gc().purged == ["ds:v0", "ds"]
    assert store.trash.list() == []
    assert log(store).ref == "ds:v2"


def test_changing_trash_days_affects_later_deletions_only(store: Store, clock: Clock) -> None:
    """M1, for collections and for many at once."""
    log(store, "a")
    log(store, "b")
    log(store, "c")
    first = store.collection("a").delete()
    store.set_policy(trash_days=1)
    second = store.collection("b").delete()
    third = store.delete(where=Where(version_in="v0"), collection="c")
    assert [done.purge_at - clock.now for done in (first, second, third)] == [
        timedelta(days=days) for days in (30, 1, 1)
    ]
    assert {item.ref: item.purge_at for item in store.trash.list()} == {
        "a": first.purge_at,
        "b": second.purge_at,
        "c:v0": third.purge_at,
    }


def test_the_list_shows_the_unit(store: Store) -> None:
    """M10: one line for the collection, with what purging it frees; those trashed before stand for themselves."""
    shared = os.urandom(40_000)
    log(store, "other", shared)
    log(store, "ds", b"gone").delete()
    log(store, "ds", shared)
    log(store, "ds", os.urandom(30_000))
    store.collection("ds").delete(reason="why")
    item = next(item for item in store.trash.list() if item.kind == "collection")
    assert (item.ref, item.versions, item.size, item.trashed_by, item.reason) == ("ds", 2, 70_000, "collection", "why")
    assert 30_000 <= item.exclusive_bytes < 35_000
    assert item.to_dict()["kind"] == "collection"
    assert len(store.trash) == 2


def test_emptying_the_trash_is_one_commit(store: Store, clock: Clock) -> None:
    for name in "abc":
        log(store, name)
    log(store, "a", b"2").delete()
    store.collection("a").delete()
    clock.pass_(days=2)
    store.delete("b:v0")
    before = head(store)
    assert store.trash.empty(dry_run=True) == ["a", "b:v0"]
    assert head(store) == before
    assert store.trash.empty(timedelta(days=1)) == ["a"]
    assert head(store) == before + 1
    assert store.trash.empty() == ["b:v0"]
    assert store.trash.empty() == []
    assert head(store) == before + 2


def test_restore_checks_every_tree_first(store: Store) -> None:
    """M2: a chunk that is nowhere is found before the state changes, and the unit stays whole."""
    log(store, "ds", b"whole")
    kept = packs(store)
    log(store, "ds", os.urandom(3000))
    lost = packs(store) - kept
    store.collection("ds").delete()
    for path in lost:
        (Path(store.url) / path).unlink()
    before = head(store)
    with pytest.raises(IntegrityError, match="ds stays in the trash"):
        store.trash.restore("ds")
    assert head(store) == before
    assert [item.ref for item in store.trash.list()] == ["ds"]


def test_what_is_not_in_the_trash(store: Store) -> None:
    log(store)
    with pytest.raises(CollectionNotFoundError):
        store.trash.restore("nope")
    with pytest.raises(RefusedError, match="not in the trash"):
        store.trash.purge("ds:v0")
    assert store.get("ds").ref == "ds:v0"


def test_a_version_purged_from_the_unit_stays_purged(store: Store) -> None:
    log(store, "ds", b"0")
    log(store, "ds", b"1")
    store.collection("ds").delete()
    assert store.trash.purge("ds:v1") == "ds:v1"
    assert [version.ref for version in store.trash.restore("ds").versions()] == ["ds:v0"]
    assert store.get("ds").ref == "ds:v0"


def test_what_a_collection_held_is_collected(store: Store) -> None:
    """After purge and gc only what others need is left."""
    shared = os.urandom(40_000)
    log(store, "other", shared)
    log(store, "ds", shared)
    log(store, "ds", os.urandom(30_000))
    before = store.du().unique
    store.collection("ds").delete()
    store.gc(grace=0)
    assert store.du().unique == before
    store.trash.purge("ds")
    store.gc(offline=True)
    assert before - store.du().unique >= 30_000
    assert store.get("other")["f"].read() == shared


def test_an_empty_collection_is_purged_at_its_date(store: Store, clock: Clock) -> None:
    """No version of it waits in the trash, so it is its own date that counts."""
    log(store).delete()
    store.trash.empty()
    store.collection("ds").delete()
    clock.pass_(days=30, seconds=-1)
    assert store.gc().purged == []
    clock.pass_(seconds=1)
    assert store.gc().purged == ["ds"]


def unpurge(store: Store, number: int) -> None:
    """What taking back a run of the collector does to a version."""
    store._engine.commit(lambda _: (Unpurge("default/default/ds", number, 2**51, "me"),))


def test_a_version_that_was_purged_and_taken_back_is_no_part_of_the_unit(store: Store) -> None:
    log(store, "ds", b"0")
    log(store, "ds", b"1")
    store.collection("ds").delete()
    store.trash.purge("ds:v1")
    unpurge(store, 1)
    assert [(item.ref, item.versions) for item in store.trash.list("ref")] == [("ds", 1), ("ds:v1", 1)]
    assert len(store.trash) == 2
    assert [version.ref for version in store.trash.restore("ds").versions()] == ["ds:v0"]
    with pytest.raises(VersionNotFoundError) as caught:
        store.get("ds:v1")
    assert caught.value.hint == "casstore trash restore ds:v1"
    assert store.trash.restore("ds:v1").ref == "ds:v1"


def test_a_version_does_not_come_back_under_another_type(store: Store) -> None:
    """Its collection was purged, and the name given another type, before its purge was taken back."""
    log(store, "ds", b"0")
    log(store, "keep", b"0")
    store.collection("ds").delete()
    store.trash.purge("ds")
    log(store, "ds", b"1", kind="model")
    unpurge(store, 0)
    with pytest.raises(TypeConflictError, match="model") as caught:
        store.trash.restore("ds:v0")
    assert caught.value.exit_code == 11
    assert [item.ref for item in store.trash.list()] == ["ds:v0"]
    assert store.trash.empty() == ["ds:v0"]
