"""Pictures of results, as PNG bytes."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from manifpt import storage
from manifpt.artifacts.branches import artifact_column, open_artifacts, read_branches
from manifpt.evaluation.evaluation_format import (
    CalibrationReport,
    ClosedSetMetrics,
    RobustnessLevel,
    RobustnessLevels,
)
from manifpt.images.degrade import KINDS, Degradation
from manifpt.spaces import space_from_card
from manifpt.storage import tensors


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return sink.getvalue()


def confusion_picture(metrics: ClosedSetMetrics) -> bytes:
    """Draw the confusion matrix: shares of each true class, with the counts written in."""
    matrix, classes = np.array(metrics["confusion"]), metrics["classes"]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 2.2 + 0.55 * len(classes)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    low, high = 100 * metrics["accuracy_low"], 100 * metrics["accuracy_high"]
    title = f"accuracy {100 * metrics['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
    axes.set_title(f"{title}, {metrics['images']} images", fontsize=9)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def reliability_picture(calibration: CalibrationReport) -> bytes:
    """Draw accuracy against confidence, before and after the heads were weighed."""
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True)
    reports = (("before", calibration["before"]), ("after", calibration["after"]))
    for axes, (name, found) in zip(panels, reports, strict=True):
        bins = found["reliability"]
        share = np.array(bins["images"]) / sum(bins["images"])
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axes.bar(bins["confidence"], share, width=0.02, color="lightgrey", label="share of images")
        axes.plot(bins["confidence"], bins["accuracy"], "o-", markersize=4, label="accuracy")
        error = found["expected_calibration_error"]
        axes.set_title(f"{name}: ECE {error:.3f}, Brier {found['brier_score']:.3f}", fontsize=9)
        axes.set_xlabel("probability of the answer")
    panels[0].legend(fontsize=8)
    return _png(figure)


AXES = {
    "jpeg": "JPEG quality",
    "blur": "blur, sigma in pixels",
    "resize": "resized by a factor and back",
    "crop": "cropped to a share of the side",
    "noise": "noise, std of [0, 1]",
}


def robustness_picture(result: RobustnessLevels) -> bytes:
    """Draw accuracy and confidence against strength, a panel a kind, with intervals and chance.

    The image as it is has its place among the strengths of each kind.
    """
    clean, *levels = result["levels"]
    curves: dict[str, list[tuple[float, RobustnessLevel]]] = {}
    for level in levels:
        how = Degradation.parse(level["degradation"])
        if how.strength is not None:
            start = [(KINDS[how.kind].unchanged, clean)]
            curves.setdefault(how.kind, start).append((how.strength, level))
    count = max(1, len(curves))
    figure = plt.figure(figsize=(3.2 * count, 3.2), layout="constrained")
    grid = figure.subplots(1, count, sharey=True, squeeze=False)
    for axes, (kind, points) in zip(grid[0], curves.items(), strict=False):
        points = sorted(points, key=lambda point: point[0])
        names = ["clean" if level is clean else f"{strength:g}" for strength, level in points]
        _curve(axes, names, [level for _, level in points])
        axes.axhline(result["chance"], color="grey", linestyle="--", linewidth=1, label="chance")
        axes.set_xlabel(AXES[kind])
    grid[0][0].set_ylabel(f"{result['images']} unseen images")
    lines, words = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, words, loc="outside upper center", ncols=3, frameon=False)
    return _png(figure)


def _curve(axes: Any, names: Sequence[str], levels: Sequence[RobustnessLevel]) -> None:
    """Draw the accuracy of levels with its interval, and the mean probability of their answers."""
    places = range(len(levels))
    accuracy, low, high, confidence = (
        [level[name] for level in levels]
        for name in ("accuracy", "accuracy_low", "accuracy_high", "confidence")
    )
    axes.fill_between(places, low, high, alpha=0.25, color="tab:blue", linewidth=0)
    axes.plot(places, accuracy, "o-", color="tab:blue", label="accuracy (95 % interval)")
    axes.plot(places, confidence, ":", color="tab:orange", label="mean probability of answers")
    axes.set_xticks(places, names)
    axes.set_ylim(0, 1)
    axes.margins(x=0.12)  # else the last tick of a panel meets the first of the next
    axes.grid(axis="y", alpha=0.3)


def triplets_picture(artifacts: str, images: str, per_source: int = 3) -> bytes:
    """Draw phi(x), its projection x*, and the artifact phi(x) - x*, for some test images a source.

    ``images`` are the artifacts of the same images in the space ``image``. Artifacts are signed:
    grey is zero, lighter and darker are above and below.
    """
    maps, pixels = open_artifacts([artifacts, images])
    space, shape = space_from_card(maps.manifest["space"]), maps.manifest["shape"]
    uris = [[storage.join(b.uri, path) for b in (maps, pixels)] for path in maps.files("test")]
    tables = [read_branches(pair) for pair in uris]
    sources = sorted(maps.manifest["classes"]["test"])
    figure, grid = plt.subplots(
        len(sources), 3 * per_source, figsize=(3 * per_source, 1.1 * len(sources)), squeeze=False
    )
    for line, source in zip(grid, sources, strict=True):
        rows = [t.filter(np.array(t["source"]) == source) for t in tables]
        table = next(t for t in rows if t.num_rows >= per_source).slice(0, per_source)
        found = tensors.from_column(table["artifact"]).reshape(-1, *shape)
        image = tensors.from_column(table[artifact_column(1)])
        image = image.reshape(-1, *pixels.manifest["shape"]).transpose(0, 2, 3, 1)
        embedded = space.embed((image * 255).round().astype(np.uint8))
        for n, panels in enumerate(zip(embedded, embedded - found, found, strict=True)):
            for m, (axes, values) in enumerate(zip(line[3 * n : 3 * n + 3], panels, strict=True)):
                _show(axes, values, signed=m == 2)
                if source == sources[0]:
                    axes.set_title(("x", "x*", "x - x*")[m], fontsize=9)
        line[0].set_ylabel(source, fontsize=9)
    return _png(figure)


def _show(axes: Any, values: np.ndarray, *, signed: bool) -> None:
    if signed:
        values = 0.5 + values / (2 * max(float(np.abs(values).max()), 1e-6))
    elif values.min() < -1e-3 or values.max() > 1 + 1e-3:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
    axes.imshow(np.clip(values.transpose(1, 2, 0), 0, 1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
