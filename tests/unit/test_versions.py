"""Logging and reading versions (FEATURES B1-B11, A15-A17, D1-D3, G1, G4-G6, Q12, §0.3): numbers, digests, entries.

Guards I5 (an acknowledged version is in the state and readable) from the user's side, and DESIGN §5's "equal content
gives equal root digest whatever the history".
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore import (
    Artifact,
    CasstoreError,
    ChunkerParams,
    CollectionNotFoundError,
    EntryNotFoundError,
    InvalidInputError,
    InvalidPathError,
    NotFoundError,
    Runtime,
    StaleBaseError,
    Store,
    StoreConfig,
    TypeConflictError,
    Version,
    VersionNotFoundError,
)
from casstore.backend.memory import forget_memory
from casstore.testing.snapshot import snapshot


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def artifact(name: str = "ds", kind: str = "file", **contents: bytes) -> Artifact:
    made = Artifact(name, kind)
    for path, data in contents.items():
        made.add_bytes(data, path)
    return made


def log(store: Store, data: bytes, name: str = "ds", **options: object) -> Version:
    return store.log_artifact(artifact(name, a=data), **options)  # type: ignore[arg-type]


def content(version: Version) -> dict[str, bytes]:
    return {entry.path: entry.read() for entry in version.files()}


# --- B1, B2: numbers and hits


def test_numbers_are_zero_based_and_contiguous(store: Store) -> None:
    """B1, §0.3 #9."""
    assert [log(store, data).version for data in (b"0", b"1", b"2")] == ["v0", "v1", "v2"]
    assert [v.version for v in store.versions("ds")] == ["v2", "v1", "v0"]
    assert log(store, b"2", "other").version == "v0"


def test_a_failed_log_burns_no_number(store: Store, tmp_path: Path) -> None:
    """B1."""
    log(store, b"0")
    source = tmp_path / "f"
    source.write_bytes(b"x")
    broken = Artifact("ds")
    broken.add_file(source)
    source.unlink()
    for _ in range(3):
        with pytest.raises(InvalidInputError):
            store.log_artifact(broken)
    with pytest.raises(TypeConflictError):
        store.log_artifact(artifact(kind="model", a=b"x"))
    assert log(store, b"1").version == "v1"


def test_numbers_are_not_reused_after_purge(store: Store) -> None:
    """B1, DESIGN principle 6."""
    log(store, b"0").delete()
    store.trash.purge("ds:v0")
    store.gc(grace=0)
    assert log(store, b"0").version == "v1"


def test_equal_to_latest_makes_no_version(store: Store) -> None:
    """B2, §0.3 #4: by content, not by order, labels or the way it came in."""
    first = store.log_artifact(artifact(a=b"1", b=b"2"), tags=["t"])
    assert first.created
    assert first.new_bytes > 0
    draft = Artifact("ds", description="new words", metadata={"k": 1})
    draft.add_bytes(b"2", "b")
    draft.add_bytes(b"1", "a")
    hit = store.log_artifact(draft, aliases=["best"], tags=["u"])
    assert (hit.version, hit.created, hit.new_bytes, hit.new_stored_bytes) == ("v0", False, 0, 0)
    assert set(hit.ignored) == {"description", "metadata", "tags"}
    assert (hit.description, hit.metadata, hit.tags) == ("", {}, ("t",))
    assert set(hit.aliases) == {"best", "latest"}
    assert len(store.versions("ds")) == 1


def test_a_hit_takes_the_labels_over_with_update(store: Store) -> None:
    first = store.log_artifact(artifact(a=b"1"))
    draft = Artifact("ds", description="new words", metadata={"k": 1})
    draft.add_bytes(b"1", "a")
    hit = store.log_artifact(draft, tags=["u"], update=True)
    assert (hit.version, hit.created, hit.ignored) == ("v0", False, ())
    assert (hit.description, hit.metadata, hit.tags) == ("new words", {"k": 1}, ("u",))
    assert hit.digest == first.digest
    assert store.get("ds").metadata == {"k": 1}


@pytest.mark.parametrize(
    ("dedup", "numbers"), [("latest", ["v0", "v1", "v2"]), ("any", ["v0", "v1", "v0"]), ("never", ["v0", "v1", "v2"])]
)
def test_there_and_back_again(store: Store, dedup: str, numbers: list[str]) -> None:
    """§0.3 #4: A→B→A makes v2 under ``latest``, returns v0 under ``any``; either way ``latest`` ends on content A."""
    assert [log(store, data, dedup=dedup).version for data in (b"A", b"B", b"A")] == numbers
    assert store.get("ds")["a"].read() == b"A"


def test_dedup_never_makes_a_version_of_equal_content(store: Store) -> None:
    assert [log(store, b"A", dedup="never").version for _ in range(3)] == ["v0", "v1", "v2"]


