"""Bit rot (I4 bytes, R5): no flipped bit goes unnoticed, none gives wrong bytes, none harms more than it must.

A bit of every byte of every pack and of every log segment is flipped. What a file needs is known frame by frame, and
in frames that are stored as they are chunk by chunk, so that for each flip exactly the files that cannot be read are
foretold: those raise `IntegrityError` naming collection, version and path; all others are exact; `fsck` reports the
damage. Segments repair themselves from their parity, and
`fsck` says so. Which bit of a byte is flipped goes round with its position.
"""

import os
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from casstore import (
    Artifact,
    CasstoreError,
    ChunkerParams,
    ChunkMissingError,
    IntegrityError,
    Settings,
    Store,
    StoreConfig,
    Version,
)
from casstore.format.packs import FRAME_HEADER, check_pack
from casstore.format.packs import locations as places
from casstore.model import Location

Files = dict[str, bytes]
FileName = tuple[str, str, str]
"""collection, version and path"""

SMALL = StoreConfig(
    digest="xxh3-128",  # short, so that there are fewer bytes to flip
    chunker=ChunkerParams(minimum=64, average=64, maximum=128),
    frame_bytes=256,
    pack_bytes=64 * 1024,
    node_bytes=256,
)
STRIDE = 53
"""one in so many positions is also tried with newly opened stores"""
_random = random.Random(7)
LARGE = _random.randbytes(2700)
SHARED = _random.randbytes(120)
TEXT = b"all work and no play makes a dull file\n" * 9
VERSIONS: Sequence[tuple[str, Files]] = (
    ("data", {"a": _random.randbytes(80), "d/large": LARGE, "d/shared": SHARED, "empty": b""}),
    ("data", {"d/large": LARGE[:500] + b"!!" + LARGE[500:], "d/shared": SHARED, "t": TEXT}),
    ("other", {"x": SHARED, "y": _random.randbytes(60)}),
)


@dataclass(frozen=True)
class Frame:
    """A stretch of a pack that is needed as a whole: a compressed frame, or a chunk in one stored as it is."""

    pack: str
    start: int
    end: int
    header: int
    """bytes of it that are the header of a frame"""


def stretch(pack: str, place: Location) -> Frame:
    """What a chunk needs."""
    start = place.frame_offset
    if place.frame_stored == place.frame_raw + FRAME_HEADER.size:
        start += FRAME_HEADER.size + place.offset
        return Frame(pack, start, start + place.length, 0)
    return Frame(pack, start, start + place.frame_stored, FRAME_HEADER.size)


@dataclass(frozen=True)
class Sample:
    """A store, and what each of its files needs to be read."""

    path: Path
    files: dict[FileName, bytes]
    needs: dict[FileName, frozenset[Frame]]
    ends: dict[FileName, frozenset[Frame]]
    """those of which it needs the last byte"""
    frames: tuple[Frame, ...]

    def lost(self, frame: Frame | None) -> set[FileName]:
        """Files that cannot be read without a frame."""
        return {name for name, needed in self.needs.items() if frame in needed}

    def spared(self, frame: Frame | None) -> set[FileName]:
        """Those which a flip in a frame may spare: a frame is decoded no further than to what is wanted of it."""
        return {name for name in self.lost(frame) if frame not in self.ends[name]}

    def lost_with(self, pack: str) -> set[FileName]:
        """Files that cannot be read without a pack."""
        return {name for name, needed in self.needs.items() if pack in {frame.pack for frame in needed}}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    path = tmp_path_factory.mktemp("rot") / "s"
    files: dict[FileName, bytes] = {}
    needs: dict[FileName, frozenset[Frame]] = {}
    ends: dict[FileName, frozenset[Frame]] = {}
    with Store.create(path, config=SMALL, settings=Settings(workers=1)) as store:
        for name, content in VERSIONS:
            artifact = Artifact(name, type="dataset")
            for where, data in content.items():
                artifact.add_bytes(data, where)
            version = store.log_artifact(artifact)
            files.update({(name, version.version, where): data for where, data in content.items()})
        assert store.get("data:v0").get_entry("d/large").tree is not None, "with chunk-list nodes"
        reader = store._engine.reader
        locate = reader._locate
        found: list[Location | None] = []

        def seen(digests: Sequence[bytes]) -> list[Location | None]:
            places = locate(digests)
            found.extend(places)
            return places

        reader._locate = seen
        for file, data in files.items():
            forget_what_was_read(store)
            found.clear()
            assert read(store, file) == data
            here = [(stretch(place.pack.hex(), place), place) for place in found if place is not None]
            needs[file] = frozenset(frame for frame, _ in here)
            ends[file] = frozenset(
                frame for frame, place in here if not frame.header or place.offset + place.length == place.frame_raw
            )
    frames = frozenset[Frame]().union(*needs.values())
    assert len({frame.pack for frame in frames}) == len([*path.glob("packs/*/*")]) >= 5
    for pack in path.glob("packs/*/*"):
        footer = check_pack(pack.read_bytes(), pack.name)
        listed = {stretch(pack.name, place) for _, place in places(b"", footer.content)}
        assert listed == {frame for frame in frames if frame.pack == pack.name}
    return Sample(path, files, needs, ends, tuple(sorted(frames, key=lambda frame: (frame.pack, frame.start))))


