"""`casstore bench`: the same work for each program, its cost measured, its bytes compared, nothing left behind.

Promises guarded: a program that loses a byte is caught; one that is not installed is named; a bad DIR is exit 2 and
leaves nothing; an interrupted run ends what it started and removes its work; what a process cost is that of the
process, not of the one that measures; the files become the next version in place, and unchanged ones stay untouched.
"""

import json
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from casstore.bench import corpora, runner
from casstore.bench.contenders import all_contenders, default_names
from casstore.bench.contenders.contender import Contender
from casstore.bench.contenders.floors import Copy, Tar
from casstore.bench.contenders.ours import Casstore
from casstore.bench.goals import goals
from casstore.bench.measuring import (
    Command,
    CommandFailed,
    Size,
    TookTooLong,
    Usage,
    forget_cached,
    measure,
    occupied,
    wait_until_idle,
)
from casstore.bench.report import document, tables
from casstore.bench.runner import CorpusFacts, Plan, Record, run
from casstore.bench.trees import Extent, apply, changes, copy_tree, differences, remove
from casstore.cli import main
from casstore.config import file_system_of


class Fake(Copy):
    """A program that copies trees; subclasses do it wrong."""

    name = "fake"
    tool = "fake"


class Ours(Fake):
    name = "casstore"
    tool = "casstore"

    def __init__(self, name: str = name, *_: str) -> None:
        self.name = name


class LosesAByte(Fake):
    name = "loses"

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        cut = f"cp -a '{place}/v{number}' '{target}' && truncate -s -1 '{target}/a.txt'"
        return (Command(("sh", "-c", cut)),)


class FailsOnTheSecond(Fake):
    name = "fails"

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        return (Command(("sh", "-c", "echo no room >&2; exit 3")),) if number else super().take_in(place, tree, number)


class OwnCopy(Fake):
    """Like DVC: takes in what is in its own directory."""

    name = "own"

    def workspace(self, place: Path) -> Path | None:
        return place / "workspace"

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        return super().take_in(place, place / "workspace", number)


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, ...]:
    trees = tuple(tmp_path / f"in{number}" for number in range(3))
    for number, tree in enumerate(trees):
        (tree / "sub").mkdir(parents=True)
        (tree / "a.txt").write_bytes(b"a" * 5000)
        (tree / "sub" / "b.txt").write_bytes(b"version %d" % number)
        (tree / f"only{number}").write_bytes(b"x")
        (tree / "link").symlink_to("a.txt")
    return trees


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runner, "settle", lambda: None)  # a sync of the whole machine
    place = tmp_path / "work"
    place.mkdir()
    return place


def measure_all(versions: tuple[Path, ...], contenders: Sequence[Contender], plan: Plan, work: Path) -> Record:
    return run([corpora.of_directories(versions)], contenders, plan, work, lambda _: None)


def test_every_step_is_measured_and_wrong_bytes_are_caught(versions: tuple[Path, ...], work: Path) -> None:
    contenders = [Casstore(), Copy(), Tar(), LosesAByte(), FailsOnTheSecond(), OwnCopy()]
    plan = Plan(rounds=1, count_syncs=False)
    record = measure_all(versions, contenders, plan, work)
    outcomes = {(s.contender, s.step): s.outcome for s in record.samples}
    for step in ("first", "next", "reread", "rest", "only", "restore", "collect"):
        assert outcomes["casstore", step] == "ok"
    assert outcomes["tar", "restore"] == outcomes["own", "restore"] == outcomes["cp", "restore"] == "ok"
    assert outcomes["loses", "restore"].startswith("wrong bytes: ")
    assert "a.txt" in outcomes["loses", "restore"]
    assert outcomes["fails", "next"].startswith("failed: ")
    assert "no room" in outcomes["fails", "next"]
    assert ("fails", "restore") not in outcomes, "its store is in a state nobody knows"
    sizes = {(s.contender, s.when): s.whole.apparent for s in record.stored}
    assert sizes["cp", "all"] > sizes["cp", "collected"] > 5000
    assert sizes["casstore", "only"] > 0
    assert list(work.iterdir()) == []
    found = document(record, contenders, [], plan, scale=1.0, machine={})
    assert json.loads(json.dumps(found)) == found
    text = "\n".join(tables(found))
    assert "WRONG BYTES" in text
    assert "FAILED" in text


