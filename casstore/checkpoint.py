"""Checkpoints of the state: written from a snapshot of the view, found and read to start a fresh view.

A checkpoint is only ever an accelerator: the log is whole, so one that is damaged, half written, of another
version or gone is passed over. Created last, the manifest is what makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from casstore.backend import Backend
from casstore.codec import Codec
from casstore.errors import FormatError, IntegrityError, NotFoundError
from casstore.format.checkpoints import (
    Manifest,
    Rows,
    decode_manifest,
    decode_part,
    decode_rows,
    encode_manifest,
    encode_part,
    encode_rows,
)
from casstore.format.layout import CHECKPOINT_PREFIX, checkpoint_key, checkpoint_seq
from casstore.log import Log
from casstore.model import Progress, no_progress
from casstore.overlay import Tables
from casstore.state import LOCAL, META, TABLES, head_of, state_hash

PART_BYTES = 8 * 1024 * 1024
"""plaintext bytes of rows a part aims at"""


class Checkpoints:
    """The checkpoints of one store. Thread-safe; keeps no state."""

    def __init__(self, backend: Backend, codec: Codec, new_name: Callable[[int], bytes]) -> None:
        self._backend = backend
        self._codec = codec
        self._new_name = new_name

    def write(self, tables: Tables, progress: Progress = no_progress) -> Manifest:
        """Write the state of a snapshot; whole and checked once the manifest is there.

        Raises `IntegrityError`, leaving no manifest, when what is read back is not the state.
        """
        head = head_of(tables)
        manifest = Manifest(checkpoint_key(head.seq, self._new_name(8)), head.seq, head.chain, state_hash(tables), ())
        sizes: list[int] = []
        for rows in _parts(tables):
            body = encode_rows(rows)
            number, stored = self._codec.encode([body])
            data = encode_part(number, len(body), stored)
            key = manifest.part_key(len(sizes))
            self._backend.create(key, data)
            if self._rows(key) != [(table, list(pairs)) for table, pairs in rows]:
                raise IntegrityError(f"part {key} of a checkpoint is not what was written", hint="check the disk")
            sizes.append(len(data))
            progress("checkpoint", len(sizes), 0)
        whole = Manifest(manifest.key, manifest.seq, manifest.chain, manifest.state_hash, tuple(sizes))
        self._backend.create(whole.key, encode_manifest(whole))
        return whole

    def listed(self) -> dict[str, list[str]]:
        """Manifests that are there, the newest first, with their parts; parts without a manifest under ``""``."""
        keys = [info.key for info in self._backend.list(CHECKPOINT_PREFIX)]
        found: dict[str, list[str]] = {key: [] for key in sorted(keys, reverse=True) if "." not in key}
        for key in keys:
            manifest = key.partition(".")[0]
            if manifest != key:
                found.setdefault(manifest if manifest in found else "", []).append(key)
        return found

    def read(self, key: str) -> Manifest | None:
        """A manifest; None if it is gone, damaged, or another version's."""
        try:
            return decode_manifest(key, self._backend.read(key))
        except (NotFoundError, IntegrityError, FormatError):
            return None

    def newest(self, log: Log) -> Manifest | None:
        """The newest checkpoint that is of this log."""
        for key in self.listed():
            seq = checkpoint_seq(key)
            manifest = self.read(key) if seq is not None else None
            if manifest is None or manifest.seq != seq:
                continue
            try:
                raw = log.read_raw(manifest.seq)
            except IntegrityError:
                continue
            if raw is not None and raw.chain == manifest.chain:
                return manifest
        return None

    def part(self, manifest: Manifest, number: int) -> list[Rows] | None:
        """Rows of a part; None if they cannot be had."""
        try:
            return self._rows(manifest.part_key(number))
        except (NotFoundError, IntegrityError, FormatError):
            return None

    def _rows(self, key: str) -> list[Rows]:
        what = f"part {key} of a checkpoint"
        number, length, stored = decode_part(self._backend.read(key), what)
        return decode_rows(self._codec.decode(number, stored, length, what), what)

    def remove(self, manifest: str, parts: list[str]) -> None:
        """Delete a checkpoint, the manifest first. Whoever is reading it passes on to another."""
        if manifest:
            self._backend.delete(manifest)
        for key in parts:
            self._backend.delete(key)


def _parts(tables: Tables) -> Iterator[list[Rows]]:
    """All rows but those that say something of this replica only, in pieces of bounded size."""
    part: list[Rows] = []
    weight = 0
    for table in TABLES:
        pairs: list[tuple[bytes, bytes]] = []
        for key, value in tables.scan(table):
            if table == META and key.startswith(LOCAL):
                continue
            pairs.append((key, value))
            weight += len(key) + len(value)
            if weight >= PART_BYTES:
                yield [*part, (table, pairs)]
                part, pairs, weight = [], [], 0
        if pairs:
            part.append((table, pairs))
    yield part
