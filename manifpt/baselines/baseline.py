"""Published methods by name, each as a space: the protocol is ``Space`` in manifpt/spaces/space.py.

A method is a pure function, N x H x W x 3 uint8 -> N x shape float32, each image by itself. The
classifier of the vectors or maps is chosen as for any space, and is not always the paper's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from manifpt.baselines import (
    durall20,
    dzanic20,
    lowbits,
    marra19,
    mccloskey18,
    nataraj19,
    npr,
    selfdescription,
)
from manifpt.errors import ManifptError
from manifpt.outputs.formats import SpaceCard

# Pixels of the images of one step, about: its arrays stay in a core's cache.
STEP_PIXELS = 2**16


class Method(NamedTuple):
    """A published method: its function, the smallest side in pixels, settings for the card."""

    function: Callable[[np.ndarray], np.ndarray]
    smallest: int
    settings: Mapping[str, Any]


METHODS = {
    "mccloskey18": Method(mccloskey18.colour_shares, 4, mccloskey18.SETTINGS),
    "nataraj19": Method(nataraj19.cooccurrences, 4, nataraj19.SETTINGS),
    "durall20": Method(durall20.azimuthal_spectrum, 8, durall20.SETTINGS),
    "dzanic20": Method(dzanic20.spectral_decay, 16, dzanic20.SETTINGS),
    "marra19": Method(marra19.noise_residual, 4, marra19.SETTINGS),
    "lowbits": Method(lowbits.low_bits, 4, lowbits.SETTINGS),
    "npr": Method(npr.neighbour_differences, 4, npr.SETTINGS),
    "selfdescription": Method(selfdescription.self_description, 16, selfdescription.SETTINGS),
}
BASELINES = tuple(METHODS)


@lru_cache
def _shape(name: str, size: int) -> tuple[int, ...]:
    black = np.zeros((1, size, size, 3), np.uint8)
    found: tuple[int, ...] = METHODS[name].function(black).shape[1:]
    return found


@dataclass(frozen=True)
class Baseline:
    """The space of a published method, for images of size x size pixels."""

    size: int
    name: str

    tolerance = 0.0

    def __post_init__(self) -> None:
        least = METHODS[self.name].smallest
        if self.size < least:
            raise ManifptError(
                f"--image-size {self.size}: {self.name} needs {least} pixels at least; "
                "name a larger size"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one vector."""
        return _shape(self.name, self.size)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Map N x size x size x 3 uint8 images to N x shape float32, each image by itself."""
        step = max(1, STEP_PIXELS // self.size**2)
        out = np.empty((len(images), *self.shape), np.float32)
        for start in range(0, len(images), step):
            out[start : start + step] = METHODS[self.name].function(images[start : start + step])
        return out

    def card(self) -> SpaceCard:
        """Return the name and settings of the space."""
        own: Any = METHODS[self.name].settings
        return {"name": self.name, "size": self.size, **own}
