"""From the URL of a store to its backend."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from casstore.backend import Backend
from casstore.backend.local import LocalBackend
from casstore.backend.memory import open_memory
from casstore.backend.osops import OsOps
from casstore.config import Runtime
from casstore.errors import InvalidInputError, UnsupportedSchemeError
from casstore.patterns import pattern

_SCHEME = pattern(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def open_backend(
    url: str | os.PathLike[str],
    *,
    ops: OsOps | None = None,
    clock: Callable[[], int] | None = None,
    new_name: Callable[[int], bytes] = Runtime.random_bytes,
) -> Backend:
    """The backend at a path, ``file://`` URL or ``memory://NAME``. Touches nothing yet.

    ``clock`` (microseconds) gives objects their age; a memory store lives as long as the process, and that of its
    first opening counts. Raises
    `UnsupportedSchemeError`.
    """
    path = is_local(url)
    if path is not None:
        return LocalBackend(path, OsOps() if ops is None else ops, new_name=new_name, clock=clock)
    scheme, rest = _split(os.fspath(url))
    if scheme == "memory":
        return open_memory(rest, Runtime().now if clock is None else clock)
    raise UnsupportedSchemeError(
        f"{scheme}:// is not supported", hint="use a path, file:// or memory://; object stores come in a later release"
    )


def is_local(url: str | os.PathLike[str]) -> Path | None:
    """The absolute path a path or ``file://`` URL means; None for any other scheme."""
    try:
        text = os.fspath(url)
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        raise InvalidInputError(f"{url!r} is not a path or URL") from None
    if not isinstance(text, str):
        raise InvalidInputError(f"{url!r} is not a path or URL", hint="os.fsdecode(path)")
    scheme, _ = _split(text)
    if scheme == "file":
        from urllib.parse import unquote, urlsplit  # noqa: PLC0415 - start-up

        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"} or not parts.path or parts.query or parts.fragment:
            raise InvalidInputError(f"{text!r} is not the URL of a local path", hint="file:///absolute/path")
        text = unquote(parts.path)
    elif scheme:
        return None
    if not text or "\0" in text:
        raise InvalidInputError(f"{text!r} is not a path")
    return Path(os.path.abspath(text))


def _split(url: str) -> tuple[str, str]:
    """Scheme in lower case and the rest; no scheme for a path."""
    match = _SCHEME.fullmatch(url) if "://" in url else None
    return (match[1].lower(), match[2]) if match else ("", url)
