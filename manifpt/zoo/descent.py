"""The training code of all generators: their interface, descent, averaged weights."""

from collections.abc import Callable, Iterator
from typing import Protocol

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


def latents(module: nn.Module, rng: torch.Generator, *shape: int) -> Tensor:
    """Return normal numbers on a module's device; drawn on the CPU, they are the same on a GPU."""
    return torch.randn(shape, generator=rng).to(next(module.parameters()).device)


def average_weights(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a module's weights and buffers."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def descend(
    network: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    lr: float,
    batches: Iterator[Tensor],
    log: Log,
) -> None:
    """Minimise ``loss_of`` each batch of reals by Adam; leave the averaged weights in place."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    averaged = average_weights(network, decay=0.998)
    for step, real in enumerate(batches):
        loss = loss_of(real)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 200)
        optimizer.step()
        averaged.update_parameters(network)
        log(step, {"loss": loss})
    network.load_state_dict(averaged.module.state_dict())