def forget_what_was_read(store: Store) -> None:
    """As if the store had just been opened. (A new handle for each byte would take minutes.)"""
    engine = store._engine
    engine._nodes.clear()
    engine.reader._cache.clear()
    engine.reader._cached = 0


def read(store: Store, file: FileName) -> bytes:
    collection, version, path = file
    return store.get(f"{collection}:{version}")[path].read()


def check_reads(store: Store, sample: Sample, lost: set[FileName], spared: Iterable[FileName] = ()) -> int:
    """Lost files say so, by their names; all others are as they were. How many said so."""
    told = 0
    for file, data in sample.files.items():
        found = failure = None
        try:
            found = read(store, file)
        except IntegrityError as error:
            failure = error
        if failure is None:
            assert found == data
            assert file not in lost or file in spared, "damage was not noticed"
        else:
            assert file in lost
            assert (failure.collection, failure.version, failure.path) == file
            assert f"{file[0]}:{file[1]}/{file[2]}" in failure.message
            told += 1
    return told


def check_fsck(store: Store, lost: set[FileName]) -> None:
    """The damage is reported, with everything that it costs."""
    report = store.fsck(read_data=True)
    assert not report.clean
    affected = {name for finding in report.findings for name in finding.affected}
    for collection, version, path in lost:
        assert affected & {f"{collection}:{version}/{path}", f"{collection}:{version}"}, report.findings


@contextmanager
def flipped(path: Path, position: int) -> Iterator[None]:
    """One bit of a file is wrong in this block."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, position)
        os.pwrite(fd, bytes([byte[0] ^ 1 << position % 8]), position)
        try:
            yield
        finally:
            os.pwrite(fd, byte, position)
    finally:
        os.close(fd)


def copy(sample: Sample, tmp_path: Path) -> Path:
    path = tmp_path / "s"
    shutil.copytree(sample.path, path)
    for file in path.glob("*/**/*"):
        if file.is_file():
            file.chmod(0o600)
    return path


def damaged_frame(sample: Sample, pack: Path, position: int) -> Frame | None:
    """The frame that a flip makes unreadable. Three bytes of its header mean nothing: only the pack's seal has them."""
    for frame in sample.frames:
        if frame.pack == pack.name and frame.start <= position < frame.end:
            return None if frame.header and 1 <= position - frame.start <= 3 else frame
    return None


# ---------------------------------------------------------------- packs


@pytest.mark.parametrize("part", [0, 1], ids=["even", "odd"])
def test_a_flip_of_every_byte_of_every_pack(sample: Sample, tmp_path: Path, part: int) -> None:
    path = copy(sample, tmp_path)
    packs = sorted(path.glob("packs/*/*"))
    flips = harmless = told = 0
    with Store.open(path, read_only=True) as store:
        for pack in packs:
            for position in range(part, pack.stat().st_size, 2):
                frame = damaged_frame(sample, pack, position)
                lost = sample.lost(frame)
                with flipped(pack, position):
                    forget_what_was_read(store)
                    told += bool(check_reads(store, sample, lost, sample.spared(frame)))
                    check_fsck(store, lost)
                flips += 1
                harmless += not lost
        forget_what_was_read(store)
        assert store.fsck(read_data=True).clean
    print(f"{flips} flips, {harmless} of them in bytes that reading does not need; all reported")
    assert flips > 2000
    assert told > (flips - harmless) // 2


