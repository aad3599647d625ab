"""Versions moved between stores as one file, and copied within a store (FEATURES Q15; with B7, B6, A17).

Guards that nothing is lost or changed on the way (content, digests where the stores agree on them, labels, order),
that an import is all or nothing, and that each side is left as it was when it is refused or interrupted.
What bundles from strangers can do is in tests/security/test_hostile_bundles.py.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from casstore import (
    AlreadyExistsError,
    Artifact,
    CasstoreError,
    ChunkerParams,
    CollectionNotFoundError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    InvalidNameError,
    LimitError,
    NameTakenError,
    QuotaExceededError,
    ReadOnlyError,
    RefusedError,
    Runtime,
    Store,
    StoreConfig,
    TypeConflictError,
    Version,
    VersionNotFoundError,
)
from casstore.cli import main
from casstore.engine import Engine
from casstore.testing.snapshot import snapshot

OTHERS = (
    StoreConfig(digest="sha256"),
    StoreConfig(chunker=ChunkerParams.around(4096)),
    StoreConfig(chunker=ChunkerParams("fixed", 4096, 4096, 4096)),
    StoreConfig(node_bytes=256),
)
"""stores that name or cut content in another way"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", config=StoreConfig(node_bytes=1024)) as opened:
        yield opened


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "target", config=StoreConfig(node_bytes=1024)) as opened:
        yield opened


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def artifact(name: str = "ds", kind: str = "dataset", **contents: bytes) -> Artifact:
    made = Artifact(name, kind)
    for path, data in contents.items():
        made.add_bytes(data, path)
    return made


