"""What references lead to: the grammar of URIs, files, web servers, handlers of others (FEATURES F1-F7, F9-F14, O5).

The web server is a real one on this machine; names are looked up by a function the test gives.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.digest import Digest, hash_function
from casstore.errors import (
    BackendError,
    CasstoreError,
    InvalidInputError,
    InvalidPathError,
    LimitError,
    ReferenceChangedError,
    ReferenceMissingError,
    RefusedError,
    TransientBackendError,
    UnsupportedSchemeError,
)
from casstore.model import Entry, EntryKind, Pointer
from casstore.reference import Access, Handler, Resolved, check, fetch, open_verified, register, resolve
from casstore.reference import http as http_module
from casstore.reference import registry as registry_module
from casstore.reference.http import is_public

BODY = bytes(range(256)) * 20


def blake3(data: bytes) -> Digest:
    return Digest("blake3", hash_function("blake3")(data))


def entry_of(item: Resolved, path: str = "x") -> Entry:
    return Entry(path, EntryKind.REFERENCE, item.size, pointer=item.pointer)


def only(uri: str, **options: object) -> Entry:
    (item,) = resolve(uri, **options)  # type: ignore[arg-type]
    return entry_of(item)


# --- a web server ---------------------------------------------------------------------------------


@dataclass
class Page:
    """What the server says at a path."""

    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    head: int | None = None
    """status of HEAD, if another"""
    length: int | None = -1
    """what Content-Length says; -1: the truth, None: nothing"""
    silent: threading.Event | None = None
    """says nothing until it is set"""


class Web:
    """A server, its pages, and what it was asked."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str]] = []
        web = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(head=False)

            def do_HEAD(self) -> None:
                self.answer(head=True)

            def answer(self, *, head: bool) -> None:
                web.asked.append((self.command, self.path))
                page = web.pages.get(self.path, Page(status=404))
                if page.silent is not None:
                    page.silent.wait(20)
                    return
                status = page.head if head and page.head is not None else page.status
                self.send_response_only(status)
                if page.length is not None:
                    self.send_header("Content-Length", str(len(page.body) if page.length == -1 else page.length))
                for name, value in page.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if not head:
                    self.wfile.write(page.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.port = self._server.server_port
        self.url = f"http{'' if certificate is None else 's'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        for page in self.pages.values():
            if page.silent is not None:
                page.silent.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


@pytest.fixture
def web(server: Web) -> Web:
    server.pages.clear()
    server.asked.clear()
    return server


def test_size_and_etag_are_what_head_says_and_nothing_is_downloaded(web: Web) -> None:
    web.pages["/a/model.h5"] = Page(headers={"ETag": '"v1"'})
    entry = only(f"{web.url}/a/model.h5")
    assert (entry.uri, entry.size, entry.etag) == (f"{web.url}/a/model.h5", len(BODY), '"v1"')
    assert (entry.checksum, entry.unverified, entry.volatile) == (None, False, False)
    assert web.asked == [("HEAD", "/a/model.h5")]
    assert b"".join(fetch(entry)) == BODY
    assert check(entry)


def test_without_a_validator_a_reference_is_volatile(web: Web) -> None:
    web.pages["/a"] = Page()
    entry = only(f"{web.url}/a")
    assert (entry.etag, entry.volatile, entry.size) == (None, True, len(BODY))
    assert check(entry) is False


def test_a_weak_etag_is_kept_and_not_believed(web: Web) -> None:
    web.pages["/a"] = Page(headers={"ETag": 'W/"v1"'})
    entry = only(f"{web.url}/a")
    assert (entry.etag, entry.volatile) == ('W/"v1"', True)
    assert check(entry) is False
    assert b"".join(fetch(entry)) == BODY
    web.pages["/a"] = Page(headers={"ETag": 'W/"v2"'})
    with pytest.raises(ReferenceChangedError):
        check(entry)


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_without_head_is_asked_with_get(web: Web, status: int) -> None:
    web.pages["/a"] = Page(headers={"ETag": '"v1"'}, head=status)
    entry = only(f"{web.url}/a")
    assert (entry.size, entry.etag) == (len(BODY), '"v1"')
    assert [method for method, _ in web.asked] == ["HEAD", "GET"]


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_gone_is_missing(web: Web, status: int) -> None:
    web.pages["/a"] = Page(headers={"ETag": '"v1"'})
    entry = only(f"{web.url}/a")
    web.pages["/a"] = Page(status=status)
    for call in (lambda: only(f"{web.url}/a"), lambda: list(fetch(entry)), lambda: check(entry)):
        with pytest.raises(ReferenceMissingError) as gone:
            call()
        assert gone.value.exit_code == 10


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, BackendError), (204, BackendError), (429, TransientBackendError), (503, TransientBackendError)],
)
def test_other_answers_are_failures_of_the_other_side(web: Web, status: int, kind: type[BackendError]) -> None:
    web.pages["/a"] = Page(b"", status=status, length=0)
    with pytest.raises(BackendError) as failed:
        only(f"{web.url}/a")
    assert type(failed.value) is kind
    assert failed.value.exit_code == 30


