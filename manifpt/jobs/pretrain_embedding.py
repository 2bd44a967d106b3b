r"""Train an encoder on real images without labels (Barlow Twins), for a space of its own.

    manifpt pretrain_embedding --input real=s3://bucket/reals --output s3://bucket/encoder
    manifpt pretrain_embedding --input benchmarks/gm-fashionmnist --output encoder \
        --backbone resnet18 --stem standard --image-size 28 --epochs 10 --batch-size 64 \
        --projector-width 512

The second command takes minutes on 2 cores; it uses small batches, which give more steps with few
reals. If the input is a benchmark, the split `manifold` of its reals is used. After a stop, the
same command continues after the last complete epoch.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import JobConfig
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of pretrain_embedding."""

    input: tuple[str, ...] = Field(
        min_length=1, description="real images: folders, tars or Parquet, or a benchmark"
    )
    output: str = Field(description="folder for the encoder, local, s3://, gs:// or az://")
    image_size: int | None = Field(
        None,
        ge=4,
        description="side of images in pixels; if not given, that of the images, at most 64",
    )
    filter: Literal["bicubic", "lanczos", "bilinear"] = Field(
        "bicubic", description="antialiased filter that resizes images of another size"
    )
    backbone: str = Field(
        "resnet50", description="network of the encoder: a torchvision classifier"
    )
    stem: Literal["auto", "full", "half", "standard"] = Field(
        "auto",
        description="resolution that the stem of a ResNet keeps: full, half, or a quarter "
        "(standard); auto is full up to 48 pixels, half up to 112, else standard",
    )
    epochs: int = Field(100, ge=1, description="passes over the reals")
    batch_size: int = Field(256, ge=2, description="images per step, over all workers")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")
    projector_width: int = Field(
        2048,
        ge=2,
        description="number of dimensions in which the loss compares views; 8192 in the paper",
    )
    seed: int = Field(0, ge=0, description="seed of weights, order and views")
    num_workers: int | None = Field(
        None,
        ge=1,
        description="number of Ray Train workers; if not given, one per GPU, or without GPUs "
        "one per CPU, less one",
    )


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Train and return the counts and the last losses."""
    from manifpt.nets.training import TrainingControl
    from manifpt.spaces.pretrain import PretrainingRecipe, pretrain_encoder, print_epoch

    def report(row: dict[str, float], epoch: int) -> None:
        print_epoch(row, epoch)
        tracked.metrics(row, step=epoch)

    manifest = pretrain_encoder(
        config.input,
        config.output,
        PretrainingRecipe(
            **{name: getattr(config, name) for name in PretrainingRecipe.__dataclass_fields__}
        ),
        image_size=config.image_size,
        filter_name=config.filter,
        control=TrainingControl(config.demand, config.terms, config.num_workers, report),
    )
    tracked.inputs(manifest["inputs"], "pretraining")
    tracked.document("manifest.json", manifest)
    counts = {
        name: manifest[name]
        for name in ("rows_in", "ok", "quarantined", "by_error", "network_size", "dimension")
    }
    return {"output": config.output, **counts, **manifest["history"][-1]}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("pretrain_embedding", Config, run, __doc__, argv)
