"""Guards that an index gives whole transactions and, whatever happens to its files, the right content or none."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.errors import BackendError, InvalidInputError, LimitError, ReadOnlyError
from casstore.index import IndexDamagedError, LmdbIndex, MemoryIndex, Tables, environment, files, lmdb_index

MIB = 1024 * 1024
NAMES = ("a", "b")
Index = LmdbIndex | MemoryIndex
Make = Callable[[], Index]


def open_lmdb(directory: Path, boot: str = "boot-1", *, read_only: bool = False, map_bytes: int = MIB) -> LmdbIndex:
    return LmdbIndex.open(directory, NAMES, map_bytes=map_bytes, boot_id=boot, read_only=read_only)


def put(index: Index, key: bytes, value: bytes = b"v", table: str = "a") -> None:
    index.update(lambda tables: tables.put(table, key, value))


def get(index: Index, key: bytes, table: str = "a") -> bytes | None:
    with index.read() as tables:
        return tables.get(table, key)


def delete(tables: Tables, key: bytes) -> None:
    tables.delete("a", key)


def fill(index: Index, keys: int = 2000, size: int = 100) -> None:
    def body(tables: Tables) -> None:
        for number in range(keys):
            tables.put("a", b"%08d" % number, b"x" * size)

    index.update(body)


def data_file(directory: Path) -> Path:
    return max((directory / "lmdb-v1").glob("[0-9]*"), key=lambda path: int(path.name)) / "data.mdb"


PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from casstore.index import LmdbIndex
directory = Path(sys.argv[1])
index = LmdbIndex.open(directory, ("a", "b"), map_bytes=1 << 20, boot_id="boot-1")
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(lmdb_index.__file__).parents[2],
    )


def run(code: str, *arguments: object) -> str:
    with start(code, *arguments) as child:
        out, _ = child.communicate(timeout=60)
    assert child.returncode in {0, -signal.SIGKILL}, child.returncode
    return out


@pytest.fixture(params=["lmdb", "memory"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    made: Index = open_lmdb(tmp_path) if request.param == "lmdb" else MemoryIndex(NAMES)
    yield made
    made.close()


# --- the same for both


def test_values_keys_and_counts(index: Index) -> None:
    assert index.fresh
    put(index, b"k", b"")
    put(index, b"k2", b"x" * 100_000)
    put(index, b"k" * 511, b"long")
    put(index, b"k", b"other", "b")
    assert get(index, b"k") == b""
    assert get(index, b"k2") == b"x" * 100_000
    assert get(index, b"k" * 511) == b"long"
    assert get(index, b"absent") is None
    with index.read() as tables:
        assert (tables.count("a"), tables.count("b")) == (3, 1)
    index.update(lambda tables: tables.delete("a", b"absent"))
    index.update(lambda tables: tables.delete("a", b"k"))
    assert get(index, b"k") is None
    assert index.bytes_used() > 0
    index.reset()
    with index.read() as tables:
        assert (tables.count("a"), list(tables.scan("b"))) == (0, [])


def test_wrong_arguments(index: Index) -> None:
    for key in (b"", b"k" * 512):
        with pytest.raises(LimitError):
            put(index, key)
        with pytest.raises(LimitError):
            get(index, key)
        with pytest.raises(LimitError):
            index.update(partial(delete, key=key))
    with pytest.raises(InvalidInputError, match="no table"):
        get(index, b"k", "zzz")
    with index.read() as tables, pytest.raises(BackendError):
        tables.put("a", b"k", b"v")


def test_transactions_do_not_nest_and_end(index: Index) -> None:
    put(index, b"k")
    with index.read() as outer, index.read() as inner:
        assert inner.get("a", b"k") == outer.get("a", b"k") == b"v"
        with pytest.raises(RuntimeError):
            put(index, b"l")
    with pytest.raises(RuntimeError):
        index.update(lambda _: put(index, b"l"))
    with pytest.raises(RuntimeError):
        index.update(lambda _: get(index, b"l"))
    with pytest.raises(RuntimeError, match="over"):
        outer.get("a", b"k")
    with index.read() as tables:
        late = tables.scan("a")
        next(late)
    with pytest.raises(RuntimeError, match="over"):
        list(late)
    put(index, b"l")
    assert get(index, b"l") == b"v"
    index.close()
    index.close()
    with pytest.raises(InvalidInputError, match="closed"):
        get(index, b"k")


def test_abort_restores_everything(index: Index) -> None:
    fill(index, 50)

    def body(tables: Tables) -> None:
        tables.put("a", b"00000001", b"changed")
        tables.delete("a", b"00000002")
        tables.put("b", b"new", b"v")
        assert tables.get("a", b"00000001") == b"changed"
        assert tables.count("a") == 49
        raise KeyError

    with index.read() as tables:
        before = list(tables.scan("a"))
    with pytest.raises(KeyError):
        index.update(body)
    with index.read() as tables:
        assert list(tables.scan("a")) == before
        assert list(tables.scan("b")) == []
    assert index.update(lambda tables: tables.count("a")) == 50


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_sees_changes_ahead_of_it(index: Index, reverse: bool) -> None:
    def body(tables: Tables) -> list[bytes]:
        for number in range(10):
            tables.put("a", b"%d" % number, b"")
        seen = []
        for key, _ in tables.scan("a", reverse=reverse):
            seen.append(key)
            tables.delete("a", key)
            if key == b"5":
                tables.delete("a", b"4" if reverse else b"6")
                tables.put("a", b"55", b"")
                tables.put("a", b"45", b"")
        return seen

    up = [b"0", b"1", b"2", b"3", b"4", b"5", b"55", b"7", b"8", b"9"]
    down = [b"9", b"8", b"7", b"6", b"5", b"45", b"3", b"2", b"1", b"0"]
    assert index.update(body) == (down if reverse else up)


KEYS = st.one_of(
    st.binary(min_size=1, max_size=3), st.text("ab\xff", min_size=1, max_size=4).map(lambda t: t.encode("latin-1"))
)
BOUND = st.one_of(st.just(b""), KEYS)
CHANGE = st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from(NAMES), KEYS, st.binary(max_size=4))
BATCH = st.tuples(st.booleans(), st.lists(CHANGE, max_size=12))
SCAN = st.tuples(st.sampled_from(NAMES), BOUND, BOUND, st.booleans())


@given(st.lists(BATCH, max_size=6), st.lists(SCAN, min_size=1, max_size=12))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_like_a_dict(
    index: Index,
    batches: list[tuple[bool, list[tuple[str, str, bytes, bytes]]]],
    scans: list[tuple[str, bytes, bytes, bool]],
) -> None:
    model: dict[str, dict[bytes, bytes]] = {name: {} for name in NAMES}
    index.reset()
    for fails, changes in batches:
        after = {name: dict(content) for name, content in model.items()}

        def body(tables: Tables, changes: list[tuple[str, str, bytes, bytes]] = changes, fails: bool = fails) -> None:
            for verb, table, key, value in changes:
                if verb == "put":
                    tables.put(table, key, value)
                else:
                    tables.delete(table, key)
            if fails:
                raise ZeroDivisionError

        if fails:
            with pytest.raises(ZeroDivisionError):
                index.update(body)
            continue
        index.update(body)
        for verb, table, key, value in changes:
            if verb == "put":
                after[table][key] = value
            else:
                after[table].pop(key, None)
        model = after

    def check(tables: Tables) -> None:
        for name in NAMES:
            assert tables.count(name) == len(model[name])
            assert list(tables.scan(name)) == sorted(model[name].items())
        for table, prefix, low, reverse in scans:
            expected = [pair for pair in sorted(model[table].items(), reverse=reverse) if pair[0].startswith(prefix)]
            if reverse:
                expected = [pair for pair in expected if not low or pair[0] <= low]
            else:
                expected = [pair for pair in expected if pair[0] >= low]
            assert list(tables.scan(table, prefix=prefix, start=low, reverse=reverse)) == expected

    with index.read() as tables:
        check(tables)
    index.update(check)


def test_many_threads_see_whole_transactions(index: Index) -> None:
    stop = threading.Event()

    def write() -> None:
        for number in range(60):

            def body(tables: Tables, number: int = number) -> None:
                for key in range(20):
                    tables.put("a", b"%d" % key, b"%d" % number * 50)

            index.update(body)
            time.sleep(0.001)
        stop.set()

    def read() -> int:
        rounds = 0
        while not stop.is_set():
            with index.read() as tables:
                assert len({value for _, value in tables.scan("a")}) <= 1
            rounds += 1
            time.sleep(0.001)
        return rounds

    with ThreadPoolExecutor(51) as pool:
        readers = [pool.submit(read) for _ in range(50)]
        pool.submit(write).result()
        assert sum(reader.result() for reader in readers) > 50


def test_threads_that_write_take_turns(index: Index) -> None:
    def add(tables: Tables) -> None:
        tables.put("a", b"n", b"%d" % (int(tables.get("a", b"n") or 0) + 1))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(lambda: [index.update(add) for _ in range(20)]) for _ in range(8)]:
            done.result()
    assert get(index, b"n") == b"160"


# --- growth


def test_the_map_grows_and_the_body_starts_again(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    runs = []

    def body(tables: Tables) -> None:
        runs.append(tables.get("a", b"00000000"))
        for number in range(200):
            tables.put("a", b"%08d" % number, b"x" * 100_000)

    index.update(body)
    assert len(runs) > 4
    assert set(runs) == {None}
    with index.read() as tables:
        assert tables.count("a") == 200
    assert index.bytes_used() > 20_000_000
    index.close()
    index = open_lmdb(tmp_path)  # with a map smaller than the file
    assert not index.fresh
    assert get(index, b"00000199") == b"x" * 100_000
    index.close()


def test_a_body_may_swallow_the_error_of_a_full_map(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)

    def body(tables: Tables) -> int:
        failures = 0
        for number in range(50):
            try:
                tables.put("a", b"%d" % number, b"x" * 100_000)
            except Exception:  # noqa: BLE001 - as broad as careless code is
                failures += 1
        return failures

    def other(tables: Tables) -> None:
        try:
            fill_one(tables)
        except Exception as error:
            raise ValueError("something else") from error

    def fill_one(tables: Tables) -> None:
        for number in range(200):
            tables.put("b", b"%d" % number, b"x" * 100_000)

    assert index.update(body) == 0
    index.update(other)
    with index.read() as tables:
        assert (tables.count("a"), tables.count("b")) == (50, 200)
    index.close()


def test_growth_waits_for_readers_of_other_threads(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"k")
    reading, grown = threading.Event(), threading.Event()

    def read() -> bool:
        with index.read() as tables:
            reading.set()
            early = grown.wait(0.3)
            assert tables.get("a", b"k") == b"v"
            return early

    def grow() -> None:
        fill(index, 100, 100_000)
        grown.set()

    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(read)
        reading.wait(5)
        writer = pool.submit(grow)
        assert reader.result() is False
        writer.result()
    index.close()


def test_three_processes_grow_the_map(tmp_path: Path) -> None:
    code = """
