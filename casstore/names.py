"""The grammar of everything a user can name: collections, aliases, tags, references, paths, metadata.

References are ``[[entity/]project/]collection[:selector]``; a selector is ``vN``, an alias, or a digest.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import NoReturn

from casstore.digest import ALGORITHMS, digest_size
from casstore.errors import (
    InvalidInputError,
    InvalidMetadataError,
    InvalidNameError,
    InvalidPathError,
    LimitError,
)
from casstore.model import INHERIT
from casstore.patterns import pattern
from casstore.values import dataclass

DEFAULT_NAMESPACE = "default"
LATEST = "latest"

_NAME = pattern(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TAG = pattern(r"[-\w]+(?: +[-\w]+)*")
_NUMBERED = pattern(r"v(0|[1-9][0-9]{0,17})")
_VERSION_LIKE = pattern(r"v[0-9]+")
_DRIVE = pattern(r"[A-Za-z]:")
_CONTROL = pattern(r"[\x00-\x1f\x7f-\x9f]")

_PLAIN = pattern(r"(?:(?!\.\.?(?:/|\Z))[ !-.0-9;-\[\]-~]{1,255}(?:/(?!\Z)|\Z)){1,16}")
"""paths of which nothing needs to be asked: most of them; short of every limit"""
MAX_PATH_BYTES = 4096
MAX_SEGMENT_BYTES = 255
MAX_METADATA_KEYS = 100
MAX_METADATA_BYTES = 1024 * 1024
MAX_METADATA_DEPTH = 64
MAX_INTEGER_BITS = 14_284
"""of 4,300 digits: longer ones are not read back by a Python with the limits it comes with"""
MAX_ATTRS_BYTES = 4096
MAX_HOST_ATTRS_BYTES = 64 * 1024
MAX_DESCRIPTION_BYTES = 64 * 1024
MAX_LABELS = 100
MAX_LABEL = 128
RESERVED_TYPE_PREFIX = "casstore-"
MAX_TTL = timedelta(days=36_525)


def check_name(name: object, what: str = "artifact name") -> str:
    """A collection, project, entity or type name. Raises `InvalidNameError`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {".", ".."}:
        raise InvalidNameError(
            f"{what} {name!r} is not valid", hint="1 to 128 of A-Z a-z 0-9 . _ -, not starting with . or -"
        )
    return exact(name)


def check_type(kind: object) -> str:
    """An artifact type. Raises `InvalidNameError`."""
    name = check_name(kind, "artifact type")
    if name.startswith(RESERVED_TYPE_PREFIX):
        raise InvalidNameError(f"artifact type {name!r} is reserved", hint="choose a name without casstore-")
    return name


def check_alias(alias: object) -> str:
    """An alias: a name that is not ``vN`` and does not look like a digest. Raises `InvalidNameError`."""
    if not isinstance(alias, str) or not _NAME.fullmatch(alias) or alias in {".", ".."}:
        raise InvalidNameError(f"alias {alias!r} is not valid", hint="1 to 128 of A-Z a-z 0-9 . _ -")
    if _VERSION_LIKE.fullmatch(alias):
        raise InvalidNameError(f"alias {alias!r} is reserved for version numbers")
    return exact(alias)


def check_aliases(aliases: object) -> tuple[str, ...]:
    """Several aliases, without repeats, in order. Raises `InvalidNameError`, `LimitError`."""
    return _labels(aliases, check_alias, "aliases")


def check_tags(tags: object) -> tuple[str, ...]:
    """Several tags, without repeats, in order. Raises `InvalidNameError`, `LimitError`."""
    return _labels(tags, _check_tag, "tags")


def _check_tag(tag: object) -> str:
    if not isinstance(tag, str) or len(tag) > MAX_LABEL or not _TAG.fullmatch(tag):
        raise InvalidNameError(f"tag {tag!r} is not valid", hint="words of letters, digits, _ and -, at most 128")
    return exact(tag)


def _labels(labels: object, check: object, what: str) -> tuple[str, ...]:
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise InvalidNameError(f"{what} must be a list of strings, not {labels!r}")
    assert callable(check)
    found = tuple(dict.fromkeys(check(label) for label in labels))
    if len(found) > MAX_LABELS:
        raise LimitError(f"{len(found)} {what}, at most {MAX_LABELS} are allowed")
    return found


