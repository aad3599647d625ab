"""Runs, what they logged and used, and where versions come from: looked up, as records and as a graph. Changes nothing.

A run is a record of something outside; nothing executes here. What is deleted stays in the graph, as a tombstone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from datetime import datetime

from casstore.catalogue import Found, found_of
from casstore.config import from_micros
from casstore.engine import Engine
from casstore.errors import InvalidInputError, NotFoundError, RefusedError
from casstore.expiry import is_gone, terms_now
from casstore.format.rows import decode_row
from casstore.model import RunRow, UseRow, VersionRow, VersionState
from casstore.names import check_name
from casstore.overlay import Tables
from casstore.state import (
    RUN,
    RUN_OUTPUT,
    RUNNING,
    USE,
    base_of,
    derived_from,
    links_to,
    run_key,
    runs_logging,
    use_key,
    uses_of,
)
from casstore.values import dataclass
from casstore.view import version_at

DIRECTIONS = ("both", "up", "down")
Place = tuple[int, int]
"""a version: the id of its collection, its number"""


# --- records -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the log knows it. ``attrs``: what the host keeps with it. ``ended_at``: None while it is running."""

    id: str
    name: str
    job_type: str
    status: str
    attrs: Mapping[str, object] = field(hash=False)
    actor: str
    started_at: datetime
    ended_at: datetime | None

    def to_dict(self) -> dict[str, object]:
        """The run as JSON values."""
        return {
            "id": self.id,
            "name": self.name,
            "job_type": self.job_type,
            "status": self.status,
            "attrs": dict(self.attrs),
            "actor": self.actor,
            "started_at": self.started_at.isoformat(),
            "ended_at": None if self.ended_at is None else self.ended_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class UseRecord:
    """A declared use of a version by a run. ``state``: ``active``, ``ended`` or ``cancelled``, by ``ended_by``."""

    ref: str
    run: str
    purpose: str
    state: str
    holder: str
    actor: str
    since: datetime
    ended_at: datetime | None
    ended_by: str | None

    def to_dict(self) -> dict[str, object]:
        """The use as JSON values."""
        return {
            "ref": self.ref,
            "run": self.run,
            "purpose": self.purpose,
            "state": self.state,
            "holder": self.holder,
            "actor": self.actor,
            "since": self.since.isoformat(),
            "ended_at": None if self.ended_at is None else self.ended_at.isoformat(),
            "ended_by": self.ended_by,
        }


def run_row(tables: Tables, run: str) -> RunRow | None:
    """A run, deleted ones included."""
    row = tables.get(RUN, run.encode())
    return None if row is None else decode_row(row, RunRow)


def known_run(tables: Tables, run: str) -> RunRow:
    """A run that was not deleted. Raises `NotFoundError`."""
    row = run_row(tables, run)
    if row is None:
        raise NotFoundError(f"there is no run {run!r}", hint="casstore run ls")
    if row.deleted:
        raise NotFoundError(f"run {run} was deleted", hint="casstore run ls")
    return row


def running(tables: Tables, run: str) -> RunRow:
    """A run that can log and use. Raises `NotFoundError`, and `RefusedError` once it has ended."""
    row = known_run(tables, run)
    if row.status != RUNNING:
        raise RefusedError(f"run {run} has ended: {row.status}", hint="start another run")
    return row


def run_record(run: str, row: RunRow) -> RunRecord:
    """A row as a record."""
    attrs = json.loads(row.attrs)
    ended = from_micros(row.ended) if row.ended else None
    return RunRecord(run, row.name, row.job_type, row.status, attrs, row.actor, from_micros(row.started), ended)


def get_run(engine: Engine, run: str) -> RunRecord:
    """A run at the head of the log. Raises `NotFoundError`, `InvalidNameError`."""
    check_name(run, "run id")
    engine.view.refresh()
    with engine.view.read() as tables:
        return run_record(run, known_run(tables, run))


def runs(engine: Engine, status: str | None = None, job_type: str | None = None) -> list[RunRecord]:
    """Runs that were not deleted, in the order they were started."""
    engine.view.refresh()
    with engine.view.read() as tables:
        rows = [(key.decode(), decode_row(row, RunRow)) for key, row in tables.scan(RUN)]
    found = [
        (row.seq, run_record(run, row))
        for run, row in rows
        if not row.deleted and status in (None, row.status) and job_type in (None, row.job_type)
    ]
    return [record for _, record in sorted(found, key=lambda item: (item[0], item[1].id))]


# --- what versions and runs have to do with each other -------------------------------------------


def found_at(tables: Tables, place: Place) -> Found | None:
    """The version at a place, in any state."""
    version = version_at(tables, *place)
    return None if version is None else found_of(tables, version)


def logged_by(engine: Engine, found: Found) -> RunRecord | None:
    """The run that logged a version; of a link, its source. None without one, or once that was deleted."""
    engine.view.refresh()
    with engine.view.read() as tables:
        version = _source(tables, found.version)
        row = run_row(tables, version.run) if version.run else None
        return None if row is None or row.deleted else run_record(version.run, row)


def _source(tables: Tables, version: VersionRow) -> VersionRow:
    if not version.is_link:
        return version
    source = version_at(tables, version.source_collection, version.source_number)
    return version if source is None else source


def uses(engine: Engine, found: Found) -> list[UseRecord]:
    """The uses of a version and of the links to it, ended ones included, in the order they began."""
    engine.view.refresh()
    with engine.view.read() as tables:
        return list(_uses(tables, found))


def _uses(tables: Tables, found: Found) -> Iterator[UseRecord]:
    place = (found.version.collection, found.version.number)
    rows: list[tuple[int, str, str, UseRow]] = []
    for where in (place, *links_to(tables, *place)):
        held = found_at(tables, where)
        if held is not None:
            rows += [(use.seq, run, held.label, use) for run, use in uses_of(tables, *where)]
    for _, run, label, use in sorted(rows, key=lambda row: row[:3]):
        yield UseRecord(
            label,
            run,
            use.purpose,
            use.state,
            use.holder,
            use.actor,
            from_micros(use.since),
            from_micros(use.ended) if use.ended else None,
            use.ended_by or None,
        )


def used_by(engine: Engine, found: Found) -> list[RunRecord]:
    """The runs that used a version or a link to it, each once, in the order they began to, without deleted ones."""
    engine.view.refresh()
    with engine.view.read() as tables:
        ids = dict.fromkeys(use.run for use in _uses(tables, found))
        rows = [(run, run_row(tables, run)) for run in ids]
        return [run_record(run, row) for run, row in rows if row is not None and not row.deleted]


def outputs(engine: Engine, run: str, *, include_trashed: bool) -> list[Found]:
    """The versions a run logged, also those that were there already; by collection and number."""
    return _versions_of(engine, run, RUN_OUTPUT, include_trashed=include_trashed)


def inputs(engine: Engine, run: str, *, include_trashed: bool) -> list[Found]:
    """The versions a run used; by collection and number."""
    return _versions_of(engine, run, USE, include_trashed=include_trashed)


def _versions_of(engine: Engine, run: str, table: str, *, include_trashed: bool) -> list[Found]:
    """Purged ones are never among them; expired ones only with those in the trash, where they are on the way to."""
    states = {VersionState.COMMITTED, VersionState.TRASHED} if include_trashed else {VersionState.COMMITTED}
    engine.view.refresh()
    with engine.view.read() as tables:
        known_run(tables, run)
        terms = terms_now(engine, tables)
        found = (found_at(tables, place) for place in _places(tables, run, table))
        return [
            f
            for f in found
            if f is not None
            and f.version.state in states
            and (include_trashed or not is_gone(tables, terms, f.collection, f.version))
        ]


def _places(tables: Tables, run: str, table: str) -> Iterator[Place]:
    for key, _ in tables.scan(table, prefix=run_key(run)):
        yield int.from_bytes(key[-16:-8], "big"), int.from_bytes(key[-8:], "big")


# --- the graph -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineageNode:
    """A version or a run. ``id``: its reference (``name:vN``), or ``run/ID``. ``type``: of the artifact, or the job.

    ``state``: of a version as `Version.state` has it, without COLLECTED; of a run its status, ``deleted`` included.
    ``tombstone``: in the trash, purged or deleted. ``distance``: edges from the root.
    """

    id: str
    kind: str
    name: str
    type: str
    state: str
    tombstone: bool
    distance: int

    def to_dict(self) -> dict[str, object]:
        """The node as JSON values."""
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "type": self.type,
            "state": self.state,
            "tombstone": self.tombstone,
            "distance": self.distance,
        }


