"""The JSON objects of evaluations: metrics, curves of robustness, groups, and their manifests.

NAME_low and NAME_high are the ends of the 95 % bootstrap interval of NAME.
"""

from typing import NotRequired, TypedDict

from manifpt.attribution.crawl.crawl_format import ModelFacts
from manifpt.images.sources import InputsCard
from manifpt.outputs.formats import Manifest, PartEntry, RowCounts


class Accuracies(TypedDict):
    """The accuracies of a confusion matrix, with their intervals."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    balanced_accuracy_low: float
    balanced_accuracy_high: float
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float


class ClassMetrics(TypedDict):
    """The metrics of one class; the recall is None if no image is of the class."""

    images: int
    recall: float | None
    precision: float


class ClosedSetMetrics(Accuracies):
    """The metrics of images of known classes.

    ``chance`` is the accuracy of the best constant answer. ``confusion`` has a row for each true
    class and a column for each predicted one, in the order of ``classes``.
    """

    chance: float
    images: int
    per_class: dict[str, ClassMetrics]
    classes: list[str]
    confusion: list[list[int]]


class NearTraining(TypedDict):
    """The images that look like one of training or validation, and the accuracies of both.

    ``distance`` is the greatest Hamming distance of such hashes, ``counted`` says whether the
    images count in all other metrics. Images ``without_hash`` count in any case.
    """

    images: int
    without_hash: int
    distance: int
    counted: bool
    accuracy_with: float
    accuracy_without: float | None


class CountedMetrics(ClosedSetMetrics):
    """The metrics of the images that count, and those that they would have with near ones."""

    near_training: NearTraining


class ReliabilityBins(TypedDict):
    """Bins of images by confidence: their number, mean confidence and accuracy."""

    images: list[int]
    confidence: list[float]
    accuracy: list[float]


class CalibrationMetrics(TypedDict):
    """The errors of probabilities; ``adaptive`` is of bins that have as many images each."""

    expected_calibration_error: float
    adaptive_calibration_error: float
    brier_score: float
    negative_log_likelihood: float
    mean_confidence: float
    accuracy: float
    reliability: ReliabilityBins


class CalibrationReport(TypedDict):
    """The calibration before and after the heads were weighed."""

    before: CalibrationMetrics
    after: CalibrationMetrics


class ScoreMetrics(TypedDict):
    """How well a score tells known images from unknown ones, see ``open_set_metrics``."""

    auroc: float
    fpr_at_95_tpr: float
    oscr: float


class DetectionMetrics(ScoreMetrics):
    """The metrics of a score, and the shares of known and unknown images called unknown."""

    false_rejection: float
    unknown_found: float


class OpenSetMetrics(DetectionMetrics):
    """The metrics of a score and of a decision, with their intervals."""

    auroc_low: float
    auroc_high: float
    fpr_at_95_tpr_low: float
    fpr_at_95_tpr_high: float
    oscr_low: float
    oscr_high: float
    false_rejection_low: float
    false_rejection_high: float
    unknown_found_low: float
    unknown_found_high: float
    known_images: int
    unknown_images: int


class UnknownSource(TypedDict):
    """The metrics of one source that is not known, by score."""

    images: int
    unknown_found: float
    scores: dict[str, ScoreMetrics]


class OpenSetReport(OpenSetMetrics):
    """The metrics of the combined score, of each score, and of each unknown source.

    ``rule`` has the thresholds of a ``Rule``; ``decisions`` are the shares of each decision, of
    known and of unknown images.
    """

    rule: dict[str, float]
    decisions: dict[str, dict[str, float]]
    scores: dict[str, ScoreMetrics]
    sources: dict[str, UnknownSource]


class ConfidenceReport(TypedDict):
    """The metrics of scores; those of the unknown need scores for it, or images of other sources.

    ``false_rejection_by_class`` is the share of each class's images that are called unknown.
    """

    calibration: CalibrationReport
    false_rejection_by_class: NotRequired[dict[str, float]]
    open_set: NotRequired[OpenSetReport]


class ComparedManifolds(TypedDict):
    """The hashes of the manifolds of training and of test, by space; None without a manifold."""

    training: list[str | None]
    test: list[str | None]


class EvaluationMetrics(CountedMetrics, ConfidenceReport):
    """The result of an evaluation; ``left_out`` counts images that do not count, by reason."""

    left_out: dict[str, int]
    other_manifold: NotRequired[ComparedManifolds]


class EvaluationManifest(Manifest, ModelFacts, EvaluationMetrics):
    """The manifest of an evaluation: its metrics, the key of its attributor, and its artifacts."""

    attributor: str
    artifacts: list[str]
    files: list[PartEntry]


class ScoreFacts(TypedDict, total=False):
    """The facts of a chunk of scored rows; a chunk without rows has none.

    ``seen``, ``other_source`` and ``without_hash`` are numbers of images; ``news`` and ``near`` are
    the confusion matrices of images that do not look like one of training, and of those that do.
    """

    seen: int
    other_source: int
    without_hash: int
    news: list[list[int]]
    near: list[list[int]]


class RobustnessLevel(Accuracies):
    """The metrics at one degradation; ``confidence`` is the mean probability of the answers."""

    degradation: str
    confidence: float
    confusion: list[list[int]]


class LevelCounts(TypedDict):
    """The confusion matrix of a part's images at one level, and the sum of their confidences."""

    confusion: list[list[int]]
    confidence: float


class RobustnessFacts(TypedDict, total=False):
    """The facts of a chunk of degraded images: counts left out by reason, and results by level."""

    seen: int
    other_source: int
    near_training: int
    levels: dict[str, LevelCounts]


class RobustnessLevels(TypedDict):
    """The metrics of the same images at each level of degradation, the images as they are first."""

    images: int
    chance: float
    classes: list[str]
    levels: list[RobustnessLevel]


class RobustnessCurves(RowCounts, RobustnessLevels):
    """The result of an evaluation of robustness; ``left_out`` counts images by reason."""

    left_out: dict[str, int]


class RobustnessManifest(Manifest, ModelFacts, RobustnessCurves):
    """The manifest of an evaluation of robustness: its curves, and the key of its attributor."""

    attributor: str
    inputs: InputsCard
    files: list[PartEntry]


class KnownGroups(TypedDict):
    """The accuracies of groups of a size with a number of foreign images, one a seed.

    ``plain_accuracies`` are without a share for foreign images. ``false_rejections`` are the shares
    of groups called unknown; None if groups were not tested for that.
    """

    size: int
    foreign: int
    accuracies: list[float]
    plain_accuracies: list[float]
    false_rejections: list[float] | None


class UnknownGroups(TypedDict):
    """Groups of a size of one unknown source, one number a seed.

    ``found`` are the shares that are called unknown, ``aurocs`` are those of p-values.
    """

    source: str
    size: int
    found: list[float]
    aurocs: list[float]


class GroupsReport(TypedDict):
    """The rows of groups of known and of unknown sources."""

    known: list[KnownGroups]
    unknown: list[UnknownGroups]


class EvaluationSummary(EvaluationMetrics):
    """The summary of the job ``evaluate``; ``groups`` are there if they were asked for."""

    output: str
    groups: NotRequired[GroupsReport]
