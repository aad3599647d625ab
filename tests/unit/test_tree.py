"""Prolly trees: equal content has one root whatever its history, and every operation costs what changed.

Guards D2 and Q12 of FEATURES (cost follows change), B6 (equal content, equal digest), and the half of I1 and I2
that trees are responsible for: children leave before their parents, and are named as `Node.references` names them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import IntegrityError
from casstore.format.nodes import CHUNK_LIST, DIRECTORY, Node, decode_node
from casstore.model import Entry, EntryKind
from casstore.tree import (
    Tree,
    chunk_list,
    diff,
    edit_entries,
    find,
    walk,
    write_chunk_list,
    write_entries,
)

AVERAGES = st.sampled_from((64, 256, 1024, 4096))
PATHS = st.one_of(
    st.integers(0, 400).map(lambda n: f"d{n % 20}/f{n:05}"),
    st.sampled_from(("a", "a.b", "a/b", "a0", "ä", "z", "d1", "d1/", "d1/f", "d1/f00001x", "\U0001f600", "￿"))
    | st.text(st.characters(codec="utf-8"), min_size=1, max_size=5),
)
BIG = 4000


class Nodes:
    """A place for nodes that counts."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.reads = 0
        self.new = 0

    def sink(self, data: bytes, references: tuple[bytes, ...]) -> bytes:
        node = decode_node(data, "a node")
        assert node.references() == references
        assert len(set(references)) == len(references), "children are distinct"
        for child in node.children:
            assert child.digest in self.data, "a parent came before its child"
        digest = blake3(data).digest()
        self.new += digest not in self.data
        self.data[digest] = data
        return digest

    def fetch(self, digest: bytes) -> Node:
        self.reads += 1
        return decode_node(self.data[digest], "a node")

    def reset(self) -> None:
        self.reads = self.new = 0

    def below(self, root: bytes) -> list[Node]:
        """Every distinct node of a tree."""
        seen = {root}
        queue = [root]
        found = []
        while queue:
            node = decode_node(self.data[queue.pop()], "a node")
            found.append(node)
            for child in node.children:
                if child.digest not in seen:
                    seen.add(child.digest)
                    queue.append(child.digest)
        return found

    def depth(self, root: bytes) -> int:
        return decode_node(self.data[root], "a node").level + 1


def entry(path: str, salt: int = 0) -> Entry:
    rng = random.Random(f"{path}\0{salt}")
    chunks = tuple((rng.randbytes(32), rng.randrange(1, 99)) for _ in range(rng.choice((0, 1, 1, 2, 5))))
    return Entry(path, size=sum(length for _, length in chunks), chunks=chunks)


def ordered(files: dict[str, Entry]) -> list[Entry]:
    return [files[path] for path in sorted(files, key=str.encode)]


def in_order(changes: dict[str, Entry | None]) -> list[tuple[str, Entry | None]]:
    return sorted(changes.items(), key=lambda pair: pair[0].encode())


@pytest.fixture(scope="module")
def big() -> tuple[Nodes, dict[str, Entry], Tree]:
    nodes = Nodes()
    files = {path: entry(path) for path in (f"dir{n % 50:02}/file{n:06}.txt" for n in range(BIG))}
    return nodes, files, write_entries(ordered(files), 1024, nodes.sink)


# ---------------------------------------------------------------- build and edit


@given(
    files=st.dictionaries(PATHS, st.integers(0, 3), max_size=120),
    rounds=st.lists(st.dictionaries(PATHS, st.one_of(st.none(), st.integers(0, 3)), max_size=25), max_size=4),
    average=AVERAGES,
)
@settings(deadline=None, max_examples=150)
def test_history_leaves_no_trace(files: dict[str, int], rounds: list[dict[str, int | None]], average: int) -> None:
    """Any way to the same content gives the same root: edits, and building at once."""
    nodes = Nodes()
    content = {path: entry(path, salt) for path, salt in files.items()}
    tree = write_entries(ordered(content), average, nodes.sink)
    for change in rounds:
        edits = {path: None if salt is None else entry(path, salt) for path, salt in change.items()}
        before, before_content = tree, content
        content = {**content, **{path: new for path, new in edits.items() if new is not None}}
        content = {path: kept for path, kept in content.items() if edits.get(path, kept) is not None}
        tree = edit_entries(before.root, in_order(edits), nodes.fetch, average, nodes.sink)
        assert tree == write_entries(ordered(content), average, nodes.sink)
        assert (tree.count, tree.size) == (len(content), sum(e.length for e in content.values()))
        assert list(walk(tree.root, nodes.fetch)) == ordered(content)
        gone, come = diff(before.root, tree.root, nodes.fetch)
        assert gone == {path: e for path, e in before_content.items() if content.get(path) != e}
        assert come == {path: e for path, e in content.items() if before_content.get(path) != e}


