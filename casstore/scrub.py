"""Check a store: log, view, packs, trees and, if asked, the stored bytes. Changes nothing unless it is to repair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import field, replace

from casstore.catalogue import Found, full_name
from casstore.contents import Piece, pieces
from casstore.digest import Buffer, seal
from casstore.engine import Engine
from casstore.errors import BackendError, CasstoreError, FormatError, IntegrityError, InvalidInputError, NotFoundError
from casstore.format.layout import PACK_PREFIX, pack_key, pack_of
from casstore.format.nodes import Node
from casstore.format.packs import check_pack
from casstore.format.rows import decode_chunk, decode_row, pack_of_row
from casstore.log import GENESIS
from casstore.model import KEPT, ChunkKind, Entry, Location, PackRow, PackState, Progress, VersionState, no_progress
from casstore.pack import decode_frame, slice_chunk
from casstore.repair import Repaired, bad_sector, lost_digests, repair
from casstore.state import CHUNK, PACK
from casstore.values import dataclass
from casstore.view import collections, version_at, versions

REPAIR_HINT = "casstore fsck --read-data --repair"
LOST_HINT = "log the files named here again from a good copy, or restore their packs from a replica of the store"


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes ``start`` to ``end`` of a file, ``name:vN/path``, that cannot be read."""

    path: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``affected``: ``name:vN/path`` of what cannot be read because of it.

    ``ranges``: which bytes of these files, where that is known. ``repaired``: it was wrong, and is not any more.
    """

    kind: str
    subject: str
    message: str
    affected: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()
    repaired: bool = False


@dataclass(slots=True)
class FsckReport:
    """What a check looked at and found. Sizes in bytes.

    ``quarantined``: chunks and nodes that this run found damaged. ``healed``: those it replaced by a good copy.
    ``lost``: those that stay in quarantine, of this run or an earlier one. ``erased``: files (``name:vN/path``) that
    were given up on request, in whole or in part, which is not damage.
    """

    segments: int = 0
    packs: int = 0
    chunks: int = 0
    versions: int = 0
    packs_read: int = 0
    bytes_read: int = 0
    orphan_packs: int = 0
    orphan_bytes: int = 0
    ended_packs: int = 0
    quarantined: int = 0
    healed: int = 0
    lost: int = 0
    erased: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True if nothing is wrong, or nothing any more. Orphans and packs in grace are only garbage."""
        return all(finding.repaired for finding in self.findings)

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "clean": self.clean,
            "segments": self.segments,
            "packs": self.packs,
            "chunks": self.chunks,
            "versions": self.versions,
            "packs_read": self.packs_read,
            "bytes_read": self.bytes_read,
            "orphan_packs": self.orphan_packs,
            "orphan_bytes": self.orphan_bytes,
            "ended_packs": self.ended_packs,
            "quarantined": self.quarantined,
            "healed": self.healed,
            "lost": self.lost,
            "erased": self.erased,
            "findings": [
                {
                    "kind": f.kind,
                    "subject": f.subject,
                    "message": f.message,
                    "affected": list(f.affected),
                    "ranges": [{"path": r.path, "start": r.start, "end": r.end} for r in f.ranges],
                    "repaired": f.repaired,
                }
                for f in self.findings
            ],
        }


def share_of(read_data: object) -> float:
    """How much to read, 0 to 1. Raises `InvalidInputError`."""
    if not isinstance(read_data, bool | int | float) or not 0 <= read_data <= 1:
        raise InvalidInputError(
            f"read_data={read_data!r} is no share", hint="True, or a number from 0 to 1 such as 0.01"
        )
    return float(read_data)


def fsck(
    engine: Engine,
    *,
    share: float = 0.0,
    seed: bytes = b"",
    mend: bool = False,
    progress: Progress = no_progress,
) -> FsckReport:
    """Check everything that can be checked without reading data, and read some packs or all of them.

    ``share``: of the stored bytes to read, 0 to 1; the packs are drawn by ``seed``. With ``mend``, all node packs are
    read besides, what is damaged is quarantined, and what has another copy is healed (`casstore.repair`). Findings are
    reported, not raised. Raises `BackendError` when the store cannot be listed or, to repair it, written.
    """
    if mend:
        engine.check_writable()
    report = FsckReport()
    _log(engine, report, progress)
    try:
        engine.view.refresh()
    except CasstoreError as error:
        report.findings.append(Finding("log", "head", str(error)))
    damaged = _packs(engine, report, _chooser(seed, share, nodes=mend), progress)
    if mend:
        _note_repair(report, repair(engine, damaged, progress))
        with engine.view.read() as tables:
            # What was moved or healed meanwhile is not where it was looked for.
            bad = {d for pack, found in damaged.items() for d in found if _pack_of(tables.get(CHUNK, d)) == pack}
    else:
        bad = {digest for found in damaged.values() for digest in found}
    with engine.view.read() as tables:
        report.lost = sum(1 for _ in lost_digests(tables))
    _trees(engine, report, bad, progress)
    return report


