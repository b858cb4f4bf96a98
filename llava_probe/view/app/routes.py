"""The app's own routes, beside gradio's: pictures in, what the page component shows and the exports out.

    POST /llava-probe/picture                    a picture as the body, or ?example=34: its token
    GET  /llava-probe/picture/TOKEN              a small JPEG of it
    GET  /llava-probe/example/34                 likewise
    GET  /llava-probe/run/TOKEN/payload          what the component shows
    GET  /llava-probe/run/TOKEN/export/page      run.html, and so on
    GET  /llava-probe/component.js

Whatever a user may not have, or nobody has, is the same sentence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from llava_probe import tiny
from llava_probe.errors import ProbeError
from llava_probe.view.app.desk import EXAMPLES, Desk
from llava_probe.view.app.exports import NAMES
from llava_probe.view.app.gate import OWN_ROUTES, OWNER
from llava_probe.view.app.runs import PAYLOAD
from llava_probe.view.app.uploads import Upload, as_jpeg

Endpoint = Callable[[Request], Awaitable[Response]]

_THUMBNAIL = 192


def routes(desk: Desk, component: str) -> list[Route]:
    """The routes over one desk; ``component`` is the script of the page component."""

    async def take(request: Request) -> Response:
        owner = request.scope[OWNER]
        if "example" in request.query_params:
            number = request.query_params["example"]
            item = await desk.example(owner, int(number) if number.isdecimal() else -1)
        else:
            item = await desk.upload(owner, await request.body())
        found: Upload = item.about
        shown = f"llava-probe/picture/{item.token}"
        return JSONResponse({"token": item.token, "width": found.size[0], "height": found.size[1], "preview": shown})

    async def preview(request: Request) -> Response:
        item = desk.store.get(request.scope[OWNER], request.path_params["token"], "picture")
        return Response((item.folder / "preview").read_bytes(), media_type="image/jpeg")

    async def example(request: Request) -> Response:
        number = request.path_params["number"]
        if number not in EXAMPLES:
            return PlainTextResponse("there is no such example", HTTPStatus.NOT_FOUND)
        return Response(_thumbnail(number), media_type="image/jpeg")

    async def payload(request: Request) -> Response:
        item = desk.store.get(request.scope[OWNER], request.path_params["token"], "run")
        return FileResponse(item.folder / PAYLOAD, media_type="application/octet-stream")

    async def export(request: Request) -> Response:
        kind = request.path_params["kind"]
        _, path = await desk.export(request.scope[OWNER], request.path_params["token"], kind)
        name, media_type = NAMES[kind]
        return FileResponse(path, media_type=media_type, filename=name)  # as an attachment: never shown from here

    async def script(request: Request) -> Response:
        return Response(component, media_type="text/javascript")

    return [
        Route(f"{OWN_ROUTES}picture", _told(take), methods=["POST"]),
        Route(f"{OWN_ROUTES}picture/{{token}}", _told(preview)),
        Route(f"{OWN_ROUTES}example/{{number:int}}", _told(example)),
        Route(f"{OWN_ROUTES}run/{{token}}/payload", _told(payload)),
        Route(f"{OWN_ROUTES}run/{{token}}/export/{{kind}}", _told(export)),
        Route(f"{OWN_ROUTES}component.js", script),
    ]


def _told(endpoint: Endpoint) -> Endpoint:
    """Errors of ours as their sentences."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ProbeError as error:
            return PlainTextResponse(str(error), HTTPStatus.UNPROCESSABLE_ENTITY)
        except (ClientDisconnect, FileNotFoundError):
            return PlainTextResponse("this is not kept any more; ask again", HTTPStatus.GONE)

    return answer


@lru_cache
def _thumbnail(number: int) -> bytes:
    picture = tiny.scene(number).image
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return as_jpeg(picture)
