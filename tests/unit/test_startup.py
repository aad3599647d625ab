"""What a command imports: a process that puts one file spends most of its time on that."""

import subprocess
import sys
from pathlib import Path

import pytest

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
        *("casstore.cli", "casstore.cli.command", "casstore.cli.output", "casstore.errors", "casstore.values")
    }


def test_the_public_class_is_imported_without_what_its_methods_need() -> None:
    program = "import sys, casstore; casstore.Store; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (HEAVY | {"click", "casstore.cli"}) == set()
