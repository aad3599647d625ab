"""How often a program asks the system to make its data safe: counted by strace, not believed."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders import Contender
from casstore.bench.measuring import Command, CommandFailed, TookTooLong, measure, measure_all
from casstore.bench.trees import copy_tree

_CALLS = "fsync,fdatasync,sync_file_range,syncfs,sync,msync"
_CALL = re.compile(r"\b(fsync|fdatasync|sync_file_range|syncfs|sync|msync)\(")
_FILES = 40
_SECONDS = 60


def can_count() -> bool:
    """True if strace is installed."""
    return shutil.which("strace") is not None


def sample_tree(target: Path) -> None:
    """Forty small files and one of 2 MB."""
    source = random.Random(40)
    target.mkdir(parents=True)
    for number in range(_FILES):
        (target / f"{number}.txt").write_text(" ".join(str(source.random()) for _ in range(100)), encoding="ascii")
    (target / "data.bin").write_bytes(source.randbytes(2_000_000))


def count_syncs(contender: Contender, place: Path, tree: Path) -> dict[str, int]:
    """Calls by name while a contender takes in a tree, in its process and all it starts; empty if that failed."""
    place.mkdir(parents=True)
    record = place.with_name(place.name + ".trace")
    try:
        measure_all(contender.begin(place), limit=_SECONDS)
        if workspace := contender.workspace(place):
            copy_tree(tree, workspace)
        found: Counter[str] = Counter()
        for command in contender.take_in(place, tree, 0):
            measure(_traced(command, record), limit=_SECONDS)
            found.update(_CALL.findall(record.read_text(encoding="ascii", errors="replace")))
    except (CommandFailed, TookTooLong, OSError):
        return {}
    return dict(sorted(found.items())) or {"none": 0}


def _traced(command: Command, record: Path) -> Command:
    trace: Sequence[str] = ("strace", "-f", "-qq", "-e", f"trace={_CALLS}", "-e", "signal=none", "-o", str(record))
    return Command((*trace, *command.argv), command.env, command.cwd)
