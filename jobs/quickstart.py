"""The main job, end to end, on the benchmark that ships: one command, a table of accuracies.

    python -m jobs.quickstart --output quickstart

Builds manifolds in rgb and freq, computes artifacts, trains an attributor on each and on the
images themselves, evaluates them on unseen images, and attributes those as if unlabelled.
"""

import sys
import time
from statistics import fmean
from typing import Any

from pydantic import Field

from jobs import attribute, build_manifold, compute_artifacts, evaluate, train_attribution
from manifpt import job, storage
from manifpt.config import ProjectionConfig, parse

NAMES = {"rgb": "rgb artifacts", "freq": "freq artifacts", "image": "images (baseline)"}


class Config(ProjectionConfig):
    """Options of quickstart."""

    output: str = Field("quickstart", description="folder for all outputs, local or s3://")
    benchmark: str = Field("benchmarks/gm-fashionmnist", description="folder of a benchmark")
    sources: tuple[str, ...] = Field(
        ("real", "gan", "vae", "waveletflow", "ddpm"),
        description="which of its classes; all if empty",
    )
    backbone: str = Field("resnet18", description="torchvision classifier, small for two cores")
    stem: str = Field("half", description="see train_attribution")
    epochs: int = Field(6, ge=1, description="see train_attribution")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="of training; several give the spread of the accuracies"
    )


class Chain:
    """Runs jobs in this process, one after the other, and times them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sources = ("--sources", *config.sources) if config.sources else ()
        ridge, count = ("--ridge", str(config.ridge)), config.neighbors
        neighbors = ("--neighbors", str(count)) if count else ()
        self.projection = ("--projector", config.projector, *ridge, *neighbors)
        self.rates: dict[str, float] = {}

    def place(self, *parts: str) -> str:
        """Return a path under the output folder."""
        return storage.join(self.config.output, *parts)

    def step(self, title: str, module: Any, *flags: str) -> dict[str, Any]:
        """Run one job; note images/s where it counts them."""
        print(f"== {title}", file=sys.stderr, flush=True)
        started = time.monotonic()
        name = module.__name__.rsplit(".", 1)[-1]
        if self.config.overwrite:
            flags = (*flags, "--overwrite")
        summary = job.execute(name, module.Config, module.run, list(flags), module.__doc__)
        seconds = time.monotonic() - started
        images = summary.get("rows_in") or summary.get("images")
        rate = f", {images / seconds:.0f} images/s" if images else ""
        self.rates[title] = images / seconds if images else 0.0
        print(f"== {title}: {seconds:.1f} s{rate}", file=sys.stderr, flush=True)
        return summary

    def attributors(self, space: str) -> list[dict[str, Any]]:
        """Build and project one space; train and evaluate once a seed; return their metrics."""
        bench, artifacts = self.config.benchmark, self.place("artifacts", space)
        target = ["--space", "image"]
        if space != "image":
            manifold = self.place("manifolds", space)
            target = ["--manifold", manifold]
            flags = ("--input", bench, "--output", manifold, "--space", space)
            self.step(f"manifold {space}", build_manifold, *flags)
            target += self.projection
        flags = ("--input", bench, "--output", artifacts, *target, *self.sources)
        self.step(f"artifacts {space}", compute_artifacts, *flags)
        return [self.attributor(space, artifacts, seed) for seed in self.config.seeds]

    def attributor(self, space: str, artifacts: str, seed: int) -> dict[str, Any]:
        """Train and evaluate with one seed; the first one's folders bear the space's name alone."""
        name = space if seed == self.config.seeds[0] else f"{space}-seed{seed}"
        model = self.place("attributor", name)
        network = ("--backbone", self.config.backbone, "--stem", self.config.stem)
        length = ("--epochs", str(self.config.epochs), "--seed", str(seed))
        flags = ("--input", artifacts, "--output", model, *network, *length)
        self.step(f"train {name}", train_attribution, *flags)
        flags = ("--input", artifacts, "--output", self.place("evaluation", name))
        return self.step(f"evaluate {name}", evaluate, *flags, "--model", model)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the accuracies as text: with the interval of one seed, or the spread of several."""
    several = len(results["image"]) > 1
    spread = "mean of seeds (least-most)" if several else "accuracy (95 % interval)"
    lines = [f"classifier's input   {spread:<28}balanced   macro F1   chance"]
    for space, seeds in results.items():
        names = ("accuracy", "balanced_accuracy", "macro_f1", "chance")
        mean, balanced, macro, chance = (fmean(m[name] for m in seeds) for name in names)
        low = min(m["accuracy" if several else "accuracy_low"] for m in seeds)
        high = max(m["accuracy" if several else "accuracy_high"] for m in seeds)
        accuracy = f"{mean:.3f} ({low:.3f}-{high:.3f})"
        line = f"{NAMES[space]:<20} {accuracy:<28}{balanced:.3f}      {macro:.3f}      {chance:.3f}"
        lines.append(line)
    return "\n".join(lines)


def rates_table(rates: dict[str, float]) -> str:
    """Return the images/s of each step as text."""
    lines = [f"{title:<20} {rate:7.0f}" for title, rate in rates.items() if rate]
    return "\n".join(["images/s of each step, its start-up included", *lines])


def run(config: Config) -> None:
    """Run the chain; print the table and where everything is."""
    from manifpt.evaluation.pictures import triplets_picture

    started = time.monotonic()
    chain = Chain(config)
    results = {space: chain.attributors(space) for space in NAMES}
    verdicts = chain.place("attributions")
    flags = ("--input", config.benchmark, "--split", "test", "--output", verdicts, *chain.sources)
    chain.step("attribute", attribute, *flags, "--model", chain.place("attributor", "rgb"))
    for space in ("rgb", "freq") if config.projector == "nearest" else ():
        picture = triplets_picture(chain.place("artifacts", space), chain.place("manifolds", space))
        storage.write_bytes(chain.place("evaluation", space, "triplets.png"), picture)
    seconds = time.monotonic() - started
    print(f"\n{table(results)}\n\n{rates_table(chain.rates)}\n")
    print(f"outputs: {config.output}/ (manifolds, artifacts, attributor, evaluation, attributions)")
    print("runs:    .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")
    print(f"{seconds:.0f} s")
    if config.json_file:
        names = {"sources", "projector", "backbone", "stem", "epochs", "seeds"}
        settings = config.model_dump(include=names)
        found = {"settings": settings, "seconds": seconds, "metrics": results}
        found["images_per_second"] = chain.rates
        storage.write_json(config.json_file, found)


def main(argv: list[str] | None = None) -> int:
    """Run the chain as a command."""
    return job.exit_code("quickstart", lambda: run(parse(Config, __doc__, argv)))


if __name__ == "__main__":
    sys.exit(main())
