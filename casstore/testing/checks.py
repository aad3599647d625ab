"""What must hold of a store at any moment, computed from its bytes and not from its counts."""

from __future__ import annotations

from collections import Counter

from casstore.engine import Engine
from casstore.format.layout import PACK_PREFIX, pack_of
from casstore.gc.mark import find_drift, take_snapshot, walk_nodes
from casstore.gc.retire import read_footer
from casstore.index import MemoryIndex
from casstore.log import Log
from casstore.state import TABLES, state_hash
from casstore.store import Store
from casstore.version import Version
from casstore.view import View


def recount(engine: Engine) -> None:
    """I2: every count in the view is the number of distinct holders, counted again over the trees."""
    drift = find_drift(engine)
    assert not drift.too_high, f"{len(drift.too_high)} counts are too high"
    assert not drift.too_low, f"{len(drift.too_low)} counts are too low"


def replayed(engine: Engine) -> bytes:
    """The hash of the state that the log alone gives, folded into memory."""
    view = View(MemoryIndex(TABLES), Log(engine.backend, engine.codec), lambda _: None, lambda _: None)
    view.refresh()
    with view.read() as tables:
        return state_hash(tables)


def view_hash(engine: Engine) -> bytes:
    """The hash of the state in the view, at the head."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return state_hash(tables)


def stored_digests(engine: Engine) -> Counter[bytes]:
    """Every digest in every pack on disk, as often as it is there; read from the packs' own footers."""
    found: Counter[bytes] = Counter()
    for info in engine.backend.list(PACK_PREFIX):
        pack = pack_of(info.key)
        assert pack is not None
        found.update(read_footer(engine, pack, info.size).content.digests)
    return found


def needed_digests(engine: Engine) -> set[bytes]:
    """Every digest reachable from a version, the trash or a pin; walked over the nodes themselves."""
    with engine.view.read() as tables:
        roots = take_snapshot(tables).roots
    found = set(roots)
    for _, node in walk_nodes(engine, roots, set()):
        found.update(node.references())
    return found


def check_no_garbage(store: Store) -> None:
    """R6: the packs hold what is needed and nothing else, each digest once; and the store says so."""
    engine = store._engine  # noqa: SLF001
    stored, needed = stored_digests(engine), needed_digests(engine)
    assert set(stored) == needed
    assert not [digest for digest, times in stored.items() if times > 1]
    usage = store.du()
    assert (usage.garbage, usage.pending) == (0, 0)


def read_files(version: Version) -> dict[str, bytes]:
    """Every file of a version, whole."""
    return {entry.path: entry.read() for entry in version.files()}
