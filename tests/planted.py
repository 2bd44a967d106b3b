"""Large images with a trace in one tile, and a network that knows that trace alone."""

import handmade
import numpy as np

from manifpt.attribution.unknown.known import Outputs

# The side of a tile, and the number of tiles of an image of 64 x 48 pixels.
SIZE, ALL = 16, 12
STRIPES = handmade.CLASSES.index("stripes")


def striped(network, artifacts, device):
    """A network that knows one thing: columns of a striped tile differ from their neighbours."""
    pixels = artifacts[0]
    found = np.abs(np.diff(pixels, 2, axis=-1)).mean((1, 2, 3))
    logits = np.zeros((len(pixels), 1, len(handmade.CLASSES)), np.float32)
    logits[:, 0, STRIPES] = 20 * found - 0.1
    return Outputs(logits, [found[:, None].astype(np.float32)])


def planted(x: int, y: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A smooth image with the trace of stripes in one tile, which is also red."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[..., 1] += np.linspace(0, 60, width).astype(np.uint8)
    tile = image[y : y + SIZE, x : x + SIZE].astype(int)
    tile[:, ::2] += 60
    tile[..., 0] += 90
    image[y : y + SIZE, x : x + SIZE] = np.clip(tile, 0, 255)
    return image
