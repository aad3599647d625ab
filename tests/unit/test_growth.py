"""What keeps the index of a large store small, and its transactions light."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from casstore import Artifact, Store
from casstore.index import LmdbIndex
from casstore.overlay import Overlay, Tables
from casstore.state import CHUNK, ZERO, advance, apply_transaction
from casstore.state.transition import _Changes

ROW = b"r" * 45


def used(index: LmdbIndex) -> int:
    """Bytes of the pages of a table."""
    with index.read() as tables:
        inside: Any = tables
        stat = inside._handle.stat(inside._table("t"))
        return int((stat["leaf_pages"] + stat["branch_pages"]) * stat["psize"])


def test_many_digests_put_at_once_leave_full_pages(tmp_path: Path) -> None:
    """In key order they would need 171 bytes each: pages are split in the middle, and nothing comes behind."""
    source = random.Random(1)
    index = LmdbIndex.open(tmp_path, ("t",), map_bytes=1 << 25, boot_id="boot-1")
    keys: list[bytes] = []
    for count in (2_000, 18_000):
        fresh = {source.randbytes(32): ROW for _ in range(count)}
        keys += fresh
        index.update(lambda tables, fresh=fresh: tables.change("t", fresh))  # type: ignore[misc]
        assert used(index) / len(keys) < 140

    def drop(tables: Tables) -> None:
        tables.change("t", {**dict.fromkeys(keys[::2]), keys[1]: b"changed"})

    index.update(drop)
    with index.read() as tables:
        assert [key for key, _ in tables.scan("t")] == sorted(keys[1::2])
        assert tables.get("t", keys[1]) == b"changed"
    index.close()


def test_a_new_chunk_that_is_held_at_once_leaves_no_trace_among_those_nobody_holds(tmp_path: Path) -> None:
    """Else a first log would write, and hold in memory, a row more for each chunk, and take it away again."""
    with Store.open(tmp_path / "s", create=True) as store:
        artifact = Artifact("c")
        for number in range(50):
            artifact.add_bytes(b"%d" % number, f"f{number}")
        store.log_artifact(artifact)
        segment, chain = store._engine.log.read(1) or (None, b"")
        assert segment is not None
    with Store.open(tmp_path / "other", create=True) as store, store._engine.view.read() as tables:
        overlay = Overlay(tables)
        advance(overlay, segment, chain)
        assert not apply_transaction(overlay, segment, segment.transactions[0]).void
        assert len(overlay.changes[CHUNK]) == 51
        assert not overlay.changes.get(ZERO)


def test_what_a_transaction_sets_and_removes_is_as_before(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", create=True) as store, store._engine.view.read() as tables:
        base = Overlay(tables)
        base.put(ZERO, b"there", b"old")
        changes = _Changes(base)
        for key in (b"there", b"new", b"again"):
            changes.put(ZERO, key, b"x")
            changes.delete(ZERO, key)
            assert changes.get(ZERO, key) is None
        changes.put(ZERO, b"again", b"y")
        # A scan remembers the order of the keys.
        assert [key for key, _ in changes.scan(ZERO)] == [b"again"]
        changes.put(ZERO, b"late", b"z")
        changes.delete(ZERO, b"late")
        assert [key for key, _ in changes.scan(ZERO)] == [b"again"]
        changes.flush()
        assert dict(base.scan(ZERO)) == {b"again": b"y"}
        assert base.get(ZERO, b"there") is None


def test_changes_that_are_handed_down_do_not_lose_those_that_are_there(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", create=True) as store, store._engine.view.read() as tables:
        base = Overlay(tables)
        for table, first in ((ZERO, b"a"), (CHUNK, b"")):
            if first:
                base.put(table, first, b"1")
            else:
                assert list(base.scan(table)) == []  # the order of no keys is remembered
            above = Overlay(base)
            above.put(table, b"b", b"2")
            above.flush()
            above.put(table, b"c", b"3")  # of no consequence for the base any more
            assert [key for key, _ in base.scan(table)] == [*([first] if first else []), b"b"]