def rich(tmp_path: Path, name: str = "ds") -> Artifact:
    """Everything a version can have: long and empty files, modes, links, empty directories, references, many paths."""
    rng = random.Random(7)
    tree = tmp_path / f"tree-{name}"
    (tree / "empty").mkdir(parents=True)
    (tree / "run.sh").write_bytes(b"#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "to").symlink_to("run.sh")
    made = Artifact(name, "dataset", description="words", metadata={"b": [1, 2.5, None], "a": {"ü": True}})
    made.add_dir(tree, symlinks="store", keep_mode=True, keep_empty_dirs=True)
    made.add_bytes(rng.randbytes(3_000_000), "long")
    made.add_bytes(b"", "none")
    made.add_bytes(bytes(2_000_000), "zeros")
    for number in range(120):
        made.add_bytes(rng.randbytes(rng.randrange(1, 2000)), f"many/{number % 7}/f{number}")
    made.add_reference("https://example.org/data.bin", "far", False)
    return made


def content(version: Version) -> dict[str, object]:
    """All a version holds: entries with their bytes."""
    return {
        entry.path: (entry.kind, entry.size, entry.mode, entry.target, entry.uri, entry.kind == "file" and entry.read())
        for entry in version.files()
    }


def moved(store: Store, target: Store, *refs: str, **options: object) -> dict[str, str]:
    """Export and import in memory; the report's mapping."""
    stream = io.BytesIO()
    store.export(refs, stream)
    stream.seek(0)
    return target.import_bundle(stream, **options).refs  # type: ignore[arg-type]


# --- there and back


def test_content_and_labels_arrive_as_they_were(store: Store, target: Store, tmp_path: Path, bundle: Path) -> None:
    """Same digest algorithm, chunker and node size: same digests."""
    first = store.log_artifact(
        rich(tmp_path), aliases=["latest", "best"], tags=["t", "u v"], ttl=timedelta(days=9), attrs={"host": [1]}
    )
    draft = first.new_draft()
    draft.add_bytes(b"more", "more")
    second = store.log_artifact(draft, aliases=["latest", "next"], ttl=None)
    report = store.export(["ds:v0", "ds"], bundle)
    assert report.versions == ("default/default/ds:v0", "default/default/ds:v1")
    assert report.bundle_bytes == bundle.stat().st_size
    done = target.import_bundle(bundle)
    assert done.refs == {"default/default/ds:v0": "ds:v0", "default/default/ds:v1": "ds:v1"}
    assert (len(done.versions), done.skipped, done.recut) == (2, (), False)
    assert done.new_bytes == report.plain_bytes
    for old, new in ((first, target.get("ds:v0")), (second, target.get("ds:v1"))):
        assert new.digest == old.digest
        assert content(new) == content(old)
        for label in (
            "type",
            "description",
            "metadata",
            "tags",
            "attrs",
            "aliases",
            "size",
            "file_count",
            "base",
            "ttl",
        ):
            assert getattr(new, label) == getattr(old, label), label
    assert [found.logged_at for found in done.versions] == [first.created_at, second.created_at]
    assert [found.source_digest for found in done.versions] == [first.digest, second.digest]
    assert not target.fsck(read_data=True).findings


@pytest.mark.parametrize("config", OTHERS, ids=("digest", "chunker", "fixed", "nodes"))
def test_a_store_that_cuts_otherwise_gets_the_same_bytes(
    store: Store, tmp_path: Path, bundle: Path, config: StoreConfig
) -> None:
    """The digests are those the store would have made itself."""
    first = store.log_artifact(rich(tmp_path))
    draft = first.new_draft()
    draft.remove("many/3/")
    second = store.log_artifact(draft)
    store.export(["ds:v0", "ds:v1"], bundle)
    with Store.create(tmp_path / "other", config=config) as other:
        done = other.import_bundle(bundle)
        assert done.recut
        assert [content(other.get(f"ds:v{n}")) for n in (0, 1)] == [content(first), content(second)]
        own = other.log_artifact(rich(tmp_path, "own"))
        assert own.digest == other.get("ds:v0").digest == done.versions[0].digest
        assert own.digest != first.digest
        assert own.new_bytes == 0
        again = other.import_bundle(bundle)
        assert (again.versions, len(again.skipped), again.new_bytes, again.stored_bytes) == ((), 2, 0, 0)
        assert not other.fsck(read_data=True).findings


def test_an_empty_version_travels(store: Store, target: Store) -> None:
    """No chunk, one node."""
    version = store.log_artifact(Artifact("ds"))
    moved(store, target, "ds")
    assert target.get("ds").digest == version.digest


def test_importing_twice_stores_nothing_and_makes_no_version(store: Store, target: Store, bundle: Path) -> None:
    """A→B→A: as many versions as in the bundle, each matched once."""
    for data in (b"a", b"b", b"a"):
        store.log_artifact(artifact(x=data), dedup="never")
    store.export(["ds:v0", "ds:v1", "ds:v2"], bundle)
    assert [found.ref for found in target.import_bundle(bundle).versions] == ["ds:v0", "ds:v1", "ds:v2"]
    before, head = snapshot(Path(target.url)), target.head
    again = target.import_bundle(bundle)
    assert (again.versions, again.new_bytes, again.stored_bytes) == ((), 0, 0)
    assert [found.ref for found in again.skipped] == ["ds:v0", "ds:v1", "ds:v2"]
    assert (snapshot(Path(target.url)), target.head) == (before, head)


def test_content_that_is_there_is_not_stored_again(store: Store, target: Store, tmp_path: Path) -> None:
    """Whatever collection it is in."""
    target.log_artifact(rich(tmp_path, "mine"))
    version = store.log_artifact(rich(tmp_path))
    stream = io.BytesIO()
    store.export("ds", stream)
    stream.seek(0)
    report = target.import_bundle(stream)
    assert (len(report.versions), report.new_bytes, report.stored_bytes) == (1, 0, 0)
    assert target.get("ds").digest == version.digest


def test_numbers_go_on_and_the_order_stays(store: Store, target: Store) -> None:
    """New numbers in the target; what is there already is skipped, labels and all."""
    for data in (b"0", b"1", b"2"):
        store.log_artifact(artifact(x=data))
    target.log_artifact(artifact(x=b"1"))
    refs = moved(store, target, "ds:v2", "ds:v0", "ds:v1")
    assert list(refs.values()) == ["ds:v1", "ds:v2", "ds:v0"]
    assert refs["default/default/ds:v1"] == "ds:v0"
    assert [target.get(f"ds:v{n}").get_entry("x").read() for n in range(3)] == [b"1", b"0", b"2"]
    assert target.get("ds").version == "v2"


def test_numbers_of_a_purged_collection_go_on(store: Store, target: Store) -> None:
    """B1 holds for imports: no number is used twice."""
    store.log_artifact(artifact(x=b"0"))
    target.log_artifact(artifact(kind="model", x=b"old"))
    target.collection("ds").delete()
    target.trash.purge("ds")
    assert list(moved(store, target, "ds").values()) == ["ds:v1"]
    assert target.get("ds").type == "dataset"


def test_what_a_version_was_made_from_is_translated_or_left_out(store: Store, target: Store) -> None:
    """``base`` names a version of another store otherwise."""
    base = store.log_artifact(artifact(x=b"0"))
    draft = base.new_draft()
    draft.add_bytes(b"1", "y")
    store.log_artifact(draft)
    target.log_artifact(artifact(x=b"other"))
    refs = moved(store, target, "ds:v0", "ds:v1")
    assert target.get(refs["default/default/ds:v1"]).base == refs["default/default/ds:v0"] == "ds:v1"
    moved(store, target, "ds:v1", project="p")
    assert target.get("p/ds").base is None


def test_links_travel_as_what_they_lead_to(store: Store, target: Store) -> None:
    """Under the name of the link, with the labels of the source."""
    made = artifact(x=b"0")
    made.description, made.metadata = "words", {"k": 1}
    version = store.log_artifact(made, tags=["t"], ttl=timedelta(days=9), attrs={"host": 1}, aliases=["latest", "own"])
    version.link("port/folio", ["best"])
    refs = moved(store, target, "port/folio:best")
    assert refs == {"default/port/folio:v0": "port/folio:v0"}
    for found in (target.get("port/folio:best"), store.copy("port/folio:best", "copied")):
        for label in ("digest", "type", "description", "metadata", "tags", "attrs", "size", "file_count"):
            assert getattr(found, label) == getattr(version, label), label
        assert not found.is_link
    assert target.get("port/folio").ttl == version.ttl
    with pytest.raises(RefusedError):
        moved(store, store, "port/folio:best")


def test_a_bundle_of_the_first_format_can_be_imported(tmp_path: Path) -> None:
    """docs/FORMAT.md §10: for ever. Never make the file anew."""
    golden = Path(__file__).parents[1] / "golden" / "bundle-1.casbundle"
    with Store.open(tmp_path / "target", create=True) as target:
        report = target.import_bundle(golden)
        assert [str(found.digest) for found in report.versions] == [
            "blake3:2462dc0d5b8b24d5f38f60ea3f75b3a892655e3c33386120cbf11d44e6797d9a",
            "blake3:16704a5d4eb589e05b5bc8afbd757ec9fdbbad02da3234b98091ce657b9e68b8",
        ]
        assert report.versions[0].logged_at == datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
        version = target.get("ds:best")
        assert (version.version, version.type, version.description) == ("v0", "dataset", "words")
        assert (version.metadata, version.tags, version.attrs) == ({"k": [1, 2.5]}, ("t",), {"host": 1})
        assert (version.ttl, target.get("ds:v1").base) == (timedelta(days=1), "ds:v0")
        assert content(version) == {
            "empty": ("dir", 0, None, None, None, False),
            "far": ("reference", None, None, None, "https://example.org/x", False),
            "run.sh": ("file", 10, 0o750, None, None, b"#!/bin/sh\n"),
            "to": ("link", 0, None, "run.sh", None, False),
            "zeros": ("file", 300, None, None, None, bytes(300)),
        }


# --- where to


def test_collections_can_go_to_another_project_or_name(store: Store, target: Store) -> None:
    """``rename`` goes before ``project``."""
    store.log_artifact(artifact("a", x=b"a"))
    store.log_artifact(artifact("b", x=b"b"), project="ml/vision")
    assert list(moved(store, target, "a", "ml/vision/b").values()) == ["a:v0", "ml/vision/b:v0"]
    assert list(moved(store, target, "a", "ml/vision/b", project="p").values()) == ["p/a:v0", "p/b:v0"]
    refs = moved(store, target, "a", "ml/vision/b", project="q", rename={"a": "c", "ml/vision/b": "z/d"})
    assert list(refs.values()) == ["q/c:v0", "z/d:v0"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rename": {"zz": "b"}}, InvalidInputError),
        ({"rename": {"a": "b"}}, InvalidInputError),
        ({"rename": {"a": "../b"}}, InvalidNameError),
        ({"rename": ["a"]}, InvalidInputError),
        ({"rename": {"a": 5}}, InvalidInputError),
        ({"project": "x/y/z"}, InvalidNameError),
        ({"project": 5}, InvalidInputError),
        ({"max_bytes": 0}, InvalidInputError),
        ({"max_bytes": 10}, LimitError),
    ],
)
def test_wrong_wishes_change_nothing(
    store: Store, target: Store, options: dict[str, object], error: type[CasstoreError]
) -> None:
    """Two collections that would become one are among them."""
    for name in ("a", "b"):
        store.log_artifact(artifact(name, x=b"x" * 100))
    before, head = snapshot(Path(target.url)), target.head
    with pytest.raises(error):
        moved(store, target, "a", "b", **options)
    assert (snapshot(Path(target.url)), target.head) == (before, head)


