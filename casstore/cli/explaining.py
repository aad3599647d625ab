"""What would a deletion free, why is something here, and how is the store: preview, why, status."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Session
from casstore.cli.output import columns, human, pairs

if TYPE_CHECKING:
    from casstore.audit import DeletionRecord
    from casstore.explain import Event, Explanation, Holder
    from casstore.status import Status


def shown_time(moment: datetime) -> str:
    """A moment, to the second, UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S}"


@click.command(cls=Command, exits={10: "no such version, in the store or in its trash"})
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.pass_obj
def preview(session: Session, /, *, refs: tuple[str, ...]) -> None:
    """Say what deleting versions together would free, exactly, and who else needs the rest. Changes nothing."""
    with session.store() as store:
        impact = store.preview_delete(refs)
        session.data(
            "preview",
            impact.to_dict(),
            lambda: [
                *pairs(
                    [
                        ("frees", _both(impact.exclusive_bytes, impact.stored_exclusive_bytes)),
                        ("with the trash", _both(impact.trash_only_bytes, impact.stored_trash_only_bytes)),
                        ("stays", human(impact.shared_bytes)),
                    ]
                ),
                *(f"shared with  {ref}" for ref in (*impact.shared_with, *impact.pins)),
            ],
        )


def _both(plain: int, stored: int) -> str:
    return f"{human(plain)} ({human(stored)} stored)"


@click.command(cls=Command, exits={10: "never in this store"})
@click.argument("subject", metavar="DIGEST|REF|REF/PATH")
@click.pass_obj
def why(session: Session, /, *, subject: str) -> None:
    """Say what keeps a digest, a version or a file, and until when; or which run freed it, and what can be undone."""
    with session.store() as store:
        found = store.why(subject)
        session.data("why", found.to_dict(), lambda: _why_lines(found))


def _why_lines(found: Explanation) -> Iterator[str]:
    yield f"{found.subject}  {found.state}"
    yield from (
        columns(
            ("held by", "what", "until", "paths"),
            [
                (
                    holder.kind,
                    _described(holder),
                    "-" if holder.until is None else shown_time(holder.until),
                    ", ".join(holder.paths),
                )
                for holder in found.holders
            ],
        )
        if found.holders
        else ()
    )
    yield from (_told(event) for event in found.events)
    if found.parents:
        yield f"in {len(found.parents)} nodes"
    if found.bytes_until is not None:
        yield f"bytes stay until {shown_time(found.bytes_until)}"
    elif not found.there:
        yield "bytes are gone"
    if found.undo is not None:
        yield f"casstore gc undo {found.undo} {found.subject}"


def _described(holder: Holder) -> str:
    return holder.ref if holder.since is None else f"{holder.ref} since {shown_time(holder.since)}"


def _told(event: Event) -> str:
    run = "" if event.run_id is None else f", run {event.run_id}"
    reason = f": {event.reason}" if event.reason else ""
    return f"{event.kind} {shown_time(event.at)} by {event.actor}{run}, commit {event.commit}{reason}"


@click.command(cls=Command)
@click.pass_obj
def status(session: Session, /) -> None:
    """Say whose the bytes of the store are, when each lot goes, and what the last collection did."""
    with session.store() as store:
        found = store.status()
        session.data("status", found.to_dict(), lambda: pairs(_status_lines(found)))
        if found.waiting and not found.gc_enabled:
            session.note(f"{human(found.waiting)} wait: collection is switched off (casstore policy set --gc-enabled)")


def _status_lines(found: Status) -> list[tuple[str, str]]:
    run = found.last_run
    lines = [
        ("stored", human(found.stored)),
        ("live", human(found.live)),
        ("pinned", _until(found.pinned, "first until", found.next_pin_expiry)),
        ("trash", _until(found.trash, "first purge", found.next_purge)),
        ("damaged", f"{human(found.damaged)}, {found.damaged_digests} digests"),
        ("waste", human(found.waste)),
        ("waiting for gc", human(found.waiting)),
        ("in grace", _until(found.grace + found.doubled, "until", found.grace_ends)),
        ("orphans", human(found.orphans)),
        ("next expiry", "-" if found.next_expiry is None else shown_time(found.next_expiry)),
        ("gc", "on" if found.gc_enabled else "off"),
        (
            "last run",
            "-"
            if run is None
            else f"{run.run_id} {shown_time(run.at)} by {run.actor}, "
            + ("not finished" if run.freed_bytes is None else f"freed {human(run.freed_bytes)}"),
        ),
        ("quota", "-" if found.quota is None else human(found.quota)),
        ("collections", str(found.collections)),
        ("versions", f"{found.versions}, {found.trashed} in the trash"),
        ("packs", f"{found.packs}, {found.chunks} chunks"),
        ("log", f"{found.log_length}, checkpoint {'-' if found.checkpoint is None else found.checkpoint}"),
    ]
    return lines if found.damaged or found.damaged_digests else [line for line in lines if line[0] != "damaged"]


def _until(size: int, what: str, moment: datetime | None) -> str:
    return human(size) if moment is None else f"{human(size)}, {what} {shown_time(moment)}"


@click.command(cls=Command)
@click.pass_obj
def doctor(session: Session, /) -> None:
    """Say how the store is set up, one line for each thing, and what could be better."""
    with session.store() as store:
        found = store.doctor()
        session.data(
            "doctor",
            {"checks": [check.to_dict() for check in found]},
            lambda: [
                *columns(("", "what", "is"), [(check.level, check.name, check.message) for check in found]),
                *(f"{check.name}: {check.hint}" for check in found if check.hint),
            ],
        )


def deletion_lines(found: list[DeletionRecord]) -> Iterator[str]:
    """The table of ``log --deletions``."""
    return columns(
        ("time", "what", "by", "freed", "run", "reason", "which"),
        [
            (
                shown_time(record.at),
                record.action,
                record.actor if record.by == "user" else f"{record.actor} ({record.by})",
                "-" if record.freed_bytes is None else human(record.freed_bytes),
                record.run_id or "-",
                record.reason or "-",
                " ".join(record.refs),
            )
            for record in found
        ],
        "freed",
    )
