"""Degradations of images on the web, as pure functions: JPEG, resize, blur, crop, noise.

They act on the image that the classifier gets: decoded, and of the rule's size, for example 28 or
64 pixels. This is how robustness is measured in the field (Wang et al., CNN-generated images are
surprisingly easy to spot, CVPR 2020, section 4.2; Frank et al., ICML 2020), and it lets an image be
decoded once for all degradations. It is also the harder test: a degradation of a photograph of
1,000 pixels nearly disappears when the rule reduces it to 64 pixels, while a blur of sigma 5
removes most detail of 28 pixels. Curves are therefore those of images that were published in the
rule's size; for larger originals they are pessimistic. If spaces have images of several sizes, each
is degraded by the same kind, strength and place.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from manifpt.images.decode import FILTERS


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """Return H x W x 3 uint8 after JPEG of libjpeg's quality, 1 to 100.

    Chroma has half the resolution, as most encoders do it.
    """
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=round(quality))
    return np.asarray(Image.open(sink))


def rescale(image: np.ndarray, scale: float, filter_name: str = "bicubic") -> np.ndarray:
    """Resize H x W x 3 uint8 by a factor, at least to one pixel, and back to its size."""
    picture = Image.fromarray(image)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((width, height), FILTERS[filter_name])
    return np.asarray(small.resize(picture.size, FILTERS[filter_name]))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur H x W x 3 uint8 by a Gaussian of standard deviation ``sigma`` pixels.

    Pillow's is a series of box filters (Gwosdek et al., SSVM 2011); edges are continued.
    """
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def crop(
    image: np.ndarray, share: float, place: tuple[float, float], filter_name: str = "bicubic"
) -> np.ndarray:
    """Cut out a ``share`` of the side of H x W x 3 uint8, enlarged to the image's size.

    ``place`` says where, from left and top, each in [0, 1]; the box need not lie on pixels.
    """
    picture = Image.fromarray(image)
    left, top = ((1 - share) * side * at for side, at in zip(picture.size, place, strict=True))
    box = (left, top, left + share * picture.width, top + share * picture.height)
    return np.asarray(picture.resize(picture.size, FILTERS[filter_name], box))


def noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to uint8, independent in all values; ``std`` of a range of [0, 1]."""
    values = image + 255 * std * rng.standard_normal(image.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


class Kind(NamedTuple):
    """The range of a degradation's strength, the neutral one, and the range drawn by default."""

    least: float
    most: float
    unchanged: float
    drawn: tuple[float, float]


# Ranges drawn for training: Wang et al.'s blur, and else the milder part of the usual ranges. No
# quality of JPEG is without loss.
KINDS = {
    "jpeg": Kind(1, 100, 101, (50, 95)),
    "blur": Kind(0, 100, 0, (0.1, 3)),
    "resize": Kind(0.01, 8, 1, (0.5, 2)),
    "crop": Kind(0.01, 1, 1, (0.5, 1)),
    "noise": Kind(0, 1, 0, (0.01, 0.1)),
}
IDENTITY = "identity"

_NUMBER = r"\d+(?:\.\d+)?"
_NOTATION = re.compile(rf"([a-z]+)(?::({_NUMBER})(?:-({_NUMBER}))?)?")


def _read(text: str) -> tuple[str, list[float]]:
    """Return the kind of a notation and its strengths: none, one or two."""
    match = _NOTATION.fullmatch(text)
    kind = match.group(1) if match else ""
    if match is None or kind not in KINDS:
        raise ValueError(f"{text!r} is no degradation; give one of {' '.join(KINDS)}, as jpeg:75")
    strengths = [float(value) for value in match.groups()[1:] if value is not None]
    least, most = KINDS[kind][:2]
    if any(not least <= value <= most for value in strengths) or strengths != sorted(strengths):
        raise ValueError(f"{text!r}: {kind} goes from {least:g} to {most:g}")
    return kind, strengths


@dataclass(frozen=True)
class Degradation:
    """A kind of degradation and its strength; ``identity`` has none and does nothing."""

    kind: str
    strength: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """Read ``KIND:STRENGTH``, such as ``jpeg:75`` or ``crop:0.9``, or ``identity``."""
        if text == IDENTITY:
            return cls(IDENTITY)
        kind, strengths = _read(text)
        if len(strengths) != 1:
            raise ValueError(f"{text!r}: give one strength, as {kind}:{KINDS[kind].drawn[1]:g}")
        return cls(kind, strengths[0])

    def __str__(self) -> str:
        return self.kind if self.strength is None else f"{self.kind}:{self.strength:g}"

    def __call__(self, image: np.ndarray, key: str, filter_name: str = "bicubic") -> np.ndarray:
        """Return H x W x 3 uint8 degraded; the place of a crop, and noise, come from ``key`` alone.

        The same key places crops alike in images of all sizes.
        """
        if self.strength is None:
            return image
        if self.kind == "jpeg":
            return jpeg(image, self.strength)
        if self.kind == "blur":
            return blur(image, self.strength)
        if self.kind == "resize":
            return rescale(image, self.strength, filter_name)
        rng = generator(f"{self} {key}")
        if self.kind == "crop":
            return crop(image, self.strength, (rng.random(), rng.random()), filter_name)
        return noise(image, self.strength, rng)


@dataclass(frozen=True)
class StrengthRange:
    """A kind of degradation with the strengths to draw from, uniformly; factors by their log."""

    kind: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> "StrengthRange":
        """Read ``KIND``, ``KIND:STRENGTH`` or ``KIND:LOW-HIGH``; see KINDS for the default."""
        kind, strengths = _read(text)
        strengths = strengths or list(KINDS[kind].drawn)
        return cls(kind, strengths[0], strengths[-1])

    def __str__(self) -> str:
        return f"{self.kind}:{self.low:g}-{self.high:g}"

    def draw(self, rng: np.random.Generator) -> Degradation:
        """Draw a strength, rounded so that its notation says all of it."""
        if self.kind == "resize":
            value = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        else:
            value = float(rng.uniform(self.low, self.high))
        return Degradation(self.kind, round(value, 0 if self.kind == "jpeg" else 3))


def generator(text: str) -> np.random.Generator:
    """Return a generator whose numbers depend on a text alone."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))
