"""The recipe of one generator; benchmarks vary its choices."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from manifpt.errors import ManifptError

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """All choices that make one generator again.

    ``options`` are those of the model's training, ``sampling`` those that only its samples need:
    recipes that differ in ``name`` and ``sampling`` alone share their weights. ``data`` names the
    part of the reals that it is trained on: see ``manifpt.zoo.reals.Reals.subset``.
    """

    name: str
    model: str
    seed: int
    steps: int
    batch_size: int = 128
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    mirror: bool = True

    def asdict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return asdict(self)


def option(name: str, value: str, choices: Mapping[str, T]) -> T:
    """Return the choice of a recipe's option, or raise with the known names."""
    if value not in choices:
        raise ManifptError(f"recipe: no {name} {value!r}; choose one of {', '.join(choices)}")
    return choices[value]
