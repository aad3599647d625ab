"""How things look on a terminal: escaped text, sizes, columns, progress bars."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casstore.patterns import pattern

if TYPE_CHECKING:
    import re

    from rich.progress import TaskID

    from casstore.model import Progress

_CONTROL = pattern("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""control characters, line separators, changes of the writing direction, halves of surrogate pairs"""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")
_BYTE_PHASES = frozenset({"read", "write", "verify"})


def escape(text: str) -> str:
    """Text that cannot steer a terminal: control characters by their numbers, all on one line."""
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def human(size: int) -> str:
    """A size with three digits: ``12.3 MB``."""
    if abs(size) < 1000:
        return f"{size} B"
    value = size / 1000
    step = 0
    while abs(value) >= 999.95 and step < len(_UNITS) - 1:
        value /= 1000
        step += 1
    return f"{value:.1f} {_UNITS[step]}"


def columns(header: Sequence[str], rows: Sequence[Sequence[object]], right: str = "") -> Iterator[str]:
    """Lines of a table. ``right``: the headers, separated by spaces, of columns that end on one edge."""
    table = [list(header), *([escape(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    aligned = right.split()
    for row in table:
        cells = [
            cell.rjust(width) if name in aligned else cell.ljust(width)
            for cell, width, name in zip(row, widths, header, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def pairs(values: Sequence[tuple[str, object]]) -> Iterator[str]:
    """Lines ``name  value``, the values below one another."""
    width = max((len(name) for name, _ in values), default=0)
    for name, value in values:
        yield f"{name.ljust(width)}  {value}".rstrip()


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A progress callback that draws on stderr: one bar per phase, gone when the work ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=Console(stderr=True), transient=True) as drawing:
        tasks: dict[str, TaskID] = {}

        def show(phase: str, done: int, total: int) -> None:
            form: Callable[[int], str] = human if phase in _BYTE_PHASES else str
            count = f"{form(done)} / {form(total)}" if total else form(done)
            if phase not in tasks:
                tasks[phase] = drawing.add_task(phase, count=count)
            drawing.update(tasks[phase], completed=done, total=total or None, count=count)

        yield show
