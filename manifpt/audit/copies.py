"""Copies among images: the same pixels or near perceptual hashes, within and across classes."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from manifpt.images.perceptual import HammingIndex

COLUMNS = ("pixel_sha256", "perceptual_hash", "source", "split")


def shares(table: pd.DataFrame, distance: int) -> dict[str, float]:
    """Return the share of images with a copy, by kind of copy and where that lies.

    ``table`` has COLUMNS, a row an image; ``perceptual_hash`` is null where an image is too flat
    for one. ``near`` copies are within ``distance`` bits and not of the same pixels. ``within``
    counts each image but the first of its pixels.
    """
    pixels = table.groupby("pixel_sha256", sort=False)
    found = {
        "exact, within a class": table.duplicated(["pixel_sha256", "source"]).to_numpy(),
        "exact, across classes": (pixels["source"].transform("nunique") > 1).to_numpy(),
        "exact, across splits": (pixels["split"].transform("nunique") > 1).to_numpy(),
    }
    near = _near(table, distance)
    found |= {f"near, {where}": mask for where, mask in near.items()}
    return {name: float(mask.mean()) if len(mask) else 0.0 for name, mask in found.items()}


def _near(table: pd.DataFrame, distance: int) -> dict[str, np.ndarray]:
    """Tell for each image whether another one looks like it: in its class, another, or a split."""
    masks = {
        where: np.zeros(len(table), bool)
        for where in ("within a class", "across classes", "across splits")
    }
    has = np.flatnonzero(table["perceptual_hash"].notna())
    hashes = table["perceptual_hash"].iloc[has].to_numpy(np.uint64)
    pixels, source, split = (
        pd.factorize(table[name])[0] for name in ("pixel_sha256", "source", "split")
    )
    for first, second in HammingIndex(hashes, distance).pairs(hashes):
        one, other = has[first], has[second]
        unlike = pixels[one] != pixels[other]
        one, other = one[unlike], other[unlike]
        masks["within a class"][one[source[one] == source[other]]] = True
        masks["across classes"][one[source[one] != source[other]]] = True
        masks["across splits"][one[split[one] != split[other]]] = True
    return masks


class Straddling(NamedTuple):
    """Values in several splits, ``of`` all of them, and images without one.

    ``share`` is that of the images with such values.
    """

    share: float
    values: int
    of: int
    without_value: int


def straddling(values: pd.Series, split: pd.Series) -> Straddling:
    """Return the number of values, such as prompts, in several splits, and their images' share.

    Images without a value count as images, but have no other side.
    """
    across = split.groupby(values).nunique() > 1
    images = values.isin(across.index[across])
    share = float(images.mean()) if len(images) else 0.0
    return Straddling(share, int(across.sum()), len(across), int(values.isna().sum()))
