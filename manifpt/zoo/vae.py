"""Variational autoencoders, and hybrids with a discriminator or a codebook.

VAE: Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014; ``beta`` weighs the KL term as
in Higgins et al., "beta-VAE", ICLR 2017. Pixels have a Bernoulli likelihood; a sample is its mean.
The perceptual loss in its place is one minus the structural similarity of Wang et al., IEEE TIP
2004, after Snell et al., "Learning to generate images with perceptual similarity metrics", ICIP
2017.
VAE-GAN: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016:
the reconstruction is measured in the features of a discriminator that is trained beside it.
VQ-VAE: van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, with a
codebook that follows a moving average (after appendix A.1 there, means in place of sums and counts,
unused codes revived); its prior over the codes is a small causal
transformer (Vaswani et al., NeurIPS 2017), trained beside it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    one_hot,
    softplus,
)
from torchmetrics.functional.image import structural_similarity_index_measure

from manifpt.zoo.descent import Log, average_weights, latents
from manifpt.zoo.gan import decoder, discriminator, scales
from manifpt.zoo.recipe import option


def encoder(channels: int, size: int, width: int) -> tuple[nn.Sequential, int, int]:
    """Return a network to maps, their channels and their side: that of ``scales``."""
    side, doublings = scales(size)
    layers: list[nn.Module] = []
    inputs = channels
    for level in range(doublings):
        outputs = width * 2**level
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.SiLU()]
        inputs = outputs
    return nn.Sequential(*layers), inputs, side


def pixel_loss(logits: Tensor, pixels: Tensor) -> Tensor:
    """Return the Bernoulli negative log-likelihood of an image, mean over the batch, nats."""
    return binary_cross_entropy_with_logits(logits, pixels, reduction="sum") / len(pixels)


def perceptual_loss(logits: Tensor, pixels: Tensor) -> Tensor:
    """Return one minus the structural similarity, times a quarter of an image's numbers."""
    alike = structural_similarity_index_measure(
        torch.sigmoid(logits), pixels, sigma=1.0, kernel_size=7, data_range=1.0
    )
    return (1 - torch.as_tensor(alike)) * pixels[0].numel() / 4


RECONSTRUCTIONS = {"pixel": pixel_loss, "perceptual": perceptual_loss}


