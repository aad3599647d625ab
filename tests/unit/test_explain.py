"""Guards what is said before a deletion (`preview_delete`) and about what is still there (`why`)."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import Artifact, ChunkerParams, InvalidInputError, NotFoundError, Store, StoreConfig, VersionNotFoundError

SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=4096, pack_bytes=65536, node_bytes=512
)


def block(name: str, size: int = 6000) -> bytes:
    return random.Random(name).randbytes(size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "s", config=SMALL) as opened:
        yield opened


def log(store: Store, name: str, files: dict[str, bytes]) -> str:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact).ref


def fill(store: Store) -> list[str]:
    a, b, c = block("a"), block("b"), block("c")
    return [
        log(store, "x", {"a": a, "b": b}),
        log(store, "x", {"b": b, "c": c}),
        log(store, "y", {"deep/ab": b"head" + a + b, "own": block("own")}),
    ]


def test_alone_and_together(store: Store) -> None:
    data = block("shared", 50_000)
    first, second = log(store, "x", {"f": data}), log(store, "y", {"g": data, "h": b"1"})
    for ref in (first, second):
        assert store.preview_delete([ref]).exclusive_bytes < 2000
    both = store.preview_delete([first, second])
    assert both.exclusive_bytes >= 50_000
    assert both.shared_with == ()
    assert store.preview_delete([first]).shared_with == (second,)


def test_preview_of_every_subset_is_what_purge_and_gc_drop(tmp_path: Path) -> None:
    """Exact in plaintext bytes: frames are compressed anew when they are only partly live."""
    with Store.create(tmp_path / "all", config=SMALL) as store:
        refs = fill(store)
        previews = {
            subset: store.preview_delete(subset) for size in (1, 2, 3) for subset in itertools.combinations(refs, size)
        }
    for number, (subset, impact) in enumerate(previews.items()):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "all", copy)
        with Store.open(copy) as store:
            before = store.du().unique
            for ref in subset:
                store.delete(ref)
                store.trash.purge(ref)
            store.gc(offline=True)
            assert before - store.du().unique == impact.exclusive_bytes, subset
        shutil.rmtree(copy)


def test_trash_only_bytes(store: Store) -> None:
    data = block("t", 30_000)
    first, second = log(store, "x", {"f": data}), log(store, "y", {"f": data, "g": b"g"})
    store.delete(second)
    impact = store.preview_delete([first])
    assert impact.trash_only_bytes >= 30_000
    assert impact.shared_with == (second,)


def test_bad_input(store: Store) -> None:
    ref = log(store, "x", {"f": b"1"})
    with pytest.raises(InvalidInputError):
        store.preview_delete(ref)
    with pytest.raises(InvalidInputError):
        store.preview_delete([])
    with pytest.raises(VersionNotFoundError):
        store.preview_delete([ref, "x:v7"])
    with pytest.raises(NotFoundError):
        store.why("blake3:" + "0" * 64)
    with pytest.raises(InvalidInputError):
        store.why("sha256:" + "0" * 64)
    with pytest.raises(NotFoundError):
        store.why(f"{ref}/nothing")


def test_why_names_every_holder_and_when_it_lets_go(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    with Store.create(tmp_path / "s", clock=lambda: now[0]) as store:
        data = b"some content"
        first = log(store, "x", {"one": data})
        log(store, "y", {"deep/two": data, "other": b"-"})
        store.delete(first)
        digest = store.get("y:v0")["deep/two"].digest
        explanation = store.why(str(digest))
        assert explanation.state == "held"
        assert [(h.kind, h.ref, h.paths) for h in explanation.holders] == [
            ("trash", "x:v0", ("one",)),
            ("version", "y:v0", ("deep/two",)),
        ]
        assert explanation.holders[0].until == now[0] + timedelta(days=30)
        assert store.why("y:v0/deep/two").holders == explanation.holders
        draft = store.get("y:v0").new_draft()
        assert [h.kind for h in store.why("y:v0").holders] == ["version", "pin"]
        del draft
        store.trash.purge(first)
        assert [h.ref for h in store.why(str(digest)).holders if h.kind != "pin"] == ["y:v0"]


def test_why_after_collection_says_when_it_went(store: Store) -> None:
    ref = log(store, "x", {"f": block("gone")})
    digest = str(store.get(ref).digest)
    store.delete(ref)
    store.trash.purge(ref)
    assert store.why(digest).state == "garbage"
    store.gc(grace=0)
    explanation = store.why(digest)
    assert explanation.state == "dropped"
    assert explanation.dropped_at is not None
