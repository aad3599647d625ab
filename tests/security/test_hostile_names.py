"""Names, labels and metadata from somebody who means harm: taken as they are and given back so, or refused untouched.

FEATURES A2-A5, A11, C2, C4; and nothing of it steers a terminal (A5).
"""

from __future__ import annotations

import contextlib
import enum
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from casstore import (
    Artifact,
    CasstoreError,
    ConfirmationRequired,
    InvalidInputError,
    InvalidMetadataError,
    InvalidNameError,
    InvalidPathError,
    LimitError,
    NotFoundError,
    PathConflictError,
    Runtime,
    Settings,
    Store,
    Version,
)
from casstore.cli import main
from casstore.cli.command import Session
from casstore.testing.recipes import SMALL

TUNING = Settings(workers=2, index_map_bytes=1 << 22)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)

ESC = "\x1b"
NASTY = [
    *(
        "a",
        "b",
        "/",
        "/",
        ".",
        "..",
        "...",
        "-",
        "_",
        " ",
        "~",
        "$(id)",
        "`id`",
        "%s",
        "{0}",
        "*",
        "?",
        "'",
        '"',
        ";",
        "|",
    ),
    *("\\", ":", "C:", "c:/", "//", "nul", "CON", "COM1.txt", "a.", "a ", "-rf", "--", "@", "#", "&", "<", ">"),
    *("\0", "\n", "\r", "\t", "\x07", ESC, f"{ESC}[31m", f"{ESC}]0;t\x07", "\x7f", "\x80", "\x9b31m", "\x9f"),
    *("\u202e", "\u2066", "\u200f", "\u2028", "\u200b", "\ufeff", "\xad", "\U000e0041"),
    *("\xe9", "e\u0301", "\ufb01", "\u212b", "\xc5", "\u0130", "\xdf", "\u0661"),
    *("\U0001f4a9", "\U0001f468\u200d\U0001f469", "\ud800", "\udcff", "\uffff", "\U0010ffff"),
    *("x" * 64, "\xe9" * 64, "\U0001f4a9" * 63, "d/" * 40),
]
texts = st.lists(st.sampled_from(NASTY), max_size=7).map("".join)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.create(tmp_path_factory.mktemp("hostile") / "store", config=SMALL, settings=TUNING) as opened:
        yield opened


@contextlib.contextmanager
def untouched(store: Store) -> Iterator[None]:
    """Nothing is committed."""
    before = store.log(limit=1)
    yield
    assert store.log(limit=1) == before


def log(store: Store, name: str = "c", /, **how: Any) -> Version:
    artifact = Artifact(name, description=how.pop("description", None), metadata=how.pop("metadata", None))
    artifact.add_bytes(b"1", how.pop("path", "x"))
    return store.log_artifact(artifact, dedup="never", **how)


# --- paths


def legal_path(path: str) -> bool:
    """Row A11, said in another way than the code does."""
    try:
        data = path.encode()
    except UnicodeEncodeError:
        return False
    parts = data.split(b"/")
    return (
        len(data) <= 4096
        and all(0 < len(part) <= 255 and part not in {b".", b".."} for part in parts)
        and not any(ord(c) < 32 or 127 <= ord(c) < 160 or c == "\\" for c in path)
        and not (path[:1].isascii() and path[:1].isalpha() and path[1:2] == ":")
    )


def names_below(root: Path) -> list[bytes]:
    """Every file below a directory in byte order; some paths are too long to be opened in one go."""
    found: list[bytes] = []
    pending = [(os.open(root, os.O_RDONLY), b"")]
    while pending:
        fd, above = pending.pop()
        for name in map(os.fsencode, os.listdir(fd)):
            try:
                pending.append(
                    (os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd), above + name + b"/")
                )
            except NotADirectoryError:
                found.append(above + name)
        os.close(fd)
    return sorted(found)


