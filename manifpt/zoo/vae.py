"""Variational autoencoder.

Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014; ``beta`` weighs the KL term as in
Higgins et al., "beta-VAE", ICLR 2017. Pixels have a Bernoulli likelihood; a sample is its mean.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from manifpt.zoo.training import Log


class VAE(nn.Module):
    """Encodes an image to a normal latent of ``latent`` numbers and decodes it to pixel logits."""

    def __init__(
        self,
        channels: int,
        size: int,
        latent: int = 24,
        width: int = 64,
        beta: float = 1.0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.latent, self.beta, self.lr = latent, beta, lr
        start = size // 4
        flat = 2 * width * start * start
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(flat, 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, flat),
            nn.SiLU(),
            nn.Unflatten(1, (2 * width, start, start)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Maximise the evidence lower bound."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        for step, real in enumerate(batches):
            mean, log_var = self.encoder(real).chunk(2, dim=1)
            z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
            pixels = (real + 1) / 2
            reconstruction = binary_cross_entropy_with_logits(
                self.decoder(z), pixels, reduction="sum"
            ) / len(real)
            divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
            loss = reconstruction + self.beta * divergence
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            log(step, {"loss": loss, "kl": divergence})

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size in [-1, 1]."""
        logits = self.decoder(torch.randn(count, self.latent, generator=rng))
        return torch.sigmoid(logits) * 2 - 1
