"""What the state machine stores: a small alphabet of blocks, so that nearly everything is shared."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import strategies as st

from casstore.config import ChunkerParams, StoreConfig
from casstore.digest import hash_function
from casstore.model import Entry
from casstore.tree import write_entries

SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096),
    frame_bytes=4096,
    pack_bytes=65_536,
    node_bytes=512,
)
"""a configuration in which little content makes many chunks, frames, packs and levels"""

COLLECTIONS = ("c", "d", "team/p/c")
ALIASES = ("best", "prod")
PATHS = ("a", "a.b", "b", "d/a", "d/e/f", "d/e/g", "z")
BULK = 70


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _node() -> bytes:
    """The node that the tree ``{"a": b"x"}`` consists of, to be stored as a file."""
    made: list[bytes] = []

    def sink(data: bytes, _: tuple[bytes, ...]) -> bytes:
        made.append(data)
        return name(data)

    name = hash_function(SMALL.digest)
    write_entries([Entry("a", size=1, chunks=((name(b"x"), 1),))], SMALL.node_bytes, sink)
    return made[-1]


BLOCKS: Mapping[str, bytes] = {
    "A": _noise(1, 65_536),
    "B": _noise(2, 65_536),
    "zeros": bytes(65_536),
    "text": b"".join(b"line %d of a text\n" % n for n in range(400)),
    "repeat": _noise(3, 700) * 20,
    "min": _noise(4, SMALL.chunker.minimum),
    "max": _noise(5, SMALL.chunker.maximum),
    "over": _noise(6, SMALL.chunker.minimum + 1),
    "one": b"x",
    "node": _node(),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Some blocks, perhaps with a byte inserted or deleted, perhaps only a byte range of them."""

    blocks: tuple[str, ...]
    edit: str = ""
    where: int = 0
    window: tuple[int, int] | None = None

    def bytes(self) -> bytes:
        """The content."""
        data = b"".join(BLOCKS[name] for name in self.blocks)
        at = len(data) * self.where // 16
        if self.edit == "insert":
            data = data[:at] + b"!" + data[at:]
        elif self.edit == "delete":
            data = data[:at] + data[at + 1 :]
        if self.window is not None:
            first, last = sorted(self.window)
            data = data[len(data) * first // 16 : len(data) * last // 16]
        return data


RECIPES = st.builds(
    Recipe,
    st.lists(st.sampled_from(sorted(BLOCKS)), max_size=3).map(tuple),
    st.sampled_from(("", "", "insert", "delete")),
    st.integers(0, 16),
    st.one_of(st.none(), st.tuples(st.integers(0, 16), st.integers(0, 16))),
)
TREES = st.dictionaries(st.sampled_from(PATHS), RECIPES, max_size=4)
EDITS = st.dictionaries(st.sampled_from(PATHS), st.one_of(st.none(), RECIPES), min_size=1, max_size=3)
BULKS = st.one_of(st.just(0), st.just(0), st.integers(1, BULK))
"""how many small files to put beside the others, for directories of several levels"""
PICK = st.integers(0, 1000)
NAMES = st.sampled_from(COLLECTIONS)
TAKEN = st.lists(st.sampled_from(ALIASES), max_size=2, unique=True)


def tree_of(recipes: Mapping[str, Recipe], bulk: int) -> dict[str, bytes]:
    """The files some recipes give, and ``bulk`` small ones."""
    files = {path: recipe.bytes() for path, recipe in recipes.items()}
    files.update({f"n/{n:03}": b"small %d" % (n % 40) for n in range(bulk)})
    return files


def edit_tree(files: dict[str, bytes], edits: Mapping[str, Recipe | None]) -> None:
    """Carry edits out on files; None removes."""
    for path, recipe in edits.items():
        if recipe is None:
            files.pop(path, None)
        else:
            files[path] = recipe.bytes()


def identity_of(files: Mapping[str, bytes]) -> bytes:
    """What makes two contents the same, independent of anything casstore computes."""
    whole = hashlib.sha256()
    for path, data in sorted(files.items()):
        whole.update(hashlib.sha256(path.encode()).digest() + hashlib.sha256(data).digest())
    return whole.digest()
