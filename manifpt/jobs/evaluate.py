"""Measure an attributor on images that neither it nor its manifold has seen.

    manifpt evaluate --input ARTIFACTS --model MODEL --output EVALUATION
    manifpt evaluate --input a=DIR b=DIR real=DIR --model MODEL --output EVALUATION

If the input is artifacts or a benchmark, its split `test` is evaluated. All images of other inputs
are evaluated, except those whose pixels were in the manifold, in training or in validation. Images
that look like an image of training or validation are left out, too; a second accuracy includes
them, and --keep-near counts them everywhere. Images of sources that the attributor does not know
measure how well it recognises unknown sources.

    manifpt evaluate --robustness --input IMAGES --model MODEL --output CURVES

Measures accuracy against JPEG quality, blur, resizing, cropping and noise. The input must be
images, not artifacts.

--groups also measures how often `manifpt attribute --group-by` names the source of a group of test
images correctly, and how often it calls the group unknown, by the size of the group.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.attributor_options import AttributorUri, DecisionOptions, MovedManifolds
from manifpt.cli.job_options import DryRunOptions, JobConfig
from manifpt.cli.option_types import Degradations
from manifpt.errors import ManifptError
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.evaluation.evaluation_format import EvaluationSummary


class Config(DecisionOptions, DryRunOptions, JobConfig):
    """Options of evaluate."""

    input: tuple[str, ...] = Field(
        min_length=1, description="a folder of compute_artifacts, or images by source"
    )
    model: AttributorUri
    output: str = Field(
        description="folder for metrics, scores and pictures, local, s3://, gs:// or az://"
    )
    sources: tuple[str, ...] = Field(
        (), description="use only these sources of --input, known or unknown"
    )
    keep_near: bool = Field(
        False,
        description="also count images that look like a training image (by perceptual hashes)",
    )
    groups: bool = Field(False, description="also measure groups of test images, as a table")
    manifold: MovedManifolds = ()
    other_manifold: bool = Field(
        False,
        description="accept artifacts of another manifold than in training, such as that of "
        "another data set's reals; the metrics record both",
    )
    robustness: bool = Field(
        False, description="measure accuracy against degradations of the images, as curves"
    )
    levels: Degradations = Field(
        (),
        description="with --robustness: degradations to try, as jpeg:75 blur:1 resize:0.5 "
        "crop:0.7 noise:0.1; if not given, jpeg 95 to 50, blur 1 to 5, resize 0.5 "
        "to 2, crop 0.9 to 0.5, noise 0.05 to 0.25",
    )


def evaluate_degraded(config: Config, tracked: Run) -> Mapping[str, object]:
    """Evaluate on degraded images and return the accuracies."""
    from manifpt import storage
    from manifpt.evaluation.robustness import RESULT, evaluate_robustness

    result = evaluate_robustness(
        config.input,
        config.model,
        config.output,
        levels=config.levels,
        manifolds=config.manifold,
        keep_near=config.keep_near,
        demand=config.demand,
        terms=config.terms,
    )
    for name in (RESULT, "robustness.csv", "robustness.png"):
        tracked.bytes(name, storage.read_bytes(storage.join(config.output, name)))
    accuracies = {
        "accuracy_" + level["degradation"].replace(":", "_"): level["accuracy"]
        for level in result["levels"]
    }
    common = {name: result[name] for name in ("rows_in", "quarantined", "images", "left_out")}
    return {"output": config.output, **common, "chance": result["chance"], **accuracies}


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Evaluate and return the metrics."""
    if config.robustness:
        return evaluate_degraded(config, tracked)
    if config.levels:
        raise ManifptError("--levels: are those of --robustness; give that, too")
    from manifpt import storage
    from manifpt.evaluation.evaluate import EvaluationSettings, evaluate, near_line

    settings = EvaluationSettings(
        config.sources, config.rule, config.keep_near, config.other_manifold
    )
    metrics = evaluate(
        config.input,
        config.model,
        config.output,
        settings,
        manifolds=config.manifold,
        demand=config.demand,
        terms=config.terms,
    )
    summary: EvaluationSummary = {"output": config.output, **metrics}
    print(near_line(metrics["near_training"]), file=sys.stderr, flush=True)
    if config.groups:
        from manifpt.evaluation.groups import measure_groups, table

        summary["groups"] = measure_groups(config.output, config.rule)
        print(table(summary["groups"]), file=sys.stderr, flush=True)
    for name in ("metrics.json", "confusion.csv", "confusion.png", "reliability.png"):
        tracked.bytes(name, storage.read_bytes(storage.join(config.output, name)))
    return summary


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("evaluate", Config, run, __doc__, argv)
