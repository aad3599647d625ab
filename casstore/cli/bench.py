"""`casstore bench`: measure casstore beside its rivals on one's own files."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casstore.cli.command import Command, Session
from casstore.cli.output import escape
from casstore.errors import BackendError, InvalidInputError, VerificationError

if TYPE_CHECKING:
    from casstore.bench.contenders import Contender
    from casstore.bench.corpora import Corpus
    from casstore.bench.report import LeftOut

CORPORA = ("wheels", "ckpt", "small", "src")
STEPS = ("next", "reread", "rest", "only", "restore", "optimize", "collect")


@click.command(
    cls=Command,
    exits={
        2: "bad usage, no such DIR, too little room for the work",
        20: "what casstore restored was not what it was given",
        30: "casstore or the file system failed",
    },
)
@click.argument("directories", nargs=-1, metavar="[DIR]...", type=click.Path(path_type=Path))
@click.option("--corpus", "corpora", multiple=True, type=click.Choice(CORPORA), help="Made files; may be repeated.")
@click.option("--contender", "names", multiple=True, metavar="NAME", help="Programs to run; may be repeated.")
@click.option("--without", multiple=True, metavar="NAME", help="Programs not to run; may be repeated.")
@click.option("--best", is_flag=True, help="Also each program with its fastest and its smallest flags.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="How often all is done.")
@click.option("--steps", metavar="STEP,…", help=f"Only these, of {','.join(STEPS)}; the first ingest always is.")
@click.option("--scale", type=click.FloatRange(0.001, 1), default=1.0, show_default=True, help="Size of made files.")
@click.option("--cold", is_flag=True, help="Drop the caches of the files before each step.")
@click.option("--limit", type=click.FloatRange(min=1), metavar="SECONDS", help="Stop a step after so long.")
@click.option("--once", type=click.FloatRange(min=0), metavar="SECONDS", help="One round for who needs longer.")
@click.option("--pause", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait between rounds.")
@click.option("--no-syncs", is_flag=True, help="Do not count system calls that sync (needs strace).")
@click.option(
    "--work", type=click.Path(path_type=Path), metavar="DIR", help="Where to work; made files are kept there."
)
@click.option("--rivals-venv", type=click.Path(path_type=Path), metavar="DIR", help="Environment of DVC and hf_xet.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the JSON document there, too."
)
@click.pass_obj
def bench(
    session: Session,
    /,
    *,
    directories: tuple[Path, ...],
    corpora: tuple[str, ...],
    names: tuple[str, ...],
    without: tuple[str, ...],
    best: bool,
    rounds: int,
    steps: str | None,
    scale: float,
    cold: bool,
    limit: float | None,
    once: float | None,
    pause: float,
    no_syncs: bool,
    work: Path | None,
    rivals_venv: Path | None,
    output: Path | None,
) -> None:
    """Measure casstore beside restic, borg, casync, DVC, hf_xet, git, cp and tar on the same files.

    Each DIR is a version of one directory, the first is the oldest; they are only read. Without DIR and --corpus,
    all four kinds of made files. Each step is a process of its own; programs take turns; what is restored is
    compared. Programs that are not installed are named and left out.
    """
    from casstore.bench.contenders import all_contenders, default_names
    from casstore.bench.measuring import load, machine, seconds
    from casstore.bench.report import document, tables
    from casstore.bench.runner import Plan, run

    plan = Plan(rounds, _steps(steps), cold, limit, once, pause, not no_syncs)
    _check_directories(directories)
    everybody = all_contenders(rivals_venv)
    usual = [c.name for c in everybody if best or c.name in default_names(everybody)]
    unwanted = _chosen(everybody, without)
    wanted = [contender for contender in _chosen(everybody, names or usual) if contender not in unwanted]
    here, left_out = _present(wanted)
    if output is not None and not output.absolute().parent.is_dir():
        raise InvalidInputError(f"there is no directory for {str(output)!r}")
    place = _work(work, directories)
    inputs, unavailable = _inputs(session, directories, corpora, place, scale)
    where = {**machine(place), "load_before": load()}
    begun = seconds()
    record = run(inputs, here, plan, place, session.note)
    where |= {"load_after": load(), "seconds": round(seconds() - begun, 1)}
    found = document(record, here, [*left_out, *unavailable], plan, scale=scale, machine=where)
    if output is not None:
        output.write_text(json.dumps({"schema": "bench/1", **found}, indent=1) + "\n", encoding="utf-8")
    session.data("bench", found, lambda: tables(found))
    _judge(found)


def _steps(text: str | None) -> frozenset[str]:
    chosen = frozenset(STEPS) if text is None else frozenset(text.split(","))
    if unknown := sorted(chosen - {*STEPS, "first"}):
        raise InvalidInputError(f"there is no step {unknown[0]!r}", hint=f"the steps are {', '.join(STEPS)}")
    return chosen | {"first"}


def _check_directories(directories: tuple[Path, ...]) -> None:
    for directory in directories:
        if not directory.is_dir():
            raise InvalidInputError(f"{str(directory)!r} is not a directory", hint="each DIR is a version to store")
        if not next(directory.iterdir(), None):
            raise InvalidInputError(f"{str(directory)!r} is empty", hint="each DIR is a version to store")


def _chosen(everybody: list[Contender], names: Sequence[str]) -> list[Contender]:
    known = {contender.name: contender for contender in everybody}
    for name in names:
        if name not in known:
            raise InvalidInputError(f"there is no contender {name!r}", hint=f"there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _present(wanted: list[Contender]) -> tuple[list[Contender], list[LeftOut]]:
    from casstore.bench.report import LeftOut

    reasons = [(contender, contender.missing()) for contender in wanted]
    here = [contender for contender, reason in reasons if not reason]
    if not here:
        raise InvalidInputError("no program that was chosen is installed", hint="scripts/rivals installs all")
    return here, [LeftOut(contender.name, reason) for contender, reason in reasons if reason]


def _work(work: Path | None, directories: tuple[Path, ...]) -> Path:
    from casstore.config import cache_directory

    place = (cache_directory() / "bench" if work is None else work).resolve()
    for directory in directories:
        if place.is_relative_to(directory.resolve()):
            raise InvalidInputError(
                f"{str(place)!r} is in {str(directory)!r}, which is to be stored",
                hint="--work DIR says where to work: outside, with room for some copies",
            )
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidInputError(f"{str(place)!r} is not a directory", hint="--work DIR says where to work") from None
    return place


def _inputs(
    session: Session, directories: tuple[Path, ...], names: tuple[str, ...], place: Path, scale: float
) -> tuple[list[Corpus], list[LeftOut]]:
    from casstore.bench.corpora import Unavailable, make, of_directories
    from casstore.bench.report import LeftOut

    inputs = [of_directories(tuple(directory.absolute() for directory in directories))] if directories else []
    left_out = []
    for name in names or (() if directories else CORPORA):
        session.note(f"{name}: making the files, unless they are there")
        try:
            inputs.append(make(name, place / "corpora", scale))
        except Unavailable as error:
            session.note(f"{name} is left out: {error}")
            left_out.append(LeftOut(name, str(error)))
    if not inputs:
        raise InvalidInputError("there are no files to store", hint="name a DIR, or a --corpus that can be made here")
    return inputs, left_out


def _judge(found: dict[str, Any]) -> None:
    """Raises if casstore itself went wrong: `VerificationError`, `BackendError`."""
    ours = {contender["name"] for contender in found["contenders"] if contender["tool"] == "casstore"}
    for sample in found["samples"]:
        if sample["contender"] in ours and sample["outcome"] != "ok":
            said = f"{sample['contender']}, {sample['step']} on {sample['corpus']}: {escape(sample['outcome'])}"
            if sample["outcome"].startswith("wrong"):
                raise VerificationError(said)
            if sample["outcome"].startswith("failed"):
                raise BackendError(said)
