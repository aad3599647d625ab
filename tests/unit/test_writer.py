"""Guards the promise of a deduplication hit: a claim is kept, stored again, or refused; never taken on trust (I5)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from casstore import Artifact, IntegrityError, Store
from casstore.chunks import ChunkWriter
from casstore.model import ChunkKind
from casstore.testing.checks import check_no_garbage, recount
from casstore.writer import Writer


def artifact(data: bytes, name: str = "c") -> Artifact:
    made = Artifact(name)
    made.add_bytes(data, "f")
    return made


def collect(store: Store, ref: str) -> None:
    store.delete(ref)
    store.trash.purge(ref)
    store.gc(grace=0)


def test_what_is_stored_again_by_somebody_else_is_a_claim_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim breaks; before this session has stored the content again, another writer has."""
    data = random.Random(1).randbytes(50_000)
    with Store.open(tmp_path / "s", create=True) as store, Store.open(tmp_path / "s") as other:
        first = other.log_artifact(artifact(data, "old"))
        steps: list[str] = []
        commit, forget = Writer.commit, Writer._forget

        def committing(self: Writer, *args: object) -> object:
            if not steps:
                steps.append("collected")
                collect(other, first.ref)
            return commit(self, *args)  # type: ignore[arg-type]

        def forgetting(self: Writer, broken: object) -> None:
            forget(self, broken)  # type: ignore[arg-type]
            if steps == ["collected"]:
                steps.append("stored again")
                other.log_artifact(artifact(data, "new"))

        monkeypatch.setattr(Writer, "commit", committing)
        monkeypatch.setattr(Writer, "_forget", forgetting)
        version = store.log_artifact(artifact(data))
        assert steps == ["collected", "stored again"]
        assert version["f"].read() == data
        assert store.fsck(read_data=True).findings == []


def test_a_view_is_kept_when_the_log_cannot_be_read(tmp_path: Path) -> None:
    """`rebuild_index` must not throw away a view that knows more than the damaged log can say."""
    with Store.open(tmp_path / "s", create=True) as store:
        store.log_artifact(artifact(b"some content"))
        segment = tmp_path / "s" / "log" / f"{1:020d}"
        data = bytearray(segment.read_bytes())
        for at in (70, len(data) // 2):
            data[at] ^= 1
        segment.chmod(0o600)
        segment.write_bytes(data)
        with pytest.raises(IntegrityError):
            store.rebuild_index()
        assert store.get("c:v0")["f"].read() == b"some content"


def test_an_interrupted_commit_keeps_its_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt may come while another thread commits for this one: nothing that may be named is deleted (I4)."""
    with Store.open(tmp_path / "s", create=True) as store:
        records = Writer._records

        def interrupted(self: Writer, *args: object) -> object:
            records(self, *args)  # type: ignore[arg-type]
            self._refused = True  # as a commit under way in another thread may have it at this moment
            raise KeyboardInterrupt

        monkeypatch.setattr(Writer, "_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.log_artifact(artifact(b"content"))
        assert len([path for path in (tmp_path / "s" / "packs").rglob("*") if path.is_file()]) == 2


def test_a_file_with_the_bytes_of_an_idle_node(tmp_path: Path) -> None:
    """A collector may index a node again that was dropped while it copied it: nothing can hold that, so it is
    forgotten by the writer whose file has the same bytes."""
    with Store.open(tmp_path / "s", create=True) as store:
        engine = store._engine
        first = store.log_artifact(artifact(b"some content", "old"))
        node = engine.reader.get(first.digest.value)
        collect(store, first.ref)
        packed = ChunkWriter(
            engine.backend,
            engine.codec,
            engine.executor(),
            engine.new_pack,
            ChunkKind.NODE,
            frame_bytes=1000,
            pack_bytes=100_000,
            in_flight=2,
        )
        packed.add(first.digest.value, node, 1)
        (pack,) = packed.finish(())
        engine.commit(lambda _: (pack,))
        version = store.log_artifact(artifact(node))
        assert version["f"].read() == node
        again = store.log_artifact(artifact(b"some content", "old"))
        assert again["f"].read() == b"some content"
        recount(engine)
        for ref in (version.ref, again.ref):
            collect(store, ref)
        store.gc(offline=True)
        check_no_garbage(store)
