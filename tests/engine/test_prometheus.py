"""Metrics as Prometheus scrapes them from Ray's agent, and the dashboard that shows them."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import test_pipeline

from manifpt.engine import pipeline, pools, prometheus
from manifpt.outputs import claims

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "manifpt.json"
# The first report of a process comes after up to 10 s, and its nodes' agents start late.
REPORT_SECONDS = 60
SAMPLES = 12  # four stages, two of the histogram, and six


def sample_names() -> set[str]:
    """Return the names that Prometheus stores, of which a histogram has three."""
    ends = {"Histogram": ("_bucket", "_sum", "_count")}
    return {
        f"ray_{name}{end}"
        for name, series in prometheus.SERIES.items()
        for end in ends.get(series.kind, ("",))
    }


def test_the_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads(DASHBOARD.read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bray_\w+", target["expr"])
    }
    assert shown <= sample_names()
    bare = {re.sub("_(bucket|sum|count)$", "", name).removeprefix("ray_") for name in shown}
    assert bare == set(prometheus.SERIES)
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            labels = set(re.findall(r"by \((\w+)\)", target["expr"])) - {"le"}
            known = {"pipeline", *(series.label for series in prometheus.SERIES.values())}
            assert labels <= known


def test_time_inside_another_stage_is_counted_once(monkeypatch):
    found = []
    monkeypatch.setattr(prometheus, "emit", lambda name, value, label: found.append((label, value)))
    with prometheus.timed("work"):
        with prometheus.timed("embed"):
            time.sleep(0.05)
        with prometheus.timed("search"):
            time.sleep(0.02)
    seconds = dict(found)
    assert seconds["embed"] >= 0.05
    assert seconds["search"] >= 0.02
    assert seconds["work"] < 0.02


@pytest.fixture
def scraped(ray_session):
    """A function that returns the samples of a pipeline, as {(name, label): value}."""
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    line = re.compile(r"(ray_manifpt_\w+)\{(.*)\} (\S+)")

    def samples(title: str) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for name, labels, value in line.findall(
            urllib.request.urlopen(url, timeout=5).read().decode()
        ):
            given = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if given["pipeline"] == title and "le" not in given:
                key = name, given.get("stage") or given.get("error", "")
                found[key] = found.get(key, 0.0) + float(value)
        return found

    return samples


def test_prometheus_finds_what_a_pipeline_did(scraped, tmp_path):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(test_pipeline)  # workers can't import it
    read, copy = test_pipeline.read, test_pipeline.Copy
    output, title = str(tmp_path / "out"), "counted"
    with claims.claim(output, "attributions", "0" * 64):
        pool = pools.pool(pools.Demand(1, 0), uses_gpu=False)
        records = pipeline.run(title, ["0", "1"], read, copy, output, pool)
    assert sum(record["rows_in"] for record in records) == 24
    expected = {
        ("ray_manifpt_rows_total", ""): 24,
        ("ray_manifpt_quarantined_rows_total", "corrupt"): 6,
        ("ray_manifpt_written_bytes_total", ""): sum(
            part["bytes"] for record in records for part in record["parts"]
        ),
        ("ray_manifpt_chunk_seconds_count", ""): 6,
        ("ray_manifpt_units_left", ""): 0,
    }
    until, found = time.monotonic() + REPORT_SECONDS, {}
    # Reader, actor and driver tell their agent at times of their own.
    while not (expected.items() <= found.items() and len(found) >= SAMPLES):
        assert time.monotonic() < until, found
        time.sleep(0.5)
        found = scraped(title)
    assert found["ray_manifpt_read_bytes_total", ""] > 0
    stages = {label for name, label in found if name == "ray_manifpt_seconds_total"}
    assert stages == {"read", "wait", "work", "write"}
    named = {name for name, _ in found} | {"ray_manifpt_cost"}
    assert named == {name for name in sample_names() if not name.endswith("_bucket")}
