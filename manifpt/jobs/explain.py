"""Explain the verdict on an image: heads, nearest reals, p-values, degradations.

    manifpt explain IMAGE --model MODEL
    manifpt explain shard.tar#0001.png --model models:/NAME@champion --output why.html

Prints the prediction of each head, the nearest reals with their distance and percentile, how
strange the image is, and which degradations would change the verdict. --output draws it, with x, x*
and the artifact in each space, as a page that needs no network.
"""

import sys
from collections.abc import Mapping

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.attributor_options import AttributorUri, DecisionOptions, MovedManifolds
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import POSITIONAL, Degradations
from manifpt.tracking import Run


class Config(DecisionOptions, JobConfig):
    """Options of explain."""

    image: str = Field(
        description="image to explain: a file, or a member of a tar as TAR#NAME; local, s3://, "
        "gs://, az://, http",
        json_schema_extra=POSITIONAL,
    )
    model: AttributorUri
    output: str | None = Field(
        None, description="file for the page; if not given, no page is written"
    )
    manifold: MovedManifolds = ()
    levels: Degradations = Field(
        (), description="degradations to try, as jpeg:75 blur:1; if not given, 13 of five kinds"
    )


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Explain the verdict, print it, and draw it if asked."""
    from manifpt import storage
    from manifpt.attribution.crawl.registered import opened_model
    from manifpt.report.explanation import DEGRADATIONS, Explainer, explanation, opened_image
    from manifpt.report.explanation_page import explanation_page, explanation_text

    with opened_model(config.model, config.manifold) as source:
        explainer = Explainer.open(source.attributor, source.manifolds, config.rule)
        table = opened_image(config.image, explainer)
        found = explanation(explainer, table, config.levels or DEGRADATIONS)
        print(f"\n{explanation_text(found)}", file=sys.stderr, flush=True)
        if config.output is not None:
            data = explanation_page(explainer, table, found)
            storage.write_bytes(storage.absolute(config.output), data)
            tracked.bytes("explanation.html", data)
    return {"output": config.output, **found}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("explain", Config, run, __doc__, argv, on_ray=False)
