"""Fingerprints of sources: their mean artifacts, spectra, and distances."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from manifpt.report import charts
from manifpt.report.charts import Chart
from manifpt.report.page_pictures import is_picture

# The number of artifacts of a source for its fingerprint; more change it little.
MOST_ARTIFACTS = 2000


def power_spectra(maps: np.ndarray) -> np.ndarray:
    """Return the power spectra of N x H x W maps, zero frequency in the middle."""
    spectra = np.abs(np.fft.fftshift(np.fft.fft2(maps), axes=(-2, -1))) ** 2
    found: np.ndarray = spectra / (maps.shape[-1] * maps.shape[-2])
    return found


def radial(spectrum: np.ndarray) -> np.ndarray:
    """Return the mean of an H x W spectrum in rings about its middle, up to half the side."""
    height, width = spectrum.shape
    y, x = np.indices(spectrum.shape)
    ring = np.hypot((y - height // 2) / height, (x - width // 2) / width)
    rings = min(height, width) // 2
    place = np.rint(ring * 2 * rings).astype(int)
    inside = place <= rings
    sums = np.bincount(place[inside], spectrum[inside], rings + 1)
    out: np.ndarray = sums / np.maximum(np.bincount(place[inside], minlength=rings + 1), 1)
    return out


@dataclass
class Fingerprints:
    """Sums over artifacts of one space, by source: N, the sum, and the power of maps."""

    shape: tuple[int, ...]
    counts: dict[str, int] = field(default_factory=dict)
    _sums: dict[str, np.ndarray] = field(default_factory=dict)
    _powers: dict[str, np.ndarray] = field(default_factory=dict)
    _square: np.ndarray | None = None

    def add(self, artifacts: np.ndarray, sources: Iterable[str]) -> None:
        """Add N artifacts, N x shape, up to MOST_ARTIFACTS of a source."""
        names = np.array(list(sources), dtype=object)
        for name in dict.fromkeys(names.tolist()):
            room = MOST_ARTIFACTS - self.counts.get(name, 0)
            some = artifacts[names == name][: max(room, 0)].astype(np.float64)
            if len(some) == 0:
                continue
            self.counts[name] = self.counts.get(name, 0) + len(some)
            self._sums[name] = self._sums.get(name, 0) + some.sum(0)
            squares = np.square(some).sum(0)
            self._square = squares if self._square is None else self._square + squares
            if is_picture(self.shape):
                total = power_spectra(some.mean(1)).sum(0)
                self._powers[name] = self._powers.get(name, 0) + total

    @property
    def full(self) -> bool:
        """Whether every source that was met has MOST_ARTIFACTS."""
        return bool(self.counts) and min(self.counts.values()) >= MOST_ARTIFACTS

    @property
    def means(self) -> dict[str, np.ndarray]:
        """The mean artifact of each source."""
        return {name: self._sums[name] / n for name, n in sorted(self.counts.items())}

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each number of all artifacts, shape float64."""
        total = sum(self.counts.values())
        mean = np.sum(list(self._sums.values()), axis=0) / total
        assert self._square is not None
        out: np.ndarray = np.sqrt(np.maximum(self._square / total - mean**2, 0))
        return out

    @property
    def spectra(self) -> dict[str, np.ndarray]:
        """The mean power spectrum of each source's artifacts, in rings; empty for vectors."""
        return {
            name: radial(self._powers[name] / self.counts[name]) for name in sorted(self._powers)
        }

    @property
    def distances(self) -> tuple[list[str], np.ndarray]:
        """The sources, and K x K root mean squares of differences in standard deviations."""
        means, std = self.means, self.std
        used = std > 1e-9 * max(float(std.max()), 1e-12)
        points = np.stack([mean[used] / std[used] for mean in means.values()])
        gaps = points[:, None] - points[None]
        return list(means), np.sqrt(np.square(gaps).mean(-1))


def tree_of(distances: np.ndarray, names: list[str]) -> Mapping[str, Any]:
    """Return SciPy's dendrogram of K x K distances by average linkage; K is two at least."""
    links = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    found: Mapping[str, Any] = dendrogram(links, labels=names, no_plot=True)
    return found


def distance_chart(distances: np.ndarray, names: Sequence[str]) -> Chart:
    """Draw a matrix of distances between fingerprints, in the order of ``names``."""
    trace = {
        "type": "heatmap",
        "z": distances.round(3).tolist(),
        "x": list(names),
        "y": list(names),
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": "distance"}, "thickness": 12},
        "hovertemplate": "%{y} - %{x}: %{z:.3f}<extra></extra>",
    }
    category = {"type": "category", "automargin": True}
    layout = {"xaxis": category, "yaxis": category | {"autorange": "reversed"}}
    far = np.array(distances)
    np.fill_diagonal(far, np.inf)
    a, b = divmod(int(far.argmin()), len(names))
    alt = f"Distances between fingerprints; the nearest two are {names[a]} and {names[b]}."
    return Chart([trace], layout, alt, max(340, 150 + 22 * len(names)))


def dendrogram_chart(tree: Mapping[str, Any]) -> Chart:
    """Draw a tree of SciPy's ``dendrogram``, leaves at the left from top to bottom."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": list(heights),
            "y": list(places),
            "line": {"color": charts.PALETTE[0], "width": 2},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        for places, heights in zip(tree["icoord"], tree["dcoord"], strict=True)
    ]
    leaves = tree["ivl"]
    ticks = {"tickvals": [5 + 10 * n for n in range(len(leaves))], "ticktext": list(leaves)}
    layout = {
        "xaxis": charts.axis("distance at the join", rangemode="tozero"),
        "yaxis": ticks | {"autorange": "reversed", "automargin": True, "zeroline": False},
    }
    alt = "Dendrogram of fingerprints in the order " + ", ".join(leaves) + "."
    return Chart(traces, layout, alt, max(340, 150 + 22 * len(leaves)))


def spectra_chart(spectra: Mapping[str, np.ndarray]) -> Chart:
    """Draw the mean power of artifacts against frequency, a line a source."""
    traces = [
        charts.line(
            (np.arange(len(power)) / (2 * max(len(power) - 1, 1))).round(3).tolist(),
            np.maximum(power, 1e-12).tolist(),
            name,
            number,
            mode="lines",
        )
        for number, (name, power) in enumerate(sorted(spectra.items()))
    ]
    layout = {
        "xaxis": charts.axis("frequency, cycles per pixel"),
        "yaxis": charts.axis("mean power of artifacts", type="log", exponentformat="power"),
        "hovermode": "x unified",
    }
    return Chart(traces, layout, "Mean power spectra of the artifacts of each source.", 380)
