"""Several writers, one version (FEATURES E1-E6, R 14): upsert, finish, pending, abort.

Guards: what was upserted is in the version, whole, or its writer was told that it is not; two writers never overwrite
each other unnoticed; an id never means a second version; what nobody finishes becomes garbage, and nothing else does.
"""

from __future__ import annotations

import gc
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from casstore import (
    Artifact,
    ArtifactFinalizedError,
    CasstoreError,
    ConflictError,
    InvalidInputError,
    InvalidNameError,
    LeaseLostError,
    NameTakenError,
    NotFoundError,
    QuotaExceededError,
    ReadOnlyError,
    RefusedError,
    Runtime,
    Settings,
    Store,
    TypeConflictError,
    UpsertConflictError,
    Version,
)
from casstore.catalogue import due
from casstore.cli import main
from casstore.engine import Engine
from casstore.format.nodes import Node
from casstore.model import RenameCollection, UpsertPart
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, view_hash
from casstore.testing.clock import Clock
from casstore.testing.recipes import SMALL
from casstore.writer import Writer

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
START = datetime(2100, 1, 1, tzinfo=UTC)
_random = random.Random(7)
BLOCKS = [_random.randbytes(3000) for _ in range(8)]
LARGE = _random.randbytes(60_000)
"""a file of more chunks than an entry holds itself"""


_names = itertools.count()


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    runtime = Runtime(clock=clock, sleep=lambda _: None, actor="ann", writer="host:17")
    url = f"memory://batches-{next(_names)}"
    with Store.create(url, config=SMALL, runtime=runtime, settings=Settings(workers=1)) as store:
        yield store


def art(files: Mapping[str, bytes], name: str = "c", kind: str = "dataset") -> Artifact:
    artifact = Artifact(name, kind)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return artifact


def clean(store: Store) -> None:
    """A collection leaves nothing but what is needed, and the counts are right."""
    assert store.gc(grace=0, orphan_age=0, max_waste=0).errors == []
    recount(store._engine)
    check_no_garbage(store)
    assert store.fsck(read_data=True).findings == []
    assert replayed(store._engine) == view_hash(store._engine)


# ---------------------------------------------------------------- parts become one version


def test_all_parts_and_every_byte_of_them_are_in_the_version(store: Store) -> None:
    one = {"a/1": BLOCKS[0], "large": LARGE, "e": b""}
    two = {"a/2": BLOCKS[1], "z": BLOCKS[0]}
    info = store.upsert(art(one), "run 7", "one")
    assert (info.part, info.files, info.size, info.lost) == ("one", 3, len(BLOCKS[0]) + len(LARGE), False)
    store.upsert(art(two), "run 7", "two")
    assert [version for collection in store.collections() for version in store.versions(collection.name)] == []
    version = store.finish("run 7", aliases=["best"], tags=["t"], description="said", metadata={"k": 1})
    assert version.created
    assert version.ref == "c:v0"
    assert read_files(version) == one | two
    assert set(version.aliases) == {"best", "latest"}
    assert (version.tags, version.description, version.metadata) == (("t",), "said", {"k": 1})
    assert (version.size, version.file_count) == (sum(map(len, (one | two).values())), 5)
    assert store.pins() == []
    clean(store)
    assert read_files(store.get("c:best")) == one | two


def test_the_version_is_the_very_one_that_a_single_log_makes(store: Store) -> None:
    rng = random.Random(3)
    for step in range(30):
        letters = ["a", "a-", "b/c", "b", "d.e", "f/g/h"]
        files = {
            f"{rng.choice(letters)}{rng.randrange(40)}/{rng.randrange(9)}": BLOCKS[rng.randrange(8)] for _ in range(60)
        }
        parts: list[dict[str, bytes]] = [{}, {}, {}]
        for path, data in files.items():
            for part in rng.sample(parts, rng.choice([1, 1, 2])):
                part[path] = data
        for number, part in enumerate(parts):
            store.upsert(art(part), f"id {step}", f"{number}")
        made = store.finish(f"id {step}", dedup="never")
        logged = store.log_artifact(art(files, "other"), dedup="never")
        assert made.digest == logged.digest
        assert (made.size, made.file_count) == (logged.size, logged.file_count)
    recount(store._engine)


