"""One HTML file that opens anywhere: the component, its parcel, and a policy under which nothing else can run.

The policy names the two scripts and the style by their hashes; whatever else a stranger's text might smuggle in is not
run, and nothing is fetched. The parcel lies in the page as base64, in which nothing can end a tag.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from llava_probe.errors import BadInput
from llava_probe.escaping import in_html

_COMPONENT = Path(__file__).parent / "component.js"

_MOUNT = (
    'llavaProbe.mount(document.getElementById("page"),document.getElementById("parcel").textContent.trim(),{link:true})'
)
_STYLE = "body{margin:0;background:Canvas}:root{color-scheme:light dark}noscript{display:block;padding:1em;font-family:sans-serif}"


@cache
def script() -> str:
    """The page component as one classic script, which defines ``globalThis.llavaProbe``.

    Raises:
        BadInput: a checkout in which it was not built.
    """
    if not _COMPONENT.exists():
        raise BadInput(f"{_COMPONENT.name} is not there: `make web` builds it (the released package has it)")
    return _COMPONENT.read_text(encoding="utf-8").strip()


def document(parcel: bytes, title: str, plain: str) -> str:
    """The page of a parcel.

    Args:
        parcel: what ``payload`` made.
        title: of the window.
        plain: what is there to read where no script runs, of any origin.
    """
    policy = (
        f"default-src 'none'; script-src {_hash(script())} {_hash(_MOUNT)}; style-src {_hash(_STYLE)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{in_html(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            '<main id="page"></main>',
            f"<noscript>{in_html(plain)}</noscript>",
            f'<script type="application/octet-stream" id="parcel">{as_text(parcel)}</script>',
            f"<script>{script()}</script>",
            f"<script>{_MOUNT}</script>",
            "</body>",
            "</html>",
            "",
        )
    )


def as_text(parcel: bytes) -> str:
    """A parcel in base64."""
    return base64.b64encode(parcel).decode("ascii")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
