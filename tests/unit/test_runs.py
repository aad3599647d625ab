"""Runs and declared uses (FEATURES B3, B5, B8, G12, I1-I4, I6, K10, M6) as a host sees them.

Guards: a run is a record that never owns what it logged; a use is cancelled by whatever takes its version away, in
whatever process, and nothing but another use makes it good again; who declared no use is not disturbed.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
from click.testing import CliRunner

from casstore import (
    AlreadyExistsError,
    Artifact,
    ConflictError,
    Entry,
    InvalidInputError,
    InvalidMetadataError,
    InvalidNameError,
    NotFoundError,
    ReadOnlyError,
    RefusedError,
    Run,
    RunRecord,
    Runtime,
    Store,
    Use,
    UseCancelledError,
    Version,
    VersionNotFoundError,
    Where,
)
from casstore.backend.memory import forget_memory
from casstore.cli import main

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def world() -> Runtime:
    return Runtime(clock=Clock(), actor="ann", writer="host:1")


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open("memory://runs", create=True, runtime=world()) as opened:
        yield opened
    forget_memory("runs")


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Store]:
    """A store that other processes can open."""
    with Store.open(tmp_path / "store", create=True, runtime=world()) as opened:
        yield opened


def artifact(data: bytes, name: str = "ds", kind: str = "file") -> Artifact:
    made = Artifact(name, kind)
    made.add_bytes(data, "a")
    return made


def refs(versions: list[Version]) -> list[str]:
    return [version.ref for version in versions]


# --- I1: a run is a record


def test_a_run_is_running_until_its_block_ends(store: Store) -> None:
    with store.run("train-1", job_type="training", attrs={"lr": 0.1}, id="r1") as run:
        assert (run.id, run.name, run.job_type, run.status, run.attrs) == (
            "r1",
            "train-1",
            "training",
            "running",
            {"lr": 0.1},
        )
        assert run.record.ended_at is None
    record = store.get_run("r1")
    assert (record.status, record.actor) == ("finished", "ann")
    assert record.ended_at is not None
    assert NOW < record.started_at < record.ended_at


def test_a_run_whose_block_raises_has_failed_and_the_error_is_the_block_s(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.run(id="r1"):
        raise ZeroDivisionError
    assert store.get_run("r1").status == "failed"
    with suppress(ZeroDivisionError), store.run(id="r2") as run:
        run.finish("crashed")
        raise ZeroDivisionError
    assert store.get_run("r2").status == "crashed", "the first end counts"


def test_a_run_without_a_block_starts_at_once_and_ends_when_told(store: Store) -> None:
    run = store.run()
    assert store.get_run(run.id).status == "running"
    assert run.name == run.id
    assert len(run.id) == 26, "a ULID"
    run.finish()
    at = store.head
    run.finish("failed")
    assert (run.status, store.head) == ("finished", at)


def test_ids_given_by_the_store_are_in_the_order_of_time(store: Store) -> None:
    ids = [store.run().id for _ in range(3)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 3


def test_the_same_id_again_goes_on_with_the_run_while_it_is_running(store: Store) -> None:
    run = store.run("a", id="r1", attrs={"x": 1})
    at = store.head
    assert store.run(id="r1") == run
    assert store.head == at, "nothing new was said, so nothing was committed"
    again = store.run("b", id="r1", attrs={"y": 2})
    assert (again.name, again.attrs, again.record.started_at) == ("b", {"x": 1, "y": 2}, run.record.started_at)
    again.finish()
    with pytest.raises(AlreadyExistsError, match="has ended"):
        store.run(id="r1")
    store.delete_run("r1")
    with pytest.raises(AlreadyExistsError):
        store.run(id="r1")


def test_runs_are_listed_by_status_and_job_type_in_their_order(store: Store) -> None:
    store.run(id="z", job_type="a").finish()
    store.run(id="y", job_type="b")
    store.run(id="x", job_type="a")
    assert [record.id for record in store.runs()] == ["z", "y", "x"]
    assert [record.id for record in store.runs(status="running")] == ["y", "x"]
    assert [record.id for record in store.runs(status="running", job_type="a")] == ["x"]


def test_attrs_of_a_run_are_merged_or_replaced(store: Store) -> None:
    run = store.run(attrs={"x": 1})
    run.update(attrs={"y": 2})
    assert run.attrs == {"x": 1, "y": 2}
    at = store.head
    run.update({"y": 2})
    assert store.head == at
    run.update({"z": 3}, merge=False)
    assert run.attrs == {"z": 3}


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.run(id="a/b"), InvalidNameError),
        (lambda s: s.run(id=""), InvalidNameError),
        (lambda s: s.run("x" * 129), InvalidNameError),
        (lambda s: s.run("\ud800"), InvalidNameError),
        (lambda s: s.run(job_type=3), InvalidNameError),
        (lambda s: s.run(attrs={"x": float("nan")}), InvalidMetadataError),
        (lambda s: s.run(attrs={"x": "y" * 70_000}), InvalidMetadataError),
        (lambda s: s.get_run("nobody"), NotFoundError),
        (lambda s: s.delete_run("nobody"), NotFoundError),
        (lambda s: s.finish_run("nobody"), NotFoundError),
        (lambda s: s.run_outputs("nobody"), NotFoundError),
        (lambda s: s.log_artifact(artifact(b"1"), run="nobody"), NotFoundError),
        (lambda s: s.log_artifact(artifact(b"1"), attrs={"x": "y" * 70_000}), InvalidMetadataError),
    ],
)
def test_what_is_wrong_changes_nothing(store: Store, call: Callable[[Store], object], error: type[Exception]) -> None:
    at = store.head
    with pytest.raises(error) as caught:
        call(store)
    assert getattr(caught.value, "hint", "")
    assert store.head == at
    assert store.runs() == []


def test_a_status_that_ends_nothing_is_refused(store: Store) -> None:
    run = store.run()
    for word in ("running", "deleted", "a b"):
        with pytest.raises(InvalidNameError):
            run.finish(word)
    assert run.status == "running"


# --- I2, I4: outputs


def test_what_a_run_logs_is_its_output_and_says_so(store: Store) -> None:
    with store.run(id="r1") as run:
        version = run.log(artifact(b"1"), aliases=["best"], tags=["t"])
        other = run.log_artifact(artifact(b"2", "other"))
    assert (version.logged_by(), set(version.aliases), version.tags) == (
        store.get_run("r1"),
        {"best", "latest"},
        ("t",),
    )
    assert refs(run.outputs()) == ["ds:v0", "other:v0"] == refs(run.logged_artifacts())
    assert store.get("ds:v0").to_dict()["run"] == "r1"
    assert other.logged_by() == store.get_run("r1")
    assert store.log_artifact(artifact(b"3")).logged_by() is None


def test_a_version_that_was_there_already_is_an_output_too_but_not_logged_by_the_run(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    with store.run(id="r1") as run:
        version = run.log(artifact(b"1"))
        assert not version.created
        at = store.head
        run.log(artifact(b"1"))
        assert store.head == at, "it is an output already"
    assert refs(run.outputs()) == ["ds:v0"]
    assert version.logged_by() is None


def test_outputs_leave_out_the_trash_unless_asked_and_what_is_purged_always(store: Store) -> None:
    with store.run() as run:
        for data in (b"1", b"2", b"3"):
            run.log(artifact(data))
    store.delete("ds:v0")
    store.delete("ds:v1")
    store.trash.purge("ds:v1")
    assert refs(run.outputs()) == ["ds:v2"]
    assert refs(run.outputs(include_trashed=True)) == ["ds:v0", "ds:v2"]


def test_a_run_that_has_ended_or_was_deleted_logs_and_uses_nothing(store: Store) -> None:
    version = store.log_artifact(artifact(b"0"))
    ended, gone = store.run(), store.run()
    ended.finish()
    store.delete_run(gone.id)
    at = store.head
    for act in (ended.log, lambda a: ended.use(version)):
        with pytest.raises(RefusedError, match="has ended"):
            act(artifact(b"1"))
    for act in (gone.log, lambda a: gone.use(version)):
        with pytest.raises(NotFoundError):
            act(artifact(b"1"))
    assert store.head == at


def test_a_run_that_ends_while_it_logs_gets_no_output(store: Store) -> None:
    """The commit decides, not the look before it."""
    run = store.run()
    draft = artifact(b"1")

    def stop(phase: str, done: int, total: int) -> None:
        run.finish()

    with pytest.raises(RefusedError, match="has ended"):
        run.log(draft, progress=stop)
    assert list(store.collections()) == []


# --- I6: deletion of a run


def test_deleting_a_run_touches_no_version(store: Store) -> None:
    with store.run(id="r1") as run:
        version = run.log(artifact(b"1"))
        run.use(version)
    store.delete_run("r1")
    assert store.get("ds").get_entry("a").read() == b"1"
    assert store.get("ds").logged_by() is None
    assert store.get("ds").used_by() == []
    assert [use.run for use in store.get("ds").uses()] == ["r1"]
    with pytest.raises(NotFoundError, match="was deleted"):
        store.get_run("r1")
    assert store.runs() == []
    with pytest.raises(NotFoundError):
        _ = run.name


def test_a_block_whose_run_was_deleted_meanwhile_ends_well(store: Store) -> None:
    with store.run(id="r1") as run:
        store.delete_run(run.id)


def test_deleting_all_a_run_logged_is_one_plan(store: Store) -> None:
    """K4."""
    store.log_artifact(artifact(b"0"))
    with store.run(id="r1") as run:
        run.log(artifact(b"1"))
        run.log(artifact(b"2", "other"))
    store.log_artifact(artifact(b"3"))
    at = store.head
    done = store.delete(where=Where(run="r1"), delete_aliases=True)
    assert set(done.refs) == {"ds:v1", "other:v0"}
    assert store.head == at + 1


# --- B8: attrs


def test_attrs_of_a_version_are_the_host_s_own_and_stay(store: Store) -> None:
    with store.run() as run:
        version = run.log(artifact(b"1"), step=5, attrs={"k": [1]})
    assert version.attrs == {"history_step": 5, "k": [1]}
    assert store.get("ds").history_step == 5
    version.attrs["k"] = 2
    assert version.attrs["k"] == [1]
    assert version.to_dict()["attrs"] == {"history_step": 5, "k": [1]}
    hit = store.log_artifact(artifact(b"1"), attrs={"other": 1})
    assert (hit.attrs, hit.ignored) == ({"history_step": 5, "k": [1]}, ("attrs",))
    assert store.log_artifact(artifact(b"2")).history_step is None
    assert store.log_artifact(artifact(b"3"), attrs={"history_step": "5"}).history_step is None
    for wrong in (-1, True, "5"):
        with pytest.raises(InvalidInputError):
            store.run().log(artifact(b"4"), step=wrong)  # type: ignore[arg-type]


def test_commit_hash_is_that_of_the_log_and_the_same_for_everybody(store: Store) -> None:
    one, two = store.log_artifact(artifact(b"1")), store.log_artifact(artifact(b"2"))
    with Store.open(store.url, read_only=True) as other:
        assert other.get("ds:v0").commit_hash == one.commit_hash != two.commit_hash
    assert bytes.fromhex(one.commit_hash)


# --- B3: save


def test_labels_assigned_are_stored_by_save_in_one_commit(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    version = store.get("ds")
    version.description = "new"
    version.metadata["x"] = 1
    version.tags = ["a", "b"]
    assert store.get("ds").description == ""
    at = store.head
    version.save()
    assert store.head == at + 1
    now = store.get("ds")
    assert (now.description, now.metadata, now.tags) == ("new", {"x": 1}, ("a", "b"))
    version.save()
    assert store.head == at + 1


def test_save_stores_only_the_keys_that_were_changed(store: Store) -> None:
    draft = artifact(b"1")
    draft.metadata = {"mine": 1, "theirs": 1, "old": 1}
    store.log_artifact(draft)
    version = store.get("ds")
    version.metadata["mine"] = True
    del version.metadata["old"]
    store.get("ds").update(metadata={"theirs": 2})
    version.save()
    assert store.get("ds").metadata == {"mine": True, "theirs": 2}
    assert store.get("ds").metadata["mine"] is True


def test_refresh_forgets_what_was_not_saved_and_bad_labels_are_refused(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    version = store.get("ds")
    version.description, version.metadata = "x", {"a": 1}
    version.refresh()
    assert (version.description, version.metadata) == ("", {})
    with pytest.raises(InvalidInputError):
        version.description = 3  # type: ignore[assignment]
    with pytest.raises(InvalidMetadataError):
        version.metadata = {"x": float("inf")}
    version.metadata["x"] = object()
    with pytest.raises(InvalidMetadataError):
        version.save()
    assert store.get("ds").metadata == {}


# --- I3, G12: uses


def test_a_use_reads_as_the_version_and_ends_with_its_block(store: Store, tmp_path: Path) -> None:
    store.log_artifact(artifact(b"1"))
    with store.run(id="r1") as run:
        with run.use("ds:latest", purpose="train") as use:
            assert isinstance(use, Version)
            assert (use.ref, use.purpose, use.run, use.cancelled) == ("ds:v0", "train", "r1", False)
            report = use.download(tmp_path / "out")
            assert report.files == 1
            (said,) = use.uses()
            assert (said.ref, said.run, said.purpose, said.state, said.holder) == (
                "ds:v0",
                "r1",
                "train",
                "active",
                "ann@host:1",
            )
        assert use.uses()[0].state == "ended"
        assert use.get_entry("a").read() == b"1", "it is a plain version again"
    assert store.get("ds").used_by() == [store.get_run("r1")]
    assert refs(run.inputs()) == ["ds:v0"] == refs(run.used_artifacts())


def test_a_use_again_is_the_same_edge_and_no_commit(store: Store) -> None:
    version = store.log_artifact(artifact(b"1"))
    run = store.run()
    first = run.use(version, "train")
    at = store.head
    assert run.use("ds:v0", "train") == first
    assert run.use_artifact("ds", purpose="train") == first
    assert store.head == at
    run.use("ds", "evaluate")
    assert [use.purpose for use in version.uses()] == ["evaluate"]
    assert not first.cancelled


def test_a_draft_is_logged_and_then_used_and_equal_content_is_one_edge(store: Store) -> None:
    """G12."""
    run = store.run()
    for _ in range(3):
        use = run.use(artifact(b"1"))
        assert use.get_entry("a").read() == b"1"
    assert refs(store.versions("ds")) == ["ds:v0"]
    assert len(use.uses()) == 1
    assert refs(run.outputs()) == refs(run.inputs()) == ["ds:v0"]


def test_the_type_of_what_is_used_can_be_asked_for(store: Store) -> None:
    store.log_artifact(artifact(b"1", "m", "model"))
    run = store.run()
    at = store.head
    for what in ("m", store.get("m"), artifact(b"2", "m", "model")):
        with pytest.raises(InvalidInputError, match="type"):
            run.use(what, type="dataset")
    assert store.head == at
    assert run.use_artifact("m", "model").type == "model"
    with pytest.raises(InvalidInputError):
        run.use(3)  # type: ignore[arg-type]


def test_a_version_of_another_store_cannot_be_used(store: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other", create=True) as other:
        foreign = other.log_artifact(artifact(b"1"))
        with pytest.raises(InvalidInputError, match="another store"):
            store.run().use(foreign)
        with pytest.raises(InvalidInputError, match="another store"):
            store.log_artifact(artifact(b"2"), run=other.run())


def test_a_use_of_a_link_counts_for_the_source(store: Store) -> None:
    version = store.log_artifact(artifact(b"1"))
    version.link("portfolio")
    with store.run(id="r1") as run:
        use = run.use("portfolio:v0")
    assert [record.id for record in version.used_by()] == ["r1"]
    assert [(one.ref, one.run) for one in version.uses()] == [("portfolio:v0", "r1")]
    assert use.ref == "portfolio:v0"


def test_a_use_without_a_run_makes_one_that_ends_with_it(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    at = store.head
    with store.use("ds", purpose="serve") as use:
        assert store.head == at + 1
        assert [(r.id, r.job_type, r.name, r.status) for r in store.runs()] == [(use.run, "use", "serve", "running")]
    assert store.get_run(use.run).status == "finished"
    use.end()
    assert store.head == at + 2


# --- M6: cancelled


READS: dict[str, Callable[[Use, Entry, Path], object]] = {
    "files": lambda use, entry, out: list(use.files()),
    "iteration": lambda use, entry, out: list(use),
    "get_entry": lambda use, entry, out: use.get_entry("a"),
    "item": lambda use, entry, out: use["a"],
    "contains": lambda use, entry, out: "a" in use,
    "manifest": lambda use, entry, out: use.manifest["a"],
    "download": lambda use, entry, out: use.download(out),
    "checkout": lambda use, entry, out: use.checkout(out, force=True),
    "file": lambda use, entry, out: use.file(out),
    "verify": lambda use, entry, out: use.verify(),
    "new_draft": lambda use, entry, out: use.new_draft(),
    "check": lambda use, entry, out: use.check(),
    "entry.read": lambda use, entry, out: entry.read(),
    "entry.open": lambda use, entry, out: entry.open(),
    "entry.download": lambda use, entry, out: entry.download(str(out)),
}


def test_trash_cancels_a_use_and_everything_that_reads_says_so(store: Store, tmp_path: Path) -> None:
    store.log_artifact(artifact(b"1"))
    use = store.run(id="r1").use("ds", "train")
    entry = use.get_entry("a")
    for read in READS.values():
        read(use, entry, tmp_path / "before")
    result = store.delete("ds:v0")
    assert result.cancelled_uses == ("r1",)
    assert use.cancelled
    for name, read in READS.items():
        with pytest.raises(UseCancelledError, match="for train by run r1 was cancelled") as caught:
            read(use, entry, tmp_path / "after")
        assert (name, caught.value.exit_code) == (name, 13)
        assert isinstance(caught.value, ConflictError)
    assert not (tmp_path / "after").exists()
    assert (store.uses("ds:v0")[0].state, store.uses("ds:v0")[0].ended_by) == ("cancelled", "ann")


CALLS: dict[str, Callable[[BinaryIO], object]] = {
    "read": lambda file: file.read(1),
    "read1": lambda file: file.read1(1),  # type: ignore[attr-defined]
    "readinto": lambda file: file.readinto(bytearray(1)),  # type: ignore[attr-defined]
    "readinto1": lambda file: file.readinto1(bytearray(1)),  # type: ignore[attr-defined]
    "readline": lambda file: file.readline(),
    "readlines": lambda file: file.readlines(),
    "next": lambda file: next(file),
    "peek": lambda file: file.peek(1),  # type: ignore[attr-defined]
    "text": lambda file: io.TextIOWrapper(file).readline(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_file_opened_through_a_use_ends_with_it(store: Store, call: Callable[[BinaryIO], object]) -> None:
    """Also where the bytes are in a buffer already; and one that is ended, not cancelled, reads on."""
    store.log_artifact(artifact(b"one\ntwo\nthree\nfour\n"))
    use, ended = store.run(id="r1").use("ds"), store.run(id="r2").use("ds")
    file, other = use.get_entry("a").open(), ended.get_entry("a").open()
    ended.end()
    assert (file.readline(), other.readline()) == (b"one\n", b"one\n")
    call(other)
    file.seek(0)
    assert file.readline() == b"one\n"
    store.delete("ds:v0")
    with pytest.raises(UseCancelledError):
        call(file)
    file.close()
    other.close()


ROUTES: dict[str, Callable[[Store], object]] = {
    "one": lambda s: s.delete("ds:v0"),
    "many": lambda s: s.delete(where=Where(version_in="v0"), collection="ds"),
    "collection": lambda s: s.collection("ds").delete(confirm="ds"),
    "ttl": lambda s: (s.set_ttl("ds:v0", timedelta(seconds=1), allow_immediate=True), s.expire()),
    "retention": lambda s: s.retain("ds", keep_last=1),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_way_to_the_trash_cancels(store: Store, route: str) -> None:
    store.log_artifact(artifact(b"1"))
    store.log_artifact(artifact(b"2"))
    use = store.run().use("ds:v0")
    ROUTES[route](store)
    with pytest.raises(UseCancelledError):
        use.check()


def test_a_use_of_a_link_is_cancelled_with_its_source(store: Store) -> None:
    version = store.log_artifact(artifact(b"1"))
    version.link("portfolio")
    use = store.run().use("portfolio:v0")
    store.delete("ds:v0", delete_links=True)
    with pytest.raises(UseCancelledError):
        use.get_entry("a")


def test_a_restore_does_not_revive_a_use_but_another_use_is_good(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    run = store.run()
    use = run.use("ds")
    store.delete("ds:v0")
    store.trash.restore("ds:v0")
    with pytest.raises(UseCancelledError):
        use.get_entry("a")
    again = run.use("ds")
    assert again.get_entry("a").read() == b"1"
    assert [one.state for one in again.uses()] == ["active"]
    with pytest.raises(UseCancelledError):
        use.get_entry("a")
    use.end()
    assert not again.cancelled
    assert [one.state for one in again.uses()] == ["active"], "the old use ends nothing of the new one"


def test_a_cancelled_use_that_nobody_looked_at_is_cancelled_all_the_same(store: Store) -> None:
    """The holder never looked between the deletion and the new use of the same run."""
    store.log_artifact(artifact(b"1"))
    run = store.run()
    use = run.use("ds")
    store.delete("ds:v0")
    store.trash.restore("ds:v0")
    run.use("ds")
    with pytest.raises(UseCancelledError):
        use.check()


def test_another_process_cancels(on_disk: Store) -> None:
    on_disk.log_artifact(artifact(b"1"))
    with on_disk.use("ds", "serve") as use:
        done = subprocess.run(
            [sys.executable, "-c", f"from casstore import Store; Store.open({on_disk.url!r}).delete('ds:v0')"],
            capture_output=True,
            text=True,
            check=False,
            env={"CASSTORE_ACTOR": "eve"},
        )
        assert done.returncode == 0, done.stderr
        with pytest.raises(UseCancelledError):
            use.get_entry("a")
    assert on_disk.uses("ds:v0")[0].ended_by == "eve"
    assert on_disk.get_run(use.run).status == "failed", "a use of its own that was cancelled is no success"


def test_readers_without_a_use_finish_undisturbed(store: Store) -> None:
    """K10: what is open reads on; what is looked up is not found."""
    data = bytes(range(256)) * 4000
    store.log_artifact(artifact(data))
    version = store.get("ds")
    with version.get_entry("a").open() as reader:
        head = reader.read(1000)
        store.delete("ds:v0")
        assert head + reader.read() == data
    with pytest.raises(VersionNotFoundError):
        version.get_entry("a")
    with pytest.raises(VersionNotFoundError):
        version.new_draft()


def test_the_end_of_a_run_ends_its_uses_and_cancels_none(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    with store.run() as run:
        use = run.use("ds")
    assert [one.state for one in use.uses()] == ["ended"]
    assert use.get_entry("a").read() == b"1"
    assert store.delete("ds:v0").cancelled_uses == ()


def test_nothing_that_is_not_there_can_be_used(store: Store) -> None:
    version = store.log_artifact(artifact(b"1"))
    store.delete("ds:v0")
    run = store.run()
    at = store.head
    with pytest.raises(VersionNotFoundError):
        run.use("ds:v0")
    with pytest.raises(VersionNotFoundError):
        run.use(version)
    with pytest.raises(VersionNotFoundError):
        store.use(version)
    assert store.head == at
    assert [record.id for record in store.runs()] == [run.id], "no run was made for a use that there is not"


def test_a_use_follows_its_version_through_a_rename(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    use = store.run(id="r1").use("ds")
    store.collection("ds").rename("new")
    assert use.get_entry("a").read() == b"1"
    use.end()
    assert [one.state for one in store.uses("new:v0")] == ["ended"]


def test_a_store_that_is_read_only_takes_no_run_and_no_use(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    with Store.open(store.url, read_only=True) as other:
        with pytest.raises(ReadOnlyError):
            other.run()
        with pytest.raises(ReadOnlyError):
            other.use("ds")
        assert other.runs() == []


# --- processes that were killed


def test_the_use_of_a_killed_process_stays_until_its_run_is_ended(on_disk: Store) -> None:
    on_disk.log_artifact(artifact(b"1"))
    code = f"import os; from casstore import Store; Store.open({on_disk.url!r}).use('ds', 'train'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    (use,) = on_disk.uses("ds")
    assert use.state == "active"
    with pytest.raises(RefusedError, match="in use") as caught:
        on_disk.delete("ds:v0", if_in_use="refuse")
    assert use.run in str(caught.value)
    assert f"casstore run finish {use.run}" in str(getattr(caught.value, "hint", ""))
    done = CliRunner().invoke(main, ["--store", on_disk.url, "run", "finish", use.run, "--status", "failed"])
    assert (done.exit_code, done.stdout) == (0, f"{use.run} failed\n")
    on_disk.delete("ds:v0", if_in_use="refuse")


# --- the command line


def test_runs_and_uses_on_the_command_line(store: Store) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(main, ["--store", store.url, *words])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    with store.run("na\x1bme", job_type="training", id="r1") as begun:
        begun.log(artifact(b"1"))
        begun.use("ds", "for \x1b[2J")
    assert "na\\x1bme" in run("run", "ls", "--status", "finished")
    assert run("run", "ls", "--status", "running").splitlines()[1:] == []
    shown = run("run", "show", "r1")
    assert "ds:v0" in shown
    assert "\x1b" not in shown
    assert "\x1b" not in run("uses", "ds")
    assert run("uses", "ds", "--active").splitlines()[1:] == []
    run("run", "rm", "r1")
    missing = CliRunner().invoke(main, ["--store", store.url, "run", "show", "r1"])
    assert (missing.exit_code, "was deleted" in missing.stderr) == (10, True)


def test_records_are_values(store: Store) -> None:
    run = store.run(id="r1")
    assert isinstance(run, Run)
    record = run.record
    assert isinstance(record, RunRecord)
    assert record == store.get_run("r1")
    assert hash(record) == hash(store.get_run("r1"))
    assert record.to_dict()["started_at"] == record.started_at.isoformat()
