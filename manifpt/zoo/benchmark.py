"""GM-<real set>: one real set, generators trained on it, samples of each, and a card."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from manifpt.zoo.training import Recipe, build, fit

REAL_COUNTS = {"manifold": 4000, "train": 300, "validation": 100, "test": 200}


def split_reals(
    images: np.ndarray, counts: dict[str, int], seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draw disjoint splits of N x H x W x C uint8 reals, exact duplicates left out.

    Returns the row numbers of each split, and those that generators may train on: all rows but
    copies and the reals held out for training, validation and test of attributors.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    first: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        first.setdefault(digest, row)
    unique = np.random.default_rng(seed).permutation(np.array(sorted(first.values())))
    edges = np.cumsum([0, *counts.values()])
    splits = {name: unique[edges[i] : edges[i + 1]] for i, name in enumerate(counts)}
    held_out = np.concatenate([rows for name, rows in splits.items() if name != "manifold"])
    return splits, np.setdiff1d(unique, held_out)


def trained(recipe: Recipe, images: np.ndarray, folder: Path) -> nn.Module:
    """Return the recipe's model trained on ``images``, from ``folder`` if it was trained before."""
    key = hashlib.sha256(json.dumps(recipe.asdict(), sort_keys=True).encode())
    key.update(images.tobytes())
    weights = folder / f"{recipe.name}-{key.hexdigest()[:12]}.pt"
    if weights.exists():
        model = build(recipe, channels=images.shape[3], size=images.shape[1])
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval()
    model, curve = fit(recipe, images)
    folder.mkdir(parents=True, exist_ok=True)
    weights.with_suffix(".json").write_text(json.dumps({"recipe": recipe.asdict(), "curve": curve}))
    partial = weights.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.rename(weights)
    return model
