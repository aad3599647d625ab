"""Bugs to put in on purpose: a simulation that does not find them is worth nothing.

Each takes away one thing that docs/GC.md says the protocol rests on. ``with applied(MUTATIONS[name]): …``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import casstore.catalogue
import casstore.gc
import casstore.gc.clearance
import casstore.state.transition
from casstore.digest import checksum64
from casstore.engine import Committed, CondemnedError, Engine
from casstore.errors import AlreadyExistsError, BackendError
from casstore.format.layout import PACK_PREFIX, pack_key
from casstore.format.rows import kind_of_row, pack_of_row, refcount, with_refcount
from casstore.gc.mark import Homes
from casstore.model import AddPack, ChunkKind, PackState
from casstore.pack import PackWriter, SealedPack
from casstore.state import CHUNK, NODE, PACK, PIN, ZERO
from casstore.state.content import ContentRules
from casstore.state.labels import CatalogueRules
from casstore.testing.simulation.network import Connection
from casstore.view import View, pack_at
from casstore.writer import Writer

_RETIRE = import_module("casstore.gc.retire")  # as an attribute of the package it is the function

Change = tuple[Any, str, Callable[[Any], Any]]
"""an object, the name of one of its attributes, and the wrong one made of the right one"""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug: what it is, and the attributes it replaces."""

    says: str
    changes: tuple[Change, ...]


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """With the bug in."""
    before = [(where, name, getattr(where, name)) for where, name, _ in mutation.changes]
    try:
        for where, name, make in mutation.changes:
            setattr(where, name, make(getattr(where, name)))
        yield
    finally:
        for where, name, right in before:
            setattr(where, name, right)


# --- apply ---------------------------------------------------------------------------------------


def _hold_anything(right: Any) -> Any:
    def hold(self: Any, *digests: bytes) -> None:
        right(self, *[digest for digest in digests if self.tables.get(CHUNK, digest) is not None])

    return hold


def _drop_anything(right: Any) -> Any:
    def drop(self: Any, record: Any) -> None:
        for digest in record.digests:
            row = self.tables.get(CHUNK, digest)
            if row is not None and refcount(row):
                self.tables.put(CHUNK, digest, with_refcount(row, 0))
                self.tables.put(ZERO, digest, b"")
        right(self, record)

    return drop


def _blind_add(right: Any) -> Any:
    def add(self: Any, record: Any) -> None:
        if self.tables.get(NODE, record.digest) is not None:
            for child in dict.fromkeys(record.children):
                self._hold(child)
        right(self, record)

    return add


def _cascade(right: Any) -> Any:
    def purge(self: Any, record: Any) -> None:
        root = self._version(record.collection, record.number).root
        right(self, record)
        row, children = self.tables.get(CHUNK, root), self.tables.get(NODE, root)
        if row is not None and children and not refcount(row):
            for at in range(0, len(children), len(root)):
                self._release(children[at : at + len(root)])

    return purge


def _unheld_pin(right: Any) -> Any:
    def pin(self: Any, record: Any) -> None:
        right(self, record)
        for root in record.roots:
            self._release(root)

    return pin


def _unheld_unpin(right: Any) -> Any:
    def unpin(self: Any, record: Any) -> None:
        if self.tables.get(PIN, record.pin) is None:
            right(self, record)
        self.tables.delete(PIN, record.pin)

    return unpin


def _trash_lets_go(right: Any) -> Any:
    def hide(self: Any, version: Any, *rest: Any) -> None:
        right(self, version, *rest)
        self._release(version.root)

    return hide


def _take_back(right: Any) -> Any:
    def show(self: Any, version: Any, *rest: Any) -> None:
        right(self, version, *rest)
        self._hold(version.root)

    return show


def _purged_already(right: Any) -> Any:
    def purge(self: Any, record: Any) -> None:
        version = self._trashed(record.collection, record.number, record.trash_seq)
        self._hold(version.root)
        right(self, record)

    return purge


def _no_cap(right: Any) -> Any:
    def ratchet(head: Any, claimed: int, writer: str) -> tuple[int, int]:
        return right(head, claimed, head.writer or writer)  # type: ignore[no-any-return]

    return ratchet


def _terminal_again(right: Any) -> Any:
    def add_pack(self: Any, record: AddPack) -> None:
        known = self.tables.get(PACK, record.pack)
        if known is not None:
            self.tables.delete(PACK, record.pack)
        right(self, record)

    return add_pack


