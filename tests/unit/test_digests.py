"""Digests of many pieces in one call: those of the blake3 package, bit for bit, whatever the pieces are."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import pytest
import xxhash

from casstore import Artifact, Store, StoreConfig, reading
from casstore.config import ChunkerParams, Runtime, Settings, system_micros
from casstore.digest import Buffer, hash_function, piecewise
from casstore.statcache import MARGIN_NS
from casstore.state import CHUNK

DATA = random.Random(5).randbytes(300_000)
SMALL = StoreConfig(chunker=ChunkerParams(minimum=64, average=256, maximum=1024), frame_bytes=4096, node_bytes=512)


def expected(data: bytes, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    return [blake3.blake3(data[start:end]).digest() for start, end in zip(starts, ends, strict=True)]


def test_any_mixture_of_pieces_has_the_digests_of_the_package() -> None:
    source = random.Random(6)
    for number in range(60):
        starts = [source.randrange(len(DATA)) for _ in range(number)]
        ends = [min(len(DATA), start + int(10 ** source.uniform(0, 5.3))) for start in starts]
        assert piecewise("blake3")(DATA, starts, ends) == expected(DATA, starts, ends)


@pytest.mark.parametrize("algorithm", ["blake3", "sha256", "xxh3-128"])
def test_pieces_have_the_digests_that_single_buffers_have(algorithm: str) -> None:
    one: dict[str, Callable[[bytes], bytes]] = {
        "blake3": lambda data: blake3.blake3(data).digest(),
        "sha256": lambda data: hashlib.sha256(data).digest(),
        "xxh3-128": xxhash.xxh3_128_digest,
    }
    starts, ends = [0, 5, 5, 100, 0], [0, 5, 5000, 40_000, len(DATA)]
    wanted = [one[algorithm](DATA[start:end]) for start, end in zip(starts, ends, strict=True)]
    assert [hash_function(algorithm)(DATA[start:end]) for start, end in zip(starts, ends, strict=True)] == wanted
    kinds: list[Buffer] = [DATA, bytearray(DATA), memoryview(DATA), memoryview(b"x" + DATA)[1:]]
    for data in kinds:
        assert piecewise(algorithm)(data, starts, ends) == wanted
    assert piecewise(algorithm)(b"", [], []) == []


def test_pieces_that_are_not_in_the_buffer_are_refused() -> None:
    wrong: list[tuple[list[int], list[int]]] = [
        ([0], [11]),
        ([-1], [5]),
        ([6], [5]),
        ([11], [11]),
        ([0], [-1]),
        ([0, 1], [5]),
        ([0], [5, 6]),
    ]
    for starts, ends in wrong:
        with pytest.raises(ValueError):
            piecewise("blake3")(b"0123456789", starts, ends)
    with pytest.raises(TypeError):
        piecewise("blake3")("text", [0], [1])  # type: ignore[arg-type]


@dataclass
class Clock:
    """The files' clock: what was changed by ``settled`` (µs) may be read by the quick reader."""

    settled: int

    def __call__(self) -> int:
        return self.settled + MARGIN_NS // 1000


def mixed_tree(root: Path) -> int:
    """Files that the quick reader takes and such that it leaves, by turns; the moment (µs) between them."""
    root.mkdir()
    source = random.Random(7)
    contents = {f"f{number:03}": source.randbytes(number * 37) for number in range(90)} | {"big": DATA}
    contents["same"] = contents["f080"]
    for name, data in contents.items():
        if int.from_bytes(name.encode()[-1:], "big") % 2:
            (root / name).write_bytes(data)
    between = max(path.stat().st_ctime_ns for path in root.iterdir()) // 1000 + 1
    probe = root.with_name("probe")
    while not probe.exists() or probe.stat().st_ctime_ns // 1000 <= between:
        probe.write_bytes(os.urandom(1))  # until the kernel's clock has ticked
    for name, data in contents.items():
        if not (root / name).exists():
            (root / name).write_bytes(data)
    return between


def test_a_version_is_the_same_whoever_reads_its_files_and_the_store_has_no_other_chunks(tmp_path: Path) -> None:
    between = mixed_tree(tmp_path / "tree")
    outcomes = set()
    for settled in (0, between, system_micros() + 3600 * 10**6):  # none, some and all files read by the quick reader
        runtime = Runtime(file_clock=Clock(settled), quiet=lambda _: None)
        place = tmp_path / f"store-{settled}"
        with Store.create(place, config=SMALL, settings=Settings(workers=2), runtime=runtime) as store:
            draft = Artifact("data")
            draft.add_dir(tmp_path / "tree")
            version = store.log_artifact(draft)
            version.verify()
            for path in (tmp_path / "tree").iterdir():
                assert version[path.name].read() == path.read_bytes()
            with store._engine.view.read() as tables:
                rows = dict(tables.scan(CHUNK))
            outcomes.add((version.digest, frozenset(rows)))
    assert len(outcomes) == 1


def test_buffers_that_are_used_again_leave_nothing_of_what_was_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that grow and shrink from batch to batch, and some longer than a batch."""
    monkeypatch.setattr(reading, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(reading, "HERE_BYTES", 0)
    source = random.Random(8)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(120):
        size = source.choice((0, 1, 64, 65, 700, 5000, 19_999, 20_001, 45_000))
        (tree / f"f{number:03}").write_bytes(source.randbytes(size))
    runtime = Runtime(file_clock=Clock(system_micros() + 3600 * 10**6), quiet=lambda _: None)
    with Store.create(tmp_path / "store", config=SMALL, settings=Settings(workers=2), runtime=runtime) as store:
        draft = Artifact("data")
        draft.add_dir(tree)
        version = store.log_artifact(draft)
        version.verify()
        for path in tree.iterdir():
            assert version[path.name].read() == path.read_bytes()
