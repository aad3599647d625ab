"""Guards bulk deletion (FEATURES K4-K6, Q8, Q9): predicates mean what they say, a plan is executed as it is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from casstore import (
    AliasGuardError,
    Artifact,
    ChunkerParams,
    CollectionNotFoundError,
    InvalidInputError,
    ProtectedError,
    StaleBaseError,
    Store,
    StoreConfig,
    Version,
    VersionNotFoundError,
    Where,
)
from casstore.cli import main
from casstore.engine import Engine
from casstore.model import PutVersion, Record, Trash
from casstore.overlay import Tables
from casstore.selection import parse_where
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


def log(
    store: Store,
    name: str = "ds",
    data: bytes | None = None,
    *,
    aliases: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    kind: str = "dataset",
    metadata: dict[str, object] | None = None,
) -> Version:
    artifact = Artifact(name, type=kind, metadata=metadata or {})
    artifact.add_bytes(b"same" if data is None else data, "f")
    return store.log_artifact(artifact, aliases=aliases, tags=tags, dedup="never")


def head(store: Store) -> int:
    return store.log(limit=1)[0].seq


def live(store: Store, name: str = "ds") -> list[str]:
    return [version.ref for version in store.versions(name, newest_first=False)]


@pytest.fixture
def filled(store: Store, clock: Clock) -> Store:
    """ds: v0 tagged old, v1 best, v2 with metadata, v3 protected, v4 latest; m: a model."""
    log(store, tags=("old",))
    clock.pass_(days=10)
    log(store, aliases=("best",))
    log(store, metadata={"k": 3, "deep": {"x": "y"}, "dotted.key": True})
    log(store).protect("paper")
    clock.pass_(days=10)
    log(store)
    log(store, "m", kind="model")
    return store


# --- what matches


@pytest.mark.parametrize(
    ("where", "wanted", "stays"),
    [
        (Where(unaliased=True), ["ds:v0", "ds:v2"], ["ds:v3"]),
        (Where(alias="best"), [], ["ds:v1"]),
        (Where(alias="latest", collection="ds"), ["ds:v4"], []),
        (Where(version_in="v2"), ["ds:v2"], []),
        (Where(version_in=("v0..v1", "v4")), ["ds:v0", "ds:v4", "m:v0"], ["ds:v1"]),
        (Where(tag="old"), ["ds:v0"], []),
        (Where(type="model"), ["m:v0"], []),
        (Where(older_than=timedelta(days=10)), ["ds:v0"], []),
        (Where(older_than=timedelta(days=10) - timedelta(microseconds=1)), ["ds:v0", "ds:v2"], ["ds:v1", "ds:v3"]),
        (Where(metadata={"k": 3}), ["ds:v2"], []),
        (Where(metadata={"k": "3"}), [], []),
        (Where(metadata={"deep.x": "y", "dotted.key": True}), ["ds:v2"], []),
        (Where(metadata={"dotted.key": 1}), [], []),
        (Where(metadata={"none": None}), [], []),
        (Where(unaliased=True, older_than=timedelta(days=11)), ["ds:v0"], []),
    ],
)
def test_what_a_predicate_chooses(filled: Store, where: Where, wanted: list[str], stays: list[str]) -> None:
    done = filled.delete(where=where)
    assert list(done.refs) == wanted
    assert [ref for ref, _ in done.skipped] == stays
    assert all(why for _, why in done.skipped)
    assert [item.ref for item in filled.trash.list("ref")] == wanted


def test_latest_counts_as_an_alias(store: Store) -> None:
    """K6: the newest is kept."""
    for _ in range(3):
        log(store)
    assert store.delete(where=Where(unaliased=True)).refs == ("ds:v0", "ds:v1")
    assert live(store) == ["ds:v2"]


def test_aliases_go_only_when_they_may(filled: Store) -> None:
    done = filled.delete(where=Where(version_in="v0..v9"), collection="ds")
    assert dict(done.skipped) == {"ds:v1": "has the aliases best", "ds:v3": "is protected: paper"}
    again = filled.delete(where=Where(version_in="v0..v9"), collection="ds", delete_aliases=True)
    assert again.refs == ("ds:v1",), "a protected version is not overridden"
    assert filled.get("ds").ref == "ds:v3", "latest falls to what remains"
    assert filled.trash.restore("ds:v1").aliases == ("best",)


@pytest.mark.parametrize(
    "make",
    [
        Where,
        lambda: Where(collection="ds"),
        lambda: Where(metadata={}),
        lambda: Where(version_in=()),
        lambda: Where(version_in="v01"),
        lambda: Where(version_in="v9..v1"),
        lambda: Where(version_in=(1,)),  # type: ignore[arg-type]
        lambda: Where(older_than=30),  # type: ignore[arg-type]
        lambda: Where(older_than=timedelta(days=-1)),
        lambda: Where(unaliased="yes"),  # type: ignore[arg-type]
        lambda: Where(alias="v1"),
        lambda: Where(tag="-- x!"),
        lambda: Where(type="a/b"),
        lambda: Where(run="r 1\n"),
        lambda: Where(run=""),
        lambda: Where(metadata={"": 1}),
        lambda: Where(collection="a:b", unaliased=True),
    ],
)
def test_predicates_that_are_refused(make: type[Where]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_bad_calls_change_nothing(filled: Store) -> None:
    before = snapshot(Path(filled.url))
    for wrong in (
        lambda: filled.delete(),  # type: ignore[call-overload]
        lambda: filled.delete("ds:v0", where=Where(tag="old")),  # type: ignore[call-overload]
        lambda: filled.delete("ds:v0", dry_run=True),  # type: ignore[call-overload]
        lambda: filled.delete(where="unaliased"),  # type: ignore[call-overload]
        lambda: filled.plan_delete("ds:v0"),
        lambda: filled.plan_delete([]),
        lambda: filled.plan_delete(["ds:v0"], collection="ds"),
    ):
        with pytest.raises(InvalidInputError):
            wrong()
    with pytest.raises(CollectionNotFoundError):
        filled.delete(where=Where(tag="old"), collection="nope")
    with pytest.raises(VersionNotFoundError):
        filled.plan_delete(["ds:v0", "ds:v9"])
    with pytest.raises(ProtectedError):
        filled.plan_delete(["ds:v0", "ds:v3"])
    with pytest.raises(AliasGuardError):
        filled.plan_delete(["ds:v0", "ds:v1"])
    assert snapshot(Path(filled.url)) == before


# --- one plan, one commit


def test_nothing_to_do_is_no_commit(filled: Store) -> None:
    before = head(filled)
    assert filled.delete(where=Where(tag="nobody")).refs == ()
    assert head(filled) == before


def test_a_dry_run_is_the_run(filled: Store) -> None:
    """Q8: the same object, and it changes nothing."""
    before = snapshot(Path(filled.url))
    foreseen = filled.delete(where=Where(unaliased=True), dry_run=True)
    assert snapshot(Path(filled.url)) == before
    assert filled.delete(where=Where(unaliased=True)) == foreseen
    assert foreseen.purge_at - foreseen.trashed_at == timedelta(days=30)
    assert foreseen.to_dict()["refs"] == list(foreseen.refs)


def test_a_plan_is_carried_out_or_refused(filled: Store, clock: Clock) -> None:
    """Q8: what moved the store without changing the plan does not matter; what changes it does."""
    plan = filled.plan_delete(Where(unaliased=True, older_than=timedelta(days=1)))
    assert plan.refs == ("ds:v0", "ds:v2")
    log(filled, "other")
    clock.pass_(days=5)
    log(filled)
    done = plan.apply()
    assert (done.refs, done.skipped) == (plan.refs, plan.skipped)
    assert done.exclusive_bytes == plan.exclusive_bytes
    with pytest.raises(StaleBaseError) as caught:
        plan.apply()
    assert caught.value.exit_code == 13


@pytest.mark.parametrize("change", ["alias", "protect", "delete", "unprotect"])
def test_a_plan_that_would_be_another_is_refused(filled: Store, change: str) -> None:
    plan = filled.plan_delete(Where(unaliased=True))
    match change:
        case "alias":
            filled.get("ds:v0").add_alias("keep")
        case "protect":
            filled.get("ds:v0").protect("mine")
        case "delete":
            filled.delete("ds:v2")
        case "unprotect":
            filled.get("ds:v3").unprotect()
    before = snapshot(Path(filled.url))
    with pytest.raises(StaleBaseError, match="ds:v"):
        plan.apply()
    assert snapshot(Path(filled.url)) == before


def test_named_versions_in_one_plan(filled: Store) -> None:
    filled.delete("ds:v2")
    before = head(filled)
    plan = filled.plan_delete(["m:v0", "ds:latest", "ds:v0", "ds:v2", "ds:v0"])
    done = plan.apply()
    assert done.refs == ("ds:v0", "ds:v4", "m:v0")
    assert dict(done.skipped) == {"ds:v2": "is in the trash already"}
    assert head(filled) == before + 1
    assert filled.get("ds").ref == "ds:v3"


def test_one_transaction_in_ascending_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q9: all of it stands or falls together; the order is what keeps the state's search for latest short."""
    seen: list[tuple[Record, ...]] = []
    commit = Engine.commit

    def spy(engine: Engine, build: object, **options: object) -> object:
        def record(tables: Tables) -> object:
            records = tuple(build(tables))  # type: ignore[operator]
            seen.append(records)
            return records

        return commit(engine, record, **options)  # type: ignore[arg-type]

    for _ in range(12):
        log(store)
    monkeypatch.setattr(Engine, "commit", spy)
    store.delete(where=Where(type="dataset"))
    (records,) = seen
    assert [record.number for record in records if isinstance(record, Trash)] == list(range(12))


