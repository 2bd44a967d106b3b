"""Write embeddings or artifacts as files that autofaiss and clip-retrieval read.

    manifpt export MANIFOLD --output FOLDER
    manifpt export s3://bucket/artifacts --output s3://bucket/export --float16

INPUT is an output of build_manifold, or of compute_artifacts: with --projector none these are
embeddings, else artifacts. FOLDER gets img_emb/img_emb_N.npy, N x d, and
metadata/metadata_N.parquet, whose rows say which images these are, in the same order.
"""

from collections.abc import Mapping

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import POSITIONAL
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of export."""

    input: str = Field(
        description="output of build_manifold or compute_artifacts, of one space; local, s3://, "
        "gs:// or az://",
        json_schema_extra=POSITIONAL,
    )
    output: str = Field(description="folder for the files, local, s3://, gs:// or az://")
    float16: bool = Field(False, description="store vectors as float16 instead of float32")


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Export and return the counts."""
    from manifpt.artifacts.export import ARRAYS, export

    manifest = export(
        config.input,
        config.output,
        float16=config.float16,
        demand=config.demand,
        terms=config.terms,
    )
    tracked.document("manifest.json", manifest)
    files = sum(file["folder"] == ARRAYS for file in manifest["files"])
    return {
        "output": config.output,
        "of": manifest["of"],
        "rows": manifest["rows"],
        "dimension": manifest["dimension"],
        "dtype": manifest["dtype"],
        "files": files,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("export", Config, run, __doc__, argv)
