"""Store all images alike: one decode, size, mode and encoder for every class.

    manifpt normalize --input real=DIR gan=gan.tar ldm=s3://bucket/ldm/ --output DATA
    manifpt normalize --input ... --output DATA --jpeg 90
    manifpt audit --input DATA/images

Use it if `manifpt audit` finds that the files reveal the label. Sources, splits and the names of
files stay the same; every job reads DATA/images. PNG keeps the pixels; --jpeg compresses all images
equally, which also hides weaker traces of earlier JPEG compression.
"""

from collections.abc import Mapping

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import JobConfig
from manifpt.cli.options import LabelOptions
from manifpt.tracking import Run


class Config(LabelOptions, JobConfig):
    """Options of normalize."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="images by source: folders, tars, Parquet or tables of URIs, local, s3://, "
        "gs:// or az://",
    )
    output: str = Field(description="folder for the images, local, s3://, gs:// or az://")
    image_size: int | None = Field(
        None,
        ge=4,
        description="side of images in pixels; if not given, the commonest side of each source "
        "is found, and the smallest of these is used",
    )
    jpeg: int | None = Field(
        None,
        ge=1,
        le=95,
        description="store all images as JPEG of this quality, 4:2:0, instead of PNG",
    )
    columns: tuple[str, ...] = Field(
        (), description="metadata columns of the input to keep with the images, such as prompts"
    )


def run(config: Config, tracked: Run) -> Mapping[str, object]:
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
    counts = {
        name: manifest[name]
        for name in ("rows_in", "ok", "quarantined", "by_error", "classes", "decode", "encoder")
    }
    return {"output": config.output, **counts}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("normalize", Config, run, __doc__, argv)
