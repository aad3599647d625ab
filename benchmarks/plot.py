"""Draws results of `casstore bench -o FILE` as one SVG: for each corpus and step, everybody beside casstore.

    scripts/bench plot benchmarks/results/bench-*.json -o docs/img/benchmarks.svg

Bars are medians as multiples of casstore's, on a logarithmic scale: right of the line is slower, or larger, than
casstore. The thin line on a bar is the spread over the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

STEPS = {
    "first": "first ingest",
    "next": "next version",
    "reread": "forced re-read",
    "all": "all versions",
    "restore": "restore",
    "collect": "delete + collect",
    "stored": "stored bytes",
}
COLORS = {
    "casstore": "#0b6e4f",
    "restic": "#c0504d",
    "borg": "#8064a2",
    "casync": "#e0a030",
    "dvc": "#4bacc6",
    "hf_xet": "#7f7f00",
    "git": "#333333",
    "cp": "#b0b0b0",
    "tar": "#d0d0d0",
}
WIDTH, LABEL, BAR, GAP = 190, 120, 9, 16
DECADES = 1.3
"""of the scale, to either side of the line"""


def values(found: dict[str, Any], corpus: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """step → contender → median, least and greatest."""
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    for entry in found["summary"]:
        if entry["corpus"] == corpus and entry["outcome"] == "ok" and entry["step"] in STEPS:
            spread = (entry["median"], entry["min"], entry["max"])
            table.setdefault(entry["step"], {})[entry["contender"]] = spread
    for entry in found["stored"]:
        if entry["corpus"] == corpus and entry["when"] == "all":
            size = float(entry["bytes"])
            table.setdefault("stored", {})[entry["contender"]] = (size, size, size)
    return table


def position(ratio: float) -> float:
    """Pixels from the left of a panel for a multiple of casstore."""
    decade = max(-DECADES, min(DECADES, math.log10(max(ratio, 1e-9))))
    return (decade + DECADES) / (2 * DECADES) * WIDTH


def panel(x: float, y: float, by_name: dict[str, tuple[float, float, float]], names: list[str]) -> list[str]:
    base = by_name.get("casstore", (0.0, 0.0, 0.0))[0]
    line = x + position(1)
    height = BAR * len(names)
    parts = [f'<line x1="{line:.1f}" x2="{line:.1f}" y1="{y - 2}" y2="{y + height + 2}" stroke="#999"/>']
    for number, name in enumerate(names):
        if not base or name not in by_name:
            continue
        median, least, greatest = (value / base for value in by_name[name])
        end, top = x + position(median), y + number * BAR
        left, right = min(line, end), max(line, end)
        color = COLORS.get(name.partition("-")[0], "#888")
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{max(right - left, 1):.1f}" height="{BAR - 2}" fill="{color}">'
            f"<title>{escape(name)}: {median:.2f} × casstore</title></rect>"
        )
        middle = top + (BAR - 2) / 2
        spread = f'x1="{x + position(least):.1f}" x2="{x + position(greatest):.1f}"'
        parts.append(f'<line {spread} y1="{middle}" y2="{middle}" stroke="#000" stroke-width="0.7"/>')
        if name != "casstore":
            said = f"{median:.2f}" if median < 0.1 else f"{median:.1f}" if median < 100 else f"{median:.0f}"
            at = f'x="{right + 2:.1f}"' if median >= 1 else f'x="{left - 2:.1f}" text-anchor="end"'
            parts.append(f'<text {at} y="{top + BAR - 3}" font-size="7">{said}</text>')
    return parts


def draw(runs: list[dict[str, Any]]) -> str:
    rows = [(corpus["name"], values(found, corpus["name"])) for found in runs for corpus in found["corpora"]]
    contenders = dict.fromkeys(c["name"] for found in runs for c in found["contenders"])
    names = [name for name in contenders if any(name in table for _, row in rows for table in row.values())]
    steps = [step for step in STEPS if any(step in row for _, row in rows)]
    row_height = BAR * len(names) + GAP
    width = LABEL + len(steps) * (WIDTH + GAP)
    height = 40 + len(rows) * row_height + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for column, step in enumerate(steps):
        x = LABEL + column * (WIDTH + GAP) + position(1)
        parts.append(f'<text x="{x:.1f}" y="18" font-size="12" text-anchor="middle">{STEPS[step]}</text>')
        parts.append(f'<text x="{x:.1f}" y="30" font-size="8" text-anchor="middle">casstore = 1</text>')
    for row, (corpus, table) in enumerate(rows):
        y = 40 + row * row_height
        parts.append(f'<text x="4" y="{y + 10}" font-size="12" font-weight="bold">{escape(corpus)}</text>')
        for number, name in enumerate(names):
            at = f'x="{LABEL - 6}" y="{y + number * BAR + BAR - 3}"'
            parts.append(f'<text {at} font-size="8" text-anchor="end">{escape(name)}</text>')
        for column, step in enumerate(steps):
            parts += panel(LABEL + column * (WIDTH + GAP), y, table.get(step, {}), names)
    note = "multiples of casstore's median, logarithmic; right of the line: slower or larger; thin line: min to max"
    parts.append(f'<text x="4" y="{height - 6}" font-size="9">{note}</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SVG")
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.files]
    arguments.output.write_text(draw(runs), encoding="utf-8")
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
