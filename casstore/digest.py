"""Names bytes by their content: tagged digests and the hash functions behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol, Self

import blake3
import xxhash

from casstore.errors import InvalidInputError
from casstore.values import dataclass

Buffer = bytes | bytearray | memoryview


def _blake3(data: Buffer) -> bytes:
    return blake3.blake3(data).digest()


def _sha256(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()


_FUNCTIONS: dict[str, tuple[int, Callable[[Buffer], bytes]]] = {
    "blake3": (32, _blake3),
    "sha256": (32, _sha256),
    "xxh3-128": (16, xxhash.xxh3_128_digest),
}
ALGORITHMS = tuple(sorted(_FUNCTIONS))


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The name of some bytes: ``algorithm:hex``. The algorithm is part of the name."""

    algorithm: str
    value: bytes

    def __post_init__(self) -> None:
        if self.algorithm not in _FUNCTIONS:
            raise InvalidInputError(
                f"unknown digest algorithm {self.algorithm!r}", hint=f"one of {', '.join(ALGORITHMS)}"
            )
        if len(self.value) != _FUNCTIONS[self.algorithm][0]:
            raise InvalidInputError(
                f"a {self.algorithm} digest has {_FUNCTIONS[self.algorithm][0]} bytes, not {len(self.value)}"
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value.hex()}"

    @property
    def hex(self) -> str:
        """The digest without its algorithm, as lower-case hexadecimal."""
        return self.value.hex()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``algorithm:hex``. Raises `InvalidInputError`."""
        algorithm, _, digits = text.partition(":")
        try:
            value = bytes.fromhex(digits)
        except ValueError:
            raise InvalidInputError(f"{text!r} is not a digest") from None
        return cls(algorithm, value)


def hash_function(algorithm: str) -> Callable[[Buffer], bytes]:
    """The function from bytes to digest bytes. Thread-safe; releases the GIL on large input."""
    try:
        return _FUNCTIONS[algorithm][1]
    except KeyError:
        raise InvalidInputError(
            f"unknown digest algorithm {algorithm!r}", hint=f"one of {', '.join(ALGORITHMS)}"
        ) from None


class Hasher(Protocol):
    """The digest of bytes that come in parts."""

    def update(self, data: Buffer, /) -> object:
        """Add the next bytes."""
        ...

    def digest(self) -> bytes:
        """The digest of all bytes so far."""
        ...


def hasher(algorithm: str) -> Hasher:
    """As `hash_function`, for bytes that come in parts."""
    hash_function(algorithm)
    makers: dict[str, Callable[[], Hasher]] = {
        "blake3": blake3.blake3,
        "sha256": hashlib.sha256,
        "xxh3-128": xxhash.xxh3_128,
    }
    return makers[algorithm]()


def digest_size(algorithm: str) -> int:
    """Length of a digest in bytes."""
    hash_function(algorithm)
    return _FUNCTIONS[algorithm][0]


def checksum64(data: Buffer, seed: int = 0) -> int:
    """xxh3-64: guards frames and log blocks against rot on their way. Never a name."""
    return xxhash.xxh3_64_intdigest(data, seed)


def seal(data: Buffer) -> bytes:
    """BLAKE3-256, used for the log's hash chain and pack seals whatever the store's digest is."""
    return blake3.blake3(data).digest()


class Sealer:
    """`seal` of bytes that come in parts."""

    def __init__(self) -> None:
        self._hash = blake3.blake3()

    def update(self, data: Buffer) -> None:
        """Add the next bytes."""
        self._hash.update(data)

    def seal(self) -> bytes:
        """The BLAKE3-256 of all bytes so far."""
        return self._hash.digest()