@dataclass(frozen=True, slots=True, order=True)
class CollectionName:
    """A collection in its project and entity."""

    entity: str
    project: str
    name: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def short(self) -> str:
        """The name with as little namespace as it needs."""
        if self.entity != DEFAULT_NAMESPACE:
            return str(self)
        return self.name if self.project == DEFAULT_NAMESPACE else f"{self.project}/{self.name}"

    @classmethod
    def parse(cls, text: object, project: str | None = None) -> CollectionName:
        """Read ``[[entity/]project/]name``; ``project`` gives the namespace when the text has none."""
        if type(text) is str and project is None:
            return _collection_name(text)
        if not isinstance(text, str):
            raise InvalidNameError(f"{text!r} is not a collection name")
        return _namespaced(exact(text), project)


@lru_cache(4096)
def _collection_name(text: str) -> CollectionName:
    return _namespaced(text, None)


def _namespaced(text: str, project: object) -> CollectionName:
    """See `CollectionName.parse`."""
    parts = text.split("/")
    if project is not None:
        if not isinstance(project, str):
            raise InvalidNameError(f"project {project!r} is not a name", hint="project, or entity/project")
        if len(parts) > 1:
            raise InvalidNameError(f"{text!r} names a project already", hint="leave out project=")
        parts = [*exact(project).split("/"), *parts]
    if len(parts) > 3:
        raise InvalidNameError(f"{'/'.join(parts)!r} has too many parts", hint="[[entity/]project/]name")
    for part in parts:
        check_name(part, "name")
    return CollectionName(*[DEFAULT_NAMESPACE] * (3 - len(parts)), *parts)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a reference says: a collection and a selector (``None`` = not given)."""

    collection: CollectionName
    selector: str | None

    @property
    def number(self) -> int | None:
        """The version number, if the selector is ``vN``."""
        found = _NUMBERED.fullmatch(self.selector or "")
        return int(found[1]) if found else None

    @property
    def digest(self) -> str | None:
        """The digest, if the selector is one (``algorithm:hex``)."""
        text = self.selector or ""
        return text if text.partition(":")[0] in ALGORITHMS and ":" in text else None

    def __str__(self) -> str:
        return f"{self.collection.short}:{self.selector or LATEST}"


def parse_reference(text: object) -> Reference:
    """Read a reference. Raises `InvalidNameError`."""
    if not isinstance(text, str):
        raise InvalidNameError(f"{text!r} is not a reference", hint="[[entity/]project/]collection[:vN|alias|digest]")
    text = exact(text)
    name, colon, selector = text.partition(":")
    collection = CollectionName.parse(name)
    if not colon:
        return Reference(collection, None)
    algorithm, second, digits = selector.partition(":")
    if second:
        hexadecimal = re.fullmatch(r"[0-9a-f]+", digits)
        if algorithm not in ALGORITHMS or not hexadecimal or len(digits) != 2 * digest_size(algorithm):
            raise InvalidNameError(f"{text!r} is not a reference", hint="[[entity/]project/]collection[:selector]")
        return Reference(collection, selector)
    if _NUMBERED.fullmatch(selector):
        return Reference(collection, selector)
    if _VERSION_LIKE.fullmatch(selector):
        raise InvalidNameError(f"{selector!r} is not a version number", hint="v0, v1, …")
    if not _NAME.fullmatch(selector):
        raise InvalidNameError(f"selector {selector!r} of {text!r} is not valid", hint="vN, an alias, or a digest")
    return Reference(collection, selector)


def split_path(text: str) -> tuple[str, str]:
    """Split ``reference/path`` into both: the path begins at the first ``/`` after the selector's ``:``."""
    colon = text.find(":")
    slash = text.find("/", colon) if colon >= 0 else -1
    if slash < 0:
        return text, ""
    return text[:slash], text[slash + 1 :]


