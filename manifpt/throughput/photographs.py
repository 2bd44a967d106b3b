"""Images for measurements: augmented crops of real photographs, never noise.

Reals are crops of the left three quarters of each photograph, unseen reals of the rest. "Generated"
images are samples of a probabilistic PCA of the reals (Tipping & Bishop, JRSS B 1999), a generator
that takes no time to train.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, plan, read_unit
from manifpt.images.read import pixels_of

SIDE = 1024
SEEN = 0.75
COMPONENTS = 128


def photographs(inputs: Sequence[str]) -> list[Image.Image]:
    """Return the photographs behind ``inputs``, or scikit-learn's two if there are none."""
    if not inputs:
        try:
            from sklearn.datasets import load_sample_images
        except ImportError:
            raise ManifptError("--input: give photographs, or install scikit-learn") from None
        return [Image.fromarray(image) for image in load_sample_images().images]
    tables = (table for unit in plan(inputs) for table in read_unit(unit, DecodeRule(SIDE)))
    found = [image for t in tables for image in pixels_of(t.filter(t["error"].is_null()))]
    if not found:
        raise ManifptError("--input: none of the images could be decoded; give photographs")
    return [Image.fromarray(image) for image in found]


def crops(
    photos: Sequence[Image.Image], size: int, count: int, seed: int, *, seen: bool
) -> np.ndarray:
    """Return random crops, count x size x size x 3 uint8.

    None is enlarged where the photographs' sides are at least 8 times as long.
    """
    rng = np.random.default_rng([seed, seen])
    photos = [photo.copy() for photo in photos]
    for photo in photos:
        photo.thumbnail((8 * size, 8 * size), Image.Resampling.BICUBIC)
    out = np.empty((count, size, size, 3), np.uint8)
    for n in range(count):
        photo = photos[int(rng.integers(len(photos)))]
        width, height = photo.size
        left, right = (0.0, SEEN * width) if seen else (SEEN * width, float(width))
        side = rng.uniform(0.5, 1.0) * min((1 - SEEN) * width, height)
        x, y = rng.uniform(left, right - side), rng.uniform(0, height - side)
        box = (x, y, x + side, y + side)
        crop = np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box))
        light = crop * rng.uniform(0.8, 1.2)
        out[n] = np.clip(light, 0, 255)[:, :: rng.choice((-1, 1))]
    return out


def generated(reals: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return samples of a probabilistic PCA of N x H x W x 3 uint8 reals, count x H x W x 3."""
    flat = torch.from_numpy(reals[:4000].reshape(min(len(reals), 4000), -1)).float()
    mean = flat.mean(0)
    torch.manual_seed(seed)
    _, scale, directions = torch.svd_lowrank(flat - mean, COMPONENTS, niter=2)
    spread = scale / len(flat) ** 0.5
    left = ((flat - mean).square().mean() - spread.square().sum() / flat.shape[1]).clamp_min(0)
    z = torch.randn(count, len(scale)) * spread
    noise = torch.randn(count, flat.shape[1]) * left.sqrt()
    images = (mean + z @ directions.T + noise).clamp(0, 255).round()
    out: np.ndarray = images.to(torch.uint8).numpy().reshape(count, *reals.shape[1:])
    return out
