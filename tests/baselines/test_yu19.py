"""The network of Yu et al.: maps of any size, and it learns."""

import pytest
import torch

from manifpt.attribution.model.network import AttributionNetwork, Design, Head
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.baselines.yu19 import yu19_network


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 13, 9), (4, 28, 28), (3, 33, 40), (3, 64, 64)])
def test_it_takes_maps_of_any_size_as_a_head(shape):
    heads = (Head(0, "yu19"), Head(0, "yu19", highpass=True)) if shape[0] == 3 else ()
    for fusion in ("late", "early"):
        design = Design((shape,), 5, heads or (Head(0, "yu19"),), fusion)
        network = AttributionNetwork(design).eval()
        found = network([torch.rand(2, *shape)])
        assert found.shape == (2, 1 if design.is_early else len(design.heads), 5)
        assert torch.isfinite(found).all()


def test_there_are_as_many_reductions_as_lead_to_4_places():
    def reductions(size: int) -> int:
        network = yu19_network(3, 2, size)
        return sum(isinstance(layer, torch.nn.AvgPool2d) for layer in network)

    assert [reductions(size) for size in (8, 15, 28, 32, 64, 128)] == [1, 1, 2, 3, 4, 5]


def test_the_first_level_has_two_convolutions_with_reflected_borders():
    layers = [m for m in yu19_network(3, 2, 28) if isinstance(m, torch.nn.Conv2d)]
    shapes = [(m.in_channels, m.out_channels) for m in layers]
    assert shapes == [(3, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    assert {m.padding_mode for m in layers} == {"reflect"}


def test_options_take_it():
    assert TrainingRecipe(backbone="yu19").resolved(gpu=False).backbone == "yu19"
    assert "Yu et al." in Design.of([(3, 28, 28)], 2, "yu19").describe(["image"])


@pytest.mark.parametrize("shuffled", [False, True])
def test_it_learns_a_checkerboard_and_not_shuffled_labels(shuffled):
    torch.manual_seed(0)
    truth = torch.arange(96) % 2
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    maps = torch.randn(96, 3, 8, 8) + board * truth[:, None, None, None]
    labels = truth[torch.randperm(96)] if shuffled else truth
    network = yu19_network(3, 2, 8)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(15):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(maps[:48]), labels[:48])
        loss.backward()
        optimiser.step()
    found = (network(maps[48:]).argmax(1) == labels[48:]).float().mean()
    assert abs(found - 0.5) < 0.2 if shuffled else found > 0.9