@given(files=st.dictionaries(PATHS, st.integers(0, 3), max_size=120), average=AVERAGES, data=st.data())
@settings(deadline=None, max_examples=100)
def test_look_ups_are_those_of_a_dictionary(files: dict[str, int], average: int, data: st.DataObject) -> None:
    nodes = Nodes()
    content = {path: entry(path, salt) for path, salt in files.items()}
    tree = write_entries(ordered(content), average, nodes.sink)
    wanted = data.draw(st.lists(st.one_of(PATHS, st.sampled_from(sorted(files)) if files else PATHS), max_size=6))
    for path in wanted:
        assert find(tree.root, path, nodes.fetch) == content.get(path)
        assert list(walk(tree.root, nodes.fetch, start=path)) == [
            e for e in ordered(content) if e.path.encode() >= path.encode()
        ]
        prefix = path[: data.draw(st.integers(0, len(path)))]
        assert list(walk(tree.root, nodes.fetch, prefix=prefix)) == [
            e for e in ordered(content) if e.path.startswith(prefix)
        ]
        assert list(walk(tree.root, nodes.fetch, prefix=prefix, start=path)) == [
            e for e in ordered(content) if e.path.startswith(prefix) and e.path.encode() >= path.encode()
        ]


def test_every_kind_of_entry_is_content() -> None:
    """B6: what an entry is, is in the digest; a name cannot pass for anything else (FEATURES A17)."""
    variants = [
        Entry("a", size=3, chunks=((b"1" * 32, 3),)),
        Entry("a", size=3, chunks=((b"2" * 32, 3),)),
        Entry("a", size=3, chunks=((b"1" * 32, 1), (b"1" * 32, 2))),
        Entry("a", size=3, chunks=((b"1" * 32, 3),), mode=0o755),
        Entry("a", size=3, tree=b"1" * 32),
        Entry("a", EntryKind.LINK, target="b"),
        Entry("a", EntryKind.LINK, target="c"),
        Entry("a", EntryKind.DIRECTORY),
        Entry("a"),
        Entry("b"),
    ]
    nodes = Nodes()
    roots = {write_entries([variant], 1024, nodes.sink).root for variant in variants}
    roots.add(write_entries([], 1024, nodes.sink).root)
    assert len(roots) == len(variants) + 1
    for variant in variants:
        tree = write_entries([variant], 1024, nodes.sink)
        assert list(walk(tree.root, nodes.fetch)) == [variant]