def check_path(path: object) -> str:
    """A path inside an artifact: relative, ``/``-separated UTF-8. Raises `InvalidPathError`."""
    if type(path) is str and _PLAIN.fullmatch(path):
        return path
    if not isinstance(path, str):
        raise InvalidPathError(f"path {path!r} is not a string")
    path = exact(path)
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise InvalidPathError(f"path {path!r} is not valid UTF-8") from None
    if not path:
        raise InvalidPathError("a path must not be empty")
    if len(encoded) > MAX_PATH_BYTES:
        raise InvalidPathError(f"path {path[:60]!r}… has {len(encoded)} bytes, at most {MAX_PATH_BYTES} are allowed")
    if path.startswith("/"):
        raise InvalidPathError(f"path {path!r} is absolute")
    if "\\" in path or _DRIVE.match(path):
        raise InvalidPathError(f"path {path!r} has a backslash or a drive letter")
    if _CONTROL.search(path):
        raise InvalidPathError(f"path {path!r} has a control character")
    for segment in path.split("/"):
        if segment in {"", ".", ".."}:
            raise InvalidPathError(f"path {path!r} has the segment {segment!r}")
        if len(segment) * 4 > MAX_SEGMENT_BYTES and len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise InvalidPathError(f"path {path[:60]!r} has a segment over {MAX_SEGMENT_BYTES} bytes")
    return path


def is_plain_path(path: str) -> bool:
    """True if `check_path` takes a path without a question, and any path with another such name in its last place."""
    return _PLAIN.fullmatch(path) is not None


def exact(text: str) -> str:
    """The text itself of a string of another class (an Enum's, numpy's), which the format knows nothing of."""
    return text if type(text) is str else str.__str__(text)


def is_text(text: str) -> bool:
    """True if a string can be written as UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def canonical_metadata(metadata: object) -> bytes:
    """Metadata as canonical JSON: sorted keys, no spaces, UTF-8. Raises `InvalidMetadataError`."""
    if metadata is None or (type(metadata) is dict and not metadata):
        return b"{}"
    if not isinstance(metadata, Mapping):
        raise InvalidMetadataError(f"metadata must be a mapping, not {type(metadata).__name__}")
    if not metadata:
        return b"{}"
    if len(metadata) > MAX_METADATA_KEYS:
        raise InvalidMetadataError(f"metadata has {len(metadata)} keys, at most {MAX_METADATA_KEYS} are allowed")
    try:
        plain = _Plain().value(metadata, None, 1)
    except RuntimeError as error:  # another thread changes it
        raise InvalidMetadataError(f"metadata changed while it was read: {error}") from None
    try:
        text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidMetadataError("metadata has a string that is not valid UTF-8") from None
    except ValueError as error:  # an integer with thousands of digits
        raise InvalidMetadataError(f"metadata cannot be written as JSON: {error}") from None
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidMetadataError(f"metadata has {len(text)} bytes, at most {MAX_METADATA_BYTES} are allowed")
    return text


def canonical_attrs(attrs: object) -> bytes:
    """The ``attrs`` of an entry as canonical JSON; empty for none. Raises `InvalidMetadataError`."""
    if attrs is None or attrs == {}:
        return b""
    try:
        text = canonical_metadata(attrs)
    except InvalidMetadataError as error:
        raise InvalidMetadataError(f"attrs: {error}", hint="a small JSON object: str keys, finite numbers") from None
    if len(text) > MAX_ATTRS_BYTES:
        raise InvalidMetadataError(
            f"attrs have {len(text)} bytes, at most {MAX_ATTRS_BYTES} are allowed", hint="put more into a file"
        )
    return text


def canonical_host_attrs(attrs: object) -> bytes:
    """The ``attrs`` of a version or run, the host's own, as canonical JSON. Raises `InvalidMetadataError`."""
    try:
        text = canonical_metadata(attrs)
    except InvalidMetadataError as error:
        raise InvalidMetadataError(f"attrs: {error}", hint="a JSON object: str keys, finite numbers") from None
    if len(text) > MAX_HOST_ATTRS_BYTES:
        raise InvalidMetadataError(
            f"attrs have {len(text)} bytes, at most {MAX_HOST_ATTRS_BYTES} are allowed", hint="put more into a file"
        )
    return text