@QUICK
@given(paths=st.lists(texts, min_size=1, max_size=4, unique=True))
@example(paths=["x" * 255])
@example(paths=["x" * 256])
@example(paths=["\xe9" * 127 + "x"])
@example(paths=["\xe9" * 128])
@example(paths=["\U0001f4a9" * 63 + "xyz"])
@example(paths=["\U0001f4a9" * 64])
@example(paths=["/".join(["d" * 255] * 15 + ["d" * 254, "f"])])
@example(paths=["/".join(["d" * 255] * 16) + "x"])
@example(paths=["/".join(["d" * 255] * 16) + "/"])
@example(paths=["/".join("d" * 2048)])
@example(paths=["caf\xe9", "cafe\u0301"])
@example(paths=["a", "A", "a.", "a "])
@example(paths=["\u202etxt.exe", "\u2066x"])
@example(paths=["nul", "con.txt", "-rf", "--help", "~", "$HOME"])
def test_a_path_comes_back_byte_for_byte_or_is_refused(
    store: Store, tmp_path_factory: pytest.TempPathFactory, paths: list[str]
) -> None:
    artifact = Artifact("paths")
    good: list[str] = []
    for path in paths:
        conflicts = any(f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/") for other in good)
        if not legal_path(path):
            with untouched(store), pytest.raises(InvalidPathError):
                artifact.add_bytes(path.encode(errors="surrogatepass"), path)
        elif conflicts:
            with untouched(store), pytest.raises(PathConflictError):
                artifact.add_bytes(b"", path)
        else:
            artifact.add_bytes(path.encode(), path)
            good.append(path)
    wanted = sorted(path.encode() for path in good)
    assert [entry.path.encode() for entry in artifact.files()] == wanted
    version = store.log_artifact(artifact, dedup="never")
    assert [entry.path.encode() for entry in version.files()] == wanted
    assert all(version[path].read() == path.encode() for path in good)
    root = tmp_path_factory.mktemp("out")
    try:
        version.download(root)
        assert names_below(root) == wanted
        version.verify(root)
    finally:
        subprocess.run(["rm", "-r", root], check=True)  # 2,000 directories deep is too much for shutil
    for path in good[:1]:
        assert [entry.path for entry in version.files(start=path)] == [p.decode() for p in wanted if p > path.encode()]
        assert [entry.path for entry in version.files(path)] == [path]


@QUICK
@given(text=texts)
def test_asking_for_any_path_is_answered(store: Store, text: str) -> None:
    version = log(store, "asked") if not list(store.collections(prefix="asked")) else store.get("asked")
    with untouched(store):
        assert (text in version) == (text == "x")
        for ask in (
            lambda: version.get_entry(text),
            lambda: list(version.files(start=text)),
            lambda: Artifact("d").remove(text),
            lambda: Artifact("d").get_entry(text),
        ):
            with contextlib.suppress(NotFoundError, InvalidInputError):
                ask()
        assert [e.path for e in version.files(names=[text])] == (["x"] if text == "x" else [])
        assert [e.path for e in version.files(text)] == (["x"] if text in {"", "x"} else [])


@pytest.mark.parametrize("place", ["\ud800", "a\0b", "", 5, None, b"x"])
def test_local_places_that_cannot_be(store: Store, place: Any) -> None:
    version = log(store, "placed")
    artifact = Artifact("placed")
    ways: list[Callable[[Any], object]] = [version.download, version.checkout, version.verify]
    ways = [] if place is None else ways  # which means: the usual place
    for take in (*ways, artifact.add_file, artifact.add_dir, Store.open, Store.create):
        with untouched(store), pytest.raises((InvalidInputError, NotFoundError)):
            take(place)


# --- names and labels

NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def legal_name(text: str) -> bool:
    return NAME.fullmatch(text.encode(errors="surrogatepass")) is not None


nearly = st.one_of(
    texts,
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True),
    st.builds(
        lambda a, b: a + b, st.sampled_from(["a", "v1", "latest", "x" * 127, "x" * 128]), st.sampled_from(["", *NASTY])
    ),
)


