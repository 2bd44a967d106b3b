"""Training of a recipe on real images, and sampling of the trained model."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from manifpt.nets.device import device_and_precision
from manifpt.zoo.models import build
from manifpt.zoo.recipe import Recipe


def device() -> torch.device:
    """Return the GPU that this process was given, or the CPU."""
    return torch.device(device_and_precision()[0])


def batches(images: np.ndarray, recipe: Recipe) -> Iterator[Tensor]:
    """Yield ``recipe.steps`` shuffled batches of N x H x W x C uint8 images as [-1, 1] floats.

    Each image is mirrored with probability one half, unless the recipe forbids it.
    """
    rng = np.random.default_rng(recipe.seed)
    data = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    size = min(recipe.batch_size, len(data))
    order = np.empty(0, dtype=np.int64)
    for _ in range(recipe.steps):
        if len(order) < size:
            order = rng.permutation(len(data))
        chosen, order = order[:size], order[size:]
        batch = data[torch.from_numpy(chosen)].float() / 127.5 - 1
        if recipe.mirror:
            mirrored = torch.from_numpy(rng.random(size) < 0.5)
            batch[mirrored] = batch[mirrored].flip(-1)
        yield batch


def fit_generator(recipe: Recipe, images: np.ndarray) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a recipe on N x H x W x C uint8 images; return the model and its training curve."""
    model = build(recipe, channels=images.shape[3], size=images.shape[1]).to(device())
    curve: list[dict[str, float]] = []
    started = time.monotonic()

    def log(step: int, values: dict[str, Tensor]) -> None:
        if step % 50 == 0 or step == recipe.steps - 1:
            row = {"step": float(step), "seconds": time.monotonic() - started}
            curve.append(row | {name: float(value.detach()) for name, value in values.items()})

    model.train()
    model.fit((batch.to(device()) for batch in batches(images, recipe)), log)  # type: ignore[operator]
    return model.eval(), curve


@torch.inference_mode()
def sample(model: nn.Module, count: int, seed: int, batch_size: int = 100) -> np.ndarray:
    """Return ``count`` x H x W x C uint8 images; the same seed gives the same images."""
    rng = torch.Generator().manual_seed(seed)
    parts = [
        model.sample(min(batch_size, count - start), rng)  # type: ignore[operator]
        for start in range(0, count, batch_size)
    ]
    pixels = ((torch.cat(parts).cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()