def test_a_trashed_version_is_no_hit(store: Store) -> None:
    """B2."""
    for dedup in ("latest", "any"):
        log(store, b"A", dedup).delete()
        again = log(store, b"A", dedup, dedup=dedup)
        assert (again.version, again.created) == ("v1", True)
        assert content(again) == {"a": b"A"}


def test_an_empty_artifact_is_a_version(store: Store) -> None:
    version = store.log_artifact(Artifact("ds"))
    assert (version.size, version.file_count, list(version.files())) == (0, 0, [])
    assert not store.log_artifact(Artifact("ds")).created


def test_one_type_per_collection(store: Store) -> None:
    """A3; another project is another collection."""
    store.log_artifact(artifact(kind="dataset", a=b"1"))
    with pytest.raises(TypeConflictError) as caught:
        store.log_artifact(artifact(kind="model", a=b"1"))
    assert caught.value.exit_code == 11
    assert store.log_artifact(artifact(kind="model", a=b"1"), project="p").type == "model"
    with pytest.raises(InvalidInputError):
        store.get("ds", type="model")
    assert store.get("ds", type="dataset").version == "v0"


def test_two_writers_who_disagree_about_the_type(tmp_path: Path) -> None:
    """The one who commits first wins; the other, who saw no collection when it began, gets the error."""
    with Store.open(tmp_path / "s", create=True) as first, Store.open(tmp_path / "s") as second:
        won: list[Version] = []

        def overtake(*_: object) -> None:
            if not won:
                won.append(second.log_artifact(artifact(kind="two", a=b"2")))

        draft = artifact(kind="one", a=b"1")
        with pytest.raises(TypeConflictError):
            first.log_artifact(draft, progress=overtake)
        assert won
        assert draft.is_draft()
        assert [info.type for info in first.collections()] == ["two"]
        assert content(first.get("ds")) == {"a": b"2"}
        assert [v.version for v in first.versions("ds")] == ["v0"]


@pytest.mark.parametrize("switch", [0, 1, None, "yes"])
def test_a_switch_is_true_or_false_whatever_is_given(store: Store, switch: bool) -> None:
    """Also 1, or numpy's True: in the log there are only true and false."""
    store.log_artifact(artifact(a=b"1"))
    v1 = store.log_artifact(artifact(a=b"2"), move_latest=switch)
    assert store.get("ds").version == ("v1" if switch else "v0")
    store.copy("ds:v0", "copy", move_latest=switch)
    v1.link("p/q")
    if switch:
        store.delete("ds:v1", delete_links=switch)
    store.rebuild_index()
    assert store.get("ds").version == "v0"
    assert store.fsck().clean


def test_projects_and_entities(store: Store) -> None:
    """DESIGN §12, G1."""
    versions = {
        "ds": store.log_artifact(artifact(a=b"0")),
        "vision/ds": store.log_artifact(artifact(a=b"1"), project="vision"),
        "ml/vision/ds": store.log_artifact(artifact(a=b"2"), project="ml/vision"),
    }
    for ref, version in versions.items():
        found = store.get(ref)
        assert found == version
        assert found.ref == f"{ref}:v0"
        assert store.get(found.ref) == store.get(found.qualified_name) == version
    found = store.get("ml/vision/ds")
    assert (found.entity, found.project, found.collection, found.name) == ("ml", "vision", "ds", "ds:v0")
    assert (found.url, versions["ds"].url) == ("cas://ml/vision/ds:v0", "cas://default/default/ds:v0")
    assert store.get("default/default/ds") == versions["ds"]
    draft = found.new_draft()
    draft.add_bytes(b"x", "x")
    assert store.log_artifact(draft).ref == "ml/vision/ds:v1"


# --- B5-B9: what a version says


def test_what_a_version_says(store: Store) -> None:
    """B5-B8: identity, sizes, times; all of it plain values."""
    version = store.log_artifact(artifact("ds", "dataset", a=b"12345", b=b""), tags=["t"], ttl=timedelta(days=1))
    assert (version.state, version.number, version.size, version.file_count) == ("COMMITTED", 0, 5, 2)
    assert (version.type, version.ttl, version.base, version.latest_before) == (
        "dataset",
        timedelta(days=1),
        None,
        None,
    )
    assert version.created_at == version.updated_at
    assert version.created_at.tzinfo is UTC
    assert version.commit == store.log(limit=1)[0].seq
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", version.id)
    assert version.stored_size > 0
    assert 0 < version.exclusive_size <= version.stored_size
    assert str(version) == "ds:v0"
    assert repr(version) == "<Version default/default/ds:v0>"
    for name in ("entity", "project", "collection", "name", "qualified_name", "version"):
        assert getattr(version, f"source_{name}") == getattr(version, name), "the source of what is no link is itself"


def test_ids_are_unique_and_in_order(store: Store) -> None:
    """B7: a ULID."""
    found = [log(store, str(i).encode(), name) for i in range(4) for name in ("a", "b")]
    ids = [version.id for version in found]
    assert len(set(ids)) == len(ids)
    assert [i[:10] for i in ids] == sorted(i[:10] for i in ids)
    assert store.get("a:v2").id == found[4].id


