"""A projection that adds no noise: x* = D(x), by a denoiser that was trained on reals alone.

The nearest real has other content than x, and adds the noise of its own pixels. The expected real
given x and Gaussian noise of deviation s, D(x) = E[real | real + noise = x], adds none, and x -
D(x) = -s^2 times the gradient of the log density of noisy reals at x (Tweedie's formula; Robbins
1956; Efron, "Tweedie's formula and selection bias", JASA 2011): the direction off the manifold, at
the scale s. Small scales show the finest texture, large ones show shapes.

The network predicts x - D(x) from x and s by convolutions at full resolution (Zhang et al.,
"Beyond a Gaussian denoiser", IEEE TIP 2017; with s as a channel, as in their FFDNet, IEEE TIP
2018), so that it takes maps of any size.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from manifpt.errors import ManifptError
from manifpt.manifold.manifold_format import NetworkState
from manifpt.nets.device import CPU_BATCH, cpu_precision, in_batches

# Deviations of the noise, of pixels in [0, 1].
LEVELS = (4 / 255, 16 / 255, 40 / 255)
WIDTH, DEPTH = 32, 6
STEPS, BATCH, RATE = 3000, 64, 4e-3
CROP = 32  # side to which larger reals are cropped in training
FEWEST = 100  # the least number of reals to learn from
GREY = 1e-6  # the largest difference of the channels of grey reals


class Denoiser(nn.Module):
    """Predicts the noise of maps, B x C x H x W in [0, 1], at a level of ``levels``.

    C is 1 where all reals are grey, else 3. ``sizes`` are those of its layers.
    """

    def __init__(self, channels: int, levels: Sequence[float], width: int, depth: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.channels = channels
        self.sizes = {"channels": channels, "width": width, "depth": depth}
        layers: list[nn.Module] = []
        for given in (channels + 1, *(width,) * (depth - 2)):
            layers += [nn.Conv2d(given, width, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    @classmethod
    def fit(
        cls, images: np.ndarray, seed: int = 0, steps: int = STEPS, device: str = "cpu"
    ) -> Self:
        """Return the denoiser of N x 3 x H x W real images in [0, 1].

        Raises:
            ManifptError: fewer than 100 images, or smaller than 8 x 8.

        """
        if len(images) < FEWEST or min(images.shape[2:]) < 8:
            raise ManifptError(
                f"--denoiser: {len(images)} reals of {images.shape[2]} pixels are too few or too "
                f"small to learn from; give {FEWEST} or more of 8 pixels or more"
            )
        grey = bool(np.ptp(images, axis=1).max() <= GREY)
        reals = torch.from_numpy(np.ascontiguousarray(images[:, :1] if grey else images))
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            self = cls(reals.shape[1], LEVELS, WIDTH, DEPTH).to(device)
            _train(self, reals, steps, device)
        return self.cpu().eval().requires_grad_(False)

    def forward(self, maps: Tensor, level: Tensor) -> Tensor:
        """Return x - D(x), as ``maps``; ``level`` is B."""
        plane = level[:, None, None, None].expand(-1, 1, *maps.shape[2:])
        # In units of the level, noise has the deviation 1 at any level.
        found: Tensor = self.layers(torch.cat([maps, plane], 1)) * level[:, None, None, None]
        return found

    def shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the shape of the artifacts of images of a shape, 3 x H x W."""
        return (len(self.levels) * self.channels, shape[1], shape[2])

    def artifacts(self, images: np.ndarray, batch_size: int = CPU_BATCH) -> np.ndarray:
        """Return x - D(x) at each level, N x (levels C) x H x W float32, of N x 3 x H x W images.

        A denoiser of grey reals takes the mean of the channels.
        """

        @torch.inference_mode()
        def asked(rows: slice) -> np.ndarray:
            maps = torch.from_numpy(np.ascontiguousarray(images[rows])).to(self.device)
            maps = maps.to(self.layers[0].weight.dtype)  # type: ignore[arg-type]
            maps = maps.mean(1, keepdim=True) if self.channels == 1 else maps
            maps = maps.contiguous(memory_format=torch.channels_last)
            each = [self(maps, maps.new_full((len(maps),), level)) for level in self.levels]
            out: np.ndarray = torch.cat(each, 1).contiguous().cpu().numpy()
            return out

        threads = None if self.device.type == "cpu" else 1
        return np.concatenate(in_batches(asked, len(images), batch_size, threads))

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.parameters()).device

    def state(self) -> NetworkState:
        """Return the state for ``from_state``, fit for ``torch.load(weights_only=True)``."""
        sizes = {**self.sizes, "levels": list(self.levels)}
        return {"sizes": sizes, "weights": self.state_dict()}

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        """Return the denoiser whose ``state`` this is."""
        self = cls(**state["sizes"])
        self.load_state_dict(state["weights"])
        # As in training: the order of the weights decides which kernels round.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.eval().requires_grad_(False)


def _train(denoiser: Denoiser, reals: Tensor, steps: int, device: str) -> None:
    """Minimise the squared error of the noise, in units of its level, on random crops.

    Each image of a batch has one of the levels. The rate rises to its peak and falls to zero.
    """
    denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = cpu_precision() if device == "cpu" else None
    optimiser = torch.optim.AdamW(denoiser.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    levels = torch.tensor(denoiser.levels)
    height, width = (min(CROP, side) for side in reals.shape[2:])
    for _ in range(steps):
        chosen = reals[torch.randint(len(reals), (BATCH,))]
        top, left = (
            int(torch.randint(side - size + 1, ()))
            for side, size in zip(reals.shape[2:], (height, width), strict=True)
        )
        maps = chosen[:, :, top : top + height, left : left + width].clone()
        mirrored = torch.rand(BATCH) < 0.5
        maps[mirrored] = maps[mirrored].flip(-1)
        level = levels[torch.randint(len(levels), (BATCH,))]
        noise = torch.randn_like(maps)
        noisy = (maps + noise * level[:, None, None, None]).to(device)
        with torch.autocast(device, precision, enabled=precision is not None):
            found = denoiser(noisy.contiguous(memory_format=torch.channels_last), level.to(device))
        error = mse_loss(found.float() / level.to(device)[:, None, None, None], noise.to(device))
        optimiser.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimiser.step()
        schedule.step()
