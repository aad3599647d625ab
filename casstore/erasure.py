"""Erase content on request, at once, from every version: what a law or a contract may demand.

First the log says that the bytes are given up (`Erase`): from then on nobody relies on them, and
reading them says who gave them up and when. Then every pack that has them is emptied of its other content and deleted:
live ones, those that have ended and are in their grace, and those that nobody ever committed. A run that was killed is
finished by running it again. On return no power cut brings any of it back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, field
from datetime import datetime

from casstore import catalogue, explain
from casstore.authority import STORE, ask
from casstore.backend import TEMPORARY, ObjectInfo
from casstore.catalogue import Found, full_name
from casstore.config import from_micros
from casstore.contents import content_digest, entries, find_entry, pieces
from casstore.digest import ALGORITHMS, Digest
from casstore.engine import Engine
from casstore.errors import (
    ConfirmationRequired,
    EntryNotFoundError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from casstore.format.layout import PACK_PREFIX
from casstore.format.nodes import CHUNK_LIST
from casstore.format.rows import length_of_row, pack_of_row
from casstore.gc.clearance import clear
from casstore.gc.moving import read_footer
from casstore.gc.plan import Fate, Garbage, PackFate, Plan
from casstore.gc.reclaim import condemn_orphans, ended_packs, listed_packs, reclaim
from casstore.gc.retire import Budget, retire
from casstore.gc.room import ANY_AGE
from casstore.model import KEPT, Entry, EntryKind, Erase, GCRun, PackRow, PackState, Progress, Record
from casstore.names import check_description, parse_reference, split_path
from casstore.overlay import Tables
from casstore.state import CHUNK, NO_PACK, NODE, ZERO, head_of
from casstore.tree import chunk_list
from casstore.values import dataclass
from casstore.view import collections, pack_at, versions

SWEEPS = 3
"""times the packs are looked through: what a writer on another host published meanwhile is found by the next"""


@dataclass(frozen=True, slots=True)
class ErasedChunk:
    """A piece of the content. ``files``: how many files of all versions, the one that was meant included, have it."""

    digest: str
    length: int
    files: int


@dataclass(slots=True)
class Erasure:
    """What an erasure did, or would do (``dry_run``).

    ``digest``: of the content, which is what confirms it. ``affected``: every file (``name:vN/path``) that cannot be
    read whole any more, in the trash too; ``versions``: those they are in; ``drafts``: pins that hold such content.
    ``bytes``: plaintext. ``packs``: that have the bytes, of which ``rewritten`` were emptied and ``deleted`` are gone.
    ``remaining``: packs that still have them, and why: the erasure is not finished then.
    """

    subject: str
    digest: str
    reason: str
    dry_run: bool
    bytes: int
    chunks: tuple[ErasedChunk, ...]
    affected: tuple[str, ...]
    versions: tuple[str, ...]
    drafts: tuple[str, ...]
    packs: int = 0
    rewritten: int = 0
    deleted: int = 0
    erased_at: datetime | None = None
    remaining: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The erasure as JSON values."""
        return {
            **asdict(self),
            "chunks": [asdict(chunk) for chunk in self.chunks],
            "affected": list(self.affected),
            "versions": list(self.versions),
            "drafts": list(self.drafts),
            "erased_at": None if self.erased_at is None else self.erased_at.isoformat(),
        }


def erase(
    engine: Engine,
    subject: str,
    *,
    reason: str,
    confirm: str | None,
    all_versions: bool,
    keep: Sequence[str],
    dry_run: bool,
    progress: Progress,
) -> Erasure:
    """Erase the content of a digest, or of a file (``name:vN/path``), wherever it is.

    ``keep``: digests of pieces to leave, such as a block of zeros that other files have as well. Raises
    `ConfirmationRequired` unless ``confirm`` is the digest of the content, `RefusedError` if more than one version
    would break and ``all_versions`` is not set, `NotFoundError`, `StoreBusyError` while others are at work.
    """
    reason = check_description(reason)
    if not reason.strip():
        raise InvalidInputError("an erasure needs a reason, for the record", hint="reason='request 17 of …'")
    if dry_run:
        _, report = _foresee(engine, subject, reason, keep)
        report.packs = len(_hits(engine, listed_packs(engine), report_digests(report), [], progress))
        return report
    engine.check_writable()
    with engine.hold("erasing content", exclusive=True):
        digests, report = _foresee(engine, subject, reason, keep)
        report.dry_run = False
        _check_agreed(report, confirm, all_versions=all_versions)
        ask(engine.runtime, [("erase", STORE), ("gc", STORE)])
        run = GCRun(engine.runtime.random_bytes(8), engine.runtime.actor, engine.view.head().seq)
        _give_up(engine, digests, reason, run)
        row = engine.view.lost(next(iter(digests)))
        report.erased_at = None if row is None else from_micros(row.at)
        _sweep(engine, digests, run, report, progress)
    return report


def report_digests(report: Erasure) -> set[bytes]:
    """The digests a report is about."""
    return {Digest.parse(chunk.digest).value for chunk in report.chunks}


