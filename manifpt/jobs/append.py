"""Add real images to a finished manifold, or merge its small shards.

    manifpt append MANIFOLD --input real=more-reals/
    manifpt append MANIFOLD --compact --shards 4

New reals become new shards, and the old shards stay. Reals that the manifold has already are left
out, and the same command again does nothing. Each call leaves small shards; --compact merges them.
The old files stay until the next --compact, for processes that read them. A manifold with an
approximate index can't grow.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.input_options import LabelOptions
from manifpt.cli.job_options import DryRunOptions, EmbeddingConfig
from manifpt.cli.option_types import POSITIONAL
from manifpt.errors import ManifptError
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.manifold.manifold_format import ManifoldManifest


class Config(DryRunOptions, LabelOptions, EmbeddingConfig):
    """Options of append."""

    manifold: str = Field(
        description="manifold of build_manifold, local, s3://, gs:// or az://",
        json_schema_extra=POSITIONAL,
    )
    input: tuple[str, ...] = Field(
        (), description="real images to add: folders, tars or Parquet, local, s3://, gs://, az://"
    )
    compact: bool = Field(False, description="merge small shards, to about the number of --shards")
    shards: int = Field(4, ge=1, description="with --compact: number of shards")

    @property
    def output(self) -> str:
        """The folder that the job writes to."""
        return self.manifold


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Add the reals, then merge the shards; return the counts of both."""
    from manifpt.manifold.growth import append_to_manifold, compact_manifold

    if not (config.input or config.compact):
        raise ManifptError("--input: give real images to add, or --compact")
    summary: dict[str, object] = {"output": config.output}
    if config.input:
        manifest = append_to_manifold(
            config.input, config.manifold, labels=config.labels, demand=config.demand
        )
        added = manifest["appended"][-1]
        tracked.inputs(added["inputs"], "manifold")
        names = ("rows_in", "ok", "quarantined", "by_error", "duplicates")
        summary |= {name: value for name, value in added.items() if name in names}
    if config.compact:
        manifest = compact_manifold(config.manifold, config.shards, demand=config.demand)
    return {**summary, **_whole(manifest, tracked)}


def _whole(manifest: "ManifoldManifest", tracked: Run) -> Mapping[str, object]:
    tracked.document("manifest.json", manifest)
    shards = len(manifest["shards"])
    return {n: manifest[n] for n in ("reals", "content_sha256")} | {"shards": shards}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("append", Config, run, __doc__, argv)
