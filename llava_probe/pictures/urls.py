"""A picture's bytes from a URL, without becoming somebody's way into an internal network.

A URL in a data set or a chat is written by a stranger. Only http and https are opened, the name is looked up once and
every address checked, the address that was checked is the one connected to, every redirect passes the same gate, and
one deadline and one size limit hold whatever the server claims. Proxies of the environment are not used: where those
connect to cannot be checked.
"""

from __future__ import annotations

import contextlib
import io
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from llava_probe.errors import BadImage, refusing, shortened

if TYPE_CHECKING:  # at run time only inside the functions that need them: this import stays light
    import http.client
    import socket

MAX_BYTES = 50_000_000  # several times a large camera's JPEG, and harmless in memory
MAX_REDIRECTS = 5  # real hosts need one or two: http to https, then to a storage host
WAIT_SECONDS = 10.0  # the longest silence of a server: to connect, to shake hands, between two packets
TOTAL_SECONDS = 30.0  # for one URL with its redirects (the system's name look-up keeps its own time)

_PIECE = 65536  # bytes at a time: http.client's own read keeps every chunk as an object, 90 bytes for one of one


def download(url: str, allow_private: bool = False) -> bytes:
    """What the URL holds.

    Args:
        url: http or https.
        allow_private: also addresses that are not public: of this machine, of its network.

    Raises:
        BadImage: another scheme, a private address, an answer that is no 200, is too large, too slow or cut short.
    """
    deadline = time.monotonic() + TOTAL_SECONDS
    for _ in range(1 + MAX_REDIRECTS):
        parts = _split(url)
        name = _without_query(parts)
        with (
            refusing(f"{name} cannot be read (proxies are not used)"),
            contextlib.closing(_connect(parts, allow_private, deadline)) as sock,
        ):
            response = _get(parts, _Wire(sock, deadline))
            location = response.getheader("Location")
            if location is None or response.status not in (301, 302, 303, 307, 308):
                return _body(response, name)
            url = urljoin(url, location)
    raise BadImage(f"{name} redirects yet again, after {MAX_REDIRECTS} redirects; pass the final address")


def _split(url: str) -> SplitResult:
    """A URL that may be asked for. What is malformed is not repeated: it may be a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadImage("the URL is malformed: its host or port cannot be read") from None
    if parts.scheme not in ("http", "https"):
        scheme = shortened(parts.scheme)
        raise BadImage(f"a {scheme}: URL is not opened, only http, https and data; pass a file by its path")
    if not host:
        raise BadImage("the URL names no host; expected 'https://host/picture.jpg'")
    if "@" in parts.netloc:
        raise BadImage("a URL with a user name or password is not opened; download it and pass the bytes")
    return parts


def _connect(parts: SplitResult, allow_private: bool, deadline: float) -> socket.socket:
    """Looks the name up once and connects to an address that was checked, so no second answer can differ."""
    import socket
    import ssl

    host = str(parts.hostname)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if not allow_private and not _is_public(address):
            where = f"{_without_query(parts)} leads to {address}, which is not a public address"
            raise BadImage(f"{where}; pass allow_private=True if that is meant")
    for address in addresses:
        try:
            sock = socket.create_connection((address, port), _patience(deadline))
        except OSError:
            if address is addresses[-1]:
                raise
            continue  # a host with IPv6 and IPv4 may answer on one only
        break
    if parts.scheme == "http":
        return sock
    sock.settimeout(_patience(deadline))
    return ssl.create_default_context().wrap_socket(sock, server_hostname=host)


def _is_public(address: str) -> bool:
    import ipaddress

    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local:
            return False
        ip = ip.ipv4_mapped or ip.sixtofour or ip  # IPv4 in disguise; its other disguises are reserved
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _get(parts: SplitResult, wire: _Wire) -> http.client.HTTPResponse:
    import http.client

    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(str(parts.hostname), parts.port)
    connection.sock = wire  # type: ignore[assignment]
    harmless = "/%:@!$&'()*+,;=~?[]"
    target = quote(parts.path or "/", harmless) + (f"?{quote(parts.query, harmless)}" if parts.query else "")
    connection.request("GET", target, headers={"User-Agent": "llava_probe", "Connection": "close"})
    return connection.getresponse()


def _body(response: http.client.HTTPResponse, name: str) -> bytes:
    if response.status != 200:
        raise BadImage(f"{name} answered {response.status} {shortened(response.reason)}, no picture")
    packed = response.getheader("Content-Encoding") or "identity"
    if packed.strip().lower() != "identity":
        raise BadImage(f"{name} came packed ({shortened(packed)}), though not asked for so; download it, pass the path")
    claimed = response.length or 0
    data, piece = bytearray(), memoryview(bytearray(_PIECE))
    while max(claimed, len(data)) <= MAX_BYTES and (count := response.readinto(piece)):
        data += piece[:count]
    if max(claimed, len(data)) > MAX_BYTES:
        raise BadImage(f"{name} is larger than {MAX_BYTES:,} bytes; download it and pass the path")
    if len(data) < claimed:
        raise BadImage(f"{name} was cut short: {len(data):,} of {claimed:,} bytes arrived")
    return bytes(data)


class _Wire(io.RawIOBase):
    """A socket as http.client sees it, with one deadline over every wait: bytes that trickle gain no time."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_patience(self._deadline))
        self._sock.sendall(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_patience(self._deadline))
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """Left to ``download``: http.client hangs up before the body is read."""


def _patience(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"it took longer than {TOTAL_SECONDS:g} seconds")
    return min(WAIT_SECONDS, left)


def shown(url: str) -> str:
    """The URL as a message may repeat it.

    Raises:
        BadImage: it is malformed.
    """
    return _without_query(_split(url))


def _without_query(parts: SplitResult) -> str:
    """Without the query, which may be a signature or a key."""
    return shortened(f"{parts.scheme}://{parts.netloc}{parts.path}")
