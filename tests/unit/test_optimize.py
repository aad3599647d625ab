"""`gc --optimize`: content that resembles each other is compressed together, and nothing else changes."""

import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from casstore import Artifact, ChunkerParams, Store, StoreConfig
from casstore.contents import pieces
from casstore.format.packs import Footer
from casstore.gc import sketch
from casstore.gc.groups import is_arranged, is_group
from casstore.gc.moving import read_footer
from casstore.model import ChunkKind, PackState
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, view_hash
from casstore.testing.snapshot import snapshot
from casstore.testing.worlds import NoSync
from casstore.view import children_of, packs

CONFIG = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=8192, pack_bytes=65536, node_bytes=1024
)

Content = dict[str, bytes]
optimize: Any = import_module("casstore.gc.optimize")  # as an attribute of the package it is the function


def changed(files: Content, seed: int) -> Content:
    """The same, but for a byte in 700: hardly a chunk is the same, all resemble."""
    drawn = random.Random(seed)
    found = {}
    for name, data in files.items():
        new = bytearray(data)
        for at in range(drawn.randrange(700), len(new), 700):
            new[at] ^= 1 + drawn.randrange(255)
        found[name] = bytes(new)
    return found


def noise(seed: int, size: int = 40_000) -> Content:
    drawn = random.Random(seed)
    return {name: drawn.randbytes(size) for name in ("a", "b/c", "b/d")}


def log(store: Store, files: Content, name: str = "ds") -> None:
    artifact = Artifact(name, type="dataset")
    for path, data in files.items():
        artifact.add_bytes(data, path)
    store.log_artifact(artifact)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    Store.create(tmp_path / "s", config=CONFIG).close()
    return Store.open(tmp_path / "s", ops=NoSync())


def log_versions(store: Store, count: int = 5) -> list[Content]:
    found = [noise(1)]
    for seed in range(1, count):
        found.append(changed(found[-1], seed))
    for files in found:
        log(store, files)
    return found


def check(store: Store, expected: Sequence[Content]) -> None:
    """Every version is what was logged, every stored byte right, every count, and the view what the log says."""
    for number, files in enumerate(expected):
        assert read_files(store.get(f"ds:v{number}")) == files
    assert store.fsck(read_data=True).findings == []
    recount(store._engine)
    assert replayed(store._engine) == view_hash(store._engine)


def footers(store: Store, kind: ChunkKind = ChunkKind.DATA) -> list[tuple[bytes, Footer]]:
    with store._engine.view.read() as tables:
        live = [(name, row) for name, row in packs(tables) if row.state is PackState.LIVE and row.kind is kind]
    return [(name, read_footer(store._engine, name, row.size)) for name, row in live]


def arranged(store: Store) -> list[tuple[bytes, Footer]]:
    """Data packs of groups. What resembles nothing is in others."""
    return [(name, footer) for name, footer in footers(store) if is_arranged(CONFIG, footer)]


def stored(store: Store) -> int:
    return store.du().stored


# ---------------------------------------------------------------- what it does


def test_versions_that_differ_in_little_take_a_third(store: Store) -> None:
    expected = log_versions(store)
    before = stored(store)
    report = store.gc(optimize=True, grace=0)
    assert stored(store) < before / 3
    assert report.freed_bytes == report.optimized_saved_bytes == before - stored(store)
    assert report.examined_bytes == before
    assert report.errors == report.notes == []
    check(store, expected)
    check_no_garbage(store)


def test_the_second_time_there_is_nothing_to_do(store: Store) -> None:
    log_versions(store)
    store.gc(optimize=True, grace=0)
    before = snapshot(Path(store.url))
    report = store.gc(optimize=True, grace=0)
    assert (report.optimized_packs, report.repacked_bytes) == (0, 0)
    assert snapshot(Path(store.url)) == before


def test_a_dry_run_changes_nothing_and_says_what_would_be_looked_at(store: Store) -> None:
    log_versions(store)
    before = snapshot(Path(store.url))
    assert store.gc(dry_run=True, optimize=True).examined_bytes == stored(store)
    assert store.gc(dry_run=True).examined_bytes == 0
    assert snapshot(Path(store.url)) == before
    store.gc(optimize=True, grace=0)
    assert store.gc(dry_run=True, optimize=True).examined_bytes < stored(store) / 3


def test_old_packs_are_kept_for_the_grace(store: Store) -> None:
    expected = log_versions(store)
    before = stored(store)
    report = store.gc(optimize=True, grace=timedelta(hours=1))
    assert report.freed_bytes == 0
    assert report.pending_bytes == report.optimized_saved_bytes > before / 2
    assert sum(report.kept_by.values()) == before
    done = store.gc_reclaim()
    assert done.freed_bytes == report.optimized_saved_bytes
    check(store, expected)


