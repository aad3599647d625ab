"""Guards erasure on request (FEATURES O6): the bytes are on no disk any more, the list of what breaks is complete, and
everything else is as it was."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from casstore import (
    Artifact,
    ChunkerParams,
    ChunkMissingError,
    ConfirmationRequired,
    EntryNotFoundError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
    Store,
    StoreBusyError,
    StoreConfig,
    VerificationError,
    Version,
)
from casstore.cli import main
from casstore.engine import Engine
from casstore.errors import CasstoreError
from casstore.format.layout import PACK_PREFIX, pack_key, pack_of
from casstore.format.packs import check_pack, locations
from casstore.gc.reclaim import condemn_orphans
from casstore.model import AddPack, ChunkKind, Erase
from casstore.pack import SealedPack, decode_frame, slice_chunk
from casstore.state import CHUNK
from casstore.testing.snapshot import snapshot

SMALL = StoreConfig(
    chunker=ChunkerParams(minimum=256, average=1024, maximum=4096), frame_bytes=4096, pack_bytes=65536, node_bytes=512
)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
WHY = "request 17"
RETIRE: Any = sys.modules["casstore.gc.retire"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "s", config=SMALL, clock=lambda: NOW) as opened:
        yield opened


def block(name: str, size: int = 3000) -> bytes:
    return random.Random(name).randbytes(size)


def log(store: Store, name: str, files: dict[str, bytes]) -> Version:
    artifact = Artifact(name)
    for path, data in files.items():
        artifact.add_bytes(data, path)
    return store.log_artifact(artifact, dedup="never")


def on_disk(store: Store) -> dict[bytes, bytes]:
    """Every chunk that any pack has, by the packs' own footers, whatever the log says of them."""
    engine = store._engine
    found = {}
    for info in engine.backend.list(PACK_PREFIX):
        pack = pack_of(info.key)
        assert pack is not None
        data = engine.backend.read(info.key)
        for digest, place in locations(pack, check_pack(data, "a pack").content):
            frame = data[place.frame_offset : place.frame_offset + place.frame_stored]
            found[digest] = slice_chunk(decode_frame(engine.codec, frame, place.frame_raw, "a frame"), place)
    return found


def is_gone(store: Store, secret: bytes) -> bool:
    """No run of 64 bytes of it is in any chunk."""
    whole = b"\0".join(on_disk(store).values())
    return not any(secret[at : at + 64] in whole for at in range(0, len(secret) - 64, 64))


def erase(store: Store, subject: str, **options: object) -> None:
    foreseen = store.erase(subject, reason=WHY, dry_run=True)
    done = store.erase(subject, True, WHY, foreseen.digest, **options)  # type: ignore[arg-type]
    assert done.remaining == []


# --- gone


@pytest.mark.parametrize("size", [100, 3000, 40_000, 400_000])
def test_the_bytes_are_gone_and_all_else_is_there(store: Store, size: int) -> None:
    """Files of one chunk, of a few, and of so many that the list is a tree."""
    secret = block("secret", size)
    first = log(store, "a", {"own": block("own", 20_000), "deep/secret": secret, "z": b"z"})
    second = log(store, "b", {"copy": secret, "other": block("other", 20_000)})
    log(store, "c", {"unrelated": block("c", 9000)})
    assert not is_gone(store, secret)
    foreseen = store.erase("a:v0/deep/secret", reason=WHY, dry_run=True)
    assert foreseen.affected == ("a:v0/deep/secret", "b:v0/copy")
    assert foreseen.versions == ("a:v0", "b:v0")
    assert foreseen.bytes == size
    assert foreseen.digest == str(first["deep/secret"].digest)
    assert not is_gone(store, secret), "a dry run changes nothing"
    done = store.erase("a:v0/deep/secret", True, WHY, foreseen.digest)
    assert done.affected == foreseen.affected
    assert done.packs == foreseen.packs == done.deleted > 0
    assert done.remaining == []
    assert done.erased_at == NOW
    assert is_gone(store, secret)
    assert first["own"].read() == block("own", 20_000)
    assert second["other"].read() == block("other", 20_000)
    for version, path in ((first, "deep/secret"), (second, "copy")):
        with pytest.raises(ChunkMissingError, match=f"erased on 2030-01-01 .{WHY}") as caught:
            version[path].read()
        assert caught.value.exit_code == 20