def _check_agreed(report: Erasure, confirm: str | None, *, all_versions: bool) -> None:
    if len(report.versions) > 1 and not all_versions:
        raise RefusedError(
            f"{len(report.versions)} versions would lose content; nothing was changed",
            hint="look at a dry run, then all_versions=True, or casstore purge-content --all-versions",
        )
    if confirm != report.digest:
        said = "this needs a confirmation" if confirm is None else f"{confirm!r} is not {report.digest!r}"
        raise ConfirmationRequired(f"{said}; nothing was changed", hint=f"--confirm {report.digest}")


# --- what is meant, and who has it ---------------------------------------------------------------


def _foresee(engine: Engine, subject: str, reason: str, keep: Sequence[str]) -> tuple[set[bytes], Erasure]:
    engine.view.refresh()
    name, digests = _resolve(engine, subject)
    kept = {engine.parse_digest(digest) for digest in keep}
    if not kept <= digests:
        raise InvalidInputError(f"{subject} has not all of the content to keep", hint="look at a dry run")
    digests -= kept
    if not digests:
        raise InvalidInputError(f"nothing of {subject} is left to erase")
    with engine.view.read() as tables:
        lengths = {d: length_of_row(row) for d in digests if (row := tables.get(CHUNK, d)) is not None}
        if len(lengths) < len(digests):
            raise NotFoundError(f"{subject} is not in this store any more", hint=f"casstore why {name}")
        if any(tables.get(NODE, digest) is not None for digest in digests):
            raise RefusedError(
                f"{subject} has the very bytes of a file list, which cannot be erased", hint="delete the versions"
            )
    files, drafts = _affected(engine, digests)
    counts = Counter(digest for _, held in files for digest in held)
    affected = tuple(dict.fromkeys(path for path, _ in files))
    pieces_found = tuple(
        ErasedChunk(str(engine.digest(digest)), lengths[digest], counts[digest]) for digest in sorted(digests)
    )
    report = Erasure(
        subject,
        str(name),
        reason,
        dry_run=True,
        bytes=sum(lengths.values()),
        chunks=pieces_found,
        affected=affected,
        versions=tuple(dict.fromkeys(split_path(path)[0] for path in affected)),
        drafts=drafts,
    )
    return digests, report


def _affected(engine: Engine, digests: set[bytes]) -> tuple[list[tuple[str, set[bytes]]], tuple[str, ...]]:
    """Every file that has any of some digests, and which; and pins that hold some."""
    files: list[tuple[str, set[bytes]]] = []
    drafts: list[str] = []
    for holder in explain.holders(engine, digests):
        if holder.kind == "pin":
            drafts.append(holder.ref)
            continue
        with engine.view.read() as tables:
            found = catalogue.find(tables, parse_reference(holder.ref), states=KEPT)
        for path in holder.paths:
            entry = find_entry(engine, found, path)
            assert entry is not None
            files.append((f"{holder.ref}/{path}", digests.intersection(_chunks_of(engine, entry))))
    return files, tuple(drafts)


def _chunks_of(engine: Engine, entry: Entry) -> Iterator[bytes]:
    return (digest for _, digest, _ in pieces(engine, entry))


def _resolve(engine: Engine, subject: str) -> tuple[Digest, set[bytes]]:
    """The digest of the content that is meant, and the digests of its chunks."""
    if subject.partition(":")[0] in ALGORITHMS and "/" not in subject:
        value = engine.parse_digest(subject)
        return engine.digest(value), _chunks_named(engine, subject, value)
    reference, path = split_path(subject)
    if not path:
        raise InvalidInputError(f"{subject!r} names no file", hint="name:vN/path, or the digest of the content")
    with engine.view.read() as tables:
        found = catalogue.find(tables, parse_reference(reference), states=KEPT)
    entry = find_entry(engine, found, path)
    if entry is None or entry.kind is not EntryKind.FILE:
        raise EntryNotFoundError(f"{found.label} has no file {path!r}", hint=f"casstore files {found.label}")
    name = content_digest(engine, entry)
    assert name is not None
    chunks = set(_chunks_of(engine, entry))
    if not chunks:
        raise InvalidInputError(f"{subject} is empty: there is nothing to erase")
    return name, chunks


def _chunks_named(engine: Engine, subject: str, digest: bytes) -> set[bytes]:
    with engine.view.read() as tables:
        known = tables.get(CHUNK, digest) is not None
        is_node = tables.get(NODE, digest) is not None
    if is_node:
        if engine.node(digest).kind != CHUNK_LIST:
            raise RefusedError(f"{subject} is a list of files, not content", hint="name a file: name:vN/path")
        return {chunk for _, chunk, _ in chunk_list(digest, engine.node)}
    if known:
        return {digest}
    # A file of a few chunks is named by a list that is not stored: only the files themselves tell.
    roots: set[bytes] = set()
    with engine.view.read() as tables:
        every = [
            Found(full_name(row), row, version)
            for row in collections(tables)
            for version in versions(tables, row.id, states=KEPT)
        ]
    for found in every:
        if found.version.root not in roots:
            roots.add(found.version.root)
            for entry in entries(engine, found):
                if len(entry.chunks) > 1:
                    name = content_digest(engine, entry)
                    if name is not None and name.value == digest:
                        return {chunk for chunk, _ in entry.chunks}
    raise NotFoundError(f"no content in this store is named {subject}", hint="name a file: name:vN/path")


