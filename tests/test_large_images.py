"""Large images from end to end: native tiles in, one row an image out."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from manifpt import storage
from manifpt.artifacts.branches import open_artifacts, read_artifacts
from manifpt.artifacts.projection import decoding_of
from manifpt.attribution.crawl.stage import AttributeStage
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.images import plan, read_unit
from manifpt.images.ids import image_id
from manifpt.jobs import (
    attribute,
    build_manifold,
    compute_artifacts,
    evaluate,
    train_attribution,
    verify,
)
from manifpt.manifold import StoredManifold
from manifpt.registry.pyfunc import AttributorModel
from manifpt.storage import tensors

# Numbers of first images by kind, such that each has two validation images at least.
KINDS = {"cubic": 0, "nearest": 100, "real": 300}
SIZE, TILES, IMAGES = 32, 4, 16


def drawn(kind: str, number: int, width: int = 256, height: int = 256) -> np.ndarray:
    """The same smooth content for all kinds, with fine, nearest or bicubic upsampled noise."""
    rng = np.random.default_rng([number, sum(map(ord, kind))])
    y, x = np.mgrid[:height, :width] / 64
    waves = rng.uniform(-3, 3, (6, 3))
    content = sum(np.sin(a * x + b * y + c) for a, b, c in waves)[..., None]
    side = 1 if kind == "real" else 2
    noise = rng.normal(0, 12, (height // side, width // side, 3)).astype(np.float32)
    filters = {"nearest": Image.Resampling.NEAREST, "cubic": Image.Resampling.BICUBIC}
    if kind in filters:
        planes = [Image.fromarray(noise[..., c]) for c in range(3)]
        noise = np.stack([p.resize((width, height), filters[kind]) for p in planes], -1)
    return np.clip(128 + 15 * content + noise, 0, 255).round().astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


@pytest.fixture(scope="module")
def made(ray_session, tmp_path_factory):
    """A manifold in tiles, artifacts on it beside the images, an attributor, and strangers."""
    out = tmp_path_factory.mktemp("tiled")
    for kind, first in KINDS.items():
        (out / kind).mkdir()
        for number in range(IMAGES):
            (out / kind / f"{number:02d}.png").write_bytes(png(drawn(kind, first + number)))
    (out / "reals").mkdir()
    for number in range(8):
        (out / "reals" / f"{number}.png").write_bytes(png(drawn("real", 1000 + number)))
    (out / "web").mkdir()
    for number in range(3):
        (out / "web" / f"{number}.png").write_bytes(png(drawn("nearest", 2000 + number)))
    (out / "web" / "large.png").write_bytes(png(drawn("nearest", 3000, 1024, 1024)))
    (out / "web" / "own.png").write_bytes(png(drawn("real", 3001, SIZE, SIZE)))
    (out / "web" / "tiny.png").write_bytes(png(drawn("real", 3002, 20, 28)))
    (out / "web" / "broken.png").write_bytes(b"no image")
    (out / "web" / "again.png").write_bytes((out / "reals" / "3.png").read_bytes())
    flags = ["--image-size", f"{SIZE}", "--tiles", f"{TILES}", "--output", f"{out}/m"]
    assert build_manifold.main(["--input", f"real={out}/reals", *flags]) == 0
    flags = ["--manifold", f"{out}/m", "--space", "image", "--output", f"{out}/a"]
    assert compute_artifacts.main(["--input", *(f"{k}={out}/{k}" for k in KINDS), *flags]) == 0
    network = ["--backbone", "compact", "--steps", "200", "--batch-size", "32"]
    flags = ["--input", f"{out}/a", "--output", f"{out}/t", *network]
    assert train_attribution.main(flags) == 0
    flags = ["--input", f"{out}/web", "--model", f"{out}/t", "--output", f"{out}/w"]
    assert attribute.main(flags) == 0
    return out


def tables(folder, name):
    manifest = storage.read_json(f"{folder}/manifest.json")
    paths = [file["path"] for file in manifest["files"] if file["folder"] == name]
    return pa.concat_tables([storage.read_parquet(f"{folder}/{path}") for path in paths])


def test_each_tile_of_a_real_is_a_point_of_the_manifold(made):
    manifold = StoredManifold.open(f"{made}/m")
    assert manifold.rule.tiles == TILES
    assert manifold.manifest["rows_in"] == manifold.manifest["ok"] == 8
    assert manifold.manifest["reals"] == 8 * TILES
    ids = [str(name) for block in manifold.blocks(2**30) for name in block.ids]
    assert len(set(ids)) == len(ids) == 8 * TILES
    assert len({image_id(name) for name in ids}) == 8


def test_artifacts_have_a_row_a_tile_and_count_images(made):
    for branch in open_artifacts([f"{made}/a"]):
        manifest = branch.manifest
        assert manifest["rows_in"] == manifest["ok"] == 3 * IMAGES
        for split in ("train", "validation", "test"):
            assert manifest["tiles"][split] == {
                kind: TILES * count for kind, count in manifest["classes"][split].items()
            }
        for split in ("train", "validation", "test"):
            for path in branch.files(split):
                table = read_artifacts(f"{branch.uri}/{path}")
                assert table["tile"].to_pylist() == [*range(TILES)] * (table.num_rows // TILES)
                assert table.group_by(["id", "tile"]).aggregate([]).num_rows == table.num_rows
    assert sum(sum(c.values()) for c in manifest["classes"].values()) == 3 * IMAGES


def test_the_certificate_covers_tiles(made):
    assert verify.main([f"{made}/m", f"{made}/a/rgb", "--rows", "12"]) == 0
    certificate = storage.read_json(f"{made}/a/rgb/certificate.json")
    assert certificate["mismatches"] == 0
    assert certificate["rows_checked"] == 12


def test_a_folder_of_any_sizes_has_one_row_an_image(made):
    summary = storage.read_json(f"{made}/w/summary.json")
    assert (summary["rows_in"], summary["ok"], summary["quarantined"]) == (8, 7, 1)
    assert sum(storage.read_json(f"{made}/w/manifest.json")["rows_over_time"]["rows"]) == 8
    rows = {row["id"]: row for row in tables(f"{made}/w", "attributions").to_pylist()}
    names = {name.rpartition("/")[2]: row for name, row in rows.items()}
    assert len(rows) == 7
    counts = {name: row["tiles"] for name, row in names.items()}
    assert counts.pop("own.png") == counts.pop("tiny.png") == 1
    assert set(counts.values()) == {TILES}
    for name, row in names.items():
        side = {"large.png": 1024, "own.png": SIZE, "tiny.png": SIZE}.get(name, 256)
        shown = row["deciding_tiles"]
        assert len(shown) == min(3, row["tiles"])
        assert all(0 <= tile[axis] <= side - SIZE for tile in shown for axis in "xy")
        chances = [tile["probability"] for tile in shown]
        assert chances == sorted(chances, reverse=True)
        if row["tiles"] == 1:
            assert chances[0] == pytest.approx(row["probability"])
    # The real is there as a whole; no tile of it met itself.
    assert [name for name, row in names.items() if row["in_manifold"]] == ["again.png"]
    assert names["again.png"]["distance"] > 0
    right = [names[name]["prediction"] == "nearest" for name in ("0.png", "1.png", "2.png")]
    assert sum(right) >= 2


def stage_of(made):
    model = f"{made}/t"
    targets = trained_targets(TrainedAttributor.open(model), ()).values()
    stage = AttributeStage(model, [target.projector_alone() for target in targets])
    rule, sizes = decoding_of(stage.projectors)
    (unit,) = plan([f"{made}/web"])
    (table,) = read_unit(unit, rule, other_sizes=sizes)
    return stage, table.filter(table["error"].is_null())


def test_answers_are_the_pool_of_tiles_whatever_the_batch(made):
    stage, table = stage_of(made)
    whole = stage.attributions(table)
    for n in range(table.num_rows):
        (alone,) = stage.attributions(table.slice(n, 1)).to_pylist()
        (among,) = whole.slice(n, 1).to_pylist()
        for name in ("probability", "distance", "unknown_score", "percentile"):
            assert alone[name] == pytest.approx(among[name], rel=1e-3, abs=1e-4)
        for name in ("id", "prediction", "neighbor_id", "tiles", "in_manifold"):
            assert alone[name] == among[name]
    # By hand, of one image: pixels cut out, projected on the nearest real, pooled.
    network = stage.attributor.network()
    manifold = next(p.manifold for p in stage.projectors if p.manifold)
    reals = np.concatenate([block.vectors for block in manifold.blocks(2**30)])
    row = next(r for r in whole.to_pylist() if r["id"].endswith("large.png"))
    pixels = drawn("nearest", 3000, 1024, 1024)
    places = table["tile_places"].to_pylist()[whole["id"].to_pylist().index(row["id"])]
    cut = [pixels[p["y"] : p["y"] + SIZE, p["x"] : p["x"] + SIZE] for p in places]
    vectors = np.stack(cut).transpose(0, 3, 1, 2).astype(np.float32) / 255
    flat = vectors.reshape(len(cut), -1)
    away = np.linalg.norm(flat[:, None] - reals[None], axis=2)
    near = (flat - reals[away.argmin(1)]).reshape(vectors.shape)
    assert row["distance"] == pytest.approx(away.min(1).mean(), rel=1e-5)
    by_name = {"rgb": near, "image": vectors}
    given = [torch.from_numpy(by_name[b["name"]]) for b in stage.attributor.branches]
    with torch.inference_mode():
        each = torch.log_softmax(network(given), 2).mean(0)  # heads x classes
        odds = (each * network.weights[:, None]).sum(0).softmax(0)
    assert row["probability"] == pytest.approx(float(odds.max()), rel=1e-3)
    assert row["prediction"] == stage.attributor.classes[int(odds.argmax())]


def test_evaluation_calibration_and_the_served_model_count_images(made):
    flags = ["--input", f"{made}/a", "--model", f"{made}/t", "--output", f"{made}/e"]
    assert evaluate.main(flags) == 0
    metrics = storage.read_json(f"{made}/e/metrics.json")
    artifacts = open_artifacts([f"{made}/a"])[0].manifest["classes"]
    assert metrics["images"] == sum(artifacts["test"].values())
    attributor = TrainedAttributor.open(f"{made}/t")
    validation = sum(artifacts["validation"].values())
    assert attributor.manifest["calibration"]["rows"] == validation
    seen = attributor.seen_table()
    assert seen.num_rows == validation + sum(artifacts["train"].values())
    served = AttributorModel()
    served.load_context(SimpleNamespace(artifacts={"attributor": f"{made}/t"}))
    paths = sorted((made / "web").iterdir())
    found = served.predict(None, pd.DataFrame({"image": [p.read_bytes() for p in paths]}))
    rows = {r["id"].rpartition("/")[2]: r for r in tables(f"{made}/w", "attributions").to_pylist()}
    for path, row in zip(paths, found.to_dict("records"), strict=True):
        assert (row["status"] == "ok") == (path.name in rows)
        if path.name in rows:
            assert row["prediction"] == rows[path.name]["prediction"]
            assert row["probability"] == pytest.approx(rows[path.name]["probability"], rel=1e-3)


@pytest.mark.slow
def test_views_and_robustness_degrade_tiles(made):
    flags = ["--input", *(f"{k}={made}/{k}" for k in KINDS), "--model", f"{made}/t"]
    more = ["--robustness", "--levels", "jpeg:80", "--output", f"{made}/r"]
    assert evaluate.main([*flags, *more]) == 0
    result = storage.read_json(f"{made}/r/robustness.json")
    assert [level["degradation"] for level in result["levels"]] == ["identity", "jpeg:80"]
    assert result["rows_in"] == 3 * IMAGES
    flags = ["--input", f"{made}/web", "--model", f"{made}/t", "--output", f"{made}/v"]
    assert attribute.main([*flags, "--ensemble"]) == 0
    table = tables(f"{made}/v", "attributions")
    assert table.num_rows == 7
    assert {"agreement", "tiles", "deciding_tiles"} <= set(table.column_names)


@pytest.mark.slow
def test_a_space_of_whole_images_is_repeated_for_the_tiles(made):
    common = ["--input", f"real={made}/reals", "--image-size", f"{SIZE}"]
    flags = ["--tiles", "0", "--space", "freq", "--output", f"{made}/m0"]
    assert build_manifold.main([*common, *flags]) == 0
    assert StoredManifold.open(f"{made}/m0").manifest["reals"] == 8
    flags = ["--input", f"nearest={made}/nearest", "--manifold", f"{made}/m0", f"{made}/m"]
    assert compute_artifacts.main([*flags, "--output", f"{made}/both"]) == 0
    tiled, whole = open_artifacts([f"{made}/both"])
    assert (tiled.name, whole.name) == ("rgb", "freq")
    for path in tiled.files("train"):
        first, second = (read_artifacts(f"{b.uri}/{path}") for b in (tiled, whole))
        assert first["id"] == second["id"]
        artifacts = tensors.from_column(second["artifact"])
        blocks = artifacts.reshape(-1, TILES, artifacts.shape[1])
        assert (blocks == blocks[:, :1]).all()
        assert len(np.unique(artifacts, axis=0)) == second.num_rows // TILES


def test_images_of_the_size_are_seen_as_before(ray_session, tmp_path):
    (tmp_path / "reals").mkdir()
    for number in range(6):
        (tmp_path / "reals" / f"{number}.png").write_bytes(png(drawn("real", number, 16, 16)))
    flags = ["--input", f"real={tmp_path}/reals", "--output"]
    assert build_manifold.main([*flags, f"{tmp_path}/usual"]) == 0
    assert build_manifold.main([*flags, f"{tmp_path}/zero", "--tiles", "0"]) == 0
    assert build_manifold.main([*flags, f"{tmp_path}/four", "--tiles", "4"]) == 0
    usual, zero, four = (StoredManifold.open(f"{tmp_path}/{n}") for n in ("usual", "zero", "four"))
    assert "tiles" not in usual.manifest["decode"]
    assert usual.sha256 == zero.sha256
    contents = [[s["content"] for s in m.manifest["shards"]] for m in (usual, four)]
    assert contents[0] == contents[1]
    assert build_manifold.main([*flags, f"{tmp_path}/sl", "--space", "image", "--tiles", "4"]) != 0
