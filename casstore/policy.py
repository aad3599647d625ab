"""The rules of a store that can be changed: what they are, their defaults, how they are written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import Enum

from casstore.artifact import Base
from casstore.errors import InvalidInputError
from casstore.names import CollectionName, parse_reference

MAX_TTL = timedelta(days=36_525)


class Inherit(Enum):
    """The type of `INHERIT`."""

    INHERIT = "inherit"


INHERIT = Inherit.INHERIT
"""a ttl that is the collection's or the store's"""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in force. ``trash_days``: from trash to purge; ``grace``: from the end of a pack to its deletion."""

    trash_days: float = 30.0
    grace: timedelta = timedelta(hours=1)
    gc_enabled: bool = True

    def to_dict(self) -> dict[str, object]:
        """The rules as JSON values; times in seconds."""
        return {"trash_days": self.trash_days, "grace": self.grace.total_seconds(), "gc_enabled": self.gc_enabled}


DEFAULT_POLICY = Policy()
_KEYS = frozenset(field.name for field in fields(Policy))


def load(values: Mapping[str, object]) -> Policy:
    """The rules from what the log says of them. Keys of a newer casstore are left alone."""
    days, grace, enabled = values.get("trash_days"), values.get("grace"), values.get("gc_enabled")
    return Policy(
        trash_days=float(days) if isinstance(days, int | float) else DEFAULT_POLICY.trash_days,
        grace=timedelta(seconds=grace) if isinstance(grace, int | float) else DEFAULT_POLICY.grace,
        gc_enabled=enabled if isinstance(enabled, bool) else DEFAULT_POLICY.gc_enabled,
    )


def encode(values: Mapping[str, object]) -> dict[str, object]:
    """Changed rules as JSON values. Raises `InvalidInputError`."""
    unknown = sorted(set(values) - _KEYS)
    if unknown or not values:
        raise InvalidInputError(f"unknown policy {', '.join(unknown) or '(none given)'}", hint=", ".join(sorted(_KEYS)))
    encoded: dict[str, object] = {}
    for key, value in values.items():
        if key == "gc_enabled":
            if not isinstance(value, bool):
                raise InvalidInputError(f"gc_enabled={value!r} is not True or False")
            encoded[key] = value
        elif key == "grace":
            encoded[key] = seconds(value, key, 0.0)
        else:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 36_525:
                raise InvalidInputError(f"{key}={value!r} is not a number of days")
            encoded[key] = value
    return encoded


def seconds(value: object, name: str, default: float) -> float:
    """A duration given as a timedelta or a number of seconds. Raises `InvalidInputError`."""
    if value is None:
        return default
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidInputError(f"{name}={value!r} is not a duration", hint="a timedelta, or seconds, not negative")
    if value > MAX_TTL.total_seconds():
        raise InvalidInputError(f"{name}={value!r} is more than a hundred years")
    return float(value)


def whole(value: object, name: str) -> int | None:
    """A number of bytes. Raises `InvalidInputError`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInputError(f"{name}={value!r} is not a number of bytes")
    return value


def ttl_seconds(ttl: timedelta | Inherit | None) -> int:
    """A time to live as the log has it: seconds, 0 = never, -1 = inherit. Raises `InvalidInputError`."""
    if ttl is INHERIT:
        return -1
    if ttl is None:
        return 0
    if not isinstance(ttl, timedelta):
        raise InvalidInputError(f"ttl={ttl!r} is not a timedelta", hint="timedelta, None (never) or INHERIT")
    if not timedelta(seconds=1) <= ttl <= MAX_TTL or ttl.microseconds:
        raise InvalidInputError(f"ttl={ttl} must be whole seconds, from one second to a hundred years")
    return int(ttl.total_seconds())


def base_number(draft: Base | None, base: str | None, name: CollectionName, *, strict: bool) -> int | None:
    """The number of the version that a log is based on, or None. Raises `InvalidInputError`."""
    if base is None:
        if draft is None and strict:
            raise InvalidInputError(
                "there is no base that could be latest", hint="a draft made by new_draft(), or base='vN'"
            )
        return None if draft is None else draft.number
    if not isinstance(base, str):
        raise InvalidInputError(f"base={base!r} is not a version", hint="vN")
    reference = parse_reference(base if ":" in base or "/" in base else f"{name}:{base}")
    if reference.number is None or reference.collection != name:
        raise InvalidInputError(f"base={base!r} is not a version of {name.short}", hint="vN")
    return reference.number
