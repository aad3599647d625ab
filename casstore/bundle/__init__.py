"""Versions on their way between stores, as one file (docs/FORMAT.md §11).

`exporting` writes it. `importing` brings it into a store: `source` gives its bytes, `reading` checks all of them before
the store is touched, `trees` judges the trees, `cutting` hands their content on. A bundle may come from anybody.
"""

from casstore.bundle.exporting import ExportReport, export
from casstore.bundle.importing import ImportedVersion, ImportReport, ImportRequest, import_bundle
from casstore.bundle.source import BundleFile

__all__ = [
    "BundleFile",
    "ExportReport",
    "ImportReport",
    "ImportRequest",
    "ImportedVersion",
    "export",
    "import_bundle",
]
