"""Charts as Plotly's JSON, without the colours of a theme, which the page adds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifpt.outputs.work_rate import RowsOverTime

# Ten hues that most eyes tell apart on white and on black (after Tol and Okabe & Ito).
PALETTE = (
    "#3b82c4", "#e4743f", "#2f9e6e", "#b565c4", "#c9a227",
    "#d0567f", "#4fb3bf", "#8a6d3b", "#7a86c9", "#8f8f8f",
)  # fmt: skip
DECISION_COLOURS = {
    "generator": "#e4743f",
    "real": "#2f9e6e",
    "unsure": "#c9a227",
    "unknown": "#7f8794",
}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")
# Seconds of the units of a time axis, the longest first.
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
# Series of one chart; more could not be distinguished.
MOST_SERIES = 40

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A figure, its description for screen readers, and its height in pixels."""

    traces: Sequence[Trace]
    layout: Mapping[str, object]
    alt: str
    height: int = 340

    @property
    def data(self) -> object:
        """The JSON for Plotly; texts from outside hold no tags."""
        return escaped_texts({"data": list(self.traces), "layout": self.layout})


def escaped_texts(value: Any, key: str = "") -> Any:
    """Return JSON in which Plotly, which knows some tags, shows all texts as they are.

    A new line stays one. Templates of hovers are ours.
    """
    if isinstance(value, str) and key != "hovertemplate":
        plain = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return plain.replace("\n", "<br>")
    if isinstance(value, dict):
        return {name: escaped_texts(one, name) for name, one in value.items()}
    return [escaped_texts(one, key) for one in value] if isinstance(value, list) else value


def colour_of(number: int) -> str:
    """Return the colour of a series by its number."""
    return PALETTE[number % len(PALETTE)]


def axis(title: str, **options: object) -> dict[str, object]:
    """Return an axis with a title."""
    return {"title": {"text": title}, "automargin": True} | options


def line(x: Sequence[Any], y: Sequence[float], name: str, number: int, **options: Any) -> Trace:
    """Return a line with a mark at each point."""
    colour = colour_of(number)
    beside = {"mode": "lines+markers", "line": {"color": colour, "width": 2}}
    return {"type": "scatter", "x": list(x), "y": list(y), "name": name} | beside | options


def band(x: Sequence[Any], low: Sequence[float], high: Sequence[float], number: int) -> list[Trace]:
    """Return an interval about a line, as two lines without a name."""
    plain: Trace = {"type": "scatter", "mode": "lines", "line": {"width": 0}}
    plain |= {"hoverinfo": "skip", "showlegend": False, "x": list(x)}
    fill = {"fill": "tonexty", "fillcolor": colour_of(number) + "33"}
    return [plain | {"y": list(low)}, plain | fill | {"y": list(high)}]


def level(y: float, name: str) -> Trace:
    """Return a dashed line across the chart, to compare with."""
    dashed = {"color": "#8f8f8f", "dash": "dash", "width": 1.5}
    return {"type": "scatter", "name": name, "mode": "lines", "line": dashed, "y": [y, y]}


def reliability_chart(calibration: Mapping[str, Any]) -> Chart:
    """Draw accuracy against probability, before and after calibration."""
    diagonal = level(0, "as it should be") | {"x": [0, 1], "y": [0, 1]}
    traces = [diagonal]
    words = []
    for number, (when, found) in enumerate(calibration.items()):
        bins, error = found["reliability"], found["expected_calibration_error"]
        images = [f"{n:,} images" for n in bins["images"]]
        most = max(bins["images"])
        sizes = [6 + 14 * (n / most) ** 0.5 for n in bins["images"]]
        name = f"{when} calibration (ECE {error:.3f})"
        marker = {"size": sizes, "color": colour_of(number)}
        beside = {"text": images, "marker": marker}
        traces.append(line(bins["confidence"], bins["accuracy"], name, number, **beside))
        words.append(f"{when} calibration the expected error is {error:.3f}")
    layout = {
        "xaxis": axis("probability of the answer", range=[0, 1.02]),
        "yaxis": axis("share that is right", range=[0, 1.02]),
    }
    return Chart(traces, layout, "Reliability: " + "; ".join(words) + ".")


