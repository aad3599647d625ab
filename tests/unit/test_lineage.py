"""Lineage (FEATURES I2, I3, I5): what came of what, as a graph, also once most of it is deleted.

Guards: nothing is left out because it was trashed, purged, renamed or deleted; a cycle ends; the same store gives the
same graph; and what is in names steers neither a terminal nor Graphviz.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from casstore import (
    Artifact,
    CollectionNotFoundError,
    InvalidInputError,
    Lineage,
    NotFoundError,
    Runtime,
    Store,
    Version,
    VersionNotFoundError,
)
from casstore import lineage as module
from casstore.backend.memory import forget_memory
from casstore.cli import main
from casstore.overlay import Tables

URL = "memory://lineage"


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(URL, create=True, runtime=Runtime(actor="ann")) as opened:
        yield opened
    forget_memory("lineage")


def artifact(data: bytes, name: str = "ds", kind: str = "file") -> Artifact:
    made = Artifact(name, kind)
    made.add_bytes(data, "a")
    return made


@pytest.fixture
def trained(store: Store) -> Store:
    """raw:v0 → prep → ds:v0 → its draft ds:v1 → train → model:v0, which is linked; ds:v1 → evaluate."""
    with store.run(id="load") as run:
        run.log(artifact(b"raw", "raw"))
    with store.run("prepare", job_type="etl", id="prep") as run:
        run.use("raw", "clean")
        run.log(artifact(b"1"))
    draft = store.get("ds").new_draft()
    draft.add_bytes(b"2", "b")
    store.log_artifact(draft)
    with store.run(id="train") as run:
        run.use("ds:v1")
        run.log(artifact(b"w", "model", "model")).link("registry")
    with store.run(id="evaluate") as run:
        run.use("ds:v1")
        run.use("registry:v0")
    return store


def edges(graph: Lineage) -> set[str]:
    return {f"{edge.source} -{edge.kind}-> {edge.target}" for edge in graph.edges}


def ids(graph: Lineage) -> list[str]:
    return [node.id for node in graph.nodes]


UP = {
    "run/train -logged-> model:v0",
    "ds:v1 -used-> run/train",
    "ds:v0 -base-> ds:v1",
    "run/prep -logged-> ds:v0",
    "raw:v0 -used-> run/prep",
    "run/load -logged-> raw:v0",
}
DOWN = {"model:v0 -link-> registry:v0", "registry:v0 -used-> run/evaluate"}


def test_a_version_has_all_it_comes_from_and_all_that_came_of_it(trained: Store) -> None:
    assert edges(trained.lineage("model:v0", direction="up")) == UP
    assert edges(trained.lineage("model:v0", direction="down")) == DOWN
    assert edges(trained.lineage("model:v0")) == UP | DOWN, "but not what else came of its sources"


def test_a_run_has_a_lineage_too(trained: Store) -> None:
    graph = trained.lineage("prep", depth=1)
    assert edges(graph) == {"raw:v0 -used-> run/prep", "run/prep -logged-> ds:v0"}
    for same in (trained.get_run("prep"), trained.run(id="other"), "prep"):
        if same is not None and getattr(same, "id", "prep") == "prep":
            assert trained.lineage(same, 1) == graph
    assert graph.root == "run/prep"
    (use,) = [edge for edge in graph.edges if edge.kind == "used"]
    assert (use.purpose, use.state) == ("clean", "ended")


def test_a_collection_of_the_name_goes_before_a_run(trained: Store) -> None:
    trained.log_artifact(artifact(b"x", "prep"))
    assert trained.lineage("prep").root == "prep:v0"
    assert trained.lineage(trained.get_run("prep")).root == "run/prep"


def test_depth_counts_edges(trained: Store) -> None:
    wanted = [["model:v0"], ["model:v0", "run/train"], ["model:v0", "run/train", "ds:v1"]]
    for depth, nodes in enumerate(wanted):
        graph = trained.lineage("model:v0", depth, "up")
        assert (ids(graph), graph.depth) == (nodes, depth)
    assert {node.id: node.distance for node in trained.lineage("model:v0", direction="up").nodes}["run/load"] == 6


def test_the_same_store_gives_the_same_graph(trained: Store) -> None:
    with Store.open(URL) as other:
        assert other.lineage("ds:v1").to_dict() == trained.lineage("ds:v1").to_dict()
    assert ids(trained.lineage("ds:v1")) == [
        "ds:v1",
        "ds:v0",
        "run/evaluate",
        "run/train",
        "model:v0",
        "run/prep",
        "raw:v0",
        "registry:v0",
        "run/load",
    ]


def test_what_is_deleted_stays_as_a_tombstone(trained: Store) -> None:
    before = edges(trained.lineage("model:v0"))
    trained.delete("ds:v0")
    trained.trash.purge("ds:v0")
    trained.delete("raw:v0")
    trained.delete_run("prep")
    graph = trained.lineage("model:v0")
    assert edges(graph) == before
    states = {node.id: node.state for node in graph.nodes if node.tombstone}
    assert states == {"ds:v0": "PURGED", "raw:v0": "TRASHED", "run/prep": "deleted"}
    trained.collection("raw").delete(confirm="raw")
    trained.trash.purge("raw")
    trained.gc(grace=0)
    assert edges(trained.lineage("model:v0")) == before
    assert edges(trained.lineage("raw:v0")) >= {"raw:v0 -used-> run/prep"}


def test_names_are_those_of_now(trained: Store) -> None:
    """The record of a draft says what its base was called; the graph follows the collection."""
    trained.collection("ds").rename("data")
    trained.log_artifact(artifact(b"another"))
    assert "data:v0 -base-> data:v1" in edges(trained.lineage("model:v0"))
    assert not any(node.id.startswith("ds:") for node in trained.lineage("model:v0").nodes)
    assert edges(trained.lineage("ds:v0")) == set()


def test_a_draft_in_another_collection_has_its_base(trained: Store) -> None:
    draft = trained.get("ds:v0").new_draft()
    draft.add_bytes(b"3", "c")
    moved = trained.log_artifact(draft, project="p")
    assert edges(trained.lineage(moved, depth=1)) == {f"ds:v0 -base-> {moved.ref}"}
    assert f"ds:v0 -base-> {moved.ref}" in edges(trained.lineage("ds:v0", depth=1))


def test_a_copy_has_its_source_as_base(trained: Store) -> None:
    copied = trained.copy("raw:v0", "elsewhere")
    assert edges(trained.lineage(copied, 1, "up")) == {"raw:v0 -base-> elsewhere:v0"}


def test_a_run_that_logged_what_was_there_already_is_in_the_graph_of_the_version(trained: Store) -> None:
    with trained.run(id="again") as run:
        run.log(artifact(b"raw", "raw"))
    assert edges(trained.lineage("raw:v0", direction="up")) == {
        "run/load -logged-> raw:v0",
        "run/again -logged-> raw:v0",
    }


def test_a_cycle_ends(store: Store) -> None:
    """A run may use what it logs, and two runs what the other one logs."""
    one, two = store.run(id="one"), store.run(id="two")
    one.use(artifact(b"1"))
    two.use("ds:v0")
    two.log(artifact(b"2"))
    one.use("ds:v1")
    graph = store.lineage("ds:v0")
    assert edges(graph) == {
        "run/one -logged-> ds:v0",
        "ds:v0 -used-> run/one",
        "ds:v0 -used-> run/two",
        "run/two -logged-> ds:v1",
        "ds:v1 -used-> run/one",
    }
    tree = graph.to_tree()
    assert tree.count("\n") < 30
    assert "…" in tree


def test_only_what_is_shown_is_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """O(visited): a store full of other versions costs nothing."""
    for number in range(20):
        with store.run() as run:
            run.use(artifact(b"%d" % number, f"other{number}"))
    with store.run(id="r") as run:
        run.use(artifact(b"1"))
    read: list[object] = []
    node = module._node

    def noted(tables: Tables, key: object, distance: int) -> object:
        read.append(key)
        return node(tables, key, distance)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_node", noted)
    store.lineage("ds:v0")
    assert len(read) < 10


def test_a_long_chain_is_no_recursion(store: Store) -> None:
    version: Version = store.log_artifact(artifact(b"0"))
    for number in range(60):
        draft = version.new_draft()
        draft.add_bytes(b"%d" % number, "n", overwrite=True)
        version = store.log_artifact(draft)
    graph = store.lineage(version)
    assert len(graph.nodes) == 61
    assert graph.to_tree().count("\n") == 61


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("ds:v0", -1), InvalidInputError),
        (("ds:v0", True), InvalidInputError),
        (("ds:v0", 1.5), InvalidInputError),
        (("ds:v0", None, "sideways"), InvalidInputError),
        ((3,), InvalidInputError),
        (("ds:v7",), VersionNotFoundError),
        (("nothing",), CollectionNotFoundError),
    ],
)
def test_what_cannot_be_asked(trained: Store, arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        trained.lineage(*arguments)  # type: ignore[arg-type]
    assert issubclass(CollectionNotFoundError, NotFoundError)


# --- forms


def test_the_tree(trained: Store) -> None:
    assert trained.lineage("ds:v1", 2).to_tree().splitlines() == [
        "ds:v1 (file, COMMITTED)",
        "  <- base ds:v0 (file, COMMITTED)",
        "    <- logged run/prep (etl prepare, finished)",
        "  -> used run/evaluate (run, finished)",
        "  -> used run/train (run, finished)",
        "    -> logged model:v0 (model, COMMITTED)",
    ]


NASTY = 'na"me\\\x1b[2J\n\u202e}; evil'


def test_dot_and_tree_escape_what_people_write(store: Store) -> None:
    with store.run(NASTY, job_type=NASTY, id="r1") as run:
        run.use(artifact(b"1"), purpose=NASTY)
    graph = store.lineage("ds:v0")
    for text in (graph.to_dot(), graph.to_tree()):
        assert all(char.isprintable() for char in text.replace("\n", ""))
        assert "\\x1b[2J" in text
    lines = graph.to_dot().splitlines()
    assert len(lines) == 2 + len(graph.nodes) + len(graph.edges) + 1, "no line is broken by a name"
    for line in lines:
        bare = line.replace("\\\\", "").replace('\\"', "")
        assert bare.count('"') % 2 == 0, line
        assert "evil" not in "".join(bare.split('"')[::2]), "names are inside quotes"


def test_tombstones_are_dashed(trained: Store) -> None:
    assert "dashed" not in trained.lineage("ds:v0").to_dot()
    trained.delete("ds:v0")
    (line,) = [line for line in trained.lineage("ds:v0").to_dot().splitlines() if "dashed" in line]
    assert "ds:v0" in line


def test_lineage_on_the_command_line(trained: Store) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(main, ["--store", URL, "lineage", *words])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    graph = trained.lineage("model:v0")
    assert run("model:v0") == graph.to_tree()
    assert run("model:v0", "--format", "dot") == graph.to_dot()
    for words in (("--format", "json"), ("--json",)):
        assert json.loads(run("model:v0", *words)) == {"schema": "lineage/1", **graph.to_dict()}
    deep = json.loads(run("model:v0", "--json", "--depth", "1", "--direction", "up"))
    assert [node["id"] for node in deep["nodes"]] == ["model:v0", "run/train"]
    assert CliRunner().invoke(main, ["--store", URL, "lineage", "nothing"]).exit_code == 10
