"""The image size of a space, where the user names none."""

from collections import Counter
from collections.abc import Iterator, Sequence

from manifpt.errors import ManifptError
from manifpt.images.decode import DecodeError, DecodeRule
from manifpt.images.raw import raw_images
from manifpt.images.sandbox import decode_all
from manifpt.images.sources import Selection, Unit

PROBED = 64


def _sides(units: Sequence[Unit], selection: Selection) -> Iterator[int | None]:
    """Yield the shorter side of each wanted image, None where it can't be decoded."""
    rule = DecodeRule(size=1)
    kept = (
        (None, raw.data or b"")
        for unit in units
        for raw in raw_images(unit, rule)
        if selection.keeps(raw.source, raw.split)
    )
    for _, found in decode_all(kept, rule):
        yield None if isinstance(found, DecodeError) else min(found.width, found.height)


def natural_size(units: Sequence[Unit], selection: Selection) -> int:
    """Return the commonest shorter side of the first images, in pixels."""
    sides: Counter[int] = Counter()
    tried = 0
    for tried, side in enumerate(_sides(units, selection), start=1):
        if side is not None:
            sides[side] += 1
        if tried >= PROBED and sides:
            break
    if not sides:
        raise ManifptError(f"--input: none of {tried} images could be decoded; check the input")
    return sides.most_common(1)[0][0]
