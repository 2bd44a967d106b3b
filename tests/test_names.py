"""A public name has one meaning in the whole tree.

A job may have the file name of the one library module that it runs, as ``manifpt/jobs/evaluate.py``
and ``manifpt/evaluation/evaluate.py``. Each job has a class ``Config``.
"""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_public_classes_have_names_of_their_own():
    places = defaultdict(set)
    for folder in ("manifpt", "jobs", "tuning", "cluster"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].add(str(path.relative_to(ROOT)))
    shared = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert {name: shared[name] for name in shared.keys() - {"Config"}} == {}


def test_modules_have_file_names_of_their_own():
    places = defaultdict(list)
    for path in (ROOT / "manifpt").rglob("*.py"):
        if not path.name.startswith("__"):
            places[path.name].append(path)
    for name, paths in places.items():
        library = [path for path in paths if path.parent.name != "jobs"]
        assert len(library) < 2, library
        if len(library) < len(paths) and library:
            module = ".".join(library[0].relative_to(ROOT).with_suffix("").parts)
            text = (ROOT / "manifpt" / "jobs" / name).read_text()
            assert f"from {module} import" in text, f"jobs/{name} does not run {library[0]}"