def test_by_digest(store: Store) -> None:
    """What names the file in a listing names what is to be erased, however it is stored."""
    for size in (100, 9000, 400_000):
        secret = block(f"s{size}", size)
        version = log(store, "a", {"f": secret, "g": b"g"})
        digest = version["f"].digest
        assert digest is not None
        done = store.erase(digest, True, WHY, str(digest))
        assert done.affected == (f"{version.ref}/f",)
        assert is_gone(store, secret)


def test_second_copies_graces_and_orphans(store: Store) -> None:
    """Wherever a pack has the bytes: in one that ended, one nobody committed, one that has it a second time."""
    secret = block("secret")
    log(store, "a", {"f": secret, "own": block("own"), "waste": block("waste", 9000)})
    log(store, "a", {"f": secret, "own": block("own")})
    engine = store._engine
    first = {info.key: engine.backend.read(info.key) for info in engine.backend.list(PACK_PREFIX)}
    store.delete("a:v0")
    store.trash.empty()
    assert store.gc(grace=3600, max_waste=0).retired_packs, "the secret was moved, the old pack is in its grace"
    # An orphan and a second copy: packs with all that the first log stored, under names of their own.
    orphan, second = bytes(range(16)), bytes(reversed(range(16)))
    for key, stored in first.items():
        content = check_pack(stored, key).content
        if content.kind is ChunkKind.DATA:
            engine.backend.create(pack_key(orphan), stored)
            engine.backend.create(pack_key(second), stored)
            engine.commit(lambda _, c=content, s=stored: (AddPack(second, len(s), c),))  # type: ignore[misc]
    foreseen = store.erase("a:v1/f", reason=WHY, dry_run=True)
    assert foreseen.packs == 4, "its own, the one in grace, the second copy, the orphan"
    done = store.erase("a:v1/f", True, WHY, foreseen.digest)
    assert (done.packs, done.rewritten, done.deleted, done.remaining) == (4, 2, 4, [])
    assert is_gone(store, secret)
    assert store.get("a")["own"].read() == block("own")
    assert store.fsck(read_data=True).clean


def test_an_all_zero_block_can_be_kept(store: Store) -> None:
    """What other files have for other reasons: the dry run shows it, ``keep`` leaves it."""
    zeros = bytes(4096)
    secret = block("secret", 9000)
    log(store, "a", {"f": secret + zeros * 3})
    for number in range(5):
        log(store, "b", {"sparse": zeros * 4 + bytes([number])})
    foreseen = store.erase("a:v0/f", reason=WHY, dry_run=True)
    common = [chunk for chunk in foreseen.chunks if chunk.files > 1]
    assert [(chunk.length, chunk.files) for chunk in common] == [(4096, 6)]
    assert len(foreseen.affected) == 6
    keep = [chunk.digest for chunk in common]
    assert store.erase("a:v0/f", reason=WHY, dry_run=True, keep=keep).affected == ("a:v0/f",)
    done = store.erase("a:v0/f", False, WHY, foreseen.digest, keep=keep)
    assert done.versions == ("a:v0",)
    assert is_gone(store, secret)
    assert all(version["sparse"].read() for version in store.versions("b"))


def test_versions_in_the_trash_and_drafts_are_in_the_list(store: Store) -> None:
    secret = block("secret")
    log(store, "a", {"f": secret}).delete()
    log(store, "gone", {"f": secret})
    store.collection("gone").delete()
    version = log(store, "b", {"f": secret, "g": b"g"})
    draft = version.new_draft()
    foreseen = store.erase("a:v0/f", reason=WHY, dry_run=True)
    assert set(foreseen.affected) == {"a:v0/f", "b:v0/f", "gone:v0/f"}
    assert len(foreseen.drafts) == 1
    assert foreseen.to_dict()["affected"] == list(foreseen.affected)
    erase(store, "a:v0/f")
    assert is_gone(store, secret)
    draft.remove("f")
    assert store.log_artifact(draft)["g"].read() == b"g"
    assert store.trash.restore("a:v0").ref == "a:v0", "an erased file does not keep the others from coming back"


# --- refused


