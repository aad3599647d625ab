"""Writes the store that this version of casstore leaves behind for later ones to open.

``python tests/format/make_store.py NAME`` makes ``NAME.tar.gz`` in ``tests/format/stores`` and ``NAME.json``, which
says what is in it. Run once for each release; what is there is never changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from casstore import Artifact, ChunkerParams, Store, StoreConfig

HERE = Path(__file__).parent / "stores"


def content(seed: str, size: int) -> bytes:
    """Bytes that are the same on every machine."""
    blocks = (hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def fill(store: Store) -> dict[str, object]:
    """Versions of every kind the format knows; returns what must be found."""
    first = Artifact("models", type="model", description="first", metadata={"step": 1, "name": "größe"})
    first.add_bytes(content("weights", 120_000), "weights/large.bin")
    first.add_bytes(b"", "empty")
    for i in range(200):
        first.add_bytes(content(f"small {i}", 50 + i), f"many/{i:03}.txt")
    v0 = store.log_artifact(first, aliases=["best"], tags=["old"])
    draft = v0.new_draft()
    draft.remove("many/007.txt")
    draft.add_bytes(content("more", 5_000), "more.bin")
    store.log_artifact(draft, aliases=["candidate"])
    other = Artifact("texts", type="dataset")
    other.add_bytes("käse\n".encode(), "a/ü.txt")
    store.log_artifact(other, project="ml/vision")
    gone = Artifact("models", type="model")
    gone.add_bytes(content("gone", 20_000), "gone.bin")
    store.log_artifact(gone).delete()
    purged = Artifact("models", type="model")
    purged.add_bytes(content("purged", 20_000), "purged.bin")
    version = store.log_artifact(purged)
    version.delete()
    store.trash.purge(version.ref)
    store.gc(grace=0, max_waste=0)
    found: dict[str, object] = {}
    for ref in ("models:v0", "models:v1", "ml/vision/texts:v0"):
        version = store.get(ref)
        found[ref] = {
            "digest": str(version.digest),
            "aliases": list(version.aliases),
            "metadata": version.metadata,
            "files": {entry.path: hashlib.sha256(entry.read()).hexdigest() for entry in version.files()},
        }
    found["trash"] = [item.ref for item in store.trash.list()]
    return found


def main(name: str) -> None:
    """Make one archive for each digest algorithm."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        expected: dict[str, object] = {}
        for digest in ("blake3", "sha256", "xxh3-128"):
            config = StoreConfig(
                digest=digest,
                chunker=ChunkerParams(minimum=512, average=2048, maximum=8192),
                frame_bytes=16384,
                node_bytes=1024,
            )
            with Store.create(root / digest, config=config) as store:
                expected[digest] = fill(store)
        with tarfile.open(HERE / f"{name}.tar.gz", "w:gz") as archive:
            for path in sorted(root.rglob("*")):
                inside = path.relative_to(root)
                if "index" not in inside.parts and "tmp" not in inside.parts:
                    archive.add(path, str(inside), recursive=False)
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
