"""The door of the app: an ASGI layer around everything, which lets in only what the app's own page needs.

gradio brings some eighty routes: uploads that all users share, a proxy, any file of its cache, links that restore other
people's state. None of them is needed here, so the list is of what is open (``_OPEN``), not of what is closed. Before
that come whose name the app is called by (a page elsewhere may let its own name lead to this machine: DNS rebinding),
the password where one is set, and whether the request comes from the app's own page. Bodies have a limit that holds
before they are read and while they are. Each browser gets a cookie of its own, by which ``store.py`` knows it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from llava_probe.view.app.uploads import UploadLimits, too_large

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where the browser's name stands in a request's scope.
OWNER = "llava_probe.owner"
#: What our own routes begin with.
OWN_ROUTES = "/llava-probe/"
#: Names by which this machine calls itself.
LOOPBACK = ("localhost", "127.0.0.1", "::1")

#: What the page needs of gradio, by method.
_OPEN = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)(/\w[\w. -]*)+"
        r"|/gradio_api/(info|theme\.css|startup-events|queue/data|heartbeat/\w+|app_id)/?"
        rf"|{OWN_ROUTES}[\w-][\w.-]*(/[\w-][\w.-]*)*"
    ),
    "POST": re.compile(rf"/gradio_api/(queue/join|cancel|reset)/?|{OWN_ROUTES}picture"),
}
_OPEN["HEAD"] = _OPEN["GET"]
#: Bytes of what is not a picture: settings and a question.
_SMALL = 200_000
#: Seconds before a wrong password is told.
_SLOWLY = 0.5

#: The page runs its own scripts and asks nobody else; gradio builds its templates by ``Function``.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'none'; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class _Refusal(Exception):
    """A request that is not let in: a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


@dataclass
class Gate:
    """The layer. ``inner`` is what stands behind it.

    Attributes:
        names: by which the app may be called; None: by any (then a password is what keeps others out).
        users: names and passwords; empty: nobody is asked.
        limits: of uploads.
        cookie: its name; another for each app, since cookies do not know of ports.
    """

    inner: Application
    names: Collection[str] | None = LOOPBACK
    users: Mapping[str, str] = field(default_factory=dict)
    limits: UploadLimits = field(default_factory=UploadLimits)
    cookie: str = field(default_factory=lambda: f"llava-probe-{secrets.token_hex(4)}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with a sentence."""
        if scope["type"] == "lifespan":
            return await self.inner(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_name(headers)
            await self._check_password(headers)
            _check_open(scope)
            _check_own_page(scope, headers)
            passed = _Passed(scope, receive, send, self._most(scope, headers), self._owner(headers), self.cookie)
        except _Refusal as refusal:
            too_much = refusal.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            return await _refuse(refusal, send, receive if too_much else None)
        await self.inner(scope, passed.receive, passed.send)

    def _most(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, _Refusal]:
        """How many bytes of a body are taken, and what is said of more.

        Raises:
            _Refusal: it says that it is longer.
        """
        picture = scope["path"] == f"{OWN_ROUTES}picture"
        most = self.limits.bytes if picture else _SMALL
        said = too_large(self.limits) if picture else "this request is too large"
        refusal = _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said, {"connection": "close"})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise refusal
        return most, refusal

    def _check_name(self, headers: Mapping[str, str]) -> None:
        name = _host(headers.get("host", ""))
        if self.names is not None and name not in self.names:
            raise _Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this app is not called {name!r}; open it as http://127.0.0.1, or start it with --name {name}",
            )

    async def _check_password(self, headers: Mapping[str, str]) -> None:
        if not self.users:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        name = password = ""
        if scheme.lower() == "basic":
            try:
                name, _, password = base64.b64decode(given, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                name = ""
        right = self.users.get(name, secrets.token_hex(32))
        if not secrets.compare_digest(right.encode(), password.encode()) or name not in self.users:
            if given:
                await asyncio.sleep(_SLOWLY)
            asked = {"www-authenticate": 'Basic realm="llava_probe", charset="UTF-8"'}
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "a name and a password are needed", asked)

    def _owner(self, headers: Mapping[str, str]) -> str | None:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return None
        return found.value if found is not None and re.fullmatch(r"[\w-]{43}", found.value) else None


def _check_open(scope: Scope) -> None:
    allowed = _OPEN.get(scope["method"])
    if allowed is None or not allowed.fullmatch(scope["path"]):
        raise _Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")


def _check_own_page(scope: Scope, headers: Mapping[str, str]) -> None:
    """Refuse what another site's page asks for; a link from there to the app's page is no harm."""
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        foreign = foreign or not (opened and scope["path"] == "/" and scope["method"] == "GET")
    if foreign:
        raise _Refusal(HTTPStatus.FORBIDDEN, "only the app's own page may ask this; another site's page tried to")


class _Passed:
    """A request that was let in: its body is counted while it is read, and its answer gets our headers."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        most: tuple[int, _Refusal],
        known: str | None,
        cookie: str,
    ) -> None:
        self._receive, self._send, self._path = receive, send, scope["path"]
        self._left, self._refusal = most
        self._begun = self._over = False
        scope[OWNER] = known or secrets.token_urlsafe(32)
        self._cookie = "" if known else f"{cookie}={scope[OWNER]}; Path=/; HttpOnly; SameSite=Lax"

    async def receive(self) -> Message:
        """The next part of the body; a body that is too long ends here, with an answer."""
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left >= 0:
            return message
        if not self._begun:
            self._begun = self._over = True
            await _refuse(self._refusal, self._send, self._receive)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """What is answered, unless that was done."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._begun = True
            own = dict(_HEADERS)
            if self._cookie and self._path == "/":
                own["set-cookie"] = self._cookie
            if self._path.startswith(OWN_ROUTES):
                own["cache-control"] = "no-store"
            message["headers"] = [*message.get("headers", ()), *_encoded(own)]
        await self._send(message)


async def _refuse(refusal: _Refusal, send: Send, receive: Receive | None = None) -> None:
    """Answer with the sentence; ``receive`` of a body that goes on, since who still sends may not have listened yet."""
    body = f"{refusal.sentence}\n".encode()
    told = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **_HEADERS}
    headers = _encoded({**told, **refusal.headers})
    await send({"type": "http.response.start", "status": int(refusal.status), "headers": headers})
    await send({"type": "http.response.body", "body": body[:-1], "more_body": True})
    if receive is not None:
        await _let_pass(receive)
    await send({"type": "http.response.body", "body": body[-1:]})


async def _let_pass(receive: Receive, most: int = 32_000_000, silence: float = 1.0) -> None:
    """Throw away what still comes, as long as it is not much: closing at once would take the answer back."""
    with suppress(TimeoutError):
        while most > 0:
            message = await asyncio.wait_for(receive(), silence)
            most -= len(message.get("body", b""))
            if not message.get("more_body"):
                return


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


def _host(given: str) -> str:
    """The name of ``name:port`` or ``[::1]:port``."""
    return (re.sub(r":\d*$", "", given) if not given.endswith("]") else given).strip("[]").lower().rstrip(".")