def test_what_resembles_nothing_is_left_alone(store: Store) -> None:
    for seed in range(4):
        log(store, noise(seed, 60_000))
    before = {name for name, _ in footers(store)}
    report = store.gc(optimize=True, grace=0)
    assert {name for name, _ in footers(store)} == before
    assert not report.errors


def test_what_does_not_pay_is_taken_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log_versions(store)
    before = {path: what for path, what in snapshot(Path(store.url)).items() if what != "directory"}
    monkeypatch.setattr(optimize, "SAVED", 0.9)
    report = store.gc(optimize=True, grace=0)
    assert (report.examined_bytes, report.optimized_packs) == (stored(store), 0)
    assert {path: what for path, what in snapshot(Path(store.url)).items() if what != "directory"} == before


def test_the_newest_version_comes_first_in_each_group(store: Store) -> None:
    """And in the order of its paths, so that it is read from the beginnings of frames that follow one another."""
    log_versions(store)
    store.gc(optimize=True, grace=0)
    latest = store.get("ds:latest")
    ((_, footer),) = arranged(store)
    (frame,) = footer.content.frames
    assert is_group(CONFIG, frame.raw, frame.chunks)
    here = set(footer.content.digests)
    paths = sorted(read_files(latest))
    wanted = [d for path in paths for _, d, _ in pieces(store._engine, latest[path]) if d in here]
    assert len(wanted) > 50
    assert list(footer.content.digests[: len(wanted)]) == list(dict.fromkeys(wanted))


def test_trees_are_arranged_too_and_packs_still_tell_their_versions(store: Store) -> None:
    files = {f"{number:04}": random.Random(number).randbytes(30) for number in range(400)}
    for number in range(4):
        log(store, {**files, f"{number * 97:04}": b"new"})
    before = sum(footer.content.frames[0].stored for _, footer in footers(store, ChunkKind.NODE))
    store.gc(optimize=True, grace=0)
    after = footers(store, ChunkKind.NODE)
    assert sum(frame.stored for _, footer in after for frame in footer.content.frames) < before
    roots = {note.root for _, footer in after for note in footer.versions}
    assert roots == {store._engine.parse_digest(str(version.digest)) for version in store.versions("ds")}
    with store._engine.view.read() as tables:
        for _, footer in after:
            below = [len(children_of(tables, digest) or ()) for digest in footer.content.digests]
            assert list(footer.children) == below


# ---------------------------------------------------------------- what is new later


def test_what_was_arranged_is_arranged_again_with_much_that_is_new(store: Store) -> None:
    expected = log_versions(store, 2)
    store.gc(optimize=True, grace=0)
    for seed in (7, 8):
        expected.append(changed(expected[-1], seed))
        log(store, expected[-1])
    store.gc(optimize=True, grace=0)
    assert len(arranged(store)) == 1
    check(store, expected)


def test_little_that_is_new_does_not_move_all_that_is_old(store: Store) -> None:
    expected = log_versions(store, 5)
    store.gc(optimize=True, grace=0)
    ((old, _),) = arranged(store)
    for seed in range(3):
        expected.append({**expected[-1], "new": changed({"f": noise(77, 12_000)["a"]}, seed)["f"]})
        log(store, expected[-1])
    assert store.gc(optimize=True, grace=0).optimized_packs
    assert old in {name for name, _ in footers(store)}
    check(store, expected)


def test_a_collection_keeps_groups_and_leaves_no_more_than_the_latest_alone_takes(store: Store, tmp_path: Path) -> None:
    expected = log_versions(store)
    store.gc(optimize=True, grace=0)
    for number in range(4):
        store.delete(f"ds:v{number}")
    store.trash.empty()
    store.gc(offline=True)
    groups = [frame for _, footer in footers(store) for frame in footer.content.frames if frame.raw > 50_000]
    assert len(groups) == 1
    assert read_files(store.get("ds:v4")) == expected[4]
    check_no_garbage(store)
    Store.create(tmp_path / "alone", config=CONFIG).close()
    with Store.open(tmp_path / "alone", ops=NoSync()) as alone:
        log(alone, expected[4])
        assert stored(store) <= stored(alone) * 1.05


def test_an_undone_run_brings_back_what_it_took(store: Store) -> None:
    expected = log_versions(store)
    store.delete("ds:v0")
    store.trash.empty()
    run = store.gc(optimize=True, max_waste=0).run_id
    store.gc_undo(run)
    store.trash.restore("ds:v0")
    check(store, expected)


# ---------------------------------------------------------------- limits, others at work, damage


