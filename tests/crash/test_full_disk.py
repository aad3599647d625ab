"""Collecting on a full disk, a real one where it may be mounted, and one of `OsOps` that counts everywhere.

Promises guarded: a log that finds no room fails cleanly (exit 30) and leaves nothing; after a deletion a collection
frees its bytes on the same disk, exit 0, and the next log works; whole dead packs go before anything is copied; what
cannot be copied is a remark, no error; with not one byte free, what the dead left, packs that ended earlier and the
ballast are given up; without any of them the error says what to do and nothing has changed; reading goes on.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import lmdb
import pytest
from click.testing import CliRunner

from casstore import Artifact, BackendError, InvalidInputError, Store
from casstore.backend.osops import OsOps, StrPath
from casstore.backend.room import is_full
from casstore.cli import main
from casstore.index import MemoryIndex, SpillIndex, Storage
from casstore.index.files import translated
from casstore.overlay import Tables
from casstore.state import head_of
from casstore.testing.checks import check_no_garbage, replayed, view_hash

T = TypeVar("T")

MIB = 1 << 20
BLOCK = 4096
SIZE = 24 * MIB
FILL = (MIB, BLOCK, 1)
WAIT = 60


def noise(seed: object, size: int) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


# ---------------------------------------------------------------- disks


class FullOps(OsOps):
    """A disk of so many bytes below a directory; the index is elsewhere. What it holds is looked up each time."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.capacity = SIZE

    def used(self) -> int:
        found = {}
        for directory, names, files in os.walk(self.root):
            if directory == str(self.root / "store"):
                names[:] = [name for name in names if name != "index"]
            for name in files:
                with suppress(FileNotFoundError):
                    info = os.stat(os.path.join(directory, name))
                    found[info.st_ino] = -(-info.st_size // BLOCK) * BLOCK
        return sum(found.values())

    def _need(self, size: int) -> None:
        if self.used() + size > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _run(
        self,
        op: str,
        path: StrPath,
        call: Callable[[], T],
        *,
        target: StrPath = "",
        data: Sequence[memoryview] = (),
    ) -> T:
        if op == "write":
            self._need(sum(map(len, data)))
        return super()._run(op, path, call, target=target)

    def allocate(self, fd: int, path: StrPath, size: int) -> None:
        self._need(size)
        super().allocate(fd, path, size)


@dataclass
class Disk:
    """A small disk with a store on it."""

    root: Path
    ops: FullOps | None = None

    @property
    def path(self) -> Path:
        return self.root / "store"

    def open(self) -> Store:
        return Store.open(self.path, ops=self.ops)

    def fill(self) -> None:
        """Leave not one byte."""
        if self.ops is not None:
            self.ops.capacity = self.ops.used()
            return
        with (self.root / "other").open("ab", buffering=0) as file:
            # Blocks of files that were removed come back when the journal is committed, so once is not enough.
            for _ in range(3):
                for size in FILL:
                    with suppress(OSError):
                        while True:
                            file.write(bytes(size))
                with suppress(OSError):
                    os.fsync(file.fileno())
        assert os.statvfs(self.root).f_bavail == 0

    def give_back(self, size: int) -> None:
        """Free some of what `fill` took."""
        if self.ops is not None:
            self.ops.capacity += size
        else:
            os.truncate(self.root / "other", (self.root / "other").stat().st_size - size)


def run(*command: object) -> bool:
    words = [*map(str, command)]
    return (
        shutil.which(words[0]) is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0
    )


@contextmanager
def mounted(kind: str, scratch: Path) -> Iterator[Path]:
    where = scratch / "disk"
    where.mkdir()
    image = scratch / "image"
    if kind == "tmpfs":
        done = run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", where)
    else:
        with image.open("wb") as file:
            file.truncate(SIZE + 10 * MIB)  # with the journal, so that some 2 MiB are left when 3 MiB do not fit
        done = run("mkfs.ext4", "-q", "-m", "0", image) and run("mount", "-o", "loop", image, where)
    if not done:
        pytest.skip(f"{kind} cannot be mounted here: it takes root and a kernel that lets it")
    try:
        yield where
    finally:
        assert run("umount", where), "something on it is still open"


@pytest.fixture(params=["counted", "tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "counted":
        disk = Disk(tmp_path, FullOps(tmp_path))
        Store.create(disk.path).close()
        yield disk
        return
    with mounted(request.param, tmp_path) as where:
        Store.create(where / "store").close()
        yield Disk(where)


def artifact(name: str, files: dict[str, bytes]) -> Artifact:
    made = Artifact(name)
    for path, data in files.items():
        made.add_bytes(data, path)
    return made


def log(store: Store, name: str, seed: object, size: int = 3 * MIB) -> None:
    store.log_artifact(artifact(name, {"f": noise(seed, size)}))


def log_until_full(store: Store) -> int:
    """How many versions there was room for."""
    for number in range(100):
        try:
            log(store, "c", number)
        except BackendError as error:
            failure = error
            break
    assert (failure.errno, failure.exit_code) == (errno.ENOSPC, 30)
    assert "free some space" in failure.hint
    return number


def verify_all(store: Store) -> int:
    found = [version for info in store.collections() for version in store.versions(info.name)]
    for version in found:
        version.verify()
    assert store.fsck(read_data=True).findings == []
    assert replayed(store._engine) == view_hash(store._engine)
    return len(found)


def erase(store: Store, ref: str) -> None:
    store.delete(ref, delete_aliases=True)
    store.trash.purge(ref)


def leftovers(disk: Disk) -> list[str]:
    return os.listdir(disk.path / "tmp")


def contents(disk: Disk) -> dict[str, int]:
    """Everything but the index, which changes as it likes."""
    found = [path for path in disk.path.rglob("*") if path.is_file() and "index" not in path.parts]
    return {str(path.relative_to(disk.path)): path.stat().st_size for path in found}


# ---------------------------------------------------------------- what must work


def test_a_deletion_and_a_collection_make_room_again(disk: Disk) -> None:
    with disk.open() as store:
        count = log_until_full(store)
        assert leftovers(disk) == []
        assert verify_all(store) == count > 3
        erase(store, "c:v0")
        report = store.gc(grace=0)
        assert report.freed_bytes > 3 * MIB
        assert (report.errors, report.notes) == ([], [])
        log(store, "d", "next")
        assert verify_all(store) == count
    with disk.open() as store:
        assert verify_all(store) == count


def test_with_no_byte_free_the_ballast_is_given_up_and_made_again(disk: Disk) -> None:
    with disk.open() as store:
        assert store.ballast(MIB) == store.ballast() == MIB
        assert store.du().other > MIB
        count = log_until_full(store)
        erase(store, "c:v0")
        disk.fill()
        with pytest.raises(BackendError):
            store.get("c").add_alias("more")
        report = store.gc(grace=0)
        assert report.freed_bytes > 3 * MIB
        assert [note.split(":")[0] for note in report.notes] == ["the disk was full", "the ballast was made again"]
        assert report.errors == []
        assert store.ballast() == MIB
        assert verify_all(store) == count - 1
        log(store, "d", "next", MIB)
        assert leftovers(disk) == []
        check_no_garbage(store)


def test_without_a_ballast_it_says_so_and_a_few_bytes_do(disk: Disk) -> None:
    with disk.open() as store:
        count = log_until_full(store)
        erase(store, "c:v0")
        disk.fill()
        before = contents(disk)
        for offline in (False, True):
            with pytest.raises(BackendError, match="the disk is full, and nothing could be given up") as info:
                store.gc(grace=0, offline=offline)
            assert (info.value.errno, info.value.exit_code) == (errno.ENOSPC, 30)
            assert "casstore ballast" in info.value.hint
        assert contents(disk) == before
        assert verify_all(store) == count - 1, "reading goes on"
        disk.give_back(64 * 1024)
        assert store.gc(grace=0).freed_bytes > 3 * MIB
        log(store, "d", "next", MIB)
        assert verify_all(store) == count


def test_with_no_byte_free_packs_that_ended_earlier_make_room(disk: Disk) -> None:
    with disk.open() as store:
        count = log_until_full(store)
        erase(store, "c:v0")
        assert store.gc(grace=3600).pending_bytes > 3 * MIB
        erase(store, "c:v1")
        disk.fill()
        report = store.gc(grace=0)
        assert report.freed_bytes > 6 * MIB
        assert (report.errors, report.notes) == ([], [])
        assert verify_all(store) == count - 2
        check_no_garbage(store)


def test_with_no_byte_free_what_the_dead_left_makes_room(disk: Disk) -> None:
    with disk.open() as store:
        log_until_full(store)
        erase(store, "c:v0")
        (disk.path / "tmp" / "half").write_bytes(bytes(64 * 1024))
        disk.fill()
        report = store.gc(grace=0)
        assert report.freed_bytes > 3 * MIB
        assert (report.errors, report.notes) == ([], [])
        assert leftovers(disk) == []


def test_whole_packs_go_before_anything_is_copied(disk: Disk) -> None:
    """There is room to copy live content only after a whole pack is gone; then it is copied, in the same run."""
    with disk.open() as store:
        store.ballast(64 * 1024)
        kept = noise("kept", 2 * MIB)
        store.log_artifact(artifact("mixed", {"kept": kept, "gone": noise("gone", 2 * MIB)}))
        store.log_artifact(artifact("mixed", {"kept": kept}))
        log(store, "whole", 1, 6 * MIB)
        erase(store, "mixed:v0")
        erase(store, "whole:v0")
        disk.fill()
        report = store.gc(grace=0, max_waste=0.0)
        assert report.errors == []
        assert report.repacked_bytes > 2 * MIB
        assert report.freed_bytes > 8 * MIB
        assert not [note for note in report.notes if "repack" in note]
        assert verify_all(store) == 1
        check_no_garbage(store)


def test_what_there_is_no_room_to_copy_is_a_remark(disk: Disk) -> None:
    with disk.open() as store:
        kept = noise("kept", 4 * MIB)
        store.log_artifact(artifact("mixed", {"kept": kept, "gone": noise("gone", 3 * MIB)}))
        store.log_artifact(artifact("mixed", {"kept": kept}))
        erase(store, "mixed:v0")
        disk.fill()
        disk.give_back(512 * 1024)
        report = store.gc(grace=0, max_waste=0.0)
        assert report.errors == []
        assert [note for note in report.notes if "is not repacked: there is no room to copy it" in note]
        assert leftovers(disk) == []
        assert verify_all(store) == 1
        if disk.ops is None:
            shown = CliRunner().invoke(main, ["gc", "--json", "--max-waste", "0", "--store", str(disk.path)])
            assert shown.exit_code == 0
            assert "not repacked" in shown.stderr
            assert json.loads(shown.stdout)["notes"]
        disk.give_back(8 * MIB)
        report = store.gc(grace=0, max_waste=0.0)
        assert (report.errors, report.notes) == ([], [])
        assert report.freed_bytes > 2 * MIB
        check_no_garbage(store)


def test_a_store_without_an_index_opens_and_collects_on_a_full_disk(disk: Disk) -> None:
    with disk.open() as store:
        store.ballast(MIB)
        count = log_until_full(store)
        erase(store, "c:v0")
    shutil.rmtree(disk.path / "index")
    disk.fill()
    with disk.open() as store:
        assert verify_all(store) == count - 1
        assert store.gc(grace=0).freed_bytes > 3 * MIB
    with disk.open() as store:
        log(store, "d", "next", MIB)
        assert verify_all(store) == count


def test_a_ballast_is_made_resized_and_removed(disk: Disk) -> None:
    with disk.open() as store:
        free = disk.ops.used() if disk.ops else -os.statvfs(disk.root).f_bavail
        assert store.ballast() == 0
        assert store.ballast(2 * MIB) == 2 * MIB
        blocks = (disk.path / "ballast").stat().st_blocks * 512
        assert blocks >= 2 * MIB, "really allocated"
        assert store.ballast(MIB) == MIB
        assert store.du().other >= MIB
        assert store.fsck(read_data=True).clean
        with pytest.raises(BackendError) as info:
            store.ballast(2 * SIZE)
        assert info.value.errno == errno.ENOSPC
        assert leftovers(disk) == []
        assert store.ballast() == 0, "the old one went first, as there may be no room for both"
        store.ballast(MIB)
        assert store.ballast(0) == 0
        assert (disk.ops.used() if disk.ops else -os.statvfs(disk.root).f_bavail) == free
        for wrong in (-1, 1.5, True, "1"):
            with pytest.raises(InvalidInputError):
                store.ballast(wrong)  # type: ignore[arg-type]


def test_a_memory_store_has_no_ballast() -> None:
    with Store.open("memory://ballast", create=True) as store:
        assert store.ballast() == 0
        with pytest.raises(InvalidInputError):
            store.ballast(MIB)


def test_the_command_line_keeps_a_ballast(tmp_path: Path) -> None:
    Store.create(tmp_path / "s").close()

    def ballast(*words: str) -> int:
        done = CliRunner().invoke(main, ["ballast", *words, "--json", "--store", str(tmp_path / "s")])
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        assert document.pop("schema") == "ballast/1"
        assert [*document] == ["bytes"]
        return int(document["bytes"])

    assert [ballast(), ballast("64KiB"), ballast(), ballast("none"), ballast()] == [0, 65536, 65536, 0, 0]
    assert CliRunner().invoke(main, ["ballast", "lots", "--store", str(tmp_path / "s")]).exit_code == 2


# ---------------------------------------------------------------- an index without room


class Cramped:
    """A storage whose updates find no room while ``full``."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.full = True
        self.read = inner.read
        self.reset = inner.reset
        self.close = inner.close
        self.compact = inner.compact

    def update(self, body: Callable[[Tables], T]) -> T:
        def fail(tables: Tables) -> NoReturn:
            body(tables)
            error = BackendError("index: full")
            error.errno = errno.ENOSPC
            raise error

        return self.inner.update(fail if self.full else body)


def test_a_view_without_room_shows_what_the_log_says(tmp_path: Path) -> None:
    """Also when another process finds room meanwhile; and it writes all down when there is room again."""
    path = tmp_path / "s"
    with Store.create(path) as store:
        log(store, "c", 0, 1000)
        view = store._engine.view
        inner = view._storage
        cramped = Cramped(inner)
        view._storage = cramped
        for number in range(1, 4):
            log(store, "c", number, 1000)
        assert isinstance(view._storage, SpillIndex)
        store.delete("c:v0")
        store.trash.purge("c:v0")
        assert store.gc(grace=0).freed_bytes
        with inner.read() as tables:
            stale = head_of(tables).seq
        assert stale < view.head().seq
        assert verify_all(store) == 3
        # another handle catches up, with room: first not as far as this one is …
        head = view.head()
        with Store.open(path) as other:
            assert other._engine.view.head() == head
            log(other, "c", 9, 1000)
            # … then farther
            assert store.get("c").number == 4
            assert verify_all(store) == 4
        log(store, "c", 10, 1000)
        cramped.full = False
        log(store, "c", 11, 1000)
        with inner.read() as tables:
            assert head_of(tables) == view.head()
        assert verify_all(store) == 6
    with Store.open(path) as store:
        assert verify_all(store) == 6


def position(tables: Tables) -> int:
    return int(tables.get("t", b"position") or b"0")


def step(number: int) -> Callable[[Tables], None]:
    """From one position to the next; nothing if it is there already."""

    def body(tables: Tables) -> None:
        if position(tables) == number - 1:
            tables.put("t", b"position", b"%d" % number)
            tables.put("t", b"%03d" % number, b"x")
            if number > 2:
                tables.delete("t", b"%03d" % (number - 2))

    return body


def content(storage: Storage) -> list[tuple[bytes, bytes]]:
    with storage.read() as tables:
        return [*tables.scan("t")]


def at(number: int) -> MemoryIndex:
    """Brought to a position without any detour."""
    index = MemoryIndex(("t",))
    for n in range(1, number + 1):
        index.update(step(n))
    return index


def spilled(base: MemoryIndex) -> tuple[SpillIndex, Cramped]:
    """Six steps, of which the base has had room for the first."""
    base.update(step(1))
    cramped = Cramped(base)
    spill = SpillIndex(cramped, position)
    for number in range(2, 7):
        spill.update(step(number))
    assert content(base) == content(at(1))
    return spill, cramped


def test_what_is_in_memory_holds_above_any_position_before_its_own() -> None:
    """A base that another process brings forward, to the middle of what is kept above it, changes nothing."""
    base = MemoryIndex(("t",))
    spill, _ = spilled(base)
    for ahead in range(1, 7):
        base.update(step(ahead))
        assert content(spill) == content(at(6)), f"the base is at {ahead}"
    base.update(step(7))
    assert content(spill) == content(at(7))
    base.reset()
    assert content(spill) == [], "made again from nothing"


def test_an_index_that_is_full_says_so_by_the_number() -> None:
    assert is_full(translated(lmdb.DiskError("mdb_txn_commit: No space left on device")))
    assert not is_full(translated(lmdb.MapFullError("the map")))


def test_changes_that_lead_nowhere_are_not_kept_in_memory() -> None:
    spill, _ = spilled(MemoryIndex(("t",)))
    with pytest.raises(BackendError):
        spill.update(lambda tables: tables.put("t", b"other", b"x"))
    spill.update(step(3))
    assert content(spill) == content(at(6))


@pytest.mark.parametrize("ahead", [1, 4, 6])
def test_what_is_in_memory_is_written_down_when_there_is_room(ahead: int) -> None:
    base = MemoryIndex(("t",))
    spill, cramped = spilled(base)
    for number in range(2, ahead + 1):
        base.update(step(number))
    cramped.full = False
    spill.update(step(7))
    assert content(base) == content(spill) == content(at(7))
    base = MemoryIndex(("t",))
    spill, cramped = spilled(base)
    cramped.full = False
    cramped.close = lambda: None
    spill.close()
    assert content(base) == content(at(6)), "also when it is closed"


READERS = """
import sys, threading
from casstore import Store
with Store.open(sys.argv[1]) as store:
    gate, ready = threading.Barrier(301), threading.Barrier(301)
    def read():
        with store._engine.view.read() as tables:
            ready.wait()
            gate.wait()
    threads = [threading.Thread(target=read) for _ in range(300)]
    [thread.start() for thread in threads]
    ready.wait()
    gate.wait()
    [thread.join() for thread in threads]
print("fine")
"""


def test_many_readers_at_once_on_a_full_disk(tmp_path: Path) -> None:
    """The table of readers is mapped memory: without blocks of its own its first touch would be SIGBUS."""
    with mounted("tmpfs", tmp_path) as where:
        disk = Disk(where)
        with Store.create(disk.path) as store:
            log(store, "c", 1, 1000)
        disk.fill()
        done = subprocess.run(
            [sys.executable, "-c", READERS, disk.path], capture_output=True, text=True, check=False, timeout=WAIT
        )
        assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
