"""Looking after a store: gc, verify, fsck, index, policy."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Group, Session
from casstore.cli.output import columns, human, pairs
from casstore.cli.values import Duration, Size
from casstore.errors import IntegrityError, VerificationError

if TYPE_CHECKING:
    from casstore.gc import GCReport
    from casstore.policy import Policy
    from casstore.version import Version


@click.command(
    cls=Command,
    exits={
        14: "collection is switched off for this store",
        20: "damage was found; what needs it was kept",
    },
)
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and change nothing.")
@click.option("--explain", is_flag=True, help="Also what happens to each pack, and why.")
@click.option("--grace", type=Duration(), help="Time from the end of a pack to its deletion. Default: the policy's.")
@click.option("--offline", is_flag=True, help="Compact fully: no thresholds, no waiting. For a store without writers.")
@click.option("--incremental", is_flag=True, help="Skip the full check of the counts.")
@click.option("--max-waste", metavar="F", type=float, help="Share of a pack that may be garbage, 0 to 1.")
@click.option("--orphan-age", type=Duration(), help="Age of an unknown pack before it is garbage. Default: 48h.")
@click.option("--max-bytes", type=Size(), help="Stop after so many bytes.")
@click.option("--max-seconds", metavar="N", type=Duration(bare=True), help="Stop after N seconds.")
@click.pass_obj
def gc(
    session: Session,
    /,
    *,
    dry_run: bool,
    explain: bool,
    grace: timedelta | None,
    offline: bool,
    incremental: bool,
    max_waste: float | None,
    orphan_age: timedelta | None,
    max_bytes: int | None,
    max_seconds: timedelta | None,
) -> None:
    """Free the bytes that no version, trashed version or draft needs. Safe beside writers."""
    with session.store() as store:
        with session.progress() as progress:
            report = store.gc(
                dry_run,
                grace=grace,
                offline=offline,
                incremental=incremental,
                max_waste=max_waste,
                orphan_age=orphan_age,
                max_bytes=max_bytes,
                max_seconds=None if max_seconds is None else max_seconds.total_seconds(),
                progress=progress,
            )
        values = report.to_dict()
        if not explain:
            del values["packs"]
        session.data("gc", values, lambda: _collection_lines(report, explain=explain))
        for error in report.errors:
            session.note(error)
        if report.errors:
            raise IntegrityError(f"{len(report.errors)} problems were found", hint="casstore fsck --read-data")


def _collection_lines(report: GCReport, *, explain: bool) -> list[str]:
    until = "" if report.pending_until is None else f" until {report.pending_until:%Y-%m-%d %H:%M:%S}"
    lines = [
        ("would free" if report.dry_run else "freed", human(report.freed_bytes)),
        ("chunks", report.freed_chunks),
        ("packs retired", report.retired_packs),
        ("packs deleted", f"{report.reclaimed_packs} ({human(report.reclaimed_bytes)})"),
        ("packs condemned", report.condemned_packs),
        ("copied", human(report.repacked_bytes)),
        ("pending", f"{human(report.pending_bytes)}{until}"),
        ("purged", ", ".join(report.purged) or 0),
        *((f"kept by {reason}", human(size)) for reason, size in report.kept_by.items()),
    ]
    shown = list(pairs(lines))
    if explain:
        rows = [
            (
                fate.pack.hex(),
                fate.kind.name.lower(),
                human(fate.size),
                human(fate.live),
                human(fate.dead),
                fate.fate,
                fate.reason,
            )
            for fate in report.packs
        ]
        shown += columns(("pack", "kind", "size", "live", "dead", "fate", "reason"), rows, "size live dead")
    return shown


@click.command(cls=Command, exits={10: "no such version", 20: "something is damaged, missing or different"})
@click.argument("ref")
@click.option("--root", metavar="DIR", help="Compare this directory; without, the bytes in the store.")
@click.pass_obj
def verify(session: Session, /, *, ref: str, root: str | None) -> None:
    """Check every byte of a version, in the store or in a directory, and list all that is wrong."""
    with session.store() as store:
        report_verification(session, store.get(ref), root)


def report_verification(session: Session, version: Version, root: str | None) -> None:
    """Verify a version and say what was found. Raises `VerificationError`."""
    problem: VerificationError | None = None
    checked: int | None = None
    with session.progress() as progress:
        try:
            checked = version.verify(root, progress)
        except VerificationError as error:
            problem = error
    lists = {
        "missing": problem.missing if problem else [],
        "changed": problem.changed if problem else [],
        "extra": problem.extra if problem else [],
        "unverified_refs": problem.unverified_refs if problem else [],
    }
    values = {"ref": version.ref, "root": root, "clean": problem is None, "bytes": checked, **lists}
    session.data(
        "verify",
        values,
        lambda: (
            [f"{kind}  {path}" for kind, paths in lists.items() for path in paths] or [f"{version.ref} ok {checked}"]
        ),
    )
    if problem is not None:
        raise problem


@click.command(cls=Command, exits={20: "the store is not clean"})
@click.option("--read-data", is_flag=True, help="Also read and check every stored byte.")
@click.pass_obj
def fsck(session: Session, /, *, read_data: bool) -> None:
    """Check the whole store: log, packs and trees. Changes nothing."""
    with session.store() as store:
        with session.progress() as progress:
            report = store.fsck(read_data, progress)
        values = report.to_dict()

        def lines() -> list[str]:
            counts = [(name, value) for name, value in values.items() if name not in {"findings", "clean"}]
            found = []
            for finding in report.findings:
                found.append(f"{finding.kind} {finding.subject}: {finding.message}")
                found += [f"  affects {path}" for path in finding.affected]
            return [*pairs(counts), *(found or ["clean"])]

        session.data("fsck", values, lines)
        if not report.clean:
            raise IntegrityError(f"{len(report.findings)} problems were found")


@click.group(cls=Group)
def index() -> None:
    """The index: a view of the log that can be made again."""


@index.command(name="rebuild")
@click.pass_obj
def index_rebuild(session: Session, /) -> None:
    """Throw the index away and make it again from the log."""
    with session.store() as store:
        head = store.rebuild_index()
        session.data("index-rebuild", {"head": head}, lambda: [str(head)])


@click.group(cls=Group)
def policy() -> None:
    """The rules of the store."""


@policy.command(name="show")
@click.pass_obj
def policy_show(session: Session, /) -> None:
    """Show the rules in force."""
    with session.store() as store:
        _show(session, store.policy)


@policy.command(name="set")
@click.option("--trash-days", metavar="N", type=float, help="Days from the trash to purging; for later removals.")
@click.option("--grace", type=Duration(), help="Time from the end of a pack to its deletion.")
@click.option("--gc-enabled", metavar="BOOL", type=bool, help="Whether gc may run: true or false.")
@click.pass_obj
def policy_set(
    session: Session, /, *, trash_days: float | None, grace: timedelta | None, gc_enabled: bool | None
) -> None:
    """Change rules; those not given stay."""
    given = {"trash_days": trash_days, "grace": grace, "gc_enabled": gc_enabled}
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        raise click.UsageError("nothing to set: give --trash-days, --grace or --gc-enabled")
    with session.store() as store:
        _show(session, store.set_policy(**changed))


def _show(session: Session, rules: Policy) -> None:
    values = rules.to_dict()
    session.data("policy", values, lambda: pairs([(name, str(value)) for name, value in values.items()]))
