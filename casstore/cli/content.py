"""Bytes in and out: init, put, get, checkout, files, cat."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from casstore.cli.command import Command, Session
from casstore.cli.values import Size, TimeToLive, parse_metadata, parse_ttl
from casstore.errors import EntryNotFoundError, InvalidInputError

if TYPE_CHECKING:
    from casstore.artifact import Artifact
    from casstore.checkout import CheckoutReport
    from casstore.model import Entry
    from casstore.version import Version

SHOWN = 10
"""paths a question lists"""
BLOCK = 3 * 1024 * 1024
"""bytes `cat` holds at a time; base64 needs a multiple of three"""


@click.command(cls=Command, exits={11: "there is a store, or something else, already"})
@click.argument("url", required=False)
@click.option(
    "--digest",
    type=click.Choice(["blake3", "sha256", "xxh3-128"]),
    default="blake3",
    show_default=True,
    help="What content is named by; cannot be changed later.",
)
@click.option("--chunk-average", type=Size(), help="Average size of a chunk, a power of two. Default: 32KiB.")
@click.pass_obj
def init(session: Session, /, *, url: str | None, digest: str, chunk_average: int | None) -> None:
    """Make an empty store at URL (default: --store).

    The digest xxh3-128 is about 5 times faster to compute than blake3, and only for stores whose every writer is
    trusted: it is no defence against deliberate collisions, with which one writer could give another's content
    other bytes. sha256 is for those who must.
    """
    from casstore.config import ChunkerParams
    from casstore.store import Store

    chunker = None if chunk_average is None else ChunkerParams.around(chunk_average)
    with Store.create(session.location() if url is None else url, digest=digest, chunker=chunker) as store:
        session.data("store", store.to_dict(), lambda: [store.url])


@click.command(
    cls=Command,
    exits={
        10: "what a URI points to, or the base, is not there",
        11: "the collection has another type, or two paths are in conflict",
        13: "the base is not latest any more, or another race was lost",
        14: "the store's policy refuses the type, or the place a URI leads to",
    },
)
@click.argument("path")
@click.option("--name", metavar="REF", help="[[entity/]project/]collection. Default: the last part of PATH.")
@click.option("--type", "kind", default="dataset", show_default=True, help="Type of the artifact.")
@click.option("-a", "--alias", "aliases", multiple=True, help="Alias for the version; may be repeated.")
@click.option("--tag", "tags", multiple=True, help="Tag for the version; may be repeated.")
@click.option("--meta", "assignments", metavar="KEY=VALUE", multiple=True, help="Metadata (text); may be repeated.")
@click.option("--meta-json", "meta_file", metavar="FILE", help="Metadata: a file with a JSON object.")
@click.option("--ttl", type=TimeToLive(), default="inherit", help="Time to live: 30d, 12h, none or inherit (default).")
@click.option(
    "--dedup",
    type=click.Choice(["latest", "any", "never"]),
    default="latest",
    show_default=True,
    help="Make no new version if the content equals the latest, or any, version.",
)
@click.option("--base", metavar="vN", help="The version the content was made from.")
@click.option("--strict-base", is_flag=True, help="Refuse (13) if the base is not latest any more.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Leave out what matches; may be repeated.")
@click.option("--include", metavar="GLOB", multiple=True, help="Take only files that match; may be repeated.")
@click.option(
    "--symlinks",
    type=click.Choice(["error", "skip", "follow", "store"]),
    help="What to do with symbolic links in a directory. Default: error.",
)
@click.option("--description", metavar="TEXT", help="Free text.")
@click.option("--path", "inner", metavar="NAME", help="Path inside the artifact; needed with -.")
@click.option("--no-latest", is_flag=True, help="Do not move the alias latest.")
@click.option("--rescan", is_flag=True, help="Read all files, also those that seem to be unchanged since the last put.")
@click.option("--no-checksum", is_flag=True, help="Of a URI: record it unread, also a directory as one entry.")
@click.option("--max-objects", metavar="N", type=int, help="Of a URI: objects it may stand for. Default: 10000000.")
@click.option("--allow-opaque", is_flag=True, help="Of a URI: record it although nothing knows its scheme.")
@click.option("--dry-run", is_flag=True, help="Say what would be read, and change nothing.")
@click.pass_obj
def put(
    session: Session,
    /,
    *,
    path: str,
    name: str | None,
    kind: str,
    aliases: tuple[str, ...],
    tags: tuple[str, ...],
    assignments: tuple[str, ...],
    meta_file: str | None,
    ttl: str,
    dedup: str,
    base: str | None,
    strict_base: bool,
    exclude: tuple[str, ...],
    include: tuple[str, ...],
    symlinks: str | None,
    description: str | None,
    inner: str | None,
    no_latest: bool,
    rescan: bool,
    no_checksum: bool,
    max_objects: int | None,
    allow_opaque: bool,
    dry_run: bool,
) -> None:
    """Log PATH, a file or directory or - for stdin or a URI to refer to, as the next version of a collection.

    Prints the version, "created" or "unchanged", the bytes of all its files, and the bytes that were new to the
    store.
    """
    from casstore.artifact import Artifact
    from casstore.names import CollectionName
    from casstore.reference import check_uri, last_part

    if path == "-" and (name is None or inner is None):
        raise click.UsageError("with - both --name and --path are needed")
    is_uri = "://" in path
    if not is_uri and (no_checksum or allow_opaque or max_objects is not None):
        raise click.UsageError("--no-checksum, --max-objects and --allow-opaque are for URIs")
    if name is None:
        name = last_part(check_uri(path)) if is_uri else os.path.basename(os.path.abspath(path))
    target = CollectionName.parse(name)
    artifact = Artifact(target.name, kind, description, parse_metadata(assignments, meta_file))
    if not is_uri and path != "-" and os.path.isdir(path):
        artifact.add_dir(
            path, inner, symlinks=symlinks or "error", include=include, exclude=exclude, trust_mtime=not rescan
        )
    elif exclude or include or symlinks:
        raise click.UsageError("--exclude, --include and --symlinks are for directories")
    elif path == "-":
        assert inner is not None
        artifact.add_stream(sys.stdin.buffer, inner)
    elif is_uri:
        artifact.add_reference(path, inner, not no_checksum, max_objects, allow_opaque=allow_opaque)
    else:
        artifact.add_file(path, inner, trust_mtime=not rescan)
    with session.store() as store:
        if dry_run:
            _plan(session, artifact, target.short)
            return
        with session.progress() as progress:
            version = store.log_artifact(
                artifact,
                aliases=aliases,
                tags=tags,
                ttl=parse_ttl(ttl),
                dedup=dedup,
                base=base,
                project=f"{target.entity}/{target.project}",
                if_base_latest=strict_base,
                move_latest=not no_latest,
                progress=progress,
            )
        _report(session, version)


def _plan(session: Session, artifact: Artifact, name: str) -> None:
    entries = list(artifact.files())
    size = sum(entry.length for entry in entries)
    values = {"name": name, "files": len(entries), "bytes": size}
    session.data("put-plan", values, lambda: [f"{name} would read {len(entries)} files, {size} bytes"])


def _report(session: Session, version: Version) -> None:
    values: dict[str, object] = {}
    if session.json:
        values = {
            "created": version.created,
            "bytes": version.size,
            "new_bytes": version.new_bytes,
            "new_stored_bytes": version.new_stored_bytes,
            "latest_before": version.latest_before,
            "ignored": list(version.ignored),
            "version": version.to_dict(),
        }
    outcome = "created" if version.created else "unchanged"
    session.data("put", values, lambda: [f"{version.ref} {outcome} {version.size} {version.new_bytes}"])
    if version.ignored:
        session.note(f"{version.ref} was there already and keeps its own {', '.join(version.ignored)}")


@click.command(
    cls=Command,
    exits={
        10: "no such version, nothing in it matches, or a reference is gone",
        11: "a file is in the way (--overwrite error), or a directory is where a file belongs",
        14: "the directory is in the store, or policy keeps from fetching a reference",
        20: "stored bytes are damaged, a reference changed, or --verify-only found a difference",
    },
)
@click.argument("ref")
@click.option("-o", "--output", "root", metavar="DIR", help="Where to. Default: ./artifacts/NAME:vN.")
@click.option("--prefix", metavar="P", help="Only this path, or what is below it.")
@click.option("--glob", metavar="G", help="Only paths that match; * also matches /.")
@click.option("--verify-only", is_flag=True, help="Write nothing: compare DIR with the version.")
@click.option(
    "--overwrite",
    type=click.Choice(["replace", "keep", "error"]),
    default="replace",
    show_default=True,
    help="What to do with files that are there; others in DIR are left alone.",
)
@click.option("--allow-missing-references", is_flag=True, help="Leave out references that are gone or changed.")
@click.pass_obj
def get(
    session: Session,
    /,
    *,
    ref: str,
    root: str | None,
    prefix: str | None,
    glob: str | None,
    verify_only: bool,
    overwrite: str,
    allow_missing_references: bool,
) -> None:
    """Download a version, or a part of it, verified; prints the directory."""
    if verify_only and (prefix is not None or glob is not None):
        raise click.UsageError("--verify-only is for the whole version: leave out --prefix and --glob")
    with session.store() as store:
        version = store.get(ref)
        if verify_only:
            from casstore.cli.upkeep import report_verification

            report_verification(session, version, os.path.join("artifacts", version.name) if root is None else root)
            return
        with session.progress() as progress:
            report = version.download(
                root,
                allow_missing_references,
                path_prefix=prefix,
                glob=glob,
                overwrite=overwrite,
                progress=progress,
            )
        if not report.matched and (prefix is not None or glob is not None):
            raise EntryNotFoundError(f"nothing in {version.ref} matches", hint=f"casstore files {version.ref}")
        values = {
            "ref": version.ref,
            "path": report.path,
            "files": report.files,
            "bytes": report.bytes,
            "linked": report.linked,
            "skipped": report.skipped,
        }
        session.data("get", values, lambda: [report.path])
        if allow_missing_references:
            _note_skipped(session, report.skipped)


def _note_skipped(session: Session, paths: list[str]) -> None:
    for path in paths:
        session.note(f"skipped {path}")


@click.command(
    cls=Command,
    exits={
        10: "no such version, or a reference is gone",
        11: "DIR is a file, or its file system takes two paths for one",
        13: "somebody else is at work in DIR",
        14: "not confirmed, or DIR must not be replaced: see above; nothing was changed",
        20: "stored bytes are damaged, or a reference changed; nothing was deleted",
    },
)
@click.argument("ref")
@click.argument("root", metavar="DIR")
@click.option("--force", is_flag=True, help="Also a directory that is not empty and that no checkout made.")
@click.option("--dry-run", is_flag=True, help="Say what would be written and deleted, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--allow-missing-references", is_flag=True, help="Leave out references that are gone or changed.")
@click.pass_obj
def checkout(
    session: Session,
    /,
    *,
    ref: str,
    root: str,
    force: bool,
    dry_run: bool,
    yes: bool,
    allow_missing_references: bool,
) -> None:
    """Make DIR hold just the files of a version: all else in it is deleted. Asks first if anything is; see --yes.

    Files that are right already are not written again. DIR must be empty or have been made by checkout, unless
    --force; it is never /, a home, the store, above one of those, in the store, or a mount point.
    """

    def confirm(plan: CheckoutReport) -> None:
        if yes:
            return
        for word, paths in (("delete", plan.deleted), ("replace", plan.replaced)):
            for path in paths[:SHOWN]:
                session.note(f"{word}  {path}")
            if len(paths) > SHOWN:
                session.note(f"{word}  {len(paths) - SHOWN} more")
        counts = f"{len(plan.deleted)} and replace {len(plan.replaced)}"
        session.ask(f"Delete {counts} paths in {plan.path}? [y/N]", ("y", "Y", "yes"), "--yes; --dry-run lists them")

    with session.store() as store:
        version = store.get(ref)
        with session.progress() as progress:
            report = version.checkout(
                root,
                force=force,
                dry_run=dry_run,
                confirm=confirm,
                allow_missing_references=allow_missing_references,
                progress=progress,
            )
        plan = [
            f"{word}  {path}"
            for word, paths in (("delete", report.deleted), ("replace", report.replaced), ("write", report.written))
            for path in paths
        ]
        session.data("checkout", asdict(report), lambda: plan if dry_run else [report.path])
        _note_skipped(session, report.skipped)


@click.command(cls=Command, exits={10: "no such version, or nothing in it has the prefix"})
@click.argument("ref")
@click.option("--prefix", metavar="P", help="Only this path, or what is below it.")
@click.option("--start", metavar="CURSOR", help="Go on after this path: `next` of the listing before.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N paths.")
@click.pass_obj
def files(session: Session, /, *, ref: str, prefix: str | None, start: str | None, limit: int | None) -> None:
    """List the files of a version, in byte order of their paths: size and path, one per line."""
    with session.store() as store:
        version = store.get(ref)
        page = _Page(version.files(prefix, start=start), limit)
        if prefix is not None and start is None and page.empty:
            raise EntryNotFoundError(f"nothing in {version.ref} matches", hint=f"casstore files {version.ref}")
        if session.json:
            session.stream("files", {"ref": version.ref}, "files", map(_entry, page), lambda: {"next": page.next})
            return
        for entry in page:
            leads = entry.target if entry.uri is None else entry.uri
            link = "" if leads is None else f" -> {leads}"
            session.line(f"{'?' if entry.size is None else entry.size:>12}  {entry.path}{link}")
        if page.next is not None:
            session.note(f"there is more: --start {page.next!r}")


class _Page:
    """The first entries of a listing, and where the rest begins."""

    def __init__(self, entries: Iterator[Entry], limit: int | None) -> None:
        self._entries = entries
        self._limit = limit
        self._ahead = next(entries, None)
        self.empty = self._ahead is None
        self.next: str | None = None

    def __iter__(self) -> Iterator[Entry]:
        given = 0
        while (entry := self._ahead) is not None:
            self._ahead = next(self._entries, None)
            yield entry
            given += 1
            if given == self._limit and self._ahead is not None:
                self.next = entry.path
                return


def _entry(entry: Entry) -> dict[str, object]:
    return {
        "path": entry.path,
        "kind": str(entry.kind),
        "size": entry.size,
        "digest": None if entry.digest is None else str(entry.digest),
        "mode": entry.mode,
        "target": entry.target,
        "uri": entry.uri,
        "etag": entry.etag,
        "version_id": entry.version_id,
        "unverified": entry.unverified,
        "volatile": entry.volatile,
        "attrs": entry.attrs,
    }


@click.command(
    cls=Command,
    exits={
        10: "no such version, no such path in it, or what it refers to is gone",
        20: "stored bytes are damaged, or what it refers to is not what it was",
    },
)
@click.argument("ref")
@click.argument("path", required=False)
@click.pass_obj
def cat(session: Session, /, *, ref: str, path: str | None) -> None:
    """Write a file of a version to stdout: REF PATH, or REF/PATH where REF has a selector (ds:latest/a.txt)."""
    from casstore.names import split_path

    if path is None:
        ref, path = split_path(ref)
    if not path:
        raise InvalidInputError(f"{ref!r} names no path", hint="casstore cat REF PATH, or casstore cat NAME:vN/PATH")
    with session.store() as store:
        version = store.get(ref)
        entry = version.get_entry(path)
        if entry.kind not in {"file", "reference"}:
            raise InvalidInputError(f"{path!r} in {version.ref} is a {entry.kind}, not a file")
        with entry.open() as file:
            blocks = iter(lambda: file.read(BLOCK), b"")
            if session.json:
                digest = None if entry.digest is None else str(entry.digest)
                values = {"ref": version.ref, "path": path, "size": entry.size, "digest": digest}
                session.stream_text("cat", {**values, "encoding": "base64"}, "content", encode_blocks(blocks))
                return
            out = sys.stdout.buffer
            for block in blocks:
                out.write(block)
            out.flush()


def encode_blocks(blocks: Iterator[bytes]) -> Iterator[str]:
    """Base64 of the blocks together, in parts."""
    import base64

    carry = b""
    for block in blocks:
        carry += block
        whole = len(carry) - len(carry) % 3
        yield base64.b64encode(carry[:whole]).decode()
        carry = carry[whole:]
    yield base64.b64encode(carry).decode()
