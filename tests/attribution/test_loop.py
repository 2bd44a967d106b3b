"""Augmentation, and trainings in legs."""

import numpy as np
import pytest
import torch

from manifpt import storage
from manifpt.attribution.model import loop
from manifpt.attribution.model.loop import augmented, cut_mixed, mirrored_spectra, shifted
from manifpt.attribution.model.network import Design, Head
from manifpt.attribution.model.train import AttributorControl, train_attributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.jobs import compute_artifacts
from manifpt.nets import training
from manifpt.nets.training import STATE
from manifpt.spaces.frequency import Frequency, rounding_noise


def test_only_compact_networks_of_maps_that_are_not_tiny_train_in_mixed_precision(monkeypatch):
    monkeypatch.setattr(loop, "cpu_precision", lambda: torch.bfloat16)
    compact, resnet, vectors = Head(0, "compact"), Head(0, "resnet18"), Head(1, "lda")

    def precision(side, *heads):
        return loop.precision_on_cpu(Design(((3, side, side), (5,)), 2, heads))

    assert precision(8, compact, vectors) == torch.bfloat16
    assert precision(7, compact) is None
    assert precision(28, compact, resnet) is None
    assert precision(28, compact, Head(1, "mlp")) is None


def test_shifts_roll_each_map_by_its_own_move():
    maps = torch.randn(3, 2, 8, 6)
    moves = torch.tensor([[1.0, -2.0], [0.0, 0.0], [-3.4, 2.6]])
    found = shifted(maps, moves)
    for one, row, column, result in zip(maps, (1, 0, -3), (-2, 0, 3), found, strict=True):
        assert torch.equal(result, one.roll((row, column), (1, 2)))


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("size", [4, 7, 12, 15])
def test_a_mirrored_spectrum_is_that_of_the_mirrored_image(size, log):
    images = np.random.default_rng(size).integers(0, 256, (5, size, size, 3), np.uint8)
    space = Frequency(size, rounding_noise(size), log)
    found = mirrored_spectra(torch.from_numpy(space.embed(images)))
    assert found.numpy() == pytest.approx(space.embed(images[:, :, ::-1]), rel=1e-5, abs=1e-5)
    assert torch.equal(mirrored_spectra(found), torch.from_numpy(space.embed(images)))


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("how", ["none", "mirror", "shift"])
def test_the_spaces_of_an_augmented_image_stay_those_of_one_image(how, size):
    """Each image's spectrum is that of its pixels before and after; vectors stay."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
    maps, vectors = torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.randn(64, 5)
    space = Frequency(size, rounding_noise(size))
    spectra = torch.from_numpy(space.embed(images))
    given = [maps.clone(), spectra.clone(), vectors.clone()]
    pixels, freq, same = augmented(given, how, (True, False, True))
    assert torch.equal(same, vectors)
    again = pixels.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert freq.numpy() == pytest.approx(space.embed(again), rel=1e-5, abs=1e-5)
    most = size // 16 if how == "shift" else 0
    moves = [(y, x) for y in range(-most, most + 1) for x in range(-most, most + 1)]
    mirrors = (False, True) if how != "none" else (False,)
    seen = set()
    for one, result in zip(maps, pixels, strict=True):
        fits = [
            (mirror, move)
            for mirror in mirrors
            for move in moves
            if torch.equal(result, (one.flip(-1) if mirror else one).roll(move, (1, 2)))
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert {mirror for mirror, _ in seen} == set(mirrors)
    assert len({move for _, move in seen}) > len(moves) / 2


def test_a_rectangle_of_the_partner_stands_at_its_own_place():
    torch.manual_seed(3)
    maps, small = torch.randn(6, 2, 16, 24), torch.randn(6, 2, 8, 12)
    spectra, vectors = torch.randn(6, 2, 16, 24), torch.randn(6, 5)
    partners = torch.tensor([1, 2, 3, 4, 5, 0])
    kept = []
    for _ in range(300):
        given = [maps, spectra, vectors, small]
        found, shares = cut_mixed(given, (True, False, False, True), partners)
        assert torch.equal(found[1], spectra)
        assert torch.equal(found[2], vectors)
        assert shares[1] == shares[2] == 1
        for n in (0, 3):
            pasted = (found[n] != given[n]).any(1).any(0)
            assert shares[n] == pytest.approx(1 - pasted.float().mean().item())
            rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
            assert pasted.sum() == len(rows) * len(columns)  # it is a rectangle
            assert torch.equal(found[n][:, :, pasted], given[n][partners][:, :, pasted])
        assert shares[0] == pytest.approx(shares[3], abs=0.3)
        kept.append(shares[0])
    assert min(kept) < 0.2
    assert max(kept) > 0.95


@pytest.fixture(scope="module")
def artifacts(ray_session, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("legs")
    flags = ["--input", f"{corpus}/labelled", "--space", "image", "--output", f"{out}/a"]
    assert compute_artifacts.main(flags) == 0
    return f"{out}/a"


def control(**options):
    return AttributorControl(num_workers=1, **options)


@pytest.mark.slow
def test_a_training_in_legs_is_the_training(artifacts, tmp_path):
    options = TrainingRecipe("resnet18", "standard", epochs=4, batch_size=32, patience=0)
    whole = train_attributor([artifacts], f"{tmp_path}/whole", options, control=control())
    for until in (1, 3):
        stop = control(until=until)
        leg = train_attributor([artifacts], f"{tmp_path}/legs", options, control=stop)
        assert len(leg["history"]) == until == leg["state"]["epoch"]
        again = train_attributor([artifacts], f"{tmp_path}/legs", options, control=stop)
        assert again["history"] == leg["history"]  # a leg that is done is not repeated
    legs = train_attributor([artifacts], f"{tmp_path}/legs", options, control=control())
    assert [row["train_loss"] for row in legs["history"]] == pytest.approx(
        [row["train_loss"] for row in whole["history"]], rel=1e-4
    )
    assert legs["best_epoch"] == whole["best_epoch"]


@pytest.mark.slow
def test_a_training_goes_on_from_anothers_state_at_its_own_rate(artifacts, tmp_path):
    options = TrainingRecipe("resnet18", "standard", epochs=3, batch_size=32, patience=0)
    first = train_attributor([artifacts], f"{tmp_path}/a", options, control=control(until=2))
    torch.save(first["state"], tmp_path / STATE)
    still = TrainingRecipe(
        "resnet18",
        "standard",
        epochs=3,
        batch_size=32,
        learning_rate=1e-12,
        weight_decay=0,
        patience=0,
    )
    start = str(tmp_path / STATE)
    manifest = train_attributor([artifacts], f"{tmp_path}/b", still, control=control(start=start))
    assert [r["train_loss"] for r in manifest["history"][:2]] == [
        r["train_loss"] for r in first["history"]
    ]
    weights = torch.load(tmp_path / "b" / "weights.pt", weights_only=True)
    name = "branches.0.trunk.fc.weight"
    if manifest["best_epoch"] == 2:  # at such a rate nothing but batch statistics has moved
        np.testing.assert_allclose(weights[name], first["state"]["network"][name], atol=1e-6)


def test_a_worker_tells_its_pace_once_and_the_driver_prints_it(tmp_path, capsys):
    config = {"epochs_uri": str(tmp_path), "die_at": None, "threads": 1}
    pace = training.Pace(config, 4000, 0)
    for _ in range(3):
        assert list(pace.counted(range(30))) == list(range(30))
    found = storage.read_json(f"{tmp_path}/{training.PACE}")
    assert found["steps"] == 4000
    assert 0 <= found["seconds"] < 1
    training.print_pace({"steps": 4000, "seconds": 0.07})
    assert "train: 4000 steps of 0.070 s, 5 min in all" in capsys.readouterr().err
    assert list(training.Pace(config | {"epochs_uri": "nowhere"}, 4000, 1).counted(range(90)))