def test_what_is_needed_to_erase(store: Store) -> None:
    secret = block("secret")
    version = log(store, "a", {"f": secret, "empty": b""})
    log(store, "b", {"f": secret})
    digest = str(version["f"].digest)
    before = snapshot(Path(store.url))
    with pytest.raises(RefusedError, match="2 versions"):
        store.erase(digest, False, WHY, digest)
    for confirm in (None, "yes", "a:v0/f"):
        with pytest.raises(ConfirmationRequired) as caught:
            store.erase("a:v0/f", True, WHY, confirm)
        assert caught.value.hint == f"--confirm {digest}"
    attempts: list[tuple[type[CasstoreError], Callable[[], object]]] = [
        (InvalidInputError, lambda: store.erase(digest, True, "", digest)),
        (InvalidInputError, lambda: store.erase("a:v0", True, WHY, digest)),
        (InvalidInputError, lambda: store.erase("a:v0/empty", True, WHY, digest)),
        (InvalidInputError, lambda: store.erase(digest, True, WHY, digest, keep=[digest])),
        (InvalidInputError, lambda: store.erase("sha256:" + "0" * 64, True, WHY, digest)),
        (InvalidInputError, lambda: store.erase(digest, True, WHY, digest, keep=["blake3:" + "0" * 64])),
        (EntryNotFoundError, lambda: store.erase("a:v0/nope", True, WHY, digest)),
        (NotFoundError, lambda: store.erase("blake3:" + "0" * 64, True, WHY, digest)),
        (NotFoundError, lambda: store.erase("nope:v0/f", True, WHY, digest)),
        (RefusedError, lambda: store.erase(version.digest, True, WHY, str(version.digest))),
    ]
    for error, attempt in attempts:
        with pytest.raises(error):
            attempt()
    assert snapshot(Path(store.url)) == before


def test_not_beside_others(store: Store) -> None:
    """A writer may be about to publish the bytes; nothing is changed."""
    digest = str(log(store, "a", {"f": block("secret")})["f"].digest)
    with store._engine.hold("logging an artifact"), Store.open(store.url) as other:
        head = other.log(limit=1)[0].seq
        with pytest.raises(StoreBusyError, match="logging an artifact"):
            other.erase(digest, True, WHY, digest)
        assert other.log(limit=1)[0].seq == head


def test_bytes_that_are_also_a_file_list_cannot_be_erased(store: Store) -> None:
    version = log(store, "a", {"f": b"1"})
    node = store._engine.reader.get(version._found.version.root)
    twin = log(store, "b", {"twin": node})
    with pytest.raises(RefusedError, match="file list"):
        store.erase("b:v0/twin", True, WHY, str(twin["twin"].digest))
    assert version["f"].read() == b"1"


# --- afterwards


def test_erased_is_not_damaged(store: Store) -> None:
    """fsck, gc, why and verify say what it is; the collector goes on."""
    version = log(store, "a", {"f": block("secret"), "g": block("g")})
    erase(store, "a:v0/f")
    report = store.fsck(read_data=True)
    assert report.clean
    assert report.erased == ["a:v0/f"]
    assert store.gc(grace=0).errors == []
    assert store.gc(offline=True).errors == []
    assert store.why("a:v0/f").state == "erased"
    with pytest.raises(VerificationError, match="1 of them erased on request") as caught:
        version.verify()
    assert caught.value.missing == ["f"]
    assert store.get("a")["g"].read() == block("g")


def test_it_survives_a_rebuild(store: Store) -> None:
    version = log(store, "a", {"f": block("secret"), "g": b"g"})
    erase(store, "a:v0/f")
    store.rebuild_index()
    with pytest.raises(ChunkMissingError, match="erased on 2030-01-01"):
        version["f"].read()
    assert version["g"].read() == b"g"
    assert store.fsck(read_data=True).clean


def test_logging_it_again_brings_it_back(store: Store) -> None:
    secret = block("secret", 9000)
    version = log(store, "a", {"f": secret})
    erase(store, "a:v0/f")
    log(store, "b", {"f": secret})
    assert version["f"].read() == secret
    assert store.fsck(read_data=True).clean
    erase(store, "a:v0/f")
    assert is_gone(store, secret)


def test_when_the_versions_go_nothing_is_left(store: Store) -> None:
    version = log(store, "a", {"f": block("secret"), "g": block("g")})
    log(store, "b", {"h": b"h"})
    erase(store, "a:v0/f")
    digest = version["f"].digest
    version.delete()
    store.trash.empty()
    store.gc(offline=True)
    assert store._engine.view.known([digest.value if digest else b""]) == [False]
    assert store.fsck(read_data=True).erased == []
    assert store.get("b")["h"].read() == b"h"


