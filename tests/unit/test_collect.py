"""Deleting for good and collecting in one command; what makes collections fast, and why it is safe.

Guards docs/GC.md §3 (counts at the start, trees before the first deletion), decision 0018 and the fold that takes over
what the commit found out.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from casstore import Artifact, ChunkerParams, Store, StoreConfig, Version
from casstore.chunks import Fetched
from casstore.cli import main
from casstore.errors import IntegrityError
from casstore.format.filerows import FILES, FileRow, encode_file, file_key
from casstore.format.rows import chunk_row, encode_row, refcount, with_refcount
from casstore.index import LmdbIndex, MemoryIndex, environment
from casstore.model import ChunkKind, Drop, PackRow, PackState, Segment, Transaction
from casstore.overlay import Overlay, Tables
from casstore.state import CHUNK, LOST, NODE, PACK, TABLES, ZERO, apply_transaction, state_hash

KIB = 1024
SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=4096, pack_bytes=65536, node_bytes=512
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "s", config=SMALL) as opened:
        yield opened


def noise(seed: int, size: int = 20 * KIB) -> bytes:
    return random.Random(f"collect {seed}").randbytes(size)


def log(store: Store, files: dict[str, bytes], name: str = "ds") -> Version:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact)


def history(store: Store, count: int = 4) -> None:
    """Versions that share a third with the next."""
    for number in range(count):
        log(store, {"a": noise(number), "b": noise(number + 1), "c": noise(1000 + number)})


def cas(store: Store, *words: str) -> Any:
    result = CliRunner().invoke(main, [*words, "--json"], env={"CASSTORE_URL": store.url})
    return result.exit_code, json.loads(result.stdout) if result.exit_code == 0 else result.output


def on_disk(root: str) -> int:
    return sum(p.stat().st_size for p in (Path(root) / "packs").rglob("*") if p.is_file())


def records(store: Store) -> list[list[str]]:
    """The kinds of records of each transaction in the log."""
    return [
        [type(record).__name__ for record in transaction.records]
        for segment, _ in store._engine.log.after(0)
        for transaction in segment.transactions
    ]


# --- one command


def test_one_command_deletes_all_but_the_latest_and_gives_the_bytes_back(store: Store, tmp_path: Path) -> None:
    history(store)
    before = on_disk(str(tmp_path / "s"))
    seq = store._engine.view.head().seq
    code, said = cas(store, "rm", "--where", "unaliased", "ds", "--permanent", "--collect", "--confirm", "ds")
    after = on_disk(str(tmp_path / "s"))
    assert code == 0
    assert said["refs"] == ["ds:v0", "ds:v1", "ds:v2"]
    assert said["freed_bytes"] == before - after
    assert after < 70 * KIB
    assert not list(store.trash.list())
    first = [kinds for kinds in records(store)[seq:] if "Trash" in kinds]
    assert first == [["Trash"] * 3 + ["Purge"] * 3], "deleted and purged in one transaction"
    assert store.get("ds:v3")["c"].read() == noise(1003)
    assert not store.fsck(read_data=True).findings


def test_permanent_without_collect_leaves_the_bytes_to_gc_and_to_undo(store: Store, tmp_path: Path) -> None:
    history(store, 2)
    before = on_disk(str(tmp_path / "s"))
    code, said = cas(store, "rm", "ds:v0", "--permanent", "--confirm", "ds:v0")
    assert (code, said["refs"], said["freed_bytes"]) == (0, ["ds:v0"], None)
    assert said["exclusive_bytes"] > 38 * KIB
    assert on_disk(str(tmp_path / "s")) == before
    run = store.gc().run_id
    assert store.gc_undo(run).restored == ("ds:v0",)


def test_what_is_in_the_trash_goes_for_good_if_it_is_named(store: Store) -> None:
    history(store, 3)
    store.delete("ds:v0")
    plan = store.plan_delete(["ds:v0", "ds:v1"], permanent=True)
    assert plan.refs == ("ds:v0", "ds:v1")
    assert plan.apply().exclusive_bytes == plan.exclusive_bytes > 60 * KIB
    assert not list(store.trash.list())
    assert [v.ref for v in store.versions("ds")] == ["ds:v2"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("ds:v0", "--permanent", "--collect"), 14),
        (("ds:v0", "--permanent", "--collect", "--yes"), 14),
        (("ds:v0", "other:v0", "--permanent", "--confirm", "ds"), 2),
        (("ds:v0", "--permanent", "--confirm", "ds:v1"), 14),
        (("ds:v0", "--collect", "--yes"), 2),
        (("--where", "unaliased", "ds", "--collect", "--yes"), 2),
        (("ds:v1", "--permanent", "--confirm", "ds"), 14),  # has an alias
        (("ds:v2", "--permanent", "--confirm", "ds"), 14),  # is protected
        (("ds:v0", "ds:v2", "--permanent", "--collect", "--confirm", "ds"), 14),
        (("ds:v0", "--permanent", "--collect", "--yes", "--dry-run"), 0),
    ],
)
def test_the_guards_are_those_of_rm_and_purge(store: Store, words: tuple[str, ...], code: int) -> None:
    history(store, 4)
    log(store, {"x": noise(7)}, "other")
    store.get("ds:v1").set_aliases(["best"])
    store.get("ds:v2").protect("the paper")
    seq = store._engine.view.refresh().seq
    assert cas(store, "rm", *words)[0] == code
    assert store._engine.view.refresh().seq == seq


def test_nothing_is_purged_if_collection_is_switched_off(store: Store) -> None:
    history(store, 2)
    store.set_policy(gc_enabled=False)
    assert cas(store, "rm", "ds:v0", "--permanent", "--collect", "--confirm", "ds")[0] == 14
    assert [v.ref for v in store.versions("ds")] == ["ds:v1", "ds:v0"]


def test_a_whole_collection_goes_and_its_bytes_with_it(store: Store, tmp_path: Path) -> None:
    history(store, 3)
    log(store, {"x": noise(7)}, "other")
    words = ("rm", "--collection", "ds", "--permanent", "--collect", "--confirm", "ds")
    code, said = cas(store, *words)
    assert code == 0
    assert said["freed_bytes"] > 130 * KIB
    assert on_disk(str(tmp_path / "s")) < 25 * KIB


def test_the_store_keeps_no_more_garbage_than_was_asked_for(store: Store) -> None:
    for number in range(12):
        log(store, {f"{name}": noise(10 * number + name, 4 * KIB) for name in range(8)}, f"c{number}")
        log(store, {"0": noise(10 * number, 4 * KIB)}, f"keep{number}")
    for number in range(12):
        store.plan_delete([f"c{number}:v0"], permanent=True).apply()
    report = store.gc(grace=0, store_waste=0.2)
    kept = report.kept_by
    assert 0 < kept.get("policy", 0) <= 0.2 * kept["versions"] or kept.get("policy", 0) == 0
    assert store.gc(grace=0, store_waste=0.0).kept_by.get("policy", 0) == 0


# --- what is looked at when


def test_an_idle_run_reads_no_tree(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    history(store, 2)
    reads: list[object] = []
    real = store._engine.reader.fetch

    def fetch(digests: Iterable[bytes]) -> Fetched:
        reads.append(1)
        return real(digests)

    monkeypatch.setattr(store._engine.reader, "fetch", fetch)
    store.gc(grace=0)
    store.gc()
    assert not reads


@pytest.mark.parametrize("grace", [0, 3600])
def test_a_row_that_lacks_children_costs_nothing(store: Store, grace: int) -> None:
    history(store, 3)
    view = store._engine.view
    store.plan_delete(["ds:v0"], permanent=True).apply()
    victim = store.get("ds:v2")._found.version.root
    with view.read() as tables:
        row = tables.get(NODE, victim)
    assert row is not None
    assert len(row) > 64

    def cut(tables: Tables) -> None:
        tables.put(NODE, victim, row[:32])
        for at in range(32, len(row), 32):
            some = tables.get(CHUNK, row[at : at + 32])
            assert some is not None
            tables.put(CHUNK, row[at : at + 32], with_refcount(some, refcount(some) - 1))
            if refcount(some) == 1:
                tables.put(ZERO, row[at : at + 32], b"")

    view.update(cut)  # counts and rows agree with one another, and not with the trees
    report = store.gc(grace=grace)
    assert report.errors
    for number in (1, 2):
        assert store.get(f"ds:v{number}")["c"].read() == noise(1000 + number)
    assert not store.fsck(read_data=True).findings


# --- dropping


def reference_drop(tables: Any, digests: tuple[bytes, ...]) -> None:
    """What `Drop` says, one digest after the other."""
    for digest in digests:
        row = tables.get(CHUNK, digest)
        if row is None or refcount(row):
            raise ValueError
        children = tables.get(NODE, digest) or b""
        for at in range(0, len(children), len(digest)):
            child = children[at : at + len(digest)]
            held = tables.get(CHUNK, child)
            if held is None or not refcount(held):
                raise KeyError
            tables.put(CHUNK, child, with_refcount(held, refcount(held) - 1))
            if refcount(held) == 1:
                tables.put(ZERO, child, b"")
        for table in (NODE, CHUNK, ZERO, LOST):
            tables.delete(table, digest)


def test_dropping_many_at_once_is_dropping_one_after_the_other() -> None:
    pack = b"p" * 16
    names = [bytes([n]) * 32 for n in range(1, 13)]
    outcomes: Counter[str] = Counter()
    for seed in range(300):
        chance = random.Random(seed)
        below = {n: [m for m in names[i + 1 :] if chance.random() < 0.3] for i, n in enumerate(names) if i < 7}
        counts = Counter(child for children in below.values() for child in children)
        right = chance.random() < 0.6
        if not right:
            counts[chance.choice(names)] += chance.choice((1, -1, -1))
        order = [name for name in names if chance.random() < 0.9]
        if chance.random() < 0.2:
            chance.shuffle(order)
        if chance.random() < 0.2:
            order.append(chance.choice(names))

        def fill(tables: Tables, below: dict[bytes, list[bytes]] = below, counts: Counter[bytes] = counts) -> None:
            for name in names:
                count = max(0, counts[name])
                tables.put(CHUNK, name, with_refcount(chunk_row(pack, 8, 5, 5, 0, 5, 0), count))
                if not count:
                    tables.put(ZERO, name, b"")
                if below.get(name):
                    tables.put(NODE, name, b"".join(below[name]))
            tables.put(PACK, pack, encode_row(PackRow(PackState.LIVE, ChunkKind.DATA, 100, 60, 12, 60, 0, 0)))

        found: list[object] = []
        for mine in (True, False):
            index = MemoryIndex(TABLES)
            index.update(fill)

            def body(tables: Tables, mine: bool = mine, order: list[bytes] = order) -> object:
                overlay = Overlay(tables)
                try:
                    if mine:
                        segment = Segment(1, b"", 0, 0, "", 0, ())
                        done = apply_transaction(overlay, segment, Transaction(bytes(16), (Drop(tuple(order)),)))
                        if done.void:
                            return "void"
                    else:
                        reference_drop(overlay, tuple(order))
                except ValueError:
                    return "void"
                except (IntegrityError, KeyError):
                    return "below zero"
                return {table: dict(overlay.scan(table)) for table in (CHUNK, NODE, ZERO)}

            found.append(index.update(body))
        outcomes[found[0] if isinstance(found[0], str) else "done"] += 1
        # With counts that are wrong both refuse, for one of two reasons.
        refused = not right and {str(found[0]), str(found[1])} == {"void", "below zero"}
        assert found[0] == found[1] or refused, seed
    assert min(outcomes[kind] for kind in ("done", "void", "below zero")) > 5, outcomes


def test_a_run_drops_nodes_in_transactions_of_bounded_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["casstore.gc.retire"], "DROP_EDGES", 10)
    history(store, 4)
    store.plan_delete([f"ds:v{n}" for n in range(3)], permanent=True).apply()
    seq = store._engine.view.head().seq
    store.gc(grace=0)
    assert sum(kinds == ["GCRun", "Drop"] for kinds in records(store)[seq:]) > 3
    with store._engine.view.read() as tables:
        assert not [digest for digest, _ in tables.scan(ZERO) if tables.get(NODE, digest) is not None]
    assert store._engine.view.rebuild()
    assert not store.fsck(read_data=True).findings
    report = store.gc(grace=0, max_waste=0.0)
    assert report.kept_by.keys() <= {"versions"}


# --- what a commit found out is taken over


def counted(store: Store) -> bytes:
    with store._engine.view.read() as tables:
        return state_hash(tables)


def test_a_view_that_took_over_commits_is_the_one_the_log_makes(store: Store) -> None:
    history(store, 3)
    store.plan_delete(["ds:v0"], permanent=True).apply()
    store.gc(grace=0, max_waste=0.0)
    before = counted(store)
    store.rebuild_index()
    assert counted(store) == before


def test_a_commit_is_applied_anew_if_somebody_wrote_to_the_view_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view with a wrong count is put right by another process between the plan of a commit and its segment."""
    history(store, 2)
    engine = store._engine
    with engine.view.read() as tables:
        root = store.get("ds:v1")._found.version.root
        right = tables.get(CHUNK, root)
        assert right is not None
    engine.view.update(lambda t: t.put(CHUNK, root, with_refcount(right, 7)))
    create = engine.log.create

    def late(segment: Segment) -> bytes:
        chain = create(segment)
        engine.view.update(lambda t: t.put(CHUNK, root, right))
        return chain

    monkeypatch.setattr(engine.log, "create", late)
    store.get("ds:v1").link("shelf")
    monkeypatch.undo()
    with engine.view.read() as tables:
        row = tables.get(CHUNK, root)
        assert row is not None
        assert refcount(row) == refcount(right) + 1
    before = counted(store)
    store.rebuild_index()
    assert counted(store) == before