def test_to_dict_is_json_with_a_schema(store: Store) -> None:
    """A15."""
    draft = Artifact("ds", metadata={"k": [1, None]}, description="words")
    draft.add_bytes(b"1", "a")
    values = json.loads(json.dumps(store.log_artifact(draft, aliases=["best"]).to_dict()))
    assert values["schema"] == "version/1"
    assert set(values) == {
        "schema", "ref", "id", "entity", "project", "collection", "version", "type", "state", "digest", "size",
        "file_count", "created_at", "updated_at", "commit", "aliases", "tags", "description", "metadata", "base",
        "actor", "ttl", "ttl_source", "expires_at", "held_by", "is_link", "source", "links", "run", "attrs",
    }  # fmt: skip
    assert values["aliases"] == ["best", "latest"]
    assert datetime.fromisoformat(values["created_at"]).tzinfo is not None


def test_the_manifest_is_a_read_only_mapping(store: Store) -> None:
    """B9."""
    manifest = store.log_artifact(artifact(a=b"1", b=b"22")).manifest
    assert list(manifest) == ["a", "b"]
    assert len(manifest) == 2
    assert manifest["b"].size == 2
    assert "c" not in manifest
    with pytest.raises(KeyError):
        manifest["c"]
    with pytest.raises(TypeError):
        manifest["a"] = manifest["b"]  # type: ignore[index]


def test_labels_do_not_change_the_digest(store: Store) -> None:
    """B6, C5."""
    version = log(store, b"1")
    digest = version.digest
    version.update(description="d", metadata={"a": 1}, tags=["t"])
    version.update(metadata={"b": 2})
    version.add_alias("best")
    assert (version.digest, version.metadata, version.description) == (digest, {"a": 1, "b": 2}, "d")
    version.update(metadata={"c": 3}, merge=False)
    assert store.get("ds").metadata == {"c": 3}
    assert store.get("ds").digest == digest
    assert version.updated_at > version.created_at


# --- A17: the digest


def test_the_digest_is_of_the_content_alone(store: Store, tmp_path: Path) -> None:
    """B6: not of the order, the store, the time, the modification times, the labels, the compression."""
    source = tmp_path / "f"
    source.write_bytes(b"same")
    one = Artifact("ds", metadata={"k": 1})
    one.add_file(source, "f")
    one.add_bytes(b"x", "b")
    one.add_bytes(b"y", "a")
    wanted = store.log_artifact(one).digest
    os.utime(source, (0, 0))
    two = Artifact("other", "kind", "words")
    two.add_bytes(b"y", "a")
    two.add_bytes(b"x", "b")
    two.add_file(source, "f")
    assert store.log_artifact(two, project="p").digest == wanted
    with Store.open(tmp_path / "second", create=True) as second:
        assert second.log_artifact(two).digest == wanted
    assert str(wanted).startswith("blake3:")


def test_different_content_has_different_digests(store: Store) -> None:
    """A17, §R1: paths, boundaries, names that look like manifest lines: nothing can be taken for something else."""
    digest = "a" * 32
    contents: list[dict[str, bytes]] = [
        {},
        {"a": b""},
        {"b": b""},
        {"a": b"", "b": b""},
        {"a": b"b"},
        {"ab": b""},
        {"a/b": b""},
        {f"aa:{digest} bb": b""},
        {"aa": b"", "bb": b""},
        {"aa": digest.encode(), "bb": b""},
    ]
    found = []
    for number, files in enumerate(contents):
        draft = Artifact(f"c{number}")
        for path, data in files.items():
            draft.add_bytes(data, path)
        found.append(store.log_artifact(draft).digest)
    assert len(set(found)) == len(contents)


SMALL = StoreConfig(chunker=ChunkerParams(minimum=64, average=256, maximum=1024), node_bytes=512, frame_bytes=4096)
NAMES = st.integers(0, 40).map(lambda i: f"{'d' if i % 3 else 'e'}/{i:02}")
EDITS = st.lists(
    st.tuples(NAMES, st.one_of(st.none(), st.integers(0, 3), st.just(20000)), st.booleans()), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EDITS)
def test_history_does_not_matter(edits: list[tuple[str, int | None, bool]]) -> None:
    """D1, D2, B6: any chain of drafts ends at the digest that logging the same content afresh has."""
    forget_memory("history")
    with Store.create("memory://history", config=SMALL) as store:
        wanted: dict[str, bytes] = {}
        draft = Artifact("ds")
        for path, size, log_now in edits:
            if size is None:
                if path in wanted:
                    del wanted[path]
                    draft.remove(path)
            else:
                wanted[path] = path.encode() * size
                draft.add_bytes(wanted[path], path, overwrite=True)
            if log_now:
                draft = store.log_artifact(draft).new_draft()
        version = store.log_artifact(draft)
        fresh = Artifact("fresh")
        for path in sorted(wanted, reverse=True):
            fresh.add_bytes(wanted[path], path)
        assert store.log_artifact(fresh).digest == version.digest
        assert content(version) == wanted
        assert store.fsck(read_data=True).clean


