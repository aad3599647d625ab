"""What the user wants logged: a draft of named content. Knows no store.

Files are remembered by path and read once, when the artifact is logged; bytes and streams are spooled to an
unnamed temporary file. Every method either succeeds or leaves the draft as it was.
"""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import IO, BinaryIO

from casstore.errors import (
    ArtifactFinalizedError,
    EntryNotFoundError,
    InvalidInputError,
    PathConflictError,
)
from casstore.model import INHERIT, Entry, EntryKind, Inherit, JsonMap
from casstore.names import (
    canonical_attrs,
    canonical_metadata,
    check_description,
    check_name,
    check_path,
    check_type,
    ttl_seconds,
)
from casstore.places import Base, Places
from casstore.reference import ALLOW, MAX_OBJECTS, TIMEOUT, Access
from casstore.sources import (
    COPY_BYTES,
    Globs,
    LocalFile,
    Referred,
    Scan,
    Source,
    Taken,
    local_file,
    source_path,
    spooled,
)

SYMLINKS = ("error", "skip", "follow", "store")
NEW_FILE_MODES = ("x", "w", "xb", "wb", "xt", "wt")


class Artifact:
    """A draft: a name, a type, labels, and paths with content. Not thread-safe.

    ``name`` and ``type``: 1 to 128 of ``A-Z a-z 0-9 . _ -``. ``metadata``: a JSON object with at most 100
    top-level keys and 1 MiB. Raises `InvalidNameError`, `InvalidMetadataError`, `LimitError`.
    """

    def __init__(
        self,
        name: str,
        type: str = "file",  # noqa: A002 - the word users of artifacts know
        description: str | None = None,
        metadata: JsonMap | None = None,
    ) -> None:
        self._name = check_name(name)
        self._type = check_type(type)
        self._description = check_description(description)
        self._metadata: dict[str, object] = {}
        self.metadata = metadata
        self._places = Places()
        self._project: str | None = None
        self._finalized = False
        self._ttl: timedelta | Inherit | None = INHERIT

    def __repr__(self) -> str:
        added, removed = len(self._places.sources), len(self._places.removed)
        return f"<Artifact {self._name!r} type {self._type!r}, {added} added, {removed} removed>"

    # --- labels

    @property
    def name(self) -> str:
        """The collection this will be logged to."""
        return self._name

    @property
    def type(self) -> str:
        """The type of the artifact; one type per collection."""
        return self._type

    @property
    def description(self) -> str:
        """Free text, at most 64 KiB; never part of the digest."""
        return self._description

    @description.setter
    def description(self, text: str | None) -> None:
        self._description = check_description(text)

    @property
    def metadata(self) -> dict[str, object]:
        """A JSON object; checked when it is assigned and again when the artifact is logged."""
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: JsonMap | None) -> None:
        canonical_metadata(metadata)
        self._metadata = dict(metadata or {})

    @property
    def ttl(self) -> timedelta | Inherit | None:
        """Time to live of the version it becomes: whole seconds up to 100 years, None (never), INHERIT (the default).

        `log_artifact` can say otherwise. Raises `InvalidInputError` when it is assigned.
        """
        return self._ttl

    @ttl.setter
    def ttl(self, ttl: timedelta | Inherit | None) -> None:
        ttl_seconds(ttl)
        self._ttl = ttl

    @property
    def base(self) -> str | None:
        """``name:vN`` this draft was made from."""
        return None if self._places.base is None else self._places.base.name

    # --- adding

    def add_file(
        self,
        local_path: str | os.PathLike[str],
        name: str | None = None,
        is_tmp: bool | None = None,  # noqa: FBT001 - W&B's signature
        skip_cache: bool | None = None,  # noqa: FBT001
        policy: str = "mutable",
        overwrite: bool = False,  # noqa: FBT001, FBT002
        *,
        trust_mtime: bool = True,
        attrs: JsonMap | None = None,
    ) -> Entry:
        """Add a regular file; its path in the artifact is ``name``, or its own last part.

        The file is read when the artifact is logged and must not change until then. Adding the same content at
        the same path again does nothing; other content raises `PathConflictError` without ``overwrite``.
        If the store has its content, and size, mtime, ctime and inode tell that it is as a log on this host has read
        it, it is not read again (`casstore.statcache`) unless ``trust_mtime=False``.
        ``attrs``: a JSON object of at most 4 KiB kept with the entry (`Entry.attrs`). It is part of the version's
        digest: other attrs, another version. Raises `InvalidInputError` if it is not a regular file,
        `InvalidPathError`, `InvalidMetadataError`.
        """
        _warn_ignored(is_tmp=is_tmp, skip_cache=skip_cache)
        if policy not in ("mutable", "immutable"):
            raise InvalidInputError(f"policy {policy!r} is not valid", hint="mutable or immutable")
        local = source_path(local_path)
        source = replace(local_file(local), trusted=trust_mtime, attrs_json=canonical_attrs(attrs))
        path = check_path(os.path.basename(local.rstrip("/")) if name is None else name)
        self._insert({path: source}, overwrite=overwrite)
        return self._places.entry(path)

    def add_bytes(
        self,
        data: bytes | bytearray | memoryview,
        name: str,
        overwrite: bool = False,  # noqa: FBT001, FBT002
        *,
        attrs: JsonMap | None = None,
    ) -> Entry:
        """Add some bytes under a path. ``attrs`` and errors as `add_file`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidInputError(f"add_bytes needs bytes, not {type(data).__name__}")
        return self.add_stream(io.BytesIO(bytes(data)), name, overwrite, attrs=attrs)

    def add_stream(
        self,
        fileobj: BinaryIO | IO[bytes],
        name: str,
        overwrite: bool = False,  # noqa: FBT001, FBT002
        *,
        attrs: JsonMap | None = None,
    ) -> Entry:
        """Add what a binary file object holds from here on; it is read now. ``attrs`` and errors as `add_file`.

        What its ``read`` raises passes through; nothing is added then.
        """
        path = check_path(name)
        attrs_json = canonical_attrs(attrs)
        self._check_open()
        if not callable(getattr(fileobj, "read", None)):
            raise InvalidInputError(f"add_stream needs a binary file object, not {type(fileobj).__name__}")
        from casstore.spool import Spool

        spool = Spool()
        while True:
            block: object = fileobj.read(COPY_BYTES)
            if not isinstance(block, bytes | bytearray | memoryview):
                # None is what a stream that does not block says when there is nothing yet: not the end.
                raise InvalidInputError(f"add_stream got {type(block).__name__} instead of bytes from the stream")
            if not block:
                break
            spool.write(block)
        self._insert({path: spooled(spool, attrs_json)}, overwrite=overwrite)
        return self._places.entry(path)

    @contextmanager
    def new_file(
        self, name: str, mode: str = "x", encoding: str | None = None, *, attrs: JsonMap | None = None
    ) -> Iterator[IO[str] | IO[bytes]]:
        """A file to write into; it is added when the block ends, and not at all if the block raises.

        Modes ``x`` and ``w``, with ``b`` for bytes: ``x`` refuses a path that exists, ``w`` replaces it. ``attrs`` as
        `add_file`.
        """
        attrs_json = canonical_attrs(attrs)
        if mode not in NEW_FILE_MODES:
            raise InvalidInputError(f"mode {mode!r} is not valid", hint="x, w, xb or wb")
        path = check_path(name)
        self._check_open()
        if "x" in mode and self._places.has(path):
            raise PathConflictError(f"{path!r} is in the artifact already", hint="use mode w to replace it")
        if self._places.is_directory(path):
            raise PathConflictError(f"{path!r} is a directory in the artifact")
        self._places.check_above(path, {})
        from casstore.spool import Spool

        spool = Spool()
        if "b" in mode:
            if encoding is not None:
                raise InvalidInputError("a binary file has no encoding")
            yield spool
        else:
            text = io.TextIOWrapper(spool, encoding=_encoding(encoding), newline="")
            yield text
            text.flush()
            text.detach()
        self._insert({path: spooled(spool, attrs_json)}, overwrite="w" in mode)

    def add_dir(
        self,
        local_path: str | os.PathLike[str],
        name: str | None = None,
        merge: bool = False,  # noqa: FBT001, FBT002
        *,
        symlinks: str = "error",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        keep_mode: bool = False,
        keep_empty_dirs: bool = False,
        allow_outside: bool = False,
        skip_cache: bool | None = None,
        policy: str = "mutable",
        trust_mtime: bool = True,
    ) -> None:
        """Add a directory tree, at the artifact's root or below ``name``. All of it or nothing.

        A path that is there with other content raises `PathConflictError`; ``merge=True`` replaces it instead,
        and never removes anything. ``symlinks``: ``error`` (listing them), ``skip``, ``follow`` (inside the
        tree only, unless ``allow_outside``), or ``store`` as links. ``include`` and ``exclude`` are globs over
        the relative path; a glob without ``/`` also matches any single part. Anything that is not a file, a
        directory or a link raises `InvalidInputError`. The marker of a checkout at the top is left out.
        ``trust_mtime``: as `add_file`, of each file.
        """
        _warn_ignored(skip_cache=skip_cache)
        if symlinks not in SYMLINKS:
            raise InvalidInputError(f"symlinks={symlinks!r} is not valid", hint=", ".join(SYMLINKS))
        if policy not in ("mutable", "immutable"):
            raise InvalidInputError(f"policy {policy!r} is not valid", hint="mutable or immutable")
        self._check_open()
        local = source_path(local_path)
        if not os.path.isdir(local):
            what = "is not a directory" if os.path.lexists(local) else "does not exist"
            raise InvalidInputError(f"{local!r} {what}")
        prefix = "" if name is None else check_path(name.removesuffix("/") if isinstance(name, str) else name) + "/"
        globs = Globs(include, exclude)
        scan = Scan(local, symlinks, globs, allow_outside=allow_outside, keep_mode=keep_mode, trusted=trust_mtime)
        found = scan.run(keep_empty_dirs=keep_empty_dirs)
        for path in scan.odd if not prefix else [prefix + relative for relative, _ in found]:
            check_path(path)
        sources = {prefix + relative: source for relative, source in found} if prefix else dict(found)
        self._insert(sources, overwrite=merge, alone=True)

    def add_entry(
        self,
        entry: Entry,
        name: str | None = None,
        overwrite: bool = False,  # noqa: FBT001, FBT002
        *,
        attrs: JsonMap | None = None,
    ) -> Entry:
        """Take over an entry of a logged version of the same store, sharing its chunks. Errors as `add_file`.

        Its attrs stay, unless others are given.
        """
        if not isinstance(entry, Entry):
            raise InvalidInputError(f"{entry!r:.200} is not an entry", hint="version.get_entry(path)")
        if entry.reader is None:
            raise InvalidInputError(f"{entry.path!r} is not an entry of a logged version")
        path = check_path(entry.path if name is None else name)
        attrs_json = entry.attrs_json if attrs is None else canonical_attrs(attrs)
        self._insert({path: Taken(replace(entry, path=path, attrs_json=attrs_json))}, overwrite=overwrite)
        return self._places.entry(path)

    def add_reference(
        self,
        uri: str | Entry,
        name: str | None = None,
        checksum: bool = True,  # noqa: FBT001, FBT002 - W&B's signature
        max_objects: int | None = MAX_OBJECTS,
        *,
        overwrite: bool = False,
        allow_opaque: bool = False,
        on_private_address: str = ALLOW,
        timeout: float = TIMEOUT,
        attrs: JsonMap | None = None,
    ) -> list[Entry]:
        """Record where content is, and how to tell that it is still the same; its bytes are not stored.

        ``file:///…``: size and digest of the content, read now; a directory gives one entry for each file in it, at
        the root or below ``name``. ``http(s)://``: the size and the ETag that the server gives; an entry without ETag
        or with a weak one is ``volatile``. Other schemes need a handler (`casstore.reference.register`, entry points
        ``casstore.references``), or ``allow_opaque=True``, which records the URI unseen. Without ``checksum`` nothing
        is read: one ``unverified`` entry for the URI, also for a directory. An `Entry` of a logged version: as
        `add_entry`. Without ``name`` the last part of the URI's path. All of it or nothing.

        ``on_private_address="error"`` refuses hosts with an address that is not public, for URIs that others gave;
        ``timeout``: seconds without an answer. Raises `InvalidInputError` (also for what would store a secret: a user
        or password, a signed URL), `LimitError` for more than ``max_objects``, `UnsupportedSchemeError`,
        `ReferenceMissingError`, `RefusedError`, `BackendError`, and as `add_file`.
        """
        from casstore.reference import last_part, resolve, shown

        self._check_open()
        limit = MAX_OBJECTS if max_objects is None else max_objects
        access = Access(on_private_address=on_private_address, timeout=timeout)
        if isinstance(uri, Entry):
            return [self.add_entry(uri, name, overwrite, attrs=attrs)]
        attrs_json = canonical_attrs(attrs)
        below = None if name is None else check_path(name.removesuffix("/") if isinstance(name, str) else name)
        items = resolve(uri, checksum=checksum, limit=limit, allow_opaque=allow_opaque, access=access)
        found: dict[str, Source] = {}
        for item in items:
            if item.name:
                inner = check_path(item.name)
                path = inner if below is None else f"{below}/{inner}"
            else:
                path = last_part(uri) if below is None else below
            if not path:
                raise InvalidInputError(f"{shown(uri)} gives no name for the reference", hint="name=")
            entry = Entry(check_path(path), EntryKind.REFERENCE, item.size, pointer=item.pointer, attrs_json=attrs_json)
            if path in found:
                raise PathConflictError(f"two objects at {shown(uri)} have the name {path!r}")
            found[path] = Referred(entry)
        self._insert(found, overwrite=overwrite)
        return [self._places.entry(path) for path in found]

    def _insert(self, found: dict[str, Source], *, overwrite: bool, alone: bool = False) -> None:
        self._check_open()
        self._places.insert(found, overwrite=overwrite, alone=alone)

    def _check_open(self) -> None:
        if self._finalized:
            raise ArtifactFinalizedError(
                f"artifact {self._name!r} is finalized", hint="make a draft of the version: version.new_draft()"
            )

    # --- removing and looking

    def remove(self, item: str | Entry) -> int:
        """Remove a path, or everything below a directory path; returns how many entries went.

        Raises `EntryNotFoundError`.
        """
        self._check_open()
        path = item.path if isinstance(item, Entry) else item
        if not isinstance(path, str):
            raise InvalidInputError(f"{path!r} is not a path")
        name = path.rstrip("/")
        gone = self._places.paths_at(name, directory=path != name)
        if not gone:
            raise EntryNotFoundError(f"{path!r} is not in the artifact")
        for found in gone:
            self._places.take_out(found)
        return len(gone)

    def get_entry(self, name: str) -> Entry:
        """The entry at a path. Raises `EntryNotFoundError`."""
        if not self._places.has(name):
            raise EntryNotFoundError(f"{name!r} is not in the artifact")
        return self._places.entry(name)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._places.has(path)

    def files(self) -> Iterator[Entry]:
        """All entries of the draft, in path order."""
        return self._places.entries()

    def get_added_local_path_name(self, local_path: str | os.PathLike[str]) -> str | None:
        """Where in the draft a local file was added, or None."""
        wanted = os.path.abspath(source_path(local_path))
        for path, source in self._places.sources.items():
            if isinstance(source, LocalFile) and os.path.abspath(source.path) == wanted:
                return path
        return None

    def finalize(self) -> None:
        """Freeze the content: every later change of it raises `ArtifactFinalizedError`."""
        self._finalized = True

    def is_draft(self) -> bool:
        """True until the artifact is logged or finalized."""
        return not self._finalized

    # --- for ingest

    def changed(self) -> int:
        """How many paths differ from the base, at most."""
        return len(self._places.sources) + len(self._places.removed)

    def changes(self) -> list[tuple[str, Source | None]]:
        """Paths that differ from the base, in byte order, with their new content or None."""
        return self._places.changes()


def draft_of(base: Base, name: str, kind: str, description: str, metadata: JsonMap, project: str) -> Artifact:
    """A draft with the content of a stored version (used by ``Version.new_draft``)."""
    artifact = Artifact(name, kind, description, metadata)
    artifact._places.base = base  # noqa: SLF001 - the other constructor
    artifact._project = project  # noqa: SLF001
    return artifact


def draft_base(artifact: Artifact) -> tuple[Base | None, str | None]:
    """The version a draft starts from, and the ``entity/project`` it belongs to."""
    return artifact._places.base, artifact._project  # noqa: SLF001


def referred_files(artifact: Artifact) -> Iterator[str]:
    """URIs of local files that a draft refers to, without those of its base."""
    for source in artifact._places.sources.values():  # noqa: SLF001
        if isinstance(source, Referred | Taken) and source.entry.uri is not None:
            from casstore.reference import scheme_of

            uri = source.entry.uri
            if scheme_of(uri) == "file":
                yield uri


def foreign_path(artifact: Artifact, store: str) -> str | None:
    """A path (or the base) of a draft whose content is in another store, or None."""
    base = artifact._places.base  # noqa: SLF001
    if base is not None and base.store != store:
        return base.name
    for path, source in artifact._places.sources.items():  # noqa: SLF001
        if isinstance(source, Taken) and source.entry.reader is not None and source.entry.reader.store != store:
            return path
    return None


def _encoding(name: str | None) -> str:
    try:
        with io.TextIOWrapper(io.BytesIO(), encoding=name or "utf-8") as text:  # codecs also knows those of bytes
            return text.encoding
    except (LookupError, TypeError, ValueError):
        raise InvalidInputError(f"encoding {name!r} is not known") from None


def _warn_ignored(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            warnings.warn(f"{name}= has no effect in casstore", DeprecationWarning, stacklevel=3)


__all__ = ["Artifact", "Base", "draft_base", "draft_of", "foreign_path", "referred_files"]
