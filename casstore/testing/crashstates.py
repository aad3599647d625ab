"""Every tree of files a power cut could leave behind, computed from a trace of effects.

The model is weak POSIX, as in ALICE (OSDI '14):

- A written block (4 KiB) survives or not, whatever the others do, until ``fsync`` of its file. A lost block leaves
  a shorter file, or zeros if the length survived.
- An operation on a name (create, link, unlink, mkdir, rename) survives or not, whatever the others do, until
  ``fsync_dir`` of the directory of that name; ``fsync`` of a file does not keep its name. A rename inside one
  directory is atomic, across two it is an add and a remove.
- A directory whose own name is lost takes along what is in it.
- The power may go after any effect.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from casstore.testing.record import ACK, Effect

BLOCK = 4096
_ALL_SUBSETS = 3
"""up to so many unsynced blocks every subset of them is tried, beyond that prefixes, zeros and single holes"""

SYNCS = frozenset({"fsync", "fsync_dir"})


def in_temp(path: str) -> bool:
    """Whether a path is right in a directory called ``tmp``."""
    return PurePosixPath(path).parent.name == "tmp"


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file; or, without bytes, those of the file ``initial`` of the tree before the trace."""

    data: bytes = b""
    initial: str = ""
    key: bytes = b""

    @classmethod
    def of(cls, data: bytes) -> Content:
        """Some bytes."""
        return cls(data, key=hashlib.blake2b(data, digest_size=20).digest())

    @classmethod
    def before(cls, path: str) -> Content:
        """What a file had before the trace."""
        return cls(initial=path, key=b"\0" + os.fsencode(path))


@dataclass(frozen=True, slots=True)
class CrashState:
    """What is left when the power goes after ``position`` effects of the trace.

    ``lost``: places in the trace of the name operations and, for torn files, of the creations that did not
    survive whole.
    """

    position: int
    files: Mapping[str, Content]
    directories: frozenset[str]
    removed: frozenset[str]
    acked: tuple[str, ...]
    lost: tuple[int, ...]

    def materialise(self, target: Path, initial: Path | None = None) -> None:
        """Write the tree into a new or empty directory, over a copy of the tree from before the trace."""
        if initial is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            shutil.copytree(initial, target, dirs_exist_ok=True, symlinks=True)
        for path in self.removed:
            (target / path).unlink(missing_ok=True)
        for path in sorted(self.directories):
            (target / path).mkdir(mode=0o700)
        for path, content in self.files.items():
            place = target / path
            place.unlink(missing_ok=True)
            if content.initial:
                if initial is None:
                    raise ValueError(f"{path} was {content.initial} before the trace: the initial tree is needed")
                shutil.copy2(initial / content.initial, place)
            else:
                place.write_bytes(content.data)
                place.chmod(0o400)


def sync_effects(trace: Sequence[Effect]) -> list[int]:
    """Where the syncs are in a trace."""
    return [place for place, effect in enumerate(trace) if effect.op in SYNCS]


def without(trace: Sequence[Effect], nth: int) -> list[Effect]:
    """The trace without its n-th sync (from 0): as if the program had forgotten it."""
    place = sync_effects(trace)[nth]
    return [*trace[:place], *trace[place + 1 :]]


def crash_states(
    trace: Sequence[Effect],
    *,
    limit_pending: int = 12,
    sample: int = 200,
    seed: int = 0,
    noise: Callable[[str], bool] = in_temp,
) -> Iterator[CrashState]:
    """The distinct states a power cut can leave, last position first.

    All of them where at most ``2 ** limit_pending`` combinations are open. Elsewhere: all kept, none kept, one
    missing, one early, and ``sample`` random ones. A tree comes once, with its last position: the one at which the
    most has been acknowledged, so the hardest to satisfy.

    Names for which ``noise`` is true are temporary: they are not varied one by one (that would double the states
    with every object written), but survive as in the trace, and once per position all stay behind.
    """
    seen: set[object] = set()
    cache: _Cache = {}
    for position in range(len(trace), -1, -1):
        model = _Model(noise, cache)
        for place, effect in enumerate(trace[:position]):
            model.feed(place, effect)
        acked = tuple(effect.path for effect in trace[:position] if effect.op == ACK)
        for choice, litter in _choices(model, limit_pending, sample, random.Random(f"{seed}:{position}")):
            files, directories, removed = model.survivors(choice, litter=litter)
            key = (frozenset((path, content.key) for path, content in files.items()), directories, removed)
            if key not in seen:
                seen.add(key)
                yield CrashState(position, files, directories, removed, acked, model.lost(choice))


