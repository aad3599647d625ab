"""docs/cli.md tells the truth: every command, option, exit code and JSON field of the program, and no others.

Promise guarded: what scripts may rely on (options, exit codes, the shapes of ``--json``) is written down, and what is
written down is so. The shapes are taken from real runs.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from casstore import Artifact, Store
from casstore.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def commands(group: click.Group = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands())
SECTIONS = {
    match[1]: match[2] for match in re.finditer(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
}
COMMON = SECTIONS["Options of every command"]
every_command = pytest.mark.parametrize("name", sorted(COMMANDS))


def documented_fields(schema: str) -> dict[str, str]:
    """Field → type, from the table of a JSON document."""
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", SECTIONS[f"`{schema}`"], flags=re.MULTILINE)
    return {field: kind.strip() for field, kind in rows}


def test_the_commands_of_the_page_are_those_of_the_program() -> None:
    on_the_page = {title.removeprefix("casstore ") for title in SECTIONS if title.startswith("casstore ")}
    assert on_the_page == set(COMMANDS)


@every_command
def test_options_are_documented(name: str) -> None:
    section = SECTIONS[f"casstore {name}"] + COMMON
    words = {word for text in re.findall(r"`(-[^`]*)`", section) for word in text.split()}
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            for word in parameter.opts:
                assert word in words, f"casstore {name} {word} is not on the page"


@every_command
def test_documented_options_exist(name: str) -> None:
    rows = re.findall(r"^\| (`-[^|]*(?:\\\|[^|]*)*) \|", SECTIONS[f"casstore {name}"], flags=re.MULTILINE)
    known = {word for p in COMMANDS[name].params if isinstance(p, click.Option) for word in p.opts}
    for row in rows:
        for text in re.findall(r"`(-[^ `]*)", row):
            assert text in known, f"casstore {name} has no {text}"


@every_command
def test_each_command_takes_the_common_options(name: str) -> None:
    known = {word for p in COMMANDS[name].params if isinstance(p, click.Option) for word in p.opts}
    assert {"--store", "--json", "-q", "--quiet"} <= known


@every_command
def test_help_ends_with_the_exit_codes_of_the_page(name: str) -> None:
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    _, title, tail = result.stdout.partition("Exit codes:\n")
    assert title, "no exit codes"
    codes = {int(code) for code in re.findall(r"^  (\d+)  ", tail, flags=re.MULTILINE)}
    common = {int(code) for code in re.findall(r"^\| (\d+) \|", SECTIONS["Exit codes of every command"], re.MULTILINE)}
    own = {int(code) for code in re.findall(r"\*\*(\d+)\*\*", SECTIONS[f"casstore {name}"])}
    assert codes == common | own
    assert all(line.startswith("  ") for line in tail.splitlines()), "something follows the exit codes"


@every_command
def test_each_command_has_an_example_and_a_json_shape(name: str) -> None:
    section = SECTIONS[f"casstore {name}"]
    assert f"$ casstore {name}" in section
    shapes = re.findall(r"\[`([^`]+/\d+)`\]", section)
    assert shapes
    assert all(f"`{shape}`" in SECTIONS for shape in shapes)


def test_init_warns_of_the_fast_digest() -> None:
    text = " ".join(CliRunner().invoke(main, ["init", "--help"]).stdout.split())
    assert "about 5 times faster" in text
    assert "every writer is trusted" in text
    assert "deliberate collisions" in text


# --- the shapes of JSON


def fields(value: object, types: dict[str, str], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every field in a document, by its dotted name; maps are not looked into."""
    if types.get(prefix) in {"map", "any"}:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{prefix}.{key}" if prefix else key
            yield path, inner
            yield from fields(inner, types, path)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, types, f"{prefix}[]")