def _forgets_transactions(right: Any) -> Any:
    def apply_transaction(tables: Any, segment: Any, transaction: Any) -> Any:
        tables.delete("txid", transaction.txid)
        return right(tables, segment, transaction)

    return apply_transaction


# --- writers -------------------------------------------------------------------------------------


def _nothing_broken(_: Any) -> Any:
    return lambda self, tables: set()


def _content_names(right: Any) -> Any:
    def finish(self: PackWriter, pack: bytes, versions: Sequence[Any] = ()) -> SealedPack:
        digests = b"".join(self._digests)
        name = checksum64(digests).to_bytes(8, "big") + checksum64(digests, 1).to_bytes(8, "big")
        sealed: SealedPack = right(self, name, versions)
        return sealed

    return finish


def _create_again(right: Any) -> Any:
    def create(self: Connection, key: str, data: Any) -> None:
        try:
            right(self, key, data)
        except AlreadyExistsError:
            if not key.startswith(PACK_PREFIX):
                raise

    return create


def _always_ours(_: Any) -> Any:
    return lambda self, segment: True


def _told_at_once(_: Any) -> Any:
    def learn(self: Any, request: Any, segment: Any) -> None:
        request.finish(Committed(segment.seq, (0,)))

    return learn


def _try_again(_: Any) -> Any:
    def attempt(self: Any, group: Any) -> bool:
        self.view.refresh()
        try:
            segment, pending, _ = self._prepared(group)
        except CondemnedError:
            self._discard(group)
            return False
        if not pending:
            return True
        if not self._stored(group, pending):
            return all(request.done for request in group.requests)
        if group.load is not None:
            group.load.exposed = True
        try:
            chain = self.log.create(segment)
        except (AlreadyExistsError, BackendError):
            for request in group.requests:
                request.txid = self.runtime.random_bytes(16)
            return False
        self.view.fold([(segment, chain)])
        for request in pending:
            self._learn(request, segment)
        return True

    return attempt


# --- the collector -------------------------------------------------------------------------------


def _sweep_at_once(_: Any) -> Any:
    def condemn(engine: Engine, listed: dict[bytes, Any], older_than: int, *rest: Any) -> list[bytes]:
        engine.view.refresh()
        with engine.view.read() as tables:
            orphans = [p for p, info in listed.items() if info.modified <= older_than and tables.get(PACK, p) is None]
        for pack in orphans:
            engine.backend.delete(pack_key(pack))
        return orphans

    return condemn


def _unlink_first(right: Any) -> Any:
    def retire_whole(engine: Engine, plan: Any, chosen: Any, *rest: Any) -> None:
        for fate in chosen:
            engine.backend.delete(pack_key(fate.pack))
        right(engine, plan, chosen, *rest)

    return retire_whole


def _empty_when_it_fails(right: Any) -> Any:
    def listed(engine: Engine) -> Any:
        try:
            return right(engine)
        except BackendError:
            return {}

    return listed


def _seen_nowhere(_: Any) -> Any:
    return lambda self, pack: False


def _all_is_dead(_: Any) -> Any:
    def dead(tables: Any, pack: bytes, candidates: Any) -> list[bytes]:
        rows = ((digest, tables.get(CHUNK, digest)) for digest in candidates)
        return [digest for digest, row in rows if row is not None and pack_of_row(row) == pack]

    return dead


def _live_ends_too(_: Any) -> Any:
    def ended(engine: Engine, listed: dict[bytes, Any]) -> list[Any]:
        with engine.view.read() as tables:
            rows = ((pack, pack_at(tables, pack)) for pack in sorted(listed))
            return [
                (p, row) for p, row in rows if row is not None and (row.state is not PackState.LIVE or not row.placed)
            ]

    return ended


def _first_child_counts(right: Any) -> Any:
    def add(self: Any, record: Any) -> None:
        known = self.tables.get(NODE, record.digest) is not None
        right(self, record)
        for child in [] if known else list(dict.fromkeys(record.children))[1:]:
            row = self.tables.get(CHUNK, child)
            if row is not None and kind_of_row(row) is ChunkKind.DATA:
                self._release(child)

    return add


def _no_mark(_: Any) -> Any:
    return lambda engine, listed, ended, *rest, **options: (ended, None)


def _no_counting(_: Any) -> Any:
    return lambda *rest, **options: 0


