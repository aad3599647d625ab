"""What is stored: files of a few small blocks out of a small alphabet, so that nearly everything is shared."""

from __future__ import annotations

import random

BLOCK = 64
ALPHABET = [bytes([65 + i]) * 8 + random.Random(i).randbytes(BLOCK - 8) for i in range(9)] + [bytes(BLOCK)]
PATHS = ("a", "b", "d/c", "d/e", "f/g/h", "z")
LONG = 34
"""blocks of a long file: its chunk list is a tree of its own"""

Blocks = tuple[bytes, ...]
Files = dict[str, Blocks]


def draw_files(rng: random.Random) -> Files:
    """Some files; the same few come again and again."""
    count = rng.choice((1, 1, 2, 2, 3, 5))
    files = {path: _blocks(rng) for path in rng.sample(PATHS, count)}
    if rng.random() < 0.02:
        pattern = _blocks(rng)
        files["long"] = (pattern * LONG)[:LONG] if rng.random() < 0.5 else tuple(rng.choices(ALPHABET, k=LONG))
    return files


def _blocks(rng: random.Random) -> Blocks:
    length = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.15:
        return (rng.choice(ALPHABET),) * length  # a child that is there more than once
    return tuple(rng.choices(ALPHABET, k=length))


def whole(files: Files) -> dict[str, bytes]:
    """The files as a reader sees them."""
    return {path: b"".join(blocks) for path, blocks in files.items()}
