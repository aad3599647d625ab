"""What a store looks like on disk, for tests that a refused call leaves it exactly as it was."""

from __future__ import annotations

import os
from pathlib import Path

from casstore.digest import seal

VIEW = "index"


def snapshot(root: Path) -> dict[str, str]:
    """Every directory and file below a store but its view, each file with its mode and a digest of its bytes."""
    found: dict[str, str] = {}
    for directory, names, files in os.walk(root):
        where = os.path.relpath(directory, root)
        if where == ".":
            names[:] = [name for name in names if name != VIEW]
        found[where] = "directory"
        for name in files:
            path = Path(directory, name)
            found[os.path.normpath(os.path.join(where, name))] = (
                f"{path.stat().st_mode:o} {seal(path.read_bytes()).hex()}"
            )
    return found
