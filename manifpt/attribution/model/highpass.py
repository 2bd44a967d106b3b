"""Fixed high-pass residuals of maps: an image less a prediction of its content.

Linear predictors of a pixel from its neighbours, first and second order, as in steganalysis
(Fridrich & Kodovsky, "Rich models for steganalysis of digital images", IEEE TIFS 2012, figure 2).
Residuals are clipped: large values are edges of the content, small ones traces of its origin.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

# Residuals are clipped at this, for pixels in [0, 1].
CLIP = 6 / 255
KERNELS = (
    ((0, 0, 0), (0, -1, 1), (0, 0, 0)),
    ((0, 0, 0), (0, -1, 0), (0, 1, 0)),
    ((0, 0, 0), (1, -2, 1), (0, 0, 0)),
    ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
    ((0, 0, 1), (0, -2, 0), (1, 0, 0)),
    ((-1, 2, -1), (2, -4, 2), (0, 0, 0)),
    ((-1, 2, -1), (2, -4, 2), (-1, 2, -1)),
)


class HighPass(nn.Module):
    """B x C x H x W maps in [0, 1] -> B x 7 C x H x W residuals in [-1, 1]; nothing is learned.

    Three channels are taken as luminance, their mean, and two differences of colours, where
    interpolated colours show. Borders are reflected.
    """

    def __init__(self) -> None:
        super().__init__()
        kernels = torch.tensor(KERNELS, dtype=torch.float32)[:, None]
        # Each answers to a step of one pixel by at most that step.
        self.kernels: Tensor
        scale = kernels.abs().sum((1, 2, 3), keepdim=True) / 2
        self.register_buffer("kernels", kernels / scale / CLIP, persistent=False)
        mix = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, -1.0, 0.0], [0.0, -1.0, 1.0]])
        self.mix: Tensor
        self.register_buffer("mix", mix[:, :, None, None], persistent=False)

    @staticmethod
    def channels(given: int) -> int:
        """Return the number of residual channels of maps with ``channels`` channels."""
        return len(KERNELS) * given

    def forward(self, maps: Tensor) -> Tensor:
        """Return the residuals."""
        mixed = conv2d(maps, self.mix) if maps.shape[1] == 3 else maps
        count, channels, height, width = mixed.shape
        alone = pad(mixed.reshape(count * channels, 1, height, width), (1, 1, 1, 1), "reflect")
        found = conv2d(alone, self.kernels).clamp(-1, 1)
        return found.reshape(count, channels * len(KERNELS), height, width)