def chain(web: Web, length: int) -> None:
    for n in range(length):
        web.pages[f"/{n}"] = Page(b"", {"Location": f"/{n + 1}" if n % 2 else f"{web.url}/{n + 1}"}, 301 + n % 3)
    web.pages[f"/{length}"] = Page(headers={"ETag": '"end"'})


def test_five_redirects_are_followed_and_the_uri_given_is_the_one_recorded(web: Web) -> None:
    chain(web, 5)
    entry = only(f"{web.url}/0")
    assert (entry.uri, entry.etag) == (f"{web.url}/0", '"end"')
    assert b"".join(fetch(entry)) == BODY


def test_six_redirects_are_too_many(web: Web) -> None:
    chain(web, 6)
    with pytest.raises(BackendError, match="more than 5"):
        only(f"{web.url}/0")
    assert ("HEAD", "/6") not in web.asked


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://ho st/",
        "http://user:pw@127.0.0.1/",
        "",
        "http://[::1",
        "javascript:1",
    ],
)
def test_a_redirect_leads_to_the_web_or_nowhere(web: Web, location: str) -> None:
    web.pages["/a"] = Page(b"", {"Location": location}, 302)
    with pytest.raises(BackendError, match="redirects to") as refused:
        only(f"{web.url}/a")
    assert refused.value.exit_code == 30
    assert "pw" not in str(refused.value)


def test_a_server_that_never_answers_is_given_up(web: Web) -> None:
    web.pages["/a"] = Page(silent=threading.Event())
    with pytest.raises(TransientBackendError, match="in time"):
        resolve(f"{web.url}/a", access=Access(timeout=0.05))


