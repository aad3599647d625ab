"""Deleting, restoring and purging versions (FEATURES K1, K2, K10, L1, L2, M1-M3, M10) as a user sees it.

Guards DESIGN principle 5: what is in the trash is whole and countable; what is needed elsewhere is never freed.
"Stored bytes" of one version are its chunks' shares of their frames: exact but for one byte of rounding per chunk. What
a collection frees besides are the packs' own bytes (headers, tables of contents), which are no content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from casstore import (
    AliasGuardError,
    Artifact,
    GCDisabledError,
    IntegrityError,
    InvalidInputError,
    RefusedError,
    Store,
    Version,
    VersionNotFoundError,
)
from casstore.testing.clock import Clock
from casstore.testing.snapshot import snapshot


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True, clock=clock) as opened:
        yield opened


def log(store: Store, name: str = "ds", **contents: bytes) -> Version:
    draft = Artifact(name)
    for path, data in contents.items():
        draft.add_bytes(data, path)
    return store.log_artifact(draft)


def content(version: Version) -> dict[str, bytes]:
    return {entry.path: entry.read() for entry in version.files()}


def packs(store: Store) -> dict[str, str]:
    """The pack files, by name."""
    return {path: what for path, what in snapshot(Path(store.url)).items() if path.startswith("packs/") and " " in what}


def stored(store: Store) -> int:
    return sum((Path(store.url) / path).stat().st_size for path in packs(store))


# --- K1, K2: delete


def test_what_a_deletion_says(store: Store, clock: Clock) -> None:
    """K1: when, until when, and what purging would free."""
    shared = os.urandom(50_000)
    log(store, "other", shared=shared)
    version = log(store, own=os.urandom(80_000), shared=shared)
    clock.pass_(hours=1)
    deletion = version.delete(reason="obsolete")
    assert deletion.ref == "ds:v0"
    assert deletion.trashed_at == clock.now
    assert deletion.purge_at == clock.now + timedelta(days=30)
    assert 80_000 <= deletion.exclusive_bytes < 82_000
    assert 50_000 <= deletion.shared_bytes < 52_000
    assert not deletion.already_in_trash
    assert version.state == "TRASHED"
    (item,) = store.trash.list()
    assert (item.reason, item.trashed_by, item.trashed_at, item.purge_at) == (
        "obsolete",
        "user",
        deletion.trashed_at,
        deletion.purge_at,
    )


def test_deleting_again_changes_nothing(store: Store, clock: Clock) -> None:
    """K1: success, and says so; the date stays that of the first time."""
    version = log(store, a=b"1")
    first = version.delete()
    clock.pass_(days=3)
    head = store.log(limit=1)[0].seq
    for again in (version.delete(), store.delete("ds:v0")):
        assert again.already_in_trash
        assert again.trashed_at == first.trashed_at
        assert again.purge_at == first.purge_at
    assert store.log(limit=1)[0].seq == head
    store.trash.purge("ds:v0")
    with pytest.raises(VersionNotFoundError, match="purged"):
        version.delete()


def test_the_alias_guard(store: Store) -> None:
    """K2: nothing moves; with the flag the aliases go. ``latest`` alone is no reason to refuse."""
    version = log(store, a=b"1")
    version.add_alias("best")
    before = snapshot(Path(store.url))
    with pytest.raises(AliasGuardError) as caught:
        store.delete("ds:best")
    assert caught.value.exit_code == 14
    assert caught.value.aliases == ("best",)
    assert snapshot(Path(store.url)) == before
    store.delete("ds:best", delete_aliases=True)
    assert log(store, a=b"2").delete().ref == "ds:v1"


def test_deleting_frees_nothing_and_is_undone_byte_for_byte(store: Store) -> None:
    """K1: contents stay until the purge and a collection."""
    version = log(store, a=os.urandom(5000))
    wanted, before = content(version), packs(store)
    version.delete()
    store.gc(grace=0, offline=True)
    assert packs(store) == before
    assert content(store.trash.restore("ds:v0")) == wanted


# --- K10: unreadable


def test_a_trashed_version_cannot_be_used(store: Store, tmp_path: Path) -> None:
    """K10: by any name, nor through an object that was there before; who reads already, reads on."""
    version = log(store, a=b"1" * 100)
    version.add_alias("best")
    opened, entry = version["a"].open(), version["a"]
    assert opened.read(10) == b"1" * 10
    version.delete(delete_aliases=True)
    uses = (
        lambda: store.get("ds"),
        lambda: store.get("ds:v0"),
        lambda: store.get("ds:best"),
        lambda: store.get(f"ds:{version.digest}"),
        lambda: store.diff("ds:v0", "ds:v0"),
        lambda: version.download(tmp_path / "out"),
        lambda: version.files(),
        lambda: version["a"],
        lambda: version.new_draft(),
        lambda: version.verify(),
    )
    for use in uses:
        with pytest.raises(VersionNotFoundError) as caught:
            use()
        assert caught.value.exit_code == 10
        assert caught.value.hint
    assert not (tmp_path / "out").exists()
    assert store.versions("ds") == []
    assert store.versions("ds", trashed=True) == [version]
    assert opened.read() == b"1" * 90
    assert entry.read() == b"1" * 100


# --- M2: restore


def test_restore_brings_everything_back(store: Store) -> None:
    """M2: number, metadata, tags, description, aliases."""
    draft = Artifact("ds", metadata={"k": 1}, description="words")
    draft.add_bytes(b"1", "a")
    version = store.log_artifact(draft, aliases=["best", "prod"], tags=["t"])
    before = version.to_dict()
    log(store, a=b"2")
    version.delete(delete_aliases=True)
    restored = store.trash.restore("ds:v0")
    assert restored.aliases_not_restored == ()
    after = restored.to_dict()
    assert {**after, "aliases": sorted(restored.aliases)} == {**before, "aliases": ["best", "prod"]}
    assert store.get("ds:latest").version == "v1"
    assert not store.trash.list()


def test_an_alias_that_was_taken_meanwhile_stays_where_it_is(store: Store) -> None:
    """M2."""
    version = log(store, a=b"1")
    version.set_aliases(["best", "mine"])
    version.delete(delete_aliases=True)
    log(store, a=b"2").add_alias("best")
    restored = store.trash.restore("ds:v0")
    assert restored.aliases_not_restored == ("best",)
    assert restored.aliases == ("mine",)
    assert store.get("ds:best").version == "v1"


def test_what_cannot_be_restored(store: Store) -> None:
    log(store, a=b"1")
    log(store, a=b"2").delete()
    with pytest.raises(VersionNotFoundError, match="not in the trash") as caught:
        store.trash.restore("ds:v0")
    assert caught.value.exit_code == 10
    with pytest.raises(VersionNotFoundError):
        store.trash.restore("ds:v7")
    for vague in ("ds", "ds:latest"):
        with pytest.raises(InvalidInputError):
            store.trash.restore(vague)
    store.trash.purge("ds:v1")
    with pytest.raises(VersionNotFoundError, match="purged"):
        store.trash.restore("ds:v1")


def test_restore_checks_first_and_leaves_what_is_damaged_in_the_trash(store: Store) -> None:
    """M2, Q6: a chunk that is nowhere is found before the state changes (20)."""
    log(store, "other", b=b"whole")
    before = set(packs(store))
    version = log(store, a=os.urandom(3000))
    version.delete()
    for path in set(packs(store)) - before:
        (Path(store.url) / path).unlink()
    head = store.log(limit=1)[0].seq
    with pytest.raises(IntegrityError, match="stays in the trash") as caught:
        store.trash.restore("ds:v0")
    assert caught.value.exit_code == 20
    assert (caught.value.collection, caught.value.version) == ("ds", "v0")
    assert [item.ref for item in store.trash.list()] == ["ds:v0"]
    assert store.log(limit=1)[0].seq == head
    assert content(store.get("other")) == {"b": b"whole"}


# --- M1, M3: purge


def test_purging_by_hand(store: Store) -> None:
    """M3: only from the trash (14); for good; nothing else is touched."""
    keep, version = log(store, a=b"1"), log(store, a=b"2", b=os.urandom(3000))
    for live in ("ds:v0", "ds:v1"):
        with pytest.raises(RefusedError, match="not in the trash") as caught:
            store.trash.purge(live)
        assert caught.value.exit_code == 14
        assert caught.value.hint
    version.delete()
    assert store.trash.purge("ds:v1") == "ds:v1"
    for again in (store.trash.purge, store.trash.restore):
        with pytest.raises(VersionNotFoundError):
            again("ds:v1")
    version.refresh()
    assert version.state == "PURGED"
    assert not store.trash.list()
    assert content(keep) == {"a": b"1"}
    with pytest.raises(VersionNotFoundError):
        store.trash.purge("ds:v9")


def test_purge_is_due_after_its_days_never_before(store: Store, clock: Clock) -> None:
    """M1: at or after ``purge_at``, in a collection; ``trash_days`` counts for later deletions only."""
    first, second = log(store, a=b"1"), log(store, a=b"2")
    log(store, a=b"3")
    first.delete()
    assert store.set_policy(trash_days=2).trash_days == 2
    deletion = second.delete()
    assert deletion.purge_at == clock.now + timedelta(days=2)
    clock.pass_(days=2, seconds=-1)
    assert store.gc().purged == []
    clock.pass_(seconds=1)
    assert store.gc(dry_run=True).purged == ["ds:v1"]
    assert [item.ref for item in store.trash.list()] == ["ds:v1", "ds:v0"], "a dry run purges nothing"
    assert store.gc().purged == ["ds:v1"]
    clock.pass_(days=28)
    assert store.gc().purged == ["ds:v0"]
    assert not store.trash.list()


def test_emptying_the_trash(store: Store, clock: Clock) -> None:
    """M3: all, or what has been there for some time."""
    for number in range(3):
        log(store, a=str(number).encode()).delete()
        clock.pass_(days=1)
    for wrong in (5, "1d"):
        with pytest.raises(InvalidInputError):
            store.trash.empty(older_than=wrong)  # type: ignore[arg-type]
    assert store.trash.empty(older_than=timedelta(days=2)) == ["ds:v0", "ds:v1"]
    assert store.trash.empty() == ["ds:v2"]
    assert store.trash.empty() == []
    assert len(store.trash) == 0


# --- M10: the list


def test_the_list_is_sorted_and_json(store: Store, clock: Clock) -> None:
    """M10: the first to be purged first."""
    versions = [log(store, name, a=name.encode()) for name in ("c", "a", "b")]
    store.set_policy(trash_days=9)
    versions[0].delete()
    clock.pass_(hours=1)
    store.set_policy(trash_days=5)
    versions[1].delete()
    clock.pass_(hours=1)
    store.set_policy(trash_days=7)
    versions[2].delete()
    assert [item.ref for item in store.trash.list()] == ["a:v0", "b:v0", "c:v0"]
    assert [item.ref for item in store.trash.list("trashed_at")] == ["c:v0", "a:v0", "b:v0"]
    assert [item.ref for item in store.trash.list("ref")] == ["a:v0", "b:v0", "c:v0"]
    with pytest.raises(InvalidInputError):
        store.trash.list("size")
    values = json.loads(json.dumps([item.to_dict() for item in store.trash.list()]))
    assert values[0]["ref"] == "a:v0"
    assert datetime.fromisoformat(values[0]["purge_at"]) == versions[1].created_at + timedelta(days=5, hours=1)


PACK_OVERHEAD = 4096
"""bytes a pack has beside its frames: magic, guarded table of contents, seal (two packs here, a few chunks each)"""


def test_exclusive_bytes_are_what_a_collection_frees(store: Store) -> None:
    """M10, Q1: alone, shared with a live version, shared within the trash: what purging *this one* would free."""
    data = {name: os.urandom(70_000) for name in ("one", "two", "three")}
    log(store, "keeper", shared=data["two"])
    versions = {name: log(store, name, own=data[name], shared=data["two"]) for name in ("one", "three")}
    pair = [log(store, f"pair{number}", twin=b"twin" + data["one"][:30_000]) for number in range(2)]
    for version in (*versions.values(), *pair):
        version.delete()
    exclusive = {item.ref: item.exclusive_bytes for item in store.trash.list()}
    assert exclusive["pair0:v0"] == exclusive["pair1:v0"] == 0, "each is kept by the other"
    assert 70_000 <= exclusive["one:v0"] < 72_000
    for ref in ("one:v0", "three:v0"):
        before = stored(store)
        store.trash.purge(ref)
        report = store.gc(grace=0, offline=True)
        freed = before - stored(store)
        assert report.freed_bytes == freed
        assert exclusive[ref] <= freed <= exclusive[ref] + PACK_OVERHEAD
    store.trash.purge("pair0:v0")
    assert store.trash.list()[0].exclusive_bytes > 30_000
    assert content(store.get("keeper")) == {"shared": data["two"]}


# --- L1, L2


def test_nothing_shared_is_ever_freed(store: Store) -> None:
    """L2: earlier, later, other collection, other project, other path, part of a longer file, trash, open draft."""
    data = os.urandom(300_000)
    victim = log(store, a=data, name_only=b"1")
    holders = {
        "later": log(store, a=data, more=b"2"),
        "collection": log(store, "other", a=data),
        "path": log(store, "moved", b=data),
        "longer": log(store, "longer", a=b"front" * 20_000 + data + b"back" * 20_000),
    }
    project = Artifact("ds")
    project.add_bytes(data, "x")
    holders["project"] = store.log_artifact(project, project="p")
    trashed = log(store, "trashed", a=data)
    trashed.delete()
    draft = log(store, "drafted", a=data).new_draft()
    store.delete("drafted:v0")
    for ref in ("ds:v0", "drafted:v0"):
        store.delete(ref)
        store.trash.purge(ref)
    store.gc(grace=0, offline=True)
    for holder in holders.values():
        assert data in b"".join(content(holder).values())
    for holder in holders.values():
        holder.delete()
        store.trash.purge(holder.ref)
    store.gc(grace=0, offline=True)
    draft.add_bytes(b"", "new")
    logged = store.log_artifact(draft)
    assert content(logged)["a"] == data
    logged.delete()
    store.trash.purge(logged.ref)
    store.gc(grace=0, offline=True)
    assert content(store.trash.restore("trashed:v0")) == {"a": data}
    store.delete("trashed:v0")
    store.trash.purge("trashed:v0")
    assert store.gc(grace=0, offline=True).freed_bytes >= 300_000
    assert stored(store) == 0
    assert victim.state == "COMMITTED", "as it was when the object was made"


def test_collection_can_be_switched_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """L1 with L3: 14; a dry run still answers; the environment wins and must be spelled right."""
    store.set_policy(gc_enabled=False)
    with pytest.raises(GCDisabledError) as caught:
        store.gc()
    assert caught.value.exit_code == 14
    assert store.gc(dry_run=True).dry_run
    monkeypatch.setenv("CASSTORE_GC_ENABLED", "true")
    store.gc()
    monkeypatch.setenv("CASSTORE_GC_ENABLED", "yes")
    with pytest.raises(InvalidInputError):
        store.gc()


def test_a_dry_run_changes_nothing_and_foresees(store: Store) -> None:
    """L1, DESIGN principle 8."""
    version = log(store, a=os.urandom(100_000))
    log(store, a=b"small")
    version.delete()
    store.trash.purge("ds:v0")
    before = snapshot(Path(store.url))
    plan = store.gc(dry_run=True, grace=0)
    assert snapshot(Path(store.url)) == before
    done = store.gc(grace=0)
    assert plan.freed_bytes > 100_000
    assert abs(plan.freed_bytes - done.freed_bytes) <= PACK_OVERHEAD
    assert (plan.retired_packs, plan.freed_chunks) == (done.retired_packs, done.freed_chunks)


@pytest.mark.parametrize(
    "options",
    [
        {"grace": -1},
        {"grace": "1h"},
        {"grace": float("nan")},
        {"grace": timedelta(seconds=-1)},
        {"max_waste": 1.5},
        {"max_waste": "a lot"},
        {"max_bytes": -1},
        {"max_bytes": 1.5},
        {"max_seconds": -1},
        {"orphan_age": "old"},
    ],
)
def test_bad_arguments_of_gc(options: dict[str, object], store: Store) -> None:
    log(store, a=b"1")
    before = snapshot(Path(store.url))
    with pytest.raises(InvalidInputError) as caught:
        store.gc(**options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert snapshot(Path(store.url)) == before


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"unknown": 1},
        {"trash_days": -1},
        {"trash_days": "30"},
        {"trash_days": True},
        {"grace": -1},
        {"gc_enabled": 1},
    ],
)
def test_bad_policies(values: dict[str, object], store: Store) -> None:
    before = store.policy
    with pytest.raises(InvalidInputError):
        store.set_policy(**values)  # type: ignore[arg-type]
    assert store.policy == before


def test_the_states_a_version_goes_through(tmp_path: Path) -> None:
    """B5: COMMITTED, TRASHED, PURGED, COLLECTED, as an old handle sees them; nothing is ever half listed."""
    with Store.open(tmp_path / "s", create=True) as store:
        artifact = Artifact("ds")
        artifact.add_bytes(b"some content", "f")
        version = store.log_artifact(artifact)
        seen = [version.state]
        version.delete()
        seen.append(version.state)
        store.trash.purge("ds:v0")
        version.refresh()
        seen.append(version.state)
        store.gc(grace=0)
        seen.append(version.state)
    assert seen == ["COMMITTED", "TRASHED", "PURGED", "COLLECTED"]


def test_a_reader_with_a_view_of_its_own_sees_at_once_what_others_do_to_its_version(
    store: Store, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASSTORE_CACHE_DIR", str(tmp_path / "cache"))
    mine = log(store, a=b"1")
    with Store.open(tmp_path / "store", read_only=True, clock=clock) as other:
        version = other.get("ds:v0")
        assert version["a"].read() == b"1"
        mine.description = "other words"
        mine.save()
        version.refresh()
        assert version.description == "other words"
        mine.delete(delete_aliases=True)
        with pytest.raises(VersionNotFoundError):
            version["a"]
