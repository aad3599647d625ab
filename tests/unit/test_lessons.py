"""Bugs of others, turned into tests (RELIABILITY §6). Those not here are in `test_gc.py`, under the same names."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from casstore import Artifact, Settings, Store, Version
from casstore.backend import Buffer
from casstore.backend.local import LocalBackend
from casstore.errors import AlreadyExistsError, BackendError, TransientBackendError, VersionNotFoundError
from casstore.format.layout import LOG_PREFIX, PACK_PREFIX
from casstore.testing.checks import check_no_garbage, read_files, recount
from casstore.testing.recipes import SMALL

KIB = 1024
BLOB = random.Random(1).randbytes(200 * KIB)
OTHER = random.Random(2).randbytes(120 * KIB)
TUNING = Settings(workers=2, index_map_bytes=1 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.create(path, config=SMALL, settings=TUNING) as opened:
        yield opened


def log(store: Store, files: dict[str, bytes], name: str = "c", **how: object) -> Version:
    artifact = Artifact(name)
    for name_, data in files.items():
        artifact.add_bytes(data, name_)
    return store.log_artifact(artifact, **how)  # type: ignore[arg-type]


def erase(store: Store, ref: str) -> None:
    store.delete(ref, delete_aliases=True)
    store.trash.purge(ref)


def keys(path: Path, prefix: str) -> set[str]:
    return {p.name for p in (path / prefix).rglob("*") if p.is_file()}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("unlinks", [0, 1, 2])
def test_cache_invalidated_before_delete(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, unlinks: int
) -> None:
    """borg 9748: a collection killed between its deletions; what is logged next relies on no deleted pack."""
    log(store, {"x": BLOB, "y": OTHER})
    log(store, {"z": BLOB[::-1]}, "d")
    stale = Store.open(path, settings=TUNING)
    stale.get("c:v0")
    for ref in ("c:v0", "d:v0"):
        erase(store, ref)
    real = LocalBackend.delete
    done = 0

    def delete(backend: LocalBackend, key: str) -> None:
        nonlocal done
        if key.startswith(PACK_PREFIX):
            if done == unlinks:
                raise Killed
            done += 1
        real(backend, key)

    monkeypatch.setattr(LocalBackend, "delete", delete)
    with pytest.raises(Killed):
        store.gc(grace=0)
    monkeypatch.undo()
    for handle in (stale, Store.open(path, settings=TUNING)):
        version = log(handle, {"x": BLOB, "y": OTHER}, f"again{id(handle)}")
        assert read_files(version) == {"x": BLOB, "y": OTHER}
        assert handle.fsck(read_data=True).clean
        handle.close()


def test_stale_head_hint(path: Path, store: Store) -> None:
    """ClickHouse 114194: no hint of where the log ends has authority: a collector with an old view, or a view that
    begins at an old checkpoint, finds the head itself before it frees anything."""
    log(store, {"x": BLOB})
    store.checkpoint()
    collector = Store.open(path, settings=TUNING)
    erase(store, "c:v0")
    log(store, {"x": BLOB}, "d")  # takes the dead content up again
    collector.gc(grace=0, offline=False, max_waste=0.0)
    assert read_files(store.get("d")) == {"x": BLOB}
    collector.close()
    store.close()
    shutil.rmtree(path / "index")
    with Store.open(path, settings=TUNING) as fresh:
        fresh.gc(grace=0, max_waste=0.0)
        assert read_files(fresh.get("d")) == {"x": BLOB}


def test_slot_resurrection(path: Path, store: Store) -> None:
    """slatedb RFC 0026: a position of the log, once taken, is never free again: no collection removes a segment, so
    a writer that slept cannot get one that is in nobody's history."""
    log(store, {"x": BLOB})
    erase(store, "c:v0")
    segments = keys(path, "log")
    for _ in range(3):
        store.gc(offline=True)
        assert keys(path, "log") >= segments
        segments = keys(path, "log")
    assert segments == {f"{n:020d}" for n in range(1, len(segments) + 1)}
    for taken in sorted(segments):
        with pytest.raises(AlreadyExistsError):
            store._engine.backend.create(f"{LOG_PREFIX}{taken}", b"late")


def test_late_delete_aba(path: Path, store: Store) -> None:
    """xet's nonce: the same bytes are never under the same name twice, so a deletion that comes late hits nothing."""
    log(store, {"x": BLOB})
    first = keys(path, "packs")
    erase(store, "c:v0")
    store.gc(grace=0)
    log(store, {"x": BLOB}, "d")
    assert not first & keys(path, "packs")
    for name in first:
        store._engine.backend.delete(f"{PACK_PREFIX}{name[:2]}/{name}")
    assert read_files(store.get("d")) == {"x": BLOB}
    assert store.fsck(read_data=True).clean