# --- D1-D3: drafts of versions


def test_a_draft_takes_content_and_description_not_labels(store: Store) -> None:
    """D1."""
    draft = Artifact("ds", "dataset", "words", {"k": 1})
    draft.add_bytes(b"1", "a")
    version = store.log_artifact(draft, aliases=["best"], tags=["t"], ttl=timedelta(days=1))
    copy = version.new_draft()
    assert (copy.name, copy.type, copy.description, copy.metadata, copy.base) == (
        "ds",
        "dataset",
        "words",
        {"k": 1},
        "ds:v0",
    )
    copy.add_bytes(b"2", "b")
    second = store.log_artifact(copy)
    assert (second.base, second.latest_before, second.tags, second.ttl) == ("ds:v0", "v0", (), None)
    assert store.get("ds:best").version == "v0"
    assert content(second) == {"a": b"1", "b": b"2"}
    assert content(store.get("ds:v0")) == {"a": b"1"}
    assert not store.log_artifact(second.new_draft()).created


def test_base_moved_on(store: Store) -> None:
    """D3: allowed, and visible, by default; ``if_base_latest`` refuses."""
    first = log(store, b"1")
    draft, strict = first.new_draft(), first.new_draft()
    log(store, b"2")
    draft.add_bytes(b"", "b")
    strict.add_bytes(b"", "c")
    allowed = store.log_artifact(draft)
    assert (allowed.version, allowed.base, allowed.latest_before) == ("v2", "ds:v0", "v1")
    with pytest.raises(StaleBaseError) as caught:
        store.log_artifact(strict, if_base_latest=True)
    assert caught.value.exit_code == 13
    assert strict.is_draft()
    assert store.log_artifact(strict).version == "v3"