def test_thousands_of_versions_are_one_commit(store: Store) -> None:
    root = log(store)._found.version.root
    put = PutVersion("default/default/ds", "dataset", root, 9, 1, "", b"{}", (), (), True, "", -1, "me")
    store._engine.commit(lambda _: (put,) * 4999)
    before = head(store)
    done = store.delete(where=Where(version_in="v0..v99999"))
    assert len(done.refs) == 5000
    assert head(store) == before + 1
    assert done.exclusive_bytes > 0, "together they alone keep the content, though each shares it with the others"
    assert len(store.trash.empty()) == 5000
    assert head(store) == before + 2


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_frees_what_it_says(tmp_path: Path, seed: int) -> None:
    """Exact in plaintext bytes, for any set: after apply, purge and an offline collection."""
    chance = random.Random(seed)
    blocks = [chance.randbytes(chance.choice((200, 3000, 9000))) for _ in range(6)]
    with Store.create(tmp_path / "s", config=SMALL) as store:
        for number in range(8):
            artifact = Artifact(f"c{number % 3}")
            for path in range(chance.randint(1, 4)):
                artifact.add_bytes(b"".join(chance.sample(blocks, chance.randint(1, 3))), f"f{path}")
            store.log_artifact(artifact, tags=(chance.choice("ab"),), dedup="never")
        for where in (Where(tag="a"), Where(unaliased=True), Where(version_in="v0..v1")):
            plan = store.plan_delete(where)
            before = store.du().unique
            done = plan.apply()
            assert done.exclusive_plain_bytes == plan.foreseen.exclusive_plain_bytes
            store.trash.empty()
            store.gc(offline=True)
            assert before - store.du().unique == done.exclusive_plain_bytes, where
            assert store.fsck().clean


