"""What must hold of a store at any moment, computed from its bytes and not from its counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from casstore.engine import Engine
from casstore.format.layout import PACK_PREFIX, pack_of
from casstore.format.rows import refcount
from casstore.gc.counts import find_drift, live_roots
from casstore.gc.mark import walk_nodes
from casstore.gc.moving import read_footer
from casstore.index import MemoryIndex
from casstore.log import Log
from casstore.overlay import Tables
from casstore.state import CHUNK, NODE, TABLES, ZERO, state_hash
from casstore.store import Store
from casstore.version import Version
from casstore.view import View


def recount(engine: Engine) -> None:
    """I2: every count in the view is the number of distinct holders, counted again over the trees."""
    with engine.view.read() as tables:
        roots = list(live_roots(tables))
        loose = [digest for digest, _ in tables.scan(ZERO) if tables.get(NODE, digest) is not None]
        counts = Counter({digest: refcount(row) for digest, row in tables.scan(CHUNK)})
        trees = _nodes_among(tables, roots)
    holders = Counter(roots)
    for _, node in walk_nodes(engine, (*trees, *loose), set()):
        holders.update(node.references())
    assert not counts - holders, f"{len(counts - holders)} counts are too high"
    assert not holders - counts, f"{len(holders - counts)} counts are too low"
    drift = find_drift(engine)
    assert not drift, f"by the node table {drift}"


def _nodes_among(tables: Tables, roots: Iterable[bytes]) -> list[bytes]:
    """Roots with something below them: a pin may hold a chunk of a file, too."""
    return [root for root in roots if tables.get(NODE, root) is not None]


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
        roots = tuple(live_roots(tables))
        trees = _nodes_among(tables, roots)
    found = set(roots)
    for _, node in walk_nodes(engine, trees, set()):
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
