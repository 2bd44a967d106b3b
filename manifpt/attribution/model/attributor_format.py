"""The manifest of an attributor, as JSON in storage."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, final

from manifpt.artifacts.artifacts_format import (
    ArtifactFacts,
    AugmentCard,
    SplitByCard,
    SplitCounts,
)
from manifpt.audit.audit_format import AuditVerdict
from manifpt.outputs.formats import Manifest
from manifpt.storage import Written


class HeadCard(TypedDict):
    """The fields of a ``Head``."""

    reads: int
    trunk: str
    stem: str
    highpass: bool
    coordinates: int


class DesignCard(TypedDict):
    """The fields of a ``Design``; earlier versions had one head an input, see ``Design.of``."""

    shapes: Sequence[Sequence[int]]
    classes: int
    heads: NotRequired[Sequence[HeadCard]]
    fusion: str


class BranchCard(ArtifactFacts):
    """The artifacts in one space: their name among several, and how they are made."""

    name: str


class CalibrationCard(TypedDict):
    """The validation images that fitted the weights of heads, and their loss before and after."""

    rows: int
    loss_before: float
    loss: float


class OpenSetCard(TypedDict):
    """The scores of the unknown, and the shares of validation images that the usual rule rejects.

    ``false_rejection`` is the share that it may reject.
    """

    scores: list[str]
    false_rejection: float
    false_rejection_by_class: dict[str, float]


class Validated(TypedDict):
    """The accuracy and the loss on validation images."""

    validation_accuracy: float
    validation_loss: float


class FitFacts(Validated):
    """The result of the calibration on validation images.

    ``validation_accuracy_by_degradation`` has those degraded by each kind, and the others as
    ``identity``. ``open_set`` is None if no scores of the unknown could be fitted.
    """

    validation_accuracy_by_degradation: dict[str, float]
    calibration: CalibrationCard
    open_set: OpenSetCard | None


class NearValidation(TypedDict):
    """The validation images near training: their number, and that of all that were compared.

    ``distance`` is the most bits in which perceptual hashes of near images differ.
    """

    validation: int
    compared: int
    distance: int


class TrainingHistory(TypedDict, total=False):
    """The course of a training by gradients: a row an epoch, and the number of the best one.

    A training without gradients has no row, and None for the best. ``precision`` is that of the
    numbers in the network.
    """

    history: list[dict[str, float]]
    best_epoch: int | None
    precision: str


class TrainingCard(TypedDict, total=False):
    """The fields of a ``TrainingRecipe``; those of fused attributors have only their seed."""

    backbone: str
    stem: str
    vectors: str
    highpass: str
    steps: int | None
    epochs: int | None
    batch_size: int
    learning_rate: float | None
    weight_decay: float
    label_smoothing: float
    patience: int
    seed: int
    fusion: str
    augment: str
    mixed_share: float


class TrainingFacts(TrainingCard, TrainingHistory, total=False):
    """The facts of a training, of a fusion, or of an extension.

    ``audit`` is the verdict on the training images, ``members`` are the folders of fused
    attributors, and ``head`` is the way by which an extension fitted the last layers.
    """

    audit: AuditVerdict
    members: list[str]
    head: str


class AttributorFacts(TrainingFacts, FitFacts):
    """The facts of a training and of the calibration after it."""


class Extension(TypedDict):
    """The classes that an extension added: the attributor before it, and the images.

    ``key`` is that attributor's; ``artifacts`` are folders.
    """

    model: str
    key: str
    inputs: Any
    artifacts: list[str]
    classes: list[str]
    split_by: NotRequired[SplitByCard]


@final
class AttributorManifest(Manifest, AttributorFacts):
    """The manifest of an attributor.

    ``network`` describes the design in words. ``weights`` are those of the ``heads``, by name.
    ``artifacts`` are the folders of the training's, ``inputs`` the images that these are of, and
    ``rows`` their numbers. ``augmentation`` is the card of their degraded copies; ``augment`` is
    the augmentation of maps during training. ``near_training`` is None without perceptual hashes.
    ``files`` are by name. ``manifest_sha256`` is the hash of the rest, see ``trained.sealed``.
    """

    design: DesignCard
    network: str
    classes: list[str]
    branches: list[BranchCard]
    weights: list[float]
    heads: list[str]
    artifacts: list[str]
    inputs: Any
    rows: SplitCounts
    near_training: NearValidation | None
    files: dict[str, Written]
    split_by: NotRequired[SplitByCard]
    augmentation: NotRequired[AugmentCard]
    extensions: NotRequired[list[Extension]]
    manifest_sha256: NotRequired[str]
