"""Values typed on the command line: sizes, durations, times to live, metadata."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import InvalidInputError, InvalidMetadataError, InvalidSizeError
from casstore.patterns import pattern

if TYPE_CHECKING:
    from casstore.model import Inherit

_SIZE = pattern(r"([0-9]{1,18})(B|[kMGT]B|[KMGT]iB)")
_FACTORS: dict[str, int] = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_PERCENT = pattern(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")
_DURATION = pattern(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_size(text: str) -> int:
    """Bytes in ``10MB``, ``64KiB``, …: a whole number and a unit, nothing else. Raises `InvalidSizeError`."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidSizeError(f"{text!r} is not a size", hint="a whole number with B, kB, MB, GB, TB, KiB … or TiB")
    return int(match[1]) * _FACTORS[match[2]]


def parse_duration(text: str) -> timedelta:
    """``30d``, ``12h``, ``15m``, ``45s``, ``2w``, or ``0``. Raises `InvalidInputError`."""
    if text == "0":
        return timedelta()
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"{text!r} is not a duration", hint="such as 45s, 15m, 12h, 30d or 2w")
    try:
        return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        raise InvalidInputError(f"{text!r} is too long a duration") from None


class Size(click.ParamType[int]):
    """A number of bytes; a word given as ``none`` means 0."""

    name = "size"

    def __init__(self, none: str | None = None) -> None:
        self._none = none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        return 0 if value == self._none else parse_size(value)


class Percent(click.ParamType[float]):
    """A share: ``5%`` or ``0.1%``, as a number from 0 to 1."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        if isinstance(value, float):
            return value
        match = _PERCENT.fullmatch(value)
        if match is None or not 0 < float(match[1]) <= 100:
            raise InvalidInputError(f"{value!r} is not a share", hint="such as 1%, 0.5% or 100%")
        return float(match[1]) / 100


class Duration(click.ParamType[timedelta]):
    """A duration; with ``bare``, a plain number of seconds is one too."""

    name = "duration"

    def __init__(self, *, bare: bool = False) -> None:
        self.bare = bare

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        if isinstance(value, timedelta):
            return value
        return parse_duration(f"{value}s" if self.bare and value.isascii() and value.isdigit() else value)


class TimeToLive(click.ParamType[str]):
    """A duration, ``none`` or ``inherit``; kept as text, for `parse_ttl`."""

    name = "ttl"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        if value not in {"none", "inherit"}:
            parse_duration(value)
        return str(value)


def parse_ttl(text: str) -> timedelta | Inherit | None:
    """A time to live: a duration, ``none`` (never) or ``inherit``. Raises `InvalidInputError`."""
    from casstore.model import INHERIT

    if text == "inherit":
        return INHERIT
    return None if text == "none" else parse_duration(text)


def parse_metadata(assignments: Sequence[str], path: str | None) -> dict[str, object]:
    """Metadata from ``key=value`` words, which win, and a JSON file. Raises `InvalidMetadataError`."""
    values: dict[str, object] = {}
    if path is not None:
        import json

        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
        except OSError as error:
            raise InvalidInputError(f"cannot read {path!r}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise InvalidMetadataError(f"{path!r} is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise InvalidMetadataError(f"{path!r} does not hold a JSON object")
        values.update(found)
    for word in assignments:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidMetadataError(f"{word!r} is not KEY=VALUE")
        values[key] = value
    return values