@dataclass(frozen=True, slots=True, order=True)
class LineageEdge:
    """What came of what: from ``source`` to ``target``, ids of nodes.

    ``logged``: run → version; ``used``: version → run; ``base``: version → version made from it, by draft or copy;
    ``link``: version → link to it. ``purpose`` and ``state`` are those of a use.
    """

    source: str
    target: str
    kind: str
    purpose: str = ""
    state: str = ""

    def to_dict(self) -> dict[str, object]:
        """The edge as JSON values."""
        return {
            "source": self.source,
            "target": self.target,
            "kind": self.kind,
            "purpose": self.purpose,
            "state": self.state,
        }


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version or run comes from (``up``) and what came of it (``down``). Nodes by distance from ``root``."""

    root: str
    direction: str
    depth: int | None
    nodes: tuple[LineageNode, ...]
    edges: tuple[LineageEdge, ...]

    def to_dict(self) -> dict[str, object]:
        """The graph as JSON values (docs/cli.md, schema ``lineage``)."""
        return {
            "root": self.root,
            "direction": self.direction,
            "depth": self.depth,
            "nodes": [node.to_dict() for node in self.nodes],
            "edges": [edge.to_dict() for edge in self.edges],
        }

    def to_dot(self) -> str:
        """The graph in the language of Graphviz. What is in names is escaped."""
        number = {node.id: f"n{i}" for i, node in enumerate(self.nodes)}
        lines = ["digraph lineage {", "  rankdir=LR;"]
        for node in self.nodes:
            shape = "box" if node.kind == "run" else "ellipse"
            style = ', style="dashed"' if node.tombstone else ""
            label = _quoted(node.id) + "\\n" + _quoted(_about(node))
            lines.append(f'  {number[node.id]} [label="{label}", shape="{shape}"{style}];')
        for edge in self.edges:
            label = _quoted(f"{edge.kind}: {edge.purpose}" if edge.purpose else edge.kind)
            lines.append(f'  {number[edge.source]} -> {number[edge.target]} [label="{label}"];')
        return "\n".join([*lines, "}"]) + "\n"

    def to_tree(self) -> str:
        """The graph as lines: what the root comes from (``<-``), and what came of it (``->``). Names are escaped.

        What was shown before is not shown with its branches again.
        """
        nodes = {node.id: node for node in self.nodes}
        lines = [_line(nodes[self.root])]
        for arrow, ends in (
            ("<-", [(edge.target, edge.source, edge) for edge in self.edges]),
            ("->", [(edge.source, edge.target, edge) for edge in self.edges]),
        ):
            if (arrow, self.direction) in {("<-", "down"), ("->", "up")}:
                continue
            beside: dict[str, list[tuple[str, LineageEdge]]] = {}
            for here, there, edge in ends:
                beside.setdefault(here, []).append((there, edge))
            lines += _branches(nodes, beside, self.root, arrow)
        return "\n".join(lines) + "\n"


def _branches(
    nodes: Mapping[str, LineageNode], beside: Mapping[str, list[tuple[str, LineageEdge]]], root: str, arrow: str
) -> Iterator[str]:
    shown = {root}
    stack = [(there, edge, 1) for there, edge in reversed(beside.get(root, []))]
    while stack:
        here, edge, level = stack.pop()
        again = here in shown
        shown.add(here)
        branches = [] if again else beside.get(here, [])
        said = " …" if again and beside.get(here) else ""
        yield f"{'  ' * level}{arrow} {_plain(edge.kind)} {_line(nodes[here])}{said}"
        stack += [(there, next_edge, level + 1) for there, next_edge in reversed(branches)]


def _line(node: LineageNode) -> str:
    return _plain(f"{node.id} ({_about(node)})")


def _about(node: LineageNode) -> str:
    name = f" {node.name}" if node.kind == "run" and f"run/{node.name}" != node.id else ""
    return f"{node.type or node.kind}{name}, {node.state}"


def _plain(text: str) -> str:
    """Text that can steer neither a terminal nor the lines it is in."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _quoted(text: str) -> str:
    return _plain(text).replace("\\", "\\\\").replace('"', '\\"')


