"""Several spaces at once: one pass over the images, one attributor, each part as if alone."""

import json
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from conftest import mobilenet, write_folder

from manifpt import storage
from manifpt.artifacts.branches import open_artifacts, read_branches
from manifpt.attribution.model.fusion import fit_weights
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.errors import ManifptError
from manifpt.jobs import (
    attribute,
    build_manifold,
    compute_artifacts,
    evaluate,
    fuse,
    train_attribution,
    verify,
)
from manifpt.storage import tensors

SL = ["--sl-network", "mobilenet_v2", "--sl-weights", mobilenet(), "--network-size", "32"]
NETWORK = ["--backbone", "resnet18", "--stem", "half", "--epochs", "6", "--batch-size", "32"]


@pytest.fixture(scope="module")
def out(ray_session, tmp_path_factory) -> Path:
    """Manifolds and artifacts of three spaces in one pass; pictures larger than some of them."""
    out = tmp_path_factory.mktemp("combined")
    write_folder(out / "reals", "real", range(60), size=20)
    for kind in ("real", "stripes", "blocks"):
        write_folder(out / "labelled" / kind, kind, range(1000, 1060), size=20)
    (out / "labelled" / "real" / "broken.png").write_bytes(b"no image")
    flags = ["--input", f"real={out}/reals", "--space", "rgb+freq+sl", *SL]
    assert build_manifold.main([*flags, "--output", f"{out}/m"]) == 0
    flags = ["--input", f"{out}/labelled", "--manifold", f"{out}/m", "--space", "image"]
    assert compute_artifacts.main([*flags, "--output", f"{out}/a"]) == 0
    return out


def test_a_manifold_of_several_is_the_one_that_is_built_alone(out):
    flags = ["--input", f"real={out}/reals", "--space", "sl", *SL]
    assert build_manifold.main([*flags, "--output", f"{out}/alone"]) == 0
    made, alone = (storage.read_json(f"{out}/{p}/manifest.json") for p in ("m/sl", "alone"))
    assert made["content_sha256"] == alone["content_sha256"]
    assert (out / "m" / "sl" / "weights.pth").read_bytes() == Path(mobilenet()).read_bytes()
    together = storage.read_json(f"{out}/m/manifest.json")
    assert together["rows_in"] == together["ok"] == 60


def table(folder: Path) -> dict[str, dict]:
    files = [str(p) for s in ("train", "validation", "test") for p in (folder / s).iterdir()]
    return {row["id"]: row for row in ds.dataset(files).to_table().to_pylist()}


def test_each_spaces_artifacts_are_those_that_are_made_alone(out):
    flags = ["--input", f"{out}/labelled", "--manifold", f"{out}/m/freq"]
    assert compute_artifacts.main([*flags, "--output", f"{out}/freq"]) == 0
    alone, together = table(out / "freq"), table(out / "a" / "freq")
    assert len(alone) == 180
    for key, row in alone.items():
        assert together[key] == row
    manifest = storage.read_json(f"{out}/a/manifest.json")
    assert manifest["members"] == ["rgb", "freq", "sl", "image"]
    assert (manifest["rows_in"], manifest["ok"], manifest["quarantined"]) == (181, 180, 1)
    assert verify.main([f"{out}/m/sl", f"{out}/a/sl", "--rows", "50"]) == 0


