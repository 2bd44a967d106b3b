r"""Train the zoo's generators on a real set and write a benchmark: samples, splits, card.

    python -m jobs.build_benchmark --name GM-FashionMNIST --licence MIT \
        --real train-images-idx3-ubyte.gz --output benchmarks/gm-fashionmnist

Weights stay in --weights: a recipe found there is not trained again.
"""

import sys
from typing import Any

from pydantic import Field

from manifpt import job
from manifpt.config import JobConfig
from manifpt.errors import ManifptError
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of build_benchmark."""

    real: tuple[str, ...] = Field(
        (), description="real images: IDX files, folders, tars or Parquet, local or s3://"
    )
    output: str = Field(description="folder for the benchmark, local or s3://")
    recipes: str = Field("manifpt/zoo/recipes.yaml", description="YAML file of recipes")
    weights: str = Field("zoo-weights", description="local folder of trained generators")
    name: str = Field("GM-benchmark", description="name on the card")
    licence: str = Field("unknown", description="licence of the reals, for the card")
    seed: int = Field(0, ge=0, description="of the splits")
    image_size: int | None = Field(
        None, ge=8, description="side in pixels, a multiple of 4; the reals' own if not given"
    )
    manifold_images: int = Field(4000, ge=1, description="reals for the manifold")
    train_images: int = Field(300, ge=1, description="images of each class for training")
    validation_images: int = Field(100, ge=1, description="images of each class for validation")
    test_images: int = Field(200, ge=1, description="images of each class for test")
    verify: bool = Field(False, description="only check the files in --output against their card")


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Build, or verify, and return the counts."""
    from manifpt import storage
    from manifpt.zoo.benchmark import build_benchmark, read_recipes, verify

    if config.verify:
        wrong = verify(config.output)
        if wrong:
            raise ManifptError(f"{config.output}: {wrong} differ from the card; build it again")
        return {"output": config.output, "verified": True}
    if not config.real:
        raise ManifptError("--real: give the real images to train generators on")
    counts = {
        "train": config.train_images,
        "validation": config.validation_images,
        "test": config.test_images,
    }
    card = build_benchmark(
        config.name,
        config.real,
        read_recipes(config.recipes),
        config.output,
        config.weights,
        seed=config.seed,
        image_size=config.image_size,
        real_counts={"manifold": config.manifold_images, **counts},
        generated_counts=counts,
        licence=config.licence,
    )
    tracked.document("card.json", card)
    tracked.bytes("samples.png", storage.read_bytes(storage.join(config.output, "samples.png")))
    return {"output": config.output, "bytes": card["bytes"], "sources": list(card["recipes"])}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("build_benchmark", Config, run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
