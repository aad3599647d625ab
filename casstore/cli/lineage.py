"""Runs, uses, and where versions come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Group, Session
from casstore.cli.output import columns, pairs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from casstore.lineage import RunRecord
    from casstore.version import Version


def _when(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


@click.group(cls=Group)
def run() -> None:
    """Runs: what logged and used versions."""


@run.command(name="ls")
@click.option("--status", metavar="STATUS", help="Only those: running, finished, failed, or another word.")
@click.option("--job-type", metavar="TYPE", help="Only those of a job type.")
@click.pass_obj
def run_ls(session: Session, /, *, status: str | None, job_type: str | None) -> None:
    """List runs in the order they were started."""
    with session.store() as store:
        found = store.runs(status, job_type)
        rows = [
            (record.id, record.status, record.job_type or "-", _when(record.started_at), record.actor, record.name)
            for record in found
        ]
        session.data(
            "runs",
            {"runs": [record.to_dict() for record in found]},
            lambda: columns(("id", "status", "job type", "started", "by", "name"), rows),
        )


@run.command(name="show", exits={10: "no such run"})
@click.argument("id", metavar="ID")
@click.pass_obj
def run_show(session: Session, /, *, id: str) -> None:
    """What is known of a run, and what it logged and used; versions in the trash, too."""
    with session.store() as store:
        record = store.get_run(id)
        logged, used = store.run_outputs(id, include_trashed=True), store.run_inputs(id, include_trashed=True)
        values = {**record.to_dict(), "outputs": [v.ref for v in logged], "inputs": [v.ref for v in used]}
        session.data("run", values, lambda: _lines(record, logged, used))


def _lines(record: RunRecord, logged: list[Version], used: list[Version]) -> Iterator[str]:
    yield from pairs(
        (
            ("id", record.id),
            ("name", record.name),
            ("job type", record.job_type or "-"),
            ("status", record.status),
            ("started", _when(record.started_at)),
            ("ended", _when(record.ended_at)),
            ("by", record.actor),
            ("attrs", json.dumps(dict(record.attrs), ensure_ascii=False)),
            ("logged", ", ".join(v.ref for v in logged) or "-"),
            ("used", ", ".join(v.ref for v in used) or "-"),
        )
    )


@run.command(name="finish", exits={10: "no such run"})
@click.argument("id", metavar="ID")
@click.option("--status", metavar="STATUS", default="finished", help="How it ended; default: finished.")
@click.pass_obj
def run_finish(session: Session, /, *, id: str, status: str) -> None:
    """End a run, and its uses: of a process that was killed they stay until then. One that has ended stays as it is."""
    with session.store() as store:
        record = store.finish_run(id, status)
        session.data("run-finish", record.to_dict(), lambda: [f"{record.id} {record.status}"])


@run.command(name="rm", exits={10: "no such run"})
@click.argument("id", metavar="ID")
@click.pass_obj
def run_rm(session: Session, /, *, id: str) -> None:
    """Forget what is said of a run. Its versions are not touched; its uses end, its id stays taken."""
    with session.store() as store:
        store.delete_run(id)
        session.data("run-rm", {"id": id}, list)


@click.command(cls=Command, exits={10: "no such version"})
@click.argument("ref")
@click.option("--active", is_flag=True, help="Only those that have neither ended nor been cancelled.")
@click.pass_obj
def uses(session: Session, /, *, ref: str, active: bool) -> None:
    """Who declared a use of a version, or of a link to it, in the order they began; ended ones, too."""
    with session.store() as store:
        found = [use for use in store.uses(ref) if use.state == "active" or not active]
        rows = [(use.run, use.state, _when(use.since), use.holder, use.ref, use.purpose) for use in found]
        session.data(
            "uses",
            {"ref": ref, "uses": [use.to_dict() for use in found]},
            lambda: columns(("run", "state", "since", "holder", "ref", "purpose"), rows),
        )


@click.command(cls=Command, exits={10: "no such version or run"})
@click.argument("ref", metavar="REF|RUN")
@click.option("--format", type=click.Choice(("tree", "json", "dot")), default="tree", help="Default: tree.")
@click.option("--depth", type=int, metavar="N", help="At most so many edges from it; default: no limit.")
@click.option(
    "--direction",
    type=click.Choice(("both", "up", "down")),
    default="both",
    help="up: what it comes from; down: what came of it. Default: both.",
)
@click.pass_obj
def lineage(session: Session, /, *, ref: str, format: str, depth: int | None, direction: str) -> None:
    """Where a version or a run comes from and what came of it; what was deleted is shown as such.

    --format json is the same as --json. dot is for Graphviz.
    """
    with session.store() as store:
        graph = store.lineage(ref, depth, direction)
        if format == "json":
            session.json = True
        session.data(
            "lineage",
            graph.to_dict(),
            lambda: (graph.to_dot() if format == "dot" else graph.to_tree()).splitlines(),
        )