for number in range(60):
    def body(tables, number=number):
        tables.put("a", b"%s-%d" % (sys.argv[2].encode(), number), os.urandom(60_000))
        tables.put("b", b"n", b"%d" % (int(tables.get("b", b"n") or 0) + 1))
    index.update(body)
    with index.read() as tables:
        assert tables.get("a", b"%s-%d" % (sys.argv[2].encode(), number)) is not None
print("done", index._shared.generation.env.info()["map_size"])
"""
    children = [start(code, tmp_path, name) for name in ("p", "q", "r")]
    for child in children:
        with child:
            assert child.communicate(timeout=60)[0].startswith("done")
    index = open_lmdb(tmp_path)
    assert not index.fresh
    with index.read() as tables:
        assert (tables.count("a"), tables.get("b", b"n")) == (180, b"180")
    assert index.bytes_used() > 10 * MIB
    index.close()


def test_growth_that_fails_is_a_backend_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"k")
    monkeypatch.setattr(environment.RemapError, "__init__", lambda self, size: setattr(self, "size", 1 << 62))
    with pytest.raises(BackendError, match="cannot grow"):
        fill(index, 100, 100_000)
    monkeypatch.undo()
    assert get(index, b"k") == b"v"
    fill(index, 100, 100_000)
    index.close()


# --- processes


def test_fork(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"k", b"parent")
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with index.read() as tables:
                assert tables.get("a", b"k") in {b"parent", b"child"}
                time.sleep(0.001)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        statuses = []
        for _ in range(5):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    put(index, b"k", b"child")
                    fill(index, 40, 100_000)
                    status = 0 if get(index, b"k") == b"child" else 2
                    index.close()
                finally:
                    os._exit(status)
            statuses.append(os.waitpid(child, 0)[1])
        stop.set()
        assert statuses == [0] * 5
        for reader in readers:
            reader.result()
    assert get(index, b"k") == b"child"
    put(index, b"k", b"parent again")
    assert get(index, b"k") == b"parent again"
    index.close()


def test_fork_inside_a_transaction_leaves_the_parent_alone(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"k", b"old")

    def forking(tables: Tables) -> None:
        child = os.fork()
        if child == 0:
            raise SystemExit(3)
        assert os.waitpid(child, 0)[1] == 3 << 8
        tables.put("a", b"k", b"new")

    try:
        with index.read() as tables:
            child = os.fork()
            if child == 0:
                raise SystemExit(4)
            assert os.waitpid(child, 0)[1] == 4 << 8
            assert tables.get("a", b"k") == b"old"
        child = os.fork()
        if child == 0:
            with index.read() as tables:
                grandchild = os.fork()
                if grandchild == 0:
                    try:
                        get(LmdbIndex.open(tmp_path, NAMES, map_bytes=MIB, boot_id="boot-1"), b"k")
                    except BackendError as error:
                        os._exit(7 if "fork" in error.hint else 8)
                    os._exit(9)
                os._exit(os.waitpid(grandchild, 0)[1] >> 8)
        assert os.waitpid(child, 0)[1] == 7 << 8
        index.update(forking)
    except SystemExit as stop:
        os._exit(int(str(stop.code)))
    assert get(index, b"k") == b"new"
    index.close()


def test_killed_inside_update_blocks_nobody(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"k", b"before")
    run(
        """