def test_killed_in_between_it_is_finished_by_the_same_call(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record comes first: whatever is left then, the packs are swept by the next run."""
    secret = block("secret")
    log(store, "a", {"f": secret, "g": block("g")})
    digest = store.erase("a:v0/f", reason=WHY, dry_run=True).digest
    store.close()
    for step in ("_empty", "condemn_orphans", "clear", "reclaim"):
        copy = tmp_path / step
        shutil.copytree(store.url, copy)
        with Store.open(copy) as again:

            class Killed(BaseException):
                pass

            def die(*_: object, **__: object) -> None:
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(f"casstore.erasure.{step}", die)
                with pytest.raises(Killed):
                    again.erase("a:v0/f", True, WHY, digest)
            assert again.erase("a:v0/f", True, WHY, digest).remaining == []
            assert is_gone(again, secret)
            assert again.get("a")["g"].read() == block("g")
            assert again.fsck(read_data=True).clean


def test_what_cannot_be_moved_is_said(store: Store) -> None:
    """A pack whose other content is damaged still has the bytes: not finished, and why."""
    secret = block("secret", 100)
    log(store, "a", {"f": secret, "g": block("g", 20_000)})
    engine = store._engine
    other = store.get("a")["g"].chunks[0][0]
    (place,) = engine.view.locate([other])
    assert place is not None
    path = Path(store.url) / pack_key(place.pack)
    data = bytearray(path.read_bytes())
    data[place.frame_offset + place.frame_stored - 1] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)
    digest = store.erase("a:v0/f", reason=WHY, dry_run=True).digest
    done = store.erase("a:v0/f", True, WHY, digest)
    assert len(done.remaining) == 1
    assert place.pack.hex() in done.remaining[0]
    with pytest.raises(ChunkMissingError):
        store.get("a")["f"].read()


def test_the_veto_is_asked_before_packs_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view that goes wrong says that other content is still in a pack that is to go: it is not believed, nor kept."""
    log(store, "a", {"f": block("secret", 100), "g": block("g", 200)})
    engine = store._engine
    other = store.get("a")["g"].chunks[0][0]
    with engine.view.read() as tables:
        before = tables.get(CHUNK, other)
    assert before is not None

    def tamper(*arguments: object) -> list[bytes]:
        engine.view.update(lambda tables: tables.put(CHUNK, other, before))
        return condemn_orphans(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("casstore.erasure.condemn_orphans", tamper)
    erase(store, "a:v0/f")
    assert store.get("a")["g"].read() == block("g", 200)
    assert store.fsck(read_data=True).clean


def test_a_collector_on_the_way_does_not_bring_it_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has copied the bytes to a new pack when they are given up: the pack must not become live, nor stay."""
    secret = block("secret")
    log(store, "a", {"f": secret, "g": block("g"), "waste": block("waste", 9000)})
    version = log(store, "a", {"f": secret, "g": block("g")})
    store.delete("a:v0")
    store.trash.empty()
    upload = RETIRE.publish
    digests = [digest for digest, _ in version["f"].chunks]
    overtakings: list[str] = []

    def overtaken(engine: Engine, sealed: SealedPack) -> None:
        upload(engine, sealed)
        if set(digests) & set(sealed.record.content.digests):
            overtakings.append(pack_key(sealed.record.pack))
            store._engine.commit(lambda _: (Erase(tuple(digests), WHY),))

    with monkeypatch.context() as patch:
        patch.setattr(RETIRE, "publish", overtaken)
        store.gc(max_waste=0, grace=0)
    assert len(overtakings) == 1
    assert not {info.key for info in store._engine.backend.list(PACK_PREFIX)}.intersection(overtakings)
    with pytest.raises(ChunkMissingError, match="erased"):
        version["f"].read()
    store.gc(offline=True)
    assert is_gone(store, secret)
    assert version["g"].read() == block("g")


def test_on_the_command_line(store: Store) -> None:
    """Needs a reason and the digest; says what is left if it cannot be finished."""
    version = log(store, "a", {"f": block("secret", 100)})
    log(store, "b", {"f": block("secret", 100)})
    words = ["purge-content", "a:v0/f", "--store", store.url]
    digest = str(version["f"].digest)
    before = snapshot(Path(store.url))
    for more, code in (
        ([], 2),
        (["--reason", WHY], 14),
        (["--reason", WHY, "--all-versions"], 14),
        (["--reason", WHY, "--all-versions", "--confirm", "a:v0/f"], 14),
        (["--reason", WHY, "--confirm", digest], 14),
    ):
        assert CliRunner().invoke(main, [*words, *more]).exit_code == code
    assert snapshot(Path(store.url)) == before
    done = CliRunner().invoke(main, [*words, "--reason", WHY, "--all-versions", "--confirm", digest])
    assert done.exit_code == 0
    assert "a:v0/f\nb:v0/f\n" in done.stdout
    assert is_gone(store, block("secret", 100))
