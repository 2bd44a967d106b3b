"""Image sources -> the images table: listing, reading and decoding of images.

The names below are found at first use: the process that decodes (``decoder``) imports this package,
too, and must start quickly and stay small.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "DecodeRule": "decode",
    "IMAGES": "read",
    "Input": "sources",
    "Reading": "sources",
    "Selection": "sources",
    "Unit": "sources",
    "plan": "units",
    "read_unit": "read",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