def test_aliases_that_are_taken_stay_where_they_are(store: Store, target: Store) -> None:
    """And are reported; free ones are set, also on versions that were there."""
    store.log_artifact(artifact(x=b"0"), aliases=["latest", "prod", "old"])
    store.log_artifact(artifact(x=b"1"), aliases=["latest", "next"])
    target.log_artifact(artifact(x=b"mine"), aliases=["latest", "prod"])
    target.log_artifact(artifact(x=b"1"))
    stream = io.BytesIO()
    store.export(["ds:v0", "ds:v1"], stream)
    stream.seek(0)
    plain = target.import_bundle(stream, aliases=False, dry_run=True)
    assert [(v.aliases, v.aliases_taken) for v in (*plain.versions, *plain.skipped)] == [((), ())] * 2
    stream.seek(0)
    report = target.import_bundle(stream)
    assert [(v.aliases, v.aliases_taken) for v in (*report.versions, *report.skipped)] == [
        (("old",), ("prod",)),
        (("next",), ()),
    ]
    assert {name: target.get(f"ds:{name}").version for name in ("prod", "old", "next", "latest")} == {
        "prod": "v0",
        "old": "v2",
        "next": "v1",
        "latest": "v2",
    }


def test_labels_of_versions_that_are_there_stay(store: Store, target: Store) -> None:
    """As when an artifact is logged again without ``update``."""
    made = artifact(x=b"0")
    made.description, made.metadata = "new", {"k": 1}
    store.log_artifact(made, tags=["t"])
    target.log_artifact(artifact(x=b"0"))
    stream = io.BytesIO()
    store.export("ds", stream)
    stream.seek(0)
    (found,) = target.import_bundle(stream).skipped
    assert found.ignored == ("description", "metadata", "tags")
    assert target.get("ds").description == ""


