"""Pins keep content, and nothing else does it for them (GC.md §3: pins; docs/GC.md I2).

Guards: what is pinned, by a user, a draft or a long read, stays readable through purge and collection with grace 0; it
is garbage the moment the last pin lets go or has expired by the log's clock; a read never fails because of its pin.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from casstore import (
    Artifact,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PinInfo,
    ReadOnlyError,
    Runtime,
    Settings,
    Store,
    Version,
    VersionNotFoundError,
)
from casstore import contents as contents_module
from casstore.checkout import writing as checkout_module
from casstore.cli import main
from casstore.engine import Engine
from casstore.errors import BackendError
from casstore.pin import DRAFT, LONG_READ, LongRead
from casstore.testing.checks import check_no_garbage, read_files, recount
from casstore.testing.machine import START
from casstore.testing.recipes import SMALL

DAY = timedelta(days=1)
_random = random.Random(12)
BIG = _random.randbytes(60_000)
FILES = {"big": BIG, "one": b"one", **{f"n/{i:02}": _random.randbytes(900) for i in range(20)}}


@dataclass
class World:
    """A place for a store, its clocks, and the handles on it."""

    path: Path
    now: datetime = START
    ticks: float = 0.0
    handles: list[Store] = field(default_factory=list)

    def open(self, *, read_only: bool = False, writer: str = "host:17") -> Store:
        runtime = Runtime(
            clock=lambda: self.now,
            monotonic=lambda: self.ticks,
            sleep=lambda _: None,
            actor="ann",
            writer=writer,
        )
        settings = Settings(workers=1, index_map_bytes=1 << 20)
        if not self.path.exists():
            store = Store.create(self.path, config=SMALL, runtime=runtime, settings=settings)
        else:
            store = Store.open(self.path, runtime=runtime, settings=settings, read_only=read_only)
        self.handles.append(store)
        return store


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "store")
    yield world
    for store in world.handles:
        store.close()


@pytest.fixture
def store(world: World) -> Store:
    return world.open()


def log(store: Store, name: str, files: dict[str, bytes]) -> Version:
    artifact = Artifact(name, type="dataset")
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact)


def destroy(store: Store, ref: str) -> None:
    """Trash, purge and collect without any grace."""
    store.delete(ref, delete_aliases=True)
    store.trash.purge(ref)
    collect(store)


def collect(store: Store) -> None:
    store.gc(grace=0, max_waste=0, orphan_age=0)


def stored(world: World) -> int:
    return sum(file.stat().st_size for file in world.path.glob("packs/*/*"))


# ---------------------------------------------------------------- users' own


def test_a_pin_says_what_it_holds_for_whom_and_until_when(world: World, store: Store) -> None:
    version = log(store, "data", FILES)
    info = store.pin("data:v0", "training run 12", ttl=3 * DAY)
    assert info == PinInfo(
        info.id,
        "ann@host:17",
        "training run 12",
        (version.digest,),
        ("data:v0",),
        world.now,
        world.now + 3 * DAY,
        expired=False,
    )
    assert len(bytes.fromhex(info.id)) == 16
    assert store.pins() == [info]
    assert world.open(read_only=True).pins() == [info]


def test_a_pinned_version_survives_purge_and_collection(world: World, store: Store) -> None:
    version = log(store, "data", FILES)
    files = list(version.files())
    info = store.pin("data:v0", "keep")
    destroy(store, "data:v0")
    assert {entry.path: entry.read() for entry in files} == FILES
    assert store.pins()[0].refs == ()
    recount(store._engine)
    store.unpin(info.id)
    collect(store)
    assert stored(world) == 0
    assert store.pins() == []


def test_a_digest_of_data_or_of_a_node_can_be_pinned(world: World, store: Store) -> None:
    """Not only what is the root of a version: a chunk alone, or the list of chunks of one file."""
    version = log(store, "data", FILES)
    one, big = version["one"], version["big"]
    assert big.tree is not None
    chunk = store.pin(str(one.digest), "a chunk", ttl=None)
    tree = store.pin(str(big.digest), "a file", ttl=None)
    destroy(store, "data:v0")
    assert one.read() == b"one"
    assert big.read() == BIG
    assert stored(world) < sum(map(len, FILES.values()))
    recount(store._engine)
    collect(store)
    check_no_garbage(store)
    store.unpin(tree.id)
    collect(store)
    assert one.read() == b"one"
    with pytest.raises(IntegrityError):
        big.read()
    store.unpin(chunk.id)
    collect(store)
    assert stored(world) == 0


def test_a_list_is_pinned_in_one_commit_or_not_at_all(store: Store) -> None:
    a, b = log(store, "a", {"x": b"1"}), log(store, "b", {"x": b"2"})
    before = len(store.log())
    info = store.pin(["a:v0", "b", "a:latest", str(a.digest)], "both")
    assert info.roots == (a.digest, b.digest)
    assert info.refs == ("a:v0", "b:v0")
    assert len(store.log()) == before + 1
    with pytest.raises(VersionNotFoundError):
        store.pin(["a:v0", "b:v7"], "one is missing")
    assert len(store.pins()) == 1
    recount(store._engine)


def test_what_is_in_the_trash_can_be_pinned_and_what_is_purged_cannot(store: Store) -> None:
    log(store, "data", FILES)
    store.delete("data:v0")
    info = store.pin("data:v0", "wait")
    assert info.refs == ("data:v0",)
    store.unpin(info.id)
    store.trash.purge("data:v0")
    with pytest.raises(VersionNotFoundError):
        store.pin("data:v0", "too late")


def test_a_pin_that_expired_protects_until_a_collection_takes_it(world: World, store: Store) -> None:
    version = log(store, "data", FILES)
    entry = version["big"]
    store.pin("data:v0", "short", ttl=DAY)
    store.delete("data:v0")
    store.trash.purge("data:v0")
    world.now += DAY - timedelta(seconds=1)
    collect(store)
    assert entry.read() == BIG
    assert not store.pins()[0].expired
    world.now += timedelta(seconds=2)
    (info,) = store.pins()
    assert info.expired
    assert world.open(read_only=True).pins()[0].expired
    log(store, "other", {"x": b"y"})
    assert entry.read() == BIG
    collect(store)
    assert store.pins() == []
    with pytest.raises(IntegrityError):
        entry.read()


def test_a_clock_that_is_set_forward_ends_no_pin_early(world: World, store: Store) -> None:
    """By the log's clock one wrong host moves time by a day at most."""
    entry = log(store, "data", FILES)["big"]
    store.pin("data:v0", "three days", ttl=3 * DAY)
    store.delete("data:v0")
    store.trash.purge("data:v0")
    wrong = world.open(writer="wrong:1")
    start = world.now
    world.now = start + 300 * DAY
    log(wrong, "x", {"x": b"x"})
    world.now = start
    collect(store)
    assert entry.read() == BIG


