"""Everything a user can see of a store, as a value: for tests that compare a store with what it should be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from casstore.backend.osops import OsOps, StrPath
from casstore.errors import ChunkMissingError
from casstore.model import Entry
from casstore.store import Store
from casstore.version import Version

Files = dict[str, bytes]

ERASED = b"<erased>"
MINE = "mine"
"""the purpose of pins that are part of a world; drafts and long reads take others, which come and go"""


@dataclass(frozen=True)
class World:
    """Versions with their files, what is in the trash, where aliases are, and what was said about all that.

    ``said``: of versions, collections and the store. Times are not in it: they differ from run to run.
    """

    versions: dict[str, Files]
    trash: frozenset[str]
    aliases: dict[str, str]
    said: dict[str, tuple[object, ...]] = field(default_factory=dict)


def look(store: Store) -> World:
    """The world as it is."""
    collections = [info.name for info in store.collections()]
    found = [version for name in collections for version in store.versions(name)]
    said: dict[str, tuple[object, ...]] = {
        version.ref: (version.ttl, version.ttl_source, version.protected, version.description, version.tags)
        for version in found
    }
    said.update({name: (store.collection(name).protected,) for name in collections})
    said["policy"] = tuple(sorted((key, str(value)) for key, value in store.policy.to_dict().items()))
    pins = [pin for pin in store.pins() if pin.purpose == MINE]
    said["pins"] = tuple(sorted((pin.refs, pin.expires_at is None) for pin in pins))
    return World(
        {version.ref: read_files(version) for version in found},
        frozenset(item.ref for item in store.trash.list()),
        {f"{version.collection}:{name}": version.version for version in found for name in version.aliases},
        said,
    )


def read_files(version: Version) -> Files:
    """The files of a version; `ERASED` for those that were erased on request."""
    return {entry.path: _content(entry) for entry in version.files()}


def _content(entry: Entry) -> bytes:
    try:
        return entry.read()
    except ChunkMissingError as error:
        if "erased" not in error.message:
            raise
        return ERASED


def contains(data: bytes, secret: bytes, run: int = 32) -> bool:
    """Whether any whole run of so many bytes of a secret is in some data."""
    return any(secret[at : at + run] in data for at in range(0, len(secret) - run + 1, run))


def files_with(root: Path, secret: bytes) -> list[str]:
    """Files below a directory, whatever they are, that have a run of a secret as it is."""
    return sorted(_holding(root, (path for path in root.rglob("*") if path.is_file()), secret))


def _holding(root: Path, paths: Iterable[Path], secret: bytes) -> Iterable[str]:
    return (str(path.relative_to(root)) for path in paths if contains(path.read_bytes(), secret))


class NoSync(OsOps):
    """For looking at what is left, which nobody will take the power from again: that is quicker."""

    def fsync(self, fd: int, path: StrPath) -> None:
        """Nothing."""

    def fsync_dir(self, path: StrPath) -> None:
        """Nothing."""
