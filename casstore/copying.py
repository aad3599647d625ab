"""A version again, in another collection: by its tree alone, without reading or storing a byte of its files."""

from __future__ import annotations

import json
from dataclasses import replace

from casstore.artifact import Artifact
from casstore.catalogue import find, labelled
from casstore.engine import Engine
from casstore.expiry import terms_now
from casstore.ingest import Known, LogRequest, LogResult, log_known
from casstore.names import Reference
from casstore.overlay import Tables
from casstore.tree import Tree


def copy(engine: Engine, reference: Reference, request: LogRequest, *, keep_tags: bool) -> LogResult:
    """Log the content and labels of a version as the next version of a collection, in one commit.

    Found and committed on the same state: what it holds cannot be collected in between. ``keep_tags``: those of the
    version, instead of the request's. Raises `VersionNotFoundError`, `TypeConflictError`.
    """

    def draft(tables: Tables) -> Known:
        found = find(tables, reference, terms=terms_now(engine, tables))
        row = labelled(tables, found.version)
        artifact = Artifact(request.collection.name, row.type, row.description, json.loads(row.metadata))
        tags = row.tags if keep_tags else request.tags
        tree = Tree(row.root, row.file_count, row.size)
        return Known(artifact, tree, replace(request, tags=tags, base=found.label, attrs=row.attrs))

    return log_known(engine, draft)
