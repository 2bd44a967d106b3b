"""Train a network to tell generators apart by the artifacts of their images.

    manifpt train_attribution --input a=DIR b=DIR real=DIR --output MODEL
    manifpt train_attribution --input ARTIFACTS --output MODEL
    manifpt train_attribution --input a=DIR b=DIR real=DIR --manifold M --output MODEL
    manifpt train_attribution --input A-RGB A-SL --fusion early --output MODEL
    manifpt train_attribution --fuse MODEL-RGB MODEL-SL --output MODEL
    manifpt train_attribution --extend MODEL --add NAME=URI [NAME=URI ...] --output NEW
    manifpt train_attribution --input a=DIR b=DIR real=DIR --space image --output MODEL

Images are audited before the training: if a property of their files, such as the format, reveals
the class, the job ends with exit code 3, unless --accept-biased is given (see `manifpt audit`).
The first command makes the usual attributor. It has heads on pixels, on their high-pass residuals,
on local statistics, and on the part of an image that a denoiser, trained on reals only, removes.
Validation images decide the weight of each head. The heads also learn from degraded copies, unless
--degrade is none. The last command trains on the images alone, which is the baseline for every
comparison. Artifacts of the same images in several spaces can be used together, by one training or
by fusing trained attributors.
--extend adds sources to a trained attributor, each from about fifty images, without training its
trunk again. --register NAME puts the attributor in MLflow's model registry; `manifpt register` also
puts an evaluation on its card.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import NO_COPIES, Alias, ModelName, OptionalRanges, ProjectionConfig
from manifpt.cli.options import (
    DryRunOptions,
    LabelOptions,
    PlainOptions,
    SplitOptions,
    TrainingOptions,
)
from manifpt.errors import ManifptError
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.attribution.model.attributor_format import AttributorManifest
    from manifpt.attribution.model.train import StoppedTraining
    from manifpt.audit.training_audit import Settings
    from manifpt.images.degraded_copies import Augmentation

# Options that the usual attributor fixes.
DECIDED = ("highpass", "projector", "neighbors", "ridge")


class Config(
    PlainOptions, DryRunOptions, TrainingOptions, LabelOptions, SplitOptions, ProjectionConfig
):
    """Options of train_attribution."""

    input: tuple[str, ...] = Field(
        (), description="folders of compute_artifacts, or images by source"
    )
    fuse: tuple[str, ...] = Field(
        (), description="train nothing; combine these attributors of one space each by late fusion"
    )
    extend: str | None = Field(
        None,
        description="add sources to this attributor by new last layers, without training its "
        "trunks",
    )
    add: tuple[str, ...] = Field((), description="with --extend: images of new sources, NAME=URI")
    head: Literal["linear", "lda"] = Field(
        "lda",
        description="with --extend: how the last layers are fitted: by logistic regression "
        "(linear) or discriminant analysis (lda)",
    )
    output: str = Field(description="folder for the attributor, local, s3://, gs:// or az://")
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
    num_workers: int | None = Field(
        None,
        ge=1,
        description="number of Ray Train workers; if not given, one per GPU, or without GPUs "
        "one per CPU, less one",
    )
    audit_images: int = Field(
        300,
        ge=0,
        description="for images: number of images of each class whose file properties are "
        "audited before the training; 0 for no audit",
    )
    accept_biased: bool = Field(
        False,
        description="for images: train although the audit fails, which the attributor's manifest, "
        "its model card and pages then say",
    )
    register_as: ModelName | None = Field(
        None,
        alias="register",
        description="name under which the attributor is put in MLflow's model registry",
    )
    alias: Alias = Field("champion", description="with --register: alias of the new version")


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Train and return the result on the validation split."""
    check_options(config)
    if config.register_as is not None:
        tracked.require()
    if config.extend is not None:
        manifest: Mapping[str, Any] = extended(config, config.extend)
    elif config.fuse:
        from manifpt.attribution.model.members import fuse_attributors

        manifest = fuse_attributors(
            config.fuse, config.output, demand=config.demand, terms=config.terms
        )
    else:
        manifest = trained(config, tracked)
    return _logged(config, manifest, tracked)


def check_options(config: Config) -> None:
    """Raise if options give no input for the attributor, or contradict each other."""
    if [bool(config.input), bool(config.fuse), config.extend is not None].count(True) != 1:
        raise ManifptError(
            "--input: give artifacts or images, or attributors to --fuse or --extend"
        )
    if bool(config.add) != (config.extend is not None):
        raise ManifptError("--add: goes with --extend, NAME=URI of each new source")
    if config.fuse and config.split_by is not None:
        raise ManifptError("--split-by: --fuse takes trained attributors, which have their splits")


def extended(config: Config, model: str) -> "AttributorManifest":
    """Add the sources of --add to an attributor; return the new one's manifest."""
    from manifpt.artifacts.compute import ArtifactRecipe
    from manifpt.attribution.model.extend import extend_attributor

    recipe = ArtifactRecipe(
        manifolds=config.manifold, split_by=config.split_by, labels=config.labels
    )
    return extend_attributor(
        model,
        config.add,
        config.output,
        head=config.head,
        recipe=recipe,
        demand=config.demand,
        terms=config.terms,
    )


def trained(config: Config, tracked: Run) -> "AttributorManifest | StoppedTraining":
    """Train the usual attributor, or that of the spaces asked for; return its manifest."""
    from manifpt.artifacts.compute import ArtifactRecipe
    from manifpt.attribution.model.train import AttributorControl, print_epoch, train_attributor
    from manifpt.attribution.model.usual import train_usual

    def report(row: dict[str, float], epoch: int) -> None:
        print_epoch(row, epoch)
        tracked.metrics(row, step=epoch)

    audit = audit_settings(config)
    control = AttributorControl(
        config.demand, config.terms, config.num_workers, report, audit=audit
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


def audit_settings(config: Config) -> "Settings":
    """Return the settings of the audit before the training."""
    from manifpt.audit.training_audit import Settings

    return Settings(config.audit_images, config.accept_biased)


def check_free(config: Config) -> None:
    """Raise if an option is given that the usual attributor fixes."""
    given = next((name for name in DECIDED if name in config.model_fields_set), None)
    if given:
        raise ManifptError(
            f"--{given}: is fixed where neither --space nor --manifold is given; give one of them, "
            "such as --space image+residual"
        )


def _logged(config: Config, manifest: Mapping[str, Any], tracked: Run) -> Mapping[str, object]:
    """Log a finished attributor, register it if asked to; return its summary."""
    from manifpt.registry.register import log_model, register

    tracked.document("manifest.json", manifest)
    names = ("classes", "network", "best_epoch", "validation_accuracy", "validation_loss")
    summary = {"output": config.output, **{n: manifest[n] for n in names if n in manifest}}
    if manifest.get("audit"):
        summary["audit"] = manifest["audit"]["verdict"]
    heads = zip(manifest.get("heads", []), manifest["weights"], strict=False)
    weights = "; ".join(f"{name} {weight:.2f}" for name, weight in heads)
    print(f"weights of the heads: {weights}", file=sys.stderr, flush=True)
    degraded = manifest.get("validation_accuracy_by_degradation", {})
    if len(degraded) > 1:
        accuracies = ", ".join(f"{kind} {share:.3f}" for kind, share in degraded.items())
        print(f"validation accuracy: {accuracies}", file=sys.stderr, flush=True)
    if config.register_as is not None:
        logged = log_model(config.output, tracked.require(), manifold="auto")
        return {**summary, **register(logged, config.register_as, config.alias)}
    tracked.model(config.output)
    return summary


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("train_attribution", Config, run, __doc__, argv)
