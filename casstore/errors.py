"""The exception tree: every error casstore raises, its code, its exit status.

::

    CasstoreError                                1
    ├── InvalidInputError (ValueError)           2   InvalidNameError, InvalidPathError,
    │                                                InvalidMetadataError, InvalidSizeError,
    │                                                UnsupportedSchemeError, LimitError
    ├── NotFoundError (KeyError)                10   StoreNotFoundError, CollectionNotFoundError,
    │                                                VersionNotFoundError, EntryNotFoundError,
    │                                                ReferenceMissingError
    ├── AlreadyExistsError (FileExistsError)    11   PathConflictError, NameTakenError,
    │                                                TypeConflictError
    ├── ReadOnlyError (PermissionError)         12
    ├── ConflictError                           13   StaleBaseError, UpsertConflictError,
    │                                                LeaseLostError, UseCancelledError, StoreBusyError,
    │                                                WaitTimeoutError (TimeoutError)
    ├── RefusedError                            14   AliasGuardError, LinkGuardError, ProtectedError,
    │                                                InUseError, ParentDeletedError, GCDisabledError,
    │                                                QuotaExceededError, ConfirmationRequired,
    │                                                ArtifactFinalizedError, ArtifactNotLoggedError
    ├── IntegrityError                          20   ChunkMissingError, DigestMismatchError,
    │                                                VerificationError (ValueError),
    │                                                ReferenceChangedError
    ├── FormatError                             21   UnsupportedFormatError
    └── BackendError (OSError)                  30   TransientBackendError

``code`` is stable and append-only; ``hint`` names the next command; ``exit_code`` is what the CLI returns.
No error of lmdb, zstandard, msgspec, fsspec or the operating system leaves the package untranslated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CasstoreError(Exception):
    """The root of every error casstore raises on purpose."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"
    advice: ClassVar[str] = "casstore --help"
    """the hint of an error that was raised without one"""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.advice

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # The number of an operating system error is not in the dictionary of the object.
        number = self.errno if isinstance(self, OSError) else None
        return (_rebuild, (type(self), self.message, dict(self.__dict__), number))


def _rebuild(cls: type[CasstoreError], message: str, state: dict[str, object], number: int | None) -> CasstoreError:
    error = cls(message)
    error.__dict__.update(state)
    if isinstance(error, OSError):
        error.errno = number
    return error


class InvalidInputError(CasstoreError, ValueError):
    """The argument itself is wrong; nothing was changed."""

    exit_code = 2
    code = "invalid-input"
    advice = "correct the argument; nothing was changed"


class InvalidNameError(InvalidInputError):
    """A collection, alias, tag or reference is not well formed."""

    code = "invalid-name"
    advice = "1 to 128 of A-Z a-z 0-9 . _ -, not starting with . or -"


class InvalidPathError(InvalidInputError):
    """A path inside an artifact is not well formed."""

    code = "invalid-path"
    advice = "a relative path: UTF-8, parts between single /, no . or .., at most 4096 bytes and 255 a part"


class InvalidMetadataError(InvalidInputError):
    """Metadata is not canonical JSON within the limits."""

    code = "invalid-metadata"
    advice = "a JSON object: at most 100 keys, 1 MiB, 64 levels; str keys, finite numbers"


class InvalidSizeError(InvalidInputError):
    """A size could not be read as a number of bytes."""

    code = "invalid-size"


class UnsupportedSchemeError(InvalidInputError):
    """No handler is registered for the scheme of a URL."""

    code = "unsupported-scheme"


class LimitError(InvalidInputError):
    """A documented limit was exceeded."""

    code = "limit"


class NotFoundError(CasstoreError, KeyError):
    """The thing named does not exist."""

    exit_code = 10
    code = "not-found"
    advice = "casstore ls"


class StoreNotFoundError(NotFoundError):
    """There is no store at this place."""

    code = "store-not-found"
    advice = "casstore init"


class CollectionNotFoundError(NotFoundError):
    """There is no such collection."""

    code = "collection-not-found"


class VersionNotFoundError(NotFoundError):
    """There is no such version, or it is in the trash."""

    code = "version-not-found"


class EntryNotFoundError(NotFoundError, FileNotFoundError):
    """There is no such path in the artifact."""

    code = "entry-not-found"
    advice = "casstore files REF lists the paths"


class ReferenceMissingError(NotFoundError, FileNotFoundError):
    """The target of a reference is gone."""

    code = "reference-missing"


class AlreadyExistsError(CasstoreError, FileExistsError):
    """The name is already in use."""

    exit_code = 11
    code = "already-exists"
    advice = "choose another name"


class PathConflictError(AlreadyExistsError):
    """A path is a file in one place and a directory in another, or has other content."""

    code = "path-conflict"
    advice = "remove or rename one of the two paths"


