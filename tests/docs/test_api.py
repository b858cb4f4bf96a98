"""The API pages: every name of ``lp.`` has its place, once, and their examples are what comes out."""

import doctest
import re
from collections import Counter

import pytest

import llava_probe as lp
from tests.docs import desk
from tests.docs.blocks import DOCS, ROOT

PAGES = sorted((DOCS / "api").glob("*.rst"))
_DOCUMENTED = re.compile(r"^\.\. (?:auto(?:function|class|exception|data|module)|data):: ([\w.]+)", re.M)


def shown():
    """Names under ``lp.`` that an API page documents, one for each time."""
    modules = {getattr(lp, name).__name__: name for name in lp._MODULES}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in _DOCUMENTED.findall(text):
            if name in modules:
                yield modules[name]
            elif "." not in name:
                assert ".. currentmodule:: llava_probe\n" in text, page.name
                yield name


def test_every_public_name_is_documented_once():
    counted = Counter(shown())
    missing = set(lp.__all__) - set(counted)
    assert not missing, f"put {sorted(missing)} on a page of docs/api/"
    assert not set(counted) - set(lp.__all__)
    assert not [name for name, times in counted.items() if times > 1]


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


def test_errors_are_all_of_the_tree():
    errors = (ROOT / "llava_probe" / "errors.py").read_text(encoding="utf-8")
    assert set(re.findall(r"^class (\w+)", errors, re.M)) <= set(shown())