# --- all or nothing


def test_one_conflict_and_nothing_arrives(store: Store, target: Store) -> None:
    """Types and trashed collections are looked at before anything is stored."""
    store.log_artifact(artifact("a", x=b"a"))
    store.log_artifact(artifact("b", x=b"b"))
    target.log_artifact(artifact("b", "model", x=b"m"))
    for error in (TypeConflictError, NameTakenError):
        before, head = snapshot(Path(target.url)), target.head
        with pytest.raises(error):
            moved(store, target, "a", "b")
        assert (snapshot(Path(target.url)), target.head) == (before, head)
        with pytest.raises(CollectionNotFoundError):
            target.get("a")
        if error is TypeConflictError:
            target.collection("b").delete()


def test_a_full_store_gets_nothing(store: Store, target: Store, tmp_path: Path) -> None:
    """The packs are taken back, too."""
    store.log_artifact(rich(tmp_path))
    target.quota(100_000)
    before, head = snapshot(Path(target.url)), target.head
    with pytest.raises(QuotaExceededError):
        moved(store, target, "ds")
    after = snapshot(Path(target.url))
    assert target.head == head
    assert {path: what for path, what in after.items() if path in before or what != "directory"} == before


@pytest.mark.parametrize("phase", ["check", "store"])
def test_an_interrupted_import_leaves_no_trace(store: Store, target: Store, tmp_path: Path, phase: str) -> None:
    """Ctrl-C in the callback, as late as it gets."""
    store.log_artifact(rich(tmp_path))
    stream = io.BytesIO()
    store.export("ds", stream)
    before, head = snapshot(Path(target.url)), target.head

    def interrupt(seen: str, done: int, total: int) -> None:
        if seen == phase and done == total:
            raise KeyboardInterrupt

    stream.seek(0)
    with pytest.raises(KeyboardInterrupt):
        target.import_bundle(stream, progress=interrupt)
    after = snapshot(Path(target.url))
    assert target.head == head
    assert {path: what for path, what in after.items() if path in before or what != "directory"} == before
    stream.seek(0)
    assert len(target.import_bundle(stream).versions) == 1


