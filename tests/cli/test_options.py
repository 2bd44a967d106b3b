"""An option is declared once: jobs that share one name its type or its group."""

import ast
from collections import Counter
from pathlib import Path

LIBRARY = Path(__file__).parents[2] / "manifpt"


def descriptions() -> list[str]:
    """The descriptions in all calls of Field, but for those that refer to another job."""
    found = []
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Field":
                texts = [k.value for k in node.keywords if k.arg == "description"]
                found += [ast.unparse(text) for text in texts]
    return [text for text in found if not text.startswith("'see ")]


def test_no_two_options_have_one_description():
    counts = Counter(descriptions())
    assert len(counts) > 150
    assert [text for text, count in counts.items() if count > 1] == []
