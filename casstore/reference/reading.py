"""What a reference points to, found when it is added and proved when it is read."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from casstore.digest import Digest, hasher
from casstore.errors import (
    BackendError,
    CasstoreError,
    InvalidInputError,
    LimitError,
    ReferenceChangedError,
    UnsupportedSchemeError,
)
from casstore.model import Entry, EntryKind, Pointer
from casstore.names import is_text
from casstore.reference.files import RECORD_AGAIN
from casstore.reference.handler import ALLOW, ANYWHERE, ERROR, MAX_OBJECTS, Access, Handler, Resolved
from casstore.reference.registry import handler_for, known_handler
from casstore.reference.uri import check_uri, shown

BLOCK = 1024 * 1024
SPOOL_BYTES = 8 * 1024 * 1024
MAX_MARK = 1024
"""characters of an ETag or of the version of an object"""


def resolve(
    uri: object,
    *,
    checksum: bool = True,
    limit: int = MAX_OBJECTS,
    allow_opaque: bool = False,
    access: Access = ANYWHERE,
) -> list[Resolved]:
    """The object behind a URI, or all objects below it. Raises `InvalidInputError` and what the handler raises."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInputError(f"max_objects={limit!r} is not a number of objects", hint="1 or more")
    check_access(access)
    text = check_uri(uri)
    handler = handler_for(text) if allow_opaque else known_handler(text)
    if handler is None:
        return [Resolved("", None, Pointer(text, unverified=True))]
    found: list[Resolved] = []
    with _foreign(text):
        for item in handler.resolve(text, checksum=checksum, limit=limit, access=access):
            found.append(_sound(item))
            if len(found) > limit:
                raise LimitError(
                    f"{len(found)} objects found at {shown(text)}, at most {limit} are allowed",
                    hint="a part of them, or max_objects=",
                )
    return found


def _sound(item: object) -> Resolved:
    """What a handler found, if it can be recorded. Raises `BackendError`, `InvalidInputError`."""
    pointer = item.pointer if isinstance(item, Resolved) else None
    if not (isinstance(item, Resolved) and isinstance(item.name, str) and isinstance(pointer, Pointer)):
        raise BackendError(f"the handler gave {item!r:.100}, not an object that was found")
    check_uri(pointer.uri)
    size: object = item.size
    marks: tuple[object, ...] = (pointer.etag, pointer.version_id)
    if not (
        (size is None or (isinstance(size, int) and 0 <= size < 1 << 63))
        and all(mark is None or (isinstance(mark, str) and len(mark) <= MAX_MARK and is_text(mark)) for mark in marks)
        and (pointer.checksum is None or isinstance(pointer.checksum, Digest))
    ):
        raise BackendError(f"the handler gave {item!r:.200}, which cannot be recorded")
    return item


def check_access(access: Access) -> None:
    """Raise `InvalidInputError` for a limit that is none."""
    if access.on_private_address not in (ALLOW, ERROR):
        raise InvalidInputError(
            f"on_private_address={access.on_private_address!r} is not valid", hint=f"{ALLOW} or {ERROR}"
        )
    timeout: object = access.timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 86_400:
        raise InvalidInputError(f"timeout={timeout!r} is not a time", hint="seconds, more than 0, at most a day")


def fetch(entry: Entry, access: Access = ANYWHERE) -> Iterator[bytes]:
    """The bytes a reference points to, in blocks of at most 1 MiB. Proved only when the last one was taken.

    Raises `ReferenceMissingError`; `ReferenceChangedError` if the validator, the size, or the digest of the bytes
    really read is another than was recorded; `UnsupportedSchemeError`, `RefusedError`, `BackendError`. Nothing is
    remembered: each call asks again.
    """
    handler = _handler(entry)
    with _foreign(_uri(entry)), handler.open(entry, access) as body:
        yield from _proved(entry, body)


def open_verified(entry: Entry, access: Access = ANYWHERE) -> BinaryIO:
    """The bytes a reference points to as a seekable file, proved before it is given out. Errors as `fetch`.

    A local file is read in place, and refused at the first read after somebody changed it; what comes from elsewhere
    is kept in a temporary file.
    """
    handler = _handler(entry)
    with _foreign(_uri(entry)):
        body = handler.open(entry, access)
        try:
            if body.seekable():
                for _ in _proved(entry, body):
                    pass
                body.seek(0)
                return body
        except BaseException:
            body.close()
            raise
        with body:
            return _kept(_proved(entry, body))


def check(entry: Entry, access: Access = ANYWHERE) -> bool:
    """Look whether a reference still points to what was recorded, with as little reading as shows it.

    True if so; False if it is there and nothing recorded can show it (unverified, volatile, opaque). Errors as `fetch`.
    """
    uri = _uri(entry)
    handler = handler_for(check_uri(uri))
    if handler is None:
        return False
    with _foreign(uri):
        return handler.check(entry, access)


def _uri(entry: Entry) -> str:
    if entry.kind is not EntryKind.REFERENCE or entry.uri is None:
        raise InvalidInputError(f"{entry.path!r} is a {entry.kind}, not a reference")
    return entry.uri


def _handler(entry: Entry) -> Handler:
    """Also what was recorded is checked again: a store may come from anywhere."""
    uri = check_uri(_uri(entry))
    handler = handler_for(uri)
    if handler is None and entry.unverified:
        raise UnsupportedSchemeError(
            f"{entry.path!r} refers to {shown(uri)}, which no handler can read",
            hint="read it by other means, or install a handler (entry points casstore.references)",
        )
    return handler or known_handler(uri)


def _proved(entry: Entry, body: BinaryIO) -> Iterator[bytes]:
    uri = shown(_uri(entry))
    hashing = None if entry.checksum is None else hasher(entry.checksum.algorithm)
    size = 0
    while block := body.read(BLOCK):
        size += len(block)
        if entry.size is not None and size > entry.size:
            raise ReferenceChangedError(f"{uri} has more than {entry.size} bytes", hint=RECORD_AGAIN)
        if hashing is not None:
            hashing.update(block)
        yield block
    if entry.size is not None and size != entry.size:
        raise ReferenceChangedError(f"{uri} has {size} bytes, not {entry.size}", hint=RECORD_AGAIN)
    if hashing is not None and entry.checksum is not None and hashing.digest() != entry.checksum.value:
        raise ReferenceChangedError(f"{uri} has other content than was recorded", hint=RECORD_AGAIN)


def _kept(blocks: Iterator[bytes]) -> BinaryIO:
    """A temporary file with some blocks."""
    import tempfile

    spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - handed out
    try:
        for block in blocks:
            try:
                spool.write(block)
            except OSError as error:
                failure = BackendError(
                    f"cannot write a temporary file: {error.strerror}", hint="set TMPDIR to another disk"
                )
                failure.errno = error.errno
                raise failure from None
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return io.BufferedReader(spool)


@contextmanager
def _foreign(uri: str) -> Iterator[None]:
    """What a handler of somebody else raises, as ours."""
    try:
        yield
    except (CasstoreError, GeneratorExit):
        raise
    except Exception as error:
        raise BackendError(
            f"cannot read {shown(uri)}: {error!r:.200}", hint="this comes from the handler of the scheme"
        ) from error
