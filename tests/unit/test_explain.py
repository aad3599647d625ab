"""Guards what is said before a deletion (`preview_delete`) and about what is still there (`why`)."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import Artifact, ChunkerParams, InvalidInputError, NotFoundError, Store, StoreConfig, VersionNotFoundError
from casstore.log import Log
from casstore.model import Erase, Pin, Quarantine
from casstore.pin import NEVER

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


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "packs").rglob("*") if file.is_file())


def text(name: str, size: int = 12_000) -> bytes:
    source = random.Random(name)
    return b"".join(b"%d,%s\n" % (source.randrange(1000), source.choice([b"cat", b"dog"])) for _ in range(size // 7))


@dataclass(frozen=True)
class Crowd:
    """A compacted store with shared chunks, shared nodes, twins, trash, a pin and garbage nobody collected."""

    path: Path
    refs: tuple[str, ...]
    trashed: tuple[str, ...]
    size: int


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Crowd:
    path = tmp_path_factory.mktemp("crowd") / "all"
    a, b, c = block("a", 20_000), text("b", 30_000), block("c")
    with Store.create(path, config=SMALL) as store:
        shared = {"deep/a": a, "deep/b": b, "c": c}
        refs = (
            log(store, "x", shared),
            log(store, "x", {**shared, "more": b"more"}),
            log(store, "twin", shared),
            log(store, "gone", {"c": c, "t": text("t")}),
            log(store, "pinned", {"p": block("p"), "t": text("t")}),
        )
        store.delete(refs[3])
        store._engine.commit(lambda _: (Pin(b"p" * 16, "host:1", "a test", (root_of(store, refs[4]),), NEVER),))
        store.gc(offline=True)
    return Crowd(path, refs, refs[3:4], on_disk(path))


def root_of(store: Store, ref: str) -> bytes:
    return store.get(ref)._found.version.root


def subsets(refs: Sequence[str]) -> list[tuple[str, ...]]:
    return [subset for size in range(1, len(refs) + 1) for subset in itertools.combinations(refs, size)]


def test_preview_of_every_subset_is_what_purge_and_gc_free_on_disk(crowd: Crowd, tmp_path: Path) -> None:
    """Plaintext to the byte; on disk but for labels in footers and for frames that compress otherwise."""
    with Store.open(crowd.path) as store:
        previews = {subset: store.preview_delete(subset) for subset in subsets(crowd.refs)}
        chunks = {subset: store.du().chunks for subset in previews}
    for subset, impact in previews.items():
        copy = tmp_path / "copy"
        shutil.copytree(crowd.path, copy)
        with Store.open(copy) as store:
            before = store.du().unique
            for ref in subset:
                store.delete(ref)
                store.trash.purge(ref)
            report = store.gc(offline=True)
            assert before - store.du().unique == impact.exclusive_bytes, subset
            dropped = chunks[subset] - store.du().chunks
        freed = crowd.size - on_disk(copy)
        assert freed == report.freed_bytes, subset
        slack = 300 * len(subset) + 20 * dropped + impact.stored_exclusive_bytes // 50
        assert abs(freed - impact.stored_exclusive_bytes) <= slack, (subset, freed, impact)
        shutil.rmtree(copy)


def test_preview_with_the_trash_is_what_both_free(crowd: Crowd) -> None:
    """What only the trash keeps besides, and what only the trash keeps, make up what deleting all of it frees."""
    with Store.open(crowd.path) as store:
        for subset in subsets(crowd.refs):
            rest = tuple(ref for ref in crowd.trashed if ref not in subset)
            impact = store.preview_delete(subset)
            both = store.preview_delete((*subset, *rest)).exclusive_bytes
            trash = store.preview_delete(rest).exclusive_bytes if rest else 0
            assert impact.exclusive_bytes + impact.trash_only_bytes + trash == both, subset


def test_garbage_nobody_collected_changes_no_preview(crowd: Crowd, tmp_path: Path) -> None:
    """A purged version holds its content until it is collected, but keeps it from nobody."""
    path = tmp_path / "copy"
    shutil.copytree(crowd.path, path)
    with Store.open(path) as store:
        ref = log(store, "short", {"a": block("a", 20_000), "b": text("b", 30_000), "s": block("s")})
        store.delete(ref)
        store.trash.purge(ref)
        assert store.status().waiting > 0
        purged = {subset: store.preview_delete(subset) for subset in subsets(crowd.refs)}
        store.gc(offline=True)
        assert {subset: store.preview_delete(subset) for subset in purged} == purged


def test_preview_names_the_pins_that_keep_content(crowd: Crowd) -> None:
    with Store.open(crowd.path) as store:
        impact = store.preview_delete(crowd.refs[4:])
        assert impact.exclusive_bytes == 0
        assert impact.pins == ("a test, held by host:1",)
        assert impact.shared_with == crowd.trashed


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
    with pytest.raises(InvalidInputError):
        store.why(5)  # type: ignore[arg-type]
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


def test_why_after_collection_says_which_run_and_when_and_who(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    with Store.create(tmp_path / "s", config=SMALL, clock=lambda: now[0]) as store:
        ref = log(store, "x", {"f": block("gone")})
        log(store, "x", {"f": b"other"})
        digest = str(store.get(ref).digest)
        store.delete(ref)
        store.trash.purge(ref)
        assert store.why(digest).state == "garbage"
        now[0] += timedelta(hours=5)
        report = store.gc(grace=0)
        found = store.why(digest)
        assert found.state == "dropped"
        assert [(e.kind, e.run_id, e.at, e.actor) for e in found.events] == [
            ("dropped", report.run_id, now[0], store._runtime.actor)
        ]
        assert found.dropped_at == now[0]
        assert not found.there
        assert found.bytes_until is None


def test_why_a_purged_version_says_who_and_whether_it_can_be_undone(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    with Store.create(tmp_path / "s", config=SMALL, clock=lambda: now[0]) as store:
        ref = log(store, "x", {"f": block("gone")})
        log(store, "x", {"f": b"other"})
        store.delete(ref)
        store.trash.purge(ref)
        purged = store.why(ref)
        assert (purged.state, purged.there, purged.undo) == ("purged", True, None)
        assert [event.kind for event in purged.events] == ["purged"]
        now[0] += timedelta(hours=5)
        report = store.gc()
        found = store.why(ref)
        assert [(e.kind, e.run_id) for e in found.events] == [("dropped", report.run_id), ("purged", None)]
        assert found.there
        assert found.bytes_until == now[0] + store.policy.grace
        assert found.undo == report.run_id
        assert store.gc_undo(found.undo).restored == (ref,)
        assert store.why(ref).state == "held"
        store.trash.purge(ref)
        store.gc(grace=0)
        gone = store.why(ref)
        assert (gone.state, gone.there, gone.bytes_until, gone.undo) == ("purged", False, None, None)


def test_why_a_version_that_a_run_purged_names_that_run(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    with Store.create(tmp_path / "s", config=SMALL, clock=lambda: now[0]) as store:
        ref = log(store, "x", {"f": block("gone")})
        log(store, "x", {"f": b"other"})
        store.set_policy(trash_days=0.5)
        store.delete(ref)
        now[0] += timedelta(days=2)
        report = store.gc()
        assert report.purged == [ref]
        found = store.why(ref)
        assert [(e.kind, e.run_id) for e in found.events] == [("dropped", report.run_id), ("purged", report.run_id)]
        assert found.undo == report.run_id


def test_why_a_purged_version_whose_content_others_hold(store: Store) -> None:
    first = log(store, "x", {"f": block("same")})
    second = log(store, "y", {"f": block("same")})
    store.delete(first)
    store.trash.purge(first)
    store.gc(grace=0)
    found = store.why(first)
    assert (found.state, found.there) == ("purged", True)
    assert [holder.ref for holder in found.holders] == [second]


def test_why_tells_whose_pin_it_is_and_since_when(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    with Store.create(tmp_path / "s", clock=lambda: now[0]) as store:
        ref = log(store, "x", {"f": b"1"})
        now[0] += timedelta(days=1)
        root = root_of(store, ref)
        expires = int((now[0] + timedelta(days=2)).timestamp() * 1_000_000)
        store._engine.commit(lambda _: (Pin(b"1" * 16, "node7:4321", "a long read", (root,), expires),))
        store._engine.commit(lambda _: (Pin(b"2" * 16, "alice", "the paper", (root,), expires),))
        process, person = (holder for holder in store.why(ref).holders if holder.kind == "pin")
        assert (process.holder, process.pid, process.purpose) == ("node7:4321", 4321, "a long read")
        assert (process.since, process.until) == (now[0], now[0] + timedelta(days=2))
        assert (person.holder, person.pid) == ("alice", None)


def test_why_tells_when_a_version_expires(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    with Store.create(tmp_path / "s", clock=lambda: now[0]) as store:
        artifact = Artifact("x")
        artifact.add_bytes(b"1", "f")
        ref = store.log_artifact(artifact, ttl=timedelta(days=3)).ref
        assert [holder.until for holder in store.why(ref).holders] == [now[0] + timedelta(days=3)]


def test_why_names_the_nodes_above_a_chunk(store: Store) -> None:
    ref = log(store, "x", {"f": b"little"})
    version = store.get(ref)
    found = store.why(str(version["f"].digest))
    assert found.parents == (str(version.digest),)


def test_why_says_damaged_and_erased(store: Store) -> None:
    ref = log(store, "x", {"damaged": b"d" * 100, "erased": b"e" * 100, "fine": b"f" * 100})
    version = store.get(ref)
    places = {}
    for path in ("damaged", "erased"):
        entry = version[path]
        ((digest, _),) = entry.chunks
        (place,) = store._engine.view.locate([digest])
        assert place is not None
        places[path] = (digest, place.pack)
    store._engine.commit(lambda _: (Quarantine(*places["damaged"], "scrubber"),))
    store._engine.commit(lambda _: (Erase((places["erased"][0],), "court order", "alice"),))
    damaged, erased = store.why(f"{ref}/damaged"), store.why(f"{ref}/erased")
    assert (damaged.state, damaged.there, damaged.events[0].actor) == ("damaged", False, "scrubber")
    assert (erased.state, erased.there) == ("erased", False)
    assert [(e.kind, e.reason, e.actor) for e in erased.events] == [("erased", "court order", "alice")]
    assert [holder.ref for holder in erased.holders] == [ref]
    assert store.why(f"{ref}/fine").state == "held"
    assert (store.status().damaged_digests, store.status().erased_digests) == (1, 1)


def test_a_search_of_the_log_stops_at_the_first_hit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        log(store, "early", {"f": b"%d" % number})
    ref = log(store, "x", {"f": block("gone")})
    digest = str(store.get(ref).digest)
    store.delete(ref)
    store.trash.purge(ref)
    store.gc(grace=0)
    read: list[int] = []
    original = Log.read
    monkeypatch.setattr(Log, "read", lambda log, seq: read.append(seq) or original(log, seq))  # type: ignore[func-returns-value]
    assert store.why(digest).state == "dropped"
    assert min(read) > 20


def test_keepers_are_what_frees_most(store: Store) -> None:
    log(store, "small", {"f": block("s", 2_000)})
    big = [log(store, "big", {"f": block("b", 20_000)}), log(store, "big", {"f": block("b", 20_000), "g": b"1"})]
    trashed = log(store, "t", {"f": block("t", 10_000)})
    store.delete(trashed)
    draft = store.get(big[0]).new_draft()
    found = store.keepers()
    assert [(keeper.kind, keeper.ref) for keeper in found] == [
        ("collection", "big"),
        ("trash", trashed),
        ("collection", "small"),
    ]
    assert found[0].stored_bytes == pytest.approx(20_000, rel=0.2)
    assert store.keepers(1) == found[:1]
    del draft
