"""The programs that are compared, each with its defaults and with the flags that make it fastest or smallest."""

from __future__ import annotations

from pathlib import Path

from casstore.bench.contenders.borg import Borg
from casstore.bench.contenders.casync import Casync
from casstore.bench.contenders.contender import Contender
from casstore.bench.contenders.dvc import Dvc
from casstore.bench.contenders.floors import Copy, Tar
from casstore.bench.contenders.git import Git
from casstore.bench.contenders.ours import Casstore
from casstore.bench.contenders.restic import Restic
from casstore.bench.contenders.xet import Xet

__all__ = ["Contender", "all_contenders", "default_names"]


def all_contenders(rivals: Path | None = None) -> list[Contender]:
    """Every contender, installed or not; ``rivals``: a virtual environment that has DVC and hf_xet."""
    scripts = rivals / "bin" if rivals is not None else None
    return [
        Casstore(),
        Casstore("casstore-xxh3", "--digest=xxh3-128"),
        Restic(),
        Restic("restic-fast", "--pack-size=64", "--option=local.connections=4"),
        Restic("restic-small", "--pack-size=64", "--compression=max"),
        Borg(),
        Borg("borg-fast", "--compression=lz4", "--noacls", "--noxattrs", "--noflags", "--checkpoint-interval=86400"),
        Borg("borg-small", "--compression=zstd,3", "--chunker-params=buzhash,12,18,15,4095"),
        Casync(),
        Casync("casync-fast", "--digest=sha512-256", "--without=all", "--with=symlinks"),
        Casync("casync-small", "--chunk-size=32768"),
        Dvc(scripts=scripts),
        Dvc("dvc-fast", "cache.type=hardlink", scripts=scripts),
        Xet(scripts=scripts),
        Xet("hf_xet-fast", "--skip-sha256", scripts=scripts),
        Git(),
        Git("git-fast", "core.compression=1", "gc.auto=0", "core.untrackedCache=true"),
        Git("git-small", aggressive=True),
        Copy(),
        Tar(),
        Tar("tar-fast", "-1 -T0"),
    ]


def default_names(contenders: list[Contender]) -> list[str]:
    """One of each program, with its default flags: the first of each tool."""
    first: dict[str, str] = {}
    for contender in contenders:
        first.setdefault(contender.tool, contender.name)
    return list(first.values())
