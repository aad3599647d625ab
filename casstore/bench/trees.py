"""The directory that every contender reads: a copy of the user's, which becomes version after version in place."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is in a tree."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What turns one tree into the next: paths below its root, in the order to go through them."""

    gone: tuple[str, ...]
    """files, links and directories, the inner ones first"""
    written: tuple[str, ...]
    """directories, links and files that are new or differ, the outer ones first"""


def extent(tree: Path) -> Extent:
    """Files and their bytes."""
    sizes = [os.lstat(path).st_size for path in _leaves(tree)]
    return Extent(len(sizes), sum(sizes))


def copy_tree(source: Path, target: Path) -> None:
    """A copy with modes, times and links as they are; target is made. Raises `subprocess.CalledProcessError`."""
    target.mkdir(parents=True)
    subprocess.run(["/usr/bin/env", "cp", "-a", "--", f"{source}/.", str(target)], check=True, capture_output=True)


def changes(old: Path, new: Path) -> Changes:
    """What differs between two trees, by content and kind; mere times and modes are no difference."""
    before, after = dict(_walk(old)), dict(_walk(new))
    gone = [path for path, kind in before.items() if after.get(path) != kind]
    written = [
        path
        for path, kind in after.items()
        if before.get(path) != kind or (kind != "directory" and not _equal(old / path, new / path, kind))
    ]
    return Changes(tuple(sorted(gone, reverse=True)), tuple(sorted(written)))


def apply(change: Changes, new: Path, tree: Path) -> None:
    """Make a tree that was as the old one as the new one: files that stay as they are, are not touched at all.

    A file that differs is written beside its place and renamed into it, as package managers and rsync do.
    """
    for path in change.gone:
        target = tree / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    for path in change.written:
        source, target = new / path, tree / path
        if source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
            continue
        part = target.with_name(target.name + ".part~")
        shutil.copy(source, part, follow_symlinks=False)
        part.replace(target)


def differences(a: Path, b: Path) -> str:
    """What ``diff -r`` has to say about two trees; empty if they are equal byte for byte, links by where they lead."""
    done = subprocess.run(
        ["/usr/bin/env", "diff", "-r", "--no-dereference", "--", str(a), str(b)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[:500] or "they differ"


def remove(path: Path) -> None:
    """Remove a tree, also where programs have taken the right to write away; nothing there is fine."""

    def writable(function: object, name: str, failure: object) -> None:  # noqa: ARG001 - the signature rmtree wants
        os.chmod(os.path.dirname(name), 0o700)
        if not os.path.islink(name):
            os.chmod(name, 0o700)
        if os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name)
        else:
            os.unlink(name)

    if os.path.lexists(path):
        shutil.rmtree(path, onerror=writable)


def _walk(tree: Path) -> Iterator[tuple[str, str]]:
    root = os.fspath(tree)
    for top, directories, files in os.walk(root):
        for name in [*directories, *files]:
            full = os.path.join(top, name)
            yield os.path.relpath(full, root), _kind(full)


def _leaves(tree: Path) -> Iterator[str]:
    return (os.path.join(tree, path) for path, kind in _walk(tree) if kind != "directory")


def _kind(path: str) -> str:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return "link"
    return "directory" if stat.S_ISDIR(mode) else "file"


def _equal(a: Path, b: Path, kind: str) -> bool:
    if kind == "link":
        return os.readlink(a) == os.readlink(b)
    if os.path.getsize(a) != os.path.getsize(b):
        return False
    with open(a, "rb") as left, open(b, "rb") as right:
        while True:
            block = left.read(_BLOCK)
            if block != right.read(_BLOCK):
                return False
            if not block:
                return True
