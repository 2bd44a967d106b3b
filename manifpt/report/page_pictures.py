"""Arrays as pictures inside a page: PNG files in data URIs, up to a limit of bytes."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from PIL import Image

# All pictures of a page together, as text; a page may have 10 MB, and 2 MB are for charts.
MOST_BYTES = 6 * 2**20
# Pixels of a side; a larger picture is reduced.
SIDE = 160
# Colours below zero, at zero, above zero. The ends differ for red-green blind eyes, too.
DIVERGING = "RdBu_r"
SEQUENTIAL = "magma"


@dataclass
class Pictures:
    """Makes data URIs until ``left`` bytes are used up; then there are none."""

    left: int = MOST_BYTES
    refused: int = 0

    def uri(self, pixels: np.ndarray | None, side: int = SIDE) -> str | None:
        """Return H x W x 3 uint8 as a data URI; None if there are no pixels, or no room.

        It has at most ``side`` pixels a side.
        """
        if pixels is None:
            return None
        text = "data:image/png;base64," + base64.b64encode(png(pixels, side)).decode()
        if len(text) > self.left:
            self.refused += 1
            return None
        self.left -= len(text)
        return text


def png(pixels: np.ndarray, side: int = SIDE) -> bytes:
    """Return H x W x 3 uint8 as a PNG file of at most ``side`` pixels a side."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    grey = bool((pixels == pixels[..., :1]).all())
    (picture.convert("L") if grey else picture).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def signed(values: np.ndarray, limit: float) -> np.ndarray:
    """Return H x W numbers as H x W x 3 uint8: white is zero, ``limit`` and beyond is darkest."""
    return _coloured(0.5 + values / (2 * max(limit, 1e-12)), DIVERGING)


def unsigned(values: np.ndarray) -> np.ndarray:
    """Return H x W numbers as H x W x 3 uint8, from the least to the greatest."""
    spread = max(float(np.ptp(values)), 1e-12)
    return _coloured((values - values.min()) / spread, SEQUENTIAL)


def _coloured(shares: np.ndarray, name: str) -> np.ndarray:
    out: np.ndarray = (colormaps[name](np.clip(shares, 0, 1))[..., :3] * 255).round()
    return out.astype(np.uint8)


def flattened(artifact: np.ndarray) -> np.ndarray:
    """Return an artifact as H x W numbers to be drawn.

    C x h x w maps of up to four channels become their mean. Other maps and vectors become a mosaic,
    which is meaningful only as a whole.
    """
    if artifact.ndim == 3 and artifact.shape[0] <= 4 and min(artifact.shape[1:]) > 1:
        mean: np.ndarray = artifact.mean(0)
        return mean
    values = artifact.ravel()
    width = math.ceil(math.sqrt(len(values)))
    square = np.zeros(math.ceil(len(values) / width) * width, values.dtype)
    square[: len(values)] = values
    return square.reshape(-1, width)


def is_picture(shape: tuple[int, ...]) -> bool:
    """Tell whether artifacts of a shape have places in an image, so that they have a spectrum."""
    return len(shape) == 3 and shape[0] <= 4 and min(shape[1:]) > 4


def colour_bar() -> np.ndarray:
    """Return the diverging colours from left to right, 1 x 64 x 3 uint8."""
    return signed(np.linspace(-1, 1, 64)[None], 1.0)
