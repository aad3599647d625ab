"""Errors (FEATURES §0.1, Q18) and stores that cannot be used as asked: each says what, why and what to do.

Every error pickles, has a hint, a stable code and the exit status of §0.1; a refused call leaves store and draft as
they were; a store opened read-only changes nothing on disk, whatever is called.
"""

from __future__ import annotations

import copy
import errno
import gc
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import casstore
from casstore import (
    AlreadyExistsError,
    Artifact,
    BackendError,
    CasstoreError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    ReadOnlyError,
    RefusedError,
    Store,
    StoreConfig,
    StoreNotFoundError,
    UnsupportedFormatError,
    UnsupportedSchemeError,
    Version,
    errors,
)
from casstore.backend.memory import forget_memory
from casstore.format.layout import encode_store
from casstore.testing.permissions import without_override
from casstore.testing.record import RecordingOps
from casstore.testing.snapshot import snapshot

# --- §0.1: the tree

EXIT_CODES = {
    2: ("InvalidInputError", "InvalidNameError", "InvalidPathError", "InvalidMetadataError", "InvalidSizeError",
        "UnsupportedSchemeError", "LimitError"),
    10: ("NotFoundError", "VersionNotFoundError", "CollectionNotFoundError", "EntryNotFoundError",
         "ReferenceMissingError", "StoreNotFoundError"),
    11: ("AlreadyExistsError", "PathConflictError", "NameTakenError", "TypeConflictError"),
    12: ("ReadOnlyError",),
    13: ("ConflictError", "StaleBaseError", "UpsertConflictError", "LeaseLostError", "UseCancelledError",
         "StoreBusyError", "WaitTimeoutError"),
    14: ("RefusedError", "AliasGuardError", "LinkGuardError", "ProtectedError", "InUseError", "ParentDeletedError",
         "GCDisabledError", "QuotaExceededError", "ConfirmationRequired", "ArtifactFinalizedError",
         "ArtifactNotLoggedError"),
    20: ("IntegrityError", "ChunkMissingError", "DigestMismatchError", "VerificationError", "ReferenceChangedError"),
    21: ("FormatError", "UnsupportedFormatError"),
    30: ("BackendError", "TransientBackendError"),
}  # fmt: skip
BUILTIN = {
    "InvalidInputError": ValueError,
    "NotFoundError": KeyError,
    "EntryNotFoundError": FileNotFoundError,
    "ReferenceMissingError": FileNotFoundError,
    "AlreadyExistsError": FileExistsError,
    "ReadOnlyError": PermissionError,
    "VerificationError": ValueError,
    "WaitTimeoutError": TimeoutError,
    "BackendError": OSError,
}
CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, CasstoreError) and cls is not CasstoreError
]


def test_every_error_has_the_exit_status_of_the_contract() -> None:
    assert {cls.__name__: cls.exit_code for cls in CLASSES} == {
        name: code for code, names in EXIT_CODES.items() for name in names
    }


def test_parents_are_those_of_the_contract() -> None:
    for names in EXIT_CODES.values():
        parent = getattr(errors, names[0])
        assert all(issubclass(getattr(errors, name), parent) for name in names)
    for name, parent in BUILTIN.items():
        assert issubclass(getattr(errors, name), parent)


def test_every_error_is_public() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(casstore.__all__)
    assert all(getattr(casstore, cls.__name__) is cls for cls in CLASSES)


def test_codes_are_distinct() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_travels_and_has_a_hint(cls: type[CasstoreError]) -> None:
    """N9: through a process pool nothing of it is lost, the number of an operating system error included."""
    assert cls("it happened").hint, "an error without a hint of its own has that of its class"
    error = cls("it happened", hint="do this")
    if isinstance(error, OSError):
        error.errno = errno.ENOSPC
    error.add_note("and more")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is cls
        assert (str(again), again.message, again.hint) == ("it happened", "it happened", "do this")
        assert again.__dict__ == error.__dict__
        assert getattr(again, "errno", None) == getattr(error, "errno", None)