@pytest.mark.parametrize("line", [b"X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_server_that_answers_by_drops_is_given_up(line: bytes) -> None:
    """Each byte comes in time, the answer never."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as peer, suppress(OSError):
                peer.recv(65536)
                if line.startswith(b"X"):
                    peer.sendall(b"HTTP/1.1 200 OK\r\n")
                for byte in itertools.cycle(line):
                    if done.wait(0.002):
                        return
                    peer.sendall(bytes([byte]))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(TransientBackendError, match="in time"):
                resolve(f"http://127.0.0.1:{listening.getsockname()[1]}/x", access=Access(timeout=0.1))
        finally:
            done.set()
            thread.join()


def test_an_unreachable_host_is_a_failure_of_the_backend() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(BackendError) as failed:
            only(f"http://127.0.0.1:{free.getsockname()[1]}/x")
    assert failed.value.exit_code == 30


def test_an_answer_that_is_no_http_is_a_failure_of_the_backend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as peer:
                peer.recv(65536)
                peer.sendall(b"SSH-2.0-dropbear\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TransientBackendError):
            only(f"http://127.0.0.1:{listening.getsockname()[1]}/x")
        thread.join()


def test_a_changed_etag_is_a_change_before_the_first_byte(web: Web) -> None:
    web.pages["/a"] = Page(headers={"ETag": '"v1"'})
    entry = only(f"{web.url}/a")
    web.pages["/a"] = Page(headers={"ETag": '"v2"'})
    taken: list[bytes] = []
    with pytest.raises(ReferenceChangedError) as changed:
        taken.extend(fetch(entry))
    assert not taken
    assert changed.value.exit_code == 20
    with pytest.raises(ReferenceChangedError):
        check(entry)
    web.pages["/a"] = Page()
    with pytest.raises(ReferenceChangedError):
        check(entry)


def test_another_size_is_a_change_also_if_the_server_does_not_say_it(web: Web) -> None:
    web.pages["/a"] = Page()
    entry = only(f"{web.url}/a")
    for body in (BODY + b"x", BODY[:-1]):
        for length in (-1, None):
            web.pages["/a"] = Page(body, length=length)
            with pytest.raises(ReferenceChangedError):
                list(fetch(entry))


def test_a_body_that_ends_too_soon_is_a_broken_connection_and_nothing_less(web: Web) -> None:
    web.pages["/a"] = Page(headers={"ETag": '"v1"'})
    entry = only(f"{web.url}/a")
    web.pages["/a"] = Page(BODY[:1000], {"ETag": '"v1"'}, length=len(BODY))
    with pytest.raises(TransientBackendError):
        list(fetch(entry))
    with pytest.raises(TransientBackendError):
        open_verified(entry)


def test_each_fetch_asks_again(web: Web) -> None:
    web.pages["/a"] = Page(headers={"ETag": '"v1"'})
    entry = only(f"{web.url}/a")
    assert b"".join(fetch(entry)) == b"".join(fetch(entry)) == BODY
    assert [method for method, _ in web.asked] == ["HEAD", "GET", "GET"]
    del web.pages["/a"]
    for _ in range(2):
        with pytest.raises(ReferenceMissingError):
            list(fetch(entry))


def test_without_checksum_no_server_is_asked() -> None:
    entry = only("https://host.invalid/a/b.bin?x=1", checksum=False)
    assert entry.pointer == Pointer("https://host.invalid/a/b.bin?x=1", unverified=True)
    assert entry.size is None


@pytest.mark.parametrize("length", ["-5", "1e3", "9" * 30, "5, 7", ""])
def test_a_length_that_is_no_number_is_not_known(web: Web, length: str) -> None:
    web.pages["/a"] = Page(b"", {"Content-Length": length}, length=None)
    assert only(f"{web.url}/a").size is None


def test_query_spaces_and_other_alphabets_reach_the_server_in_ascii(web: Web) -> None:
    web.pages["/a%20b/%C3%BC?k=v%20w&l=%2F"] = Page()
    assert only(f"{web.url}/a b/ü?k=v w&l=%2F#part").size == len(BODY)


CERTIFICATE = Path(__file__).parents[1] / "golden" / "localhost.pem"
"""a key and a certificate for 127.0.0.1, signed by itself, for these tests only"""


def test_https_is_read_from_who_has_the_certificate_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    secure = Web(CERTIFICATE)
    try:
        secure.pages["/a"] = Page(headers={"ETag": '"v1"'})
        with pytest.raises(BackendError, match="certificate"):
            only(f"{secure.url}/a")
        assert secure.asked == []
        trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
        monkeypatch.setattr(http_module, "_tls", lambda: trusting)
        entry = only(f"{secure.url}/a")
        assert (entry.size, entry.etag) == (len(BODY), '"v1"')
        assert b"".join(fetch(entry)) == BODY
        looked_up(monkeypatch, ["127.0.0.1"])
        with pytest.raises(BackendError, match="certificate"):
            only(f"https://other.example:{secure.port}/a")
    finally:
        secure.close()


# --- private addresses ---------------------------------------------------------------------------


def looked_up(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names lead to these addresses, by turns."""
    asked: list[str] = []
    turns = iter(answers)

    def lookup(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in next(turns)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


STRICT = Access(on_private_address="error", timeout=2)


def test_private_addresses_are_refused_on_request(web: Web) -> None:
    web.pages["/a"] = Page()
    with pytest.raises(RefusedError) as refused:
        resolve(f"{web.url}/a", access=STRICT)
    assert refused.value.exit_code == 14
    assert web.asked == []
    entry = only(f"{web.url}/a")
    for call in (lambda: list(fetch(entry, STRICT)), lambda: check(entry, STRICT)):
        with pytest.raises(RefusedError):
            call()


def test_each_address_of_a_name_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up(monkeypatch, ["93.184.216.34", "10.0.0.7"])
    with pytest.raises(RefusedError, match=r"10\.0\.0\.7"):
        resolve("http://twofold.example/x", access=STRICT)


def test_the_judged_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that gives another answer to a second question has no say: there is no second question."""
    asked = looked_up(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    connected: list[object] = []

    def connect(_: socket.socket, address: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(BackendError):
        resolve("http://rebinding.example:8080/x", access=STRICT)
    assert asked == ["rebinding.example"]
    assert connected == [("93.184.216.34", 8080)]


def test_a_redirect_is_judged_as_well(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.pages["/a"] = Page(b"", {"Location": f"{web.url}/b"}, 302)
    web.pages["/b"] = Page()
    real = socket.socket.connect
    looked_up(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    monkeypatch.setattr(socket.socket, "connect", lambda s, address: real(s, ("127.0.0.1", web.port)))
    with pytest.raises(RefusedError, match=r"127\.0\.0\.1"):
        resolve("http://public.example/a", access=STRICT)
    assert web.asked == [("HEAD", "/a")]


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "::", "fe80::1%lo", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("2002:7f00:1::", "64:ff9b::a00:1", "240.0.0.1", "255.255.255.255", "nonsense"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "b" / "c").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"alpha")
    (root / "b" / "c" / "ü %#?.bin").write_bytes(b"beta")
    (root / "b" / "empty").write_bytes(b"")
    (root / "b.x").write_bytes(b"between b/ and b")
    return root


def test_a_file_has_size_and_digest_of_its_content(tree: Path) -> None:
    entry = only((tree / "a.txt").as_uri())
    assert (entry.size, entry.checksum, entry.digest) == (5, blake3(b"alpha"), blake3(b"alpha"))
    assert not entry.unverified
    assert not entry.volatile
    assert b"".join(fetch(entry)) == b"alpha"
    assert check(entry)


def test_a_directory_is_its_files_in_the_order_of_their_names(tree: Path) -> None:
    items = resolve(tree.as_uri())
    assert [item.name for item in items] == ["a.txt", "b.x", "b/c/ü %#?.bin", "b/empty"]
    assert [item.pointer.uri for item in items][2] == (tree / "b" / "c" / "ü %#?.bin").as_uri()
    assert [item.size for item in items] == [5, 16, 4, 0]
    for item in items:
        assert b"".join(fetch(entry_of(item))) == (tree / item.name).read_bytes()
    assert resolve(tree.as_uri() + "/") == items


def test_more_objects_than_allowed_are_an_error_that_counts(tree: Path) -> None:
    assert len(resolve(tree.as_uri(), limit=4)) == 4
    with pytest.raises(LimitError, match=r"4 files found .* at most 3") as refused:
        resolve(tree.as_uri(), limit=3)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "5", None])
def test_a_limit_that_is_no_number_of_objects_is_refused(tree: Path, limit: object) -> None:
    with pytest.raises(InvalidInputError, match="max_objects"):
        resolve(tree.as_uri(), limit=limit)  # type: ignore[arg-type]


def test_links_in_a_directory_are_refused_and_listed(tree: Path) -> None:
    (tree / "b" / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInputError, match=r"1 symbolic links .* b/link"):
        resolve(tree.as_uri())


def test_without_checksum_a_directory_is_one_name_that_cannot_be_fetched(tree: Path) -> None:
    entry = only(tree.as_uri(), checksum=False)
    assert entry.pointer == Pointer(tree.as_uri(), unverified=True)
    assert check(entry) is False
    with pytest.raises(InvalidInputError, match="directory"):
        list(fetch(entry))


def test_without_checksum_a_file_is_not_read(tree: Path) -> None:
    entry = only((tree / "a.txt").as_uri(), checksum=False)
    assert (entry.size, entry.checksum, entry.unverified) == (None, None, True)
    (tree / "a.txt").write_bytes(b"other")
    assert b"".join(fetch(entry)) == b"other"
    (tree / "a.txt").unlink()
    os.mkfifo(tree / "a.txt")
    with pytest.raises(ReferenceChangedError, match="not a file"):
        list(fetch(entry))


@pytest.mark.parametrize("change", ["gone", "longer", "shorter", "same-size", "directory", "fifo"])
def test_a_file_that_is_not_what_it_was_is_told(tree: Path, change: str) -> None:
    path = tree / "a.txt"
    entry = only(path.as_uri())
    path.unlink()
    after = {"longer": b"alphabet", "shorter": b"alp", "same-size": b"ALPHA"}
    if change in after:
        path.write_bytes(after[change])
    elif change == "directory":
        path.mkdir()
    elif change == "fifo":
        os.mkfifo(path)
    kind = ReferenceMissingError if change == "gone" else ReferenceChangedError
    for call in (lambda: list(fetch(entry)), lambda: open_verified(entry), lambda: check(entry)):
        with pytest.raises(kind) as told:
            call()
        assert told.value.exit_code == (10 if change == "gone" else 20)


def test_a_file_changed_with_its_times_put_back_is_told(tree: Path) -> None:
    path = tree / "a.txt"
    entry = only(path.as_uri())
    info = path.stat()
    path.write_bytes(b"ALPHA")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(ReferenceChangedError):
        check(entry)
    with pytest.raises(ReferenceChangedError):
        list(fetch(entry))


def test_an_open_reference_is_seekable_and_stops_when_the_file_changes(tree: Path) -> None:
    path = tree / "a.txt"
    with open_verified(only(path.as_uri())) as file:
        assert file.seek(2) == 2
        assert file.read(2) == b"ph"
        assert file.seek(-1, io.SEEK_END) == 4
        assert file.read() == b"a"
        path.write_bytes(b"other content")
        file.seek(0)
        with pytest.raises(ReferenceChangedError):
            file.read(3)


def test_an_open_reference_of_the_web_is_kept_and_seekable(web: Web) -> None:
    web.pages["/a"] = Page(headers={"ETag": '"v1"'})
    with open_verified(only(f"{web.url}/a")) as file:
        del web.pages["/a"]
        file.seek(256)
        assert file.read(3) == b"\x00\x01\x02"
        assert file.seek(0, io.SEEK_END) == len(BODY)


@pytest.mark.parametrize("name", ["../outside.txt", "link", "inner/link", "data2/x"])
def test_roots_confine_whatever_the_links(tree: Path, name: str) -> None:
    (tree.parent / "outside.txt").write_bytes(b"secret")
    (tree.parent / "data2").mkdir()
    (tree.parent / "data2" / "x").write_bytes(b"a name that begins as the root's")
    (tree / "link").symlink_to(tree.parent / "outside.txt")
    (tree / "inner").symlink_to(tree.parent)
    (tree.parent / "link").symlink_to("outside.txt")
    path = f"{tree}2/x" if name == "data2/x" else f"{tree}/{name}"
    entry = only(f"file://{path}")
    confined = Access(roots=(str(tree),))
    assert b"".join(fetch(entry)) == Path(path).read_bytes()
    for call in (lambda: list(fetch(entry, confined)), lambda: check(entry, confined)):
        with pytest.raises(RefusedError) as refused:
            call()
        assert refused.value.exit_code == 14
    with pytest.raises(RefusedError):
        list(fetch(entry, Access(roots=())))


def test_links_that_stay_inside_the_roots_are_followed(tree: Path) -> None:
    (tree / "link").symlink_to("b")
    (tree.parent / "also").symlink_to("data")
    entry = only(f"file://{tree}/link/empty")
    for root in (str(tree), str(tree.parent / "also"), "/"):
        assert list(fetch(entry, Access(roots=("/nowhere", root)))) == []
        assert check(entry, Access(roots=(root,)))


def test_a_link_put_in_after_the_check_does_not_lead_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is judged, then a part of it becomes a link: what is opened is still below the root."""
    entry = only((tree / "b" / "empty").as_uri())
    outside = tree.parent / "elsewhere"
    outside.mkdir()
    (outside / "empty").write_bytes(b"")
    real = os.path.realpath

    def swapped(path: str, **options: object) -> str:
        found = real(path)
        if path.endswith("/empty"):
            (tree / "b").rename(tree / "was-b")
            (tree / "b").symlink_to(outside)
        return found

    monkeypatch.setattr(os.path, "realpath", swapped)
    with pytest.raises(CasstoreError):
        list(fetch(entry, Access(roots=(str(tree),))))


def test_an_empty_directory_says_nothing_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no file"):
        resolve(tmp_path.as_uri())


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    for checksum in (True, False):
        with pytest.raises(ReferenceMissingError):
            resolve((tmp_path / "none").as_uri(), checksum=checksum)


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for checksum in (True, False):
        with pytest.raises(InvalidInputError, match="FIFO"):
            resolve((tmp_path / "fifo").as_uri(), checksum=checksum)


def test_a_name_that_is_no_path_of_an_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a\\b").write_bytes(b"")
    with pytest.raises(InvalidPathError):
        resolve(tmp_path.as_uri())


@pytest.mark.parametrize(
    "uri",
    ["file:relative", "file://host/x", "file:/x", "file://localhost/x", "file:///a?b", "file:///a#b", "file:///a%00b"],
)
def test_file_uris_are_absolute_paths(uri: str) -> None:
    with pytest.raises(InvalidInputError):
        resolve(uri)


# --- the grammar ---------------------------------------------------------------------------------

SIGNED = (
    "https://b.s3.amazonaws.com/k?X-Amz-Signature=deadbeef&X-Amz-Date=1",
    "https://b.s3.amazonaws.com/k?versionId=1&X-Amz-Security-Token=deadbeef",
    "https://b.s3.amazonaws.com/k?x-amz-credential=deadbeef",
    "https://storage.googleapis.com/b/k?X-Goog-Signature=deadbeef",
    "https://a.blob.core.windows.net/c/k?sv=2020&sig=deadbeef",
    "https://d.cloudfront.net/k?Signature=deadbeef&Key-Pair-Id=K",
    "https://h/k?a=b;sig=deadbeef",
    "https://h/k?s%69g=deadbeef",
    "https://h/k#sig=deadbeef",
    "s3://bucket/key?X-Amz-Signature=deadbeef",
    "http://user:deadbeef@host/x",
    "https://deadbeef@host/x",
    "ftp://u:deadbeef@host/x",
    "http://good\\@deadbeef/",
)


@pytest.mark.parametrize("uri", SIGNED)
@pytest.mark.parametrize("checksum", [True, False])
def test_secrets_in_a_uri_are_refused_and_not_repeated(uri: str, checksum: bool) -> None:
    with pytest.raises(InvalidInputError) as refused:
        resolve(uri, checksum=checksum, allow_opaque=True)
    assert refused.value.exit_code == 2
    assert "deadbeef" not in f"{refused.value} {refused.value.hint}" or uri == SIGNED[-1]


@pytest.mark.parametrize("uri", ["https://h.invalid/k?versionId=3&signal=1&sigma=2", "https://h.invalid/a@b?x=@"])
def test_harmless_parameters_stay(uri: str) -> None:
    assert only(uri, checksum=False).uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        *(None, 5, b"http://h/", Path("/x"), "", "no-scheme", "/abs/path", "://x", "1http://h/", " http://h/"),
        *(
            "http://h/\n",
            "http://h/\x00",
            "http://h/\x7f",
            "http://h/\u2028",
            "http://h/\ud800",
            "http://h/" + "x" * 8192,
        ),
        *(
            "http://",
            "http:///path",
            "http://[::1/",
            "http://h:port/",
            "http://h:99999/",
            "https://ho st/",
            "http://ö" + "x" * 80,
        ),
    ],
)
def test_what_is_no_uri_is_refused(uri: object) -> None:
    with pytest.raises(InvalidInputError) as refused:
        resolve(uri, checksum=False)
    assert refused.value.exit_code == 2
    assert refused.value.hint


hostile = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=8),
    st.builds(
        str.__add__,
        st.sampled_from(["http://", "https://", "file://", "file:///", "s3://", "x:", "http://[", "HTTP://", "http:"]),
        st.text(st.one_of(st.sampled_from("/:@?#%[]&=;. \\-\n\0üA1~"), st.characters()), max_size=30),
    ),
)


