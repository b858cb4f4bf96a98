"""``python -m llava_probe.cli``."""

from llava_probe.cli import app

app(prog_name="llava-probe")
