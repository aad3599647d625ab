"""References in artifacts and stores (FEATURES F1, F6-F14, A3, A10): never stored, always proved, never deleted."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from click.testing import CliRunner, Result

from casstore import (
    Artifact,
    ArtifactFinalizedError,
    InvalidInputError,
    InvalidMetadataError,
    InvalidPathError,
    PathConflictError,
    Store,
    Version,
)
from casstore.cli import main
from casstore.digest import Digest
from casstore.errors import (
    CasstoreError,
    FormatError,
    LimitError,
    ReferenceChangedError,
    ReferenceMissingError,
    RefusedError,
    UnsupportedSchemeError,
)
from casstore.format.nodes import DIRECTORY, decode_node, encode_entry, encode_node
from casstore.model import Entry, EntryKind, Pointer
from casstore.names import canonical_attrs
from casstore.reference import Access, Resolved, register
from casstore.reference import http as http_module
from casstore.reference import registry as registry_module
from casstore.testing.recipes import SMALL
from casstore.testing.snapshot import snapshot


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", config=SMALL) as opened:
        yield opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with two files, a longer one below."""
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"alpha")
    (root / "sub" / "long").write_bytes(b"0123456789" * 5000)
    return root


def referring(uri: str | Entry, name: str | None = None, **options: object) -> Artifact:
    draft = Artifact("ds", "dataset")
    draft.add_reference(uri, name, **options)  # type: ignore[arg-type]
    return draft


@contextmanager
def unchanged(draft: Artifact) -> Iterator[None]:
    before = (list(draft.files()), draft.changes())
    yield
    assert (list(draft.files()), draft.changes()) == before


# --- adding --------------------------------------------------------------------------------------


def test_names_are_those_of_files(data: Path) -> None:
    """The mapping table of document 002: last part of the URI, ``name``, and below ``name`` for a directory."""
    long = (data / "sub" / "long").as_uri()
    for uri, name, paths in [
        (long, None, ["long"]),
        (long, "models/mine", ["models/mine"]),
        (data.as_uri(), None, ["a.txt", "sub/long"]),
        (data.as_uri(), "images", ["images/a.txt", "images/sub/long"]),
        (data.as_uri() + "/", "images/", ["images/a.txt", "images/sub/long"]),
    ]:
        draft = Artifact("ds")
        added = draft.add_reference(uri, name)
        assert [entry.path for entry in added] == paths == [entry.path for entry in draft.files()]
        assert all(entry.kind is EntryKind.REFERENCE and entry.ref == entry.uri for entry in added)


def test_a_uri_without_a_name_in_it_needs_one() -> None:
    draft = Artifact("ds")
    for uri in ("https://host", "https://host/", "x://host?q"):
        with pytest.raises(InvalidInputError) as refused:
            draft.add_reference(uri, checksum=False, allow_opaque=True)
        assert refused.value.hint == "name="
    (entry,) = draft.add_reference("https://host/", "page.html", checksum=False)
    assert (entry.path, entry.size, entry.length, entry.unverified) == ("page.html", None, 0, True)


@pytest.mark.parametrize("uri", ["https://host/..", "https://host/a%2Fb%00", "https://host/%ff", "https://host/C:x"])
def test_a_name_from_a_uri_follows_the_rules_of_paths(uri: str) -> None:
    with pytest.raises(InvalidPathError):
        referring(uri, checksum=False)


def test_adding_is_all_or_nothing(data: Path) -> None:
    draft = Artifact("ds")
    draft.add_bytes(b"other", "sub/long")
    for options, kind in [
        ({}, PathConflictError),
        ({"max_objects": 1}, LimitError),
        ({"max_objects": 0}, InvalidInputError),
        ({"max_objects": -1}, InvalidInputError),
        ({"max_objects": True}, InvalidInputError),
        ({"name": "../x"}, InvalidPathError),
        ({"name": "sub/long"}, PathConflictError),
        ({"attrs": {"x": float("nan")}}, InvalidMetadataError),
        ({"on_private_address": "perhaps"}, InvalidInputError),
        ({"timeout": 0}, InvalidInputError),
    ]:
        with unchanged(draft), pytest.raises(kind):
            draft.add_reference(data.as_uri(), **options)  # type: ignore[arg-type]
    with unchanged(draft), pytest.raises(UnsupportedSchemeError):
        draft.add_reference("hdfs://nn/x")
    assert len(draft.add_reference(data.as_uri(), overwrite=True, max_objects=None)) == 2


