"""Few training images, and other content: on vectors where the truth is known."""

import numpy as np
import pytest

from manifpt.evaluation import conditions
from manifpt.evaluation.conditions import Rows, SplitRows, content_folds, content_shift, few_images

CLASSES, SIZE = 3, 12


def rows(count: int, seed: int, content: int | None = None) -> Rows:
    """Vectors of three classes; ``content`` fixes the half of space in which images lie."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(count) % CLASSES
    vectors = rng.normal(size=(count, SIZE)).astype(np.float32)
    vectors[np.arange(count), numbers] += 3
    ids = np.array([f"{seed}-{n:04d}" for n in range(count)])
    return Rows(vectors, numbers, ids)


@pytest.fixture(scope="module")
def data() -> SplitRows:
    return SplitRows(rows(600, 0), rows(150, 1), rows(300, 2))


def test_more_training_images_are_better_and_draws_differ(data):
    found = {count: few_images(data, count, 3) for count in (4, 200)}
    assert found[4].shape == (3, 300)
    assert found[4].mean() < found[200].mean()
    assert found[200].mean() > 0.9
    assert not (found[4][0] == found[4][1]).all()
    np.testing.assert_array_equal(found[4], few_images(data, 4, 3))


def test_shuffled_labels_are_at_chance(data):
    rng = np.random.default_rng(3)
    shuffled = SplitRows(*(part._replace(numbers=rng.permutation(part.numbers)) for part in data))
    assert abs(few_images(shuffled, 200, 1).mean() - 1 / CLASSES) < 0.1


def pictures(count: int, seed: int, side: int = 8) -> Rows:
    """Pictures of three kinds of content, of which each class has a third."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    images = rng.normal(0, 0.01, (count, 1, side, side))
    images[np.arange(count), :, kinds * 2] += 1
    ids = np.array([f"{seed}-{n:04d}" for n in range(count)])
    return Rows(images.reshape(count, -1), np.arange(count) // 3 % CLASSES, ids)


def test_images_of_one_content_are_in_one_fold_in_every_split():
    splits = SplitRows(pictures(90, 0), pictures(60, 1), pictures(30, 2))
    folds = content_folds(splits, (1, 8, 8))
    assert {*np.concatenate(folds)} == {0, 1, 2}
    # 12 clusters of 3 kinds: a cluster is in one fold, a kind may be in several.
    coarse = conditions.coarse(splits.train.vectors.reshape(-1, 1, 8, 8))
    assert coarse.shape == (90, 49)


def test_coarse_means_are_those_of_blocks():
    image = np.arange(14 * 14, dtype=float).reshape(1, 1, 14, 14)
    blocks = image.reshape(7, 2, 7, 2).mean((1, 3))
    np.testing.assert_allclose(conditions.coarse(image), blocks.reshape(1, -1))


def test_a_trace_that_moves_with_content_is_lost_on_other_content():
    rng = np.random.default_rng(0)

    def split(count: int, seed: int, moves: bool) -> tuple[Rows, np.ndarray]:
        found = rows(count, seed)
        folds = rng.integers(0, conditions.FOLDS, count)
        if moves:  # each content shows the classes elsewhere
            vectors = rng.normal(size=(count, SIZE)).astype(np.float32)
            vectors[np.arange(count), (found.numbers + folds) % CLASSES + CLASSES * folds] += 4
            found = found._replace(vectors=vectors)
        return found, folds

    for moves in (False, True):
        parts = [split(count, seed, moves) for seed, count in enumerate((900, 300, 300))]
        shift = content_shift(SplitRows(*(p for p, _ in parts)), [folds for _, folds in parts])
        assert len(shift.other) == len(shift.same) == 300
        assert shift.left_out == 0
        assert shift.same.mean() > 0.85
        assert (shift.other.mean() > 0.85) is not moves


def test_a_class_without_images_outside_of_a_fold_is_left_out_there(data):
    folds = [np.arange(len(part.ids)) // CLASSES % conditions.FOLDS for part in data]
    for part, fold in zip(data, folds, strict=True):
        fold[part.numbers == 0] = 1
    shift = content_shift(data, folds)
    assert shift.left_out == 1
    kept = sum(((fold != 1) | (part.numbers != 0)).sum() for part, fold in [(data.test, folds[2])])
    assert len(shift.other) == kept
