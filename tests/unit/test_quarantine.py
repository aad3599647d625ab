"""Rot is found, fenced off, and healed by whoever has the bytes (GC.md H12, RELIABILITY R5 and §4.6).

Guards: what `fsck --repair` finds damaged counts as absent for every writer; the next one that has the bytes stores
them again, and every version that shares them is whole; what the store has twice is healed at once; what is lost is
named to the byte; a collection neither stops at damaged data nor throws away what is still needed of a damaged pack.
Bytes are flipped in the pack files themselves.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from casstore import Artifact, FsckReport, IntegrityError, ReadOnlyError, Runtime, Settings, Store, Version
from casstore.backend.local import LocalBackend
from casstore.cli import main
from casstore.engine import Engine
from casstore.errors import BackendError, ChunkMissingError, InvalidInputError
from casstore.format.layout import PACK_PREFIX, pack_key
from casstore.format.packs import FIRST_FRAME, FRAME_HEADER
from casstore.format.rows import decode_chunk
from casstore.model import ChunkKind, Erase, Location
from casstore.pack import PackWriter, encode_frame
from casstore.repair import repair
from casstore.state import CHUNK, LOST
from casstore.testing.checks import check_no_garbage, recount
from casstore.testing.machine import START
from casstore.testing.recipes import SMALL

Files = dict[str, bytes]

FINE = replace(SMALL, frame_bytes=1024, chunker=replace(SMALL.chunker, algorithm="fastcdc-2020"))
# The files below make lists of chunks of two levels when they are cut so.
"""so that a damaged frame takes little with it"""

_random = random.Random(11)
ONE = _random.randbytes(150)
SHARED = _random.randbytes(3000)
LONG = _random.randbytes(90_000)
"""about 70 chunks: an entry names them through a tree of chunk-list nodes"""
V0: Files = {"a/one": ONE, "a/shared": SHARED, "b/long": LONG, **{f"n/{i:03}": b"small %d" % i for i in range(60)}}
V1: Files = {**V0, "a/one": b"one", "b/long": LONG[:40_000] + b"!" + LONG[40_000:]}


@dataclass
class World:
    """A place for a store, and the handles on it."""

    path: Path
    now: list[object] = field(default_factory=lambda: [START])
    handles: list[Store] = field(default_factory=list)

    def open(self, *, read_only: bool = False) -> Store:
        runtime = Runtime(clock=lambda: self.now[0], sleep=lambda _: None, actor="me")  # type: ignore[arg-type,return-value]
        settings = Settings(workers=1, index_map_bytes=1 << 20)
        if not self.path.exists():
            store = Store.create(self.path, config=FINE, runtime=runtime, settings=settings)
        else:
            store = Store.open(self.path, runtime=runtime, settings=settings, read_only=read_only)
        self.handles.append(store)
        return store

    def pack(self, name: bytes) -> Path:
        return self.path / pack_key(name)

    def rot(self, place: Location) -> None:
        """Flip a bit in a chunk, or in what its frame begins with, without which nothing in it can be read."""
        file = self.pack(place.pack)
        file.chmod(0o600)
        data = bytearray(file.read_bytes())
        plain = place.frame_stored == place.frame_raw + FRAME_HEADER.size
        data[place.frame_offset + FRAME_HEADER.size + plain * place.offset] ^= 4
        file.write_bytes(data)

    def scratch(self, pack: Path) -> None:
        """Flip a bit that no chunk needs: in the header of the first frame. Only the seal of the pack has it."""
        pack.chmod(0o600)
        data = bytearray(pack.read_bytes())
        data[FIRST_FRAME + 2] ^= 4
        pack.write_bytes(data)

    def packs(self) -> set[str]:
        return {file.name for file in self.path.glob("packs/*/*")}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "store")
    yield world
    for store in world.handles:
        store.close()


@pytest.fixture
def store(world: World) -> Store:
    """With two versions that share most of their content."""
    store = world.open()
    log(store, "data", V0)
    log(store, "data", V1)
    return store


def draft(name: str, files: Files) -> Artifact:
    artifact = Artifact(name, type="dataset")
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return artifact


def log(store: Store, name: str, files: Files) -> Version:
    return store.log_artifact(draft(name, files))


def forget(store: Store) -> None:
    """As if the store had just been opened."""
    engine = store._engine
    engine._nodes.clear()
    engine.reader._cache.clear()
    engine.reader._cached = 0


def place(store: Store, digest: bytes) -> Location:
    with store._engine.view.read() as tables:
        row = tables.get(CHUNK, digest)
    assert row is not None
    return decode_chunk(row).location


def is_lost(store: Store, digest: bytes) -> bool:
    store._engine.view.refresh()
    return store._engine.view.lost(digest) is not None


def a_chunk(store: Store) -> bytes:
    """A data chunk that both versions need."""
    return store.get("data:v0")["a/shared"].chunks[0][0]


def a_chunk_list(store: Store) -> bytes:
    tree = store.get("data:v0")["b/long"].tree
    assert tree is not None
    node = store._engine.node(tree)
    assert node.level == 1
    return node.children[-1].digest


def a_chunk_list_root(store: Store) -> bytes:
    tree = store.get("data:v0")["b/long"].tree
    assert tree is not None
    return tree


def a_directory(store: Store) -> bytes:
    """A leaf of the list of files, of both versions."""
    both = [store._engine.node(store.get(f"data:v{i}")._found.version.root) for i in (0, 1)]
    shared = [child.digest for child in both[0].children if child in both[1].children]
    assert shared
    return shared[0]


def the_root(store: Store) -> bytes:
    return store.get("data:v0")._found.version.root


VICTIMS = [a_chunk, a_chunk_list, a_chunk_list_root, a_directory, the_root]
every_victim = pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.__name__)


def whole(store: Store, name: str, files: Files) -> bool:
    forget(store)
    return {entry.path: entry.read() for entry in store.get(name).files()} == files


def check_healthy(store: Store) -> None:
    """Everything reads, nothing is in quarantine, counts are right."""
    forget(store)
    assert whole(store, "data:v0", V0)
    assert whole(store, "data:v1", V1)
    recount(store._engine)
    assert store.fsck().lost == 0


def open_findings(report: FsckReport) -> list[str]:
    return [finding.kind for finding in report.findings if not finding.repaired]


# ---------------------------------------------------------------- quarantine


@every_victim
def test_what_is_damaged_is_quarantined_and_read_no_more(
    world: World, store: Store, victim: Callable[[Store], bytes]
) -> None:
    digest = victim(store)
    world.rot(place(store, digest))
    forget(store)
    report = store.fsck(read_data=True, repair=True)
    assert report.quarantined >= 1
    assert report.lost == report.quarantined - report.healed
    assert is_lost(store, digest)
    assert store._engine.view.known([digest]) == [False]
    lost = store._engine.view.lost(digest)
    assert lost is not None
    assert lost.actor == "me"
    assert not report.clean
    forget(store)
    with pytest.raises(IntegrityError) as caught:
        for version in ("data:v0", "data:v1"):
            whole(store, version, V0)
    assert "casstore fsck --read-data --repair" in caught.value.hint


def test_a_check_without_repair_changes_nothing(world: World, store: Store) -> None:
    world.rot(place(store, a_chunk(store)))
    before = {file: file.read_bytes() for file in world.path.rglob("*") if file.is_file() and "index" not in file.parts}
    head = store._engine.view.head()
    report = store.fsck(read_data=True)
    assert not report.clean
    assert (report.quarantined, report.healed, report.lost) == (0, 0, 0)
    assert store._engine.view.refresh() == head
    assert before == {file: file.read_bytes() for file in before}
    with pytest.raises(ReadOnlyError):
        world.open(read_only=True).fsck(read_data=True, repair=True)


def test_a_sound_store_is_left_as_it_is(store: Store) -> None:
    head = store._engine.view.head()
    report = store.fsck(read_data=True, repair=True)
    assert report.clean
    assert store._engine.view.refresh() == head


def test_a_second_repair_finds_nothing_more_to_do(world: World, store: Store) -> None:
    world.rot(place(store, a_chunk(store)))
    first = store.fsck(read_data=True, repair=True)
    head = store._engine.view.refresh()
    second = store.fsck(read_data=True, repair=True)
    assert (second.quarantined, second.healed, second.lost) == (0, 0, first.lost)
    assert store._engine.view.refresh() == head


# ---------------------------------------------------------------- the next writer heals


@every_victim
@pytest.mark.parametrize("name", ["data", "elsewhere"])
def test_the_next_writer_heals(world: World, store: Store, victim: Callable[[Store], bytes], name: str) -> None:
    """Under any name, the same one included, where no new version comes of it."""
    world.rot(place(store, victim(store)))
    store.fsck(read_data=True, repair=True)
    other = world.open()  # with nothing in its caches
    version = log(other, name, V0)
    if name == "data":
        assert version.version == "v2"
        assert log(other, name, V0).version == "v2"
    check_healthy(other)
    assert other.fsck(read_data=True, repair=True).clean
    check_healthy(other)
    other.gc(grace=0, max_waste=0, orphan_age=0)
    check_healthy(other)
    assert other.fsck(read_data=True).clean


def test_logging_the_latest_version_again_heals_it_and_makes_no_version(world: World, store: Store) -> None:
    """Content equal to latest makes no version; what was stored for it is committed all the same."""
    for victim in VICTIMS:
        if victim is not the_root:
            world.rot(place(store, victim(store)))
    world.rot(place(store, store.get("data:v1")._found.version.root))
    forget(store)
    assert store.fsck(read_data=True, repair=True).lost
    other = world.open()
    version = log(other, "data", V1)
    assert (version.version, version.created) == ("v1", False)
    assert [v.version for v in other.versions("data")] == ["v1", "v0"]
    assert whole(other, "data:v1", V1)
    recount(other._engine)
    assert other.fsck().orphan_packs == 0


def test_a_draft_of_a_damaged_version_replaces_what_is_damaged(world: World, store: Store) -> None:
    """Only the file that cannot be read is taken out and added again: it is healed in every version."""
    world.rot(place(store, a_chunk(store)))
    lost = store.fsck(read_data=True, repair=True).lost
    assert lost
    other = world.open()
    edited = other.get("data:v1").new_draft()
    edited.add_bytes(SHARED, "a/shared", overwrite=True)
    edited.add_bytes(b"new", "new")
    version = other.log_artifact(edited)
    for path in ("a/shared", "new"):
        assert version[path].read() == {**V1, "new": b"new"}[path]
    assert other.get("data:v0")["a/shared"].read() == SHARED


def test_a_draft_of_a_damaged_version_may_leave_it_damaged(world: World, store: Store) -> None:
    """An edit beside the damage is no worse than before: the rest is shared, and stays in quarantine."""
    digest = a_chunk(store)
    world.rot(place(store, digest))
    edited = store.get("data:v1").new_draft()
    edited.add_bytes(b"new", "a/a-new")
    store.fsck(read_data=True, repair=True)
    version = store.log_artifact(edited)
    assert version["a/a-new"].read() == b"new"
    assert is_lost(store, digest)
    with pytest.raises(IntegrityError):
        world.open().get(version.ref)["a/shared"].read()


def test_a_file_taken_over_from_a_damaged_version_is_refused(world: World, store: Store) -> None:
    entry = store.get("data:v0")["a/shared"]
    world.rot(place(store, a_chunk(store)))
    store.fsck(read_data=True, repair=True)
    artifact = Artifact("copy", type="dataset")
    artifact.add_entry(entry)
    with pytest.raises(ChunkMissingError, match="damaged"):
        store.log_artifact(artifact)


@every_victim
def test_a_writer_that_had_claimed_what_is_quarantined_stores_it_again(
    world: World, store: Store, victim: Callable[[Store], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim was good when it was made. It is broken by the quarantine, between reading and commit."""
    digest = victim(store)
    where = place(store, digest)
    writer = world.open()
    real = Engine.commit
    calls: list[int] = []

    def commit(engine: Engine, build: object, **how: object) -> object:
        if engine is writer._engine and not calls:
            calls.append(1)
            world.rot(where)
            store.fsck(read_data=True, repair=True)
            assert is_lost(store, digest)
        return real(engine, build, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "commit", commit)
    log(writer, "third", V0)
    assert calls
    monkeypatch.undo()
    last = world.open()
    assert not is_lost(last, digest)
    assert whole(last, "third:v0", V0)
    assert whole(last, "data:v0", V0)


