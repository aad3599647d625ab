"""Named, ordered tables of bytes with transactions: in LMDB, shared by the processes of a host, or in memory.

An index is a *view*: all it holds can be made again, so nothing here repairs. What cannot be trusted is left behind
and an empty generation takes its place: ``<directory>/lmdb-v1/<generation>/{data.mdb, lock.mdb, boot, clean, users}``,
the highest number counts. A generation appears by renaming a finished directory to the next number, which fails if
there is one; files that others may have mapped are never shortened, only unlinked. Every transaction begins with two
``stat`` calls that tell whether its generation is still the one. A page damaged *while in use* is mostly, not always,
reported: LMDB may fail an assertion, which ends the process.

Never open ``lock.mdb`` here: closing any descriptor of it drops LMDB's fcntl locks for the whole process.
"""

from __future__ import annotations

from casstore.index.lmdb_index import LmdbIndex
from casstore.index.memory import MemoryIndex
from casstore.index.spill import SpillIndex
from casstore.index.tables import IndexDamagedError, Storage
from casstore.overlay import Tables

__all__ = ["Tables", "IndexDamagedError", "LmdbIndex", "MemoryIndex", "SpillIndex", "Storage"]
