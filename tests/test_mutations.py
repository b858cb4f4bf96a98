"""The list of mutations fits the code of today. Whether they are caught is tried by ``make mutations``, in minutes."""

import ast

import mutations
import pytest
from mutations import MUTATIONS, ROOT, Mutation

WRITTEN = [mutation for mutation in MUTATIONS if mutation.old]


@pytest.mark.parametrize("mutation", WRITTEN, ids=lambda mutation: mutation.name)
def test_its_text_stands_once_in_the_package_and_another_takes_its_place(mutation):
    (path,) = mutations.where(mutation)
    ast.parse(path.read_text(encoding="utf-8").replace(mutation.old, mutation.new))
    assert mutation.old != mutation.new


@pytest.mark.parametrize("mutation", WRITTEN, ids=lambda mutation: mutation.name)
def test_the_tests_that_must_catch_it_are_there(mutation):
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert not name or name.partition("[")[0] in names


def test_names_are_told_apart():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_every_mutation_is_written():
    assert list(MUTATIONS) == WRITTEN


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A package of one line and two tests of it, one that can fail; they are run without plugins that import much."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    (tmp_path / "llava_probe").mkdir()
    (tmp_path / "llava_probe" / "__init__.py").write_text("two = 1 + 1\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_two.py").write_text(
        "import llava_probe\n\n\n"
        "def test_sum():\n    assert llava_probe.two == 2\n\n\ndef test_nothing():\n    assert llava_probe.two\n"
    )
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return tmp_path


def test_only_a_test_that_fails_catches_and_the_code_is_as_before(small):
    def word(old, test):
        return mutations.tried(Mutation("sum", old, "1 + 2", (f"tests/test_two.py::{test}",)), small).word

    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    assert word("1 + 1", "test_sum") == mutations.CAUGHT
    assert word("1 + 1", "test_nothing") == mutations.MISSED
    assert word("1 + 1", "test_that_is_not_there") == mutations.LOST
    assert word("3 + 3", "test_sum") == mutations.LOST
    assert mutations.tried(Mutation("sum"), small).word == mutations.UNWRITTEN
    assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before


def test_tests_that_fail_without_a_change_are_told(small):
    mutation = Mutation("sum", "1 + 1", "1 + 2", ("tests/test_two.py::test_sum",))
    assert mutations.unchanged([mutation], small) == ""
    (small / "llava_probe" / "__init__.py").write_text("two = 3\n")
    assert "1 failed" in mutations.unchanged([mutation], small)
