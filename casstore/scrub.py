"""Check a store: log, view, packs, trees and, if asked, every stored byte. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from casstore.catalogue import Found, full_name
from casstore.contents import Failures, entries, naming, pieces
from casstore.engine import Engine
from casstore.errors import CasstoreError, IntegrityError, NotFoundError
from casstore.format.layout import PACK_PREFIX, pack_key, pack_of
from casstore.format.packs import check_pack, locations
from casstore.format.rows import decode_row, pack_of_row
from casstore.log import GENESIS
from casstore.model import PackRow, PackState, Progress, VersionState, no_progress
from casstore.pack import decode_frame
from casstore.state import CHUNK, PACK
from casstore.view import collections, versions

SHOWN_PATHS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``affected``: ``name:vN/path`` of what cannot be read because of it."""

    kind: str
    subject: str
    message: str
    affected: tuple[str, ...] = ()


@dataclass(slots=True)
class FsckReport:
    """What a check looked at and found. Sizes in bytes."""

    segments: int = 0
    packs: int = 0
    chunks: int = 0
    versions: int = 0
    bytes_read: int = 0
    orphan_packs: int = 0
    orphan_bytes: int = 0
    ended_packs: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True if nothing is wrong. Orphans and packs in grace are not wrong, only garbage."""
        return not self.findings

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "clean": self.clean,
            "segments": self.segments,
            "packs": self.packs,
            "chunks": self.chunks,
            "versions": self.versions,
            "bytes_read": self.bytes_read,
            "orphan_packs": self.orphan_packs,
            "orphan_bytes": self.orphan_bytes,
            "ended_packs": self.ended_packs,
            "findings": [
                {"kind": f.kind, "subject": f.subject, "message": f.message, "affected": list(f.affected)}
                for f in self.findings
            ],
        }


def fsck(engine: Engine, *, read_data: bool, progress: Progress = no_progress) -> FsckReport:
    """Check everything that can be checked without reading data; with ``read_data``, every byte.

    Findings are reported, not raised. Raises `BackendError` when the store cannot be listed.
    """
    report = FsckReport()
    _log(engine, report, progress)
    try:
        engine.view.refresh()
    except CasstoreError as error:
        report.findings.append(Finding("log", "head", str(error)))
    bad = _packs(engine, report, read_data=read_data, progress=progress)
    _trees(engine, report, bad, progress)
    return report


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


def _packs(engine: Engine, report: FsckReport, *, read_data: bool, progress: Progress) -> set[bytes]:
    """Every live pack is there, in its size, sealed; returns the digests that cannot be read."""
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
    bad: set[bytes] = set()
    live = [pack for pack, pack_row in rows.items() if pack_row.state is PackState.LIVE]
    for position, pack in enumerate(sorted(live)):
        report.packs += 1
        wanted = placed.get(pack, set())
        info_found = listed.get(pack)
        if info_found is None:
            report.findings.append(Finding("pack", pack.hex(), "the pack is missing"))
            bad |= wanted
        elif info_found.size != rows[pack].size:
            message = f"the pack has {info_found.size} bytes, not {rows[pack].size}"
            report.findings.append(Finding("pack", pack.hex(), message))
            bad |= _unreadable(engine, wanted)
        elif read_data:
            bad |= _read_pack(engine, pack, wanted, report)
        progress("packs", position + 1, len(live))
    return bad


def _read_pack(engine: Engine, pack: bytes, wanted: set[bytes], report: FsckReport) -> set[bytes]:
    """Read a whole pack: seal, frames and the digest of every chunk."""
    what = f"pack {pack.hex()}"
    try:
        data = engine.backend.read(pack_key(pack))
    except NotFoundError:
        report.findings.append(Finding("pack", pack.hex(), "the pack is missing"))
        return wanted
    report.bytes_read += len(data)
    try:
        footer = check_pack(data, what)
    except CasstoreError as error:
        lost = _unreadable(engine, wanted)
        report.findings.append(Finding("pack", pack.hex(), f"{error}; {len(lost)} chunks cannot be read"))
        return lost
    bad: set[bytes] = set()
    plain, at = b"", -1
    for digest, place in locations(pack, footer.content):
        try:
            if place.frame_offset != at:
                at = place.frame_offset
                stored = memoryview(data)[at : at + place.frame_stored]
                plain = decode_frame(engine.codec, stored, place.frame_raw, f"the frame at {at} of {what}")
            if engine.hash(plain[place.offset : place.offset + place.length]) != digest:
                raise IntegrityError(f"chunk {digest.hex()} has other bytes than its name says")
        except CasstoreError as error:
            report.findings.append(Finding("chunk", digest.hex(), str(error)))
            bad.add(digest)
    return bad & wanted


def _unreadable(engine: Engine, digests: set[bytes]) -> set[bytes]:
    return set(engine.reader.fetch(sorted(digests)).failed)


def _trees(engine: Engine, report: FsckReport, bad: set[bytes], progress: Progress) -> None:
    """Every version can be walked and every chunk it names has a place; names what damage affects."""
    affected: dict[bytes, list[str]] = {}
    with engine.view.read() as tables:
        all_versions = [
            Found(full_name(collection), collection, version)
            for collection in collections(tables)
            for version in versions(tables, collection.id, states=(VersionState.COMMITTED, VersionState.TRASHED))
        ]
    checked: set[bytes] = set()
    for position, found in enumerate(all_versions):
        report.versions += 1
        progress("trees", position + 1, len(all_versions))
        # Content that an earlier version had and that was whole need not be walked again.
        if found.version.root in checked:
            continue
        failures: Failures = []
        try:
            clean = _tree(engine, found, bad, affected, failures)
        except CasstoreError as error:
            report.findings.append(Finding("version", found.label, str(error), (found.label,)))
        else:
            for path, failure in failures:
                report.findings.append(Finding("tree", found.label, str(failure), (f"{found.label}/{path}",)))
            if clean and not failures:
                checked.add(found.version.root)
    for digest, paths in affected.items():
        report.findings.append(
            Finding("missing", digest.hex(), f"{len(paths)} files cannot be read", tuple(paths[:SHOWN_PATHS]))
        )


def _tree(engine: Engine, found: Found, bad: set[bytes], affected: dict[bytes, list[str]], failures: Failures) -> bool:
    clean = True
    for path, digests in _batches(engine, found, failures):
        places = engine.view.known(digests)
        for digest, known in zip(digests, places, strict=True):
            if not known or digest in bad:
                affected.setdefault(digest, []).append(f"{found.label}/{path}")
                clean = False
    return clean


def _batches(engine: Engine, found: Found, failures: Failures) -> Iterator[tuple[str, list[bytes]]]:
    for entry in entries(engine, found, failures=failures):
        try:
            with naming(found, entry.path):
                digests = [digest for _, digest, _ in pieces(engine, entry)]
        except IntegrityError as error:
            failures.append((entry.path, error))
        else:
            yield entry.path, digests
