"""Many small local files written in one call: each costs its system calls, and little else.

The C extension is optional, and takes only the plain case; what it leaves is done one by one, with the errors and the
care that `casstore.checkout.writing` has for each. `casstore.filescan` reads many.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from casstore.digest import Buffer
from casstore.native import extension

_native: Any = extension("_files")

_UTF8 = sys.getfilesystemencoding() == "utf-8"

NewFile = tuple[str, int, tuple[Buffer, ...]]
"""path below a directory, permission bits (-1: what the umask leaves), all bytes"""


def write_new(directory: int, prefix: str, suffix: str, files: Sequence[NewFile]) -> int:
    """Write whole files below an open directory, in order; how many, till one that cannot be. The GIL is released.

    Directories are made, no link is followed. A file gets its name, for which it replaces another, when all of it is
    written; its name until then is ``prefix``, something and ``suffix``, in the same directory, and nobody else may
    use such names. Nothing is left of one that could not be written, and nothing behind it is tried. Not synced.
    """
    if _native is None or not _UTF8:
        return 0
    done: int = _native.write_files(directory, prefix, suffix, files)
    return done