class NameTakenError(AlreadyExistsError):
    """The collection name is taken."""

    code = "name-taken"


class TypeConflictError(AlreadyExistsError):
    """The collection has another type."""

    code = "type-conflict"


class ReadOnlyError(CasstoreError, PermissionError):
    """The store was opened read-only."""

    exit_code = 12
    code = "read-only"
    advice = "open the store for writing"


class ConflictError(CasstoreError):
    """A race was lost; retrying is right."""

    exit_code = 13
    code = "conflict"
    advice = "try again"


class StaleBaseError(ConflictError):
    """The thing the change is based on has moved."""

    code = "stale-base"


class UpsertConflictError(ConflictError):
    """Two writers of one distributed version disagree about a path."""

    code = "upsert-conflict"


class LeaseLostError(ConflictError):
    """A pin expired while it was still needed."""

    code = "lease-lost"


class UseCancelledError(ConflictError):
    """The version in use was deleted."""

    code = "use-cancelled"


class StoreBusyError(ConflictError):
    """Another process holds the store."""

    code = "store-busy"


class WaitTimeoutError(ConflictError, TimeoutError):
    """What was waited for goes on."""

    code = "wait-timeout"
    advice = "wait again"


class RefusedError(CasstoreError):
    """A rule says no; ``hint`` names the override."""

    exit_code = 14
    code = "refused"
    advice = "the rule must be lifted first"


class AliasGuardError(RefusedError):
    """The version still has aliases (``.aliases``)."""

    code = "alias-guard"

    def __init__(self, message: str, *, aliases: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.aliases = tuple(aliases)


class LinkGuardError(RefusedError):
    """There are links to the version (``.links``)."""

    code = "link-guard"

    def __init__(self, message: str, *, links: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.links = tuple(links)


class ProtectedError(RefusedError):
    """The version is protected."""

    code = "protected"


class InUseError(RefusedError):
    """The version is in use (``.runs``: ids)."""

    code = "in-use"

    def __init__(self, message: str, *, runs: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.runs = tuple(runs)


class ParentDeletedError(RefusedError):
    """The collection is in the trash."""

    code = "parent-deleted"


class GCDisabledError(RefusedError):
    """Collection is switched off for this store."""

    code = "gc-disabled"


class QuotaExceededError(RefusedError):
    """The store is full by policy."""

    code = "quota-exceeded"


class ConfirmationRequired(RefusedError):
    """A destructive command was not confirmed."""

    code = "confirmation-required"


class ArtifactFinalizedError(RefusedError):
    """The artifact can no longer be changed."""

    code = "artifact-finalized"


class ArtifactNotLoggedError(RefusedError):
    """This needs a logged version, not a draft."""

    code = "artifact-not-logged"


class IntegrityError(CasstoreError):
    """Stored bytes are damaged or missing.

    ``collection``, ``version`` and ``path`` name what could not be read, where known.
    """

    exit_code = 20
    code = "integrity"
    advice = "casstore fsck --read-data --repair"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        collection: str | None = None,
        version: str | None = None,
        path: str | None = None,
        digest: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.collection = collection
        self.version = version
        self.path = path
        self.digest = digest


class ChunkMissingError(IntegrityError):
    """A digest that is needed is in no pack."""

    code = "chunk-missing"


class DigestMismatchError(IntegrityError):
    """Bytes do not have the digest they are stored under."""

    code = "digest-mismatch"


class VerificationError(IntegrityError, ValueError):
    """Verification found problems: ``.missing``, ``.changed``, ``.extra``, ``.unverified_refs`` (paths)."""

    code = "verification"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        missing: Sequence[str] = (),
        changed: Sequence[str] = (),
        extra: Sequence[str] = (),
        unverified_refs: Sequence[str] = (),
        collection: str | None = None,
        version: str | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, collection=collection, version=version, path=path)
        self.missing = list(missing)
        self.changed = list(changed)
        self.extra = list(extra)
        self.unverified_refs = list(unverified_refs)


class ReferenceChangedError(IntegrityError):
    """The target of a reference changed."""

    code = "reference-changed"


class FormatError(CasstoreError):
    """Bytes are not in the format docs/FORMAT.md describes."""

    exit_code = 21
    code = "format"
    advice = "casstore fsck"


class UnsupportedFormatError(FormatError):
    """The store was written by a newer casstore."""

    code = "unsupported-format"
    advice = "upgrade casstore"


class BackendError(CasstoreError, OSError):
    """The object store or the file system failed."""

    exit_code = 30
    code = "backend"
    advice = "check the disk, the permissions and the connection of the store, then run again"


class TransientBackendError(BackendError):
    """The backend failed in a way that retrying may cure."""

    code = "backend-transient"
    advice = "run again"
