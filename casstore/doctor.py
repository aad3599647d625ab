"""Is the store set up well? One line for each thing worth knowing, with what to do about it. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum

from casstore import policy
from casstore.backend.local import LocalBackend
from casstore.backend.room import ballast_bytes, free_bytes
from casstore.checkpointing import TAIL
from casstore.config import from_micros, on_network, system_micros
from casstore.engine import Engine
from casstore.status import Status, status
from casstore.values import dataclass

SKEW = timedelta(minutes=5)
TIGHT = 4
"""packs that should fit on the disk"""
NEARLY_FULL = 0.9
LONG_TAIL = 10 * TAIL


class Level(StrEnum):
    """How bad it is. ``WARN``: look at it. ``BAD``: data is at risk or damaged."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``hint``: what to do; empty if all is well."""

    name: str
    level: Level
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, object]:
        """The check as JSON values."""
        return {**asdict(self), "level": str(self.level)}


def doctor(engine: Engine) -> list[Check]:
    """Look at how a store is set up. As cheap as `casstore.status.status`; reads no content: that is `fsck`'s."""
    found = status(engine)
    rules = policy.load(engine.view.policy())
    return [
        _backend(engine),
        _undo(rules),
        _clock(engine),
        *_disk(engine),
        *_view(engine),
        _sessions(engine),
        _collector(found),
        _log(found),
        *_quota(found),
        _damage(found),
    ]


def _backend(engine: Engine) -> Check:
    backend = engine.backend
    if not isinstance(backend, LocalBackend):
        return Check("backend", Level.OK, type(backend).__name__)
    if on_network(backend.root):
        message = f"directory {backend.root} on a network file system: locks are seen on one host only"
        return Check(
            "backend", Level.WARN, message, "it needs a working link(2); run gc --offline on one host at a time"
        )
    return Check("backend", Level.OK, f"directory {backend.root}, without versioning: the grace is what undoes")


def _undo(rules: policy.Policy) -> Check:
    if not rules.grace:
        hint = "casstore policy set --grace 1d"
        return Check("undo", Level.WARN, "the grace is 0: what gc takes cannot be brought back", hint)
    return Check("undo", Level.OK, f"casstore gc undo works for {rules.grace} after a run")


def _clock(engine: Engine) -> Check:
    """The store's clock, here, against the latest that any writer claimed, and against the machine's own."""
    now = from_micros(engine.runtime.now())
    latest = from_micros(engine.view.head().highest)
    if latest - now > SKEW:
        message = f"the log is ahead of this clock by {latest - now}: this clock is late, or that of a writer was early"
        return Check("clock", Level.WARN, message, "set the clocks of all hosts by NTP")
    skew = abs(from_micros(system_micros()) - now)
    if skew > SKEW:
        return Check("clock", Level.WARN, f"the store's clock is {skew} from this machine's", "is that meant?")
    return Check("clock", Level.OK, "not behind the log")


def _disk(engine: Engine) -> Iterator[Check]:
    free = free_bytes(engine.backend)
    if free is None:
        return
    wanted = TIGHT * engine.config.pack_bytes
    if free < wanted:
        message = f"{free} bytes are free on the disk, less than {TIGHT} packs take"
        yield Check("disk", Level.WARN, message, "casstore gc; casstore trash empty")
    else:
        yield Check("disk", Level.OK, f"{free} bytes are free")
    ballast = ballast_bytes(engine.backend)
    if ballast:
        yield Check("ballast", Level.OK, f"{ballast} bytes")
    else:
        yield Check("ballast", Level.OK, "none: on a full disk gc needs room for one small write")


def _view(engine: Engine) -> Iterator[Check]:
    if isinstance(engine.backend, LocalBackend):
        where = "in the cache directory of each host" if on_network(engine.backend.root) else "beside the store"
        yield Check("index", Level.OK, where)


def _sessions(engine: Engine) -> Check:
    holders = engine.sessions.holders()
    return Check("sessions", Level.OK, "; ".join(str(holder) for holder in holders) or "nobody is at work")


def _collector(found: Status) -> Check:
    if not found.gc_enabled:
        message = f"collection is switched off; {found.waiting} bytes wait"
        return Check("gc", Level.WARN, message, "casstore policy set --gc-enabled true")
    if found.stored and found.waiting * 2 > found.stored:
        return Check("gc", Level.WARN, f"most of the store is garbage: {found.waiting} bytes", "casstore gc")
    return Check("gc", Level.OK, f"{found.waiting} bytes wait for the next run")


def _log(found: Status) -> Check:
    tail = found.log_length - (found.checkpoint or 0)
    message = f"{tail} commits since the {'newest checkpoint' if found.checkpoint else 'beginning'}"
    if tail > LONG_TAIL:
        return Check("log", Level.WARN, f"{message}: a new index takes long to make", "casstore gc makes a checkpoint")
    return Check("log", Level.OK, message)


def _quota(found: Status) -> Iterator[Check]:
    if found.quota is None:
        return
    message = f"{found.stored} of {found.quota} bytes"
    if found.stored > found.quota * NEARLY_FULL:
        yield Check("quota", Level.WARN, message, "casstore gc; casstore trash empty")
    else:
        yield Check("quota", Level.OK, message)


def _damage(found: Status) -> Check:
    if found.damaged_digests:
        message = f"{found.damaged_digests} chunks are known to be damaged"
        return Check("damage", Level.BAD, message, "casstore fsck names the files; log their bytes again")
    return Check("damage", Level.OK, "none known: casstore fsck --read-data looks for it")
