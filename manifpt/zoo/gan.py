"""Generative adversarial network with the DCGAN design.

Architecture: Radford et al., "Unsupervised Representation Learning with DCGAN", ICLR 2016:
transposed convolutions, batch normalisation and ReLU up, strided convolutions and leaky ReLU down.
Loss: non-saturating, Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, section 3.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from manifpt.zoo.training import Log, average_weights


class GAN(nn.Module):
    """Maps a normal latent of ``latent`` numbers to an image, C x size x size in [-1, 1]."""

    def __init__(
        self, channels: int, size: int, latent: int = 64, width: int = 64, lr: float = 2e-4
    ) -> None:
        super().__init__()
        self.latent, self.lr = latent, lr
        start = size // 4
        self.generator = nn.Sequential(
            nn.Linear(latent, 2 * width * start * start, bias=False),
            nn.Unflatten(1, (2 * width, start, start)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(),
            nn.Linear(2 * width * start * start, 1),
        )

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Alternate one discriminator and one generator step a batch; keep averaged weights."""
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        averaged = average_weights(self.generator, decay=0.999)
        for step, real in enumerate(batches):
            fake = self.generator(torch.randn(len(real), self.latent, device=real.device))
            loss_d = (
                softplus(-self.discriminator(real)) + softplus(self.discriminator(fake.detach()))
            ).mean()
            opt_d.zero_grad(set_to_none=True)
            loss_d.backward()
            opt_d.step()

            loss_g = softplus(-self.discriminator(fake)).mean()
            opt_g.zero_grad(set_to_none=True)
            loss_g.backward()
            opt_g.step()
            averaged.update_parameters(self.generator)
            log(step, {"loss_d": loss_d, "loss_g": loss_g})
        self.generator.load_state_dict(averaged.module.state_dict())

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size in [-1, 1]."""
        images: Tensor = self.generator(torch.randn(count, self.latent, generator=rng))
        return images
