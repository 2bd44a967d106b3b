"""Search spaces: choices, conditions, and errors before anything runs."""

import optuna
import pytest

from manifpt.errors import ManifptError
from manifpt.tuning.search_space import SearchSpace

SEARCH = {
    "space": ["rgb", "freq"],
    "projector": ["nearest", "mean", "tangent"],
    "neighbors": {"low": 4, "high": 32, "log": True, "when": {"projector": ["mean", "tangent"]}},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
}


def space(search=SEARCH, fixed=None, defaults=None):
    return SearchSpace.of(fixed or {}, search, defaults or {})


def test_the_first_trial_is_the_defaults():
    assert space().first() == {"space": "rgb", "projector": "nearest", "learning_rate": 1e-3}
    given = space(defaults={"projector": "tangent", "neighbors": 8}).first()
    assert (given["projector"], given["neighbors"]) == ("tangent", 8)
    # A default that the choices do not have gives way to the first of them.
    assert space({"metric": ["cosine", "whitened"]}).first() == {"metric": "cosine"}


def test_suggestions_keep_to_conditions_and_are_settings():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        space().suggest(trial)
        chosen = trial.params
        assert ("neighbors" in chosen) == (chosen["projector"] != "nearest")
        settings = space(fixed={"epochs": 3}).settings(chosen)
        assert (settings.epochs, settings.space) == (3, chosen["space"])
        assert 1e-4 <= settings.learning_rate <= 1e-2
        if settings.neighbors is not None:
            assert 4 <= settings.neighbors <= 32
        seen.add((settings.space, settings.projector))
        study.tell(trial, 0.5)
    assert len(seen) == 6


def test_a_grid_has_each_combination_once():
    search = {
        "projector": ["nearest", "mean"],
        "neighbors": {"values": [4, 8], "when": {"projector": ["mean"]}},
        "space": ["rgb", "freq"],
    }
    grid = space(search).grid()
    assert len(grid) == 2 * (1 + 2)
    assert {"projector": "nearest", "space": "rgb"} in grid
    with pytest.raises(ManifptError, match="neighbors is a range"):
        space().grid()


@pytest.mark.parametrize(
    ("search", "fixed", "message"),
    [
        ({}, {}, "nothing to choose"),
        ({"no_such": [1, 2]}, {}, "no_such.*no such option"),
        ({"epochs": {"low": 5}}, {}, "search.epochs: give a list of values, or low and high"),
        ({"epochs": {"low": 5, "high": 2}}, {}, "low must be below high"),
        ({"epochs": [0, 5]}, {}, "epochs 0: Input should be greater"),
        ({"space": ["rgb", "rbg"]}, {}, "space rbg: unknown"),
        ({"epochs": [1, 2]}, {"epochs": 3}, "both fixed and searched"),
        ({"epochs": {"values": [1], "when": {"spcae": ["rgb"]}}}, {}, "spcae is not an option"),
        ({"projector": ["nearest"]}, {"neighbors": 4}, "nearest takes 1"),
    ],
)
def test_mistakes_are_told_before_anything_runs(search, fixed, message):
    with pytest.raises(ManifptError, match=message):
        space(search, fixed)