def test_a_finalized_draft_takes_none(data: Path) -> None:
    draft = Artifact("ds")
    draft.finalize()
    with pytest.raises(ArtifactFinalizedError):
        draft.add_reference((data / "missing").as_uri())


def test_the_same_reference_again_is_nothing_and_another_is_a_conflict(data: Path) -> None:
    draft = referring((data / "a.txt").as_uri())
    with unchanged(draft):
        draft.add_reference((data / "a.txt").as_uri())
    (data / "a.txt").write_bytes(b"ALPHA")
    for call in (
        lambda: draft.add_reference((data / "a.txt").as_uri()),
        lambda: draft.add_bytes(b"ALPHA", "a.txt"),
        lambda: draft.add_reference("x://h/a.txt", allow_opaque=True),
    ):
        with unchanged(draft), pytest.raises(PathConflictError):
            call()


def test_a_draft_says_what_it_refers_to(data: Path) -> None:
    entry = referring((data / "a.txt").as_uri()).get_entry("a.txt")
    assert entry.size == 5
    assert str(entry.digest).startswith("blake3:")
    assert entry.uri == (data / "a.txt").as_uri()


class Bucket:
    """Objects of somebody else's store, with whatever keys."""

    schemes = ("bucket",)

    def __init__(self, *items: Resolved) -> None:
        self.items = items

    def resolve(self, uri: str, *, checksum: bool, limit: int, access: Access) -> Iterator[Resolved]:
        return iter(self.items)

    def open(self, entry: Entry, access: Access) -> BinaryIO:
        raise AssertionError

    def check(self, entry: Entry, access: Access) -> bool:
        raise AssertionError


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/../../b", "a\nb", "x" * 256, "C:/x", "\ud800"])
def test_keys_of_remote_objects_follow_the_rules_of_paths(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """F9: a key of an object store is not to become a path that leads out."""
    monkeypatch.setattr(registry_module, "_REGISTERED", {})
    draft = Artifact("ds")
    register(
        "bucket", Bucket(Resolved("good", 1, Pointer("bucket://b/good")), Resolved(key, 1, Pointer("bucket://b/k")))
    )
    for name in (None, "below"):
        with unchanged(draft), pytest.raises(InvalidPathError):
            draft.add_reference("bucket://b/", name)


def test_keys_that_are_in_each_others_way_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Artifact("ds")
    for keys in (("a", "a/b"), ("a", "a"), ("a/b", "a")):
        monkeypatch.setattr(registry_module, "_REGISTERED", {})
        register("bucket", Bucket(*(Resolved(key, 0, Pointer(f"bucket://b/{key}")) for key in keys)))
        with unchanged(draft), pytest.raises(PathConflictError):
            draft.add_reference("bucket://b/")


@pytest.mark.parametrize(
    "item",
    [
        Resolved("a", -1, Pointer("bucket://b/a")),
        Resolved("a", 1 << 63, Pointer("bucket://b/a")),
        Resolved("a", 1.5, Pointer("bucket://b/a")),  # type: ignore[arg-type]
        Resolved(b"a", 1, Pointer("bucket://b/a")),  # type: ignore[arg-type]
        Resolved("a", 1, Pointer("bucket://b/a", etag="\ud800")),
        Resolved("a", 1, Pointer("bucket://b/a", version_id=7)),  # type: ignore[arg-type]
        Resolved("a", 1, Pointer("bucket://b/a", etag="x" * 5000)),
        Resolved("a", 1, Pointer("bucket://b/a", checksum="blake3:00")),  # type: ignore[arg-type]
        Resolved("a", 1, Pointer("bucket://u:p@b/a")),
        Resolved("a", 1, None),  # type: ignore[arg-type]
        "a",
    ],
)
def test_nonsense_from_a_handler_is_not_recorded(item: Resolved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_REGISTERED", {})
    register("bucket", Bucket(item))
    draft = Artifact("ds")
    with unchanged(draft), pytest.raises(CasstoreError):
        draft.add_reference("bucket://b/")


# --- logging and reading -------------------------------------------------------------------------


def test_a_reference_is_an_entry_and_its_bytes_are_not_stored(store: Store, data: Path) -> None:
    draft = referring(data.as_uri(), "ref")
    draft.add_bytes(b"own", "own.txt")
    version = store.log_artifact(draft)
    assert (version.size, version.file_count) == (5 + 50_000 + 3, 3)
    assert version.new_bytes < 2000
    entry = version["ref/sub/long"]
    assert (entry.kind, entry.size, entry.uri) == (
        EntryKind.REFERENCE,
        50_000,
        (data / "sub" / "long").as_uri(),
    )
    assert entry.digest == entry.checksum
    assert b"0123456789" * 50 not in b"".join(p.read_bytes() for p in Path(store.url).rglob("*.pack"))


def test_a_reference_reads_like_a_file(store: Store, data: Path) -> None:
    entry = store.log_artifact(referring(data.as_uri()))["sub/long"]
    assert entry.read() == b"0123456789" * 5000
    assert entry.read(49_995) == b"56789"
    assert entry.read(3, 4) == b"3456"
    assert entry.read(60_000, 4) == b""
    with entry.open() as file:
        file.seek(-3, 2)
        assert file.read() == b"789"
    for offset, length in [(-1, None), (0, -1), ("0", None)]:
        with pytest.raises(InvalidInputError):
            entry.read(offset, length)  # type: ignore[arg-type]


def test_reading_always_asks_the_target(store: Store, data: Path) -> None:
    version = store.log_artifact(referring(data.as_uri()))
    entry = version["a.txt"]
    assert entry.read() == b"alpha"
    (data / "a.txt").write_bytes(b"ALPHA")
    for _ in range(2):
        with pytest.raises(ReferenceChangedError, match=r"ds:v0/a\.txt") as changed:
            entry.read()
        assert (changed.value.version, changed.value.path) == ("v0", "a.txt")
    with pytest.raises(ReferenceChangedError, match=r"ds:v0/a\.txt"):
        entry.open()
    (data / "a.txt").unlink()
    for call in (entry.read, entry.open):
        with pytest.raises(ReferenceMissingError):
            call()
    (data / "a.txt").write_bytes(b"alpha")
    assert entry.read() == b"alpha"


def test_a_damaged_byte_anywhere_is_a_change_also_for_a_range_elsewhere(store: Store, data: Path) -> None:
    entry = store.log_artifact(referring(data.as_uri()))["sub/long"]
    (data / "sub" / "long").write_bytes(b"0123456789" * 4999 + b"012345678X")
    with pytest.raises(ReferenceChangedError):
        entry.read(0, 10)


def test_the_same_targets_are_the_same_version(store: Store, data: Path) -> None:
    first = store.log_artifact(referring(data.as_uri()))
    assert store.log_artifact(referring(data.as_uri())).number == first.number == 0
    (data / "a.txt").write_bytes(b"ALPHA")
    second = store.log_artifact(referring(data.as_uri()))
    assert second.number == 1
    assert store.diff("ds:v0", "ds:v1").changed == ("a.txt",)


def test_a_changed_etag_is_a_new_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = iter(['"1"', '"1"', '"2"'])
    monkeypatch.setattr(http_module, "_look", lambda uri, access: http_module._Found(7, next(tags)))
    numbers = [store.log_artifact(referring("https://host/x")).number for _ in range(3)]
    assert numbers == [0, 0, 1]
    assert store.diff("ds:v0", "ds:v1").changed == ("x",)
    assert store.get("ds:v1")["x"].etag == '"2"'


def test_without_checksum_only_the_uri_counts(store: Store, data: Path) -> None:
    first = store.log_artifact(referring(data.as_uri(), checksum=False))
    (data / "a.txt").write_bytes(b"ALPHA")
    assert store.log_artifact(referring(data.as_uri(), checksum=False)).number == first.number
    assert first["data"].unverified
    assert (first.size, first.file_count) == (0, 1)
    with pytest.raises(InvalidInputError):
        first["data"].read()


def test_a_reference_to_an_entry_shares_its_chunks(store: Store, data: Path) -> None:
    """F8: no pointer that could dangle; the source can be purged and collected."""
    source = Artifact("src")
    source.add_dir(data)
    source.add_reference(data.as_uri(), "ref")
    logged = store.log_artifact(source)
    draft = referring(logged["sub/long"])
    draft.add_reference(logged["a.txt"], "named", attrs={"k": 1})
    draft.add_reference(logged["ref/a.txt"])
    version = store.log_artifact(draft)
    assert [(entry.path, entry.kind) for entry in version.files()] == [
        ("named", EntryKind.FILE),
        ("ref/a.txt", EntryKind.REFERENCE),
        ("sub/long", EntryKind.FILE),
    ]
    store.delete("src:v0", delete_aliases=True)
    store.trash.purge("src:v0")
    store.gc(grace=0)
    assert version["sub/long"].read() == b"0123456789" * 5000
    assert version["named"].attrs == {"k": 1}
    with pytest.raises(InvalidInputError):
        Artifact("x").add_reference(referring(data.as_uri()).get_entry("a.txt"))


def test_an_entry_of_another_store_is_refused(store: Store, data: Path, tmp_path: Path) -> None:
    with Store.create(tmp_path / "other") as other:
        entry = other.log_artifact(referring(data.as_uri()))["a.txt"]
        with pytest.raises(CasstoreError) as refused:
            store.log_artifact(referring(entry))
        assert refused.value.exit_code in {2, 14}


def test_drafts_of_versions_keep_and_change_references(store: Store, data: Path) -> None:
    store.log_artifact(referring(data.as_uri(), "ref"))
    draft = store.get("ds:latest").new_draft()
    assert draft.get_entry("ref/a.txt").uri == (data / "a.txt").as_uri()
    draft.remove("ref/a.txt")
    draft.add_bytes(b"mine", "ref/a.txt")
    version = store.log_artifact(draft)
    assert [(entry.path, entry.kind) for entry in version.files()] == [
        ("ref/a.txt", EntryKind.FILE),
        ("ref/sub/long", EntryKind.REFERENCE),
    ]
    plain = Artifact("ds", "dataset")
    plain.add_bytes(b"mine", "ref/a.txt")
    plain.add_reference((data / "sub" / "long").as_uri(), "ref/sub/long")
    assert store.log_artifact(plain).number == version.number


def test_entries_travel(store: Store, data: Path) -> None:
    entry = store.log_artifact(referring(data.as_uri(), attrs={"k": [1]}))["a.txt"]
    copy = pickle.loads(pickle.dumps(replace(entry, reader=None)))
    assert copy == entry
    assert hash(copy) == hash(entry)
    assert (copy.uri, copy.digest, copy.attrs) == (entry.uri, entry.digest, {"k": [1]})


def test_a_renamed_reference_is_told_as_renamed(store: Store, data: Path) -> None:
    before = referring(data.as_uri(), "old")
    before.add_reference("x://h/opaque", allow_opaque=True)
    before.add_reference("x://h/other", "gone", allow_opaque=True)
    (data.parent / "five").write_bytes(b"other")
    before.add_reference((data.parent / "five").as_uri())
    store.log_artifact(before)
    after = referring(data.as_uri(), "new")
    after.add_reference("x://h/opaque", "also-opaque", allow_opaque=True)
    after.add_reference("x://h/another", "here", allow_opaque=True)
    (data.parent / "cinq").write_bytes(b"cinq.")
    after.add_reference((data.parent / "cinq").as_uri())
    store.log_artifact(after)
    found = store.diff("ds:v0", "ds:v1")
    assert found.renamed == (
        ("opaque", "also-opaque"),
        ("old/a.txt", "new/a.txt"),
        ("old/sub/long", "new/sub/long"),
    )
    assert (found.added, found.removed, found.new_bytes) == (("cinq", "here"), ("five", "gone"), 0)


# --- attrs ---------------------------------------------------------------------------------------


def test_attrs_are_kept_with_every_way_to_add(store: Store, data: Path) -> None:
    attrs = {"z": [1, 2.5, None, True], "a": {"ü": "x"}, "big": 10**30}
    draft = Artifact("ds", "dataset")
    draft.add_file(data / "a.txt", "file", attrs=attrs)
    draft.add_file(data / "sub" / "long", "large", attrs=attrs)
    draft.add_bytes(b"b", "bytes", attrs=attrs)
    with (data / "a.txt").open("rb") as stream:
        draft.add_stream(stream, "stream", attrs=attrs)
    with draft.new_file("new", attrs=attrs) as file:
        file.write("text")  # type: ignore[call-overload]
    draft.add_reference((data / "a.txt").as_uri(), "ref", attrs=attrs)
    assert all(entry.attrs == attrs for entry in draft.files())
    version = store.log_artifact(draft)
    assert {entry.path: entry.attrs for entry in version.files()} == dict.fromkeys(
        ["bytes", "file", "large", "new", "ref", "stream"], attrs
    )
    assert version["large"].read() == b"0123456789" * 5000
    again = store.log_artifact(store.get("ds:v0").new_draft())
    assert again.digest == version.digest


def test_attrs_are_part_of_the_digest(store: Store) -> None:
    def logged(attrs: Mapping[str, object] | None) -> Version:
        draft = Artifact("ds")
        draft.add_bytes(b"b", "x", attrs=attrs)
        return store.log_artifact(draft)

    assert [logged(attrs).number for attrs in (None, {}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1})] == [
        0,
        0,
        1,
        1,
        2,
    ]
    assert store.diff("ds:v0", "ds:v1").changed == ("x",)


def test_attrs_are_compared_when_the_same_path_comes_again() -> None:
    draft = Artifact("ds")
    draft.add_bytes(b"b", "x", attrs={"a": 1})
    draft.add_bytes(b"b", "x", attrs={"a": 1})
    for attrs in (None, {"a": 2}):
        with pytest.raises(PathConflictError):
            draft.add_bytes(b"b", "x", attrs=attrs)
    draft.add_bytes(b"b", "x", overwrite=True)
    assert draft.get_entry("x").attrs == {}


@pytest.mark.parametrize(
    "attrs",
    [{"a": float("inf")}, {1: 2}, {"a": object()}, "text", [1], {"a": "x" * 4096}, {"a": "\ud800"}, {"a": b"x"}, 5],
)
def test_attrs_that_are_no_small_json_are_refused(attrs: Mapping[str, object], data: Path) -> None:
    draft = Artifact("ds")
    for call in (
        lambda: draft.add_bytes(b"b", "x", attrs=attrs),
        lambda: draft.add_file(data / "a.txt", attrs=attrs),
        lambda: draft.add_reference(data.as_uri(), attrs=attrs),
        lambda: draft.new_file("x", attrs=attrs).__enter__(),
    ):
        with unchanged(draft), pytest.raises(InvalidMetadataError):
            call()


def test_attrs_given_out_are_a_copy(store: Store) -> None:
    draft = Artifact("ds")
    draft.add_bytes(b"b", "x", attrs={"a": []})
    entry = store.log_artifact(draft)["x"]
    entry.attrs["a"] = "changed"
    assert entry.attrs == {"a": []}


# --- the policy ----------------------------------------------------------------------------------


def test_roots_confine_what_is_logged_and_what_is_read(store: Store, data: Path, tmp_path: Path) -> None:
    (data / "out").symlink_to(tmp_path)
    (tmp_path / "secret").write_bytes(b"s")
    version = store.log_artifact(referring((tmp_path / "secret").as_uri()))
    store.set_policy(reference_roots=[str(data) + "/"])
    assert store.policy.reference_roots == (str(data),)
    for uri in ((tmp_path / "secret").as_uri(), f"{data.as_uri()}/out/secret", f"{data.as_uri()}/../secret"):
        before = store.log()
        with pytest.raises(RefusedError) as refused:
            store.log_artifact(referring(uri))
        assert refused.value.exit_code == 14
        assert store.log() == before
    with pytest.raises(RefusedError):
        store.log_artifact(referring((tmp_path / "secret").as_uri(), checksum=False))
    for call in (version["secret"].read, version["secret"].open):
        with pytest.raises(RefusedError):
            call()
    assert store.log_artifact(referring((data / "a.txt").as_uri()))["a.txt"].read() == b"alpha"
    store.set_policy(reference_roots=[])
    with pytest.raises(RefusedError):
        store.log_artifact(referring((data / "a.txt").as_uri(), "other"))
    store.set_policy(reference_roots=None)
    assert version["secret"].read() == b"s"


def test_a_policy_set_elsewhere_holds_for_entries_at_hand(store: Store, data: Path) -> None:
    store.log_artifact(referring((data / "a.txt").as_uri()))
    with Store.open(store.url, read_only=True) as reader:
        entry = reader.get("ds")["a.txt"]
        assert entry.read() == b"alpha"
        store.set_policy(reference_roots=[])
        for call in (entry.read, entry.open):
            with pytest.raises(RefusedError):
                call()


def test_a_policy_set_while_a_version_is_read_in_holds_for_it(store: Store, data: Path) -> None:
    draft = referring((data / "a.txt").as_uri())
    draft.add_bytes(b"x" * 100, "own")

    def progress(phase: str, done: int, total: int) -> None:
        if store.policy.reference_roots is None:
            with Store.open(store.url) as other:
                other.set_policy(reference_roots=["/nowhere"])

    with pytest.raises(RefusedError):
        store.log_artifact(draft, progress=progress)
    assert store.policy.reference_roots == ("/nowhere",)
    assert not list(store.collections())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reference_roots", "/x"),
        ("reference_roots", ["relative"]),
        ("reference_roots", ["/a\0b"]),
        ("reference_roots", ["/\ud800"]),
        ("reference_roots", [b"/x"]),
        ("reference_roots", True),
        ("on_private_address", "refuse"),
        ("on_private_address", None),
        ("reserved_types", "job"),
        ("reserved_types", ["a/b"]),
        ("reserved_types", ["casstore-x"]),
    ],
)
def test_rules_that_are_none_are_refused(store: Store, key: str, value: object) -> None:
    with pytest.raises(InvalidInputError):
        store.set_policy(**{key: value})  # type: ignore[arg-type]


