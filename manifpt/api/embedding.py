"""Images -> vectors in a space, without a job."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from manifpt.api.given import Given, Images, decoded, is_dataset, mapped, of_batch
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule
from manifpt.images.probe import RULE, natural_size_of
from manifpt.images.read import pixels_of
from manifpt.spaces import SPACES, Space, SpaceSettings, make_space
from manifpt.spaces.space import largest_size

if TYPE_CHECKING:
    import ray.data


def space(name: str, size: int, **options: Any) -> Space:
    """Return an embedding space for images of ``size`` pixels.

    ``options`` are those of the jobs by name, such as ``eps`` and ``log`` of ``freq``, or
    ``sl_network``, ``sl_weights`` and ``layer`` of a learned space.
    """
    return make_space(name, size, space_options(options))


def space_options(options: Mapping[str, Any]) -> SpaceSettings:
    """Return options of spaces by name; raise for a name that is no option."""
    names = [one.name for one in fields(SpaceSettings)]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ManifptError(f"{unknown[0]}: is no option of a space; choose of {', '.join(names)}")
    return SpaceSettings(**options)


@overload
def embed(images: Images, space: str | Space = "rgb", **options: Any) -> np.ndarray: ...


@overload
def embed(
    images: "ray.data.Dataset", space: str | Space = "rgb", **options: Any
) -> "ray.data.Dataset": ...


def embed(images: Any, space: str | Space = "rgb", **options: Any) -> Any:
    """Return the vectors of images, N x the space's shape, float32, in the order of the images.

    Args:
        images: see ``Images``; or a dataset of Ray Data with a column ``image``, for which a
            dataset with a column ``vector`` in its place is returned.
        space: a ``Space``, or its name; then images get the commonest size of the first ones, but
            not more than the space takes.
        options: options of the space by name, see ``space``.

    """
    if is_dataset(images):
        if isinstance(space, str):
            raise ManifptError("space: a dataset has no size of its own; give manifpt.space(...)")
        return mapped(images, _Embed, space)
    given = Given.of(images)
    if isinstance(space, str):
        space = _space_for(given, space, options)
    elif options:
        raise ManifptError(f"{next(iter(options))}: the space given has its own; leave it out")
    return _vectors(given, space)


def _space_for(given: Given, name: str, options: Mapping[str, Any]) -> Space:
    """Return the space of that name for the size of some images."""
    if name not in SPACES:
        raise ManifptError(f"space {name!r}: unknown; choose one of {', '.join(SPACES)}")
    chosen = space_options(options)
    size = natural_size_of(given.raws(RULE))
    return make_space(name, min(size, largest_size(name, chosen)), chosen)


def _vectors(given: Given, space: Space) -> np.ndarray:
    rule = DecodeRule(space.size)
    return np.concatenate([space.embed(pixels_of(table)) for table in decoded(given, rule)])


class _Embed:
    """Batches of a dataset -> the same with vectors, in an actor."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given, rest = of_batch(batch)
        return {**rest, "vector": _vectors(given, self.space)}
