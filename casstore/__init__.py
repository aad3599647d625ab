"""casstore: a content-addressed version store that services embed.

::

    from casstore import Artifact, Store

    with Store.open("data.cas", create=True) as store:
        artifact = Artifact("bike-dataset", type="dataset")
        artifact.add_dir("images", name="images")
        version = store.log_artifact(artifact, aliases=["best"])
        version.download("out")

Names are imported when they are first used, so that ``casstore --version`` need not load the engine.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in `typing`, which need not be imported for it
if TYPE_CHECKING:
    from casstore.ageing import ExpiredVersion, ExpireReport, RetainedVersion, RetentionReport, TtlChange
    from casstore.artifact import Artifact
    from casstore.audit import DeletionRecord
    from casstore.batch import BatchInfo, PartInfo
    from casstore.bundle import ExportReport, ImportedVersion, ImportReport
    from casstore.checkout import CheckoutReport, DownloadReport
    from casstore.checkpointing import CheckpointInfo
    from casstore.collection import Collection
    from casstore.comparing import Diff
    from casstore.config import ChunkerParams, Runtime, Settings, StoreConfig
    from casstore.deletion import BulkDeletion, CollectionDeletion, Plan
    from casstore.digest import Digest
    from casstore.doctor import Check
    from casstore.erasure import Erasure
    from casstore.errors import (
        AliasGuardError,
        AlreadyExistsError,
        ArtifactFinalizedError,
        ArtifactNotLoggedError,
        BackendError,
        CasstoreError,
        ChunkMissingError,
        CollectionNotFoundError,
        ConfirmationRequired,
        ConflictError,
        DigestMismatchError,
        EntryNotFoundError,
        FormatError,
        GCDisabledError,
        IntegrityError,
        InUseError,
        InvalidInputError,
        InvalidMetadataError,
        InvalidNameError,
        InvalidPathError,
        InvalidSizeError,
        LeaseLostError,
        LimitError,
        LinkGuardError,
        NameTakenError,
        NotFoundError,
        ParentDeletedError,
        PathConflictError,
        ProtectedError,
        QuotaExceededError,
        ReadOnlyError,
        ReferenceChangedError,
        ReferenceMissingError,
        RefusedError,
        StaleBaseError,
        StoreBusyError,
        StoreNotFoundError,
        TransientBackendError,
        TypeConflictError,
        UnsupportedFormatError,
        UnsupportedSchemeError,
        UpsertConflictError,
        UseCancelledError,
        VerificationError,
        VersionNotFoundError,
        WaitTimeoutError,
    )
    from casstore.events import Event
    from casstore.explain import Explanation, Holder, Impact, Keeper
    from casstore.gc import GCReport
    from casstore.gc.undo import UndoReport
    from casstore.inventory import CollectionInfo, CommitInfo, Usage
    from casstore.lineage import Lineage, LineageEdge, LineageNode, RunRecord, UseRecord
    from casstore.model import INHERIT, Entry
    from casstore.pin import PinInfo
    from casstore.policy import Policy
    from casstore.quota import Forecast, Quota
    from casstore.run import Run, Use
    from casstore.scrub import FsckReport
    from casstore.selection import Where
    from casstore.status import Status
    from casstore.store import Store
    from casstore.submission import Submission
    from casstore.trash import TrashItem
    from casstore.version import Deletion, Version

__version__ = "0.1.0"

__all__ = [
    "AliasGuardError",
    "AlreadyExistsError",
    "Artifact",
    "ArtifactFinalizedError",
    "ArtifactNotLoggedError",
    "BackendError",
    "BatchInfo",
    "BulkDeletion",
    "CasstoreError",
    "Check",
    "CheckoutReport",
    "CheckpointInfo",
    "ChunkMissingError",
    "ChunkerParams",
    "Collection",
    "CollectionDeletion",
    "CollectionInfo",
    "CollectionNotFoundError",
    "CommitInfo",
    "ConfirmationRequired",
    "ConflictError",
    "Deletion",
    "DeletionRecord",
    "Diff",
    "Digest",
    "DigestMismatchError",
    "DownloadReport",
    "Entry",
    "EntryNotFoundError",
    "Erasure",
    "Event",
    "ExpireReport",
    "ExpiredVersion",
    "Explanation",
    "ExportReport",
    "Forecast",
    "FormatError",
    "FsckReport",
    "GCDisabledError",
    "GCReport",
    "Holder",
    "INHERIT",
    "Impact",
    "ImportReport",
    "ImportedVersion",
    "InUseError",
    "IntegrityError",
    "InvalidInputError",
    "InvalidMetadataError",
    "InvalidNameError",
    "InvalidPathError",
    "InvalidSizeError",
    "Keeper",
    "LeaseLostError",
    "LimitError",
    "Lineage",
    "LineageEdge",
    "LineageNode",
    "LinkGuardError",
    "NameTakenError",
    "NotFoundError",
    "ParentDeletedError",
    "PartInfo",
    "PathConflictError",
    "PinInfo",
    "Plan",
    "Policy",
    "ProtectedError",
    "Quota",
    "QuotaExceededError",
    "ReadOnlyError",
    "ReferenceChangedError",
    "ReferenceMissingError",
    "RefusedError",
    "RetainedVersion",
    "RetentionReport",
    "Run",
    "RunRecord",
    "Runtime",
    "Settings",
    "StaleBaseError",
    "Status",
    "Store",
    "StoreBusyError",
    "StoreConfig",
    "StoreNotFoundError",
    "Submission",
    "TransientBackendError",
    "TrashItem",
    "TtlChange",
    "TypeConflictError",
    "UndoReport",
    "UnsupportedFormatError",
    "UnsupportedSchemeError",
    "UpsertConflictError",
    "Usage",
    "Use",
    "UseCancelledError",
    "UseRecord",
    "VerificationError",
    "Version",
    "VersionNotFoundError",
    "WaitTimeoutError",
    "Where",
]

_HOMES = {
    "Artifact": "artifact",
    "BatchInfo": "batch",
    "BulkDeletion": "deletion",
    "Check": "doctor",
    "CheckoutReport": "checkout",
    "CheckpointInfo": "checkpointing",
    "ChunkerParams": "config",
    "Collection": "collection",
    "CollectionDeletion": "deletion",
    "CollectionInfo": "inventory",
    "CommitInfo": "inventory",
    "Deletion": "version",
    "DeletionRecord": "audit",
    "Diff": "comparing",
    "Digest": "digest",
    "DownloadReport": "checkout",
    "Entry": "model",
    "Erasure": "erasure",
    "Event": "events",
    "ExpireReport": "ageing",
    "ExpiredVersion": "ageing",
    "Explanation": "explain",
    "ExportReport": "bundle",
    "Forecast": "quota",
    "FsckReport": "scrub",
    "GCReport": "gc",
    "Holder": "explain",
    "INHERIT": "model",
    "Impact": "explain",
    "ImportReport": "bundle",
    "ImportedVersion": "bundle",
    "Keeper": "explain",
    "Lineage": "lineage",
    "LineageEdge": "lineage",
    "LineageNode": "lineage",
    "PartInfo": "batch",
    "PinInfo": "pin",
    "Plan": "deletion",
    "Policy": "policy",
    "Quota": "quota",
    "RetainedVersion": "ageing",
    "RetentionReport": "ageing",
    "Run": "run",
    "RunRecord": "lineage",
    "Runtime": "config",
    "Settings": "config",
    "Status": "status",
    "Store": "store",
    "StoreConfig": "config",
    "Submission": "submission",
    "TrashItem": "trash",
    "TtlChange": "ageing",
    "UndoReport": "gc.undo",
    "Usage": "inventory",
    "Use": "run",
    "UseRecord": "lineage",
    "Version": "version",
    "Where": "selection",
}
"""where names live that are not errors"""

if not TYPE_CHECKING:  # a type checker must see the names above, and complain about all others

    def __getattr__(name: str) -> object:
        """A public name, imported on its first use (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
