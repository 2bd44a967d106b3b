"""Score-based generators: diffusion and flow matching, on one small U-Net.

Diffusion: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020: the network
predicts the noise; cosine schedule of Nichol & Dhariwal, ICML 2021, eq. 17. Samples take
``sampling_steps`` steps on a strided schedule (Song et al., "DDIM", ICLR 2021, eq. 12): random
ones with ``eta`` = 1, as DDPM's, none with ``eta`` = 0.
Flow matching: Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023, with the straight
paths of Liu et al., "Rectified Flow", ICLR 2023; samples integrate with Heun's method.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from manifpt.zoo.descent import Log, descend, latents

TIMES = 1000


class Block(nn.Module):
    """Residual block of two convolutions with a shift by the time embedding."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.time = nn.Linear(embedding, outputs)
        self.second = nn.Sequential(
            nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return B x outputs x H x W."""
        hidden = self.first(x) + self.time(time)[:, :, None, None]
        out: Tensor = self.skip(x) + self.second(hidden)
        return out


class Attention(nn.Module):
    """Single-head self-attention over the pixels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.attention = nn.MultiheadAttention(channels, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return B x C x H x W."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        out: Tensor = x + mixed.transpose(1, 2).reshape(x.shape)
        return out


class UNet(nn.Module):
    """Predicts the noise in B x C x H x W images at B times, on three resolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        embedding = 4 * width
        self.width = width
        self.time = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        wide = 2 * width
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down1 = Block(width, width, embedding)
        self.down2 = Block(width, wide, embedding)
        self.down3 = Block(wide, wide, embedding)
        self.middle = Attention(wide)
        self.up3 = Block(wide, wide, embedding)
        self.up2 = Block(2 * wide, wide, embedding)
        self.up1 = Block(wide + width, width, embedding)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)
        )
        self.halve = nn.AvgPool2d(2)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Return the predicted noise, the shape of ``x``; ``times`` are B integers."""
        half = self.width // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=x.device) / half)
        angles = times[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        x1 = self.down1(self.enter(x), time)
        x2 = self.down2(self.halve(x1), time)
        x3 = self.up3(self.middle(self.down3(self.halve(x2), time)), time)
        x2 = self.up2(torch.cat([interpolate(x3, scale_factor=2.0), x2], 1), time)
        x1 = self.up1(torch.cat([interpolate(x2, scale_factor=2.0), x1], 1), time)
        noise: Tensor = self.leave(x1)
        return noise


class Diffusion(nn.Module):
    """Learns to take noise away, and samples by starting from noise alone."""

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 32,
        sampling_steps: int = 100,
        eta: float = 1.0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.sampling_steps, self.eta, self.lr = sampling_steps, eta, lr
        self.network = UNet(channels, width)
        steps = torch.linspace(0, 1, TIMES + 1, dtype=torch.float64)
        cosine = torch.cos((steps + 0.008) / 1.008 * math.pi / 2).square()
        self.signal: Tensor
        self.register_buffer("signal", (cosine / cosine[0])[1:].clamp(1e-5, 1).float())

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Minimise the squared error of the predicted noise; keep averaged weights."""

        def loss(real: Tensor) -> Tensor:
            times = torch.randint(TIMES, (len(real),), device=real.device)
            signal = self.signal[times][:, None, None, None]
            noise = torch.randn_like(real)
            noisy = signal.sqrt() * real + (1 - signal).sqrt() * noise
            out: Tensor = (self.network(noisy, times) - noise).square().mean()
            return out

        descend(self.network, loss, self.lr, batches, log)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size in [-1, 1]."""
        x = latents(self, rng, count, *self.shape)
        schedule = torch.linspace(TIMES - 1, 0, self.sampling_steps).round().long().tolist()
        for time, following in zip(schedule, [*schedule[1:], -1], strict=True):
            signal = self.signal[time]
            after = self.signal[following] if following >= 0 else torch.ones_like(signal)
            noise = self.network(x, torch.full((count,), time, device=x.device))
            clean = ((x - (1 - signal).sqrt() * noise) / signal.sqrt()).clamp(-1, 1)
            noise = (x - signal.sqrt() * clean) / (1 - signal).sqrt()
            variance = (1 - after) / (1 - signal) * (1 - signal / after)
            sigma = self.eta * variance.clamp_min(0).sqrt()
            drift = (1 - after - sigma.square()).clamp_min(0).sqrt()
            x = after.sqrt() * clean + drift * noise
            x = x + sigma * latents(self, rng, *x.shape)
        return x.clamp(-1, 1)


class FlowMatching(nn.Module):
    """Learns the velocity from noise to image along straight lines, and samples by following it."""

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 32,
        sampling_steps: int = 25,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.sampling_steps, self.lr = sampling_steps, lr
        self.network = UNet(channels, width)

    def velocity(self, x: Tensor, times: Tensor) -> Tensor:
        """Return the velocity of B images at B times, 0 for noise and 1 for images."""
        out: Tensor = self.network(x, times * TIMES)
        return out

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Minimise the squared error of the predicted velocity; keep averaged weights."""

        def loss(real: Tensor) -> Tensor:
            times = torch.rand(len(real), device=real.device)
            noise, mix = torch.randn_like(real), times[:, None, None, None]
            moved = self.velocity(mix * real + (1 - mix) * noise, times)
            return (moved - (real - noise)).square().mean()

        descend(self.network, loss, self.lr, batches, log)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size in [-1, 1]."""
        x = latents(self, rng, count, *self.shape)
        length = 1 / self.sampling_steps
        for step in range(self.sampling_steps):
            now = torch.full((count,), step * length, device=x.device)
            first = self.velocity(x, now)
            second = self.velocity(x + length * first, now + length)
            x = x + length / 2 * (first + second)
        return x.clamp(-1, 1)