def test_flips_in_packs_seen_by_a_new_handle(sample: Sample, tmp_path: Path) -> None:
    """With the index there and after it was deleted; at every 53rd byte."""
    path = copy(sample, tmp_path)
    for pack in sorted(path.glob("packs/*/*")):
        for position in range(0, pack.stat().st_size, STRIDE):
            frame = damaged_frame(sample, pack, position)
            lost = sample.lost(frame)
            with flipped(pack, position):
                for _ in range(2):
                    with Store.open(path) as store:
                        check_reads(store, sample, lost, sample.spared(frame))
                        check_fsck(store, lost)
                    shutil.rmtree(path / "index")


def test_what_is_whole_is_downloaded(sample: Sample, tmp_path: Path) -> None:
    """One flip in each frame: the files that do not need it arrive, the others are named and leave nothing behind."""
    path = copy(sample, tmp_path)
    assert FRAME_HEADER.size == 16
    some = 0
    for number, frame in enumerate(sample.frames):
        pack = path / "packs" / frame.pack[:2] / frame.pack
        lost = sample.lost(frame)
        with flipped(pack, frame.start + frame.header), Store.open(path, read_only=True) as store:
            for collection, version in sorted({file[:2] for file in sample.files}):
                target = tmp_path / f"{number}-{collection}-{version}"
                gone = {file[2] for file in lost if file[:2] == (collection, version)}
                error = download(store.get(f"{collection}:{version}"), target)
                whole = {path: data for (c, v, path), data in sample.files.items() if (c, v) == (collection, version)}
                arrived = {
                    str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()
                }
                if error is None:
                    assert not gone
                    assert arrived == whole
                    continue
                assert (error.collection, error.version) == (collection, version)
                assert all(whole[path] == data for path, data in arrived.items())
                if error.path is not None:
                    # Not a directory node: the listing is whole, and so is every file that is not named.
                    assert error.path in gone
                    assert arrived == {path: data for path, data in whole.items() if path not in gone}
                    some += bool(arrived)
                for file, data in whole.items():
                    single = tmp_path / f"{number}-{collection}-{version}-single"
                    if file not in gone:
                        store.get(f"{collection}:{version}").download(single, path_prefix=file)
                        assert (single / file).read_bytes() == data
    assert some


def download(version: Version, target: Path) -> IntegrityError | None:
    try:
        version.download(target)
    except IntegrityError as error:
        return error
    return None


def test_a_missing_pack(sample: Sample, tmp_path: Path) -> None:
    path = copy(sample, tmp_path)
    for pack in sorted(path.glob("packs/*/*")):
        lost = sample.lost_with(pack.name)
        pack.rename(path / "aside")
        for _ in range(2):
            with Store.open(path) as store:
                check_reads(store, sample, lost)
                check_fsck(store, lost)
                for file in lost:
                    with pytest.raises(ChunkMissingError):
                        read(store, file)
            shutil.rmtree(path / "index")
        (path / "aside").rename(pack)
    with Store.open(path) as store:
        assert store.fsck(read_data=True).clean