def test_a_part_is_durable_when_upsert_returns(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", config=SMALL) as store:
        store.upsert(art({"a": LARGE}), "id", "p")
    with Store.open(tmp_path / "s") as store:
        assert store.gc(grace=0, orphan_age=0).errors == []
        (batch,) = store.pending()
        assert [(part.part, part.size) for part in batch.parts] == [("p", len(LARGE))]
        assert read_files(store.finish("id")) == {"a": LARGE}


def test_the_same_part_again_is_one_part(store: Store, clock: Clock) -> None:
    first = store.upsert(art({"a": b"x"}), "id", "p")
    clock.now += DAY
    again = store.upsert(art({"a": b"x"}), "id", "p")
    assert again == first
    (batch,) = store.pending()
    assert batch.parts == (first,)
    assert batch.expires_at == clock.now + 7 * DAY
    assert len(store.pins()) == 1
    store.finish("id", expected_parts=1)
    clean(store)


def test_a_part_without_a_name_has_that_of_its_content(store: Store) -> None:
    names = {store.upsert(art(files), "id").part for files in ({"a": b"1"}, {"b": b"2"}, {"a": b"1"})}
    assert len(names) == 2
    assert {part.part for part in store.pending()[0].parts} == names
    assert names == {str(part.digest) for part in store.pending()[0].parts}
    assert read_files(store.finish("id", expected_parts=2)) == {"a": b"1", "b": b"2"}


def test_the_same_part_with_other_content_is_refused_and_leaves_no_trace(store: Store) -> None:
    store.upsert(art({"a": b"x"}), "id", "p")
    head = store.head
    with pytest.raises(UpsertConflictError, match="'p' of batch 'id'"):
        store.upsert(art({"a": b"x", "b": BLOCKS[0]}), "id", "p")
    assert store.head == head
    assert store.fsck().orphan_packs == 0
    clean(store)


# ---------------------------------------------------------------- contradictions


def test_a_path_with_other_content_in_two_parts_is_named_with_both(store: Store) -> None:
    store.upsert(art({"d/x": b"1", "d/y": b"2"}), "id", "left")
    with pytest.raises(UpsertConflictError, match=r"'d/y'.*'left'.*'right'|'d/y'.*'right'.*'left'") as caught:
        store.upsert(art({"d/y": b"3", "e": BLOCKS[1]}), "id", "right")
    assert caught.value.exit_code == 13
    assert [part.part for part in store.pending()[0].parts] == ["left"]
    assert store.fsck().orphan_packs == 0
    store.upsert(art({"d/y": b"2", "e": b"3"}), "id", "right")  # the same content is fine
    assert read_files(store.finish("id")) == {"d/x": b"1", "d/y": b"2", "e": b"3"}


@pytest.mark.parametrize(
    ("files", "directories"),
    [
        ({"a"}, {"a/x"}),
        ({"a", "b"}, {"a/x"}),
        ({"a", "a-b"}, {"a/x"}),  # a-b is between them
        ({"a"}, {"a-b", "a.c", "a/x/y"}),
        ({"a/b", "c"}, {"0", "a/b/c/d"}),
        ({"m"}, {"a", "m/n", "z"}),
        ({"m", "m-" + "x" * 9}, {"k", "m/n"}),
    ],
)
@pytest.mark.parametrize("files_first", [True, False])
def test_a_file_in_one_part_is_no_directory_in_another(
    store: Store, files: set[str], directories: set[str], files_first: bool
) -> None:
    parts = {"files": files, "dirs": directories}
    order = list(parts) if files_first else list(reversed(parts))
    store.upsert(art(dict.fromkeys(parts[order[0]], b"x")), "id", order[0])
    with pytest.raises(UpsertConflictError, match=r"is a file in part 'files', but a directory in part 'dirs'"):
        store.upsert(art(dict.fromkeys(parts[order[1]], b"x")), "id", order[1])


@pytest.mark.parametrize(
    ("one", "two"), [({"a", "c"}, {"a-b", "b"}), ({"a"}, {"ab/x"}), ({"a.d/x"}, {"a/x", "a0"}), ({"x/1"}, {"x-", "x0"})]
)
def test_neighbours_are_no_contradiction(store: Store, one: set[str], two: set[str]) -> None:
    store.upsert(art(dict.fromkeys(one, b"x")), "id", "1")
    store.upsert(art(dict.fromkeys(two, b"y")), "id", "2")
    assert set(read_files(store.finish("id"))) == one | two


def test_contradictions_are_found_wherever_they_are(store: Store) -> None:
    """Against a plain comparison of dictionaries, for random parts."""
    rng = random.Random(11)
    names = ["a", "a-", "a/b", "a/b/c", "a.b", "ab", "b", "b/a", "c/d/e", "c/d", "c"]
    outcomes = set()
    for step in range(150):
        parts = [_tree(rng, names) for _ in range(2)]
        store.upsert(art(parts[0]), f"id {step}", "0")
        wanted = _contradict(*parts)
        outcomes.add(wanted)
        if wanted:
            with pytest.raises(UpsertConflictError):
                store.upsert(art(parts[1]), f"id {step}", "1")
        else:
            store.upsert(art(parts[1]), f"id {step}", "1")
            assert read_files(store.finish(f"id {step}", dedup="never")) == parts[0] | parts[1]
    assert outcomes == {True, False}


def _tree(rng: random.Random, names: list[str]) -> dict[str, bytes]:
    chosen: list[str] = []
    for name in rng.sample(names, rng.randrange(4)):
        if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in chosen):
            chosen.append(name)
    return {name: rng.choice([b"1", b"2", b"2", b"2"]) for name in chosen}


def _contradict(one: dict[str, bytes], two: dict[str, bytes]) -> bool:
    return any(
        (a == b and one[a] != two[b]) or a.startswith(f"{b}/") or b.startswith(f"{a}/") for a in one for b in two
    )


def test_an_empty_directory_is_no_contradiction_to_files_in_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "f").mkdir()
    empty = Artifact("c", "dataset")
    empty.add_dir(tmp_path, keep_empty_dirs=True)
    store.upsert(empty, "id", "empty")
    store.upsert(art({"d/e-": b"0", "d/e/x": b"1"}), "id", "full")
    version = store.finish("id")
    assert [(entry.path, entry.kind) for entry in version.files()] == [
        ("d/e-", "file"),
        ("d/e/x", "file"),
        ("d/f", "dir"),
    ]
    clean(store)


def test_parts_that_cannot_meet_are_not_walked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for letter in "abcf":
        store.upsert(art({f"{letter}/{n:03}": b"%d" % n for n in range(300)}), "id", letter)
    read: list[bytes] = []
    right = Engine.node

    def node(self: Engine, digest: bytes) -> Node:
        read.append(digest)
        return right(self, digest)

    monkeypatch.setattr(Engine, "node", node)
    store.upsert(art({f"d/{n:03}": b"%d" % n for n in range(300)}), "id", "d")
    assert len(read) < 60  # some nodes a level; each of the four has hundreds of files in dozens of nodes
    read.clear()
    store.upsert(art({f"a/x{n:03}": b"%d" % n for n in range(300)}), "id", "e")
    assert len(read) < 60


# ---------------------------------------------------------------- finishing


def test_finish_waits_for_the_parts_that_are_expected(store: Store) -> None:
    store.upsert(art({"a": b"1"}), "id", "p0")
    store.upsert(art({"b": b"1"}), "id", "p1")
    head = store.head
    with pytest.raises(ConflictError, match=r"1 of 3 parts .* missing; those here are 'p0', 'p1'"):
        store.finish("id", expected_parts=3)
    with pytest.raises(ConflictError, match="part 'p2', 'p3' of batch 'id' is missing"):
        store.finish("id", expected_parts=["p0", "p1", "p2", "p3"])
    with pytest.raises(RefusedError, match="2 parts, not 1"):
        store.finish("id", expected_parts=1)
    with pytest.raises(RefusedError, match="part 'p1', which is not expected"):
        store.finish("id", expected_parts=("p0",))
    for wrong in (0, -1, True, "p0", b"p", [], 1.5, [1]):
        with pytest.raises(InvalidInputError):
            store.finish("id", expected_parts=wrong)  # type: ignore[arg-type]
    assert store.head == head
    store.upsert(art({"c": b"1"}), "id", "p2")
    assert store.finish("id", expected_parts=3).file_count == 3


