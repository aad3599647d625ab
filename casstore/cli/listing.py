"""What is there: ls, show, diff, du, log."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Session
from casstore.cli.deletion import forecast_lines
from casstore.cli.explaining import deletion_lines
from casstore.cli.output import columns, human, pairs
from casstore.cli.values import Duration
from casstore.errors import CollectionNotFoundError, InvalidInputError, InvalidNameError

if TYPE_CHECKING:
    from casstore.inventory import CollectionInfo
    from casstore.version import Version


@click.command(cls=Command, exits={10: "no collection has this name or prefix"})
@click.argument("name", required=False, metavar="[PREFIX|COLLECTION]")
@click.option("--type", "type_", help="Only collections of this type.")
@click.option("--kind", type=click.Choice(["sequence", "portfolio"]), help="Only portfolios, or all but these.")
@click.option("--trashed", is_flag=True, help="Versions in the trash; without COLLECTION, collections that have some.")
@click.pass_obj
def ls(session: Session, /, *, name: str | None, type_: str | None, kind: str | None, trashed: bool) -> None:
    """List collections; with the name of one, its versions, newest first."""
    with session.store() as store:
        missing: Exception | None = None
        if name is not None:
            try:
                found = store.versions(name, trashed=trashed)
            except (CollectionNotFoundError, InvalidNameError) as error:
                missing = error
            else:
                _versions(session, name, [v for v in found if type_ is None or v.type == type_])
                return
        infos = store.collections(type_, name or "", kind=kind)
        _collections(session, list(infos), missing, trashed=trashed)


def _versions(session: Session, name: str, found: list[Version]) -> None:
    rows = [version.to_dict() for version in found]
    linked = any(version.is_link for version in found)
    session.data(
        "versions",
        {"collection": name, "versions": rows},
        lambda: columns(
            ("version", "aliases", "size", "files", "created", "digest", *(("source",) if linked else ())),
            [
                (
                    version.version,
                    ",".join(version.aliases) or "-",
                    human(version.size),
                    version.file_count,
                    f"{version.created_at:%Y-%m-%d %H:%M:%S}",
                    version.digest,
                    *((version.source_artifact.ref if version.is_link else "-",) if linked else ()),
                )
                for version in found
            ],
            "size files",
        ),
    )


def _collections(session: Session, found: list[CollectionInfo], missing: Exception | None, *, trashed: bool) -> None:
    if not found and missing is not None:
        raise missing
    shown = [info for info in found if info.trashed or not trashed]
    session.data(
        "collections",
        {"collections": [info.to_dict() for info in shown]},
        lambda: columns(
            ("name", "type", "kind", "versions", "trashed", "latest", "size", "created"),
            [
                (
                    info.name,
                    info.type,
                    info.kind,
                    info.versions,
                    info.trashed,
                    info.latest or "-",
                    human(info.size),
                    f"{info.created_at:%Y-%m-%d %H:%M:%S}",
                )
                for info in shown
            ],
            "versions trashed size",
        ),
    )


@click.command(cls=Command, exits={10: "no such version"})
@click.argument("ref")
@click.option("--field", metavar="F", help="Print this field only, such as digest or metadata.")
@click.pass_obj
def show(session: Session, /, *, ref: str, field: str | None) -> None:
    """Show everything about a version but its files."""
    with session.store() as store:
        version = store.get(ref)
        values = version.to_dict()
        values.pop("schema", None)  # the document says it itself
        if field is None:
            session.data("version", values, lambda: pairs([(key, _plain(value)) for key, value in values.items()]))
            return
        if field not in values:
            raise InvalidInputError(f"a version has no field {field!r}", hint=", ".join(values))
        value = values[field]
        lines = value if isinstance(value, list) else [_plain(value)]
        session.data("field", {"ref": version.ref, "field": field, "value": value}, lambda: map(str, lines))


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


@click.command(cls=Command, exits={10: "no such version"})
@click.argument("a")
@click.argument("b")
@click.pass_obj
def diff(session: Session, /, *, a: str, b: str) -> None:
    """What changed from version A to version B.

    B may be a bare selector (v1, best), which then belongs to the collection of A; name another collection with a
    selector (other:latest). Ends with 0 whether or not there is a difference.
    """
    with session.store() as store:
        found = store.diff(a, _beside(a, b))
        session.data(
            "diff",
            found.to_dict(),
            lambda: [
                *(f"added    {path}" for path in found.added),
                *(f"removed  {path}" for path in found.removed),
                *(f"changed  {path}" for path in found.changed),
                *(f"renamed  {old} -> {new}" for old, new in found.renamed),
            ],
        )
        if not found:
            session.note(f"{found.a} and {found.b} have the same content")


def _beside(a: str, b: str) -> str:
    """B as a reference: a bare selector is one of the collection of A."""
    return b if ":" in b or "/" in b else f"{a.partition(':')[0]}:{b}"


@click.command(cls=Command, exits={10: "no such version"})
@click.argument("ref", required=False)
@click.option("--forecast", type=Duration(), help="Instead: what collections can free within so long, such as 30d.")
@click.pass_obj
def du(session: Session, /, *, ref: str | None, forecast: timedelta | None) -> None:
    """Count bytes, of the store or of one version: what is needed, by whom, and what is garbage."""
    if ref is not None and forecast is not None:
        raise InvalidInputError("--forecast is of the whole store")
    with session.store() as store:
        if forecast is not None:
            found = store.forecast(forecast)
            session.data("forecast", found.to_dict(), lambda: pairs(forecast_lines(found)))
            return
        values = store.du(ref).to_dict()
        counts = ("versions", "trashed", "chunks")
        session.data(
            "du",
            values,
            lambda: columns(
                ("what", "size", "bytes"),
                [
                    (name, "" if name in counts else human(int(str(value))), value)
                    for name, value in values.items()
                    if name != "ref" and value is not None
                ],
                "size bytes",
            ),
        )


@click.command(cls=Command)
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=1), help="Only the newest N. Default: all.")
@click.option("--deletions", is_flag=True, help="Instead: what was deleted, restored and collected, by whom and why.")
@click.pass_obj
def log(session: Session, /, *, limit: int | None, deletions: bool) -> None:
    """List the commits of the store, newest first."""
    with session.store() as store:
        if deletions:
            records = store.deletions(limit)
            values = {"deletions": [record.to_dict() for record in records]}
            session.data("deletions", values, lambda: deletion_lines(records))
            return
        found = store.log(limit=limit)
        session.data(
            "log",
            {"commits": [commit.to_dict() for commit in found]},
            lambda: columns(
                ("commit", "time", "writer", "records"),
                [
                    (
                        commit.seq,
                        f"{commit.at:%Y-%m-%d %H:%M:%S}",
                        commit.writer,
                        " ".join(f"{kind}×{count}" for kind, count in commit.records.items()),
                    )
                    for commit in found
                ],
                "commit",
            ),
        )