def test_a_truncated_pack(sample: Sample, tmp_path: Path) -> None:
    path = copy(sample, tmp_path)
    for pack in sorted(path.glob("packs/*/*")):
        data = pack.read_bytes()
        for length in (0, 8, 30, len(data) // 2, len(data) - 100, len(data) - 1):
            cut = {frame for frame in sample.frames if frame.pack == pack.name and frame.end > length}
            lost = {file for file, needed in sample.needs.items() if needed & cut}
            pack.write_bytes(data[:length])
            with Store.open(path) as store:
                check_reads(store, sample, lost)
                check_fsck(store, lost)
        pack.write_bytes(data)
    with Store.open(path) as store:
        assert store.fsck(read_data=True).clean


def test_a_collection_deletes_nothing_while_something_needed_is_damaged(sample: Sample, tmp_path: Path) -> None:
    """The mark cannot read a node, or finds no home: then garbage may wait."""
    path = copy(sample, tmp_path)
    with Store.open(path) as store:
        store.delete("other:v0")
        store.trash.purge("other:v0")
    for pack in sorted(path.glob("packs/*/*")):
        if not any(file[0] == "data" for file in sample.lost_with(pack.name)):
            continue
        before = {file.name for file in path.glob("packs/*/*")}
        pack.rename(path / "aside")
        with Store.open(path) as store:
            try:
                report = store.gc(grace=0, max_waste=0)
            except IntegrityError:
                pass
            else:
                assert report.errors
        (path / "aside").rename(pack)
        assert {file.name for file in path.glob("packs/*/*")} >= before


# ---------------------------------------------------------------- the log


def test_a_flip_of_every_byte_of_every_segment(sample: Sample, tmp_path: Path) -> None:
    """Nothing is lost, and `fsck` says which segment repairs itself. The view is folded from the damaged log."""
    path = copy(sample, tmp_path)
    flips = 0
    for segment in sorted(path.glob("log/*")):
        for position in range(segment.stat().st_size):
            with flipped(segment, position), Store.open(path, read_only=True) as store:
                check_segment_repairs_itself(store, sample, segment)
            flips += 1
    print(f"{flips} flips in {len([*path.glob('log/*')])} segments, all repaired and reported")
    assert flips > 1000


def check_segment_repairs_itself(store: Store, sample: Sample, segment: Path) -> None:
    assert all(read(store, file) == data for file, data in sample.files.items())
    (finding,) = store.fsck().findings
    assert (finding.kind, finding.subject) == ("log", f"segment {int(segment.name)}")
    assert "can be repaired" in finding.message


def test_flips_in_segments_seen_by_a_new_handle(sample: Sample, tmp_path: Path) -> None:
    """With the index there and after it was deleted; at every 53rd byte."""
    path = copy(sample, tmp_path)
    for segment in sorted(path.glob("log/*")):
        for position in range(0, segment.stat().st_size, STRIDE):
            with flipped(segment, position):
                for _ in range(2):
                    with Store.open(path) as store:
                        check_segment_repairs_itself(store, sample, segment)
                    shutil.rmtree(path / "index")
        with Store.open(path) as store:
            assert store.fsck(read_data=True).clean


def test_a_segment_past_repair(sample: Sample, tmp_path: Path) -> None:
    """Two damaged blocks: an index made earlier still serves; without it, opening says which segment it is."""
    path = copy(sample, tmp_path)
    for segment in sorted(path.glob("log/*")):
        with flipped(segment, 70), flipped(segment, segment.stat().st_size // 2):
            with Store.open(path) as store:
                check_reads(store, sample, set())
                assert any(f.subject == f"segment {int(segment.name)}" for f in store.fsck().findings)
            with pytest.raises(IntegrityError, match=f"segment {int(segment.name)}"):
                Store.open(path, read_only=True)


def test_a_missing_segment(sample: Sample, tmp_path: Path) -> None:
    path = copy(sample, tmp_path)
    segments = sorted(path.glob("log/*"))
    assert len(segments) == 3
    segments[1].rename(path / "aside")
    with Store.open(path) as store:
        assert [f.subject for f in store.fsck().findings] == ["segment 2"]
    (path / "aside").rename(segments[1])
    segments[2].rename(path / "aside")
    with pytest.raises(IntegrityError, match="ends before segment 3"):
        Store.open(path)


# ---------------------------------------------------------------- the rest


def test_a_flip_of_every_byte_of_the_format(sample: Sample, tmp_path: Path) -> None:
    path = copy(sample, tmp_path)
    file = path / "format"
    file.chmod(0o600)
    with Store.open(path, read_only=True) as store:
        config = store.config
    refused = 0
    for position in range(file.stat().st_size):
        with flipped(file, position):
            try:
                with Store.open(path, read_only=True) as store:
                    assert store.config == config
            except CasstoreError:
                refused += 1
    assert refused > file.stat().st_size // 2


def test_the_index_is_deleted(sample: Sample, tmp_path: Path) -> None:
    path = copy(sample, tmp_path)
    with Store.open(path) as store:
        store.get("data:v1").add_alias("best")
        usage = store.du()
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        check_reads(store, sample, set())
        assert store.get("data:best").version == "v1"
        assert store.get("data").version == "v1"
        assert [version.version for version in store.versions("data")] == ["v1", "v0"]
        again = store.du()
        assert (again.logical, again.unique, again.stored) == (usage.logical, usage.unique, usage.stored)
        assert store.fsck(read_data=True).clean
