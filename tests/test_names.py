"""One name for one thing: who reads a public name anywhere knows which file it comes from, and so do type checkers."""

import ast
import subprocess
import sys
from collections import defaultdict

import house
import pytest

import llava_probe as lp

#: One thing seen from two sides.
SHARED = {
    "rollout": "the analyzer reads kept rows, the method of lp.attribute of this name the same product in one pass",
    "attribute": "the verb of the command line and the function that does it",
    "check": "likewise",
    "extract": "likewise",
    "fit_probe": "likewise",
    "finetune": "likewise",
    "fit_lens": "likewise",
    "path": "each model that ships inside, and each cheat, tells its folder",
    "changed": "the figure of a comparison, and a planted picture with only the cue or only the object otherwise",
    "app": "the verb that serves the app and the command line that it is a verb of",
    "compare": "the verb that compares models, and the figure of maps beside each other",
    "confidence": "what is told of a trace, and the figure of it, which bears its name",
    "lens": "likewise",
    "information_flow": "likewise",
    "causal_trace": "likewise",
    "dose_response": "likewise",
    "attribution_patching": "likewise",
}


def defined():
    """Every public name that a module of the package defines at its top, with the modules that do."""
    places = defaultdict(set)
    for path in house.PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in names_of(node):
                if not name.startswith("_"):
                    places[name].add(str(path.relative_to(house.PACKAGE)))
    return places


def names_of(node):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    kept = [each for target in targets if target for each in ast.walk(target) if isinstance(each, ast.Name)]
    return [each.id for each in kept if isinstance(each.ctx, ast.Store)]


def test_no_public_name_is_defined_in_two_modules():
    double = {name: sorted(files) for name, files in defined().items() if len(files) > 1 and name not in SHARED}
    assert not double


def test_names_that_two_modules_share_are_still_shared():
    places = defined()
    assert all(len(places[name]) >= 2 for name in SHARED), "take a name off the list that has one meaning again"


def test_type_checkers_are_shown_the_names_that_are_looked_up():
    tree = ast.parse((house.PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    shown = {
        alias.asname: f"{node.module}.{alias.name}" if alias.name in lp._MODULES else node.module
        for node in block.body
        for alias in node.names
    }
    assert shown == {name: f"llava_probe.{module}" for name, module in lp._NAMES.items()}


#: Others' packages are left out: reading torch alone takes half a minute.
SETTINGS = """
[mypy]
ignore_missing_imports = True
[mypy-torch.*,transformers.*,numpy.*,PIL.*,matplotlib.*,rich.*,tqdm.*]
follow_imports = skip
[mypy-llava_probe.*]
ignore_errors = True
"""


def test_a_users_own_file_sees_the_types(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    (tmp_path / "user.py").write_text(
        "import llava_probe as lp\n"
        "reveal_type(lp.load)\n"
        "reveal_type(lp.load().generate('a.png', 'What?').answer)\n"
        "reveal_type(lp.IMAGE)\n"
        "lp.no_such_name\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "user.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(house.PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    load, answer, image, *wrong = [line.partition("user.py:")[2] for line in found.stdout.splitlines()]
    assert load.endswith('-> llava_probe.model.VLM"')
    assert answer.endswith('Revealed type is "str"')
    assert image.endswith('"llava_probe.trace.explained.Place"')
    assert (house.PACKAGE / "py.typed").exists()
    assert "no_such_name" in wrong[0], "a name that is not there is an error, not Any"
