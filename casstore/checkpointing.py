"""Make checkpoints, so that a new view starts near the head of the log, and remove those that newer ones replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from casstore.engine import Engine
from casstore.format.layout import LOG_PREFIX, checkpoint_seq, log_key
from casstore.model import Checkpoint, Progress, Record, no_progress
from casstore.overlay import Tables
from casstore.state import checkpoint_of, head_of
from casstore.values import dataclass

TAIL = 1000
"""segments after the newest checkpoint from which on the collector makes another"""
WORTH = 4
"""… if the log grew meanwhile by this part of the size of a checkpoint: then all of them together cost O(log)"""
KEEP = 2


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint: the position of the log it stands for, and its stored bytes. ``made``: by this call."""

    seq: int
    bytes: int
    state_hash: str
    made: bool

    def to_dict(self) -> dict[str, object]:
        """The checkpoint as JSON values."""
        return asdict(self)


def make_checkpoint(engine: Engine, progress: Progress = no_progress) -> CheckpointInfo:
    """Write the state at the head as a checkpoint and note it in the log; older ones but one are removed.

    What is written is read back and compared. Nothing is written when no commit followed the newest one. Killed
    anywhere it leaves at worst objects that the next but one removes.
    """
    engine.check_writable()
    engine.view.refresh()
    with engine.view.read() as tables:
        known = checkpoint_of(tables)
        current = known is not None and known.seq + 1 == head_of(tables).seq
        there = engine.checkpoints.read(known.key) if known is not None and current else None
        manifest = there or engine.checkpoints.write(tables, progress)
    if there is None:
        note = Checkpoint(manifest.seq, manifest.key, manifest.state_hash)

        def build(tables: Tables) -> Sequence[Record]:
            newer = checkpoint_of(tables)
            return () if newer is not None and newer.seq >= note.seq else (note,)

        engine.commit(build)
        _prune(engine)
    return CheckpointInfo(manifest.seq, sum(manifest.sizes), manifest.state_hash.hex(), there is None)


def _prune(engine: Engine) -> None:
    listed = engine.checkpoints.listed()
    head = engine.view.refresh().seq
    # One beyond the end of the log is of another: of before this one was restored from a copy.
    strange = [key for key in listed if key and (checkpoint_seq(key) or 0) > head]
    whole = [key for key in listed if key and key not in strange]
    for key in (*strange, *whole[KEEP:]):
        engine.checkpoints.remove(key, listed[key])
    # Parts without a manifest may belong to one that is being written, but not if that would be an old one.
    oldest = min((checkpoint_seq(key) or 0 for key in whole[:KEEP]), default=0)
    loose = [key for key in listed.get("", []) if (checkpoint_seq(key.partition(".")[0]) or 0) < oldest]
    engine.checkpoints.remove("", loose)


def is_due(engine: Engine) -> bool:
    """Whether the log has grown enough since the newest checkpoint."""
    with engine.view.read() as tables:
        known, head = checkpoint_of(tables), head_of(tables)
    if head.seq - (0 if known is None else known.seq) < TAIL:
        return False
    manifest = None if known is None else engine.checkpoints.read(known.key)
    if known is None or manifest is None:
        return True
    grown = sum(info.size for info in engine.backend.list(LOG_PREFIX, after=log_key(known.seq)))
    return grown * WORTH >= sum(manifest.sizes)
