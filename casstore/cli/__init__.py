"""The command line: a door to the public API without logic of its own.

`main` is the entry point. Here every error becomes a line on stderr and an exit code (docs/cli.md); the commands are in
the modules beside this one, one per group, imported when they are asked for. Modules of casstore and rich are imported
inside the commands, so that every one starts at once.
"""

from __future__ import annotations

import errno
import gc
import keyword
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, TextIO

import click

from casstore import __version__
from casstore.cli.command import BROKEN_PIPE, INTERRUPTED, Group, Session
from casstore.cli.output import escape
from casstore.errors import BackendError, CasstoreError
from casstore.native import extension

__all__ = ["main"]


_COMMANDS = {
    "bench": ("bench",),
    "bundle": ("cp", "export", "import"),
    "content": ("cat", "checkout", "files", "get", "init", "put"),
    "deletion": ("protect", "purge-content", "quota", "unprotect"),
    "explaining": ("doctor", "preview", "status", "why"),
    "labels": ("alias", "tag", "update"),
    "lineage": ("lineage", "run", "uses"),
    "links": ("collection", "link", "rename", "unlink"),
    "listing": ("diff", "du", "log", "ls", "show"),
    "pending": ("finish", "pending", "upsert"),
    "pins": ("pin",),
    "removal": ("rm", "trash"),
    "retention": ("expire", "retain", "ttl"),
    "upkeep": ("ballast", "checkpoint", "fsck", "gc", "index", "policy", "verify"),
}
HOMES = {name: module for module, names in _COMMANDS.items() for name in names}
"""command → the module beside this one that has it"""
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
LARGE = 1 << 20
"""bytes of a block that is given back when it is free"""


class _Stopped(Exception):
    """The user or the reader of the output has had enough."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Root(Group):
    """The ``casstore`` command: the one place where errors become exit codes. Commands are imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, by name."""
        return sorted(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported now."""
        home = HOMES.get(cmd_name)
        if home is None:
            return None
        attribute = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name.replace("-", "_")
        found = getattr(import_module(f"{__name__}.{home}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and write out what it said while errors of that can still be told."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise _Stopped(INTERRUPTED) from None
        except OSError as error:
            if error.errno == errno.EPIPE and not isinstance(error, CasstoreError):
                raise _Stopped(BROKEN_PIPE) from None
            raise
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's signature
        windows_expand_args: bool = True,  # noqa: FBT001, FBT002
        **extra: Any,
    ) -> Any:
        """Run with some arguments (default: the process's) and exit, or return the exit code."""
        if args is None:  # a process of its own, and a short one
            _return_large_blocks()
        arguments = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            _print_anything(stream)
        extra["obj"] = session = Session(alone=args is None)
        try:
            with session.noting_warnings():
                super().main(arguments, prog_name or "casstore", complete_var, standalone_mode=False, **extra)
            code = 0
        except _Stopped as stop:
            code = stop.code
            if code == INTERRUPTED:
                _complain(session, "interrupted", "interrupted", "", code)
        except (KeyboardInterrupt, click.Abort):
            code = _complain(session, "interrupted", "interrupted", "", INTERRUPTED)
        except click.exceptions.NoArgsIsHelpError as error:
            code = error.exit_code
            with suppress(OSError):
                error.show(sys.stderr)
        except click.ClickException as error:
            # The options may not have been parsed yet, so the words themselves must tell.
            session.json = session.json or "--json" in arguments
            code = _complain(session, "usage", error.format_message(), _usage_hint(error), error.exit_code)
        except CasstoreError as error:
            session.json = session.json or "--json" in arguments
            code = _complain(session, error.code, error.message, error.hint, error.exit_code)
        except OSError as error:
            where = f"{error.filename!r}: " if error.filename else ""
            said = f"{where}{error.strerror or error}"
            code = _complain(session, BackendError.code, said, "", BackendError.exit_code)
        if code:
            _drop_output()
        if args is None:
            gc.freeze()  # or the interpreter looks through all of it before it ends
        if standalone_mode:
            sys.exit(code)
        return code


def _return_large_blocks() -> None:
    """Make the C library give freed blocks of 1 MiB and more back to the system at once (`mallopt`, glibc only).

    By itself it stops doing so after it freed the first one; the holes that leaves are a third of a put's peak memory.
    """
    if (compiled := extension("_process")) is not None:
        compiled.return_blocks(LARGE, 16 * LARGE)
        return
    with suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - not every Python has it

        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)
        library.mallopt(_M_TRIM_THRESHOLD, 16 * LARGE)  # which the first would have follow it down, to 128 KiB


def _complain(session: Session, code: str, message: str, hint: str, exit_code: int) -> int:
    """Say on stderr what went wrong; returns the exit code."""
    if session.json:
        import json  # noqa: PLC0415 - start-up

        problem = {"code": code, "message": message, "hint": hint, "exit_code": exit_code}
        text = json.dumps({"error": problem})
    else:
        text = f"casstore: {escape(message)}" + (f"\n  hint: {escape(hint)}" if hint else "")
    with suppress(OSError):  # nobody may be listening
        print(text, file=sys.stderr, flush=True)
    return exit_code


def _usage_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{context.command_path} --help" if context is not None else "casstore --help"


def _print_anything(stream: TextIO) -> None:
    """Characters the terminal's encoding does not have are escaped instead of failing the command."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Keep the interpreter from failing once more, at exit, on output that cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Root, name="casstore", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="casstore", message="%(prog)s %(version)s")
def main() -> None:
    """Keep versions of large directories, deduplicated; delete, restore and collect them safely.

    References are [[entity/]project/]collection[:vN|alias|digest]; without a selector, latest.
    """
