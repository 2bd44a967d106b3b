"""Pretraining on small pictures, as its user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw, write_folder

from manifpt import storage
from manifpt.jobs import build_manifold, pretrain_embedding
from manifpt.manifold import SearchPlan, StoredManifold
from manifpt.nets.backbone import build_backbone
from manifpt.nets.training import TrainingControl
from manifpt.spaces.pretrain import PretrainingRecipe, SplitStage, dimension_of, pretrain_encoder
from manifpt.spaces.views import Views

SMALL = ["--backbone", "resnet18", "--stem", "standard", "--projector-width", "64"]


@pytest.fixture(scope="module")
def reals(tmp_path_factory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("reals") / "real", "real", range(120))
    (folder / "0004.png").write_bytes(b"no image")
    (folder / "0005.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def trained(ray_session, reals, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "e"
    flags = ["--input", f"real={reals}", "--output", str(out), "--num-workers", "2", *SMALL]
    assert pretrain_embedding.main([*flags, "--epochs", "5", "--batch-size", "32"]) == 0
    return out


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_the_loss_falls_and_every_file_is_accounted_for(trained):
    manifest = manifest_of(trained)
    losses = [epoch["train_loss"] for epoch in manifest["history"]]
    assert len(losses) == 5
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.isfinite(epoch["validation_loss"]) for epoch in manifest["history"])
    assert (manifest["rows_in"], manifest["ok"], manifest["quarantined"]) == (120, 118, 2)
    assert manifest["by_error"] == {"empty": 1, "unknown_format": 1}
    assert sum(manifest["rows"].values()) == 118
    # Three batches of 32, or of 16 in each of two workers; the rest waits for another epoch.
    assert manifest["history"][0]["train_rows"] == manifest["rows"]["train"] // 32 * 32
    left = {path.name for path in trained.iterdir()}
    assert left == {"manifest.json", "weights.pt", "quarantine"}


def test_the_weights_are_torchvisions_without_a_head(trained):
    manifest = manifest_of(trained)
    weights = torch.load(trained / "weights.pt", weights_only=True)
    network = build_backbone("resnet18", None, 3, "standard")
    network.load_state_dict(weights)
    features = network.eval()(torch.zeros(2, 3, 16, 16))
    assert features.shape == (2, manifest["dimension"])
    assert manifest["network_size"] == 16
    torch.manual_seed(0)
    untrained = build_backbone("resnet18", None, 3, "standard").state_dict()
    assert not torch.equal(weights["conv1.weight"], untrained["conv1.weight"])


def test_the_same_command_again_does_nothing(trained, reals):
    before = (trained / "manifest.json").read_bytes()
    flags = ["--input", f"real={reals}", "--output", str(trained), "--num-workers", "2", *SMALL]
    assert pretrain_embedding.main([*flags, "--epochs", "5", "--batch-size", "32"]) == 0
    assert (trained / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_it_goes_on_after_a_worker_died_and_seeds_repeat(trained, reals, tmp_path):
    options = PretrainingRecipe("resnet18", "standard", epochs=5, batch_size=32, projector_width=64)
    output = str(tmp_path / "e")
    control = TrainingControl(num_workers=2, die_at=1)
    pretrain_encoder([f"real={reals}"], output, options, control=control)
    undisturbed, resumed = manifest_of(trained), manifest_of(tmp_path / "e")
    assert resumed["history"] == undisturbed["history"]
    assert resumed["files"] == undisturbed["files"]


def test_views_depend_on_seed_epoch_and_image_alone():
    images = np.stack([draw("real", number, 28) for number in range(6)])
    ids = [str(number) for number in range(6)]
    views = Views(28)
    all_at_once = views(images, ids, 7, 3)
    backwards = views(images[::-1], ids[::-1], 7, 3)
    for name in ("first", "second"):
        assert all_at_once[name].shape == (6, 3, 28, 28)
        np.testing.assert_array_equal(all_at_once[name], backwards[name][::-1])
    assert (all_at_once["first"] != all_at_once["second"]).any(axis=(1, 2, 3)).all()
    for seed, epoch in ((8, 3), (7, 4)):
        other = views(images, ids, seed, epoch)
        assert (all_at_once["first"] != other["first"]).any(axis=(1, 2, 3)).all()


def test_copies_are_held_out_together_and_few_reals_are():
    import hashlib

    from manifpt.images.read import images_table

    rng = np.random.default_rng(0)
    pixels = list(rng.integers(0, 256, (1000, 4, 4, 3), np.uint8))
    rows = [
        {"id": f"{i}", "pixel_sha256": hashlib.sha256(image.tobytes()).hexdigest()}
        for i, image in enumerate(pixels * 2)
    ]
    tables = SplitStage()(images_table(rows, [[image] for image in pixels * 2])).tables
    held_out = {int(i) for i in tables["_images/validation"]["id"].to_pylist()}
    assert held_out == {i % 1000 for i in held_out} | {i % 1000 + 1000 for i in held_out}
    assert 40 < len(held_out) < 160  # 100 expected; five standard deviations
    assert len(held_out) + tables["_images/train"].num_rows == 2000


@pytest.mark.parametrize(
    ("backbone", "stem", "dimension"), [("resnet50", "full", 2048), ("mobilenet_v2", "auto", 1280)]
)
def test_the_dimension_is_that_of_the_last_hidden_layer(backbone, stem, dimension):
    assert dimension_of(backbone, stem, 28) == dimension


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input", "NONE"], "decoded"),
        (["--input", "BENCHMARK"], "--input: nothing in it is of"),
        (["--input", "REALS", "--backbone", "resnet19"], "--backbone resnet19: not a torchvision"),
        (["--input", "REALS", "--backbone", "vit_b_16"], "--backbone vit_b_16: does not make"),
        (["--input", "REALS", "--backbone", "inception_v3", "--image-size", "80"], "inception_v3"),
        (["--input", "REALS", *SMALL, "--batch-size", "256"], "--batch-size 256: more than the 1"),
        (["--input", "REALS", *SMALL, "--batch-size", "3", "--num-workers", "2"], "at least 4"),
        (["--input", "REALS", *SMALL, "--num-workers", "99"], "too small"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(ray_session, reals, tmp_path, capsys, flags, words):
    none = tmp_path / "none"
    none.mkdir()
    (none / "a.txt").write_text("hello")
    generated = tmp_path / "benchmark"
    write_folder(generated / "gan", "stripes", range(2))
    file = {"path": "gan", "source": "gan", "split": "train", "sha256": "0" * 64}
    (generated / "card.json").write_text(json.dumps({"manifpt": "0", "files": [file]}))
    names = {"NONE": str(none), "REALS": f"real={reals}", "BENCHMARK": str(generated)}
    given = [names.get(flag, flag) for flag in flags]
    assert pretrain_embedding.main([*given, "--output", f"{tmp_path}/out"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_encoder_makes_a_space_from_s3_too(trained, reals, s3, tmp_path):
    """Its folder says what the network is; a manifold carries a copy of the weights."""
    for name in ("manifest.json", "weights.pt"):
        storage.write_bytes(f"{s3}/encoder/{name}", (trained / name).read_bytes())
    flags = ["--input", f"real={reals}", "--space", "ssl", "--ssl-weights", f"{s3}/encoder"]
    assert build_manifold.main([*flags, "--output", f"{tmp_path}/m"]) == 0
    manifold = StoredManifold.open(f"{tmp_path}/m")
    card = manifold.manifest["space"]
    assert (card["backbone"], card["network_size"], card["stem"]) == ("resnet18", 16, "standard")
    assert manifold.manifest["shape"] == [manifest_of(trained)["dimension"]]
    images = np.stack([draw("real", n) for n in (0, 1)])
    shard = manifold.read(SearchPlan())
    stored = [shard.vectors[list(shard.ids).index(f"real/{n:04d}.png")] for n in (0, 1)]
    assert np.array_equal(manifold.space.embed(images), stored)
