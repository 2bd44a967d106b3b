"""Show a finished output as one HTML file: results, examples, fingerprints, evidence.

    manifpt report EVALUATION
    manifpt report EVALUATION --robustness CURVES --audit AUDIT
    manifpt report s3://bucket/verdicts --output verdicts.html

The page of an output of evaluate has metrics with intervals, examples with their artifacts, mean
artifacts and their distances, curves, and the outputs that it was made from. The page of an output
of attribute has counts, scores, groups, the quarantine, and rows with their evidence. It needs no
network and has less than 10 MB. It is written as report.html into the output, unless --output names
another file.
"""

from collections.abc import Mapping

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.attributor_options import MovedAttributor, MovedManifolds
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import POSITIONAL
from manifpt.errors import ManifptError
from manifpt.tracking import Run

NAME = "report.html"


class Config(JobConfig):
    """Options of report."""

    run: str = Field(
        description="output of evaluate or attribute, local, s3://, gs:// or az://",
        json_schema_extra=POSITIONAL,
    )
    output: str | None = Field(
        None, description="file for the page; if not given, report.html in the output"
    )
    robustness: str | None = Field(
        None,
        description="for an evaluation: the output of evaluate --robustness, whose curves are "
        "shown",
    )
    audit: str | None = Field(None, description="output of audit, whose verdict is shown")
    model: MovedAttributor = None
    manifold: MovedManifolds = ()
    samples: int = Field(
        2,
        ge=1,
        le=20,
        description="number of examples for each source and outcome, drawn with their artifacts",
    )
    rows: int = Field(
        200, ge=1, le=2000, description="number of sampled rows of a crawl in the page's table"
    )


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Write the page; return its path."""
    from manifpt import outputs, storage
    from manifpt.report.crawl_page import crawl_page
    from manifpt.report.evaluation_page import PageOptions, evaluation_page
    from manifpt.report.robustness_page import robustness_page

    manifest = outputs.read(storage.absolute(config.run))
    kind = manifest["kind"] if manifest else "nothing finished"
    pages = {
        "evaluation": evaluation_page,
        "robustness": robustness_page,
        "attributions": crawl_page,
    }
    if kind not in pages:
        raise ManifptError(
            f"RUN {config.run}: holds {kind}; give a finished output of evaluate or attribute"
        )
    options = PageOptions(
        config.samples,
        config.robustness,
        config.audit,
        config.manifold,
        config.model,
        config.rows,
    )
    data = pages[kind](config.run, options)
    place = storage.absolute(config.output or storage.join(config.run, NAME))
    storage.write_bytes(place, data)
    tracked.bytes(NAME, data)
    return {"output": place, "of": kind, "bytes": len(data)}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("report", Config, run, __doc__, argv, on_ray=False)
