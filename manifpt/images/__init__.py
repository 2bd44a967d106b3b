"""Image sources -> the images table: where images are, how they are read, and how decoded."""

from manifpt.images.decode import DecodeRule
from manifpt.images.read import IMAGES, read_unit
from manifpt.images.sources import Input, Reading, Selection, Unit
from manifpt.images.units import plan

__all__ = [
    "IMAGES",
    "DecodeRule",
    "Input",
    "Reading",
    "Selection",
    "Unit",
    "plan",
    "read_unit",
]
