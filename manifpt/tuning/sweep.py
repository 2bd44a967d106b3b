r"""Find the best space, metric, projection and training for a benchmark, within a budget.

    manifpt sweep --config tuning/quick.yaml
    manifpt sweep --config tuning/full.yaml --input s3://bucket/GM-mine \
        --output s3://bucket/sweep --trials 60 --hours 8

The file names the choices (see manifpt/tuning/search_space.py), and may hold any of these options.
The first trial uses the defaults. The best trial has the highest accuracy on validation images.
Both are evaluated on test images, which no trial has seen. The same command continues an
interrupted sweep: it repeats no trial that has ended, and embeds nothing twice.
"""

import sys
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import IN_FILE, Alias, JobConfig, ModelName
from manifpt.cli.options import SplitOptions
from manifpt.errors import ManifptError
from manifpt.tracking import Run


class Config(SplitOptions, JobConfig):
    """Options of sweep."""

    input: tuple[str, ...] = Field(
        ("benchmarks/gm-fashionmnist",),
        description="images by source, or the folder of a benchmark",
    )
    reals: tuple[str, ...] = Field(
        (), description="real images for manifolds; if not given, those of the benchmark"
    )
    sources: tuple[str, ...] = Field((), description="classes of a benchmark to use; all if empty")
    output: str = Field("sweep", description="folder for all outputs, local, s3://, gs:// or az://")
    sampler: Literal["optuna", "random", "grid", "pbt"] = Field(
        "optuna",
        description="method that proposes trials; pbt is population based training, a "
        "population that exchanges weights",
    )
    trials: int = Field(
        20, ge=1, description="number of trials, over all starts; grid runs all that there are"
    )
    hours: float | None = Field(None, gt=0, description="stop after this number of hours")
    target_metric: float | None = Field(
        None, gt=0, le=1, description="stop once a trial has ended with this accuracy"
    )
    objectives: tuple[Literal["accuracy", "images_per_second"], ...] = Field(
        ("accuracy",),
        min_length=1,
        description="quantities to maximise; with both, the result is a Pareto table, and no "
        "trial is stopped early",
    )
    seeds: tuple[int, ...] = Field(
        (), description="train each trial with each of these seeds, and take the mean"
    )
    early_stopping: bool = Field(
        True, description="stop trials that are worse than most (ASHA), after an epoch or a seed"
    )
    grace: int = Field(2, ge=1, description="number of epochs before a trial may be stopped")
    reduction: int = Field(3, ge=2, description="of this number of trials, one continues")
    max_concurrent_trials: int | None = Field(
        None,
        ge=1,
        description="number of trials at once; if not given, as many as fit on the cluster",
    )
    num_workers: int | None = Field(None, ge=1, description="number of Ray Train workers per trial")
    seed: int = Field(0, ge=0, description="seed of the sampler")
    register_as: ModelName | None = Field(
        None,
        alias="register",
        description="name under which the best attributor is put in MLflow's registry",
    )
    alias: Alias = Field("champion", description="alias of the registered version")
    fixed: dict[str, object] = Field(default_factory=dict, json_schema_extra=IN_FILE)
    search: dict[str, object] = Field(default_factory=dict, json_schema_extra=IN_FILE)
    defaults: dict[str, object] = Field(default_factory=dict, json_schema_extra=IN_FILE)


def rungs(config: Config, epochs: int) -> tuple[int, ...]:
    """Return the epochs at which a trial may be stopped, or a population exchanges weights."""
    if config.sampler == "pbt":
        return tuple(range(config.grace, epochs, config.grace))
    if not config.early_stopping or len(config.objectives) > 1 or config.sampler == "grid":
        return ()
    found, epoch = [], config.grace
    while epoch < epochs:
        found.append(epoch)
        epoch *= config.reduction
    return tuple(found)


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Run the study; evaluate the best trial and the defaults, and print the leaderboard."""
    from manifpt import storage
    from manifpt.images.places import input_places
    from manifpt.outputs import claims
    from manifpt.registry.register import log_model, register
    from manifpt.tuning.cache import sweep_images
    from manifpt.tuning.conclusion import conclude
    from manifpt.tuning.proposals import SweepPlan
    from manifpt.tuning.search_space import SearchSpace
    from manifpt.tuning.study import capacity_of_trials, run_study
    from manifpt.tuning.trial import Sweep

    space = SearchSpace.of(config.fixed, config.search, config.defaults)
    if config.sampler == "pbt" and (len(config.seeds) > 1 or len(config.objectives) > 1):
        raise ManifptError("--sampler pbt: takes one seed and one objective; choose optuna")
    if config.register_as is not None:
        tracked.require()
    reals = config.reals or config.input
    images = sweep_images(reals, config.input, config.sources, config.split_by)
    count, share, fit = capacity_of_trials(config.num_workers, config.max_concurrent_trials)
    print(f"trials: {fit} at once, {count} workers each, {share}", file=sys.stderr, flush=True)
    output = storage.absolute(config.output)
    made_of = [images.content, config.seeds, config.fixed, config.search]
    read = [*input_places(config.input, output), *input_places(config.reals, output, "--reals")]
    with claims.claim(output, "sweep", storage.digest(made_of), apart=read, terms=config.terms):
        sweep = Sweep(
            space,
            output,
            images.content,
            share,
            count,
            seeds=config.seeds,
            rungs=rungs(config, space.most_epochs),
            rate_of=config.input if "images_per_second" in config.objectives else (),
            population=config.sampler == "pbt",
        )
        plan = SweepPlan(
            sampler=config.sampler,
            trials=config.trials,
            hours=config.hours,
            target=config.target_metric,
            objectives=config.objectives,
            reduction=config.reduction,
            concurrent=fit,
            seed=config.seed,
        )
        results = run_study(sweep, plan, images, tracked).results()
        summary = conclude(sweep, plan, results, tracked)
        if config.register_as is None:
            return summary
        best = str(summary["attributor"])
        logged = log_model(best, tracked.require(), manifold="auto", evaluation=f"{best}-test")
        return {**summary, **register(logged, config.register_as, config.alias)}


def main(argv: list[str] | None = None) -> int:
    """Run the sweep as a command."""
    return job.main("sweep", Config, run, __doc__, argv)
