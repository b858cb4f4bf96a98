"""A URL gives its picture, or one sentence; never a way into a private network."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from llava_probe.pictures import urls
from tests.encoded import encode, noise, pixels, refusal

PHOTO = encode(noise())


class Handler(BaseHTTPRequestHandler):
    """One path, one way in which a server behaves."""

    def log_message(self, *args) -> None: ...

    def do_GET(self) -> None:
        name, _, rest = self.path.lstrip("/").partition("?")
        try:
            getattr(self, name.replace("-", "_"), self.missing)(rest)
        except OSError:  # the other side hung up
            self.close_connection = True

    def answer(self, status: int = 200, body: bytes = PHOTO, **headers: object) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def missing(self, rest: str) -> None:
        self.answer(404, b"")

    def photo(self, rest: str) -> None:
        self.answer()

    def words(self, rest: str) -> None:
        self.answer(body=b"<html>please log in</html>")

    def nothing(self, rest: str) -> None:
        self.answer(204, b"")

    def to(self, location: str) -> None:
        self.answer(302, b"", Location=location)

    def count(self, number: str) -> None:
        self.answer(301, b"", Location=f"/count?{int(number) - 1}" if int(number) > 1 else "photo")

    def astray(self, rest: str) -> None:
        self.answer(302, b"")

    def until_closed(self, rest: str) -> None:
        self.answer(**{"Content-Length": None})

    def chunked(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (PHOTO[:100], PHOTO[100:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n" if rest != "broken" else b"ff\r\nabc")

    def claims_more(self, rest: str) -> None:
        self.answer(**{"Content-Length": len(PHOTO) + 1000})

    def claims_less(self, rest: str) -> None:
        self.answer(**{"Content-Length": len(PHOTO) // 2})

    def claims_nonsense(self, rest: str) -> None:
        self.answer(**{"Content-Length": "-7"})

    def huge(self, rest: str) -> None:
        self.answer(**{"Content-Length": 10**15})

    def endless(self, rest: str) -> None:
        self.answer(body=b"", **{"Content-Length": None})
        while True:
            self.wfile.write(bytes(65536))

    def endless_chunks(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    def crumbs(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self.wfile.write(b"1\r\nx\r\n" * 20000)

    def crumbled(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.wfile.write(b"".join(b"1\r\n%c\r\n" % byte for byte in PHOTO) + b"0\r\n\r\n")

    def packed(self, rest: str) -> None:
        self.answer(body=gzip.compress(bytes(10**6)), Content_Encoding="gzip")

    def silent(self, rest: str) -> None:
        time.sleep(1)

    def trickle(self, rest: str) -> None:
        self.answer(body=b"", **{"Content-Length": len(PHOTO)})
        self.drip(PHOTO)

    def trickling_headers(self, rest: str) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX-Patience: " + b"x" * 1000)

    def continues(self, rest: str) -> None:
        while True:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.01)

    def drip(self, data: bytes) -> None:
        for place in range(len(data)):
            self.wfile.write(data[place : place + 1])
            time.sleep(0.02)

    def hangs_up(self, rest: str) -> None:
        self.close_connection = True

    def hangs_up_in_the_header(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")

    def gibberish(self, rest: str) -> None:
        self.wfile.write(b"\0\1\2" * 1000 + b"\r\n\r\n")

    def long_header(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")

    def seen(self, rest: str) -> None:
        """A one-row picture whose pixels spell the request."""
        told = f"{self.path} {self.headers['Host']}".encode()
        self.answer(body=encode(np.frombuffer(told, np.uint8)[None]))


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def url(server: ThreadingHTTPServer) -> Callable[[str], str]:
    return lambda path: f"http://127.0.0.1:{server.server_port}/{path}"


PATHS = ["photo", "until-closed", "chunked", "crumbled", "to?/photo", "to?photo", "to?//127.0.0.1:{}/photo"]
PATHS += ["to?/to?/to?/photo"]


@pytest.mark.parametrize("path", [*PATHS, "count?5"])
def test_a_picture_is_read_from_a_url(server, url, path: str) -> None:
    assert np.array_equal(pixels(url(path.format(server.server_port)), allow_private=True), noise())


def test_a_url_is_asked_for_as_it_was_written(server, url) -> None:
    asked = url("seen?a=%2F&b=ü d&c[]=1#part")
    told = bytes(pixels(asked, allow_private=True)[0, :, 0]).decode()
    assert told == f"/seen?a=%2F&b=%C3%BC%20d&c[]=1 127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no-such-page", "404"),
        ("nothing", "204"),
        ("astray", "302"),
        ("words", "not a picture"),
        ("count?6", "redirects"),
        ("to?file:///etc/hostname", "file"),
        ("to?ftp://127.0.0.1/a.png", "ftp"),
        ("to?data:image/png;base64,AAAA", "data"),
        ("to?http://[", "cannot"),
        ("claims-less", "truncated"),
        ("chunked?broken", "cannot be read"),
        ("huge", "larger"),
        ("hangs-up", "cannot be read"),
        ("hangs-up-in-the-header", "picture"),
        ("gibberish", "cannot be read"),
        ("long-header", "cannot be read"),
    ],
)
def test_a_server_that_misbehaves_is_refused_in_a_sentence(url, path: str, words: str) -> None:
    assert words in refusal(url(path), allow_private=True)


def test_a_body_shorter_than_claimed_is_refused(url) -> None:
    message = refusal(url("claims-more"), allow_private=True)
    assert "cut short" in message or "IncompleteRead" in message  # whether Python or we notice first


def test_a_nonsensical_length_is_not_believed(url) -> None:
    assert np.array_equal(pixels(url("claims-nonsense"), allow_private=True), noise())


@pytest.mark.parametrize("path", ["endless", "endless-chunks", "photo"])
def test_the_size_limit_holds_whatever_the_server_claims(url, path: str, monkeypatch) -> None:
    monkeypatch.setattr(urls, "MAX_BYTES", len(PHOTO) - 1)
    assert "larger" in refusal(url(path), allow_private=True)
    if path == "photo":
        monkeypatch.setattr(urls, "MAX_BYTES", len(PHOTO))
        assert np.array_equal(pixels(url(path), allow_private=True), noise())


def test_a_chunk_of_one_byte_takes_one_byte(url, monkeypatch) -> None:
    monkeypatch.setattr(urls, "MAX_BYTES", 60_000)
    tracemalloc.start()
    try:
        assert "larger" in refusal(url("crumbs"), allow_private=True)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_body_that_came_packed_is_not_unpacked(url) -> None:
    assert "came packed (gzip)" in refusal(url("packed"), allow_private=True)


@pytest.mark.parametrize(
    ("path", "wait", "total"),
    [
        ("silent", 0.2, 9.0),
        ("silent", 9.0, 0.2),
        ("trickle", 0.2, 0.4),
        ("trickling-headers", 0.2, 0.4),
        ("continues", 0.2, 0.4),
        ("to?/trickle", 0.2, 0.4),
    ],
)
def test_a_slow_server_cannot_hold_us(url, path: str, wait: float, total: float, monkeypatch) -> None:
    monkeypatch.setattr(urls, "WAIT_SECONDS", wait)
    monkeypatch.setattr(urls, "TOTAL_SECONDS", total)
    started = time.perf_counter()
    message = refusal(url(path), allow_private=True)
    assert time.perf_counter() - started < 0.9
    assert "timed out" in message or "longer than" in message


def test_nobody_listening_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        assert "refused" in refusal(f"http://127.0.0.1:{taken.getsockname()[1]}/a.png", allow_private=True)


def test_the_proxies_of_the_environment_are_not_used(url, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert np.array_equal(pixels(url("photo"), allow_private=True), noise())


def test_no_secret_of_a_url_is_repeated(url) -> None:
    with_password = url("photo").replace("http://", "http://user:sesame@")
    assert "password" in refusal(with_password, allow_private=True)
    for secret in (
        with_password,
        url("no-such-page?key=sesame"),
        url("to?/no-such-page?key=sesame"),
        "http://user:sesame/x@host/a.png",
        "http://user:sesame@ho℀st/a.png",
        "ftp://user:sesame@host/a.png",
    ):
        assert "sesame" not in refusal(secret, allow_private=True)


# --- who may be asked -------------------------------------------------------------------------------------

PUBLIC = "93.184.215.14"


@pytest.fixture
def internet(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """One public host, served by the loopback server: names map to answers, and what is dialled is noted."""
    net: dict[str, list] = {"looked up": [], "dialled": []}
    look_up, dial = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host, port, *args, **kwargs):
        if host in net:
            net["looked up"].append(host)
            answers = net[host] if len(net[host]) == 1 else [net[host].pop(0)]
            return [entry for answer in answers[0] for entry in look_up(answer, port, *args, **kwargs)]
        return look_up(host, port, *args, **kwargs)

    def create_connection(address, *args, **kwargs):
        net["dialled"].append(address[0])
        assert address[0] in (PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "127.0.0.1")
        if ":" in address[0]:
            raise OSError("no route to host")
        return dial(("127.0.0.1", server.server_port), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    net["public.example"] = [[PUBLIC]]
    return net


def test_a_public_address_is_asked(internet) -> None:
    assert np.array_equal(pixels("http://public.example/photo"), noise())
    assert internet["dialled"] == [PUBLIC]


def test_the_next_address_of_a_host_is_tried(internet) -> None:
    internet["both.example"] = [["2606:2800:21f:cb07:6820:80da:af6b:8b2c", PUBLIC]]
    assert np.array_equal(pixels("http://both.example/photo"), noise())
    assert len(internet["dialled"]) == 2


PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::1]",
    "[fec0::1]",
    "[fd00::1]",
    "[ff02::1]",
    "2130706433",
    "0x7f.1",
    "localhost",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_unless_allowed(internet, url, host: str) -> None:
    assert "allow_private" in refusal(f"http://{host}/photo")
    assert internet["dialled"] == []
    assert "allow_private" in refusal(f"http://public.example/to?http://{host}/photo")
    assert internet["dialled"] == [PUBLIC]


def test_a_name_with_one_private_address_among_public_ones_is_refused(internet) -> None:
    internet["mixed.example"] = [[PUBLIC, "10.0.0.1"]]
    assert "10.0.0.1" in refusal("http://mixed.example/photo")
    assert internet["dialled"] == []


def test_the_address_that_was_checked_is_the_one_that_is_dialled(internet) -> None:
    """DNS rebinding: the second look-up of the name would lead to this machine."""
    internet["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert np.array_equal(pixels("http://rebind.example/photo"), noise())
    assert internet["looked up"] == ["rebind.example"]
    assert internet["dialled"] == [PUBLIC]


def test_every_hop_is_looked_up_and_checked_anew(internet) -> None:
    internet["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert "127.0.0.1" in refusal("http://rebind.example/to?http://rebind.example/photo")
    assert internet["dialled"] == [PUBLIC]


# --- https ------------------------------------------------------------------------------------------------


def test_https_to_a_server_that_does_not_speak_it_is_a_sentence(url) -> None:
    assert "SSL" in refusal(url("photo").replace("http:", "https:"), allow_private=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https_needs_a_certificate_of_that_host_that_is_trusted(tmp_path: Path, monkeypatch) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *args: None  # type: ignore[method-assign]
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"https://localhost:{server.server_port}/photo"
        assert "certificate" in refusal(url, allow_private=True)
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert np.array_equal(pixels(url, allow_private=True), noise())
        told = bytes(pixels(url.replace("photo", "seen"), allow_private=True)[0, :, 0]).decode()
        assert told == f"/seen localhost:{server.server_port}"
        assert "certificate" in refusal(url.replace("localhost", "127.0.0.1"), allow_private=True)
        monkeypatch.setattr(urls, "TOTAL_SECONDS", 0.4)
        told = refusal(url.replace("photo", "trickle"), allow_private=True)
        assert "timed out" in told or "took longer" in told  # whichever clock comes first
        server.shutdown()