def test_path_normalisation_relative_absolute(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """lakeFS 4658: one store by many names: nothing that was logged by one name is garbage by another."""
    monkeypatch.chdir(path.parent)
    (path.parent / "link").symlink_to("store", target_is_directory=True)
    (path.parent / "sub").mkdir()
    places = ["store", "./store/", "sub/../store", str(path), f"file://{path}", "link", f"{path}//"]
    for number, place in enumerate(places):
        with Store.open(place, settings=TUNING) as other:
            log(other, {"x": BLOB[number:]}, f"c{number}")
    for place in places:
        with Store.open(place, settings=TUNING) as other:
            assert other.gc(grace=0, max_waste=0.0, orphan_age=0).freed_bytes == 0
    for number in range(len(places)):
        assert read_files(store.get(f"c{number}")) == {"x": BLOB[number:]}


def test_index_pruning_never_frees(path: Path, store: Store) -> None:
    """zfs 16713: an index that lost entries, or all of them, makes nothing garbage."""
    log(store, {"x": BLOB, "y": OTHER})
    log(store, {"x": BLOB}, "d")
    before = keys(path, "packs")
    store.close()
    shutil.rmtree(path / "index")
    with Store.open(path, settings=TUNING) as fresh:
        fresh.gc(grace=0, max_waste=0.0, orphan_age=0)
        assert keys(path, "packs") == before
        fresh.rebuild_index()
        fresh.gc(offline=True)
        assert read_files(fresh.get("c")) == {"x": BLOB, "y": OTHER}
        recount(fresh._engine)


def test_compaction_gap(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """kopia 5371: packs are merged and checkpoints replaced in several runs, some of them cut off; every version is
    there after each, also for a view that begins at what is left."""
    files = {f"c{n}": {"x": random.Random(n).randbytes(9 * KIB)} for n in range(24)}
    for name, content in files.items():
        log(store, content, name)
    for run in range(6):
        erase(store, f"c{run}:v0")
        del files[f"c{run}"]
        if run % 2:
            store.gc(grace=0, max_waste=0.0, max_bytes=10 * KIB)
        else:
            real = LocalBackend.create

            def create(
                backend: LocalBackend, key: str, data: Buffer | Sequence[Buffer], run: int = run, real: object = real
            ) -> None:
                if key.startswith(PACK_PREFIX) and run == 2:
                    raise Killed
                assert callable(real)
                real(backend, key, data)

            monkeypatch.setattr(LocalBackend, "create", create)
            with suppress(Killed):
                store.gc(grace=0, max_waste=0.0)
            monkeypatch.undo()
        store.checkpoint()
        shutil.copytree(path, copy := path.parent / f"copy{run}", ignore=shutil.ignore_patterns("index"))
        with Store.open(copy, settings=TUNING) as fresh:
            for name, content in files.items():
                assert read_files(fresh.get(name)) == content
            with pytest.raises(VersionNotFoundError):
                fresh.get(f"c{run}")
    store.gc(offline=True)
    check_no_garbage(store)


@pytest.mark.parametrize("answer", ["412 after own success", "409", "lost after success"])
def test_conflict_409_vs_412(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """opendal 6741: what a create answers is one thing, what is at the position is another; the latter decides."""
    real = LocalBackend.create
    answers = 0

    def create(backend: LocalBackend, key: str, data: Buffer | Sequence[Buffer]) -> None:
        nonlocal answers
        if not key.startswith(LOG_PREFIX) or answers:
            real(backend, key, data)
            return
        answers += 1
        if answer == "409":
            raise TransientBackendError("another operation is in progress")
        real(backend, key, data)
        raise AlreadyExistsError("412") if answer.startswith("412") else BackendError("the connection was closed")

    monkeypatch.setattr(LocalBackend, "create", create)
    if answer == "409":
        with pytest.raises(TransientBackendError):
            log(store, {"x": BLOB})
        with pytest.raises(Exception, match="no collection"):
            store.get("c")
        assert log(store, {"x": BLOB}).version == "v0"
    else:
        assert log(store, {"x": BLOB}).version == "v0"
    assert [v.version for v in store.versions("c")] == ["v0"]
    assert read_files(store.get("c")) == {"x": BLOB}
    store.gc(grace=0, orphan_age=0)
    check_no_garbage(store)


_RACE = """
import sys
from casstore.backend.local import LocalBackend
from casstore.backend.osops import OsOps
from casstore.errors import AlreadyExistsError
from pathlib import Path
me, root = sys.argv[1], Path(sys.argv[2])
backend = LocalBackend(root, OsOps(crash_at=0))
sys.stdin.read(1)
won = []
for n in range(150):
    try:
        backend.create(f"log/{n:020d}", me.encode() * 2000)
        won.append(n)
    except AlreadyExistsError:
        pass
print(*won)
"""


def test_fsspec_local_create_race(tmp_path: Path) -> None:
    """fsspec's local create is exists() + write: 3 of 300 slots were won twice. Ours are won once, and whole."""
    root = tmp_path / "b"
    root.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, str(n), str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("g")
        racer.stdin.flush()
    won = [racer.communicate()[0].split() for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert sorted(int(n) for mine in won for n in mine) == list(range(150))
    for me, mine in enumerate(won):
        for n in mine:
            assert (root / "log" / f"{int(n):020d}").read_bytes() == str(me).encode() * 2000
    assert os.listdir(root / "tmp") == []
