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

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.input_options import ResizingFilter
from manifpt.cli.job_options import JobConfig
from manifpt.cli.space_options import ImageSize
from manifpt.cli.training_options import BatchSize, LearningRate, Stem, WeightDecay, Workers
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of pretrain_embedding."""

    input: tuple[str, ...] = Field(
        min_length=1, description="real images: folders, tars or Parquet, or a benchmark"
    )
    output: str = Field(description="folder for the encoder, local, s3://, gs:// or az://")
    image_size: ImageSize = None
    filter: ResizingFilter = "bicubic"
    backbone: str = Field(
        "resnet50", description="network of the encoder: a torchvision classifier"
    )
    stem: Stem = "auto"
    epochs: int = Field(100, ge=1, description="passes over the reals")
    batch_size: BatchSize = 256
    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-4
    projector_width: int = Field(
        2048,
        ge=2,
        description="number of dimensions in which the loss compares views; 8192 in the paper",
    )
    seed: int = Field(0, ge=0, description="seed of weights, order and views")
    num_workers: Workers = None


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