def test_fields_travel() -> None:
    verification = errors.VerificationError(
        "x", missing=["a"], changed=["b"], extra=["c"], collection="ds", version="v0"
    )
    guard = errors.AliasGuardError("x", aliases=["best"])
    again = pickle.loads(pickle.dumps(verification))
    assert (again.missing, again.changed, again.extra, again.collection, again.version) == (
        ["a"],
        ["b"],
        ["c"],
        "ds",
        "v0",
    )
    assert pickle.loads(pickle.dumps(guard)).aliases == ("best",)


def test_every_public_error_is_in_the_package() -> None:
    """Those of features that are not built yet are in `casstore.errors` only."""
    public = {name for name in casstore.__all__ if name.endswith(("Error", "Required"))}
    assert public == {cls.__name__ for cls in CLASSES if cls.__name__ in public} | {"CasstoreError"}


# --- places that are no store


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with two versions, closed."""
    path = tmp_path / "store"
    with Store.open(path, create=True) as store:
        log(store, b"1").add_alias("best")
        log(store, os.urandom(50_000))
        log(store, b"3", "other")
        store.delete("other:v0")
    return path


def log(store: Store, data: bytes, name: str = "ds") -> Version:
    draft = Artifact(name)
    draft.add_bytes(data, "a")
    return store.log_artifact(draft)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="does not exist") as caught:
        Store.open(tmp_path / "none")
    assert caught.value.exit_code == 10
    assert "casstore init" in caught.value.hint
    assert not (tmp_path / "none").exists()
    with pytest.raises(StoreNotFoundError):
        Store.open("memory://nothing-here")


def test_a_directory_that_is_no_store(tmp_path: Path) -> None:
    """Open: 10. Create: 11. Untouched, by either."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    before = snapshot(tmp_path)
    with pytest.raises(StoreNotFoundError, match="is not a casstore store"):
        Store.open(tmp_path / "photos")
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "photos", read_only=True, create=True)
    makes: list[Callable[[], Store]] = [
        lambda: Store.open(tmp_path / "photos", create=True),
        lambda: Store.create(tmp_path / "photos"),
    ]
    for make in makes:
        with pytest.raises(AlreadyExistsError) as caught:
            make()
        assert caught.value.exit_code == 11
    assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    Store.open(tmp_path / "empty", create=True).close()


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "file")
    with pytest.raises(CasstoreError):
        Store.open(tmp_path / "file", create=True)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_store_is_not_made_twice(place: Path) -> None:
    before = snapshot(place)
    with pytest.raises(AlreadyExistsError):
        Store.create(place)
    assert snapshot(place) == before
    Store.open(place, create=True).close()
    assert snapshot(place) == before


