"""Open-set scores on Gaussians whose answers are known, against scikit-learn and brute force."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from manifpt.attribution.gaussian import ClassGaussian, shrunk_covariance
from manifpt.attribution.network import Outputs
from manifpt.attribution.open_set import (
    Evidence,
    Known,
    OpenSet,
    auroc,
    fit_open_set,
    fit_worth,
    pooled_logits,
    scores,
)

CLASSES = ["a", "b", "c", "d", "e", "real"]
WIDTH, APART = 16, 1.5


class World:
    """Classes that are Gaussians of covariance 1; the network knows the best linear logits."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = self.rng.normal(size=(len(CLASSES) + 2, WIDTH)) * APART

    def draw(self, number: int, rows: int) -> tuple[Outputs, np.ndarray]:
        """Return outputs and distances of a class; those beyond CLASSES are unknown."""
        features = (self.means[number] + self.rng.normal(size=(rows, WIDTH))).astype(np.float32)
        known = self.means[: len(CLASSES)]
        logits = features @ known.T - 0.5 * np.square(known).sum(1)
        distance = 10 + (number >= len(CLASSES)) * 3 + self.rng.normal(size=rows)
        return Outputs(logits[:, None].astype(np.float32), [features]), distance

    def known(self, rows: int) -> tuple[Outputs, np.ndarray, np.ndarray]:
        drawn = [self.draw(number, rows) for number in range(len(CLASSES))]
        logits = np.concatenate([o.logits for o, _ in drawn])
        features = np.concatenate([o.features[0] for o, _ in drawn])
        labels = np.repeat(np.arange(len(CLASSES)), rows)
        return Outputs(logits, [features]), labels, np.concatenate([d for _, d in drawn])


def fit(world: World, rows: int = 60) -> OpenSet:
    outputs, labels, distance = world.known(rows)
    return fit_open_set(Known(outputs, labels, distance), CLASSES, np.ones(1)).open_set


def test_shrinkage_is_that_of_ledoit_and_wolf():
    rng = np.random.default_rng(1)
    for rows, size in ((30, 40), (500, 8)):
        x = rng.normal(size=(rows, size)) @ rng.normal(size=(size, size))
        expected = ledoit_wolf(x, assume_centered=True)[0]
        np.testing.assert_allclose(shrunk_covariance(x), expected, rtol=1e-9, atol=1e-9)
    constant = shrunk_covariance(np.zeros((5, 3)))
    assert np.linalg.eigvalsh(constant).min() > 0


def test_distances_are_mahalanobis_distances():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], 40)
    features = (rng.normal(size=(120, 5)) * [1, 2, 3, 4, 5] + labels[:, None]).astype(np.float32)
    gaussian = ClassGaussian.fit(features, labels, 3)
    means = np.stack([features[labels == c].mean(0, dtype=np.float64) for c in range(3)])
    off = features - means[labels]
    scale = off.std(0)  # of what the covariance is shrunk, each feature has its own variance
    inverse = np.linalg.inv(shrunk_covariance(off / scale) * 120 / 117) / np.outer(scale, scale)
    new = rng.normal(size=(7, 5)).astype(np.float32)
    off = new[:, None] - means
    expected = np.einsum("ncd,de,nce->nc", off, inverse, off)
    np.testing.assert_allclose(gaussian.squared(new), expected, rtol=1e-4)


def test_scores_are_their_formulas_and_a_class_left_out_is_a_class_never_there():
    rng = np.random.default_rng(4)
    logits, weights = rng.normal(size=(9, 2, 4)), np.array([0.3, 1.7])
    squared = rng.uniform(1, 9, (9, 4))
    manifold = rng.uniform(0, 4, (9, 4))
    evidence = Evidence(pooled_logits(logits, weights), squared, manifold)
    pooled = 0.3 * logits[:, 0] + 1.7 * logits[:, 1]
    probabilities = np.exp(pooled) / np.exp(pooled).sum(1, keepdims=True)
    found = scores(evidence)
    expected = {
        "max_probability": -np.log(probabilities.max(1)),
        "max_logit": -pooled.max(1),
        "energy": -np.log(np.exp(pooled).sum(1)),
        "features": np.sqrt(squared.min(1)),
        "manifold": [np.sqrt(manifold[i, pooled[i].argmax()]) for i in range(9)],
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12)
    kept = [0, 1, 3]
    never = Evidence(
        pooled_logits(logits[:, :, kept], weights), squared[:, kept], manifold[:, kept]
    )
    for name, values in scores(never).items():
        np.testing.assert_array_equal(scores(evidence.without(2))[name], values)


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(5)
    known, unknown = rng.integers(0, 9, 300), rng.integers(3, 12, 200)  # many ties
    truth = np.repeat([0, 1], [300, 200])
    expected = roc_auc_score(truth, np.concatenate([known, unknown]))
    assert auroc(known, unknown) == pytest.approx(expected, abs=1e-12)


def test_a_score_that_says_nothing_is_worth_little():
    rng = np.random.default_rng(6)
    known = rng.normal(size=(2000, 3))
    unknown = rng.normal([1.5, 0, -1.5], size=(500, 3))  # the last points the wrong way
    worth = fit_worth(known, unknown)
    assert worth.sum() == pytest.approx(1)
    assert worth[0] > 0.85
    assert worth.min() >= 0


