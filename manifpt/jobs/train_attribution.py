"""Train a network to tell generators apart by the artifacts of their images.

    manifpt train_attribution --input a=DIR b=DIR real=DIR --output MODEL
    manifpt train_attribution --input ARTIFACTS --output MODEL
    manifpt train_attribution --input a=DIR b=DIR real=DIR --manifold M --output MODEL
    manifpt train_attribution --input A-RGB A-SL --fusion early --output MODEL
    manifpt train_attribution --input a=DIR b=DIR real=DIR --space image --output MODEL

Images are audited before the training, those of artifacts by a sample that compute_artifacts keeps:
if a property of their files, such as the format, reveals the class, the job ends with exit code 3,
unless --accept-biased is given (see `manifpt audit`).
The first command makes the usual attributor. It has heads on pixels, on their high-pass residuals,
on local statistics, and on the part of an image that a denoiser, trained on reals only, removes.
Validation images decide the weight of each head. The heads also learn from degraded copies, unless
--degrade is none. The last command trains on the images alone, which is the baseline for every
comparison. Artifacts of the same images in several spaces can be used together, by one training or
by `manifpt fuse`. `manifpt extend` adds sources to a trained attributor. --register NAME puts the
attributor in MLflow's model registry; `manifpt register` also puts an evaluation on its card.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.input_options import LabelOptions, SplitOptions
from manifpt.cli.job_options import DryRunOptions, ProjectionConfig
from manifpt.cli.option_types import NO_COPIES, OptionalRanges
from manifpt.cli.space_options import PlainOptions
from manifpt.cli.training_options import AuditOptions, TrainingOptions, Workers
from manifpt.errors import ManifptError
from manifpt.jobs.new_attributor import NewAttributorOptions, check_registry, finish
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.attribution.model.attributor_format import AttributorManifest
    from manifpt.attribution.model.train import StoppedTraining
    from manifpt.images.degraded_copies import Augmentation

# Options that the usual attributor fixes.
DECIDED = ("highpass", "projector", "neighbors", "ridge")


class Config(
    AuditOptions,
    NewAttributorOptions,
    PlainOptions,
    DryRunOptions,
    TrainingOptions,
    LabelOptions,
    SplitOptions,
    ProjectionConfig,
):
    """Options of train_attribution."""

    input: tuple[str, ...] = Field(description="folders of compute_artifacts, or images by source")
    sources: tuple[str, ...] = Field(
        (), description="use only these sources of --input; the others stay unknown"
    )
    manifold: tuple[str, ...] = Field(
        (), description="manifolds on which images given as --input are projected"
    )
    degrade: OptionalRanges = Field(
        None,
        description="for images: add a degraded copy of each training and validation image, by "
        "one of these kinds: jpeg resize blur crop noise, each alone or with a "
        "range as jpeg:50-95; none adds no copies; if not given, all five kinds, "
        "but none with --space or --manifold",
    )
    denoiser_steps: int = Field(
        3000, ge=1, description="without --space and --manifold: steps of the denoiser's training"
    )
    num_workers: Workers = None


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Train and return the result on the validation split."""
    check_registry(config, tracked)
    return finish(config, trained(config, tracked), tracked)


def trained(config: Config, tracked: Run) -> "AttributorManifest | StoppedTraining":
    """Train the usual attributor, or that of the spaces asked for; return its manifest."""
    from manifpt.artifacts.compute import ArtifactRecipe
    from manifpt.attribution.model.train import AttributorControl, print_epoch, train_attributor
    from manifpt.attribution.model.usual import train_usual

    def report(row: dict[str, float], epoch: int) -> None:
        print_epoch(row, epoch)
        tracked.metrics(row, step=epoch)

    control = AttributorControl(
        config.demand, config.terms, config.num_workers, report, audit=config.audit
    )
    usual = is_usual(config)
    recipe = ArtifactRecipe(
        manifolds=config.manifold,
        plain=config.plain,
        image_size=config.image_size,
        tiles=config.tiles,
        projection=config.projection,
        split_by=config.split_by,
        labels=config.labels,
        augmentation=augmentation_of(config, usual=usual),
    )
    if not usual:
        return train_attributor(
            config.input,
            config.output,
            config.training,
            recipe=recipe,
            sources=config.sources,
            control=control,
        )
    check_free(config)
    return train_usual(
        config.input,
        config.output,
        config.training,
        recipe=recipe,
        sources=config.sources,
        denoiser_steps=config.denoiser_steps,
        control=control,
    )


def is_usual(config: Config) -> bool:
    """Tell whether images are given without an option for their spaces."""
    from manifpt.artifacts.branches import are_artifacts

    return not (config.manifold or config.plain or are_artifacts(config.input))


def augmentation_of(config: Config, *, usual: bool) -> "Augmentation | None":
    """Return the degraded copies that a training of images has."""
    from manifpt.attribution.model.usual import DEGRADED
    from manifpt.images.degrade import StrengthRange
    from manifpt.images.degraded_copies import Augmentation

    if config.degrade is None:
        return DEGRADED if usual else None
    if config.degrade == NO_COPIES:
        return None
    return Augmentation(tuple(map(StrengthRange.parse, config.degrade)))


def check_free(config: Config) -> None:
    """Raise if an option is given that the usual attributor fixes."""
    given = next((name for name in DECIDED if name in config.model_fields_set), None)
    if given:
        raise ManifptError(
            f"--{given}: is fixed where neither --space nor --manifold is given; give one of them, "
            "such as --space image+residual"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("train_attribution", Config, run, __doc__, argv)
