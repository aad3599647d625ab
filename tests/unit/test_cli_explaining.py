"""The commands that explain and those below ``gc``: what they print is what the library says, and scripts get past."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from casstore import Artifact, Store
from casstore.cli import main
from casstore.model import Pin
from casstore.pin import NEVER


class Shell:
    """Runs commands on one store."""

    def __init__(self, url: Path) -> None:
        self.url = str(url)

    def __call__(self, *words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, list(words), env={"CASSTORE_URL": self.url})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, (words, result.output)
        return result

    def json(self, *words: str) -> dict[str, Any]:
        document = json.loads(self(*words, "--json").stdout)
        assert isinstance(document, dict)
        return document


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A store with x:v0, purged, and x:v1."""
    with Store.create(tmp_path / "store") as store:
        for text in ("one", "two"):
            artifact = Artifact("x")
            artifact.add_bytes(text.encode() * 1000, "f")
            store.log_artifact(artifact)
        store.delete("x:v0", reason="wrong")
        store.trash.purge("x:v0")
    return Shell(tmp_path / "store")


@pytest.mark.parametrize(
    "words",
    [
        ("gc", "--dry-run"),
        ("gc", "run", "--dry-run"),
        ("gc", "--json", "--dry-run"),
        ("gc", "-q", "run", "--dry-run", "--json"),
        ("gc", "--dry-run", "--grace", "0", "--max-bytes", "1GB"),
    ],
)
def test_gc_alone_is_gc_run(shell: Shell, words: tuple[str, ...]) -> None:
    document = shell.json(*words)
    assert document["schema"] == "gc/1"
    assert document["dry_run"]


def test_the_store_may_be_named_before_and_after_a_command_below_gc(shell: Shell, tmp_path: Path) -> None:
    Store.create(tmp_path / "other").close()
    other = str(tmp_path / "other")
    for words in (
        ("gc", "--store", other, "--dry-run"),
        ("gc", f"--store={other}", "run", "--dry-run"),
        ("gc", "--store", other, "run", "--dry-run"),
        ("gc", "run", "--dry-run", "--store", other),
    ):
        assert shell.json(*words)["freed_chunks"] == 0
    assert shell.json("gc", "--dry-run")["freed_chunks"] > 0


@pytest.mark.parametrize(
    "words", [("gc", "bogus"), ("gc", "--bogus"), ("gc", "--store"), ("gc", "--dry-run", "reclaim")]
)
def test_what_is_no_command_below_gc_is_bad_usage(shell: Shell, words: tuple[str, ...]) -> None:
    shell(*words, code=2)


def test_the_help_of_gc_shows_its_options_and_its_commands(shell: Shell) -> None:
    text = shell("gc", "--help").stdout
    for word in ("--dry-run", "--max-waste", "undo", "reclaim", "collection is switched off"):
        assert word in text


@pytest.mark.parametrize("words", [(), ("--no-undo",), ("--offline",), ("--dry-run",), ("-q",)])
def test_a_grace_of_nothing_is_done_with_a_remark(shell: Shell, words: tuple[str, ...]) -> None:
    """DESIGN §7: 0 is legal. So nothing is refused, but who did not say that it is meant is told."""
    result = shell("gc", "--grace", "0", *words)
    assert ("cannot be undone" in result.stderr) == (words == ())


def test_a_policy_without_grace_is_remarked_on_too(shell: Shell) -> None:
    shell("policy", "set", "--grace", "0")
    assert "cannot be undone" in shell("gc").stderr
    assert "cannot be undone" not in shell("gc", "--grace", "1h").stderr


def test_undo_and_the_end_of_the_grace(shell: Shell) -> None:
    run = shell.json("gc")["run_id"]
    assert f"casstore gc undo {run} x:v0" in shell("why", "x:v0").stdout
    assert shell("gc", "undo", run).stdout == "x:v0\n"
    shell("trash", "restore", "x:v0")
    shell("rm", "x:v0", "--yes")
    shell("trash", "purge", "x:v0", "--confirm", "x:v0")
    run = shell.json("gc")["run_id"]
    done = shell.json("gc", "reclaim")
    assert done["schema"] == "gc-reclaim/1"
    assert done["reclaimed_bytes"] > 0
    assert shell.json("status")["grace"] == 0
    shell("gc", "undo", run, code=14)
    assert "bytes are gone" in shell("why", "x:v0").stdout
    shell("cat", "x:v1", "f")


def test_the_grace_is_not_ended_while_collection_is_off(shell: Shell) -> None:
    shell("gc")
    shell("policy", "set", "--gc-enabled", "false")
    before = shell.json("status")["grace"]
    shell("gc", "reclaim", code=14)
    assert shell.json("status")["grace"] == before > 0


def test_status_says_what_waits_while_collection_is_off(shell: Shell) -> None:
    shell("policy", "set", "--gc-enabled", "false")
    result = shell("status")
    assert "collection is switched off" in result.stderr
    assert "gc              off" in result.stdout
    assert shell.json("status")["waiting"] > 0


def test_preview_and_why_say_what_the_library_says(shell: Shell) -> None:
    with Store.open(shell.url) as store:
        impact, found = store.preview_delete(["x:v1"]).to_dict(), store.why("x:v1/f").to_dict()
    assert shell.json("preview", "x:v1") == {"schema": "preview/1", **impact}
    assert shell.json("why", "x:v1/f") == {"schema": "why/1", **found}
    shell("preview", "x:v7", code=10)
    shell("why", "blake3:" + "0" * 64, code=10)
    shell("preview", code=2)


def test_the_audit_says_who_and_why(shell: Shell) -> None:
    run = shell.json("gc")["run_id"]
    records = shell.json("log", "--deletions")["deletions"]
    assert [record["action"] for record in records] == ["gc", "purge", "trash"]
    assert (records[0]["run_id"], records[2]["reason"]) == (run, "wrong")
    assert shell.json("log", "--deletions", "-n", "1")["deletions"] == records[:1]
    assert "wrong" in shell("log", "--deletions").stdout


def test_nothing_stored_can_steer_the_terminal(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        for text in (b"1", b"2"):
            artifact = Artifact("x")
            artifact.add_bytes(text, "f")
            store.log_artifact(artifact)
        store.delete("x:v0", reason="\x1b[2Jgone")
        root = store.get("x:v1")._found.version.root
        store._engine.commit(lambda _: (Pin(b"p" * 16, "\x1b[2Jwho", "\x1b[2Jwhat", (root,), NEVER),))
    shell = Shell(tmp_path / "store")
    for words in (("log", "--deletions"), ("why", "x:v1"), ("preview", "x:v1"), ("gc", "--explain"), ("status",)):
        assert "\x1b" not in shell(*words).output


def test_doctor_finds_what_could_be_better(shell: Shell) -> None:
    levels = {check["name"]: check["level"] for check in shell.json("doctor")["checks"]}
    assert levels["gc"] == levels["undo"] == levels["clock"] == levels["damage"] == "ok"
    shell("policy", "set", "--gc-enabled", "false", "--grace", "0")
    found = {check["name"]: check for check in shell.json("doctor")["checks"]}
    assert found["gc"]["level"] == found["undo"]["level"] == "warn"
    assert found["gc"]["hint"]
    assert found["gc"]["hint"] in shell("doctor").stdout