def body(tables):
    tables.put("a", b"k", b"half")
    tables.put("a", b"l", b"half")
    os.kill(os.getpid(), signal.SIGKILL)
index.update(body)
""",
        tmp_path,
    )
    assert get(index, b"k") == b"before"
    put(index, b"l", b"after")
    assert get(index, b"l") == b"after"
    index.close()


def test_killed_readers_give_their_slots_back(tmp_path: Path) -> None:
    run("context = index.read(); context.__enter__(); os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    index = open_lmdb(tmp_path)
    assert not index.fresh
    assert index._use().generation is not None
    assert "no active readers" in index._use().generation.env.readers()  # type: ignore[union-attr]
    index.close()


def test_a_finished_read_keeps_no_slot(tmp_path: Path) -> None:
    """A slot that outlives its read would be freed by a forked child, under the feet of its next owner."""
    index = open_lmdb(tmp_path)
    put(index, b"k")
    put(index, b"l")
    with index.read() as tables:
        walk = tables.scan("a")
        next(walk)
    generation = index._use().acquire()
    assert "no active readers" in generation.env.readers()
    generation.leave()
    assert tables is not None
    with pytest.raises(RuntimeError):
        next(walk)
    index.close()


def test_handles_of_a_process_share_one_environment(tmp_path: Path) -> None:
    one = open_lmdb(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    two = LmdbIndex.open(link, ("a", "c"), map_bytes=MIB, boot_id="boot-1")
    assert (one.fresh, two.fresh) == (True, False)
    assert one._use() is two._use()
    put(one, b"k")
    one.close()
    assert get(two, b"k") == b"v"
    put(two, b"k", b"w", "c")
    again = open_lmdb(tmp_path)
    two.close()
    assert get(again, b"k") == b"v"
    again.close()
    assert not lmdb_index._registry
    assert not environment.live
    last = open_lmdb(tmp_path)
    assert not last.fresh
    last.close()


# --- restarts


def leave(directory: Path, *, clean: bool) -> None:
    end = "index.close()" if clean else "os.kill(os.getpid(), signal.SIGKILL)"
    run(f"index.update(lambda tables: tables.put('a', b'k', b'v'))\n{end}", directory)


@pytest.mark.parametrize(
    ("clean", "boot", "survives"),
    [
        (False, "boot-1", True),
        (True, "boot-1", True),
        (False, "boot-2", False),
        (True, "boot-2", True),
        (False, "", False),
        (True, "", True),
    ],
)
def test_after_a_restart(tmp_path: Path, clean: bool, boot: str, survives: bool) -> None:
    leave(tmp_path, clean=clean)
    index = open_lmdb(tmp_path, boot)
    assert index.fresh is not survives
    assert get(index, b"k") == (b"v" if survives else None)
    put(index, b"k", b"w")
    index.close()
    index = open_lmdb(tmp_path, "boot-3")  # closed well, whatever was before
    assert get(index, b"k") == b"w"
    index.close()


@pytest.mark.parametrize("clean", [False, True])
def test_a_copy_is_believed_only_if_closed_well(tmp_path: Path, clean: bool) -> None:
    """Copied while processes write, data.mdb may be torn, and the boot marker comes with it."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    leave(source, clean=clean)
    shutil.copytree(source, copy)
    index = open_lmdb(copy)
    assert index.fresh is not clean
    assert get(index, b"k") == (b"v" if clean else None)
    index.close()
    index = open_lmdb(source)  # same boot, same file
    assert not index.fresh
    assert get(index, b"k") == b"v"
    index.close()