def test_a_dry_run_says_what_an_import_does_and_does_nothing(store: Store, tmp_path: Path, bundle: Path) -> None:
    """Also where files have to be cut again, and in a store that is read-only."""
    store.log_artifact(rich(tmp_path), aliases=["a"])
    store.log_artifact(artifact(x=b"1"))
    store.export(["ds:v0", "ds:v1"], bundle)
    for number, config in enumerate((StoreConfig(node_bytes=1024), *OTHERS)):
        where = tmp_path / f"t{number}"
        with Store.create(where, config=config) as other:
            other.log_artifact(artifact("mine", y=b"1"))
            before, head = snapshot(where), other.head
            with Store.open(where, read_only=True) as looking:
                foreseen = looking.import_bundle(bundle, dry_run=True)
                with pytest.raises(ReadOnlyError):
                    looking.import_bundle(bundle)
            assert (snapshot(where), other.head) == (before, head)
            done = other.import_bundle(bundle)
            assert replace(foreseen, dry_run=False, stored_bytes=done.stored_bytes) == done
            again = other.import_bundle(bundle, dry_run=True)
            assert (again.new_bytes, len(again.skipped)) == (0, 2)


def test_what_a_collector_takes_meanwhile_is_stored_again(store: Store, tmp_path: Path) -> None:
    """A claim that was broken between looking and committing; in both ways of importing."""
    version = store.log_artifact(rich(tmp_path))
    bundle = tmp_path / "bundle"
    store.export("ds", bundle)
    for number, config in enumerate((StoreConfig(node_bytes=1024), OTHERS[0])):
        with Store.create(tmp_path / f"t{number}", config=config) as other:
            other.log_artifact(rich(tmp_path, f"mine{number}"))
            collected = False

            def collect(phase: str, done: int, total: int, other: Store = other, number: int = number) -> None:
                nonlocal collected
                if phase == "store" and done == total and not collected:
                    collected = True
                    with Store.open(other.url) as collector:
                        collector.delete(f"mine{number}:v0")
                        collector.trash.purge(f"mine{number}:v0")
                        assert collector.gc(grace=0, max_waste=0).freed_chunks > 0

            report = other.import_bundle(bundle, progress=collect)
            assert collected
            assert len(report.versions) == 1
            assert content(other.get("ds")) == content(version)
            assert not other.fsck(read_data=True).findings


# --- the file


def test_the_same_versions_give_the_same_bytes(store: Store, target: Store, tmp_path: Path) -> None:
    """In whatever order, however often and by whatever name they are given."""
    store.log_artifact(rich(tmp_path))
    store.log_artifact(artifact("b", x=b"b"))
    found = set()
    for refs in (["ds", "b"], ["b:v0", "ds:v0", "ds:latest", "b"]):
        stream = io.BytesIO()
        store.export(refs, stream)
        found.add(stream.getvalue())
    assert len(found) == 1
    moved(store, target, "ds")


def test_only_what_readers_see_can_be_exported(store: Store, bundle: Path) -> None:
    """Versions in the trash, purged or past their time cannot."""
    store.log_artifact(artifact(x=b"0"))
    store.log_artifact(artifact(x=b"1"))
    store.delete("ds:v0")
    for refs, error in (
        (["ds:v0"], VersionNotFoundError),
        (["ds:v1", "ds:v0"], VersionNotFoundError),
        (["nothing"], CollectionNotFoundError),
        ([], InvalidInputError),
        (["a:b:c"], InvalidNameError),
        ([5], InvalidInputError),
    ):
        with pytest.raises(error):
            store.export(refs, bundle)  # type: ignore[arg-type]
    assert os.listdir(bundle.parent) == ["store"]


