"""The JSON objects of a sweep: trials that have begun and ended, their results, and tests."""

from typing import Literal, NotRequired, TypedDict

from manifpt.tuning.search_space import Value

# A quantity that a sweep maximises.
Objective = Literal["accuracy", "images_per_second"]


class LegResult(TypedDict):
    """The result of a trial after a leg, for Ray Tune.

    ``accuracies`` are the best on validation images, one a seed, and ``accuracy`` is their mean.
    The scheduler counts ``progress``: epochs, or seeds. ``history`` has the rows of epochs that no
    earlier leg has reported. ``embedded`` is the number of images that were embedded for the trial,
    and ``made`` names the outputs that the cache made for it. ``attributor`` is a folder.
    """

    accuracy: float
    accuracies: list[float]
    loss: float
    progress: int
    epochs: int
    training_seconds: float
    embedded: int
    made: list[str]
    history: list[dict[str, float]]
    attributor: str
    key: str
    settings: dict[str, Value]
    ended: bool
    done: bool
    images_per_second: NotRequired[float]


class TrialOutcome(TypedDict, total=False):
    """The last result of a trial, as far as it came; ``error`` is there if it failed."""

    accuracy: float
    accuracies: list[float]
    loss: float
    epochs: int
    training_seconds: float
    images_per_second: float
    embedded: int
    made: list[str]
    attributor: str
    error: str
    settings: dict[str, Value]


class BegunTrial(TypedDict):
    """A trial that has begun, ``trial.json``: its choices, and MLflow's id of its run, or ""."""

    key: str
    chosen: dict[str, Value]
    run: str
    began: float


class EndedTrial(BegunTrial, TrialOutcome):
    """A trial that has ended, ``result.json``; times are in seconds since 1970."""

    ended: float
    status: str


class TestedTrial(TypedDict):
    """The accuracy of a trial on test images: with its interval, or the spread of its seeds."""

    accuracy: float
    low: float
    high: float
    chance: float