@settings(max_examples=400, deadline=None)
@given(hostile, st.booleans(), st.booleans())
def test_any_hostile_uri_gives_a_reference_or_one_of_our_errors(uri: object, checksum: bool, opaque: bool) -> None:
    with pytest.MonkeyPatch.context() as patched:

        def no_names(*_: object, **__: object) -> object:
            raise socket.gaierror(-2, "no names in a test")

        patched.setattr(socket, "getaddrinfo", no_names)
        try:
            for item in resolve(uri, checksum=checksum, allow_opaque=opaque, limit=3):
                for step in (lambda: list(fetch(entry_of(item))), lambda: check(entry_of(item))):  # noqa: B023
                    try:
                        step()
                    except CasstoreError:
                        continue
        except CasstoreError:
            return


@settings(max_examples=200, deadline=None)
@given(st.builds(Pointer, st.text(max_size=30), st.none() | st.text(max_size=9), unverified=st.booleans()))
def test_a_hostile_store_gives_only_our_errors(pointer: Pointer) -> None:
    """A tree that was not made by this code may say anything of a reference."""
    entry = Entry("x", EntryKind.REFERENCE, None, pointer=pointer)
    for step in (lambda: list(fetch(entry)), lambda: check(entry)):
        try:
            step()
        except CasstoreError:
            continue