def test_a_pin_without_end_has_none(world: World, store: Store) -> None:
    entry = log(store, "data", FILES)["one"]
    info = store.pin("data:v0", "for ever", ttl=None)
    assert (info.expires_at, info.expired) == (None, False)
    store.delete("data:v0")
    store.trash.purge("data:v0")
    for _ in range(3):
        world.now += timedelta(days=20_000)
        collect(store)
    assert entry.read() == b"one"
    assert not store.pins()[0].expired
    assert store.why(str(entry.digest)).holders


def test_a_pin_is_renewed_from_now(world: World, store: Store) -> None:
    log(store, "data", FILES)
    info = store.pin("data:v0", "run", ttl=2 * DAY)
    world.now += DAY
    renewed = store.renew_pin(info.id, 5 * DAY)
    assert renewed.expires_at == world.now + 5 * DAY
    assert (renewed.id, renewed.created_at, renewed.holder) == (info.id, info.created_at, info.holder)
    assert store.renew_pin(info.id, None).expires_at is None
    assert store.renew_pin(info.id, DAY).expires_at == world.now + DAY


def test_a_pin_past_its_end_can_be_renewed_while_it_is_there(world: World, store: Store) -> None:
    log(store, "data", FILES)
    info = store.pin("data:v0", "run", ttl=DAY)
    world.now += 2 * DAY
    assert store.pins()[0].expired
    assert not store.renew_pin(info.id, DAY).expired
    world.now += DAY / 2
    collect(store)
    assert [held.id for held in store.pins()] == [info.id]


