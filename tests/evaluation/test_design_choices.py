from pathlib import Path

import pytest

from manifpt.errors import ManifptError
from manifpt.evaluation.design_choices import read_design_choices, recipes_of

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gm-fashionmnist"


def test_the_benchmark_has_four_second_seeds():
    choices, seeds = read_design_choices(str(BENCHMARK))
    second = {name: recipe for name, recipe in recipes_of(choices).items() if name != recipe}
    second = {frozenset(pair) for pair in second.items()}
    pairs = ("gan", "gan-nearest", "gan-hinge", "vae")
    assert second == {frozenset((name, f"{name}-seed2")) for name in pairs}
    assert seeds["gan"] == "1"
    assert seeds["gan-seed2"] == "2"


def test_choices_are_by_name_and_numbers_have_one_form():
    choices, _ = read_design_choices(str(BENCHMARK))
    assert choices["gan-hinge"]["loss"] == "hinge"
    assert choices["vae"]["loss"] == ""
    assert choices["vae"]["beta"] == "1"
    assert "seed" not in choices["vae"]
    assert "name" not in choices["vae"]


def test_a_folder_without_the_table_is_refused(tmp_path):
    with pytest.raises(ManifptError, match=r"name the folder of a benchmark with recipes\.csv"):
        read_design_choices(str(tmp_path))
    (tmp_path / "recipes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ManifptError, match="no columns name and seed"):
        read_design_choices(str(tmp_path))
