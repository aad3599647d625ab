"""The protocol model (docs/model/gc.pml): it holds, and without any one of its rules it does not."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest


def _script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "model"
    spec = spec_from_loader("casstore_scripts_model", SourceFileLoader("casstore_scripts_model", str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


model = _script()
CI = [row for row in model.ROWS if not row.nightly]


@cache
def _spin() -> str | Exception:
    try:
        return str(model.find_spin())
    except model.Unavailable as error:
        return Exception(str(error))


@pytest.fixture
def spin() -> str:
    found = _spin()
    if isinstance(found, str):
        return found
    if os.environ.get("CASSTORE_REQUIRE_SPIN") == "1":
        pytest.fail(f"CASSTORE_REQUIRE_SPIN=1, but {found}")
    pytest.skip(str(found))


# One search runs at a time, whatever xdist does: the others wait for it.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("row", CI, ids=lambda row: str(row.name))
def test_the_model_holds_and_every_mutation_is_caught(spin: str, row: object) -> None:
    result = model.check(row, spin=spin)
    assert result.good, model.line(result)


def test_a_search_that_was_cut_short_proves_nothing() -> None:
    assert model.judge("State-vector 88 byte, depth reached 9, errors: 0\n") == model.HOLDS
    assert model.judge("error: max search depth too small\nerrors: 0\n") != model.HOLDS
    assert model.judge("pan: reached -DMEMLIM bound\nWarning: Search not completed\nerrors: 0\n") != model.HOLDS
    assert model.judge("") != model.HOLDS
    assert model.judge("pan:1: invalid end state (at depth 35)\nerrors: 1\n") not in {model.HOLDS, model.BYTES}


def test_every_rule_that_can_be_left_out_is_left_out_by_a_row() -> None:
    """A switch of the model that no row uses would be a mutation nobody checks."""
    text = model.MODEL.read_text(encoding="utf-8")
    switches = {
        word.strip("()")
        for line in text.splitlines()
        if line.startswith(("#if", "#elif"))
        for word in line.replace("defined", " ").replace("(", " ").replace(")", " ").replace("!", " ").split()[1:]
        if word.strip("()").isupper() and len(word) > 2
    }
    used = {flag.split("=")[0] for row in CI + [r for r in model.ROWS if r.nightly] for flag in row.flags.split()}
    assert switches - used - {"NGC"} == set()


def test_readme_names_code_that_exists_and_every_switch() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "model" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py):([A-Za-z_.]+)`", text)
    assert len(named) > 15
    missing = [
        f"{file}:{name}"
        for file, name in named
        if not re.search(
            rf"(def|class) {name.rpartition('.')[2]}\b", (root / "casstore" / file).read_text(encoding="utf-8")
        )
    ]
    assert missing == []
    switches = {flag for row in model.ROWS if row.redundant or row.expect != model.HOLDS for flag in row.flags.split()}
    assert {flag for flag in switches if "=" not in flag and flag not in text} - {
        "TRUNC",
        "PINS",
        "UNDO",
        "ROT",
    } == set()