def test_it_keeps_within_its_limits_and_the_next_run_goes_on(store: Store) -> None:
    expected = log_versions(store)
    before = stored(store)
    assert store.gc(optimize=True, grace=0, max_seconds=0).examined_bytes == 0
    report = store.gc(optimize=True, grace=0, max_bytes=200_000)
    assert 0 < report.examined_bytes <= 200_000
    for _ in range(10):
        report = store.gc(optimize=True, grace=0, max_bytes=200_000)
    assert report.optimized_packs == 0
    assert stored(store) < before * 3 / 4
    check(store, expected)


def test_writers_and_deletions_between_the_copy_and_its_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content is taken up again, let go, and collected by another, after it was copied: all that lives stays whole."""
    expected = log_versions(store)
    log(store, noise(50), "doomed")
    store.delete("doomed:v0")
    store.trash.empty()
    real = optimize.commit_moved
    other = Store.open(store.url, ops=NoSync())

    def overtaken(*arguments: Any) -> int:
        monkeypatch.undo()
        expected.append({**expected[0], "more": noise(50)["a"]})
        log(other, expected[-1])
        other.delete("ds:v2")
        other.trash.empty()
        other.gc(grace=0, max_waste=0)
        return int(real(*arguments))

    monkeypatch.setattr(optimize, "commit_moved", overtaken)
    assert store.gc(optimize=True, grace=0).errors == []
    for number in (0, 1, 3, 4, 5):
        assert read_files(store.get(f"ds:v{number}")) == expected[number]
    assert store.fsck(read_data=True).findings == []
    recount(store._engine)
    store.gc(optimize=True, offline=True)
    for number in (0, 1, 3, 4, 5):
        assert read_files(store.get(f"ds:v{number}")) == expected[number]
    check_no_garbage(store)


def test_a_pack_whose_content_was_not_all_copied_does_not_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = log_versions(store)
    real = optimize._encode

    def forgetful(shelf: Any, codec: Any, group: Sequence[int]) -> Any:
        return real(shelf, codec, group[1:])

    monkeypatch.setattr(optimize, "_encode", forgetful)
    before = {name for name, _ in footers(store)}
    store.gc(optimize=True, grace=0)
    left = {name for name, _ in footers(store)} & before
    assert left
    check(store, expected)


def test_a_damaged_pack_is_left_and_reported_and_others_are_arranged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = log_versions(store)
    bad = footers(store)[0][0]
    real: Callable[..., bytes] = optimize._plain

    def flipped(engine: Any, pack: bytes, frame: Any) -> bytes:
        plain = real(engine, pack, frame)
        return plain if pack != bad else bytes([plain[0] ^ 1]) + plain[1:]

    with monkeypatch.context() as patch:
        patch.setattr(optimize, "_plain", flipped)
        report = store.gc(optimize=True, grace=0)
    assert [bad.hex() in error for error in report.errors] == [True]
    assert report.optimized_packs > 2
    assert bad in {name for name, _ in footers(store)}
    check(store, expected)


def test_bytes_that_turn_bad_while_they_are_copied_end_no_pack(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = log_versions(store)
    real: Callable[..., bytes] = optimize._Shelf._frame
    before = {name for name, _ in footers(store)}

    def flipped(shelf: Any, number: int) -> bytes:
        plain = real(shelf, number)
        return bytes([plain[0] ^ 1]) + plain[1:]

    with monkeypatch.context() as patch:
        patch.setattr(optimize._Shelf, "_frame", flipped)
        report = store.gc(optimize=True, grace=0)
    assert report.errors
    assert {name for name, _ in footers(store)} == before
    check(store, expected)


# ---------------------------------------------------------------- what resembles what


def test_the_compiled_features_are_those_of_the_reference() -> None:
    drawn = random.Random(3)
    compiled = sketch.selected()
    assert compiled is not sketch.features, "the C kernel was not built: python setup.py build_ext --inplace"
    for size in (0, 1, 9, 100, 4000, 40_000):
        for data in (drawn.randbytes(size), b"ab" * size):
            assert compiled(memoryview(data)) == sketch.features(data)
            assert len(compiled(data)) == sketch.SIZE


def test_resembling_chunks_are_found_and_others_are_not() -> None:
    first = [noise(seed, 4000)["a"] for seed in range(50)]
    again = [changed({"x": data}, 9)["x"] for data in first]
    groups = sketch.alike([sketch.selected()(data) for data in (*first, *again)])
    assert list(groups[:50]) == list(range(50))
    assert sum(groups[50 + number] == number for number in range(50)) >= 48
    assert list(sketch.alike([sketch.selected()(b"")] * 3)) == [0, 1, 2]
