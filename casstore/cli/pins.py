"""Pins: keep content whatever becomes of its versions; list, renew, let go."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Group, Session
from casstore.cli.output import columns
from casstore.cli.values import parse_duration

if TYPE_CHECKING:
    from casstore.pin import PinInfo


def _ttl(text: str) -> timedelta | None:
    return None if text == "none" else parse_duration(text)


@click.group(cls=Group)
def pin() -> None:
    """Keep content from now on, whatever becomes of its versions."""


@pin.command(name="add", exits={10: "no such version, or a digest that is not in the store"})
@click.argument("what", metavar="REF|DIGEST...", nargs=-1, required=True)
@click.option("--purpose", metavar="TEXT", required=True, help="What it is kept for; others will read it.")
@click.option("--ttl", metavar="TTL", default="7d", help="How long: 12h, 30d, …; none: until pin rm. Default: 7d.")
@click.pass_obj
def pin_add(session: Session, /, *, what: tuple[str, ...], purpose: str, ttl: str) -> None:
    """Pin versions and digests, together under one id, which is printed."""
    with session.store() as store:
        info = store.pin(what, purpose, _ttl(ttl))
        session.data("pin", info.to_dict(), lambda: [info.id])


@pin.command(name="ls")
@click.pass_obj
def pin_ls(session: Session, /) -> None:
    """List what is pinned, by whom, what for and until when; drafts and long reads are among them."""
    with session.store() as store:
        found = store.pins()
        session.data("pins", {"pins": [info.to_dict() for info in found]}, lambda: _lines(found))


def _lines(found: list[PinInfo]) -> list[str]:
    rows = [
        (
            info.id,
            "expired" if info.expired else "none" if info.expires_at is None else f"{info.expires_at:%Y-%m-%d %H:%M}",
            info.holder,
            ", ".join(info.refs) or ", ".join(f"{root!s:.24}…" for root in info.roots),
            info.purpose,
        )
        for info in found
    ]
    return list(columns(("id", "until", "holder", "content", "purpose"), rows))


@pin.command(name="rm", exits={10: "no such pin"})
@click.argument("id", metavar="ID")
@click.pass_obj
def pin_rm(session: Session, /, *, id: str) -> None:
    """Let a pin go. What it alone kept is garbage then."""
    with session.store() as store:
        store.unpin(id)
        session.data("pin-rm", {"id": id}, list)


@pin.command(name="renew", exits={10: "no such pin"})
@click.argument("id", metavar="ID")
@click.option(
    "--ttl", metavar="TTL", default="7d", help="How long from now: 12h, 30d, …; none: until pin rm. Default: 7d."
)
@click.pass_obj
def pin_renew(session: Session, /, *, id: str, ttl: str) -> None:
    """Have a pin end so long from now."""
    with session.store() as store:
        info = store.renew_pin(id, _ttl(ttl))
        until = "none" if info.expires_at is None else info.expires_at.isoformat()
        session.data("pin", info.to_dict(), lambda: [f"{info.id} {until}"])
