"""RGB: the pixels themselves, in [0, 1] (ManiFPT, section 4; no normalisation)."""

from dataclasses import dataclass

import numpy as np

from manifpt.outputs.formats import SpaceCard


@dataclass(frozen=True)
class Pixels:
    """Pixels as 3 x size x size float32 in [0, 1]; named ``rgb``, or ``image`` without manifold."""

    size: int
    name: str = "rgb"

    tolerance = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one vector."""
        return (3, self.size, self.size)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Map N x size x size x 3 uint8 images to N x 3 x size x size float32."""
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(
            255
        )

    def card(self) -> SpaceCard:
        """Return the name and settings of the space."""
        return {"name": self.name, "size": self.size}
