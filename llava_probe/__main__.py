"""``python -m llava_probe`` is the command ``llava-probe``."""

import sys


def command_line() -> None:
    """The command. Ctrl-C while it is still being imported ends it as at any other time."""
    try:
        from llava_probe.cli import app

        app(prog_name="llava-probe")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    command_line()