@pytest.mark.parametrize("url", ["", "a\0b", "http://example.com/x", "s4://bucket", "file://host/path", "memory://"])
def test_urls_that_mean_nothing(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Store.open(url)
    assert caught.value.exit_code == 2
    if "4" in url:
        assert isinstance(caught.value, UnsupportedSchemeError)


def rewrite(place: Path, change: Callable[[bytes], bytes]) -> None:
    path = place / "format"
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(change(data))


def newer(data: bytes) -> bytes:
    values = json.loads(data)
    values["version"] = 2
    return json.dumps(values).encode()


def newest(_: bytes) -> bytes:
    return b'{"magic": "casstore", "version": 7, "everything": "else"}'


def feature(data: bytes) -> bytes:
    values = json.loads(data)
    values["features"] = ["sealed"]
    return json.dumps(values).encode()


@pytest.mark.parametrize("change", [newer, newest, feature])
def test_a_store_of_a_newer_format(change: Callable[[bytes], bytes], place: Path) -> None:
    """21, and "upgrade", also when nothing but magic and version is understood."""
    rewrite(place, change)
    before = snapshot(place)
    for read_only in (False, True):
        with pytest.raises(UnsupportedFormatError) as caught:
            Store.open(place, create=not read_only, read_only=read_only)
        assert caught.value.exit_code == 21
        assert caught.value.hint == "upgrade casstore"
    assert snapshot(place) == before


def test_every_damage_of_the_format_file_is_found(place: Path) -> None:
    """Any bit, any cut, rubbish: 20 or 21, never another store's settings."""
    whole = (place / "format").read_bytes()
    config = Store.open(place)
    settings = config.config
    config.close()
    damaged = [whole[:cut] for cut in range(0, len(whole), 37)]
    for position in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        damaged.append(bytes(broken))
    damaged += [
        b"[" * 50_000,
        b"\xff",
        b"null",
        b'{"magic":"casstore","version":1e400}',
        whole + b"x",
        b'{"magic":"other"}',
    ]
    for data in damaged:
        rewrite(place, lambda _, data=data: data)  # type: ignore[misc]
        try:
            Store.open(place, read_only=True).close()
        except (IntegrityError, FormatError):
            continue
        assert json.loads(data) == json.loads(whole), "white space"
    rewrite(place, lambda _: whole)
    with Store.open(place) as store:
        assert store.config == settings


def test_a_format_that_was_sealed_with_nonsense(place: Path) -> None:
    for config in (StoreConfig(digest="md5"), StoreConfig(frame_bytes="x")):  # type: ignore[arg-type]
        rewrite(place, lambda _, config=config: encode_store(config))  # type: ignore[misc]
        with pytest.raises(FormatError):
            Store.open(place, read_only=True)


@pytest.mark.parametrize(
    "config",
    [StoreConfig(node_bytes=0), StoreConfig(frame_bytes=-1), StoreConfig(pack_bytes=0), StoreConfig(node_bytes=1.5)],  # type: ignore[arg-type]
)
def test_configurations_no_store_can_have(config: StoreConfig, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        Store.create(tmp_path / "s", config=config)
    assert not (tmp_path / "s").exists()


# --- read-only


def writes(store: Store) -> list[Callable[[], object]]:
    draft = Artifact("ds")
    draft.add_bytes(b"new", "a")
    version = store.get("ds")
    return [
        lambda: store.log_artifact(draft),
        lambda: store.log_artifact(draft, dedup="any", aliases=["x"]),
        lambda: store.delete("ds:v0", delete_aliases=True),
        lambda: store.gc(),
        lambda: store.gc(offline=True),
        lambda: store.set_policy(trash_days=1),
        lambda: store.trash.restore("other:v0"),
        lambda: store.trash.purge("other:v0"),
        lambda: store.trash.empty(),
        lambda: version.delete(),
        lambda: version.add_alias("x"),
        lambda: store.get("ds:best").remove_alias("best"),
        lambda: version.set_aliases(["x"]),
        lambda: version.update(description="x"),
    ]


def reads(store: Store, out: Path) -> None:
    """All that needs no writing."""
    version = store.get("ds")
    assert version.download(out).files == 1
    assert version.verify(out) == version.verify() == 50_000
    assert store.get("ds:best")["a"].read() == b"1"
    assert store.fsck(read_data=True).clean
    assert store.diff("ds:v0", "ds:v1").changed == ("a",)
    assert [item.ref for item in store.trash.list()] == ["other:v0"]
    assert store.gc(dry_run=True).dry_run
    assert store.du().versions == 2
    assert len(store.log()) > 3
    assert store.rebuild_index() > 3
    draft = version.new_draft()
    draft.remove("a")
    assert list(draft.files()) == []


def test_a_store_opened_read_only(place: Path, tmp_path: Path) -> None:
    """12 for every write; every read works; not a byte, not even of the view, changes on disk."""
    before = snapshot(place)
    view = {path: path.stat().st_mtime_ns for path in (place / "index").rglob("*")}
    with Store.open(place, read_only=True) as store:
        for write in writes(store):
            with pytest.raises(ReadOnlyError) as caught:
                write()
            assert caught.value.exit_code == 12
            assert caught.value.hint
        reads(store, tmp_path / "out")
        assert "read-only" in repr(store)
        again = pickle.loads(pickle.dumps(store))
        with again, pytest.raises(ReadOnlyError):
            log(again, b"x")
    gc.collect()
    assert snapshot(place) == before
    assert {path: path.stat().st_mtime_ns for path in (place / "index").rglob("*")} == view


@contextmanager
def write_protected(place: Path) -> Iterator[None]:
    """The whole tree as on a read-only medium: directories 0555, files 0400."""
    everything = [place, *place.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o400)
    try:
        with without_override():
            yield
    finally:
        for path in everything:
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_a_read_only_store_on_a_read_only_medium(place: Path, tmp_path: Path) -> None:
    """Q16: without the right to write anything anywhere in it."""
    with write_protected(place):
        with pytest.raises(PermissionError):
            (place / "x").write_bytes(b"")
        before = snapshot(place)
        with Store.open(place, read_only=True) as store:
            reads(store, tmp_path / "out")
            with pytest.raises(ReadOnlyError):
                log(store, b"x")
        assert snapshot(place) == before


def test_opened_for_writing_on_a_read_only_medium(place: Path) -> None:
    """12, not 30: the hint says how to read it nevertheless."""
    with write_protected(place):
        with pytest.raises(ReadOnlyError) as caught:
            Store.open(place).close()
        assert caught.value.exit_code == 12
        assert "read_only" in caught.value.hint or "read-only" in caught.value.hint


def test_no_right_to_read(place: Path) -> None:
    (place / "format").chmod(0)
    with without_override(), pytest.raises(CasstoreError, match="Permission denied") as caught:
        Store.open(place)
    assert caught.value.exit_code == 30
    place.chmod(0)
    try:
        with without_override(), pytest.raises(CasstoreError) as hidden:
            Store.open(place)
        assert hidden.value.exit_code == 30
    finally:
        place.chmod(0o700)


# --- a full disk


def drafted(tmp_path: Path) -> Artifact:
    (tmp_path / "file").write_bytes(b"file")
    draft = Artifact("ds")
    draft.add_bytes(b"a" * 5000, "a")
    draft.add_file(tmp_path / "file")
    return draft


def files_of(found: dict[str, str]) -> dict[str, str]:
    """Without directories: an empty one that was made for a pack is no content."""
    return {path: what for path, what in found.items() if what != "directory"}


def test_a_full_disk_at_every_effect(place: Path, tmp_path: Path) -> None:
    """30 with ENOSPC; store and draft are as they were; with room again the same draft is logged, as the next number.

    Each effect of a log fails in turn, and all later ones with it. If it is the log segment itself that cannot be
    written, packs are left for the collector, because a store cannot in general know that nothing was committed.
    """
    before = files_of(snapshot(place))
    attempts = 0
    for number in range(1, 60):
        ops = RecordingOps(
            place, fail_at=number, error=errno.ENOSPC, sticky=True, only={"create", "write", "fsync", "mkdir", "link"}
        )
        draft = drafted(tmp_path)
        with Store.open(place, ops=ops) as store:
            listed = list(draft.files())
            try:
                store.log_artifact(draft)
            except BackendError as error:
                assert (error.errno, error.exit_code) == (errno.ENOSPC, 30)  # noqa: PT017
                assert "space" in error.hint  # noqa: PT017
            else:
                break
            attempts += 1
            assert draft.is_draft()
            assert list(draft.files()) == listed
            assert store.get("ds").version == "v1"
        after = files_of(snapshot(place))
        orphans = {path for path in after if path not in before}
        assert all(after[path] == what for path, what in before.items())
        published = sum(effect.op == "link" and effect.target.startswith("packs/") for effect in ops.trace)
        if published < 2:
            assert not orphans
        else:
            assert all(path.startswith("packs/") for path in orphans), "the data and the node pack: it was the segment"
        with Store.open(place) as store:
            assert store.fsck(read_data=True).clean
            store.gc(offline=True)
            before = files_of(snapshot(place))
    assert attempts >= 8
    with Store.open(place) as store:
        assert store.get("ds").version == "v2", "no number was burnt"
        assert store.fsck(read_data=True).clean


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted by root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    """On a file system of 2 MiB: the log fails, everything before it is readable, and a collection makes room again."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mounted], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        place = mounted / "store"
        with Store.open(place, create=True) as store:
            first = log(store, os.urandom(1_000_000))
            wanted = first["a"].read()
            before = snapshot(place)
            draft = Artifact("ds")
            draft.add_bytes(os.urandom(8_000_000), "a")
            with pytest.raises(BackendError) as caught:
                store.log_artifact(draft)
            assert caught.value.errno == errno.ENOSPC
            assert files_of(snapshot(place)) == files_of(before)
            assert draft.is_draft()
            assert first["a"].read() == wanted
            second = log(store, os.urandom(500_000))
            assert second.version == "v1"
            first.delete()
            store.trash.purge("ds:v0")
            assert store.gc(grace=0).freed_bytes > 1_000_000
            assert log(store, os.urandom(1_000_000)).version == "v2"
            assert store.fsck(read_data=True).clean
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_disk_that_is_full_when_the_store_is_made(tmp_path: Path) -> None:
    for number in range(1, 30):
        place = tmp_path / f"s{number}"
        ops = RecordingOps(place, fail_at=number, error=errno.ENOSPC, sticky=True)
        try:
            Store.create(place, ops=ops).close()
        except BackendError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
        else:
            assert number > 3
            break
        Store.open(place, create=True).close()


# --- what leaves the package


def test_no_foreign_error_leaves(place: Path) -> None:
    """§0.1: whatever is broken below, what comes out is ours. Each file of the store is removed or spoiled in turn."""
    objects = sorted(path for path in place.rglob("*") if path.is_file() and "index" not in path.parts)
    assert len(objects) > 5
    for path in objects:
        whole, mode = path.read_bytes(), path.stat().st_mode
        for spoil in (None, b"", whole[: len(whole) // 2], b"\xff" * len(whole)):
            path.unlink(missing_ok=True)
            if spoil is not None:
                path.write_bytes(spoil)
            with suppress(CasstoreError), Store.open(place, read_only=True) as store:
                for use in (
                    lambda: store.get("ds").verify(),
                    lambda: store.get("ds:best")["a"].read(),
                    lambda: store.fsck(read_data=True),
                    lambda: store.trash.list(),
                    lambda: store.gc(dry_run=True),
                ):
                    with suppress(CasstoreError):
                        use()
            path.unlink(missing_ok=True)
        path.write_bytes(whole)
        path.chmod(mode)
    with Store.open(place) as store:
        assert store.fsck(read_data=True).clean


def test_messages_name_the_thing_and_hints_the_way_out(tmp_path: Path) -> None:
    """Q18."""
    with Store.open(tmp_path / "s", create=True) as store:
        version = log(store, b"1")
        version.add_alias("best")
        cases: list[tuple[Callable[[], object], str, str]] = [
            (lambda: store.get("ds:v9"), "ds:v9", "casstore ls ds"),
            (lambda: version["nope"], "nope", "casstore files ds:v0"),
            (lambda: version.delete(), "best", "delete_aliases=True"),
            (lambda: store.trash.purge("ds:v0"), "ds:v0", "casstore rm ds:v0"),
            (lambda: Artifact("a b"), "'a b'", "A-Z"),
            (lambda: store.get("dss"), "dss", "ds"),
        ]
        for use, named, way in cases:
            with pytest.raises(CasstoreError) as caught:
                use()
            assert named in caught.value.message
            assert way in caught.value.hint
        with pytest.raises(RefusedError):
            store.trash.purge("ds:v0")


def test_the_package_does_not_drag_in_what_it_does_not_need() -> None:
    """Constructing a draft touches no store, no thread and no cloud library."""
    cloud = ("boto3", "s3fs", "gcsfs", "adlfs", "aiohttp")
    code = f"import sys, casstore; casstore.Artifact('x'); print([m for m in {cloud!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(autouse=True)
def _clean_memory() -> Iterator[None]:
    yield
    forget_memory("nothing-here")


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.pin(5, "why"),
        lambda s: s.pin([], "why"),
        lambda s: s.export(5, "bundle"),
        lambda s: s.export([], "bundle"),
        lambda s: s.plan_delete(5),
        lambda s: s.plan_delete("ds:v0"),
        lambda s: s.preview_delete(5),
        lambda s: s.preview_delete("ds:v0"),
        lambda s: s.preview_delete([5]),
        lambda s: s.log(limit=b"x"),
        lambda s: s.keepers(b"x"),
        lambda s: s.deletions(limit=-1),
        lambda s: s.versions("ds", state=[5]),
        lambda s: s.get("ds:v0").files(names=5),
        lambda s: s.get("ds:v0").files(names="a"),
        lambda s: s.get("ds:v0").file(root=5),
        lambda s: Artifact("x").add_file(__file__, policy=[5]),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_a_wrong_kind_are_bad_input(call: Callable[[Store], object], tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        artifact = Artifact("ds")
        artifact.add_bytes(b"x", "a")
        store.log_artifact(artifact)
        head = store.head
        with pytest.raises(InvalidInputError):
            call(store)
        assert store.head == head
        assert list(store.get("ds").files(names=())) == []
