"""The inputs of the benchmarks: each is a list of directories, one for each version. Made once, kept in ``.work``.

Everything is reproducible: fixed releases from PyPI, or bytes from a seeded generator.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from casstore.bench.corpora import release

PROJECT = Path(__file__).resolve().parent.parent
WORK = PROJECT / ".work"
CORPORA = WORK / "corpora"

WHEEL = ("scipy", ("1.13.0", "1.13.1", "1.14.0"))
"""three consecutive releases, 120 to 132 MB each unpacked, about 1,350 files"""
SDIST = ("Django", ("5.1.1", "5.1.2", "5.1.3"))
"""three consecutive releases, 57 MB each unpacked, 6,800 files"""


def releases(name: str, versions: tuple[str, ...], *, wheel: bool) -> list[Path]:
    """Consecutive releases of a package, unpacked. Raises `casstore.bench.corpora.Unavailable`."""
    CORPORA.mkdir(parents=True, exist_ok=True)
    return [release(CORPORA, name, version, wheel=wheel) for version in versions]


def standard_library() -> Path:
    """A copy of the standard library of this interpreter, without byte code and installed packages."""
    target = CORPORA / f"stdlib-{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return _once(target, _copy_standard_library)


def _copy_standard_library(target: Path) -> None:
    left_out = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages")
    source = sysconfig.get_path("stdlib")
    # Links are followed; those of a broken installation are left out, for a version cannot hold them either.
    shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True, ignore_dangling_symlinks=True)


def modified(tree: Path) -> Path:
    """A copy of a tree in which one file in fifty is changed, three are gone and one is new."""

    def make(target: Path) -> None:
        shutil.copytree(tree, target, dirs_exist_ok=True)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        for path in files[::50]:
            os.chmod(path, 0o644)
            data = path.read_bytes()
            half = len(data) // 2
            path.write_bytes(data[:half] + b"# changed for the benchmark\n" + data[half:])
        for path in files[1:4]:
            path.unlink()
        (target / "added.txt").write_text("new in this version\n" * 100, encoding="utf-8")

    return _once(tree.with_name(tree.name + "-modified"), make)


def checkpoints(size: int = 128 << 20) -> list[Path]:
    """Three states of a float32 model: 2 % of its tensors change in place, then 10 MB come in near the front."""

    def make(target: Path) -> None:
        source = random.Random(20)
        weights = _floats(source, size)
        tensor = size // 200
        _write(target / "0" / "model.bin", weights)
        for number in source.sample(range(200), 4):
            weights[number * tensor : (number + 1) * tensor] = _floats(source, tensor)
        _write(target / "1" / "model.bin", weights)
        at = size // 20 + 1
        weights[at:at] = _floats(source, 10_000_000)
        _write(target / "2" / "model.bin", weights)

    made = _once(CORPORA / f"checkpoints-{size >> 20}", make)
    return [made / str(number) for number in range(3)]


# Sign and upper exponent bits of weights around zero: what makes trained float32 data compress by a tenth.
_HIGH_BYTES = bytes(b"\x3d\xbd\x3c\xbc\x3c\xbc\x3b\xbb"[i % 8] for i in range(256))


def _floats(source: random.Random, size: int) -> bytearray:
    data = bytearray(source.randbytes(size))
    data[3::4] = source.randbytes(len(data[3::4])).translate(_HIGH_BYTES)
    return data


def small_files(count: int, smallest: int, largest: int, *, directories: int = 100) -> Path:
    """Files of text-like content, evenly spread over directories."""

    def make(target: Path) -> None:
        source = random.Random(count)
        words = [source.randbytes(source.randint(1, 5)).hex() for _ in range(4000)]
        for number in range(count):
            size = source.randint(smallest, largest)
            text = " ".join(source.choices(words, k=size // 5 + 2))
            path = target / f"d{number % directories:03}" / f"f{number:06}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number} {text}"[:size], encoding="ascii")

    return _once(CORPORA / f"small-{count}-{smallest}-{largest}", make)


def random_file(name: str, size: int, *, seed: int, insert_at: int | None = None) -> Path:
    """A file of random bytes, with one more byte at some place."""

    def make(target: Path) -> None:
        data = random.Random(seed).randbytes(size)
        if insert_at is not None:
            data = data[:insert_at] + b"\x00" + data[insert_at:]
        _write(target / name, data)

    extra = "" if insert_at is None else f"-{insert_at}"
    return _once(CORPORA / f"random-{size}-{seed}{extra}", make)


def _once(target: Path, make: Callable[[Path], None]) -> Path:
    if not target.is_dir():
        part = target.with_name(target.name + ".part")
        _fresh(part)
        make(part)
        part.rename(target)
    return target


def _fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _write(path: Path, data: bytes | bytearray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