def _note_repair(report: FsckReport, done: Repaired) -> None:
    report.quarantined, report.healed = done.quarantined, len(done.healed)
    ended = {pack.hex() for pack in done.ended}
    healed = {digest.hex() for digest in done.healed}
    report.findings[:] = [
        replace(finding, repaired=True)
        if (finding.kind == "pack" and finding.subject in ended)
        or (finding.kind == "chunk" and finding.subject in healed)
        else finding
        for finding in report.findings
    ]


def _log(engine: Engine, report: FsckReport, progress: Progress) -> None:
    """The hash chain, and every segment exactly as written."""
    listed = engine.log.listed()
    previous = GENESIS
    for position, seq in enumerate(listed):
        if seq != position + 1:
            report.findings.append(Finding("log", f"segment {position + 1}", "the segment is missing"))
            break
        report.segments += 1
        try:
            found = engine.log.read(seq)
            sound = engine.log.sound(seq)
        except CasstoreError as error:
            report.findings.append(Finding("log", f"segment {seq}", str(error)))
            previous = b""
            continue
        if found is None or not sound:
            report.findings.append(Finding("log", f"segment {seq}", "the segment is damaged, but can be repaired"))
        if found is not None:
            segment, chain = found
            if previous and segment.previous != previous:
                report.findings.append(Finding("log", f"segment {seq}", "the hash chain is broken here"))
            previous = chain
        progress("log", position + 1, len(listed))


# --- packs ---------------------------------------------------------------------------------------


Choose = Callable[[Mapping[bytes, PackRow]], set[bytes]]


def _chooser(seed: bytes, share: float, *, nodes: bool) -> Choose:
    """Which packs to read: so many, drawn by ``seed``, that they hold a share of all bytes; and perhaps all nodes."""

    def choose(live: Mapping[bytes, PackRow]) -> set[bytes]:
        chosen = {pack for pack, row in live.items() if nodes and row.kind is ChunkKind.NODE}
        wanted = share * sum(row.size for row in live.values())
        for pack in sorted(live, key=lambda pack: seal(seed + pack)):
            if wanted <= 0:
                break
            wanted -= live[pack].size
            chosen.add(pack)
        return chosen

    return choose


def _packs(engine: Engine, report: FsckReport, choose: Choose, progress: Progress) -> dict[bytes, set[bytes]]:
    """Every live pack is there, in its size, sealed; returns those that are not, with what cannot be read in them."""
    listed = {pack: info for info in engine.backend.list(PACK_PREFIX) if (pack := pack_of(info.key)) is not None}
    with engine.view.read() as tables:
        rows = {key: decode_row(row, PackRow) for key, row in tables.scan(PACK)}
        placed: dict[bytes, set[bytes]] = {}
        for digest, row in tables.scan(CHUNK):
            placed.setdefault(pack_of_row(row), set()).add(digest)
            report.chunks += 1
    for pack, info in listed.items():
        known = rows.get(pack)
        if known is None:
            report.orphan_packs += 1
            report.orphan_bytes += info.size
        elif known.state is not PackState.LIVE:
            report.ended_packs += 1
    damaged: dict[bytes, set[bytes]] = {}
    live = {pack: row for pack, row in sorted(rows.items()) if row.state is PackState.LIVE}
    chosen = choose(live)
    for position, (pack, live_row) in enumerate(live.items()):
        report.packs += 1
        found = listed.get(pack)
        if found is None or found.size != live_row.size or pack in chosen:
            _read_pack(engine, pack, live_row, placed.get(pack, set()), report, damaged)
        progress("packs", position + 1, len(live))
    return damaged