def test_what_is_dead_already_keeps_nothing(store: Store) -> None:
    """Content that a purged version shared with this one is freed with this one, and what it alone had is not."""
    shared, own = random.Random(1).randbytes(9000), random.Random(2).randbytes(9000)
    log(store, "dead", shared + own)
    log(store, "ds", shared)
    store.delete("dead:v0")
    store.trash.purge("dead:v0")
    plan = store.plan_delete(["ds:v0"])
    before = store.preview_delete(["ds:v0"]).exclusive_bytes
    assert plan.foreseen.exclusive_plain_bytes == before
    assert 9000 <= before < 10_000


# --- the command line's words


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("unaliased", Where(unaliased=True)),
        ("  unaliased and age>30d ", Where(unaliased=True, older_than=timedelta(days=30))),
        ("age > 12h", Where(older_than=timedelta(hours=12))),
        ("alias=best and tag=old", Where(alias="best", tag="old")),
        ('tag="two words"', Where(tag="two words")),
        ("type=model and collection=ml/ds", Where(type="model", collection="ml/ds")),
        ("version in v1..v9", Where(version_in=("v1..v9",))),
        ("version in v3, v5,v7..v8 and unaliased", Where(version_in=("v3", "v5", "v7..v8"), unaliased=True)),
    ],
)
def test_the_grammar(text: str, where: Where) -> None:
    assert parse_where(text).to_dict() == where.to_dict()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("metadata.k=3", ["ds:v2"]),
        ("metadata.deep.x=y", ["ds:v2"]),
        ("metadata.dotted.key=true and metadata.k=3", ["ds:v2"]),
        ("metadata.k=4", []),
        ("metadata.nope=null", []),
    ],
)
def test_typed_metadata_has_no_type(filled: Store, text: str, found: list[str]) -> None:
    assert list(filled.delete(where=parse_where(text), dry_run=True).refs) == found


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 1),
        ("  ", 3),
        ("unaliase", 1),
        ("unaliased-ish", 1),
        ("unaliased or tag=x", 11),
        ("unaliased tag=x", 11),
        ("unaliased and", 14),
        ("unaliased and and tag=x", 15),
        ("unaliased and unaliased", 15),
        ("age<30d", 4),
        ("age>30", 4),
        ("age>30days", 4),
        ("age>999999999w", 4),
        ("tag=", 4),
        ("tag=a b", 7),
        ("version=v1", 8),
        ("version in 1..2", 9),
        ("metadata.k=1 and metadata.k=2", 18),
        ("not unaliased", 1),
    ],
)
def test_faults_have_a_position(text: str, position: int) -> None:
    with pytest.raises(InvalidInputError, match=f"at position {position} ") as caught:
        parse_where(text)
    assert caught.value.hint


