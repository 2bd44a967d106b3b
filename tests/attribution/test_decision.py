"""Decisions, row by row, by the words of their definition."""

import numpy as np

from manifpt.attribution.unknown.decision import DECISIONS, Rule, decide

CLASSES = ["gan", "real", "vae"]


def by_words(probabilities, p_value, rule):
    if p_value is not None and p_value <= rule.false_rejection:
        return "unknown"
    if max(probabilities) < rule.sure:
        return "unsure"
    return "real" if probabilities.index(max(probabilities)) == 1 else "generator"


def test_decisions_are_those_of_the_definition_for_every_rule():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.6] * 3, 400)
    p_values = rng.uniform(size=400)
    met = set()
    for rule in (Rule(), Rule(0.8, 0.2), Rule(0.0, 0.0)):
        for given in (p_values, None):
            expected = [
                by_words(p.tolist(), None if given is None else given[n], rule)
                for n, p in enumerate(probabilities)
            ]
            assert decide(probabilities, CLASSES, given, rule).tolist() == expected
            met |= set(expected)
    assert met == set(DECISIONS)


def test_the_thresholds_themselves_are_sure_and_unknown():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.4999, 0.25, 0.2501]])
    assert decide(probabilities, CLASSES).tolist() == ["generator", "real", "unsure"]
    at = np.array([0.05, 0.0501, 0.0])
    assert decide(probabilities, CLASSES, at).tolist() == ["unknown", "real", "unknown"]


def test_no_image_is_no_decision():
    assert decide(np.empty((0, 3)), CLASSES, np.empty(0)).tolist() == []