def test_each_of_several_pins_holds(world: World, store: Store) -> None:
    entry = log(store, "data", FILES)["big"]
    pins = [store.pin("data:v0", f"run {n}") for n in range(3)]
    destroy(store, "data:v0")
    for info in pins[:-1]:
        store.unpin(info.id)
        collect(store)
        assert entry.read() == BIG
    store.unpin(pins[-1].id)
    collect(store)
    assert stored(world) == 0


def test_pins_are_listed_by_their_end(store: Store) -> None:
    log(store, "data", FILES)
    for ttl in (3 * DAY, None, DAY, 2 * DAY):
        store.pin("data:v0", str(ttl), ttl=ttl)
    assert [info.purpose for info in store.pins()] == [str(ttl) for ttl in (DAY, 2 * DAY, 3 * DAY, None)]


def test_pinned_holds_for_a_block_and_lets_go_on_error(world: World, store: Store) -> None:
    entry = log(store, "data", FILES)["big"]
    with store.pinned("data:v0", "block") as info:
        assert [held.id for held in store.pins()] == [info.id]
        destroy(store, "data:v0")
        assert entry.read() == BIG
    assert store.pins() == []
    log(store, "data", {"x": b"x"})
    with pytest.raises(ZeroDivisionError), store.pinned("data:v1", "block"):
        raise ZeroDivisionError
    assert store.pins() == []
    with store.pinned("data:v1", "let go inside") as info:
        store.unpin(info.id)


@pytest.mark.parametrize("ttl", [timedelta(0), -DAY, timedelta(days=40_000), 5, "7d"])
def test_a_ttl_that_is_none_is_refused(store: Store, ttl: object) -> None:
    log(store, "data", FILES)
    info = store.pin("data:v0", "x")
    with pytest.raises(InvalidInputError):
        store.pin("data:v0", "x", ttl)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        store.renew_pin(info.id, ttl)  # type: ignore[arg-type]
    assert store.pins() == [info]


@pytest.mark.parametrize("what", [[], "", 7, None, [b"x"], ["data:v0", 7], "blake3:12", "sha256:" + "0" * 64, "a b"])
def test_what_cannot_be_pinned_is_refused(store: Store, what: object) -> None:
    log(store, "data", FILES)
    with pytest.raises((InvalidInputError, TypeError) if what in (7, None) else InvalidInputError):
        store.pin(what, "x")  # type: ignore[arg-type]
    assert store.pins() == []


@pytest.mark.parametrize("purpose", ["", "  ", None, 7, "\ud800"])
def test_a_pin_needs_a_purpose(store: Store, purpose: object) -> None:
    log(store, "data", FILES)
    with pytest.raises(InvalidInputError):
        store.pin("data:v0", purpose)  # type: ignore[arg-type]


def test_errors_of_pins(world: World, store: Store) -> None:
    log(store, "data", FILES)
    for call in (store.unpin, store.renew_pin):
        with pytest.raises(NotFoundError) as unknown:
            call("0" * 32)
        assert unknown.value.exit_code == 10
        assert "casstore pin ls" in unknown.value.hint
        for bad in ("", "0", "x" * 32, None, 7):
            with pytest.raises(InvalidInputError):
                call(bad)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        store.pin("blake3:" + "0" * 64, "unknown")
    with pytest.raises(ReadOnlyError):
        world.open(read_only=True).pin("data:v0", "x")


