"""The features of test images in an attributor, which are the inputs of its last layers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from manifpt import storage
from manifpt.artifacts.branches import artifact_column, of_classes, open_artifacts, read_branches
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.images.stacks import image_starts
from manifpt.storage import tensors


class Features(NamedTuple):
    """Features N x d float32, and the sources of the N images."""

    vectors: np.ndarray
    sources: np.ndarray


def head_features(model: str, inputs: Sequence[str], most: int = 10_000) -> Features:
    """Return the features of test images of the attributor's classes, ``most`` at most.

    ``inputs`` are artifacts as in training. Features of several heads stand side by side, each
    head's divided by the root of its mean variance, so that the scale of a head does not matter.
    Files are read in their order until there are ``most`` images.
    """
    attributor = TrainedAttributor.open(storage.absolute(model))
    branches = open_artifacts(inputs)
    heads: list[list[np.ndarray]] = []
    sources: list[str] = []
    for path in branches[0].files("test"):
        table = read_branches([storage.join(branch.uri, path) for branch in branches])
        table = of_classes(table, attributor.classes)
        if not len(table):
            continue
        names = [artifact_column(number) for number in range(len(branches))]
        begins = image_starts(table)
        vectors = [tensors.from_column(table[name]) for name in names]
        heads.append(attributor.outputs(vectors, begins).features)
        column = table["source"].to_pylist()
        sources += [column[row] for row in begins]
        if len(sources) >= most:
            break
    joined = [np.concatenate(parts)[:most] for parts in zip(*heads, strict=True)]
    return Features(np.hstack([scaled(part) for part in joined]), np.array(sources[:most]))


def artifact_features(inputs: str, most: int = 10_000) -> Features:
    """Return artifacts of test images in one space, flat, ``most`` at most; see head_features."""
    branch = open_artifacts([inputs])[0]
    vectors: list[np.ndarray] = []
    sources: list[str] = []
    for path in branch.files("test"):
        table = read_branches([storage.join(branch.uri, path)])
        begins = image_starts(table)
        vectors.append(tensors.from_column(table[artifact_column(0)])[begins])
        column = table["source"].to_pylist()
        sources += [column[row] for row in begins]
        if len(sources) >= most:
            break
    joined = np.concatenate(vectors)[:most]
    return Features(joined.reshape(len(joined), -1), np.array(sources[:most]))


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Divide N x d vectors by the root of their mean variance; constant ones stay as they are.

    >>> scaled(np.array([[0.0, 0.0], [2.0, 2.0]]))
    array([[0., 0.],
           [2., 2.]])
    """
    deviation = float(np.sqrt(vectors.var(0).mean()))
    return vectors / deviation if deviation > 0 else vectors
