"""Project images onto a manifold and store their artifacts, a(x) = phi(x) - x*.

    python -m jobs.compute_artifacts --input dcgan=DIR real=DIR --manifold M --output A

The artifacts are Parquet, one folder a split. `--space image` stores the images themselves: alone
for the baseline, beside manifolds as one space of several, which are made in one pass. Embeddings
(`--projector none`) given as --input are projected without being decoded and embedded again.
"""

import sys
from typing import Any, Literal

from pydantic import Field

from manifpt import job
from manifpt.config import ProjectionConfig, SearchConfig
from manifpt.errors import ManifptError
from manifpt.tracking import Run


class Config(SearchConfig, ProjectionConfig):
    """Options of compute_artifacts."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="images by source: folders, tars or Parquet, local or s3://; or embeddings",
    )
    output: str = Field(description="folder for the artifacts, local or s3://")
    manifold: tuple[str, ...] = Field(
        (), description="manifolds to project on, each with its own space; a folder of several"
    )
    space: Literal["image"] | None = Field(
        None, description="'image' for the images themselves, instead of a manifold or beside"
    )
    image_size: int | None = Field(
        None, ge=4, description="'image' only: side in pixels; the images' own, at most 64"
    )
    split: Literal["content", "train", "validation", "test"] = Field(
        "content",
        description="split of images that declare none: by their content 70/10/20, or one for all",
    )
    sources: tuple[str, ...] = Field(
        (), description="of images that declare a source, as a benchmark's, only these"
    )
    float16: bool = Field(False, description="store artifacts as float16 instead of float32")


def one_manifold(config: Config) -> str:
    """Return the manifold for embeddings, which have their space, sources and splits."""
    given = {"space", "image_size", "sources", "split"} & config.model_fields_set
    if given:
        option = sorted(given)[0].replace("_", "-")
        raise ManifptError(f"--{option}: the embeddings given as --input are made; leave it out")
    if len(config.manifold) != 1:
        raise ManifptError("--manifold: embeddings need the one that they are projected onto")
    return config.manifold[0]


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Compute the artifacts and return their counts."""
    from manifpt.artifacts import compute_artifacts
    from manifpt.reprojection import embeddings_of, project_embeddings

    if not config.manifold and config.space is None:
        raise ManifptError("--manifold: images need a manifold, or --space image to do without")
    common = {
        "float16": config.float16,
        "projection": config.projection,
        "search": config.search_demand,
        "demand": config.demand,
        "overwrite": config.overwrite,
    }
    embeddings = embeddings_of(config.input)
    if embeddings:
        manifest = project_embeddings(embeddings, config.output, one_manifold(config), **common)
    else:
        manifest = compute_artifacts(
            config.input,
            config.output,
            manifolds=config.manifold,
            images=config.space == "image",
            image_size=config.image_size,
            sources=config.sources,
            undeclared=config.split,
            **common,
        )
    tracked.inputs(manifest["inputs"], "artifacts")
    tracked.document("manifest.json", manifest)
    names = ("rows_in", "ok", "quarantined", "by_error", "classes")
    return {"output": config.output, **{name: manifest[name] for name in names}}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("compute_artifacts", Config, run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
