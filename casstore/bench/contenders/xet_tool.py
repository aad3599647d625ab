"""A command line for hf_xet, which has none. Run by the interpreter that has hf_xet; imports nothing of casstore.

``put STORE [--skip-sha256] LIST TREE`` uploads the files of a tree and writes the list of what is where;
``get STORE LIST TARGET`` brings them back.
"""

import json
import os
import sys

import hf_xet  # type: ignore[import-not-found]


def put(store: str, listing: str, tree: str, *, skip_sha256: bool) -> None:
    """Upload all files in one session."""
    files, links, directories = [], {}, []
    for top, inner, names in os.walk(tree):
        for name in [*inner, *names]:
            full = os.path.join(top, name)
            path = os.path.relpath(full, tree)
            if os.path.islink(full):
                links[path] = os.readlink(full)
            elif os.path.isdir(full):
                directories.append(path)
            else:
                files.append(path)
    files.sort()
    paths = [os.path.join(tree, path) for path in files]
    done = hf_xet.upload_files(paths, f"local://{store}", None, None, None, None, skip_sha256=skip_sha256)
    known = {path: [info.hash, info.file_size] for path, info in zip(files, done, strict=True)}
    with open(listing, "w", encoding="utf-8") as target:
        json.dump({"files": known, "links": links, "directories": sorted(directories)}, target)


def get(store: str, listing: str, target: str) -> None:
    """Download all files in one session."""
    with open(listing, encoding="utf-8") as source:
        wanted = json.load(source)
    os.mkdir(target)
    for path in wanted["directories"]:
        os.makedirs(os.path.join(target, path), exist_ok=True)
    for path, leads_to in wanted["links"].items():
        os.symlink(leads_to, os.path.join(target, path))
    files = [
        hf_xet.PyXetDownloadInfo(os.path.join(target, path), hash_, size)
        for path, (hash_, size) in wanted["files"].items()
    ]
    hf_xet.download_files(files, f"local://{store}", None, None, None)


def main() -> None:
    """Do as the arguments say."""
    verb, store, *rest = sys.argv[1:]
    if verb == "put":
        skip = "--skip-sha256" in rest
        listing, tree = (word for word in rest if word != "--skip-sha256")
        put(store, listing, tree, skip_sha256=skip)
    else:
        get(store, *rest)


if __name__ == "__main__":
    main()
