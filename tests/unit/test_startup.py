"""What a command imports, and how it ends: a process that puts one file spends most of its time on that."""

import atexit
import gettext
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from casstore import process
from casstore.backend.hold import Holder, _written
from casstore.patterns import pattern

HEAVY = {
    # of Python and of others
    *("zipfile", "tarfile", "email", "http", "ssl", "importlib.metadata", "tempfile", "shutil", "difflib", "random"),
    *("rich", "fsspec", "platformdirs", "asyncio", "multiprocessing"),
    # of casstore: what only some commands do
    *("casstore.bundle", "casstore.batch", "casstore.run", "casstore.lineage", "casstore.merging", "casstore.copying"),
    *("casstore.ageing", "casstore.deletion", "casstore.trash", "casstore.trashing", "casstore.restoring"),
    *("casstore.collection", "casstore.linking", "casstore.events", "casstore.submission", "casstore.comparing"),
    *("casstore.gc", "casstore.erasure", "casstore.scrub", "casstore.repair", "casstore.checkpointing"),
    *("casstore.inventory", "casstore.explain", "casstore.status", "casstore.doctor", "casstore.audit"),
    *("casstore.checkout", "casstore.reference.http", "casstore.spool"),
    *(f"casstore.cli.{name}" for name in ("bundle", "deletion", "labels", "listing", "pending", "removal", "upkeep")),
}
NEEDED = {
    "put": set(),
    "get": {"casstore.checkout", "random", "shutil", "difflib"},
    "gc": {
        *("casstore.gc", "casstore.ageing", "casstore.checkpointing", "casstore.cli.upkeep"),
        *("casstore.deletion", "casstore.linking", "casstore.trashing"),
    },
}
SPARED = {
    *(
        "inspect",
        "ast",
        "dis",
        "tokenize",
        "linecache",
        "traceback",
        "textwrap",
        "string",
        "logging",
        "ctypes",
        "base64",
    ),
    *("platform", "uuid", "gettext", "locale", "copy", "fnmatch", "signal", "hashlib", "_hashlib", "urllib.parse"),
    *("ipaddress", "decimal", "numbers", "ntpath", "msgspec.inspect", "msgspec._json_schema"),
    *("casstore.reference.files", "casstore.reference.uri", "casstore.reference.reading", "casstore.chunker.fastcdc"),
}
"""what a process of the command line does not import although something it imports does, or did"""
SPARED_BY = {
    "--version": {"json", "msgspec", "lmdb", "blake3", "xxhash", "zstandard", "pathlib"},
    "put": {"json", "casstore.gc"},
    "get": {
        "json",
        "casstore.ingest",
        "casstore.reading",
        "casstore.writer",
        "casstore.chunker",
        "casstore.statcache",
    },
    "rm": {"casstore.ingest", "casstore.reading", "casstore.writer", "casstore.chunker", "casstore.gc.optimize"},
}
PROGRAM = """
import sys
from casstore.cli import main
try:
    main()
except SystemExit as end:
    print("code", end.code)
print("modules", *sys.modules)
"""


def imported(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    *_, code, modules = done.stdout.splitlines()
    assert code == "code 0", done.stderr
    return set(modules.split()[1:])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("startup")
    (root / "files").mkdir()
    (root / "files" / "a.bin").write_bytes(b"x" * 1024)
    imported("--store", str(root / "store"), "init")
    assert imported("--store", str(root / "store"), "put", str(root / "files"), "--name", "first")
    return root


@pytest.mark.parametrize("command", ["put", "get", "gc"])
def test_a_command_imports_what_it_needs_and_no_more(store: Path, command: str) -> None:
    words = {"put": [str(store / "files")], "get": ["first", "-o", str(store / "out")], "gc": []}[command]
    found = imported("--store", str(store / "store"), command, *words)
    assert "casstore.store" in found
    assert found & (HEAVY - NEEDED[command]) == set()


def test_the_version_is_told_without_the_store() -> None:
    found = imported("--version")
    assert {name for name in found if name.startswith("casstore.")} <= {
        *("casstore.cli", "casstore.cli.command", "casstore.cli.output", "casstore.errors", "casstore.values"),
        *("casstore.process", "casstore.patterns", "casstore.native", "casstore._process"),
    }


def test_the_public_class_is_imported_without_what_its_methods_need() -> None:
    program = "import sys, casstore; casstore.Store; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (HEAVY | {"click", "casstore.cli"}) == set()


# --- a process of its own


def whole(*words: str) -> set[str]:
    """The modules that are imported by a process as users start it."""
    module = [sys.executable, "-X", "importtime", "-m", "casstore"]
    done = subprocess.run([*module, *words], capture_output=True, text=True, check=True)
    lines = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert "casstore.cli" in lines
    return set(lines)


@pytest.mark.parametrize("command", ["--version", "put", "get", "rm"])
def test_a_process_imports_nothing_for_the_sake_of_what_it_does_not_do(store: Path, command: str) -> None:
    words = {
        "put": ["put", str(store / "files"), "--name", "first"],
        "get": ["get", "first", "-o", str(store / "elsewhere")],
        "rm": ["rm", "--where", "unaliased", "first", "--permanent", "--collect", "--confirm", "first"],
    }.get(command, [command])
    found = whole("-q", "--store", str(store / "store"), *words)
    assert found & (SPARED | SPARED_BY[command]) == set()


def outcome(program: str, **options: object) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


def test_modules_that_were_postponed_are_the_real_ones_once_they_are_used() -> None:
    names = "('copy', 'fnmatch', 'gettext', 'inspect', 'json', 'platform', 'signal', 'uuid', 'decimal', 'logging')"
    program = f"""
import sys
from casstore.process import import_libraries, postpone
postpone()
import gettext, inspect, json, platform, signal, copy, fnmatch
import_libraries()
assert not {{"typing_extensions", "decimal", "uuid", "logging"}} & {{*sys.modules}}
import click, concurrent.futures, logging, msgspec, pathlib, urllib.parse, uuid, decimal, typing_extensions
assert json.loads(json.dumps([1])) == [1] and copy.copy([2]) == [2] and fnmatch.fnmatch("a", "?")
assert inspect.signature(lambda a: 0).parameters and signal.SIGINT == 2 and platform.machine()
assert uuid.UUID(int=1).int == 1 and decimal.Decimal(1) == 1 and gettext.NullTranslations()
assert isinstance(click.UUID.convert(str(uuid.UUID(int=1)), None, None), uuid.UUID)
assert pathlib.Path("/a b").as_uri() == "file:///a%20b" and pathlib.PureWindowsPath("a\\\\b").parts == ("a", "b")
assert msgspec.json.schema(int) == {{"type": "integer"}} and msgspec.inspect.type_info(int)
logging.basicConfig(format="%(name)s %(message)s", stream=sys.stdout)
concurrent.futures._base.LOGGER.warning("heard")
print([type(sys.modules[name]).__name__ for name in {names}].count("module"))
"""
    assert outcome(program) == (0, "concurrent.futures heard\n10\n", "")


@pytest.mark.parametrize(
    "text", ["", "\n", "a", "  a\n    b\n   c\n", "a\n\n  \tb\n\tc\n  ", "\n  a\n", "a\n b\n   \n  c\n\n\n"]
)
def test_texts_of_help_are_cleaned_as_by_inspect(text: str) -> None:
    assert process.cleandoc(text) == inspect.cleandoc(text)


def test_messages_are_translated_where_another_language_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gettext, "gettext", str.upper)
    monkeypatch.setattr(gettext, "ngettext", lambda one, many, number: f"{number} {many}")
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    translate, translate_number = process._translated, process._translated_number
    assert (translate("a"), translate_number("a", "b", 1), translate_number("a", "b", 2)) == ("a", "a", "b")
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert translate("a") == "a"
    monkeypatch.setenv("LANGUAGE", "de")
    assert (translate("a"), translate_number("a", "b", 1)) == ("A", "1 b")


