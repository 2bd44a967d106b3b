"""Measure the speed of this engine and of its usual alternatives, in one run on the same cores.

    manifpt benchmark search --quick
    manifpt benchmark search --json search.json
    manifpt benchmark embed --json embed.json
    manifpt benchmark attribute --json attribute.json
    manifpt benchmark plan --repeats 1 --json plan.json
    manifpt benchmark tail --json tail.json

The first command takes about three minutes. `plan` compares plans with measured jobs, and `tail`
measures the steps after the last image: ids, copies and groups.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import POSITIONAL
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of benchmark."""

    what: Literal["search", "embed", "attribute", "plan", "tail"] = Field(
        description="what to measure", json_schema_extra=POSITIONAL
    )
    quick: bool = Field(False, description="measure small sizes only, in about three minutes")
    input: tuple[str, ...] = Field(
        (),
        description="photographs from which crops are taken; if not given, the two of scikit-learn",
    )
    repeats: int = Field(5, ge=1, description="number of runs; the median counts")
    threads: int | None = Field(
        None, ge=1, description="threads of every engine; if not given, as many as cores"
    )
    attributor: Literal["paper", "usual"] = Field(
        "paper",
        description="for attribute: a ResNet18 on the artifacts of nearest reals, or the usual "
        "attributor of train_attribution",
    )
    backbone: str = Field("resnet18", description="for embed: a torchvision ResNet")
    image_size: int = Field(64, ge=32, description="for embed: side of images in pixels")


def search_rows(config: Config, threads: int) -> Sequence[Mapping[str, object]]:
    """Measure the search; print and return the rows."""
    from manifpt.throughput import search_speed

    rows: list[Mapping[str, object]] = []
    shapes = search_speed.QUICK if config.quick else search_speed.FULL
    for part in search_speed.measure_shapes(shapes, config.input, config.repeats, threads):
        print(search_speed.table(part), flush=True)
        rows += part
    return rows


def embed_rows(config: Config, threads: int) -> Sequence[Mapping[str, object]]:
    """Measure embedding; print and return the rows."""
    from manifpt.throughput import embedding_speed

    few, many = (1024, 4096) if config.quick else (5_120, 20_480)
    with tempfile.TemporaryDirectory() as folder:
        work = embedding_speed.EmbeddingWorkload(
            folder, few, many, config.image_size, config.backbone
        )
        embedding_speed.prepare(work, config.input)
        rows = list(embedding_speed.measure(work, config.repeats, threads))
    print(embedding_speed.table(rows), flush=True)
    return rows


def attribute_rows(config: Config, threads: int) -> Sequence[Mapping[str, object]]:
    """Measure attribution, its rates and then its memory; print and return the rows."""
    from manifpt.throughput import attribution_speed

    few, many, more = (1_000, 3_000, 5_000) if config.quick else (5_000, 20_000, 50_000)
    with tempfile.TemporaryDirectory() as folder:
        work = attribution_speed.AttributionWorkload(folder, config.attributor == "usual")
        attribution_speed.prepare(work, more, config.input)
        rows = list(attribution_speed.measure(work, few, many, config.repeats, threads))
        print(attribution_speed.table(rows), flush=True)
        memory = list(attribution_speed.memory(work, (few, more)))
    print(attribution_speed.memory_table(memory), flush=True)
    return [*rows, *memory]


def plan_rows(config: Config, _threads: int) -> Sequence[Mapping[str, object]]:
    """Run jobs of several sizes beside their plans; print and return the rows."""
    from manifpt.planning import comparison as plan

    sizes, workers = plan.QUICK if config.quick else (plan.SIZES, plan.WORKERS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plan.prepare(folder, max(sizes), config.input)
        for row in plan.measure(folder, sizes, workers, config.repeats):
            print(plan.table(plan.compared([row])), file=sys.stderr, flush=True)
            rows.append(row)
    print(plan.table(plan.compared(rows)), flush=True)
    return rows


def tail_rows(config: Config, threads: int) -> Sequence[Mapping[str, object]]:
    """Measure the steps after attribution for numbers of rows; print and return the rows."""
    from manifpt.throughput import tail

    rows: list[Mapping[str, object]] = []
    for images in (100_000, 1_000_000) if config.quick else (1_000_000, 10_000_000):
        with tempfile.TemporaryDirectory() as folder:
            part = list(tail.measure(folder, images))
        print(tail.table(part), flush=True)
        rows += part
    return rows


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Measure, print the table, and return it."""
    from manifpt.outputs.provenance import environment

    threads = config.threads or os.cpu_count() or 1
    rows = {
        "search": search_rows,
        "embed": embed_rows,
        "attribute": attribute_rows,
        "plan": plan_rows,
        "tail": tail_rows,
    }
    measured = rows[config.what](config, threads)
    found = {"environment": environment(threads), "rows": measured}
    tracked.document("benchmark.json", found)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command; the table is its output."""

    def command() -> None:
        # Measurements start Ray where they need it, and as often as they need it.
        job.execute("benchmark", Config, run, argv, __doc__, on_ray=False)

    return job.exit_code("benchmark", command)
