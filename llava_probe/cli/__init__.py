"""The command line, one verb a file: ``llava-probe demo``, ``run``, ``attribute``, ``check`` ...

Nothing heavy is imported before a verb runs, so that ``--help`` answers at once. What goes wrong on purpose is one
sentence on standard error and exit status 1.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llava_probe.cli.app import app as app_verb
from llava_probe.cli.attribute import attribute
from llava_probe.cli.bank import bank
from llava_probe.cli.bundles import as_command
from llava_probe.cli.check import check
from llava_probe.cli.compare import compare
from llava_probe.cli.demo import demo
from llava_probe.cli.extract import extract
from llava_probe.cli.finetune import finetune
from llava_probe.cli.fit_lens import fit_lens
from llava_probe.cli.fit_probe import fit_probe
from llava_probe.cli.flow import flow
from llava_probe.cli.interventions import InOrder
from llava_probe.cli.leaderboard import leaderboard
from llava_probe.cli.models import models
from llava_probe.cli.run import run
from llava_probe.cli.signals import signals
from llava_probe.cli.trace_cause import trace_cause
from llava_probe.cli.view import view

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A microscope for vision-language models: what was answered, how surely, and where it looked.",
)

_VERBS = (
    demo, run, app_verb, view, attribute, flow, trace_cause, check, leaderboard, signals, extract, fit_probe, fit_lens,
    bank, finetune, compare, models,
)  # fmt: skip
for _verb in _VERBS:
    # what ``run`` does not know goes to transformers' generate
    _passed_on = {"allow_extra_args": True, "ignore_unknown_options": True} if _verb is run else None
    app.command(_verb.__name__.replace("_", "-"), cls=InOrder, context_settings=_passed_on)(as_command(_verb))


def _versions(wanted: bool) -> None:
    """Print what this is and what it stands on."""
    if wanted:
        from importlib.metadata import version

        from llava_probe import __version__

        below = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pillow", "numpy"))
        typer.echo(f"llava_probe {__version__} (python {sys.version.split()[0]}, {below})")
        raise typer.Exit


@app.callback()
def _before_any_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_versions, is_eager=True, help="Print versions and end.")
    ] = False,
) -> None:
    """A microscope for vision-language models: what was answered, how surely, and where it looked."""
    for stream in (sys.stdout, sys.stderr):
        # a console that knows no such letter shows another one; half an answer is worse than a question mark
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