@pytest.mark.slow
def test_a_manifold_whose_images_have_another_size_decodes_them_once_in_both(out):
    flags = ["--input", f"real={out}/reals", "--image-size", "12"]
    assert build_manifold.main([*flags, "--output", f"{out}/m12"]) == 0
    flags = ["--input", f"{out}/labelled", "--manifold"]
    both = [*flags, f"{out}/m/rgb", f"{out}/m12", "--output", f"{out}/sizes"]
    assert compute_artifacts.main(both) == 0
    assert compute_artifacts.main([*flags, f"{out}/m12", "--output", f"{out}/small"]) == 0
    small, both = table(out / "small"), table(out / "sizes" / "rgb-2")
    for key, row in small.items():
        for name in ("artifact", "neighbor_id", "distance", "pixel_sha256"):
            assert both[key][name] == row[name]


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["late", "early"])
def test_a_combination_is_trained_evaluated_and_attributes(out, tmp_path, capsys, fusion):
    spaces = [f"{out}/a/{space}" for space in ("rgb", "sl", "image")]
    flags = ["--fusion", fusion, *NETWORK, "--num-workers", "2" if fusion == "late" else "1"]
    assert train_attribution.main(["--input", *spaces, *flags, "--output", f"{tmp_path}/t"]) == 0
    assert f"sl 1280 -> residual MLP; image 3 x 20 x 20 -> resnet18, stem half; {fusion}" in (
        capsys.readouterr().err
    )
    flags = ["--model", f"{tmp_path}/t", "--input"]
    assert evaluate.main([*flags, *spaces, "--output", f"{tmp_path}/e"]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["accuracy"] > metrics["chance"] + 0.2
    mixed = write_folder(tmp_path / "mixed", "stripes", range(1000, 1060), size=20)
    assert attribute.main([*flags, str(mixed), "--output", f"{tmp_path}/v"]) == 0
    verdicts = ds.dataset(tmp_path / "v" / "attributions").to_table().to_pandas()
    scores = ds.dataset(tmp_path / "e" / "scores").to_table().to_pandas()
    both = verdicts.merge(scores, on="sha256")
    assert len(both) > 5
    np.testing.assert_allclose(both["probability_x"], both["probability_y"], atol=1e-5)
    assert (both["neighbor_id_x"] == both["neighbor_id_y"]).all()
    assert evaluate.main([*flags, f"{out}/a/rgb", "--output", f"{tmp_path}/no"]) == 2
    assert "the attributor's are rgb+sl+image" in capsys.readouterr().err


@pytest.mark.slow
def test_trained_attributors_fuse_without_training(out, tmp_path, capsys):
    for space in ("sl", "image"):
        flags = ["--input", f"{out}/a/{space}", *NETWORK, "--epochs", "2"]
        assert train_attribution.main([*flags, "--output", f"{tmp_path}/{space}"]) == 0
    flags = [f"{tmp_path}/sl", f"{tmp_path}/image", "--output", f"{tmp_path}/fused"]
    assert fuse.main(flags) == 0
    fused, *members = (TrainedAttributor.open(f"{tmp_path}/{n}") for n in ("fused", "sl", "image"))
    paths = [str(p) for p in sorted((out / "a" / "sl" / "test").iterdir())]
    found = [ds.dataset([p.replace("/sl/", f"/{s}/") for p in paths]).to_table() for s in
             ("sl", "image")]  # fmt: skip
    artifacts = [tensors.from_column(table["artifact"]) for table in found]
    # A member's own weight calibrates it alone; in the fusion it has another.
    each = [m.fused(m.outputs([a]).logits, [1.0]) for m, a in zip(members, artifacts, strict=True)]
    expected = np.prod([p**w for p, w in zip(each, fused.manifest["weights"], strict=True)], axis=0)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(fused.probabilities(artifacts), expected, atol=1e-5)
    least = min(m.manifest["validation_loss"] for m in members)
    assert fused.manifest["validation_loss"] <= least + 1e-4
    assert fuse.main([f"{tmp_path}/sl", "--output", f"{tmp_path}/x"]) == 2
    assert "models: give two" in capsys.readouterr().err


def test_evidence_is_that_of_the_first_space_with_a_manifold_whatever_the_order(out):
    path = open_artifacts([f"{out}/a/rgb"])[0].files("train")[0]
    alone = read_branches([f"{out}/a/rgb/{path}"])
    both = read_branches([f"{out}/a/{space}/{path}" for space in ("image", "rgb")])
    for name in ("neighbor_id", "distance", "percentile", "in_manifold"):
        assert both[name].equals(alone[name])
        assert both[name].null_count == 0


def test_artifacts_of_other_images_do_not_combine(out, tmp_path):
    flags = ["--input", f"{out}/labelled/blocks", f"{out}/labelled/real", "--space", "image"]
    assert compute_artifacts.main([*flags, "--output", f"{tmp_path}/b"]) == 0
    with pytest.raises(ManifptError, match="not of the same images"):
        open_artifacts([f"{out}/a/rgb", f"{tmp_path}/b"])


def test_late_fusion_learns_each_space_as_if_alone():
    """Heads share no weights: what one space's logits are does not depend on the others."""
    torch.manual_seed(0)
    design = Design.of(((3, 8, 8), (12,)), 3, "resnet18", "full")
    network = AttributionNetwork(design)
    artifacts = [torch.randn(6, 3, 8, 8), torch.randn(6, 12)]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.nn.functional.cross_entropy(network(artifacts)[:, 1], labels).backward()
    assert not any(p.grad.any() for p in network.branches[0].parameters())
    assert all(p.grad.any() for p in network.branches[1].parameters())


def test_weights_of_heads_are_those_of_a_search():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600)
    good = rng.normal(0, 1, (600, 4))
    good[np.arange(600), labels] += 2
    sharp, noise = 5 * good, rng.normal(0, 1, (600, 4))
    logits = torch.tensor(np.stack([sharp, noise], 1))
    found = fit_weights(logits, torch.tensor(labels))

    def loss(weights: np.ndarray) -> float:
        log_p = logits - torch.logsumexp(logits, 2, keepdim=True)
        pooled = (log_p.numpy() * weights[:, None]).sum(1)
        pooled = pooled - np.log(np.exp(pooled).sum(1, keepdims=True))
        return -pooled[np.arange(600), labels].mean()

    grid = [np.array([a, b]) for a in np.linspace(0.02, 0.5, 49) for b in np.linspace(0, 0.3, 16)]
    best = min(map(loss, grid))
    assert loss(found.numpy()) <= best + 1e-6
    # Five times as sharp as the likelihood ratio of two classes 2 apart, which is 2 a unit.
    assert float(found[0]) == pytest.approx(2 / 5, abs=0.05)
    assert float(found[1]) < 0.05


def test_branches_of_a_network_have_trunks_that_suit_their_shapes():
    design = Design.of(((3, 16, 16), (64, 4, 4), (40,)), 5, "resnet18", "auto", "early")
    network = AttributionNetwork(design).eval()
    artifacts = [torch.randn(2, *shape) for shape in design.shapes]
    assert network(artifacts).shape == (2, 1, 5)
    late = AttributionNetwork(Design.of(design.shapes, 5, "resnet18")).eval()
    assert late(artifacts).shape == (2, 3, 5)
    assert torch.allclose(late.fuse(late(artifacts)).exp().sum(1), torch.ones(2))
    assert Design.from_card(json.loads(json.dumps(design.card()))) == design