def test_an_expired_version_cannot_be_exported(tmp_path: Path) -> None:
    """G1: readers do not see it."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with Store.open(tmp_path / "s", create=True, clock=lambda: now) as store:
        store.log_artifact(artifact(x=b"0"), ttl=timedelta(hours=1))
        now += timedelta(hours=2)
        with pytest.raises(VersionNotFoundError):
            store.export("ds:v0", io.BytesIO())


def test_a_file_that_is_there_is_kept(store: Store, bundle: Path) -> None:
    """Unless it is to be overwritten; then it is replaced as a whole."""
    store.log_artifact(artifact(x=b"0"))
    bundle.write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError):
        store.export("ds", bundle)
    assert bundle.read_bytes() == b"mine"
    store.export("ds", bundle, overwrite=True)
    assert bundle.read_bytes()[:8] == b"CASBNDL1"
    link = bundle.with_name("dangling")
    link.symlink_to("nowhere")
    with pytest.raises(AlreadyExistsError):
        store.export("ds", link)
    for place in (bundle.parent, bundle.parent / "no" / "directory"):
        with pytest.raises(CasstoreError):
            store.export("ds", place, overwrite=True)
    assert sorted(os.listdir(bundle.parent)) == ["bundle", "dangling", "store"]


def test_a_file_that_appears_meanwhile_is_kept(store: Store, bundle: Path) -> None:
    """Exclusive at the last moment, too."""
    store.log_artifact(artifact(x=b"0"))

    def meddle(phase: str, done: int, total: int) -> None:
        bundle.write_bytes(b"mine")

    with pytest.raises(AlreadyExistsError):
        store.export("ds", bundle, progress=meddle)
    assert bundle.read_bytes() == b"mine"
    assert sorted(os.listdir(bundle.parent)) == ["bundle", "store"]


def test_an_interrupted_export_leaves_no_file(store: Store, bundle: Path) -> None:
    """Neither under its name nor under another."""
    store.log_artifact(artifact(x=b"0"))

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "write":
            raise KeyboardInterrupt

    for overwrite in (False, True):
        with pytest.raises(KeyboardInterrupt):
            store.export("ds", bundle, overwrite=overwrite, progress=interrupt)
        assert os.listdir(bundle.parent) == ["store"]


def test_damage_ends_an_export(store: Store, tmp_path: Path, bundle: Path) -> None:
    """I6: no bundle with a hole in it; the error names the version."""
    store.log_artifact(rich(tmp_path))
    packs = [path for path in Path(store.url, "packs").rglob("*") if path.is_file()]
    largest = max(packs, key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with Store.open(store.url) as again, pytest.raises(IntegrityError) as caught:
        again.export("ds", bundle)
    assert caught.value.collection == "ds"
    assert not bundle.exists()


class Pipe(io.RawIOBase):
    """A stream that cannot seek, gives a little at a time and takes a little at a time."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = min(1000, size) if size >= 0 else len(self.data)
        part = bytes(self.data[:size])
        del self.data[:size]
        return part

    def write(self, data: object) -> int:
        part = bytes(memoryview(data)[:1000])  # type: ignore[arg-type]
        self.data += part
        return len(part)


def test_streams_will_do(store: Store, target: Store, tmp_path: Path) -> None:
    """Such that write and give little at a time, cannot seek, or begin in the middle."""
    version = store.log_artifact(rich(tmp_path))
    pipe = Pipe()
    size = store.export("ds", pipe).bundle_bytes  # type: ignore[arg-type]
    assert len(pipe.data) == size
    middle = io.BytesIO(b"before" + bytes(pipe.data))
    middle.seek(6)
    with pytest.raises(LimitError):
        target.import_bundle(Pipe(bytes(pipe.data)), max_bytes=size - 1)  # type: ignore[arg-type]
    assert target.import_bundle(Pipe(bytes(pipe.data))).versions[0].digest == version.digest  # type: ignore[arg-type]
    assert target.import_bundle(middle).skipped[0].digest == version.digest


@pytest.mark.parametrize("wrong", [5, None, io.StringIO("text"), "", "no\0path", "/no/such/file", "/"])
def test_what_is_no_file_is_refused(store: Store, wrong: object) -> None:
    """Both ways."""
    store.log_artifact(artifact(x=b"0"))
    with pytest.raises((InvalidInputError, FormatError)):
        store.import_bundle(wrong)  # type: ignore[arg-type]


