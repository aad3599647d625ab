"""Looking after a store: gc, verify, fsck, index, policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from casstore.cli.command import Command, DefaultGroup, Group, Session
from casstore.cli.output import columns, human, pairs
from casstore.cli.values import Duration, Percent, Size
from casstore.errors import IntegrityError, InvalidInputError, VerificationError

if TYPE_CHECKING:
    from casstore.explain import Keeper
    from casstore.gc import GCReport
    from casstore.policy import Policy
    from casstore.version import Version

SHOWN_RANGES = 20


@click.group(cls=DefaultGroup, default="run")
def gc() -> None:
    """Free the bytes that nobody needs, and take that back while they are still there."""


@gc.command(
    name="run",
    exits={
        13: "with --offline: somebody else is at work in the store, and the message says who",
        14: "collection is switched off for this store",
        20: "damage was found; what needs it was kept",
    },
)
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and change nothing.")
@click.option("--explain", is_flag=True, help="Also what happens to each pack, and why, and what keeps most.")
@click.option("--grace", type=Duration(), help="Time from the end of a pack to its deletion. Default: the policy's.")
@click.option("--offline", is_flag=True, help="Have the store alone, and compact it fully: no thresholds, no waiting.")
@click.option("--optimize", is_flag=True, help="Also compress what resembles each other together. Takes CPU time.")
@click.option("--incremental", is_flag=True, help="Skip the full check of the counts.")
@click.option("--max-waste", metavar="F", type=float, help="Share of a pack that may be garbage, 0 to 1.")
@click.option("--store-waste", metavar="F", type=float, help="Repack until at most this share of the store is garbage.")
@click.option("--orphan-age", type=Duration(), help="Age of an unknown pack before it is garbage. Default: 48h.")
@click.option("--max-bytes", type=Size(), help="Stop after so many bytes.")
@click.option("--max-seconds", metavar="N", type=Duration(bare=True), help="Stop after N seconds.")
@click.option("--no-undo", is_flag=True, help="Say that a grace of 0, after which nothing can be undone, is meant.")
@click.pass_obj
def gc_run(
    session: Session,
    /,
    *,
    dry_run: bool,
    explain: bool,
    grace: timedelta | None,
    offline: bool,
    optimize: bool,
    incremental: bool,
    max_waste: float | None,
    store_waste: float | None,
    orphan_age: timedelta | None,
    max_bytes: int | None,
    max_seconds: timedelta | None,
    no_undo: bool,
) -> None:
    """Free the bytes that no version, trashed version or draft needs. Safe beside writers.

    The same as casstore gc alone.
    """
    with session.store() as store:
        wait = store.policy.grace if grace is None else grace
        if not (wait or dry_run or offline or no_undo):
            session.note("the grace is 0: this run cannot be undone (--no-undo says that this is meant)")
        with session.progress() as progress:
            report = store.gc(
                dry_run,
                grace=grace,
                offline=offline,
                optimize=optimize,
                incremental=incremental,
                max_waste=max_waste,
                store_waste=store_waste,
                orphan_age=orphan_age,
                max_bytes=max_bytes,
                max_seconds=None if max_seconds is None else max_seconds.total_seconds(),
                progress=progress,
            )
        values = report.to_dict()
        keepers: list[Keeper] = []
        if explain:
            keepers = store.keepers()
            values["keepers"] = [keeper.to_dict() for keeper in keepers]
        else:
            del values["packs"]
        session.data("gc", values, lambda: _collection_lines(report, keepers, explain=explain))
        for error in (*report.notes, *report.errors):
            session.note(error)
        if report.errors:
            raise IntegrityError(f"{len(report.errors)} problems were found", hint="casstore fsck --read-data")


@gc.command(name="undo", exits={10: "no such run or version", 14: "its bytes are gone; nothing was changed"})
@click.argument("run", metavar="RUN")
@click.argument("refs", metavar="[REF...]", nargs=-1)
@click.pass_obj
def gc_undo(session: Session, /, *, run: str, refs: tuple[str, ...]) -> None:
    """Bring the versions that a run purged back into the trash, all or some. While its grace lasts.

    RUN is in the report of the run, and in casstore log --deletions.
    """
    with session.store() as store:
        undone = store.gc_undo(run, refs=refs)
        session.data("gc-undo", undone.to_dict(), lambda: undone.restored)


@gc.command(name="reclaim", exits={14: "collection is switched off for this store", 20: "damage: nothing was deleted"})
@click.pass_obj
def gc_reclaim(session: Session, /) -> None:
    """End the grace now: delete the packs that have ended, and plan nothing new. Undoes no more after that."""
    with session.store() as store:
        with session.progress() as progress:
            report = store.gc_reclaim(progress=progress)
        values = {
            "run_id": report.run_id,
            "reclaimed_packs": report.reclaimed_packs,
            "reclaimed_bytes": report.reclaimed_bytes,
            "freed_bytes": report.freed_bytes,
        }
        session.data(
            "gc-reclaim",
            values,
            lambda: pairs(
                [
                    ("freed", human(report.freed_bytes)),
                    ("packs deleted", f"{report.reclaimed_packs} ({human(report.reclaimed_bytes)})"),
                ]
            ),
        )


@click.command(cls=Command)
@click.argument("size", type=Size(none="none"), metavar="SIZE|none", required=False)
@click.pass_obj
def ballast(session: Session, /, *, size: int | None) -> None:
    """Keep a file of SIZE for a full disk, to be given up by gc; none removes it. Without SIZE, show it."""
    with session.store() as store:
        kept = store.ballast(size)
        session.data("ballast", {"bytes": kept}, lambda: [human(kept)])


def _optimized(report: GCReport) -> str:
    if report.dry_run:
        return f"{human(report.examined_bytes)} to look at"
    return f"{report.optimized_packs} packs, {human(report.optimized_saved_bytes)} less"


def _collection_lines(report: GCReport, keepers: list[Keeper], *, explain: bool) -> list[str]:
    until = "" if report.pending_until is None else f" until {report.pending_until:%Y-%m-%d %H:%M:%S}"
    lines = [
        ("would free" if report.dry_run else "freed", human(report.freed_bytes)),
        ("chunks", report.freed_chunks),
        ("packs retired", report.retired_packs),
        ("packs deleted", f"{report.reclaimed_packs} ({human(report.reclaimed_bytes)})"),
        ("packs condemned", report.condemned_packs),
        ("copied", human(report.repacked_bytes)),
        *((("optimized", _optimized(report)),) if report.examined_bytes else ()),
        ("pending", f"{human(report.pending_bytes)}{until}"),
        ("purged", ", ".join(report.purged) or 0),
        ("aborted", ", ".join(report.aborted_batches) or 0),
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
        kept = [(keeper.kind, keeper.ref, human(keeper.stored_bytes)) for keeper in keepers]
        shown += columns(("keeper", "what", "alone"), kept, "alone") if kept else ()
    return shown


@click.command(cls=Command, exits={10: "no such version", 20: "something is damaged, missing or different"})
@click.argument("ref")
@click.option("--root", metavar="DIR", help="Compare this directory; without, the bytes in the store.")
@click.option("--check-refs", is_flag=True, help="Also look whether what references point to is what it was.")
@click.pass_obj
def verify(session: Session, /, *, ref: str, root: str | None, check_refs: bool) -> None:
    """Check every byte of a version, in the store or in a directory, and list all that is wrong."""
    with session.store() as store:
        report_verification(session, store.get(ref), root, check_refs=check_refs)


def report_verification(session: Session, version: Version, root: str | None, *, check_refs: bool = False) -> None:
    """Verify a version and say what was found. Raises `VerificationError`."""
    problem: VerificationError | None = None
    checked: int | None = None
    unverified: Sequence[str] = ()
    with session.progress() as progress:
        try:
            checked = found = version.verify(root, progress, check_refs=check_refs)
            unverified = found.unverified_refs
        except VerificationError as error:
            problem = error
    lists = {
        "missing": problem.missing if problem else [],
        "changed": problem.changed if problem else [],
        "extra": problem.extra if problem else [],
        "unverified_refs": problem.unverified_refs if problem else list(unverified),
    }
    values = {"ref": version.ref, "root": root, "clean": problem is None, "bytes": checked, **lists}
    session.data(
        "verify",
        values,
        lambda: (
            [f"{kind}  {path}" for kind, paths in lists.items() for path in paths]
            + ([f"{version.ref} ok {checked}"] if problem is None else [])
        ),
    )
    if problem is not None:
        raise problem


@click.command(cls=Command, exits={20: "the store is not clean"})
@click.option(
    "--read-data",
    metavar="[N%]",
    type=Percent(),
    is_flag=False,
    flag_value="100%",
    help="Also read and check every stored byte; with N%, so many of them, others each time.",
)
@click.option("--repair", is_flag=True, help="Quarantine what is damaged, and heal what has a second copy.")
@click.pass_obj
def fsck(session: Session, /, *, read_data: float | None, repair: bool) -> None:
    """Check the whole store: log, packs and trees. Changes nothing, but with --repair."""
    from casstore.scrub import LOST_HINT, REPAIR_HINT  # noqa: PLC0415 - start-up

    with session.store() as store:
        with session.progress() as progress:
            report = store.fsck(read_data or False, progress, repair=repair)
        values = report.to_dict()

        def lines() -> list[str]:
            counts = [(name, value) for name, value in values.items() if isinstance(value, int)]
            del counts[0]  # whether it is clean is said last
            counts.append(("erased", len(report.erased)))
            found = []
            for finding in report.findings:
                state = " (repaired)" if finding.repaired else ""
                found.append(f"{finding.kind} {finding.subject}: {finding.message}{state}")
                spans = [f"  affects {part.path} bytes {part.start}-{part.end}" for part in finding.ranges]
                spans = spans or [f"  affects {path}" for path in finding.affected]
                found += spans[:SHOWN_RANGES]
                if len(spans) > SHOWN_RANGES:
                    found.append(f"  and {len(spans) - SHOWN_RANGES} more: see --json")
            return [*pairs(counts), *(found or ["clean"])]

        session.data("fsck", values, lines)
        if not report.clean:
            left = sum(not finding.repaired for finding in report.findings)
            raise IntegrityError(f"{left} problems were found", hint=LOST_HINT if repair else REPAIR_HINT)


@click.group(cls=Group)
def index() -> None:
    """The index: a view of the log that can be made again."""


@index.command(name="rebuild")
@click.pass_obj
def index_rebuild(session: Session, /) -> None:
    """Throw the index away and make it again from the log."""
    with session.store(rebuild_index=True) as store:
        head = store.head
        session.data("index-rebuild", {"head": head}, lambda: [str(head)])


@click.command(cls=Command)
@click.pass_obj
def checkpoint(session: Session, /) -> None:
    """Write down the state of the store, so that a new index starts here and not at the beginning of the log.

    gc does it by itself when the log has grown enough.
    """
    with session.store() as store:
        with session.progress() as progress:
            made = store.checkpoint(progress)
        now = "yes" if made.made else "no, it was there"
        lines = [("at", str(made.seq)), ("size", human(made.bytes)), ("made now", now)]
        session.data("checkpoint", made.to_dict(), lambda: pairs(lines))


@click.group(cls=Group)
def policy() -> None:
    """The rules of the store."""


@policy.command(name="show")
@click.pass_obj
def policy_show(session: Session, /) -> None:
    """Show the rules in force."""
    with session.store() as store:
        _show(session, store.policy)


@policy.command(name="set", exits={14: "versions would expire at once, and that was not confirmed"})
@click.option("--trash-days", metavar="N", type=float, help="Days from the trash to purging; for later removals.")
@click.option("--grace", type=Duration(), help="Time from the end of a pack to its deletion.")
@click.option("--gc-enabled", metavar="BOOL", type=bool, help="Whether gc may run: true or false.")
@click.option("--no-ttl-types", metavar="TYPE,...", help="Versions of these types never expire; empty: none.")
@click.option("--protected-aliases", metavar="ALIAS,...", help="Aliases that keep versions; empty: none.")
@click.option("--retention", metavar="JSON", help='Rules of retain without options: {"keep_last": 5}; null: none.')
@click.option("--data-waste", metavar="SHARE", type=float, help="Garbage at which gc rewrites a data pack: 0 to 1.")
@click.option("--node-waste", metavar="SHARE", type=float, help="The same for packs of tree nodes.")
@click.option("--store-waste", metavar="SHARE", type=float, help="Garbage in the whole store that gc lets be.")
@click.option("--small-packs", metavar="N", type=int, help="Merge small packs when so many make a whole one.")
@click.option("--copy-bytes", type=Size(none="none"), metavar="SIZE", help="What one gc may copy; none: a tenth.")
@click.option("--reserved-types", metavar="TYPE,...", help="No versions of these types are made; empty: none.")
@click.option(
    "--reference-roots", metavar="DIR:...", help="Directories that file references may lead into; none: anywhere."
)
@click.option(
    "--on-private-address",
    type=click.Choice(["allow", "error"]),
    help="References that lead to an address that is not public.",
)
@click.option("--confirm", metavar="N", type=int, help="The number of versions that expire at once by that.")
@click.pass_obj
def policy_set(
    session: Session,
    /,
    *,
    trash_days: float | None,
    grace: timedelta | None,
    gc_enabled: bool | None,
    no_ttl_types: str | None,
    protected_aliases: str | None,
    retention: str | None,
    data_waste: float | None,
    node_waste: float | None,
    store_waste: float | None,
    small_packs: int | None,
    copy_bytes: int | None,
    reserved_types: str | None,
    reference_roots: str | None,
    on_private_address: str | None,
    confirm: int | None,
) -> None:
    """Change rules; those not given stay. The default ttl is set by ttl --default."""
    given = {
        "trash_days": trash_days,
        "grace": grace,
        "gc_enabled": gc_enabled,
        "data_waste": data_waste,
        "node_waste": node_waste,
        "store_waste": store_waste,
        "small_packs": small_packs,
        "on_private_address": on_private_address,
    }
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, words in (
        ("no_ttl_types", no_ttl_types),
        ("protected_aliases", protected_aliases),
        ("reserved_types", reserved_types),
    ):
        if words is not None:
            changed[name] = words.split(",") if words else []
    if retention is not None:
        changed["retention"] = _json(retention)
    if reference_roots is not None:
        changed["reference_roots"] = None if reference_roots == "none" else reference_roots.split(":")
    if copy_bytes is not None:
        changed["copy_bytes"] = copy_bytes or None
    if not changed:
        raise click.UsageError("nothing to set: give --trash-days, --grace, --gc-enabled, …")
    with session.store() as store:
        _show(session, store.set_policy(confirm=confirm, **changed))


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{text!r:.80} is not JSON: {error}") from None


def _show(session: Session, rules: Policy) -> None:
    values = rules.to_dict()
    session.data("policy", values, lambda: pairs([(name, str(value)) for name, value in values.items()]))
