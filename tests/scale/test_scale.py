"""Sizes at which others stop to work: 60,000 files with long paths, 10,000 aliases, paths at their limits.

Nothing here measures time: what is promised is that it works, in memory that does not grow with the number of entries,
and that a small change writes little.
"""

from __future__ import annotations

import gc as memory
import os
import random
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore import AliasGuardError, Artifact, Settings, Store, StoreConfig, Version, VersionNotFoundError, Where
from casstore.testing.snapshot import snapshot

TUNING = Settings(workers=2, index_map_bytes=1 << 26)
FILES = 60_000
KINDS = 1000
"""different contents"""
ALIASES = 10_000
VERSIONS = 101
EACH = 99
"""with ``latest``, a version has a hundred"""


def name_of(number: int) -> str:
    """A path of 300 bytes, in one of a hundred directories."""
    return f"{number % 100:02}/{'p' * 130}/{'q' * 140}/{number:021}.txt"


def content_of(number: int) -> bytes:
    return b"content %d" % (number % KINDS)


def grown(path: Path, before: dict[str, str]) -> int:
    """Bytes of packs and log that were not there before."""
    return sum(
        (path / name).stat().st_size for name in snapshot(path) if name not in before and (path / name).is_file()
    )


# --- files


@pytest.fixture(scope="module")
def many_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many") / "store"


@pytest.fixture(scope="module")
def many(many_at: Path) -> Iterator[Version]:
    """60,000 files of a thousand contents."""
    with Store.create(many_at, settings=TUNING) as store:
        artifact = Artifact("many")
        for number in range(FILES):
            artifact.add_bytes(content_of(number), name_of(number))
        yield store.log_artifact(artifact)


def again(path: Path) -> Store:
    return Store.open(path, settings=TUNING)


def test_all_of_60000_files_are_listed_in_order(many: Version, many_at: Path) -> None:
    assert {len(name_of(number).encode()) for number in (0, FILES - 1)} == {300}
    with again(many_at) as store:
        version = store.get("many")
        assert version.file_count == len(version.manifest) == FILES
        wanted = sorted(name_of(number) for number in range(FILES))
        assert [entry.path for entry in version.files()] == wanted
        assert list(version.manifest) == wanted
        pages: list[str] = []
        while page := [entry.path for entry in version.files(page_size=7000, start=pages[-1] if pages else None)]:
            pages += page
        assert pages == wanted
        assert [entry.path for entry in version.files("42")] == [path for path in wanted if path.startswith("42/")]


def test_any_of_60000_files_is_found(many: Version, many_at: Path) -> None:
    source = random.Random(1)
    with again(many_at) as store:
        version = store.get("many")
        for number in source.sample(range(FILES), 200):
            assert version[name_of(number)].read() == content_of(number)
            assert name_of(number) in version.manifest
            assert name_of(number + FILES) not in version


def test_some_of_60000_files_are_downloaded(many: Version, tmp_path: Path) -> None:
    report = many.download(tmp_path / "out", path_prefix="07")
    assert report.files == FILES // 100
    assert sum(1 for _ in (tmp_path / "out").rglob("*.txt")) == FILES // 100
    assert (tmp_path / "out" / name_of(107)).read_bytes() == content_of(107)
    assert many.download(tmp_path / "one", glob=f"*/{12_345:021}.txt").files == 1


def test_60000_files_are_verified(many: Version) -> None:
    many.verify()


def test_one_change_among_60000_files_writes_little(many: Version, many_at: Path) -> None:
    """D2: what is written is the change and the nodes above it, not the list of files (18 MB here)."""
    with again(many_at) as store:
        before = snapshot(many_at)
        artifact = store.get("many").new_draft()
        artifact.add_bytes(b"changed", name_of(7), overwrite=True)
        artifact.remove(name_of(8))
        artifact.add_bytes(b"added", name_of(8) + ".new")
        version = store.log_artifact(artifact, move_latest=False)
        assert version.new_bytes < 512 * 1024
        assert grown(many_at, before) < 256 * 1024
        found = store.diff(many.ref, version.ref)
        assert (found.added, found.changed, found.removed) == ((name_of(8) + ".new",), (name_of(7),), (name_of(8),))
        assert version.file_count == FILES
        assert version[name_of(7)].read() == b"changed"
        assert version[name_of(9)].read() == content_of(9)


def test_60000_files_that_are_there_are_stored_once(many: Version, many_at: Path) -> None:
    """The same content, added one by one in another order and under another name, has the same digest; no new bytes."""
    with again(many_at) as store:
        before = snapshot(many_at)
        artifact = Artifact("other")
        for number in reversed(range(FILES)):
            artifact.add_bytes(content_of(number), name_of(number))
        version = store.log_artifact(artifact)
        assert (version.created, version.digest, version.new_bytes) == (True, many.digest, 0)
        assert grown(many_at, before) < 64 * 1024


# --- aliases


@pytest.fixture
def aliased(tmp_path: Path) -> Iterator[Store]:
    """10,000 aliases on 101 versions of one collection."""
    with Store.create(tmp_path / "store", settings=TUNING) as store:
        for version in range(VERSIONS):
            artifact = Artifact("c")
            artifact.add_bytes(b"%d" % version, "x")
            mine = range(version * EACH, version * EACH + EACH)
            store.log_artifact(artifact, aliases=[f"a{number}" for number in mine])
        yield store


