"""A finished evaluation as a page: metrics, examples, fingerprints, curves and provenance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from manifpt import outputs, storage
from manifpt.attribution.unknown.decision import USUAL
from manifpt.errors import ManifptError, public
from manifpt.evaluation.evaluate import METRICS
from manifpt.evaluation.evaluation_format import (
    EvaluationManifest,
    EvaluationMetrics,
    GroupsReport,
    OpenSetReport,
    RobustnessCurves,
    RobustnessManifest,
)
from manifpt.evaluation.groups import RESULT as GROUPS_FILE
from manifpt.evaluation.robustness import RESULT as ROBUSTNESS_FILE
from manifpt.evaluation.score_report import SCORES, UNKNOWN
from manifpt.images.degrade import KINDS, Degradation
from manifpt.report import charts
from manifpt.report.examples import Examples, SampledScore, fingerprint_rows
from manifpt.report.image_map import map_of
from manifpt.report.page import Figure, Page, interval_text, number, rendered
from manifpt.report.page_pictures import Pictures
from manifpt.report.page_provenance import (
    FoundAttributor,
    Part,
    attributor_of,
    audit_of,
    designs_of,
    model_parts,
    output_part,
)
from manifpt.report.rows import Strata, evenly_spread, files_of_folder, tables_of_files
from manifpt.report.tile_overlay import legend_of

TEMPLATE = "evaluation.html"
OUTCOMES = ("right", "wrong", "unsure", "unknown")
# Points of the map, and rows that curves are computed from.
MOST_POINTS, MOST_CURVE = 1500, 50_000
ROWS = (
    "id", "source", "sha256", "prediction", "probability", "decision", "unknown_score",
    "unknown_p", "distance", "neighbor_id", "coordinates",
)  # fmt: skip


@dataclass(frozen=True)
class PageOptions:
    """The options of a page: the number of examples of each kind, and further outputs to show."""

    samples: int = 2
    robustness: str | None = None
    audit: str | None = None
    manifolds: tuple[str, ...] = ()
    model: str | None = None
    rows: int = 200


def outcome(row: SampledScore) -> str:
    """Return the outcome of a test image: one of OUTCOMES."""
    if row["decision"] in ("unknown", "unsure"):
        return row["decision"]
    return "right" if row["prediction"] == row["source"] else "wrong"


class _MapScore(SampledScore):
    """A point of the map."""

    outcome: str
    hover: str


class ClassRow(NamedTuple):
    """A row of the table of classes.

    ``rejected`` is the share of images that are called unknown, if the attributor can call them so.
    """

    name: str
    images: int
    recall: float | None
    precision: float
    rejected: float | None
    taken_for: str


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix; ``share`` is that of its row."""

    count: int
    share: float


class ConfusionRow(NamedTuple):
    """A row of the confusion matrix: a source, and the counts of the answers on its images."""

    name: str
    cells: list[Cell]


