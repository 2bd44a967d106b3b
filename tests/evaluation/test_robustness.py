"""Robust training, curves and ensembles as jobs, against images degraded by hand with Pillow."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import cross_entropy

from manifpt import outputs, storage
from manifpt.artifacts.branches import open_artifacts
from manifpt.artifacts.compute import ArtifactRecipe
from manifpt.artifacts.compute import compute_artifacts as compute
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.attribution.model.trained import AttributorParts, publish_attributor
from manifpt.evaluation.robustness import LEVELS, metrics_by_level
from manifpt.images import Selection, plan
from manifpt.images.sources import content_key
from manifpt.jobs import attribute, build_manifold, compute_artifacts, evaluate, verify
from manifpt.manifold import StoredManifold
from manifpt.manifold.projector import NEAREST
from manifpt.outputs import claims
from manifpt.storage import tensors

CLASSES = ["blocks", "real", "stripes"]


def by_hand(image: Image.Image, how: str) -> Image.Image:
    kind, _, strength = how.partition(":")
    if kind == "jpeg":
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=int(strength))
        return Image.open(sink)
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(float(strength)))
    if kind == "resize":
        side = round(image.width * float(strength))
        return image.resize((side, side), 3).resize(image.size, 3)
    return image


@pytest.fixture(scope="module")
def made(ray_session, corpus, tmp_path_factory) -> Path:
    """Augmented artifacts, and a small attributor of them that no training job made."""
    out = tmp_path_factory.mktemp("robust")
    reals = ["--input", f"real={corpus}/manifold", "--output", f"{out}/m"]
    assert build_manifold.main(reals) == 0
    flags = ["--input", f"{corpus}/labelled", "--manifold", f"{out}/m", "--output", f"{out}/a"]
    flags += ["--augment", *"jpeg blur resize crop noise:0.01-0.05".split(), "--copies", "2"]
    assert compute_artifacts.main([*flags, "--json", f"{out}/a.json"]) == 0
    branches = open_artifacts([f"{out}/a"])
    rows = table(out / "a", "train")
    torch.manual_seed(0)
    design = Design.of(((3, 16, 16),), 3, "resnet18", "standard")
    network = AttributionNetwork(design)
    moments = branches[0].manifest["moments"]["train"]
    network.branches[0].normalise_by(moments["mean"], moments["std"])
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    images = torch.tensor(tensors.from_column(rows["artifact"])).reshape(-1, 3, 16, 16)
    labels = torch.tensor([CLASSES.index(name) for name in rows["source"].to_pylist()])
    for _ in range(20):
        some = torch.randperm(len(images))[:96]
        loss = cross_entropy(network([images[some]])[:, 0], labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = network.eval().state_dict()
    with claims.claim(f"{out}/t", "attributor", "0" * 64) as claim:
        publish_attributor(claim, AttributorParts(branches, design, CLASSES, weights), {"seed": 0})
    return out


def table(folder: Path, split: str):
    return ds.dataset(list(map(str, sorted((folder / split).iterdir())))).to_table()


def test_training_and_validation_have_copies_and_test_has_none(made):
    summary = json.loads((made / "a.json").read_text())
    assert (summary["rows_in"], summary["ok"], summary["quarantined"]) == (180, 180, 0)
    rows = {
        split: table(made / "a", split).to_pylist() for split in ("train", "validation", "test")
    }
    for split, copies in {"train": 2, "validation": 1, "test": 0}.items():
        clean = {row["id"]: row for row in rows[split] if row["degradation"] is None}
        assert len(rows[split]) == (1 + copies) * len(clean)
        per_class = {s: sum(row["source"] == s for row in rows[split]) for s in CLASSES}
        assert summary["classes"][split] == per_class
        for row in rows[split]:
            original = clean[row["id"].partition("~")[0]]
            for name in ("pixel_sha256", "sha256", "source", "uri"):
                assert row[name] == original[name]
    everything = [row for found in rows.values() for row in found]
    assert len({row["id"] for row in everything}) == len(everything) == 180 + summary["copies"]
    train = np.stack([row["artifact"] for row in rows["train"]]).reshape(-1, 3, 256)
    moments = outputs.read(f"{made}/a")["moments"]["train"]
    np.testing.assert_allclose(moments["mean"], train.mean((0, 2), dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(moments["std"], train.std((0, 2), dtype=np.float64), atol=1e-6)


def test_a_copys_artifact_is_that_of_its_degraded_image(made):
    reals = {row["id"]: row for row in manifold_rows(made)}
    checked = 0
    for row in table(made / "a", "train").to_pylist():
        if row["degradation"] and not row["degradation"].startswith(("crop", "noise")):
            image = by_hand(Image.open(row["uri"]), row["degradation"])
            x = (np.asarray(image, np.float64) / 255).transpose(2, 0, 1).ravel()
            distances = {name: np.linalg.norm(x - r["vector"]) for name, r in reals.items()}
            assert row["neighbor_id"] == min(distances, key=distances.get)
            star = reals[row["neighbor_id"]]["vector"]
            np.testing.assert_allclose(row["artifact"], x - star, atol=2e-5)
            checked += 1
    assert checked > 40


def manifold_rows(made: Path) -> list[dict]:
    found = []
    for shard in sorted(made.glob("m/shard-*")):
        ids = storage.read_parquet(str(shard / "rows.parquet"))["id"].to_pylist()
        vectors = np.load(shard / "vectors.npy").reshape(len(ids), -1)
        found += [{"id": i, "vector": v} for i, v in zip(ids, vectors, strict=True)]
    return found


def test_copies_are_verified_and_those_of_another_seed_are_caught(made):
    assert verify.main([f"{made}/m", f"{made}/a", "--rows", "1000"]) == 0
    certificate = storage.read_json(f"{made}/a/certificate.json")
    manifest = storage.read_json(f"{made}/a/manifest.json")
    assert certificate["rows_checked"] == 180 + manifest["copies"]
    other = manifest | {"augment": manifest["augment"] | {"seed": 5}}
    storage.write_json(f"{made}/a/manifest.json", other)
    try:
        assert verify.main([f"{made}/m", f"{made}/a", "--rows", "1000"]) == 1
        wrong = storage.read_json(f"{made}/a/certificate.json")["what"]
        assert all("~" in one["id"] for one in wrong)
        assert len({one["id"] for one in wrong}) > 0.7 * manifest["copies"]
    finally:
        storage.write_json(f"{made}/a/manifest.json", manifest)


@pytest.mark.slow
def test_copies_are_the_same_in_all_sizes_and_of_stored_embeddings(made, corpus, tmp_path):
    flags = ["--input", f"{corpus}/manifold", "--image-size", "12", "--output", f"{tmp_path}/m12"]
    assert build_manifold.main(flags) == 0
    images = ["--input", f"{corpus}/labelled", "--augment", "crop", "noise", "jpeg"]
    both = ["--manifold", f"{made}/m", f"{tmp_path}/m12", "--output", f"{tmp_path}/both"]
    assert compute_artifacts.main([*images, *both]) == 0
    large, small = (table(tmp_path / "both" / name, "train") for name in ("rgb", "rgb-2"))
    for name in ("id", "degradation", "sha256"):
        assert large[name].equals(small[name])
    assert verify.main([f"{tmp_path}/m12", f"{tmp_path}/both/rgb-2", "--rows", "1000"]) == 0
    one = ["--manifold", f"{made}/m", "--output"]
    assert compute_artifacts.main([*images, *one, f"{tmp_path}/e", "--projector", "none"]) == 0
    assert compute_artifacts.main(["--input", f"{tmp_path}/e", *one, f"{tmp_path}/a"]) == 0
    assert table(tmp_path / "a", "train").equals(large)
    again, first = (outputs.read(f"{tmp_path}/{name}") for name in ("a", "both"))
    for name in ("classes", "copies", "augment", "ok"):
        assert again[name] == first[name]
    assert verify.main([f"{made}/m", f"{tmp_path}/a", "--rows", "1000"]) == 0


def test_artifacts_without_copies_keep_the_key_that_they_always_had(made, corpus, tmp_path):
    inputs, manifold = [f"{corpus}/labelled"], StoredManifold.open(f"{made}/m")
    projection = NEAREST.on(manifold.manifest).card()
    made_of = [[manifold.space.card(), manifold.rule.card(), manifold.sha256, projection]]
    units = plan(inputs, Selection(), labelled=True)
    key = storage.digest([content_key(units), None, made_of, "content", False])
    before = {"kind": "artifacts", "key": key, "mark": "made before"}
    storage.write_json(f"{tmp_path}/a/manifest.json", before)
    assert compute(inputs, f"{tmp_path}/a", ArtifactRecipe([f"{made}/m"]))["mark"] == "made before"


@pytest.fixture(scope="module")
def measured(made, corpus) -> Path:
    """Curves of the labelled images, and the usual evaluation of their artifacts."""
    flags = ["--model", f"{made}/t", "--input"]
    levels = ["--levels", "jpeg:50", "blur:1", "noise:0.25", "--json", f"{made}/c.json"]
    images = [*flags, f"{corpus}/labelled", f"other={corpus}/manifold"]
    assert evaluate.main([*images, "--robustness", *levels, "--output", f"{made}/c"]) == 0
    assert evaluate.main([*flags, f"{made}/a", "--output", f"{made}/e"]) == 0
    return made


def test_curves_are_of_the_images_that_evaluation_counts(measured):
    result = storage.read_json(f"{measured}/c/robustness.json")
    metrics = storage.read_json(f"{measured}/e/metrics.json")
    clean, *damaged = result["levels"]
    assert [level["degradation"] for level in damaged] == ["jpeg:50", "blur:1", "noise:0.25"]
    for name in ("accuracy", "accuracy_low", "accuracy_high", "confusion", "macro_f1"):
        assert clean[name] == metrics[name]
    near = result["left_out"]["near_training"]
    assert near == metrics["left_out"]["near_training"] == metrics["near_training"]["images"]
    seen = 180 - metrics["images"] - near
    assert result["left_out"] == {"seen": seen, "other_source": 60, "near_training": near}
    assert result["images"] == metrics["images"]
    assert result["rows_in"] == result["ok"] + result["quarantined"] == 240
    assert clean["accuracy"] > result["chance"] + 0.1
    assert (measured / "c" / "robustness.png").stat().st_size > 5000
    lines = (measured / "c" / "robustness.csv").read_text().splitlines()
    assert lines[0].startswith("degradation,accuracy,accuracy_low,accuracy_high")
    assert [line.split(",")[0] for line in lines[1:]] == [
        level["degradation"] for level in result["levels"]
    ]
    summary = json.loads((measured / "c.json").read_text())
    assert summary["accuracy_jpeg_50"] == damaged[0]["accuracy"]


def test_scores_are_those_of_images_degraded_by_hand(measured, tmp_path):
    """One attribution of files written by Pillow has what curves and an ensemble should say."""
    test = table(measured / "a", "test").to_pylist()[::4]
    views = ("identity", "jpeg:75", "jpeg:90", "resize:0.75")
    (tmp_path / "images").mkdir()
    for row in test:
        for how in (*views, "jpeg:50", "blur:1"):
            name = f"{row['id'].replace('/', '-')}+{how}.png"
            by_hand(Image.open(row["uri"]), how).save(tmp_path / "images" / name)
    flags = ["--input", f"{tmp_path}/images", "--model", f"{measured}/t"]
    assert attribute.main([*flags, "--output", f"{tmp_path}/plain"]) == 0
    assert attribute.main([*flags, "--ensemble", "--output", f"{tmp_path}/ensemble"]) == 0
    plain, ensemble = (
        {row["id"]: row for row in table(tmp_path / name, "attributions").to_pylist()}
        for name in ("plain", "ensemble")
    )
    scores = table(measured / "c", "scores").to_pylist()
    scored = {(row["sha256"], row["degradation"]): row for row in scores}
    for row in test:
        start = row["id"].replace("/", "-")
        for how in ("identity", "jpeg:50", "blur:1"):
            expected, found = plain[f"{start}+{how}.png"], scored[row["sha256"], how]
            assert found["probability"] == pytest.approx(expected["probability"], abs=1e-5)
            assert found["prediction"] == expected["prediction"]
        each = [probabilities(plain[f"{start}+{how}.png"]) for how in views]
        pooled, itself = np.mean(each, axis=0), ensemble[f"{start}+identity.png"]
        np.testing.assert_allclose(probabilities(itself), pooled, atol=1e-5)
        assert itself["prediction"] == CLASSES[int(pooled.argmax())]
        assert itself["agreement"] == sum(p.argmax() == pooled.argmax() for p in each)
        assert itself["distance"] == plain[f"{start}+identity.png"]["distance"]
    assert "agreement" not in next(iter(plain.values()))
    summary = storage.read_json(f"{tmp_path}/ensemble/summary.json")
    assert summary["ensemble"] == list(views)


def probabilities(row: dict) -> np.ndarray:
    found = {entry["source"]: entry["probability"] for entry in row["top_k"]}
    return np.array([found[name] for name in CLASSES])


@pytest.mark.parametrize(
    ("job", "flags", "words"),
    [
        (evaluate, ["--robustness", "--input", "A"], "not artifacts"),
        (evaluate, ["--robustness", "--input", "A", "--levels", "jpg:3"], "--levels: 'jpg:3'"),
        (evaluate, ["--input", "A", "--levels", "jpeg:3"], "--levels: are those of --robustness"),
        (attribute, ["--input", "A", "--ensemble", "blur:-3"], "--ensemble: 'blur:-3'"),
        (compute_artifacts, ["--input", "A", "--augment", "jpeg:200"], "--augment: 'jpeg:200'"),
        (compute_artifacts, ["--input", "x=A", "--manifold", "M", "--copies", "3"], "--copies"),
    ],
)
def test_errors_name_the_option(made, tmp_path, capsys, job, flags, words):
    names = {"A": f"{made}/a", "x=A": f"x={made}/a", "M": f"{made}/m"}
    model = [] if job is compute_artifacts else ["--model", f"{made}/t"]
    flags = [names.get(flag, flag) for flag in flags]
    assert job.main([*flags, *model, "--output", f"{tmp_path}/out"]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_parts_add_up_to_the_curves():
    rng = np.random.default_rng(0)
    parts = [
        {h: {"confusion": rng.integers(0, 9, (3, 3)).tolist(), "confidence": 7.5} for h in LEVELS}
        for _ in range(4)
    ]
    for part in parts:  # every level is of the same images
        part[LEVELS[1]]["confusion"] = part[LEVELS[0]]["confusion"]
    found = metrics_by_level(parts, LEVELS[:2], CLASSES)
    total = np.sum([part[LEVELS[0]]["confusion"] for part in parts], axis=0)
    first, second = found["levels"]
    assert first["accuracy"] == second["accuracy"] == pytest.approx(total.trace() / total.sum())
    assert first["confidence"] == pytest.approx(30 / total.sum())
    assert found["images"] == total.sum()
    assert found["chance"] == pytest.approx(total.sum(1).max() / total.sum())