def test_rm_where_on_the_command_line(filled: Store) -> None:
    """Refused without a confirmation and for a bad expression; nothing is changed by that, nor by a dry run."""

    def run(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["rm", *words, "--store", filled.url])
        assert result.exit_code == code, result.output
        return result

    before = snapshot(Path(filled.url))
    run("--where", "unaliased", code=14)
    assert "position 4" in run("--where", "age<3", "--yes", code=2).stderr
    run("--where", "tag=old", "ds", "m", "--yes", code=2)
    run("--where", "tag=old", "--collection", "ds", code=2)
    run("--where", "tag=old", "nope", "--yes", code=10)
    run("--where", "tag=old", "--confirm", "ds", code=2)
    run(code=2)
    run("ds:v0", "--collection", "ds", code=2)
    run("--collection", "ds", code=14)
    run("--collection", "ds", "--confirm", "m", code=14)
    assert "casstore unprotect ds:v3" in run("--collection", "ds", "--confirm", "ds", code=14).stderr
    run("ds:v0", "ds:v3", "--yes", code=14)
    assert run("--where", "unaliased", "--dry-run").stdout == "ds:v0\nds:v2\n"
    assert snapshot(Path(filled.url)) == before
    done = run("--where", "unaliased", "ds", "--yes", "--reason", "old")
    assert done.stdout == "ds:v0\nds:v2\n"
    assert "ds:v3 stays: it is protected: paper" in done.stderr
    assert {item.reason for item in filled.trash.list()} == {"old"}


@pytest.mark.parametrize("text", ["alias=v1", "version in v9..v1", "type=a/b", "collection=ds"])
def test_values_are_checked_too(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_where(text)
