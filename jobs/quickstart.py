"""The main job, end to end, on the benchmark that ships: one command, a table of accuracies.

    python -m jobs.quickstart --output quickstart

Builds manifolds in rgb and freq, computes artifacts, trains an attributor on each and on the
images themselves, evaluates them on unseen images, and attributes those as if unlabelled.
"""

import sys
import time
from typing import Any

from pydantic import Field

from jobs import attribute, build_manifold, compute_artifacts, evaluate, train_attribution
from manifpt import job, storage
from manifpt.config import JobConfig, parse

SPACES = ("rgb", "freq", "image")


class Config(JobConfig):
    """Options of quickstart."""

    output: str = Field("quickstart", description="folder for all outputs, local or s3://")
    benchmark: str = Field("benchmarks/gm-fashionmnist", description="folder of a benchmark")
    backbone: str = Field("resnet18", description="torchvision classifier, small for two cores")
    stem: str = Field("half", description="see train_attribution")
    epochs: int = Field(6, ge=1, description="see train_attribution")
    seed: int = Field(0, ge=0, description="see train_attribution")


class Chain:
    """Runs jobs in this process, one after the other, and times them."""

    def __init__(self, config: Config) -> None:
        self.config = config
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

    def attributor(self, space: str) -> dict[str, Any]:
        """Build, project, train and evaluate one space; return its metrics."""
        bench = self.config.benchmark
        artifacts, model = self.place("artifacts", space), self.place("attributor", space)
        target = ["--space", "image"]
        if space != "image":
            manifold = self.place("manifolds", space)
            target = ["--manifold", manifold]
            flags = ("--input", bench, "--output", manifold, "--space", space)
            self.step(f"manifold {space}", build_manifold, *flags)
        flags = ("--input", bench, "--output", artifacts, *target)
        self.step(f"artifacts {space}", compute_artifacts, *flags)
        network = ("--backbone", self.config.backbone, "--stem", self.config.stem)
        length = ("--epochs", str(self.config.epochs), "--seed", str(self.config.seed))
        flags = ("--input", artifacts, "--output", model, *network, *length)
        self.step(f"train {space}", train_attribution, *flags)
        flags = ("--input", artifacts, "--output", self.place("evaluation", space))
        return self.step(f"evaluate {space}", evaluate, *flags, "--model", model)


def table(results: dict[str, dict[str, Any]], rates: dict[str, float]) -> str:
    """Return the table of accuracies, and of images/s of each step, as text."""
    lines = ["classifier's input   accuracy (95 % interval)   balanced   macro F1   chance"]
    names = {"rgb": "rgb artifacts", "freq": "freq artifacts", "image": "images (baseline)"}
    for space, m in results.items():
        spread = f"{m['accuracy']:.3f} ({m['accuracy_low']:.3f}-{m['accuracy_high']:.3f})"
        tail = f"{m['balanced_accuracy']:.3f}      {m['macro_f1']:.3f}      {m['chance']:.3f}"
        lines.append(f"{names[space]:<20} {spread:<26} {tail}")
    lines += ["", "images/s of each step, its start-up included"]
    lines += [f"{title:<20} {rate:7.0f}" for title, rate in rates.items() if rate]
    return "\n".join(lines)


def run(config: Config) -> None:
    """Run the chain; print the table and where everything is."""
    from manifpt.evaluation.pictures import triplets_picture

    started = time.monotonic()
    chain = Chain(config)
    results = {space: chain.attributor(space) for space in SPACES}
    verdicts = chain.place("attributions")
    flags = ("--input", config.benchmark, "--split", "test", "--output", verdicts)
    chain.step("attribute", attribute, *flags, "--model", chain.place("attributor", "rgb"))
    for space in ("rgb", "freq"):
        picture = triplets_picture(chain.place("artifacts", space), chain.place("manifolds", space))
        storage.write_bytes(chain.place("evaluation", space, "triplets.png"), picture)
    seconds = time.monotonic() - started
    print(f"\n{table(results, chain.rates)}\n")
    print(f"outputs: {config.output}/ (manifolds, artifacts, attributor, evaluation, attributions)")
    print("runs:    .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")
    print(f"{seconds:.0f} s")
    if config.json_file:
        found = {"seconds": seconds, "metrics": results, "images_per_second": chain.rates}
        storage.write_json(config.json_file, found)


def main(argv: list[str] | None = None) -> int:
    """Run the chain as a command."""
    return job.exit_code("quickstart", lambda: run(parse(Config, __doc__, argv)))


if __name__ == "__main__":
    sys.exit(main())
