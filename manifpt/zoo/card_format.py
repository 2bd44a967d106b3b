"""The card of a benchmark, as JSON in storage."""

from typing import Any, NotRequired, TypedDict

from manifpt.outputs.formats import FileEntry


class TarEntry(FileEntry):
    """A tar with the images of one source in one split, and their number."""

    source: str
    split: str
    images: int


class GeneratorCard(TypedDict, total=False):
    """A generator on a card: its recipe, its design choices, its training, and its quality.

    ``options``, ``sampling`` and ``data`` are those of its ``Recipe``. A generator whose images
    were brought has ``brought_from`` and ``came_as``, the formats and sizes of its files, instead.
    """

    name: str
    model: str
    seed: int
    steps: int
    batch_size: int
    options: dict[str, Any]
    sampling: dict[str, Any]
    data: dict[str, Any]
    choices: dict[str, Any]
    parameters: int
    training_seconds: float
    samples_per_second: float
    brought_from: str
    came_as: dict[str, int]
    quality: dict[str, float]


class CardAccuracies(TypedDict):
    """The accuracies of classifiers by their input, one dictionary a seed, and their settings."""

    settings: dict[str, Any]
    metrics: dict[str, list[dict[str, float]]]


class BenchmarkCard(TypedDict):
    """The card of a benchmark; ``gate`` are the least measures of a generator that is published."""

    name: str
    licence: str
    seed: int
    shape: list[int]
    encoder: str
    real_images: int
    generators_trained_on: int
    gate: dict[str, float]
    order: list[str]
    recipes: dict[str, GeneratorCard]
    refused: dict[str, GeneratorCard]
    files: list[TarEntry]
    bytes: int
    manifpt: str
    accuracies: NotRequired[CardAccuracies]
