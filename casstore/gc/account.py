"""Who keeps which bytes: every stored byte of a store has one reason to be there, and the reasons add up.

A byte of a live pack has the reason of the content it stands for, and content has the first that holds of: a
committed version needs it; a pin needs it; only the trash needs it; nobody does. Frames and footers are shared out by
plaintext length, each pack to the last byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from casstore.backend import ObjectInfo
from casstore.format.rows import decode_row, length_of_row, pack_of_row
from casstore.gc.plan import Fate, Plan, Release
from casstore.model import LostRow, PackState, PinRow
from casstore.overlay import Tables
from casstore.state import CHUNK, LOST, PIN
from casstore.values import dataclass
from casstore.view import pack_at, trashed, unreferenced


class Reason(StrEnum):
    """Why stored bytes are there."""

    VERSIONS = "versions"
    """a committed version needs them"""
    PINS = "pins"
    """a draft or another pin needs them, and no version"""
    TRASH = "trash"
    """only versions in the trash need them"""
    DAMAGED = "damaged"
    """they are not what they should be, and kept for what needs them"""
    POLICY = "policy"
    """garbage in packs that are not wasteful enough to be written anew"""
    LIMITS = "limits"
    """garbage that a run may take, but that its limits did not let it"""
    GRACE = "grace"
    """packs that have ended and wait for the end of the grace"""
    ORPHANS = "orphans"
    """packs the log does not know (yet), younger than the age at which they are garbage"""


@dataclass(frozen=True, slots=True)
class Account:
    """Stored bytes by reason. All of its bytes add up to those of all packs that were listed, exactly.

    ``takeable``: garbage that a run would take now, ``strays`` packs nobody committed among it. ``over``: bytes of
    ``over_packs`` packs whose grace is over. ``doubled``: bytes of ended packs whose content lives on in other packs,
    and is counted there. ``ends``: when the last pack in its grace may go, µs.
    """

    kept: Mapping[Reason, int]
    takeable: int
    strays: int
    over: int
    over_packs: int
    doubled: int
    ends: int

    @property
    def total(self) -> int:
        """Bytes of all packs listed."""
        return sum(self.kept.values()) + self.takeable + self.over + self.doubled


def account_for(
    tables: Tables, plan: Plan, listed: Mapping[bytes, ObjectInfo], *, now: int, grace: int, orphans_until: int
) -> Account:
    """Give every byte of the packs listed its reason. Time and memory: O(packs + garbage + trash + pinned content).

    ``plan`` was made of the same tables. Times in µs; unknown packs not younger than ``orphans_until`` are garbage.
    """
    holders = _holders(tables)
    kept: Counter[Reason] = Counter()
    takeable = strays = over = over_packs = doubled = ends = 0
    for fate in plan.fates:
        info = listed.get(fate.pack)
        if info is None:
            continue  # newer than the listing, or missing: no bytes that were seen
        dead = min(fate.dead_stored, info.size)
        if fate.fate is Fate.KEEP:
            kept[Reason.POLICY] += dead
        else:
            takeable += dead
        by_reason = holders.get(fate.pack, Counter())
        needed = {**by_reason, Reason.VERSIONS: fate.live - sum(by_reason.values())}
        kept.update(_shares(info.size - dead, needed))
    for pack, info in listed.items():
        row = pack_at(tables, pack)
        if row is None:
            if info.modified <= orphans_until:
                strays += 1
                takeable += info.size
            else:
                kept[Reason.ORPHANS] += info.size
        elif row.state is not PackState.LIVE:
            doubled += row.moved
            if row.since + grace > now:
                kept[Reason.GRACE] += info.size - row.moved
                ends = max(ends, row.since + grace)
            else:
                over += info.size - row.moved
                over_packs += 1
    return Account(
        {reason: kept[reason] for reason in Reason if kept[reason]}, takeable, strays, over, over_packs, doubled, ends
    )


def _holders(tables: Tables) -> dict[bytes, Counter[Reason]]:
    """Plaintext bytes in each pack that something but committed versions keeps.

    One release after the other, on the same counts: what falls to zero with the garbage is nobody's, what falls
    with the trash after it only the trash's, and what falls with the pins after both theirs.
    """
    lost = {digest for digest, row in tables.scan(LOST) if not decode_row(row, LostRow).erased}
    release = Release(tables)
    result: dict[bytes, Counter[Reason]] = {}

    def count(digest: bytes, reason: Reason) -> None:
        row = tables.get(CHUNK, digest)
        if row is not None:
            result.setdefault(pack_of_row(row), Counter())[reason] += length_of_row(row)

    lost.difference_update(digest for digest, _ in release.drain(unreferenced(tables)))
    pins = (root for _, row in tables.scan(PIN) for root in decode_row(row, PinRow).roots)
    stages = ((Reason.TRASH, [version.root for version in trashed(tables)]), (Reason.PINS, list(pins)))
    for reason, roots in stages:
        for digest, _ in release.drain(release.let_go(roots)):
            if digest not in lost:
                count(digest, reason)
    for digest in lost:
        count(digest, Reason.DAMAGED)
    return result


def _shares(size: int, weights: Mapping[Reason, int]) -> dict[Reason, int]:
    """A size shared out by weight, to the last byte: what rounding leaves goes to the largest remainders."""
    total = sum(weights.values())
    if total <= 0:
        return {Reason.VERSIONS: size}
    shares = {reason: size * weight // total for reason, weight in weights.items()}
    order = sorted(weights, key=lambda reason: (-(size * weights[reason] % total), reason))
    for reason in order[: size - sum(shares.values())]:
        shares[reason] += 1
    return shares
