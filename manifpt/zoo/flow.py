"""Normalising flow with the Glow design.

Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS 2018:
levels of [squeeze, (actnorm, invertible 1 x 1 convolution, affine coupling) x depth, split], what
is split off having a normal prior conditioned on the rest. On the last, coarse level the coupling
is a dense network over all pixels, as in Dinh et al., "NICE", ICLR 2015: in a short training,
convolutions there do not learn how the parts of an object hang together.
Images are dequantised with uniform noise; samples are drawn at ``temperature`` (section 5 there).
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from manifpt.zoo.training import Log, average_weights


class Step(nn.Module):
    """Actnorm, invertible 1 x 1 convolution and affine coupling of B x C x H x W maps."""

    def __init__(self, channels: int, size: int, width: int, *, dense: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.kept = channels // 2
        outputs = 2 * (channels - self.kept)
        last = (
            nn.Linear(8 * width, outputs * size * size)
            if dense
            else nn.Conv2d(width, outputs, 3, padding=1)
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.coupling = (
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(self.kept * size * size, 8 * width),
                nn.ReLU(inplace=True),
                nn.Linear(8 * width, 8 * width),
                nn.ReLU(inplace=True),
                last,
                nn.Unflatten(1, (outputs, size, size)),
            )
            if dense
            else nn.Sequential(
                nn.Conv2d(self.kept, width, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 1),
                nn.ReLU(inplace=True),
                last,
            )
        )

    def initialise(self, x: Tensor) -> None:
        """Set actnorm so that this batch leaves it with zero mean and unit variance a channel."""
        with torch.no_grad():
            self.shift.copy_(-x.mean((0, 2, 3), keepdim=True))
            self.log_scale.copy_(-x.std((0, 2, 3), keepdim=True).clamp_min(1e-3).log())

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.coupling(kept).chunk(2, dim=1)
        return 1.5 * torch.tanh(raw), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed maps and the log-determinant of each sample, B."""
        pixels = x.shape[2] * x.shape[3]
        x = (x + self.shift) * self.log_scale.exp()
        x = torch.einsum("ij,bjhw->bihw", self.mix, x)
        log_det = pixels * (self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1])
        kept, moved = x[:, : self.kept], x[:, self.kept :]
        log_scale, shift = self._affine(kept)
        moved = moved * log_scale.exp() + shift
        return torch.cat([kept, moved], 1), log_det + log_scale.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        """Undo ``forward``."""
        kept, moved = y[:, : self.kept], y[:, self.kept :]
        log_scale, shift = self._affine(kept)
        x = torch.cat([kept, (moved - shift) * (-log_scale).exp()], 1)
        x = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self.mix), x)
        return x * (-self.log_scale).exp() - self.shift


class Flow(nn.Module):
    """Maps an image to normal latents of the same number of values, and back."""

    def __init__(
        self,
        channels: int,
        size: int,
        depth: int = 6,
        width: int = 64,
        temperature: float = 0.8,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.temperature, self.lr = temperature, lr
        self.dimension = channels * size * size
        fine, half = 4 * channels, size // 2
        coarse, quarter = 2 * fine, half // 2
        self.shapes = [(fine // 2, half, half), (coarse, quarter, quarter)]
        self.levels = nn.ModuleList(
            [
                nn.ModuleList(Step(fine, half, width, dense=False) for _ in range(depth)),
                nn.ModuleList(Step(coarse, quarter, width, dense=True) for _ in range(2 * depth)),
            ]
        )
        last = nn.Conv2d(width, fine, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.prior = nn.Sequential(
            nn.Conv2d(fine // 2, width, 3, padding=1), nn.ReLU(inplace=True), last
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the latents of both levels and log |det| of each sample, B."""
        x, log_det = self._level(0, pixel_unshuffle(x, 2), x.new_zeros(len(x)))
        kept, split = x.chunk(2, dim=1)
        mean, log_scale = self.prior(kept).chunk(2, dim=1)
        fine = (split - mean) * (-log_scale).exp()
        log_det = log_det - log_scale.sum((1, 2, 3))
        coarse, log_det = self._level(1, pixel_unshuffle(kept, 2), log_det)
        return [fine, coarse], log_det

    def steps(self, level: int) -> list[Step]:
        """Return the steps of a level, first to last."""
        return cast("list[Step]", list(cast("nn.ModuleList", self.levels[level])))

    def _level(self, number: int, x: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        for step in self.steps(number):
            x, change = step(x)
            log_det = log_det + change
        return x, log_det

    def inverse(self, latents: list[Tensor]) -> Tensor:
        """Undo ``forward``."""
        fine, x = latents
        for step in reversed(self.steps(1)):
            x = step.inverse(x)
        kept = pixel_shuffle(x, 2)
        mean, log_scale = self.prior(kept).chunk(2, dim=1)
        x = torch.cat([kept, fine * log_scale.exp() + mean], 1)
        for step in reversed(self.steps(0)):
            x = step.inverse(x)
        return pixel_shuffle(x, 2)

    def _initialise(self, x: Tensor) -> None:
        """Data-dependent initialisation of every actnorm, first to last."""
        with torch.no_grad():
            for number in range(len(self.levels)):
                x = pixel_unshuffle(x, 2)
                for step in self.steps(number):
                    step.initialise(x)
                    x, _ = step(x)
                x = x.chunk(2, dim=1)[0]

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Minimise bits per dimension; keep averaged weights."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        averaged = average_weights(self, decay=0.998)
        for step, real in enumerate(batches):
            noisy = real + (torch.rand_like(real) - 0.5) * (2 / 255)
            if step == 0:
                self._initialise(noisy)
            latents, log_det = self(noisy)
            square = torch.stack([z.square().sum((1, 2, 3)) for z in latents]).sum(0)
            constant = 0.5 * self.dimension * math.log(2 * math.pi)
            nats = 0.5 * square + constant - log_det + self.dimension * math.log(255 / 2)
            loss = nats.mean() / (self.dimension * math.log(2))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = self.lr * min(1.0, (step + 1) / 200)
            optimizer.step()
            averaged.update_parameters(self)
            log(step, {"bits_per_dim": loss})
        self.load_state_dict(averaged.module.state_dict())

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size, clipped to [-1, 1]."""
        latents = [
            self.temperature * torch.randn(count, *shape, generator=rng) for shape in self.shapes
        ]
        return self.inverse(latents).nan_to_num(0.0).clamp(-1, 1)
