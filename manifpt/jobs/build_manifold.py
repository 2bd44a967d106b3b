"""Embed real images as a manifold: vectors in shards, with ids, under one manifest.

    manifpt build_manifold --input real=s3://bucket/reals --output s3://bucket/manifold

If the input is the folder of a benchmark, the split `manifold` of its reals is used. If --input is
a manifold, its embedded reals are used again: for another --metric, or with --reals for a smaller
manifold. --explain prints how neighbours are found, and the measurements that decided it.
`manifpt append` adds reals later.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.input_options import LabelOptions, ResizingFilter
from manifpt.cli.job_options import DryRunOptions, EmbeddingConfig
from manifpt.cli.space_options import SpaceOptions
from manifpt.errors import ManifptError
from manifpt.tracking import Run


class Config(SpaceOptions, DryRunOptions, LabelOptions, EmbeddingConfig):
    """Options of build_manifold."""

    input: tuple[str, ...] = Field(
        (),
        description="real images: folders, tars or Parquet, local, s3://, gs://, az://; "
        "or a manifold",
    )
    explain: bool = Field(False, description="only print how --output is searched, and why")
    output: str = Field(description="folder for the manifold, local, s3://, gs:// or az://")
    shards: int = Field(4, ge=1, description="number of shards")
    filter: ResizingFilter = "bicubic"
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
        raise ManifptError("--input: give one manifold alone; manifpt append adds images to one")
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
    """Build the manifold, or explain it, and return its counts."""
    from manifpt.manifold.prepare import search_text
    from manifpt.manifold.stored import StoredManifold

    if not config.input and not config.explain:
        raise ManifptError("--input: give the real images")
    if config.explain:
        print(search_text(StoredManifold.open(config.output)))
        return {"output": config.output}
    manifest = built(config)
    tracked.inputs(manifest["inputs"], "manifold")
    tracked.document("manifest.json", manifest)
    names = "rows_in ok quarantined by_error duplicates reals content_sha256".split()
    return {"output": config.output, **{name: manifest[name] for name in names}}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("build_manifold", Config, run, __doc__, argv)
