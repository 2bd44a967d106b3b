"""Augmentation, and trainings in legs."""

import numpy as np
import pytest
import torch

from jobs import compute_artifacts
from manifpt.attribution.loop import augmented, shifted
from manifpt.attribution.recipe import Options
from manifpt.attribution.train import train_attributor
from manifpt.training import STATE


def test_shifts_roll_each_map_by_its_own_move():
    maps = torch.randn(3, 2, 8, 6)
    moves = torch.tensor([[1.0, -2.0], [0.0, 0.0], [-3.4, 2.6]])
    found = shifted(maps, moves)
    for one, row, column, result in zip(maps, (1, 0, -3), (-2, 0, 3), found, strict=True):
        assert torch.equal(result, one.roll((row, column), (1, 2)))


def test_augmentation_changes_the_maps_of_an_image_alike_and_no_vector():
    torch.manual_seed(0)
    maps, vectors = torch.randn(64, 1, 32, 32), torch.randn(64, 5)
    given = [maps.clone(), maps.clone(), vectors.clone()]
    rgb, freq, same = augmented([a.clone() for a in given], "shift", (True, False, True))
    assert torch.equal(same, vectors)
    mirrored = (freq == maps.flip(-1)).flatten(1).all(1)
    assert 16 < mirrored.sum() < 48
    assert torch.equal(freq[~mirrored], maps[~mirrored])  # spectra do not move
    moved = (rgb != freq).flatten(1).any(1)
    assert moved.sum() > 32
    assert torch.allclose(rgb.sum((1, 2, 3)), maps.sum((1, 2, 3)), atol=1e-3)
    none = augmented([a.clone() for a in given], "none", (True, False, True))
    assert all(torch.equal(a, b) for a, b in zip(none, given, strict=True))


@pytest.fixture(scope="module")
def artifacts(ray_session, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("legs")
    flags = ["--input", f"{corpus}/labelled", "--space", "image", "--output", f"{out}/a"]
    assert compute_artifacts.main(flags) == 0
    return f"{out}/a"


@pytest.mark.slow
def test_a_training_in_legs_is_the_training(artifacts, tmp_path):
    options = Options("resnet18", "standard", epochs=4, batch_size=32, patience=0)
    whole = train_attributor([artifacts], f"{tmp_path}/whole", options, num_workers=1)
    for until in (1, 3):
        leg = train_attributor([artifacts], f"{tmp_path}/legs", options, num_workers=1, until=until)
        assert len(leg["history"]) == until == leg["state"]["epoch"]
        again = train_attributor(
            [artifacts], f"{tmp_path}/legs", options, num_workers=1, until=until
        )
        assert again["history"] == leg["history"]  # a leg that is done is not repeated
    legs = train_attributor([artifacts], f"{tmp_path}/legs", options, num_workers=1)
    assert [row["train_loss"] for row in legs["history"]] == pytest.approx(
        [row["train_loss"] for row in whole["history"]], rel=1e-4
    )
    assert legs["best_epoch"] == whole["best_epoch"]


@pytest.mark.slow
def test_a_training_goes_on_from_anothers_state_at_its_own_rate(artifacts, tmp_path):
    options = Options("resnet18", "standard", epochs=3, batch_size=32, patience=0)
    first = train_attributor([artifacts], f"{tmp_path}/a", options, num_workers=1, until=2)
    torch.save(first["state"], tmp_path / STATE)
    still = Options(
        "resnet18",
        "standard",
        epochs=3,
        batch_size=32,
        learning_rate=1e-12,
        weight_decay=0,
        patience=0,
    )
    start = str(tmp_path / STATE)
    manifest = train_attributor([artifacts], f"{tmp_path}/b", still, num_workers=1, start=start)
    assert [r["train_loss"] for r in manifest["history"][:2]] == [
        r["train_loss"] for r in first["history"]
    ]
    weights = torch.load(tmp_path / "b" / "weights.pt", weights_only=True)
    name = "branches.0.trunk.fc.weight"
    if manifest["best_epoch"] == 2:  # at such a rate nothing but batch statistics has moved
        np.testing.assert_allclose(weights[name], first["state"]["network"][name], atol=1e-6)
