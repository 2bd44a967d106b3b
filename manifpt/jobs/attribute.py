"""Find the generator of every image, with its probability and the nearest real.

    manifpt attribute --input s3://bucket/crawl --model MODEL --output s3://bucket/verdicts
    manifpt attribute --input CRAWL --model models:/NAME@champion --output VERDICTS
    manifpt attribute ... --retry-quarantined unreadable
    manifpt attribute --status VERDICTS

Every input row becomes exactly one row of `attributions/` or `quarantine/`. If a process or a node
is killed, the same command continues the job. `--status` reads the progress of a job from its
output, and needs no cluster. With --group-by, `groups/` has a decision on each site, account or
album, from the pooled evidence of its images.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.attributor_options import AttributorUri, DecisionOptions, MovedManifolds
from manifpt.cli.config import parse
from manifpt.cli.input_options import DeclaredSources, InputOptions
from manifpt.cli.job_options import DryRunOptions, JobConfig, SearchConfig
from manifpt.cli.option_types import OptionalDegradations
from manifpt.images.perceptual import DISTANCE, MOST_DISTANCE
from manifpt.tracking import Run


class Config(DecisionOptions, DryRunOptions, InputOptions, SearchConfig):
    """Options of attribute."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="images: folders, tars, Parquet, tables of URIs; local, s3://, gs://, az://; "
        "patterns",
    )
    model: AttributorUri
    output: str = Field(description="folder for the tables, local, s3://, gs:// or az://")
    split: Literal["train", "validation", "test"] | None = Field(
        None, description="use only images that declare this split, such as those of a benchmark"
    )
    sources: DeclaredSources = ()
    ensemble: OptionalDegradations = Field(
        None,
        description="also classify degraded views of each image; if they disagree, its "
        "probability is lower; without values the views are jpeg:75 jpeg:90 "
        "resize:0.75",
    )
    group_by: str | None = Field(
        None,
        description="judge images together that have the same value of this column, or lie in "
        "the same folder ('folder')",
    )
    foreign: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="with --group-by: share of a group's images that may come from other sources",
    )
    manifold: MovedManifolds = ()
    duplicates: bool = Field(
        True, description="find images that are copies of others in the input (duplicates/)"
    )
    near_distance: int = Field(
        DISTANCE,
        ge=0,
        le=MOST_DISTANCE,
        description="near duplicates differ in at most this number of bits, of the 64 of the "
        "perceptual hash",
    )
    retry_quarantined: tuple[str, ...] | None = Field(
        None,
        description="in a finished output, try quarantined rows again: those with these error "
        "codes, or all",
    )


class Status(JobConfig):
    """Options of attribute --status."""

    status: str = Field(description="folder of the tables, local, s3://, gs:// or az://")


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Attribute and return the counts."""
    from manifpt.attribution.crawl.attribute import attribute, check_any
    from manifpt.attribution.crawl.ensemble import views_of
    from manifpt.attribution.crawl.settings import AttributionSettings

    settings = AttributionSettings(
        split=config.split,
        sources=config.sources,
        reading=config.reading,
        duplicates=config.duplicates,
        near_distance=config.near_distance,
        rule=config.rule,
        views=() if config.ensemble is None else views_of(config.ensemble),
        group_by=config.group_by,
        foreign=config.foreign,
    )
    summary = attribute(
        config.input,
        config.model,
        config.output,
        settings,
        manifolds=config.manifold,
        demand=config.demand,
        terms=config.terms,
        retry=config.retry_quarantined,
    )
    tracked.inputs(summary["inputs"], "attribute")
    check_any(summary, config.output)
    return {"output": config.output, **summary}


def show(argv: Sequence[str]) -> None:
    """Print the progress of an output's job, from storage alone."""
    from manifpt import storage
    from manifpt.engine import progress

    config = parse(Status, __doc__, argv)
    found = progress.status(config.status)
    if config.json_file:
        storage.write_json(config.json_file, found)
    print(progress.status_text(found))


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    given = sys.argv[1:] if argv is None else argv
    if any(flag.split("=", 1)[0] == "--status" for flag in given):
        return job.exit_code("attribute", lambda: show(given))
    return job.main("attribute", Config, run, __doc__, argv)