# --- the index gets smaller


def rows(index: LmdbIndex) -> dict[str, dict[bytes, bytes]]:
    with index.read() as tables:
        return {name: dict(tables.scan(name)) for name in ("a", "b")}


def filled(directory: Path) -> LmdbIndex:
    index = LmdbIndex.open(directory, ("a", "b"), map_bytes=1 << 22, boot_id="boot")
    keys = [random.Random(n).randbytes(32) for n in range(12_000)]
    index.update(lambda t: t.change("a", dict.fromkeys(keys, bytes(60))))
    index.update(lambda t: t.put("b", b"k", b"long" * 4000))
    index.update(lambda t: t.change("a", dict.fromkeys(keys[2000:])))
    return index


def test_a_compacted_index_is_smaller_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "COPIED", 500)
    index = filled(tmp_path)
    other = LmdbIndex.open(tmp_path, ("a",), map_bytes=1 << 22, boot_id="boot")
    before, size = rows(index), index.bytes_used()
    with index.read() as tables:
        assert index.compact(0.1) == 0, "not inside a read"
        seen = tables.count("a")
    saved = index.compact(0.1)
    assert saved > size / 2
    assert index.bytes_used() <= size - saved
    assert rows(index) == before
    assert seen == len(before["a"])
    other.update(lambda t: t.put("a", b"new", b"1"))
    assert rows(index)["a"][b"new"] == b"1"
    assert index.compact(0.5) == 0, "little is free"
    index.close()
    other.close()
    again = LmdbIndex.open(tmp_path, ("a", "b"), map_bytes=1 << 22, boot_id="another boot")
    assert not again.fresh, "it was closed well: believed after a restart"
    assert len(rows(again)["a"]) == len(before["a"]) + 1
    again.close()


