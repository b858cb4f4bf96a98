"""``python -m llava_probe`` is the command ``llava-probe``."""

from llava_probe.cli import app

app(prog_name="llava-probe")