_Key = Place | str
"""a version, or the id of a run"""


def graph(engine: Engine, start: Place | str, *, depth: int | None, direction: str) -> Lineage:
    """Everything a version (or run, by id) comes from, and everything that came of it, up to ``depth`` edges away.

    Looks only at what it shows. Raises `InvalidInputError`, `NotFoundError`.
    """
    if direction not in DIRECTIONS:
        raise InvalidInputError(f"direction={direction!r} is not valid", hint=", ".join(DIRECTIONS))
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise InvalidInputError(f"depth={depth!r} is not a number of edges", hint="a whole number, or None: no limit")
    engine.view.refresh()
    with engine.view.read() as tables:
        root = _node(tables, start, 0)
        if root is None:
            raise NotFoundError(f"there is no run {start!r}", hint="casstore run ls")
        nodes: dict[_Key, LineageNode] = {start: root}
        edges: dict[LineageEdge, None] = {}
        for upward in (True, False):
            if direction != ("down" if upward else "up"):
                _walk(tables, start, depth, nodes, edges, upward=upward)
    ordered = sorted(nodes.values(), key=lambda node: (node.distance, node.id))
    return Lineage(root.id, direction, depth, tuple(ordered), tuple(sorted(edges)))


def _walk(
    tables: Tables,
    start: _Key,
    depth: int | None,
    nodes: dict[_Key, LineageNode],
    edges: dict[LineageEdge, None],
    *,
    upward: bool,
) -> None:
    level, seen, distance = [start], {start}, 0
    while level and (depth is None or distance < depth):
        distance += 1
        following: list[_Key] = []
        for here in level:
            for there, edge in _beside(tables, here, upward=upward):
                node = _node(tables, there, distance)
                if node is None:
                    continue
                known = nodes.setdefault(there, node)
                if known.distance > distance:
                    nodes[there] = node
                ends = (node.id, nodes[here].id) if upward else (nodes[here].id, node.id)
                edges[replace(edge, source=ends[0], target=ends[1])] = None
                if there not in seen:
                    seen.add(there)
                    following.append(there)
        level = following


