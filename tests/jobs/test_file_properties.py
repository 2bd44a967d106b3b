"""The row of file properties: files that are stored alike tell nothing, others all."""

import numpy as np
import pandas as pd
import pytest

from manifpt.audit.properties import CARRIED
from manifpt.audit.training_audit import read_sample
from manifpt.engine import pools
from manifpt.images import Selection, plan
from manifpt.jobs.reproduction.file_properties import held_out, told

SOURCES = ("first", "second", "third")


def stored(count: int, qualities: dict[str, int]) -> pd.DataFrame:
    alike = dict.fromkeys(CARRIED) | {"format": "JPEG", "width": 28, "exif": False}
    rows = [
        alike | {"source": name, "quality": qualities.get(name, 75)}
        for name in SOURCES
        for _ in range(count)
    ]
    return pd.DataFrame(rows)


def test_files_that_are_stored_alike_are_at_chance():
    found = held_out(stored(60, {}), stored(40, {}))
    assert found["accuracy"] == pytest.approx(1 / 3) == found["chance"]
    assert found["accuracy_low"] < found["chance"] < found["accuracy_high"]
    assert found["p_value"] == 1
    assert "is at chance" in told(found)


def test_a_quality_of_its_own_gives_a_source_away():
    qualities = {"second": 90}
    found = held_out(stored(60, qualities), stored(40, qualities))
    assert found["per_class"]["second"]["recall"] == 1
    assert found["accuracy_low"] > found["chance"]
    assert found["p_value"] < 0.001
    assert "above chance" in told(found)


def test_qualities_that_do_not_go_by_source_are_at_chance():
    rng = np.random.default_rng(0)
    train, test = stored(200, {}), stored(100, {})
    for rows in (train, test):
        rows["quality"] = rng.integers(50, 100, len(rows))
    found = held_out(train, test)
    assert found["accuracy"] == pytest.approx(1 / 3, abs=0.08)
    assert found["p_value"] > 0.05


def test_the_shipped_benchmark_is_at_chance():
    found = []
    for split in ("train", "test"):
        selection = Selection((split,), ("real", "gan", "ddpm"))
        units = plan(["benchmarks/gm-fashionmnist"], selection, labelled=True, quiet=True)
        found.append(read_sample(units, selection, 100, pools.HERE))
    metrics = held_out(*found)
    assert metrics["images"] == 300
    assert metrics["p_value"] > 0.05
    assert metrics["accuracy_low"] <= metrics["chance"] <= metrics["accuracy_high"]
