"""Names bytes by their content: tagged digests and the hash functions behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, Self

import blake3
import xxhash

from casstore.errors import InvalidInputError
from casstore.values import dataclass

Buffer = bytes | bytearray | memoryview
Pieces = Callable[[Buffer, Sequence[int], Sequence[int]], list[bytes]]
"""from a buffer to the digests of ``buffer[start:end]`` for each start and end"""


def _blake3(data: Buffer) -> bytes:
    return blake3.blake3(data).digest()


def _sha256(data: Buffer) -> bytes:
    return _new_sha256(data).digest()


def _new_sha256(data: Buffer = b"") -> Hasher:
    import hashlib  # noqa: PLC0415 - start-up: OpenSSL is loaded by stores that need it

    return hashlib.sha256(data)


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


def piecewise(algorithm: str) -> Pieces:
    """`hash_function` of many pieces of a buffer in one call. Thread-safe; the buffer must not change meanwhile.

    One after the other: a kernel that fills its lanes across pieces would be our own, see 0020. The function raises
    ``ValueError`` for pieces that are not in the buffer.
    """
    return partial(_one_by_one, hash_function(algorithm))


def _one_by_one(
    hash_bytes: Callable[[Buffer], bytes], data: Buffer, starts: Sequence[int], ends: Sequence[int]
) -> list[bytes]:
    with memoryview(data) as view:
        places = list(zip(starts, ends, strict=True))
        if not all(0 <= start <= end <= len(view) for start, end in places):
            raise ValueError("a piece is not in the buffer")
        return [hash_bytes(view[start:end]) for start, end in places]


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
        "sha256": _new_sha256,
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