def _read_pack(
    engine: Engine, pack: bytes, row: PackRow, wanted: set[bytes], report: FsckReport, damaged: dict[bytes, set[bytes]]
) -> None:
    """Read a whole pack, whatever a listing says of it: seal, frames and the digest of every chunk placed in it."""
    what = f"pack {pack.hex()}"
    data: bytes | None = None
    seen: CasstoreError | None
    try:
        data = engine.backend.read(pack_key(pack))
    except NotFoundError:
        if _still_live(engine, pack):
            report.findings.append(Finding("pack", pack.hex(), "the pack is missing"))
            damaged[pack] = set(wanted)
        return
    except BackendError as error:
        if not bad_sector(error):
            raise
        seen = error
    else:
        seen = _seal_broken(data, row, what)
    report.packs_read += 1
    report.bytes_read += row.size if data is None else len(data)
    bad = _unreadable(engine, pack, data, wanted, report, sealed=seen is None)
    if seen is not None:
        report.findings.append(Finding("pack", pack.hex(), f"{seen}; {len(bad)} chunks cannot be read"))
    if seen is not None or bad:
        damaged[pack] = bad


def _seal_broken(data: bytes, row: PackRow, what: str) -> CasstoreError | None:
    """What is wrong with a whole pack, if anything is."""
    try:
        if len(data) != row.size:
            raise IntegrityError(f"the pack has {len(data)} bytes, not {row.size}")
        check_pack(data, what)
    except CasstoreError as error:
        return error
    return None


def _unreadable(
    engine: Engine, pack: bytes, data: bytes | None, wanted: set[bytes], report: FsckReport, *, sealed: bool
) -> set[bytes]:
    """Which of the chunks placed in a pack are not in its bytes, by the places the log gives.

    Without ``data``, as the medium has unreadable parts, every frame is read by itself.
    """
    with engine.view.read() as tables:
        rows = [(digest, tables.get(CHUNK, digest)) for digest in wanted]
    frames: dict[int, list[tuple[bytes, Location]]] = {}
    for digest, row in rows:
        place = None if row is None else decode_chunk(row).location
        if place is not None and place.pack == pack:  # else it was moved or dropped meanwhile
            frames.setdefault(place.frame_offset, []).append((digest, place))
    bad: set[bytes] = set()
    for at, members in frames.items():
        first = members[0][1]
        problem = ""
        try:
            if data is None:
                stored: Buffer = engine.backend.read(pack_key(pack), offset=at, length=first.frame_stored)
            else:
                stored = memoryview(data)[at : at + first.frame_stored]
            plain = decode_frame(engine.codec, stored, first.frame_raw, f"the frame at {at} of pack {pack.hex()}")
        except (IntegrityError, NotFoundError) as error:
            plain, problem = b"", str(error)
        except BackendError as error:
            if not bad_sector(error):
                raise
            plain, problem = b"", str(error)
        for digest, place in members:
            if problem or engine.hash(slice_chunk(plain, place)) != digest:
                bad.add(digest)
                if sealed:  # else the finding about the pack says so
                    message = problem or f"chunk {digest.hex()} has other bytes than its name says"
                    report.findings.append(Finding("chunk", digest.hex(), message))
    return bad


def _still_live(engine: Engine, pack: bytes) -> bool:
    """Whether a pack that is not there should be: a collection may have been faster."""
    engine.view.refresh()
    with engine.view.read() as tables:
        row = tables.get(PACK, pack)
    return row is not None and decode_row(row, PackRow).state is PackState.LIVE


def _pack_of(row: bytes | None) -> bytes | None:
    return None if row is None else pack_of_row(row)


# --- trees ---------------------------------------------------------------------------------------


class _Loss:
    """What cannot be read of all versions, by the digest that is to blame."""

    def __init__(self) -> None:
        self.files: dict[bytes, list[Range]] = {}
        self.clean = True
        """of the version that is being walked"""

    def file(self, digest: bytes, path: str, start: int, end: int) -> None:
        self.files.setdefault(digest, []).append(Range(path, start, end))
        self.clean = False

    def take(self, other: _Loss) -> None:
        for digest, ranges in other.files.items():
            self.files.setdefault(digest, []).extend(ranges)


