"""The grammar users meet (FEATURES A2-A5, A11, C2, C4, C7, G1): what is a name, a path, a label, a reference.

Everything wrong with an argument itself is `InvalidInputError`, exit 2, shows the culprit, and says what is right.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore import (
    INHERIT,
    Artifact,
    InvalidInputError,
    InvalidMetadataError,
    InvalidNameError,
    InvalidPathError,
    LimitError,
)
from casstore.names import (
    CollectionName,
    canonical_metadata,
    check_alias,
    check_aliases,
    check_description,
    check_name,
    check_path,
    check_tags,
    check_type,
    parse_reference,
    ttl_seconds,
)
from casstore.sources import Globs

BAD_NAMES = [
    "",
    " ",
    "a b",
    "a/b",
    "a:b",
    "a\n",
    "\n",
    ".",
    "..",
    ".a",
    "-x",
    "ä",
    "a\0",
    "x" * 129,
    "a\\b",
    None,
    3,
    b"a",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_artifact_names_are_refused_and_shown(name: object) -> None:
    with pytest.raises(InvalidNameError) as caught:
        Artifact(name)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert repr(name) in caught.value.message
    assert caught.value.hint
    with pytest.raises(InvalidNameError):
        Artifact("ds", type=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "_", "0", "A.b-c_d", "x" * 128, "v3", "latest"])
def test_good_artifact_names(name: str) -> None:
    assert Artifact(name).name == name


def test_only_the_prefix_casstore_is_reserved_for_types() -> None:
    """A3: the engine reserves no type but its own prefix; W&B's job, run_table and code are a host's business."""
    for kind in ("casstore-x", "casstore-"):
        with pytest.raises(InvalidNameError, match="reserved"):
            check_type(kind)
    for kind in ("casstore", "job", "code", "run_table", "wandb-history"):
        assert check_type(kind) == kind


# --- labels


@pytest.mark.parametrize(
    "alias", ["v3", "v0", "v007", "sha256:" + "0" * 64, "", " ", "a\n", "a:b", "a/b", "x" * 129, None, 1]
)
def test_bad_aliases(alias: object) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_alias(alias)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("alias", ["best", "v3.1", "version3", "V3", "v", "latest", "best-ap50", "2024"])
def test_good_aliases(alias: str) -> None:
    assert check_alias(alias) == alias


def test_at_most_a_hundred_labels_and_no_string_in_place_of_a_list() -> None:
    hundred = [f"a{i}" for i in range(100)]
    assert check_aliases(hundred) == tuple(hundred)
    assert check_tags([*hundred, "a0"]) == tuple(hundred)
    for check in (check_aliases, check_tags):
        with pytest.raises(LimitError):
            check([f"a{i}" for i in range(101)])
        for wrong in ("best", None, 5, [None], [["a"]]):
            with pytest.raises(InvalidNameError):
                check(wrong)


def test_tags_are_words_deduplicated_in_order() -> None:
    assert check_tags(["b", "a b", "b", "größe"]) == ("b", "a b", "größe")
    for tag in ("", " ", "a\n", " a", "a ", "a,b", "x" * 129, 3):
        with pytest.raises(InvalidNameError):
            check_tags([tag])


def test_description_is_text_of_at_most_64_kib() -> None:
    assert check_description(None) == ""
    assert check_description("é" * 32768) == "é" * 32768
    with pytest.raises(LimitError) as caught:
        check_description("é" * 32768 + "x")
    assert caught.value.exit_code == 2
    for wrong in (b"text", 3, "\udc80"):
        with pytest.raises(InvalidInputError):
            check_description(wrong)


@pytest.mark.parametrize(
    "ttl",
    [
        timedelta(0),
        timedelta(seconds=-1),
        timedelta(milliseconds=500),
        timedelta(seconds=1.5),
        timedelta.max,
        30,
        "30d",
    ],
)
def test_a_ttl_is_whole_seconds_up_to_a_century(ttl: object) -> None:
    """J1 as far as B1 takes it: half a second must not become "never"."""
    with pytest.raises(InvalidInputError):
        ttl_seconds(ttl)


def test_ttl_has_three_values() -> None:
    assert (ttl_seconds(timedelta(days=1)), ttl_seconds(None), ttl_seconds(INHERIT)) == (86400, 0, -1)


# --- metadata


def nested(depth: int, *, inner: object = 1) -> object:
    """Dictionaries, ``depth`` of them, one in the other."""
    value = inner
    for _ in range(depth):
        value = {"k": value}
    return value


BAD_METADATA: list[object] = [
    {"x": math.nan},
    {"x": math.inf},
    {"x": [-math.inf]},
    {"x": {1, 2}},
    {"x": b"bytes"},
    {1: "int key"},
    {None: 1},
    {"x": {2: 3}},
    {"x": object()},
    {"x": 1j},
    {"x": "\udc80"},
    {"\udc80": 1},
    {f"k{i}": i for i in range(101)},
    nested(65),
    nested(5000),
    {"x": "y" * (1024 * 1024)},
    {"x": 10**5000},
    [],
    "text",
    0,
    [("a", 1)],
]


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=range(len(BAD_METADATA)))
def test_bad_metadata_is_refused_not_coerced(metadata: object) -> None:
    with pytest.raises(InvalidMetadataError) as caught:
        Artifact("ds", metadata=metadata)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    artifact = Artifact("ds", metadata={"kept": 1})
    with pytest.raises(InvalidMetadataError):
        artifact.metadata = metadata  # type: ignore[assignment]
    assert artifact.metadata == {"kept": 1}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {f"k{i}": {str(j): j for j in range(1000)} for i in range(100)},
        nested(64),
        nested(63, inner=[]),
        {"x": "y" * (1024 * 1024 - 8)},
        {"a": (1, 2), "b": [None, True, 1.5, "ü"]},
        MappingProxyType({"a": 1}),
    ],
    ids=range(8),
)
def test_good_metadata(metadata: Mapping[str, object] | None) -> None:
    """Limits count top-level keys, canonical bytes and containers. Tuples are arrays: what else could they be?"""
    encoded = canonical_metadata(metadata)
    assert len(encoded) <= 1024 * 1024
    assert json.loads(encoded) == json.loads(json.dumps(dict(metadata or {})))


def test_canonical_metadata_does_not_depend_on_key_order() -> None:
    assert canonical_metadata({"b": 1, "a": [1.0]}) == canonical_metadata({"a": [1.0], "b": 1}) == b'{"a":[1.0],"b":1}'


# --- paths

BAD_PATHS = [
    "",
    ".",
    "..",
    "../x",
    "a/..",
    "a/../b",
    "a/./b",
    "/",
    "/abs",
    "a//b",
    "a/",
    "a\\b",
    "C:\\x",
    "C:x",
    "a:b",
    "c:/x",
    "//server/share",
    "\\\\server\\share",
    "a\0b",
    "a\nb",
    "a\x7f",
    "a\x85",
    "\udc80",
    "x" * 256,
    "é" * 128,
    "/".join(["x" * 200] * 21),
    None,
    7,
    b"bytes",
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda value: repr(value)[:20])
def test_bad_paths(path: object) -> None:
    with pytest.raises(InvalidPathError) as caught:
        check_path(path)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    with pytest.raises(InvalidPathError):
        Artifact("ds").add_bytes(b"", path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b",
        ".hidden",
        "...",
        "ab:c",
        "x" * 255,
        "é" * 127,
        " ",
        "日本/語",
        "a b",
        "/".join(["x" * 15] * 256),
        "-",
        "~",
    ],
)
def test_good_paths(path: str) -> None:
    assert check_path(path) == path


@given(st.text(max_size=300))
def test_a_path_that_is_accepted_stays_below_any_root(path: str) -> None:
    try:
        check_path(path)
    except InvalidPathError:
        return
    joined = os.path.normpath(os.path.join("/root/of/download", path))
    assert joined.startswith("/root/of/download/")
    assert joined == "/root/of/download/" + path


# --- references


@pytest.mark.parametrize(
    ("text", "name", "selector"),
    [
        ("ds", "default/default/ds", None),
        ("ds:v3", "default/default/ds", "v3"),
        ("vision/ds:best", "default/vision/ds", "best"),
        ("ml/vision/ds:latest", "ml/vision/ds", "latest"),
        ("ds:blake3:" + "a" * 64, "default/default/ds", "blake3:" + "a" * 64),
        ("ds:xxh3-128:" + "a" * 32, "default/default/ds", "xxh3-128:" + "a" * 32),
    ],
)
def test_references(text: str, name: str, selector: str | None) -> None:
    reference = parse_reference(text)
    assert (str(reference.collection), reference.selector) == (name, selector)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":v0",
        "ds:",
        "ds:v0:v1",
        "ds:latest:",
        "ds:md5:" + "a" * 32,
        "ds:blake3:" + "a" * 63,
        "ds:blake3:" + "a" * 40,
        "ds:xxh3-128:" + "a" * 64,
        "ds:blake3:" + "A" * 64,
        "ds:blake3:",
        "/ds",
        "ds/",
        "vision//ds",
        "a/b/c/d",
        "ds:v01",
        "ds:v1 ",
        "ds:v1\n",
        "ds:v1\u0663",
        "ds:v" + "1" * 19,
        "ds:la/test",
        "ds :v0",
        "../ds",
        None,
        3,
    ],
)
def test_bad_references(text: object) -> None:
    with pytest.raises(InvalidNameError) as caught:
        parse_reference(text)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_projects() -> None:
    assert str(CollectionName.parse("ds", "vision")) == "default/vision/ds"
    assert str(CollectionName.parse("ds", "ml/vision")) == "ml/vision/ds"
    for project in ("", "/", "a/", "a/b/c", "..", 5):
        with pytest.raises(InvalidNameError):
            CollectionName.parse("ds", project)  # type: ignore[arg-type]


@given(st.text(max_size=20))
def test_any_text_is_a_reference_or_an_invalid_name(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidNameError:
        return
    assert (
        parse_reference(f"{reference.collection}:{reference.selector or 'latest'}").collection == reference.collection
    )


@pytest.mark.parametrize("name", ["a", "x" * 128])
def test_check_name_returns_its_argument(name: str) -> None:
    assert check_name(name) == name


def test_globs_match_paths_and_parts() -> None:
    globs = Globs(["*.png", "keep/**"], ["*.tmp", "build"])
    assert globs.included("deep/a.png")
    assert globs.included("keep/x/y.txt")
    assert not globs.included("b.txt")
    assert globs.excluded("x/build")
    assert globs.excluded("a.tmp")
    assert not globs.excluded("building")
    with pytest.raises(InvalidInputError):
        Globs("*.png", [])
