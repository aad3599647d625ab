"""kill -9 after every effect of an optimizing collection (as in test_kill.py), and no room for what it writes."""

import errno
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from casstore import Artifact, ChunkerParams, Runtime, Settings, Store, StoreConfig
from casstore.backend.osops import OsOps, StrPath
from casstore.testing.checks import check_no_garbage, read_files, recount, replayed, view_hash
from casstore.testing.record import RecordingOps
from casstore.testing.worlds import NoSync

KILLED = 137
CONFIG = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=4096, pack_bytes=65536, node_bytes=512
)
VERSIONS = 3

T = TypeVar("T")
Content = dict[str, bytes]


def versions() -> list[Content]:
    """Noise of which a byte in 900 is another in each version: hardly a chunk is the same, all resemble."""
    drawn = random.Random(17)
    files = {name: bytearray(drawn.randbytes(12000)) for name in ("a", "d/b", "d/c")}
    found: list[Content] = []
    for _ in range(VERSIONS):
        for data in files.values():
            for at in range(drawn.randrange(900), len(data), 900):
                data[at] ^= 0x55
        found.append({name: bytes(data) for name, data in files.items()})
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with versions that resemble one another, and garbage."""
    path = tmp_path_factory.mktemp("before") / "s"
    Store.create(path, config=CONFIG).close()
    with Store.open(path, ops=NoSync()) as store:
        for files in versions():
            artifact = Artifact("ds", type="dataset")
            for name, data in files.items():
                artifact.add_bytes(data, name)
            store.log_artifact(artifact)
        store.delete("ds:v1")
        store.trash.empty()
    return path


def collect(path: Path, ops: RecordingOps | None = None) -> int:
    """What a collection that optimizes saved. Names and workers are fixed, so that effects come in the same order."""
    names = random.Random(5)
    with Store.open(
        path, runtime=Runtime(random_bytes=names.randbytes), settings=Settings(workers=1), ops=ops
    ) as store:
        report = store.gc(optimize=True, grace=0, orphan_age=0)
        assert report.errors == []
        return report.optimized_saved_bytes


def check(path: Path) -> None:
    """Every version is whole, whatever was done; and what was left of it can be done, to the same end."""
    with Store.open(path, ops=NoSync()) as store:
        expected = versions()
        for number in (0, 2):
            assert read_files(store.get(f"ds:v{number}")) == expected[number]
        assert store.fsck(read_data=True).findings == []
        recount(store._engine)
        assert replayed(store._engine) == view_hash(store._engine)
        store.gc(optimize=True, offline=True)
        for number in (0, 2):
            assert read_files(store.get(f"ds:v{number}")) == expected[number]
        check_no_garbage(store)
        assert store.du().stored < 60_000


def test_killed_at_every_effect(before: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(before, whole)
    ops = RecordingOps(whole)
    assert collect(whole, ops) > 30_000
    print(len(ops.trace), "effects")
    check(whole)
    for at in range(1, len(ops.trace) + 2):
        path = tmp_path / f"killed-{at}"
        shutil.copytree(before, path)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.environ["CASSTORE_CRASH_AT"] = str(at)
                collect(path)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == (KILLED if at <= len(ops.trace) else 0)
        check(path)
        shutil.rmtree(path)


class FullOps(OsOps):
    """A disk that says it has room, and takes no pack all the same."""

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        if op == "write" and sum(map(len, data)) > 8192:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super()._run(op, path, call, target=target)


def test_without_room_everything_stays_as_it_is(before: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    shutil.copytree(before, path)
    with Store.open(path) as store:
        store.gc(grace=0)
        packs = {file.name for file in path.glob("packs/*/*") if file.stat().st_size > 8192}
    with Store.open(path, ops=FullOps()) as store:
        report = store.gc(optimize=True, grace=0)
        assert report.optimized_saved_bytes < 1000
        assert "no room" in report.notes[0]
    assert {file.name for file in path.glob("packs/*/*")} >= packs
    assert packs
    assert not [*path.glob("tmp/*")]
    check(path)
