"""casstore as a guest: in services that have handlers, threads and a log of their own; on disks it may not write to.

FEATURES N9, O3, Q16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from casstore import Artifact, ReadOnlyError, Settings, Store
from casstore.cli import main
from casstore.config import VARIABLES
from casstore.testing.checks import read_files
from casstore.testing.snapshot import snapshot

TUNING = Settings(workers=2, index_map_bytes=1 << 20)


def run(script: str, *arguments: str, **environment: str) -> str:
    """What a process of its own prints."""
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


_GUEST = """
import atexit, faulthandler, gc, locale, logging, os, random, signal, socket, sys, tempfile, threading, time, warnings

hooks = []
real = atexit.register
atexit.register = lambda *args, **named: (hooks.append(args[0]), real(*args, **named))[1]

def world():
    return {
        "signals": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "wakeup": signal.getsignal(signal.SIGALRM),
        "threads": sorted(t.name for t in threading.enumerate()),
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "loggers": sorted(n for n in logging.root.manager.loggerDict if n.startswith("casstore")),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "tracing": (sys.gettrace(), sys.getprofile()),
        "recursion": sys.getrecursionlimit(),
        "digits": sys.get_int_max_str_digits(),
        "switch": sys.getswitchinterval(),
        "warnings": [f for f in warnings.filters if "casstore" in str(f)],
        "cwd": os.getcwd(),
        "umask": (mask := os.umask(0), os.umask(mask))[0],
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "random": random.getstate(),
        "timeout": socket.getdefaulttimeout(),
        "tempdir": tempfile.tempdir and tempfile.gettempdir(),
        "faulthandler": faulthandler.is_enabled(),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
    }

def compare(when):
    now = world()
    for what, value in before.items():
        assert now[what] == value, (when, what, value, now[what])
    ours = [hook for hook in hooks if str(getattr(hook, "__module__", "")).startswith("casstore")]
    assert not ours, (when, ours)

signal.signal(signal.SIGUSR1, lambda *_: None)
before = world()
import casstore
compare("import")
from casstore import *
compare("all of it")
with Store.create(sys.argv[1]) as store:
    for number in range(2):
        artifact = Artifact("c")
        artifact.add_bytes(os.urandom(300_000), "x")
        version = store.log_artifact(artifact)
    draft = version.new_draft()
    version.download(sys.argv[1] + ".out")
    version.verify()
    store.delete("c:v0")
    store.trash.empty()
    store.gc(grace=0)
    store.fsck(read_data=True)
    before["threads"] = None
    after = world()
    assert all(t.daemon or t is threading.main_thread() or "casstore" in t.name or "Thread" in t.name
               for t in threading.enumerate()), after["threads"]
    before["threads"] = after["threads"]
    compare("work")
    del draft
before["threads"] = ["MainThread"]
compare("close")
print("done")
"""


def test_nothing_of_the_process_is_changed_by_importing_or_using_it(tmp_path: Path) -> None:
    """N9: signal handlers, threads, logging, hooks, limits, the environment, randomness: all as the host left them."""
    assert run(_GUEST, str(tmp_path / "store")) == "done\n"


_IMPORT = """
import sys
import casstore, casstore.store, casstore.cli
import threading
assert threading.active_count() == 1
for name in ("asyncio", "multiprocessing", "logging.config", "requests", "numpy", "rich"):
    assert name not in sys.modules, name
