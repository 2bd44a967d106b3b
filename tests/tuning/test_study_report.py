"""Ranking, the Pareto front and importances of known results."""

import pytest

from manifpt.tuning import study_report
from manifpt.tuning.proposals import SweepPlan
from manifpt.tuning.search_space import SearchSpace
from manifpt.tuning.trial import Sweep


def result(key, accuracy, rate=1.0, status="finished", **chosen):
    return {
        "key": key,
        "accuracy": accuracy,
        "loss": 1 - accuracy,
        "images_per_second": rate,
        "status": status,
        "chosen": {"space": "rgb", "learning_rate": 1e-3} | chosen,
        "began": 0.0,
    }


def test_ranking_puts_the_best_that_finished_first():
    rows = [result("a", 0.5), result("b", 0.9, status="stopped"), result("c", 0.7)]
    assert [r["key"] for r in study_report.ranked_trials(rows)] == ["c", "a", "b"]


def test_the_pareto_front_has_what_no_other_beats():
    rows = [result("slow", 0.9, 10), result("fast", 0.6, 100), result("worse", 0.5, 50)]
    rows += [result("same", 0.9, 10), result("stopped", 1.0, 1000, status="stopped")]
    both = ("accuracy", "images_per_second")
    assert study_report.pareto(rows, both) == {"slow", "same", "fast"}
    text = study_report.leaderboard(rows, SweepPlan(objectives=both))
    assert "fast*" in text
    assert "worse*" not in text


def test_importance_finds_the_choice_that_matters():
    search = {"space": ["rgb", "freq"], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    sweep = Sweep(SearchSpace.of({}, search, {}), "out", "content", {}, 1)
    rows = [
        result(
            str(n),
            0.9 if n % 2 else 0.3,
            space=["rgb", "freq"][n % 2],
            learning_rate=1e-3 + n / 1e4,
        )
        for n in range(16)
    ]
    found = study_report.importances(sweep, SweepPlan(), rows)
    assert found["space"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    picture = study_report.parallel_coordinates(sweep, rows)
    assert picture[:4] == b"\x89PNG"
    assert study_report.importances(sweep, SweepPlan(), rows[:2]) == {}
