"""The benchmark of search measures what it says, and its engine finds what others find."""

import numpy as np
import pytest

from manifpt.errors import ManifptError
from manifpt.throughput import search
from manifpt.throughput.photographs import crops, photographs

SHAPE = search.Shape("rgb", 8, 300, queries=40)


def test_a_shape_is_measured_with_all_engines_on_all_kinds_of_queries():
    (rows,) = search.measure_shapes([SHAPE], (), repeats=1, threads=2)
    assert {row["query_kind"] for row in rows} == {"generated", "noisy", "unseen"}
    assert len(rows) == 3 * 5
    for row in rows:
        assert row["dim"] == 192
        assert row["seconds_median"] > 0
        assert row["gflops"] * row["seconds_median"] == pytest.approx(2 * 40 * 300 * 192 / 1e9)
        if row["engine"].startswith("manifpt"):
            assert row["mismatches"] == 0
    assert len(search.table(rows).splitlines()) == 1 + len(rows)


def test_a_shape_that_cannot_be_measured_is_an_error():
    with pytest.raises(ManifptError, match="was not measured"):
        list(search.measure_shapes([search.Shape("no such space", 8, 9)], (), 1, 1))


def test_unseen_crops_are_of_other_parts_of_the_photographs():
    photos = photographs(())
    seen, unseen = (crops(photos, 8, 200, 1, seen=seen) for seen in (True, False))
    assert seen.shape == (200, 8, 8, 3)
    assert not {c.tobytes() for c in seen} & {c.tobytes() for c in unseen}
    assert np.array_equal(seen, crops(photos, 8, 200, 1, seen=True))
