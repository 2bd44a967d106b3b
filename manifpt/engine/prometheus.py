"""Metrics of a job for Prometheus: rows, bytes, seconds and queues, by Ray's own metrics.

The agent of each node of Ray serves them to Prometheus, with ``ray_`` before their names. A process
without Ray emits nothing.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from manifpt.outputs.formats import ChunkRecord, ChunkRow

BOUNDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]  # s


@dataclass(frozen=True)
class Series:
    """A metric's kind and meaning; it has the label ``pipeline``, and ``label`` if one is given."""

    kind: Literal["Counter", "Gauge", "Histogram"]
    about: str
    label: str | None = None


SERIES = {
    "manifpt_rows_total": Series("Counter", "Rows done, with those of the quarantine"),
    "manifpt_quarantined_rows_total": Series("Counter", "Rows of the quarantine", "error"),
    "manifpt_read_bytes_total": Series("Counter", "Bytes of chunks that readers passed on"),
    "manifpt_written_bytes_total": Series("Counter", "Bytes of the files of finished chunks"),
    "manifpt_seconds_total": Series(
        "Counter", "Seconds of readers (read) and of actors (all others)", "stage"
    ),
    # No histogram: Ray's agent computes the sum of one from the middles of its buckets.
    "manifpt_queue_seconds_total": Series("Counter", "Seconds of chunks from reader to actor"),
    "manifpt_chunk_seconds": Series("Histogram", "Seconds of a chunk in an actor"),
    "manifpt_units_left": Series("Gauge", "Units that are not done yet"),
    "manifpt_cost": Series("Gauge", "What the nodes have cost since the job began"),
}

_pipeline = ""


class _Inner(threading.local):
    seconds = 0.0


_inner = _Inner()


def enter(pipeline: str) -> None:
    """Set the pipeline of all metrics that this process emits from now on."""
    global _pipeline
    _pipeline = pipeline


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    series = SERIES[name]
    given: dict[str, Any] = {"boundaries": BOUNDS} if series.kind == "Histogram" else {}
    labels = ("pipeline", series.label) if series.label else ("pipeline",)
    return getattr(metrics, series.kind)(name, series.about, tag_keys=labels, **given)


def emit(name: str, value: float, label: str | None = None) -> None:
    """Add to a counter, set a gauge, or add an observation to a histogram, by ``name``."""
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        return
    series = SERIES[name]
    labels = {"pipeline": _pipeline} | ({series.label: label or ""} if series.label else {})
    metric = _metric(name)
    if series.kind == "Gauge":
        metric.set(value, labels)
    elif series.kind == "Histogram":
        metric.observe(max(0.0, value), labels)
    elif value > 0:
        metric.inc(value, labels)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Count the seconds of the block for a stage, less those of blocks in it."""
    started, outer = time.perf_counter(), _inner.seconds
    _inner.seconds = 0.0
    try:
        yield
    finally:
        took = time.perf_counter() - started
        emit("manifpt_seconds_total", took - _inner.seconds, stage)
        _inner.seconds = outer + took


def observed_chunks(rows: Iterator[ChunkRow]) -> Iterator[ChunkRow]:
    """Yield a reader's chunks; emit the seconds and the bytes of each."""
    while True:
        with timed("read"):
            row = next(rows, None)
        if row is None:
            return
        emit("manifpt_read_bytes_total", len(row["table"]))
        yield row


def done(record: ChunkRecord) -> None:
    """Emit the counts in the record of a chunk."""
    emit("manifpt_rows_total", record["rows_in"])
    for code, count in record["by_error"].items():
        emit("manifpt_quarantined_rows_total", count, code)
    emit("manifpt_written_bytes_total", sum(part["bytes"] for part in record["parts"]))
    emit("manifpt_chunk_seconds", record["seconds"])
