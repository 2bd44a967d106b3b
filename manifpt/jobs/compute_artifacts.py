"""Project images onto a manifold and store their artifacts, a(x) = phi(x) - x*.

    manifpt compute_artifacts --input dcgan=DIR real=DIR --manifold M --output A

The artifacts are Parquet, one folder per split. `--space image` stores the images themselves: alone
as the baseline, or with manifolds as one of several spaces, which are computed in one pass.
Embeddings (`--projector none`) given as --input are projected without decoding and embedding the
images again.

    manifpt compute_artifacts ... --split-by prompt

All images of a prompt, scene or account are in one split; images without a value are split by
their content.

    manifpt compute_artifacts ... --augment jpeg resize blur crop noise --copies 2

For robust training, each training image of every class gets --copies degraded copies.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.input_options import DeclaredSources, LabelOptions, SplitOptions
from manifpt.cli.job_options import DryRunOptions, ProjectionConfig, SearchConfig
from manifpt.cli.option_types import Ranges
from manifpt.cli.space_options import PlainOptions
from manifpt.errors import ManifptError
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.images.degraded_copies import Augmentation


class Config(
    PlainOptions, DryRunOptions, LabelOptions, SplitOptions, SearchConfig, ProjectionConfig
):
    """Options of compute_artifacts."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="images by source: folders, tars, Parquet; local, s3://, gs://, az://; "
        "or embeddings",
    )
    output: str = Field(description="folder for the artifacts, local, s3://, gs:// or az://")
    manifold: tuple[str, ...] = Field(
        (), description="manifolds to project on, each with its own space, or a folder of several"
    )
    split: Literal["content", "train", "validation", "test"] = Field(
        "content",
        description="split of images that declare none: content splits them by their content, "
        "70/10/20; another value puts all into that split",
    )
    sources: DeclaredSources = ()
    float16: bool = Field(False, description="store artifacts as float16 instead of float32")
    augment: Ranges = Field(
        (),
        description="add degraded copies of training images, by some of jpeg resize blur crop "
        "noise, each alone or with a range as jpeg:50-95",
    )
    copies: int = Field(
        1, ge=1, description="with --augment: number of copies of each training image"
    )
    augment_validation: bool = Field(
        True,
        description="with --augment: also add one copy of each validation image; test images "
        "get none",
    )
    augment_seed: int = Field(
        0, ge=0, description="with --augment: seed of kinds, strengths, places and noise"
    )


AUGMENT = ("augment", "copies", "augment_validation", "augment_seed")


def requested_copies(config: Config) -> "Augmentation | None":
    """Return the degraded copies asked for, if any."""
    from manifpt.images.degrade import StrengthRange
    from manifpt.images.degraded_copies import Augmentation

    if not config.augment:
        given = set(AUGMENT[1:]) & config.model_fields_set
        if given:
            option = sorted(given)[0].replace("_", "-")
            raise ManifptError(f"--{option}: says how to --augment; give that, too")
        return None
    ranges = tuple(map(StrengthRange.parse, config.augment))
    return Augmentation(ranges, config.copies, config.augment_validation, config.augment_seed)


def one_manifold(config: Config) -> str:
    """Return the manifold for embeddings, which have their space, sources and splits."""
    fixed = {"space", "image_size", "tiles", "sources", "split", "split_by", *AUGMENT}
    fixed |= set(LabelOptions.model_fields)
    given = fixed & config.model_fields_set
    if given:
        option = sorted(given)[0].replace("_", "-")
        raise ManifptError(f"--{option}: the embeddings given as --input are made; leave it out")
    if len(config.manifold) != 1:
        raise ManifptError("--manifold: embeddings need the one that they are projected onto")
    return config.manifold[0]


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Compute the artifacts and return their counts."""
    from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
    from manifpt.artifacts.reprojection import embeddings_of, project_embeddings
    from manifpt.audit.training_audit import IMAGES

    if not config.manifold and config.space is None:
        raise ManifptError("--manifold: images need a manifold, or --space image to do without")
    embeddings = embeddings_of(config.input)
    if embeddings:
        manifest = project_embeddings(
            embeddings,
            config.output,
            one_manifold(config),
            float16=config.float16,
            projection=config.projection,
            demand=config.demand,
            terms=config.terms,
        )
    else:
        recipe = ArtifactRecipe(
            manifolds=config.manifold,
            plain=config.plain,
            image_size=config.image_size,
            tiles=config.tiles,
            sources=config.sources,
            undeclared=config.split,
            split_by=config.split_by,
            labels=config.labels,
            augmentation=requested_copies(config),
            float16=config.float16,
            projection=config.projection,
            audit_images=IMAGES,
        )
        manifest = compute_artifacts(
            config.input, config.output, recipe, demand=config.demand, terms=config.terms
        )
    tracked.inputs(manifest["inputs"], "artifacts")
    tracked.document("manifest.json", manifest)
    names = "rows_in ok quarantined by_error classes tiles copies split_by".split()
    found: Mapping[str, Any] = manifest
    return {"output": config.output, **{n: found[n] for n in names if n in found}}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("compute_artifacts", Config, run, __doc__, argv)