def test_private_addresses_are_refused_by_the_policy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "_look", lambda uri, access: http_module._Found(7, '"1"'))
    entry = store.log_artifact(referring("http://127.0.0.1:1/x"))["x"]
    store.set_policy(on_private_address="error")
    with pytest.raises(RefusedError):
        entry.read()


def test_versions_of_reserved_types_are_not_made(store: Store) -> None:
    store.log_artifact(Artifact("old", "job"))
    store.set_policy(reserved_types=["job", "code"])
    for name, kind in (("old", "job"), ("new", "code")):
        before = store.log()
        draft = Artifact(name, kind)
        draft.add_bytes(b"x", "x")
        with pytest.raises(RefusedError, match="reserved") as refused:
            store.log_artifact(draft)
        assert refused.value.exit_code == 14
        assert store.log() == before
    assert store.get("old:v0").type == "job"
    store.set_policy(reserved_types=[])
    store.log_artifact(Artifact("new", "code"))


# --- nothing is deleted, nothing trips -----------------------------------------------------------


def test_nothing_that_is_deleted_touches_a_target(store: Store, data: Path) -> None:
    """F14: trash, purge, collection and erasure of the version leave what it refers to as it was."""
    before = snapshot(data)
    for _ in range(2):
        draft = referring(data.as_uri(), "ref")
        draft.add_reference(data.as_uri(), "dir", checksum=False)
        draft.add_bytes(b"own" * 100, "own")
        store.log_artifact(draft, dedup="never")
    store.delete("ds:v0", delete_aliases=True)
    store.trash.purge("ds:v0")
    store.gc(grace=0)
    store.delete("ds:v1", delete_aliases=True)
    store.trash.purge("ds:v1")
    store.gc(grace=0)
    store.gc(grace=0, offline=True)
    assert snapshot(data) == before


