"""Versions that several writers make together: each upserts a part, one finishes, and all parts are one version.

A batch is known by its collection and an id that the writers agree on; it is used once and for ever. A part is a tree,
kept by a pin until the batch is finished, aborted, or nobody has upserted for the time of its lease: then the next
collection aborts it. Every step is one commit, so a writer that is killed has stored its part or nothing.
"""

from casstore.batch.finishing import FinishRequest, check_expected, destination, finish
from casstore.batch.looking import BatchInfo, PartInfo, abort, get, pending
from casstore.batch.upserting import UpsertRequest, check_lease, upsert

__all__ = [
    "BatchInfo",
    "FinishRequest",
    "PartInfo",
    "UpsertRequest",
    "abort",
    "check_expected",
    "check_lease",
    "destination",
    "finish",
    "get",
    "pending",
    "upsert",
]
