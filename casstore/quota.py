"""How large a store may become, checked at each commit that stores something; and what will be freed by when."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from enum import Enum

from casstore import expiry
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import QuotaExceededError
from casstore.model import VersionRow, VersionState
from casstore.overlay import Tables
from casstore.policy import DAY, FREE, Policy, in_force
from casstore.state import head_of
from casstore.values import dataclass
from casstore.view import collections, trashed, versions, with_links


class Keep(Enum):
    """The type of `KEEP`."""

    KEEP = "keep"


KEEP = Keep.KEEP
"""what is not to be changed"""


@dataclass(frozen=True, slots=True)
class Quota:
    """The quota of a store and how much of it is used, in stored bytes. ``max_bytes``: None = no limit.

    ``stored``: of all live packs; ``trash``: of that, only the trash keeps, which counts unless ``trash_counts`` is
    False; ``garbage``: nobody keeps, until the next collection. ``used``: what counts. ``left``: until the limit.
    """

    max_bytes: int | None
    trash_counts: bool
    stored: int
    trash: int
    garbage: int

    @property
    def used(self) -> int:
        """Stored bytes that count."""
        return self.stored if self.trash_counts else max(0, self.stored - self.trash)

    @property
    def left(self) -> int | None:
        """Bytes until the limit, below 0 when it is exceeded; None without one."""
        return None if self.max_bytes is None else self.max_bytes - self.used

    def to_dict(self) -> dict[str, object]:
        """The quota as JSON values."""
        return {**asdict(self), "used": self.used, "left": self.left}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What collections until a moment can free: stored bytes that only versions keep which are purged by then.

    Among them are those in the trash and, in ``expiring``, those that a time to live will have brought there in time.
    """

    until: datetime
    freed_bytes: int
    trashed: int
    expiring: int

    def to_dict(self) -> dict[str, object]:
        """The forecast as JSON values."""
        return {**asdict(self), "until": self.until.isoformat()}


def quota(engine: Engine) -> Quota:
    """The quota and its use at the head of the log."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return _quota(tables, in_force(tables))


def admit(tables: Tables, new: int) -> None:
    """Refuse packs of so many bytes that would take the store over its quota. Raises `QuotaExceededError`.

    To be called with the state the packs are committed to.
    """
    rules = in_force(tables)
    limit = rules.quota_bytes
    # Only a store that is nearly full pays for the exact answer.
    if limit is None or not new or head_of(tables).stored + new <= limit:
        return
    found = _quota(tables, rules)
    if found.used + new <= limit:
        return
    ways = []
    if found.garbage:
        ways.append(f"casstore gc frees {found.garbage} bytes")
    if found.trash and found.trash_counts:
        ways.append(f"casstore trash empty and casstore gc free {found.trash}")
    ways.append("casstore rm, trash empty and gc make room" if not ways else "or raise it: casstore quota SIZE")
    raise QuotaExceededError(
        f"this needs {new} bytes more, and {found.used} of {limit} are used"
        f" ({found.trash} of the {found.stored} stored are kept by the trash alone, {found.garbage} are garbage)",
        hint="; ".join(ways),
    )


def _quota(tables: Tables, rules: Policy) -> Quota:
    from casstore.gc.plan import garbage

    return Quota(
        rules.quota_bytes,
        rules.quota_trash != FREE,
        head_of(tables).stored,
        garbage(tables, [version.root for version in trashed(tables)]).stored,
        garbage(tables).stored,
    )


def forecast(engine: Engine, within: timedelta) -> Forecast:
    """What the dates of the trash and of times to live allow to be freed within a time from now. Reads only."""
    from casstore.gc.plan import garbage

    span = within // timedelta(microseconds=1)
    with engine.foresee(lambda _: ()) as tables:
        horizon = head_of(tables).safe + span
        terms = expiry.terms_in_force(tables)
        gone = [version for version in trashed(tables) if version.purge_at <= horizon]
        aging: list[VersionRow] = []
        for collection in collections(tables):
            for version in versions(tables, collection.id, states=(VersionState.COMMITTED,)):
                moment = expiry.expires(terms, collection, version)
                if moment is None or expiry.holders(tables, terms, collection, version):
                    continue
                # It cannot have been trashed before now, however long it is past its time.
                trashed_at = max(moment, head_of(tables).safe)
                if trashed_at + int(terms.policy.trash_days * DAY) <= horizon:
                    aging.append(version)
        freed = garbage(tables, [version.root for version in with_links(tables, [*gone, *aging])]).stored
    return Forecast(from_micros(engine.runtime.now() + span), freed, len(gone), len(aging))