def test_one_store_with_references_through_everything(store: Store, data: Path) -> None:
    draft = referring(data.as_uri(), "ref", attrs={"k": 1})
    draft.add_reference("hdfs://nn/x", "opaque", allow_opaque=True)
    draft.add_reference("https://host.invalid/x", "unread", checksum=False)
    draft.add_dir(data, "own")
    version = store.log_artifact(draft)
    store.log_artifact(referring("hdfs://nn/x", "opaque", allow_opaque=True))
    assert version.size == 2 * 50_005
    assert [entry.path for entry in version.files("ref")] == ["ref/a.txt", "ref/sub/long"]
    assert store.diff("ds:v0", "ds:v1").removed == (
        *("own/a.txt", "own/sub/long", "ref/a.txt", "ref/sub/long", "unread"),
    )
    usage = store.du("ds:v0")
    assert usage.to_dict()
    assert version.exclusive_size > 0
    assert store.why("ds:v0/own/a.txt")
    assert store.preview_delete(["ds:v0"])
    report = store.fsck(read_data=True)
    assert report.clean, report
    for path in ("ref/a.txt", "opaque"):
        with pytest.raises(CasstoreError) as refused:
            store.erase(f"ds:v0/{path}", reason="asked", dry_run=True)
        assert refused.value.exit_code == 10
        with pytest.raises(CasstoreError):
            store.why(f"ds:v0/{path}/none")
        assert store.why(f"ds:v0/{path}").state == "held"
    erased = version["own/sub/long"].digest
    store.erase("ds:v0/own/sub/long", reason="asked", confirm=str(erased))
    assert version["ref/sub/long"].read() == b"0123456789" * 5000
    store.rebuild_index()
    store.checkpoint()
    assert store.gc(dry_run=True)
    assert store.gc(grace=0)
    assert store.gc(grace=0, offline=True)
    assert version["ref/a.txt"].read() == b"alpha"
    assert list(Store.open(store.url, read_only=True).get("ds:v0").files("ref")) == list(version.files("ref"))


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def shell(store: Store) -> Callable[..., Result]:
    def run(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [*words], env={"CASSTORE_URL": store.url})
        assert result.exit_code == code, (words, result.output)
        return result

    return run