def _node(tables: Tables, key: _Key, distance: int) -> LineageNode | None:
    if isinstance(key, str):
        row = run_row(tables, key)
        if row is None:
            return None
        return LineageNode(f"run/{key}", "run", row.name, row.job_type, row.status, row.deleted, distance)
    found = found_at(tables, key)
    if found is None:
        return None
    row_state = found.version.state
    gone = row_state is not VersionState.COMMITTED
    return LineageNode(found.label, "version", found.label, found.version.type, str(row_state), gone, distance)


def _beside(tables: Tables, key: _Key, *, upward: bool) -> Iterator[tuple[_Key, LineageEdge]]:
    """What is one edge up, or down; the ends of the edges are left open."""
    if isinstance(key, str):
        if upward:
            for place in _places(tables, key, USE):
                row = tables.get(USE, use_key(key, *place))
                assert row is not None
                use = decode_row(row, UseRow)
                yield place, LineageEdge("", "", "used", use.purpose, use.state)
        else:
            for place in _places(tables, key, RUN_OUTPUT):
                yield place, LineageEdge("", "", "logged")
        return
    if upward:
        base = base_of(tables, *key)
        if base is not None:
            yield base, LineageEdge("", "", "base")
        version = version_at(tables, *key)
        if version is not None and version.is_link:
            yield (version.source_collection, version.source_number), LineageEdge("", "", "link")
        for run in runs_logging(tables, *key):
            yield run, LineageEdge("", "", "logged")
        return
    for place in derived_from(tables, *key):
        yield place, LineageEdge("", "", "base")
    for place in links_to(tables, *key):
        yield place, LineageEdge("", "", "link")
    for run, use in uses_of(tables, *key):
        yield run, LineageEdge("", "", "used", use.purpose, use.state)