def test_finish_names_the_missing_of_parts_that_are_counted(store: Store) -> None:
    """A number alone says how many; which they are can be told if the names of those here are numbers, too."""

    def missing(expected: int) -> str:
        with pytest.raises(ConflictError) as caught:
            store.finish("id", expected_parts=expected)
        return caught.value.message.partition("; counted from 0, ")[2]

    store.upsert(art({"a": b"1"}), "id", part="0")
    store.upsert(art({"b": b"1"}), "id", part="2")
    assert missing(4) == "'1', '3' would be missing"
    assert missing(10**9).endswith("'21', … would be missing")
    store.upsert(art({"c": b"1"}), "id", part="5")
    assert missing(5) == "", "they are counted otherwise"
    store.upsert(art({"d": b"1"}), "id", part="w1")
    assert missing(9) == "", "and so are these"


def test_a_batch_is_found_by_its_id_alone_if_that_is_enough(store: Store) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.finish("id")
    assert caught.value.exit_code == 10
    store.upsert(art({"a": b"1"}, "c"), "id", "p")
    with pytest.raises(ConflictError, match="has no parts"):
        store.finish("id", collection="d")
    with pytest.raises(ConflictError, match="has no parts"):
        store.finish("id", art({"x": b"1"}, "d"))  # a wrong id makes no version of the finisher's files alone
    with pytest.raises(ConflictError, match=r"2 of 2 parts .* missing; none is here"):
        store.finish("id", expected_parts=2, collection="d")
    store.upsert(art({"a": b"2"}, "d"), "id", "p", project="team")
    with pytest.raises(InvalidInputError, match=r"of c, team/d"):
        store.finish("id")
    assert store.finish("id", collection="team/d").ref == "team/d:v0"
    assert store.finish("id", collection="c").ref == "c:v0"


def test_an_upsert_after_the_end_is_refused_and_makes_no_other_version(store: Store) -> None:
    """FEATURES R 14: a later upsert with the same id silently starts a new version."""
    store.upsert(art({"a": b"1"}), "id", "p")
    store.finish("id")
    for part in ("p", "q", None):
        with pytest.raises(ArtifactFinalizedError, match=r"it is c:v0") as caught:
            store.upsert(art({"a": b"1"}), "id", part)
        assert caught.value.exit_code == 14
    store.upsert(art({"b": b"1"}), "other", "p")
    store.abort("other", reason="wrong data")
    with pytest.raises(RefusedError, match="aborted: wrong data") as refused:
        store.upsert(art({"b": b"1"}), "other", "p")
    assert refused.value.exit_code == 14
    with pytest.raises(RefusedError, match="aborted: wrong data"):
        store.finish("other")
    assert len(store.versions("c")) == 1
    assert store.pending() == []
    clean(store)


def test_ids_stay_used_after_the_version_and_its_collection_are_gone(store: Store) -> None:
    store.upsert(art({"a": b"1"}), "id", "p")
    store.finish("id")
    store.collection("c").delete()
    store.trash.empty()
    with pytest.raises(ArtifactFinalizedError):
        store.upsert(art({"a": b"1"}), "id", "p")


def test_finishing_again_gives_the_same_version_if_the_same_is_asked_for(store: Store) -> None:
    store.upsert(art({"a": b"1"}), "id", "p")

    def finish(**how: object) -> Version:
        return store.finish("id", **({"expected_parts": 1, "aliases": ["x", "y"], "tags": ["t"]} | how))  # type: ignore[arg-type]

    first = finish()
    head = store.head
    again = finish(aliases=["y", "x"])
    assert (first.created, again.created) == (True, False)
    assert again.ref == first.ref
    others: list[dict[str, object]] = [
        {"aliases": ["x"]},
        {"tags": []},
        {"description": "d"},
        {"metadata": {"a": 1}},
        {"ttl": DAY},
        {"expected_parts": 2},
        {"expected_parts": None},
        {"dedup": "never"},
        {"art": art({"own": b"1"})},
    ]
    for other in others:
        with pytest.raises(ArtifactFinalizedError, match="finished otherwise: it is c:v0"):
            finish(**other)
    assert store.head == head
    assert store.fsck().orphan_packs == 0
    first.delete(delete_aliases=True)
    assert finish().ref == "c:v0"  # in the trash, and still what it became


def test_the_finisher_may_add_files_and_labels(store: Store) -> None:
    store.upsert(art({"a": b"1", "d/x": LARGE}), "id", "p")
    own = art({"index": BLOCKS[2], "a": b"1", "large": LARGE[:50_000]})
    own.description, own.metadata, own.ttl = "of the finisher", {"n": 2}, 3 * DAY
    clash = art({"d": b"file"})
    head = store.head
    with pytest.raises(UpsertConflictError, match=r"'d' is a file in the finisher's artifact, but .* part 'p'"):
        store.finish("id", clash)
    assert store.head == head
    version = store.finish("id", own, metadata={"n": 3})
    assert read_files(version) == {"a": b"1", "d/x": LARGE, "index": BLOCKS[2], "large": LARGE[:50_000]}
    assert (version.description, version.metadata, version.ttl) == ("of the finisher", {"n": 3}, 3 * DAY)
    again = store.finish("id", own, metadata={"n": 3})
    assert (again.ref, again.created) == (version.ref, False)
    clean(store)


def test_drafts_count_with_their_whole_tree(store: Store) -> None:
    base = store.log_artifact(art({"a": b"1", "b/c": LARGE, "gone": b"2"}))
    draft = base.new_draft()
    draft.remove("gone")
    draft.add_bytes(b"3", "new")
    store.upsert(draft, "id", "draft")
    with pytest.raises(UpsertConflictError, match="'b'"):
        store.upsert(art({"b": b"file"}), "id", "p")
    with pytest.raises(UpsertConflictError, match="'a'"):
        store.upsert(art({"a": b"other"}), "id", "p")
    store.upsert(art({"p": b"4", "gone": b"now"}), "id", "p")
    for path in ("a", "b"):
        store.upsert(art({path: b"other"}), path, "p")
        with pytest.raises(UpsertConflictError, match=f"'{path}'"):
            store.upsert(base.new_draft(), path, "draft")
        store.abort(path)
    own = store.log_artifact(art({"y": b"6", "z": BLOCKS[0], "b/y": b"7"})).new_draft()
    own.remove("y")
    own.add_bytes(b"5", "b/own")
    version = store.finish("id", own)
    draft_files = {"a": b"1", "b/c": LARGE, "new": b"3"}
    own_files = {"b/y": b"7", "z": BLOCKS[0], "b/own": b"5"}
    assert read_files(version) == draft_files | own_files | {"p": b"4", "gone": b"now"}
    assert version.base == "c:v1"
    del draft, own
    gc.collect()  # drafts let go of their pins when they go
    clean(store)