def test_put_of_a_uri_is_a_reference(shell: Callable[..., Result], data: Path) -> None:
    assert shell("put", data.as_uri(), "--name", "ds", "--path", "ref").stdout.startswith("ds:v0 created 50005 ")
    assert shell("put", data.as_uri(), "--name", "ds", "--path", "ref").stdout.startswith("ds:v0 unchanged")
    listed = shell("files", "ds").stdout.splitlines()
    assert listed[0] == f"           5  ref/a.txt -> {(data / 'a.txt').as_uri()}"
    assert shell("cat", "ds", "ref/a.txt").stdout == "alpha"
    document = json.loads(shell("cat", "ds", "ref/a.txt", "--json").stdout)
    assert (document["size"], document["digest"][:7]) == (5, "blake3:")
    (first, _) = json.loads(shell("files", "ds", "--json").stdout)["files"]
    assert (first["kind"], first["uri"], first["unverified"], first["attrs"]) == (
        "reference",
        (data / "a.txt").as_uri(),
        False,
        {},
    )
    (data / "a.txt").write_bytes(b"ALPHA")
    shell("cat", "ds", "ref/a.txt", code=20)
    (data / "a.txt").unlink()
    shell("cat", "ds", "ref/a.txt", code=10)
    assert "ref/a.txt" not in shell("show", "ds").stdout


