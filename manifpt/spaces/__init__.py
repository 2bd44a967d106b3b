"""Embedding spaces: images, uint8 N x H x W x 3 -> vectors, float32 of the space's shape."""

from manifpt.spaces.frequency import Frequency
from manifpt.spaces.pixels import Pixels
from manifpt.spaces.residual import Residual
from manifpt.spaces.space import SPACES, Space, SpaceSettings, make_space, space_from_card

__all__ = [
    "SPACES",
    "Frequency",
    "Pixels",
    "Residual",
    "Space",
    "SpaceSettings",
    "make_space",
    "space_from_card",
]