def test_content_that_is_a_version_already_makes_no_other(store: Store) -> None:
    files = {"a": BLOCKS[0], "b": LARGE}
    there = store.log_artifact(art(files))
    for part, path in enumerate(files):
        store.upsert(art({path: files[path]}), "id", str(part))
    version = store.finish("id", aliases=["best"], description="new")
    assert (version.ref, version.created, version.ignored) == (there.ref, False, ("description",))
    assert "best" in version.aliases
    assert store.finish("id", aliases=["best"], description="new").ref == there.ref
    with pytest.raises(ArtifactFinalizedError, match="it is c:v0"):
        store.upsert(art({"c": b"1"}), "id", "2")
    assert store.batch("id").version == "c:v0"
    clean(store)


def test_a_run_may_finish(store: Store) -> None:
    run = store.run("merge", id="r1")
    for id in ("made", "there already"):
        store.upsert(art({"a": b"1"}), id, "p")
        version = store.finish(id, run=run, attrs={"step": 7})
        assert (version.ref, version.attrs) == ("c:v0", {"step": 7})
    assert [logged.ref for logged in run.outputs()] == ["c:v0"]
    run.finish()
    store.upsert(art({"b": b"1"}), "late", "p")
    with pytest.raises(RefusedError):
        store.finish("late", run="r1")
    with pytest.raises(NotFoundError):
        store.finish("late", run="r2")
    assert [batch.distributed_id for batch in store.pending()] == ["late"]


def test_whoever_runs_the_store_may_refuse(clock: Clock) -> None:
    asked: list[tuple[str, str]] = []

    def authorize(_: str, action: str, target: str) -> bool:
        asked.append((action, target))
        return target != "secret"

    runtime = Runtime(clock=clock, authorize=authorize)
    with Store.create(f"memory://batches-{next(_names)}", config=SMALL, runtime=runtime) as store:
        with pytest.raises(RefusedError, match="may not log secret"):
            store.upsert(art({"a": LARGE}, "secret"), "id", "p")
        assert (store.head, store.fsck().orphan_packs) == (0, 0)
        store.upsert(art({"a": LARGE}), "id", "p")
        store.finish("id", aliases=["best"])
        store.upsert(art({"a": LARGE}), "other", "p")
        store.abort("other")
    assert set(asked) == {("log", "secret"), ("log", "c"), ("alias", "c:best"), ("abort", "c")}


def test_a_time_to_live_is_refused_for_types_without(store: Store) -> None:
    store.set_policy(no_ttl_types=["model"])
    store.upsert(art({"a": b"1"}, kind="model"), "id", "p")
    with pytest.raises(RefusedError):
        store.finish("id", ttl=DAY)
    assert store.finish("id").ttl_source == "none"


def test_types_must_agree(store: Store) -> None:
    store.log_artifact(art({"x": b"1"}, "c"))
    with pytest.raises(TypeConflictError):
        store.upsert(art({"a": b"1"}, "c", "model"), "id", "p")
    store.upsert(art({"a": b"1"}, "new"), "id", "p")
    with pytest.raises(TypeConflictError, match="batch 'id' of new"):
        store.upsert(art({"b": b"1"}, "new", "model"), "id", "q")
    with pytest.raises(TypeConflictError):
        store.finish("id", art({"b": b"1"}, "new", "model"))
    store.log_artifact(art({"x": b"1"}, "new", "model"))  # the name is taken meanwhile
    with pytest.raises(TypeConflictError):
        store.finish("id")
    with pytest.raises(TypeConflictError):
        store.upsert(art({"b": b"1"}, "new"), "id", "q")


def test_a_collection_in_the_trash_takes_no_parts(store: Store) -> None:
    store.log_artifact(art({"x": b"1"}))
    store.upsert(art({"a": b"1"}), "id", "p")
    store.collection("c").delete()
    with pytest.raises(NameTakenError):
        store.upsert(art({"b": b"1"}), "id", "q")
    with pytest.raises(NameTakenError):
        store.finish("id")
    store.trash.restore("c")
    assert read_files(store.finish("id")) == {"a": b"1"}


def test_a_full_store_takes_no_part(store: Store) -> None:
    store.upsert(art({"a": b"1"}), "id", "p")
    store.quota(store.du().stored + 3000)
    with pytest.raises(QuotaExceededError):
        store.upsert(art({"b": LARGE}), "id", "q")
    assert [part.part for part in store.pending()[0].parts] == ["p"]
    assert store.fsck().orphan_packs == 0


def test_a_part_that_was_let_go_of_is_named_and_can_be_upserted_again(store: Store) -> None:
    store.upsert(art({"a": LARGE}), "id", "p")
    store.upsert(art({"b": b"1"}), "id", "q")
    (pin,) = [pin for pin in store.pins() if pin.purpose == "part p of id"]
    store.unpin(pin.id)
    for _ in range(2):
        with pytest.raises(LeaseLostError, match="part 'p' of batch 'id'"):
            store.finish("id")
        assert [(part.part, part.lost) for part in store.batch("id").parts] == [("p", True), ("q", False)]
        clean(store)  # the second time, its content is gone
    store.upsert(art({"c": b"1"}), "id", "r")
    with pytest.raises(UpsertConflictError):
        store.upsert(art({"a": LARGE + b"!"}), "id", "p")
    store.upsert(art({"a": LARGE}), "id", "p")
    assert read_files(store.finish("id", expected_parts=3)) == {"a": LARGE, "b": b"1", "c": b"1"}
    clean(store)


