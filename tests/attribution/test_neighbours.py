"""Votes of the nearest vectors, against scikit-learn's; and as the head of a network."""

import numpy as np
import pytest
import torch

from manifpt.attribution.model.neighbours import COUNTS, StoredVectors, fit_neighbours
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.attribution.model.train import FittedHead, joined_heads

CLASSES, SIZE = 3, 5


def drawn(count: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    means = 2 * np.random.default_rng(9).normal(0, 1, (CLASSES, SIZE))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    rows = means[labels] + rng.normal(0, spread, (count, SIZE))
    return rows.astype(np.float32), labels


def network_of(found: StoredVectors, mean: float = 0.0, std: float = 1.0) -> AttributionNetwork:
    design = Design.of([(SIZE,)], CLASSES, vectors="knn")
    head = FittedHead(found, [mean] * SIZE, [std] * SIZE)
    return joined_heads(design, [], {}, {0: head})


def logits(network: AttributionNetwork, rows: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return network([torch.from_numpy(rows)])[:, 0]


@pytest.mark.parametrize("nearest", [1, 5, 9])
def test_shares_are_those_of_scikit_learn_with_one_vote_for_all(nearest):
    from sklearn.neighbors import KNeighborsClassifier

    rows, labels = drawn(200, 0)
    others, _ = drawn(80, 1)
    found = StoredVectors(torch.from_numpy(rows), torch.from_numpy(labels), nearest, CLASSES)
    shares = logits(network_of(found), others).exp()
    oracle = KNeighborsClassifier(nearest).fit(rows, labels)
    expected = (oracle.predict_proba(others) * nearest + 1 / CLASSES) / (nearest + 1)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_validation_chooses_how_many_vote():
    clear = fit_neighbours(drawn(200, 2, 0.1), drawn(90, 3, 0.1), CLASSES)
    mixed = fit_neighbours(drawn(400, 2, 4.0), drawn(200, 3, 4.0), CLASSES)
    assert clear.nearest in COUNTS
    assert mixed.nearest > 9
    assert fit_neighbours(drawn(4, 2), drawn(9, 3), CLASSES).nearest <= 4


@pytest.mark.parametrize("shuffled", [False, True])
def test_it_learns_classes_and_not_shuffled_labels(shuffled):
    (rows, labels), validation, (others, truth) = (drawn(n, n) for n in (400, 150, 300))
    if shuffled:
        labels = np.random.default_rng(0).permutation(labels)
    found = fit_neighbours((rows, labels), validation, CLASSES)
    right = (logits(network_of(found), others).argmax(1).numpy() == truth).mean()
    assert abs(right - 1 / CLASSES) < 0.1 if shuffled else right > 0.9


def test_saved_weights_open_whatever_the_number_of_vectors():
    rows, labels = drawn(50, 5)
    network = network_of(fit_neighbours((rows, labels), drawn(20, 6), CLASSES), 0.5, 2.0)
    again = AttributionNetwork(Design.from_card(network.design.card()))
    again.load_state_dict(network.state_dict())
    others, _ = drawn(30, 7)
    assert torch.equal(logits(again.eval(), others), logits(network, others))
    assert again.design.discriminants == [0]
    assert "nearest vectors" in again.design.describe(["dzanic20"])


def test_vectors_of_another_size_are_refused():
    found = fit_neighbours(drawn(50, 5), drawn(20, 6), CLASSES)
    other = AttributionNetwork(Design.of([(SIZE + 1,)], CLASSES, vectors="knn"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(network_of(found).state_dict())