def test_options_of_put_are_those_of_add_reference(shell: Callable[..., Result], data: Path) -> None:
    shell("put", data.as_uri(), "--name", "ds", "--max-objects", "1", code=2)
    shell("put", data.as_uri(), "--name", "ds", "--max-objects", "0", code=2)
    shell("put", (data / "none").as_uri(), "--name", "ds", code=10)
    shell("put", "hdfs://nn/x", "--name", "ds", code=2)
    assert shell("put", "hdfs://nn/x", "--allow-opaque").stdout.startswith("x:v0 created 0 ")
    assert shell("files", "x").stdout == "           ?  x -> hdfs://nn/x\n"
    assert shell("put", data.as_uri(), "--no-checksum", "--name", "un").stdout.startswith("un:v0 created 0 ")
    assert json.loads(shell("files", "un", "--json").stdout)["files"][0]["size"] is None
    assert "would read 2 files" in shell("put", data.as_uri(), "--name", "ds", "--dry-run").stdout
    for words in (("--no-checksum",), ("--allow-opaque",), ("--max-objects", "5")):
        shell("put", str(data), "--name", "ds", *words, code=2)
    shell("put", data.as_uri(), "--name", "ds", "--exclude", "*.txt", code=2)
    shell("put", "http://u:pw@h/x", "--name", "ds", code=2)