def test_a_base_that_has_moved_on_is_refused_before_anything_is_read_or_written(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        draft = log(store, b"1").new_draft()
        log(store, b"2")
        (tmp_path / "f").write_bytes(b"f" * 100_000)
        draft.add_file(tmp_path / "f")
        (tmp_path / "f").unlink()
        before = sorted((tmp_path / "s" / "packs").rglob("*"))
        with pytest.raises(StaleBaseError):
            store.log_artifact(draft, if_base_latest=True)
        assert sorted((tmp_path / "s" / "packs").rglob("*")) == before


def test_a_base_that_moves_on_while_its_draft_is_logged_is_refused_at_the_commit(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        draft = log(store, b"1").new_draft()
        draft.add_bytes(b"f" * 100_000, "f")
        others: list[Version] = []

        def progress(*_: object) -> None:
            if not others:
                others.append(log(store, b"2"))

        with pytest.raises(StaleBaseError):
            store.log_artifact(draft, if_base_latest=True, progress=progress)
        assert store.get("ds") == others[0]


def test_base_named_by_hand(store: Store) -> None:
    """B1's ``base=``: recorded; binding only with ``if_base_latest``."""
    log(store, b"1")
    log(store, b"2")
    recorded = log(store, b"3", base="v0")
    assert (recorded.version, recorded.base) == ("v2", "ds:v0")
    with pytest.raises(StaleBaseError):
        log(store, b"4", base="v1", if_base_latest=True)
    assert log(store, b"4", base="ds:v2", if_base_latest=True).base == "ds:v2"
    with pytest.raises(VersionNotFoundError):
        log(store, b"5", base="v4")
    store.get("ds:v0").delete()
    store.trash.purge("ds:v0")
    assert log(store, b"5", base="v0").base == "ds:v0", "it is gone, but it is what the content was made from"


def test_a_draft_outlives_its_base(store: Store) -> None:
    """D3: trashed, purged and collected meanwhile, the draft still has its content."""
    base = store.log_artifact(artifact(a=os.urandom(5000), b=b"2"))
    wanted = content(base)
    draft = base.new_draft()
    draft.add_bytes(b"3", "c")
    base.delete()
    assert draft.get_entry("a").read() == wanted["a"]
    store.trash.purge("ds:v0")
    store.gc(grace=0, offline=True)
    version = store.log_artifact(draft)
    assert content(version) == {**wanted, "c": b"3"}
    assert version.version == "v1"
    version.delete()
    store.trash.purge("ds:v1")
    report = store.gc(grace=0, offline=True)
    assert not report.kept_by
    assert store.du().chunks == 0, "a draft that was logged holds nothing any more, though it is still around"


def test_a_draft_that_is_dropped_lets_go(store: Store) -> None:
    """A1: its content is garbage at the next collection."""
    version = log(store, os.urandom(5000))
    draft = version.new_draft()
    version.delete()
    store.trash.purge("ds:v0")
    assert "pins" in store.gc(grace=0, offline=True).kept_by
    del draft
    assert not store.gc(grace=0, offline=True).kept_by
    assert store.du().chunks == 0


def test_a_small_change_of_a_large_version_is_small(store: Store) -> None:
    """D2, DESIGN principle 7: one of 5,000 files changed writes less than 1 MiB, whatever the rest weighs."""
    draft = Artifact("ds")
    for number in range(5000):
        draft.add_bytes(os.urandom(600), f"{number % 50:02}/{number:04}")
    first = store.log_artifact(draft)
    before = total(store)
    change = first.new_draft()
    change.add_bytes(b"changed", "07/0007", overwrite=True)
    second = store.log_artifact(change)
    assert total(store) - before < 1 << 20
    assert second.new_stored_bytes < 256 * 1024
    assert store.diff("ds:v0", "ds:v1").changed == ("07/0007",)
    removal = second.new_draft()
    removal.remove("00")
    before = total(store)
    assert store.log_artifact(removal).file_count == 4900
    assert total(store) - before < 1 << 20


def total(store: Store) -> int:
    """Bytes below the store but for the view."""
    root = Path(store.url)
    return sum((root / path).stat().st_size for path, what in snapshot(root).items() if what != "directory")


# --- G1: looking up


def test_selectors(store: Store) -> None:
    first, second = log(store, b"1"), log(store, b"2")
    first.add_alias("best")
    assert store.get("ds") == store.get("ds:latest") == store.get("ds:v1") == second
    assert store.get("ds:best") == store.get("ds:v0") == store.get(f"ds:{first.digest}") == first
    other = Store.open("memory://selectors", create=True)
    with other:
        foreign = log(other, b"9").digest
    forget_memory("selectors")
    for ref in ("ds:v2", "ds:worst", f"ds:{foreign}", "ds:sha256:" + "0" * 64):
        with pytest.raises(VersionNotFoundError) as caught:
            store.get(ref)
        assert caught.value.exit_code == 10
        assert isinstance(caught.value, KeyError)


def test_near_names_are_offered(store: Store) -> None:
    """G1: up to three."""
    for name in ("bike-dataset", "bike-dataset2", "bike-dataset3", "bike-dataset4", "unrelated"):
        log(store, b"1", name)
    with pytest.raises(CollectionNotFoundError) as caught:
        store.get("bike-datset:v0")
    assert len(re.findall(r"bike-dataset", caught.value.hint)) == 3
    store.get("bike-dataset").add_alias("candidate")
    with pytest.raises(VersionNotFoundError) as unknown:
        store.get("bike-dataset:candidat")
    assert "bike-dataset:candidate" in unknown.value.hint
    with pytest.raises(CollectionNotFoundError) as empty:
        store.get("zzzzzz")
    assert empty.value.hint


def test_trashed_and_purged_say_so(store: Store) -> None:
    """G1, K10."""
    version = log(store, b"1")
    version.delete()
    with pytest.raises(VersionNotFoundError, match="is in the trash") as trashed:
        store.get("ds:v0")
    assert trashed.value.hint == "casstore trash restore ds:v0"
    with pytest.raises(VersionNotFoundError) as latest:
        store.get("ds")
    assert "trash" in latest.value.hint
    store.trash.purge("ds:v0")
    with pytest.raises(VersionNotFoundError, match="was purged"):
        store.get("ds:v0")


# --- G4: entries

DATA = os.urandom(200_000) + b"x" * 50_000


@pytest.fixture(scope="module")
def big() -> Iterator[Version]:
    """A version with a file of many chunks (a chunk-list tree), one chunk, none."""
    forget_memory("big")
    with Store.create("memory://big", config=SMALL) as store:
        yield store.log_artifact(artifact(big=DATA, one=b"one", none=b""))
    forget_memory("big")


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, None),
        (0, 0),
        (5, 0),
        (0, 1),
        (249_999, 1),
        (249_999, 10),
        (250_000, None),
        (250_000, 1),
        (10**12, 5),
        (100, None),
        (777, 100_000),
    ],
)
def test_reading_ranges(big: Version, offset: int, length: int | None) -> None:
    """G4: like a slice; past the end there is nothing."""
    wanted = DATA[offset:] if length is None else DATA[offset : offset + length]
    assert big["big"].read(offset, length) == wanted