def test_what_a_store_says_is_judged_again_before_it_is_asked_for(web: Web) -> None:
    web.pages["/a"] = Page()
    for uri in (f"http://u:p@127.0.0.1:{web.port}/a", f"{web.url}/a?sig=x", f"{web.url}/a\n"):
        entry = Entry("x", EntryKind.REFERENCE, None, pointer=Pointer(uri))
        for call in (lambda: list(fetch(entry)), lambda: check(entry), lambda: open_verified(entry)):  # noqa: B023
            with pytest.raises(InvalidInputError):
                call()
    assert web.asked == []


# --- handlers of others --------------------------------------------------------------------------


class Shelf:
    """Objects in memory, as an object store may have them."""

    schemes = ("shelf",)

    def __init__(self, **objects: bytes) -> None:
        self.objects = objects
        self.error: Exception | None = None

    def resolve(self, uri: str, *, checksum: bool, limit: int, access: Access) -> Iterator[Resolved]:
        if self.error is not None:
            raise self.error
        for name, data in self.objects.items():
            pointer = Pointer(f"shelf://box/{name}", '"1"', "v7", Digest("sha256", hash_function("sha256")(data)))
            yield Resolved(name, len(data), pointer)

    def open(self, entry: Entry, access: Access) -> BinaryIO:
        if self.error is not None:
            raise self.error
        return io.BytesIO(self.objects[(entry.uri or "").rpartition("/")[2]])

    def check(self, entry: Entry, access: Access) -> bool:
        if self.error is not None:
            raise self.error
        return True


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr(registry_module, "_REGISTERED", {})
    made = Shelf(a=b"one", b=b"")
    register("shelf", made)
    return made


