"""Labels of versions: aliases and how they moved, tags, description, metadata."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Callable

import click

from casstore.cli.command import Command, Group, Session
from casstore.cli.output import columns
from casstore.cli.values import parse_metadata
from casstore.errors import NotFoundError, VersionNotFoundError


@click.group(cls=Group)
def alias() -> None:
    """Names that point at one version of a collection."""


@alias.command(name="set", exits={10: "no such version", 13: "the alias is not where --if-on says"})
@click.argument("ref")
@click.argument("name")
@click.option("--if-on", metavar="vN", help='Only if the alias is on this version now; "" if it must be absent.')
@click.pass_obj
def alias_set(session: Session, /, *, ref: str, name: str, if_on: str | None) -> None:
    """Point the alias NAME at a version."""
    with session.store() as store:
        version = store.get(ref)
        version.add_alias(name, if_on)
        session.data("alias", {"alias": name, "ref": version.ref, "set": True}, lambda: [f"{name} {version.ref}"])


@alias.command(name="rm", exits={10: "no such version, or the alias is not on it"})
@click.argument("ref")
@click.argument("name")
@click.option("--missing-ok", is_flag=True, help="It is no error if the alias is not there.")
@click.pass_obj
def alias_rm(session: Session, /, *, ref: str, name: str, missing_ok: bool) -> None:
    """Take the alias NAME off a version; REF may be only the collection."""
    from casstore.names import check_alias, parse_reference

    reference = parse_reference(ref)
    check_alias(name)
    with session.store() as store:
        try:
            version = store.get(f"{ref}:{name}" if reference.selector is None else ref)
        except VersionNotFoundError:
            if reference.selector is not None:
                raise
            if not missing_ok:
                raise NotFoundError(f"{ref} has no alias {name!r}", hint=f"casstore alias ls {ref}") from None
            session.data("alias", {"alias": name, "ref": None, "set": False}, list)
            return
        version.remove_alias(name, missing_ok)
        session.data("alias", {"alias": name, "ref": version.ref, "set": False}, lambda: [f"{name} {version.ref}"])


@alias.command(name="ls", exits={10: "no such collection"})
@click.argument("collection")
@click.pass_obj
def alias_ls(session: Session, /, *, collection: str) -> None:
    """List the aliases of a collection."""
    with session.store() as store:
        found = sorted((name, version.version) for version in store.versions(collection) for name in version.aliases)
        rows = [{"alias": name, "version": version} for name, version in found]
        session.data(
            "aliases", {"collection": collection, "aliases": rows}, lambda: columns(("alias", "version"), found)
        )


@alias.command(name="log", exits={10: "no such collection"})
@click.argument("collection", metavar="COLLECTION[:ALIAS]")
@click.pass_obj
def alias_log(session: Session, /, *, collection: str) -> None:
    """How the aliases of a collection moved, oldest first: when, from and to which version, and by whom."""
    from casstore.config import from_micros

    def version(number: int) -> str | None:
        return None if number < 0 else f"v{number}"

    with session.store() as store:
        rows = [
            {
                "alias": change.alias,
                "before": version(change.before),
                "after": version(change.after),
                "commit": change.seq,
                "at": from_micros(change.at).isoformat(),
                "actor": change.actor,
            }
            for change in store.alias_log(collection)
        ]
        session.data(
            "alias-log",
            {"collection": collection.partition(":")[0], "changes": rows},
            lambda: columns(
                ("time", "alias", "before", "after", "by"),
                [
                    (str(row["at"])[:19], row["alias"], row["before"] or "-", row["after"] or "-", row["actor"])
                    for row in rows
                ],
            ),
        )


@click.group(cls=Group)
def tag() -> None:
    """Labels of versions, many to many."""


@tag.command(name="add", exits={10: "no such version"})
@click.argument("ref")
@click.argument("names", metavar="TAG...", nargs=-1, required=True)
@click.pass_obj
def tag_add(session: Session, /, *, ref: str, names: tuple[str, ...]) -> None:
    """Give a version some more tags."""
    _retag(session, ref, lambda tags: (*tags, *(name for name in names if name not in tags)))


@tag.command(name="rm", exits={10: "no such version"})
@click.argument("ref")
@click.argument("names", metavar="TAG...", nargs=-1, required=True)
@click.pass_obj
def tag_rm(session: Session, /, *, ref: str, names: tuple[str, ...]) -> None:
    """Take tags off a version; it is no error if it has none of them."""
    _retag(session, ref, lambda tags: tuple(name for name in tags if name not in names))


@tag.command(name="set", exits={10: "no such version"})
@click.argument("ref")
@click.argument("names", metavar="[TAG...]", nargs=-1)
@click.pass_obj
def tag_set(session: Session, /, *, ref: str, names: tuple[str, ...]) -> None:
    """Make these the tags of a version."""
    _retag(session, ref, lambda _: names)


def _retag(session: Session, ref: str, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
    with session.store() as store:
        version = store.get(ref)
        version.update(tags=change(version.tags))
        data = {"ref": version.ref, "tags": list(version.tags)}
        session.data("tags", data, lambda: [" ".join((version.ref, *version.tags))])


@click.command(cls=Command, exits={10: "no such version"})
@click.argument("ref")
@click.option("--description", metavar="TEXT", help="Free text.")
@click.option("--meta", "assignments", metavar="KEY=VALUE", multiple=True, help="Metadata (text); may be repeated.")
@click.option("--meta-json", "meta_file", metavar="FILE", help="Metadata: a file with a JSON object.")
@click.option("--replace", is_flag=True, help="The metadata given is all there is to be, instead of being added.")
@click.pass_obj
def update(
    session: Session,
    /,
    *,
    ref: str,
    description: str | None,
    assignments: tuple[str, ...],
    meta_file: str | None,
    replace: bool,
) -> None:
    """Change description and metadata of a version, in one commit."""
    given = bool(assignments) or meta_file is not None
    if description is None and not given:
        raise click.UsageError("nothing to change: --description, --meta or --meta-json")
    metadata = parse_metadata(assignments, meta_file) if given else None
    with session.store() as store:
        version = store.get(ref)
        version.update(description=description, metadata=metadata, merge=not replace)
        data = {"ref": version.ref, "description": version.description, "metadata": version.metadata}
        session.data("labels", data, lambda: [version.ref])
