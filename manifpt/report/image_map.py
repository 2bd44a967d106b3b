"""Coordinates of images -> points in the plane, for the map on a page."""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

# With fewer images, neighbours carry little information, and the principal directions are shown.
LEAST = 50
PERPLEXITY = 30.0


def map_of(coordinates: Sequence[Sequence[float]]) -> np.ndarray:
    """Return N x 2 places of N x D coordinates: t-SNE from the principal directions.

    Columns are divided by their standard deviations (van der Maaten & Hinton, JMLR 2008).
    """
    values = np.array(coordinates, dtype=np.float64)
    values = values.reshape(len(values), -1)
    std = values.std(0)
    used = std > 0
    if not used.any() or len(values) < 3:
        return np.zeros((len(values), 2))
    scaled = (values[:, used] - values[:, used].mean(0)) / std[used]
    if len(scaled) < LEAST or scaled.shape[1] < 2:
        places = PCA(min(2, *scaled.shape), random_state=0).fit_transform(scaled)
        return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    found: np.ndarray = TSNE(
        perplexity=min(PERPLEXITY, (len(scaled) - 1) / 3), init="pca", random_state=0, n_jobs=1
    ).fit_transform(scaled.astype(np.float32))
    return found.astype(np.float64)
