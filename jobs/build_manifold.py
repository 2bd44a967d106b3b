"""Embed real images as a manifold: vectors in shards, with ids, under one manifest.

    python -m jobs.build_manifold --input real=s3://bucket/reals --output s3://bucket/manifold

The input of a benchmark is its folder: the split `manifold` of its reals is taken. --append adds
reals, --compact merges the small shards that this leaves, --explain prints how neighbours are found
and from which measurements that was chosen. A manifold as --input gives its reals as they are
embedded: for another --metric, or with --reals for a smaller one.
"""

import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from manifpt import job
from manifpt.config import EmbeddingConfig
from manifpt.errors import ManifptError
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.spaces import Options


class Config(EmbeddingConfig):
    """Options of build_manifold."""

    input: tuple[str, ...] = Field(
        (), description="real images: folders, tars or Parquet, local or s3://; or a manifold"
    )
    append: bool = Field(False, description="add --input to the manifold in --output")
    compact: bool = Field(False, description="merge small shards of --output to about --shards")
    explain: bool = Field(False, description="only print how --output is searched, and why")
    output: str = Field(description="folder for the manifold, local or s3://")
    space: str = Field(
        "rgb", description="rgb, freq, sl, ssl, or several at once, each a manifold: rgb+sl"
    )
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
    reals: int | None = Field(
        None, ge=2, description="of a manifold given as --input, a random sample of so many"
    )
    index: str | None = Field(
        None, description="FAISS's name of an approximate index to have, too, such as IVF256,Flat"
    )
    geometry: bool = Field(
        False, description="learn a Riemannian geometry, too, for --projector riemannian"
    )
    freq_eps: float | None = Field(
        None, gt=0, description="freq: added to magnitudes; 8-bit rounding noise if not given"
    )
    freq_log: bool = Field(True, description="freq: take the logarithm of magnitudes")
    sl_network: str = Field("resnet50", description="sl: a torchvision classifier")
    sl_weights: str | None = Field(
        None, description="sl: file of its weights, local or s3://; torchvision's, if not given"
    )
    ssl_network: str = Field("resnet50", description="ssl: a torchvision classifier")
    ssl_weights: str | None = Field(
        None, description="ssl: file of Barlow Twins weights, or output of pretrain_embedding"
    )
    layer: str | None = Field(
        None, description="sl, ssl: an inner layer, such as layer2; before the last if not given"
    )
    pooled: bool = Field(True, description="sl, ssl: average the layer's map over places")
    network_size: int | None = Field(
        None, ge=16, description="sl, ssl: side that images are resized to; 224 if not given"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="sl, ssl: of the network; bfloat16 on GPUs that have it"
    )

    @property
    def spaces(self) -> "Options":
        """The options of spaces."""
        from manifpt.spaces import Options

        names = set(Options.__dataclass_fields__) & set(type(self).model_fields)
        given = {name: getattr(self, name) for name in names}
        return Options(**given, eps=self.freq_eps, log=self.freq_log)


# What a manifold given as --input has already.
EMBEDDED = (
    "space shards image_size filter freq_eps freq_log sl_network sl_weights ssl_network "
    "ssl_weights layer pooled network_size precision"
).split()


def source_manifold(config: Config) -> str | None:
    """Return the manifold that --input is, or None if it is images."""
    from manifpt import outputs, storage

    names = [text for text in config.input if "=" not in text or storage.is_s3(text)]
    kinds = [(outputs.read(storage.absolute(uri)) or {}).get("kind") for uri in names]
    if "manifold" not in kinds:
        if config.reals is not None:
            raise ManifptError("--reals: samples a manifold; build it, then give it as --input")
        return None
    if len(config.input) > 1:
        raise ManifptError("--input: give one manifold alone; --append adds images to one")
    given = sorted(set(EMBEDDED) & config.model_fields_set)
    if given:
        option = given[0].replace("_", "-")
        raise ManifptError(f"--{option}: the manifold given as --input has its own; leave it out")
    return names[0]


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Build the manifold, or change or explain it, and return its counts."""
    from manifpt.manifold.build import (
        Settings,
        append_to_manifold,
        build_manifold,
        compact_manifold,
    )
    from manifpt.manifold.derive import derive_manifold
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
        settings = Settings(
            config.shards,
            config.image_size,
            config.filter,
            config.metric,
            config.index,
            config.geometry,
        )
        source = source_manifold(config)
        common = {"settings": settings, "demand": config.demand, "overwrite": config.overwrite}
        if source:
            manifest = derive_manifold(source, config.output, reals=config.reals, **common)
        else:
            embedding = {"space": config.space, "options": config.spaces}
            manifest = build_manifold(config.input, config.output, **embedding, **common)
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
