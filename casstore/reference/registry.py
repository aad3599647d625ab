"""Which handler knows a scheme: the built-in ones, those registered while running, those of installed packages."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from functools import cache

from casstore.errors import InvalidInputError, UnsupportedSchemeError
from casstore.reference.files import FileHandler
from casstore.reference.handler import Handler
from casstore.reference.uri import check_uri, scheme_of

GROUP = "casstore.references"
"""entry points: name = scheme, value = a handler, or a class or function that makes one"""

_BUILT_IN = frozenset({"file", "http", "https"})
_REGISTERED: dict[str, Handler] = {}
_EXTRAS = {"s3": "s3", "gs": "gs", "az": "azure", "abfs": "azure", "abfss": "azure", "azure": "azure"}


def register(scheme: str, handler: Handler) -> None:
    """Let a handler have a scheme in this process, instead of the one that had it. Thread-safe.

    Raises `InvalidInputError`: it is no scheme, no handler, or one of the built-in schemes.
    """
    if not isinstance(scheme, str) or scheme_of(f"{scheme}:") != scheme:
        raise InvalidInputError(f"{scheme!r} is not a scheme", hint="lower case, without ://")
    if scheme in _BUILT_IN:
        raise InvalidInputError(f"the scheme {scheme} has a handler that cannot be replaced")
    _REGISTERED[scheme] = _checked(handler, scheme)


@cache
def _built_in(scheme: str) -> Handler | None:
    if scheme in FileHandler.schemes:
        return FileHandler()
    if scheme in _BUILT_IN:
        from casstore.reference.http import HttpHandler

        return HttpHandler()
    return None


def handler_for(uri: str) -> Handler | None:
    """The handler of a URI's scheme, or None. Raises `UnsupportedSchemeError` if it cannot be loaded."""
    scheme = scheme_of(uri)
    found = _built_in(scheme) or _REGISTERED.get(scheme)
    return found or _installed(scheme)


def known_handler(uri: str) -> Handler:
    """The handler of a URI's scheme. Raises `UnsupportedSchemeError`, which says what to install."""
    found = handler_for(uri)
    if found is None:
        scheme = scheme_of(check_uri(uri))
        extra = _EXTRAS.get(scheme)
        hint = "allow_opaque=True records the URI unseen" if extra is None else f"pip install casstore[{extra}]"
        raise UnsupportedSchemeError(f"no handler knows the scheme {scheme!r}", hint=hint)
    return found


def _installed(scheme: str) -> Handler | None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=scheme):
        try:
            loaded = point.load()
            handler = loaded() if isinstance(loaded, type) or not hasattr(loaded, "resolve") else loaded
        except Exception as error:
            raise UnsupportedSchemeError(
                f"the handler of scheme {scheme!r} ({point.value}) cannot be loaded: {error!r:.200}",
                hint="repair or remove the package it comes from",
            ) from error
        _REGISTERED[scheme] = _checked(handler, scheme)
        return _REGISTERED[scheme]
    return None


def _checked(handler: Handler, scheme: str) -> Handler:
    if not all(callable(getattr(handler, verb, None)) for verb in ("resolve", "open", "check")):
        raise InvalidInputError(f"{handler!r:.100} is no handler for {scheme}", hint="casstore.reference.Handler")
    return handler
