"""A room of manifpt imports only rooms before it."""

import ast
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "manifpt"
ORDER = """
redaction errors storage outputs tracking engine nets images audit baselines spaces manifold
artifacts attribution.unknown attribution.model attribution.crawl
evaluation api registry zoo throughput planning report viewer cli
jobs tuning
""".split()
# Imports that are left to be turned round.
BACKWARDS = {
    ("engine.chunk_work", "images.read"),
    ("tracking.recorder", "registry.register"),
}


def room_of(module: str) -> str:
    return next((room for room in ORDER if f"{module}.".startswith(f"{room}.")), "")


def imports() -> list[tuple[str, str]]:
    """Pairs of a module and one that it imports, by their names inside manifpt."""
    found = []
    for path in LIBRARY.rglob("*.py"):
        module = ".".join(path.relative_to(LIBRARY).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("manifpt."):
                found.append((module, node.module.removeprefix("manifpt.")))
            elif isinstance(node, ast.ImportFrom) and node.module == "manifpt":
                found += [(module, name.name) for name in node.names]
    return found


def test_every_module_is_in_a_room():
    loose = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__", "__main__", *ORDER}
    assert loose == set()


def test_rooms_import_rooms_before_them():
    backwards = {
        (module, imported)
        for module, imported in imports()
        if room_of(module) in ORDER
        and room_of(imported) in ORDER
        and ORDER.index(room_of(imported)) > ORDER.index(room_of(module))
    }
    assert backwards == BACKWARDS
