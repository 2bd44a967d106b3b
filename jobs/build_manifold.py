"""Embed real images as a manifold: vectors in shards, with ids, under one manifest.

    python -m jobs.build_manifold --input real=s3://bucket/reals --output s3://bucket/manifold

The input of a benchmark is its folder: the split `manifold` of its reals is taken. --append adds
reals, --compact merges the small shards that this leaves, --explain prints how neighbours are found
and from which measurements that was chosen.
"""

import sys
from typing import Any, Literal

from pydantic import Field

from manifpt import job
from manifpt.config import JobConfig
from manifpt.errors import ManifptError
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of build_manifold."""

    input: tuple[str, ...] = Field(
        (), description="real images: folders, tars or Parquet, local or s3://"
    )
    append: bool = Field(False, description="add --input to the manifold in --output")
    compact: bool = Field(False, description="merge small shards of --output to about --shards")
    explain: bool = Field(False, description="only print how --output is searched, and why")
    output: str = Field(description="folder for the manifold, local or s3://")
    space: Literal["rgb", "freq"] = Field("rgb", description="embedding space")
    shards: int = Field(4, ge=1, description="number of shards")
    image_size: int | None = Field(
        None, ge=4, description="side in pixels; the images' own, at most 64, if not given"
    )
    filter: Literal["bicubic", "lanczos", "bilinear"] = Field(
        "bicubic", description="antialiased resize filter for images of another size"
    )
    metric: Literal["euclidean", "cosine", "whitened"] = Field(
        "euclidean",
        description="what is near: vectors, their directions, or vectors by Mahalanobis distance",
    )
    index: str | None = Field(
        None, description="FAISS's name of an approximate index to have, too, such as IVF256,Flat"
    )
    freq_eps: float | None = Field(
        None, gt=0, description="freq: added to magnitudes; 8-bit rounding noise if not given"
    )
    freq_log: bool = Field(True, description="freq: take the logarithm of magnitudes")


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Build the manifold, or change or explain it, and return its counts."""
    from manifpt.manifold.build import append_to_manifold, build_manifold, compact_manifold
    from manifpt.manifold.manifold import Manifold
    from manifpt.manifold.prepare import explained

    if not config.input and not (config.compact or config.explain):
        raise ManifptError("--input: give the real images")
    if config.explain:
        print(explained(Manifold.open(config.output)))
        return {"output": config.output}
    if config.compact:
        manifest = compact_manifold(config.output, config.shards, demand=config.demand)
    elif config.append:
        manifest = append_to_manifold(config.input, config.output, demand=config.demand)
    else:
        manifest = build_manifold(
            config.input,
            config.output,
            space=config.space,
            shards=config.shards,
            image_size=config.image_size,
            filter_name=config.filter,
            eps=config.freq_eps,
            log=config.freq_log,
            metric=config.metric,
            factory=config.index,
            demand=config.demand,
            overwrite=config.overwrite,
        )
    last = manifest["appended"][-1] if config.append else manifest
    tracked.inputs(last["inputs"], "manifold")
    tracked.document("manifest.json", manifest)
    counts = {n: last[n] for n in ("rows_in", "ok", "quarantined", "by_error", "duplicates")}
    names = ("reals", "content_sha256")
    return {"output": config.output, **counts, **{name: manifest[name] for name in names}}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("build_manifold", Config, run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