def test_turns_rotate_and_rounds_start_anew(versions: tuple[Path, ...], work: Path) -> None:
    plan = Plan(rounds=2, steps=frozenset({"first", "next"}), count_syncs=False)
    record = measure_all(versions, [Copy(), Fake()], plan, work)
    begun = [s.contender for s in record.samples if s.position == 0]
    assert len(record.samples) == 2 * 2 * 2
    assert begun == ["cp", "fake"] * 2
    assert {s.outcome for s in record.samples} == {"ok"}


def test_a_slow_rival_takes_part_only_once(versions: tuple[Path, ...], work: Path) -> None:
    plan = Plan(rounds=2, steps=frozenset({"first"}), once=0.0, count_syncs=False)
    record = measure_all(versions, [Ours(), Copy()], plan, work)
    assert [s.contender for s in record.samples] == ["casstore", "cp", "casstore"]


def test_a_step_is_stopped_at_its_limit_with_all_it_started(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(TookTooLong):
        measure(Command(("sh", "-c", f"exec 3>'{fifo}'; sleep 600 & sleep 600")), limit=0.3)
    os.set_blocking(reading, True)
    assert os.read(reading, 1) == b""  # whoever held it open is gone
    os.close(reading)


def test_the_cost_is_that_of_the_program() -> None:
    ballast = b"x" * 150_000_000
    assert measure(Command(("true",))).peak < 30 << 20, "the measuring process is in the number"
    busy = "x = b'1' * 60_000_000\nfor _ in range(3_000_000): pass"
    used = measure(Command((sys.executable, "-c", busy)))
    assert used.peak > 60_000_000
    assert used.user > 0
    in_a_child = measure(Command(("sh", "-c", f'"{sys.executable}" -c "$0"; true', busy)))
    assert in_a_child.peak > 60_000_000
    assert in_a_child.user > 0
    assert len(ballast)


def test_a_failing_program_is_told_with_its_last_words() -> None:
    with pytest.raises(CommandFailed, match="ended with 3: last words"):
        measure(Command(("sh", "-c", "echo last words >&2; exit 3")))
    with pytest.raises(CommandFailed):
        measure(Command(("/nonexistent/program",)))


def test_caches_are_dropped_of_all_files_or_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    path = tmp_path / "tree" / "sub" / "file"
    with open(path, "wb") as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())
    path.with_name("link").symlink_to("nowhere")
    assert forget_cached([tmp_path / "tree"], str(tmp_path / "no-switch")) == "posix_fadvise"
    with open(path, "rb") as file:
        if file_system_of(tmp_path) == "ext4":
            with pytest.raises(BlockingIOError):  # it would have to wait for the disk
                os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT)
    switch = tmp_path / "switch"
    switch.write_text("0", encoding="ascii")
    assert forget_cached([], str(switch)) == "drop_caches"
    assert switch.read_text(encoding="ascii") == "3"


class Disks:
    """A file like /proc/diskstats, a clock, and requests that end at some moment of it."""

    def __init__(self, place: Path, busy: Sequence[tuple[int, int]]) -> None:
        self.counters = place / "diskstats"
        self.milliseconds = 0
        self._busy = busy
        self._written = -1
        self._write()

    def clock(self) -> float:
        return self.milliseconds / 1000

    def sleep(self, seconds: float) -> None:
        self.milliseconds += round(seconds * 1000)
        self._write()

    def _write(self) -> None:
        in_flight = sum(start <= self.milliseconds < end for start, end in self._busy)
        if in_flight == self._written:
            return
        self._written = in_flight
        text = (
            "   7       0 loop0 17185 18 268274 2218 129413 355352 21475210 180078 0 122372 277936 0 0 0 0 88 95\n"
            f" 254       0 vda 1 2 3 4 5 6 7 8 {in_flight} 10 11 12 13 14 15 16 17\n"
            " 253       0 zram0 2 0 16 0 1 0 8 0 0 0 0\n"
        )
        self.counters.write_text(text, encoding="ascii")

    def wait(self) -> int:
        wait_until_idle(str(self.counters), clock=self.clock, sleep=self.sleep)
        return self.milliseconds


