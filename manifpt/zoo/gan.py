"""Generative adversarial networks, with an option for each design choice.

The base is DCGAN (Radford et al., "Unsupervised Representation Learning with DCGAN", ICLR 2016):
transposed convolutions, batch normalisation and ReLU up, strided convolutions and leaky ReLU down,
and the non-saturating loss. Every option below varies one choice and leaves the others alone, so
that its causal effect on a fingerprint can be tested.

Losses:
    nonsaturating: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, section 3.
    least_squares: Mao et al., "Least Squares GAN", ICCV 2017, eq. 9.
    hinge: Lim & Ye, "Geometric GAN", 2017; Miyato et al., ICLR 2018, eqs. 16-17.
    wgan_gp: Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, eq. 3.
    relativistic: Jolicoeur-Martineau, "The relativistic discriminator", ICLR 2019, RaSGAN.
Spectral normalisation: Miyato et al., ICLR 2018.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus
from torch.nn.utils.parametrizations import spectral_norm

from manifpt.zoo.descent import Log, average_weights, latents
from manifpt.zoo.recipe import option

Layer = Callable[[int, int], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]


def _resized(mode: str, inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(inputs, outputs, 3, padding=1)
    )


def _shuffled(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, padding=1), nn.PixelShuffle(2))


def _relativistic(better: Tensor, worse: Tensor) -> Tensor:
    return softplus(worse.mean() - better).mean() + softplus(worse - better.mean()).mean()


UPSAMPLINGS: dict[str, Layer] = {
    "transposed": partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1),
    "nearest": partial(_resized, "nearest"),
    "bilinear": partial(_resized, "bilinear"),
    "bicubic": partial(_resized, "bicubic"),
    "pixel_shuffle": _shuffled,
}
NORMALISATIONS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": partial(nn.InstanceNorm2d, affine=True),
    "none": lambda _: nn.Identity(),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "elu": nn.ELU,
    "silu": nn.SiLU,
}
# Losses of the discriminator and of the generator, each a function of logits of reals and samples.
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "nonsaturating": (
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
        lambda _, fake: softplus(-fake).mean(),
    ),
    "least_squares": (
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda _, fake: (fake - 1).square().mean() / 2,
    ),
    "hinge": (
        lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
        lambda _, fake: -fake.mean(),
    ),
    "wgan_gp": (
        lambda real, fake: fake.mean() - real.mean(),
        lambda _, fake: -fake.mean(),
    ),
    "relativistic": (_relativistic, lambda real, fake: _relativistic(fake, real)),
}
DISCRIMINATORS = ("none", "batch", "spectral")


class Up(nn.Module):
    """A block of the generator, B x inputs x H x W -> B x outputs x 2H x 2W."""

    def __init__(self, path: nn.Module, skip: nn.Module | None) -> None:
        super().__init__()
        self.path, self.skip = path, skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's maps; with a skip connection the input is added, enlarged."""
        out: Tensor = self.path(x)
        return out if self.skip is None else out + self.skip(x)


def scales(size: int) -> tuple[int, int]:
    """Return the smallest map's side, at most 8, and the number of doublings up to ``size``."""
    doublings = 0
    while size % 2 == 0 and size > 8:
        size, doublings = size // 2, doublings + 1
    return size, doublings


def decoder(
    channels: int,
    size: int,
    latent: int,
    width: int,
    upsampling: str,
    normalisation: str,
    activation: str,
    *,
    skip: bool = False,
) -> nn.Sequential:
    """Return the network from latents, B x latent, to B x channels x size x size."""
    grow = option("upsampling", upsampling, UPSAMPLINGS)
    norm = option("normalisation", normalisation, NORMALISATIONS)
    act = option("activation", activation, ACTIVATIONS)
    start, doublings = scales(size)
    widths = [width * 2**level for level in range(doublings, -1, -1)]
    layers: list[nn.Module] = [
        nn.Linear(latent, widths[0] * start * start),
        nn.Unflatten(1, (widths[0], start, start)),
        norm(widths[0]),
        act(),
    ]
    for inputs, outputs in pairwise(widths):
        beside = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Upsample(scale_factor=2))
        path = nn.Sequential(grow(inputs, outputs), norm(outputs), act())
        layers.append(Up(path, beside if skip else None))
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))


def discriminator(channels: int, size: int, width: int, normalisation: str) -> nn.Sequential:
    """Return the network from images, B x channels x size x size, to logits, B."""
    option("discriminator", normalisation, dict.fromkeys(DISCRIMINATORS))
    wrap = spectral_norm if normalisation == "spectral" else lambda layer: layer
    side, doublings = scales(size)
    widths = [channels, *(width * 2**level for level in range(doublings))]
    layers: list[nn.Module] = []
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(wrap(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)))
        if normalisation == "batch" and level:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.LeakyReLU(0.2))
    last = wrap(nn.Linear(widths[-1] * side * side, 1))
    return nn.Sequential(*layers, nn.Flatten(), last, nn.Flatten(0))


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean of (||gradient|| - 1)^2 at random points between reals and samples."""
    mix = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


class GAN(nn.Module):
    """Maps a normal latent of ``latent`` numbers to an image, C x size x size in [-1, 1]."""

    def __init__(
        self,
        channels: int,
        size: int,
        latent: int = 64,
        width: int = 16,
        lr: float = 1e-3,
        critic_width: int = 32,
        critic_lr: float = 5e-4,
        critic_steps: int = 1,
        loss: str = "nonsaturating",
        upsampling: str = "transposed",
        normalisation: str = "batch",
        activation: str = "relu",
        skip: bool = False,
        discriminator_normalisation: str = "none",
    ) -> None:
        super().__init__()
        self.latent, self.lr, self.critic_lr = latent, lr, critic_lr
        self.critic_steps = critic_steps
        self.loss_d, self.loss_g = option("loss", loss, LOSSES)
        self.penalty = 10.0 if loss == "wgan_gp" else 0.0
        look = (upsampling, normalisation, activation)
        maps = decoder(channels, size, latent, width, *look, skip=skip)
        self.generator = nn.Sequential(maps, nn.Tanh())
        self.discriminator = discriminator(
            channels, size, critic_width, discriminator_normalisation
        )

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Alternate ``critic_steps`` discriminator steps and one of the generator; average it."""
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(
            self.discriminator.parameters(), lr=self.critic_lr, betas=(0.5, 0.999)
        )
        averaged = average_weights(self.generator, decay=0.99)
        for step, real in enumerate(batches):
            fake = self.generator(torch.randn(len(real), self.latent, device=real.device))
            loss_d = self.loss_d(self.discriminator(real), self.discriminator(fake.detach()))
            if self.penalty:
                penalty = gradient_penalty(self.discriminator, real, fake.detach())
                loss_d = loss_d + self.penalty * penalty
            opt_d.zero_grad(set_to_none=True)
            loss_d.backward()
            opt_d.step()
            if step % self.critic_steps:
                continue
            loss_g = self.loss_g(self.discriminator(real), self.discriminator(fake))
            opt_g.zero_grad(set_to_none=True)
            loss_g.backward()
            opt_g.step()
            averaged.update_parameters(self.generator)
            log(step, {"loss_d": loss_d, "loss_g": loss_g})
        self.generator.load_state_dict(averaged.module.state_dict())

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size in [-1, 1]."""
        images: Tensor = self.generator(latents(self, rng, count, self.latent))
        return images
