"""The image size of a space, and whether images have tiles, if the user gives neither."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from manifpt.errors import ManifptError
from manifpt.images.decode import DecodeError, DecodeRule
from manifpt.images.raw import Raw, raw_images
from manifpt.images.sandbox import decode_all
from manifpt.images.sources import Selection, Unit
from manifpt.images.tiles import USUAL

PROBED = 64


RULE = DecodeRule(size=1)


def _wanted(units: Sequence[Unit], selection: Selection) -> Iterator[Raw]:
    raws = (raw for unit in units for raw in raw_images(unit, RULE))
    return (raw for raw in raws if selection.keeps(raw.source, raw.split))


def _sides(raws: Iterable[Raw]) -> Iterator[int | None]:
    """Yield the shorter side of each image, None where it can't be decoded."""
    for _, found in decode_all(((None, raw.data or b"") for raw in raws), RULE):
        yield None if isinstance(found, DecodeError) else min(found.width, found.height)


def _probed(raws: Iterable[Raw]) -> Counter[int]:
    """Count the shorter sides of the first images; raise if none can be decoded."""
    sides: Counter[int] = Counter()
    tried = 0
    for tried, side in enumerate(_sides(raws), start=1):
        if side is not None:
            sides[side] += 1
        if tried >= PROBED and sides:
            break
    if not sides:
        raise ManifptError(f"--input: none of {tried} images could be decoded; check the input")
    return sides


def natural_size(units: Sequence[Unit], selection: Selection) -> int:
    """Return the commonest shorter side of the first images, in pixels."""
    return natural_size_of(_wanted(units, selection))


def natural_size_of(raws: Iterable[Raw]) -> int:
    """Return the commonest shorter side of the first of undecoded images, in pixels."""
    return _probed(raws).most_common(1)[0][0]


def usual_tiles(units: Sequence[Unit], selection: Selection, size: int) -> int:
    """Return the largest number of tiles of an image if the user gives none.

    It is USUAL if one of the first images is larger than ``size``, else 0.
    """
    return USUAL if max(_probed(_wanted(units, selection))) > size else 0
