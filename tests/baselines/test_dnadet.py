"""Patches and their contrast: places, a known loss, and a network that learns from both."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from manifpt.attribution.model.compact import compact_network
from manifpt.attribution.model.loop import Trainer, TrainingSettings
from manifpt.attribution.model.network import Design
from manifpt.baselines.dnadet import COUNT, TEMPERATURE, random_patches, supervised_contrast


@pytest.mark.parametrize(("shape", "sides"), [((28, 28), (14, 14)), ((33, 9), (17, 8))])
def test_patches_are_parts_of_their_image_at_many_places(shape, sides):
    torch.manual_seed(0)
    numbered = torch.arange(np.prod(shape)).reshape(1, 1, *shape).float()
    maps = numbered + 10_000 * torch.arange(50)[:, None, None, None]
    (found,) = random_patches([maps], [True])
    assert found.shape == (COUNT * 50, 1, *sides)
    corners = set()
    for number, patch in enumerate(found[:, 0]):
        image, first = number % 50, int(patch[0, 0]) % 10_000
        top, left = divmod(first, shape[1])
        assert torch.equal(patch, maps[image, 0, top : top + sides[0], left : left + sides[1]])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(shape[0] - sides[0] + 1))
    assert {left for _, left in corners} == set(range(shape[1] - sides[1] + 1))


def test_spaces_have_the_same_patches_and_other_inputs_stay():
    maps, vectors = torch.rand(6, 3, 16, 16), torch.rand(6, 4)
    first, again, spectra, same = random_patches(
        [maps, 2 * maps, maps, vectors], [True, True, False, True]
    )
    assert torch.equal(2 * first, again)
    assert torch.equal(spectra, maps.repeat(COUNT, 1, 1, 1))
    assert torch.equal(same, vectors.repeat(COUNT, 1))


def test_the_contrast_is_the_mean_over_partners():
    rows = np.random.default_rng(0).normal(0, 1, (7, 5))
    labels = np.array([0, 1, 0, 2, 1, 2, 0])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = np.exp(unit @ unit.T / TEMPERATURE)
    each = []
    for n in range(7):
        others = [m for m in range(7) if m != n]
        terms = [-np.log(scores[n, m] / scores[n, others].sum()) for m in others]
        each.append(
            np.mean([t for t, m in zip(terms, others, strict=True) if labels[m] == labels[n]])
        )
    found = supervised_contrast(torch.from_numpy(rows), torch.from_numpy(labels))
    assert float(found) == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_network_learns_a_texture_and_not_shuffled_labels(shuffled):
    torch.manual_seed(0)
    truth = torch.arange(80) % 2
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
    maps = torch.randn(80, 3, 16, 16) + board * truth[:, None, None, None]
    labels = truth[torch.randperm(80)] if shuffled else truth
    network = compact_network(3, 2)
    trunk, top = network[:-1], network[-1]
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(12):
        (patches,) = random_patches([maps[:32]], [True])
        features, known = trunk(patches), labels[:32].repeat(COUNT)
        loss = cross_entropy(top(features), known) + supervised_contrast(features, known)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = (network.eval()(maps[32:]).argmax(1) == labels[32:]).float().mean()
    assert abs(found - 0.5) < 0.2 if shuffled else found > 0.9


@pytest.mark.parametrize("fusion", ["late", "early"])
def test_a_trainers_loss_has_both_parts_of_each_head(fusion, monkeypatch):
    monkeypatch.setattr("ray.train.torch.prepare_model", lambda network: network)
    design = Design.of([(3, 16, 16), (3, 16, 16)], 2, "compact", fusion=fusion)
    moments = ((0.0,) * 3, (1.0,) * 3)
    settings = TrainingSettings(
        design, ("a", "b"), (moments, moments), 8, 1, 1, 8, 1e-3, 0.0, 0, 0, "patches", 0.5, 0.0,
        (True, True),
    )  # fmt: skip
    trainer = Trainer(settings, 0, 1, 1)
    maps, labels = [torch.randn(8, 3, 16, 16)] * 2, torch.arange(8) % 2
    trainer._loss(maps, labels).backward()
    assert all(p.grad is not None for p in trainer.network.parameters())
    assert not any(layer._forward_pre_hooks for layer in trainer.network.last_layers())
