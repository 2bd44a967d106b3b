"""What all generators share: recipes, batches, averaged weights, and the way to uint8 samples."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Log = Callable[[int, dict[str, Tensor]], None]


class Generator(Protocol):
    """A generative model of C x size x size images in [-1, 1]."""

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Train on batches of B x C x size x size images in [-1, 1] until they end."""

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images; the same ``rng`` state gives the same images."""


@dataclass(frozen=True)
class Recipe:
    """How to make one generator again: its model, its options, its seed and its training."""

    name: str
    model: str
    seed: int
    steps: int
    batch_size: int = 128
    options: dict[str, Any] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return asdict(self)


def average_weights(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a module's weights and buffers."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def batches(images: np.ndarray, recipe: Recipe) -> Iterator[Tensor]:
    """Yield ``recipe.steps`` shuffled batches of N x H x W x C uint8 images as [-1, 1] floats.

    Each image is mirrored with probability one half.
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
        mirrored = torch.from_numpy(rng.random(size) < 0.5)
        batch[mirrored] = batch[mirrored].flip(-1)
        yield batch


MODELS = ("gan", "vae", "flow", "score")


def build(recipe: Recipe, channels: int, size: int) -> nn.Module:
    """Return the untrained model of a recipe; ``size`` must be a multiple of 4."""
    from manifpt.zoo.flow import Flow
    from manifpt.zoo.gan import GAN
    from manifpt.zoo.score import Diffusion
    from manifpt.zoo.vae import VAE

    kinds: tuple[type[nn.Module], ...] = (GAN, VAE, Flow, Diffusion)
    torch.manual_seed(recipe.seed)
    return dict(zip(MODELS, kinds, strict=True))[recipe.model](channels, size, **recipe.options)


def fit(recipe: Recipe, images: np.ndarray) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a recipe on N x H x W x C uint8 images; return the model and its training curve."""
    model = build(recipe, channels=images.shape[3], size=images.shape[1])
    curve: list[dict[str, float]] = []
    started = time.monotonic()

    def log(step: int, values: dict[str, Tensor]) -> None:
        if step % 50 == 0 or step == recipe.steps - 1:
            row = {"step": float(step), "seconds": time.monotonic() - started}
            curve.append(row | {name: float(value.detach()) for name, value in values.items()})

    model.train()
    model.fit(batches(images, recipe), log)  # type: ignore[operator]
    return model.eval(), curve


@torch.inference_mode()
def sample(model: nn.Module, count: int, seed: int, batch_size: int = 100) -> np.ndarray:
    """Return ``count`` x H x W x C uint8 images; the same seed gives the same images."""
    rng = torch.Generator().manual_seed(seed)
    parts = [
        model.sample(min(batch_size, count - start), rng)  # type: ignore[operator]
        for start in range(0, count, batch_size)
    ]
    pixels = ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()
