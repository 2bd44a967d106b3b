"""FREQ: the centred log-magnitude spectrum of each channel (ManiFPT, section 4)."""

import math
from dataclasses import dataclass

import numpy as np

from manifpt.outputs.formats import SpaceCard


def rounding_noise(size: int) -> float:
    """Return the spectrum magnitude that rounding pixels to 8 bits causes by itself.

    Rounding has variance (1/255)^2 / 12 a pixel, and a bin of the 2-D transform sums
    size x size pixels.
    """
    return size / (255 * math.sqrt(12))


class FrequencyCard(SpaceCard):
    """The settings of the space ``freq``."""

    eps: float
    log: bool


@dataclass(frozen=True)
class Frequency:
    """log(|FFT| + eps) of each channel, zero frequency in the centre, 3 x size x size float32.

    The paper does not say whether it takes the logarithm; ``log=False`` keeps magnitudes.
    ``eps`` is by default the magnitude of 8-bit rounding noise: a smaller one would make empty
    bins, which hold nothing but rounding, the largest deviations of all.
    """

    size: int
    eps: float
    log: bool = True
    name: str = "freq"

    tolerance = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one vector."""
        return (3, self.size, self.size)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Map N x size x size x 3 uint8 images to N x 3 x size x size float32."""
        # float64 throughout: the last rounding hides differences by the order of sums.
        pixels = images.transpose(0, 3, 1, 2).astype(np.float64) / 255
        magnitude = np.abs(np.fft.fftshift(np.fft.fft2(pixels), axes=(-2, -1)))
        values = np.log(magnitude + self.eps) if self.log else magnitude
        return np.ascontiguousarray(values, dtype=np.float32)

    def card(self) -> FrequencyCard:
        """Return the name and settings of the space."""
        return {"name": self.name, "size": self.size, "eps": self.eps, "log": self.log}
