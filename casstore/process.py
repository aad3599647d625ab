"""The process of the command line: what it starts without, and how it ends.

Half of a short command is spent on starting, and some of that on modules that are imported and not used, most of all
by click and msgspec; and a tenth on the interpreter's taking itself apart at the end. Only a process of its own does
what is here, never one that imports the library.
"""

# ruff: noqa: PLC0415 - start-up: what is imported here is imported late

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_LANGUAGES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")


class _StandIn(ModuleType):
    """A module that is imported when something is asked of it, other than what it was given."""

    def __init__(self, name: str, **given: object) -> None:
        super().__init__(name)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # asked of every module that something is imported from
            raise AttributeError(name)
        family = self.__name__.partition(".")[0]
        for known, module in list(sys.modules.items()):
            if isinstance(module, _StandIn) and known.partition(".")[0] == family:
                sys.modules.pop(known, None)
        value = self.__dict__[name] = getattr(import_module(self.__name__), name)
        return value


@contextmanager
def _standing_in(*modules: _StandIn, absent: tuple[str, ...] = ()) -> Iterator[None]:
    """Let what is imported meanwhile have these instead of the modules, unless those were imported before.

    Modules that are ``absent`` cannot be imported meanwhile. Afterwards everybody gets the modules themselves.
    """
    placed: dict[str, ModuleType | None] = {module.__name__: module for module in modules}
    placed = {name: module for name, module in (placed | dict.fromkeys(absent)).items() if name not in sys.modules}
    known: dict[str, Any] = sys.modules  # None: a module that cannot be found
    known.update(placed)
    try:
        yield
    finally:
        for name, module in placed.items():
            if name in known and known[name] is module:
                del known[name]
            if module is not None:
                module.__dict__.pop("UUID", None)  # who asks later gets the real one


def postpone() -> None:
    """Postpone what is imported by every command, by click among others, and used by few.

    Nor is garbage looked for meanwhile: modules are none (`casstore.cli.command.Session.store`).
    """
    gc.disable()
    modules = [
        _StandIn("copy"),
        _StandIn("fnmatch"),
        _StandIn("gettext", gettext=_translated, ngettext=_translated_number),
        _StandIn("inspect", cleandoc=cleandoc),
        *map(_StandIn, ("json", "json.decoder", "json.encoder", "json.scanner")),
        _StandIn("signal"),
    ]
    if sys.implementation.name == "cpython" and hasattr(os, "uname"):
        known = {"system": lambda: os.uname().sysname, "python_implementation": lambda: "CPython"}
        modules.append(_StandIn("platform", **known))
    for module in modules:
        sys.modules.setdefault(module.__name__, module)
    with _standing_in(_StandIn("uuid", UUID=_Unused)):  # of which click makes a generic class
        import_module("click")


def import_libraries() -> None:
    """Import what every command needs that opens a store, without what is of no use to it.

    That is the schemas of msgspec and `typing_extensions`, which it can do without on this Python; `logging`, for
    errors that no pool of threads of ours makes; and `urllib.parse`, for URLs of paths.
    """
    logging = _StandIn("logging", getLogger=_Logger)
    parse = _StandIn("urllib.parse", quote_from_bytes=_later("urllib.parse", "quote_from_bytes"))
    with _standing_in(logging, parse, _StandIn("ntpath")):
        import_module("concurrent.futures._base")
        import_module("pathlib")
    schema = {name: _later("msgspec._json_schema", name) for name in ("schema", "schema_components")}
    parts = [
        _StandIn("msgspec._json_schema", **schema),
        *map(_StandIn, ("msgspec.inspect", "msgspec.toml", "msgspec.yaml")),
    ]
    unused = (
        _StandIn("decimal", Decimal=_Unused),
        _StandIn("uuid", UUID=_Unused, SafeUUID=_Unused),
    )  # nothing of ours is one of those
    with _standing_in(*parts, *unused, absent=("typing_extensions",)):
        import_module("msgspec")


def _later(module: str, name: str) -> Callable[..., Any]:
    return lambda *args, **named: getattr(import_module(module), name)(*args, **named)


class _Unused:
    """A class that nothing is an instance of."""

    unknown = None
    """of `uuid.SafeUUID`"""


class _Logger:
    """A logger that is made when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        import logging

        return getattr(logging.getLogger(self._name), name)


def cleandoc(text: str) -> str:
    """`inspect.cleandoc`."""
    lines = text.expandtabs().split("\n")
    indents = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    margin = min(indents, default=0)
    lines = [lines[0].lstrip(), *(line[margin:] for line in lines[1:])]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return "\n".join(lines)


def _translated(message: str) -> str:
    if _is_untranslated():
        return message
    import gettext

    return gettext.gettext(message)


def _translated_number(one: str, many: str, number: int) -> str:
    if _is_untranslated():
        return one if number == 1 else many
    import gettext

    return gettext.ngettext(one, many, number)


def _is_untranslated() -> bool:
    """True if the language asked for is certainly that of the messages."""
    asked = map(os.environ.get, _LANGUAGES)  # noqa: TID251 - of the system, and before settings are there
    language = next(filter(None, asked), "C")
    return language in {"C", "C.UTF-8", "POSIX"}


def leave(code: object) -> None:
    """End the process at once, after all that asked for being called at its end, and with its output written.

    Returns if the interpreter had better end by itself: somebody is watching it, a thread is still at work, output
    cannot be written, or the code is no number.
    """
    if not (code is None or isinstance(code, int)) or sys.flags.inspect or sys.flags.dev_mode:
        return
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return
    threading = sys.modules.get("threading")
    if threading is not None and any(
        not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()
    ):
        return
    import atexit

    atexit._run_exitfuncs()  # noqa: SLF001 - as the interpreter does; they are not called again
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(0 if code is None else code & 0xFF)


def run(main: Callable[[], object]) -> None:
    """Call the command line, and leave when it does."""
    try:
        main()
    except SystemExit as end:
        leave(end.code)
        raise
