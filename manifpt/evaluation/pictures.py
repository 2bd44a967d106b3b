"""Pictures of results, as PNG bytes."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from manifpt import storage, tensors
from manifpt.branches import read_artifacts
from manifpt.manifold import Manifold, Plan


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return sink.getvalue()


def confusion_picture(metrics: dict[str, Any]) -> bytes:
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


def triplets_picture(artifacts: str, manifold: str, per_source: int = 3) -> bytes:
    """Draw x, its nearest real x*, and the artifact x - x*, for some test images a source.

    Artifacts are signed: grey is zero, lighter and darker are above and below. The projection must
    be ``nearest``: of others, x* is no real that could be looked up.
    """
    reals = Manifold.open(manifold).read(Plan())
    place = {key: row for row, key in enumerate(reals.ids)}
    manifest = storage.read_json(storage.join(artifacts, "manifest.json"))
    shape = manifest["shape"]
    sources = sorted(manifest["classes"]["test"])
    files = [f["path"] for f in manifest["files"] if f["folder"] == "test"]
    tables = [read_artifacts(storage.join(artifacts, path)) for path in files]
    figure, grid = plt.subplots(
        len(sources), 3 * per_source, figsize=(3 * per_source, 1.1 * len(sources)), squeeze=False
    )
    for line, source in zip(grid, sources, strict=True):
        rows = [t.filter(np.array(t["source"]) == source) for t in tables]
        table = next(t for t in rows if t.num_rows >= per_source)
        for n in range(per_source):
            artifact = tensors.from_column(table["artifact"])[n].reshape(shape)
            star = reals.vectors[place[table["neighbor_id"][n].as_py()]].reshape(shape)
            panels = zip(line[3 * n : 3 * n + 3], (artifact + star, star, artifact), strict=True)
            for m, (axes, values) in enumerate(panels):
                _show(axes, values, signed=m == 2)
                if line is grid[0]:
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
