import numpy as np
import pytest

from manifpt.attribution.crawl.ensemble import pooled_views, views_of


def sure(answer: int, probability: float = 0.97) -> list[float]:
    """Probabilities of three classes with that much on one of them."""
    return [probability if n == answer else (1 - probability) / 2 for n in range(3)]


def test_a_stable_image_keeps_its_answer_and_its_probability():
    mean, agreement = pooled_views(np.array([[sure(1)], [sure(1)], [sure(1, 0.95)], [sure(1)]]))
    assert mean[0].argmax() == 1
    assert mean[0, 1] == pytest.approx(0.965)
    assert agreement.tolist() == [4]


def test_views_that_disagree_lower_the_probability_below_what_an_answer_needs():
    views = np.array(
        [[sure(0), sure(0)], [sure(1), sure(0)], [sure(0), sure(0)], [sure(2), sure(1)]]
    )
    mean, agreement = pooled_views(views)
    assert agreement.tolist() == [2, 3]
    assert mean[0].max() == pytest.approx((2 * 0.97 + 2 * 0.015) / 4)
    assert mean[0].max() < 0.5 < mean[1].max() < 0.8


def test_the_mean_is_a_distribution_and_never_surer_than_the_views_are():
    rng = np.random.default_rng(0)
    views = rng.dirichlet(np.ones(5) / 3, size=(4, 200))
    mean, agreement = pooled_views(views)
    np.testing.assert_allclose(mean.sum(1), 1)
    assert (mean.max(1) <= views.max(2).mean(0) + 1e-12).all()
    counted = [sum(v[n].argmax() == mean[n].argmax() for v in views) for n in range(200)]
    assert agreement.tolist() == counted
    order = rng.permutation(4)
    np.testing.assert_allclose(pooled_views(views[order])[0], mean)


def test_the_image_itself_is_always_a_view_and_the_first():
    assert list(map(str, views_of(()))) == ["identity", "jpeg:75", "jpeg:90", "resize:0.75"]
    assert list(map(str, views_of(["blur:1", "identity"]))) == ["identity", "blur:1"]
