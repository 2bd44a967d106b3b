"""Embed real images as a manifold: vectors in shards, with ids, under one manifest.

    python -m jobs.build_manifold --input real=s3://bucket/reals --output s3://bucket/manifold

The input of a benchmark is its folder: the split `manifold` of its reals is taken.
"""

import sys
from typing import Any, Literal

from pydantic import Field

from manifpt import job
from manifpt.config import JobConfig
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of build_manifold."""

    input: tuple[str, ...] = Field(
        min_length=1, description="real images: folders, tars or Parquet, local or s3://"
    )
    output: str = Field(description="folder for the manifold, local or s3://")
    space: Literal["rgb", "freq"] = Field("rgb", description="embedding space")
    shards: int = Field(4, ge=1, description="number of shards")
    image_size: int | None = Field(
        None, ge=4, description="side in pixels; the images' own, at most 64, if not given"
    )
    filter: Literal["bicubic", "lanczos", "bilinear"] = Field(
        "bicubic", description="antialiased resize filter for images of another size"
    )
    freq_eps: float | None = Field(
        None, gt=0, description="freq: added to magnitudes; 8-bit rounding noise if not given"
    )
    freq_log: bool = Field(True, description="freq: take the logarithm of magnitudes")


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Build the manifold and return its counts."""
    from manifpt.manifold.build import build_manifold

    manifest = build_manifold(
        config.input,
        config.output,
        space=config.space,
        shards=config.shards,
        image_size=config.image_size,
        filter_name=config.filter,
        eps=config.freq_eps,
        log=config.freq_log,
        demand=config.demand,
        overwrite=config.overwrite,
    )
    tracked.inputs(manifest["inputs"], "manifold")
    tracked.document("manifest.json", manifest)
    counts = {name: manifest[name] for name in ("rows_in", "ok", "quarantined", "by_error")}
    names = ("reals", "duplicates", "content_sha256")
    return {"output": config.output, **counts, **{name: manifest[name] for name in names}}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("build_manifold", Config, run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