class _Evaluation:
    """An evaluation's files, read as often as a page needs."""

    def __init__(self, uri: str, options: PageOptions) -> None:
        self.uri, self.options = storage.absolute(uri), options
        self.manifest: EvaluationManifest = outputs.require(uri, "evaluation", "RUN")
        self.metrics: EvaluationMetrics = storage.read_json(storage.join(self.uri, METRICS))

    @cached_property
    def model(self) -> FoundAttributor | None:
        """The attributor; None if it is gone."""
        return attributor_of(self.uri, self.manifest, self.options.model)

    @property
    def model_uri(self) -> str:
        """The present or former place of the attributor."""
        return self.model.uri if self.model else str(self.manifest["model"])

    def scores(self, folder: str) -> Iterator[pa.Table]:
        """Yield the scores of images of known sources, or of others."""
        yield from tables_of_files(
            self.uri, evenly_spread(files_of_folder(self.manifest, folder)), ROWS
        )

    @cached_property
    def sampled(self) -> list[SampledScore]:
        """Examples: some rows of each source and outcome."""
        strata = Strata(self.options.samples)
        for folder in (SCORES, UNKNOWN):
            for table in self.scores(folder):
                rows = table.select(["source", "prediction", "decision"]).to_pylist()
                names = [f"{row['source']}\0{outcome(row)}" for row in rows]
                strata.add(table, names)
        return strata.all

    @cached_property
    def points(self) -> list[_MapScore]:
        """Rows of the map: at most the same number of each source, known or not."""
        others = self.open_set["sources"] if self.open_set else {}
        sources = len(self.metrics["classes"]) + len(others)
        strata = Strata(max(10, MOST_POINTS // sources))
        for folder in (SCORES, UNKNOWN):
            for table in self.scores(folder):
                if "coordinates" in table.column_names:
                    strata.add(table, table["source"].to_pylist())
        return strata.all

    @property
    def open_set(self) -> OpenSetReport | None:
        """Metrics of images of unknown sources; None if there are none."""
        return self.metrics.get("open_set")

    @property
    def groups(self) -> GroupsReport | None:
        """Metrics of groups; None if there are none."""
        uri = storage.join(self.uri, GROUPS_FILE)
        return storage.read_json(uri) if storage.exists(uri) else None


def evaluation_figures(metrics: EvaluationMetrics) -> list[Figure]:
    """Return the main metrics of an attributor."""
    names: dict[Literal["accuracy", "balanced_accuracy", "macro_f1"], str] = {
        "accuracy": "Accuracy",
        "balanced_accuracy": "Balanced accuracy",
        "macro_f1": "Macro F1",
    }
    found = [
        Figure(title, f"{metrics[name]:.3f}", interval_text(metrics, name))
        for name, title in names.items()
    ]
    found.append(Figure("Chance", f"{metrics['chance']:.3f}", "share of the largest class"))
    after = metrics["calibration"]["after"]
    error = f"{after['expected_calibration_error']:.3f}"
    found.append(Figure("Calibration error", error, f"Brier {after['brier_score']:.3f}"))
    known = metrics.get("open_set")
    if known:
        found.append(
            Figure("Unknown sources, AUROC", f"{known['auroc']:.3f}", interval_text(known, "auroc"))
        )
    return found


def class_rows(metrics: EvaluationMetrics) -> list[ClassRow]:
    """Return the rows of the table of classes."""
    rejected = metrics.get("false_rejection_by_class", {})
    confusion, classes = metrics["confusion"], metrics["classes"]
    rows = []
    for place, name in enumerate(classes):
        others = [(count, classes[n]) for n, count in enumerate(confusion[place]) if n != place]
        count, other = max(others, default=(0, ""))
        taken_for = f"{other} ({count:,})" if count else ""
        one = metrics["per_class"][name]
        shares = (one["recall"], one["precision"], rejected.get(name))
        rows.append(ClassRow(name, one["images"], *shares, taken_for))
    return rows


def confusion_rows(metrics: EvaluationMetrics) -> list[ConfusionRow]:
    """Return the confusion matrix with the share of its row for each cell."""
    rows = []
    for name, counts in zip(metrics["classes"], metrics["confusion"], strict=True):
        total = max(sum(counts), 1)
        rows.append(ConfusionRow(name, [Cell(count, count / total) for count in counts]))
    return rows


def robustness_of(result: RobustnessCurves) -> dict[str, charts.Chart]:
    """Return the charts of a robustness result, by kind of degradation."""
    clean, *levels = result["levels"]
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in levels:
        how = Degradation.parse(row["degradation"])
        start: list[Mapping[str, Any]] = [
            {**clean, "strength": "as it is", "at": KINDS[how.kind].unchanged}
        ]
        level = {**row, "strength": f"{how.strength:g}", "at": how.strength}
        curves.setdefault(how.kind, start).append(level)
    ordered = {kind: sorted(rows, key=lambda row: row["at"]) for kind, rows in curves.items()}
    made = charts.robustness_charts(ordered, result["chance"])
    return {f"robustness {kind}": chart for kind, chart in made}


def open_set_points(evaluation: _Evaluation) -> dict[str, list[float]]:
    """Return the points of the curves of unknown images, from a sample if there are many."""
    found = {}
    for folder in (SCORES, UNKNOWN):
        strata = Strata(MOST_CURVE)
        for table in evaluation.scores(folder):
            kept = table.select(["id", "unknown_score", "source", "prediction"])
            strata.add(kept, [folder] * table.num_rows)
        rows = strata.all
        found[folder] = [np.array([row["unknown_score"] for row in rows])]
        found[folder].append(np.array([row["source"] == row["prediction"] for row in rows]))
    (known, right), (unknown, _) = found[SCORES], found[UNKNOWN]
    return charts.curve_points(known, unknown, right)


def _charts(
    evaluation: _Evaluation, robustness: RobustnessCurves | None
) -> dict[str, charts.Chart]:
    found = {"calibration": charts.reliability_chart(evaluation.metrics["calibration"])}
    if evaluation.open_set:
        found["open set"] = charts.open_set_chart(open_set_points(evaluation))
    points = evaluation.points
    if len(points) > 2:
        for row in points:
            row["outcome"] = outcome(row)
            row["hover"] = charts.hover(row)
        found["map"] = charts.map_chart(
            map_of([row["coordinates"] for row in points]), points, "source"
        )
    if robustness is not None:
        found |= robustness_of(robustness)
    return found


def _robustness(evaluation: _Evaluation) -> tuple[RobustnessCurves | None, list[Part]]:
    uri = evaluation.options.robustness
    if uri is None:
        return None, []
    manifest: RobustnessManifest = outputs.require(uri, "robustness", "--robustness")
    if manifest["attributor"] != evaluation.manifest["attributor"]:
        raise ManifptError(f"--robustness {uri}: is of another attributor; give that of this one")
    result = storage.read_json(storage.join(storage.absolute(uri), ROBUSTNESS_FILE))
    return result, [output_part("Robustness", uri, manifest)]


def evaluation_page(uri: str, options: PageOptions) -> bytes:
    """Return the page of a finished evaluation as HTML."""
    evaluation, pictures = _Evaluation(uri, options), Pictures()
    metrics, manifest = evaluation.metrics, evaluation.manifest
    robustness, beside = _robustness(evaluation)
    parts = [output_part("Evaluation", evaluation.uri, manifest), *beside]
    if evaluation.model:
        parts += model_parts(*evaluation.model)
    model = evaluation.model.uri if evaluation.model else None
    examples = Examples(manifest["artifacts"], options.manifolds, evaluation.sampled, model)
    parts += [
        output_part(f"Artifacts in the space {branch.name}", branch.uri, branch.manifest)
        for branch in examples.branches
    ]
    figures = evaluation_figures(metrics)
    made = _charts(evaluation, robustness)
    groups, open_set = evaluation.groups, evaluation.open_set
    if groups and groups["known"]:
        made["groups"] = charts.group_chart(groups["known"])
    prints = fingerprint_rows(examples.fingerprints, pictures)
    for name, one in prints.items():
        made |= {f"{what} {name}": chart for what, chart in one.charts.items()}
    inputs = examples.branches[0].manifest.get("inputs", {}) if examples.branches else {}
    sources = sorted({row["source"] for row in evaluation.sampled})
    page = Page(
        f"Evaluation of {storage.base_name(evaluation.model_uri)}",
        f"{metrics['images']:,} unseen images of {len(metrics['classes'])} sources",
        figures,
        parts,
        notes=examples.notes,
        charts=made,
        audit=audit_of(options.audit, evaluation.model),
    )
    values = {
        "metrics": metrics,
        "classes": class_rows(metrics),
        "confusion": confusion_rows(metrics),
        "open_set": open_set,
        "groups": groups,
        "robustness": robustness,
        "views": examples.views,
        "examples": examples.by_source(pictures, outcome),
        "outcomes": OUTCOMES,
        "legend": legend_of(len(metrics["classes"])),
        "sources": sources,
        "fingerprints": prints,
        "designs": designs_of(inputs, {row["source"] for row in evaluation.sampled}),
        "rule": (open_set and open_set.get("rule")) or vars(USUAL),
        "place": public(evaluation.uri),
        "number": number,
    }
    return rendered(TEMPLATE, page, values)
