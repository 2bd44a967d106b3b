"""Open-set scores on Gaussians whose answers are known, against scikit-learn and brute force."""

import io

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from manifpt.attribution.unknown.gaussian import ClassGaussian, shrunk_covariance
from manifpt.attribution.unknown.known import Known, Outputs
from manifpt.attribution.unknown.open_set import (
    Judge,
    OpenSet,
    auroc,
    coordinates_of,
    fit_open_set,
    pooled_logits,
    rejected_by_class,
    scored_features,
)
from manifpt.errors import DamageError, ManifptError

CLASSES = ["a", "b", "c", "d", "e", "real"]
WIDTH, APART = 16, 1.5


class World:
    """Classes that are Gaussians of covariance 1; the network knows the best linear logits."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = self.rng.normal(size=(len(CLASSES) + 2, WIDTH)) * APART

    def draw(self, number: int, rows: int) -> Outputs:
        """Return outputs of a class; those beyond CLASSES are unknown."""
        features = (self.means[number] + self.rng.normal(size=(rows, WIDTH))).astype(np.float32)
        known = self.means[: len(CLASSES)]
        logits = features @ known.T - 0.5 * np.square(known).sum(1)
        return Outputs(logits[:, None].astype(np.float32), [features])

    def known(self, rows: int) -> Known:
        drawn = [self.draw(number, rows) for number in range(len(CLASSES))]
        logits = np.concatenate([o.logits for o in drawn])
        features = np.concatenate([o.features[0] for o in drawn])
        return Known(Outputs(logits, [features]), np.repeat(np.arange(len(CLASSES)), rows))


def fit(world: World, rows: int = 60) -> OpenSet:
    return fit_open_set(world.known(rows), len(CLASSES), np.ones(1)).open_set


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


def test_scores_are_their_formulas():
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1, 2], 30)
    features = [(rng.normal(size=(90, d)) + 3 * labels[:, None]).astype(np.float32) for d in (2, 3)]
    judge = Judge.fit(features, labels, 3)
    new = [rng.normal(size=(9, d)) for d in (2, 3)]
    logits, weights = rng.normal(size=(9, 2, 3)), np.array([0.3, 1.7])
    pooled = 0.3 * logits[:, 0] + 1.7 * logits[:, 1]
    np.testing.assert_allclose(pooled_logits(logits, weights), pooled, atol=1e-12)
    found = judge.scores(pooled, new)
    probabilities = np.exp(pooled) / np.exp(pooled).sum(1, keepdims=True)
    np.testing.assert_allclose(found[:, 0], -np.log(probabilities.max(1)), atol=1e-12)
    whole = ClassGaussian.fit(np.hstack(features), labels, 3)
    np.testing.assert_allclose(found[:, 1] ** 2, whole.squared(np.hstack(new)).min(1))
    turned, asked = (
        np.hstack([one / np.sqrt(np.square(one).sum(1))[:, None] for one in of])
        for of in (features, new)
    )
    unit = ClassGaussian.fit(turned, labels, 3)
    np.testing.assert_allclose(found[:, 2] ** 2, unit.squared(asked).min(1), rtol=1e-3)
    longer = judge.scores(pooled, [7 * new[0], new[1]])
    np.testing.assert_allclose(longer[:, 2], found[:, 2], rtol=1e-6)
    assert not np.allclose(longer[:, 1], found[:, 1])


def test_discriminants_judge_alone_and_give_coordinates_beside_the_logits():
    rng = np.random.default_rng(5)
    outputs = Outputs(rng.normal(size=(6, 2, 3)), [rng.normal(size=(6, 4)), np.eye(6)[:, :2]])
    weights = np.array([1.0, 2.0])
    pooled = outputs.logits[:, 0] + 2 * outputs.logits[:, 1]
    score = np.arange(6.0)
    alone = coordinates_of(outputs, weights, np.array([], int), score)
    centred = pooled - pooled.mean(1, keepdims=True)
    np.testing.assert_allclose(alone, np.hstack([centred, score[:, None]]), rtol=1e-5)
    both = coordinates_of(outputs, weights, np.array([1]), score)
    expected = np.hstack([centred, np.eye(6)[:, :2], score[:, None]])
    np.testing.assert_allclose(both, expected, rtol=1e-5)
    assert [one.shape for one in scored_features(outputs, np.array([1]))] == [(6, 2)]
    assert [one.shape for one in scored_features(outputs, np.array([], int))] == [(6, 4), (6, 2)]


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(5)
    known, unknown = rng.integers(0, 9, 300), rng.integers(3, 12, 200)  # many ties
    truth = np.repeat([0, 1], [300, 200])
    expected = roc_auc_score(truth, np.concatenate([known, unknown]))
    assert auroc(known, unknown) == pytest.approx(expected, abs=1e-12)


def test_unseen_classes_are_told_and_the_false_rejection_is_what_was_asked_for():
    world = World()
    open_set = fit(world)
    known = open_set.unknown_score(open_set.scores(world.known(2000).outputs))
    drawn = [world.draw(len(CLASSES) + n, 2000) for n in range(2)]
    unknown = np.concatenate([open_set.unknown_score(open_set.scores(one)) for one in drawn])
    assert auroc(known, unknown) > 0.98
    for asked in (0.05, 0.2):
        rejected = (open_set.p_value(known) <= asked).mean()
        # 360 validation images: the share has a deviation of sqrt(a (1 - a) / 360).
        assert rejected == pytest.approx(asked, abs=3 * np.sqrt(asked * (1 - asked) / 360))
    assert (open_set.p_value(unknown) <= 0.05).mean() > 0.9


def test_the_images_of_the_fit_are_rejected_as_often_as_asked_for_and_each_class_is_known():
    world = World()
    known = world.known(60)
    fitted = fit_open_set(known, len(CLASSES), np.ones(1))
    for asked in (0.05, 0.2):
        assert (fitted.p_values <= asked).mean() == pytest.approx(asked, abs=2 / 360)
    names = np.array(CLASSES, dtype=object)[known.labels]
    shares = rejected_by_class(names, fitted.p_values <= 0.2, [*CLASSES, "of no image"])
    assert list(shares) == CLASSES
    for n, name in enumerate(CLASSES):
        assert shares[name] == (fitted.p_values[60 * n : 60 * n + 60] <= 0.2).sum() / 60


def test_near_and_far_are_both_told():
    """Between two classes an image is near; far from all it may be of one of them for sure."""
    world = World()
    open_set = fit(world)
    between = (world.means[0] + world.means[1]) / 2
    far = world.means[0] * 3
    for place, sure in ((between, False), (far, True)):
        features = (place + 0.5 * world.rng.normal(size=(50, WIDTH))).astype(np.float32)
        known = world.means[: len(CLASSES)]
        logits = (features @ known.T - 0.5 * np.square(known).sum(1))[:, None]
        scores = open_set.scores(Outputs(logits, [features]))
        assert (np.median(scores[:, 0]) < 1e-3) == sure
        assert auroc(open_set.known, open_set.unknown_score(scores)) > 0.8


def test_the_false_rejection_holds_where_features_are_many_and_images_few():
    """Where fewer images than features give a mean, images look near to a mean of their own."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(12):
        labels = np.repeat(np.arange(4), 25)
        draw = lambda rows: Outputs(  # noqa: E731
            rng.normal(size=(rows, 1, 4)).astype(np.float32), [rng.normal(size=(rows, 150))]
        )
        fitted = fit_open_set(Known(draw(100), labels), 4, np.ones(1))
        new = fitted.open_set.scores(draw(2000))
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

    known = Known(drawn(400, 0.95), np.arange(400) % 2)
    open_set = fit_open_set(known, 2, np.ones(1)).open_set
    known, unknown = (open_set.scores(drawn(400, s))[:, 1] for s in (0.95, 0.0))
    assert auroc(known, unknown) > 0.95


