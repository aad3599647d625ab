"""The command line: each command in both modes, its exit codes, and what it must never do.

Promises guarded: data on stdout and words on stderr; with ``--json`` one document on each; the exit code is that of
the error (FEATURES §0.1) and a `CasstoreError` never shows a traceback; without a terminal and without a confirmation
nothing is taken away; nothing stored can steer a terminal; Ctrl-C is 130; ``casstore --version`` does not load the
engine.
"""

import base64
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import casstore
from casstore import CasstoreError, Store, errors
from casstore.cli import main
from casstore.cli.content import encode_blocks
from casstore.cli.output import columns, escape, human
from casstore.cli.values import parse_duration, parse_metadata, parse_size
from casstore.errors import InvalidInputError, InvalidMetadataError, InvalidSizeError

PROGRAM = [sys.executable, "-c", "from casstore.cli import main; main()"]
ESC = "\x1b"


class Shell:
    """Runs commands on one store, without a terminal."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.url = str(home / "store")

    def __call__(self, *words: str, code: int = 0, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(main, list(words), input=stdin, env={"CASSTORE_URL": self.url})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, (words, result.output)
        assert "Traceback" not in result.output
        return result

    def json(self, *words: str, code: int = 0, stdin: bytes | None = None) -> dict[str, Any]:
        """The document a command prints."""
        document = json.loads(self(*words, "--json", code=code, stdin=stdin).stdout)
        assert isinstance(document, dict)
        return document

    def error(self, *words: str, code: int, stdin: bytes | None = None) -> dict[str, Any]:
        """The error a command ends with, in JSON; the same command without ``--json`` says the same in words."""
        plain = self(*words, code=code, stdin=stdin)
        result = self(*words, "--json", code=code, stdin=stdin)
        error = json.loads(result.stderr.splitlines()[-1])
        assert set(error) == {"error"}
        assert set(error["error"]) == {"code", "message", "hint", "exit_code"}
        assert error["error"]["exit_code"] == code
        assert plain.stderr.startswith("casstore: ") or "\ncasstore: " in plain.stderr
        found: dict[str, Any] = error["error"]
        return found

    def state(self) -> object:
        """What the store holds, as its users see it."""
        with Store.open(self.url) as store:
            live = [v.ref for c in store.collections() for v in store.versions(c.name)]
            return store.log()[0].seq, live, [item.ref for item in store.trash.list()]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_bytes(b"hello\n")
    (tree / "sub" / "b.bin").write_bytes(bytes(range(256)) * 40)
    shell = Shell(tmp_path)
    shell("init")
    return shell


@pytest.fixture
def two(shell: Shell) -> Shell:
    """A store with ds:v0 (a.txt, sub/b.bin) and ds:v1 (a.txt changed, c.txt added)."""
    shell("put", str(shell.home / "tree"), "--name", "ds")
    (shell.home / "tree" / "a.txt").write_bytes(b"changed\n")
    (shell.home / "tree" / "c.txt").write_bytes(b"new\n")
    shell("put", str(shell.home / "tree"), "--name", "ds")
    return shell


# --- which store, and how to speak


def test_no_store_is_a_usage_error_with_a_hint() -> None:
    result = CliRunner().invoke(main, ["ls"], env={"CASSTORE_URL": None})
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--store URL" in result.stderr
    assert "CASSTORE_URL" in result.stderr


def test_the_innermost_store_wins(tmp_path: Path) -> None:
    for name in ("env", "group", "command"):
        CliRunner().invoke(main, ["init", str(tmp_path / name)])

    def url(*words: str) -> str:
        result = CliRunner().invoke(main, list(words), env={"CASSTORE_URL": str(tmp_path / "env")})
        return str(json.loads(result.stdout)["head"])

    for name, count in (("group", 1), ("command", 2)):
        for text in range(count):
            words = ["put", "-", "--name", "x", "--path", "x", "--store", str(tmp_path / name)]
            assert CliRunner().invoke(main, words, input=str(text)).exit_code == 0
    command = ("index", "rebuild", "--json")
    assert url(*command) == "0"
    assert url("--store", str(tmp_path / "group"), *command) == "1"
    assert url("--store", str(tmp_path / "group"), *command, "--store", str(tmp_path / "command")) == "2"


def test_json_and_quiet_before_the_command(two: Shell) -> None:
    assert json.loads(two("--json", "ls").stdout)["schema"] == "collections/1"
    assert json.loads(two("trash", "--json", "ls").stdout)["schema"] == "trash/1"
    (two.home / "tree" / "c.txt").write_bytes(b"new\n")
    words = ("put", str(two.home / "tree"), "--name", "ds", "--description", "other")
    assert "keeps its own description" in two(*words).stderr
    assert two("-q", *words).stderr == ""


@pytest.mark.parametrize("words", [("nope",), ("put",), ("ls", "--nope"), ("log", "-n", "0"), ("trash", "nope")])
def test_wrong_usage_is_2_in_both_modes(shell: Shell, words: tuple[str, ...]) -> None:
    assert shell.error(*words, code=2)["code"] == "usage"


@pytest.mark.parametrize("words", [(), ("trash",), ("alias",), ("index",), ("policy",)])
def test_no_command_shows_the_help(shell: Shell, words: tuple[str, ...]) -> None:
    result = shell(*words, code=2)
    assert result.stdout == ""
    assert f"Usage: {' '.join(('casstore', *words))} " in result.stderr
    assert "\n\nCommands:\n  " in result.stderr
    assert json.loads(shell(*words, "--json", code=2).stderr)["error"]["code"] == "usage"


def test_a_missing_store_is_10(tmp_path: Path) -> None:
    missing = Shell(tmp_path)
    for words in (["ls"], ["gc"], ["fsck"], ["put", str(tmp_path), "--name", "x"], ["put", "-", "--name", "x"]):
        if words[1:2] == ["-"]:
            words += ["--path", "x"]
        assert missing.error(*words, code=10, stdin=b"x")["code"] == "store-not-found"
    assert not (tmp_path / "store").exists()


ERRORS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CasstoreError)),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_ends_with_its_code_and_no_traceback(
    kind: type[CasstoreError], shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind(f"bad {ESC}[31m", hint="try\nthis")

    monkeypatch.setattr(Store, "open", fail)
    error = shell.error("ls", code=kind.exit_code)
    assert error == {
        "code": kind.code,
        "message": f"bad {ESC}[31m",
        "hint": "try\nthis",
        "exit_code": kind.exit_code,
    }
    result = shell("ls", code=kind.exit_code)
    assert result.stdout == ""
    assert ESC not in result.stderr
    assert "\\x1b[31m" in result.stderr


def test_an_error_of_the_operating_system_is_30(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/where")

    monkeypatch.setattr(Store, "open", fail)
    error = shell.error("ls", code=30)
    assert "/some/where" in error["message"]


def test_a_bug_is_not_hidden(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Store, "open", fail)
    with pytest.raises(ZeroDivisionError):
        shell("ls")


# --- init, put


def test_init(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    made = shell.json("init", str(tmp_path / "a"), "--digest", "xxh3-128", "--chunk-average", "16KiB")
    assert made["config"]["digest"] == "xxh3-128"
    assert [made["config"]["chunker"][k] for k in ("minimum", "average", "maximum")] == [8192, 16384, 65536]
    assert shell("init").stdout == f"{shell.url}\n"
    assert shell.error("init", code=11)["code"] == "already-exists"
    for words in (("--digest", "md5"), ("--chunk-average", "16K"), ("--chunk-average", "48KiB")):
        shell.error("init", str(tmp_path / "b"), *words, code=2)
    assert not (tmp_path / "b").exists()


def test_put_a_directory_prints_version_outcome_and_bytes(shell: Shell) -> None:
    words = ("put", str(shell.home / "tree"), "--name", "ml/vision/ds")
    ref, outcome, size, new = shell(*words).stdout.split()
    assert (ref, outcome, size) == ("ml/vision/ds:v0", "created", str(6 + 256 * 40))
    assert int(new) >= 6 + 256 * 40
    assert shell(*words).stdout == f"ml/vision/ds:v0 unchanged {6 + 256 * 40} 0\n"
    assert shell.json("show", "ml/vision/ds")["type"] == "dataset"


def test_put_labels(shell: Shell) -> None:
    meta = shell.home / "meta.json"
    meta.write_text('{"a": [1, 2], "b": "file"}')
    done = shell.json(
        *(
            "put",
            str(shell.home / "tree" / "a.txt"),
            "--name",
            "ds",
            "--type",
            "model",
            "-a",
            "best",
            "--alias",
            "good",
        ),
        *("--tag", "one", "--tag", "two", "--meta", "b=word=1", "--meta-json", str(meta), "--description", "text"),
        *("--ttl", "30d", "--path", "in/side.txt", "--no-latest"),
    )
    version = done["version"]
    assert done["created"] is True
    assert version["aliases"] == ["best", "good"]
    assert (version["type"], version["tags"], version["description"]) == ("model", ["one", "two"], "text")
    assert version["metadata"] == {"a": [1, 2], "b": "word=1"}
    assert shell("files", "ds:v0").stdout.split() == ["6", "in/side.txt"]
    shell.error("show", "ds:latest", code=10)
    with Store.open(shell.url) as store:
        ttl = store.get("ds:v0").ttl
        assert ttl is not None
        assert ttl.days == 30


def test_put_globs_links_and_inner_path(shell: Shell) -> None:
    tree = str(shell.home / "tree")
    shell("put", tree, "--name", "one", "--exclude", "*.bin", "--path", "below")
    assert [f["path"] for f in shell.json("files", "one")["files"]] == ["below/a.txt"]
    shell("put", tree, "--name", "two", "--include", "*.bin")
    assert [f["path"] for f in shell.json("files", "two")["files"]] == ["sub/b.bin"]
    (shell.home / "tree" / "link").symlink_to("a.txt")
    shell.error("put", tree, "--name", "three", code=2)
    shell("put", tree, "--name", "three", "--symlinks", "store")
    assert shell.json("files", "three")["files"][1]["target"] == "a.txt"
    assert "link -> a.txt" in shell("files", "three").stdout
    shell.error("cat", "three:v0/link", code=2)


def test_put_stdin(shell: Shell) -> None:
    shell.error("put", "-", code=2)
    shell.error("put", "-", "--name", "x", code=2)
    assert shell("put", "-", "--name", "x", "--path", "d/f", stdin=b"\0\xff\n").stdout.startswith("x:v0 created 3 ")
    assert shell("cat", "x:v0/d/f").stdout_bytes == b"\0\xff\n"


def test_the_name_is_the_last_part_of_the_path(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell.home / "tree")
    assert shell("put", ".").stdout.startswith("tree:v0 ")
    assert shell("put", "../tree/").stdout.startswith("tree:v0 unchanged")


def test_dedup_base_and_type_conflict(two: Shell) -> None:
    tree = str(two.home / "tree")
    put = ("put", tree, "--name", "ds")
    assert two(*put, "--dedup", "never").stdout.startswith("ds:v2 created")
    assert two.error(*put, "--dedup", "never", "--base", "v0", "--strict-base", code=13)["code"] == "stale-base"
    assert two(*put, "--dedup", "never", "--base", "v2", "--strict-base").stdout.startswith("ds:v3 created")
    assert two(*put, "--dedup", "never", "--base", "v0").stdout.startswith("ds:v4 created")
    assert two("show", "ds", "--field", "base").stdout == "ds:v0\n"
    two.error(*put, "--strict-base", code=2)
    assert two.error(*put, "--type", "model", code=11)["code"] == "type-conflict"


def test_put_dry_run_changes_nothing(two: Shell) -> None:
    before = two.state()
    (two.home / "tree" / "d.txt").write_bytes(b"12345")
    words = ("put", str(two.home / "tree"), "--name", "ds", "--dry-run")
    assert two(*words).stdout == f"ds would read 4 files, {8 + 4 + 5 + 256 * 40} bytes\n"
    plan = two.json(*words)
    assert (plan["name"], plan["files"], plan["bytes"]) == ("ds", 4, 8 + 4 + 5 + 256 * 40)
    assert two.state() == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("/no/such/path", "--name", "x"), "invalid-input"),
        (("{tree}", "--name", "a b"), "invalid-name"),
        (("{tree}", "--name", "a/b/c/d"), "invalid-name"),
        (("{tree}", "--name", "/ds"), "invalid-name"),
        (("{tree}", "--name", "ds:v1"), "invalid-name"),
        (("{tree}", "--name", "ds", "-a", "v1"), "invalid-name"),
        (("{tree}", "--name", "ds", "--meta", "novalue"), "invalid-metadata"),
        (("{tree}", "--name", "ds", "--meta-json", "/no/file"), "invalid-input"),
        (("{tree}", "--name", "ds", "--ttl", "30"), "invalid-input"),
        (("{tree}", "--name", "ds", "--ttl", "0s"), "invalid-input"),
        (("{tree}/a.txt", "--name", "ds", "--exclude", "x"), "usage"),
        (("{tree}", "--name", "ds", "--path", "../x"), "invalid-path"),
    ],
)
def test_put_refuses_bad_input(shell: Shell, words: tuple[str, ...], code: str) -> None:
    filled = [word.replace("{tree}", str(shell.home / "tree")) for word in words]
    assert shell.error("put", *filled, code=2)["code"] == code
    assert shell.json("ls")["collections"] == []


# --- reading


def test_get(two: Shell) -> None:
    out = two.home / "out"
    assert two("get", "ds:v0", "-o", str(out)).stdout == f"{out}\n"
    assert (out / "a.txt").read_bytes() == b"hello\n"
    assert (out / "sub" / "b.bin").read_bytes() == bytes(range(256)) * 40
    assert two("get", "ds:v0", "-o", str(out), "--verify-only").stdout == f"ds:v0 ok {6 + 256 * 40}\n"
    two.error("get", "ds:v1", "-o", str(out), "--verify-only", code=20)
    two.error("get", "ds:v0", "-o", str(out), "--overwrite", "error", code=11)
    assert two.json("get", "ds:v1", "-o", str(out), "--overwrite", "keep")["skipped"] == ["a.txt", "sub/b.bin"]
    assert (out / "a.txt").read_bytes() == b"hello\n"
    assert two.json("get", "ds:v1", "-o", str(out))["files"] == 3
    assert (out / "a.txt").read_bytes() == b"changed\n"


def test_get_a_part(two: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two.home)
    assert two("get", "ds:v0", "--prefix", "sub").stdout == "artifacts/ds:v0\n"
    assert sorted(os.listdir("artifacts/ds:v0")) == ["sub"]
    assert two.json("get", "ds:v1", "-o", "g", "--glob", "*.txt")["files"] == 2
    for words in (("--prefix", "su"), ("--glob", "*.jpg"), ("--prefix", "sub", "--glob", "*.txt")):
        assert two.error("get", "ds:v0", "-o", "none", *words, code=10)["code"] == "entry-not-found"
    assert not os.path.exists("none")
    two.error("get", "ds:v0", "--verify-only", "--prefix", "sub", code=2)
    two.error("get", "ds:v7", code=10)


def test_ls(two: Shell) -> None:
    two("put", str(two.home / "tree"), "--name", "ml/vision/other", "--type", "model")
    table = two("ls").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["name", "ds", "ml/vision/other"]
    assert [c["name"] for c in two.json("ls", "--type", "model")["collections"]] == ["ml/vision/other"]
    assert [c["name"] for c in two.json("ls", "ml/")["collections"]] == ["ml/vision/other"]
    versions = two.json("ls", "ds")["versions"]
    assert [v["version"] for v in versions] == ["v1", "v0"]
    assert versions[0]["aliases"] == ["latest"]
    lines = two("ls", "ds").stdout.splitlines()
    assert lines[0].split() == ["version", "aliases", "size", "files", "created", "digest"]
    assert [line.split()[0] for line in lines[1:]] == ["v1", "v0"]
    assert two.error("ls", "nope", code=10)["code"] == "collection-not-found"
    two("rm", "ds:v0", "--yes")
    assert [v["version"] for v in two.json("ls", "ds", "--trashed")["versions"]] == ["v0"]
    assert [v["version"] for v in two.json("ls", "ds")["versions"]] == ["v1"]
    assert [c["name"] for c in two.json("ls", "--trashed")["collections"]] == ["ds"]


def test_show(two: Shell) -> None:
    shown = two.json("show", "ds")
    assert (shown["schema"], shown["ref"], shown["size"]) == ("version/1", "ds:v1", 8 + 4 + 256 * 40)
    assert f"digest       {shown['digest']}\n" in two("show", "ds").stdout
    assert two("show", "ds", "--field", "digest").stdout == f"{shown['digest']}\n"
    assert two("show", "ds", "--field", "aliases").stdout == "latest\n"
    assert two.json("show", "ds", "--field", "aliases")["value"] == ["latest"]
    two.error("show", "ds", "--field", "nope", code=2)
    two.error("show", "ds:", code=2)
    two.error("show", "ds:nope", code=10)
    two("rm", "ds:v0", "--yes")
    assert "casstore trash restore ds:v0" in two.error("show", "ds:v0", code=10)["hint"]


def test_files_pages(two: Shell) -> None:
    assert [line.split() for line in two("files", "ds:v1").stdout.splitlines()] == [
        ["8", "a.txt"],
        ["4", "c.txt"],
        [str(256 * 40), "sub/b.bin"],
    ]
    seen: list[str] = []
    cursor: list[str] = []
    while True:
        page = two.json("files", "ds:v1", "--limit", "2", *cursor)
        seen += [file["path"] for file in page["files"]]
        if page["next"] is None:
            break
        cursor = ["--start", page["next"]]
    assert seen == ["a.txt", "c.txt", "sub/b.bin"]
    assert "--start 'a.txt'" in two("files", "ds:v1", "--limit", "1").stderr
    assert two.json("files", "ds:v1", "--limit", "3")["next"] is None
    assert [f["path"] for f in two.json("files", "ds:v1", "--prefix", "sub")["files"]] == ["sub/b.bin"]
    two.error("files", "ds:v1", "--prefix", "su", code=10)
    two.error("files", "ds:v1", "--limit", "0", code=2)


def test_cat(shell: Shell) -> None:
    data = os.urandom(7_000_001)  # several blocks, and no multiple of three
    shell("put", "-", "--name", "p/x", "--path", "d/big", stdin=data)
    assert shell("cat", "p/x", "d/big").stdout_bytes == data
    assert shell("cat", "p/x:latest/d/big").stdout_bytes == data
    document = shell.json("cat", "p/x:v0", "d/big")
    assert base64.b64decode(document["content"], validate=True) == data
    assert (document["path"], document["size"]) == ("d/big", len(data))
    shell.error("cat", "p/x", code=2)
    shell.error("cat", "p/x:v0", code=2)
    shell.error("cat", "p/x:v0/nope", code=10)


def test_base64_of_blocks_of_any_size() -> None:
    data = bytes(range(256))
    blocks = [data[:1], data[1:3], b"", data[3:8], data[8:200], data[200:]]
    assert base64.b64decode("".join(encode_blocks(iter(blocks))), validate=True) == data
    assert "".join(encode_blocks(iter(()))) == ""


def test_diff(two: Shell) -> None:
    assert two("diff", "ds:v0", "ds:v1").stdout == "added    c.txt\nchanged  a.txt\n"
    assert two("diff", "ds:v1", "v0").stdout == "removed  c.txt\nchanged  a.txt\n"
    assert two.json("diff", "ds:v0", "latest")["added"] == ["c.txt"]
    same = two("diff", "ds:v1", "latest")
    assert same.stdout == ""
    assert "same content" in same.stderr
    two("put", str(two.home / "tree"), "--name", "other")
    assert two.json("diff", "ds:v1", "other:v0")["b"] == "other:v0"
    two.error("diff", "ds:v0", "v9", code=10)


def test_du_and_log(two: Shell) -> None:
    assert two.json("du")["versions"] == 2
    assert two.json("du", "ds:v0")["logical"] == 6 + 256 * 40
    assert f" {6 + 256 * 40}\n" in two("du", "ds:v0").stdout
    two.error("du", "nope", code=10)
    assert [commit["seq"] for commit in two.json("log")["commits"]] == [2, 1]
    assert [commit["seq"] for commit in two.json("log", "-n", "1")["commits"]] == [2]
    assert "PutVersion×1" in two("log").stdout


# --- aliases


def test_aliases(two: Shell) -> None:
    assert two("alias", "set", "ds:v0", "best").stdout == "best ds:v0\n"
    assert two.json("alias", "set", "ds:v1", "best", "--if-on", "v0")["ref"] == "ds:v1"
    assert two.error("alias", "set", "ds:v1", "best", "--if-on", "v0", code=13)["code"] == "stale-base"
    two.error("alias", "set", "ds:v1", "best", "--if-on", "", code=13)
    two.error("alias", "set", "ds:v1", "v7", code=2)
    assert two("alias", "ls", "ds").stdout.splitlines()[1:] == ["best    v1", "latest  v1"]
    moves = two.json("alias", "log", "ds:best")["changes"]
    assert [(m["before"], m["after"]) for m in moves] == [(None, "v0"), ("v0", "v1")]
    assert {m["alias"] for m in two.json("alias", "log", "ds")["changes"]} == {"best", "latest"}
    two.error("alias", "rm", "ds:v0", "best", code=10)
    two("alias", "rm", "ds:v0", "best", "--missing-ok")
    assert two("alias", "rm", "ds", "best").stdout == "best ds:v1\n"
    two.error("alias", "rm", "ds", "best", code=10)
    assert two.json("alias", "rm", "ds", "best", "--missing-ok")["ref"] is None
    two.error("alias", "ls", "nope", code=10)
    two.error("alias", "log", "nope", code=10)


def test_tags_and_updates(two: Shell) -> None:
    assert two("tag", "add", "ds:v0", "b", "a", "b").stdout == "ds:v0 b a\n"
    assert two.json("tag", "rm", "ds:v0", "b", "none")["tags"] == ["a"]
    assert two.json("tag", "set", "ds:v0", "x", "y")["tags"] == ["x", "y"]
    assert two.json("tag", "set", "ds:v0")["tags"] == []
    before = two.state()
    two.error("tag", "add", "ds:v0", "not\ngood", code=2)
    two.error("tag", "add", "ds:v7", "good", code=10)
    two.error("update", "ds:v0", code=2)
    two.error("update", "ds:v0", "--meta", "no-value", code=2)
    assert two.state() == before
    assert two.json("update", "ds:v0", "--meta", "k=v", "--description", "d")["metadata"] == {"k": "v"}
    assert two.json("update", "ds:v0", "--meta", "l=w")["metadata"] == {"k": "v", "l": "w"}
    changed = two.json("update", "ds:v0", "--meta", "m=x", "--replace")
    assert (changed["metadata"], changed["description"]) == ({"m": "x"}, "d")


# --- taking away


def test_rm_without_terminal_needs_yes(two: Shell) -> None:
    before = two.state()
    assert two.error("rm", "ds:v0", code=14, stdin=b"y\n")["code"] == "confirmation-required"
    assert two.state() == before
    two("rm", "ds:v0", "--yes")
    assert two.state() != before


def test_rm_of_one_version_takes_its_name_instead_of_yes(two: Shell) -> None:
    before = two.state()
    for wrong in ("ds:v1", "ds", ""):
        assert two.error("rm", "ds:v0", "--confirm", wrong, code=14)["code"] == "confirmation-required"
        assert two.error("rm", "ds:v0", "--yes", "--confirm", wrong, code=14)["code"] == "confirmation-required"
    two.error("rm", "ds:v0", "ds:v1", "--confirm", "ds:v0", code=2)
    two.error("rm", "--where", "unaliased", "ds", "--confirm", "ds", code=2)
    assert two.state() == before
    two("rm", "ds:v0", "--confirm", "default/default/ds:v0")
    two("rm", "ds", "--confirm", "ds:v1")
    assert [item["ref"] for item in two.json("trash", "ls")["items"]] == ["ds:v0", "ds:v1"]


def test_rm_dry_run_changes_nothing(two: Shell) -> None:
    two("alias", "set", "ds:v0", "best")
    before = two.state()
    row = two.json("rm", "ds:v0", "--dry-run")["versions"][0]
    assert row["ref"] == "ds:v0"
    assert row["exclusive_bytes"] > 0
    assert row["aliases"] == ["best"]
    assert (row["trashed_at"], row["already_in_trash"]) == (None, False)
    plain = two("rm", "ds:v0", "--dry-run")
    assert f" {row['exclusive_bytes']} " in plain.stdout
    assert "would be refused" in plain.stderr
    assert two.state() == before


def test_rm_guards_aliases_before_anything_changes(two: Shell) -> None:
    two("alias", "set", "ds:v1", "best")
    before = two.state()
    assert two.error("rm", "ds:v0", "ds:v1", "--yes", code=14)["code"] == "alias-guard"
    assert two.error("rm", "ds:v0", "ds:v9", "--yes", code=10)["code"] == "version-not-found"
    assert two.state() == before
    gone = two.json("rm", "ds:v0", "ds:v1", "--yes", "--delete-aliases", "--reason", "old")["versions"]
    assert {row["ref"] for row in gone} == {"ds:v0", "ds:v1"}
    assert {item["reason"] for item in two.json("trash", "ls")["items"]} == {"old"}


def test_rm_resolves_references_first_and_twice_is_no_error(two: Shell) -> None:
    rows = two.json("rm", "ds:latest", "ds", "ds:v1", "--yes")["versions"]
    assert [row["ref"] for row in rows] == ["ds:v1"]
    again = two.json("rm", "ds:v1", "--yes")["versions"]
    assert again[0]["already_in_trash"] is True
    assert two.json("show", "ds")["version"] == "v0"


def test_trash_ls_and_restore(two: Shell) -> None:
    two("alias", "set", "ds:v0", "best")
    two("rm", "ds:v0", "--yes", "--delete-aliases")
    item = two.json("trash", "ls")["items"][0]
    assert item["ref"] == "ds:v0"
    assert item["exclusive_bytes"] > 0
    assert 29.8 <= item["days_left"] <= 30
    line = two("trash", "ls").stdout.splitlines()[1]
    assert line.startswith("ds:v0 ")
    assert str(item["exclusive_bytes"]) in line.split()
    two("alias", "set", "ds:v1", "best")
    restored = two.json("trash", "restore", "ds:v0")["restored"][0]
    assert restored == {"ref": "ds:v0", "kind": "version", "aliases": [], "aliases_not_restored": ["best"]}
    two.error("trash", "restore", "ds:v0", code=10)


def test_rm_for_good(two: Shell) -> None:
    """FEATURES §0.3, 7, M8: only by name."""
    before = two.state()
    two("rm", "--collection", "ds", "--permanent", "--yes", code=14)
    two("rm", "ds:v0", "--permanent", "--yes", code=14)
    assert two.json("rm", "--collection", "ds", "--permanent", "--dry-run")["dry_run"]
    assert two.state() == before
    done = two.json("rm", "--collection", "ds", "--permanent", "--confirm", "ds")
    assert done["purge_at"] == done["trashed_at"]
    assert two.json("trash", "ls")["items"] == []
    two.error("show", "ds", code=10)


def test_trash_purge_needs_the_name(two: Shell) -> None:
    two("rm", "ds:v0", "--yes")
    before = two.state()
    purge = ("trash", "purge", "ds:v0")
    for words in (purge, (*purge, "--confirm", "ds:v1"), (*purge, "--confirm", "ds"), (*purge, "--confirm", "")):
        assert two.error(*words, code=14, stdin=b"ds:v0\n")["code"] == "confirmation-required"
    assert two.json(*purge, "--dry-run")["purged"] == ["ds:v0"]
    assert two.state() == before
    done = two.json(*purge, "--confirm", "ds:v0")
    assert done["purged"] == ["ds:v0"]
    assert done["exclusive_bytes"] > 0
    assert two.json("trash", "ls")["items"] == []
    for more in (("--confirm", "ds:v1"), ("--dry-run",)):
        two.error("trash", "purge", "ds:v1", *more, code=14)
    two.error("trash", "purge", "ds:v9", "--confirm", "ds:v9", code=10)
    two.error("trash", "purge", "ds", "--confirm", "ds", code=2)


def test_trash_empty_needs_confirmation(two: Shell) -> None:
    two("rm", "ds:v0", "ds:v1", "--yes")
    before = two.state()
    empty = ("trash", "empty")
    for words in (empty, (*empty, "--confirm", "Empty"), (*empty, "--older-than", "7d")):
        assert two.error(*words, code=14, stdin=b"empty\n")["code"] == "confirmation-required"
    two.error(*empty, "--yes", "--older-than", "7", code=2)
    assert two.json(*empty, "--dry-run")["purged"] == ["ds:v0", "ds:v1"]
    assert two.json(*empty, "--older-than", "7d", "--yes")["purged"] == []
    assert two.state() == before
    assert two(*empty, "--confirm", "empty").stdout == "ds:v0\nds:v1\n"
    assert two.json("trash", "ls")["items"] == []


# --- upkeep


def test_gc(two: Shell) -> None:
    two("rm", "ds:v0", "--yes")
    two("trash", "purge", "ds:v0", "--confirm", "ds:v0")
    stored = two.json("du")["stored"]
    plan = two.json("gc", "--dry-run", "--explain", "--grace", "0", "--offline")
    assert plan["dry_run"] is True
    assert {"keep", "retire", "repack"} >= {pack["fate"] for pack in plan["packs"]}
    assert two.json("du")["stored"] == stored
    table = two("gc", "--dry-run", "--explain").stdout
    assert "would free" in table
    assert all(pack["pack"] in table for pack in plan["packs"])
    waiting = two.json("gc", "--offline", "--grace", "1h")
    assert waiting["freed_bytes"] == 0
    assert waiting["pending_bytes"] > 0
    assert "packs" not in waiting
    done = two.json("gc", "--grace", "0", "--max-bytes", "10GiB", "--max-seconds", "600", "--orphan-age", "1h")
    assert done["freed_bytes"] == stored - two.json("du")["stored"] > 0
    assert two("gc", "--incremental", "--max-waste", "0.5").stdout.startswith("freed ")
    two("get", "ds:v1", "-o", str(two.home / "out"))


@pytest.mark.parametrize(
    "words",
    [
        ("--max-bytes", "1.5GB"),
        ("--max-bytes", "100"),
        ("--max-bytes", "-1B"),
        ("--grace", "60"),
        ("--grace", "-1h"),
        ("--orphan-age", "1y"),
        ("--max-waste", "1.1"),
        ("--max-waste", "nan"),
        ("--max-seconds", "-3"),
    ],
)
def test_gc_refuses_bad_limits(shell: Shell, words: tuple[str, ...]) -> None:
    error = shell.error("gc", *words, code=2)
    assert (error["code"] == "invalid-size") == (words[0] == "--max-bytes")


def test_gc_switched_off_is_14(shell: Shell) -> None:
    assert shell.json("policy", "set", "--gc-enabled", "false")["gc_enabled"] is False
    assert shell.error("gc", code=14)["code"] == "gc-disabled"
    shell("gc", "--dry-run")


def test_policy(shell: Shell) -> None:
    shell.error("policy", "set", code=2)
    shell.error("policy", "set", "--trash-days", "-1", code=2)
    assert shell.json("policy", "set", "--trash-days", "7", "--grace", "2h")["grace"] == 7200
    shown = shell.json("policy", "show")
    assert (shown["trash_days"], shown["gc_enabled"]) == (7, True)
    lines = [line.split() for line in shell("policy", "show").stdout.splitlines()]
    assert lines[:3] == [["trash_days", "7.0"], ["grace", "7200.0"], ["gc_enabled", "True"]]
    set_ = shell.json("policy", "set", "--data-waste", "0.5", "--small-packs", "4", "--copy-bytes", "10KiB")
    assert (set_["data_waste"], set_["small_packs"], set_["copy_bytes"]) == (0.5, 4, 10240)
    assert shell.json("policy", "set", "--copy-bytes", "none")["copy_bytes"] is None
    shell.error("policy", "set", "--data-waste", "2", code=2)


def test_verify_lists_every_problem(two: Shell) -> None:
    assert two("verify", "ds").stdout == f"ds:v1 ok {8 + 4 + 256 * 40}\n"
    out = two.home / "out"
    two("get", "ds", "-o", str(out))
    assert two.json("verify", "ds", "--root", str(out))["clean"] is True
    (out / "a.txt").write_bytes(b"CHANGED\n")
    (out / "c.txt").unlink()
    (out / "extra").write_bytes(b"")
    result = two("verify", "ds", "--root", str(out), code=20)
    assert result.stdout == "missing  c.txt\nchanged  a.txt\nextra  extra\n"
    assert "1 missing, 1 changed, 1 extra" in result.stderr
    document = two.json("verify", "ds", "--root", str(out), code=20)
    assert (document["missing"], document["changed"], document["extra"]) == (["c.txt"], ["a.txt"], ["extra"])
    assert document["clean"] is False
    assert two.error("verify", "ds", "--root", str(out), code=20)["code"] == "verification"
    two.error("verify", "ds", "--root", str(two.home / "none"), code=2)


def test_damage_is_20_and_names_the_file(two: Shell) -> None:
    assert two.json("fsck", "--read-data")["clean"] is True
    assert two("fsck").stdout.endswith("clean\n")
    pack = max((p for p in Path(two.url, "packs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 8] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    document = two.json("fsck", "--read-data", code=20)
    assert document["clean"] is False
    assert document["findings"]
    two("fsck", "--read-data", code=20)
    assert two.error("fsck", "--read-data", code=20)["code"] == "integrity"
    broken = [path for path in ("a.txt", "sub/b.bin") if two("verify", "ds:v0", code=20).stdout.count(path)]
    assert broken
    error = two.error("cat", f"ds:v0/{broken[0]}", code=20)
    assert f"ds:v0/{broken[0]}" in error["message"]


def test_index_rebuild(two: Shell) -> None:
    assert two("index", "rebuild").stdout == "2\n"
    assert two.json("index", "rebuild")["head"] == 2


# --- what is stored cannot steer a terminal


def test_control_characters_are_escaped(shell: Shell) -> None:
    bad = f"a{ESC}]0;owned\x07b\nc\u202ed\x9b31m"
    path = str(shell.home / "tree" / "a.txt")
    shell("put", path, "--name", "ds", "--description", bad, "--meta", f"k={bad}")
    shell("rm", "ds:v0", "--yes", "--reason", bad)
    shown = [shell("trash", "ls"), shell("trash", "ls", "--json")]
    shell("trash", "restore", "ds:v0")
    shown += [shell("show", "ds"), shell("show", "ds", "--json"), shell("show", "ds", "--field", "description")]
    shown += [shell("show", f"d{ESC}s", code=2), shell("ls", f"d{ESC}s", code=2), shell("log")]
    for result in shown:
        text = result.stdout + result.stderr
        assert not set(text) & set(f"{ESC}\x07\u202e\x9b"), result
    assert shell.json("show", "ds")["description"] == bad
    assert len(shell("show", "ds", "--field", "description").stdout.splitlines()) == 1


def test_escape_leaves_text_alone() -> None:
    assert escape("žluťoučký 日本 👩‍💻 \\x1b") == "žluťoučký 日本 👩‍💻 \\x1b"
    assert escape("\x00\t\r\n\x1b\x7f\x85\ud800\u2028") == "\\x00\\t\\r\\n\\x1b\\x7f\\x85\\ud800\\u2028"


# --- values


def test_sizes() -> None:
    assert [parse_size(text) for text in ("0B", "7B", "1kB", "10MB", "2GB", "1TB")] == [
        *(0, 7, 1000, 10_000_000),
        *(2_000_000_000, 10**12),
    ]
    assert [parse_size(text) for text in ("1KiB", "1MiB", "1GiB", "3TiB")] == [2**10, 2**20, 2**30, 3 * 2**40]
    for text in (
        "",
        "1",
        "B",
        "1.5GB",
        "-1B",
        "+1B",
        "1 GB",
        "1KB",
        "1gb",
        "1e3MB",
        "1k",
        "1GiBx",
        "١B",
        "1B\n",
        "9" * 5000,
    ):
        with pytest.raises(InvalidSizeError):
            parse_size(text)


def test_durations() -> None:
    assert [parse_duration(t).total_seconds() for t in ("0", "45s", "15m", "12h", "30d", "2w")] == [
        *(0, 45, 900),
        *(43_200, 30 * 86_400, 14 * 86_400),
    ]
    for text in ("", "1", "d", "-1d", "1.5h", "1 d", "1y", "1D", "1d\n", "999999999w"):
        with pytest.raises(InvalidInputError):
            parse_duration(text)


def test_metadata_words(tmp_path: Path) -> None:
    assert parse_metadata(["a=1", "b=", "a=x=y"], None) == {"a": "x=y", "b": ""}
    for content in ("[1]", "{", "\xff"):
        path = tmp_path / "meta.json"
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(InvalidMetadataError):
            parse_metadata([], str(path))


def test_human_sizes_and_columns() -> None:
    assert [human(n) for n in (0, 999, 1000, 12_345, 999_949, 999_950, 10**21 * 5)] == [
        *("0 B", "999 B", "1.0 kB", "12.3 kB", "999.9 kB"),
        *("1.0 MB", "5000.0 EB"),
    ]
    assert list(columns(("n", "size"), [("long", 5), ("s", 1000)], "size")) == [
        "n     size",
        "long     5",
        "s     1000",
    ]


# --- the process


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *words], capture_output=True, check=False, timeout=60, **options)


def test_version_and_help_do_not_load_the_engine() -> None:
    code = (
        "import sys\n"
        "from casstore.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'lmdb', 'zstandard', 'fsspec', 'rich', 'blake3', 'xxhash', 'msgspec', 'platformdirs'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    for words in (["--version"], ["--help"], ["put", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("loaded: []\n"), done
    assert run("--version").stdout == f"casstore {casstore.__version__}\n".encode()
    module = [sys.executable, "-m", "casstore"]
    done = subprocess.run([*module, "no-such-command"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].strip()) == (2, "hint: casstore --help")


def test_public_names_are_lazy_and_complete() -> None:
    for name in casstore.__all__:
        assert getattr(casstore, name).__name__ == name if name != "INHERIT" else casstore.INHERIT is not None
        assert name in dir(casstore)
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        casstore.Nope  # type: ignore[attr-defined]  # noqa: B018
    code = "import sys, casstore\nassert 'lmdb' not in sys.modules\nfrom casstore import *\nStore, INHERIT\n"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# Buffered, as users run it: then the interpreter writes the rest when it ends, and that may fail as well.
BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}


@pytest.mark.parametrize("words", [("cat", "big:v0/big"), ("ls",)])
def test_a_broken_pipe_is_silent(shell: Shell, words: tuple[str, ...]) -> None:
    (shell.home / "big").write_bytes(os.urandom(5_000_000))
    shell("put", str(shell.home / "big"))
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as gone:
        done = subprocess.run(
            [*PROGRAM, *words, "--store", shell.url],
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
            env=BUFFERED,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("ls",), ("ls", "--json"), ("cat", "ds:v0/a.txt")])
def test_output_that_cannot_be_written_is_30(two: Shell, words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, *words, "--store", two.url],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
            env=BUFFERED,
        )
    assert done.returncode == 30
    assert done.stderr.count(b"\n") == 1
    assert b"No space left" in done.stderr


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_ctrl_c_is_130_with_a_short_line(shell: Shell, words: tuple[str, ...]) -> None:
    # A shell may have started the tests in the background, where Ctrl-C is ignored.
    awake = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {PROGRAM[-1]}"
    command = [sys.executable, "-c", awake, "put", "-", "--name", "x", "--path", "x", "--store", shell.url, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        # The pipe holds less than this, so the command is reading by the time that all is written.
        process.stdin.write(b"x" * 2_000_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    if words:
        assert json.loads(err)["error"]["exit_code"] == 130
    else:
        assert err == b"casstore: interrupted\n"
    assert shell.json("ls")["collections"] == []


def test_names_outside_the_encoding_do_not_fail(shell: Shell) -> None:
    (shell.home / "tree" / "ž日.txt").write_bytes(b"")
    shell("put", str(shell.home / "tree"), "--name", "ds")
    done = run("files", "ds", "--store", shell.url, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert b"\\u017e\\u65e5.txt" in done.stdout


@pytest.fixture
def terminal(shell: Shell) -> Iterator[Callable[..., tuple[int, bytes]]]:
    """Run a command on a terminal of its own and answer its question."""
    opened: list[int] = []

    def type_in(*words: str, answer: bytes | None = None, question: bytes = b"?") -> tuple[int, bytes]:
        ours, theirs = pty.openpty()
        opened.append(ours)
        environment = {**os.environ, "TERM": "xterm", "CASSTORE_URL": shell.url}
        process = subprocess.Popen(
            [*PROGRAM, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        seen = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ready, _, _ = select.select([ours], [], [], 1)
            if ready:
                try:
                    block = os.read(ours, 65536)
                except OSError:  # Linux: the other side is closed
                    break
                if not block:
                    break
                seen += block
            if answer is not None and question in seen:
                os.write(ours, answer)
                answer = None
        return process.wait(timeout=60), seen

    yield type_in
    for descriptor in opened:
        os.close(descriptor)


def test_a_terminal_is_asked(two: Shell, terminal: Callable[..., tuple[int, bytes]]) -> None:
    before = two.state()
    code, seen = terminal("rm", "ds:v0", answer=b"n\n")
    assert b"Move ds:v0 to the trash? [y/N]" in seen
    assert code == 14
    assert terminal("rm", "ds:v0", answer=b"\x04")[0] == 14
    assert terminal("rm", "ds:v0", "--json", answer=b"\n")[0] == 14
    assert two.state() == before
    assert terminal("rm", "ds:v0", answer=b"y\n")[0] == 0
    assert terminal("trash", "purge", "ds:v0", answer=b"y\n", question=b"for good:")[0] == 14
    assert [item["ref"] for item in two.json("trash", "ls")["items"]] == ["ds:v0"]
    assert terminal("trash", "purge", "ds:v0", answer=b"ds:v0\n", question=b"for good:")[0] == 0
    assert two.json("trash", "ls")["items"] == []


def test_progress_only_on_a_terminal(shell: Shell, terminal: Callable[..., tuple[int, bytes]]) -> None:
    tree = str(shell.home / "tree")
    code, seen = terminal("put", tree, "--name", "one")
    assert code == 0
    assert b"read" in seen
    assert b"one:v0 created" in seen
    _, quiet = terminal("put", tree, "--name", "two", "-q")
    assert ESC.encode() not in quiet
    _, checked = terminal("get", "one", "-o", tree, "--verify-only")
    assert b"one:v0 ok" in checked
    assert terminal("fsck", "--read-data")[0] == 0
    assert terminal("gc")[0] == 0
    for words in (("put", tree, "--name", "three"), ("verify", "one"), ("fsck",), ("gc",)):
        assert shell(*words).stderr == ""