def test_bad_ranges(big: Version) -> None:
    for offset, length in ((-1, None), (0, -1), (-5, 5), (1.5, None), ("0", 1), (0, "1")):
        with pytest.raises(InvalidInputError):
            big["big"].read(offset, length)  # type: ignore[arg-type]
    assert big["none"].read() == b""
    assert big["one"].read(1, 1) == b"n"


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(0, 260_000), st.just(0)),
        st.tuples(st.just("seek"), st.integers(0, 3000), st.just(1)),
        st.tuples(st.just("seek"), st.integers(-250_000, 3000), st.just(2)),
        st.tuples(st.just("read"), st.one_of(st.integers(-1, 70_000), st.none())),
        st.tuples(st.just("read1"), st.integers(0, 5000)),
        st.tuples(st.just("readinto"), st.integers(0, 70_000)),
        st.tuples(st.just("readline"), st.integers(-1, 300)),
        st.tuples(st.just("tell")),
    ),
    max_size=20,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_an_open_entry_is_like_a_file_in_memory(big: Version, operations: list[tuple[str, int, int]]) -> None:
    """G4: seekable, in every order, against `io.BytesIO`. ``read1`` may give less than asked, but not nothing."""
    with big["big"].open() as ours, io.BytesIO(DATA) as theirs:
        for name, *arguments in operations:
            if name == "readinto":
                a, b = bytearray(arguments[0]), bytearray(arguments[0])
                assert (ours.readinto(a), a) == (theirs.readinto(b), b)  # type: ignore[attr-defined]
            elif name == "read1":
                found = ours.read1(*arguments)  # type: ignore[attr-defined]
                assert bool(found) == bool(arguments[0] and theirs.tell() < len(DATA))
                assert theirs.read(len(found)) == found
            else:
                assert getattr(ours, name)(*arguments) == getattr(theirs, name)(*arguments)
            assert ours.tell() == theirs.tell()


