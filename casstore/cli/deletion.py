"""Much at once, and what is not to go: rm --where, rm --collection, protect, quota, purge-content."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Session
from casstore.cli.output import human, pairs
from casstore.cli.values import parse_size
from casstore.errors import ConfirmationRequired, IntegrityError, InvalidInputError
from casstore.values import dataclass

if TYPE_CHECKING:
    from casstore.erasure import Erasure
    from casstore.quota import Forecast, Quota
    from casstore.store import Store

SHOWN = 20
"""skipped versions that are named on the terminal"""
WASTE = 0.04
"""share of the store that `rm --collect` leaves as garbage: less is not worth the copying"""


@dataclass(frozen=True, slots=True)
class Allowances:
    """What the options of rm allow to go along."""

    delete_aliases: bool
    delete_links: bool
    if_in_use: str


def remove_where(
    session: Session,
    text: str,
    collections: tuple[str, ...],
    allowed: Allowances,
    *,
    dry_run: bool,
    yes: bool,
    reason: str,
) -> None:
    """``rm --where``: one plan, one question, one commit."""
    from casstore.selection import parse_where

    if len(collections) > 1:
        raise InvalidInputError("--where takes one COLLECTION, or none for all of them")
    where = parse_where(text)
    with session.store() as store:
        plan = store.plan_delete(
            where,
            allowed.delete_aliases,
            reason,
            collection=next(iter(collections), None),
            delete_links=allowed.delete_links,
            if_in_use=allowed.if_in_use,
        )
        _say_skipped(session, plan.skipped)
        done = plan.foreseen
        if not dry_run and plan.refs:
            if not yes:
                what = f"{len(plan.refs)} versions" if len(plan.refs) > 1 else plan.refs[0]
                session.ask(f"Move {what} to the trash? [y/N]", ("y", "Y", "yes"), "--yes")
            done = plan.apply()
        session.data("rm-where", {"dry_run": dry_run, "where": text, **done.to_dict()}, lambda: done.refs)
        many = "1 version" if len(done.refs) == 1 else f"{len(done.refs)} versions"
        session.note(f"{many}; purging all that frees {human(done.exclusive_bytes)}")


def remove_for_good(
    session: Session,
    text: str | None,
    names: tuple[str, ...],
    allowed: Allowances,
    *,
    collect: bool,
    dry_run: bool,
    confirm: str | None,
    reason: str,
) -> None:
    """``rm --permanent``: one plan, one question, one commit that trashes and purges; and the collection of it."""
    from casstore.selection import parse_where

    if text is not None and len(names) > 1:
        raise InvalidInputError("--where takes one COLLECTION, or none for all of them")
    with session.store() as store:
        if collect:
            store.check_gc()
        plan = store.plan_delete(
            names if text is None else parse_where(text),
            allowed.delete_aliases,
            reason,
            collection=None if text is None else next(iter(names), None),
            delete_links=allowed.delete_links,
            if_in_use=allowed.if_in_use,
            permanent=True,
            measure=session.json or dry_run or not collect,  # else the collection says what it freed
        )
        _say_skipped(session, plan.skipped)
        done, freed = plan.foreseen, None
        going = (*done.refs, *done.unlinked)
        if going and not dry_run:
            _confirm_purge(session, going, confirm)
            done = plan.apply()
        if collect and not dry_run:
            freed = _collect(session, store)
        values = {"dry_run": dry_run, **done.to_dict(), "freed_bytes": freed}
        session.data("rm-permanent", values, lambda: (*done.refs, *done.unlinked))
        if done.cancelled_uses:
            session.note(f"uses were cancelled of {', '.join(done.cancelled_uses)}")
        if freed is None:
            session.note(f"{human(done.exclusive_bytes)} {'would be' if dry_run else 'are'} for gc to free")


def _confirm_purge(session: Session, going: Sequence[str], confirm: str | None) -> None:
    """Have the collection named, or the one version. Raises `ConfirmationRequired`, `InvalidInputError`."""
    from casstore.names import parse_reference

    names = {parse_reference(ref).collection for ref in going}
    if len(names) > 1:
        raise InvalidInputError(
            f"these are versions of {len(names)} collections; nothing was changed",
            hint="--permanent takes one at a time",
        )
    name = names.pop()
    expected = (name.short, str(name), *(going if len(going) == 1 else ()))
    hint = f"--confirm {name.short}"
    if confirm is None:
        what = going[0] if len(going) == 1 else f"{len(going)} versions of {name.short}"
        session.ask(f"Type {name.short} to purge {what} for good:", expected, hint)
    elif confirm not in expected:
        raise ConfirmationRequired(f"{confirm!r} is not {name.short!r}; nothing was changed", hint=hint)


def _say_skipped(session: Session, skipped: Sequence[tuple[str, str]]) -> None:
    for ref, why in skipped[:SHOWN]:
        session.note(f"{ref} stays: it {why}")
    if len(skipped) > SHOWN:
        session.note(f"and {len(skipped) - SHOWN} more stay")


def _collect(session: Session, store: Store) -> int:
    """Free what was purged, now; returns by how many bytes the store got smaller."""
    with session.progress() as progress:
        report = store.gc(grace=0, store_waste=WASTE, progress=progress)
    for remark in (*report.notes, *report.errors):
        session.note(remark)
    session.note(f"freed {human(report.freed_bytes)}")
    if report.errors:
        raise IntegrityError(f"{len(report.errors)} problems were found", hint="casstore fsck --read-data")
    return report.freed_bytes


def remove_collection(
    session: Session,
    name: str,
    confirm: str | None,
    allowed: Allowances,
    *,
    permanent: bool,
    collect: bool,
    dry_run: bool,
    reason: str,
) -> None:
    """``rm --collection``: as one unit; the name is asked for."""
    with session.store() as store:
        if collect:
            store.check_gc()
        collection = store.collection(name)
        if not dry_run and confirm is None:
            fate = "purge it for good" if permanent else "move it to the trash"
            question = f"Type {collection.name} to {fate} with all its versions:"
            session.ask(question, (collection.name,), f"--confirm {collection.name}")
            confirm = collection.name
        done = collection.delete(
            allowed.delete_aliases,
            reason,
            confirm,
            delete_links=allowed.delete_links,
            if_in_use=allowed.if_in_use,
            permanent=permanent,
            dry_run=dry_run,
        )
        freed = _collect(session, store) if collect and not dry_run else None
        session.data(
            "rm-collection",
            {"dry_run": dry_run, **done.to_dict(), "freed_bytes": freed},
            lambda: pairs(
                [
                    ("collection", done.ref),
                    ("versions", done.versions),
                    ("exclusive", human(done.exclusive_bytes)),
                    ("shared", human(done.shared_bytes)),
                    ("purge", f"{done.purge_at:%Y-%m-%d %H:%M:%S}"),
                ]
            ),
        )


@click.command(cls=Command, exits={10: "no such version or collection"})
@click.argument("ref", metavar="REF|COLLECTION")
@click.option("--reason", metavar="TEXT", required=True, help="Why; who is refused is told.")
@click.pass_obj
def protect(session: Session, /, *, ref: str, reason: str) -> None:
    """Keep a version, or a collection with all its versions, from being deleted by any route."""
    _protect(session, ref, reason)


@click.command(cls=Command, exits={10: "no such version or collection"})
@click.argument("ref", metavar="REF|COLLECTION")
@click.pass_obj
def unprotect(session: Session, /, *, ref: str) -> None:
    """Lift the protection of a version or a collection. That of the other stays."""
    _protect(session, ref, None)


def _protect(session: Session, ref: str, reason: str | None) -> None:
    with session.store() as store:
        target = store.get(ref) if ":" in ref else store.collection(ref)
        if reason is None:
            target.unprotect()
        else:
            target.protect(reason)
        values = {"ref": str(target), "protected": target.protected}
        session.data("protection", values, lambda: [f"{target} {target.protected or 'is not protected'}"])


@click.command(cls=Command)
@click.argument("size", metavar="[SIZE|none]", required=False)
@click.option("--trash", type=click.Choice(["counts", "free"]), help="Whether what only the trash keeps counts.")
@click.pass_obj
def quota(session: Session, /, *, size: str | None, trash: str | None) -> None:
    """Limit the bytes the store may have; none lifts the limit. Without SIZE, show it and what is used."""
    limit = None if size in {None, "none"} else parse_size(str(size))
    with session.store() as store:
        found = store.quota(trash=trash) if size is None else store.quota(limit, trash)
        session.data("quota", found.to_dict(), lambda: pairs(_quota_lines(found)))


def _quota_lines(found: Quota) -> list[tuple[str, object]]:
    return [
        ("quota", "none" if found.max_bytes is None else human(found.max_bytes)),
        ("used", human(found.used)),
        ("left", "-" if found.left is None else human(found.left)),
        ("trash", f"{human(found.trash)} ({'counts' if found.trash_counts else 'free'})"),
        ("garbage", human(found.garbage)),
    ]


def forecast_lines(found: Forecast) -> list[tuple[str, object]]:
    """A forecast as lines of name and value."""
    return [
        ("until", f"{found.until:%Y-%m-%d %H:%M:%S}"),
        ("freed", human(found.freed_bytes)),
        ("trashed", found.trashed),
        ("expiring", found.expiring),
    ]


@click.command(
    name="purge-content",
    cls=Command,
    exits={
        10: "no such content",
        13: "somebody else is at work in the store, and the message says who",
        14: "not confirmed, or other versions would break, too; nothing was changed",
        20: "some packs still have the bytes: the output says which and why",
    },
)
@click.argument("subject", metavar="DIGEST|REF/PATH")
@click.option("--all-versions", is_flag=True, help="Also if more than one version has some of it.")
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the record and for who tries to read it.")
@click.option("--confirm", metavar="DIGEST", help="The digest of the content; a dry run says it.")
@click.option("--keep", metavar="DIGEST", multiple=True, help="A piece that is to stay; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would break, and change nothing.")
@click.pass_obj
def purge_content(
    session: Session,
    /,
    *,
    subject: str,
    all_versions: bool,
    reason: str,
    confirm: str | None,
    keep: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Erase content from the disk at once and for good, although versions need it: what a law may demand.

    Every version keeps its place and its other files; reading the erased ones says when and why they went.
    """
    with session.store() as store:
        with session.progress() as progress:
            done = store.erase(subject, all_versions, reason, confirm, keep=keep, dry_run=dry_run, progress=progress)
        session.data("erasure", done.to_dict(), lambda: _erasure_lines(done))
        for pack in done.remaining:
            session.note(f"pack {pack}")
        if done.remaining:
            raise IntegrityError(
                f"{len(done.remaining)} packs still have the bytes",
                hint="casstore fsck --read-data --repair, then this command again",
            )


def _erasure_lines(done: Erasure) -> list[str]:
    common = [chunk for chunk in done.chunks if chunk.files > 1]
    head = [
        ("digest", done.digest),
        ("bytes", human(done.bytes)),
        ("versions", len(done.versions)),
        ("packs", f"{done.packs}, {done.deleted} deleted"),
        *(("in several files", f"{chunk.digest} ({human(chunk.length)}, {chunk.files} files)") for chunk in common),
    ]
    return [*pairs(head), *done.affected, *done.drafts]