def test_a_registered_handler_is_used_and_its_digest_proved(shelf: Shelf) -> None:
    first, second = (entry_of(item) for item in resolve("shelf://box/"))
    assert (first.version_id, first.etag, first.size) == ("v7", '"1"', 3)
    assert b"".join(fetch(first)) == b"one"
    assert list(fetch(second)) == []
    assert check(first)
    shelf.objects["a"] = b"two"
    for call in (lambda: list(fetch(first)), lambda: open_verified(first)):
        with pytest.raises(ReferenceChangedError):
            call()


def test_an_endless_body_is_not_read_to_its_end(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_of(resolve("shelf://box/")[0])
    body = io.BytesIO(bytes(10_000_000))
    monkeypatch.setattr(shelf, "open", lambda entry, access: _Kept(body))
    with pytest.raises(ReferenceChangedError, match="more than 3 bytes"):
        list(fetch(entry))
    assert body.tell() <= 1_048_576


class _Kept(io.RawIOBase, BinaryIO):
    """A body that can be asked how far it was read after it was closed."""

    def __init__(self, body: io.BytesIO) -> None:
        self._body = body

    def read(self, size: int | None = -1, /) -> bytes:
        return self._body.read(size)


def test_a_handler_that_finds_too_much_is_stopped(shelf: Shelf) -> None:
    with pytest.raises(LimitError, match="2 objects"):
        resolve("shelf://box/", limit=1)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("x"), OSError(5, "I/O"), StopIteration()])