END = """
import atexit, sys, threading
from casstore.process import run
class Finalized:
    def __del__(self): print("finalized", file=sys.stderr)
kept = Finalized()
atexit.register(print, "at exit")
def main():
    print("said")
    {body}
run(main)
"""
QUICK = "finalized\n"


def test_a_process_ends_at_once_but_not_before_what_was_to_happen() -> None:
    for code in (0, 3, 141, 300):
        assert outcome(END.format(body=f"sys.exit({code})")) == (code & 255, "said\nat exit\n", "")
    assert outcome(END.format(body="sys.exit()")) == (0, "said\nat exit\n", "")


def test_a_process_ends_in_order_where_that_makes_a_difference() -> None:
    thread = "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start(); sys.exit(4)"
    assert outcome(END.format(body=thread)) == (4, "said\nthread\nat exit\n", QUICK)
    assert outcome(END.format(body="sys.exit('words')")) == (1, "said\nat exit\n", f"words\n{QUICK}")
    watched = {**os.environ, "PYTHONDEVMODE": "1"}
    assert outcome(END.format(body="sys.exit(5)"), env=watched) == (5, "said\nat exit\n", QUICK)
    code, said, wrong = outcome(END.format(body="raise ValueError(6)"))
    assert (code, said) == (1, "said\nat exit\n")
    assert "ValueError: 6" in wrong


def test_a_process_that_is_traced_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(os, "_exit", done.append)
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: done.append("functions"))
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        process.leave(0)
    finally:
        sys.settrace(before)
    assert done == []


def test_output_that_cannot_be_written_at_the_end_is_told() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-c", END.format(body="sys.exit(0)")],
            stdout=gone,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            check=False,
        )
    assert done.returncode == 120
    assert b"BrokenPipeError" in done.stderr


def test_garbage_is_collected_while_a_command_works() -> None:
    program = """
import gc
from casstore.process import postpone
postpone()
assert not gc.isenabled()
from casstore.cli import main
from casstore.store import Store
create = Store.create
def noting(*args, **named):
    print(gc.isenabled(), gc.get_threshold()[0] >= 20_000)
    return create(*args, **named)
Store.create = noting
import sys
sys.argv = ["casstore", "init", "memory://a"]
main()
"""
    assert outcome(program) == (0, "True True\nmemory://a\n", "")


def test_patterns_match_as_compiled_ones_do_and_are_compiled_when_they_are_used() -> None:
    ours, theirs = pattern("(a+)b", re.IGNORECASE), re.compile("(a+)b", re.IGNORECASE)
    for text in ("xAAb ab", "", "b"):
        assert ours.findall(text) == theirs.findall(text)
        assert bool(ours.fullmatch(text)) == bool(theirs.fullmatch(text))
        assert ours.sub("-", text) == theirs.sub("-", text)
    assert ours.groups == 1
    wrong = pattern("(")
    with pytest.raises(re.error):
        wrong.match("")


@pytest.mark.parametrize("command", ["casstore put x", "", 'a "quoted" word', "back\\slash", "é", "line\n", "\udcff"])
def test_a_holder_is_written_as_json(command: str) -> None:
    holder = Holder(7, "host-1", command, "collect", 123)
    fields = {"pid": 7, "host": "host-1", "command": command, "doing": "collect", "since": 123}
    assert _written(holder) == json.dumps(fields).encode()
