"""Do the files give the label away? Guard against learning a format instead of a generator.

    manifpt audit --input real=DIR gan=gan.tar ldm=s3://bucket/ldm/ --output AUDIT
    manifpt audit --input BENCHMARK --split-by prompt --json audit.json

Compares how the images of each class were stored: format, JPEG quality and tables, chroma
subsampling, size, mode, bit depth, metadata, encoder, file size, grey levels; finds copies across
classes and splits; and trains a classifier that sees no pixel. The verdict is pass, warn or fail;
exit code 3 is fail. A data set that fails passes after `manifpt normalize`, if its files were at
fault. AUDIT/audit.md is the report; without --output there is only the summary.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

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
        description="images by source: folders, tars, Parquet or tables of URIs, local or s3://",
    )
    output: str | None = Field(None, description="folder for the report, local or s3://")
    rows: int = Field(
        20_000,
        ge=100,
        description="images of the statistics, of all classes alike; ten times as "
        "many are compared for copies",
    )
    near_distance: int = Field(
        DISTANCE, ge=0, le=MOST_DISTANCE, description="bits of 64 in which near copies differ"
    )
    warn: Share = Field(0.01, description="share of the label that a file property explains")
    fail: Share = Field(0.05, description="the same, to fail")
    content_warn: Share = Field(
        0.6, description="share that file size or grey levels explain, which pictures change, too"
    )
    content_fail: Share = Field(0.9, description="the same, to fail")
    copies_warn: Share = Field(
        0.001,
        description="share of images that another class or split has, too, or its prompt",
    )
    copies_fail: Share = Field(0.01, description="the same, to fail")
    near_warn: Share = Field(0.05, description="share of images that look like another one")
    near_fail: Share = Field(0.3, description="the same, to fail")


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


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Audit and return the verdict of each property."""
    from manifpt.audit.audit import Settings, audit
    from manifpt.audit.report import markdown
    from manifpt.audit.verdict import Thresholds

    thresholds = Thresholds(**{n: getattr(config, n) for n in Thresholds.__dataclass_fields__})
    settings = Settings(config.rows, config.near_distance, config.split_by, thresholds)
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
    names = ("verdict", "rows_in", "ok", "quarantined", "by_error", "sampled", "compared")
    found = {
        finding["name"]: {"share": finding["share"], "verdict": finding["verdict"]}
        for finding in manifest["findings"]
    }
    return {"output": config.output, **{n: manifest[n] for n in names}, "findings": found}


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
