"""Type hints: everything public has them; `mypy` checks that they are right."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [*ROOT.glob("mingpt/*.py"), *ROOT.glob("mingpt/interpretability/*.py")]


def public_functions(tree):
    """Yield (name, its ast) of public functions, and of the public classes' methods."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        for method in node.body:
            if not isinstance(method, ast.FunctionDef):
                continue
            if not method.name.startswith("_") or method.name in ("__init__", "__call__"):
                yield f"{node.name}.{method.name}", method


def parameters_without_hint(function):
    """The names of its parameters that have no hint, but for a method's first one."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [one for one in (arguments.vararg, arguments.kwarg) if one]
    return [
        one.arg
        for one in named + starred
        if one.annotation is None and one.arg not in ("self", "cls")
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_all_that_is_public_says_the_types_of_what_it_takes_and_returns(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = []
    for name, function in public_functions(tree):
        missing += [f"{name}({parameter})" for parameter in parameters_without_hint(function)]
        # What __init__ returns everybody knows.
        if function.returns is None and not name.endswith(".__init__"):
            missing.append(f"{name} -> ?")
    assert not missing
