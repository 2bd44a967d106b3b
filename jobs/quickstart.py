"""The main job, end to end, on the benchmark that ships: one command, a table of accuracies.

    python -m jobs.quickstart --output quickstart

Trains a small self-supervised encoder on the benchmark's reals, builds manifolds in rgb, freq and
its space in one pass, computes the artifacts of unseen images in all of them in another, trains an
attributor on each, on the images themselves and on all together, evaluates them on unseen images,
and attributes those as if unlabelled.
"""

import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from jobs import (
    attribute,
    build_manifold,
    compute_artifacts,
    evaluate,
    pretrain_embedding,
    train_attribution,
)
from manifpt import job, storage
from manifpt.config import JobConfig, ProjectionConfig, parse

VECTORS = ("sl", "ssl")
TOGETHER = "image+rgb+freq+ssl"
NAMES = {
    "image": "images (baseline)",
    "rgb": "rgb artifacts",
    "freq": "freq artifacts",
    "ssl": "ssl artifacts",
    TOGETHER: "all together",
}


class ChainConfig(ProjectionConfig):
    """Options of jobs that run the whole chain."""

    benchmark: str = Field("benchmarks/gm-fashionmnist", description="folder of a benchmark")
    sources: tuple[str, ...] = Field(
        ("real", "gan", "vae", "waveletflow", "ddpm"),
        description="which of its classes; all if empty",
    )
    projector: Literal["nearest", "mean", "tangent", "riemannian"] = Field(
        "tangent", description="see compute_artifacts"
    )
    backbone: str = Field("resnet18", description="torchvision classifier, small for two cores")
    stem: str = Field("half", description="see train_attribution")
    epochs: int = Field(6, ge=1, description="of attributors on maps, see train_attribution")
    vector_epochs: int = Field(40, ge=1, description="of attributors on vectors, which are quick")
    encoder_epochs: int = Field(5, ge=1, description="of the encoder, see pretrain_embedding")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="of training; several give the spread of the accuracies"
    )


class Config(ChainConfig):
    """Options of quickstart."""

    output: str = Field("quickstart", description="folder for all outputs, local or s3://")


