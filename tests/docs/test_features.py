"""Guards docs/features.md: every row of issue 2 is in the table, and every test it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"\S+",
    "A1 A2 A3 A4 A5 A6 A7 A8 A9 A11 A12 A13 A14 A15 A16 A17 B1 B2 B5 B6 B7 B8 B9 B10 B11 C1 C2 C3 C6 C7 D1 D2 "
    "G1 G2 G3 G4 G5 G6 G8 J1 J2 J3 J4 J5 J6 J7 J8 J9 K1 K2 K10 L1 L2 L3 L4 L5 L6 M1 M2 M3 M10 Q1 Q2 Q7 Q11 Q12 Q19 "
    "K3 K4 K5 K6 K7 K9 M4 M5 M8 O6 Q8 Q9 Q14 Q21",
)
TABLE = {
    cells[0].strip(): re.findall(r"`(tests/[^`]+)`", cells[2])
    for line in DOCUMENT.splitlines()
    if line.startswith("|") and len(cells := line.strip("|").split("|")) == 3 and not set(line) <= set("|-")
}
TABLE.pop("row")


@cache
def functions_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_issue_is_shown_by_a_test(row: str) -> None:
    assert TABLE[row]


@pytest.mark.parametrize("row", TABLE)
def test_the_named_tests_exist(row: str) -> None:
    assert TABLE[row]
    for name in TABLE[row]:
        path, _, test = name.partition("::")
        assert test.startswith("test_")
        assert test in functions_in(path), name
