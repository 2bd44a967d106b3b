"""The closed set's metrics from the records of files, of which some have no row that counts."""

from manifpt.evaluation.evaluate import EvaluationSettings, _closed_set


def test_a_file_without_a_row_of_the_sources_that_are_asked_for_counts_nothing():
    scored = {"seen": 1, "other_source": 0, "without_hash": 2, "news": [[3, 1], [0, 4]]}
    records = [{"facts": facts} for facts in (scored, {}, scored)]
    metrics, left_out = _closed_set(records, ["gan", "real"], EvaluationSettings())
    assert metrics["accuracy"] == 14 / 16
    assert metrics["near_training"]["without_hash"] == 4
    assert left_out == {"seen": 2, "other_source": 0, "near_training": 0}
