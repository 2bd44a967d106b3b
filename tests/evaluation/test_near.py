"""Test images that look like one of training: the oracle compares all pairs bit by bit."""

import json

import handmade
import numpy as np
import pyarrow as pa
import pytest
from conftest import draw, write_folder
from PIL import Image

from manifpt import storage
from manifpt.artifacts.artifact_stage import ARTIFACTS
from manifpt.artifacts.branches import ArtifactBranch
from manifpt.attribution.model.trained import SEEN, near_training, seen_hashes
from manifpt.images.perceptual import DISTANCE, perceptual_hashes, thumbnail
from manifpt.jobs import evaluate

KINDS = handmade.CLASSES


def hash_of(image: np.ndarray) -> int | None:
    return perceptual_hashes([thumbnail(Image.fromarray(image))])[0]


@pytest.fixture(scope="module")
def made(ray_session, tmp_path_factory):
    """Thirty test images and a flat one; what training saw is near some of them, with others."""
    out = tmp_path_factory.mktemp("near")
    for kind in KINDS:
        write_folder(out / "images" / kind, kind, range(10))
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(out / "images" / "real" / "flat.png")
    hashes = [hash_of(draw(kind, n)) for kind in KINDS for n in range(10)]
    seen = [hashes[0] ^ 1, hashes[3] ^ (1 << 40 | 2), hashes[12], hashes[20] ^ 0b111, 0]
    model = handmade.attributor(out / "t")
    looks = pa.array(seen, pa.uint64())
    table = pa.table({"pixel_sha256": list("abcde"), "perceptual_hash": looks})
    storage.write_bytes(f"{model}/{SEEN}", storage.parquet_bytes(table))
    near = np.array([min((h ^ s).bit_count() for s in seen) <= DISTANCE for h in hashes])
    assert near[[0, 3, 12]].all()
    assert not near[20]
    return out, near


def run(out, name, *more):
    flags = ["--input", f"{out}/images", "--model", f"{out}/t", "--output", f"{out}/{name}"]
    assert evaluate.main([*flags, "--json", f"{out}/{name}.json", *more]) == 0
    return json.loads((out / f"{name}.json").read_text())


def rows_of(out, name, folder):
    paths = sorted((out / name / folder).glob("*.parquet"))
    return [row for path in paths for row in storage.read_parquet(str(path)).to_pylist()]


@pytest.mark.slow
def test_what_looks_like_training_is_counted_and_left_out_unless_it_is_kept(made, capsys):
    out, near = made
    usual = run(out, "e")
    printed = capsys.readouterr().err
    kept = run(out, "k", "--keep-near")
    count = int(near.sum())
    assert f"near_training: {count} test images look like" in printed
    assert (usual["images"], kept["images"]) == (31 - count, 31)
    assert usual["left_out"] == {"seen": 0, "other_source": 0, "near_training": count}
    assert kept["left_out"]["near_training"] == 0
    for name in ("images", "without_hash", "accuracy_with", "accuracy_without"):
        assert usual["near_training"][name] == kept["near_training"][name]
    assert usual["near_training"]["without_hash"] == 1
    assert usual["near_training"]["accuracy_without"] == usual["accuracy"]
    assert usual["near_training"]["accuracy_with"] == kept["accuracy"]
    marked = {row["id"]: row["near_training"] for row in rows_of(out, "k", "scores")}
    names = [f"{kind}/{n:04d}.png" for kind in KINDS for n in range(10)]
    assert marked == dict(zip(names, near.tolist(), strict=True)) | {"real/flat.png": None}
    left = rows_of(out, "e", "near_training")
    assert {row["id"] for row in left} == {name for name in names if marked[name]}
    right = [row["source"] == row["prediction"] for row in rows_of(out, "k", "scores")]
    assert kept["accuracy"] == pytest.approx(np.mean(right))
    replaced = run(out, "e", "--keep-near", "--overwrite")
    assert replaced["confusion"] == kept["confusion"]
    assert not rows_of(out, "e", "near_training")
    curves = run(out, "c", "--robustness", "--levels", "blur:1")
    assert (curves["images"], curves["left_out"]) == (usual["images"], usual["left_out"])
    assert curves["accuracy_identity"] == usual["accuracy"]


def test_an_attributor_without_hashes_leaves_nothing_out(made):
    out, _ = made
    handmade.attributor(out / "old" / "t")
    (out / "old" / "images").symlink_to(out / "images")
    found = run(out / "old", "e")["near_training"]
    assert (found["images"], found["without_hash"], found["accuracy_with"]) == (
        0, 31, found["accuracy_without"],
    )  # fmt: skip


def test_validation_images_near_training_are_marked_and_counted(tmp_path, capsys):
    looks = {"train": [0, 0xFF00, None], "validation": [0x3, 0x7, 0xFF01, None, 0xF0F0F0]}
    files = []
    for split, hashes in looks.items():
        columns = {n: pa.nulls(len(hashes), kind) for n, kind in ARTIFACTS.items()}
        columns["source"] = pa.array(["a"] * (len(hashes) - 1) + ["b"])
        columns["pixel_sha256"] = pa.array([f"{split} {n}" for n in range(len(hashes))])
        columns["perceptual_hash"] = pa.array(hashes, pa.uint64())
        path = f"{split}/0.parquet"
        storage.write_bytes(f"{tmp_path}/{path}", storage.parquet_bytes(pa.table(columns)))
        files.append({"folder": split, "path": path})
    branch = ArtifactBranch("rgb", str(tmp_path), {"files": files})
    seen = seen_hashes(branch, ["a", "b"])
    assert seen["near_training"].to_pylist() == [None] * 3 + [True, False, True, None, False]
    assert near_training(seen) == {"validation": 2, "compared": 4, "distance": DISTANCE}
    assert "2 of 4 validation images" in capsys.readouterr().err
    assert near_training(seen_hashes(branch, ["b"])) == {
        "validation": 0, "compared": 1, "distance": DISTANCE,
    }  # fmt: skip
