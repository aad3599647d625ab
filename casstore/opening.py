"""From a URL to the open parts of a store, and the making of a new one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from casstore.backend import Backend, is_local, open_backend
from casstore.backend.osops import OsOps
from casstore.backend.room import is_full
from casstore.backend.wrap import ReadOnlyBackend
from casstore.config import Runtime, Settings, StoreConfig, boot_id, cache_directory, on_network
from casstore.engine import Engine
from casstore.errors import AlreadyExistsError, BackendError, NotFoundError, StoreNotFoundError
from casstore.format.filerows import FILES
from casstore.format.layout import FORMAT_KEY, check_config, decode_store, encode_store
from casstore.format.rows import VIEW_VERSION
from casstore.index import LmdbIndex, MemoryIndex
from casstore.state import TABLES

INDEX = "index"
HOST_TABLES = (*TABLES, FILES)
"""the state, and what a host remembers besides (`casstore.statcache`)"""


def create_store(url: str | os.PathLike[str], config: StoreConfig, runtime: Runtime, ops: OsOps | None) -> None:
    """Make an empty store. Raises `InvalidInputError`, `AlreadyExistsError` if anything is there already."""
    check_config(config)
    path = is_local(url)
    if path is not None and path.exists():
        if not path.is_dir():
            raise AlreadyExistsError(f"{str(path)!r} is a file", hint="choose a path that does not exist")
        # Only traces of a `create` that was killed may be there.
        if {entry.name for entry in os.scandir(path)} - {"tmp"}:
            what = "a store" if (path / FORMAT_KEY).exists() else "a directory with something else in it"
            raise AlreadyExistsError(f"{str(path)!r} is {what}", hint="open it, or choose another path")
    backend = open_backend(url, ops=ops, clock=runtime.now, new_name=runtime.random_bytes)
    backend.create(FORMAT_KEY, encode_store(replace(config, store_id=runtime.random_bytes(8).hex())))


def open_store(
    url: str | os.PathLike[str],
    runtime: Runtime,
    settings: Settings,
    ops: OsOps | None,
    *,
    create: bool = False,
    read_only: bool = False,
    rebuild: bool = False,
) -> Engine:
    """Open a store, its view caught up with the log; with ``rebuild`` made again from it, whatever it shows now."""
    effects = OsOps() if ops is None else ops
    backend = open_backend(url, ops=effects, clock=runtime.now, new_name=runtime.random_bytes)
    config = _config(backend, url, runtime, effects, create=create and not read_only)
    if read_only:
        backend = ReadOnlyBackend(backend)
    path = is_local(url)
    if read_only or path is None:
        # Nothing may be written beside a read-only store, and a memory store needs no files.
        engine = Engine(backend, config, MemoryIndex(HOST_TABLES), runtime, settings, effects, read_only=read_only)
    else:
        directory = _index_directory(path, config)
        storage = _index(directory, settings)

        def discard(generation: int | None) -> None:
            LmdbIndex.discard(directory, generation)

        engine = Engine(backend, config, storage, runtime, settings, effects, discard=discard)
    engine.place = None if path is None else str(path)
    try:
        if rebuild:
            engine.view.rebuild()
        else:
            engine.view.check()
            engine.view.refresh()
    except BaseException:
        engine.close()
        raise
    return engine


def _index(directory: Path, settings: Settings) -> LmdbIndex | MemoryIndex:
    """The index in a directory; one in memory, made from the log, where there is no room to make or mend it."""
    try:
        return LmdbIndex.open(directory, HOST_TABLES, map_bytes=settings.index_map_bytes, boot_id=boot_id())
    except BackendError as error:
        if not is_full(error):
            raise
        return MemoryIndex(HOST_TABLES)


def _index_directory(path: Path, config: StoreConfig) -> Path:
    base = cache_directory() / config.store_id if on_network(path) else path / INDEX
    return base / f"view-{VIEW_VERSION}"


def _config(
    backend: Backend, url: str | os.PathLike[str], runtime: Runtime, ops: OsOps, *, create: bool
) -> StoreConfig:
    try:
        return decode_store(backend.read(FORMAT_KEY))
    except NotFoundError:
        if not create:
            path = is_local(url)
            where = str(path) if path is not None else os.fspath(url)
            what = "is not a casstore store" if path is None or path.exists() else "does not exist"
            raise StoreNotFoundError(f"{where!r} {what}", hint=f"casstore init {where}") from None
    try:
        create_store(url, StoreConfig(), runtime, ops)
    except AlreadyExistsError:
        # Somebody else made it in the same moment; or it is no place for a store, which reading it tells.
        try:
            return decode_store(backend.read(FORMAT_KEY))
        except NotFoundError:
            pass
        raise
    return decode_store(backend.read(FORMAT_KEY))
