"""Two handles on one view, one of which makes it again: found by the simulation (tests/regress_seeds.txt)."""

from __future__ import annotations

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.codec import ZstdCodec
from casstore.errors import IntegrityError
from casstore.format.layout import log_key
from casstore.index import MemoryIndex
from casstore.log import Log
from casstore.model import Segment, SetPolicy, Transaction
from casstore.state import TABLES, TXID, head_of
from casstore.view import View

SEGMENTS = 3


@pytest.fixture
def backend() -> MemoryBackend:
    backend = MemoryBackend()
    log, previous = Log(backend, ZstdCodec()), bytes(32)
    for seq in range(1, SEGMENTS + 1):
        transaction = Transaction(bytes([seq]) * 16, (SetPolicy(b'{"trash_days": %d}' % seq),))
        previous = log.create(Segment(seq, previous, seq - 1, seq - 1, "w", seq, (transaction,)))
    return backend


def handle(backend: MemoryBackend, storage: MemoryIndex) -> View:
    return View(storage, Log(backend, ZstdCodec()), lambda _: None, lambda _: None)


def test_a_handle_is_never_shown_the_past(backend: MemoryBackend) -> None:
    storage = MemoryIndex(TABLES)
    ours = handle(backend, storage)
    ours.refresh()
    storage.reset()  # the first half of what `rebuild` does in another process
    with ours.read() as tables:
        assert head_of(tables).seq == SEGMENTS
        assert tables.count(TXID) == SEGMENTS
    storage.reset()
    assert ours.policy() == {"trash_days": SEGMENTS}
    storage.reset()
    assert ours.outcome(bytes([2]) * 16) == (2, ())


def test_a_log_that_went_back_is_an_error_and_no_endless_search(backend: MemoryBackend) -> None:
    storage = MemoryIndex(TABLES)
    ours = handle(backend, storage)
    ours.refresh()
    backend.delete(log_key(SEGMENTS))
    storage.reset()
    with pytest.raises(IntegrityError, match="ends before segment 3"), ours.read():
        pass
    assert ours.rebuild().seq == SEGMENTS - 1  # on purpose
    assert ours.policy() == {"trash_days": SEGMENTS - 1}
