"""The veto of an incremental run: is anything in the packs about to be deleted still needed? Reads these packs only.

For each pack that is to go:

1. *The log itself says so*: the segment that the view names holds the pack's end, in a transaction that took effect.
   A pack row that went bad in the view cannot pass.
2. *Each digest in its footer* is placed in another pack, live in the log and there in the backend; or it is not
   indexed at all, and then
3. *nobody names it*: no node is indexed under it, no row of the node table has it as a child, no version and no pin
   has it as its root.

Nothing of this looks at a count. What it costs: the footers of the packs that go and one segment each are read from
the backend, in proportion to the garbage. Step 3 is a pass over the node table and the roots in the view, without
reading a node; it is left out when everything lives on elsewhere.

What it does not check, and the full mark does: that a node's bytes list the children its row does, that a live digest
in a pack which is *not* to be deleted has its bytes, and the counts.

A retired pack whose footer cannot be read cannot be judged: `NeedsMarkError`. A condemned one was never in the log;
nothing can be placed in it, whatever its bytes are.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from casstore.engine import Engine
from casstore.errors import FormatError, IntegrityError, NotFoundError
from casstore.format.rows import decode_row, pack_of_row
from casstore.gc.mark import LOOKS, Homes, LostError, OutdatedError, no_home
from casstore.gc.moving import read_footer
from casstore.model import Condemn, PackRow, PackState, PinRow, Retire
from casstore.overlay import Tables
from casstore.state import CHUNK, LOST, NODE, PIN, ROOT
from casstore.view import pack_at

TOGETHER = 100_000
"""digests that are looked for in one pass over the node table"""


class NeedsMarkError(Exception):
    """These packs cannot be judged by themselves."""


def check_ended(engine: Engine, due: Sequence[tuple[bytes, PackRow]], sizes: dict[bytes, int]) -> None:
    """Raise `IntegrityError` if anything in some ended packs is still needed. ``sizes``: of the packs that are listed.

    Raises `NeedsMarkError` when that takes a full mark. Memory: O(`TOGETHER` + digests of one pack).
    """
    try:
        _check_ended(engine, due, sizes)
    except OutdatedError:
        raise NeedsMarkError from None


def _check_ended(engine: Engine, due: Sequence[tuple[bytes, PackRow]], sizes: dict[bytes, int]) -> None:
    engine.view.refresh()
    homes = Homes(engine, set(sizes))
    ends = _Ends(engine)
    wanted: set[bytes] = set()
    for pack, row in due:
        ends.check(pack, row)
        try:
            digests = read_footer(engine, pack, sizes[pack]).content.digests
        except NotFoundError:
            continue  # another collection was faster
        except (IntegrityError, FormatError):
            if row.state is PackState.CONDEMNED:
                continue
            raise NeedsMarkError from None
        wanted |= _elsewhere(engine, pack, digests, homes)
        if len(wanted) >= TOGETHER:
            _check_unnamed(engine, wanted)
            wanted = set()
    if wanted:
        _check_unnamed(engine, wanted)


class _Ends:
    """Looks for the ends of packs in the log; keeps the last segment, as packs end in groups."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seq = -1
        self.ended: frozenset[bytes] = frozenset()

    def check(self, pack: bytes, row: PackRow) -> None:
        """Raise `IntegrityError` unless the log says that a pack ended where the view says it did."""
        if row.seq != self.seq:
            found = self.engine.log.read(row.seq)
            if found is None:
                raise NeedsMarkError  # the log was cut below it
            self.ended = frozenset(
                record.pack
                for transaction in found[0].transactions
                if self.engine.view.outcome(transaction.txid) is not None
                for record in transaction.records
                if isinstance(record, Retire | Condemn)
            )
            self.seq = row.seq
        if pack not in self.ended:
            raise IntegrityError(
                f"the log does not say that pack {pack.hex()} ended in segment {row.seq}; nothing was deleted",
                hint="casstore index rebuild",
            )


def _elsewhere(engine: Engine, pack: bytes, digests: Sequence[bytes], homes: Homes) -> set[bytes]:
    """Digests of a pack that are not indexed; those that are must live elsewhere."""
    for _ in range(LOOKS):
        absent: set[bytes] = set()
        placed: list[bytes] = []
        with engine.view.read() as tables:
            now = pack_at(tables, pack)
            if now is None or now.state is PackState.LIVE:
                raise IntegrityError(f"pack {pack.hex()} is live; nothing was deleted", hint="casstore index rebuild")
            for digest in digests:
                row = tables.get(CHUNK, digest)
                if row is None:
                    absent.add(digest)
                elif pack_of_row(row) != pack:
                    placed.append(digest)
                elif tables.get(LOST, digest) is None:
                    raise no_home(digest, f"its pack {pack.hex()} has ended")
        try:
            homes.find(placed)
        except LostError:
            continue  # dropped in between
        return absent
    raise NeedsMarkError


def _check_unnamed(engine: Engine, digests: AbstractSet[bytes]) -> None:
    """Raise `ChunkMissingError` if a node, a version or a pin names one of some digests that is not indexed."""
    with engine.view.read() as tables:
        for digest in digests & set(_named(tables, digests)):
            if tables.get(CHUNK, digest) is None:  # it may have been stored again meanwhile
                raise no_home(digest, "it is referred to and not indexed")


def _named(tables: Tables, digests: AbstractSet[bytes]) -> Iterator[bytes]:
    """Those of some digests that something refers to."""
    words = {int.from_bytes(digest[:8], sys.byteorder) for digest in digests}
    for digest, row in tables.scan(NODE):
        if digest in digests:
            yield digest
        width = len(digest)
        firsts = array("Q")
        firsts.frombytes(row[: len(row) // 8 * 8])
        if not words.isdisjoint(firsts[:: width // 8]):
            yield from (child for at in range(0, len(row), width) if (child := row[at : at + width]) in digests)
    for key, _ in tables.scan(ROOT):
        if key[8:-8] in digests:
            yield key[8:-8]
    for _, row in tables.scan(PIN):
        yield from (root for root in decode_row(row, PinRow).roots if root in digests)