def _choices(
    model: _Model, limit_pending: int, sample: int, chance: random.Random
) -> Iterator[tuple[tuple[int, ...], bool]]:
    """For every open question of a model its answer (0: kept, 1: lost, more: torn in some way); and litter or not."""
    sizes = model.open_questions()
    kept, lost = (0,) * len(sizes), (1,) * len(sizes)
    yield kept, False
    yield kept, True
    if math.prod(sizes) <= 2**limit_pending:
        for choice in itertools.product(*map(range, sizes)):
            yield choice, False
        return
    yield lost, False
    for base in (kept, lost):
        for place, size in enumerate(sizes):
            for answer in range(size):
                yield (*base[:place], answer, *base[place + 1 :]), False
    for _ in range(sample):
        yield tuple(chance.randrange(size) for size in sizes), False


@dataclass(slots=True)
class _File:
    """A file made in the trace."""

    born: int
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    synced: int = 0

    @property
    def state(self) -> tuple[int, int, int]:
        """Determines, for one trace, what may be left of the data."""
        return self.born, self.size, self.synced


_Cache = dict[tuple[int, int, int], list[Content]]


def _variants(whole: bytes, start: int) -> list[Content]:
    """What may be left of data of which the first ``start`` bytes are synced: all; only these; in between."""
    cuts = [start, *range((start // BLOCK + 1) * BLOCK, len(whole), BLOCK), len(whole)]
    blocks = list(itertools.pairwise(cuts)) if start < len(whole) else []
    size = len(blocks)
    if size <= _ALL_SUBSETS:
        masks = set(itertools.product((False, True), repeat=size))
    else:
        middle = {1, size // 2, size - 1}
        masks = {tuple(place < cut for place in range(size)) for cut in {0, *middle}}
        masks |= {tuple(place != hole for place in range(size)) for hole in {0, *middle}}
    found = [whole, whole[:start]]
    for mask in sorted(masks):
        torn = bytearray(whole)
        end = start
        for (low, high), keep in zip(blocks, mask, strict=True):
            if keep:
                end = high
            else:
                torn[low:high] = bytes(high - low)
        found += [bytes(torn[:end]), bytes(torn)]
    return [Content.of(data) for data in dict.fromkeys(found)]


@dataclass(slots=True)
class _NameOp:
    """A change of names in one directory: takes ``remove`` away, then adds ``add`` (a directory if no ``what``)."""

    place: int
    directory: str
    remove: str = ""
    add: str = ""
    what: _File | Content | None = None
    durable: bool = False
    noise: bool = False


class _Model:
    """The state of a file system after some effects, with what is still open about it."""

    def __init__(self, noise: Callable[[str], bool], cache: _Cache) -> None:
        self._noise = noise
        self._cache = cache
        self._now: dict[str, _File | Content] = {}
        self._ops: list[_NameOp] = []
        self._touched: set[str] = set()
        self._new: set[str] = set()
        """names that cannot have been there before the trace"""
        self._open_ops: list[_NameOp] = []
        self._open_files: list[_File] = []

    def feed(self, place: int, effect: Effect) -> None:
        """Let an effect happen. Effects that are no file operations change nothing."""
        path, target = effect.path, effect.target
        match effect.op:
            case "create":
                self._add(place, path, _File(place))
            case "write":
                file = self._file(path)
                file.pieces.append(effect.data)
                file.size += len(effect.data)
            case "fsync":
                file = self._file(path)
                file.synced = file.size
            case "mkdir":
                if path != ".":
                    self._op(place, path, add=path)
            case "link":
                self._add(place, target, self._now.get(path, Content.before(path)))
            case "unlink":
                self._now.pop(path, None)
                self._op(place, path, remove=path)
            case "rename":
                self._rename(place, path, target)
            case "fsync_dir":
                for op in self._ops:
                    op.durable |= op.directory == path
            case _:
                pass

    def open_questions(self) -> list[int]:
        """In how many ways each undecided thing can come out."""
        self._open_ops = [op for op in self._ops if not op.durable and not op.noise]
        named = [op.what for op in self._ops if isinstance(op.what, _File) and not op.noise]
        self._open_files = []
        for file in named:
            if len(self._left(file)) > 1 and not any(file is other for other in self._open_files):
                self._open_files.append(file)
        return [2] * len(self._open_ops) + [len(self._left(file)) for file in self._open_files]

    def lost(self, choice: Sequence[int]) -> tuple[int, ...]:
        """Places in the trace of what does not survive whole."""
        places = [op.place for op in self._open_ops] + [file.born for file in self._open_files]
        return tuple(sorted(place for place, answer in zip(places, choice, strict=True) if answer))

    def survivors(
        self, choice: Sequence[int], *, litter: bool
    ) -> tuple[dict[str, Content], frozenset[str], frozenset[str]]:
        """Files and directories made in the trace that are there, and older files that are not."""
        names = len(self._open_ops)
        lost = {id(op) for op, answer in zip(self._open_ops, choice, strict=False) if answer}
        torn = {id(file): answer for file, answer in zip(self._open_files, choice[names:], strict=True)}
        files: dict[str, Content] = {}
        made: set[str] = set()
        there: set[str] = set()
        removed: set[str] = set()
        for op in self._ops:
            if op.add and op.what is None:
                made.add(op.add)
            if id(op) in lost or (litter and op.noise and op.remove and not op.durable):
                continue
            if op.remove:
                files.pop(op.remove, None)
                removed.add(op.remove)
            if op.add and op.what is None:
                there.add(op.add)
            elif isinstance(op.what, Content):
                files[op.add] = op.what
            elif op.what is not None:
                files[op.add] = self._left(op.what)[torn.get(id(op.what), 0)]
        gone = made - there

        def reachable(path: str) -> bool:
            return gone.isdisjoint(_above(path))

        return (
            {path: content for path, content in files.items() if reachable(path)},
            frozenset(path for path in there if reachable(path)),
            frozenset(removed - files.keys() - self._new),
        )

    def _file(self, path: str) -> _File:
        file = self._now.get(path)
        if not isinstance(file, _File):
            raise TypeError(f"{path} was not made in the trace")
        return file

    def _left(self, file: _File) -> list[Content]:
        if file.state not in self._cache:
            self._cache[file.state] = _variants(b"".join(file.pieces), file.synced)
        return self._cache[file.state]

    def _op(
        self, place: int, path: str, *, add: str = "", remove: str = "", what: _File | Content | None = None
    ) -> None:
        """A change of names in the directory of ``path``."""
        if add and not remove and add not in self._touched:
            self._new.add(add)
        self._touched |= {add, remove}
        self._ops.append(_NameOp(place, _parent(path), remove, add, what, noise=self._noise(path)))

    def _add(self, place: int, path: str, what: _File | Content) -> None:
        self._now[path] = what
        self._op(place, path, add=path, what=what)

    def _rename(self, place: int, path: str, target: str) -> None:
        if any(op.add == path and op.what is None for op in self._ops):
            raise ValueError(f"renaming the directory {path} is not modelled")
        self._now[target] = what = self._now.pop(path, None) or Content.before(path)
        self._touched.add(target)
        if _parent(path) == _parent(target):
            self._op(place, target, add=target, remove=path, what=what)
        else:
            self._op(place, target, add=target, what=what)
            self._op(place, path, remove=path)


@functools.cache
def _above(path: str) -> tuple[str, ...]:
    return tuple(map(str, PurePosixPath(path).parents))


def _parent(path: str) -> str:
    return _above(path)[0]
