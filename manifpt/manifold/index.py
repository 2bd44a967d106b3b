"""FAISS indexes of a shard's points: flat ones, on a GPU if there is one, or approximate ones.

This is the one place that asks FAISS for a GPU.
"""

from collections.abc import Callable

import faiss
import numpy as np

from manifpt.errors import ManifptError
from manifpt.manifold.product import UNIT, gamma
from manifpt.nets.device import may_use_gpu

FLAT = "Flat"
# The most neighbours that FAISS on a GPU proposes.
WIDEST = 2048

Error = Callable[[np.ndarray], np.ndarray]


def has_gpu() -> bool:
    """Tell whether FAISS was built for GPUs and this process was given one."""
    return hasattr(faiss, "GpuIndexFlatL2") and may_use_gpu() and faiss.get_num_gpus() > 0


def flat(centred: np.ndarray, *, float16: bool = False) -> tuple[faiss.Index, Error]:
    """Return a flat index of N x d centred points, and a bound on the error of its squares.

    It lies on the GPU if there is one; ``float16`` halves its memory there. The bound is a function
    of the queries' norms: norms and product err by gamma_d (|q| + |x|)^2, and rounding both to
    float16 moves a distance by at most 2^-11 (|q| + |x|).
    """
    dimension = centred.shape[1]
    reach = float(np.sqrt(np.einsum("ij,ij->i", centred, centred, dtype=np.float64).max()))
    half = 0.0
    if has_gpu():
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = float16
        half = 2.0**-10 if float16 else 0.0
        index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), dimension, config)
    else:
        index = faiss.IndexFlatL2(dimension)
    index.add(centred)

    def error(radius: np.ndarray) -> np.ndarray:
        both = (radius + reach) ** 2
        out: np.ndarray = (gamma(dimension + 8) + 4 * UNIT + half * (2 + half)) * both
        return out

    return index, error


def approximate(centred: np.ndarray, factory: str) -> faiss.Index:
    """Train and fill an index by FAISS's name for it, such as ``IVF256,Flat`` or ``HNSW32``."""
    try:
        index = faiss.index_factory(centred.shape[1], factory)
        index.train(centred)
        index.add(centred)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1][:200]
        raise ManifptError(
            f"--index {factory}: FAISS refuses it for {len(centred)} reals of {centred.shape[1]} "
            f"numbers ({reason}); choose another"
        ) from None
    return index