def test_a_copy_of_an_index_in_use_is_not_believed(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    index = open_lmdb(source)
    put(index, b"k")
    subprocess.run(["cp", "-r", source, copy], check=True)  # not here: to open lock.mdb drops the locks of LMDB
    other = open_lmdb(copy)
    assert other.fresh
    other.close()
    index.close()


def test_a_moved_index_is_believed(tmp_path: Path) -> None:
    leave(tmp_path / "one", clean=False)
    (tmp_path / "one").rename(tmp_path / "two")
    index = open_lmdb(tmp_path / "two")
    assert not index.fresh
    assert get(index, b"k") == b"v"
    index.close()


def test_clean_marker_goes_before_the_first_write(tmp_path: Path) -> None:
    leave(tmp_path, clean=True)
    marker = data_file(tmp_path).parent / "clean"
    index = open_lmdb(tmp_path)
    assert marker.exists()
    with index.read():
        assert marker.exists()
    with pytest.raises(ZeroDivisionError):
        index.update(lambda _: 1 // (1 if marker.exists() else 0))
    assert not marker.exists()
    other = open_lmdb(tmp_path)
    other.close()
    assert not marker.exists()
    index.close()
    assert marker.exists()


def test_clean_marker_of_another_transaction_is_no_marker(tmp_path: Path) -> None:
    leave(tmp_path, clean=True)
    marker = data_file(tmp_path).parent / "clean"
    marker.write_text(str(int(marker.read_text()) - 1))
    index = open_lmdb(tmp_path, "boot-2")
    assert index.fresh
    index.close()


@pytest.mark.parametrize("boot", ["", "boot-2"])
def test_in_use_elsewhere_is_no_restart(tmp_path: Path, boot: str) -> None:
    code = "index.update(lambda t: t.put('a', b'k', b'v')); print('ready', flush=True); input()"
    with start(code, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        index = open_lmdb(tmp_path, boot)
        assert not index.fresh
        assert get(index, b"k") == b"v"
        index.close()
        child.communicate("\n", timeout=30)


# --- damage


def overwrite_page(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with path.open("r+b") as file:
        file.seek(chance.randrange(path.stat().st_size // 4096) * 4096)
        file.write(chance.choice([bytes(4096), chance.randbytes(4096)]))


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half": halve,
    "half a page": lambda path: os.truncate(path, path.stat().st_size - 2048),
    "empty": lambda path: os.truncate(path, 0),
    "short": lambda path: os.truncate(path, 100),
    "garbage": lambda path: path.write_bytes(random.Random(1).randbytes(300_000)),
    "text": lambda path: path.write_text("hello"),
    "gone": lambda path: path.unlink(),
    "other engine": lambda path: other_engine(path),
    **{f"page {seed}": partial(overwrite_page, seed=seed) for seed in range(12)},
}


def other_engine(path: Path) -> None:
    path.unlink()
    (path.parent / "lock.mdb").unlink()
    with lmdb.open(str(path.parent), lib_version=1) as env:
        env.sync(True)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_damage_on_open(tmp_path: Path, kind: str, boot: str) -> None:
    index = open_lmdb(tmp_path)
    fill(index)
    index.close()
    DAMAGE[kind](data_file(tmp_path))
    index = open_lmdb(tmp_path, boot)
    with index.read() as tables:
        content = list(tables.scan("a"))
    assert content == ([] if index.fresh else [(b"%08d" % number, b"x" * 100) for number in range(2000)])
    assert index.fresh or kind.startswith("page")
    fill(index, 10)
    index.close()


def test_what_lmdb_builds_is_sound(tmp_path: Path) -> None:
    """Shortened values stay on overflow pages that are too long, which the verifier dislikes."""
    index = open_lmdb(tmp_path)
    chance = random.Random(3)
    for _ in range(15):

        def body(tables: Tables) -> None:
            for _ in range(60):
                tables.put("a", b"%d" % chance.randrange(100), b"v" * chance.choice([0, 10, 3000, 9000]))
                tables.delete("a", b"%d" % chance.randrange(100))

        index.update(body)
        assert files.sound(data_file(tmp_path).parent)
    index.close()


def damaged(index: LmdbIndex, action: Callable[[], object]) -> bool:
    try:
        action()
    except IndexDamagedError as error:
        LmdbIndex.discard(data_file_root(index), error.generation)
        LmdbIndex.discard(data_file_root(index), error.generation)  # the second to see it discards nothing more
        return True
    return False


def data_file_root(index: LmdbIndex) -> Path:
    return index._root.parent


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("kind", ["half", "empty", "leaf"])
def test_damage_in_use(tmp_path: Path, kind: str, write: bool) -> None:
    index = open_lmdb(tmp_path)
    fill(index)
    path = data_file(tmp_path)
    if kind == "leaf":  # every tree page loses its kind: neither branch nor leaf
        with path.open("r+b") as file:
            for page in range(2, path.stat().st_size // 4096):
                file.seek(page * 4096 + 10)
                file.write(b"\x00\x00")
    else:
        DAMAGE[kind](path)

    def swallow(tables: Tables) -> None:
        try:
            tables.put("a", b"00000007", b"changed")
        except Exception:  # noqa: BLE001
            return

    assert damaged(index, (lambda: index.update(swallow)) if write else (lambda: get(index, b"00000007")))
    assert get(index, b"00000007") is None
    assert data_file(tmp_path).parent.name == "2"
    fill(index)
    assert get(index, b"00000007") == b"x" * 100
    index.close()


def test_discard_while_others_use_it(tmp_path: Path) -> None:
    code = """
index.update(lambda tables: tables.put("a", b"k", b"child"))
with index.read() as tables:
    print("ready", flush=True)
    input()
    print(tables.get("a", b"k"), [key for key, _ in tables.scan("a")])
with index.read() as tables:
    print(tables.get("a", b"k"), tables.get("a", b"p"))
index.update(lambda tables: tables.put("a", b"c", b"again"))
index.close()
"""
    index = open_lmdb(tmp_path)
    with start(code, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert get(index, b"k") == b"child"
        with index.read() as tables:
            LmdbIndex.discard(tmp_path)
            assert tables.get("a", b"k") == b"child"
        assert get(index, b"k") is None
        put(index, b"p", b"parent")
        out, _ = child.communicate("\n", timeout=30)
    assert child.returncode == 0
    assert out.splitlines() == ["b'child' [b'k']", "None b'parent'"]
    assert get(index, b"c") == b"again"
    assert sorted(path.name for path in (tmp_path / "lmdb-v1").iterdir()) == ["2"]
    index.close()


def test_an_interrupted_discard_is_noticed(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"k")
    files.publish(tmp_path / "lmdb-v1", 2)  # and killed before the old one was renamed away
    assert get(index, b"k") is None
    put(index, b"l")
    assert [path.name for path in (tmp_path / "lmdb-v1").iterdir()] == ["2"]
    index.close()


def test_another_file_in_its_place_is_noticed(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"k")
    copy = tmp_path / "copy"
    copy.write_bytes(data_file(tmp_path).read_bytes())
    put(index, b"l")
    copy.rename(data_file(tmp_path))
    assert get(index, b"l") is None
    index.close()


def test_discard_during_an_update_runs_the_body_again(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path)
    put(index, b"old")
    runs = []

    def body(tables: Tables) -> None:
        runs.append(tables.get("a", b"old"))
        if len(runs) == 1:
            LmdbIndex.discard(tmp_path)
        tables.put("a", b"new", b"v")

    index.update(body)
    assert runs == [b"v", None]
    assert get(index, b"new") == b"v"
    index.close()


def test_processes_that_discard_all_the_time(tmp_path: Path) -> None:
    code = """
for number in range(25):
    index.update(lambda tables: tables.put("a", b"k", b"v" * 1000))
    with index.read() as tables:
        tables.get("a", b"k")
    if number % 5 == 4:
        LmdbIndex.discard(directory)
index.close()
print("done")
"""
    children = [start(code, tmp_path) for _ in range(4)]
    for child in children:
        with child:
            assert child.communicate(timeout=60)[0] == "done\n"
    index = open_lmdb(tmp_path)
    put(index, b"k")
    index.close()


def test_a_directory_taken_away_comes_back(tmp_path: Path) -> None:
    index = open_lmdb(tmp_path / "index")
    put(index, b"k")
    (tmp_path / "index").rename(tmp_path / "elsewhere")
    assert get(index, b"k") is None
    put(index, b"l")
    assert get(index, b"l") == b"v"
    index.close()


def test_read_only(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        open_lmdb(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    index = open_lmdb(tmp_path)
    put(index, b"k")
    reader = open_lmdb(tmp_path, read_only=True)
    index.close()
    assert get(reader, b"k") == b"v"
    with pytest.raises(ReadOnlyError):
        put(reader, b"l")
    reader.close()
    data_file(tmp_path).write_bytes(b"garbage")
    with pytest.raises(BackendError):
        open_lmdb(tmp_path, read_only=True)
    assert data_file(tmp_path).read_bytes() == b"garbage"


def test_no_right_to_write_is_a_backend_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackendError):
        open_lmdb(tmp_path / "file")


def test_too_many_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_READERS", 2)
    index = open_lmdb(tmp_path)
    generation = index._use().acquire()
    held: list[environment.Transaction] = []
    with pytest.raises(BackendError) as caught:
        while len(held) < 200:  # LMDB rounds up to a page of slots
            held.append(generation.begin(write=False))
    assert "keep them short" in caught.value.hint
    for transaction in held:
        transaction.end()
    generation.leave()
    index.close()
