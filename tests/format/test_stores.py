"""Guards FORMAT §10: a store that any released version wrote opens, reads, collects and grows for ever."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from casstore import Artifact, Store

STORES = Path(__file__).parent / "stores"
ARCHIVES = sorted(path.name.removesuffix(".tar.gz") for path in STORES.glob("*.tar.gz"))


def test_there_is_a_store_of_every_released_format() -> None:
    assert "v1" in ARCHIVES


@pytest.mark.parametrize("digest", ["blake3", "sha256", "xxh3-128"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_old_store_is_whole_and_works(name: str, digest: str, tmp_path: Path) -> None:
    with tarfile.open(STORES / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected: dict[str, Any] = json.loads((STORES / f"{name}.json").read_text(encoding="utf-8"))[digest]
    trash = expected.pop("trash")
    with Store.open(tmp_path / digest) as store:
        assert store.fsck(read_data=True).findings == []
        check(store, expected)
        assert [item.ref for item in store.trash.list()] == trash
        store.trash.restore(trash[0])
        store.gc(offline=True)
        check(store, expected)
        artifact = Artifact("models", type="model")
        artifact.add_bytes(b"new", "new")
        assert store.log_artifact(artifact).version == "v4"


def check(store: Store, expected: dict[str, Any]) -> None:
    for ref, wanted in expected.items():
        version = store.get(ref)
        assert str(version.digest) == wanted["digest"]
        assert [alias for alias in version.aliases if alias != "latest"] == [
            alias for alias in wanted["aliases"] if alias != "latest"
        ]
        assert version.metadata == wanted["metadata"]
        assert {e.path: hashlib.sha256(e.read()).hexdigest() for e in version.files()} == wanted["files"]