def test_rules_of_references_are_set_on_the_command_line(
    shell: Callable[..., Result], data: Path, tmp_path: Path
) -> None:
    shell(
        "policy", "set", "--reference-roots", f"{data}:/srv", "--on-private-address", "error", "--reserved-types", "job"
    )
    rules = json.loads(shell("policy", "show", "--json").stdout)
    assert rules["reference_roots"] == sorted([str(data), "/srv"])
    assert (rules["on_private_address"], rules["reserved_types"]) == ("error", ["job"])
    (tmp_path / "x").write_bytes(b"")
    shell("put", (tmp_path / "x").as_uri(), code=14)
    shell("put", data.as_uri(), "--name", "ds", "--type", "job", code=14)
    shell("policy", "set", "--reference-roots", "none", "--reserved-types", "")
    shell("put", (tmp_path / "x").as_uri())


# --- bytes ---------------------------------------------------------------------------------------

PLAIN = Entry("a", size=3, chunks=((b"1" * 32, 3),), mode=0o644)
FULL = Entry(
    "b",
    EntryKind.REFERENCE,
    7,
    pointer=Pointer("s3://b/k", '"e"', "v", Digest("blake3", b"2" * 32), unverified=True, volatile=True),
    attrs_json=canonical_attrs({"k": 1}),
)
BARE = Entry("c", EntryKind.REFERENCE, None, pointer=Pointer("x:y"))