class Chain:
    """Runs jobs in this process, one after the other, and times them."""

    def __init__(self, config: ChainConfig, output: str) -> None:
        self.config, self.output = config, output
        self.sources = ("--sources", *config.sources) if config.sources else ()
        ridge, count = ("--ridge", str(config.ridge)), config.neighbors
        neighbors = ("--neighbors", str(count)) if count else ()
        self.projection = ("--projector", config.projector, *ridge, *neighbors)
        self.rates: dict[str, float] = {}

    def place(self, *parts: str) -> str:
        """Return a path under the output folder."""
        return storage.join(self.output, *parts)

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

    def encoder(self) -> tuple[str, ...]:
        """Train an encoder on the reals; return the option that names it."""
        folder = self.place("encoder")
        small = ("--backbone", "resnet18", "--stem", "standard", "--projector-width", "512")
        flags = ("--input", self.config.benchmark, "--output", folder, *small)
        length = ("--epochs", str(self.config.encoder_epochs), "--batch-size", "64")
        self.step("encoder", pretrain_embedding, *flags, *length)
        return "--ssl-weights", folder

    def artifacts(self, spaces: Sequence[str], *options: str, metric: str = "euclidean") -> str:
        """Build manifolds of spaces and compute artifacts, and images, in one pass each.

        ``options`` are build_manifold's. Returns the folder of the artifacts of all spaces.
        """
        beside = "" if metric == "euclidean" else f"-{metric}"
        manifolds, artifacts = self.place(f"manifolds{beside}"), self.place(f"artifacts{beside}")
        bench, names = self.config.benchmark, "+".join(spaces)
        flags = ("--input", bench, "--output", manifolds, "--space", names, "--metric", metric)
        self.step(f"manifolds {names}{beside}", build_manifold, *flags, *options)
        target = ("--manifold", manifolds, "--space", "image", *self.projection)
        flags = ("--input", bench, "--output", artifacts, *target, *self.sources)
        self.step(f"artifacts {names}{beside}", compute_artifacts, *flags)
        return artifacts

    def attributors(
        self,
        name: str,
        artifacts: str,
        fusion: str = "late",
        title: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """Train and evaluate once a seed on the spaces of a name such as ``rgb+freq``.

        Late fusion takes the attributors of the single spaces, which must be there.
        """
        inputs = [storage.join(artifacts, space) for space in name.split("+")]
        found = []
        for seed in seeds or self.config.seeds:
            beside = "" if seed == self.config.seeds[0] else f"-seed{seed}"
            where = (title or name) + beside
            model = self.place("attributor", where)
            network = ("--backbone", self.config.backbone, "--stem", self.config.stem)
            epochs = self.config.vector_epochs if name in VECTORS else self.config.epochs
            length = ("--epochs", str(epochs), "--seed", str(seed))
            if fusion == "late" and len(inputs) > 1:
                members = [self.place("attributor", space + beside) for space in name.split("+")]
                self.step(f"fuse {where}", train_attribution, "--output", model, "--fuse", *members)
            else:
                flags = ("--input", *inputs, "--output", model, "--fusion", fusion)
                self.step(f"train {where}", train_attribution, *flags, *network, *length)
            flags = ("--input", *inputs, "--output", self.place("evaluation", where))
            found.append(self.step(f"evaluate {where}", evaluate, *flags, "--model", model))
        return found


def table(results: dict[str, list[dict[str, Any]]], names: dict[str, str]) -> str:
    """Return the accuracies as text: with the interval of one seed, or the spread of several."""
    several = len(next(iter(results.values()))) > 1
    spread = "mean of seeds (least-most)" if several else "accuracy (95 % interval)"
    head = f"{'classifier works on':<32}{spread:<28}balanced   macro F1   chance"
    return "\n".join([head, *(row(names.get(n, n), seeds) for n, seeds in results.items())])


def row(title: str, seeds: list[dict[str, Any]]) -> str:
    """Return one line of the table."""
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "chance")
    mean, balanced, macro, chance = (fmean(m[key] for m in seeds) for key in keys)
    low = min(m["accuracy" if len(seeds) > 1 else "accuracy_low"] for m in seeds)
    high = max(m["accuracy" if len(seeds) > 1 else "accuracy_high"] for m in seeds)
    accuracy = f"{mean:.3f} ({low:.3f}-{high:.3f})"
    return f"{title:<32}{accuracy:<28}{balanced:.3f}      {macro:.3f}      {chance:.3f}"


def rates_table(rates: dict[str, float]) -> str:
    """Return the images/s of each step as text."""
    lines = [f"{title:<32}{rate:7.0f}" for title, rate in rates.items() if rate]
    return "\n".join(["images/s of each step, its start-up included", *lines])


def run(config: Config) -> None:
    """Run the chain; print the table and where everything is."""
    from manifpt.evaluation.pictures import triplets_picture

    started = time.monotonic()
    chain = Chain(config, config.output)
    artifacts = chain.artifacts(("rgb", "freq", "ssl"), *chain.encoder())
    results = {
        name: chain.attributors(name, artifacts, title="all" if name == TOGETHER else None)
        for name in NAMES
    }
    verdicts = chain.place("attributions")
    flags = ("--input", config.benchmark, "--split", "test", "--output", verdicts, *chain.sources)
    chain.step("attribute", attribute, *flags, "--model", chain.place("attributor", "all"))
    for space in ("rgb", "freq"):
        picture = triplets_picture(chain.place("artifacts", space), chain.place("artifacts/image"))
        storage.write_bytes(chain.place("evaluation", space, "triplets.png"), picture)
    seconds = time.monotonic() - started
    print(f"\n{table(results, NAMES)}\n\n{rates_table(chain.rates)}\n")
    print(f"outputs: {config.output}/ (manifolds, artifacts, attributor, evaluation, attributions)")
    print("runs:    .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")
    print(f"{seconds:.0f} s")
    if config.json_file:
        hidden = {*JobConfig.model_fields, "output"}
        settings = config.model_dump(mode="json", exclude=hidden)
        found = {"settings": settings, "seconds": seconds, "metrics": results}
        found["images_per_second"] = chain.rates
        storage.write_json(config.json_file, found)


def main(argv: list[str] | None = None) -> int:
    """Run the chain as a command."""
    return job.exit_code("quickstart", lambda: run(parse(Config, __doc__, argv)))


if __name__ == "__main__":
    sys.exit(main())
