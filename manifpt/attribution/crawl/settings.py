"""The settings of attributions that a user may choose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from manifpt.artifacts.projection import Projector
from manifpt.attribution.crawl import grouping
from manifpt.attribution.crawl.pooling import EPS, Pooling
from manifpt.attribution.crawl.stage import AttributeStage, check_metadata_names
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import USUAL, Rule
from manifpt.errors import ManifptError
from manifpt.images import Selection
from manifpt.images.degrade import Degradation
from manifpt.images.perceptual import DISTANCE
from manifpt.images.read import IMAGES
from manifpt.images.sources import AS_FOUND, Reading

# The columns of images that are only in quarantine tables.
OF_FAILED_IMAGES = ("error", "message")


@dataclass(frozen=True)
class AttributionSettings:
    """The settings that decide the tables of ``attribute``.

    ``split`` keeps only the images of that split, and those that declare none; ``sources`` is the
    same for sources. ``reading`` says how inputs are read, and which of their columns travel.
    ``duplicates`` adds the table of the corpus's own copies (see ``duplicates``); the perceptual
    hashes of near images differ in at most ``near_distance`` bits. ``rule`` makes decisions of
    probabilities. ``views`` are those of an ensemble, the image itself first; their mean is the
    answer, and a column counts the views that agree; without views there is no ensemble.
    ``group_by`` is a column of the images, or ``folder``: the images of each of its values are
    judged together, too, and a share ``foreign`` of them may be of other sources.
    """

    split: str | None = None
    sources: tuple[str, ...] = ()
    reading: Reading = AS_FOUND
    duplicates: bool = True
    near_distance: int = DISTANCE
    rule: Rule = USUAL
    views: tuple[Degradation, ...] = ()
    group_by: str | None = None
    foreign: float = EPS

    def with_columns(self) -> "AttributionSettings":
        """Return the settings with the groups' column among ``columns``; raise for a bad one."""
        reading = self.reading
        if self.group_by in OF_FAILED_IMAGES:
            raise ManifptError(
                f"--group-by {self.group_by}: only images that failed have it; they are in "
                "quarantine/ with it"
            )
        if self.group_by not in {None, grouping.FOLDER, *IMAGES, *reading.columns}:
            reading = replace(reading, columns=(*reading.columns, str(self.group_by)))
        check_metadata_names(reading.columns)
        return replace(self, reading=reading)

    @property
    def selection(self) -> Selection:
        """The selection of images by split and source."""
        return Selection((self.split,) if self.split else None, self.sources or None)

    def key(self) -> list[Any]:
        """Return all settings that decide the tables, as JSON."""
        return [
            vars(self.selection),
            self.reading.facts(),
            [self.duplicates, self.near_distance],
            vars(self.rule),
            list(map(str, self.views)),
            *([[self.group_by, self.foreign]] if self.group_by else []),
        ]

    def stage(self, model: str, projectors: Sequence[Projector]) -> AttributeStage:
        """Return the stage that attributes images, in one process."""
        return AttributeStage(
            model,
            list(projectors),
            self.reading.columns,
            self.near_distance,
            self.rule,
            self.views,
            self.group_by,
        )

    def pooling(self, attributor: TrainedAttributor) -> Pooling:
        """Return the rule by which the images of a group are judged together."""
        return Pooling.of(attributor, self.foreign, self.rule)
