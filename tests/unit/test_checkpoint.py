"""Checkpoints: a new view starts at the newest one and folds only what follows; a bad one is passed over.

Guards A4 (every replica comes to the same state) and issue 3: opening is proportional to checkpoint and tail.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore import Artifact, Settings, Store
from casstore.backend import Backend
from casstore.backend.local import LocalBackend
from casstore.checkpointing import TAIL, is_due
from casstore.errors import BackendError, IntegrityError, ReadOnlyError
from casstore.format.layout import CHECKPOINT_PREFIX, LOG_PREFIX
from casstore.model import SetPolicy
from casstore.state import META, checkpoint_of, head_of
from casstore.testing.checks import read_files, replayed, view_hash
from casstore.testing.recipes import SMALL


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.create(path, config=SMALL, settings=Settings(workers=2)) as opened:
        yield opened


def log(store: Store, text: str, name: str = "c") -> None:
    artifact = Artifact(name)
    artifact.add_bytes(text.encode() * 50, "x")
    store.log_artifact(artifact)


def many_segments(store: Store, count: int) -> None:
    """Commits of next to nothing, a segment each."""
    for number in range(count):
        store._engine.commit(lambda _, n=number: (SetPolicy(b'{"trash_days": %d}' % (n % 30 + 1)),))  # type: ignore[misc]


def forget_view(path: Path) -> None:
    shutil.rmtree(path / "index")


class Reads:
    """Which objects a backend read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        real = LocalBackend.read

        def read(backend: Backend, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            self.keys.append(key)
            return real(backend, key, offset=offset, length=length)  # type: ignore[arg-type]

        monkeypatch.setattr(LocalBackend, "read", read)

    def segments(self) -> list[int]:
        return sorted({int(key.removeprefix(LOG_PREFIX)) for key in self.keys if key.startswith(LOG_PREFIX)})


def test_a_new_view_reads_the_checkpoint_and_what_follows(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(store, "before")
    many_segments(store, 300)
    made = store.checkpoint()
    assert made.made
    assert made.seq == 301
    log(store, "after", "d")
    whole = view_hash(store._engine)
    store.close()
    forget_view(path)
    reads = Reads(monkeypatch)
    with Store.open(path) as again:
        assert view_hash(again._engine) == whole == replayed(again._engine)
        assert read_files(again.get("c")) == {"x": b"before" * 50}
        assert read_files(again.get("d")) == {"x": b"after" * 50}
    opened = reads.segments()[: reads.segments().index(304) + 1] if 304 in reads.segments() else reads.segments()
    assert 301 in opened
    # Checking replays it all once more, so look at what opening alone reads.
    forget_view(path)
    reads.keys.clear()
    Store.open(path).close()
    assert reads.segments() == [301, 302, 303, 304]
    assert Counter(key.startswith(CHECKPOINT_PREFIX) for key in reads.keys)[True] == 2


def test_the_collector_makes_one_when_the_log_has_grown(path: Path, store: Store) -> None:
    log(store, "x")
    store.gc()
    assert checkpoints(path) == []
    many_segments(store, TAIL)
    assert is_due(store._engine)
    store.gc()
    assert len([name for name in checkpoints(path) if "." not in name]) == 1
    assert not is_due(store._engine)
    many_segments(store, TAIL // 2)
    store.gc()
    assert len([name for name in checkpoints(path) if "." not in name]) == 1


def checkpoints(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").iterdir()) if (path / "checkpoints").exists() else []


def test_two_are_kept_and_an_unchanged_store_makes_no_new_one(path: Path, store: Store) -> None:
    for number in range(5):
        log(store, str(number))
        assert store.checkpoint().made
    assert not store.checkpoint().made
    assert len([name for name in checkpoints(path) if "." not in name]) == 2
    assert all(name.partition(".")[0] in checkpoints(path) for name in checkpoints(path))
    with store._engine.view.read() as tables:
        known = checkpoint_of(tables)
        assert known is not None
        assert known.key.removeprefix(CHECKPOINT_PREFIX) == checkpoints(path)[-2]


def test_what_a_killed_one_left_goes_with_the_next_but_one(path: Path, store: Store) -> None:
    log(store, "1")
    store.checkpoint()
    for part in sorted((path / "checkpoints").iterdir()):
        if "." not in part.name:
            part.unlink()  # as if it had been killed before the manifest
    for number in range(3):
        log(store, f"{number}")
        store.checkpoint()
    assert all(name.partition(".")[0] in checkpoints(path) for name in checkpoints(path))


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    file.chmod(0o600)
    data[:] = bytes(byte ^ 0x55 for byte in data)
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", ["manifest damaged", "part damaged", "part gone", "all gone", "of another log"])
def test_a_bad_checkpoint_is_passed_over(path: Path, store: Store, harm: str, tmp_path: Path) -> None:
    log(store, "a")
    store.checkpoint()
    log(store, "b")
    expected = view_hash(store._engine)
    store.close()
    forget_view(path)
    manifest, part = sorted((path / "checkpoints").iterdir(), key=lambda p: len(p.name))
    if harm == "manifest damaged":
        damage(manifest)
    elif harm == "part damaged":
        damage(part)
    elif harm == "part gone":
        part.unlink()
    elif harm == "all gone":
        shutil.rmtree(path / "checkpoints")
    else:
        with Store.create(tmp_path / "other", config=SMALL) as other:
            log(other, "another")
            other.checkpoint()
        shutil.rmtree(path / "checkpoints")
        shutil.copytree(tmp_path / "other" / "checkpoints", path / "checkpoints")
    with Store.open(path) as again:
        assert view_hash(again._engine) == expected
        assert read_files(again.get("c:v0")) == {"x": b"a" * 50}


def test_an_older_one_serves_when_the_newest_is_damaged(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_segments(store, 20)
    store.checkpoint()
    many_segments(store, 20)
    store.checkpoint()
    store.close()
    forget_view(path)
    damage(max((p for p in (path / "checkpoints").iterdir() if "." not in p.name), key=lambda p: p.name))
    reads = Reads(monkeypatch)
    Store.open(path).close()
    assert min(reads.segments()) == 20


def test_a_rebuild_believes_the_log_alone(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    many_segments(store, 20)
    store.checkpoint()
    reads = Reads(monkeypatch)
    store.rebuild_index()
    assert reads.segments() == list(range(1, 23))
    assert not [key for key in reads.keys if key.startswith(CHECKPOINT_PREFIX)]
    assert view_hash(store._engine) == replayed(store._engine)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_start_that_is_interrupted_is_gone_on_with(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Between any two parts; whoever comes next takes up where it stopped, and a fold does not mix with it."""
    monkeypatch.setattr("casstore.checkpoint.PART_BYTES", 2000)
    for number in range(30):
        log(store, str(number))
    store.checkpoint()
    expected = view_hash(store._engine)
    store.close()
    forget_view(path)
    parts = len(checkpoints(path)) - 1
    assert parts > 4
    from casstore.checkpoint import Checkpoints  # noqa: PLC0415

    real = Checkpoints.part
    asked: list[int] = []

    def part(self: Checkpoints, manifest: object, number: int) -> object:
        asked.append(number)
        if len(asked) == at + 1:
            raise Killed
        return real(self, manifest, number)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoints, "part", part)
    with pytest.raises(Killed):
        Store.open(path)
    with Store.open(path) as again:
        assert asked == [*range(at + 1), *range(at, parts)]
        assert view_hash(again._engine) == expected
        with again._engine.view.read() as tables:
            assert head_of(tables).seq == 31
            assert not [key for key, _ in tables.scan(META) if key.startswith(b"local/")]
        log(again, "more")


def test_two_handles_start_one_view_together(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore.checkpoint.PART_BYTES", 2000)
    for number in range(30):
        log(store, str(number))
    store.checkpoint()
    expected = view_hash(store._engine)
    store.close()
    forget_view(path)
    from casstore.checkpoint import Checkpoints  # noqa: PLC0415

    real = Checkpoints.part
    inside = False

    def part(self: Checkpoints, manifest: object, number: int) -> object:
        nonlocal inside
        rows = real(self, manifest, number)  # type: ignore[arg-type]
        if number == 2 and not inside:
            inside = True
            Store.open(path).close()  # the other one overtakes
        return rows

    monkeypatch.setattr(Checkpoints, "part", part)
    with Store.open(path) as again:
        assert inside
        assert view_hash(again._engine) == expected


def test_a_checkpoint_that_reads_back_wrong_is_none(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log(store, "a")
    from casstore.format import checkpoints as module  # noqa: PLC0415

    real = module.decode_rows
    monkeypatch.setattr("casstore.checkpoint.decode_rows", lambda *args: real(*args)[:-1])
    with pytest.raises(IntegrityError, match="not what was written"):
        store.checkpoint()
    assert all("." in name for name in checkpoints(path))


def test_a_full_disk_and_a_reader(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log(store, "a")
    with Store.open(path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.checkpoint()

    def fails(*args: object) -> None:
        raise BackendError("no space left")

    monkeypatch.setattr(LocalBackend, "create", fails)
    with pytest.raises(BackendError):
        store.checkpoint()
    monkeypatch.undo()
    assert store.checkpoint().made


def test_a_read_only_store_starts_from_it_too(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log(store, "a")
    many_segments(store, 50)
    store.checkpoint()
    reads = Reads(monkeypatch)
    with Store.open(path, read_only=True) as reader:
        assert read_files(reader.get("c")) == {"x": b"a" * 50}
    assert min(reads.segments()) == 51


class Start:
    """Another handle that begins the same view and is killed after its first part."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.monkeypatch = path, monkeypatch

    def __call__(self) -> None:
        from casstore.checkpoint import Checkpoints  # noqa: PLC0415

        real = Checkpoints.part

        def part(found: Checkpoints, manifest: object, number: int) -> object:
            if number == 1:
                raise Killed
            return real(found, manifest, number)  # type: ignore[arg-type]

        with self.monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Checkpoints, "part", part)
            Store.open(self.path)


@pytest.mark.parametrize("sees", ["none", "an older one"])
def test_a_start_never_mixes_with_another_beginning(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, sees: str
) -> None:
    """One handle is about to fold the log, or to load an older checkpoint, when another begins with the newest."""
    monkeypatch.setattr("casstore.checkpoint.PART_BYTES", 2000)
    for number in range(20):
        log(store, str(number))
    store.checkpoint()
    for number in range(20):
        store.delete(f"c:v{number}")
        store.trash.purge(f"c:v{number}")
    store.gc(grace=0)
    log(store, "last")
    store.checkpoint()
    expected = view_hash(store._engine)
    store.close()
    forget_view(path)
    from casstore.checkpoint import Checkpoints  # noqa: PLC0415

    real = Checkpoints.newest
    other = Start(path, monkeypatch)
    calls = 0

    def newest(found: Checkpoints, the_log: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            return real(found, the_log)  # type: ignore[arg-type]
        other()
        return None if sees == "none" else found.read(min(key for key in found.listed() if key))

    monkeypatch.setattr(Checkpoints, "newest", newest)
    with Store.open(path) as again:
        assert calls > 1
        assert view_hash(again._engine) == expected == replayed(again._engine)
