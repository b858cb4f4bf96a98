"""One name for one thing: who reads a public name anywhere in the package knows which file it comes from."""

import ast
from collections import defaultdict

import house

#: One thing seen from two sides.
SHARED = {
    "rollout": "the analyzer reads kept rows, the method of lp.attribute of this name the same product in one pass",
    "attribute": "the verb of the command line and the function that does it",
    "check": "likewise",
    "extract": "likewise",
    "fit_probe": "likewise",
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
    assert all(len(places[name]) == 2 for name in SHARED), "take a name off the list that has one meaning again"
