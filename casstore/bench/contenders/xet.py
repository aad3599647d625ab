"""hf_xet: the client of Hugging Face's Xet storage, with a store in a local directory (endpoint ``local://``)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from casstore.bench.contenders.contender import Contender
from casstore.bench.measuring import Command, said_by

_TOOL = str(Path(__file__).with_name("xet_tool.py"))


class Xet(Contender):
    """It stores files and knows no directories: a list of names and file identifiers is written beside the store.

    The local store is the client's own simulation of the service, in the same process: no network. It has no
    deletion. Empty directories and links are in the list.
    """

    tool = "hf_xet"
    durable = "no: only its data base of chunks"

    def __init__(self, name: str = "hf_xet", *options: str, scripts: Path | None = None) -> None:
        self.name = name
        self.flags = " ".join(("local:// endpoint", *options))
        self._options = options
        self._python = scripts / "python" if scripts is not None else Path(sys.executable)

    def missing(self) -> str:
        """The interpreter cannot import it."""
        if self._python == Path(sys.executable):
            there = importlib.util.find_spec("hf_xet") is not None
        else:
            there = bool(self.version())
        return "" if there else "hf_xet is not installed (scripts/rivals installs all; --rivals-venv says where)"

    def version(self) -> str:
        """That of the distribution."""
        code = "import importlib.metadata as m; print('hf_xet', m.version('hf_xet'))"
        said = said_by(Command((str(self._python), "-c", code)))
        return said if said.startswith("hf_xet") else ""

    def begin(self, place: Path) -> Sequence[Command]:
        """Nothing but directories."""
        (place / "store").mkdir()
        return ()

    def take_in(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """Upload all files in one session."""
        return (self._command(place, "put", *self._options, str(place / f"v{number}.json"), str(tree)),)

    def read_again(self, place: Path, tree: Path, number: int) -> Sequence[Command]:
        """The same: it keeps no times of files."""
        return (self._command(place, "put", *self._options, str(place / "again.json"), str(tree)),)

    def restore(self, place: Path, number: int, target: Path) -> Sequence[Command]:
        """Download all files in one session."""
        return (self._command(place, "get", str(place / f"v{number}.json"), str(target)),)

    def kept(self, place: Path) -> Sequence[Path]:
        """The store with its lists of names."""
        return (place / "store", *sorted(place.glob("v*.json")))

    def replaceable(self, place: Path) -> Sequence[Path]:
        """What only speeds it up: its data base of chunks and the client's copies of the shards."""
        inner = place / "store" / "xet"
        return (inner / "xorbs" / "global_dedup_lookup.redb", inner / "shard-cache", inner / "shard-session")

    def _command(self, place: Path, verb: str, *words: str) -> Command:
        env = (
            ("HF_HOME", str(place / "home")),
            ("HF_XET_TELEMETRY_ENABLED", "false"),
            ("HF_HUB_DISABLE_TELEMETRY", "1"),
        )
        return Command((str(self._python), "-I", _TOOL, verb, str(place / "store"), *words), env)