def test_what_is_written_beside_a_compaction_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process puts a generation in the place of the file first: then that counts, and nothing is copied."""
    index = filled(tmp_path)
    copy = environment.Generation.copy_into

    def slow(self: Any, env: Any, handle: Any) -> None:
        copy(self, env, handle)
        LmdbIndex.discard(tmp_path)

    monkeypatch.setattr(environment.Generation, "copy_into", slow)
    assert index.compact(0.1) == 0
    monkeypatch.undo()
    assert rows(index) == {"a": {}, "b": {}}
    index.update(lambda t: t.put("a", b"k", b"v"))
    assert rows(index)["a"] == {b"k": b"v"}
    index.close()


def test_a_table_nobody_here_knows_is_kept(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.close()
    narrow = LmdbIndex.open(tmp_path, ("b",), map_bytes=1 << 22, boot_id="boot")
    assert narrow.compact(0.1) > 0
    narrow.close()
    wide = LmdbIndex.open(tmp_path, ("a", "b"), map_bytes=1 << 22, boot_id="boot")
    assert len(rows(wide)["a"]) == 2000
    wide.close()


def test_the_index_of_a_store_shrinks_with_it_and_forgets_files_of_content_that_is_gone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casstore.index.lmdb_index.SMALL", 0)
    history(store, 6)
    view = store._engine.view

    def remember(tables: Tables) -> None:
        for number, file in enumerate(("ds:v0", "ds:v5")):
            for path in (f"/{number}/{n}".encode() for n in range(50)):
                entry = store_entries[file]
                tables.put(FILES, file_key(path), encode_file(path, FileRow(bytes(16), 1, entry.chunks, entry.tree)))

    store_entries = {ref: store.get(ref)["c"] for ref in ("ds:v0", "ds:v5")}
    view.note(remember)
    size = view._storage.bytes_used()  # type: ignore[attr-defined]
    store.plan_delete([f"ds:v{number}" for number in range(5)], permanent=True).apply()
    report = store.gc(grace=0, store_waste=0.03)
    assert report.index_bytes > size / 3
    with view.read() as tables:
        assert {key for key, _ in tables.scan(FILES)} == {file_key(f"/1/{n}".encode()) for n in range(50)}
        before = state_hash(tables)
    store.rebuild_index()
    with view.read() as tables:
        assert state_hash(tables) == before
