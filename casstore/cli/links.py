"""Versions in other collections, and what collections are called: link, unlink, rename, collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Group, Session
from casstore.cli.output import pairs
from casstore.errors import InvalidInputError

if TYPE_CHECKING:
    from casstore.collection import Collection


@click.command(
    cls=Command,
    exits={
        10: "no such version",
        11: "TARGET has another type, or is in the trash",
        14: "who runs the store does not allow it",
    },
)
@click.argument("ref")
@click.argument("target", metavar="COLLECTION")
@click.option("-a", "--alias", "aliases", metavar="NAME", multiple=True, help="An alias in COLLECTION; repeatable.")
@click.pass_obj
def link(session: Session, /, *, ref: str, target: str, aliases: tuple[str, ...]) -> None:
    """Make a version one of another COLLECTION, too: a number there, latest and aliases. Prints the link."""
    with session.store() as store:
        made = store.link(ref, target, aliases)
        values = {"ref": made.ref, "source": made.source_artifact.ref, "aliases": list(made.aliases)}
        session.data("link", values, lambda: [made.ref])


@click.command(cls=Command, exits={10: "no such version", 14: "the link is protected"})
@click.argument("ref")
@click.option("--dry-run", is_flag=True, help="Say what would be taken away, and change nothing.")
@click.pass_obj
def unlink(session: Session, /, *, ref: str, dry_run: bool) -> None:
    """Take a link away for good; its source is not touched, and can be linked again."""
    with session.store() as store:
        found = store.get(ref)
        if not found.is_link:
            raise InvalidInputError(f"{found.ref} is no link", hint=f"casstore rm {found.ref} moves it to the trash")
        aliases = list(found.aliases)
        if not dry_run:
            found.unlink()
        values = {"dry_run": dry_run, "ref": found.ref, "source": found.source_artifact.ref, "aliases": aliases}
        session.data("unlink", values, lambda: [found.ref])


@click.command(
    cls=Command, exits={10: "no such collection", 11: "NEW is taken, perhaps by one in the trash, or a purged one"}
)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.pass_obj
def rename(session: Session, /, *, old: str, new: str) -> None:
    """Give a collection another name, also in another project. OLD leads to it until a collection takes it."""
    with session.store() as store:
        collection = store.collection(old)
        before = collection.name
        collection.rename(new)
        values = {"before": before, "name": collection.name}
        session.data("rename", values, lambda: [collection.name])


@click.group(cls=Group)
def collection() -> None:
    """Make collections without versions, portfolios above all, and say what they are."""


@collection.command(name="create", exits={11: "there is one, perhaps in the trash", 14: "the type is reserved"})
@click.argument("name")
@click.option("--type", "kind_of_version", metavar="TYPE", required=True, help="The type of its versions.")
@click.option("--portfolio", is_flag=True, help="It takes links only.")
@click.option("--description", metavar="TEXT", default="", help="What it is for.")
@click.pass_obj
def collection_create(
    session: Session, /, *, name: str, kind_of_version: str, portfolio: bool, description: str
) -> None:
    """Make a collection without versions; put and link make theirs by themselves."""
    with session.store() as store:
        kind = "portfolio" if portfolio else "sequence"
        _shown(session, store.create_collection(name, kind_of_version, kind, description))


@collection.command(name="show", exits={10: "no such collection"})
@click.argument("name")
@click.pass_obj
def collection_show(session: Session, /, *, name: str) -> None:
    """Show everything about a collection but its versions."""
    with session.store() as store:
        _shown(session, store.collection(name))


@collection.command(
    name="describe", exits={10: "no such collection", 14: "the type is reserved, or there are links in or to it"}
)
@click.argument("name")
@click.argument("text", required=False)
@click.option("--type", "kind_of_version", metavar="TYPE", help="Also, or only, give it and its versions this type.")
@click.pass_obj
def collection_describe(session: Session, /, *, name: str, text: str | None, kind_of_version: str | None) -> None:
    """Say what a collection is for."""
    if text is None and kind_of_version is None:
        raise InvalidInputError("say what: TEXT, or --type TYPE")
    with session.store() as store:
        found = store.collection(name)
        found.update(text, kind_of_version)
        _shown(session, found)


def _shown(session: Session, found: Collection) -> None:
    values = found.to_dict()
    session.data("collection", values, lambda: pairs([(k, "" if v is None else v) for k, v in values.items()]))
