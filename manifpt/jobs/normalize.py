"""Store all images alike: one decode, size, mode and encoder for every class.

    manifpt normalize --input real=DIR gan=gan.tar ldm=s3://bucket/ldm/ --output DATA
    manifpt normalize --input ... --output DATA --jpeg 90
    manifpt audit --input DATA/images

For a data set whose files give the label away, as `manifpt audit` says. Sources, splits and the
names of files stay; DATA/images is an input of every job. PNG keeps the pixels; --jpeg gives all
images the same dose of compression, which also covers weaker traces of earlier JPEG.
"""

from typing import Any

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import JobConfig
from manifpt.cli.options import LabelOptions
from manifpt.tracking import Run


class Config(LabelOptions, JobConfig):
    """Options of normalize."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="images by source: folders, tars, Parquet or tables of URIs, local or s3://",
    )
    output: str = Field(description="folder for the images, local or s3://")
    image_size: int | None = Field(
        None,
        ge=4,
        description="side in pixels; the smallest of the sources' commonest sides, if not given",
    )
    jpeg: int | None = Field(
        None, ge=1, le=95, description="JPEG of this quality, 4:2:0, for all, instead of PNG"
    )
    columns: tuple[str, ...] = Field(
        (), description="metadata of the input that stay with the images, as prompts"
    )


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Normalise and return the counts."""
    from manifpt.audit.normalize import normalize

    manifest = normalize(
        config.input,
        config.output,
        image_size=config.image_size,
        jpeg=config.jpeg,
        columns=config.columns,
        labels=config.labels,
        demand=config.demand,
        terms=config.terms,
    )
    tracked.inputs(manifest["inputs"], "normalize")
    tracked.document("manifest.json", manifest)
    names = ("rows_in", "ok", "quarantined", "by_error", "classes", "decode", "encoder")
    return {"output": config.output, **{name: manifest[name] for name in names}}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("normalize", Config, run, __doc__, argv)
