"""Paired differences: what the bootstrap gives for known cases, and which rows are compared."""

import json

import numpy as np
import pyarrow as pa
import pytest

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.evaluation.paired import difference, hits
from manifpt.jobs.compare_spaces import Config, equal_count_pairs


def test_the_interval_is_that_of_a_normal_approximation():
    random = np.random.default_rng(1)
    ours, theirs = random.random((1, 4000)) < 0.8, random.random((1, 4000)) < 0.7
    found = difference(ours, theirs)
    gain = ours.astype(float) - theirs
    half = 1.96 * gain.std() / np.sqrt(gain.size)
    assert found.mean == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - half, abs=0.002)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.002)


def test_seeds_that_differ_widen_the_interval():
    theirs = np.zeros((3, 1000), bool)
    alike = np.repeat(np.arange(1000)[None] < 300, 3, axis=0)
    apart = np.arange(1000)[None] < np.array([[100], [300], [500]])
    narrow, wide = difference(alike, theirs), difference(apart, theirs)
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_images_are_paired_by_their_id(tmp_path):
    def write(name: str, rows: dict[str, str]) -> str:
        folder = tmp_path / name
        (folder / "scores").mkdir(parents=True)
        table = {"id": list(rows), "source": ["a"] * len(rows), "prediction": list(rows.values())}
        data = storage.parquet_bytes(pa.table(table))
        (folder / "scores" / "0.parquet").write_bytes(data)
        file = {"folder": "scores", "path": "scores/0.parquet"}
        manifest = {"kind": "evaluation", "key": "0" * 64, "files": [file]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return str(folder)

    first, second = write("first", {"x": "a", "y": "b"}), write("second", {"y": "a", "x": "b"})
    assert hits([first, second]).tolist() == [[True, False], [False, True]]
    with pytest.raises(ManifptError, match="compare evaluations of the same images"):
        hits([first, write("third", {"x": "a"})])


def test_rows_of_as_many_networks_are_compared():
    pairs = equal_count_pairs(Config.model_fields["combinations"].default)
    assert ("image+denoiser", "image+image@1") in pairs
    assert ("image+highpass+residual+denoiser", "image+highpass+residual+image@1") in pairs
    # Statistics are fitted in closed form: one network against two is no comparison.
    assert not any(ours.endswith("residual") for ours, _ in pairs)