# --- away with it --------------------------------------------------------------------------------


def _give_up(engine: Engine, digests: AbstractSet[bytes], reason: str, run: GCRun) -> None:
    def build(tables: Tables) -> Sequence[Record]:
        stored = [
            digest
            for digest in sorted(digests)
            if (row := tables.get(CHUNK, digest)) is not None and pack_of_row(row) != NO_PACK
        ]
        # Without any, an erasure that did not come to its end is being finished.
        return (Erase(tuple(stored), reason, run.actor),) if stored else ()

    engine.commit(build)


def _hits(
    engine: Engine,
    listed: dict[bytes, ObjectInfo],
    digests: AbstractSet[bytes],
    unread: list[str],
    progress: Progress,
) -> list[bytes]:
    """Packs that have any of some digests by their own account, or that give none and are not needed."""
    hits = []
    for position, (pack, info) in enumerate(sorted(listed.items())):
        progress("search", position + 1, len(listed))
        try:
            footer = read_footer(engine, pack, info.size)
        except NotFoundError:
            continue  # a collection was faster
        except (IntegrityError, FormatError) as error:
            with engine.view.read() as tables:
                row = pack_at(tables, pack)
            if row is None or row.state is not PackState.LIVE:
                hits.append(pack)
            else:
                unread.append(f"{pack.hex()}: it cannot be told what is in it: {error}")
            continue
        if not digests.isdisjoint(footer.content.digests):
            hits.append(pack)
    return hits


def _sweep(engine: Engine, digests: AbstractSet[bytes], run: GCRun, report: Erasure, progress: Progress) -> None:
    """Empty and delete every pack that has the bytes."""
    errors: list[str] = []
    for _ in range(SWEEPS):
        unread: list[str] = []
        listed = listed_packs(engine)
        hits = _hits(engine, listed, digests, unread, progress)
        report.remaining = unread + [f"{pack.hex()}: {_why(errors)}" for pack in hits]
        if not hits:
            break
        report.packs = max(report.packs, len(hits))
        report.rewritten += _empty(engine, hits, run, errors, progress)
        condemn_orphans(engine, {pack: listed[pack] for pack in hits}, ANY_AGE, run)
        chosen = {pack: listed[pack] for pack in hits}
        engine.view.refresh()
        ended, _ = clear(engine, listed_packs(engine), ended_packs(engine, chosen), -ANY_AGE, errors, progress)
        budget = Budget(None, None, engine.runtime.monotonic)
        report.deleted += reclaim(engine, chosen, ended, -ANY_AGE, budget, progress).packs
    sweep_temporary = getattr(engine.backend, "sweep_temp", None)
    if sweep_temporary is not None:
        # What a killed writer left half written may have the bytes, too. Nobody else is at work here now.
        sweep_temporary(ANY_AGE)
    # A name that was taken away, here or by somebody before, may come back with a power cut until it is synced.
    engine.backend.barrier(PACK_PREFIX)
    engine.backend.barrier(f"{TEMPORARY}/")


def _why(errors: Sequence[str]) -> str:
    return errors[-1] if errors else "its other content could not be moved"


def _empty(engine: Engine, hits: Sequence[bytes], run: GCRun, errors: list[str], progress: Progress) -> int:
    """Move what lives in some packs elsewhere and end them; returns how many ended."""
    engine.view.refresh()
    with engine.view.read() as tables:
        rows = [(pack, row) for pack in hits if (row := pack_at(tables, pack)) is not None]
        live = [(pack, row) for pack, row in rows if row.state is PackState.LIVE]
        plan = Plan(head_of(tables).seq, _dead_in(tables, {pack for pack, _ in live}), _fates(live))
    if not live:
        return 0
    budget = Budget(None, None, engine.runtime.monotonic)
    done = retire(engine, plan, budget, run, lambda _: True, progress)
    errors += done.errors
    errors += [why for _, why in done.skipped]
    errors += ["there is no room to move its other content" for _ in done.unmoved]
    return done.packs


def _fates(live: Sequence[tuple[bytes, PackRow]]) -> tuple[PackFate, ...]:
    return tuple(
        PackFate(pack, row.kind, row.size, row.raw, row.placed_raw, Fate.REPACK, "it has erased content")
        for pack, row in live
    )


def _dead_in(tables: Tables, packs: set[bytes]) -> Garbage:
    """What nothing holds in some packs; the rest of the garbage is left to a collection."""
    by_pack: dict[bytes, list[bytes]] = {}
    for digest, _ in tables.scan(ZERO):
        row = tables.get(CHUNK, digest)
        if row is not None and pack_of_row(row) in packs:
            by_pack.setdefault(pack_of_row(row), []).append(digest)
    return Garbage(by_pack=by_pack)
