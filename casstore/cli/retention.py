"""What time takes: ttl, expire, retain."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Session
from casstore.cli.output import columns, human, pairs
from casstore.cli.values import Duration, TimeToLive, parse_ttl

if TYPE_CHECKING:
    from casstore.ageing import ExpireReport, RetentionReport, TtlChange
    from casstore.version import Version


@click.command(
    cls=Command,
    exits={
        10: "no such version or collection, or it is in the trash",
        14: "versions would expire at once, and that was not confirmed; or versions of this type have no ttl",
    },
)
@click.argument("ref", required=False)
@click.argument("value", metavar="[TTL]", type=TimeToLive(), required=False)
@click.option("--allow-immediate", is_flag=True, help="Also a time to live that is over already.")
@click.option("--default", metavar="TTL", type=TimeToLive(), help="Of all versions that have none of their own.")
@click.option("--collection", metavar="NAME", help="With --default: in this collection only.")
@click.option("--dry-run", is_flag=True, help="With --default: say what would expire at once, and change nothing.")
@click.option("--confirm", metavar="N", type=int, help="With --default: the number of versions that expire at once.")
@click.pass_obj
def ttl(
    session: Session,
    /,
    *,
    ref: str | None,
    value: str | None,
    allow_immediate: bool,
    default: str | None,
    collection: str | None,
    dry_run: bool,
    confirm: int | None,
) -> None:
    """Show or set the time to live of a version, or the default of a collection or the store.

    TTL is a duration from the version's creation (30d, 12h), none (never) or inherit.
    """
    if (ref is None) == (default is None):
        raise click.UsageError("give a version, or --default")
    if default is None and (collection is not None or dry_run or confirm is not None):
        raise click.UsageError("--collection, --dry-run and --confirm go with --default")
    if allow_immediate and value is None:
        raise click.UsageError("--allow-immediate goes with a version and a TTL")
    with session.store() as store:
        if default is not None:
            change = store.set_default_ttl(parse_ttl(default), collection, dry_run, confirm)
            session.data("ttl-default", change.to_dict(), lambda: _change_lines(change))
            if dry_run and change.count:
                session.note(f"--confirm {change.count} if that is meant")
            return
        assert ref is not None
        if value is None:
            # Also one that has expired: this is the command that brings it back.
            version = store.get(ref, expired=True)
        else:
            version = store.set_ttl(ref, parse_ttl(value), allow_immediate)
        facts = version.to_dict()
        values = {key: facts[key] for key in ("ref", "ttl", "ttl_source", "expires_at", "held_by")}
        session.data("ttl", values, lambda: _lifetime_lines(version))


def _lifetime_lines(version: Version) -> list[str]:
    ends = version.expires_at
    return list(
        pairs(
            [
                ("version", version.ref),
                ("ttl", "none" if version.ttl is None else version.ttl),
                ("from", version.ttl_source),
                ("expires", "never" if ends is None else f"{ends:%Y-%m-%d %H:%M:%S}"),
                ("held by", ", ".join(version.held_by) or "-"),
            ]
        )
    )


def _change_lines(change: TtlChange) -> list[str]:
    head = [
        ("of", change.collection or "the store"),
        ("expire at once", f"{change.count} ({human(change.exclusive_bytes)})"),
    ]
    return [*pairs(head), *change.refs]


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Say what would be moved to the trash, and change nothing.")
@click.pass_obj
def expire(session: Session, /, *, dry_run: bool) -> None:
    """Move versions past their time to live to the trash. `gc` does so, too."""
    with session.store() as store:
        report = store.expire(dry_run=dry_run)
        session.data("expire", report.to_dict(), lambda: _expire_lines(report))
        taken = sum(len(version.aliases) for version in report.expired)
        if taken:
            session.note(f"{taken} aliases {'would be' if dry_run else 'were'} taken off; a restore brings them back")


def _expire_lines(report: ExpireReport) -> list[str]:
    fate = "would go" if report.dry_run else "trashed"
    rows = [
        (
            version.ref,
            f"held: {', '.join(version.held_by)}" if version.held_by else fate,
            f"{version.expired_at:%Y-%m-%d %H:%M:%S}",
            version.ttl,
            version.ttl_source,
            ", ".join(version.aliases) or "-",
        )
        for version in (*report.expired, *report.held)
    ]
    total = f"{len(report.expired)} versions, {human(report.exclusive_bytes)}"
    return [*columns(("version", "fate", "expired", "ttl", "from", "aliases"), rows), total] if rows else [total]


@click.command(
    cls=Command,
    exits={10: "no such collection", 14: "not confirmed (no --yes and no terminal); nothing was changed"},
)
@click.argument("collection")
@click.option("--keep-last", metavar="N", type=int, help="The newest N versions.")
@click.option("--keep-hourly", metavar="N", type=int, help="The newest version of each of the newest N hours with any.")
@click.option("--keep-daily", metavar="N", type=int, help="As --keep-hourly: days (UTC).")
@click.option("--keep-weekly", metavar="N", type=int, help="As --keep-hourly: ISO weeks.")
@click.option("--keep-monthly", metavar="N", type=int, help="As --keep-hourly: months.")
@click.option("--keep-yearly", metavar="N", type=int, help="As --keep-hourly: years.")
@click.option("--keep-within", type=Duration(), help="Versions not older than that, against the newest one.")
@click.option("--keep-tagged", metavar="TAG", multiple=True, help="Versions with this tag; may be repeated.")
@click.option("--delete-aliases", is_flag=True, help="Also take versions that have aliases other than latest.")
@click.option("--dry-run", is_flag=True, help="Say what would be kept and why, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def retain(
    session: Session,
    /,
    *,
    collection: str,
    keep_last: int | None,
    keep_hourly: int | None,
    keep_daily: int | None,
    keep_weekly: int | None,
    keep_monthly: int | None,
    keep_yearly: int | None,
    keep_within: timedelta | None,
    keep_tagged: tuple[str, ...],
    delete_aliases: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Keep versions of a collection by rules and move all others to the trash. Asks first; see --yes.

    A version stays if any rule keeps it. Without rules, those of the store's policy. latest, what is protected, and
    what has an alias stay in any case.
    """
    with session.store() as store:

        def run(*, dry: bool) -> RetentionReport:
            return store.retain(
                collection,
                keep_last,
                keep_hourly,
                keep_daily,
                keep_weekly,
                keep_monthly,
                keep_yearly,
                keep_within,
                keep_tagged,
                delete_aliases=delete_aliases,
                dry_run=dry,
            )

        if not (dry_run or yes):
            count = len(run(dry=True).removed)
            if count:
                session.ask(f"Move {count} versions of {collection} to the trash? [y/N]", ("y", "Y", "yes"), "--yes")
        report = run(dry=dry_run)
        session.data("retain", report.to_dict(), lambda: _retain_lines(report))


def _retain_lines(report: RetentionReport) -> list[str]:
    gone = "would go" if report.dry_run else "trashed"
    judged = sorted((*report.kept, *report.removed), key=lambda version: version.number, reverse=True)
    rows = [
        (version.ref, f"{version.created_at:%Y-%m-%d %H:%M:%S}", ", ".join(version.reasons) or gone)
        for version in judged
    ]
    total = f"{len(report.kept)} kept, {len(report.removed)} {gone}, {human(report.exclusive_bytes)}"
    return [*columns(("version", "created", "fate"), rows), total]
