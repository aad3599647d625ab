"""The files that are stored: four made by this module, or the user's own directories.

All are reproducible: fixed releases from PyPI, or bytes of a seeded generator. They are made once and kept.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from array import array
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from casstore.bench.trees import copy_tree, remove

WHEELS = (
    *("1.11.1", "1.11.2", "1.11.3", "1.11.4", "1.12.0"),
    *("1.13.0", "1.13.1", "1.14.0", "1.14.1", "1.15.0"),
)
SOURCES = ("5.1.1", "5.1.2", "5.1.3", "5.1.4", "5.1.5", "5.1.6")

# One wheel for everybody, whatever machine and interpreter this is: the numbers are then about the same bytes.
_PLATFORM = (
    "--only-binary=:all:",
    "--platform=manylinux2014_x86_64",
    "--python-version=311",
    "--implementation=cp",
    "--abi=cp311",
)
_CHECKPOINT_BYTES = 1_074_000_000  # not exceeded: whole layers
_INSERTED_BYTES = 10_000_000
_SMALL_FILES = 100_000


class Unavailable(Exception):
    """A corpus cannot be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Consecutive versions of one directory."""

    name: str
    versions: tuple[Path, ...]
    textual: bool = False
    """a source tree of small texts, which have a goal of their own"""


MAKERS: dict[str, Callable[[Path, float], Corpus]] = {
    "wheels": lambda home, scale: _wheels(home, scale),
    "ckpt": lambda home, scale: _checkpoints(home, scale),
    "small": lambda home, scale: _small(home, scale),
    "src": lambda home, scale: _sources(home, scale),
}
"""name → what makes it in a directory, at a scale: 1 is its full size"""


def make(name: str, home: Path, scale: float) -> Corpus:
    """One of `MAKERS`, made in ``home`` unless it is there. Raises `Unavailable`."""
    home.mkdir(parents=True, exist_ok=True)
    return MAKERS[name](home, scale)


def of_directories(directories: tuple[Path, ...]) -> Corpus:
    """The user's own: each directory is a version."""
    return Corpus("own", directories)


# --- releases


def _wheels(home: Path, scale: float) -> Corpus:
    """Ten consecutive releases of a compiled package, 100 to 130 MB and about 1,400 files each; fewer if scaled."""
    chosen = WHEELS[: max(2, round(len(WHEELS) * scale))]
    return Corpus("wheels", tuple(release(home, "scipy", version, wheel=True) for version in chosen))


def _sources(home: Path, scale: float) -> Corpus:
    """Six consecutive releases of a web framework, 44 MB and 6,900 files each; fewer if scaled."""
    chosen = SOURCES[: max(2, round(len(SOURCES) * scale))]
    unpacked = [release(home, "Django", version, wheel=False) for version in chosen]
    # An archive holds one directory named after the release, and nobody's tree is renamed with each release.
    return Corpus("src", tuple(next(path.iterdir()) for path in unpacked), textual=True)


def release(home: Path, name: str, version: str, *, wheel: bool) -> Path:
    """A release of a package from PyPI, unpacked. Raises `Unavailable` if pip cannot get it."""
    return _once(home / f"{name}-{version}", lambda target: _unpack(home, name, version, target, wheel=wheel))


def _unpack(home: Path, name: str, version: str, target: Path, *, wheel: bool) -> None:
    downloads = home.parent / "downloads"
    downloads.mkdir(exist_ok=True)
    pattern = f"{name}-{version}-*.whl" if wheel else f"{name}-{version}.tar.gz"
    archive = next(downloads.glob(pattern), None)
    if archive is None:
        # pip asks a source release for its metadata, which needs its build tools: isolated, so that ours need not fit.
        form = _PLATFORM if wheel else (f"--no-binary={name}",)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, "--retries=1", "--timeout=15", *form, f"--dest={downloads}", f"{name}=={version}"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        archive = next(downloads.glob(pattern), None)
        if done.returncode or archive is None:
            last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise Unavailable(f"{name} {version} cannot be fetched: {last}")
    if wheel:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(target)  # noqa: S202 - a wheel of PyPI; zipfile keeps names inside the target
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")


