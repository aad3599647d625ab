"""Crash states against protocols whose answers are known: `research/crashenum.py`, and the local backend."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from casstore.backend.local import LocalBackend
from casstore.backend.osops import OsOps
from casstore.errors import NotFoundError
from casstore.testing.crashstates import BLOCK, CrashState, crash_states, sync_effects, without
from casstore.testing.record import Effect, RecordingOps

# ---------------------------------------------------------------- single effects


def trees(trace: Sequence[Effect]) -> set[tuple[tuple[str, bytes], ...]]:
    return {
        tuple(sorted((path, content.data) for path, content in state.files.items())) for state in crash_states(trace)
    }


def contents(data: bytes, *, synced: int = 0) -> set[bytes]:
    """What may be left in a file whose name is durable."""
    trace = [Effect("create", "f")]
    trace += [Effect("write", "f", data=data[:synced]), Effect("fsync", "f")] if synced else []
    trace += [Effect("fsync_dir", "."), Effect("write", "f", data=data[synced:])]
    last = [state for state in crash_states(trace) if state.position == len(trace)]
    return {state.files["f"].data for state in last}


def test_a_block_survives_or_not() -> None:
    assert contents(b"abc") == {b"abc", b"", b"\0\0\0"}
    one, two = b"1" * BLOCK, b"2" * 5
    whole, holes = {one + two, one, b""}, {one + bytes(5), bytes(BLOCK) + two, bytes(BLOCK + 5)}
    assert contents(one + two) == whole | holes


def test_synced_bytes_survive() -> None:
    assert contents(b"abcdef", synced=3) == {b"abcdef", b"abc", b"abc\0\0\0"}
    data = b"1" * BLOCK + b"2" * BLOCK
    assert all(left[: BLOCK + 7] == data[: BLOCK + 7] for left in contents(data, synced=BLOCK + 7))


def test_large_files_are_torn_in_some_places() -> None:
    data = bytes(range(1, 251)) * 200  # 13 blocks
    left = contents(data)
    assert {data, b"", bytes(len(data))} <= left
    assert any(len(part) < len(data) and data.startswith(part) and part for part in left), "a prefix"
    assert any(part != data and len(part) == len(data) and part.strip(b"\0") for part in left), "a hole"
    assert len(left) < 20


def test_a_name_survives_or_not_until_its_directory_is_synced() -> None:
    put = [Effect("create", "f"), Effect("write", "f", data=b"x"), Effect("fsync", "f")]
    assert (("f", b"x"),) in trees(put)
    assert () in trees(put)
    settled = [*put, Effect("fsync_dir", "."), Effect("ack", "f")]
    assert all("f" in state.files for state in crash_states(settled) if "f" in state.acked)
    other = [*put, Effect("fsync_dir", "elsewhere"), Effect("ack", "f")]
    assert any("f" not in state.files for state in crash_states(other) if "f" in state.acked)


def test_names_survive_independently() -> None:
    trace = [Effect("link", "old", name) for name in "abc"]
    assert len(trees(trace)) == 8


def test_a_directory_takes_its_files_along() -> None:
    trace = [
        Effect("mkdir", "d"),
        Effect("create", "d/f"),
        Effect("fsync", "d/f"),
        Effect("fsync_dir", "d"),
        Effect("ack", "f"),
    ]
    left = [state for state in crash_states(trace) if state.acked]
    assert {(tuple(state.files), tuple(state.directories)) for state in left} == {(("d/f",), ("d",)), ((), ())}


def test_unlink() -> None:
    trace = [Effect("unlink", "old")]
    assert {state.removed for state in crash_states(trace)} == {frozenset(), frozenset({"old"})}
    durable = [*trace, Effect("fsync_dir", "."), Effect("ack", "gone")]
    assert all(state.removed == {"old"} for state in crash_states(durable) if state.acked)


def test_a_rename_in_a_directory_is_atomic_and_across_two_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "before/d").mkdir(parents=True)
    (tmp_path / "before/a").write_bytes(b"a")
    (tmp_path / "before/b").write_bytes(b"b")

    def outcomes(trace: Sequence[Effect]) -> set[tuple[tuple[str, bytes], ...]]:
        return {tuple(sorted(tree.items())) for _, tree in materialised(trace, tmp_path)}

    assert outcomes([Effect("rename", "a", "b")]) == {(("a", b"a"), ("b", b"b")), (("b", b"a"),)}
    assert outcomes([Effect("rename", "a", "d/a")]) == {
        (("a", b"a"), ("b", b"b")),
        (("a", b"a"), ("b", b"b"), ("d/a", b"a")),
        (("b", b"b"), ("d/a", b"a")),
        (("b", b"b"),),
    }
    replaced = [Effect("rename", "a", "b"), Effect("unlink", "b")]
    assert outcomes(replaced) == {
        (("a", b"a"), ("b", b"b")),
        (("b", b"a"),),
        (),
        (("a", b"a"),),  # the rename lost, the unlink kept
    }


def materialised(trace: Sequence[Effect], tmp_path: Path) -> Iterable[tuple[CrashState, dict[str, bytes]]]:
    for number, state in enumerate(crash_states(trace)):
        target = tmp_path / f"after-{len(list(tmp_path.iterdir()))}-{number}"
        state.materialise(target, tmp_path / "before")
        yield (
            state,
            {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()},
        )


def test_a_tree_comes_once_with_all_that_was_acknowledged() -> None:
    trace = [Effect("ack", "1"), Effect("unlink", "a"), Effect("index-commit", "7"), Effect("ack", "2")]
    states = list(crash_states(trace))
    assert [(state.position, state.acked, sorted(state.removed), state.lost) for state in states] == [
        (4, ("1", "2"), ["a"], ()),
        (4, ("1", "2"), [], (1,)),
    ]


def test_temporary_names_are_not_varied_but_may_all_stay() -> None:
    trace: list[Effect] = []
    for name in "abcdefgh":
        path = f"tmp/{name}"
        trace += [Effect("create", path), Effect("write", path, data=b"x"), Effect("unlink", path)]
    left = {tuple(sorted(state.files)) for state in crash_states(trace)}
    assert () in left
    assert tuple(f"tmp/{name}" for name in "abcdefgh") in left
    assert len(left) <= 3 * len(trace)
    everything = {tuple(sorted(state.files)) for state in crash_states(trace[:6], noise=lambda path: False)}
    assert everything == {(), ("tmp/a",), ("tmp/b",), ("tmp/a", "tmp/b")}


def test_many_open_questions_are_sampled() -> None:
    trace = [Effect("unlink", f"f{number:02}") for number in range(30)]
    last = [state for state in crash_states(trace, limit_pending=6, sample=50, seed=1) if state.position == 30]
    sizes = sorted(len(state.removed) for state in last)
    assert (sizes[0], sizes[-1]) == (0, 30)
    assert sizes.count(29) == sizes.count(1) == 30, "one missing, one early"
    assert 100 < len(last) <= 112
    again = [state for state in crash_states(trace, limit_pending=6, sample=50, seed=1) if state.position == 30]
    assert again == last, "the same seed, the same states"
    other = [state for state in crash_states(trace, limit_pending=6, sample=50, seed=2) if state.position == 30]
    assert other != last
    small = [Effect("unlink", f"f{number}") for number in range(6)]
    assert len(list(crash_states(small, limit_pending=6))) == 64


def test_without() -> None:
    trace = [Effect("mkdir", "d"), Effect("fsync_dir", "."), Effect("create", "d/f"), Effect("fsync", "d/f")]
    assert sync_effects(trace) == [1, 3]
    assert without(trace, 0) == [trace[0], trace[2], trace[3]]
    assert without(trace, 1) == trace[:3]


def test_materialise_needs_the_tree_before(tmp_path: Path) -> None:
    state = next(crash_states([Effect("rename", "a", "b")]))
    with pytest.raises(ValueError, match="initial tree"):
        state.materialise(tmp_path / "after")
    with pytest.raises(TypeError, match="not made"):
        list(crash_states([Effect("fsync", "a")]))
    with pytest.raises(ValueError, match="directory d"):
        list(crash_states([Effect("mkdir", "d"), Effect("rename", "d", "e")]))


# ---------------------------------------------------------------- the protocol of research/crashenum.py

WHOLE = b"1" * BLOCK + b"2" * BLOCK
LIVE = {1: {"P"}, 2: {"Q"}, 3: {"Q", "R"}}
SYNC_NAMES = (
    *("P data", "packs/ (P)", "S1 data", "log/ (S1)", "Q data", "packs/ (Q)", "S2 data", "log/ (S2)"),
    *("deleter barrier log/", "R data", "packs/ (R)", "S3 data", "log/ (S3)"),
)


def protocol(*, foreign: bool = False) -> list[Effect]:
    """A writer commits pack P, a collector repacks it to Q and deletes P, a writer commits R."""
    trace: list[Effect] = []

    def write(name: str) -> None:
        trace.extend((Effect("create", f"tmp/{name}"), Effect("write", f"tmp/{name}", data=WHOLE)))
        trace.append(Effect("fsync", f"tmp/{name}"))

    def put(name: str, directory: str) -> None:
        write(name)
        trace.append(Effect("link", f"tmp/{name}", f"{directory}/{name}"))
        trace.append(Effect("fsync_dir", directory))

    put("P", "packs")
    put("1", "log")
    trace.append(Effect("ack", "1"))
    put("Q", "packs")
    if foreign:
        write("2")
        trace.append(Effect("link", "tmp/2", "log/2"))
        trace.append(Effect("fsync_dir", "log"))  # the deleter's own: it only saw segment 2
        trace += [Effect("unlink", "packs/P"), Effect("fsync_dir", "packs")]
        trace += [Effect("fsync_dir", "log"), Effect("ack", "2")]  # the author's, later
    else:
        put("2", "log")
        trace += [Effect("ack", "2"), Effect("fsync_dir", "log"), Effect("unlink", "packs/P")]
    put("R", "packs")
    put("3", "log")
    return [*trace, Effect("ack", "3")]


def violations(state: CrashState) -> set[str]:
    files = {path: content.data for path, content in state.files.items() if not path.startswith("tmp/")}
    segments = sorted(int(path[4:]) for path in files if path.startswith("log/"))
    bad = set()
    if segments != list(range(1, len(segments) + 1)):
        bad.add("gap")
    if not {int(name) for name in state.acked} <= set(segments):
        bad.add("acked")
    if any(files[f"log/{number}"] != WHOLE for number in segments):
        bad.add("torn")
    if segments and "gap" not in bad:
        for pack in LIVE[segments[-1]]:
            if f"packs/{pack}" not in files:
                bad.add("dangling")
            elif files[f"packs/{pack}"] != WHOLE:
                bad.add("torn")
    return bad


def all_violations(trace: Sequence[Effect]) -> set[str]:
    return set().union(*map(violations, crash_states(trace)))


@pytest.mark.parametrize("foreign", [False, True])
def test_the_protocol_is_safe(foreign: bool) -> None:
    trace = protocol(foreign=foreign)
    assert all_violations(trace) == set()
    assert len(list(crash_states(trace))) >= 20


@pytest.mark.parametrize("nth", range(13), ids=lambda nth: SYNC_NAMES[nth])
def test_each_sync_of_the_protocol_is_needed(nth: int) -> None:
    found = all_violations(without(protocol(), nth))
    if SYNC_NAMES[nth] == "deleter barrier log/":
        assert found == set(), "its author synced the same directory just before"
    else:
        assert found


def test_a_foreign_deleter_needs_its_own_barrier() -> None:
    assert "dangling" in all_violations(without(protocol(foreign=True), 7))


# ---------------------------------------------------------------- the local backend itself

PUTS = (("packs/ab/p", b"p" * 5000), ("log/1", b"needs p"), ("packs/cd/q", b"q" * 5000), ("log/2", b"needs q"))


def record(tmp_path: Path) -> list[Effect]:
    ops = RecordingOps(tmp_path / "before")
    (tmp_path / "before").mkdir()
    store = LocalBackend(tmp_path / "before/s", ops)
    for key, data in PUTS:
        store.create(key, data)
        ops.mark(key)
    return ops.trace


def check(state: CrashState, target: Path) -> set[str]:
    """Open what is left with the real backend."""
    state.materialise(target)
    bad = set()
    store = LocalBackend(target / "s", OsOps())

    def read(key: str) -> bytes | None:
        try:
            return store.read(key)
        except NotFoundError:
            return None

    for key, data in PUTS:
        if (found := read(key)) not in {data, None}:
            bad.add("torn")
        if found is None and key in state.acked:
            bad.add("acked")
    for log, pack in (("log/1", "packs/ab/p"), ("log/2", "packs/cd/q")):
        if read(log) is not None and read(pack) is None:
            bad.add("dangling")
    for key, data in PUTS:  # life goes on
        if read(key) is None:
            store.create(key, data)
    return bad


def found_by(trace: Sequence[Effect], tmp_path: Path, name: Callable[[], str]) -> set[str]:
    bad: set[str] = set()
    for state in crash_states(trace):
        bad |= check(state, tmp_path / name())
    return bad


def test_the_local_backend_is_safe_and_needs_each_sync(tmp_path: Path) -> None:
    numbers = iter(range(1_000_000))
    trace = record(tmp_path)
    assert found_by(trace, tmp_path, lambda: f"{next(numbers)}") == set()
    needless = [
        trace[place]
        for nth, place in enumerate(sync_effects(trace))
        if not found_by(without(trace, nth), tmp_path, lambda: f"{next(numbers)}")
    ]
    assert needless == []
