"""Logging in the background (FEATURES B4, B5): it ends well, or says why not; nothing submitted is lost in silence."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore import (
    Artifact,
    CasstoreError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    Store,
    Submission,
    TypeConflictError,
    WaitTimeoutError,
)
from casstore.backend.memory import forget_memory


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open("memory://submit", create=True) as opened:
        yield opened
    forget_memory("submit")


def artifact(data: bytes, name: str = "ds", kind: str = "file") -> Artifact:
    made = Artifact(name, kind)
    made.add_bytes(data, "a")
    return made


class Gate:
    """A progress callback that lets nothing through until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, phase: str, done: int, total: int) -> None:
        self.reached.set()
        assert self.open.wait(60)


def test_what_is_submitted_is_logged_with_all_keywords(store: Store) -> None:
    with store.run(id="r1") as run:
        submission = store.submit(artifact(b"1"), aliases=["best"], run=run, attrs={"k": 1})
        version = submission.wait()
    assert (submission.state, submission.done(), submission.error) == ("COMMITTED", True, None)
    assert (version.ref, set(version.aliases), version.attrs) == ("ds:v0", {"best", "latest"}, {"k": 1})
    assert submission.wait(0) is version
    assert run.outputs() == [version]


def test_it_is_pending_until_it_is_durable_and_a_wait_that_is_too_short_changes_nothing(store: Store) -> None:
    gate = Gate()
    submission = store.submit(artifact(b"1"), progress=gate)
    assert gate.reached.wait(60)
    assert (submission.state, submission.done()) == ("PENDING", False)
    with pytest.raises(WaitTimeoutError) as caught:
        submission.wait(0)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, ConflictError)
    assert caught.value.exit_code == 13
    assert list(store.collections()) == [], "no half version is ever listed"
    gate.open.set()
    assert submission.wait().ref == "ds:v0"


def test_there_is_no_thread_before_and_none_after(store: Store) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("casstore-submit")]

    assert ours() == []
    gate = Gate()
    submission = store.submit(artifact(b"1"), progress=gate)
    assert ours() == ["casstore-submit-ds"]
    gate.open.set()
    submission.wait()
    submission.join()
    assert ours() == []


def test_the_error_of_the_log_is_raised_by_the_wait(store: Store) -> None:
    store.log_artifact(artifact(b"1"))
    submission = store.submit(artifact(b"2", kind="model"))
    with pytest.raises(TypeConflictError):
        submission.wait()
    with pytest.raises(TypeConflictError):
        submission.wait()
    assert submission.state == "FAILED"
    assert isinstance(submission.error, TypeConflictError)
    with pytest.raises(NotFoundError):
        store.submit(artifact(b"2"), run="nobody").wait()
    with pytest.raises(InvalidInputError):
        store.submit("no artifact").wait()  # type: ignore[arg-type]


def test_what_has_begun_cannot_be_cancelled(store: Store) -> None:
    gate = Gate()
    submission = store.submit(artifact(b"1"), progress=gate)
    assert gate.reached.wait(60)
    assert not submission.cancel()
    gate.open.set()
    assert submission.wait().ref == "ds:v0"
    assert not submission.cancel()


def test_what_has_not_begun_never_begins_once_it_is_cancelled() -> None:
    done: list[int] = []
    submission = Submission(lambda: done.append(1), "ds")
    assert submission.cancel()
    submission.start()
    submission.join()
    assert (submission.state, done, submission.done()) == ("CANCELLED", [], True)
    with pytest.raises(ConflictError, match="cancelled"):
        submission.wait()


def test_closing_waits_for_what_was_submitted() -> None:
    store = Store.open("memory://closing", create=True)
    gate = Gate()
    submission = store.submit(artifact(b"1"), progress=gate)
    assert gate.reached.wait(60)
    closing = threading.Thread(target=store.close)
    closing.start()
    gate.open.set()
    closing.join()
    assert submission.state == "COMMITTED"
    with Store.open("memory://closing") as again:
        assert again.get("ds").get_entry("a").read() == b"1"
    with pytest.raises(CasstoreError, match="closed"):
        store.submit(artifact(b"2")).wait()
    forget_memory("closing")


def test_an_interpreter_that_exits_finishes_what_was_submitted(tmp_path: Path) -> None:
    """The pools of threads that a log uses must still take work then."""
    code = """
import os, sys, threading
from casstore import Artifact, Store
store = Store.open(sys.argv[1], create=True)
artifact = Artifact("ds")
for number in range(20):
    artifact.add_bytes(os.urandom(200_000), f"f{number}")
leaving = threading.Event()
def slow(phase, done, total):  # the log goes on only once the interpreter is on its way out
    assert leaving.wait(60)
store.submit(artifact, progress=slow)
threading._register_atexit(leaving.set)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    with Store.open(tmp_path / "s") as store:
        assert store.get("ds").file_count == 20
        assert store.get("ds").verify() == 20 * 200_000


def test_a_store_with_something_submitted_pickles(store: Store) -> None:
    gate = Gate()
    submission = store.submit(artifact(b"1"), progress=gate)
    copy = pickle.loads(pickle.dumps(store))
    gate.open.set()
    submission.wait()
    assert copy.url == store.url
    copy.close()


# --- wait on a version


def test_a_version_is_waited_for_at_once(store: Store) -> None:
    version = store.log_artifact(artifact(b"1"))
    assert version.wait() is version
    assert version.wait(0) is version
    for wrong in (-1, -0.1, True, "1", float("nan")):
        with pytest.raises(InvalidInputError):
            version.wait(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError):
            store.submit(artifact(b"1")).wait(wrong)  # type: ignore[arg-type]