@QUICK
@given(text=nearly)
@example(text="a\n")
@example(text="\uff41")  # a letter, not of ours
@example(text="casstore-x")
def test_a_name_comes_back_or_is_refused(store: Store, text: str) -> None:
    if not legal_name(text):
        with untouched(store):
            for make in (lambda: Artifact(text), lambda: Artifact("c", text), lambda: log(store, "c", project=text)):
                with pytest.raises(InvalidNameError):
                    make()
            with pytest.raises((InvalidNameError, NotFoundError)):
                store.get(text)
        return
    project = text.lower() if text.lower() != "default" else "p"
    version = log(store, text, project=f"{project}/{text}")
    assert (version.entity, version.project, version.collection) == (project, text, text)
    assert store.get(f"{project}/{text}/{text}:v{version.number}") == version
    assert text in {info.name.rpartition("/")[2] for info in store.collections()}
    if not text.startswith("casstore-"):
        assert Artifact("c", text).type == text


@QUICK
@given(text=nearly)
def test_an_alias_comes_back_or_is_refused(store: Store, text: str) -> None:
    if legal_name(text) and not re.fullmatch(r"v[0-9]+", text):
        version = log(store, "aliased", aliases=[text])
        assert set(version.aliases) == {text, "latest"}
        assert store.get(f"aliased:{text}") == version
        assert text in {change.alias for change in store.alias_log("aliased")}
        return
    version = log(store, "aliased")
    with untouched(store):
        for give in (
            lambda: log(store, "aliased", aliases=[text]),
            lambda: version.add_alias(text),
            lambda: version.set_aliases([text]),
            lambda: version.remove_alias(text),
        ):
            with pytest.raises(InvalidNameError):
                give()


TAG = re.compile(r"[-\w]+( +[-\w]+)*")


@QUICK
@given(text=nearly)
@example(text="a\n")
@example(text="\xe9t\xe9 \u65e5\u672c")
def test_a_tag_comes_back_or_is_refused(store: Store, text: str) -> None:
    if len(text) <= 128 and TAG.fullmatch(text):
        version = log(store, "tagged", tags=[text])
        assert store.get(version.ref).tags == (text,)
        return
    with untouched(store), pytest.raises(InvalidNameError):
        log(store, "tagged", tags=[text])


@QUICK
@given(text=texts)
def test_any_reference_is_answered(store: Store, text: str) -> None:
    with untouched(store):
        for ask in (store.get, store.delete, store.alias_log, store.versions, store.collection, store.trash.restore):
            with contextlib.suppress(NotFoundError, InvalidInputError):
                ask(text)
        list(store.collections(prefix=text))


@QUICK
@given(text=texts)
def test_free_text_comes_back_or_is_refused(store: Store, text: str) -> None:
    """Descriptions, reasons and metadata may hold anything that is UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        for refused in ({"description": text}, {"metadata": {text: 1}}, {"metadata": {"k": [text]}}):
            with untouched(store), pytest.raises(InvalidInputError):
                log(store, "text", **refused)
        return
    version = store.get(log(store, "text", description=text, metadata={text: [text]}).ref)
    assert version.description == text
    assert version.metadata == {text: [text]}
    version.delete(reason=text)
    assert text in {item.reason for item in store.trash.list()}
    store.trash.purge(version.ref)


# --- strings of other classes


class Lying(str):
    """A string whose every method says something else than its content is."""

    __slots__ = ()

    def __str__(self) -> str:
        return "lie"

    def encode(self, *_: object) -> bytes:
        return b"lie"

    def split(self, *_: object) -> list[str]:
        return ["lie"]

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def startswith(self, *_: object) -> bool:
        return False


class Word(str, enum.Enum):  # noqa: UP042 - the older kind, whose str() is another text
    NAME = "enumerated"


def test_strings_of_other_classes_are_their_content(store: Store) -> None:
    """numpy's strings are of a class of their own; they were no text to the format and ended in a TypeError."""
    for kind in (Lying, Word):
        text = Word.NAME if kind is Word else Lying("enumerated")
        artifact = Artifact(text, text, text, {text: text})
        artifact.add_bytes(b"1", text)
        version = store.log_artifact(artifact, aliases=[text], tags=[text], project=text, dedup="never")
        version = store.get(version.ref)
        assert [type(e.path) for e in version.files()] == [str]
        facts = (version.collection, version.project, version.type, version.description, version.tags[0])
        assert {*facts, *(e.path for e in version.files()), *version.metadata} == {"enumerated"}
        assert all(type(fact) is str for fact in facts)
        assert version.metadata == {"enumerated": "enumerated"}
        assert set(version.aliases) == {"latest", "enumerated"}
        version.protect(text)
        assert version.protected == "enumerated"
        version.unprotect()
        pin = store.pin(version.ref, text)
        assert store.pins()[0].purpose == "enumerated"
        store.unpin(pin.id)
        version.delete(delete_aliases=True, reason=text)
        assert version.trash_reason == "enumerated"
    with pytest.raises(InvalidPathError):
        Artifact("c").add_bytes(b"", Lying("../../etc/passwd"))