def test_a_stream_is_put_aside_only_so_far(store: Store, bundle: Path) -> None:
    """``max_bytes`` counts what comes in, too: here there is more of that than of content."""
    store.log_artifact(artifact(x=b"0"))
    report = store.export("ds", bundle)
    limit = report.plain_bytes + 1
    assert report.bundle_bytes > limit
    assert store.import_bundle(bundle, max_bytes=limit).skipped
    with pytest.raises(LimitError):
        store.import_bundle(Pipe(bundle.read_bytes()), max_bytes=limit)  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_content(tmp_path: Path) -> None:
    """Export, import as it is, and import cut again: 48 MB of files, 32 MB of memory."""
    config = StoreConfig(pack_bytes=1 << 20)
    big = tmp_path / "big"
    rng = random.Random(1)
    with big.open("wb") as file:
        for _ in range(48):
            file.write(rng.randbytes(1 << 20))
    made = Artifact("ds")
    made.add_file(big)
    bundle = tmp_path / "bundle"
    with (
        Store.create(tmp_path / "a", config=config) as store,
        Store.create(tmp_path / "b", config=config) as target,
        Store.create(tmp_path / "c", config=replace(config, digest="sha256")) as other,
    ):
        store.log_artifact(made)
        steps: list[Callable[[], object]] = [
            lambda: store.export("ds", bundle),
            lambda: target.import_bundle(bundle),
            lambda: other.import_bundle(bundle),
        ]
        for step in steps:
            tracemalloc.start()
            step()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 32_000_000


def test_whoever_runs_the_store_is_asked(store: Store, tmp_path: Path, bundle: Path) -> None:
    """Before anything is stored; for the collection it goes to."""
    store.log_artifact(artifact(x=b"0"))
    store.export("ds", bundle)
    asked: list[tuple[str, str]] = []

    def authorize(actor: str, action: str, target: str) -> bool:
        asked.append((action, target))
        return target != "secret/ds"

    with Store.create(tmp_path / "guarded", runtime=Runtime(authorize=authorize)) as guarded:
        before = snapshot(tmp_path / "guarded")
        with pytest.raises(RefusedError):
            guarded.import_bundle(bundle, project="secret")
        assert snapshot(tmp_path / "guarded") == before
        guarded.import_bundle(bundle, project="open")
        assert ("log", "open/ds") in asked
        with pytest.raises(RefusedError):
            guarded.copy("open/ds", "secret/ds")


# --- copying inside a store


