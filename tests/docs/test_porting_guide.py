"""docs/from-wandb.md: every casstore sample of the porting guide runs, in the order of the page.

Promise guarded: what the page says one writes instead of a W&B sample is what works.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from casstore.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "from-wandb.md").read_text(encoding="utf-8")
BLOCKS = [
    (match[1], match[2], PAGE.count("\n", 0, match.start()) + 2)
    for match in re.finditer(r"^```(.*?)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
]
FILES = (
    "dataset.h5",
    "path/file.txt",
    "path/file.format",
    "checkpoints/model.h5",
    "model.h5",
    "images/cat.png",
    "images/dog.png",
    "bikes/bike.png",
    "bikes/images/bikes/1.png",
    "bikes/images/bikes2/1.png",
    "old/file_to_remove.txt",
    "old/dir_to_remove/x.txt",
    "old/modified_file.txt",
    "file_to_add.txt",
    "modified_file.txt",
    "mount/datasets/mnist/train/0.png",
    "www/weights.bin",
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_every_sample_runs(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 50)
    monkeypatch.setenv("CASSTORE_URL", str(tmp_path / "data.cas"))
    space: dict[str, object] = {"mount": tmp_path / "mount" / "datasets" / "mnist", "server": server}
    ran = 0
    for language, body, line in BLOCKS:
        if language == "python":
            # The line numbers of a traceback are those of the page.
            exec(compile("\n" * (line - 1) + body, "docs/from-wandb.md", "exec"), space)
            ran += 1
        elif language == "console":
            for command in re.findall(r"^\$ casstore (.*)$", body, flags=re.MULTILINE):
                result = CliRunner().invoke(main, command.split())
                assert result.exit_code == 0, (line, command, result.output)
                ran += 1
    assert ran > 30


def test_every_sample_of_theirs_has_one_of_ours() -> None:
    languages = [language for language, _, _ in BLOCKS]
    for at, language in enumerate(languages):
        assert language in {"python", "console", "python wandb", "sh wandb", "python roboflow", "sh roboflow"}
        if " " in language:
            assert languages[at + 1] == {"python": "python", "sh": "console"}[language.split()[0]], BLOCKS[at]


def test_the_sample_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("cat.png", "dog.png"):
        (tmp_path / "images" / name).write_bytes(name.encode() * 100)
    exec(compile(sample, "README.md", "exec"), {})
    assert (tmp_path / "out" / "images" / "cat.png").read_bytes() == b"cat.png" * 100