def test_a_part_that_was_let_go_of_is_compared_when_it_comes_again(store: Store) -> None:
    store.upsert(art({"a": b"1"}), "id", "p")
    store.unpin(store.pins()[0].id)
    store.upsert(art({"a": b"2"}), "id", "q")
    with pytest.raises(UpsertConflictError, match="'a'"):
        store.upsert(art({"a": b"1"}), "id", "p")


@pytest.mark.parametrize("wrong", ["", "x" * 129, "a\nb", "a\0b", "\x7f", "\x85", "\ud800", 7, None, b"x"])
def test_ids_and_part_names_are_text_without_control_characters(store: Store, wrong: object) -> None:
    with pytest.raises(InvalidNameError):
        store.upsert(art({"a": b"1"}), wrong, "p")  # type: ignore[arg-type]
    if wrong is not None:
        with pytest.raises(InvalidNameError):
            store.upsert(art({"a": b"1"}), "id", wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidNameError):
        store.finish(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidNameError):
        store.abort(wrong)  # type: ignore[arg-type]
    assert store.head == 0


@pytest.mark.parametrize("lease", [timedelta(0), -DAY, 36_526 * DAY, 7, None])
def test_a_lease_is_a_time_to_come(store: Store, lease: object) -> None:
    with pytest.raises(InvalidInputError):
        store.upsert(art({"a": b"1"}), "id", "p", lease=lease)  # type: ignore[arg-type]


def test_the_longest_names_fit_the_index(tmp_path: Path) -> None:
    name, long = "n" * 128, "\U0001f980" * 128
    with Store.create(tmp_path / "s", config=SMALL) as store:
        artifact = Artifact(name, "t" * 128)
        artifact.add_bytes(b"1", "a")
        info = store.upsert(artifact, long, long, project=f"{'e' * 128}/{'p' * 128}")
        assert (info.distributed_id, info.part) == (long, long)
        store.rebuild_index()
        assert store.pending()[0].parts == (info,)
        assert store.finish(long, expected_parts=[long]).file_count == 1


