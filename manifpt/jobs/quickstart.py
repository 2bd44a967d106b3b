"""Run the main jobs, one after the other, on the shipped benchmark; print a table of accuracies.

    manifpt quickstart --output quickstart

Builds a manifold of the benchmark's reals, computes the artifacts of other images, and trains four
attributors: on the images themselves, on the artifacts of the nearest real as in the paper, on
local statistics, and on images, high-pass residuals and statistics together. It evaluates them on
unseen images, and attributes these images with the last attributor, as if they were unlabelled. The
last three lines are the addresses of its pages, which any browser opens: the artifacts with their
nearest reals, the images as if from a crawl, and the evaluation of the last attributor.
"""

import time
from typing import Literal

from pydantic import Field

from manifpt import storage
from manifpt.cli import job
from manifpt.cli.answer import address_of
from manifpt.cli.config import parse
from manifpt.cli.job_options import JobConfig, OutputsFolder
from manifpt.cli.training_options import MixedShare, TrainingSteps
from manifpt.jobs import attribute, report
from manifpt.jobs.chain import Chain, ChainConfig, claimed, table

TOGETHER = "image+highpass+residual"
NAMES = {
    "image": "images",
    "rgb": "rgb artifacts, nearest real (the paper)",
    "residual": "local statistics",
    TOGETHER: "images, high-pass residuals, statistics",
}


class Config(ChainConfig):
    """Options of quickstart."""

    output: OutputsFolder = "quickstart"
    projector: Literal["nearest", "mean", "tangent", "riemannian"] = Field(
        "nearest", description="see compute_artifacts"
    )
    steps: TrainingSteps = 400
    # Few images of few classes are soon learned by heart, unless all batches are mixed.
    mixed_share: MixedShare = 1


def rates_table(rates: dict[str, float]) -> str:
    """Return the images/s of each step as text."""
    lines = [f"{title:<32}{rate:7.0f}" for title, rate in rates.items() if rate]
    return "\n".join(["images/s of each step, its start-up included", *lines])


def run(config: Config) -> None:
    """Run the chain; print the table and the places of the outputs."""
    with claimed(config, config.output):
        _run(config)


def _run(config: Config) -> None:
    from manifpt.evaluation.figures import triplets_picture
    from manifpt.tracking.server import command_of_pages

    started = time.monotonic()
    chain = Chain(config, config.output)
    artifacts = chain.artifacts(("rgb",), plain=("image", "residual"))
    results = {
        name: chain.attributors(name, artifacts, title="all" if name == TOGETHER else None)
        for name in NAMES
    }
    verdicts = chain.place("attributions")
    flags = ("--input", config.benchmark, "--split", "test", "--output", verdicts, *chain.sources)
    chain.step("attribute", attribute, *flags, "--model", chain.place("attributor", "all"))
    picture = triplets_picture(chain.place("artifacts/rgb"), chain.place("artifacts/image"))
    storage.write_bytes(chain.place("evaluation/rgb/triplets.png"), picture)
    shown = {
        "artifacts": chain.place("evaluation/rgb"),
        "crawl": verdicts,
        "evaluation": chain.place("evaluation/all"),
    }
    pages = {
        title: chain.step(f"report {title}", report, place)["output"]
        for title, place in shown.items()
    }
    seconds = time.monotonic() - started
    print(f"\n{table(results, NAMES)}\n\n{rates_table(chain.rates)}\n")
    print(f"outputs: {config.output}/ (manifolds, artifacts, attributor, evaluation, attributions)")
    print(f"runs:    {command_of_pages()}")
    print(f"{seconds:.0f} s")
    for title, page in pages.items():
        print(f"page of the {title}: {address_of(page)}")
    if config.json_file:
        hidden = {*JobConfig.model_fields, "output"}
        settings = config.model_dump(mode="json", exclude=hidden)
        found = {
            "settings": settings,
            "seconds": seconds,
            "metrics": results,
            "images_per_second": chain.rates,
        }
        storage.write_json(config.json_file, found)


def main(argv: list[str] | None = None) -> int:
    """Run the chain as a command."""
    return job.exit_code("quickstart", lambda: run(parse(Config, __doc__, argv)))
