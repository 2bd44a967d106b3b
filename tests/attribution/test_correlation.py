"""Correlation with class means, against NumPy's; and as the head of a network."""

import numpy as np
import torch

from manifpt.attribution.model.correlation import StandardisedRows, fit_correlation
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.attribution.model.train import FittedHead, joined_heads

CLASSES, SIZE = 3, 400


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    patterns = np.random.default_rng(9).normal(0, 1, (CLASSES, SIZE))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    rows = rng.normal(5, 1, (count, 1)) + 0.3 * patterns[labels] + rng.normal(0, 1, (count, SIZE))
    return rows.astype(np.float32), labels


def test_logits_are_correlations_with_the_mean_of_each_class():
    rows, labels = drawn(300, 0)
    found = fit_correlation([(rows[:100], labels[:100]), (rows[100:], labels[100:])], CLASSES)
    design = Design.of([(SIZE,)], CLASSES, vectors="correlation")
    head = FittedHead(found, [0.0] * SIZE, [1.0] * SIZE)
    network = joined_heads(design, [], {}, {0: head})
    others, truth = drawn(200, 1)
    logits = network([torch.from_numpy(others)])[:, 0].detach().numpy()
    means = [rows[labels == c].astype(float).mean(0) for c in range(CLASSES)]
    expected = [[np.corrcoef(row, mean)[0, 1] for mean in means] for row in others]
    np.testing.assert_allclose(logits / np.sqrt(SIZE), expected, atol=1e-5)
    assert (logits.argmax(1) == truth).mean() > 0.95


def test_a_design_opens_again_with_its_head_in_closed_form():
    design = Design.of([(SIZE,), (3, 8, 8)], CLASSES, "compact", vectors="correlation")
    again = Design.from_card(design.card())
    assert again == design
    assert again.discriminants == [0]
    assert again.heads[0].coordinates == CLASSES
    assert not again.heads[0].is_trained
    assert "correlation" in again.describe(["marra19", "image"])
    branch = AttributionNetwork(again).branches[0]
    assert isinstance(branch.get_submodule("trunk"), StandardisedRows)


def test_an_image_without_residual_is_like_no_class():
    rows, labels = drawn(60, 2)
    found = fit_correlation([(rows, labels)], CLASSES)
    network = joined_heads(
        Design.of([(SIZE,)], CLASSES, vectors="correlation"),
        [],
        {},
        {0: FittedHead(found, [0.0] * SIZE, [1.0] * SIZE)},
    )
    assert network([torch.zeros(1, SIZE)]).abs().max() == 0
