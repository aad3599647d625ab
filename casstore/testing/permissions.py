"""Make permission bits count in a test, even for root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import SkipTest

_VERSION_3 = 0x20080522
_OVERRIDES = (1 << 1) | (1 << 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, in the first word of each set"""


@contextmanager
def without_override() -> Iterator[None]:
    """This thread, and those it starts, lay down the right to ignore permission bits. Skips where that cannot be."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise SkipTest("root, and capabilities cannot be read: permission bits mean nothing here")
    effective = sets[0]
    sets[0] = effective & ~_OVERRIDES
    if libc.capset(header, sets) != 0:
        raise SkipTest("root, and capabilities cannot be dropped: permission bits mean nothing here")
    try:
        yield
    finally:
        sets[0] = effective
        libc.capset(header, sets)
