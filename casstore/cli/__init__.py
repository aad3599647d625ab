"""The command line: a door to the public API without logic of its own.

`main` is the entry point. Here every error becomes a line on stderr and an exit code (docs/cli.md); the commands are in
the modules beside this one, one per group. Modules of casstore and rich are imported inside the commands, so that
``casstore --version`` and ``--help`` start at once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

import click

from casstore import __version__
from casstore.cli.bundle import cp, export, import_
from casstore.cli.command import BROKEN_PIPE, INTERRUPTED, Group, Session
from casstore.cli.content import cat, checkout, files, get, init, put
from casstore.cli.deletion import protect, purge_content, quota, unprotect
from casstore.cli.explaining import doctor, preview, status, why
from casstore.cli.labels import alias, tag, update
from casstore.cli.lineage import lineage, run, uses
from casstore.cli.links import collection, link, rename, unlink
from casstore.cli.listing import diff, du, log, ls, show
from casstore.cli.output import escape
from casstore.cli.pending import finish, pending, upsert
from casstore.cli.pins import pin
from casstore.cli.removal import rm, trash
from casstore.cli.retention import expire, retain, ttl
from casstore.cli.upkeep import ballast, checkpoint, fsck, gc, index, policy, verify
from casstore.errors import BackendError, CasstoreError

__all__ = ["main"]


class _Stopped(Exception):
    """The user or the reader of the output has had enough."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Root(Group):
    """The ``casstore`` command: the one place where errors become exit codes."""

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
        arguments = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            _print_anything(stream)
        extra["obj"] = session = Session()
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
        if standalone_mode:
            sys.exit(code)
        return code


def _complain(session: Session, code: str, message: str, hint: str, exit_code: int) -> int:
    """Say on stderr what went wrong; returns the exit code."""
    if session.json:
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


for command in (
    *(init, put, get, checkout, ls, show, files, cat, diff, rm, trash),
    *(gc, ballast, verify, fsck, alias, tag, update, log, du, index, checkpoint, policy),
    *(protect, unprotect, quota, purge_content),
    *(export, import_, cp),
    *(link, unlink, rename, collection),
    *(preview, why, status, doctor, ttl, expire, retain),
    *(pin, upsert, finish, pending),
    *(run, uses, lineage),
):
    main.add_command(command)