def test_nodes_have_the_size_asked_for(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    nodes, _, tree = big
    sizes = [len(nodes.data[digest]) for digest in nodes.data]
    assert max(sizes) < 1024 * 4 + 600
    assert 512 < sum(sizes) / len(sizes) < 2048
    assert nodes.depth(tree.root) >= 3


def test_an_entry_longer_than_a_node(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    """The cut weighs an item by its size: one larger than any node still ends in one, and no tree is endless."""
    nodes = Nodes()
    rng = random.Random(0)
    files = {f"{n:03}" + "x" * 900: Entry(f"{n:03}" + "x" * 900) for n in range(60)}
    files["wide"] = Entry("wide", size=200, chunks=tuple((rng.randbytes(32), 1) for _ in range(200)))
    tree = write_entries(ordered(files), 64, nodes.sink)
    assert list(walk(tree.root, nodes.fetch)) == ordered(files)
    changed = edit_entries(tree.root, [("wide", None)], nodes.fetch, 64, nodes.sink)
    del files["wide"]
    assert changed == write_entries(ordered(files), 64, nodes.sink)


# ---------------------------------------------------------------- cost follows change


def test_an_edit_costs_its_depth(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    """D2: one path changed in a large tree reads and writes a few nodes a level."""
    nodes, files, tree = big
    total, depth = len(nodes.below(tree.root)), nodes.depth(tree.root)
    assert total > 100
    for path in random.Random(1).sample(sorted(files), 20):
        for change in (entry(path, 1), None):
            nodes.reset()
            edit_entries(tree.root, [(path, change)], nodes.fetch, 1024, nodes.sink)
            assert nodes.reads <= 6 * depth
            assert nodes.new <= 6 * depth


def test_a_diff_costs_the_difference(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    """Q12: reads are in proportion to what differs, not to what is there."""
    nodes, files, tree = big
    total, depth = len(nodes.below(tree.root)), nodes.depth(tree.root)
    rng = random.Random(2)
    for count in (0, 1, 3, 10):
        changes: dict[str, Entry | None] = {path: entry(path, 9) for path in rng.sample(sorted(files), count)}
        other = edit_entries(tree.root, in_order(changes), nodes.fetch, 1024, nodes.sink)
        nodes.reset()
        gone, come = diff(tree.root, other.root, nodes.fetch)
        assert come == changes
        assert gone == {path: files[path] for path in changes}
        assert nodes.reads <= 6 * depth * count
        assert nodes.reads < total or count > 5


def test_a_range_costs_the_range(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    nodes, files, tree = big
    depth = nodes.depth(tree.root)
    for path in random.Random(3).sample(sorted(files), 10):
        nodes.reset()
        assert find(tree.root, path, nodes.fetch) == files[path]
        assert nodes.reads == depth
        nodes.reset()
        walking = walk(tree.root, nodes.fetch, start=path)
        assert [next(walking) for _ in range(3)] == [e for e in ordered(files) if e.path >= path][:3]
        assert nodes.reads <= 2 * depth
    nodes.reset()
    below = list(walk(tree.root, nodes.fetch, prefix="dir07/"))
    assert len(below) == BIG // 50
    assert nodes.reads <= len(nodes.below(tree.root)) // 10


def test_two_large_trees_share_what_they_share(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    """An insertion at the front does not move every cut behind it."""
    nodes, files, tree = big
    nodes.reset()
    write_entries(ordered({"0": entry("0"), **files}), 1024, nodes.sink)
    assert nodes.new <= 6 * nodes.depth(tree.root)


# ---------------------------------------------------------------- long files


@given(
    lengths=st.lists(st.integers(1, 50), max_size=300),
    repeats=st.integers(0, 2),
    average=st.sampled_from((64, 256, 1024)),
    data=st.data(),
)
@settings(deadline=None, max_examples=100)
def test_chunk_lists(lengths: list[int], repeats: int, average: int, data: st.DataObject) -> None:
    """All chunks, or those that touch a byte range; also when whole runs of them repeat."""
    nodes = Nodes()
    chunks = [(blake3(b"%d" % (n % 90)).digest(), length) for n, length in enumerate(lengths)] * (1 + repeats * 3)
    tree = write_chunk_list(chunks, average, nodes.sink)
    places = []
    at = 0
    for digest, length in chunks:
        places.append((at, digest, length))
        at += length
    assert (tree.count, tree.size) == (len(chunks), at)
    assert list(chunk_list(tree.root, nodes.fetch)) == places
    offset = data.draw(st.integers(0, at + 1))
    end = data.draw(st.integers(offset, at + 2))
    found = list(chunk_list(tree.root, nodes.fetch, offset=offset, end=end))
    assert found == [p for p in places if p[0] + p[2] > offset and p[0] < end]
    assert all(node.kind == CHUNK_LIST for node in nodes.below(tree.root))


def test_a_change_in_a_long_file_rewrites_a_few_nodes() -> None:
    nodes = Nodes()
    rng = random.Random(4)
    chunks = [(rng.randbytes(32), 1000) for _ in range(20_000)]
    tree = write_chunk_list(chunks, 1024, nodes.sink)
    depth = nodes.depth(tree.root)
    assert depth >= 3
    nodes.reset()
    write_chunk_list([*chunks[:7000], (rng.randbytes(32), 10), *chunks[7000:]], 1024, nodes.sink)
    assert nodes.new <= 4 * depth
    nodes.reset()
    assert len(list(chunk_list(tree.root, nodes.fetch, offset=7_000_000, end=7_000_001))) == 1
    assert nodes.reads == depth


def test_a_run_of_equal_chunks_ends() -> None:
    """All-zero files: one digest for ever gives no content-defined cut but the largest size, and a shallow tree."""
    nodes = Nodes()
    tree = write_chunk_list([(b"0" * 32, 4096)] * 50_000, 512, nodes.sink)
    assert (tree.count, tree.size) == (50_000, 50_000 * 4096)
    assert len(nodes.data) < 60
    assert sum(1 for _ in chunk_list(tree.root, nodes.fetch)) == 50_000


# ---------------------------------------------------------------- reuse in edits


@given(keep=st.lists(st.booleans(), min_size=400, max_size=400), average=st.sampled_from((64, 256)), more=st.booleans())
@settings(deadline=None, max_examples=60)
def test_taking_much_away(keep: list[bool], average: int, more: bool) -> None:
    """Whole nodes and levels vanish: what is left is the tree that is built of it, down to a lone leaf."""
    nodes = Nodes()
    files = {path: entry(path) for path in (f"{n:04}" for n in range(400))}
    tree = write_entries(ordered(files), average, nodes.sink)
    edits: dict[str, Entry | None] = {
        path: None for path, kept in zip(files, keep, strict=True) if not kept or not more
    }
    left = {path: e for path, e in files.items() if path not in edits}
    assert edit_entries(tree.root, in_order(edits), nodes.fetch, average, nodes.sink) == write_entries(
        ordered(left), average, nodes.sink
    )


@pytest.mark.parametrize("place", ["first", "last", "between"])
@pytest.mark.parametrize("average", [64, 256, 4096])
def test_edits_at_the_ends(place: str, average: int) -> None:
    """The last node of each level ended because the items did, not at a cut: what follows may join it."""
    for count in range(40):
        nodes = Nodes()
        files = {path: entry(path) for path in (f"m{n:04}" for n in range(count))}
        tree = write_entries(ordered(files), average, nodes.sink)
        new = {"first": "a", "last": "z", "between": f"m{count // 2:04}+"}[place]
        edited = edit_entries(tree.root, [(new, entry(new))], nodes.fetch, average, nodes.sink)
        assert edited == write_entries(ordered({**files, new: entry(new)}), average, nodes.sink)
        back = edit_entries(edited.root, [(new, None)], nodes.fetch, average, nodes.sink)
        assert back == tree


def test_no_change_is_no_change(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    nodes, files, tree = big
    nodes.reset()
    assert edit_entries(tree.root, [], nodes.fetch, 1024, nodes.sink) == tree
    assert edit_entries(tree.root, [("not there", None)], nodes.fetch, 1024, nodes.sink) == tree
    path = next(iter(files))
    assert edit_entries(tree.root, [(path, files[path])], nodes.fetch, 1024, nodes.sink) == tree
    assert nodes.new == 0
    assert diff(tree.root, tree.root, nodes.fetch) == ({}, {})


def test_diff_of_trees_of_different_height(big: tuple[Nodes, dict[str, Entry], Tree]) -> None:
    nodes, files, tree = big
    few: dict[str, Entry] = dict(list(files.items())[:2])
    small = write_entries(ordered(few), 1024, nodes.sink)
    empty = write_entries([], 1024, nodes.sink)
    for less, content in ((small, few), (empty, {})):
        gone, come = diff(tree.root, less.root, nodes.fetch)
        assert gone == {path: e for path, e in files.items() if path not in content}
        assert come == {}
        gone, come = diff(less.root, tree.root, nodes.fetch)
        assert gone == {}
        assert come == {path: e for path, e in files.items() if path not in content}


def test_an_empty_tree_is_a_tree() -> None:
    nodes = Nodes()
    tree = write_entries([], 1024, nodes.sink)
    assert (tree.count, tree.size) == (0, 0)
    assert list(walk(tree.root, nodes.fetch)) == []
    assert find(tree.root, "a", nodes.fetch) is None
    assert nodes.below(tree.root)[0].kind == DIRECTORY
    assert write_entries([], 4096, nodes.sink) == tree
    grown = edit_entries(tree.root, [("a", entry("a"))], nodes.fetch, 1024, nodes.sink)
    assert grown == write_entries([entry("a")], 1024, nodes.sink)
    assert edit_entries(grown.root, [("a", None)], nodes.fetch, 1024, nodes.sink) == tree


def test_a_missing_node_is_an_error_not_an_end() -> None:
    """A read that fails never looks like a shorter directory."""
    nodes = Nodes()
    files = {path: entry(path) for path in (f"{n:04}" for n in range(300))}
    tree = write_entries(ordered(files), 256, nodes.sink)

    def broken(digest: bytes) -> Node:
        if digest != tree.root:
            raise IntegrityError("damaged")
        return nodes.fetch(digest)

    def attempts() -> Iterable[object]:
        yield lambda: list(walk(tree.root, broken))
        yield lambda: find(tree.root, "0100", broken)
        yield lambda: edit_entries(tree.root, [("0100", None)], broken, 256, nodes.sink)
        yield lambda: diff(tree.root, write_entries([], 256, nodes.sink).root, broken)

    for attempt in attempts():
        assert callable(attempt)
        with pytest.raises(IntegrityError):
            attempt()
