"""The grammar of URIs that may be recorded: no credentials, nothing that expires, nothing that hides."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casstore.errors import InvalidInputError
from casstore.names import is_text
from casstore.patterns import pattern

if TYPE_CHECKING:
    from urllib.parse import SplitResult

MAX_URI_BYTES = 8192

_SCHEME = pattern(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CONTROL = pattern(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SIGNED = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "x-ms-")
_SIGNATURES = frozenset(
    {
        "sig",
        "signature",
        "awsaccesskeyid",
        "googleaccessid",
        "ossaccesskeyid",
        "key-pair-id",
        "security-token",
        "access_token",
    }
)


def check_uri(uri: object) -> str:
    """A URI that may be recorded, as it is. Raises `InvalidInputError`; the message has no secret of it."""
    if not isinstance(uri, str):
        raise InvalidInputError(f"a URI is text, not {type(uri).__name__}")
    if not is_text(uri):
        raise InvalidInputError("the URI is not valid UTF-8")
    if len(uri.encode()) > MAX_URI_BYTES:
        raise InvalidInputError(f"the URI has {len(uri.encode())} bytes, at most {MAX_URI_BYTES} are allowed")
    if _CONTROL.search(uri):
        raise InvalidInputError("the URI has a control character")
    if not _SCHEME.match(uri):
        raise InvalidInputError(
            f"{uri[:200]!r} has no scheme", hint="file:///absolute/path, https://…; add_file is for local paths"
        )
    parts = split(uri)
    if "@" in parts.netloc:
        raise InvalidInputError(
            f"{shown(uri)!r} has a user or password before the host; it would be stored",
            hint="leave it out: credentials come from the environment when the target is read",
        )
    for name in _parameters(parts):
        if name in _SIGNATURES or name.startswith(_SIGNED):
            raise InvalidInputError(
                f"{shown(uri)!r} is a signed URL ({name}): the signature would be stored, and ends soon",
                hint="the URL without its query string",
            )
    return uri


def split(uri: str) -> SplitResult:
    """The parts of a URI. Raises `InvalidInputError`."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(uri)
        _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(f"the URI is not well formed: {error}") from None
    return parts


def scheme_of(uri: str) -> str:
    """The scheme in lower case; empty if there is none."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else ""


def shown(uri: str) -> str:
    """A URI as a message may say it: without user, password, query and fragment."""
    before, _, rest = uri.partition("//")
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = place.partition("/")
    return f"{before}//{authority.rpartition('@')[2]}{slash}{path}"[:300] if rest else re.split(r"[?#]", uri)[0][:300]


def last_part(uri: str) -> str:
    """The last part of the path, decoded; empty if it has none."""
    from urllib.parse import unquote

    path = split(uri).path.rstrip("/")
    return unquote(path.rpartition("/")[2], errors="surrogateescape")


def _parameters(parts: SplitResult) -> list[str]:
    from urllib.parse import unquote

    return [
        unquote(item.partition("=")[0]).strip().lower()
        for text in (parts.query, parts.fragment)
        for item in re.split("[&;]", text)
    ]
