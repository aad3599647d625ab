"""Key names and the store's ``format`` object (docs/FORMAT.md §2, §4)."""

from __future__ import annotations

from dataclasses import asdict, replace

import msgspec

from casstore.config import GIB, MIB, ChunkerParams, StoreConfig
from casstore.digest import ALGORITHMS, hash_function, seal
from casstore.errors import CasstoreError, FormatError, IntegrityError, InvalidInputError, UnsupportedFormatError

FORMAT_VERSION = 1
FORMAT_KEY = "format"
LOG_PREFIX = "log/"
PACK_PREFIX = "packs/"
CHECKPOINT_PREFIX = "checkpoints/"
PLANES = "planes"
"""frames may have codec 2"""
FEATURES = (PLANES,)
"""what a reader must understand, of what this version does"""
CHUNKERS = ("gated-2026", "fastcdc-2020", "fixed")


def log_key(seq: int) -> str:
    """Key of a log segment; 20 digits, so that key order is log order."""
    return f"{LOG_PREFIX}{seq:020d}"


def log_seq(key: str) -> int | None:
    """The position a log key names, or None if it is not one."""
    name = key.removeprefix(LOG_PREFIX)
    return int(name) if len(name) == 20 and name.isdigit() else None


def floor_key(number: int) -> str:
    """Key of the n-th truncation marker. Reserved: this version never writes one."""
    return f"{LOG_PREFIX}floor/{number:020d}"


def checkpoint_key(seq: int, name: bytes) -> str:
    """Key of the manifest of a checkpoint; keys of its parts go on after a dot."""
    return f"{CHECKPOINT_PREFIX}{seq:020d}-{name.hex()}"


def checkpoint_seq(key: str) -> int | None:
    """The position of the checkpoint whose manifest a key names, or None if it is not one."""
    name, _, rest = key.removeprefix(CHECKPOINT_PREFIX).partition("-")
    return int(name) if len(name) == 20 and name.isdigit() and len(rest) == 16 else None


def pack_key(pack: bytes) -> str:
    """Key of a pack."""
    name = pack.hex()
    return f"{PACK_PREFIX}{name[:2]}/{name}"


def pack_of(key: str) -> bytes | None:
    """The pack a key names, or None if it is not a pack's."""
    name = key.rpartition("/")[2]
    try:
        pack = bytes.fromhex(name)
    except ValueError:
        return None
    return pack if len(pack) == 16 and key == pack_key(pack) else None


class _Mark(msgspec.Struct):
    """What every version of the ``format`` object has."""

    magic: str
    version: int


class _Format(msgspec.Struct, forbid_unknown_fields=False):
    magic: str
    version: int
    features: list[str]
    config: dict[str, object]
    seal: str


def _seal(magic: str, version: int, features: list[str], config: dict[str, object]) -> str:
    return seal(msgspec.json.encode([magic, version, features, config], order="deterministic")).hex()


def _newer(found: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        f"this store has format {found}, this casstore knows format {FORMAT_VERSION}", hint="upgrade casstore"
    )


def encode_store(config: StoreConfig) -> bytes:
    """The ``format`` object: JSON a person can read, sealed with a BLAKE3 of its content."""
    values = asdict(config)
    features = [PLANES] if values.pop("planes") else []
    seal_of = _seal("casstore", FORMAT_VERSION, features, values)
    document = _Format("casstore", FORMAT_VERSION, features, values, seal_of)
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def check_config(config: StoreConfig) -> None:
    """Raise `InvalidInputError` for a configuration that no store can have."""
    hash_function(config.digest)
    if config.chunker.algorithm not in CHUNKERS:
        raise InvalidInputError(f"unknown chunker {config.chunker.algorithm!r}", hint=f"one of {', '.join(CHUNKERS)}")
    for name, least, most in (("frame_bytes", 1, GIB), ("pack_bytes", 1, 1024 * GIB), ("node_bytes", 64, 16 * MIB)):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidInputError(f"{name}={value!r} is not a whole number from {least} to {most}")


def decode_store(data: bytes) -> StoreConfig:
    """Read the ``format`` object.

    Raises `FormatError` when it is not one, `UnsupportedFormatError` when a newer casstore wrote it,
    `IntegrityError` when it is damaged.
    """
    try:
        mark = msgspec.json.decode(data, type=_Mark)
        # A newer version may have any other fields.
        if mark.magic == "casstore" and mark.version > FORMAT_VERSION:
            raise _newer(f"{mark.version}")
        document = msgspec.json.decode(data, type=_Format)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise FormatError("the store's `format` object is not readable", hint="is this a casstore store?") from None
    if document.magic != "casstore":
        raise FormatError("this is not a casstore store")
    unknown = [feature for feature in document.features if feature not in FEATURES]
    if unknown:
        raise _newer(f"{document.version} with {', '.join(unknown)}")
    if document.seal != _seal(document.magic, document.version, document.features, document.config):
        raise IntegrityError("the store's `format` object is damaged")
    try:
        config = msgspec.convert(document.config, StoreConfig)
    except (msgspec.ValidationError, OverflowError, CasstoreError) as error:
        raise FormatError(f"the store's `format` object is not valid: {error}") from None
    if config.digest not in ALGORITHMS or config.chunker.algorithm not in CHUNKERS:
        raise UnsupportedFormatError(
            f"this store uses {config.digest} and {config.chunker.algorithm}", hint="upgrade casstore"
        )
    return replace(config, planes=PLANES in document.features)


__all__ = [
    "CHECKPOINT_PREFIX",
    "CHUNKERS",
    "FORMAT_KEY",
    "FORMAT_VERSION",
    "LOG_PREFIX",
    "PACK_PREFIX",
    "ChunkerParams",
    "check_config",
    "checkpoint_key",
    "checkpoint_seq",
    "decode_store",
    "encode_store",
    "floor_key",
    "log_key",
    "log_seq",
    "pack_key",
    "pack_of",
]
