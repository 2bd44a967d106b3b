"""Embed real images as a manifold: vectors in shards, with ids, under one manifest.

    manifpt build_manifold --input real=s3://bucket/reals --output s3://bucket/manifold

If the input is the folder of a benchmark, the split `manifold` of its reals is used. --append adds
reals, and --compact merges the small shards that this leaves. --explain prints how neighbours are
found, and the measurements that decided it. If --input is a manifold, its embedded reals are used
again: for another --metric, or with --reals for a smaller manifold.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import EmbeddingConfig
from manifpt.cli.options import DryRunOptions, LabelOptions, SpaceOptions
from manifpt.errors import ManifptError
from manifpt.tracking import Run


class Config(SpaceOptions, DryRunOptions, LabelOptions, EmbeddingConfig):
    """Options of build_manifold."""

    input: tuple[str, ...] = Field(
        (),
        description="real images: folders, tars or Parquet, local, s3://, gs://, az://; "
        "or a manifold",
    )
    append: bool = Field(False, description="add --input to the manifold in --output")
    compact: bool = Field(
        False, description="merge small shards in --output, to about the number of --shards"
    )
    explain: bool = Field(False, description="only print how --output is searched, and why")
    output: str = Field(description="folder for the manifold, local, s3://, gs:// or az://")
    shards: int = Field(4, ge=1, description="number of shards")
    filter: Literal["bicubic", "lanczos", "bilinear"] = Field(
        "bicubic", description="antialiased filter that resizes images of another size"
    )
    index: str | None = Field(
        None,
        description="also build an approximate index, given by its FAISS name, such as IVF256,Flat",
    )
    geometry: bool = Field(
        False, description="also learn a Riemannian geometry, for --projector riemannian"
    )
    denoiser: bool = Field(
        False, description="rgb: also train a denoiser on the reals, for --projector denoiser"
    )
    denoiser_steps: int = Field(3000, ge=1, description="steps of the denoiser's training")


# Options that a manifold given as --input has already.
EMBEDDED = (
    "space shards image_size tiles filter freq_eps freq_log sl_network sl_weights ssl_network "
    "ssl_weights layer pooled layer_summary network_size precision source_column split_column"
).split()


def source_manifold(config: Config) -> str | None:
    """Return --input if it is a manifold, or None if it is images."""
    from manifpt import outputs, storage

    names = [text for text in config.input if "=" not in text or storage.is_remote(text)]
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


def built(config: Config) -> Any:
    """Build a manifold of images, or of the embedded reals of another; return its manifest."""
    from manifpt.manifold.build import ManifoldSettings, build_manifold
    from manifpt.manifold.derive import derive_manifold

    settings = ManifoldSettings(
        config.shards,
        config.image_size,
        config.filter,
        config.metric,
        config.index,
        config.geometry,
        config.tiles,
        config.denoiser_steps if config.denoiser else 0,
        config.spaces,
    )
    source = source_manifold(config)
    output, demand, terms = config.output, config.demand, config.terms
    if source:
        return derive_manifold(
            source, output, settings=settings, reals=config.reals, demand=demand, terms=terms
        )
    return build_manifold(
        config.input,
        output,
        space=config.space,
        settings=settings,
        labels=config.labels,
        demand=demand,
        terms=terms,
    )


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Build the manifold, or change or explain it, and return its counts."""
    from manifpt.manifold.growth import append_to_manifold, compact_manifold
    from manifpt.manifold.prepare import search_text
    from manifpt.manifold.stored import StoredManifold

    if not config.input and not (config.compact or config.explain):
        raise ManifptError("--input: give the real images")
    if config.explain:
        print(search_text(StoredManifold.open(config.output)))
        return {"output": config.output}
    manifest: Any  # of one manifold, or of several
    if config.compact:
        manifest = compact_manifold(config.output, config.shards, demand=config.demand)
    elif config.append:
        manifest = append_to_manifold(
            config.input, config.output, labels=config.labels, demand=config.demand
        )
    else:
        manifest = built(config)
    last = manifest["appended"][-1] if config.append else manifest
    tracked.inputs(last["inputs"], "manifold")
    tracked.document("manifest.json", manifest)
    counts = {n: last[n] for n in ("rows_in", "ok", "quarantined", "by_error", "duplicates")}
    whole = {n: manifest[n] for n in ("reals", "content_sha256")}
    return {"output": config.output, **counts, **whole}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("build_manifold", Config, run, __doc__, argv)