def test_a_step_waits_until_no_disk_has_requests_in_flight(tmp_path: Path) -> None:
    assert 100 <= Disks(tmp_path, []).wait() <= 110
    assert 590 <= Disks(tmp_path, [(0, 495)]).wait() <= 600, "100 ms after the last that was seen"
    assert 390 <= Disks(tmp_path, [(0, 35), (115, 295)]).wait() <= 400, "a pause of 80 ms is none"
    assert 10_000 <= Disks(tmp_path, [(0, 1 << 60)]).wait() <= 10_010, "somebody else's requests do not end"


def test_where_requests_are_not_counted_nobody_waits_for_them(tmp_path: Path) -> None:
    disks = Disks(tmp_path, [(0, 500)])
    for text in ("   7 0 loop0 1 2 3\n", "no numbers in it at all, and words up to the twelfth column of the line\n"):
        disks.counters.write_text(text, encoding="ascii")
        assert disks.wait() == 0
    disks.counters.unlink()
    assert disks.wait() == 0


def test_what_a_program_leaves_in_the_background_is_ended(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    measure(Command(("sh", "-c", f"exec 3>'{fifo}'; sleep 600 & exit 0")))
    os.set_blocking(reading, True)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_usages_add_up_but_peaks_do_not() -> None:
    assert Usage(1, 2, 3, 40) + Usage(1, 1, 1, 30) == Usage(2, 3, 4, 40)


def test_a_file_with_two_names_occupies_its_bytes_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"x" * 10_000)
    alone = occupied([tmp_path / "d"])
    os.link(tmp_path / "d" / "a", tmp_path / "d" / "b")
    assert occupied([tmp_path / "d"]) == alone
    assert alone.apparent == 10_000 + os.lstat(tmp_path / "d").st_size
    assert occupied([tmp_path / "nothing"]) == Size()


def test_a_tree_becomes_the_next_in_place(tmp_path: Path) -> None:
    old, new, tree = tmp_path / "old", tmp_path / "new", tmp_path / "tree"
    for top in (old, new):
        (top / "same").mkdir(parents=True)
        (top / "same" / "file").write_bytes(b"same")
        (top / "same" / "link").symlink_to("file")
    (old / "was-a-directory").mkdir()
    (old / "was-a-directory" / "inner").write_bytes(b"1")
    (new / "was-a-directory").write_bytes(b"now a file")
    (old / "was-a-file").write_bytes(b"1")
    (new / "was-a-file" / "deep").mkdir(parents=True)
    (new / "was-a-file" / "deep" / "inner").write_bytes(b"2")
    (old / "differs").write_bytes(b"aaaa")
    (new / "differs").write_bytes(b"aaab")
    (old / "leads").symlink_to("differs")
    (new / "leads").symlink_to("same")
    (old / "gone").write_bytes(b"")
    copy_tree(old, tree)
    inodes = [os.lstat(tree / "same" / name).st_ino for name in ("file", "link")]
    differing = os.lstat(tree / "differs").st_ino
    apply(changes(old, new), new, tree)
    assert differences(new, tree) == ""
    assert [os.lstat(tree / "same" / name).st_ino for name in ("file", "link")] == inodes
    assert os.lstat(tree / "differs").st_ino != differing, "written over, so that a hard link to it would change, too"
    assert differences(old, tree)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_nobody_may_write_is_removed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "t" / "locked").mkdir(parents=True)
    (tmp_path / "t" / "locked" / "file").write_bytes(b"")
    (tmp_path / "t" / "locked").chmod(0o500)
    remove(tmp_path / "t")
    assert not (tmp_path / "t").exists()
    remove(tmp_path / "t")


# --- corpora


