"""A function fits on a screen and has few parameters, or a reason beside its name here."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 60
MOST_PARAMETERS = 8
MANY = {
    "manifpt/api/attributor.py:Attributor.fit": "a user of a notebook gives options by name",
    "manifpt/zoo/gan.py:GAN.__init__": "a recipe names one design choice an option",
}


def functions_of(tree: ast.AST, prefix: str) -> list[tuple[str, ast.FunctionDef]]:
    """Pairs of a function's name, after those of the classes and functions it is in, and itself."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{node.name}."
            if not isinstance(node, ast.ClassDef):
                found.append((f"{prefix}{node.name}", node))
        found += functions_of(node, inner)
    return found


def parameters_of(function: ast.FunctionDef) -> list[str]:
    """Names of all parameters, ``*`` and ``**`` ones among them, but for self and cls."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]


FUNCTIONS = {
    f"{path.relative_to(ROOT)}:{name}": function
    for folder in ("manifpt", "jobs", "tuning", "cluster")
    for path in sorted((ROOT / folder).rglob("*.py"))
    for name, function in functions_of(ast.parse(path.read_text()), "")
}


def test_functions_are_short():
    lines = {name: one.end_lineno - one.lineno + 1 for name, one in FUNCTIONS.items()}
    assert {name for name, count in lines.items() if count > MOST_LINES} == set()


def test_functions_have_few_parameters():
    counts = {name: len(parameters_of(one)) for name, one in FUNCTIONS.items()}
    assert {name for name, count in counts.items() if count > MOST_PARAMETERS} == set(MANY)


def test_parameters_of_all_kinds_count_and_functions_in_methods_are_found():
    text = """
class A:
    def f(self, a, /, b, *c, d, **e):
        if a:
            def g(): ...
"""
    found = dict(functions_of(ast.parse(text), ""))
    assert {name: len(parameters_of(one)) for name, one in found.items()} == {"A.f": 5, "A.f.g": 0}