print("done")
"""


def test_importing_it_starts_nothing() -> None:
    """N9: and brings in no framework."""
    assert run(_IMPORT) == "done\n"


# --- environment


@pytest.fixture
def place(tmp_path: Path) -> str:
    with Store.create(tmp_path / "store", settings=TUNING) as store:
        artifact = Artifact("c")
        artifact.add_bytes(b"1" * 1000, "x")
        store.log_artifact(artifact)
    return str(tmp_path / "store")


def test_a_variable_it_does_not_know_is_warned_of(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """O3: one that is misspelt would be obeyed by nobody."""
    monkeypatch.setenv("CASSTORE_GC_ENABLE", "false")
    with pytest.warns(UserWarning, match=r"'CASSTORE_GC_ENABLE' .*CASSTORE_GC_ENABLED") as caught:
        Store.open(place, settings=TUNING).close()
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    result = CliRunner().invoke(main, ["ls", "--store", place])
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("casstore: warning: ")
    assert "CASSTORE_GC_ENABLE'" in result.stderr
    assert CliRunner().invoke(main, ["ls", "--store", place, "-q"]).stderr == ""
    assert CliRunner().invoke(main, ["init", f"{place}2"]).stderr.startswith("casstore: warning: ")


def test_variables_it_knows_and_those_of_others_are_no_news(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(f"CASSTORE_{name}", {"CRASH_AT": "0", "CHUNKER_KERNEL": "python"}.get(name, "1"))
    monkeypatch.setenv("CASSTORES_X", "1")
    monkeypatch.setenv("casstore_x", "1")
    Store.open(place, settings=TUNING).close()  # warnings are errors here


def test_the_store_of_the_environment(place: str) -> None:
    """O1: ``CASSTORE_URL``, which ``--store`` overrides."""
    result = CliRunner().invoke(main, ["files", "c"], env={"CASSTORE_URL": place})
    assert (result.exit_code, result.stdout.split()) == (0, ["1000", "x"])
    result = CliRunner().invoke(main, ["files", "c"], env={"CASSTORE_URL": f"file://{place}"})
    assert result.exit_code == 0
    result = CliRunner().invoke(main, ["files", "c", "--store", place], env={"CASSTORE_URL": "/nowhere"})
    assert result.exit_code == 0


# --- disks that may not be written


_READER = """
import errno, os, subprocess, sys
place, cache, out = sys.argv[1:]
subprocess.run(["mount", "--bind", place, place], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
try:
    open(os.path.join(place, "probe"), "w")
except OSError as error:
    assert error.errno == errno.EROFS, error
else:
    raise SystemExit("the mount is not read-only")
from casstore import Artifact, ReadOnlyError, Settings, Store
from casstore.testing.checks import read_files

small = Settings(workers=2, index_map_bytes=1 << 20)
with Store.open(place, read_only=True, settings=small) as store:
    version = store.get("c")
    assert read_files(version) == {"x": b"1" * 1000}
    version.download(out)
    version.verify()
    version.verify(out)
    assert [v.version for v in store.versions("c")] == ["v0"]
    assert store.fsck(read_data=True).clean
    store.du(), store.log(), store.status(), list(store.collections()), store.why("c:v0"), version.new_draft()
    artifact = Artifact("c")
    artifact.add_bytes(b"2", "x")
    for change in (
        lambda: store.log_artifact(artifact),
        lambda: store.gc(grace=0),
        version.delete,
        lambda: version.add_alias("a"),
        lambda: version.update(description="d"),
        lambda: store.pin("c:v0", "test"),
        store.checkpoint,
    ):
        try:
            change()
        except ReadOnlyError:
            continue
        raise SystemExit(f"{change} was not refused")
from click.testing import CliRunner
from casstore.cli import main
for words in (["ls"], ["show", "c"], ["cat", "c:latest/x"], ["verify", "c"], ["gc"],
              ["rm", "c:v0", "--yes"]):
    done = CliRunner().invoke(main, words, env={"CASSTORE_URL": place})
    print(words[0], done.exit_code)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="making a mount needs a privilege that this user has not",
)
def test_a_read_only_mount(place: str, tmp_path: Path) -> None:
    """Q16: the store is on a file system that the kernel lets nobody write to; reading works, all else is refused."""
    before = snapshot(Path(place))
    done = subprocess.run(
        [
            "unshare",
            "-m",
            sys.executable,
            "-W",
            "error",
            "-c",
            _READER,
            place,
            str(tmp_path / "cache"),
            str(tmp_path / "out"),
        ],
        env={**os.environ, "CASSTORE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ls", "0", "show", "0", "cat", "0", "verify", "0", "gc", "12", "rm", "12"]
    assert snapshot(Path(place)) == before
    with Store.open(place, settings=TUNING) as store:
        assert read_files(store.get("c")) == {"x": b"1" * 1000}


def test_a_store_opened_to_be_read_only_leaves_everything(place: str) -> None:
    before = snapshot(Path(place))
    with Store.open(place, read_only=True, settings=TUNING) as store:
        with pytest.raises(ReadOnlyError) as caught:
            store.get("c").delete()
        assert caught.value.exit_code == 12
    assert snapshot(Path(place)) == before
