"""The splits of the study of unseen generators: its rule, and that nothing unknown is known."""

import csv

import pytest
from conftest import BENCHMARK

from manifpt.jobs.compare_open_set import FAMILIES, KNOWN, UNKNOWN, split_of_recipes

RECIPES = list(csv.DictReader((BENCHMARK / "recipes.csv").open()))
BY_NAME = {row["name"]: row for row in RECIPES}


def design(name: str) -> dict[str, str]:
    return {key: value for key, value in BY_NAME[name].items() if key not in {"name", "seed"}}


@pytest.mark.parametrize("number", range(3))
def test_each_kind_of_unknown_is_what_it_says(number):
    split = split_of_recipes(RECIPES, number)
    assert split_of_recipes(RECIPES[:], number) == split
    tested = [name for names in split.unknown.values() for name in names]
    assert len(split.known) == len(set(split.known)) == KNOWN
    assert len(tested) == len(set(tested)) == UNKNOWN
    assert not set(tested) & set(split.known)
    known = [design(name) for name in split.known]
    families = {row["family"] for row in known}
    for name in split.unknown["seed"]:
        assert design(name) in known
    for name in split.unknown["recipe"]:
        assert design(name) not in known
        assert BY_NAME[name]["family"] in families
    for name in split.unknown["family"]:
        assert BY_NAME[name]["family"] not in families
    assert {BY_NAME[name]["family"] for name in split.unknown["family"]} == set(FAMILIES[number])