def test_no_error_of_a_handler_escapes(shelf: Shelf, error: Exception) -> None:
    entry = entry_of(resolve("shelf://box/")[0])
    shelf.error = error
    for call in (
        lambda: resolve("shelf://box/"),
        lambda: list(fetch(entry)),
        lambda: check(entry),
        lambda: open_verified(entry),
    ):
        with pytest.raises(BackendError):
            call()


def test_a_handler_of_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Point:
        value = "pkg:Shelf"
        load: Callable[[], object]

    loads: list[object] = [lambda: Shelf(a=b"one"), Shelf(a=b"one"), Shelf]
    for found in loads:
        monkeypatch.setattr(registry_module, "_REGISTERED", {})
        monkeypatch.setattr(
            "importlib.metadata.entry_points", lambda *, group, name, found=found: [Point(lambda: found)]
        )
        assert len(resolve("shelf://box/")) == (0 if found is Shelf else 1)

    def broken() -> object:
        raise ImportError("no module")

    monkeypatch.setattr(registry_module, "_REGISTERED", {})
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group, name: [Point(broken)])
    with pytest.raises(UnsupportedSchemeError, match="cannot be loaded"):
        resolve("shelf://box/")


@pytest.mark.parametrize(
    ("scheme", "handler"), [("S", Shelf()), ("http", Shelf()), ("a:b", Shelf()), ("x", object()), (1, Shelf())]
)
def test_only_handlers_of_schemes_that_are_free_can_be_registered(shelf: Shelf, scheme: str, handler: Handler) -> None:
    with pytest.raises(InvalidInputError):
        register(scheme, handler)


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("s3://bucket/key", "pip install casstore[s3]"),
        ("gs://bucket/key", "pip install casstore[gs]"),
        ("az://c/key", "pip install casstore[azure]"),
        ("hdfs://nn/key", "allow_opaque=True"),
    ],
)
def test_an_unknown_scheme_is_refused_and_says_what_to_do(uri: str, hint: str) -> None:
    with pytest.raises(UnsupportedSchemeError) as refused:
        resolve(uri)
    assert hint in refused.value.hint
    assert refused.value.exit_code == 2


