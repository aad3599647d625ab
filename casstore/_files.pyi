from collections.abc import Sequence
from typing import TypeAlias

_Output: TypeAlias = tuple[str, int, tuple[bytes | bytearray | memoryview, ...]]

def write_files(top: int, prefix: str, suffix: str, files: Sequence[_Output], /) -> int: ...