def _trees(engine: Engine, report: FsckReport, bad: set[bytes], progress: Progress) -> None:
    """Every version can be walked and every chunk it names has a place; names what damage affects."""
    with engine.view.read() as tables:
        all_versions = [
            Found(full_name(collection), collection, version)
            for collection in collections(tables)
            for version in versions(tables, collection.id, states=KEPT)
        ]
    loss = _Loss()
    checked: set[bytes] = set()
    for position, found in enumerate(all_versions):
        report.versions += 1
        progress("trees", position + 1, len(all_versions))
        # Content that an earlier version had and that was whole need not be walked again.
        if found.version.root in checked:
            continue
        before, here = len(report.findings), _Loss()
        for entry in _entries(engine, found, report, here):
            _check_file(engine, entry, f"{found.label}/{entry.path}", bad, here)
        if here.clean:
            checked.add(found.version.root)
        elif _is_kept(engine, found):
            loss.take(here)
        else:
            del report.findings[before:]  # it was purged, and perhaps collected, under the walk
    for digest, ranges in loss.files.items():
        paths = tuple(dict.fromkeys(r.path for r in ranges))
        lost = engine.view.lost(digest)
        if lost is not None and lost.erased:
            # As somebody wanted it to be: nothing is wrong.
            report.erased.extend(path for path in paths if path not in report.erased)
            continue
        message = f"{len(paths)} files cannot be read whole"
        report.findings.append(Finding("missing", digest.hex(), message, paths, tuple(ranges)))


def _is_kept(engine: Engine, found: Found) -> bool:
    """Whether a version still is to be whole, as far as can be told."""
    with suppress(CasstoreError):  # a damaged log is reported by itself
        engine.view.refresh()
    with engine.view.read() as tables:
        version = version_at(tables, found.collection.id, found.version.number)
    return version is not None and version.state is not VersionState.PURGED


def _node(engine: Engine, digest: bytes) -> Node | CasstoreError:
    try:
        return engine.node(digest)
    except (IntegrityError, FormatError) as error:
        return error


def _entries(engine: Engine, found: Found, report: FsckReport, loss: _Loss) -> Iterator[Entry]:
    """Entries of a version, without the parts of its list of files that cannot be read: those are reported."""
    label, version = found.label, found.version
    root = _node(engine, version.root)
    if not isinstance(root, Node):
        loss.clean = False
        message = f"the list of its {version.file_count} files cannot be read: {root}"
        report.findings.append(Finding("version", label, message, (label,)))
        return
    yield from _below(engine, root, "", label, report, loss)


def _below(engine: Engine, node: Node, before: str, label: str, report: FsckReport, loss: _Loss) -> Iterator[Entry]:
    """Entries below a node. ``before``: the last path in front of it, or nothing."""
    yield from node.entries
    for child in node.children:
        read = _node(engine, child.digest)
        if isinstance(read, Node):
            yield from _below(engine, read, before, label, report, loss)
        else:
            loss.clean = False
            after = f"after {before!r} " if before else ""
            message = f"{child.count} files ({child.size} bytes) {after}up to {child.last!r} cannot be listed: {read}"
            report.findings.append(Finding("tree", label, message, (f"{label}/{child.last}",)))
        before = child.last


def _check_file(engine: Engine, entry: Entry, path: str, bad: set[bytes], loss: _Loss) -> None:
    parts: list[Piece] = []

    def flush() -> None:
        digests = [digest for _, digest, _ in parts]
        for (at, digest, length), known in zip(parts, engine.view.known(digests), strict=True):
            if not known or digest in bad:
                loss.file(digest, path, at, at + length)
        parts.clear()

    for piece in _pieces(engine, entry, path, loss):
        parts.append(piece)
        if len(parts) >= 4096:
            flush()
    if parts:
        flush()


def _pieces(engine: Engine, entry: Entry, path: str, loss: _Loss) -> Iterable[Piece]:
    """The chunks of a file, without those that a damaged node of its chunk list names."""
    if entry.tree is None:
        yield from pieces(engine, entry)
        return
    stack = [(entry.tree, 0, entry.length)]
    while stack:
        digest, at, size = stack.pop()
        node = _node(engine, digest)
        if not isinstance(node, Node):
            loss.file(digest, path, at, at + size)
            continue
        below: list[Piece] = []
        for name, length in node.chunks or [(child.digest, child.size) for child in node.children]:
            below.append((at, name, length))
            at += length
        if node.level:
            stack.extend((name, where, length) for where, name, length in reversed(below))
        else:
            yield from below
