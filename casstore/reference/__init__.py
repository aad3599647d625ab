"""References: entries that say where content is, and how to tell that it is still what it was.

Nothing here changes or deletes what a reference points to.
"""

from casstore.reference.files import confine
from casstore.reference.handler import ALLOW, ANYWHERE, ERROR, MAX_OBJECTS, TIMEOUT, Access, Handler, Resolved
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
