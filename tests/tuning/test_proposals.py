"""Proposals of trials and early stopping, without running anything."""

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from manifpt.tuning.journal import Journal
from manifpt.tuning.proposals import SweepPlan, scheduler, searcher
from manifpt.tuning.search_space import SearchSpace
from manifpt.tuning.sweep import Config, rungs
from manifpt.tuning.trial import Sweep

SEARCH = {"space": ["rgb", "freq"], "projector": ["nearest", "mean"]}


def sweep_of(output, **given):
    return Sweep(SearchSpace.of({}, SEARCH, {}), str(output), "content", {}, 1, **given)


def test_trials_are_stopped_at_the_ends_of_legs(tmp_path):
    at = rungs(Config(), 20)
    assert at == (2, 6, 18)
    sweep = sweep_of(tmp_path, rungs=at)
    assert [epoch for _, epoch in sweep.legs(20)] == [2, 6, 18, 20]
    assert isinstance(scheduler(sweep, SweepPlan()), AsyncHyperBandScheduler)
    never = sweep_of(tmp_path, rungs=rungs(Config(early_stopping=False), 20))
    assert type(scheduler(never, SweepPlan())) is FIFOScheduler


@pytest.mark.parametrize("sampler", ["optuna", "random", "grid"])
def test_no_trial_is_proposed_twice_and_the_defaults_come_first(tmp_path, sampler):
    sweep = sweep_of(tmp_path)
    proposes = searcher(sweep, SweepPlan(sampler=sampler), Journal(sweep), [])
    found = [proposes.suggest(str(n)) for n in range(5)]
    assert found[0] == {"space": "rgb", "projector": "nearest"}
    assert found[4] == "FINISHED"
    assert len({str(sorted(chosen.items())) for chosen in found[:4]}) == 4


def test_what_was_interrupted_comes_first_and_keeps_its_beginning(tmp_path):
    sweep = sweep_of(tmp_path)
    journal, chosen = Journal(sweep), {"space": "freq", "projector": "mean"}
    journal.begin("key", chosen, "first-run")
    journal.begin("key", chosen, "second-run")
    assert journal.interrupted() == [chosen]
    assert searcher(sweep, SweepPlan(), journal, []).suggest("a") == chosen
    ended = journal.end("key", "finished", {"accuracy": 0.5})
    assert ended["run"] == "second-run"
    assert journal.interrupted() == []
    assert [r["accuracy"] for r in journal.results()] == [0.5]