def test_a_model_changes_as_it_says(tmp_path: Path) -> None:
    made = corpora.make("ckpt", tmp_path / "a", 0.01)
    again = corpora.make("ckpt", tmp_path / "b", 0.01)
    states = [(version / "model.safetensors").read_bytes() for version in made.versions]
    assert states == [(version / "model.safetensors").read_bytes() for version in again.versions]
    headers = [json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")]) for state in states]
    bodies = [state[8 + int.from_bytes(state[:8], "little") :] for state in states]

    def tensor(number: int, name: str) -> bytes:
        begin, end = headers[number][name]["data_offsets"]
        return bodies[number][begin:end]

    names = [name for name in headers[0] if name != "__metadata__"]
    changed = sum(len(tensor(1, name)) for name in names if tensor(0, name) != tensor(1, name))
    assert 0.005 < changed / len(bodies[0]) < 0.021
    assert len(bodies[2]) - len(bodies[1]) == len(tensor(2, "adapter")) == 537_000
    assert all(tensor(1, name) == tensor(2, name) for name in names)
    cut = [name for name in headers[3] if name != "__metadata__" and tensor(2, name) != tensor(3, name)]
    assert 0.3 < len(cut) / len(names) < 0.7
    for name in cut:
        assert not any(tensor(3, name)[0::4])
        assert not any(tensor(3, name)[1::4])
        assert tensor(3, name)[2::4] == tensor(2, name)[2::4]
    weights = array("f", tensor(0, "head"))
    deviation = (sum(w * w for w in weights) / len(weights)) ** 0.5
    within = sum(abs(w) < deviation for w in weights) / len(weights)
    assert 0.6 < within < 0.75, "not like a normal distribution"
    assert len(set(weights)) > 0.95 * len(weights)


def test_small_files_change_as_they_say(tmp_path: Path) -> None:
    first, second = corpora.make("small", tmp_path, 0.001).versions
    change = changes(first, second)
    written = [path for path in change.written if (first / path).exists()]
    assert (len(change.gone), len(written), len(change.written) - len(written)) == (1, 5, 1)
    assert all((first / path).read_bytes() != (second / path).read_bytes() for path in written)


def test_a_half_made_corpus_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "copy_tree", fail)
        with pytest.raises(KeyboardInterrupt):
            corpora.make("small", tmp_path, 0.001)
    assert list(tmp_path.iterdir()) == []
    assert len(corpora.make("small", tmp_path, 0.001).versions) == 2


# --- goals


def test_a_goal_is_a_ratio_to_the_best_rival() -> None:
    facts = CorpusFacts("own", textual=False, versions=(("v0", Extent(1, 1)), ("v1", Extent(1, 1))))

    def entry(who: str, step: str, median: float, outcome: str = "ok") -> dict[str, Any]:
        return {
            "corpus": "own",
            "contender": who,
            "step": step,
            "median": median,
            "peak_rss": 1 << 20,
            "outcome": outcome,
        }

    def size(who: str, when: str, bytes_: int) -> dict[str, Any]:
        return {"corpus": "own", "contender": who, "when": when, "bytes": bytes_, "without_index": bytes_ - 10}

    contenders = [c for c in all_contenders() if c.name in {"casstore", "restic", "borg", "git", "cp"}]
    summary = [
        *(entry("casstore", "first", 0.5), entry("restic", "first", 1.0), entry("borg", "first", 2.0)),
        *(entry("git", "first", 0.1), entry("casstore", "next", 0.6), entry("restic", "next", 0.1, "failed: x")),
        entry("borg", "next", 1.0),
    ]
    stored = [size("casstore", "all", 110), size("restic", "all", 110), size("git", "all", 20)]
    found = {(g["goal"], g["against"].partition(":")[0]): g for g in goals(summary, stored, [facts], contenders)}
    first = found["first ingest, ratio of time", "restic"]
    assert (first["measured"], first["limit"], first["passed"]) == (0.5, 0.6, True)
    following = found["next version, ratio of time", "borg"]
    assert (following["measured"], following["passed"]) == (0.6, False)
    assert found["first, ratio of time", "git"]["passed"] is None
    whole = found["stored after all versions, ratio of bytes", "restic"]
    assert (whole["measured"], whole["passed"]) == (1.1, False)


# --- the command


def bench(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["bench", *words], env={"PATH": os.environ["PATH"]})
    assert result.exit_code == code, result.output
    return result


