"""What every command has: the options for the store and the form of output, its exit codes, its session."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from casstore.cli.output import escape, progress_bars
from casstore.errors import ConfirmationRequired, InvalidInputError, ReadOnlyError
from casstore.process import import_libraries
from casstore.values import dataclass

if TYPE_CHECKING:
    from casstore.model import Progress
    from casstore.store import Store

GARBAGE = 20_000
"""objects that are made before cycles are looked for; while modules are imported, which are no garbage, more"""
INTERRUPTED = 130
BROKEN_PIPE = 141

EXITS = {
    0: "done",
    2: "bad usage, name or value; or no store given",
    10: "not found: the store, or what the command names",
    12: "nothing can be written where the store is",
    13: "a race was lost: run it again",
    20: "stored bytes are damaged or missing",
    21: "not a store of a known format",
    30: "the file system or object store failed",
    130: "interrupted (Ctrl-C)",
    141: "the reader of the output went away",
}
"""exit codes every command can end with"""


@dataclass(slots=True)
class Session:
    """One run of the command line: which store, and how to speak."""

    store_url: str | None = None
    json: bool = False
    quiet: bool = False
    alone: bool = False
    """this process is for nothing else"""

    def location(self) -> str:
        """Where the store is: ``--store``, else CASSTORE_URL. Raises `InvalidInputError`."""
        from casstore.config import environment

        url = environment("URL") if self.store_url is None else self.store_url
        if url is None:
            raise InvalidInputError("no store was given", hint="use --store URL, or set CASSTORE_URL")
        return url

    @contextmanager
    def store(self, *, rebuild_index: bool = False) -> Iterator[Store]:
        """The store, open: to be read only, where it cannot be written."""
        from casstore.store import Store

        if self.alone:
            gc.freeze()  # what was imported stays
            gc.set_threshold(GARBAGE)
        url = self.location()
        try:
            opened = Store.open(url, rebuild_index=rebuild_index)
        except ReadOnlyError:
            opened = Store.open(url, read_only=True, rebuild_index=rebuild_index)
        with opened as store:
            yield store

    @contextmanager
    def noting_warnings(self) -> Iterator[None]:
        """What the library warns of is said as remarks are."""
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module=r"casstore\.")
            warnings.showwarning = lambda message, *_, **__: self.note(f"casstore: warning: {message}")
            yield

    # --- speaking

    def data(self, schema: str, values: Mapping[str, object], lines: Callable[[], Iterable[str]]) -> None:
        """What was asked for, on stdout: one JSON document, or lines of text with control characters escaped."""
        if self.json:
            import json

            print(json.dumps({"schema": f"{schema}/1", **values}))
            return
        for line in lines():
            self.line(line)

    @staticmethod
    def line(text: str) -> None:
        """A line of data on stdout, control characters escaped."""
        print(escape(text))

    def stream(
        self,
        schema: str,
        values: Mapping[str, object],
        key: str,
        items: Iterable[Mapping[str, object]],
        last: Callable[[], Mapping[str, object]],
    ) -> None:
        """A JSON document with a list of any length, written as it comes; ``last`` gives the fields after it."""
        import json

        head = json.dumps({"schema": f"{schema}/1", **values})
        print(f"{head[:-1]}, {json.dumps(key)}: [", end="")
        for position, item in enumerate(items):
            print(", " if position else "", json.dumps(item), sep="", end="")
        rest = json.dumps(last())[1:-1]
        print(f"]{', ' if rest else ''}{rest}}}")

    def stream_text(self, schema: str, values: Mapping[str, object], key: str, parts: Iterable[str]) -> None:
        """A JSON document whose last field is a text of any length, in parts that need no escaping."""
        import json

        print(json.dumps({"schema": f"{schema}/1", **values})[:-1], json.dumps(key), sep=", ", end=': "')
        for part in parts:
            print(part, end="")
        print('"}')

    def note(self, text: str) -> None:
        """Words for the user, on stderr; none with ``--quiet``."""
        if not self.quiet:
            print(escape(text), file=sys.stderr)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress callback: bars on stderr if that is a terminal."""
        from casstore.model import no_progress

        if self.quiet or not _is_terminal(sys.stderr):
            yield no_progress
        else:
            with progress_bars() as show:
                yield show

    def ask(self, question: str, expected: tuple[str, ...], hint: str) -> None:
        """Have the user type one of some words. Raises `ConfirmationRequired` if not, or without a terminal."""
        if not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
            raise ConfirmationRequired("this needs a confirmation, and there is no terminal to ask on", hint=hint)
        print(escape(question), end=" ", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip() not in expected:
            raise ConfirmationRequired("not confirmed; nothing was changed", hint=hint)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a common option; of several levels of command the innermost wins."""
    if isinstance(ctx.obj, Session) and value not in {None, False}:
        assert param.name is not None
        setattr(ctx.obj, param.name, value)


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--store", "store_url"],
            metavar="URL",
            callback=_remember,
            expose_value=False,
            help="The store: a path or URL. Default: the environment variable CASSTORE_URL.",
        ),
        click.Option(
            ["--json", "json"],
            is_flag=True,
            callback=_remember,
            expose_value=False,
            help="Data as one JSON document on stdout, errors as JSON on stderr.",
        ),
        click.Option(
            ["-q", "--quiet", "quiet"],
            is_flag=True,
            callback=_remember,
            expose_value=False,
            help="No progress and no remarks on stderr; errors only.",
        ),
    ]


class Command(click.Command):
    """A command with the common options, whose help ends with its exit codes."""

    def __init__(self, *args: Any, exits: Mapping[int, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(_common_options())
        self.exits = dict(sorted({**EXITS, **(exits or {})}.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        if isinstance(ctx.obj, Session) and ctx.obj.alone:
            gc.set_threshold(5 * GARBAGE)
            gc.enable()
            import_libraries()
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        _write_exits(formatter, self.exits)


class Group(click.Group):
    """A group of commands with the common options, which hold for the commands below it."""

    command_class = Command

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(_common_options())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes common to all commands."""
        _write_exits(formatter, EXITS)


class DefaultGroup(Group):
    """A group that is a command, too: without the name of a command below it, the one called ``default`` is meant.

    Its help shows the options of that command beside the others.
    """

    def __init__(self, *args: Any, default: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the default command where that of a command would be, if there is none."""
        at = 0
        taking = {name for option in self.params for name in option.opts if isinstance(option, click.Option)}
        while at < len(args):
            word = args[at]
            if word in self.commands or word in ctx.help_option_names:
                return super().parse_args(ctx, args)
            if word.partition("=")[0] not in taking:
                break
            at += 2 if word == "--store" else 1
        if at > len(args):
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, [*args[:at], self.default, *args[at:]])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of the default command, then the other commands."""
        self.commands[self.default].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes of the default command."""
        self.commands[self.default].format_epilog(ctx, formatter)


def _write_exits(formatter: click.HelpFormatter, exits: Mapping[int, str]) -> None:
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(code), meaning) for code, meaning in exits.items()])
