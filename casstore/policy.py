"""The rules of a store that can be changed: what they are, their defaults, how they are written down."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import timedelta

from casstore.artifact import Base
from casstore.errors import InvalidInputError
from casstore.model import Inherit
from casstore.names import MAX_TTL, CollectionName, check_aliases, check_type, is_text, parse_reference, ttl_seconds
from casstore.overlay import Tables
from casstore.reference import ALLOW, ERROR, Access
from casstore.retention import Rules, rules_from
from casstore.state import POLICY, head_of
from casstore.values import dataclass
from casstore.view import policy_values

DAY = 86_400_000_000
"""µs"""
COUNTS, FREE = "counts", "free"
"""of ``quota_trash``"""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in force. ``trash_days``: from trash to purge; ``grace``: from the end of a pack to its deletion.

    ``default_ttl``: time to live of versions for which neither they nor their collection say one; None = never.
    ``no_ttl_types``: versions of these types never expire. ``protected_aliases``: versions that have one of these do
    not expire while they have it, and are not deleted. ``retention``: the rules of `Store.retain` without arguments.
    ``quota_bytes``: stored bytes the store may have; ``quota_trash``: whether what only the trash keeps ``counts``.
    A pack is rewritten by an online collection if this share of it is garbage (``data_waste``, for packs of tree nodes
    ``node_waste``), as long as this share of the store is (``store_waste``) and at most ``copy_bytes`` were copied
    (None: a tenth of the store, from 1 to 10 GiB); ``small_packs``: so many are merged, if they make a whole one.
    ``reserved_types``: no version of these types is made. ``reference_roots``: directories (absolute paths) that
    ``file://`` references may lead into, when they are logged and when they are read; None = anywhere.
    ``on_private_address``: whether a reference that is read may lead to an address that is not public: ``allow`` or
    ``error``.
    """

    trash_days: float = 30.0
    grace: timedelta = timedelta(hours=1)
    gc_enabled: bool = True
    default_ttl: timedelta | None = None
    no_ttl_types: tuple[str, ...] = ()
    protected_aliases: tuple[str, ...] = ()
    retention: Rules | None = None
    quota_bytes: int | None = None
    quota_trash: str = COUNTS
    data_waste: float = 0.25
    node_waste: float = 0.10
    store_waste: float = 0.05
    small_packs: int = 10
    copy_bytes: int | None = None
    reserved_types: tuple[str, ...] = ()
    reference_roots: tuple[str, ...] | None = None
    on_private_address: str = ALLOW

    def to_dict(self) -> dict[str, object]:
        """The rules as JSON values; times in seconds."""
        return {field.name: _json(getattr(self, field.name)) for field in fields(self)}


DEFAULT_POLICY = Policy()


def _json(value: object) -> object:
    match value:
        case timedelta():
            return value.total_seconds()
        case tuple():
            return list(value)
        case Rules():
            return value.to_dict()
    return value


@dataclass(frozen=True, slots=True)
class _Key:
    """One rule. ``check``: what the user gave, as JSON; ``load``: that, as it is in `Policy`. Both may refuse."""

    check: Callable[[object], object]
    load: Callable[[object], object]


def _days(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TTL.days:
        raise InvalidInputError(f"trash_days={value!r} is not a number of days")
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"gc_enabled={value!r} is not True or False")
    return value


def _default_ttl(value: object) -> int:
    if isinstance(value, Inherit):
        raise InvalidInputError("the store's ttl has nothing to inherit from", hint="a timedelta, or None for never")
    return ttl_seconds(value)


def _some_seconds(value: object) -> timedelta:
    return timedelta(seconds=seconds(value, "duration", 0.0))


def _types(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidInputError(f"{value!r} is not a list of types")
    return tuple(sorted({check_type(kind) for kind in value}))


def _roots(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidInputError(f"reference_roots={value!r} is not a list of directories", hint="or None for anywhere")
    for path in value:
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path or not is_text(path):
            raise InvalidInputError(f"{path!r} is not an absolute path")
    return tuple(sorted({os.path.normpath(path) for path in value}))


def _private(value: object) -> str:
    if value not in {ALLOW, ERROR}:
        raise InvalidInputError(f"on_private_address={value!r} is not valid", hint=f"{ALLOW} or {ERROR}")
    return str(value)


def _retention(value: object) -> Rules | None:
    if value is None or isinstance(value, Rules):
        return value or None
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"retention={value!r} is not a set of rules", hint='{"keep_last": 5}, or None')
    return rules_from(value)


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidInputError(f"{value!r} is not a share", hint="from 0 to 1")
    return float(value)


def _several(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise InvalidInputError(f"small_packs={value!r} is not a number of packs", hint="2 or more")
    return value


def _quota_trash(value: object) -> str:
    if value not in (COUNTS, FREE):
        raise InvalidInputError(f"quota_trash={value!r} is not valid", hint=f"{COUNTS} or {FREE}")
    return str(value)


_KEYS: Mapping[str, _Key] = {
    "trash_days": _Key(_days, lambda value: float(_days(value))),
    "grace": _Key(lambda value: seconds(value, "grace", 0.0), _some_seconds),
    "gc_enabled": _Key(_switch, _switch),
    "default_ttl": _Key(_default_ttl, lambda value: _some_seconds(value) or None),
    "no_ttl_types": _Key(lambda value: list(_types(value)), _types),
    "protected_aliases": _Key(lambda value: sorted(check_aliases(value)), check_aliases),
    "retention": _Key(lambda value: _json(_retention(value)), _retention),
    "quota_bytes": _Key(lambda value: whole(value, "quota_bytes"), lambda value: whole(value, "quota_bytes")),
    "quota_trash": _Key(_quota_trash, _quota_trash),
    "data_waste": _Key(_share, _share),
    "node_waste": _Key(_share, _share),
    "store_waste": _Key(_share, _share),
    "small_packs": _Key(_several, _several),
    "copy_bytes": _Key(lambda value: whole(value, "copy_bytes"), lambda value: whole(value, "copy_bytes")),
    "reserved_types": _Key(lambda value: list(_types(value)), _types),
    "reference_roots": _Key(lambda value: _json(_roots(value)), _roots),
    "on_private_address": _Key(_private, _private),
}


def load(values: Mapping[str, object]) -> Policy:
    """The rules from what the log says of them. Keys of a newer casstore, and values it made, are left alone."""
    known: dict[str, object] = {}
    for name, key in _KEYS.items():
        if name in values:
            try:
                known[name] = key.load(values[name])
            except InvalidInputError:
                continue
    return Policy(**known)  # type: ignore[arg-type]


def in_force(tables: Tables) -> Policy:
    """The rules at a position of the log."""
    if not tables.count(POLICY):
        return DEFAULT_POLICY
    return load(policy_values(tables))


def reference_access(rules: Policy) -> Access:
    """What the references of a store may reach when they are read."""
    return Access(rules.reference_roots, rules.on_private_address)


def purge_time(tables: Tables) -> int:
    """When what is trashed now may be purged, by the safe clock (µs)."""
    return head_of(tables).safe + int(in_force(tables).trash_days * DAY)


def encode(values: Mapping[str, object]) -> dict[str, object]:
    """Changed rules as JSON values. Raises `InvalidInputError`."""
    unknown = sorted(set(values) - set(_KEYS))
    if unknown or not values:
        raise InvalidInputError(f"unknown policy {', '.join(unknown) or '(none given)'}", hint=", ".join(sorted(_KEYS)))
    return {name: _KEYS[name].check(value) for name, value in values.items()}


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
