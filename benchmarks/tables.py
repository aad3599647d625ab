"""Turns results of `casstore bench -o FILE` into the Markdown of docs/benchmarks.md.

    scripts/bench tables benchmarks/results/bench-*.json           on stdout
    scripts/bench tables --into docs/benchmarks.md FILE…           between the two marks in that file

Several files, such as one for each corpus, become one: runs of the same machine and versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from casstore.bench.report import tables

BEGIN, END = "<!-- begin: scripts/bench tables -->", "<!-- end: scripts/bench tables -->"


def load(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="replace what is between the marks of a page")
    arguments = parser.parse_args()
    lines: list[str] = []
    for number, found in enumerate(load(arguments.files)):
        lines += [*([""] if number else []), *tables(found)]
    text = "\n".join(lines)
    if arguments.into is None:
        print(text)
        return 0
    page = arguments.into.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        parser.error(f"{arguments.into} has no line {BEGIN} with {END} after it")
    arguments.into.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
