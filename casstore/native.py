"""The C extensions, each optional: whoever asks has the same in Python, bit for bit."""

from __future__ import annotations

import importlib
from types import ModuleType

Slots = tuple[type, tuple[object, ...]]


def extension(name: str) -> ModuleType | None:
    """An extension module of this package, such as ``_files`` or ``chunker._gear``; None where it was not built."""
    try:
        # Not an import statement: import-linter cannot see extension modules and takes it for one of the whole package.
        return importlib.import_module(f"casstore.{name}")
    except ImportError:  # no compiler when casstore was installed
        return None


def slots_of(kind: type) -> Slots:
    """How an extension reads and makes objects of a slotted class: the class, and the descriptors of its fields."""
    return kind, tuple([vars(kind)[name] for name in kind.__slots__])  # type: ignore[attr-defined]
