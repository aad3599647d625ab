"""Guards renaming and describing a collection (FEATURES H5, C6): identity stays, the old name leads on until reused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from casstore import (
    Artifact,
    Collection,
    CollectionNotFoundError,
    InvalidInputError,
    InvalidNameError,
    NameTakenError,
    RefusedError,
    Store,
    TypeConflictError,
    Version,
    Where,
)
from casstore.cli import main
from casstore.model import UpsertPart
from casstore.testing.checks import recount, replayed, view_hash
from casstore.testing.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.create(tmp_path / "s", clock=clock) as opened:
        yield opened


def log(store: Store, name: str = "old", data: bytes = b"same", *aliases: str, kind: str = "dataset") -> Version:
    artifact = Artifact(name, type=kind)
    artifact.add_bytes(data, "f")
    return store.log_artifact(artifact, aliases=aliases, dedup="never")


def head(store: Store) -> int:
    return store.log(limit=1)[0].seq


def test_everything_comes_along_in_one_commit(store: Store) -> None:
    first = log(store, "old", b"0", "best")
    log(store, "old", b"1")
    link = first.link("shelf")
    store.collection("old").protect("paper")
    collection = store.collection("old")
    before = head(store)
    collection.rename("proj/new")
    assert head(store) == before + 1
    assert (collection.name, collection.qualified_name) == ("proj/new", "default/proj/new")
    assert [info.name for info in store.collections()] == ["shelf", "proj/new"]
    for name in ("old", "proj/new"):
        assert store.get(f"{name}:best").ref == "proj/new:v0"
        assert store.get(name).ref == "proj/new:v1"
        assert [version.ref for version in store.versions(name)] == ["proj/new:v1", "proj/new:v0"]
        assert store.collection(name) == collection
        assert [change.alias for change in store.alias_log(f"{name}:best")] == ["best"]
    assert store.get("old:v0").id == first.id
    assert collection.protected == "paper"
    link.refresh()
    assert link.source_qualified_name == "default/proj/new:v0"
    first.refresh()
    assert (first.ref, first.project) == ("proj/new:v0", "proj")
    collection.rename("proj/new")
    assert head(store) == before + 1


def test_objects_that_were_there_before_go_on(store: Store) -> None:
    version, collection, other = log(store), store.collection("old"), store.collection("old")
    other.rename("new")
    version.add_alias("best")
    version.update("words")
    collection.unprotect()
    assert store.get("new:best").description == "words"
    assert version.delete(delete_aliases=True).ref == "new:v0"
    assert version.restore().ref == "new:v0"
    assert collection.delete(confirm="new").ref == "new"
    assert store.trash.restore("old").name == "new"


def test_a_draft_made_before_goes_to_where_its_base_is_by_now(store: Store) -> None:
    log(store, "old", b"0")
    held = store.get("old:v0")
    draft, stale, part = held.new_draft(), held.new_draft(), held.new_draft()
    elsewhere = held.new_draft()
    store.collection("old").rename("lab/new")
    for number, made in enumerate((draft, held.new_draft()), 1):
        made.add_bytes(bytes([number]), "f", overwrite=True)
        version = store.log_artifact(made, if_base_latest=number == 1)
        assert (version.ref, version.base) == (f"lab/new:v{number}", "lab/new:v0")
    # The name belongs to another collection now: a draft of the first has nothing to do with that.
    log(store, "old", b"another")
    stale.add_bytes(b"3", "f", overwrite=True)
    version = store.log_artifact(stale)
    assert (version.ref, version.base) == ("lab/new:v3", "lab/new:v0")
    assert store.upsert(part, "together").collection == "lab/new"
    assert store.finish("together").ref == "lab/new:v4"
    elsewhere.add_bytes(b"5", "f", overwrite=True)
    version = store.log_artifact(elsewhere, project="default")
    assert (version.ref, version.base) == ("old:v1", "lab/new:v0"), "who says where is believed"
    assert [v.ref for v in store.versions("old")] == ["old:v1", "old:v0"]
    recount(store._engine)


def test_a_draft_follows_a_rename_that_comes_in_under_its_log(store: Store) -> None:
    log(store, "old", b"0")
    draft = store.get("old:v0").new_draft()
    draft.add_bytes(b"1", "f", overwrite=True)

    def rename(stage: str, _done: int, _total: int) -> None:
        if stage == "read" and [info.name for info in store.collections()] == ["old"]:
            store.collection("old").rename("new")
            log(store, "old", b"another")

    version = store.log_artifact(draft, progress=rename)
    assert (version.ref, version.base) == ("new:v1", "new:v0")
    assert [v.ref for v in store.versions("old")] == ["old:v0"]


Make = Callable[[Store], Version | Collection]
MAKES: dict[str, Make] = {
    "log": lambda store: log(store, "new"),
    "copy": lambda store: store.copy("ds:v0", "new"),
    "link": lambda store: store.link("ds:v0", "new"),
    "restore": lambda store: (store.delete("ds:v0"), store.versions("ds", trashed=True)[0].restore("new"))[1],
    "create": lambda store: store.create_collection("new", "dataset"),
    "finish": lambda store: store.finish("together", collection="new"),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_what_was_made_is_returned_even_if_its_collection_is_renamed_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    log(store, "ds", b"0")
    log(store, "ds", b"1")
    part = Artifact("new", type="dataset")
    part.add_bytes(b"part", "f")
    store.upsert(part, "together")
    commit = store._engine.commit_all
    raced: list[bool] = []

    def commit_and_lose(*args: Any, **kwargs: Any) -> Any:
        done = commit(*args, **kwargs)
        if not raced and "new" in [info.name for info in store.collections()]:
            raced.append(True)
            store.collection("new").rename("mine")
            log(store, "new", b"another's")
        return done

    monkeypatch.setattr(store._engine, "commit_all", commit_and_lose)
    made = make(store)
    assert raced
    assert (made.name if isinstance(made, Collection) else made.ref.split(":")[0]) == "mine"


def test_the_old_name_can_be_used_again_and_leads_nowhere_then(store: Store) -> None:
    log(store, "old", b"0")
    store.collection("old").rename("new")
    assert store.get("old:v0").ref == "new:v0"
    again = log(store, "old", b"1")
    assert (again.ref, again.number) == ("old:v0", 0)
    assert store.get("old")["f"].read() == b"1"
    assert store.get("new")["f"].read() == b"0"
    with pytest.raises(NameTakenError):
        store.collection("new").rename("old")


def test_linking_to_an_old_name_makes_a_portfolio(store: Store) -> None:
    source = log(store)
    store.create_collection("shelf", "dataset", "portfolio")
    store.collection("shelf").rename("board")
    assert source.link("shelf").ref == "shelf:v0"
    assert store.collection("board").versions() == []


def test_a_chain_of_names_and_back(store: Store) -> None:
    log(store, "a")
    for old, new in (("a", "b"), ("b", "c")):
        store.collection(old).rename(new)
    assert {store.get(name).ref for name in "abc"} == {"c:v0"}
    store.collection("a").rename("a")
    assert {store.get(name).ref for name in "abc"} == {"a:v0"}
    assert replayed(store._engine) == view_hash(store._engine)


def test_names_that_are_taken(store: Store) -> None:
    """Also by a collection in the trash, or one that was purged; nothing is changed."""
    log(store)
    for name in ("there", "hidden", "gone"):
        log(store, name)
    store.collection("hidden").delete()
    store.collection("gone").delete()
    store.trash.purge("gone")
    collection = store.collection("old")
    before = head(store)
    for name in ("there", "hidden", "gone"):
        with pytest.raises(NameTakenError) as caught:
            collection.rename(name)
        assert (caught.value.exit_code, bool(caught.value.hint)) == (11, True)
    for name in ("", "a:b", "-x", "a/b/c/d"):
        with pytest.raises(InvalidNameError):
            collection.rename(name)
    with pytest.raises(CollectionNotFoundError):
        store.collection("nope").rename("x")
    collection.delete()
    with pytest.raises(CollectionNotFoundError):
        collection.rename("x")
    assert head(store) == before + 1


def test_batches_go_with_the_name_unless_their_ids_clash(store: Store) -> None:
    log(store, "old")

    def part(name: str, batch: str) -> UpsertPart:
        root = store.get("old")._found.version.root
        return UpsertPart(
            f"default/default/{name}",
            batch,
            "p",
            "dataset",
            root,
            4,
            1,
            f"{name}{batch}".encode().ljust(16),
            "h",
            2**60,
        )

    for name, batch in (("old", "b1"), ("new", "b1"), ("other", "b2")):
        store._engine.commit(lambda _, name=name, batch=batch: (part(name, batch),))  # type: ignore[misc]
    with pytest.raises(NameTakenError, match="b1"):
        store.collection("old").rename("new")
    store.collection("old").rename("other")
    assert replayed(store._engine) == view_hash(store._engine)


def test_predicates_and_defaults_follow_the_name(store: Store) -> None:
    log(store, "old", b"0")
    store.set_default_ttl(timedelta(days=9), "old")
    store.collection("old").rename("new")
    assert store.get("old").ttl == timedelta(days=9)
    store.set_default_ttl(timedelta(days=8), "old")
    assert store.get("new").ttl == timedelta(days=8)
    where = Where(version_in="v0", collection="old")
    assert store.delete(where=where, dry_run=True).refs == ("new:v0",)
    assert store.retain("old", keep_last=1).collection == "new"


def test_what_was_purged_under_another_name_is_explained_and_can_be_undone(store: Store, clock: Clock) -> None:
    log(store, "old", b"0")
    log(store, "old", b"1").delete()
    log(store, "old", b"2").delete()
    log(store, "twin", b"2")
    clock.now += timedelta(days=31)
    run = store.gc(grace=timedelta(days=1)).run_id
    store.collection("old").rename("new")
    log(store, "old", b"another")
    assert [event.kind for event in store.why("new:v1").events] == ["dropped", "purged"]
    # The content of v2 was not let go of: only its name, as it was then, tells that it was purged.
    assert [event.kind for event in store.why("new:v2").events] == ["purged"]
    assert store.gc_undo(run, ["new:v1", "new:v2"]).restored == ("new:v1", "new:v2")
    assert store.trash.restore("new:v1")["f"].read() == b"1"
    recount(store._engine)


def test_describing_and_retyping(store: Store) -> None:
    """H5: the type of a collection is that of its versions, those in the trash too."""
    log(store, "old", b"0").delete()
    log(store, "old", b"1")
    collection = store.collection("old")
    collection.update(description="birds")
    before = head(store)
    collection.update(description="birds", type="dataset")
    assert head(store) == before
    collection.update(type="model")
    assert (collection.description, collection.type, store.get("old").type) == ("birds", "model", "model")
    assert store.trash.restore("old:v0").type == "model"
    with pytest.raises(TypeConflictError):
        log(store, "old", b"2")
    store.set_policy(reserved_types=["secret"])
    for kind, error in (("casstore-x", InvalidNameError), ("secret", RefusedError)):
        with pytest.raises(error):
            collection.update(type=kind)
    with pytest.raises(InvalidInputError):
        collection.update(description=7)  # type: ignore[arg-type]
    store.link("old:v0", "shelf")
    for name in ("old", "shelf"):
        with pytest.raises(RefusedError) as caught:
            store.collection(name).update(type="dataset")
        assert caught.value.exit_code == 14


def test_the_command(store: Store) -> None:
    log(store)

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*words, "--store", store.url])
        return result.exit_code, result.stdout

    assert run("rename", "old", "proj/new") == (0, "proj/new\n")
    assert run("rename", "old", "proj/new") == (0, "proj/new\n")
    log(store, "there")
    assert run("rename", "old", "there")[0] == 11
    assert run("rename", "nope", "x")[0] == 10
    assert run("collection", "describe", "old", "--type", "model")[0] == 0
    assert store.get("proj/new").type == "model"
