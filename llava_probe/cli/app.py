"""``llava-probe app``: one model in the browser, to ask about pictures and to explore its answers."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from llava_probe.cli.options import ModelOptions
from llava_probe.errors import BadInput
from llava_probe.escaping import visible


def app(
    model: ModelOptions,
    host: Annotated[str, typer.Option(help="Where to listen; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The first free one from 7860 on if left.")] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            envvar="LLAVA_PROBE_AUTH",
            metavar="USER:PASSWORD|FILE",
            help="Who may come in: a name and a password, or a file with such a line for each.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A name by which it is called besides, behind a proxy; may be repeated.")
    ] = None,
    max_megabytes: Annotated[float, typer.Option(help="Of an uploaded picture.", min=0.1)] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Of an uploaded picture.", min=0.1, max=85)] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer.", min=1, max=4096)] = 256,
) -> None:
    """Serve the app: upload a picture, ask, watch the words arrive, see where the model looked, cut a part out.

    It listens on this machine alone. Where others can reach it (--host 0.0.0.0, or a proxy's --name), it asks for a
    password: --auth. It speaks HTTP; put a proxy with HTTPS before it where the network is not yours.
    """
    users = read_users(auth)
    from llava_probe.view.app.serve import start
    from llava_probe.view.app.uploads import UploadLimits

    limits = UploadLimits(max_megabytes, max_megapixels, max_new_tokens)
    typer.echo("Loading the model ...", err=True)
    named = tuple(each.lower() for each in name or ())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and nothing is left behind
    with start(model.model, model.settings, host=host, port=port, names=named, users=users, limits=limits) as running:
        typer.echo(f"{visible(running.model)}\n\n  {running.url}\n\nCtrl-C ends it.")
        running.wait()


def read_users(auth: str | None) -> dict[str, str]:
    """Names and passwords, of one pair or of a file of them.

    Raises:
        BadInput: a line without a name, a colon and a password, or no file of that name.
    """
    if auth is None:
        return {}
    lines = [auth]
    if Path(auth).is_file():
        read = Path(auth).read_text(encoding="utf-8").splitlines()
        lines = [line.strip() for line in read if line.strip() and not line.startswith("#")]
        if not lines:
            raise BadInput(f"{auth} is empty; --auth takes a file of lines user:password")
    elif ":" not in auth:
        raise BadInput("--auth takes user:password, or a file of such lines; what was given is neither")
    users = {}
    for line in lines:
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise BadInput("--auth takes user:password, each of them at least a letter long")
        users[user] = password
    return users
