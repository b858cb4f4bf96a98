"""The API pages: every name of ``lp.`` has its place, once, and their examples are what comes out."""

import doctest
import re
from collections import Counter

import pytest

import llava_probe as lp
from llava_probe import errors
from tests.docs import desk
from tests.docs.blocks import DOCS

PAGES = sorted((DOCS / "api").glob("*.rst"))
_SAID = re.compile(
    r"^\.\. (currentmodule|data|function|auto(?:function|class|exception|data|module)):: ([\w.]+)(\n   :members:)?",
    re.M,
)


def documented():
    """Everything that an API page documents, by its full name, one for each time."""
    for page in PAGES:
        room = ""
        for directive, name, members in _SAID.findall(page.read_text(encoding="utf-8")):
            if directive == "currentmodule":
                room = name
                continue
            yield name if "." in name else f"{room}.{name}"
            if directive == "automodule" and members:
                module = __import__(name, fromlist=["__all__"])
                yield from (f"{name}.{each}" for each in module.__all__)


COUNTED = Counter(documented())


def test_every_public_name_is_documented_once():
    names = {name: getattr(lp, name).__name__ if name in lp._MODULES else f"llava_probe.{name}" for name in lp.__all__}
    missing = {f"lp.{name}" for name, full in names.items() if not COUNTED[full]}
    assert not missing, f"put {sorted(missing)} on a page of docs/api/"
    assert not [full for full, times in COUNTED.items() if times > 1]
    beside = {"llava_probe.tiny", "llava_probe.smol"}
    assert {full for full in COUNTED if full.count(".") == 1} <= {*names.values(), *beside}


@pytest.mark.parametrize("name", sorted(lp._MODULES))
def test_every_name_of_a_public_module_is_documented(name):
    module = getattr(lp, name)
    assert not [each for each in getattr(module, "__all__", ()) if not COUNTED[f"{module.__name__}.{each}"]]


def test_every_error_is_documented():
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, lp.ProbeError)]
    assert all(COUNTED[f"llava_probe.{each.__name__}"] for each in classes)


@pytest.mark.parametrize("name", [page.name for page in PAGES if ">>> " in page.read_text(encoding="utf-8")])
def test_examples_come_out_as_written(name, tmp_path, tiny_vlm, monkeypatch):
    page = DOCS / "api" / name
    desk.lay(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
    text = page.read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, desk.names(name, tiny_vlm), name, str(page), 0)
    said = []
    with desk.stand_ins(tiny_vlm):
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
