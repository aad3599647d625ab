"""Guards links and portfolios: what holds what, and who says so.

FEATURES B7, H1-H4, H6-H8, J8, K1, K4, K7, M2, M4, Q2.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from casstore import (
    AliasGuardError,
    Artifact,
    ChunkerParams,
    InUseError,
    InvalidInputError,
    InvalidNameError,
    LinkGuardError,
    NameTakenError,
    ParentDeletedError,
    ProtectedError,
    RefusedError,
    StaleBaseError,
    Store,
    StoreConfig,
    TypeConflictError,
    Version,
    VersionNotFoundError,
    Where,
)
from casstore.cli import main
from casstore.model import PutRun, UseVersion
from casstore.selection import parse_where
from casstore.testing.checks import check_no_garbage, recount, replayed, view_hash
from casstore.testing.clock import Clock
from casstore.testing.snapshot import snapshot

SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=4096, pack_bytes=65536, node_bytes=512
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.create(tmp_path / "s", config=SMALL, clock=clock) as opened:
        yield opened


def log(store: Store, name: str = "m", data: bytes = b"same", *aliases: str, kind: str = "model") -> Version:
    artifact = Artifact(name, type=kind, description=f"of {name}", metadata={"k": name})
    artifact.add_bytes(data, "f")
    return store.log_artifact(artifact, aliases=aliases, tags=["t"], dedup="never")


def use(store: Store, version: Version, run: str) -> None:
    name = f"{version.entity}/{version.project}/{version.collection}"
    store._engine.commit(
        lambda _: (
            PutRun(run, run, "", "running", b"{}"),
            UseVersion(run, name, version.number, "train", "host:1"),
        )
    )


def head(store: Store) -> int:
    return store.log(limit=1)[0].seq


# --- making links


def test_a_link_has_its_own_number_and_the_labels_of_its_source(store: Store) -> None:
    """H1, B7: identity is that of the link, `source_*` the origin; no bytes are stored."""
    log(store, "m", b"0")
    source = log(store, "m", b"1" * 5000, "best")
    stored = store.du().stored
    link = source.link("prod/models", ["staging"])
    assert store.du().stored == stored
    assert (link.ref, link.name, link.qualified_name) == (
        "prod/models:v0", "models:v0", "default/prod/models:v0",
    )  # fmt: skip
    assert (link.project, link.collection, link.version, link.number) == ("prod", "models", "v0", 0)
    assert (link.source_project, link.source_collection, link.source_version) == ("default", "m", "v1")
    assert (link.source_name, link.source_qualified_name) == ("m:v1", "default/default/m:v1")
    assert link.is_link
    assert not source.is_link
    assert (link.aliases, source.aliases) == (("latest", "staging"), ("best", "latest"))
    for label in ("description", "metadata", "tags", "ttl", "size", "digest", "file_count", "type", "base"):
        assert getattr(link, label) == getattr(source, label), label
    assert link.id != source.id
    assert repr(link) == "<Version default/prod/models:v0, a link to default/default/m:v1>"
    assert link["f"].read() == b"1" * 5000
    assert link.source_artifact == link.source == source
    assert source.source_artifact is source.source is source
    assert source.linked_artifacts == [link]
    assert link.linked_artifacts == []
    assert (link.to_dict()["is_link"], link.to_dict()["source"], link.to_dict()["links"]) == (True, "m:v1", [])
    assert (source.to_dict()["is_link"], source.to_dict()["source"]) == (False, None)
    assert source.to_dict()["links"] == ["prod/models:v0"]


def test_linking_again_moves_aliases_and_makes_nothing(store: Store) -> None:
    first, second = log(store, "m", b"0"), log(store, "m", b"1")
    link = first.link("p", ["a"])
    second.link("p")
    assert store.get("p").ref == "p:v1"
    again = first.link("p", ["b"])
    assert again == link
    assert again.aliases == ("a", "b", "latest")
    assert [version.ref for version in store.versions("p")] == ["p:v1", "p:v0"]
    before = head(store)
    assert first.link("p", ["b"]) == link
    assert head(store) == before


def test_linking_a_link_links_its_source(store: Store) -> None:
    source = log(store)
    link = source.link("p").link("q")
    assert link.source_name == "m:v0"
    assert [found.ref for found in source.linked_artifacts] == ["p:v0", "q:v0"]
    store.link("p:v0", "p", ["x"])
    assert [found.ref for found in store.versions("p")] == ["p:v0"]
    with pytest.raises(InvalidInputError, match="is in m already"):
        store.link("p:v0", "m")


def test_what_cannot_be_linked_where(store: Store) -> None:
    """H1: bad input changes nothing."""
    source = log(store)
    log(store, "other", kind="dataset")
    log(store, "gone")
    store.collection("gone").delete()
    trashed = log(store, "m", b"2")
    trashed.delete()
    before = snapshot(Path(store.url))
    for target, error, code in (
        ("m", InvalidInputError, 2),
        ("other", TypeConflictError, 11),
        ("gone", NameTakenError, 11),
        ("a:b", InvalidNameError, 2),
        ("a/b/c/d", InvalidNameError, 2),
    ):
        with pytest.raises(error) as caught:
            source.link(target)
        assert (caught.value.exit_code, bool(caught.value.hint)) == (code, True)
    with pytest.raises(InvalidNameError):
        source.link("p", ["v3"])
    with pytest.raises(VersionNotFoundError):
        trashed.link("p")
    assert snapshot(Path(store.url)) == before


def test_a_link_into_a_collection_with_versions_of_its_own(store: Store) -> None:
    """Numbers go on, `latest` moves, and logging what only a link has makes a version."""
    log(store, "own", b"0")
    link = log(store, "m", b"1").link("own")
    assert (link.ref, store.collection("own").kind) == ("own:v1", "sequence")
    artifact = Artifact("own", type="model")
    artifact.add_bytes(b"1", "f")
    logged = store.log_artifact(artifact)
    assert (logged.ref, logged.created, logged.is_link) == ("own:v2", True, False)


def test_labels_set_on_a_link_are_set_on_its_source(store: Store) -> None:
    source = log(store)
    link = source.link("p")
    link.update("new", {"more": 1}, ["x"])
    source.refresh()
    for version in (link, source, store.get("p:v0")):
        assert (version.description, version.tags) == ("new", ("x",))
        assert version.metadata == {"k": "m", "more": 1}
    link.add_alias("only-here")
    assert "only-here" not in source.aliases
    with pytest.raises(InvalidInputError) as caught:
        link.set_ttl(timedelta(days=1))
    assert (caught.value.exit_code, caught.value.hint) == (2, "set it on m:v0")
    source.set_ttl(timedelta(days=1))
    assert store.get("p:v0").ttl == timedelta(days=1)


def test_a_draft_of_a_link_is_one_of_its_source(store: Store) -> None:
    log(store)
    link = store.link("m:v0", "p")
    draft = link.new_draft()
    draft.add_bytes(b"more", "g")
    logged = store.log_artifact(draft)
    assert (logged.ref, logged.base) == ("m:v1", "m:v0")


# --- taking them away


def test_unlink_and_delete_take_only_the_link(store: Store) -> None:
    """H2, H4: at once, with its aliases, whatever they are; `latest` falls to the highest that is left."""
    first, second = log(store, "m", b"0"), log(store, "m", b"1")
    first.link("p")
    link = second.link("p", ["best"])
    done = link.delete()
    assert (done.unlinked, done.exclusive_bytes, done.already_in_trash) == (True, 0, False)
    assert done.trashed_at == done.purge_at
    assert store.get("p").ref == "p:v0"
    assert len(store.trash) == 0
    assert second.linked_artifacts == []
    for again in (link.delete, link.unlink, lambda: store.get("p:v1")):
        with pytest.raises(VersionNotFoundError) as caught:
            again()
        assert "was a link to m:v1" in caught.value.message
        assert caught.value.hint.startswith("casstore link m:v1 p")
    store.get("p:v0").unlink()
    with pytest.raises(VersionNotFoundError):
        store.get("p")
    assert second.link("p").ref == "p:v2"
    before = head(store)
    with pytest.raises(InvalidInputError) as refused:
        first.unlink()
    assert (refused.value.exit_code, head(store)) == (2, before)


def test_a_protected_link_stays(store: Store) -> None:
    link = log(store).link("p")
    link.protect("live")
    for attempt in (link.unlink, link.delete, lambda: store.get("m:v0").delete(delete_links=True)):
        with pytest.raises(ProtectedError):
            attempt()
    link.unprotect()
    store.collection("p").protect("live")
    with pytest.raises(ProtectedError):
        store.collection("m").delete(delete_links=True)
    for attempt in (link.unlink, lambda: store.get("m:v0").delete(delete_links=True)):
        with pytest.raises(ProtectedError):
            attempt()
    store.collection("p").unprotect()
    store.set_policy(protected_aliases=["prod"])
    link.add_alias("prod")
    for attempt in (link.unlink, lambda: store.get("m:v0").delete(delete_links=True)):
        with pytest.raises(ProtectedError, match="prod"):
            attempt()


# --- deleting a source


def test_a_linked_version_is_not_deleted_by_accident(store: Store) -> None:
    """H6: the links are listed; with `delete_links` they are hidden with it, and come back with it."""
    source = log(store, "m", b"1")
    source.link("p", ["staging"])
    source.link("q")
    plain = log(store, "m", b"2")
    before = head(store)
    for attempt in (
        source.delete,
        lambda: store.delete("m:v0"),
        lambda: store.plan_delete(["m:v1", "m:v0"]),
        lambda: store.collection("m").delete(),
    ):
        with pytest.raises(LinkGuardError) as caught:
            attempt()
        assert caught.value.exit_code == 14
        assert caught.value.links == ("p:v0", "q:v0")
        assert "delete_links=True" in caught.value.hint
    assert head(store) == before
    skipped = store.delete(where=Where(tag="t"), dry_run=True)
    assert skipped.refs == (plain.ref,)
    assert skipped.skipped == (("m:v0", "is linked: p:v0, q:v0"),)
    done = source.delete(delete_links=True, reason="bad")
    assert (done.links, done.unlinked) == (("p:v0", "q:v0"), False)
    assert [item.ref for item in store.trash.list()] == ["m:v0"]
    assert len(store.trash) == 1
    with pytest.raises(VersionNotFoundError) as hidden:
        store.get("p:v0")
    assert hidden.value.message == "p:v0 is a link, and its source m:v0 is in the trash"
    assert hidden.value.hint == "casstore trash restore m:v0"
    with pytest.raises(ParentDeletedError) as parent:
        store.trash.restore("p:v0")
    assert (parent.value.exit_code, parent.value.hint) == (14, "casstore trash restore m:v0")
    store.trash.restore("m:v0")
    assert store.get("p:staging").ref == "p:v0"
    assert store.get("q").ref == "q:v0"


def test_the_hint_names_the_collection_when_the_source_went_with_it(store: Store) -> None:
    log(store).link("p")
    done = store.collection("m").delete(delete_links=True)
    assert (done.versions, done.links) == (1, ("p:v0",))
    for attempt, error in (
        (lambda: store.get("p:v0"), VersionNotFoundError),
        (lambda: store.trash.restore("p:v0"), ParentDeletedError),
    ):
        with pytest.raises(error) as caught:
            attempt()
        assert caught.value.hint == "casstore trash restore m"
    store.trash.restore("m")
    assert store.get("p:v0").source_name == "m:v0"


def test_purging_the_source_purges_its_links(store: Store) -> None:
    source = log(store)
    source.link("p", ["best"])
    source.delete(delete_links=True)
    store.trash.purge("m:v0")
    for ref in ("p:v0", "p:best", "p"):
        with pytest.raises(VersionNotFoundError):
            store.get(ref)
    with pytest.raises(VersionNotFoundError, match="its source m:v0 was purged"):
        store.get("p:v0")
    store.gc(offline=True, grace=timedelta())
    check_no_garbage(store)
    assert [event.kind for event in store.why("p:v0").events] == ["dropped", "purged"]


def test_a_portfolio_goes_with_its_links_only(store: Store) -> None:
    """K7; a link comes back with its portfolio, unless its source is away: then with that."""
    source = log(store, "m", b"0")
    link = source.link("p")
    log(store, "m", b"1").link("p")
    done = store.collection("p").delete()
    assert (done.versions, done.exclusive_bytes, done.links) == (2, 0, ())
    with pytest.raises(VersionNotFoundError, match="in the trash with its collection") as caught:
        link.add_alias("x")
    assert caught.value.hint == "casstore trash restore p"
    assert [version.ref for version in store.versions("m")] == ["m:v1", "m:v0"]
    source.delete()
    store.trash.restore("p")
    assert [version.ref for version in store.versions("p")] == ["p:v1"]
    store.trash.restore("m:v0")
    assert [version.ref for version in store.versions("p")] == ["p:v1", "p:v0"]


def test_named_links_are_unlinked_before_their_sources_go(store: Store) -> None:
    """One plan: a link that is named is not in the way of its source."""
    source = log(store, "m", b"0" * 9000)
    link = source.link("p", ["a"])
    plan = store.plan_delete(["m:v0", "p:v0"])
    assert (plan.refs, plan.foreseen.unlinked, plan.foreseen.links) == (("m:v0",), ("p:v0",), ())
    done = plan.apply()
    assert done.exclusive_bytes == plan.exclusive_bytes > 0
    assert [version.state for version in (refreshed(source), refreshed(link))] == ["TRASHED", "PURGED"]
    store.trash.restore("m:v0")
    assert store.get("m:v0").linked_artifacts == []


def refreshed(version: Version) -> Version:
    version.refresh()
    return version


def test_a_plan_is_stale_once_somebody_linked(store: Store) -> None:
    source = log(store)
    plan = store.plan_delete(["m:v0"], delete_links=True)
    source.link("p")
    with pytest.raises(StaleBaseError, match="p:v0"):
        plan.apply()


def test_declared_uses_are_cancelled_or_in_the_way(store: Store) -> None:
    """K1, M6: those of a version and of the links that go with it."""
    source = log(store)
    link = source.link("p")
    use(store, source, "r1")
    use(store, link, "r2")
    for attempt in (
        lambda: source.delete(delete_links=True, if_in_use="refuse"),
        lambda: store.delete("m:v0", delete_links=True, if_in_use="refuse"),
        lambda: store.collection("m").delete(delete_links=True, if_in_use="refuse"),
        lambda: store.plan_delete(["m:v0"], delete_links=True, if_in_use="refuse"),
    ):
        with pytest.raises(InUseError) as caught:
            attempt()
        assert (caught.value.exit_code, caught.value.runs) == (14, ("r1", "r2"))
        assert "r1, r2" in caught.value.message
    with pytest.raises(InUseError):
        link.delete(if_in_use="refuse")
    skipped = store.delete(where=Where(tag="t"), delete_links=True, if_in_use="refuse").skipped
    assert skipped == (("m:v0", "is in use by r1, r2"),)
    with pytest.raises(InvalidInputError):
        source.delete(if_in_use="ignore")
    assert link.delete().cancelled_uses == ("r2",)
    assert store.delete(where=Where(tag="t")).cancelled_uses == ("r1",)
    store.trash.restore("m:v0")
    assert source.delete(if_in_use="refuse").cancelled_uses == ()
    store.trash.restore("m:v0")
    use(store, source, "r3")
    use(store, source.link("p"), "r4")
    assert source.delete(delete_links=True).cancelled_uses == ("r3", "r4")


# --- time, rules, predicates


def test_neither_time_nor_rules_nor_predicates_take_links_or_what_is_linked(store: Store, clock: Clock) -> None:
    """J8, H6: a linked version is held, and says by what; a link is never chosen."""
    for number in range(3):
        log(store, "m", b"%d" % number)
    linked = store.get("m:v0")
    linked.link("prod/models")
    store.set_default_ttl(timedelta(days=1))
    clock.pass_(days=2)
    assert linked.held_by == ("link prod/models:v0",)
    assert store.get("m:v0").ref == "m:v0"
    report = store.expire()
    assert report.refs == ("m:v1", "m:v2")
    assert [(held.ref, held.held_by) for held in report.held] == [("m:v0", ("link prod/models:v0",))]
    assert store.get("prod/models").ref == "prod/models:v0"
    store.set_default_ttl(None)
    log(store, "m", b"3")
    kept = store.retain("m", keep_last=1).kept
    assert [version.reasons for version in kept] == [("last", "latest"), ("link prod/models:v0",)]
    store.get("m:v3").link("prod/models")
    retained = store.retain("prod/models", keep_last=1)
    assert (retained.removed, retained.kept) == ((), ())
    store.get("prod/models").unlink()
    all_of_them = Where(version_in="v0..v9")
    assert list(store.delete(where=all_of_them, collection="prod/models").refs) == []
    assert list(store.delete(where=all_of_them, delete_aliases=True).refs) == ["m:v3"]
    store.get("prod/models").unlink()
    assert store.get("m:v0").held_by == ()


def test_versions_of_a_run(store: Store) -> None:
    """K4: everything a run logged, and no links to it."""
    store._engine.commit(lambda _: (PutRun("r1", "r1", "", "running", b"{}"),))
    log(store, "m", b"0")
    artifact = Artifact("m", type="model")
    artifact.add_bytes(b"1", "f")
    made = store.log_artifact(artifact, run="r1")
    made.link("p")
    assert [version.ref for version in store.versions("m", where=Where(run="r1"))] == ["m:v1"]
    assert store.delete(where=Where(run="r1"), dry_run=True).skipped == (("m:v1", "is linked: p:v0"),)
    assert store.delete(where=Where(run="r1"), delete_links=True).refs == ("m:v1",)
    assert parse_where("run=r1 and tag=t") == Where(run="r1", tag="t")
    for wrong in ("", 7):
        with pytest.raises(InvalidInputError):
            Where(run=wrong)  # type: ignore[arg-type]


def test_gc_purges_sources_and_links_of_trashed_collections_by_date(store: Store, clock: Clock) -> None:
    """M9: never void: the source and its link, in a collection in the trash as well, come due in one run."""
    log(store, "m", b"0").link("p")
    store.collection("p").delete()
    store.collection("m").delete()
    log(store, "n", b"1").link("q")
    store.get("n").delete(delete_links=True)
    clock.pass_(days=31)
    report = store.gc(dry_run=True)
    assert store.gc().purged == report.purged
    assert sorted(report.purged) == ["m", "m:v0", "n:v0", "p", "p:v0"]
    assert (len(store.trash), [info.name for info in store.collections()]) == (0, ["n", "q"])
    assert replayed(store._engine) == view_hash(store._engine)


def test_empty_takes_sources_with_their_links_in_any_order(store: Store) -> None:
    for first, second in (("m", "p"), ("p", "m")):
        log(store, "m", b"0").link("p")
        store.collection(first).delete(delete_links=True)
        if second in {info.name for info in store.collections()}:
            store.collection(second).delete(delete_links=True)
        assert sorted(store.trash.empty()) == ["m", "p"]
        assert len(store.trash) == 0
    log(store, "n", b"1").link("q")
    store.get("n").delete(delete_links=True)
    assert store.trash.empty(dry_run=True) == store.trash.empty() == ["n:v0"]
    assert len(store.trash) == 0
    store.gc(offline=True, grace=timedelta())
    check_no_garbage(store)


def test_what_a_run_purged_comes_back_with_its_links(store: Store, clock: Clock) -> None:
    """A purge that is undone: source and link are in the trash again, with the collection of the link if that went."""
    source = log(store, "m", b"0")
    source.link("p", ["best"])
    source.delete(delete_links=True)
    store.collection("p").delete()
    clock.pass_(days=31)
    report = store.gc(grace=timedelta(days=1))
    assert (store.collection("m").versions(), len(store.trash)) == ([], 0)
    assert store.gc_undo(report.run_id).restored == ("m:v0",)
    assert sorted(item.ref for item in store.trash.list()) == ["m:v0", "p"]
    store.trash.restore("m:v0")
    store.trash.restore("p")
    assert store.get("p:best").source_name == "m:v0"
    recount(store._engine)


# --- restoring under another name


def test_restoring_into_another_collection(store: Store) -> None:
    """M2: when the parent is in the trash too; what is there stays there."""
    log(store, "m", b"0", "best", "good")
    log(store, "m", b"1")
    store.collection("m").delete(confirm="m")
    log(store, "n", b"2", "good")
    with pytest.raises(ParentDeletedError):
        store.trash.restore("m:v0")
    made = store.trash.restore("m:v0", name="n")
    assert (made.ref, made.base, made.aliases, made.tags) == ("n:v1", "m:v0", ("best", "latest"), ("t",))
    assert made["f"].read() == b"0"
    assert [item.ref for item in store.trash.list()] == ["m"]
    assert store.trash.restore("m:v1", name="fresh").ref == "fresh:v0"
    store.trash.restore("m")
    assert store.get("m:best").ref == "m:v0"
    recount(store._engine)
    store.create_collection("folio", "model", "portfolio")
    store.create_collection("data", "dataset")
    trashed = store.get("m:v1")
    trashed.delete()
    for name, error in (("folio", RefusedError), ("data", TypeConflictError), ("a:b", InvalidNameError)):
        with pytest.raises(error):
            trashed.restore(name)
    restored = trashed.restore()
    assert (restored.ref, restored.state, trashed.state) == ("m:v1", "COMMITTED", "COMMITTED")
    with pytest.raises(VersionNotFoundError):
        trashed.restore()


# --- portfolios and listings


def test_a_portfolio_takes_links_only(store: Store) -> None:
    """H7: also one that a link made; nothing is read before the refusal."""
    made = store.create_collection("prod/models", "model", "portfolio", "what is live")
    assert (made.kind, made.description, made.type, made.versions()) == ("portfolio", "what is live", "model", [])
    log(store).link("shelf")
    for name in ("prod/models", "shelf"):
        project, _, short = name.rpartition("/")
        artifact = Artifact(short, type="model")
        artifact.add_bytes(b"x", "f")
        with pytest.raises(RefusedError) as caught:
            store.log_artifact(artifact, project=project or None)
        assert (caught.value.exit_code, "version.link(" in caught.value.hint) == (14, True)
    infos = {info.name: info for info in store.collections()}
    assert {name: info.kind for name, info in infos.items()} == {
        "m": "sequence", "prod/models": "portfolio", "shelf": "portfolio",
    }  # fmt: skip
    assert infos["prod/models"].description == "what is live"
    assert (infos["prod/models"].latest, infos["prod/models"].versions) == (None, 0)
    assert [info.name for info in store.collections(kind="portfolio", prefix="sh")] == ["shelf"]
    assert store.link("m:v0", "prod/models").ref == "prod/models:v0"
    with pytest.raises(InvalidInputError):
        store.collections(kind="shelf")
    for name, kind, shape, error in (
        ("shelf", "model", "sequence", NameTakenError),
        ("x", "casstore-x", "sequence", InvalidNameError),
        ("x", "model", "shelf", InvalidInputError),
    ):
        with pytest.raises(error):
            store.create_collection(name, kind, shape)


def test_listing_by_state_and_predicate(store: Store) -> None:
    """H8: a link matches by the labels of its source."""
    log(store, "m", b"0", "best")
    log(store, "m", b"1").update(tags=["other"])
    store.get("m:v0").link("p")
    store.get("m:v1").link("p")
    collection = store.collection("m")
    assert [v.ref for v in collection.versions(newest_first=False)] == ["m:v0", "m:v1"]
    assert [v.ref for v in collection.versions(where=Where(tag="t"))] == ["m:v0"]
    assert [v.ref for v in store.versions("p", where=Where(tag="other"))] == ["p:v1"]
    assert [v.ref for v in store.versions("m", where=Where(alias="best"))] == ["m:v0"]
    store.get("m:v1").delete(delete_links=True)
    assert [v.ref for v in collection.versions(state="TRASHED")] == ["m:v1"]
    assert [v.trashed_by for v in store.versions("p", trashed=True)] == ["source"]
    wrong: dict[str, Any]
    for wrong in ({"state": "GONE"}, {"state": "PURGED", "trashed": True}, {"where": "tag=t"}):
        with pytest.raises(InvalidInputError):
            collection.versions(**wrong)


# --- bytes


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "packs").rglob("*") if file.is_file())


def test_what_is_said_of_bytes_counts_the_links(tmp_path: Path) -> None:
    """K3: every number is that of the version with its links, and what purge and collection free."""
    shared, own = b"".join(b"%d" % i for i in range(9000)), b"".join(b"%d," % i for i in range(30000, 36000))
    path = tmp_path / "all"
    with Store.create(path, config=SMALL) as store:
        for name, files in (("m", {"a": shared, "b": own}), ("n", {"a": shared})):
            artifact = Artifact(name, type="model")
            for file, data in files.items():
                artifact.add_bytes(data, file)
            store.log_artifact(artifact)
        store.link("m:v0", "p")
        store.link("m:v0", "q")
        store.link("n:v0", "p")
        store.collection("q").delete()
        store.gc(offline=True)
    refs = ("m:v0", "n:v0", "p:v0", "p:v1")
    for subset in [s for size in (1, 2, 3) for s in itertools.combinations(refs, size)]:
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        with Store.open(copy) as store:
            impact = store.preview_delete(subset)
            exclusive = {ref: store.get(ref).exclusive_size for ref in subset}
            if len(subset) == 1:
                assert store.du(subset[0]).exclusive == exclusive[subset[0]]
            before = store.du().unique
            plan = store.plan_delete(subset, delete_links=True)
            done = plan.apply()
            assert plan.exclusive_bytes == done.exclusive_bytes
            if len(subset) == 1:
                assert done.exclusive_bytes == exclusive[subset[0]]
                assert [item.exclusive_bytes for item in store.trash.list() if item.ref == subset[0]] in (
                    [exclusive[subset[0]]], [],
                )  # fmt: skip
            for ref in done.refs:
                store.trash.purge(ref)
            store.gc(offline=True)
            assert before - store.du().unique == impact.exclusive_bytes, subset
            assert done.exclusive_plain_bytes == impact.exclusive_bytes, subset
        shutil.rmtree(copy)
    with Store.open(path) as store:
        assert store.preview_delete(["m:v0"]).exclusive_bytes >= len(own)
        assert store.preview_delete(["p:v0"]).exclusive_bytes == 0
        assert store.get("p:v0").exclusive_size == 0
        du = store.du()
        assert du.logical == 2 * len(shared) + len(own)
        gone = store.collection("m").delete(delete_links=True)
        (item,) = [item for item in store.trash.list() if item.ref == "m"]
        assert gone.exclusive_bytes == item.exclusive_bytes > 0
        kept = {keeper.ref: keeper.stored_bytes for keeper in store.keepers()}
        assert kept["m:v0"] > 0
        assert "p" not in kept


def test_why_names_the_links(store: Store) -> None:
    """Q2."""
    log(store).link("p")
    holders = store.why("m:v0").holders
    assert [(holder.kind, holder.ref) for holder in holders] == [("version", "m:v0"), ("link", "p:v0")]
    assert [holder.paths for holder in store.why("p:v0/f").holders] == [("f",), ("f",)]
    assert [item.action for item in store.deletions()] == []
    store.get("p:v0").unlink()
    (record,) = store.deletions()
    assert (record.action, record.refs) == ("unlink", ("p:v0",))


# --- the command line


def run(store: Store, *words: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(main, [*words, "--store", store.url])
    assert result.exit_code == code, (words, result.output)
    return result.stdout, result.stderr


def test_the_commands(store: Store) -> None:
    log(store, "m", b"0", "best")
    assert run(store, "link", "m:best", "prod/models", "-a", "staging")[0] == "prod/models:v0\n"
    assert "m:v0" in run(store, "ls", "prod/models")[0]
    assert "portfolio" in run(store, "ls", "--kind", "portfolio")[0]
    assert "m " not in run(store, "ls", "--kind", "portfolio")[0]
    out, err = run(store, "rm", "m:v0", "--yes", "--delete-aliases", code=14)
    assert (out, "is linked: prod/models:v0" in err, "--delete-links" in err) == ("", True, True)
    assert "would be refused: it has the links prod/models:v0" in run(store, "rm", "m:v0", "--dry-run")[1]
    run(store, "rm", "prod/models:v0", code=14)
    out, _ = run(store, "rm", "prod/models:v0", "--yes")
    assert "unlinked, source kept" in out
    run(store, "unlink", "m:v0", code=2)
    run(store, "link", "m:v0", "prod/models")
    run(store, "unlink", "prod/models:v1", "--dry-run")
    assert run(store, "unlink", "prod/models:v1")[0] == "prod/models:v1\n"
    run(store, "unlink", "prod/models:v1", code=10)
    run(store, "link", "m:v0", "prod/models")
    store.set_policy(reserved_types=["secret"])
    run(store, "collection", "create", "x", "--type", "secret", code=14)
    run(store, "collection", "create", "x", "--type", "model", "--description", "words")
    run(store, "collection", "create", "x", "--type", "model", code=11)
    shown = json.loads(run(store, "collection", "show", "x", "--json")[0])
    assert (shown["kind"], shown["description"]) == ("sequence", "words")
    run(store, "collection", "describe", "x", code=2)
    assert "other" in run(store, "collection", "describe", "x", "other")[0]
    use(store, store.get("m:v0"), "r1")
    rm = ("rm", "--where", "version in v0", "m", "--yes", "--delete-aliases", "--delete-links")
    assert "is in use by r1" in run(store, *rm, "--if-in-use", "refuse")[1]
    done = json.loads(run(store, *rm, "--json")[0])
    assert (done["refs"], done["links"], done["cancelled_uses"]) == (["m:v0"], ["prod/models:v2"], ["r1"])
    assert run(store, "trash", "restore", "m:v0", "--name", "x")[0] == "x:v0\n"
    run(store, "trash", "restore", "m:v0")
    assert store.get("prod/models").ref == "prod/models:v2"


def test_aliases_of_a_link_do_not_guard_its_source(store: Store) -> None:
    source = log(store)
    source.link("p", ["a"])
    with pytest.raises(LinkGuardError):
        source.delete()
    source.add_alias("b")
    with pytest.raises(AliasGuardError):
        source.delete(delete_links=True)
