"""The benchmarks measure what they say, and this engine finds what others find."""

import subprocess
import sys

import numpy as np
import pytest

from manifpt.errors import ManifptError
from manifpt.throughput import attribution_speed, search_speed
from manifpt.throughput.photographs import crops, photographs
from manifpt.throughput.timing import Watch, in_a_process, steady_rate

pytestmark = pytest.mark.long

SHAPE = search_speed.Shape("rgb", 8, 300, queries=40)


def test_a_shape_is_measured_with_all_engines_on_all_kinds_of_queries():
    (rows,) = search_speed.measure_shapes([SHAPE], (), repeats=1, threads=2)
    assert {row["query_kind"] for row in rows} == {"generated", "noisy", "unseen"}
    assert len(rows) == 3 * 5
    for row in rows:
        assert row["dim"] == 192
        assert row["seconds_median"] > 0
        assert row["gflops"] * row["seconds_median"] == pytest.approx(2 * 40 * 300 * 192 / 1e9)
        if row["engine"].startswith("manifpt"):
            assert row["mismatches"] == 0
    assert len(search_speed.table(rows).splitlines()) == 1 + len(rows)


def test_a_shape_that_cannot_be_measured_is_an_error():
    with pytest.raises(ManifptError, match="was not measured"):
        list(search_speed.measure_shapes([search_speed.Shape("no such space", 8, 9)], (), 1, 1))


def test_unseen_crops_are_of_other_parts_of_the_photographs():
    photos = photographs(())
    seen, unseen = (crops(photos, 8, 200, 1, seen=seen) for seen in (True, False))
    assert seen.shape == (200, 8, 8, 3)
    assert not {c.tobytes() for c in seen} & {c.tobytes() for c in unseen}
    assert np.array_equal(seen, crops(photos, 8, 200, 1, seen=True))


def test_a_steady_rate_has_no_start_up():
    runs = [
        (3 + 100 / 50, 3 + 300 / 50),
        (9 + 100 / 50, 9 + 300 / 50),
        (3 + 100 / 10, 3 + 300 / 40),
    ]
    assert steady_rate(100, 300, runs[:2]) == pytest.approx(50)
    assert steady_rate(100, 300, runs) == pytest.approx(50)


def test_memory_is_watched_of_all_that_a_process_starts():
    peaks = []
    for megabytes in (50, 250):
        watches = []

        def watch(process, watches=watches):
            watches.append(Watch(process, {"held =": "holder"}))
            return watches[0]

        code = f"import time; held = b'x' * ({megabytes} << 20); time.sleep(1)"
        in_a_process("a test", subprocess.run, [sys.executable, "-c", code], watch=watch)
        assert watches[0].peaks["driver"] > 1
        peaks.append(watches[0].peaks["holder"])
    assert peaks[1] - peaks[0] == pytest.approx(200, abs=2)


def test_a_process_that_dies_is_one_line():
    with pytest.raises(ManifptError, match="a test was not measured"):
        in_a_process("a test", sys.exit, 3)


@pytest.mark.slow
@pytest.mark.parametrize("usual", [False, True])
def test_attribution_is_measured_and_says_what_the_loop_says(usual, tmp_path, monkeypatch):
    monkeypatch.setattr(attribution_speed, "TAR_IMAGES", 40)
    work = attribution_speed.AttributionWorkload(str(tmp_path / "work"), usual)
    attribution_speed.prepare(work, 120, ())
    rows = list(attribution_speed.measure(work, 40, 120, repeats=1, threads=2))
    assert [row["engine"] for row in rows] == ["manifpt", "loop", "manifpt S3"]
    assert [row["other_predictions"] for row in rows] == [0, 0, 0]
    assert all(row["images"] == 120 for row in rows)
    assert rows[0]["first_result_seconds"] > 0
    assert len(attribution_speed.table(rows).splitlines()) == 4
    (held,) = attribution_speed.memory(work, [40])
    assert {"driver", "reader", "actor"} <= set(held["peak_mb"])
