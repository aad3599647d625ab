"""References: entries that say where content is, and how to tell that it is still what it was.

Nothing here changes or deletes what a reference points to. Functions are imported when they are first used: few drafts
have references.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from casstore.reference.handler import ALLOW, ANYWHERE, ERROR, MAX_OBJECTS, TIMEOUT, Access, Handler, Resolved

if TYPE_CHECKING:
    from casstore.reference.files import confine
    from casstore.reference.reading import check, fetch, open_verified, resolve
    from casstore.reference.registry import GROUP, register
    from casstore.reference.uri import check_uri, last_part, scheme_of, shown

__all__ = [
    "ALLOW",
    "ANYWHERE",
    "ERROR",
    "GROUP",
    "MAX_OBJECTS",
    "TIMEOUT",
    "Access",
    "Handler",
    "Resolved",
    "check",
    "check_uri",
    "confine",
    "fetch",
    "last_part",
    "open_verified",
    "register",
    "resolve",
    "scheme_of",
    "shown",
]

_HOMES = {
    "GROUP": "registry",
    "check": "reading",
    "check_uri": "uri",
    "confine": "files",
    "fetch": "reading",
    "last_part": "uri",
    "open_verified": "reading",
    "register": "registry",
    "resolve": "reading",
    "scheme_of": "uri",
    "shown": "uri",
}

if not TYPE_CHECKING:  # a type checker must see the names above, and complain about all others

    def __getattr__(name: str) -> object:
        """A name, imported on its first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
