"""The geometry of the real vectors, learned by a variational autoencoder.

A latent z decodes to a Gaussian with the mean mu(z) and the standard deviations sigma(z); curves
in latent space are measured by how mu and sigma move (the pull-back metric)

    g(z) = J_mu(z)^T J_mu(z) + J_sigma(z)^T J_sigma(z),

the expected metric of the random surface: Arvanitidis, Hansen & Hauberg, "Latent Space Oddity",
ICLR 2018, section 3; Song & Itti, "Riemannian-Geometric Fingerprints of Generative Models",
ICCV 2025. sigma must grow away from the data, else curves take short cuts where there are no reals
(Hauberg, "Only Bayes should learn a manifold", 2018). The networks of the second paper are
unknown; here:

- vectors are centred and divided by *one* scale, so that lengths are those of the vectors;
- mu has two hidden layers with a smooth activation, since g takes derivatives;
- sigma(z) = s sqrt(1 + (slope D(z) / ||s||)^2), where s is one deviation for each dimension and
  D(z) a distance from the encoded reals, of the logarithm of radial basis functions at their
  centres. Without the logarithm sigma would be flat in the middle of a hole of the data, and a
  curve across it would feel no force. A profile for each dimension would cost a hundred times
  more for images, and give the same information: the distance to the reals.

The last layer of mu is linear and sigma has one profile, so ``lift`` maps latents to about a
hundred coordinates that have exactly the distances of all d means and deviations together: the cost
of a geodesic does not depend on d. Training is in float32, all else in float64: descent multiplies
rounding errors, and an image's result must not depend on the other images of its batch.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from manifpt.errors import ManifptError
from manifpt.manifold.manifold_format import NetworkState

LATENT = 16  # at most d
HIDDEN = 128  # of the decoder; each step of a geodesic costs its square
ENCODER = 256
STEPS = 2000
BATCH = 128
RATE = 2e-3
# A negligible error, as a variance of the scaled vectors: without it, noise-free reals would drive
# the likelihood to infinity.
FLOOR = 1e-4
CENTRES = 256  # enough for a sphere in steps of a tenth of its diameter
ROUNDS = 20  # of k-means
# The width of a basis function, relative to the mean distance of a real from its centre. 1.5 widens
# the tube in which curves cut corners; much below 1 each centre would be an island.
WIDTH = 1.0
# The growth of ||sigma|| with the latent distance from the reals, relative to that of mu among
# them. At 1 an arc of a circle is no shorter than its chord; at 10 descent along the reals is slow.
SLOPE = 4.0
FEWEST = 100  # the least number of reals to learn from


class Geometry(nn.Module):
    """An encoder, and the decoder's mean and deviations, of vectors with ``dimension`` numbers.

    To cover a closed manifold without a cut, ``latent`` must be the dimension of a Euclidean space
    that it can be embedded in: 2 for a circle, 3 for a sphere. Superfluous latents stay unused.
    """

    centre: Tensor  # of the vectors, d
    scale: Tensor  # their root mean square deviation from it
    noise: Tensor  # s, d, in scaled units
    root: Tensor  # R of the head's weights W = Q R, Q with orthonormal columns
    bumps: Tensor  # centres of the basis functions, K x m
    width: Tensor  # of them
    level: Tensor  # median log density of the reals
    slope: Tensor  # growth of ||sigma|| with latent distance, in scaled units

    def __init__(self, dimension: int, latent: int, centres: int) -> None:
        super().__init__()
        self.sizes = {"dimension": dimension, "latent": latent, "centres": centres}
        self.encoder = nn.Sequential(
            nn.Linear(dimension, ENCODER),
            nn.SiLU(),
            nn.Linear(ENCODER, ENCODER),
            nn.SiLU(),
            nn.Linear(ENCODER, 2 * latent),
        )
        self.trunk = nn.Sequential(
            nn.Linear(latent, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU()
        )
        self.head = nn.Linear(HIDDEN, dimension)
        for name in ("centre", "noise"):
            self.register_buffer(name, torch.ones(dimension))
        for name in ("scale", "width", "level", "slope"):
            self.register_buffer(name, torch.ones(()))
        self.register_buffer("root", torch.ones(min(dimension, HIDDEN), HIDDEN))
        self.register_buffer("bumps", torch.ones(centres, latent))

    @classmethod
    def fit(
        cls, vectors: np.ndarray, latent: int | None = None, seed: int = 0, steps: int = STEPS
    ) -> Self:
        """Return the geometry of N x d vectors; the same bits for one seed and thread count.

        Raises:
            ManifptError: fewer than 100 vectors.

        """
        if len(vectors) < FEWEST:
            raise ManifptError(
                f"--projector riemannian: {len(vectors)} reals are too few to learn a geometry; "
                f"give {FEWEST} or more, or choose tangent"
            )
        reals = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        dimension = reals.shape[1]
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            self = cls(dimension, latent or min(LATENT, dimension), min(CENTRES, len(reals)))
            self.centre = reals.mean(0)
            scale = (reals - self.centre).square().mean().sqrt()
            self.scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
            scaled = (reals - self.centre) / self.scale
            _train(self, scaled, steps)
            self.double().requires_grad_(False)
            _fit_deviation(self, scaled.double())
        return self

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the latent means, ... x m, of ... x d vectors."""
        code: Tensor = self.encoder((vectors.double() - self.centre) / self.scale)
        return code[..., : self.sizes["latent"]]

    def mean(self, latents: Tensor) -> Tensor:
        """Return mu(z), ... x d, in the units of the vectors."""
        mean: Tensor = self.head(self.trunk(latents))
        return mean * self.scale + self.centre

    def deviation(self, latents: Tensor) -> Tensor:
        """Return sigma(z), ... x d, in the units of the vectors."""
        return self._growth(latents) * self.noise * self.scale

    def lift(self, latents: Tensor) -> Tensor:
        """Return coordinates, ... x r, with the distances of (mu, sigma) of the latents."""
        mean = functional.linear(self.trunk(latents), self.root)
        deviation = self._growth(latents) * self.noise.norm()
        return torch.cat([mean, deviation], -1) * self.scale

    def metric(self, latents: Tensor) -> Tensor:
        """Return g(z), N x m x m, of N x m latents."""
        jacobian: Tensor = torch.func.vmap(torch.func.jacfwd(self.lift))(latents)
        metric: Tensor = jacobian.mT @ jacobian
        return metric

    def log_density(self, latents: Tensor) -> Tensor:
        """Return log sum_k exp(-||z - c_k||^2 / 2 width^2) over the centres c_k."""
        # ||z||^2 is common to all; without it, the sum is one product and one pass.
        inverse = self.width.square().reciprocal()
        offset = self.bumps.square().sum(-1) * (-inverse / 2)
        bumps: Tensor = functional.linear(latents, self.bumps * inverse, offset).logsumexp(-1)
        return bumps - latents.square().sum(-1) * (inverse / 2)

    def _growth(self, latents: Tensor) -> Tensor:
        """Return sigma / s, ... x 1.

        Far from all centres, the log density falls by half the squared distance in widths.
        """
        fall = functional.softplus(self.level - self.log_density(latents))
        distance = 2 * self.width.square() * fall
        growth: Tensor = (1 + (self.slope / self.noise.norm()).square() * distance).sqrt()
        return growth[..., None]

    def state(self) -> NetworkState:
        """Return the state for ``from_state``, fit for ``torch.load(weights_only=True)``."""
        return {"sizes": dict(self.sizes), "weights": self.state_dict()}

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        """Return the geometry whose ``state`` this is."""
        with torch.random.fork_rng(devices=[]):
            self = cls(**state["sizes"]).double()
        self.load_state_dict(state["weights"])
        return self.requires_grad_(False)


