"""Moving versions: between stores as one file, within a store by a commit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import click

from casstore.cli.command import Command, Session
from casstore.cli.output import human
from casstore.cli.values import Size, TimeToLive, parse_ttl
from casstore.errors import InvalidInputError

if TYPE_CHECKING:
    from casstore.bundle import ImportReport


@click.command(
    name="export",
    cls=Command,
    exits={10: "no such version, or it is in the trash", 11: "the file is there already"},
)
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", required=True, help="The bundle to write; - for stdout.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.pass_obj
def export(session: Session, /, *, refs: tuple[str, ...], output: str, overwrite: bool) -> None:
    """Write versions, with their labels and all their content, into one file that another store can import."""
    if output == "-" and session.json:
        raise click.UsageError("--json needs stdout for itself: name a file")
    with session.store() as store, session.progress() as progress:
        out: str | BinaryIO = sys.stdout.buffer if output == "-" else output
        report = store.export(refs, out, overwrite=overwrite, progress=progress)
    said = f"{len(report.versions)} versions, {human(report.bundle_bytes)}"
    if output == "-":
        session.note(said)
    else:
        session.data("export", {"file": output, **report.to_dict()}, lambda: [f"{output}  {said}"])


@click.command(
    name="import",
    cls=Command,
    exits={
        11: "a collection has another type, or is in the trash; or paths of the bundle are in conflict",
        14: "the store's quota or policy refuses it",
    },
)
@click.argument("file")
@click.option("--project", metavar="PROJECT", help="Where all collections go: PROJECT or ENTITY/PROJECT.")
@click.option("--rename", "renames", metavar="OLD=NEW", multiple=True, help="Another collection name; may be repeated.")
@click.option("--no-aliases", is_flag=True, help="Leave out the aliases.")
@click.option("--max-bytes", type=Size(), help="Refuse a bundle that holds more.")
@click.option("--dry-run", is_flag=True, help="Check the bundle, say what would be done, and change nothing.")
@click.pass_obj
def import_(
    session: Session,
    /,
    *,
    file: str,
    project: str | None,
    renames: tuple[str, ...],
    no_aliases: bool,
    max_bytes: int | None,
    dry_run: bool,
) -> None:
    """Bring the versions of a bundle into the store: all of them, in one commit, or none. - is stdin.

    Prints each version of the bundle and what it is here. All of the bundle is checked before anything is stored.
    """
    with session.store() as store, session.progress() as progress:
        source: str | BinaryIO = sys.stdin.buffer if file == "-" else file
        report = store.import_bundle(
            source,
            project=project,
            rename=_renames(renames),
            aliases=not no_aliases,
            max_bytes=max_bytes,
            dry_run=dry_run,
            progress=progress,
        )
    session.data("import", report.to_dict(), lambda: _lines(report))
    for found in (*report.versions, *report.skipped):
        if found.aliases_taken:
            session.note(f"{found.ref}: another version has {', '.join(found.aliases_taken)}")
        if found.ignored:
            session.note(f"{found.ref} was there already and keeps its own {', '.join(found.ignored)}")
    if report.recut:
        session.note("this store cuts or names content in another way: digests differ from those of the bundle")


def _renames(words: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        old, equals, new = word.partition("=")
        if not (old and equals and new) or old in found:
            raise InvalidInputError(f"--rename {word!r} is not valid", hint="--rename OLD=NEW, once for each OLD")
        found[old] = new
    return found


def _lines(report: ImportReport) -> Iterator[str]:
    for found in (*report.versions, *report.skipped):
        yield f"{found.source} {found.ref} {'new' if found.created else 'there already'}"
    yield f"{len(report.versions)} versions, {human(report.new_bytes)} new"


@click.command(
    name="cp",
    cls=Command,
    exits={
        10: "no such version",
        11: "the collection has another type, or is in the trash",
        14: "the store's policy refuses it",
    },
)
@click.argument("ref")
@click.argument("dest", metavar="DEST")
@click.option("-a", "--alias", "aliases", multiple=True, help="Alias for the copy; may be repeated.")
@click.option("--ttl", type=TimeToLive(), default="inherit", help="Time to live: 30d, 12h, none or inherit (default).")
@click.option("--no-latest", is_flag=True, help="Leave the alias latest of DEST where it is.")
@click.pass_obj
def cp(session: Session, /, *, ref: str, dest: str, aliases: tuple[str, ...], ttl: str, no_latest: bool) -> None:
    """Log a version as the next version of the collection DEST, without reading or storing its files.

    Type, description, metadata and tags come along; aliases and the time to live do not.
    """
    with session.store() as store:
        source = store.get(ref)
        copy = store.copy(source.qualified_name, dest, aliases=aliases, ttl=parse_ttl(ttl), move_latest=not no_latest)
        values = {
            "source": source.ref,
            "ref": copy.ref,
            "created": copy.created,
            "digest": str(copy.digest),
            "size": copy.size,
            "file_count": copy.file_count,
            "aliases": list(copy.aliases),
        }
        word = "created" if copy.created else "unchanged"
        session.data("copy", values, lambda: [f"{copy.ref} {word}"])
