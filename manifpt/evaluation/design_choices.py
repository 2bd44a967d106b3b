"""The design choices of a benchmark's generators, as its table of recipes has them."""

import csv
import io
from collections.abc import Mapping

from manifpt import storage
from manifpt.errors import ManifptError

# The table of a benchmark's generators.
RECIPES = "recipes.csv"

Choices = Mapping[str, Mapping[str, str]]


def _plain(text: str) -> str:
    """Return a number in its shortest form, so that 1.0 and 1 are one value; other text unchanged.

    >>> _plain("1.0"), _plain("0.0005"), _plain("hinge"), _plain("")
    ('1', '0.0005', 'hinge', '')
    """
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text


def read_design_choices(benchmark: str) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the value of each design choice, and the seed, of a benchmark's generators by name.

    A choice that a generator does not have is "". Raises ManifptError without ``recipes.csv``.
    """
    uri = storage.join(benchmark, RECIPES)
    if not storage.exists(uri):
        raise ManifptError(f"{uri}: no such file; name the folder of a benchmark with {RECIPES}")
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(uri).decode())))
    if not rows or not {"name", "seed"} <= rows[0].keys():
        raise ManifptError(f"{uri}: has no columns name and seed; build the benchmark again")
    choices = {
        row["name"]: {c: _plain(v or "") for c, v in row.items() if c not in ("name", "seed", None)}
        for row in rows
    }
    return choices, {row["name"]: _plain(row["seed"] or "") for row in rows}


def recipes_of(choices: Choices) -> dict[str, str]:
    """Return the recipe of each generator: the first one whose choices are all the same.

    Generators of one recipe differ in the seed alone.

    >>> hinge = {"loss": "hinge"}
    >>> recipes_of({"gan": {"loss": "ls"}, "gan-hinge": hinge, "gan-hinge-seed2": hinge})
    {'gan': 'gan', 'gan-hinge': 'gan-hinge', 'gan-hinge-seed2': 'gan-hinge'}
    """
    first: dict[frozenset[tuple[str, str]], str] = {}
    return {
        name: first.setdefault(frozenset(values.items()), name) for name, values in choices.items()
    }
