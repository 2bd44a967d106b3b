import numpy as np
import pytest
from prdc import compute_prdc
from sklearn.neighbors import NearestNeighbors

from manifpt.evaluation.support import distance_blocks, support_overlap


def by_loops(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, point by point, on scikit-learn's neighbours."""

    def radii(points):
        return NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, k]

    r, g = radii(real), radii(generated)

    def near(x, y):
        return np.linalg.norm(x - y)

    hits = [[near(x, y) < r[i] for i, x in enumerate(real)] for y in generated]
    return {
        "precision": np.mean([any(row) for row in hits]),
        "recall": np.mean([any(near(x, y) < g[j] for j, y in enumerate(generated)) for x in real]),
        "density": np.sum(hits) / (k * len(generated)),
        "coverage": np.mean(
            [min(near(x, y) for y in generated) < r[i] for i, x in enumerate(real)]
        ),
    }


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_equals_the_definitions(shift):
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(60, 3)), shift + rng.normal(size=(40, 3))
    assert support_overlap(real, generated, 3) == pytest.approx(by_loops(real, generated, 3))


def test_tells_collapse_from_noise():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 4))
    collapsed = support_overlap(real, real[:1] + 0.01 * rng.normal(size=(300, 4)))
    assert collapsed["precision"] > 0.9
    assert collapsed["recall"] < 0.1
    assert support_overlap(real, 9 + rng.normal(size=(300, 4)))["precision"] == 0


@pytest.mark.parametrize("block", [1, 150, 1 << 20])
def test_equals_the_code_of_naeem_et_al(block):
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(90, 8)), 0.3 + rng.normal(size=(70, 8))
    expected = compute_prdc(real, generated, nearest_k=5)
    assert support_overlap(real, generated, block=block) == pytest.approx(expected)


def test_copies_have_the_distance_zero_far_from_the_origin():
    points = 1e6 + np.random.default_rng(0).normal(size=(30, 50))
    assert all(np.diagonal(part).max() == 0 for part in distance_blocks(points, points))
    # Every ball of six equal reals is empty, so nothing is inside.
    same = np.repeat(points[:1], 6, axis=0)
    assert support_overlap(same, same)["precision"] == 0


def test_a_block_bounds_what_is_in_memory():
    points = np.zeros((10, 2))
    assert [part.shape for part in distance_blocks(points, points, block=35)] == [
        (3, 10),
        (3, 10),
        (3, 10),
        (1, 10),
    ]
