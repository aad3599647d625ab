"""``http://`` and ``https://``: objects of web servers, told apart by their ETag."""

from __future__ import annotations

import functools
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Self
from urllib.parse import quote, urljoin

from casstore.errors import (
    BackendError,
    CasstoreError,
    InvalidInputError,
    ReferenceChangedError,
    ReferenceMissingError,
    RefusedError,
    TransientBackendError,
)
from casstore.model import Entry, Pointer
from casstore.reference.files import RECORD_AGAIN
from casstore.reference.handler import ALLOW, Access, Resolved
from casstore.reference.uri import scheme_of, shown, split
from casstore.values import dataclass

MAX_REDIRECTS = 5
_SCHEMES = ("http", "https")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_NO_HEAD = frozenset({405, 501})
_SAFE = "/%:@!$&'()*+,;=~-._?"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {"User-Agent": "casstore", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


@dataclass(frozen=True, slots=True)
class _Found:
    """What a server says about an object."""

    size: int | None
    etag: str | None

    @property
    def volatile(self) -> bool:
        """True if the same words may be said about other bytes."""
        return self.etag is None or self.etag.startswith(("W/", "w/"))


class HttpHandler:
    """Objects by URL. Asks by itself, not through a proxy, without cookies or credentials."""

    schemes = _SCHEMES

    def resolve(self, uri: str, *, checksum: bool, limit: int, access: Access) -> Iterator[Resolved]:
        """See `Handler.resolve`: one object, with the size and ETag the server gives."""
        _check_url(uri)
        if not checksum:
            return iter([Resolved("", None, Pointer(uri, unverified=True))])
        found = _look(uri, access)
        return iter([Resolved("", found.size, Pointer(uri, found.etag, volatile=found.volatile))])

    def open(self, entry: Entry, access: Access) -> BinaryIO:
        """See `Handler.open`."""
        uri = entry.uri or ""
        exchange = _ask("GET", uri, access)
        try:
            found = _found(exchange.response)
            _compare(entry, found)
            return _Body(exchange, found.size, uri)
        except BaseException:
            exchange.close()
            raise

    def check(self, entry: Entry, access: Access) -> bool:
        """See `Handler.check`: compares size and ETag, reads no content."""
        found = _look(entry.uri or "", access)
        _compare(entry, found)
        return not (entry.unverified or found.volatile or entry.etag is None)


def _look(uri: str, access: Access) -> _Found:
    """Size and validator of an object: by HEAD, and by GET where a server does not know HEAD."""
    with _ask("HEAD", uri, access) as exchange:
        if exchange.response.status not in _NO_HEAD:
            return _found(exchange.response)
    with _ask("GET", uri, access) as exchange:
        return _found(exchange.response)


def _compare(entry: Entry, found: _Found) -> None:
    """Raise `ReferenceChangedError` if a server speaks of another object than the one recorded."""
    if entry.unverified:
        return
    uri = shown(entry.uri or "")
    if entry.etag is not None and found.etag != entry.etag:
        raise ReferenceChangedError(f"{uri} has ETag {found.etag}, not {entry.etag}", hint=RECORD_AGAIN)
    if entry.size is not None and found.size is not None and found.size != entry.size:
        raise ReferenceChangedError(f"{uri} has {found.size} bytes, not {entry.size}", hint=RECORD_AGAIN)


def _found(response: http.client.HTTPResponse) -> _Found:
    text = response.getheader("Content-Length", "").strip()
    size = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
    etag = response.getheader("ETag", "").strip()
    # Headers are bytes; those that are no text of any kind cannot be compared later.
    return _Found(size, etag if etag and etag.isprintable() and len(etag) <= 1024 else None)


# --- asking --------------------------------------------------------------------------------------


class _Exchange:
    """One question and its answer."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self.response = response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self.response.close()
        self._connection.close()


def _ask(method: str, uri: str, access: Access) -> _Exchange:
    """The final answer, 200 or that there is no HEAD. Raises what other answers mean."""
    url = uri
    for _ in range(MAX_REDIRECTS + 1):
        exchange = _once(method, url, uri, access)
        status = exchange.response.status
        if status == http.client.OK or (method == "HEAD" and status in _NO_HEAD):
            return exchange
        exchange.close()
        if status not in _REDIRECTS:
            raise _meaning(status, uri)
        url = _next(url, exchange.response.getheader("Location"), uri)
    raise BackendError(f"{shown(uri)} redirects more than {MAX_REDIRECTS} times", hint="give the final URL")


def _next(url: str, location: str | None, uri: str) -> str:
    """Where a redirect leads. Only to the web, and with nothing in it that is not in a URL."""
    try:
        target = urljoin(url, location or "")
        if location and scheme_of(target) in _SCHEMES and "@" not in split(target).netloc:
            return _check_url(target)
    except ValueError:  # ours for a bad URL is one, too
        pass
    scheme = scheme_of(location or "")
    raise BackendError(
        f"{shown(uri)} redirects to {f'the scheme {scheme}' if scheme else 'no place'}",
        hint="only http and https are followed: give the final URL",
    )


def _meaning(status: int, uri: str) -> CasstoreError:
    if status in _GONE:
        return ReferenceMissingError(f"{shown(uri)} is gone (HTTP {status})", hint="log a version without it")
    kind = TransientBackendError if status in {408, 425, 429} or status >= 500 else BackendError
    return kind(f"{shown(uri)} answers HTTP {status}", hint="check the URL; nothing but public objects can be read")


def _once(method: str, url: str, uri: str, access: Access) -> _Exchange:
    parts = split(url)
    host = _host(url)
    path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    kind = _Secure if parts.scheme.lower() == "https" else _Plain
    watch = _Watch(access.timeout)
    with _translated(uri):
        connection = kind(host, parts.port or kind.default_port, access, uri, watch)
        try:
            connection.request(method, path, headers=_HEADERS)
            exchange = _Exchange(connection, connection.getresponse())
            watch.end()
            return exchange
        except BaseException:
            connection.close()
            watch.end()
            raise


def _check_url(uri: str) -> str:
    """A URL that can be asked for. Raises `InvalidInputError`."""
    _host(uri)
    return uri


def _host(uri: str) -> str:
    host = split(uri).hostname
    try:
        name = "" if host is None else host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        name = ""
    if not name or not re.fullmatch(r"[A-Za-z0-9._:%-]+", name):
        raise InvalidInputError(f"{shown(uri)!r} has no host", hint="https://host/path")
    return name


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Errors of sockets, TLS and HTTP as ours."""
    try:
        yield
    except CasstoreError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        what = "no answer in time" if isinstance(error, TimeoutError) else f"{error!s:.200}" or type(error).__name__
        failure = TransientBackendError(
            f"cannot read {shown(uri)}: {what}", hint="check the host and the connection, then run again"
        )
        failure.errno = error.errno if isinstance(error, OSError) else None
        raise failure from None


class _Watch:
    """Ends a connection that has not answered in time. Sockets time out only after silence, not after a trickle."""

    def __init__(self, timeout: float) -> None:
        self._timer = threading.Timer(timeout, self._ring)
        self._timer.daemon = True
        self._sock: socket.socket | None = None
        self._rang = False

    def start(self, sock: socket.socket) -> None:
        """From here on the time counts."""
        self._sock = sock
        self._timer.start()

    def end(self) -> None:
        """The answer is there. Raises `TimeoutError` if it was cut off: its head may look whole."""
        self._timer.cancel()
        if self._rang:
            raise TimeoutError

    def _ring(self) -> None:
        self._rang = True
        assert self._sock is not None
        with suppress(OSError):  # closed already
            # Not the method of a TLS socket: that one is not for two threads.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)


class _Plain(http.client.HTTPConnection):
    """Connects to addresses that were looked up and judged once: a second answer of the name server counts nothing."""

    def __init__(self, host: str, port: int, access: Access, uri: str, watch: _Watch) -> None:
        super().__init__(host, port)
        self._access = access
        self._uri = uri
        self._watch = watch

    def connect(self) -> None:
        self.sock = _connected(self.host, self.port, self._access, self._uri)
        self._watch.start(self.sock)


class _Secure(http.client.HTTPSConnection):
    """As `_Plain`, with the certificate checked against the name."""

    def __init__(self, host: str, port: int, access: Access, uri: str, watch: _Watch) -> None:
        super().__init__(host, port, context=_tls())
        self._access = access
        self._uri = uri
        self._watch = watch

    def connect(self) -> None:
        plain = _connected(self.host, self.port, self._access, self._uri)
        try:
            sock = _tls().wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        self.sock = sock
        self._watch.start(sock)
        sock.do_handshake()


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _connected(host: str, port: int, access: Access, uri: str) -> socket.socket:
    """A socket to the first address of a host that answers, if it may be talked to."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if access.on_private_address != ALLOW:
        for *_, address in found:
            if not is_public(str(address[0])):
                raise RefusedError(
                    f"{shown(uri)} leads to {host}, which has the private address {address[0]}",
                    hint="on_private_address='allow' if the URI can be trusted",
                )
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(access.timeout)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def is_public(text: str) -> bool:
    """True if an address is one of the open internet, also by what is wrapped in it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if any(found is not None and not is_public(str(found)) for found in inner):
            return False
        if address.ipv4_mapped is not None:
            return True
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


class _Body(io.RawIOBase, BinaryIO):
    """The content of an answer, to be read once."""

    def __init__(self, exchange: _Exchange, size: int | None, uri: str) -> None:
        super().__init__()
        self._exchange = exchange
        self._size = size
        self._seen = 0
        self._uri = uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        with _translated(self._uri):
            count = self._exchange.response.readinto(view)
        self._seen += count
        if view and not count and self._size is not None and self._seen < self._size:
            raise TransientBackendError(
                f"{shown(self._uri)}: the connection broke after {self._seen} of {self._size} bytes", hint="run again"
            )
        return count

    def close(self) -> None:
        self._exchange.close()
        super().close()
