"""Taking versions away and giving them back: rm, trash."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Group, Session
from casstore.cli.output import columns, human
from casstore.cli.values import Duration
from casstore.errors import ConfirmationRequired, InvalidInputError, RefusedError, VersionNotFoundError

if TYPE_CHECKING:
    from casstore.cli.deletion import Allowances
    from casstore.store import Store
    from casstore.trash import TrashItem
    from casstore.version import Version


@click.command(
    cls=Command,
    exits={
        10: "no such version or collection",
        13: "the store changed between the question and the answer",
        14: (
            "not confirmed, protected, or aliases, links or uses are in the way; with --collect: collection is "
            "switched off; nothing was changed"
        ),
        20: "with --collect: damage was found; what needs it was kept",
    },
)
@click.argument("refs", metavar="[REF...]", nargs=-1)
@click.option("--where", metavar="EXPR", help="All versions that match; REF is a collection then, or left out.")
@click.option("--collection", metavar="NAME", help="A whole collection, as one unit.")
@click.option("--permanent", is_flag=True, help="Purge it at once: not to the trash, from where it could be restored.")
@click.option(
    "--collect", is_flag=True, help="With --permanent: free the bytes at once, too, so that nothing undoes it."
)
@click.option("--delete-aliases", is_flag=True, help="Also versions that have aliases other than latest.")
@click.option("--delete-links", is_flag=True, help="Also versions that are linked; their links are hidden with them.")
@click.option(
    "--if-in-use",
    type=click.Choice(["cancel", "refuse"]),
    default="cancel",
    show_default=True,
    help="What becomes of declared uses: they are cancelled, or in the way.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be moved to the trash, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--confirm",
    metavar="NAME[:vN]",
    help="The name of the collection, once more; with --collection, its aliases may go then. Or of the one version.",
)
@click.option("--reason", metavar="TEXT", default="", help="Why, for the record.")
@click.pass_obj
def rm(
    session: Session,
    /,
    *,
    refs: tuple[str, ...],
    where: str | None,
    collection: str | None,
    permanent: bool,
    collect: bool,
    delete_aliases: bool,
    delete_links: bool,
    if_in_use: str,
    dry_run: bool,
    yes: bool,
    confirm: str | None,
    reason: str,
) -> None:
    """Move versions to the trash, from where they can be restored. Asks first; see --yes and --confirm."""
    from casstore.cli.deletion import Allowances, remove_collection, remove_for_good, remove_where

    if (where is not None) + (collection is not None) + bool(refs and where is None) != 1:
        raise InvalidInputError("say what: REF..., or --where EXPR [COLLECTION], or --collection NAME")
    if confirm is not None and collection is None and not permanent and (where is not None or len(refs) != 1):
        raise InvalidInputError("--confirm goes with --collection, --permanent, or one REF", hint="--yes")
    if collect and not permanent:
        raise InvalidInputError("--collect goes with --permanent: what is in the trash keeps its bytes")
    allowed = Allowances(delete_aliases, delete_links, if_in_use)
    if permanent and collection is None:
        remove_for_good(session, where, refs, allowed, collect=collect, dry_run=dry_run, confirm=confirm, reason=reason)
        return
    if where is not None:
        remove_where(session, where, refs, allowed, dry_run=dry_run, yes=yes, reason=reason)
        return
    if collection is not None:
        remove_collection(
            session, collection, confirm, allowed, permanent=permanent, collect=collect, dry_run=dry_run, reason=reason
        )
        return
    with session.store() as store:
        # References are resolved before the first change: `latest` moves when a version goes.
        chosen = list({version.ref: version for version in (_find(store, ref) for ref in refs)}.values())
        if dry_run:
            _foretell(session, chosen, allowed)
            return
        if confirm is not None and confirm not in {chosen[0].ref, chosen[0].qualified_name}:
            hint = f"--confirm {chosen[0].ref}"
            raise ConfirmationRequired(f"{confirm!r} is not {chosen[0].ref!r}; nothing was changed", hint=hint)
        if not yes and confirm is None:
            names = ", ".join(version.ref for version in chosen)
            session.ask(f"Move {names} to the trash? [y/N]", ("y", "Y", "yes"), "--yes")
        _trash(session, store, chosen, reason, allowed)


def _find(store: Store, ref: str) -> Version:
    """The version, also if it is in the trash already."""
    from casstore.names import parse_reference

    try:
        return store.get(ref)
    except VersionNotFoundError:
        reference = parse_reference(ref)
        for version in store.versions(str(reference.collection), trashed=True):
            if version.number == reference.number:
                return version
        raise


def _guards(version: Version) -> list[str]:
    return [alias for alias in version.aliases if alias != "latest"]


def _row(version: Version) -> dict[str, object]:
    exclusive = 0 if version.state == "TRASHED" else version.exclusive_size
    return {
        "ref": version.ref,
        "trashed_at": None,
        "purge_at": None,
        "exclusive_bytes": exclusive,
        "shared_bytes": version.stored_size - exclusive,
        "already_in_trash": version.state == "TRASHED",
        "aliases": _guards(version),
        "links": [link.ref for link in version.linked_artifacts],
        "unlinked": version.is_link,
    }


def _lines(rows: list[dict[str, object]]) -> list[str]:
    return list(
        columns(
            ("version", "exclusive", "shared", "purge"),
            [(row["ref"], row["exclusive_bytes"], row["shared_bytes"], _until(row)) for row in rows],
            "exclusive shared",
        )
    )


def _until(row: dict[str, object]) -> str:
    return "unlinked, source kept" if row["unlinked"] else str(row["purge_at"] or "-")[:19]


def _foretell(session: Session, chosen: list[Version], allowed: Allowances) -> None:
    rows = [_row(version) for version in chosen]
    values = {"dry_run": True, "versions": rows, "cancelled_uses": []}
    session.data("rm", values, lambda: _lines(rows))
    for row in rows:
        if row["already_in_trash"] or row["unlinked"]:
            continue
        for what, free in (("aliases", allowed.delete_aliases), ("links", allowed.delete_links)):
            some = row[what]
            if isinstance(some, list) and some and not free:
                session.note(f"{row['ref']} would be refused: it has the {what} {', '.join(some)}")


def _trash(session: Session, store: Store, chosen: list[Version], reason: str, allowed: Allowances) -> None:
    rows = [_row(version) for version in chosen]
    refs = [version.ref for version in chosen]
    plan = store.plan_delete(
        refs,
        allowed.delete_aliases,
        reason,
        delete_links=allowed.delete_links,
        if_in_use=allowed.if_in_use,
    )
    moved = plan.apply()
    for version, row in zip(chosen, rows, strict=True):
        if not version.is_link:
            done = version.delete()  # changes nothing any more
            row |= {
                "trashed_at": done.trashed_at.isoformat(),
                "purge_at": done.purge_at.isoformat(),
                "exclusive_bytes": done.exclusive_bytes,
                "shared_bytes": done.shared_bytes,
                "already_in_trash": done.ref not in moved.refs,
            }
    values = {"dry_run": False, "versions": rows, "cancelled_uses": list(moved.cancelled_uses)}
    session.data("rm", values, lambda: _lines(rows))
    if moved.cancelled_uses:
        session.note(f"uses were cancelled of {', '.join(moved.cancelled_uses)}")


@click.group(cls=Group)
def trash() -> None:
    """Versions that were removed and can be restored."""


@trash.command(name="ls")
@click.option(
    "--sort",
    type=click.Choice(["purge_at", "trashed_at", "ref"]),
    default="purge_at",
    show_default=True,
    help="The order of the list.",
)
@click.pass_obj
def trash_ls(session: Session, /, *, sort: str) -> None:
    """List the trash: what purging each version would free, and the days left until it is purged."""
    with session.store() as store:
        items = store.trash.list(sort)
        left = _days_left(items)
        session.data(
            "trash",
            {"items": [{**item.to_dict(), "days_left": days} for item, days in zip(items, left, strict=True)]},
            lambda: columns(
                ("version", "type", "size", "exclusive", "days-left", "trashed", "by", "reason"),
                [
                    (
                        item.ref,
                        item.type,
                        human(item.size),
                        item.exclusive_bytes,
                        days,
                        f"{item.trashed_at:%Y-%m-%d %H:%M:%S}",
                        item.actor,
                        item.reason,
                    )
                    for item, days in zip(items, left, strict=True)
                ],
                "size exclusive days-left",
            ),
        )


def _days_left(items: list[TrashItem]) -> list[float]:
    from casstore.config import Runtime

    now = Runtime().clock()
    return [max(0.0, round((item.purge_at - now) / timedelta(days=1), 1)) for item in items]


@trash.command(
    name="restore",
    exits={
        10: "no such version or collection in the trash",
        11: "--name has another type, or is in the trash",
        14: "the collection of the version, or the source of the link, is in the trash; --name is a portfolio",
        20: "its content is not whole: it stays",
    },
)
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--name", metavar="COLLECTION", help="Make them new versions of this collection; they stay in the trash.")
@click.pass_obj
def trash_restore(session: Session, /, *, refs: tuple[str, ...], name: str | None) -> None:
    """Bring versions back: same numbers, metadata and tags, and those of their aliases that are free.

    The name of a collection in the trash brings it back with what was trashed with it.
    """
    from casstore.version import Version

    with session.store() as store:
        rows: list[dict[str, object]] = []
        try:
            for ref in refs:
                restored = store.trash.restore(ref, name)
                kind = "version" if isinstance(restored, Version) else "collection"
                lost = list(restored.aliases_not_restored) if kind == "version" else []
                aliases = list(restored.aliases) if kind == "version" else []
                rows.append({"ref": str(restored), "kind": kind, "aliases": aliases, "aliases_not_restored": lost})
                if lost:
                    session.note(f"{restored}: {', '.join(lost)} belong to another version by now")
        finally:
            if rows:
                session.data("trash-restore", {"restored": rows}, lambda: [str(row["ref"]) for row in rows])


@trash.command(name="purge", exits={10: "no such version or collection", 14: "not confirmed, or not in the trash"})
@click.argument("ref", metavar="REF|COLLECTION")
@click.option("--confirm", metavar="NAME[:vN]", help="Its name, once more.")
@click.option("--dry-run", is_flag=True, help="Say what would be purged, and change nothing.")
@click.pass_obj
def trash_purge(session: Session, /, *, ref: str, confirm: str | None, dry_run: bool) -> None:
    """Drop one version, or collection, in the trash for good; a gc then frees what only it needed.

    Needs --confirm with its name; on a terminal, it asks for it.
    """
    from casstore.names import parse_reference

    reference = parse_reference(ref)
    label = reference.collection.short if reference.selector is None else str(reference)
    if reference.number is None and reference.selector is not None:
        raise InvalidInputError(f"{ref!r} does not name one version", hint="name:vN")
    hint = f"--confirm {label}"
    if not dry_run and confirm is None:
        session.ask(f"Type {label} to purge it for good:", (label,), hint)
    elif not dry_run and confirm != label:
        raise ConfirmationRequired(f"{confirm!r} is not {label!r}; nothing was changed", hint=hint)
    with session.store() as store:
        exclusive = next((item.exclusive_bytes for item in store.trash.list() if item.ref == label), None)
        if dry_run and exclusive is None:
            store.get(ref)
            raise RefusedError(f"{label} is not in the trash, so it cannot be purged", hint=f"casstore rm {label}")
        done = label if dry_run else store.trash.purge(ref)
        values = {"dry_run": dry_run, "purged": [done], "exclusive_bytes": exclusive}
        session.data("trash-purge", values, lambda: [done])


@trash.command(name="empty", exits={14: "not confirmed; nothing was changed"})
@click.option("--older-than", type=Duration(), help="Only what has been in the trash for so long, such as 7d.")
@click.option("--confirm", metavar="empty", help='The word "empty".')
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be purged, and change nothing.")
@click.pass_obj
def trash_empty(
    session: Session, /, *, older_than: timedelta | None, confirm: str | None, yes: bool, dry_run: bool
) -> None:
    """Drop all versions in the trash for good.

    Needs --yes or --confirm empty; on a terminal, it asks.
    """
    hint = "--yes, or --confirm empty"
    if confirm is not None and confirm != "empty":
        raise ConfirmationRequired(f"{confirm!r} is not 'empty'; nothing was changed", hint=hint)
    if not (dry_run or yes or confirm):
        session.ask("Type empty to purge all of it for good:", ("empty",), hint)
    with session.store() as store:
        purged = store.trash.empty(older_than, dry_run=dry_run)
        session.data("trash-empty", {"dry_run": dry_run, "purged": purged}, lambda: purged)