def test_entries_without_extras_keep_their_bytes() -> None:
    assert encode_entry(PLAIN) == msgspec.msgpack.encode(("a", 0, 3, 0o644, [(b"1" * 32, 3)], None, None))


def test_extras_are_a_map_in_one_order_without_what_is_not_there() -> None:
    assert msgspec.msgpack.decode(encode_entry(FULL)) == [
        *("b", 3, 7, -1, [], None, None),
        {"a": b'{"k":1}', "c": ["blake3", b"2" * 32], "e": '"e"', "f": 3, "u": "s3://b/k", "v": "v"},
    ]
    assert list(msgspec.msgpack.decode(encode_entry(FULL))[7]) == list("acefuv")
    assert msgspec.msgpack.decode(encode_entry(BARE)) == ["c", 3, -1, -1, [], None, None, {"u": "x:y"}]


def test_entries_with_extras_are_read_back() -> None:
    entries = (PLAIN, FULL, BARE, replace(PLAIN, path="d", attrs_json=b'{"k":1}'))
    node = decode_node(encode_node(DIRECTORY, 0, [encode_entry(entry) for entry in entries]), "x")
    assert node.entries == entries
    assert node.data() == [b"1" * 32] * 2
    assert node.references() == (b"1" * 32,)


@pytest.mark.parametrize(
    "shape",
    [
        ("a", 3, 1, -1, [], None, None),
        ("a", 3, 1, -1, [], None, None, None),
        ("a", 0, 1, -1, [], None, None, None),
        ("a", 0, 1, -1, [], None, None, {}),
        ("a", 0, -1, -1, [], None, None),
        ("a", 0, -1, -1, [], None, None, {"a": b'{"k":1}'}),
        ("a", 0, 1, -1, [], None, None, {"u": "x:y"}),
        ("a", 0, 1, -1, [], None, None, {"a": b'{"k":1}', "f": 1}),
        ("a", 3, 1, -1, [], None, None, {"a": b'{"k":1}'}),
        ("a", 3, 1, -1, [], None, None, {"u": ""}),
        ("a", 3, -2, -1, [], None, None, {"u": "x:y"}),
        ("a", 3, 1, 0, [], None, None, {"u": "x:y"}),
        ("a", 3, 1, -1, [(b"1" * 32, 1)], None, None, {"u": "x:y"}),
        ("a", 3, 1, -1, [], b"1" * 32, None, {"u": "x:y"}),
        ("a", 3, 1, -1, [], None, "t", {"u": "x:y"}),
        ("a", 3, 1, -1, [], None, None, {"u": "x:y", "f": 4}),
        ("a", 3, 1, -1, [], None, None, {"u": "x:y", "f": -1}),
        ("a", 3, 1, -1, [], None, None, {"u": "x:y", "e": None}),
        ("a", 3, 1, -1, [], None, None, {"u": "x:y", "q": 1}),
        ("a", 3, 1, -1, [], None, None, {"u": "x:y", "c": ("md5", b"1" * 16)}),
        ("a", 3, 1, -1, [], None, None, {"u": "x:y", "c": ("blake3", b"1")}),
        ("a", 3, 1, -1, [], None, None, {"u": "x:y"}, 1),
        ("a", 4, 1, -1, [], None, None, {"u": "x:y"}),
        *(
            ("a", 0, 1, -1, [], None, None, {"a": attrs})
            for attrs in (
                *(
                    b"",
                    b"{}",
                    b"[]",
                    b"1",
                    b'{"k": 1}',
                    b'{"b":1,"a":1}',
                    b'{"a":1,"a":1}',
                    b'{"a":NaN}',
                    b'{"a":1e999}',
                ),
                *(
                    b'{"a":"\\ud800"}',
                    b'{"a":"\xff"}',
                    b"[" * 4000,
                    b'{"a":"' + b"x" * 4096 + b'"}',
                    '{"a":1}'.encode("utf-16"),
                ),
            )
        ),
    ],
)
def test_nonsense_is_a_format_error(shape: tuple[object, ...]) -> None:
    with pytest.raises(FormatError):
        decode_node(encode_node(DIRECTORY, 0, [msgspec.msgpack.encode(shape)]), "x")