def test_an_opaque_reference_is_its_uri_and_no_more() -> None:
    entry = only("hdfs://nn/a/b.bin", allow_opaque=True)
    assert entry.pointer == Pointer("hdfs://nn/a/b.bin", unverified=True)
    assert (entry.size, entry.digest, check(entry)) == (None, None, False)
    with pytest.raises(UnsupportedSchemeError):
        list(fetch(entry))
    with pytest.raises(UnsupportedSchemeError):
        open_verified(entry)


def test_handlers_have_no_way_to_change_or_delete_anything() -> None:
    public = {name for name in vars(Handler) if not name.startswith("_")}
    assert public == {"schemes", "resolve", "open", "check"}


@pytest.mark.parametrize("access", [Access(on_private_address="warn"), Access(timeout=0), Access(timeout=float("nan"))])
def test_limits_that_are_none_are_refused(access: Access) -> None:
    with pytest.raises(InvalidInputError):
        resolve("http://h/", access=access)


def test_only_references_are_fetched() -> None:
    for call in (fetch, check, open_verified):
        with pytest.raises(InvalidInputError, match="not a reference"):
            list(call(Entry("x")))  # type: ignore[arg-type]


def test_random_damage_of_a_large_file_is_told(tmp_path: Path) -> None:
    """Wherever one byte differs, also beyond the first block."""
    data = random.Random(7).randbytes(2_500_000)
    path = tmp_path / "large"
    path.write_bytes(data)
    entry = only(path.as_uri())
    for at in (0, 1_048_576, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ReferenceChangedError):
            for block in fetch(entry):
                assert len(block) <= 1_048_576
    assert entry.checksum == blake3(data)
    assert replace(entry, size=None).size is None