TESTS: dict[str, Callable[[Any], bool]] = {
    "text": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "time": lambda v: isinstance(v, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[0-9:.]+\+00:00", v) is not None,
    "object": lambda v: isinstance(v, dict),
    "map": lambda v: isinstance(v, dict),
    "list": lambda v: isinstance(v, list),
    "list of text": lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v),
    "list of [text, text]": lambda v: all(isinstance(item, list) and len(item) == 2 for item in v),
    "any": lambda v: True,
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """JSON documents of a session that uses every command, by schema."""
    home = tmp_path_factory.mktemp("cli")
    tree = home / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_bytes(b"a" * 3000)
    (tree / "sub" / "b.txt").write_bytes(b"bee")
    (tree / "link").symlink_to("a.txt")
    store = str(home / "store")
    found: dict[str, list[dict[str, object]]] = {}

    def run(*words: str, code: int = 0) -> None:
        result = CliRunner().invoke(main, [*words, "--json", "--store", store])
        assert result.exit_code == code, (words, result.output)
        document = json.loads(result.stdout)
        assert next(iter(document)) == "schema"
        found.setdefault(document.pop("schema"), []).append(document)

    put = ("put", str(tree), "--name", "ds", "--symlinks", "store")
    run("init")
    with Store.open(store, clock=lambda: datetime.now(UTC) - timedelta(hours=20)) as earlier:
        for data, alias in ((b"0", "mine"), (b"1", "prod")):
            draft = Artifact("old")
            draft.add_bytes(data, "a")
            earlier.log_artifact(draft, aliases=[alias], ttl=timedelta(hours=1))
    run(*put, "--dry-run")
    run(*put, "-a", "best", "--meta", "k=v", "--tag", "t", "--description", "one")
    run(*put, "--description", "other")
    (tree / "a.txt").rename(tree / "z.txt")
    (tree / "sub" / "b.txt").write_bytes(b"wasp")
    (tree / "new.txt").write_bytes(b"new")
    (tree / "link").unlink()
    run(*put)
    run("ls")
    run("ls", "ds")
    run("show", "ds")
    run("show", "ds", "--field", "metadata")
    run("files", "ds:v0")
    run("files", "ds:v0", "--limit", "1")
    run("cat", "ds:v0", "a.txt")
    run("diff", "ds:v0", "v1")
    run("get", "ds:v0", "-o", str(home / "out"))
    run("get", "ds:v0", "-o", str(home / "out"), "--verify-only")
    run("get", "ds:v0", "-o", str(home / "out"), "--overwrite", "keep")
    run("checkout", "ds:v0", str(home / "work"))
    run("checkout", "ds:v1", str(home / "work"), "--dry-run")
    run("checkout", "ds:v1", str(home / "work"), "--yes")
    (home / "out" / "extra").write_bytes(b"x")
    (home / "out" / "a.txt").write_bytes(b"y")
    (home / "out" / "sub" / "b.txt").unlink()
    run("verify", "ds:v0", "--root", str(home / "out"), code=20)
    run("verify", "ds:v0")
    run("du")
    run("du", "ds:v0")
    run("tag", "add", "ds:v1", "seen")
    run("tag", "set", "ds:v1", "seen", "read")
    run("tag", "rm", "ds:v1", "seen")
    run("update", "ds:v1", "--description", "second", "--meta", "k=v")
    run("alias", "set", "ds:v1", "good")
    run("alias", "set", "ds:v0", "good")
    run("alias", "rm", "ds", "good")
    run("alias", "rm", "ds", "good", "--missing-ok")
    run("alias", "ls", "ds")
    run("alias", "log", "ds")
    run("rm", "ds:v0", "--dry-run")
    run("rm", "ds:v0", "--yes", "--delete-aliases")
    run("alias", "set", "ds:v1", "best")
    run("trash", "ls")
    run("ls", "ds", "--trashed")
    run("trash", "restore", "ds:v0")
    run("rm", "ds:v0", "--yes")
    run("trash", "empty", "--dry-run")
    run("trash", "purge", "ds:v0", "--confirm", "ds:v0")
    run("trash", "empty", "--yes")
    run("policy", "show")
    run("policy", "set", "--grace", "2h")
    run("policy", "set", "--protected-aliases", "prod", "--no-ttl-types", "model", "--retention", '{"keep_last": 1}')
    run("ttl", "old:v0")
    run("ttl", "old:v1")
    run("ttl", "--default", "1h", "--dry-run")
    run("expire")
    run("trash", "restore", "old:v0")
    run("ttl", "--default", "30d", "--collection", "old")
    run("alias", "rm", "old:v0", "mine")
    run("retain", "old", "--yes")
    run("ballast", "4KiB")
    run("checkpoint")
    run("preview", "ds:v1")
    run("why", "ds:v1/new.txt")
    run("gc", "--explain")
    report = found["gc/1"][-1]
    run("why", "ds:v0")
    run("status")
    run("doctor")
    run("log", "--deletions")
    run("gc", "undo", str(report["run_id"]))
    run("gc", "reclaim")
    run("gc")
    run("fsck", "--read-data")
    run("index", "rebuild")
    run("log")
    (tree / "secret").write_bytes(b"secret")
    run("put", str(tree), "--name", "much", "--symlinks", "store", "-a", "best")
    for number in range(2):
        (tree / "new.txt").write_bytes(b"%d" % number)
        run("put", str(tree), "--name", "much", "--symlinks", "store")
    (tree / "secret").unlink()
    run("protect", "much:v1", "--reason", "audit")
    run("rm", "--where", "age>0s", "much", "--dry-run")
    run("rm", "--where", "alias=latest", "much", "--yes")
    run("rm", "--where", "age>0s", "much", "--permanent", "--dry-run")
    run("unprotect", "much:v1")
    erasing = ("purge-content", "much:v0/secret", "--reason", "request 17")
    run(*erasing, "--dry-run")
    run(*erasing, "--all-versions", "--confirm", str(found["erasure/1"][0]["digest"]))
    run("rm", "--collection", "much", "--confirm", "much")
    run("trash", "ls")
    run("trash", "restore", "much")
    run("rm", "--collection", "much", "--confirm", "much", "--dry-run")
    run("quota", "1GiB", "--trash", "free")
    run("quota")
    run("du", "--forecast", "30d")
    run("quota", "none")
    run("rm", "--collection", "much", "--confirm", "much")
    run("trash", "purge", "much", "--confirm", "much")
    run("collection", "create", "prod/shelf", "--type", "dataset", "--portfolio")
    run("collection", "describe", "prod/shelf", "what is used")
    run("collection", "show", "prod/shelf")
    run("link", "ds:v1", "prod/shelf", "-a", "staging")
    run("rename", "prod/shelf", "prod/used")
    run("show", "prod/used:staging")
    run("show", "ds:v1")
    run("ls", "prod/used")
    run("ls", "ds")
    run("rm", "ds:v1", "--dry-run")
    run("rm", "prod/used:v0", "--yes")
    run("link", "ds:v1", "prod/used")
    run("unlink", "prod/used:v1", "--dry-run")
    run("unlink", "prod/used:v1")
    run("pin", "add", "ds:v1", "--purpose", "a run")
    run("pin", "ls")
    pin = str(found["pin/1"][0]["id"])
    run("pin", "renew", pin, "--ttl", "none")
    run("pin", "ls")
    run("pin", "rm", pin)
    with Store.open(store) as opened:
        with opened.run("train", "training", {"lr": 0.1}, id="r1") as begun:
            begun.use("ds:v1", "train")
            logged = Artifact("model")
            logged.add_bytes(b"weights", "w")
            begun.log(logged, step=3)
        opened.run(id="r2").use("ds:v1")
    run("run", "ls")
    run("run", "show", "r1")
    run("uses", "ds:v1")
    run("lineage", "ds:v1")
    run("show", "model")
    run("run", "finish", "r2")
    run("run", "rm", "r2")
    upsert = ("--name", "made", "--id", "run-7")
    run("upsert", str(tree / "new.txt"), *upsert)
    run("upsert", str(tree / "sub"), *upsert, "--part", "sub")
    run("pending", "ls")
    run("pending", "show", "run-7")
    run("finish", "run-7", "--expect", "2")
    run("finish", "run-7", "--expect", "2")
    run("pending", "show", "run-7")
    run("upsert", str(tree / "sub"), "--name", "made", "--id", "run-8")
    run("pending", "abort", "run-8", "--dry-run")
    run("pending", "abort", "run-8", "--yes")
    small = ("--rounds", "1", "--steps", "restore", "--no-syncs", "--work", str(home / "bench"))
    rivals = ("--rivals-venv", str(home / "none"), "--contender", "casstore", "--contender", "hf_xet")
    run("bench", str(tree / "sub"), *small, *rivals)
    run("export", "ds:v1", "-o", str(home / "bundle"))
    run("import", str(home / "bundle"), "--project", "moved")
    run("import", str(home / "bundle"), "--project", "moved", "--dry-run")
    run("cp", "ds:v1", "moved/ds", "--alias", "copied")
    for pack in [path for path in (home / "store" / "packs").rglob("*") if path.is_file()]:
        pack.rename(home / "aside")  # one after the other: some hold files, some their names
        checked = json.loads(CliRunner().invoke(main, ["fsck", "--json", "--store", store]).stdout)
        del checked["schema"]
        found["fsck/1"].append(checked)
        (home / "aside").rename(pack)
    for pack in [path for path in (home / "store" / "packs").rglob("*") if path.is_file()]:
        pack.unlink()  # some have ended and are not missed
    run("fsck", code=20)
    return found


def test_every_documented_shape_was_seen_and_no_other(documents: dict[str, list[dict[str, object]]]) -> None:
    on_the_page = {title.strip("`") for title in SECTIONS if re.fullmatch(r"`[a-z-]+/\d+`", title)}
    assert set(documents) == on_the_page


@pytest.mark.parametrize("schema", sorted(title.strip("`") for title in SECTIONS if title.startswith("`")))
def test_fields_are_those_of_the_page(schema: str, documents: dict[str, list[dict[str, object]]]) -> None:
    types = documented_fields(schema)
    seen: dict[str, set[str]] = {}
    for document in documents[schema]:
        for path, value in fields(document, types):
            assert path in types, f"{path} of {schema} is not on the page"
            assert any(TESTS[kind](value) for kind in types[path].split(" or ")), (path, types[path], value)
            seen.setdefault(path, set())
        needed = {path for path in types if "." not in path and "[]" not in path}
        if schema == "gc/1":
            needed -= {"packs", "keepers"}  # with --explain only
        assert needed <= set(document)
    assert set(seen) == set(types), "on the page, but never printed"