@pytest.mark.parametrize("actor", ["\ud800", 5, None, b"x"])
def test_an_actor_is_a_text(actor: object) -> None:
    with pytest.raises(InvalidInputError):
        Runtime(actor=actor)  # type: ignore[arg-type]


def test_an_actor_with_any_bytes_in_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback, once everything had been stored."""
    monkeypatch.setenv("CASSTORE_ACTOR", "j\udcffrg")
    with Store.open(store.url, settings=TUNING) as other:
        assert re.fullmatch("j\ufffd+rg", log(other, "acted").actor)


# --- metadata


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def laughs() -> object:
    """Ten to the fortieth values in a few kilobytes, no deeper than is allowed."""
    value: object = 1
    for _ in range(40):
        value = [value] * 10
    return value


def cyclic() -> dict[str, object]:
    value: dict[str, object] = {}
    value["a"] = value
    return value


def wide_cycle() -> list[object]:
    value: list[object] = []
    value.extend([value] * 100)
    return value


class Short(Mapping[str, object]):
    """Says it is short."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return map(str, range(101))

    def __getitem__(self, key: str) -> object:
        return 1


class Endless(Short):
    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield str(number)


class EndlessList(list[object]):
    def __iter__(self) -> Iterator[object]:
        while True:
            yield 1


class Changing(dict[str, object]):
    """Grows while it is looked at, as under another thread."""

    def items(self) -> Any:
        for key, value in super().items():
            self[f"{key}x"] = 1
            yield key, value


