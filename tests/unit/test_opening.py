"""What opening a store reads: as much of a large one as of a small one."""

from __future__ import annotations

from pathlib import Path

import pytest

from casstore import Artifact, IntegrityError, Store
from casstore.backend.local import LocalBackend
from casstore.format.segments import SEGMENT_HEAD


def logged(store: Store, count: int) -> None:
    artifact = Artifact("c")
    for number in range(count):
        artifact.add_bytes(b"%d" % number, f"f{number}")
    store.log_artifact(artifact)


def test_opening_reads_the_beginning_of_the_last_segment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that brought a million chunks has tens of megabytes, and its chain hash is at its beginning."""
    with Store.open(tmp_path / "s", create=True) as store:
        logged(store, 500)
    read: list[int] = []
    original = LocalBackend.read

    def noting(self: LocalBackend, key: str, **place: int) -> bytes:
        data = original(self, key, **place)
        if key.startswith("log/"):
            read.append(len(data))
        return data

    monkeypatch.setattr(LocalBackend, "read", noting)
    with Store.open(tmp_path / "s"):
        pass
    assert read == [SEGMENT_HEAD]


@pytest.mark.parametrize("damaged", ["head", "body"])
def test_a_damaged_segment_says_nothing_about_a_view_that_was_made_when_it_was_whole(
    tmp_path: Path, damaged: str
) -> None:
    with Store.open(tmp_path / "s", create=True) as store:
        logged(store, 5)
    segment = tmp_path / "s" / "log" / f"{1:020d}"
    data = bytearray(segment.read_bytes())
    # The header is there twice.
    for at in (20, len(data) - 44) if damaged == "head" else (70, len(data) // 2):
        data[at] ^= 1
    segment.chmod(0o600)
    segment.write_bytes(data)
    with Store.open(tmp_path / "s") as store:
        assert store.get("c:v0").file_count == 5


def test_a_log_that_went_another_way_is_noticed_by_the_beginning_of_its_last_segment(tmp_path: Path) -> None:
    for name in ("s", "other"):
        with Store.open(tmp_path / name, create=True) as store:
            logged(store, 5)
    segment = tmp_path / "s" / "log" / f"{1:020d}"
    segment.unlink()
    segment.write_bytes((tmp_path / "other" / "log" / segment.name).read_bytes())
    with pytest.raises(IntegrityError, match="differs at segment 1"):
        Store.open(tmp_path / "s")
