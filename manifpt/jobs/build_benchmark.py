r"""Train the zoo's generators on a real set and write a benchmark: samples, splits, card.

    manifpt build_benchmark --name GM-FashionMNIST --licence MIT \
        --real train-images-idx3-ubyte.gz --output benchmarks/gm-fashionmnist

The generators' weights are kept in --weights: a recipe with weights there is not trained again.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
from manifpt.errors import ManifptError
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.zoo.build_benchmark import BenchmarkPlan


class Config(JobConfig):
    """Options of build_benchmark."""

    real: tuple[str, ...] = Field(
        (),
        description="real images: IDX files, folders, tars or Parquet, local, s3://, gs:// or "
        "az://; or torchvision:FashionMNIST, MNIST, CIFAR10, CelebA",
    )
    output: str = Field(description="folder for the benchmark, local, s3://, gs:// or az://")
    generated: tuple[str, ...] = Field(
        (), description="NAME=URI of images from other generators, to be added as classes"
    )
    recipes: str = Field(
        "fashion", description="YAML file of recipes, or the name of one in manifpt/zoo/recipes"
    )
    weights: str = Field(
        "zoo-weights", description="local folder for the weights of trained generators"
    )
    name: str = Field("GM-benchmark", description="name of the benchmark on its card")
    licence: str = Field("unknown", description="licence of the reals, for the card")
    seed: int = Field(0, ge=0, description="seed of the splits")
    image_size: int | None = Field(
        None,
        ge=8,
        description="side of images in pixels, a multiple of 4; if not given, that of the reals",
    )
    manifold_images: int = Field(4000, ge=1, description="reals for the manifold")
    train_images: int = Field(300, ge=1, description="images of each class for training")
    validation_images: int = Field(100, ge=1, description="images of each class for validation")
    test_images: int = Field(200, ge=1, description="images of each class for test")
    num_cpus: int = Field(1, ge=1, description="CPUs and threads for each training")
    accuracies: str | None = Field(
        None,
        description="only add the accuracies in this file of `quickstart --json` to the card in "
        "--output",
    )
    verify: bool = Field(False, description="only check the files in --output against their card")


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Build, or verify, and return the counts."""
    from manifpt import storage
    from manifpt.zoo.benchmark_card import add_accuracies, files_off_card, grid
    from manifpt.zoo.build_benchmark import PREVIEW, GeneratedSamples, build_benchmark

    if config.verify:
        wrong = files_off_card(config.output)
        if wrong:
            raise ManifptError(f"{config.output}: {wrong} differ from the card; build it again")
        return {"output": config.output, "verified": True}
    if config.accuracies:
        add_accuracies(config.output, config.accuracies)
        return {"output": config.output, "accuracies": config.accuracies}
    if not config.real:
        raise ManifptError("--real: give the real images to train generators on")

    def report(name: str, made: GeneratedSamples) -> None:
        quality = " ".join(f"{key} {value}" for key, value in made.facts["quality"].items())
        print(f"{name}: {quality}", file=sys.stderr, flush=True)
        tracked.bytes(f"{name}.png", grid({name: made.samples[:PREVIEW]}))
        tracked.metrics({f"{name}/{k}": v for k, v in made.facts["quality"].items()})
        for row in made.curve[:: max(1, len(made.curve) // 20)]:
            values = {f"{name}/{k}": v for k, v in row.items() if k != "step"}
            tracked.metrics(values, int(row["step"]))

    card = build_benchmark(
        plan_of(config),
        config.output,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus_per_actor or 0.0,
        terms=config.terms,
        report=report,
    )
    tracked.document("card.json", card)
    tracked.bytes("samples.png", storage.read_bytes(storage.join(config.output, "samples.png")))
    counts = {"bytes": card["bytes"], "sources": list(card["recipes"])}
    return {"output": config.output, **counts, "refused": list(card["refused"])}


def plan_of(config: Config) -> "BenchmarkPlan":
    """Return the plan of the benchmark asked for."""
    from manifpt.zoo.build_benchmark import BenchmarkPlan
    from manifpt.zoo.models import read_recipes

    counts = {
        "train": config.train_images,
        "validation": config.validation_images,
        "test": config.test_images,
    }
    return BenchmarkPlan(
        config.name,
        config.real,
        read_recipes(config.recipes),
        config.weights,
        config.generated,
        config.seed,
        config.image_size,
        {"manifold": config.manifold_images, **counts},
        counts,
        config.licence,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("build_benchmark", Config, run, __doc__, argv)