def test_programs_that_are_not_installed_are_named(versions: tuple[Path, ...], work: Path) -> None:
    chosen = ("--contender", "cp", "--contender", "hf_xet", "--rivals-venv", str(work / "none"))
    options = ("--steps", "restore", "--rounds", "1", "--no-syncs", "--work", str(work), "-o", str(work / "out.json"))
    result = bench(str(versions[0]), *chosen, *options, "--json")
    found = json.loads(result.stdout)
    assert [(w["name"], "not installed" in w["reason"]) for w in found["left_out"]] == [("hf_xet", True)]
    assert json.loads((work / "out.json").read_text()) == found
    assert [path.name for path in work.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{}/nothing",), "is not a directory"),
        (("{}/in0/a.txt",), "is not a directory"),
        (("{}/empty",), "is empty"),
        (("{}/in0", "--work", "{}/in0/sub/work"), "which is to be stored"),
        (("{}/in0", "--contender", "nobody"), "no contender 'nobody'"),
        (("{}/in0", "--without", "nobody"), "no contender 'nobody'"),
        (("{}/in0", "--contender", "cp", "--without", "cp"), "no program that was chosen"),
        (("{}/in0", "--steps", "restore,fly"), "no step 'fly'"),
        (("{}/in0", "-o", "{}/nowhere/x.json"), "no directory for"),
        (("{}/in0", "--work", "{}/in1/a.txt/x"), "is not a directory"),
    ],
)
def test_bad_input_is_2_and_leaves_nothing(
    words: tuple[str, ...], said: str, versions: tuple[Path, ...], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = bench("--work", str(tmp_path / "made"), "--no-syncs", *(w.format(tmp_path) for w in words), code=2)
    assert said in result.stderr
    remaining = sorted(path for path in tmp_path.rglob("*") if path != tmp_path / "made")
    assert remaining == before


def test_too_little_room_is_2(versions: tuple[Path, ...], work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_free_bytes", lambda _: 1000)
    result = bench(str(versions[0]), "--contender", "cp", "--work", str(work), code=2)
    assert "may need" in result.stderr
    assert list(work.iterdir()) == []


def test_casstore_going_wrong_is_told_by_the_exit_code(
    versions: tuple[Path, ...], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casstore.bench.contenders.Casstore", Ours)
    options = ("--contender", "casstore", "--steps", "restore", "--rounds", "1", "--no-syncs", "--work", str(work))
    monkeypatch.setattr(runner, "differences", lambda *_: "a.txt differs")
    assert "WRONG BYTES" in bench(str(versions[0]), *options, code=20).stdout
    monkeypatch.setattr(Ours, "restore", lambda *_: (Command(("false",)),))
    bench(str(versions[0]), *options, code=30)


INTERRUPTED = """
import sys
from pathlib import Path
from casstore.bench import corpora
from casstore.bench.contenders.floors import Copy
from casstore.bench.measuring import Command
from casstore.bench.runner import Plan, run

class Slow(Copy):
    def take_in(self, place, tree, number):
        return (Command(("sh", "-c", f"exec 3>'{sys.argv[3]}'; echo here >&3; sleep 600")),)

corpus = corpora.of_directories((Path(sys.argv[1]),))
run([corpus], [Slow()], Plan(count_syncs=False), Path(sys.argv[2]), lambda _: None)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, versions: tuple[Path, ...], work: Path) -> None:
    fifo = work.parent / "fifo"
    os.mkfifo(fifo)
    arguments = [str(versions[0]), str(work), str(fifo)]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        with open(fifo, encoding="ascii") as reading:
            assert reading.readline() == "here\n"
            assert list(work.iterdir())
            process.send_signal(number)
            assert reading.read() == "", "what it started is still there"
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert process.returncode != 0
    assert list(work.iterdir()) == []


def test_the_defaults_are_one_of_each_program() -> None:
    everybody = all_contenders()
    assert default_names(everybody) == ["casstore", "restic", "borg", "casync", "dvc", "hf_xet", "git", "cp", "tar"]
    assert len({contender.name for contender in everybody}) == len(everybody)
