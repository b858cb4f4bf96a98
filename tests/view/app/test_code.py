"""The script behind an answer is plain Python that says what was clicked, whatever was typed."""

from __future__ import annotations

import ast

import pytest

from llava_probe.view.app.code import code, picture_name
from llava_probe.view.app.messages import AnswerSettings, MarkedPart
from llava_probe.view.app.runs import AskedRun

HOSTILE = 'Is it?")\nimport os; os.remove("x")  # """ \\ \u202e \x00'


def told(**more):
    given = {"model": "tiny", "loaded": {}, "question": "Is it?", "settings": AnswerSettings(), "format": "JPEG"}
    return AskedRun(fingerprint="ab", **{**given, **more})


def calls(script):
    """Each call in it by its name, with its arguments as values."""
    found = {}
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Call):
            named = {each.arg: ast.literal_eval(each.value) for each in node.keywords if _plain(each.value)}
            found[ast.unparse(node.func)] = named
    return found


def _plain(node):
    return all(isinstance(each, (ast.Constant, ast.Tuple, ast.List, ast.Load)) for each in ast.walk(node))


@pytest.mark.parametrize("how", ["without", "only"])
def test_a_question_never_becomes_code(how):
    run = told(question=HOSTILE, model=HOSTILE, loaded={"dtype": HOSTILE}, cut=MarkedPart((1, 2, 3, 4), how))
    tree = ast.parse(code(run).replace("\x00", "?"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert strings.count(HOSTILE) == 3
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"llava_probe"}


def test_only_what_the_way_uses_is_said():
    greedy = calls(code(told()))["vlm.generate"]
    assert greedy == {"max_new_tokens": 64, "do_sample": False, "num_beams": 1}
    drawn = calls(code(told(settings=AnswerSettings(way="sampling", temperature=0.7, top_p=0.9, seed=5))))[
        "vlm.generate"
    ]
    assert drawn == {"max_new_tokens": 64, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 5}
    assert calls(code(told(settings=AnswerSettings(way="beams", beams=3))))["vlm.generate"]["num_beams"] == 3


def test_the_model_is_loaded_as_it_was():
    assert calls(code(told(model="some/llava", loaded={"dtype": "bfloat16"})))["lp.load"] == {"dtype": "bfloat16"}
    assert "lp.load()" in code(told())


def test_a_part_is_the_one_that_was_marked():
    script = code(told(cut=MarkedPart((1.0, 2.5, 30.0, 40.0), "without", 0, 2)))
    assert "lp.Region((1, 2.5, 30, 40), image=0, ring=2)" in script
    assert "with lp.ablate(vlm, tokens=part):" in script


@pytest.mark.parametrize("format, name", [("JPEG", "picture.jpg"), ("PNG", "picture.png"), ("TIFF", "picture.tif")])
def test_the_photograph_has_the_ending_of_its_kind(format, name):
    assert picture_name(told(format=format)) == name
