"""Discriminant analysis, against scikit-learn's and against itself on shuffled parts."""

import numpy as np
import pytest
import torch

from manifpt.attribution.model.discriminant import (
    SHRINKAGES,
    ClassMoments,
    discriminant,
    fit_discriminant,
)
from manifpt.attribution.model.network import Design


def drawn(rng, sizes, d=6):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    means = 1.5 * np.random.default_rng(3).normal(0, 1, (len(sizes), d))
    rows = rng.normal(0, 1, (len(labels), d)) + means[labels]
    order = rng.permutation(len(labels))
    return rows[order].astype(np.float32), labels[order]


def halves(rows, labels):
    return [(rows[::2], labels[::2]), (rows[1::2], labels[1::2])]


@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
def test_it_is_that_of_equal_priors_with_shrinkage(shrinkage):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows, labels = drawn(np.random.default_rng(0), (200, 60, 12))
    moments = ClassMoments.of(halves(rows, labels), np.bincount(labels))
    found = discriminant(moments, shrinkage).logits(rows).softmax(1)
    # Each class counts alike, however many rows it has: so the oracle has as many of each.
    more = np.concatenate([np.resize(np.flatnonzero(labels == c), 600) for c in range(3)])
    x = rows[more].astype(np.float64)
    within = sum(np.cov(rows[labels == c].T.astype(np.float64), bias=True) for c in range(3)) / 3
    ridge = shrinkage * np.trace(within) / len(within)
    covariance = (1 - shrinkage) * within + ridge * np.eye(len(within))
    oracle = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3)
    oracle.fit(x, labels[more])
    inverse = np.linalg.inv(covariance)
    means = oracle.means_
    logits = rows.astype(np.float64) @ inverse @ means.T
    logits -= 0.5 * np.einsum("cd,de,ce->c", means, inverse, means)
    expected = torch.from_numpy(logits).softmax(1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_without_shrinkage_it_is_scikit_learns():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows, labels = drawn(np.random.default_rng(1), (100, 100, 100))
    found = discriminant(ClassMoments.of([(rows, labels)], [100] * 3), 0.0).logits(rows).softmax(1)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3)
    expected = oracle.fit(rows.astype(np.float64), labels).predict_proba(rows)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_coordinates_are_white_within_classes():
    rows, labels = drawn(np.random.default_rng(2), (300, 300, 300, 300))
    found = discriminant(ClassMoments.of([(rows, labels)], [300] * 4), 0.0)
    assert found.coordinates.shape == (3, 6)
    coordinates = torch.from_numpy(rows).double() @ found.coordinates.T
    within = sum(torch.cov(coordinates[labels == c].T, correction=0) for c in range(4)) / 4
    assert torch.allclose(within, torch.eye(3).double(), atol=1e-4)


def test_parts_and_their_order_change_nothing():
    rows, labels = drawn(np.random.default_rng(4), (50, 40, 30))
    counts = np.bincount(labels)
    whole = ClassMoments.of([(rows, labels)], counts)
    parts = ClassMoments.of(halves(rows[::-1].copy(), labels[::-1].copy()), counts)
    assert torch.allclose(whole.within, parts.within, atol=1e-10)
    assert torch.allclose(whole.means, parts.means, atol=1e-10)


def test_few_images_of_many_numbers_are_shrunk_far():
    """Sixty images say little of a covariance of 200 x 200; thousands say all of it."""
    rng = np.random.default_rng(5)
    mixed = rng.normal(0, 1, (200, 200)) / 14

    def some(count):
        labels = np.arange(count) % 3
        rows = rng.normal(0, 1, (count, 200)) @ mixed
        rows[:, 0] += labels
        return rows.astype(np.float32), labels

    few, many, validation = some(60), some(6000), some(600)
    shares = [
        fit_discriminant([train], np.bincount(train[1]), validation).shrinkage
        for train in (few, many)
    ]
    assert shares[0] > shares[1]
    assert set(shares) <= set(SHRINKAGES)


def test_a_design_names_the_heads_whose_features_are_coordinates():
    design = Design.of([(40,), (1, 8, 8), (2,)], 5, "compact", vectors="lda")
    assert design.discriminants == [0, 2]
    assert [design.heads[n].coordinates for n in design.discriminants] == [4, 2]
    assert Design.of([(40,)], 5).discriminants == []
