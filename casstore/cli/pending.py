"""Several writers of one version: upsert, finish, pending."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Group, Session
from casstore.cli.output import columns, human, pairs
from casstore.cli.values import Duration, TimeToLive, parse_metadata, parse_ttl

if TYPE_CHECKING:
    from datetime import timedelta

    from casstore.artifact import Artifact
    from casstore.batch import BatchInfo


@click.command(
    cls=Command,
    exits={
        11: "the collection or the batch has another type, or two paths are in conflict",
        13: "the part, or a path in another part, is there with other content; or another race was lost",
        14: "the batch is finished or aborted, or the store's policy refuses",
    },
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--name", metavar="REF", required=True, help="[[entity/]project/]collection the version will be of.")
@click.option("--id", "distributed_id", metavar="ID", required=True, help="What all writers of the version call it.")
@click.option("--part", metavar="P", help="Name of this writer's part. Default: that of its content.")
@click.option("--type", "kind", default="dataset", show_default=True, help="Type of the artifact.")
@click.option("--lease", type=Duration(), default="7d", show_default=True, help="How long the batch lasts from now.")
@click.option("--path", "inner", metavar="NAME", help="Path inside the artifact, of the only PATH.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Leave out what matches; may be repeated.")
@click.option("--include", metavar="GLOB", multiple=True, help="Take only files that match; may be repeated.")
@click.pass_obj
def upsert(
    session: Session,
    /,
    *,
    paths: tuple[str, ...],
    name: str,
    distributed_id: str,
    part: str | None,
    kind: str,
    lease: timedelta,
    inner: str | None,
    exclude: tuple[str, ...],
    include: tuple[str, ...],
) -> None:
    """Store files and directories as one part of a version that several writers make; see casstore finish.

    Run again after a failure, it changes nothing but the lease. Prints the name of the part, its files and bytes.
    """
    from casstore.artifact import Artifact
    from casstore.names import CollectionName

    if inner is not None and len(paths) > 1:
        raise click.UsageError("--path goes with one PATH")
    target = CollectionName.parse(name)
    artifact = Artifact(target.name, kind)
    for path in paths:
        _add(artifact, path, inner, exclude, include)
    with session.store() as store:
        with session.progress() as progress:
            info = store.upsert(
                artifact,
                distributed_id,
                part,
                project=f"{target.entity}/{target.project}",
                lease=lease,
                progress=progress,
            )
        session.data("part", info.to_dict(), lambda: [f"{info.part} {info.files} {info.size}"])


def _add(artifact: Artifact, path: str, inner: str | None, exclude: tuple[str, ...], include: tuple[str, ...]) -> None:
    if os.path.isdir(path):
        artifact.add_dir(path, inner, include=include, exclude=exclude)
    elif exclude or include:
        raise click.UsageError("--exclude and --include are for directories")
    else:
        artifact.add_file(path, inner)


@click.command(
    cls=Command,
    exits={
        10: "no such batch",
        11: "the collection has another type by now, or is in the trash",
        13: "parts are missing, or one was let go of",
        14: "there are other parts than expected, the batch was aborted, or it was finished otherwise",
    },
)
@click.argument("distributed_id", metavar="ID")
@click.option("--collection", metavar="NAME", help="Of which collection, if more than one has a batch ID.")
@click.option("--expect", metavar="N", type=click.IntRange(min=1), help="How many parts there must be.")
@click.option("--part", "parts", metavar="P", multiple=True, help="A part there must be, and no others; repeat it.")
@click.option("-a", "--alias", "aliases", multiple=True, help="Alias for the version; may be repeated.")
@click.option("--tag", "tags", multiple=True, help="Tag for the version; may be repeated.")
@click.option("--meta", "assignments", metavar="KEY=VALUE", multiple=True, help="Metadata (text); may be repeated.")
@click.option("--meta-json", "meta_file", metavar="FILE", help="Metadata: a file with a JSON object.")
@click.option("--description", metavar="TEXT", help="Free text.")
@click.option("--ttl", type=TimeToLive(), default="inherit", help="Time to live: 30d, 12h, none or inherit (default).")
@click.option("--no-latest", is_flag=True, help="Do not move the alias latest.")
@click.pass_obj
def finish(
    session: Session,
    /,
    *,
    distributed_id: str,
    collection: str | None,
    expect: int | None,
    parts: tuple[str, ...],
    aliases: tuple[str, ...],
    tags: tuple[str, ...],
    assignments: tuple[str, ...],
    meta_file: str | None,
    description: str | None,
    ttl: str,
    no_latest: bool,
) -> None:
    """Make all parts of a batch one version, in one commit. Asked for the same again, it is the same version.

    Prints the version, "created" or "unchanged", and the bytes of all its files.
    """
    if expect is not None and parts:
        raise click.UsageError("--expect and --part are two ways to say it: give one")
    with session.store() as store:
        with session.progress() as progress:
            version = store.finish(
                distributed_id,
                expected_parts=parts or expect,
                aliases=aliases,
                tags=tags,
                description=description,
                metadata=parse_metadata(assignments, meta_file),
                ttl=parse_ttl(ttl),
                collection=collection,
                move_latest=not no_latest,
                progress=progress,
            )
        outcome = "created" if version.created else "unchanged"
        values = {
            "ref": version.ref,
            "created": version.created,
            "digest": str(version.digest),
            "files": version.file_count,
            "bytes": version.size,
            "ignored": list(version.ignored),
        }
        session.data("finish", values, lambda: [f"{version.ref} {outcome} {version.size}"])
        if version.ignored:
            session.note(f"{version.ref} was there already and keeps its own {', '.join(version.ignored)}")


@click.group(cls=Group)
def pending() -> None:
    """Versions that several writers are making: list, show, give up."""


@pending.command(name="ls")
@click.pass_obj
def pending_ls(session: Session, /) -> None:
    """List the batches that are neither finished nor aborted. Drafts and other pins: casstore pin ls."""
    with session.store() as store:
        found = store.pending()
        rows = [
            (
                info.distributed_id,
                info.collection,
                info.type,
                len(info.parts),
                info.files,
                human(info.size),
                _until(info),
            )
            for info in found
        ]
        session.data(
            "pending",
            {"batches": [info.to_dict() for info in found]},
            lambda: columns(
                ("id", "collection", "type", "parts", "files", "size", "until"), rows, right="parts files size"
            ),
        )


def _until(info: BatchInfo) -> str:
    if info.expires_at is None:
        return "-"
    return "expired" if info.expired else f"{info.expires_at:%Y-%m-%d %H:%M}"


@pending.command(name="show", exits={10: "no such batch"})
@click.argument("distributed_id", metavar="ID")
@click.option("--collection", metavar="NAME", help="Of which collection, if more than one has a batch ID.")
@click.pass_obj
def pending_show(session: Session, /, *, distributed_id: str, collection: str | None) -> None:
    """Show a batch and its parts, also one that is finished or aborted."""
    with session.store() as store:
        info = store.batch(distributed_id, collection)
        session.data("batch", info.to_dict(), lambda: _lines(info))


def _lines(info: BatchInfo) -> list[str]:
    lines = [
        ("id", info.distributed_id),
        ("collection", info.collection),
        ("type", info.type),
        ("state", info.state if info.version is None else f"{info.state} as {info.version}"),
        ("reason", info.reason or "-"),
        ("begun", f"{info.created_at:%Y-%m-%d %H:%M:%S}"),
        ("until", _until(info)),
        ("size", f"{human(info.size)} in {info.files} files"),
    ]
    rows = [
        (
            part.part,
            part.files,
            human(part.size),
            part.holder,
            f"{part.at:%Y-%m-%d %H:%M:%S}",
            "lost" if part.lost else "",
        )
        for part in info.parts
    ]
    table = columns(("part", "files", "size", "holder", "at", ""), rows, right="files size") if rows else ()
    return [*pairs(lines), *table]


@pending.command(
    name="abort", exits={10: "no such batch", 14: "not confirmed, or the batch is finished; nothing was changed"}
)
@click.argument("distributed_id", metavar="ID")
@click.option("--collection", metavar="NAME", help="Of which collection, if more than one has a batch ID.")
@click.option("--reason", metavar="TEXT", default="", help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Say what would be given up, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def pending_abort(
    session: Session, /, *, distributed_id: str, collection: str | None, reason: str, dry_run: bool, yes: bool
) -> None:
    """Give a batch up: what only its parts keep is garbage then, and its ID stays used. Asks first."""
    with session.store() as store:
        info = store.batch(distributed_id, collection)
        if not dry_run:
            if not yes and info.state == "PENDING":
                asked = f"Give up {len(info.parts)} parts ({human(info.size)}) of {info.collection}? [y/N]"
                session.ask(asked, ("y", "Y", "yes"), "--yes")
            info = store.abort(distributed_id, info.collection, reason)
        values = {"dry_run": dry_run, "batch": info.to_dict()}
        word = "would give up" if dry_run else "gave up"
        session.data(
            "pending-abort",
            values,
            lambda: [f"{word} {info.collection} {info.distributed_id}: {len(info.parts)} parts, {human(info.size)}"],
        )