def test_a_read_only_store_takes_nothing(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", config=SMALL) as store:
        store.upsert(art({"a": b"1"}), "id", "p")
    with Store.open(tmp_path / "s", read_only=True) as store:
        assert [batch.distributed_id for batch in store.pending()] == ["id"]
        for change in (
            lambda: store.upsert(art({"b": b"1"}), "id", "q"),
            lambda: store.finish("id"),
            lambda: store.abort("id"),
        ):
            with pytest.raises(ReadOnlyError):
                change()


def test_the_names_it_has_elsewhere(store: Store) -> None:
    store.upsert_artifact(art({"a": b"1"}), "id")
    version = store.finish_artifact(art({"b": b"1"}), "id", aliases=["x"])
    assert read_files(version) == {"a": b"1", "b": b"1"}
    assert set(version.aliases) == {"x", "latest"}


def test_what_was_upserted_is_final(store: Store) -> None:
    artifact = art({"a": b"1"})
    store.upsert(artifact, "id", "p")
    with pytest.raises(ArtifactFinalizedError):
        artifact.add_bytes(b"2", "b")
    assert store.upsert(artifact, "id", "p").files == 1


# ---------------------------------------------------------------- renamed collections


def rename(store: Store, old: str, new: str) -> None:
    store._engine.commit(lambda _: (RenameCollection(f"default/default/{old}", f"default/default/{new}"),))


def test_batches_go_with_a_collection_that_is_renamed(store: Store) -> None:
    store.log_artifact(art({"x": b"1"}, "old"))
    store.upsert(art({"z": b"1"}, "old"), "done", "p")
    store.finish("done")
    store.upsert(art({"a": b"1"}, "old"), "id", "p")
    rename(store, "old", "new")
    assert [(batch.collection, len(batch.parts)) for batch in store.pending()] == [("new", 1)]
    store.upsert(art({"b": b"1"}, "old"), "id", "q")  # a writer that does not know yet
    store.upsert(art({"c": b"1"}, "new"), "id", "r")
    with pytest.raises(ArtifactFinalizedError, match="new:v1"):
        store.upsert(art({"c": b"1"}, "new"), "done", "r")
    version = store.finish("id", collection="old", expected_parts=3)
    assert (version.ref, set(read_files(version))) == ("new:v2", {"a", "b", "c"})
    assert [info.name for info in store.collections()] == ["new"]
    clean(store)


def test_a_batch_stays_with_its_collection_when_another_takes_the_old_name(store: Store) -> None:
    store.log_artifact(art({"x": b"1"}, "old"))
    store.upsert(art({"a": b"1"}, "old"), "id", "p")
    rename(store, "old", "new")
    store.log_artifact(art({"y": b"1"}, "old"))
    store.upsert(art({"b": b"1"}, "old"), "id", "p")  # another batch, of the collection that has the name now
    assert store.finish("id", collection="new").ref == "new:v1"
    assert store.finish("id", collection="old").ref == "old:v1"
    assert set(read_files(store.get("new:v1"))) == {"a"}


def test_a_collection_cannot_take_a_name_whose_batches_it_has_too(store: Store) -> None:
    store.log_artifact(art({"x": b"1"}, "old"))
    store.upsert(art({"a": b"1"}, "old"), "id", "p")
    store.upsert(art({"b": b"1"}, "new"), "id", "p")
    with pytest.raises(ConflictError, match="a batch id of default/default/new"):
        rename(store, "old", "new")
    assert store.finish("id", collection="old").ref == "old:v1"


# ---------------------------------------------------------------- abandoned


def test_each_upsert_renews_the_whole_batch(store: Store, clock: Clock) -> None:
    store.upsert(art({"a": LARGE}), "id", "p", lease=7 * DAY)
    clock.now += 5 * DAY
    store.upsert(art({"b": b"1"}), "id", "q", lease=7 * DAY)
    clock.now += 5 * DAY
    store.upsert(art({"c": b"1"}), "id", "r", lease=HOUR)  # shortens nothing
    assert {pin.expires_at for pin in store.pins()} == {START + 12 * DAY}
    assert store.gc(grace=0).aborted_batches == []
    clock.now += DAY
    assert store.gc(grace=0).aborted_batches == []
    assert len(store.finish("id", expected_parts=3).to_dict())
    assert read_files(store.get("c:v0")) == {"a": LARGE, "b": b"1", "c": b"1"}


def test_an_abandoned_batch_is_aborted_and_named_by_the_next_collection(store: Store, clock: Clock) -> None:
    store.upsert(art({"a": LARGE}), "id", "p", lease=DAY)
    store.upsert(art({"b": b"1"}), "id", "q", lease=DAY)
    store.upsert(art({"x": b"1"}, "d"), "lasting", "p", lease=3 * DAY)
    store.log_artifact(art({"x": b"1"}, "d"))
    store.pin("d:v0", "expires with it", ttl=DAY)
    clock.now += DAY
    assert [(batch.distributed_id, batch.expired) for batch in store.pending()] == [("id", True), ("lasting", False)]
    foreseen = store.gc(dry_run=True, grace=0)
    assert foreseen.aborted_batches == ["c id"]
    assert len(store.pending()) == 2
    report = store.gc(grace=0, max_waste=0)
    assert report.aborted_batches == ["c id"]
    assert report.to_dict()["aborted_batches"] == ["c id"]
    assert report.freed_bytes > len(LARGE)
    assert [pin.purpose for pin in store.pins()] == ["part p of lasting"]
    info = store.batch("id")
    assert (info.state, info.parts, info.reason) == ("ABORTED", (), "its lease is over")
    with pytest.raises(RefusedError, match="its lease is over"):
        store.upsert(art({"a": LARGE}), "id", "p")
    (record,) = [record for record in store.deletions() if record.action == "abort"]
    assert (record.refs, record.by, record.run_id) == (("c id",), "lease", report.run_id)
    assert store.finish("lasting").file_count == 1
    clean(store)


def test_until_a_collection_takes_it_an_expired_batch_can_go_on(store: Store, clock: Clock) -> None:
    for id in ("upserted", "finished"):
        store.upsert(art({"a": b"1", "id": id.encode()}), id, "p", lease=DAY)
    clock.now += 2 * DAY
    store.finish("finished")
    store.upsert(art({"b": b"1"}), "upserted", "q", lease=DAY)
    assert store.gc(grace=0).aborted_batches == []
    assert store.finish("upserted", expected_parts=2).file_count == 3


def test_a_renewed_pin_of_one_part_keeps_the_batch_whole(store: Store, clock: Clock) -> None:
    store.upsert(art({"a": b"1"}), "id", "p", lease=DAY)
    store.upsert(art({"b": b"1"}), "id", "q", lease=DAY)
    (pin,) = [pin for pin in store.pins() if pin.purpose == "part q of id"]
    store.renew_pin(pin.id, 10 * DAY)
    clock.now += 5 * DAY
    assert store.gc(grace=0).aborted_batches == []
    assert store.pending()[0].expires_at == START + 10 * DAY
    clock.now += 5 * DAY
    assert store.gc(grace=0, max_waste=0).aborted_batches == ["c id"]
    clean(store)


@pytest.mark.parametrize("upsert_first", [True, False])
def test_an_upsert_and_the_end_of_its_lease_in_one_segment(store: Store, clock: Clock, upsert_first: bool) -> None:
    """Whichever comes first in the segment, both transactions are made of what they find: none is void."""
    first = store.upsert(art({"a": b"1"}), "id", "p", lease=DAY)
    clock.now += DAY
    engine = store._engine
    again = UpsertPart(
        "default/default/c", "id", "p", "dataset", first.digest.value, 1, 1, b"q" * 16, "h", 2**53, "ann"
    )
    builds = [lambda _: (again,), lambda tables: due(tables, "gc").records]
    if upsert_first:
        engine.commit_all(builds)
        assert store.batch("id").state == "PENDING"
        assert store.gc(grace=0).aborted_batches == []
    else:
        with pytest.raises(ConflictError, match="aborted"):
            engine.commit_all(list(reversed(builds)))
        assert store.batch("id").state == "ABORTED"
    recount(engine)


def test_a_store_that_only_collections_look_at_gives_leases_up_in_time(tmp_path: Path) -> None:
    """Each run is another process: of the time since the last one a day counts at most, and only if that is logged."""
    now = START

    def opened(writer: str) -> Store:
        runtime = Runtime(clock=lambda: now, writer=writer, sleep=lambda _: None)
        return Store.open(tmp_path / "s", create=True, runtime=runtime)

    with opened("writer:1") as store:
        store.upsert(art({"a": b"1"}), "id", "p", lease=7 * DAY)
    aborted = []
    for day in range(9):
        now += DAY
        with opened(f"gc:{day}") as store:
            aborted.append(store.gc().aborted_batches)
    assert aborted == [[]] * 6 + [["c id"]] + [[]] * 2


def test_abort_gives_up_what_only_the_parts_keep(store: Store) -> None:
    kept = store.log_artifact(art({"x": BLOCKS[0]}))
    store.upsert(art({"a": LARGE, "x": BLOCKS[0]}), "id", "p")
    with pytest.raises(NotFoundError):
        store.abort("other")
    info = store.abort("id", reason="no need")
    assert (info.state, info.reason, len(info.parts)) == ("ABORTED", "no need", 1)
    assert store.abort("id", reason="again").reason == "no need"
    clean(store)
    assert read_files(kept) == {"x": BLOCKS[0]}
    store.upsert(art({"a": b"1"}), "done", "p")
    store.finish("done")
    with pytest.raises(ArtifactFinalizedError):
        store.abort("done")
    (record,) = [record for record in store.deletions() if record.action == "abort"]
    assert (record.reason, record.actor, record.by) == ("no need", "ann", "user")


def test_a_batch_in_any_state_can_be_looked_at(store: Store, clock: Clock) -> None:
    store.upsert(art({"a": BLOCKS[0]}), "id", "p")
    clock.now += HOUR
    store.upsert(art({"b": b"1"}), "id", "q")
    (batch,) = store.pending()
    assert batch == store.batch("id") == store.batch("id", "c")
    assert (batch.state, batch.type, batch.size, batch.files) == ("PENDING", "dataset", 3001, 2)
    assert (batch.created_at, batch.expires_at) == (START, clock.now + 7 * DAY)
    assert [(part.part, part.at) for part in batch.parts] == [("p", START), ("q", clock.now)]
    assert all(part.holder == "ann@host:17" for part in batch.parts)
    json.dumps(batch.to_dict())
    store.finish("id")
    assert store.pending() == []
    done = store.batch("id")
    assert (done.state, done.version, done.parts, done.expires_at) == ("FINISHED", "c:v0", (), None)
    with pytest.raises(NotFoundError):
        store.batch("id", "d")


def test_parts_are_pins_wherever_those_are_shown(store: Store) -> None:
    version = store.log_artifact(art({"a": LARGE}))
    store.upsert(art({"a": LARGE, "b": BLOCKS[0]}), "run 7", "worker 3")
    (pin,) = store.pins()
    assert (pin.purpose, pin.holder) == ("part worker 3 of run 7", "ann@host:17")
    holders = [(holder.kind, holder.purpose) for holder in store.why(f"{version.ref}/a").holders]
    assert ("pin", "part worker 3 of run 7") in holders
    assert store.preview_delete([version.ref]).pins == ("part worker 3 of run 7, held by ann@host:17",)
    assert store.status().pins == 1
    assert store.status().pinned > 0
    assert store.status().next_pin_expiry == START + 7 * DAY
    assert store.du().garbage == 0


# ---------------------------------------------------------------- races


def before_commit(monkeypatch: pytest.MonkeyPatch, *actions: Callable[[], object]) -> None:
    """Have something else happen between the reading and the commit of a session: each action once, in order."""
    left = list(actions)
    right = Writer.commit

    def commit(self: Writer, *args: object, **kwargs: object) -> object:
        if left:
            left.pop(0)()
        return right(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "commit", commit)


@pytest.fixture
def other(store: Store) -> Iterator[Store]:
    """Another handle on the same store."""
    with Store.open(store.url) as handle:
        yield handle


@pytest.mark.parametrize("tries", [0, 1])
def test_a_contradiction_that_arises_during_the_upsert_is_found(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    store.upsert(art({"x": b"0"}), "id", "first")
    # With one try before it, the parts that were there before have been compared by then.
    before_commit(monkeypatch, *[lambda: None] * tries, lambda: other.upsert(art({"a": b"1"}), "id", "quick"))
    with pytest.raises(UpsertConflictError, match=r"'a'.*'quick'.*'slow'"):
        store.upsert(art({"a": b"2", "b": BLOCKS[0]}), "id", "slow")
    assert store.fsck().orphan_packs == 0
    assert read_files(store.finish("id")) == {"a": b"1", "x": b"0"}
    clean(store)


def test_a_part_that_comes_in_during_the_finish_is_in_the_version(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert(art({"a": b"1"}), "id", "p")
    before_commit(monkeypatch, lambda: other.upsert(art({"b": BLOCKS[1]}), "id", "q"))
    version = store.finish("id", art({"own": BLOCKS[2]}))
    assert read_files(version) == {"a": b"1", "b": BLOCKS[1], "own": BLOCKS[2]}
    assert store.fsck().orphan_packs == 0
    clean(store)


def test_a_finish_during_the_upsert_is_told(store: Store, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.upsert(art({"a": b"1"}), "id", "p")
    before_commit(monkeypatch, lambda: other.finish("id"))
    with pytest.raises(ArtifactFinalizedError):
        store.upsert(art({"b": BLOCKS[1]}), "id", "q")
    assert store.fsck().orphan_packs == 0
    assert read_files(store.get("c:v0")) == {"a": b"1"}


def test_of_two_finishers_both_have_the_one_version(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert(art({"a": b"1"}), "id", "p")
    before_commit(monkeypatch, lambda: other.finish("id", art({"own": BLOCKS[2]})))
    version = store.finish("id", art({"own": BLOCKS[2]}))
    assert (version.ref, version.created) == ("c:v0", False)
    assert len(store.versions("c")) == 1
    assert store.fsck().orphan_packs == 0
    store.upsert(art({"a": b"1"}), "next", "p")
    before_commit(monkeypatch, lambda: other.finish("next", aliases=["theirs"]))
    with pytest.raises(ArtifactFinalizedError, match="c:v1"):
        store.finish("next", aliases=["ours"])
    clean(store)


def test_a_part_that_is_let_go_of_during_the_finish_is_named(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert(art({"a": LARGE}), "id", "p")

    def let_go() -> None:
        other.unpin(other.pins()[0].id)
        other.gc(grace=0, max_waste=0, orphan_age=DAY)

    before_commit(monkeypatch, let_go)
    with pytest.raises(LeaseLostError, match="part 'p'"):
        store.finish("id")
    clean(store)


def test_what_a_finish_relies_on_may_be_collected_meanwhile(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tree is that of a version which is purged between the merge and the commit: nodes are stored again."""
    files = {f"n/{n:03}": b"%d" % n for n in range(120)}
    twin = store.log_artifact(art(files, "twin"))
    for part in range(2):
        mine = {path: data for path, data in files.items() if int(path[2:]) % 2 == part}
        store.upsert(art(mine), "id", str(part))

    def purge() -> None:
        other.delete(twin.ref)
        other.trash.empty()
        other.gc(grace=0, max_waste=0, orphan_age=DAY)

    before_commit(monkeypatch, purge)
    assert read_files(store.finish("id")) == files
    clean(store)


# ---------------------------------------------------------------- a random walk


class Oracle:
    """What batches are, in plain Python."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, dict[str, bytes]]] = {}
        self.lost: set[tuple[str, str]] = set()
        self.ended: dict[str, str] = {}
        self.lease: dict[str, datetime] = {}
        self.versions: list[dict[str, bytes]] = []

    def upsert(self, id: str, part: str, files: dict[str, bytes], until: datetime) -> str:
        if id in self.ended:
            return "ArtifactFinalizedError" if self.ended[id] == "FINISHED" else "RefusedError"
        batch = self.parts.get(id, {})
        if part in batch and batch[part] != files:
            return "UpsertConflictError"
        if part not in batch or (id, part) in self.lost:
            others = [tree for name, tree in batch.items() if name != part and (id, name) not in self.lost]
            if any(_contradict(files, tree) for tree in others):
                return "UpsertConflictError"
        self.parts.setdefault(id, {})[part] = files
        self.lost.discard((id, part))
        self.lease[id] = max(until, self.lease.get(id, until))
        return ""

    def finish(self, id: str, expected: int | None) -> str:
        if id in self.ended:
            return "ended"
        if id not in self.parts:
            return "NotFoundError"
        batch = self.parts[id]
        if expected is not None and expected != len(batch):
            return "ConflictError" if expected > len(batch) else "RefusedError"
        if any((id, part) in self.lost for part in batch):
            return "LeaseLostError"
        files: dict[str, bytes] = {}
        for tree in batch.values():
            files |= tree
        if not self.versions or self.versions[-1] != files:
            self.versions.append(files)
        self.end(id, "FINISHED")
        return ""

    def end(self, id: str, how: str) -> None:
        self.ended[id] = how
        del self.parts[id]
        self.lost = {pair for pair in self.lost if pair[0] != id}

    def expire(self, now: datetime) -> list[str]:
        over = sorted(id for id in self.parts if self.lease[id] <= now)
        for id in over:
            self.end(id, "ABORTED")
        return [f"c {id}" for id in over]


def told(action: Callable[[], object]) -> str:
    try:
        action()
    except CasstoreError as error:
        return type(error).__name__
    return ""


@pytest.mark.parametrize("seed", range(4))
def test_a_random_walk(store: Store, clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    oracle = Oracle()
    names = ["a", "a-", "a/b", "b", "b/a", "c/d", "c", "e", "f", "g"]
    done: dict[str, int] = {}
    for step in range(140):
        id = f"id {step // 12 - rng.randrange(2)}"
        what = rng.choices(["upsert", "finish", "abort", "wait", "gc", "unpin"], [10, 3, 0.5, 1, 2, 1])[0]
        if what == "upsert":
            files = {path: data * rng.choice([1, 900]) for path, data in _tree(rng, names).items()}
            part, lease = f"p{rng.randrange(4)}", rng.choice([1, 3]) * DAY
            wanted = oracle.upsert(id, part, files, clock.now + lease)
            found = told(lambda: store.upsert(art(files), id, part, lease=lease))  # noqa: B023
        elif what == "finish":
            expected = rng.choice([None, 1, 2, 3])
            wanted = oracle.finish(id, expected)
            found = told(lambda: store.finish(id, expected_parts=expected))  # noqa: B023
            if wanted == "ended":
                wanted = found  # the same again or not: there are tests for that
        elif what == "abort":
            wanted = "" if id in oracle.parts else "abort"
            if id in oracle.parts:
                oracle.end(id, "ABORTED")
            found = told(lambda: store.abort(id))  # noqa: B023
            wanted = found if wanted == "abort" else wanted
        elif what == "wait":
            clock.now += rng.choice([0.5, 1, 2]) * DAY
            wanted = found = ""
        elif what == "gc":
            wanted = str(oracle.expire(clock.now))
            found = str(store.gc(grace=0, max_waste=rng.choice([0, None])).aborted_batches)
        else:
            wanted = found = ""
            pins = store.pins()
            if pins:
                pin = rng.choice(pins)
                part, _, id = pin.purpose.removeprefix("part ").partition(" of ")
                oracle.lost.add((id, part))
                store.unpin(pin.id)
        assert found == wanted, (step, what)
        done[f"{what} {wanted if what != 'gc' else wanted != '[]'}"] = 1
        if step % 10 == 0 or step > 130:
            assert {
                batch.distributed_id: {part.part: part.lost for part in batch.parts} for batch in store.pending()
            } == {id: {part: (id, part) in oracle.lost for part in parts} for id, parts in oracle.parts.items()}
            recount(store._engine)
    assert {"upsert ", "upsert UpsertConflictError", "finish ", "gc True", "unpin "} <= done.keys()
    shown = [read_files(version) for version in store.versions("c", newest_first=False)]
    assert shown == oracle.versions
    clean(store)
    for id in list(oracle.parts):
        store.abort(id)
    clean(store)
    assert store.pins() == []


# ---------------------------------------------------------------- on the command line


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_bytes(b"one")
    (tmp_path / "b.txt").write_bytes(b"two")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASSTORE_URL", str(tmp_path / "store"))

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, list(words))
        assert result.exit_code == code, (result.exit_code, result.output, result.stderr)
        return result.stdout if code == 0 else result.stderr

    run("init")
    return run


def test_writers_on_the_command_line(run: Callable[..., str]) -> None:
    assert run("upsert", "one", "--name", "team/ds", "--id", "run-7", "--part", "p0") == "p0 1 3\n"
    part = json.loads(run("upsert", "b.txt", "--name", "team/ds", "--id", "run-7", "--json"))
    assert part["schema"] == "part/1"
    assert part["part"] == part["digest"]
    assert "run-7" in run("pending", "ls")
    assert "p0" in run("pending", "show", "run-7")
    assert "1 of 3 parts" in run("finish", "run-7", "--expect", "3", code=13)
    assert "'p9'" in run("finish", "run-7", "--part", "p0", "--part", "p9", code=13)
    run("finish", "run-7", "--part", "p0", "--expect", "2", code=2)
    assert run("finish", "run-7", "--expect", "2", "-a", "best", "--meta", "k=v") == "team/ds:v0 created 6\n"
    assert run("finish", "run-7", "--expect", "2", "-a", "best", "--meta", "k=v") == "team/ds:v0 unchanged 6\n"
    run("upsert", "b.txt", "--name", "team/ds", "--id", "run-7", code=14)
    assert "FINISHED as team/ds:v0" in run("pending", "show", "run-7")
    assert "v-1" not in run("log")
    run("finish", "other", code=10)


def test_giving_up_is_confirmed(run: Callable[..., str]) -> None:
    run("upsert", "one", "--name", "ds", "--id", "x", "--part", "p")
    for words in (["pending", "abort", "x"], ["pending", "abort", "x", "--json"]):
        run(*words, code=14)
    assert "would give up ds x: 1 parts" in run("pending", "abort", "x", "--dry-run")
    assert len(json.loads(run("pending", "ls", "--json"))["batches"]) == 1
    run("pending", "abort", "y", "--yes", code=10)
    assert "gave up ds x" in run("pending", "abort", "x", "--collection", "ds", "--reason", "wrong", "--yes")
    assert json.loads(run("pending", "show", "x", "--json"))["reason"] == "wrong"
    assert "abort" in run("log", "--deletions")
    run("finish", "x", code=14)
