from collections.abc import Sequence
from typing import Any, TypeAlias

_Shape: TypeAlias = tuple[type, tuple[object, ...]]

def list_directory(
    path: str,
    above: str,
    inner: str,
    skip: str,
    local: _Shape,
    signature: _Shape,
    keep_mode: bool,
    trusted: bool,
    /,
) -> tuple[list[tuple[str, Any]], list[str], list[str]] | int: ...
def look_up(
    files: Sequence[Any], local: _Shape, signature: _Shape, /
) -> tuple[list[bytes], list[bytes], list[bytes | None]]: ...
def read_files(
    files: Sequence[Any], local: _Shape, signature: _Shape, before: int, buffer: bytearray, /
) -> tuple[list[bytes], list[bytes], list[bytes | None]]: ...
def decode_rows(
    kind: type, paths: list[bytes], marks: list[bytes | None], rows: list[bytes | None], /
) -> list[Any]: ...
def encode_rows(
    paths: list[bytes], rows: list[Any], day: int, old: list[bytes | None], stale: int, /
) -> list[bytes | None]: ...
def file_rows(
    kind: type, marks: list[bytes], digests: list[bytes], starts: list[int], ends: list[int], counts: list[int], /
) -> list[Any]: ...
def file_entries(
    entry: _Shape, kind: object, local: _Shape, signature: _Shape, files: list[Any], rows: list[Any], /
) -> dict[str, Any]: ...
def cut_leaf(
    entry: _Shape, kind: object, entries: list[Any], start: int, average: int, /
) -> tuple[list[bytes], list[bytes], int] | None: ...
def hash64(data: bytes, /) -> int: ...