def check_id(text: object, what: str) -> str:
    """An id or name that writers agree on: 1 to 128 characters, any but control ones. Raises `InvalidNameError`."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_LABEL or _CONTROL.search(text) or not is_text(text):
        raise InvalidNameError(f"{what} {text!r:.200} is not valid", hint="1 to 128 characters, none of them control")
    return exact(text)


def check_words(text: object, what: str, longest: int = MAX_LABEL) -> str:
    """A short free text, such as the name of a run. Raises `InvalidNameError`."""
    if not isinstance(text, str) or len(text) > longest or not is_text(text):
        raise InvalidNameError(f"{what} {text!r:.200} is not valid", hint=f"a text of at most {longest} characters")
    return exact(text)


_Place = tuple["_Place", object] | None
"""the keys and positions that lead to a value, last first"""


class _Plain:
    """Copies metadata in plain types; gives up once it is too large, however small what repeats in it."""

    def __init__(self) -> None:
        self.left = MAX_METADATA_BYTES + 1
        """what JSON may still have; each value takes at least the character before or after it as well"""

    def value(self, value: object, where: _Place, depth: int) -> object:
        """One value. Raises `InvalidMetadataError`."""
        if isinstance(value, str):
            self._take(len(value) + 3)
            return exact(value)
        self._take(2)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if value.bit_length() <= MAX_INTEGER_BITS else _not_json(where, "an integer so long")
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else _not_json(where, repr(value))
        if depth > MAX_METADATA_DEPTH:
            raise InvalidMetadataError(f"metadata is nested deeper than {MAX_METADATA_DEPTH}")
        if isinstance(value, Mapping):
            return self._mapping(value, where, depth)
        if isinstance(value, list | tuple):
            return [self.value(item, (where, i), depth + 1) for i, item in enumerate(value)]
        return _not_json(where, f"{value!r:.80}")

    def _mapping(self, value: Mapping[object, object], where: _Place, depth: int) -> dict[str, object]:
        plain: dict[str, object] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                _not_json(where, f"{key!r:.80}", "a key of ")
            self._take(len(key) + 3)
            plain[exact(key)] = self.value(item, (where, key), depth + 1)
        if where is None and len(plain) > MAX_METADATA_KEYS:  # a mapping may say what it likes of its length
            raise InvalidMetadataError(f"metadata has {len(plain)} keys, at most {MAX_METADATA_KEYS} are allowed")
        return plain

    def _take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise InvalidMetadataError(f"metadata is longer than {MAX_METADATA_BYTES} bytes as JSON")


def _not_json(where: _Place, what: str, before: str = "") -> NoReturn:
    keys = []
    while where is not None:
        where, key = where
        keys.append(f"[{key!r:.80}]")
    place = "metadata" + "".join(reversed(keys))
    raise InvalidMetadataError(
        f"{before}{place} is {what}, which JSON cannot say",
        hint="use str, int, finite float, bool, None, list, dict",
    )


def check_description(text: object) -> str:
    """A description: a string of at most 64 KiB. Raises `InvalidInputError`."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidInputError(f"description {text!r} is not a string")
    text = exact(text)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInputError("the description is not valid UTF-8") from None
    if size > MAX_DESCRIPTION_BYTES:
        raise LimitError(f"the description has {size} bytes, at most {MAX_DESCRIPTION_BYTES} are allowed")
    return text


def check_timeout(timeout: object) -> float | None:
    """Seconds to wait at most; None: as long as it takes. Raises `InvalidInputError`."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidInputError(f"timeout={timeout!r} is not a number of seconds", hint="0 or more, or None: no limit")
    return float(timeout)


def ttl_seconds(ttl: object) -> int:
    """A time to live as the log has it: seconds, 0 = never, -1 = inherit. Raises `InvalidInputError`."""
    if ttl is INHERIT:
        return -1
    if ttl is None:
        return 0
    if not isinstance(ttl, timedelta):
        raise InvalidInputError(f"ttl={ttl!r} is not a timedelta", hint="timedelta, None (never) or INHERIT")
    if not timedelta(seconds=1) <= ttl <= MAX_TTL or ttl.microseconds:
        raise InvalidInputError(f"ttl={ttl} must be whole seconds, from one second to a hundred years")
    return ttl // timedelta(seconds=1)


def check_texts(values: object, what: str, *, none: bool = False) -> tuple[str, ...]:
    """Some texts. Raises `InvalidInputError`, also for one text, which is a list of letters to Python."""
    found = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else (None,)
    if not all(isinstance(value, str) for value in found) or not (found or none):
        raise InvalidInputError(f"{values!r:.200} is not a list of {what}", hint="such as ['ds:v0', 'ds:v1']")
    return tuple(str(value) for value in found)


def check_limit(limit: object) -> int | None:
    """How many to show at most; None = all. Raises `InvalidInputError`."""
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0):
        return limit
    raise InvalidInputError(f"limit={limit!r} is not a number of records", hint="a whole number, or None for all")
