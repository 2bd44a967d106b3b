"""The attributor that is trained where the user names no space."""

import json

import numpy as np
import pytest
import torch
from conftest import write_folder
from scipy.signal import correlate2d

from manifpt import storage
from manifpt.attribution.model.highpass import CLIP, KERNELS, HighPass
from manifpt.attribution.model.network import AttributionNetwork, Design, Head
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.model.training_recipe import Length, TrainingRecipe
from manifpt.attribution.model.usual import train_usual
from manifpt.errors import ManifptError
from manifpt.images.degrade import KINDS
from manifpt.jobs import attribute, evaluate, train_attribution

SMALL = TrainingRecipe(steps=100, batch_size=16)


@pytest.fixture(scope="module")
def usual(ray_session, tmp_path_factory):
    """Reals enough for a denoiser, and one generator."""
    out = tmp_path_factory.mktemp("usual")
    write_folder(out / "in" / "real", "real", range(1000, 1180))
    write_folder(out / "in" / "stripes", "stripes", range(1000, 1060))
    given = [f"real={out}/in/real", f"stripes={out}/in/stripes"]
    manifest = train_usual(given, f"{out}/t", SMALL, denoiser_steps=10)
    return out, manifest


def test_it_has_several_views_and_weighs_them(usual):
    _, manifest = usual
    assert manifest["heads"] == ["rgb", "image", "image high-pass", "residual"]
    assert len(manifest["weights"]) == 4
    assert min(manifest["weights"]) >= 0


def test_its_manifold_has_seen_reals_of_training_alone(usual):
    out, manifest = usual
    reals = storage.read_json(f"{out}/t/manifold/manifest.json")["reals"]
    # Half of the training images are degraded copies of the others.
    assert 2 * reals == manifest["rows"]["train"]["real"]


def test_it_learns_from_degraded_copies_and_says_what_they_cost(usual):
    out, manifest = usual
    assert manifest["augmentation"]["copies"] == 1
    by_kind = manifest["validation_accuracy_by_degradation"]
    assert set(by_kind) <= {"identity", *KINDS}
    assert by_kind["identity"] > 0.5
    # Groups are compared with images as they are.
    known = TrainedAttributor.open(f"{out}/t").open_set
    assert len(known.labels) == sum(manifest["rows"]["validation"].values()) / 2


def test_options_that_it_decides_itself_are_refused(usual, capsys):
    out, _ = usual
    flags = ["--input", f"real={out}/in/real", f"b={out}/in/stripes", "--output", f"{out}/other"]
    assert train_attribution.main([*flags, "--projector", "tangent"]) == 2
    assert "--space image+residual" in capsys.readouterr().err
    made = ["--input", f"{out}/t/artifacts", "--output", f"{out}/other"]
    assert train_attribution.main([*made, "--degrade", "jpeg"]) == 2
    assert "--augment" in capsys.readouterr().err


def test_other_jobs_take_it_as_any_other(usual, tmp_path):
    out, _ = usual
    model = ["--model", f"{out}/t"]
    flags = ["--input", f"{out}/t/artifacts", "--output", f"{tmp_path}/e"]
    assert evaluate.main([*flags, *model]) == 0
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["accuracy"] > 0.5
    flags = ["--input", f"{out}/in/stripes", "--output", f"{tmp_path}/v"]
    assert attribute.main([*flags, *model]) == 0


@pytest.mark.slow
def test_without_reals_it_does_without_a_manifold(ray_session, tmp_path):
    write_folder(tmp_path / "stripes", "stripes", range(1000, 1060))
    write_folder(tmp_path / "blocks", "blocks", range(1000, 1060))
    given = [f"{name}={tmp_path}/{name}" for name in ("stripes", "blocks")]
    flags = ["--steps", "20", "--batch-size", "16", "--output", f"{tmp_path}/t"]
    assert train_attribution.main(["--input", *given, *flags, "--degrade", "none"]) == 0
    manifest = TrainedAttributor.open(f"{tmp_path}/t").manifest
    assert "augmentation" not in manifest
    assert manifest["heads"] == [
        "image",
        "image high-pass",
        "residual",
    ]


def test_high_pass_residuals_are_correlations():
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 1, (2, 3, 9, 7)).astype(np.float32)
    found = HighPass()(torch.from_numpy(maps)).numpy().reshape(2, 3, len(KERNELS), 9, 7)
    mixed = np.stack([maps.mean(1), maps[:, 0] - maps[:, 1], maps[:, 2] - maps[:, 1]], 1)
    for n, kernel in enumerate(np.array(KERNELS, dtype=np.float64)):
        kernel /= np.abs(kernel).sum() / 2
        for image, channel in np.ndindex(2, 3):
            padded = np.pad(mixed[image, channel], 1, mode="reflect")
            expected = np.clip(correlate2d(padded, kernel, "valid") / CLIP, -1, 1)
            np.testing.assert_allclose(found[image, channel, n], expected, atol=1e-4)


def test_grey_images_have_no_residual_of_colour():
    grey = torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8)
    found = HighPass()(grey).reshape(2, 3, len(KERNELS), 8, 8)
    assert found[:, 0].abs().max() > 0
    assert found[:, 1:].abs().max() == 0


def test_designs_of_earlier_versions_are_read():
    card = {"shapes": [[3, 8, 8], [12]], "classes": 3, "backbone": "resnet18", "stem": "full"}
    design = Design.from_card(card | {"fusion": "late"})
    assert [head.trunk for head in design.heads] == ["resnet18", "mlp"]
    assert AttributionNetwork(design).branches[1].trunk[-1].out_features == 3


def test_heads_may_share_an_input():
    heads = (Head(0, "compact"), Head(0, "compact", highpass=True))
    network = AttributionNetwork(Design(((3, 12, 12),), 4, heads)).eval()
    assert network([torch.rand(2, 3, 12, 12)]).shape == (2, 2, 4)
    part, inputs = Design(((5,), (3, 12, 12)), 4, (Head(0, "mlp"), Head(1, "compact"))).part([1])
    assert (part.shapes, part.heads[0].reads, inputs) == (((3, 12, 12),), 0, [1])


def test_a_budget_in_steps_makes_whole_epochs():
    assert TrainingRecipe(steps=4000, batch_size=64).budget(11_400) == Length(22)
    # Few images are passed over several times an epoch, and many at least once.
    few = TrainingRecipe(steps=4000, batch_size=64).budget(640)
    assert few.passes * 10 >= 100
    assert few.epochs * few.passes * 10 == pytest.approx(4000, rel=0.05)
    assert TrainingRecipe(steps=10, batch_size=64).budget(64_000) == Length(1)
    assert TrainingRecipe(epochs=7).budget(640) == Length(7)


def test_contradictions_are_one_line():
    with pytest.raises(ManifptError, match="--steps"):
        TrainingRecipe(steps=10, epochs=3).resolved(gpu=False)
    assert TrainingRecipe().resolved(gpu=True).backbone == "resnet50"
    assert TrainingRecipe().resolved(gpu=False).backbone == "compact"