def curve_points(
    known: np.ndarray, unknown: np.ndarray, right: np.ndarray
) -> dict[str, list[float]]:
    """Return points of the ROC and OSCR curves over thresholds of a score, higher is stranger.

    ``accepted`` is the share of unknown images that are accepted, ``known`` of known images, and
    ``classified`` of known images that are accepted and rightly classified.
    """
    marks = np.quantile(np.concatenate([known, unknown]), np.linspace(0, 1, 201))
    marks = np.concatenate([[-np.inf], np.unique(marks)])
    ordered = [np.sort(one) for one in (unknown, known, known[right])]
    totals = (len(unknown), len(known), len(known))
    shares = [
        np.searchsorted(values, marks, side="right") / max(total, 1)
        for values, total in zip(ordered, totals, strict=True)
    ]
    names = ("accepted", "known", "classified")
    return {n: share.round(4).tolist() for n, share in zip(names, shares, strict=True)}


def open_set_chart(points: Mapping[str, Sequence[float]]) -> Chart:
    """Draw the ROC and the OSCR curve."""
    plain = {"mode": "lines"}
    traces = [
        level(0, "by chance") | {"x": [0, 1], "y": [0, 1]},
        line(points["accepted"], points["known"], "known images accepted (ROC)", 0, **plain),
        line(points["accepted"], points["classified"], "accepted and right (OSCR)", 1, **plain),
    ]
    layout = {
        "xaxis": axis("share of unknown images accepted", range=[0, 1]),
        "yaxis": axis("share of known images", range=[0, 1.01]),
    }
    return Chart(traces, layout, "Known against unknown images that are accepted, by threshold.")


def histogram(counts: Mapping[str, Sequence[int]], edges: Sequence[float], title: str) -> Chart:
    """Draw counts of bins, stacked by name."""
    middle = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    traces = [
        {
            "type": "bar",
            "x": middle.round(4).tolist(),
            "y": list(values),
            "name": name,
            "width": float(edges[1] - edges[0]) * 0.96,
            "marker": {"color": DECISION_COLOURS.get(name, colour_of(number))},
        }
        for number, (name, values) in enumerate(counts.items())
    ]
    sums = ", ".join(f"{name} {sum(values):,}" for name, values in counts.items())
    layout = {"barmode": "stack", "xaxis": axis(title), "yaxis": axis("images")}
    return Chart(traces, layout, f"Histogram of {title}: {sums}.", 280)


def throughput_chart(found: RowsOverTime) -> Chart:
    """Draw rows per second over the time that a job worked; see ``work_rate.rows_over_time``."""
    width, rows = found["seconds_per_bin"], found["rows"]
    total = width * len(rows)
    unit, length = next((u, n) for u, n in TIME_UNITS if total >= 3 * n or n == 1.0)
    rates = [round(count / width, 3) for count in rows]
    x = [round(place * width / length, 4) for place in range(len(rows) + 1)]
    steps = {"mode": "lines", "fill": "tozeroy", "line": {"shape": "hv", "color": colour_of(0)}}
    traces = [line(x, [*rates, rates[-1]], "rows per second", 0, **steps)]
    mean = sum(rows) / total
    traces.append(level(round(mean, 3), f"mean, {mean:,.1f}") | {"x": [0, x[-1]]})
    starts = [round(start / length, 4) for start in found["starts"][1:]]
    if starts:
        again: Trace = {"type": "scatter", "mode": "markers", "x": starts, "y": [0] * len(starts)}
        mark = {"symbol": "triangle-up", "size": 11, "color": colour_of(1)}
        traces.append(again | {"name": "continued after a stop", "marker": mark})
    layout = {
        "xaxis": axis(f"{unit} of work", rangemode="tozero"),
        "yaxis": axis("rows per second", rangemode="tozero"),
    }
    alt = (
        f"Rows per second over {total / length:,.1f} {unit}: {mean:,.1f} on average, "
        f"{max(rates):,.1f} at most, {min(rates):,.1f} at least."
    )
    return Chart(traces, layout, alt, 280)


def stacked_bars(counts: Mapping[str, Mapping[str, int]], what: str) -> Chart:
    """Draw a bar for each name, in parts by decision; the longest bar is on top."""
    names = sorted(counts, key=lambda name: sum(counts[name].values()))[-MOST_SERIES:]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "x": [counts[name].get(decision, 0) for name in names],
            "name": decision,
            "marker": {"color": colour},
        }
        for decision, colour in DECISION_COLOURS.items()
    ]
    layout = {"barmode": "stack", "xaxis": axis("images"), "yaxis": axis("", type="category")}
    alt = f"Images by {what} and decision; the table has the numbers."
    return Chart(traces, layout, alt, 110 + 26 * len(names))