def test_unseen_classes_are_told_and_the_false_rejection_is_what_was_asked_for():
    world = World()
    open_set = fit(world)
    new, _, distance = world.known(2000)
    known = open_set.unknown_score(open_set.scores(new, distance))
    drawn = [world.draw(len(CLASSES) + n, 2000) for n in range(2)]
    unknown = np.concatenate([open_set.unknown_score(open_set.scores(*one)) for one in drawn])
    assert auroc(known, unknown) > 0.98
    for asked in (0.05, 0.2):
        rejected = (open_set.p_value(known) <= asked).mean()
        # 360 validation images: the share has a deviation of sqrt(a (1 - a) / 360).
        assert rejected == pytest.approx(asked, abs=3 * np.sqrt(asked * (1 - asked) / 360))
    assert (open_set.p_value(unknown) <= 0.05).mean() > 0.9


def test_the_false_rejection_holds_where_features_are_many_and_images_few():
    """Where fewer images than features give a mean, images look near to a mean of their own."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(12):
        labels = np.repeat(np.arange(4), 25)
        draw = lambda rows: Outputs(  # noqa: E731
            rng.normal(size=(rows, 1, 4)).astype(np.float32), [rng.normal(size=(rows, 150))]
        )
        nothing = np.full(2000, np.nan)
        fitted = fit_open_set(Known(draw(100), labels, nothing[:100]), list("abcd"), np.ones(1))
        new = fitted.open_set.scores(draw(2000), nothing)
        p_value = fitted.open_set.p_value(fitted.open_set.unknown_score(new))
        shares.append((p_value <= 0.1).mean())
    # 100 known images: a share has a deviation of 0.03, the mean of twelve of 0.009.
    assert np.mean(shares) == pytest.approx(0.1, abs=0.03)


def test_what_is_usual_in_each_space_may_be_strange_together():
    rng = np.random.default_rng(8)

    def drawn(rows: int, shared: float) -> Outputs:
        one, other = rng.normal(size=(2, rows, 4))
        other = shared * one + np.sqrt(1 - shared**2) * other
        logits = np.eye(2)[np.arange(rows) % 2] * 3
        return Outputs(logits[:, None].astype(np.float32), [one, 100 * other])

    nothing, labels = np.full(400, np.nan), np.arange(400) % 2
    known = Known(drawn(400, 0.95), labels, nothing)
    open_set = fit_open_set(known, ["a", "b"], np.ones(1)).open_set
    known, unknown = (open_set.scores(drawn(400, s), nothing)[:, 3] for s in (0.95, 0.0))
    assert auroc(known, unknown) > 0.95


def test_p_values_are_shares_of_known_images_and_never_zero():
    open_set = fit(World(), rows=10)
    values = np.array([-np.inf, open_set.known[15], np.inf])
    expected = [(np.sum(open_set.known >= v) + 1) / (len(open_set.known) + 1) for v in values]
    np.testing.assert_allclose(open_set.p_value(values), expected)
    assert open_set.p_value(values)[-1] == 1 / 61


def test_noise_with_large_logits_is_strange_all_the_same():
    """Far from all classes the logits of a network may be larger than any it has seen."""
    world = World()
    open_set = fit(world)
    features = (world.rng.normal(size=(50, WIDTH)) * 40).astype(np.float32)
    known = world.means[: len(CLASSES)]
    logits = (features @ known.T - 0.5 * np.square(known).sum(1))[:, None].astype(np.float32)
    far = open_set.scores(Outputs(logits, [features]), np.full(50, 10.0))
    assert np.median(far[:, 2]) < open_set.centre[2] - 10 * open_set.scale[2]  # energy is deceived
    assert (open_set.p_value(open_set.unknown_score(far)) < 0.05).all()


def test_it_is_stored_without_pickles_and_comes_back_the_same():
    world = World()
    open_set = fit(world, rows=20)
    again = OpenSet.from_bytes(open_set.to_bytes())
    assert open_set.to_bytes() == again.to_bytes()
    outputs, _, distance = world.known(5)
    found, expected = (one.scores(outputs, distance) for one in (again, open_set))
    np.testing.assert_array_equal(found, expected)
    assert again.score_names == ["max_probability", "max_logit", "energy", "features", "manifold"]
    np.testing.assert_array_equal(again.unknown_score(found), open_set.unknown_score(expected))


def test_without_a_manifold_there_is_no_distance_and_with_one_image_of_a_class_no_fit():
    world = World()
    outputs, labels, _ = world.known(6)
    nothing = np.full(len(labels), np.nan)
    fitted = fit_open_set(Known(outputs, labels, nothing), CLASSES, np.ones(1))
    assert fitted.open_set.score_names[-1] == "features"
    assert np.isfinite(fitted.open_set.known).all()
    few = np.flatnonzero((labels != 2) | (np.arange(len(labels)) % 6 == 0))
    some = Outputs(outputs.logits[few], [outputs.features[0][few]])
    assert fit_open_set(Known(some, labels[few], nothing[few]), CLASSES, np.ones(1)) is None


def test_two_classes_are_enough():
    world = World()
    outputs, labels, distance = world.known(12)
    pair = labels >= 4  # e and real
    some = Outputs(outputs.logits[pair][:, :, 4:], [outputs.features[0][pair]])
    fitted = fit_open_set(Known(some, labels[pair] - 4, distance[pair]), CLASSES[4:], np.ones(1))
    assert list(fitted.left_out) == ["e"]
    assert np.isfinite(fitted.open_set.known).all()
