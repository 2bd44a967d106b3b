"""Rows over a job's working time, against counts by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifpt.outputs.records import Records
from manifpt.outputs.work_rate import MOST_BINS, TIMES, rows_over_time


def record(started, first, last, rows):
    times = (started, last - first, last, rows)
    return dict(zip(TIMES, times, strict=True))


def test_a_job_that_slows_down_shows_it():
    """Two processes for 100 s, then one: the rate halves at once."""
    both = [record(1000, 1000 + s, 1010 + s, 50) for s in range(0, 200, 10)]
    both += [record(1000, 1000 + s, 1010 + s, 50) for s in range(0, 100, 10)]
    found = rows_over_time(both)
    rates = np.array(found["rows"]) / found["seconds_per_bin"]
    assert found["seconds_per_bin"] == pytest.approx(1.0)
    assert rates[:99] == pytest.approx(10, abs=1)
    assert rates[101:] == pytest.approx(5, abs=1)
    assert sum(found["rows"]) == 1500


def test_a_pause_between_two_starts_is_left_out():
    before = [record(0, s, s + 1, 7) for s in range(30)]
    after = [record(1e6, 1e6 + s, 1e6 + s + 1, 7) for s in range(10)]
    found = rows_over_time([*after, *before])
    assert found["starts"] == [0.0, 30.0]
    assert found["rows"] == [7] * 40


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 5000.0, 1.7e9]),
            st.floats(-20, 4000),
            st.floats(0, 900),
            st.integers(0, 2000),
        ),
        max_size=30,
    )
)
def test_no_row_is_lost_whatever_the_clocks_say(chunks):
    made = [record(s, s + end - length, s + end, rows) for s, end, length, rows in chunks]
    found = rows_over_time(made)
    total = sum(rows for *_, rows in chunks)
    assert (found is None) == (total == 0)
    if found is not None:
        assert sum(found["rows"]) == total
        assert min(found["rows"]) >= 0
        assert 1 <= len(found["rows"]) <= MOST_BINS
        assert len(json.dumps(found)) < 6000


def test_records_without_times_have_no_curve():
    assert rows_over_time([]) is None
    old = {"unit": 0, "chunk": 0, "rows_in": 4}
    assert rows_over_time(Records([old])) is None