def month_bars(counts: Mapping[str, Mapping[str, int]]) -> Chart:
    """Draw a bar for each month, as 2024-03, in parts by decision; months without images are 0."""
    traces = [
        {
            "type": "bar",
            "x": list(counts),
            "y": [by.get(decision, 0) for by in counts.values()],
            "name": decision,
            "marker": {"color": colour},
        }
        for decision, colour in DECISION_COLOURS.items()
    ]
    xaxis = axis("month", type="date", dtick="M1" if len(counts) < 13 else None, tickformat="%Y-%m")
    layout = {"barmode": "stack", "xaxis": xaxis, "yaxis": axis("images")}
    first, last = min(counts), max(counts)
    alt = f"Images by month and decision, {first} to {last}; the table has the numbers."
    return Chart(traces, layout, alt, 300)


def map_chart(points: np.ndarray, rows: Sequence[Mapping[str, Any]], key: str) -> Chart:
    """Draw N x 2 points, coloured by a column of their rows; ``hover`` of a row is shown."""
    names = sorted({str(row[key]) for row in rows})
    traces = []
    for number, name in enumerate(names):
        places = [n for n, row in enumerate(rows) if str(row[key]) == name]
        marks = {"color": colour_of(number), "size": 6, "opacity": 0.75}
        marks["symbol"] = SYMBOLS[number // len(PALETTE) % len(SYMBOLS)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": points[places, 0].round(3).tolist(),
                "y": points[places, 1].round(3).tolist(),
                "text": [rows[n]["hover"] for n in places],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": marks,
            }
        )
    bare = {"showticklabels": False, "zeroline": False, "title": {"text": ""}}
    layout = {"xaxis": dict(bare), "yaxis": dict(bare), "hovermode": "closest"}
    alt = f"Map of {len(rows):,} images, near where they are alike, coloured by {key}."
    return Chart(traces, layout, alt, 520)


def group_chart(known: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the accuracy of groups against their size, for each share of foreign images."""
    curves: dict[str, list[tuple[int, Sequence[float]]]] = {}
    for row in known:
        share = round(row["foreign"] / row["size"], 1)
        curves.setdefault(f"{share:.0%} of other sources", []).append(
            (row["size"], row["accuracies"])
        )
    traces: list[Trace] = []
    least = min((min(row["accuracies"]) for row in known), default=0.0)
    for number, (name, points) in enumerate(sorted(curves.items())):
        sizes = [size for size, _ in points]
        runs = [values for _, values in points]
        traces += band(sizes, [min(r) for r in runs], [max(r) for r in runs], number)
        traces.append(line(sizes, [float(np.mean(r)) for r in runs], name, number))
    layout = {
        "xaxis": axis("images in a group", type="log", tickvals=sorted({r["size"] for r in known})),
        "yaxis": axis("share of groups that are right", range=[max(0.0, least - 0.1), 1.02]),
    }
    return Chart(traces, layout, "Accuracy of groups against the number of their images.")


def robustness_charts(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], chance: float
) -> Iterator[tuple[str, Chart]]:
    """Yield a chart a kind of degradation: accuracy against strength."""
    for kind, levels in curves.items():
        names = [row["strength"] for row in levels]
        accuracy, low, high = (
            [row[name] for row in levels] for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        traces = band(names, low, high, 0)
        traces.append(line(names, accuracy, "accuracy (95 % interval)", 0))
        confidence = [row["confidence"] for row in levels]
        traces.append(line(names, confidence, "mean probability of the answers", 1))
        traces.append(level(chance, "chance") | {"x": [names[0], names[-1]], "y": [chance] * 2})
        layout = {
            "xaxis": axis(kind, type="category"),
            "yaxis": axis("accuracy", range=[0, 1.02]),
        }
        last = f"{max(accuracy):.2f} at best, {min(accuracy):.2f} at worst"
        yield kind, Chart(traces, layout, f"Accuracy against {kind}: {last}.", 300)


def hover(row: Mapping[str, Any]) -> str:
    """Return the text of a row under the pointer."""
    parts = [
        str(row["id"])[-80:],
        f"source {row['source']}" if row.get("source") else "",
        f"answer {row['prediction']}, probability {row['probability']:.3f}, {row['decision']}",
    ]
    return "\n".join(part for part in parts if part)
