"""The component that ships is what its sources make: types checked, unit tests run, built anew, byte for byte."""

import shutil
import subprocess
from pathlib import Path

import pytest

import llava_probe.view.page as page

WEB = Path(page.__file__).parents[1] / "web"


def npm(*arguments, folder):
    return subprocess.run(["npm", *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("component") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules"))
    installed = npm("ci", "--no-audit", "--no-fund", folder=folder)
    if installed.returncode:
        pytest.skip(f"npm could not install what the component is built with: {installed.stderr.strip()[-200:]}")
    return folder


@pytest.mark.parametrize("task", ["check", "test"])
def test_the_components_own_checks_pass(sources, task):
    done = npm("run", task, folder=sources)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_ships_is_what_the_sources_make(sources):
    done = npm("run", "build", folder=sources)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (sources.parent / "page" / "component.js").read_text(encoding="utf-8").strip() == page.script()


def test_nothing_in_the_component_ends_the_tag_that_it_stands_in():
    text = page.script().lower()
    assert "</script" not in text and "<!--" not in text and "<script" not in text
