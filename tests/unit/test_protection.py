"""Guards protection from deletion by every route (FEATURES K3, Q14), and who deleted what and why (K1, K9)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import (
    Artifact,
    CollectionNotFoundError,
    InvalidInputError,
    ProtectedError,
    Store,
    Version,
    VersionNotFoundError,
    Where,
)
from casstore.testing.snapshot import snapshot

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "s", clock=lambda: NOW) as opened:
        yield opened


def log(store: Store, name: str = "ds", *aliases: str) -> Version:
    artifact = Artifact(name)
    artifact.add_bytes(b"same", "f")
    return store.log_artifact(artifact, aliases=aliases, dedup="never")


def test_a_protected_version_stays(store: Store) -> None:
    """K3: 14, whatever the route and the flags; the hint says how to lift it; nothing is changed."""
    version = log(store, "ds", "best")
    version.protect("used by the paper")
    assert version.protected == store.get("ds:v0").protected == "used by the paper"
    before = snapshot(Path(store.url))
    for attempt in (
        lambda: version.delete(),
        lambda: version.delete(delete_aliases=True),
        lambda: store.delete("ds:v0", delete_aliases=True),
        lambda: store.plan_delete(["ds:v0"], delete_aliases=True).apply(),
        lambda: store.collection("ds").delete(delete_aliases=True, confirm="ds"),
    ):
        with pytest.raises(ProtectedError, match="used by the paper") as caught:
            attempt()
        assert caught.value.exit_code == 14
        assert caught.value.hint == "casstore unprotect ds:v0"
    skipped = store.delete(where=Where(version_in="v0"), delete_aliases=True)
    assert skipped.refs == ()
    assert snapshot(Path(store.url)) == before
    version.unprotect()
    assert not version.protected
    version.delete(delete_aliases=True)


def test_protection_of_a_collection_holds_for_what_is_in_it(store: Store) -> None:
    log(store)
    collection = store.collection("ds")
    collection.protect("audit")
    assert collection.protected == "audit"
    later = log(store)
    assert later.protected is None, "it is the collection that is protected"
    with pytest.raises(ProtectedError, match="protected collection: audit") as inside:
        later.delete()
    assert inside.value.hint == "casstore unprotect ds"
    with pytest.raises(ProtectedError, match="audit") as caught:
        collection.delete()
    assert caught.value.hint == "casstore unprotect ds"
    assert dict(store.delete(where=Where(unaliased=True)).skipped)
    collection.unprotect()
    assert not collection.protected
    later.delete()


def test_protected_aliases(store: Store) -> None:
    """By the policy of the store, while the alias is on the version."""
    store.set_policy(protected_aliases=["prod"])
    first, second = log(store, "ds", "prod"), log(store)
    with pytest.raises(ProtectedError, match="protected alias prod") as named:
        first.delete(delete_aliases=True)
    assert "casstore alias rm ds:v0" in named.value.hint
    with pytest.raises(ProtectedError):
        store.collection("ds").delete(confirm="ds")
    assert dict(store.delete(where=Where(alias="prod"), delete_aliases=True).skipped) == {
        "ds:v0": "has the protected alias prod"
    }
    second.add_alias("prod")
    assert first.delete().ref == "ds:v0"
    store.set_policy(protected_aliases=[])
    second.delete(delete_aliases=True)


def test_protecting_twice_is_once(store: Store) -> None:
    version = log(store)
    assert version.protected is None
    version.protect("one")
    head = store.log(limit=1)[0].seq
    version.protect("one")
    assert store.log(limit=1)[0].seq == head
    version.protect("two")
    assert version.protected == "two"


def test_what_cannot_be_protected(store: Store) -> None:
    version = log(store)
    for wrong in ("", "  ", 5, None):
        with pytest.raises(InvalidInputError):
            version.protect(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError):
            store.collection("ds").protect(wrong)  # type: ignore[arg-type]
    collection = store.collection("ds")
    version.delete()
    with pytest.raises(VersionNotFoundError):
        version.protect("too late")
    collection.protect("an empty one, too")
    collection.unprotect()
    collection.delete()
    with pytest.raises(CollectionNotFoundError):
        collection.protect("too late")


def test_purging_what_is_in_the_trash_is_still_possible(store: Store) -> None:
    version = log(store)
    log(store)
    version.delete()
    store.collection("ds").protect("from now on")
    assert store.trash.purge("ds:v0") == "ds:v0"


def test_protection_outlives_a_rebuild_and_other_labels(store: Store) -> None:
    version = log(store)
    version.protect("why")
    version.update(description="words", tags=["t"])
    store.collection("ds").protect("all")
    store.rebuild_index()
    assert store.get("ds").protected == "why"
    assert store.collection("ds").protected == "all"


def test_who_deleted_it_and_why(store: Store) -> None:
    """K9."""
    version = log(store)
    assert (version.trashed_by, version.trash_reason, version.trash_actor) == (None, None, None)
    version.delete(reason="obsolete")
    assert (version.trashed_by, version.trash_reason, version.trash_actor) == ("user", "obsolete", version.actor)
    restored = store.trash.restore("ds:v0")
    assert (restored.trashed_by, restored.trash_reason) == (None, None)
    store.delete(where=Where(version_in="v0"), reason="swept")
    (swept,) = store.versions("ds", trashed=True)
    assert (swept.trashed_by, swept.trash_reason) == ("user", "swept")
    assert store.trash.list()[0].purge_at == NOW + timedelta(days=30)