# --- found by the simulation, since repaired -----------------------------------------------------


def _shows_the_past(_: Any) -> Any:
    return lambda self: self._storage.read()


def _sought_by_name(right: Any) -> Any:
    def found_at(engine: Any, collection: int, number: int) -> Any:
        label = right(engine, collection, number).label
        engine.runtime.sleep(3600.0)  # the process is stopped between its commit and the look
        return casstore.catalogue.lookup(engine, label)

    return found_at


MUTATIONS: dict[str, Mutation] = {
    "no-rebase-no-check": Mutation(
        "no rebase, and apply does not look whether children are stored",
        ((Writer, "_broken_claims", _nothing_broken), (ContentRules, "_hold", _hold_anything)),
    ),
    "no-rebase": Mutation(
        "a claim is not looked at again before the commit", ((Writer, "_broken_claims", _nothing_broken),)
    ),
    "no-check-of-children": Mutation(
        "apply lets a node in whose children are not stored", ((ContentRules, "_hold", _hold_anything),)
    ),
    "no-check-of-drop": Mutation("apply drops what is held", ((ContentRules, "_drop", _drop_anything),)),
    "skip-condemn": Mutation(
        "orphans are deleted without a word in the log", ((casstore.gc, "condemn_orphans", _sweep_at_once),)
    ),
    "reused-names": Mutation(
        "pack names are made of the content, and a name that ended may come again",
        (
            (PackWriter, "finish", _content_names),
            (Connection, "create", _create_again),
            (ContentRules, "_add_pack", _terminal_again),
        ),
    ),
    "cascade": Mutation(
        "a purge takes the references of the tree below at once", ((CatalogueRules, "_purge", _cascade),)
    ),
    "ack-before-replay": Mutation(
        "a writer is told of success before its segment was replayed",
        ((Engine, "_is_ours", _always_ours), (Engine, "_learn", _told_at_once)),
    ),
    "unlink-first": Mutation(
        "a dead pack is unlinked before its end is in the log", ((_RETIRE, "_retire_whole", _unlink_first),)
    ),
    "empty-listing": Mutation(
        "a listing that fails counts as empty, and the mark believes it",
        ((casstore.gc, "listed_packs", _empty_when_it_fails), (Homes, "_exists", _seen_nowhere)),
    ),
    "blind-delta": Mutation("a node added twice counts twice", ((ContentRules, "_add_node", _blind_add),)),
    "no-veto-wrong-count": Mutation(
        "only the first child of a node is counted, and nothing is marked",
        (
            (ContentRules, "_add_node", _first_child_counts),
            (casstore.gc, "clear", _no_mark),
            (casstore.gc, "check_counts", _no_counting),
        ),
    ),
    "pins-ignored": Mutation(
        "a pin holds nothing", ((ContentRules, "_pin", _unheld_pin), (ContentRules, "_unpin", _unheld_unpin))
    ),
    "trash-no-root": Mutation(
        "what is in the trash is held no more",
        (
            (CatalogueRules, "_hide", _trash_lets_go),
            (CatalogueRules, "_show", _take_back),
            (CatalogueRules, "_purge", _purged_already),
        ),
    ),
    "no-clock-cap": Mutation(
        "any clock moves the safe clock as far as it likes", ((casstore.state.transition, "ratchet", _no_cap),)
    ),
    "ambiguous-is-failure": Mutation(
        "a commit whose answer was lost is tried again under another name", ((Engine, "_attempt", _try_again),)
    ),
    "no-txid": Mutation(
        "a transaction that is in the log twice takes effect twice",
        ((casstore.state.transition, "apply_transaction", _forgets_transactions),),
    ),
    "revived-dies": Mutation(
        "the collector does not look again whether what it retires was revived",
        ((_RETIRE, "_dead_in", _all_is_dead), (ContentRules, "_drop", _drop_anything)),
    ),
    "empty-is-ended": Mutation(
        "a live pack nothing is placed in counts as ended",
        ((casstore.gc, "ended_packs", _live_ends_too), (casstore.gc.clearance, "ended_packs", _live_ends_too)),
    ),
    "view-goes-back": Mutation(
        "a process is shown the past while another makes the view they share again", ((View, "read", _shows_the_past),)
    ),
    "logged-then-sought": Mutation(
        "a version that was logged is not found if it is in the trash by then",
        ((casstore.catalogue, "found_at", _sought_by_name),),
    ),
}
