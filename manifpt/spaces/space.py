"""Spaces by name, and again from the card that a manifest carries."""

from typing import Any, Protocol

import numpy as np

from manifpt.errors import ManifptError
from manifpt.spaces.frequency import Frequency, rounding_noise
from manifpt.spaces.pixels import Pixels

SPACES = ("rgb", "freq", "image")


class Space(Protocol):
    """An embedding space."""

    @property
    def name(self) -> str:
        """The name, one of SPACES."""

    @property
    def size(self) -> int:
        """The side of the square images that it takes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one vector."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Map N x size x size x 3 uint8 images to N x shape float32, each image by itself."""

    def card(self) -> dict[str, Any]:
        """Return all that decides the vectors, as JSON values."""


def make_space(name: str, size: int, *, eps: float | None = None, log: bool = True) -> Space:
    """Return a space by name; ``eps`` and ``log`` are for ``freq``."""
    if name in {"rgb", "image"}:
        return Pixels(size, name)
    if name == "freq":
        return Frequency(size, rounding_noise(size) if eps is None else eps, log)
    raise ManifptError(f"--space {name}: unknown; choose one of {', '.join(SPACES)}")


def space_from_card(card: dict[str, Any]) -> Space:
    """Return the space that wrote ``card``."""
    settings = {key: card[key] for key in ("eps", "log") if key in card}
    return make_space(card["name"], card["size"], **settings)