BOMBS: dict[str, Callable[[], object]] = {
    "too deep": lambda: nested(66),
    "too deep, in lists": lambda: {"a": json.loads("[" * 900 + "]" * 900)},
    "too long": lambda: {"a": "x" * (1 << 20)},
    "too long by escapes": lambda: {"a": "\x01" * (1 << 18)},
    "too many keys": lambda: {str(n): 1 for n in range(101)},
    "more keys than it says": Short,
    "keys without end": Endless,
    "a list without end": lambda: {"a": EndlessList([1])},
    "many laughs": lambda: {"a": laughs()},
    "a long text many times": lambda: {"a": ["x" * 500_000] * 100_000},
    "a long key above much": lambda: {"k" * 500_000: [[1]] * 500_000},
    "a cycle": cyclic,
    "a wide cycle": lambda: {"a": wide_cycle()},
    "changing": lambda: {"a": Changing(a=1, b=2)},
    "not a number": lambda: {"a": [{"b": math.nan}]},
    "infinite": lambda: {"a": -math.inf},
    "many digits": lambda: {"a": 10**100_000},
    "half a pair": lambda: {"a": "\ud800"},
    "half a pair in a key": lambda: {"\udfff": 1},
    "a key that is none": lambda: {"a": {1: 2}},
    "bytes": lambda: {"a": b"x"},
    "a set": lambda: {"a": {1}},
    "an object": lambda: {"a": object()},
    "no mapping": lambda: [("a", 1)],
    "a text": lambda: "{}",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_metadata_bombs_are_refused_at_little_cost(store: Store, bomb: str) -> None:
    hostile = BOMBS[bomb]()
    version = store.get(log(store, "bombed", metadata={"k": 1}).ref)
    artifact = Artifact("bombed")
    tracemalloc.start()
    try:
        with pytest.raises((InvalidMetadataError, LimitError)):
            Artifact("bombed", metadata=hostile)  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    with untouched(store):
        ways: list[Callable[[], object]] = [
            lambda: setattr(artifact, "metadata", hostile),
            lambda: version.update(metadata=hostile),  # type: ignore[arg-type]
        ]
        for take in ways:
            with pytest.raises((InvalidMetadataError, LimitError)) as caught:
                take()
            assert len(caught.value.message) < 2000
    assert artifact.metadata == {}
    assert version.metadata == {"k": 1}


@pytest.mark.parametrize(
    ("fill", "own"),
    [
        (lambda n: "x" * n, 1),
        (lambda n: ["x"] * n, 4),
        (lambda n: [[]] * n, 3),
        (lambda n: [{}] * n, 3),
        (lambda n: [1] * n, 2),
        (lambda n: {f"{i:06}": 1 for i in range(n)}, 11),
    ],
)
def test_metadata_may_be_just_a_mebibyte(fill: Callable[[int], object], own: int) -> None:
    """What stops bombs early stops nothing that is allowed."""

    def made(count: int) -> tuple[dict[str, object], int]:
        metadata = {"a": fill(count), "b": ""}
        return metadata, len(json.dumps(metadata, separators=(",", ":")))

    count = (1 << 20) // own - 20
    while made(count + 1)[1] <= 1 << 20:
        count += 1
    metadata, size = made(count)
    metadata["b"] = "y" * ((1 << 20) - size)
    assert Artifact("c", metadata=metadata).metadata == metadata
    metadata["b"] += "y"  # type: ignore[operator]
    with pytest.raises(InvalidMetadataError):
        Artifact("c", metadata=metadata)


def test_metadata_that_became_a_bomb_is_refused_at_the_log(store: Store) -> None:
    artifact = Artifact("grown", metadata={"a": {}})
    held = artifact.metadata["a"]
    assert isinstance(held, dict)
    held["a"] = held
    with untouched(store), pytest.raises(InvalidMetadataError):
        store.log_artifact(artifact)


def test_integers_that_other_processes_could_not_read_back_are_refused(store: Store) -> None:
    """Python reads 4,300 digits; one that was told to read more must not store them for all."""
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(0)
        with pytest.raises(InvalidMetadataError):
            Artifact("c", metadata={"a": 10**4300})
        version = log(store, "digits", metadata={"a": 10**4299})
    finally:
        sys.set_int_max_str_digits(limit)
    assert store.get(version.ref).metadata == {"a": 10**4299}


# --- terminals

EVIL = [
    f"{ESC}[31mEVIL",
    f"{ESC}]0;EVIL\x07",
    f"{ESC}]8;;http://evil\x07EVIL{ESC}]8;;\x07",
    f"{ESC}[2J{ESC}[HEVIL",
    "\x9b31mEVIL",
    "\x07\x08\x08EVIL\r\nEVIL\nEVIL\x7f",
    "\u202eEVIL\u2066\u2028\u061c\u200f",
    "[red]EVIL[/red] [link=http://evil]EVIL[/link]",  # what rich would take for its own
]
TEXT = "".join(EVIL)
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""all control characters but the end of a line, and what turns writing around"""


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every text that can be hostile is."""
    home = tmp_path_factory.mktemp("evil")
    tree = home / "tree"
    tree.mkdir()
    (tree / "\u202etxt.exe\u2066").write_bytes(b"1")
    (tree / "same").write_bytes(b"1")
    os.symlink(TEXT.replace("\0", ""), tree / "link")
    runtime = Runtime(actor=TEXT, writer=TEXT)
    with Store.create(home / "store", config=SMALL, settings=TUNING, runtime=runtime) as store:
        for number in range(3):
            artifact = Artifact("ds", description=TEXT, metadata={TEXT: [TEXT], "n": number})
            artifact.add_dir(tree, symlinks="store")
            artifact.add_bytes(b"%d" % number, f"\u202e{number}[red]x[/red]")
            store.log_artifact(artifact, aliases=["best"])
        store.get("ds:v0").delete(delete_aliases=True, reason=TEXT)
        store.get("ds:v1").protect(TEXT)
        store.collection("ds").protect(TEXT)
        store.pin("ds:v2", TEXT)
        store.get("ds:v1").link("prod/models")
        store.collection("ds").update(description=TEXT)
        with store.run("train", job_type="t", attrs={TEXT: TEXT}) as run:
            run.use("ds:v1", purpose=TEXT)
        artifact = Artifact("parts", description=TEXT)
        artifact.add_bytes(b"part", "\u202epart")
        store.upsert(artifact, "batch", part="p")
        artifact = Artifact("gone")
        artifact.add_bytes(b"gone", "\u202egone")
        store.log_artifact(artifact)
        store.delete("gone:v0", delete_aliases=True, reason=TEXT)
        store.trash.purge("gone:v0")
        store.gc(grace=0)
    return home


COMMANDS = [
    ("ls",),
    ("ls", "ds"),
    ("ls", "--trashed"),
    ("ls", "ds", "--trashed"),
    ("show", "ds"),
    ("show", "ds", "--field", "description"),
    ("show", "ds", "--field", "metadata"),
    ("show", "ds", "--field", "actor"),
    ("files", "ds"),
    ("files", "ds", "--limit", "1"),
    ("log",),
    ("log", "--deletions"),
    ("diff", "ds:v1", "ds:v2"),
    ("trash", "ls"),
    ("why", "ds:v2"),
    ("why", "ds:v0"),
    ("preview", "ds:v1"),
    ("lineage", "ds:v1"),
    ("lineage", "ds:v1", "--format", "dot"),
    ("run", "ls"),
    ("run", "show", "train"),
    ("uses",),
    ("pending", "ls"),
    ("pending", "show", "batch"),
    ("collection", "show", "ds"),
    ("checkout", "ds", "-o", "OUT-checkout", "--yes"),
    ("checkout", TEXT),
    ("cp", "ds:v2", TEXT),
    ("link", "ds:v2", TEXT),
    ("rename", "ds", TEXT),
    ("run", "show", TEXT),
    ("finish", TEXT),
    ("import", TEXT),
    ("import", "HOME/tree/same"),
    ("alias", "log", "ds"),
    ("pin", "ls"),
    ("status",),
    ("doctor",),
    ("du",),
    ("policy", "show"),
    ("rm", "ds:v1", "--yes"),
    ("rm", "ds:v2", "--dry-run"),
    ("gc", "--dry-run", "--explain"),
    ("expire", "--dry-run"),
    ("verify", "ds"),
    ("fsck", "--read-data"),
    ("get", "ds", "-o", "OUT"),
    ("get", "ds", "-o", f"OUT/{TEXT.replace('/', '')}"),
    ("cat", "ds", f"x{TEXT}"),
    ("files", "ds", "--prefix", f"x{TEXT}"),
    ("show", f"ds:{TEXT}"),
    ("show", TEXT),
    ("show", "ds", "--field", TEXT),
    (TEXT,),
    ("ls", f"--{TEXT}"),
    ("put", TEXT, "--name", "x"),
    ("put", "TREE", "--name", "x"),
    ("put", "TREE", "--name", "x", "--meta", TEXT),
    ("ttl", "set", "ds:v2", TEXT),
    ("gc", "--max-bytes", TEXT),
    ("ls", "--store", f"HOME/{TEXT}"),
    ("rm", "--where", TEXT, "ds", "--yes"),
]


def label(words: tuple[str, ...]) -> str:
    return " ".join(words[:2])[:20].encode("unicode_escape").decode()


def run(home: Path, words: tuple[str, ...], out: Any, err: Any) -> int:
    """A command in this process, speaking on some streams."""
    given = {"OUT": str(home / "out"), "HOME": str(home), "TREE": str(home / "tree")}
    arguments = [re.sub(r"^(OUT|HOME|TREE)", lambda m: given[m[0]], word) for word in words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["--store", str(home / "store"), *arguments], standalone_mode=False)
    return int(code)


@contextlib.contextmanager
def terminal() -> Iterator[tuple[Any, list[bytes]]]:
    """A stream that is a terminal, and what arrives there."""
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST  # no \r before each \n
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    arrived: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side has closed
            while data := os.read(master, 65536):
                arrived.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(slave, "w", encoding="utf-8", errors="strict") as stream:
            yield stream, arrived
    finally:
        reader.join()
        os.close(master)


SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r")
"""what rich draws progress bars with"""


@pytest.mark.parametrize("words", COMMANDS, ids=label)
def test_nothing_stored_steers_a_terminal(evil: Path, words: tuple[str, ...]) -> None:
    plain_out, plain_err = io.StringIO(), io.StringIO()
    code = run(evil, words, plain_out, plain_err)
    for text in (plain_out.getvalue(), plain_err.getvalue()):
        assert not STEERING.findall(text), words
    with terminal() as (out, said), terminal() as (err, noted):
        assert run(evil, words, out, err) in {code, 0, 14}
    shown = b"".join(said).decode()
    assert not STEERING.findall(shown), words
    drawn = SEQUENCE.sub(b"", b"".join(noted)).decode()
    assert not STEERING.findall(drawn), words
    raw = b"".join(noted).decode()
    assert not [text for text in EVIL if text in raw and STEERING.search(text)], words
    assert f"{ESC}]" not in raw


@pytest.mark.parametrize("words", COMMANDS, ids=label)
def test_json_stays_json_whatever_is_stored(evil: Path, words: tuple[str, ...]) -> None:
    out, err = io.StringIO(), io.StringIO()
    code = run(evil, (*words, "--json") if words[0] != TEXT else ("--json", *words), out, err)
    for text in (out.getvalue(), err.getvalue()):
        assert text.isascii()
        assert not STEERING.findall(text)
    if code:
        error = json.loads(err.getvalue().splitlines()[-1])["error"]
        assert error["exit_code"] == code
    if not code or out.getvalue():
        json.loads(out.getvalue())


def test_json_gives_the_texts_as_they_are(evil: Path) -> None:
    out = io.StringIO()
    assert run(evil, ("show", "ds:v1", "--json"), out, io.StringIO()) == 0
    found = json.loads(out.getvalue())
    assert (found["description"], found["metadata"][TEXT], found["actor"]) == (TEXT, [TEXT], TEXT)


def test_remarks_and_questions_are_escaped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    with terminal() as (out, said), terminal() as (err, noted), monkeypatch.context() as world:
        world.setattr(sys, "stdin", io.StringIO("no\n"))
        world.setattr(sys.stdin, "isatty", lambda: True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            session.line(TEXT)
            session.note(TEXT)
            with pytest.raises(ConfirmationRequired):
                session.ask(TEXT, ("yes",), TEXT)
    assert b"EVIL" in b"".join(said)
    assert b"".join(noted).count(b"EVIL") == 2 * TEXT.count("EVIL")
    assert not STEERING.findall((b"".join(said) + b"".join(noted)).decode())


def test_the_library_refuses_what_is_hostile_with_an_error_of_its_own(evil: Path) -> None:
    with Store.open(evil / "store", settings=TUNING) as store:
        for ask in (
            lambda: store.get("ds:v1").delete(),
            lambda: store.get(TEXT),
            lambda: store.get("ds").get_entry(TEXT),
            lambda: Artifact(TEXT),
        ):
            with pytest.raises(CasstoreError) as caught:
                ask()
            assert caught.value.message