class VAE(nn.Module):
    """Encodes an image to a normal latent of ``latent`` numbers and decodes it to pixel logits."""

    def __init__(
        self,
        channels: int,
        size: int,
        latent: int = 24,
        width: int = 32,
        beta: float = 1.0,
        lr: float = 1e-3,
        upsampling: str = "transposed",
        reconstruction: str = "pixel",
    ) -> None:
        super().__init__()
        self.latent, self.beta, self.lr = latent, beta, lr
        self.unlike = option("reconstruction", reconstruction, RECONSTRUCTIONS)
        maps, outputs, side = encoder(channels, size, width)
        self.encoder = nn.Sequential(
            maps, nn.Flatten(), nn.Linear(outputs * side * side, 2 * latent)
        )
        self.decoder = decoder(channels, size, latent, width, upsampling, "none", "silu")

    def encode(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw from the posterior of each image and its divergence from the prior, B."""
        mean, log_var = self.encoder(real).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return z, 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Maximise the evidence lower bound."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        for step, real in enumerate(batches):
            z, divergence = self.encode(real)
            loss = self.unlike(self.decoder(z), (real + 1) / 2) + self.beta * divergence.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            log(step, {"loss": loss, "kl": divergence.mean()})

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size in [-1, 1]."""
        logits: Tensor = self.decoder(latents(self, rng, count, self.latent))
        return 2 * torch.sigmoid(logits) - 1


class VAEGAN(VAE):
    """A VAE whose decoder is the generator of a GAN, too; ``gamma`` weighs likeness to the real."""

    def __init__(
        self,
        channels: int,
        size: int,
        latent: int = 24,
        width: int = 32,
        beta: float = 1.0,
        lr: float = 1e-3,
        upsampling: str = "transposed",
        gamma: float = 0.05,
    ) -> None:
        super().__init__(channels, size, latent, width, beta, lr, upsampling)
        self.gamma = gamma
        judge = discriminator(channels, size, width, "none")
        self.features, self.judge = judge[:-3], judge[-3:]

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Alternate one step of the discriminator and one of encoder and decoder."""
        coder = [*self.encoder.parameters(), *self.decoder.parameters()]
        critic = [*self.features.parameters(), *self.judge.parameters()]
        opt_g = torch.optim.Adam(coder, lr=self.lr, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(critic, lr=self.lr, betas=(0.5, 0.999))
        averaged = average_weights(self.decoder, decay=0.999)
        for step, real in enumerate(batches):
            z, divergence = self.encode(real)
            images = torch.tanh(self.decoder(torch.cat([z, torch.randn_like(z)])) / 2)
            fake = self.judge(self.features(images.detach()))
            loss_d = softplus(-self.judge(self.features(real))).mean() + softplus(fake).mean()
            opt_d.zero_grad(set_to_none=True)
            loss_d.backward()
            opt_d.step()

            features = self.features(images)
            unlike = (features[: len(real)] - self.features(real).detach()).square()
            reconstruction = 0.5 * unlike.flatten(1).sum(1).mean()
            loss_g = softplus(-self.judge(features)).mean()
            loss = self.beta * divergence.mean() + reconstruction + loss_g / self.gamma
            opt_g.zero_grad(set_to_none=True)
            loss.backward()
            opt_g.step()
            averaged.update_parameters(self.decoder)
            log(step, {"loss_d": loss_d, "loss_g": loss_g, "kl": divergence.mean()})
        self.decoder.load_state_dict(averaged.module.state_dict())


class Codebook(nn.Module):
    """``codes`` vectors that follow, as a moving average, the vectors that choose them."""

    def __init__(self, codes: int, width: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.vectors: Tensor
        self.counts: Tensor
        self.register_buffer("vectors", torch.randn(codes, width))
        self.register_buffer("counts", torch.ones(codes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the number of the nearest code for each of N x width vectors."""
        return torch.cdist(x, self.vectors).argmin(1)

    @torch.no_grad()
    def follow(self, x: Tensor, chosen: Tensor) -> None:
        """Move the codes towards the N x width vectors that chose them; revive unused ones."""
        picks = one_hot(chosen, len(self.vectors)).to(x)
        seen = picks.sum(0)
        means = (picks.T @ x) / seen.clamp_min(1)[:, None]
        pull = (1 - self.decay) * (seen > 0).float()[:, None]
        self.vectors += pull * (means - self.vectors)
        self.counts.mul_(self.decay).add_(seen, alpha=1 - self.decay)
        unused = self.counts < 0.01 * len(x) / len(self.vectors)
        self.vectors[unused] = x[torch.randint(len(x), (int(unused.sum()),))]
        self.counts[unused] = 1.0


class VQVAE(nn.Module):
    """Encodes an image to a map of codes, decodes them, and draws new maps from a learned prior."""

    def __init__(
        self, channels: int, size: int, codes: int = 128, width: int = 32, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.lr = lr
        maps, outputs, self.side = encoder(channels, size, width)
        self.codebook = Codebook(codes, width)
        self.encoder = nn.Sequential(maps, nn.Conv2d(outputs, width, 1))
        self.decoder = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1), nn.SiLU())
        inputs = outputs
        while inputs > width:
            step = nn.ConvTranspose2d(inputs, inputs // 2, 4, stride=2, padding=1)
            self.decoder.extend([step, nn.SiLU()])
            inputs //= 2
        self.decoder.append(nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1))
        wide, length = 4 * width, self.side**2
        self.token = nn.Embedding(codes + 1, wide)  # the last one starts every sequence
        self.place = nn.Parameter(0.02 * torch.randn(length, wide))
        layer = nn.TransformerEncoderLayer(
            wide, 4, 2 * wide, 0.0, batch_first=True, norm_first=True
        )
        self.prior = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.leave = nn.Linear(wide, codes)

    def fit(self, batches: Iterator[Tensor], log: Log) -> None:
        """Minimise the error of the pixels; beside it, learn the prior of the codes."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        for step, real in enumerate(batches):
            maps = self.encoder(real)
            rows = maps.movedim(1, 3).flatten(0, 2)
            chosen = self.codebook(rows.detach())
            quantised = self.codebook.vectors[chosen].reshape(maps.movedim(1, 3).shape)
            quantised = quantised.movedim(3, 1)
            commitment = mse_loss(maps, quantised)
            through = maps + (quantised - maps).detach()
            pixels = mse_loss(torch.tanh(self.decoder(through)), real)
            codes = chosen.reshape(len(real), -1)
            surprise = cross_entropy(self.logits(codes[:, :-1]).flatten(0, 1), codes.flatten())
            loss = pixels + 0.25 * commitment + surprise
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            self.codebook.follow(rows.detach(), chosen)
            log(step, {"pixels": pixels, "commitment": commitment, "surprise": surprise})

    def logits(self, codes: Tensor) -> Tensor:
        """Return the logits of each next code, B x (n + 1) x codes, after B x n codes."""
        start = codes.new_full((len(codes), 1), self.token.num_embeddings - 1)
        tokens = self.token(torch.cat([start, codes], 1))
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=codes.device)
        hidden = self.prior(tokens + self.place[:length], mask=mask, is_causal=True)
        out: Tensor = self.leave(hidden)
        return out

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return ``count`` images, count x C x size x size in [-1, 1]."""
        codes = torch.zeros(count, 0, dtype=torch.long, device=self.place.device)
        for _ in range(self.side**2):
            chances = self.logits(codes)[:, -1].softmax(1).cpu()
            following = torch.multinomial(chances, 1, generator=rng).to(codes.device)
            codes = torch.cat([codes, following], 1)
        maps = self.codebook.vectors[codes].reshape(count, self.side, self.side, -1).movedim(3, 1)
        return torch.tanh(self.decoder(maps))
