"""Which versions are meant: the predicate `Where`, and its form on the command line. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import timedelta
from typing import NoReturn

from casstore.errors import InvalidInputError
from casstore.model import CollectionRow, VersionRow
from casstore.names import CollectionName, check_alias, check_name, check_tags, check_type
from casstore.patterns import pattern
from casstore.values import dataclass

_SPAN = pattern(r"v(0|[1-9][0-9]{0,17})(?:\.\.v(0|[1-9][0-9]{0,17}))?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
GRAMMAR = (
    "terms joined by 'and': unaliased, alias=NAME, tag=NAME, type=NAME, age>30d, version in v1..v9,v12, "
    "metadata.KEY=VALUE, collection=NAME, run=ID"
)


@dataclass(frozen=True, slots=True)
class Where:
    """Versions for which every condition that is given holds; ``latest`` counts as an alias.

    ``alias``: it has this one. ``version_in``: ``v3`` or ``v1..v9`` (both ends included), one or several.
    ``tag``, ``type``, ``collection``: these. ``older_than``: committed longer ago. ``unaliased``: no alias at all.
    ``metadata``: these keys have these values, nested ones by ``a.b``. ``run``: logged by the run of this id. At least
    one condition is needed, and ``collection`` alone is none: a whole collection is deleted as one. Raises
    `InvalidInputError`.
    """

    alias: str | None = None
    version_in: str | Sequence[str] | None = None
    tag: str | None = None
    type: str | None = None
    older_than: timedelta | None = None
    unaliased: bool = False
    metadata: Mapping[str, object] = field(default_factory=dict)
    collection: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.unaliased, bool):
            raise InvalidInputError(f"unaliased={self.unaliased!r} is not True or False")
        if self.alias is not None:
            check_alias(self.alias)
        if self.tag is not None:
            check_tags((self.tag,))
        if self.type is not None:
            check_type(self.type)
        if self.collection is not None:
            CollectionName.parse(self.collection)
        if self.run is not None:
            check_name(self.run, "run id")
        if self.older_than is not None and (
            not isinstance(self.older_than, timedelta) or self.older_than < timedelta()
        ):
            raise InvalidInputError(f"older_than={self.older_than!r} is not a timedelta of 0 or more")
        if not isinstance(self.metadata, Mapping) or not all(isinstance(key, str) and key for key in self.metadata):
            raise InvalidInputError(f"metadata={self.metadata!r} is not a mapping from keys to values")
        self.spans()
        if not self._conditions():
            raise InvalidInputError(
                "an empty predicate would mean every version", hint="Where(unaliased=True), or another condition"
            )

    def _conditions(self) -> bool:
        return bool(
            self.unaliased
            or self.metadata
            or any(
                value is not None
                for value in (self.alias, self.version_in, self.tag, self.type, self.older_than, self.run)
            )
        )

    def spans(self) -> tuple[tuple[int, int], ...] | None:
        """The first and last number of each range of ``version_in``. Raises `InvalidInputError`."""
        if self.version_in is None:
            return None
        words = (self.version_in,) if isinstance(self.version_in, str) else tuple(self.version_in)
        found = []
        for word in words:
            match = _SPAN.fullmatch(word) if isinstance(word, str) else None
            if match is None:
                raise InvalidInputError(f"{word!r} is not a version or a range of them", hint="v3 or v1..v9")
            first = int(match[1])
            last = first if match[2] is None else int(match[2])
            if last < first:
                raise InvalidInputError(f"{word!r} ends before it begins", hint="v1..v9")
            found.append((first, last))
        if not found:
            raise InvalidInputError("version_in is empty", hint="v3 or v1..v9")
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """The conditions that are given, as JSON values; times in seconds."""
        values: dict[str, object] = {
            "alias": self.alias,
            "version_in": [self.version_in] if isinstance(self.version_in, str) else self.version_in,
            "tag": self.tag,
            "type": self.type,
            "older_than": None if self.older_than is None else self.older_than.total_seconds(),
            "unaliased": self.unaliased or None,
            "metadata": {k: str(v) if isinstance(v, _Word) else v for k, v in self.metadata.items()} or None,
            "collection": self.collection,
            "run": self.run,
        }
        return {key: value for key, value in values.items() if value is not None}


class Matcher:
    """A predicate at a moment. Cheap conditions are looked at first."""

    def __init__(self, where: Where, now: int) -> None:
        """``now``: of the safe clock (µs); what is older than this allows stays so, however long it takes."""
        self._where = where
        self._spans = where.spans()
        self._metadata = list(where.metadata.items())
        self._cutoff = None if where.older_than is None else now - int(where.older_than / timedelta(microseconds=1))
        self._name = None if where.collection is None else str(CollectionName.parse(where.collection))

    def takes(self, collection: CollectionRow) -> bool:
        """Whether versions of this collection can match."""
        return (self._name is None or collection.name == self._name) and (
            self._where.type is None or collection.type == self._where.type
        )

    def row(self, version: VersionRow) -> bool:
        """Whether a version matches in everything but its aliases."""
        where = self._where
        if self._cutoff is not None and version.born >= self._cutoff:
            return False
        if self._spans is not None and not any(a <= version.number <= b for a, b in self._spans):
            return False
        if where.tag is not None and where.tag not in version.tags:
            return False
        if where.run is not None and where.run != version.run:
            return False
        return not self._metadata or self._has(json.loads(version.metadata))

    def aliases(self, held: Sequence[str]) -> bool:
        """Whether a version with these aliases, ``latest`` included, can match."""
        if self._where.unaliased and held:
            return False
        return self._where.alias is None or self._where.alias in held

    def _has(self, metadata: object) -> bool:
        return all(_equal(_dig(metadata, key), wanted) for key, wanted in self._metadata)


_ABSENT = object()


def _dig(values: object, key: str) -> object:
    """The value of a key as it is written, or of a nested one by ``a.b``."""
    if not isinstance(values, dict):
        return _ABSENT
    if key in values:
        return values[key]
    head, dot, rest = key.partition(".")
    return _dig(values.get(head, _ABSENT), rest) if dot else _ABSENT


def _equal(found: object, wanted: object) -> bool:
    if isinstance(wanted, _Word):
        # What is typed has no type: 3 is the number as well as the text.
        return found == wanted.text or (
            not isinstance(found, str) and found is not _ABSENT and _spelled(found) == wanted.text
        )
    # True is 1 for Python, and not for JSON.
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def _spelled(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class _Word:
    """A value typed on the command line."""

    text: str

    def __str__(self) -> str:
        return self.text


# --- the command line ----------------------------------------------------------------------------

_TERM = pattern(r"\s*(unaliased|age|version|alias|tag|type|collection|run|metadata\.[^\s=<>\"']+)(?![\w.-])\s*")
_AND = pattern(r"\s*(and)(?!\S)\s*")
_AGE = pattern(r">\s*([0-9]{1,9})([smhdw])(?![\w.])")
_IN = pattern(r"in\s+(v[0-9]+(?:\.\.v[0-9]+)?(?:\s*,\s*v[0-9]+(?:\.\.v[0-9]+)?)*)(?!\S)")
_VALUE = pattern(r"=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']+))(?!\S)")


def parse_where(text: str) -> Where:
    """Read a predicate as it is typed: see `GRAMMAR`. Raises `InvalidInputError` with the position of the fault."""
    conditions: dict[str, object] = {}
    metadata: dict[str, object] = {}
    at = 0
    while True:
        term = _TERM.match(text, at)
        if term is None:
            _fault(text, at, "a condition")
        word, start, at = term[1], term.start(1), term.end()
        key = word.removeprefix("metadata.") if word.startswith("metadata.") else None
        if word in conditions or key in metadata:
            _fault(text, start, f"no second {word}")
        if word == "unaliased":
            conditions[word] = True
        elif word == "age":
            match = _expect(_AGE, text, at, "'>' and a duration such as 30d")
            conditions["older_than"] = _age(text, at, match)
            conditions[word], at = None, match.end()
        elif word == "version":
            match = _expect(_IN, text, at, "'in' and versions such as v1..v9,v12")
            conditions["version_in"] = tuple(part.strip() for part in match[1].split(","))
            conditions[word], at = None, match.end()
        else:
            match = _expect(_VALUE, text, at, "'=' and a value")
            value = next(part for part in match.groups() if part is not None)
            if key is not None:
                metadata[key] = _Word(value)
            else:
                conditions[word] = value
            at = match.end()
        if not text[at:].strip():
            break
        joint = _AND.match(text, at)
        if joint is None:
            _fault(text, at, "'and'")
        at = joint.end()
    chosen = {key: value for key, value in conditions.items() if key not in {"age", "version"}}
    return Where(metadata=metadata, **chosen)  # type: ignore[arg-type]


def _age(text: str, at: int, match: re.Match[str]) -> timedelta:
    try:
        return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        _fault(text, at, "a shorter age")


def _expect(pattern: re.Pattern[str], text: str, at: int, what: str) -> re.Match[str]:
    match = pattern.match(text, at)
    if match is None:
        _fault(text, at, what)
    return match


def _fault(text: str, at: int, wanted: str) -> NoReturn:
    at += len(text[at:]) - len(text[at:].lstrip())
    found = f"there is {text[at : at + 20]!r}" if text[at:] else "it ends"
    raise InvalidInputError(f"{text!r}: at position {at + 1} {found}, expected {wanted}", hint=GRAMMAR)
