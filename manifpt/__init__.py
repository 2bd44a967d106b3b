"""ManiFPT on Ray: manifolds of real images, artifacts, and attribution of images to generators.

The names below are found at first use: ``import manifpt`` imports neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

from manifpt.errors import ManifptError

if TYPE_CHECKING:
    from manifpt.api.attributor import Attributor
    from manifpt.api.embedding import embed, space
    from manifpt.api.evaluation import evaluate
    from manifpt.api.given import Images
    from manifpt.api.manifold import Manifold
    from manifpt.spaces import Space

__version__ = "0.1.0"

__all__ = [
    "Attributor",
    "Images",
    "Manifold",
    "ManifptError",
    "Space",
    "embed",
    "evaluate",
    "space",
]

_MODULES = {
    "Attributor": "api.attributor",
    "Images": "api.given",
    "Manifold": "api.manifold",
    "Space": "spaces",
    "embed": "api.embedding",
    "evaluate": "api.evaluation",
    "space": "api.embedding",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
