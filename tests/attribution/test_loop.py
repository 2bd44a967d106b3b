"""Mixed precision, and trainings in legs."""

import numpy as np
import pytest
import torch

from manifpt import storage
from manifpt.attribution.model import loop
from manifpt.attribution.model.network import Design, Head
from manifpt.attribution.model.train import AttributorControl, train_attributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.jobs import compute_artifacts
from manifpt.nets import training
from manifpt.nets.training import STATE


def test_only_compact_networks_of_maps_that_are_not_tiny_train_in_mixed_precision(monkeypatch):
    monkeypatch.setattr(loop, "cpu_precision", lambda: torch.bfloat16)
    compact, resnet, vectors = Head(0, "compact"), Head(0, "resnet18"), Head(1, "lda")

    def precision(side, *heads):
        return loop.precision_on_cpu(Design(((3, side, side), (5,)), 2, heads))

    assert precision(8, compact, vectors) == torch.bfloat16
    assert precision(7, compact) is None
    assert precision(28, compact, resnet) is None
    assert precision(28, compact, Head(1, "mlp")) is None


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