def test_p_values_are_shares_of_known_images_and_never_zero():
    open_set = fit(World(), rows=10)
    values = np.array([-np.inf, open_set.known[15], np.inf])
    expected = [(np.sum(open_set.known >= v) + 1) / (len(open_set.known) + 1) for v in values]
    np.testing.assert_allclose(open_set.p_value(values), expected)
    assert open_set.p_value(values)[-1] == 1 / 61


def test_noise_with_large_logits_is_strange_all_the_same():
    """Far from all classes a network may be surer than of any image that it has seen."""
    world = World()
    open_set = fit(world)
    features = (world.rng.normal(size=(50, WIDTH)) * 40).astype(np.float32)
    known = world.means[: len(CLASSES)]
    logits = (features @ known.T - 0.5 * np.square(known).sum(1))[:, None].astype(np.float32)
    far = open_set.scores(Outputs(logits, [features]))
    assert np.median(far[:, 0]) <= np.median(open_set.usual[:, 0])  # it is deceived
    assert (open_set.p_value(open_set.unknown_score(far)) < 0.05).all()


def test_it_is_stored_without_pickles_and_comes_back_the_same():
    world = World()
    open_set = fit(world, rows=20)
    again = OpenSet.from_bytes(open_set.to_bytes())
    assert open_set.to_bytes() == again.to_bytes()
    outputs = world.known(5).outputs
    found, expected = (one.scores(outputs) for one in (again, open_set))
    np.testing.assert_array_equal(found, expected)
    assert found.shape[1] == len(again.score_names)
    np.testing.assert_array_equal(again.unknown_score(found), open_set.unknown_score(expected))
    coordinates = [one.coordinates_of(outputs, np.ones(30)) for one in (again, open_set)]
    np.testing.assert_array_equal(*coordinates)


def test_a_file_of_an_earlier_version_names_the_remedy_and_one_that_lacks_an_array_is_damaged():
    arrays = dict(np.load(io.BytesIO(fit(World(), rows=4).to_bytes())))
    for left_out, beside, error, words in (
        ("usual", {"strangeness": np.zeros(3), "worth": np.ones(4)}, ManifptError, "train"),
        ("usual", {}, DamageError, "lacks usual"),
        ("whitening-directions", {}, DamageError, "lacks whitening-directions"),
    ):
        sink = io.BytesIO()
        np.savez(sink, **{n: a for n, a in arrays.items() if n != left_out}, **beside)
        with pytest.raises(error, match=words) as caught:
            OpenSet.from_bytes(sink.getvalue(), "m/unknown.npz")
        assert str(caught.value).startswith("m/unknown.npz: ")
        assert isinstance(caught.value, DamageError) == (error is DamageError)


def test_with_one_image_of_a_class_there_is_no_fit():
    outputs, labels, _ = World().known(6)
    few = np.flatnonzero((labels != 2) | (np.arange(len(labels)) % 6 == 0))
    some = Outputs(outputs.logits[few], [outputs.features[0][few]])
    assert fit_open_set(Known(some, labels[few]), len(CLASSES), np.ones(1)) is None


def test_two_classes_are_enough():
    outputs, labels, _ = World().known(12)
    pair = labels >= 4  # e and real
    some = Outputs(outputs.logits[pair][:, :, 4:], [outputs.features[0][pair]])
    fitted = fit_open_set(Known(some, labels[pair] - 4), 2, np.ones(1))
    assert np.isfinite(fitted.open_set.known).all()