def _train(geometry: Geometry, scaled: Tensor, steps: int) -> None:
    """Maximise the evidence lower bound, the noise at its optimum of each batch.

    With the optimal noise the likelihood is d / 2 log(squared error), and no weight of the two
    terms is left to choose: Rybkin, Daniilidis & Levine, "Simple and effective VAE training with
    calibrated decoders", ICML 2021. The divergence comes in over the first half: in few
    dimensions it would else switch all latents off before the decoder has learned anything.
    """
    optimiser = torch.optim.Adam(geometry.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        batch = scaled[torch.randint(len(scaled), (BATCH,))]
        mean, log_variance = geometry.encoder(batch).chunk(2, -1)
        latents = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        error = (geometry.head(geometry.trunk(latents)) - batch).square().mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2
        likelihood = -scaled.shape[1] / 2 * (error + FLOOR).log()
        optimiser.zero_grad()
        (min(2 * step / steps, 1) * divergence - likelihood).backward()
        optimiser.step()
        schedule.step()


def _fit_deviation(geometry: Geometry, scaled: Tensor) -> None:
    """Set ``root`` and the parameters of sigma, from the trained encoder and mean."""
    codes = geometry.encoder(scaled)[:, : geometry.sizes["latent"]]
    decoded = geometry.head(geometry.trunk(codes))
    geometry.noise = ((decoded - scaled).square().mean(0) + FLOOR).sqrt()
    geometry.root = torch.linalg.qr(geometry.head.weight).R
    geometry.bumps = _k_means(codes, geometry.sizes["centres"])
    beside = torch.cdist(codes, geometry.bumps).min(1).values.mean()
    # Identical reals, or as many centres as reals, leave no distance.
    geometry.width = (WIDTH * beside).clamp_min(1e-3)
    geometry.level = geometry.log_density(codes).median()
    extent = (codes - codes.mean(0)).norm().clamp_min(1e-3)
    geometry.slope = SLOPE * (decoded - decoded.mean(0)).norm() / extent


def _k_means(points: Tensor, count: int) -> Tensor:
    """Return ``count`` centres by Lloyd's algorithm from random points."""
    centres = points[torch.randperm(len(points))[:count]]
    for _ in range(ROUNDS):
        member = functional.one_hot(torch.cdist(points, centres).argmin(1), count).to(points)
        sizes = member.sum(0)[:, None]
        centres = torch.where(sizes > 0, member.T @ points / sizes.clamp_min(1), centres)
    return centres
