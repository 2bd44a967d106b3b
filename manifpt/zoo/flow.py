"""Normalising flow of the wavelet kind: exact likelihood, coarse to fine.

Yu, Derpanis & Brubaker, "Wavelet Flow: Fast Training of High Resolution Normalizing Flows",
NeurIPS 2020: an image is its average over 2 x 2 pixels and three Haar details. The details of each
scale are a flow conditioned on the average; the smallest average, taken as one vector, is a flow of
its own. The flows' steps are Glow's (Kingma & Dhariwal, NeurIPS 2018): actnorm, invertible 1 x 1
convolution, affine coupling. Images are dequantised with uniform noise; samples are drawn at
``temperature`` (section 5 there).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from manifpt.zoo.descent import Log, descend, latents

HAAR = 0.5 * torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).float()


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the averages, B x C x H/2 x W/2, and the details, B x 3C x H/2 x W/2, of images."""
    blocks = pixel_unshuffle(x, 2).unflatten(1, (-1, 4))
    bands = torch.einsum("ij,bcjhw->bichw", HAAR.to(x), blocks)
    return bands[:, 0] / 2, bands[:, 1:].flatten(1, 2)


def unhaar(average: Tensor, details: Tensor) -> Tensor:
    """Undo ``haar``."""
    bands = torch.cat([2 * average.unsqueeze(1), details.unflatten(1, (3, -1))], 1)
    return pixel_shuffle(torch.einsum("ij,bichw->bcjhw", HAAR.to(average), bands).flatten(1, 2), 2)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution that starts as zero, so that its step starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Step(nn.Module):
    """Actnorm, invertible 1 x 1 convolution, affine coupling of maps, B x C x H x W."""

    def __init__(self, channels: int, context: int, width: int, kernel: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.kept = channels // 2
        outputs = 2 * (channels - self.kept)
        self.own = nn.Conv2d(self.kept, width, kernel, padding=kernel // 2)
        self.given = nn.Conv2d(context, width, 1)
        self.coupling = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            zeroed(nn.Conv2d(width, outputs, kernel, padding=kernel // 2)),
        )

    def initialise(self, x: Tensor) -> None:
        """Set actnorm so that this batch leaves it with zero mean and unit variance a channel."""
        with torch.no_grad():
            self.shift.copy_(-x.mean((0, 2, 3), keepdim=True))
            self.log_scale.copy_(-x.std((0, 2, 3), keepdim=True).clamp_min(1e-3).log())

    def _affine(self, kept: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.coupling(self.own(kept) + self.given(context)).chunk(2, dim=1)
        return 1.5 * torch.tanh(raw), shift

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed maps and the log-determinant of each sample, B."""
        pixels = x.shape[2] * x.shape[3]
        x = (x + self.shift) * self.log_scale.exp()
        x = torch.einsum("ij,bjhw->bihw", self.mix, x)
        log_det = pixels * (self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1])
        kept, moved = x[:, : self.kept], x[:, self.kept :]
        log_scale, shift = self._affine(kept, context)
        moved = moved * log_scale.exp() + shift
        return torch.cat([kept, moved], 1), log_det + log_scale.sum((1, 2, 3))

    def inverse(self, y: Tensor, context: Tensor) -> Tensor:
        """Undo ``forward``."""
        kept, moved = y[:, : self.kept], y[:, self.kept :]
        log_scale, shift = self._affine(kept, context)
        x = torch.cat([kept, (moved - shift) * (-log_scale).exp()], 1)
        x = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self.mix), x)
        return x * (-self.log_scale).exp() - self.shift


class Level(nn.Module):
    """A flow of maps x, B x C x H x W, given the maps that condition it."""

    def __init__(
        self, channels: int, given: int, context: int, depth: int, width: int, kernel: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (given, context, context):
            layers += [nn.Conv2d(inputs, context, kernel, padding=kernel // 2), nn.SiLU()]
        self.encode = nn.Sequential(*layers)
        self.scale = zeroed(nn.Conv2d(context, 2 * channels, 1))
        self.steps = nn.ModuleList(Step(channels, context, width, kernel) for _ in range(depth))

    def _condition(self, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        context = self.encode(given)
        log_scale, shift = self.scale(context).chunk(2, dim=1)
        return context, 8 * torch.tanh(log_scale / 8), shift

    def forward(self, x: Tensor, given: Tensor, *, initialise: bool) -> tuple[Tensor, Tensor]:
        """Return the latents of x and the log-determinant of each sample, B."""
        context, log_scale, shift = self._condition(given)
        z, log_det = (x - shift) * log_scale.exp(), log_scale.sum((1, 2, 3))
        for step in self.steps:
            if initialise:
                step.initialise(z)  # type: ignore[operator]
            z, change = step(z, context)
            log_det = log_det + change
        return z, log_det

    def inverse(self, z: Tensor, given: Tensor) -> Tensor:
        """Undo ``forward``."""
        context, log_scale, shift = self._condition(given)
        for step in reversed(self.steps):
            z = step.inverse(z, context)  # type: ignore[operator]
        return z * (-log_scale).exp() + shift


class Flow(nn.Module):
    """Maps an image to normal latents of the same number of values, and back."""

    def __init__(
        self,
        channels: int,
        size: int,
        depth: int = 4,
        width: int = 48,
        temperature: float = 0.7,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.temperature, self.lr, self.channels = temperature, lr, channels
        self.fresh = True  # until the first batch has set actnorm
        self.dimension = channels * size * size
        self.sizes = []
        while size > 8 and size % 2 == 0:
            size //= 2
            self.sizes.append(size)
        self.coarse_size = size
        self.details = nn.ModuleList(
            Level(3 * channels, channels, width, depth, width, kernel=3) for _ in self.sizes
        )
        # Its condition is a constant: one vector of affine parameters, learned.
        self.coarse = Level(channels * size * size, 1, 1, 3 * depth, 8 * width, kernel=1)

    def forward(self, x: Tensor, *, initialise: bool = False) -> tuple[list[Tensor], Tensor]:
        """Return the latents, fine to coarse, and log |det| of each sample, B."""
        found, log_det = [], x.new_zeros(len(x))
        for level in self.details:
            x, details = haar(x)
            latent, change = level(details, x, initialise=initialise)
            found.append(latent)
            log_det = log_det + change - math.log(2) * x[0].numel()
        vector = x.flatten(1)[:, :, None, None]
        latent, change = self.coarse(vector, torch.ones_like(vector[:, :1]), initialise=initialise)
        return [*found, latent], log_det + change

    def inverse(self, found: list[Tensor]) -> Tensor:
        """Undo ``forward``."""
        *fine, coarse = found
        size = self.coarse_size
        vector = self.coarse.inverse(coarse, torch.ones_like(coarse[:, :1]))
        x = vector.reshape(len(vector), self.channels, size, size)
        for level, latent in zip(reversed(self.details), reversed(fine), strict=True):
            x = unhaar(x, level.inverse(latent, x))  # type: ignore[operator]
        return x

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Minimise bits per dimension; keep averaged weights."""

        def loss(real: Tensor) -> Tensor:
            noisy = real + (torch.rand_like(real) - 0.5) * (2 / 255)
            found, log_det = self(noisy, initialise=self.fresh)
            self.fresh = False
            square = torch.stack([z.square().sum((1, 2, 3)) for z in found]).sum(0)
            constant = 0.5 * self.dimension * math.log(2 * math.pi)
            nats = 0.5 * square + constant - log_det + self.dimension * math.log(255 / 2)
            bits: Tensor = nats.mean() / (self.dimension * math.log(2))
            return bits

        descend(self, loss, self.lr, batches, log)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size, clipped to [-1, 1]."""
        shapes = [(3 * self.channels, size, size) for size in self.sizes]
        shapes.append((self.channels * self.coarse_size**2, 1, 1))
        drawn = [self.temperature * latents(self, rng, count, *shape) for shape in shapes]
        return self.inverse(drawn).nan_to_num(0.0).clamp(-1, 1)
