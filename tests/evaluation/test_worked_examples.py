"""The examples in the docstrings of the measures give what they say."""

import doctest
import importlib

import pytest

MODULES = "clustering design_choices divergence separability significance support theory".split()


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    found = doctest.testmod(importlib.import_module(f"manifpt.evaluation.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