def test_an_open_entry_behaves(big: Version) -> None:
    file = big["big"].open()
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    for offset, whence in ((-1, 0), (-1, 1), (-(10**6), 2), (0, 7)):
        with pytest.raises(ValueError):
            file.seek(offset, whence)
    with pytest.raises((io.UnsupportedOperation, OSError)):
        file.write(b"x")
    file.close()
    file.close()
    for use in (file.read, file.tell, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert b"".join(big["big"].open()) == DATA, "lines"
    with io.TextIOWrapper(big["one"].open(), "ascii") as text:
        assert text.read() == "one"


def test_looking_up_entries(big: Version) -> None:
    assert big.get_entry("one") == big["one"]
    assert big["one"].size == 3
    assert "one" in big
    for absent in ("two", "", "one/", "/one", "../one", "\udc80", "one\0"):
        assert absent not in big
        with pytest.raises(EntryNotFoundError) as caught:
            big[absent]
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.exit_code == 10
    for wrong in (None, 5, b"one"):
        with pytest.raises(EntryNotFoundError):
            big.get_entry(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError):
            Artifact("ds").add_entry(wrong)  # type: ignore[arg-type]
    assert 5 not in big
    assert big["one"].digest != big["big"].digest
    assert big["none"].digest is not None


# --- G5, G6: listing


@pytest.fixture
def listed(store: Store) -> Version:
    draft = Artifact("ds")
    for path in ("img", "img2/a", "a/b", "a/b2", "a/c/d", "ä", "z"):
        draft.add_bytes(path.encode(), path)
    return store.log_artifact(draft)


def found(version: Version, **options: object) -> list[str]:
    return [entry.path for entry in version.files(**options)]  # type: ignore[arg-type]


def test_files_are_in_byte_order(listed: Version) -> None:
    """G6."""
    assert found(listed) == ["a/b", "a/b2", "a/c/d", "img", "img2/a", "z", "ä"]
    assert [entry.path for entry in listed] == found(listed)
    assert len(listed) == 7


@pytest.mark.parametrize(
    ("prefix", "paths"),
    [
        ("img", ["img"]),
        ("img/", []),
        ("img2", ["img2/a"]),
        ("a", ["a/b", "a/b2", "a/c/d"]),
        ("a/", ["a/b", "a/b2", "a/c/d"]),
        ("a/b", ["a/b"]),
        ("a/c", ["a/c/d"]),
        ("im", []),
        ("", ["a/b", "a/b2", "a/c/d", "img", "img2/a", "z", "ä"]),
        ("/", []),
        ("../a", []),
    ],
)
def test_prefixes_are_whole_parts(listed: Version, prefix: str, paths: list[str]) -> None:
    """G3, G6: ``img`` is not ``img2``; a trailing ``/`` means a directory only."""
    assert found(listed, prefix=prefix) == paths


def test_pages_and_cursors(listed: Version) -> None:
    """G6: a cursor is the path of the last entry seen; it need not be there any more, but it must be a path."""
    seen: list[str] = []
    while page := found(listed, page_size=2, start=seen[-1] if seen else None):
        assert len(page) <= 2
        seen += page
    assert seen == found(listed)
    assert found(listed, start="a/b1") == ["a/b2", "a/c/d", "img", "img2/a", "z", "ä"]
    assert found(listed, start="ä") == []
    assert found(listed, prefix="a", start="a/b", page_size=1) == ["a/b2"]
    for start in ("../x", "a//b", "\0", "\udc80", 5, b"a"):
        with pytest.raises(InvalidInputError) as caught:
            listed.files(start=start)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2
    for size in (0, -1, True, "5", 1.5):
        with pytest.raises(InvalidInputError):
            listed.files(page_size=size)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        listed.files(prefix=5)  # type: ignore[arg-type]


def test_cursors_survive_collection_and_restart(store: Store, listed: Version) -> None:
    page = found(listed, page_size=3)
    store.gc(grace=0, offline=True)
    with Store.open(store.url) as again:
        assert page + found(again.get("ds"), start=page[-1]) == found(listed)


def test_names(listed: Version) -> None:
    assert found(listed, names=["z", "nope", "a/b", "z", "\udc80"]) == ["a/b", "z"]
    for wrong in ("z", [5]):
        with pytest.raises(InvalidInputError):
            listed.files(names=wrong)  # type: ignore[arg-type]


def test_the_only_file(store: Store, tmp_path: Path) -> None:
    """G5."""
    path = log(store, b"1").file(tmp_path / "out")
    assert Path(path).read_bytes() == b"1"
    for draft in (Artifact("none"), artifact("two", a=b"1", b=b"2")):
        with pytest.raises(InvalidInputError) as caught:
            store.log_artifact(draft).file(tmp_path / "out2")
        assert caught.value.exit_code == 2


def test_twins_are_warned_about(store: Store) -> None:
    """A11: paths that only differ in case or Unicode form are stored as they are."""
    draft = Artifact("ds")
    for path in ("Readme", "README", "caf\u00e9", "cafe\u0301", "Dir/x", "dir/y", "b", "B/z"):
        draft.add_bytes(path.encode(), path)
    version = store.log_artifact(draft)
    assert len(version.warnings) == 3
    assert any("'README' and 'Readme'" in warning for warning in version.warnings)
    assert any("'B/z'" in warning for warning in version.warnings)
    assert len(content(version)) == 8
    assert log(store, b"1", "plain").warnings == ()


# --- Q12: diff


def test_diff(store: Store) -> None:
    """Q12."""
    moved, grown = os.urandom(3000), os.urandom(200_000)
    base = Artifact("ds")
    for path, data in (("same", b"s"), ("gone", b"g"), ("old/name", moved), ("grown", grown), ("empty", b"")):
        base.add_bytes(data, path)
    draft = store.log_artifact(base).new_draft()
    draft.remove("gone")
    draft.remove("old")
    draft.remove("empty")
    draft.add_bytes(moved, "new/name")
    draft.add_bytes(grown + b"tail", "grown", overwrite=True)
    draft.add_bytes(b"added", "added")
    draft.add_bytes(b"", "empty2")
    store.log_artifact(draft)
    diff = store.diff("ds:v0", "ds:v1")
    assert (diff.a, diff.b) == ("ds:v0", "ds:v1")
    assert (diff.added, diff.removed, diff.changed) == (("added", "empty2"), ("empty", "gone"), ("grown",))
    assert diff.renamed == (("old/name", "new/name"),)
    assert 5 < diff.new_bytes < 200_000, "the new end of the long file, not all of it"
    back = store.diff("ds:v1", "ds:v0")
    assert (back.added, back.removed, back.renamed) == (
        ("empty", "gone"),
        ("added", "empty2"),
        (("new/name", "old/name"),),
    )
    assert not store.diff("ds:v1", "ds:latest")
    assert json.loads(json.dumps(diff.to_dict()))["renamed"] == [["old/name", "new/name"]]
    with pytest.raises(VersionNotFoundError):
        store.diff("ds:v0", "ds:v7")


def test_a_diff_takes_versions_as_objects_whatever_their_collection_is_called_by_now(tmp_path: Path) -> None:
    with Store.create(tmp_path / "a") as store, Store.create(tmp_path / "b") as elsewhere:
        first, second, foreign = log(store, b"1"), log(store, b"2"), log(elsewhere, b"1")
        assert store.diff(first, second) == store.diff("ds:v0", second) == store.diff("ds:v0", "ds:v1")
        store.collection("ds").rename("new")
        log(store, b"1")
        log(store, b"1", dedup="never")
        assert store.diff(first, second).changed, "not what has the name now"
        with pytest.raises(InvalidInputError, match="another store"):
            store.diff(first, foreign)
        store.delete("new:v0")
        with pytest.raises(VersionNotFoundError):
            store.diff(first, second)


# --- the store as an object


def test_a_store_is_a_context_manager_and_closes_for_good(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", create=True) as store:
        version = log(store, b"1")
        trash = store.trash
        entry = version["a"]
    store.close()
    draft = artifact(a=b"2")
    uses = (
        lambda: store.get("ds"),
        lambda: store.log_artifact(draft),
        lambda: store.gc(),
        lambda: store.trash,
        lambda: store.config,
        lambda: store.fsck(),
        lambda: list(store.collections()),
        lambda: store.du(),
        lambda: trash.list(),
        lambda: version.aliases,
        lambda: list(version.files()),
        lambda: version.download(tmp_path / "out"),
        lambda: version.new_draft(),
        lambda: version.delete(),
        lambda: version.add_alias("x"),
        lambda: entry.read(),
    )
    for use in uses:
        with pytest.raises(CasstoreError, match="closed"):
            use()
    assert draft.is_draft()


def test_a_pickled_store_is_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N9; wherever the copy is opened from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Store.open("s", create=True) as store:
        log(store, b"1")
        copy = pickle.loads(pickle.dumps(store))
        monkeypatch.chdir(tmp_path / "elsewhere")
        with copy:
            assert content(copy.get("ds")) == {"a": b"1"}
            log(copy, b"2")
        assert content(store.get("ds")) == {"a": b"2"}
        store.close()
        with pytest.raises(CasstoreError, match="closed"):
            pickle.loads(pickle.dumps(store)).get("ds")


def test_two_handles_in_one_process(tmp_path: Path) -> None:
    """N9."""
    with Store.open(tmp_path / "s", create=True) as one, Store.open(tmp_path / "s", create=True) as two:
        for number in range(6):
            assert log((one, two)[number % 2], str(number).encode()).version == f"v{number}"
        assert [content(v) for v in one.versions("ds")] == [content(v) for v in two.versions("ds")]
        one.get("ds:v0").add_alias("best")
        assert two.get("ds:best").version == "v0"
        two.get("ds:v0").delete(delete_aliases=True)
        with pytest.raises(VersionNotFoundError):
            one.get("ds:best")
        one.close()
        assert log(two, b"more").version == "v6"


def test_threads_share_a_handle(store: Store) -> None:
    def work(number: int) -> None:
        for step in range(5):
            log(store, f"{number} {step}".encode())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = store.versions("ds")
    assert sorted(v.number for v in versions) == list(range(20))
    assert len({v["a"].read() for v in versions}) == 20


@pytest.mark.parametrize("digest", ["blake3", "sha256", "xxh3-128"])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_whole_road_on_every_kind_of_store(digest: str, where: str, tmp_path: Path) -> None:
    """B1, G2, G8, K1, M2, M3, L1, L2 in a row; each digest, each backend."""
    url = str(tmp_path / "s") if where == "local" else f"memory://road-{digest}"
    forget_memory(f"road-{digest}")
    data = os.urandom(300_000)
    with Store.create(url, digest=digest) as store:
        first = store.log_artifact(artifact(a=data, b=b"shared"), aliases=["best"])
        assert str(first.digest).startswith(digest + ":")
        assert store.get(f"ds:{first.digest}") == first
        draft = first.new_draft()
        draft.remove("a")
        store.log_artifact(draft)
        assert first.download(tmp_path / "out").bytes == 300_006
        assert first.verify(tmp_path / "out") == first.verify() == 300_006
        assert first.delete(delete_aliases=True).exclusive_bytes > 300_000
        assert store.trash.restore("ds:v0").aliases_not_restored == ()
        assert store.get("ds:best")["a"].read() == data
        store.get("ds:v0").delete(delete_aliases=True)
        store.trash.purge("ds:v0")
        before = store.du().stored
        assert store.gc(grace=0).freed_bytes > 300_000
        assert store.du().stored < before - 300_000
        assert content(store.get("ds")) == {"b": b"shared"}
        assert store.fsck(read_data=True).clean
    with Store.open(url) as again:
        assert content(again.get("ds")) == {"b": b"shared"}
    forget_memory(f"road-{digest}")


def test_unknown_digests_are_refused(tmp_path: Path) -> None:
    for digest in ("md5", "", "BLAKE3"):
        with pytest.raises(InvalidInputError) as caught:
            Store.create(tmp_path / "s", digest=digest)
        assert caught.value.exit_code == 2
        assert not (tmp_path / "s").exists()


def test_the_clock_is_the_only_time(tmp_path: Path) -> None:
    """DESIGN §12."""
    now = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    with Store.open(tmp_path / "s", create=True, clock=lambda: now) as store:
        assert log(store, b"1").created_at == now
    with pytest.raises(InvalidInputError, match="aware"):
        Store.open(tmp_path / "t", create=True, clock=lambda: datetime(2031, 1, 1)).close()  # noqa: DTZ001
    with Store.open(tmp_path / "s", runtime=Runtime(actor="me")) as store:
        assert log(store, b"2").to_dict()["actor"] == "me"


def test_errors_of_lookups_are_not_found(store: Store) -> None:
    uses: list[Callable[[], object]] = [
        lambda: store.versions("none"),
        lambda: store.delete("none:v0"),
        lambda: store.du("none"),
        lambda: store.alias_log("none"),
    ]
    for use in uses:
        with pytest.raises(NotFoundError) as caught:
            use()
        assert caught.value.exit_code == 10
    with pytest.raises(InvalidPathError):
        log(store, b"1").files(start="/abs")