def test_a_copy_reads_no_chunk_and_writes_little(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q15: O(1). Labels come along, content is the same."""
    version = store.log_artifact(rich(tmp_path), aliases=["latest", "best"], tags=["t"], ttl=timedelta(days=3))

    def refuse(*_: object) -> object:
        raise AssertionError("a chunk was read")

    before = snapshot(Path(store.url))
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "node", refuse)
        with Store.open(store.url) as again:
            patch.setattr(type(again._engine.reader), "fetch", refuse)
            copy = again.copy("ds:best", "team/prod/ds", aliases=["live"])
    new = set(snapshot(Path(store.url))) - set(before)
    assert sum(Path(store.url, path).stat().st_size for path in new if Path(store.url, path).is_file()) < 4096
    copy = store.get(copy.qualified_name)
    assert (copy.ref, copy.digest, copy.base) == ("team/prod/ds:v0", version.digest, "ds:v0")
    for label in ("type", "description", "metadata", "tags", "size", "file_count"):
        assert getattr(copy, label) == getattr(version, label), label
    assert (copy.aliases, copy.ttl) == (("latest", "live"), None)
    assert content(copy) == content(version)


def test_a_copy_outlives_its_source(store: Store) -> None:
    """It is a version, not a link."""
    store.log_artifact(artifact(x=b"0"))
    store.copy("ds", "kept")
    store.delete("ds:v0")
    store.trash.purge("ds:v0")
    store.gc(grace=0, max_waste=0)
    assert store.get("kept").get_entry("x").read() == b"0"


def test_a_copy_follows_the_rules_of_logging(store: Store) -> None:
    """Unchanged content makes no version, ``dedup`` and ``update`` as there; its own collection is one like others."""
    store.log_artifact(artifact(x=b"0"), tags=["t"])
    store.log_artifact(artifact(x=b"1"))
    assert store.copy("ds:v0", "b", tags=["u"]).tags == ("u",)
    again = store.copy("ds:v0", "b", aliases=["a"])
    assert (again.created, again.version, again.ignored, again.aliases) == (False, "v0", ("tags",), ("a", "latest"))
    assert store.copy("ds:v0", "b", update=True).tags == ("t",)
    revert = store.copy("ds:v0", "ds")
    assert (revert.created, revert.version, revert.latest_before) == (True, "v2", "v1")
    assert not store.copy("ds:v1", "ds", dedup="any").created
    assert store.get("ds").version == "v1"
    aside = store.copy("ds:v0", "ds", dedup="never", move_latest=False)
    assert (aside.version, store.get("ds").version) == ("v3", "v1")


def test_a_copy_that_is_refused_changes_nothing(store: Store) -> None:
    """Types, the trash, names."""
    store.log_artifact(artifact(x=b"0"))
    store.log_artifact(artifact("m", "model", x=b"0"))
    store.log_artifact(artifact("gone", x=b"0"))
    store.delete("gone:v0")
    head = store.head
    for ref, dest, error in (
        ("ds", "m", TypeConflictError),
        ("gone:v0", "ds", VersionNotFoundError),
        ("nothing", "ds", CollectionNotFoundError),
        ("ds", "a/b/c/d", InvalidNameError),
        ("ds", "x:v0", InvalidNameError),
    ):
        with pytest.raises(error):
            store.copy(ref, dest)
    with pytest.raises(InvalidInputError):
        store.copy("ds", "b", dedup="sometimes")
    assert store.head == head


# --- the command line


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == code, (words, result.output)
    return result.stdout


def test_the_command_line_moves_versions(store: Store, target: Store, tmp_path: Path, bundle: Path) -> None:
    """export, import and cp with their exit codes."""
    store.log_artifact(rich(tmp_path), aliases=["latest", "best"])
    here, there = ("--store", store.url), ("--store", target.url)
    said = json.loads(run("export", "ds", "-o", str(bundle), "--json", *here))
    assert (said["versions"], said["bundle_bytes"]) == (["default/default/ds:v0"], bundle.stat().st_size)
    run("export", "ds", "-o", str(bundle), *here, code=11)
    run("export", "ds", "-o", str(bundle), "--overwrite", *here)
    run("export", "ds:v7", "-o", str(tmp_path / "x"), *here, code=10)
    run("export", "ds", "-o", "-", "--json", *here, code=2)
    run("import", str(bundle), "--rename", "ds", *there, code=2)
    run("import", str(bundle), "--rename", "ds=a", "--rename", "ds=b", *there, code=2)
    run("import", str(bundle), "--max-bytes", "10B", *there, code=2)
    run("import", str(tmp_path / "nothing"), *there, code=2)
    assert "new" in run("import", str(bundle), "--rename", "ds=p/other", "--dry-run", *there)
    assert run("import", str(bundle), "--project", "p", *there).splitlines()[0] == "default/default/ds:v0 p/ds:v0 new"
    again = json.loads(run("import", str(bundle), "--project", "p", "--no-aliases", "--json", *there))
    assert [found["created"] for found in again["versions"]] == [False]
    target.log_artifact(artifact("ds", "model", x=b"0"))
    run("import", str(bundle), *there, code=11)
    (tmp_path / "short").write_bytes(bundle.read_bytes()[:-1])
    run("import", str(tmp_path / "short"), *there, code=20)
    (tmp_path / "text").write_bytes(b"hello")
    run("import", str(tmp_path / "text"), *there, code=21)
    assert run("cp", "p/ds:best", "q/ds", "--alias", "live", *there) == "q/ds:v0 created\n"
    assert run("cp", "p/ds", "q/ds", *there) == "q/ds:v0 unchanged\n"
    run("cp", "p/ds", "ds", *there, code=11)


def test_a_bundle_goes_through_a_pipe(store: Store, target: Store, tmp_path: Path) -> None:
    """stdout to stdin, of real processes."""
    version = store.log_artifact(rich(tmp_path))
    code = "import sys; from casstore.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code]
    out = subprocess.Popen([*words, "export", "ds", "-o", "-", "--store", store.url], stdout=subprocess.PIPE)
    assert out.stdout is not None
    into = [*words, "import", "-", "--store", target.url]
    done = subprocess.run(into, stdin=out.stdout, capture_output=True, check=False)
    out.stdout.close()
    assert (out.wait(), done.returncode) == (0, 0), done.stderr
    assert target.get("ds").digest == version.digest
