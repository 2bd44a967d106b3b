"""Check whether file properties reveal the label, so that no format is learned as a generator.

    manifpt audit --input real=DIR gan=gan.tar ldm=s3://bucket/ldm/ --output AUDIT
    manifpt audit --input BENCHMARK --split-by prompt --json audit.json

Compares how the images of each class were stored: format, JPEG quality and tables, chroma
subsampling, size, mode, bit depth, metadata, encoder, file size, grey levels. It also finds copies
across classes and splits, and trains a classifier that sees no pixel. The verdict is pass, warn or
fail; exit code 3 is fail. If a data set fails because of how its files were stored, it passes after
`manifpt normalize`. AUDIT/audit.md is the report; without --output there is only the summary.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import JobConfig
from manifpt.cli.options import LabelOptions, SplitOptions
from manifpt.errors import FailedAuditError, ManifptError
from manifpt.images.perceptual import DISTANCE, MOST_DISTANCE
from manifpt.tracking import Run

Share = Annotated[float, Field(gt=0, le=1)]


class Config(LabelOptions, SplitOptions, JobConfig):
    """Options of audit."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="images by source: folders, tars, Parquet or tables of URIs, local, s3://, "
        "gs:// or az://",
    )
    output: str | None = Field(
        None, description="folder for the report, local, s3://, gs:// or az://"
    )
    rows: int = Field(
        20_000,
        ge=100,
        description="number of images for the statistics, equally from all classes; ten times "
        "this number is compared for copies",
    )
    near_distance: int = Field(
        DISTANCE,
        ge=0,
        le=MOST_DISTANCE,
        description="near copies differ in at most this number of bits, of the 64 of the "
        "perceptual hash",
    )
    warn: Share = Field(
        0.01, description="warn if a file property explains this share of the label"
    )
    fail: Share = Field(
        0.05, description="fail if a file property explains this share of the label"
    )
    content_warn: Share = Field(
        0.6,
        description="warn if file size or grey levels explain this share of the label; these "
        "also depend on the content of the pictures",
    )
    content_fail: Share = Field(
        0.9, description="fail if file size or grey levels explain this share of the label"
    )
    copies_warn: Share = Field(
        0.001,
        description="warn if this share of images also occurs in another class or split, or has "
        "its prompt in another split",
    )
    copies_fail: Share = Field(0.01, description="fail at this share of such images")
    near_warn: Share = Field(
        0.05, description="warn if this share of images looks like another image"
    )
    near_fail: Share = Field(
        0.3, description="fail if this share of images looks like another image"
    )


@contextlib.contextmanager
def output_of(config: Config) -> Iterator[str]:
    """Lend the output's folder; a temporary one, if none was asked for."""
    from manifpt.engine import session

    if config.output is not None:
        yield config.output
        return
    if session.nodes() > 1:
        raise ManifptError("--output: a cluster of several nodes needs one that all of them reach")
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/audit"


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Audit and return the verdict of each property."""
    from manifpt.audit.audit import AuditSettings, audit
    from manifpt.audit.property_report import markdown
    from manifpt.audit.verdict import Thresholds

    thresholds = Thresholds(**{n: getattr(config, n) for n in Thresholds.__dataclass_fields__})
    settings = AuditSettings(config.rows, config.near_distance, config.split_by, thresholds)
    with output_of(config) as output:
        manifest = audit(
            config.input,
            output,
            settings,
            labels=config.labels,
            demand=config.demand,
            terms=config.terms,
        )
    tracked.inputs(manifest["inputs"], "audit")
    tracked.document("manifest.json", manifest)
    print(markdown(manifest), file=sys.stderr, flush=True)
    findings = {
        finding["name"]: {"share": finding["share"], "verdict": finding["verdict"]}
        for finding in manifest["findings"]
    }
    counts = {
        name: manifest[name]
        for name in ("verdict", "rows_in", "ok", "quarantined", "by_error", "sampled", "compared")
    }
    return {"output": config.output, **counts, "findings": findings}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""

    def command() -> None:
        summary = job.execute("audit", Config, run, argv, __doc__)
        print(json.dumps(summary, indent=1))
        if summary["verdict"] == "fail":
            failed = [n for n, f in summary["findings"].items() if f["verdict"] == "fail"]
            raise FailedAuditError(
                f"--input: fails by {', '.join(failed)}; manifpt normalize stores all images alike"
            )

    return job.exit_code("audit", command)
