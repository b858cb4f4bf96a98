"""The door of the running app: what it lets in, asked over real sockets as a stranger would."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import socket
from urllib.parse import urlsplit

import pytest

from llava_probe import tiny
from llava_probe.view.app.gate import OWNER, Gate
from tests.view.app.in_a_thread import run_apart


class Stranger:
    """A client with a cookie of its own."""

    def __init__(self, app):
        self.place = urlsplit(app.url).netloc
        self.cookie = ""
        answer, _ = self.ask("GET", "/")
        self.cookie = answer.getheader("set-cookie").partition(";")[0]

    def ask(self, method, path, body=None, **headers):
        wire = http.client.HTTPConnection(self.place, timeout=60)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        wire.request(method, path, body, {"cookie": self.cookie, **told})
        answer = wire.getresponse()
        said = answer.read()
        wire.close()
        return answer, said

    def upload(self, data, **headers):
        answer, said = self.ask("POST", "/llava-probe/picture", data, **headers)
        return answer.status, json.loads(said) if answer.status == 200 else said.decode()


@pytest.fixture(scope="module")
def stranger(app):
    return Stranger(app)


@pytest.fixture(scope="module")
def photograph():
    file = io.BytesIO()
    tiny.scene(34).image.save(file, "PNG")
    return file.getvalue()


def test_the_page_is_there_with_its_policy(stranger):
    answer, said = stranger.ask("GET", "/")
    assert answer.status == 200 and b"gradio-app" in said
    policy = answer.getheader("content-security-policy")
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "http" not in policy  # nowhere else is allowed


CLOSED = [
    "GET /gradio_api/file=/etc/passwd",
    "GET /gradio_api/file=http://127.0.0.1:1/",
    "GET /gradio_api/file//etc/passwd",
    "GET /gradio_api/proxy=http://127.0.0.1:1/",
    "GET /gradio_api/deep_link?session_hash=a",
    "GET /gradio_api/runs",
    "GET /gradio_api/stream/a/0/0/playlist.m3u8",
    "GET /gradio_api/openapi.json",
    "GET /monitoring",
    "GET /docs",
    "GET /static/../../etc/passwd",
    "GET /static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "GET /static/..%2f..%2f..%2fetc/passwd",
    "GET /assets//etc/passwd",
    "GET /llava-probe/../../etc/passwd",
    "GET /llava-probe/picture/..%2f..%2frun.json",
    "GET /llava-probe/run/..%2f..%2f/payload",
    "GET /llava-probe/run/a/export/..%2frun.json",
    "POST /gradio_api/upload",
    "POST /gradio_api/component_server",
    "POST /gradio_api/run/asked",
    "POST /gradio_api/call/asked",
    "POST /gradio_api/vibe-edit",
    "POST /gradio_api/process_recording",
    "POST /login",
    "PUT /llava-probe/picture",
    "DELETE /",
]


@pytest.mark.parametrize("line", CLOSED)
def test_what_the_page_does_not_need_is_closed(stranger, line):
    answer, said = stranger.ask(*line.split(), body=b"{}" if line.startswith("P") else None)
    assert answer.status in (404, 422)  # not open, or a name that is none of ours
    assert b"root:" not in said and len(said) < 200


def test_a_picture_comes_back_to_its_owner_alone(app, stranger, photograph):
    status, found = stranger.upload(photograph)
    assert status == 200 and (found["width"], found["height"]) == (336, 336)
    answer, said = stranger.ask("GET", "/" + found["preview"])
    assert answer.status == 200 and answer.getheader("content-type") == "image/jpeg" and said[:2] == b"\xff\xd8"
    assert answer.getheader("cache-control") == "no-store"
    other, told = Stranger(app).ask("GET", "/" + found["preview"])
    assert other.status == 422 and b"not kept any more" in told
    nobody = stranger.ask("GET", "/" + found["preview"], cookie="")[0]
    assert nobody.status == 422


REFUSED = {
    "a text called .png": (b"I am a text.", 422, "not a picture"),
    "nothing": (b"", 422, "no picture"),
    "more bytes than are taken": (b"\x89PNG" + bytes(2_100_000), 413, "larger than the 2 MB"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_no_picture_is_refused_in_a_sentence(stranger, name):
    data, status, told = REFUSED[name]
    found, said = stranger.upload(data, content_disposition='attachment; filename="../../photo.png"')
    assert found == status and told in said and said.count("\n") <= 1


def raw(app, head, parts=()):
    """What is answered to bytes as they are: a head, and a body that is sent while it is taken."""
    place = urlsplit(app.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as wire:
        wire.sendall(head.replace("\n", "\r\n").encode())
        sent = 0
        try:
            for part in parts:
                wire.sendall(part)
                sent += len(part)
        except OSError:
            pass
        said = b""
        try:
            while data := wire.recv(65536):
                said += data
        except OSError:
            pass
        return said.decode("latin-1"), sent


def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(app):
    place = urlsplit(app.url).netloc
    head = f"POST /llava-probe/picture HTTP/1.1\nhost: {place}\ncontent-length: 1000000000\n\n"
    said, _ = raw(app, head)
    assert said.startswith("HTTP/1.1 413") and "larger than the 2 MB" in said


def test_a_body_that_does_not_say_its_length_is_refused_while_it_is_sent(app):
    place = urlsplit(app.url).netloc
    head = f"POST /llava-probe/picture HTTP/1.1\nhost: {place}\ntransfer-encoding: chunked\n\n"
    part = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    said, sent = raw(app, head, (part for _ in range(16_000)))  # a gigabyte, if it were taken
    assert sent < 100_000_000
    assert not said or said.startswith("HTTP/1.1 413")  # a sender who does not listen may miss it


def test_a_large_question_is_refused(app, stranger):
    answer, _ = stranger.ask("POST", "/gradio_api/queue/join", b'{"data": ["' + b"x" * 300_000 + b'"]}')
    assert answer.status == 413


def test_it_is_called_by_its_own_names_only(app, stranger):
    port = urlsplit(app.url).port
    for name in ("127.0.0.1", "localhost", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert stranger.ask("GET", "/config", host=name)[0].status == 200
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "", "["):
        answer, said = stranger.ask("GET", "/config", host=name)
        assert answer.status == 421 and b"this app is not called" in said


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
    {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=[" ".join(each.values()) for each in FOREIGN])
def test_another_sites_page_is_refused(stranger, photograph, headers):
    status, said = stranger.upload(photograph, **headers)
    assert status == 403 and "own page" in said
    assert stranger.ask("POST", "/gradio_api/queue/join", b"{}", **headers)[0].status == 403


def test_a_link_to_the_page_is_followed(stranger, app):
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert stranger.ask("GET", "/", **link)[0].status == 200
    assert stranger.ask("GET", "/", origin=app.url.rstrip("/"))[0].status == 200


@pytest.fixture
def guarded():
    """A gate with a password before an application that says whose request it is."""

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope[OWNER].encode()})

    return Gate(inner, None, {"ann": "s:cret", "bob": "pass"})


def answered(gate, headers=(), path="/", kind="http"):
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    told = [(name.encode(), value.encode()) for name, value in {"host": "x", **dict(headers)}.items()]
    run_apart(gate({"type": kind, "method": "GET", "path": path, "headers": told}, receive, send))
    return sent


def basic(pair):
    return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


@pytest.mark.parametrize("pair", ["ann:s:cret", "bob:pass"])
def test_the_right_password_opens(guarded, pair):
    assert answered(guarded, basic(pair))[0]["status"] == 200


@pytest.mark.parametrize("pair", ["", "ann:", "ann:pass", "carl:s:cret", ":", "ann"], ids=lambda pair: pair or "none")
def test_any_other_does_not(guarded, pair, monkeypatch):
    monkeypatch.setattr("llava_probe.view.app.gate._SLOWLY", 0)
    sent = answered(guarded, basic(pair) if pair else {})
    assert sent[0]["status"] == 401 and b"www-authenticate" in dict(sent[0]["headers"])


def test_no_door_stands_open_beside_the_password(guarded):
    for path in ("/", "/config", "/llava-probe/component.js", "/gradio_api/heartbeat/a", "/static/a"):
        assert answered(guarded, path=path)[0]["status"] == 401
    assert answered(guarded, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_a_browser_keeps_its_name_and_cannot_choose_one():
    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope[OWNER].encode()})

    gate = Gate(inner, None)
    start, body = answered(gate)
    given = dict(start["headers"])[b"set-cookie"].decode()
    assert re.fullmatch(rf"{gate.cookie}=[\w-]{{43}}; Path=/; HttpOnly; SameSite=Lax", given)
    name = body["body"].decode()
    start, body = answered(gate, {"cookie": f"{gate.cookie}={name}"})
    assert body["body"].decode() == name and b"set-cookie" not in dict(start["headers"])
    for forged in ("", "short", "x" * 400, f'"{name}', f"{name[:-1]}\x7f"):
        assert answered(gate, {"cookie": f"{gate.cookie}={forged}"})[1]["body"].decode() != forged