def test_10000_aliases_are_set_found_moved_and_told_of(aliased: Store) -> None:
    total = VERSIONS * EACH
    assert total >= ALIASES - 1
    versions = aliased.versions("c")
    assert sum(len(version.aliases) for version in versions) == total + 1
    assert {alias for version in versions for alias in version.aliases} == {f"a{n}" for n in range(total)} | {"latest"}
    for number in range(0, total, 7):
        assert aliased.get(f"c:a{number}").number == number // EACH
    aliased.get("c:v0").set_aliases([f"a{number}" for number in range(1000, 1000 + EACH)])
    assert aliased.get("c:v0").aliases == tuple(sorted(f"a{number}" for number in range(1000, 1000 + EACH)))
    for number in range(EACH):
        with pytest.raises(VersionNotFoundError):
            aliased.get(f"c:a{number}")
    aliased.get("c:v1").add_alias("a5000")
    moves = aliased.alias_log("c", "a5000")
    assert len(moves) == 2
    changes = aliased.alias_log("c")
    assert {change.alias for change in changes} >= {f"a{number}" for number in range(total)}
    assert len(changes) > total
    assert [info.versions for info in aliased.collections()] == [VERSIONS]


def test_versions_with_a_hundred_aliases_each_are_deleted_and_come_back(aliased: Store) -> None:
    with pytest.raises(AliasGuardError) as caught:
        aliased.delete("c:v3")
    assert len(caught.value.aliases) == EACH
    gone = [f"v{number}" for number in range(90)]
    kept = aliased.delete(where=Where(version_in=gone), collection="c")
    assert (kept.refs, len(kept.skipped)) == ((), 90)
    done = aliased.delete(where=Where(version_in=gone), collection="c", delete_aliases=True)
    assert len(done.refs) == 90
    with pytest.raises(VersionNotFoundError):
        aliased.get("c:a100")
    assert aliased.get(f"c:a{95 * EACH}").number == 95
    restored = aliased.trash.restore("c:v3")
    assert (len(restored.aliases), restored.aliases_not_restored) == (EACH, ())
    aliased.collection("c").delete(delete_aliases=True)
    aliased.trash.empty()
    aliased.gc(grace=0)
    assert aliased.du().stored == 0


# --- paths at their limits


def test_files_whose_paths_are_as_long_as_may_be(tmp_path: Path) -> None:
    """4,096 bytes in parts of 255, and in 2,048 parts of one: longer than any path the system opens in one go."""
    wide = ["/".join([f"{n:02}" + "w" * 253] * 15 + ["w" * 253, f"{n:02}"]) for n in range(10)]
    deep = ["d/" * 2047 + f"x{n}" for n in range(2)]
    names = [*wide, *deep, "\xe9" * 127 + "x"]
    assert {len(name.encode()) for name in (*wide, *deep)} == {4096}
    artifact = Artifact("long")
    for name in names:
        artifact.add_bytes(name[-9:].encode(), name)
    with Store.create(tmp_path / "store", settings=TUNING) as store:
        version = store.log_artifact(artifact)
        assert [entry.path for entry in version.files()] == sorted(names, key=str.encode)
        for name in names:
            assert version[name].read() == name[-9:].encode()
        draft = version.new_draft()
        assert draft.remove(wide[7].partition("/")[0]) == 1
        smaller = store.log_artifact(draft)
        assert store.diff(version.ref, smaller.ref).removed == (wide[7],)
        root = tmp_path / "out"
        try:
            assert version.download(root).files == len(names)
            version.verify(root)
            fd = os.open(root, os.O_RDONLY)
            for part in deep[1].split("/")[:-1]:
                above, fd = fd, os.open(part, os.O_RDONLY, dir_fd=fd)
                os.close(above)
            with open(os.open(deep[1].rpartition("/")[2], os.O_RDONLY, dir_fd=fd), "rb") as file:
                assert file.read() == deep[1][-9:].encode()
            os.close(fd)
        finally:
            subprocess.run(["rm", "-rf", root], check=True)  # too deep for shutil, and so for pytest


# --- memory


def build_wide(place: Path, count: int) -> None:
    """Entries of one content; nodes are small, so that few of them fill the cache of nodes."""
    with Store.create(place, config=StoreConfig(node_bytes=2048), settings=TUNING) as store:
        first = Artifact("first")
        first.add_bytes(b"x", "x")
        entry = store.log_artifact(first)["x"]
        artifact = Artifact("wide")
        for number in range(count):
            artifact.add_entry(entry, f"{number // 1000:03}/{number:030}")
        store.log_artifact(artifact)


def peak(place: Path, count: int) -> int:
    """Bytes of Python objects at the worst moment of a walk through the manifest, in a store opened for it."""
    with Store.open(place, read_only=True, settings=TUNING) as store:
        manifest = store.get("wide").manifest
        memory.collect()
        tracemalloc.start()
        try:
            assert sum(1 for _ in manifest) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def test_memory_for_a_walk_does_not_depend_on_the_number_of_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9: to go through five times the entries needs no more memory."""
    monkeypatch.setattr("casstore.chunks.CACHE_BYTES", 1 << 20)  # so that either size fills it
    sizes = (20_000, 100_000)
    for count in sizes:
        build_wide(tmp_path / str(count), count)
    few, many = (peak(tmp_path / str(count), count) for count in sizes)
    assert many < few * 1.25, f"{few:,} bytes for {sizes[0]:,} entries, {many:,} for {sizes[1]:,}"
