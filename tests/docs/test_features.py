"""docs/features.md: every row of the feature contract is in the table, with tests that exist or with who owns it.

Promise guarded: a stranger can look up any row of FEATURES and find the test that fails when it breaks.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
SECTIONS = {"A": 17, "B": 12, "C": 7, "D": 3, "E": 6, "F": 14, "G": 13, "H": 8, "I": 6, "J": 9, "K": 11, "L": 6} | {
    "M": 10,
    "N": 9,
    "O": 6,
    "P": 7,
    "Q": 21,
    "R": 20,
}
"""rows of each section of the contract"""
ROWS = [f"{letter}{number}" for letter, count in SECTIONS.items() for number in range(1, count + 1)]
LATER = {"F3", "F4", "F5", "G10", "N3", "O2", "O4"}
"""rows that a later issue owns, as the table says: object stores and their cache, a server"""
CELLS = {
    cells[0].strip(): cells[2].strip()
    for line in DOCUMENT.splitlines()
    if line.startswith("|") and len(cells := line.strip("|").split("|")) == 3 and not set(line) <= set("|-")
}
del CELLS["row"]


def named_by(row: str) -> list[str]:
    """The tests that show a row, those of the row it refers to included."""
    cell = CELLS[row]
    found = re.findall(r"`(tests/[^`]+)`", cell)
    for other in re.findall(r"\bas ([A-R]\d+)\b", cell):
        found += named_by(other)
    return found


@cache
def functions_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_contract_is_shown_by_a_test(row: str) -> None:
    if row in LATER:
        assert re.match(r"(issue|later): ", CELLS[row])
    else:
        assert named_by(row)


@pytest.mark.parametrize("row", CELLS)
def test_the_named_tests_exist(row: str) -> None:
    assert CELLS[row]
    for name in named_by(row):
        path, _, test = name.partition("::")
        assert test.startswith("test_")
        assert test in functions_in(path), name
