import numpy as np
import pyarrow as pa
import pytest

from manifpt import storage
from manifpt.artifacts.artifact_stage import ARTIFACTS
from manifpt.artifacts.branches import read_artifacts
from manifpt.attribution.crawl.leaks import Leaks
from manifpt.attribution.model.trained import SEEN, TrainedAttributor
from manifpt.manifold.embed import write_rows
from manifpt.manifold.shard import ROWS
from manifpt.manifold.stored import StoredManifold

LOOKS = [0xFF00, 0x0F, None]


def images(looks):
    table = pa.table({"pixel_sha256": [f"pixels {n}" for n in range(len(looks))]})
    return table.append_column("perceptual_hash", pa.array(looks, pa.uint64()))


def manifold(folder, tables):
    entries = [
        write_rows(folder, f"shard-{n}", table, np.zeros((table.num_rows, 2), np.float32))
        for n, table in enumerate(tables)
    ]
    return StoredManifold(folder, {"shards": entries})


def reals(count, **columns):
    plain = {name: ["a"] * count for name in ROWS if name != "perceptual_hash"}
    return pa.table(plain | columns)


def attributor(folder, **columns):
    seen = pa.table({"pixel_sha256": ["pixels 1", "other"], **columns})
    storage.write_bytes(f"{folder}/{SEEN}", storage.parquet_bytes(seen))
    return TrainedAttributor(str(folder), {})


def test_exact_and_near_are_told_apart_and_flat_images_are_unknown(tmp_path):
    known = attributor(tmp_path, perceptual_hash=pa.array([0x0F, 0xFF01], pa.uint64()))
    real = reals(2, perceptual_hash=pa.array([0x0C, None], pa.uint64()))
    leaks = Leaks.of(known, [manifold(str(tmp_path), [real])], 2)
    table, counts = leaks.marked(images(LOOKS))
    assert table["in_training"].to_pylist() == [False, True, False]
    assert table["near_training"].to_pylist() == [True, True, None]
    assert table["near_manifold"].to_pylist() == [False, True, None]
    expected = {"in_training": 1, "near_training": 2, "near_manifold": 1, "unavailable": []}
    assert counts == expected


@pytest.mark.parametrize("columns", [{}, {"perceptual_hash": pa.nulls(2, pa.uint64())}])
def test_what_was_made_without_hashes_is_unavailable_and_not_passed(tmp_path, columns):
    hashed = reals(1, perceptual_hash=pa.array([0x0F], pa.uint64()))
    mixed = manifold(str(tmp_path), [hashed, reals(1)])
    table, counts = Leaks.of(attributor(tmp_path, **columns), [mixed], 2).marked(images(LOOKS))
    assert table["in_training"].to_pylist() == [False, True, False]
    assert table["near_training"].null_count == table["near_manifold"].null_count == 3
    assert counts["unavailable"] == ["near_training", "near_manifold"]


def test_artifacts_made_without_hashes_can_still_be_read(tmp_path):
    table = pa.table({k: pa.nulls(2, v) for k, v in ARTIFACTS.items() if k != "perceptual_hash"})
    table = table.append_column("artifact", pa.array([[0.0], [1.0]]))
    storage.write_bytes(f"{tmp_path}/a.parquet", storage.parquet_bytes(table))
    assert read_artifacts(f"{tmp_path}/a.parquet")["perceptual_hash"].null_count == 2
    some = read_artifacts(f"{tmp_path}/a.parquet", ["pixel_sha256", "perceptual_hash"])
    assert some.column_names == ["pixel_sha256"]
