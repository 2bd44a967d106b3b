"""The notebook of the documentation runs from its first cell to its last, and says what is true."""

import json
from pathlib import Path

import matplotlib
import pytest

pytestmark = [pytest.mark.long, pytest.mark.ray]

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("manifpt.engine.session.start", lambda: pytest.fail("it needs no Ray"))
    names: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] == "code":
            source = compile("".join(cell["source"]), f"cell {number}", "exec")
            exec(source, names)
            assert cell["outputs"] or cell["source"][0].startswith(("import", "def"))
    assert names["metrics"]["accuracy"] > 0.8
    assert names["manifold"].manifest["reals"] == len(names["reals"])