def test_a_pin_may_lose_the_race_with_a_collection_cleanly(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is collected between the look and the commit: `NotFoundError`, never a pin of nothing."""
    digest = str(log(store, "data", FILES)["one"].digest)
    real = Engine.commit
    calls: list[int] = []

    def commit(engine: Engine, build: object, **how: object) -> object:
        if not calls:
            calls.append(1)
            destroy(store, "data:v0")
        return real(engine, build, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "commit", commit)
    with pytest.raises(NotFoundError):
        store.pin(digest, "too late")
    assert store.pins() == []


# ---------------------------------------------------------------- drafts


def test_a_draft_has_a_pin_with_holder_purpose_and_end(world: World, store: Store) -> None:
    version = log(store, "data", FILES)
    draft = version.new_draft()
    (info,) = store.pins()
    assert (info.holder, info.purpose, info.roots) == ("ann@host:17", "draft of data:v0", (version.digest,))
    assert info.expires_at == world.now + DRAFT
    draft.add_bytes(b"x", "x")
    store.log_artifact(draft)
    assert store.pins() == []


@pytest.mark.parametrize(("age", "renewed"), [(DRAFT * 0.4, False), (DRAFT * 0.6, True), (DRAFT * 1.5, True)])
def test_an_old_draft_renews_its_pin_when_it_is_logged(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch, age: timedelta, *, renewed: bool
) -> None:
    """As logging itself may take long."""
    draft = log(store, "data", FILES).new_draft()
    draft.add_bytes(b"x", "x")
    (before,) = store.pins()
    world.now += age
    seen: list[PinInfo] = []
    store.log_artifact(draft, progress=lambda *_: seen.extend(store.pins()))
    assert seen[0].id == before.id
    assert seen[0].expires_at == (world.now + DRAFT if renewed else before.expires_at)
    assert store.pins() == []


# ---------------------------------------------------------------- long reads


def test_a_download_goes_on_while_its_version_is_purged_and_collected(
    world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches, 40 seconds in, with grace 0."""
    monkeypatch.setattr(checkout_module, "MOST_FILES", 4)
    version = log(store, "data", FILES)
    other = world.open(writer="other:2")
    steps: list[list[str]] = []

    def between(*_: object) -> None:
        steps.append([info.purpose for info in other.pins()])
        if len(steps) == 1:
            world.ticks += 40
        if len(steps) == 2:
            destroy(other, "data:v0")
            forget(store)

    version.download(tmp_path / "out", progress=between)
    assert {path: (tmp_path / "out" / path).read_bytes() for path in FILES} == FILES
    assert steps[:2] == [[], ["download of data:v0"]]
    assert len(steps) > 3
    assert store.pins() == []
    collect(other)
    assert stored(world) == 0


def forget(store: Store) -> None:
    """As if the store had just been opened."""
    engine = store._engine
    engine._nodes.clear()
    engine.reader._cache.clear()
    engine.reader._cached = 0


def test_a_short_read_commits_nothing(store: Store, tmp_path: Path) -> None:
    version = log(store, "data", FILES)
    head = store._engine.view.head()
    version.download(tmp_path / "out")
    version.verify()
    version.verify(tmp_path / "out")
    with version["big"].open() as file:
        assert file.read() == BIG
    assert store._engine.view.refresh() == head


@pytest.mark.parametrize("way", ["stored", "directory"])
def test_a_long_verification_is_pinned(
    world: World, store: Store, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = log(store, "data", FILES)
    version.download(tmp_path / "out")
    seen: set[str] = set()

    def between(*_: object) -> None:
        world.ticks += 40
        seen.update(info.purpose for info in store.pins())

    version.verify(tmp_path / "out" if way == "directory" else None, between)
    assert seen == {"verification of data:v0"}
    assert store.pins() == []


def test_a_very_long_read_renews_its_pin(world: World, store: Store, tmp_path: Path) -> None:
    version = log(store, "data", FILES)
    read = LongRead(store._engine, version._found, "read of")
    world.ticks += LONG_READ
    read.touch()
    (first,) = store.pins()
    world.now += timedelta(hours=13)
    world.ticks += 13 * 3600
    read.touch()
    (second,) = store.pins()
    assert second.id == first.id
    assert second.expires_at == world.now + DAY
    head = store._engine.view.head()
    world.ticks += 3600
    read.touch()
    assert store._engine.view.refresh() == head, "not more often than need be"
    store.unpin(second.id)
    world.ticks += 13 * 3600
    read.touch()
    (third,) = store.pins()
    assert third.id != second.id, "taken anew when somebody let it go"
    read.release()
    assert store.pins() == []


def test_a_download_that_fails_lets_go_of_its_pin(world: World, store: Store, tmp_path: Path) -> None:
    version = log(store, "data", FILES)

    def between(*_: object) -> None:
        world.ticks += 40
        if store.pins():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        version.verify(None, between)
    assert store.pins() == []


def test_a_read_never_fails_because_of_its_pin(
    world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only, full disk, content gone from the log meanwhile: reading goes on as far as there are bytes."""
    log(store, "data", FILES)

    def between(*_: object) -> None:
        world.ticks += 40

    reader = world.open(read_only=True)
    assert reader.get("data:v0").verify(None, between)
    tried: list[int] = []

    def full(engine: Engine, build: object, **how: object) -> object:
        tried.append(1)
        raise BackendError("no space left on device")

    version = store.get("data:v0")
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "commit", full)
        assert version.verify(None, between)
    assert len(tried) > 1, "tried again, a while later"
    gone = LongRead(store._engine, version._found, "read of")
    destroy(store, "data:v0")
    world.ticks += 40
    gone.touch()
    assert gone.pin is None
    assert store.pins() == []


def test_an_open_file_is_read_to_its_end_while_its_version_is_collected(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents_module, "READ_AHEAD", 4096)
    version = log(store, "data", FILES)
    other = world.open(writer="other:2")
    with version["big"].open() as file:
        start = file.read(5000)
        assert other.pins() == []
        world.ticks += 40
        start += file.read(5000)
        assert [info.purpose for info in other.pins()] == ["open file of data:v0"]
        destroy(other, "data:v0")
        forget(store)
        assert start + file.read() == BIG
    log(store, "next", {"x": b"x"})
    assert store.pins() == [], "let go by the next commit"
    collect(store)
    assert set(read_files(store.get("next:v0"))) == {"x"}
    check_no_garbage(store)


def test_a_file_that_is_closed_twice_or_dropped_lets_go_once(world: World, store: Store) -> None:
    version = log(store, "data", FILES)
    file = version["big"].open()
    file.read(10)
    world.ticks += 40
    file.seek(0, io.SEEK_END)
    file.seek(0)
    while file.read(8192):
        pass
    assert len(store.pins()) == 1
    file.close()
    file.close()
    assert len(store._engine.abandoned) == 1
    del file
    store.gc()
    assert store.pins() == []


# ---------------------------------------------------------------- the commands


def test_the_commands(world: World, store: Store) -> None:
    log(store, "data", FILES)

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, [*words, "--store", str(world.path)])
        assert result.exit_code == code, result.output
        return result.stdout

    id = run("pin", "add", "data:v0", "data", "--purpose", "run 12", "--ttl", "30d").strip()
    listed = run("pin", "ls")
    assert id in listed
    assert "run 12" in listed
    assert "data:v0" in listed
    document = json.loads(run("pin", "renew", id, "--ttl", "none", "--json"))
    assert (document["id"], document["expires_at"], document["expired"]) == (id, None, False)
    assert "none" in run("pin", "ls")
    run("pin", "rm", id)
    run("pin", "rm", id, code=10)
    run("pin", "renew", id, code=10)
    run("pin", "add", "data:v7", "--purpose", "x", code=10)
    run("pin", "add", "data:v0", code=2)
    run("pin", "add", "data:v0", "--purpose", "x", "--ttl", "soon", code=2)
    assert json.loads(run("pin", "ls", "--json"))["pins"] == []
