"""Every block of README and of the guides does what its page says: code runs, prints, draws; commands are known."""

import re
import shlex
import shutil
import tomllib

import numpy as np
import pytest
import typer
from PIL import Image

from llava_probe.cli import app
from tests.docs import desk
from tests.docs.blocks import ROOT, agrees, guides

PAGES = {page.name: page for page in guides()}
NEEDS = {"docs/guides/finetune.md": "peft", "docs/guides/lora.md": "peft"}


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    """What a page finds; drawn once, copied for each."""
    folder = tmp_path_factory.mktemp("laid")
    desk.lay(folder)
    return folder


@pytest.fixture
def folder(laid, tmp_path):
    return shutil.copytree(laid, tmp_path, dirs_exist_ok=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if page.python])
def test_the_code_of_a_page_runs_and_prints_and_draws_what_the_page_shows(name, folder, tiny_vlm):
    page = PAGES[name]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    with desk.stand_ins(tiny_vlm):
        page.run(folder, desk.names(name, tiny_vlm))
    for picture in page.pictures:
        made, kept = (Image.open(path) for path in (folder / picture.rpartition("/")[2], page.path.parent / picture))
        assert made.size == kept.size
        off = np.abs(np.asarray(made, dtype=float) - np.asarray(kept, dtype=float)).mean()
        assert off < 0.5, f"{picture} is not what the page draws: python -m tests.docs.blocks"


COMMANDS = [(name, line) for name, page in PAGES.items() for line in page.commands]
VERBS = typer.main.get_command(app)


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS if line.startswith("llava-probe")}))
def test_the_command_line_knows_what_pages_type(line):
    _, verb, *arguments = shlex.split(line.replace("...", "tiny"))
    if verb.startswith("--"):
        return
    command = VERBS.commands[verb]
    context = command.make_context(verb, arguments)
    unknown = [each for each in context.args if each.startswith("--")]
    assert not unknown


def test_pages_name_targets_scripts_and_extras_that_are_there():
    text = "\n".join(line for _, line in COMMANDS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for script in re.findall(r"^python (\S+\.py)", text, re.M):
        assert (ROOT / script).exists(), script
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"pip install .*\[([\w,]+)\]", text)
    assert named and {each for group in named for each in group.split(",")} <= set(extras)


def test_what_pages_say_is_compared_with_what_is_printed():
    assert agrees("STOP 0.13\n", "STOP   0.131\n")
    assert agrees("[1, ...]", "[1, 2, 3]")
    assert not agrees("STOP 0.13\n", "STOP 0.19\n")
    assert not agrees("STOP\n", "HELP\n")
    assert not agrees("[46, 7, 192]", "[46, 6, 192]")