# --- a model


def _checkpoints(home: Path, scale: float) -> Corpus:
    """Four states of a float32 model of 1,041 MB, at full scale.

    v1: 2 % of the tensors (by bytes) have changed in place; v2: 10 MB have come in near the front; v3: half of the
    tensors have been truncated to the 16 bits of bfloat16, in place.
    """
    size = max(1_000_000, round(_CHECKPOINT_BYTES * scale))
    made = _once(home / f"ckpt-{size}", lambda target: _make_checkpoints(target, size))
    return Corpus("ckpt", tuple(made / f"v{number}" for number in range(4)))


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def items(self) -> int:
        product = 1
        for side in self.shape:
            product *= side
        return product

    @property
    def bytes(self) -> int:
        return self.items * (8 if self.kind == "I64" else 4)


def _layout(size: int) -> list[_Tensor]:
    """Tensors as those of a small language model, of about so many bytes in all."""
    width = 64
    while 4 * _parameters(width * 2) <= size:
        width *= 2
    tensors = [
        _Tensor("embed.positions", "I64", (2048,)),
        _Tensor("embed.tokens", "F32", (16 * width, width)),
    ]
    layers = max(1, (size - 2 * tensors[1].bytes) // (4 * 12 * width * width))
    for number in range(layers):
        prefix = f"layers.{number}"
        tensors += [
            _Tensor(f"{prefix}.norm.weight", "F32", (width,)),
            _Tensor(f"{prefix}.norm.bias", "F32", (width,)),
            *(_Tensor(f"{prefix}.attention.{part}", "F32", (width, width)) for part in ("q", "k", "v", "o")),
            _Tensor(f"{prefix}.mlp.up", "F32", (4 * width, width)),
            _Tensor(f"{prefix}.mlp.down", "F32", (width, 4 * width)),
            _Tensor(f"{prefix}.mlp.scale", "F32", (4 * width,)),
        ]
    return [*tensors, _Tensor("head", "F32", (16 * width, width))]


def _parameters(width: int) -> int:
    return 2 * 16 * width * width + 12 * 12 * width * width


def _make_checkpoints(target: Path, size: int) -> None:
    source = random.Random(20)
    layout = _layout(size)
    tensors = [_values(source, tensor) for tensor in layout]
    big = [at for at, tensor in enumerate(layout) if tensor.kind == "F32" and tensor.items > 10_000]
    _write_model(target / "v0", layout, tensors)
    budget = sum(tensor.bytes for tensor in layout) // 50
    for at in source.sample(big, len(big)):
        if layout[at].bytes <= budget:
            budget -= layout[at].bytes
            tensors[at] = _values(source, layout[at])
    _write_model(target / "v1", layout, tensors)
    inserted = _Tensor("adapter", "F32", (max(1, min(_INSERTED_BYTES, size // 20) // 4),))
    layout.insert(1, inserted)
    tensors.insert(1, _values(source, inserted))
    _write_model(target / "v2", layout, tensors)
    for at in source.sample(range(len(layout)), len(layout) // 2):
        if layout[at].kind == "F32":
            tensors[at][0::4] = tensors[at][1::4] = bytes(layout[at].items)
    _write_model(target / "v3", layout, tensors)


def _write_model(directory: Path, layout: list[_Tensor], tensors: list[bytearray]) -> None:
    """A file of the safetensors form: the length of a JSON header, the header, the tensors one after another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in layout:
        header[tensor.name] = {
            "dtype": tensor.kind,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.bytes],
        }
        at += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    directory.mkdir(parents=True)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(tensors)


def _values(source: random.Random, tensor: _Tensor) -> bytearray:
    """What such a tensor holds: numbers up to its length, mostly ones or zeros, few values, or normal weights."""
    if tensor.kind == "I64":
        return bytearray(array("q", range(tensor.items)).tobytes())
    if tensor.name.endswith("bias"):
        return bytearray(tensor.bytes)
    if tensor.name.endswith(("weight", "scale")):
        return bytearray(array("f", source.choices((1.0, 1.0, 1.0, 0.5, 0.996), k=tensor.items)).tobytes())
    return _normal(source, tensor.items)


_LANES = 1 << 18


def _normal(source: random.Random, count: int) -> bytearray:
    """Float32 numbers, nearly normal with a deviation as weights have it, all 24 bits of each in use.

    A number is the sum of four even ones of 30 bits, made for many at once by adding long integers.
    """
    factor = 0.02 * 2.0 ** source.uniform(-1.5, 1.5) * 3**0.5 / 2**30
    data = bytearray()
    for begun in range(0, count, _LANES):
        lanes = min(_LANES, count - begun)
        limit, signed = _masks(lanes)
        total = sum(source.getrandbits(32 * lanes) & limit for _ in range(4))
        whole = array("i", (total ^ signed).to_bytes(4 * lanes, "little"))
        data += array("f", map(factor.__mul__, whole)).tobytes()
    return data


@lru_cache(maxsize=8)
def _masks(lanes: int) -> tuple[int, int]:
    limit, signed = b"\xff\xff\xff\x3f", b"\x00\x00\x00\x80"
    return int.from_bytes(limit * lanes, "little"), int.from_bytes(signed * lanes, "little")


# --- many small files


def _small(home: Path, scale: float) -> Corpus:
    """100,000 text-like files of 0.5 to 8 KB, 435 MB; v1: 500 of them changed, 100 added, 100 removed."""
    count = max(100, round(_SMALL_FILES * scale))

    def make_both(target: Path) -> None:
        source = random.Random(count)
        text = _texts(source)
        for number in range(count):
            _write_text(target / "v0", number, text())
        copy_tree(target / "v0", target / "v1")
        chosen = source.sample(range(count), max(6, count // 1000 * 6))
        sixth = len(chosen) // 6
        for number in chosen[:sixth]:
            _text_path(target / "v1", number).unlink()
        for number in chosen[sixth:]:
            path = _text_path(target / "v1", number)
            old = path.read_text(encoding="ascii")
            at = source.randrange(len(old))
            path.write_text(f"{old[:at]} changed {number} {old[at:]}", encoding="ascii")
        for number in range(count, count + sixth):
            _write_text(target / "v1", number, text())

    made = _once(home / f"small-{count}", make_both)
    return Corpus("small", (made / "v0", made / "v1"))


def _texts(source: random.Random) -> Callable[[], str]:
    """Makes texts of 0.5 to 8 KB: words as frequent as in a language, in lines."""
    letters = "eeeeeeettttaaaaooooiiiinnnnssshhhrrrdddlllcuumwfgypbvk"
    words = ["".join(source.choices(letters, k=source.randint(2, 10))) for _ in range(20_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))

    def text() -> str:
        size = source.randint(500, 8200)
        total = weights[-1]
        chosen = [words[bisect(weights, source.random() * total)] for _ in range(size // 6)]
        lines = [" ".join(chosen[at : at + 12]) for at in range(0, len(chosen), 12)]
        return "\n".join(lines)[:size]

    return text


def _write_text(top: Path, number: int, text: str) -> None:
    path = _text_path(top, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{number} {text}\n", encoding="ascii")


def _text_path(top: Path, number: int) -> Path:
    return top / f"d{number % 100:03}" / f"f{number:06}.txt"


def _once(target: Path, build: Callable[[Path], None]) -> Path:
    """What ``build`` makes, unless it is there; a half of it never is."""
    if not target.is_dir():
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        remove(part)
        part.mkdir(parents=True)
        try:
            build(part)
            part.rename(target)
        except FileExistsError:  # somebody else was as quick
            remove(part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return target
