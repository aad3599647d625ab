"""Guards the promise of a deduplication hit: a claim is kept, stored again, or refused; never taken on trust (I5)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from casstore import Artifact, IntegrityError, Store
from casstore.format.rows import kind_of_row
from casstore.model import ChunkKind
from casstore.overlay import Overlay
from casstore.packing import ChunkWriter
from casstore.state import CHUNK
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


def claiming(store: Store, count: int) -> Writer:
    """A session that claims some chunks, all of which are there."""
    with store._engine.view.read() as tables:
        digests = [digest for digest, row in tables.scan(CHUNK) if kind_of_row(row) is ChunkKind.DATA]
    assert len(digests) >= count
    writer = Writer(store._engine)
    assert not writer.missing(digests)
    return writer


def looked_up(writer: Writer, monkeypatch: pytest.MonkeyPatch, gone: bytes = b"") -> tuple[int, set[bytes]]:
    """How many chunks a commit at the head looks up, and the claims that broke.

    ``gone``: what a transaction before it in the same segment has dropped.
    """
    with writer.engine.foresee(lambda _: ()) as tables:
        assert isinstance(tables, Overlay)
        if gone:
            tables.delete(CHUNK, gone)
        asked = 0
        get = Overlay.get

        def counting(self: Overlay, table: str, key: bytes) -> bytes | None:
            nonlocal asked
            asked += table == CHUNK
            return get(self, table, key)

        with monkeypatch.context() as patched:
            patched.setattr(Overlay, "get", counting)
            broken = writer._broken_claims(tables)
        return asked, broken


def test_a_commit_looks_only_at_claims_that_may_have_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each commit of a large session takes as long as the session is large, and holds every other one up."""
    with Store.open(tmp_path / "s", create=True) as store, Store.open(tmp_path / "s") as other:
        many = Artifact("many")
        for number in range(200):
            many.add_bytes(b"%d" % number, f"f{number}")
        store.log_artifact(many)
        gone = other.log_artifact(artifact(b"to be collected", "gone"))
        writer = claiming(store, 200)
        try:
            assert looked_up(writer, monkeypatch) == (0, set())
            other.log_artifact(artifact(b"unrelated", "else"))
            assert looked_up(writer, monkeypatch) == (0, set())
            with store._engine.view.read() as tables:
                victim = next(digest for digest in writer._claims if tables.get(CHUNK, digest))
            # What another transaction of the same segment did is in no log yet.
            assert looked_up(writer, monkeypatch, victim) == (1, {victim})
            collect(other, gone.ref)
            asked, broken = looked_up(writer, monkeypatch)
            assert len(broken) == 1
            assert asked == 1
        finally:
            writer.abandon()


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
        monkeypatch.setattr("casstore.writer.PARCEL_BYTES", -1)
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


def test_chunks_are_copied_when_they_are_added_and_come_out_as_they_went_in(tmp_path: Path) -> None:
    """Whoever adds them uses their memory again; frames are gathered in memory that is used again, too."""
    with Store.open(tmp_path / "s", create=True) as store:
        engine = store._engine
        writer = ChunkWriter(
            engine.backend,
            engine.codec,
            engine.executor(),
            engine.new_pack,
            ChunkKind.DATA,
            frame_bytes=1000,
            pack_bytes=20_000,
            in_flight=2,
        )
        source = random.Random(5)
        added: list[tuple[bytes, bytes]] = []
        memory = bytearray(5000)
        for number in range(600):
            size = source.choice((1, 90, 300, 700, 999, 1250, 1251, 5000))
            data = source.randbytes(size) if number % 3 else bytes(size - 1) + bytes([number % 251])
            memory[:size] = data
            digest = engine.hash(data)
            if digest not in {known for known, _ in added}:
                writer.add(digest, memoryview(memory)[:size])
                added.append((digest, data))
            if number == 0:
                waiting = writer.waiting()
                memory[:] = source.randbytes(len(memory))
                assert waiting is not None
                assert [bytes(chunk) for _, chunk in waiting[0]] == [data]
        packs = writer.finish()
        assert len(packs) > 5
        engine.commit(lambda _: packs)
        assert engine.reader.fetch([digest for digest, _ in added]).found == dict(added)