def test_whoever_only_reads_the_catalogue_sees_no_change(world: World, store: Store) -> None:
    before = [(v.ref, v.digest, v.size) for v in store.versions("data")]
    world.rot(place(store, the_root(store)))
    store.fsck(read_data=True, repair=True)
    assert [(v.ref, v.digest, v.size) for v in world.open().versions("data")] == before


def test_a_reader_that_is_behind_sees_what_somebody_else_healed(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another host, whose view still has the old place: it looks at the head again before it complains."""
    digest = a_chunk(store)
    entry = store.get("data:v0")["a/shared"]
    world.rot(place(store, digest))
    forget(store)
    with pytest.raises(IntegrityError):
        entry.read()
    reader = store._engine.reader
    names = [name for name, _ in entry.chunks]
    behind = dict(zip(names, reader._locate(names), strict=True))
    locate, refresh = reader._locate, reader._refresh
    monkeypatch.setattr(reader, "_locate", lambda digests: [behind[digest] for digest in digests])
    other = world.open()
    other.fsck(read_data=True, repair=True)
    log(other, "again", V0)

    def look() -> None:
        refresh()
        monkeypatch.setattr(reader, "_locate", locate)

    monkeypatch.setattr(reader, "_refresh", look)
    assert entry.read() == SHARED


# ---------------------------------------------------------------- healed at once


def second_copy(world: World, store: Store, kept: str) -> None:
    """Have every pack twice on disk: as the log knows it, and under a name that is ``kept`` some way."""
    if kept == "retired":
        # As after a repack: the content has moved, and the packs are in their grace.
        before = world.packs()
        for file in world.path.glob("packs/*/*"):
            world.scratch(file)
        assert store.fsck(read_data=True, repair=True).clean
        assert {place(store, victim(store)).pack.hex() for victim in VICTIMS}.isdisjoint(before)
        return
    for file in list(world.path.glob("packs/*/*")):
        name = bytes.fromhex(file.name)[::-1]
        target = world.pack(name)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())


@every_victim
@pytest.mark.parametrize("kept", ["retired", "unknown"])
def test_what_is_there_twice_is_healed_at_once(
    world: World, store: Store, victim: Callable[[Store], bytes], kept: str
) -> None:
    """From a pack that has ended and waits for its deletion, or from one that no commit ever named."""
    second_copy(world, store, kept)
    digest = victim(store)
    where = place(store, digest)
    world.rot(where)
    forget(store)
    report = store.fsck(read_data=True, repair=True)
    assert report.quarantined >= 1
    assert (report.healed, report.lost) == (report.quarantined, 0)
    assert report.clean
    assert any(finding.repaired for finding in report.findings)
    assert place(store, digest).pack != where.pack
    check_healthy(world.open())
    with store._engine.view.read() as tables:
        assert not tables.count(LOST)
    store.gc(grace=0, orphan_age=0, offline=True)
    assert where.pack.hex() not in world.packs(), "the damaged pack ended, and is collected"
    check_healthy(world.open())
    check_no_garbage(store)


@pytest.mark.parametrize("how", ["missing", "short", "empty"])
def test_a_pack_that_is_gone_or_cut_is_healed_from_copies(world: World, store: Store, how: str) -> None:
    second_copy(world, store, "unknown")
    where = place(store, a_chunk(store))
    file = world.pack(where.pack)
    file.chmod(0o600)
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: where.frame_offset + 20 if how == "short" else 0])
    forget(store)
    report = store.fsck(repair=True)  # to notice this, no data has to be read
    assert report.healed == report.quarantined > 0
    assert report.clean
    check_healthy(world.open())
    assert store.fsck(read_data=True).clean


def test_damage_that_nothing_needs_ends_the_pack_without_loss(world: World, store: Store) -> None:
    """A flipped bit of the footer: all chunks are whole, and move to a new pack."""
    where = place(store, a_chunk(store))
    file = world.pack(where.pack)
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[-60] ^= 1
    file.write_bytes(data)
    report = store.fsck(read_data=True, repair=True)
    assert (report.quarantined, report.healed, report.lost) == (0, 0, 0)
    assert report.clean
    assert place(store, a_chunk(store)).pack != where.pack
    check_healthy(world.open())
    assert store.fsck(read_data=True).clean


def test_a_disk_that_comes_back_is_healed_by_its_own_bytes(world: World, store: Store) -> None:
    """Quarantined while it was away: nothing is lost for good by having been looked at in a bad moment."""
    where = place(store, a_chunk(store))
    file = world.pack(where.pack)
    aside = world.path / "aside"
    file.rename(aside)
    forget(store)
    assert store.fsck(repair=True).lost
    aside.rename(file)
    report = store.fsck(repair=True)
    assert report.lost == 0
    assert report.healed
    check_healthy(world.open())


def test_a_listing_that_leaves_a_pack_out_is_not_believed(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = store._engine.backend
    real = backend.list
    monkeypatch.setattr(type(backend), "list", lambda self, prefix: list(real(prefix))[prefix == PACK_PREFIX :])
    report = store.fsck(repair=True)
    assert (report.quarantined, report.clean) == (0, True)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_bad_sector_is_damage_and_other_failures_are_not(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The medium cannot read one frame: the others of the pack are saved. Whatever else fails says nothing of bytes."""
    digest = a_chunk(store)
    where = place(store, digest)
    real = LocalBackend.read

    def read(self: LocalBackend, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        end = offset + (1 << 40 if length is None else length)
        if (
            key == pack_key(where.pack)
            and offset < where.frame_offset + where.frame_stored
            and end > where.frame_offset
        ):
            error = BackendError("no")
            error.errno = number
            raise error
        return real(self, key, offset=offset, length=length)

    monkeypatch.setattr(LocalBackend, "read", read)
    head = store._engine.view.head()
    if number != errno.EIO:
        with pytest.raises(BackendError):
            store.fsck(read_data=True, repair=True)
        assert store._engine.view.refresh() == head
        return
    report = store.fsck(read_data=True, repair=True)
    assert is_lost(store, digest)
    with store._engine.view.read() as tables:
        beside = [d for d, row in tables.scan(CHUNK) if decode_chunk(row).location.pack == where.pack]
    assert 0 < report.lost < len(beside) / 4
    log(world.open(), "again", V0)
    assert not is_lost(store, digest)


def test_what_was_erased_on_request_does_not_come_back(world: World, store: Store) -> None:
    """Even with a copy on disk: erased is not damaged."""
    second_copy(world, store, "unknown")
    digest = store.get("data:v0")["a/one"].chunks[0][0]
    engine = store._engine
    engine.commit(lambda _: (Erase((digest,), "by law"),))
    world.rot(place(store, a_chunk(store)))
    report = store.fsck(read_data=True, repair=True)
    assert report.lost == 0
    lost = engine.view.lost(digest)
    assert lost is not None
    assert lost.erased


def test_a_copy_that_is_damaged_too_heals_nothing(world: World, store: Store) -> None:
    second_copy(world, store, "unknown")
    digest = a_chunk(store)
    where = place(store, digest)
    world.rot(where)
    world.rot(replace(where, pack=where.pack[::-1]))
    report = store.fsck(read_data=True, repair=True)
    assert report.lost == report.quarantined > 0
    assert is_lost(store, digest)


def test_a_copy_that_has_other_bytes_than_it_says_heals_nothing(world: World, store: Store) -> None:
    """A pack of a broken writer lists the digest, and all its checksums are right: only the digest tells."""
    digest = a_chunk(store)
    where = place(store, digest)
    engine = store._engine
    writer = PackWriter(ChunkKind.DATA)
    writer.add(encode_frame(engine.codec, [(digest, bytes(where.length))]))
    lie = writer.finish(b"L" * 16)
    engine.backend.create(pack_key(lie.record.pack), lie.data())
    world.rot(where)
    forget(store)
    assert store.fsck(read_data=True, repair=True).lost
    assert is_lost(store, digest)


def test_a_sweep_of_orphans_between_copy_and_commit(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new pack is condemned before it is committed: it is written again, under another name."""
    where = place(store, a_chunk(store))
    second_copy(world, store, "unknown")
    world.rot(where)
    sweeper = world.open()
    real = Engine.commit
    swept: list[int] = []

    def commit(engine: Engine, build: object, **how: object) -> object:
        if engine is store._engine and how.get("packs_since") is not None and not swept:
            swept.append(1)
            assert sweeper.gc(orphan_age=0, grace=timedelta(days=1), incremental=True).condemned_packs
        return real(engine, build, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "commit", commit)
    report = store.fsck(read_data=True, repair=True)
    assert swept
    assert report.clean
    monkeypatch.undo()
    check_healthy(world.open())


# ---------------------------------------------------------------- what is lost, to the byte


def test_damaged_data_is_reported_with_every_version_path_and_byte_range(world: World, store: Store) -> None:
    entry = store.get("data:v0")["b/long"]
    parts = list(chunks_of(store, entry.tree))
    at, digest, length = parts[3]
    log(store, "other", {"x/y": LONG})
    world.rot(place(store, digest))
    report = store.fsck(read_data=True, repair=True)
    (finding,) = [f for f in report.findings if f.kind == "missing" and f.subject == digest.hex()]
    assert finding.affected == ("data:v0/b/long", "data:v1/b/long", "other:v0/x/y")
    assert [(r.path, r.start, r.end) for r in finding.ranges] == [
        (path, at, at + length) for path in ("data:v0/b/long", "data:v1/b/long", "other:v0/x/y")
    ]
    forget(store)
    lost = sorted((r.start, r.end) for f in report.findings for r in f.ranges if r.path == "data:v0/b/long")
    reader = store.get("data:v0")["b/long"]
    done = 0
    for start, end in [*lost, (len(LONG), len(LONG))]:
        assert reader.read(done, start - done) == LONG[done:start], "what is not reported can be read"
        if start < end:
            with pytest.raises(IntegrityError):
                reader.read(start, end - start)
        done = end


def chunks_of(store: Store, tree: bytes | None) -> Iterator[tuple[int, bytes, int]]:
    assert tree is not None
    at = 0
    stack = [tree]
    while stack:
        node = store._engine.node(stack.pop())
        stack.extend(child.digest for child in reversed(node.children))
        for digest, length in node.chunks:
            yield at, digest, length
            at += length


def test_a_damaged_chunk_list_is_reported_with_the_bytes_it_stands_for(world: World, store: Store) -> None:
    tree = store.get("data:v0")["b/long"].tree
    assert tree is not None
    children = store._engine.node(tree).children
    world.rot(place(store, children[1].digest))
    forget(store)
    report = store.fsck()
    spans = {(r.start, r.end) for f in report.findings for r in f.ranges if r.path == "data:v0/b/long"}
    start = children[0].size
    assert (start, start + children[1].size) in spans


def test_a_damaged_part_of_the_list_of_files_is_reported_with_its_extent(world: World, store: Store) -> None:
    root = store._engine.node(the_root(store))
    second = root.children[1]
    world.rot(place(store, second.digest))
    forget(store)
    found = [f for f in store.fsck().findings if f.kind == "tree" and f.subject == "data:v0"]
    if not found:  # its frame has the root, too
        assert [f.affected for f in store.fsck().findings if f.kind == "version"]
        return
    said = [f.message for f in found if f"up to {second.last!r}" in f.message]
    assert said
    assert f"{second.count} files ({second.size} bytes)" in said[0]


# ---------------------------------------------------------------- the collector beside damage


def test_damaged_data_does_not_stop_a_collection_and_the_pack_is_kept(world: World, store: Store) -> None:
    where = place(store, a_chunk(store))
    log(store, "doomed", {"x": _random.randbytes(50_000)})
    world.rot(where)
    lost = store.fsck(read_data=True, repair=True).lost
    for ref in ("doomed:v0", "data:v0"):  # some of the damaged pack is garbage then
        store.delete(ref)
        store.trash.purge(ref)
    for offline in (False, True):
        report = store.gc(grace=0, orphan_age=0, max_waste=0, offline=offline)
        assert report.errors == []
        assert offline or report.reclaimed_packs
        fate = next(fate for fate in report.packs if fate.pack == where.pack)
        assert (str(fate.fate), fate.dead > 0) == ("keep", True)
        assert "damaged" in fate.reason
        assert where.pack.hex() in world.packs()
        assert store.fsck().orphan_packs == 0, "no copy was written in vain"
        assert store.fsck().lost == lost
    other = world.open()
    log(other, "again", V0)
    other.gc(grace=0, orphan_age=0, offline=True)
    assert where.pack.hex() not in world.packs(), "healed, so that nothing keeps it"
    assert whole(other, "again:v0", V0)
    assert whole(other, "data:v1", V1)
    assert other.fsck(read_data=True).clean


def test_a_missing_pack_of_data_does_not_stop_a_collection_once_quarantined(world: World, store: Store) -> None:
    where = place(store, a_chunk(store))
    world.pack(where.pack).unlink()
    store.fsck(repair=True)
    log(store, "doomed", {"x": _random.randbytes(50_000)})
    store.delete("doomed:v0")
    store.trash.purge("doomed:v0")
    assert store.gc(grace=0, orphan_age=0, max_waste=0).reclaimed_packs


@pytest.mark.parametrize("victim", VICTIMS[1:], ids=lambda victim: victim.__name__)
def test_a_damaged_node_stops_deletion_until_it_is_in_quarantine(
    world: World, store: Store, victim: Callable[[Store], bytes]
) -> None:
    """What is below it must not go, whether that is known from the log or not; and it is whole once it is healed."""
    log(store, "doomed", {"x": _random.randbytes(50_000)})
    store.delete("doomed:v0")
    store.trash.purge("doomed:v0")
    world.rot(place(store, victim(store)))
    before = world.packs()
    with pytest.raises(IntegrityError) as caught:
        world.open().gc(grace=0, orphan_age=0, max_waste=0)
    assert caught.value.exit_code == 20
    assert world.packs() == before
    forget(store)
    assert store.fsck(read_data=True, repair=True).lost
    with suppress(IntegrityError):
        world.open().gc(grace=0, orphan_age=0, max_waste=0)
    log(world.open(), "again", V0)
    check_healthy(world.open())


def test_a_damaged_chunk_that_nobody_needs_is_forgotten(world: World, store: Store) -> None:
    doomed = log(store, "doomed", {"x": _random.randbytes(50_000)})
    tree = doomed["x"].tree
    digest = next(iter(chunks_of(store, tree)))[1]
    world.rot(place(store, digest))
    store.fsck(read_data=True, repair=True)
    store.delete("doomed:v0")
    store.trash.purge("doomed:v0")
    store.gc(grace=0, orphan_age=0, max_waste=0)
    assert not is_lost(store, digest)
    with store._engine.view.read() as tables:
        assert not tables.count(LOST)
    assert store.fsck(read_data=True).clean
    check_healthy(world.open())


# ---------------------------------------------------------------- races of the repair itself


def test_what_moved_since_it_was_looked_at_is_not_quarantined(world: World, store: Store) -> None:
    digest = a_chunk(store)
    where = place(store, digest)
    world.scratch(world.pack(where.pack))
    assert world.open().fsck(read_data=True, repair=True).clean
    store._engine.view.refresh()
    assert place(store, digest).pack != where.pack
    done = repair(store._engine, {where.pack: {digest}, bytes(15) + b"x": {digest, b"?" * 32}})
    assert done.quarantined == 0
    check_healthy(world.open())


def test_killed_at_any_effect_it_leaves_a_good_store_and_goes_on(world: World, store: Store) -> None:
    """kill -9 after effect 1, 2, 3, … of a repair, until one gets through; then the next repair."""
    second_copy(world, store, "unknown")
    for victim in VICTIMS:
        world.rot(place(store, victim(store)))
    store.close()
    kills = 0
    while True:
        here = World(world.path.parent / f"killed-{kills}")
        shutil.copytree(world.path, here.path)
        status = repair_and_die(here, kills + 1)
        with here.open() as seen:
            check_nothing_is_wrong_that_is_read(seen)
            again = seen.fsck(read_data=True, repair=True)
            assert (again.lost, again.clean) == (0, True)
            check_healthy(seen)
            if kills % 8 == 0:
                seen.gc(grace=0, orphan_age=0, offline=True)
                check_no_garbage(seen)
        shutil.rmtree(here.path)
        if status == 0:
            break
        assert status == 137
        kills += 1
    assert kills > 20


def repair_and_die(world: World, effect: int) -> int:
    """Repair in a process that ends right after an effect; its exit status."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.environ["CASSTORE_CRASH_AT"] = str(effect)
            with world.open() as store:
                store.fsck(read_data=True, repair=True)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check_nothing_is_wrong_that_is_read(store: Store) -> None:
    """What cannot be read says so; all else is right."""
    for version, files in (("data:v0", V0), ("data:v1", V1)):
        with suppress(IntegrityError):
            for entry in store.get(version).files():
                with suppress(IntegrityError):
                    assert entry.read() == files[entry.path]


# ---------------------------------------------------------------- a share of the data


def test_a_share_reads_that_share_and_the_seed_says_which(store: Store) -> None:
    for n in range(12):
        log(store, "many", {"x": _random.randbytes(30_000 + n)})
    full = store.fsck(read_data=True)
    assert full.packs_read == full.packs
    size = full.bytes_read
    a, b = store.fsck(0.2, seed=1), store.fsck(0.2, seed=1)
    assert a.bytes_read == b.bytes_read
    assert size * 0.2 <= a.bytes_read < size * 0.5
    assert len({store.fsck(0.05, seed=n).bytes_read for n in range(20)}) > 1, "others are drawn by others"
    assert store.fsck(0.0001).packs_read == 1
    assert store.fsck(1.0).packs_read == full.packs
    assert store.fsck(0).packs_read == store.fsck().packs_read == 0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "1%", None])
def test_a_share_that_is_none_is_refused(store: Store, share: object) -> None:
    with pytest.raises(InvalidInputError):
        store.fsck(share)  # type: ignore[arg-type]


def test_shares_drawn_anew_find_the_damage_in_time(world: World, store: Store) -> None:
    world.rot(place(store, a_chunk(store)))
    assert any(not store.fsck(0.01, seed=n).clean for n in range(200))


# ---------------------------------------------------------------- the command


def test_the_command_repairs_and_says_what_is_lost(world: World, store: Store) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, [*words, "--store", str(world.path)])
        return result.exit_code, result.stdout, result.stderr

    world.rot(place(store, a_chunk(store)))
    code, out, err = run("fsck", "--read-data")
    assert code == 20
    assert "casstore fsck --read-data --repair" in err
    code, out, err = run("fsck", "--read-data", "--repair")
    assert code == 20
    assert "affects data:v0/a/shared bytes 0-" in out
    assert "log the files" in err
    log(world.open(), "again", V0)
    assert run("fsck", "--read-data", "--repair")[0] == 0
    assert run("fsck", "--read-data=100%")[0] == 0
    assert run("fsck", "--read-data", "0.5%")[0] == 0
    for word in ("0%", "101%", "5", "x%", "-1%"):
        assert run("fsck", f"--read-data={word}")[0] == 2
