"""Lower bounds on distances from a few principal directions.

For an orthonormal basis P of p directions and a centre m, distances between vectors [P (x - m), r]
never exceed those between the x, where r is the norm of the component of x - m outside of P: on the
p directions they are equal, and two residuals of norms r and s lie at least |r - s| apart (triangle
inequality).
"""

from dataclasses import dataclass

import numpy as np
import torch

ROWS = 256  # vectors whose keys are computed at once


@dataclass(frozen=True)
class Basis:
    """``directions`` p x d float64 with orthonormal lines, and the ``centre``, d float64."""

    directions: np.ndarray
    centre: np.ndarray

    @classmethod
    def fit(cls, sample: np.ndarray, size: int, seed: int = 0) -> "Basis":
        """Return the leading principal directions of n x d vectors, by randomised SVD.

        Halko, Martinsson & Tropp, "Finding structure with randomness", SIAM Review 2011.
        """
        size = min(size, *sample.shape)
        centre = sample.mean(0, dtype=np.float64)
        centred = torch.from_numpy((sample - centre).astype(np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, _, right = torch.svd_lowrank(centred, size, niter=2)
        directions, _ = np.linalg.qr(right.numpy().astype(np.float64))
        return cls(np.ascontiguousarray(directions.T), centre)

    def keys(self, vectors: np.ndarray) -> np.ndarray:
        """Return N x (p + 1) float32: coordinates, and the norm of the rest."""
        directions, centre = torch.from_numpy(self.directions), torch.from_numpy(self.centre)
        out = np.empty((len(vectors), len(directions) + 1), np.float32)
        for start in range(0, len(vectors), ROWS):
            some = slice(start, start + ROWS)
            centred = torch.from_numpy(vectors[some]) - centre
            coordinates = centred @ directions.T
            left = centred.square().sum(1) - coordinates.square().sum(1)
            out[some, :-1] = coordinates.numpy()
            out[some, -1] = left.clamp_min(0).sqrt().numpy()
        return out

    def slack(self, radius: np.ndarray) -> np.ndarray:
        """Bound the excess of a distance of keys over the true one that rounding may cause.

        ``radius`` bounds the distances from the centre of the two vectors together. Keys are
        rounded to float32, at most twice; a residual norm is the root of a difference in float64.
        """
        dimension = self.directions.shape[1]
        out: np.ndarray = radius * (2.0**-22 + np.sqrt((dimension + 8) * 2.0**-52))
        return out


def truncated_keys(keys: np.ndarray, size: int) -> np.ndarray:
    """Return keys of the first ``size`` directions, with norms of the rest in octaves.

    N x (p + 1) keys become [size coordinates, the norm of each following block of size, 2 size,
    4 size, ... coordinates, the last residual]: still a lower bound, and a closer one than with
    all the rest in one norm.
    """
    full = keys.shape[1] - 1
    size = min(size, full)
    columns = [keys[:, :size]]
    start, width = size, size
    while start < full:
        stop = min(start + width, full)
        block = keys[:, start:stop].astype(np.float64)
        columns.append(np.sqrt(np.square(block).sum(1, keepdims=True)).astype(np.float32))
        start, width = stop, 2 * width
    return np.ascontiguousarray(np.concatenate([*columns, keys[:, -1:]], axis=1))
